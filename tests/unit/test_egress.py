"""Egress: what is read from the TAP leaves in the order of each flow, complete, in few sends."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from ipaddress import ip_address
from itertools import chain
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from tests.unit.craft import BROADCAST, MAC_A, MAC_B, V4_A, V4_B, ether, mac
from tests.unit.craft import finish as finish_partial
from tests.unit.steps import handle, syn_received
from tests.unit.twins import BASIC, CHECKSUM_AT, KINDS, SYN, Frame, finish
from vtep.counters import Counters, Drop
from vtep.datapath import Arena, Egress
from vtep.datapath.pool import Paths, Pool
from vtep.errors import FdbError
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import GroupPolicy, InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.forwarding.suppress import Neighbours
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.offload.headers import SegmentPlan
from vtep.offload.oversize import Oversize
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import Splitter, plan_segments
from vtep.testing import MemoryHost, MemoryTap, MemoryUnderlay, Transmission
from vtep.tunnel_gso.ack_tracker import AckTracker, DeliveryResult
from vtep.tunnel_gso.state import RemoteState
from vtep.wire import virtio, vxlan
from vtep.wire.outer_header import InheritPolicy

OWN = "192.0.2.100"
REMOTE = Remote("192.0.2.2", 4789)
OTHER = Remote("192.0.2.3", 4789)
DEADLINE = 20.0
SIZE = 1398
MTU = 1450
PREFIX = vxlan.pack(5)
TO = Frame().build()[:6]


class TunnelGsoPath:
    """A path with tunnel GSO that traces the segments of what it sends.

    The elements of `script` tell, in turn, whether the remote is enabled and whether a send
    succeeds. An enabled remote accepts superframes of up to `max_len` octets.
    """

    def __init__(self, trace: list[Transmission], script: Iterable[bool]) -> None:
        self.gso = RemoteState()
        self.max_len = 1 << 16
        self.sent = 0
        self._trace = trace
        self._script = iter(script)
        self._last_gso: virtio.Header

    def look_up(self) -> None:
        self.gso.max_len = self.max_len if next(self._script, False) else 0

    def send(
        self,
        prefix: bytes,
        frame: memoryview,
        plan: SegmentPlan,
        gso: virtio.Header,
        flow: int,  # noqa: ARG002
        now: float,  # noqa: ARG002
    ) -> bool:
        if not next(self._script, False):
            return False
        splitter = Splitter(prefix)
        octets, stride = splitter.split(frame, gso)
        assert (plan.segments, plan.size, plan.header_len) == (
            -(-octets // stride),
            gso.gso_size,
            stride - gso.gso_size - len(prefix),
        )
        sent = splitter.out[:octets].tobytes()
        datagrams = tuple(sent[at : at + stride] for at in range(0, octets, stride))
        self._trace.append(Transmission((OWN, 0), (REMOTE.host, REMOTE.port), 0, datagrams))
        self.sent += 1
        self._last_gso = gso
        return True

    def send_next(self, prefix: bytes, frame: memoryview) -> bool:
        """Send with the arguments of the last `send`; what is sent shows whether they hold."""
        gso = self._last_gso
        return self.send(prefix, frame, plan_segments(frame, gso), gso, 0, 0.0)


class EgressPaths(Paths):
    """The paths of a `Vtep`, with tunnel GSO if `script` is not empty."""

    def __init__(
        self, host: MemoryHost, script: Sequence[bool] = (), outer: InheritPolicy | None = None
    ) -> None:
        binding = Binding(socket.AF_INET, None, None)
        super().__init__(
            *(Pool(sockets=host), {4: binding}, OuterHeaderOptions(), outer or InheritPolicy()),
            lambda _remote, _mtu: None,
            gso=True,
            tunnel_gso=bool(script),
        )
        self.with_tunnel_gso = TunnelGsoPath(host.underlay.trace, script)

    def tunnel_gso_path(self, _remote: Remote) -> TunnelGsoPath:
        self.with_tunnel_gso.look_up()
        return self.with_tunnel_gso


class Vtep:
    """One VNI between a TAP and an underlay in memory.

    The elements of `room` tell, in turn, whether the send buffer has room; it has at their end.
    `script` is that of `TunnelGsoPath`.
    """

    def __init__(
        self,
        stack: ExitStack,
        segment: Segment,
        *,
        room: Iterable[bool] = (),
        script: Sequence[bool] = (),
        arena: Arena | None = None,
    ) -> None:
        self.tap = stack.enter_context(MemoryTap())
        self.underlay = stack.enter_context(closing(MemoryUnderlay()))
        host = self.host = self.underlay.add_host(OWN)
        chances = iter(room)
        host.has_room = lambda: next(chances, True)
        self.segment = segment
        self.sizing = TunnelSizing(segment.header, segment.counters, MTU, "auto")
        self.paths = EgressPaths(host, script)
        self.egress = Egress(
            *(self.tap, segment, self.paths, self.sizing, AckTracker(), arena or Arena()),
            lambda error: pytest.fail(str(error)),
        )

    def announce(self) -> None:
        """Show the SYNs in which the receivers of three flows announce their segment size."""
        for flow in range(3):
            syn_received(self.sizing, answer_to(flow))

    def turn(self, frames: Iterable[tuple[bytes, bytes]]) -> None:
        """Read these frames, with their virtio headers, in one turn of the loop."""
        for header, frame in frames:
            self.tap.send(frame, header)
        self.egress.readable()

    @property
    def sent(self) -> list[list[bytes]]:
        """The datagrams of each send."""
        return [list(each.datagrams) for each in self.underlay.trace]

    @property
    def datagrams(self) -> int:
        """The number of datagrams sent."""
        return sum(len(each.datagrams) for each in self.underlay.trace)


async def send_all(
    vteps: Sequence[Vtep], frames: Sequence[Sequence[tuple[bytes, bytes]]], expected: Sequence[int]
) -> None:
    """Send frames through VTEPs, which are started, until so many datagrams have left each."""
    waiting = [(vtep.tap, list(each)) for vtep, each in zip(vteps, frames, strict=True)]
    for vtep in vteps:
        vtep.egress.start()
    while [vtep.datagrams for vtep in vteps] != list(expected):
        for tap, rest in waiting:
            with suppress(BlockingIOError):  # The queue of the TAP is full.
                while rest:
                    tap.send(rest[0][1], rest[0][0])
                    del rest[0]
        await asyncio.sleep(0)
    for vtep in vteps:
        vtep.egress.stop()


def run(coroutine: Coroutine[None, None, None]) -> None:
    """Run a coroutine that takes milliseconds, and fail if it is stuck."""
    asyncio.run(asyncio.wait_for(coroutine, DEADLINE))


def segment_of(
    *remotes: Remote, vni: int = 5, policy: SegmentPolicy | None = None, ageing: float = 0
) -> Segment:
    fdb = Fdb(vni, 4789, ageing=ageing, max_addresses=0)
    options = policy or SegmentPolicy()
    return Segment(vni, remotes, fdb, own_mac=bytes(6), learning=True, policy=options)


def inspected(
    frames: Sequence[tuple[bytes, bytes]], segment: Segment
) -> tuple[list[list[bytes]], list[tuple[bytes, bytes]]]:
    """Return the sends and the frames for the host, in a segment that inspects all frames."""
    with ExitStack() as stack:
        vtep = Vtep(stack, segment)
        vtep.turn(frames)
        return vtep.sent, list(vtep.tap.received())


def forward(
    frames: Sequence[tuple[bytes, bytes]],
    room: Sequence[bool] = (),
    remote: Remote = REMOTE,
    takes: Sequence[bool] = (),
    tunnel_gso: int | None = None,
) -> list[list[bytes]]:
    """Return the sends for these virtio headers and frames at the TAP.

    If `tunnel_gso` is given, so many of them are to be sent with tunnel GSO.
    """
    segment = segment_of(remote)
    segment.fdb.learn(TO, remote, 0.0)
    expected = sum(len(segments(*frame)) for frame in frames)
    with ExitStack() as stack:
        vtep = Vtep(stack, segment, room=room, script=takes)
        vtep.announce()
        run(send_all([vtep], [frames], [expected]))
        sent, sent_tunnel_gso = vtep.sent, vtep.paths.with_tunnel_gso.sent
    counters = segment.counters
    assert counters.tx_datagrams == counters.tx_frames == expected
    assert counters.tx_bytes == sum(
        len(datagram) - len(PREFIX) for batch in sent for datagram in batch
    )
    assert counters.tx_superframes == sum(header[1] != 0 for header, _ in frames)
    assert counters.tx_tunnel_gso == sent_tunnel_gso
    assert tunnel_gso in (None, sent_tunnel_gso)
    entry = segment.fdb.lookup(TO)
    assert entry is not None
    assert entry.tx_frames + counters.flooded == expected
    return sent


def forward_to_many(
    frames: Sequence[tuple[bytes, bytes]], room: Sequence[bool]
) -> list[list[bytes]]:
    """Return the frames that each of ten remotes gets. The last one is not flooded to."""
    remotes = [Remote(f"192.0.2.{number}", 4789) for number in range(9)]
    remotes.append(Remote("192.0.2.9", 4789, vni=6))
    segment = segment_of(*remotes)
    expected = sum(len(segments(*frame)) for frame in frames)
    with ExitStack() as stack:
        vtep = Vtep(stack, segment, room=room)
        run(send_all([vtep], [frames], [10 * expected]))
        got: dict[str, list[bytes]] = {remote.host: [] for remote in remotes}
        for transmission in vtep.underlay.trace:
            got[transmission.destination[0]] += transmission.datagrams
    assert segment.counters.tx_datagrams == 10 * expected
    assert {each[:8] for each in got["192.0.2.9"]} <= {vxlan.pack(6)}
    return [[each[8:] for each in datagrams] for datagrams in got.values()]


def segments(header: bytes, frame: bytes) -> list[bytes]:
    """Return the frames that one read from the TAP must cause.

    The tests of Splitter and Oversize see to it that this is right.
    """
    gso = virtio.unpack(header)
    oversize = Oversize(PREFIX, Counters(), MTU)
    view = memoryview(frame)
    if not gso.gso_type:
        if gso.flags:
            frame = finish(frame)
        if len(frame) <= oversize.limit:
            return [PREFIX + frame]
        data, stride, _ = handle(oversize, memoryview(bytearray(frame)), 0.0)
    else:
        splitter = Splitter(PREFIX)
        octets, stride = splitter.split(view, gso)
        data = splitter.out[:octets].tobytes()
        if stride > oversize.limit + len(PREFIX):
            ((data, stride, _),) = oversize.handle_superframe(view, memoryview(data), stride, 0.0)
    return [data[at : at + stride] for at in range(0, len(data), stride)]


def flows(frames: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Return the untagged frames of each flow, or their datagrams, in their order."""
    found: dict[bytes, list[bytes]] = {}
    for each in frames:
        frame = each.removeprefix(PREFIX)
        at = {b"\x08\x00": (23, 34), b"\x86\xdd": (20, 54)}[frame[12:14]]
        found.setdefault(frame[:12] + frame[at[0] :][:1] + frame[at[1] :][:4], []).append(each)
    return found


