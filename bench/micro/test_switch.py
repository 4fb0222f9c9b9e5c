"""Decisions: what each frame costs before any octet is moved."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import OWN_MAC, PEER_MAC, REMOTE, VNI, segment, tcp_frame
from vtep.forwarding.switch import Switch
from vtep.wire import vxlan


def test_receive(benchmark: BenchmarkFixture) -> None:
    own = segment()
    switch = Switch([own])
    datagram = memoryview(bytearray(vxlan.pack(VNI) + tcp_frame(1400)))
    assert benchmark(switch.receive, datagram, REMOTE.host, 1.0) is own
    assert own.fdb.lookup(PEER_MAC) is not None


def test_destinations_known(benchmark: BenchmarkFixture) -> None:
    own = segment()
    own.fdb.learn(OWN_MAC, REMOTE, 0.0)  # Of our frames, this is the destination.
    frame = memoryview(bytearray(tcp_frame(1400)))
    assert tuple(benchmark(own.destinations, frame)) == (REMOTE,)
    assert own.counters.flooded == 0


def test_destinations_flooded(benchmark: BenchmarkFixture) -> None:
    own = segment()
    frame = memoryview(bytearray(tcp_frame(1400)))
    assert tuple(benchmark(own.destinations, frame)) == (REMOTE,)
    assert own.counters.flooded > 0
