"""The legacy virtio-net header, field by field."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.craft import parse_virtio
from vtep.wire import virtio

U16 = st.integers(0, 0xFFFF)


def test_plain_requests_no_offload() -> None:
    assert parse_virtio(virtio.PLAIN) == (0, 0, 0, 0, 0, 0)
    assert virtio.HEADER_LEN == 10


def test_kernel_constants() -> None:
    # include/uapi/linux/virtio_net.h
    assert virtio.FLAG_NEEDS_CSUM == 1
    assert (virtio.GSO_NONE, virtio.GSO_TCPV4, virtio.GSO_TCPV6) == (0, 1, 4)
    assert virtio.GSO_ECN == 0x80


@given(U16, U16)
def test_pack_needs_csum(start: int, offset: int) -> None:
    assert parse_virtio(virtio.pack_needs_csum(start, offset)) == (1, 0, 0, 0, start, offset)


@given(st.sampled_from([1, 4, 0x81, 0x84]), U16, U16, U16, U16)
def test_pack_gso(kind: int, header_len: int, size: int, start: int, offset: int) -> None:
    header = virtio.pack_gso(kind, header_len, size, start, offset)
    assert parse_virtio(header) == (1, kind, header_len, size, start, offset)


def test_host_byte_order() -> None:
    assert virtio.pack_needs_csum(0x0102, 0x0304)[6:] == struct.pack("@HH", 0x0102, 0x0304)