def superframe(
    count: int, *, flow: int = 0, last: int | None = None, size: int = SIZE, after: int = 0
) -> tuple[bytes, bytes]:
    """One of so many segments, the first of which is `after` so many others of its flow."""
    payload = bytes((count - 1) * size + (last or size))
    frame = Frame(payload=payload, sport=5000 + flow, ident=after, seq=after * size, partial=True)
    return virtio.pack_gso(virtio.GSO_TCPV4, frame.head_len, size, 34, 16), frame.build()


def answer_to(flow: int, mss: int = SIZE) -> memoryview:
    """Build the SYN in which the receiver of a flow of superframes announces its MSS."""
    mss_option = bytes((2, 4)) + mss.to_bytes(2, "big")
    syn = bytearray(Frame(payload=b"", sport=5000 + flow, flags=SYN, options=mss_option).build())
    syn[26:34] = syn[30:34] + syn[26:30]
    syn[34:38] = syn[36:38] + syn[34:36]
    return memoryview(syn)


def plain(octets: int = 20, *, flow: int = 0) -> tuple[bytes, bytes]:
    return virtio.PLAIN, Frame(payload=bytes(octets), sport=5000 + flow).build()


def unfinished(octets: int = 20, *, flow: int = 0, kind: str = "udp4") -> tuple[bytes, bytes]:
    """Build a frame with a partial checksum."""
    frame = Frame(*KINDS[kind], payload=bytes(octets), sport=5000 + flow, partial=True)
    offset = CHECKSUM_AT[frame.protocol]
    return virtio.pack_needs_csum(frame.shape.upper, offset), frame.build()


