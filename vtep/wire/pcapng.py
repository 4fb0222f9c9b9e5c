"""pcapng, the file format of Wireshark: an encoder, and a decoder for what it writes.

Sources: draft-ietf-opsawg-pcapng, and wiretap/pcapng.c of Wireshark where the draft is silent. All
blocks are little-endian, and time is in nanoseconds since 1970.
"""

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import Final, TypeAlias

from attrs import frozen

from vtep.wire import Buffer

ETHERNET: Final = 1
"""LINKTYPE_ETHERNET, of which all interfaces are. libpcap, and so tcpdump, reads no file whose
interfaces differ in their link type (pcap/sf-pcapng.c)."""

RECEIVED: Final = 1
SENT: Final = 2
"""Directions in `epb_flags`, bits 0 and 1."""

BLOCK_MAX: Final = 1 << 20
"""Octets of a block that the decoder accepts: a frame of 64 KiB, and options of twice as much."""

COMMENT_MAX: Final = 4096
"""Octets of a comment; longer ones are cut."""

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_MAGIC: Final = 0x1A2B3C4D

_END, _COMMENT = 0, 1
_SECTION_SYSTEM, _SECTION_APPLICATION = 3, 4
_NAME, _DESCRIPTION, _RESOLUTION, _FILTER = 2, 3, 9, 11
_FLAGS, _DROP_COUNT, _PACKET_ID, _VERDICT = 2, 4, 5, 7
_START_TIME, _END_TIME, _RECEIVED, _DROPPED, _DELIVERED = 2, 3, 4, 5, 8

_NANOSECONDS = b"\x09"
"""The value of if_tsresol: a negative power of ten."""

_VERDICT_DROP = b"\x01" + (2).to_bytes(8, "little")
"""The verdict of a dropped frame: TC_ACT_SHOT of a TC program, which Wireshark shows in words. The
format has no verdict that is about no program of the kernel."""

_HEAD = Struct("<II")
_WORD = Struct("<I")
_OPTION = Struct("<HH")
_SECTION_BODY = Struct("<IHHq")
_INTERFACE_BODY = Struct("<HHI")
_PACKET_BODY = Struct("<IIIII")
_STATISTICS_BODY = Struct("<III")
_TIME = Struct("<II")
_NUMBER = Struct("<Q")

_Options: TypeAlias = Iterable[tuple[int, bytes]]

_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
"""Octets that fill up a field, by the remainder of its length and 4."""


class PcapngError(ValueError):
    """Octets that are not pcapng, or not of the kind that `Decoder` accepts."""


@frozen
class SectionBlock:
    """The start of a section: the interfaces are numbered anew."""

    application: str = ""
    system: str = ""

    def encode(self) -> bytes:
        """Return the block."""
        body = _SECTION_BODY.pack(_MAGIC, 1, 0, -1)  # -1: the length of the section is not known.
        options = [
            (code, text.encode())
            for code, text in (
                (_SECTION_SYSTEM, self.system),
                (_SECTION_APPLICATION, self.application),
            )
            if text
        ]
        return _block(_SECTION, body, options)


@frozen
class InterfaceBlock:
    """The description of an interface: one observation point. Blocks refer to it by its number."""

    name: str
    description: str = ""
    filter: str = ""
    snaplen: int = 0
    """Octets of a frame that are kept at most; 0 for no limit."""

    def encode(self) -> bytes:
        """Return the block."""
        options = [(_NAME, self.name.encode())]
        if self.description:
            options.append((_DESCRIPTION, self.description.encode()))
        options.append((_RESOLUTION, _NANOSECONDS))
        if self.filter:
            # The first octet says that a filter expression of libpcap follows.
            options.append((_FILTER, b"\0" + self.filter.encode()))
        return _block(_INTERFACE, _INTERFACE_BODY.pack(ETHERNET, 0, self.snaplen), options)


