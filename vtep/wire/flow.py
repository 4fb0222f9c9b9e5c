"""The flow hash from which the outer source port comes (RFC 7348, section 5), and what is alike.

Frames of one inner flow hash alike, so an underlay that balances by 5-tuple keeps their order;
different flows spread over its paths. Most follow others of their flow that differ from them in
nothing that decides what is done with them: to tell those is cheaper than to decide again.
"""

from struct import Struct
from zlib import crc32

from vtep.wire import Buffer
from vtep.wire.ethernet import HEADER_LEN, TYPE_IPV4, TYPE_IPV6, network_layer

_TCP = 6
_UDP = 17
_SYN = 0x02
_PORTED = frozenset((_TCP, _UDP, 33, 132, 136))
"""Protocols that open with source and destination port: TCP, UDP, DCCP, SCTP, UDP-Lite."""


def flow_hash(frame: Buffer) -> int:
    """Hash addresses, protocol and ports of an Ethernet frame of at least 14 octets to 32 bits.

    Ports are left out where they can't be had from every packet of the flow (fragments), and
    behind IPv6 extension headers; what is not IP is hashed by its MACs and EtherType. CRC-32
    because it is in C in the standard library and is the same in every process.
    """
    ethertype, at = network_layer(frame)
    if ethertype == TYPE_IPV4 and at + 20 <= len(frame):
        protocol = frame[at + 9]
        key = crc32(frame[at + 12 : at + 20], protocol)
        if protocol in _PORTED and not (frame[at + 6] & 0x3F or frame[at + 7]):
            offset = at + (frame[at] & 0x0F) * 4
            key = crc32(frame[offset : offset + 4], key)
        return key
    if ethertype == TYPE_IPV6 and at + 40 <= len(frame):
        protocol = frame[at + 6]
        # Addresses and, directly behind the fixed header, ports are one slice.
        return crc32(frame[at + 8 : at + (44 if protocol in _PORTED else 40)], protocol)
    return crc32(frame[:HEADER_LEN])


# The last octet of those of TCP has its flags.
_UDP_V4 = Struct("16s4x4s2x12s")
_TCP_V4 = Struct("16s4x4s2x12s8x2s")
_UDP_V6 = Struct("18s2x38s")
_TCP_V6 = Struct("18s2x38s8x2s")
_SUPERFRAME_V4 = Struct("18s2x4s2x12s8x2s2x2s")
_SUPERFRAME_V6 = Struct("58s8x2s2x2s")


def likeness(frame: Buffer) -> Struct | None:
    """What tells, of frames as long as this one of at least 14 octets, those that are like it.

    They are where it unpacks the same: MACs, what an IP header has besides length, identification
    and checksum, ports, and in TCP the data offset and the flags. So `flow_hash`, the envelope
    (`wire.envelope`) and the destination of one are those of the others. None where that is not so
    simple: of all but untagged UDP, and TCP that opens no connection, in one piece, without IPv4
    options or IPv6 extension headers.
    """
    if frame[12:15] == b"\x08\x00\x45" and len(frame) >= _UDP_V4.size:
        if frame[20] & 0x3F or frame[21]:
            return None
        protocol, udp, tcp = frame[23], _UDP_V4, _TCP_V4
    elif frame[12:14] == b"\x86\xdd" and len(frame) >= _UDP_V6.size:
        protocol, udp, tcp = frame[20], _UDP_V6, _TCP_V6
    else:
        return None
    if protocol == _UDP:
        return udp
    if protocol == _TCP and len(frame) >= tcp.size and not frame[tcp.size - 1] & _SYN:
        return tcp
    return None


def superframe_likeness(frame: Buffer) -> Struct | None:
    """The same for superframes of TCP: what is alike has to be done alike, whole.

    Here lengths and TCP's checksum are among what is compared, which in a superframe is that of the
    pseudo-header. It is left to who asks that it is a superframe. None for other protocols, tags,
    fragments, IPv4 options, IPv6 extension headers and padding.
    """
    octets = len(frame) - HEADER_LEN
    if frame[12:15] == b"\x08\x00\x45" and len(frame) >= _SUPERFRAME_V4.size:
        fragment = frame[20] & 0x3F or frame[21]
        plain = frame[23] == _TCP and not fragment
        return _SUPERFRAME_V4 if plain and frame[16] << 8 | frame[17] == octets else None
    if frame[12:14] == b"\x86\xdd" and len(frame) >= _SUPERFRAME_V6.size:
        whole = (frame[18] << 8 | frame[19]) + 40 == octets
        return _SUPERFRAME_V6 if whole and frame[20] == _TCP else None
    return None
