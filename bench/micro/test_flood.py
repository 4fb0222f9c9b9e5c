"""One broadcast to many remotes over the loopback, in microseconds for all copies."""

import resource
import socket
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vtep.datapath.pool import Pool
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.replicator import Replicator
from vtep.io.sender_sockets import SenderSockets

REMOTES = [1, 10, 1_000]
BINDING = Binding(socket.AF_INET, None, None)
DATAGRAM = memoryview(bytearray(110))


@pytest.fixture(params=REMOTES)
def remotes(request: pytest.FixtureRequest) -> Iterator[list[Remote]]:
    """Return loopback addresses with a listener, and raise the limit of descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(4096, before[1])), before[1]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        listener.bind(("", 0))
        port = listener.getsockname()[1]
        yield [Remote(f"127.1.{each >> 8}.{each & 255}", port) for each in range(request.param)]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_path_by_path(benchmark: BenchmarkFixture, remotes: list[Remote]) -> None:
    pool = Pool()
    paths = [
        pool.acquire_path(BINDING, OuterHeaderOptions(), remote, gso=True) for remote in remotes
    ]

    def flood() -> None:
        for path in paths:
            path.send(DATAGRAM, len(DATAGRAM), 0, 0.0)

    benchmark(flood)
    for path in paths:
        pool.release_path(path)


def test_at_once(benchmark: BenchmarkFixture, remotes: list[Remote]) -> None:
    replicator = Replicator([BINDING], OuterHeaderOptions(), SenderSockets(), gso=True)
    recipients = replicator.prepare(remotes)
    sent = benchmark(recipients.send, DATAGRAM, len(DATAGRAM), 0)
    assert sent.datagrams == len(remotes)
    replicator.close()
