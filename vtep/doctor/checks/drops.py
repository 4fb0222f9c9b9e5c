"""Checks of the drop counters of a pyvtep, with a remedy for each reason.

A counter that increases during the examination is a fault. One that does not is a note, since the
counters stay as they are after a repair.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from shlex import quote

from attrs import evolve, frozen

from vtep.counters import BY_DESIGN, Drop, duration
from vtep.doctor.facts import Drops, ProcessFacts, RemoteFacts, SegmentFacts
from vtep.doctor.finding import Finding, Severity, note, warning
from vtep.host.firewall import Verdict


@frozen
class Remedy:
    """The fix for a drop reason.

    Both texts are format strings, whose fields are those of `remedy_fields`, {source}, {tap},
    {mtu}, {at} and {output}.
    """

    fix: str
    without_source: str = ""
    """The fix if {source} is not known, for remedies that name it."""
    severity: Severity = Severity.WARNING


_LESS_TRAFFIC = "less traffic, or a faster processor for pyvtep"
_FIND_SENDER = Remedy(
    "find out what sends it: {capture} and src host {source}", "find out what sends it: {capture}"
)
_CUT_IN_SOFTWARE = "if it goes on, use no superframes: pyvtep set --offload none{at}"
_NOTHING_TO_DO = Remedy("nothing: this is what --anycast-gateway is for", severity=Severity.NOTE)
_ROUTE = Remedy(
    "look at the route and its source address: ip route get {source}",
    "look at the routes to the remotes: ip route; and at their device: ip -s link",
)

_IN_FRONT = "find the loop or the guest that floods: tcpdump -eni {tap} shows its address"
_BEHIND = (
    "find the loop or the guest that floods, at {source}: tcpdump -eni {tap} shows its address"
)


def _storm(kind: str, find: str) -> Remedy:
    """Return the remedy for frames beyond a limit of storm control."""
    more = f"; if this traffic is wanted: pyvtep set --storm-{kind} RATE{{at}}"
    return Remedy(find + more, find.replace(", at {source}", "") + more)


REMEDIES: Mapping[Drop, Remedy] = {
    Drop.UDP_CHECKSUM: Remedy(
        "at the sender, turn off the checksum offload of its underlay device (ethtool -K, tx off) "
        "or, over IPv4, send without checksums (--no-udpcsum)"
    ),
    Drop.RX_QUEUE_FULL: Remedy(_LESS_TRAFFIC),
    Drop.RX_FLOW_LIMITED: Remedy(
        "limit the guest that sends too much, at {source}, for example with tc at its bridge port; "
        f"or {_LESS_TRAFFIC}",
        "limit the guest that sends too much, for example with tc at its bridge port; "
        f"or {_LESS_TRAFFIC}",
    ),
    Drop.OVERLAY_INGRESS: Remedy(
        "find the guest that sends VXLAN to this host, on the bridge of a TAP: tcpdump -ni any -T "
        "vxlan udp dst port {port}; if the remotes are reached over that bridge, name it with --dev"
    ),
    Drop.HEADER_TRUNCATED: _FIND_SENDER,
    Drop.FLAGS_INVALID: _FIND_SENDER,
    Drop.HEADER_GPE: Remedy(
        "have {source} send plain VXLAN, without the generic protocol extension (gpe)",
        "have the sender use plain VXLAN, without the generic protocol extension (gpe): {capture}",
    ),
    Drop.PROBE_LIMITED: Remedy(
        "run fewer doctors at a time; if none runs, find out what sends it: {capture} and src host "
        "{source}",
        "run fewer doctors at a time; if none runs, find out what sends it: {capture}",
    ),
    Drop.GRO_BATCH_MISMATCH: _FIND_SENDER,
    Drop.VNI_UNKNOWN: Remedy(
        "use one VNI at both ends; {capture} and src host {source} shows the other one, and "
        "pyvtep vni add makes it known here",
        "use one VNI at both ends; {capture} shows the other one, and pyvtep vni add makes it "
        "known here",
    ),
    Drop.RESERVED_BITS: Remedy(
        "if such headers are to be accepted: pyvtep set --reserved-bits ignore{at}"
    ),
    Drop.SOURCE_UNKNOWN: Remedy(
        "if it is a VTEP of this segment: pyvtep remote add {source}{at}",
        "if it is a VTEP of this segment, add it with pyvtep remote add; {capture} shows its "
        "address",
    ),
    Drop.STORM_BROADCAST_RX: _storm("broadcast", _BEHIND),
    Drop.STORM_MULTICAST_RX: _storm("multicast", _BEHIND),
    Drop.INNER_RUNT: _FIND_SENDER,
    Drop.GROUP_DENIED: Remedy(
        "give both ends the same --gbp, or name the group of the other end with --gbp-accept"
    ),
    Drop.INNER_TAGGED: Remedy("if tags are to be accepted: pyvtep set --inner-vlan pass{at}"),
    Drop.INNER_SOURCE_INVALID: _FIND_SENDER,
    Drop.INNER_SOURCE_OWN: Remedy(
        "find the loop (are the hosts connected by another path, too? bridge link shows the "
        "ports), or give one of the TAPs another address with --mac"
    ),
    Drop.INNER_SOURCE_HELD: Remedy(
        "find the second host with that source, or the loop (are the hosts connected by another "
        "path, too?); pyvtep fdb show{at} shows what is held, and pyvtep fdb del releases it"
    ),
    **dict.fromkeys(
        (Drop.LOOP_BLOCKED_RX, Drop.LOOP_BLOCKED_TX),
        Remedy(
            "remove the second connection between the bridges of the hosts, or run STP on them "
            "(docs/loops.md); --loop-block 0 switches loop protection off"
        ),
    ),
    Drop.INNER_SOURCE_STATIC: Remedy(
        "pyvtep fdb show static{at} shows the static entries; delete the one that is wrong"
    ),
    Drop.CONGESTION: Remedy("less traffic, or a faster underlay"),
    Drop.ANYCAST_GW_SUPPRESSED_RX: _NOTHING_TO_DO,
    Drop.FAST_PATH_FAILED: Remedy(
        "report it with what pyvtep has logged; the fast path is off until pyvtep is restarted"
    ),
    Drop.TAP_DOWN: Remedy("ip link set {tap} up"),
    Drop.TAP_REFUSED: Remedy(_CUT_IN_SOFTWARE),
    Drop.TAP_QUEUE_FULL: Remedy(
        f"for bursts: ip link set {{tap}} txqueuelen 5000; else {_LESS_TRAFFIC}"
    ),
    Drop.TX_RUNT: Remedy("find the program that sends it: tcpdump -eni {tap} less 14"),
    Drop.TX_UNTAGGED: Remedy(
        "let the bridge send tagged frames of the VLANs only: bridge vlan add dev TAP vid VLAN, "
        "and bridge vlan del for others; its vlan_protocol must be 802.1Q"
    ),
    Drop.TX_VLAN_UNKNOWN: Remedy(
        "map the VLAN, which the log names, to a VNI: pyvtep vni add VNI --tap TAP --vlan VLAN; or "
        "keep it from the TAP: bridge vlan del dev TAP vid VLAN"
    ),
    Drop.TX_MALFORMED: Remedy(_CUT_IN_SOFTWARE),
    Drop.TX_TAGGED: Remedy("if tags are to be sent: pyvtep set --inner-vlan pass{at}"),
    Drop.STORM_BROADCAST_TX: _storm("broadcast", _IN_FRONT),
    Drop.STORM_MULTICAST_TX: _storm("multicast", _IN_FRONT),
    Drop.STORM_UNKNOWN_UNICAST_TX: _storm(
        "unknown-unicast",
        "the destination is silent or gone, or sends over another path: tcpdump -eni {tap} shows "
        "it, and pyvtep fdb add makes it known",
    ),
    Drop.NO_REMOTE: Remedy("add the other VTEPs with pyvtep remote add"),
    Drop.TX_TOO_BIG: Remedy(
        "nothing, if it ends soon; if not, a firewall keeps ICMP from the sender, or the sender "
        "ignores it: give it an MTU of {mtu}",
        severity=Severity.NOTE,
    ),
    Drop.ANYCAST_GW_SUPPRESSED_TX: _NOTHING_TO_DO,
    Drop.UNDERLAY_FULL: Remedy("less traffic, or a faster underlay: tc -s qdisc shows its queues"),
    Drop.UNDERLAY_TOO_BIG: Remedy(
        "if it goes on, the underlay carries less than packets of {mtu} octets and their headers "
        "need: set a lower --mtu at both ends with pyvtep set, or raise the MTU of the underlay"
    ),
    Drop.UNDERLAY_UNREACHABLE: _ROUTE,
    Drop.UNDERLAY_REFUSED: Remedy(
        "ask it: pyvtep doctor --remote {source} --dstport {port}",
        "start a VTEP at each remote, and open UDP port {port} there",
    ),
    Drop.UNDERLAY_DENIED: Remedy(
        "{output}",
        "look for the rule that drops what this host sends to UDP port {port}: nft list ruleset",
    ),
    Drop.UNDERLAY_FAILED: Remedy(
        "look at the options for the underlay of {tap}, such as --srcport, --local and --dev, and "
        "at what pyvtep has logged"
    ),
}
"""The remedy for each reason; a test checks that none is missing."""

REMEDIES_OF_EVPN: Mapping[Drop, Remedy] = {
    Drop.SOURCE_UNKNOWN: Remedy(
        "if it is a VTEP of this segment, no route of it was imported: pyvtep evpn show says why "
        "not, or pyvtep evpn show routes; a VTEP without EVPN: pyvtep remote add {source}{at}",
        "if it is a VTEP of this segment, no route of it was imported: pyvtep evpn show says why "
        "not; {capture} shows its address",
    ),
    Drop.NO_REMOTE: Remedy(
        "no VTEP of this segment has announced it by EVPN: pyvtep evpn show has the sessions, and "
        "what is not imported"
    ),
}
"""The remedies that differ in a segment whose remotes come by EVPN."""

GENERIC = Remedy("look at what pyvtep has logged, and at what it receives: {capture}")
"""The remedy for an unknown reason, which a pyvtep of another version may have."""

_BY_NAME = {str(reason): reason for reason in Drop}


def of_segment(segment: SegmentFacts, remotes: tuple[RemoteFacts, ...]) -> Iterator[Finding]:
    """Yield findings about the drops of a segment, whose remotes are `remotes`."""
    at = f" --vni {segment.vni}{_socket(segment.socket)}"
    fields = {
        **remedy_fields(segment.devices, segment.dstport),
        "tap": quote(segment.tap),
        "mtu": str(segment.mtu),
        "at": at,
    }
    output = next((each.firewall_out for each in remotes if each.firewall_out is not None), None)
    reported = _reported_by_remotes(remotes)
    if not segment.up:
        reported.add(Drop.TAP_DOWN)
    if segment.held:
        reported.add(Drop.INNER_SOURCE_HELD)
    if segment.loops:
        reported |= {Drop.LOOP_BLOCKED_RX, Drop.LOOP_BLOCKED_TX}
    # The kernel reports an ICMP error when the next datagram is sent, however late that is. The
    # examination of the remote is more recent.
    if segment.drops.last_source.get(Drop.UNDERLAY_REFUSED) in {each.host for each in remotes}:
        reported.add(Drop.UNDERLAY_REFUSED)
    for reason in _reasons(segment.drops):
        if reason not in reported:
            yield from _of_reason(
                *(reason, segment.tap, segment.drops, fields, segment.socket, output),
                is_evpn=bool(segment.options.get("evpn")),
            )


def describe_fix(
    name: str,
    source: str | None,
    fields: Mapping[str, str],
    output: Verdict | None = None,
    *,
    is_evpn: bool = False,
) -> str:
    """Return the remedy for a drop reason, which may be one of another version.

    `source` is the underlay address of the last drop, and `fields` are those of `remedy_fields`,
    {tap}, {mtu} and {at}. `output` are the rules that drop datagrams to a remote, if they are
    known. With `is_evpn`, the remotes of the segment come by EVPN.
    """
    reason = _BY_NAME.get(name)
    remedy = _remedy(reason, is_evpn=is_evpn)
    known = source if reason is not Drop.UNDERLAY_DENIED else output
    fix = remedy.fix if known or not remedy.without_source else remedy.without_source
    return fix.format(source=source, output=output.fix if output is not None else "", **fields)


def _remedy(reason: Drop | None, *, is_evpn: bool) -> Remedy:
    if reason is None:
        return GENERIC
    return (REMEDIES_OF_EVPN.get(reason) if is_evpn else None) or REMEDIES[reason]


def of_process(process: ProcessFacts, *, reported: Container[str] = ()) -> Iterator[Finding]:
    """Yield findings about the drops of a pyvtep that belong to none of its segments.

    The reasons in `reported` are left out: other findings report them.
    """
    fields = {
        **remedy_fields(process.devices, process.port),
        "tap": "pyvtep",
        "mtu": "that of the tunnel",
        "at": _socket(process.socket),
    }
    for reason in _reasons(process.drops):
        if reason in reported:
            continue
        yield from _of_reason(reason, "pyvtep", process.drops, fields, process.socket, None)


def merge(
    segments: Iterable[SegmentFacts], processes: Iterable[ProcessFacts]
) -> tuple[list[SegmentFacts], list[ProcessFacts]]:
    """Merge the drops of one fault that both a segment and its process have counted.

    A segment counts datagrams of unknown sources. If there is a flood of them, the kernel discards
    the most part before pyvtep reads it (see `vtep.daemon.punt_socket`), and the process counts
    that, without a source. These would be two findings about one fault.

    Returns: the segments with their share of the drops of the process, and the processes with the
    rest. Drops that may belong to several segments stay with the process.
    """
    merged, rest = list(segments), []
    reason = str(Drop.SOURCE_UNKNOWN)
    for process in processes:
        source = process.drops.last_source.get(reason)
        owners = [
            number
            for number, segment in enumerate(merged)
            if segment.socket == process.socket
            and segment.drops.count.get(reason)
            and source in (None, segment.drops.last_source.get(reason))
        ]
        if len(owners) != 1:
            rest.append(process)
            continue
        (owner,) = owners
        drops = _sum(merged[owner].drops, process.drops, reason)
        merged[owner] = evolve(merged[owner], drops=drops)
        rest.append(evolve(process, drops=_without(process.drops, reason)))
    return merged, rest


def _sum(one: Drops, other: Drops, reason: str) -> Drops:
    """Return `one` with the count of a reason in `other` added."""
    ages = [each.age[reason] for each in (one, other) if reason in each.age]
    return evolve(
        one,
        count={**one.count, reason: one.count.get(reason, 0) + other.count.get(reason, 0)},
        increase={
            **one.increase,
            reason: one.increase.get(reason, 0) + other.increase.get(reason, 0),
        },
        age={**one.age, reason: min(ages)} if ages else one.age,
    )


def _without(drops: Drops, reason: str) -> Drops:
    """Return drops without a reason."""
    return evolve(
        drops,
        count={each: n for each, n in drops.count.items() if each != reason},
        increase={each: n for each, n in drops.increase.items() if each != reason},
    )


def _reported_by_remotes(remotes: tuple[RemoteFacts, ...]) -> set[str]:
    """Return the reasons that findings about remotes report."""
    reported: set[str] = set()
    for remote in remotes:
        if remote.there.errors:
            reported |= {Drop.UNDERLAY_REFUSED, Drop.UNDERLAY_UNREACHABLE}
        if remote.dev is None:
            reported.add(Drop.UNDERLAY_UNREACHABLE)
        if remote.there.send_error is not None:
            reported.add(
                Drop.UNDERLAY_DENIED if remote.there.forbidden else Drop.UNDERLAY_UNREACHABLE
            )
    return reported


def _reasons(drops: Drops) -> list[str]:
    """Return the reasons that count: those that increase first, else in the order of `Drop`."""
    counted = [reason for reason, count in drops.count.items() if count > 0]
    increasing = [reason for reason, count in drops.increase.items() if count > 0]
    return list(dict.fromkeys([*increasing, *counted]))


def _of_reason(
    name: str,
    about: str,
    drops: Drops,
    fields: Mapping[str, str],
    socket: str | None,
    output: Verdict | None,
    *,
    is_evpn: bool = False,
) -> Iterator[Finding]:
    """Report one drop counter.

    `fields` are those of the remedies. `output` are the rules that drop datagrams to a remote.
    """
    reason = _BY_NAME.get(name)
    increase, count = drops.increase.get(name, 0), drops.count.get(name, 0)
    if increase <= 0 and reason in BY_DESIGN:  # It is not a fault, and has ended.
        return
    source = drops.last_source.get(name)
    remedy = _remedy(reason, is_evpn=is_evpn)
    denied = output if reason is Drop.UNDERLAY_DENIED else None
    fix = describe_fix(name, source, fields, output, is_evpn=is_evpn)
    meaning = f": {reason.meaning}" if reason is not None else ""
    last = f"; the last from {source}" if source is not None else ""
    if name.startswith("underlay_"):
        last = last.replace("from", "to")
    if increase > 0:
        # The counters may have been reset during the examination, so the count can be less.
        title = f"{name} {max(count, increase)}{meaning}{last}"
        report = note if remedy.severity is Severity.NOTE else warning
        explanation = (
            f"While the doctor looked, {increase} {'was' if increase == 1 else 'were'} dropped."
        )
        if denied is not None:
            explanation += f" {denied.culprit}"
        yield report(about, title, explanation, fix)
        return
    age = drops.age.get(name)
    ago = f", {duration(age)} ago" if age is not None else ""
    yield evolve(
        note(
            about,
            f"{name} {count}{meaning}{last or '; the last one' * bool(ago)}{ago}",
            "It did not increase while the doctor looked. To count from zero: pyvtep stats --reset"
            f"{_socket(socket)}.",
            f"should it come again: {fix}",
        ),
        earlier=True,
    )


def remedy_fields(devices: tuple[str, ...], port: int) -> dict[str, str]:
    """Return the fields of remedies that depend on the underlay: port and capture."""
    device = quote(devices[0]) if len(devices) == 1 else "any"
    return {"port": str(port), "capture": f"tcpdump -ni {device} -T vxlan udp dst port {port}"}


def _socket(path: str | None) -> str:
    """Return the option that names a control socket, if commands need it."""
    return f" --socket {path}" if path is not None else ""
