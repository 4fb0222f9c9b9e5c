"""How long an event loop is kept from turning, which is how long frames have to wait."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field

_STEP = 0.01
"""Milliseconds by which turns are told apart, of which there are so many:"""
_STEPS = 10_000


@define
class Stall:
    """The longest time between two turns of the loop, in ms.

    `cpu` is what this thread used of it. The rest of `wall` others had, or nobody.
    """

    wall: float = 0.0
    cpu: float = 0.0
    turns: list[int] = field(factory=lambda: [0] * (_STEPS + 1), repr=False)
    """How many turns took so many steps of CPU time. Were all kept, that would make stalls."""

    @property
    def usual(self) -> float:
        """What 999 turns of 1000 do not exceed, in ms of CPU time."""
        rest = sum(self.turns) // 1000
        for steps in range(_STEPS, -1, -1):
            rest -= self.turns[steps]
            if rest < 0:
                return (steps + 1) * _STEP
        return 0.0


@asynccontextmanager
async def heart() -> AsyncIterator[Stall]:
    """Measure the stalls of the running loop meanwhile."""
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
