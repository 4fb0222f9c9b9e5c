"""Checks of the segments: TAP, bridge, firewall and offloads."""

from collections.abc import Iterator
from shlex import quote

from attrs import evolve

from vtep.doctor.checks import addresses
from vtep.doctor.facts import Blocked, BridgeFacts, Facts, SegmentFacts
from vtep.doctor.finding import Finding, note, problem, warning
from vtep.fastpath.state import DISABLED, NOT_INSTALLED, VLAN, FastPathStatus

_NAMES_MAX = 4
"""Ports of a bridge that a finding names."""


def check(segment: SegmentFacts, facts: Facts) -> Iterator[Finding]:
    """Yield findings about a segment of a running pyvtep."""
    tap = segment.tap
    if not segment.up:
        yield problem(
            tap,
            f"{tap} is down",
            "Frames from the tunnel are dropped (tap_down), and none come from this host.",
            f"{_inside(segment.netns)}ip link set {quote(tap)} up",
        )
    if segment.netns is not None:
        yield from _of_namespace(segment, segment.netns)
    elif segment.bridge is not None:
        yield from _of_bridge(segment, segment.bridge)
        bridge = segment.options.get("bridge")
        if isinstance(bridge, str) and bridge != segment.bridge.name:
            yield problem(
                tap,
                f"{tap} is a port of the bridge {segment.bridge.name}, and not of {bridge}, which "
                "its --bridge names",
                "pyvtep does not take a device away from a bridge that an administrator has put "
                "it on. Hosts of the other bridge use the tunnel, and those of its own do not.",
                f"ip link set {quote(tap)} master {quote(bridge)}; or, if it is to be there: "
                f"pyvtep set --vni {segment.vni} --bridge {quote(segment.bridge.name)}",
            )
    elif isinstance(bridge := segment.options.get("bridge"), str):
        yield problem(
            tap,
            f"{tap} should be a port of bridge {bridge} but is not",
            "The bridge does not exist, or the TAP is a port of another device. Until then, no "
            "host behind the bridge uses the tunnel.",
            f"ip link add {quote(bridge)} up type bridge; or, if it exists: "
            f"ip link set {quote(tap)} master {quote(bridge)}",
        )
    elif not segment.addresses and segment.options.get("vlan") is None:
        yield warning(
            tap,
            f"{tap} has no address and is on no bridge",
            "So nothing on this host uses the tunnel.",
            "give it an address (ip addr add), or make it a port of a bridge (ip link set master)",
        )
    yield from _of_names(segment)
    yield from addresses.overlaps(segment, facts)
    yield from addresses.conflicts(segment)
    yield from _of_firewall(segment)
    yield from _of_offload(segment)
    yield from _of_fast_path(segment)
    if segment.options.get("udp6zerocsumtx"):
        yield note(
            tap,
            f"{tap} sends UDP over IPv6 without checksums (--udp6zerocsumtx)",
            "Kernel VXLAN devices drop such datagrams, unless they were made with udp6zerocsumrx.",
            "--no-udp6zerocsumtx, or udp6zerocsumrx at the other end",
        )


def _inside(netns: str | None) -> str:
    """Return the beginning of a command that is to run in a network namespace."""
    if netns is None:
        return ""
    if netns.isdigit():
        return f"nsenter --target {netns} --user --net --preserve-credentials "
    return f"nsenter --net={quote(netns)} "


def _of_namespace(segment: SegmentFacts, netns: str) -> Iterator[Finding]:
    """Report on a TAP in another network namespace, which the doctor does not enter."""
    tap, bridge = segment.tap, segment.options.get("bridge")
    if isinstance(bridge, str) and segment.bridge is None:
        inside = _inside(netns)
        yield warning(
            tap,
            f"{tap} should be a port of bridge {bridge} in its namespace but is not",
            "The bridge does not exist, or the TAP is a port of another device.",
            f"{inside}ip link add {quote(bridge)} up type bridge; or, if it exists: "
            f"{inside}ip link set {quote(tap)} master {quote(bridge)}",
        )
    yield note(
        tap,
        f"{tap} is in another network namespace (--netns {netns})",
        "Its bridge, its neighbours and the firewall there were not examined.",
        f"to look at them: {_inside(netns)}ip address",
    )


