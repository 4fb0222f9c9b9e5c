"""Work that a sender left to hardware."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import tcp_frame
from vtep.counters import Counters
from vtep.offload.partial import SegmentSizes, virtio_header
from vtep.wire import virtio

MTU = 1450

# --- partial checksums and superframes as received ------------------------------------------


@pytest.mark.parametrize("payload", [10, 1396])
def test_virtio_header_of_a_plain_frame(benchmark: BenchmarkFixture, payload: int) -> None:
    frame = memoryview(bytearray(tcp_frame(payload)))
    assert benchmark(virtio_header, frame, SegmentSizes(MTU), Counters()) == virtio.PLAIN


def test_virtio_header_of_a_partial_frame(benchmark: BenchmarkFixture) -> None:
    frame = memoryview(bytearray(tcp_frame(1396, partial=True)))
    assert benchmark(virtio_header, frame, SegmentSizes(MTU), Counters()) == (
        virtio.needs_checksum(34, 16)
    )


def test_virtio_header_of_a_superframe(benchmark: BenchmarkFixture) -> None:
    frame = memoryview(bytearray(tcp_frame(60_000, partial=True)))
    assert benchmark(virtio_header, frame, SegmentSizes(MTU), Counters()) == (
        virtio.superframe(virtio.GSO_TCPV4, 54, MTU - 40, 34, 16)
    )


# --- splitting: a superframe from the TAP becomes segments for the underlay -----------------
# (benchmarks of vtep.offload.split belong here)

# --- merging: segments from the underlay become a superframe for the TAP --------------------
# (benchmarks of vtep.offload.merge belong here)
