"""ARP packets, compared with scapy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from tests.unit.craft import HOSTILE, MAC_A, MAC_B, V4_A, V4_B, mac
from vtep.wire import arp

FIELDS = st.builds(
    arp.Arp,
    st.integers(0, 0xFFFF),
    st.binary(min_size=6, max_size=6),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=6, max_size=6),
    st.binary(min_size=4, max_size=4),
)


def test_parse_request() -> None:
    packet = bytes(ARP(hwsrc=MAC_A, psrc=V4_A, hwdst=MAC_B, pdst=V4_B))
    assert arp.parse(packet, 0) == arp.Arp(
        arp.REQUEST, mac(MAC_A), bytes((10, 1, 0, 1)), mac(MAC_B), bytes((10, 1, 0, 2))
    )


@given(FIELDS, st.binary(max_size=20), st.binary(max_size=20))
def test_round_trip(packet: arp.Arp, prefix: bytes, padding: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        frame = kind(bytearray(prefix + arp.pack(packet) + padding))
        assert arp.parse(frame, len(prefix)) == packet


@given(FIELDS)
def test_scapy_parses_packed(packet: arp.Arp) -> None:
    parsed = ARP(arp.pack(packet))
    assert (parsed.hwtype, parsed.ptype, parsed.hwlen, parsed.plen) == (1, 0x0800, 6, 4)
    assert parsed.op == packet.operation
    assert (mac(parsed.hwsrc), mac(parsed.hwdst)) == (packet.sender_mac, packet.target_mac)
    assert bytes(map(int, parsed.psrc.split("."))) == packet.sender
    assert bytes(map(int, parsed.pdst.split("."))) == packet.target


@pytest.mark.parametrize(
    ("field", "value"), [("hwtype", 6), ("ptype", 0x86DD), ("hwlen", 8), ("plen", 16)]
)
def test_other_address_types_are_rejected(field: str, value: int) -> None:
    packet = bytearray(bytes(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B)))
    at, width = {"hwtype": (0, 2), "ptype": (2, 2), "hwlen": (4, 1), "plen": (5, 1)}[field]
    packet[at : at + width] = value.to_bytes(width, "big")
    assert arp.parse(packet, 0) is None


def test_truncated(subtests: pytest.Subtests) -> None:
    for length in range(28):
        with subtests.test(length=length):
            packet = bytes(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B))
            assert len(packet) == 28
            assert arp.parse(packet[:length], 0) is None


@given(HOSTILE, st.integers(0, 200))
def test_arbitrary_octets(frame: bytes, at: int) -> None:
    packet = arp.parse(frame, at)
    if packet is not None:
        assert arp.pack(packet) == frame[at : at + 28]
