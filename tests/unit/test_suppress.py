"""Neighbours: what is answered on this side and what is left to those who know better.

The assertions of the kernel's test_bridge_neigh_suppress.sh are among them, as far as they are
about decisions: "suppressed" there is "answered" here.
"""

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from tests.unit.craft import BROADCAST, HOSTILE, MAC_A, MAC_B, V4_A, V4_B, V6_A, V6_B, ether, mac
from vtep.errors import ConfigError, NeighbourError
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Filter, Remote
from vtep.forwarding.policy import InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.forwarding.suppress import Answer, Neighbours
from vtep.wire import Buffer, vxlan

VNI = 7
ONE = Remote("192.0.2.1", 4789)
A, B = mac(MAC_A), mac(MAC_B)
MAC_C = "02:00:00:00:00:0c"
GROUP_B = "ff02::1:ff00:2"
GROUP_MAC_B = "33:33:ff:00:00:02"


def fdb_with(*macs: bytes, ageing: float = 0.0) -> Fdb:
    fdb = Fdb(VNI, 4789, ageing=ageing, max_addresses=0)
    fdb.set_default([ONE], 0.0)
    for each in macs:
        fdb.learn(each, ONE, 0.0)
    return fdb


def table(*macs: bytes, ageing: float = 300.0, limit: int = 0) -> Neighbours:
    """Build a table for a segment in which these MACs (B if none) are behind a remote."""
    return Neighbours(fdb_with(*(macs or (B,))), ageing=ageing, max_neighbours=limit)


# --- frames: A is on this side and asks, B is behind a remote -------------------------------------


def arp_request(
    *, src: str = MAC_A, dst: str = BROADCAST, psrc: str = V4_A, pdst: str = V4_B, tags: str = ""
) -> bytes:
    return bytes(ether(ARP(hwsrc=src, psrc=psrc, pdst=pdst), src=src, dst=dst, tags=tags))


def arp_reply(*, src: str = MAC_B, psrc: str = V4_B, dst: str = MAC_A, tags: str = "") -> bytes:
    body = ARP(op=2, hwsrc=src, psrc=psrc, hwdst=dst, pdst=V4_A)
    return bytes(ether(body, src=src, dst=dst, tags=tags))


def solicit(
    *,
    src: str = MAC_A,
    dst: str = GROUP_MAC_B,
    source: str = V6_A,
    destination: str = GROUP_B,
    target: str = V6_B,
    option: str | None = MAC_A,
    tags: str = "",
    tc: int = 0,
) -> bytes:
    packet = IPv6(src=source, dst=destination, hlim=255, tc=tc) / ICMPv6ND_NS(tgt=target)
    if option is not None:
        packet /= ICMPv6NDOptSrcLLAddr(lladdr=option)
    return bytes(ether(packet, src=src, dst=dst, tags=tags))


def advertise(
    *,
    src: str = MAC_B,
    source: str = V6_B,
    destination: str = V6_A,
    override: int = 1,
    solicited: int = 1,
    router: int = 0,
    option: bool = True,
    tags: str = "",
) -> bytes:
    packet = IPv6(src=source, dst=destination, hlim=255)
    packet /= ICMPv6ND_NA(tgt=source, R=router, S=solicited, O=override)
    if option:
        packet /= ICMPv6NDOptDstLLAddr(lladdr=src)
    return bytes(ether(packet, src=src, dst=MAC_A, tags=tags))


def replied(one: Neighbours, frame: Buffer, now: float) -> bytes | None:
    """Return the reply to a request, if any."""
    answer = one.answer(frame, now)
    return None if answer is None else answer.reply


def known(one: Neighbours) -> dict[str, str]:
    return {str(each.address): each.mac.hex(":") for each in one}


# --- answering ARP ----------------------------------------------------------------------------


def with_b(*macs: bytes) -> Neighbours:
    one = table(*macs)
    one.add(ip_address(V4_B), B, 0.0)
    one.add(ip_address(V6_B), B, 0.0)
    return one


