"""The garbage collector: cycles are found, and masses of objects that live are not looked at."""

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from vtep.cli import collector


class Node:
    """Something that can be part of a cycle."""

    def __init__(self) -> None:
        self.other: Node | None = None


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_EVERY", 0)


def while_collecting(done: Callable[[], bool]) -> None:
    """Let the collector run until `done`."""

    async def run() -> None:
        task = asyncio.create_task(collector.collect_gently())
        await asyncio.sleep(0)
        assert not gc.isenabled()
        for _ in range(10_000):
            if done():
                break
            await asyncio.sleep(0)
        else:
            pytest.fail("it was not done")
        task.cancel()
        await asyncio.wait([task])

    try:
        asyncio.run(run())
    finally:
        gc.unfreeze()
    assert gc.isenabled()


def test_cycles_are_collected() -> None:
    seen: list[weakref.ref[Node]] = []

    def done() -> bool:
        if not seen:
            one, two = Node(), Node()
            one.other, two.other = two, one
            seen.append(weakref.ref(one))
        return seen[0]() is None

    while_collecting(done)


def test_what_is_too_much_is_exempted(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(len(keep)))
    keep: list[list[int]] = []

    def done() -> bool:
        if not keep:
            keep.extend([] for _ in range(100_000))
        return gc.get_freeze_count() > 100_000

    while_collecting(done)
    assert not any(collected)
