"""Destinations of log lines: standard error, a file, syslog(3), and the systemd journal.

A sink is called by the thread that writes the log, and gives up on what it cannot write.
"""

import errno
import logging
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from attrs import frozen

from vtep import descriptors
from vtep.cli import bootstrap
from vtep.cli.log_json import JsonFormatter
from vtep.cli.process_options import JSON, STDERR, SYSLOG, ProcessOptions
from vtep.errors import VtepError

log = logging.getLogger("vtep")

REPORT = "vtep.report"
"""Name of the logger for reports: tables to be read as a whole, without time and level."""

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4}
"""Priorities of syslog(3) by level; all other levels are 3, an error."""

_FACILITY_DAEMON = 3 << 3

_SYSLOG = "/dev/log"
_JOURNAL = "/run/systemd/journal/socket"

_SEND_TIMEOUT_S = 1.0
"""Timeout of a datagram to a daemon that does not read: the queue of records is bounded."""

_MESSAGE_MAX = 64 << 10
"""Longest message in octets for syslog and the journal, whose sockets take no larger datagrams
without an extra descriptor. Reports of many VNIs are longer, and are cut there."""

_VNI = re.compile(r"\bvni (\d{1,8})\b")
_DROP = re.compile(r"dropped \d+ x ([a-z0-9_]+): ")
_LAST_SOURCE = re.compile(r"\blast: ([0-9a-fA-F.:]+(?:%[\w.-]+)?)")


class Sink(Protocol):
    """A destination of log records."""

    def write(self, record: logging.LogRecord) -> None:
        """Write a record, or give up on it."""

    def reopen(self) -> None:
        """Open the destination anew, if it is a file, which may have been renamed."""

    def close(self) -> None:
        """Close the destination."""


class StderrSink:
    """Standard error: lines with time and level or, for the journal, with a priority."""

    def __init__(self, *, journal: bool = False, as_json: bool = False) -> None:
        self._formatter = JsonFormatter() if as_json else _Formatter(journal=journal)
        self.as_json = as_json

    def write(self, record: logging.LogRecord) -> None:
        """Write a record to standard error."""
        # Not by a StreamHandler on sys.stderr: the interpreter takes the locks of both at its end,
        # and would wait for ever for a thread that is blocked in write(2).
        with suppress(OSError):
            os.write(2, f"{self._formatter.format(record)}\n".encode(errors="replace"))

    def reopen(self) -> None:
        """Do nothing: the stream belongs to the process that has started this one."""

    def close(self) -> None:
        """Do nothing."""


