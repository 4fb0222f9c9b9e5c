"""The receive turn: which datagrams it delivers to a TAP and in what form, and what it returns.

Datagrams arrive at a UDP socket on the loopback device, and the TAP is a socket pair. The oracles
are the reference merge of `twins` and the numpy `Merger`, flow by flow.
"""

import errno
import os
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import twins
from tests.unit.test_merge import zero_checksum
from tests.unit.twins import (
    BASIC,
    DISTURBANCES,
    GARBAGE,
    KINDS,
    TCP,
    UDP,
    Frame,
    Merged,
    build,
    bursts,
    corrupted,
    loop_sum,
    segment_run,
)
from tests.unit.uncompiled import run_again
from vtep.counters import Counters
from vtep.datapath.tap_fallback import count_frames
from vtep.io import socket_constants as const
from vtep.offload.merge import Merger
from vtep.offload.partial import SegmentSizes, virtio_header
from vtep.wire import virtio

pytest.importorskip("numba")

from vtep.fastpath import keys, layout
from vtep.fastpath.receive import ReceiveTurn

VXLAN = struct.pack("!II", 0x0800_0000, 7 << 8)
"""The VXLAN header of VNI 7."""
MTU = 9000
PORT = 3
"""The number of the receiving socket."""
LEN = len(VXLAN)


class Outcome(NamedTuple):
    """The result of a turn: what the TAP received, and the datagrams that were returned."""

    delivered: Merged
    returned: list[bytes]


class Harness:
    """A receive turn between a UDP socket and one TAP."""

    def __init__(self, family: int = socket.AF_INET) -> None:
        self.turn = ReceiveTurn()
        self.family = family
        self.receiver = self.udp()
        self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self.receiver.setsockopt(const.SOL_UDP, const.UDP_GRO, 1)
        if family == socket.AF_INET:
            self.receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            self.receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        self.sender = self.udp()
        self.tap, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.tap, self.host):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.reset()

    def udp(self, host: str | None = None) -> socket.socket:
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        sock.bind((host or ("127.0.0.1" if self.family == socket.AF_INET else "::1"), 0))
        sock.setblocking(False)
        return sock

    def reset(self) -> None:
        self.turn.keys[:] = 0
        self.turn.values[:] = 0
        self.turn.result[layout.RESULT_MOST] = layout.MESSAGES
        self.turn.targets[0] = self.tap.fileno(), MTU, 1, 1, 0

    def close(self) -> None:
        for sock in (self.receiver, self.sender, self.tap, self.host):
            sock.close()

    def send(self, datagrams: Sequence[bytes], sender: socket.socket | None = None) -> None:
        """Send datagrams one by one."""
        for datagram in datagrams:
            (sender or self.sender).sendto(datagram, self.receiver.getsockname())

    def send_batch(self, datagrams: Sequence[bytes], stride: int | None = None) -> None:
        """Send datagrams so that the kernel joins them to one message."""
        size = struct.pack("=H", stride or len(datagrams[0]))
        control = [(const.SOL_UDP, const.UDP_SEGMENT, size)]
        self.sender.sendmsg([b"".join(datagrams)], control, 0, self.receiver.getsockname())

    def run(self, most: int = layout.MESSAGES) -> Outcome:
        """Run turns until the socket is empty, and compare the counters with what was delivered."""
        turn = self.turn
        turn.values[:, layout.RX_ADMITTED :] = 0
        touched: set[int] = set()
        returned: list[bytes] = []
        done = 0
        while True:
            turn.run(self.receiver.fileno(), PORT, most)
            returned += self.returned()
            touched |= set(turn.touched[: turn.result[layout.RESULT_TOUCHED]].tolist())
            done += int(turn.result[layout.RESULT_DONE])
            if not turn.result[layout.RESULT_TAKEN]:
                break
        delivered = self.delivered()
        counted = turn.values[:, layout.RX_ADMITTED :].sum(axis=0).tolist()
        pairs = [count_frames(len(frame), header or b"") for header, frame in delivered]
        frames, octets = (sum(pair[part] for pair in pairs) for part in (0, 1))
        superframes = sum(header[1] != 0 for header, _ in delivered if header)
        partial = sum(header[:2] == b"\1\0" for header, _ in delivered if header)
        assert counted == [frames, frames, octets, superframes, partial]
        assert done == frames
        assert touched >= set(turn.values[:, layout.RX_ADMITTED].nonzero()[0].tolist())
        return Outcome(delivered, returned)

    def returned(self) -> list[bytes]:
        """Return the datagrams that the last turn has returned."""
        turn, datagrams = self.turn, []
        count = turn.result[layout.RESULT_RETURNED]
        for begin, octets, stride, message in turn.returned[:count].tolist():
            assert begin // layout.SLOT == message
            data = turn.data[begin : begin + octets].tobytes()
            datagrams += [data[at : at + stride] for at in range(0, max(1, octets), stride)]
        return datagrams

    def delivered(self) -> Merged:
        frames: Merged = []
        while True:
            try:
                data = self.host.recv(1 << 17)
            except BlockingIOError:
                return frames
            frames.append((data[: virtio.HEADER_LEN], data[virtio.HEADER_LEN :]))

    def learn(self, datagrams: Sequence[bytes]) -> list[bool]:
        """Add a row for each datagram that can have one. Returns: which can have one."""
        can_have_row = []
        for datagram in datagrams:
            self.send([datagram])
            self.turn.run(self.receiver.fileno(), PORT, 1)
            can_have_row.append(True)
            if self.turn.result[layout.RESULT_RETURNED]:
                can_have_row[-1] = self.install()
        self.delivered()
        return can_have_row

    def install(self, target: int = 0) -> bool:
        """Add a row for the first datagram that was returned."""
        key = self.turn.returned_keys[0]
        if key[layout.KEY_MAC] == 0:
            return False
        row = keys.bucket(key)
        while self.turn.keys[row, layout.KEY_MAC]:
            row += 1
        self.turn.keys[row], self.turn.values[row, layout.RX_TARGET] = key, target
        return True

    def forward(self, frames: Sequence[bytes], *, batch: bool = False) -> Outcome:
        """Receive frames of VNI 7, all of which can have a row and have one."""
        datagrams = [VXLAN + frame for frame in frames]
        assert all(self.learn(datagrams))
        (self.send_batch if batch else self.send)(datagrams)
        return self.run()


