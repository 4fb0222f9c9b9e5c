"""The state file: FDB entries in an SQLite database, kept over restarts.

Each row of its table `fdb` is one destination of one MAC, as `bridge fdb show` prints it. The
database is in WAL mode: a commit appends to `FILE-wal`, from which SQLite moves it into the file
later, and at the end. So the cost of a commit is that of its changes, a process that is killed
leaves the last commit, and the file can be read while pyvtep runs:
`sqlite3 FILE 'SELECT * FROM fdb'`.
"""

import errno
import fcntl
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypeVar

from attrs import frozen

from vtep import descriptors
from vtep.errors import VtepError
from vtep.forwarding.fdb import (
    SEQUENCE_MAX,
    DestinationOrigin,
    EntryKind,
    EntryState,
    Remote,
    parse_remote,
)
from vtep.wire import vxlan
from vtep.wire.ethernet import format_mac, parse_mac

log = logging.getLogger("vtep")

_T = TypeVar("_T")

SCHEMA_VERSION: Final = 1
"""The `PRAGMA user_version` of the databases that this module reads and writes."""

_APPLICATION_ID: Final = int.from_bytes(b"pyvt")
"""The `PRAGMA application_id` that tells a state file from any other SQLite database."""

_MAGIC: Final = b"SQLite format 3\0"
_HEADER_LEN: Final = 100
_APPLICATION_ID_AT: Final = slice(68, 72)
"""The header of an SQLite database (https://www.sqlite.org/fileformat2.html, section 1.3)."""

_JSON_FORMAT: Final = b'{"format": "pyvtep-state"'
"""First octets of the JSON files that development versions wrote."""

_SCHEMA: Final = """
BEGIN;
CREATE TABLE fdb (
    vni          INTEGER NOT NULL,
    mac          TEXT    NOT NULL,           -- 00:00:00:00:00:00 is the default entry
    position     INTEGER NOT NULL,           -- of the destination in its entry, from 0
    dst          TEXT    NOT NULL,
    port         INTEGER NOT NULL,
    dst_vni      INTEGER,                    -- NULL: the VNI of the segment
    via          TEXT,                       -- NULL: any device
    state        TEXT    NOT NULL,           -- permanent, static or dynamic
    extern_learn INTEGER NOT NULL,           -- 1: only a control plane has given the destination
    sticky       INTEGER NOT NULL,
    updated      REAL,                       -- last received, in Unix time; NULL: never ages
    origin       TEXT    NOT NULL DEFAULT '',
                 -- the control plane that has given the destination, perhaps besides a user: evpn,
                 -- or extern_learn for another one; '': none, or written before this was kept
    sequence     INTEGER NOT NULL DEFAULT 0, -- of evpn: MAC mobility (RFC 7432, section 7.7)
    PRIMARY KEY (vni, mac, position)
) WITHOUT ROWID;
CREATE TABLE last_commit (
    time       REAL NOT NULL, -- by the clock of fdb.updated, which is never set back
    wall_clock REAL NOT NULL
);
INSERT INTO last_commit VALUES (0, 0);
COMMIT;
"""

_SELECT: Final = """
SELECT vni, mac, dst, port, dst_vni, via, state, extern_learn, sticky, updated, origin, sequence
FROM fdb ORDER BY vni, mac, position
"""
# Not `(vni, mac) IN (VALUES ...)`, for which SQLite 3.40 reads the whole table.
_DELETE: Final = "DELETE FROM fdb WHERE vni = ? AND mac IN (%s)"
_INSERT: Final = """
INSERT INTO fdb (
    vni, mac, position, dst, port, dst_vni, via, state, extern_learn, sticky, updated, origin,
    sequence
) VALUES %s
"""

_EVPN: Final = "evpn"
_OTHER_CONTROL_PLANE: Final = "extern_learn"
"""Values of the column `origin`. Only EVPN has mobility sequence numbers."""

_ROWS_PER_STATEMENT: Final = 50
"""Rows of one INSERT. SQLite releases the GIL once a statement: with one row each, a thread that
writes would ask the event loop for the GIL at every row. 50 rows have 650 of the 999 parameters
that old SQLite libraries allow."""

_BUSY_TIMEOUT_S: Final = 2.0
"""Time for which another program, such as the sqlite3 tool, may keep the database locked."""

_WAL_MAX: Final = 1 << 20
"""Octets to which `-wal` is cut once its contents are in the file."""

_DESCRIPTORS: Final = 4
"""Descriptors that SQLite takes: the database, `-wal`, `-shm`, and the directory for a moment."""


