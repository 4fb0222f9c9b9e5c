"""ICMP errors about packets that are too big, with scapy as the judge of what they say."""

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


def answer(packet: Packet, mtu: int = 1400) -> bytes:
    frame = bytes(packet)
    version, at = (6 if IPv6 in packet else 4), offset(frame)
    return icmp.build_too_big(frame, at, version, len(frame) - at, mtu)


@pytest.mark.parametrize("tags", ["", "q", "aq"])
@pytest.mark.parametrize("version", [4, 6])
def test_it_goes_back_to_the_sender_the_way_the_frame_came(version: int, tags: str) -> None:
    said = Ether(answer(ether(ip(version, udp(BIG)), tags=tags)))
    assert (said.dst, said.src) == (MAC_A, MAC_B)
    assert (Dot1AD in said) == ("a" in tags)
    assert [tag.vlan for tag in (said.getlayer(Dot1Q, 1),) if tag] == [
        100 + number for number, tag in enumerate(tags) if tag == "q"
    ][:1]
    inner = said[IP] if version == 4 else said[IPv6]
    assert (inner.src, inner.dst) == ((V4_B, V4_A) if version == 4 else (V6_B, V6_A))


def test_ipv4_says_fragmentation_needed() -> None:
    frame = answer(ether(ip4(udp(BIG), flags="DF")), 1400)
    said = Ether(frame)
    assert (said[ICMP].type, said[ICMP].code, said[ICMP].nexthopmtu) == (3, 4, 1400)
    assert frame[38:40] == bytes(2)  # Unused.
    assert said[IP].len == len(frame) - 14 == 576  # RFC 1812.
    assert (said[IP].flags, said[IP].id, said[IP].ttl, said[IP].tos) == ("DF", 0, 64, 0xC0)
    assert loop_sum(frame[14:34]) == 0xFFFF
    assert loop_sum(frame[34:]) == 0xFFFF


def test_ipv6_says_packet_too_big() -> None:
    frame = answer(ether(ip6(udp(BIG))), 1400)
    said = Ether(frame)
    assert (said[ICMPv6PacketTooBig].code, said[ICMPv6PacketTooBig].mtu) == (0, 1400)
    assert said[IPv6].plen + 40 == len(frame) - 14 == 1280  # RFC 4443.
    pseudo = frame[22:54] + (len(frame) - 54).to_bytes(4, "big") + b"\0\0\0\x3a"
    assert loop_sum(pseudo + frame[54:]) == 0xFFFF


@given(version=st.sampled_from((4, 6)), payload=st.binary(max_size=1600), mtu=st.integers(68, 9000))
def test_it_is_what_scapy_would_write(version: int, payload: bytes, mtu: int) -> None:
    packet = ether(ip(version, udp(payload), **({"flags": "DF"} if version == 4 else {})))
    frame = answer(packet, mtu)
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
    said = icmp.build_too_big(frame, 14, 4, len(frame) - 14 - 7, 1400)
    assert said.endswith(b"payload")


ANSWERED = {
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

NOT_ANSWERED = {
    "to a group of stations": ether(ip4(udp(BIG)), dst=BROADCAST),
    "from a group of stations": ether(ip4(udp(BIG)), src="01:00:5e:00:00:01"),
    "to multicast 4": ether(ip4(udp(BIG), dst="239.1.1.1")),
    "to multicast 6": ether(ip6(udp(BIG), dst="ff02::1")),
    "to broadcast 4": ether(ip4(udp(BIG), dst="255.255.255.255")),
    "to class E": ether(ip4(udp(BIG), dst="240.0.0.1")),
    "from multicast 4": ether(ip4(udp(BIG), src="224.0.0.1")),
    "from multicast 6": ether(ip6(udp(BIG), src="ff02::1")),
    "from nobody 4": ether(ip4(udp(BIG), src="0.0.0.0")),
    "from nobody 6": ether(ip6(udp(BIG), src="::")),
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
    "headers that end early": Ether(bytes(ether(ip6(IPv6ExtHdrHopByHop() / udp(BIG))))[:58]),
    "no type 4": Ether(bytes(ether(ip4(ICMP())))[:34]),
    "no type 6": Ether(bytes(ether(ip6(ICMPv6EchoRequest())))[:54]),
} | {
    f"error 4 of type {kind}": ether(ip4(ICMP(type=kind) / Raw(BIG))) for kind in (3, 4, 5, 11, 12)
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_may_be_answered(name: str) -> None:
    frame = bytes(ANSWERED[name])
    assert icmp.may_send_error(frame, 14, 6 if IPv6 in ANSWERED[name] else 4)


@pytest.mark.parametrize("name", NOT_ANSWERED)
def test_what_must_not_be_answered(name: str) -> None:
    frame = bytes(NOT_ANSWERED[name])
    assert not icmp.may_send_error(frame, 14, 6 if frame[12:14] == b"\x86\xdd" else 4)


@pytest.mark.parametrize("version", [4, 6])
def test_an_answer_is_never_answered(version: int) -> None:
    frame = answer(ether(ip(version, udp(BIG))))
    assert not icmp.may_send_error(frame, 14, version)


@given(HOSTILE)
def test_any_octets_are_judged_and_answered_without_fault(frame: bytes) -> None:
    ethertype, at = ethernet.network_layer(frame)
    for kind, version, least in ((ethernet.TYPE_IPV4, 4, 20), (ethernet.TYPE_IPV6, 6, 40)):
        if ethertype == kind and at + least <= len(frame):
            icmp.may_send_error(frame, at, version)
            said = icmp.build_too_big(frame, at, version, len(frame) - at, 1400)
            assert len(said) - at <= (576 if version == 4 else 1280)
            assert said[:12] == frame[6:12] + frame[:6]


def test_udp_is_quoted_with_its_ports() -> None:
    """By which the sender's host finds the socket."""
    said = Ether(answer(ether(ip4(udp(BIG), flags="DF"))))
    assert said["UDP in ICMP"].dport == 53
    assert UDP not in said
