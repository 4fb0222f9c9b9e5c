"""Replicas of the parts of a segment: they decide as the originals would, and record it.

A replica begins with the attributes of its original. Its dicts are overlays of those of the
original, and other containers are copies, so that nothing that it does changes the original.
Callbacks that lead out of the segment are left out. Each method that is overridden here calls that
of the original's class, and records the result: no rule is repeated.
"""

import copy
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any

from vtep.forwarding.anycast import Gateways
from vtep.forwarding.anycast import read as read_message
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import (
    EVERYTHING,
    Entry,
    EntryEvent,
    Fdb,
    Filter,
    Learned,
    Members,
    Remote,
)
from vtep.forwarding.fdb.ageing import AgeingWheel
from vtep.forwarding.fdb.moves import WINDOW_S, MoveLimit
from vtep.forwarding.policy import InnerVlan, group_of
from vtep.forwarding.remote_counters import CountersByHost
from vtep.forwarding.route import NoRoute, Route
from vtep.forwarding.segment import Segment
from vtep.forwarding.storm import StormControl, StormMeter
from vtep.forwarding.suppress import Answer, Neighbours
from vtep.trace.copying import adopt
from vtep.trace.steps import Recorder, TracedCounters
from vtep.trace.text import describe_entry, describe_remotes
from vtep.wire import Buffer, ethernet, vxlan
from vtep.wire.ethernet import format_mac
from vtep.wire.storm_class import MAC_BROADCAST, RESERVE, StormClass


def _ignore(*_: object) -> None:
    """Replace a callback that leads out of a segment."""


class TracedFdb(Fdb):
    """A replica of an FDB, which copies the entries that it is asked for."""

    def __init__(self, original: Fdb, recorder: Recorder) -> None:
        # A list with a place for each entry is not needed: nothing here visits all entries.
        adopt(self, original, "_by_index", "_free", "_wheel", "_watchers")
        self._recorder = recorder
        self.lookup = self._entries.get
        self._by_index, self._free = [], []
        self._wheel = AgeingWheel(original.ageing)
        self._watchers: list[Callable[[EntryEvent, Entry], None]] = []
        self.members = _members(original.members)
        self.moves = _moves(original.moves)
        self.on_held = _ignore

    def learn(self, mac: bytes, remote: Remote, now: float, count: int = 1) -> Learned:
        """Learn as the original would, and record the result."""
        before = self._entries.get(mac)
        known = describe_entry(before, now) if before is not None else "no entry"
        learned = super().learn(mac, remote, now, count)
        self._note(learned, mac, remote, known, before)
        return learned

    def check(self, mac: bytes, remote: Remote) -> Learned:
        """Check as the original would, and record the result."""
        learned = super().check(mac, remote)
        name = format_mac(mac)
        text = (
            f"{name}: not learned from this frame"
            if learned is Learned.REFRESHED
            else f"{name}: a permanent or static entry names another remote than {remote.host}"
        )
        self._recorder.add("learn", text, "flag D: don't learn (draft-smith-vxlan-group-policy-05)")
        return learned

    def _note(
        self, learned: Learned, mac: bytes, remote: Remote, known: str, before: Entry | None
    ) -> None:
        name, limit = format_mac(mac), self.moves.limit
        self._recorder.is_known = learned is Learned.REFRESHED
        dampening = f"--mac-move-limit {limit} in {WINDOW_S:.0f} s (RFC 7432, section 15.1)"
        text, rule = {
            Learned.REFRESHED: (f"{name} is known there: refreshed", f"FDB entry {known}"),
            Learned.ADDED: (
                f"{name} is new: learned at {remote.host}",
                f"learning (RFC 7348, section 4.2); --max-addresses {self.max_addresses}",
            ),
            Learned.MOVED: (
                f"{name} moves to {remote.host}",
                f"FDB entry {known}" + (f"; {dampening}" if limit else ""),
            ),
            Learned.HELD: (
                f"{name} has moved too often: it stays held where it is",
                f"{dampening}; FDB entry {known}",
            ),
            Learned.STICKY: (
                f"{name} is of a control plane, such as EVPN: frames do not move it"
                if before is not None and before.kind.extern_learn
                else f"{name} is sticky: it does not move",
                f"FDB entry {known}",
            ),
            Learned.CONFLICT: (
                f"{name} is not accepted from {remote.host}",
                f"FDB entry {known}",
            ),
            Learned.FULL: (
                f"{name} is new, but not learned: the FDB is full",
                f"--max-addresses {self.max_addresses}",
            ),
            Learned.OVER_QUOTA: (
                f"{name} is new, but not learned: {remote.host} has used up its quota",
                f"--max-addresses-per-remote {self.quota}",
            ),
        }[learned]
        self._recorder.add("learn", text, rule)

    def flush(
        self, _wanted: Filter = EVERYTHING, _among: object = None, _spared: object = ()
    ) -> int:
        """Remove nothing: no other entry matters to the frame."""
        return 0


