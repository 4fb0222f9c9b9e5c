"""The old process, seen by the one that it has started for an upgrade: a pipe, and a token.

This module imports hardly anything: a command line with a mistake is reported, too.
"""

import os
import stat
from collections.abc import MutableMapping
from contextlib import suppress
from functools import cache
from typing import Final, Self

VARIABLE: Final = "PYVTEP_UPGRADE"
"""Environment variable of the new process: the descriptor of the pipe, a space, and the token."""

_LINE_MAX = 1000
"""Octets of a report. A write of up to PIPE_BUF (4096) octets is never split (pipe(7))."""

_DOING = b"doing "
_FAILED = b"failed "


class Starter:
    """The process that has started this one to take over from it, if any.

    Without one, all methods do nothing. `token` proves to it that this process is the one that it
    has started. It owns the pipe.
    """

    def __init__(self, descriptor: int | None = None, token: str | None = None) -> None:
        self._descriptor = descriptor
        self.token: Final = token

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Self:
        """Return the process that the environment names.

        Side effect: removes the variable, so that a child does not take the pipe for its own.
        """
        number, _, token = environ.pop(VARIABLE, "").partition(" ")
        with suppress(OSError, ValueError):
            descriptor = int(number)
            # Whatever else may have this number by now is not to be written to.
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.set_inheritable(descriptor, False)
                return cls(descriptor, token)
        return cls()

    @property
    def is_present(self) -> bool:
        """True if an upgrade has started this process."""
        return self.token is not None

    def report(self, doing: str) -> None:
        """Report what this process does now, which also shows that it is alive."""
        self._write(_DOING, doing)

    def fail(self, reason: str) -> None:
        """Report why this process cannot take over."""
        self._write(_FAILED, reason)

    def close(self) -> None:
        """Report nothing more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, kind: bytes, text: str) -> None:
        if self._descriptor is None:
            return
        line = kind + " ".join(text.split()).encode(errors="replace")
        # The old process may have ended, or be stopped and not read. Then nothing can be reported.
        with suppress(OSError):
            os.write(self._descriptor, line[:_LINE_MAX] + b"\n")


@cache
def starter() -> Starter:
    """Return the process that has started this one."""
    return Starter.from_environment(os.environ)


class Reports:
    """The reports of the new process, as the old one reads them from the pipe. Pure."""

    def __init__(self) -> None:
        self.doing = ""
        """The last report of what it does."""
        self.failure = ""
        """The reason why it cannot take over."""
        self._rest = b""

    def feed(self, octets: bytes) -> None:
        """Take octets from the pipe, which may end in the middle of a line."""
        *lines, rest = (self._rest + octets).split(b"\n")
        self._rest = rest[-2 * _LINE_MAX :]
        for line in lines:
            if line.startswith(_DOING):
                self.doing = line.removeprefix(_DOING).decode(errors="replace")
            elif line.startswith(_FAILED):
                self.failure = line.removeprefix(_FAILED).decode(errors="replace")
