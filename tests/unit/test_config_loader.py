"""Reading a configuration file: what is none, and how much work it may make."""

import os
import time
from pathlib import Path

import pytest

from vtep.config import address_parsers
from vtep.config.loader import read
from vtep.errors import VtepError


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in (
        (pipe, "cannot read it: not a regular file"),
        (tmp_path, "cannot read it: not a regular file"),
        (tmp_path / "missing", "cannot read it: No such file"),
        (Path("/dev/zero"), "is larger than 16 MiB"),
    ):
        with pytest.raises(VtepError, match=f"^--config {path}: {why}"):
            read(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.toml"
    path.write_text("[[vni]]\nid = 5\n", encoding="utf-8-sig")
    assert [config.vni for config in read(path).segments] == [5]


def test_a_pipe_of_the_shell_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"[[vni]]\nid = 5\n")
    os.close(writer)
    (config,) = read(Path(f"/dev/fd/{reader}")).segments
    os.close(reader)
    assert config.vni == 5


def test_many_remotes_are_checked_in_little_time() -> None:
    hosts = [f"10.{number >> 8}.{number & 255}.1" for number in range(20_000)]
    began = time.process_time()
    assert len(address_parsers.remotes(hosts)) == 20_000
    assert time.process_time() - began < 2  # It was ten times that.
