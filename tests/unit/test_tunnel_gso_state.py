"""Who is asked whether superframes may leave whole, when, and for how long an answer counts."""

from collections.abc import Callable
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.probe import SIZE, Kind, Probe, Status
from vtep.tunnel_gso import state
from vtep.tunnel_gso.ack_tracker import Fate, Judge
from vtep.tunnel_gso.encoder import LARGE, SMALL, Question
from vtep.tunnel_gso.state import Consent


class Way:
    """A way to a remote that takes notes."""

    def __init__(self, host: str = "192.0.2.2") -> None:
        self.host = host
        self.wished = False
        self.sent = 0
        self.largest = 0
        self.judge: Judge | None = None
        self.any_size = False
        self.told = 0
        self.device = 0
        self.questions: list[tuple[float, Probe]] = []

    @property
    def is_open(self) -> bool:
        return self.largest > 0

    def open(self, device: int, largest: int) -> None:
        self.largest, self.device, self.judge = largest, device, None

    def shut(self) -> None:
        self.largest, self.judge = 0, None

    def try_one(self, device: int, judge: Judge, *, any_size: bool) -> None:
        self.device, self.judge, self.any_size = device, judge, any_size

    def tell_losses(self) -> None:
        self.told += 1

    def tried(self, fate: Fate, octets: int, now: float) -> None:
        """One leaves whole, and this becomes of it."""
        assert self.judge is not None
        judge, self.judge = self.judge, None
        assert octets > self.largest or self.any_size
        self.sent += 1
        judge(fate, octets, now)

    def ask(self, device: int, probe: bytes, question: Question, now: float) -> None:
        parsed = Probe.parse(probe)
        assert parsed is not None
        assert parsed.kind is Kind.QUESTION
        self.device = device
        self.questions.append((now, parsed))
        self.asked_with = question

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.questions]


CUT = SIZE + SMALL.cut.head_len + SMALL.cut.size


def answer(way: Way, arrived: int = CUT) -> Probe:
    _, asked = way.questions[-1]
    parsed = Probe.parse(asked.answer(arrived, Status.FINE))
    assert parsed is not None
    return parsed


