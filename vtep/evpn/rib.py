"""Routes as received: one Adj-RIB-In for each peer (RFC 4271, section 3.2). No I/O."""

from collections.abc import Iterator
from ipaddress import IPv6Address

from vtep.evpn.import_policy import Match
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes
from vtep.wire.bgp.evpn import MacIpRoute, MulticastRoute, RouteKey
from vtep.wire.ethernet import MAC_ZERO

Order = tuple[int, int]
"""IP version and numeric address of a VTEP: the lowest one wins a tie."""


def order_of(vtep: Address) -> Order:
    """Return where an address is in the order of VTEPs, with IPv4 before IPv6."""
    return vtep.version, int(vtep)


_NEW = Match(None, "new")


class AttributeSet:
    """The attributes of all routes of an UPDATE message, and what follows from them.

    `vtep` is the next hop, with the scope of the session if it is link-local, and `endpoint` the
    VTEP of its type 3 routes: that of the PMSI tunnel, else the next hop.
    """

    __slots__ = ("attributes", "endpoint", "epoch", "matches", "order", "rib", "sequence", "vtep")

    def __init__(self, rib: "AdjRibIn", attributes: PathAttributes) -> None:
        self.rib = rib
        self.attributes = attributes
        self.sequence = attributes.sequence
        self.vtep = rib.scoped(attributes.next_hop)
        self.order: Order = (0, 0) if self.vtep is None else order_of(self.vtep)
        pmsi = attributes.pmsi
        self.endpoint = self.vtep
        if (
            pmsi is not None
            and pmsi.tunnel_type == INGRESS_REPLICATION
            and pmsi.endpoint is not None
            and not pmsi.endpoint.is_unspecified
        ):
            self.endpoint = rib.scoped(pmsi.endpoint)
        self.matches: dict[tuple[int | None, bool, bool], Match] = {}
        """Results of the import policy in `epoch`: most routes of a message have the same one."""
        self.epoch = -1


class RibRoute:
    """A route of type 2 or 3 of one peer; `mac` is zero in type 3."""

    __slots__ = ("generation", "ip", "label", "mac", "match", "route", "shared", "since", "vtep")

    def __init__(
        self, shared: AttributeSet, route: MacIpRoute | MulticastRoute, since: float
    ) -> None:
        self.shared = shared
        self.route = route
        self.generation = shared.rib.generation
        """The session by which it came: it is stale if that is not the present one."""
        self.since = since
        self.match = _NEW
        """The result of the import policy."""
        self.ip: Address | None = route.ip
        """The address of its MAC; None without one, or if the import policy refuses it."""
        self.label: int | None
        """The VNI in its label; None for a type 3 route without a PMSI attribute."""
        if isinstance(route, MacIpRoute):
            self.mac = route.mac
            self.label = route.label
            self.vtep = shared.vtep
        else:
            self.mac = MAC_ZERO
            pmsi = shared.attributes.pmsi
            self.label = None if pmsi is None else pmsi.label
            self.vtep = shared.endpoint

    @property
    def is_usable(self) -> bool:
        """True if a VNI imports it and can send to its VTEP."""
        return self.match.reason is None

    @property
    def is_stale(self) -> bool:
        """True if it was not announced since the session ended."""
        return self.generation != self.shared.rib.generation


class AdjRibIn:
    """The routes of a peer. Routes of types that are not used are only counted."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        _, _, self.scope = peer.partition("%")
        self.routes: dict[RouteKey, RibRoute] = {}
        self.others: dict[int, set[RouteKey]] = {}
        self.generation = 0
        self.is_established = False
        self.has_ended_rib = False
        """True after End-of-RIB in the present session."""
        self.stale_until: float | None = None
        """The time when stale routes are removed without End-of-RIB; None if there are none."""

    def scoped(self, address: Address | None) -> Address | None:
        """Return an address, with the scope of the session if it needs one (RFC 4007)."""
        if isinstance(address, IPv6Address) and address.is_link_local and self.scope:
            return IPv6Address(f"{IPv6Address(int(address))}%{self.scope}")
        return address

    def stale_keys(self) -> Iterator[RouteKey]:
        """Yield the keys of stale routes."""
        generation = self.generation
        for key, entry in self.routes.items():
            if entry.generation != generation:
                yield key
