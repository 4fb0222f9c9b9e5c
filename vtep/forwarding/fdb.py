"""The forwarding database: which remotes a MAC is behind, as `bridge fdb` has it.

It owns the entries of one segment: what was put in by hand or by a control plane, what is learned
from traffic, how that ages, how much of it there may be, and which hosts are thereby a part of the
segment. The all-zero MAC is the default entry: its destinations get what no other entry knows.

It knows no clock: every method that needs the time is given it, in seconds of any steady clock.
What a person asks for in vain is an `FdbError`, and then nothing has changed.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum, StrEnum, auto
from ipaddress import IPv6Address, ip_address
from itertools import chain
from math import ceil, floor
from typing import TypeAlias

from attrs import define, evolve, field, frozen

from vtep.errors import FdbError
from vtep.wire import vxlan
from vtep.wire.address import check_destination, is_device_name
from vtep.wire.ethernet import MAC_ZERO, format_mac

_PAGE = 50
"""Entries that are shown at a time: half a millisecond for who makes text of them."""


@frozen(eq=False)
class Remote:
    """A VTEP on the underlay, or a multicast group of them: where datagrams for it go.

    Compared by identity, which makes it a cheap key: while an entry uses it, a segment has one
    object for each (see `Fdb`).

    `host` is the numeric address as the kernel prints it; `port` is the UDP port that it listens
    on, which says nothing of the port that its datagrams come from (RFC 7348, section 5). `vni` is
    what it calls the segment, if not as we do, and `via` the device to send from, if not any.
    """

    host: str
    port: int
    vni: int | None = None
    via: str | None = None
    alone: "tuple[Remote]" = field(init=False, repr=False)
    """This remote as a list of destinations, made once."""

    @alone.default
    def _alone(self) -> "tuple[Remote]":
        return (self,)


def parse_remote(
    dst: str, *, port: int = vxlan.PORT, vni: int | None = None, via: str | None = None
) -> Remote:
    """A destination as people write it; raises FdbError, naming the field that makes no sense.

    A link-local address needs its device, as `via` or as `fe80::1%eth0`.
    """
    try:
        address = ip_address(dst)
    except ValueError:
        raise FdbError(f"dst {dst!r}: is not an IP address such as 192.0.2.1 or fd00::1") from None
    try:
        check_destination(address)
    except ValueError as error:
        raise FdbError(f"dst {dst}: {error}") from None
    if isinstance(address, IPv6Address):
        if address.is_link_local and not address.scope_id:
            if via is None:
                raise FdbError(f"dst {dst}: is link-local: say over which device, with via")
            address = IPv6Address(f"{address}%{via}")
        elif address.scope_id and via not in (None, address.scope_id):
            raise FdbError(f"via {via}: contradicts dst {dst}")
    if not 1 <= port <= 65535:
        raise FdbError(f"port {port}: must be from 1 to 65535")
    if vni is not None and not 0 <= vni <= vxlan.VNI_MAX:
        raise FdbError(f"vni {vni}: must be from 0 to {vxlan.VNI_MAX}")
    if via is not None and not is_device_name(via):
        raise FdbError(f"via {via!r}: is not the name of a device")
    return Remote(str(address), port, vni, via)


class State(StrEnum):
    """What may become of an entry by itself, as in `bridge fdb`."""

    PERMANENT = "permanent"
    """Nothing: it stays as it was put in, and frames from its MAC must come from there."""
    STATIC = "static"
    """The same, to people who tell the two apart."""
    DYNAMIC = "dynamic"
    """It moves to where its MAC is heard, and is forgotten when that is heard no more."""


@frozen
class Kind:
    """The state and the flags of an entry.

    `extern_learn` marks what a control plane has put in: it never ages. A `sticky` entry ages, but
    does not move.
    """

    state: State = State.PERMANENT
    extern_learn: bool = False
    sticky: bool = False
    ages: bool = field(init=False, eq=False, repr=False)

    @ages.default
    def _ages(self) -> bool:
        return self.state is State.DYNAMIC and not self.extern_learn


PERMANENT = Kind()
LEARNED = Kind(State.DYNAMIC)


@define(eq=False, weakref_slot=False)
class Entry:
    """What is known of one MAC.

    `updated` is when a frame *from* it was last received: sending to a host keeps nothing alive,
    so a silent one is forgotten (the kernel does so since 6.15). Where none was yet, it is when
    the entry was put in. `tx_frames` went to the MAC, `rx_frames` came from it.
    """

    mac: bytes
    destinations: tuple[Remote, ...]
    updated: float
    kind: Kind = LEARNED
    tx_frames: int = 0
    rx_frames: int = 0
    place: int = -1
    """Where the table keeps it for its life."""


class Event(StrEnum):
    """What happened to an entry that is shown to `Fdb.watch`."""

    ADDED = "added"
    CHANGED = "changed"
    """It has other destinations, or is of another kind."""
    MOVED = "moved"
    """Its MAC was heard from another remote."""
    DELETED = "deleted"
    EXPIRED = "expired"


class Learned(Enum):
    """What became of a source MAC shown to `Fdb.learn`."""

    REFRESHED = auto()
    """It was known to be there."""
    ADDED = auto()
    MOVED = auto()
    """It was known behind another remote; the entry has been changed."""
    STICKY = auto()
    """It was known behind another remote, where it stays: the entry is sticky."""
    CONFLICT = auto()
    """It has a permanent or static entry behind another remote: the frame is forged or looped."""
    FULL = auto()
    """It is new, but as many are known as may be learned: it stays unknown and is flooded."""
    OVER_QUOTA = auto()
    """It is new, but its remote has as many as one remote may have: the same."""


@frozen
class Filter:
    """Which entries, and which of their destinations, are meant: those to which all of it applies.

    None is "whatever". The rest is as in `bridge fdb flush`: False stands for its `no...`, of
    which `nostatic` spares permanent entries as well.
    """

    dst: str | None = None
    port: int | None = None
    vni: int | None = None
    via: str | None = None
    permanent: bool | None = None
    static: bool | None = None
    dynamic: bool | None = None
    extern_learn: bool | None = None
    sticky: bool | None = None

    def applies_to(self, kind: Kind) -> bool:
        """Whether entries of this kind are meant."""
        state = kind.state
        return (
            self.permanent in (None, state is State.PERMANENT)
            and (self.static is None or state is (State.STATIC if self.static else State.DYNAMIC))
            and self.dynamic in (None, state is State.DYNAMIC)
            and self.extern_learn in (None, kind.extern_learn)
            and self.sticky in (None, kind.sticky)
        )


EVERYTHING = Filter()

_Key: TypeAlias = tuple[str, int, int, str | None]


class Fdb:
    """Entries by MAC: those that age are bounded by `max_addresses`, and last `ageing` seconds.

    Zero means "no limit" and "never". `vni` and `port` are those of a destination that has no
    others.

    Entries wait in a wheel of one-second slots for the moment at which they may have expired. A
    refresh does not touch the wheel; an entry found younger when its slot comes up goes on to the
    slot of its new age. So learning costs the same in a table of a million, and a sweep looks only
    at entries that have lived a whole `ageing` since the last. What was deleted meanwhile is left
    to be found in its slot.

    Besides, each has a place of its own for its life, so that all of them can be looked at a few at
    a time while the table changes. A dict can't: it would have to be copied at once, which for a
    million entries takes some 20 ms. As in a dict, the room of what was deleted is used again.

    Remotes are interned: of those given that say the same, the first one is used, until no entry
    uses it any more. Then the callback `unused`, if there is one, is told, to let go of what it
    has for it.
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
        self.vni = vni
        self.port = port
        self.max_addresses = max_addresses
        self.max_per_host = max_per_host
        """How many entries that age one host may have, as far as they are learned: 0 is no limit,
        and None is half of `max_addresses` unless there is one host only."""
        self.open = False
        """Whether MACs are learned from hosts that are not in `sources` too."""
        self.default: Entry | None = None
        """The entry of the all-zero MAC, whose destinations get what no other entry knows."""
        self.sources: dict[str, Remote] = {}
        """The hosts that are a destination of anything but learned entries: the members of the
        segment as far as they are known, each with the remote that MACs from there are behind."""
        self.unused: Callable[[Remote], None] | None = None
        self.listed: Callable[[str], None] | None = None
        """Told of each host that has come to `sources`."""
        self.unlisted: Callable[[str], None] | None = None
        """Told of each host that has left `sources`."""
        self.sources_changed: Callable[[], None] | None = None
        """Called when `sources` has become another set of hosts."""
        self._ageing = ageing
        self._entries: dict[bytes, Entry] = {}
        self.lookup: Callable[[bytes], Entry | None] = self._entries.get
        """The entry of a MAC of 6 octets, or None where it is unknown (as the all-zero MAC is)."""
        self._places: list[Entry | None] = []
        self._free: list[int] = []  # Numbers of places that are None.
        self._ageing_count = 0  # What the limit is about.
        self._ageing_by_host: dict[str, int] = {}  # The same, counted at each destination.
        self._wheel: dict[int, list[Entry]] = {}
        self._swept = -1
        self._watchers: list[Callable[[Event, Entry], None]] = []
        self._remotes: dict[_Key, Remote] = {}
        self._uses: dict[Remote, int] = {}
        self._listings: dict[str, dict[Remote, int]] = {}
        # What the callbacks are to be told once a change is complete.
        self._touched: list[str] = []
        self._released: list[Remote] = []
        self._flushed = 0  # Destinations that `flush` has removed so far.

    def __len__(self) -> int:
        """How many entries there are, the default entry aside."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        """Every entry but the default entry."""
        return iter(self._entries.values())

    # --- asking -----------------------------------------------------------------------------

    def get(self, mac: bytes) -> Entry:
        """The entry of a MAC, also of the all-zero one; raises FdbError where there is none."""
        entry = self._find(mac)
        if entry is None:
            raise FdbError(f"{format_mac(mac)}: there is no such entry")
        return entry

    def pages(self) -> Iterator[list[Entry]]:
        """Every entry, some fifty at a time and the default entry first.

        The table may change meanwhile. Who was there all the time is shown once; a MAC that is
        deleted and comes back may be shown twice, or not.
        """
        if self.default is not None:
            yield [self.default]
        for begin in range(0, len(self._places), _PAGE):
            page = self._places[begin : begin + _PAGE]
            yield [entry for entry in page if entry is not None]

    def entries(self) -> Iterator[Entry]:
        """Every entry as `pages` shows them."""
        return chain.from_iterable(self.pages())

    def select(
        self, wanted: Filter = EVERYTHING, among: Iterable[Entry] | None = None
    ) -> list[tuple[Entry, tuple[Remote, ...]]]:
        """The entries that are meant, the default entry first, each with its destinations meant.

        `among` are those to look at, so that who has time can look at a few and then at others.
        """
        entries = self.entries() if among is None else among
        if wanted == EVERYTHING:
            return [(entry, entry.destinations) for entry in entries]
        chosen = []
        for entry in entries:
            if wanted.applies_to(entry.kind):
                destinations = tuple(
                    remote for remote in entry.destinations if self._is_meant(remote, wanted)
                )
                if destinations:
                    chosen.append((entry, destinations))
        return chosen

    def among(self, destinations: Iterable[Remote], remote: Remote) -> Remote | None:
        """The one of these destinations that says the same as `remote`, if any."""
        key = self._key(remote)
        return next((other for other in destinations if self._key(other) == key), None)

    def keys_of(self, destinations: Iterable[Remote]) -> set[_Key]:
        """What destinations say: equal keys are of remotes that say the same."""
        return {self._key(remote) for remote in destinations}

    def uses(self, remote: Remote) -> int:
        """How many entries have this object as a destination."""
        return self._uses.get(remote, 0)

    def watch(self, watcher: Callable[[Event, Entry], None]) -> Callable[[], None]:
        """Have every change told, once, when it is complete; what is given back ends that.

        A sign of life is no change. The entry is shown as it is after the change, or was before
        its end; the watcher may keep neither it nor the table from changing again, and must not
        change it itself.
        """
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    # --- changing ---------------------------------------------------------------------------

    def add(self, mac: bytes, remote: Remote, now: float, kind: Kind = PERMANENT) -> None:
        """Put in an entry for a MAC that has none; raises FdbError if it has."""
        if self._find(mac) is not None:
            raise FdbError(f"{format_mac(mac)}: has an entry already: use append, or replace")
        self._put(mac, (remote,), now, kind)

    def append(self, mac: bytes, remote: Remote, now: float, kind: Kind = PERMANENT) -> None:
        """Give a MAC one more destination, to each of which its frames go; or its first.

        What it has already is not given twice. The entry becomes of the kind given, except that
        `extern_learn` does not take over what was put in by hand.
        """
        entry = self._find(mac)
        destinations = entry.destinations if entry is not None else ()
        if entry is not None and kind.extern_learn and _is_by_hand(entry.kind):
            kind = entry.kind
        if self.among(destinations, remote) is None:
            destinations = (*destinations, remote)
        self._put(mac, destinations, now, kind)

    def replace(self, mac: bytes, remote: Remote, now: float, kind: Kind = PERMANENT) -> None:
        """Have a MAC be behind this remote alone, whatever is known of it.

        Raises FdbError for the all-zero MAC and for groups, as the kernel refuses it: one word
        would cut off all others. Also where `extern_learn` would take over what was put in by hand.
        """
        if mac[0] & 1 or mac == MAC_ZERO:
            raise FdbError(
                f"{format_mac(mac)}: only the entry of a unicast MAC can be replaced: use append "
                "and del"
            )
        entry = self._find(mac)
        if entry is not None and kind.extern_learn and _is_by_hand(entry.kind):
            raise FdbError(
                f"extern_learn: {format_mac(mac)} has a {entry.kind.state} entry that was put in "
                "by hand: delete that first"
            )
        self._put(mac, (remote,), now, kind)

    def remove(self, mac: bytes, remote: Remote | None = None) -> None:
        """Take one destination from a MAC, or all; with the last, its entry goes.

        Raises FdbError where there is no such entry, or no such destination.
        """
        entry = self.get(mac)
        rest: tuple[Remote, ...] = ()
        if remote is not None:
            found = self.among(entry.destinations, remote)
            if found is None:
                raise FdbError(f"{_words(remote)}: is no destination of {format_mac(mac)}")
            rest = tuple(other for other in entry.destinations if other is not found)
        self._put(mac, rest, entry.updated, entry.kind)

    def set_default(self, remotes: Iterable[Remote], now: float) -> None:
        """Have the default entry send to exactly these, in this order; to none ends it."""
        destinations: dict[_Key, Remote] = {}
        for remote in remotes:
            destinations.setdefault(self._key(remote), remote)
        kind = PERMANENT if self.default is None else self.default.kind
        self._put(MAC_ZERO, tuple(destinations.values()), now, kind)

    def flush(
        self,
        wanted: Filter = EVERYTHING,
        among: Iterable[Entry] | None = None,
        spared: Iterable[Remote] = (),
    ) -> int:
        """Remove every destination that is meant, and entries that have no other.

        `among` is as in `select`; of those, what is in the table no more is left out. The default
        entry keeps those destinations that are `spared`.

        Returns: how many destinations were removed, with those that `unlisted` has had flushed.
        """
        before = self._flushed
        for entry, meant in self.select(wanted, among):
            if self._find(entry.mac) is not entry:
                continue
            gone = meant
            if entry is self.default:
                keys = self.keys_of(spared)
                gone = tuple(remote for remote in meant if self._key(remote) not in keys)
            rest = tuple(remote for remote in entry.destinations if remote not in gone)
            self._change(entry.mac, rest, entry.updated, entry.kind)
            self._flushed += len(gone)
        self._settle()
        return self._flushed - before

    # --- learning ---------------------------------------------------------------------------

    def learn(self, mac: bytes, remote: Remote, now: float, count: int = 1) -> Learned:
        """Take note that `count` frames from `mac` came from `remote`.

        Which MACs are worth learning is the caller's to say.
        """
        entry = self._entries.get(mac)
        if entry is None:
            if self.max_addresses and self._ageing_count >= self.max_addresses:
                return Learned.FULL
            if self._is_over_quota(remote.host):
                return Learned.OVER_QUOTA
            alone = self._take(remote, LEARNED).alone
            entry = self._insert(Entry(mac, alone, now, LEARNED, rx_frames=count))
            self._tell(Event.ADDED, entry)
            return Learned.ADDED
        if entry.destinations[0] is remote or _is_behind(entry, remote.host):
            entry.updated = now
            entry.rx_frames += count
            return Learned.REFRESHED
        if entry.kind.state is not State.DYNAMIC:
            return Learned.CONFLICT
        if entry.kind.sticky:
            return Learned.STICKY
        entry.rx_frames += count
        self._change(mac, (remote,), now, entry.kind, Event.MOVED)
        self._settle()
        return Learned.MOVED

    @property
    def quota(self) -> int:
        """How many entries that age one host may have, as far as they are learned; 0 is any."""
        if self.max_per_host is not None:
            return self.max_per_host
        several = self.open or len(self.sources) > 1
        # An FDB of one entry has no half.
        return max(1, self.max_addresses // 2) if self.max_addresses and several else 0

    def learned_from(self, host: str) -> int:
        """Return how many entries that age have this host as a destination."""
        return self._ageing_by_host.get(host, 0)

    def has_room(self, host: str) -> bool:
        """Return whether one more MAC may be learned from a host."""
        full = self.max_addresses and self._ageing_count >= self.max_addresses
        return not full and not self._is_over_quota(host)

    def _is_over_quota(self, host: str) -> bool:
        quota = self.quota
        return quota > 0 and self.learned_from(host) >= quota

    def check(self, mac: bytes, remote: Remote) -> Learned:
        """Whether frames from `mac` can come from `remote`, as far as `learn` cares to know.

        Either REFRESHED or CONFLICT; nothing is learned.
        """
        entry = self._entries.get(mac)
        if entry is None or entry.kind.state is State.DYNAMIC or _is_behind(entry, remote.host):
            return Learned.REFRESHED
        return Learned.CONFLICT

    @property
    def ageing(self) -> float:
        """Seconds after which a MAC that was not heard of is forgotten; 0 is never."""
        return self._ageing

    def set_ageing(self, ageing: float, now: float) -> None:
        """Change the ageing; what is overdue by it goes with the next sweeps."""
        self._ageing = ageing
        self._wheel = {}
        self._swept = floor(now)
        for entry in self._entries.values():
            if entry.kind.ages:
                self._await_expiry(entry, now)

    def set_port(self, port: int) -> None:
        """Have another port be that of a destination that has no other.

        What was learned is forgotten, since it is at the former port. What was put in stays as it
        is: it says its port itself.
        """
        self.port = port
        self._touched += self._listings
        self._settle()
        self.flush(Filter(dynamic=True, extern_learn=False))

    def sweep(self, now: float, budget: int = 100) -> bool:
        """Forget what has not been heard of for `ageing` seconds, within a second.

        Looks at `budget` entries at most, so that forwarding never waits for it; True if some
        that are due were left for the next call.
        """
        due = floor(now)
        if not self._wheel:
            self._swept = due
        while self._swept < due:
            slot = self._wheel.get(self._swept + 1)
            while slot:
                if not budget:
                    self._settle()
                    return True
                budget -= 1
                entry = slot.pop()
                if self._entries.get(entry.mac) is not entry:
                    continue  # It was deleted, or has become of another kind.
                if entry.updated + self._ageing <= now:
                    self._delete(entry, Event.EXPIRED)
                else:
                    self._await_expiry(entry, now)
            self._swept += 1
            self._wheel.pop(self._swept, None)
        self._settle()
        return False

    def _await_expiry(self, entry: Entry, now: float) -> None:
        """Put an entry into the first slot, of those still to be swept, in which it has expired."""
        if not self._ageing:
            return
        if not self._wheel:
            self._swept = floor(now)  # Nothing waits in the slots until now.
        slot = max(ceil(entry.updated + self._ageing), self._swept + 1)
        self._wheel.setdefault(slot, []).append(entry)

    # --- how it is kept ---------------------------------------------------------------------

    def _find(self, mac: bytes) -> Entry | None:
        return self.default if mac == MAC_ZERO else self._entries.get(mac)

    def _put(self, mac: bytes, destinations: tuple[Remote, ...], now: float, kind: Kind) -> None:
        """What people ask for; raises FdbError if it makes no sense."""
        if mac == MAC_ZERO and kind.ages:
            raise FdbError("dynamic: the default entry can't be, as it would never be heard")
        self._change(mac, destinations, now, kind)
        self._settle()

    def _change(
        self,
        mac: bytes,
        destinations: tuple[Remote, ...],
        now: float,
        kind: Kind,
        event: Event = Event.CHANGED,
    ) -> None:
        """Let a MAC have these destinations, or no entry if there are none, and be of this kind.

        `event` is what it is called if there was an entry and still is.
        """
        old = self._find(mac)
        if old is None and not destinations:
            return
        if old is not None and kind == old.kind and self._same(destinations, old.destinations):
            return
        # What stays is taken once more before it is let go of, and so does not go.
        taken = tuple(self._take(remote, kind) for remote in destinations)
        if len(taken) == 1:
            taken = taken[0].alone
        if old is None:
            self._tell(Event.ADDED, self._insert(Entry(mac, taken, now, kind)))
        elif not taken:
            self._delete(old, Event.DELETED)
        elif kind == old.kind:
            self._let_go(old)
            old.destinations, old.updated = taken, now
            self._tell(event, old)
        else:  # Another object, so that what may wait in the wheel is known to be outdated.
            self._let_go(old)
            self._ageing_count -= old.kind.ages
            entry = evolve(old, destinations=taken, updated=now, kind=kind)
            self._tell(event, self._insert(entry))

    def _insert(self, entry: Entry) -> Entry:
        if entry.mac == MAC_ZERO:
            self.default = entry
            return entry
        self._entries[entry.mac] = entry
        if entry.place >= 0:
            self._places[entry.place] = entry
        elif self._free:
            entry.place = self._free.pop()
            self._places[entry.place] = entry
        else:
            entry.place = len(self._places)
            self._places.append(entry)
        if entry.kind.ages:
            self._ageing_count += 1
            self._await_expiry(entry, entry.updated)
        return entry

    def _delete(self, entry: Entry, event: Event) -> None:
        if entry is self.default:
            self.default = None
        else:
            del self._entries[entry.mac]
            self._places[entry.place] = None
            self._free.append(entry.place)
            self._ageing_count -= entry.kind.ages
        self._let_go(entry)
        self._tell(event, entry)

    def _tell(self, event: Event, entry: Entry) -> None:
        for watcher in self._watchers:
            watcher(event, entry)

    # --- remotes ----------------------------------------------------------------------------

    def _key(self, remote: Remote) -> _Key:
        return remote.host, remote.port, self._vni_of(remote), remote.via

    def _vni_of(self, remote: Remote) -> int:
        return self.vni if remote.vni is None else remote.vni

    def _is_meant(self, remote: Remote, wanted: Filter) -> bool:
        return (
            wanted.dst in (None, remote.host)
            and wanted.port in (None, remote.port)
            and wanted.vni in (None, self._vni_of(remote))
            and wanted.via in (None, remote.via)
        )

    def _same(self, some: tuple[Remote, ...], others: tuple[Remote, ...]) -> bool:
        return [self._key(remote) for remote in some] == [self._key(remote) for remote in others]

    def _take(self, remote: Remote, kind: Kind) -> Remote:
        """Count one more use of a remote; gives the object that stands for it."""
        uses = self._uses.get(remote)
        if uses is None:
            remote = self._remotes.setdefault(self._key(remote), remote)
            uses = self._uses.get(remote, 0)
        self._uses[remote] = uses + 1
        if kind.ages:
            self._ageing_by_host[remote.host] = self._ageing_by_host.get(remote.host, 0) + 1
        else:
            listed = self._listings.setdefault(remote.host, {})
            listed[remote] = listed.get(remote, 0) + 1
            self._touched.append(remote.host)
        return remote

    def _let_go(self, entry: Entry) -> None:
        """Count one use less of each destination of an entry."""
        for remote in entry.destinations:
            uses = self._uses[remote] - 1
            if uses:
                self._uses[remote] = uses
            else:
                del self._uses[remote], self._remotes[self._key(remote)]
                self._released.append(remote)
            if entry.kind.ages:
                self._ageing_by_host[remote.host] -= 1
                if not self._ageing_by_host[remote.host]:
                    del self._ageing_by_host[remote.host]
            else:
                listed = self._listings[remote.host]
                listed[remote] -= 1
                if not listed[remote]:
                    del listed[remote]
                    if not listed:
                        del self._listings[remote.host]
                self._touched.append(remote.host)

    def _settle(self) -> None:
        """Bring `sources` up to date, and call back, now that a change is complete."""
        come, gone = [], []
        while self._touched:
            host = self._touched.pop()
            if host in self._listings:
                if host not in self.sources:
                    come.append(host)
                self.sources[host] = self._source(host)
            elif self.sources.pop(host, None) is not None:
                gone.append(host)
        if self.sources_changed is not None and (come or gone):
            self.sources_changed()
        if self.listed is not None:
            for host in come:
                self.listed(host)
        if self.unlisted is not None:
            for host in gone:
                self.unlisted(host)
        while self._released:
            remote = self._released.pop()
            if self.unused is not None and remote not in self._uses:
                self.unused(remote)

    def _source(self, host: str) -> Remote:
        """The remote that a MAC is behind which is heard from `host`.

        It is the one that listens where all do, as in the kernel driver; unless the default entry
        knows the host in another way only.
        """
        plain = self._remotes.get((host, self.port, self.vni, None))
        if plain in self._listings[host]:
            return plain
        default = self.default.destinations if self.default is not None else ()
        known = next((remote for remote in default if remote.host == host), None)
        return known or plain or Remote(host, self.port)


def _is_behind(entry: Entry, host: str) -> bool:
    return any(remote.host == host for remote in entry.destinations)


def _is_by_hand(kind: Kind) -> bool:
    return not kind.ages and not kind.extern_learn


def _words(remote: Remote) -> str:
    """A destination as it is written on the command line."""
    vni = "" if remote.vni is None else f" vni {remote.vni}"
    via = "" if remote.via is None else f" via {remote.via}"
    return f"dst {remote.host} port {remote.port}{vni}{via}"
