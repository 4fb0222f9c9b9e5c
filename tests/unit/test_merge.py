"""Merging: which adjacent frames become a superframe, and which are delivered unchanged.

A row of the table states how the frames of a burst differ from consecutive segments, and the
lengths of the runs that are merged. The merged frames are compared with the reference merge, and
the reference split must restore the input.
"""

import struct
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import twins
from tests.unit.twins import (
    ACK,
    BASIC,
    CWR,
    ECE,
    FIN,
    GARBAGE,
    GSO_ECN,
    GSO_TYPE,
    KINDS,
    PSH,
    RST,
    SYN,
    UDP,
    URG,
    Burst,
    Frame,
    Merged,
    burst_of,
    bursts,
    corrupted,
    segment_run,
)
from vtep.offload import merge as merge_module
from vtep.offload.headers import row_sums
from vtep.offload.merge import Merger
from vtep.wire import ethernet, virtio

Changes = dict[str, Any]

TCPS = ("tcp4", "tcp6")
UDPS = ("udp4", "udp6")
V4 = ("tcp4", "udp4")
V6 = ("tcp6", "udp6")
ALL = (*TCPS, *UDPS)


def merge(burst: Burst, merger: Merger | None = None, *, uso: bool = True) -> Merged:
    """Merge a burst and copy the results, since each view is valid until the next one only."""
    merger = merger or Merger(burst.prefix_len, uso=uso)
    return octets(merger.merge(memoryview(burst.data), burst.stride))


def octets(frames: Iterable[merge_module.Merged]) -> Merged:
    # A datagram that ends with its prefix may yield an empty frame, or none.
    return [(header, bytes(frame)) for header, frame, _, _ in frames if len(frame)]


def run_lengths(merged: Merged) -> list[int]:
    return [len(expand([pair])) for pair in merged]


def expand(merged: Merged) -> list[bytes]:
    """Return the frames that a receiver gets: superframes are split, others unchanged."""
    frames: list[bytes] = []
    for header, frame in merged:
        if header is None:
            frames.append(frame)
        else:
            segments = twins.split(frame, virtio.unpack(header))
            assert segments is not None
            frames += segments
    return frames


def assert_equal_frames(received: Sequence[bytes], sent: Sequence[bytes]) -> None:
    """Assert that the frames are equal, or differ only in that a partial checksum is complete."""
    assert len(received) == len(sent)
    for one, two in zip(received, sent, strict=True):
        assert one == two or one == twins.finish(two)


# --- the table --------------------------------------------------------------------------------


class Row(NamedTuple):
    """Changes to frames of a run of four, by their number, and the lengths of the merged runs."""

    name: str
    kinds: tuple[str, ...]
    changes: dict[int, Changes]
    runs: list[int]


def every(**changes: Any) -> dict[int, Changes]:
    return dict.fromkeys(range(4), changes)


def one(**changes: Any) -> dict[int, Changes]:
    return {1: changes}


def later(**changes: Any) -> dict[int, Changes]:
    return {2: changes, 3: changes}


def last(**changes: Any) -> dict[int, Changes]:
    return {3: changes}


ALL_FOUR, UNMERGED, LAST_TWO, HALVES, FIRST_THREE = [4], [1, 1, 1, 1], [1, 1, 2], [2, 2], [3, 1]

