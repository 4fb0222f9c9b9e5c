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

PORT = 4789
"""The UDP destination port that IANA assigned (RFC 7348, section 5)."""

SOURCE_PORTS = range(49152, 65536)
"""Where source ports should come from (RFC 7348, section 5): the dynamic range of RFC 6335."""

VNI_AT = 4
"""Where the three octets of the VNI are in the header."""

VNI_MAX = (1 << 24) - 1

HEADER = Struct("!II")
"""The header as two words: flags and reserved bits, then VNI and reserved bits."""

HEADER_LEN = HEADER.size
FLAG_I = 0x0800_0000
"""In the first word: the VNI is valid."""

FLAG_G = 0x8000_0000
"""In the first word, with the group policy extension: there is a group id."""

FLAG_D = 0x0040_0000
"""The same: don't learn from this frame."""

FLAG_A = 0x0008_0000
"""The same: the policy for the group has been applied before."""

GPE_BITS = 0x3700_0000
"""In the first word, with the Generic Protocol Extension (draft-ietf-nvo3-vxlan-gpe-12, section 3):
version, P (there is a next protocol), B (BUM traffic) and O (OAM). RFC 7348 reserves them."""

GROUP_MAX = 0xFFFF
"""The group id, and where it is in the first word."""

GBP_BITS = (FLAG_G | 0x00FF_FFFF) << 32
"""What the kernel driver leaves to the extension of the header's 64 bits: more than it has uses
for."""

OVERHEAD_V4 = 20 + 8 + HEADER_LEN + 14
"""Octets between an IPv4 underlay's MTU and the MTU inside: IPv4, UDP, VXLAN, inner Ethernet."""

OVERHEAD_V6 = 40 + 8 + HEADER_LEN + 14
"""The same over an IPv6 underlay."""


def pack(vni: int, group: int = 0) -> bytes:
    """The 8 octets that go in front of every frame of `vni` (0 to `VNI_MAX`).

    A `group` (up to `GROUP_MAX`) other than 0 is told with the group policy extension.
    """
    return HEADER.pack(FLAG_I | (FLAG_G | group if group else 0), vni << 8)