def _members(original: Members) -> Members:
    members = copy.copy(original)
    adopt(members, original)
    members.on_added = members.on_removed = None
    members.on_changed = members.on_remote_unused = None
    return members


def _moves(original: MoveLimit) -> MoveLimit:
    moves = copy.copy(original)
    adopt(moves, original)
    vars(moves)["_on_released"] = _ignore
    return moves


class TracedStorm(StormControl):
    """A replica of storm control, with copies of the token buckets."""

    def __init__(
        self, original: StormControl, counters: TracedCounters, recorder: Recorder
    ) -> None:
        adopt(self, original, "watchers")
        self.watchers = []
        self._counters = counters
        self._recorder = recorder

    def limit_group(self, frame: Buffer, now: float, count: int = 1) -> bool:
        """Limit as the original would, and record the result."""
        meter = self.tap
        before = meter.grants(now) if meter is not None else []
        at = len(self._recorder.steps)
        allowed = super().limit_group(frame, now, count)
        if meter is not None:
            self._note(_class_of(frame), meter, "the TAP", before, at, now, allowed=allowed)
        return allowed

    def limit_unknown_unicast(self, frame: Buffer, now: float, count: int = 1) -> bool:
        """Limit as the original would, and record the result."""
        meter = self.tap
        before = meter.grants(now) if meter is not None else []
        at = len(self._recorder.steps)
        allowed = super().limit_unknown_unicast(frame, now, count)
        if meter is not None:
            kind = StormClass.UNKNOWN_UNICAST
            self._note(kind, meter, "the TAP", before, at, now, allowed=allowed)
        return allowed

    def limit_remote(self, frame: Buffer, source: str, now: float, count: int) -> bool:
        """Limit as the original would, and record the result."""
        meter = self.of_remote(source, now)
        before, at = meter.grants(now), len(self._recorder.steps)
        allowed = super().limit_remote(frame, source, now, count)
        self._note(_class_of(frame), meter, source, before, at, now, allowed=allowed)
        return allowed

    def _note(
        self,
        kind: StormClass,
        meter: StormMeter,
        source: str,
        before: list[int],
        at: int,
        now: float,
        *,
        allowed: bool,
    ) -> None:
        name = kind.name.lower().replace("_", "-")
        limit, after = self.limits.of(kind), meter.grants(now)
        if limit is None:
            self._recorder.add("storm", f"no limit for {name} frames", f"--storm-{name} off")
            return
        if not allowed:
            text = f"{name} frame beyond the limit"
        elif after[RESERVE] < before[RESERVE]:
            text = f"{name} frame within the reserve of ARP, ND and link-local control protocols"
        else:
            text = f"{name} frame within the limit: {after[kind]} of {limit.burst} tokens are left"
        rule = f"--storm-{name} {limit.rate}:{limit.burst}, for {source}"
        self._recorder.add("storm", text, rule, at)


def _class_of(frame: Buffer) -> StormClass:
    return StormClass.BROADCAST if frame[:6] == MAC_BROADCAST else StormClass.MULTICAST


class TracedNeighbours(Neighbours):
    """A replica of the neighbours that are answered for."""

    def __init__(self, original: Neighbours, fdb: Fdb, recorder: Recorder) -> None:
        adopt(self, original)
        self._fdb = fdb
        self._recorder = recorder

    def answer(self, frame: Buffer, now: float) -> Answer | None:
        """Answer as the original would, and record the result."""
        answer = super().answer(frame, now)
        if answer is None:
            if read_message(frame) is not None:
                self._note("ARP or ND that is not answered here: not a request for a known one")
        elif answer.reply is None:
            self._note("request for a known neighbour that is not confirmed: sent on as it is")
        elif answer.probe is None:
            self._note("request for a known neighbour: answered here, and not sent")
        else:
            self._note("request for a known neighbour: answered here, and sent to it to confirm")
        return answer

    def snoop(self, frame: Buffer, now: float) -> bool:
        """Learn as the original would, and record the result."""
        learned = super().snoop(frame, now)
        if not learned:
            self._note("neighbour not learned: the table is full")
        elif read_message(frame) is not None:
            self._note("ARP or ND: the neighbour that sends it is learned or confirmed")
        return learned

    def _note(self, text: str) -> None:
        self._recorder.add("neighbour", text, "--proxy (docs/arp-suppression.md)")