OTHER_FLOWS: dict[str, tuple[tuple[str, ...], Changes]] = {
    "M9-ttl": (ALL, {"ttl": 63}),
    "M9-tos": (ALL, {"tos": 0x04}),
    "M9-tos-high": (V4, {"tos": 0x40}),
    "M19-timestamp": (TCPS, {"options": b"\1\1\x08\x0a" + bytes([0, 0, 0, 2, 0, 0, 0, 1])}),
    "M19-order": (TCPS, {"options": b"\x08\x0a" + bytes([0, 0, 0, 1, 0, 0, 0, 1]) + b"\1\1"}),
    "M20-ce": (ALL, {"tos": 0x03}),
    "M20-ect": (ALL, {"tos": 0x02}),
    "M20-ece": (TCPS, {"flags": ACK | ECE}),
    "M23-window": (TCPS, {"window": 501}),
    "M23-ack": (TCPS, {"ack": 10}),
    "M23-urgent": (TCPS, {"urgent": 1}),
    "M24-flow-label-low": (V6, {"label": 0x00001}),
    "M24-flow-label-high": (V6, {"label": 0x80000}),
    "M31-source": (ALL, {"src": b"\2\0\0\0\0\x0c"}),
    "M31-destination": (ALL, {"dst": b"\2\0\0\0\0\x0c"}),
    "M31-address": (ALL, {"source": 2}),
    "M31-source-port": (ALL, {"sport": 40001}),
    "M31-destination-port": (ALL, {"dport": 81}),
    "M9-df": (V4, {"fragment": 0}),
    "M9-reserved": (V4, {"fragment": 0xC000}),
    "M9-traffic-class": (V6, {"tos": 0x40}),
    "M19-reserved": (TCPS, {"reserved": 1}),
    "M31-tag": (ALL, {"tags": ((0x8100, 6),)}),
    "M31-priority": (ALL, {"tags": ((0x8100, 0x2005),)}),
    "M31-tag-type": (ALL, {"tags": ((0x88A8, 5),)}),
}
"""Changes that make another flow: two such frames may be merged, but not with the others."""

NEVER_MERGED: dict[str, tuple[tuple[str, ...], Changes]] = {
    "M7-checksum": (ALL, {"bad_checksum": 1}),
    "M7-checksum-low": (ALL, {"bad_checksum": 0x80}),
    "M7-checksum-high": (ALL, {"bad_checksum": 0x100}),
    "M7-checksum-zero": (TCPS, {"checksum": 0}),
    "M7-checksum-ones": (ALL, {"checksum": 0xFFFF}),
    "M7-ip-checksum": (V4, {"bad_ip_checksum": 1}),
    "M7-ip-checksum-high": (V4, {"bad_ip_checksum": 0x100}),
    "M7-both-checksums": (V4, {"bad_ip_checksum": 1, "bad_checksum": 0xFFFE}),
    "M7-partial-ip-checksum": (V4, {"partial": True, "bad_ip_checksum": 1}),
    "M17-syn": (TCPS, {"flags": ACK | SYN}),
    "M17-rst": (TCPS, {"flags": ACK | RST}),
    "M17-urg": (TCPS, {"flags": ACK | URG}),
    "M17-no-ack": (TCPS, {"flags": 0}),
    "M17-psh-without-ack": (TCPS, {"flags": PSH}),
    "M28-no-checksum": (UDPS, {"checksum": 0}),
    "M29-udp-longer": (UDPS, {"udp_longer": 1}),
    "M29-udp-shorter": (UDPS, {"udp_longer": -1}),
    "M29-udp-longer-by-256": (UDPS, {"udp_longer": 256}),
    "M29-udp-zero": (UDPS, {"udp_longer": -108}),
    "M29-ip-longer": (ALL, {"longer": 1}),
    "M29-ip-longer-by-256": (ALL, {"longer": 256}),
}
"""Changes to frames that are never merged, not even with each other."""

PADDED = {"payload": b"p" * 99, "padding": b"\0"}

