"""The process of the speaker, as the daemon starts it, signals it, and is notified of its end."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from vtep.evpn.speaker_config import TOKEN

BY_REQUEST: Final = "by request"
"""The end of a speaker that was asked to end."""

_PRIVATE = (
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "PYVTEP_UPGRADE"),
)
"""Variables that address this process, and not its children."""


class SpeakerProcess:
    """A process that speaks BGP: a child of this one, or of the process that this one replaces."""

    def __init__(
        self,
        pid: int,
        token: str,
        child: "subprocess.Popen[bytes] | None",
        pidfd: int | None = None,
    ) -> None:
        """Watch a process, with the pidfd of the process that has watched it, if there is one.

        Side effects: owns the pidfd, unless this fails. Raises: OSError.
        """
        self.pid = pid
        self.token = token
        self._child = child
        self.is_proven = child is not None or pidfd is not None
        """False for a number that may be that of another process, until the token shows that it is
        not."""
        # Not a signal of SIGCHLD: the speaker of a former process is no child of this one.
        self.pidfd = os.pidfd_open(pid) if pidfd is None else pidfd
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.pidfd, self._on_ended)

    @classmethod
    def start(cls, control: Path, options: Sequence[str]) -> Self:
        """Start a speaker for the control socket `control`. Raises: OSError."""
        token = secrets.token_hex(16)
        command = [sys.executable, "-P", "-m", "vtep", "evpn", "speaker"]
        environment = {name: text for name, text in os.environ.items() if name not in _PRIVATE}
        child = subprocess.Popen(  # noqa: S603  our own command line
            [*command, "--socket", str(control), *options],
            env={**environment, TOKEN: token},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Its log goes to the same standard error. All other descriptors are closed: it must not
            # keep TAPs and sockets open.
            close_fds=True,
            # Ctrl-C ends the daemon, which ends the speaker.
            process_group=0,
        )
        try:
            return cls(child.pid, token, child)
        except OSError:
            child.kill()
            child.wait()
            raise

    def _on_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self.pidfd)
        self.ended.set()

    def has_token(self, token: str) -> bool:
        """Return True if this is the token of the process."""
        # Encoded: compare_digest refuses text that is not ASCII.
        given = token.encode(errors="backslashreplace")
        return secrets.compare_digest(given, self.token.encode())

    def send(self, number: int) -> bool:
        """Send a signal, if the process still exists.

        Returns: False if it is not known to be the speaker; it is forgotten then.
        """
        if not self.is_proven:
            self._on_ended()
            return False
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self.pidfd, number)
        return True

    def reap(self) -> str:
        """Return how the process has ended. To be called once, after its end."""
        self._close()
        if self._child is None:
            return "it has ended"
        code = self._child.wait()
        if code == 0:
            return BY_REQUEST
        return f"ended by {_signal_name(-code)}" if code < 0 else f"exit code {code}"

    def _close(self) -> None:
        """Close the descriptor, whose number may be that of another file from now on."""
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def leave(self) -> None:
        """Forget the process, which goes on."""
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self.pidfd)
        self._close()


def _signal_name(number: int) -> str:
    """Return the name of a signal. Those between SIGRTMIN and SIGRTMAX have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