def test_arp_is_answered() -> None:
    reply = replied(with_b(), arp_request(), 1.0)
    body = ARP(op=2, hwsrc=MAC_B, psrc=V4_B, hwdst=MAC_A, pdst=V4_A)
    assert reply == bytes(Ether(src=MAC_B, dst=MAC_A, type=0x0806) / body)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer(kind: type) -> None:
    for request in (arp_request(), solicit()):
        assert replied(with_b(), kind(bytearray(request)), 1.0) == replied(with_b(), request, 1.0)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(arp_request(pdst="10.1.0.3"), id="nobody we know"),
        pytest.param(arp_request(dst=MAC_B), id="unicast: whether it is alive"),
        pytest.param(arp_request(psrc="0.0.0.0"), id="probe"),
        pytest.param(arp_request(psrc=V4_B), id="announcement"),
        pytest.param(arp_request(src=MAC_B), id="it asks for itself"),
        pytest.param(arp_reply(dst=BROADCAST), id="a reply"),
        pytest.param(arp_request(tags="q"), id="another VLAN"),
        pytest.param(arp_request()[:41], id="cut off"),
        pytest.param(
            bytes(ether(ARP(op=3, hwsrc=MAC_A, psrc=V4_A, pdst=V4_B), dst=BROADCAST)), id="RARP"
        ),
        pytest.param(
            bytes(ether(ARP(hwsrc=BROADCAST, psrc=V4_A, pdst=V4_B), dst=BROADCAST)), id="from all"
        ),
        pytest.param(
            bytes(Ether(src=MAC_A, dst=BROADCAST, type=0x0800) / bytes(46)), id="no ARP at all"
        ),
    ],
)
def test_requests_that_are_flooded(request_: bytes) -> None:
    assert replied(with_b(), request_, 1.0) is None


def test_with_and_without_neighbour_and_fdb_entry() -> None:
    one = Neighbours(fdb_with(), ageing=300.0, max_neighbours=0)
    assert replied(one, arp_request(), 1.0) is None  # Neither.
    one.add(ip_address(V4_B), B, 0.0)
    assert replied(one, arp_request(), 1.0) is None  # Nobody knows where the MAC is.
    one._fdb.add(B, ONE, 0.0)
    assert replied(one, arp_request(), 1.0) is not None
    one.remove(ip_address(V4_B))
    assert replied(one, arp_request(), 1.0) is None  # Nobody knows the MAC.


# --- answering ND -----------------------------------------------------------------------------


@pytest.mark.parametrize("option", [MAC_A, None], ids=["with", "without"])
@pytest.mark.parametrize("router", [False, True])
@pytest.mark.parametrize("tc", [0, 0xB8])
def test_solicitation_is_answered(option: str | None, router: bool, tc: int) -> None:
    one = table()
    one.add(ip_address(V6_B), B, 0.0, router=router)
    reply = replied(one, solicit(option=option, tc=tc), 1.0)
    expected = Ether(src=MAC_B, dst=MAC_A) / IPv6(src=V6_B, dst=V6_A, hlim=255, tc=tc)
    expected /= ICMPv6ND_NA(tgt=V6_B, R=int(router), S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC_B)
    assert reply == bytes(expected)


def test_advertisement_goes_to_the_address_in_the_option() -> None:
    reply = replied(with_b(), solicit(option=MAC_C), 1.0)
    assert reply is not None
    assert reply[:6] == mac(MAC_C)


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(solicit(target="fd00:1::3"), id="nobody we know"),
        pytest.param(solicit(dst=MAC_B, destination=V6_B), id="unicast: whether it is alive"),
        pytest.param(solicit(source="::", option=None), id="duplicate address detection"),
        pytest.param(solicit(source=V6_B), id="it asks for itself"),
        pytest.param(solicit(src=MAC_B, option=None), id="its MAC asks for it"),
        pytest.param(solicit(option=BROADCAST), id="from all"),
        pytest.param(advertise(), id="an advertisement"),
        pytest.param(solicit(tags="q"), id="another VLAN"),
        pytest.param(solicit()[:-1], id="cut off"),
        pytest.param(solicit()[:-1] + b"\x77", id="bad checksum"),
    ],
)
def test_solicitations_that_are_flooded(request_: bytes) -> None:
    assert replied(with_b(), request_, 1.0) is None


# --- VLANs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "vlan"), [("", ()), ("q", (100,)), ("a", (100,)), ("aq", (100, 101))]
)
def test_the_answer_is_in_the_vlan_of_the_request(tags: str, vlan: tuple[int, ...]) -> None:
    one = table()
    one.add(ip_address(V4_B), B, 0.0, vlan=vlan)
    one.add(ip_address(V6_B), B, 0.0, vlan=vlan)
    for request in (arp_request(tags=tags), solicit(tags=tags)):
        reply = replied(one, request, 1.0)
        assert reply is not None
        at = 14 + 4 * len(tags)
        assert reply[12:at] == request[12:at]
    for other in {"", "q", "aq", "qqq"} - {tags, "q" if tags == "a" else tags}:
        assert replied(one, arp_request(tags=other), 1.0) is None


def test_priority_is_no_part_of_the_vlan() -> None:
    one = table()
    one.add(ip_address(V4_B), B, 0.0, vlan=(10,))
    body = Dot1Q(vlan=10, prio=5) / ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B)
    reply = replied(one, bytes(Ether(src=MAC_A, dst=BROADCAST) / body), 1.0)
    assert reply is not None
    parsed = Ether(reply)
    assert (parsed[Dot1Q].vlan, parsed[Dot1Q].prio) == (10, 5)


def test_vlans_are_apart() -> None:
    one = table(B, mac(MAC_C))
    one.snoop(arp_reply(tags="q"), 0.0)
    one.snoop(arp_reply(src=MAC_C), 0.0)
    tagged, plain = replied(one, arp_request(tags="q"), 1.0), replied(one, arp_request(), 1.0)
    assert tagged is not None
    assert plain is not None
    assert (tagged[6:12], plain[6:12]) == (B, mac(MAC_C))


# --- what is seen -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "learned"),
    [
        pytest.param(arp_reply(), {V4_B: MAC_B}, id="reply"),
        pytest.param(arp_request(src=MAC_B, psrc=V4_B, pdst=V4_A), {V4_B: MAC_B}, id="request"),
        pytest.param(arp_request(src=MAC_B, psrc=V4_B, pdst=V4_B), {V4_B: MAC_B}, id="gratuitous"),
        pytest.param(arp_request(src=MAC_B, psrc="0.0.0.0"), {}, id="probe"),
        pytest.param(arp_reply(psrc="224.0.0.1"), {}, id="multicast sender"),
        pytest.param(arp_reply(psrc="127.0.0.1"), {}, id="loopback sender"),
        pytest.param(arp_reply(psrc="255.255.255.255"), {}, id="broadcast sender"),
        pytest.param(arp_reply(src=BROADCAST), {}, id="broadcast MAC"),
        pytest.param(arp_reply(src="00:00:00:00:00:00"), {}, id="zero MAC"),
        pytest.param(arp_reply()[:40], {}, id="cut off"),
        pytest.param(advertise(), {V6_B: MAC_B}, id="advertisement"),
        pytest.param(advertise(option=False), {}, id="advertisement without address"),
        pytest.param(solicit(src=MAC_B, option=MAC_B, source=V6_B), {V6_B: MAC_B}, id="asks"),
        pytest.param(solicit(source="::", option=None), {}, id="detection"),
        pytest.param(advertise()[:-1] + b"\x77", {}, id="bad checksum"),
        pytest.param(advertise(source="::1"), {}, id="IPv6 loopback"),
    ],
)
def test_snoop(frame: bytes, learned: dict[str, str]) -> None:
    one = table()
    assert one.snoop(frame, 1.0)
    assert known(one) == learned


def test_learned_neighbours_answer() -> None:
    one = table()
    one.snoop(arp_reply(), 0.0)
    one.snoop(advertise(router=1), 0.0)
    assert replied(one, arp_request(), 1.0) == replied(with_b(), arp_request(), 1.0)
    reply = replied(one, solicit(), 1.0)
    assert reply is not None
    parsed = Ether(reply)[ICMPv6ND_NA]
    assert (parsed.R, parsed.S, parsed.O) == (1, 1, 1)


def test_a_solicitation_does_not_change_the_router_flag() -> None:
    one = table()
    one.snoop(advertise(router=1), 0.0)
    one.snoop(solicit(src=MAC_B, option=MAC_B, source=V6_B), 1.0)
    assert [each.router for each in one] == [True]
    one.snoop(advertise(router=0), 2.0)
    assert [each.router for each in one] == [False]


def test_a_neighbour_changes_its_mac() -> None:
    one = table()
    one.snoop(arp_reply(), 0.0)
    one.snoop(arp_reply(src=MAC_C), 1.0)
    assert known(one) == {V4_B: MAC_C}


@pytest.mark.parametrize(("override", "address"), [(1, MAC_C), (0, MAC_B)])
def test_override(override: int, address: str) -> None:
    one = table(ageing=10.0)
    one.snoop(advertise(), 0.0)
    assert one.snoop(advertise(src=MAC_C, override=override), 1.0)
    assert known(one) == {V6_B: address}
    assert [each.updated for each in one] == [1.0 if override else 0.0]


def test_without_override_the_same_is_confirmed() -> None:
    one = table()
    one.snoop(advertise(), 0.0)
    one.snoop(advertise(override=0), 1.0)
    assert [each.updated for each in one] == [1.0]


def test_permanent_neighbours_are_not_changed_by_learning() -> None:
    one = with_b()
    assert one.snoop(arp_reply(src=MAC_C), 1.0)
    assert one.snoop(advertise(src=MAC_C), 1.0)
    assert known(one) == {V4_B: MAC_B, V6_B: MAC_B}


def test_a_local_sender_is_no_remote_neighbour() -> None:
    one = table(A, B)
    one.snoop(arp_request(src=MAC_B, psrc=V4_A), 0.0)
    assert known(one) == {V4_A: MAC_B}
    assert replied(one, arp_request(), 1.0) is None
    assert known(one) == {}


@pytest.mark.parametrize(
    "frame", [arp_reply(), advertise(), advertise(destination="ff02::1", solicited=0)]
)
def test_a_local_announcement_removes_the_remote_neighbour(frame: bytes) -> None:
    one = table()
    one.snoop(arp_reply(), 0.0)
    one.snoop(advertise(), 0.0)
    assert replied(one, frame, 1.0) is None
    assert len(one) == 1


# --- age and number ---------------------------------------------------------------------------


def test_expired_neighbours_do_not_answer() -> None:
    one = table(ageing=10.0)
    one.snoop(arp_reply(), 0.0)
    assert replied(one, arp_request(), 9.9) is not None
    assert replied(one, arp_request(), 10.0) is None
    one.snoop(arp_reply(), 11.0)
    assert replied(one, arp_request(), 20.0) is not None


def test_permanent_neighbours_do_not_age() -> None:
    one = with_b()
    one.sweep(1e9)
    assert replied(one, arp_request(), 1e9) is not None


def many(count: int) -> list[bytes]:
    return [arp_reply(psrc=f"10.1.{number >> 8}.{number & 255}") for number in range(1, count + 1)]


def test_sweep() -> None:
    one = table(ageing=10.0)
    for number, frame in enumerate(many(4)):
        one.snoop(frame, float(number))
    one.snoop(many(1)[0], 5.0)
    assert not one.sweep(10.9)
    assert len(one) == 4
    assert not one.sweep(12.0)
    assert set(known(one)) == {"10.1.0.4", "10.1.0.1"}
    assert not one.sweep(15.0)
    assert len(one) == 0


def test_sweep_has_a_budget() -> None:
    one = table(ageing=10.0)
    for frame in many(5):
        one.snoop(frame, 0.0)
    assert one.sweep(10.0, budget=2)
    assert len(one) == 3
    assert not one.sweep(10.0, budget=3)
    assert len(one) == 0


def test_zero_ageing_is_never() -> None:
    one = table(ageing=0.0)
    one.snoop(arp_reply(), 0.0)
    assert not one.sweep(1e9)
    assert known(one) == {V4_B: MAC_B}
    one.snoop(arp_reply(), 1e9)
    assert replied(one, arp_request(), 1e9) is not None


def test_limit() -> None:
    one = table(limit=2)
    one.add(ip_address("10.9.9.9"), B, 0.0)
    first, second, third = many(3)
    assert one.snoop(first, 0.0)
    assert one.snoop(second, 0.0)
    assert not one.snoop(third, 0.0)
    assert one.snoop(first, 1.0)
    assert len(one) == 3


# --- confirmation -----------------------------------------------------------------------------

ASKS = {"arp": arp_request(), "nd": solicit()}
SPEAKS = {"arp": arp_reply(), "nd": advertise()}
FROM_C = {"arp": arp_reply(src=MAC_C), "nd": advertise(src=MAC_C)}
KINDS = pytest.mark.parametrize("kind", ["arp", "nd"])


def probed(kind: str) -> bytes:
    """Return the request of this kind as unicast to B."""
    return B + ASKS[kind][6:]


@KINDS
def test_the_first_answer_is_confirmed_by_the_neighbour_alone(kind: str) -> None:
    one = table()
    one.snoop(SPEAKS[kind], 0.0)
    answer = one.answer(ASKS[kind], 10.0)
    assert answer is not None
    assert answer.reply is not None
    assert answer.probe == probed(kind)
    one.snoop(SPEAKS[kind], 10.1)
    assert one.take_overdue(100.0) == []


