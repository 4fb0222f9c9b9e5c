"""Stalls of an event loop, during which frames have to wait."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field

_STEP = 0.01
"""Resolution of the histogram of turns, in milliseconds, and its size:"""
_STEPS = 10_000


@define
class Stall:
    """The longest time between two turns of the loop, in ms.

    `cpu` is the CPU time of this thread in it; other processes used the rest of `wall`.
    """

    wall: float = 0.0
    cpu: float = 0.0
    turns: list[int] = field(factory=lambda: [0] * (_STEPS + 1), repr=False)
    """Histogram of the CPU time of turns; a list of all turns would itself cause stalls."""

    @property
    def usual(self) -> float:
        """Return the 99.9th percentile of the CPU time of turns, in ms."""
        rest = sum(self.turns) // 1000
        for steps in range(_STEPS, -1, -1):
            rest -= self.turns[steps]
            if rest < 0:
                return (steps + 1) * _STEP
        return 0.0


@asynccontextmanager
async def heart() -> AsyncIterator[Stall]:
    """Measure the stalls of the running loop during the block."""
    stall = Stall()

    async def beat() -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0)
            now, used = time.perf_counter(), time.thread_time()
            stall.wall = max(stall.wall, (now - wall) * 1e3)
            stall.cpu = max(stall.cpu, (used - cpu) * 1e3)
            stall.turns[min(int((used - cpu) * 1e3 / _STEP), _STEPS)] += 1
            wall, cpu = now, used

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield stall
    finally:
        task.cancel()
