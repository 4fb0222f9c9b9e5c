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
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

from attrs import frozen

from vtep import descriptors
from vtep.errors import VtepError

_RUN = Path("/run/pyvtep")
_USERS = Path("/run/user")
_SUFFIX = ".sock"
_SPEAKER_SUFFIX = ".evpn"
_LOCK = ".lock"
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""

_ACL_VERSION = 2
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_USER_OBJ, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x04, 0x08, 0x10, 0x20
_ACL_NO_ID = 0xFFFFFFFF
"""From the kernel's include/uapi/linux/posix_acl.h and posix_acl_xattr.h: an entry is a tag, a
permission (6 is rw; to connect takes w) and the ID of a user or group."""

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

    def name_this_process(self) -> None:
        """Make the kernel name this process to clients, not the one that made the socket.

        Another listen(2) does so (unix_listen() in net/unix/af_unix.c).
        """
        self.socket.listen(_BACKLOG)

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
    """Return the directory in which this user's processes listen by default; None without one.

    That is /run/pyvtep for root. For another user, it is the directory in it that systemd or root
    has made for this user (see `prepare`), or else one in XDG_RUNTIME_DIR.
    """
    if os.geteuid() == 0:
        return _RUN
    if (place := _of_unit() or _owned(_RUN / str(os.geteuid()))) is not None:
        return place
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "pyvtep" if runtime else None


def _of_unit() -> Path | None:
    """Return the directory below /run/pyvtep of the systemd unit of this process, if any."""
    # RuntimeDirectory= may name several.
    return _owned(Path(os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]))


def _owned(place: Path) -> Path | None:
    """Return a directory if it is /run/pyvtep or below, and belongs to this user; else None."""
    with suppress(OSError):
        if _RUN in (place, *place.parents) and place.stat().st_uid == os.geteuid():
            return place
    return None


def _sockets() -> list[Path]:
    """Return the sockets in all default directories that this user can read, sorted by name."""
    own = folder()
    places = {_RUN, *([own] if own is not None else [])}
    with suppress(OSError):
        places.update(path for path in _RUN.iterdir() if path.is_dir())
    found: list[Path] = []
    for place in places:
        with suppress(OSError):
            found += (path for path in place.iterdir() if path.suffix == _SUFFIX)
    return sorted(found)


def speaker_socket(control: Path) -> Path:
    """Return the path of the socket of the EVPN speaker, beside the control socket of its VTEP."""
    return control.with_suffix(_SPEAKER_SUFFIX)


def names() -> frozenset[str]:
    """Return the names of the sockets in the default directories, which are those of TAPs."""
    return frozenset(path.stem for path in _sockets())


# --- for a server ---------------------------------------------------------------------------


def prepare(uid: int, gid: int) -> None:
    """Create the directory for the sockets of a user, as root; see `folder`. Raises: VtepError."""
    own = _RUN / str(uid)
    try:
        _RUN.mkdir(mode=0o755, exist_ok=True)
        _make_searchable(_RUN)
        own.mkdir(mode=0o755, exist_ok=True)
        _make_searchable(own)
        found = own.stat(follow_symlinks=False)
        if (found.st_uid, found.st_gid) != (uid, gid):
            # As root without CAP_CHOWN, in a container, even a change to the same owner is refused.
            os.chown(own, uid, gid, follow_symlinks=False)
    except OSError as error:
        raise _refused(own, error) from error


def _make_searchable(place: Path) -> None:
    """Allow all users to find the sockets in a directory: the mode of each says who may connect."""
    if place.stat().st_mode & 0o777 != 0o755:
        place.chmod(0o755)


def listen_by_default(
    name: str, gids: Collection[int] = ()
) -> tuple[ControlSocket, TakenError | None]:
    """Listen in the default directory, under a name or, if it is taken, `<name>-<pid>`.

    Members of the groups `gids` may connect, too.

    Returns: the socket, and the error that says which process has the name, if one has.

    Raises: VtepError if the directory does not exist and cannot be created.
    """
    place = folder()
    if place is None:
        raise VtepError("XDG_RUNTIME_DIR is not set; name one with --control PATH")
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if gids:
            _make_searchable(place)
    except OSError as error:
        raise _refused(place, error) from error
    _remove_dead(place)
    try:
        return listen(place / f"{name}{_SUFFIX}", gids), None
    except TakenError as taken:
        return listen(place / f"{name}-{os.getpid()}{_SUFFIX}", gids), taken


def _remove_dead(place: Path) -> None:
    """Remove the files of processes that were killed: those with a pid would stay for ever."""
    with _locked(place):
        for path in place.glob(f"*{_SUFFIX}"):
            if path.is_socket() and listening_process(path) is None:
                path.unlink(missing_ok=True)


