"""Ethernet headers: MAC addresses, EtherTypes and VLAN tags."""

import re
from typing import TypeAlias

from vtep.wire import Buffer

NetworkLayer: TypeAlias = tuple[int, int]
"""The parsed Ethernet header of a frame: EtherType and offset of the network layer.

It travels with the frame, so that a frame is parsed once. It is a plain tuple, since to make a
named one takes longer than to parse the header.
"""

HEADER_LEN = 14
"""Octets of destination, source and EtherType. A shorter frame is a runt."""

TAG_LEN = 4
MAC_LEN = 6
MAC_ZERO = bytes(MAC_LEN)

TYPE_IPV4 = 0x0800
TYPE_IPV6 = 0x86DD
TYPE_8021Q = 0x8100
TYPE_8021AD = 0x88A8

_TAGS = (TYPE_8021Q, TYPE_8021AD)
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")


def parse_mac(text: str) -> bytes:
    """Parse a MAC address written as `02:00:00:00:00:01` or `02-00-00-00-00-01`.

    Returns: the 6 octets of the address.

    Raises: ValueError if `text` has another format.
    """
    if not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address such as 02:00:00:00:00:01")
    return bytes.fromhex(text.replace("-", "").replace(":", ""))


def format_mac(mac: Buffer) -> str:
    """Format a MAC address as `ip link` does: lower case, with colons."""
    return bytes(mac).hex(":")


def is_group(mac: Buffer) -> bool:
    """Return True if a MAC address is multicast or broadcast (the I/G bit of IEEE 802).

    `mac` has at least one octet; only the first is used.
    """
    return mac[0] & 1 == 1


def network_layer(frame: Buffer) -> NetworkLayer:
    """Find the network layer behind any number of VLAN tags.

    `frame` has at least `HEADER_LEN` octets.

    Returns: the EtherType after the last tag, and the offset of the first octet after it. The
    EtherType is 0, which no protocol uses, if the frame ends within its tags.
    """
    offset = HEADER_LEN
    ethertype = frame[12] << 8 | frame[13]
    while ethertype in _TAGS:
        if offset + TAG_LEN > len(frame):
            return 0, offset
        ethertype = frame[offset + 2] << 8 | frame[offset + 3]
        offset += TAG_LEN
    return ethertype, offset


def is_tagged(frame: Buffer) -> bool:
    """Return True if a frame of at least `HEADER_LEN` octets has a VLAN tag."""
    return (frame[12] << 8 | frame[13]) in _TAGS


VLAN_MASK = 0x0FFF
"""The bits of a tag's second half that are the VLAN ID; above them are DEI and priority."""


def pack_tag(vlan: int, *, priority: int = 0) -> bytes:
    """Pack an 802.1Q tag; the upper three bits of the 4-bit `priority` are the PCP, then DEI."""
    return (TYPE_8021Q << 16 | priority << 12 | vlan).to_bytes(TAG_LEN, "big")


def untag(frame: memoryview) -> memoryview:
    """Remove all VLAN tags from a frame of at least `HEADER_LEN` octets.

    Returns: a view of the end of `frame`, shorter by the tags. A frame that ends within its tags is
    returned as it is.

    Side effects: the MAC addresses move to just before the remaining EtherType and overwrite the
    tags. To move 12 octets is cheaper than to move the payload.
    """
    ethertype, offset = network_layer(frame)
    tags = offset - HEADER_LEN
    if tags and ethertype:
        frame[tags : tags + 2 * MAC_LEN] = bytes(frame[: 2 * MAC_LEN])
    return frame[tags:] if ethertype else frame
