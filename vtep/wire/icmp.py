"""ICMP errors that tell a sender the MTU of the path.

IPv4: destination unreachable, fragmentation needed and DF set (RFC 792, RFC 1191). IPv6: packet too
big (RFC 4443, section 3.2). RFC 1122, section 3.2.2, and RFC 4443, section 2.4 (e), restrict which
packets may cause an error.
"""

from struct import Struct

from vtep.wire import Buffer, checksum, ethernet
from vtep.wire.ip import EXTENSION_HEADERS, FRAGMENT_OFFSET_MASK, IP_HEADER_MIN

ICMP = 1
ICMPV6 = 58

MTU_MIN_V6 = 1280
"""Minimum MTU of an IPv6 link, in octets (RFC 8200, section 5)."""

_V4_UNREACHABLE = 3
_V4_FRAGMENTATION_NEEDED = 4
_V4_ERRORS = frozenset((_V4_UNREACHABLE, 4, 5, 11, 12))
"""Destination unreachable, source quench, redirect, time exceeded, parameter problem."""

_V6_TOO_BIG = 2
_V6_INFORMATIONAL = 128
"""Lowest type that is not an error (RFC 4443, section 2.1)."""

_V6_REDIRECT = 137
_V6_FRAGMENT = 44
_V6_ROUTING = 43

_HEADER_LEN = 8
_LENGTH_MAX = {4: 576, 6: MTU_MIN_V6}
"""Octets of an error with its IP header, by IP version (RFC 1812, section 4.3.2.3; RFC 4443,
section 2.4 (c))."""

_HOP_LIMIT = 64
_INTERNETWORK_CONTROL = 0xC0
"""TOS of an ICMP error (RFC 1812, section 4.3.2.5)."""

_DONT_FRAGMENT = 0x4000

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_V4 = Struct("!BBHHH")
_V6 = Struct("!BBHI")


def may_send_error(frame: Buffer, ip_offset: int, version: int) -> bool:
    """Return True if an ICMP error may be sent about the IP packet at `ip_offset` of a frame.

    No error is sent about an ICMP error or redirect, about a fragment other than the first, or to
    or from an address that does not name a single host. The frame contains the fixed part of the
    IP header.

    Source: RFC 1122, section 3.2.2; RFC 4443, section 2.4 (e).
    """
    if ethernet.is_group(frame) or ethernet.is_group(frame[6:7]):
        return False
    if version == 4:
        source, destination = (bytes(frame[ip_offset + field :][:4]) for field in (12, 16))
        if not (_is_unicast_v4(source) and _is_unicast_v4(destination)):
            return False
        fragment = int.from_bytes(frame[ip_offset + 6 : ip_offset + 8], "big")
        if fragment & FRAGMENT_OFFSET_MASK:
            return False
        offset = ip_offset + (frame[ip_offset] & 0x0F) * 4
        return frame[ip_offset + 9] != ICMP or (
            offset < len(frame) and frame[offset] not in _V4_ERRORS
        )
    source, destination = (bytes(frame[ip_offset + field :][:16]) for field in (8, 24))
    if not (_is_unicast_v6(source) and _is_unicast_v6(destination)):
        return False
    kind = _icmpv6_type(frame, ip_offset)
    return kind is None or (kind >= _V6_INFORMATIONAL and kind != _V6_REDIRECT)


def _is_unicast_v4(address: bytes) -> bool:
    """Return True for a unicast address that is neither loopback nor in 0.0.0.0/8."""
    return 0 < address[0] < 224 and address[0] != 127


def _is_unicast_v6(address: bytes) -> bool:
    """Return True for a unicast address that is neither loopback nor unspecified."""
    return address[0] != 0xFF and address[:15] != bytes(15)


