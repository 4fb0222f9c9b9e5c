"""A plausible state of EVPN, for tests of what reads it."""

from typing import Any, cast

from vtep.control.evpn_schema import (
    EvpnDuplicate,
    EvpnLabelConflict,
    EvpnMac,
    EvpnMove,
    EvpnReport,
    EvpnRoute,
    EvpnSegment,
    EvpnSession,
    EvpnSpeaker,
    EvpnStatus,
    EvpnSummary,
    EvpnUnmatched,
    EvpnVtep,
)

MAC = "02:00:00:00:00:01"


def session(neighbor: str = "10.0.0.1", **changed: Any) -> EvpnSession:
    """Return an established session with all routes, with these fields."""
    made: EvpnSession = {
        "neighbor": neighbor,
        "port": 179,
        "asn": 65000,
        "remote_asn": 65000,
        "state": "established",
        "age": 7300.0,
        "was_established": True,
        "local": "10.0.0.2",
        "source": None,
        "router_id": "10.0.0.1",
        "hold_time": 90,
        "passive": False,
        "password": True,
        "routes_received": 12,
        "routes_announced": 4,
        "end_of_rib": True,
        "last_error": None,
        "last_error_kind": None,
        "last_error_age": None,
    }
    return cast("EvpnSession", {**made, **changed})


def down(neighbor: str = "10.0.0.1", **changed: Any) -> EvpnSession:
    """Return a session that is not established, with these fields."""
    return session(
        neighbor,
        **{
            "state": "active",
            "age": 12.0,
            "was_established": False,
            "remote_asn": None,
            "router_id": None,
            "hold_time": None,
            "local": None,
            "routes_received": 0,
            "routes_announced": 0,
            "end_of_rib": False,
            "last_error": "connection refused by 10.0.0.1 port 179: start bgpd there",
            "last_error_kind": "connect-refused",
            "last_error_age": 3.0,
            "password": False,
            **changed,
        },
    )


def segment(vni: int = 100, **changed: Any) -> EvpnSegment:
    made: EvpnSegment = {
        "vni": vni,
        "rd": f"10.0.0.2:{vni}",
        "import_targets": None,
        "export_targets": [f"65000:{vni}"],
        "local": ["192.0.2.1"],
        "vteps": 2,
        "macs": 5,
        "neighbours": 3,
        "announced": 4,
        "conflicts": 0,
        "moves": 1,
    }
    return cast("EvpnSegment", {**made, **changed})


def unmatched(*targets: str, **changed: Any) -> EvpnUnmatched:
    made: EvpnUnmatched = {
        "neighbor": "10.0.0.1",
        "vtep": "192.0.2.9",
        "route_targets": list(targets or ("65001:200",)),
        "import_target": (*targets, "65001:200")[0],
        "vnis": [200],
    }
    return cast("EvpnUnmatched", {**made, **changed})


def label_conflict() -> EvpnLabelConflict:
    return {
        "neighbor": "10.0.0.1",
        "vtep": "192.0.2.8",
        "vni": 100,
        "label": 101,
        "route_targets": ["65000:100"],
    }


def duplicate(mac: str = MAC, **changed: Any) -> EvpnDuplicate:
    made: EvpnDuplicate = {
        "vni": 100,
        "mac": mac,
        "state": "warned",
        "sequence": 8,
        "moves": 6,
        "vteps": ["local", "192.0.2.3"],
        "age": 30.0,
    }
    return cast("EvpnDuplicate", {**made, **changed})


def speaker(**changed: Any) -> EvpnSpeaker:
    made: EvpnSpeaker = {
        "pid": 4243,
        "state": "running",
        "age": 7300.0,
        "version": "0.15.0",
        "restarts": 0,
        "last_error": None,
        "report_age": 0.5,
    }
    return cast("EvpnSpeaker", {**made, **changed})


def report(**changed: Any) -> EvpnReport:
    """Return what a speaker reports when all is well, with these fields."""
    made: EvpnReport = {
        "sessions": [session()],
        "segments": [segment()],
        "unmatched": [],
        "label_conflicts": [],
        "duplicates": [],
        "replaced_next_hops": [],
        "ignored": {},
        "not_installed": {},
        "problems": [],
    }
    return cast("EvpnReport", {**made, **changed})


def status(**changed: Any) -> EvpnStatus:
    """Return the state that a daemon shows; `speaker` and all fields of a report may be given."""
    made = {"speaker": speaker(), **report(), **changed}
    return cast("EvpnStatus", made)


def vtep(address: str = "192.0.2.3", **changed: Any) -> EvpnVtep:
    made: EvpnVtep = {
        "vni": 100,
        "vtep": address,
        "neighbor": "10.0.0.1",
        "flood": True,
        "macs": 3,
        "reason": None,
        "stale": False,
        "age": 7200.0,
    }
    return cast("EvpnVtep", {**made, **changed})


def move(**changed: Any) -> EvpnMove:
    made: EvpnMove = {
        "vni": 100,
        "mac": MAC,
        "old": None,
        "new": "192.0.2.3",
        "sequence": 1,
        "age": 60.0,
    }
    return cast("EvpnMove", {**made, **changed})


def mac(address: str = MAC, **changed: Any) -> EvpnMac:
    made: EvpnMac = {
        "vni": 100,
        "mac": address,
        "vtep": "192.0.2.3",
        "neighbor": "10.0.0.1",
        "ip": ["10.1.0.3", "fe80::3"],
        "sequence": 1,
        "sticky": False,
        "state": "active",
        "reason": None,
        "moves": 1,
        "age": 60.0,
    }
    return cast("EvpnMac", {**made, **changed})


def route(**changed: Any) -> EvpnRoute:
    made: EvpnRoute = {
        "neighbor": "10.0.0.1",
        "vni": 100,
        "type": 2,
        "rd": "192.0.2.3:2",
        "ethernet_tag": 0,
        "mac": MAC,
        "ip": "10.1.0.3",
        "esi": None,
        "label": 100,
        "next_hop": "192.0.2.3",
        "route_targets": ["65000:100"],
        "sequence": 1,
        "sticky": False,
        "default_gateway": False,
        "router": False,
        "best": True,
        "reason": None,
        "stale": False,
        "age": 60.0,
    }
    return cast("EvpnRoute", {**made, **changed})


def summary(**changed: Any) -> EvpnSummary:
    made = {**report(), "vteps": [vtep()], "moves": [], **changed}
    return cast("EvpnSummary", made)