@frozen
class PacketBlock:
    """A frame at an interface."""

    interface: int
    time_ns: int
    octets: bytes
    length: int
    """Octets of the frame, of which `octets` may be the first ones."""
    direction: int = 0
    """`RECEIVED`, `SENT`, or 0 if it has none."""
    comments: tuple[str, ...] = ()
    is_dropped: bool = False
    packet_id: int | None = None
    """The same for the same frame at several interfaces."""
    drop_count: int = 0
    """Frames at this interface that the capture has lost since the last one."""

    def encode(self) -> bytes:
        """Return the block."""
        options: list[tuple[int, bytes]] = [(_COMMENT, _cut(text)) for text in self.comments]
        options.append((_FLAGS, _WORD.pack(self.direction | _cast(self.octets))))
        if self.drop_count:
            options.append((_DROP_COUNT, _NUMBER.pack(self.drop_count)))
        if self.packet_id is not None:
            options.append((_PACKET_ID, _NUMBER.pack(self.packet_id)))
        if self.is_dropped:
            options.append((_VERDICT, _VERDICT_DROP))
        kept = len(self.octets)
        body = _PACKET_BODY.pack(self.interface, *_split(self.time_ns), kept, self.length)
        return _block(_PACKET, body + self.octets + _PADDING[kept & 3], options)


