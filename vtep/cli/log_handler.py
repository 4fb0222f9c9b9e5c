"""What the program says while it forwards, without ever waiting for whoever reads it.

A terminal that was stopped with Ctrl-S, or a pipe whose reader is stuck, must not stop the loop,
and one that is gone is no reason to end. So a thread of its own writes, from a bounded queue: what
does not fit is lost.
"""

import logging
import os
import queue
import threading
from contextlib import suppress

_LINES_MAX = 1000
_LAST_WORDS = 1.0
"""Seconds that the end waits for what has not been written yet."""


class _Plain(logging.Formatter):
    """Log lines with the local time and the level."""

    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s pyvtep: %(message)s")


class _Journal(logging.Formatter):
    """Log lines as sd-daemon(3) has them: the priority stands before each of them."""

    def __init__(self) -> None:
        super().__init__("pyvtep: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        levels = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}
        return _of_priority(levels.get(record.levelno, 3), super().format(record))


def _of_priority(number: int, text: str) -> str:
    return "\n".join(f"<{number}>{line}" for line in text.splitlines())


class Voice(logging.Handler):
    """Writes lines, and records of the log, to standard error.

    Where that is the systemd `journal`, which adds the time, each line begins with its priority.
    """

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal
        self.setFormatter(_Journal() if journal else _Plain())
        self._lines: queue.Queue[str | None] = queue.Queue(_LINES_MAX)
        self._thread = threading.Thread(target=self._write, name="voice", daemon=True)
        self._thread.start()

    def say(self, text: str) -> None:
        """Have a line or several written soon."""
        self._put(_of_priority(6, text) if self._journal else text)

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record of the log written soon."""
        self._put(self.format(record))

    def _put(self, text: str) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(text + "\n")

    def close(self) -> None:
        """Write what is left, if that is possible soon."""
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        self._thread.join(_LAST_WORDS)
        super().close()

    def _write(self) -> None:
        while (text := self._lines.get()) is not None:
            with suppress(OSError):
                os.write(2, text.encode(errors="replace"))


def hold_standard_streams() -> None:
    """Open /dev/null where a standard stream is closed.

    Otherwise a device or socket would get its descriptor, and be written to.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)
