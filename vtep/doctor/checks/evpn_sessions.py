"""Checks of BGP EVPN sessions: why one is not established, or established and of no use."""

from collections.abc import Iterator
from ipaddress import ip_address
from shlex import quote
from typing import Final

from vtep.counters import duration
from vtep.doctor.evpn_facts import EvpnFacts, Md5Counters, NeighborFacts
from vtep.doctor.finding import Finding, note, problem, warning

_SETTLED_S: Final = 15.0
"""Seconds after which an established session should have brought routes."""

_STARTS_S: Final = 10.0
"""Seconds in which a session without an error may still be about to come up."""


def check(evpn: EvpnFacts) -> Iterator[Finding]:
    """Yield findings about the speaker and its sessions."""
    speaker = evpn.speaker
    socket = f" --socket {evpn.socket}" if evpn.socket is not None else ""
    if speaker["state"] == "failed":
        yield problem(
            "evpn",
            "the process that speaks BGP for EVPN has failed",
            f"It ended: {speaker['last_error'] or 'for an unknown reason'}. It is started again; "
            "its entries stay for the time of stale-time, and are removed then.",
            "read the log of pyvtep: journalctl -u pyvtep, or the terminal that it runs in",
        )
        return
    if speaker["state"] == "silent":
        yield problem(
            "evpn",
            f"the process that speaks BGP for EVPN, {speaker['pid']}, has not reported for "
            f"{duration(speaker['age'])}",
            "It hangs, is stopped, or gets no processor time. Its neighbours end their sessions "
            "after the hold time, and withdraw the routes of this host. It is killed after a "
            "minute, and started again.",
            f"at once: pyvtep evpn restart{socket}; to see what it waits for: cat "
            f"/proc/{speaker['pid']}/status",
        )
        return
    if speaker["version"] not in (None, evpn.version):
        yield note(
            "evpn",
            f"the process that speaks BGP is still of version {speaker['version']}",
            f"The upgrade to {evpn.version} has kept it, so that no session went down. Restart it "
            "when traffic to it may stop for about a second: neighbours withdraw its routes.",
            f"pyvtep evpn restart{socket}",
        )
    for line in evpn.problems:
        yield warning("evpn", line)
    own = {address for segment in evpn.segments for address in segment["local"]}
    for neighbor in evpn.neighbors:
        if neighbor.session["state"] == "established":
            yield from _of_established(neighbor)
        elif _refuses_ipv6(neighbor) and any(ip_address(each).version == 6 for each in own):
            yield _ipv6_vtep(neighbor)
        else:
            yield from _of_down(neighbor, evpn.md5)


# --- sessions that are down ---------------------------------------------------------------------


def _of_down(neighbor: NeighborFacts, md5: Md5Counters | None) -> Iterator[Finding]:
    """Report why a session is not established: the first cause that is found."""
    session, host = neighbor.session, neighbor.session["neighbor"]
    if neighbor.is_own:
        yield problem(
            host,
            f"the BGP neighbour {host} is an address of this host itself",
            "A session with this host brings no routes.",
            "name a route reflector, or another leaf, as --evpn-neighbor",
        )
        return
    if neighbor.local_gone is not None:
        yield problem(
            host,
            f"this host does not have {neighbor.local_gone}, from which the session with {host} "
            "is to start",
            "",
            "give it back to a device (ip addr add), or change --local",
        )
        return
    if neighbor.no_device is not None:
        link = f"%{neighbor.no_device}"
        yield problem(
            host,
            f"this host has no device {neighbor.no_device}, on which the BGP neighbour {host} is",
            "The session begins when there is one.",
            f"create the device, or name another one in --evpn-neighbor, in place of {link}: "
            "ip link show",
        )
        return
    if neighbor.no_route is not None:
        fix = f"add a route (ip route add); ip route get {host} shows when there is one"
        if neighbor.down:
            fix = f"ip link set {quote(neighbor.down[0])} up"
        yield problem(
            host,
            f"this host has no route to the BGP neighbour {host} ({neighbor.no_route})",
            "The session is tried again until there is one.",
            fix,
        )
        return
    is_new = session["last_error"] is None and not session["was_established"]
    if is_new and session["age"] < _STARTS_S:
        yield note(host, f"the BGP session with {host} is still starting ({session['state']})")
        return
    yield _cause(neighbor, md5)


def _cause(neighbor: NeighborFacts, md5: Md5Counters | None) -> Finding:
    """Return why a neighbour that there is a route to has no session."""
    kind = neighbor.session["last_error_kind"]
    if kind == "connect-refused":
        return _refused(neighbor)
    if kind == "no-route":
        return _unreachable(neighbor)
    if kind in ("timeout", None) and neighbor.session["state"] != "open-sent":
        return _silent(neighbor, md5)
    if kind in ("timeout", None):
        return _no_open(neighbor)
    if kind == "closed-before-open":
        return _unknown_there(neighbor)
    if kind == "wrong-asn":
        return _wrong_asn(neighbor)
    if kind == "no-evpn-family":
        return _no_family(neighbor)
    if kind == "hold-expired":
        return _hold_expired(neighbor)
    host = neighbor.session["neighbor"]
    return problem(
        host,
        f"the BGP session with {host} is not established: {neighbor.session['last_error']}",
        _tried_again(neighbor),
        f"see the log of both sides; FRR: show bgp l2vpn evpn neighbors {_own(neighbor)}",
    )


def _refused(neighbor: NeighborFacts) -> Finding:
    host, port = neighbor.session["neighbor"], neighbor.session["port"]
    return problem(
        host,
        f"{host} refuses connections to TCP port {port}",
        "No BGP speaker listens there, or a firewall there rejects the connection. FRR listens if "
        "bgpd runs and has a router bgp.",
        f"on {host}: ss -tlnp sport = :{port}; with FRR: bgpd=yes in /etc/frr/daemons, and "
        "systemctl restart frr",
    )


def _unreachable(neighbor: NeighborFacts) -> Finding:
    """Report a neighbour to which there is a route, and which is not there."""
    host = neighbor.session["neighbor"]
    if neighbor.gateway is None:
        return problem(
            host,
            f"no host on {neighbor.dev} answers for {host}",
            "It is on a link of this host, and does not answer ARP or neighbour discovery: it is "
            "down, or on another VLAN, or the address is wrong.",
            f"check the address and the cabling: ip neigh show {host}",
        )
    return problem(
        host,
        f"{host} is unreachable beyond {neighbor.gateway}",
        f"The route over {neighbor.dev} leads to {neighbor.gateway}, and an ICMP error came back.",
        f"check the routes there: ip route get {host}; tracepath {host}",
    )


def _silent(neighbor: NeighborFacts, md5: Md5Counters | None) -> Finding:
    """Report a neighbour that does not answer a SYN: a filter, or a wrong password."""
    session = neighbor.session
    host, port = session["neighbor"], session["port"]
    if session["passive"]:
        return problem(
            host,
            f"{host} has not connected",
            "It is configured as passive here, so that this host waits for its connection.",
            f"on {host}: configure {_own(neighbor)} as a neighbour, not passive; and let TCP "
            f"port 179 of {_own(neighbor)} pass",
        )
    alive = {None: "", 0: " It does not answer ping either."}.get(
        neighbor.pings, " It answers ping, so the host is up."
    )
    evidence = _md5_evidence(md5)
    if session["password"] and neighbor.unsigned in ("accepted", "refused"):
        answer = "accepts" if neighbor.unsigned == "accepted" else "refuses"
        return problem(
            host,
            f"{host} answers without a password, and not with the one that is configured here",
            f"It {answer} a connection without a TCP MD5 signature, so nothing filters port "
            f"{port}; it drops segments that are signed.{evidence}",
            f"on {host}: configure the same password for {_own(neighbor)} (FRR: neighbor "
            f"{_own(neighbor)} password ...); or remove the password here",
        )
    if session["password"]:
        password = (
            f"the password differs from that of {host}, or {host} has none for this host: the "
            "kernel there drops such segments without an answer, and counts them (nstat -az "
            "'TcpExtTCPMD5*')"
        )
    else:
        password = (
            f"{host} expects a password: its kernel drops segments without a signature, and sends "
            "no answer"
        )
    return problem(
        host,
        f"nothing answers from TCP port {port} of {host}",
        f"Two causes look the same from here: a firewall drops TCP port {port} there or on the "
        f"path; or {password}.{alive}{evidence}",
        f"on {host}: tcpdump -ni any tcp port {port} and host {_own(neighbor)} shows whether the "
        "SYNs arrive; if they do, compare the passwords (password-file here, FRR: neighbor "
        f"{_own(neighbor)} password ...); if not, let TCP port {port} pass",
    )


