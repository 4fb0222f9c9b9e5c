"""Fdb: what it learns and forgets, also beside a model that is too simple to be wrong."""

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.unit.craft import MAC_A, MAC_B, mac
from vtep.forwarding.fdb import Entry, Fdb, Learned, Remote

ONE = Remote("192.0.2.1", 4789)
TWO = Remote("192.0.2.2", 4789)
REMOTES = (ONE, TWO, Remote("192.0.2.3", 4789))
A, B = mac(MAC_A), mac(MAC_B)


def table(*, ageing: float = 300.0, max_addresses: int = 0, max_per_host: int | None = None) -> Fdb:
    return Fdb(1, 4789, ageing=ageing, max_addresses=max_addresses, max_per_host=max_per_host)


def macs(count: int) -> list[bytes]:
    return [bytes((2, 0, 0, 0, number >> 8, number & 0xFF)) for number in range(count)]


def fill(fdb: Fdb, addresses: Iterable[bytes], now: float) -> None:
    for address in addresses:
        fdb.learn(address, ONE, now)


def known(fdb: Fdb) -> set[bytes]:
    return {entry.mac for entry in fdb}


# --- remotes ----------------------------------------------------------------------------------


def test_remotes_are_the_same_only_if_they_are_one_object() -> None:
    twin = Remote(ONE.host, ONE.port)
    assert twin != ONE
    assert len({ONE, twin}) == 2


def test_repr_of_a_remote() -> None:
    assert repr(ONE) == "Remote(host='192.0.2.1', port=4789, vni=None, via=None)"


def test_entries_are_the_same_only_if_they_are_one_object() -> None:
    assert Entry(A, ONE.alone, 0.0) != Entry(A, ONE.alone, 0.0)


def test_remote_alone() -> None:
    assert ONE.alone == (ONE,)
    assert ONE.alone is ONE.alone


# --- learning ---------------------------------------------------------------------------------


def test_unknown_until_learned() -> None:
    fdb = table()
    assert fdb.lookup(A) is None
    assert fdb.learn(A, ONE, 5.0) is Learned.ADDED
    entry = fdb.lookup(A)
    assert entry is not None
    assert (entry.mac, entry.destinations, entry.updated) == (A, (ONE,), 5.0)
    assert fdb.lookup(B) is None


def test_refresh_keeps_the_remote_and_updates_the_time() -> None:
    fdb = table()
    fdb.learn(A, ONE, 5.0)
    assert fdb.learn(A, ONE, 6.5) is Learned.REFRESHED
    assert [(entry.destinations, entry.updated) for entry in fdb] == [((ONE,), 6.5)]


def test_move_updates_remote_and_time() -> None:
    fdb = table()
    fdb.learn(A, ONE, 5.0)
    assert fdb.learn(A, TWO, 6.5) is Learned.MOVED
    assert [(entry.destinations, entry.updated) for entry in fdb] == [((TWO,), 6.5)]
    assert fdb.learn(A, TWO, 7.0) is Learned.REFRESHED
    assert fdb.learn(A, ONE, 7.0) is Learned.MOVED


def test_an_equal_remote_is_no_move() -> None:
    fdb = table()
    fdb.learn(A, ONE, 0.0)
    assert fdb.learn(A, Remote(ONE.host, ONE.port), 1.0) is Learned.REFRESHED
    assert fdb.learn(A, Remote(ONE.host, 4790), 2.0) is Learned.REFRESHED
    assert [(entry.destinations, entry.updated) for entry in fdb] == [((ONE,), 2.0)]


def test_full_table_keeps_its_entries() -> None:
    fdb = table(max_addresses=2)
    fill(fdb, macs(2), 0.0)
    third = macs(3)[2]
    assert fdb.learn(third, ONE, 1.0) is Learned.FULL
    assert fdb.lookup(third) is None
    assert len(fdb) == 2
    assert fdb.learn(macs(1)[0], ONE, 1.0) is Learned.REFRESHED
    assert fdb.learn(macs(1)[0], TWO, 1.0) is Learned.MOVED


