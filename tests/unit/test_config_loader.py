"""Reading of configuration files, and the work that they may cause."""

import os
from pathlib import Path

import pytest

from vtep.config.loader import read
from vtep.config.option_parsers import distinct
from vtep.errors import VtepError


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in (
        (pipe, "cannot read it: not a regular file"),
        (tmp_path, "cannot read it: not a regular file"),
        (tmp_path / "missing", "cannot read it: No such file"),
        (Path("/dev/zero"), "is larger than 16 MiB"),
    ):
        with pytest.raises(VtepError, match=f"^{path}: {why}"):
            read(path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.toml"
    path.write_text("[[vni]]\nid = 5\n", encoding="utf-8-sig")
    assert [config.vni for config in read(path).segments] == [5]


def test_process_substitution_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"[[vni]]\nid = 5\n")
    os.close(writer)
    (config,) = read(Path(f"/dev/fd/{reader}")).segments
    os.close(reader)
    assert config.vni == 5


class Counted:
    """A value that counts how often it is compared with others."""

    comparisons = 0

    def __init__(self, number: int) -> None:
        self._number = number

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return self is other


def test_values_are_not_all_compared_with_each_other() -> None:
    """A file may have tens of thousands of remotes."""
    values = tuple(map(Counted, range(10_000)))
    assert distinct("--remote", values) is values
    assert Counted.comparisons < 10_000
