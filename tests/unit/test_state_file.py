"""The state file: what it keeps, and that no other file is ever harmed by it."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtep.daemon import state_file
from vtep.daemon.state_file import SavedEntry, StateFile
from vtep.errors import VtepError
from vtep.forwarding.fdb import (
    EXTERN_LEARN,
    LOCAL,
    DestinationOrigin,
    EntryKind,
    EntryState,
    Remote,
)
from vtep.wire.ethernet import format_mac

NOW, WALL = 1000.0, 1_700_000_000.0
STATIC = EntryKind(EntryState.STATIC)
DYNAMIC = EntryKind(EntryState.DYNAMIC)

REMOTES = st.builds(
    Remote,
    st.sampled_from(["192.0.2.1", "2001:db8::1", "239.1.1.1"]),
    st.integers(1, 65535),
    st.none() | st.integers(0, (1 << 24) - 1),
    st.sampled_from([None, "eth0", "br-ä"]),
)
KINDS = st.builds(EntryKind, st.sampled_from(EntryState), sticky=st.booleans())
ORIGINS = st.sampled_from(
    [
        LOCAL,
        EXTERN_LEARN,
        DestinationOrigin(False, True, 0),
        DestinationOrigin(False, True, 7),
        DestinationOrigin(True, True, 9),
    ]
)


def entry(
    vni: int = 1,
    number: int = 1,
    remotes: tuple[Remote, ...] = (Remote("192.0.2.2", 4789),),
    kind: EntryKind = STATIC,
    updated: float = 990.0,
) -> SavedEntry:
    mac = b"\x02" + number.to_bytes(5, "big")
    return SavedEntry(vni, mac, remotes, kind, updated if kind.ages else None)


ENTRIES = st.builds(
    lambda vni, number, destinations, kind, age: entry(
        vni,
        number,
        tuple(remote for remote, _ in destinations),
        kind.with_origins(origin for _, origin in destinations),
        NOW - age / 1000,
    ),
    st.integers(0, (1 << 24) - 1),
    st.integers(0, (1 << 40) - 1),
    st.lists(st.tuples(REMOTES, ORIGINS), min_size=1, max_size=3),
    KINDS,
    st.integers(0, 10**6),
)


def plain(entry: SavedEntry) -> tuple[object, ...]:
    """Return an entry as comparable values: remotes are compared by identity."""
    remotes = [(to.host, to.port, to.vni, to.via) for to in entry.destinations]
    updated = None if entry.updated is None else round(entry.updated, 3)
    return entry.vni, entry.mac, remotes, entry.kind, updated


def write(
    path: Path, *entries: SavedEntry, now: float = NOW, wall_clock: float = WALL, load: bool = True
) -> None:
    """Replace what a file has by these entries, as one process would, and close it."""
    with closing(StateFile(path)) as file:
        if load:
            file.load(now, wall_clock)
        save(file, *entries, now=now, wall_clock=wall_clock)


def save(file: StateFile, *entries: SavedEntry, now: float = NOW, wall_clock: float = WALL) -> None:
    file.begin()
    for entry in entries:
        file.replace(entry.vni, {entry.mac: entry})
    file.commit(now, wall_clock)


def load(path: Path, now: float = NOW, wall_clock: float = WALL) -> list[SavedEntry]:
    with closing(StateFile(path)) as file:
        return file.load(now, wall_clock)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def file(path: Path) -> Iterator[StateFile]:
    with closing(StateFile(path)) as file:
        file.load(NOW, WALL)
        yield file


# --- what it keeps ------------------------------------------------------------------------------


@settings(max_examples=30)  # Each waits for the disk.
@given(st.lists(ENTRIES, max_size=5), st.lists(ENTRIES, max_size=5), st.data())
def test_entries_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[SavedEntry],
    second: list[SavedEntry],
    data: st.DataObject,
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    expected = {(each.vni, each.mac): each for each in first}
    write(path, *expected.values())
    changes = {(each.vni, each.mac): each for each in second}
    removed = data.draw(st.sets(st.sampled_from(sorted(expected)))) if expected else set()
    with closing(StateFile(path)) as file:
        file.load(NOW, WALL)
        assert file.begin()
        for (vni, mac), change in {**dict.fromkeys(removed), **changes}.items():
            file.replace(vni, {mac: change})
        file.commit(NOW, WALL)
    expected = {key: each for key, each in expected.items() if key not in removed} | changes
    assert sorted(map(plain, load(path)), key=repr) == sorted(
        map(plain, expected.values()), key=repr
    )


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 1000])
def test_any_number_of_entries(path: Path, file: StateFile, count: int) -> None:
    for _ in range(2):
        file.begin()
        file.replace(1, {(each := entry(number=number)).mac: each for number in range(count)})
        file.commit(NOW, WALL)
    file.close()
    assert [int.from_bytes(each.mac[1:]) for each in load(path)] == [*range(count)]


def test_the_documented_schema(path: Path) -> None:
    remotes = (Remote("192.0.2.7", 4790, 5, "eth0"), Remote("192.0.2.8", 4789))
    write(path, entry(remotes=remotes), entry(number=2, kind=DYNAMIC))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("PRAGMA application_id").fetchone() == (0x70797674,)
        one, two = "02:00:00:00:00:01", "02:00:00:00:00:02"
        assert db.execute("SELECT * FROM fdb").fetchall() == [
            (1, one, 0, "192.0.2.7", 4790, 5, "eth0", "static", 0, 0, None, "", 0),
            (1, one, 1, "192.0.2.8", 4789, None, None, "static", 0, 0, None, "", 0),
            (1, two, 0, "192.0.2.2", 4789, None, None, "dynamic", 0, 0, WALL - 10, "", 0),
        ]
        assert db.execute("SELECT * FROM last_commit").fetchall() == [(WALL, WALL)]


def test_the_columns_of_a_control_plane(path: Path) -> None:
    """Rows of versions that kept neither origins nor sequence numbers are read as they were."""
    given = [
        LOCAL,
        EXTERN_LEARN,
        DestinationOrigin(False, True, 7),
        DestinationOrigin(True, True, 0),
    ]
    remotes = tuple(Remote(f"192.0.2.{number}", 4789) for number in range(1, 5))
    write(path, entry(remotes=remotes, kind=STATIC.with_origins(given)))
    with closing(sqlite3.connect(path)) as db:
        columns = db.execute("SELECT extern_learn, origin, sequence FROM fdb").fetchall()
        assert columns == [(0, "", 0), (1, "extern_learn", 0), (1, "evpn", 7), (0, "evpn", 0)]
        (read,) = load(path)
        assert [read.kind.origin(position) for position in range(4)] == given
        db.execute("DELETE FROM fdb WHERE position NOT IN (1, 2)")
        db.execute("UPDATE fdb SET origin = '', sequence = 0")
        db.commit()
    (read,) = load(path)
    assert read.kind == EntryKind(EntryState.STATIC, extern_learn=True)


def test_a_rollback_leaves_what_was_committed(path: Path, file: StateFile) -> None:
    save(file, entry())
    file.begin()
    file.replace(1, {entry().mac: None})
    file.rollback()
    file.rollback()  # Without a transaction, this does nothing.
    save(file, entry(number=2))
    assert len(load(path)) == 2


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "wall_passed", "age"),
    [(0, 0, 10), (60, 60, 70), (-500, 3600, 3610), (-500, -3600, 10)],
    ids=["none", "some", "reboot", "wall clock set back"],
)
def test_entries_age_while_nothing_runs(
    path: Path, passed: float, wall_passed: float, age: float
) -> None:
    write(path, entry(kind=DYNAMIC, updated=NOW - 10))
    now = NOW + passed
    (loaded,) = load(path, now, WALL + wall_passed)
    assert loaded.updated == pytest.approx(now - age, abs=0.01)


def test_a_wall_clock_that_is_set_while_it_runs_changes_no_age(path: Path) -> None:
    """A machine without a battery-backed clock begins in 1970, and learns the time later."""
    with closing(StateFile(path)) as file:
        file.load(NOW, 5.0)
        save(file, entry(number=1, kind=DYNAMIC, updated=NOW - 10), wall_clock=5.0)
        save(file, entry(number=2, kind=DYNAMIC, updated=NOW + 20), now=NOW + 30, wall_clock=WALL)
    ages = [NOW - (each.updated or 0) for each in load(path, NOW, WALL + 60)]
    assert ages == pytest.approx([100, 70], abs=0.01)


# --- the file -----------------------------------------------------------------------------------


def test_a_file_that_is_missing_or_empty_has_no_entries(path: Path) -> None:
    assert load(path) == []
    path.touch()
    assert load(path) == []
    assert names(path.parent) == ["state"]
    write(path, entry())
    assert len(load(path)) == 1


def test_an_orderly_end_leaves_one_complete_file(path: Path) -> None:
    with closing(StateFile(path)) as file:
        file.load(NOW, WALL)
        save(file, entry())
        assert names(path.parent) == ["state", "state-shm", "state-wal"]
        assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}
    assert names(path.parent) == ["state"]
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as reader:
        assert reader.execute("SELECT count(*) FROM fdb").fetchone() == (1,)
    assert names(path.parent) == ["copy", "state"]


def test_another_program_may_have_it_open_at_the_end(path: Path, file: StateFile) -> None:
    save(file, entry())
    with closing(sqlite3.connect(path)) as reader:
        rows = reader.execute("SELECT mac FROM fdb")
        assert rows.fetchone() is not None
        file.close()
    assert names(path.parent) == ["state"]
    assert len(load(path)) == 1


def test_others_can_read_while_it_is_written(path: Path, file: StateFile) -> None:
    save(file, entry())
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
        rows = reader.execute("SELECT mac FROM fdb")
        save(file, entry(number=2))
        assert rows.fetchall() == [(format_mac(entry().mac),)]
        assert reader.execute("SELECT count(*) FROM fdb").fetchone() == (2,)


def damage(path: Path) -> dict[str, bytes]:
    """Return files that are damaged, or of another version, by what is said of them."""
    write(path, *(entry(number=number) for number in range(1000)))
    whole = path.read_bytes()
    page = int.from_bytes(whole[16:18])
    assert len(whole) > 8 * page
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = DELETE").fetchall()
        db.execute("PRAGMA user_version = 2")
    newer = path.read_bytes()
    nonsense = []
    for column, value in (
        ("dst", "'example'"),
        ("mac", "'02:00'"),
        ("mac", "7"),
        ("vni", 1 << 24),
        ("port", "'high'"),
        ("state", "'gone'"),
        ("via", "'a name that is too long'"),
    ):
        write(path, entry())
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"UPDATE fdb SET {column} = {value}")
        nonsense.append(path.read_bytes())
        path.unlink()
    write(path, entry())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE fdb")
    return {
        "it is cut off": whole[:-30],
        "it is cut off ": whole[:50],
        "it is cut off  ": whole[:8],
        "it is damaged (": whole[: -2 * page],
        "it is damaged ( ": whole[: 3 * page] + b"\xff" * page + whole[4 * page :],
        "it is damaged (no such table: fdb)": path.read_bytes(),
        "it is of version 2, not 1": newer,
        "it is in the JSON format of a dev": b'{"format": "pyvtep-state", "version": 1, "saved": ',
        **{f"its contents are invalid{' ' * i}": each for i, each in enumerate(nonsense)},
    }


def test_a_damaged_file_is_set_aside(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = damage(path)
    caplog.clear()
    folder = tmp_path / "cases"
    folder.mkdir()
    path = folder / "state"
    for why, octets in cases.items():
        path.write_bytes(octets)
        assert load(path) == []
        (aside,) = folder.iterdir()
        assert aside.name.startswith("state.bad-")
        assert aside.read_bytes() == octets
        (record,) = caplog.records
        message = record.getMessage()
        assert message.startswith(f"--state {path}: {why.rstrip()}")
        assert message.endswith(f"; renamed it to {aside}")
        aside.unlink()
        caplog.clear()


def test_several_damaged_files_are_all_kept(path: Path) -> None:
    for number in range(3):
        path.write_bytes(b'{"format": "pyvtep-state"%d' % number)
        load(path)
    assert len(list(path.parent.glob("state.bad-*"))) == 3


def foreign_database(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE fdb (thesis TEXT)")
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["text", "database"])
def test_a_foreign_file_is_not_touched(path: Path, kind: str) -> None:
    octets = b"My only copy of a thesis." if kind == "text" else foreign_database(path)
    path.write_bytes(octets)
    before = path.stat()
    with pytest.raises(VtepError, match="is not a state file of pyvtep; give the name of another"):
        load(path)
    with closing(StateFile(path)) as file, pytest.raises(VtepError, match="is not a state file"):
        file.begin()
    assert path.read_bytes() == octets
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert names(path.parent) == ["state"]


def test_a_file_that_is_not_regular_is_refused_and_not_touched(tmp_path: Path) -> None:
    pipe, link, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    folder.mkdir()
    for path in (pipe, link, folder):
        with pytest.raises(VtepError, match=f"--state {path}: cannot be read: it is not a regular"):
            load(path)
        with pytest.raises(VtepError, match="not a regular file"), StateFile.locked(path):
            pass
        with closing(StateFile(path)) as file, pytest.raises(VtepError, match="not a regular"):
            file.begin()
    assert names(tmp_path) == ["folder", "link", "pipe"]
    assert (pipe.is_fifo(), link.is_symlink(), folder.is_dir()) == (True, True, True)


def test_a_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(VtepError, match="no file can be written in"):
        load(tmp_path / "missing" / "state")


# --- while it runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "replaced", "-wal removed", "directory removed"])
def test_a_file_that_vanishes_is_written_again(path: Path, file: StateFile, how: str) -> None:
    assert not file.begin()
    file.replace(1, {entry().mac: entry()})
    file.commit(NOW, WALL)
    assert file.begin()
    file.rollback()
    if how == "directory removed":
        away = path.parent.with_name(f"{path.parent.name}-away")
        path.parent.rename(away)
        with pytest.raises(VtepError, match="cannot be written: No such file"):
            file.begin()
        path.parent.mkdir()
    elif how == "replaced":
        other = path.with_name("other")
        write(other, entry(number=9))
        other.replace(path)
    else:
        path.with_name("state-wal" if how == "-wal removed" else "state").unlink()
    assert not file.begin()
    file.replace(1, {entry(number=2).mac: entry(number=2)})
    file.commit(NOW, WALL)
    assert [each.mac for each in load(path)] == [entry(number=2).mac]


@pytest.mark.parametrize("how", ["begin", "middle", "emptied", "cut off"])
def test_a_file_that_is_overwritten_is_set_aside_and_written_again(
    path: Path, file: StateFile, how: str
) -> None:
    """SQLite itself may go on for long with its pages in memory and in `-wal`."""
    save(file, *(entry(number=number) for number in range(1000)))
    file.close()
    file.load(NOW, WALL)
    save(file, entry(number=1000))
    before = path.stat().st_mtime_ns
    while path.stat().st_mtime_ns == before:  # The clock of file systems ticks slowly.
        with path.open("r+b") as other:
            if how in ("begin", "middle"):
                other.seek(0 if how == "begin" else 4096)
                other.write(b"\xff" * 10_000)
            else:
                other.truncate(0 if how == "emptied" else 10_000)
    assert not file.begin()
    file.replace(1, {entry(number=5).mac: entry(number=5)})
    file.commit(NOW, WALL)
    assert file.begin()
    file.rollback()
    file.close()
    assert [each.mac for each in load(path)] == [entry(number=5).mac]
    assert len(list(path.parent.glob("state.bad-*"))) >= 1


def test_changes_by_another_program_are_no_damage(path: Path, file: StateFile) -> None:
    save(file, *(entry(number=number) for number in range(3)))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DELETE FROM fdb WHERE mac = ?", (format_mac(entry(number=0).mac),))
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert file.begin()
    file.commit(NOW, WALL)
    file.close()
    assert [each.mac for each in load(path)] == [entry(number=number).mac for number in (1, 2)]
    assert names(path.parent) == ["state"]


def test_an_empty_file_with_commits_beside_it_is_set_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.touch()
    path.with_name("state-wal").write_bytes(b"x" * 5000)
    assert load(path) == []
    assert "it is cut off; renamed it to" in caplog.text
    assert any(name.endswith("-wal") and ".bad-" in name for name in names(path.parent))


def test_a_write_lock_of_another_program_is_reported(
    path: Path, file: StateFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_file, "_BUSY_TIMEOUT_S", 0.0)
    write(path, entry())
    file.load(NOW, WALL)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(VtepError, match="another program holds a lock on it"):
            file.begin()
        other.execute("ROLLBACK")
        assert file.begin()


_FULL = """
import sys
from contextlib import suppress
from pathlib import Path
sys.path.insert(0, "tests/unit")
from test_state_file import *
path = Path(sys.argv[1]) / "state"
filler = path.with_name("filler")

