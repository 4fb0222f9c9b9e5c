"""Whether a superframe that left whole has arrived: its receiver says so, by acknowledging it.

So nobody at the remote needs to know of us. What is lost is only that one superframe, if it is, and
whoever sent it sends it again, in pieces. Those would be acknowledged, too: from then on nothing is
to be learned any more. Where others were lost before it, those are sent again first, and there may
be no end of that: so it is taken for lost, too, if there is no acknowledgement in a second.
"""

from collections.abc import Callable
from enum import Enum, auto
from struct import Struct
from typing import TypeAlias

from vtep.offload.headers import Cut
from vtep.wire import Buffer
from vtep.wire import ip as inet

_LIFE = 1.0
"""Seconds after which nothing more will be learned of it."""

_WRAP = 1 << 32
_NUMBERS = Struct("!II")
_PORTS_LEN = 4
_NUMBERS_AT = 4
"""Where the sequence and the acknowledgement number are in a TCP header."""


class Fate(Enum):
    """What has become of a superframe that left whole."""

    ARRIVED = auto()
    LOST = auto()
    UNKNOWN = auto()
    """As where the connection ended."""


Judge: TypeAlias = Callable[[Fate, int, float], None]
"""Told what has become of a superframe, how many octets it had, and when that was known."""


class Trial:
    """One superframe of TCP, cut so, without IP options or extension headers, that leaves at `now`.

    `judge` is told once.
    """

    def __init__(self, frame: Buffer, cut: Cut, judge: Judge, now: float) -> None:
        where = cut.where
        self._there = _flow(frame, where)
        half = (len(self._there) - _PORTS_LEN) // 2
        ports = self._there[-_PORTS_LEN:]
        back = self._there[half : 2 * half] + self._there[:half]
        self._back = back + ports[2:] + ports[:2]
        self._first, _ = _NUMBERS.unpack_from(frame, where.offset + _NUMBERS_AT)
        self._octets = where.length - cut.transport_len
        self._len = len(frame)
        self._judge = judge
        self._until = now + _LIFE
        self._older = False  # Whether something from before it was sent again.
        self.is_over = False

    def _end(self, fate: Fate, now: float) -> None:
        if not self.is_over:
            self.is_over = True
            self._judge(fate, self._len, now)

    def leaving(self, frame: Buffer, now: float) -> None:
        """Look at a frame or superframe, of at least 14 octets, that leaves after it.

        Each is to be shown, until it is over, but for those that leave in the same turn: what has
        been lost takes a way back at least to be sent again.
        """
        where = inet.transport(frame)
        if where is not None and where.protocol == inet.TCP and _flow(frame, where) == self._there:
            sequence, _ = _NUMBERS.unpack_from(frame, where.offset + _NUMBERS_AT)
            octets = where.length - inet.tcp_header_len(frame, where)
            before = (self._first - sequence) % _WRAP
            if (sequence - self._first) % _WRAP < self._octets or before < octets:
                self._end(Fate.LOST, now)
            elif octets and before < _WRAP // 2:
                self._older = True
        if now > self._until:
            self._end(Fate.LOST if self._older else Fate.UNKNOWN, now)

    def arriving(self, frame: Buffer, now: float) -> None:
        """Look at a frame, of at least 14 octets, from the underlay; some may be left out."""
        where = inet.transport(frame)
        if where is None or where.protocol != inet.TCP or _flow(frame, where) != self._back:
            return
        flags = frame[where.offset + inet.TCP_FLAGS]
        _, acknowledged = _NUMBERS.unpack_from(frame, where.offset + _NUMBERS_AT)
        beyond = (acknowledged - self._first) % _WRAP
        if flags & inet.TCP_FLAG_ACK and self._octets <= beyond < _WRAP // 2:
            self._end(Fate.ARRIVED, now)
        elif flags & inet.TCP_FLAG_RST:
            self._end(Fate.UNKNOWN, now)


def _flow(frame: Buffer, where: inet.Transport) -> bytes:
    """Addresses and ports."""
    ports = frame[where.offset : where.offset + _PORTS_LEN]
    return bytes(inet.addresses(frame, where)) + bytes(ports)
