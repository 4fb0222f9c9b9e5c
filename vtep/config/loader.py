"""Reading a configuration file from a disk, a pipe or standard input.

It needs nothing of what forwards, so that a mistake in the file is told at once.
"""

import errno
import stat
from pathlib import Path

from vtep import descriptors
from vtep.config import Settings
from vtep.config.file import FileError, parse
from vtep.errors import VtepError

_SIZE_MAX = 16 << 20
"""Octets of a configuration file: a thousand VNIs with a thousand remotes each have that many."""


def read(path: Path) -> Settings:
    """What a configuration file asks for.

    Raises FileError where it makes no sense, and VtepError where it can't be read.
    """
    try:
        octets = _octets(path)
    except OSError as error:
        raise VtepError(f"--config {path}: cannot read it: {descriptors.reason(error)}") from error
    if len(octets) > _SIZE_MAX:
        raise VtepError(f"--config {path}: is larger than {_SIZE_MAX >> 20} MiB")
    try:
        text = octets.decode().removeprefix("\ufeff")  # Some editors begin with a byte order mark.
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise FileError([f"{path}:{line}: is not UTF-8 text"]) from None
    return parse(text, str(path))


def _octets(path: Path) -> bytes:
    """What is in a file, or in /dev/stdin or a shell's <(...); not much more than there may be.

    Raises OSError, also for other things that are no regular files: who reads a FIFO may wait for
    ever.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_relative_to("/dev"):
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as file:
        return file.read(_SIZE_MAX + 1)
