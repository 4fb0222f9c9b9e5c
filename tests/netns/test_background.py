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


@pytest.fixture(autouse=True)
def _end_all(pair: Pair) -> Iterator[None]:
    """Kill what a test that fails has left in the background: it has no parent to end it."""
    yield
    namespaces = {host.namespace.stat().st_ino for host in pair}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if (process / "ns/net").stat().st_ino in namespaces and b"--background" in command:
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
        (first, f"process {pid} runs already"),
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
