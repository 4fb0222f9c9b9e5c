"""The queue of the own routes that a peer must still be sent."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from attrs import evolve

from vtep.evpn.announcement import Announcement
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.evpn import Route, RouteKey
from vtep.wire.bgp.update import END_OF_RIB, pack_updates, pack_withdrawals

_ROUTES_PER_TAKE = 256
"""Routes that one call of `Outbox.take` packs: 3 ms of processor time, so that a flood of changes
does not delay the keepalives of other sessions."""


class Outbox:
    """The changes of own routes that an established peer must still be sent.

    The latest change of a route replaces the earlier one that waits: a peer that reads slowly costs
    no more memory than there are routes.
    """

    def __init__(self, next_hop: Address, *, four_octet: bool, internal: bool, asn: int) -> None:
        self._next_hop = next_hop
        self._four_octet = four_octet
        self._internal = internal
        self._asn = asn
        # Not a dict, which looks for its first key behind all that were removed.
        self._pending: OrderedDict[RouteKey, Announcement | Route] = OrderedDict()
        """The announcement, or the route to withdraw, by the key of the route, oldest first."""
        self._sent: set[RouteKey] = set()
        self._end_of_rib_due = False

    def __bool__(self) -> bool:
        """Return True if `take` has something to send."""
        return bool(self._pending) or self._end_of_rib_due

    @property
    def announced(self) -> int:
        """The number of routes that the peer has been sent and that were not withdrawn."""
        return len(self._sent)

    def fill(self, announcements: Iterable[Announcement]) -> None:
        """Queue all own routes, with the End-of-RIB marker behind them (RFC 4724, section 2).

        This is for a new session, and the answer to a ROUTE-REFRESH message (RFC 2918).
        """
        self.announce(announcements)
        self._end_of_rib_due = True

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Queue routes that are new, or whose attributes have changed."""
        for announcement in announcements:
            key = announcement.route.key
            self._pending.pop(key, None)
            self._pending[key] = announcement

    def withdraw(self, routes: Iterable[Route]) -> None:
        """Queue the withdrawal of routes; those that the peer does not have need none."""
        for route in routes:
            key = route.key
            self._pending.pop(key, None)
            if key in self._sent:
                self._pending[key] = route

    def take(self) -> bytes:
        """Remove the oldest changes from the queue and pack them.

        Returns: whole messages; empty if nothing waits.
        """
        groups: dict[PathAttributes, list[Route]] = {}
        withdrawn: list[Route] = []
        for key in list(self._first()):
            change = self._pending.pop(key)
            if isinstance(change, Announcement):
                groups.setdefault(change.attributes, []).append(change.route)
                self._sent.add(key)
            else:
                withdrawn.append(change)
                self._sent.discard(key)
        messages = list(pack_withdrawals(withdrawn)) if withdrawn else []
        for attributes, routes in groups.items():
            messages += pack_updates(
                routes,
                self._with_next_hop(attributes),
                four_octet=self._four_octet,
                internal=self._internal,
                asn=self._asn,
            )
        if self._end_of_rib_due and not self._pending:
            self._end_of_rib_due = False
            messages.append(END_OF_RIB)
        return b"".join(messages)

    def _first(self) -> Iterator[RouteKey]:
        for key, _ in zip(self._pending, range(_ROUTES_PER_TAKE), strict=False):
            yield key

    def _with_next_hop(self, attributes: PathAttributes) -> PathAttributes:
        if attributes.next_hop is not None:
            return attributes
        return evolve(attributes, next_hop=self._next_hop)