@frozen
class StatisticsBlock:
    """The totals of an interface, at the end of a capture."""

    interface: int
    time_ns: int
    started_ns: int
    received: int
    """Frames that the capture was to keep."""
    dropped: int
    """Frames that the capture has lost."""
    delivered: int
    """Frames that were written."""
    comments: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the block."""
        options: list[tuple[int, bytes]] = [(_COMMENT, _cut(text)) for text in self.comments]
        options += [
            (_START_TIME, _TIME.pack(*_split(self.started_ns))),
            (_END_TIME, _TIME.pack(*_split(self.time_ns))),
            (_RECEIVED, _NUMBER.pack(self.received)),
            (_DROPPED, _NUMBER.pack(self.dropped)),
            (_DELIVERED, _NUMBER.pack(self.delivered)),
        ]
        body = _STATISTICS_BODY.pack(self.interface, *_split(self.time_ns))
        return _block(_STATISTICS, body, options)


PcapngBlock: TypeAlias = SectionBlock | InterfaceBlock | PacketBlock | StatisticsBlock


class Decoder:
    """A decoder of a stream of blocks, which may be fed in pieces of any length.

    Blocks and options that it does not know are skipped. It keeps one incomplete block. Without
    `frames`, it counts blocks of frames, and yields the others only.
    """

    def __init__(self, *, frames: bool = True) -> None:
        self.count = 0
        """The number of blocks of frames."""
        self._yields_frames = frames
        self._rest = bytearray()
        self._has_section = False

    @property
    def is_empty(self) -> bool:
        """True if no part of a block is left."""
        return not self._rest

    def feed(self, octets: Buffer) -> Iterator[PcapngBlock]:
        """Yield the blocks that are complete now. Raises: PcapngError."""
        rest = self._rest
        rest += octets
        at = 0
        try:
            while len(rest) - at >= _HEAD.size:
                kind, length = _HEAD.unpack_from(rest, at)
                if not self._has_section and kind != _SECTION:
                    raise PcapngError("it does not begin with a section header")
                if length % 4 or not 12 <= length <= BLOCK_MAX:
                    raise PcapngError(f"a block of {length} octets")
                if len(rest) - at < length:
                    return
                if _WORD.unpack_from(rest, at + length - _WORD.size)[0] != length:
                    raise PcapngError("the two lengths of a block differ")
                begin = at + _HEAD.size
                at += length
                if kind == _PACKET:
                    self.count += 1
                    if not self._yields_frames:
                        continue
                body = bytes(rest[begin : at - _WORD.size])
                block = _decode(kind, body)
                if block is not None:
                    self._has_section = True
                    yield block
        finally:
            # Once for all blocks: to delete octets at the front copies what follows.
            del rest[:at]


def _block(kind: int, body: bytes, options: _Options) -> bytes:
    """Return a block with its type, its length, which is written twice, and its options."""
    parts = [body]
    for code, value in options:
        parts += (_OPTION.pack(code, len(value)), value, _PADDING[len(value) & 3])
    parts.append(_OPTION.pack(_END, 0))
    content = b"".join(parts)
    length = _HEAD.size + len(content) + _WORD.size
    return _HEAD.pack(kind, length) + content + _WORD.pack(length)


def _cut(text: str) -> bytes:
    """Return a comment as UTF-8, cut between two characters if it is too long."""
    octets = text.encode("utf-8", "replace")
    return (
        octets
        if len(octets) <= COMMENT_MAX
        else octets[:COMMENT_MAX].decode("utf-8", "ignore").encode()
    )


def _cast(frame: bytes) -> int:
    """Return the reception type of `epb_flags`, bits 2 to 4: unicast, multicast or broadcast."""
    if len(frame) < 6:
        return 0
    if frame[:6] == b"\xff" * 6:
        return 3 << 2
    return (2 if frame[0] & 1 else 1) << 2


def _split(time_ns: int) -> tuple[int, int]:
    """Return the two words of a time stamp, the upper one first."""
    return time_ns >> 32 & 0xFFFFFFFF, time_ns & 0xFFFFFFFF


def _decode(kind: int, body: bytes) -> PcapngBlock | None:
    """Decode the body of a block. Returns: None for a type that is not known."""
    sizes = {
        _SECTION: _SECTION_BODY.size,
        _INTERFACE: _INTERFACE_BODY.size,
        _STATISTICS: _STATISTICS_BODY.size,
        _PACKET: _PACKET_BODY.size,
    }
    if len(body) < sizes.get(kind, 0):
        raise PcapngError("a truncated block")
    if kind == _SECTION:
        return _decode_section(body)
    if kind == _INTERFACE:
        return _decode_interface(body)
    if kind == _STATISTICS:
        return _decode_statistics(body)
    return _decode_packet(body) if kind == _PACKET else None


def _decode_section(body: bytes) -> SectionBlock:
    magic, major, _, _ = _SECTION_BODY.unpack_from(body)
    if magic != _MAGIC:
        raise PcapngError("its octet order is not little-endian")
    if major != 1:
        raise PcapngError(f"it is of version {major}")
    options = dict(_options(body, _SECTION_BODY.size))
    return SectionBlock(
        _text(options.get(_SECTION_APPLICATION)), _text(options.get(_SECTION_SYSTEM))
    )


def _decode_interface(body: bytes) -> InterfaceBlock:
    link_type, _, snaplen = _INTERFACE_BODY.unpack_from(body)
    options = dict(_options(body, _INTERFACE_BODY.size))
    if link_type != ETHERNET or options.get(_RESOLUTION) != _NANOSECONDS:
        raise PcapngError("an interface of another kind than pyvtep writes")
    return InterfaceBlock(
        _text(options.get(_NAME)),
        _text(options.get(_DESCRIPTION)),
        _text(options.get(_FILTER, b"\0")[1:]),
        snaplen,
    )


def _decode_packet(body: bytes) -> PacketBlock:
    interface, high, low, kept, length = _PACKET_BODY.unpack_from(body)
    end = _PACKET_BODY.size + kept
    if end > len(body):
        raise PcapngError("a packet that is longer than its block")
    flags, drops, packet_id, comments, is_dropped = 0, 0, None, [], False
    for code, value in _options(body, end + -end % 4):
        if code == _COMMENT:
            comments.append(_text(value))
        elif code == _FLAGS and len(value) == _WORD.size:
            (flags,) = _WORD.unpack(value)
        elif code == _DROP_COUNT and len(value) == _NUMBER.size:
            (drops,) = _NUMBER.unpack(value)
        elif code == _PACKET_ID and len(value) == _NUMBER.size:
            (packet_id,) = _NUMBER.unpack(value)
        elif code == _VERDICT:
            is_dropped = value == _VERDICT_DROP
    return PacketBlock(
        interface,
        high << 32 | low,
        body[_PACKET_BODY.size : end],
        length,
        direction=flags & 3,
        comments=tuple(comments),
        is_dropped=is_dropped,
        packet_id=packet_id,
        drop_count=drops,
    )


def _decode_statistics(body: bytes) -> StatisticsBlock:
    interface, high, low = _STATISTICS_BODY.unpack_from(body)
    started, numbers = 0, dict.fromkeys((_RECEIVED, _DROPPED, _DELIVERED), 0)
    comments = []
    for code, value in _options(body, _STATISTICS_BODY.size):
        if code == _COMMENT:
            comments.append(_text(value))
        elif code == _START_TIME and len(value) == _TIME.size:
            upper, lower = _TIME.unpack(value)
            started = upper << 32 | lower
        elif code in numbers and len(value) == _NUMBER.size:
            (numbers[code],) = _NUMBER.unpack(value)
    return StatisticsBlock(
        interface,
        high << 32 | low,
        started,
        received=numbers[_RECEIVED],
        dropped=numbers[_DROPPED],
        delivered=numbers[_DELIVERED],
        comments=tuple(comments),
    )


def _options(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Yield code and value of each option from offset `at` on. Raises: PcapngError."""
    while at + _OPTION.size <= len(body):
        code, length = _OPTION.unpack_from(body, at)
        if code == _END:
            return
        at += _OPTION.size
        if at + length > len(body):
            raise PcapngError("an option that is longer than its block")
        yield code, body[at : at + length]
        at += length + -length % 4


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