class TracedGateways(Gateways):
    """A replica of the anycast gateways."""

    def __init__(self, original: Gateways, recorder: Recorder) -> None:
        adopt(self, original)
        self._on_shared = _ignore
        self._recorder = recorder

    def suppresses_from_tap(self, frame: Buffer) -> bool:
        """Decide as the original would, and record the result."""
        return self._note(frame, suppressed=super().suppresses_from_tap(frame))

    def suppresses_from_underlay(self, frame: Buffer) -> bool:
        """Decide as the original would, and record the result."""
        return self._note(frame, suppressed=super().suppresses_from_underlay(frame))

    def _note(self, frame: Buffer, *, suppressed: bool) -> bool:
        if read_message(frame) is not None:
            text = "is about" if suppressed else "is not to be kept from"
            self._recorder.add(
                "gateway",
                f"this ARP or ND {text} the anycast gateway of this host",
                f"--anycast-gateway {' '.join(map(str, self._own.values()))} (RFC 9135)",
            )
        return suppressed


class TracedSegment(Segment):
    """A replica of a segment."""

    def __init__(self, original: Segment, recorder: Recorder) -> None:
        adopt(self, original)
        self._recorder = recorder
        self.counters: TracedCounters = TracedCounters(recorder)
        self.remote_counters = CountersByHost()
        self.verdict_watchers = []
        self.fdb: TracedFdb = TracedFdb(original.fdb, recorder)
        self.fdb.members.on_removed = self._on_host_removed
        self._non_members = original.copy_of_non_members(self.fdb)
        self._members = self.fdb.members.hosts
        self.storm = TracedStorm(original.storm, self.counters, recorder)
        self.loops = copy.copy(original.loops)
        adopt(self.loops, original.loops, "watchers")
        self.loops.watchers = [self._on_blocked]
        if original.neighbours is not None:
            self.neighbours = TracedNeighbours(original.neighbours, self.fdb, recorder)
        if original.gateways is not None:
            self.gateways = TracedGateways(original.gateways, recorder)
        self._by_policy = False

    # --- frames from the TAP --------------------------------------------------------------------

    def inspect(self, frame: memoryview, now: float, count: int = 1) -> memoryview:
        """Inspect as the original would, and record what happens to VLAN tags."""
        tagged, octets = ethernet.is_tagged(frame), len(frame)
        self._note_vlan(tagged=tagged)
        left = super().inspect(frame, now, count)
        if tagged and self.policy.inner_vlan is InnerVlan.STRIP and 0 < len(left) < octets:
            self._recorder.add("vlan", f"{octets - len(left)} octets of VLAN tags removed")
        return left

    def _note_vlan(self, *, tagged: bool) -> None:
        inner_vlan = self.policy.inner_vlan
        if inner_vlan is not InnerVlan.PASS:
            text = "the frame has a VLAN tag" if tagged else "the frame has no VLAN tag"
            self._recorder.add("vlan", text, f"--inner-vlan {inner_vlan} (RFC 7348, section 6.1)")

    def route(self, frame: Buffer) -> Route:
        """Look up the route as the original would, and record it."""
        route = super().route(frame)
        if self._recorder.drops:
            return route  # It is looked up for nothing.
        mac = format_mac(frame[: ethernet.MAC_LEN])
        if isinstance(route, NoRoute):
            self._recorder.add("route", f"{mac}: nowhere", f"{route.reason.meaning}")
        elif route.index >= 0:
            text = describe_entry(route, self._recorder.now)
            self._recorder.is_known = True
            self._recorder.add("route", f"{mac}: to {_hosts(route)}", f"FDB entry {text}")
        else:
            blocked = len(self.remotes) - len(route.destinations)
            without = f", without {blocked} that are blocked for a loop" if blocked else ""
            self._recorder.add(
                "route",
                f"{mac} has no FDB entry: flooded to {_hosts(route)}{without}",
                f"default entry, {describe_remotes(route.destinations)} (RFC 7348, section 4.1)",
            )
        return route

    # --- datagrams from the underlay ------------------------------------------------------------

    def accepts_source(self, host: str) -> bool:
        """Decide as the original would, and record by which rule."""
        return self._note_source(host, accepted=super().accepts_source(host))

    def source_remote(self, host: str) -> Remote | None:
        """Decide as the original would, and record by which rule."""
        remote = super().source_remote(host)
        self._note_source(host, accepted=remote is not None)
        return remote

    def _note_source(self, host: str, *, accepted: bool) -> bool:
        if not accepted:
            self._recorder.add("source", f"{host} is not accepted", "--remote, --accept, FDB")
        elif host in self._members:
            configured = any(remote.host == host for remote in self.configured)
            rule = "--remote or --group" if configured else "an FDB entry that does not age"
            self._recorder.add("source", f"{host} is a member of the segment", rule)
        else:
            address = ip_address(host)
            network = next((each for each in self.accept if address in each), "--accept-any")
            self._recorder.add("source", f"{host} is accepted", f"--accept {network}")
        return accepted

    def admit(
        self, mac: bytes, source: str, now: float, count: int = 1, *, learn: bool = True
    ) -> bool:
        """Admit as the original would, and record that nothing is wrong with the header."""
        if self.accepts_source(source) and self._by_policy:
            self._note_policy()
        admitted = super().admit(mac, source, now, count, learn=learn)
        if admitted and not self._learning:
            self._recorder.add("learn", "nothing is learned", "--no-learning")
        return admitted

    def admit_by_policy(
        self, datagram: Buffer, mac: bytes, source: str, now: float, count: int = 1
    ) -> bool:
        """Admit as the original would, and record the policies that allowed it."""
        self._by_policy = True
        self._header_flags = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big") >> 32
        self._tagged = ethernet.is_tagged(datagram[vxlan.HEADER_LEN :])
        try:
            return super().admit_by_policy(datagram, mac, source, now, count)
        finally:
            self._by_policy = False

    def _note_policy(self) -> None:
        """Record the policies that were passed: `admit` is called after all of them."""
        if bits := self._forbidden_bits:
            self._recorder.add("policy", "no reserved bit is set", f"--reserved-bits {bits:#018x}")
        if (groups := self.policy.groups) is not None:
            accepted = groups.accepted
            names = "all" if accepted is None else " ".join(map(str, sorted(accepted)))
            self._recorder.add(
                "policy",
                f"group {group_of(self._header_flags)} is accepted",
                f"--gbp-accept {names} (draft-smith-vxlan-group-policy-05)",
            )
        if self.policy.inner_vlan is InnerVlan.DROP:
            self._note_vlan(tagged=self._tagged)


