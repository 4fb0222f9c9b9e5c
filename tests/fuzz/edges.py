"""I/O in memory that costs hardly anything for each input, unlike the sockets of `vtep.testing`."""

import errno
from collections import deque
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from vtep.io.interfaces import ReadFrame, Received, ReceivedRun, WriteFrame
from vtep.io.slots import Slots


def _would_block() -> BlockingIOError:
    # Not one instance for all: each raise would add to its traceback, which keeps the frames of
    # all executions and their buffers.
    return BlockingIOError(errno.EAGAIN, "nothing waits")


class Feed:
    """A receiver whose datagrams are given in advance."""

    sock = None
    address = ("192.0.2.1", 4789)

    def __init__(self, *, gro: bool) -> None:
        self.gro_enabled = gro
        self._waiting: deque[tuple[bytes, int, str, int]] = deque()
        self._octets = memoryview(bytearray(1 << 16))

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def put(self, data: bytes, stride: int, host: str, ecn: int) -> None:
        self._waiting.append((data, stride, host, ecn))

    def fileno(self) -> int:
        return 999

    def waited(self) -> float:
        return 0.0

    def receive(self, buffer: memoryview) -> Received:
        if not self._waiting:
            raise _would_block()
        data, stride, host, ecn = self._waiting.popleft()
        buffer[: len(data)] = data
        return len(data), stride, host, 50_000, ecn

    def receive_many(self, slots: Slots) -> list[ReceivedRun]:
        slots.empty()
        octets = self._octets
        received: list[Received] = []
        if not self._waiting:
            raise _would_block()
        while len(received) < slots.count and self._waiting:
            received.append(self.receive(octets))
            slots.put(len(received) - 1, octets[: received[-1][0]])
        slots.fit([each[0] for each in received])
        return [(each, len([*same])) for each, same in groupby(received)]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"nothing is to use {name}")


class Tap:
    """A TAP whose frames are given in advance, and which keeps what is written."""

    fd = 998
    index = 7
    name = "vx0"
    mac = bytes(6)
    tso = uso = True
    removed_on_close = True

    def __init__(self) -> None:
        self._waiting: deque[bytes] = deque()
        self.written: list[tuple[bytes, bytes]] = []
        self.read: ReadFrame = self._read
        self.write: WriteFrame = self._write

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def put(self, header: bytes, frame: bytes) -> None:
        self._waiting.append(header + frame)

    def _read(self, buffers: Iterable[Any]) -> int:
        if not self._waiting:
            raise _would_block()
        data = self._waiting.popleft()
        at = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            part = data[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
        return at

    def _write(self, parts: Iterable[Any]) -> int:
        header, frame = (bytes(part) for part in parts)
        self.written.append((header, frame))
        return len(header) + len(frame)

    def request_offloads(self, *, tso: bool, uso: bool) -> None:
        pass

    def set_persistent(self, *, on: bool) -> None:
        pass

    def close(self) -> None:
        pass


class Reader:
    """Takes an input apart: an input that ends too early goes on with zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at >= len(self._data)

    def octets(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        self._at += count
        return part.ljust(count, b"\0")

    def integer(self, count: int = 1) -> int:
        return int.from_bytes(self.octets(count), "big")

    def rest(self) -> bytes:
        part = self._data[self._at :]
        self._at = len(self._data)
        return part

    def some(self, most: int) -> bytes:
        """Return octets whose length comes before them."""
        count = min(self.integer(2) % (most + 1), max(0, len(self._data) - self._at))
        return self.octets(count)
