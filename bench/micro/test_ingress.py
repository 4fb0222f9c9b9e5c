"""Ingress of datagrams from a UDP socket to the TAP, with the receive and the write.

The socket receives from the loopback, and the TAP is one in memory.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import VNI, segment, tcp_frame, udp_frame
from vtep.datapath import Ingress
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Remote
from vtep.io import socket_constants as const
from vtep.io.binding import Binding
from vtep.io.receiver import UdpReceiver
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import Splitter
from vtep.testing.tap import MemoryTap
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import virtio, vxlan

HOST = "127.0.0.1"
MTU = 1450
SEGMENT = MTU - 40
RUN = 44
"""Segments of a superframe of nearly 64 KiB."""

GSO = virtio.Header(virtio.FLAG_NEEDS_CSUM, virtio.GSO_TCPV4, 54, SEGMENT, 34, 16)


class Bench:
    """An ingress with one TAP, and a socket of the remote that sends to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.own = segment(Remote(HOST, vxlan.PORT))
        binding = Binding(socket.AF_INET, None, None)
        self.receiver = stack.enter_context(UdpReceiver.open(binding, 0, gro=True))
        self.tap = stack.enter_context(MemoryTap())
        self.ingress = Ingress([self.receiver], Demux(()), lambda error: pytest.fail(str(error)))
        sizing = TunnelSizing(self.own.header, self.own.counters, MTU, "off")
        self.ingress.attach(self.own, self.tap, sizing, AckTracker(), lambda: None)
        self.remote = stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        self.remote.connect((HOST, self.receiver.address[1]))

    def measure(self, benchmark: BenchmarkFixture, sends: list[memoryview], stride: int) -> int:
        """Measure turns that receive these sends, each cut into datagrams of `stride` octets.

        Returns: the number of turns, which is 1 with --benchmark-disable.
        """
        turns = 0
        control = (const.SOL_UDP, const.UDP_SEGMENT, stride.to_bytes(2, sys.byteorder))

        def fill() -> None:
            nonlocal turns
            turns += 1
            for _ in self.tap.received():
                pass
            for send in sends:
                self.remote.sendmsg([send], [control] if len(send) > stride else [])

        def turn() -> None:
            self.ingress.readable(self.receiver)

        run = cast("Any", benchmark).pedantic  # It has no types.
        run(turn, setup=fill, rounds=300, warmup_rounds=5)
        return turns


@pytest.fixture
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack)


@pytest.mark.parametrize("payload", [24, 1396])
def test_a_turn_of_tcp_datagrams(benchmark: BenchmarkFixture, bench: Bench, payload: int) -> None:
    """Sixty datagrams of one flow that are not consecutive segments, such as acknowledgements."""
    datagram = memoryview(vxlan.pack(VNI) + tcp_frame(payload))
    turns = bench.measure(benchmark, [datagram] * 60, len(datagram))
    assert bench.own.counters.rx_frames == turns * 60 > 0


@pytest.mark.parametrize("flows", [1, 60])
def test_a_turn_of_udp_datagrams(benchmark: BenchmarkFixture, bench: Bench, flows: int) -> None:
    """Sixty small datagrams that the kernel has not joined, of one flow or of alternating flows."""
    sends = [
        memoryview(vxlan.pack(VNI) + udp_frame(64, number % flows, number // flows))
        for number in range(60)
    ]
    turns = bench.measure(benchmark, sends, len(sends[0]))
    assert bench.own.counters.rx_frames == turns * 60 > 0


@pytest.mark.parametrize("batches", [1, 4])
def test_a_turn_of_gro_batches(benchmark: BenchmarkFixture, bench: Bench, batches: int) -> None:
    """Batches that the kernel has joined, of the consecutive segments of a superframe."""
    splitter = Splitter(vxlan.pack(VNI))
    octets, stride = splitter.split(memoryview(tcp_frame(RUN * SEGMENT, partial=True)), GSO)
    batch = memoryview(splitter.out[:octets].tobytes())
    turns = bench.measure(benchmark, [batch] * batches, stride)
    assert bench.own.counters.rx_frames == turns * batches * RUN
    assert bench.own.counters.rx_superframes == turns * batches


def test_a_turn_of_superframes_of_tunnel_gso(benchmark: BenchmarkFixture, bench: Bench) -> None:
    """Superframes that crossed the underlay unsegmented, as over a veth."""
    superframe = memoryview(vxlan.pack(VNI) + tcp_frame(RUN * SEGMENT, partial=True))
    turns = bench.measure(benchmark, [superframe] * 8, len(superframe))
    assert bench.own.counters.super_datagrams == turns * 8
    assert bench.own.counters.rx_frames == turns * 8 * RUN
