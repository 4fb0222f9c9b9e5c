"""ICMP errors about packets that are too big, compared with scapy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.unit.craft import (
    BROADCAST,
    HOSTILE,
    MAC_A,
    MAC_B,
    V4_A,
    V4_B,
    V6_A,
    V6_B,
    ether,
    ip,
    ip4,
    ip6,
    loop_sum,
    udp,
)
from vtep.wire import ethernet, icmp

BIG = b"x" * 2000


def offset(frame: bytes) -> int:
    return ethernet.network_layer(frame)[1]


def error_about(packet: Packet, mtu: int = 1400) -> bytes:
    frame = bytes(packet)
    version, at = (6 if IPv6 in packet else 4), offset(frame)
    return icmp.build_too_big(frame, at, version, len(frame) - at, mtu)


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("version", [4, 6])
def test_error_returns_to_the_sender_with_the_same_tags(version: int, tags: str) -> None:
    error = Ether(error_about(ether(ip(version, udp(BIG)), tags=tags)))
    assert (error.dst, error.src) == (MAC_A, MAC_B)
    assert (Dot1AD in error) == ("a" in tags)
    assert [tag.vlan for tag in (error.getlayer(Dot1Q, 1),) if tag] == [
        100 + number for number, tag in enumerate(tags) if tag == "q"
    ][:1]
    inner = error[IP] if version == 4 else error[IPv6]
    assert (inner.src, inner.dst) == ((V4_B, V4_A) if version == 4 else (V6_B, V6_A))


def test_ipv4_fragmentation_needed() -> None:
    frame = error_about(ether(ip4(udp(BIG), flags="DF")), 1400)
    error = Ether(frame)
    assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, 1400)
    assert frame[38:40] == bytes(2)  # Unused.
    assert error[IP].len == len(frame) - 14 == 576  # RFC 1812.
    assert (error[IP].flags, error[IP].id, error[IP].ttl, error[IP].tos) == ("DF", 0, 64, 0xC0)
    assert loop_sum(frame[14:34]) == 0xFFFF
    assert loop_sum(frame[34:]) == 0xFFFF


def test_ipv6_packet_too_big() -> None:
    frame = error_about(ether(ip6(udp(BIG))), 1400)
    error = Ether(frame)
    assert (error[ICMPv6PacketTooBig].code, error[ICMPv6PacketTooBig].mtu) == (0, 1400)
    assert error[IPv6].plen + 40 == len(frame) - 14 == 1280  # RFC 4443.
    pseudo = frame[22:54] + (len(frame) - 54).to_bytes(4, "big") + b"\0\0\0\x3a"
    assert loop_sum(pseudo + frame[54:]) == 0xFFFF


@given(version=st.sampled_from((4, 6)), payload=st.binary(max_size=1600), mtu=st.integers(68, 9000))
def test_error_equals_scapy(version: int, payload: bytes, mtu: int) -> None:
    packet = ether(ip(version, udp(payload), **({"flags": "DF"} if version == 4 else {})))
    frame = error_about(packet, mtu)
    quoted = bytes(packet)[14:]
    expected = Ether(src=MAC_B, dst=MAC_A)
    if version == 4:
        expected /= IP(src=V4_B, dst=V4_A, id=0, flags="DF", tos=0xC0, ttl=64)
        expected /= ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(quoted[: 576 - 28])
    else:
        expected /= IPv6(src=V6_B, dst=V6_A, hlim=64)
        expected /= ICMPv6PacketTooBig(mtu=mtu) / Raw(quoted[: 1280 - 48])
    assert frame == bytes(expected)


def test_padding_is_not_quoted() -> None:
    frame = bytes(ether(ip4(udp(b"payload")))) + b"padding"
    error = icmp.build_too_big(frame, 14, 4, len(frame) - 14 - 7, 1400)
    assert error.endswith(b"payload")


ALLOWED = {
    "udp4": ether(ip4(udp(BIG))),
    "udp6": ether(ip6(udp(BIG))),
    "ping4": ether(ip4(ICMP() / Raw(BIG))),
    "ping6": ether(ip6(ICMPv6EchoRequest(data=BIG))),
    "ping6 behind headers": ether(
        ip6(IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / ICMPv6EchoRequest(data=BIG))
    ),
    "first fragment 4": ether(ip4(udp(BIG), flags="MF+DF")),
    "first fragment 6": ether(ip6(IPv6ExtHdrFragment(m=1, nh=58) / ICMPv6EchoRequest(data=BIG))),
    "another protocol": ether(ip4(Raw(BIG), proto=47)),
    "ping4 with options": ether(ip4(ICMP() / Raw(BIG), options=[IPOption_NOP()] * 4)),
    "routed 6": ether(ip6(IPv6ExtHdrRouting(addresses=[V6_B]) / udp(BIG))),
}

FORBIDDEN = {
    "to a group MAC": ether(ip4(udp(BIG)), dst=BROADCAST),
    "from a group MAC": ether(ip4(udp(BIG)), src="01:00:5e:00:00:01"),
    "to multicast 4": ether(ip4(udp(BIG), dst="239.1.1.1")),
    "to multicast 6": ether(ip6(udp(BIG), dst="ff02::1")),
    "to broadcast 4": ether(ip4(udp(BIG), dst="255.255.255.255")),
    "to class E": ether(ip4(udp(BIG), dst="240.0.0.1")),
    "from multicast 4": ether(ip4(udp(BIG), src="224.0.0.1")),
    "from multicast 6": ether(ip6(udp(BIG), src="ff02::1")),
    "from unspecified 4": ether(ip4(udp(BIG), src="0.0.0.0")),
    "from unspecified 6": ether(ip6(udp(BIG), src="::")),
    "from loopback 4": ether(ip4(udp(BIG), src="127.0.0.1")),
    "from loopback 6": ether(ip6(udp(BIG), src="::1")),
    "later fragment 4": ether(ip4(Raw(BIG), proto=17, frag=185)),
    "later fragment 6": ether(ip6(IPv6ExtHdrFragment(offset=181, nh=58) / Raw(BIG))),
    "redirect 6": ether(ip6(ICMPv6ND_Redirect() / Raw(BIG))),
    "error 6": ether(ip6(ICMPv6DestUnreach() / Raw(BIG))),
    "error 6 behind headers": ether(
        ip6(IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting(addresses=[V6_B]) / ICMPv6PacketTooBig())
    ),
    "error 6 in a first fragment": ether(ip6(IPv6ExtHdrFragment(m=1) / ICMPv6DestUnreach())),
    "error 4 behind options": ether(ip4(ICMP(type=3) / Raw(BIG), options=[IPOption_NOP()] * 4)),
    "truncated headers": Ether(bytes(ether(ip6(IPv6ExtHdrHopByHop() / udp(BIG))))[:58]),
    "no type 4": Ether(bytes(ether(ip4(ICMP())))[:34]),
    "no type 6": Ether(bytes(ether(ip6(ICMPv6EchoRequest())))[:54]),
} | {
    f"error 4 of type {kind}": ether(ip4(ICMP(type=kind) / Raw(BIG))) for kind in (3, 4, 5, 11, 12)
}


def test_error_is_allowed(subtests: pytest.Subtests) -> None:
    for name, packet in ALLOWED.items():
        with subtests.test(name):
            frame = bytes(packet)
            assert icmp.may_send_error(frame, 14, 6 if IPv6 in packet else 4)


def test_error_is_forbidden(subtests: pytest.Subtests) -> None:
    for name, packet in FORBIDDEN.items():
        with subtests.test(name):
            frame = bytes(packet)
            assert not icmp.may_send_error(frame, 14, 6 if frame[12:14] == b"\x86\xdd" else 4)


@pytest.mark.parametrize("version", [4, 6])
def test_no_error_about_an_error(version: int) -> None:
    frame = error_about(ether(ip(version, udp(BIG))))
    assert not icmp.may_send_error(frame, 14, version)


@given(HOSTILE)
def test_arbitrary_frames(frame: bytes) -> None:
    ethertype, at = ethernet.network_layer(frame)
    for kind, version, least in ((ethernet.TYPE_IPV4, 4, 20), (ethernet.TYPE_IPV6, 6, 40)):
        if ethertype == kind and at + least <= len(frame):
            icmp.may_send_error(frame, at, version)
            error = icmp.build_too_big(frame, at, version, len(frame) - at, 1400)
            assert len(error) - at <= (576 if version == 4 else 1280)
            assert error[:12] == frame[6:12] + frame[:6]


def test_udp_ports_are_quoted() -> None:
    # The sender's host finds the socket by them.
    error = Ether(error_about(ether(ip4(udp(BIG), flags="DF"))))
    assert error["UDP in ICMP"].dport == 53
    assert UDP not in error
