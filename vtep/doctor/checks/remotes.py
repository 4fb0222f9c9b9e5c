"""Checks of the remotes: route, replies, ICMP errors, silence and path MTU."""

from collections.abc import Iterable, Iterator
from shlex import quote

from attrs import evolve

from vtep.doctor.checks import addresses
from vtep.doctor.facts import Facts, IcmpError, Refusal, RemoteFacts
from vtep.doctor.finding import Finding, note, problem, warning
from vtep.host.firewall import Verdict
from vtep.wire import vxlan
from vtep.wire.address import version_of
from vtep.wire.echo import EchoStatus

_ICMP_ERRORS = {
    Refusal.PORT: "port unreachable",
    Refusal.FORBIDDEN: "administratively prohibited",
}


_VNIS_MAX = 5
"""VNIs that a finding names."""


def share_signs_of_life(remotes: Iterable[RemoteFacts]) -> list[RemoteFacts]:
    """Return the remotes, each silent one with the signs of life that it shows in other VNIs.

    A VTEP that sends no echo replies has one reason for that, in however many VNIs it is a remote:
    findings about it become equal, so that they are reported once.
    """
    remotes = list(remotes)
    silent: dict[tuple[str, int], list[RemoteFacts]] = {}
    for each in remotes:
        if not each.is_own and not each.there.delays:
            silent.setdefault((each.host, each.port), []).append(each)
    return [
        _share(each, silent[each.host, each.port])
        if not each.is_own and not each.there.delays
        else each
        for each in remotes
    ]


def _share(remote: RemoteFacts, same: list[RemoteFacts]) -> RemoteFacts:
    """Return a silent remote with what the facts about the same VTEP in several VNIs say."""
    vnis = sorted({each.vni for each in same if each.vni is not None})
    seen = [each.last_seen_age for each in same if each.last_seen_age is not None]
    pinged = [each.through for each in same if each.through is not None]
    return evolve(
        remote,
        through=any(pinged) if pinged else None,
        last_seen_age=min(seen, default=None),
        silent_vnis=tuple(vnis) if len(vnis) > 1 else (),
    )


def check(remote: RemoteFacts, facts: Facts) -> Iterator[Finding]:
    """Yield findings about a remote, and the path to it and back."""
    host = remote.host
    if remote.is_own:
        yield problem(
            host,
            f"{host} is an address of this host itself",
            "A remote is another host; frames that are sent to this one come back to us.",
            f"pyvtep remote del {host}{_options(remote)}; and add the address of the other host "
            "with pyvtep remote add",
        )
        return
    if (unreached := _not_reached(remote)) is not None:
        yield unreached
        return
    if (inside := addresses.route_into_segment(remote, facts)) is not None:
        yield inside
        return
    if remote.macs is not None and len(remote.macs) > 1 and not remote.one_host:
        yield problem(
            host,
            f"{len(remote.macs)} hosts claim to be {host}: {', '.join(remote.macs)}",
            "Datagrams go to one of them, and it changes which. (Proxy ARP looks the same.)",
            f"give one of them another address; ip neigh show {host} says which one is used now",
        )
    if remote.there.delays:
        yield from _of_answers(remote)
        yield from _of_mtu(remote, facts)
    else:
        yield from _of_silence(remote)