class FileSink:
    """A file that is appended to. Raises: VtepError if it cannot be opened."""

    def __init__(self, path: Path, *, as_json: bool = False) -> None:
        self._formatter = JsonFormatter() if as_json else _Formatter(journal=False)
        self._is_cut = False
        """True if the file ends with a part of a line."""
        try:
            # Absolute, as the process changes its directory.
            self._path = path.absolute()
            self._descriptor = self._open()
        except OSError as error:
            raise VtepError(
                f"--log {path}: cannot open it: {descriptors.reason(error)}; give another file"
            ) from error

    def _open(self) -> int:
        # Not blocking, as the open of a FIFO without a reader would block for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        # Not for all to read: it names MAC and IP addresses of guests.
        descriptor = os.open(self._path, flags, 0o640)
        os.set_blocking(descriptor, True)
        return descriptor

    def write(self, record: logging.LogRecord) -> None:
        """Append a record; a full disk costs its line, or the end of it."""
        octets = f"{self._formatter.format(record)}\n".encode(errors="replace")
        if self._is_cut:
            octets = b"\n" + octets
        with suppress(OSError):
            # write(2) fills the disk to its last octet, and only the next call fails.
            self._is_cut = os.write(self._descriptor, octets) < len(octets)

    def reopen(self) -> None:
        """Open the file of this name, since logrotate has renamed the former one."""
        try:
            fresh = self._open()
        except OSError as error:
            log.warning(
                "--log %s: cannot reopen it: %s; the log goes on in the former file, wherever that "
                "is now: allow user %d to create files in %s",
                *(self._path, descriptors.reason(error), os.geteuid(), self._path.parent),
            )
            return
        # The number stays, so that the thread that writes never has a closed one.
        os.dup2(fresh, self._descriptor, inheritable=False)
        self._is_cut = False
        os.close(fresh)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class _DatagramSink:
    """A Unix socket that a daemon reads; it is found again after a restart of that daemon."""

    path = ""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_TIMEOUT_S)

    @property
    def problem(self) -> str | None:
        """The reason for which the daemon cannot be reached now; None if it can."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(self.path)
            except OSError as error:
                return f"{self.path}: {descriptors.reason(error)}"
        return None

    def _send(self, message: bytes) -> bool:
        # To a path, not connected: a daemon that restarts makes a new socket there.
        try:
            self._socket.sendto(message, self.path)
        except OSError as error:
            return error.errno not in (errno.EMSGSIZE, errno.ENOENT, errno.ECONNREFUSED)
        return True

    def reopen(self) -> None:
        """Do nothing: each message finds the daemon of its time."""

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class SyslogSink(_DatagramSink):
    """The log of a system without systemd: one datagram for each line, as in RFC 3164."""

    path = _SYSLOG

    def __init__(self, *, as_json: bool = False) -> None:
        super().__init__()
        self._json = JsonFormatter() if as_json else None

    def write(self, record: logging.LogRecord) -> None:
        """Send a record, line by line: daemons do not keep line breaks."""
        head = f"<{_FACILITY_DAEMON | _priority(record)}>pyvtep[{os.getpid()}]: "
        if self._json is None:
            lines = record.getMessage().splitlines()
        else:  # A part of an object would be no JSON.
            lines = [self._json.shortened(record, _MESSAGE_MAX - len(head))]
        for line in lines:
            if line and not self._send(f"{head}{line}".encode(errors="replace")[:_MESSAGE_MAX]):
                return


class JournalSink(_DatagramSink):
    """The systemd journal, by its native protocol: each message has fields to filter by.

    The fields besides MESSAGE are PRIORITY, SYSLOG_IDENTIFIER, VNI, DROP_REASON and REMOTE. What
    cannot be sent is written to standard error, which the journal reads as well.
    """

    path = _JOURNAL

    def __init__(self) -> None:
        super().__init__()
        self._otherwise = StderrSink(journal=True)

    def write(self, record: logging.LogRecord) -> None:
        """Send a record with its fields."""
        text = record.getMessage()
        fields = [
            ("MESSAGE", text),
            ("PRIORITY", str(_priority(record))),
            ("SYSLOG_IDENTIFIER", "pyvtep"),
            *journal_fields(text),
        ]
        message = b"".join(_encode_field(name, value) for name, value in fields)
        if len(message) > _MESSAGE_MAX or not self._send(message):
            self._otherwise.write(record)


@frozen
class LogDestinations:
    """The sinks of a process while it starts, and afterwards."""

    at_start: tuple[Sink, ...]
    lasting: tuple[Sink, ...]
    problem: str | None = None
    """A problem with a sink that may go away, to be logged."""

    @classmethod
    def open(cls, process: ProcessOptions, *, in_background: bool) -> "LogDestinations":
        """Open the sinks that the options name. Raises: VtepError."""
        sink: Sink
        problem = None
        as_json = process.log_format == JSON
        if process.log in (None, STDERR) and not in_background:
            journal = bootstrap.stderr_is_journal()
            native = JournalSink() if journal and process.log is None else None
            if native is not None and native.problem is None:
                sink = native
            else:
                sink = StderrSink(journal=journal, as_json=as_json)
        elif process.log in (None, SYSLOG):
            sink = SyslogSink(as_json=as_json)
            if reason := sink.problem:
                problem = (
                    f"the log is lost while there is no syslog: {reason}; name a file instead: "
                    "--log FILE"
                )
        else:
            sink = FileSink(Path(str(process.log)), as_json=as_json)
        # The terminal is there until it forwards, and shows why it does not.
        at_start = (sink, StderrSink()) if in_background else (sink,)
        return cls(at_start, (sink,), problem)


def journal_fields(text: str) -> list[tuple[str, str]]:
    """Return the fields of a message for the journal: what it says of VNIs, drops and remotes."""
    fields = [("VNI", vni) for vni in dict.fromkeys(_VNI.findall(text))]
    if drop := _DROP.match(text):
        fields.append(("DROP_REASON", drop[1]))
        if source := _LAST_SOURCE.search(text):
            fields.append(("REMOTE", source[1]))
    return fields


def _encode_field(name: str, value: str) -> bytes:
    octets = value.encode(errors="replace")
    if b"\n" not in octets:
        return b"%b=%b\n" % (name.encode(), octets)
    # A value of several lines follows its length (systemd: JOURNAL_NATIVE_PROTOCOL).
    return b"%b\n%b%b\n" % (name.encode(), len(octets).to_bytes(8, "little"), octets)


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
        priority = _priority(record)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 3)