@KINDS
def test_without_confirmation_the_request_is_flooded(kind: str) -> None:
    one = table(B, mac(MAC_C))
    one.snoop(SPEAKS[kind], 0.0)
    one.answer(ASKS[kind], 10.0)
    assert one.take_overdue(11.0) == []
    assert one.take_overdue(11.2) == [ASKS[kind]]
    assert one.take_overdue(100.0) == []  # Once.
    # Further requests are flooded until the neighbour confirms its MAC.
    assert one.answer(ASKS[kind], 20.0) == Answer()
    one.snoop(FROM_C[kind], 20.1)
    answer = one.answer(ASKS[kind], 26.0)
    assert answer is not None
    assert answer.reply is not None
    assert answer.reply[6:12] == mac(MAC_C)


@KINDS
def test_a_neighbour_is_unconfirmed_after_a_while(kind: str) -> None:
    one = table()
    one.snoop(SPEAKS[kind], 0.0)
    assert one.answer(ASKS[kind], 30.0) == Answer()
    one.snoop(SPEAKS[kind], 30.1)
    answer = one.answer(ASKS[kind], 60.0)
    assert answer is not None
    assert answer.reply is not None


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_repeated_request_is_flooded(confirmed: bool) -> None:
    one = table()
    one.snoop(arp_reply(), 0.0)
    assert replied(one, arp_request(), 1.0) is not None
    if confirmed:
        one.snoop(arp_reply(), 1.1)
    assert one.answer(arp_request(), 2.0) == Answer()
    assert one.take_overdue(100.0) == []  # It has been flooded.
    # Others take its word for it, unless the neighbour itself has spoken since.
    assert (replied(one, arp_request(src=MAC_C), 3.0) is not None) is confirmed
    one.snoop(arp_reply(), 4.0)
    assert replied(one, arp_request(), 6.1) is not None


@KINDS
def test_a_conflicting_claim_makes_it_doubtful(kind: str) -> None:
    one = table(B, mac(MAC_C))
    one.snoop(SPEAKS[kind], 0.0)
    one.snoop(FROM_C[kind], 1.0)
    assert one.answer(ASKS[kind], 2.0) == Answer()
    one.snoop(FROM_C[kind], 2.1)
    answer = one.answer(ASKS[kind], 3.0)
    assert answer is not None
    assert answer.reply is not None
    assert answer.reply[6:12] == mac(MAC_C)


def test_a_claim_without_override_makes_it_doubtful() -> None:
    one = table()
    one.snoop(advertise(), 0.0)
    one.snoop(advertise(src=MAC_C, override=0), 1.0)
    assert known(one) == {V6_B: MAC_B}
    assert one.answer(solicit(), 2.0) == Answer()
    one.snoop(advertise(override=0), 3.0)
    assert replied(one, solicit(), 4.0) is not None


TWO = Remote("192.0.2.2", 4789)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda fdb: fdb.learn(B, ONE, 1.0), "answered", id="it sends"),
        pytest.param(lambda fdb: fdb.learn(B, TWO, 1.0), "doubtful", id="it moves"),
        pytest.param(lambda fdb: fdb.replace(B, TWO, 1.0), "doubtful", id="it is moved by hand"),
        pytest.param(lambda fdb: fdb.append(B, TWO, 1.0), "doubtful", id="it is at two remotes"),
        pytest.param(lambda fdb: fdb.sweep(400.0, 1000), "unknown", id="it ages"),
        pytest.param(lambda fdb: fdb.remove(B), "unknown", id="it is removed"),
        pytest.param(lambda fdb: fdb.flush(Filter(dst=ONE.host)), "unknown", id="its remote goes"),
    ],
)
def test_a_change_of_its_fdb_entry_makes_it_doubtful(
    change: Callable[[Fdb], object], expected: str
) -> None:
    fdb = fdb_with(B, ageing=300.0)
    one = Neighbours(fdb, ageing=300.0, max_neighbours=0)
    one.snoop(arp_reply(), 0.0)
    one.add(ip_address(V6_B), B, 0.0)
    change(fdb)
    answer, by_hand = one.answer(arp_request(), 2.0), one.answer(solicit(), 2.0)
    if expected == "unknown":
        assert answer is by_hand is None
        return
    assert (answer == Answer()) is (expected == "doubtful")
    assert by_hand is not None
    assert by_hand.reply is not None
    one.snoop(arp_reply(), 3.0)
    assert replied(one, arp_request(src=MAC_C), 4.0) is not None


