"""Import of routes into VNIs, by route target and label, or why it is refused. No I/O."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from vtep.evpn.local_entries import LocalHost
from vtep.evpn.table_settings import SegmentSettings
from vtep.wire.address import Address, check_unicast, without_scope
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes
from vtep.wire.bgp.communities import ENCAPSULATION_VXLAN, RouteTarget
from vtep.wire.bgp.evpn import MacIpRoute, MulticastRoute
from vtep.wire.ethernet import MAC_ZERO, is_group

OWN: Final = "own-route"
"""A route of this host that a peer reflects."""
ROUTER_ID: Final = "router-id"
"""A route of another VTEP with the router ID of this host, which another host has, too."""
AS_LOOP: Final = "as-loop"
"""The own AS is in the AS path (RFC 4271, section 9.1.2)."""
NEXT_HOP: Final = "next-hop"
"""The next hop can't be a VTEP, or is link-local, while the session is not."""
ENCAPSULATION: Final = "encapsulation"
"""The VTEP does not receive VXLAN (RFC 8365, section 5.1.3)."""
TUNNEL_TYPE: Final = "tunnel-type"
"""The VTEP wants flooded frames by other means than unicast (RFC 6514, section 5)."""
TARGET: Final = "route-target"
"""No VNI imports one of its route targets."""
LABEL: Final = "label"
"""The label is another VNI than that of the route target."""
MAC: Final = "mac"
"""The MAC is a group address, or zero."""
OWN_MAC: Final = "own-mac"
"""The MAC of a TAP of this host: its frames come back by a loop, or the route is forged."""
NEIGHBOUR_IP: Final = "neighbour-ip"
"""No host of the VNI can have the IP address. The MAC is used without it."""
GATEWAY: Final = "anycast-gateway"
"""A gateway whose address the local anycast gateway has (RFC 7432, section 10.1)."""
IP_VERSION: Final = "ip-version"
"""The VNI imports it, but this host has no address of the VTEP's version of IP."""

_CLASS_BITS, _CLASS_D, _CLASS_E = 28, 14, 15
"""The first four bits of IPv4 addresses of multicast groups, and of reserved ones."""

_LOOPBACK, _MAPPED, _MULTICAST = 127, 0xFFFF, 0xFF


class Match(NamedTuple):
    """The VNI that imports a route, if any, and why the route is not used: None if it can be.

    `ip_reason` is the reason why only its IP address is not used.
    """

    vni: int | None
    reason: str | None = None
    ip_reason: str | None = None


