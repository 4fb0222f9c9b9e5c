"""Keeps the entries of a running VTEP in its state file, and puts them back.

Entries that were put in are kept, and learned ones if that is wanted. The remotes of the
configuration are not: what it says now is what there is. Entries of VNIs that there are not are
kept for when there are.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from attrs import evolve

from vtep import state
from vtep.config import Settings
from vtep.engine import Vtep
from vtep.errors import FdbError
from vtep.fdb import LEARNED, Entry, Event, Fdb
from vtep.port import Port
from vtep.state import Loaded, Saved
from vtep.wire.ethernet import MAC_ZERO

log = logging.getLogger("vtep")

_DELAY = 1.0
"""Seconds from a change to the file that has it: changes come in flocks."""

_IDLE_SHARE = 20
"""So many times as long as writing took is waited before it is done again."""

_RETRY = 10.0

_REFRESH = 60.0
"""Seconds after which learned entries are written again, since they were heard meanwhile."""


@contextmanager
def hold(settings: Settings) -> Iterator[None]:
    """Have the state file, if there is to be one, for ourselves; raises VtepError."""
    if settings.state is None:
        yield
        return
    with state.locked(_file(settings.state)):
        yield


def load(settings: Settings) -> Loaded:
    """Read the state file, if there is to be one; raises VtepError where it is not ours."""
    if settings.state is None:
        return Loaded()
    loaded = state.load(_file(settings.state))
    if loaded.warning is not None:
        log.warning("%s", loaded.warning)
    return loaded


@asynccontextmanager
async def keep(vtep: Vtep, settings: Settings, loaded: Loaded) -> AsyncIterator[None]:
    """Put what was loaded into a running VTEP, and keep what it has meanwhile and at the end.

    What can't be written is said in the log, and tried again.
    """
    if settings.state is None:
        yield
        return
    keeper = _Keeper(vtep, _file(settings.state), loaded, learned=settings.state_learned)
    writing = asyncio.get_running_loop().create_task(keeper.run())
    try:
        yield
    finally:
        keeper.end()
        await writing


def _file(name: str) -> Path:
    """The file itself, where it is named by a symbolic link, which is to stay one."""
    return Path(os.path.realpath(name))


class _Keeper:
    def __init__(self, vtep: Vtep, path: Path, loaded: Loaded, *, learned: bool) -> None:
        self._vtep = vtep
        self._path = path
        self._learned = learned
        self._written = time.monotonic() - loaded.elapsed
        """When the file was written, by our clock."""
        self._dormant: dict[int, list[Saved]] = {}
        for saved in loaded.entries:
            self._dormant.setdefault(saved.vni, []).append(saved)
        self._changed = asyncio.Event()
        self._ending = asyncio.Event()
        self._failed = False
        self._unwatch = vtep.watch(self._vtep_changed)
        self._leave: dict[Port, Callable[[], None]] = {}
        for port in vtep.ports.values():
            self._attend(port)

    def end(self) -> None:
        """Have `run` write once more, and end."""
        self._unwatch()
        for leave in self._leave.values():
            leave()
        self._ending.set()
        self._changed.set()

    def _vtep_changed(self, event: str, port: Port, _different: Mapping[str, object]) -> None:
        if event == "added":
            self._attend(port)
        if event == "deleted":  # It may come back, perhaps with another TAP.
            self._leave.pop(port)()
            now = time.monotonic()
            entries = (self._saved(port, entry, now) for entry in port.fdb.entries())
            since = now - self._written
            self._dormant[port.config.vni] = [
                evolve(saved, age=saved.age - since) for saved in entries if saved is not None
            ]
        if event != "changed":
            self._changed.set()

    def _attend(self, port: Port) -> None:
        """Put back what is kept for a segment, and keep what it has from now on."""
        saved = self._dormant.pop(port.config.vni, [])
        refused = restore(port, saved, self._written, time.monotonic(), learned=self._learned)
        if refused:
            log.warning("--state %s: %d left out: %s", self._path, len(refused), refused[0])
        self._leave[port] = port.fdb.watch(self._entry_changed)

    def _entry_changed(self, event: Event, entry: Entry) -> None:
        by_itself = entry.kind.ages and event in (Event.ADDED, Event.MOVED, Event.EXPIRED)
        if self._learned or not by_itself:
            self._changed.set()

    # --- writing ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Write when something has changed, until `end`."""
        delay = _DELAY
        last = False
        while not last:
            await _happens(self._changed, _REFRESH if self._learned else None)
            await _happens(self._ending, delay)
            last = self._ending.is_set()
            self._changed.clear()
            began = time.monotonic()
            try:
                await self._write()
            except OSError as error:
                if not self._failed:
                    log.warning("--state %s: cannot be written: %s", self._path, error.strerror)
                self._failed = True
                self._changed.set()
                delay = _RETRY
            else:
                self._failed = False
                delay = max(_DELAY, _IDLE_SHARE * (time.monotonic() - began))

    async def _write(self) -> None:
        """Replace the file, a piece at a time, so that frames have their turns in between."""
        with ExitStack() as unless_whole:
            file = unless_whole.enter_context(state.replacing(self._path))
            for piece in state.encode(self._entries(), time.time()):
                await asyncio.to_thread(file.write, piece)
            whole = unless_whole.pop_all()
        await asyncio.to_thread(whole.close)

    def _entries(self) -> Iterator[Saved | None]:
        """What is to be kept; None for what is not."""
        now = time.monotonic()
        for port in tuple(self._vtep.ports.values()):
            for page in port.fdb.pages():
                yield None  # Who looks at a few at a time counts empty pages, too.
                for entry in page:
                    yield self._saved(port, entry, now)
        for entries in tuple(self._dormant.values()):
            for saved in entries:
                yield evolve(saved, age=saved.age + now - self._written)

    def _saved(self, port: Port, entry: Entry, now: float) -> Saved | None:
        if entry.kind.ages and not self._learned:
            return None
        destinations = entry.destinations
        if entry.mac == MAC_ZERO:
            configured = port.segment.configured
            destinations = tuple(
                remote for remote in destinations if port.fdb.among(configured, remote) is None
            )
        if not destinations:
            return None
        age = now - entry.updated if entry.kind.ages else 0.0
        return Saved(port.config.vni, entry.mac, destinations, entry.kind, age)


async def _happens(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until something happens, but not longer than this."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def restore(
    port: Port, entries: Iterable[Saved], written: float, now: float, *, learned: bool
) -> list[str]:
    """Put saved entries into a segment; why some could not be.

    `written` is when their ages were true. What was learned comes back only as what it could still
    be: not too old, behind a host that is listened to, and as far as there is room.
    """
    refused = []
    # What was put in says who is listened to.
    for saved in sorted(entries, key=lambda saved: saved.kind.ages):
        try:
            if not saved.kind.ages:
                _put(port.fdb, saved, now)
            elif learned:
                _relearn(port, saved, written - saved.age, now)
        except FdbError as error:
            refused.append(str(error))
    return refused


def _put(fdb: Fdb, saved: Saved, now: float) -> None:
    """Put in an entry in place of what may have been learned already."""
    if saved.mac != MAC_ZERO and fdb.lookup(saved.mac) is not None:
        fdb.remove(saved.mac)
    for remote in saved.destinations:
        fdb.append(saved.mac, remote, now, saved.kind)


def _relearn(port: Port, saved: Saved, heard: float, now: float) -> None:
    fdb = port.fdb
    if fdb.ageing and heard + fdb.ageing <= now:
        return
    if fdb.lookup(saved.mac) is not None or (0 < fdb.max_addresses <= len(fdb)):
        return
    for remote in saved.destinations:
        known = port.segment.source(remote.host)
        if known is not None:
            fdb.append(saved.mac, remote if saved.kind != LEARNED else known, heard, saved.kind)
