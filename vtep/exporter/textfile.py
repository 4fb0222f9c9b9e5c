"""The metrics as a file for the textfile collector of node_exporter, which needs no port."""

import stat
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from vtep import descriptors
from vtep.errors import VtepError


def write(path: Path, registry: CollectorRegistry) -> None:
    """Replace the file by the present metrics. Raises: VtepError.

    A reader sees the old file or the new one, and never a part: the text is written beside it
    first, to a name that node_exporter does not read.
    """
    _check(path)
    fresh = path.with_name(f".{path.name}.new")
    text = generate_latest(registry)
    try:
        fresh.write_bytes(text)
        # node_exporter runs as another user, and the umask of a service may be 077.
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink()
        raise VtepError(
            f"--textfile {path}: cannot write it: {descriptors.reason(error)}"
        ) from error


def remove(path: Path) -> None:
    """Remove the file: what it says would be believed for ever."""
    with suppress(OSError, VtepError):
        _check(path)
        path.unlink()


def _check(path: Path) -> None:
    """Raise VtepError if the path is taken by anything but a regular file.

    To replace /dev/null, or /dev/stdout, which is a symbolic link, would harm every program.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:  # It does not exist, or writing fails with the reason.
        return
    if not stat.S_ISREG(mode):
        raise VtepError(
            f"--textfile {path}: is not a regular file; name a new file in the directory of the "
            "textfile collector"
        )
