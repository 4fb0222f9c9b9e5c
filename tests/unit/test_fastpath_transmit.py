"""The transmit turn: the datagrams that it sends, and the frames that it returns.

The TAP is a socket pair, and the remote is a UDP socket on the loopback device with UDP_GRO, which
receives what one system call has sent as one message. The oracles are the reference split of
`twins` and the numpy `Splitter`.
"""

import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import twins
from tests.unit.twins import (
    ACK,
    BASIC,
    CHECKSUM_AT,
    CWR,
    ECE,
    FIN,
    GSO_ECN,
    GSO_TYPE,
    KINDS,
    PSH,
    UDP,
    Frame,
    flows,
)
from tests.unit.uncompiled import run_again
from vtep.io import socket_constants as const
from vtep.offload.split import SplitError, Splitter, finish_checksum, plan_segments
from vtep.wire import virtio, vxlan

pytest.importorskip("numba")

from vtep.fastpath import keys, layout
from vtep.fastpath.transmit import TransmitTurn

PREFIX = vxlan.pack(5)
IP_RECVTTL = 12
"""From include/uapi/linux/in.h."""
PORT = 3
"""The number of the VNI's port."""
SLOTS = 4
FRAME_MAX = 1464
SEND_MAX = 65507
PATH = 7
MOST = layout.FRAMES_MAX
UNLIMITED = TransmitTurn.new_meter()
UNLIMITED[: layout.METER_USED] = 1 << 62
"""A meter of storm control that grants everything."""

FromTap = tuple[bytes, bytes]
"""A virtio header, and the frame that follows it."""


class Unsent(NamedTuple):
    """Datagrams that the kernel refused, and the error."""

    datagrams: list[bytes]
    errno: int
    row: int
    flow: int


class Outcome(NamedTuple):
    """The result of turns: messages with the slot that each was sent from, and the rest."""

    sent: list[tuple[int, list[bytes]]]
    unsent: list[Unsent]
    returned: list[bytes]

    @property
    def batches(self) -> list[list[bytes]]:
        return [datagrams for _, datagrams in self.sent]

    @property
    def datagrams(self) -> list[bytes]:
        return [datagram for batch in self.batches for datagram in batch]

    def by_slot(self) -> dict[int, list[bytes]]:
        found: dict[int, list[bytes]] = defaultdict(list)
        for slot, datagrams in self.sent:
            found[slot] += datagrams
        return dict(found)


