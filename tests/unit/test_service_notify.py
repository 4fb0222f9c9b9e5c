"""The notification protocol, against a socket that plays the service manager."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtep.errors import VtepError
from vtep.service import notify
from vtep.service.notify import ServiceManager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def manager_at(listener: socket.socket, **environ: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": listener.getsockname(), **environ})


def test_each_message_is_one_datagram(listener: socket.socket) -> None:
    manager = manager_at(listener)
    manager.ready()
    manager.status("vni 1\non vx0")
    manager.status("vni 1\non vx0")  # Nothing new.
    manager.status("vni 2")
    manager.feed_watchdog()
    manager.stopping()
    received = [listener.recv(1000).decode() for _ in range(5)]
    assert received == [
        "READY=1",
        "STATUS=vni 1 on vx0",  # A second line would be another key.
        "STATUS=vni 2",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    manager.reloading()
    first, second = listener.recv(1000).decode().splitlines()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    manager.close()


def test_a_stored_descriptor_arrives_with_its_name(listener: socket.socket, tmp_path: Path) -> None:
    manager = manager_at(listener)
    file = tmp_path / "stored"
    file.touch()
    descriptor = os.open(file, os.O_RDONLY)
    manager.store("tap:vx0\n", descriptor)
    os.close(descriptor)
    message, (copy,), _, _ = socket.recv_fds(listener, 1000, 4)
    assert message == b"FDSTORE=1\nFDNAME=tap_vx0_\nFDPOLL=0"
    assert os.fstat(copy).st_ino == file.stat().st_ino
    os.close(copy)
    manager.remove("tap:vx0\n")
    assert listener.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=tap_vx0_"
    manager.close()


def test_a_hand_over_waits_for_the_manager(listener: socket.socket) -> None:
    manager = manager_at(listener)
    over = threading.Event()

    def hand_over() -> None:
        manager.hand_over(42)
        over.set()

    thread = threading.Thread(target=hand_over)
    thread.start()
    assert listener.recv(1000) == b"MAINPID=42"
    message, (barrier,), _, _ = socket.recv_fds(listener, 1000, 4)
    assert message == b"BARRIER=1"
    assert not over.is_set()
    os.close(barrier)
    thread.join(30)
    assert over.is_set()
    manager.close()


def test_a_manager_that_does_not_read_delays_nothing(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_SEND_TIMEOUT_S", 0.01)
    manager = manager_at(listener)
    for _ in range(2000):  # More than its queue holds.
        manager.feed_watchdog()
    manager.ready()
    assert not manager.barrier(0.01)
    manager.close()


@pytest.mark.parametrize("where", ["", "/nonexistent/notify", "vsock:2:1", "@no-such-socket-here"])
def test_without_a_manager_nothing_is_sent(where: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": where})
    assert not manager.is_present
    manager.ready()
    manager.status("vni 1")
    manager.store("tap", 0)
    manager.hand_over(1)
    assert ServiceManager({}).watchdog_s is None


def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0pyvtep-notify-test")
        manager = ServiceManager({"NOTIFY_SOCKET": "@pyvtep-notify-test"})
        manager.ready()
        assert sock.recv(100) == b"READY=1"
        manager.close()


def test_the_watchdog_is_that_of_this_process() -> None:
    usec = {"WATCHDOG_USEC": "1500000"}
    assert ServiceManager(usec).watchdog_s == 1.5
    assert ServiceManager({**usec, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 1.5
    other = {**usec, "WATCHDOG_PID": str(os.getpid() + 1)}
    assert ServiceManager(other).watchdog_s is None  # A child inherits the variables.
    assert ServiceManager(other, takeover=True).watchdog_s == 1.5  # It is the main process soon.
    assert ServiceManager({"WATCHDOG_USEC": "0"}).watchdog_s is None
    with pytest.raises(VtepError, match="unusable"):
        ServiceManager({"WATCHDOG_USEC": "soon"})
