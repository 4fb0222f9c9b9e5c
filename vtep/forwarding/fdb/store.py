"""The storage of an FDB: its entries by MAC, the use of their remotes, and reports of changes."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from attrs import evolve

from vtep.errors import FdbError
from vtep.forwarding.fdb.ageing import AgeingWheel
from vtep.forwarding.fdb.entry import EVERYTHING, Entry, EntryEvent, EntryKind, Filter
from vtep.forwarding.fdb.members import Members, RemoteKey
from vtep.forwarding.fdb.moves import MoveLimit
from vtep.forwarding.fdb.origin import DestinationOrigin
from vtep.forwarding.fdb.remote import Remote
from vtep.wire.ethernet import MAC_ZERO, format_mac

_PAGE = 50
"""Entries in a page. To format that many as text takes half a millisecond."""


class EntryStore:
    """Entries by MAC, and the default entry, which has the all-zero MAC.

    It knows when entries expire, and counts what their remotes are used for. What a command, the
    configuration or a frame does to an entry is decided by the subclass `Fdb`.
    """

    def __init__(self, vni: int, port: int, *, ageing: float) -> None:
        self.default: Entry | None = None
        """The default entry."""
        self.members = Members(vni, port)
        self.moves = MoveLimit(on_released=self._on_released)
        """The limit of moves by learning, which is off unless it is set."""
        self._entries: dict[bytes, Entry] = {}
        # The bound method of the dict saves a Python call for each frame.
        self.lookup: Callable[[bytes], Entry | None] = self._entries.get
        """Return the entry of a MAC of 6 octets, or None without one. The all-zero MAC has none
        here."""
        # A list beside the dict allows to visit all entries in steps while the table changes. A
        # dict would have to be copied first, which takes some 20 ms for a million entries.
        self._by_index: list[Entry | None] = []
        self._free: list[int] = []  # Indices of `_by_index` that hold None.
        self._ageing_count = 0  # Entries to which `max_addresses` applies.
        self._wheel = AgeingWheel(ageing)
        self._watchers: list[Callable[[EntryEvent, Entry], None]] = []

    def __len__(self) -> int:
        """Return the number of entries except the default entry."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over all entries except the default entry."""
        return iter(self._entries.values())

    # --- queries ------------------------------------------------------------------------------

    @property
    def vni(self) -> int:
        """The VNI of a destination that does not name its own."""
        return self.members.vni

    @property
    def port(self) -> int:
        """The UDP port of a destination that does not name its own."""
        return self.members.port

    def get(self, mac: bytes) -> Entry:
        """Return the entry of a MAC, which may be all-zero. Raises: FdbError without one."""
        entry = self._find(mac)
        if entry is None:
            raise FdbError(f"{format_mac(mac)}: there is no such entry")
        return entry

    def pages(self, first: int = 0) -> Iterator[list[Entry]]:
        """Yield all entries in lists of up to `_PAGE`, the default entry first, or those from a
        later page on. The table may change in between. An entry that exists all the time is yielded
        once. A MAC that is deleted and added again may be yielded twice or not at all.
        """
        if self.default is not None and first == 0:
            yield [self.default]
        for begin in range(first * _PAGE, len(self._by_index), _PAGE):
            page = self._by_index[begin : begin + _PAGE]
            yield [entry for entry in page if entry is not None]

    def entries(self) -> Iterator[Entry]:
        """Yield all entries in the order of `pages`."""
        return chain.from_iterable(self.pages())

    def select(
        self, wanted: Filter = EVERYTHING, among: Iterable[Entry] | None = None
    ) -> list[tuple[Entry, tuple[Remote, ...]]]:
        """Return the entries that match, the default entry first, with their matching destinations.

        With `among`, only these entries are considered, so that the caller can do it in steps.
        """
        entries = self.entries() if among is None else among
        if wanted == EVERYTHING:
            return [(entry, entry.destinations) for entry in entries]
        matches = self.members.matches
        selected = []
        for entry in entries:
            if wanted.matches(entry.kind) and wanted.held in (None, self.moves.is_held(entry.mac)):
                destinations = tuple(
                    remote for remote in entry.destinations if matches(remote, wanted)
                )
                if entry.kind.origins and wanted.extern_learn is not None:
                    destinations = tuple(
                        remote
                        for remote in destinations
                        if entry.origin_of(remote).matches(wanted.extern_learn)
                    )
                if destinations:
                    selected.append((entry, destinations))
        return selected

    def find_equal(self, destinations: Iterable[Remote], remote: Remote) -> Remote | None:
        """Return the one of `destinations` that means the same as `remote`, or None."""
        key = self.members.key(remote)
        return next((other for other in destinations if self.members.key(other) == key), None)

    def _by_key(
        self, pairs: Iterable[tuple[Remote, DestinationOrigin]]
    ) -> dict[RemoteKey, tuple[Remote, DestinationOrigin]]:
        """Return destinations and their origins by key, the first one of equal destinations."""
        found: dict[RemoteKey, tuple[Remote, DestinationOrigin]] = {}
        for remote, origin in pairs:
            found.setdefault(self.members.key(remote), (remote, origin))
        return found

    def keys_of(self, destinations: Iterable[Remote]) -> set[RemoteKey]:
        """Return the keys of destinations. Equal keys mean the same destination."""
        return {self.members.key(remote) for remote in destinations}

    def watch(self, watcher: Callable[[EntryEvent, Entry], None]) -> Callable[[], None]:
        """Call `watcher` once for every complete change of an entry, which a refresh is not.

        It is given the entry after the change, or before its deletion. The entry may change later.
        The watcher must not change the table.

        Returns: a function that ends it.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    # --- changes ------------------------------------------------------------------------------

    def _find(self, mac: bytes) -> Entry | None:
        return self.default if mac == MAC_ZERO else self._entries.get(mac)

    def _put(
        self, mac: bytes, destinations: tuple[Remote, ...], now: float, kind: EntryKind
    ) -> None:
        """Set an entry on request. Raises: FdbError for an impossible combination."""
        check_kind(mac, kind)
        self._change(mac, destinations, now, kind)
        self._finish_change()

    def _put_origins(
        self,
        mac: bytes,
        pairs: Iterable[tuple[Remote, DestinationOrigin]],
        now: float,
        kind: EntryKind,
    ) -> None:
        """Set an entry as `_put` does, whose destinations have different origins."""
        pairs = tuple(pairs)
        kind = kind.with_origins(origin for _, origin in pairs)
        self._put(mac, tuple(remote for remote, _ in pairs), now, kind)

    def _change(
        self,
        mac: bytes,
        destinations: tuple[Remote, ...],
        now: float,
        kind: EntryKind,
        event: EntryEvent = EntryEvent.CHANGED,
    ) -> None:
        """Set destinations and kind of a MAC, whose entry is deleted if there are no destinations.

        `event` is reported if an entry exists before and afterwards.
        """
        old = self._find(mac)
        if old is None and not destinations:
            return
        if old is not None and kind == old.kind and self._are_equal(destinations, old.destinations):
            return
        if self.moves and event is EntryEvent.CHANGED:
            self.moves.release(mac)  # A user has changed it: it need not be held any more.
        if old is None:
            taken = tuple(self.members.take(remote, ages=kind.ages) for remote in destinations)
            taken = taken if len(taken) > 1 else taken[0].alone
            self._report(EntryEvent.ADDED, self._insert(Entry(mac, taken, now, kind)))
        elif not destinations:
            self._delete(old, EntryEvent.DELETED)
        elif kind == old.kind:
            old.destinations, old.updated = self._exchange(old, destinations, kind), now
            self._report(event, old)
        else:
            # A new object, so that `sweep` recognises the old one in the wheel as outdated.
            taken = self._exchange(old, destinations, kind)
            self._ageing_count -= old.kind.ages
            entry = evolve(old, destinations=taken, updated=now, kind=kind)
            self._report(event, self._insert(entry))

    def _exchange(
        self, old: Entry, destinations: tuple[Remote, ...], kind: EntryKind
    ) -> tuple[Remote, ...]:
        """Take destinations for an entry, and release those that it has.

        Returns: the objects that are in use for them.
        """
        kept: set[Remote] = set()
        if len(old.destinations) > 1 and kind.ages == old.kind.ages:
            # A fabric has hundreds of VTEPs, each of which is appended to the default entry.
            kept = set(old.destinations) & set(destinations)
            order = [remote for remote in destinations if remote in kept]
            if order != [remote for remote in old.destinations if remote in kept]:
                kept = set()  # The first one of a host may be another one now.
        # Take before release: a remote that stays in use is not reported as unused in between.
        taken = tuple(
            remote if remote in kept else self.members.take(remote, ages=kind.ages)
            for remote in destinations
        )
        released = (remote for remote in old.destinations if remote not in kept)
        self.members.release(released, ages=old.kind.ages)
        return taken if len(taken) > 1 else taken[0].alone

    def _are_equal(self, some: tuple[Remote, ...], others: tuple[Remote, ...]) -> bool:
        if len(some) != len(others):
            return False
        key = self.members.key
        return all(a is b or key(a) == key(b) for a, b in zip(some, others, strict=True))

    def _insert(self, entry: Entry) -> Entry:
        if entry.mac == MAC_ZERO:
            self.default = entry
            return entry
        self._entries[entry.mac] = entry
        if entry.index >= 0:
            self._by_index[entry.index] = entry
        elif self._free:
            entry.index = self._free.pop()
            self._by_index[entry.index] = entry
        else:
            entry.index = len(self._by_index)
            self._by_index.append(entry)
        if entry.kind.ages:
            self._ageing_count += 1
            self._wheel.schedule(entry, entry.updated)
        return entry

    def _delete(self, entry: Entry, event: EntryEvent) -> None:
        if entry is self.default:
            self.default = None
        else:
            del self._entries[entry.mac]
            self._by_index[entry.index] = None
            self._free.append(entry.index)
            self._ageing_count -= entry.kind.ages
            self.moves.release(entry.mac)
        self._release_destinations(entry)
        self._report(event, entry)

    def _release_destinations(self, entry: Entry) -> None:
        self.members.release(entry.destinations, ages=entry.kind.ages)

    def _finish_change(self) -> None:
        """Complete a change of destinations; see `Members.finish_change`."""
        self.members.finish_change(self.default.destinations if self.default is not None else ())

    def _report(self, event: EntryEvent, entry: Entry) -> None:
        for watcher in self._watchers:
            watcher(event, entry)

    def _on_released(self, mac: bytes) -> None:
        self._report(EntryEvent.RELEASED, self._entries[mac])


def check_kind(mac: bytes, kind: EntryKind) -> None:
    """Raise FdbError if the entry of a MAC cannot be of a kind."""
    if mac == MAC_ZERO and kind.ages:
        raise FdbError("dynamic: the default entry cannot age: no frame has its MAC as source")
