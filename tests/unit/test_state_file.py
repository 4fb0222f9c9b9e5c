"""The state file: what it keeps, and that nothing of a user's is ever lost to it."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtep.daemon import state_file
from vtep.daemon.state_file import DamagedError, Saved, decode, encode, load, locked, store
from vtep.errors import VtepError
from vtep.forwarding.fdb import EntryKind, EntryState, Remote

MACS = st.binary(min_size=6, max_size=6)
REMOTES = st.builds(
    Remote,
    st.sampled_from(["192.0.2.1", "2001:db8::1", "fe80::1%eth0"]),
    st.integers(1, 65535),
    st.none() | st.integers(0, (1 << 24) - 1),
    st.none() | st.text(max_size=15),
)
KINDS = st.builds(EntryKind, st.sampled_from(EntryState), st.booleans(), st.booleans())
ENTRIES = st.builds(
    Saved,
    st.integers(0, (1 << 24) - 1),
    MACS,
    st.lists(REMOTES, min_size=1, max_size=3).map(tuple),
    KINDS,
    st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000),
)
ONE = Saved(1, bytes.fromhex("020000000001"), (Remote("192.0.2.2", 4789),), EntryKind(), 2.5)


def plain(entry: Saved) -> tuple[object, ...]:
    """An entry as what it says: remotes are compared by identity."""
    remotes = [(to.host, to.port, to.vni, to.via) for to in entry.destinations]
    return entry.vni, entry.mac, remotes, entry.kind, entry.age


def whole(*entries: Saved) -> bytes:
    return b"".join(encode(entries, 1_700_000_000.0))


@given(st.lists(ENTRIES, max_size=5), st.integers(0, 10**12))
def test_what_is_written_is_read(entries: list[Saved], milliseconds: int) -> None:
    now = milliseconds / 1000
    written, read = decode(b"".join(encode(entries, now)))
    assert written == now
    assert [plain(entry) for entry in read] == [plain(entry) for entry in entries]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 250])
def test_it_is_json_whatever_the_number_of_entries(count: int) -> None:
    octets = whole(*[ONE] * count)
    content = json.loads(octets)
    assert (content["format"], content["version"]) == ("pyvtep-state", 1)
    assert len(content["entries"]) == count
    assert len(decode(octets)[1]) == count
    assert octets.count(b"\n") == 2 + max(count, 1)


def test_the_pieces_are_short() -> None:
    pieces = list(encode([ONE] * 1000, 0))
    assert len(pieces) == 11
    assert max(map(len, pieces)) < 100 * 250


def test_every_cut_is_noticed() -> None:
    octets = whole(ONE, ONE)
    for length in range(len(octets)):
        with pytest.raises(DamagedError, match="cut off"):
            decode(octets[:length])


@given(st.data())
def test_every_changed_octet_is_noticed(data: st.DataObject) -> None:
    octets = bytearray(whole(ONE, ONE))
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=r"^its? "):
        decode(bytes(octets))


@given(st.binary() | st.text().map(str.encode))
@example(b"PK\3\4")
@example(b"{}")
@example(b'{"format": "another"}')
def test_what_is_not_ours_is_told_apart(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r"^its? ") as refused:
        decode(octets)
    assert isinstance(refused.value, DamagedError) == state_file._FORMAT.startswith(octets)


def signed(text: str) -> bytes:
    """A file with a valid check value, whatever it says."""
    body = text.encode()
    return body + b'\n], "sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": "pyvtep-state", "version": 2, "saved": 1, "entries": [\n', "version 2, not 1"),
        ('{"format": "pyvtep-state", "version": 1, "entries": [\n', "no sense"),
        ('{"format": "pyvtep-state", "version": 1, "saved": [], "entries": [\n', "no sense"),
        ('{"format": "pyvtep-state", "version": 1, "saved": 1, "entries": [\n1', "no sense"),
        ('{"format": "pyvtep-state", "version": 1, "saved": 1, "entries": [\n{}', "no sense"),
        ('{"format": "pyvtep-state", "version": 1, "saved": 1, "rows": [\n', "no sense"),
        ('{"format": "pyvtep-state", [', "no sense"),
    ],
)
def test_what_is_whole_but_makes_no_sense(text: str, words: str) -> None:
    with pytest.raises(DamagedError, match=words):
        decode(signed(text))


# --- the file -----------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_file_that_is_not_there_is_no_matter(path: Path) -> None:
    assert load(path) == state_file.Loaded()


def test_a_file_is_loaded_with_the_time_that_has_passed(path: Path) -> None:
    store(path, encode([ONE], time.time() - 60))
    loaded = load(path)
    assert [plain(entry) for entry in loaded.entries] == [plain(ONE)]
    assert 60 <= loaded.elapsed < 70
    assert loaded.warning is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(path.parent) == ["state"]


def test_a_clock_that_was_set_back_makes_nothing_younger(path: Path) -> None:
    store(path, encode([ONE], time.time() + 3600))
    assert load(path).elapsed == 0


@pytest.mark.parametrize("octets", [whole(ONE)[:-1], whole(ONE).replace(b"02:", b"04:")])
def test_a_damaged_file_is_kept_aside(path: Path, octets: bytes) -> None:
    for number in range(3):  # Also when there is one of that name already.
        path.write_bytes(octets)
        loaded = load(path)
        assert loaded.entries == ()
        assert loaded.warning is not None
        assert "\n" not in loaded.warning
        assert not path.exists()
        aside = [other for other in path.parent.iterdir() if str(other) in loaded.warning]
        assert max(aside).read_bytes() == octets
        assert len(list(path.parent.glob("state.bad-*"))) == number + 1


def test_a_foreign_file_is_not_touched(path: Path) -> None:
    path.write_bytes(b"My only copy of a thesis.")
    before = path.stat()
    with pytest.raises(VtepError, match="was not written by pyvtep; give the name of another"):
        load(path)
    assert path.read_bytes() == b"My only copy of a thesis."
    assert path.stat() == before
    assert names(path.parent) == ["state"]


def test_a_full_disk_leaves_the_old_file(path: Path) -> None:
    store(path, encode([ONE], 1))
    before = path.read_bytes()

    def pieces() -> list[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store(path, (piece for _ in range(2) for piece in pieces()))
    assert path.read_bytes() == before


_WRITER = """
import sys, time; from pathlib import Path; from vtep.daemon import state_file as state
from vtep.forwarding.fdb import EntryKind, Remote
mac, remote = bytes.fromhex("020000000001"), Remote("192.0.2.2", 4789)
number = 0
while True:
    number += 1
    saved = [state.Saved(number, mac, (remote,), EntryKind(), 0)] * 1000
    state.store(Path(sys.argv[1]), state.encode(saved, time.time()))
    if number == 1: print("once", flush=True)
