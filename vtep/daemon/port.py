"""One VNI at work: its TAP, its segment, its counters, and the ways to its remotes."""

import errno
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

from attrs import evolve

from vtep.config import Config
from vtep.config.option_parsers import MTU_MAX, MTU_MIN
from vtep.config.overlap import find_overlap
from vtep.counters import Drop
from vtep.daemon.build import inherit_policy, outer_header_options
from vtep.daemon.listener import FAMILY, Listener
from vtep.datapath import Arena, Outbound
from vtep.datapath.pool import Paths, Pool
from vtep.errors import VtepError
from vtep.forwarding.anycast import Gateways
from vtep.forwarding.fdb import LEARNED, Fdb, Remote
from vtep.forwarding.suppress import Neighbours
from vtep.forwarding.switch import ANYBODY, GroupPolicy, InnerVlan, Networks, Policy, Segment
from vtep.host.devices import device_index
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapAttachment, TapSetup
from vtep.io.addresses import host_of
from vtep.io.binding import Binding
from vtep.io.socket_options import gso_supported
from vtep.io.tap import Tap, queue_drops
from vtep.offload.sizing import TunnelSizing
from vtep.offload.tunnel_mtu import TunnelMtu
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import ethernet, vxlan
from vtep.wire.address import Address, Interface
from vtep.wire.icmp import MTU_MIN_V6

log = logging.getLogger("vtep")

_OVERHEAD = {4: vxlan.OVERHEAD_V4, 6: vxlan.OVERHEAD_V6}

_NAMED = 3
"""How many missing parts of the underlay a log line names."""

_HERE = "is in our network namespace again"
_AWAY = (
    "is in another network namespace: it forwards, but its MTU and its bridge are not looked after"
)