ROWS = [
    Row("M1-well-formed", ALL, {}, ALL_FOUR),
    Row("M1-tags", ALL, every(tags=((0x88A8, 5), (0x8100, 6))), ALL_FOUR),
    Row("M1-options", TCPS, every(options=b"\1" * 40), ALL_FOUR),
    Row("M1-all-fields", TCPS, every(tos=0xFF, flags=ACK | ECE, reserved=15, urgent=9), ALL_FOUR),
    Row("M1-fragment-bits", V4, every(fragment=0xC000), ALL_FOUR),
    Row("M1-no-df", V4, every(fragment=0), ALL_FOUR),
    Row("M4-ip-options", V4, every(between=b"\1\1\1\1"), UNMERGED),
    # The checksum is right with and without options of zeros.
    Row("M4-zero-ip-options", V4, every(between=bytes(4)), UNMERGED),
    Row("M6-push", TCPS, one(flags=ACK | PSH), HALVES),
    Row("M6-push-each", TCPS, every(flags=ACK | PSH), UNMERGED),
    Row("M6-push-first", TCPS, {0: {"flags": ACK | PSH}}, FIRST_THREE[::-1]),
    Row("M6-push-last", TCPS, last(flags=ACK | PSH), ALL_FOUR),
    Row("M8-out-of-order", TCPS, {0: {"seq": 101}, 1: {"seq": 1}}, LAST_TWO),
    Row("M8-backwards", TCPS, {n: {"seq": 301 - 100 * n} for n in range(4)}, UNMERGED),
    Row("M9-fragments", V4, every(fragment=0x2000), UNMERGED),
    Row("M9-more-fragments", V4, one(fragment=0x6000), LAST_TWO),
    Row("M9-fragment-offset", V4, one(fragment=0x4001), LAST_TWO),
    Row("M9-far-fragment", V4, one(fragment=0x5000), LAST_TWO),
    Row("M10-shorter-tail", ALL, last(payload=b"p" * 99), ALL_FOUR),
    Row("M10-odd-tail", ALL, last(payload=b"p" * 77), ALL_FOUR),
    Row("M10-tail-of-one", ALL, last(payload=b"p"), ALL_FOUR),
    Row("M16-pure-acks", TCPS, every(payload=b""), UNMERGED),
    Row("M16-empty-datagrams", UDPS, every(payload=b""), UNMERGED),
    Row("M16-pure-ack-last", TCPS, last(payload=b""), FIRST_THREE),
    Row("M16-empty-datagram-last", UDPS, last(payload=b""), FIRST_THREE),
    Row("M16-duplicate", TCPS, every(seq=1), UNMERGED),
    Row("M18-one-less", TCPS, later(seq=200), LAST_TWO[::-1]),
    Row("M18-one-more", TCPS, {1: {"seq": 102}, 2: {"seq": 202}}, [1, 2, 1]),
    Row("M18-far", TCPS, one(seq=101 + 0x10000), LAST_TWO),
    Row("M18-farther", TCPS, one(seq=101 + 0x1000000), LAST_TWO),
    Row("M19-none", TCPS, one(options=b""), LAST_TWO),
    Row("M21-fixed", V4, every(ident=7), UNMERGED),
    Row("M21-fixed-no-df", V4, every(ident=0, fragment=0), UNMERGED),
    Row("M21-pair-then-fixed", V4, {n: {"ident": 7 + min(n, 1)} for n in range(4)}, [2, 1, 1]),
    Row("M21-skips-one", V4, {2: {"ident": 10}, 3: {"ident": 11}}, HALVES),
    Row("M21-backwards", V4, {n: {"ident": 9 - n} for n in range(4)}, UNMERGED),
    Row("M21-high-octet", V4, one(ident=0x108), LAST_TWO),
    Row("M21-wraps", V4, {n: {"ident": (0xFFFE + n) % 2**16} for n in range(4)}, ALL_FOUR),
    Row("M22-hop-by-hop", V6, every(between=b"\0\0\1\4\0\0\0\0"), UNMERGED),
    Row("M22-destination", V6, every(between=b"\0\0\1\4\0\0\0\0", extension=60), UNMERGED),
    Row("M22-one-hop-by-hop", V6, one(between=b"\0\0\1\4\0\0\0\0"), LAST_TWO),
    Row("M22-fragment", V6, every(between=b"\0\0\0\1\0\0\0\1", extension=44), UNMERGED),
    Row("M25-wraps", TCPS, {n: {"seq": 0xFFFF_FF9C + 100 * n} for n in range(4)}, ALL_FOUR),
    Row("M25-wraps-inside", TCPS, {n: {"seq": 0xFFFF_FF00 + 100 * n} for n in range(4)}, ALL_FOUR),
    Row("M26-fin-last", TCPS, last(flags=ACK | FIN), ALL_FOUR),
    Row("M26-fin-push-last", TCPS, last(flags=ACK | FIN | PSH, payload=b"p"), ALL_FOUR),
    Row("M26-fin-inside", TCPS, one(flags=ACK | FIN), HALVES),
    Row("M27-other-version", V4, one(version=6), LAST_TWO),
    Row("M27-other-protocol", ("tcp4",), one(protocol=UDP), LAST_TWO),
    Row("M28-one-after", UDPS, last(checksum=0), FIRST_THREE),
    Row("M30-padding", ALL, every(**PADDED), UNMERGED),
    Row("M30-padding-last", ALL, last(payload=b"p" * 9, padding=bytes(6)), FIRST_THREE),
    Row("M30-padding-other-than-zeros", ALL, last(payload=b"p" * 9, padding=b"leak"), FIRST_THREE),
    Row("M30-one-padded", ALL, one(**PADDED), LAST_TWO),
    Row("cwr-first", TCPS, {0: {"flags": ACK | CWR}}, ALL_FOUR),
    Row("cwr-first-push-last", TCPS, {0: {"flags": ACK | CWR}, 3: {"flags": ACK | PSH}}, ALL_FOUR),
    Row("cwr-inside", TCPS, {2: {"flags": ACK | CWR}}, HALVES),
    Row("cwr-each", TCPS, every(flags=ACK | CWR), UNMERGED),
    Row("cwr-and-push", TCPS, {2: {"flags": ACK | CWR | PSH}}, [2, 1, 1]),
    Row("partial-each", ALL, every(partial=True), ALL_FOUR),
    Row("partial-one", ALL, one(partial=True), LAST_TWO),
    Row("partial-last", ALL, last(partial=True, payload=b"p" * 9), FIRST_THREE),
    Row("partial-and-syn", TCPS, one(partial=True, flags=ACK | SYN), LAST_TWO),
    Row("partial-and-udp-longer", UDPS, one(partial=True, udp_longer=1), LAST_TWO),
    *(
        row
        for name, (kinds, changes) in OTHER_FLOWS.items()
        for row in (
            Row(f"{name}-one", kinds, one(**changes), LAST_TWO),
            Row(f"{name}-later", kinds, later(**changes), HALVES),
            Row(f"{name}-each", kinds, every(**changes), ALL_FOUR),
        )
    ),
    *(
        row
        for name, (kinds, changes) in NEVER_MERGED.items()
        for row in (
            Row(f"{name}-first", kinds, {0: changes}, FIRST_THREE[::-1]),
            Row(f"{name}-one", kinds, one(**changes), LAST_TWO),
            Row(f"{name}-last", kinds, last(**changes), FIRST_THREE),
            Row(f"{name}-each", kinds, every(**changes), UNMERGED),
        )
        # A first frame shorter than its IP length prevents any merge.
        if not (row.name.startswith("M29-ip") and row.name.endswith("first"))
    ),
]
"""Every frame has a VLAN tag and a timestamp unless its row states otherwise."""


