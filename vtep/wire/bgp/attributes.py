"""Path attributes of EVPN routes (RFC 4271, section 5; RFC 4760; RFC 6514; RFC 7432, section 7)."""

from ipaddress import IPv4Address

from attrs import frozen

from vtep.wire.address import Address
from vtep.wire.bgp.communities import ENCAPSULATION_VXLAN, RouteTarget

INGRESS_REPLICATION = 6
"""The PMSI tunnel type of VTEPs that flood by unicast (RFC 6514, section 5)."""


@frozen
class Pmsi:
    """The PMSI Tunnel attribute of type 3 routes (RFC 6514, section 5; RFC 8365, section 9).

    `label` is the raw field of 24 bits, which is the VNI. `endpoint` is None unless the tunnel type
    is ingress replication.
    """

    flags: int
    tunnel_type: int
    label: int
    endpoint: Address | None


@frozen
class PathAttributes:
    """The path attributes of routes.

    `next_hop` is None in attributes to announce that take the local address of the session.
    `sequence` and `sticky` are of the MAC Mobility community (RFC 7432, section 7.7); `router` is the
    R flag of the ARP/ND community (RFC 9047). `as_path` has all AS numbers, first the nearest one,
    without the boundaries of segments.
    """

    next_hop: Address | None = None
    route_targets: frozenset[RouteTarget] = frozenset()
    encapsulations: frozenset[int] = frozenset({ENCAPSULATION_VXLAN})
    sequence: int = 0
    sticky: bool = False
    default_gateway: bool = False
    router: bool = False
    pmsi: Pmsi | None = None
    as_path: tuple[int, ...] = ()
    origin: int = 0
    local_pref: int | None = None
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()
