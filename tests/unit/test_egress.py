"""Egress: what is read from the TAP leaves in the order of each flow, complete, in few sends.

The TAP is one end of a socket pair, which keeps frames apart as a TAP does; the underlay is a path
that takes notes, and may be full.
"""

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import ARP, Ether

from tests.unit.craft import BROADCAST, MAC_A, MAC_B, V4_A, V4_B, ether, mac
from tests.unit.twins import BASIC, CHECKSUM_AT, KINDS, SYN, Frame, finish
from vtep.counters import Counters, Drop
from vtep.datapath import Arena, Egress
from vtep.datapath.backpressure import WritableWaiters
from vtep.datapath.pool import Flood
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import GroupPolicy, InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.forwarding.suppress import Neighbours
from vtep.io.interfaces import FloodResult
from vtep.io.path import batch_max
from vtep.offload.headers import SegmentPlan
from vtep.offload.oversize import Oversize
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import Splitter, plan_segments
from vtep.tunnel_gso.ack_tracker import AckTracker, DeliveryResult
from vtep.tunnel_gso.state import RemoteState
from vtep.wire import virtio, vxlan
from vtep.wire.outer_header import InheritPolicy

REMOTE = Remote("192.0.2.2", 4789)
SIZE = 1398
MTU = 1450
PREFIX = vxlan.pack(5)
TO = Frame().build()[:6]


class Notes:
    """A path that keeps what it is given, and is full whenever `room` says so."""

    slots = 16

    def __init__(self, room: Iterator[bool]) -> None:
        self.sent: list[list[bytes]] = []
        self._room = room
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(
        self, datagrams: memoryview, stride: int, _flow: int, _now: float
    ) -> tuple[int, Drop | None]:
        if not next(self._room, True):
            raise BlockingIOError
        batch = bytes(datagrams[: batch_max(stride)])
        self.sent.append([batch[at : at + stride] for at in range(0, len(batch), stride)])
        return len(batch), None

    def fileno(self, _flow: int) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