class _DamagedError(Exception):
    """A state file that is damaged, or of a version that this one cannot read."""


@frozen
class SavedEntry:
    """An FDB entry as the state file keeps it.

    `updated` is when a frame from the MAC was last received, in seconds of the monotonic clock;
    None for an entry that does not age.
    """

    vni: int
    mac: bytes
    destinations: tuple[Remote, ...]
    kind: EntryKind
    updated: float | None


Changes: TypeAlias = Mapping[bytes, SavedEntry | None]
"""By MAC of one VNI, the entry that it has now; None if it has none."""


class StateFile:
    """The state file of one VTEP: an SQLite database, and the lock that keeps others from it.

    Call `load` first. After that, changes are written in transactions: `begin`, `replace` as often
    as needed, and `commit` or `rollback`. The calls wait for the disk: while frames are forwarded,
    make them in a thread, one at a time. All raise VtepError with a line that names the file.

    Times that are passed in are of the monotonic clock, `now`, and of the wall clock. The database
    has a clock of its own: it is the wall clock at first, runs with the monotonic clock while this
    process does, and with the wall clock in between. So entries get neither younger nor older
    if the wall clock is set.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db: sqlite3.Connection | None = None
        self._inodes: tuple[tuple[int, int] | None, ...] = ()
        self._written: tuple[int, int] | None = None
        """Size and modification time of the file after our last write to it."""
        self._clock_offset = 0.0
        """Offset from the monotonic clock to the clock of the database."""

    @classmethod
    @contextmanager
    def locked(cls, path: Path) -> Iterator[Self]:
        """Lock a state file for this process, and close it at the end.

        Raises: VtepError if another process has it, or if no file can be there.
        """
        with _locked(path):
            file = cls(path)
            try:
                yield file
            finally:
                file.close()

    def load(self, now: float, wall_clock: float) -> list[SavedEntry]:
        """Read every entry.

        A file that is missing or empty has none. One that is damaged, of another version, or empty
        although `-wal` has commits for it, is renamed, with a warning.

        Raises: VtepError if the file is not a state file, and is left as it is, or if it cannot be
        read.
        """
        _check(self.path)
        self._clock_offset = wall_clock - now
        try:
            if not self.path.stat().st_size and not self._has_wal():
                return []
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._failed("read", error) from error
        try:
            self._db = db = self._open()
            with _damage_as_error():
                ((saved, saved_wall_clock),) = db.execute("SELECT * FROM last_commit")
                # A wall clock that was set back must not make entries younger.
                time_now = saved + max(0.0, wall_clock - saved_wall_clock)
                self._clock_offset = time_now - now
                entries = list(_entries(db.execute(_SELECT), self._clock_offset))
            self._enter_wal_mode(db)  # Not earlier: a damaged file is to stay as it is.
        except _DamagedError as error:
            self._set_aside(error)
            return []
        except (sqlite3.Error, OSError) as error:
            raise self._failed("read", error) from error
        return entries

    def begin(self) -> bool:
        """Begin a transaction; create the database if there is none.

        Returns: True if the database has the entries of the last commit. False if the database is
        empty, so that every entry has to be written: it is new, or the file was removed, replaced
        or damaged meanwhile.
        """
        with self._writing():
            with suppress(FileNotFoundError):
                _check_regular(self.path)
            if self._db is not None and self._current_inodes() != self._inodes:
                # SQLite would go on to write to a file that has no name any more.
                log.warning(
                    "--state %s: was removed or replaced; writing all entries again", self.path
                )
                self._disconnect()
            if self._db is not None and self._current_stamp() != self._written:
                self._reopen()
            usable = self._db is not None
            if self._db is None:
                self._db = self._open_or_create()
                self._enter_wal_mode(self._db)
            self._db.execute("BEGIN IMMEDIATE")
            if not usable:
                self._db.execute("DELETE FROM fdb")
        return usable

    def replace(self, vni: int, changes: Changes) -> None:
        """Replace the rows of some MACs of a VNI."""
        with self._writing() as db:
            for macs in _batches(map(format_mac, changes)):
                db.execute(_DELETE % ", ".join("?" * len(macs)), (vni, *macs))
            entries = filter(None, changes.values())
            rows = chain.from_iterable(_rows(entry, self._clock_offset) for entry in entries)
            for batch in _batches(rows):
                places = f"({', '.join('?' * len(batch[0]))})"
                values = [*chain.from_iterable(batch)]
                db.execute(_INSERT % ", ".join([places] * len(batch)), values)

    def commit(self, now: float, wall_clock: float) -> None:
        """End the transaction; once this returns, its changes are on the disk."""
        with self._writing() as db:
            times = (now + self._clock_offset, wall_clock)
            db.execute("UPDATE last_commit SET time = ?, wall_clock = ?", times)
            db.execute("COMMIT")
            # SQLite has moved `-wal` into the file now and then: only here, and at the end.
            self._written = self._current_stamp()

    def rollback(self) -> None:
        """End the transaction, if there is one, without its changes."""
        if self._db is not None and self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the database in an orderly way: the file is complete without `-wal` then."""
        if self._db is not None:
            self.rollback()
            # If another program has the database open, `-wal` stays until that has closed it.
            with suppress(sqlite3.Error):
                self._db.execute("PRAGMA busy_timeout = 0").fetchall()
                # Leave WAL mode, in which even reading the file would create `-wal` and `-shm`.
                self._db.execute("PRAGMA journal_mode = DELETE").fetchall()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    # --- opening ----------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Open a database that exists.

        Raises: VtepError if it is not a state file; _DamagedError, sqlite3.Error or OSError.
        """
        # This descriptor is closed before SQLite opens the file: to close one later would end the
        # locks that SQLite has on the file (POSIX locks are of the process, not of a descriptor).
        with self.path.open("rb") as file:
            header = file.read(_HEADER_LEN)
        self._check_header(header)
        if not os.access(self.path, os.W_OK):
            raise VtepError(
                f"--state {self.path}: cannot be written: {os.strerror(errno.EACCES)}; change its "
                "mode or its owner, or give another FILE"
            )
        with _damage_as_error():
            db = _connect(self.path)
            try:
                self._check_database(db)
            except BaseException:
                db.close()
                raise
        return db

    def _reopen(self) -> None:
        """Open the database anew, since another program has written to the file itself.

        SQLite would not notice as long as it finds its pages in memory and in `-wal`. A file that
        is damaged now is renamed, with a warning, and `self._db` is None then.
        """
        self._disconnect()
        try:
            self._db = self._open()
        except _DamagedError as error:
            self._set_aside(error)
        except VtepError:
            self._set_aside(_DamagedError("it was overwritten by another program"))
        else:
            self._enter_wal_mode(self._db)

    def _enter_wal_mode(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        # In WAL mode, NORMAL may lose the last commits with the power: FULL waits for the disk.
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_MAX}").fetchall()
        db.execute("SELECT * FROM last_commit").fetchall()  # This creates `-wal`.
        self._inodes = self._current_inodes()
        self._written = self._current_stamp()

    def _check_header(self, header: bytes) -> None:
        """Raise VtepError or _DamagedError unless a file begins as a state file does."""
        if header.startswith(_JSON_FORMAT):
            raise _DamagedError("it is in the JSON format of a development version")
        if header.startswith(_MAGIC) or _MAGIC.startswith(header):
            if len(header) < _HEADER_LEN:
                raise _DamagedError("it is cut off")
            # A database is complete before it has its name, so its first page has this from then.
            if int.from_bytes(header[_APPLICATION_ID_AT]) == _APPLICATION_ID:
                return
        raise VtepError(
            f"--state {self.path}: is not a state file of pyvtep; give the name of another file"
        )

    def _check_database(self, db: sqlite3.Connection) -> None:
        """Raise _DamagedError or sqlite3.Error unless a database is intact and of our version."""
        # A process that was killed has left its last commits in `-wal`.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        ((page_size,),) = db.execute("PRAGMA page_size")
        if self.path.stat().st_size % page_size:  # SQLite would read zeros behind the end.
            raise _DamagedError("it is cut off")
        ((found,),) = db.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise _DamagedError(f"it is damaged ({found.splitlines()[-1]})")
        ((version,),) = db.execute("PRAGMA user_version")
        if version != SCHEMA_VERSION:
            raise _DamagedError(f"it is of version {version}, not {SCHEMA_VERSION}")

    def _open_or_create(self) -> sqlite3.Connection:
        """Open the database; create it if it does not exist, is empty or is damaged."""
        with suppress(FileNotFoundError):
            if self.path.stat().st_size:
                try:
                    return self._open()
                except _DamagedError as error:
                    self._set_aside(error)
        self._create()
        return self._open()

    def _create(self) -> None:
        """Create an empty database, which has its name once it is complete."""
        new = self.path.with_name(f"{self.path.name}.new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        # SQLite gives `-wal` and `-shm` the mode and the owner of the database.
        os.close(os.open(new, flags, 0o600))
        try:
            db = _connect(new)
            try:
                db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                db.executescript(_SCHEMA)
            finally:
                db.close()
            with suppress(FileNotFoundError):
                _check_regular(self.path)
            new.replace(self.path)
        except BaseException:
            for name in (new, new.with_name(f"{new.name}-journal")):
                with suppress(OSError):
                    name.unlink()
            raise
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _set_aside(self, error: _DamagedError) -> None:
        """Rename a file that can't be used, with its `-wal`, and log a warning.

        Raises: VtepError if that fails.
        """
        self._disconnect()
        try:
            aside = _rename_to_free_name(self.path)
            with suppress(FileNotFoundError):  # The last commits, unless they are in the file.
                wal = self.path.with_name(f"{self.path.name}-wal")
                wal.replace(aside.with_name(f"{aside.name}-wal"))
        except OSError as refused:
            why = refused.strerror
            raise VtepError(f"--state {self.path}: {error}; can't be renamed: {why}") from refused
        log.warning("--state %s: %s; renamed it to %s", self.path, error, aside)

    def _current_inodes(self) -> tuple[tuple[int, int] | None, ...]:
        """Return device and inode of the file and of its `-wal`, None for one that is missing."""
        return tuple(map(_inode, (self.path, self.path.with_name(f"{self.path.name}-wal"))))

    def _current_stamp(self) -> tuple[int, int] | None:
        """Return size and modification time (ns) of the file; None if it is missing.

        Not its contents: to open the file and close it again would end the locks of SQLite.
        """
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def _has_wal(self) -> bool:
        """Return whether there is a `-wal` with commits. Raises: OSError."""
        try:
            return self.path.with_name(f"{self.path.name}-wal").stat().st_size > 0
        except FileNotFoundError:
            return False

    # --- errors -----------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Turn an error into a VtepError, and reopen a damaged database at the next `begin`."""
        try:
            # None before the first `begin`, which does not use it.
            yield self._db  # type: ignore[misc]
        except (sqlite3.Error, OSError) as error:
            if _is_damage(error):
                self._disconnect()
            raise self._failed("written", error) from error

    def _failed(self, done: str, error: sqlite3.Error | OSError) -> VtepError:
        return VtepError(f"--state {self.path}: cannot be {done}: {_reason(error)}")