def _of_names(segment: SegmentFacts) -> Iterator[Finding]:
    """Report host names among the remotes that cannot be looked up."""
    for each in segment.names:
        kept = ", ".join(each.addresses)
        report = warning if kept else problem
        yield report(
            segment.tap,
            f"--remote {each.name} cannot be looked up: {each.error}",
            f"The addresses of the last answer are used on: {kept}."
            if kept
            else "Nothing is sent to it until it has an address; it is looked up again and again.",
            f"see what this host finds, getent ahosts {quote(each.name)}; mend DNS "
            "(/etc/resolv.conf), or write the name into /etc/hosts",
        )


def _of_firewall(segment: SegmentFacts) -> Iterator[Finding]:
    """Report traffic of a segment that this host's firewall drops."""
    tap, bridge = segment.tap, segment.bridge
    where = f"between {tap} and other ports of {bridge.name}" if bridge is not None else f"at {tap}"
    for each in segment.frames:
        yield _blocked(tap, each, f"{each.what} {where}", each.verdict.fix)
    for each in segment.packets:
        yield _blocked(
            tap,
            each,
            f"all {each.what}, at {bridge.name if bridge is not None else tap}",
            each.verdict.fix,
        )
    if bridge is None:
        return
    for each in bridge.packets:
        settings = [
            f"net.bridge.bridge-nf-call-{program}=0"
            for version, program in (("IPv4", "iptables"), ("IPv6", "ip6tables"))
            if version in each.what
        ]
        fix = each.verdict.fix
        if not bridge.own_netfilter:
            fix += f"; or, for all bridges: sysctl -w {' '.join(settings)}"
        finding = _blocked(tap, each, f"{each.what} that crosses the bridge {bridge.name}", fix)
        yield evolve(
            finding,
            about=bridge.name,
            explanation="Frames on bridges go through the rules for IP "
            f"(net.bridge.bridge-nf-call-iptables). {finding.explanation}",
        )


def _blocked(about: str, blocked: Blocked, what: str, fix: str) -> Finding:
    """Report dropped traffic; if the verdict is not certain, by a note."""
    certain = blocked.verdict.certain
    report = problem if certain else note
    title = f"the firewall of this host {'drops' if certain else 'may drop'} {what}"
    return report(about, title, blocked.verdict.culprit, fix)


