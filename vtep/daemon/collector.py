"""Runs Python's cyclic garbage collector at moments that do not stall the data path.

A full collection visits every live object: a million FDB entries take a tenth of a second, and by
default it is started by a count of allocations. Forwarding leaves no cycles behind; changes of the
configuration and netlink sessions do. So the automatic collector is disabled, and a task collects
young objects every second, and all objects only after a port has changed.
"""

import asyncio
import gc
import time

from vtep import Vtep
from vtep.fastpath.state import FastPathStatus

_INTERVAL_S = 1.0
"""Seconds between two collections of young objects."""

_BULK = 5_000
"""New FDB entries and neighbours from which on they are not visited any more, but frozen."""

_FULL_INTERVAL_S = 30.0
"""The least seconds between two full collections."""

_FULL_ENTRIES_MAX = 20_000
"""FDB entries up to which a full collection takes a few milliseconds only."""


class Collector:
    """Takes over garbage collection, for a VTEP that has the process for itself."""

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep
        self._entries = 0
        """The number of FDB entries when they were frozen last, or a lower one since."""
        self._changed = False
        self._last_full = 0.0
        self._has_frozen_numba = vtep.fast_path.status is FastPathStatus.ON

    async def run(self) -> None:
        """Collect until cancelled."""
        unwatch = self._vtep.watch(self._on_change)
        if not self._has_frozen_numba and not gc.get_freeze_count():
            # Not after an upgrade: `vtep.upgrade.new` has collected, and frames are waiting. To
            # visit 10,000 entries that were taken over takes 40 ms.
            gc.collect()
        # All that lives now lives as long as the process: it need not be visited again.
        gc.freeze()
        gc.disable()
        try:
            while True:
                await asyncio.sleep(_INTERVAL_S)
                self._collect(time.monotonic())
        finally:
            gc.enable()
            unwatch()

    def _on_change(self, *_event: object) -> None:
        self._changed = True

    def _collect(self, now: float) -> None:
        fast_path = self._vtep.fast_path
        if fast_path.status is FastPathStatus.ON and not self._has_frozen_numba:
            # numba has made 130,000 objects, which take 50 ms to visit and live as long as this.
            # Not collected before, since frames would wait for that. Never again: a fast path that
            # is switched off and on leaves garbage, which would be frozen, too.
            gc.freeze()
            self._has_frozen_numba = True
        if fast_path.status is FastPathStatus.LOADING:
            return
        entries = sum(
            len(port.fdb) + len(port.segment.neighbours or ()) for port in self._vtep.ports.values()
        )
        self._entries = min(self._entries, entries)
        if entries - self._entries > _BULK:
            # Entries are in no cycle. Frozen ones are freed all the same, by their last reference.
            gc.freeze()
            self._entries = entries
        elif (
            self._changed
            and entries <= _FULL_ENTRIES_MAX
            and now - self._last_full >= _FULL_INTERVAL_S
        ):
            gc.collect()
            self._last_full, self._changed = now, False
        else:
            gc.collect(1)
