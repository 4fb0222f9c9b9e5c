"""Neighbor discovery messages, compared with scapy, and every validity rule of RFC 4861."""

from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.packet import Packet
from scapy.utils6 import in6_getnsma

from tests.unit.craft import HOSTILE, MAC_A, MAC_B, V6_A, V6_B, hop, ip6, mac
from vtep.wire import nd

GROUP_B = "ff02::1:ff00:2"  # The solicited-node group of V6_B.


def packed(address: str) -> bytes:
    return IPv6Address(address).packed


A, B = packed(V6_A), packed(V6_B)


def solicitation(*options: Packet, src: str = V6_A, dst: str = GROUP_B, **ip: Any) -> Packet:
    packet = IPv6(src=src, dst=dst, **{"hlim": 255, **ip}) / ICMPv6ND_NS(tgt=V6_B)
    for option in options:
        packet /= option
    return packet


def advertisement(
    *options: Packet, dst: str = V6_A, router: int = 0, solicited: int = 1, override: int = 1
) -> Packet:
    body = ICMPv6ND_NA(tgt=V6_B, R=router, S=solicited, O=override)
    packet = IPv6(src=V6_B, dst=dst, hlim=255) / body
    for option in options:
        packet /= option
    return packet


SOURCE = ICMPv6NDOptSrcLLAddr(lladdr=MAC_A)
TARGET = ICMPv6NDOptDstLLAddr(lladdr=MAC_B)


def test_solicitation() -> None:
    assert nd.parse(bytes(solicitation(SOURCE)), 0) == nd.NdMessage(
        nd.SOLICITATION, 0, A, packed(GROUP_B), 0, B, mac(MAC_A)
    )


def test_advertisement() -> None:
    flags = nd.FLAG_ROUTER | nd.FLAG_SOLICITED
    packet = advertisement(TARGET, router=1, override=0)
    assert nd.parse(bytes(packet), 0) == nd.NdMessage(
        nd.ADVERTISEMENT, 0, B, A, flags, B, mac(MAC_B)
    )


@pytest.mark.parametrize(
    ("packet", "address"),
    [
        pytest.param(solicitation(), None, id="no option"),
        pytest.param(solicitation(TARGET), None, id="the other option"),
        pytest.param(solicitation(ICMPv6NDOptMTU(), SOURCE), MAC_A, id="behind another"),
        pytest.param(solicitation(SOURCE, ICMPv6NDOptSrcLLAddr(lladdr=MAC_B)), MAC_A, id="two"),
        pytest.param(solicitation(src="::"), None, id="duplicate address detection"),
        pytest.param(solicitation(SOURCE, dst=V6_B), MAC_A, id="unicast"),
        pytest.param(advertisement(), None, id="bare advertisement"),
        pytest.param(advertisement(TARGET, dst="ff02::1", solicited=0), MAC_B, id="to all"),
    ],
)
def test_link_address(packet: Packet, address: str | None) -> None:
    message = nd.parse(bytes(packet), 0)
    assert message is not None
    assert message.link_address == (mac(address) if address else None)


def with_checksum(change: Callable[[bytearray], None], packet: bytes) -> bytes:
    """Return the packet after `change`, with its checksum corrected."""
    octets = bytearray(packet)
    change(octets)
    octets[42:44] = b"\0\0"
    total = nd._sum(bytes(octets[8:24]), bytes(octets[24:40]), octets[40:]) ^ 0xFFFF
    octets[42:44] = total.to_bytes(2, "big")
    return bytes(octets)


def put(at: int, value: int) -> Callable[[bytearray], None]:
    def change(octets: bytearray) -> None:
        octets[at] = value

    return change


