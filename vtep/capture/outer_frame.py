"""The outer headers of a captured datagram, written anew.

A UDP socket neither receives nor passes on the outer headers. A capture writes those that the
datagram has, as far as they are known, and fills in the others, so that its readers find a complete
packet.
"""

from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import Final

from attrs import frozen

from vtep.wire import checksum, ethernet
from vtep.wire import ip as inet

TTL: Final = 64
"""The TTL or hop limit where it is not known, as of a datagram that was received."""

_NO_MACS = bytes(2 * ethernet.MAC_LEN)
"""Ethernet addresses, which are not known."""

_LENGTH_MAX = 0xFFFF
_DF = 0x4000
_IPV4 = Struct("!BBHHHBBH4s4s")
_IPV6 = Struct("!IHBB16s16s")
_UDP = Struct("!4H")
_CHECKSUM_AT = 6


@frozen
class DatagramHeader:
    """The fields of the outer headers of a datagram."""

    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    source_port: int
    destination_port: int
    tos: int = 0
    ttl: int = TTL
    flowlabel: int = 0
    df: bool = False
    has_checksum: bool = True


def encode(header: DatagramHeader, payload: bytes) -> bytes:
    """Return an Ethernet frame with the datagram: all lengths and checksums are right.

    Without `has_checksum`, the UDP checksum is zero. A payload that is too long for the length
    fields, which is a superframe with tunnel GSO, has the largest value in them.
    """
    udp_len = min(_LENGTH_MAX, inet.UDP_HEADER_LEN + len(payload))
    udp = bytearray(_UDP.pack(header.source_port, header.destination_port, udp_len, 0))
    source, destination = header.source.packed, header.destination.packed
    if header.has_checksum:
        # The two addresses, the protocol and the length: the pseudo-header of either version.
        pseudo = int.from_bytes(source + destination) + inet.UDP + udp_len
        total = checksum.ones_sum(bytes(udp) + payload) + checksum.fold(pseudo)
        value = checksum.fold(total) ^ 0xFFFF
        # A computed zero is sent as its other form, since zero stands for no checksum (RFC 768).
        udp[_CHECKSUM_AT:] = (value or 0xFFFF).to_bytes(2, "big")
    if header.source.version == 4:
        octets = min(_LENGTH_MAX, inet.IP_HEADER_MIN[4] + udp_len)
        fragment = _DF if header.df else 0
        fields = (0x45, header.tos, octets, 0, fragment, header.ttl, inet.UDP)
        before = _IPV4.pack(*fields, 0, source, destination)
        ip = _IPV4.pack(*fields, checksum.internet_checksum(before), source, destination)
        ethertype = ethernet.TYPE_IPV4
    else:
        word = 6 << 28 | header.tos << 20 | header.flowlabel
        ip = _IPV6.pack(word, udp_len, inet.UDP, header.ttl, source, destination)
        ethertype = ethernet.TYPE_IPV6
    return b"".join((_NO_MACS, ethertype.to_bytes(2, "big"), ip, udp, payload))
