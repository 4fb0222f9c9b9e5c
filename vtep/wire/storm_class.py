"""Classes of frames that are flooded, as storm control distinguishes them.

A few frames that keep a network together have a *reserve* beside the limit of their class:
link-local control protocols such as STP, LACP and LLDP (IEEE 802.1Q, table 8-1), ARP, and neighbour
discovery.
"""

from enum import IntEnum
from typing import Final

from vtep.wire import Buffer
from vtep.wire.ethernet import HEADER_LEN, TAG_LEN, TYPE_8021Q, TYPE_IPV6

TYPE_ARP: Final = 0x0806
MAC_BROADCAST: Final = b"\xff" * 6
MAC_LINK_LOCAL: Final = bytes.fromhex("0180c2000000")
"""The first of the 16 MACs of link-local control protocols."""

ICMPV6: Final = 58
ND_TYPES: Final = range(133, 138)
"""ICMPv6 types of neighbour discovery (RFC 4861, section 4)."""


class StormClass(IntEnum):
    """The classes of frames that have a limit. The values are indices."""

    BROADCAST = 0
    MULTICAST = 1
    UNKNOWN_UNICAST = 2


RESERVE: Final = 3
"""The index of the reserve, behind those of the classes."""


def has_reserve(frame: Buffer) -> bool:
    """Return True if a frame to a group, of at least 14 octets, may use the reserve.

    `fastpath.storm.has_reserve` is the same in compiled code.
    """
    if frame[:5] == MAC_LINK_LOCAL[:5]:
        return frame[5] < 0x10
    at, ethertype = HEADER_LEN, frame[12] << 8 | frame[13]
    if ethertype == TYPE_8021Q and len(frame) >= HEADER_LEN + TAG_LEN:
        at, ethertype = HEADER_LEN + TAG_LEN, frame[16] << 8 | frame[17]
    if ethertype == TYPE_ARP:
        return True
    # MLD, which has an extension header, is left out: a lost report is repeated.
    return (
        ethertype == TYPE_IPV6
        and len(frame) > at + 40
        and frame[at + 6] == ICMPV6
        and frame[at + 40] in ND_TYPES
    )