def marked(mark: int) -> tuple[bytes, bytes]:
    """Build a frame with this ECN field."""
    return virtio.PLAIN, Frame(payload=bytes(20), tos=mark).build()


SYN_FRAME = Frame(payload=b"", flags=SYN).build()


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_of_a_run_are_finished(kind: str) -> None:
    frames = [unfinished(kind=kind), unfinished(kind=kind), unfinished(19, kind=kind)]
    assert forward(frames) == [[PREFIX + finish(frame) for _, frame in frames]]
    # Only those that need it: others have theirs, or have none and are to have none.
    sent = forward([frames[0], (virtio.PLAIN, frames[1][1]), frames[0]])
    assert [len(batch) for batch in sent] == [1, 1, 1]
    assert sent[1] == [PREFIX + frames[1][1]]


def test_a_checksum_outside_of_a_frame() -> None:
    whole = unfinished()
    beyond = virtio.pack_needs_csum(len(whole[1]) - 1, 0), whole[1]
    segment = particular(inner_vlan=InnerVlan.PASS)
    sent, _ = inspected([whole, beyond, whole], segment)
    assert sent == [[PREFIX + finish(whole[1])]] * 2
    assert segment.counters.drops[Drop.TX_MALFORMED] == 1


def test_a_syn_among_others_is_clamped() -> None:
    """Its checksum is right afterwards, and so are those of its neighbours."""
    announced = b"\2\4\xff\xff"
    base = Frame(payload=b"", options=announced, partial=True)
    syn = replace(base, flags=SYN)
    header = virtio.pack_needs_csum(base.shape.upper, 16)
    batches, _ = inspected([(header, frame.build()) for frame in (base, syn, base)], particular())
    clamped = replace(syn, options=b"\2\4" + (MTU - 40).to_bytes(2, "big"), partial=False)
    expected = [replace(base, partial=False), clamped, replace(base, partial=False)]
    assert [*chain(*batches)] == [PREFIX + frame.build() for frame in expected]


