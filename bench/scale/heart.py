"""How long an event loop is kept from turning, which is how long frames have to wait."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import define, field


@define
class Stall:
    """The longest time between two turns of the loop, in ms.

    `cpu` is what this thread used of it. The rest of `wall` others had, or nobody.
    """

    wall: float = 0.0
    cpu: float = 0.0
    turns: "array[float]" = field(factory=lambda: array("d"), repr=False)
    """CPU time of each turn, in ms; no list, at which the garbage collector would look for long."""

    @property
    def usual(self) -> float:
        """What 999 turns of 1000 do not exceed, in ms of CPU time."""
        return sorted(self.turns)[len(self.turns) * 999 // 1000]


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
            stall.turns.append((used - cpu) * 1e3)
            wall, cpu = now, used

    task = asyncio.create_task(beat())
    await asyncio.sleep(0)
    try:
        yield stall
    finally:
        task.cancel()