def burst_for(row: Row, kind: str) -> Burst:
    options = b"\1\1\x08\x0a" + bytes([0, 0, 0, 1, 0, 0, 0, 1])
    base = Frame(*KINDS[kind], tags=((0x8100, 5),), options=options)
    frames = [replace(f, **row.changes.get(n, {})) for n, f in enumerate(segment_run(base, 4, 100))]
    built = [frame.build() for frame in frames]
    # Frames before the last are padded or truncated to the length of the first.
    length = len(built[0])
    return burst_of([*(f[:length].ljust(length, b"\0") for f in built[:-1]), built[-1][:length]])


def test_row(subtests: pytest.Subtests) -> None:
    for row in ROWS:
        for kind in row.kinds:
            with subtests.test(row.name, kind=kind):
                burst = burst_for(row, kind)
                merged = merge(burst)
                assert run_lengths(merged) == row.runs
                assert [header is None for header, _ in merged] == [
                    length == 1 for length in row.runs
                ]
                assert merged == twins.merge(burst.frames)
                assert_equal_frames(expand(merged), burst.frames)


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


# --- superframes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", [ACK, ACK | CWR, ACK | ECE])
def test_virtio_header(kind: str, flags: int) -> None:
    frames = segment_run(Frame(*KINDS[kind], flags=flags), 2, 100, last=9)
    frames[1] = replace(frames[1], flags=flags & ~CWR)
    ((header, frame),) = merge(burst_of(frames))
    ecn = GSO_ECN if flags & CWR and frames[0].protocol == twins.TCP else 0
    at, field = {"tcp4": (34, 16), "tcp6": (54, 16), "udp4": (34, 6), "udp6": (54, 6)}[kind]
    gso_type = GSO_TYPE[KINDS[kind]] | ecn
    expected = (1, gso_type, frames[0].head_len, 100, at, field)
    assert header == struct.pack("=BBHHHH", *expected)
    superframe = replace(
        frames[0], payload=frames[0].payload + frames[1].payload, flags=flags, partial=True
    )
    assert frame == superframe.build()


