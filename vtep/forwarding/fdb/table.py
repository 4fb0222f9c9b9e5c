"""The table of FDB entries of one segment."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from attrs import evolve

from vtep.errors import FdbError
from vtep.forwarding.fdb.ageing import AgeingWheel
from vtep.forwarding.fdb.entry import (
    EVERYTHING,
    LEARNED,
    PERMANENT,
    Entry,
    EntryEvent,
    EntryKind,
    EntryState,
    Filter,
    Learned,
)
from vtep.forwarding.fdb.members import Members, RemoteKey
from vtep.forwarding.fdb.moves import MoveLimit
from vtep.forwarding.fdb.remote import Remote, format_remote
from vtep.wire.ethernet import MAC_ZERO, format_mac

_PAGE = 50
"""Entries in a page. To format that many as text takes half a millisecond."""


class Fdb:
    """Entries by MAC.

    The all-zero MAC is the default entry: frames to a MAC without an entry go to its destinations.

    Entries that age expire after `ageing` seconds (0: never), and there are at most `max_addresses`
    of them (0: no limit). `vni` and `port` are those of a destination that does not name its own.

    A method that raises FdbError has changed nothing.
    """

    def __init__(
        self,
        vni: int,
        port: int,
        *,
        ageing: float,
        max_addresses: int,
        max_per_host: int | None = None,
    ) -> None:
        self.max_addresses = max_addresses
        self.max_per_host = max_per_host
        """Learned entries allowed for one host. 0 means no limit; None is half of `max_addresses`,
        unless only one host can be learned from."""
        self.learns_from_non_members = False
        """True if MACs are learned from hosts that are not members, too."""
        self.default: Entry | None = None
        """The default entry."""
        self.members = Members(vni, port)
        self.moves = MoveLimit(on_released=self._on_released)
        """The limit of moves by learning, which is off unless it is set."""
        self.on_held: Callable[[Entry, Remote], None] = lambda _entry, _remote: None
        """Called when an entry begins to be held, with the remote that it would have moved to."""
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
        self._flushed = 0  # Destinations that `flush` has removed so far.

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
                if destinations:
                    selected.append((entry, destinations))
        return selected

    def find_equal(self, destinations: Iterable[Remote], remote: Remote) -> Remote | None:
        """Return the one of `destinations` that means the same as `remote`, or None."""
        key = self.members.key(remote)
        return next((other for other in destinations if self.members.key(other) == key), None)

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

    # --- configuration ------------------------------------------------------------------------

    def add(self, mac: bytes, remote: Remote, now: float, kind: EntryKind = PERMANENT) -> None:
        """Add an entry. Raises: FdbError if the MAC has one."""
        if self._find(mac) is not None:
            raise FdbError(f"{format_mac(mac)}: has an entry already: use append, or replace")
        self._put(mac, (remote,), now, kind)

    def append(self, mac: bytes, remote: Remote, now: float, kind: EntryKind = PERMANENT) -> None:
        """Add a destination to the entry of a MAC, or add an entry.

        A destination that the entry has already is not added again. The entry gets the kind given,
        except that `extern_learn` does not take over a configured entry.
        """
        entry = self._find(mac)
        destinations = entry.destinations if entry is not None else ()
        if entry is not None and kind.extern_learn and _is_configured(entry.kind):
            kind = entry.kind
        if self.find_equal(destinations, remote) is None:
            destinations = (*destinations, remote)
        self._put(mac, destinations, now, kind)

    def replace(self, mac: bytes, remote: Remote, now: float, kind: EntryKind = PERMANENT) -> None:
        """Set the only destination of a MAC, with or without an entry.

        Raises: FdbError for the all-zero MAC and for multicast MACs, as in the kernel: one word
        would cut off all other destinations. FdbError also if `extern_learn` would take over a
        configured entry.
        """
        if mac[0] & 1 or mac == MAC_ZERO:
            raise FdbError(
                f"{format_mac(mac)}: only the entry of a unicast MAC can be replaced: use append "
                "and del"
            )
        entry = self._find(mac)
        if entry is not None and kind.extern_learn and _is_configured(entry.kind):
            raise FdbError(
                f"extern_learn: {format_mac(mac)} has a {entry.kind.state} entry, which is "
                "configured: delete that first"
            )
        self._put(mac, (remote,), now, kind)

    def remove(self, mac: bytes, remote: Remote | None = None) -> None:
        """Remove one destination of a MAC, or all. Without destinations the entry is deleted.

        Raises: FdbError if there is no such entry or destination.
        """
        entry = self.get(mac)
        rest: tuple[Remote, ...] = ()
        if remote is not None:
            found = self.find_equal(entry.destinations, remote)
            if found is None:
                raise FdbError(
                    f"{format_remote(remote)}: is not a destination of {format_mac(mac)}"
                )
            rest = tuple(other for other in entry.destinations if other is not found)
        self._put(mac, rest, entry.updated, entry.kind)

    def set_default(
        self, remotes: Iterable[Remote], now: float, kind: EntryKind | None = None
    ) -> None:
        """Set the destinations of the default entry, in this order. None of them deletes it.

        Without a `kind`, it keeps the one that it has. Raises: FdbError for a kind that ages.
        """
        destinations: dict[RemoteKey, Remote] = {}
        for remote in remotes:
            destinations.setdefault(self.members.key(remote), remote)
        if kind is None:
            kind = PERMANENT if self.default is None else self.default.kind
        self._put(MAC_ZERO, tuple(destinations.values()), now, kind)

    def flush(
        self,
        wanted: Filter = EVERYTHING,
        among: Iterable[Entry] | None = None,
        spared: Iterable[Remote] = (),
    ) -> int:
        """Remove every destination that matches, and entries that have no other.

        `among` is as in `select`, and may contain entries that were deleted meanwhile. The default
        entry keeps those destinations that are `spared`.

        Returns: how many destinations were removed, including those removed by callbacks of
        `members`.
        """
        before = self._flushed
        for entry, matching in self.select(wanted, among):
            if self._find(entry.mac) is not entry:
                continue
            removed = matching
            if entry is self.default:
                keys = self.keys_of(spared)
                removed = tuple(
                    remote for remote in matching if self.members.key(remote) not in keys
                )
            rest = tuple(remote for remote in entry.destinations if remote not in removed)
            self._change(entry.mac, rest, entry.updated, entry.kind)
            self._flushed += len(removed)
        self._finish_change()
        return self._flushed - before

    # --- learning -----------------------------------------------------------------------------

    def learn(self, mac: bytes, remote: Remote, now: float, count: int = 1) -> Learned:
        """Learn that `count` frames from `mac` were received from `remote`.

        The caller decides which MACs may be learned.
        """
        entry = self._entries.get(mac)
        if entry is None:
            if self.max_addresses and self._ageing_count >= self.max_addresses:
                return Learned.FULL
            if self._is_over_quota(remote.host):
                return Learned.OVER_QUOTA
            alone = self.members.take(remote, ages=True).alone
            entry = self._insert(Entry(mac, alone, now, LEARNED, rx_frames=count))
            self._report(EntryEvent.ADDED, entry)
            return Learned.ADDED
        # The first comparison answers for nearly every frame.
        if entry.destinations[0] is remote or _has_host(entry, remote.host):
            entry.updated = now
            entry.rx_frames += count
            return Learned.REFRESHED
        if entry.kind.state is not EntryState.DYNAMIC:
            return Learned.CONFLICT
        if entry.kind.sticky:
            return Learned.STICKY
        if self.moves.limit and not self._may_move(entry, remote, now):
            return Learned.HELD
        entry.rx_frames += count
        self._change(mac, (remote,), now, entry.kind, EntryEvent.MOVED)
        self._finish_change()
        return Learned.MOVED

    def _may_move(self, entry: Entry, remote: Remote, now: float) -> bool:
        """Return True if an entry may move to a remote. Reports it if it is held from now on."""
        was_held = self.moves.is_held(entry.mac)
        if self.moves.note(entry.mac, now, entry.updated):
            return True
        if not was_held:
            self._report(EntryEvent.HELD, entry)
            self.on_held(entry, remote)
        return False

    def _on_released(self, mac: bytes) -> None:
        self._report(EntryEvent.RELEASED, self._entries[mac])

    def held(self) -> list[Entry]:
        """Return the entries that are held, as they move too often."""
        return [self._entries[mac] for mac in self.moves.held]  # A deletion releases.

    def find_refreshed(self, mac: bytes, host: str) -> Entry | None:
        """Return the entry of a MAC if a frame from it, received from a host, only refreshes it.

        Returns: None if the frame changes an entry or adds one, or is not learned from.
        """
        entry = self._entries.get(mac)
        return entry if entry is not None and _has_host(entry, host) else None

    def check(self, mac: bytes, remote: Remote) -> Learned:
        """Return REFRESHED if frames from `mac` are acceptable from `remote`, else CONFLICT.

        Nothing is learned, so only permanent and static entries matter.
        """
        entry = self._entries.get(mac)
        if entry is None or entry.kind.state is EntryState.DYNAMIC or _has_host(entry, remote.host):
            return Learned.REFRESHED
        return Learned.CONFLICT

    @property
    def quota(self) -> int:
        """The number of MACs that may be learned from one host; 0 means no limit."""
        if self.max_per_host is not None:
            return self.max_per_host
        several = self.learns_from_non_members or len(self.members.hosts) > 1
        # An FDB of one entry has no half.
        return max(1, self.max_addresses // 2) if self.max_addresses and several else 0

    def learned_from(self, host: str) -> int:
        """Return how many entries that age have a host as a destination."""
        return self.members.ageing_count(host)

    def has_room(self, host: str) -> bool:
        """Return True if one more MAC may be learned from a host."""
        full = self.max_addresses and self._ageing_count >= self.max_addresses
        return not full and not self._is_over_quota(host)

    def _is_over_quota(self, host: str) -> bool:
        return 0 < self.quota <= self.members.ageing_count(host)

    # --- ageing -------------------------------------------------------------------------------

    @property
    def ageing(self) -> float:
        """Seconds after its last frame at which an entry expires; 0 is never."""
        return self._wheel.ageing

    def set_ageing(self, ageing: float, now: float) -> None:
        """Change the ageing time. The next sweeps delete entries that have thereby expired."""
        self._wheel.ageing = ageing
        self._wheel.clear(now)
        for entry in self._entries.values():
            if entry.kind.ages:
                self._wheel.schedule(entry, now)

    def set_port(self, port: int) -> None:
        """Change the port of destinations that do not name their own.

        Learned entries are deleted, because they are about the former port. Configured entries
        stay, because their destinations name their ports.
        """
        self.members.set_port(port)
        self._finish_change()
        self.flush(Filter(dynamic=True, extern_learn=False))

    def sweep(self, now: float, budget: int = 100) -> bool:
        """Delete entries at most a second after they have expired.

        At most `budget` entries are visited, so that forwarding is not delayed.

        Returns: True if some that are due were left for the next call.
        """
        for entry in self._wheel.take_due(now, budget):
            if self._entries.get(entry.mac) is not entry:
                continue  # It was deleted, or replaced by one of another kind.
            if entry.updated + self._wheel.ageing <= now:
                self._delete(entry, EntryEvent.EXPIRED)
            else:
                self._wheel.schedule(entry, now)
        self.moves.expire(now)
        more = self._wheel.is_due(now)
        self._finish_change()
        return more

    # --- storage ------------------------------------------------------------------------------

    def _find(self, mac: bytes) -> Entry | None:
        return self.default if mac == MAC_ZERO else self._entries.get(mac)

    def _put(
        self, mac: bytes, destinations: tuple[Remote, ...], now: float, kind: EntryKind
    ) -> None:
        """Set an entry on request. Raises: FdbError for an impossible combination."""
        if mac == MAC_ZERO and kind.ages:
            raise FdbError("dynamic: the default entry cannot age: no frame has its MAC as source")
        self._change(mac, destinations, now, kind)
        self._finish_change()

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
        # Take before release: a remote that stays in use is not reported as unused in between.
        taken = tuple(self.members.take(remote, ages=kind.ages) for remote in destinations)
        if len(taken) == 1:
            taken = taken[0].alone
        if old is None:
            self._report(EntryEvent.ADDED, self._insert(Entry(mac, taken, now, kind)))
        elif not taken:
            self._delete(old, EntryEvent.DELETED)
        elif kind == old.kind:
            self._release_destinations(old)
            old.destinations, old.updated = taken, now
            self._report(event, old)
        else:
            # A new object, so that `sweep` recognises the old one in the wheel as outdated.
            self._release_destinations(old)
            self._ageing_count -= old.kind.ages
            entry = evolve(old, destinations=taken, updated=now, kind=kind)
            self._report(event, self._insert(entry))

    def _are_equal(self, some: tuple[Remote, ...], others: tuple[Remote, ...]) -> bool:
        key = self.members.key
        return [key(remote) for remote in some] == [key(remote) for remote in others]

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


def _has_host(entry: Entry, host: str) -> bool:
    return any(remote.host == host for remote in entry.destinations)


def _is_configured(kind: EntryKind) -> bool:
    """Return True for an entry that a user has configured, and no control plane."""
    return not kind.ages and not kind.extern_learn