@pytest.fixture(scope="module")
def v4() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


@pytest.fixture
def harness(v4: Harness) -> Harness:
    v4.reset()
    return v4


def bucket_of(frame: bytes) -> int:
    """Return the bucket of the flow of a frame; -1 if it is not an Ethernet frame."""
    if len(frame) < 14:
        return -1
    return keys.flow_hash(np.frombuffer(frame, np.uint8), 0, len(frame)) % layout.BUCKETS


def by_bucket(frames: Sequence[Any], key: Any) -> dict[int, list[Any]]:
    sorted_frames = defaultdict(list)
    for frame in frames:
        sorted_frames[bucket_of(key(frame))].append(frame)
    return dict(sorted_frames)


def with_headers(merged: Merged) -> Merged:
    """Add the virtio headers of frames that were not merged."""
    sizes = SegmentSizes(0xFFFF)
    return [
        (header or virtio_header(memoryview(frame), sizes, Counters()), frame)
        for header, frame in merged
    ]


def assert_delivered(outcome: Outcome, frames: Sequence[bytes], *, uso: bool = True) -> None:
    """Assert that all frames were delivered, merged as the reference does in each bucket."""
    assert outcome.returned == []
    delivered = by_bucket(outcome.delivered, lambda pair: pair[1])
    for bucket, sent in by_bucket(frames, lambda frame: frame).items():
        assert delivered.pop(bucket) == with_headers(twins.merge(sent, uso=uso))
    assert not delivered


def numpy_merge(frames: Sequence[bytes], *, uso: bool) -> Merged:
    data = memoryview(b"".join(VXLAN + frame for frame in frames))
    merger = Merger(LEN, uso=uso)
    return [(m.header, bytes(m.frame)) for m in merger.merge(data, LEN + len(frames[0]))]


# --- random bursts against both oracles -------------------------------------------------------


