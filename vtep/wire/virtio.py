"""The virtio-net header that a TAP device with IFF_VNET_HDR puts in front of every frame.

Fields and constants follow virtio 1.2, section 5.1.6, and the kernel's
include/uapi/linux/virtio_net.h. A TAP device uses the legacy header of 10 octets in host byte
order.
"""

from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer
from vtep.wire.ip import TCP, UDP

HEADER = Struct("=BBHHHH")
"""The fields of `Header`, in that order."""

HEADER_LEN = HEADER.size
FLAG_NEEDS_CSUM = 1
GSO_NONE = 0
GSO_TCPV4 = 1
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
"""UDP datagrams of `gso_size` octets each (USO). The old type 3 means IP fragments instead."""

GSO_ECN = 0x80
"""Flag added to a TCP type: only the first segment carries CWR."""

GSO_TYPES = {
    (4, TCP): GSO_TCPV4,
    (6, TCP): GSO_TCPV6,
    (4, UDP): GSO_UDP_L4,
    (6, UDP): GSO_UDP_L4,
}
"""The GSO type, without `GSO_ECN`, of each IP version and protocol."""


class Header(NamedTuple):
    """The header's fields with the kernel's names.

    With `FLAG_NEEDS_CSUM` the checksum is partial. The device sums the octets from `csum_start` to
    the end of the frame and stores the result `csum_offset` octets behind `csum_start`.
    """

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int


PLAIN = bytes(HEADER_LEN)
"""The header of a frame that needs no offload."""


def unpack(buffer: Buffer) -> Header:
    """Unpack the header at the start of `buffer`, which has at least `HEADER_LEN` octets."""
    return Header(*HEADER.unpack_from(buffer))


def pack_needs_csum(csum_start: int, csum_offset: int) -> bytes:
    """Pack the header of a frame with a partial checksum."""
    return HEADER.pack(FLAG_NEEDS_CSUM, GSO_NONE, 0, 0, csum_start, csum_offset)


def pack_gso(
    gso_type: int, hdr_len: int, gso_size: int, csum_start: int, csum_offset: int
) -> bytes:
    """Pack the header of a superframe, whose segments have `gso_size` octets of payload each."""
    return HEADER.pack(FLAG_NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start, csum_offset)


def shift(header: bytes, octets: int) -> bytes:
    """Return the header of the same frame, or superframe, behind `octets` more octets of headers.

    `octets` is negative if a VLAN tag was removed.
    """
    if not octets:
        return header
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = HEADER.unpack(header)
    # Fields without a meaning stay as they are: a TAP refuses some headers with stray values.
    if flags & FLAG_NEEDS_CSUM:
        # One that begins within the tag is wrong, and stays so: no offset is negative.
        csum_start = max(0, csum_start + octets)
    if gso_type != GSO_NONE:
        hdr_len = max(0, hdr_len + octets)
    return HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)
