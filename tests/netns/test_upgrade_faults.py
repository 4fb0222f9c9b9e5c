"""Upgrades under attack: processes are killed, stopped and started at every step of the way.

Nothing here depends on the speed of the machine: each process is held at a step until the test has
done what it is about.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    has_device,
    ping,
    segment,
    wait_until,
)
from tests.netns.staged_upgrade import Stages, children, has_ended, leftovers
from tests.netns.steady_traffic import SteadyTraffic
from tests.netns.test_upgrade import end, upgrade
from vtep.control import Client
from vtep.control.jsonrpc import Code
from vtep.errors import VtepError

CONTINUES = "; the running process continues"


@pytest.fixture
def stages(tmp_path: Path, pair: Pair) -> Iterator[Stages]:
    """Return a program whose upgrades can be held; its processes are killed after the test."""
    yield Stages(tmp_path / "stages")
    namespace = pair[0].namespace.stat().st_ino
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if (process / "ns/net").stat().st_ino == namespace and b"--takeover" in command:
                os.kill(int(process.name), signal.SIGKILL)


@pytest.fixture
def first(pair: Pair, start: Start, stages: Stages) -> Pyvtep:
    """Start a VTEP on both hosts; the upgrades of the one on the first host can be held."""
    start(pair[1], *segment(1, "192.0.2.1", "10.0.0.2/24"))
    arguments = segment(1, "192.0.2.2", "10.0.0.1/24")
    return start(pair[0], *arguments, prefix=(str(stages.program),))


class Command:
    """A pyvtep command that runs beside the test."""

    def __init__(self, vtep: Pyvtep, *words: str, program: tuple[str, ...] = ()) -> None:
        program = program or (sys.executable, "-m", "vtep")
        self.process = vtep.host.start(
            *(*program, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def result(self) -> tuple[int, str]:
        """Wait for the end. Returns: the exit code, and all that it has printed."""
        out, err = self.process.communicate(timeout=4 * DEADLINE)
        return self.process.returncode, out + err


def begin_upgrade(vtep: Pyvtep) -> Command:
    return Command(vtep, "upgrade", "--socket", str(vtep.control))


def serving_pid(vtep: Pyvtep) -> int:
    with Client(vtep.control) as client:
        return int(client.call("process.show")["pid"])


def awaited(vtep: Pyvtep) -> str:
    with Client(vtep.control) as client:
        return str(client.call("upgrade.show")["waiting_for"])


# --- several at once --------------------------------------------------------------------------


def test_only_one_process_takes_over_at_a_time(
    pair: Pair, start: Start, stages: Stages, tmp_path: Path
) -> None:
    """Whoever comes second is told who is first, and neither harms it nor the PID file."""
    pid_file = tmp_path / "pid"
    arguments = (*segment(1, "192.0.2.2"), "--pid-file", str(pid_file))
    vtep = start(pair[0], *arguments, prefix=(str(stages.program),))
    old = vtep.process.pid
    by_hand = (*arguments, "--no-fast-path", "--takeover", str(vtep.control))

    stages.hold("connect")
    one = begin_upgrade(vtep)
    new = stages.reached("connect")
    assert vtep.run("upgrade", code=1) == (
        "an upgrade is in progress already, and waits for the new process to ask for the handover: "
        "wait for its end"
    )
    code, said = Command(vtep, *by_hand).result()  # Of the plain program, which is not held.
    assert (code, "an upgrade is in progress already" in said) == (1, True), said
    stages.go_on("connect")
    code, said = one.result()
    assert code == 0, said
    assert f"upgraded: pid {old} -> {new}, " in said
    wait_until(lambda: pid_file.read_text() == f"{new}\n", "the PID file of the new process")
    assert serving_pid(vtep) == new

    # A process that was started by hand, and an upgrade in between.
    stages.hold("ready")
    another = Command(vtep, *by_hand, program=(str(stages.program),))
    third = stages.reached("ready")
    refusal = f"process {third} is taking over already: wait for its end"
    assert vtep.run("upgrade", code=1) == refusal
    code, said = Command(vtep, *by_hand).result()
    assert (code, refusal in said) == (1, True), said
    assert awaited(vtep) == f"process {third} to build its ports"
    stages.go_on("ready")
    wait_until(lambda: pid_file.read_text() == f"{third}\n", "the PID file of the third process")
    assert serving_pid(vtep) == third
    assert [path.name for path in tmp_path.glob(".*")] == []
    another.process.send_signal(signal.SIGTERM)
    assert another.result()[0] == 0
    assert not pid_file.exists()


# --- the end of the new process ---------------------------------------------------------------

NEW_STAGES = ("connect", "hello", "build", "ready", "ready-sent", "reading", "reading-sent")


def test_the_old_process_continues_if_the_new_one_is_killed(
    pair: Pair, stages: Stages, first: Pyvtep
) -> None:
    """By SIGKILL, at each stage, while frames are forwarded: none of them is lost.

    The rate is low enough for the queue of the TAP, however long the test is kept from a processor.
    """
    traffic = SteadyTraffic(*pair, "10.0.0.1", "10.0.0.2", rate=50)
    with stages.deadline("reading", 60), stages.deadline("confirm", 60):
        for stage in NEW_STAGES:
            stages.hold(stage)
            upgrading = begin_upgrade(first)
            new = stages.reached(stage)
            os.kill(new, signal.SIGKILL)
            code, said = upgrading.result()
            assert (code, CONTINUES in said) == (1, True), (stage, said)
            assert "has ended" in said, (stage, said)
            assert has_ended(new)
            assert serving_pid(first) == first.process.pid
            assert leftovers(first) == [], stage
            assert children(first.process.pid) == [], stage
            stages.go_on(stage)
            ping(pair[0], "10.0.0.2")
    pid = upgrade(first)
    report = traffic.stop()
    end(first, pid)
    assert report.lost == report.duplicated == 0, (report, first.log)
    assert report.tcp_alive, report


def test_a_new_process_that_is_stopped_is_given_up(
    pair: Pair, stages: Stages, first: Pyvtep
) -> None:
    """Before it has asked for the handover: there is no deadline but that of its reports."""
    stages.hold("connect")
    with stages.deadline("silence", 20):
        upgrading = begin_upgrade(first)
        new = stages.reached("connect")
        os.kill(new, signal.SIGSTOP)
        assert awaited(first) == "the new process to ask for the handover"
        code, said = upgrading.result()
    assert code == 1
    assert "was to ask for the handover, and has reported nothing for 20 s: killed" in said
    wait_until(lambda: has_ended(new), "the end of the process that was stopped")
    assert children(first.process.pid) == []
    ping(pair[0], "10.0.0.2")


def test_an_upgrade_whose_command_is_interrupted_goes_on(
    pair: Pair, stages: Stages, first: Pyvtep
) -> None:
    """On a terminal, the command says what it waits for."""
    stages.hold("build")
    terminal, stderr = os.openpty()
    command = (sys.executable, "-m", "vtep", "upgrade", "--socket", str(first.control))
    upgrading = first.host.start(*command, stderr=stderr)
    os.close(stderr)
    new = stages.reached("build")
    with open(terminal, encoding="utf-8") as said:
        waiting = f"pyvtep: note: waiting for process {new} to build its ports"
        assert any(waiting in line for line in said)
        upgrading.send_signal(signal.SIGINT)
        assert "the upgrade goes on in the running pyvtep" in next(said)
        assert upgrading.wait(DEADLINE) == 130
    stages.go_on("build")
    wait_until(lambda: serving_pid(first) == new, "the new process")
    assert first.wait() == 0
    ping(pair[0], "10.0.0.2")
    end(first, new)


# --- the end of the old process ---------------------------------------------------------------


@pytest.mark.parametrize("stage", ["connect", "complete", "go", "reading", "counters"])
def test_one_process_or_none_is_left_if_the_old_one_is_killed(
    pair: Pair, stages: Stages, first: Pyvtep, stage: str
) -> None:
    """The new one continues if it was told to read, and else ends with an error."""
    old = first.process.pid
    stages.hold("connect").hold(stage)
    upgrading = begin_upgrade(first)
    new = stages.reached("connect")
    if stage != "connect":
        stages.go_on("connect")
        assert stages.reached(stage) == (new if stage == "reading" else old)
    first.process.send_signal(signal.SIGKILL)
    assert upgrading.result()[0] == 1
    stages.go_on(stage)
    if stage in ("reading", "counters"):
        wait_until(lambda: serving_pid(first) == new, "the new process")
        ping(pair[0], "10.0.0.2")
        ping(pair[1], "10.0.0.1")
        ended = stage == "reading"
        assert ("the old process has ended during the handover" in first.log) is ended
        end(first, new)
    else:
        wait_until(lambda: has_ended(new), "the end of the new process")
        gone = f"--takeover {first.control}: no process to take over from (Connection refused)"
        error = gone if stage == "connect" else f"cannot take over: process {old} has ended"
        assert f"pyvtep: error: {error}" in first.log
    wait_until(lambda: not has_device(pair[0]), "the end of the TAP")


def test_an_old_process_that_hangs_is_killed_by_the_one_that_forwards(
    pair: Pair, start: Start, stages: Stages, tmp_path: Path
) -> None:
    """It keeps the state file locked, and would read again one day."""
    state = ("--state", str(tmp_path / "state"))
    start(pair[1], *segment(1, "192.0.2.1", "10.0.0.2/24"))
    arguments = (*segment(1, "192.0.2.2", "10.0.0.1/24"), *state)
    vtep = start(pair[0], *arguments, prefix=(str(stages.program),))
    with stages.deadline("rest", 0.5):
        stages.hold("counters")
        begin_upgrade(vtep)
        assert stages.reached("counters") == vtep.process.pid
        vtep.process.send_signal(signal.SIGSTOP)
        assert vtep.wait() == -signal.SIGKILL
    assert f"process {vtep.process.pid} hangs: killed" in vtep.log
    new = serving_pid(vtep)
    assert new != vtep.process.pid
    ping(pair[0], "10.0.0.2")
    end(vtep, new)


@pytest.mark.parametrize("stage", ["ready", "reading-sent"])
def test_sigterm_to_the_old_process_ends_both(
    pair: Pair, stages: Stages, first: Pyvtep, stage: str
) -> None:
    stages.hold(stage)
    with stages.deadline("reading", 60), stages.deadline("confirm", 60):
        upgrading = begin_upgrade(first)
        new = stages.reached(stage)
        first.process.send_signal(signal.SIGTERM)
        assert upgrading.result()[0] == 1
        assert first.wait() == 0
    wait_until(lambda: has_ended(new), "the end of the new process")
    assert not has_device(pair[0])
    assert not first.control.exists()
    assert leftovers(first) == []


# --- changes meanwhile ------------------------------------------------------------------------


def test_a_command_during_an_upgrade_is_executed_once(
    pair: Pair, stages: Stages, first: Pyvtep
) -> None:
    """Those that take long wait, and delay no others. The new process executes what is left."""
    late = {"jsonrpc": "2.0", "id": 2, "method": "fdb.add"}
    late |= {"params": {"mac": "02:00:00:00:00:02", "dst": "192.0.2.2", "vni": 1}}
    with ThreadPoolExecutor() as threads, socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(4 * DEADLINE)
        connected.connect(str(first.control))
        answers = connected.makefile("rb")
        connected.sendall(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
        assert json.loads(answers.readline())["result"] is True
        stages.hold("build").hold("counters")
        with stages.deadline("reading", 60):
            upgrading = begin_upgrade(first)
            new = stages.reached("build")
            commands = [
                threads.submit(first.invoke, "vni add 7 --remote 192.0.2.9 --tap vx7"),
                threads.submit(first.invoke, "set --ageing 77 --vni 1"),
            ]
            with Client(first.control) as other:  # It need not wait for them.
                other.fdb.add("02:00:00:00:00:01", "192.0.2.2", vni=1)
                assert [each["vni"] for each in other.vni.show()] == [1]
            stages.go_on("build")
            stages.reached("counters")
            # On a connection to the old process, which does not read any more by now.
            connected.sendall(json.dumps(late).encode() + b"\n")
            stages.go_on("counters")
            assert upgrading.result()[0] == 0
        assert json.loads(answers.readline())["error"]["code"] == Code.HANDED_OVER
        for each in commands:
            each.result()
    assert serving_pid(first) == new
    with first.client() as client:
        assert {each["vni"]: each["options"]["ageing"] for each in client.vni.show()} == {
            1: 77,
            7: 300,
        }
        assert client.fdb.get("02:00:00:00:00:01", vni=1)
        with pytest.raises(VtepError, match="there is no such entry"):
            client.fdb.get("02:00:00:00:00:02", vni=1)
        client.vni.delete(7)
    assert not has_device(pair[0], "vx7")
    end(first, new)


def test_a_reload_that_waits_for_an_upgrade_is_done_by_the_new_process(
    pair: Pair, start: Start, stages: Stages, tmp_path: Path
) -> None:
    """It had read the file before, and the old one ends before it could apply the change."""
    config = tmp_path / "vteps.toml"
    text = '[[vni]]\nid = 1\nremote = ["192.0.2.2"]\ntap = "vx0"\nfast-path = false\n'
    config.write_text(text)
    vtep = start(pair[0], "--config", str(config), prefix=(str(stages.program),))
    stages.hold("build")
    upgrading = begin_upgrade(vtep)
    new = stages.reached("build")
    config.write_text(f"{text}ageing = 77\n")
    vtep.process.send_signal(signal.SIGHUP)
    stages.go_on("build")
    code, said = upgrading.result()
    assert code == 0, said

    def ageing() -> object:
        with vtep.client() as client:
            return client.vni.show()[0]["options"]["ageing"]

    wait_until(lambda: ageing() == 77, "the changed file")
    assert serving_pid(vtep) == new
    assert "reload failed" not in vtep.log
    end(vtep, new)


def test_a_tap_that_others_change_during_an_upgrade(
    pair: Pair, stages: Stages, first: Pyvtep
) -> None:
    """Renamed, moved, or removed, before and after the new process has built its ports."""
    host, other = pair
    for vni in (7, 8, 9):
        first.invoke(f"vni add {vni} --remote 192.0.2.9 --tap vx{vni}")
    stages.hold("build")
    upgrading = begin_upgrade(first)
    stages.reached("build")
    host.run("ip", "link", "del", "vx9")
    stages.go_on("build")
    code, said = upgrading.result()
    assert (code, "the TAP device vx9 was removed during the upgrade" in said) == (1, True)
    assert serving_pid(first) == first.process.pid

    stages.hold("build").hold("ready-sent")
    upgrading = begin_upgrade(first)
    new = stages.reached("build")
    host.run("ip", "link", "set", "vx0", "down")
    host.run("ip", "link", "set", "vx0", "name", "renamed0", "up")
    host.run("ip", "link", "set", "vx7", "netns", other.pid)
    stages.go_on("build")
    stages.reached("ready-sent")
    host.run("ip", "link", "del", "vx8")
    stages.go_on("ready-sent")
    code, said = upgrading.result()
    assert code == 0, said
    assert serving_pid(first) == new
    with first.client() as client:
        wait_until(lambda: {each["vni"] for each in client.vni.show()} == {1, 7}, "the end of vx8")
        wait_until(lambda: client.stats()["total"]["counters"]["taps_lost"] == 2, "both to count")
        assert client.vni.show(vni=1)[0]["dev"] == "renamed0"
    assert not has_device(host, "vx8")
    host.run("ip", "addr", "replace", "10.0.0.1/24", "dev", "renamed0")
    ping(host, "10.0.0.2")
    other.run("ip", "link", "set", "vx7", "netns", host.pid)
    wait_until(lambda: "vx7 is back in the network namespace" in first.log, "the TAP to be back")
    end(first, new)
    assert not has_device(host, "renamed0")


# --- the target -------------------------------------------------------------------------------


def test_a_target_that_does_not_exist_is_found_before_anything_is_loaded(
    pair: Pair, first: Pyvtep, tmp_path: Path
) -> None:
    """The file of another pyvtep is named, if one runs."""
    missing = tmp_path / "missing.sock"
    plain = ("--vni", "1", "--remote", "192.0.2.2", "--tap", "vx1", "--takeover")
    code, said = Command(first, *plain, str(missing)).result()
    assert code == 1
    assert said == (
        f"pyvtep: error: --takeover {missing}: no process to take over from (No such file or "
        "directory); no pyvtep was found here; or start without --takeover\n"
    )
    elsewhere = Pyvtep(pair[1], tmp_path, *plain, str(first.control))
    assert elsewhere.process.wait(2 * DEADLINE) == 1
    assert f"process {first.process.pid} is in another network namespace; start" in elsewhere.log
    assert serving_pid(first) == first.process.pid
