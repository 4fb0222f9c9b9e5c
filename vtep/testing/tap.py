"""A TAP device in memory."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, Self

from vtep.io import socket_constants as const
from vtep.wire import ethernet, virtio

if TYPE_CHECKING:
    from vtep.io.interfaces import ReadFrame, TapDevice, WriteFrame

_FRAME_MAX = virtio.HEADER_LEN + 65536 + ethernet.HEADER_LEN + 2 * ethernet.TAG_LEN

_QUEUE_OCTETS = 1 << 24
"""Octets that may wait in each direction, with the kernel's overhead, if the user is privileged."""

_INDICES: Final = count(1000)


class MemoryTap:
    """A TAP device in memory: what the VTEP reads, the test sends, and the other way round.

    The VTEP has one end of a pair of sockets that keep frames apart, with `fd` as its descriptor,
    and the test has the other. So event loops can watch it, and `os.readv` and `os.writev` work on
    it as on a TAP::

        with MemoryTap("vx0") as tap:
            tap.send(frame)  # A guest sends: the VTEP finds `fd` readable.
            ...
            header, frame = tap.receive()  # The VTEP has written this frame.

    `tso` and `uso` say what superframes the device supports. Frames pass unchanged: a test that
    sends a superframe gives its virtio header, and decides whether the VTEP may get one at all.
    """

    def __init__(
        self,
        name: str = "vx0",
        *,
        mac: bytes = b"\2\0\0\0\0\1",
        tso: bool = True,
        uso: bool = True,
    ) -> None:
        self.name = name
        """The name of the device, which a test may change as an administrator can."""
        self.mac = mac
        """The MAC address, which a test may change."""
        self.index: Final = next(_INDICES)
        """An index that no other device in memory has, and most likely none of this host."""
        self.removed_on_close = True
        self.tso, self.uso = tso, uso
        self._supported = tso, uso
        self.persistent = False
        """True if the VTEP asked for the device to outlive it."""
        # SOCK_SEQPACKET keeps frames apart. Of SOCK_DGRAM, few fit (net.unix.max_dgram_qlen).
        self._vtep_end, self._test_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._vtep_end, self._test_end):
            end.setblocking(False)
            with suppress(PermissionError):
                end.setsockopt(socket.SOL_SOCKET, const.SO_SNDBUFFORCE, _QUEUE_OCTETS)
        self.fd: Final = self._vtep_end.fileno()
        self.read: ReadFrame = partial(os.readv, self.fd)
        """Reads the next frame that the test has sent. A test may replace it."""
        self.write: WriteFrame = partial(os.writev, self.fd)
        """Writes a frame that the test receives. A test may replace it."""

    # --- for the test -----------------------------------------------------------------------

    def send(self, frame: bytes | memoryview, header: bytes = virtio.PLAIN) -> None:
        """Send a frame, or a superframe, into the device as its host does.

        Raises: BlockingIOError if the queue is full.
        """
        self._test_end.sendmsg((header, frame))

    def receive(self) -> tuple[bytes, bytes]:
        """Return the virtio header and the frame of the next write of the VTEP.

        Raises: BlockingIOError if there is none.
        """
        data = self._test_end.recv(_FRAME_MAX)
        return data[: virtio.HEADER_LEN], data[virtio.HEADER_LEN :]

    def received(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what `receive` returns until there is no more."""
        with suppress(BlockingIOError):
            while True:
                yield self.receive()

    # --- for the VTEP: see `TapDevice` ------------------------------------------------------

    def request_offloads(self, *, tso: bool, uso: bool) -> None:
        """Request superframes of TCP and UDP; `tso` and `uso` say what was granted."""
        tso_supported, uso_supported = self._supported
        self.tso = tso and tso_supported
        self.uso = self.tso and uso and uso_supported

    def set_persistent(self, *, on: bool) -> None:
        """Make the device outlive this process, or not."""
        self.persistent = on

    def close(self) -> None:
        """Close both ends."""
        self._vtep_end.close()
        self._test_end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


if TYPE_CHECKING:

    def _is_tap_device(tap: MemoryTap) -> TapDevice:
        return tap
