"""The flow hash from which the outer source port comes (RFC 7348, section 5).

Frames of one inner flow hash alike, so an underlay that balances by 5-tuple keeps their order;
different flows spread over its paths.
"""

from zlib import crc32

from vtep.wire import Buffer
from vtep.wire.ethernet import HEADER_LEN, TYPE_IPV4, TYPE_IPV6, network_layer

_PORTED = frozenset((6, 17, 33, 132, 136))
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