class Harness:
    """A transmit turn between a TAP and a path with `SLOTS` sockets to one remote."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.turn = TransmitTurn()
        self.family = family
        self.remote = self.udp()
        self.remote.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.remote.setsockopt(const.SOL_UDP, const.UDP_GRO, 1)
        self.senders = [self.udp() for _ in range(2 * SLOTS)]
        for sender in self.senders:
            sender.connect(self.remote.getsockname())
        self.tap, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.tap, self.host):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.reset()

    def udp(self) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1" if self.family == socket.AF_INET else "::1", 0))
        sock.setblocking(False)
        return sock

    def reset(self) -> None:
        """Forget all rows, and what an earlier test that failed has left behind."""
        turn = self.turn
        for sock in (self.tap, self.remote):
            drained(sock)
        turn.keys[:] = 0
        turn.values[:] = 0
        turn.paths[:, : layout.SLOTS] = -1
        self.use_path(PATH, self.senders)

    def use_path(self, path: int, senders: Sequence[socket.socket], most: int = SEND_MAX) -> None:
        self.turn.paths[path, : len(senders)] = [sender.fileno() for sender in senders]
        self.turn.paths[path, layout.PATH_STRIDE_MAX] = most

    def close(self) -> None:
        for sock in (self.remote, *self.senders, self.tap, self.host):
            sock.close()

    def install(
        self,
        packet: FromTap,
        *,
        path: int = PATH,
        base: int = 0,
        control: bytes = b"",
        kind_mask: int = 0,
    ) -> int:
        """Add a row for frames like this one. Returns: its number, or -1 if it can have none."""
        key = key_of(packet, kind_mask)
        if key is None:
            return -1
        turn = self.turn
        found = keys.find_row(turn.keys, key)
        first = keys.bucket(key)
        free = [row for row in range(first, first + layout.WAYS) if not turn.keys[row, 0]]
        if found >= 0 or not free:
            return int(found)
        row = free[0]
        turn.keys[row] = key
        turn.values[row] = 0
        turn.values[row, : layout.TX_FRAMES] = path, SLOTS - 1, base, len(control)
        template = PREFIX + control
        turn.templates[row, : len(template)] = np.frombuffer(template, np.uint8)
        return row

    def write(self, packets: Iterable[FromTap]) -> None:
        for header, frame in packets:
            self.host.send(header + frame)

    def run(self, *, kind_mask: int = 0, frame_max: int = FRAME_MAX, most: int = MOST) -> Outcome:
        """Run one turn. The counters of its rows must match what it did."""
        turn = self.turn
        turn.values[:, layout.TX_FRAMES :] = 0
        turn.run(self.tap.fileno(), PORT, kind_mask, frame_max, most, UNLIMITED)
        outcome = Outcome(
            list(self.received()), list(self.unsent()), list(self.returned(kind_mask))
        )
        result = turn.result.tolist()
        touched = turn.touched[: result[layout.RESULT_TOUCHED]].tolist()
        assert sorted(touched) == turn.values[:, layout.TX_FRAMES].nonzero()[0].tolist()
        unsent = [datagram for each in outcome.unsent for datagram in each.datagrams]
        counts = turn.values[:, layout.TX_FRAMES :].sum(axis=0).tolist()
        frames, octets, _, datagrams, calls = counts
        assert min(1, datagrams) <= calls <= datagrams
        assert frames == datagrams + len(unsent)
        taken, done = result[layout.RESULT_TAKEN], result[layout.RESULT_DONE]
        assert taken == done + len(outcome.returned)
        if self.remote.fileno() >= 0 and not self.other_senders:
            assert datagrams == len(outcome.datagrams)
            everything = outcome.datagrams + unsent
            assert octets == sum(map(len, everything)) - len(PREFIX) * len(everything)
        return outcome

    other_senders = False
    """True while datagrams go to other sockets than `remote`."""

    def received(self) -> Iterator[tuple[int, list[bytes]]]:
        ports = [sender.getsockname()[1] for sender in self.senders if sender.fileno() >= 0]
        while True:
            try:
                data, control, _, source = self.remote.recvmsg(1 << 17, 256)
            except BlockingIOError:
                return
            sizes = [value for *kind, value in control if kind == [const.SOL_UDP, const.UDP_GRO]]
            size = struct.unpack("=i", sizes[0])[0] if sizes else len(data)
            yield ports.index(source[1]), cut(data, size)

    def unsent(self) -> Iterator[Unsent]:
        turn = self.turn
        for row, flow, stride, begin, octets, error in turn.unsent[
            : turn.result[layout.RESULT_UNSENT]
        ].tolist():
            yield Unsent(
                cut(turn.unsent_data[begin : begin + octets].tobytes(), stride), error, row, flow
            )

    def returned(self, kind_mask: int) -> Iterator[bytes]:
        turn = self.turn
        for row in range(turn.result[layout.RESULT_RETURNED]):
            begin, octets = turn.returned[row].tolist()
            data = turn.data[begin : begin + octets].tobytes()
            key = key_of((data[:10], data[10:]), kind_mask)
            parsed = [0, 0] if key is None else key[:2].tolist()
            assert turn.returned_keys[row, :2].tolist() == parsed
            yield data


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def drained(sock: socket.socket, size: int = 1 << 17) -> list[bytes]:
    """Return what a socket has received: messages, or parts of them of this size."""
    found = []
    while True:
        try:
            found += cut(sock.recv(1 << 17), size)
        except BlockingIOError:
            return found


def octets_of(frame: bytes) -> Any:
    return np.frombuffer(frame, np.uint8)


def key_of(packet: FromTap, kind_mask: int = 0) -> Any:
    """Build the key of a frame; None if it can have no row."""
    header, frame = packet
    if len(frame) < 14:
        return None
    data = octets_of(frame)
    ip, _, _, mac, kind = keys.parse(data, 0, len(frame))
    if not ip:
        return None
    extra = 0
    if kind_mask:
        version = frame[ip] >> 4
        ttl = frame[ip + 8] if version == 4 else frame[ip + 7]
        label = 0 if version == 4 else int.from_bytes(frame[ip : ip + 4], "big") & 0xFFFFF
        df = frame[ip + 6] >> 6 & 1 if version == 4 else 0
        extra = ttl << 24 | label << 32 | df << 52
    mac |= int.from_bytes(frame[:6], "big")
    return np.array([mac, kind | extra & kind_mask, PORT | (header[1] & 0x7F) << 32], np.int64)


def slot_of(frame: bytes) -> int:
    return int(keys.flow_hash(octets_of(frame), 0, len(frame))) % SLOTS


def expected(packet: FromTap, frame_max: int = FRAME_MAX) -> list[bytes] | None:
    """Return the datagrams for a frame that has a row, or None if it must be returned."""
    header, frame = packet[0], bytearray(packet[1])
    gso = virtio.unpack(header)
    if gso.gso_type & ~GSO_ECN:
        try:
            plan = plan_segments(memoryview(frame), gso)
        except ValueError:
            return None
        if plan.header_len + plan.size > frame_max or plan.segments > layout.DATAGRAMS:
            return None
        splitter = Splitter(PREFIX)
        octets, stride = splitter.split(memoryview(frame), gso)
        datagrams = cut(splitter.out[:octets].tobytes(), stride)
        reference = twins.split(bytes(frame), gso)
        assert datagrams == [PREFIX + segment for segment in reference or ()]
        return datagrams
    if len(frame) > frame_max:
        return None
    if gso.flags & virtio.FLAG_NEEDS_CSUM:
        try:
            finish_checksum(memoryview(frame), gso.csum_start, gso.csum_offset)
        except SplitError:
            return None
    return [PREFIX + frame]


@pytest.fixture(scope="module", name="shared")
def _shared() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


@pytest.fixture
def harness(shared: Harness) -> Harness:
    shared.reset()
    return shared


# --- frames -------------------------------------------------------------------------------------


def plain(frame: Frame) -> FromTap:
    """Return a frame as a TAP delivers it, with its checksum complete or partial."""
    if not frame.partial:
        return virtio.PLAIN, frame.build()
    offset = CHECKSUM_AT[frame.protocol]
    return virtio.pack_needs_csum(frame.shape.upper, offset), frame.build()


def superframe(frame: Frame, size: int) -> FromTap:
    """Return a superframe as a TAP delivers it."""
    kind = GSO_TYPE[frame.version, frame.protocol]
    shape = frame.shape
    offset = CHECKSUM_AT[frame.protocol]
    header = virtio.pack_gso(kind, shape.payload, size, shape.upper, offset)
    return header, replace(frame, partial=True).build()


def datagram(number: int = 0, octets: int = 20, **fields: Any) -> FromTap:
    """Return a frame of UDP, of the flow with this number."""
    return plain(Frame(protocol=UDP, payload=bytes(octets), sport=5000 + number, **fields))


def flows_in_slots() -> list[int]:
    """Return the number of one flow for each slot."""
    numbers: dict[int, int] = {}
    for number in range(200):
        numbers.setdefault(slot_of(datagram(number)[1]), number)
    return [numbers[slot] for slot in range(SLOTS)]


@st.composite
def packets(draw: st.DrawFn) -> FromTap:
    """Draw what a TAP delivers: valid in most cases, else with a damaged header."""
    frame = draw(flows(between=True, flags=0xFF))
    frame = replace(
        frame,
        sport=draw(st.integers(5000, 5003)),
        source=draw(st.integers(0, 1)),
        payload=Random(draw(st.integers(0, 9))).randbytes(draw(st.integers(0, 150))),
        partial=draw(st.booleans()),
        padding=bytes(draw(st.sampled_from([0, 0, 0, 1, 6]))),
    )
    header, octets = superframe(frame, draw(st.integers(1, 60)))
    if draw(st.booleans()):
        header, octets = plain(frame)
    damaged = bytearray(header), bytearray(octets)
    if draw(st.integers(0, 3)) == 0:
        part = draw(st.sampled_from(damaged))
        part[draw(st.integers(0, len(part) - 1))] = draw(st.integers(0, 255))
    cut_at = draw(st.sampled_from([None, None, None, None, 30]))
    return bytes(damaged[0]), bytes(damaged[1][:cut_at])


# --- the whole ----------------------------------------------------------------------------------


@BASIC
@given(st.lists(packets(), max_size=12), st.sets(st.integers(0, 11)), st.sampled_from([80, 1464]))
def test_all_frames_are_sent_as_by_the_slow_path_or_returned(
    shared: Harness, taken: list[FromTap], unknown: set[int], frame_max: int
) -> None:
    harness = shared
    harness.reset()
    for number, packet in enumerate(taken):
        if number not in unknown:
            harness.install(packet)
    harness.write(taken)
    sent: dict[int, list[bytes]] = defaultdict(list)
    returned: list[bytes] = []
    blocked: set[int] = set()
    for packet in taken:
        header, frame = packet
        key, flow = key_of(packet), -1
        if len(frame) >= 14:
            flow = int(keys.flow_hash(octets_of(frame), 0, len(frame))) % 64
        has_row = key is not None and keys.find_row(harness.turn.keys, key) >= 0
        datagrams = expected(packet, frame_max) if has_row and flow not in blocked else None
        if datagrams is None:
            returned.append(header + frame)
            blocked.add(flow)
            blocked.discard(-1)
        else:
            sent[flow % SLOTS] += datagrams
    outcome = harness.run(frame_max=frame_max)
    assert outcome.by_slot() == sent
    assert outcome.returned == returned
    assert outcome.unsent == []
    for batch in outcome.batches:
        assert {len(each) for each in batch[:-1]} <= {len(batch[0])}
        assert len(batch[-1]) <= len(batch[0])


SHAPES: list[dict[str, Any]] = [
    {},
    {"tags": ((0x8100, 0x6005),)},
    {"ident": 0xFFFE, "seq": 0xFFFF_FFC0},
    {"flags": ACK | FIN | PSH | CWR | ECE, "reserved": 1},
    {"options": bytes([1, 1, 8, 10, *range(19, 27)]), "fragment": 0x8000, "tos": 0xFE},
    {"options": bytes([1] * 40), "label": 0xABCDE, "ttl": 1, "window": 0},
]
SIZES = [(1, 1), (100, 100), (99, 100), (101, 100), (303, 101), (7, 1), (63000, 1300), (9000, 511)]
"""Octets of payload, and of each segment."""


def test_superframes_of_every_shape(harness: Harness, subtests: pytest.Subtests) -> None:
    for kind, shape, (payload, size) in product(KINDS, SHAPES, SIZES):
        with subtests.test(kind=kind, shape=shape, payload=payload, size=size):
            harness.reset()
            frame = Frame(*KINDS[kind], payload=Random(size).randbytes(payload), **shape)
            packet = superframe(frame, size)
            row = harness.install(packet)
            harness.write([packet])
            outcome = harness.run()
            assert outcome.datagrams == expected(packet)
            assert outcome.returned == []
            assert harness.turn.values[row, layout.TX_SUPERFRAMES] == 1
            stride = len(outcome.datagrams[0])
            assert all(len(batch) <= min(64, SEND_MAX // stride) for batch in outcome.batches)
            assert len(outcome.batches) == -(-len(outcome.datagrams) // min(64, SEND_MAX // stride))


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_are_finished(harness: Harness, kind: str) -> None:
    frames = [Frame(*KINDS[kind], payload=bytes([n] * n), partial=True) for n in range(9)]
    # A UDP checksum of 0 would mean none.
    zero = Frame(*KINDS[kind], payload=b"\0\0", partial=True)
    total = int.from_bytes(twins.finish(zero.build())[zero.shape.upper :][6:8], "big")
    frames.append(replace(zero, payload=total.to_bytes(2, "big")))
    for frame in frames:
        harness.install(plain(frame))
    harness.write(map(plain, frames))
    outcome = harness.run()
    assert outcome.datagrams == [PREFIX + twins.finish(frame.build()) for frame in frames]


# --- groups -------------------------------------------------------------------------------------


def sizes(outcome: Outcome) -> list[int]:
    return [len(batch) for batch in outcome.batches]


@pytest.mark.parametrize(
    ("frames", "batches"),
    [
        ([datagram()], [1]),
        ([datagram()] * 64, [64]),
        ([datagram()] * 65, [64, 1]),
        ([datagram(octets=1300)] * 49, [48, 1]),
        ([datagram(), datagram(), datagram(octets=19), datagram(octets=19)], [3, 1]),
        ([datagram(octets=19), datagram(), datagram()], [1, 2]),
        ([datagram(), datagram(tos=4), datagram()], [1, 1, 1]),
    ],
    ids=["one", "full", "more", "octets", "shorter", "longer", "kinds"],
)
def test_frames_of_a_flow_share_a_send(
    harness: Harness, frames: list[FromTap], batches: list[int]
) -> None:
    for frame in frames:
        harness.install(frame)
    harness.write(frames)
    outcome = harness.run()
    assert sizes(outcome) == batches
    assert outcome.datagrams == [PREFIX + frame for _, frame in frames]


def test_frames_of_many_flows_share_as_many_sends_as_sockets(harness: Harness) -> None:
    flows = flows_in_slots()
    frames = [datagram(flow, 20, ident=number) for number in range(10) for flow in flows]
    harness.install(frames[0])
    harness.write(frames)
    outcome = harness.run()
    assert sizes(outcome) == [10] * SLOTS
    for slot in range(SLOTS):
        assert outcome.by_slot()[slot] == [PREFIX + frame for _, frame in frames[slot::SLOTS]]


def test_consecutive_superframes_share_a_send(harness: Harness) -> None:
    packets = [
        superframe(Frame(payload=bytes([number]) * 1000, ident=10 * number), 100)
        for number in range(8)
    ]
    tail = plain(Frame(payload=b"tail"))
    for packet in (packets[0], tail):
        harness.install(packet)
    harness.write([*packets, tail])
    outcome = harness.run()
    assert sizes(outcome) == [64, 16, 1]
    assert outcome.datagrams == [
        each for packet in [*packets, tail] for each in expected(packet) or ()
    ]


@pytest.mark.parametrize(("most", "batches"), [(1, [1, 1, 3]), (0, [1] * 5)])
def test_a_path_may_segment_small_datagrams_only_or_none(
    harness: Harness, most: int, batches: list[int]
) -> None:
    frames = [datagram(octets=60)] * 2 + [datagram(octets=20)] * 3
    stride = len(PREFIX + frames[-1][1])
    harness.use_path(PATH, harness.senders, most * stride)
    harness.install(frames[0])
    harness.write(frames)
    assert sizes(harness.run()) == batches


def test_a_path_without_segmentation_sends_each_segment(harness: Harness) -> None:
    harness.use_path(PATH, harness.senders, 0)
    packet = superframe(Frame(payload=bytes(1000)), 100)
    harness.install(packet)
    harness.write([packet])
    outcome = harness.run()
    assert sizes(outcome) == [1] * 10
    assert outcome.datagrams == expected(packet)


def test_more_segments_than_a_turn_can_hold_at_once(harness: Harness) -> None:
    """Full groups of other flows are sent before, and a superframe with too many is returned."""
    flows = flows_in_slots()
    others = [superframe(Frame(payload=bytes(10), sport=5000, seq=n), 10) for n in range(4)]
    large = [superframe(Frame(payload=bytes(n), sport=5001), 1) for n in (1020, 1024, 1025)]
    packets = [datagram(flows[0]), others[0], large[0], others[1], large[1], others[2], large[2]]
    for packet in packets:
        harness.install(packet)
    harness.write(packets)
    outcome = harness.run()
    assert outcome.returned == [b"".join(large[2])]
    wanted: dict[int, list[bytes]] = defaultdict(list)
    for packet in packets[:-1]:
        wanted[slot_of(packet[1])] += expected(packet) or []
    assert outcome.by_slot() == wanted


def test_paths_that_share_a_row_of_groups_do_not_share_a_send(harness: Harness) -> None:
    frames = [datagram(dst=b"\2\0\0\0\0" + bytes([last])) for last in (1, 2)]
    paths = PATH, PATH + layout.GROUPS // 64
    for frame, path, sender in zip(frames, paths, harness.senders, strict=False):
        harness.use_path(path, [sender] * SLOTS)
        harness.install(frame, path=path)
    harness.write([frames[0], frames[0], frames[1], frames[1], frames[0]])
    outcome = harness.run()
    assert outcome.sent == [
        (0, [PREFIX + frames[0][1]] * 2),
        (1, [PREFIX + frames[1][1]] * 2),
        (0, [PREFIX + frames[0][1]]),
    ]


def test_frames_with_df_have_sockets_of_their_own_and_stay_in_order(harness: Harness) -> None:
    frames = [datagram(fragment=fragment) for fragment in (0, 0x4000, 0, 0x4000)]
    mask = 1 << layout.KIND_DF
    slot = slot_of(frames[0][1])
    harness.install(frames[0], kind_mask=mask)
    harness.install(frames[1], kind_mask=mask, base=SLOTS)
    harness.write(frames)
    outcome = harness.run(kind_mask=mask)
    assert outcome.sent == [
        (slot + (SLOTS if number % 2 else 0), [PREFIX + frame])
        for number, (_, frame) in enumerate(frames)
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_inherited_fields_are_part_of_the_key(harness: Harness, version: int) -> None:
    changes: dict[int, dict[str, Any]] = {
        0xFF << layout.KIND_TTL: {"ttl": 63},
        0xFFFFF << layout.KIND_FLOW_LABEL: {"label": 0x12345},
        1 << layout.KIND_DF: {"fragment": 0x4000},
    }
    frame = Frame(version, UDP, fragment=0, label=1)
    for mask, change in changes.items():
        other = replace(frame, **change)
        applies = other.build() != frame.build()
        harness.install(plain(frame), kind_mask=mask)
        harness.write([plain(other)])
        assert bool(harness.run(kind_mask=mask).returned) == applies
        harness.reset()
        harness.install(plain(frame))
        harness.write([plain(other)])
        assert not harness.run().returned
        harness.reset()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_outer_header_fields_are_sent(family: socket.AddressFamily) -> None:
    harness = Harness(family)
    if family == socket.AF_INET:
        level, received = socket.IPPROTO_IP, (socket.IP_RECVTOS, IP_RECVTTL)
        options = [(socket.IP_TOS, 0x2E), (socket.IP_TTL, 9)]
    else:
        level = socket.IPPROTO_IPV6
        received = socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT
        options = [(socket.IPV6_TCLASS, 0x2E), (socket.IPV6_HOPLIMIT, 9)]
    for option in received:
        harness.remote.setsockopt(level, option, 1)
    control = b"".join(struct.pack("=Qiii4x", 20, level, *option) for option in options)
    marked, unmarked = datagram(tos=0xB8), datagram()
    harness.install(marked, control=control)
    harness.install(unmarked)
    # One datagram, several, and then none of the fields.
    harness.write([marked, unmarked, marked, marked, unmarked])
    harness.turn.run(harness.tap.fileno(), PORT, 0, FRAME_MAX, MOST, UNLIMITED)
    found = []
    for _ in range(4):
        data, messages, *_ = harness.remote.recvmsg(1 << 16, 256)
        fields = {kind: value[0] for of, kind, value in messages if of == level}
        found.append((len(data) // len(PREFIX + marked[1]), fields[options[0][0]]))
        ttl = fields.get(socket.IP_TTL, fields.get(socket.IPV6_HOPLIMIT))
        assert (ttl == 9) == (found[-1][1] == 0x2E)
    assert found == [(1, 0x2E), (1, 0), (2, 0x2E), (1, 0)]
    harness.close()


# --- what is returned ---------------------------------------------------------------------------


def with_header(packet: FromTap, **fields: int) -> FromTap:
    header = virtio.unpack(packet[0])._replace(**fields)
    return virtio.HEADER.pack(*header), packet[1]


SUPERFRAME = superframe(Frame(payload=bytes(300)), 100)
DATAGRAM = plain(Frame(protocol=UDP, partial=True))
MD5, AO = b"\x13\x12" + bytes(16) + b"\1\1", b"\1\1\x1d\x0a" + bytes(8)
REFUSED: dict[str, FromTap] = {
    "runt": (virtio.PLAIN, bytes(13)),
    "no frame": (virtio.PLAIN, b""),
    "half a virtio header": (virtio.PLAIN[:5], b""),
    "ARP": (virtio.PLAIN, bytes(12) + b"\x08\x06" + bytes(28)),
    "IPv4 options": plain(Frame(between=bytes(4))),
    "IPv6 extension header": plain(Frame(6, between=bytes(8))),
    "fragment": plain(Frame(fragment=0x2000)),
    "two tags": plain(Frame(tags=((0x8100, 1), (0x8100, 2)))),
    "provider tag": plain(Frame(tags=((0x88A8, 1),))),
    "truncated": (virtio.PLAIN, Frame().build()[:-1]),
    "too long": plain(Frame(payload=bytes(FRAME_MAX))),
    "checksum beyond the frame": with_header(DATAGRAM, csum_start=len(DATAGRAM[1]) - 7),
    "checksum far beyond the frame": with_header(DATAGRAM, csum_start=0xFFFF, csum_offset=0xFFFF),
    "segments too long": superframe(Frame(payload=bytes(4000)), 1411),
    "segment size 0": with_header(SUPERFRAME, gso_size=0),
    "GSO type of UDP": with_header(SUPERFRAME, gso_type=virtio.GSO_UDP_L4),
    "GSO type of IPv6": with_header(SUPERFRAME, gso_type=virtio.GSO_TCPV6),
    "GSO type of fragments": with_header(SUPERFRAME, gso_type=3),
    "no payload": superframe(Frame(payload=b""), 100),
    "no payload of UDP": superframe(Frame(protocol=UDP, payload=b""), 100),
    "superframe of ICMP": with_header(
        plain(Frame(protocol=UDP)), gso_type=virtio.GSO_UDP_L4, gso_size=100
    ),
    "MD5": superframe(Frame(payload=bytes(300), options=MD5), 100),
    "AO": superframe(Frame(payload=bytes(300), options=AO), 100),
    "TCP header too short": (SUPERFRAME[0], SUPERFRAME[1][:46] + b"\x40" + SUPERFRAME[1][47:]),
    "TCP header too long": (
        SUPERFRAME[0],
        superframe(Frame(payload=bytes(3)), 1)[1][:46] + b"\xf0" + bytes(26),
    ),
}
icmp = bytearray(REFUSED["superframe of ICMP"][1])
icmp[23] = 1
REFUSED["superframe of ICMP"] = REFUSED["superframe of ICMP"][0], bytes(icmp)


def test_a_refused_frame_is_returned_as_it_is(harness: Harness, subtests: pytest.Subtests) -> None:
    for name, packet in REFUSED.items():
        with subtests.test(name):
            harness.reset()
            harness.install(packet)
            harness.write([packet])
            outcome = harness.run()
            assert outcome == ([], [], [b"".join(packet)])
            assert harness.turn.result[layout.RESULT_TAKEN] == 1


def test_what_follows_in_a_flow_is_returned_and_other_flows_are_not(harness: Harness) -> None:
    first, second = flows_in_slots()[:2]
    blocker = datagram(first, tos=4)
    frames = [datagram(first), datagram(second), blocker, datagram(first), datagram(second)]
    harness.install(frames[0])
    harness.write(frames)
    outcome = harness.run()
    assert outcome.by_slot() == {
        0: [PREFIX + frames[0][1]],
        1: [PREFIX + frames[1][1], PREFIX + frames[4][1]],
    }
    assert outcome.returned == [b"".join(frames[2]), b"".join(frames[3])]
    # Only in this turn.
    harness.write([frames[0]])
    assert harness.run().datagrams == [PREFIX + frames[0][1]]


def test_a_socket_that_is_not_open_returns_its_frames(harness: Harness) -> None:
    first, second = flows_in_slots()[:2]
    frames = [datagram(first), datagram(second)]
    harness.install(frames[0])
    harness.turn.paths[PATH, 0] = -1
    harness.write(frames)
    outcome = harness.run()
    assert outcome.sent == [(1, [PREFIX + frames[1][1]])]
    assert outcome.returned == [b"".join(frames[0])]


# --- what is unsent -----------------------------------------------------------------------------


@pytest.fixture
def refusing(harness: Harness) -> Iterator[tuple[Harness, socket.socket, socket.socket]]:
    """Yield a harness whose first slot has a socket that soon has no room, and its other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for end in (ours, theirs):
        end.setblocking(False)
    harness.use_path(PATH, [ours, *harness.senders[1:]])
    harness.other_senders = True
    yield harness, ours, theirs
    harness.other_senders = False
    for end in (ours, theirs):
        end.close()


