"""Where control sockets are: the names that servers give them, and how clients find them.

All network namespaces of a host share /run, so two VTEPs may want one name. Who comes second takes
another; and a client that sees several chooses the one of the namespace that it is in.
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
_SUFFIX = ".sock"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""

_BACKLOG = 128
_LOCK_TRIES = 100
_LOCK_PAUSE = 0.02

_PROBE_TIMEOUT = 1.0
"""Seconds to wait for a listener whose queue is full."""


class TakenError(VtepError):
    """Somebody listens on a socket of this name."""


@frozen
class Listener:
    """A listening socket and its file."""

    socket: socket.socket
    path: Path
    _inode: int

    def remove(self) -> None:
        """Remove the file, if it is still ours."""
        with suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


@frozen
class Live:
    """A socket on which somebody listens; `pid` is 0 if it is in another process namespace."""

    path: Path
    pid: int


def folder() -> Path | None:
    """Where sockets are by default; None for a user for whom there is no such place."""
    if os.geteuid() == 0:
        return _RUN
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "pyvtep" if runtime else None


# --- for a server ---------------------------------------------------------------------------


def listen_by_default(name: str) -> tuple[Listener, TakenError | None]:
    """Listen in the default folder, under a name.

    Where that is taken, which is given back too, `<name>-<pid>` is used. Raises VtepError where
    there is no such folder and none can be made.
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
    """Remove what killed processes have left: names with a pid in them are not taken over."""
    with _only_one_starts_in(place):
        for path in place.glob(f"*{_SUFFIX}"):
            if path.is_socket() and probe(path) is None:
                path.unlink(missing_ok=True)


def listen(path: Path) -> Listener:
    """Listen on a Unix socket that only its owner may use.

    A socket file that nobody listens on any more is taken over. Raises TakenError, saying who
    listens, or VtepError where the host refuses.
    """
    with _only_one_starts_in(path.parent):
        if (owner := probe(path)) is not None:
            raise TakenError(
                f"--control {path}: is that of process {owner or 'another'}; give another PATH"
            )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with suppress(FileNotFoundError):
                if not stat.S_ISSOCK(path.lstat().st_mode):
                    raise VtepError(f"--control {path}: exists, and is no socket")  # noqa: TRY301
                path.unlink()
            # The kernel takes over the mode from here, so the file never has a wider one.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(os.fspath(path))
            listener.listen(_BACKLOG)
            return Listener(listener, path, path.stat().st_ino)
        except OSError as error:
            listener.close()
            raise _refused(path, error) from error
        except VtepError:
            listener.close()
            raise


@contextmanager
def _only_one_starts_in(place: Path) -> Iterator[None]:
    """Hold a lock: between two who both find a dead socket, one would remove the other's."""
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
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(lock)


def _refused(path: Path, error: OSError) -> VtepError:
    return VtepError(f"--control {path}: {descriptors.reason(error)}; give another PATH, or none")


# --- for a client ---------------------------------------------------------------------------


def probe(path: Path) -> int | None:
    """The process that listens on a socket (0 if unknown), or None if nobody does."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(_PROBE_TIMEOUT)
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
    """The default socket on which a process listens, or None if there is none."""
    place = folder()
    names = sorted(place.glob(f"*{_SUFFIX}")) if place is not None else []
    return next((path for path in names if probe(path) == pid), None)


def find() -> Path:
    """The socket of the VTEP that is meant where none was named.

    It is the only one there is or, if there are several, the only one of this network namespace.
    Raises VtepError otherwise, with the candidates.
    """
    place = folder()
    names = sorted(place.glob(f"*{_SUFFIX}")) if place is not None else []
    live = [Live(path, pid) for path in names if (pid := probe(path)) is not None]
    if not live:
        where = f" in {place}" if place is not None else " (XDG_RUNTIME_DIR is not set)"
        raise VtepError(f"no running pyvtep was found{where}; name its socket: --socket PATH")
    if len(live) > 1:
        here = _namespace("self")
        live = [one for one in live if here and _namespace(str(one.pid)) == here] or live
    if len(live) > 1:
        choice = ", ".join(f"{one.path} (process {one.pid or '?'})" for one in live)
        raise VtepError(f"several pyvtep's are running; choose one with --socket: {choice}")
    return live[0].path


def of_this_namespace() -> list[Path]:
    """The sockets of all VTEPs in the network namespace that this process is in."""
    place, here = folder(), _namespace("self")
    names = sorted(place.glob(f"*{_SUFFIX}")) if place is not None else []
    return [path for path in names if (pid := probe(path)) and _namespace(str(pid)) == here]


def _namespace(process: str) -> tuple[int, int] | None:
    """What identifies the network namespace of a process; None if it can't be seen."""
    try:
        seen = Path(f"/proc/{process}/ns/net").stat()
    except OSError:
        return None
    return seen.st_dev, seen.st_ino
