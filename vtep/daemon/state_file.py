"""FDB entries in a file, over restarts.

The file is one JSON object with one entry a line, and ends with the SHA-256 of all before its last
line, so that a file that is not whole is told from one that is. It is replaced as a whole: whenever
the machine or the process dies, there is the old one or the new one.
"""

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from attrs import frozen

from vtep import descriptors
from vtep.errors import VtepError
from vtep.forwarding.fdb import EntryKind, EntryState, Remote
from vtep.wire.ethernet import format_mac, parse_mac

_FORMAT: Final = b'{"format": "pyvtep-state", '
"""What no other file begins with."""

_HEAD: Final = '"version": %d, "saved": %.3f, "entries": [\n'
_TAIL: Final = b'\n], "sha256": "'
_END: Final = b'"}\n'
_VERSION: Final = 1

_PAGE: Final = 100
"""Entries that are written in one go: a moment's work."""


class DamagedError(ValueError):
    """A file of ours that is not whole, or that this version can't read."""


@frozen
class Saved:
    """What is kept of an entry; `age` is how many seconds ago it was last heard."""

    vni: int
    mac: bytes
    destinations: tuple[Remote, ...]
    kind: EntryKind
    age: float


def encode(entries: Iterable[Saved | None], now: float) -> Iterator[bytes]:
    """A file's octets, in pieces; `now` is the time of day, in seconds since 1970.

    None is nothing, but counts as work: a piece is a moment's work.
    """
    digest = hashlib.sha256()
    between = _FORMAT + (_HEAD % (_VERSION, now)).encode()
    lines: list[str] = []
    for number, entry in enumerate(entries, 1):
        if entry is not None:
            lines.append(json.dumps(_row(entry)))
        if number % _PAGE == 0:
            if lines:
                piece = between + ",\n".join(lines).encode()
                between, lines = b",\n", []
                digest.update(piece)
                yield piece
            else:
                yield b""
    piece = between + ",\n".join(lines).encode() if lines or between != b",\n" else b""
    digest.update(piece)
    yield piece + _TAIL + digest.hexdigest().encode() + _END


def _row(entry: Saved) -> dict[str, Any]:
    return {
        "vni": entry.vni,
        "mac": format_mac(entry.mac),
        "destinations": [
            {"dst": remote.host, "port": remote.port, "dst_vni": remote.vni, "via": remote.via}
            for remote in entry.destinations
        ],
        "state": str(entry.kind.state),
        "extern_learn": entry.kind.extern_learn,
        "sticky": entry.kind.sticky,
        "age": round(entry.age, 3),
    }


def decode(octets: bytes) -> tuple[float, list[Saved]]:
    """When a file was written, in seconds since 1970, and what is in it.

    Raises DamagedError, saying what is wrong, for a file of ours that can't be used, and ValueError
    for one that is not ours.
    """
    if not octets.startswith(_FORMAT):
        if _FORMAT.startswith(octets):
            raise DamagedError("it is cut off")
        raise ValueError("it was not written by pyvtep")
    body, tail, rest = octets.rpartition(_TAIL)
    if not tail or not rest.endswith(_END):
        raise DamagedError("it is cut off")
    if hashlib.sha256(body).hexdigest().encode() != rest.removesuffix(_END):
        raise DamagedError("its contents do not match its check value")
    try:
        content = json.loads(octets)
        version = content["version"]
        if version == _VERSION:
            return float(content["saved"]), [_saved(row) for row in content["entries"]]
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise DamagedError(f"its contents make no sense ({error!r})") from error
    raise DamagedError(f"it is of version {version}, not {_VERSION}")


def _saved(row: dict[str, Any]) -> Saved:
    remotes = tuple(
        Remote(str(to["dst"]), int(to["port"]), to["dst_vni"], to["via"])
        for to in row["destinations"]
    )
    kind = EntryKind(EntryState(row["state"]), bool(row["extern_learn"]), bool(row["sticky"]))
    return Saved(int(row["vni"]), parse_mac(row["mac"]), remotes, kind, float(row["age"]))


