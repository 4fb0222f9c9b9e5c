"""Frames of address conflict detection: probes, defenses, and a filter for both. No I/O."""

from struct import Struct

from vtep.wire import arp, ethernet, nd
from vtep.wire.address import Address

_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
"""The multicast address of all nodes on the link (RFC 4291, section 2.7.1)."""

_INSTRUCTION = Struct("=HBBI")
"""struct sock_filter of `linux/filter.h`: code, jump if true, jump if false, operand."""

FILTER = b"".join(
    _INSTRUCTION.pack(*instruction)
    for instruction in (
        (0x28, 0, 0, 12),  # ldh [12]: EtherType
        (0x15, 6, 0, arp.TYPE),  # jeq ARP, accept
        (0x15, 0, 6, ethernet.TYPE_IPV6),  # jne IPv6, drop
        (0x30, 0, 0, 20),  # ldb [20]: next header
        (0x15, 0, 4, 58),  # jne ICMPv6, drop
        (0x30, 0, 0, 54),  # ldb [54]: ICMPv6 type
        (0x15, 1, 0, nd.SOLICITATION),  # jeq solicitation, accept
        (0x15, 0, 1, nd.ADVERTISEMENT),  # jne advertisement, drop
        (0x06, 0, 0, 0xFFFF),  # accept: ret 65535
        (0x06, 0, 0, 0),  # drop: ret 0
    )
)
"""A classic BPF program that accepts ARP, neighbor solicitations and neighbor advertisements.

A packet socket gets all frames that a bridge delivers to its host; the gateway's are the traffic of
all containers with the outside.
"""


def build_probe(mac: bytes, address: Address) -> bytes:
    """Build a probe for an address, to which answers are sent to `mac`, or to all nodes.

    It is an ARP probe (RFC 5227, section 2.1.1), or a solicitation by duplicate address detection
    (RFC 4862, section 5.4.2).
    """
    if address.version == 6:
        group = nd.solicited_node(address.packed)
        message = nd.NdMessage(
            nd.SOLICITATION, 0, nd.UNSPECIFIED, group, 0, address.packed, link_address=None
        )
        return _multicast(group) + mac + _TYPE_IPV6 + nd.pack(message)
    packet = arp.Arp(arp.REQUEST, mac, arp.UNSPECIFIED, ethernet.MAC_ZERO, address.packed)
    return b"\xff" * ethernet.MAC_LEN + mac + _TYPE_ARP + arp.pack(packet)


def build_defense(mac: bytes, address: Address, prober: bytes) -> bytes:
    """Build the answer to a probe from the MAC `prober` for an address of a container.

    `mac` is the MAC of the container: the address then has the right MAC in all neighbor caches,
    and VTEPs learn where the MAC is.
    """
    if address.version == 6:
        # To all nodes and without the solicited flag, since the prober has no address yet (RFC
        # 4861, section 7.2.4). Without the override flag: the container itself may know better.
        message = nd.NdMessage(
            nd.ADVERTISEMENT, 0, address.packed, _ALL_NODES, 0, address.packed, link_address=mac
        )
        return _multicast(_ALL_NODES) + mac + _TYPE_IPV6 + nd.pack(message)
    packet = arp.Arp(arp.REPLY, mac, address.packed, prober, arp.UNSPECIFIED)
    return prober + mac + _TYPE_ARP + arp.pack(packet)


_TYPE_ARP = arp.TYPE.to_bytes(2)
_TYPE_IPV6 = ethernet.TYPE_IPV6.to_bytes(2)


def _multicast(group: bytes) -> bytes:
    """Return the MAC of an IPv6 multicast group (RFC 2464, section 7)."""
    return b"\x33\x33" + group[-4:]
