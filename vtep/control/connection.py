"""One connection to the control server: who the peer is, its input by lines, and its output."""

import asyncio
import errno
import os
import socket
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from vtep.control import jsonrpc
from vtep.control.access import Access, Peer
from vtep.control.jsonrpc import Code, RpcError

_LINGER_S = 2.0
"""Time for which input is still read after a client was refused. A client that is disconnected in
the middle of a request gets an error when it sends the rest, and does not read the reason."""

_DISCARDED_MAX = 1 << 20
"""Octets of input that are discarded from such a client."""

STREAM_OCTETS: Final = 1 << 20
"""Octets of a stream that are sent in one piece, and fit into the buffer of the kernel."""

_SO_SNDBUFFORCE = 32
"""As in asm-generic/socket.h; Python 3.11 does not know it."""

_OUTPUT_MAX = 65536
"""Octets of an answer that wait for a client before the next piece is made."""

_CREDENTIALS = struct.Struct("3I")
"""struct ucred: process, user, group."""

_SO_PEERGROUPS: Final = 59
"""From the kernel's include/uapi/asm-generic/socket.h: supplementary groups, since Linux 4.13."""

_GROUPS_LEN: Final = 1024
"""The most that socket.getsockopt() returns: 256 groups."""


class OctetSource(Protocol):
    """A source of octets for a connection, which keeps a bounded number of them."""

    @property
    def ready(self) -> asyncio.Event:
        """Set while octets wait, and after the end."""

    @property
    def has_ended(self) -> bool:
        """True if no more octets will be added."""

    def take(self, most: int) -> bytes:
        """Return up to about `most` octets; b"" if none wait."""

    def end(self, why: str) -> None:
        """Add no more octets, for a reason that the client is told."""

    def finish(self) -> bytes:
        """Return the last octets, after all others were taken."""

    def close(self) -> None:
        """End, also if not all octets were taken."""


def peer_of(connection: socket.socket) -> Peer:
    """Return the user and the groups that a client had when it connected.

    The kernel has noted them then (init_peercred() in net/unix/af_unix.c): what the process becomes
    later, or passes its descriptor to, does not matter.
    """
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(found)
    gids = {gid}
    with suppress(OSError):  # In more groups than Python can read at once: only the first counts.
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_LEN)
        gids.update(array("I", groups))
    return Peer(uid, gids)


class Connection:
    """A connection to a client: its input by lines, and its output in the order of the calls.

    The client may disconnect at any time; every method then raises OSError, or does nothing.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, access: Access
    ) -> None:
        self.access = access
        self.writing = asyncio.Lock()
        """Held for the whole of an answer, which is sent in pieces."""
        self.events: asyncio.Task[None] | None = None
        """The task that sends events, if the client has subscribed."""
        self.unwatch: Callable[[], None] = _nothing
        self.stream: OctetSource | None = None
        """The source of what is sent after the last answer, if the client asked for one."""
        self._reader = reader
        self._writer = writer
        self._quiet_since = self._unread_since = 0.0

    @classmethod
    async def of(cls, connection: socket.socket, access: Access) -> "Connection | None":
        """Return the client of a connection that was just accepted; None if it has closed it."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=jsonrpc.LINE_MAX)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:
            connection.close()
            return None
        client = cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop), access)
        try:
            with client._open():
                transport.set_write_buffer_limits(high=_OUTPUT_MAX)
        except OSError:
            return None
        return client

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Raise ConnectionResetError where uvloop raises RuntimeError on a closed transport.

        asyncio ignores, or counts, what is written to a transport that has closed. uvloop raises
        RuntimeError ("the handler is closed"), also when a StreamReader resumes reading.
        """
        try:
            yield
        except RuntimeError as error:
            if not self._writer.transport.is_closing():
                raise
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error

    async def next_line(self) -> bytes | None:
        """Return the next line, also the last one if it has no end; None after that.

        Raises: RpcError if it is too long; OSError if the connection has closed.
        """
        self._quiet_since = asyncio.get_running_loop().time()
        try:
            with self._open():
                return await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            return error.partial or None
        except asyncio.LimitOverrunError:
            longest = f"a line has at most {jsonrpc.LINE_MAX} octets"
            raise RpcError(Code.PARSE_ERROR, f"parse error: {longest}") from None
        finally:
            self._quiet_since = 0.0

    async def wait_for_end(self) -> None:
        """Discard input until the client sends no more, or has closed the connection."""
        with suppress(OSError), self._open():
            while await self._reader.read(jsonrpc.LINE_MAX):
                pass

    def begin_stream(self, source: OctetSource) -> None:
        """Send a stream after the last answer, with a buffer for more than one turn of forwarding.

        A turn may take ten milliseconds, and the client gets no more meanwhile than fits there.
        """
        self.stream = source
        sock = self._writer.get_extra_info("socket")
        for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
            # Beyond net.core.wmem_max, it takes CAP_NET_ADMIN.
            with suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, option, STREAM_OCTETS)
                return

    async def send(self, octets: bytes) -> None:
        """Send; wait while too many octets are unread. Raises: OSError if it has closed."""
        with self._open():
            self._writer.write(octets)
            self._unread_since = asyncio.get_running_loop().time()
            await self._writer.drain()
        self._unread_since = 0.0

    def idle_since(self) -> float:
        """Return since when the client reads nothing, or sends nothing; 0 if it is busy.

        A subscriber, and a client that gets a stream, need not send anything.
        """
        sends_nothing = self.events is None and self.stream is None
        return self._unread_since or (self._quiet_since if sends_nothing else 0.0)

    def disconnect_idle(self) -> None:
        """Disconnect the client, which is idle, to make room for another one."""
        if self._unread_since:
            self.abort()
            return
        error = RpcError(Code.REFUSED, "disconnected: idle, and there were too many clients")
        with suppress(OSError), self._open():
            self._writer.write(jsonrpc.failure(error, None) + b"\n")
            self._writer.close()

    async def refuse(self, why: str, *, linger: bool, code: int = Code.REFUSED) -> None:
        """Send the reason why the client is not served, and disconnect it.

        With `linger`, its input is read for a while, so that it gets to read the reason.
        """
        try:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await self.send(jsonrpc.failure(RpcError(code, why), None) + b"\n")
                    if linger:
                        with self._open():
                            self._writer.write_eof()
                            rest = _DISCARDED_MAX
                            while rest > 0 and (
                                octets := await self._reader.read(jsonrpc.LINE_MAX)
                            ):
                                rest -= len(octets)
                    await self.close()
        finally:
            self.abort()

    def unsubscribe(self) -> None:
        """Send no more events, and nothing more of a stream."""
        if self.stream is not None:
            self.stream.close()
        self.unwatch()
        self.unwatch = _nothing
        if self.events is not None:
            self.events.cancel()

    async def close(self) -> None:
        """Close once the client has read everything. Raises: OSError if it has closed."""
        with self._open():
            self._writer.close()
            await self._writer.wait_closed()

    def abort(self) -> None:
        """Close at once."""
        with suppress(OSError), self._open():
            self._writer.transport.abort()


def _nothing() -> None:
    pass
