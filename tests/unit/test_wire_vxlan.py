"""The VXLAN header, compared with scapy and RFC 7348."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from vtep.wire import vxlan

VNIS = st.integers(0, vxlan.VNI_MAX)


@pytest.mark.parametrize(
    ("vni", "octets"),
    [
        (0, "0800000000000000"),
        (1, "0800000000000100"),
        (0x123456, "0800000012345600"),
        (0xFFFFFF, "08000000ffffff00"),
    ],
)
def test_header_octets(vni: int, octets: str) -> None:
    assert vxlan.pack(vni).hex() == octets


@given(VNIS)
def test_header_equals_scapy(vni: int) -> None:
    assert vxlan.pack(vni) == bytes(VXLAN(flags="Instance", vni=vni))


@given(VNIS)
def test_scapy_parses_vni(vni: int) -> None:
    parsed = VXLAN(vxlan.pack(vni))
    assert (parsed.vni, str(parsed.flags)) == (vni, "Instance")


@given(VNIS)
def test_reserved_bits_are_zero(vni: int) -> None:
    first, second = struct.unpack("!II", vxlan.pack(vni))
    assert (first, second & 0xFF) == (1 << 27, 0)


def test_rfc_constants() -> None:
    assert vxlan.PORT == 4789
    assert vxlan.HEADER_LEN == 8
    assert vxlan.FLAG_I == 1 << 27
    assert vxlan.VNI_MAX == 16_777_215
    assert (vxlan.SOURCE_PORTS[0], vxlan.SOURCE_PORTS[-1]) == (49152, 65535)


@pytest.mark.parametrize(
    ("network", "overhead"),
    [
        pytest.param(IP(src="192.0.2.1", dst="192.0.2.2"), vxlan.OVERHEAD[4], id="v4"),
        pytest.param(IPv6(src="2001:db8::1", dst="2001:db8::2"), vxlan.OVERHEAD[6], id="v6"),
    ],
)
def test_overhead(network: IP | IPv6, overhead: int) -> None:
    inner = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5)
    assert len(network / UDP() / VXLAN(flags="Instance") / inner) == overhead
    assert overhead in (50, 70)
