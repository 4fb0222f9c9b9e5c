"""The screen of top, in a terminal of textual without a terminal."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Any

import pytest

from tests.unit import status_fake
from tests.unit.test_top_model import FakeFdb
from vtep.control.schema import FdbSample, Status
from vtep.errors import VtepError
from vtep.top.macs import MacRequest, MacSampler
from vtep.top.model import Model
from vtep.top.rates import RateMeter
from vtep.top.screen import HelpScreen, LinesWidget, TopApp
from vtep.top.view import KEYS, View


class FakeVtep:
    """The answers of a VTEP with traffic, a second after one another."""

    def __init__(self) -> None:
        self.client = status_fake.FakeClient()
        self.fdb = FakeFdb(30)
        self.asked: list[MacRequest | None] = []
        self.threads: set[int] = set()

    def poll(self, asked: MacRequest | None) -> tuple[Status, FdbSample | None]:
        self.asked.append(asked)
        self.threads.add(threading.get_ident())
        status = self.client.status()
        if asked is None:
            return status, None
        for number, entry in enumerate(self.fdb.entries.values()):
            entry["rx_frames"] += number
        return status, self._sample()

    def _sample(self) -> FdbSample:
        taken: list[FdbSample] = []

        class Taker(MacSampler):
            def take(self, _asked: MacRequest, sample: FdbSample) -> None:
                taken.append(sample)

        self.fdb.poll(Taker(10))
        return taken[0]


Pilot = Any


def run(
    test: Callable[[TopApp, Pilot, FakeVtep], Awaitable[None]], size: tuple[int, int] = (80, 24)
) -> None:
    """Run a test with an app that has polled twice, and polls when the test says so."""

    async def running() -> None:
        vtep = FakeVtep()
        app = TopApp(Model(RateMeter(), View(zone=UTC)), vtep.poll, None)
        async with app.run_test(size=size) as pilot:
            await app.poll_once()
            await app.poll_once()
            await pilot.pause()
            await test(app, pilot, vtep)
        assert threading.get_ident() not in vtep.threads

    asyncio.run(running())


def screen(app: TopApp) -> list[str]:
    """Return the lines that a user sees, as the widget draws them."""
    widget = app.screen_stack[0].query_one(LinesWidget)
    lines = [widget.render_line(y) for y in range(widget.size.height)]
    assert all(line.cell_length == widget.size.width for line in lines)
    return [line.text.rstrip() for line in lines]


VNIS_SCREEN = """\
pyvtep 0.14.0, pid 4242, up 60m, 08:00:01: VNIs of all VNIs
drops 20/s  RX 16Mb 2kfr 0sf -/c  TX 16Mb 2kfr 0sf -/c
vni 10: 192.0.2.3 is silent: it answered no echo request for 95 s; see pyvtep do
     VNI device        state       RX▼      TX  RX fr  TX fr  drops    FDB
      10 vx10          up           8M      8M     1k     1k     10      5
      20 vx20          down         8M      8M     1k     1k     10      5
"""
REMOTES_SCREEN = """\
     VNI remote               liveness       RX▼      TX  RX fr  TX fr  seen
      10 192.0.2.2            seen            8M      8M     1k     1k  1.0s
      10 192.0.2.3            silent           0       0      0      0   95s
      10 2001:db8::4          never-seen       0       0      0      0     -
"""
DROPS_SCREEN = """\
     VNI reason                    drops▼   count   age last source
      10 source_unknown                10       7    3m 203.0.113.9
      10 storm_broadcast_rx             0      90  0.5s 192.0.2.3