def _of_bridge(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    """Report faults of the bridge, and of the TAP as its port."""
    tap, name = segment.tap, bridge.name
    if segment.addresses:
        yield warning(
            tap,
            f"{tap} is a port of the bridge {name} and has an address itself",
            "An address on a port of a bridge does not work reliably: it belongs to the bridge.",
            f"ip addr del {segment.addresses[0]} dev {quote(tap)} && "
            f"ip addr add {segment.addresses[0]} dev {quote(name)}",
        )
    if not bridge.up:
        yield problem(
            tap,
            f"the bridge {name} is down",
            "It forwards nothing.",
            f"ip link set {quote(name)} up",
        )
    elif segment.up and bridge.state != "forwarding":
        learning = bridge.state in ("listening", "learning")
        yield problem(
            tap,
            f"the bridge {name} does not forward to {tap}: the port is {bridge.state}",
            "It will in some seconds: STP waits for its forward delay."
            if learning
            else "STP has closed the port because there is another path to the same hosts, a loop: "
            "without STP, frames would circle.",
            f"ip link set {quote(name)} type bridge stp_state 0 && "
            f"bridge link set dev {quote(tap)} state 3",
        )
    if bridge.isolated and any(other.isolated for other in bridge.others):
        hidden = ", ".join(other.name for other in bridge.others if other.isolated)
        yield warning(
            tap,
            f"{tap} is isolated from other ports of {name}: {hidden}",
            "Isolated ports of a bridge don't reach each other.",
            f"bridge link set dev {quote(tap)} isolated off",
        )
    if bridge.hairpin:
        yield warning(
            tap,
            f"{tap} is a hairpin port of {name}",
            "The bridge sends frames back into the tunnel that they came from: every broadcast "
            "comes back, and MACs seem to be at the wrong end.",
            f"bridge link set dev {quote(tap)} hairpin off",
        )
    yield from _of_vlan(segment, bridge)
    yield from _of_bridge_mtu(segment, bridge)


def _of_vlan(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    """Report a VLAN of the TAP that its bridge keeps from it, or passes without the tag."""
    tap, vlan = segment.tap, segment.options.get("vlan")
    if bridge.vlans is None or not isinstance(vlan, int):
        return
    fix = f"bridge vlan add dev {quote(tap)} vid {vlan}"
    if vlan not in bridge.vlans:
        yield problem(
            tap,
            f"{tap} is no member of VLAN {vlan} of the bridge {bridge.name}",
            f"So VNI {segment.vni} gets no frames, and the bridge drops those that it delivers.",
            fix,
        )
    elif not bridge.vlans[vlan]:
        yield problem(
            tap,
            f"{tap} is an untagged member of VLAN {vlan} of the bridge {bridge.name}",
            f"VNI {segment.vni} needs the tag: frames without are dropped (tx_untagged).",
            fix,
        )


def _of_bridge_mtu(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    """Report a TAP whose MTU is below that of another port of its bridge."""
    tap = segment.tap
    larger = [other for other in bridge.others if other.mtu > segment.tap_mtu]
    if not larger:
        return
    names = ", ".join(f"{other.name} {other.mtu}" for other in larger[:_NAMES_MAX])
    more = f" and {len(larger) - _NAMES_MAX} more" if len(larger) > _NAMES_MAX else ""
    yield problem(
        tap,
        f"ports of {bridge.name} have a larger MTU than {tap}: {names}{more}",
        f"{tap} has {segment.tap_mtu}, and the bridge drops larger frames before pyvtep can "
        "fragment them, or notify their sender: small packets pass, large ones hang.",
        f"ip link set {quote(tap)} mtu {max(other.mtu for other in larger)}",
    )


_NEEDS = {
    "tso": "the TAP takes no TCP superframes (TUN_F_TSO4, which every kernel since 2.6.27 has)",
    "uso": "the TAP takes no UDP superframes, for which the kernel must be 6.2 or newer",
    "gso": "UDP_SEGMENT needs kernel 4.18 or newer",
    "gro": "UDP_GRO needs kernel 5.0 or newer",
    "tnl": "tunnel GSO needs tso, kernel 6.17 or newer, and CAP_BPF",
}


def _of_offload(segment: SegmentFacts) -> Iterator[Finding]:
    """Report offloads that are not available, or turned off."""
    configured = segment.options.get("offload")
    wanted = frozenset(configured if isinstance(configured, list | tuple) else ())
    missing = sorted(wanted - segment.offload)
    if missing:
        yield note(
            segment.tap,
            f"{segment.tap} works without the offload {', '.join(missing)}: it is slower",
            "; ".join(_NEEDS.get(name, name) for name in missing) + ".",
            "a newer kernel; nothing is lost without",
        )
    if off := sorted(frozenset(_NEEDS) - wanted):
        yield note(
            segment.tap,
            f"{segment.tap} is configured not to use the offload {', '.join(off)}",
            "It is slower without.",
            "pyvtep set --offload auto",
        )


def _of_fast_path(segment: SegmentFacts) -> Iterator[Finding]:
    """Report a fast path that is off, although the configuration has it on."""
    state = segment.fast_path
    if state.status is not FastPathStatus.OFF or state in (DISABLED, VLAN):
        return
    if state == NOT_INSTALLED:
        yield note(
            "this host",
            "pyvtep works without its fast path, since numba is not installed",
            "It is slower without, most of all for many small packets.",
            "scripts/setup, or pip install numba, in the environment of pyvtep; then "
            "restart pyvtep, or pyvtep set --fast-path",
        )
    else:
        reason, _, remedy = (state.reason or "").partition("; ")
        yield warning(
            "this host",
            f"the fast path of pyvtep is off: {reason}",
            "pyvtep forwards without it, but slower.",
            f"{remedy or 'see its log'}; then restart pyvtep, or pyvtep set --fast-path",
        )
