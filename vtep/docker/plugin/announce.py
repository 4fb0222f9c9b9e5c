"""Announcements of a new container's addresses, for the neighbor caches of all others.

A container that is created anew has another MAC. Neighbors that know its address send to the old
MAC until they find it unreachable, which takes Linux up to half a minute.
"""

import logging
import socket
from collections.abc import Iterable
from ipaddress import ip_interface

from vtep.wire import arp, ethernet, nd
from vtep.wire.address import Address
from vtep.wire.ethernet import parse_mac

log = logging.getLogger("vtep")

_ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")
"""The multicast address of all nodes on the link (RFC 4291, section 2.7.1)."""


def build_announcement(mac: bytes, address: Address) -> bytes:
    """Build a frame that announces the MAC of an address.

    It is an ARP announcement (RFC 5227, section 2.3), or an unsolicited neighbor advertisement
    (RFC 4861, section 7.2.6).
    """
    if address.version == 4:
        packed = address.packed
        packet = arp.pack(arp.Arp(arp.REQUEST, mac, packed, ethernet.MAC_ZERO, packed))
        return b"\xff" * ethernet.MAC_LEN + mac + arp.TYPE.to_bytes(2) + packet
    message = nd.NdMessage(
        *(nd.ADVERTISEMENT, 0, address.packed, _ALL_NODES, nd.FLAG_OVERRIDE, address.packed),
        link_address=mac,
    )
    # RFC 2464, section 7: the MAC of a multicast group.
    group = b"\x33\x33" + _ALL_NODES[-4:]
    return group + mac + ethernet.TYPE_IPV6.to_bytes(2) + nd.pack(message)


def announce(bridge: str, mac: str, addresses: Iterable[str]) -> None:
    """Send announcements for addresses with prefix lengths to all ports of a bridge.

    Failures are logged only: neighbors then find the new MAC later.
    """
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind((bridge, 0))
            for text in addresses:
                sender.send(build_announcement(parse_mac(mac), ip_interface(text).ip))
    except OSError as error:
        log.debug("cannot announce %s on %s: %s", mac, bridge, error)
