"""FDB entries: state and flags, what learning does to them, and filters that select them."""

from collections.abc import Iterable
from enum import Enum, StrEnum, auto
from typing import ClassVar

from attrs import define, field, frozen

from vtep.forwarding.fdb.origin import EXTERN_LEARN, LOCAL, DestinationOrigin
from vtep.forwarding.fdb.remote import Remote


class EntryState(StrEnum):
    """The state of an entry, with the names of `bridge fdb`."""

    PERMANENT = "permanent"
    """It does not change by itself, and frames from its MAC are accepted from its destinations
    only."""
    STATIC = "static"
    """The same as permanent. Both exist so that tools can tell them apart, as in the kernel."""
    DYNAMIC = "dynamic"
    """It moves to the remote that its MAC is received from, and expires."""


@frozen
class EntryKind:
    """The state and the flags of an entry, and the origins of its destinations.

    Nearly all entries of a large table share one object, so origins cost them no memory.
    """

    state: EntryState = EntryState.PERMANENT
    extern_learn: bool = False
    """A control plane owns all destinations of the entry, so it never ages."""
    sticky: bool = False
    """The entry ages, but does not move to another remote."""
    origins: tuple[DestinationOrigin, ...] = ()
    """The origin of each destination, in their order. It is empty if all destinations have the one
    that `extern_learn` says, without a sequence number."""
    ages: bool = field(init=False, eq=False, repr=False)
    """Derived: the entry expires, and the limits of the FDB apply to it."""

    @ages.default
    def _ages(self) -> bool:
        by_control_plane = self.extern_learn or any(each.extern_learn for each in self.origins)
        return self.state is EntryState.DYNAMIC and not by_control_plane

    def origin(self, position: int) -> DestinationOrigin:
        """Return the origin of the destination at a position."""
        if self.origins:
            return self.origins[position]
        return EXTERN_LEARN if self.extern_learn else LOCAL

    def of_destination(self, position: int) -> "EntryKind":
        """Return the kind of an entry that has only the destination at a position."""
        return self.with_origins((self.origins[position],)) if self.origins else self

    def with_origins(self, origins: Iterable[DestinationOrigin]) -> "EntryKind":
        """Return the kind with other origins, one for each destination; without any, the same."""
        origins = tuple(origins)
        if not origins:
            return self
        extern_learn = not any(each.is_local for each in origins)
        plain = EXTERN_LEARN if extern_learn else LOCAL
        if all(each is plain or each == plain for each in origins):
            origins = ()
        if extern_learn is self.extern_learn and origins == self.origins:
            return self
        return EntryKind(self.state, extern_learn, self.sticky, origins)


PERMANENT = EntryKind()
LEARNED = EntryKind(EntryState.DYNAMIC)


@define(eq=False, weakref_slot=False)
class Entry:
    """The destinations of one MAC.

    A table may have a million entries, so the class has slots and no weak references. It is also
    the route of a frame (see `forwarding.segment`), which saves an object for each frame.
    """

    reason: ClassVar[None] = None
    """The drop reason of a route: None, as an entry forwards frames."""

    mac: bytes
    destinations: tuple[Remote, ...]
    updated: float
    """Time of the last frame *from* the MAC, or of the configuration if there was none yet.

    Frames to the MAC do not count, so a silent host expires. The kernel does so since 6.15.
    """
    kind: EntryKind = LEARNED
    tx_frames: int = 0
    """Frames sent to the MAC."""
    rx_frames: int = 0
    """Frames received from the MAC."""
    index: int = -1
    """Position in the table's list of entries; -1 for the default entry, which is not in it."""

    def origins(self) -> list[tuple[Remote, DestinationOrigin]]:
        """Return the destinations in their order, each with its origin."""
        return [(each, self.kind.origin(at)) for at, each in enumerate(self.destinations)]

    def origin_of(self, destination: Remote) -> DestinationOrigin:
        """Return the origin of a destination, which is an object of `destinations`."""
        kind = self.kind
        return kind.origin(self.destinations.index(destination) if kind.origins else 0)


class EntryEvent(StrEnum):
    """A change of an entry, as reported to `Fdb.watch`."""

    ADDED = "added"
    CHANGED = "changed"
    """The destinations or the kind were changed."""
    MOVED = "moved"
    """The MAC was received from another remote."""
    HELD = "held"
    """The MAC has moved too often: it does not move for some time."""
    RELEASED = "released"
    """The MAC may move again."""
    DELETED = "deleted"
    EXPIRED = "expired"


class Learned(Enum):
    """The result of learning a source MAC."""

    REFRESHED = auto()
    """The remote was known already."""
    ADDED = auto()
    MOVED = auto()
    """Another remote was known. The entry has been changed."""
    HELD = auto()
    """Another remote is known, and the entry is held since it has moved too often: the frame comes
    from a host with the same MAC, or through a loop."""
    STICKY = auto()
    """Another remote is known, and the entry is sticky: nothing was changed."""
    CONFLICT = auto()
    """A permanent or static entry names another remote: the frame is forged or looped."""
    FULL = auto()
    """The MAC is new and the FDB is full. Frames to it are flooded."""
    OVER_QUOTA = auto()
    """The MAC is new and its remote has used up its quota. Frames to it are flooded."""


@frozen
class Filter:
    """A selection of entries and destinations: all fields apply, and None matches everything.

    The fields are those of `bridge fdb flush`, and `held`. False stands for `no...`; `nostatic`
    excludes permanent entries as well.
    """

    dst: str | None = None
    port: int | None = None
    vni: int | None = None
    via: str | None = None
    permanent: bool | None = None
    static: bool | None = None
    dynamic: bool | None = None
    extern_learn: bool | None = None
    sticky: bool | None = None
    held: bool | None = None

    def matches(self, kind: EntryKind) -> bool:
        """Return True if the fields about state and flags match, which `held` is not.

        If the destinations have different origins, the caller compares these with `extern_learn`.
        """
        state = kind.state
        state_if_static = EntryState.STATIC if self.static else EntryState.DYNAMIC
        return (
            self.permanent in (None, state is EntryState.PERMANENT)
            and (self.static is None or state is state_if_static)
            and self.dynamic in (None, state is EntryState.DYNAMIC)
            and (kind.origins != () or self.extern_learn in (None, kind.extern_learn))
            and self.sticky in (None, kind.sticky)
        )


EVERYTHING = Filter()
"""The filter that matches every destination of every entry."""
