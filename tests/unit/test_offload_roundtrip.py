"""split and merge undo each other, and nobody can tell that anything was ever merged.

Both ends are the real ones here: what the splitter writes is what the merger is given, in the
layout that it has on the wire.
"""

from collections.abc import Sequence
from dataclasses import replace

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
    train,
)
from vtep.offload.merge import Merger
from vtep.offload.split import Splitter
from vtep.wire import virtio

PREFIX = bytes.fromhex("0800000000000100")


class Path:
    """Both directions of a VTEP; nothing in their buffers is clean."""

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

    def seen(self, burst: Burst) -> list[bytes]:
        """The frames of a burst after they were merged, and split again."""
        frames: list[bytes] = []
        for header, frame in self.merge(burst.data, burst.stride):
            frames += [frame] if header is None else self.segments(frame, header)
        return frames


def superframe(base: Frame, payload: bytes, size: int) -> tuple[bytes, bytes]:
    """What the kernel gives a TAP device, and its virtio header."""
    whole = replace(base, payload=payload, partial=True)
    gso_type = GSO_TYPE[base.version, base.protocol]
    if base.protocol == twins.TCP and base.flags & CWR:
        gso_type |= GSO_ECN
    offset = CHECKSUM_AT[base.protocol]
    header = virtio.pack_gso(gso_type, base.head_len, size, whole.shape.upper, offset)
    return whole.build(), header


def with_prefix(burst: Burst, prefix_len: int) -> Burst:
    return burst._replace(
        prefix_len=prefix_len, stride=burst.stride + prefix_len - burst.prefix_len
    )


# --- merge(split(s)) --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 7, 100, 1447, 1448, 8948, 21_000])
@pytest.mark.parametrize("tail", ["whole", "short", "one octet"])
def test_superframe_comes_back(kind: str, size: int, tail: str) -> None:
    base = Frame(*KINDS[kind], ident=0xFFFF, seq=0xFFFF_FFF0, flags=ACK | CWR | ECE | FIN | PSH)
    count = min(44, 50_000 // size)
    octets = count * size + {"whole": 0, "short": size // 2, "one octet": 1}[tail]
    whole = superframe(base, train(base, 1, octets)[0].payload, size)
    assert Path().merge(*Path().split(*whole)) == [(whole[1], whole[0])]


@settings(BASIC, max_examples=200)
@given(twins.flows(), st.integers(1, 200), st.integers(2, 12), st.data())
def test_any_superframe_comes_back(base: Frame, size: int, count: int, data: st.DataObject) -> None:
    base = replace(base, flags=base.flags | data.draw(st.sampled_from([0, FIN, PSH, FIN | PSH])))
    octets = size * count - data.draw(st.integers(0, size - 1))
    whole = superframe(base, train(base, 1, octets)[0].payload, size)
    path = Path()
    assert path.merge(*path.split(*whole)) == [(whole[1], whole[0])]


@pytest.mark.parametrize("flags", [ACK | RST, ACK | CWR | RST, 0])
def test_superframe_that_does_not_come_back(flags: int) -> None:
    """Its segments are what a sender may write, but none that a receiver may merge."""
    base = Frame(flags=flags)
    frame, header = superframe(base, bytes(500), 100)
    path = Path()
    merged = path.merge(*path.split(frame, header))
    assert merged == [(None, segment) for segment in path.segments(frame, header)]
    assert len(merged) == 5


@BASIC
@given(st.lists(st.tuples(twins.flows(), st.integers(2, 99), st.integers(2, 5)), max_size=3))
def test_superframes_of_one_path(flows: Sequence[tuple[Frame, int, int]]) -> None:
    path = Path()
    for base, size, count in [*flows, *flows]:
        frame, header = superframe(base, train(base, 1, size * count - 1)[0].payload, size)
        assert path.merge(*path.split(frame, header)) == [(header, frame)]


# --- split(merge(x)) --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 7, 100, 1447, 1448, 8948])
def test_train_comes_back(kind: str, size: int) -> None:
    for last in {1, size // 2 or 1, size}:
        burst = burst_of(train(Frame(*KINDS[kind], ident=0xFFFE), 7, size, last=last))
        path = Path()
        assert len(path.merge(burst.data, burst.stride)) == 1
        assert path.seen(burst) == burst.frames


@settings(BASIC, max_examples=200)
@given(bursts(disturbed=False))
def test_any_train_is_one_superframe(burst: Burst) -> None:
    """And comes back with its checksums finished, if they were not."""
    burst = with_prefix(burst, len(PREFIX))
    path = Path()
    ((header, _),) = path.merge(burst.data, burst.stride)
    assert header is not None
    assert path.seen(burst) == [twins.finish(frame) for frame in burst.frames]


@settings(BASIC, max_examples=400)
@given(st.one_of(bursts(), corrupted()))
def test_nobody_can_tell(burst: Burst) -> None:
    """Every frame comes out once, in order and as it was; but for checksums left unfinished."""
    burst = with_prefix(burst, len(PREFIX))
    sent = [frame for frame in burst.frames if frame]
    seen = Path().seen(burst)
    assert len(seen) == len(sent)
    for one, two in zip(seen, sent, strict=True):
        shape = twins.dissect(two)
        unfinished = shape is not None and twins.is_partial(two, shape)
        assert one == two or (unfinished and one == twins.finish(two))


@settings(BASIC, max_examples=200)
@given(bursts())
def test_merging_is_settled(burst: Burst) -> None:
    """What a merged burst is split to merges to the same again."""
    burst = with_prefix(burst, len(PREFIX))
    path = Path()
    for header, frame in path.merge(burst.data, burst.stride):
        if header is not None:
            assert path.merge(*path.split(frame, header)) == [(header, frame)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit(kind: str) -> None:
    """Each bit of a frame, turned alone, keeps it from being merged, and nothing else changes."""
    frames = twins.build(train(Frame(*KINDS[kind]), 3, 10))
    path = Path()
    for number in range(len(frames)):
        for bit in range(8 * len(frames[0])):
            turned = bytearray(frames[number])
            turned[bit // 8] ^= 1 << bit % 8
            burst = burst_of([*frames[:number], bytes(turned), *frames[number + 1 :]])
            merged = path.merge(burst.data, burst.stride)
            assert merged == twins.merge(burst.frames)
            assert path.seen(burst) == burst.frames
            assert (None, bytes(turned)) in merged
