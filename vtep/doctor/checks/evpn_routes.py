"""Checks of EVPN routes: why a VNI has none, and settings that keep them from having an effect."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address

from vtep.control.evpn_schema import EvpnRoute, EvpnSegment, EvpnUnmatched
from vtep.doctor.evpn_facts import EvpnFacts
from vtep.doctor.facts import SegmentFacts
from vtep.doctor.finding import Finding, note, problem, warning

_NAMED = 3
"""VTEPs, route targets or VNIs that a finding names."""


def check(evpn: EvpnFacts, segments: Iterable[SegmentFacts]) -> Iterator[Finding]:
    """Yield findings about the routes of each VNI, and about those that no VNI imports."""
    by_vni = {segment.vni: segment for segment in segments}
    if not any(each.session["state"] == "established" for each in evpn.neighbors):
        return  # A session explains all that is missing.
    explained: list[EvpnUnmatched] = []
    for segment in evpn.segments:
        if segment["vni"] not in by_vni:  # The doctor was asked about another one.
            continue
        others = _meant_for(segment, evpn)
        if not segment["vteps"] and not any(
            _UNUSED.get(each["reason"] or "") for each in evpn.multicast
        ):
            yield _without_vteps(segment, evpn, others)
            explained += others
        yield from _of_addresses(segment)
        yield from _of_settings(segment, by_vni[segment["vni"]])
    yield from _not_imported([each for each in evpn.unmatched if each not in explained], evpn)
    for conflict in evpn.label_conflicts:
        vni, label, vtep = conflict["vni"], conflict["label"], conflict["vtep"]
        yield problem(
            vtep,
            f"{vtep} announces routes for vni {vni} by their route target, and for vni {label} by "
            "their label",
            f"Their route target is {_some(conflict['route_targets'])}. Frames would be sent with "
            f"another VNI than the one that is meant, so pyvtep ignores them.",
            f"use one VNI at both ends; or, if vni {label} there is this segment, name the target: "
            f"--route-target-import {_first(conflict['route_targets'])}",
        )
    yield from _of_unused(evpn)
    yield from _of_duplicates(evpn)


# --- routes that are missing ----------------------------------------------------------------------


def _meant_for(segment: EvpnSegment, evpn: EvpnFacts) -> list[EvpnUnmatched]:
    """Return routes that no VNI imports and that are for this one, by label; else all of them."""
    same = [each for each in evpn.unmatched if segment["vni"] in each["vnis"]]
    if same or len(evpn.segments) > 1:
        return same
    return list(evpn.unmatched)


def _without_vteps(segment: EvpnSegment, evpn: EvpnFacts, others: list[EvpnUnmatched]) -> Finding:
    """Report a VNI without a route of type 3: nothing is flooded by EVPN."""
    vni = segment["vni"]
    if others:
        other = others[0]
        count = _vteps(others) - 1
        more = f", and {count} more VTEPs likewise" if count else ""
        theirs = _some(other["route_targets"]) or "no route target"
        # With another VNI in its label, it may be a segment that this host has no part in.
        report = problem if vni in other["vnis"] else warning
        return report(
            f"vni {vni}",
            f"no route target of {other['vtep']} matches one that vni {vni} imports{more}",
            f"{other['vtep']} announces {theirs} (over {other['neighbor']}); vni {vni} imports "
            f"{_imports(segment)} and exports {_join(segment['export_targets'])}. So its frames "
            "are dropped as source_unknown, and none are sent to it.",
            _import_fix(other, segment),
        )
    if segment["macs"]:
        return problem(
            f"vni {vni}",
            f"no VTEP of vni {vni} wants flooded frames: no route of type 3 has come",
            f"{segment['macs']} MACs are known by EVPN, and unicast to them works; broadcasts, and "
            "with them ARP, reach none.",
            "let the reflector pass routes of type 3 (inclusive multicast); FRR announces one "
            "for each VNI that is up: show bgp l2vpn evpn route type multicast",
        )
    received = sum(each.session["routes_received"] for each in evpn.neighbors)
    if received:
        return warning(
            f"vni {vni}",
            f"no other VTEP has announced vni {vni}",
            f"The neighbours have sent {received} routes, which are for other VNIs. This is normal "
            "as long as no other host has the VNI.",
            f"on the other VTEP, with FRR: show evpn vni {vni}; its VXLAN device must be up, on a "
            "bridge, and have the VNI; and advertise-all-vni must be set",
        )
    return warning(
        f"vni {vni}",
        f"vni {vni} has no remote VTEP: no EVPN route was received",
        "Sessions are established, and bring nothing.",
        "on the other VTEPs, with FRR: address-family l2vpn evpn, advertise-all-vni; show evpn vni",
    )


def _not_imported(others: list[EvpnUnmatched], evpn: EvpnFacts) -> Iterator[Finding]:
    """Report routes that no VNI imports: those of VNIs of this host, then those of others.

    A fabric may have thousands of VTEPs, so each kind is one finding.
    """
    known = {each["vni"]: each for each in evpn.segments}
    here = [each for each in others if not known.keys().isdisjoint(each["vnis"])]
    imported = _some([f"{vni}: {_imports(each)}" for vni, each in known.items()], "; ")
    for kind, report in ((here, warning), ([each for each in others if each not in here], note)):
        if not kind:
            continue
        first = kind[0]
        vnis = f" (vni {_some(first['vnis'])} in their labels)" if first["vnis"] else ""
        count = _vteps(kind) - 1
        more = f" and {count} more VTEPs" if count else ""
        segment = next((known[vni] for vni in first["vnis"] if vni in known), None)
        yield report(
            first["vtep"],
            f"routes of {first['vtep']}{more} match no route target that is imported here",
            f"It announces {_some(first['route_targets']) or 'no route target'}{vnis}, and the "
            f"VNIs here import {imported}. This is normal if these are segments that this host "
            "has no part in.",
            _import_fix(first, segment),
        )


def _import_fix(other: EvpnUnmatched, segment: EvpnSegment | None) -> str:
    """Return how to import the routes of a VTEP, and to make it import ours."""
    if not other["route_targets"]:
        return f"on {other['vtep']}: export a route target, such as that of --route-target here"
    target = other["import_target"]
    if segment is None:
        if target is None:
            return (
                "if one of them is a segment of this host: pyvtep set --route-target-import with "
                "the target that only its routes have; see: pyvtep evpn show routes"
            )
        return f"if it is a segment of this host: pyvtep set --route-target-import {target}"
    vni, exported = segment["vni"], segment["export_targets"]
    if target is None:  # Importing it would join this segment and another one.
        return (
            f"routes of several VNIs have these targets; on {other['vtep']}, export one that only "
            f"the routes for vni {vni} have (FRR, in the vni: route-target export), and name it "
            f"here: pyvtep set --vni {vni} --route-target-import"
        )
    kept = segment["import_targets"]
    if kept is None:  # A target that is named replaces the derived ones.
        kept = exported if segment["vteps"] or segment["macs"] else []
    options = "".join(f" --route-target-import {each}" for each in (target, *kept))
    return (
        f"here: pyvtep set --vni {vni}{options}; and there import {_join(exported)} (FRR, in vni "
        f"{vni}: route-target import {_first(exported)})"
    )


def _imports(segment: EvpnSegment) -> str:
    targets, vni = segment["import_targets"], segment["vni"]
    if targets is None:
        return f"*:{vni} and *:{0x10000000 | vni} (both forms that are derived from the VNI)"
    return _some(targets)


# --- what keeps routes from having an effect ------------------------------------------------------


def _of_addresses(segment: EvpnSegment) -> Iterator[Finding]:
    """Report a VNI without an own VTEP address."""
    vni = segment["vni"]
    if not segment["local"]:
        yield problem(
            f"vni {vni}",
            f"vni {vni} has no own VTEP address, so that nothing is announced",
            "It is the --local of the VNI, or else the local address of a session.",
            f"pyvtep set --vni {vni} --local with an address of this host",
        )


def _of_unused(evpn: EvpnFacts) -> Iterator[Finding]:
    """Report VTEPs whose routes of type 3 cannot be used, once for each reason and VNI."""
    groups: dict[tuple[str, int | None], list[EvpnRoute]] = {}
    for route in evpn.multicast:
        groups.setdefault((route["reason"] or "", route["vni"]), []).append(route)
    for (reason, vni), routes in groups.items():
        explain = _UNUSED.get(reason)
        if explain is not None:
            hosts = sorted({route["next_hop"] or route["ip"] or "?" for route in routes})
            more = f" and {len(hosts) - _NAMED} more" if len(hosts) > _NAMED else ""
            yield explain(f"{', '.join(hosts[:_NAMED])}{more}", vni, routes[0])
    for each in evpn.replaced_next_hops:
        neighbor, vteps = each["neighbor"], each["vteps"]
        more = f" and {len(vteps) - _NAMED} more" if len(vteps) > _NAMED else ""
        yield problem(
            neighbor,
            f"the next hop of routes of {', '.join(vteps[:_NAMED])}{more} is the BGP neighbour "
            f"{neighbor} itself",
            f"It replaces the next hop of the routes that it passes on, and is no VTEP: it has no "
            f"route of type 3 for vni {_join(each['vnis'])}. Frames to MACs of those VTEPs are "
            "sent to it, and lost. A spine does so in eBGP sessions, unless told otherwise.",
            f"on {neighbor}, with FRR, in address-family l2vpn evpn: neighbor ... "
            "attribute-unchanged next-hop",
        )


def _other_version(hosts: str, vni: int | None, route: EvpnRoute) -> Finding:
    version = ip_address(route["next_hop"] or "::").version
    return problem(
        f"vni {vni}",
        f"vni {vni} has VTEPs with IPv{version} addresses, and no own IPv{version} address",
        f"{hosts}: frames to and from them need one.",
        f"pyvtep set --vni {vni} with one more --local, an IPv{version} address of this host",
    )


def _as_loop(hosts: str, _vni: int | None, route: EvpnRoute) -> Finding:
    return problem(
        hosts,
        f"the routes of {hosts} have the AS number of this host in their AS path",
        "They are refused, as routes that come back (RFC 4271, section 9.1.2). So it is if several "
        "leaves share an AS number, and have eBGP sessions with a spine.",
        "give each leaf an AS number of its own, or use iBGP with a route reflector; or have "
        f"{route['neighbor']} replace it (FRR: neighbor ... as-override)",
    )


def _other_encapsulation(hosts: str, _vni: int | None, _route: EvpnRoute) -> Finding:
    return problem(
        hosts,
        f"{hosts} announces routes for another encapsulation than VXLAN",
        "Its encapsulation community names others only, such as MPLS or Geneve.",
        f"on {hosts}: use VXLAN as the data plane of EVPN",
    )


def _other_tunnel(hosts: str, _vni: int | None, _route: EvpnRoute) -> Finding:
    return problem(
        hosts,
        f"{hosts} wants flooded frames by a tunnel other than ingress replication",
        "Its PMSI attribute has another type than 6, such as a multicast tree of the underlay. "
        "Unicast works, and broadcasts do not reach it.",
        f"on {hosts}: use ingress replication (head-end replication) for the VNI",
    )


def _bad_next_hop(hosts: str, _vni: int | None, route: EvpnRoute) -> Finding:
    return problem(
        hosts,
        f"the next hop {hosts} of routes cannot be a VTEP",
        "It is no unicast address of another host, or a link-local one that came over another "
        "link.",
        f"on {route['neighbor']}: keep the next hop of reflected routes (FRR does so for EVPN "
        "unless next-hop-self is set)",
    )


def _same_router_id(hosts: str, _vni: int | None, route: EvpnRoute) -> Finding:
    return problem(
        hosts,
        f"{hosts} has the same BGP identifier as this host",
        "So its routes look like own ones that come back, and are refused (route distinguisher "
        f"{route['rd']}).",
        "give each host a router-id of its own: --evpn-router-id here, or bgp router-id there",
    )


_UNUSED: Mapping[str, Callable[[str, int | None, EvpnRoute], Finding]] = {
    "ip-version": _other_version,
    "as-loop": _as_loop,
    "encapsulation": _other_encapsulation,
    "tunnel-type": _other_tunnel,
    "next-hop": _bad_next_hop,
    "router-id": _same_router_id,
}
"""By the reason in `EvpnRoute`; those that have findings of their own are left out."""


def _of_settings(segment: EvpnSegment, facts: SegmentFacts) -> Iterator[Finding]:
    """Report options of a VNI, and of its bridge port, that contradict EVPN."""
    vni = segment["vni"]
    if facts.options.get("learning"):
        yield note(
            f"vni {vni}",
            f"vni {vni} learns MACs from frames, beside those of EVPN",
            "A frame with a forged source MAC then moves what EVPN does not have; MACs of EVPN "
            "themselves stay.",
            f"pyvtep set --vni {vni} --no-learning, unless there are remotes without EVPN",
        )
    elif facts.bridge is not None and facts.bridge.learning:
        yield warning(
            facts.tap,
            f"the bridge {facts.bridge.name} learns MACs at {facts.tap}",
            "pyvtep switches this off in a VNI with EVPN; another program has switched it on "
            "again. A MAC that has moved away stays at the old place until a frame comes from it.",
            f"bridge link set dev {facts.tap} learning off",
        )
    if segment["neighbours"] and not facts.options.get("proxy"):
        yield note(
            f"vni {vni}",
            f"vni {vni} knows {segment['neighbours']} IP addresses by EVPN, and floods ARP anyway",
            "With --proxy, ARP and neighbour discovery for them are answered here.",
            f"pyvtep set --vni {vni} --proxy",
        )


def _of_duplicates(evpn: EvpnFacts) -> Iterator[Finding]:
    for duplicate in evpn.duplicates:
        mac, vni = duplicate["mac"], duplicate["vni"]
        if duplicate["state"] == "conflict":
            yield problem(
                mac,
                f"{mac} is a MAC of this host itself in vni {vni}, and "
                f"{_join(duplicate['vteps'][1:])} announces it, too",
                "It stays local here; which host the others send to depends on their sequence "
                "numbers. Bridges that were cloned with their MAC look so, and a gateway that "
                "several hosts have.",
                "give one of the bridges another MAC (ip link set dev ... address); or name the "
                f"address of the gateway: pyvtep set --vni {vni} --anycast-gateway",
            )
            continue
        held = duplicate["state"] == "held"
        yield problem(
            mac,
            f"{mac} of vni {vni} moves too often between {_join(duplicate['vteps'])}",
            f"{duplicate['moves']} moves, sequence number {duplicate['sequence']} (RFC 7432, "
            "section 15.1): two hosts have one MAC, or there is a loop. "
            + ("It is held where it is." if held else "It is only reported (duplicate-mac warn)."),
            f"find the second host; then: pyvtep evpn clear duplicate {mac} vni {vni}",
        )


def _vteps(others: Iterable[EvpnUnmatched]) -> int:
    return len({each["vtep"] for each in others})


def _some(values: Sequence[object], separator: str = " ") -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return separator.join(map(str, values[:_NAMED])) + more


def _join(values: Iterable[object]) -> str:
    return " ".join(map(str, values))


def _first(values: Iterable[str]) -> str:
    return next(iter(values), "")
