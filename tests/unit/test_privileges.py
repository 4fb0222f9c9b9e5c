"""The choice of capabilities and users; the system calls are in tests/netns/test_privileges.py."""

import os
import pwd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.config import Settings
from vtep.errors import ConfigError, VtepError
from vtep.host import privileges
from vtep.host.privileges import Capability, User, find_user, needed


@given(st.lists(st.integers(0, 65535)), st.booleans(), st.integers(0, 65536))
def test_a_capability_is_kept_for_the_use_that_needs_it(
    ports: list[int], address_probes: bool, first: int
) -> None:
    kept = needed(ports, address_probes=address_probes, unprivileged_port=first)
    assert {Capability.NET_ADMIN, Capability.BPF} <= kept
    assert (Capability.NET_RAW in kept) == address_probes
    assert (Capability.NET_BIND_SERVICE in kept) == any(port < first for port in ports)
    assert not kept & {
        *(Capability.SETUID, Capability.SETGID, Capability.SETPCAP, Capability.DAC_READ_SEARCH)
    }


def test_users_are_found_by_name_and_number() -> None:
    root = pwd.getpwuid(0)
    for text in ("root", "0", "root:0", "0:0"):
        assert find_user(text) == User("root", 0, 0, root.pw_dir)
    assert find_user("root:12") == User("root", 0, 12, root.pw_dir)
    unnamed = next(uid for uid in range(70000, 80000) if not _has_name(uid))
    assert find_user(f"{unnamed}:12") == User(str(unnamed), unnamed, 12, None)
    for text, line in (
        ("no-such-user", "--user no-such-user: there is no user no-such-user; create it: useradd"),
        (str(unnamed), f"--user {unnamed}: user ID {unnamed} has no name, and so no group; give"),
        (
            "root:no-such-group",
            "--user root:no-such-group: there is no group no-such-group; create it: groupadd",
        ),
        (
            "root:4294967295",
            "--user root:4294967295: is too large for a group ID, which is at most",
        ),
        (
            f"{1 << 70}:0",
            f"--user {1 << 70}:0: is too large for a user ID, which is at most 429496",
        ),
        (f"{1 << 70}", f"--user {1 << 70}: user ID {1 << 70} has no name"),
    ):
        with pytest.raises(VtepError) as refused:
            find_user(text)
        assert str(refused.value).startswith(line)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("text", ["", ":", "a:", ":b", "a:b:c", "a b", "a\0", "a\n"])
def test_what_is_no_user_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--user .* is not a NAME"):
        Settings(segments=[], user=text)


def test_threads_that_exist_keep_privileges_from_being_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread keeps its capabilities, so it must not be there. Nothing has changed then."""
    from threading import Event, Thread  # noqa: PLC0415

    monkeypatch.setattr(privileges, "_become", lambda *_: pytest.fail("reached"))
    ended = Event()
    thread = Thread(target=ended.wait)
    thread.start()
    try:
        with pytest.raises(VtepError, match="cannot drop privileges: threads exist"):
            privileges.drop(frozenset(), User("nobody", os.getuid() + 1, 1))
    finally:
        ended.set()
        thread.join()