def test_full_table_has_room_once_something_has_expired() -> None:
    fdb = table(ageing=10.0, max_addresses=1)
    fdb.learn(A, ONE, 0.0)
    assert fdb.learn(B, ONE, 9.0) is Learned.FULL
    fdb.sweep(10.0)
    assert fdb.learn(B, ONE, 10.0) is Learned.ADDED
    assert known(fdb) == {B}


def test_zero_addresses_is_no_limit() -> None:
    fdb = table(max_addresses=0)
    fill(fdb, macs(2000), 0.0)
    assert len(fdb) == 2000


def test_iteration_gives_every_entry() -> None:
    fdb = table()
    fill(fdb, macs(50), 0.0)
    assert all(isinstance(entry, Entry) for entry in fdb)
    assert known(fdb) == set(macs(50))


# --- ageing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ageing", [0.25, 1.0, 2.5, 300.0, 5000.0])
@pytest.mark.parametrize("start", [0.0, 0.25, 12345.75, 4e6, -700.5])
def test_entries_expire_within_a_second_of_their_age_and_not_before(
    ageing: float, start: float
) -> None:
    fdb = table(ageing=ageing)
    fdb.learn(A, ONE, start)
    assert not fdb.sweep(start)
    assert not fdb.sweep(start + ageing - 0.125)
    assert known(fdb) == {A}
    assert not fdb.sweep(start + ageing + 1.0)
    assert known(fdb) == set()


def test_entries_expire_at_an_age_of_a_whole_second() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 3.0)
    fdb.sweep(12.99)
    assert len(fdb) == 1
    fdb.sweep(13.0)
    assert len(fdb) == 0


def test_each_refresh_restarts_ageing() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 0.0)
    for now in range(1, 100):
        fdb.learn(A, ONE, float(now))
        fdb.sweep(now + 0.5)
    assert known(fdb) == {A}
    fdb.sweep(108.5)
    assert known(fdb) == {A}
    fdb.sweep(110.0)
    assert known(fdb) == set()


def test_a_move_restarts_ageing() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 0.0)
    fdb.learn(A, TWO, 9.0)
    fdb.sweep(18.5)
    assert known(fdb) == {A}
    fdb.sweep(19.0)
    assert known(fdb) == set()


def test_a_lookup_does_not_restart_ageing() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 0.0)
    fdb.lookup(A)
    fdb.sweep(10.0)
    assert fdb.lookup(A) is None


def test_zero_ageing_is_never() -> None:
    fdb = table(ageing=0.0)
    fdb.learn(A, ONE, 0.0)
    assert not fdb.sweep(1e15)
    assert known(fdb) == {A}


def test_age_too_small_for_the_clock_to_tell() -> None:
    fdb = table(ageing=1e-9)
    fdb.learn(A, ONE, 1e9)
    fdb.sweep(1e9)
    fdb.learn(B, ONE, 1e9)
    fdb.sweep(1e9 + 1)
    assert known(fdb) == set()


def test_expired_and_learned_again() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 0.0)
    fdb.sweep(10.0)
    assert fdb.learn(A, TWO, 10.5) is Learned.ADDED
    fdb.sweep(20.4)
    assert known(fdb) == {A}
    fdb.sweep(21.0)
    assert known(fdb) == set()


def test_a_late_sweep_deletes_all_expired_entries() -> None:
    fdb = table(ageing=10.0)
    for number, address in enumerate(macs(100)):
        fdb.learn(address, ONE, number * 0.5)
    assert not fdb.sweep(40.0)
    assert known(fdb) == set(macs(100)[61:])
    assert not fdb.sweep(1000.0)
    assert known(fdb) == set()


# --- what a sweep costs -----------------------------------------------------------------------


def test_sweep_stops_at_its_budget() -> None:
    fdb = table(ageing=10.0)
    fill(fdb, macs(10), 0.0)
    left = []
    while fdb.sweep(10.0, budget=3):
        left.append(len(fdb))
    assert left == [7, 4, 1]
    assert len(fdb) == 0


def test_budget_that_is_just_enough() -> None:
    fdb = table(ageing=10.0)
    fill(fdb, macs(10), 0.0)
    assert fdb.sweep(10.0, budget=10) is False
    assert len(fdb) == 0


