"""Keeps the FDB entries of a running VTEP in its state file, and restores them at the start.

Static entries are kept, and learned ones with `--state-learned`. Configured remotes are not: the
configuration says what they are now. Entries of VNIs that the VTEP does not have stay in the file
until it has them again.
"""

import asyncio
import logging
import os
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Container,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Self, TypeAlias

from attrs import define, field

from vtep.config import Settings
from vtep.daemon.port import Port
from vtep.daemon.state_file import Changes, SavedEntry, StateFile
from vtep.daemon.vtep import Vtep
from vtep.errors import FdbError, VtepError
from vtep.forwarding.fdb import LEARNED, DestinationOrigin, Entry, EntryEvent, Fdb, Remote
from vtep.wire.ethernet import MAC_ZERO

log = logging.getLogger("vtep")

_Page: TypeAlias = tuple[int, Changes]
"""Some MACs of a VNI, with the entries that they have now."""

Flush: TypeAlias = Callable[[], Awaitable[None]]
"""Waits until every change by a command is on the disk. Raises: VtepError if that fails."""

_DELAY_S = 1.0
"""Time from a change to its commit: changes come in groups."""

_PAUSE_FACTOR = 20
"""The pause between two commits is this many times as long as the first of them took."""

_RETRY_S = 10.0

_WRITE_BUDGET_S = 2.0
"""Time for which commands may wait for commits. Once it is used up, because commands come faster,
they return before their change is on the disk; a thousand of them do not wait for the disk a
thousand times."""

_WRITE_BUDGET_SHARE = 0.25
"""Share of the time between commits that is added to the budget, up to its maximum."""

_REFRESH_S = 60.0
"""Time after which the ages of learned entries are written again, if frames were received."""

_PAGE = 50
"""Entries that are converted at a time: some 30 microseconds, for which frames wait."""


