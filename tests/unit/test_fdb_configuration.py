"""Fdb as people and control planes change it: the verbs of `bridge fdb`, beside a naive model."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.craft import MAC_A, MAC_B, mac
from vtep.errors import FdbError
from vtep.forwarding.fdb import (
    EXTERN_LEARN,
    LEARNED,
    LOCAL,
    PERMANENT,
    DestinationOrigin,
    Entry,
    EntryEvent,
    EntryKind,
    EntryState,
    Fdb,
    Filter,
    Learned,
    Remote,
    parse_remote,
)
from vtep.wire.ethernet import MAC_ZERO

VNI, PORT = 10, 4789
A, B = mac(MAC_A), mac(MAC_B)
GROUP = mac("01:00:5e:00:00:01")
STATIC = EntryKind(EntryState.STATIC)
EXTERN = EntryKind(extern_learn=True)
EXTERN_DYNAMIC = EntryKind(EntryState.DYNAMIC, extern_learn=True)
STICKY = EntryKind(EntryState.DYNAMIC, sticky=True)


def remote(number: int, port: int = PORT, vni: int | None = None, via: str | None = None) -> Remote:
    return Remote(f"192.0.2.{number}", port, vni, via)


def table(*, ageing: float = 300.0, max_addresses: int = 0) -> Fdb:
    return Fdb(VNI, PORT, ageing=ageing, max_addresses=max_addresses)


def where(fdb: Fdb, address: bytes) -> list[str]:
    return [each.host for each in fdb.get(address).destinations]


def shown(fdb: Fdb, wanted: Filter = Filter()) -> list[tuple[str, str, int, int]]:  # noqa: B008
    return [
        (entry.mac.hex(), each.host, each.port, VNI if each.vni is None else each.vni)
        for entry, destinations in fdb.select(wanted)
        for each in destinations
    ]


class EventRecorder:
    """Records the events that a table reports to its watchers."""

    def __init__(self, fdb: Fdb) -> None:
        self.recorded: list[tuple[EntryEvent, bytes, tuple[str, ...]]] = []
        self.unwatch = fdb.watch(self._record)

    def _record(self, event: EntryEvent, entry: Entry) -> None:
        hosts = tuple(each.host for each in entry.destinations)
        self.recorded.append((event, entry.mac, hosts))

    def events(self) -> list[EntryEvent]:
        """Return the events since the last call."""
        recorded, self.recorded = self.recorded, []
        return [event for event, _, _ in recorded]


# --- add, append, replace, del ----------------------------------------------------------------


def test_add() -> None:
    fdb = table()
    fdb.add(A, remote(1), 5.0)
    entry = fdb.get(A)
    assert (entry.mac, entry.kind, entry.updated) == (A, PERMANENT, 5.0)
    assert (entry.tx_frames, entry.rx_frames) == (0, 0)
    assert fdb.lookup(A) is entry
    assert where(fdb, A) == ["192.0.2.1"]


@pytest.mark.parametrize("address", [A, GROUP, MAC_ZERO])
def test_add_twice(address: bytes) -> None:
    fdb = table()
    fdb.add(address, remote(1), 0.0)
    with pytest.raises(FdbError, match=r"^[0-9a-f:]{17}: has an entry already"):
        fdb.add(address, remote(2), 0.0)
    assert where(fdb, address) == ["192.0.2.1"]


def test_add_of_a_learned_mac() -> None:
    fdb = table()
    fdb.learn(A, remote(1), 0.0)
    with pytest.raises(FdbError, match=r"has an entry already"):
        fdb.add(A, remote(1), 0.0)


@pytest.mark.parametrize("address", [A, GROUP, MAC_ZERO])
def test_append(address: bytes) -> None:
    fdb = table()
    fdb.append(address, remote(1), 1.0)
    fdb.append(address, remote(2), 2.0)
    fdb.append(address, remote(3), 3.0)
    assert where(fdb, address) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]


def test_append_of_an_equal_destination_changes_nothing() -> None:
    fdb = table()
    fdb.append(MAC_ZERO, remote(1), 1.0)
    recorder = EventRecorder(fdb)
    fdb.append(MAC_ZERO, remote(1), 2.0)
    fdb.append(MAC_ZERO, remote(1, vni=VNI), 2.0)
    assert where(fdb, MAC_ZERO) == ["192.0.2.1"]
    assert recorder.events() == []


@pytest.mark.parametrize(
    "other", [remote(1, 4790), remote(1, vni=11), remote(1, via="eth0"), remote(2)], ids=repr
)
def test_destinations_differ_by_any_of_their_fields(other: Remote) -> None:
    fdb = table()
    fdb.append(A, remote(1), 0.0)
    fdb.append(A, other, 0.0)
    assert len(fdb.get(A).destinations) == 2


def test_append_makes_a_learned_entry_permanent() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, remote(1), 0.0)
    fdb.append(A, remote(2), 1.0, STATIC)
    fdb.sweep(100.0)
    assert where(fdb, A) == ["192.0.2.1", "192.0.2.2"]
    assert fdb.get(A).kind == STATIC


def test_replace() -> None:
    fdb = table()
    fdb.replace(A, remote(1), 0.0)
    fdb.append(A, remote(2), 0.0)
    fdb.replace(A, remote(3), 1.0, STATIC)
    assert where(fdb, A) == ["192.0.2.3"]
    assert fdb.get(A).kind == STATIC


@pytest.mark.parametrize("address", [GROUP, MAC_ZERO])
def test_replace_is_for_unicast(address: bytes) -> None:
    fdb = table()
    fdb.append(address, remote(1), 0.0)
    with pytest.raises(FdbError, match=r"^[0-9a-f:]{17}: only the entry of a unicast MAC"):
        fdb.replace(address, remote(2), 0.0)
    assert where(fdb, address) == ["192.0.2.1"]


def test_counters_outlive_a_change_of_kind() -> None:
    fdb = table()
    fdb.learn(A, remote(1), 0.0, 3)
    fdb.get(A).tx_frames += 4
    fdb.replace(A, remote(2), 0.0)
    assert (fdb.get(A).rx_frames, fdb.get(A).tx_frames) == (3, 4)


def test_remove_all() -> None:
    fdb = table()
    fdb.append(A, remote(1), 0.0)
    fdb.append(A, remote(2), 0.0)
    fdb.remove(A)
    assert fdb.lookup(A) is None
    assert len(fdb) == 0


def test_remove_one_by_one() -> None:
    fdb = table()
    for number in (1, 2, 3):
        fdb.append(MAC_ZERO, remote(number), 0.0)
    fdb.remove(MAC_ZERO, remote(2))
    assert where(fdb, MAC_ZERO) == ["192.0.2.1", "192.0.2.3"]
    fdb.remove(MAC_ZERO, remote(1, vni=VNI))
    fdb.remove(MAC_ZERO, remote(3))
    assert fdb.default is None


@pytest.mark.parametrize("other", [remote(1, 4790), remote(1, vni=11), remote(2)], ids=repr)
def test_remove_without_entry_or_destination(other: Remote) -> None:
    fdb = table()
    with pytest.raises(FdbError, match=rf"^{MAC_A}: there is no such entry$"):
        fdb.remove(A)
    fdb.add(A, remote(1), 0.0)
    with pytest.raises(FdbError, match=rf"^dst {other.host} port {other.port}.*: is not a dest"):
        fdb.remove(A, other)
    assert where(fdb, A) == ["192.0.2.1"]


def test_get() -> None:
    fdb = table()
    with pytest.raises(FdbError, match=r"^00:00:00:00:00:00: there is no such entry$"):
        fdb.get(MAC_ZERO)
    fdb.add(MAC_ZERO, remote(1), 0.0)
    assert fdb.get(MAC_ZERO) is fdb.default


def test_the_default_entry_is_not_found_by_frames_to_the_zero_mac() -> None:
    fdb = table()
    fdb.add(MAC_ZERO, remote(1), 0.0)
    assert fdb.lookup(MAC_ZERO) is None
    assert len(fdb) == 0
    assert list(fdb) == []


@pytest.mark.parametrize("verb", ["add", "append"])
def test_default_entry_does_not_age(verb: str) -> None:
    fdb = table()
    with pytest.raises(FdbError, match=r"^dynamic: the default entry"):
        getattr(fdb, verb)(MAC_ZERO, remote(1), 0.0, LEARNED)
    assert fdb.default is None


def test_set_default() -> None:
    fdb = table()
    recorder = EventRecorder(fdb)
    fdb.set_default([remote(2), remote(1), remote(2)], 0.0)
    assert where(fdb, MAC_ZERO) == ["192.0.2.2", "192.0.2.1"]
    fdb.set_default([remote(2), remote(1)], 1.0)
    fdb.set_default([remote(1)], 2.0)
    assert where(fdb, MAC_ZERO) == ["192.0.2.1"]
    fdb.set_default([], 3.0)
    assert fdb.default is None
    fdb.set_default([], 4.0)
    assert recorder.events() == [EntryEvent.ADDED, EntryEvent.CHANGED, EntryEvent.DELETED]


# --- kinds of entries -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "learned", "host"),
    [
        (PERMANENT, Learned.CONFLICT, "192.0.2.1"),
        (STATIC, Learned.CONFLICT, "192.0.2.1"),
        (EXTERN, Learned.CONFLICT, "192.0.2.1"),
        (EntryKind(EntryState.STATIC, extern_learn=True), Learned.CONFLICT, "192.0.2.1"),
        (EntryKind(sticky=True), Learned.CONFLICT, "192.0.2.1"),
        (STICKY, Learned.STICKY, "192.0.2.1"),
        (LEARNED, Learned.MOVED, "192.0.2.2"),
        (EXTERN_DYNAMIC, Learned.MOVED, "192.0.2.2"),
    ],
    ids=repr,
)
def test_learning_from_another_remote(kind: EntryKind, learned: Learned, host: str) -> None:
    fdb = table()
    fdb.add(A, remote(1), 0.0, kind)
    assert fdb.learn(A, remote(2), 7.0, 2) is learned
    entry = fdb.get(A)
    assert where(fdb, A) == [host]
    assert entry.kind == kind
    moved = learned is Learned.MOVED
    assert (entry.updated, entry.rx_frames) == ((7.0, 2) if moved else (0.0, 0))


@pytest.mark.parametrize("kind", [PERMANENT, STATIC, EXTERN, STICKY, LEARNED], ids=repr)
def test_check_learns_nothing(kind: EntryKind) -> None:
    fdb = table()
    assert fdb.check(A, remote(2)) is Learned.REFRESHED
    fdb.add(A, remote(1), 0.0, kind)
    elsewhere = Learned.CONFLICT if kind.state is not EntryState.DYNAMIC else Learned.REFRESHED
    assert fdb.check(A, remote(2)) is elsewhere
    assert fdb.check(A, remote(1)) is Learned.REFRESHED
    assert (where(fdb, A), fdb.get(A).updated) == (["192.0.2.1"], 0.0)


@pytest.mark.parametrize("kind", [PERMANENT, STATIC, EXTERN, STICKY, EXTERN_DYNAMIC], ids=repr)
def test_learning_from_any_destination_of_an_entry(kind: EntryKind) -> None:
    fdb = table()
    for each in (remote(1), remote(2), remote(3, 4790, 11)):
        fdb.append(A, each, 0.0, kind)
    for number in (1, 2, 3):
        assert fdb.learn(A, remote(number), float(number)) is Learned.REFRESHED
        assert fdb.get(A).updated == number
    assert len(fdb.get(A).destinations) == 3
    assert fdb.get(A).rx_frames == 3


@pytest.mark.parametrize(
    ("kind", "stays"),
    [
        (PERMANENT, True),
        (STATIC, True),
        (EXTERN, True),
        (EXTERN_DYNAMIC, True),
        (STICKY, False),
        (LEARNED, False),
    ],
    ids=repr,
)
def test_ageing(kind: EntryKind, stays: bool) -> None:
    fdb = table(ageing=10.0)
    fdb.add(A, remote(1), 0.0, kind)
    fdb.sweep(9.0)
    assert fdb.lookup(A) is not None
    fdb.sweep(11.0)
    assert (fdb.lookup(A) is not None) is stays


def test_a_change_of_kind_changes_ageing() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, remote(1), 0.0)
    fdb.replace(A, remote(1), 1.0)
    fdb.replace(A, remote(1), 5.0, LEARNED)
    fdb.sweep(14.0)
    assert fdb.lookup(A) is not None
    fdb.sweep(15.0)
    assert fdb.lookup(A) is None


def test_deleted_and_learned_again_ages_once() -> None:
    fdb = table(ageing=10.0)
    for now in (0.0, 1.0, 2.0):
        fdb.learn(A, remote(1), now)
        fdb.remove(A)
    fdb.learn(A, remote(1), 3.0)
    fdb.sweep(12.0)
    assert fdb.lookup(A) is not None
    fdb.sweep(13.0)
    assert fdb.lookup(A) is None
    assert fdb._wheel._slots == {}


def test_the_limit_applies_to_entries_that_age() -> None:
    fdb = table(max_addresses=1)
    for number in range(5):
        fdb.add(bytes((2, 0, 0, 0, 0, number)), remote(1), 0.0)
    fdb.set_default([remote(1)], 0.0)
    assert fdb.learn(A, remote(1), 0.0) is Learned.ADDED
    assert fdb.learn(B, remote(1), 0.0) is Learned.FULL
    fdb.replace(A, remote(1), 0.0)
    assert fdb.learn(B, remote(1), 0.0) is Learned.ADDED
    fdb.remove(B)
    assert fdb.learn(B, remote(1), 0.0) is Learned.ADDED


def test_extern_learn_does_not_take_over_configured_entries() -> None:
    fdb = table()
    fdb.add(A, remote(1), 0.0, STATIC)
    with pytest.raises(FdbError, match=rf"^extern_learn: {MAC_A} has a static entry"):
        fdb.replace(A, remote(2), 0.0, EXTERN)
    assert where(fdb, A) == ["192.0.2.1"]
    fdb.append(A, remote(2), 0.0, EXTERN)
    assert where(fdb, A) == ["192.0.2.1", "192.0.2.2"]
    assert fdb.get(A).kind == STATIC.with_origins((LOCAL, EXTERN_LEARN))


@pytest.mark.parametrize("kind", [LEARNED, EXTERN, EXTERN_DYNAMIC], ids=repr)
def test_extern_learn_takes_over_learned_entries(kind: EntryKind) -> None:
    fdb = table()
    fdb.add(A, remote(1), 0.0, kind)
    fdb.replace(A, remote(2), 0.0, EXTERN)
    assert where(fdb, A) == ["192.0.2.2"]
    assert fdb.get(A).kind == EXTERN


def test_a_destination_of_both_origins_stays_until_both_have_withdrawn_it() -> None:
    for first, second in ((PERMANENT, EXTERN), (EXTERN, PERMANENT)):
        for withdrawn in (True, False):
            fdb = table()
            fdb.append(MAC_ZERO, remote(1), 0.0, first)
            fdb.append(MAC_ZERO, remote(1), 0.0, second)
            assert fdb.get(MAC_ZERO).kind.origins == (DestinationOrigin(True, True),)
            fdb.remove(MAC_ZERO, remote(1), extern_learn=withdrawn)
            assert fdb.get(MAC_ZERO).kind == (PERMANENT if withdrawn else EXTERN)
            with pytest.raises(FdbError, match=r"is (not|only) extern_learn$"):
                fdb.remove(MAC_ZERO, extern_learn=withdrawn)
            fdb.remove(MAC_ZERO, extern_learn=not withdrawn)
            assert fdb.default is None


def test_configured_remotes_come_and_go_beside_those_of_a_control_plane() -> None:
    fdb = table()
    fdb.set_configured([remote(1)], [], 0.0)
    for number in (1, 2, 3):
        fdb.append(MAC_ZERO, remote(number), 1.0, EXTERN)
    fdb.set_configured([remote(2)], [remote(1)], 2.0)
    assert where(fdb, MAC_ZERO) == ["192.0.2.2", "192.0.2.1", "192.0.2.3"]
    assert fdb.get(MAC_ZERO).kind.origins == (
        DestinationOrigin(True, True),
        EXTERN_LEARN,
        EXTERN_LEARN,
    )
    assert fdb.flush(Filter(extern_learn=True)) == 2
    assert (where(fdb, MAC_ZERO), fdb.get(MAC_ZERO).kind) == (["192.0.2.2"], PERMANENT)


def test_the_sequence_is_that_of_the_last_word_of_the_control_plane() -> None:
    fdb = table()
    for sequence in (1, 5):
        kind = EntryKind(extern_learn=True, origins=(DestinationOrigin(False, True, sequence),))
        fdb.replace(A, remote(sequence), 0.0, kind)
        assert fdb.get(A).origin_of(fdb.get(A).destinations[0]).sequence == sequence
    fdb.replace(A, remote(5), 0.0, EXTERN)
    assert fdb.get(A).kind == EXTERN


def test_a_control_plane_replaces_what_it_has_given_beside_configured_destinations() -> None:
    fdb = table()
    fdb.replace(A, remote(1), 0.0, EXTERN)
    fdb.append(A, remote(2), 0.0, STATIC)
    fdb.replace(A, remote(3), 0.0, EXTERN)
    assert where(fdb, A) == ["192.0.2.2", "192.0.2.3"]
    assert fdb.get(A).kind == STATIC.with_origins((LOCAL, EXTERN_LEARN))


@pytest.mark.parametrize("kind", [EXTERN, EXTERN_DYNAMIC], ids=repr)
def test_learning_leaves_entries_of_a_control_plane_that_is_in_charge(kind: EntryKind) -> None:
    fdb = table()
    fdb.keeps_extern_learn = True
    fdb.add(A, remote(1), 0.0, kind)
    assert fdb.learn(A, remote(2), 1.0) is Learned.STICKY
    assert fdb.check(A, remote(2)) is Learned.REFRESHED
    assert where(fdb, A) == ["192.0.2.1"]
    fdb.append(A, remote(3), 1.0, STATIC)  # A user means what is configured.
    assert fdb.learn(A, remote(2), 1.0) is Learned.CONFLICT


def test_learned_entries_share_their_kind() -> None:
    """Origins must not cost memory for each of a million entries."""
    fdb = table()
    fdb.learn(A, remote(1), 0.0)
    fdb.append(B, remote(1), 0.0, LEARNED)
    assert fdb.get(A).kind is fdb.get(B).kind is LEARNED


def test_configuration_takes_over_every_entry() -> None:
    fdb = table()
    fdb.add(A, remote(1), 0.0, EXTERN)
    fdb.replace(A, remote(2), 0.0)
    assert fdb.get(A).kind == PERMANENT


def test_set_ageing() -> None:
    fdb = table(ageing=300.0)
    fdb.learn(A, remote(1), 0.0)
    fdb.add(B, remote(1), 0.0)
    fdb.set_ageing(10.0, 5.0)
    assert fdb.ageing == 10.0
    fdb.sweep(9.0)
    assert fdb.lookup(A) is not None
    fdb.sweep(10.0)
    assert fdb.lookup(A) is None
    fdb.learn(A, remote(1), 20.0)
    fdb.set_ageing(0.0, 21.0)
    fdb.sweep(1e9)
    fdb.set_ageing(10.0, 1e9)
    fdb.sweep(1e9 + 1)
    assert [entry.mac for entry in fdb] == [B]


# --- flush and show ---------------------------------------------------------------------------
# The cases of the kernel's fdb_flush.sh, as far as there is a counterpart.

POOLS = [
    [bytes((0xDE, 0xAD, 0xBE, 0xEF, 0x13, 0x10 + number)) for number in range(5)],
    [bytes((0xCA, 0xFE, 0xBE, 0xEF, 0x13, 0x10 + number)) for number in range(5)],
]

FLUSHES = [
    # What the first pool is, what the second is, the filter, and which pools then stay.
    (((1,), PERMANENT), ((1,), PERMANENT), {}, ()),
    (((1, PORT, 3000), PERMANENT), ((1, PORT, 4000), PERMANENT), {"vni": 4000}, (0,)),
    (((1,), PERMANENT), ((1, PORT, 4000), PERMANENT), {"vni": VNI}, (1,)),
    (((1, 1234), PERMANENT), ((1, 4321), PERMANENT), {"port": 4321}, (0,)),
    (((1,), PERMANENT), ((1, 4321), PERMANENT), {"port": PORT}, (1,)),
    (((1,), PERMANENT), ((2,), PERMANENT), {"dst": "192.0.2.2"}, (0,)),
    (((1, PORT, None, "eth0"), PERMANENT), ((1,), PERMANENT), {"via": "eth0"}, (1,)),
    (((1,), PERMANENT), ((2,), EXTERN), {"permanent": True}, ()),
    (((1,), PERMANENT), ((2,), STATIC), {"permanent": False}, (0,)),
    (((1,), STATIC), ((2,), LEARNED), {"static": True}, (1,)),
    (((1,), STATIC), ((2,), PERMANENT), {"static": True}, (1,)),
    (((1,), PERMANENT), ((2,), LEARNED), {"static": False}, (0,)),
    (((1,), STATIC), ((2,), LEARNED), {"static": False}, (0,)),
    (((1,), LEARNED), ((2,), STATIC), {"dynamic": True}, (1,)),
    (((1,), LEARNED), ((2,), PERMANENT), {"dynamic": True}, (1,)),
    (((1,), PERMANENT), ((2,), LEARNED), {"dynamic": False}, (1,)),
    (((1,), STATIC), ((2,), LEARNED), {"dynamic": False}, (1,)),
    (((1,), EXTERN), ((2,), PERMANENT), {"extern_learn": True}, (1,)),
    (((1,), EXTERN), ((2,), PERMANENT), {"extern_learn": False}, (0,)),
    (((1,), STICKY), ((2,), LEARNED), {"sticky": True}, (1,)),
    (((1,), STICKY), ((2,), LEARNED), {"sticky": False}, (0,)),
    (((1,), EXTERN), ((2,), EXTERN_DYNAMIC), {"extern_learn": True, "dynamic": True}, (0,)),
    (
        ((1, 1234, 3000), PERMANENT),
        ((2, 1234, 3000), PERMANENT),
        {"vni": 3000, "port": 1234, "dst": "192.0.2.2"},
        (0,),
    ),
]


@pytest.mark.parametrize(("first", "second", "wanted", "stay"), FLUSHES)
def test_flush(
    first: tuple[tuple[Any, ...], EntryKind],
    second: tuple[tuple[Any, ...], EntryKind],
    wanted: dict[str, Any],
    stay: tuple[int, ...],
) -> None:
    fdb = table()
    for pool, (destination, kind) in zip(POOLS, (first, second), strict=True):
        for address in pool:
            fdb.add(address, remote(*destination), 0.0, kind)
    meant = Filter(**wanted)
    chosen = {entry.mac for entry, _ in fdb.select(meant)}
    assert fdb.flush(meant) == 5 * (2 - len(stay))
    left = {entry.mac for entry in fdb}
    assert left == {address for pool in stay for address in POOLS[pool]}
    assert chosen == {*POOLS[0], *POOLS[1]} - left
    assert fdb.flush(meant) == 0


def test_flush_removes_matching_destinations_only() -> None:
    fdb = table()
    for vni in (2000, 3000):
        fdb.append(MAC_ZERO, remote(1, PORT, vni), 0.0)
        fdb.append(MAC_ZERO, remote(1, 1111, vni), 0.0)
        fdb.append(MAC_ZERO, remote(2, 2222, vni), 0.0)
    fdb.add(A, remote(1, 1111, 2000), 0.0)
    assert fdb.flush(Filter(dst="192.0.2.1", port=1111, vni=2000)) == 2
    assert fdb.lookup(A) is None
    assert len(shown(fdb)) == 5
    assert fdb.flush(Filter(dst="192.0.2.2", port=2222)) == 2
    zero = MAC_ZERO.hex()
    assert shown(fdb) == [
        (zero, "192.0.2.1", PORT, 2000),
        (zero, "192.0.2.1", PORT, 3000),
        (zero, "192.0.2.1", 1111, 3000),
    ]
    assert shown(fdb, Filter(port=1111)) == [(zero, "192.0.2.1", 1111, 3000)]
    assert fdb.flush(Filter(dst="192.0.2.1")) == 3
    assert fdb.default is None


def test_flush_of_an_empty_table() -> None:
    assert table().flush() == 0


def test_select_begins_with_the_default_entry() -> None:
    fdb = table()
    fdb.add(A, remote(1), 0.0)
    fdb.add(MAC_ZERO, remote(1), 0.0)
    assert [entry.mac for entry, _ in fdb.select()] == [MAC_ZERO, A]


# --- watching ---------------------------------------------------------------------------------

CHANGES: list[tuple[str, Callable[[Fdb], object], list[EntryEvent]]] = [
    ("add", lambda fdb: fdb.add(B, remote(1), 1.0), [EntryEvent.ADDED]),
    ("append", lambda fdb: fdb.append(A, remote(9), 1.0), [EntryEvent.CHANGED]),
    ("append a kind", lambda fdb: fdb.append(A, remote(1), 1.0, STATIC), [EntryEvent.CHANGED]),
    ("append the same", lambda fdb: fdb.append(A, remote(1), 1.0), []),
    ("replace", lambda fdb: fdb.replace(A, remote(9), 1.0), [EntryEvent.CHANGED]),
    ("replace by the same", lambda fdb: fdb.replace(A, remote(1), 1.0), []),
    ("replace what is not there", lambda fdb: fdb.replace(B, remote(1), 1.0), [EntryEvent.ADDED]),
    ("del one", lambda fdb: fdb.remove(A, remote(2)), [EntryEvent.CHANGED]),
    ("del", lambda fdb: fdb.remove(A), [EntryEvent.DELETED]),
    ("flush one", lambda fdb: fdb.flush(Filter(dst="192.0.2.2")), [EntryEvent.CHANGED]),
    ("flush", lambda fdb: fdb.flush(), [EntryEvent.DELETED]),
    ("learn", lambda fdb: fdb.learn(B, remote(1), 1.0), [EntryEvent.ADDED]),
    ("hear", lambda fdb: fdb.learn(A, remote(1), 1.0), []),
    ("hear from elsewhere", lambda fdb: fdb.learn(A, remote(9), 1.0), []),
]


@pytest.mark.parametrize(("what", "change", "events"), CHANGES, ids=[row[0] for row in CHANGES])
def test_one_event_for_each_change(
    what: str, change: Callable[[Fdb], object], events: list[EntryEvent]
) -> None:
    fdb = table()
    fdb.append(A, remote(1), 0.0)
    if what not in ("append the same", "replace by the same"):
        fdb.append(A, remote(2), 0.0)
    recorder = EventRecorder(fdb)
    change(fdb)
    assert recorder.events() == events


def test_events_of_learning() -> None:
    fdb = table(ageing=10.0)
    recorder = EventRecorder(fdb)
    fdb.learn(A, remote(1), 0.0)
    fdb.learn(A, remote(1), 1.0)
    fdb.learn(A, remote(2), 2.0)
    fdb.sweep(12.0)
    assert recorder.recorded == [
        (EntryEvent.ADDED, A, ("192.0.2.1",)),
        (EntryEvent.MOVED, A, ("192.0.2.2",)),
        (EntryEvent.EXPIRED, A, ("192.0.2.2",)),
    ]


def test_an_ended_watch_gets_no_events() -> None:
    fdb = table()
    first, second = EventRecorder(fdb), EventRecorder(fdb)
    first.unwatch()
    fdb.add(A, remote(1), 0.0)
    assert first.events() == []
    assert second.events() == [EntryEvent.ADDED]


def test_a_failed_call_changes_nothing() -> None:
    fdb = table()
    fdb.add(A, remote(1), 0.0)
    recorder = EventRecorder(fdb)
    changes: list[Callable[[], None]] = [
        lambda: fdb.add(A, remote(2), 1.0),
        lambda: fdb.remove(B),
        lambda: fdb.remove(A, remote(2)),
        lambda: fdb.replace(GROUP, remote(2), 1.0),
        lambda: fdb.replace(A, remote(2), 1.0, EXTERN),
        lambda: fdb.add(MAC_ZERO, remote(2), 1.0, LEARNED),
    ]
    for change in changes:
        with pytest.raises(FdbError):
            change()
    assert recorder.events() == []
    assert fdb.members.hosts.keys() == {"192.0.2.1"}


# --- remotes ----------------------------------------------------------------------------------


def test_remotes_are_interned() -> None:
    fdb = table()
    first, twin = remote(1), remote(1, vni=VNI)
    fdb.add(MAC_ZERO, first, 0.0)
    fdb.add(A, twin, 0.0)
    fdb.learn(B, remote(1), 0.0)
    destinations = [entry.destinations for entry, _ in fdb.select()]
    assert all(each is first.alone for each in destinations)
    assert (fdb.members.use_count(first), fdb.members.use_count(twin)) == (3, 0)


def test_an_unused_remote_is_reported_after_the_change() -> None:
    fdb = table()
    unused: list[str] = []
    fdb.members.on_remote_unused = lambda each: unused.append(each.host)
    fdb.add(A, remote(1), 0.0)
    fdb.learn(B, remote(1), 0.0)
    fdb.learn(B, remote(2), 1.0)
    fdb.replace(A, remote(3), 2.0)
    assert unused == ["192.0.2.1"]
    fdb.flush()
    assert sorted(unused) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert fdb.members._remotes == {}


def test_expiry_ends_the_use_of_a_remote() -> None:
    fdb = table(ageing=10.0)
    unused: list[Remote] = []
    fdb.members.on_remote_unused = unused.append
    one = remote(1)
    fdb.learn(A, one, 0.0)
    fdb.learn(B, one, 1.0)
    fdb.sweep(10.0)
    assert unused == []
    fdb.sweep(11.0)
    assert unused == [one]


def test_members_are_the_hosts_of_entries_that_do_not_age() -> None:
    fdb = table()
    come: list[str] = []
    gone: list[str] = []
    fdb.members.on_added, fdb.members.on_removed = come.append, gone.append
    fdb.set_default([remote(1), remote(2)], 0.0)
    fdb.add(A, remote(2), 0.0)
    fdb.add(B, remote(3), 0.0, EXTERN_DYNAMIC)
    fdb.learn(GROUP, remote(4), 0.0)
    assert sorted(come) == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert fdb.members.hosts.keys() == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    fdb.set_default([], 0.0)
    assert gone == ["192.0.2.1"]
    fdb.replace(A, remote(2), 0.0, LEARNED)
    fdb.remove(B)
    assert gone == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert fdb.members.hosts == {}


def test_macs_are_learned_for_the_default_port_and_vni() -> None:
    fdb = table()
    fdb.add(A, remote(1, 4790, 11), 0.0)
    source = fdb.members.hosts["192.0.2.1"]
    assert (source.host, source.port, source.vni) == ("192.0.2.1", PORT, None)
    fdb.learn(B, source, 0.0)
    assert fdb.members.use_count(source) == 1
    fdb.append(GROUP, remote(1), 0.0)
    assert fdb.members.hosts["192.0.2.1"] is source


def test_macs_are_learned_for_the_remote_of_the_default_entry() -> None:
    fdb = table()
    odd = remote(1, 4790)
    fdb.set_default([odd], 0.0)
    assert fdb.members.hosts["192.0.2.1"] is odd
    fdb.append(MAC_ZERO, remote(1), 0.0)
    assert fdb.members.hosts["192.0.2.1"].port == PORT
    fdb.remove(MAC_ZERO, remote(1))
    assert fdb.members.hosts["192.0.2.1"] is odd


def test_set_port() -> None:
    """A source receives on the new port now, even if only a static entry names the host."""
    fdb = table()
    fdb.set_default([remote(1)], 0.0)
    fdb.add(A, remote(2, 4790), 0.0)
    former = fdb.members.hosts["192.0.2.2"]
    fdb.learn(B, former, 0.0)
    fdb.add(GROUP, remote(3), 0.0, EXTERN_DYNAMIC)
    fdb.set_port(8472)
    fdb.set_default([remote(1, 8472)], 1.0)
    assert {source.port for source in fdb.members.hosts.values()} == {8472}
    assert fdb.lookup(B) is None
    assert fdb.members.use_count(former) == 0
    assert [each.destinations[0].port for each in fdb] == [4790, PORT]
    fdb.learn(B, fdb.members.hosts["192.0.2.2"], 2.0)
    assert fdb.get(B).destinations[0].port == 8472


# --- destinations as people write them --------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dst": "192.0.2.1"}, ("192.0.2.1", 4789, None, None)),
        ({"dst": "239.1.1.1", "via": "eth0"}, ("239.1.1.1", 4789, None, "eth0")),
        ({"dst": "2001:DB8:0::1", "port": 65535}, ("2001:db8::1", 65535, None, None)),
        ({"dst": "::1", "port": 1, "vni": 0}, ("::1", 1, 0, None)),
        ({"dst": "fe80::1%eth0", "vni": 16777215}, ("fe80::1%eth0", 4789, 16777215, None)),
        ({"dst": "fe80::1", "via": "eth0"}, ("fe80::1%eth0", 4789, None, "eth0")),
        ({"dst": "fe80::1%eth0", "via": "eth0"}, ("fe80::1%eth0", 4789, None, "eth0")),
    ],
)
def test_parse_remote(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    parsed = parse_remote(**fields)
    assert (parsed.host, parsed.port, parsed.vni, parsed.via) == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"dst": "nonsense"}, "dst 'nonsense'"),
        ({"dst": ""}, "dst ''"),
        ({"dst": "192.0.2.256"}, "dst '192.0.2.256'"),
        ({"dst": "192.0.2.1/24"}, "dst '192.0.2.1/24'"),
        ({"dst": "0.0.0.0"}, "dst 0.0.0.0"),
        ({"dst": "::"}, "dst ::"),
        ({"dst": "255.255.255.255"}, "dst 255.255.255.255"),
        (
            {"dst": "::ffff:192.0.2.1"},
            "dst ::ffff:192.0.2.1: is IPv4-mapped; write it as 192.0.2.1",
        ),
        ({"dst": "fe80::1"}, "dst fe80::1: is link-local"),
        ({"dst": "fe80::1%eth0", "via": "eth1"}, "via eth1"),
        ({"dst": "192.0.2.1", "port": 0}, "port 0"),
        ({"dst": "192.0.2.1", "port": 65536}, "port 65536"),
        ({"dst": "192.0.2.1", "vni": -1}, "vni -1"),
        ({"dst": "192.0.2.1", "vni": 1 << 24}, "vni 16777216"),
        ({"dst": "192.0.2.1", "via": ""}, "via ''"),
        ({"dst": "192.0.2.1", "via": "x" * 16}, "via 'xxxxxxxxxxxxxxxx'"),
    ],
)
def test_parse_remote_names_the_invalid_field(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(FdbError) as caught:
        parse_remote(**fields)
    assert str(caught.value).startswith(field)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


# --- the model --------------------------------------------------------------------------------

MACS = [A, B, GROUP, mac("02:00:00:00:00:0c")]
REMOTES = [remote(1), remote(2), remote(2, 4790), remote(3, vni=11)]
NUMBERED = EntryKind(origins=(DestinationOrigin(False, True, 7),), extern_learn=True)
KINDS = [PERMANENT, STATIC, LEARNED, EXTERN, EXTERN_DYNAMIC, STICKY, NUMBERED]
ANY_MAC = st.sampled_from([*MACS, MAC_ZERO])
ANY_REMOTE = st.sampled_from(range(len(REMOTES)))
ANY_KIND = st.sampled_from(KINDS)
ANY_FILTER = st.builds(
    Filter,
    dst=st.sampled_from([None, None, "192.0.2.1", "192.0.2.2"]),
    port=st.sampled_from([None, None, PORT, 4790]),
    vni=st.sampled_from([None, None, VNI, 11]),
    permanent=st.sampled_from([None, None, True, False]),
    static=st.sampled_from([None, None, True, False]),
    dynamic=st.sampled_from([None, None, True, False]),
    extern_learn=st.sampled_from([None, None, True, False]),
)
Place = tuple[str, int, int]
Modelled = tuple[dict[Place, DestinationOrigin], EntryKind]
"""The destinations of an entry with their origins, and its kind."""


def make(places: dict[Place, DestinationOrigin], kind: EntryKind) -> Modelled:
    """Return an entry with these destinations, whose state and stickiness are those of a kind."""
    return places, kind.with_origins(places.values())


class Model(RuleBasedStateMachine):
    """An Fdb beside a dict of dicts, whose every change is compared with what was told of it."""

    @initialize(keeps=st.booleans())
    def begin(self, keeps: bool) -> None:
        self.fdb = Fdb(VNI, PORT, ageing=4.0, max_addresses=0)
        self.fdb.keeps_extern_learn = keeps
        self.now = 0.0
        self.model: dict[bytes, Modelled] = {}
        self.mirror: dict[bytes, tuple[list[tuple[Place, DestinationOrigin]], EntryKind]] = {}
        self.configured: list[int] = []
        self.unused: list[Remote] = []
        self.fdb.watch(self.hear)
        self.fdb.members.on_remote_unused = self.unused.append
        self.told = 0

    @staticmethod
    def modelled(entry: Entry) -> tuple[list[tuple[Place, DestinationOrigin]], EntryKind]:
        assert [entry.origin_of(each) for each, _ in entry.origins()] == [
            origin for _, origin in entry.origins()
        ]
        places = [
            ((each.host, each.port, VNI if each.vni is None else each.vni), origin)
            for each, origin in entry.origins()
        ]
        return places, entry.kind

    def hear(self, event: EntryEvent, entry: Entry) -> None:
        self.told += 1
        known = entry.mac in self.mirror
        assert known is (event is not EntryEvent.ADDED)
        if event in (EntryEvent.DELETED, EntryEvent.EXPIRED):
            assert self.mirror.pop(entry.mac) == self.modelled(entry)
        else:
            assert self.mirror.get(entry.mac) != self.modelled(entry)
            self.mirror[entry.mac] = self.modelled(entry)

    def attempt(self, verb: Callable[[], object], *, works: bool) -> None:
        if works:
            verb()
        else:
            with pytest.raises(FdbError):
                verb()

    @staticmethod
    def place(number: int) -> Place:
        each = REMOTES[number]
        return each.host, each.port, VNI if each.vni is None else each.vni

    def fresh(self, number: int) -> Remote:
        each = REMOTES[number]
        return Remote(each.host, each.port, each.vni)

    def set(self, address: bytes, places: dict[Place, DestinationOrigin], kind: EntryKind) -> None:
        self.model[address] = make(places, kind)
        if not places:
            del self.model[address]

    @rule(address=ANY_MAC, number=ANY_REMOTE, kind=ANY_KIND)
    def add(self, address: bytes, number: int, kind: EntryKind) -> None:
        works = address not in self.model and not (address == MAC_ZERO and kind.ages)
        self.attempt(lambda: self.fdb.add(address, self.fresh(number), self.now, kind), works=works)
        if works:
            self.model[address] = ({self.place(number): kind.origin(0)}, kind)

    @rule(address=ANY_MAC, number=ANY_REMOTE, kind=ANY_KIND)
    def append(self, address: bytes, number: int, kind: EntryKind) -> None:
        places, old = self.model.get(address, ({}, kind))
        origin, place = kind.origin(0), self.place(number)
        works = not (address == MAC_ZERO and kind.ages)
        self.attempt(
            lambda: self.fdb.append(address, self.fresh(number), self.now, kind), works=works
        )
        if works:
            if kind.extern_learn and old.ages:
                places = {}  # A control plane knows better than what was learned.
            by_hand = any(each.is_local for each in places.values())
            joined = places[place].merge(origin) if place in places else origin
            kept = old if kind.extern_learn and by_hand else kind
            self.set(address, places | {place: joined}, kept)

    @rule(address=ANY_MAC, number=ANY_REMOTE, kind=ANY_KIND)
    def replace(self, address: bytes, number: int, kind: EntryKind) -> None:
        works = address not in (MAC_ZERO, GROUP)
        places, old = self.model.get(address, ({}, kind))
        kept: dict[Place, DestinationOrigin] = {}
        if kind.extern_learn and not old.ages:
            kept = {place: LOCAL for place, each in places.items() if each.is_local}
            works = works and (not kept or any(each.extern_learn for each in places.values()))
        self.attempt(
            lambda: self.fdb.replace(address, self.fresh(number), self.now, kind), works=works
        )
        if works:
            place, origin = self.place(number), kind.origin(0)
            origin = kept[place].merge(origin) if place in kept else origin
            self.set(address, kept | {place: origin}, old if kept else kind)

    @rule(
        address=ANY_MAC,
        number=st.one_of(st.none(), ANY_REMOTE),
        extern_learn=st.sampled_from([None, None, True, False]),
    )
    def remove(self, address: bytes, number: int | None, extern_learn: bool | None) -> None:
        places, kind = self.model.get(address, ({}, PERMANENT))
        which = None if number is None else self.fresh(number)
        named = [*places] if number is None else [self.place(number)]
        rest = dict(places)
        for place in named:
            if place in places:
                self.withdraw(rest, place, extern_learn)
        works = rest != places
        self.attempt(
            lambda: self.fdb.remove(address, which, extern_learn=extern_learn), works=works
        )
        if works:
            self.set(address, rest, kind)

    @staticmethod
    def withdraw(
        places: dict[Place, DestinationOrigin], place: Place, extern_learn: bool | None
    ) -> None:
        """Withdraw a destination as the control plane (True), this host (False), or both."""
        origin = places[place]
        if extern_learn is True and origin.is_local:
            places[place] = LOCAL
        elif extern_learn is False and origin.extern_learn:
            places[place] = DestinationOrigin(False, True, origin.sequence)
        else:
            del places[place]

    @rule(wanted=ANY_FILTER, spares=st.booleans())
    def flush(self, wanted: Filter, spares: bool) -> None:
        count = 0
        spared = [self.place(number) for number in self.configured] if spares else []
        for address, (places, kind) in list(self.model.items()):
            if not evolve(wanted, extern_learn=None).matches(kind):
                continue
            rest = dict(places)
            for place, origin in places.items():
                if (
                    wanted.dst in (None, place[0])
                    and wanted.port in (None, place[1])
                    and wanted.vni in (None, place[2])
                    and origin.matches(wanted.extern_learn)
                ):
                    self.withdraw(rest, place, wanted.extern_learn)
                    if address == MAC_ZERO and place in spared and origin.is_local:
                        rest[place] = origin if wanted.extern_learn is False else LOCAL
            count += len(places) - len(rest)
            # In the order of before.
            self.set(address, {place: rest[place] for place in places if place in rest}, kind)
        remotes = [self.fresh(number) for number in self.configured] if spares else ()
        assert self.fdb.flush(wanted, spared=remotes) == count

    @rule(address=st.sampled_from(MACS), number=ANY_REMOTE)
    def learn(self, address: bytes, number: int) -> None:
        if address not in self.model:
            expected = Learned.ADDED
            self.model[address] = ({self.place(number): LOCAL}, LEARNED)
        else:
            places, kind = self.model[address]
            origins = places.values()
            if self.place(number)[0] in [place[0] for place in places]:
                expected = Learned.REFRESHED
            elif self.fdb.keeps_extern_learn and not any(each.is_local for each in origins):
                expected = Learned.STICKY
            elif kind.state is not EntryState.DYNAMIC:
                expected = Learned.CONFLICT
            elif kind.sticky or (
                self.fdb.keeps_extern_learn and any(each.extern_learn for each in origins)
            ):
                expected = Learned.STICKY
            else:
                expected = Learned.MOVED
                origin = EXTERN_LEARN if kind.extern_learn else LOCAL
                self.set(address, {self.place(number): origin}, kind)
        checked = self.fdb.check(address, self.fresh(number))
        assert (checked is Learned.CONFLICT) is (expected is Learned.CONFLICT)
        assert self.fdb.learn(address, self.fresh(number), self.now) is expected

    @rule(later=st.sampled_from([1.0, 2.0, 5.0]))
    def age(self, later: float) -> None:
        self.now += later
        for entry in self.fdb:
            if entry.kind.ages and entry.updated + 4.0 <= self.now:
                del self.model[entry.mac]
        while self.fdb.sweep(self.now, budget=1):
            pass

    @rule(numbers=st.lists(ANY_REMOTE, max_size=3))
    def configure(self, numbers: list[int]) -> None:
        former, self.configured = self.configured, numbers
        self.fdb.set_configured(map(self.fresh, numbers), map(self.fresh, former), self.now)
        known, kind = self.model.get(MAC_ZERO, ({}, PERMANENT))
        if kind.extern_learn and numbers:
            kind = PERMANENT
        known = dict(known)
        for place in map(self.place, dict.fromkeys(former)):
            if place in known and known[place].is_local:
                self.withdraw(known, place, extern_learn=False)
        places: dict[Place, DestinationOrigin] = {}
        for place in map(self.place, numbers):
            places.setdefault(place, known.pop(place).merge(LOCAL) if place in known else LOCAL)
        self.set(MAC_ZERO, places | known, kind)

    @rule(numbers=st.lists(ANY_REMOTE, max_size=3))
    def set_default(self, numbers: list[int]) -> None:
        self.fdb.set_default([self.fresh(number) for number in numbers], self.now)
        self.set(MAC_ZERO, dict.fromkeys(map(self.place, numbers), LOCAL), PERMANENT)

    @invariant()
    def same(self) -> None:
        have = {entry.mac: self.modelled(entry) for entry, _ in self.fdb.select()}
        assert have == {
            mac: ([*places.items()], kind) for mac, (places, kind) in self.model.items()
        }
        assert have == self.mirror
        assert len(self.fdb) == len(self.model.keys() - {MAC_ZERO})

    @invariant()
    def remotes_are_counted(self) -> None:
        used: dict[Remote, int] = {}
        hosts = set()
        for entry, _ in self.fdb.select():
            for each in entry.destinations:
                used[each] = used.get(each, 0) + 1
                if not entry.kind.ages:
                    hosts.add(each.host)
            assert len(entry.destinations) != 1 or entry.destinations[0].alone is entry.destinations
        assert used == self.fdb.members._use_count
        assert len({self.fdb.members.key(each) for each in used}) == len(used)
        assert set(self.fdb.members._remotes.values()) == used.keys()
        assert self.fdb.members.hosts.keys() == hosts
        assert all(each.host == host for host, each in self.fdb.members.hosts.items())
        assert len(self.unused) == len(set(self.unused))
        assert not used.keys() & set(self.unused)

    @invariant()
    def ageing_is_counted(self) -> None:
        ages = [entry for entry in self.fdb if entry.kind.ages]
        assert self.fdb._ageing_count == len(ages)
        hosts = Counter(each.host for entry in ages for each in entry.destinations)
        assert self.fdb.members._ageing_by_host == hosts
        waiting = [entry for slot in self.fdb._wheel._slots.values() for entry in slot]
        assert all(waiting.count(entry) == 1 for entry in ages)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=120, stateful_step_count=40)