class Port:
    """One VNI of a `Vtep`, which makes it and looks after it.

    What it is asked to be is `config`. Its counters, and what it has learned, stay when it ends.
    """

    def __init__(self, config: Config, pool: Pool, arena: Arena) -> None:
        self.config = config
        self.underlay_devices: tuple[str, ...] = ()
        """Devices through which the remotes are reached, known once it is open."""
        self.underlay_missing: tuple[str, ...] = ()
        """What is absent on this host that the remotes are reached by; empty if all is there."""
        self.offload: frozenset[str] = frozenset()
        """Which offloads of `Config.offload` the kernel has, known once it is open."""
        self.segment = Segment(
            config.vni,
            _remotes(config),
            Fdb(
                config.vni,
                config.dstport,
                ageing=config.ageing,
                max_addresses=config.max_addresses,
                max_per_host=_quota(config),
            ),
            own_mac=ethernet.MAC_ZERO,
            learning=config.learning,
            accept=_accept(config),
            policy=_policy(config),
        )
        self._answer_for_neighbours()
        self.segment.set_gateways(self._gateways(config))
        self._tunnel = TunnelMtu(MTU_MAX)
        self._underlay_mtu: int | None = None
        self._warned: set[str] = set()
        self._fit = TunnelSizing(
            self.segment.header, self.segment.counters, self._tunnel.now, config.mss_clamp
        )
        self._tracker = AckTracker()
        self.place = TapAttachment(mtu=None, bridge=0, limit=None)
        self.tap_index = 0
        self._here = True
        self._pool = pool
        self._arena = arena
        self._device: Tap | None = None
        self.listeners: tuple[Listener, ...] = ()
        """What listens for it, while it forwards."""

    # --- asking -----------------------------------------------------------------------------

    @property
    def fdb(self) -> Fdb:
        """What has been learned."""
        return self.segment.fdb

    @property
    def mtu(self) -> int:
        """The largest IP packet that the tunnel carries, in octets, known once it is open."""
        return self._tunnel.now

    @property
    def is_here(self) -> bool:
        """Whether the TAP is in the network namespace of this process, as far as is known."""
        return self._device is not None and self._here

    @property
    def tap(self) -> str:
        """Name of the TAP device: the configured one, unless somebody has renamed it."""
        return self._name if self._device is not None else self.config.tap

    @property
    def tap_goes(self) -> bool:
        """Whether the TAP device vanishes once this lets go of it."""
        return self._device is None or self._device.removed_on_close

    def versions(self, config: Config) -> list[int]:
        """The IP versions in use if this is the configuration: FDB entries may name others."""
        configured = {remote.host for remote in self.segment.configured}
        others = {_version(host) for host in self.fdb.sources if host not in configured}
        return sorted(others.union(config.versions))

    def counters(self) -> dict[str, int]:
        """Every counter of this VNI by name, as of now; see `vtep.counters`."""
        if self._device is not None:
            with suppress(OSError):
                self.count_queue_drops(dict(queue_drops()).get(self.tap, 0))
        return self.segment.counters.as_dict()

    # --- life -------------------------------------------------------------------------------

    def setup(self) -> TapSetup:
        """What the TAP is to be."""
        return _setup(self.config, self._tunnel.most)

    def with_mtu(self, underlay: Underlay) -> Underlay:
        """Return the underlay with the MTU that it had last, if nothing is known of it now."""
        if underlay.devices or self._underlay_mtu is None:
            return underlay
        return evolve(underlay, mtu=self._underlay_mtu)

    def _survey(self, underlay: Underlay) -> None:
        self.underlay_devices = underlay.devices
        underlay = self.with_mtu(underlay)
        self._tunnel.most = _tunnel_mtu(self.config, underlay)
        self._underlay_mtu = underlay.mtu if underlay.devices else self._underlay_mtu
        log.debug(
            "vni %d: the routes to the remotes are over %s, MTU %d",
            *(self.config.vni, ", ".join(underlay.devices) or "no device", underlay.mtu),
        )
        self._fit.mtu = self.mtu
        if line := _mtu_advice(self.config, underlay):
            self._warn_once(line)

    def _warn_once(self, line: str) -> None:
        """Log a warning, unless that was done since the configuration is as it is."""
        if line not in self._warned:
            self._warned.add(line)
            log.warning("vni %d: %s", self.config.vni, line)

    def _note_missing(self, underlay: Underlay) -> None:
        """Log once what the underlay lacks, and once that it is complete."""
        vni, before = self.config.vni, self.underlay_missing
        refusals = (each.refusal for each in self.listeners if not each.is_ready)
        missing = underlay.missing or tuple(filter(None, refusals))
        self.underlay_missing = missing
        if missing and missing != before:
            rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            log.warning(
                "vni %d: waiting for the underlay: %s%s", vni, "; ".join(missing[:_NAMED]), rest
            )
        if before and not missing:
            over = ", ".join(underlay.devices) or "any device"
            log.info("vni %d: the underlay is ready: over %s", vni, over)
            # What was opened meanwhile may send from another address than the one that is here now.
            for path in self._paths.values():
                path.close()

    def open(self, drops: Mapping[str, int]) -> None:
        """Open the TAP device; raises VtepError.

        `drops` is what the kernel has discarded in front of each device before.
        """
        config = self.config
        tap = Tap(config.tap, tso="tso" in config.offload, uso="uso" in config.offload)
        self.adopt(tap, drops)

    def adopt(self, tap: Tap, drops: Mapping[str, int]) -> None:
        """Use a TAP device that is open already."""
        config = self.config
        tap.request_offloads(tso="tso" in config.offload, uso="uso" in config.offload)
        self.tap_index = tap.index
        self._name = config.tap
        self._drops_before = drops.get(config.tap, 0)
        self._device = tap

    def start(
        self,
        underlay: Underlay,
        listeners: Iterable[Listener],
        lost: Callable[["Port", OSError], None],
        refitted: Callable[["Port"], None],
        unheard: Callable[["Port", int], None],
    ) -> None:
        """Forward from now on.

        `lost` is called when the TAP is taken from us, `refitted` when the MTU of the tunnel has
        become another one since that of the underlay or of the path to a remote has, and `unheard`
        when an FDB entry names a host of an IP version on which nothing listens for us.
        """
        self._refitted = partial(refitted, self)
        tap = self._tap()
        # Not before: the TAP of a change that is refused must vanish.
        tap.set_persistent(on=self.config.persist)
        self._survey(underlay)
        self.segment.own_mac = tap.mac
        self.listeners = tuple(listeners)
        self._judge_offload()
        self._paths = self._make_paths()
        self.fdb.unused = self._let_go
        self._unheard = partial(unheard, self)
        self.fdb.listed = self._listed
        self._lost = partial(lost, self)
        self._outbound = Outbound(
            tap, self.segment, self._paths, self._fit, self._tracker, self._arena, self._lost
        )
        self._outbound.start()
        self._explain_remotes()
        for listener in self.listeners:
            self._attach(listener)
        self._note_missing(underlay)

    def _explain_remotes(self) -> None:
        """Log why each destination of broadcasts is one."""
        if log.isEnabledFor(logging.DEBUG):
            asked = self.fdb.keys_of(self.segment.configured)
            for remote in self.segment.remotes:
                why = "--remote or --group" if self.fdb.keys_of([remote]) <= asked else "pyvtep fdb"
                log.debug("vni %d: broadcasts go to %s (%s)", self.config.vni, remote.host, why)

    def _listed(self, host: str) -> None:
        version = _version(host)
        if self.listeners and not any(each.version == version for each in self.listeners):
            self._unheard(version)

    def hear(self, listener: Listener) -> None:
        """Let one more listen for it from now on."""
        self.listeners += (listener,)
        self._attach(listener)

    def _attach(self, listener: Listener) -> None:
        turn = self._outbound.readable
        listener.attach(self.segment, self._tap(), self._fit, self._tracker, turn)

    def close(self) -> None:
        """Forward no more, and give the TAP back."""
        tap = self.release()
        if tap is not None:
            tap.close()

    def release(self) -> Tap | None:
        """Forward no more, and let go of the TAP, which stays open."""
        tap = self._device
        if tap is None:
            return None
        self._device = None
        for listener in self.listeners:
            listener.detach(self.segment)
        if self.listeners:
            self._outbound.stop()
            self._paths.close()
        self.listeners = ()
        return tap

    def change(self, config: Config, underlay: Underlay, listeners: Iterable[Listener]) -> None:
        """Be what another configuration of the same TAP asks for, from now on."""
        tap, segment, before = self._tap(), self.segment, self.config
        self.config = config
        self._warned.clear()
        self._survey(underlay)
        tap.set_persistent(on=config.persist)
        tap.request_offloads(tso="tso" in config.offload, uso="uso" in config.offload)
        segment.learning = config.learning
        if config.mtu != before.mtu:
            self.place = evolve(self.place, mtu=None)
        self._fit.set_mss_clamp(config.mss_clamp)
        now = time.monotonic()
        if config.ageing != before.ageing:
            segment.fdb.set_ageing(config.ageing, now)
        segment.set_accept(_accept(config))
        segment.set_policy(_policy(config))
        self._fit.oversize.set_prefix(segment.header)
        self._answer_for_neighbours()
        if config.anycast_gateway != before.anycast_gateway:
            segment.set_gateways(self._gateways(config))
        if config.dstport != before.dstport:
            segment.fdb.set_port(config.dstport)
        segment.fdb.max_addresses = config.max_addresses
        segment.fdb.max_per_host = _quota(config)
        segment.set_remotes(_remotes(config), now)
        self._explain_remotes()
        before_these, self.listeners = self.listeners, tuple(listeners)
        self._judge_offload()
        paths = self._make_paths()
        for remote in set(self._paths) & set(segment.remotes):
            paths[remote]  # Taken before it is let go of, so that what is shared stays open.
        self._outbound.take(paths)
        self._paths.close()
        self._paths = paths
        # One that stays is not detached for a moment: what its second socket holds would be lost.
        for listener in before_these:
            if listener not in self.listeners:
                listener.detach(segment)
        for listener in self.listeners:
            self._attach(listener)
        self._note_missing(underlay)

    def sweep(self, now: float) -> bool:
        """Do a bit of what is due with time; True if more of it may be left for the next call."""
        more = self.segment.sweep(now)
        self._outbound.send_requests(now)
        return more

    def take_over(self, former: "Port") -> None:
        """Enter what another port of this VNI, whose TAP is replaced, has in its tables.

        Side effects: as if each FDB entry and permanent neighbour were put in.
        """
        before = former.segment
        asked = before.fdb.keys_of(before.configured)
        for entry in tuple(before.fdb.entries()):
            for remote in entry.destinations:
                is_default = entry.mac == ethernet.MAC_ZERO
                if is_default and not asked.isdisjoint(before.fdb.keys_of((remote,))):
                    continue  # The configuration says which of these there are.
                if remote.port == former.config.dstport:
                    remote = evolve(remote, port=self.config.dstport)  # noqa: PLW2901
                known = self.segment.source(remote.host)
                if entry.kind != LEARNED or known is not None:
                    self.fdb.append(entry.mac, remote, entry.updated, entry.kind)
        if self.segment.neighbours is not None and before.neighbours is not None:
            self.segment.neighbours.take_over(before.neighbours)

    def _answer_for_neighbours(self) -> None:
        """Have a table of neighbours or none, as the configuration says."""
        config, segment = self.config, self.segment
        neighbours = segment.neighbours
        if not config.proxy:
            segment.set_neighbours(None)
        elif neighbours is None:
            segment.set_neighbours(
                Neighbours(segment.fdb, ageing=config.ageing, max_neighbours=config.max_addresses)
            )
        else:
            neighbours.ageing, neighbours.max_neighbours = config.ageing, config.max_addresses

    def _let_go(self, remote: Remote) -> None:
        self._paths.release(remote)

    def links(self) -> set[int]:
        """Indices of the devices whose changes are to be followed."""
        bridge, wanted = self.config.bridge, 0
        with suppress(OSError):  # Out of descriptors: it is looked at again when there are some.
            wanted = (device_index(bridge) or 0) if bridge is not None else 0
        return {self.tap_index, self.place.bridge, wanted} - {0}

    def _gateways(self, config: Config) -> Gateways | None:
        return (
            Gateways(config.anycast_gateway, self._say_shared) if config.anycast_gateway else None
        )

    def _say_shared(self, address: Address) -> None:
        log.info(
            "vni %d: %s is the gateway of another host, too: who is here is kept to the one here, "
            "and that reaches only who is here",
            self.config.vni,
            address,
        )

    def _tap(self) -> Tap:
        if self._device is None:
            raise VtepError(f"vni {self.config.vni} is not open")
        return self._device

    def _judge_offload(self) -> None:
        tap, wanted = self._tap(), self.config.offload
        have = {
            "tso": tap.tso,
            "uso": tap.uso,
            "gso": "gso" in wanted and gso_supported(),
            "gro": "gro" in wanted and all(listener.joins for listener in self.listeners),
            "tnl": "tnl" in wanted and tap.tso and self._pool.tunnel_gso_device is not None,
        }
        self.offload = frozenset(name for name, works in have.items() if works)
        if log.isEnabledFor(logging.DEBUG):
            off = ", ".join(
                f"{name} ({'not there' if name in wanted else '--offload'})"
                for name in sorted(have)
                if name not in self.offload
            )
            on = ",".join(sorted(self.offload)) or "none"
            log.debug("vni %d: offload on: %s; off: %s", self.config.vni, on, off or "none")

    def _make_paths(self) -> Paths:
        config = self.config
        bindings = {
            version: Binding(family, config.local_for(version), config.dev)
            for version, family in FAMILY.items()
        }
        return Paths(
            self._pool,
            bindings,
            outer_header_options(config),
            inherit_policy(config),
            self._path_changed,
            gso="gso" in self.offload,
            tunnel_gso="tnl" in self.offload,
            port=config.dstport,
        )

    # --- time -------------------------------------------------------------------------------

    def follow(self) -> None:
        """Notice what others have changed of the TAP."""
        if self._device is None:
            return
        try:
            self._name = self._device.name
            self.segment.own_mac = self._device.mac
        except OSError as error:
            if error.errno == errno.EBADFD:  # Its reader may be waiting for something else.
                self._lost(error)
            return
        try:
            here = device_index(self._name) == self.tap_index
        except OSError:  # Out of descriptors, which says nothing of the TAP.
            return
        if here != self._here:
            self._here = here
            log.warning("vni %d: %s %s", self.config.vni, self._name, _HERE if here else _AWAY)

    def adapted(self, place: TapAttachment) -> bool:
        """Take note of where the TAP is now; whether the MTU is another one there."""
        before, bridge = self.mtu, self.config.bridge
        if place.unjoined and place.unjoined != self.place.unjoined:
            log.warning(
                "vni %d: waiting for --bridge %s: %s", self.config.vni, bridge, place.unjoined
            )
        elif self.place.unjoined and not place.unjoined and bridge is not None:
            log.info("vni %d: %s is a port of --bridge %s now", self.config.vni, self.tap, bridge)
        self.place = place
        self._tunnel.tap = place.limit
        return self._refit(before)

    def surveyed(self, underlay: Underlay | VtepError) -> bool:
        """Follow the underlay, or log why it can't be what was asked for.

        Returns whether the TAP is to be another one now.
        """
        if isinstance(underlay, VtepError):
            self._warn_once(str(underlay))
            return False
        if self.tap in underlay.devices:
            # As where an address of the TAP shadows the way to a remote. Were its MTU that of the
            # underlay, it would be less by the overhead each time.
            self._warn_once(f"the route to a remote leads over {self.tap}, into its own tunnel")
            return False
        before, setup = self.mtu, self.setup()
        self._note_missing(underlay)
        try:
            self._survey(underlay)
            _check_addresses(self.config, underlay)
        except VtepError as error:  # It runs, and the host may be changed again.
            self._warn_once(str(error))
        if self._refit(before):
            self._refitted()
        return self.setup() != setup

    def _path_changed(self, remote: Remote, mtu: int | None) -> None:
        """Go by the MTU of the path to a remote, in octets; None if it sets no limit any more."""
        before = self.mtu
        overhead = _OVERHEAD[_version(remote.host)]
        if self.config.mtu is not None and self.config.df == "unset":
            mtu = None  # What is larger than the path carries is fragmented, as --mtu asks for.
        self._tunnel.path(remote, None if mtu is None else max(MTU_MIN, mtu - overhead))
        if self.config.df == "set" and self.mtu < MTU_MIN_V6 <= self._tunnel.most:
            self._warn_once(
                f"the path to {remote.host} carries {self.mtu} octets in the tunnel, less than the "
                f"{MTU_MIN_V6} that IPv6 needs: leave out --df set, and larger ones are fragmented"
            )
        if self._device is not None and self._refit(before):
            self._refitted()

    def _refit(self, before: int) -> bool:
        self._fit.mtu = self.mtu
        changed = self.mtu != before
        self.segment.counters.mtu_changes += changed
        return changed

    def count_queue_drops(self, drops: int) -> None:
        """Take over what the kernel counted in front of our descriptor."""
        sent = self.segment.counters.drops
        sent[Drop.TAP_QUEUE_FULL] = max(sent[Drop.TAP_QUEUE_FULL], drops - self._drops_before)


