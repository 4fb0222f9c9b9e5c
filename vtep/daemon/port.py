"""One VNI at work: its TAP, its segment, its counters, and the paths to its remotes."""

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

from attrs import evolve

from vtep.config import Config
from vtep.config.network_bridge import NetworkBridge
from vtep.config.option_parsers import MTU_MAX, MTU_MIN
from vtep.daemon.build import (
    APPLIERS,
    FORWARDING_APPLIERS,
    SEGMENT_APPLIERS,
    TAP_APPLIERS,
    apply_options,
    make_paths,
)
from vtep.daemon.duplicates import log_held_macs, protect_from_loops, send_loop_probe
from vtep.daemon.fast_path_loader import FastPathLoader
from vtep.daemon.listener import Listener
from vtep.daemon.network import HostNetwork
from vtep.daemon.port_events import PortEvents
from vtep.daemon.port_log import PortLog
from vtep.daemon.port_tap import PortTap
from vtep.daemon.port_underlay import PortUnderlay
from vtep.daemon.tap_plan import check_addresses, mtu_advice, tap_setup, tunnel_mtu
from vtep.daemon.trunks import Trunks
from vtep.datapath import Arena, Egress
from vtep.datapath.observers import EgressObserver
from vtep.datapath.pool import Paths, Pool
from vtep.datapath.vlan_egress import make_egress
from vtep.errors import VtepError
from vtep.fastpath.state import DISABLED, OBSERVED, VLAN, FastPathState
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapAttachment, TapSetup
from vtep.io.inherited import Inherited
from vtep.io.interfaces import TapDevice
from vtep.offload.sizing import TunnelSizing
from vtep.offload.tunnel_mtu import TunnelMtu
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import ethernet, vxlan
from vtep.wire.address import Address, version_of
from vtep.wire.icmp import MTU_MIN_V6