def test_a_checksum_that_makes_a_syn_a_fragment() -> None:
    """A wrong virtio header puts the checksum over the fragment offset, so there is no MSS."""
    base = Frame(payload=b"", options=b"\2\4\xff\xff", flags=SYN, partial=True)
    fragment_offset = base.shape.ip + 6
    header = virtio.pack_needs_csum(4, fragment_offset - 4)
    frame = finish_partial(base.build(), header)
    assert frame[fragment_offset : fragment_offset + 2] != base.build()[fragment_offset:][:2]
    assert forward([(header, base.build())]) == [[PREFIX + frame]]


def test_after_a_single_frame_the_next_is_sent_at_once() -> None:
    with ExitStack() as stack:
        vtep = Vtep(stack, segment_of(REMOTE))
        for count in (3, 1, 3, 3):
            vtep.turn([plain()] * count)
        assert [len(batch) for batch in vtep.sent] == [3, 1, 1, 2, 3]


ALIKE = st.lists(
    st.tuples(
        st.one_of(
            st.builds(plain, st.sampled_from([20, 20, 21, SIZE]), flow=st.integers(0, 1)),
            st.builds(
                unfinished,
                st.sampled_from([20, 20, 19]),
                flow=st.integers(0, 1),
                kind=st.sampled_from(sorted(KINDS)),
            ),
            st.builds(marked, st.integers(0, 3)),
            st.just((virtio.PLAIN, SYN_FRAME)),
        ),
        st.integers(1, 70),
    ).map(lambda pair: [pair[0]] * pair[1]),
    max_size=6,
).map(lambda runs: [*chain(*runs)])


@settings(BASIC, max_examples=60)
@given(frames=ALIKE, room=st.lists(st.booleans(), max_size=12))
def test_runs_are_sent_in_order(frames: list[tuple[bytes, bytes]], room: list[bool]) -> None:
    sent = forward(frames, room)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert flows(chain(*sent)) == flows(expected)


def test_frames_of_many_flows_are_sent_together() -> None:
    """Flows may share a source port. Of each port, all frames of a turn are one send."""
    frames = [unfinished(flow=number % 40) for number in range(160)]
    with ExitStack() as stack:
        vtep = Vtep(stack, segment_of(REMOTE))
        vtep.turn(frames[:3])
        vtep.underlay.trace.clear()
        filled = 0
        with suppress(BlockingIOError):  # The queue of the TAP is full.
            for filled, (header, frame) in enumerate(frames):  # noqa: B007
                vtep.tap.send(frame, header)
            filled += 1
        vtep.egress.readable()
        sent = vtep.sent
        ports = [transmission.source[1] for transmission in vtep.underlay.trace]
    expected = [segments(*frame)[0] for frame in frames[:filled]]
    assert flows(chain(*sent)) == flows(expected)
    assert len(set(ports)) == len(ports) <= min(40, filled)


def test_of_one_connection_no_frame_overtakes_another() -> None:
    """Not even where outer header fields, and with them the run, change."""
    marks = [0, 0, 2, 0, 3, 3, 0, 2, 2]
    frames = [
        (virtio.PLAIN, Frame(payload=bytes([number]), tos=mark).build())
        for number, mark in enumerate(marks)
    ]
    sent = [datagram for batch in forward(frames) for datagram in batch]
    assert sent == [PREFIX + frame for _, frame in frames]


def change_fdb(vtep: Vtep) -> None:
    vtep.segment.fdb.replace(TO, OTHER, 0.0)


def learn(vtep: Vtep) -> None:
    vtep.segment.fdb.learn(TO, OTHER, 0.0)


def delete(vtep: Vtep) -> None:
    vtep.segment.fdb.remove(TO)


def expire(vtep: Vtep) -> None:
    vtep.segment.fdb.sweep(400.0)


def change_remotes(vtep: Vtep) -> None:
    vtep.segment.set_remotes([OTHER], 0.0)


def change_policy(vtep: Vtep) -> None:
    vtep.segment.set_policy(SegmentPolicy(groups=GroupPolicy(7)))
    vtep.egress.use_paths(vtep.paths)


def change_paths(vtep: Vtep) -> None:
    vtep.paths = EgressPaths(vtep.host, outer=InheritPolicy(inherit_ttl=True))
    vtep.egress.use_paths(vtep.paths)


def change_mtu(vtep: Vtep) -> None:
    vtep.sizing.mtu = 576


def strip_tags(vtep: Vtep) -> None:
    vtep.segment.set_policy(SegmentPolicy(inner_vlan=InnerVlan.STRIP))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        *(change_fdb, learn, delete, expire, change_remotes, change_policy, change_paths),
        *(change_mtu, strip_tags),
    ],
)
def test_a_decision_holds_until_something_changes(
    change: Callable[[Vtep], None], *, known: bool
) -> None:
    """Whatever was decided before a change is decided again after it."""

    def run_turns(first: int) -> tuple[list[Transmission], dict[str, int], object]:
        segment = segment_of(REMOTE, ageing=300)
        if known:
            segment.fdb.learn(TO, REMOTE, 0.0)
        with ExitStack() as stack:
            vtep = Vtep(stack, segment)
            frames = [unfinished(600, flow=flow, kind="udp4") for flow in (0, 1, 0, 1)]
            for _ in range(first):
                vtep.turn(frames)
            vtep.underlay.trace.clear()
            before = segment.counters.as_dict()
            with suppress(FdbError):  # There is no entry to delete.
                change(vtep)
            for _ in range(2):
                vtep.turn(frames)
            after = segment.counters.as_dict()
            entry = segment.fdb.lookup(TO)
            return (
                [each._replace(source=(OWN, 0)) for each in vtep.underlay.trace],
                {name: after[name] - before[name] for name in after},
                None if entry is None else (entry.destinations, entry.tx_frames - 4 * first),
            )

    trace, counters, _ = run_turns(3)
    unprepared = run_turns(0)
    assert (trace, counters) == unprepared[:2]