@pytest.mark.parametrize("kind", UDPS)
def test_udp_without_uso(kind: str) -> None:
    # M2
    burst = burst_of(segment_run(Frame(*KINDS[kind]), 4, 100))
    assert merge(burst, uso=False) == [(None, frame) for frame in burst.frames]


@pytest.mark.parametrize("kind", TCPS)
def test_tcp_without_uso(kind: str) -> None:
    burst = burst_of(segment_run(Frame(*KINDS[kind]), 4, 100))
    assert run_lengths(merge(burst, uso=False)) == [4]


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_headers(kind: str) -> None:
    # M3: every length of a truncated header, with the same frame in every datagram.
    headers = Frame(*KINDS[kind], tags=((0x8100, 5),), payload=b"").build()
    for length in range(1, len(headers) + 1):
        burst = burst_of([headers[:length]] * 3)
        assert merge(burst) == [(None, headers[:length])] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_last_datagram(kind: str) -> None:
    # M3: the last datagram has every shorter length, also less than its prefix.
    burst = burst_of(segment_run(Frame(*KINDS[kind]), 3, 20))
    merger = Merger(8, uso=True)
    for cut in range(1, burst.stride):
        data = memoryview(burst.data)[:-cut]
        frames = [*burst.frames[:2], burst.frames[2][:-cut]][: 2 + (burst.stride - cut > 8)]
        merged = octets(merger.merge(data, burst.stride))
        assert merged == twins.merge(frames)
        assert run_lengths(merged) == [2, 1][: len(frames) - 1]


@pytest.mark.parametrize("protocol", [1, 47, 58, 132])
@pytest.mark.parametrize("version", [4, 6])
def test_other_protocols(version: int, protocol: int) -> None:
    # M4
    frames = [bytearray(frame) for frame in twins.build(segment_run(Frame(version), 3, 100))]
    for frame in frames:
        frame[23 if version == 4 else 20] = protocol
    burst = burst_of([bytes(frame) for frame in frames])
    assert merge(burst) == [(None, frame) for frame in burst.frames]


def test_interleaved_flows() -> None:
    # M5: only adjacent frames are merged, in the order of arrival.
    flows = {name: segment_run(Frame(sport=ord(name)), 3, 100) for name in "abc"}
    order = ["a0", "b0", "b1", "a1", "a2", "c0", "b2", "c1", "c2"]
    burst = burst_of([flows[name[0]][int(name[1])] for name in order])
    merged = merge(burst)
    assert run_lengths(merged) == [1, 2, 2, 1, 1, 2]
    assert expand(merged) == burst.frames


