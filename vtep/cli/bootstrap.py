"""What has to be done before anything else is loaded, and so needs hardly anything."""

import os
import signal
import sys

_WAIT = frozenset((signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM))
"""Signals that ask a VTEP for something, and by default would end the process."""


def let_signals_wait() -> None:
    """Keep signals that ask for something until a VTEP runs that can do it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAIT)


def let_signals_end() -> None:
    """Let signals do what they do by default, or what they were given handlers for."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAIT)


def in_journal() -> bool:
    """Return whether standard error is the systemd journal, which adds the time to each line."""
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        seen = os.fstat(2)
        return (int(device), int(inode)) == (seen.st_dev, seen.st_ino)
    except (OSError, ValueError):
        return False


def priority(number: int) -> str:
    """Return what a line begins with for the journal to know its priority (sd-daemon(3))."""
    return f"<{number}>" if sys.stderr is not None and in_journal() else ""
