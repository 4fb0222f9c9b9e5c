"""The echo of VTEPs: its format, who is answered, how often, and the search for the path MTU."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vtep.counters import Drop
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.switch import Segment, Switch
from vtep.wire import ethernet, vxlan
from vtep.wire.echo import SIZE, Allowance, Kind, Probe, Status, largest

TOKEN = b"01234567"
QUESTION = Probe(Kind.QUESTION, 5, 50000, TOKEN, 7, SIZE)

probes = st.builds(
    Probe,
    st.sampled_from(Kind),
    st.none() | st.integers(0, vxlan.VNI_MAX),
    st.integers(0, 0xFFFF),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 0xFFFF_FFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from(Status),
)


# --- format -------------------------------------------------------------------------------------


@given(probes, st.integers(SIZE, 2000))
def test_what_is_packed_is_parsed(probe: Probe, size: int) -> None:
    datagram = probe.pack(size)
    assert len(datagram) == size
    assert Probe.parse(datagram) == probe


def test_octets() -> None:
    """As the module draws them."""
    header = bytes.fromhex("00000000 00000500 7079767465704543 01 01 01 00 0000 c350")
    assert QUESTION.pack() == header + TOKEN + bytes.fromhex("00000007 0026")
    assert SIZE == 0x26


@given(probes)
def test_every_other_vtep_drops_it(probe: Probe) -> None:
    datagram = probe.pack()
    assert not datagram[0] & 0x08
    # Nor is it taken for TCP or UDP in a frame, so that it would be merged with others.
    ethertype = datagram[vxlan.HEADER_LEN + 12 : vxlan.HEADER_LEN + 14]
    assert ethertype == bytes(2)


@given(
    st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: QUESTION.pack()[:20] + rest)
)
def test_whatever_comes_is_parsed_or_is_none(datagram: bytes) -> None:
    probe = Probe.parse(datagram)
    if probe is not None:
        assert probe.pack()[:SIZE] == datagram[:SIZE]


@given(st.integers(0, SIZE - 1))
def test_a_short_one_is_none(length: int) -> None:
    assert Probe.parse(QUESTION.pack()[:length]) is None


@pytest.mark.parametrize("at", [0, 7, 8, 15, 16, 17, 18, 19, 20, 21])
def test_each_fixed_octet_counts(at: int) -> None:
    datagram = bytearray(QUESTION.pack())
    datagram[at] ^= 0x88
    assert Probe.parse(datagram) is None


@given(probes, st.integers(SIZE, 9000), st.sampled_from(Status))
def test_an_answer_is_never_larger_than_the_question(
    probe: Probe, arrived: int, status: Status
) -> None:
    datagram = probe.answer(arrived, status)
    assert SIZE <= len(datagram) <= arrived
    answer = Probe.parse(datagram)
    assert answer == evolve(probe, kind=Kind.ANSWER, octets=arrived, status=status)


# --- who is answered ----------------------------------------------------------------------------


class Answerer:
    """A switch with two segments, and what it says to whom."""

    def __init__(self) -> None:
        self.said: list[tuple[Probe | None, int, str, int]] = []
        segments = [
            Segment(
                vni,
                [Remote(host, 4789)],
                Fdb(vni, 4789, ageing=300, max_addresses=0),
                own_mac=ethernet.MAC_ZERO,
                learning=True,
            )
            for vni, host in ((5, "192.0.2.5"), (6, "192.0.2.6"))
        ]
        self.switch = Switch(segments, 4789, self._reply)

    def _reply(self, datagram: bytes, host: str, port: int) -> None:
        self.said.append((Probe.parse(datagram), len(datagram), host, port))

    def ask(self, probe: Probe, host: str = "192.0.2.5", size: int = SIZE, now: float = 0.0) -> Any:
        self.said.clear()
        assert self.switch.receive(probe.pack(size), host, now) is None
        return self.said[0] if self.said else None

    def drops(self) -> dict[Drop, int]:
        counters = [self.switch.counters, *(s.counters for s in self.switch.segments.values())]
        return {
            reason: count
            for reason in Drop
            if (count := sum(each.drops[reason] for each in counters))
        }


@pytest.mark.parametrize(
    ("vni", "host", "status"),
    [
        (5, "192.0.2.5", Status.FINE),
        (None, "192.0.2.5", Status.FINE),
        (6, "192.0.2.5", Status.SOURCE_UNKNOWN),
        (7, "192.0.2.5", Status.VNI_UNKNOWN),
    ],
)
def test_those_who_are_listened_to_are_answered(vni: int | None, host: str, status: Status) -> None:
    answerer = Answerer()
    answer, size, to, port = answerer.ask(evolve(QUESTION, vni=vni, octets=100), host, size=1400)
    assert (size, to, port) == (100, host, 50000)
    assert answer == Probe(Kind.ANSWER, vni, 50000, TOKEN, 7, 1400, status)
    assert answerer.drops() == {}
    assert answerer.switch.counters.probes_answered == 1


@pytest.mark.parametrize("vni", [None, 5, 6, 7])
def test_nobody_else_is(vni: int | None) -> None:
    answerer = Answerer()
    assert answerer.ask(evolve(QUESTION, vni=vni), "192.0.2.9") is None
    assert answerer.drops() == {Drop.SOURCE_UNKNOWN: 1}
    # It is said of the segment that was asked for, if there is such a one.
    segment = answerer.switch.segments.get(vni or 0)
    counters = segment.counters if segment else answerer.switch.counters
    assert counters.last_source == {Drop.SOURCE_UNKNOWN: "192.0.2.9"}


def test_answers_are_not_answered() -> None:
    answerer = Answerer()
    assert answerer.ask(evolve(QUESTION, kind=Kind.ANSWER)) is None
    assert answerer.drops() == {}
    assert answerer.switch.counters.probes_heard == 1


@pytest.mark.parametrize("port", [0, 22, 53, 4788, 4790, 49151])
def test_other_ports_are_not_written_to(port: int) -> None:
    answerer = Answerer()
    assert answerer.ask(evolve(QUESTION, port=port)) is None
    assert answerer.drops() == {Drop.FLAGS_INVALID: 1}


@pytest.mark.parametrize("port", [4789, 49152, 65535])
def test_ports_of_vteps_are(port: int) -> None:
    assert Answerer().ask(evolve(QUESTION, port=port))[3] == port


def test_a_flood_of_questions_is_not_answered_by_a_flood() -> None:
    answerer = Answerer()
    answered = sum(answerer.ask(QUESTION, now=10.0) is not None for _ in range(1000))
    assert answered == 256
    assert answerer.drops() == {Drop.PROBE_LIMITED: 744}
    answered = sum(answerer.ask(QUESTION, now=11.0) is not None for _ in range(1000))
    assert answered == 100


def test_who_has_nothing_to_answer_with_drops_it() -> None:
    switch = Switch(())
    assert switch.receive(QUESTION.pack(), "192.0.2.5", 0.0) is None
    assert switch.counters.drops[Drop.FLAGS_INVALID] == 1


# --- how often ----------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), max_size=300))
def test_allowance_is_never_exceeded(times: list[float]) -> None:
    allowance = Allowance(rate=2.0, burst=3.0)
    taken = [at for at in sorted(times) if allowance.take(at)]
    for first, start in enumerate(taken):
        for last, end in enumerate(taken[first:], first):
            assert last - first + 1 <= 3 + 2 * (end - start) + 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    allowance = Allowance(rate=1.0, burst=1.0)
    assert allowance.take(10.0)
    assert not allowance.take(5.0)
    assert not allowance.take(10.5)
    assert allowance.take(11.0)


# --- the largest size ---------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 2100), st.booleans())
def test_largest(one: int, other: int, limit: int, told: bool) -> None:
    low, high = min(one, other), max(one, other)
    tries: list[int] = []

    def passes(size: int) -> tuple[bool, int | None]:
        assert low <= size <= high
        tries.append(size)
        return size <= limit, limit if told and size > limit else None

    assert largest(low, high, passes) == (min(limit, high) if limit >= low else None)
    assert len(tries) <= 12
    if limit >= high:
        assert tries == [high]
    elif told and limit >= low:
        assert tries == [high, limit]


def test_what_is_told_is_not_believed_unseen() -> None:
    told = {1500: 1400, 1400: 1300}

    def passes(size: int) -> tuple[bool, int | None]:
        return size <= 1234, told.get(size, 9000)

    assert largest(68, 1500, passes) == 1234
