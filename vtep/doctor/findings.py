"""What is wrong, in plain words, and what mends it: a function of the facts alone."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from itertools import chain

from attrs import evolve

from vtep.counters import Drop
from vtep.doctor import drops
from vtep.doctor.facts import (
    Blocked,
    BridgeFacts,
    Facts,
    HolderFacts,
    HostFacts,
    IcmpError,
    Refusal,
    RemoteFacts,
    SegmentFacts,
)
from vtep.doctor.finding import Finding, Severity, note, problem, warning
from vtep.wire import vxlan
from vtep.wire.echo import Status


def findings(facts: Facts) -> list[Finding]:
    """All that is to be said, the worst first."""
    # The finding about this host names the devices, too.
    told = (Drop.UDP_CHECKSUM,) if facts.host.checksum_errors_increase else ()
    found = chain(
        _of_host(facts),
        # A fault of this host, such as a TAP that is down, explains what a remote seems to have.
        chain.from_iterable(_of_segment(segment, facts) for segment in facts.segments),
        chain.from_iterable(_of_remote(remote, facts) for remote in facts.remotes),
        chain.from_iterable(
            drops.of_segment(segment, _remotes_of(segment, facts)) for segment in facts.segments
        ),
        chain.from_iterable(drops.of_process(each, told=told) for each in facts.drops),
    )
    order = list(Severity)
    return sorted(dict.fromkeys(found), key=lambda finding: order.index(finding.severity))


# --- this host ------------------------------------------------------------------------------


def _of_host(facts: Facts) -> Iterator[Finding]:
    host = facts.host
    if not host.root:
        yield note(
            "this host",
            "not everything could be examined without privileges",
            "Answers to the VXLAN port, ARP, ICMP and the firewall's rules are for root to see.",
            "run it as root: sudo pyvtep doctor",
        )
    for holder in host.holders:
        yield from _of_port(holder, facts)
    for conflict in host.own_conflicts:
        address, _, _ = conflict.address.partition("/")
        other = f"Another host with the MAC {conflict.mac}" if conflict.mac else "Another host"
        yield problem(
            address,
            f"{address}, an address of this host, is that of another host too",
            f"{other} claims it on the same link. Datagrams for this host go to one of the two, "
            "and it changes which.",
            "give one of the hosts another address; to take it from this one: ip addr del "
            f"{conflict.address} dev {conflict.dev}",
        )
    # Of those before, a pyvtep knows how many came in its time, and when.
    if host.checksum_errors_increase or not facts.pyvteps:
        yield from _of_checksums(host)


def _of_port(holder: HolderFacts, facts: Facts) -> Iterator[Finding]:
    port = holder.port
    if facts.pyvteps or holder.pyvtep:
        return
    about = f"UDP port {port}"
    if holder.devices:
        names = ", ".join(holder.devices)
        yield problem(
            about,
            f"the kernel VXLAN device {names} has UDP port {port} on this host",
            "Two VTEPs can't share a port: pyvtep can't start, and datagrams from the remotes go "
            "to that device.",
            f"remove it (ip link del {holder.devices[0]}), or let all VTEPs of pyvtep's segment "
            "use another port (--dstport)",
        )
    elif holder.process is not None:
        yield problem(
            about,
            f"{holder.process} has UDP port {port} on this host",
            "pyvtep can't start while another program has it.",
            "end that program, or let all VTEPs use another port (--dstport)",
        )


def _of_checksums(host: HostFacts) -> Iterator[Finding]:
    """Tell of datagrams that the kernel drops before any program sees them."""
    if not host.checksum_errors:
        return
    why = (
        "The kernel drops them before pyvtep sees them (UdpInCsumErrors). Often a NAT between the "
        "hosts has changed an address without the checksum, or a network card, or the veth of a "
        "container or virtual machine, was to fill in the checksum and did not. Over IPv6 it may "
        "be datagrams without a checksum, which --no-udp6zerocsumrx refuses."
    )
    here = "".join(f"; here: ethtool -K {dev} rx off" for dev in host.underlay)
    fix = (
        "at the sender, turn off the checksum offload of its underlay device (ethtool -K, tx off) "
        f"or, over IPv4, send without checksums (--no-udpcsum){here}"
    )
    if host.checksum_errors_increase:
        yield warning(
            "this host",
            f"{host.checksum_errors_increase} UDP datagrams with a wrong checksum came while the "
            "doctor looked",
            why,
            fix,
        )
        return
    yield evolve(
        note(
            "this host",
            f"{host.checksum_errors} UDP datagrams with a wrong checksum have come since this host "
            "or network namespace was started, and none while the doctor looked",
            why,
            f"should they come again: {fix}",
        ),
        earlier=True,
    )


# --- remotes --------------------------------------------------------------------------------


def _of_remote(remote: RemoteFacts, facts: Facts) -> Iterator[Finding]:
    host = remote.host
    if remote.is_own:
        yield problem(
            host,
            f"{host} is an address of this host itself",
            "A remote is another host; frames that are sent to this one come back to us.",
            f"pyvtep remote del {host}{_at(remote)}; and add the address of the other host with "
            "pyvtep remote add",
        )
        return
    if (unreached := _not_reached(remote)) is not None:
        yield unreached
        return
    if (inside := _leads_into_segment(remote, facts)) is not None:
        yield inside
        return
    if remote.macs is not None and len(remote.macs) > 1 and not remote.one_host:
        yield problem(
            host,
            f"{len(remote.macs)} hosts claim to be {host}: {', '.join(remote.macs)}",
            "Datagrams go to one of them, and it changes which. (A proxy for ARP looks the same.)",
            f"give one of them another address; ip neigh show {host} says which one is used now",
        )
    if remote.there.delays:
        yield from _of_answers(remote)
        yield from _of_mtu(remote, facts)
    else:
        yield from _of_silence(remote)


def _not_reached(remote: RemoteFacts) -> Finding | None:
    """Tell of what this host lacks to send anything to a remote."""
    host = remote.host
    counter = "Frames to it count as underlay_unreachable."
    if remote.dev_gone is not None:
        return problem(
            host,
            f"there is no device {remote.dev_gone}, the --dev of the way to {host}",
            f"pyvtep goes on as soon as there is one. {counter}",
            "make or rename the device, or use another one with pyvtep set --dev",
        )
    if remote.local_gone is not None:
        return problem(
            host,
            f"this host does not have {remote.local_gone}, the --local of the way to {host}",
            counter,
            "give it back to a device of the underlay (ip addr add), or use another address of "
            "this host with pyvtep set --local",
        )
    if remote.no_route is None:
        return None
    fix = (
        "add a route (ip route add), or bring up the device of the underlay (ip link set up); "
        f"ip route get {host} shows when there is one"
    )
    if remote.down:
        fix = f"ip link set {remote.down[0]} up"
    return problem(host, f"this host has no route to {host} ({remote.no_route})", counter, fix)


def _of_answers(remote: RemoteFacts) -> Iterator[Finding]:
    """What is wrong with a remote that answers."""
    host, there, back = remote.host, remote.there, remote.back
    own = remote.source or "the address of this host"
    if there.status is Status.VNI_UNKNOWN:
        yield problem(
            host,
            f"{host} runs pyvtep, but not with vni {remote.vni}",
            "It drops every frame of it (its counter is vni_unknown).",
            f"on {host}: {_with(f'pyvtep vni add {remote.vni} --remote', remote)}; or use one VNI "
            "at both ends",
        )
    elif there.status is Status.SOURCE_UNKNOWN:
        yield problem(
            host,
            f"{host} has vni {remote.vni}, but does not listen to {own} in it",
            "It drops every frame from here (its counter is source_unknown).",
            f"on {host}: {_with('pyvtep remote add', remote)} --vni {remote.vni}",
        )
    if there.answered_from not in (None, host):
        yield problem(
            host,
            f"{host} answers from another of its addresses, {there.answered_from}",
            "Its frames come from there as well, and are refused here, since that is no --remote.",
            f"on {host}, start pyvtep with --local {host}; or here: pyvtep remote add "
            f"{there.answered_from}{_at(remote)}",
        )
    if back is not None and not back.delays:
        yield _back_is_closed(remote)
    else:
        yield from _of_loss(remote)


def _of_loss(remote: RemoteFacts) -> Iterator[Finding]:
    """Tell of echo requests and replies that were lost, while others arrived."""
    host, sent, lost = remote.host, 0, 0
    for echoes in filter(None, (remote.there, remote.back)):
        sent += echoes.sent
        lost += echoes.sent - len(echoes.delays)
    if not lost:
        return
    why = (
        "The underlay loses packets, or one end is too busy to read them (rx_queue_full in "
        "pyvtep stats)."
    )
    fix = f"look where: mtr -u -P {remote.port} {host}"
    # A rule that limits a rate, or drops at random, is of those that are not understood.
    for verdict in filter(None, (remote.firewall, remote.firewall_out)):
        why += f" {verdict.culprit}"
        fix = f"if a rule of this host is to blame: {verdict.fix}; else {fix}"
    yield warning(host, f"{lost} of {sent} datagrams to {host} or back were lost", why, fix)


def _back_is_closed(remote: RemoteFacts) -> Finding:
    host, port = remote.host, remote.port
    title = f"nothing from {host} reaches UDP port {port} of this host"
    if remote.firewall is not None:
        return problem(
            host,
            title,
            "Echo requests get there, and echo replies to the port that sent the request come "
            "back, but none to the VXLAN port, where frames arrive. "
            f"{remote.firewall.culprit}",
            remote.firewall.fix,
        )
    return problem(
        host,
        title,
        "Echo requests get there, and echo replies to the port that sent the request come back, "
        "but none to the VXLAN port, where frames arrive. No rule of this host's own firewall is "
        "seen to drop them, so it is a firewall before this host: of the network, or a security "
        "group of its cloud.",
        f"open UDP port {port} from {host} to {remote.source or 'this host'} there",
    )


def _of_silence(remote: RemoteFacts) -> Iterator[Finding]:
    """What is to be said of a remote that does not answer."""
    host, there = remote.host, remote.there
    if there.send_error is not None:
        yield _not_sent(remote, there.send_error)
        return
    if there.errors:
        yield _refused(remote, there.errors[0])
        return
    own = [
        (does, verdict)
        for does, verdict in (
            (f"drops what comes from {host} to UDP port {remote.port}", remote.firewall),
            (f"drops what is sent to UDP port {remote.port} of {host}", remote.firewall_out),
        )
        if verdict is not None and verdict.certain
    ]
    for does, verdict in own:
        title = f"this host's firewall {does}"
        yield problem(host, title, verdict.culprit, verdict.fix)
    if own:  # What else is silent can be seen when they have gone.
        return
    if remote.through:
        yield note(
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
        yield problem(
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
        title = f"this host's own firewall forbids to send to UDP port {remote.port} of {host}"
        counter = "Frames to it count as underlay_denied."
        if remote.firewall_out is not None:
            verdict = remote.firewall_out
            return problem(host, title, f"{verdict.culprit} {counter}", verdict.fix)
        return problem(
            host,
            title,
            "No rule of nftables or iptables is seen to drop it, so it may be an eBPF program of a "
            f"control group, or a security module. {counter}",
            "look for such a program: bpftool cgroup tree",
        )
    return problem(
        host,
        f"this host cannot send to {host}: {error}",
        "Frames to it count as underlay_unreachable.",
        f"look at the route and the device: ip route get {host}",
    )


def _refused(remote: RemoteFacts, error: IcmpError) -> Finding:
    host, port = remote.host, remote.port
    itself = error.host == host.partition("%")[0]  # ICMP tells no scope.
    if error.refusal is Refusal.PORT and itself:
        return problem(
            host,
            f"{host} has nobody on UDP port {port}",
            "It said so by ICMP: no VTEP runs there, or it uses another port, or a firewall there "
            "rejects. Frames to it count as underlay_refused.",
            f"start the VTEP there, with --dstport {port}; who has which port, there: ss -ulpn "
            "and ip -d link show type vxlan",
        )
    if error.refusal is Refusal.HOST:
        return problem(
            host,
            f"{host} can't be reached",
            (
                f"{error.host} says that there is no way to it."
                if not itself
                else "No host answers for its address."
            )
            + " Frames to it count as underlay_unreachable or underlay_refused.",
            f"check the address, that the host is up, and the routes: ip route get {host}",
        )
    return problem(
        host,
        f"a firewall refuses UDP port {port} of {host}",
        f"It is on {error.host}, which said so by ICMP. Frames to it count as underlay_refused.",
        (
            f"on {host}: {_with('pyvtep doctor --remote', remote)} names the rule, and the command "
            "that lets VXLAN pass"
        )
        if itself
        else f"open UDP port {port} from {remote.source or 'this host'} to {host} there",
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
    say = warning if remote.through is None else problem
    return say(
        host,
        f"{known}nothing answers from its UDP port {port}",
        f"It is one of these, which look the same from here: a firewall drops UDP port {port} "
        f"there or on the way; pyvtep runs there but does not have {own} as a --remote (there, "
        "source_unknown counts); or it is a VTEP of another kind, such as the kernel's, which "
        f"never answers, and then nothing need be wrong.{tried}{heard}",
        f"on {host}: {_with('pyvtep doctor --remote', remote)}; pyvtep stats; and if "
        f"source_unknown counts: {_with('pyvtep remote add', remote)}{vni}",
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
    here = f" (here with --socket {remote.socket})" if remote.socket is not None else ""
    yield warning(
        host,
        f"the way {' and '.join(sizes)} {host} carries {size} octets, and {needed} are needed",
        f"Larger datagrams are fragmented, which is slow, or lost.{told}",
        f"at both ends: pyvtep set{at} --mtu {size - overhead}{here}; or raise the MTU on the way",
    )


def _at(remote: RemoteFacts) -> str:
    """Return the options by which a command of pyvtep finds the segment of a remote."""
    vni = f" --vni {remote.vni}" if remote.vni is not None else ""
    return vni + (f" --socket {remote.socket}" if remote.socket is not None else "")


def _with(command: str, remote: RemoteFacts) -> str:
    """Return a command that ends with the address that this host uses towards a remote."""
    return f"{command} {remote.source}" if remote.source else f"{command} with this host's address"


# --- segments -------------------------------------------------------------------------------


def _remotes_of(segment: SegmentFacts, facts: Facts) -> tuple[RemoteFacts, ...]:
    return tuple(remote for remote in facts.remotes if remote.tap == segment.tap)


def _of_segment(segment: SegmentFacts, facts: Facts) -> Iterator[Finding]:
    tap = segment.tap
    if not segment.up:
        yield problem(
            tap,
            f"{tap} is down",
            "Frames from the tunnel are dropped (tap_down), and none come from this host.",
            f"ip link set {tap} up",
        )
    if segment.bridge is not None:
        yield from _of_bridge(segment, segment.bridge)
    elif isinstance(bridge := segment.options.get("bridge"), str):
        yield warning(
            tap,
            f"{tap} is to be a port of the bridge {bridge}, and is not",
            "The bridge does not exist, or the TAP is a port of another device. Until then, no "
            "host behind the bridge uses the tunnel.",
            f"ip link add {bridge} up type bridge; or, if it exists: ip link set {tap} master "
            f"{bridge}",
        )
    elif not segment.addresses:
        yield warning(
            tap,
            f"{tap} has no address and is on no bridge",
            "So nothing on this host uses the tunnel.",
            "give it an address (ip addr add), or make it a port of a bridge (ip link set master)",
        )
    yield from _of_overlaps(segment, facts)
    yield from _of_conflicts(segment)
    yield from _of_firewall(segment)
    yield from _of_offload(segment)
    if segment.options.get("udp6zerocsumtx"):
        yield note(
            tap,
            f"{tap} sends UDP over IPv6 without checksums (--udp6zerocsumtx)",
            "Kernel VXLAN devices drop such datagrams, unless they were made with udp6zerocsumrx.",
            "--no-udp6zerocsumtx, or udp6zerocsumrx at the other end",
        )


def _own_addresses(segment: SegmentFacts) -> list[tuple[str, str]]:
    """Return the addresses of a TAP and its bridge, each with its device."""
    found = [(address, segment.tap) for address in segment.addresses]
    if segment.bridge is not None:
        found += [(address, segment.bridge.name) for address in segment.bridge.addresses]
    return found


def _leads_into_segment(remote: RemoteFacts, facts: Facts) -> Finding | None:
    """Tell of a route to a remote that leads into the very tunnel that the remote is an end of."""
    for segment in facts.segments:
        upper = segment.bridge.name if segment.bridge is not None else segment.tap
        if segment.tap != remote.tap or remote.dev not in (segment.tap, upper):
            continue
        # A bridge may lead to the remote itself, as one that extends the LAN of this host does.
        if remote.dev != segment.tap and (remote.there.delays or remote.through):
            continue
        towards = ip_address((remote.gateway or remote.host).partition("%")[0])
        title = f"the route to {remote.host} leads over {remote.dev}, into its own tunnel"
        explanation = "So what pyvtep sends to it comes back to pyvtep, and never leaves this host."
        for address, dev in _own_addresses(segment):
            if towards in ip_interface(address).network:
                return problem(
                    remote.host,
                    title,
                    f"{dev} has the address {address}, in whose subnet {towards} is. {explanation}",
                    _other_subnet(segment, address, dev),
                )
        return problem(
            remote.host,
            title,
            explanation,
            f"change the route that ip route get {remote.host} shows, or name the underlay device "
            "with --dev",
        )
    return None


def _other_subnet(segment: SegmentFacts, address: str, dev: str) -> str:
    """Return what to do about an address of a segment that is in the subnet of the underlay."""
    given = segment.options.get("address")
    option = isinstance(given, list | tuple) and address in given
    return (
        f"ip addr del {address} dev {dev}; then give {dev} an address of a subnet that is not in "
        f"use elsewhere{' (its --address too)' if option else ''}"
    )


def _of_overlaps(segment: SegmentFacts, facts: Facts) -> Iterator[Finding]:
    """Tell of addresses of a segment in a subnet of the underlay, which may hide the remotes."""
    remotes = _remotes_of(segment, facts)
    own = {segment.tap, segment.bridge.name if segment.bridge is not None else segment.tap}
    for address, dev in _own_addresses(segment):
        network = ip_interface(address).network
        if network.num_addresses == 1:
            continue
        for device, addresses in facts.host.underlay.items():
            beside = [text for text in addresses if _overlap(text, address)]
            used = device not in own and any(remote.dev == device for remote in remotes)
            if beside and used:
                yield warning(
                    segment.tap,
                    f"{dev} has the address {address}, and {device}, a device of the underlay, "
                    f"{beside[0]}: both are of one subnet",
                    "The kernel uses only one of the two devices for that subnet. Either the hosts "
                    "of the segment can't be reached from here or, as soon as that changes, the "
                    "remotes.",
                    _other_subnet(segment, address, dev),
                )
                break


def _overlap(one: str, other: str) -> bool:
    first, second = ip_interface(one).network, ip_interface(other).network
    if first.version != second.version:
        return False
    return first.network_address in second or second.network_address in first


def _of_conflicts(segment: SegmentFacts) -> Iterator[Finding]:
    """Tell of addresses on the segment that two hosts have."""
    tap = segment.tap
    at = f" --vni {segment.vni}" + (f" --socket {segment.socket}" if segment.socket else "")
    named = segment.options.get("anycast-gateway")
    gateways = [str(each) for each in named] if isinstance(named, list | tuple) else []
    gateways += [each.address.partition("/")[0] for each in segment.conflicts if each.dev != tap]
    for conflict in segment.conflicts:
        address, dev, mac = conflict.address.partition("/")[0], conflict.dev, conflict.mac
        fix = f"give one of them another address: ip addr del {conflict.address} dev {dev}"
        if dev != tap:
            keep = " ".join(f"--anycast-gateway {gateway}" for gateway in gateways)
            fix += (
                "; or, if each host is to keep it as the gateway of its own guests, on both: "
                f"pyvtep set --vni {segment.vni} {keep}"
            )
        yield problem(
            tap,
            f"{address}, an address of {dev}, is that of a host beyond the tunnel too",
            f"{mac} has answered for it (pyvtep fdb get {mac}{at} says behind which remote). A "
            "host that asks for it on the segment gets one of the two, and it changes which.",
            fix,
        )


def _of_firewall(segment: SegmentFacts) -> Iterator[Finding]:
    """Tell of what this host's firewall does to the traffic of a segment."""
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
    certain = blocked.verdict.certain
    say = problem if certain else note
    title = f"the firewall of this host {'drops' if certain else 'may drop'} {what}"
    return say(about, title, blocked.verdict.culprit, fix)


