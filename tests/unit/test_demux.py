"""Demux and Segment: the decisions, as tables."""

import struct
from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.craft import BROADCAST, MAC_A, MAC_B, VALID, ether, ip4, mac, mutated, udp, vxlan
from tests.unit.steps import routed
from vtep.counters import Drop, Notice
from vtep.daemon.drop_log import DropLog
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Filter, Learned, Remote
from vtep.forwarding.segment import Segment

ONE = Remote("192.0.2.1", 4789)
TWO = Remote("192.0.2.2", 4789)
THREE = Remote("2001:db8::3", 4789)
STRANGER = "198.51.100.1"
OWN = mac("02:00:00:00:00:ee")
A, B = mac(MAC_A), mac(MAC_B)
VNI = 0x123456


def segment(
    vni: int = VNI, *remotes: Remote, max_addresses: int = 0, learning: bool = True
) -> Segment:
    fdb = Fdb(vni, 4789, ageing=300.0, max_addresses=max_addresses)
    listed = remotes or (ONE, TWO, THREE)
    return Segment(vni, listed, fdb, own_mac=OWN, learning=learning)


def admit(one: Segment, datagram: bytes, source: str, now: float) -> bool:
    return one.admit(datagram[14:20], source, now)


def frame(*, src: str | bytes = MAC_A, dst: str | bytes = MAC_B) -> bytes:
    source = mac(src) if isinstance(src, str) else src
    destination = mac(dst) if isinstance(dst, str) else dst
    return destination + source + bytes(ether(ip4(udp())))[12:]


def drops(demux: Demux) -> dict[Drop, int]:
    """Return all drops of the demux and its segments by reason."""
    total: dict[Drop, int] = {}
    for counters in (demux.counters, *(each.counters for each in demux.segments.values())):
        for reason, count in counters.drops.items():
            if count:
                total[reason] = total.get(reason, 0) + count
    return total


def known(one: Segment) -> dict[bytes, tuple[Remote, ...]]:
    return {entry.mac: entry.destinations for entry in one.fdb}


# --- what came together -----------------------------------------------------------------------

HEADER = vxlan(b"", VNI)
FIRST, OTHER = vxlan(bytes(32), VNI), vxlan(bytes(32), 7)
NOTHING = bytes(40)


@pytest.mark.parametrize(
    ("rows", "taken", "dropped"),
    [
        pytest.param([FIRST, NOTHING], 0, 0, id="payload"),
        pytest.param([FIRST, b"\xff" * 40], 0, 0, id="other-payload"),
        pytest.param([FIRST, HEADER[:7]], 0, 0, id="too-short"),
        pytest.param([FIRST, vxlan(bytes(32), 8)], 0, 0, id="no-vni-of-ours"),
        pytest.param([FIRST, FIRST], 80, 0, id="two"),
        pytest.param([FIRST, FIRST, HEADER], 88, 0, id="short-end"),
        pytest.param([FIRST, OTHER], 40, 1, id="other-vni"),
        pytest.param([FIRST, OTHER, FIRST], 40, 2, id="other-vni-between"),
        pytest.param([FIRST, FIRST, OTHER, NOTHING], 80, 2, id="other-vni-later"),
        pytest.param([FIRST, FIRST, NOTHING], 80, 1, id="anything-later"),
        pytest.param([FIRST, b"\x88\0\x12\x34" + FIRST[4:]], 40, 1, id="group"),
    ],
)
def test_gro_batch_whose_first_datagram_claims_all(
    rows: list[bytes], taken: int, dropped: int
) -> None:
    demux = Demux([segment(), segment(7)])
    assert demux.check_gro_batch(memoryview(b"".join(rows)), 40, "192.0.2.1") == taken
    assert drops(demux) == ({Drop.GRO_BATCH_MISMATCH: dropped} if dropped else {})


# --- what is let in ---------------------------------------------------------------------------

GOOD = vxlan(frame(), VNI)

