"""The VXLAN header (RFC 7348, section 5).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-----------------------------------------------+
    |R|R|R|R|I|R|R|R|            Reserved                           |
    +-+-+-+-+-+-+-+-+-------------------------------+---------------+
    |                VXLAN Network Identifier (VNI) |   Reserved    |
    +-----------------------------------------------+---------------+
"""

from struct import Struct

PORT = 4789
"""The UDP destination port that IANA assigned (RFC 7348, section 5)."""

SOURCE_PORTS = range(49152, 65536)
"""Where source ports should come from (RFC 7348, section 5): the dynamic range of RFC 6335."""

VNI_MAX = (1 << 24) - 1

HEADER = Struct("!II")
"""The header as two words: flags and reserved bits, then VNI and reserved bits."""

HEADER_LEN = HEADER.size
FLAG_I = 0x0800_0000
"""In the first word: the VNI is valid."""

OVERHEAD_V4 = 20 + 8 + HEADER_LEN + 14
"""Octets between an IPv4 underlay's MTU and the MTU inside: IPv4, UDP, VXLAN, inner Ethernet."""

OVERHEAD_V6 = 40 + 8 + HEADER_LEN + 14
"""The same over an IPv6 underlay."""


def pack(vni: int) -> bytes:
    """The 8 octets that go in front of every frame of `vni` (0 to `VNI_MAX`)."""
    return HEADER.pack(FLAG_I, vni << 8)
