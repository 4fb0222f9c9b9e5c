"""Writing of changes to the FDBs and neighbour tables of the daemon."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from vtep.evpn.changes import Changes
from vtep.evpn.daemon_link import DaemonLink

log = logging.getLogger("vtep")

_REFUSED_LOG_S, _REFUSED_SHOWN_S = 60.0, 300.0
"""Seconds between two lines about refused changes, and for which the last one is a problem."""


class DaemonWriter:
    """Changes that wait to be sent to the daemon, and the one that it has refused last."""

    def __init__(self, link: DaemonLink, has_segment: Callable[[int], bool]) -> None:
        self._link = link
        self._has_segment = has_segment
        self._fdb: dict[int, list[dict[str, Any]]] = {}
        self._neighbours: dict[int, list[dict[str, Any]]] = {}
        self._to_write = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self._refused: tuple[float, str] = -_REFUSED_SHOWN_S, ""
        """When a change was refused by the daemon last, and why."""
        self._refused_logged = -_REFUSED_LOG_S

    def add(self, changes: Changes) -> None:
        """Queue the changes of FDBs and neighbours."""
        for vni, fdb in changes.fdb.items():
            self._fdb.setdefault(vni, []).extend(change.params() for change in fdb)
        for vni, neighbours in changes.neighbours.items():
            self._neighbours.setdefault(vni, []).extend(each.params() for each in neighbours)
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
            for waiting, method in ((self._fdb, "fdb.batch"), (self._neighbours, "neigh.batch")):
                while waiting:
                    vni = next(iter(waiting))
                    refused = await self._link.batch(method, vni, waiting.pop(vni))
                    for change, reason in refused:
                        self._note_refused(vni, change, reason)
            if not self._fdb and not self._neighbours:
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