def _not_reached(remote: RemoteFacts) -> Finding | None:
    """Report a device, an address or a route without which nothing is sent to a remote."""
    host = remote.host
    counter = "Frames to it count as underlay_unreachable."
    if remote.dev_gone is not None:
        return problem(
            host,
            f"there is no device {remote.dev_gone}, the --dev for {host}",
            f"pyvtep goes on as soon as there is one. {counter}",
            "make or rename the device, or use another one with pyvtep set --dev",
        )
    if remote.local_gone is not None:
        return problem(
            host,
            f"this host does not have {remote.local_gone}, the --local for {host}",
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
        fix = f"ip link set {quote(remote.down[0])} up"
    return problem(host, f"this host has no route to {host} ({remote.no_route})", counter, fix)


def _of_answers(remote: RemoteFacts) -> Iterator[Finding]:
    """Report faults of a remote that sends echo replies."""
    host, there, back = remote.host, remote.there, remote.back
    own = remote.source or "the address of this host"
    if there.status is EchoStatus.VNI_UNKNOWN:
        yield problem(
            host,
            f"{host} runs pyvtep, but not with vni {remote.vni}",
            "It drops every frame of it (its counter is vni_unknown).",
            f"on {host}: {_with_source(f'pyvtep vni add {remote.vni} --remote', remote)}; or use "
            "one VNI at both ends",
        )
    elif there.status is EchoStatus.SOURCE_UNKNOWN:
        yield problem(
            host,
            f"{host} has vni {remote.vni}, but does not listen to {own} in it",
            "It drops every frame from here (its counter is source_unknown).",
            f"on {host}: {_with_source('pyvtep remote add', remote)} --vni {remote.vni}",
        )
    if there.answered_from not in (None, host):
        yield problem(
            host,
            f"{host} answers from another of its addresses, {there.answered_from}",
            "Its frames come from there as well, and are refused here, since that is no --remote.",
            f"on {host}, start pyvtep with --local {host}; or here: pyvtep remote add "
            f"{there.answered_from}{_options(remote)}",
        )
    if back is not None and not back.delays:
        yield _vxlan_port_is_closed(remote)
    else:
        yield from _of_loss(remote)


def _of_loss(remote: RemoteFacts) -> Iterator[Finding]:
    """Report the loss of echo requests or replies, while others arrived."""
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
    fix = f"find out where: mtr -u -P {remote.port} {host}"
    # Rules that limit a rate or drop at random give uncertain verdicts.
    for verdict in filter(None, (remote.firewall, remote.firewall_out)):
        why += f" {verdict.culprit}"
        fix = f"if a rule of this host is to blame: {verdict.fix}; else {fix}"
    yield warning(host, f"{lost} of {sent} datagrams to {host} or back were lost", why, fix)


def _vxlan_port_is_closed(remote: RemoteFacts) -> Finding:
    """Report that no reply to the VXLAN port of this host arrives, though others do."""
    if remote.firewall_new is not None:
        return _only_established(remote, remote.firewall_new)
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
        "seen to drop them, so it is a firewall in front of this host: of the network, or a "
        "security group of its cloud.",
        f"open UDP port {port} from {host} to {remote.source or 'this host'} there",
    )


def _only_established(remote: RemoteFacts, verdict: Verdict) -> Finding:
    """Report rules that accept the remote's frames only as replies to frames of this host."""
    host, port = remote.host, remote.port
    return warning(
        host,
        f"this host's firewall accepts frames from {host} only after this host has sent some",
        f"This host sends from UDP port {port} (--srcport). If {host} does, too, a rule for "
        "established connections accepts its frames, but not the first one, nor one after a pause. "
        f"{verdict.culprit}",
        verdict.fix,
    )


def _of_silence(remote: RemoteFacts) -> Iterator[Finding]:
    """Report the reason why a remote sends no echo replies, as far as it shows."""
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
            (f"drops datagrams from {host} to UDP port {remote.port}", remote.firewall),
            (f"drops datagrams to UDP port {remote.port} of {host}", remote.firewall_out),
        )
        if verdict is not None and verdict.certain
    ]
    for does, verdict in own:
        title = f"this host's firewall {does}"
        yield problem(host, title, verdict.culprit, verdict.fix)
    if own:  # Other reasons show only when these rules are gone.
        return
    if remote.firewall_new is not None:
        yield _only_established(remote, remote.firewall_new)
    if remote.through:
        yield note(
            host,
            f"{host} does not answer pyvtep's echo, but a host behind it answers a ping",
            "So the tunnel works. It is a VTEP of another kind, such as the kernel's; delay, loss "
            "and MTU of the path to it can't be measured.",
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
            f"No host on {remote.dev} answers ARP for this address, and it answers no ping.",
            f"check the address and that the host is up: ping {host}",
        )
    else:
        yield _unexplained_silence(remote)


def _not_sent(remote: RemoteFacts, error: str) -> Finding:
    """Report that this host refuses to send to a remote."""
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
    """Report an ICMP error that came back instead of echo replies."""
    host, port = remote.host, remote.port
    itself = error.host == host.partition("%")[0]  # The sender of an ICMP error has no scope.
    if error.refusal is Refusal.PORT and itself:
        return problem(
            host,
            f"nothing listens on UDP port {port} of {host}",
            'It answered with the ICMP error "port unreachable": no VTEP runs there, or it uses '
            "another port, or a firewall there rejects. Frames to it count as underlay_refused.",
            f"start the VTEP there, with --dstport {port}; to list the open ports there: ss -ulpn "
            "and ip -d link show type vxlan",
        )
    if error.refusal is Refusal.HOST:
        return problem(
            host,
            f"{host} can't be reached",
            (
                f"{error.host} says that there is no route to it."
                if not itself
                else "No host answers for its address."
            )
            + " Frames to it count as underlay_unreachable or underlay_refused.",
            f"check the address, that the host is up, and the routes: ip route get {host}",
        )
    return problem(
        host,
        f"a firewall refuses UDP port {port} of {host}",
        f"The firewall is on {error.host}, which answered with the ICMP error "
        f'"{_ICMP_ERRORS[error.refusal]}". Frames to {host} count as underlay_refused.',
        (
            f"on {host}: {_with_source('pyvtep doctor --remote', remote)} names the rule, and the "
            "command that lets VXLAN pass"
        )
        if itself
        else f"open UDP port {port} from {remote.source or 'this host'} to {host} there",
    )


