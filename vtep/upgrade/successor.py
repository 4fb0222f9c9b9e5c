"""The process that `pyvtep upgrade` starts: its command line, its reports, and its end."""

import asyncio
import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from vtep.errors import VtepError
from vtep.upgrade.starter import VARIABLE, Reports

_SILENCE_S = 60.0
"""Seconds without a report after which the new process is given up. It reports once a second while
it compiles its fast path, for minutes on a slow host. Before it can report anything, it loads
Python, for 15 s on a host with twelve busy processes for each processor."""

_PIPE_READ = 4096

_FILES: Final = frozenset(
    ("--config", "--control", "--evpn-password-file", "--log", "--pid-file", "--state")
)
"""Options with a path."""

_NO_FILES: Final = frozenset(("auto", "none", "stderr", "syslog"))
"""Words that some of these options take instead."""


class Successor:
    """A process that was started to take over from this one, and the pipe of its reports.

    The child of this process waits there, and the new process is a child of process 1: see
    `Background.detach`. Both are in a process group of their own.

    `outcome` is the future of the upgrade: its result is the line that describes it. It fails if
    the process ends, or reports nothing for too long, while `is_taking_over` is False.

    Raises: VtepError if it cannot be started.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.token: Final = secrets.token_hex(8)
        self.is_taking_over = False
        """True once it has connected: the handover has deadlines of its own."""
        self._reports = Reports()
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[str] = loop.create_future()
        # Not blocking at either end: a pipe that this process does not read must not stop it.
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            # Its standard error is that of this process, so it cannot be read here.
            self._child = subprocess.Popen(  # noqa: S603  our own command line
                command,
                env={**os.environ, VARIABLE: f"{writer} {self.token}"},
                pass_fds=(writer,),
                process_group=0,
                # It may have been removed, or be forbidden to the user of --user.
                cwd=folder if os.access(folder, os.X_OK) else None,
            )
        except OSError as error:
            os.close(self._reader)
            # Also if the interpreter that it names is missing.
            advice = "; install pyvtep there again" if error.errno == errno.ENOENT else ""
            raise VtepError(f"cannot start {command[0]}: {error.strerror}{advice}") from error
        finally:
            os.close(writer)
        try:
            self._pidfd = os.pidfd_open(self._child.pid)
        except OSError as error:
            self._kill_all()
            os.close(self._reader)
            raise VtepError(f"cannot watch {command[0]}: {error.strerror}") from error
        loop.add_reader(self._pidfd, self._on_ended)
        loop.add_reader(self._reader, self._on_report)
        self._silence = loop.call_later(_SILENCE_S, self._on_silent)

    @property
    def doing(self) -> str:
        """The present step of the process, an infinitive, as it was reported last."""
        return self._reports.doing or "start"

    def close(self, *, kill: bool) -> None:
        """Forget the process; with `kill`, end it. Its waiting half, the child, ends always."""
        loop = asyncio.get_running_loop()
        self._silence.cancel()
        for descriptor in (self._pidfd, self._reader):
            loop.remove_reader(descriptor)
            os.close(descriptor)
        if kill:
            self._kill_all()
        else:
            self._child.kill()
            self._child.wait()

    def _kill_all(self) -> None:
        # Before the child is reaped: until then, no other group can have the number.
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def _on_report(self) -> None:
        try:
            octets = os.read(self._reader, _PIPE_READ)
        except BlockingIOError:
            return
        loop = asyncio.get_running_loop()
        if not octets:  # It has closed the pipe, or has ended.
            loop.remove_reader(self._reader)
            return
        self._reports.feed(octets)
        self._silence.cancel()
        self._silence = loop.call_later(_SILENCE_S, self._on_silent)

    def _on_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if self.is_taking_over:  # What it has left is found out by the handover.
            return
        self._on_report()
        reason = self._reports.failure or (
            "it gave no reason; see the log, and dmesg if the kernel may have killed it for want "
            "of memory"
        )
        # Not reaped yet: see _kill_all().
        ended = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)
        code = "unknown" if ended is None else ended.si_status
        how = "signal" if ended is not None and ended.si_code != os.CLD_EXITED else "exit code"
        self._fail(f"the new process has ended with {how} {code} before it took over: {reason}")

    def _on_silent(self) -> None:
        if not self.is_taking_over:
            self._fail(
                f"the new process was to {self.doing}, and has reported nothing for "
                f"{_SILENCE_S:g} s: killed; was it stopped, or is this host overloaded?"
            )

    def _fail(self, problem: str) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(VtepError(problem))


def own_command() -> list[str]:
    """Return the command line of this process, to start the same command again.

    The program is found again by its path, so it may be a newer version. Paths are absolute, since
    the directory may be removed, or forbidden to the user of --user. To be called before the
    working directory changes.
    """
    arguments: list[str] = []
    skipped = False
    for argument in sys.argv[1:]:
        if skipped and not argument.startswith("-"):
            skipped = False
            continue
        skipped = argument == "--takeover"
        # Of an earlier upgrade; and a child of this process is in the background already.
        if skipped or argument.startswith("--takeover=") or argument == "--background":
            continue
        arguments.append(_with_absolute_path(argument, arguments[-1] if arguments else ""))
    program = sys.argv[0]
    if program.endswith("__main__.py"):
        return [sys.executable, "-m", "vtep", *arguments]
    return [str(Path(shutil.which(program) or program).absolute()), *arguments]


def _with_absolute_path(argument: str, former: str) -> str:
    """Return an argument, made absolute if it is the path of the option before it, or in it."""
    option, separator, value = former, "", argument
    if argument.startswith("--"):
        option, separator, value = argument.partition("=")
    if option not in _FILES or not value or value in _NO_FILES:
        return argument
    with suppress(OSError):  # If the directory was removed, nothing can be there.
        value = str(Path(value).absolute())
    return f"{option}={value}" if separator else value


def working_directory() -> Path:
    """Return the working directory, or the root if it was removed."""
    try:
        return Path.cwd()
    except OSError:
        return Path("/")
