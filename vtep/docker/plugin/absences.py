"""Things of this host that the engine does not have: not yet, or not any more. No I/O."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

GRACE_S = 60.0
"""Seconds after which the engine is taken to have forgotten what it does not list.

It lists an endpoint only after all of it was made. That takes up to 40 s: both of its addresses are
requested one after the other.
"""

T = TypeVar("T", bound=Hashable)


class Absences(Generic[T]):
    """Things that the engine does not list, and since when.

    A thing that is `suspect` from the beginning has no grace: it was there when this process
    started, so the engine has had its time.
    """

    def __init__(self, suspect: Iterable[T] = ()) -> None:
        self._since = dict.fromkeys(suspect, float("-inf"))

    def overdue(self, absent: Iterable[T], now: float) -> set[T]:
        """Return what has been absent for too long, of all that is absent at a time."""
        self._since = {each: self._since.get(each, now) for each in absent}
        return {each for each, since in self._since.items() if now >= since + GRACE_S}

    def forget(self, thing: T) -> None:
        """Give a thing its grace anew, such as an address that another container gets."""
        self._since.pop(thing, None)