def check(
    harness: Harness, frames: Sequence[bytes], *, batch: bool, uso: bool = True, same_size: bool
) -> None:
    """Receive frames in one turn, and compare each bucket with the oracles.

    `same_size` states that all frames but the last have one size, as `Merger` requires it.
    """
    harness.reset()
    harness.turn.targets[0, layout.TARGET_USO] = uso
    datagrams = [VXLAN + frame for frame in frames]
    can_have_row = harness.learn(datagrams)
    if batch:
        harness.send_batch(datagrams)
    else:
        harness.send(datagrams)
    outcome = harness.run()
    # A message whose first frame cannot be parsed may be one datagram.
    blocked = {-1, *(bucket_of(frame) for frame in frames if batch and not can_have_row[0])}
    expected: dict[int, list[bytes]] = defaultdict(list)
    returned: dict[int, list[bytes]] = defaultdict(list)
    for frame, known in zip(frames, can_have_row, strict=True):
        bucket = bucket_of(frame)
        if not known:
            blocked.add(bucket)
        (returned if bucket in blocked else expected)[bucket].append(frame)
    assert by_bucket([datagram[LEN:] for datagram in outcome.returned], bytes) == returned
    delivered = by_bucket(outcome.delivered, lambda pair: pair[1])
    assert delivered.keys() == expected.keys()
    for bucket, sent in expected.items():
        assert delivered[bucket] == with_headers(twins.merge(sent, uso=uso))
        if same_size:
            assert delivered[bucket] == with_headers(numpy_merge(sent, uso=uso))


@BASIC
@given(bursts(), st.booleans(), st.booleans())
def test_random_burst(v4: Harness, burst: twins.Burst, batch: bool, uso: bool) -> None:
    check(v4, burst.frames, batch=batch, uso=uso, same_size=True)


@BASIC
@given(corrupted(), st.booleans())
def test_random_corruption(v4: Harness, burst: twins.Burst, batch: bool) -> None:
    check(v4, burst.frames, batch=batch, same_size=True)


@BASIC
@given(st.lists(st.one_of(bursts(), corrupted()), min_size=2, max_size=4), st.randoms())
def test_random_interleaving(v4: Harness, several: list[twins.Burst], random: Any) -> None:
    queues = [list(burst.frames) for burst in several]
    frames = []
    while queues := [queue for queue in queues if queue]:
        frames.append(random.choice(queues).pop(0))
    check(v4, frames, batch=False, same_size=False)


@BASIC
@given(st.lists(GARBAGE, max_size=4), st.integers(1, 400))
def test_arbitrary_octets_are_returned(v4: Harness, several: list[bytes], stride: int) -> None:
    v4.reset()
    v4.send(several)
    assert v4.run() == ([], several)
    for data in several:
        if 0 < len(data) <= 60 * stride:
            v4.send_batch([data], stride)
            assert b"".join(v4.run().returned) == data


@BASIC
@given(bursts(), st.booleans())
def test_refused_frames_are_returned_as_they_were(
    v4: Harness, burst: twins.Burst, batch: bool
) -> None:
    v4.reset()
    datagrams = [VXLAN + frame for frame in burst.frames]
    v4.learn(datagrams)
    with open(os.devnull) as unwritable:
        v4.turn.targets[0, layout.TARGET_FD] = unwritable.fileno()
        (v4.send_batch if batch else v4.send)(datagrams)
        outcome = v4.run()
    assert outcome.delivered == []

    def frame(datagram: bytes) -> bytes:
        return datagram[LEN:]

    assert by_bucket(outcome.returned, frame) == by_bucket(datagrams, frame)


