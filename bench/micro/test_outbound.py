"""The way of frames from the TAP to a send: what each costs, with the read and without the send.

The TAP is one end of a socket pair, which keeps frames apart as a TAP does.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.frames import OWN_MAC, REMOTE, segment, tcp_frame
from vtep.datapath import Arena, Outbound
from vtep.fdb import Remote
from vtep.mtu.fit import Fit
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import virtio
from vtep.wire.envelope import Policy

FRAMES = 60
"""As many as are read in a turn."""

PORT_AT = 14 + 20 + 1
"""The low octet of the source port."""


class Ways(dict[Remote, "Ways"]):
    """The way to any remote, which takes everything."""

    envelope = staticmethod(Policy().reader())
    tunnel_gso = False

    def __missing__(self, _remote: Remote) -> "Ways":
        return self

    def send(self, datagrams: memoryview, *_how: object) -> tuple[int, None]:
        return len(datagrams), None


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in pair:
            stack.enter_context(end)
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        yield pair


@pytest.mark.parametrize("flows", [1, 4])
@pytest.mark.parametrize("payload", [24, 1396])
def test_a_turn(
    benchmark: BenchmarkFixture,
    ends: tuple[socket.socket, socket.socket],
    flows: int,
    payload: int,
) -> None:
    """Sixty frames of so many flows, turn by turn, whose checksums are to be finished."""
    tap, host = ends
    own = segment()
    own.fdb.learn(OWN_MAC, REMOTE, 0.0)  # Of our frames, this is the destination.
    header = virtio.needs_checksum(34, 16)
    frames = []
    for number in range(FRAMES):
        frame = bytearray(tcp_frame(payload, partial=True))
        frame[PORT_AT] ^= number % flows
        frames.append(header + frame)
    outbound = Outbound(
        cast("Any", SimpleNamespace(fd=tap.fileno())),
        own,
        cast("Any", Ways()),
        Fit(own.header, own.counters, 1450, "off"),
        AckTracker(),
        Arena(),
        lambda error: pytest.fail(str(error)),
    )

    def fill() -> None:
        for frame in frames:
            host.send(frame)

    run = cast("Any", benchmark).pedantic  # It has no types.
    run(outbound.readable, setup=fill, rounds=300, warmup_rounds=5)
    assert own.counters.tx_frames == own.counters.tx_datagrams == 305 * FRAMES
