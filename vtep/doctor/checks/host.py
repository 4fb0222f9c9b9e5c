"""Checks of this host: privileges, holders of the VXLAN port, address conflicts, checksums."""

from collections.abc import Iterator

from attrs import evolve

from vtep.doctor.facts import Facts, HolderFacts, HostFacts
from vtep.doctor.finding import Finding, note, problem, warning


def check(facts: Facts) -> Iterator[Finding]:
    """Yield findings about this host."""
    host = facts.host
    if not host.root:
        yield note(
            "this host",
            "not everything could be examined without privileges",
            "Replies to the VXLAN port, ARP, ICMP and the firewall's rules are for root to see.",
            "run it as root: sudo pyvtep doctor",
        )
    if not facts.pyvteps and not host.root:
        yield from _of_rootless(host)
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
    # Earlier errors are among the drops of a running pyvtep, with their time.
    if host.checksum_errors_increase or not facts.pyvteps:
        yield from _of_checksums(host)


def _of_rootless(host: HostFacts) -> Iterator[Finding]:
    """Report what keeps a user without privileges from running pyvtep."""
    if host.tun_problem is not None:
        yield warning(
            "/dev/net/tun",
            f"this user cannot open /dev/net/tun ({host.tun_problem})",
            "So pyvtep can open no TAP, neither one that root has made nor one of a namespace.",
            "as root: modprobe tun; chmod 666 /dev/net/tun",
        )
    if host.restricts_user_namespaces:
        yield note(
            "this host",
            "AppArmor takes the capabilities of users in their own user namespaces",
            "So pyvtep --netns may be refused the TAP, and rootless containers may not start.",
            "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor "
            "profile with 'userns,' for the program",
        )


def _of_port(holder: HolderFacts, facts: Facts) -> Iterator[Finding]:
    """Report the holder of a UDP port that is not a pyvtep."""
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
    """Report datagrams that the kernel drops for their checksum, before any socket gets them."""
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
