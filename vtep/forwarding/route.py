"""The decision about a frame from the TAP."""

from typing import ClassVar, TypeAlias

from attrs import frozen

from vtep.counters import Drop
from vtep.forwarding.fdb import Entry, Remote


@frozen(eq=False)
class NoRoute:
    """The route of a frame that is dropped."""

    reason: Drop
    detail: bytes | None = None
    """The destination MAC, if the log is to show it."""
    destinations: ClassVar[tuple[Remote, ...]] = ()
    """As in an entry: there are none."""


Route: TypeAlias = Entry | NoRoute
"""The decision about a frame: the FDB entry to whose `destinations` it goes, or a drop `reason`.

An entry stands for itself, so that a route needs no object for each frame, and so that consecutive
frames with the same route are recognised by identity.
"""
