"""The forwarding database: which remotes a MAC is behind.

It owns the entries of one segment, how they are learned, how they age and how many there may be.
It knows no clock: every method that needs the time is given it, in seconds of any steady clock.
"""

from collections.abc import Iterable, Iterator
from enum import Enum, auto
from math import ceil, floor

from attrs import define, field, frozen


@frozen(eq=False)
class Remote:
    """A VTEP on the underlay: where datagrams for it go.

    Compared by identity, which makes it a cheap key: a segment has one object for each.

    `host` is the numeric address as the kernel prints it; `port` is the UDP port that it listens
    on, which says nothing of the port that its datagrams come from (RFC 7348, section 5).
    """

    host: str
    port: int
    alone: "tuple[Remote]" = field(init=False, repr=False)
    """This remote as a list of destinations, made once."""

    @alone.default
    def _alone(self) -> "tuple[Remote]":
        return (self,)


@define(eq=False)
class Entry:
    """What is known of one MAC.

    `updated` is when a frame *from* it was last received: sending to a host keeps nothing alive,
    so a silent one is forgotten (the kernel does so since 6.15).
    """

    mac: bytes
    destinations: tuple[Remote, ...]
    updated: float


class Learned(Enum):
    """What became of a source MAC shown to `Fdb.learn`."""

    REFRESHED = auto()
    """It was known to be there."""
    ADDED = auto()
    MOVED = auto()
    """It was known behind another remote; the entry has been changed."""
    FULL = auto()
    """It is new, but the table has as many entries as it may: it stays unknown and is flooded."""


class Fdb:
    """Entries by MAC, bounded by `max_addresses`, forgotten after `ageing` seconds.

    Zero means "no limit" and "never". Entries wait in a wheel of one-second slots for the moment
    at which they may have expired. A refresh does not touch the wheel; an entry found younger when
    its slot comes up goes on to the slot of its new age. So learning costs the same in a table of
    a million, and a sweep looks only at entries that have lived a whole `ageing` since the last.
    """

    def __init__(self, *, ageing: float, max_addresses: int) -> None:
        self.ageing = ageing
        self.max_addresses = max_addresses
        self._entries: dict[bytes, Entry] = {}
        self._wheel: dict[int, list[Entry]] = {}
        self._swept = -1

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def lookup(self, mac: bytes) -> Entry | None:
        """The entry of a MAC of 6 octets, or None where it is unknown."""
        return self._entries.get(mac)

    def learn(self, mac: bytes, remote: Remote, now: float) -> Learned:
        """Take note that a frame from `mac` came from `remote`.

        Which MACs are worth learning is the caller's to say.
        """
        entry = self._entries.get(mac)
        if entry is not None:
            entry.updated = now
            if entry.destinations[0] is remote:
                return Learned.REFRESHED
            entry.destinations = remote.alone
            return Learned.MOVED
        if self.max_addresses and len(self._entries) >= self.max_addresses:
            return Learned.FULL
        entry = Entry(mac, remote.alone, now)
        self._entries[mac] = entry
        if self.ageing:
            if not self._wheel:
                self._swept = floor(now)  # Nothing waits in the slots until now.
            self._await_expiry(entry)
        return Learned.ADDED

    def forget_others(self, remotes: Iterable[Remote]) -> None:
        """Forget what is behind any other remote than these."""
        known = set(remotes)
        for entry in tuple(self):
            if entry.destinations[0] not in known:
                del self._entries[entry.mac]

    def sweep(self, now: float, budget: int = 1000) -> bool:
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
                    return True
                budget -= 1
                entry = slot.pop()
                if self._entries.get(entry.mac) is not entry:
                    continue
                if entry.updated + self.ageing <= now:
                    del self._entries[entry.mac]
                else:
                    self._await_expiry(entry)
            self._swept += 1
            self._wheel.pop(self._swept, None)
        return False

    def _await_expiry(self, entry: Entry) -> None:
        """Put an entry into the first slot, of those still to be swept, in which it has expired."""
        slot = max(ceil(entry.updated + self.ageing), self._swept + 1)
        self._wheel.setdefault(slot, []).append(entry)
