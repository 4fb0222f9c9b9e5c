"""The echo of VTEPs: whether datagrams pass between two of them, of what size, how fast. No I/O.

A question is a datagram to the VXLAN port with a VXLAN header whose I flag is clear, so that every
other VTEP drops it (RFC 7348, section 5). A pyvtep answers it, to those that one of its segments
listens to and to nobody else: at most so often, and never with more octets than were asked with.
An answer looks the same, but is no question, so nothing is ever said of it.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------------------------------------------------------+
    |                        VXLAN header, I = 0                    |
    |                     VNI                       |       0       |
    +-----------------------------------------------+---------------+
    |                            magic                              |
    |                                                               |
    +---------------+---------------+---------------+---------------+
    |    version    |     kind      |     about     |    status     |
    +---------------+---------------+---------------+---------------+
    |               0               |             port              |
    +-------------------------------+-------------------------------+
    |                            token                              |
    |                                                               |
    +---------------------------------------------------------------+
    |                           sequence                            |
    +-------------------------------+-------------------------------+
    |            octets             |        0, to any length       |
    +-------------------------------+-------------------------------+

The answer goes to the address that the question came from, and there to `port`, which is chosen by
who asks: the VXLAN port, which is where frames go, so that a firewall treats both alike; or the one
that was asked from, behind which a firewall expects an answer. Other ports would be a way to have
us write to somebody's service, so there is no answer for them but in the range that VTEPs send
from. That a NAT may change ports does not matter: frames don't pass there either.
"""

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Self

from attrs import evolve, frozen

from vtep.wire import Buffer, vxlan

_FORMAT = Struct("!II8sBBBBHH8sIH")
_MAGIC = b"pyvtepEC"
_VERSION = 1

SIZE = _FORMAT.size
"""Octets of the shortest question and answer."""

TOKEN_LEN = 8

_ABOUT_HOST, _ABOUT_VNI = range(2)


class Kind(IntEnum):
    """What is asked from what is answered."""

    QUESTION = 1
    ANSWER = 2


class Status(IntEnum):
    """What the VTEP that was asked says of the VNI in question, and of who asked."""

    FINE = 0
    VNI_UNKNOWN = 1
    """It has no such VNI."""
    SOURCE_UNKNOWN = 2
    """It has, but in it, it does not listen to the address that asked; in others it does."""


@frozen
class Probe:
    """A question or an answer."""

    kind: Kind
    vni: int | None
    """The VNI that it is about, if about any."""
    port: int
    """Where the answer is to go."""
    token: bytes
    """By which who asks knows his answers from those to others: `TOKEN_LEN` octets."""
    sequence: int
    octets: int
    """UDP payload: how long the answer is to be; in an answer, how long the question was."""
    status: Status = Status.FINE

    def pack(self, size: int = SIZE) -> bytes:
        """The datagram, padded to this size in octets."""
        head = _FORMAT.pack(
            *(0, (self.vni or 0) << 8, _MAGIC, _VERSION, self.kind),
            *(_ABOUT_HOST if self.vni is None else _ABOUT_VNI, self.status, 0),
            *(self.port, self.token, self.sequence, self.octets),
        )
        return head.ljust(size, b"\0")

    @classmethod
    def parse(cls, datagram: Buffer) -> Self | None:
        """What a datagram says; None if it is no probe, or one of another version."""
        if len(datagram) < SIZE:
            return None
        fields = _FORMAT.unpack_from(datagram)
        flags, vni, magic, version, kind, about, status, zero, port, token, sequence, octets = (
            fields
        )
        if (magic, version, zero) != (_MAGIC, _VERSION, 0) or flags & vxlan.FLAG_I or vni & 0xFF:
            return None
        try:
            of_kind, of_status = Kind(kind), Status(status)
        except ValueError:
            return None
        if about not in (_ABOUT_HOST, _ABOUT_VNI):
            return None
        about_vni = vni >> 8 if about == _ABOUT_VNI else None
        return cls(of_kind, about_vni, port, token, sequence, octets, of_status)

    def answer(self, arrived: int, status: Status) -> bytes:
        """The answer to this question, which arrived with so many octets."""
        size = max(SIZE, min(self.octets, arrived))
        return evolve(self, kind=Kind.ANSWER, octets=arrived, status=status).pack(size)

    def may_be_answered(self, vxlan_port: int) -> bool:
        """Whether it is a question whose answer would go to a VTEP's port."""
        to_vtep = self.port == vxlan_port or self.port in vxlan.SOURCE_PORTS
        return self.kind is Kind.QUESTION and to_vtep


class Allowance:
    """How often something may be done: `rate` times a second in the long run, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether it may be done once at `now` (seconds), which then counts as done."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        if self._left < 1:
            return False
        self._left -= 1
        return True


Passes = Callable[[int], tuple[bool, int | None]]
"""Whether a size in octets passes, and what size does as told by whoever let it not."""


def largest(low: int, high: int, passes: Passes) -> int | None:
    """The largest size that passes, of those from `low` to `high`; None if none does.

    What somebody on the way tells is believed once it was seen to pass.
    """
    best, size = None, high
    while low <= high:
        passed, told = passes(size)
        if passed:
            best, low = size, size + 1
        else:
            high = size - 1
        if told is not None and low <= told <= high:
            passed, _ = passes(told)
            if passed:
                return told
            high = told - 1
        size = (low + high + 1) // 2
    return best
