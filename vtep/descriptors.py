"""Shortage of file descriptors: how errors report it, and a reserve for short-lived ones.

A forwarding process opens descriptors all the time: short-lived ones to query the kernel, and
others for remotes and control clients. An operation that fails because there is none left must
report that, and not the failure that it would report otherwise, such as an absent device.
"""

import errno
import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from vtep.errors import VtepError

log = logging.getLogger("vtep")

RESERVE: Final = 8
"""Descriptors reserved for short-lived use, such as a query of the host's links."""

_SHORTAGES = {
    errno.EMFILE: "this process is out of file descriptors",
    errno.ENFILE: "this host is out of file descriptors; raise the limit: sysctl fs.file-max",
    errno.ENOMEM: "the kernel is out of memory",
    errno.ENOBUFS: "the kernel is out of buffers",
}

_LOG_INTERVAL_S = 60.0
_silent_until: dict[str, float] = {}


class ShortageError(VtepError):
    """An operation failed for lack of descriptors or kernel memory, and may succeed later."""


def is_shortage(error: OSError) -> bool:
    """Return whether an error reports a shortage of descriptors or of kernel memory."""
    return error.errno in _SHORTAGES


def is_out_of_descriptors(error: OSError) -> bool:
    """Return whether an error reports a shortage of descriptors, of the process or of the host."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def reason(error: OSError) -> str:
    """Return the reason of an error: for a shortage of descriptors with what to do, and for a
    missing permission with the user, which may be that of --user.
    """
    if error.errno == errno.EMFILE:
        return (
            f"{_SHORTAGES[errno.EMFILE]} (it may have {_limit()}); raise the limit: ulimit -n, or "
            "LimitNOFILE= of its systemd unit"
        )
    if error.errno == errno.EACCES and os.geteuid():
        return f"{error.strerror} for user ID {os.geteuid()}"
    return _SHORTAGES.get(error.errno or 0) or error.strerror or str(error)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError that reports a shortage into a ShortageError: `cannot WHAT: reason`."""
    try:
        yield
    except OSError as error:
        if not is_shortage(error):
            raise
        raise ShortageError(f"cannot {what}: {reason(error)}") from error


def warn(line: str) -> None:
    """Log a line about a shortage, each line at most once a minute."""
    now = time.monotonic()
    if now >= _silent_until.get(line, now):
        _silent_until[line] = now + _LOG_INTERVAL_S
        log.warning("%s", line)


def require(count: int) -> None:
    """Raise OSError unless `count` descriptors can be opened.

    To be called before a library opens several of them. If one of those fails, libraries leak the
    others, or log a traceback.
    """
    with ExitStack() as opened:
        for _ in range(count):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def is_reserved(descriptor: int) -> bool:
    """Return whether a descriptor that was just opened belongs to the reserve.

    The kernel assigns the lowest free number, so all numbers below it are in use.
    """
    return descriptor >= _limit() - RESERVE


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft
