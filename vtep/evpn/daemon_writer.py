"""Writing of changes to the FDBs and neighbour tables of the daemon."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice

from vtep.control.batches import CHANGES_MAX
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.daemon_link import DaemonLink
from vtep.wire.ethernet import MAC_ZERO

log = logging.getLogger("vtep")

_REFUSED_LOG_S = 60.0
"""Seconds between two lines about refused changes."""

_Change = EvpnFdbChange | EvpnNeighbourChange


class _Queue:
    """Changes of one table that wait, by VNI: for each entry the last one.

    So what a neighbour has announced and withdrawn meanwhile is not written first, and the queue
    has no more changes than the table has entries.
    """

    def __init__(self) -> None:
        # Not a dict, which looks for its first key behind all that were removed.
        self._waiting: dict[int, OrderedDict[Hashable, _Change]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, vni: int, change: _Change) -> None:
        """Queue a change behind the others, in place of one of its entry."""
        waiting = self._waiting.setdefault(vni, OrderedDict())
        entry = _entry(change)
        waiting.pop(entry, None)
        waiting[entry] = change

    def is_outdated(self, vni: int, change: _Change) -> bool:
        """Return True if another change of the entry waits."""
        return _entry(change) in self._waiting.get(vni, ())

    def take(self) -> tuple[int, list[_Change]]:
        """Remove the oldest changes of a VNI, as many as fit into one request; VNIs take turns."""
        vni = next(iter(self._waiting))
        waiting = self._waiting.pop(vni)
        part = [waiting.pop(entry) for entry in list(islice(waiting, CHANGES_MAX))]
        if waiting:
            self._waiting[vni] = waiting
        return vni, part


def _entry(change: _Change) -> Hashable:
    """Return the entry that a change is about."""
    if isinstance(change, EvpnNeighbourChange):
        return change.ip
    # Each destination of flooded frames is by itself.
    return (change.vtep, change.dst_vni) if change.mac == MAC_ZERO else change.mac


class DaemonWriter:
    """Changes that wait to be sent to the daemon.

    `on_refused` is called with the VNI, a change that the daemon has refused, and its reason.
    Deletions are not reported, nor changes of entries for which another change waits.
    """

    def __init__(
        self,
        link: DaemonLink,
        has_segment: Callable[[int], bool],
        on_refused: Callable[[int, _Change, str], object],
    ) -> None:
        self._link = link
        self._has_segment = has_segment
        self._on_refused = on_refused
        self._fdb = _Queue()
        self._neighbours = _Queue()
        self._to_write = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._refused_logged = -_REFUSED_LOG_S

    def add(self, changes: Changes) -> None:
        """Queue the changes of FDBs and neighbours."""
        for vni, fdb in changes.fdb.items():
            for change in fdb:
                self._fdb.add(vni, change)
        for vni, neighbours in changes.neighbours.items():
            for each in neighbours:
                self._neighbours.add(vni, each)
        if changes.fdb or changes.neighbours:
            self._written.clear()
            self._to_write.set()

    async def drain(self) -> None:
        """Wait until all changes are written."""
        await self._written.wait()

    async def run(self) -> None:
        """Write changes as fast as the daemon takes them. Raises: DaemonGoneError, VtepError."""
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            while self._fdb or self._neighbours:
                for queue, method in ((self._fdb, "fdb.batch"), (self._neighbours, "neigh.batch")):
                    if queue:
                        await self._write(queue, method)
            self._written.set()

    async def _write(self, queue: _Queue, method: str) -> None:
        vni, changes = queue.take()
        sent = [change.params() for change in changes]
        refused = await self._link.batch(method, vni, sent)
        if not refused:
            return
        by_params = {id(params): change for params, change in zip(sent, changes, strict=True)}
        for params, reason in refused:
            change = by_params[id(params)]
            if not queue.is_outdated(vni, change):
                self._note_refused(vni, change, reason)

    def _note_refused(self, vni: int, change: _Change, reason: str) -> None:
        """Report a change that the daemon has refused, unless that was to be expected."""
        log.debug("EVPN: vni %d: %s was refused: %s", vni, change, reason)
        # A VNI that has just been deleted; an entry that is gone already.
        if not self._has_segment(vni) or change.verb == "del":
            return
        now = time.monotonic()
        if now - self._refused_logged > _REFUSED_LOG_S:
            self._refused_logged = now
            log.warning("EVPN: vni %d: an entry was refused: %s", vni, reason)
        self._on_refused(vni, change, reason)