# --- the file -------------------------------------------------------------------------------


@frozen
class Loaded:
    """What was found in a file."""

    entries: tuple[Saved, ...] = ()
    elapsed: float = 0
    """Seconds since it was written."""
    warning: str | None = None
    """What a person should know of it, in one line."""


def load(path: Path) -> Loaded:
    """Read a state file, where there is one.

    An empty one is as none. One that is not whole is kept aside under another name, which
    `Loaded.warning` says. Raises VtepError where the file is not ours, which is then left as it is,
    or can't be read or written.
    """
    _check(path)
    try:
        octets = path.read_bytes()
    except FileNotFoundError:
        octets = b""
    except OSError as error:
        raise VtepError(f"--state {path}: can't be read: {descriptors.reason(error)}") from error
    if not octets:
        return Loaded()
    try:
        written, entries = decode(octets)
    except DamagedError as error:
        aside = _set_aside(path)
        return Loaded(warning=f"--state {path}: {error}; starting without, it is now {aside}")
    except ValueError as error:
        raise VtepError(f"--state {path}: {error}; give the name of another file") from error
    return Loaded(tuple(entries), max(0.0, time.time() - written))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have a state file for this process alone, by means of a lock on `<path>.lock` beside it.

    Raises VtepError where another process has it, or the host refuses.
    """
    _check(path)
    beside = path.with_name(f"{path.name}.lock")
    try:
        lock = _lock(beside)
    except BlockingIOError:
        raise VtepError(
            f"--state {path}: is that of process {_owner(beside)}; give each its own FILE"
        ) from None
    except OSError as error:
        raise VtepError(
            f"--state {path}: {beside} can't be locked: {descriptors.reason(error)}"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            beside.unlink()  # While it is locked: it can't be another's.
        os.close(lock)


def _lock(beside: Path) -> int:
    """A descriptor of a file, which is made if need be, with a lock; raises OSError."""
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(beside, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(beside.stat(), os.fstat(lock)):
                    os.ftruncate(lock, 0)
                    os.write(lock, b"%d\n" % os.getpid())
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # Who had it has removed it at its end.


def _owner(beside: Path) -> str:
    """The process that has locked a file, as far as that says."""
    try:
        pid = beside.read_text().strip()
    except (OSError, ValueError):
        pid = ""
    return pid if pid.isdecimal() else "another"


def _check(path: Path) -> None:
    """Raise VtepError where there can be no state file, before anything is touched."""
    try:
        with suppress(FileNotFoundError):
            _check_regular(path)
    except OSError as error:
        raise VtepError(f"--state {path}: can't be read: {descriptors.reason(error)}") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise VtepError(f"--state {path}: no file can be written in {path.parent}")


def _check_regular(path: Path) -> None:
    """Raise OSError where there is something that is no regular file, such as a device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def _set_aside(path: Path) -> Path:
    """Give a file a name that nothing has; raises VtepError where that fails."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.bad-{stamp}")
    number = 0
    while True:
        try:
            # A link, unlike a renamed file, replaces nothing.
            os.link(path, aside, follow_symlinks=False)
            path.unlink()
        except FileExistsError:
            number += 1
            aside = path.with_name(f"{path.name}.bad-{stamp}-{number}")
        except OSError as error:
            raise VtepError(
                f"--state {path}: is damaged, and can't be renamed: {error.strerror}"
            ) from error
        else:
            return aside


def store(path: Path, pieces: Iterable[bytes]) -> None:
    """Replace a state file as a whole; raises OSError, and then it is what it was."""
    with replacing(path) as file:
        file.writelines(pieces)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write what is to be in a state file, which has it once the block has ended.

    Raises OSError; then, and where the block does, the state file is what it was.
    """
    new = path.with_name(f"{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            _check_regular(path)  # Somebody may have put something else there.
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
