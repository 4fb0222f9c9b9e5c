"""Running out of file descriptors: what it looks like, what to say of it, and a reserve.

A process that forwards opens descriptors all the time: for a moment to ask the kernel something,
and for longer to talk to remotes and to control clients. What fails for want of one has to say so,
rather than what failing means at other times.
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
"""Descriptors that are left to what takes some for a moment, such as a look at the host's links."""

_SHORTAGES = {
    errno.EMFILE: "this process is out of file descriptors",
    errno.ENFILE: "this host is out of file descriptors; raise the limit: sysctl fs.file-max",
    errno.ENOMEM: "the kernel is out of memory",
    errno.ENOBUFS: "the kernel is out of buffers",
}

_LOG_INTERVAL = 60.0
_silent_until: dict[str, float] = {}


class ShortageError(VtepError):
    """There are too few descriptors, or too little memory, for something: it may work later."""


def is_shortage(error: OSError) -> bool:
    """Return whether an error says that descriptors or the kernel's memory have run out."""
    return error.errno in _SHORTAGES


def reason(error: OSError) -> str:
    """Return why something failed and, where descriptors ran out, what to do."""
    if error.errno == errno.EMFILE:
        return (
            f"{_SHORTAGES[errno.EMFILE]} (it may have {_limit()}); raise the limit: ulimit -n, or "
            "LimitNOFILE= of its systemd unit"
        )
    return _SHORTAGES.get(error.errno or 0) or error.strerror or str(error)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError that means a shortage into a ShortageError: `cannot WHAT: reason`."""
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
        _silent_until[line] = now + _LOG_INTERVAL
        log.warning("%s", line)


def require(count: int) -> None:
    """Raise OSError unless so many descriptors can be opened.

    Libraries that fail half-way between several of them leave things behind, and tracebacks.
    """
    with ExitStack() as opened:
        for _ in range(count):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def is_reserved(descriptor: int) -> bool:
    """Return whether a descriptor that was just opened is one of the last that there are.

    The kernel hands out the lowest number that is free: all below it are taken.
    """
    return descriptor >= _limit() - RESERVE


def _limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft
