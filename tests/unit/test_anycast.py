"""Gateways of one address on both sides: who hears what, judged by scapy's frames."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.utils6 import in6_mactoifaceid

from tests.unit.steps import routed
from vtep.counters import Drop
from vtep.daemon.drop_log import DropLog
from vtep.forwarding import anycast
from vtep.forwarding.anycast import Gateways
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.wire import vxlan

OURS, THEIRS, HOST = "172.18.0.1", "172.18.0.254", "172.18.0.2"
OURS6, HOST6 = "fd00::1", "fd00::2"
MAC, BROADCAST = "02:42:00:00:00:01", "ff:ff:ff:ff:ff:ff"


def arp(op: str, sender: str, target: str, dst: str = BROADCAST) -> bytes:
    return bytes(Ether(src=MAC, dst=dst) / ARP(op=op, hwsrc=MAC, psrc=sender, pdst=target))


def solicitation(sender: str, target: str, hlim: int = 255) -> bytes:
    ip = IPv6(src=sender, dst="ff02::1:ff00:1", hlim=hlim)
    return bytes(Ether(src=MAC, dst="33:33:ff:00:00:01") / ip / ICMPv6ND_NS(tgt=target))


def advertisement(target: str) -> bytes:
    ip = IPv6(src=target, dst="ff02::1")
    return bytes(Ether(src=MAC, dst="33:33:00:00:00:01") / ip / ICMPv6ND_NA(tgt=target))


@pytest.fixture
def gateways() -> Gateways:
    return Gateways([ip_address(OURS), ip_address(OURS6)])


@pytest.fixture
def shared(gateways: Gateways) -> Gateways:
    assert gateways.suppresses_from_underlay(arp("is-at", OURS, HOST))
    assert gateways.suppresses_from_underlay(advertisement(OURS6))
    return gateways


QUESTIONS = [arp("who-has", HOST, OURS), solicitation(HOST6, OURS6)]
CLAIMS = [
    arp("is-at", OURS, HOST),
    arp("who-has", OURS, HOST),
    arp("who-has", OURS, OURS),
    advertisement(OURS6),
    solicitation(OURS6, HOST6),
]
PROBE, PROBE6 = arp("who-has", "0.0.0.0", OURS), solicitation("::", OURS6)
OTHERS = [
    arp("who-has", HOST, THEIRS),
    arp("is-at", THEIRS, HOST),
    arp("who-has", "0.0.0.0", THEIRS),
    solicitation(HOST6, "fd00::3"),
    solicitation("::", "fd00::3"),
    advertisement("fd00::3"),
    bytes(Ether(src=MAC, dst=BROADCAST) / IP(src=OURS, dst=HOST) / ICMP()),
    bytes(Ether(src=MAC, dst=BROADCAST) / IPv6(src=OURS6, dst=HOST6, nh=59)),
]


@pytest.mark.parametrize("frame", QUESTIONS)
def test_requests_for_the_local_gateway_are_not_sent(gateways: Gateways, frame: bytes) -> None:
    assert gateways.suppresses_from_tap(frame)


@pytest.mark.parametrize("frame", QUESTIONS)
def test_requests_for_a_gateway_with_an_own_address_are_delivered(
    gateways: Gateways, frame: bytes
) -> None:
    assert not gateways.suppresses_from_underlay(frame)
    assert not gateways.shared


@pytest.mark.parametrize("frame", CLAIMS)
def test_remote_claims_of_the_gateway_address_are_suppressed(
    gateways: Gateways, frame: bytes
) -> None:
    assert not gateways.suppresses_from_tap(frame)
    assert gateways.suppresses_from_underlay(frame)
    assert len(gateways.shared) == 1


@pytest.mark.parametrize("frame", CLAIMS + QUESTIONS)
def test_messages_of_a_shared_gateway_do_not_cross_the_tunnel(
    shared: Gateways, frame: bytes
) -> None:
    assert shared.suppresses_from_tap(frame)
    assert shared.suppresses_from_underlay(frame)


def test_a_probe_and_its_answer_make_the_address_shared_on_both_sides(gateways: Gateways) -> None:
    assert not gateways.suppresses_from_tap(PROBE)
    assert not gateways.suppresses_from_underlay(PROBE)
    assert len(gateways.shared) == 1
    answer = arp("is-at", OURS, "0.0.0.0", dst=MAC)
    assert not gateways.suppresses_from_tap(answer)
    other_side = Gateways([ip_address(OURS)])
    assert other_side.suppresses_from_underlay(answer)
    assert other_side.shared == {ip_address(OURS)}


def test_duplicate_address_detection_of_gateways_does_not_cross_the_tunnel(
    gateways: Gateways,
) -> None:
    """Both would give up their address (RFC 4862, section 5.4.3)."""
    assert not gateways.suppresses_from_tap(PROBE6)
    assert gateways.suppresses_from_underlay(PROBE6)
    assert gateways.shared == {ip_address(OURS6)}


def test_a_shared_address_is_reported_once() -> None:
    told: list[object] = []
    gateways = Gateways([ip_address(OURS)], told.append)
    for frame in [PROBE, *CLAIMS[:3]]:
        gateways.suppresses_from_underlay(frame)
    assert told == [ip_address(OURS)]


@pytest.mark.parametrize("frame", OTHERS)
def test_other_messages_pass(shared: Gateways, frame: bytes) -> None:
    assert not shared.suppresses_from_tap(frame)
    assert not shared.suppresses_from_underlay(frame)


def test_a_shared_address_expires(gateways: Gateways) -> None:
    assert gateways.suppresses_from_underlay(CLAIMS[0])
    gateways.expire()
    assert gateways.shared == {ip_address(OURS)}
    assert gateways.suppresses_from_underlay(QUESTIONS[0])  # Nobody confirms it by asking.
    gateways.expire()
    assert not gateways.shared
    assert not gateways.suppresses_from_underlay(QUESTIONS[0])


def test_a_routed_message_is_no_neighbour_discovery(gateways: Gateways) -> None:
    assert not gateways.suppresses_from_underlay(solicitation(OURS6, HOST6, hlim=254))


def test_probes_are_those_of_scapy() -> None:
    mac = bytes.fromhex(MAC.replace(":", ""))
    assert anycast.build_probe(mac, IPv4Address(OURS)) == arp("who-has", "0.0.0.0", OURS)
    option = ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    theirs = (
        Ether(src=MAC, dst="33:33:ff:00:00:01")
        / IPv6(src=f"fe80::{in6_mactoifaceid(MAC)}", dst="ff02::1:ff00:1")
        / ICMPv6ND_NS(tgt=OURS6)
        / option
    )
    assert anycast.build_probe(mac, IPv6Address(OURS6)) == bytes(theirs)


@given(
    st.sampled_from([*QUESTIONS, *CLAIMS, PROBE, PROBE6]),
    st.integers(0, 100),
    st.binary(max_size=90),
)
def test_any_frame_is_parsed_without_exception(frame: bytes, cut: int, tail: bytes) -> None:
    gateways = Gateways([ip_address(OURS), ip_address(OURS6)])
    frame = frame[:14] + (frame[14:][:cut] + tail)
    gateways.suppresses_from_tap(frame)
    gateways.suppresses_from_underlay(memoryview(frame))


@given(st.sampled_from(QUESTIONS + CLAIMS), st.data())
def test_truncated_messages_are_ignored(frame: bytes, data: st.DataObject) -> None:
    end = 42 if frame[12:14] == b"\x08\x06" else 78
    cut = data.draw(st.integers(14, end - 1))
    assert anycast.read(frame[:cut]) is None
    assert anycast.read(frame[:end]) is not None


@pytest.fixture
def segment() -> Segment:
    remote = Remote("192.0.2.2", 4789)
    fdb = Fdb(7, 4789, ageing=300, max_addresses=10)
    return Segment(7, [remote], fdb, own_mac=bytes(6), learning=True)


def test_a_segment_suppresses_and_counts(segment: Segment) -> None:
    demux = Demux([segment])
    claim, question = vxlan.pack(7) + CLAIMS[0], QUESTIONS[0]
    assert demux.admit(claim, "192.0.2.2", 0.0) is segment
    assert routed(segment, question) == segment.remotes

    segment.set_gateways(Gateways([ip_address(OURS)]))
    assert demux.admit(claim, "192.0.2.2", 0.0) is None
    assert not routed(segment, question)
    assert routed(segment, arp("who-has", HOST, THEIRS)) == segment.remotes
    assert segment.counters.drops[Drop.ANYCAST_GW_SUPPRESSED_TX] == 1
    assert segment.counters.drops[Drop.ANYCAST_GW_SUPPRESSED_RX] == 1
    # This is what it is for, and no news.
    assert not DropLog().news(0.0, [("", segment.counters)])

    segment.set_gateways(None)
    assert demux.admit(claim, "192.0.2.2", 0.0) is segment
    assert routed(segment, question) == segment.remotes


def test_unknown_sources_do_not_make_an_address_shared(segment: Segment) -> None:
    gateways = Gateways([ip_address(OURS)])
    segment.set_gateways(gateways)
    assert Demux([segment]).admit(vxlan.pack(7) + CLAIMS[0], "192.0.2.9", 0.0) is None
    assert not gateways.shared
    assert segment.counters.drops[Drop.SOURCE_UNKNOWN] == 1


@pytest.mark.parametrize("tagged", [False, True])
def test_stripped_tags_do_not_hide_messages(tagged: bool) -> None:
    remote = Remote("192.0.2.2", 4789)
    segment = Segment(
        5,
        [remote],
        Fdb(5, 4789, ageing=0, max_addresses=0),
        own_mac=bytes(6),
        learning=True,
        policy=SegmentPolicy(inner_vlan=InnerVlan.STRIP),
    )
    segment.set_gateways(Gateways([IPv4Address("10.0.0.1")]))
    claim = ARP(op="is-at", hwsrc="02:00:00:00:00:0b", psrc="10.0.0.1", pdst="10.0.0.9")
    tag = Dot1Q(vlan=5) if tagged else None
    frame = Ether(src="02:00:00:00:00:0b") / (tag / claim if tag else claim)
    datagram = memoryview(bytearray(vxlan.pack(5) + bytes(frame)))
    assert Demux([segment]).admit(datagram, remote.host, 0.0) is None
    assert segment.counters.drops[Drop.ANYCAST_GW_SUPPRESSED_RX] == 1


def test_priority_tags_do_not_hide_messages() -> None:
    claim = ARP(op="is-at", hwsrc="02:00:00:00:00:0b", psrc="10.0.0.1", pdst="10.0.0.9")
    head = Ether(src="02:00:00:00:00:0b")
    plain = anycast.read(bytes(head / claim))
    assert plain is not None
    assert anycast.read(bytes(head / Dot1Q(vlan=0, prio=7) / claim)) == plain
    assert anycast.read(bytes(head / Dot1Q(vlan=1) / claim)) is None