def _md5_evidence(md5: Md5Counters | None) -> str:
    """Return what the counters of this host say about segments that were received."""
    if md5 is None:
        return ""
    words = []
    if md5.wrong:
        words.append(f"{md5.wrong} with a signature of another password (TCPMD5Failure)")
    if md5.missing:
        words.append(f"{md5.missing} without a signature (TCPMD5NotFound)")
    if md5.unexpected:
        words.append(f"{md5.unexpected} with an unexpected signature (TCPMD5Unexpected)")
    if not words:
        return ""
    return f" Since its start, this host has dropped TCP segments: {', '.join(words)}."


def _no_open(neighbor: NeighborFacts) -> Finding:
    """Report a neighbour that accepts a connection and sends no OPEN."""
    host = neighbor.session["neighbor"]
    if _may_be_external(neighbor) and neighbor.gateway is not None:
        return _too_many_hops(neighbor)
    return problem(
        host,
        f"{host} accepts the connection, and sends no OPEN",
        f"Its BGP speaker is stopped, overloaded, or waits. {_tried_again(neighbor)}",
        f"on {host}, with FRR: show bgp summary; and its log",
    )


def _refuses_ipv6(neighbor: NeighborFacts) -> bool:
    """Return True for the NOTIFICATIONs that FRR 8.4 sends about an IPv6 VTEP."""
    session = neighbor.session
    return session["last_error_kind"] == "notification-received" and any(
        code in (session["last_error"] or "") for code in ("3/5", "3/9")
    )


def _ipv6_vtep(neighbor: NeighborFacts) -> Finding:
    host = neighbor.session["neighbor"]
    return problem(
        host,
        f"{host} refuses the routes of an IPv6 VTEP, and ends the session",
        f"It answered: {neighbor.session['last_error']}. FRR 8.4 resets a session by which a route "
        "of type 3 with an IPv6 address comes (RFC 7432 allows it).",
        "give the VNI an IPv4 --local, also if the session itself uses IPv6; or use another "
        f"implementation at {host}",
    )


def _too_many_hops(neighbor: NeighborFacts) -> Finding:
    host = neighbor.session["neighbor"]
    return problem(
        host,
        f"{host} accepts the connection, and its messages do not arrive: it is not on a link of "
        "this host",
        f"It is reached by way of {neighbor.gateway}, and BGP speakers send to a neighbour of "
        "another AS with a TTL of 1 unless told otherwise: the first router drops that.",
        f"on {host}, with FRR: neighbor {_own(neighbor)} ebgp-multihop 4; with GoBGP: "
        "ebgp-multihop with enabled and multihop-ttl",
    )


def _unknown_there(neighbor: NeighborFacts) -> Finding:
    host, session = neighbor.session["neighbor"], neighbor.session
    hops = ""
    if _may_be_external(neighbor) and neighbor.gateway is not None:
        hops = (
            f" FRR also does so for a neighbour of another AS that is not on one of its links: "
            f"neighbor {_own(neighbor)} ebgp-multihop 4."
        )
    return problem(
        host,
        f"{host} closes the connection: it does not know {_own(neighbor)} as a neighbour",
        f"A BGP speaker that has no configuration for the address of a caller closes the "
        f"connection at once.{hops}{_unnumbered(host)}",
        f"on {host}, with FRR: neighbor {_own(neighbor)} remote-as {session['asn']}"
        f"{_source(neighbor)}",
    )


def _unnumbered(host: str) -> str:
    """Return what unnumbered sessions need, for a link-local neighbour."""
    if not ip_address(host).is_link_local:
        return ""
    return (
        " FRR knows an unnumbered neighbour (neighbor DEVICE interface remote-as) only once it has "
        "received router advertisements of this host on that link: radvd sends them."
    )


def _source(neighbor: NeighborFacts) -> str:
    """Return how to open the session from the address that the neighbour knows."""
    host = neighbor.session["neighbor"]
    if ip_address(host).is_link_local:
        return ""
    other = neighbor.source if neighbor.source != _own(neighbor) else None
    which = "another address of this host" if other is None else other
    return (
        f", and neighbor ... update-source if {host} is an address of a loopback there; or, if it "
        f"knows {which}, open the session from that: --evpn-neighbor {host},local="
        f"{other or '...'}, or local of the neighbour in the file"
    )


