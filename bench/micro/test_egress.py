"""Egress of frames from the TAP to the sender, with the read and without the send.

The TAP is one in memory, whose descriptor preserves frame boundaries like that of a device.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any, cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import OWN_MAC, REMOTE, segment, tcp_frame
from vtep.datapath import Arena, Egress
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import Path
from vtep.io.sender_sockets import SenderSockets
from vtep.offload.sizing import TunnelSizing
from vtep.testing.tap import MemoryTap
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber
from vtep.wire import ip as inet
from vtep.wire import virtio
from vtep.wire.echo import SIZE, EchoKind, EchoMessage
from vtep.wire.outer_header import InheritPolicy

FRAMES = 60
"""Frames read in a turn."""

SUPERFRAMES = 8
"""Superframes read in a turn."""

SEGMENT = 1410

PORT_AT = 14 + 20 + 1
"""Offset of the low octet of the source port."""


class AnyPath(dict[Remote, "AnyPath"]):
    """The path to any remote, which accepts everything."""

    outer_fields = staticmethod(InheritPolicy().make_reader())
    tunnel_gso = False

    def __missing__(self, _remote: Remote) -> "AnyPath":
        return self

    def send(self, datagrams: memoryview, *_how: object) -> tuple[int, None]:
        return len(datagrams), None


@pytest.fixture
def tap() -> Iterator[MemoryTap]:
    with MemoryTap() as tap:
        yield tap


def measure(
    benchmark: BenchmarkFixture,
    egress: Egress,
    tap: MemoryTap,
    frames: list[tuple[bytes, bytes]],
) -> int:
    """Measure turns that read these frames, each with its virtio header.

    Returns: the number of turns, which is 1 with --benchmark-disable.
    """
    turns = 0

    def fill() -> None:
        nonlocal turns
        turns += 1
        for frame, header in frames:
            tap.send(frame, header)

    run = cast("Any", benchmark).pedantic  # It has no types.
    run(egress.readable, setup=fill, rounds=300, warmup_rounds=5)
    return turns


@pytest.mark.parametrize("flows", [1, 4])
@pytest.mark.parametrize("payload", [24, 1396])
def test_a_turn(benchmark: BenchmarkFixture, tap: MemoryTap, flows: int, payload: int) -> None:
    """Sixty frames of alternating flows, with partial checksums."""
    own = segment()
    own.fdb.learn(OWN_MAC, REMOTE, 0.0)  # The destination of the frames.
    header = virtio.pack_needs_csum(34, 16)
    frames = []
    for number in range(FRAMES):
        frame = bytearray(tcp_frame(payload, partial=True))
        frame[PORT_AT] ^= number % flows
        frames.append(bytes(frame))
    egress = Egress(
        tap,
        own,
        cast("Any", AnyPath()),
        TunnelSizing(own.header, own.counters, 1450, "off"),
        AckTracker(),
        Arena(),
        lambda error: pytest.fail(str(error)),
    )

    turns = measure(benchmark, egress, tap, [(frame, header) for frame in frames])
    assert own.counters.tx_frames == own.counters.tx_datagrams == turns * FRAMES > 0


class NullDevice:
    """A TAP device that discards superframes."""

    mac = b"\2\0\0\0\0\1"

    def __init__(self) -> None:
        self._fd = os.open(os.devnull, os.O_WRONLY)

    def write(self, headers: bytearray, prefix: bytes, frame: bytes | memoryview) -> None:
        os.writev(self._fd, (headers, prefix, frame))

    def close(self) -> None:
        os.close(self._fd)


class TunnelGsoPaths(AnyPath):
    """The path to a remote that is enabled for tunnel GSO."""

    tunnel_gso = True

    def __init__(self, sockets: Path, device: NullDevice) -> None:
        token = bytes(8)
        prober: GsoProber[TunnelGsoPath] = GsoProber(lambda: token, lambda: None)
        self._path = TunnelGsoPath(sockets, OuterHeaderOptions(), device, prober)
        self._path.request(4789)
        prober.on_resolved(self._path, 1, 0.0)
        prober.on_reply(
            EchoMessage(EchoKind.REPLY, None, 4789, token, 1, SIZE), self._path.host, 0.0
        )
        assert self._path.gso.enabled

    def tunnel_gso_path(self, _remote: Remote) -> TunnelGsoPath:
        return self._path


@pytest.mark.parametrize("flows", [1, 2])
def test_a_turn_of_superframes_with_tunnel_gso(
    benchmark: BenchmarkFixture, tap: MemoryTap, flows: int
) -> None:
    """Superframes of one flow, which are a run, or of two alternating flows."""
    remote = Remote("127.0.0.2", 4789)
    own = segment()
    own.fdb.learn(OWN_MAC, remote, 0.0)
    header = virtio.pack_gso(virtio.GSO_TCPV4, 54, SEGMENT, 34, 16)
    fit = TunnelSizing(own.header, own.counters, 1450, "off")
    frames = []
    for number in range(SUPERFRAMES):
        frame = bytearray(tcp_frame(4 * SEGMENT, partial=True))
        frame[PORT_AT] ^= number % flows
        frames.append(bytes(frame))
        syn = syn_to(frame)
        transport = inet.tcp_syn(syn)
        assert transport is not None
        fit.on_syn_received(syn, transport)
    with ExitStack() as stack:
        binding = Binding(socket.AF_INET, None, None)
        sockets = Path(binding, OuterHeaderOptions(), remote, 64, SenderSockets(), gso=True)
        device = stack.enter_context(closing(NullDevice()))
        egress = Egress(
            tap,
            own,
            cast("Any", TunnelGsoPaths(stack.enter_context(closing(sockets)), device)),
            fit,
            AckTracker(),
            Arena(),
            lambda error: pytest.fail(str(error)),
        )

        turns = measure(benchmark, egress, tap, [(frame, header) for frame in frames])
    assert own.counters.tx_tunnel_gso == turns * SUPERFRAMES > 0


def syn_to(frame: bytearray) -> memoryview:
    """Return a SYN of the receiver of a frame, which announces segments of `SEGMENT` octets."""
    option = bytes((2, 4)) + SEGMENT.to_bytes(2, "big")
    syn = frame[:54] + option
    syn[16:18] = (44).to_bytes(2, "big")
    syn[26:34] = frame[30:34] + frame[26:30]
    syn[34:38] = frame[36:38] + frame[34:36]
    syn[46], syn[47] = 6 << 4, 0x12
    return memoryview(syn)