FAULTS: dict[Drop, Callable[[bytes], bytes]] = {
    Drop.HEADER_TRUNCATED: lambda datagram: datagram[:7],
    Drop.FLAGS_INVALID: lambda datagram: bytes([datagram[0] & ~0x08]) + datagram[1:],
    Drop.HEADER_GPE: lambda datagram: bytes([datagram[0] | 0x04]) + datagram[1:],
    Drop.VNI_UNKNOWN: lambda datagram: datagram[:4] + b"\x65\x43\x21" + datagram[7:],
    Drop.SOURCE_UNKNOWN: lambda datagram: datagram,  # It is sent by a stranger.
    Drop.INNER_RUNT: lambda datagram: datagram[: 8 + 13],
    Drop.INNER_SOURCE_INVALID: lambda datagram: datagram[:14] + mac(BROADCAST) + datagram[20:],
    Drop.INNER_SOURCE_OWN: lambda datagram: datagram[:14] + OWN + datagram[20:],
}
"""Each way to be dropped, in the order in which a datagram is judged, and how to deserve it."""


def receive(demux: Demux, *faults: Drop) -> Segment | None:
    datagram = GOOD
    for fault in reversed(faults):
        datagram = FAULTS[fault](datagram)
    return demux.admit(datagram, STRANGER if Drop.SOURCE_UNKNOWN in faults else ONE.host, 1.0)


def test_valid_datagram() -> None:
    demux = Demux([segment()])
    assert receive(demux) is demux.segments[VNI]
    assert drops(demux) == {}
    assert known(demux.segments[VNI]) == {A: (ONE,)}


@pytest.mark.parametrize("reason", FAULTS)
def test_drop(reason: Drop) -> None:
    demux = Demux([segment()])
    assert receive(demux, reason) is None
    assert drops(demux) == {reason: 1}
    assert known(demux.segments[VNI]) == {}


PAIRS = [
    pair
    for pair in combinations(FAULTS, 2)
    if pair != (Drop.INNER_SOURCE_INVALID, Drop.INNER_SOURCE_OWN)  # One MAC cannot be both.
]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda reason: reason.value)
def test_order_of_checks(first: Drop, second: Drop) -> None:
    demux = Demux([segment()])
    assert receive(demux, first, second) is None
    assert drops(demux) == {first: 1}


def test_all_faults_at_once_count_once() -> None:
    demux = Demux([segment()])
    assert receive(demux, *FAULTS) is None
    assert drops(demux) == {Drop.HEADER_TRUNCATED: 1}


BEFORE_SEGMENT = {
    Drop.HEADER_TRUNCATED,
    Drop.FLAGS_INVALID,
    Drop.HEADER_GPE,
    Drop.VNI_UNKNOWN,
}


@pytest.mark.parametrize("reason", FAULTS)
def test_counters_and_source_of_a_drop(reason: Drop) -> None:
    demux = Demux([segment()])
    receive(demux, reason)
    host = STRANGER if reason is Drop.SOURCE_UNKNOWN else ONE.host
    counters = demux.counters if reason in BEFORE_SEGMENT else demux.segments[VNI].counters
    assert counters.drops[reason] == 1
    assert counters.last_source == {reason: host}


@pytest.mark.parametrize("length", range(len(GOOD) + 1))
def test_every_length(length: int) -> None:
    demux = Demux([segment()])
    admitted = demux.admit(GOOD[:length], ONE.host, 1.0)
    if length < 8:
        assert drops(demux) == {Drop.HEADER_TRUNCATED: 1}
    elif length < 22:
        assert drops(demux) == {Drop.INNER_RUNT: 1}
    else:
        assert drops(demux) == {}
    assert (admitted is not None) is (length >= 22)


@pytest.mark.parametrize("flags", [0x08, 0x48, 0x88, 0xC8])
@pytest.mark.parametrize("reserved", [b"\0\0\0", b"\xff\xff\xff", b"\x80\0\x01"])
@pytest.mark.parametrize("last", [0x00, 0x01, 0x80, 0xFF])
def test_reserved_bits_are_ignored(flags: int, reserved: bytes, last: int) -> None:
    header = bytes([flags]) + reserved + VNI.to_bytes(3, "big") + bytes([last])
    demux = Demux([segment()])
    assert demux.admit(header + frame(), ONE.host, 1.0) is demux.segments[VNI]
    assert drops(demux) == {}