class Ways:
    """The paths to the only remote; tunnel GSO is available if there is something in `takes`.

    Its elements tell, in turn, whether the remote is enabled and whether a send succeeds.
    """

    outer_fields = staticmethod(InheritPolicy().make_reader())

    def __init__(self, notes: Notes, takes: Sequence[bool] = ()) -> None:
        self.writable = WritableWaiters()
        self.tunnel_gso = bool(takes)
        self.gso = RemoteState()
        self.max_len = 1 << 16
        self.sent_tunnel_gso = 0
        self._notes = notes
        self._takes = iter(takes)

    def __getitem__(self, _remote: Remote) -> Notes:
        return self._notes

    def tunnel_gso_path(self, _remote: Remote) -> "Ways":
        self.gso.max_len = self.max_len if next(self._takes, False) else 0
        return self

    def send(
        self, prefix: bytes, frame: memoryview, cut: SegmentPlan, gso: virtio.Header, *_args: object
    ) -> bool:
        if not next(self._takes, False):
            return False
        splitter = Splitter(prefix)
        octets, stride = splitter.split(frame, gso)
        assert (cut.segments, cut.size, cut.header_len) == (
            -(-octets // stride),
            gso.gso_size,
            stride - gso.gso_size - len(prefix),
        )
        sent = splitter.out[:octets].tobytes()
        self._notes.sent.append([sent[at : at + stride] for at in range(0, octets, stride)])
        self.sent_tunnel_gso += 1
        self._gso = gso
        return True

    def send_next(self, prefix: bytes, frame: memoryview) -> bool:
        """Send with the arguments of the last `send`; what is sent shows whether they hold."""
        gso = self._gso
        return self.send(prefix, frame, plan_segments(frame, gso), gso)


class Crowd:
    """Many remotes, all but the last of which are served at once, and its paths.

    It says as often as `room` does that there is no more room, in the middle of them.
    """

    outer_fields = staticmethod(InheritPolicy().make_reader())

    def __init__(self, remotes: Sequence[Remote], room: Iterator[bool]) -> None:
        self.writable = WritableWaiters()
        self.tunnel_gso = False
        self.got: dict[Remote, list[bytes]] = {remote: [] for remote in remotes}
        self._room = room
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._taken: Remote | None = None
        *served, other = remotes
        self.remotes = tuple(served)
        self._flood = Flood(self, (other,))

    def flood(self, remotes: Sequence[Remote]) -> Flood:
        if remotes is self.remotes:
            return evolve(self._flood, others=())
        return self._flood

    def __getitem__(self, remote: Remote) -> Any:
        self._taken = remote
        return SimpleNamespace(send=self._send_to_one, fileno=lambda _flow: self._socket.fileno())

    def _send_to_one(
        self, datagrams: memoryview, stride: int, _flow: int, _now: float
    ) -> tuple[int, Drop | None]:
        if not next(self._room, True):
            raise BlockingIOError
        assert self._taken is not None
        return self._take(self._taken, datagrams, stride), None

    def _take(self, remote: Remote, datagrams: memoryview, stride: int) -> int:
        batch = bytes(datagrams[: batch_max(stride)])
        self.got[remote] += [batch[at : at + stride] for at in range(0, len(batch), stride)]
        return len(batch)

    def send(
        self,
        datagrams: memoryview,
        stride: int,
        flow: int,  # noqa: ARG002
        skip: int = 0,
    ) -> FloodResult:
        octets = datagram_count = 0
        for number, remote in enumerate(self.remotes[skip:], skip):
            if not next(self._room, True):
                return FloodResult(0, number, datagram_count, [], self._socket.fileno())
            octets = self._take(remote, datagrams, stride)
            datagram_count += -(-octets // stride)
        return FloodResult(octets, len(self.remotes), datagram_count, [], -1)

    def close(self) -> None:
        self._socket.close()


class Pair:
    """The end of a TAP device that a VTEP has, and in `host` that of this host."""

    def __init__(self) -> None:
        ours, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ours = ours
        ours.setblocking(False)
        for end in (ours, self.host):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
        self.host.setblocking(False)
        self.fd = ours.fileno()

    def close(self) -> None:
        self._ours.close()
        self.host.close()


@contextmanager
def tap() -> Iterator[Pair]:
    pair = Pair()
    try:
        yield pair
    finally:
        pair.close()


def egress_of(
    pair: Pair,
    segment: Segment,
    ways: object,
    fit: TunnelSizing,
    arena: Arena,
    lost: Callable[[OSError], None],
) -> Egress:
    doubles = cast("Any", pair), cast("Any", ways)
    return Egress(doubles[0], segment, doubles[1], fit, AckTracker(), arena, lost)


def inspected(frames: Sequence[tuple[bytes, bytes]], segment: Segment) -> tuple[Any, list[bytes]]:
    """What is sent, by send, and what the host gets, where a segment looks at all frames."""

    async def run() -> tuple[Any, list[bytes]]:
        notes = Notes(iter(()))
        answers = []
        with tap() as pair:
            ways = cast("Any", Ways(notes))
            fit = TunnelSizing(segment.header, segment.counters, MTU, "auto")
            egress = egress_of(pair, segment, ways, fit, Arena(), lambda _: None)
            for frame in frames:
                pair.host.send(b"".join(frame))
            egress.readable()
            with suppress(BlockingIOError):
                while True:
                    answers.append(pair.host.recv(65536))
        notes.close()
        return notes.sent, answers

    return asyncio.run(run())


def forward(
    frames: Sequence[tuple[bytes, bytes]],
    room: Sequence[bool] = (),
    remote: Remote = REMOTE,
    takes: Sequence[bool] = (),
    tunnel_gso: int | None = None,
) -> list[list[bytes]]:
    """What is sent, by send, when these virtio headers and frames wait at the TAP.

    If `tunnel_gso` is given, so many of them are to be sent with tunnel GSO.
    """

    async def run() -> list[list[bytes]]:
        lost: list[OSError] = []
        segment = Segment(
            5, [remote], Fdb(5, 4789, ageing=0, max_addresses=0), own_mac=bytes(6), learning=True
        )
        segment.fdb.learn(TO, remote, 0.0)
        notes = Notes(iter(room))
        ways = Ways(notes, takes)
        fit = TunnelSizing(PREFIX, segment.counters, MTU, "auto")
        for flow in range(3):
            fit.arriving(answer_to(flow))
        with tap() as pair:
            egress = egress_of(pair, segment, ways, fit, Arena(), lost.append)
            egress.start()
            waiting = list(frames)
            expected = sum(len(segments(*frame)) for frame in frames)
            while sum(map(len, notes.sent)) < expected:
                while waiting:
                    try:
                        pair.host.send(b"".join(waiting[0]))
                    except BlockingIOError:  # A socket pair holds few datagrams.
                        break
                    del waiting[0]
                await asyncio.sleep(0)
            egress.stop()
        notes.close()
        assert not lost
        counters = segment.counters
        assert counters.tx_datagrams == counters.tx_frames == expected
        assert counters.tx_bytes == sum(
            len(datagram) - len(PREFIX) for batch in notes.sent for datagram in batch
        )
        assert counters.tx_superframes == sum(header[1] != 0 for header, _ in frames)
        assert counters.tx_tunnel_gso == ways.sent_tunnel_gso
        assert tunnel_gso in (None, ways.sent_tunnel_gso)
        entry = segment.fdb.lookup(TO)
        assert entry is not None
        assert entry.tx_frames + counters.flooded == expected
        return notes.sent

    return asyncio.run(asyncio.wait_for(run(), 20))


def forward_to_many(
    frames: Sequence[tuple[bytes, bytes]], room: Sequence[bool]
) -> list[list[bytes]]:
    """What each of ten remotes gets."""

    async def run() -> list[list[bytes]]:
        remotes = [Remote(f"192.0.2.{number}", 4789) for number in range(10)]
        segment = Segment(
            5, remotes, Fdb(5, 4789, ageing=0, max_addresses=0), own_mac=bytes(6), learning=True
        )
        crowd = Crowd(remotes, iter(room))
        expected = sum(len(segments(*frame)) for frame in frames)
        with tap() as pair:
            egress = egress_of(
                pair,
                segment,
                crowd,
                TunnelSizing(PREFIX, segment.counters, MTU, "auto"),
                Arena(),
                lambda error: pytest.fail(str(error)),
            )
            egress.start()
            waiting = list(frames)
            while sum(map(len, crowd.got.values())) < 10 * expected:
                while waiting:
                    try:
                        pair.host.send(b"".join(waiting[0]))
                    except BlockingIOError:
                        break
                    del waiting[0]
                await asyncio.sleep(0)
            egress.stop()
        crowd.close()
        assert segment.counters.tx_datagrams == 10 * expected
        return list(crowd.got.values())

    return asyncio.run(asyncio.wait_for(run(), 20))


def segments(header: bytes, frame: bytes) -> list[bytes]:
    """What has to leave for one read from the TAP.

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
        data, stride, _ = oversize.handle(memoryview(bytearray(frame)), 0.0)
    else:
        splitter = Splitter(PREFIX)
        octets, stride = splitter.split(view, gso)
        data = splitter.out[:octets].tobytes()
        if stride > oversize.limit + len(PREFIX):
            ((data, stride, _),) = oversize.handle_superframe(view, memoryview(data), stride, 0.0)
    return [data[at : at + stride] for at in range(0, len(data), stride)]


def superframe(
    count: int, *, flow: int = 0, last: int | None = None, size: int = SIZE, after: int = 0
) -> tuple[bytes, bytes]:
    """One of so many segments, the first of which is `after` so many others of its flow."""
    payload = bytes((count - 1) * size + (last or size))
    frame = Frame(payload=payload, sport=5000 + flow, ident=after, seq=after * size, partial=True)
    return virtio.pack_gso(virtio.GSO_TCPV4, frame.head_len, size, 34, 16), frame.build()


def answer_to(flow: int, mss: int = SIZE) -> memoryview:
    """The SYN with which the receiver of a flow of superframes has announced this."""
    mss_option = bytes((2, 4)) + mss.to_bytes(2, "big")
    syn = bytearray(Frame(payload=b"", sport=5000 + flow, flags=SYN, options=mss_option).build())
    syn[26:34] = syn[30:34] + syn[26:30]
    syn[34:38] = syn[36:38] + syn[34:36]
    return memoryview(syn)


def plain(octets: int = 20, *, flow: int = 0) -> tuple[bytes, bytes]:
    return virtio.PLAIN, Frame(payload=bytes(octets), sport=5000 + flow).build()


def unfinished(octets: int = 20, *, flow: int = 0, kind: str = "udp4") -> tuple[bytes, bytes]:
    """A frame whose checksum is to be finished by whoever sends it."""
    frame = Frame(*KINDS[kind], payload=bytes(octets), sport=5000 + flow, partial=True)
    offset = CHECKSUM_AT[frame.protocol]
    return virtio.pack_needs_csum(frame.shape.upper, offset), frame.build()


def marked(mark: int) -> tuple[bytes, bytes]:
    """A frame with this ECN field."""
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


def test_after_a_lone_frame_the_next_does_not_wait_for_others() -> None:
    fdb = Fdb(5, 4789, ageing=0, max_addresses=0)
    segment = Segment(5, [REMOTE], fdb, own_mac=bytes(6), learning=True)
    notes = Notes(iter(()))
    with tap() as pair:
        ways, fit = cast("Any", Ways(notes)), TunnelSizing(PREFIX, segment.counters, MTU, "auto")
        egress = egress_of(pair, segment, ways, fit, Arena(), lambda _: None)
        for count in (3, 1, 3, 3):
            for _ in range(count):
                pair.host.send(b"".join(plain()))
            egress.readable()
    notes.close()
    assert [len(batch) for batch in notes.sent] == [3, 1, 1, 2, 3]


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
def test_runs_of_what_is_alike_leave_in_order(
    frames: list[tuple[bytes, bytes]], room: list[bool]
) -> None:
    sent = forward(frames, room)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert [datagram for batch in sent for datagram in batch] == expected


def test_runs_end_where_an_envelope_does() -> None:
    frames = [marked(0)] * 3 + [marked(1)] * 3 + [marked(2)]
    assert [len(batch) for batch in forward(frames)] == [3, 3, 1]


def test_each_frame_of_a_run_is_looked_at_where_the_segment_wants_to() -> None:
    segment = particular(inner_vlan=InnerVlan.DROP)
    looked = Mock(side_effect=lambda frame, _now, _count=1: frame)
    segment.inspect = looked  # type: ignore[method-assign]
    sent, _ = inspected([plain()] * 5, segment)
    assert [len(batch) for batch in sent] == [5]
    assert looked.call_count == 5


def test_rest_goes_with_the_next() -> None:
    # 44 segments fit into a send; so many superframes of 46 would take twice as many sends.
    sent = forward([superframe(46, after=after) for after in (0, 46, 92)])
    assert [len(batch) for batch in sent] == [44, 44, 44, 6]


def test_rest_goes_alone_where_nothing_can_follow() -> None:
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
def test_everything_leaves_in_order(
    frames: list[tuple[bytes, bytes]], room: list[bool], takes: list[bool]
) -> None:
    sent = forward(frames, room, takes=takes)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert [datagram for batch in sent for datagram in batch] == expected


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
    assert [datagram for batch in sent for datagram in batch] == expected


def changed(frame: tuple[bytes, bytes], **fields: Any) -> tuple[bytes, bytes]:
    """The same superframe of 20 segments with something different in it."""
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
        assert [datagram for batch in sent for datagram in batch] == expected


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
def test_one_that_is_not_like_the_run_before_it(kind: str, fields: dict[str, Any]) -> None:
    base = Frame(*KINDS[kind], payload=bytes(20), sport=5000, partial=True)
    other = replace(base, **fields)
    needs = virtio.pack_needs_csum(base.shape.upper, CHECKSUM_AT[base.protocol])
    two = (virtio.PLAIN if fields == {"partial": False} else needs), other.build()
    one = needs, base.build()
    frames = [one, one, one, two, two, two, one, one]
    sent = forward(frames)
    expected = [segment for frame in frames for segment in segments(*frame)]
    assert [datagram for batch in sent for datagram in batch] == expected
    if "tos" in fields or "sport" in fields or "partial" in fields:
        assert [len(batch) for batch in sent] == [3, 3, 2]


class TrackedPath(Ways):
    """A path on which the next superframe above a length is to be tracked."""

    def __init__(self, notes: Notes, *, max_len: int = 0, any_size: bool = False) -> None:
        super().__init__(notes, [True] * 100)
        self.max_len = max_len
        self.results: list[DeliveryResult] = []
        self.gso.track_above = 0 if any_size else max_len
        self.gso.on_result = lambda result, _octets, _now: self.results.append(result)


def tracked(
    *turns: Sequence[tuple[bytes, bytes]], **options: Any
) -> tuple[list[list[bytes]], list[DeliveryResult], int]:
    """What is sent in so many turns, the results of tracking, and the count with tunnel GSO."""

    async def run() -> tuple[list[list[bytes]], list[DeliveryResult], int]:
        fdb = Fdb(5, 4789, ageing=0, max_addresses=0)
        segment = Segment(5, [REMOTE], fdb, own_mac=bytes(6), learning=True)
        fdb.learn(TO, REMOTE, 0.0)
        notes = Notes(iter(()))
        ways, fit = (
            TrackedPath(notes, **options),
            TunnelSizing(PREFIX, segment.counters, MTU, "auto"),
        )
        for flow in range(3):
            fit.arriving(answer_to(flow))
        with tap() as pair:
            egress = egress_of(pair, segment, ways, fit, Arena(), lambda _: None)
            for turn in turns:
                for frame in turn:
                    pair.host.send(b"".join(frame))
                egress.readable()
        notes.close()
        return notes.sent, ways.results, ways.sent_tunnel_gso

    return asyncio.run(run())


def test_one_superframe_is_tracked_and_the_others_are_segmented() -> None:
    frames = [superframe(20, after=after) for after in (0, 20, 40)]
    sent, results, count = tracked(frames, [superframe(20, after=60)])
    assert (results, count) == ([], 1)
    expected = [
        segment for frame in [*frames, superframe(20, after=60)] for segment in segments(*frame)
    ]
    assert [datagram for batch in sent for datagram in batch] == expected


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
        assert [datagram for batch in sent[1:] for datagram in batch] == expected


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
    """What leaves of two VNIs, 5 and 6, that share their memory and have little room."""

    async def run() -> list[list[bytes]]:
        arena, chances = Arena(), iter(room)
        notes = [Notes(chances), Notes(chances)]
        with tap() as one, tap() as two:
            outbounds = []
            for vni, pair, note in ((5, one, notes[0]), (6, two, notes[1])):
                fdb = Fdb(vni, 4789, ageing=0, max_addresses=0)
                segment = Segment(vni, [REMOTE], fdb, own_mac=bytes(6), learning=True)
                fit = TunnelSizing(segment.header, segment.counters, MTU, "auto")
                ways = cast("Any", Ways(note))
                lost = Mock(side_effect=AssertionError)
                outbounds.append(egress_of(pair, segment, ways, fit, arena, lost))
                outbounds[-1].start()
            expected = [sum(len(segments(*frame)) for frame in each) for each in frames]
            waiting = [(pair, list(each)) for pair, each in zip((one, two), frames, strict=True)]
            while [sum(map(len, note.sent)) for note in notes] != expected:
                for pair, rest in waiting:
                    with suppress(BlockingIOError):  # A socket pair holds few datagrams.
                        if rest:
                            pair.host.send(b"".join(rest[0]))
                            del rest[0]
                await asyncio.sleep(0)
            for egress in outbounds:
                egress.stop()
        for note in notes:
            note.close()
        return [[datagram for batch in note.sent for datagram in batch] for note in notes]

    return asyncio.run(asyncio.wait_for(run(), 20))


@settings(BASIC, max_examples=60)
@given(
    frames=st.tuples(st.lists(FRAMES, max_size=6), st.lists(FRAMES, max_size=6)),
    room=st.lists(st.booleans(), max_size=30),
)
def test_vnis_that_share_memory_leave_alone_what_waits_there(
    frames: tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]], room: list[bool]
) -> None:
    one, two = forward_both(frames, room)
    assert one == [segment for frame in frames[0] for segment in segments(*frame)]
    header = vxlan.pack(6)
    expected = [segment for frame in frames[1] for segment in segments(*frame)]
    assert two == [header + segment[len(header) :] for segment in expected]


# --- where the segment looks at frames --------------------------------------------------------


def particular(**policy: Any) -> Segment:
    fdb = Fdb(5, 4789, ageing=0, max_addresses=0)
    own, options = bytes(6), SegmentPolicy(**policy)
    return Segment(5, [REMOTE], fdb, own_mac=own, learning=True, policy=options)


def of_size(count: int, tags: tuple[tuple[int, int], ...] = ()) -> tuple[bytes, bytes]:
    frame = Frame(payload=bytes(count * SIZE), tags=tags)
    if count == 1:
        return virtio.PLAIN, frame.build()
    start = frame.head_len - 20
    return virtio.pack_gso(virtio.GSO_TCPV4, frame.head_len, SIZE, start, 16), frame.build()


TAG = ((0x8100, 5),)


def test_tags_are_taken_off() -> None:
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


def test_superframes_that_are_none_are_dropped() -> None:
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
    assert [answer[:10] for answer in answers] == [virtio.PLAIN]
    assert Ether(answers[0][10:])[ARP].hwsrc == MAC_B
    assert segment.replies == []
    assert segment.counters.tx_frames == 2
    assert segment.counters.neigh_answered == 1


def test_requests_whose_answer_is_in_doubt_are_flooded() -> None:
    others = [Remote(f"192.0.2.{number}", 4789) for number in (3, 4)]
    segment = particular()
    segment.set_remotes([REMOTE, *others], 0.0)
    segment.fdb.learn(mac(MAC_B), REMOTE, 0.0)
    segment.set_neighbours(Neighbours(segment.fdb, ageing=0, max_neighbours=0))
    assert segment.neighbours is not None
    reply = ARP(op=2, hwsrc=MAC_B, psrc=V4_B, hwdst=MAC_A, pdst=V4_A)
    segment.neighbours.snoop(bytes(ether(reply, src=MAC_B, dst=MAC_A)), time.monotonic())
    request = bytes(ether(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B), dst=BROADCAST))

    async def run() -> list[list[bytes]]:
        notes = Notes(iter(()))
        with tap() as pair:
            ways = cast("Any", Ways(notes))
            fit = TunnelSizing(PREFIX, segment.counters, MTU, "auto")
            egress = Egress(
                *(cast("Any", pair), segment, ways, fit, AckTracker(), Arena(), lambda _: None)
            )
            egress.start()
            pair.host.send(virtio.PLAIN + request)
            egress.readable()
            assert segment.sweep(time.monotonic() + 2.0)
            egress.send_requests(time.monotonic())
            egress.send_requests(time.monotonic())
            egress.stop()
        notes.close()
        return notes.sent

    to_b = PREFIX + mac(MAC_B) + request[6:]
    assert asyncio.run(run()) == [[to_b], *[[PREFIX + request]] * 3]
    counters = segment.counters
    assert (counters.tx_frames, counters.tx_datagrams, counters.flooded) == (2, 4, 1)
    assert (counters.neigh_answered, counters.neigh_probed, counters.neigh_unconfirmed) == (1, 1, 1)


def test_answers_that_the_tap_does_not_take_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_the_header_tells_the_group() -> None:
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
    assert all(got == expected for got in forward_to_many(frames, room))


@given(frames=st.lists(FRAMES, max_size=6), room=st.lists(st.booleans(), max_size=20))
@settings(max_examples=30)
def test_a_remote_may_have_another_number_for_the_segment(
    frames: list[tuple[bytes, bytes]], room: list[bool]
) -> None:
    sent = forward(frames, room, Remote("192.0.2.2", 4789, vni=0xABCDEF))
    expected = [segment[8:] for frame in frames for segment in segments(*frame)]
    datagrams = [datagram for batch in sent for datagram in batch]
    assert [datagram[8:] for datagram in datagrams] == expected
    assert {datagram[:8] for datagram in datagrams} <= {vxlan.pack(0xABCDEF)}
