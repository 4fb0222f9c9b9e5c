"""Keeps Python's cyclic garbage collector from stalling the data path.

It looks at every object that lives, and a million FDB entries make that a tenth of a second, at a
moment that nobody chose. None of what forwarding leaves behind is cyclic; what is comes from
changes of the configuration, and from sessions with the kernel. So here it runs at moments of ours:
often over what is new, which is little, and over everything only if something has been taken away.
"""

import asyncio
import gc
import time

from vtep import Vtep

_EVERY = 1.0
"""Seconds between two looks at what is new."""

_MASSES = 5_000
"""New FDB entries that are too many to look at."""

_FULL_EVERY = 30.0
"""Seconds, at least, between two looks at everything."""

_FULL_MAX = 20_000
"""FDB entries with which that still takes a few milliseconds only."""


class Collector:
    """Takes the collector over, for a VTEP that has the process for itself."""

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep
        self._entries = 0
        self._changed = False
        self._full_at = 0.0

    async def run(self) -> None:
        """Collect until it is cancelled."""
        unwatch = self._vtep.watch(self._note)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while True:
                await asyncio.sleep(_EVERY)
                self._collect(time.monotonic())
        finally:
            gc.enable()
            unwatch()

    def _note(self, *_event: object) -> None:
        self._changed = True

    def _collect(self, now: float) -> None:
        before = self._entries
        self._entries = sum(len(port.fdb) for port in self._vtep.ports.values())
        if self._entries - before > _MASSES:
            gc.freeze()
        elif self._changed and self._entries <= _FULL_MAX and now - self._full_at >= _FULL_EVERY:
            gc.collect()
            self._full_at, self._changed = now, False
        else:
            gc.collect(1)
