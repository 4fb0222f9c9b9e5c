"""The problems of a VTEP that make `pyvtep status` fail, from its state. No I/O.

A problem is a state that lasts and that an administrator should end. Drops are none: their counters
stay as they are after a repair, so `recent_drops` has them.
"""

from collections.abc import Iterable, Iterator, Sequence
from shlex import quote

from vtep.control.evpn_schema import EvpnReplacedNextHop, EvpnStatus, EvpnUnmatched
from vtep.control.schema import LoopEntry, Problem, ReloadStatus, SegmentStatus, StormEntry
from vtep.counters import duration

_NAMED_MAX = 3
"""Missing parts of the underlay that a line names."""

_SESSION_STARTS_S = 10.0
"""Seconds in one state without an error, after which a BGP session is a problem."""


def of_process(reload: ReloadStatus | None, now: float) -> Iterator[Problem]:
    """Yield the problems of a process that belong to none of its segments; `now` is wall time."""
    if reload is not None and not reload["successful"]:
        ago = duration(max(0.0, now - reload["time"]))
        yield _problem(
            "reload-failed",
            f"the last reload has failed, {ago} ago: pyvtep goes on with the former "
            "configuration; pyvtep reload shows why",
        )


def of_docker_network(vni: int, reason: str) -> Problem:
    """Return the problem of a segment that does not follow its Docker network, with the reason."""
    return _problem("docker-network", reason, vni)


def of_bridge(vni: int, dev: str, bridge: str, reason: str) -> Problem:
    """Return the problem of a TAP that is no port of its bridge, with the reason."""
    return _problem("wrong-bridge", f"{dev} is no port of its --bridge {bridge}: {reason}", vni)


def of_evpn(evpn: EvpnStatus) -> Iterator[Problem]:
    """Yield the problems of EVPN, the worst first."""
    speaker = evpn["speaker"]
    if speaker["state"] == "failed":
        reason = speaker["last_error"] or "it has ended"
        yield _problem(
            "evpn-speaker-failed",
            f"the EVPN speaker has failed, and is started again: {reason}; its entries stay for "
            "the time of stale-time; the log has more",
        )
        return
    if speaker["state"] == "silent":
        yield _problem(
            "evpn-speaker-failed",
            f"the EVPN speaker, process {speaker['pid']}, has not reported for "
            f"{duration(speaker['age'])}: it hangs, and its sessions may be down by now; it is "
            "killed after a minute, and started again; at once: pyvtep evpn restart",
        )
        return
    for session in evpn["sessions"]:
        if session["state"] == "established":
            continue
        is_new = session["last_error"] is None and not session["was_established"]
        if is_new and session["age"] < _SESSION_STARTS_S:
            continue
        reason = session["last_error"] or (
            f"it was before, and has no connection with its new settings, state {session['state']}"
            if session["was_established"]
            else f"no connection yet, state {session['state']}"
        )
        yield _problem(
            "evpn-session-down",
            f"the BGP session with {session['neighbor']} is not established: {reason}; find the "
            "cause: pyvtep doctor",
            remote=session["neighbor"],
        )
    for segment in evpn["segments"]:
        vni = segment["vni"]
        # Others may announce VNIs that this host has no part in.
        others = [each for each in evpn["unmatched"] if vni in each["vnis"]]
        if segment["vteps"] or segment["macs"] or not others:
            continue
        other = others[0]
        targets = _named(other["route_targets"], " ") or "no route target"
        yield _problem(
            "evpn-no-routes",
            f"no route is imported, while {other['vtep']} announces the VNI with {targets}, which "
            f"no VNI imports; {import_hint(other)}",
            *(vni, other["vtep"]),
        )
    for replaced in evpn["replaced_next_hops"]:
        yield _problem(
            "evpn-next-hop",
            describe_next_hop(replaced),
            replaced["vnis"][0],
            replaced["neighbor"],
        )
    for duplicate in evpn["duplicates"]:
        if duplicate["state"] == "conflict":
            yield _problem(
                "evpn-duplicate-mac",
                f"{duplicate['mac']} is a MAC of this host itself, and "
                f"{', '.join(duplicate['vteps'][1:])} announces it, too: give one of the bridges "
                "another MAC; or, if it is that of a gateway that all of them have, name its "
                "address with --anycast-gateway",
                duplicate["vni"],
            )
            continue
        # A duplicate lasts until its moves are older than that time: it may move no more.
        moves = "1 move" if duplicate["moves"] == 1 else f"{duplicate['moves']} moves"
        is_held = duplicate["state"] == "held"
        held = ", and is held where it is" if is_held else f" ({moves} within duplicate-time)"
        yield _problem(
            "evpn-duplicate-mac",
            f"{duplicate['mac']} moves too often between {', '.join(duplicate['vteps'])}"
            f"{held}: find the second host with this MAC, or the loop; then: pyvtep evpn clear "
            f"duplicate {duplicate['mac']}",
            duplicate["vni"],
        )


