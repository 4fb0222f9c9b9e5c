"""The timing wheel that finds the entries to expire."""

from math import ceil, floor

from vtep.forwarding.fdb.entry import Entry


class AgeingWheel:
    """Entries in slots of one second, by the second in which they may have expired.

    A refresh does not touch the wheel. If an entry was refreshed after it was scheduled, the caller
    finds that when its slot is due and schedules it again. So learning costs the same in a table of
    a million entries, and a sweep visits only entries that were added or visited a whole ageing
    time ago. A deleted entry stays in its slot until that is due.

    `ageing` is in seconds; with 0 nothing is scheduled.
    """

    def __init__(self, ageing: float) -> None:
        self.ageing = ageing
        self._slots: dict[int, list[Entry]] = {}
        # Every slot up to this one is done.
        self._swept = -1

    def clear(self, now: float) -> None:
        """Remove all entries."""
        self._slots = {}
        self._swept = floor(now)

    def schedule(self, entry: Entry, now: float) -> None:
        """Put an entry into the first slot, of those not yet swept, at which it has expired."""
        if not self.ageing:
            return
        if not self._slots:
            # After an idle time, a sweep need not step through all the empty slots of it.
            self._swept = floor(now)
        slot = max(ceil(entry.updated + self.ageing), self._swept + 1)
        self._slots.setdefault(slot, []).append(entry)

    def take_due(self, now: float, most: int) -> list[Entry]:
        """Remove and return up to `most` entries whose slots are due."""
        taken: list[Entry] = []
        while len(taken) < most and (slot := self._due_slot(now)) is not None:
            begin = max(0, len(slot) - (most - len(taken)))
            taken += reversed(slot[begin:])
            del slot[begin:]
        return taken

    def is_due(self, now: float) -> bool:
        """Return True if `take_due` would return an entry."""
        return self._due_slot(now) is not None

    def _due_slot(self, now: float) -> list[Entry] | None:
        """Return the first slot that is due and not empty, and forget the empty ones before it."""
        due = floor(now)
        if not self._slots:
            self._swept = due
        while self._swept < due:
            slot = self._slots.get(self._swept + 1)
            if slot:
                return slot
            self._swept += 1
            self._slots.pop(self._swept, None)
        return None