def _version(host: str) -> int:
    return 6 if ":" in host else 4


def setup_of(config: Config, underlay: Underlay) -> TapSetup:
    """Return what the TAP of a segment is to be.

    Raises VtepError where its MTU or one of its addresses does not go with the underlay.
    """
    _check_addresses(config, underlay)
    mtu = _tunnel_mtu(config, underlay)
    if config.mtu is None and config.df == "set" and mtu < MTU_MIN_V6 and _first_v6(config):
        raise VtepError(
            f"--address {_first_v6(config)}: IPv6 needs an MTU of at least {MTU_MIN_V6}, but the "
            f"tunnel carries {mtu} octets: {_mtu_remedy(config, underlay)}, or leave out --df set, "
            "and the underlay fragments larger packets"
        )
    return _setup(config, mtu)


def _setup(config: Config, mtu: int) -> TapSetup:
    fixed = config.mtu is not None
    if _first_v6(config) and not fixed:
        # Otherwise the kernel refuses the address, and removes it when the MTU falls.
        mtu = max(mtu, MTU_MIN_V6)
    return TapSetup(mtu, config.mac, config.address, config.bridge, fixed)


def _first_v6(config: Config) -> Interface | None:
    return next((address for address in config.address if address.version == 6), None)


def _check_addresses(config: Config, underlay: Underlay) -> None:
    """Raise VtepError where an address of the TAP takes away the route to a remote."""
    overlap = find_overlap(config.address, config.remote, underlay.networks)
    if overlap is not None:
        raise VtepError(str(overlap))


