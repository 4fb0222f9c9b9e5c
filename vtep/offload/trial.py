"""Whether a superframe that left whole has arrived: its receiver says so, by acknowledging it.

So nobody at the remote needs to know of us. What is lost is only that one superframe, if it is, and
whoever sent it sends it again, in pieces. Those would be acknowledged, too: from then on nothing is
to be learned any more.
"""

from collections.abc import Callable
from struct import Struct

from vtep.offload.headers import Cut
from vtep.wire import Buffer
from vtep.wire import ip as inet

_LIFE = 1.0
"""Seconds after which it no longer matters."""

_WRAP = 1 << 32
_NUMBERS = Struct("!II")
_PORTS_LEN = 4
_NUMBERS_AT = 4
"""Where the sequence and the acknowledgement number are in a TCP header."""


class Trial:
    """One superframe of TCP, cut so, without IP options or extension headers, that leaves at `now`.

    `ended` is called once, with how many octets are known to have arrived, all or none, and the
    time.
    """

    def __init__(
        self, frame: Buffer, cut: Cut, ended: Callable[[int, float], None], now: float
    ) -> None:
        where = cut.where
        self._there = _flow(frame, where)
        half = (len(self._there) - _PORTS_LEN) // 2
        ports = self._there[-_PORTS_LEN:]
        back = self._there[half : 2 * half] + self._there[:half]
        self._back = back + ports[2:] + ports[:2]
        self._first, _ = _NUMBERS.unpack_from(frame, where.offset + _NUMBERS_AT)
        self._len = len(frame)
        self._octets = where.length - cut.transport_len
        self._ended = ended
        self._until = now + _LIFE
        self.is_over = False

    def _end(self, now: float, *, arrived: bool) -> None:
        if not self.is_over:
            self.is_over = True
            self._ended(self._len if arrived else 0, now)

    def leaving(self, frame: Buffer, now: float) -> None:
        """Look at a frame or superframe, of at least 14 octets, that leaves after it.

        Each is to be shown, until it is over, but for those that leave in the same turn: what has
        been lost takes a way back at least to be sent again.
        """
        where = inet.transport(frame)
        if now > self._until:
            self._end(now, arrived=False)
        elif where is not None and where.protocol == inet.TCP:
            sequence, _ = _NUMBERS.unpack_from(frame, where.offset + _NUMBERS_AT)
            again = (sequence - self._first) % _WRAP < self._octets
            if again and _flow(frame, where) == self._there:
                self._end(now, arrived=False)

    def arriving(self, frame: Buffer, now: float) -> None:
        """Look at a frame, of at least 14 octets, from the underlay; others may be left out."""
        where = inet.transport(frame)
        if where is None or where.protocol != inet.TCP or _flow(frame, where) != self._back:
            return
        _, acknowledged = _NUMBERS.unpack_from(frame, where.offset + _NUMBERS_AT)
        beyond = (acknowledged - self._first) % _WRAP
        if frame[where.offset + inet.TCP_FLAGS] & inet.TCP_FLAG_ACK and (
            self._octets <= beyond < _WRAP // 2
        ):
            self._end(now, arrived=True)


def _flow(frame: Buffer, where: inet.Transport) -> bytes:
    """Addresses and ports."""
    ports = frame[where.offset : where.offset + _PORTS_LEN]
    return bytes(inet.addresses(frame, where)) + bytes(ports)
