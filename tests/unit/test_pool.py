"""Ways to remotes that VNIs share: who has them open, and who waits for room in them."""

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


Told = list[tuple[str, int | None]]


def paths(pool: Pool, config: Config, told: Told | None = None) -> Paths:
    def tell(remote: Remote, mtu: int | None) -> None:
        if told is not None:
            told.append((remote.host, mtu))

    return Paths(
        pool, {4: V4, 6: V6}, outer_header_options(config), InheritPolicy(), tell, gso=True
    )


CONFIG = Config(vni=1)


def test_ports_that_send_alike_share_a_path() -> None:
    pool = Pool()
    one, two = paths(pool, CONFIG), paths(pool, CONFIG)
    remote, same = Remote("127.0.0.1", 9), Remote("127.0.0.1", 9)
    path = one[remote]
    assert one[remote] is path
    assert two[same] is path
    assert two[Remote("127.0.0.1", 10)] is not path
    assert paths(pool, Config(vni=2, ttl=3))[remote] is not path


def test_a_path_is_closed_with_its_last_user() -> None:
    pool = Pool()
    one, two = paths(pool, CONFIG), paths(pool, CONFIG)
    remote, same = Remote("127.0.0.1", 9), Remote("127.0.0.1", 9)
    path = one[remote]
    assert two[same] is path
    path.send(DATAGRAM, 100, 0, 0.0)
    fd = path.fileno(0)
    one.close()
    assert path.fileno(0) == fd
    two.release(Remote("127.0.0.1", 9))  # Another object, which it has no way to.
    assert path.fileno(0) == fd
    two.release(same)
    assert path.fileno(0) == -1
    assert one[remote] is not path
    one.close()


def test_remotes_may_be_more_than_source_ports() -> None:
    with ExitStack() as stack:
        receivers = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)
        ]
        for receiver in receivers:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(10)
        ways = paths(Pool(), Config(vni=1, srcport=(50_001, 50_001)))
        for receiver in receivers:
            path = ways[Remote("127.0.0.1", receiver.getsockname()[1])]
            assert path.send(DATAGRAM, 100, 0, 0.0) == (100, None)
            assert receiver.recvfrom(200) == (bytes(DATAGRAM), ("127.0.0.1", 50_001))
        ways.close()


def test_all_who_share_a_path_are_told_of_its_mtu() -> None:
    pool = Pool()
    told: tuple[Told, Told] = ([], [])
    one, two = (paths(pool, CONFIG, each) for each in told)
    remote = Remote("127.0.0.1", 9)
    path = one[remote]
    assert told == ([], [])  # It is not known before there is a socket.
    path.send(DATAGRAM, 100, 0, 0.0)
    mtu = path.mtu
    assert told == ([("127.0.0.1", mtu)], [])
    assert two[remote] is path
    assert told == ([("127.0.0.1", mtu)], [("127.0.0.1", mtu)])
    one.close()
    assert told[0][1:] == [("127.0.0.1", None)]
    assert len(told[1]) == 1
    two.close()
    assert told[1][1:] == [("127.0.0.1", None)]


def test_paths_are_looked_at_in_turn() -> None:
    pool = Pool()
    ways = paths(pool, CONFIG)
    seen = [ways[Remote(f"127.0.0.{number}", 9)] for number in range(1, 6)]
    pool.refresh_mtus(3)
    assert [path.mtu > 0 for path in seen].count(True) == 3
    ways.release(next(remote for remote, path in ways.items() if not path.mtu))
    pool.refresh_mtus(3)
    assert [path.mtu > 0 for path in seen].count(True) == 4
    ways.close()
    pool.refresh_mtus(3)
    pool.refresh_mtus()


@pytest.fixture
def full() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that takes no more, and the one that can make room."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                left.send(b"x")
        yield left, right


def test_all_who_wait_are_called_once_there_is_room(
    full: tuple[socket.socket, socket.socket],
) -> None:
    left, right = full
    called: list[str] = []

    async def main() -> None:
        room, last = WritableWaiters(), asyncio.Event()
        room.wait(left.fileno(), lambda: called.append("one"))
        room.wait(left.fileno(), lambda: called.append("two"))
        room.wait(left.fileno(), last.set)
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


def test_who_waits_for_a_socket_that_is_closed_tries_another(
    full: tuple[socket.socket, socket.socket],
) -> None:
    left, _ = full
    called: list[str] = []

    async def main() -> None:
        room = WritableWaiters()

        def again() -> None:
            called.append("again")

        room.wait(left.fileno(), again)
        room.wake(left.fileno())
        left.close()
        assert called == []  # Whoever closes it is in the middle of something.
        await asyncio.sleep(0)
        assert called == ["again"]
        room.wake(left.fileno())
        await asyncio.sleep(0)
        assert called == ["again"]

    asyncio.run(asyncio.wait_for(main(), 5))


def test_closing_a_path_wakes_who_waits_for_it() -> None:
    async def main() -> None:
        pool = Pool()
        path = paths(pool, CONFIG)[Remote("127.0.0.1", 9)]
        path.send(DATAGRAM, 100, 0, 0.0)
        woken = asyncio.get_running_loop().create_future()
        pool.writable.wait(path.fileno(0), lambda: woken.set_result(path.fileno(0)))
        pool.reconnect(None)
        assert await woken == -1

    asyncio.run(asyncio.wait_for(main(), 5))
