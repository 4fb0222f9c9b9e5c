"""Liveness of remotes: a remote that has never answered an echo request is never silent."""

import asyncio
from contextlib import closing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.control.events import Events
from vtep.forwarding.liveness import (
    INTERVAL_MAX_S,
    MISSED_MAX,
    RETRY_S,
    Liveness,
    LivenessRow,
    LivenessState,
)
from vtep.testing import MemoryUnderlay

from .nodes import IP_A, IP_B, Node, frame, segment, until

NEVER, SEEN, SILENT, REFUSED = (
    LivenessState.NEVER_SEEN,
    LivenessState.SEEN,
    LivenessState.SILENT,
    LivenessState.REFUSED,
)
INTERVAL = 10.0


class Remote:
    """A remote for a simulation, in steps of half a second."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.liveness = Liveness()
        self.interval = interval
        self.now = 1000.0
        self.requests: list[float] = []
        self.answers = False

    def run(self, seconds: float, *, sends: bool = False, refuses: bool = False) -> LivenessState:
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            if sends:
                self.liveness.hear(self.now)
            if self.liveness.is_due(self.now, self.interval):
                self.liveness.request(self.now, self.interval)
                self.requests.append(self.now)
                if refuses:
                    self.liveness.on_refused(self.now)
                elif self.answers:
                    self.liveness.on_reply(self.now + 0.001)
        return self.liveness.state


def test_the_life_of_a_pyvtep() -> None:
    remote = Remote()
    assert remote.liveness.state is NEVER
    remote.answers = True
    assert remote.run(60) is SEEN
    assert 5 <= len(remote.requests) <= 6
    assert remote.liveness.rtt == pytest.approx(0.001)
    remote.answers = False
    assert remote.run(RETRY_S) is SEEN
    assert remote.run(INTERVAL + MISSED_MAX * RETRY_S) is SILENT
    before = len(remote.requests)
    assert remote.run(100) is SILENT
    assert len(remote.requests) - before <= 11
    remote.answers = True
    assert remote.run(INTERVAL + 1) is SEEN


def test_a_vtep_of_another_kind_is_never_silent_and_is_asked_rarely() -> None:
    remote = Remote()
    assert remote.run(3600) is NEVER
    remote.run(1, sends=True)
    assert remote.run(24 * 3600) is SEEN
    assert len(remote.requests) <= 25 * 60 + 10
    assert max(b - a for a, b in pairwise(remote.requests)) <= INTERVAL_MAX_S + 1


def test_traffic_saves_requests() -> None:
    remote = Remote()
    remote.answers = True
    remote.run(30)
    remote.requests.clear()
    assert remote.run(600, sends=True) is SEEN
    assert remote.requests == []


def test_one_that_sends_but_does_not_answer_is_seen() -> None:
    remote = Remote()
    remote.answers = True
    remote.run(30)
    remote.answers = False
    for _ in range(100):
        remote.run(0.5, sends=True)
        assert remote.run(11) is SEEN


def test_refused_until_it_is_heard_or_no_longer_refused() -> None:
    remote = Remote()
    assert remote.run(60, refuses=True) is REFUSED
    remote.liveness.hear(remote.now)
    assert remote.liveness.state is SEEN
    assert remote.run(100, refuses=True) is REFUSED
    # A VTEP that does not answer has been started there, and is quiet.
    assert remote.run(400) is SEEN


def test_a_kernel_driver_in_place_of_a_pyvtep_is_silent_once_at_most() -> None:
    remote = Remote()
    remote.answers = True
    remote.run(60)
    remote.answers = False
    assert remote.run(60) is SILENT
    for _ in range(5):
        assert remote.run(0.5, sends=True) is SEEN
        assert remote.run(3600) is SEEN
    assert not remote.liveness.is_pyvtep
    remote.answers = True
    remote.run(INTERVAL_MAX_S + 1)
    assert remote.liveness.is_pyvtep


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["hear", "reply", "refuse", "tick", "tick", "tick", "upgrade"]),
        st.floats(0, 30),
    ),
    max_size=80,
)


@given(STEPS, st.floats(0.1, 100))
def test_whatever_happens(steps: list[tuple[str, float]], interval: float) -> None:
    liveness, now = Liveness(), 1000.0
    heard = replied = -1.0
    requests: list[float] = []
    for step, pause in steps:
        now += pause
        if step == "hear":
            liveness.hear(now)
            heard = now
        elif step == "reply":
            liveness.on_reply(now)
            heard = replied = now
        elif step == "refuse":
            liveness.on_refused(now)
            liveness.hurry(now)
        elif step == "upgrade":
            before, exported = liveness.state, liveness.export(now)
            liveness, now = Liveness(), now + 50_000  # Another clock.
            heard, replied = heard + 50_000 * (heard > 0), replied + 50_000 * (replied > 0)
            requests = [at + 50_000 for at in requests]
            liveness.restore(LivenessRow(*exported), now)  # type: ignore[arg-type]
            assert liveness.state is before
        elif liveness.is_due(now, interval):
            liveness.request(now, interval)
            requests.append(now)
        if step in ("hear", "reply") and pause:
            assert liveness.state is SEEN
        assert not liveness.is_pyvtep or replied > 0
        if liveness.state is SILENT:
            assert replied > 0
            assert len([at for at in requests if at >= heard]) >= MISSED_MAX
        if liveness.state is NEVER:
            assert heard < 0
    assert all(b - a >= min(RETRY_S, interval) * 0.999 for a, b in pairwise(requests))


def test_what_is_known_here_is_kept() -> None:
    former = LivenessRow(is_pyvtep=True, is_refused=True, missed=9, heard=5.0, replied=6.0, rtt=0.5)
    liveness = Liveness()
    liveness.on_reply(100.0)
    liveness.restore(former, 101.0)
    assert liveness.state is SEEN
    assert (liveness.last_heard, liveness.last_reply, liveness.rtt) == (100.0, 100.0, None)


# --- two VTEPs ----------------------------------------------------------------------------------


def test_a_pyvtep_that_ends_is_silent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def run() -> None:
        with closing(MemoryUnderlay(seed=1)) as underlay:
            one = Node(underlay, segment(1, liveness_interval=0.1), segment(2))
            two = Node(underlay, segment(1, IP_A), ip=IP_B)
            events: list[Any] = []
            async with one.vtep:
                end = Events(one.vtep).watch(events.append)

                def states() -> list[tuple[str, object]]:
                    kind = "remote-liveness"
                    return [(e["event"], e["vni"]) for e in events if e.get("object") == kind]

                def liveness() -> Liveness:
                    found = one.vtep.liveness.get(IP_B, 4789)
                    assert found is not None
                    return found

                async with two.vtep:
                    await until(lambda: len(states()) == 2)
                    assert states() == [("seen", 1), ("seen", 2)]
                    assert liveness().is_pyvtep
                    assert liveness().rtt is not None
                await until(lambda: len(states()) == 4)
                assert states()[2:] == [("silent", 1), ("silent", 2)]
                assert one.vtep.liveness.export(0.0)[0][:3] == [IP_B, 4789, True]
                end()
                assert one.vtep.liveness.watchers == []
        lines = [each.getMessage() for each in caplog.records]
        assert len([line for line in lines if f"{IP_B} is silent" in line]) == 1

    asyncio.run(run())


def test_with_an_interval_of_0_none_is_asked() -> None:
    async def run() -> None:
        with closing(MemoryUnderlay(seed=1)) as underlay:
            one = Node(underlay, segment(1, liveness_interval=0))
            two = Node(underlay, segment(1, IP_A, liveness_interval=0), ip=IP_B)
            async with one.vtep, two.vtep:
                two.send(frame(bytes((10, 0, 0, 0, 0, 1)), bytes((10, 0, 0, 0, 0, 2))))

                def seen() -> bool:
                    found = one.vtep.liveness.get(IP_B, 4789)
                    return found is not None and found.state is SEEN

                await until(seen)
                assert two.vtep.counters()["echo_requests_answered"] == 0

    asyncio.run(run())
