"""Log records and reports on standard error, written without blocking the event loop.

write(2) blocks while a terminal is stopped with Ctrl-S or the reader of a pipe is stuck, and fails
(EPIPE) once the reader is gone. Neither may stop forwarding, so a thread writes the records, out of
a bounded queue.
"""

import logging
import os
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue

REPORT = "vtep.report"
"""Name of the logger for reports: tables to be read as a whole, without time and level."""

_RECORDS_MAX = 1000

_FLUSH_TIMEOUT_S = 1.0

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}
"""Priorities of syslog(3) by level; all other levels are 3, an error."""


class NonBlockingLogHandler(QueueHandler):
    """A log handler that queues records for a thread, which writes them to standard error.

    Records that find the queue full are counted, and their number is logged before the next one. If
    standard error is the systemd `journal`, each line begins with its priority.
    """

    def __init__(self, *, journal: bool = False) -> None:
        self._records: Queue[logging.LogRecord | None] = Queue(_RECORDS_MAX)
        self._lost = 0
        super().__init__(self._records)
        # Without one, basicConfig() would set a formatter that adds level and name to the message.
        self.setFormatter(logging.Formatter())
        # A daemon thread: it may hang in write(2) for ever, and the process must still end.
        _StderrWriter(self._records, _Formatter(journal=journal)).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue, or count it if the queue is full."""
        try:
            if self._lost:
                self._records.put_nowait(_lost_record(self._lost))
                self._lost = 0
            self._records.put_nowait(record)
        except Full:
            self._lost += 1

    def flush(self) -> None:
        """Wait until all queued records are written, for at most `_FLUSH_TIMEOUT_S`."""
        with self._records.all_tasks_done:
            self._records.all_tasks_done.wait_for(
                lambda: not self._records.unfinished_tasks, _FLUSH_TIMEOUT_S
            )


class _StderrWriter(QueueListener):
    """The thread that takes records out of the queue and writes them."""

    def __init__(
        self, records: "Queue[logging.LogRecord | None]", formatter: logging.Formatter
    ) -> None:
        super().__init__(records)
        self._formatter = formatter

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record to standard error; give up on it if that fails."""
        # Not by a StreamHandler on sys.stderr: the interpreter takes the locks of both at its end,
        # and would wait for ever for a thread that is blocked in write(2).
        with suppress(OSError):
            os.write(2, f"{self._formatter.format(record)}\n".encode(errors="replace"))


class _Formatter(logging.Formatter):
    """Formats records with local time and level, or with a priority for the journal.

    The journal adds the time itself, and reads the priority from a prefix (sd-daemon(3)).
    """

    default_msec_format = "%s.%03d"

    def __init__(self, *, journal: bool) -> None:
        prefix = "" if journal else "%(asctime)s %(levelname)s "
        super().__init__(f"{prefix}pyvtep: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, without a final newline."""
        text = record.getMessage() if record.name == REPORT else super().format(record)
        if not self._journal:
            return text
        priority = _PRIORITIES.get(record.levelno, 3)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def _lost_record(count: int) -> logging.LogRecord:
    text = f"{count} log records lost: standard error was not read fast enough"
    return logging.makeLogRecord(
        {"name": "vtep", "msg": text, "levelno": logging.WARNING, "levelname": "WARNING"}
    )
