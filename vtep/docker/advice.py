"""Advice about an attached Docker network: its problems, and those of this host's firewall."""

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from vtep.docker.network import AttachedTunnel, BridgeFilter, DockerNetwork, find_problems
from vtep.host.firewall import CROSSING, INCOMING, PacketPattern
from vtep.host.netfilter import Rules
from vtep.host.privileges import Capability, has_capability
from vtep.wire.address import without_scope


def advise(
    network: DockerNetwork,
    tunnel: AttachedTunnel,
    bridge_netfilter: bool,
    remotes: Iterable[str],
    dstport: int,
    devices: Sequence[str],
    process: int,
) -> list[str]:
    """Return a line for each problem of an attached network, with its solution; blocks.

    `bridge_netfilter` is that of its bridge, `remotes` are the addresses of other VTEPs, and
    `devices` the underlay devices of the pyvtep, which is `process`.
    """
    rules = Rules.read()
    crossing = PacketPattern(4, device=network.bridge, out=network.bridge)
    bridge_filter = BridgeFilter(bridge_netfilter, rules.verdict(crossing, *CROSSING))
    return [
        *find_problems(network, tunnel, bridge_filter),
        *_underlay_problems(rules, remotes, dstport, devices),
        *_probe_problems(network, process),
    ]


def _probe_problems(network: DockerNetwork, process: int) -> Iterator[str]:
    # A pyvtep that was started without a Docker network has given the capability up for good.
    if not has_capability(process, Capability.NET_RAW):
        yield (
            f"network {network.name}: duplicate addresses of gateways and containers are not "
            f"probed for, as process {process} has no CAP_NET_RAW: restart it as root with "
            f"--on-demand or --docker-network {network.name}, or give its service that capability "
            "(docs/service.md)"
        )


def _underlay_problems(
    rules: Rules, remotes: Iterable[str], dstport: int, devices: Sequence[str]
) -> Iterator[str]:
    for remote in map(ip_address, remotes):
        packet = PacketPattern(
            *(remote.version, str(without_scope(remote)), dstport),
            devices[0] if len(devices) == 1 else None,
        )
        drop = rules.verdict(packet, *INCOMING)
        if drop is not None and drop.certain:
            yield (
                f"this host's firewall drops UDP port {dstport} from {remote} by {drop.rule}: "
                f"{drop.fix}"
            )
            return  # Most likely it drops those of the other remotes as well.
