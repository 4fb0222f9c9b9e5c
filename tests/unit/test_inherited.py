"""Inherited descriptors: who owns them, and who closes those that are not needed."""

import os
import socket
from ipaddress import ip_address

import pytest

from vtep.io.binding import Binding
from vtep.io.inherited import Inherited, group_role, guard_role, receiver_role, tap_role

ANY = Binding(socket.AF_INET, None, None)


def _open() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_what_is_taken_belongs_to_the_taker_and_the_rest_is_closed() -> None:
    taken, replaced, left = (_open() for _ in range(3))
    inherited = Inherited([("tap-vx0", taken), ("control", replaced)])
    inherited.put("control", left)
    assert not _is_open(replaced)
    assert inherited.take("tap-vx0") == taken
    assert inherited.take("tap-vx0") is None
    assert list(inherited) == ["control"]
    inherited.close()
    assert _is_open(taken)
    assert not _is_open(left)
    assert not os.get_inheritable(taken)
    os.close(taken)


def test_each_endpoint_group_and_guard_has_a_role_of_its_own() -> None:
    dev = Binding(socket.AF_INET, ip_address("192.0.2.1"), "eth0")
    receivers = [
        receiver_role(binding, port, gro=gro, zero_checksums=zero)
        for binding in (ANY, dev, Binding(socket.AF_INET6, None, None))
        for port in (4789, 8472)
        for gro in (True, False)
        for zero in (True, False)
    ]
    groups = [group_role(role, ip_address("239.1.1.1")) for role in receivers]
    roles = [*receivers, *groups, *map(guard_role, receivers)]
    assert len(set(roles)) == len(roles)


@pytest.mark.parametrize("name", ["vx0", "a-b.c", "x" * 15])
def test_the_role_of_a_tap_is_a_valid_fdname(name: str) -> None:
    role = tap_role(name)
    assert role.isascii()
    assert role.isprintable()
    assert ":" not in role
    assert len(role) <= 255
