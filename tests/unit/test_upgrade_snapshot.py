"""The state of a VTEP as messages: whatever it is, the new process gets an equal one."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from itertools import count
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, reject
from hypothesis import strategies as st

from tests.unit.test_config import ACCEPTED
from vtep.config import Config
from vtep.counters import Counters, Drop
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, FdbError
from vtep.forwarding.fdb import (
    EXTERN_LEARN,
    LOCAL,
    DestinationOrigin,
    EntryKind,
    EntryState,
    Fdb,
    Remote,
)
from vtep.forwarding.liveness import LivenessRow, LivenessState
from vtep.upgrade import format as fmt
from vtep.upgrade import snapshot
from vtep.upgrade.format import FormatError, Message
from vtep.upgrade.snapshot import FdbLog
from vtep.wire.ethernet import MAC_ZERO

NOW = 1000.0
LATER = 5000.0
"""The clock of the new process, which may be another one."""


def port(*, proxy: bool = False) -> Port:
    """Return a port that was never opened: it has tables."""
    config = Config(vni=1, remote="192.0.2.2", tap="vx0", max_addresses=0, proxy=proxy)
    return Vtep(config).ports[1]


def sent(kind: str, fields: dict[str, Any]) -> Message:
    """Return a message as it arrives."""
    return fmt.decode(fmt.encode(kind, fields))


# --- the FDB ----------------------------------------------------------------------------------

MACS = st.integers(0, 5).map(lambda number: MAC_ZERO if not number else bytes((2, *[number] * 5)))
REMOTES = st.builds(
    Remote,
    st.sampled_from(("192.0.2.2", "192.0.2.3", "fd00::9")),
    st.sampled_from((4789, 4790)),
    st.none() | st.integers(0, 3),
    st.none() | st.just("eth1"),
)
KINDS = st.builds(
    lambda state, sticky, origin: EntryKind(state, sticky=sticky).with_origins((origin,)),
    st.sampled_from(EntryState),
    st.booleans(),
    st.sampled_from(
        [LOCAL, EXTERN_LEARN, DestinationOrigin(False, True, 7), DestinationOrigin(True, True, 0)]
    ),
)
TIMES = st.floats(NOW - 300, NOW)
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["append", "replace"]), MACS, REMOTES, KINDS),
    st.tuples(st.just("withdraw"), MACS, st.booleans()),
    st.tuples(st.just("remove"), MACS),
    st.tuples(st.just("learn"), MACS.filter(lambda mac: mac != MAC_ZERO), REMOTES),
    st.tuples(st.just("send"), MACS, st.integers(1, 1 << 40)),
)
SERIES = st.lists(OPERATIONS, max_size=20)


def do(fdb: Fdb, clock: Iterator[float], operations: list[Any]) -> None:
    """Do what commands and frames do, if it is possible now."""
    for now, (name, mac, *given_fields) in zip(clock, operations, strict=False):
        entry = fdb.default if mac == MAC_ZERO else fdb.lookup(mac)
        if name == "append":
            remote, kind = given_fields
            if mac != MAC_ZERO or not kind.ages:
                fdb.append(mac, remote, now, kind)
        elif name == "replace":
            with suppress(FdbError):
                fdb.replace(mac, given_fields[0], now, given_fields[1])
        elif name == "withdraw":
            with suppress(FdbError):
                fdb.remove(mac, extern_learn=given_fields[0])
        elif name == "learn":
            fdb.learn(mac, given_fields[0], now)
        elif entry is not None and name == "remove":
            fdb.remove(mac)
        elif entry is not None:
            entry.tx_frames += given_fields[0]


def table(fdb: Fdb, now: float) -> dict[bytes, Any]:
    """Return all that makes up an FDB, with ages in place of times."""
    return {
        entry.mac: (
            [fdb.members.key(each) for each in entry.destinations],
            entry.kind,
            pytest.approx(now - entry.updated, abs=1e-6),
            (entry.tx_frames, entry.rx_frames),
        )
        for entry in fdb.entries()
    }


@given(SERIES, st.lists(SERIES, min_size=1, max_size=3), SERIES, SERIES)
def test_the_fdb_arrives_whatever_happens_meanwhile(
    before: list[Any], between: list[list[Any]], after: list[Any], last: list[Any]
) -> None:
    """Entries change before, between and after the pages, and ages until the end."""
    old, new = port(), port()
    clock = count(NOW - 300)
    do(old.fdb, clock, before)
    fdb_log = FdbLog(old.fdb)
    waiting = iter(between)
    for fields in fdb_log.pages(1, lambda: NOW):
        snapshot.apply_fdb(new, sent(fmt.FDB, fields), LATER)
        do(old.fdb, clock, next(waiting, []))
    do(old.fdb, clock, after)
    for fields in fdb_log.changes(1, NOW):
        snapshot.apply_fdb(new, sent(fmt.FDB, fields), LATER)
    assert fdb_log.changed == set()
    # The old process forwards no more, but some frames were not counted yet.
    do(old.fdb, clock, [each for each in last if each[0] == "send"])
    for fields in fdb_log.refreshed(1, NOW):
        snapshot.apply_refreshed(new, sent(fmt.REFRESHED, fields), LATER)
    fdb_log.close()
    assert table(new.fdb, LATER) == table(old.fdb, NOW)
    assert new.fdb.members.hosts.keys() == old.fdb.members.hosts.keys()


@given(st.lists(st.tuples(MACS.filter(any), st.sampled_from(("192.0.2.2", "192.0.2.3")))))
def test_moves_and_holds_arrive(frames: list[tuple[bytes, str]]) -> None:
    """A MAC that the old process holds is held by the new one, at the same place and as long."""
    old, new = port(), port()
    for each in (old, new):
        each.fdb.moves.configure(2, 300)
    for age, (mac, host) in zip(range(len(frames), 0, -1), frames, strict=True):
        old.fdb.learn(mac, Remote(host, 4789), NOW - age / 100)
    for fields in (*FdbLog(old.fdb).pages(1, lambda: NOW), *snapshot.guard_pages(old, NOW)):
        snapshot.apply_fdb(new, sent(fmt.FDB, fields), LATER)

    expected: list[Any] = [
        (mac, pytest.approx(ages, abs=1e-6), pytest.approx(left, abs=1e-6))
        for mac, ages, left in old.fdb.moves.export(NOW)
    ]
    assert list(new.fdb.moves.export(LATER)) == expected
    assert new.fdb.moves.held == old.fdb.moves.held
    assert [each.mac for each in new.fdb.held()] == [each.mac for each in old.fdb.held()]


def test_blocks_of_loops_arrive_and_the_next_one_is_longer() -> None:
    old, new = port(), port()
    for each in (old, new):
        each.segment.loops.block = 30
    old.segment.loops.note_returned("192.0.2.2", NOW - 10)
    old.segment.loops.note_returned("192.0.2.3", NOW - 100)
    old.segment.loops.unblock(NOW)
    for fields in snapshot.guard_pages(old, NOW):
        snapshot.apply_fdb(new, sent(fmt.FDB, fields), LATER)
    loops = new.segment.loops
    assert loops.blocked == {"192.0.2.2": LATER + 20}
    assert new.segment.has_ingress_policy
    loops.note_returned("192.0.2.3", LATER)
    assert loops.blocked["192.0.2.3"] == LATER + 60


def test_large_tables_travel_in_messages_that_the_kernel_takes() -> None:
    old, new = port(proxy=True), port(proxy=True)
    neighbours = old.segment.neighbours
    assert neighbours is not None
    for number in range(1, 5 * snapshot.PAGE):
        mac = bytes((2, 0, 0, 0, *divmod(number, 256)))
        old.fdb.learn(mac, Remote(f"fd00::{number:x}", 4789, 1 << 20, "interface-15-ch"), NOW)
        neighbours.replace(ip_address(f"fd00::{number:x}"), mac, NOW, vlan=(4094, 4094))
    pages = list(FdbLog(old.fdb).pages(1, lambda: NOW))
    pages += list(snapshot.neighbour_pages(old, NOW))
    assert len(pages) > 5
    for fields in pages:
        message = sent(fmt.FDB, fields)
        assert len(message.items("entries") + message.items("neighbours")) < fmt.MESSAGE_MAX // 100
        snapshot.apply_fdb(new, message, LATER)
        snapshot.apply_neighbours(new, message, LATER)
    assert table(new.fdb, LATER) == table(old.fdb, NOW)
    assert neighbour_table(new, LATER) == neighbour_table(old, NOW)


@pytest.mark.parametrize(
    "fields",
    [
        {"entries": [["02", [], 0, "static", False, False, 0, 0]]},
        {"entries": [["020000000001", [0], 0, "static", False, False, 0, 0]]},
        {"entries": [["020000000001", ["x"], 0, "static", False, False, 0, 0]]},
        {"entries": [["020000000001", [], 0, "frozen", False, False, 0, 0]]},
        {"entries": [["020000000001", [], 0, "static", False, False, 0, 0, [[False, True, 1]]]]},
        {"entries": [["020000000001", [], 0, "static", False, False, 0, 0, [[False, False, 1]]]]},
        {"entries": [["020000000001", [], 0, "static", False, False, 0, 0, [[True, True, -1]]]]},
        {"entries": [["020000000001", [], 0, "static", False, False, 0, 0, [7]]]},
        {"remotes": [["192.0.2.2", 4789, "1", None]]},
        {"remotes": [["192.0.2.2", 4789, True, None]]},
        {"remotes": [["192.0.2.2", 4789, None, 7]]},
        {"deleted": [7]},
    ],
)
def test_rows_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        snapshot.apply_fdb(port(), sent(fmt.FDB, fields), LATER)


def test_rows_of_a_version_without_origins() -> None:
    new = port(proxy=True)
    mac = "020000000001"
    row: list[Any] = [mac, [0], 1.0, "static", True, False, 3, 4]
    fields = {"remotes": [["192.0.2.2", 4789, None, None]], "entries": [row]}
    snapshot.apply_fdb(new, sent(fmt.FDB, fields), LATER)
    entry = new.fdb.get(bytes.fromhex(mac))
    assert (entry.kind, entry.rx_frames) == (EntryKind(EntryState.STATIC, extern_learn=True), 4)
    row = [[], "0a000001", mac, 1.0, True, True]
    snapshot.apply_neighbours(new, sent(fmt.NEIGHBOURS, {"neighbours": [row]}), LATER)
    assert new.segment.neighbours is not None
    (neighbour,) = new.segment.neighbours
    assert (neighbour.router, neighbour.extern_learn) == (True, False)


@pytest.mark.parametrize("age", [10**400, True, "1", None])
def test_ages_of_moves_are_finite_numbers(age: object) -> None:
    to = port()
    to.fdb.learn(bytes((2, 0, 0, 0, 0, 1)), Remote("192.0.2.2", 4789), NOW)
    with pytest.raises(FormatError, match="array of numbers"):
        snapshot.apply_fdb(to, sent(fmt.FDB, {"moves": [["020000000001", [age], 1.0]]}), LATER)


# --- neighbours -------------------------------------------------------------------------------

VLANS = st.lists(st.integers(1, 4094), max_size=2).map(tuple)
ADDRESSES = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).filter(
    lambda address: not address.is_multicast and not address.is_unspecified
)
NEIGHBOURS = st.lists(
    st.tuples(
        *(VLANS, ADDRESSES, st.integers(1, 9), TIMES),
        # Permanent; of a control plane, which is permanent as well; and a router.
        *(st.sampled_from([(False, False), (True, False), (True, True)]), st.booleans()),
    ),
    max_size=9,
)


def neighbour_table(of: Port, now: float) -> list[Any]:
    """Return all that makes up a table of neighbours, with ages in place of times."""
    neighbours = of.segment.neighbours
    assert neighbours is not None
    rows = neighbours.export(now)
    ages = [pytest.approx(row[3], abs=1e-6) for row in rows]
    return sorted(
        ((*row[:3], age, *row[4:]) for row, age in zip(rows, ages, strict=True)),
        key=lambda row: (row[0], row[1]),
    )


@given(NEIGHBOURS)
def test_neighbours_arrive(given_neighbours: list[Any]) -> None:
    old, new = port(proxy=True), port(proxy=True)
    known = old.segment.neighbours
    assert known is not None
    for vlan, address, number, at, (permanent, extern_learn), router in given_neighbours:
        mac, flags = bytes((2, *[number] * 5)), {"permanent": permanent, "router": router}
        known.restore(vlan, address.packed, mac, at, **flags, extern_learn=extern_learn)
    for fields in snapshot.neighbour_pages(old, NOW):
        snapshot.apply_neighbours(new, sent(fmt.NEIGHBOURS, fields), LATER)
        # A segment whose --proxy the file has switched off has no use for them.
        snapshot.apply_neighbours(port(), sent(fmt.NEIGHBOURS, fields), LATER)
    assert neighbour_table(new, LATER) == neighbour_table(old, NOW)


# --- counters ---------------------------------------------------------------------------------

COUNTS = st.dictionaries(
    st.sampled_from(sorted(Counters().as_dict())), st.integers(0, 1 << 50), max_size=12
)
DROPS = {str(reason): reason for reason in Drop}
SOURCES = st.dictionaries(st.sampled_from(Drop), st.just("192.0.2.2"), max_size=3)


def add(counters: Counters, counts: dict[str, int]) -> None:
    for name, number in counts.items():
        if name.startswith("drop_"):
            counters.drops[DROPS[name.removeprefix("drop_")]] += number
        else:
            setattr(counters, name, getattr(counters, name) + number)


@given(COUNTS, COUNTS, COUNTS, SOURCES, SOURCES)
def test_counters_are_added_to_those_of_the_new_process(
    before_reset: dict[str, int],
    since_reset: dict[str, int],
    own: dict[str, int],
    sources: dict[Drop, str],
    own_sources: dict[Drop, str],
) -> None:
    """It has counted for a moment already; times and sources of its own drops are later ones."""
    old, new = Counters(), Counters()
    add(old, before_reset)
    old.reset()
    add(old, since_reset)
    old.last_source.update(sources.items())
    old.note_drops(NOW - 7)
    add(new, own)
    new.last_source = dict.fromkeys(own_sources, "192.0.2.3")
    snapshot.add_counters(new, sent(fmt.COUNTERS, snapshot.counter_fields(old, NOW)), LATER)
    for name, number in new.as_dict().items():
        assert number == old.as_dict()[name] + own.get(name, 0)
        assert new.since_reset()[name] == old.since_reset()[name] + own.get(name, 0)
    new.note_drops(LATER + 1)  # The next tick, in which nothing was dropped.
    for reason in Drop:
        if own.get(f"drop_{reason}"):
            assert new.last_drop[reason] == LATER
        elif reason in old.last_drop:
            assert new.last_drop[reason] == pytest.approx(LATER - 7)
        else:
            assert reason not in new.last_drop
    # The log reports what the new process has dropped, and nothing twice.
    for loss, number in new.losses().items():
        assert number == own.get(f"drop_{loss}" if isinstance(loss, Drop) else str(loss), 0)
    assert new.last_source == dict.fromkeys(sources, "192.0.2.2") | new.last_source
    assert all(new.last_source[reason] == "192.0.2.3" for reason in own_sources)


def test_counters_of_another_version_are_left_out() -> None:
    new = Counters()
    fields = {
        "values": {"tx_frames": 5, "drop_of_the_future": 7},
        "baseline": {"tx_frames": 2, "of_the_future": 1},
        "last_drop": {"of_the_future": 1.0},
        "last_source": {"of_the_future": "192.0.2.2"},
    }
    snapshot.add_counters(new, sent(fmt.COUNTERS, fields), LATER)
    assert (new.tx_frames, new.since_reset()["tx_frames"]) == (5, 3)
    assert (new.last_drop, new.last_source) == ({}, {})


# --- configurations ---------------------------------------------------------------------------


OPTIONS = [(name, value) for name, value, _ in ACCEPTED if not isinstance(value, Iterator)]


@given(st.lists(st.sampled_from(OPTIONS), max_size=6))
def test_a_configuration_arrives(given_options: list[tuple[str, Any]]) -> None:
    try:
        config = Config(**{"vni": 1, **dict(given_options)})
    except ConfigError:  # Some contradict each other.
        reject()
    options = sent(fmt.SEGMENT, {"options": snapshot.config_fields(config)}).mapping("options")
    assert snapshot.parse_config(options) == config


def test_options_of_another_version(caplog: pytest.LogCaptureFixture) -> None:
    """Those that are unknown are left out, and those that are absent have their defaults."""
    config = Config(vni=7, remote="192.0.2.2", tap="vx7", ttl=9)
    options = snapshot.config_fields(config) | {"of-the-future": 1}
    del options["ttl"]
    with caplog.at_level(logging.WARNING, "vtep"):
        assert snapshot.parse_config(options) == evolve(config, ttl=Config(vni=1).ttl)
    assert "--of-the-future of the old process is unknown here" in caplog.text.replace("_", "-")
    with pytest.raises(ConfigError):
        snapshot.parse_config(options | {"ageing": "soon"})
    with pytest.raises(FormatError, match="has no VNI"):
        snapshot.parse_config({"ttl": 9})


# --- remotes ----------------------------------------------------------------------------------


def test_traffic_and_liveness_of_remotes_arrive() -> None:
    old, new = (Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0")) for _ in range(2))
    before, after = old.ports[1], new.ports[1]
    before.segment.count_received("192.0.2.2", 3, 300, NOW - 5)
    before.segment.account(before.segment.route(bytes(14)), 2, 120)
    before.segment.remote_counters["192.0.2.7"].rx_frames = 1  # Removed in the new process.
    after.segment.count_received("192.0.2.2", 1, 60, LATER)
    for fields in snapshot.remote_counter_pages(before, NOW):
        snapshot.add_remote_counters(after, sent(fmt.COUNTERS, fields), LATER)
    (counters,) = after.segment.remote_counters.values()
    assert (counters.rx_frames, counters.rx_bytes) == (4, 360)
    assert (counters.tx_frames, counters.tx_bytes) == (2, 120)
    assert counters.last_rx == LATER

    row = LivenessRow(
        is_pyvtep=True, is_refused=False, missed=3, heard=50.0, replied=60.0, rtt=0.25
    )
    old.liveness.restore("192.0.2.2", 4789, row, NOW)
    for fields in snapshot.liveness_pages(old, NOW):
        snapshot.apply_liveness(new, sent(fmt.COUNTERS, fields), LATER)
    assert new.liveness.export(LATER) == [["192.0.2.2", 4789, *row]]
    found = new.liveness.get("192.0.2.2", 4789)
    assert found is not None
    assert found.state is LivenessState.SILENT
