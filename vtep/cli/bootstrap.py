"""Steps that come before all other modules are loaded; this one imports hardly anything."""

import gc
import os
import signal
import sys

_BLOCKED = frozenset((signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM))
"""Signals that request something of a VTEP, and end a process that has no handler for them."""


def disable_collector() -> None:
    """Disable the cyclic garbage collector, until a VTEP or a client command takes care of it.

    Modules are no garbage, but importing them makes the collector visit all of them again and
    again, for a tenth of the time to start.
    """
    gc.disable()


def block_signals() -> None:
    """Block signals that request something, until a VTEP runs that can handle them.

    They stay pending: a SIGHUP that comes while modules are loaded is handled once there is a VTEP.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)


def unblock_signals() -> None:
    """Unblock these signals, for their handlers or their default actions."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def keep_single_threaded() -> None:
    """Keep numpy from starting threads of its own when it is imported.

    The BLAS library in its wheels starts one for each processor. pyvtep computes nothing by BLAS,
    and a thread keeps the capabilities that it was started with (see `host.privileges`).
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise the next device or socket would get its descriptor, and log lines with it.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            return
        os.set_inheritable(descriptor, True)


def stderr_is_journal() -> bool:
    """Return whether standard error is the systemd journal, which adds the time to each line.

    The variable alone is not proof: it is inherited by processes whose standard error is redirected
    (see $JOURNAL_STREAM in systemd.exec(5)).
    """
    try:
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        found = os.fstat(2)
        return (int(device), int(inode)) == (found.st_dev, found.st_ino)
    except (OSError, ValueError):
        return False


def journal_prefix(priority: int) -> str:
    """Return the prefix that tells the journal the priority of a line (sd-daemon(3)), if needed."""
    return f"<{priority}>" if sys.stderr is not None and stderr_is_journal() else ""