def test_flows_of_four_kinds() -> None:
    # M5: frames of equal size with different headers.
    sizes = {"tcp4": 68, "tcp6": 48, "udp4": 80, "udp6": 60}
    for first in KINDS:
        frames = [
            frame
            for kind in sorted(KINDS, key=lambda kind: kind != first)
            for frame in segment_run(Frame(*KINDS[kind]), 3, sizes[kind])
        ]
        burst = burst_of(frames)
        merged = merge(burst)
        assert run_lengths(merged) == [3, 3, 3, 3]
        assert expand(merged) == burst.frames
        order = sorted(KINDS, key=lambda kind: kind != first)
        without = [length for kind in order for length in ([3] if kind in TCPS else [1, 1, 1])]
        assert run_lengths(merge(burst, uso=False)) == without


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("over", "runs"), [(0, [7]), (1, [6, 1])])
def test_longest_superframe(kind: str, over: int, runs: list[int]) -> None:
    # M11, M12: a frame of 65,535 octets, and one octet more.
    base = Frame(*KINDS[kind])
    last = 0xFFFF - base.head_len - 6 * 10_000 + over
    burst = burst_of(segment_run(base, 7, 10_000, last=last))
    merged = merge(burst)
    assert run_lengths(merged) == runs
    assert len(merged[0][1]) == (0xFFFF if not over else base.head_len + 60_000)
    assert merged == twins.merge(burst.frames)
    assert expand(merged) == burst.frames


@pytest.mark.parametrize("kind", KINDS)
def test_several_superframes(kind: str) -> None:
    # M11: a long run becomes several superframes.
    base = Frame(*KINDS[kind])
    burst = burst_of(segment_run(base, 99, 1448, last=5))
    merged = merge(burst)
    assert run_lengths(merged) == [45, 45, 9]
    assert expand(merged) == burst.frames


