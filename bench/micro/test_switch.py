"""Forwarding decisions for each frame."""

from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import OWN_MAC, PEER_MAC, REMOTE, VNI, segment, tcp_frame
from vtep.forwarding.demux import Demux
from vtep.wire import vxlan


def test_admit(benchmark: BenchmarkFixture) -> None:
    own = segment()
    demux = Demux([own])
    datagram = memoryview(bytearray(vxlan.pack(VNI) + tcp_frame(1400)))
    assert benchmark(demux.admit, datagram, REMOTE.host, 1.0) is own
    assert own.fdb.lookup(PEER_MAC) is not None


def test_route_to_a_known_mac(benchmark: BenchmarkFixture) -> None:
    own = segment()
    own.fdb.learn(OWN_MAC, REMOTE, 0.0)  # The destination of the frames.
    frame = memoryview(bytearray(tcp_frame(1400)))
    assert benchmark(own.route, frame).destinations == (REMOTE,)


def test_route_to_an_unknown_mac(benchmark: BenchmarkFixture) -> None:
    own = segment()
    frame = memoryview(bytearray(tcp_frame(1400)))
    assert benchmark(own.route, frame) is own.fdb.default
