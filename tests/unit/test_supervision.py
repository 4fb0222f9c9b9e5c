"""Supervision by a service manager: the watchdog, the status, and the TAPs in its store."""

import asyncio
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.unit.nodes import IP_A, IP_B, Node, frame, segment, until
from vtep.daemon.progress import Reader
from vtep.service.notify import ServiceManager
from vtep.service.supervision import (
    StallDetector,
    Supervision,
    describe_status,
    stored_descriptors,
)
from vtep.testing import MemoryUnderlay

ALL = b"\xff" * 6
A = b"\2\0\0\0\1\1"


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay(seed=1)) as network:
        yield network


class Recorder:
    """A service manager that keeps what it is told."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.setblocking(False)
        environ = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "10000000"}
        self.manager = ServiceManager(environ)

    def messages(self) -> list[str]:
        """Return the messages since the last call, without those about the state."""
        found = []
        with suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, 4096, 8)
                for fd in fds:
                    os.close(fd)
                found.append(data.decode().replace("\nFDPOLL=0", "").replace("\n", " "))
        return [message for message in found if not message.startswith("STATUS=")]

    def close(self) -> None:
        self.manager.close()
        self._socket.close()


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with closing(Recorder(tmp_path)) as made:
        yield made


def test_a_descriptor_is_stuck_if_it_stays_ready_without_progress() -> None:
    reader, writer = os.pipe()
    detector = StallDetector()

    def check(handled: int, now: float, *, to_write: bool = False) -> bool:
        fd = writer if to_write else reader
        return detector.check([Reader("x", fd, handled, to_write)], now) is not None

    assert not check(0, 1.0)  # Nothing to read.
    assert not check(0, 2.0)
    os.write(writer, b"x")
    assert not check(0, 3.0)  # It may be handled in this turn of the loop.
    assert check(0, 4.0)
    assert check(0, 5.0)
    assert not check(1, 6.0)  # Readable again, but something was read.
    assert check(1, 7.0)
    os.read(reader, 1)
    assert not check(1, 8.0)
    assert not check(1, 9.0)
    assert not check(1, 10.0, to_write=True)
    assert check(1, 11.0, to_write=True)
    assert not check(2, 12.0, to_write=True)
    os.close(reader)
    os.close(writer)


def test_the_watchdog_is_fed_while_frames_are_read_and_not_by_a_loop_that_only_turns(
    underlay: MemoryUnderlay, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    a = Node(underlay, segment(remote=IP_B), ip=IP_A)
    b = Node(underlay, segment(remote=IP_A), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            supervision = Supervision(recorder.manager, b.vtep)
            now = 0.0

            async def fed() -> bool:
                nonlocal now
                # Any number of turns: none of them reads what has lost its reader.
                for _ in range(100):
                    await asyncio.sleep(0)
                now += 2.5
                recorder.messages()
                supervision.check(now)
                return "WATCHDOG=1" in recorder.messages()

            assert await fed()
            a.send(frame(A, ALL))
            await b.until_received(frame(A, ALL))
            assert await fed()
            loop = asyncio.get_running_loop()
            for stuck in [reader.fd for reader in b.vtep.readers()]:
                assert loop.remove_reader(stuck)
            a.send(frame(A, ALL))  # One of them gets it: the receiving socket of b.
            assert await fed()
            assert not await fed()
            assert not await fed()
            (error,) = (each for each in caplog.records if each.levelname == "ERROR")
            assert error.message == (
                "forwarding is stuck: the socket of UDP port 4789 is ready, but is not handled; "
                "the service manager will restart pyvtep within 10 s"
            )
            b.send(frame(b"\2\0\0\0\1\2", ALL))  # And now the TAP as well.
            assert not await fed()

    asyncio.run(main())


def test_taps_are_stored_as_long_as_they_have_a_port(
    underlay: MemoryUnderlay, recorder: Recorder
) -> None:
    node = Node(underlay, segment(1), segment(2))

    async def main() -> None:
        async with node.vtep as vtep:
            # The manager has kept two TAPs, one of which is not configured any more.
            supervision = Supervision(recorder.manager, vtep, ["tap-vx1", "tap-old"])
            supervision.ready()
            assert sorted(recorder.messages()) == [
                "FDSTORE=1 FDNAME=tap-vx1",
                "FDSTORE=1 FDNAME=tap-vx2",
                "FDSTOREREMOVE=1 FDNAME=tap-old",
                "FDSTOREREMOVE=1 FDNAME=tap-vx1",  # So that it is there once.
                "READY=1",
            ]
            supervision.check(1.0)
            assert recorder.messages() == ["WATCHDOG=1"]
            await vtep.remove(1)
            await vtep.add(segment(3))
            supervision.check(2.0)
            assert sorted(recorder.messages()) == [
                "FDSTORE=1 FDNAME=tap-vx3",
                "FDSTOREREMOVE=1 FDNAME=tap-vx1",
                "WATCHDOG=1",
            ]

    asyncio.run(main())


def test_a_process_that_hands_over_is_silent_afterwards(
    underlay: MemoryUnderlay, recorder: Recorder
) -> None:
    node = Node(underlay, segment(1))

    async def main() -> None:
        async with node.vtep as vtep:
            supervision = Supervision(recorder.manager, vtep)
            supervision.ready()
            recorder.messages()
            handing_over = asyncio.create_task(supervision.hand_over(42))
            received: list[str] = []

            def is_told() -> bool:
                received.extend(recorder.messages())  # This closes the barrier.
                return "BARRIER=1" in received

            await until(is_told)
            await handing_over
            assert received == ["FDSTOREREMOVE=1 FDNAME=tap-vx1", "MAINPID=42", "BARRIER=1"]
            supervision.check(1.0)
            supervision.stopping()
            assert recorder.messages() == []

    asyncio.run(main())


def test_the_status_says_what_it_does(underlay: MemoryUnderlay) -> None:
    node = Node(underlay, segment(5, remote=(IP_A, IP_B)), ip="192.0.2.9")

    async def main() -> None:
        async with node.vtep as vtep:
            status = describe_status(vtep)
            assert status.startswith("forwarding: vni 5 on vx5, 2 remotes, 0 MACs, fast path off")
            await vtep.add(segment(6, remote=IP_B))
            node.send(frame(A, ALL), "vx5")
            await until(lambda: vtep.counters()["tx_frames"])
            assert re.match("forwarding: 2 VNIs, 2 remotes, 0 MACs, ", describe_status(vtep))
            await vtep.remove(5)
            await vtep.remove(6)
            assert describe_status(vtep) == "no VNI is configured yet"

    asyncio.run(main())


def test_stored_descriptors_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    assert stored_descriptors(environ) == []
    assert environ == {}  # A child does not take them for its own.
    monkeypatch.setattr("vtep.service.supervision.os.set_inheritable", lambda *_, **__: None)
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "tap-a:tap-b"}
    assert stored_descriptors(environ) == [("tap-a", 3), ("tap-b", 4)]
    assert stored_descriptors({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}) == []
