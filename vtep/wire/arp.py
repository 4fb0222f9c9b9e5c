"""ARP for IPv4 over Ethernet (RFC 826), as far as it takes to answer a request."""

from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer

TYPE = 0x0806
REQUEST = 1
REPLY = 2

_PACKET = Struct("!HHBBH6s4s6s4s")
_ETHERNET_IPV4 = (1, 0x0800, 6, 4)


class Arp(NamedTuple):
    """Who says it (or asks) with which MAC and address, and of whom."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def parse(frame: Buffer, at: int) -> Arp | None:
    """Read the packet that begins `at` octets into a frame; None if it is not one of these."""
    if len(frame) < at + _PACKET.size:
        return None
    *kind, operation, sender_mac, sender, target_mac, target = _PACKET.unpack_from(frame, at)
    if tuple(kind) != _ETHERNET_IPV4:
        return None
    return Arp(operation, sender_mac, sender, target_mac, target)


def pack(arp: Arp) -> bytes:
    """The packet, without an Ethernet header."""
    return _PACKET.pack(*_ETHERNET_IPV4, *arp)