@pytest.mark.parametrize("flags", [0x09, 0x0A, 0x0C, 0x0F, 0x18, 0x28, 0xFF])
@pytest.mark.parametrize("length", [8, 21, None], ids=["no-frame", "runt", "frame"])
def test_the_generic_protocol_extension_is_refused(flags: int, length: int | None) -> None:
    """Its payload is not Ethernet, or not meant for the segment."""
    header = bytes([flags, 0, 0, 1]) + VNI.to_bytes(3, "big") + b"\0"
    demux = Demux([segment()])
    assert demux.admit((header + frame())[:length], ONE.host, 1.0) is None
    assert drops(demux) == {Drop.HEADER_GPE: 1}
    assert known(demux.segments[VNI]) == {}


@pytest.mark.parametrize("flags", [0x00, 0x04, 0x10, 0x80, 0xF7])
@pytest.mark.parametrize("reserved", [b"\0\0\0", b"\xff\xff\xff", b"\x08\x08\x08"])
def test_no_other_bit_stands_for_the_i_flag(flags: int, reserved: bytes) -> None:
    header = bytes([flags]) + reserved + VNI.to_bytes(3, "big") + b"\0"
    demux = Demux([segment()])
    assert demux.admit(header + frame(), ONE.host, 1.0) is None
    assert drops(demux) == {Drop.FLAGS_INVALID: 1}


@pytest.mark.parametrize("vni", [0, 1, 0x563412, 0x123457, 0x1234, 0x345600, 0xFFFFFF])
def test_foreign_vni(vni: int) -> None:
    demux = Demux([segment()])
    assert demux.admit(vxlan(frame(), vni), ONE.host, 1.0) is None
    assert drops(demux) == {Drop.VNI_UNKNOWN: 1}


@pytest.mark.parametrize("vni", [0, 1, 0x563412, 0xFFFFFF])
def test_own_vni(vni: int) -> None:
    demux = Demux([segment(vni)])
    assert demux.admit(vxlan(frame(), vni), ONE.host, 1.0) is demux.segments[vni]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer(kind: type) -> None:
    demux = Demux([segment()])
    assert demux.admit(kind(bytearray(GOOD)), ONE.host, 1.0) is demux.segments[VNI]


def test_learned_macs_do_not_refer_to_the_buffer() -> None:
    # The engine reads every datagram into the same memory.
    buffer = bytearray(GOOD)
    demux = Demux([segment()])
    demux.admit(memoryview(buffer), ONE.host, 1.0)
    buffer[:] = bytes(len(buffer))
    assert known(demux.segments[VNI]) == {A: (ONE,)}


# --- what the log says ------------------------------------------------------------------------

VXLAN = "08000000" + f"{VNI:06x}" + "00"
LINES = {
    Drop.HEADER_TRUNCATED: "7 octets",
    Drop.FLAGS_INVALID: f"header 00{VXLAN[2:]}",
    Drop.HEADER_GPE: f"header 0c{VXLAN[2:]}",
    Drop.VNI_UNKNOWN: f"vni {0x654321}",
    Drop.SOURCE_UNKNOWN: "",
    Drop.INNER_RUNT: "inner frame of 13 octets",
    Drop.INNER_SOURCE_INVALID: f"source MAC {BROADCAST}",
    Drop.INNER_SOURCE_OWN: "source MAC 02:00:00:00:00:ee",
}


@pytest.mark.parametrize("reason", FAULTS)
def test_drop_details_in_the_log(reason: Drop) -> None:
    demux = Demux([segment()])
    receive(demux, reason)
    parts = [("", demux.counters), ("", demux.segments[VNI].counters)]
    (line,) = DropLog().news(0.0, parts)
    host = STRANGER if reason is Drop.SOURCE_UNKNOWN else ONE.host
    last = ", ".join(filter(None, (host, LINES[reason])))
    assert line == f"dropped 1 x {reason}: {reason.meaning} (last: {last})"


# --- what is learned --------------------------------------------------------------------------