def describe_next_hop(replaced: EvpnReplacedNextHop) -> str:
    """Return what is wrong about a neighbour that is the next hop of routes of others."""
    return (
        f"the next hop of routes of {_named(replaced['vteps'])} is the BGP neighbour "
        f"{replaced['neighbor']} itself, which is no VTEP (it has no route of type 3), so "
        "frames to their MACs are lost; there, with FRR, in address-family l2vpn evpn: "
        "neighbor ... attribute-unchanged next-hop"
    )


def unexplained(found: Iterable[Problem], evpn: EvpnStatus | None) -> Iterator[Problem]:
    """Yield the problems of segments whose cause is not among those of EVPN.

    A neighbour that has replaced next hops refuses datagrams, but no VTEP is to be started there.
    """
    replaced = evpn.get("replaced_next_hops", ()) if evpn is not None else ()
    no_vteps = {(vni, each["neighbor"]) for each in replaced for vni in each["vnis"]}
    for problem in found:
        is_of_remote = problem["problem"] in {"remote-refused", "remote-silent"}
        if not is_of_remote or (problem["vni"], problem["remote"]) not in no_vteps:
            yield problem


def _named(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return separator.join(names[:_NAMED_MAX]) + more


def import_hint(other: EvpnUnmatched) -> str:
    """Return what imports routes that no VNI imports."""
    if not other["route_targets"]:
        return "give them a route target at their sender"
    if other["import_target"] is not None:
        return f"import them with --route-target-import {other['import_target']}"
    if len(other["vnis"]) > 1:
        return (
            "import those of one VNI with --route-target-import and the target that only they "
            "have: pyvtep evpn show routes"
        )
    return (
        "routes of other VNIs have it, too, and would be imported with them: give them a route "
        "target of their own at their sender"
    )


def of_segment(
    segment: SegmentStatus,
    loops: Iterable[LoopEntry],
    storms: Iterable[StormEntry],
    *,
    fast_path_failed: bool,
) -> Iterator[Problem]:
    """Yield the problems of a segment, the worst first."""
    vni, dev = segment["vni"], segment["dev"]
    if segment["state"] == "missing":
        netns = segment["netns"]
        ended = "" if netns is None else f", or its network namespace --netns {netns} has ended"
        yield _problem(
            "port-down",
            f"the TAP device {dev} was removed{ended}; create it again with pyvtep vni add {vni}, "
            f"or with pyvtep reload if a --config file has it, or give it up: pyvtep vni del {vni}",
            vni,
        )
        return
    if segment["state"] == "down":
        yield _problem("port-down", f"{dev} is down: ip link set {quote(dev)} up", vni)
    if missing := segment["underlay_missing"]:
        more = len(missing) - _NAMED_MAX
        rest = f" and {more} more" if more > 0 else ""
        yield _problem(
            "underlay-missing",
            f"waiting for the underlay: {'; '.join(missing[:_NAMED_MAX])}{rest}",
            vni,
        )
    for name in segment["names"]:
        if name["error"] is not None:
            kept = ", ".join(name["addresses"])
            goes_on = f"{kept} of its last answer stay its remotes" if kept else "it has no address"
            yield _problem(
                "name-unresolved",
                f"--remote {name['name']}: {name['error']}: {goes_on}, and it is looked up again; "
                f"see what this host finds: getent ahosts {name['name']}",
                vni,
            )
    for remote in segment["remotes"]:
        yield from _of_remote(vni, remote["remote"], remote["liveness"], segment["dstport"])
    for loop in loops:
        yield _problem(
            "loop",
            f"a loop leads over {loop['remote']}: flooding with it is stopped for "
            f"{loop['blocked']:.0f} s more; remove the second connection between the bridges of "
            "the hosts (docs/loops.md)",
            *(vni, loop["remote"]),
        )
    for storm in storms:
        if storm["state"] == "dropping":
            source = storm["remote"] if storm["remote"] is not None else dev
            if storm["direction"] == "rx" and storm["remote"] is None:
                source = "the remotes"
            yield _problem(
                "storm",
                f"{storm['traffic']} from {source} exceeds its limit, {storm['dropped']} frames "
                f"were dropped: find the loop or the guest that floods: tcpdump -eni {quote(dev)}",
                *(vni, storm["remote"]),
            )
    if fast_path_failed:
        yield _problem(
            "fast-path-failed",
            f"the fast path has failed: {segment['fast_path_reason']}; forwarding goes on, slower; "
            "pyvtep set --fast-path tries again",
            vni,
        )


def _of_remote(vni: int, remote: str, liveness: str, dstport: int) -> Iterator[Problem]:
    """Yield the problem of a remote that does not answer, if it is one."""
    if liveness == "silent":
        yield _problem(
            "remote-silent",
            f"{remote} is silent: it has answered before, and does not answer any more; ask it: "
            f"pyvtep doctor --remote {remote}",
            *(vni, remote),
        )
    elif liveness == "refused":
        yield _problem(
            "remote-refused",
            f"{remote} refuses datagrams: start a VTEP there, and open UDP port {dstport}",
            *(vni, remote),
        )


def _problem(problem: str, text: str, vni: int | None = None, remote: str | None = None) -> Problem:
    about = f"vni {vni}: " if vni is not None else ""
    return {"problem": problem, "vni": vni, "remote": remote, "text": about + text}
