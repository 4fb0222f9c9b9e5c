"""What is wrong, in plain words, and what mends it: a function of the facts alone."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain

from attrs import frozen

from vtep.counters import Drop
from vtep.doctor.facts import (
    BridgeFacts,
    Drops,
    Facts,
    HolderFacts,
    HostFacts,
    IcmpError,
    Refusal,
    RemoteFacts,
    SegmentFacts,
)
from vtep.firewall import Verdict
from vtep.probe import Status
from vtep.wire import vxlan


class Severity(StrEnum):
    """How bad a finding is. A note is nothing wrong: it says what could not be known."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


@frozen
class Finding:
    """Something that is wrong, or will be: what, why that matters, and what mends it."""

    severity: Severity
    about: str
    """The remote, device or counter."""
    title: str
    explanation: str = ""
    fix: str = ""


def findings(facts: Facts) -> list[Finding]:
    """All that is to be said, the worst first."""
    found = chain(
        _of_host(facts),
        chain.from_iterable(_of_remote(remote, facts) for remote in facts.remotes),
        chain.from_iterable(_of_segment(segment) for segment in facts.segments),
        chain.from_iterable(_of_drops(segment.drops, segment) for segment in facts.segments),
        chain.from_iterable(_of_drops(drops, None) for drops in facts.drops),
    )
    order = list(Severity)
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.severity))


def wrong(found: Iterable[Finding]) -> bool:
    """Whether there is anything to be mended."""
    return any(finding.severity is not Severity.NOTE for finding in found)


