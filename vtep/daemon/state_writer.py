"""Keeps the entries of a running VTEP in its state file, and puts them back.

Entries that were put in are kept, and learned ones if that is wanted. The remotes of the
configuration are not: what it says now is what there is. Entries of VNIs that there are not are
kept for when there are.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

from attrs import evolve

from vtep import descriptors
from vtep.config import Settings
from vtep.daemon import state_file
from vtep.daemon.port import Port
from vtep.daemon.state_file import Loaded, Saved
from vtep.daemon.vtep import Vtep
from vtep.errors import FdbError, VtepError
from vtep.forwarding.fdb import LEARNED, Entry, EntryEvent, Fdb
from vtep.wire.ethernet import MAC_ZERO

log = logging.getLogger("vtep")

Settle = Callable[[], Awaitable[None]]
"""Waits until what was changed by hand is kept; raises VtepError where it can't be."""

_DELAY = 1.0
"""Seconds from a change to the file that has it: changes come in flocks."""

_IDLE_SHARE = 20
"""So many times as long as writing took is waited before it is done again."""

_RETRY = 10.0

_PATIENCE = 2.0
"""Seconds of writing that those who wait for it are worth: where changes by hand come faster than
that, they wait no more, so that a thousand of them do not write a thousand entries each."""

_PATIENCE_SHARE = 0.25
"""What of the time that passes is added to that, up to as much."""

_REFRESH = 60.0
"""Seconds after which learned entries are written again, since they were heard meanwhile."""


@contextmanager
def hold(settings: Settings) -> Iterator[None]:
    """Have the state file, if there is to be one, for ourselves; raises VtepError."""
    if settings.state is None:
        yield
        return
    with state_file.locked(_file(settings.state)):
        yield


def load(settings: Settings) -> Loaded:
    """Read the state file, if there is to be one; raises VtepError where it is not ours."""
    if settings.state is None:
        return Loaded()
    loaded = state_file.load(_file(settings.state))
    if loaded.warning is not None:
        log.warning("%s", loaded.warning)
    return loaded


@asynccontextmanager
async def keep(vtep: Vtep, settings: Settings, loaded: Loaded) -> AsyncIterator[Settle]:
    """Put what was loaded into a running VTEP, and keep what it has meanwhile and at the end.

    Gives what waits until changes by hand are in the file. What can't be written is said in the
    log, and tried again. Raises VtepError where that fails at the end.
    """
    if settings.state is None:
        yield _at_once
        return
    keeper = _Keeper(vtep, _file(settings.state), loaded, learned=settings.state_learned)
    writing = asyncio.get_running_loop().create_task(keeper.run())
    try:
        yield keeper.settle
    except BaseException:
        keeper.end()
        if refused := await writing:
            log.warning("%s", refused)
        raise
    keeper.end()
    if refused := await writing:
        raise refused


async def _at_once() -> None:
    pass


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
        self._urgent = asyncio.Event()
        self._ended = False
        self._failed = False
        self._made = self._kept = self._told = 0
        """How many changes by hand there were; how many of them the file has; and of how many
        somebody was told that it has not."""
        self._round: asyncio.Future[VtepError | None] = _future()
        """The writing that goes on or comes next, and what came of it."""
        self._patience = _PATIENCE
        self._unwatch = vtep.watch(self._vtep_changed)
        self._leave: dict[Port, Callable[[], None]] = {}
        for port in vtep.ports.values():
            self._attend(port)

    def end(self) -> None:
        """Have `run` write once more, and end."""
        self._unwatch()
        for leave in self._leave.values():
            leave()
        self._ended = True
        self._urgent.set()
        self._changed.set()

    async def settle(self) -> None:
        """Wait until the file has every change by hand of until now.

        Raises VtepError where it can't be written. Returns at once where so many changes come that
        they would wait for nothing else; those are written soon.
        """
        made = self._made
        while max(self._kept, self._told) < made and self._patience > 0:
            self._urgent.set()
            self._changed.set()
            if refused := await asyncio.shield(self._round):
                self._told = made
                raise VtepError(f"done, but not for long: {refused}")

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

    def _entry_changed(self, event: EntryEvent, entry: Entry) -> None:
        by_itself = entry.kind.ages and event in (
            EntryEvent.ADDED,
            EntryEvent.MOVED,
            EntryEvent.EXPIRED,
        )
        self._made += not by_itself
        if self._learned or not by_itself:
            self._changed.set()

    # --- writing ----------------------------------------------------------------------------

    async def run(self) -> VtepError | None:
        """Write when something has changed, until `end`; why the last of it could not be."""
        delay = _DELAY
        ended = time.monotonic()
        while True:
            await _happens(self._changed, _REFRESH if self._learned else None)
            await _happens(self._urgent, delay)
            last, made = self._ended, self._made
            self._changed.clear()
            self._urgent.clear()
            began = time.monotonic()
            refused = await self._try()
            if refused is None:
                self._kept = made
            self._tell(refused, last=last)
            idle, ended = began - ended, time.monotonic()
            delay = _RETRY if self._failed else max(_DELAY, _IDLE_SHARE * (ended - began))
            patience = self._patience - (ended - began) + _PATIENCE_SHARE * idle
            self._patience = min(_PATIENCE, patience)
            done, self._round = self._round, _future()
            done.set_result(refused)
            if last:
                return refused

    async def _try(self) -> VtepError | None:
        """Replace the file; why it can't be."""
        try:
            await self._write()
        except OSError as error:
            return VtepError(
                f"--state {self._path}: cannot be written: {descriptors.reason(error)}"
            )
        return None

    def _tell(self, refused: VtepError | None, *, last: bool) -> None:
        """Say what is different: the first of several failures, and their end."""
        if refused is not None:
            if not self._failed and not last:
                log.warning("%s", refused)
            self._changed.set()
        elif self._failed:
            log.info("--state %s: is written again", self._path)
        self._failed = refused is not None

    async def _write(self) -> None:
        """Replace the file, a piece at a time, so that frames have their turns in between."""
        with ExitStack() as unless_whole:
            file = unless_whole.enter_context(state_file.replacing(self._path))
            for piece in state_file.encode(self._entries(), time.time()):
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
                remote for remote in destinations if port.fdb.find_equal(configured, remote) is None
            )
        if not destinations:
            return None
        age = now - entry.updated if entry.kind.ages else 0.0
        return Saved(port.config.vni, entry.mac, destinations, entry.kind, age)


def _future() -> "asyncio.Future[VtepError | None]":
    return asyncio.get_running_loop().create_future()


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
    if fdb.lookup(saved.mac) is not None or not fdb.has_room(saved.destinations[0].host):
        return
    for remote in saved.destinations:
        known = port.segment.source_remote(remote.host)
        if known is not None:
            fdb.append(saved.mac, remote if saved.kind != LEARNED else known, heard, saved.kind)
