"""Answers about the speaker: its report to the daemon, and the views of `pyvtep evpn show`."""

from collections.abc import Mapping
from typing import Any

from vtep.config.evpn import EvpnSettings
from vtep.control.evpn_schema import EvpnSession
from vtep.evpn import bgp_sockets
from vtep.evpn.peers import Peers
from vtep.evpn.session_types import SessionState
from vtep.evpn.table_settings import SegmentSettings
from vtep.evpn.tables import Tables
from vtep.wire.ethernet import format_mac

_MOVES_MAX = 100
"""Moves in a summary."""


def sessions(peers: Peers | None, now: float) -> list[EvpnSession]:
    """Return the sessions; none before they begin."""
    return [peer.status(now) for peer in peers or ()]


def problems(segments: Mapping[int, SegmentSettings] | None) -> list[str]:
    """Return problems of the host's addresses, with what to do.

    `segments` are the settings of VNIs; None before there is a BGP identifier.
    """
    if segments is None:
        return ["there is no route to a neighbor yet, so no BGP identifier can be chosen"]
    return [
        f"vni {vni}: there is no own address on the underlay yet, so nothing is announced; "
        "give one with --local"
        for vni, segment in segments.items()
        if not segment.locals
    ]


def waiting_sessions(settings: EvpnSettings) -> list[EvpnSession]:
    """Return sessions that cannot begin, each with the reason, before there is a BGP identifier."""
    found: list[EvpnSession] = []
    for neighbor in settings.neighbor:
        kind, text = None, "there is no own address from which other hosts can be reached"
        try:
            bgp_sockets.find_local_address(neighbor.address, neighbor.port)
        except bgp_sockets.SocketError as error:
            kind, text = error.kind.value, str(error)
        found.append(
            {
                "neighbor": str(neighbor.address),
                "port": neighbor.port,
                "asn": settings.asn,
                "remote_asn": neighbor.asn,
                "state": SessionState.IDLE.text,
                "age": 0.0,
                "was_established": False,
                "local": None,
                "source": None if neighbor.local is None else str(neighbor.local),
                "router_id": None,
                "hold_time": None,
                "passive": neighbor.passive,
                "password": (neighbor.password or settings.password) is not None,
                "routes_received": 0,
                "routes_announced": 0,
                "end_of_rib": False,
                "last_error": text,
                "last_error_kind": kind,
                "last_error_age": 0.0,
            }
        )
    return found


def report(
    tables: Tables | None, peers: Peers | None, now: float, problems: list[str]
) -> dict[str, Any]:
    """Return an `EvpnReport`, with further problems."""
    found = [*(peers.problems if peers is not None else ()), *problems]
    if tables is not None:
        found += tables.problems()
    return {
        "sessions": sessions(peers, now),
        "segments": tables.segments() if tables is not None else [],
        "unmatched": tables.unmatched() if tables is not None else [],
        "label_conflicts": tables.label_conflicts() if tables is not None else [],
        "duplicates": tables.duplicates(now) if tables is not None else [],
        "replaced_next_hops": tables.replaced_next_hops() if tables is not None else [],
        "ignored": tables.ignored() if tables is not None else {},
        "not_installed": tables.not_installed() if tables is not None else {},
        "problems": found,
    }


def summary(
    report: dict[str, Any], tables: Tables | None, now: float, vni: int | None
) -> dict[str, Any]:
    """Return an `EvpnSummary`."""
    vteps = tables.vteps(now, vni=vni) if tables is not None else []
    moves = tables.moves(now, vni=vni)[:_MOVES_MAX] if tables is not None else []
    return {**report, "vteps": vteps, "moves": moves}


def rows(
    tables: Tables | None,
    what: str,
    now: float,
    *,
    vni: int | None,
    kind: int | None,
    mac: bytes | None,
) -> list[Any]:
    """Return the rows of a view of the tables that match the filters."""
    if tables is None:
        return []
    match what:
        case "routes":
            return list(tables.routes(now, vni=vni, kind=kind, mac=mac))
        case "macs":
            return list(tables.macs(now, vni=vni, mac=mac))
        case "vteps":
            return list(tables.vteps(now, vni=vni))
        case "moves":
            return list(tables.moves(now, vni=vni, mac=mac))
    found = tables.duplicates(now, vni=vni)
    return [each for each in found if mac is None or each["mac"] == format_mac(mac)]