"""
MACS_SCREEN = """\
MAC               remote               state       age moves RX fr▼  TX fr
02:00:00:00:00:1d 192.0.2.2            dynamic    1.0s     0     29      0
02:00:00:00:00:1c 192.0.2.2            dynamic    1.0s     0     28      0
"""


def test_the_tables_and_their_keys() -> None:
    async def test(app: TopApp, pilot: Pilot, vtep: FakeVtep) -> None:
        lines = screen(app)
        assert lines[:6] == VNIS_SCREEN.splitlines()
        assert lines[-1].endswith("? help q quit")
        await pilot.press("enter")
        assert screen(app)[3:7] == REMOTES_SCREEN.splitlines()
        assert "remotes of VNI 10" in screen(app)[0]
        await pilot.press("d")
        assert screen(app)[3:6] == DROPS_SCREEN.splitlines()
        assert not any(vtep.asked)
        await pilot.press("m")
        for _ in range(2):
            await app.poll_once()
        assert screen(app)[3:6] == MACS_SCREEN.splitlines()
        assert vtep.asked[-1] is not None
        await pilot.press("v")
        assert "VNIs of all VNIs" in screen(app)[0]
        await pilot.press("r")
        assert len([line for line in screen(app)[4:-3] if line]) == 6
        assert app.model.request() is None

    run(test)


def test_keys_for_order_units_and_the_cursor() -> None:
    async def test(app: TopApp, pilot: Pilot, _vtep: FakeVtep) -> None:
        view = app.model.view
        await pilot.press("b")
        assert screen(app)[1].startswith("drops 20/s  RX 2MB 2kfr")
        await pilot.press("s")
        assert "TX▼" in screen(app)[3]
        await pilot.press("S", "S")
        assert "state▲" in screen(app)[3]
        assert screen(app)[4].split()[:3] == ["20", "vx20", "down"]
        await pilot.press("o")
        assert screen(app)[4].split()[:3] == ["10", "vx10", "up"]
        await pilot.press("end")
        assert view.current() is view.rows()[-1]
        await pilot.press("home", "down", "j", "k", "pageup", "pagedown", "up")
        assert view.current() is view.rows()[0]
        await pilot.click(LinesWidget, offset=(3, 5))
        assert view.current() is view.rows()[1]
        assert screen(app)[-3].startswith("vx20; MTU 1450, TAP 1500, underlay 1500; offloads")

    run(test)


def test_pause_filter_and_back() -> None:
    async def test(app: TopApp, pilot: Pilot, vtep: FakeVtep) -> None:
        await pilot.press("p")
        assert screen(app)[2] == "paused: p goes on"
        before = len(vtep.asked)
        app._tick()
        await pilot.pause()
        assert len(vtep.asked) == before
        await pilot.press("space", "slash", *"VX20")
        assert [line.split()[0] for line in screen(app)[4:6] if line] == ["20"]
        await pilot.press("enter")
        assert screen(app)[2] == "filter: VX20 (Esc clears it)"
        await pilot.press("escape")
        assert screen(app)[4].split()[0] == "10"
        await pilot.press("slash", "x", "q", "escape")  # Keys are text while it is edited.
        assert app.model.view.wanted == ""
        await pilot.press("enter", "enter")  # The MACs of the first remote of VNI 10.
        assert (app.model.view.vni, app.model.view.wanted) == (10, "=192.0.2.2")
        await pilot.press("escape", "escape")
        assert app.model.view.vni is None
        await pilot.press("q")
        assert not app.is_running

    run(test)


def test_help_has_every_key() -> None:
    async def test(app: TopApp, pilot: Pilot, _vtep: FakeVtep) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        bound = {key for keys, _ in KEYS for key in keys.split()}
        assert {"v", "r", "m", "d", "s", "S", "o", "/", "b", "p", "?", "q"} <= bound
        await pilot.press("x")
        assert not isinstance(app.screen, HelpScreen)
        await pilot.press("h", "escape")
        assert not isinstance(app.screen, HelpScreen)

    run(test)


def test_a_restart_is_said_and_its_first_rates_are_unknown() -> None:
    async def test(app: TopApp, _pilot: Pilot, vtep: FakeVtep) -> None:
        vtep.client.is_down = True
        await app.poll_once()
        assert screen(app)[2].startswith("reconnecting: ")
        vtep.client.is_down = False
        vtep.client.restart()
        await app.poll_once()
        assert screen(app)[1].startswith("drops -/s  RX -b -fr")
        await app.poll_once()
        assert screen(app)[1].startswith("drops 20/s  RX 16Mb")

    run(test)


def test_a_wide_and_a_tiny_terminal() -> None:
    async def test(app: TopApp, pilot: Pilot, _vtep: FakeVtep) -> None:
        assert "flood" in screen(app)[3]
        assert "fast path" in screen(app)[3]
        await pilot.resize_terminal(20, 5)
        await pilot.pause()
        assert len(screen(app)) == 5

    run(test, size=(160, 50))


def test_a_line_that_has_not_changed_is_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(app: TopApp, _pilot: Pilot, _vtep: FakeVtep) -> None:
        drawn: list[int] = []
        widget = app.query_one(LinesWidget)
        refresh = widget.refresh
        monkeypatch.setattr(
            widget, "refresh", lambda *regions: drawn.extend(region.y for region in regions)
        )
        await app.poll_once()
        app.draw()
        assert drawn == [0]  # The clock; all rates are those of the second before.
        monkeypatch.setattr(widget, "refresh", refresh)

    run(test)


def test_an_answer_that_is_late_delays_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(app: TopApp, pilot: Pilot, vtep: FakeVtep) -> None:
        go_on = threading.Event()

        def slow(_asked: MacRequest | None) -> tuple[Status, FdbSample | None]:
            go_on.wait(60)
            raise VtepError("no answer")

        before = len(vtep.asked)
        monkeypatch.setattr(app, "_poll", slow)
        app._tick()
        await pilot.pause()
        monkeypatch.setattr(app, "_poll", vtep.poll)
        app._tick()
        await pilot.press("end")  # The screen answers meanwhile.
        assert app.model.view.current() is app.model.view.rows()[-1]
        go_on.set()
        await app.workers.wait_for_complete()
        assert len(vtep.asked) == before
        assert screen(app)[2] == "reconnecting: no answer"

    run(test)