class StateWriter:
    """The link between a VTEP and its state file.

    It notes the MACs that change, and commits their entries: soon, or at once while a caller waits
    in `flush`. The event loop never waits for the disk: statements and commits are
    executed in a thread. A commit that fails is logged and tried again.

    Invariant: a commit leaves the file with exactly the entries that are to be kept.
    """

    def __init__(
        self, file: StateFile | None, entries: Iterable[SavedEntry] = (), *, learned: bool = False
    ) -> None:
        self._file = file
        self._learned = learned
        self._absent: dict[int, dict[bytes, SavedEntry]] = {}
        """Saved entries of VNIs that the VTEP does not have now."""
        for saved in entries:
            self._absent.setdefault(saved.vni, {})[saved.mac] = saved
        self._dirty: dict[int, set[bytes]] = {}
        """By VNI, the MACs that have changed since the last commit."""
        self._rewrite = False
        """The database is empty, so the next commit is to have every entry."""
        self._refreshed = 0.0
        """When the ages of learned entries were written last, on the monotonic clock."""
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._ended = False
        self._failed = False
        # Numbers of changes by commands: made so far; committed; and reported to a caller as not
        # committed.
        self._made = self._committed = self._reported = 0
        self._round: asyncio.Future[VtepError | None] = _future()
        """The commit that is in progress or comes next, with its error."""
        self._budget = _WRITE_BUDGET_S
        self._unwatch: dict[Port, Callable[[], None]] = {}

    @classmethod
    @contextmanager
    def open(cls, settings: Settings) -> Iterator[Self]:
        """Lock and read the state file, if the settings name one; close it at the end.

        Raises: VtepError if the file is another process's, or not a state file.
        """
        if settings.state is None:
            yield cls(None)
            return
        try:
            # A symbolic link stays one: what it points to is replaced if need be.
            path = Path(os.path.realpath(settings.state))
        except OSError as error:  # The directory of this process was removed.
            raise VtepError(
                f"--state {settings.state}: {error.strerror}; give another FILE"
            ) from error
        with StateFile.locked(path) as file:
            entries = file.load(time.monotonic(), time.time())
            yield cls(file, entries, learned=settings.state_learned)

    @asynccontextmanager
    async def attached(self, vtep: Vtep, *, restores: bool = True) -> AsyncIterator[None]:
        """Restore the entries of a running VTEP, and commit its changes until the end.

        Without `restores`, the VTEP has them already, from the process that it continues.

        Raises: VtepError if the last commit fails.
        """
        if self._file is None:
            yield
            return
        self._vtep = vtep
        self._refreshed = time.monotonic()
        unwatch = vtep.watch(self._vtep_changed)
        for port in vtep.ports.values():
            self._attach(port, restores=restores)
        writing = asyncio.get_running_loop().create_task(self._run(self._file))
        try:
            yield
        except BaseException:
            self._end(unwatch)
            if error := await writing:
                log.warning("%s", error)
            raise
        self._end(unwatch)
        if error := await writing:
            raise error

    async def flush(self) -> None:
        """Wait until every change by a command until now is on the disk.

        Returns at once if the write budget is used up; the changes are committed soon.

        Raises: VtepError if the commit fails.
        """
        made = self._made
        while max(self._committed, self._reported) < made and self._budget > 0:
            self._urgent.set()
            self._changed.set()
            # Shielded, since the future is that of every caller who waits.
            if error := await asyncio.shield(self._round):
                self._reported = made
                raise VtepError(f"done, but not saved yet: {error}")

    # --- changes ----------------------------------------------------------------------------

    def _vtep_changed(self, event: str, port: Port, _different: Mapping[str, object]) -> None:
        vni = port.config.vni
        if event == "added":
            self._attach(port)
        elif event == "deleted":  # It may come back, perhaps with another TAP.
            self._unwatch.pop(port)()
            snapshots = (self._snapshot(port, entry) for entry in port.fdb.entries())
            self._absent[vni] = {saved.mac: saved for saved in snapshots if saved is not None}
        else:
            # The default entry is kept without the configured remotes, which may be others now.
            self._mark(vni, MAC_ZERO)
            return
        self._changed.set()

    def _attach(self, port: Port, *, restores: bool = True) -> None:
        """Restore the entries of a segment, and watch its FDB from now on."""
        vni, fdb = port.config.vni, port.fdb
        saved = self._absent.pop(vni, {})
        if restores:
            restored = restore(port, saved.values(), time.monotonic(), learned=self._learned)
            self._log_left_out(vni, restored)
        # The file differs where an entry was not restored, or another one was learned before.
        for mac in saved:
            if (entry := _find(fdb, mac)) is None or not _is_saved(entry, saved[mac]):
                self._mark(vni, mac)
        for entry in fdb:
            if entry.mac not in saved and (self._learned or not entry.kind.ages):
                self._mark(vni, entry.mac)
        self._mark(vni, MAC_ZERO)
        self._unwatch[port] = fdb.watch(partial(self._entry_changed, vni))

    def _log_left_out(self, vni: int, restored: "Restored") -> None:
        path = self._file.path if self._file is not None else None
        if restored.refused:
            log.warning(
                "--state %s: %d entries of vni %d were not restored: %s",
                *(path, len(restored.refused), vni, restored.refused[0]),
            )
        for count, why in (
            (restored.unknown_remote, "their remotes are no part of the segment any more"),
            (restored.over_limit, "--max-addresses or --max-addresses-per-remote is reached"),
        ):
            if count:
                log.info(
                    "--state %s: %d learned entries of vni %d were not restored: %s",
                    *(path, count, vni, why),
                )

    def _entry_changed(self, vni: int, event: EntryEvent, entry: Entry) -> None:
        by_traffic = entry.kind.ages and event in (
            EntryEvent.ADDED,
            EntryEvent.MOVED,
            EntryEvent.HELD,
            EntryEvent.RELEASED,
            EntryEvent.EXPIRED,
        )
        self._made += not by_traffic
        if self._learned or not by_traffic:
            self._mark(vni, entry.mac)
            self._changed.set()

    def _mark(self, vni: int, mac: bytes) -> None:
        macs = self._dirty.get(vni)
        if macs is None:
            macs = self._dirty[vni] = set()
        macs.add(mac)

    # --- writing ----------------------------------------------------------------------------

    def _end(self, unwatch: Callable[[], None]) -> None:
        """Request `_run` to commit once more, and end."""
        unwatch()
        for unwatch_fdb in self._unwatch.values():
            unwatch_fdb()
        self._ended = True
        self._urgent.set()
        self._changed.set()

    async def _run(self, file: StateFile) -> VtepError | None:
        """Commit changes until the end. Returns: the error of the last commit."""
        delay = _DELAY_S
        ended = time.monotonic()
        while True:
            await _set_within(self._changed, _REFRESH_S if self._learned else None)
            await _set_within(self._urgent, delay)
            last, made = self._ended, self._made
            self._changed.clear()
            self._urgent.clear()
            began = time.monotonic()
            error = None
            try:
                await self._write(file, last=last)
            except VtepError as refused:
                error = refused
                self._changed.set()
            else:
                self._committed = made
            self._log_outcome(error, last=last)
            idle, ended = began - ended, time.monotonic()
            delay = _RETRY_S if error else max(_DELAY_S, _PAUSE_FACTOR * (ended - began))
            budget = self._budget - (ended - began) + _WRITE_BUDGET_SHARE * idle
            self._budget = min(_WRITE_BUDGET_S, budget)
            done, self._round = self._round, _future()
            done.set_result(error)
            if last:
                return error

    def _log_outcome(self, error: VtepError | None, *, last: bool) -> None:
        """Log the first of several failures, and that they are over."""
        if error is not None:
            if not self._failed and not last:
                log.warning("%s", error)
        elif self._failed and self._file is not None:
            log.info("--state %s: can be written again; every change is saved", self._file.path)
        self._failed = error is not None

    async def _write(self, file: StateFile, *, last: bool) -> None:
        """Commit what has changed, a page at a time, so that frames are forwarded in between.

        Raises: VtepError if that fails; then nothing is committed, and the changes are kept.
        """
        began = time.monotonic()
        refresh = self._learned and (last or began - self._refreshed >= _REFRESH_S)
        dirty, self._dirty = self._dirty, {}
        try:
            self._rewrite |= not await asyncio.to_thread(file.begin)
            if self._rewrite:
                pages = self._all()
            elif refresh:
                pages = chain(self._of(dirty), self._received_since(self._refreshed))
            else:
                pages = self._of(dirty)
            for vni, changes in pages:
                if changes:
                    await asyncio.to_thread(file.replace, vni, changes)
                else:
                    await asyncio.sleep(0)
            await asyncio.to_thread(file.commit, time.monotonic(), time.time())
        except BaseException:
            for vni, macs in dirty.items():
                self._dirty.setdefault(vni, set()).update(macs)
            await asyncio.to_thread(file.rollback)
            raise
        if self._rewrite or refresh:
            self._refreshed = began
        self._rewrite = False

    def _of(self, macs_by_vni: Mapping[int, Iterable[bytes]]) -> Iterator[_Page]:
        """Convert the entries of these MACs, as they are when their page is taken."""
        for vni, macs in macs_by_vni.items():
            remaining = iter(macs)
            while page := list(islice(remaining, _PAGE)):
                yield vni, {mac: self._current(vni, mac) for mac in page}

    def _all(self) -> Iterator[_Page]:
        """Convert every entry that is to be kept."""
        for port in tuple(self._vtep.ports.values()):
            for page in port.fdb.pages():
                yield self._page(port, page)
        yield from self._of({vni: tuple(macs) for vni, macs in self._absent.items()})

    def _received_since(self, when: float) -> Iterator[_Page]:
        """Convert the learned entries from whose MAC a frame was received since a time."""
        for port in tuple(self._vtep.ports.values()):
            for page in port.fdb.pages():
                recent = (entry for entry in page if entry.kind.ages and entry.updated >= when)
                yield self._page(port, recent)

    def _page(self, port: Port, entries: Iterable[Entry]) -> _Page:
        snapshots = (self._snapshot(port, entry) for entry in entries)
        return port.config.vni, {saved.mac: saved for saved in snapshots if saved is not None}

    def _current(self, vni: int, mac: bytes) -> SavedEntry | None:
        """Return the entry of a MAC as the file is to have it; None if it is not to be kept."""
        port = self._vtep.ports.get(vni)
        if port is None:
            return self._absent.get(vni, {}).get(mac)
        entry = _find(port.fdb, mac)
        return None if entry is None else self._snapshot(port, entry)

    def _snapshot(self, port: Port, entry: Entry) -> SavedEntry | None:
        """Return an entry as the file is to have it; None if it is not to be kept."""
        kind, destinations = entry.kind, entry.destinations
        if kind.ages and not self._learned:
            return None
        if entry.mac == MAC_ZERO:
            configured = port.fdb.keys_of(port.segment.configured)
            others = [
                (remote, left)
                for remote, origin in entry.origins()
                if (left := _beside(configured, port.fdb, remote, origin)) is not None
            ]
            destinations = tuple(remote for remote, _ in others)
            if not destinations:
                return None
            kind = kind.with_origins(left for _, left in others)
        updated = entry.updated if kind.ages else None
        return SavedEntry(port.config.vni, entry.mac, destinations, kind, updated)


