"""ARP for IPv4 over Ethernet (RFC 826): the fields that a proxy needs to answer a request."""

from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer

TYPE = 0x0806
"""EtherType of ARP."""

REQUEST = 1
REPLY = 2

UNSPECIFIED = bytes(4)
"""The address 0.0.0.0, which a probe has as its sender (RFC 5227, section 2.1.1)."""

_PACKET = Struct("!HHBBH6s4s6s4s")
_ETHERNET_IPV4 = (1, 0x0800, 6, 4)
"""Hardware type, protocol type, and the length of one address of each, in octets."""


class Arp(NamedTuple):
    """An ARP packet for IPv4 over Ethernet; `sender` and `target` are IPv4 addresses."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def parse(frame: Buffer, offset: int) -> Arp | None:
    """Parse the ARP packet at `offset` of a frame.

    Returns: None if the packet is truncated or is not ARP for IPv4 over Ethernet.
    """
    if len(frame) < offset + _PACKET.size:
        return None
    *kind, operation, sender_mac, sender, target_mac, target = _PACKET.unpack_from(frame, offset)
    if tuple(kind) != _ETHERNET_IPV4:
        return None
    return Arp(operation, sender_mac, sender, target_mac, target)


def pack(arp: Arp) -> bytes:
    """Pack an ARP packet of 28 octets, without an Ethernet header."""
    return _PACKET.pack(*_ETHERNET_IPV4, *arp)
