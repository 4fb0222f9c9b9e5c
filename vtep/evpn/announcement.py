"""Own routes, as they are given to the sessions."""

from typing import NamedTuple

from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.evpn import Route


class Announcement(NamedTuple):
    """An own route with its attributes.

    Without a next hop in `attributes`, it is the local address of each session.
    """

    route: Route
    attributes: PathAttributes