def fill():
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))

write(path, *(entry(number=number) for number in range(100)))
file = StateFile(path)
file.load(NOW, WALL)
fill()
try:
    save(file, *(entry(vni=2, number=number) for number in range(5000)))
except VtepError as error:
    print(error)
file.rollback()
filler.unlink()
save(file, *(entry(vni=2, number=number) for number in range(1000)))
file.close()
print(len(load(path)))
path.unlink()
fill()
try:
    write(path, entry())
except VtepError as error:
    print(error)
print(*names(path.parent))
"""


def test_a_full_disk_leaves_what_was_committed(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=400k none {tmp_path} && exec {sys.executable} - {tmp_path}"
    done = subprocess.run(
        ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c", mount],
        input=_FULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("this host lets an unprivileged user mount nothing")
    no_space = f"--state {tmp_path}/state: cannot be written: {os.strerror(errno.ENOSPC)}"
    assert (done.stderr, done.stdout.splitlines()) == ("", [no_space, "1100", no_space, "filler"])


_WRITER = """
import sys
from pathlib import Path
from vtep.daemon.state_file import SavedEntry, StateFile
from vtep.forwarding.fdb import EntryKind, Remote
file = StateFile(Path(sys.argv[1]))
file.load(0, 0)
for generation in range(1, 10**9):
    file.begin()
    for number in range(300):
        mac, remote = b"\\2" + number.to_bytes(5, "big"), Remote("192.0.2.2", generation)
        file.replace(1, {mac: SavedEntry(1, mac, (remote,), EntryKind(), None)})
    file.commit(0, 0)
    print(generation, flush=True)
"""


def test_whenever_it_is_killed_the_last_commit_is_whole(path: Path) -> None:
    for commits in range(1, 6):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for _ in range(commits):  # Then it is killed at some moment of the next ones.
                generation = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            generation = max([generation, *map(int, writer.stdout.read().split())])
        entries = load(path)
        assert len(entries) == 300
        (port,) = {each.destinations[0].port for each in entries}
        assert port in (generation, generation + 1)  # It may be killed before it says so.


# --- one process at a time ----------------------------------------------------------------------


def test_one_process_at_a_time_has_a_file(path: Path) -> None:
    lock = path.with_name("state.lock")
    lock.write_text("1\n")  # Of a process that was killed.
    with StateFile.locked(path) as file:
        with (
            pytest.raises(VtepError, match=f"in use by process {os.getpid()}; give"),
            StateFile.locked(path),
        ):
            pass
        with StateFile.locked(path.with_name("other")):
            pass
        assert names(path.parent) == ["state.lock"]
        file.load(NOW, WALL)
        save(file, entry())
    with StateFile.locked(path):
        pass
    assert names(path.parent) == ["state"]
    os.mkfifo(lock)
    with pytest.raises(VtepError, match=r"cannot lock .*state\.lock"), StateFile.locked(path):
        pass
