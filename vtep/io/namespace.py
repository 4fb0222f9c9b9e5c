"""Another network namespace: found by a process, a file or a TAP, and entered by a child.

The child (`namespace_child`) opens netlink sockets and perhaps a TAP there, and hands them over. A
socket belongs to the namespace in which it was opened, whichever process uses it. So pyvtep stays
where it is, with all its threads. It needs no privilege in a user namespace that its user owns: for
a netlink request, the kernel checks both the opener of the socket and the sender
(netlink_ns_capable() in net/netlink/af_netlink.c), and the owner has all capabilities there
(cap_capable() in security/commoncap.c).
"""

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import asdict, frozen

from vtep import descriptors
from vtep.errors import VtepError
from vtep.io import namespace_child
from vtep.io.namespace_errors import GIVEN_UP, Surroundings, explain

# From the kernel's include/uapi/linux/nsfs.h.
_NS_GET_USERNS: Final = 0xB701
_NS_GET_NSTYPE: Final = 0xB703
_NS_GET_OWNER_UID: Final = 0xB704

_UID = struct.Struct("=I")
_REPORT_MAX = 100
_DESCRIPTORS_MAX = 8
_DEADLINE_S = 30.0
"""Seconds for a child that takes some 20 ms on a host that is not busy."""


@frozen
class NamespaceDescriptors:
    """Descriptors that were opened in a network namespace, and keep it alive.

    The fields are also the parts of their roles in an upgrade, see `vtep.io.inherited`.
    """

    file: int
    """The namespace itself."""
    route: int
    """A netlink socket for requests."""
    events: int
    """A netlink socket that gets notifications of links and addresses; not blocking."""
    devices: int
    """/proc/net/dev of the namespace."""

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield the part and the number of each descriptor."""
        yield from asdict(self).items()

    def close(self) -> None:
        """Close all of them."""
        for fd in asdict(self).values():
            os.close(fd)


def namespace_path(netns: str) -> str:
    """Return the path of the namespace that `--netns` names, by a process or by its file."""
    return f"/proc/{netns}/ns/net" if netns.isdigit() else netns


def open_namespace(netns: str) -> int:
    """Open the namespace that `--netns` names. Returns: its descriptor. Raises: VtepError."""
    try:
        # Without O_NONBLOCK, the open of a pipe would wait for its other end.
        fd = os.open(namespace_path(netns), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _not_opened(netns, error) from error
    with suppress(OSError):
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) == namespace_child.CLONE_NEWNET:
            return fd
    os.close(fd)
    # `ip netns` mounts the namespace over an empty file, in the mount namespace of the caller.
    raise VtepError(
        f"--netns {netns}: is no network namespace, or is mounted in another mount namespace only; "
        "give the PID of a process in it"
    )


def _not_opened(netns: str, error: OSError) -> VtepError:
    """Return the error for a namespace that cannot be opened."""
    is_process = netns.isdigit()
    if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR):
        reason = (
            "there is no such process (any more)"
            if is_process
            else "there is no such file; if a container engine made it in its own mount namespace, "
            "give the PID of a process in it (podman inspect -f '{{.State.Pid}}' NAME)"
        )
    elif error.errno in (errno.EACCES, errno.EPERM) and os.geteuid() == 0:
        reason = GIVEN_UP
    elif error.errno in (errno.EACCES, errno.EPERM):
        reason = (
            f"user {os.geteuid()} may not see the namespaces of this process; run pyvtep as the "
            "user who started it, or as root"
            if is_process
            else f"permission denied for user {os.geteuid()}; give the PID of a process in it, or "
            "run pyvtep as root"
        )
    else:
        reason = f"cannot open it: {descriptors.reason(error)}"
    return VtepError(f"--netns {netns}: {reason}")


def is_same(namespace: int, path: str) -> bool:
    """Return whether a path leads to an open namespace. Raises: OSError if it leads nowhere."""
    return os.path.samestat(os.fstat(namespace), Path(path).stat())


def is_here(namespace: int) -> bool:
    """Return whether an open network namespace is that of the calling thread."""
    return is_same(namespace, "/proc/thread-self/ns/net")


def has_ended(namespace: int, netns: str) -> bool:
    """Return whether a process has left an open namespace, or its file was removed.

    The kernel keeps the namespace itself as long as a descriptor of a socket there is open.
    """
    try:
        return not is_same(namespace, namespace_path(netns))
    except OSError as error:  # It may have become invisible, too.
        return error.errno in (errno.ENOENT, errno.ESRCH)


def enter(option: str, namespace: int, tap: str | None) -> tuple[NamespaceDescriptors, int | None]:
    """Open descriptors in a network namespace and, with a name, a TAP. Takes some 20 ms.

    `option` is the option with its value, for errors. `namespace` is owned by the result.

    Raises: VtepError, with a remedy; `namespace` is closed then.
    """
    try:
        with descriptors.explained(f"enter a network namespace for {option}"):
            report, fds = _run_child(namespace, tap or "")
    except BaseException as error:
        os.close(namespace)
        if isinstance(error, OSError):
            reason = descriptors.reason(error)
            raise VtepError(f"{option}: the child that was to enter it failed: {reason}") from error
        raise
    if report == "ok" and len(fds) == 3 + (tap is not None):
        return NamespaceDescriptors(namespace, *fds[:3]), fds[3] if tap is not None else None
    facts = _surroundings(namespace)
    for fd in (namespace, *fds):
        os.close(fd)
    step, _, number = report.partition(" ")
    if not number.isdigit():
        raise VtepError(f"{option}: the child that was to enter it has failed; its error is above")
    raise VtepError(f"{option}: {explain(step, int(number), tap or '', facts)}")


def _run_child(namespace: int, tap: str) -> tuple[str, list[int]]:
    """Run the child. Returns: its report, with its descriptors. Raises: OSError."""
    user = _owner(namespace)
    passed = [namespace, *([user] if user is not None else [])]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with ours, theirs:
            ours.settimeout(_DEADLINE_S)
            numbers = (theirs.fileno(), namespace, -1 if user is None else user)
            # Isolated and without site: nothing of the environment runs with its privileges.
            command = [sys.executable, "-I", "-S", namespace_child.__file__, *map(str, numbers)]
            child = subprocess.Popen(  # noqa: S603  our own program
                [*command, tap], pass_fds=[theirs.fileno(), *passed], stdin=subprocess.DEVNULL
            )
            theirs.close()
            try:
                octets, fds, _, _ = socket.recv_fds(ours, _REPORT_MAX, _DESCRIPTORS_MAX)
            finally:
                child.kill()
                child.wait()
            for fd in fds:
                os.set_inheritable(fd, False)
            return octets.decode(errors="replace"), fds
    finally:
        if user is not None:
            os.close(user)


def _owner(namespace: int) -> int | None:
    """Open the user namespace that owns a network namespace; None if it is the own one.

    Returns: also None if it is above the own one, where this process has no capabilities.
    """
    try:
        user: int = fcntl.ioctl(namespace, _NS_GET_USERNS)
    except OSError:
        return None
    os.set_inheritable(user, False)
    if is_same(user, "/proc/thread-self/ns/user"):
        os.close(user)
        return None
    return user


def _surroundings(namespace: int) -> Surroundings:
    """Return the facts of this host that an error may depend on."""
    owner_uid = None
    with suppress(OSError):
        if (user := _owner(namespace)) is not None:
            with closing_fd(user):
                (owner_uid,) = _UID.unpack(fcntl.ioctl(user, _NS_GET_OWNER_UID, bytes(_UID.size)))
    return Surroundings(
        uid=os.geteuid(),
        owner_uid=owner_uid,
        profile=_read("/proc/thread-self/attr/apparmor/current"),
        restricts_user_namespaces=(
            _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1"
        ),
    )


def _read(path: str) -> str:
    """Return the text of a file, or nothing if it cannot be read."""
    with suppress(OSError):
        return Path(path).read_text().strip("\0\n ")
    return ""


@contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)
