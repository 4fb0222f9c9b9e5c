"""The metrics of EVPN, which are there only if a VNI has it. No I/O."""

from collections.abc import Callable, Iterator
from typing import Final

from vtep.control.evpn_schema import SPEAKER_STATES, EvpnSegment, EvpnSession, EvpnStatus
from vtep.exporter.metric import Metric, Snapshot, Values, states

SESSION_STATES: Final = (
    *("idle", "connect", "active", "open-sent", "open-confirm", "established"),
)


def _evpn(snapshot: Snapshot) -> Iterator[EvpnStatus]:
    """Yield the state of EVPN; nothing without it, or if the daemon is older."""
    if (evpn := snapshot.status.get("evpn")) is not None:
        yield evpn


def _of_evpn(name: str, text: str, value: Callable[[EvpnStatus], float]) -> Metric:
    """Define a metric of the speaker."""
    return Metric(name, (), text, lambda snapshot: (((), value(evpn)) for evpn in _evpn(snapshot)))


def _of_session(name: str, text: str, value: Callable[[EvpnSession], float]) -> Metric:
    """Define a metric of each BGP session."""

    def values(snapshot: Snapshot) -> Values:
        for evpn in _evpn(snapshot):
            for session in evpn["sessions"]:
                yield (session["neighbor"],), value(session)

    return Metric(name, ("neighbor",), text, values)


def _of_segment(name: str, text: str, value: Callable[[EvpnSegment], float]) -> Metric:
    """Define a metric of each VNI with EVPN."""

    def values(snapshot: Snapshot) -> Values:
        for evpn in _evpn(snapshot):
            for segment in evpn["segments"]:
                yield (str(segment["vni"]),), value(segment)

    return Metric(name, ("vni",), text, values)


def _speaker_states(snapshot: Snapshot) -> Values:
    for evpn in _evpn(snapshot):
        for state, value in states(SPEAKER_STATES, evpn["speaker"]["state"]):
            yield (state,), value


def _session_states(snapshot: Snapshot) -> Values:
    for evpn in _evpn(snapshot):
        for session in evpn["sessions"]:
            for state, value in states(SESSION_STATES, session["state"]):
                yield (session["neighbor"], state), value


def _duplicates(snapshot: Snapshot) -> Values:
    for evpn in _evpn(snapshot):
        for segment in evpn["segments"]:
            vni = segment["vni"]
            yield (str(vni),), sum(each["vni"] == vni for each in evpn["duplicates"])


def _not_installed(snapshot: Snapshot) -> Values:
    for evpn in _evpn(snapshot):
        for reason, count in evpn["not_installed"].items():
            yield (reason,), count


EVPN_METRICS: Final = (
    Metric(
        "pyvtep_evpn_speaker_state",
        ("state",),
        "1 for the present state of the process that speaks BGP, 0 for the others; this metric and "
        "all others of EVPN are absent without it.",
        _speaker_states,
    ),
    _of_evpn(
        "pyvtep_evpn_speaker_restarts_total",
        "Times that the process that speaks BGP was started again after it had ended.",
        lambda evpn: evpn["speaker"]["restarts"],
    ),
    _of_evpn(
        "pyvtep_evpn_routes_ignored",
        "Routes of types that pyvtep does not use (1, 4, 5 and unknown ones).",
        lambda evpn: sum(evpn["ignored"].values()),
    ),
    Metric(
        "pyvtep_evpn_routes_not_installed",
        ("reason",),
        "Routes of types 2 and 3 that are not used, or not with their address, by reason.",
        _not_installed,
    ),
    _of_evpn(
        "pyvtep_evpn_vteps_not_imported",
        "VTEPs with routes whose route targets no VNI imports.",
        lambda evpn: len({each["vtep"] for each in evpn["unmatched"]}),
    ),
    Metric(
        "pyvtep_evpn_session_state",
        ("neighbor", "state"),
        "1 for the present state of the BGP session with the neighbour (RFC 4271), 0 for the "
        "others.",
        _session_states,
    ),
    _of_session(
        "pyvtep_evpn_session_received_routes",
        "Routes of the neighbour that are valid now, imported or not.",
        lambda session: session["routes_received"],
    ),
    _of_session(
        "pyvtep_evpn_session_announced_routes",
        "Own routes that the neighbour has now.",
        lambda session: session["routes_announced"],
    ),
    _of_segment(
        "pyvtep_evpn_vteps",
        "Remote VTEPs of the VNI that want flooded frames (routes of type 3).",
        lambda segment: segment["vteps"],
    ),
    _of_segment(
        "pyvtep_evpn_remote_macs",
        "MAC addresses of the VNI that were learned by EVPN.",
        lambda segment: segment["macs"],
    ),
    _of_segment(
        "pyvtep_evpn_announced_routes",
        "Own routes of the VNI, of all types.",
        lambda segment: segment["announced"],
    ),
    _of_segment(
        "pyvtep_evpn_moves_total",
        "Moves of MAC addresses of the VNI between VTEPs, since the process that speaks BGP "
        "started.",
        lambda segment: segment["moves"],
    ),
    Metric(
        "pyvtep_evpn_duplicate_macs",
        ("vni",),
        "MAC addresses of the VNI that move too often between VTEPs.",
        _duplicates,
    ),
)
"""The metrics that are made from the state of EVPN."""
