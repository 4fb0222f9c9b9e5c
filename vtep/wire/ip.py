"""Inner IP, TCP and UDP fields: where they are, and the sum that protects them.

Only what a VTEP must understand is here. It forwards frames, so it never needs to know whether an
IP packet is *good*; it needs to find the transport header of those that are.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer, checksum
from vtep.wire.ethernet import HEADER_LEN, TYPE_IPV4, TYPE_IPV6, network_layer

TCP = 6
UDP = 17

TCP_FLAGS = 13
TCP_FLAG_FIN = 0x01
TCP_FLAG_SYN = 0x02
TCP_FLAG_RST = 0x04
TCP_FLAG_PSH = 0x08
TCP_FLAG_ACK = 0x10
TCP_FLAG_ECE = 0x40
TCP_FLAG_CWR = 0x80
TCP_HEADER_MIN = 20
UDP_HEADER_LEN = 8
TCP_OPTION_END = 0
TCP_OPTION_NOP = 1
TCP_OPTION_MSS = 2
TCP_OPTION_MD5 = 19
"""MD5 signature (RFC 2385): covers the header without its options, and the data."""
TCP_OPTION_AO = 29
"""Authentication option (RFC 5925): covers the data and the header, by default with its options."""

CHECKSUM_OFFSET = {TCP: 16, UDP: 6}
"""Where the checksum field is in each transport header."""

_HEADER_MIN = {TCP: TCP_HEADER_MIN, UDP: UDP_HEADER_LEN}

_IPV4 = Struct("!BxHxxHxB")
_IPV6 = Struct("!B3xHB")
_IPV4_LEN = 20
_IPV6_LEN = 40

_UNTAGGED_IPV4 = b"\x08\x00\x45"
_PROTOCOL_AT = HEADER_LEN + 9
_FLAGS_AT = HEADER_LEN + _IPV4_LEN + TCP_FLAGS
"""Where things are in an untagged frame with an IPv4 header that has no options."""

IP_HEADER_MIN = {4: _IPV4_LEN, 6: _IPV6_LEN}
"""Octets of an IP header without options or extension headers, by IP version."""

ADDRESSES_LEN = {4: 8, 6: 32}
"""Octets of both addresses of an IP header, which end it where there are no options."""

FRAGMENT_OFFSET = 0x1FFF
_FRAGMENT = 0x2000 | FRAGMENT_OFFSET
"""More-fragments flag and fragment offset; neither the DF bit nor the reserved bit."""

_HOP_BY_HOP = 0
_DESTINATION_OPTIONS = 60
EXTENSIONS = (_HOP_BY_HOP, _DESTINATION_OPTIONS)
"""Those that leave the pseudo-header alone (a routing header changes the destination in it)."""


class Transport(NamedTuple):
    """A whole TCP or UDP header inside an Ethernet frame.

    Offsets are from the start of the frame; `length` is that of header and payload together as
    the IP header states it, so Ethernet padding is not part of it.
    """

    version: int
    protocol: int
    ip_offset: int
    offset: int
    length: int


def transport(frame: Buffer) -> Transport | None:
    """Find the TCP or UDP header of a frame of at least 14 octets.

    None where there is none to be found: another protocol, a fragment, an IP header that
    contradicts itself or states more octets than the frame has.
    """
    ethertype, at = network_layer(frame)
    if ethertype == TYPE_IPV4 and at + _IPV4_LEN <= len(frame):
        first, total, fragment, protocol = _IPV4.unpack_from(frame, at)
        offset = at + (first & 0x0F) * 4
        end = at + total
        version = 4
        if first < 0x45 or first > 0x4F or fragment & _FRAGMENT:
            return None
    elif ethertype == TYPE_IPV6 and at + _IPV6_LEN <= len(frame):
        first, payload, protocol = _IPV6.unpack_from(frame, at)
        offset = at + _IPV6_LEN
        end = offset + payload
        version = 6
        if first >> 4 != 6:
            return None
        while protocol in EXTENSIONS and offset + 8 <= min(end, len(frame)):
            protocol, offset = frame[offset], offset + 8 + frame[offset + 1] * 8
    else:
        return None
    minimum = _HEADER_MIN.get(protocol)
    if minimum is None or offset + minimum > end or end > len(frame):
        return None
    return Transport(version, protocol, at, offset, end - offset)


def addresses(frame: Buffer, where: Transport) -> Buffer:
    """Source and destination address in one slice, of 8 or of 32 octets."""
    at = where.ip_offset
    return frame[at + 12 : at + 20] if where.version == 4 else frame[at + 8 : at + 40]


def pseudo_sum(frame: Buffer, where: Transport) -> int:
    """The folded sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).

    It is what a sender leaves in the checksum field when hardware is to finish the sum
    (CHECKSUM_PARTIAL in the kernel's include/linux/skbuff.h), not complemented.
    """
    total = int.from_bytes(addresses(frame, where), "big")
    return checksum.fold(total + where.protocol + where.length)


def checksum_field(frame: Buffer, where: Transport) -> int:
    """What the checksum field of the transport header holds."""
    at = where.offset + CHECKSUM_OFFSET[where.protocol]
    return frame[at] << 8 | frame[at + 1]


def udp_length(frame: Buffer, where: Transport) -> int:
    """Octets of UDP header and payload as the UDP header states them."""
    return frame[where.offset + 4] << 8 | frame[where.offset + 5]


def tcp_header_len(frame: Buffer, where: Transport) -> int:
    """Octets of the TCP header with its options, or 0 if the data offset contradicts the length."""
    octets = (frame[where.offset + 12] >> 4) * 4
    return octets if TCP_HEADER_MIN <= octets <= where.length else 0


def transport_header_len(frame: Buffer, where: Transport) -> int:
    """Octets of the TCP or UDP header, or 0 if it contradicts the length."""
    return tcp_header_len(frame, where) if where.protocol == TCP else UDP_HEADER_LEN


def tcp_syn(frame: Buffer) -> Transport | None:
    """Find the TCP header of a frame of at least 14 octets that opens a connection; else None."""
    # Most frames are settled by a look at where the flags are in most frames.
    if (
        frame[12:15] == _UNTAGGED_IPV4
        and len(frame) > _FLAGS_AT
        and (frame[_PROTOCOL_AT] != TCP or not frame[_FLAGS_AT] & TCP_FLAG_SYN)
    ):
        return None
    where = transport(frame)
    if where is None or where.protocol != TCP:
        return None
    return where if frame[where.offset + TCP_FLAGS] & TCP_FLAG_SYN else None


def tcp_options(frame: Buffer, where: Transport) -> Iterator[int]:
    """Where the options of a TCP header begin, but no-operations (RFC 9293, section 3.1).

    It ends before one that contradicts itself, as receivers do.
    """
    at = where.offset + TCP_HEADER_MIN
    end = where.offset + tcp_header_len(frame, where)
    while at < end and frame[at] != TCP_OPTION_END:
        if frame[at] == TCP_OPTION_NOP:
            at += 1
            continue
        if at + 1 >= end or frame[at + 1] < 2 or at + frame[at + 1] > end:
            return
        yield at
        at += frame[at + 1]


def tcp_authentication(frame: Buffer, where: Transport) -> int:
    """Return the kind of the option that authenticates a TCP segment, or 0 if there is none.

    The result is `TCP_OPTION_AO` or `TCP_OPTION_MD5`. Such a segment can be neither split nor
    merged: its code covers all of its data.
    """
    octets = tcp_header_len(frame, where)
    if octets <= TCP_HEADER_MIN:
        return 0
    # Most segments have no octet of either value: this spares them the walk over their options.
    options = bytes(frame[where.offset + TCP_HEADER_MIN : where.offset + octets])
    if TCP_OPTION_AO not in options and TCP_OPTION_MD5 not in options:
        return 0
    kinds = {frame[at] for at in tcp_options(frame, where)}
    return next((kind for kind in (TCP_OPTION_AO, TCP_OPTION_MD5) if kind in kinds), 0)


def tcp_mss_offset(frame: Buffer, where: Transport) -> int | None:
    """Where the maximum segment size is that a TCP header announces, if any."""
    for at in tcp_options(frame, where):
        if frame[at] == TCP_OPTION_MSS and frame[at + 1] == 4:
            return at + 2
    return None


def tcp_mss(frame: Buffer, where: Transport) -> int | None:
    """The maximum segment size that a TCP header announces (RFC 9293, section 3.7.1), if any."""
    at = tcp_mss_offset(frame, where)
    return None if at is None else frame[at] << 8 | frame[at + 1]
