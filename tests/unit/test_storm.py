"""Storm control: classes, the reserve, and meters."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.counters import Counters, Drop
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.forwarding.storm import (
    RESERVE_RATE,
    UNLIMITED,
    FloodSource,
    Limit,
    StormControl,
    StormLimits,
    StormMeter,
    default_burst,
)
from vtep.wire import vxlan
from vtep.wire.storm_class import RESERVE, StormClass, has_reserve

SOURCE = b"\2\0\0\0\0\7"
BROADCAST = b"\xff" * 6
MULTICAST = b"\1\0\x5e\1\1\1"
ND_TARGET = b"\x33\x33\xff\0\0\1"


def udp(to: bytes) -> bytes:
    return to + SOURCE + b"\x08\0" + bytes(50)


def neighbour_discovery(kind: int, tag: bytes = b"") -> bytes:
    header = bytes((0x60, 0, 0, 0, 0, 24, 58, 255)) + bytes(32)
    return ND_TARGET + SOURCE + tag + b"\x86\xdd" + header + bytes((kind,)) + bytes(23)


ARP = BROADCAST + SOURCE + b"\x08\x06" + bytes(46)

LIMITS = StormLimits(Limit(10, 5), Limit(20, 7), Limit(30, 9))


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (ARP, True),
        (BROADCAST + SOURCE + b"\x81\0\0\5\x08\x06" + bytes(46), True),
        (neighbour_discovery(135), True),
        (neighbour_discovery(135, b"\x81\0\0\5"), True),
        (neighbour_discovery(128), False),
        (neighbour_discovery(135)[:54], False),
        (bytes.fromhex("0180c200000e") + SOURCE + b"\x88\xcc" + bytes(46), True),
        (bytes.fromhex("0180c2000010") + SOURCE + b"\x88\xcc" + bytes(46), False),
        (BROADCAST + SOURCE + b"\x81\0", False),
        (udp(BROADCAST), False),
        (udp(MULTICAST), False),
    ],
)
def test_the_reserve_is_for_frames_that_keep_a_network_together(
    frame: bytes, expected: bool
) -> None:
    assert has_reserve(frame) is expected


def test_each_class_has_its_own_limit() -> None:
    meter = StormMeter(LIMITS)
    assert [meter.excess(udp(BROADCAST), 0.0) for _ in range(6)] == [
        *[None] * 5,
        StormClass.BROADCAST,
    ]
    assert [meter.excess(udp(MULTICAST), 0.0) for _ in range(8)] == [
        *[None] * 7,
        StormClass.MULTICAST,
    ]
    assert [meter.take_unknown_unicast(0.0) for _ in range(10)] == [*[True] * 9, False]


def test_a_storm_of_a_class_leaves_the_reserve_to_control_frames() -> None:
    meter = StormMeter(LIMITS)
    for _ in range(100):
        meter.excess(udp(MULTICAST), 0.0)
        meter.excess(udp(BROADCAST), 0.0)
    control = (ARP, neighbour_discovery(136))
    passed = sum(meter.excess(control[n % 2], 0.0) is None for n in range(2 * RESERVE_RATE))
    assert passed == RESERVE_RATE


def test_a_superframe_counts_as_its_segments() -> None:
    meter = StormMeter(LIMITS)
    assert meter.excess(udp(MULTICAST), 0.0, 45) is None
    # 38 in debt, which takes 1.95 s to repay.
    assert meter.excess(udp(MULTICAST), 1.9) is StormClass.MULTICAST
    assert meter.excess(udp(MULTICAST), 1.96) is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from([udp(BROADCAST), udp(MULTICAST), ARP, neighbour_discovery(135)]),
        ),
        max_size=200,
    )
)
def test_grants_are_what_a_meter_admits(frames: list[tuple[int, bytes]]) -> None:
    """Compiled turns may pass exactly the frames that the slow path would pass."""
    meter, now = StormMeter(LIMITS), 0.0
    for pause, frame in frames:
        now += pause / 16
        kind = StormClass.BROADCAST if frame[0] == 0xFF else StormClass.MULTICAST
        grants = meter.grants(now)
        allowed = grants[kind] > 0 or (has_reserve(frame) and grants[RESERVE] > 0)
        assert (meter.excess(frame, now) is None) is allowed
        assert meter.is_used


def test_a_storm_begins_and_ends_once_for_each_source() -> None:
    """However often its limit is exceeded in between, and whoever else floods."""
    counters = Counters()
    control = StormControl(counters)
    control.set_limits(LIMITS)
    told: list[tuple[str, FloodSource, int]] = []
    control.watchers.append(lambda what, storm: told.append((what, storm.source, storm.dropped)))

    def flood(now: float, *, host: str | None, count: int = 100) -> None:
        for _ in range(count):
            if host is None:
                control.limit_group(udp(BROADCAST), now)
                control.limit_unknown_unicast(udp(SOURCE), now)
            else:
                control.limit_remote(udp(MULTICAST), host, now, 1)

    def look(now: float) -> list[tuple[str, FloodSource, int]]:
        control.find_storms(now)
        found = told.copy()
        told.clear()
        return found

    assert look(0.0) == []
    flood(0.5, host=None)
    flood(0.5, host="192.0.2.2")
    flood(0.5, host="192.0.2.3", count=7)  # Within the limit.
    broadcast = FloodSource(StormClass.BROADCAST, from_tap=True)
    unknown = FloodSource(StormClass.UNKNOWN_UNICAST, from_tap=True)
    multicast = FloodSource(StormClass.MULTICAST, from_tap=False, remote="192.0.2.2")
    assert look(1.0) == [
        ("began", broadcast, 95),
        ("began", unknown, 91),
        ("began", multicast, 93),
    ]
    assert [storm.source for storm in control.storms] == [broadcast, unknown, multicast]
    # Of the others there is none more. This one goes on, with a pause.
    for second in (2.0, 8.0, 17.0):
        flood(second - 0.5, host="192.0.2.2")
        assert ("ended", multicast) not in {each[:2] for each in look(second)}
    assert [storm.source for storm in control.storms] == [multicast]
    assert look(26.9) == []
    (ended,) = look(27.0)
    assert ended[:2] == ("ended", multicast)
    assert ended[2] == counters.drops[Drop.STORM_MULTICAST_RX]
    assert control.storms == ()
    # Without limits, a storm is over as well.
    flood(30.0, host=None)
    assert [each[0] for each in look(30.0)] == ["began", "began"]
    control.set_limits(StormLimits())
    flood(31.0, host=None)
    assert look(31.0) == []
    assert [each[0] for each in look(40.0)] == ["ended", "ended"]


def test_storms_of_remotes_that_share_a_meter_are_one() -> None:
    control = StormControl(Counters())
    control.set_limits(LIMITS)
    began: list[FloodSource] = []
    control.watchers.append(lambda _what, storm: began.append(storm.source))
    for number in range(4096 + 1000):
        for _ in range(7):
            control.limit_remote(udp(BROADCAST), f"2001:db8::{number:x}", 1.0, 1)
    control.find_storms(1.0)
    assert len(began) == 4096 + 1
    assert began[-1] == FloodSource(StormClass.BROADCAST, from_tap=False)


def test_without_a_limit_everything_is_granted() -> None:
    meter = StormMeter(StormLimits(broadcast=Limit(1, 1)))
    assert meter.grants(0.0) == [1, UNLIMITED, UNLIMITED, RESERVE_RATE]
    assert not meter.is_used
    assert all(meter.excess(udp(MULTICAST), 0.0) is None for _ in range(1000))
    assert all(meter.take_unknown_unicast(0.0) for _ in range(1000))


def test_forged_sources_neither_fill_the_memory_nor_multiply_the_limit() -> None:
    control = StormControl(Counters())
    control.set_limits(LIMITS)
    passed = 0
    for number in range(20000):
        meter = control.of_remote(f"2001:db8::{number:x}", 1.0)
        while meter.excess(udp(BROADCAST), 1.0) is None:
            passed += 1
    assert passed == (4096 + 1) * 5
    # Those that were not heard of for a while make room.
    meter = control.of_remote("2001:db8:1::1", 100.0)
    assert meter is control.of_remote("2001:db8:1::1", 100.0)
    assert meter is not control.of_remote("2001:db8:1::2", 100.0)


def test_one_remote_leaves_the_limits_of_others_alone() -> None:
    fdb = Fdb(5, 4789, ageing=300, max_addresses=0)
    hosts = ["192.0.2.2", "192.0.2.3"]
    segment = Segment(
        5, [Remote(host, 4789) for host in hosts], fdb, own_mac=b"\2\0\0\0\0\1", learning=True
    )
    segment.set_storm_limits(LIMITS)
    demux = Demux([segment])

    def receive(source: str, to: bytes, number: int = 16, count: int = 1) -> int:
        datagram = vxlan.pack(5) + to + struct.pack("!HI", 0x0200, number) + bytes(52)
        return sum(demux.admit(datagram, source, 0.0) is not None for _ in range(count))

    assert receive(hosts[0], BROADCAST, count=100) == 5
    assert receive(hosts[1], BROADCAST, count=100) == 5
    assert receive(hosts[0], MULTICAST, count=100) == 7
    # A storm of new MACs teaches nothing beyond the limit, and unicast is not limited.
    before = segment.counters.fdb_learned
    for number in range(102, 150):
        receive(hosts[0], BROADCAST, number)
    assert segment.counters.fdb_learned == before
    assert receive(hosts[0], b"\2\0\0\0\0\x99", count=100) == 100
    # A stranger is dropped as such, and takes no tokens.
    assert receive("192.0.2.9", BROADCAST, count=10) == 0
    drops = segment.counters.drops
    assert drops[Drop.STORM_BROADCAST_RX] == 95 + 95 + 48
    assert drops[Drop.STORM_MULTICAST_RX] == 93
    assert drops[Drop.SOURCE_UNKNOWN] == 10
    assert segment.counters.last_source[Drop.STORM_BROADCAST_RX] == hosts[0]


def test_a_burst_lasts_a_tenth_of_a_second_but_for_low_rates() -> None:
    assert [default_burst(rate) for rate in (1, 60, 500, 10_000)] == [1, 60, 100, 1000]