class Room:
    """A consent, and how often it was woken."""

    def __init__(self) -> None:
        numbers = count(1)
        self.woken = 0
        self.it: Consent[Way] = Consent(lambda: next(numbers).to_bytes(8, "big"), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def asked(self, way: Way, now: float = 0.0, device: int | None = 3) -> None:
        self.it.wish(way, 4789)
        self.it.found(way, device, now)

    def opened(self, way: Way, now: float = 0.0) -> None:
        self.asked(way, now)
        self.it.answered(answer(way), way.host, now)
        assert way.is_open

    def ticks(self, first: int, last: int, each: Callable[[int], None] = lambda _: None) -> None:
        for now in range(first, last + 1):
            each(now)
            self.it.tick(float(now))


def test_a_wish_is_asked_and_answered() -> None:
    room, way = Room(), Way()
    room.it.wish(way, 4790)
    assert (way.wished, room.woken, room.it.wanting()) == (True, 1, [way])
    room.it.tick(5.0)
    assert not way.questions
    room.it.found(way, 3, 6.0)
    assert room.it.wanting() == []
    ((at, probe),) = way.questions
    assert (at, probe.port, probe.vni, probe.octets) == (6.0, 4790, None, 0)
    assert not way.is_open
    room.it.answered(answer(way), way.host, 6.1)
    assert (way.is_open, way.device) == (True, 3)


def test_answers_of_others_are_none() -> None:
    room, way = Room(), Way()
    room.asked(way)
    right = answer(way)
    room.it.answered(right, "192.0.2.3", 0.0)
    stranger = Way()
    Room().asked(stranger)
    other = Probe(Kind.ANSWER, None, 4789, bytes(8), 1, 0)
    room.it.answered(other, way.host, 0.0)
    assert not way.is_open
    unasked = Way()
    room.it.wish(unasked, 4789)
    room.it.answered(Probe(Kind.ANSWER, None, 4789, (2).to_bytes(8), 1, 0), unasked.host, 0.0)
    assert not unasked.is_open, "no device is known yet"


def test_who_does_not_answer_is_left_alone_for_a_while() -> None:
    room, way = Room(), Way()
    room.asked(way)
    room.ticks(1, 61)
    assert way.times == [0.0, 1.0, 2.0]
    assert way.wished
    room.ticks(62, 63)
    assert not way.wished, "may be wished for again"
    late = answer(way)
    room.it.answered(late, way.host, 63.5)
    assert not way.is_open


def test_a_late_answer_counts() -> None:
    room, way = Room(), Way()
    room.asked(way)
    room.ticks(1, 40)
    room.it.answered(answer(way), way.host, 40.0)
    assert way.is_open


def test_a_way_in_use_stays_open_while_there_are_answers() -> None:
    room, way = Room(), Way()
    room.opened(way)

    def use(now: int) -> None:
        way.sent += 1
        if way.times[-1] == now - 1:
            room.it.answered(answer(way), way.host, now - 0.5)

    room.ticks(1, 300, use)
    assert way.is_open
    assert 40 <= len(way.questions) <= 61, "once in some five seconds"


def test_a_way_that_is_not_used_is_shut_without_a_question() -> None:
    room, way = Room(), Way()
    room.opened(way)
    room.ticks(1, 19)
    assert way.is_open
    room.ticks(20, 20)
    assert (way.is_open, way.wished, len(way.questions)) == (False, False, 1)


def test_a_remote_that_answers_no_more_gets_nothing_whole() -> None:
    room, way = Room(), Way()
    room.opened(way)

    def use(_: int) -> None:
        way.sent += way.is_open

    room.ticks(1, 4, use)
    assert way.is_open
    room.ticks(5, 8, use)
    assert not way.is_open, "after three questions in vain, not when the last answer is too old"
    assert not way.wished


def test_a_way_that_was_shut_after_an_error_has_a_pause() -> None:
    room, way = Room(), Way()
    room.opened(way)
    way.shut()
    room.ticks(1, 60)
    assert way.wished
    assert len(way.questions) == 1
    room.ticks(61, 61)
    assert not way.wished


def test_no_device_that_could() -> None:
    room, way = Room(), Way()
    room.asked(way, device=None)
    assert room.it.wanting() == []
    room.ticks(1, 59)
    assert way.wished
    assert not way.questions
    room.ticks(60, 60)
    assert not way.wished


def test_all_is_forgotten_when_the_network_changes() -> None:
    room, way, other = Room(), Way(), Way("192.0.2.3")
    room.opened(way)
    room.asked(other)
    late = answer(other)
    room.it.forget()
    assert (way.is_open, way.wished, other.wished) == (False, False, False)
    room.it.answered(late, other.host, 1.0)
    assert not other.is_open
    room.it.found(other, 3, 1.0)
    assert len(other.questions) == 1


@given(st.lists(st.sampled_from("wfntaxuUFR"), max_size=60))
def test_it_is_open_only_after_an_answer_in_time(doings: list[str]) -> None:
    room, way, now, answered = Room(), Way(), 0.0, -100.0
    for doing in doings:
        now += 1.0
        if doing == "w" and not way.wished:
            room.it.wish(way, 4789)
        elif doing in "fn":
            for each in room.it.wanting():
                room.it.found(each, 3 if doing == "f" else None, now)
        elif doing == "a" and way.questions:
            room.it.answered(answer(way), way.host, now)
            answered = now
        elif doing == "x":
            way.shut()
        elif doing == "u":
            way.sent += 1
        elif doing == "U":
            now += 20.0
        elif doing == "F":
            room.it.forget()
        elif doing == "R":
            room.it.release(way)
        room.it.tick(now)
        assert not way.is_open or now <= answered + 20.0
        assert way.wished or not way.is_open


# --- questions that nobody has cut -------------------------------------------------------------


def test_a_large_one_has_to_pass_too() -> None:
    room, way = Room(), Way()
    room.asked(way)
    assert way.asked_with is SMALL
    for _ in range(3):  # Some network has doubled it.
        room.it.answered(answer(way, SIZE + len(SMALL.frame)), way.host, 0.1)
    assert (way.asked_with, way.is_open, len(way.questions)) == (LARGE, False, 2)
    room.it.answered(answer(way, SIZE + len(LARGE.frame)), way.host, 0.2)
    assert way.is_open


def test_what_carries_no_large_ones() -> None:
    room, way = Room(), Way()
    room.asked(way)
    room.it.answered(answer(way, SIZE + len(SMALL.frame)), way.host, 0.1)
    room.ticks(1, 60)
    assert not way.is_open
    assert len(way.questions) == 4


def test_a_way_on_which_they_are_cut_now() -> None:
    room, way = Room(), Way()
    room.asked(way)
    room.it.answered(answer(way, SIZE + len(SMALL.frame)), way.host, 0.1)
    room.it.answered(answer(way, SIZE + len(LARGE.frame)), way.host, 0.2)
    way.sent = 1
    room.ticks(1, 6)
    assert way.asked_with is LARGE
    room.it.answered(answer(way, SIZE + LARGE.cut.head_len + LARGE.cut.size), way.host, 6.5)
    way.sent = 2
    room.ticks(7, 13)
    assert way.asked_with is SMALL
    assert way.is_open


# --- those who answer nothing -----------------------------------------------------------------


def test_what_arrives_opens_the_way_for_what_is_no_larger() -> None:
    room, way = Room(), Way()
    room.asked(way)
    way.tried(Fate.ARRIVED, 3000, 0.1)
    assert (way.largest, way.device) == (3000, 3)
    assert not way.any_size
    way.tried(Fate.ARRIVED, 60_000, 0.2)
    assert way.largest == 60_000
    assert way.judge is not None, "there may be a larger one"


def test_one_of_each_second_is_watched_and_keeps_the_way_open() -> None:
    room, way = Room(), Way()
    room.asked(way)
    way.tried(Fate.ARRIVED, 60_000, 0.5)

    def in_use(now: int) -> None:
        way.sent += 100
        if way.any_size:
            way.tried(Fate.ARRIVED, 1000, now - 0.5)
        assert way.is_open

    room.ticks(1, 100, in_use)
    assert way.largest == 60_000
    assert len(way.questions) == 1


def test_what_has_arrived_counts_for_some_seconds() -> None:
    room, way = Room(), Way()
    room.asked(way)
    way.tried(Fate.ARRIVED, 60_000, 0.5)
    room.ticks(1, 5)
    assert way.is_open
    room.ticks(6, 6)
    assert (way.is_open, way.wished, len(way.questions)) == (False, True, 1)
    way.tried(Fate.ARRIVED, 60_000, 6.2)
    assert way.is_open
    room.ticks(7, 12)
    assert not way.is_open
    # If there is nothing to try with for long, there may be a pyvtep now, or another device.
    room.ticks(13, 72)
    assert not way.wished


def lost_ones(room: Room, way: Way, until: int, octets: int = 60_000) -> list[float]:
    """When superframes are lost of a remote that takes none, or none so large."""
    lost = []
    for now in range(until):
        if not way.wished:
            room.asked(way, now)
        if way.judge is not None:
            if way.largest == 0 and octets > 60_000:
                way.tried(Fate.ARRIVED, 10_000, now)
            lost.append(float(now))
            way.tried(Fate.LOST, octets, now)
        assert not way.is_open
        room.it.tick(now)
    return lost


@pytest.mark.parametrize("octets", [60_000, 60_001], ids=["any", "large"])
def test_after_one_that_was_lost_there_is_none_for_ever_longer(octets: int) -> None:
    room, way = Room(), Way()
    lost = lost_ones(room, way, 20_000, octets)
    pauses = [after - before for before, after in pairwise(lost)]
    wanted = [*(1 << number for number in range(12)), *[3600] * 4]
    assert len(pauses) == len(wanted)
    for pause, least in zip(pauses, wanted, strict=True):
        assert least <= pause <= least + 65, "there is a look once a minute"
    assert way.told == 1
    other = Way("192.0.2.3")
    room.asked(other, 20_000)
    assert other.judge is not None, "of another host nothing is known"


def test_one_that_arrives_after_one_that_was_lost_makes_it_good() -> None:
    room, way = Room(), Way()
    room.asked(way)
    way.tried(Fate.LOST, 60_000, 0.1)
    assert way.judge is None
    room.ticks(1, 2)
    way.tried(Fate.ARRIVED, 60_000, 2.1)
    assert way.largest == 60_000
    way.tried(Fate.LOST, 61_000, 2.2)
    room.ticks(3, 4)
    assert way.judge is not None, "it was an accident, again"
    assert way.told == 0


def test_what_nothing_is_known_of_is_no_loss() -> None:
    room, way = Room(), Way()
    room.asked(way)
    way.tried(Fate.UNKNOWN, 60_000, 0.1)
    assert way.judge is not None
    way.tried(Fate.ARRIVED, 60_000, 0.2)
    assert way.is_open
    way.tried(Fate.UNKNOWN, 61_000, 0.3)
    assert way.largest == 60_000


def test_an_answer_needs_no_trial() -> None:
    room, way = Room(), Way()
    room.asked(way)
    judge = way.judge
    assert judge is not None
    room.it.answered(answer(way), way.host, 0.1)
    largest = way.largest
    assert largest > 1 << 15
    assert way.judge is None
    judge(Fate.ARRIVED, 5000, 0.2)
    judge(Fate.UNKNOWN, 5000, 0.3)
    assert way.largest == largest
    assert way.judge is None


def test_answers_are_not_believed_where_superframes_are_lost() -> None:
    room, way = Room(), Way()
    room.opened(way)
    way.sent += 10
    room.ticks(1, 1)
    way.tried(Fate.LOST, 60_000, 1.3)
    assert not way.is_open
    room.it.answered(answer(way), way.host, 1.4)
    assert not way.is_open
    room.ticks(2, 3)
    way.tried(Fate.ARRIVED, 60_000, 3.1)
    assert way.largest == 60_000
    room.it.release(way)
    room.opened(way, 4.0)


def test_what_becomes_of_an_old_one_is_of_no_interest() -> None:
    room, way = Room(), Way()
    room.asked(way)
    judge = way.judge
    assert judge is not None
    room.it.forget()
    judge(Fate.ARRIVED, 5000, 0.1)
    assert not way.is_open
    room.asked(way, 0.2)
    judge(Fate.LOST, 5000, 0.3)
    room.it.release(way)
    room.asked(way, 0.4)
    assert way.judge is not None


def test_losses_of_so_many_hosts_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_FAILURES_MAX", 2)
    room, hosts = Room(), ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    for host in hosts:
        way = Way(host)
        room.asked(way)
        way.tried(Fate.LOST, 60_000, 0.1)
        room.it.release(way)
    ways = [Way(host) for host in hosts]
    for way in ways:
        room.asked(way, 0.2)
    assert [way.judge is not None for way in ways] == [True, False, False]