def _connect(path: Path) -> sqlite3.Connection:
    """Open a database whose transactions are begun and ended by statements."""
    return sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )


def _entries(rows: Iterable[tuple[Any, ...]], clock_offset: float) -> Iterator[SavedEntry]:
    """Make entries of rows in the order of the primary key. Raises: ValueError for nonsense."""
    kinds: dict[tuple[Any, ...], EntryKind] = {}
    remotes: dict[tuple[Any, ...], Remote] = {}
    for (vni, mac), of_mac in groupby(rows, key=lambda row: row[:2]):
        destinations: list[Remote] = []
        every: list[tuple[Any, ...]] = []  # The flags of each destination.
        for row in of_mac:
            destination = row[2:6]
            remote = remotes.get(destination)
            if remote is None:
                remote = remotes[destination] = _remote(*destination)
            destinations.append(remote)
            flags = (*row[6:9], *row[10:])
            every.append(flags)
        key = tuple(every)
        kind = kinds.get(key)
        if kind is None:
            kind = kinds[key] = _kind(every)
        updated = row[9]  # All rows of a MAC have the same.
        if not 0 <= vni <= vxlan.VNI_MAX:
            raise ValueError(f"vni {vni}")
        last = updated - clock_offset if kind.ages else None
        yield SavedEntry(vni, parse_mac(mac), tuple(destinations), kind, last)


