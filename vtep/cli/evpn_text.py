"""Tables and lines of `pyvtep evpn show` and `pyvtep status` about EVPN."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from vtep.control.evpn_schema import EvpnReport, EvpnSession, EvpnSpeaker
from vtep.control.problems import describe_next_hop, import_hint
from vtep.counters import duration

SUMMARY_ROWS: Final = 20
"""Rows of each table in a summary."""

TITLES: Final = {
    "sessions": "sessions",
    "segments": "VNIs",
    "vteps": "VTEPs",
    "moves": "last moves",
    "duplicates": "duplicate MACs",
}

_NAMED = 5
"""Route targets or VNIs that a line names."""

_OWN_ROUTE = "own-route"

_Row = Mapping[str, Any]


def describe_speaker(speaker: EvpnSpeaker) -> str:
    """Return a line about the process that speaks BGP."""
    words = [f"speaker {speaker['state']} for {duration(speaker['age'])}"]
    if speaker["state"] == "silent":
        words.append("so the sessions below are as they were then")
    if speaker["pid"] is not None:
        words.append(f"pid {speaker['pid']}")
    if speaker["version"] is not None:
        words.append(f"version {speaker['version']}")
    if speaker["restarts"]:
        times = "once" if speaker["restarts"] == 1 else f"{speaker['restarts']} times"
        words.append(f"restarted {times}")
    if speaker["last_error"] is not None:
        words.append(f"last error: {speaker['last_error']}")
    return ", ".join(words)


def table(what: str, rows: Iterable[_Row]) -> tuple[Mapping[str, str], Iterable[Sequence[object]]]:
    """Return the columns of a view, and its rows as cells; as `print_table` takes them."""
    columns = _COLUMNS[what]
    alignments = {heading: alignment for heading, alignment, _ in columns}
    return alignments, (tuple(cell(row) for _, _, cell in columns) for row in rows)


def notes(report: EvpnReport) -> Iterator[str]:
    """Yield lines about what is not imported, what is ignored, and what is wrong."""
    for session in report["sessions"]:
        if session["last_error"] is not None:
            ago = session["last_error_age"]
            when = "" if ago is None else f" {duration(ago)} ago"
            state = " (established now)" if session["state"] == "established" else ""
            yield f"{session['neighbor']}{when}{state}: {session['last_error']}"
    for other in report["unmatched"][:SUMMARY_ROWS]:
        targets = _some(other["route_targets"]) or "no route target"
        yield (
            f"not imported: routes of {other['vtep']}{_vnis(other['vnis'])} with {targets}, from "
            f"{other['neighbor']}; {import_hint(other)}"
        )
    if more := {each["vtep"] for each in report["unmatched"][SUMMARY_ROWS:]}:
        yield f"and routes of {len(more)} more VTEPs: --json has them"
    for each in report["label_conflicts"][:SUMMARY_ROWS]:
        yield (
            f"ignored: routes of {each['vtep']} have {_some(each['route_targets'])} for vni "
            f"{each['vni']}, but vni {each['label']} in their label; give both sides the same VNI; "
            f"or, if vni {each['label']} there is this segment, import the target by name: "
            f"--route-target-import {each['route_targets'][0]}"
        )
    for replaced in report.get("replaced_next_hops", [])[:SUMMARY_ROWS]:
        yield f"vni {_some(replaced['vnis'], ', ')}: {describe_next_hop(replaced)}"
    if report["ignored"]:
        counts = ", ".join(
            f"{count} of type {kind}" for kind, count in sorted(report["ignored"].items())
        )
        yield f"routes that pyvtep does not use: {counts}"
    # A reflector sends the routes of this host back: they are no loss.
    lost = {name: count for name, count in report["not_installed"].items() if name != _OWN_ROUTE}
    if lost:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))
        yield f"routes that are not installed: {counts}; pyvtep evpn show routes has them"
    for segment in report["segments"]:
        if segment["conflicts"]:
            yield (
                f"vni {segment['vni']}: {segment['conflicts']} MACs are static here or sticky "
                "elsewhere, and another VTEP announces them, too; the log has them"
            )
    yield from report["problems"]


def _vnis(vnis: Sequence[int]) -> str:
    return f" (vni {_some(vnis, ', ')})" if vnis else ""


def _some(values: Sequence[object], separator: str = " ") -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return separator.join(map(str, values[:_NAMED])) + more


def describe_session(session: EvpnSession) -> str:
    """Return the state of a session in a few words, for `pyvtep status`."""
    asn = "" if session["remote_asn"] is None else f"AS {session['remote_asn']} "
    text = f"{asn}for {duration(session['age'])}"
    if session["state"] != "established":
        return text
    end = "" if session["end_of_rib"] else " (not all yet)"
    return f"{text}; routes rx {session['routes_received']}{end}, tx {session['routes_announced']}"


def _text(name: str, empty: str = "") -> Callable[[_Row], object]:
    """Return a cell with the value of a key."""
    return lambda row: empty if row[name] is None else row[name]


def _age(row: _Row) -> str:
    return duration(row["age"])


def _words(name: str, empty: str = "") -> Callable[[_Row], object]:
    """Return a cell with the values of a list."""
    return lambda row: empty if row[name] is None else " ".join(map(str, row[name]))


def _session_flags(row: _Row) -> str:
    names = {"passive": "passive", "password": "md5", "end_of_rib": "eor"}
    return " ".join(word for name, word in names.items() if row[name])


def _mac_flags(row: _Row) -> str:
    flags = [row["state"]] if row["state"] != "active" else []
    return " ".join([*flags, *(["sticky"] if row["sticky"] else []), *_unused(row)])


def _route_flags(row: _Row) -> str:
    """Return the flags of a route, and why it is not used."""
    names = ("best", "sticky", "default_gateway", "router", "stale")
    flags = [name.replace("_", "-") for name in names if row[name]]
    return " ".join([*flags, *_unused(row)])


def _vtep_flags(row: _Row) -> str:
    return " ".join([*(name for name in ("flood", "stale") if row[name]), *_unused(row)])


def _unused(row: _Row) -> list[str]:
    """Return why something is not used, as a flag."""
    return [] if row["reason"] is None else [f"unused({row['reason']})"]


_VNI = ("VNI", "right", _text("vni"))
_MAC_CELL = ("MAC", "", _text("mac"))
_AGE = ("AGE", "right", _age)

_COLUMNS: Mapping[str, Sequence[tuple[str, str, Callable[[_Row], object]]]] = {
    "sessions": (
        ("NEIGHBOR", "", _text("neighbor")),
        ("ASN", "right", _text("remote_asn")),
        ("STATE", "", _text("state")),
        _AGE,
        ("LOCAL", "", _text("local")),
        ("ROUTER-ID", "", _text("router_id")),
        ("HOLD", "right", _text("hold_time")),
        ("RX", "right", _text("routes_received")),
        ("TX", "right", _text("routes_announced")),
        ("FLAGS", "", _session_flags),
    ),
    "segments": (
        _VNI,
        ("RD", "", _text("rd")),
        ("IMPORT", "", _words("import_targets", "auto")),
        ("EXPORT", "", _words("export_targets")),
        ("LOCAL", "", _words("local")),
        ("VTEPS", "right", _text("vteps")),
        ("MACS", "right", _text("macs")),
        ("NEIGH", "right", _text("neighbours")),
        ("TX", "right", _text("announced")),
    ),
    "vteps": (
        _VNI,
        ("VTEP", "", _text("vtep")),
        ("NEIGHBOR", "", _text("neighbor")),
        ("MACS", "right", _text("macs")),
        ("FLAGS", "", _vtep_flags),
        _AGE,
    ),
    "macs": (
        _VNI,
        _MAC_CELL,
        ("VTEP", "", _text("vtep", "local")),
        ("NEIGHBOR", "", _text("neighbor")),
        ("IP", "", _words("ip")),
        ("SEQ", "right", _text("sequence")),
        ("FLAGS", "", _mac_flags),
        _AGE,
    ),
    "moves": (
        _VNI,
        _MAC_CELL,
        ("FROM", "", _text("old", "local")),
        ("TO", "", _text("new", "local")),
        ("SEQ", "right", _text("sequence")),
        _AGE,
    ),
    "duplicates": (
        _VNI,
        _MAC_CELL,
        ("STATE", "", _text("state")),
        ("SEQ", "right", _text("sequence")),
        ("MOVES", "right", _text("moves")),
        ("VTEPS", "", _words("vteps")),
        _AGE,
    ),
    "routes": (
        ("TYPE", "right", _text("type")),
        _VNI,
        ("RD", "", _text("rd")),
        _MAC_CELL,
        ("IP", "", _text("ip")),
        ("NEXT-HOP", "", _text("next_hop")),
        ("LABEL", "right", _text("label")),
        ("SEQ", "right", _text("sequence")),
        ("NEIGHBOR", "", _text("neighbor", "local")),
        ("TARGETS", "", _words("route_targets")),
        ("FLAGS", "", _route_flags),
        _AGE,
    ),
}