def _hosts(route: Entry) -> str:
    count = len(route.destinations)
    return route.destinations[0].host if count == 1 else f"{count} remotes"


class TracedDemux(Demux):
    """A replica of a demultiplexer, whose segments are replicas that are made when needed."""

    def __init__(
        self,
        original: Demux,
        segments: Mapping[int, Segment],
        recorder: Recorder,
    ) -> None:
        self.segments: Any = segments
        self._recorder = recorder
        self.counters: TracedCounters = TracedCounters(recorder)
        self._echo = copy.copy(original._echo)
        adopt(self._echo, original._echo)
        echo = vars(self._echo)
        echo["_segments"], echo["_counters"] = segments, self.counters
        echo["_on_reply"] = None
        if echo["_send_reply"] is not None:
            echo["_send_reply"] = self._send_reply

    def _send_reply(self, datagram: bytes, host: str, port: int) -> None:
        self._recorder.add(
            "echo", f"echo request answered: to {host} port {port}", "docs/doctor.md"
        )
        self._recorder.replies.append(datagram.hex())

    def admit(self, datagram: Buffer, source: str, now: float, count: int = 1) -> Segment | None:
        """Admit as the original would, and record the VXLAN header."""
        if len(datagram) >= vxlan.HEADER_LEN:
            flags, vni_word = vxlan.HEADER.unpack_from(datagram)
            vni = vni_word >> 8
            known = "which is here" if vni in self.segments else "which is not here"
            self._recorder.add(
                "demux",
                f"VXLAN header {flags:08x} {vni_word:08x}: VNI {vni}, {known}",
                "RFC 7348, section 5",
            )
        segment = super().admit(datagram, source, now, count)
        if segment is None and not self._recorder.drops and not self._recorder.replies:
            self._recorder.add("echo", "echo reply, for the doctor that asked")
        return segment
