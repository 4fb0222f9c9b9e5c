"""MAC move dampening: which moves are allowed, and what is reported."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtep.counters import Drop
from vtep.forwarding.fdb import (
    Entry,
    EntryEvent,
    EntryKind,
    EntryState,
    Fdb,
    Filter,
    Learned,
    Remote,
)
from vtep.forwarding.fdb import moves as moves_module
from vtep.forwarding.fdb.moves import SILENCE_S, WINDOW_S, MoveLimit
from vtep.forwarding.segment import Segment

MAC = b"\x02\0\0\0\0\x01"
A, B = Remote("192.0.2.2", 4789), Remote("192.0.2.3", 4789)


def segment(limit: int = 5, hold: float = 300.0) -> Segment:
    fdb = Fdb(1, 4789, ageing=300, max_addresses=0)
    fdb.moves.configure(limit, hold)
    return Segment(1, [A, B], fdb, own_mac=bytes(6), learning=True)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 100)), max_size=60),
    st.integers(1, 6),
    st.integers(1, 400),
)
@settings(deadline=None)
def test_limit_is_that_of_a_list_of_all_moves(
    steps: list[tuple[int, float]], limit: int, hold: int
) -> None:
    """The oracle remembers everything: the moves in the window before a move, and the holds.

    Frames from where a MAC is held never cease.
    """
    released: list[bytes] = []
    moves = MoveLimit(limit, hold, released.append)
    made: dict[int, list[float]] = {}
    until: dict[int, float] = {}
    now = 0.0
    for number, pause in steps:
        now += pause
        mac = MAC[:5] + bytes((number,))
        recent = [at for at in made.get(number, []) if at > now - WINDOW_S]
        if now < until.get(number, 0.0):
            expected = False
        elif len(recent) >= limit:
            expected, until[number], made[number] = False, now + hold, []
        else:
            expected, made[number] = True, [*recent, now]
        was_held = moves.is_held(mac)
        assert moves.note(mac, now, now) is expected
        assert released == [mac] * (was_held and expected)
        released.clear()
        held = moves.held_until(mac)
        assert (held is not None and held > now) is (now < until.get(number, 0.0))


def test_memory_is_bounded() -> None:
    released: list[bytes] = []
    moves = MoveLimit(1, 1000, released.append)
    macs = [number.to_bytes(6, "big") for number in range(10_000)]
    for mac in macs:
        assert moves.note(mac, 0.0, 0.0)
        assert not moves.note(mac, 0.0, 0.0)
    assert len(moves) == 4096
    # Those that made room for later ones are no longer held, which is reported.
    assert [*released, *moves.held] == macs
    for number in range(10_000):
        moves.note((1 << 40 | number).to_bytes(6, "big"), 0.0, 0.0)
    assert len(moves._moves) == 4096
    # A MAC that is released again and again by silence has no more moves to remember.
    for number in range(1000):
        moves.note(macs[-1], number * SILENCE_S, 0.0)
    assert len(moves._moves[macs[-1]]) <= 1


def test_mac_that_moves_too_often_is_held_until_the_time_is_over() -> None:
    one = segment()
    events: list[tuple[EntryEvent, str]] = []
    one.fdb.watch(lambda event, entry: events.append((event, entry.destinations[0].host)))
    held: list[tuple[Entry, Remote]] = []
    one.fdb.on_held = lambda entry, remote: held.append((entry, remote))
    for number in range(6):
        assert one.admit(MAC, (A, B)[number % 2].host, float(number))
    assert Counter(event for event, _ in events)[EntryEvent.MOVED] == 5
    # The sixth move fails, and so does every frame from there, while the other remote is heard.
    assert not one.admit(MAC, A.host, 6.0)
    assert not one.admit(MAC, A.host, 7.0, count=3)
    assert one.admit(MAC, B.host, 8.0)
    assert one.counters.drops[Drop.INNER_SOURCE_HELD] == 4
    assert events[-1] == (EntryEvent.HELD, B.host)
    assert [(entry.mac, remote) for entry, remote in held] == [(MAC, A)]
    assert one.fdb.moves.held_until(MAC) == 306.0
    one.admit(MAC, B.host, 300.0)
    one.sweep(305.0)
    assert events[-1] == (EntryEvent.HELD, B.host)
    one.sweep(306.0)
    assert events[-1] == (EntryEvent.RELEASED, B.host)
    assert one.admit(MAC, A.host, 306.0)
    assert events[-1] == (EntryEvent.MOVED, A.host)


def test_move_after_the_hold_reports_the_release_even_without_a_sweep() -> None:
    one = segment(limit=1, hold=10)
    events: list[EntryEvent] = []
    one.fdb.watch(lambda event, _entry: events.append(event))
    for number, remote in enumerate((A, B, A)):
        one.admit(MAC, remote.host, float(number))
    assert events == [EntryEvent.ADDED, EntryEvent.MOVED, EntryEvent.HELD]
    assert one.admit(MAC, A.host, 20.0)
    assert events[3:] == [EntryEvent.RELEASED, EntryEvent.MOVED]


def test_held_mac_that_is_evicted_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves_module, "_MACS_MAX", 2)
    one = segment(limit=1)
    events: list[tuple[EntryEvent, bytes]] = []
    one.fdb.watch(lambda event, entry: events.append((event, entry.mac)))
    macs = [bytes((2, 0, 0, 0, 0, number)) for number in range(3)]
    for mac in macs:
        for number, remote in enumerate((A, B, A)):
            one.admit(mac, remote.host, float(number))
    assert [each for each in events if each[0] is EntryEvent.RELEASED] == [
        (EntryEvent.RELEASED, macs[0])
    ]
    assert [entry.mac for entry in one.fdb.held()] == macs[1:]
    assert [entry.mac for entry, _ in one.fdb.select(Filter(held=True))] == macs[1:]
    assert {entry.mac for entry, _ in one.fdb.select(Filter(held=False, dynamic=True))} == {macs[0]}


def test_limit_that_is_switched_off_releases_all() -> None:
    one = segment(limit=1)
    events: list[EntryEvent] = []
    one.fdb.watch(lambda event, _entry: events.append(event))
    for number, remote in enumerate((A, B, A)):
        one.admit(MAC, remote.host, float(number))
    one.fdb.moves.configure(0, 300)
    assert events[-1] is EntryEvent.RELEASED
    assert one.fdb.held() == []
    assert one.admit(MAC, A.host, 2.0)


def test_machine_that_migrates_ten_times_is_soon_where_it_is() -> None:
    """Its former host is silent, so a hold ends after seconds: it need not wait for 300 s."""
    one, now, late = segment(), 0.0, []
    for number in range(11):
        here = (A, B)[number % 2]
        arrived = now
        while not one.admit(MAC, here.host, now):
            now += 0.25
        late.append(now - arrived)
        while now < 18.0 * (number + 1):  # It sends all the time, also while it is copied.
            assert one.admit(MAC, here.host, now)
            now += 0.25
    assert one.fdb.get(MAC).destinations == (A,)
    assert late[:6] == [0.0] * 6
    assert max(late) <= SILENCE_S
    assert one.counters.fdb_moved == 10


def test_two_active_hosts_with_one_mac_are_held_as_long_as_both_are_active() -> None:
    """Neither silence of one second nor the hold itself lets the MAC flap."""
    one = segment()
    for step in range(4 * 60):
        now = step / 4
        one.admit(MAC, A.host, now)
        if step % 4 == 0:
            one.admit(MAC, B.host, now)
    assert one.counters.fdb_moved == 5
    # The one where it is held falls silent: the other one takes over, once.
    assert one.fdb.get(MAC).destinations == (B,)
    for step in range(4 * 10):
        one.admit(MAC, A.host, 60 + step / 4)
    assert one.fdb.get(MAC).destinations == (A,)
    one.admit(MAC, B.host, 70.0)
    assert one.fdb.get(MAC).destinations == (A,)
    assert one.counters.fdb_moved == 6


def test_deletion_and_expiry_release() -> None:
    for expire in (False, True):
        one = segment(limit=1, hold=10_000)
        for number, remote in enumerate((A, B, A)):
            one.admit(MAC, remote.host, float(number))
        assert len(one.fdb.moves) == 1
        if expire:
            while one.sweep(1000.0):
                pass
        else:
            one.fdb.remove(MAC)
        assert len(one.fdb.moves) == 0
        assert one.admit(MAC, A.host, 1001.0)
        assert one.fdb.get(MAC).destinations == (A,)


def test_few_moves_and_no_limit_hold_nothing() -> None:
    """A virtual machine migrates a few times; and with a limit of 0 every move is allowed."""
    one = segment()
    for number in range(100):  # One move in 40 s: 4 or 5 in each window.
        assert one.admit(MAC, (A, B)[number % 2].host, 40.0 * number)
    other = segment(limit=0)
    for number in range(100):
        assert other.fdb.learn(MAC, (A, B)[number % 2], 0.0) is not Learned.HELD
    assert other.counters.drops[Drop.INNER_SOURCE_HELD] == 0


# What a MAC sends in ordinary situations: times in seconds, and the remotes that it comes from.
ORDINARY = {
    "a container that is started again elsewhere": [(0, A), (1, A), (5, B), (6, B)],
    "a failover of keepalived, and back": [
        *((second, A) for second in range(10)),
        *((10 + second / 10, B) for second in range(5)),  # Announcements.
        *((second, B) for second in range(11, 30)),
        *((second, A) for second in range(30, 60)),
    ],
    "announcements of an address": [(number / 100, A) for number in range(100)],
    "two migrations, each with a frame that was still on its way": [
        *[(0, A), (20, A), (20.01, B), (20.02, A), (20.03, B), (60, B)],
        *[(60.01, A), (60.02, A), (90, A)],
    ],
    "a new migration every 40 s": [(40 * number, (A, B)[number % 2]) for number in range(30)],
}


@pytest.mark.parametrize("frames", ORDINARY.values(), ids=ORDINARY)
def test_nothing_is_held_in_ordinary_situations(frames: list[tuple[float, Remote]]) -> None:
    one = segment()
    events: list[EntryEvent] = []
    one.fdb.watch(lambda event, _entry: events.append(event))
    for now, remote in frames:
        assert one.admit(MAC, remote.host, now)
        assert one.fdb.get(MAC).destinations == (remote,)
    assert EntryEvent.HELD not in events


def test_bond_across_two_hosts_loses_nothing_if_its_entry_is_sticky() -> None:
    """Without, it is held: its frames are those of two hosts with one MAC."""
    one, other = segment(), segment()
    other.fdb.append(MAC, A, 0.0, EntryKind(EntryState.DYNAMIC, sticky=True))
    for number in range(1000):
        now, host = number / 10, (A, B)[number % 2].host
        one.admit(MAC, host, now)
        assert other.admit(MAC, host, now)
    assert len(one.fdb.held()) == 1
    assert other.fdb.held() == []
    assert other.fdb.get(MAC).destinations == (A,)
    assert other.counters.fdb_moved == 0


def test_moves_are_counted_as_long_as_they_matter() -> None:
    one = segment()
    for now, remote in ((0.0, A), (10.0, B), (100.0, A)):
        one.admit(MAC, remote.host, now)
    counts = {now: one.fdb.moves.count(MAC, now) for now in (100.0, 189.0, 190.0, 280.0)}
    assert counts == {100.0: 2, 189.0: 2, 190.0: 1, 280.0: 0}
    assert one.fdb.moves.count(bytes(6), 100.0) == 0