def test_budget_by_default() -> None:
    fdb = table(ageing=10.0)
    fill(fdb, macs(2500), 0.0)
    assert fdb.sweep(10.0) is True
    assert len(fdb) == 2400


def test_sweep_goes_on_where_it_stopped() -> None:
    fdb = table(ageing=10.0)
    fill(fdb, macs(4), 0.0)
    fill(fdb, macs(8)[4:], 5.0)
    assert fdb.sweep(15.0, budget=6)
    assert len(fdb) == 2
    assert not fdb.sweep(15.0, budget=2)
    assert len(fdb) == 0


def test_a_sweep_visits_only_entries_of_a_whole_age() -> None:
    fdb = table(ageing=10.0)
    fill(fdb, macs(100), 0.0)
    for now in range(10):
        assert not fdb.sweep(float(now), budget=0), now
    assert fdb.sweep(10.0, budget=0)


def test_a_refreshed_entry_is_visited_once_per_ageing_time() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 0.0)
    fdb.learn(A, ONE, 9.0)
    assert fdb.sweep(10.0, budget=0)
    assert not fdb.sweep(10.0, budget=1)
    assert known(fdb) == {A}
    assert not fdb.sweep(18.9, budget=0)
    assert fdb.sweep(19.0, budget=0)


@pytest.mark.timeout(10)
def test_first_sweep_does_not_begin_at_the_clocks_zero() -> None:
    # It would walk each second since then: hours, for this clock.
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 1e12)
    assert not fdb.sweep(1e12 + 9)
    assert known(fdb) == {A}
    fdb.sweep(1e12 + 10)
    assert known(fdb) == set()


@pytest.mark.timeout(10)
def test_an_empty_table_leaves_nothing_to_catch_up_on() -> None:
    fdb = table(ageing=10.0)
    fdb.learn(A, ONE, 0.0)
    fdb.sweep(10.0)
    fdb.sweep(1e12)
    fdb.learn(B, ONE, 1e12)
    fdb.sweep(1e12 + 9)
    assert known(fdb) == {B}


# --- the model --------------------------------------------------------------------------------

# --- the quota of a remote --------------------------------------------------------------------


def learned(fdb: Fdb, remote: Remote, addresses: Iterable[bytes]) -> int:
    return sum(fdb.learn(address, remote, 0.0) is Learned.ADDED for address in addresses)


def test_by_default_one_of_several_remotes_fills_half_of_the_table() -> None:
    fdb = table(max_addresses=10)
    fdb.set_default((ONE, TWO), 0.0)
    assert learned(fdb, ONE, macs(30)) == 5
    assert fdb.learn(macs(6)[5], ONE, 0.0) is Learned.OVER_QUOTA
    assert fdb.learn(macs(1)[0], ONE, 0.0) is Learned.REFRESHED
    assert not fdb.has_room(ONE.host)
    assert fdb.has_room(TWO.host)
    assert learned(fdb, TWO, macs(40)[30:]) == 5
    assert fdb.learn(macs(6)[5], REMOTES[2], 0.0) is Learned.FULL


@pytest.mark.parametrize(
    ("remotes", "open_", "limit", "quota"),
    [
        ((ONE,), False, 10, 0),
        ((ONE,), True, 10, 5),
        ((), True, 10, 5),
        ((ONE, TWO), False, 10, 5),
        ((ONE, TWO), False, 1, 1),
        ((ONE, TWO), False, 0, 0),
    ],
)
def test_default_quota(remotes: tuple[Remote, ...], open_: bool, limit: int, quota: int) -> None:
    fdb = table(max_addresses=limit)
    fdb.set_default(remotes, 0.0)
    fdb.learns_from_non_members = open_
    assert fdb.quota == quota


def test_the_only_remote_fills_the_table() -> None:
    fdb = table(max_addresses=10)
    fdb.set_default((ONE,), 0.0)
    assert learned(fdb, ONE, macs(30)) == 10


def test_a_lowered_quota_deletes_nothing() -> None:
    fdb = table(max_per_host=4)
    assert learned(fdb, ONE, macs(10)) == 4
    fdb.max_per_host = 2
    assert len(fdb) == 4
    assert fdb.learn(macs(1)[0], ONE, 1.0) is Learned.REFRESHED
    fdb.remove(macs(1)[0])
    assert fdb.learn(macs(1)[0], ONE, 1.0) is Learned.OVER_QUOTA