def _problem(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    return Finding(Severity.PROBLEM, about, title, explanation, fix)


def _warning(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    return Finding(Severity.WARNING, about, title, explanation, fix)


def _note(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    return Finding(Severity.NOTE, about, title, explanation, fix)


# --- this host ------------------------------------------------------------------------------


def _of_host(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if not host.root:
        yield _note(
            "this host",
            "not everything could be examined without privileges",
            "Answers to the VXLAN port, ARP, ICMP and the firewall's rules are for root to see.",
            "run it as root: sudo pyvtep doctor",
        )
    for holder in host.holders:
        yield from _of_port(holder, facts)
    for address, mac in host.own_conflicts.items():
        yield _problem(
            address,
            f"{address}, an address of this host, is that of another host too",
            f"Another host{f' with the MAC {mac}' if mac else ''} claims it on the same link. "
            "Datagrams for this host go to one of the two, and it changes which.",
            f"give one of them another address: ip addr del {address}/LEN dev DEV",
        )
    yield from _of_checksums(host)


def _of_port(holder: HolderFacts, facts: Facts) -> Iterator[Finding]:
    port = holder.port
    if facts.pyvteps or holder.pyvtep:
        return
    about = f"UDP port {port}"
    if holder.devices:
        names = ", ".join(holder.devices)
        yield _problem(
            about,
            f"the kernel VXLAN device {names} has UDP port {port} on this host",
            "Two VTEPs can't share a port: pyvtep can't start, and datagrams from the remotes go "
            "to that device.",
            f"remove it (ip link del {holder.devices[0]}), or let all VTEPs of pyvtep's segment "
            "use another port (--dstport)",
        )
    elif holder.process is not None:
        yield _problem(
            about,
            f"{holder.process} has UDP port {port} on this host",
            "pyvtep can't start while another program has it.",
            "end that program, or let all VTEPs use another port (--dstport)",
        )


def _of_checksums(host: HostFacts) -> Iterator[Finding]:
    if host.checksum_errors_meanwhile:
        yield _warning(
            "this host",
            f"{host.checksum_errors_meanwhile} UDP datagrams with a wrong checksum came meanwhile",
            "The kernel drops them before pyvtep sees them. Often a network card, or a veth of a "
            "container or virtual machine, was to finish checksums and does not; over IPv6 it may "
            "be datagrams without one, which --no-udp6zerocsumrx refuses.",
            "at the sender: ethtool -K DEV tx off; over IPv6 here: --udp6zerocsumrx",
        )


# --- remotes --------------------------------------------------------------------------------


def _of_remote(remote: RemoteFacts, facts: Facts) -> Iterator[Finding]:
    host = remote.host
    if remote.is_own:
        yield _problem(
            host,
            f"{host} is an address of this host itself",
            "A remote is another host; frames that are sent to this one come back to us.",
            f"give the other host's address: pyvtep remote del {host}, pyvtep remote add IP",
        )
        return
    if remote.no_route is not None:
        yield _problem(
            host,
            f"this host has no route to {host} ({remote.no_route})",
            "",
            f"add one: ip route add {host} via GATEWAY; or bring up the device of the underlay",
        )
        return
    if remote.macs is not None and len(remote.macs) > 1:
        yield _problem(
            host,
            f"{len(remote.macs)} hosts claim to be {host}: {', '.join(remote.macs)}",
            "Datagrams go to one of them, and it changes which. (A host with two network cards on "
            "one link, or a proxy for ARP, looks the same.)",
            f"give one of them another address; ip neigh show {host} says which one is used now",
        )
    if remote.there.delays:
        yield from _of_answers(remote)
        yield from _of_mtu(remote, facts)
    else:
        yield from _of_silence(remote)


def _of_answers(remote: RemoteFacts) -> Iterator[Finding]:
    """What is wrong with a remote that answers."""
    host, there, back = remote.host, remote.there, remote.back
    own = remote.source or "the address of this host"
    if there.status is Status.VNI_UNKNOWN:
        yield _problem(
            host,
            f"{host} runs pyvtep, but not with vni {remote.vni}",
            "It drops every frame of it (its counter is vni_unknown).",
            f"on {host}: pyvtep vni add {remote.vni} --remote {own}; or use one VNI at both ends",
        )
    elif there.status is Status.SOURCE_UNKNOWN:
        yield _problem(
            host,
            f"{host} has vni {remote.vni}, but does not listen to {own} in it",
            "It drops every frame from here (its counter is source_unknown).",
            f"on {host}: pyvtep remote add {own} --vni {remote.vni}",
        )
    if there.answered_from not in (None, host):
        yield _problem(
            host,
            f"{host} answers from another of its addresses, {there.answered_from}",
            "Its frames come from there as well, and are refused here, since that is no --remote.",
            f"on {host}, start pyvtep with --local {host}; or here: pyvtep remote add "
            f"{there.answered_from}",
        )
    if back is not None and not back.delays:
        yield _back_is_closed(remote)
    elif lost := there.sent - len(there.delays):
        yield _warning(
            host,
            f"{lost} of {there.sent} datagrams to {host} or back were lost",
            "The underlay loses packets, or one end is too busy to read them (rx_queue_full in "
            "pyvtep stats).",
            f"look where: mtr -u -P {remote.port} {host}",
        )


def _back_is_closed(remote: RemoteFacts) -> Finding:
    host, port = remote.host, remote.port
    title = f"nothing from {host} reaches UDP port {port} of this host"
    if remote.firewall is not None:
        return _problem(
            host,
            title,
            "Datagrams get there, and answers to what this host has asked come back, but not what "
            f"comes by itself, as frames do: {_culprit(remote.firewall)}.",
            remote.firewall.fix,
        )
    return _problem(
        host,
        title,
        "Datagrams get there, and answers to what this host has asked come back, but not what "
        "comes by itself, as frames do. No rule of this host's own firewall is seen to drop it, so "
        "it is one before this host: of the network, or a security group of its cloud.",
        f"open UDP port {port} from {host} to {remote.source or 'this host'} there",
    )


def _culprit(verdict: Verdict) -> str:
    does = "drops it" if verdict.certain else "may drop it (its conditions are not understood here)"
    return f"{verdict.rule} {does}"


def _of_silence(remote: RemoteFacts) -> Iterator[Finding]:
    """What is to be said of a remote that does not answer."""
    host, there = remote.host, remote.there
    if there.send_error is not None:
        yield _not_sent(remote, there.send_error)
        return
    if there.errors:
        yield _refused(remote, there.errors[0])
        return
    if remote.firewall is not None and remote.firewall.certain:
        yield _problem(
            host,
            f"this host's firewall drops what comes from {host} to UDP port {remote.port}",
            f"{_capital(_culprit(remote.firewall))}.",
            remote.firewall.fix,
        )
    if remote.through:
        yield _note(
            host,
            f"{host} does not answer pyvtep's echo, but somebody behind it answers a ping",
            "So the tunnel works. It is a VTEP of another kind, such as the kernel's; delay, loss "
            "and path MTU of the way to it can't be measured.",
        )
    elif (
        not remote.pings
        and not remote.macs
        and remote.gateway is None
        and (remote.macs is not None or remote.pings is not None)
    ):
        yield _problem(
            host,
            f"{host} does not exist, or is down",
            f"Nobody on {remote.dev} says to have this address, and it answers no ping.",
            f"check the address and that the host is up: ping {host}",
        )
    else:
        yield _eaten(remote)


def _not_sent(remote: RemoteFacts, error: str) -> Finding:
    host = remote.host
    if remote.there.forbidden:
        return _problem(
            host,
            f"this host's own firewall forbids to send to UDP port {remote.port} of {host}",
            "",
            "nft list ruleset shows the rule: look at chains with hook output; to allow it: "
            f"iptables -I OUTPUT -p udp --dport {remote.port} -j ACCEPT",
        )
    return _problem(
        host,
        f"this host cannot send to {host}: {error}",
        "",
        f"look at the route and the device: ip route get {host}",
    )


def _refused(remote: RemoteFacts, error: IcmpError) -> Finding:
    host, port = remote.host, remote.port
    itself = error.host == host.partition("%")[0]  # ICMP tells no scope.
    if error.refusal is Refusal.PORT and itself:
        return _problem(
            host,
            f"{host} has nobody on UDP port {port}",
            "It said so by ICMP: no VTEP runs there, or it uses another port, or a firewall there "
            "rejects.",
            f"start the VTEP there, with --dstport {port}; who has which port, there: ss -ulpn "
            "and ip -d link show type vxlan",
        )
    if error.refusal is Refusal.HOST:
        return _problem(
            host,
            f"{host} can't be reached",
            f"{error.host} says that there is no way to it."
            if not itself
            else "Nobody answers for its address.",
            f"check the address, that the host is up, and the routes: ip route get {host}",
        )
    return _problem(
        host,
        f"a firewall refuses UDP port {port} of {host}",
        f"It is on {error.host}, which said so by ICMP.",
        f"there: iptables -I INPUT -p udp --dport {port} -j ACCEPT, or nft insert rule inet "
        f"filter input udp dport {port} accept",
    )


def _eaten(remote: RemoteFacts) -> Finding:
    """Silence, which can have several reasons that can't be told apart from here."""
    host, port, own = remote.host, remote.port, remote.source or "this host"
    alive = f"{host} is there (it answers {'ping' if remote.pings else 'ARP'}), but "
    known = alive if remote.pings or remote.macs else ""
    vni = f" --vni {remote.vni}" if remote.vni is not None else ""
    heard = tried = ""
    if remote.through is not None:
        tried = " Nobody behind it has answered a ping through the tunnel (of IPv6, to all) either."
    if remote.heard is not None:
        heard = f" Frames do come from there, the last {remote.heard:.0f} s ago."
    say = _warning if remote.through is None else _problem
    return say(
        host,
        f"{known}nothing answers from its UDP port {port}",
        f"It is one of these, which look the same from here: a firewall drops UDP port {port} "
        f"there or on the way; pyvtep runs there but does not have {own} as a --remote (there, "
        "source_unknown counts); or it is a VTEP of another kind, such as the kernel's, which "
        f"never answers, and then nothing need be wrong.{tried}{heard}",
        f"on {host}: pyvtep doctor --remote {own}; pyvtep stats; and if source_unknown counts: "
        f"pyvtep remote add {own}{vni}",
    )


def _of_mtu(remote: RemoteFacts, facts: Facts) -> Iterator[Finding]:
    host = remote.host
    overhead = vxlan.OVERHEAD_V6 if ":" in host else vxlan.OVERHEAD_V4
    carried = [segment.mtu + overhead for segment in facts.segments if segment.vni == remote.vni]
    needed = max(carried, default=remote.dev_mtu or 0)
    sizes = {
        words: path.size
        for words, path in (("to", remote.mtu_there), ("from", remote.mtu_back))
        if path is not None and path.size is not None and path.size < needed
    }
    if not sizes:
        return
    told_by = remote.mtu_there.told_by if remote.mtu_there is not None else None
    told = ""
    if told_by is not None:
        told = f" {told_by} says so by ICMP, which a pyvtep follows by itself in some seconds."
    elif "to" in sizes:
        told = " Nobody says so by ICMP, which is filtered somewhere, so no pyvtep finds out."
    size = min(sizes.values())
    at = f" --vni {remote.vni}" if remote.vni is not None else ""
    yield _warning(
        host,
        f"the way {' and '.join(sizes)} {host} carries {size} octets, and {needed} are needed",
        f"Larger datagrams are fragmented, which is slow, or lost.{told}",
        f"at both ends: pyvtep set{at} --mtu {size - overhead}; or raise the MTU on the way",
    )


# --- segments -------------------------------------------------------------------------------


def _of_segment(segment: SegmentFacts) -> Iterator[Finding]:
    tap = segment.tap
    if not segment.up:
        yield _problem(
            tap,
            f"{tap} is down",
            "Frames from the tunnel are dropped (tap_down), and none come from this host.",
            f"ip link set {tap} up",
        )
    if segment.bridge is not None:
        yield from _of_bridge(segment, segment.bridge)
    elif not segment.addresses:
        yield _warning(
            tap,
            f"{tap} has no address and is on no bridge",
            "So nobody on this host uses the tunnel.",
            f"ip addr add 10.0.0.1/24 dev {tap}, or ip link set {tap} master BRIDGE",
        )
    yield from _of_conflicts(segment)
    yield from _of_offload(segment)
    if segment.options.get("udp6zerocsumtx"):
        yield _note(
            tap,
            f"{tap} sends UDP over IPv6 without checksums (--udp6zerocsumtx)",
            "Kernel VXLAN devices drop such datagrams, unless they were made with udp6zerocsumrx.",
            "--no-udp6zerocsumtx, or udp6zerocsumrx at the other end",
        )


def _of_conflicts(segment: SegmentFacts) -> Iterator[Finding]:
    """Addresses on the segment that two hosts have."""
    tap, vni = segment.tap, segment.vni
    bridge = segment.bridge.name if segment.bridge is not None else tap
    devices = {
        address: tap if address in segment.addresses else bridge for address in segment.conflicts
    }
    named = segment.options.get("gateway")
    gateways = [str(each) for each in named] if isinstance(named, list | tuple) else []
    gateways += [address for address, dev in devices.items() if dev != tap]
    for address, mac in segment.conflicts.items():
        dev = devices[address]
        fix = f"give one of them another address: ip addr del {address}/LEN dev {dev}"
        if dev != tap:
            keep = " ".join(f"--gateway {gateway}" for gateway in gateways)
            fix += (
                "; or, if each host is to keep it as the gateway of its own guests, on both: "
                f"pyvtep set --vni {vni} {keep}"
            )
        yield _problem(
            tap,
            f"{address}, an address of {dev}, is that of somebody beyond the tunnel too",
            f"{mac} has answered for it (pyvtep fdb get {mac} --vni {vni} says behind which "
            "remote). Who asks for it on the segment gets one of the two, and it changes which.",
            fix,
        )


def _of_bridge(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    tap, name = segment.tap, bridge.name
    if segment.addresses:
        yield _warning(
            tap,
            f"{tap} is a port of the bridge {name} and has an address itself",
            "An address on a port of a bridge does not work reliably: it belongs to the bridge.",
            f"ip addr del {segment.addresses[0]}/LEN dev {tap}; ip addr add "
            f"{segment.addresses[0]}/LEN dev {name}",
        )
    if not bridge.up:
        yield _problem(
            tap, f"the bridge {name} is down", "It forwards nothing.", f"ip link set {name} up"
        )
    elif segment.up and bridge.state != "forwarding":
        learning = bridge.state in ("listening", "learning")
        yield _problem(
            tap,
            f"the bridge {name} does not forward to {tap}: the port is {bridge.state}",
            "It will in some seconds: STP waits for its forward delay."
            if learning
            else "STP has closed the port because there is another way to the same hosts, a loop: "
            "without STP, frames would circle.",
            f"ip link set {name} type bridge stp_state 0 && bridge link set dev {tap} state 3",
        )
    if bridge.isolated and any(other.isolated for other in bridge.others):
        hidden = ", ".join(other.name for other in bridge.others if other.isolated)
        yield _warning(
            tap,
            f"{tap} is isolated from other ports of {name}: {hidden}",
            "Isolated ports of a bridge don't reach each other.",
            f"bridge link set dev {tap} isolated off",
        )
    if bridge.hairpin:
        yield _warning(
            tap,
            f"{tap} is a hairpin port of {name}",
            "The bridge sends frames back into the tunnel that they came from: every broadcast "
            "comes back, and MACs seem to be at the wrong end.",
            f"bridge link set dev {tap} hairpin off",
        )
    yield from _of_bridge_mtu(segment, bridge)
    if bridge.netfilter and bridge.forward is not None:
        say = _problem if bridge.forward.certain else _note
        yield say(
            name,
            f"the firewall of this host {'drops' if bridge.forward.certain else 'may drop'} IP "
            f"that crosses the bridge {name}",
            "Frames on bridges go through the rules for forwarding "
            f"(net.bridge.bridge-nf-call-iptables is 1), and there {_culprit(bridge.forward)}.",
            f"{bridge.forward.fix}; or, for all bridges: sysctl -w "
            "net.bridge.bridge-nf-call-iptables=0",
        )


def _of_bridge_mtu(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    tap = segment.tap
    larger = [other for other in bridge.others if other.mtu > segment.tap_mtu]
    if not larger:
        return
    names = ", ".join(f"{other.name} {other.mtu}" for other in larger[:4])
    more = f" and {len(larger) - 4} more" if len(larger) > 4 else ""
    yield _problem(
        tap,
        f"ports of {bridge.name} have a larger MTU than {tap}: {names}{more}",
        f"{tap} has {segment.tap_mtu}, and the bridge drops what is larger before pyvtep can cut "
        "it, or tell its sender: small packets pass, large ones hang.",
        f"ip link set {tap} mtu {max(other.mtu for other in larger)}",
    )


_NEEDS = {
    "tso": "the TAP takes no TCP superframes (TUN_F_TSO4, which every kernel since 2.6.27 has)",
    "uso": "the TAP takes no UDP superframes, for which the kernel must be 6.2 or newer",
    "gso": "UDP_SEGMENT needs kernel 4.18 or newer",
    "gro": "UDP_GRO needs kernel 5.0 or newer",
    "tnl": "superframes leave whole only with tso, kernel 6.17 or newer, and CAP_BPF",
}


def _of_offload(segment: SegmentFacts) -> Iterator[Finding]:
    asked = segment.options.get("offload")
    wanted = frozenset(asked) if isinstance(asked, list | tuple) else frozenset[str]()
    missing = sorted(wanted - segment.offload)
    if missing:
        yield _note(
            segment.tap,
            f"{segment.tap} works without the offload {', '.join(missing)}: it is slower",
            "; ".join(_NEEDS.get(name, name) for name in missing) + ".",
            "a newer kernel; nothing is lost without",
        )
    if off := sorted(frozenset(_NEEDS) - wanted):
        yield _note(
            segment.tap,
            f"{segment.tap} was told not to use the offload {', '.join(off)}",
            "It is slower without.",
            "pyvtep set --offload auto",
        )


# --- counters -------------------------------------------------------------------------------

_LASTING = {
    Drop.SOURCE_UNKNOWN: "if it is a VTEP of this segment: pyvtep remote add {source}{vni}",
    Drop.VNI_UNKNOWN: "use one --vni at both ends; to have another one here: pyvtep vni add N",
    Drop.FLAGS_INVALID: "find who sends what is no VXLAN to this port: tcpdump -ni any "
    "udp port {port}",
    Drop.HEADER_TRUNCATED: "find who sends what is no VXLAN to this port: tcpdump -ni any "
    "udp port {port}",
    Drop.RESERVED_BITS: "pyvtep set --reserved-bits ignore, if such headers are to be let in",
    Drop.GROUP_DENIED: "let both ends have one --gbp",
    Drop.INNER_TAGGED: "pyvtep set --inner-vlan pass, if tags are to be let in",
    Drop.TX_TAGGED: "pyvtep set --inner-vlan pass, if tags are to be let out",
    Drop.INNER_SOURCE_OWN: "find the loop (bridge link; are the hosts joined by another way too?), "
    "or give the TAP another --mac",
    Drop.INNER_SOURCE_STATIC: "pyvtep fdb show static; delete the entry that is wrong",
    Drop.TAP_DOWN: "ip link set {tap} up",
    Drop.NO_REMOTE: "pyvtep remote add IP{vni}",
    Drop.UNDERLAY_DENIED: "let this host's firewall pass UDP port {port}: iptables -I OUTPUT -p "
    "udp --dport {port} -j ACCEPT",
}
"""Drops for which a setting is to blame, and so count until somebody changes it."""

_PASSING = {
    Drop.UNDERLAY_UNREACHABLE: "add a route: ip route get {source}",
    Drop.UNDERLAY_TOO_BIG: "pyvtep set --mtu N{vni}, with less than now",
    Drop.UNDERLAY_FULL: "it is congestion: a faster underlay, or less traffic",
    Drop.RX_QUEUE_FULL: "it is congestion: a faster processor for pyvtep, or less traffic",
    Drop.TAP_QUEUE_FULL: "it is congestion: a faster processor for pyvtep, or less traffic",
}
"""Drops that are expected now and then, so only those of this moment are worth a word.

Not underlay_refused, which may count later than it happens: the remotes have been asked themselves.
"""


def _of_drops(drops: Drops, segment: SegmentFacts | None) -> Iterator[Finding]:
    about = segment.tap if segment is not None else "pyvtep"
    places = {
        "port": segment.dstport if segment is not None else vxlan.PORT,
        "tap": segment.tap if segment is not None else "",
        "vni": f" --vni {segment.vni}" if segment is not None else "",
    }
    for reason in Drop:
        count, meanwhile = drops.count.get(reason, 0), drops.meanwhile.get(reason, 0)
        fix = _LASTING.get(reason) if count else None
        if fix is None and meanwhile > 0:
            fix = _PASSING.get(reason)
        if fix is None:
            continue
        source = drops.last_source.get(reason)
        last = f"; the last from {source}" if source is not None else ""
        still = f", {meanwhile} of them just now" if meanwhile > 0 else ""
        yield _warning(
            about,
            f"{reason} {count}: {reason.meaning}{last}",
            f"So many were dropped since pyvtep was started{still}.",
            fix.format(source=source or "IP", **places),
        )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
