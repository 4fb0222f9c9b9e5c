"""The virtio-net header that a TAP device with IFF_VNET_HDR puts before every frame.

Fields and constants: virtio 1.2, section 5.1.6, and the kernel's include/uapi/linux/virtio_net.h.
TAP devices use the legacy header of 10 octets in host byte order.
"""

from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer

HEADER = Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""

HEADER_LEN = HEADER.size
FLAG_NEEDS_CSUM = 1
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
"""UDP datagrams of `gso_size` octets each (USO), unlike the fragments of the old type 3."""

GSO_ECN = 0x80
"""Or-ed to a TCP type: the first segment alone carries CWR."""


class Header(NamedTuple):
    """The header's fields by name; `start` and `offset` say where a partial checksum belongs."""

    flags: int
    gso_type: int
    header_len: int
    gso_size: int
    start: int
    offset: int


PLAIN = bytes(HEADER_LEN)
"""A frame that needs nothing done to it."""


def unpack(buffer: Buffer) -> Header:
    """Read the header; `buffer` has at least `HEADER_LEN` octets."""
    return Header(*HEADER.unpack_from(buffer))


def needs_checksum(start: int, offset: int) -> bytes:
    """The receiver is to sum from `start` to the end of the frame and store it `offset` later."""
    return HEADER.pack(FLAG_NEEDS_CSUM, GSO_NONE, 0, 0, start, offset)


def superframe(gso_type: int, header_len: int, gso_size: int, start: int, offset: int) -> bytes:
    """Like `needs_checksum`, for a frame that stands for segments of `gso_size` payload octets."""
    return HEADER.pack(FLAG_NEEDS_CSUM, gso_type, header_len, gso_size, start, offset)


def moved(header: bytes, octets: int) -> bytes:
    """The header of the same superframe with so many octets less before its network layer."""
    if not octets:
        return header
    flags, gso_type, header_len, gso_size, start, offset = HEADER.unpack(header)
    return HEADER.pack(flags, gso_type, header_len - octets, gso_size, start - octets, offset)
