"""`pyvtep doctor` on hosts without a fault, and on hosts with one fault each."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    Tunnel,
    address,
    kernel_vtep,
    mac_of,
    ping,
    pyvtep,
    segment,
    udp_socket,
    wait_until,
)
from vtep.cli.doctor import doctor
from vtep.errors import ConfigError, VtepError
from vtep.testing.lab import Host, Lab


def consult(host: Host, *words: str) -> tuple[int, dict[str, Any]]:
    """Run the doctor within the test process, which saves the start of an interpreter.

    Returns: its exit code and its JSON report.
    """
    with host.inside():
        done = CliRunner().invoke(doctor, ["--json", *words], standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


def ails(host: Host, *words: str, severity: str = "problem") -> list[dict[str, str]]:
    """Return the findings of the doctor; the worst must have this severity."""
    code, said = consult(host, *words)
    found: list[dict[str, str]] = said["findings"]
    assert found, said
    assert found[0]["severity"] == severity, found
    assert code == (0 if severity == "note" else 1)
    return found


def only(found: list[dict[str, str]]) -> dict[str, str]:
    assert len(found) == 1, found
    return found[0]


def nft(host: Host, *rules: str, hook: str = "input", policy: str = "accept") -> None:
    host.run("nft", "add table inet fw")
    host.run(
        "nft", f"add chain inet fw guard {{ type filter hook {hook} priority 0; policy {policy}; }}"
    )
    for rule in rules:
        host.run("nft", f"add rule inet fw guard {rule}")


def of(vtep: Pyvtep) -> tuple[str, str]:
    return "--socket", str(vtep.control)


@contextmanager
def sending(host: Host, destination: str) -> Iterator[None]:
    """Keep sending through a tunnel: pings or, to an address without a host, ARP requests."""
    with host.start("ping", "-i", "0.1", destination, stdout=subprocess.DEVNULL) as child:
        yield
        child.terminate()


def test_no_fault(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    ping(a, "10.0.0.2")
    code, said = consult(a, *of(tunnel[0]))
    assert (code, said["findings"]) == (0, [])
    (remote,) = said["facts"]["remotes"]
    assert remote["mtu_there"]["size"] == remote["mtu_back"]["size"] == 1500
    assert len(remote["there"]["delays"]) == remote["there"]["sent"] == 20
    assert len(remote["back"]["delays"]) == 10
    assert all(0 < delay < 1 for delay in remote["there"]["delays"])
    done = pyvtep(a, "doctor", *of(tunnel[0]))
    assert done.returncode == 0
    assert "192.0.2.2 port 4789 vni 1 over eth0: answers in " in done.stdout
    assert "No fault was found" in done.stdout
    # Its echo requests count as no drops.
    counters = tunnel[1].counters()
    assert counters["echo_requests_answered"] >= 2 * 27
    assert counters["drops"] == 0, counters


def test_no_fault_over_ipv6(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "2001:db8::1", "10.0.0.2/24"))
    code, said = consult(a, "--remote", "2001:db8::2", "--vni", "1")
    assert (code, said["findings"]) == (0, [])
    (remote,) = said["facts"]["remotes"]
    assert remote["mtu_there"]["size"] == remote["mtu_back"]["size"] == 1500
    assert len(remote["back"]["delays"]) == 10


def test_no_fault_on_one_link(pair: Pair, start: Start) -> None:
    a, b = pair
    address(a, "eth0", "fe80::1/64")
    address(b, "eth0", "fe80::2/64")
    vtep = start(a, *segment(1, "fe80::2%eth0", "10.0.0.1/24"), "--local", "fe80::1%eth0")
    there = start(b, *segment(1, "fe80::1%eth0", "10.0.0.2/24"), "--local", "fe80::2%eth0")
    code, said = consult(a, *of(vtep))
    assert (code, said["findings"]) == (0, [])
    there.stop()
    finding = only(ails(a, *of(vtep)))
    assert finding["title"] == "nothing listens on UDP port 4789 of fe80::2%eth0"


def test_remote_firewall_drops(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    nft(b, "udp dport 4789 drop")
    finding = only(ails(a, *of(tunnel[0])))
    assert (
        finding["title"]
        == "192.0.2.2 is reachable (answers ping), but nothing answers from its UDP port 4789"
    )
    assert "firewall" in finding["explanation"]
    # The doctor of the remote host sees more, as the finding says.
    finding = only(ails(b, "--remote", "192.0.2.1", "--vni", "1"))
    assert finding["title"] == "nothing from 192.0.2.1 reaches UDP port 4789 of this host"
    rule = "the rule “udp dport 4789 drop” (handle 2) in chain guard of the nftables table inet fw"
    assert f"Dropped by: {rule}." in finding["explanation"]
    b.run(*finding["fix"].split())
    code, said = consult(a, *of(tunnel[0]))
    assert code == 0, said["findings"]


def test_local_iptables_drops(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    a.run("iptables", "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
    a.run("iptables", "-P", "INPUT", "DROP")
    finding = only(ails(a, *of(tunnel[0])))
    assert finding["title"] == "nothing from 192.0.2.2 reaches UDP port 4789 of this host"
    assert "the policy of chain INPUT of the iptables table filter" in finding["explanation"]
    a.run(*finding["fix"].split())
    code, said = consult(a, *of(tunnel[0]))
    assert code == 0, said["findings"]


def test_local_firewall_drops_output(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    nft(a, "udp dport 4789 drop", hook="output")
    found = ails(a, *of(tunnel[0]))
    assert (
        found[0]["title"]
        == "this host's own firewall forbids to send to UDP port 4789 of 192.0.2.2"
    )
    assert "“udp dport 4789 drop” (handle 2) in chain guard" in found[0]["explanation"]
    assert "underlay_denied" in found[0]["explanation"]
    a.run("sh", "-c", found[0]["fix"])
    code, said = consult(a, *of(tunnel[0]))
    assert code == 0, said["findings"]


def test_remote_firewall_rejects(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    nft(b, "udp dport 4789 reject with icmpx type admin-prohibited")
    found = ails(a, *of(tunnel[0]))
    assert found[0]["title"] == "a firewall refuses UDP port 4789 of 192.0.2.2"


def test_no_remote_host(pair: Pair) -> None:
    a, _ = pair
    assert (
        only(ails(a, "--remote", "192.0.2.2"))["title"]
        == "nothing listens on UDP port 4789 of 192.0.2.2"
    )
    assert only(ails(a, "--remote", "192.0.2.9"))["title"] == "192.0.2.9 does not exist, or is down"
    assert "no route to 198.51.100.1" in only(ails(a, "--remote", "198.51.100.1"))["title"]
    own = only(ails(a, "--remote", "192.0.2.1"))
    assert own["title"] == "192.0.2.1 is an address of this host itself"
    assert "own" not in own["fix"]


def test_kernel_vtep_as_the_remote(pair: Pair, start: Start) -> None:
    a, b = pair
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    # It answers no echo request, but a host behind it can be pinged.
    finding = only(ails(a, *of(vtep), severity="note"))
    assert (
        finding["title"]
        == "192.0.2.2 does not answer pyvtep's echo, but a host behind it answers a ping"
    )
    # Without a running tunnel the doctor cannot find out, and says so.
    vtep.stop()
    finding = only(ails(a, "--remote", "192.0.2.2", severity="warning"))
    assert "this may be normal" in finding["explanation"]


def test_kernel_vtep_as_the_remote_behind_a_bridge(pair: Pair, start: Start) -> None:
    a, b = pair
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    a.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:0b", "up", "type", "bridge")
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")
    finding = only(ails(a, *of(vtep), severity="note"))
    assert finding["title"].endswith("but a host behind it answers a ping")
    # Hosts on this side of the tunnel do not count as hosts behind the remote.
    nft(b, "udp dport 4789 drop")
    finding = only(ails(a, *of(vtep)))
    assert "No host behind it has answered a ping" in finding["explanation"]


def test_a_rule_for_established_connections_with_one_port_both_ways(
    pair: Pair, start: Start
) -> None:
    a, b = pair
    b.run(
        *("ip", "link", "add", "vx0", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "4789"),
        # The kernel's range does not include its last port.
        *("local", "192.0.2.2", "remote", "192.0.2.1", "srcport", "4789", "4790"),
    )
    address(b, "vx0", "10.0.0.2/24")
    b.run("ip", "link", "set", "vx0", "up")
    nft(
        a,
        "iifname eth0 ct state established,related accept",
        "iifname != eth0 accept",
        policy="drop",
    )
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--srcport", "4789", "4789")
    ping(a, "10.0.0.2")
    found = ails(a, *of(vtep), severity="warning")
    assert "only after this host has sent some" in found[0]["title"]
    assert found[1]["title"].endswith("but a host behind it answers a ping")
    # With other source ports, the rule drops all frames from there.
    vtep.run("set", "--srcport", "50000", "50100")
    found = ails(a, *of(vtep))
    assert found[0]["title"].startswith("this host's firewall drops datagrams from 192.0.2.2")


def test_remote_does_not_accept_this_host(pair: Pair, start: Start) -> None:
    a, b = pair
    here = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    there = start(b, *segment(1, "192.0.2.7", "10.0.0.2/24"))
    finding = only(ails(a, *of(here)))
    assert "pyvtep remote add 192.0.2.1 --vni 1" in finding["fix"]
    # On the remote it is a problem while the counter rises, and a note afterwards.
    with sending(a, "10.0.0.9"):
        found = ails(b, *of(there))
    (unknown,) = (each for each in found if each["title"].startswith("source_unknown"))
    assert unknown["severity"] == "warning"
    assert "the last from 192.0.2.1" in unknown["title"]
    _, _, command = unknown["fix"].partition(": ")
    command, _, path = command.partition(" --socket ")
    assert (command, path) == ("pyvtep remote add 192.0.2.1 --vni 1", str(there.control))
    there.run(*command.split()[1:])
    there.run("remote", "del", "192.0.2.7")
    code, said = consult(b, *of(there))
    assert code == 0, said["findings"]
    assert all(each["earlier"] for each in said["findings"])
    (before,) = (each for each in said["findings"] if each["title"].startswith("source_unknown"))
    assert before["title"].endswith(" s ago")
    there.run("stats", "--reset")
    code, said = consult(b, *of(there))
    assert (code, said["findings"]) == (0, [])
    code, said = consult(a, *of(here))
    assert code == 0, said["findings"]


def test_remote_answers_from_another_address(pair: Pair, start: Start) -> None:
    a, b = pair
    address(b, "eth0", "192.0.2.3/24")
    here = start(a, *segment(1, "192.0.2.3", "10.0.0.1/24"))
    there = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    finding = ails(a, *of(here))[0]
    assert finding["title"] == "192.0.2.3 answers from another of its addresses, 192.0.2.2"
    there.run("set", "--local", "192.0.2.3")
    code, said = consult(a, "--remote", "192.0.2.3")
    assert code == 0, said["findings"]


def test_echo_requests_to_a_remote_of_many_vnis_are_limited(pair: Pair, start: Start) -> None:
    a, b = pair
    here = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    there = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    for vtep, remote, own in ((here, "192.0.2.2", 1), (there, "192.0.2.1", 2)):
        with vtep.client() as client:
            for vni in range(2, 41):
                client.vni.add(
                    vni, remote=[remote], tap=f"t{vni}", address=[f"10.0.{vni}.{own}/24"]
                )
    there.run("vni", "del", "30")
    found = ails(a, *of(here))
    problems = [each["title"] for each in found if each["severity"] == "problem"]
    assert problems == ["192.0.2.2 runs pyvtep, but not with vni 30"]
    assert there.counter("probe_limited") == 0


def test_different_vnis(pair: Pair, start: Start) -> None:
    a, b = pair
    here = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    start(b, *segment(2, "192.0.2.1", "10.0.0.2/24"))
    found = ails(a, *of(here))
    assert found[0]["title"] == "192.0.2.2 runs pyvtep, but not with vni 1"


@pytest.mark.parametrize("filtered", [False, True], ids=["ICMP", "ICMP filtered"])
def test_a_narrow_path(lab: Lab, start: Start, filtered: bool) -> None:
    a, router, b = lab.host("a"), lab.host("router"), lab.host("b")
    lab.wire(a, router)
    lab.wire(router, b, "eth1", mtu=1400)
    b.run("ip", "link", "set", "eth1", "down")
    b.run("ip", "link", "set", "eth1", "name", "eth0", "up")
    b.run("ip", "link", "set", "eth0", "mtu", "1500")
    address(a, "eth0", "192.0.2.1/24")
    address(router, "eth0", "192.0.2.254/24")
    address(router, "eth1", "198.51.100.254/24")
    address(b, "eth0", "198.51.100.2/24")
    a.run("ip", "route", "add", "default", "via", "192.0.2.254")
    b.run("ip", "route", "add", "default", "via", "198.51.100.254")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    if filtered:
        nft(router, "icmp type destination-unreachable drop", hook="output")
    here = start(a, *segment(1, "198.51.100.2", "10.0.0.1/24"))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    finding = only(ails(a, *of(here), severity="warning"))
    title = "the path to and from 198.51.100.2 carries 1400 octets, and 1500 are needed"
    assert finding["title"] == title
    if filtered:
        assert "No ICMP error says so" in finding["explanation"]
        assert finding["fix"].startswith("at both ends: pyvtep set --vni 1 --mtu 1350 ")
        here.run("set", "--vni", "1", "--mtu", "1350")
    else:
        assert "192.0.2.254 reports it by ICMP" in finding["explanation"]
        with here.client() as client:
            wait_until(lambda: client.vni.show()[0]["mtu"] == 1350, "what the doctor promised")
    code, said = consult(a, *of(here))
    assert code == 0, said["findings"]


def test_kernel_device_occupies_the_port(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    kernel_vtep(a, 1, "192.0.2.1", "192.0.2.2", "10.0.0.1/24")
    finding = only(ails(a, "--remote", "192.0.2.2"))
    assert finding["title"] == "the kernel VXLAN device vx0 has UDP port 4789 on this host"
    a.run("ip", "link", "del", "vx0")
    with udp_socket(a, "0.0.0.0", 4789):
        finding = only(ails(a, "--remote", "192.0.2.2"))
    assert f"process {'' or ''}" in finding["title"]
    assert "has UDP port 4789 on this host" in finding["title"]


def switched(lab: Lab, *ends: tuple[Host, str]) -> None:
    """Connect hosts by a switch; each end is a host and the name of its device."""
    hub = lab.host("hub")
    hub.run("ip", "link", "add", "br0", "up", "type", "bridge")
    for number, (host, device) in enumerate(ends):
        peer = ("peer", "name", device, "netns", host.pid)
        hub.run("ip", "link", "add", f"p{number}", "type", "veth", *peer)
        hub.run("ip", "link", "set", f"p{number}", "up", "master", "br0")
        host.run("ip", "link", "set", device, "up")


def test_duplicate_underlay_address(lab: Lab, start: Start) -> None:
    a, b, c = (lab.host(name) for name in "abc")
    switched(lab, (a, "eth0"), (b, "eth0"), (c, "eth0"))
    for host, own in ((a, "192.0.2.1/24"), (b, "192.0.2.2/24"), (c, "192.0.2.2/24")):
        address(host, "eth0", own)
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    found = ails(a, "--remote", "192.0.2.2")
    assert found[0]["title"].startswith("2 hosts claim to be 192.0.2.2: ")
    assert mac_of(b, "eth0") in found[0]["title"]
    assert mac_of(c, "eth0") in found[0]["title"]
    found = ails(b, "--remote", "192.0.2.1")
    assert any(
        each["title"] == "192.0.2.2, an address of this host, is that of another host too"
        and mac_of(c, "eth0") in each["explanation"]
        for each in found
    )


def test_one_host_with_two_devices_on_one_link(lab: Lab, start: Start) -> None:
    a, b = lab.host("a"), lab.host("b")
    switched(lab, (a, "eth0"), (a, "eth1"), (b, "eth0"))
    for host, device, own in ((a, "eth0", 1), (a, "eth1", 11), (b, "eth0", 2)):
        address(host, device, f"192.0.2.{own}/24")
    vteps = {
        a: start(a, *segment(1, "192.0.2.2", "10.0.0.1/24")),
        b: start(b, *segment(1, "192.0.2.1", "10.0.0.2/24")),
    }
    for host, vtep in vteps.items():
        code, said = consult(host, *of(vtep))
        assert (code, said["findings"]) == (0, []), host.name
    (remote,) = said["facts"]["remotes"]
    assert set(remote["macs"]) == {mac_of(a, "eth0"), mac_of(a, "eth1")}


def test_segment_address_in_the_underlay_subnet(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    a.run("ip", "link", "add", "br0", "up", "type", "bridge")
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")
    address(a, "br0", "10.0.0.1/24", "192.0.2.9/24")
    found = ails(a, *of(vtep), severity="warning")
    assert "br0 has the address 192.0.2.9/24, and eth0" in found[0]["title"]
    # The route of the longer prefix takes precedence.
    a.run("ip", "addr", "del", "192.0.2.9/24", "dev", "br0")
    address(a, "br0", "192.0.2.9/28")
    finding = only(ails(a, *of(vtep)))
    title = "the route to 192.0.2.2 leads over br0, into its own tunnel"
    assert finding["title"] == title
    a.run("sh", "-c", finding["fix"].partition(";")[0])
    code, said = consult(a, *of(vtep))
    assert code == 0, said["findings"]


@pytest.mark.parametrize(
    ("hook", "rule"), [("input", "iifname vx0 drop"), ("output", "oifname vx0 drop")]
)
def test_firewall_on_the_segment(pair: Pair, tunnel: Tunnel, hook: str, rule: str) -> None:
    a, b = pair
    nft(a, rule, hook=hook)
    finding = only(ails(a, *of(tunnel[0])))
    way = "from" if hook == "input" else "to"
    title = f"the firewall of this host drops all IPv4 {way} the segment, at vx0"
    assert finding["title"] == title
    a.run("sh", "-c", finding["fix"])
    ping(b, "10.0.0.1")


def test_every_frame_is_lost(pair: Pair, start: Start) -> None:
    """A bridge without an address, so that only the doctor sends frames."""
    a, b = pair
    a.run("ip", "link", "add", "br0", "up", "type", "bridge")
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep.run("remote", "del", "192.0.2.2")
    found = ails(a, *of(vtep), severity="warning")
    assert any(each["title"].startswith("no_remote ") for each in found)
    vtep.run("remote", "add", "192.0.2.2")
    done = pyvtep(a, "doctor", *of(vtep))
    assert done.returncode == 0, done.stdout
    assert "NOTE: no_remote " in done.stdout
    assert "No fault is present at the moment." in done.stdout
    vtep.run("stats", "--reset")
    with vtep.client() as client:
        stats = client.stats()
    assert stats["reset_age"] is not None
    assert stats["total"]["drops"]["no_remote"] > 0  # Counters for scripts are never reset.
    assert stats["total"]["since_reset"]["drops"]["no_remote"] == 0
    assert ", since the reset" in vtep.run("stats").splitlines()[0]
    assert vtep.run("stats", "--reset", "--vni", "1") == ""
    assert "shows nothing" in vtep.run("stats", "--reset", "--all", code=2)


def test_wrong_udp_checksums(pair: Pair) -> None:
    """Found even without a pyvtep: the kernel counts them before the socket lookup."""
    a, b = pair
    with a.inside():
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    datagram = bytes.fromhex("c35012b500201234").ljust(32, b"\0")
    with raw, udp_socket(b, "192.0.2.2", 4789):
        raw.sendto(datagram, ("192.0.2.2", 0))
        found = ails(b, "--remote", "192.0.2.1")
        (wrong,) = (each for each in found if "checksum" in each["title"])
        assert wrong["severity"] == "note"
        assert wrong["title"].startswith("1 UDP datagrams with a wrong checksum")
        assert "ethtool -K eth0 rx off" in wrong["fix"]


def test_missing_local_address_and_device_that_is_down(pair: Pair, start: Start) -> None:
    a, b = pair
    address(a, "eth0", "192.0.2.7/24")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--local", "192.0.2.7")
    start(b, *segment(1, "192.0.2.7", "10.0.0.2/24"))
    a.run("ip", "addr", "del", "192.0.2.7/24", "dev", "eth0")
    finding = only(ails(a, *of(vtep)))
    title = "this host does not have 192.0.2.7, the --local for 192.0.2.2"
    assert finding["title"] == title
    address(a, "eth0", "192.0.2.7/24")
    a.run("ip", "link", "set", "eth0", "down")
    finding = only(ails(a, *of(vtep)))
    assert finding["fix"] == "ip link set eth0 up"
    a.run("sh", "-c", finding["fix"])
    code, said = consult(a, *of(vtep))
    assert code == 0, said["findings"]


def test_duplicate_address_on_the_segment(pair: Pair, start: Start) -> None:
    a, b = pair
    here = start(a, *segment(1, "192.0.2.2", "10.44.0.1/24"))
    start(b, *segment(1, "192.0.2.1", "10.44.0.1/24"))
    finding = only(ails(a, *of(here)))
    assert (
        finding["title"] == "10.44.0.1, an address of vx0, is also that of a host behind a remote"
    )
    assert mac_of(b) in finding["explanation"]
    a.run(*finding["fix"].partition(": ")[2].split())
    address(a, "vx0", "10.44.0.2/24")
    code, said = consult(a, *of(here))
    assert code == 0, said["findings"]


def test_duplicate_address_of_two_bridges(pair: Pair, start: Start) -> None:
    vteps = []
    for host, remote in zip(pair, ("192.0.2.2", "192.0.2.1"), strict=True):
        host.run("ip", "link", "add", "br0", "up", "type", "bridge")
        address(host, "br0", "10.9.0.1/24", "fd09::1/64")
        vteps.append(start(host, *segment(1, remote), "--bridge", "br0"))
    vteps[0].run("set", "--anycast-gateway", "10.9.0.1")
    finding = only(ails(pair[0], *of(vteps[0])))
    assert finding["title"] == "fd09::1, an address of br0, is also that of a host behind a remote"
    assert mac_of(pair[1], "br0") in finding["explanation"]
    words = finding["fix"].partition("pyvtep ")[2].split()
    assert words == [
        "set",
        "--vni",
        "1",
        "--anycast-gateway",
        "10.9.0.1",
        "--anycast-gateway",
        "fd09::1",
    ]
    for vtep in vteps:
        vtep.run(*words)
    code, said = consult(pair[0], *of(vteps[0]))
    assert code == 0, said["findings"]


def test_the_tap(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    ping(a, "10.0.0.2")
    a.run("ip", "link", "set", "vx0", "down")
    found = ails(a, *of(tunnel[0]))
    assert found[0]["title"] == "vx0 is down"
    a.run(*found[0]["fix"].split())
    a.run("ip", "addr", "flush", "dev", "vx0", "scope", "global")
    found = ails(a, *of(tunnel[0]), severity="warning")
    assert any(each["title"] == "vx0 has no address and is on no bridge" for each in found)


def test_the_bridge(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    a.run("ip", "link", "add", "br0", "type", "bridge")
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")
    assert only(ails(a, *of(vtep)))["title"] == "the bridge br0 is down"
    a.run("ip", "link", "set", "br0", "up")
    code, said = consult(a, *of(vtep))
    assert code == 0, said["findings"]
    a.run("bridge", "link", "set", "dev", "vx0", "hairpin", "on")
    finding = only(ails(a, *of(vtep), severity="warning"))
    assert finding["title"] == "vx0 is a hairpin port of br0"
    a.run(*finding["fix"].split())
    a.run("ip", "link", "add", "p0", "up", "master", "br0", "type", "veth", "peer", "name", "p1")
    # The MTU of the TAP follows the bridge, unless the administrator has set it.
    a.run("ip", "link", "set", "vx0", "mtu", "1400")
    finding = only(ails(a, *of(vtep)))
    assert finding["title"] == "ports of br0 have a larger MTU than vx0: p0 1500"
    a.run(*finding["fix"].split())
    # With STP, a new port does not forward until the forward delay has passed.
    a.run("ip", "link", "set", "br0", "type", "bridge", "stp_state", "1", "forward_delay", "3000")
    a.run("ip", "link", "set", "br0", "down")
    a.run("ip", "link", "set", "br0", "up")
    finding = only(ails(a, *of(vtep)))
    assert finding["title"] == "the bridge br0 does not forward to vx0: the port is listening"
    for command in finding["fix"].split(" && "):
        a.run(*command.split())
    a.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    a.run("iptables", "-P", "FORWARD", "DROP")
    finding = only(ails(a, *of(vtep)))
    assert finding["title"] == "the firewall of this host drops IPv4 that crosses the bridge br0"
    a.run(*finding["fix"].partition(";")[0].split())
    code, said = consult(a, *of(vtep))
    assert code == 0, said["findings"]


def test_missing_privileges_are_reported(tunnel: Tunnel) -> None:
    a = tunnel[0].host
    nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
    done = subprocess.run(
        a._argv(
            (*nobody, sys.executable, "-m", "vtep", "doctor", "--remote", "192.0.2.2", "--json")
        ),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    findings = {each["about"]: each for each in json.loads(done.stdout)["findings"]}
    # Not every machine lets all users open TAPs, as udev does.
    closed = Path("/dev/net/tun").stat().st_mode & 0o006 != 0o006
    assert (findings.pop("/dev/net/tun", None) is not None) is closed
    assert done.returncode == int(closed), done.stderr
    (finding,) = findings.values()
    assert finding["severity"] == "note"
    assert "run it as root" in finding["fix"]


def test_usage_errors(pair: Pair) -> None:
    a, _ = pair
    for words in ("--remote 192.0.2.256", "--vni 16777216", "--dstport 0"):
        with pytest.raises(ConfigError):
            consult(a, *words.split())
    for words in ("--vni 5", "", "--socket /nowhere", "--remote no-such-host.invalid"):
        with pytest.raises(VtepError):
            consult(a, *words.split())
    done = pyvtep(a, "doctor")
    assert done.returncode == 1
    line = "pyvtep: error: no pyvtep runs in this network namespace; name a remote with --remote\n"
    assert (done.stdout, done.stderr) == ("", line)