def _kind(flags: Sequence[tuple[Any, ...]]) -> EntryKind:
    """Make a kind of the columns of each destination. Raises: ValueError for nonsense."""
    origins = []
    for _, extern_learn, _, origin, sequence in flags:
        if origin == _EVPN and not 0 <= sequence <= SEQUENCE_MAX:
            raise ValueError(f"sequence {sequence}")
        origins.append(
            DestinationOrigin(
                is_local=not extern_learn,
                extern_learn=bool(extern_learn or origin),
                sequence=sequence if origin == _EVPN else None,
            )
        )
    state, _, sticky, _, _ = flags[0]
    return EntryKind(EntryState(state), sticky=bool(sticky)).with_origins(origins)


def _remote(dst: str, port: int, vni: int | None, via: str | None) -> Remote:
    try:
        return parse_remote(dst, port=port, vni=vni, via=via)
    except VtepError as error:
        raise ValueError(str(error)) from error


def _rows(entry: SavedEntry, clock_offset: float) -> Iterator[tuple[Any, ...]]:
    mac, kind = format_mac(entry.mac), entry.kind
    updated = None if entry.updated is None else entry.updated + clock_offset
    for position, remote in enumerate(entry.destinations):
        origin, control_plane = kind.origin(position), ""
        if origin.extern_learn:
            control_plane = _OTHER_CONTROL_PLANE if origin.sequence is None else _EVPN
        yield (
            *(entry.vni, mac, position, remote.host, remote.port, remote.vni, remote.via),
            *(str(kind.state), not origin.is_local, kind.sticky, updated),
            *(control_plane, origin.sequence or 0),
        )