"""


def test_whenever_it_is_killed_there_is_a_whole_file(path: Path) -> None:
    for milliseconds in range(0, 40, 4):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "once\n"
            time.sleep(milliseconds / 1000)  # Some moment or other of its writing.
            writer.send_signal(signal.SIGKILL)
        _, entries = decode(path.read_bytes())
        assert len({entry.vni for entry in entries}) == 1
        assert len(entries) == 1000


def test_what_is_no_regular_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    pipe, link, folder = tmp_path / "pipe", tmp_path / "link", tmp_path / "folder"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    folder.mkdir()
    for path in (pipe, link, folder):
        with pytest.raises(VtepError, match=f"--state {path}: can't be read: it is no regular"):
            load(path)
        with pytest.raises(VtepError, match="it is no regular"), locked(path):
            pass
        with pytest.raises(OSError, match="no regular file"):
            store(path, [b"octets"])
    assert names(tmp_path) == ["folder", "link", "pipe"]
    assert (pipe.is_fifo(), link.is_symlink(), folder.is_dir()) == (True, True, True)


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(VtepError, match="no file can be written in"):
        load(tmp_path / "missing" / "state")


def test_an_empty_file_is_as_none(path: Path) -> None:
    path.touch()
    assert load(path) == state_file.Loaded()
    assert names(path.parent) == ["state"]


def test_one_process_at_a_time_has_a_file(path: Path) -> None:
    lock = path.with_name("state.lock")
    lock.write_text("1\n")  # Of one that was killed.
    with locked(path):
        with (
            pytest.raises(VtepError, match=f"is that of process {os.getpid()}; give"),
            locked(path),
        ):
            pass
        with locked(path.with_name("other")):
            pass
        assert names(path.parent) == ["state.lock"]
    with locked(path):
        pass
    assert names(path.parent) == []
    os.mkfifo(lock)
    with pytest.raises(VtepError, match=r"state\.lock can't be locked"), locked(path):
        pass