SOURCES = [
    pytest.param(MAC_A, None, id="local"),
    pytest.param("00:00:00:00:00:01", None, id="nearly zero"),
    pytest.param("fe:ff:ff:ff:ff:ff", None, id="nearly broadcast"),
    pytest.param("00:00:5e:00:01:01", None, id="vrrp"),
    pytest.param("02:00:00:00:00:ef", None, id="nearly our own"),
    pytest.param("00:00:00:00:00:00", Drop.INNER_SOURCE_INVALID, id="zero"),
    pytest.param(BROADCAST, Drop.INNER_SOURCE_INVALID, id="broadcast"),
    pytest.param("01:00:5e:00:00:01", Drop.INNER_SOURCE_INVALID, id="ipv4 multicast"),
    pytest.param("33:33:00:00:00:01", Drop.INNER_SOURCE_INVALID, id="ipv6 multicast"),
    pytest.param("01:00:00:00:00:00", Drop.INNER_SOURCE_INVALID, id="only the group bit"),
    pytest.param("02:00:00:00:00:ee", Drop.INNER_SOURCE_OWN, id="our own"),
]


@pytest.mark.parametrize("learning", [True, False], ids=["learning", "not learning"])
@pytest.mark.parametrize(("source", "reason"), SOURCES)
def test_source_mac(source: str, reason: Drop | None, learning: bool) -> None:
    one = segment(learning=learning)
    admitted = admit(one, vxlan(frame(src=source)), ONE.host, 1.0)
    assert admitted is (reason is None)
    assert drops(Demux([one])) == ({} if reason is None else {reason: 1})
    assert known(one) == ({mac(source): (ONE,)} if learning and admitted else {})
    assert one.counters.fdb_learned == len(known(one))


@pytest.mark.parametrize(
    "destination", [MAC_B, BROADCAST, "33:33:00:00:00:01", "00:00:00:00:00:00", "02:00:00:00:00:ee"]
)
def test_any_destination_is_admitted(destination: str) -> None:
    one = segment()
    assert admit(one, vxlan(frame(dst=destination)), ONE.host, 1.0)
    assert known(one) == {A: (ONE,)}


@pytest.mark.parametrize("name", VALID)
def test_any_payload_is_admitted(name: str) -> None:
    demux = Demux([segment()])
    assert demux.admit(vxlan(VALID[name], VNI), TWO.host, 1.0) is demux.segments[VNI]
    assert known(demux.segments[VNI]) == {A: (TWO,)}


def test_every_remote_is_accepted() -> None:
    one = segment()
    for number, remote in enumerate((ONE, TWO, THREE)):
        source = bytes((2, 0, 0, 0, 1, number))
        assert admit(one, vxlan(frame(src=source)), remote.host, 1.0)
        assert known(one)[source] == (remote,)


def learning_counters(one: Segment) -> tuple[int, int, int]:
    return one.counters.fdb_learned, one.counters.fdb_moved, one.counters.fdb_full


def test_counters_of_learning() -> None:
    one = segment(max_addresses=1)
    steps = [
        (A, ONE, (1, 0, 0)),
        (A, ONE, (1, 0, 0)),
        (A, TWO, (1, 1, 0)),
        (A, TWO, (1, 1, 0)),
        (B, ONE, (1, 1, 1)),
        (B, ONE, (1, 1, 2)),
        (A, ONE, (1, 2, 2)),
    ]
    for number, (source, remote, expected) in enumerate(steps):
        assert admit(one, vxlan(frame(src=source)), remote.host, float(number)), number
        assert learning_counters(one) == expected, number
    assert known(one) == {A: (ONE,)}
    assert drops(Demux([one])) == {}


def test_a_remote_over_its_quota_does_not_keep_others_from_being_learned() -> None:
    one = segment(max_addresses=6)
    for number in range(20):
        source = bytes((2, 0, 0, 0, 0, number))
        assert admit(one, vxlan(frame(src=source)), ONE.host, 1.0)
    assert admit(one, vxlan(frame(src=B)), TWO.host, 1.0)
    assert len(known(one)) == 4
    assert known(one)[B] == (TWO,)
    assert (one.counters.fdb_quota, one.counters.fdb_full) == (17, 0)
    assert one.counters.last_source == {Notice.FDB_QUOTA: ONE.host}
    for number in range(20):
        admit(one, vxlan(frame(src=bytes((2, 0, 0, 0, 1, number)))), TWO.host, 1.0)
    admit(one, vxlan(frame(src=bytes((2, 0, 0, 0, 2, 0)))), THREE.host, 1.0)
    assert (one.counters.fdb_full, len(known(one))) == (19, 6)
    assert one.counters.last_source[Notice.FDB_FULL] == THREE.host