def _unexplained_silence(remote: RemoteFacts) -> Finding:
    """Report silence that can have several reasons, indistinguishable from here."""
    host, port, own = remote.host, remote.port, remote.source or "this host"
    alive = f"{host} is reachable (answers {'ping' if remote.pings else 'ARP'}), but "
    known = alive if remote.pings or remote.macs else ""
    vni = f" --vni {remote.vni}" if remote.vni is not None else ""
    last_frame = ping = several = ""
    if remote.silent_vnis:
        vni = " --vni VNI"
        names = ", ".join(map(str, remote.silent_vnis[:_VNIS_MAX]))
        more = len(remote.silent_vnis) - _VNIS_MAX
        several = f" It is a remote of the VNIs {names}{f' and {more} more' if more > 0 else ''}."
    if remote.through is not None:
        ping = " No host behind it has answered a ping through the tunnel (IPv6, to all nodes)."
    if remote.last_seen_age is not None:
        last_frame = f" Frames do come from there, the last {remote.last_seen_age:.0f} s ago."
    report = warning if remote.through is None else problem
    if remote.by_evpn:
        return note(
            host,
            f"{known}{host} sends no echo replies, as a VTEP of another kind",
            f"It is a remote by EVPN, and only pyvtep sends echo replies. If no frame comes from "
            f"there, a firewall may drop UDP port {port} there or on the path."
            f"{several}{ping}{last_frame}",
            f"on {host}: tcpdump -ni any udp port {port}",
        )
    return report(
        host,
        f"{known}nothing answers from its UDP port {port}",
        f"Possible causes, indistinguishable from here: a firewall drops UDP port {port} there or "
        f"on the path; pyvtep runs there but does not have {own} as a --remote (there, "
        "source_unknown increases); or it is a VTEP of another kind, such as the kernel's, which "
        f"never answers; this may be normal.{several}{ping}{last_frame}",
        f"on {host}: {_with_source('pyvtep doctor --remote', remote)}; pyvtep stats; and if "
        f"source_unknown increases: {_with_source('pyvtep remote add', remote)}{vni}",
    )


def _of_mtu(remote: RemoteFacts, facts: Facts) -> Iterator[Finding]:
    """Report a path MTU that is smaller than the packets of the segment need."""
    host = remote.host
    overhead = vxlan.OVERHEAD[version_of(host)]
    carried = [segment.mtu + overhead for segment in facts.segments if segment.vni == remote.vni]
    needed = max(carried, default=remote.dev_mtu or 0)
    sizes = {
        words: path.size
        for words, path in (("to", remote.mtu_there), ("from", remote.mtu_back))
        if path is not None and path.size is not None and path.size < needed
    }
    if not sizes:
        return
    reporter = remote.mtu_there.reported_by if remote.mtu_there is not None else None
    report = ""
    if reporter is not None:
        report = f" {reporter} reports it by ICMP, which pyvtep follows by itself within seconds."
    elif "to" in sizes:
        report = " No ICMP error says so (a firewall filters ICMP), so no pyvtep finds out."
    size = min(sizes.values())
    at = f" --vni {remote.vni}" if remote.vni is not None else ""
    here = f" (here with --socket {remote.socket})" if remote.socket is not None else ""
    yield warning(
        host,
        f"the path {' and '.join(sizes)} {host} carries {size} octets, and {needed} are needed",
        f"Larger datagrams are fragmented, which is slow, or lost.{report}",
        f"at both ends: pyvtep set{at} --mtu {size - overhead}{here}; or raise the MTU of the path",
    )


def _options(remote: RemoteFacts) -> str:
    """Return the options by which a pyvtep command finds the segment of a remote."""
    vni = f" --vni {remote.vni}" if remote.vni is not None else ""
    return vni + (f" --socket {remote.socket}" if remote.socket is not None else "")


def _with_source(command: str, remote: RemoteFacts) -> str:
    """Return a command that ends with the address that this host uses towards a remote."""
    return f"{command} {remote.source}" if remote.source else f"{command} with this host's address"
