"""How the log looks: with time and level, or as the journal has it; and what --debug says."""

import logging
import os
import re
import time
from typing import Any

import pytest

from vtep import Config, Vtep
from vtep.cli import bootstrap
from vtep.cli.event_log import Trace
from vtep.cli.log_handler import Voice
from vtep.cli.stats_text import counted, together
from vtep.control import views
from vtep.control.schema import Stats
from vtep.forwarding.fdb import Kind, Remote

REMOTE = Remote("192.0.2.2", 4789)


def written(capfd: pytest.CaptureFixture[str], *, journal: bool) -> list[str]:
    voice = Voice(journal=journal)
    log = logging.Logger("vtep")
    log.addHandler(voice)
    log.info("vni %d on %s", 1, "vx0")
    log.warning("two\nlines")
    log.error("error: x")
    log.debug("why")
    voice.say("  drops  0")
    voice.close()
    return capfd.readouterr().err.splitlines()


def test_lines_have_time_and_level(capfd: pytest.CaptureFixture[str]) -> None:
    first, *others = written(capfd, journal=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO pyvtep: vni 1 on vx0", first)
    assert [line.split()[2:4] for line in others if line[:1].isdigit()] == [
        ["WARNING", "pyvtep:"],
        ["ERROR", "pyvtep:"],
        ["DEBUG", "pyvtep:"],
    ]
    assert others[-1] == "  drops  0"


def test_the_journal_gets_priorities(capfd: pytest.CaptureFixture[str]) -> None:
    assert written(capfd, journal=True) == [
        "<6>pyvtep: vni 1 on vx0",
        "<4>pyvtep: two",
        "<4>lines",
        "<3>pyvtep: error: x",
        "<7>pyvtep: why",
        "<6>  drops  0",
    ]


def test_the_journal_is_found_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = os.fstat(2)
    for stream, there in (
        (f"{seen.st_dev}:{seen.st_ino}", True),
        (f"{seen.st_dev}:{seen.st_ino + 1}", False),  # Standard error is redirected.
        ("nonsense", False),
        ("", False),
    ):
        monkeypatch.setenv("JOURNAL_STREAM", stream)
        assert bootstrap.in_journal() is there
        assert bootstrap.priority(3) == ("<3>" if there else "")
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not bootstrap.in_journal()


def test_debug_says_what_changed_and_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10.0
    monkeypatch.setattr("vtep.cli.event_log._LINES_A_SECOND", 3)
    monkeypatch.setattr("vtep.cli.event_log.time.monotonic", lambda: now)
    caplog.set_level(logging.DEBUG, "vtep")
    vtep = Vtep(Config(vni=1, remote="192.0.2.2"))
    vtep.fdb.learn(b"\2\0\0\0\0\0", REMOTE, 0.0)
    assert caplog.messages == []
    trace = Trace(vtep)
    vtep.fdb.learn(b"\2\0\0\0\0\1", REMOTE, 0.0)
    vtep.fdb.add(b"\2\0\0\0\0\2", REMOTE, 0.0, Kind())
    vtep.fdb.remove(b"\2\0\0\0\0\2", None)
    assert caplog.messages == [
        "fdb added: 02:00:00:00:00:01 dev vx1 dst 192.0.2.2 dynamic (learned from a frame)",
        "fdb added: 02:00:00:00:00:02 dev vx1 dst 192.0.2.2 permanent (asked for)",
        "fdb deleted: 02:00:00:00:00:02 dev vx1 dst 192.0.2.2 permanent (asked for)",
    ]
    for number in range(3, 9):
        vtep.fdb.learn(bytes((2, 0, 0, 0, 0, number)), REMOTE, 0.0)
    assert len(caplog.messages) == 3
    now = 11.0
    vtep.fdb.learn(b"\2\0\0\0\0\x09", REMOTE, 0.0)
    assert caplog.messages[3] == "6 more changes were not logged"
    trace.end()
    vtep.fdb.learn(b"\2\0\0\0\0\x0a", REMOTE, 0.0)
    assert len(caplog.messages) == 5


def stats(vni: int, frames: int) -> Stats:
    vtep = Vtep(Config(vni=vni))
    vtep.port.segment.counters.tx_frames = frames
    return views.stats(vtep, vtep.ports.values(), time.monotonic())


def test_counters_that_are_zero_are_left_out_if_wanted() -> None:
    (block,) = counted(stats(1, 7), zeros=False)
    assert [line.split()[0] for line in block.lines] == ["vni", "tx_frames", "drops", "fdb"]
    (block,) = counted(stats(1, 7))
    assert len(block.lines) > 20


def test_what_several_have_counted_is_added_up() -> None:
    told = together([stats(1, 7), stats(2, 5)])
    assert told["total"]["counters"]["tx_frames"] == 12
    assert [segment["vni"] for segment in told["segments"]] == [1, 2]
    head, *segments = counted(told, zeros=False)
    assert head.lines[0] == "2 VNIs, together"
    assert [block.vni for block in segments] == [1, 2]
    one: Any = stats(1, 7)
    assert together([one]) is one