def test_frames_to_a_mac_not_learned_by_a_full_table_are_flooded() -> None:
    one = segment(max_addresses=1)
    admit(one, vxlan(frame(src=A)), ONE.host, 1.0)
    admit(one, vxlan(frame(src=B)), ONE.host, 1.0)
    assert tuple(routed(one, frame(dst=A))) == (ONE,)
    assert tuple(routed(one, frame(dst=B))) == (ONE, TWO, THREE)


def test_time_of_learning_is_the_one_given() -> None:
    one = segment()
    admit(one, GOOD, ONE.host, 17.25)
    assert [entry.updated for entry in one.fdb] == [17.25]
    admit(one, GOOD, ONE.host, 18.0)
    assert [entry.updated for entry in one.fdb] == [18.0]


def test_a_dropped_frame_refreshes_nothing() -> None:
    demux = Demux([segment()])
    receive(demux)
    for reason, spoil in FAULTS.items():
        datagram = spoil(GOOD)
        host = STRANGER if reason is Drop.SOURCE_UNKNOWN else TWO.host
        assert demux.admit(datagram, host, 99.0) is None
    assert [(entry.destinations, entry.updated) for entry in demux.segments[VNI].fdb] == [
        ((ONE,), 1.0)
    ]


# --- where frames go --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        pytest.param(MAC_A, (TWO,), id="known unicast"),
        pytest.param(MAC_B, (ONE, TWO, THREE), id="unknown unicast"),
        pytest.param(BROADCAST, (ONE, TWO, THREE), id="broadcast"),
        pytest.param("01:00:5e:00:00:fb", (ONE, TWO, THREE), id="ipv4 multicast"),
        pytest.param("33:33:ff:00:00:02", (ONE, TWO, THREE), id="ipv6 multicast"),
        pytest.param("00:00:00:00:00:00", (ONE, TWO, THREE), id="zero"),
        pytest.param("03:00:00:00:00:0a", (ONE, TWO, THREE), id="group of a known unicast"),
    ],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_routes(destination: str, expected: tuple[Remote, ...], kind: type) -> None:
    one = segment()
    one.fdb.learn(A, TWO, 1.0)
    assert tuple(routed(one, kind(frame(dst=destination)))) == expected
    assert one.counters.flooded == (len(expected) > 1)


def test_flooding_is_counted_by_frame_also_with_one_remote() -> None:
    one = segment(VNI, ONE)
    for _ in range(3):
        assert tuple(routed(one, frame(dst=BROADCAST))) == (ONE,)
    assert one.counters.flooded == 3


def test_shortest_frame_has_a_route() -> None:
    one = segment()
    one.fdb.learn(A, TWO, 1.0)
    assert tuple(routed(one, frame(dst=A)[:14])) == (TWO,)


def test_order_of_replication_is_that_of_the_remotes() -> None:
    assert tuple(routed(segment(VNI, THREE, ONE, TWO), frame())) == (THREE, ONE, TWO)


@pytest.mark.parametrize("destination", [A, B, BROADCAST])
@pytest.mark.parametrize("remotes", [(), (ONE, TWO)])
def test_a_route_changes_nothing(destination: str | bytes, remotes: tuple[Remote, ...]) -> None:
    one = segment(VNI, *remotes)
    one.fdb.add(A, TWO, 0.0)
    before = one.counters.as_dict()
    route = one.route(frame(dst=destination))
    assert one.counters.as_dict() == before
    assert [entry.tx_frames for entry in one.fdb.entries()] == [0] * len([*one.fdb.entries()])
    # What it says is what is counted then.
    one.account(route, 3, 180)
    counted = {name for name, count in one.counters.as_dict().items() if count}
    flooded = set() if destination == A else {"flooded"}
    dropped = set() if route.reason is None else {f"drop_{route.reason}"}
    assert counted == {"tx_frames", "tx_bytes"} | flooded | dropped
    assert bool(dropped) is not bool(route.destinations)


