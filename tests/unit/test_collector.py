"""Garbage collection: cycles are collected, and many live objects are not visited."""

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from vtep import Config, Vtep
from vtep.daemon import collector
from vtep.fastpath.state import DISABLED, LOADING, ON
from vtep.forwarding.fdb import Remote


class Node:
    """An object that can be part of a cycle."""

    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture(autouse=True)
def _no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_INTERVAL_S", 0)


@pytest.fixture
def vtep() -> Vtep:
    return Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0"))


def while_collecting(vtep: Vtep, done: Callable[[], bool]) -> None:
    """Run the collector until `done`."""

    async def run() -> None:
        task = asyncio.create_task(collector.Collector(vtep).run())
        await asyncio.sleep(0)
        assert not gc.isenabled()
        for _ in range(10_000):
            if done():
                break
            await asyncio.sleep(0)
        else:
            pytest.fail("not done after 10,000 turns")
        task.cancel()
        await asyncio.wait([task])

    try:
        asyncio.run(run())
    finally:
        gc.unfreeze()
    assert gc.isenabled()


def make_cycle() -> weakref.ref[Node]:
    one, two = Node(), Node()
    one.other, two.other = two, one
    return weakref.ref(one)


def test_cycles_are_collected(vtep: Vtep) -> None:
    seen: list[weakref.ref[Node]] = []

    def done() -> bool:
        if not seen:
            seen.append(make_cycle())
        return seen[0]() is None

    while_collecting(vtep, done)


def test_old_cycles_are_collected_after_a_change(
    vtep: Vtep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "_FULL_INTERVAL_S", 0)
    keep: list[Node] = []
    seen: list[weakref.ref[Node]] = []
    rounds = iter(range(10_000))

    def done() -> bool:
        number = next(rounds)
        if number == 0:
            keep.append(Node())
            keep[0].other = keep[0]
            seen.append(weakref.ref(keep[0]))
        if number == 20:  # Old: only a full collection visits it.
            keep.clear()
        if number == 40:
            assert seen[0]() is not None
            vtep._ports.notify("changed", vtep.port, {})
        return seen[0]() is None

    while_collecting(vtep, done)


def test_many_new_entries_are_frozen(vtep: Vtep, monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda *_: collected.append(len(vtep.fdb)))

    entries, remote = collector._BULK + 1, Remote("192.0.2.2", 4789)
    frozen: list[int] = []

    def done() -> bool:
        if not frozen:
            frozen.append(gc.get_freeze_count())
            for number in range(1, entries + 1):
                vtep.fdb.add(number.to_bytes(6, "big"), remote, 0.0)
        return gc.get_freeze_count() >= frozen[0] + entries

    while_collecting(vtep, done)
    assert not any(collected)


def test_a_fast_path_that_comes_and_goes_leaves_no_garbage(vtep: Vtep) -> None:
    """Objects are frozen when it was loaded, and never again: among them would be garbage."""
    states = iter((LOADING, ON, *(DISABLED, ON) * 100))
    seen: list[weakref.ref[Node]] = []

    def done() -> bool:
        state = next(states, None)
        if state is None:
            return sum(node() is not None for node in seen) < 5
        vtep._fast_path.state = state
        seen.append(make_cycle())
        return False

    while_collecting(vtep, done)
    assert len(seen) == 202
