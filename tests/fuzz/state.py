"""The state file: whatever is damaged in it, it is read, set aside or refused, and never harmed.

An input is a list of changes of a valid file: an offset and octets to write there, or a length.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.edges import Reader
from vtep.daemon.state_file import SavedEntry, StateFile
from vtep.errors import VtepError
from vtep.forwarding.fdb import LOCAL, DestinationOrigin, EntryKind, EntryState, Remote

LEN_MAX = 256
_NOW, _WALL = 1000.0, 1_700_000_000.0
_ENTRIES = [
    SavedEntry(
        vni,
        b"\x02\0\0\0\0" + bytes((number,)),
        (Remote("192.0.2.2", 4789, number or None, "eth0" if number else None),),
        EntryKind(EntryState.DYNAMIC if number % 2 else EntryState.STATIC).with_origins(
            (DestinationOrigin(False, True, number) if number == 2 else LOCAL,)
        ),
        990.0 if number % 2 else None,
    )
    for vni in (1, 2)
    for number in range(4)
]

_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
_path = Path(_folder.name) / "state"


def _write(path: Path) -> None:
    with StateFile.locked(path) as file:
        file.load(_NOW, _WALL)
        file.begin()
        for vni in (1, 2):
            file.replace(vni, {entry.mac: entry for entry in _ENTRIES if entry.vni == vni})
        file.commit(_NOW, _WALL)


_write(_path)
_valid = _path.read_bytes()


def run(data: bytes) -> None:
    reader = Reader(data)
    content = bytearray(_valid)
    while not reader.is_empty:
        at = reader.integer(2) % (len(_valid) + 1)
        if at == len(_valid):
            del content[reader.integer(2) :]
        else:
            octets = reader.octets(1 + reader.integer() % 8)
            content[at : at + len(octets)] = octets
    for path in Path(_folder.name).iterdir():
        path.unlink()
    _path.write_bytes(content)
    try:
        with StateFile.locked(_path) as file:
            entries = file.load(_NOW, _WALL)
    except VtepError as error:
        assert str(_path) in str(error)
        assert "\n" not in str(error)
        # It is not ours, so it is left alone.
        assert _path.read_bytes() == content
        return
    kept = [path for path in Path(_folder.name).iterdir() if ".bad-" in path.name]
    if kept:
        assert not entries
        assert kept[0].read_bytes() == content
    for entry in entries:
        assert 0 <= entry.vni < 1 << 24
        assert len(entry.mac) == 6
        assert entry.destinations


def seeds() -> Iterator[bytes]:
    """Yield valid inputs, from which the fuzzer starts."""
    yield b""
    for at in range(0, len(_valid), max(1, len(_valid) // 40)):
        yield at.to_bytes(2, "big") + b"\0\xff"
    for length in (0, 10, 100, 1024, 5000):
        yield len(_valid).to_bytes(2, "big") + length.to_bytes(2, "big")