def test_routes_follow_a_move() -> None:
    one = segment()
    admit(one, GOOD, ONE.host, 1.0)
    assert tuple(routed(one, frame(dst=A))) == (ONE,)
    admit(one, GOOD, TWO.host, 2.0)
    assert tuple(routed(one, frame(dst=A))) == (TWO,)


def test_nothing_is_learned_from_sent_frames() -> None:
    one = segment()
    one.fdb.learn(B, TWO, 1.0)
    routed(one, frame(src=A, dst=B))
    assert known(one) == {B: (TWO,)}
    assert [entry.updated for entry in one.fdb] == [1.0]


def test_frames_to_an_expired_mac_are_flooded() -> None:
    one = segment()
    admit(one, GOOD, ONE.host, 1.0)
    one.fdb.sweep(301.0)
    assert len(routed(one, frame(dst=A))) == 3


def test_without_learning_only_configured_entries_are_used() -> None:
    one = segment(learning=False)
    admit(one, GOOD, ONE.host, 1.0)
    assert len(routed(one, frame(dst=A))) == 3
    assert one.fdb.learn(A, TWO, 1.0) is Learned.ADDED
    assert admit(one, GOOD, ONE.host, 2.0)
    assert tuple(routed(one, frame(dst=A))) == (TWO,)
    assert learning_counters(one) == (0, 0, 0)


# --- segments ---------------------------------------------------------------------------------


def two_segments() -> tuple[Demux, Segment, Segment]:
    red, blue = segment(10, ONE, TWO), segment(20, TWO, THREE)
    return Demux([red, blue]), red, blue


def test_datagram_goes_to_the_segment_of_its_vni() -> None:
    demux, red, blue = two_segments()
    assert demux.admit(vxlan(frame(), 10), TWO.host, 1.0) is red
    assert demux.admit(vxlan(frame(), 20), TWO.host, 1.0) is blue
    assert demux.admit(vxlan(frame(), 30), TWO.host, 1.0) is None


def test_segments_learn_apart() -> None:
    demux, red, blue = two_segments()
    demux.admit(vxlan(frame(), 10), TWO.host, 1.0)
    assert known(red) == {A: (TWO,)}
    assert known(blue) == {}
    assert tuple(routed(blue, frame(dst=A))) == (TWO, THREE)
    demux.admit(vxlan(frame(), 20), THREE.host, 1.0)
    assert known(red) == {A: (TWO,)}
    assert known(blue) == {A: (THREE,)}
    assert (red.counters.fdb_moved, blue.counters.fdb_moved) == (0, 0)


def test_a_remote_of_another_segment_is_not_accepted() -> None:
    demux, red, blue = two_segments()
    assert demux.admit(vxlan(frame(), 10), THREE.host, 1.0) is None
    assert demux.admit(vxlan(frame(), 20), ONE.host, 1.0) is None
    assert red.counters.last_source == {Drop.SOURCE_UNKNOWN: THREE.host}
    assert blue.counters.last_source == {Drop.SOURCE_UNKNOWN: ONE.host}
    assert drops(demux) == {Drop.SOURCE_UNKNOWN: 2}


# --- whatever comes ---------------------------------------------------------------------------

HOSTS = st.sampled_from([ONE.host, TWO.host, THREE.host, STRANGER, ""])