def test_with_checksum_keeps_a_packet_valid() -> None:
    assert nd.parse(with_checksum(put(47, 0), bytes(solicitation(SOURCE))), 0) is not None


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(bytes(solicitation(SOURCE, hlim=254)), id="routed"),
        pytest.param(with_checksum(put(41, 1), bytes(solicitation(SOURCE))), id="code"),
        pytest.param(bytes(solicitation(SOURCE))[:-1] + b"\1", id="checksum"),
        pytest.param(
            with_checksum(put(48, 0xFF), bytes(solicitation(SOURCE))), id="multicast target"
        ),
        pytest.param(with_checksum(put(65, 0), bytes(solicitation(SOURCE))), id="empty option"),
        pytest.param(with_checksum(put(65, 2), bytes(solicitation(SOURCE))), id="overlong option"),
        pytest.param(bytes(solicitation(SOURCE, src="::")), id="option from unspecified"),
        pytest.param(bytes(solicitation(src="::", dst=V6_B)), id="unspecified to one host"),
        pytest.param(bytes(solicitation(src="::", dst="ff02::1")), id="unspecified to all hosts"),
        pytest.param(bytes(advertisement(TARGET, dst="ff02::1")), id="solicited to all hosts"),
        pytest.param(bytes(solicitation(SOURCE, nh=59)), id="not ICMPv6"),
        pytest.param(bytes(solicitation(SOURCE, version=5)), id="not IPv6"),
        pytest.param(bytes(solicitation(SOURCE, plen=33)), id="length beyond the end"),
        pytest.param(bytes(solicitation(plen=23)), id="too short"),
        pytest.param(bytes(ip6(hop(ICMPv6ND_NS(tgt=V6_B)), hlim=255)), id="extension header"),
        pytest.param(bytes(ip6(ICMPv6EchoRequest(data=bytes(30)), hlim=255)), id="echo"),
    ],
)
def test_invalid(packet: bytes) -> None:
    assert nd.parse(packet, 0) is None


def test_padding_is_ignored() -> None:
    octets = bytes(solicitation(SOURCE))
    assert nd.parse(octets + b"\xff" * 9, 0) == nd.parse(octets, 0)


def test_truncated(subtests: pytest.Subtests) -> None:
    for length in range(72):
        with subtests.test(length=length):
            octets = bytes(solicitation(SOURCE))
            assert len(octets) == 72
            assert nd.parse(octets[:length], 0) is None


ADDRESSES = st.binary(min_size=16, max_size=16).filter(lambda a: a[0] != 0xFF and any(a))
MACS = st.one_of(st.none(), st.binary(min_size=6, max_size=6))
MESSAGES = st.builds(
    nd.NdMessage,
    st.sampled_from([nd.SOLICITATION, nd.ADVERTISEMENT]),
    st.integers(0, 255).map(lambda octet: octet << 20),
    ADDRESSES,
    ADDRESSES,
    st.integers(0, 7).map(lambda flags: flags << 5),
    ADDRESSES,
    MACS,
)


@given(MESSAGES, st.binary(max_size=20), st.binary(max_size=20))
def test_round_trip(message: nd.NdMessage, prefix: bytes, padding: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        frame = kind(bytearray(prefix + nd.pack(message) + padding))
        assert nd.parse(frame, len(prefix)) == message


@given(MESSAGES)
def test_pack_equals_scapy(message: nd.NdMessage) -> None:
    advertises = message.kind == nd.ADVERTISEMENT
    flags: dict[str, Any] = {
        "R": message.flags >> 7,
        "S": message.flags >> 6 & 1,
        "O": message.flags >> 5 & 1,
    }
    target = text(message.target)
    body: Packet = ICMPv6ND_NA(tgt=target, **flags) if advertises else ICMPv6ND_NS(tgt=target)
    if not advertises:
        body.res = message.flags << 24
    if message.link_address is not None:
        address = message.link_address.hex(":")
        option = ICMPv6NDOptDstLLAddr if advertises else ICMPv6NDOptSrcLLAddr
        body /= option(lladdr=address)
    packet = IPv6(
        src=text(message.source),
        dst=text(message.destination),
        hlim=255,
        tc=message.traffic_class >> 20,
    )
    assert bytes(packet / body) == nd.pack(message)


def text(address: bytes) -> str:
    return str(IPv6Address(address))


@given(ADDRESSES)
def test_solicited_node_groups(address: bytes) -> None:
    assert nd._is_solicited_node(in6_getnsma(address))


@pytest.mark.parametrize("address", ["ff02::1", "ff02::1:fe00:2", "ff05::1:ff00:2", V6_B])
def test_other_groups(address: str) -> None:
    assert not nd._is_solicited_node(packed(address))


@given(HOSTILE, st.integers(0, 60))
def test_arbitrary_octets(frame: bytes, at: int) -> None:
    nd.parse(frame, at)


@given(st.binary(max_size=60), st.integers(0, 0xFFFF))
def test_arbitrary_options(options: bytes, flags: int) -> None:
    octets = bytearray(nd.pack(nd.NdMessage(nd.SOLICITATION, 0, A, B, flags & 0xFF, B, None)))
    octets += options
    octets[4:6] = (24 + len(options)).to_bytes(2, "big")
    message = nd.parse(with_checksum(put(47, 0), bytes(octets)), 0)
    if message is not None and message.link_address is not None:
        assert message.link_address in options
