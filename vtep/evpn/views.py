"""Objects for `pyvtep evpn show`, made of the tables. No I/O."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from vtep.control.evpn_schema import (
    EvpnDuplicate,
    EvpnLabelConflict,
    EvpnMac,
    EvpnMove,
    EvpnRoute,
    EvpnSegment,
    EvpnUnmatched,
    EvpnVtep,
)
from vtep.evpn.announcement import Announcement
from vtep.evpn.duplicates import MoveTracker, Place
from vtep.evpn.entries import FORMER, Local, MacEntry
from vtep.evpn.import_policy import AS_LOOP, LABEL, OWN_MAC, ROUTER_ID, TARGET, ImportPolicy
from vtep.evpn.refusals import NEIGHBOUR_REFUSED, REFUSED
from vtep.evpn.rib import AdjRibIn, RibRoute
from vtep.evpn.segment_table import SegmentTable
from vtep.evpn.unmatched_routes import UnmatchedGroup, unmatched
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import MAC_IP, MULTICAST, NO_ESI, MacIpRoute, MulticastRoute, Route
from vtep.wire.ethernet import format_mac

STICKY: Final = "sticky"
"""The MAC is a static one of this host, which does not move (RFC 7432, section 15.2)."""

_Group = tuple[str, str, Address | None, frozenset[RouteTarget], int | None]
"""Reason, peer, VTEP, route targets and label of routes that are not used."""


class Refused:
    """Counts of received routes that are not used, by reason."""

    def __init__(self) -> None:
        self._groups: Counter[_Group] = Counter()

    def add(self, received: RibRoute) -> None:
        """Count a route whose match has reasons."""
        self._groups.update(_groups(received))

    def remove(self, received: RibRoute) -> None:
        """Count a route no longer, before its match changes."""
        for group in _groups(received):
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]

    def counts(self) -> Counter[str]:
        """Return the number of routes by reason."""
        counts: Counter[str] = Counter()
        for group, count in self._groups.items():
            counts[group[0]] += count
        return counts

    def unmatched(self, vnis: Collection[int]) -> list[EvpnUnmatched]:
        """Return VTEPs with routes whose targets none of the VNIs imports."""
        groups = (UnmatchedGroup(*group[1:]) for group in self._groups if group[0] == TARGET)
        return unmatched(groups, vnis)

    def problems(self) -> list[str]:
        """Return a line for each VTEP with routes that are lost by a wrong number or MAC."""
        problems = {
            ROUTER_ID: "announces routes with the router ID of this host, so its routes are "
            "ignored, and peers confuse the two hosts: give each host its own one, with "
            "--evpn-router-id",
            AS_LOOP: "is the next hop of routes with the AS number of this host in their path, so "
            "they are ignored: hosts of one AS cannot exchange routes by external BGP; give each "
            "host its own AS number, or use internal BGP",
            OWN_MAC: "announces the MAC of a TAP of this host, so these routes are ignored: look "
            "for a loop, by which frames of this host come to that VTEP, or for a host with a "
            "forged MAC",
        }
        found = {(group[0], str(group[2])) for group in self._groups if group[0] in problems}
        return [f"{vtep} {problems[reason]}" for reason, vtep in sorted(found)]

    def label_conflicts(self, policy: ImportPolicy) -> list[EvpnLabelConflict]:
        """Return VTEPs with routes whose target and label are of two VNIs."""
        return [
            {
                "neighbor": peer,
                "vtep": str(vtep),
                "vni": vni,
                "label": label or 0,
                "route_targets": _importing_first(policy, vni, route_targets),
            }
            for reason, peer, vtep, route_targets, label in self._groups
            if reason == LABEL
            for vni in policy.importing(route_targets)
        ]


def _importing_first(policy: ImportPolicy, vni: int, targets: Iterable[RouteTarget]) -> list[str]:
    ordered = sorted((vni not in policy.importing((each,)), each.text) for each in targets)
    return [text for _, text in ordered]


def _groups(received: RibRoute) -> list[_Group]:
    shared, match = received.shared, received.match
    return [
        (
            reason,
            shared.rib.peer,
            received.vtep,
            shared.attributes.route_targets,
            received.label,
        )
        for reason in (match.reason, match.ip_reason)
        if reason is not None
    ]


def not_installed(refused: Refused, segments: Iterable[SegmentTable]) -> dict[str, int]:
    """Return the number of received routes that are not used, by reason.

    Those whose MAC is used without their address are among them.
    """
    counts = refused.counts()
    for segment in segments:
        for route in _refused_by_daemon(segment):
            counts[segment.refusal(route) or ""] += 1
        for mac in segment.sticky_conflicts:
            if _is_pinned(segment, mac):
                counts[STICKY] += len(segment.macs[mac].routes)
    return dict(sorted(counts.items()))


def _is_pinned(segment: SegmentTable, mac: bytes) -> bool:
    """Return True if routes of others are not used, since the MAC is pinned to this host."""
    return mac in segment.sticky_conflicts and segment.macs[mac].local is not None


def _refused_by_daemon(segment: SegmentTable) -> Iterator[RibRoute]:
    """Yield the routes whose entries the daemon has refused, each once."""
    refusals = segment.refusals
    for mac in refusals.macs:
        for route in segment.macs[mac].routes:
            if segment.refusal(route) == REFUSED:
                yield route
    for vtep in refusals.floods:
        yield from segment.floods.routes.get(vtep, ())
    for ip in refusals.ips:
        for route in segment.ips[ip].routes:
            if segment.refusal(route) == NEIGHBOUR_REFUSED:
                yield route


def problems(refused: Refused, segments: Iterable[SegmentTable]) -> list[str]:
    """Return problems of the fabric, and of entries that the daemon refuses."""
    lines = refused.problems()
    for segment in segments:
        lines += [f"vni {segment.vni}: {line}" for line in segment.refusals.problems()]
    return lines


def routes(
    segments: Mapping[int, SegmentTable],
    ribs: Iterable[AdjRibIn],
    now: float,
    *,
    vni: int | None,
    kind: int | None,
    mac: bytes | None,
) -> Iterator[EvpnRoute]:
    """Yield own and received routes that match all filters."""
    for segment in segments.values():
        if vni not in (None, segment.vni):
            continue
        for announced in segment.own_routes():
            if _is_wanted(announced.route, kind, mac):
                yield _own_route(segment, announced, now)
    for rib in ribs:
        if rib.peer == FORMER:
            continue
        for received in rib.routes.values():
            if vni in (None, received.match.vni) and _is_wanted(received.route, kind, mac):
                yield _received_route(segments, received, now)


def _is_wanted(route: Route, kind: int | None, mac: bytes | None) -> bool:
    if isinstance(route, MacIpRoute):
        return kind in (None, MAC_IP) and mac in (None, route.mac)
    return isinstance(route, MulticastRoute) and kind in (None, MULTICAST) and mac is None


def _own_route(segment: SegmentTable, announced: Announcement, now: float) -> EvpnRoute:
    route = announced.route
    entry = segment.macs.get(route.mac) if isinstance(route, MacIpRoute) else None
    view = _route(route, announced.attributes)
    view["vni"] = segment.vni
    view["age"] = 0.0 if entry is None else now - entry.since
    view["best"] = True
    return view


def _received_route(
    segments: Mapping[int, SegmentTable], received: RibRoute, now: float
) -> EvpnRoute:
    view = _route(received.route, received.shared.attributes)
    segment = segments.get(received.match.vni) if received.match.vni is not None else None
    view["neighbor"] = received.shared.rib.peer
    view["vni"] = received.match.vni
    view["next_hop"] = None if received.vtep is None else str(received.vtep)
    view["best"] = segment is not None and _is_best(segment, received)
    view["stale"] = received.is_stale
    view["age"] = now - received.since
    view["reason"] = _unused_reason(segment, received)
    return view


def _unused_reason(segment: SegmentTable | None, received: RibRoute) -> str | None:
    """Return why a route, or only its IP address, is not used; None if all of it can be."""
    match = received.match
    if match.reason is not None or segment is None:
        return match.reason or match.ip_reason
    if refusal := segment.refusal(received):
        return refusal
    return STICKY if _is_pinned(segment, received.mac) else match.ip_reason


def _is_best(segment: SegmentTable, received: RibRoute) -> bool:
    if not received.is_usable or segment.refusal(received) == REFUSED:
        return False
    if isinstance(received.route, MulticastRoute):
        return True
    winner = segment.macs[received.mac].winner
    return isinstance(winner, RibRoute) and winner.vtep == received.vtep


def _route(route: Route, attributes: PathAttributes) -> EvpnRoute:
    mac: str | None = None
    ip: Address | None = None
    esi, label, tag, rd = NO_ESI, None, 0, None
    if isinstance(route, MacIpRoute):
        rd, esi, tag, ip, label = route.rd, route.esi, route.ethernet_tag, route.ip, route.label
        mac = format_mac(route.mac)
    elif isinstance(route, MulticastRoute):
        rd, tag, ip = route.rd, route.ethernet_tag, route.ip
        label = None if attributes.pmsi is None else attributes.pmsi.label
    return {
        "neighbor": None,
        "vni": None,
        "type": MULTICAST if mac is None else MAC_IP,
        "rd": "" if rd is None else rd.text,
        "ethernet_tag": tag,
        "mac": mac,
        "ip": None if ip is None else str(ip),
        "esi": None if esi == NO_ESI else esi.hex(":"),
        "label": label,
        "next_hop": None if attributes.next_hop is None else str(attributes.next_hop),
        "route_targets": sorted(target.text for target in attributes.route_targets),
        "sequence": attributes.sequence,
        "sticky": attributes.sticky,
        "default_gateway": attributes.default_gateway,
        "router": attributes.router,
        "best": False,
        "reason": None,
        "stale": False,
        "age": 0.0,
    }


def macs(
    segments: Iterable[SegmentTable], tracker: MoveTracker, now: float, mac: bytes | None
) -> Iterator[EvpnMac]:
    """Yield MACs that are local, or have a route."""
    for segment in segments:
        selected = segment.macs if mac is None else {mac} & segment.macs.keys()
        for each in selected:
            entry = segment.macs[each]
            if entry.winner is not None:
                yield _mac(segment, each, entry, tracker, now)


def _mac(
    segment: SegmentTable, mac: bytes, entry: MacEntry, tracker: MoveTracker, now: float
) -> EvpnMac:
    winner = entry.winner
    key = segment.vni, mac
    duplicate = tracker.duplicates.get(key)
    addresses: set[Address] = set()
    if isinstance(winner, RibRoute):
        addresses.update(
            route.ip for route in entry.routes if route.ip and route.vtep == winner.vtep
        )
        sequence, sticky = winner.shared.sequence, winner.shared.attributes.sticky
        neighbor, stale = winner.shared.rib.peer or None, winner.is_stale
        reason = _reason(segment, winner)
    else:
        addresses.update(segment.local_ips.get(mac, ()))
        sequence, sticky = (winner.sequence, winner.static) if winner else (0, False)
        neighbor, stale, reason = None, False, None
    if duplicate is not None:
        state = "held" if duplicate.state == "held" else "duplicate"
    else:
        state = "stale" if stale else "active"
    return {
        "vni": segment.vni,
        "mac": format_mac(mac),
        "vtep": str(winner.vtep) if isinstance(winner, RibRoute) else None,
        "neighbor": neighbor,
        "ip": [str(address) for address in sorted(addresses, key=lambda ip: (ip.version, int(ip)))],
        "sequence": sequence,
        "sticky": sticky,
        "state": state,
        "reason": reason,
        "moves": tracker.count(key, now),
        "age": now - entry.since,
    }


def _reason(segment: SegmentTable, route: RibRoute) -> str | None:
    """Return why the entry of an imported route is not installed; None if it is."""
    if route.match.reason is not None:
        return route.match.reason
    refusal = segment.refusal(route)
    return refusal if refusal == REFUSED else None


def vteps(segments: Iterable[SegmentTable], now: float) -> list[EvpnVtep]:
    """Return remote VTEPs by VNI. One has a reason if none of its entries is installed."""
    found: list[EvpnVtep] = []
    for segment in segments:
        views: dict[Address, EvpnVtep] = {}
        for vtep, received in segment.floods.routes.items():
            for route in received:
                if vtep not in views or views[vtep]["reason"] is not None:
                    views[vtep] = _vtep(segment, vtep, route, now, flood=True)
        for entry in segment.macs.values():
            winner = entry.winner
            if not isinstance(winner, RibRoute) or winner.vtep is None:
                continue
            view = views.get(winner.vtep)
            if view is None:
                view = views[winner.vtep] = _vtep(segment, winner.vtep, winner, now, flood=False)
            if view["reason"] is not None:
                view["reason"] = _reason(segment, winner)
            view["macs"] += 1
            view["age"] = max(view["age"], now - winner.since)
        found += [views[vtep] for vtep in sorted(views, key=lambda ip: (ip.version, int(ip)))]
    return found


def _vtep(
    segment: SegmentTable, vtep: Address, route: RibRoute, now: float, *, flood: bool
) -> EvpnVtep:
    return {
        "vni": segment.vni,
        "vtep": str(vtep),
        "neighbor": route.shared.rib.peer,
        "flood": flood,
        "macs": 0,
        "reason": _reason(segment, route),
        "stale": route.is_stale,
        "age": now - route.since,
    }


def moves(
    tracker: MoveTracker, now: float, *, vni: int | None, mac: bytes | None
) -> list[EvpnMove]:
    """Return the latest moves, the last one first."""
    return [
        {
            "vni": move.vni,
            "mac": format_mac(move.mac),
            "old": _place_view(move.old),
            "new": _place_view(move.new),
            "sequence": move.sequence,
            "age": now - move.at,
        }
        for move in reversed(tracker.log)
        if vni in (None, move.vni) and mac in (None, move.mac)
    ]


def _place_view(place: Place) -> str | None:
    return None if place is None else str(place)


def duplicates(
    segments: Iterable[SegmentTable], tracker: MoveTracker, now: float
) -> list[EvpnDuplicate]:
    """Return MACs that move too often, and those of this host that others announce, too."""
    found: list[EvpnDuplicate] = []
    for segment in segments:
        for (vni, mac), duplicate in tracker.duplicates.items():
            if vni != segment.vni:
                continue
            entry = segment.macs.get(mac)
            winner = None if entry is None else entry.winner
            if isinstance(winner, RibRoute):
                sequence = winner.shared.sequence
            else:
                sequence = winner.sequence if isinstance(winner, Local) else 0
            found.append(
                {
                    "vni": vni,
                    "mac": format_mac(mac),
                    "state": duplicate.state,
                    "sequence": sequence,
                    "moves": tracker.count((vni, mac), now),
                    "vteps": ["local" if each is None else str(each) for each in duplicate.places],
                    "age": now - duplicate.since,
                }
            )
        found += [
            _conflict(segment, mac, now - since, tracker.count((segment.vni, mac), now))
            for mac, since in segment.conflicts.items()
            if (segment.vni, mac) not in tracker.duplicates
        ]
    return found


def _conflict(segment: SegmentTable, mac: bytes, age: float, moves: int) -> EvpnDuplicate:
    entry = segment.macs[mac]
    others = dict.fromkeys(str(route.vtep) for route in entry.routes)
    return {
        "vni": segment.vni,
        "mac": format_mac(mac),
        "state": "conflict",
        "sequence": entry.local.sequence if entry.local is not None else 0,
        "moves": moves,
        "vteps": ["local", *others],
        "age": age,
    }


def ignored(ribs: Iterable[AdjRibIn]) -> dict[str, int]:
    """Return the number of routes by their type, if it is not used."""
    counts: Counter[int] = Counter()
    for rib in ribs:
        for kind, keys in rib.others.items():
            if keys:
                counts[kind] += len(keys)
    return {str(kind): counts[kind] for kind in sorted(counts)}


def segment(table: SegmentTable) -> EvpnSegment:
    """Return a summary of a VNI."""
    settings = table.settings
    imported = settings.import_targets
    return {
        "vni": table.vni,
        "rd": settings.rd.text,
        "import_targets": None if imported is None else sorted(each.text for each in imported),
        "export_targets": sorted(target.text for target in settings.export_targets),
        "local": [str(address) for address in settings.locals],
        "vteps": len(table.floods.installed),
        "macs": table.fdb_count,
        "neighbours": table.neighbour_count,
        "announced": table.own.count,
        "conflicts": len(table.sticky_conflicts),
        "moves": table.moves,
    }
