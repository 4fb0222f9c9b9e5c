"""`--background`: when the command returns and with which code; and the PID file."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.hosts import wait_until
from vtep.cli.log_sinks import FileSink
from vtep.config import Settings
from vtep.control import socket_files
from vtep.daemon.state_writer import StateWriter
from vtep.errors import VtepError
from vtep.service.background import PidFile

_HEAD = (
    "import os, sys, time\n"
    "from vtep.errors import ConfigError, VtepError\n"
    "from vtep.service.background import Background\n"
    "folder = sys.argv[1]\n"
    "def note(name):\n"
    "    with open(f'{folder}/new', 'w') as file: file.write(str(os.getpid()))\n"
    "    os.rename(f'{folder}/new', f'{folder}/{name}')\n"
    "print('once')\n"
    "with Background.enter() as background:\n"
)


def run(folder: Path, body: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that goes into the background and has `body` there."""
    code = _HEAD + "".join(f"    {line}\n" for line in body.splitlines())
    command = [sys.executable, "-c", code, str(folder)]
    # The pipes are read to their end, so a process that keeps them open would fail the test.
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL
    )


def test_the_command_returns_once_it_is_ready_and_gives_up_the_terminal(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "print('starts', file=sys.stderr, flush=True)\n"
        "background.ready()\n"
        "print('lost', file=sys.stderr)\n"
        "note('ready')\n"
        "time.sleep(60)",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "starts\n")
    ready = tmp_path / "ready"
    wait_until(ready.exists, "the process in the background")
    pid = int(ready.read_text())
    # Neither the leader of its session nor a child of this process, nor in this directory.
    assert os.getsid(pid) != pid
    assert os.getsid(pid) != os.getsid(0)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise ConfigError('no')", 2),
        ("raise VtepError('no')", 1),
        ("sys.exit(3)", 1),
        ("pass", 1),
        ("os._exit(0)", 1),
        ("os.kill(os.getpid(), 9)", 1),
    ],
)
def test_the_command_fails_as_the_start_does(tmp_path: Path, body: str, code: int) -> None:
    done = run(tmp_path, body)
    assert (done.returncode, done.stdout) == (code, "once\n")
    # The error of the process is complete when the command returns.
    assert ("Error: no" in done.stderr) is body.endswith("('no')")


def test_a_start_whose_command_was_interrupted_is_given_up(tmp_path: Path) -> None:
    code = (
        _HEAD + "    note('started')\n"
        "    while not os.path.exists(f'{folder}/go'): time.sleep(0.01)\n"
        "    try:\n"
        "        background.ready()\n"
        "    except VtepError:\n"
        "        note('given-up')\n"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL
    )
    wait_until((tmp_path / "started").exists, "the process in the background")
    command.send_signal(signal.SIGINT)
    assert command.wait(60) == 130
    (tmp_path / "go").touch()
    wait_until((tmp_path / "given-up").exists, "the start to be given up")


def test_a_pid_file_names_the_process_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.pid"
    path.write_text("1\n")  # Left by a process that was killed: nothing has locked it.
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        with pytest.raises(VtepError, match=f"process {os.getpid()} has it; name another file"):
            PidFile(path)
        assert path.read_text() == f"{os.getpid()}\n"
    assert not path.exists()


def test_a_process_that_takes_over_keeps_its_pid_file(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.pid"
    former = PidFile(path)
    successor = PidFile(path, takeover=True)
    successor.publish()
    former.remove()
    assert path.read_text() == f"{os.getpid()}\n"
    with pytest.raises(VtepError, match="has it"):
        PidFile(path)
    successor.remove()
    assert list(tmp_path.iterdir()) == []


def test_there_is_a_pid_file_all_the_time_while_another_process_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.pid"
    former = PidFile(path)
    successor = PidFile(path, takeover=True)
    former.leave()
    former.remove()
    assert path.exists()
    successor.publish()
    successor.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_pid_file_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    for path in (tmp_path / "missing" / "x.pid", tmp_path, link, Path("/")):
        with pytest.raises(VtepError, match="cannot write it: "):
            PidFile(path)
    assert not (tmp_path / "target").exists()


def test_a_directory_that_was_removed_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "removed"
    place.mkdir()
    monkeypatch.chdir(place)
    place.rmdir()
    here, problem = Path("x"), r"^--[a-z-]+ x: .*No such file or directory; give another"
    for make in (PidFile, FileSink):
        with pytest.raises(VtepError, match=problem):
            make(here)
    with pytest.raises(VtepError, match=problem):
        socket_files.listen(here)
    settings = Settings(segments=[], state="x")
    with pytest.raises(VtepError, match=problem), StateWriter.open(settings):
        pass


def test_a_file_of_another_kind_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "vx0.toml"
    for text in ("[[vni]]\n", "1 2\n", "7" * 100):
        path.write_text(text)
        with pytest.raises(VtepError, match="it has other contents than a process ID; give an"):
            PidFile(path)
        assert path.read_text() == text
    with pytest.raises(VtepError, match="/dev/null: cannot write it: not a regular file"):
        PidFile(Path("/dev/null"))


def test_a_full_disk_leaves_no_empty_pid_file(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.pid"
    new = PidFile(path, takeover=True)
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # Python ignores SIGXFSZ.
    try:
        with pytest.raises(VtepError, match=f"^--pid-file {path}: cannot write it: File too large"):
            PidFile(path)
        with pytest.raises(OSError, match="File too large"):
            new.publish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_takeover_leaves_the_pid_file_of_the_old_process(tmp_path: Path) -> None:
    """Only a new process that forwards puts its own file in that place."""
    path = tmp_path / "pyvtep.pid"
    with PidFile(path):
        old = path.stat().st_ino
        PidFile(path, takeover=True).remove()
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
        assert path.stat().st_ino == old
        new = PidFile(path, takeover=True)
        new.publish()
        assert path.stat().st_ino != old
    assert path.exists()
    new.remove()
    assert not path.exists()
