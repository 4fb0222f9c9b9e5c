"""The parts of a VTEP that its components share."""

from attrs import frozen

from vtep.daemon.ingress_filters import IngressFilters
from vtep.daemon.kernel_drops import KernelDrops
from vtep.daemon.listeners import Listeners
from vtep.daemon.liveness_prober import LivenessProber
from vtep.daemon.network import HostNetwork
from vtep.daemon.ports import Ports
from vtep.daemon.trunks import Trunks
from vtep.daemon.tunnel_gso_setup import TunnelGsoSetup
from vtep.daemon.unmatched import UnmatchedVteps
from vtep.datapath.pool import Pool
from vtep.io.inherited import Inherited
from vtep.io.interfaces import SocketFactory
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber
from vtep.wire.echo import EchoMessage


@frozen(eq=False)
class Parts:
    """One of each part, shared by `Reconfigurer`, `HostWatch` and `Housekeeping`."""

    network: HostNetwork
    pool: Pool
    prober: GsoProber[TunnelGsoPath]
    ports: Ports
    listeners: Listeners
    filters: IngressFilters
    kernel_drops: KernelDrops
    tunnel_gso: TunnelGsoSetup
    liveness: LivenessProber
    trunks: Trunks
    unmatched: UnmatchedVteps

    @classmethod
    def make(
        cls,
        network: HostNetwork,
        sockets: SocketFactory,
        prober: GsoProber[TunnelGsoPath],
        inherited: Inherited,
    ) -> "Parts":
        """Make the parts of a VTEP without ports; `inherited` are descriptors that are open."""
        pool = Pool(prober, sockets)
        ports = Ports(pool)
        liveness = LivenessProber()

        def on_reply(reply: EchoMessage, host: str, now: float) -> None:
            if not liveness.on_reply(reply, host, now):
                prober.on_reply(reply, host, now)

        listeners = Listeners(network, sockets, pool, on_reply, inherited)
        return cls(
            network=network,
            pool=pool,
            prober=prober,
            ports=ports,
            listeners=listeners,
            filters=IngressFilters(network, ports, listeners),
            kernel_drops=KernelDrops(network, ports, listeners),
            tunnel_gso=TunnelGsoSetup(network, pool, prober),
            liveness=liveness,
            trunks=Trunks(),
            unmatched=UnmatchedVteps(),
        )