def _accept(config: Config) -> Networks:
    """Who may send besides the remotes: with a group, anybody (RFC 7348), if no list says who."""
    anybody = config.accept_any or (config.group is not None and not config.accept)
    return ANYBODY if anybody else config.accept


def _quota(config: Config) -> int | None:
    """Return how many MACs may be learned from one remote, as `Fdb.max_per_host` has it."""
    quota = config.max_addresses_per_remote
    return quota if isinstance(quota, int) else None


def _policy(config: Config) -> Policy:
    groups = None
    if config.gbp is not None:
        groups = GroupPolicy(config.gbp, config.gbp_accept or None)
    return Policy(config.reserved_bits, groups, InnerVlan(config.inner_vlan))


def _remotes(config: Config) -> list[Remote]:
    """Where broadcasts go: the remotes, and the group."""
    addresses = [*config.remote, *([config.group] if config.group is not None else [])]
    return [Remote(host_of(address, config.dev), config.dstport) for address in addresses]


def _room(config: Config, underlay: Underlay) -> int:
    """Return the octets of the largest IP packet that the underlay carries without fragments."""
    return min(underlay.mtu - _OVERHEAD[config.versions[-1]], MTU_MAX)


def _tunnel_mtu(config: Config, underlay: Underlay) -> int:
    """Return the MTU of the tunnel in octets.

    Raises VtepError where it does not fit the underlay, and the underlay must not fragment.
    """
    version = config.versions[-1]
    devices = ", ".join(underlay.devices)
    room = _room(config, underlay)
    if room < MTU_MIN:
        raise VtepError(
            f"the underlay ({devices}) has an MTU of {underlay.mtu}, too small for VXLAN over "
            f"IPv{version}: raise it (ip link set {underlay.devices[0]} mtu 1500)"
        )
    if config.mtu is None:
        return room
    if config.mtu > room and underlay.devices and config.df == "set":
        raise VtepError(
            f"--mtu {config.mtu}: does not fit; the underlay ({devices}) carries {underlay.mtu} "
            f"octets, of which VXLAN over IPv{version} leaves {room}, and --df set forbids to "
            f"fragment: give --mtu {room}, or leave out --df set"
        )
    return config.mtu


