"""Ethernet addresses, and the way past VLAN tags to the network layer."""

import re

from vtep.wire import Buffer

HEADER_LEN = 14
"""Destination, source, EtherType: a frame shorter than this is a runt, without its FCS."""

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
    """Read a MAC as people write it, `02:00:00:00:00:01` or with hyphens.

    Raises ValueError where `text` is anything else.
    """
    if not _MAC.fullmatch(text):
        raise ValueError(f"{text!r} is not a MAC address such as 02:00:00:00:00:01")
    return bytes.fromhex(text.replace("-", "").replace(":", ""))


def format_mac(mac: Buffer) -> str:
    """Write a MAC as `ip link` does."""
    return bytes(mac).hex(":")


def is_group(mac: Buffer) -> bool:
    """Whether a MAC of 6 octets is multicast or broadcast (IEEE 802: the I/G bit)."""
    return mac[0] & 1 == 1


def network_layer(frame: Buffer) -> tuple[int, int]:
    """The EtherType behind any VLAN tags, and the offset of what follows it.

    `frame` has at least `HEADER_LEN` octets. A frame that ends inside its tags gives the
    EtherType 0, which no protocol has.
    """
    at = HEADER_LEN
    ethertype = frame[12] << 8 | frame[13]
    while ethertype in _TAGS:
        if at + TAG_LEN > len(frame):
            return 0, at
        ethertype = frame[at + 2] << 8 | frame[at + 3]
        at += TAG_LEN
    return ethertype, at


def is_tagged(frame: Buffer) -> bool:
    """Whether a frame of at least `HEADER_LEN` octets has a VLAN tag."""
    return (frame[12] << 8 | frame[13]) in _TAGS


def untag(frame: memoryview) -> memoryview:
    """Take all VLAN tags off a frame of at least `HEADER_LEN` octets; gives what is left of it.

    The addresses are moved to where the tags were, so the rest ends where the frame ended, and is
    the shorter. A frame that ends inside its tags is left as it is.
    """
    ethertype, at = network_layer(frame)
    tags = at - HEADER_LEN
    if tags and ethertype:
        frame[tags : tags + 2 * MAC_LEN] = bytes(frame[: 2 * MAC_LEN])
    return frame[tags:] if ethertype else frame