# --- what is merged ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_of_the_headers(harness: Harness, kind: str) -> None:
    """Flip each bit in front of the payload of the second of three segments."""
    frames = build(segment_run(Frame(*KINDS[kind], options=b"\1" * 12), 3, 20))
    for bit in range(8 * (len(frames[0]) - 20)):
        damaged = bytearray(frames[1])
        damaged[bit // 8] ^= 1 << bit % 8
        check(harness, [frames[0], bytes(damaged), frames[2]], batch=False, same_size=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [{0}, {1}, {2}, {1, 2}, {0, 1, 2}], ids=str)
def test_every_disturbance(harness: Harness, kind: str, numbers: set[int]) -> None:
    """Change some of three segments in each way in which a frame can differ from its flow."""
    run = segment_run(Frame(*KINDS[kind]), 3, 20)
    for change in [*DISTURBANCES, *({"flags": flags} for flags in range(256))]:
        frames = [
            replace(frame, **change) if number in numbers else frame
            for number, frame in enumerate(run)
        ]
        check(harness, build(frames), batch=False, same_size=False)


@pytest.mark.parametrize("kind", KINDS)
def test_complete_and_partial_checksums(harness: Harness, kind: str) -> None:
    """Receive three segments, each with a complete checksum, a partial one, or one that is both."""
    run = segment_run(Frame(*KINDS[kind]), 3, 20)
    variants = []
    for frame in run:
        blank = replace(frame, payload=bytes(20), partial=True)
        octets, shape = blank.build(), blank.shape
        total = loop_sum(twins.pseudo_header(octets, shape) + octets[shape.upper :])
        both = replace(blank, payload=struct.pack("!H18x", total ^ 0xFFFF))
        assert twins.finish(both.build()) == both.build()
        variants.append((frame, replace(frame, partial=True), both))
    for frames in product(*variants):
        check(harness, build(frames), batch=True, same_size=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["ip_checksum", "checksum"])
def test_only_the_right_zero_is_merged(harness: Harness, kind: str, field: str) -> None:
    """Receive a segment whose checksum is 0 in one of both representations."""
    run = zero_checksum(Frame(*KINDS[kind]), "ip" if field == "ip_checksum" else field)
    for value in (0, 0xFFFF):
        changes: dict[str, Any] = {field: value}
        frames = build([run[0], replace(run[1], **changes), run[2]])
        check(harness, frames, batch=False, same_size=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [False, True])
def test_limits_of_a_superframe(harness: Harness, kind: str, batch: bool) -> None:
    full = build(segment_run(Frame(*KINDS[kind]), 60, 1000))
    assert_delivered(harness.forward(full, batch=batch), full)
    # 65,535 octets are the limit of all, 64 segments that of UDP.
    for size, count in ((1300, 60), (10, 100)):
        frames = build(segment_run(Frame(*KINDS[kind]), count, size))
        datagrams = [VXLAN + frame for frame in frames]
        harness.send_batch(datagrams[: count // 2])
        harness.send_batch(datagrams[count // 2 :])
        assert_delivered(harness.run(), frames)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(20, 9, 9), (20, 9, 20), (9, 20, 20), (20, 20, 1, 1)])
def test_shorter_segment_is_the_last(harness: Harness, kind: str, sizes: tuple[int, ...]) -> None:
    frames, base = [], Frame(*KINDS[kind])
    for size in sizes:
        frames.append(replace(base, payload=bytes(range(size))))
        base = replace(base, ident=base.ident + 1, seq=base.seq + size)
    check(harness, build(frames), batch=False, same_size=False)


@pytest.mark.parametrize("words", range(5))
def test_tcp_header_shorter_than_its_minimum(harness: Harness, words: int) -> None:
    """Receive segments that would follow each other if their headers were as short as stated."""
    frames = []
    for number in range(3):
        seq = number * (20 + 20 - 4 * words)
        frame = Frame(payload=bytes(20), ident=number, seq=seq)
        octets = bytearray(frame.build())
        octets[frame.shape.upper + 12] = words << 4
        twins.with_checksums(octets, frame.shape, partial=False)
        frames.append(bytes(octets))
    assert harness.forward(frames) == (with_headers([(None, frame) for frame in frames]), [])


def test_no_more_segments_than_an_item_has_room_for(harness: Harness) -> None:
    frames = build(segment_run(Frame(), layout.ITEM_SEGMENTS_MAX + 2, 1))
    harness.learn([VXLAN + frames[0]])
    harness.send_batch([VXLAN + frame for frame in frames[:60]])
    harness.send_batch([VXLAN + frame for frame in frames[60:120]])
    harness.send([VXLAN + frame for frame in frames[120:]])
    sizes = [len(frame) - 54 for _, frame in harness.run().delivered]
    assert sizes == [layout.ITEM_SEGMENTS_MAX, 2]


@pytest.mark.parametrize("option", [19, 29])
@pytest.mark.parametrize("before", [b"", b"\1", b"\5\4\0\0"])
@pytest.mark.parametrize("length", [0, 1, 2, 6, 18])
def test_authenticated_segments(harness: Harness, option: int, before: bytes, length: int) -> None:
    options = (before + bytes([option, length])).ljust(16, b"\1")
    frames = build(segment_run(Frame(options=options), 3, 20))
    merged = harness.forward(frames).delivered
    assert merged == with_headers(numpy_merge(frames, uso=True))
    assert len(merged) == (3 if 2 <= length <= 16 - len(before) else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_offloads_that_the_tap_does_not_take(harness: Harness, kind: str) -> None:
    frames = build(segment_run(Frame(*KINDS[kind]), 3, 20))
    harness.turn.targets[0, layout.TARGET_TSO if "tcp" in kind else layout.TARGET_USO] = 0
    assert harness.forward(frames) == (with_headers([(None, frame) for frame in frames]), [])


@pytest.mark.parametrize("change", ["vni", "flags", "source", "ecn", "dst"])
def test_what_differs_outside_is_not_merged(harness: Harness, change: str) -> None:
    """Receive two halves of a run that differ in front of the inner IP header."""
    run = segment_run(Frame(), 4, 20)
    if change == "dst":
        run = [*run[:2], *(replace(frame, dst=b"\2\0\0\0\0\x0c") for frame in run[2:])]
    frames, headers = build(run), [VXLAN, VXLAN]
    if change == "vni":
        headers[1] = struct.pack("!II", 0x0800_0000, 8 << 8)
    elif change == "flags":
        headers[1] = struct.pack("!II", 0x8800_0007, 7 << 8)
    halves = [[headers[0] + frame for frame in frames[:2]]]
    halves.append([headers[1] + frame for frame in frames[2:]])
    other = harness.udp("127.0.0.2")
    with other:
        for _ in range(3):  # Twice, each half is returned, and gets a row.
            harness.send(halves[0])
            if change == "ecn":
                harness.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 2)
            harness.send(halves[1], other if change == "source" else None)
            harness.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
            harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
            if harness.turn.result[layout.RESULT_RETURNED]:
                harness.install()
    delivered = harness.delivered()[-2:]
    assert delivered == twins.merge(frames[:2]) + twins.merge(frames[2:])


def test_same_host_and_other_port_is_the_same_source(harness: Harness) -> None:
    frames = build(segment_run(Frame(), 4, 20))
    harness.learn([VXLAN + frames[0]])
    with harness.udp() as other:
        for number, frame in enumerate(frames):
            harness.send([VXLAN + frame], other if number % 2 else None)
        assert_delivered(harness.run(), frames)


# --- partial checksums and superframes that were never segmented ------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tags", [0, 1])
def test_partial_frame_larger_than_the_mtu(harness: Harness, kind: str, tags: int) -> None:
    base = Frame(*KINDS[kind], partial=True, tags=((0x8100, 5),) * tags)
    harness.turn.targets[0, layout.TARGET_SEGMENT_MAX] = 1500
    headers = base.head_len - 14 - 4 * tags
    fits, larger = (replace(base, payload=bytes(1500 - headers + more)).build() for more in (0, 1))
    ((header, frame),) = harness.forward([fits]).delivered
    assert header is not None
    assert (header[:6], frame) == (b"\1\0\0\0\0\0", fits)
    harness.send([VXLAN + fits, VXLAN + larger, VXLAN + fits])
    outcome = harness.run()
    assert [frame for _, frame in outcome.delivered] == [fits]
    assert outcome.returned == [VXLAN + larger, VXLAN + fits]


@pytest.mark.parametrize("padding", [b"\0\0", b"\0\1"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding(harness: Harness, kind: str, padding: bytes) -> None:
    frames = build(segment_run(Frame(*KINDS[kind], partial=True, padding=padding), 2, 20))
    assert_delivered(harness.forward(frames), frames)


@pytest.mark.parametrize("version", [4, 6])
def test_partial_checksum_of_another_length(harness: Harness, version: int) -> None:
    frames = build(segment_run(Frame(version, UDP, partial=True, udp_longer=1), 2, 20))
    assert harness.forward(frames).delivered == [(virtio.PLAIN, frame) for frame in frames]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [0, 1, 2])
def test_udp_superframe_is_returned_whole(harness: Harness, version: int, tags: int) -> None:
    """Receive a frame of which UDP_GRO reports parts, in which a guest has forged a datagram."""
    other = Frame(sport=5).build()
    harness.learn([VXLAN + other])
    stride = 200
    base = Frame(version, UDP, tags=((0x8100, 5),) * tags, payload=bytes(150))
    begin = stride - LEN - base.head_len
    forged = (VXLAN + Frame(version, UDP, payload=bytes(100)).build()).ljust(stride, b"\0")
    payload = bytes(begin) + forged * 2 + bytes(20)
    harness.learn([VXLAN + base.build(), forged])
    harness.send_batch([VXLAN + replace(base, payload=payload).build()], stride)
    harness.send([VXLAN + other])
    harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
    assert harness.turn.returned[0, :3].tolist() == [0, LEN + base.head_len + len(payload), stride]
    assert harness.turn.returned_keys[0, layout.KEY_MAC] == 0
    assert [frame for _, frame in harness.delivered()] == [other]


# --- what is returned -------------------------------------------------------------------------


def test_frames_behind_a_returned_one_of_their_flow_are_returned(harness: Harness) -> None:
    run = segment_run(Frame(), 5, 20)
    run[2] = replace(run[2], tos=4)  # A frame of another kind, without a row.
    frames, other = build(run), build(segment_run(Frame(sport=9), 5, 20))
    assert bucket_of(frames[0]) != bucket_of(other[0])
    harness.learn([VXLAN + frames[0], VXLAN + other[0]])
    mixed = [frame for pair in zip(frames, other, strict=True) for frame in pair]
    harness.send([VXLAN + frame for frame in mixed])
    outcome = harness.run()
    assert outcome.returned == [VXLAN + frame for frame in frames[2:]]
    assert sorted(outcome.delivered, key=lambda pair: len(pair[1])) == [
        *twins.merge(frames[:2]), *twins.merge(other),
    ]  # fmt: skip
    # Only in that turn.
    harness.install()
    harness.send([VXLAN + frame for frame in frames])
    assert harness.run().returned == []


def test_datagrams_of_one_message_are_returned_in_one_row(harness: Harness) -> None:
    frames = build(segment_run(Frame(), 4, 20, last=9))
    harness.send_batch([VXLAN + frame for frame in frames])
    harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
    assert harness.turn.result[layout.RESULT_RETURNED] == 1
    stride = LEN + len(frames[0])
    assert harness.turn.returned[0].tolist() == [0, 4 * stride - 11, stride, 0]


def test_target_without_descriptor(harness: Harness) -> None:
    frames = build(segment_run(Frame(), 3, 20))
    harness.learn([VXLAN + frames[0]])
    harness.turn.targets[0, layout.TARGET_FD] = -1
    harness.send([VXLAN + frame for frame in frames])
    assert harness.run() == ([], [VXLAN + frame for frame in frames])


def test_full_tap(harness: Harness) -> None:
    """Deliver until the queue of the TAP is full, and return the rest in order."""
    harness.learn([VXLAN + Frame(UDP).build()])
    frames = build([Frame(4, UDP, payload=bytes(900), ident=number) for number in range(60)])
    harness.learn([VXLAN + frames[0]])
    harness.turn.targets[0, layout.TARGET_USO] = 0
    tap, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tap, host:
        tap.setblocking(False)
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        harness.turn.targets[0, layout.TARGET_FD] = tap.fileno()
        harness.send([VXLAN + frame for frame in frames])
        harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
        done = int(harness.turn.result[layout.RESULT_DONE])
        assert 0 < done < 60
        assert harness.returned() == [VXLAN + frame for frame in frames[done:]]
        host.setblocking(False)
        received = [host.recv(2000)[virtio.HEADER_LEN :] for _ in range(done)]
    assert received == frames[:done]


def test_superframe_that_the_tap_refuses(harness: Harness) -> None:
    frames = build(segment_run(Frame(), 44, 1400))
    harness.learn([VXLAN + frames[0]])
    tap, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tap, host:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)  # EMSGSIZE
        harness.turn.targets[0, layout.TARGET_FD] = tap.fileno()
        harness.send_batch([VXLAN + frame for frame in frames])
        assert harness.run() == ([], [VXLAN + frame for frame in frames])


def test_more_rows_than_a_turn_can_touch(harness: Harness) -> None:
    macs = [b"\2\0\0\0" + struct.pack("!H", number) for number in range(300)]
    datagrams = [VXLAN + Frame(4, UDP, src=mac, sport=mac[5]).build() for mac in macs]
    assert all(harness.learn(datagrams))
    for begin in range(0, 300, 60):
        harness.send_batch(datagrams[begin : begin + 60])
    harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
    result = harness.turn.result
    assert result[layout.RESULT_TOUCHED] == layout.TOUCHED_MAX == result[layout.RESULT_DONE]
    assert sorted(harness.returned() + [VXLAN + frame for _, frame in harness.delivered()]) == (
        sorted(datagrams)
    )


# --- receives ---------------------------------------------------------------------------------


def test_messages_asked_for(harness: Harness) -> None:
    """Ask for few messages after large ones, so that a turn stays in the processor's cache."""
    full = [VXLAN + frame for frame in build(segment_run(Frame(), 44, 1400))]
    turn, fd = harness.turn, harness.receiver.fileno()
    for _ in range(8):
        harness.send_batch(full)
    taken: list[int] = []
    while not taken or taken[-1]:
        turn.run(fd, PORT, layout.MESSAGES)
        taken.append(int(turn.result[layout.RESULT_TAKEN]) // 44)
    assert taken == [8, 0]
    for _ in range(8):
        harness.send_batch(full)
    turn.run(fd, PORT, layout.MESSAGES)
    assert turn.result[layout.RESULT_TAKEN] == 4 * 44
    harness.run()
    harness.send(full[:1])
    harness.run()
    harness.send(full)
    turn.run(fd, PORT, 5)
    assert turn.result[layout.RESULT_TAKEN] == 5
    turn.run(fd, PORT, layout.MESSAGES)
    assert turn.result[layout.RESULT_TAKEN] == 39


def test_errors_of_a_receive(harness: Harness) -> None:
    harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
    assert not harness.turn.result[: layout.RESULT_MOST].any()
    closed = harness.udp()
    fd = closed.fileno()
    closed.close()
    harness.turn.run(fd, PORT, layout.MESSAGES)
    assert harness.turn.result[layout.RESULT_ERROR] == errno.EBADF
    assert harness.turn.result[layout.RESULT_TAKEN] == 0


def test_source_and_ecn_of_a_message(harness: Harness) -> None:
    harness.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8 | 1)
    frame = Frame(tos=7).build()
    harness.send([b"", VXLAN + frame])
    harness.sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
    harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
    address, port = harness.sender.getsockname()
    packed = socket.inet_aton(address)
    assert harness.turn.source(1)[:8] == struct.pack("=H", socket.AF_INET) + (
        struct.pack("!H", port) + packed
    )
    assert harness.turn.ecn[:2].tolist() == [1, 1]
    key = harness.turn.returned_keys[1].tolist()
    assert key[layout.KEY_MAC] == layout.KEY_USED | 0x0200_0000_000A
    assert key[layout.KEY_KIND] == TCP | 7 << layout.KIND_TOS | 1 << layout.KIND_OUTER_ECN
    assert key[layout.KEY_PORT :] == [
        *(PORT, 0x0800_0000, 7 << 8),
        *(socket.AF_INET | int.from_bytes(packed, "little") << 16, 0, 0),
    ]


def test_ipv6_underlay() -> None:
    harness = Harness(socket.AF_INET6)
    frames = build(segment_run(Frame(6), 4, 20))
    harness.sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 2)
    harness.send([VXLAN + frames[0]])
    harness.turn.run(harness.receiver.fileno(), PORT, layout.MESSAGES)
    _, port, *_ = harness.sender.getsockname()
    loopback = bytes(15) + b"\1"
    assert harness.turn.source(0)[:28] == (
        struct.pack("=H", socket.AF_INET6) + struct.pack("!HI", port, 0) + loopback + bytes(4)
    )
    key = harness.turn.returned_keys[0].tolist()
    assert key[layout.KEY_KIND] == TCP | 2 << layout.KIND_OUTER_ECN
    assert key[layout.KEY_SOURCE :] == [socket.AF_INET6, *struct.unpack("=qq", loopback)]
    assert key[layout.KEY_MAC] == layout.KEY_USED | layout.KEY_IPV6 | 0x0200_0000_000A
    for batch in (False, True):
        assert_delivered(harness.forward(frames, batch=batch), frames)
    harness.close()


def test_without_compilation() -> None:
    run_again(__file__)