def test_permanent_neighbours_need_no_confirmation() -> None:
    one = with_b()
    for now in (1.0, 2.0, 3.0, 1000.0):
        for request in ASKS.values():
            answer = one.answer(request, now)
            assert answer is not None
            assert answer.reply is not None
            assert answer.probe is None
        one.snoop(arp_reply(src=MAC_C), now)
        assert one.take_overdue(now) == []


def test_removed_neighbours_are_not_probed() -> None:
    one = table()
    for forget in (
        one.flush,
        lambda: one.remove(ip_address(V4_B)),
        lambda: one.replace(ip_address(V4_B), B, 2.0),
    ):
        one.snoop(arp_reply(), 0.0)
        assert replied(one, arp_request(), 1.0) is not None
        forget()
        assert one.take_overdue(100.0) == []


def test_many_are_overdue_at_once() -> None:
    one = table()
    for frame in many(121):
        one.snoop(frame, 0.0)
    asked = [arp_request(pdst=f"10.1.0.{number}") for number in range(2, 122)]  # Not A itself.
    for request in asked:
        one.answer(request, 1.0)
    flooded = [one.take_overdue(3.0) for _ in range(4)]
    assert [len(some) for some in flooded] == [50, 50, 20, 0]
    assert [each for some in flooded for each in some] == asked


class Reference:
    """A second implementation of the rules in the docstring of the module, for the address of B."""

    def __init__(self) -> None:
        self.claims: list[tuple[float, str, Remote]] = []
        self.asked: dict[str, float] = {}

    def answer(self, where: dict[str, Remote], now: float) -> str | None:
        if not self.claims:
            return None
        since, address, remote = self.claims[-1]
        return address if now < since + 30 and where.get(address) is remote else None


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["speaks", "sends", "asks", "asks", "tick"]),
        st.sampled_from([MAC_B, MAC_C]),
        st.sampled_from([ONE, TWO]),
        st.sampled_from([MAC_A, "02:00:00:00:00:0d"]),
        st.sampled_from([0.0, 0.5, 1.0, 4.0, 10.0, 31.0]),
    ),
    max_size=40,
)


@given(EVENTS, st.sampled_from(["arp", "nd"]))
def test_answers_are_the_last_claims_from_their_remotes(
    events: list[tuple[str, str, Remote, str, float]], kind: str
) -> None:
    fdb = fdb_with()
    fdb.set_default([ONE, TWO], 0.0)
    one, reference, now = Neighbours(fdb, ageing=0.0, max_neighbours=0), Reference(), 100.0
    where: dict[str, Remote] = {}
    unconfirmed: float | None = None
    last_asker = ""
    for event, address, remote, asker, pause in events:
        now += pause
        if event in ("speaks", "sends"):
            fdb.learn(mac(address), remote, now)
            where[address] = remote
        if event == "speaks":
            frame = {"arp": arp_reply(src=address), "nd": advertise(src=address)}[kind]
            assert one.snoop(frame, now)
            reference.claims.append((now, address, remote))
            unconfirmed = None
        elif event == "tick":
            if one.take_overdue(now):
                assert unconfirmed is not None
                assert now >= unconfirmed + 1.1
                unconfirmed = -1.0
        elif event == "asks":
            request = {"arp": arp_request(src=asker), "nd": solicit(src=asker, option=asker)}[kind]
            reply = replied(one, request, now)
            if reply is None:
                continue
            assert reply[6:12].hex(":") == reference.answer(where, now)
            # Not `max` by time: two requests may be of the same time.
            assert asker != last_asker or now - reference.asked[asker] >= 5.0
            last_asker = asker
            assert unconfirmed != -1.0  # It has not spoken since the request was flooded.
            reference.asked[asker] = now
            unconfirmed = now if unconfirmed is None else unconfirmed


# --- by hand ----------------------------------------------------------------------------------


def test_add_replace_remove() -> None:
    one = table()
    address = ip_address(V4_B)
    one.add(address, B, 0.0)
    with pytest.raises(NeighbourError, match=r"^10\.1\.0\.2: is a permanent neighbour already"):
        one.add(address, A, 1.0)
    one.replace(address, A, 2.0)
    assert known(one) == {V4_B: MAC_A}
    one.remove(address)
    assert known(one) == {}
    with pytest.raises(NeighbourError, match=r"^10\.1\.0\.2: there is no such neighbour$"):
        one.remove(address)


def test_any_vlan() -> None:
    one = table()
    one.add(ip_address(V4_B), B, 0.0, vlan=(1, 4094))
    assert [each.vlan for each in one] == [(1, 4094)]