def test_a_run_ends_where_the_outer_fields_change() -> None:
    frames = [marked(0)] * 3 + [marked(1)] * 3 + [marked(2)]
    assert [len(batch) for batch in forward(frames)] == [3, 3, 1]


def test_each_frame_of_a_run_is_inspected_if_the_segment_requires_it() -> None:
    segment = particular(inner_vlan=InnerVlan.DROP)
    looked = Mock(side_effect=lambda frame, _now, _count=1: frame)
    segment.inspect = looked  # type: ignore[method-assign]
    sent, _ = inspected([plain()] * 5, segment)
    assert [len(batch) for batch in sent] == [5]
    assert looked.call_count == 5


def test_short_last_segment_is_sent_with_the_next_superframe() -> None:
    # 44 segments fit into a send; so many superframes of 46 would take twice as many sends.
    sent = forward([superframe(46, after=after) for after in (0, 46, 92)])
    assert [len(batch) for batch in sent] == [44, 44, 44, 6]


def test_short_last_segment_is_sent_alone_if_nothing_follows() -> None:
    second = superframe(46, after=46, last=7)
    assert [len(batch) for batch in forward([superframe(46, last=7), second])] == [44, 2] * 2
    assert [len(batch) for batch in forward([superframe(46), superframe(46)])] == [44, 2] * 2
    assert [len(batch) for batch in forward([superframe(46), plain()])] == [44, 2, 1]
    other = superframe(46, after=46, flow=1)
    assert [len(batch) for batch in forward([superframe(46), other])] == [44, 2, 44, 2]


FRAMES = st.one_of(
    st.builds(
        superframe,
        st.integers(2, 46),
        flow=st.integers(0, 2),
        last=st.sampled_from([1, SIZE - 1, SIZE, SIZE]),
        after=st.sampled_from([0, 0, 20, 40, 46, 60, 92]),
    ),
    st.builds(superframe, st.just(20), after=st.sampled_from([0, 20, 40, 60])),
    st.builds(plain, st.sampled_from([0, 20, 20, SIZE, MTU, MTU]), flow=st.integers(0, 2)),
    st.builds(superframe, st.integers(2, 43), flow=st.integers(0, 2), size=st.just(1448)),
    st.builds(
        unfinished,
        st.sampled_from([0, 20, 20, 21, 260, 260, MTU]),
        flow=st.integers(0, 1),
        kind=st.sampled_from(sorted(KINDS)),
    ),
)


@settings(BASIC, max_examples=60)
@given(
    frames=st.lists(FRAMES, max_size=12),
    room=st.lists(st.booleans(), max_size=30),
    takes=st.lists(st.sampled_from((True, True, False)), max_size=20),
)
def test_everything_is_sent_in_order(
    frames: list[tuple[bytes, bytes]], room: list[bool], takes: list[bool]
) -> None:
    sent = forward(frames, room, takes=takes)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert flows(chain(*sent)) == flows(expected)


RUNS = st.lists(
    st.tuples(
        st.one_of(
            st.builds(superframe, st.sampled_from([20, 44]), flow=st.integers(0, 2)),
            st.builds(superframe, st.just(20), last=st.just(7)),
            st.builds(superframe, st.just(20), size=st.just(1448)),
            st.builds(plain, st.just(20)),
        ),
        st.integers(1, 20),
    ).map(lambda pair: [pair[0]] * pair[1]),
    max_size=4,
).map(lambda runs: [*chain(*runs)])


@settings(BASIC, max_examples=60)
@given(
    frames=RUNS,
    takes=st.lists(st.sampled_from((True, True, True, True, False)), max_size=40),
    room=st.lists(st.booleans(), max_size=8),
)
def test_runs_of_superframes_with_tunnel_gso(
    frames: list[tuple[bytes, bytes]], takes: list[bool], room: list[bool]
) -> None:
    sent = forward(frames, room, takes=takes)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert flows(chain(*sent)) == flows(expected)


def changed(frame: tuple[bytes, bytes], **fields: Any) -> tuple[bytes, bytes]:
    """Build a superframe of 20 segments with some fields changed."""
    header, _ = frame
    return header, replace(
        Frame(payload=bytes(20 * SIZE), sport=5000, partial=True), **fields
    ).build()