def _mtu_remedy(config: Config, underlay: Underlay) -> str:
    """Return how the underlay could carry what IPv6 needs."""
    wanted = MTU_MIN_V6 + _OVERHEAD[config.versions[-1]]
    return f"raise the MTU of {' and '.join(underlay.devices)} to {wanted}"


def _mtu_advice(config: Config, underlay: Underlay) -> str | None:
    """Return what a person should know of the MTU of the tunnel, if anything."""
    room = _room(config, underlay)
    if not underlay.devices:
        return None
    over = f"over {', '.join(underlay.devices)} (mtu {underlay.mtu})"
    if config.mtu is not None:
        if config.mtu <= room:
            return None
        but = " unless --df inherit forbids that" if config.df == "inherit" else ""
        return f"--mtu {config.mtu}: the underlay fragments packets larger than {room} {over}{but}"
    if room >= MTU_MIN_V6:
        return None
    what = f"the tunnel carries {room} octets {over}, less than the {MTU_MIN_V6} that IPv6 needs"
    remedy = _mtu_remedy(config, underlay)
    if config.df == "set":
        return f"{what}, and --df set forbids to fragment: {remedy}"
    if _first_v6(config):
        return f"{what}: the underlay fragments larger IPv6 packets; to avoid that, {remedy}"
    return f"{what}: for IPv6, {remedy}, or give --mtu {MTU_MIN_V6}, and the underlay fragments"