def test_learned_neighbours_can_be_replaced_and_removed() -> None:
    one = table()
    one.snoop(arp_reply(), 0.0)
    one.add(ip_address(V4_B), A, 1.0)
    assert known(one) == {V4_B: MAC_A}
    one.snoop(advertise(), 0.0)
    one.remove(ip_address(V6_B))
    assert known(one) == {V4_B: MAC_A}


def test_neighbours_of_a_control_plane() -> None:
    """They change neither by messages nor by age, and never replace what a user has configured."""
    one, address, other = table(ageing=10.0), ip_address(V4_B), ip_address(V6_B)
    one.snoop(arp_reply(), 0.0)
    one.add(address, B, 1.0, extern_learn=True)
    assert one.snoop(arp_reply(src=MAC_C), 2.0)
    one.sweep(1e9)
    assert replied(one, arp_request(), 1e9) is not None
    assert [(each.permanent, each.extern_learn) for each in one] == [(True, True)]
    one.replace(address, A, 3.0, extern_learn=True)
    assert known(one) == {V4_B: MAC_A}
    with pytest.raises(NeighbourError, match=r"^10\.1\.0\.2: is a permanent neighbour already"):
        one.add(address, B, 4.0)

    one.add(other, B, 5.0)
    for verb in (one.add, one.replace):
        with pytest.raises(NeighbourError):
            verb(other, A, 6.0, extern_learn=True)
    with pytest.raises(NeighbourError, match="there is no such extern_learn neighbour"):
        one.remove(other, extern_learn=True)
    one.replace(address, B, 7.0)  # A user may take it over.
    with pytest.raises(NeighbourError, match="there is no such extern_learn neighbour"):
        one.remove(address, extern_learn=True)
    one.replace(address, B, 8.0)
    assert known(one) == {V4_B: MAC_B, V6_B: MAC_B}


def test_flush_of_a_control_plane() -> None:
    one = table()
    one.add(ip_address("10.1.0.9"), B, 0.0, extern_learn=True)
    one.add(ip_address(V4_B), B, 0.0)
    one.snoop(advertise(), 0.0)
    assert one.flush(permanent=True) == 2
    one.add(ip_address(V4_B), B, 0.0)
    one.snoop(advertise(), 0.0)
    assert one.flush(extern_learn=True) == 1
    assert known(one) == {V4_B: MAC_B, V6_B: MAC_B}
    one.add(ip_address("10.1.0.9"), B, 0.0, extern_learn=True)
    assert one.flush(extern_learn=True, permanent=True) == 3


def test_flush() -> None:
    one = table()
    one.add(ip_address(V4_B), B, 0.0)
    one.snoop(advertise(), 0.0)
    assert one.flush() == 1
    assert known(one) == {V4_B: MAC_B}
    one.snoop(advertise(), 0.0)
    assert one.flush(permanent=True) == 2
    assert known(one) == {}


@pytest.mark.parametrize(
    ("address", "lladdr", "vlan", "words"),
    [
        ("0.0.0.0", B, (), r"^0\.0\.0\.0: is not a unicast address$"),
        ("224.0.0.1", B, (), r"^224\.0\.0\.1: is not a unicast address"),
        ("ff02::1", B, (), r"^ff02::1: is not a unicast address"),
        (V4_B, mac(BROADCAST), (), r"^lladdr ff:ff:ff:ff:ff:ff: is not a unicast MAC address$"),
        (V4_B, bytes(6), (), r"^lladdr 00:00:00:00:00:00: is not a unicast MAC"),
        (V4_B, B, (0,), r"^vlan 0: must be from 1 to 4094$"),
        (V4_B, B, (10, 4095), r"^vlan 10 4095: must be"),
    ],
)
def test_nonsense(address: str, lladdr: bytes, vlan: tuple[int, ...], words: str) -> None:
    one = table()
    with pytest.raises(ConfigError, match=words):
        one.add(ip_address(address), lladdr, 0.0, vlan=vlan)
    assert len(one) == 0


# --- as a part of the segment -----------------------------------------------------------------


def segment(policy: SegmentPolicy | None = None) -> Segment:
    fdb = Fdb(VNI, 4789, ageing=10.0, max_addresses=0)
    one = Segment(
        VNI, [ONE], fdb, own_mac=bytes(6), learning=True, policy=policy or SegmentPolicy()
    )
    one.set_neighbours(Neighbours(fdb, ageing=10.0, max_neighbours=1))
    return one


