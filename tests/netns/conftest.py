"""Fixtures that build hosts; each test has its own, which vanish with it."""

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.hosts import Pyvtep, address, segment
from vtep.testing.lab import Host, Lab

HERE = Path(__file__).parent

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000


def pytest_configure() -> None:
    """Give the test process a /run/pyvtep of its own.

    Commands look there for a running pyvtep. Without it, tests in several workers would find each
    other's, and those of the host.
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
    with Lab() as hosts:
        yield hosts


@pytest.fixture
def pair(lab: Lab) -> tuple[Host, Host]:
    """Two hosts on one underlay: a is 192.0.2.1 and 2001:db8::1, b has 2; MTU 1500."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth0", f"192.0.2.{number}/24", f"2001:db8::{number}/64")
    return a, b


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Pyvtep]:
    """Start pyvtep on a host and wait until it is up."""

    def starter(host: Host, *arguments: str, prefix: tuple[str, ...] = ()) -> Pyvtep:
        return Pyvtep(host, tmp_path, *arguments, prefix=prefix).ready()

    return starter


@pytest.fixture
def tunnel(pair: tuple[Host, Host], start: Callable[..., Pyvtep]) -> tuple[Pyvtep, Pyvtep]:
    """The main job: a VTEP on both hosts, over IPv4, overlay addresses 10.0.0.1 and 10.0.0.2."""
    a, b = pair
    return (
        start(a, *segment(1, "192.0.2.2", "10.0.0.1/24")),
        start(b, *segment(1, "192.0.2.1", "10.0.0.2/24")),
    )
