"""The files of control sockets: how servers name and open them, and how clients find them.

All network namespaces of a host share /run, so two VTEPs may have TAPs of one name there: the
second socket gets another name. `vtep.control.choice` decides which of several a client uses.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen

from vtep import descriptors
from vtep.errors import VtepError

_RUN = Path("/run/pyvtep")
_USERS = Path("/run/user")
_SUFFIX = ".sock"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""

_BACKLOG = 128
_LOCK_TRIES = 100
_LOCK_INTERVAL_S = 0.02

_CONNECT_TIMEOUT_S = 1.0
"""Time to wait for a server whose accept queue is full."""


class TakenError(VtepError):
    """Another process listens on a socket of this name. `problem` is the message without advice."""

    def __init__(self, path: Path, pid: int) -> None:
        self.problem = (
            f"--control {path}: in use by {f'process {pid}' if pid else 'another process'}"
        )
        super().__init__(f"{self.problem}; give another PATH")


@frozen
class ControlSocket:
    """The listening control socket of this process, and its file."""

    socket: socket.socket
    path: Path
    _inode: int

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it."""
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


@frozen
class LiveSocket:
    """A socket on which a process listens.

    `pid` is 0 if the process is in another PID namespace. `here` is True if it is in the network
    namespace of the caller, and None if that is not known.
    """

    path: Path
    pid: int
    here: bool | None


def folder() -> Path | None:
    """Return the default directory of sockets; None for a user without XDG_RUNTIME_DIR."""
    if os.geteuid() == 0:
        return _RUN
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "pyvtep" if runtime else None


def names() -> frozenset[str]:
    """Return the names of the sockets in the default directory, which are those of TAPs."""
    place = folder()
    if place is None:
        return frozenset()
    with suppress(OSError):
        return frozenset(path.stem for path in place.iterdir() if path.suffix == _SUFFIX)
    return frozenset()


# --- for a server ---------------------------------------------------------------------------


def listen_by_default(name: str) -> tuple[ControlSocket, TakenError | None]:
    """Listen in the default directory, under a name or, if it is taken, `<name>-<pid>`.

    Returns: the socket, and the error that says which process has the name, if one has.

    Raises: VtepError if the directory does not exist and cannot be created.
    """
    place = folder()
    if place is None:
        raise VtepError("XDG_RUNTIME_DIR is not set; name one with --control PATH")
    try:
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise _refused(place, error) from error
    _remove_dead(place)
    try:
        return listen(place / f"{name}{_SUFFIX}"), None
    except TakenError as taken:
        return listen(place / f"{name}-{os.getpid()}{_SUFFIX}"), taken


def _remove_dead(place: Path) -> None:
    """Remove the files of processes that were killed: those with a pid would stay for ever."""
    with _locked(place):
        for path in place.glob(f"*{_SUFFIX}"):
            if path.is_socket() and listening_process(path) is None:
                path.unlink(missing_ok=True)


def listen(path: Path) -> ControlSocket:
    """Listen on a Unix socket that only its owner may connect to.

    A socket file on which no process listens any more is replaced.

    Raises: TakenError, with the process that listens; VtepError if the host refuses.
    """
    with _locked(path.parent):
        if (owner := listening_process(path)) is not None:
            raise TakenError(path, owner)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with suppress(FileNotFoundError):
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    raise VtepError(  # noqa: TRY301
                        f"--control {path}: exists and is not a socket; give another PATH"
                    )
                path.unlink()
            # bind(2) gives the file the mode of the socket: it is never wider, even for a moment.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
            return ControlSocket(listener, path, path.stat().st_ino)
        except OSError as error:
            listener.close()
            raise _refused(path, error) from error
        except VtepError:
            listener.close()
            raise


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Lock a directory against other processes that start.

    Of two that find a dead socket at the same time, one would remove the new socket of the other.
    """
    try:
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _refused(place, error) from error
    try:
        for tries in range(_LOCK_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if tries == _LOCK_TRIES - 1:
                    raise VtepError(f"--control: another process keeps {place} locked") from None
                time.sleep(_LOCK_INTERVAL_S)
        yield
    finally:
        os.close(lock)


def _refused(path: Path, error: OSError) -> VtepError:
    return VtepError(f"--control {path}: {descriptors.reason(error)}; give another PATH, or none")


# --- for a client ---------------------------------------------------------------------------


def listening_process(path: Path) -> int | None:
    """Return the process that listens on a socket, 0 if it is not known, None if none does."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(_CONNECT_TIMEOUT_S)
        try:
            caller.connect(os.fspath(path))
        except TimeoutError:
            return 0
        except OSError as error:
            return 0 if error.errno in (errno.EACCES, errno.EPERM, errno.EAGAIN) else None
        return _peer(caller)


def _peer(connected: socket.socket) -> int:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(credentials)[0]
    return pid


def of_process(pid: int) -> Path | None:
    """Return the socket in the default directory on which a process listens; None without one."""
    place = folder()
    names = sorted(place.glob(f"*{_SUFFIX}")) if place is not None else []
    return next((path for path in names if listening_process(path) == pid), None)


def live() -> list[LiveSocket]:
    """Return the sockets in the default directory on which a process listens, sorted by name."""
    place = folder()
    names = sorted(place.glob(f"*{_SUFFIX}")) if place is not None else []
    own = namespace()
    found = [(path, pid) for path in names if (pid := listening_process(path)) is not None]
    return [LiveSocket(path, pid, _is_in(own, pid)) for path, pid in found]


def none_found() -> VtepError:
    """Return the error for the case that no process listens, with hints to other sockets."""
    place = folder()
    where = f" in {place}" if place is not None else " (XDG_RUNTIME_DIR is not set)"
    hint = "name its socket: --socket PATH"
    if os.geteuid() != 0 and _RUN.is_dir():
        hint = f"those of root are in {_RUN}: run this with sudo, or {hint}"
    elif os.geteuid() == 0 and (others := sorted(_USERS.glob(f"*/pyvtep/*{_SUFFIX}"))):
        hint = f"a user's is at --socket {others[0]}"
    return VtepError(f"no running pyvtep was found{where}; {hint}")


def namespace(process: str = "thread-self") -> str | None:
    """Return the identity of the network namespace of a process; None if it is not known."""
    try:
        seen = Path(f"/proc/{process}/ns/net").stat()
    except OSError:
        return None
    return f"{seen.st_dev}:{seen.st_ino}"


def _is_in(own: str | None, pid: int) -> bool | None:
    """Return whether a process is in this network namespace; None if that is not known."""
    # If /proc is that of another PID namespace, its numbers are of other processes.
    with suppress(OSError):
        if pid and own is not None and Path("/proc/self").readlink().name == str(os.getpid()):
            theirs = namespace(str(pid))
            return None if theirs is None else theirs == own
    return None