def _beside(
    configured: Container[object], fdb: Fdb, remote: Remote, origin: DestinationOrigin
) -> DestinationOrigin | None:
    """Return the origin of a destination besides the configuration; None without another one."""
    if fdb.members.key(remote) in configured:
        return origin.withdraw(extern_learn=False)
    return origin


def _future() -> "asyncio.Future[VtepError | None]":
    return asyncio.get_running_loop().create_future()


async def _set_within(event: asyncio.Event, seconds: float | None) -> None:
    """Wait until an event is set, or until this time has passed."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def _find(fdb: Fdb, mac: bytes) -> Entry | None:
    return fdb.default if mac == MAC_ZERO else fdb.lookup(mac)


def _is_saved(entry: Entry, saved: SavedEntry) -> bool:
    """Return whether the file has an entry as it is, but for the age."""
    # Identity comes first: this is done for each entry at the start, and frames wait.
    return (
        (entry.kind is saved.kind or entry.kind == saved.kind)
        and len(entry.destinations) == len(saved.destinations)
        and all(map(_is_equal, entry.destinations, saved.destinations))
    )


def _is_equal(one: Remote, other: Remote) -> bool:
    """Return whether two remotes have equal fields; `==` compares their identity."""
    return one is other or (
        (one.host, one.port, one.vni, one.via) == (other.host, other.port, other.vni, other.via)
    )


# --- restoring ------------------------------------------------------------------------------


@define
class Restored:
    """Saved entries that could not be restored."""

    refused: list[str] = field(factory=list)
    """Why static entries were refused, one line each."""
    unknown_remote: int = 0
    """Learned entries whose remote is not part of the segment now."""
    over_limit: int = 0
    """Learned entries for which there was no room."""


def restore(port: Port, entries: Iterable[SavedEntry], now: float, *, learned: bool) -> Restored:
    """Restore saved entries of a segment.

    A learned entry is left out if it has expired, if its MAC has an entry, if its remote may not
    send to the segment, or if as many are learned as may be.
    """
    restored = Restored()
    # Static entries first: they decide which remotes are part of the segment.
    for saved in sorted(entries, key=lambda saved: saved.kind.ages):
        try:
            if saved.updated is None:
                _restore_static(port.fdb, saved, now)
            elif learned:
                _restore_learned(port, saved, saved.updated, now, restored)
        except FdbError as error:
            restored.refused.append(str(error))
    return restored


def _restore_static(fdb: Fdb, saved: SavedEntry, now: float) -> None:
    """Add a static entry; it replaces one that may have been learned already."""
    if saved.mac != MAC_ZERO:
        fdb.restore(saved.mac, saved.destinations, now, saved.kind)
        return
    for position, remote in enumerate(saved.destinations):  # Beside the configured remotes.
        fdb.append(saved.mac, remote, now, saved.kind.of_destination(position))


def _restore_learned(
    port: Port, saved: SavedEntry, updated: float, now: float, restored: Restored
) -> None:
    fdb = port.fdb
    if fdb.ageing and updated + fdb.ageing <= now:
        return
    if fdb.lookup(saved.mac) is not None:
        return
    if not fdb.has_room(saved.destinations[0].host):
        restored.over_limit += 1
        return
    sources = [port.segment.source_remote(remote.host) for remote in saved.destinations]
    if not any(sources):
        restored.unknown_remote += 1
    for remote, source in zip(saved.destinations, sources, strict=True):
        if source is not None:
            # A learned entry points to its remote as the segment defines it now; one that was
            # added by a command keeps its port, VNI and device.
            destination = source if saved.kind == LEARNED else remote
            fdb.append(saved.mac, destination, updated, saved.kind)
