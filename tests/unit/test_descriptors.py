"""Shortage of file descriptors, and how errors report it."""

import errno
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vtep import descriptors
from vtep.descriptors import ShortageError, explained, is_reserved, is_shortage, reason, require
from vtep.host import links, netlink
from vtep.host.devices import device_index, need_device_index


def next_descriptor() -> int:
    free = os.dup(0)
    os.close(free)
    return free


@contextmanager
def no_descriptors() -> Iterator[int]:
    """Prevent this process from opening descriptors. Provides: the limit meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = next_descriptor()
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield free
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_devices_by_name() -> None:
    assert device_index("lo") == need_device_index("lo") == 1
    for name in ("", "nowhere0", "a-name-of-16-oct"):
        assert device_index(name) is None
    with pytest.raises(OSError, match="there is no network device nowhere0") as caught:
        need_device_index("nowhere0")
    assert caught.value.errno == errno.ENODEV


def test_a_failed_query_does_not_report_an_absent_device() -> None:
    with no_descriptors(), pytest.raises(OSError, match="Too many open files") as caught:
        device_index("lo")
    assert is_shortage(caught.value)


def test_a_netlink_session_reports_the_shortage() -> None:
    with (
        no_descriptors() as limit,
        # By name: with coverage in the whole suite, the class is another object than the one that
        # is imported here.
        pytest.raises(
            Exception, match=rf"may have {limit}\); raise the limit: ulimit -n"
        ) as caught,
        netlink.session(),
    ):
        pytest.fail("there was a session")
    assert caught.type.__name__ == "ShortageError"
    with netlink.session() as connection:
        assert links.is_up(connection, "lo") in (True, False)


def test_only_a_shortage_is_explained() -> None:
    told = "cannot do it: this host is out of file"
    with pytest.raises(ShortageError, match=told), explained("do it"):
        raise OSError(errno.ENFILE, "too many")
    with pytest.raises(FileNotFoundError), explained("do it"):
        raise OSError(errno.ENOENT, "nothing")
    assert reason(OSError(errno.ENOENT, "nothing")) == "nothing"
    assert reason(OSError("no interface with this name")) == "no interface with this name"


def test_required_descriptors_are_closed_again() -> None:
    before = next_descriptor()
    require(3)
    with no_descriptors(), pytest.raises(OSError, match="Too many"):
        require(3)
    assert next_descriptor() == before


def test_the_last_descriptors_are_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (40, 4096))
    assert [is_reserved(number) for number in (3, 31, 32, 39)] == [False, False, True, True]


def test_a_line_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(descriptors, "_silent_until", {})
    now = 1000.0
    monkeypatch.setattr("vtep.descriptors.time.monotonic", lambda: now)
    with caplog.at_level(logging.WARNING, "vtep"):
        for line in ("one", "two", "one", "one"):
            descriptors.warn(line)
        now += 61
        descriptors.warn("one")
    assert caplog.messages == ["one", "two", "one"]