def _icmpv6_type(frame: Buffer, ip_offset: int) -> int | None:
    """Find the ICMPv6 type of the IPv6 packet at `ip_offset`, behind any extension headers.

    Returns: None if the packet is not ICMPv6. 0, which is in the range of errors, if the type is
    unknown: in a fragment other than the first, or if the headers are truncated.
    """
    unknown = 0
    protocol, offset = frame[ip_offset + 6], ip_offset + IP_HEADER_MIN[6]
    while protocol in EXTENSION_HEADERS or protocol in (_V6_FRAGMENT, _V6_ROUTING):
        if offset + 8 > len(frame):
            return unknown
        if protocol == _V6_FRAGMENT:
            if frame[offset + 2] or frame[offset + 3] & 0xF8:
                return unknown
            length = 8
        else:
            length = 8 + frame[offset + 1] * 8
        protocol, offset = frame[offset], offset + length
    if protocol != ICMPV6:
        return None
    return frame[offset] if offset < len(frame) else unknown


def build_too_big(frame: Buffer, ip_offset: int, version: int, length: int, mtu: int) -> bytes:
    """Build the frame that tells the sender of an IP packet the MTU of the path, in octets.

    The packet of `length` octets lies at `ip_offset` of `frame` and is complete. The answer has the
    same VLAN tags as `frame`, and its MAC and IP addresses are swapped. The destination of the
    packet is the source of the error, as in the kernel's tunnels (net/ipv4/ip_tunnel_core.c): the
    sender has a route to that address, and a VTEP has no address of its own inside the overlay.

    Returns: an Ethernet frame with the ICMP error, which quotes the packet up to the limit of RFC
    1812, section 4.3.2.3, or RFC 4443, section 2.4 (c).
    """
    link = bytes(frame[6:12]) + bytes(frame[:6]) + bytes(frame[12:ip_offset])
    header_len = IP_HEADER_MIN[version] + _HEADER_LEN
    quoted = bytes(frame[ip_offset : ip_offset + min(length, _LENGTH_MAX[version] - header_len)])
    if version == 4:
        error = _V4.pack(_V4_UNREACHABLE, _V4_FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
        return link + ipv4_packet(quoted[16:20], quoted[12:16], error, _INTERNETWORK_CONTROL)
    error = _V6.pack(_V6_TOO_BIG, 0, 0, mtu) + quoted
    return link + ipv6_packet(quoted[24:40], quoted[8:24], error)


def ipv4_packet(source: bytes, destination: bytes, message: bytes, tos: int = 0) -> bytes:
    """Pack an ICMP message as an IPv4 packet, without an Ethernet header.

    The checksum field of `message` is 0, and is filled in. DF is set, so the identification can be
    0 (RFC 6864, section 4).
    """
    total = IP_HEADER_MIN[4] + len(message)
    fields = (0x45, tos, total, 0, _DONT_FRAGMENT, _HOP_LIMIT, ICMP)
    header = _IPV4.pack(*fields, 0, source, destination)
    header = _IPV4.pack(*fields, checksum.internet_checksum(header), source, destination)
    return header + with_checksum(message)


def ipv6_packet(source: bytes, destination: bytes, message: bytes) -> bytes:
    """Pack an ICMPv6 message as an IPv6 packet, without an Ethernet header.

    The checksum field of `message` is 0, and is filled in.
    """
    pseudo = source + destination + len(message).to_bytes(4, "big") + bytes((0, 0, 0, ICMPV6))
    header = _IPV6.pack(6 << 28, len(message), ICMPV6, _HOP_LIMIT, source, destination)
    return header + with_checksum(message, pseudo)


def with_checksum(message: bytes, pseudo_header: bytes = b"") -> bytes:
    """Return an ICMP message with its checksum in place of the 0 of its checksum field.

    ICMPv6 has a pseudo-header (RFC 8200, section 8.1), and ICMP for IPv4 has none.
    """
    value = checksum.internet_checksum(pseudo_header + message)
    return message[:2] + value.to_bytes(2, "big") + message[4:]
