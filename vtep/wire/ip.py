"""Fields of inner IP, TCP and UDP headers, and the checksum that covers them.

A VTEP forwards frames without validating the IP packets in them. It needs to find the transport
header of a valid packet and to recognise that there is none.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer, checksum
from vtep.wire.ethernet import HEADER_LEN, TYPE_IPV4, TYPE_IPV6, NetworkLayer, network_layer

TCP = 6
UDP = 17

TCP_FLAGS_OFFSET = 13
"""Offset of the flags octet in a TCP header."""

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
"""Offset of the checksum field in a transport header, by protocol."""

_HEADER_MIN = {TCP: TCP_HEADER_MIN, UDP: UDP_HEADER_LEN}

_IPV4 = Struct("!BxHxxHxB")
_IPV6 = Struct("!B3xHB")
_IPV4_LEN = 20
_IPV6_LEN = 40

_UNTAGGED_IPV4 = b"\x08\x00\x45"
"""EtherType and first octet of an untagged IPv4 packet without options."""

_PROTOCOL_AT = HEADER_LEN + 9
_FLAGS_AT = HEADER_LEN + _IPV4_LEN + TCP_FLAGS_OFFSET
"""Offset of the TCP flags in a frame that begins with `_UNTAGGED_IPV4`."""

IP_HEADER_MIN = {4: _IPV4_LEN, 6: _IPV6_LEN}
"""Octets of an IP header without options or extension headers, by IP version."""

UDP_IP_HEADERS_LEN = {version: octets + UDP_HEADER_LEN for version, octets in IP_HEADER_MIN.items()}
"""Octets of such an IP header and a UDP header, by IP version."""

ADDRESSES_LEN = {4: 8, 6: 32}
"""Octets of both addresses, which are the end of an IP header without options, by IP version."""

FRAGMENT_OFFSET_MASK = 0x1FFF
_FRAGMENT = 0x2000 | FRAGMENT_OFFSET_MASK
"""More-fragments flag and fragment offset, without the DF bit and the reserved bit."""

_HOP_BY_HOP = 0
_DESTINATION_OPTIONS = 60
EXTENSION_HEADERS = (_HOP_BY_HOP, _DESTINATION_OPTIONS)
"""Extension headers to skip. A routing header is not among them, because the pseudo-header then
contains another destination than the IPv6 header (RFC 8200, section 8.1)."""


class Transport(NamedTuple):
    """Position of a complete TCP or UDP segment in an Ethernet frame.

    Offsets count from the start of the frame. `length` is that of transport header and payload as
    stated by the IP header, so it excludes Ethernet padding.
    """

    version: int
    protocol: int
    ip_offset: int
    offset: int
    length: int


def find_transport(frame: Buffer, layer: NetworkLayer | None = None) -> Transport | None:
    """Find the TCP or UDP header of a frame of at least 14 octets.

    VLAN tags, IPv4 options and the extension headers of `EXTENSION_HEADERS` are skipped. `layer` is
    the result of `network_layer`, if it is known.

    Returns: None for another protocol, a fragment, or an IP header that is inconsistent or states
    more octets than the frame has.
    """
    ethertype, ip_offset = layer or network_layer(frame)
    if ethertype == TYPE_IPV4 and ip_offset + _IPV4_LEN <= len(frame):
        first, total, fragment, protocol = _IPV4.unpack_from(frame, ip_offset)
        offset = ip_offset + (first & 0x0F) * 4
        end = ip_offset + total
        version = 4
        # Version 4 with a header of 5 to 15 words. A fragment has no complete transport segment.
        if first < 0x45 or first > 0x4F or fragment & _FRAGMENT:
            return None
    elif ethertype == TYPE_IPV6 and ip_offset + _IPV6_LEN <= len(frame):
        first, payload, protocol = _IPV6.unpack_from(frame, ip_offset)
        offset = ip_offset + _IPV6_LEN
        end = offset + payload
        version = 6
        if first >> 4 != 6:
            return None
        # The length of an extension header counts 8-octet units beyond the first (RFC 8200, 4.3).
        while protocol in EXTENSION_HEADERS and offset + 8 <= min(end, len(frame)):
            protocol, offset = frame[offset], offset + 8 + frame[offset + 1] * 8
    else:
        return None
    minimum = _HEADER_MIN.get(protocol)
    if minimum is None or offset + minimum > end or end > len(frame):
        return None
    return Transport(version, protocol, ip_offset, offset, end - offset)


def addresses(frame: Buffer, transport: Transport) -> Buffer:
    """Return source and destination IP address as one slice of 8 (IPv4) or 32 (IPv6) octets."""
    offset = transport.ip_offset
    if transport.version == 4:
        return frame[offset + 12 : offset + 20]
    return frame[offset + 8 : offset + 40]


def pseudo_sum(frame: Buffer, transport: Transport) -> int:
    """Return the folded sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).

    A sender that offloads the checksum stores this value, not complemented, in the checksum field
    (CHECKSUM_PARTIAL in the kernel's include/linux/skbuff.h).
    """
    total = int.from_bytes(addresses(frame, transport), "big")
    return checksum.fold(total + transport.protocol + transport.length)


def checksum_field(frame: Buffer, transport: Transport) -> int:
    """Return the value of the checksum field of the transport header."""
    offset = transport.offset + CHECKSUM_OFFSET[transport.protocol]
    return frame[offset] << 8 | frame[offset + 1]


def udp_length(frame: Buffer, transport: Transport) -> int:
    """Return the length field of a UDP header: octets of header and payload."""
    return frame[transport.offset + 4] << 8 | frame[transport.offset + 5]


def tcp_header_len(frame: Buffer, transport: Transport) -> int:
    """Return the octets of a TCP header with its options.

    Returns: 0 if the data offset is below the minimum or beyond the segment.
    """
    octets = (frame[transport.offset + 12] >> 4) * 4
    return octets if TCP_HEADER_MIN <= octets <= transport.length else 0


def transport_header_len(frame: Buffer, transport: Transport) -> int:
    """Return the octets of a TCP or UDP header, or 0 if it is inconsistent with the length."""
    return tcp_header_len(frame, transport) if transport.protocol == TCP else UDP_HEADER_LEN


def tcp_syn(frame: Buffer) -> Transport | None:
    """Find the TCP header of a frame of at least 14 octets that carries a SYN.

    Returns: None if the frame is not a TCP segment with the SYN flag.
    """
    # Most frames are untagged IPv4 without options, so their TCP flags are at a fixed offset. This
    # check rejects them without a full parse.
    if (
        frame[12:15] == _UNTAGGED_IPV4
        and len(frame) > _FLAGS_AT
        and (frame[_PROTOCOL_AT] != TCP or not frame[_FLAGS_AT] & TCP_FLAG_SYN)
    ):
        return None
    transport = find_transport(frame)
    if transport is None or transport.protocol != TCP:
        return None
    return transport if frame[transport.offset + TCP_FLAGS_OFFSET] & TCP_FLAG_SYN else None


def tcp_options(frame: Buffer, transport: Transport) -> Iterator[int]:
    """Yield the offset of each option of a TCP header except no-operation.

    The iteration ends before an option with an invalid length, as in receivers (RFC 9293, section
    3.1).
    """
    offset = transport.offset + TCP_HEADER_MIN
    end = transport.offset + tcp_header_len(frame, transport)
    while offset < end and frame[offset] != TCP_OPTION_END:
        if frame[offset] == TCP_OPTION_NOP:
            offset += 1
            continue
        if offset + 1 >= end or frame[offset + 1] < 2 or offset + frame[offset + 1] > end:
            return
        yield offset
        offset += frame[offset + 1]


def tcp_authentication(frame: Buffer, transport: Transport) -> int:
    """Return the kind of the option that authenticates a TCP segment, or 0 if there is none.

    The result is `TCP_OPTION_AO` or `TCP_OPTION_MD5`. Such a segment can be neither split nor
    merged: its code covers all of its data.
    """
    end = tcp_header_len(frame, transport)
    if end <= TCP_HEADER_MIN:
        return 0
    # Most segments have no octet of either value: this spares them the walk over their options.
    options = bytes(frame[transport.offset + TCP_HEADER_MIN : transport.offset + end])
    if TCP_OPTION_AO not in options and TCP_OPTION_MD5 not in options:
        return 0
    kinds = {frame[offset] for offset in tcp_options(frame, transport)}
    return next((kind for kind in (TCP_OPTION_AO, TCP_OPTION_MD5) if kind in kinds), 0)


def tcp_mss_offset(frame: Buffer, transport: Transport) -> int | None:
    """Return the offset of the value in the MSS option of a TCP header, or None without one."""
    for offset in tcp_options(frame, transport):
        if frame[offset] == TCP_OPTION_MSS and frame[offset + 1] == 4:
            return offset + 2
    return None


def tcp_mss(frame: Buffer, transport: Transport) -> int | None:
    """Return the value of the MSS option (RFC 9293, section 3.7.1), or None without one."""
    offset = tcp_mss_offset(frame, transport)
    return None if offset is None else frame[offset] << 8 | frame[offset + 1]
