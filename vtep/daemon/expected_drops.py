"""Drops of EVPN segments that are no fault: those before the routes of the fabric. No I/O.

A VTEP of the fabric may have the routes of this one before its own have come here. Until then, its
datagrams are of an unknown source; and frames of guests have no remote.
"""

from collections.abc import Container
from weakref import WeakKeyDictionary

from vtep.counters import Counters, Drop

_ROUTES_S = 10.0
"""Seconds without a remote in which datagrams of unknown sources are no fault yet.

Later they are: perhaps no route target matches.
"""


class ExpectedDrops:
    """Which reasons for drops of each EVPN segment are no fault now, by its counters."""

    def __init__(self) -> None:
        self._without_remote: WeakKeyDictionary[Counters, float] = WeakKeyDictionary()
        """When the segments that had no remote at their last tick were first seen so."""

    def tick(
        self, counters: Counters, now: float, *, has_remotes: bool, members: Container[str]
    ) -> tuple[Drop, ...]:
        """Return the reasons for drops since the last tick that are no fault.

        `members` are the VTEPs from which datagrams are accepted now; `now` is in seconds.
        """
        began = self._without_remote.get(counters)
        if has_remotes:
            self._without_remote.pop(counters, None)
        elif began is None:
            began = self._without_remote[counters] = now
        expected = []
        if began is not None:
            expected.append(Drop.NO_REMOTE)
        is_early = began is not None and now - began < _ROUTES_S
        if is_early or counters.last_source.get(Drop.SOURCE_UNKNOWN) in members:
            expected.append(Drop.SOURCE_UNKNOWN)
        return tuple(expected)
