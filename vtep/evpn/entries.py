"""Entries of a VNI: MACs, addresses, and VTEPs that want flooded frames. No I/O."""

from typing import TYPE_CHECKING, NamedTuple

from vtep.evpn.duplicates import Place
from vtep.evpn.rib import RibRoute
from vtep.forwarding.fdb import SEQUENCE_MAX
from vtep.wire.address import Address
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute

if TYPE_CHECKING:
    from vtep.evpn.announcement import Announcement

FORMER = ""
"""The name of the peer that stands for a former speaker: its entries are routes of this peer."""


class Local(NamedTuple):
    """A local MAC. One that is `static`, of a gateway, or of this host (`own`), does not move."""

    sequence: int
    static: bool
    gateway: bool
    own: bool = False

    @property
    def is_pinned(self) -> bool:
        """True if no remote route takes its place."""
        return self.static or self.gateway or self.own


class FdbState(NamedTuple):
    """An FDB entry as it is in the daemon."""

    vtep: Address
    dst_vni: int | None
    sequence: int
    sticky: bool


class MacEntry:
    """A MAC: its routes, whether it is local, and what was done about it."""

    __slots__ = (
        "announced",
        "bridged",
        "fdb",
        "has_alerted",
        "is_known",
        "local",
        "place",
        "routes",
        "since",
        "winner",
    )

    def __init__(self, place: tuple[Place] | None) -> None:
        self.routes: list[RibRoute] = []
        self.local: Local | None = None
        self.winner: RibRoute | Local | None = None
        """The best route, or the local MAC; None without either, or if it is held elsewhere."""
        self.is_known = place is not None
        """True if it has a place, or had the one of `place`."""
        self.place: Place = place[0] if place else None
        self.since = 0.0
        """The time when it came to its place, in seconds."""
        self.fdb: FdbState | None = None
        self.bridged: bool | None = None
        """True if its entry on the bridge port is sticky; None without one."""
        self.announced: Announcement | None = None
        self.has_alerted = False
        """True if a conflict about a sticky MAC was logged."""

    @property
    def is_empty(self) -> bool:
        """True if nothing is left to be done or remembered."""
        return (
            not self.routes
            and self.local is None
            and self.fdb is None
            and self.bridged is None
            and self.announced is None
        )

    def next_sequence(self) -> int:
        """Return the sequence number for a MAC that moves to this host (RFC 7432, section 7.7)."""
        if not self.routes:
            return 0
        return min(max(route.shared.sequence for route in self.routes) + 1, SEQUENCE_MAX)


class IpEntry:
    """An IP address: its routes, its local neighbour, and what was done about it."""

    __slots__ = ("announced", "local", "neighbour", "routes")

    def __init__(self) -> None:
        self.routes: list[RibRoute] = []
        self.local: tuple[bytes, bool] | None = None
        """MAC and router flag of the local neighbour."""
        self.neighbour: tuple[bytes, bool] | None = None
        """The same of the installed neighbour, which is remote."""
        self.announced: Announcement | None = None

    @property
    def is_empty(self) -> bool:
        """True if nothing is left to be done."""
        return (
            not self.routes
            and self.local is None
            and self.neighbour is None
            and self.announced is None
        )


def best_route(routes: list[RibRoute]) -> RibRoute | None:
    """Return the route that says where a MAC is.

    A sticky one comes first, then the highest sequence number, then the lowest VTEP address (RFC
    7432, sections 7.7 and 15.2). Entries of a former speaker come last. Of equal ones, which
    several peers reflect, it is the one that came first.
    """
    if len(routes) <= 1:
        return routes[0] if routes else None
    best = routes[0]
    for route in routes[1:]:
        if _is_better(route, best):
            best = route
    return best


def _is_better(route: RibRoute, than: RibRoute) -> bool:
    ours, theirs = route.shared, than.shared
    if (ours.rib.peer == FORMER) != (theirs.rib.peer == FORMER):
        return theirs.rib.peer == FORMER
    if ours.attributes.sticky != theirs.attributes.sticky:
        return ours.attributes.sticky
    if ours.sequence != theirs.sequence:
        return ours.sequence > theirs.sequence
    return ours.order < theirs.order


def place_of(winner: RibRoute | Local) -> Place:
    """Return where a MAC is: at a VTEP, or None for this host."""
    return winner.vtep if isinstance(winner, RibRoute) else None


def sequence_of(winner: RibRoute | Local) -> int:
    """Return the mobility sequence number of a place."""
    return winner.shared.sequence if isinstance(winner, RibRoute) else winner.sequence


def rank_of(received: RibRoute) -> tuple[bool, int]:
    """Return a value that is greater for a route that wins: sticky, then by sequence number."""
    return received.shared.attributes.sticky, received.shared.sequence


def is_same_site(entry: MacEntry, winner: RibRoute | Local) -> bool:
    """Return True if a MAC only changes between VTEPs of one Ethernet segment.

    That is no move (RFC 7432, section 7.7), as the site is connected to all of them.
    """
    before = entry.winner
    if not isinstance(before, RibRoute) or not isinstance(winner, RibRoute):
        return False
    old, new = before.route, winner.route
    return (
        isinstance(old, MacIpRoute) and isinstance(new, MacIpRoute) and old.esi == new.esi != NO_ESI
    )


def held_winner(entry: MacEntry) -> RibRoute | Local | None:
    """Return what keeps a MAC where it is; None if it is not there any more."""
    if entry.place is None:
        return entry.local
    return best_route([route for route in entry.routes if route.vtep == entry.place])