def _wrong_asn(neighbor: NeighborFacts) -> Finding:
    host, session = neighbor.session["neighbor"], neighbor.session
    return problem(
        host,
        f"the AS numbers of the session with {host} do not agree",
        f"{session['last_error']}. This host is AS {session['asn']}.",
        f"here: configure {host} with its AS number, or with none for any; on {host}: "
        f"neighbor {_own(neighbor)} remote-as {session['asn']}",
    )


def _no_family(neighbor: NeighborFacts) -> Finding:
    host = neighbor.session["neighbor"]
    return problem(
        host,
        f"{host} does not exchange EVPN routes with this host",
        "Its OPEN has no capability for L2VPN EVPN (AFI 25, SAFI 70): the family is not activated "
        "for this neighbour.",
        f"on {host}, with FRR: address-family l2vpn evpn, neighbor {_own(neighbor)} activate; with "
        "GoBGP: afi-safi-name l2vpn-evpn",
    )


def _hold_expired(neighbor: NeighborFacts) -> Finding:
    host, session = neighbor.session["neighbor"], neighbor.session
    if _loses_large_packets(neighbor):
        return _path_mtu(neighbor)
    if _may_be_external(neighbor) and neighbor.gateway is not None and not session["router_id"]:
        return _too_many_hops(neighbor)
    return problem(
        host,
        f"{host} was silent for longer than the hold time",
        f"{session['last_error'] or 'No message came'}. The path was interrupted, or its BGP "
        f"speaker was stopped or overloaded. {_tried_again(neighbor)}",
        f"ping {host}; on {host}, with FRR: show bgp summary, and its log",
    )


# --- sessions that are established --------------------------------------------------------------


def _of_established(neighbor: NeighborFacts) -> Iterator[Finding]:
    """Report an established session that stalls, or brings or takes nothing."""
    host, session = neighbor.session["neighbor"], neighbor.session
    if neighbor.tcp is not None and neighbor.tcp.retransmits and neighbor.tcp.unacknowledged:
        if _loses_large_packets(neighbor):
            yield _path_mtu(neighbor)
            return
        yield problem(
            host,
            f"{host} does not acknowledge what this host sends",
            f"{neighbor.tcp.unacknowledged} octets wait, after {neighbor.tcp.retransmits} "
            "retransmissions: the path is interrupted, or loses packets.",
            f"ping {host}; ss -tni dst {host}",
        )
        return
    if _loses_large_packets(neighbor):
        yield _path_mtu(neighbor)
    if session["age"] < _SETTLED_S:
        return
    if not session["routes_received"]:
        yield warning(
            host,
            f"{host} has sent no EVPN route in {duration(session['age'])}",
            "It has no VNI itself, or no neighbour that has. FRR announces its VNIs only with "
            "advertise-all-vni, and only those whose VXLAN device is up and on a bridge.",
            f"on {host}, with FRR: address-family l2vpn evpn, advertise-all-vni; show evpn vni "
            "lists the VNIs that it knows",
        )
    if not session["routes_announced"]:
        yield warning(
            host,
            f"this host announces no route to {host}",
            "A VNI is announced once it has an own VTEP address: --local, or the local address of "
            "a session.",
            "pyvtep evpn show has the addresses; give one with --local",
        )


def _loses_large_packets(neighbor: NeighborFacts) -> bool:
    return bool(neighbor.pings) and neighbor.large_pings == 0


def _path_mtu(neighbor: NeighborFacts) -> Finding:
    host = neighbor.session["neighbor"]
    stalls = "A session comes up with small messages, and stalls at the first large one."
    return problem(
        host,
        f"the path to {host} loses packets of {neighbor.dev_mtu} octets, the MTU of {neighbor.dev}",
        f"Small packets pass. {stalls}",
        f"let ICMP (fragmentation needed, packet too big) pass; or lower the MTU towards it: ip "
        f"route change {host} ... mtu lock 1400; or raise the MTU of the path",
    )


# --- words --------------------------------------------------------------------------------------


def _own(neighbor: NeighborFacts) -> str:
    """Return the address by which a neighbour knows this host."""
    session = neighbor.session
    # A speaker of an older version does not report its source.
    source = session["local"] or session.get("source") or neighbor.source
    return source or "the address of this host"


def _may_be_external(neighbor: NeighborFacts) -> bool:
    """Return True unless a neighbour is known to be of the same AS."""
    return neighbor.session["remote_asn"] != neighbor.session["asn"]


def _tried_again(neighbor: NeighborFacts) -> str:
    age = neighbor.session["last_error_age"]
    when = "" if age is None else f", the last time {duration(age)} ago"
    return f"It is tried again{when}."
