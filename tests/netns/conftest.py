"""Fixtures that build hosts out of network namespaces; each test has its own."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.fabric import Fabric
from tests.netns.hosts import Pyvtep, address, segment
from vtep.control import socket_files
from vtep.testing.lab import Host, Lab

HERE = Path(__file__).parent

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000


def pytest_configure() -> None:
    """Give the test process a /run/pyvtep of its own.

    Commands look there for running processes. In a shared directory, tests in several workers would
    find those of each other and of the machine.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    Path("/run/pyvtep").mkdir(mode=0o700, exist_ok=True)
    for failed in (
        libc.unshare(_CLONE_NEWNS),
        libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None),
        libc.mount(b"tmpfs", b"/run/pyvtep", b"tmpfs", 0, b"mode=700"),
    ):
        if failed:
            error = ctypes.get_errno()
            pytest.exit(f"no mount namespace for /run/pyvtep: {os.strerror(error)}", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = _missing()
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.netns)
        if missing:
            item.add_marker(pytest.mark.skip(reason=missing))


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "namespace tests need root"
    if not Path("/dev/net/tun").exists():
        return "namespace tests need /dev/net/tun"
    return None


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Return a lab that is closed after the test."""
    with Lab() as hosts:
        yield hosts


@pytest.fixture
def fabric(lab: Lab) -> Fabric:
    """Return the underlay of an EVPN fabric, without routers."""
    return Fabric(lab)


@pytest.fixture
def pair(lab: Lab) -> tuple[Host, Host]:
    """Return two hosts on one link of MTU 1500: a is 192.0.2.1 and 2001:db8::1, b is .2 and ::2."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth0", f"192.0.2.{number}/24", f"2001:db8::{number}/64")
    return a, b


@pytest.fixture
def inside_a(pair: tuple[Host, Host]) -> Iterator[tuple[Host, Host]]:
    """Put the test process into the network namespace of host a."""
    with pair[0].inside():
        yield pair


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Pyvtep]]:
    """Return a function that starts pyvtep on a host and waits until it is up."""
    started = []

    def starter(host: Host, *arguments: str, prefix: tuple[str, ...] = ()) -> Pyvtep:
        started.append(Pyvtep(host, tmp_path, *arguments, prefix=prefix))
        return started[-1].ready()

    yield starter
    for vtep in started:
        # The successor of an upgrade is no child of the host's, and would outlive the test.
        if vtep.process.poll() is not None and vtep.control.exists():
            successor = socket_files.listening_process(vtep.control)
            if successor and successor != os.getpid():
                with suppress(ProcessLookupError):  # It has just ended.
                    os.kill(successor, signal.SIGKILL)


@pytest.fixture
def fast_path(compiled_turns: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start all VTEPs with the fast path, and wait until it is on."""
    del compiled_turns
    monkeypatch.setattr(Pyvtep, "uses_fast_path", True)


@pytest.fixture(params=["fast-path", "slow-path"])
def each_path(
    request: pytest.FixtureRequest, compiled_turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start all VTEPs with the fast path, and once more without."""
    del compiled_turns
    monkeypatch.setattr(Pyvtep, "uses_fast_path", request.param == "fast-path")


@pytest.fixture
def tunnel(pair: tuple[Host, Host], start: Callable[..., Pyvtep]) -> tuple[Pyvtep, Pyvtep]:
    """Start a VTEP on both hosts: VNI 1 over IPv4, with overlay addresses 10.0.0.1 and 10.0.0.2."""
    a, b = pair
    return (
        start(a, *segment(1, "192.0.2.2", "10.0.0.1/24")),
        start(b, *segment(1, "192.0.2.1", "10.0.0.2/24")),
    )
