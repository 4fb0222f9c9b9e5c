"""MAC move dampening: a MAC that moves between remotes too often is held at one of them.

RFC 7432, section 15.1, detects duplicate MACs by more than N = 5 moves in M = 180 s. The usual
causes are two hosts with one MAC, and a loop, through which each frame returns by way of another
VTEP. If the MAC stays at one remote, one of two hosts is reachable instead of neither. A loop is
broken for frames from the MAC, since they are dropped on their way back.
"""

from collections import deque
from typing import Final

WINDOW_S: Final = 180.0
"""Seconds in which moves are counted: M in RFC 7432, section 15.1."""

_MACS_MAX: Final = 4096
"""MACs whose moves are remembered, and MACs that are held. They bound the memory that two remotes
can take by moving many MACs: then the oldest ones are forgotten."""


class MoveLimit:
    """The recent moves of MACs, and the MACs that are held.

    A MAC may move `limit` times within `WINDOW_S`; 0 means no limit. The next move fails, and the
    MAC is held for `hold` seconds. Times are in seconds of any monotonic clock.
    """

    def __init__(self, limit: int = 0, hold: float = 0.0) -> None:
        self.limit = limit
        self.hold = hold
        # Both in the order of the last change, so that the oldest ones are found at once.
        self._moves: dict[bytes, deque[float]] = {}
        self._held: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Return the number of MACs that are held."""
        return len(self._held)

    def held_until(self, mac: bytes) -> float | None:
        """Return the time until which a MAC is held, or None."""
        return self._held.get(mac)

    def note(self, mac: bytes, now: float) -> bool:
        """Note that a MAC is about to move.

        Returns: True if it may move. False if it is held, from now on or already.
        """
        until = self._held.get(mac)
        if until is not None:
            if now < until:
                return False
            del self._held[mac]
        moves = self._moves.pop(mac, None)
        if moves is None:
            if len(self._moves) >= _MACS_MAX:
                del self._moves[next(iter(self._moves))]
            moves = deque()
        while moves and moves[0] <= now - WINDOW_S:
            moves.popleft()
        if len(moves) >= self.limit:
            # Its history is forgotten: after the hold it may move as often as any other.
            if len(self._held) >= _MACS_MAX:
                del self._held[next(iter(self._held))]
            self._held[mac] = now + self.hold
            return False
        moves.append(now)
        self._moves[mac] = moves
        return True

    def release(self, mac: bytes) -> bool:
        """Forget a MAC. Returns: True if it was held."""
        self._moves.pop(mac, None)
        return self._held.pop(mac, None) is not None

    def take_expired(self, now: float) -> list[bytes]:
        """Remove and return the MACs that are held no longer."""
        expired = [mac for mac, until in self._held.items() if until <= now]
        for mac in expired:
            del self._held[mac]
        return expired
