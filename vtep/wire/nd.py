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
"""The unspecified address, `::`."""

_LINK_LOCAL = bytes.fromhex("fe80000000000000")
"""The prefix of link-local addresses (RFC 4291, section 2.5.6)."""

_SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")
"""The prefix of solicited-node multicast addresses (RFC 4291, section 2.7.1)."""

_IPV6 = Struct("!IHBB16s16s")
_MESSAGE = Struct("!BBHB3x16s")
_ICMPV6 = 58
_HOP_LIMIT = 255
_VERSION = 6 << 28
_TRAFFIC_CLASS = 0x0FF0_0000
_SOURCE_LINK_ADDRESS = 1
_TARGET_LINK_ADDRESS = 2
_LINK_ADDRESS = {SOLICITATION: _SOURCE_LINK_ADDRESS, ADVERTISEMENT: _TARGET_LINK_ADDRESS}
"""Type of the link-layer address option that each message type may carry."""


class NdMessage(NamedTuple):
    """A valid neighbor solicitation or advertisement (RFC 4861, sections 7.1.1 and 7.1.2)."""

    kind: int
    """ICMPv6 type: `SOLICITATION` or `ADVERTISEMENT`."""
    traffic_class: int
    """Traffic class, in its bits of the first word of the IPv6 header (mask 0x0FF00000)."""
    source: bytes
    destination: bytes
    flags: int
    target: bytes
    link_address: bytes | None
    """MAC of the source (solicitation) or target (advertisement) link-layer address option."""


def parse(frame: Buffer, offset: int) -> NdMessage | None:
    """Parse and validate the IPv6 packet at `offset` of a frame.

    Returns: None if the packet is not a neighbor solicitation or advertisement, has extension
    headers, or is invalid by RFC 4861, section 7.1.1 or 7.1.2. A wrong checksum makes it invalid.
    """
    message_offset = offset + _IPV6.size
    if len(frame) < message_offset + _MESSAGE.size:
        return None
    first, length, protocol, hop_limit, source, destination = _IPV6.unpack_from(frame, offset)
    kind, code, _, flags, target = _MESSAGE.unpack_from(frame, message_offset)
    if protocol != _ICMPV6 or kind not in _LINK_ADDRESS or first >> 28 != 6:
        return None
    message = frame[message_offset : message_offset + length]
    # Routers decrement the hop limit, so 255 proves that the sender is on the link (section 7.1).
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
        # Duplicate address detection sends from the unspecified address.
        unspecified = source == UNSPECIFIED
        if unspecified and (address is not None or not _is_solicited_node(destination)):
            return None
    elif destination[0] == 0xFF and flags & FLAG_SOLICITED:
        return None
    return NdMessage(kind, first & _TRAFFIC_CLASS, source, destination, flags, target, address)


def pack(message: NdMessage) -> bytes:
    """Pack a message as an IPv6 packet with checksum, without an Ethernet header."""
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


def link_local(mac: bytes) -> bytes:
    """Return the link-local address of a MAC by modified EUI-64 (RFC 4291, appendix A)."""
    return _LINK_LOCAL + bytes((mac[0] ^ 2, *mac[1:3], 0xFF, 0xFE, *mac[3:]))


def solicited_node(address: bytes) -> bytes:
    """Return the multicast address on which the host with an IPv6 address gets solicitations."""
    return _SOLICITED_NODE + address[-3:]


def _sum(source: bytes, destination: bytes, message: Buffer) -> int:
    """Return the folded sum of pseudo-header and message.

    It is 0xFFFF if the message contains the right checksum.
    """
    words = checksum.ones_sum(source + destination) + _ICMPV6 + len(message)
    return checksum.fold(words + checksum.ones_sum(message))


def _options(message: Buffer) -> dict[int, bytes] | None:
    """Parse the options of a message.

    Returns: octets 2 to 7 of the first option of each type, where a link-layer address option has
    its MAC, by type. None if an option has length 0 or exceeds the message.
    """
    options: dict[int, bytes] = {}
    offset = _MESSAGE.size
    while offset < len(message):
        length = message[offset + 1] * 8 if offset + 1 < len(message) else 0
        if not length or offset + length > len(message):
            return None
        options.setdefault(message[offset], bytes(message[offset + 2 : offset + 8]))
        offset += length
    return options


def _is_solicited_node(address: bytes) -> bool:
    return address.startswith(_SOLICITED_NODE)
