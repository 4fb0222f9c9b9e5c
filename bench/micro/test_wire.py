"""Pure functions on bytes."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import tcp_frame
from vtep.wire import checksum
from vtep.wire.flow import flow_hash


@pytest.mark.parametrize("octets", [64, 1400, 65000])
def test_ones_sum(benchmark: BenchmarkFixture, octets: int) -> None:
    data = memoryview(bytearray(at * 31 & 0xFF for at in range(octets)))
    words = (data[at] << 8 | data[at + 1] for at in range(0, octets, 2))
    assert benchmark(checksum.ones_sum, data) == checksum.fold(sum(words))


def test_flow_hash(benchmark: BenchmarkFixture) -> None:
    frame = memoryview(bytearray(tcp_frame(1400)))
    assert 0 <= benchmark(flow_hash, frame) < 1 << 32
