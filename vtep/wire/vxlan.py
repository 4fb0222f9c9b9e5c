"""The VXLAN header (RFC 7348, section 5).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-----------------------------------------------+
    |R|R|R|R|I|R|R|R|            Reserved                           |
    +-+-+-+-+-+-+-+-+-------------------------------+---------------+
    |                VXLAN Network Identifier (VNI) |   Reserved    |
    +-----------------------------------------------+---------------+

With the group policy extension (draft-smith-vxlan-group-policy-05, section 2.1) the first word is::

    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-------------------------------+
    |G|R|R|R|I|R|R|R|R|D|R|R|A|R|R|R|        Group Policy ID        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-------------------------------+
"""

from struct import Struct

from vtep.wire import ethernet
from vtep.wire.ip import UDP_IP_HEADERS_LEN

PORT = 4789
"""The UDP destination port that IANA assigned (RFC 7348, section 5)."""

SOURCE_PORTS = range(49152, 65536)
"""Recommended UDP source ports (RFC 7348, section 5): the dynamic range of RFC 6335."""

VNI_OFFSET = 4
"""Offset of the three octets of the VNI in the header."""

VNI_MAX = (1 << 24) - 1

HEADER = Struct("!II")
"""The header as two words: flags and reserved bits, then VNI and reserved bits."""

HEADER_LEN = HEADER.size
FLAG_I = 0x0800_0000
"""Bit of the first word: the VNI is valid."""

FLAG_G = 0x8000_0000
"""Bit of the first word with the group policy extension: the group policy ID is valid."""

FLAG_D = 0x0040_0000
"""Bit of the first word with the group policy extension: do not learn from this frame."""

FLAG_A = 0x0008_0000
"""Bit of the first word with the group policy extension: the group policy is already applied."""

GPE_BITS = 0x3700_0000
"""In the first word, with the Generic Protocol Extension (draft-ietf-nvo3-vxlan-gpe-12, section 3):
version, P (there is a next protocol), B (BUM traffic) and O (OAM). RFC 7348 reserves them."""

GROUP_MAX = 0xFFFF
"""The largest group policy ID, and its mask in the first word."""

GBP_USED_BITS = (FLAG_G | 0x00FF_FFFF) << 32
"""Mask of the bits of the 64-bit header that belong to the group policy extension.

The kernel driver reserves the same bits, more than the draft defines (VXLAN_GBP_USED_BITS in the
kernel's include/net/vxlan.h).
"""

OVERHEAD = {
    version: octets + HEADER_LEN + ethernet.HEADER_LEN
    for version, octets in UDP_IP_HEADERS_LEN.items()
}
"""Octets by which the MTU of the tunnel is below that of the underlay, by IP version: the outer IP,
UDP and VXLAN headers, and the inner Ethernet header (50 and 70)."""


def pack(vni: int, group: int = 0) -> bytes:
    """Pack the header of 8 octets for `vni` (0 to `VNI_MAX`).

    A `group` from 1 to `GROUP_MAX` adds the group policy extension with that ID.
    """
    # The VNI fills the upper three octets of the second word; the reserved octet below is 0.
    return HEADER.pack(FLAG_I | (FLAG_G | group if group else 0), vni << 8)
