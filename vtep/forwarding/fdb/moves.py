"""MAC move dampening: a MAC that moves between remotes too often is held at one of them.

RFC 7432, section 15.1, detects duplicate MACs by more than N = 5 moves in M = 180 s. The usual
causes are two hosts with one MAC, and a loop, through which each frame returns by way of another
VTEP. If the MAC stays at one remote, one of two hosts is reachable instead of neither. A loop is
broken for frames from the MAC, since they are dropped on their way back.

A virtual machine that migrates again and again also exceeds the limit. But its former place is
silent, so its MAC is released soon.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

WINDOW_S: Final = 180.0
"""Seconds in which moves are counted: M in RFC 7432, section 15.1."""

SILENCE_S: Final = 5.0
"""Seconds without a frame from where a MAC is held, after which it may move once. Of two hosts with
one MAC, that is the one that is active. After a loop has ended, that is the right one."""

_MACS_MAX: Final = 4096
"""MACs whose moves are remembered, and MACs that are held. They bound the memory that two remotes
can take by moving many MACs: then the oldest ones are forgotten."""


class MoveLimit:
    """The recent moves of MACs, and the MACs that are held.

    A MAC may move `limit` times within `WINDOW_S`; 0 means no limit. The next move fails, and the
    MAC is held for `hold` seconds. Times are in seconds of any monotonic clock.

    `on_released` is called with each MAC that is held no longer, except by `release`.
    """

    def __init__(
        self,
        limit: int = 0,
        hold: float = 0.0,
        on_released: Callable[[bytes], None] = lambda _mac: None,
    ) -> None:
        self.limit = limit
        self.hold = hold
        self._on_released = on_released
        # Both in the order of the last change, so that the oldest ones are found at once.
        self._moves: dict[bytes, deque[float]] = {}
        self._held: dict[bytes, float] = {}

    def __len__(self) -> int:
        """Return the number of MACs that are held."""
        return len(self._held)

    @property
    def held(self) -> tuple[bytes, ...]:
        """The MACs that are held, those that are held for longest first."""
        return tuple(self._held)

    def configure(self, limit: int, hold: float) -> None:
        """Set the limit, and the seconds of holds that begin from now on."""
        self.limit, self.hold = limit, hold
        if not limit:
            self._moves.clear()
            for mac in self.held:
                self._end_hold(mac)

    def held_until(self, mac: bytes) -> float | None:
        """Return the time until which a MAC is held, or None."""
        return self._held.get(mac)

    def is_held(self, mac: bytes) -> bool:
        """Return True if a MAC is held."""
        return mac in self._held

    def count(self, mac: bytes, now: float) -> int:
        """Return how often a MAC has moved within `WINDOW_S`; 0 while moves are not limited."""
        return sum(at > now - WINDOW_S for at in self._moves.get(mac, ()))

    def note(self, mac: bytes, now: float, last_seen: float) -> bool:
        """Note that a MAC is about to move from where a frame from it was last seen at `last_seen`.

        Returns: True if it may move. False if it is held, from now on or already.
        """
        until = self._held.get(mac)
        if until is not None and now < until and now - last_seen < SILENCE_S:
            return False
        moves = self._moves.pop(mac, None) or deque()
        while moves and moves[0] <= now - WINDOW_S:
            moves.popleft()
        if until is not None:
            if now >= until:  # After the hold it may move as often as any other.
                moves.clear()
            elif moves:
                # It has moved too often, and may move once more: not sooner than it is silent
                # again. The number of moves stays the same, and so does the memory.
                moves.popleft()
            self._end_hold(mac)
        elif len(moves) >= self.limit:
            self._remember(mac, moves)
            if len(self._held) >= _MACS_MAX:
                self._end_hold(next(iter(self._held)))
            self._held[mac] = now + self.hold
            return False
        moves.append(now)
        self._remember(mac, moves)
        return True

    def release(self, mac: bytes) -> bool:
        """Forget a MAC. Returns: True if it was held."""
        self._moves.pop(mac, None)
        return self._held.pop(mac, None) is not None

    def expire(self, now: float) -> None:
        """Release the MACs whose time is over, and forget their moves."""
        for mac in [mac for mac, until in self._held.items() if until <= now]:
            self._moves.pop(mac, None)
            self._end_hold(mac)

    def export(self, now: float) -> Iterator[tuple[bytes, list[float], float]]:
        """Yield each MAC with the ages of its moves and the time left of its hold, 0 without one.

        Times are in seconds. Those that are held come first, in their order, then those that moved.
        """
        for mac in (*self._held, *(mac for mac in self._moves if mac not in self._held)):
            ages = [now - at for at in self._moves.get(mac, ())]
            yield mac, ages, max(0.0, self._held.get(mac, now) - now)

    def restore(self, mac: bytes, ages: Sequence[float], left: float, now: float) -> None:
        """Restore the moves and the hold of a MAC, as `export` has yielded them elsewhere."""
        if not self.limit:
            return
        if ages:
            self._moves.pop(mac, None)
            self._remember(mac, deque(now - age for age in ages))
        if left > 0 and len(self._held) < _MACS_MAX:
            self._held[mac] = now + left

    def _remember(self, mac: bytes, moves: deque[float]) -> None:
        if len(self._moves) >= _MACS_MAX:
            del self._moves[next(iter(self._moves))]
        self._moves[mac] = moves

    def _end_hold(self, mac: bytes) -> None:
        del self._held[mac]
        self._on_released(mac)
