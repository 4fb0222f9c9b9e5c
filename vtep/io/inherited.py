"""Descriptors that this process has not opened itself, by the role that each of them plays.

They come from a process that hands its work over (`vtep.upgrade`), or from the descriptor store of
a service manager. Whatever is opened under a role takes the descriptor that is there, and opens a
new one only if there is none.

Two processes may hold one TAP or one socket at a time, since a descriptor is a reference to the
kernel's object. So nothing here changes an option of an object when it is taken: that would disturb
a process that still forwards with it.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from vtep.io.binding import Binding
    from vtep.wire.address import Address

CONTROL_ROLE: Final = "control"
"""The listening control socket."""

SPEAKER_ROLE: Final = "evpn-speaker"
"""The process of the EVPN speaker, as a pidfd."""

TUNNEL_GSO_ROLE: Final = "tunnel-gso"
"""The private TAP of tunnel GSO."""

_TAP = "tap-"


def tap_role(name: str) -> str:
    """Return the role of the TAP that is configured under a name; it may have been renamed since.

    It is also a valid FDNAME of a service manager: ASCII, without a colon (sd_pid_notify_with_fds).
    """
    return f"{_TAP}{name}"


def namespace_role(tap: str, part: str) -> str:
    """Return the role of a descriptor that belongs to the network namespace of a TAP."""
    return f"netns-{part}-{tap}"


def receiver_role(binding: "Binding", port: int, *, gro: bool, zero_checksums: bool) -> str:
    """Return the role of the receiving socket of an endpoint."""
    return f"receiver-{_where(binding, port)}-{int(gro)}{int(zero_checksums)}"


def group_role(receiver: str, group: "Address") -> str:
    """Return the role of the socket of a multicast group, beside the receiver with a role."""
    return f"group-{group}-{receiver}"


def guard_role(receiver: str) -> str:
    """Return the role of the guard socket beside the receiver with a role."""
    return f"guard-{receiver}"


def _where(binding: "Binding", port: int) -> str:
    return f"{binding.version}-{binding.local or 'any'}-{binding.dev or 'any'}-{port}"


class Inherited:
    """Open descriptors by role. It owns those that were not taken yet."""

    def __init__(self, descriptors: Iterable[tuple[str, int]] = ()) -> None:
        self._by_role: dict[str, int] = {}
        self.in_use = False
        """True if another process forwards with them: a TAP that was removed is not made anew."""
        for role, fd in descriptors:
            self.put(role, fd)

    def __len__(self) -> int:
        return len(self._by_role)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the roles of the descriptors that were not taken."""
        return iter(tuple(self._by_role))

    def put(self, role: str, fd: int) -> None:
        """Own a descriptor; one that had the same role before is closed."""
        self._close(self._by_role.pop(role, -1))
        os.set_inheritable(fd, False)
        self._by_role[role] = fd

    def get(self, role: str) -> int | None:
        """Return the descriptor of a role, which stays here; None without one."""
        return self._by_role.get(role)

    def take(self, role: str) -> int | None:
        """Return the descriptor of a role, which the caller owns from now on; None without one."""
        return self._by_role.pop(role, None)

    def close(self) -> None:
        """Close the descriptors that were not taken."""
        while self._by_role:
            self._close(self._by_role.popitem()[1])

    @staticmethod
    def _close(fd: int) -> None:
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)
