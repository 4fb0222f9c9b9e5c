"""`--background` without a service manager: the command, the PID file, and the log."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.netns.hosts import DEADLINE, Pair, has_device, ping, segment, wait_until
from vtep.control import Client

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _end_all(pair: Pair) -> Iterator[None]:
    """Kill what a test that fails has left in the background: it has no parent to end it."""
    yield
    namespaces = {host.namespace.stat().st_ino for host in pair}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            if (process / "ns/net").stat().st_ino in namespaces and b"vtep" in command:
                os.kill(int(process.name), signal.SIGKILL)


def test_the_command_returns_once_the_segment_forwards(pair: Pair, tmp_path: Path) -> None:
    a, b = pair
    log, pid_file = tmp_path / "log", tmp_path / "pid"

    def command(remote: str, own: str, *more: str) -> list[str]:
        words = [*segment(1, remote, own), "--no-fast-path", "--background", *more]
        return [sys.executable, "-m", "vtep", "--control", "none", *words]

    first = (*command("192.0.2.2", "10.0.0.1/24"), "--pid-file", str(pid_file), "--log", str(log))
    # Host.run reads what the command prints to its end: nothing keeps the pipes open.
    a.run(*first)
    b.run(
        *command("192.0.2.1", "10.0.0.2/24"), "--pid-file", str(tmp_path / "b"), "--log", str(log)
    )
    ping(a, "10.0.0.2")
    pid = int(pid_file.read_text())
    assert Path(f"/proc/{pid}/fd/2").readlink() == Path("/dev/null")

    # A second one is refused, and an error of the start is on standard error.
    for words, problem in (
        (first, f"process {pid} has it"),
        (command("192.0.2.1", "10.0.0.1/24"), "--remote 192.0.2.1 is an address of this host"),
    ):
        failed = a.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = failed.communicate(timeout=DEADLINE)
        assert (failed.returncode, out) == (1, "")
        assert problem in err
        assert err.count("pyvtep: error: ") == 1
    assert pid_file.read_text() == f"{pid}\n"

    # As logrotate does it.
    log.rename(tmp_path / "log.1")
    a.run("kill", "-HUP", str(pid))
    wait_until(log.exists, "the log to be reopened")
    a.run("kill", str(pid), (tmp_path / "b").read_text().strip())
    wait_until(lambda: not has_device(a), "the TAP to be removed")
    wait_until(lambda: not pid_file.exists(), "the PID file to be removed")
    assert "pyvtep: ended: " in log.read_text()
    assert "pyvtep: vni 1 on vx0 " in (tmp_path / "log.1").read_text()


@pytest.mark.parametrize("words", [(), ("--log", "syslog")])
def test_a_killed_process_leaves_a_pid_file_that_is_replaced(
    pair: Pair, words: tuple[str, ...]
) -> None:
    a, _ = pair
    path = Path("/run/pyvtep/vx0.pid")
    command = [sys.executable, "-m", "vtep", *segment(1, "192.0.2.2"), "--no-fast-path", *words]
    for number in (signal.SIGKILL, signal.SIGTERM):
        a.run(*command, "--background")
        a.run("kill", f"-{int(number)}", path.read_text().strip())
        wait_until(lambda: not has_device(a), "the TAP to be removed")
        if number == signal.SIGTERM:
            wait_until(lambda: not path.exists(), "the PID file to be removed")


def test_paths_are_relative_to_the_directory_of_the_command(pair: Pair, tmp_path: Path) -> None:
    """The process leaves it. The streams are closed, as by some supervisors."""
    a, _ = pair
    config = tmp_path / "vx0.toml"
    text = 'fast-path = false\n[[vni]]\nid = 1\ntap = "vx0"\nremote = "192.0.2.2"\n'
    config.write_text(text)
    paths = ("--control", "control", "--state", "state", "--log", "log", "--pid-file", "pid")
    words = (sys.executable, "-m", "vtep", "--config", "vx0.toml", *paths, "--background")
    with a.start(
        *("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as command:
        assert command.wait(2 * DEADLINE) == 0
    pid = (tmp_path / "pid").read_text().strip()
    for stream in range(3):
        assert Path(f"/proc/{pid}/fd/{stream}").readlink() == Path("/dev/null")
    config.write_text(f"ageing = 77\n{text}")
    a.run("kill", "-HUP", pid)
    done = f"read {config} again: 1 changed"
    wait_until(lambda: done in (tmp_path / "log").read_text(), done)
    with Client(tmp_path / "control") as client:
        client.fdb.add("02:00:00:00:00:01", "192.0.2.2")
    a.run("kill", pid)
    wait_until(lambda: not has_device(a), "the TAP to be removed")
    wait_until(lambda: not (tmp_path / "pid").exists(), "the PID file to be removed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "state", "vx0.toml"]


@pytest.mark.parametrize("is_default", [False, True])
def test_an_upgrade_stays_in_the_background(
    pair: Pair, tmp_path: Path, *, is_default: bool
) -> None:
    """The paths are relative to a directory that the process has left."""
    a, _ = pair
    control, options = str(tmp_path / "control"), ("--log", "log", "--pid-file", "pid")
    path = Path("/run/pyvtep/vx0.pid") if is_default else tmp_path / "pid"
    words = (*segment(1, "192.0.2.2"), "--no-fast-path", "--control", control)

    def run(*command: str, code: int = 0) -> str:
        with a.start(
            *(sys.executable, "-m", "vtep", *command),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as child:
            said, _ = child.communicate(timeout=2 * DEADLINE)
        assert child.returncode == code, said
        return str(said, "utf-8")

    run(*words, "--background", *(() if is_default else options))
    pids = [path.read_text()]
    for _ in range(2):
        assert f"upgraded: pid {pids[-1].strip()} -> " in run("upgrade", "--socket", control)
        # There is such a file all the time.
        wait_until(lambda: path.read_text() not in pids, "the PID file of the successor")
        pids.append(path.read_text())
    process = Path(f"/proc/{pids[-1].strip()}")
    command = (process / "cmdline").read_bytes().decode().split("\0")
    assert "--background" not in command
    log_to = "syslog" if is_default else str(tmp_path / "log")
    assert command[command.index("--log") + 1] == log_to
    assert (process / "fd/2").readlink() == Path("/dev/null")
    # The successor has locked its file.
    again = (*segment(1, "192.0.2.2"), "--pid-file", str(path), "--control", "none")
    assert f"process {pids[-1].strip()} has it" in run(*again, code=1)
    a.run("kill", pids[-1].strip())
    wait_until(lambda: not has_device(a), "the TAP to be removed")
    wait_until(lambda: not path.exists(), "the PID file to be removed")
    if not is_default:
        log = (tmp_path / "log").read_text()
        assert log.count("upgraded: pid ") == log.count("taking over from process ") == 2
        assert log.count("pyvtep: ended: ") == 3