@pytest.mark.parametrize(
    "fields",
    [
        {"sport": 5001},
        {"dst": b"\2\0\0\0\0\7"},
        {"tos": 1},
        {"options": b"\1\1\1\0"},
        {"options": b"\1\1\1\0", "payload": bytes(20 * SIZE - 4)},
        {"payload": bytes(20 * SIZE - 1)},
        {"padding": b"\0"},
        {"between": b"\1\1\1\1", "payload": bytes(20 * SIZE - 4)},
        {"payload": bytes(20 * SIZE - 4), "padding": bytes(4)},
    ],
    ids=str,
)
def test_a_superframe_that_differs_ends_a_tunnel_gso_run(fields: dict[str, Any]) -> None:
    """It is parsed; so is a superframe with another segment size."""
    same = superframe(20)
    sizes = virtio.pack_gso(virtio.GSO_TCPV4, 54, 1000, 34, 16)
    for other in (changed(same, **fields), (sizes, same[1])):
        frames = [same, same, same, other, other, same]
        sent = forward(frames, takes=[True] * 20)
        expected = [segment for frame in frames for segment in segments(*frame)]
        assert flows(chain(*sent)) == flows(expected)


def test_superframes_of_a_run_are_sent_with_tunnel_gso_unparsed() -> None:
    same = [superframe(20, after=after) for after in (0, 20, 40, 60)]
    # The first two are parsed, and for each of them the state of the remote is read.
    assert forward(same, takes=[True] * 6, tunnel_gso=4) == [segments(*each) for each in same]


@pytest.mark.parametrize("kind", ["udp4", "udp6", "tcp4", "tcp6"])
@pytest.mark.parametrize(
    "fields",
    [
        {"sport": 5001},
        {"dst": b"\2\0\0\0\0\7"},
        {"tos": 1},
        {"payload": bytes(21)},
        {"payload": bytes(19)},
        {"partial": False},
    ],
    ids=str,
)
def test_a_frame_that_differs_does_not_join_a_run(kind: str, fields: dict[str, Any]) -> None:
    base = Frame(*KINDS[kind], payload=bytes(20), sport=5000, partial=True)
    other = replace(base, **fields)
    needs = virtio.pack_needs_csum(base.shape.upper, CHECKSUM_AT[base.protocol])
    two = (virtio.PLAIN if fields == {"partial": False} else needs), other.build()
    one = needs, base.build()
    frames = [one, one, one, two, two, two, one, one]
    sent = forward(frames)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert flows(chain(*sent)) == flows(expected)
    sizes = [len(batch) for batch in sent]
    if "tos" in fields or "partial" in fields:
        assert sizes == [3, 3, 2]
    elif "sport" in fields:
        assert sizes == [5, 3]


def tracked(
    *turns: Sequence[tuple[bytes, bytes]], max_len: int = 0, any_size: bool = False
) -> tuple[list[list[bytes]], list[DeliveryResult], int]:
    """Return the sends of some turns, the results of tracking, and the count with tunnel GSO.

    The next superframe of more than `max_len` octets is tracked, or of any size.
    """
    segment = segment_of(REMOTE)
    segment.fdb.learn(TO, REMOTE, 0.0)
    results: list[DeliveryResult] = []
    with ExitStack() as stack:
        vtep = Vtep(stack, segment, script=[True] * 100)
        vtep.announce()
        path = vtep.paths.with_tunnel_gso
        path.max_len = max_len
        path.gso.track_above = 0 if any_size else max_len
        path.gso.on_result = lambda result, _octets, _now: results.append(result)
        for turn in turns:
            vtep.turn(turn)
        return vtep.sent, results, path.sent


def test_one_superframe_is_tracked_and_the_others_are_segmented() -> None:
    frames = [superframe(20, after=after) for after in (0, 20, 40)]
    sent, results, count = tracked(frames, [superframe(20, after=60)])
    assert (results, count) == ([], 1)
    expected = [
        segment for frame in [*frames, superframe(20, after=60)] for segment in segments(*frame)
    ]
    assert flows(chain(*sent)) == flows(expected)


def test_one_superframe_is_tracked_where_all_are_sent_with_tunnel_gso() -> None:
    frames = [superframe(20, after=after) for after in (0, 20, 40)]
    _, results, count = tracked(frames, frames[:1], max_len=1 << 16, any_size=True)
    assert (results, count) == ([DeliveryResult.LOST], 4)
    _, results, count = tracked(frames, frames[:1], max_len=1 << 16)
    assert (results, count) == ([], 4)


def test_a_runt_while_a_superframe_is_tracked() -> None:
    sent, results, _ = tracked([superframe(20)], [(virtio.PLAIN, bytes(9)), plain(flow=1)])
    assert results == []
    assert sent[1:] == [segments(*plain(flow=1))]


def test_a_retransmitted_superframe_was_lost() -> None:
    for again in (superframe(20), superframe(2, after=19), plain()):
        header, frame = again
        if header == virtio.PLAIN:
            frame = replace(Frame(payload=bytes(9), sport=5000, seq=19 * SIZE)).build()
        _, results, count = tracked([superframe(20)], [(header, frame)])
        assert (results, count) == ([DeliveryResult.LOST], 1)


