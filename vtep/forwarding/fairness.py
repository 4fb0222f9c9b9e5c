"""Fair sharing of a receive queue in which datagrams have waited too long.

More can arrive than can be forwarded. A queue that is first in, first out then delays the datagrams
of every flow as long as it is, and the kernel drops from all flows alike once it is full. So while
datagrams wait too long, they are received into a `FairQueue`, where each flow waits for itself
only. As in CoDel (RFC 8289), the time that datagrams have waited counts, and not their number: that
means the same at every rate and size.

A long queue alone is no overload. TCP fills every buffer up to its window, and slows down by itself
once it loses segments. So the limits are strict only after datagrams had to be discarded.

A *flow* is what has one source address and port. A VTEP derives the port from the inner flow (RFC
7348, section 5), so an inner flow has one port, which others may share by chance.
"""

from collections import deque
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

ONSET_WAIT: Final = 0.05
"""Seconds that datagrams wait at the onset of overload.

TCP connections fill the queue as well, but this long only if other processes take the processor."""

ONSET_TIME: Final = 0.05
"""Seconds for which they wait so long, and no less and less, at the onset of overload."""

ONSET_SERVE: Final = 0.05
"""Seconds of processor time in which what was received at the onset is forwarded.

It is enough for a receive buffer full of TCP segments, and not for one full of small datagrams. So
TCP connections among each other lose nothing."""

WAIT_MAX: Final = 0.006
"""Seconds that a datagram may have waited while overload lasts."""

SERVE_MAX: Final = 0.003
"""Seconds of processor time in which what was received is forwarded while overload lasts.

A datagram that arrives meanwhile waits for the end."""

OVERLOAD_MEMORY: Final = 1.0
"""Seconds without a discarded datagram after which overload has ended."""

WAIT_SHORT: Final = 0.001
"""Seconds that the head of the queue has waited when it is short enough."""

CHECK_INTERVAL: Final = 0.001
"""Seconds between looks at the queue: such a look takes some microseconds."""

_QUANTUM: Final = 64
"""Datagrams of a flow that are served in a row: a batch of the kernel (UDP_GRO_CNT_MAX)."""

_OCTETS_MAX: Final = 4 << 20
"""Octets that a queue holds: as many as the receive buffer."""

_DATAGRAMS_MAX: Final = 4096
"""Datagrams of a flow that is alone: all of them are forwarded, which takes some 40 ms."""

_COMPANY: Final = 3.0
"""Seconds after which a flow without others is alone: longer than between two pings."""

LONE_INTERVAL: Final = 0.5
"""Seconds between two passes over the queue of one flow that is alone.

Compiled turns forward it twice as fast as passes, which only find out if another flow has come."""

_T = TypeVar("_T")


class OnsetDetector:
    """Tells overload from a queue that is long because this process was held up for a while.

    The latter gets shorter by itself, as soon as the process runs again.
    """

    def __init__(self) -> None:
        # The shortest wait, or the limit, and the time since when none was shorter.
        self._shortest = ONSET_WAIT
        self._since = self._noted = 0.0

    def note(self, waited: float, now: float) -> bool:
        """Note how long a datagram has waited. Returns: True at the onset of overload.

        Both are in seconds. It is to be called for turns that may have left datagrams.
        """
        # A pause makes datagrams wait as long as it lasts: a shorter one alone is no reason.
        if waited < self._shortest or now > self._noted + ONSET_WAIT:
            self._shortest, self._since = max(waited, ONSET_WAIT), now
        self._noted = now
        return waited >= self._shortest and now >= self._since + ONSET_TIME


class FairQueue(Generic[_T]):
    """A queue with one line for each flow, served by turns (deficit round robin).

    Each round, every flow may have `_QUANTUM` datagrams served. So flows that want less than an
    equal share are served before the end of the others (max-min fairness).
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[tuple[_T, int]]] = {}
        # By flow, the datagrams that may still be served in this round; below 0, that are owed.
        self._credit: dict[Hashable, int] = {}
        self._turns: deque[Hashable] = deque()
        # Flows that have not had their turn in this round.
        self._in_round = 0
        self.rounds = 0
        """The number of rounds that have ended since it was empty."""
        self._octets = self._datagrams = 0
        # Until then, there are presumed to be other flows, even if none is seen.
        self._company_until = 0.0

    def __bool__(self) -> bool:
        """Return True unless it is empty."""
        return bool(self._turns)

    @property
    def is_full(self) -> bool:
        """True if nothing more should be added."""
        is_long = self._datagrams >= _DATAGRAMS_MAX and len(self._lines) == 1
        return is_long or self._octets >= _OCTETS_MAX

    def add(self, flow: Hashable, item: _T, datagrams: int, octets: int) -> None:
        """Add an item, with so many datagrams and octets, at the end of the line of its flow."""
        line = self._lines.get(flow)
        if line is None:
            line = self._lines[flow] = deque()
            self._credit[flow] = _QUANTUM
            self._turns.append(flow)
            self._in_round += 1
        line.append((item, datagrams))
        self._octets += octets
        self._datagrams += datagrams

    def take(self) -> _T:
        """Remove and return the next item. Raises: IndexError if there is none."""
        turns = self._turns
        while self._credit[turns[0]] <= 0:
            self._credit[turns[0]] += _QUANTUM
            turns.rotate(-1)
            self._end_turn()
        flow = turns[0]
        item, datagrams = self._lines[flow].popleft()
        self._credit[flow] -= datagrams
        if not self._lines[flow]:
            del self._lines[flow], self._credit[flow]
            turns.popleft()
            self._end_turn()
        if not turns:
            self._octets = self._datagrams = self._in_round = self.rounds = 0
        return item

    def _end_turn(self) -> None:
        """Count the turn of a flow that was rotated or removed."""
        self._in_round -= 1
        if self._in_round == 0:
            self.rounds += 1
            self._in_round = len(self._turns)

    def is_shared(self, now: float) -> bool:
        """Return True if it has several flows, or had lately (`now` is in seconds).

        A loss would only harm a flow that is alone: no other one gains anything.
        """
        if len(self._lines) > 1:
            self._company_until = now + _COMPANY
        return now < self._company_until