def _batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    """Yield items in lists that are small enough for one statement each."""
    remaining = iter(items)
    while batch := list(islice(remaining, _ROWS_PER_STATEMENT)):
        yield batch


def _is_damage(error: BaseException) -> bool:
    """Return whether an error means that the database is damaged, or is none."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # Above are the details.
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextmanager
def _damage_as_error() -> Iterator[None]:
    """Raise _DamagedError for the errors of SQLite and Python that a damaged database causes."""
    try:
        yield
    except sqlite3.Error as error:
        if _is_damage(error) or getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            raise _DamagedError(f"it is damaged ({error})") from error
        raise
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise _DamagedError(f"its contents are invalid ({error})") from error


def _reason(error: sqlite3.Error | OSError) -> str:
    """Return why the database can't be read or written."""
    if isinstance(error, OSError):
        return descriptors.reason(error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return os.strerror(errno.ENOSPC)
    if code == sqlite3.SQLITE_BUSY:
        return "another program holds a lock on it; close that program"
    if code == sqlite3.SQLITE_CANTOPEN:
        try:  # SQLite does not say why.
            descriptors.require(_DESCRIPTORS)
        except OSError as shortage:
            return descriptors.reason(shortage)
    return str(error)


# --- the file and its lock ------------------------------------------------------------------


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock a state file for this process, by a lock on `<path>.lock` beside it.

    Raises: VtepError if another process has it, or if no file can be there.
    """
    # SQLite's own locks are released after each transaction, so that others can read.
    _check(path)
    beside = path.with_name(f"{path.name}.lock")
    try:
        lock = _lock(beside)
    except BlockingIOError:
        raise VtepError(f"--state {path}: in use by {_owner(beside)}; give another FILE") from None
    except OSError as error:
        raise VtepError(
            f"--state {path}: cannot lock {beside}: {descriptors.reason(error)}"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            beside.unlink()  # While it is locked: the name can't be another process's.
        os.close(lock)


def _lock(beside: Path) -> int:
    """Return a descriptor of a file that is now locked, and created if need be. Raises: OSError."""
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
        os.close(lock)  # Its former owner removed it between our open and our lock: try again.


def _owner(beside: Path) -> str:
    """Return the name of the process that has locked a file, by its id if the file has that."""
    try:
        pid = beside.read_text().strip()
    except (OSError, ValueError):
        pid = ""
    return f"process {pid}" if pid.isdecimal() else "another process"


def _check(path: Path) -> None:
    """Raise VtepError if there can be no state file; change nothing."""
    try:
        with suppress(FileNotFoundError):
            _check_regular(path)
    except OSError as error:
        raise VtepError(
            f"--state {path}: cannot be read: {descriptors.reason(error)}; give another FILE"
        ) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise VtepError(
            f"--state {path}: no file can be written in {path.parent}; make that a directory that "
            "pyvtep may write to, or give another FILE"
        )


def _check_regular(path: Path) -> None:
    """Raise OSError if a path is not that of a regular file, but such as a device or a FIFO."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _rename_to_free_name(path: Path) -> Path:
    """Rename a file to a name that nothing else has. Raises: OSError.

    Returns: the new name, `<path>.bad-<UTC time>`, with a number if that is taken.
    """
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(f"{path.name}.bad-{stamp}")
    number = 0
    while True:
        try:
            os.link(path, aside, follow_symlinks=False)  # Unlike rename, this replaces nothing.
        except FileExistsError:
            number += 1
            aside = path.with_name(f"{path.name}.bad-{stamp}-{number}")
        else:
            path.unlink()
            return aside
