"""MAC move dampening: which moves are allowed, and what is reported."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from vtep.counters import Drop
from vtep.forwarding.fdb import Entry, EntryEvent, Fdb, Learned, Remote
from vtep.forwarding.fdb.moves import WINDOW_S, MoveLimit
from vtep.forwarding.segment import Segment

MAC = b"\x02\0\0\0\0\x01"
A, B = Remote("192.0.2.2", 4789), Remote("192.0.2.3", 4789)


def segment(limit: int = 5, hold: float = 300.0) -> Segment:
    fdb = Fdb(1, 4789, ageing=300, max_addresses=0)
    fdb.moves.limit, fdb.moves.hold = limit, hold
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
    """The oracle remembers everything: the moves in the window before a move, and the holds."""
    moves = MoveLimit(limit, hold)
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
        assert moves.note(mac, now) is expected
        held = moves.held_until(mac)
        assert (held is not None and held > now) is (now < until.get(number, 0.0))


def test_memory_is_bounded() -> None:
    moves = MoveLimit(1, 1000)
    for number in range(10_000):
        mac = number.to_bytes(6, "big")
        assert moves.note(mac, 0.0)
        assert not moves.note(mac, 0.0)
    assert len(moves) == 4096
    for number in range(10_000):
        moves.note((1 << 40 | number).to_bytes(6, "big"), 0.0)
    assert len(moves._moves) == 4096


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
