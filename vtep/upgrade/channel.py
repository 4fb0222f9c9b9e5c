"""The channel of an upgrade: messages and descriptors between two processes, over a Unix socket.

It is a socket of type SOCK_SEQPACKET: the kernel keeps the boundaries of messages, and with them
which descriptors belong to which. The process at the other end is referred to by a pidfd: its
number may be that of another process once it has ended.
"""

import array
import asyncio
import logging
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from attrs import frozen

from vtep import descriptors
from vtep.errors import VtepError
from vtep.upgrade import format as fmt
from vtep.upgrade.format import FormatError, Message

log = logging.getLogger("vtep")

_T = TypeVar("_T")

_END_S = 2.0
"""Seconds for a process to end after it was killed, or after it has closed its end."""

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""

_INT_LEN = array.array("i").itemsize
_CONTROL_SPACE = socket.CMSG_SPACE(fmt.DESCRIPTORS_MAX * _INT_LEN)


class ClosedError(VtepError):
    """The peer has closed the channel, or has ended."""


class PeerHungError(VtepError):
    """The peer did not do the next step within so many seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the other process did nothing for {seconds:g} s")
        self.seconds = seconds


@frozen
class ChannelPeer:
    """The process at the other end of a channel; `pid` is 0 in another PID namespace."""

    pid: int
    uid: int

    def check(self) -> None:
        """Raise VtepError unless the process runs as root or as this user."""
        if self.uid not in (0, os.geteuid()):
            raise VtepError(
                f"process {self.pid} of user {self.uid} may not take over: run it as root, or as "
                "the user of the running pyvtep"
            )


class Channel:
    """One end of a channel, in the running event loop. It owns the socket."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        self.peer = ChannelPeer(pid, uid)
        self._pidfd: int | None = None
        # It may be in another PID namespace, or have ended already.
        with suppress(OSError):
            self._pidfd = os.pidfd_open(pid) if pid else None

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Connect to the process that listens at a path. Raises: VtepError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise VtepError(f"cannot connect to {path}: {error.strerror}") from error
        return cls(sock)

    async def send(
        self, kind: str, /, fds: Sequence[int] = (), *, seconds: float = 10.0, **fields: object
    ) -> None:
        """Send a message, with at most `DESCRIPTORS_MAX` descriptors.

        Raises: ClosedError; PeerHungError if the peer does not read for so many `seconds`.
        """
        octets = fmt.encode(kind, fields, descriptors=len(fds))
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []

        def attempt() -> None:
            self._sock.sendmsg([octets], control, socket.MSG_NOSIGNAL)

        loop = asyncio.get_running_loop()
        await self._attempt(attempt, loop.add_writer, loop.remove_writer, seconds)

    async def receive(self, *kinds: str, seconds: float) -> tuple[Message, list[int]]:
        """Receive a message of one of these kinds, and its descriptors, which the caller owns.

        Raises: ClosedError; PeerHungError after so many `seconds`; FormatError; VtepError with the
        peer's reason if it has failed.
        """
        fds: list[int] = []

        def attempt() -> bytes:
            octets, control, flags, _ = self._sock.recvmsg(
                fmt.MESSAGE_MAX, _CONTROL_SPACE, socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, data in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i", data[: len(data) - len(data) % _INT_LEN])
                    fds.extend(numbers)
            if flags & socket.MSG_CTRUNC:
                # The kernel has no more descriptors for this process: some of them are lost.
                raise FormatError("descriptors were lost on the way: raise the limit (ulimit -n)")
            return octets

        loop = asyncio.get_running_loop()
        try:
            octets = await self._attempt(attempt, loop.add_reader, loop.remove_reader, seconds)
            if not octets:
                raise ClosedError("the other process has ended")
            message = fmt.decode(octets)
            if message.descriptors != len(fds):
                raise FormatError("the number of descriptors is not the announced one")
            if message.kind == fmt.FAILED:
                raise VtepError(message.text("reason", "it gave no reason"))  # noqa: TRY301
            if message.kind not in kinds:
                raise FormatError(f"received {message.kind} in place of {' or '.join(kinds)}")
        except VtepError:
            close_all(fds)
            raise
        return message, fds

    async def _attempt(
        self,
        attempt: Callable[[], _T],
        add: Callable[..., object],
        remove: Callable[[int], object],
        seconds: float,
    ) -> _T:
        """Call a function until it does not block. Raises: ClosedError, PeerHungError."""
        fd = self._sock.fileno()
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        return attempt()
                    except BlockingIOError:
                        ready = asyncio.Event()
                        add(fd, ready.set)
                        try:
                            await ready.wait()
                        finally:
                            remove(fd)
        except TimeoutError:
            raise PeerHungError(seconds) from None
        except OSError as error:
            if descriptors.is_shortage(error):
                raise VtepError(f"cannot go on: {descriptors.reason(error)}") from error
            raise ClosedError("the other process has ended") from error

    async def peer_has_ended(self) -> bool:
        """Wait a moment for the end of the peer. Returns: False if that is not known to be."""
        if self._pidfd is None:
            return False
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(_END_S):
                return await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)

    async def kill_peer(self) -> None:
        """Kill the peer, and wait for its end, as far as this process may."""
        try:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return
        except OSError as error:
            log.warning("cannot kill process %d: %s", self.peer.pid, error.strerror)
        # One that may not be killed, or is in another PID namespace, ends once it notices this.
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if not await self.peer_has_ended():
            log.warning("process %d may not have ended", self.peer.pid)

    def close(self) -> None:
        """Close the channel."""
        with suppress(OSError):
            self._sock.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)