def listen(path: Path, gids: Collection[int] = ()) -> ControlSocket:
    """Listen on a Unix socket to which its owner and members of the groups `gids` may connect.

    A socket file on which no process listens any more is replaced. The path may be relative: the
    process may change its directory later.

    Raises: TakenError, with the process that listens; VtepError if the host refuses.
    """
    try:
        path = path.absolute()
    except OSError as error:  # The directory of this process was removed.
        raise _refused(path, error) from error
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
            if gids:
                _permit(path, gids)
            listener.listen(_BACKLOG)
            return ControlSocket(listener, path, path.stat().st_ino)
        except OSError as error:
            listener.close()
            raise _refused(path, error) from error
        except VtepError:
            listener.close()
            raise


def _permit(path: Path, gids: Collection[int]) -> None:
    """Permit groups to connect to a socket, by an access control list (acl(5)), in one step.

    A list can name several groups, and the owner can set it without being their member, which
    chown(2) would require. Raises: VtepError, OSError.
    """
    # The mask is the most that groups get; the owner's group and others get nothing.
    entries = [
        (_ACL_USER_OBJ, 6, _ACL_NO_ID),
        (_ACL_GROUP_OBJ, 0, _ACL_NO_ID),
        *((_ACL_GROUP, 6, gid) for gid in sorted(set(gids))),
        (_ACL_MASK, 6, _ACL_NO_ID),
        (_ACL_OTHER, 0, _ACL_NO_ID),
    ]
    value = struct.pack("<I", _ACL_VERSION) + b"".join(_ACL_ENTRY.pack(*each) for each in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", value, follow_symlinks=False)
    except OSError as error:
        path.unlink()
        if error.errno == errno.EOPNOTSUPP:
            raise VtepError(
                f"--control {path}: this file system has no access control lists, which "
                "--control-group takes; give another PATH"
            ) from error
        raise


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Lock a directory against other processes that start.

    Of two that find a dead socket at the same time, one would remove the new socket of the other.
    """
    try:
        if _RUN in (place, *place.parents):
            # All users may read the directory itself, so any of them could lock it for ever.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            lock = os.open(place / _LOCK, flags, 0o600)
        else:
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
    """Return the control socket of a process, also that of `--control PATH`; None without one."""
    candidates = chain(_sockets(), _named_sockets(pid))
    return next((path for path in candidates if listening_process(path) == pid), None)


def _named_sockets(pid: int) -> Iterator[Path]:
    """Yield the listening sockets anywhere on this host that may be those of a process.

    Never yields the socket of another program: to connect to it would have effects there, such as
    the start of a service by systemd.
    """
    links = _descriptor_links(pid)
    # A VTEP is not dumpable, so only a privileged user may see its descriptors. But in a unit of
    # systemd, no other program runs as this user.
    if links is None and _of_unit() is None:
        return
    for line in _read_lines(f"/proc/{pid}/net/unix", "/proc/net/unix"):
        # Num, RefCount, Protocol, Flags, Type, St, Inode, Path: unix_seq_show() in
        # net/unix/af_unix.c, where Flags has __SO_ACCEPTCON for a socket that listens.
        fields = line.split(maxsplit=7)
        if len(fields) < 8 or fields[3:5] != ["00010000", "0001"]:
            continue
        path = Path(fields[7])
        if not path.is_absolute():  # An abstract address, or relative to another directory.
            continue
        if f"socket:[{fields[6]}]" in links if links is not None else _is_own(path):
            yield path


def _descriptor_links(pid: int) -> set[str] | None:
    """Return what the descriptors of a process are, as links; None without the permission."""
    found: set[str] = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # Closed meanwhile.
                found.add(str(link.readlink()))
    except OSError:
        return None
    return found


def _is_own(path: Path) -> bool:
    """Return whether a file belongs to this user."""
    with suppress(OSError):
        return path.lstat().st_uid == os.geteuid()
    return False


def _read_lines(*paths: str) -> list[str]:
    """Return the lines of the first of these files that can be read."""
    for path in paths:
        with suppress(OSError):
            return Path(path).read_text(errors="surrogateescape").splitlines()
    return []


def live() -> list[LiveSocket]:
    """Return the sockets on which a process listens, of all default directories, sorted by name.

    Without those that this user may not connect to.
    """
    own = namespace()
    usable = [path for path in _sockets() if os.access(path, os.W_OK)]
    found = [(path, pid) for path in usable if (pid := listening_process(path)) is not None]
    return [LiveSocket(path, pid, _is_in(own, pid)) for path, pid in found]


def has_denied() -> bool:
    """Return True if root has sockets to which this user may not connect, as far as can be seen."""
    try:
        paths = list(_RUN.iterdir())
    except PermissionError:
        return True
    except OSError:
        return False
    return any(path.suffix == _SUFFIX and not os.access(path, os.W_OK) for path in paths)


def none_found() -> VtepError:
    """Return the error for the case that no process listens, with hints to other sockets."""
    place = folder()
    where = f" in {place}" if place is not None else " (XDG_RUNTIME_DIR is not set)"
    hint = "name its socket: --socket PATH"
    if os.geteuid() != 0 and _RUN.is_dir():
        hint = (
            f"those of root are in {_RUN}: run this with sudo, or as a member of the "
            f"--control-group, or {hint}"
        )
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