@pytest.mark.parametrize("kind", ["udp4", "udp6", "tcp4"])
def test_tracking_may_end_in_the_middle_of_a_run(kind: str) -> None:
    """Checksums are completed, whether or not a frame is inspected."""
    again = virtio.PLAIN, Frame(payload=bytes(9), sport=5000, seq=19 * SIZE).build()
    run = [unfinished(kind=kind, flow=1)] * 10
    for frames in ([again, *run], [*run[:1], again, *run], [*run[:2], again, *run]):
        sent, results, _ = tracked([superframe(20)], frames)
        assert results == [DeliveryResult.LOST]
        expected = [segment for frame in frames for segment in segments(*frame)]
        assert flows(chain(*sent[1:])) == flows(expected)


def test_tunnel_gso_needs_no_room_in_send_buffers() -> None:
    never = [False] * 10_000
    assert forward([superframe(3)], never, takes=[True, True], tunnel_gso=1) == [
        segments(*superframe(3))
    ]


def test_smaller_segments_than_the_receiver_has_announced_are_made_here() -> None:
    """A VTEP that receives the superframe would assume larger ones, which may not fit behind it."""
    small = superframe(3, size=SIZE - 1)
    assert forward([small], takes=[True, True], tunnel_gso=0) == [segments(*small)]
    full = superframe(3, flow=7)
    assert forward([full], takes=[True, True], tunnel_gso=0) == [segments(*full)], (
        "nothing was announced"
    )


def forward_both(
    frames: tuple[Sequence[tuple[bytes, bytes]], ...], room: Sequence[bool]
) -> list[list[bytes]]:
    """Return the sends of VNIs 5 and 6, which share their memory, under backpressure."""
    arena, chances = Arena(), iter(room)
    with ExitStack() as stack:
        vteps = [
            Vtep(stack, segment_of(REMOTE, vni=vni), room=chances, arena=arena) for vni in (5, 6)
        ]
        run(send_all(vteps, frames, [sum(len(segments(*one)) for one in each) for each in frames]))
        return [[datagram for batch in vtep.sent for datagram in batch] for vtep in vteps]


@settings(BASIC, max_examples=60)
@given(
    frames=st.tuples(st.lists(FRAMES, max_size=6), st.lists(FRAMES, max_size=6)),
    room=st.lists(st.booleans(), max_size=30),
)
def test_vnis_that_share_an_arena_do_not_overwrite_waiting_datagrams(
    frames: tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]], room: list[bool]
) -> None:
    one, two = forward_both(frames, room)
    assert flows(one) == flows(segment for frame in frames[0] for segment in segments(*frame))
    header = vxlan.pack(6)
    expected = [segment for frame in frames[1] for segment in segments(*frame)]
    assert flows(each[8:] for each in two) == flows(each[8:] for each in expected)
    assert {each[:8] for each in two} <= {header}


# --- where the segment looks at frames --------------------------------------------------------


def particular(**policy: Any) -> Segment:
    return segment_of(REMOTE, policy=SegmentPolicy(**policy))


def of_size(count: int, tags: tuple[tuple[int, int], ...] = ()) -> tuple[bytes, bytes]:
    frame = Frame(payload=bytes(count * SIZE), tags=tags)
    if count == 1:
        return virtio.PLAIN, frame.build()
    start = frame.head_len - 20
    return virtio.pack_gso(virtio.GSO_TCPV4, frame.head_len, SIZE, start, 16), frame.build()


TAG = ((0x8100, 5),)


def test_tags_are_stripped() -> None:
    frames = [of_size(1), of_size(1, TAG), of_size(1), of_size(3, TAG), of_size(1, TAG * 2)]
    segment = particular(inner_vlan=InnerVlan.STRIP)
    sent, answers = inspected(frames, segment)
    plain = [of_size(1)] * 3 + [of_size(3), of_size(1)]
    assert [datagram for batch in sent for datagram in batch] == [
        each for frame in plain for each in segments(*frame)
    ]
    assert [len(batch) for batch in sent] == [3, 3, 1]  # They still are a run.
    assert answers == []
    assert segment.counters.tx_frames == 7


def test_tagged_frames_are_dropped() -> None:
    frames = [of_size(1, TAG), of_size(1), of_size(3, TAG), of_size(1)]
    segment = particular(inner_vlan=InnerVlan.DROP)
    sent, answers = inspected(frames, segment)
    assert [datagram for batch in sent for datagram in batch] == segments(*of_size(1)) * 2
    assert answers == []
    assert segment.counters.drops[Drop.TX_TAGGED] == 4
    assert segment.counters.tx_frames == 2


def test_malformed_superframes_are_dropped() -> None:
    runt = virtio.pack_gso(virtio.GSO_TCPV4, 54, SIZE, 34, 16), bytes(3)
    no_tcp = virtio.pack_gso(virtio.GSO_TCPV4, 54, SIZE, 34, 16), bytes(3000)
    segment = particular(inner_vlan=InnerVlan.DROP)
    sent, _ = inspected([runt, no_tcp, of_size(1)], segment)
    assert [datagram for batch in sent for datagram in batch] == segments(*of_size(1))
    assert segment.counters.drops[Drop.TX_RUNT] == 1
    assert segment.counters.drops[Drop.TX_MALFORMED] == 1


