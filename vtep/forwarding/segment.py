"""A segment: one VNI, with its FDB, its policies and its counters.

The walk of a frame from the TAP is decide, account, act: `inspect` applies the policies that change
or answer a frame, `route` decides where it goes, `account` counts it, and the data path sends it.
A datagram from the underlay is admitted (`admit` or `admit_by_policy`), which learns its source and
counts a drop, before its frame is delivered to the TAP.

Nothing here raises an exception on hostile input.
"""

from collections.abc import Callable, Iterable, Iterator
from struct import Struct

from vtep.counters import Counters, Drop, Notice
from vtep.forwarding.anycast import Gateways
from vtep.forwarding.fdb import Entry, EntryEvent, Fdb, Filter, Learned, Remote
from vtep.forwarding.loops import LoopGuard
from vtep.forwarding.non_members import NonMembers
from vtep.forwarding.policy import DEFAULT_POLICY, InnerVlan, Networks, SegmentPolicy, group_of
from vtep.forwarding.remote_counters import CountersByHost
from vtep.forwarding.route import NoRoute, Route
from vtep.forwarding.storm import StormControl, StormLimits
from vtep.forwarding.suppress import Answer, Neighbours
from vtep.wire import Buffer, ethernet, vxlan

INNER_MIN = vxlan.HEADER_LEN + ethernet.HEADER_LEN
"""Octets of the shortest datagram with an inner Ethernet header."""

_DESTINATION = Struct("6s")

_VLAN_ID = 0x0FFF
"""The VLAN id in the tag control information."""