def test_a_mac_moves_to_a_remote_that_is_over_its_quota() -> None:
    """Else frames to a host that has moved would be lost."""
    fdb = table(max_per_host=1)
    fdb.learn(A, ONE, 0.0)
    fdb.learn(B, TWO, 0.0)
    assert fdb.learn(B, ONE, 1.0) is Learned.MOVED
    assert (fdb.learned_from(ONE.host), fdb.learned_from(TWO.host)) == (2, 0)


TIMES = st.one_of(
    st.sampled_from([0.0, 0.0625, 0.5, 1.0]),
    # Sixteenths are exact, so that the model needs no tolerance.
    st.integers(0, 80).map(lambda sixteenths: sixteenths / 16),
)


class Model(RuleBasedStateMachine):
    """An Fdb beside a dict that is scanned from end to end."""

    @initialize(
        ageing=st.sampled_from([0.0, 0.5, 1.0, 2.5, 4.0]),
        limit=st.sampled_from([0, 1, 3]),
        quota=st.sampled_from([0, 1, 2]),
        start=st.sampled_from([0.0, 0.5, 12345.0625, 1e6]),
    )
    def begin(self, ageing: float, limit: int, quota: int, start: float) -> None:
        self.ageing = ageing
        self.limit = limit
        self.quota = quota
        self.now = start
        self.fdb = Fdb(1, 4789, ageing=ageing, max_addresses=limit, max_per_host=quota)
        self.entries: dict[bytes, tuple[Remote, float]] = {}

    def expect(self, address: bytes, remote: Remote) -> Learned:
        if address in self.entries:
            same = self.entries[address][0] is remote
            return Learned.REFRESHED if same else Learned.MOVED
        if self.limit and len(self.entries) >= self.limit:
            return Learned.FULL
        if self.quota and self.behind(remote) >= self.quota:
            return Learned.OVER_QUOTA
        return Learned.ADDED

    def behind(self, remote: Remote) -> int:
        return sum(other is remote for other, _ in self.entries.values())

    def expired(self, *, for_seconds: float) -> set[bytes]:
        if not self.ageing:
            return set()
        return {
            address
            for address, (_, updated) in self.entries.items()
            if self.now - updated >= self.ageing + for_seconds
        }

    @rule(address=st.sampled_from(macs(6)), remote=st.sampled_from(REMOTES), later=TIMES)
    def learn(self, address: bytes, remote: Remote, later: float) -> None:
        self.now += later
        expected = self.expect(address, remote)
        assert self.fdb.learn(address, remote, self.now) is expected
        if expected not in (Learned.FULL, Learned.OVER_QUOTA):
            self.entries[address] = (remote, self.now)

    @rule(later=TIMES, budget=st.sampled_from([0, 1, 2, 1000]))
    def sweep(self, later: float, budget: int) -> None:
        self.now += later
        more = self.fdb.sweep(self.now, budget)
        forgotten = self.entries.keys() - known(self.fdb)
        assert forgotten <= self.expired(for_seconds=0.0)
        assert len(forgotten) <= budget
        for address in forgotten:
            del self.entries[address]
        if more:
            assert budget < 1000
        else:
            assert not self.expired(for_seconds=1.0)

    @precondition(lambda self: self.entries)
    @rule()
    def sweep_to_the_end(self) -> None:
        rounds = 0
        while self.fdb.sweep(self.now, budget=1):
            rounds += 1
        assert rounds <= len(self.entries)
        self.sweep(0.0, 1000)

    @invariant()
    def same(self) -> None:
        assert {entry.mac: (entry.destinations, entry.updated) for entry in self.fdb} == {
            address: ((remote,), updated) for address, (remote, updated) in self.entries.items()
        }
        assert len(self.fdb) == len(self.entries)
        for remote in REMOTES:
            assert self.fdb.learned_from(remote.host) == self.behind(remote)
        for address in macs(6):
            assert (self.fdb.lookup(address) is None) is (address not in self.entries)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=150, stateful_step_count=40)