def test_a_request_is_answered_to_the_tap() -> None:
    segment = particular()
    neighbours = Neighbours(segment.fdb, ageing=0, max_neighbours=0)
    neighbours.add(ip_address(V4_B), mac(MAC_B), 0.0)
    segment.fdb.add(mac(MAC_B), REMOTE, 0.0)
    segment.set_neighbours(neighbours)
    request = bytes(ether(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B), dst=BROADCAST))
    sent, answers = inspected([of_size(1), (virtio.PLAIN, request), of_size(1)], segment)
    assert [datagram for batch in sent for datagram in batch] == segments(*of_size(1)) * 2
    ((header, answer),) = answers
    assert header == virtio.PLAIN
    assert Ether(answer)[ARP].hwsrc == MAC_B
    assert segment.replies == []
    assert segment.counters.tx_frames == 2
    assert segment.counters.neigh_answered == 1


def test_unconfirmed_requests_are_flooded() -> None:
    others = [Remote(f"192.0.2.{number}", 4789) for number in (3, 4)]
    segment = particular()
    segment.set_remotes([REMOTE, *others], 0.0)
    segment.fdb.learn(mac(MAC_B), REMOTE, 0.0)
    segment.set_neighbours(Neighbours(segment.fdb, ageing=0, max_neighbours=0))
    assert segment.neighbours is not None
    reply = ARP(op=2, hwsrc=MAC_B, psrc=V4_B, hwdst=MAC_A, pdst=V4_A)
    segment.neighbours.snoop(bytes(ether(reply, src=MAC_B, dst=MAC_A)), time.monotonic())
    request = bytes(ether(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B), dst=BROADCAST))

    async def flood(vtep: Vtep) -> None:
        vtep.egress.start()
        vtep.turn([(virtio.PLAIN, request)])
        assert segment.sweep(time.monotonic() + 2.0)
        vtep.egress.send_requests(time.monotonic())
        vtep.egress.send_requests(time.monotonic())
        vtep.egress.stop()

    to_b = PREFIX + mac(MAC_B) + request[6:]
    with ExitStack() as stack:
        vtep = Vtep(stack, segment)
        run(flood(vtep))
        assert vtep.sent == [[to_b], *[[PREFIX + request]] * 3]
    counters = segment.counters
    assert (counters.tx_frames, counters.tx_datagrams, counters.flooded) == (2, 4, 1)
    assert (counters.neigh_answered, counters.neigh_probed, counters.neigh_unconfirmed) == (1, 1, 1)


def test_answers_that_the_tap_refuses_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _buffers: object) -> int:
        raise OSError(errno.EIO, "the device is down")

    monkeypatch.setattr(os, "writev", refuse)
    segment = particular()
    segment.set_neighbours(Neighbours(segment.fdb, ageing=0, max_neighbours=0))
    assert segment.neighbours is not None
    segment.neighbours.add(ip_address(V4_B), mac(MAC_B), 0.0)
    segment.fdb.add(mac(MAC_B), REMOTE, 0.0)
    request = bytes(ether(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B), dst=BROADCAST))
    too_large = Frame(protocol=17, payload=bytes(MTU)).build()
    sent, answers = inspected([(virtio.PLAIN, request), (virtio.PLAIN, too_large)], segment)
    assert (sent, answers) == ([], [])
    assert segment.counters.drops[Drop.TAP_DOWN] == 2


def test_the_header_has_the_group() -> None:
    segment = particular(groups=GroupPolicy(7))
    sent, _ = inspected([of_size(1), of_size(2)], segment)
    headers = {datagram[:8] for batch in sent for datagram in batch}
    assert headers == {vxlan.pack(5, 7)}


@given(frames=st.lists(FRAMES, max_size=6), room=st.lists(st.booleans(), max_size=60))
@settings(max_examples=50)
def test_each_of_many_gets_everything_in_order(
    frames: list[tuple[bytes, bytes]], room: list[bool]
) -> None:
    expected = [segment for frame in frames for segment in segments(*frame)]
    got = forward_to_many(frames, room)
    assert [flows(each) for each in got] == [flows(each[8:] for each in expected)] * len(got)


@given(frames=st.lists(FRAMES, max_size=6), room=st.lists(st.booleans(), max_size=20))
@settings(max_examples=30)
def test_a_remote_may_have_another_number_for_the_segment(
    frames: list[tuple[bytes, bytes]], room: list[bool]
) -> None:
    sent = forward(frames, room, Remote("192.0.2.2", 4789, vni=0xABCDEF))
    expected = [segment[8:] for frame in frames for segment in segments(*frame)]
    datagrams = [datagram for batch in sent for datagram in batch]
    assert flows(datagram[8:] for datagram in datagrams) == flows(expected)
    assert {datagram[:8] for datagram in datagrams} <= {vxlan.pack(0xABCDEF)}
