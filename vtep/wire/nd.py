"""Neighbor solicitations and advertisements of IPv6 (RFC 4861, sections 4.3, 4.4 and 7)."""

from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer, checksum

SOLICITATION = 135
ADVERTISEMENT = 136

FLAG_ROUTER = 0x80
FLAG_SOLICITED = 0x40
FLAG_OVERRIDE = 0x20

UNSPECIFIED = bytes(16)

_IPV6 = Struct("!IHBB16s16s")
_MESSAGE = Struct("!BBHB3x16s")
_ICMPV6 = 58
_HOP_LIMIT = 255
_VERSION = 6 << 28
_TRAFFIC_CLASS = 0x0FF0_0000
_SOURCE_LINK_ADDRESS = 1
_TARGET_LINK_ADDRESS = 2
_LINK_ADDRESS = {SOLICITATION: _SOURCE_LINK_ADDRESS, ADVERTISEMENT: _TARGET_LINK_ADDRESS}


class Message(NamedTuple):
    """A solicitation or an advertisement that is valid (RFC 4861, sections 7.1.1 and 7.1.2)."""

    kind: int
    traffic_class: int
    """Where it is in the first word of the IPv6 header."""
    source: bytes
    destination: bytes
    flags: int
    target: bytes
    link_address: bytes | None
    """The MAC in the option for the source of a solicitation or the target of an advertisement."""


def parse(frame: Buffer, at: int) -> Message | None:
    """Read the IPv6 packet that begins `at` octets into a frame; None if it is not one of these."""
    message_at = at + _IPV6.size
    if len(frame) < message_at + _MESSAGE.size:
        return None
    first, length, protocol, hop_limit, source, destination = _IPV6.unpack_from(frame, at)
    kind, code, _, flags, target = _MESSAGE.unpack_from(frame, message_at)
    if protocol != _ICMPV6 or kind not in _LINK_ADDRESS or first >> 28 != 6:
        return None
    message = frame[message_at : message_at + length]
    if (
        hop_limit != _HOP_LIMIT
        or code != 0
        or not _MESSAGE.size <= length == len(message)
        or target[0] == 0xFF
        or _sum(source, destination, message) != 0xFFFF
    ):
        return None
    options = _options(message)
    if options is None:
        return None
    address = options.get(_LINK_ADDRESS[kind])
    if kind == SOLICITATION:
        anonymous = source == UNSPECIFIED
        if anonymous and (address is not None or not _is_solicited_node(destination)):
            return None
    elif destination[0] == 0xFF and flags & FLAG_SOLICITED:
        return None
    return Message(kind, first & _TRAFFIC_CLASS, source, destination, flags, target, address)


def pack(message: Message) -> bytes:
    """The IPv6 packet, with its checksum and without an Ethernet header."""
    option = b""
    if message.link_address is not None:
        option = bytes((_LINK_ADDRESS[message.kind], 1)) + message.link_address
    body = _MESSAGE.pack(message.kind, 0, 0, message.flags, message.target) + option
    total = _sum(message.source, message.destination, body) ^ 0xFFFF
    header = _IPV6.pack(
        _VERSION | message.traffic_class,
        len(body),
        _ICMPV6,
        _HOP_LIMIT,
        message.source,
        message.destination,
    )
    return header + body[:2] + total.to_bytes(2, "big") + body[4:]


def _sum(source: bytes, destination: bytes, message: Buffer) -> int:
    """The folded sum of pseudo-header and message: 0xFFFF if the checksum in it is right."""
    words = checksum.ones_sum(source + destination) + _ICMPV6 + len(message)
    return checksum.fold(words + checksum.ones_sum(message))


def _options(message: Buffer) -> dict[int, bytes] | None:
    """The first of each kind of option that has room for a MAC, with it; None if they are bad."""
    options: dict[int, bytes] = {}
    at = _MESSAGE.size
    while at < len(message):
        length = message[at + 1] * 8 if at + 1 < len(message) else 0
        if not length or at + length > len(message):
            return None
        options.setdefault(message[at], bytes(message[at + 2 : at + 8]))
        at += length
    return options


def _is_solicited_node(address: bytes) -> bool:
    """Whether it is ff02::1:ff00:0/104 (RFC 4291, section 2.7.1)."""
    return address[:13] == b"\xff\x02" + bytes(9) + b"\x01\xff"
