"""The notification protocol of service managers: sd_notify(3), without a library.

Each message is one datagram of `KEY=value` lines to the socket that $NOTIFY_SOCKET names, and file
descriptors travel beside it (SCM_RIGHTS). Without the variable, nothing is sent.
"""

import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from vtep.errors import VtepError

_SEND_TIMEOUT_S = 5.0
"""Timeout of a message that must arrive: a busy manager reads its socket late."""

_FDNAME_MAX = 255
"""Most octets of an FDNAME (systemd: FDNAME_MAX)."""


class ServiceManager:
    """The service manager that has started this process, or none: then all methods do nothing.

    It owns the socket to send from. A manager that is gone or does not read causes no error: the
    tunnel must not depend on it.

    `takeover` says that this process replaces another one, so that $WATCHDOG_PID names that one.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, *, takeover: bool = False) -> None:
        self._socket: socket.socket | None = None
        self._status = ""
        self.watchdog_s: Final = _watchdog_interval(environ, takeover=takeover)
        """Time in seconds within which `feed_watchdog` is due; None without a watchdog."""
        where = environ.get("NOTIFY_SOCKET", "")
        if where[:1] not in ("/", "@"):
            # Others are for virtual machines (vsock), where the manager is another host's.
            return
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            # Connected now: after the privileges are dropped, the path may be out of reach.
            self._socket.connect(f"\0{where[1:]}" if where[0] == "@" else where)
        except OSError:
            self.close()

    @property
    def is_present(self) -> bool:
        """True if there is a manager to notify."""
        return self._socket is not None

    def close(self) -> None:
        """Send nothing from now on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # --- messages -----------------------------------------------------------------------------

    def ready(self) -> None:
        """Report that the start, or a reload, is complete."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """Report the state in one line, which `systemctl status` shows; repeats are not sent."""
        if text != self._status and self._send(f"STATUS={_one_line(text)}", wait=False):
            self._status = text

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` ends it."""
        # MONOTONIC_USEC is what Type=notify-reload (systemd 253) matches its request with.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the process is about to end."""
        self._send("STOPPING=1")

    def feed_watchdog(self) -> None:
        """Report that the process is alive, which restarts the time of the watchdog."""
        # Never waits: a full socket means that the manager has not read the last ones either.
        self._send("WATCHDOG=1", wait=False)

    def hand_over(self, pid: int) -> None:
        """Name the process that replaces this one, and wait until the manager knows.

        If this process ended earlier, the manager would take the service for ended.
        """
        self._send(f"MAINPID={pid}")
        self.barrier()

    def barrier(self, timeout: float = _SEND_TIMEOUT_S) -> bool:
        """Wait until the manager has handled all messages so far. Returns: False on a timeout."""
        if self._socket is None:
            return True
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            # The manager closes its copy of the descriptor once it is at this message.
            sent = self._send("BARRIER=1", descriptors=(writer,))
        finally:
            os.close(writer)
        try:
            return sent and bool(select.select([reader], [], [], timeout)[0])
        finally:
            os.close(reader)

    # --- the file descriptor store ------------------------------------------------------------

    def store(self, name: str, descriptor: int) -> None:
        """Give the manager a copy of a descriptor, which it passes to the next process by name."""
        # FDPOLL=0, since a TAP whose device is down or gone shows EPOLLERR, for which the manager
        # would drop it (systemd 246 and later know it, others ignore it).
        self._send("FDSTORE=1", f"FDNAME={fd_name(name)}", "FDPOLL=0", descriptors=(descriptor,))

    def remove(self, name: str) -> None:
        """Make the manager close all descriptors of a name."""
        self._send("FDSTOREREMOVE=1", f"FDNAME={fd_name(name)}")

    def _send(self, *fields: str, descriptors: Sequence[int] = (), wait: bool = True) -> bool:
        """Send one message. Returns: False if it could not be sent."""
        if self._socket is None:
            return False
        message = "\n".join(fields).encode(errors="replace")
        self._socket.settimeout(_SEND_TIMEOUT_S if wait else 0)
        with suppress(OSError):
            if descriptors:
                socket.send_fds(self._socket, [message], descriptors)
            else:
                self._socket.send(message)
            return True
        return False


def fd_name(name: str) -> str:
    """Return a name that the manager accepts for a descriptor: ASCII, without a colon."""
    # The names of all descriptors come back as one variable, $LISTEN_FDNAMES, joined by colons.
    return "".join(
        letter if letter.isascii() and letter.isprintable() and letter != ":" else "_"
        for letter in name
    )[:_FDNAME_MAX]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _watchdog_interval(environ: Mapping[str, str], *, takeover: bool) -> float | None:
    """Return the interval of the watchdog in seconds; None if it is not for this process."""
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", "0"))
        # Set for the main process only; its children inherit the variable.
        pid = int(environ.get("WATCHDOG_PID", "0"))
    except ValueError as error:
        raise VtepError(f"the watchdog of the service manager is unusable: {error}") from error
    if microseconds <= 0 or (pid not in (0, os.getpid()) and not takeover):
        return None
    return microseconds / 1e6
