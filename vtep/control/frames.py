"""The client of a capture: frames of a running VTEP, as an asynchronous iterator.

async with Client().capture(vni=1, filter="tcp port 80") as frames:
    async for frame in frames:
        print(frame.direction, frame.remote, frame.octets.hex())

A capture has a connection of its own. After an upgrade of the VTEP, it goes on with the new
process.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from ipaddress import ip_address
from os import PathLike, fspath
from typing import Any, Self, TypeAlias

from attrs import frozen

from vtep.control import jsonrpc
from vtep.control.client import DisconnectedError, refusal
from vtep.control.jsonrpc import Code
from vtep.control.schema import CAPTURE_HANDED_OVER
from vtep.errors import VtepError
from vtep.wire.pcapng import (
    RECEIVED,
    Decoder,
    InterfaceBlock,
    PacketBlock,
    PcapngBlock,
    PcapngError,
    SectionBlock,
    StatisticsBlock,
)

_PIECE = 1 << 16

_ANSWER_S = 30.0
"""Seconds for the answer to the request, which may have to resolve the name of a host."""

_TAKEOVER_S = 10.0
"""Seconds in which the next process answers after a takeover."""

_RETRY_S = 0.05

_INTERFACE = re.compile(r"(?:no vni|vni (\d+) dev (\S+)) (inner|outer): ")
"""The beginning of the description of an interface; see `CaptureSession`."""

_DROP = re.compile(r"drop ([a-z0-9_]+): ")

_IPV4_AT, _IPV6_AT = slice(26, 30), slice(22, 38)
"""The source address in an Ethernet frame, which the destination follows."""


_Piece: TypeAlias = tuple[bytes, list[PcapngBlock]]
"""Octets of pcapng as they have arrived, and the blocks that are complete by them."""


@frozen
class CapturedFrame:
    """A frame, or a datagram with its outer headers, at one observation point."""

    time_ns: int
    """Nanoseconds since 1970."""
    vni: int | None
    """None for a datagram that belongs to no VNI."""
    dev: str | None
    """The TAP of the VNI."""
    direction: str
    """tx from the TAP to the underlay, and rx from the underlay to the TAP."""
    point: str
    """inner for an Ethernet frame at the TAP, outer for a datagram at the underlay."""
    remote: str | None
    """The address of the remote VTEP; None if there is none, or several."""
    octets: bytes
    length: int
    """Octets of the frame; `octets` are fewer if the capture has a snaplen."""
    packet_id: int | None
    """The same for the frame and the datagrams that are made of it."""
    reason: str | None
    """The drop reason, as in the counters; None if it was not dropped."""
    comments: tuple[str, ...]
    """The drop reason in words, and what else there is to say."""
    lost: int
    """Frames at this point that the capture has lost since the one before."""

    @property
    def time(self) -> float:
        """Seconds since 1970."""
        return self.time_ns / 1e9


class FrameStream:
    """A capture. It begins with the first frame that is asked for, and ends with `aclose`.

    `params` are those of the method `capture`, without those that are None.
    """

    def __init__(self, path: str | PathLike[str], **params: Any) -> None:
        self.captured = 0
        """The number of frames so far."""
        self.lost = 0
        """Frames that the capture has lost, as far as is known."""
        self.end = ""
        """Why the capture has ended; empty while it has not."""
        self.on_begin: Callable[[list[dict[str, Any]]], None] = lambda _segments: None
        """Called with the captured segments, `vni` and `dev`, when the capture begins."""
        self.not_shown: list[str] = []
        """Drops meanwhile that could not be shown, such as those in queues of the kernel."""
        self._path = fspath(path)
        self._params = {name: value for name, value in params.items() if value is not None}
        self._writer: asyncio.StreamWriter | None = None
        self._interfaces: list[InterfaceBlock] = []
        self._pieces: AsyncGenerator[_Piece, None] | None = None
        self._frames: list[CapturedFrame] = []
        self.is_stopped = False
        """True after `stop`."""
        self.has_begun = False
        """True once the VTEP has accepted the request."""

    # --- frames ---------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CapturedFrame:
        """Return the next frame. Raises: StopAsyncIteration at the end; VtepError."""
        if self._pieces is None:
            self._pieces = self.pieces(frames=True)
        while not self._frames:
            _, blocks = await anext(self._pieces)
            self._frames = list(self.frames(blocks))[::-1]
        return self._frames.pop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the capture."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def stop(self) -> None:
        """End the capture, but let the frames and the totals arrive that are on the way."""
        self.is_stopped = True
        if self._writer is not None:
            with suppress(OSError, RuntimeError):
                self._writer.write_eof()

    # --- octets ---------------------------------------------------------------------------------

    async def pieces(self, *, frames: bool = False) -> AsyncGenerator[_Piece, None]:
        """Yield the octets of pcapng as they arrive, and the blocks that are complete by them.

        Those of frames are among the blocks with `frames` only: to decode them takes time.
        Raises: ConfigError or VtepError if the capture is refused, or is disconnected.
        """
        async for piece in self._sections(frames=frames):
            yield piece
        if not self.end and not self.is_stopped:
            raise DisconnectedError(f"{self._path}: the captured pyvtep has ended")

    async def _sections(self, *, frames: bool) -> AsyncGenerator[_Piece, None]:
        """Yield the pieces of one connection after the other: a takeover needs another one."""
        while True:
            reader = await self._open()
            decoder, before = Decoder(frames=frames), self.captured
            try:
                with suppress(ConnectionResetError):
                    while octets := await reader.read(_PIECE):
                        blocks = list(decoder.feed(octets))
                        self.captured = before + decoder.count
                        for block in blocks:
                            self._note(block)
                        yield octets, blocks
            except PcapngError as error:
                raise VtepError(f"{self._path}: not a capture: {error}") from error
            if self.end != CAPTURE_HANDED_OVER or self.is_stopped:
                return
            await self.aclose()
            self.end = ""

    async def _open(self) -> asyncio.StreamReader:
        """Begin a capture, at the next process if one has just taken over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TAKEOVER_S
        while True:
            try:
                reader, answer = await self._request()
            except (DisconnectedError, OSError) as error:
                if not self.captured or loop.time() >= deadline:
                    raise DisconnectedError(f"{self._path}: no pyvtep answers there") from error
            else:
                if "error" not in answer:
                    if not self.has_begun:
                        self.has_begun = True
                        self.on_begin(answer["result"]["segments"])
                    return reader
                if answer["error"].get("code") != Code.HANDED_OVER or loop.time() >= deadline:
                    raise refusal("capture", answer["error"])
            await self.aclose()
            await asyncio.sleep(_RETRY_S)

    async def _request(self) -> tuple[asyncio.StreamReader, dict[str, Any]]:
        """Connect, and ask for a capture. Returns: the reader, and the answer."""
        params = dict(self._params)
        if "count" in params:
            params["count"] -= self.captured
        reader, self._writer = await asyncio.open_unix_connection(
            self._path, limit=jsonrpc.LINE_MAX
        )
        self._writer.write(jsonrpc.request("capture", params, 1) + b"\n")
        try:
            async with asyncio.timeout(_ANSWER_S):
                line = await reader.readline()
        except TimeoutError:
            line = b""
        if not line:
            raise DisconnectedError(f"{self._path}: no answer")
        answer: dict[str, Any] = json.loads(line)
        return reader, answer

    # --- blocks ---------------------------------------------------------------------------------

    def _note(self, block: PcapngBlock) -> None:
        if isinstance(block, SectionBlock):
            self._interfaces = []
        elif isinstance(block, InterfaceBlock):
            self._interfaces.append(block)
        elif isinstance(block, StatisticsBlock):
            self.lost += block.dropped
            for comment in block.comments:
                kind, _, text = comment.partition(" ")
                if kind == "end:":
                    self.end = text
                else:
                    self.not_shown.append(text.removeprefix("shown "))

    def frames(self, blocks: Iterable[PcapngBlock]) -> Iterable[CapturedFrame]:
        """Yield the frames of blocks that `pieces` has yielded."""
        for block in blocks:
            if isinstance(block, PacketBlock):
                yield _frame(block, self._interfaces[block.interface])


def _frame(block: PacketBlock, interface: InterfaceBlock) -> CapturedFrame:
    found = _INTERFACE.match(interface.description)
    vni, dev, point = found.groups() if found is not None else (None, None, "")
    direction = "rx" if block.direction == RECEIVED else "tx"
    reason = remote = None
    comments = []
    for comment in block.comments:
        if (drop := _DROP.match(comment)) is not None:
            reason = drop[1]
        if comment.startswith("remote "):
            remote = comment.removeprefix("remote ")
        else:
            comments.append(comment)
    if point == "outer":
        remote = _remote(block.octets, direction)
    return CapturedFrame(
        *(block.time_ns, None if vni is None else int(vni), dev, direction, point, remote),
        *(block.octets, block.length, block.packet_id, reason, tuple(comments), block.drop_count),
    )


def _remote(frame: bytes, direction: str) -> str | None:
    """Return the address of the remote in the outer IP header of a datagram."""
    at = {b"\x08\x00": _IPV4_AT, b"\x86\xdd": _IPV6_AT}.get(frame[12:14])
    if at is None or len(frame) < 2 * at.stop - at.start:
        return None
    octets = frame[at] if direction == "rx" else frame[at.stop : 2 * at.stop - at.start]
    return str(ip_address(octets))
