"""Entries that a former speaker has left in the daemon and on bridge ports. No I/O."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any, NamedTuple

from attrs import field, frozen

from vtep.evpn.entries import FdbState
from vtep.evpn.import_policy import Match
from vtep.evpn.rib import AdjRibIn, AttributeSet, RibRoute
from vtep.evpn.segment_table import SegmentTable
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute, MulticastRoute, RouteDistinguisher
from vtep.wire.ethernet import MAC_ZERO, parse_mac

_RD = RouteDistinguisher.of(IPv4Address(0), 0)


class StaleMac(NamedTuple):
    """The place of a MAC that a former speaker has put into the FDB."""

    vtep: Address
    sequence: int = 0
    sticky: bool = False
    dst_vni: int | None = None


@frozen
class Former:
    """The entries of a VNI that a former speaker has put into the daemon."""

    macs: Mapping[bytes, StaleMac] = field(factory=dict)
    floods: tuple[Address, ...] = ()
    neighbours: Mapping[Address, bytes] = field(factory=dict)

    def __bool__(self) -> bool:
        """Return True if there are any."""
        return bool(self.macs or self.floods or self.neighbours)

    @classmethod
    def parse(
        cls, vni: int, entries: Iterable[Mapping[str, Any]], neighbours: Iterable[Mapping[str, Any]]
    ) -> "Former":
        """Parse the answers of `fdb.show` and `neigh.show`."""
        macs: dict[bytes, StaleMac] = {}
        floods = []
        for entry in entries:
            mac = parse_mac(entry["mac"])
            for each in entry["destinations"]:
                if not each.get("extern_learn", entry["extern_learn"]):
                    continue
                vtep = ip_address(each["dst"])
                if mac == MAC_ZERO:
                    floods.append(vtep)
                else:
                    dst_vni = each["dst_vni"] if each["dst_vni"] != vni else None
                    sequence = each.get("sequence") or 0
                    macs[mac] = StaleMac(vtep, sequence, entry["sticky"], dst_vni)
        known = {
            ip_address(each["ip"]): parse_mac(each["mac"])
            for each in neighbours
            if each.get("extern_learn")
        }
        return cls(macs, tuple(floods), known)


def restore(
    rib: AdjRibIn,
    segment: SegmentTable,
    macs: Mapping[bytes, StaleMac],
    floods: Iterable[Address],
    neighbours: Mapping[Address, bytes],
    bridge_macs: Iterable[bytes],
    now: float,
) -> None:
    """Make routes of a peer out of entries, and note that the entries are installed.

    A MAC that is local stays so: its bridge has received a frame from it later. Entries that no
    route can stand for are deleted by the next changes.
    """
    ports = set(bridge_macs)
    addresses: dict[bytes, list[Address]] = {}
    for ip, mac in neighbours.items():
        addresses.setdefault(mac, []).append(ip)
        segment.note_neighbour(ip, mac)
    for mac, stale in macs.items():
        attributes = PathAttributes(
            next_hop=stale.vtep, sequence=stale.sequence, sticky=stale.sticky
        )
        shared = AttributeSet(rib, attributes)
        label = segment.vni if stale.dst_vni is None else stale.dst_vni
        for ip in (None, *addresses.get(mac, ())):
            _attach(rib, segment, shared, MacIpRoute(_RD, NO_ESI, 0, mac, ip, label), now)
        segment.note_fdb(mac, FdbState(stale.vtep, stale.dst_vni, stale.sequence, stale.sticky))
    for mac in ports:
        segment.note_bridged(mac)
    for vtep in floods:
        shared = AttributeSet(rib, PathAttributes(next_hop=vtep))
        _attach(rib, segment, shared, MulticastRoute(_RD, 0, vtep), now)
        segment.floods.note(vtep)


def _attach(
    rib: AdjRibIn,
    segment: SegmentTable,
    shared: AttributeSet,
    route: MacIpRoute | MulticastRoute,
    now: float,
) -> None:
    received = RibRoute(shared, route, now)
    key = (segment.vni, *route.key)
    if key in rib.routes:
        return
    vtep = shared.vtep
    is_own = vtep is None or vtep in segment.settings.locals
    received.match = Match(None if is_own else segment.vni)
    if not is_own:
        rib.routes[key] = received
        segment.attach(received)
