"""The Internet checksum, compared with the loop of RFC 1071 and with scapy."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.utils import checksum as scapy_checksum

from tests.unit.craft import VALID, loop_sum
from vtep.wire import checksum


@pytest.mark.parametrize("octet", [0x00, 0x01, 0x80, 0xFF])
def test_sum_of_one_repeated_octet_at_every_length(octet: int) -> None:
    for length in range(301):
        data = bytes([octet]) * length
        assert checksum.ones_sum(data) == loop_sum(data), length


def test_sum_of_random_octets_at_every_length() -> None:
    source = random.Random(1071)
    for length in [*range(301), 1499, 1500, 9001, 65506, 65507]:
        data = source.randbytes(length)
        assert checksum.ones_sum(data) == loop_sum(data), length
        assert checksum.internet_checksum(data) == scapy_checksum(data), length


@given(st.binary(max_size=300))
def test_sum_of_random_data(data: bytes) -> None:
    assert checksum.ones_sum(data) == loop_sum(data)


@given(st.lists(st.sampled_from([0x0000, 0xFFFF, 0x8000, 0x7FFF, 0x0001, 0xFFFE]), max_size=12))
def test_sum_near_the_two_zeros(words: list[int]) -> None:
    # 0 and 0xFFFF are the same number in one's complement, but differ when fields are compared.
    data = b"".join(word.to_bytes(2, "big") for word in words)
    assert checksum.ones_sum(data) == loop_sum(data)


@pytest.mark.parametrize(
    ("total", "folded"),
    [(0, 0), (1, 1), (0xFFFE, 0xFFFE), (0xFFFF, 0xFFFF), (0x10000, 1), (0x1FFFE, 0xFFFF)],
)
def test_fold(total: int, folded: int) -> None:
    assert checksum.fold(total) == folded


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_sum_of_any_buffer(kind: type) -> None:
    data = bytes(range(255))
    assert checksum.ones_sum(kind(data)) == loop_sum(data)


@given(st.binary(max_size=100).filter(lambda data: len(data) % 2 == 0))
def test_data_with_its_checksum_sums_to_all_ones(data: bytes) -> None:
    field = checksum.internet_checksum(data).to_bytes(2, "big")
    assert checksum.ones_sum(data + field) == 0xFFFF


def test_checksum_of_an_ipv4_header() -> None:
    header = bytearray(bytes(Ether(VALID["udp4"])[IP])[:20])
    field, header[10:12] = bytes(header[10:12]), bytes(2)
    assert checksum.internet_checksum(header) == int.from_bytes(field, "big")


def test_rfc_1071_example() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.ones_sum(data) == 0xDDF2
    assert checksum.internet_checksum(data) == 0x220D
