"""The choice between single receives and receives of many datagrams."""

from typing import Final

from vtep.io.interfaces import Receiver

SINGLES_IN_A_ROW: Final = 8
"""Datagrams that arrive singly, one behind the other, after which many are received at a time."""

_FEW = 4
"""Datagrams in a receive of many, below which as many single receives take no longer."""

_UNSUITABLE_TURNS_MAX = 8


class ReceiveMode:
    """The receivers whose datagrams are received many at a time (recvmmsg).

    Where datagrams arrive singly, a system call for each is much of the cost, and frames that are
    not merged cost the host as much again: TCP is 2.5 times as fast with receives of many. Where
    the kernel joins datagrams (UDP_GRO), or where one is awaited at a time, single receives are
    faster. So a receiver begins with those, and changes in the middle of a turn in which
    `SINGLES_IN_A_ROW` datagrams arrive singly. It changes back after several turns in a row that
    had few datagrams, or mostly batches. That it takes several keeps a stream with short pauses,
    or with a batch now and then, from changing each turn.
    """

    def __init__(self) -> None:
        # For each receiver, the turns in a row for which the mode did not suit.
        self._unsuitable: dict[Receiver, int] = {}

    def __contains__(self, receiver: Receiver) -> bool:
        """Return whether many datagrams are to be received at a time."""
        return receiver in self._unsuitable

    def enter(self, receiver: Receiver) -> None:
        """Receive many datagrams at a time from now on."""
        self._unsuitable[receiver] = 0

    def leave(self, receiver: Receiver) -> None:
        """Receive singly from now on."""
        self._unsuitable.pop(receiver, None)

    def clear(self) -> None:
        """Receive singly from all receivers."""
        self._unsuitable.clear()

    def end_turn(self, receiver: Receiver, datagrams: int, singles: int) -> None:
        """Decide about the next turn.

        `datagrams` is how many the largest receive of this turn returned, a batch of the kernel
        counting as one, and `singles` is how many of them were none.
        """
        if datagrams >= _FEW and 2 * singles > datagrams:
            self._unsuitable[receiver] = 0
            return
        turns = self._unsuitable.get(receiver, 0) + 1
        self._unsuitable[receiver] = turns
        if turns > _UNSUITABLE_TURNS_MAX:
            self.leave(receiver)
