"""Short forms of EVPN routes, settings and tables, for tests."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address
from typing import Any

from vtep.evpn.announcement import Announcement
from vtep.evpn.changes import Changes
from vtep.evpn.table_settings import SegmentSettings, SpeakerSettings
from vtep.evpn.tables import Tables
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes, Pmsi
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    MulticastRoute,
    Route,
    RouteDistinguisher,
)
from vtep.wire.bgp.update import Update
from vtep.wire.ethernet import MAC_ZERO, format_mac

ASN = 65000
OWN = "192.0.2.5"
"""The VTEP of this host: lower than some of the peers, and higher than others."""

PEER = "10.0.0.1"


def target(text: str) -> RouteTarget:
    return RouteTarget.parse(text)


def distinguisher(vtep: str, vni: int) -> RouteDistinguisher:
    address = ip_address(vtep)
    router_id = address if isinstance(address, IPv4Address) else IPv4Address(int(address) & 0xFFFF)
    return RouteDistinguisher.of(router_id, vni)


def mac(number: int) -> bytes:
    return (0x02 << 40 | number).to_bytes(6)


def ip(number: int) -> Address:
    return IPv4Address("10.9.0.0") + number


def segment(vni: int = 100, *, own: str | tuple[str, ...] = OWN, **changed: Any) -> SegmentSettings:
    addresses = (own,) if isinstance(own, str) else own
    settings: dict[str, Any] = {
        "vni": vni,
        "rd": distinguisher(addresses[0] if addresses else OWN, vni),
        "import_targets": None,
        "export_targets": frozenset({RouteTarget.of(ASN, vni)}),
        "locals": tuple(map(ip_address, addresses)),
        "proxy": True,
    }
    return SegmentSettings(**(settings | changed))


def speaker(router_id: str = OWN, **changed: Any) -> SpeakerSettings:
    settings: dict[str, Any] = {
        "asn": ASN,
        "router_id": IPv4Address(router_id),
        "neighbors": frozenset({PEER}),
    }
    return SpeakerSettings(**(settings | changed))


def tables(*segments: SegmentSettings, **changed: Any) -> Tables:
    made = Tables(speaker(**changed))
    made.configure({each.vni: each for each in segments or (segment(),)}, 0.0)
    made.take()
    return made


def attributes(vtep: str | None, vni: int = 100, **changed: Any) -> PathAttributes:
    settings: dict[str, Any] = {
        "next_hop": None if vtep is None else ip_address(vtep),
        "route_targets": frozenset({RouteTarget.of(ASN, vni)}),
    }
    return PathAttributes(**(settings | changed))


def mac_route(
    vtep: str,
    number: int,
    address: Address | None = None,
    *,
    vni: int = 100,
    label: int | None = None,
    tag: int = 0,
    esi: bytes = NO_ESI,
) -> MacIpRoute:
    rd = distinguisher(vtep, vni)
    return MacIpRoute(rd, esi, tag, mac(number), address, vni if label is None else label)


def flood_update(vtep: str, vni: int = 100, **changed: Any) -> Update:
    pmsi = Pmsi(0, INGRESS_REPLICATION, vni, ip_address(vtep))
    route = MulticastRoute(distinguisher(vtep, vni), 0, ip_address(vtep))
    return Update((route,), attributes=attributes(vtep, vni, **({"pmsi": pmsi} | changed)))


def update(vtep: str | None, *routes: Route, vni: int = 100, **changed: Any) -> Update:
    return Update(routes, attributes=attributes(vtep, vni, **changed))


def withdrawal(*routes: Route) -> Update:
    return Update(withdrawn=routes)


def fdb_text(changes: Changes, vni: int = 100) -> list[str]:
    """Return changes of the FDB as lines: "replace 02:00:00:00:00:01 192.0.2.2 seq 0"."""
    lines = []
    for change in changes.fdb.get(vni, []):
        name = "flood" if change.mac == MAC_ZERO else format_mac(change.mac)[-2:]
        extra = "" if change.sequence is None else f" seq {change.sequence}"
        extra += " sticky" if change.sticky else ""
        extra += "" if change.dst_vni is None else f" vni {change.dst_vni}"
        lines.append(f"{change.verb} {name} {change.vtep}{extra}")
    return lines


def announced_text(announcements: Iterable[Announcement]) -> list[str]:
    """Return own routes as lines: "mac 01 seq 0"."""
    return [
        route_text(each.route)
        + f" seq {each.attributes.sequence}"
        + (" sticky" if each.attributes.sticky else "")
        + (" gateway" if each.attributes.default_gateway else "")
        + (" router" if each.attributes.router else "")
        for each in announcements
    ]


def route_text(route: Route) -> str:
    """Return a route as "mac 01 10.9.0.1" or "flood 192.0.2.5"."""
    if isinstance(route, MacIpRoute):
        name = f"mac {format_mac(route.mac)[-2:]}"
        return name if route.ip is None else f"{name} {route.ip}"
    assert isinstance(route, MulticastRoute)
    return f"flood {route.ip}"
