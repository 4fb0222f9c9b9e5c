"""The table of FDB entries of one segment: what commands, learning and ageing do to entries."""

from collections.abc import Callable, Iterable

from attrs import evolve

from vtep.errors import FdbError
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
from vtep.forwarding.fdb.origin import LOCAL, DestinationOrigin, OriginByRemote
from vtep.forwarding.fdb.remote import Remote, format_remote
from vtep.forwarding.fdb.store import EntryStore, check_kind
from vtep.wire.ethernet import MAC_ZERO, format_mac


class Fdb(EntryStore):
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
        super().__init__(vni, port, ageing=ageing)
        self.max_addresses = max_addresses
        self.max_per_host = max_per_host
        """Learned entries allowed for one host. 0 means no limit; None is half of `max_addresses`,
        unless only one host can be learned from."""
        self.learns_from_non_members = False
        """True if MACs are learned from hosts that are not members, too."""
        self.keeps_extern_learn = False
        """True if entries of a control plane are not moved by learning, and frames from their MACs
        are accepted from every remote. Frames of a host that has moved are thereby forwarded before
        its new VTEP has announced it."""
        self.on_held: Callable[[Entry, Remote], None] = lambda _entry, _remote: None
        """Called when an entry begins to be held, with the remote that it would have moved to."""
        self._flushed = 0  # Destinations that `flush` has removed so far.

    # --- configuration ------------------------------------------------------------------------

    def add(self, mac: bytes, remote: Remote, now: float, kind: EntryKind = PERMANENT) -> None:
        """Add an entry. Raises: FdbError if the MAC has one."""
        if self._find(mac) is not None:
            raise FdbError(f"{format_mac(mac)}: has an entry already: use append, or replace")
        self._put(mac, (remote,), now, kind)

    def append(self, mac: bytes, remote: Remote, now: float, kind: EntryKind = PERMANENT) -> None:
        """Add a destination to the entry of a MAC, or add an entry.

        A destination that the entry has already gets one more origin. The entry gets the state and
        flags given, except that a control plane changes those of its own entries only. What it
        appends replaces learned destinations.
        """
        entry, origin = self._find(mac), kind.origin(0)
        if entry is None or (entry.kind.ages and not origin.is_local):
            self._put(mac, (remote,), now, kind)
            return
        check_kind(mac, kind)  # Before origins that do not age join it.
        if not origin.is_local and _is_configured(entry.kind):
            kind = entry.kind
        self._put_origins(mac, self._joined(entry.origins(), remote, origin), now, kind)

    def replace(self, mac: bytes, remote: Remote, now: float, kind: EntryKind = PERMANENT) -> None:
        """Set the only destination of a MAC, with or without an entry.

        In an entry that is also configured, a control plane replaces only what it has given.

        Raises: FdbError for the all-zero MAC and for multicast MACs, as in the kernel: one word
        would cut off all other destinations. FdbError also if `extern_learn` would take over a
        configured entry.
        """
        if mac[0] & 1 or mac == MAC_ZERO:
            raise FdbError(
                f"{format_mac(mac)}: only the entry of a unicast MAC can be replaced: use append "
                "and del"
            )
        entry, origin = self._find(mac), kind.origin(0)
        if origin.is_local or entry is None or not _is_configured(entry.kind):
            self._put(mac, (remote,), now, kind)
            return
        if not entry.kind.origins:
            raise FdbError(
                f"extern_learn: {format_mac(mac)} has a {entry.kind.state} entry, which is "
                "configured: delete that first"
            )
        kept = ((each, known.withdraw(extern_learn=True)) for each, known in entry.origins())
        pairs = [(each, known) for each, known in kept if known is not None]
        self._put_origins(mac, self._joined(pairs, remote, origin), now, entry.kind)

    def remove(
        self, mac: bytes, remote: Remote | None = None, *, extern_learn: bool | None = None
    ) -> None:
        """Remove one destination of a MAC, or all. Without destinations the entry is deleted.

        With `extern_learn`, only the control plane (True) or this host (False) withdraws them: what
        the other one has given stays.

        Raises: FdbError if there is no such entry or destination.
        """
        entry = self.get(mac)
        found = None if remote is None else self.find_equal(entry.destinations, remote)
        if remote is not None and found is None:
            raise FdbError(f"{format_remote(remote)}: is not a destination of {format_mac(mac)}")
        rest: OriginByRemote = []
        withdrawn = 0
        for each, origin in entry.origins():
            if found not in (None, each) or not origin.matches(extern_learn):
                rest.append((each, origin))
                continue
            withdrawn += 1
            if (left := origin.withdraw(extern_learn)) is not None:
                rest.append((each, left))
        if not withdrawn:
            of = format_mac(mac) if remote is None else f"{format_mac(mac)} {format_remote(remote)}"
            raise FdbError(f"{of}: is {'not' if extern_learn else 'only'} extern_learn")
        self._put_origins(mac, rest, entry.updated, entry.kind)

    def restore(self, mac: bytes, remotes: Iterable[Remote], now: float, kind: EntryKind) -> None:
        """Set the entry of a MAC as it was elsewhere: destinations in their order, and their kind.

        Of equal destinations, the first one counts. None of them deletes the entry. Raises:
        FdbError for an impossible kind.
        """
        pairs = ((remote, kind.origin(position)) for position, remote in enumerate(remotes))
        self._put_origins(mac, self._by_key(pairs).values(), now, kind)

    def set_default(
        self, remotes: Iterable[Remote], now: float, kind: EntryKind = PERMANENT
    ) -> None:
        """Set the default entry as `restore` does."""
        self.restore(MAC_ZERO, remotes, now, kind)

    def set_configured(
        self, remotes: Iterable[Remote], former: Iterable[Remote], now: float
    ) -> None:
        """Set the configured destinations of the default entry in place of the `former` ones.

        They come first, in this order; others stay behind them. A former one stays as well if a
        control plane has given it, too.
        """
        before = self.keys_of(former)
        known = self._by_key(self.default.origins() if self.default is not None else ())
        for key in before & known.keys():
            remote, origin = known[key]
            left = origin.withdraw(extern_learn=False)
            if left is None:
                del known[key]
            else:
                known[key] = remote, left
        pairs = self._by_key((remote, LOCAL) for remote in remotes)
        for key, (remote, origin) in pairs.items():
            if key in known:
                pairs[key] = remote, known.pop(key)[1].merge(origin)
        default, kind = self.default, PERMANENT
        if default is not None and not (default.kind.extern_learn and pairs):
            kind = default.kind
        self._put_origins(MAC_ZERO, (*pairs.values(), *known.values()), now, kind)

    def flush(
        self,
        wanted: Filter = EVERYTHING,
        among: Iterable[Entry] | None = None,
        spared: Iterable[Remote] = (),
    ) -> int:
        """Remove every destination that matches, and entries that have no other.

        `among` is as in `select`, and may contain entries that were deleted meanwhile. The default
        entry keeps those destinations that are `spared`. With `wanted.extern_learn`, only the
        control plane (True) or this host (False) withdraws a destination that both have given.

        Returns: how many destinations were removed, including those removed by callbacks of
        `members`.
        """
        before = self._flushed
        spared_keys = self.keys_of(spared)
        for entry, matching in self.select(wanted, among):
            if self._find(entry.mac) is not entry:
                continue
            keys = spared_keys if entry is self.default else frozenset()
            if not entry.kind.origins and not keys:  # As most entries of a large table.
                rest = tuple(remote for remote in entry.destinations if remote not in matching)
                self._change(entry.mac, rest, entry.updated, entry.kind)
                self._flushed += len(matching)
                continue
            kept = []
            for remote, origin in entry.origins():
                left: DestinationOrigin | None = origin
                if remote in matching:
                    left = origin.withdraw(wanted.extern_learn)
                    if self.members.key(remote) in keys and origin.is_local:
                        left = LOCAL if left is None else left.merge(LOCAL)
                if left is not None:
                    kept.append((remote, left))
            kind = entry.kind.with_origins(origin for _, origin in kept)
            rest = tuple(remote for remote, _ in kept)
            self._flushed += len(entry.destinations) - len(rest)
            self._change(entry.mac, rest, entry.updated, kind)
        self._finish_change()
        return self._flushed - before

    def _joined(
        self, pairs: OriginByRemote, remote: Remote, origin: DestinationOrigin
    ) -> OriginByRemote:
        """Return destinations with one more, or with one more origin of the same destination."""
        key = self.members.key(remote)
        for position, (known, before) in enumerate(pairs):
            if self.members.key(known) == key:
                return [
                    *pairs[:position],
                    (known, before.merge(origin)),
                    *pairs[position + 1 :],
                ]
        return [*pairs, (remote, origin)]

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
        kind = entry.kind
        if self.keeps_extern_learn and kind.extern_learn:
            return Learned.STICKY
        if kind.state is not EntryState.DYNAMIC:
            return Learned.CONFLICT
        if kind.sticky or (self.keeps_extern_learn and kind.origins):
            return Learned.STICKY
        if self.moves.limit and not self._may_move(entry, remote, now):
            return Learned.HELD
        entry.rx_frames += count
        if kind.origins:  # They are about the destinations that it had.
            kind = evolve(kind, origins=())
        self._change(mac, (remote,), now, kind, EntryEvent.MOVED)
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
        if self.keeps_extern_learn and entry.kind.extern_learn:
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


def _has_host(entry: Entry, host: str) -> bool:
    return any(remote.host == host for remote in entry.destinations)


def _is_configured(kind: EntryKind) -> bool:
    """Return True for an entry that a user has configured, and no control plane."""
    return not kind.ages and not kind.extern_learn
