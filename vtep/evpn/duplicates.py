"""Moves of MACs, and MACs that move too often (RFC 7432, section 15.1). No I/O."""

import math
from collections import deque
from itertools import islice
from typing import Final, Literal

from attrs import define, frozen

from vtep.wire.address import Address
from vtep.wire.ethernet import format_mac

Place = Address | None
"""The place of a MAC: a remote VTEP, or this host (None)."""

Key = tuple[int, bytes]
"""VNI and MAC."""

HOLD_FACTOR: Final = 3
"""A held MAC is released after so many times the time in which moves are counted."""

_MACS_MAX: Final = 4096
"""MACs whose moves are remembered, and duplicates: they bound the memory that peers can take."""

_LOG_LEN: Final = 1000


@frozen
class Move:
    """A move of a MAC at a time in seconds."""

    vni: int
    mac: bytes
    old: Place
    new: Place
    sequence: int
    at: float


@define
class Duplicate:
    """A MAC that moves too often, since a time in seconds."""

    vni: int
    mac: bytes
    state: Literal["warned", "held"]
    since: float
    places: dict[Place, None]


class MoveTracker:
    """The latest moves, those of each MAC within the detection time, and the duplicates."""

    def __init__(self, action: Literal["warn", "hold", "off"], limit: int, time: float) -> None:
        self.log: deque[Move] = deque(maxlen=_LOG_LEN)
        self.duplicates: dict[Key, Duplicate] = {}
        self._moves: dict[Key, deque[Move]] = {}
        self.configure(action, limit, time)

    def configure(
        self, action: Literal["warn", "hold", "off"], limit: int, time: float
    ) -> list[Key]:
        """Set what is done with duplicates. Returns: the MACs that are released by that."""
        self._action = action
        self._limit = limit
        self._time = time
        self._due = 0.0
        return [
            key
            for key, duplicate in list(self.duplicates.items())
            if (duplicate.state == "held" and action != "hold") or action == "off"
            if self.release(key)
        ]

    def is_held(self, key: Key) -> bool:
        """Return True for a MAC whose changes are ignored."""
        duplicate = self.duplicates.get(key)
        return duplicate is not None and duplicate.state == "held"

    def count(self, key: Key, now: float) -> int:
        """Return the moves of a MAC within the detection time."""
        return sum(move.at > now - self._time for move in self._moves.get(key, ()))

    def last_place(self, key: Key) -> tuple[Place] | None:
        """Return where a MAC moved to the last time, in a tuple; None if no move is remembered."""
        moves = self._moves.get(key)
        return (moves[-1].new,) if moves else None

    def note(self, move: Move, *, is_gone: bool) -> str | None:
        """Note a move. Returns: a line for the log if it makes the MAC a duplicate.

        With the action "hold" the MAC is held then: at the old place, so that the move does not
        happen, or at the new one if it `is_gone` from the old one.
        """
        key = move.vni, move.mac
        moves = self._moves.pop(key, None) or deque()
        moves.append(move)
        while moves[0].at <= move.at - self._time or len(moves) > self._limit + 1:
            moves.popleft()
        if len(self._moves) >= _MACS_MAX:
            del self._moves[next(iter(self._moves))]
        self._moves[key] = moves
        duplicate = self.duplicates.get(key)
        if duplicate is not None:
            duplicate.places.update({move.old: None, move.new: None})
        elif self._action != "off" and len(moves) > self._limit:
            return self._found(key, moves, is_gone=is_gone)
        self.log.append(move)
        return None

    def _found(self, key: Key, moves: deque[Move], *, is_gone: bool) -> str:
        move = moves[-1]
        state: Literal["warned", "held"] = "held" if self._action == "hold" else "warned"
        places: dict[Place, None] = {}
        for each in moves:
            places.update({each.old: None, each.new: None})
        self.duplicates[key] = Duplicate(move.vni, move.mac, state, move.at, places)
        self._due = min(self._due, self._end(key))
        if state == "warned" or is_gone:
            self.log.append(move)
        mac = format_mac(move.mac)
        held = ""
        if state == "held":
            place = place_text(move.new if is_gone else move.old)
            held = f"it is held at {place} for {HOLD_FACTOR * self._time:g} s; "
        return (
            f"vni {move.vni}: {mac} has moved more than {self._limit} times in {self._time:g} s, "
            f"last from {place_text(move.old)} to {place_text(move.new)}: two hosts have this MAC, "
            f"or there is another path between the hosts; {held}find it with pyvtep evpn show "
            f"moves, then pyvtep evpn clear duplicate {mac}"
        )

    def release(self, key: Key) -> bool:
        """Forget the moves of a MAC. Returns: True if it was a duplicate."""
        self._moves.pop(key, None)
        return self.duplicates.pop(key, None) is not None

    def forget(self, vni: int) -> None:
        """Forget all MACs of a VNI."""
        for key in [key for key in (*self._moves, *self.duplicates) if key[0] == vni]:
            self.release(key)

    def _end(self, key: Key) -> float:
        """Return when a duplicate ends: a hold after a time, a warning after a time of rest."""
        duplicate = self.duplicates[key]
        if duplicate.state == "held":
            return duplicate.since + HOLD_FACTOR * self._time
        moves = self._moves.get(key)
        return (moves[-1].at if moves else duplicate.since) + self._time

    def expire(self, now: float) -> tuple[list[Key], float | None]:
        """End duplicates whose time is over.

        Returns: their keys, and the time at which this is to be called again, if there are others.
        """
        # Oldest first: each move puts its MAC to the end.
        old = [
            key
            for key, moves in islice(self._moves.items(), 64)
            if moves[-1].at <= now - self._time
        ]
        for key in old:
            if key not in self.duplicates:
                del self._moves[key]
        if not self.duplicates:
            return [], None
        # Called after each change: do not visit thousands of duplicates each time.
        if now < self._due and len(self.duplicates) <= _MACS_MAX:
            return [], self._due
        ended = [key for key in self.duplicates if self._end(key) <= now]
        excess = len(self.duplicates) - len(ended) - _MACS_MAX
        if excess > 0:
            ended += list(islice((key for key in self.duplicates if key not in ended), excess))
        for key in ended:
            self.release(key)
        # Moves make ends later, and never earlier than this.
        self._due = min(map(self._end, self.duplicates), default=math.inf)
        return ended, self._due if self.duplicates else None


def place_text(place: Place) -> str:
    """Return the name of a place in messages."""
    return "this host" if place is None else str(place)
