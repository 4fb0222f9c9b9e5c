"""Segment: who is listened to, and what is made of reserved bits, policy groups and VLAN tags."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.vxlan import VXLAN

from tests.unit.craft import BROADCAST, HOSTILE, MAC_A, MAC_B, ether, ip4, mac, udp
from tests.unit.steps import routed
from vtep.counters import Drop
from vtep.daemon.drop_log import DropLog
from vtep.forwarding.anycast import Gateways
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import EntryKind, EntryState, Fdb, Filter, Remote
from vtep.forwarding.policy import ANY_SOURCE, GroupPolicy, InnerVlan, Networks, SegmentPolicy
from vtep.forwarding.segment import INNER_MIN, Segment
from vtep.forwarding.suppress import Neighbours
from vtep.wire import vxlan
from vtep.wire.ethernet import MAC_ZERO

VNI = 0x123456
OWN = mac("02:00:00:00:00:ee")
A, B = mac(MAC_A), mac(MAC_B)
FRAME = bytes(ether(ip4(udp(b"x")), src=MAC_A, dst=MAC_B))


def remote(number: int, port: int = 4789) -> Remote:
    return Remote(f"192.0.2.{number}", port)


def segment(
    *remotes: Remote,
    accept: Networks = (),
    policy: SegmentPolicy | None = None,
    learning: bool = True,
) -> Segment:
    fdb = Fdb(VNI, 4789, ageing=300.0, max_addresses=0)
    return Segment(
        VNI,
        remotes or (remote(1), remote(2)),
        fdb,
        own_mac=OWN,
        learning=learning,
        accept=accept,
        policy=policy or SegmentPolicy(),
    )


def hosts(one: Segment) -> list[str]:
    return [each.host for each in one.remotes]


def behind(one: Segment) -> dict[bytes, str]:
    return {entry.mac: entry.destinations[0].host for entry in one.fdb}


def drops(one: Segment) -> dict[Drop, int]:
    return {reason: count for reason, count in one.counters.drops.items() if count}


def send_frame(
    one: Segment, host: str, source: bytes = A, *, header: bytes = b"", now: float = 1.0
) -> bool:
    """Send a frame with this source MAC from a host. Returns: whether it is admitted."""
    frame = FRAME[:6] + source + FRAME[12:]
    datagram = (header or vxlan.pack(VNI)) + frame
    return Demux([one]).admit(datagram, host, now) is one


# --- accepted sources ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        pytest.param((), {"192.0.2.1"}, id="none but those named"),
        pytest.param(
            ANY_SOURCE, {"192.0.2.1", "192.0.2.9", "203.0.113.1", "2001:db8::1"}, id="any"
        ),
        pytest.param((ip_network("192.0.2.8/30"),), {"192.0.2.1", "192.0.2.9"}, id="a prefix"),
        pytest.param(
            (ip_network("2001:db8::/32"),), {"192.0.2.1", "2001:db8::1"}, id="a v6 prefix"
        ),
        pytest.param(
            (ip_network("192.0.2.9/32"), ip_network("203.0.113.0/24")),
            {"192.0.2.1", "192.0.2.9", "203.0.113.1"},
            id="two prefixes",
        ),
    ],
)
def test_accept(accept: Networks, accepted: set[str]) -> None:
    for host in ("192.0.2.1", "192.0.2.9", "203.0.113.1", "2001:db8::1", "", "nonsense"):
        one = segment(remote(1), accept=accept)
        assert send_frame(one, host) is (host in accepted)
        assert one.accepts_source(host) is (host in accepted)
        assert behind(one) == ({A: host} if host in accepted else {})
        assert drops(one) == ({} if host in accepted else {Drop.SOURCE_UNKNOWN: 1})


def test_hosts_with_a_static_entry_are_accepted() -> None:
    one = segment(remote(1))
    assert not send_frame(one, "192.0.2.9")
    one.fdb.add(B, remote(9), 0.0)
    assert send_frame(one, "192.0.2.9")
    assert behind(one) == {A: "192.0.2.9", B: "192.0.2.9"}


def test_hosts_with_a_learned_entry_only_are_not_accepted() -> None:
    one = segment(remote(1), accept=ANY_SOURCE)
    assert send_frame(one, "192.0.2.9")
    one.set_accept(())
    assert not send_frame(one, "192.0.2.9")


def test_an_accepted_source_has_one_remote_for_all_its_macs() -> None:
    one = segment(remote(1), accept=ANY_SOURCE)
    send_frame(one, "192.0.2.9", A)
    send_frame(one, "192.0.2.9", B)
    first, second = (entry.destinations for entry in one.fdb)
    assert first is second
    assert (first[0].host, first[0].port, first[0].vni) == ("192.0.2.9", 4789, None)


def test_accepted_sources_without_entries_are_forgotten() -> None:
    one = segment(remote(1), accept=ANY_SOURCE, learning=False)
    for number in range(10_000):
        host = f"10.0.{number >> 8}.{number & 255}"
        assert send_frame(one, host)
        one.count_received(host, 1, 60, 0.0)
    assert len(one._non_members.remotes) <= 4096
    assert len(one.remote_counters) <= 4096
    assert one.fdb.members._remotes.keys() == {("192.0.2.1", 4789, VNI, None)}


def test_accepted_sources_with_entries_are_kept() -> None:
    one = segment(remote(1), accept=ANY_SOURCE)
    for number in range(10_000):
        source = bytes((2, 1, 0, 0, number >> 8, number & 255))
        assert send_frame(one, f"10.0.{number >> 8}.{number & 255}", source)
    assert len(one._non_members.remotes) == 10_000
    one.fdb.flush(Filter(dynamic=True))
    one._non_members._forget_idle()
    assert one._non_members.remotes == {}


def test_an_accepted_source_that_becomes_a_member_keeps_one_remote() -> None:
    one = segment(remote(1), accept=ANY_SOURCE)
    send_frame(one, "192.0.2.9", A)
    one.set_remotes([remote(1), remote(9)], 1.0)
    send_frame(one, "192.0.2.9", B)
    assert one.fdb.get(A).destinations is one.fdb.get(B).destinations
    assert one.fdb.get(A).destinations[0] is one.remotes[1]


@pytest.mark.parametrize("accept", [(), ANY_SOURCE])
def test_static_mac_from_another_remote(accept: Networks) -> None:
    one = segment(remote(1), remote(2), accept=accept)
    one.fdb.add(A, remote(1), 0.0, EntryKind(EntryState.STATIC))
    assert send_frame(one, "192.0.2.1")
    assert not send_frame(one, "192.0.2.2")
    assert drops(one) == {Drop.INNER_SOURCE_STATIC: 1}
    assert one.counters.last_source == {Drop.INNER_SOURCE_STATIC: "192.0.2.2"}
    assert behind(one) == {A: "192.0.2.1"}


def test_sticky_mac_from_another_remote_is_admitted() -> None:
    one = segment(remote(1), remote(2))
    one.fdb.add(A, remote(1), 0.0, EntryKind(EntryState.DYNAMIC, sticky=True))
    assert send_frame(one, "192.0.2.2")
    assert behind(one) == {A: "192.0.2.1"}
    assert drops(one) == {}
    assert (one.counters.fdb_moved, one.counters.fdb_full) == (0, 0)


@pytest.mark.parametrize("learn", [True, False])
def test_mac_of_a_control_plane_from_another_remote_is_admitted(learn: bool) -> None:
    """It has moved, and the route of its new VTEP is on the way."""
    one = segment(remote(1), remote(2))
    one.fdb.add(A, remote(1), 0.0, EntryKind(EntryState.STATIC, extern_learn=True))
    assert not one.admit(A, "192.0.2.2", 1.0, learn=learn)
    one.fdb.keeps_extern_learn = True
    assert one.admit(A, "192.0.2.2", 1.0, learn=learn)
    assert behind(one) == {A: "192.0.2.1"}
    assert drops(one) == {Drop.INNER_SOURCE_STATIC: 1}


def test_without_learning_no_source_is_looked_up() -> None:
    one = segment(remote(1), remote(2), learning=False)
    one.fdb.add(A, remote(1), 0.0)
    assert send_frame(one, "192.0.2.2")
    assert one.fdb.get(A).rx_frames == 0


# --- the remotes, live ------------------------------------------------------------------------


def test_set_remotes() -> None:
    one = segment(remote(1), remote(2))
    one.set_remotes([remote(3), remote(2)], 1.0)
    assert hosts(one) == ["192.0.2.3", "192.0.2.2"]
    assert send_frame(one, "192.0.2.3")
    assert not send_frame(one, "192.0.2.1")


def test_other_flood_destinations_stay() -> None:
    # The kernel's test_vxlan_fdb_changelink.sh, and what follows from it.
    one = segment(remote(10))
    one.fdb.append(MAC_ZERO, remote(20), 0.0)
    one.fdb.append(MAC_ZERO, remote(30), 0.0)
    one.set_remotes([remote(30)], 1.0)
    assert hosts(one) == ["192.0.2.30", "192.0.2.20"]
    one.set_remotes([remote(40)], 2.0)
    assert hosts(one) == ["192.0.2.40", "192.0.2.20"]
    one.set_remotes([], 3.0)
    assert hosts(one) == ["192.0.2.20"]


def test_macs_learned_from_a_removed_remote_are_deleted() -> None:
    one = segment(remote(1), remote(2), remote(3))
    send_frame(one, "192.0.2.1", A)
    send_frame(one, "192.0.2.2", B)
    one.set_remotes([remote(2)], 1.0)
    assert behind(one) == {B: "192.0.2.2"}


def test_macs_of_a_removed_remote_that_is_still_accepted_stay() -> None:
    one = segment(remote(1), remote(2), accept=(ip_network("192.0.2.1/32"),))
    send_frame(one, "192.0.2.1", A)
    one.set_remotes([remote(2)], 1.0)
    assert behind(one) == {A: "192.0.2.1"}
    one.fdb.add(B, remote(2), 0.0)
    one.set_remotes([remote(3)], 1.0)
    assert send_frame(one, "192.0.2.2", B)


def test_static_entries_of_a_former_remote_stay() -> None:
    one = segment(remote(1))
    one.fdb.add(A, remote(1), 0.0)
    send_frame(one, "192.0.2.1", B)
    one.set_remotes([remote(2)], 1.0)
    assert behind(one) == {A: "192.0.2.1", B: "192.0.2.1"}
    one.fdb.remove(A)
    assert behind(one) == {}


def test_set_accept_deletes_macs_of_sources_no_longer_accepted() -> None:
    one = segment(remote(1), accept=ANY_SOURCE)
    send_frame(one, "192.0.2.9", A)
    send_frame(one, "192.0.2.17", B)
    one.set_accept((ip_network("192.0.2.16/28"),))
    assert behind(one) == {B: "192.0.2.17"}
    assert not send_frame(one, "192.0.2.9", A)


def test_no_remote_at_all() -> None:
    one = segment(remote(1))
    one.set_remotes([], 1.0)
    assert one.remotes == ()
    assert tuple(routed(one, FRAME, 3)) == ()
    assert drops(one) == {Drop.NO_REMOTE: 3}


def test_frames_are_counted_by_entry() -> None:
    one = segment(remote(1))
    send_frame(one, "192.0.2.1", B)
    send_frame(one, "192.0.2.1", B)
    routed(one, FRAME)
    routed(one, FRAME, 44)
    routed(one, mac(BROADCAST) + FRAME[6:], 2)
    entry = one.fdb.get(B)
    assert (entry.rx_frames, entry.tx_frames) == (2, 45)
    assert one.fdb.get(MAC_ZERO).tx_frames == 2


def test_several_destinations() -> None:
    one = segment(remote(1))
    one.fdb.append(B, remote(3), 0.0)
    one.fdb.append(B, remote(4), 0.0)
    assert [each.host for each in routed(one, FRAME)] == ["192.0.2.3", "192.0.2.4"]
    assert one.counters.flooded == 0


# --- reserved bits ----------------------------------------------------------------------------
# The kernel's vxlan_reserved.sh: all bits that are neither the I flag nor the VNI, one at a time.
# Bit 0 is the first on the wire.

STRICT = 0xF7FFFFFF000000FF
RESERVED = [bit for bit in range(64) if bit != 4 and not 32 <= bit < 56]
GPE = {2, 3, 5, 6, 7}
"""Bits of the Generic Protocol Extension, which are never let in."""


def header_with(*bits: int) -> bytes:
    number = int.from_bytes(vxlan.pack(VNI), "big")
    for bit in bits:
        number |= 1 << 63 - bit
    return number.to_bytes(8, "big")


def passing(reserved: int, *, gbp: bool = False) -> set[int]:
    """Which of the reserved bits may be set."""
    groups = GroupPolicy() if gbp else None
    policy = SegmentPolicy(reserved_bits=reserved, groups=groups)
    one = segment(policy=policy)
    assert send_frame(one, "192.0.2.1")
    passed = {bit for bit in RESERVED if send_frame(one, "192.0.2.1", header=header_with(bit))}
    refused = len(RESERVED) - len(passed | GPE)
    assert drops(one) == ({Drop.RESERVED_BITS: refused} if refused else {})
    return passed


def test_reserved_bits_are_39() -> None:
    assert len(RESERVED) == 39


def test_ignored_as_the_rfc_has_it() -> None:
    assert passing(0) == set(RESERVED) - GPE


def test_strict_as_the_kernel_has_it() -> None:
    assert passing(STRICT) == set()


@pytest.mark.parametrize("bit", [0, 10, 31, 56, 63])
def test_a_mask_spares_one_bit(bit: int) -> None:
    assert passing(STRICT & ~(1 << 63 - bit)) == {bit}


def test_group_policy_exempts_its_bits() -> None:
    # The G flag, and the three octets that the kernel driver leaves to the extension.
    assert passing(STRICT, gbp=True) == {0, *range(8, 32)}


@pytest.mark.parametrize("length", range(8, 22))
def test_reserved_bits_are_checked_before_the_frame(length: int) -> None:
    one = segment(policy=SegmentPolicy(reserved_bits=STRICT))
    datagram = header_with(63) + FRAME
    assert Demux([one]).admit(datagram[:length], "192.0.2.1", 1.0) is None
    assert Demux([one]).admit(datagram, "198.51.100.1", 1.0) is None
    assert drops(one) == {Drop.RESERVED_BITS: 2}


# --- group policy -----------------------------------------------------------------------------


def group_header(group: int, *, flags: str = "", marked: bool = True) -> bytes:
    """As scapy builds it, `flags` being D and A; or with these bits, but not the G flag."""
    header = bytes(VXLAN(flags="Instance+G", gpflags="+".join(flags), gpid=group, vni=VNI))
    return header if marked else bytes([header[0] & 0x7F]) + header[1:]


@pytest.mark.parametrize(
    ("policy", "header", "frame", "last"),
    [
        pytest.param(
            SegmentPolicy(reserved_bits=STRICT),
            header_with(63),
            FRAME,
            f"header 08000000{VNI:06x}01",
            id="reserved-bits",
        ),
        pytest.param(
            SegmentPolicy(groups=GroupPolicy(accepted=frozenset({7}))),
            vxlan.pack(VNI, 8),
            FRAME,
            "policy group 8",
            id="group",
        ),
        pytest.param(
            SegmentPolicy(inner_vlan=InnerVlan.DROP),
            vxlan.pack(VNI),
            FRAME[:12] + b"\x81\x00\x60\x0a" + FRAME[12:],
            "VLAN 10",
            id="tag",
        ),
        pytest.param(
            SegmentPolicy(), vxlan.pack(VNI), FRAME, "source MAC 02:00:00:00:00:0a", id="static"
        ),
    ],
)
def test_drop_details_in_the_log(
    policy: SegmentPolicy, header: bytes, frame: bytes, last: str
) -> None:
    one = segment(remote(1), remote(2), policy=policy)
    one.fdb.add(A, remote(2), 0.0)
    assert Demux([one]).admit(header + frame, "192.0.2.1", 1.0) is None
    (line,) = DropLog().news(0.0, [("", one.counters)])
    assert line.endswith(f"(last: 192.0.2.1, {last})")


@given(st.integers(0, vxlan.VNI_MAX), st.integers(1, vxlan.GROUP_MAX))
def test_group_is_encoded_as_scapy_decodes_it(vni: int, group: int) -> None:
    parsed = VXLAN(vxlan.pack(vni, group))
    assert (parsed.vni, parsed.gpid, int(parsed.gpflags)) == (vni, group, 0)
    assert str(parsed.flags) == "Instance+G"


def test_no_group_is_no_extension() -> None:
    assert vxlan.pack(VNI, 0) == vxlan.pack(VNI)
    assert segment().header == vxlan.pack(VNI)
    assert segment(policy=SegmentPolicy(groups=GroupPolicy(7))).header == vxlan.pack(VNI, 7)


@pytest.mark.parametrize(
    ("header", "let_in"),
    [
        pytest.param(group_header(7), True, id="accepted"),
        pytest.param(group_header(0x700), False, id="not accepted"),
        pytest.param(group_header(8), False, id="not accepted either"),
        pytest.param(group_header(0), True, id="group 0"),
        pytest.param(vxlan.pack(VNI), True, id="none told"),
        pytest.param(group_header(8, marked=False), True, id="id without the flag"),
        pytest.param(group_header(8, flags="A"), True, id="applied before"),
        pytest.param(group_header(8, flags="A", marked=False), True, id="A without G"),
        pytest.param(group_header(8, flags="D"), False, id="don't learn"),
    ],
)
def test_groups_accepted(header: bytes, let_in: bool) -> None:
    one = segment(policy=SegmentPolicy(groups=GroupPolicy(accepted=frozenset({0, 7}))))
    assert send_frame(one, "192.0.2.1", header=header) is let_in
    assert drops(one) == ({} if let_in else {Drop.GROUP_DENIED: 1})
    assert behind(one) == ({A: "192.0.2.1"} if let_in else {})


def test_no_group_counts_as_group_0() -> None:
    one = segment(policy=SegmentPolicy(groups=GroupPolicy(accepted=frozenset({7}))))
    assert not send_frame(one, "192.0.2.1")
    assert not send_frame(one, "192.0.2.1", header=group_header(8, flags="A", marked=False))
    assert drops(one) == {Drop.GROUP_DENIED: 2}


@pytest.mark.parametrize("group", [0, 7, 0xFFFF])
def test_every_group_is_accepted_by_default(group: int) -> None:
    one = segment(policy=SegmentPolicy(groups=GroupPolicy()))
    assert send_frame(one, "192.0.2.1", header=group_header(group))


def test_dont_learn() -> None:
    one = segment(policy=SegmentPolicy(groups=GroupPolicy()))
    assert send_frame(one, "192.0.2.1", header=group_header(7, flags="D"))
    assert behind(one) == {}
    assert send_frame(one, "192.0.2.1", header=group_header(7))
    assert send_frame(one, "192.0.2.2", header=group_header(7, flags="D"), now=9.0)
    assert behind(one) == {A: "192.0.2.1"}
    assert one.fdb.get(A).updated == 1.0
    assert send_frame(one, "192.0.2.2", header=group_header(7, flags="D", marked=False))
    assert behind(one) == {A: "192.0.2.2"}


def test_dont_learn_does_not_bypass_a_static_entry() -> None:
    one = segment(policy=SegmentPolicy(groups=GroupPolicy()))
    one.fdb.add(A, remote(1), 0.0)
    assert send_frame(one, "192.0.2.1", header=group_header(7, flags="D"))
    assert not send_frame(one, "192.0.2.2", header=group_header(7, flags="D"))
    assert drops(one) == {Drop.INNER_SOURCE_STATIC: 1}


def test_without_the_extension_nothing_is_read_from_its_bits() -> None:
    one = segment()
    assert send_frame(one, "192.0.2.1", header=group_header(7, flags="DA"))
    assert behind(one) == {A: "192.0.2.1"}


# --- VLAN tags --------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", InnerVlan)
@pytest.mark.parametrize("tags", ["", "q", "a", "aq"])
def test_tags_from_the_underlay(policy: InnerVlan, tags: str) -> None:
    one = segment(policy=SegmentPolicy(inner_vlan=policy))
    frame = bytes(ether(ip4(udp()), tags=tags))
    dropped = bool(tags) and policy is InnerVlan.DROP
    admitted = Demux([one]).admit(vxlan.pack(VNI) + frame, "192.0.2.1", 1.0)
    assert (admitted is None) is dropped
    assert drops(one) == ({Drop.INNER_TAGGED: 1} if dropped else {})
    assert behind(one) == ({} if dropped else {A: "192.0.2.1"})


@pytest.mark.parametrize("policy", InnerVlan)
@pytest.mark.parametrize("tags", ["", "q", "a", "aq"])
def test_tags_from_the_tap(policy: InnerVlan, tags: str) -> None:
    one = segment(policy=SegmentPolicy(inner_vlan=policy))
    tagged = bytes(ether(ip4(udp()), tags=tags))
    assert one.inspect_egress is (policy is not InnerVlan.PASS)
    left = bytes(one.inspect(memoryview(bytearray(tagged)), 1.0, 3))
    if tags and policy is InnerVlan.DROP:
        assert left == b""
        assert drops(one) == {Drop.TX_TAGGED: 3}
        return
    stripped = policy is InnerVlan.STRIP
    assert left == (bytes(ether(ip4(udp()))) if stripped else tagged)
    assert drops(one) == {}


# --- whatever comes ---------------------------------------------------------------------------

POLICIES = st.builds(
    SegmentPolicy,
    reserved_bits=st.sampled_from([0, STRICT, 0xFF]),
    groups=st.sampled_from([None, GroupPolicy(), GroupPolicy(accepted=frozenset({7}))]),
    inner_vlan=st.sampled_from(InnerVlan),
)


HEADERS = st.one_of(
    st.sampled_from([vxlan.pack(VNI), vxlan.pack(VNI, 7), group_header(7, flags="D")]),
    st.lists(st.sampled_from(RESERVED), max_size=3).map(lambda bits: header_with(*bits)),
    st.binary(max_size=8),
)


@given(POLICIES, HEADERS, HOSTILE, st.booleans())
def test_hostile_datagrams(policy: SegmentPolicy, header: bytes, frame: bytes, known: bool) -> None:
    datagram = header + frame
    one = segment(policy=policy)
    demux = Demux([one])
    admitted = demux.admit(datagram, "192.0.2.1" if known else "198.51.100.1", 1.0)
    dropped = sum(one.counters.drops.values()) + sum(demux.counters.drops.values())
    assert dropped == (admitted is None)
    assert len(one.fdb) == (admitted is not None and not dont_learn(policy, datagram))


def dont_learn(policy: SegmentPolicy, datagram: bytes) -> bool:
    return policy.groups is not None and datagram[0] & 0x80 != 0 and datagram[1] & 0x40 != 0


@given(
    POLICIES,
    HEADERS,
    st.sampled_from([A, B, OWN, bytes(6)]),
    st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.9"]),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
)
def test_what_was_admitted_is_admitted_again_by_its_first_octets(
    policy: SegmentPolicy, header: bytes, source: bytes, host: str, room: int, learning: bool
) -> None:
    """So a repeat may be delivered before it is counted: see `SuperframeRepeat`."""
    fdb = Fdb(VNI, 4789, ageing=300.0, max_addresses=room)
    one = Segment(
        *(VNI, (remote(1), remote(2)), fdb),
        own_mac=OWN,
        learning=learning,
        accept=ANY_SOURCE,
        policy=policy,
    )
    one.set_neighbours(Neighbours(fdb, ageing=0.0, max_neighbours=0))
    one.set_gateways(Gateways([ip_address("192.0.2.254")]))
    fdb.add(B, remote(2), 0.0)
    fdb.learn(A, remote(1), 0.0)
    demux = Demux([one])
    datagram = header + FRAME[:6] + source + FRAME[12:]
    if demux.admit(datagram, host, 1.0) is None:
        return
    entry = fdb.lookup(source)
    received = 0 if entry is None else entry.rx_frames
    assert demux.admit(datagram[:INNER_MIN], host, 1.0, 5) is one
    assert drops(one) == {}
    dont_learn = policy.groups is not None and header[0] & 0x80 and header[1] & 0x40
    counted = 5 if learning and entry is not None and not dont_learn else 0
    assert entry is fdb.lookup(source)
    assert entry is None or entry.rx_frames == received + counted
