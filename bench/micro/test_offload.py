"""Offloads: partial checksums and superframes."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import tcp_frame
from vtep.counters import Counters
from vtep.offload.merge import Merger
from vtep.offload.partial import SegmentSizes, virtio_header
from vtep.offload.split import Splitter
from vtep.wire import virtio, vxlan

MTU = 1450

# --- partial checksums and superframes as received ------------------------------------------


@pytest.mark.parametrize("payload", [10, 1396])
def test_virtio_header_of_a_plain_frame(benchmark: BenchmarkFixture, payload: int) -> None:
    frame = memoryview(bytearray(tcp_frame(payload)))
    assert benchmark(virtio_header, frame, SegmentSizes(MTU), Counters()) == virtio.PLAIN


def test_virtio_header_of_a_partial_frame(benchmark: BenchmarkFixture) -> None:
    frame = memoryview(bytearray(tcp_frame(1396, partial=True)))
    assert benchmark(virtio_header, frame, SegmentSizes(MTU), Counters()) == (
        virtio.pack_needs_csum(34, 16)
    )


def test_virtio_header_of_a_superframe(benchmark: BenchmarkFixture) -> None:
    frame = memoryview(bytearray(tcp_frame(60_000, partial=True)))
    assert benchmark(virtio_header, frame, SegmentSizes(MTU), Counters()) == (
        virtio.pack_gso(virtio.GSO_TCPV4, 54, MTU - 40, 34, 16)
    )


# --- split and merge ------------------------------------------------------------------------

SEGMENT = MTU - 40
GSO = virtio.Header(virtio.FLAG_NEEDS_CSUM, virtio.GSO_TCPV4, 54, SEGMENT, 34, 16)


def test_split_of_a_superframe(benchmark: BenchmarkFixture) -> None:
    splitter = Splitter(vxlan.pack(1))
    frame = memoryview(bytearray(tcp_frame(44 * SEGMENT, partial=True)))
    stride = vxlan.HEADER_LEN + 54 + SEGMENT
    assert benchmark(splitter.split, frame, GSO) == (44 * stride, stride)


def merged(merger: Merger, burst: memoryview, stride: int) -> list[int]:
    """Merge a burst and return the number of datagrams of each run."""
    return [each.datagrams for each in merger.merge(burst, stride)]


def test_merge_of_a_run(benchmark: BenchmarkFixture) -> None:
    splitter = Splitter(vxlan.pack(1))
    octets, stride = splitter.split(memoryview(tcp_frame(44 * SEGMENT, partial=True)), GSO)
    burst = memoryview(bytearray(splitter.out[:octets].tobytes()))
    assert benchmark(merged, Merger(vxlan.HEADER_LEN, uso=True), burst, stride) == [44]


def test_merge_without_a_run(benchmark: BenchmarkFixture) -> None:
    frame = tcp_frame(SEGMENT)  # The same frame repeated: the sequence numbers are not consecutive.
    datagram = vxlan.pack(1) + frame
    burst = memoryview(bytearray(datagram * 44))
    merger = Merger(vxlan.HEADER_LEN, uso=True)
    assert benchmark(merged, merger, burst, len(datagram)) == [1] * 44
