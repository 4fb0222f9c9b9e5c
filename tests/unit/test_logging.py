"""The log: its format on a terminal and in the journal, its queue, and the lines of --debug."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep import Config, Vtep, VtepError
from vtep.cli import bootstrap
from vtep.cli.event_log import EventLog
from vtep.cli.log_handler import REPORT, NonBlockingLogHandler
from vtep.cli.log_json import JsonFormatter, fields_of
from vtep.cli.log_sinks import FileSink, JournalSink, LogDestinations, StderrSink, SyslogSink
from vtep.cli.process_options import ProcessOptions
from vtep.cli.stats_text import format_stats, merge_stats
from vtep.control import views
from vtep.control.schema import Stats
from vtep.counters import Counters, Drop
from vtep.daemon.drop_log import DropLog
from vtep.forwarding.fdb import EntryKind, Remote

HANDLER = "vtep.cli.log_handler"
SINKS = "vtep.cli.log_sinks"
REMOTE = Remote("192.0.2.2", 4789)


def write(capfd: pytest.CaptureFixture[str], *, journal: bool) -> list[str]:
    """Log some records, and return the lines on standard error."""
    handler = NonBlockingLogHandler(StderrSink(journal=journal))
    log, report = logging.Logger("vtep"), logging.Logger(REPORT)
    log.addHandler(handler)
    report.addHandler(handler)
    log.info("vni %d on %s", 1, "vx0")
    log.warning("two\nlines")
    log.error("error: x")
    log.debug("why")
    report.info("%s", "  drops  0\n  fdb    1")
    handler.flush()
    return capfd.readouterr().err.splitlines()


def test_lines_have_time_and_level(capfd: pytest.CaptureFixture[str]) -> None:
    first, *others = write(capfd, journal=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO pyvtep: vni 1 on vx0", first)
    assert [line.split()[2:4] for line in others if line[:1].isdigit()] == [
        ["WARNING", "pyvtep:"],
        ["ERROR", "pyvtep:"],
        ["DEBUG", "pyvtep:"],
    ]
    assert others[-2:] == ["  drops  0", "  fdb    1"]  # A report is as it is.


def test_the_journal_gets_priorities(capfd: pytest.CaptureFixture[str]) -> None:
    assert write(capfd, journal=True) == [
        "<6>pyvtep: vni 1 on vx0",
        "<4>pyvtep: two",
        "<4>lines",
        "<3>pyvtep: error: x",
        "<7>pyvtep: why",
        "<6>  drops  0",
        "<6>  fdb    1",
    ]


def test_a_stuck_reader_does_not_block_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, resume = threading.Event(), threading.Event()
    written: list[bytes] = []

    def write(_descriptor: int, octets: bytes) -> None:
        stuck.set()
        assert resume.wait(60)
        written.append(octets)

    monkeypatch.setattr(f"{SINKS}.os", SimpleNamespace(write=write))
    monkeypatch.setattr(f"{HANDLER}._RECORDS_MAX", 5)
    monkeypatch.setattr(f"{HANDLER}._FLUSH_TIMEOUT_S", 0)
    handler = NonBlockingLogHandler(StderrSink(journal=True))
    log = logging.Logger("vtep")
    log.addHandler(handler)
    log.info("0")
    assert stuck.wait(60)  # Else the thread may take it after the queue was full for a while.
    for number in range(1, 50):  # Returns at all: the queue is full after five.
        log.info("%d", number)
    handler.flush()  # Gives up, as the end of the process does.
    resume.set()
    monkeypatch.setattr(f"{HANDLER}._FLUSH_TIMEOUT_S", 60)
    handler.flush()
    log.info("last")
    handler.flush()
    *first, notice, last = (octets.decode().strip() for octets in written)
    assert first == [f"<6>pyvtep: {number}" for number in range(len(first))]
    lost = 50 - len(first)
    assert notice.startswith(f"<4>pyvtep: {lost} log records lost: ")
    assert last == "<6>pyvtep: last"


def test_a_closed_reader_does_not_stop_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def write(_descriptor: int, _octets: bytes) -> None:
        nonlocal calls
        calls += 1
        raise BrokenPipeError

    monkeypatch.setattr(f"{SINKS}.os", SimpleNamespace(write=write))
    handler = NonBlockingLogHandler(StderrSink())
    log = logging.Logger("vtep")
    log.addHandler(handler)
    for _ in range(3):
        log.info("x")
        handler.flush()
    assert calls == 3


def test_a_stuck_reader_does_not_keep_the_process_alive() -> None:
    """With records in the queue, and the thread blocked in a write to a full pipe."""
    code = (
        "import logging, sys\n"
        "from vtep.cli.log_handler import NonBlockingLogHandler\n"
        "from vtep.cli.log_sinks import StderrSink\n"
        "logging.basicConfig(level=logging.INFO, handlers=[NonBlockingLogHandler(StderrSink())])\n"
        "for _ in range(500): logging.info('x' * 1000)\n"
        "print('logged', flush=True)\n"
    )
    reader, writer = os.pipe()
    child = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, timeout=60, check=True
    )
    assert child.stdout == b"logged\n"
    first = os.read(reader, 1000).splitlines()[0]
    assert first.partition(b" INFO pyvtep: ")[2].strip(b"x") == b""
    os.close(reader)
    os.close(writer)


def test_the_journal_is_found_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = os.fstat(2)
    for stream, there in (
        (f"{seen.st_dev}:{seen.st_ino}", True),
        (f"{seen.st_dev}:{seen.st_ino + 1}", False),  # Standard error is redirected.
        ("nonsense", False),
        ("", False),
    ):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        assert bootstrap.stderr_is_journal() is there
        assert bootstrap.journal_prefix(3) == ("<3>" if there else "")
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not bootstrap.stderr_is_journal()


def test_debug_logs_changes_with_their_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10.0
    monkeypatch.setattr("vtep.cli.event_log._LINES_PER_SECOND", 3)
    monkeypatch.setattr("vtep.cli.event_log.time.monotonic", lambda: now)
    caplog.set_level(logging.DEBUG, "vtep")
    vtep = Vtep(Config(vni=1, remote="192.0.2.2"))
    vtep.fdb.learn(b"\2\0\0\0\0\0", REMOTE, 0.0)
    assert caplog.messages == []
    event_log = EventLog(vtep)
    vtep.fdb.learn(b"\2\0\0\0\0\1", REMOTE, 0.0)
    vtep.fdb.add(b"\2\0\0\0\0\2", REMOTE, 0.0, EntryKind())
    vtep.fdb.remove(b"\2\0\0\0\0\2", None)
    assert caplog.messages == [
        "fdb added: 02:00:00:00:00:01 dev vx1 dst 192.0.2.2 dynamic (learned from a frame)",
        "fdb added: 02:00:00:00:00:02 dev vx1 dst 192.0.2.2 permanent (requested)",
        "fdb deleted: 02:00:00:00:00:02 dev vx1 dst 192.0.2.2 permanent (requested)",
    ]
    for number in range(3, 9):
        vtep.fdb.learn(bytes((2, 0, 0, 0, 0, number)), REMOTE, 0.0)
    assert len(caplog.messages) == 3
    now = 11.0
    vtep.fdb.learn(b"\2\0\0\0\0\x09", REMOTE, 0.0)
    assert caplog.messages[3] == "6 more changes were not logged"
    event_log.end()
    vtep.fdb.learn(b"\2\0\0\0\0\x0a", REMOTE, 0.0)
    assert len(caplog.messages) == 5


def stats(vni: int, frames: int) -> Stats:
    vtep = Vtep(Config(vni=vni))
    vtep.port.segment.counters.tx_frames = frames
    return views.stats(vtep, vtep.ports.values(), time.monotonic())


def test_zero_counters_can_be_left_out() -> None:
    (block,) = format_stats(stats(1, 7), zeros=False)
    assert [line.split()[0] for line in block.lines] == ["vni", "tx_frames", "drops", "fdb"]
    (block,) = format_stats(stats(1, 7))
    assert len(block.lines) > 20


def test_counters_of_several_processes_are_added_up() -> None:
    merged = merge_stats([stats(1, 7), stats(2, 5)])
    assert merged["total"]["counters"]["tx_frames"] == 12
    assert [segment["vni"] for segment in merged["segments"]] == [1, 2]
    head, *segments = format_stats(merged, zeros=False)
    assert head.lines[0] == "2 VNIs, together"
    assert [block.vni for block in segments] == [1, 2]
    one: Any = stats(1, 7)
    assert merge_stats([one]) is one


@pytest.fixture
def daemon_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return a socket at which the sinks find syslog and the journal."""
    path = tmp_path / "log"
    monkeypatch.setattr(f"{SINKS}._DatagramSink.path", str(path))
    monkeypatch.delattr(f"{SINKS}.SyslogSink.path")
    monkeypatch.delattr(f"{SINKS}.JournalSink.path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(30)
        yield sock


def record_of(text: str, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("vtep", level, "", 0, text, (), None)


def test_syslog_gets_a_datagram_for_each_line(daemon_socket: socket.socket) -> None:
    sink = SyslogSink()
    assert sink.problem is None
    sink.write(record_of("two\nlines"))
    sink.write(record_of("x", logging.ERROR))
    head = f"pyvtep[{os.getpid()}]: "
    assert [daemon_socket.recv(1000).decode() for _ in range(3)] == [
        f"<28>{head}two",
        f"<28>{head}lines",
        f"<27>{head}x",
    ]
    sink.close()


@pytest.mark.usefixtures("daemon_socket")
def test_a_daemon_that_was_restarted_is_found(tmp_path: Path) -> None:
    sink = SyslogSink()
    sink.write(record_of("before"))
    (tmp_path / "log").unlink()
    assert "No such file" in str(sink.problem)
    sink.write(record_of("lost"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sink.write(record_of("after"))
        assert sock.recv(1000).endswith(b": after")
    sink.close()


def test_the_journal_gets_fields(
    daemon_socket: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    sink = JournalSink()
    counters = Counters()
    counters.drop(Drop.SOURCE_UNKNOWN, "192.0.2.9", 3)
    (line,) = DropLog().news(0.0, [("vni 7", counters)])
    sink.write(record_of(line))
    assert daemon_socket.recv(10_000).decode().splitlines() == [
        f"MESSAGE={line}",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=pyvtep",
        "VNI=7",
        "DROP_REASON=source_unknown",
        "REMOTE=192.0.2.9",
    ]
    sink.write(record_of("vni 1\nvni 2\n", logging.INFO))
    message = daemon_socket.recv(10_000)
    assert message.startswith(b"MESSAGE\n\x0c\0\0\0\0\0\0\0vni 1\nvni 2\n\nPRIORITY=6\n")
    assert message.endswith(b"VNI=1\nVNI=2\n")
    sink.write(record_of("x" * 100_000))  # The journal reads standard error, too.
    assert capfd.readouterr().err == f"<4>pyvtep: {'x' * 100_000}\n"
    sink.close()


def test_a_json_line_has_the_fields_of_its_message() -> None:
    counters = Counters()
    counters.drop(Drop.SOURCE_UNKNOWN, "192.0.2.9", 3)
    (dropped,) = DropLog().news(0.0, [("vni 7", counters)])
    made = {
        text: fields_of(text)
        for text in (
            dropped,
            "vni 1 on vx0 (mtu 1450)",
            "vni 3: loop through 2001:db8::1: the bridge of the TAP reaches it",
            "offload gso disabled to 192.0.2.7: the kernel refused it",
            "remote 192.0.2.8 is heard again",
            "fdb moved: 02:00:00:00:00:01 dev vx0 dst 192.0.2.2 dynamic",
            "--dev eth0 was re-created; rebinding",
            "vni 1, vni 2, vni 1",
        )
    }
    assert list(made.values()) == [
        {"vni": 7, "reason": "source_unknown", "remote": "192.0.2.9"},
        {"vni": 1, "dev": "vx0"},
        {"vni": 3, "remote": "2001:db8::1"},
        {"remote": "192.0.2.7"},
        {"remote": "192.0.2.8"},
        {"dev": "vx0"},
        {},
        {"vnis": [1, 2]},
    ]


TEXTS = st.text(
    st.characters(codec=None) | st.sampled_from('\0\x1b\x7f\x9b\n\r\u2028\ud800"'), max_size=200
)


@given(TEXTS, st.sampled_from([None, 300, 1000]))
def test_a_json_line_is_one_valid_line_without_control_characters(
    text: str, most: int | None
) -> None:
    record = record_of(text)
    line = JsonFormatter().shortened(record, most)
    assert line.isascii()
    assert line.isprintable()
    assert most is None or len(line) <= most
    made = json.loads(line)
    assert (made["level"], made["logger"]) == ("warning", "vtep")
    moment = datetime.fromisoformat(made["timestamp"])
    assert moment.tzinfo is not None
    assert abs(moment.timestamp() - record.created) < 0.01
    if most is None:
        assert made["message"] == text.encode(errors="replace").decode()


def test_every_destination_takes_json(
    tmp_path: Path, daemon_socket: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    report = record_of("a\nb", logging.INFO)
    report.name = REPORT
    FileSink(tmp_path / "file", as_json=True).write(report)
    StderrSink(as_json=True, journal=True).write(report)
    syslog = SyslogSink(as_json=True)
    syslog.write(report)
    head = f"<30>pyvtep[{os.getpid()}]: "
    lines = [
        (tmp_path / "file").read_text(),
        capfd.readouterr().err,
        daemon_socket.recv(10_000).decode().removeprefix(head) + "\n",
    ]
    assert len(set(lines)) == 1
    assert json.loads(lines[0])["message"] == "a\nb"
    syslog.write(record_of("\u20ac" * 100_000))
    made = json.loads(daemon_socket.recv(100_000).decode().partition(": ")[2])
    assert made["message"].endswith("\u20ac...")
    syslog.close()


def test_the_journal_gets_its_fields_with_json_too(
    monkeypatch: pytest.MonkeyPatch, daemon_socket: socket.socket
) -> None:
    monkeypatch.setattr(bootstrap, "stderr_is_journal", lambda: True)
    kinds = []
    for log in (None, "stderr"):
        process = ProcessOptions(log=log, log_format="json")
        (sink,) = LogDestinations.open(process, in_background=False).lasting
        kinds.append(type(sink))
        sink.close()
    assert kinds == [JournalSink, StderrSink]
    assert daemon_socket.fileno() > 0


def test_an_error_at_the_start_is_json_as_well(tmp_path: Path) -> None:
    arguments = ("--vni", "1", "--tap", "lo", "--remote", "192.0.2.2", "--no-fast-path")
    control = ("--control", str(tmp_path / "control"))
    command = (sys.executable, "-m", "vtep", *arguments, *control, "--log-format", "json")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert lines[-1]["level"] == "error"


def test_a_file_is_reopened_after_it_was_renamed(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.log"
    sink = FileSink(path)
    handler = NonBlockingLogHandler(sink)
    log = logging.Logger("vtep")
    log.addHandler(handler)
    log.info("first")
    handler.flush()
    path.rename(tmp_path / "pyvtep.log.1")
    handler.reopen()
    log.info("second")
    handler.flush()
    assert (tmp_path / "pyvtep.log.1").read_text().endswith(" INFO pyvtep: first\n")
    assert path.read_text().endswith(" INFO pyvtep: second\n")
    assert path.stat().st_mode & 0o007 == 0
    with pytest.raises(VtepError, match="missing/x: cannot open it: No such file"):
        FileSink(tmp_path / "missing/x")
    # Not even a signal would end an open of a FIFO that has no reader.
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(VtepError, match="fifo: cannot open it: No such device or address; give an"):
        FileSink(tmp_path / "fifo")


def test_a_file_that_cannot_be_reopened_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    sink = FileSink(folder / "x")
    folder.rename(tmp_path / "moved")
    sink.reopen()
    assert (
        f"--log {folder}/x: cannot reopen it: No such file or directory; the log g" in caplog.text
    )
    sink.write(record_of("goes on"))
    sink.close()
    assert (tmp_path / "moved/x").read_text().endswith(" pyvtep: goes on\n")