def verdict(datagram: bytes, source: str) -> Drop | None:
    """Decide again, from the figure of the header in the RFC instead of its text."""
    faults = [
        (len(datagram) < 8, Drop.HEADER_TRUNCATED),
        (datagram[:1].hex()[1:] not in tuple("89abcdef"), Drop.FLAGS_INVALID),
        (datagram[:1].hex() not in ("08", "48", "88", "c8"), Drop.HEADER_GPE),
        (datagram[4:7].hex() != f"{VNI:06x}", Drop.VNI_UNKNOWN),
        (source not in (ONE.host, TWO.host, THREE.host), Drop.SOURCE_UNKNOWN),
        (len(datagram[8:]) < 14, Drop.INNER_RUNT),
        (datagram[14:15].hex()[1:] in tuple("13579bdf"), Drop.INNER_SOURCE_INVALID),
        (not any(datagram[14:20]), Drop.INNER_SOURCE_INVALID),
        (datagram[14:20] == OWN, Drop.INNER_SOURCE_OWN),
    ]
    return next((reason for fault, reason in faults if fault), None)


def check_admission(datagram: bytes, source: str) -> None:
    demux = Demux([segment()])
    admitted = demux.admit(datagram, source, 1.0)
    reason = verdict(datagram, source)
    assert drops(demux) == ({} if reason is None else {reason: 1})
    assert admitted is (demux.segments[VNI] if reason is None else None)
    assert set(known(demux.segments[VNI])) == ({datagram[14:20]} if reason is None else set())


@given(st.binary(max_size=64), HOSTS)
def test_any_octets(datagram: bytes, source: str) -> None:
    check_admission(datagram, source)


@given(st.binary(max_size=8), st.binary(max_size=64), HOSTS)
def test_any_octets_behind_a_flag(header: bytes, rest: bytes, source: str) -> None:
    check_admission(b"\x08" + header + rest, source)


MACS = st.one_of(
    st.sampled_from([A, OWN, bytes(6), mac(BROADCAST)]), st.binary(min_size=6, max_size=6)
)


@given(st.integers(0, 255), st.sampled_from([VNI, 0, 5]), MACS, MACS, st.binary(max_size=20), HOSTS)
def test_any_header(flags: int, vni: int, dst: bytes, src: bytes, rest: bytes, source: str) -> None:
    check_admission(struct.pack("!B3xI", flags, vni << 8 | 0xA5) + dst + src + rest, source)


@given(mutated(), HOSTS, st.integers(0, 8 + 14))
def test_any_mutated_frame(inner: bytes, source: str, cut: int) -> None:
    datagram = vxlan(inner, VNI)
    check_admission(datagram, source)
    check_admission(datagram[:cut], source)


@given(st.lists(st.tuples(st.one_of(st.binary(max_size=40), mutated().map(vxlan)), HOSTS)))
def test_each_datagram_is_delivered_or_counted_once(datagrams: list[tuple[bytes, str]]) -> None:
    demux = Demux([segment(1, max_addresses=2)])
    admitted = [demux.admit(datagram, host, 1.0) for datagram, host in datagrams]
    assert sum(drops(demux).values()) == admitted.count(None)
    assert len(demux.segments[1].fdb) <= 2


# --- how much is flushed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wanted",
    [
        Filter(dst="192.0.2.9"),
        Filter(dst="192.0.2.9", permanent=True),
        Filter(port=1111, permanent=True),
        Filter(vni=99, permanent=True),
        Filter(via="eth7", permanent=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("page", [1, 50])
def test_flush_counts_macs_learned_from_a_removed_remote(wanted: Filter, page: int) -> None:
    """A host that is no remote any more takes along what was learned from it."""
    fdb = Fdb(1, 4789, ageing=300.0, max_addresses=0)
    remotes = [Remote("192.0.2.8", 4789), Remote("192.0.2.9", 1111, 99, "eth7")]
    segment = Segment(1, remotes, fdb, own_mac=bytes(6), learning=True)
    deleted = []
    fdb.watch(lambda _event, entry: deleted.append(entry.mac))
    for number in range(40):
        source = segment.source_remote(f"192.0.2.{8 + number % 2}")
        assert source is not None
        fdb.learn(b"\2\0\0\0\0" + bytes([number]), source, 0.0)
    del deleted[:]
    entries = [entry for page in fdb.pages() for entry in page]
    count = sum(
        segment.flush(wanted, entries[at : at + page]) for at in range(0, len(entries), page)
    )
    assert len(fdb) == 20
    assert [remote.host for remote in segment.remotes] == ["192.0.2.8"]
    assert count == len(deleted) == 21