def from_underlay(one: Segment, frame: bytes, host: str = ONE.host) -> bool:
    return Demux([one]).admit(vxlan.pack(VNI) + frame, host, 1.0) is one


def inspect(one: Segment, frame: bytes) -> bytes:
    return bytes(one.inspect(memoryview(bytearray(frame)), 2.0))


def test_first_request_floods_second_is_answered() -> None:
    one = segment()
    assert inspect(one, arp_request()) == arp_request()
    assert from_underlay(one, arp_reply())
    # The answer is for the neighbour alone to confirm, and for everybody if it does not.
    assert inspect(one, arp_request()) == arp_request(dst=MAC_B)
    assert inspect(one, arp_request(src=MAC_C)) == b""
    assert [reply[6:12] for reply in one.replies] == [B, B]
    assert not one.sweep(3.0)
    assert one.requests == []
    assert one.sweep(3.2)
    assert one.requests == [arp_request()]
    assert inspect(one, arp_request(src=MAC_C)) == arp_request(src=MAC_C)
    counters = one.counters
    assert (counters.neigh_answered, counters.neigh_probed, counters.neigh_unconfirmed) == (2, 1, 2)


def test_other_frames_pass() -> None:
    one = segment()
    frame = bytes(ether(IPv6(src=V6_A, dst=V6_B) / b"x"))
    assert inspect(one, frame) == frame
    assert from_underlay(one, frame)
    assert one.replies == []


def test_no_neighbours_are_learned_from_unknown_sources() -> None:
    one = segment()
    assert not from_underlay(one, arp_reply(), "198.51.100.1")
    assert one.neighbours is not None
    assert len(one.neighbours) == 0


def test_full_table_is_counted() -> None:
    one = segment()
    for frame in many(3):
        assert from_underlay(one, frame)
    assert one.counters.neigh_full == 2


def test_stripped_tags_are_no_vlan() -> None:
    one = segment(SegmentPolicy(inner_vlan=InnerVlan.STRIP))
    frame = arp_reply(tags="q")
    assert from_underlay(one, frame)
    assert inspect(one, arp_request(tags="q")) == arp_request(dst=MAC_B)
    assert Ether(one.replies[0]).type == 0x0806


def test_sweep_is_for_both_tables() -> None:
    one = segment()
    from_underlay(one, arp_reply())
    assert one.neighbours is not None
    assert not one.sweep(10.0)
    assert (len(one.fdb), len(one.neighbours)) == (1, 1)
    assert not one.sweep(11.0)
    assert (len(one.fdb), len(one.neighbours)) == (0, 0)


def test_proxy_off() -> None:
    one = segment()
    assert (one.inspect_egress, one.has_ingress_policy) == (True, True)
    one.set_neighbours(None)
    assert (one.inspect_egress, one.has_ingress_policy) == (False, False)
    assert from_underlay(one, arp_reply())
    assert inspect(one, arp_request()) == arp_request()


# --- whatever comes ---------------------------------------------------------------------------

FRAMES: list[bytes] = [arp_request(), arp_reply(), solicit(), advertise(), arp_request(tags="q")]


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(0, 3))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(14, len(frame)))])


@given(st.lists(st.tuples(st.booleans(), st.one_of(HOSTILE, spoilt())), max_size=8))
def test_hostile(frames: list[tuple[bool, bytes]]) -> None:
    one = with_b(A, B)
    for inwards, frame in frames:
        if inwards:
            one.snoop(frame, 1.0)
        else:
            reply = replied(one, frame, 1.0)
            if reply is not None:
                check_reply(Ether(frame), Ether(reply))


def check_reply(request: Packet, reply: Packet) -> None:
    """Check the properties of every reply with scapy."""
    assert request.dst.startswith(("ff:", "01:", "33:")) or int(request.dst[:2], 16) & 1
    assert reply.dst != reply.src
    assert reply.src in (MAC_A, MAC_B)
    if ARP in reply:
        assert (reply[ARP].op, reply[ARP].psrc) == (2, request[ARP].pdst)
        assert (reply[ARP].hwdst, reply[ARP].pdst) == (request[ARP].hwsrc, request[ARP].psrc)
        assert reply[ARP].hwsrc == reply.src
    else:
        assert reply[ICMPv6ND_NA].tgt == request[ICMPv6ND_NS].tgt == reply[IPv6].src
        assert reply[IPv6].dst == request[IPv6].src