class ImportPolicy:
    """The route targets that VNIs import, and the addresses of this host."""

    def __init__(
        self,
        segments: Mapping[int, SegmentSettings],
        *,
        asn: int,
        router_id: IPv4Address,
        host: LocalHost = LocalHost(),  # noqa: B008  it is immutable
    ) -> None:
        self.inputs = (
            *(asn, router_id, host),
            {
                vni: (segment.import_targets, segment.locals, segment.gateways, segment.rd)
                for vni, segment in segments.items()
            },
        )
        """Everything that decides: policies with the same inputs have the same results."""
        self._asn = asn
        self._router_id = router_id
        self._host = host
        self._own: set[Address] = set()
        self._own_rds = {segment.rd for segment in segments.values()}
        self._versions: dict[int, frozenset[int]] = {}
        self._derived: set[int] = set()
        """VNIs that import their auto-derived route targets."""
        self._explicit: dict[RouteTarget, list[int]] = {}
        self._gateways: dict[int, frozenset[Address]] = {}
        for vni, segment in segments.items():
            self._own.update(map(without_scope, segment.locals))
            self._versions[vni] = frozenset(address.version for address in segment.locals)
            if segment.gateways:
                self._gateways[vni] = segment.gateways
            if segment.import_targets is None:
                self._derived.add(vni)
            else:
                for target in segment.import_targets:
                    self._explicit.setdefault(target, []).append(vni)

    def match(
        self,
        attributes: PathAttributes,
        vtep: Address | None,
        label: int | None,
        *,
        is_tagged: bool,
        is_multicast: bool,
    ) -> Match:
        """Return the VNI that imports a route.

        The label decides between several VNIs, as those of a VLAN-aware bundle have one route
        target. A label that is another VNI is accepted only if one VNI imports the target by
        configuration, and the Ethernet tag is zero: then it is the VNI to send with
        (downstream-assigned, RFC 8365, section 5.1.3).
        """
        refusal = self._refusal(attributes, vtep, is_multicast=is_multicast)
        if refusal is not None or vtep is None:
            return Match(None, refusal)
        explicit, derived = self._importers(attributes.route_targets)
        candidates = explicit | derived
        if not candidates:
            return Match(None, TARGET)
        if label in candidates:
            vni = label
        elif label is None and len(candidates) == 1:
            (vni,) = candidates
        elif label and len(explicit) == 1 and not is_tagged:
            (vni,) = explicit
        else:
            return Match(None, LABEL)
        return Match(vni, None if vtep.version in self._versions[vni] else IP_VERSION)

    def match_route(
        self, match: Match, route: MacIpRoute | MulticastRoute, *, default_gateway: bool
    ) -> Match:
        """Return the match of a route, given that of its attributes and label.

        An own route has the own AS in its path if a spine sends it back with another next hop. A
        gateway is refused if the anycast gateway of the VNI has its address.
        """
        if match.reason == AS_LOOP and route.rd in self._own_rds:
            return Match(None, OWN)
        if isinstance(route, MulticastRoute):
            return match
        if is_group(route.mac) or route.mac == MAC_ZERO:
            return Match(None, MAC)
        if match.vni is None:
            return match
        ip = route.ip
        if default_gateway and ip is not None and ip in self._gateways.get(match.vni, ()):
            return Match(None, GATEWAY)
        if route.mac == self._host.tap_macs.get(match.vni):
            return Match(None, OWN_MAC)
        if ip is not None and match.reason is None and (not _is_host(ip) or ip in self._own):
            return match._replace(ip_reason=NEIGHBOUR_IP)
        return match

    def importing(self, targets: Iterable[RouteTarget]) -> list[int]:
        """Return the VNIs that import one of these route targets, by configuration or derived."""
        explicit, derived = self._importers(targets)
        return sorted(explicit | derived)

    def is_own(self, address: Address) -> bool:
        """Return True for an address of this host."""
        return without_scope(address) in self._own

    def _importers(self, targets: Iterable[RouteTarget]) -> tuple[set[int], set[int]]:
        explicit: set[int] = set()
        derived: set[int] = set()
        for target in targets:
            explicit.update(self._explicit.get(target, ()))
            vni = target.vni_of_auto()
            if vni in self._derived:
                derived.add(vni)
        return explicit, derived

    def _refusal(
        self, attributes: PathAttributes, vtep: Address | None, *, is_multicast: bool
    ) -> str | None:
        if vtep is None:
            return NEXT_HOP
        if self.is_own(vtep):
            return OWN
        if attributes.originator_id == self._router_id:
            return ROUTER_ID
        if self._asn in attributes.as_path:
            return AS_LOOP
        try:
            check_unicast(vtep)
        except ValueError:
            return NEXT_HOP
        # 240.0.0.0/4 is no unicast space for hosts (RFC 1112, section 4).
        is_reserved = vtep.version == 4 and int(vtep) >> _CLASS_BITS == _CLASS_E
        if is_reserved or without_scope(vtep) in self._host.unusable:
            return NEXT_HOP
        if vtep.is_loopback or (vtep.version == 6 and vtep.is_link_local and not _scope(vtep)):
            return NEXT_HOP
        if attributes.encapsulations and ENCAPSULATION_VXLAN not in attributes.encapsulations:
            return ENCAPSULATION
        pmsi = attributes.pmsi
        if is_multicast and pmsi is not None and pmsi.tunnel_type != INGRESS_REPLICATION:
            return TUNNEL_TYPE
        return None


def _is_host(ip: Address) -> bool:
    """Return True for an address that a host of a VNI can have; without slow properties."""
    number = int(ip)
    if ip.version == 4:
        return number != 0 and number >> 24 != _LOOPBACK and number >> _CLASS_BITS < _CLASS_D
    # Neither unspecified nor loopback, IPv4-mapped or multicast (RFC 4291).
    return number > 1 and number >> 32 != _MAPPED and number >> 120 != _MULTICAST


def _scope(address: Address) -> str | None:
    return None if address.version == 4 else address.scope_id