class Segment:
    """One VNI: its FDB, policies and counters.

    Frames to an unknown destination are replicated to the remotes, in their order: the destinations
    of the FDB's default entry (head-end replication). Datagrams are accepted from the members of
    the segment (see `fdb.Members`) and from the networks `accept`, and from no other source.
    """

    def __init__(
        self,
        vni: int,
        remotes: Iterable[Remote],
        fdb: Fdb,
        *,
        own_mac: bytes,
        learning: bool,
        accept: Networks = (),
        policy: SegmentPolicy = DEFAULT_POLICY,
    ) -> None:
        self.vni = vni
        self.fdb = fdb
        self.verdict_watchers: list[Callable[[bytes | None], None]] = []
        """Called when a decision of `route` or `admit` may differ from the last one about a like
        frame: with a MAC if only about frames to it or from it, with None if about any."""
        self._learning = learning
        self._own_mac = own_mac
        self._own_macs = frozenset((own_mac,))
        self.counters = Counters()
        self.remote_counters = CountersByHost()
        self.liveness_interval = 0.0
        """Seconds after which a remote that is quiet is sent an echo request; 0 for none."""
        self.replies: list[bytes] = []
        """Frames for the TAP, added by `inspect`."""
        self.requests: list[bytes] = []
        """ARP and ND requests for the underlay, added by `sweep`: they were answered here, and the
        neighbours have not confirmed the answers."""
        self.neighbours: Neighbours | None = None
        self.gateways: Gateways | None = None
        self.storm = StormControl(self.counters)
        self.loops = LoopGuard(self._on_blocked)
        self.set_policy(policy)
        self._non_members = NonMembers(fdb, accept, self._on_non_members_forgotten)
        fdb.learns_from_non_members = bool(accept)
        self.configured: tuple[Remote, ...] = ()
        """The remotes of the configuration."""
        self._members = fdb.members.hosts
        fdb.members.on_removed = self._on_host_removed
        fdb.watch(self._on_entry_changed)
        self.set_remotes(remotes, 0.0)

    # --- configuration ------------------------------------------------------------------------

    @property
    def remotes(self) -> tuple[Remote, ...]:
        """The remotes to which frames with an unknown destination are flooded."""
        default = self.fdb.default
        return default.destinations if default is not None else ()

    @property
    def accept(self) -> Networks:
        """Networks from which datagrams are accepted besides those of members."""
        return self._non_members.accept

    @property
    def header(self) -> bytes:
        """The VXLAN header of frames to a destination without a VNI of its own."""
        groups = self.policy.groups
        return vxlan.pack(self.vni, groups.group if groups is not None else 0)

    @property
    def learning(self) -> bool:
        """True if MACs are learned from frames of the underlay."""
        return self._learning

    @learning.setter
    def learning(self, learning: bool) -> None:
        self._learning = learning
        self._report_change()

    @property
    def own_mac(self) -> bytes:
        """The MAC of the TAP, 6 octets: a frame from the underlay with this source is a loop."""
        return self._own_mac

    @own_mac.setter
    def own_mac(self, own_mac: bytes) -> None:
        if own_mac != self._own_mac:
            self._own_mac = own_mac
            self._own_macs = frozenset((own_mac, self.loops.probe_mac))
            self._report_change()

    def set_probe_mac(self, mac: bytes) -> None:
        """Set the source MAC of loop probes, 6 octets."""
        self.loops.probe_mac = mac
        self._own_macs = frozenset((self._own_mac, mac))
        self._report_change()

    def _report_change(self, mac: bytes | None = None) -> None:
        for watcher in self.verdict_watchers:
            watcher(mac)

    def _on_entry_changed(self, _event: EntryEvent, entry: Entry) -> None:
        if self.verdict_watchers:
            self._report_change(entry.mac)

    def set_neighbours(self, neighbours: Neighbours | None) -> None:
        """Set the table for ARP and ND suppression (`--proxy`), or None to disable it."""
        self.neighbours = neighbours
        self.set_policy(self.policy)

    def set_gateways(self, gateways: Gateways | None) -> None:
        """Set this host's anycast gateways (`--anycast-gateway`), or None for none."""
        self.gateways = gateways
        self.set_policy(self.policy)

    def set_storm_limits(self, limits: StormLimits) -> None:
        """Set the limits of storm control."""
        self.storm.set_limits(limits)
        self._report_change()

    def set_policy(self, policy: SegmentPolicy) -> None:
        """Replace the policy, and derive which checks frames need at all."""
        self.policy = policy
        self._forbidden_bits = policy.forbidden_bits
        self.has_ingress_policy = (
            self.neighbours is not None
            or self.gateways is not None
            or self._forbidden_bits != 0
            or policy.groups is not None
            or policy.inner_vlan is InnerVlan.DROP
            or bool(self.loops.blocked)
        )
        """True if datagrams are to be admitted by `admit_by_policy` instead of `admit`."""
        self.strip_vlan = policy.inner_vlan is InnerVlan.STRIP
        """True if VLAN tags are to be removed from frames of the underlay."""
        self.inspect_egress = self.neighbours is not None or policy.inner_vlan is not InnerVlan.PASS
        """True if frames of the TAP are to be passed to `inspect` before they are routed."""
        self._report_change()

    def set_remotes(self, remotes: Iterable[Remote], now: float) -> None:
        """Replace the configured remotes.

        Other destinations of the default entry stay, as in the kernel driver when its `remote`
        changes. MACs learned from hosts that are no longer accepted are deleted.
        """
        former, self.configured = self.configured, tuple(remotes)
        self.fdb.set_configured(self.configured, former, now)

    def set_accept(self, accept: Networks) -> None:
        """Replace the networks from which datagrams are accepted besides those of members."""
        self._non_members.accept = accept
        self.fdb.learns_from_non_members = bool(accept)
        hosts, self._non_members.remotes = self._non_members.remotes, {}
        for host in hosts:
            if host not in self._members:
                self._forget_host(host)
        self._report_change()

    def lacks_remotes(self) -> bool:
        """Return True if a configured remote was removed from the default entry."""
        known = self.fdb.keys_of(self.remotes)
        return not self.fdb.keys_of(self.configured) <= known

    def flush(self, wanted: Filter, among: Iterable[Entry]) -> int:
        """Remove the destinations that match from the FDB entries `among`.

        The configured remotes stay, unless the filter names an address or `permanent`: without
        them, broadcasts would not be sent any more.

        Returns: the number of destinations removed.
        """
        named = wanted.dst is not None or wanted.permanent
        return self.fdb.flush(wanted, among, () if named else self.configured)

    # --- frames from the TAP --------------------------------------------------------------------

    def inspect(self, frame: memoryview, now: float, count: int = 1) -> memoryview:
        """Apply the policies that change, answer or drop a frame of at least 14 octets.

        A superframe counts as `count` frames.

        Returns: what is to be sent, which is empty if nothing is. It may be a request to the only
        remote that can confirm an answer.
        Side effects: the frame may be changed in place; answers are added to `replies`.
        """
        inner_vlan = self.policy.inner_vlan
        if inner_vlan is not InnerVlan.PASS and ethernet.is_tagged(frame):
            if inner_vlan is InnerVlan.DROP:
                self.counters.drop(Drop.TX_TAGGED, count=count, detail=_vlan(frame))
                return frame[:0]
            frame = ethernet.untag(frame)
        if self.neighbours is not None:
            answer = self.neighbours.answer(frame, now)
            if answer is not None:
                return self._suppress(frame, answer)
        return frame

    def _suppress(self, frame: memoryview, answer: Answer) -> memoryview:
        """Count a request for a known neighbour and queue the reply. Returns: what is to be sent.

        A neighbour that is not confirmed is not answered for: the request is flooded.
        """
        if answer.reply is None:
            self.counters.neigh_unconfirmed += 1
            return frame
        self.counters.neigh_answered += 1
        self.replies.append(answer.reply)
        if answer.probe is None:
            return frame[:0]
        self.counters.neigh_probed += 1
        return memoryview(answer.probe)

    def route(self, frame: Buffer) -> Route:
        """Decide where a frame of at least 14 octets from the TAP goes. Nothing is changed.

        A superframe has the route of its segments.
        """
        entry = self.fdb.lookup(_DESTINATION.unpack_from(frame)[0])
        if entry is not None:
            return entry
        # Requests and announcements are flooded, so frames to known destinations skip the gateways.
        if self.gateways is not None and self.gateways.suppresses_from_tap(frame):
            return NoRoute(Drop.ANYCAST_GW_SUPPRESSED_TX)
        if self.loops.blocked:
            return self.loops.without_blocked(self.fdb.default) or NoRoute(Drop.LOOP_BLOCKED_TX)
        return self.fdb.default or NoRoute(Drop.NO_REMOTE, bytes(frame[: ethernet.MAC_LEN]))

    def account(self, route: Route, count: int, octets: int) -> None:
        """Count frames from the TAP by their route, dropped ones included.

        `count` is that of frames, and `octets` their total without VXLAN headers. A superframe
        counts as its segments.
        """
        counters = self.counters
        counters.tx_frames += count
        counters.tx_bytes += octets
        if isinstance(route, NoRoute):
            if route.reason is Drop.NO_REMOTE:
                counters.flooded += count
            counters.drop(route.reason, count=count, detail=route.detail)
            return
        route.tx_frames += count
        if route.index < 0:
            # Only the default entry has no index.
            counters.flooded += count
        destinations = route.destinations
        if len(destinations) == 1:
            remote = self.remote_counters[destinations[0].host]
            remote.tx_frames += count
            remote.tx_bytes += octets
        else:
            self.remote_counters.count_sent_to_all(destinations, count, octets)

    def count_received(self, host: str, count: int, octets: int, now: float) -> None:
        """Count frames that were delivered to the TAP, from one remote.

        `count` is that of frames, and `octets` their total. A superframe counts as its segments.
        """
        counters, remote = self.counters, self.remote_counters[host]
        counters.rx_frames += count
        counters.rx_bytes += octets
        remote.rx_frames += count
        remote.rx_bytes += octets
        remote.last_rx = now

    # --- datagrams from the underlay ------------------------------------------------------------

    def admit(
        self, mac: bytes, source: str, now: float, count: int = 1, *, learn: bool = True
    ) -> bool:
        """Admit a frame with the source `mac` that the host `source` has sent, and learn from it.

        With `count`, the result holds for that many datagrams with the same source, VXLAN header
        and inner Ethernet header.

        Returns: True if the frame is to be delivered to the TAP. It is never forwarded to another
        remote (split horizon). False if it was dropped and counted.
        """
        # First of all: a forged or unknown source must not change any table.
        remote = self._members.get(source) or self._non_members.remote(source)
        if remote is None:
            self.counters.drop(Drop.SOURCE_UNKNOWN, source, count)
            return False
        if mac[0] & 1 or mac == ethernet.MAC_ZERO:
            self.counters.drop(Drop.INNER_SOURCE_INVALID, source, count, mac)
            return False
        # A set is as fast as one comparison, since the FDB needs the hash of the MAC anyway.
        if mac in self._own_macs:
            if mac == self.loops.probe_mac:
                self.counters.loops_found += self.loops.note_returned(source, now)
            self.counters.drop(Drop.INNER_SOURCE_OWN, source, count, mac)
            return False
        if self._learning:
            fdb = self.fdb
            learned = fdb.learn(mac, remote, now, count) if learn else fdb.check(mac, remote)
            if learned is not Learned.REFRESHED:
                return self._count_learned(learned, mac, source, count)
        return True

    def admit_by_policy(
        self, datagram: Buffer, mac: bytes, source: str, now: float, count: int = 1
    ) -> bool:
        """Admit a frame as `admit` does, if the policy and the suppression of ARP and ND allow it.

        `datagram` has at least `INNER_MIN` octets.
        """
        policy, counters = self.policy, self.counters
        header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
        if header & self._forbidden_bits:
            counters.drop(Drop.RESERVED_BITS, source, count, header)
            return False
        if not self.accepts_source(source):
            counters.drop(Drop.SOURCE_UNKNOWN, source, count)
            return False
        if source in self.loops.blocked and datagram[vxlan.HEADER_LEN] & 1:
            counters.drop(Drop.LOOP_BLOCKED_RX, source, count)
            return False
        learn = True
        if policy.groups is not None:
            flags = header >> 32
            if not policy.groups.accepts(flags):
                counters.drop(Drop.GROUP_DENIED, source, count, group_of(flags))
                return False
            # Don't Learn (draft-smith-vxlan-group-policy-05, section 2.1).
            learn = not (flags & vxlan.FLAG_G and flags & vxlan.FLAG_D)
        if policy.inner_vlan is InnerVlan.DROP and ethernet.is_tagged(
            datagram[vxlan.HEADER_LEN : INNER_MIN]
        ):
            vlan = _vlan(datagram[vxlan.HEADER_LEN :])
            counters.drop(Drop.INNER_TAGGED, source, count, vlan)
            return False
        # After all checks of the header, so that a dropped frame is not learned from.
        if not self.admit(mac, source, now, count, learn=learn):
            return False
        if self.gateways is None and self.neighbours is None:
            return True
        frame = datagram[vxlan.HEADER_LEN :]
        if policy.inner_vlan is InnerVlan.STRIP and ethernet.is_tagged(frame):
            # Examine the frame as the TAP will receive it. Ingress removes the tags later.
            frame = ethernet.untag(memoryview(bytearray(frame)))
        if self.gateways is not None and self.gateways.suppresses_from_underlay(frame):
            counters.drop(Drop.ANYCAST_GW_SUPPRESSED_RX, source, count)
            return False
        if self.neighbours is not None and not self.neighbours.snoop(frame, now):
            counters.neigh_full += 1
            counters.last_source[Notice.NEIGH_FULL] = source
        return True

    def drop_runt(self, datagram: Buffer, source: str, count: int) -> None:
        """Drop a datagram without a complete inner Ethernet header, by the first fault in it."""
        header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
        if header & self._forbidden_bits:
            self.counters.drop(Drop.RESERVED_BITS, source, count, header)
        elif not self.accepts_source(source):
            self.counters.drop(Drop.SOURCE_UNKNOWN, source, count)
        else:
            octets = len(datagram) - vxlan.HEADER_LEN
            self.counters.drop(Drop.INNER_RUNT, source, count, octets)

    def _on_blocked(self, _what: str, _host: str, _seconds: float) -> None:
        self.set_policy(self.policy)

    def _count_learned(self, learned: Learned, mac: bytes, source: str, count: int) -> bool:
        """Count a result of learning other than a refresh. Returns: False if it causes a drop."""
        counters = self.counters
        if learned is Learned.ADDED:
            counters.fdb_learned += 1
        elif learned is Learned.MOVED:
            counters.fdb_moved += 1
        elif learned is Learned.FULL:
            counters.fdb_full += count
            counters.last_source[Notice.FDB_FULL] = source
        elif learned is Learned.OVER_QUOTA:
            counters.fdb_quota += count
            counters.last_source[Notice.FDB_QUOTA] = source
        elif learned is Learned.HELD:
            # Delivered, it would keep a loop alive, or answer for the host that is not reachable.
            counters.drop(Drop.INNER_SOURCE_HELD, source, count, mac)
            return False
        elif learned is Learned.CONFLICT:
            counters.drop(Drop.INNER_SOURCE_STATIC, source, count, mac)
            return False
        return True

    # --- accepted sources -----------------------------------------------------------------------

    def accepts_source(self, host: str) -> bool:
        """Return True if datagrams from a host are accepted."""
        return host in self._members or self._non_members.accepts(host)

    def known_hosts(self) -> Iterator[str]:
        """Yield the members, and the accepted sources that have sent something."""
        yield from self._members
        yield from (host for host in self._non_members.remotes if host not in self._members)

    def source_remote(self, host: str) -> Remote | None:
        """Return the remote that MACs received from a host are learned for.

        Returns: None if datagrams from the host are not accepted.
        Side effect: an accepted source gets its remote object here.
        """
        return self._members.get(host) or self._non_members.remote(host)

    def copy_of_non_members(self, fdb: Fdb) -> NonMembers:
        """Return a copy of the accepted sources for a replica of this segment with another FDB."""
        copy = NonMembers(fdb, self.accept, lambda: None)
        copy.remotes = self._non_members.remotes.copy()
        return copy

    def _on_non_members_forgotten(self) -> None:
        self.remote_counters.keep({*self._members, *self._non_members.remotes})

    def _on_host_removed(self, host: str) -> None:
        self._forget_host(host)
        self._report_change()

    def _forget_host(self, host: str) -> None:
        """Delete the MACs learned from a host that is no longer accepted."""
        if not self._non_members.accepts(host):
            if self.fdb.learned_from(host):  # Else there is no need to look at all entries.
                self.fdb.flush(Filter(dst=host, dynamic=True, extern_learn=False))
            self.remote_counters.settle()
            self.remote_counters.pop(host, None)

    # --- ageing -----------------------------------------------------------------------------------

    def sweep(self, now: float) -> bool:
        """Delete expired FDB entries and neighbours, within a budget.

        Returns: True if some were left for the next call.
        Side effect: adds to `requests`.
        """
        more = self.fdb.sweep(now)
        if self.neighbours is None:
            return more
        overdue = self.neighbours.take_overdue(now)
        self.counters.neigh_unconfirmed += len(overdue)
        self.requests += overdue
        return self.neighbours.sweep(now) or bool(overdue) or more


def _vlan(frame: Buffer) -> int:
    """Return the VLAN id, 0 to 4095, of a frame that has a tag."""
    offset = ethernet.HEADER_LEN
    return int.from_bytes(frame[offset : offset + 2], "big") & _VLAN_ID
