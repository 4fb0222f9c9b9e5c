"""The pool: paths that VNIs share, and callbacks that wait until their sockets are writable."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from vtep.config import Config
from vtep.daemon.build import outer_header_options
from vtep.datapath.backpressure import WritableWaiters
from vtep.datapath.pool import Paths, Pool
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.wire.outer_header import InheritPolicy

V4 = Binding(socket.AF_INET, None, None)
V6 = Binding(socket.AF_INET6, None, None)
DATAGRAM = memoryview(bytes(100))


Notified = list[tuple[str, int | None]]


def paths_of(pool: Pool, config: Config, notified: Notified | None = None) -> Paths:
    def notify(remote: Remote, mtu: int | None) -> None:
        if notified is not None:
            notified.append((remote.host, mtu))

    return Paths(
        pool, {4: V4, 6: V6}, outer_header_options(config), InheritPolicy(), notify, gso=True
    )


CONFIG = Config(vni=1)


def test_vnis_with_the_same_options_share_a_path() -> None:
    pool = Pool()
    one, two = paths_of(pool, CONFIG), paths_of(pool, CONFIG)
    remote, same = Remote("127.0.0.1", 9), Remote("127.0.0.1", 9)
    path = one[remote]
    assert one[remote] is path
    assert two[same] is path
    assert two[Remote("127.0.0.1", 10)] is not path
    assert paths_of(pool, Config(vni=2, ttl=3))[remote] is not path


def test_a_path_is_closed_with_its_last_user() -> None:
    pool = Pool()
    one, two = paths_of(pool, CONFIG), paths_of(pool, CONFIG)
    remote, same = Remote("127.0.0.1", 9), Remote("127.0.0.1", 9)
    path = one[remote]
    assert two[same] is path
    path.send(DATAGRAM, 100, 0, 0.0)
    fd = path.fileno(0)
    one.close()
    assert path.fileno(0) == fd
    two.release(
        Remote("127.0.0.1", 9)
    )  # An equal remote, but another object, to which it has no path.
    assert path.fileno(0) == fd
    two.release(same)
    assert path.fileno(0) == -1
    assert one[remote] is not path
    one.close()


def test_more_remotes_than_source_ports() -> None:
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
        ]
        for receiver in receivers:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(10)
        paths = paths_of(Pool(), Config(vni=1, srcport=(50_001, 50_001)))
        for receiver in receivers:
            path = paths[Remote("127.0.0.1", receiver.getsockname()[1])]
            assert path.send(DATAGRAM, 100, 0, 0.0) == (100, None)
            assert receiver.recvfrom(200) == (bytes(DATAGRAM), ("127.0.0.1", 50_001))
        paths.close()


def test_all_users_of_a_path_are_notified_of_its_mtu() -> None:
    pool = Pool()
    notified: tuple[Notified, Notified] = ([], [])
    one, two = (paths_of(pool, CONFIG, each) for each in notified)
    remote = Remote("127.0.0.1", 9)
    path = one[remote]
    assert notified == ([], [])  # Unknown before there is a socket.
    path.send(DATAGRAM, 100, 0, 0.0)
    mtu = path.mtu
    assert notified == ([("127.0.0.1", mtu)], [])
    assert two[remote] is path
    assert notified == ([("127.0.0.1", mtu)], [("127.0.0.1", mtu)])
    one.close()
    assert notified[0][1:] == [("127.0.0.1", None)]
    assert len(notified[1]) == 1
    two.close()
    assert notified[1][1:] == [("127.0.0.1", None)]


def test_path_mtus_are_refreshed_in_turn() -> None:
    pool = Pool()
    paths = paths_of(pool, CONFIG)
    seen = [paths[Remote(f"127.0.0.{number}", 9)] for number in range(1, 6)]
    pool.refresh_routes(3)
    assert [path.mtu > 0 for path in seen].count(True) == 3
    paths.release(next(remote for remote, path in paths.items() if not path.mtu))
    pool.refresh_routes(3)
    assert [path.mtu > 0 for path in seen].count(True) == 4
    paths.close()
    pool.refresh_routes(3)
    pool.refresh_routes()


@pytest.fixture
def full() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return a socket with a full send buffer, and its peer."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                left.send(b"x")
        yield left, right


def test_all_waiters_are_called_once_when_the_socket_is_writable(
    full: tuple[socket.socket, socket.socket],
) -> None:
    left, right = full
    called: list[str] = []

    async def main() -> None:
        waiters, last = WritableWaiters(), asyncio.Event()
        waiters.wait(left.fileno(), lambda: called.append("one"))
        waiters.wait(left.fileno(), lambda: called.append("two"))
        waiters.wait(left.fileno(), last.set)
        for _ in range(5):
            await asyncio.sleep(0)
        assert called == []
        while True:
            try:
                right.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        await last.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert called == ["one", "two"]

    asyncio.run(asyncio.wait_for(main(), 5))


def test_waiters_of_a_closed_socket_are_called_later(
    full: tuple[socket.socket, socket.socket],
) -> None:
    left, _ = full
    called: list[str] = []

    async def main() -> None:
        waiters = WritableWaiters()

        def again() -> None:
            called.append("again")

        waiters.wait(left.fileno(), again)
        waiters.wake(left.fileno())
        left.close()
        assert called == []  # The caller that closes it is in the middle of a send.
        await asyncio.sleep(0)
        assert called == ["again"]
        waiters.wake(left.fileno())
        await asyncio.sleep(0)
        assert called == ["again"]

    asyncio.run(asyncio.wait_for(main(), 5))


def test_closing_a_path_wakes_its_waiters() -> None:
    async def main() -> None:
        pool = Pool()
        path = paths_of(pool, CONFIG)[Remote("127.0.0.1", 9)]
        path.send(DATAGRAM, 100, 0, 0.0)
        woken = asyncio.get_running_loop().create_future()
        pool.writable.wait(path.fileno(0), lambda: woken.set_result(path.fileno(0)))
        pool.reconnect(None)
        assert await woken == -1

    asyncio.run(asyncio.wait_for(main(), 5))