def _of_bridge(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    tap, name = segment.tap, bridge.name
    if segment.addresses:
        yield warning(
            tap,
            f"{tap} is a port of the bridge {name} and has an address itself",
            "An address on a port of a bridge does not work reliably: it belongs to the bridge.",
            f"ip addr del {segment.addresses[0]} dev {tap} && ip addr add {segment.addresses[0]} "
            f"dev {name}",
        )
    if not bridge.up:
        yield problem(
            tap, f"the bridge {name} is down", "It forwards nothing.", f"ip link set {name} up"
        )
    elif segment.up and bridge.state != "forwarding":
        learning = bridge.state in ("listening", "learning")
        yield problem(
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
        yield warning(
            tap,
            f"{tap} is isolated from other ports of {name}: {hidden}",
            "Isolated ports of a bridge don't reach each other.",
            f"bridge link set dev {tap} isolated off",
        )
    if bridge.hairpin:
        yield warning(
            tap,
            f"{tap} is a hairpin port of {name}",
            "The bridge sends frames back into the tunnel that they came from: every broadcast "
            "comes back, and MACs seem to be at the wrong end.",
            f"bridge link set dev {tap} hairpin off",
        )
    yield from _of_bridge_mtu(segment, bridge)


def _of_bridge_mtu(segment: SegmentFacts, bridge: BridgeFacts) -> Iterator[Finding]:
    tap = segment.tap
    larger = [other for other in bridge.others if other.mtu > segment.tap_mtu]
    if not larger:
        return
    names = ", ".join(f"{other.name} {other.mtu}" for other in larger[:4])
    more = f" and {len(larger) - 4} more" if len(larger) > 4 else ""
    yield problem(
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
    "tnl": "tunnel GSO needs tso, kernel 6.17 or newer, and CAP_BPF",
}


def _of_offload(segment: SegmentFacts) -> Iterator[Finding]:
    asked = segment.options.get("offload")
    wanted = frozenset(asked) if isinstance(asked, list | tuple) else frozenset[str]()
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
            f"{segment.tap} was told not to use the offload {', '.join(off)}",
            "It is slower without.",
            "pyvtep set --offload auto",
        )