@pytest.mark.parametrize("last", [None, 5])
@pytest.mark.parametrize(("kind", "runs"), [("tcp", [130]), ("udp", [64, 64, 2])])
@pytest.mark.parametrize("version", "46")
def test_more_segments_than_the_kernel_accepts(
    version: str, kind: str, runs: list[int], last: int | None
) -> None:
    burst = burst_of(segment_run(Frame(*KINDS[kind + version]), 130, 100, last=last))
    merged = merge(burst)
    assert run_lengths(merged) == runs
    assert expand(merged) == burst.frames


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "differ",
    [
        pytest.param(lambda _: {"bad_checksum": 1}, id="all"),
        pytest.param(lambda number: {"bad_checksum": int(number % 4 == 3)}, id="some"),
        pytest.param(lambda number: {"ttl": 64 - number % 2}, id="alternating"),
        pytest.param(lambda number: {"ttl": 64 - number // 2 % 2}, id="alternating-pairs"),
        pytest.param(
            lambda number: {"partial": True, "ttl": number % 60}, id="partial-and-different"
        ),
    ],
)
def test_cost_of_frames_that_do_not_merge_is_bounded(
    monkeypatch: pytest.MonkeyPatch, kind: str, differ: Callable[[int], Changes]
) -> None:
    """Count the summed rows: quadratic cost would let one guest delay all others."""
    summed = 0

    def counting(data: memoryview, rows: int, stride: int, size: int, last: int) -> Any:
        nonlocal summed
        summed += rows
        return row_sums(data, rows, stride, size, last)

    monkeypatch.setattr("vtep.offload.merge.row_sums", counting)
    frames = [
        replace(frame, **differ(number))
        for number, frame in enumerate(segment_run(Frame(*KINDS[kind]), 400, 20))
    ]
    burst = burst_of(frames)
    assert merge(burst) == twins.merge(burst.frames)
    assert summed < 9 * len(frames)


def test_bad_first_frame_gets_no_header() -> None:
    # M13: also if the burst before has left a header in the buffer.
    merger = Merger(8, uso=True)
    frames = segment_run(Frame(), 4, 100)
    assert run_lengths(merge(burst_of(frames), merger)) == [4]
    frames[0] = replace(frames[0], bad_checksum=1)
    merged = merge(burst_of(frames), merger)
    assert merged[0] == (None, frames[0].build())
    assert run_lengths(merged) == [1, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_merge_is_repeatable(kind: str) -> None:
    # M14
    burst = burst_of(segment_run(Frame(*KINDS[kind]), 4, 99))
    merger = Merger(8, uso=True)
    assert merge(burst, merger) == merge(burst, merger) == merge(burst)


def test_more_shapes_than_the_cache_holds() -> None:
    merger = Merger(8, uso=True)
    shapes = [
        Frame(*kind, tags=((0x8100, 5),) * tags, options=bytes(4 * words))
        for kind in KINDS.values()
        for words in range(11)
        for tags in range(3)
    ]
    for base in [*shapes, *shapes[:3]]:
        assert run_lengths(merge(burst_of(segment_run(base, 3, 20)), merger)) == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_untag_a_superframe(kind: str) -> None:
    # With --inner-vlan strip the result equals a merge of frames without tags.
    tagged = burst_of(segment_run(Frame(*KINDS[kind], tags=((0x88A8, 5), (0x8100, 6))), 4, 99))
    ((header, frame, _, _),) = Merger(8, uso=True).merge(memoryview(tagged.data), tagged.stride)
    assert header is not None
    left = ethernet.untag(frame)
    ((plain_header, plain),) = merge(burst_of(segment_run(Frame(*KINDS[kind]), 4, 99)))
    assert bytes(left) == plain
    assert virtio.shift(header, len(left) - len(frame)) == plain_header
    assert virtio.shift(header, 0) == header


def test_memory_is_bounded() -> None:
    merger = Merger(8, uso=True)
    several = [
        burst_of(segment_run(Frame(tags=((0x8100, 5),) * tags), 2, 20))
        for tags in range(300, 700, 2)
    ]

    def use(bursts: Sequence[Burst]) -> int:
        for burst in bursts:
            merge(burst, merger)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = use(several[:70])
        assert use(several[70:]) - before < 150_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_checksums_stay_wrong(kind: str) -> None:
    # Each single-bit error of a checksum prevents the merge.
    frames = segment_run(Frame(*KINDS[kind]), 3, 20)
    right = burst_of(frames)
    for bit in range(16):
        frames[1] = replace(frames[1], bad_checksum=1 << bit)
        burst = burst_of(frames)
        assert merge(burst) == [(None, frame) for frame in burst.frames]
    assert run_lengths(merge(right)) == [3]


def zero_checksum(base: Frame, field: str) -> list[Frame]:
    """Build a run whose second frame has a checksum of 0, or of 0xFFFF in UDP."""
    frames = segment_run(base, 3, 20)
    frame = frames[1]
    at = (
        frame.shape.ip + 10 if field == "ip" else frame.shape.upper + 16 - 10 * (frame.protocol > 6)
    )
    (value,) = struct.unpack_from("!H", replace(frame, payload=bytes(20)).build(), at)
    if field != "ip":
        frames[1] = replace(frame, payload=struct.pack("!H", value) + bytes(18))
        return frames
    return [replace(f, ident=(f.ident + value) % 0xFFFF) for f in frames]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["ip", "transport"])
def test_only_one_representation_of_zero_merges(kind: str, field: str) -> None:
    # 0 and 0xFFFF are the same number in one's complement, but a split writes only one of them.
    base = Frame(*KINDS[kind])
    if field == "ip" and base.version == 6:
        base = replace(base, label=1)  # An IPv6 header has no checksum.
        assert run_lengths(merge(burst_of(segment_run(base, 3, 20)))) == [3]
        return
    frames = zero_checksum(base, field)
    burst = burst_of(frames)
    assert run_lengths(merge(burst)) == [3]
    assert expand(merge(burst)) == burst.frames
    zero = field == "ip" or base.protocol == twins.TCP
    name = "ip_checksum" if field == "ip" else "checksum"
    changes: Changes = {name: 0 if zero else 0xFFFF}
    assert replace(frames[1], **changes).build() == frames[1].build()
    other: Changes = {name: 0xFFFF if zero else 0}
    frames[1] = replace(frames[1], **other)
    assert run_lengths(merge(burst_of(frames))) == [1, 1, 1]


@pytest.mark.parametrize("version", [4, 6])
def test_views(version: int) -> None:
    """Overwrite each result: it must not affect the ones after it."""
    frames = segment_run(Frame(version), 4, 100)
    frames[1] = replace(frames[1], flags=ACK | PSH)
    burst = burst_of([*frames, replace(frames[0], flags=ACK | RST)])
    data = bytearray(burst.data)
    results = Merger(8, uso=True).merge(memoryview(data), burst.stride)
    merged = []
    for header, frame, datagram, _ in results:
        merged.append((header, bytes(frame)))
        datagram[:] = b"\xee" * len(datagram)
        frame[:] = b"\xee" * len(frame)
    assert merged == twins.merge(burst.frames)
    assert data.endswith(b"\xee" * len(burst.frames[-1]))


def test_empty_burst() -> None:
    for stride in (1, 8, 1500):
        assert not list(Merger(8, uso=True).merge(memoryview(b""), stride))


# --- random bursts ----------------------------------------------------------------------------


@BASIC
@given(bursts(), st.booleans())
def test_random_burst(burst: Burst, uso: bool) -> None:
    merged = merge(burst, uso=uso)
    frames = [frame for frame in burst.frames if frame]
    assert merged == twins.merge(frames, uso=uso)
    assert_equal_frames(expand(merged), frames)


@BASIC
@given(corrupted())
def test_random_corruption(burst: Burst) -> None:
    merged = merge(burst)
    assert merged == twins.merge(burst.frames)
    assert_equal_frames(expand(merged), burst.frames)


@BASIC
@given(st.lists(st.one_of(bursts(), corrupted()), min_size=2, max_size=4))
def test_merger_is_reusable(several: list[Burst]) -> None:
    merger = Merger(8, uso=True)
    for burst in [*several, *several]:
        merged = merge(
            burst._replace(prefix_len=8, stride=burst.stride - burst.prefix_len + 8), merger
        )
        frames = [frame for frame in burst.frames if frame]
        assert merged == twins.merge(frames)


@BASIC
@given(GARBAGE, st.integers(1, 400), st.sampled_from([0, 8, 50]))
def test_arbitrary_octets(data: bytes, stride: int, prefix_len: int) -> None:
    merged = octets(Merger(prefix_len, uso=True).merge(memoryview(data), stride))
    datagrams = [data[at : at + stride] for at in range(0, len(data), stride)]
    frames = [datagram[prefix_len:] for datagram in datagrams if datagram[prefix_len:]]
    assert merged == twins.merge(frames)
    assert_equal_frames(expand(merged), frames)


@pytest.mark.parametrize("tags", [16_390, 17_000])
@pytest.mark.parametrize("kind", KINDS)
def test_more_tags_than_a_virtio_header_can_describe(kind: str, tags: int) -> None:
    burst = burst_of(segment_run(Frame(*KINDS[kind], tags=((0x8100, 5),) * tags), 3, 20))
    merged = merge(burst, Merger(8, uso=True))
    assert merged == [(None, frame) for frame in burst.frames]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("octet", [0, 3, 7])
def test_different_prefixes_are_not_merged(kind: str, octet: int) -> None:
    # M31: the switch checks the flags and VNI of the prefix once for a merged run.
    burst = burst_of(segment_run(Frame(*KINDS[kind]), 6, 100))
    data = bytearray(burst.data)
    for number in (3, 4, 5):
        data[number * burst.stride + octet] ^= 1
    merged = list(Merger(8, uso=True).merge(memoryview(data), burst.stride))
    assert [entry.datagrams for entry in merged] == [3, 3]
    firsts = [bytes(data[at * burst.stride :][: burst.stride]) for at in (0, 3)]
    assert [bytes(entry.datagram) for entry in merged] == firsts
