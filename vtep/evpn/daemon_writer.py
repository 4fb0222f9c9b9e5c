"""Writing of changes to the FDBs and neighbour tables of the daemon."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from itertools import islice
from typing import Any

from vtep.control.batches import CHANGES_MAX
from vtep.evpn.changes import Changes, EvpnFdbChange
from vtep.evpn.daemon_link import DaemonLink
from vtep.wire.ethernet import MAC_ZERO

log = logging.getLogger("vtep")

_REFUSED_LOG_S, _REFUSED_SHOWN_S = 60.0, 300.0
"""Seconds between two lines about refused changes, and for which the last one is a problem."""


class _Queue:
    """Changes of one table that wait, by VNI: for each entry the last one.

    So what a neighbour has announced and withdrawn meanwhile is not written first, and the queue
    has no more changes than the table has entries.
    """

    def __init__(self) -> None:
        # Not a dict, which looks for its first key behind all that were removed.
        self._waiting: dict[int, OrderedDict[Hashable, dict[str, Any]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, vni: int, entry: Hashable, params: dict[str, Any]) -> bool:
        """Queue a change behind the others. Returns: True if it replaces one of its entry."""
        waiting = self._waiting.setdefault(vni, OrderedDict())
        replaces = waiting.pop(entry, None) is not None
        waiting[entry] = params
        return replaces

    def take(self) -> tuple[int, list[dict[str, Any]]]:
        """Remove the oldest changes of a VNI, as many as fit into one request; VNIs take turns."""
        vni = next(iter(self._waiting))
        waiting = self._waiting.pop(vni)
        part = [waiting.pop(entry) for entry in list(islice(waiting, CHANGES_MAX))]
        if waiting:
            self._waiting[vni] = waiting
        return vni, part


class DaemonWriter:
    """Changes that wait to be sent to the daemon, and the one that it has refused last."""

    def __init__(self, link: DaemonLink, has_segment: Callable[[int], bool]) -> None:
        self._link = link
        self._has_segment = has_segment
        self._fdb = _Queue()
        self._neighbours = _Queue()
        self._to_write = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._refused: tuple[float, str] = -_REFUSED_SHOWN_S, ""
        """When a change was refused by the daemon last, and why."""
        self._refused_logged = -_REFUSED_LOG_S

    def add(self, changes: Changes) -> None:
        """Queue the changes of FDBs and neighbours."""
        for vni, fdb in changes.fdb.items():
            for change in fdb:
                self._add_fdb(vni, change)
        for vni, neighbours in changes.neighbours.items():
            for each in neighbours:
                self._neighbours.add(vni, each.ip, each.params())
        if changes.fdb or changes.neighbours:
            self._written.clear()
            self._to_write.set()

    def _add_fdb(self, vni: int, change: EvpnFdbChange) -> None:
        params = change.params()
        if change.mac == MAC_ZERO:  # Each destination of flooded frames is by itself.
            self._fdb.add(vni, (change.vtep, change.dst_vni), params)
        elif self._fdb.add(vni, change.mac, params) and change.verb == "del":
            # The daemon may have a former destination, as that of `change` was never written.
            del params["dst"]
            params.pop("dst_vni", None)

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
                        vni, part = queue.take()
                        for change, reason in await self._link.batch(method, vni, part):
                            self._note_refused(vni, change, reason)
            self._written.set()

    def problem(self, now: float) -> str | None:
        """Return the last change that was refused and why, for some minutes."""
        since, refused = self._refused
        return refused if now - since < _REFUSED_SHOWN_S else None

    def _note_refused(self, vni: int, change: dict[str, Any], reason: str) -> None:
        """Log a change that the daemon has refused, unless that was to be expected."""
        log.debug("EVPN: vni %d: %s was refused: %s", vni, change, reason)
        # A VNI that has just been deleted; an entry that is there, or gone, already.
        if not self._has_segment(vni) or change["verb"] in ("append", "del"):
            return
        now = time.monotonic()
        if now - self._refused_logged > _REFUSED_LOG_S:
            self._refused_logged = now
            log.warning("EVPN: vni %d: an entry was refused: %s", vni, reason)
        self._refused = now, f"vni {vni}: an entry was refused: {reason}"