def fill(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.send(b"")


def test_frames_without_room_are_unsent_in_order(
    refusing: tuple[Harness, socket.socket, socket.socket],
) -> None:
    harness, ours, theirs = refusing
    first, second = flows_in_slots()[:2]
    # The second size begins another group, so the first one is sent while frames are read.
    one = [datagram(first, 20, ident=number) for number in range(3)]
    two = [datagram(first, 30, ident=number) for number in range(3)]
    other, late = datagram(second), datagram(first)
    row = harness.install(one[0])
    harness.write([*one, other, *two, late])
    fill(ours)
    outcome = harness.run()
    flow = outcome.unsent[0].flow
    assert outcome.unsent == [
        Unsent([PREFIX + frame for _, frame in one], errno.EAGAIN, row, flow),
        Unsent([PREFIX + two[0][1]], errno.EAGAIN, row, flow),
    ]
    assert flow % SLOTS == 0
    assert outcome.datagrams == [PREFIX + other[1]]
    assert outcome.returned == []
    # The rest is still in the TAP.
    drained(theirs)
    assert harness.turn.result[layout.RESULT_TAKEN] == 5
    outcome = harness.run()
    assert outcome.unsent == []
    size = len(PREFIX + two[0][1])
    assert drained(theirs, size) == [PREFIX + frame for _, frame in two[1:]] + [PREFIX + late[1]]


@pytest.mark.parametrize("room", range(6))
def test_the_rest_of_a_superframe_is_unsent(
    refusing: tuple[Harness, socket.socket, socket.socket], room: int
) -> None:
    harness, ours, theirs = refusing
    harness.use_path(PATH, [ours] * SLOTS, 0)
    packet = superframe(Frame(payload=Random(1).randbytes(560)), 100)
    harness.install(packet)
    fill(ours)
    for _ in range(room):
        theirs.recv(1)
    harness.write([packet])
    outcome = harness.run()
    waiting = [each for each in drained(theirs) if each]
    unsent = [each for part in outcome.unsent for each in part.datagrams]
    assert waiting + unsent == expected(packet)
    assert len(waiting) == room


@pytest.mark.parametrize("kind", ["closed", "refused", "too large"])
def test_an_error_of_a_socket_is_reported(harness: Harness, kind: str) -> None:
    frame = datagram(octets=65500 - 42 if kind == "too large" else 20)
    row = harness.install(frame)
    sender, other = harness.udp(), harness.udp()
    sender.connect(other.getsockname())
    harness.use_path(PATH, [sender] * SLOTS)
    error = {"closed": errno.EBADF, "refused": errno.ECONNREFUSED, "too large": errno.EMSGSIZE}
    if kind == "closed":
        sender.close()
    other.close()
    if kind == "refused":
        sender.send(b"")
    harness.other_senders = True
    harness.write([frame])
    outcome = harness.run(frame_max=1 << 16)
    harness.other_senders = False
    assert outcome.sent == []
    flow = int(keys.flow_hash(octets_of(frame[1]), 0, len(frame[1])))
    assert outcome.unsent == [Unsent([PREFIX + frame[1]], error[kind], row, flow)]
    assert harness.turn.values[row, layout.TX_DATAGRAMS] == 0
    sender.close()


def test_all_sockets_can_fail_at_once(harness: Harness) -> None:
    """The largest amount of datagrams that can be unsent has room."""
    harness.turn.paths[PATH, :SLOTS] = os.open(os.devnull, os.O_RDONLY)
    frames = [
        datagram(number % 64, 1400, ident=number, source=number // 64) for number in range(MOST)
    ]
    harness.install(frames[0])
    harness.write(frames)
    outcome = harness.run()
    os.close(int(harness.turn.paths[PATH, 0]))
    assert {each.errno for each in outcome.unsent} == {errno.ENOTSOCK}
    unsent: dict[int, list[bytes]] = defaultdict(list)
    for each in outcome.unsent:
        unsent[each.flow % SLOTS] += each.datagrams
    taken = int(harness.turn.result[layout.RESULT_TAKEN])
    wanted: dict[int, list[bytes]] = defaultdict(list)
    for _, octets in frames[:taken]:
        wanted[slot_of(octets)].append(PREFIX + octets)
    assert unsent == wanted


# --- the TAP ------------------------------------------------------------------------------------


def test_a_turn_reads_no_more_frames_than_it_was_told(harness: Harness) -> None:
    harness.install(datagram())
    harness.write([datagram()] * 10)
    assert [len(harness.run(most=most).datagrams) for most in (0, 1, 4, MOST)] == [0, 1, 4, 5]
    assert harness.turn.result[layout.RESULT_ERROR] == 0


def test_a_turn_reads_a_bounded_number_of_octets(harness: Harness) -> None:
    packet = superframe(Frame(payload=bytes(60000)), 1398)
    for known in (True, False):
        harness.reset()
        if known:
            harness.install(packet)
        turns = 0
        harness.write([packet] * 12)
        while True:
            harness.turn.run(harness.tap.fileno(), PORT, 0, FRAME_MAX, MOST, UNLIMITED)
            drained(harness.remote)
            if not harness.turn.result[layout.RESULT_TAKEN]:
                break
            turns += 1
        assert turns == 2


def test_an_error_of_the_tap_is_reported(harness: Harness) -> None:
    harness.turn.run(-1, PORT, 0, FRAME_MAX, MOST, UNLIMITED)
    assert harness.turn.result[layout.RESULT_ERROR] == errno.EBADF
    assert harness.turn.result[layout.RESULT_TAKEN] == 0


def test_without_compilation() -> None:
    run_again(__file__)