class Port:
    """One VNI of a `Vtep`, which makes it, opens it and ends it.

    `config` is its configuration. Its counters and its FDB can still be read after it has ended.
    """

    def __init__(
        self,
        config: Config,
        pool: Pool,
        arena: Arena,
        network: HostNetwork,
        fast_path: FastPathLoader,
        inherited: Inherited,
        trunks: Trunks,
    ) -> None:
        self._inherited = inherited
        self.log = PortLog(config.vni)
        """The lines of the log that depend on what was logged before."""
        self.config = config
        self.network_bridge: NetworkBridge | None = None
        """The bridge of the Docker network; None until it is known, or without such a network."""
        self.network_problem = ""
        """Why the TAP is not on the bridge of its Docker network as that is now; empty if it is."""
        self.effective = config
        """The configuration with the bridge of the Docker network, if that is known."""
        self.underlay = PortUnderlay()
        """The underlay, which is known once the port has started."""
        self.offload: frozenset[str] = frozenset()
        """The offloads of `Config.offload` that are in use; known once the port has started."""
        fdb = Fdb(config.vni, config.dstport, ageing=config.ageing, max_addresses=0)
        self.segment = Segment(config.vni, (), fdb, own_mac=ethernet.MAC_ZERO, learning=True)
        self._tunnel = TunnelMtu(MTU_MAX)
        self.sizing = TunnelSizing(
            self.segment.header, self.segment.counters, self._tunnel.now, config.mss_clamp
        )
        log_held_macs(fdb)
        protect_from_loops(self.segment)
        apply_options(self, SEGMENT_APPLIERS, None, 0.0)
        self.addresses = tuple(map(str, config.address))
        """The addresses of the TAP with prefix lengths, as last seen; at first, as configured."""
        self.place = self._tap = PortTap(config.vni, network, trunks)
        """The TAP as the host has it now, with its network namespace."""
        self._tracker = AckTracker()
        self.attachment = TapAttachment(mtu=None, bridge=0, limit=None)
        self._is_paused = False
        self._pool = pool
        self._arena = arena
        self._network = network
        self._fast_path_loader = fast_path
        self._paths: Paths | None = None
        self._egress: Egress | None = None
        self._observer: EgressObserver | None = None
        self.listeners: tuple[Listener, ...] = ()
        """The listeners that deliver to this port; empty unless it forwards."""

    # --- queries ----------------------------------------------------------------------------

    @property
    def fdb(self) -> Fdb:
        """The forwarding database."""
        return self.segment.fdb

    @property
    def mtu(self) -> int:
        """The largest IP packet in octets that the tunnel carries; known once it has started."""
        return self._tunnel.now

    @property
    def underlay_devices(self) -> tuple[str, ...]:
        """The devices over which the remotes are reached; known once the port has started."""
        return self.underlay.devices

    @property
    def underlay_missing(self) -> tuple[str, ...]:
        """Parts that this host lacks to reach the remotes; empty if it lacks nothing."""
        return self.log.missing

    @property
    def is_here(self) -> bool:
        """True if the TAP is in the network namespace of this process, as far as is known."""
        return self._tap.is_here

    @property
    def is_open(self) -> bool:
        """True if the TAP is open."""
        return self._tap.is_open

    @property
    def tap(self) -> str:
        """The name of the TAP device: the configured one, unless the device was renamed."""
        return self._tap.name or self.config.tap

    @property
    def tap_index(self) -> int:
        """The index of the TAP device, or 0 before it was opened."""
        return self._tap.index

    @property
    def device(self) -> TapDevice:
        """The open TAP device. Raises: VtepError if it is not open."""
        return self._tap.device

    @property
    def removed_on_close(self) -> bool:
        """True if the kernel removes the TAP device when the port closes it."""
        return not self._tap.is_open or self._tap.device.removed_on_close

    @property
    def fast_path(self) -> FastPathState:
        """The state of the fast path for this VNI."""
        if not self.config.fast_path:
            return DISABLED
        if self.config.vlan is not None:
            return VLAN
        return self._fast_path_loader.state if self._observer is None else OBSERVED

    @property
    def path_mtus(self) -> dict[str, int]:
        """The MTU of the path to each remote that something was sent to, in octets."""
        return self._paths.mtus() if self._paths is not None else {}

    def versions(self, config: Config) -> list[int]:
        """Return the IP versions to listen on with this configuration.

        Those are the versions of the configuration, and those of remotes of FDB entries.
        """
        configured = {remote.host for remote in self.segment.configured}
        others = {version_of(host) for host in self.fdb.members.hosts if host not in configured}
        return sorted(others.union(config.versions))

    def counters(self) -> dict[str, int]:
        """Return the counters of this VNI by name; see `vtep.counters`."""
        if self._tap.is_open:
            with suppress(OSError):
                self.count_queue_drops(dict(self._tap.host.tap_queue_drops()).get(self.tap, 0))
        return self.segment.counters.as_dict()

    def setup(self) -> TapSetup:
        """Return the setup of the TAP for the present configuration and underlay."""
        return tap_setup(self.effective, self._tunnel.most)

    def links(self) -> set[int]:
        """Return the indices of the devices of this host whose changes concern the port."""
        if self._tap.namespace is not None:
            return set()  # The namespace reports its own changes.
        bridge, wanted = self.effective.bridge, 0
        with suppress(OSError):  # No descriptor to ask with: the lookup is repeated later.
            wanted = (self._network.device_index(bridge) or 0) if bridge is not None else 0
        return {self._tap.index, self.attachment.bridge, wanted} - {0}

    # --- life -------------------------------------------------------------------------------

    def open(self, queue_drops: Mapping[str, int]) -> None:
        """Open the TAP device. Raises: VtepError.

        `queue_drops` has the transmit drops of each device so far.
        """
        self._tap.open(self.config, self._inherited, queue_drops)

    def prepare(self) -> None:
        """Open what a TAP in another network namespace needs; in a thread. Raises: VtepError."""
        self._network.prepare_tap(self.config, self._inherited)

    def adopt(self, former: "Port", queue_drops: Mapping[str, int]) -> None:
        """Use the open TAP device of another port, which ends, with its drops as in `open`."""
        namespace = former.place.release_namespace()
        if (tap := former.release()) is not None:
            self._tap.adopt(tap, self.config.tap, queue_drops, namespace)

    def start(self, underlay: Underlay, listeners: Iterable[Listener], events: PortEvents) -> None:
        """Begin to forward, with a TAP that is open. Raises: OSError if the TAP is gone."""
        self._on_mtu_changed = partial(events.on_mtu_changed, self)
        self._on_family_needed = partial(events.on_family_needed, self)
        self._on_remotes_changed = partial(events.on_remotes_changed, self)
        self._on_tap_lost = partial(events.on_tap_lost, self)
        self._on_namespace_changed = partial(events.on_namespace_changed, self)
        self._set_underlay(underlay)
        self.listeners = tuple(listeners)
        # Not earlier: a new TAP must not persist if its transaction fails.
        apply_options(self, FORWARDING_APPLIERS, None, time.monotonic())
        self.fdb.members.on_remote_unused = self._release_path
        self.fdb.members.on_added = self._on_member_added
        self._egress = make_egress(
            *(self.device, self.segment, self.paths, self.sizing, self._tracker, self._arena),
            self._on_tap_lost,
        )
        self.update_fast_path()
        if self._is_paused:
            self._egress.pause()
        else:
            self._tap.watch(self._on_namespace_changed)
        self._egress.start()
        self.log.remotes(self.segment)
        for listener in self.listeners:
            self._attach(listener)
        self._note_missing(underlay)

    def change(self, config: Config, underlay: Underlay, listeners: Iterable[Listener]) -> None:
        """Change to another configuration with the same TAP. Raises: OSError if the TAP is gone."""
        before, self.config = self.effective, config
        self.effective = self.effective_with(config)
        if config.address != before.address:
            self.addresses = tuple(map(str, config.address))
        self.log.start_anew()
        self._set_underlay(underlay)
        former, self.listeners = self.listeners, tuple(listeners)
        apply_options(self, APPLIERS, before, time.monotonic())
        self.log.remotes(self.segment)
        # A listener that stays is not detached in between: that would close its punt socket, and
        # lose the datagrams that are queued there.
        for listener in former:
            if listener not in self.listeners:
                listener.detach(self.segment)
        for listener in self.listeners:
            self._attach(listener)
        self._note_missing(underlay)
        if config.evpn:
            self._on_remotes_changed()

    def effective_with(self, config: Config) -> Config:
        """Return what a configuration means with the Docker network's bridge that is known."""
        return config if self.network_bridge is None else self.network_bridge.apply_to(config)

    def add_listener(self, listener: Listener) -> None:
        """Receive from one more listener."""
        self.listeners += (listener,)
        self._attach(listener)

    def _attach(self, listener: Listener) -> None:
        if self._egress is not None:
            # Compiled turns write to the descriptor of a TAP, whose frames are tagged with VLANs.
            fast_path = self.config.fast_path and self._observer is None and not self.config.vlan
            parts = (self.segment, self.device, self.sizing, self._tracker, self._egress.readable)
            listener.attach(*parts, fast_path=fast_path)

    @property
    def is_waiting(self) -> bool:
        """True while datagrams wait for room in a send buffer."""
        return self._egress is not None and self._egress.is_waiting

    @property
    def keeps_setup(self) -> bool:
        """True if the TAP must stay as it is: another process forwards with it, or owns it."""
        return self._tap.is_inherited and (self._is_paused or self._tap.is_unreachable)

    def pause(self) -> None:
        """Leave all frames in the TAP until `resume`."""
        self._is_paused = True
        if self._egress is not None:
            self._egress.pause()
            self._tap.unwatch()

    def resume(self) -> None:
        """Read the TAP again."""
        self._is_paused = False
        if self._egress is not None:
            self._egress.resume()
            self._tap.watch(self._on_namespace_changed)

    def state(self) -> dict[str, object]:
        """Return what another process needs to know of the TAP that is not in its options."""
        network = self.network_bridge
        return {
            "name": self.tap,
            "mtu": self.attachment.mtu,
            "bridge": None if network is None else network.bridge,
            "gateways": [] if network is None else list(map(str, network.gateways)),
            **self._tap.state(),
        }

    def set_state(self, index: int, mtu: int | None, queue_drops: int) -> None:
        """Continue with the TAP as another process has left it; see `state`."""
        self._tap.set_state(index, queue_drops)
        self.attachment = evolve(self.attachment, mtu=mtu)

    def set_network_bridge(self, bridge: str, gateways: Iterable[Address]) -> None:
        """Continue on the bridge of a Docker network, on which another process has the TAP."""
        if self.config.docker_network is None:
            return
        self.network_bridge = NetworkBridge(
            *(self.config.docker_network, self.config.docker_host, bridge, tuple(gateways))
        )
        before, self.effective = self.effective, self.effective_with(self.config)
        apply_options(self, SEGMENT_APPLIERS, before, time.monotonic())

    def reassert(self) -> None:
        """Set the options of the TAP again: another process that had it may have changed them."""
        if self._tap.is_open:
            apply_options(self, TAP_APPLIERS, None, time.monotonic())

    def close(self) -> None:
        """End forwarding and close the TAP."""
        if (tap := self.release()) is not None:
            tap.close()

    def release(self) -> TapDevice | None:
        """End forwarding.

        Returns: the TAP, which is still open; None if there is none.
        """
        tap = self._tap.release()
        if tap is None:
            return None
        for listener in self.listeners:
            listener.detach(self.segment)
        self.listeners = ()
        if self._egress is not None:
            self._egress.stop()
            self._egress = None
        if self._paths is not None:
            self._paths.close()
            self._paths = None
        return tap

    # --- what the appliers call -------------------------------------------------------------

    @property
    def paths(self) -> Paths:
        """The paths to the remotes. Raises: VtepError if the port does not forward."""
        if self._paths is None:
            raise VtepError(f"vni {self.config.vni} does not forward")
        return self._paths

    def update_offload(self) -> None:
        """Find out which of the configured offloads are in use now."""
        tap, wanted = self.device, self.config.offload
        in_use = {
            "tso": tap.tso,
            "uso": tap.uso,
            "gso": "gso" in wanted and self._network.gso_supported(),
            "gro": "gro" in wanted and all(listener.gro_enabled for listener in self.listeners),
            "tnl": "tnl" in wanted and tap.tso and self._pool.tunnel_gso_device is not None,
        }
        self.offload = frozenset(name for name, works in in_use.items() if works)
        self.log.offloads(in_use, wanted)

    def update_fast_path(self) -> None:
        """Use the compiled turns if they are loaded and configured, or stop using them."""
        if self._egress is not None:
            in_use = self.config.fast_path and self._observer is None
            self._egress.use_fast_path(self._fast_path_loader.fast_path if in_use else None)

    def observe(self, observer: EgressObserver | None) -> None:
        """Show an observer each frame that is sent, off the fast path; None ends that."""
        self._observer = observer
        self.update_fast_path()
        if self._egress is not None:
            self._egress.observe(observer)
        for listener in self.listeners:
            self._attach(listener)

    def replace_paths(self) -> None:
        """Send through new paths, which fit the configuration; sockets that fit stay open."""
        former = self._paths
        self._paths = paths = make_paths(self.config, self._pool, self.offload, self._on_path_mtu)
        if former is None or self._egress is None:
            return
        # Taken before the former ones are released: the pool closes a path without a user.
        for remote in set(former) & set(self.segment.remotes):
            paths[remote]
        self._egress.use_paths(paths)
        former.close()

    def _release_path(self, remote: Remote) -> None:
        if self._paths is not None:
            self._paths.release(remote)

    # --- events -----------------------------------------------------------------------------

    def sweep(self, now: float) -> bool:
        """Do one step of ageing.

        Returns: whether more steps may be due.
        """
        more = self.segment.sweep(now)
        if self._egress is not None:
            self._egress.send_requests(now)
        return more

    def send_loop_probe(self, now: float) -> None:
        """Send a probe for a loop behind the TAP. Not to be called within a turn."""
        if self._tap.is_open:
            send_loop_probe(self.segment, self._tap.device, now)

    def count_queue_drops(self, drops: int) -> None:
        """Count the frames that the kernel has discarded, by the transmit drops of the device."""
        self._tap.count_queue_drops(drops, self.segment.counters)

    def _on_member_added(self, host: str) -> None:
        version = version_of(host)
        if self.listeners and not any(each.version == version for each in self.listeners):
            self._on_family_needed(version)
        if self.config.evpn:
            self._on_remotes_changed()

    def evpn_remotes(self) -> list[Address]:
        """Return the unicast addresses of VTEPs that only EVPN or an FDB command has brought.

        Without EVPN there are none: only routes to configured remotes are followed then.
        """
        if not self.config.evpn:
            return []
        configured = set(self.config.remote_addresses)
        members = map(ip_address, self.fdb.members.hosts)
        return [each for each in members if each not in configured and not each.is_multicast]

    def on_link_changed(self) -> None:
        """Follow changes of the TAP from outside: its name, MAC address and namespace."""
        try:
            mac = self._tap.follow()
        except (OSError, VtepError) as error:  # While the reader waits, nothing reads the TAP.
            self._on_tap_lost(error)
            return
        self.segment.own_mac = mac or self.segment.own_mac

    def on_attached(self, attachment: TapAttachment, *, logs: bool = True) -> bool:
        """Note where the TAP is attached now; with `logs`, report a change of that.

        Returns: whether the MTU of the tunnel has changed.
        """
        before, unjoined = self.mtu, self.attachment.unjoined
        if logs:
            self.log.bridge(self.tap, self.effective.bridge, unjoined, attachment.unjoined)
        self.attachment = attachment
        self._tunnel.tap = attachment.limit
        return self._update_mtu(before)

    def on_underlay_mtu(self, underlay: Underlay | VtepError) -> bool:
        """Follow the underlay, or log why the configuration does not fit it any more.

        Returns: whether the TAP needs another setup.
        """
        if isinstance(underlay, VtepError):
            self.log.warn_once(str(underlay))
            return False
        if self.is_here and self.tap in underlay.devices:
            # A TAP address has shadowed the route to a remote. Following this underlay would lower
            # the MTU of the TAP by the overhead, then again, and so on.
            self.log.warn_once(f"the route to a remote leads over {self.tap}, into its own tunnel")
            return False
        before, setup = self.mtu, self.setup()
        self._note_missing(underlay)
        try:
            self._set_underlay(underlay)
            check_addresses(self.config, underlay)
        except VtepError as error:  # The port goes on: the host may be changed back.
            self.log.warn_once(str(error))
        if self._update_mtu(before):
            self._on_mtu_changed()
        return self.setup() != setup

    def _on_path_mtu(self, remote: Remote, mtu: int | None) -> None:
        """Follow the MTU of the path to a remote, in octets; None if it is not used any more."""
        before, overhead = self.mtu, vxlan.OVERHEAD[version_of(remote.host)]
        if self.config.mtu is not None and self.config.df == "unset":
            mtu = None  # --mtu asks for packets of this size: larger ones are fragmented.
        self._tunnel.set_path(remote, None if mtu is None else max(MTU_MIN, mtu - overhead))
        if self.config.df == "set" and self.mtu < MTU_MIN_V6 <= self._tunnel.most:
            self.log.too_small_for_ipv6(remote.host, self.mtu)
        if self._tap.is_open and self._update_mtu(before):
            self._on_mtu_changed()

    def _update_mtu(self, before: int) -> bool:
        """Apply the MTU of the tunnel to the sizing.

        Returns: whether it differs from `before`.
        """
        self.sizing.mtu = self.mtu
        changed = self.mtu != before
        self.segment.counters.mtu_changes += changed
        return changed

    # --- the underlay -----------------------------------------------------------------------

    def _set_underlay(self, underlay: Underlay) -> None:
        """Take over devices and MTU of the underlay. Raises: VtepError if the MTU is too small."""
        underlay = self.underlay.with_last_mtu(underlay)
        self.underlay.take_over(self.config, underlay)
        self._tunnel.most = tunnel_mtu(self.config, underlay)
        self.log.underlay(underlay.devices, underlay.mtu)
        self.sizing.mtu = self.mtu
        if line := mtu_advice(self.config, underlay):
            self.log.warn_once(line)

    def _note_missing(self, underlay: Underlay) -> None:
        """Log once what the underlay lacks, and once that it is complete."""
        refusals = (each.refusal for each in self.listeners if not each.is_ready)
        missing = underlay.missing or tuple(filter(None, refusals))
        if self.log.note_missing(missing, underlay.devices):
            # Sockets that were opened in between may have another source address than the kernel
            # would select now.
            for path in self.paths.values():
                path.close()
