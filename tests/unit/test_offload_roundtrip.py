"""Split and merge are inverse, and merging is lossless.

The merger reads what the splitter wrote, in the layout that it has on the wire.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
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
    RST,
    Burst,
    Frame,
    burst_of,
    bursts,
    corrupted,
    segment_run,
)
from vtep.offload.merge import Merger
from vtep.offload.split import Splitter
from vtep.wire import virtio

PREFIX = bytes.fromhex("0800000000000100")


class RoundTrip:
    """A splitter and a merger, whose buffers contain stale octets."""

    def __init__(self) -> None:
        self.splitter = Splitter(PREFIX)
        self.merger = Merger(len(PREFIX), uso=True)

    def split(self, frame: bytes, header: bytes) -> tuple[memoryview, int]:
        self.splitter.out[:] = 0xA5
        octets, stride = self.splitter.split(memoryview(frame), virtio.unpack(header))
        return self.splitter.out.data[:octets], stride

    def segments(self, frame: bytes, header: bytes) -> list[bytes]:
        data, stride = self.split(frame, header)
        return [bytes(data[at + 8 : at + stride]) for at in range(0, len(data), stride)]

    def merge(self, data: bytes | memoryview, stride: int) -> twins.Merged:
        merged = self.merger.merge(memoryview(data), stride)
        return [(header, bytes(frame)) for header, frame, _, _ in merged if len(frame)]

    def restore(self, burst: Burst) -> list[bytes]:
        """Merge a burst and split the result.

        Returns: the frames that a receiver gets.
        """
        frames: list[bytes] = []
        for header, frame in self.merge(burst.data, burst.stride):
            frames += [frame] if header is None else self.segments(frame, header)
        return frames


def superframe(base: Frame, payload: bytes, size: int) -> tuple[bytes, bytes]:
    """Build a superframe as the kernel sends it to a TAP device.

    Returns: the superframe and its virtio header.
    """
    frame = replace(base, payload=payload, partial=True)
    gso_type = GSO_TYPE[base.version, base.protocol]
    if base.protocol == twins.TCP and base.flags & CWR:
        gso_type |= GSO_ECN
    offset = CHECKSUM_AT[base.protocol]
    header = virtio.pack_gso(gso_type, base.head_len, size, frame.shape.upper, offset)
    return frame.build(), header


def with_prefix(burst: Burst, prefix_len: int) -> Burst:
    return burst._replace(
        prefix_len=prefix_len, stride=burst.stride + prefix_len - burst.prefix_len
    )


# --- merge(split(superframe)) -----------------------------------------------------------------


def test_superframe_round_trip(subtests: pytest.Subtests) -> None:
    for kind, size in product(KINDS, (1, 2, 7, 100, 1447, 1448, 8948, 21_000)):
        for tail in ("full", "short", "one octet"):
            with subtests.test(kind=kind, size=size, tail=tail):
                base = Frame(
                    *KINDS[kind], ident=0xFFFF, seq=0xFFFF_FFF0, flags=ACK | CWR | ECE | FIN | PSH
                )
                count = min(44, 50_000 // size)
                octets = count * size + {"full": 0, "short": size // 2, "one octet": 1}[tail]
                frame, header = superframe(base, segment_run(base, 1, octets)[0].payload, size)
                assert RoundTrip().merge(*RoundTrip().split(frame, header)) == [(header, frame)]


@settings(BASIC, max_examples=200)
@given(twins.flows(), st.integers(1, 200), st.integers(2, 12), st.data())
def test_random_superframe_round_trip(
    base: Frame, size: int, count: int, data: st.DataObject
) -> None:
    base = replace(base, flags=base.flags | data.draw(st.sampled_from([0, FIN, PSH, FIN | PSH])))
    octets = size * count - data.draw(st.integers(0, size - 1))
    frame, header = superframe(base, segment_run(base, 1, octets)[0].payload, size)
    trip = RoundTrip()
    assert trip.merge(*trip.split(frame, header)) == [(header, frame)]


@pytest.mark.parametrize("flags", [ACK | RST, ACK | CWR | RST, 0])
def test_segments_that_are_not_merged(flags: int) -> None:
    # A sender may write these segments, but a receiver must not merge them.
    base = Frame(flags=flags)
    frame, header = superframe(base, bytes(500), 100)
    trip = RoundTrip()
    merged = trip.merge(*trip.split(frame, header))
    assert merged == [(None, segment) for segment in trip.segments(frame, header)]
    assert len(merged) == 5


@BASIC
@given(st.lists(st.tuples(twins.flows(), st.integers(2, 99), st.integers(2, 5)), max_size=3))
def test_reuse(flows: Sequence[tuple[Frame, int, int]]) -> None:
    trip = RoundTrip()
    for base, size, count in [*flows, *flows]:
        frame, header = superframe(base, segment_run(base, 1, size * count - 1)[0].payload, size)
        assert trip.merge(*trip.split(frame, header)) == [(header, frame)]


# --- split(merge(burst)) ----------------------------------------------------------------------


def test_run_round_trip(subtests: pytest.Subtests) -> None:
    for kind, size in product(KINDS, (1, 2, 7, 100, 1447, 1448, 8948)):
        with subtests.test(kind=kind, size=size):
            for last in {1, size // 2 or 1, size}:
                burst = burst_of(segment_run(Frame(*KINDS[kind], ident=0xFFFE), 7, size, last=last))
                trip = RoundTrip()
                assert len(trip.merge(burst.data, burst.stride)) == 1
                assert trip.restore(burst) == burst.frames


@settings(BASIC, max_examples=200)
@given(bursts(disturbed=False))
def test_random_run_is_one_superframe(burst: Burst) -> None:
    """The frames are restored with complete checksums."""
    burst = with_prefix(burst, len(PREFIX))
    trip = RoundTrip()
    ((header, _),) = trip.merge(burst.data, burst.stride)
    assert header is not None
    assert trip.restore(burst) == [twins.finish(frame) for frame in burst.frames]


@settings(BASIC, max_examples=400)
@given(st.one_of(bursts(), corrupted()))
def test_merging_is_lossless(burst: Burst) -> None:
    """Every frame is restored once and in order; only a partial checksum may become complete."""
    burst = with_prefix(burst, len(PREFIX))
    sent = [frame for frame in burst.frames if frame]
    restored = RoundTrip().restore(burst)
    assert len(restored) == len(sent)
    for one, two in zip(restored, sent, strict=True):
        shape = twins.dissect(two)
        partial = shape is not None and twins.is_partial(two, shape)
        assert one == two or (partial and one == twins.finish(two))


@settings(BASIC, max_examples=200)
@given(bursts())
def test_merging_again_has_the_same_result(burst: Burst) -> None:
    """The segments of a merged superframe merge to the same superframe."""
    burst = with_prefix(burst, len(PREFIX))
    trip = RoundTrip()
    for header, frame in trip.merge(burst.data, burst.stride):
        if header is not None:
            assert trip.merge(*trip.split(frame, header)) == [(header, frame)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit(kind: str) -> None:
    """Each single flipped bit keeps its frame from being merged, and all frames are restored."""
    frames = twins.build(segment_run(Frame(*KINDS[kind]), 3, 10))
    trip = RoundTrip()
    for number in range(len(frames)):
        for bit in range(8 * len(frames[0])):
            flipped = bytearray(frames[number])
            flipped[bit // 8] ^= 1 << bit % 8
            burst = burst_of([*frames[:number], bytes(flipped), *frames[number + 1 :]])
            merged = trip.merge(burst.data, burst.stride)
            assert merged == twins.merge(burst.frames)
            assert trip.restore(burst) == burst.frames
            assert (None, bytes(flipped)) in merged
