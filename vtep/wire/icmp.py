"""ICMP errors that tell a sender how large its packets may be.

RFC 792 and 1191 (IPv4: destination unreachable, fragmentation needed and DF set) and RFC 4443,
section 3.2 (IPv6: packet too big). What may be answered at all is in RFC 1122, section 3.2.2, and
RFC 4443, section 2.4 (e).
"""

from struct import Struct

from vtep.wire import Buffer, checksum, ethernet
from vtep.wire.ip import EXTENSIONS, FRAGMENT_OFFSET, IP_HEADER_MIN

ICMP = 1
ICMPV6 = 58

MTU_MIN_V6 = 1280
"""What every link carries of IPv6 (RFC 8200, section 5)."""

_V4_UNREACHABLE = 3
_V4_FRAGMENTATION_NEEDED = 4
_V4_ERRORS = frozenset((_V4_UNREACHABLE, 4, 5, 11, 12))
"""Destination unreachable, source quench, redirect, time exceeded, parameter problem."""

_V6_TOO_BIG = 2
_V6_INFORMATIONAL = 128
"""Types below are errors."""

_V6_REDIRECT = 137
_V6_FRAGMENT = 44
_V6_ROUTING = 43

_HEADER_LEN = 8
_LENGTH_MAX = {4: 576, 6: MTU_MIN_V6}
"""Octets of an error with its IP header: RFC 1812, section 4.3.2.3; RFC 4443, section 2.4 (c)."""

_HOP_LIMIT = 64
_INTERNETWORK_CONTROL = 0xC0
"""TOS of an ICMP error (RFC 1812, section 4.3.2.5)."""

_DONT_FRAGMENT = 0x4000

_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_V4 = Struct("!BBHHH")
_V6 = Struct("!BBHI")


def answerable(frame: Buffer, ip_offset: int, version: int) -> bool:
    """Whether an ICMP error may be sent because of the IP packet at `ip_offset` of a frame.

    Not about an error, a fragment that is not the first, or anything to or from several hosts or
    none. The fixed part of the IP header is there.
    """
    if ethernet.is_group(frame) or ethernet.is_group(frame[6:7]):
        return False
    if version == 4:
        source, destination = (bytes(frame[ip_offset + at :][:4]) for at in (12, 16))
        if not (_is_host_v4(source) and _is_host_v4(destination)):
            return False
        if int.from_bytes(frame[ip_offset + 6 : ip_offset + 8], "big") & FRAGMENT_OFFSET:
            return False
        at = ip_offset + (frame[ip_offset] & 0x0F) * 4
        return frame[ip_offset + 9] != ICMP or (at < len(frame) and frame[at] not in _V4_ERRORS)
    source, destination = (bytes(frame[ip_offset + at :][:16]) for at in (8, 24))
    if not (_is_host_v6(source) and _is_host_v6(destination)):
        return False
    kind = _icmpv6_type(frame, ip_offset)
    return kind is None or (kind >= _V6_INFORMATIONAL and kind != _V6_REDIRECT)


def _is_host_v4(address: bytes) -> bool:
    return 0 < address[0] < 224 and address[0] != 127


def _is_host_v6(address: bytes) -> bool:
    return address[0] != 0xFF and address[:15] != bytes(15)


def _icmpv6_type(frame: Buffer, ip_offset: int) -> int | None:
    """The type of an ICMPv6 message, None if it is none; that of an error where it can't be told.

    It can't in fragments but the first, and where headers end before they should.
    """
    unknown = 0
    protocol, at = frame[ip_offset + 6], ip_offset + IP_HEADER_MIN[6]
    while protocol in EXTENSIONS or protocol in (_V6_FRAGMENT, _V6_ROUTING):
        if at + 8 > len(frame):
            return unknown
        if protocol == _V6_FRAGMENT:
            if frame[at + 2] or frame[at + 3] & 0xF8:
                return unknown
            length = 8
        else:
            length = 8 + frame[at + 1] * 8
        protocol, at = frame[at], at + length
    if protocol != ICMPV6:
        return None
    return frame[at] if at < len(frame) else unknown


def too_big(frame: Buffer, ip_offset: int, version: int, length: int, mtu: int) -> bytes:
    """The frame that tells the sender of a packet that only `mtu` octets would have passed.

    `length` are the octets of the packet, all of which the frame has. The answer seems to come from
    the packet's destination, as the kernel's tunnels have it (net/ipv4/ip_tunnel_core.c): that
    address is one that the sender knows and routes here, and a VTEP has none of its own inside. It
    goes back the way that the frame came, with its VLAN tags.
    """
    link = bytes(frame[6:12]) + bytes(frame[:6]) + bytes(frame[12:ip_offset])
    header_len = IP_HEADER_MIN[version] + _HEADER_LEN
    quoted = bytes(frame[ip_offset : ip_offset + min(length, _LENGTH_MAX[version] - header_len)])
    if version == 4:
        icmp = _V4.pack(_V4_UNREACHABLE, _V4_FRAGMENTATION_NEEDED, 0, 0, mtu) + quoted
        value = checksum.internet_checksum(icmp)
        source, destination = quoted[12:16], quoted[16:20]
        tos, total = _INTERNETWORK_CONTROL, IP_HEADER_MIN[4] + len(icmp)
        fields = (0x45, tos, total, 0, _DONT_FRAGMENT, _HOP_LIMIT, ICMP)
        header = _IPV4.pack(*fields, 0, destination, source)
        header = _IPV4.pack(*fields, checksum.internet_checksum(header), destination, source)
    else:
        icmp = _V6.pack(_V6_TOO_BIG, 0, 0, mtu) + quoted
        addresses = quoted[24:40], quoted[8:24]
        pseudo = b"".join(addresses) + len(icmp).to_bytes(4, "big") + bytes((0, 0, 0, ICMPV6))
        value = checksum.internet_checksum(pseudo + icmp)
        header = _IPV6.pack(6 << 28, len(icmp), ICMPV6, _HOP_LIMIT, *addresses)
    return link + header + icmp[:2] + value.to_bytes(2, "big") + icmp[4:]
