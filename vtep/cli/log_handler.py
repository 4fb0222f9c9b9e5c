"""Log records and reports, written without blocking the event loop.

write(2) blocks while a terminal is stopped with Ctrl-S or the reader of a pipe is stuck, and fails
(EPIPE) once the reader is gone. Neither may stop forwarding, so a thread writes the records, out of
a bounded queue.
"""

import logging
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue

from vtep.cli.log_sinks import REPORT, Sink

__all__ = ["REPORT", "NonBlockingLogHandler"]

_RECORDS_MAX = 1000

_FLUSH_TIMEOUT_S = 1.0


class NonBlockingLogHandler(QueueHandler):
    """A log handler that queues records for a thread, which writes them to one or more sinks.

    Records that find the queue full are counted, and their number is logged before the next one.
    """

    def __init__(self, *sinks: Sink) -> None:
        self._records: Queue[logging.LogRecord | None] = Queue(_RECORDS_MAX)
        self._lost = 0
        self.sinks = sinks
        """The destinations of records; they can be replaced at any time."""
        super().__init__(self._records)
        # Without one, basicConfig() would set a formatter that adds level and name to the message.
        self.setFormatter(logging.Formatter())
        # A daemon thread: it may hang in write(2) for ever, and the process must still end.
        _Writer(self._records, self).start()

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

    def reopen(self) -> None:
        """Open files anew, which logrotate has renamed."""
        for sink in self.sinks:
            sink.reopen()


class _Writer(QueueListener):
    """The thread that takes records out of the queue and writes them."""

    def __init__(
        self, records: "Queue[logging.LogRecord | None]", handler: NonBlockingLogHandler
    ) -> None:
        super().__init__(records)
        self._handler = handler

    def handle(self, record: logging.LogRecord) -> None:
        """Write a record to all sinks."""
        for sink in self._handler.sinks:
            sink.write(record)


def _lost_record(count: int) -> logging.LogRecord:
    text = f"{count} log records lost: the log was not read fast enough"
    return logging.makeLogRecord(
        {"name": "vtep", "msg": text, "levelno": logging.WARNING, "levelname": "WARNING"}
    )
