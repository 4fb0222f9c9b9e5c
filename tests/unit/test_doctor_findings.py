"""Findings of the doctor, from facts that are made up."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
from attrs import evolve

from vtep.counters import BY_DESIGN, Drop
from vtep.doctor.checks.drops import REMEDIES
from vtep.doctor.facts import (
    Blocked,
    BlockedRemote,
    BridgeFacts,
    Conflict,
    Drops,
    Echoes,
    Facts,
    HeldMac,
    HolderFacts,
    HostFacts,
    IcmpError,
    PathMtu,
    PortFacts,
    ProcessFacts,
    Refusal,
    RemoteFacts,
    SegmentFacts,
)
from vtep.doctor.finding import Finding, Severity, has_faults
from vtep.doctor.findings import findings
from vtep.fastpath.state import (
    COMPILING,
    DISABLED,
    LOADING,
    NOT_INSTALLED,
    ON,
    TURN_FAILED,
    FastPathState,
    off,
)
from vtep.host.firewall import Verdict
from vtep.wire.echo import EchoStatus

HOST = "192.0.2.2"
OFFLOADS = frozenset(("gro", "gso", "tnl", "tso", "uso"))
WELL = RemoteFacts(
    host=HOST,
    vni=5,
    port=4789,
    dev="eth0",
    dev_mtu=1500,
    source="192.0.2.1",
    tap="vx0",
    there=Echoes(20, (0.001,) * 20, EchoStatus.FINE, HOST),
    back=Echoes(5, (0.001,) * 5, EchoStatus.FINE, HOST),
    macs=("02:00:00:00:00:01",),
    mtu_there=PathMtu(1500),
    mtu_back=PathMtu(1500),
)
SILENT = evolve(WELL, there=Echoes(20), back=None, mtu_there=None, mtu_back=None, pings=3)
SEGMENT = SegmentFacts(
    vni=5,
    tap="vx0",
    mtu=1450,
    tap_mtu=1500,
    dstport=4789,
    addresses=("10.0.0.1/24",),
    options={"offload": sorted(OFFLOADS)},
    offload=OFFLOADS,
)
BRIDGE = BridgeFacts("br0", up=True, mtu=1500, others=(PortFacts("veth0", 1500),))
ON_BRIDGE = evolve(SEGMENT, addresses=(), bridge=BRIDGE)
HERE = HostFacts(root=True, kernel="6.1", underlay={"eth0": ("192.0.2.1/24",)})
RULE = Verdict("the rule “x” in chain y", "nft insert rule x", certain=True)


def of_remote(remote: RemoteFacts = WELL, **changes: Any) -> list[Finding]:
    return findings(Facts(HERE, (SEGMENT,), (evolve(remote, **changes),), pyvteps=1))


def of_segment(segment: SegmentFacts = SEGMENT, **changes: Any) -> list[Finding]:
    return findings(Facts(HERE, (evolve(segment, **changes),), (WELL,), pyvteps=1))


IN_VLAN = {**ON_BRIDGE.options, "vlan": 10}


def of_bridge(segment: SegmentFacts = ON_BRIDGE, **changes: Any) -> list[Finding]:
    return of_segment(segment, bridge=evolve(BRIDGE, **changes))


def only(found: Iterable[Finding]) -> Finding:
    (one,) = found
    assert one.title
    assert one.fix or one.severity is Severity.NOTE
    for text in (one.title, one.explanation, one.fix):
        assert "None" not in text
    # A command has no placeholders.
    assert not re.search(r"\b(ADDRESS|BRIDGE|DEV|FILE|GATEWAY|HOST|IP|LEN|MAC|N|PATH)\b", one.fix)
    return one


def test_facts_without_a_fault() -> None:
    for segment in (SEGMENT, ON_BRIDGE):
        assert findings(Facts(HERE, (segment,), (WELL,), pyvteps=1)) == []
    assert findings(Facts(HERE, (), (WELL,))) == []
    assert not has_faults([])


@pytest.mark.parametrize(
    ("changes", "title", "fix"),
    [
        (
            {"is_own": True},
            "is an address of this host itself",
            "pyvtep remote del 192.0.2.2 --vni 5",
        ),
        ({"no_route": "Network is unreachable"}, "no route to 192.0.2.2", "ip route get 192.0.2.2"),
        ({"macs": ("m1", "m2")}, "2 hosts claim to be 192.0.2.2: m1, m2", "another address"),
        (
            {"there": evolve(WELL.there, status=EchoStatus.VNI_UNKNOWN)},
            "runs pyvtep, but not with vni 5",
            "on 192.0.2.2: pyvtep vni add 5 --remote 192.0.2.1",
        ),
        (
            {"there": evolve(WELL.there, status=EchoStatus.SOURCE_UNKNOWN)},
            "does not listen to 192.0.2.1 in it",
            "on 192.0.2.2: pyvtep remote add 192.0.2.1 --vni 5",
        ),
        (
            {"there": evolve(WELL.there, answered_from="192.0.2.9")},
            "answers from another of its addresses, 192.0.2.9",
            "--local 192.0.2.2",
        ),
        (
            {"back": Echoes(5), "firewall": RULE},
            "nothing from 192.0.2.2 reaches UDP port 4789 of this host",
            RULE.fix,
        ),
        (
            {"back": Echoes(5)},
            "nothing from 192.0.2.2 reaches UDP port 4789 of this host",
            "open UDP port 4789 from 192.0.2.2 to 192.0.2.1 there",
        ),
    ],
)
def test_problems_of_remotes_that_reply(changes: dict[str, Any], title: str, fix: str) -> None:
    finding = only(of_remote(**changes))
    assert finding.severity is Severity.PROBLEM
    assert title in finding.title
    assert fix in finding.fix


def test_one_host_on_two_devices_is_no_conflict() -> None:
    assert of_remote(macs=("m1", "m2"), one_host=True) == []


def test_loss() -> None:
    finding = only(of_remote(there=evolve(WELL.there, delays=(0.001,) * 17)))
    assert finding.severity is Severity.WARNING
    assert finding.title.startswith("3 of 25 datagrams")
    # A rule may drop at random.
    perhaps = evolve(RULE, certain=False)
    finding = only(of_remote(back=Echoes(5, (0.001,) * 4), firewall=perhaps))
    assert finding.title.startswith("1 of 25 datagrams")
    assert RULE.fix in finding.fix


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        (
            {"there": Echoes(20, send_error="No route to host")},
            "cannot send to 192.0.2.2: No route",
        ),
        (
            {"there": Echoes(20, send_error="Operation not permitted", forbidden=True)},
            "this host's own firewall forbids to send to UDP port 4789",
        ),
        (
            {"there": Echoes(20, errors=(IcmpError(Refusal.PORT, HOST),))},
            "nothing listens on UDP port 4789 of 192.0.2.2",
        ),
        (
            {"there": Echoes(20, errors=(IcmpError(Refusal.PORT, "192.0.2.254"),))},
            "a firewall refuses UDP port 4789",
        ),
        (
            {"there": Echoes(20, errors=(IcmpError(Refusal.FORBIDDEN, HOST),))},
            "a firewall refuses UDP port 4789",
        ),
        (
            {"there": Echoes(20, errors=(IcmpError(Refusal.HOST, "192.0.2.254"),))},
            "192.0.2.2 can't be reached",
        ),
        ({"pings": 0, "macs": ()}, "192.0.2.2 does not exist, or is down"),
        ({"pings": 0, "macs": ("m",)}, "is reachable (answers ARP), but nothing answers"),
        ({"through": False}, "is reachable (answers ping), but nothing answers"),
        (
            {"through": False, "last_seen_age": 3.0},
            "is reachable (answers ping), but nothing answers",
        ),
    ],
)
def test_problems_of_silent_remotes(changes: dict[str, Any], title: str) -> None:
    finding = of_remote(SILENT, **changes)[0]
    assert title in finding.title
    assert has_faults([finding])
    assert finding.fix


def test_icmp_of_a_link_local_address() -> None:
    there = Echoes(20, errors=(IcmpError(Refusal.PORT, "fe80::2"),))
    finding = only(of_remote(SILENT, host="fe80::2%eth0", there=there))
    assert finding.title == "nothing listens on UDP port 4789 of fe80::2%eth0"


def test_silence_of_a_vtep_is_reported_once_for_all_vnis() -> None:
    def of_host(*remotes: RemoteFacts) -> list[Finding]:
        found = findings(Facts(HERE, (), remotes, pyvteps=1))
        return [finding for finding in found if finding.about == HOST]

    silent = [evolve(SILENT, vni=1000 + each, tap="vx0", through=False) for each in range(11)]
    finding = only(of_host(*silent))
    assert "nothing answers from its UDP port 4789" in finding.title
    assert "1000, 1001, 1002, 1003, 1004 and 6 more" in finding.explanation
    assert finding.fix.endswith("--vni VNI")
    # A host behind it answers in one VNI: it is a VTEP of another kind in all of them.
    finding = only(of_host(*silent[1:], evolve(silent[0], through=True)))
    assert finding.severity is Severity.NOTE
    assert "a host behind it answers a ping" in finding.title
    # Another UDP port is another VTEP.
    assert len(of_host(silent[0], evolve(silent[1], port=8472))) == 2


def test_silence_may_be_no_fault() -> None:
    # Without a ping through the tunnel, the reason is unknown.
    finding = only(of_remote(SILENT))
    assert finding.severity is Severity.WARNING
    assert "source_unknown" in finding.explanation
    # A reply through the tunnel proves that it works.
    finding = only(of_remote(SILENT, through=True))
    assert finding.severity is Severity.NOTE
    assert not has_faults([finding])
    # Without privileges, no ping and no ARP request was sent.
    finding = only(of_remote(SILENT, pings=None, macs=None))
    assert "does not exist" not in finding.title


def test_the_firewall_of_this_host_explains_silence() -> None:
    found = of_remote(SILENT, firewall=RULE)
    assert found[0].fix == RULE.fix
    assert len(of_remote(SILENT, firewall=evolve(RULE, certain=False))) == 1


@pytest.mark.parametrize("reported_by", [None, "192.0.2.254"])
def test_path_mtu(reported_by: str | None) -> None:
    finding = only(of_remote(mtu_there=PathMtu(1400, reported_by)))
    assert finding.severity is Severity.WARNING
    assert finding.title == "the path to 192.0.2.2 carries 1400 octets, and 1500 are needed"
    assert finding.fix.startswith("at both ends: pyvtep set --vni 5 --mtu 1350; ")
    assert ("192.0.2.254 reports it" in finding.explanation) == (reported_by is not None)
    finding = only(of_remote(mtu_there=PathMtu(1400, reported_by), mtu_back=PathMtu(1404)))
    assert finding.title.startswith("the path to and from 192.0.2.2 carries 1400 octets")
    finding = only(of_remote(mtu_back=PathMtu(1400)))
    assert finding.title == "the path from 192.0.2.2 carries 1400 octets, and 1500 are needed"
    # The MTU of the tunnel and its overhead are needed, not the MTU of the device.
    assert of_remote(dev_mtu=9000, mtu_there=PathMtu(1500), mtu_back=PathMtu(1500)) == []


def test_path_mtu_without_a_segment() -> None:
    remote = evolve(WELL, host="2001:db8::2", mtu_there=PathMtu(1400))
    remote = evolve(remote, there=evolve(WELL.there, answered_from="2001:db8::2"))
    finding = only(findings(Facts(HERE, (), (remote,))))
    assert "--mtu 1330" in finding.fix


# --- segments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "severity", "title", "fix"),
    [
        (of_segment(up=False), "problem", "vx0 is down", "ip link set vx0 up"),
        (of_segment(addresses=()), "warning", "vx0 has no address and is on no bridge", "ip addr"),
        (
            of_segment(offload=OFFLOADS - {"uso"}),
            "note",
            "works without the offload uso",
            "newer kernel",
        ),
        (
            of_segment(options={"offload": ["tso", "uso"]}),
            "note",
            "is configured not to use the offload gro, gso",
            "pyvtep set --offload auto",
        ),
        (
            of_segment(options={**SEGMENT.options, "udp6zerocsumtx": True}),
            "note",
            "sends UDP over IPv6 without checksums",
            "udp6zerocsumrx",
        ),
        (
            of_segment(ON_BRIDGE, addresses=("10.0.0.1/24",)),
            "warning",
            "is a port of the bridge br0 and has an address itself",
            "ip addr del 10.0.0.1/24 dev vx0 && ip addr add 10.0.0.1/24 dev br0",
        ),
        (
            of_segment(conflicts=(Conflict("10.0.0.1/24", "vx0", "02:00:00:00:00:09"),)),
            "problem",
            "10.0.0.1, an address of vx0, is also that of a host behind a remote",
            "ip addr del 10.0.0.1/24 dev vx0",
        ),
        (
            of_segment(
                ON_BRIDGE,
                conflicts=(Conflict("fd09::1/64", "br0", "02:00:00:00:00:09"),),
                options={"offload": sorted(OFFLOADS), "anycast-gateway": ["10.9.0.1"]},
            ),
            "problem",
            "fd09::1, an address of br0, is also that of a host behind a remote",
            "pyvtep set --vni 5 --anycast-gateway 10.9.0.1 --anycast-gateway fd09::1",
        ),
        (of_bridge(up=False), "problem", "the bridge br0 is down", "ip link set br0 up"),
        (of_bridge(state="blocking"), "problem", "the port is blocking", "stp_state 0"),
        (of_bridge(state="learning"), "problem", "the port is learning", "stp_state 0"),
        (of_bridge(hairpin=True), "warning", "hairpin", "hairpin off"),
        (
            of_bridge(evolve(ON_BRIDGE, options=IN_VLAN), vlans={1: False}),
            "problem",
            "vx0 is no member of VLAN 10 of the bridge br0",
            "bridge vlan add dev vx0 vid 10",
        ),
        (
            of_bridge(evolve(ON_BRIDGE, options=IN_VLAN), vlans={10: False}),
            "problem",
            "vx0 is an untagged member of VLAN 10",
            "bridge vlan add dev vx0 vid 10",
        ),
        (
            of_bridge(isolated=True, others=(PortFacts("veth0", 1450, isolated=True),)),
            "warning",
            "isolated from other ports of br0: veth0",
            "isolated off",
        ),
        (
            of_bridge(evolve(ON_BRIDGE, tap_mtu=1450)),
            "problem",
            "larger MTU than vx0: veth0 1500",
            "ip link set vx0 mtu 1500",
        ),
        (
            of_bridge(packets=(Blocked("IPv4 and IPv6", RULE),)),
            "problem",
            "drops IPv4 and IPv6 that crosses the bridge br0",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        ),
        (
            of_segment(ON_BRIDGE, frames=(Blocked("ARP", RULE),)),
            "problem",
            "drops ARP between vx0 and other ports of br0",
            RULE.fix,
        ),
        (
            of_segment(packets=(Blocked("IPv4 from the segment", RULE),)),
            "problem",
            "drops all IPv4 from the segment, at vx0",
            RULE.fix,
        ),
        (
            of_segment(addresses=(), options={**SEGMENT.options, "bridge": "br7"}),
            "problem",
            "vx0 should be a port of bridge br7 but is not",
            "ip link add br7 up type bridge",
        ),
        (
            of_segment(ON_BRIDGE, options={**ON_BRIDGE.options, "bridge": "br7"}),
            "problem",
            "vx0 is a port of the bridge br0, and not of br7",
            "ip link set vx0 master br7; or, if it is to be there: pyvtep set --vni 5 --bridge br0",
        ),
    ],
)
def test_segments(found: list[Finding], severity: str, title: str, fix: str) -> None:
    finding = only(found)
    assert finding.severity == severity
    assert title in finding.title
    assert fix in finding.fix


def test_uncertain_verdicts_are_notes() -> None:
    found = of_bridge(packets=(Blocked("IPv4", evolve(RULE, certain=False)),))
    assert only(found).severity is Severity.NOTE


def test_an_isolated_port_among_others_is_fine() -> None:
    assert of_bridge(isolated=True) == []


@pytest.mark.parametrize(
    ("state", "severity", "title", "fix"),
    [
        (NOT_INSTALLED, "note", "numba is not installed", "pip install numba"),
        (TURN_FAILED, "warning", "an error in the compiled turn", "please report it"),
        (
            off("no memory"),
            "warning",
            "the fast path of pyvtep is off: no memory",
            "see its log; then restart pyvtep, or pyvtep set --fast-path",
        ),
    ],
)
def test_a_fast_path_that_is_off(state: FastPathState, severity: str, title: str, fix: str) -> None:
    segment = evolve(SEGMENT, fast_path=state)
    finding = only(of_segment(segment))
    assert finding.severity == severity
    assert title in finding.title
    assert fix in finding.fix
    # It is that of the process, and reported once for all its segments.
    other = evolve(segment, tap="vx1", vni=6)
    both = findings(Facts(HERE, (segment, other), (WELL,), pyvteps=1))
    assert len(both) == 1


@pytest.mark.parametrize("state", [ON, LOADING, COMPILING, DISABLED])
def test_a_fast_path_that_is_as_configured_or_will_be(state: FastPathState) -> None:
    assert of_segment(fast_path=state) == []


# --- addresses of the segment in the underlay -----------------------------------------------------


def test_a_route_into_the_own_tunnel() -> None:
    for segment in (
        evolve(SEGMENT, addresses=("192.0.2.9/24",)),
        evolve(ON_BRIDGE, bridge=evolve(BRIDGE, addresses=("192.0.2.9/24",))),
    ):
        dev = "br0" if segment.bridge is not None else "vx0"
        remote = evolve(SILENT, dev=dev)
        finding = findings(Facts(HERE, (segment,), (remote,), pyvteps=1))[0]
        assert finding.severity is Severity.PROBLEM
        assert finding.title == f"the route to {HOST} leads over {dev}, into its own tunnel"
        assert finding.fix.startswith(f"ip addr del 192.0.2.9/24 dev {dev}; ")
    # The TAP of another segment may be the underlay device: nested tunnels.
    other = evolve(SEGMENT, tap="vx1", vni=6)
    remote = evolve(WELL, dev="vx1")
    assert findings(Facts(HERE, (SEGMENT, other), (remote,), pyvteps=1)) == []


@pytest.mark.parametrize("gateway", [None, "192.0.2.254"])
def test_an_overlay_address_in_the_underlay_subnet(gateway: str | None) -> None:
    remote = evolve(WELL, gateway=gateway)
    options = {**SEGMENT.options, "address": ["192.0.2.9/25"]}
    segment = evolve(SEGMENT, addresses=("192.0.2.9/25",), options=options)
    finding = only(findings(Facts(HERE, (segment,), (remote,), pyvteps=1)))
    assert finding.severity is Severity.WARNING
    assert "vx0 has the address 192.0.2.9/25, and eth0" in finding.title
    assert "(its --address too)" in finding.fix
    for fine in ("192.0.2.9/32", "198.51.100.9/24", "2001:db8::9/64"):
        segment = evolve(SEGMENT, addresses=(fine,))
        assert findings(Facts(HERE, (segment,), (remote,), pyvteps=1)) == []


# --- counters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", Drop)
def test_every_increasing_drop_counter_has_a_remedy(reason: Drop) -> None:
    assert reason in REMEDIES, f"{reason}: add a remedy to vtep/doctor/checks/drops.py"
    sources: tuple[dict[str, str], ...] = ({}, {reason: "198.51.100.9"})
    for source in sources:
        drops = Drops({reason: 7}, {reason: 2}, source, {reason: 0.1})
        for found in (
            of_segment(drops=drops),
            findings(Facts(HERE, (), (), pyvteps=1, drops=(ProcessFacts(drops, 4789),))),
        ):
            finding = only(found)
            assert finding.title.startswith(f"{reason} 7: {reason.meaning}")
            assert "While the doctor looked, 2 were dropped." in finding.explanation
            assert finding.fix
            assert not finding.earlier
            assert "{" not in finding.fix
            assert ("198.51.100.9" in finding.title) == bool(source)


@pytest.mark.parametrize("reason", Drop)
def test_earlier_drops_are_notes(reason: Drop) -> None:
    drops = Drops({reason: 7}, {reason: 0}, {}, {reason: 200.0})
    found = of_segment(drops=drops)
    assert not has_faults(found)
    for finding in found:
        assert finding.earlier
        assert finding.title == f"{reason} 7: {reason.meaning}; the last one, 3 min ago"
        assert "pyvtep stats --reset" in finding.explanation
    assert bool(found) == (reason not in BY_DESIGN)


def test_only_drops_by_design_are_notes_while_they_increase() -> None:
    notes = {
        reason
        for reason in Drop
        if not has_faults(of_segment(drops=Drops({reason: 1}, {reason: 1})))
    }
    assert notes == {*BY_DESIGN, Drop.TX_TOO_BIG}


def test_a_drop_names_its_segment_and_socket() -> None:
    drops = Drops({"source_unknown": 9}, {"source_unknown": 2}, {"source_unknown": HOST})
    finding = only(of_segment(drops=drops, socket="/run/x.sock"))
    assert finding.severity is Severity.WARNING
    assert finding.title.endswith("; the last from 192.0.2.2")
    assert finding.fix == (
        "if it is a VTEP of this segment: pyvtep remote add 192.0.2.2 --vni 5 --socket /run/x.sock"
    )


def test_unknown_drop_reasons() -> None:
    finding = only(of_segment(drops=Drops({"novel": 3}, {"novel": 1}), devices=("eth0",)))
    assert finding.title == "novel 3"
    assert "tcpdump -ni eth0 " in finding.fix


def test_drops_that_another_finding_reports() -> None:
    refused = Drops({"underlay_refused": 3}, {"underlay_refused": 3}, {"underlay_refused": HOST})
    there = Echoes(20, errors=(IcmpError(Refusal.PORT, HOST),))
    facts = Facts(HERE, (evolve(SEGMENT, drops=refused),), (evolve(SILENT, there=there),))
    assert "underlay_refused" in only(findings(facts)).explanation
    # An ICMP error of an earlier fault may be counted late.
    assert of_segment(drops=refused) == []
    down = Drops({"tap_down": 3}, {"tap_down": 1})
    assert "tap_down" in only(of_segment(drops=down, up=False)).explanation


def test_denied_sends_name_the_rule() -> None:
    denied = Drops({"underlay_denied": 3}, {"underlay_denied": 3}, {"underlay_denied": HOST})
    segment = evolve(SEGMENT, drops=denied)
    facts = Facts(HERE, (segment,), (evolve(WELL, firewall_out=RULE),))
    assert only(findings(facts)).fix == RULE.fix


# --- this host ----------------------------------------------------------------------------------


def of_host(**changes: Any) -> list[Finding]:
    return findings(Facts(evolve(HERE, **changes), (), (WELL,)))


def test_this_host() -> None:
    assert only(of_host(root=False)).severity is Severity.NOTE
    finding = only(of_host(holders=(HolderFacts(4789, devices=("vxlan9",)),)))
    assert finding.title == "the kernel VXLAN device vxlan9 has UDP port 4789 on this host"
    assert "ip link del vxlan9" in finding.fix
    finding = only(of_host(holders=(HolderFacts(4789, "ovs-vswitchd (process 7)"),)))
    assert finding.title == "ovs-vswitchd (process 7) has UDP port 4789 on this host"
    assert of_host(holders=(HolderFacts(4789, "pyvtep (process 7)", pyvtep=True),)) == []
    assert of_host(holders=(HolderFacts(4789),)) == []
    conflict = Conflict("192.0.2.1/24", "eth0", "02:00:00:00:00:09")
    finding = only(of_host(own_conflicts=(conflict,)))
    assert "02:00:00:00:00:09" in finding.explanation
    assert finding.fix.endswith("ip addr del 192.0.2.1/24 dev eth0")
    finding = only(of_host(own_conflicts=(Conflict("2001:db8::1/64", "eth0"),)))
    assert finding.severity is Severity.PROBLEM


def test_wrong_udp_checksums() -> None:
    assert of_host(checksum_errors=0) == []
    finding = only(of_host(checksum_errors=9))
    assert (finding.severity, finding.earlier) == (Severity.NOTE, True)
    finding = only(of_host(checksum_errors=9, checksum_errors_increase=2))
    assert finding.severity is Severity.WARNING
    assert finding.title.startswith("2 UDP datagrams with a wrong checksum")
    assert "NAT" in finding.explanation
    assert "--no-udpcsum" in finding.fix
    assert "ethtool -K eth0 rx off" in finding.fix


def test_findings_are_sorted_by_severity() -> None:
    host = evolve(HERE, root=False, checksum_errors=1, checksum_errors_increase=1)
    found = findings(Facts(host, (evolve(SEGMENT, up=False),), (WELL,), pyvteps=1))
    assert [finding.severity for finding in found] == ["problem", "warning", "note"]
    assert has_faults(found)
    assert not has_faults(found[2:])


def test_a_rule_for_established_connections_is_no_problem_with_one_port() -> None:
    for remote in (
        evolve(WELL, back=Echoes(5), firewall_new=RULE),
        evolve(SILENT, through=True, firewall_new=RULE),
    ):
        found = findings(Facts(HERE, (SEGMENT,), (remote,), pyvteps=1))
        assert found[0].severity is Severity.WARNING
        assert "only after this host has sent some" in found[0].title
        assert found[0].fix == RULE.fix
        assert not any(finding.severity is Severity.PROBLEM for finding in found)


@pytest.mark.parametrize(("source", "titles"), [(None, 1), (HOST, 1), ("192.0.2.9", 2)])
def test_an_unknown_source_that_segment_and_process_count_is_one_finding(
    source: str | None, titles: int
) -> None:
    reason = Drop.SOURCE_UNKNOWN
    of_segment = Drops({reason: 1}, {reason: 0}, {reason: HOST}, {reason: 9.0})
    of_process = Drops({reason: 6}, {reason: 2}, {reason: source} if source else {}, {reason: 0.5})
    segment = evolve(SEGMENT, drops=of_segment)
    process = ProcessFacts(of_process, 4789)
    found = findings(Facts(HERE, (segment,), (), pyvteps=1, drops=(process,)))
    assert len(found) == titles
    if titles == 1:
        assert found[0].title.startswith("source_unknown 7: ")
        assert HOST in found[0].title
        assert "2 were dropped" in found[0].explanation
        assert "--vni 5" in found[0].fix


def test_drops_that_may_belong_to_several_segments_stay_with_the_process() -> None:
    reason = Drop.SOURCE_UNKNOWN
    segments = tuple(
        evolve(SEGMENT, vni=vni, tap=f"vx{vni}", drops=Drops({reason: 1}, {}, {reason: HOST}))
        for vni in (5, 6)
    )
    process = ProcessFacts(Drops({reason: 6}, {reason: 2}), 4789)
    found = findings(Facts(HERE, segments, (), pyvteps=1, drops=(process,)))
    assert [finding.about for finding in found] == ["pyvtep", "vx5", "vx6"]


# --- loops and held MACs --------------------------------------------------------------------------


def test_a_loop_is_a_warning_while_flooding_is_stopped() -> None:
    drops = Drops({Drop.LOOP_BLOCKED_RX: 7}, {Drop.LOOP_BLOCKED_RX: 2})
    finding = only(of_segment(ON_BRIDGE, loops=(BlockedRemote(HOST, 23.4),), drops=drops))
    assert finding.severity is Severity.WARNING
    assert finding.title == (
        f"a loop leads through {HOST}: flooding with it is stopped for another 23 s"
    )
    assert "bridge link show lists the ports of br0" in finding.fix
    assert "STP" in finding.fix


def test_held_macs_are_one_warning_with_the_command_that_releases_them() -> None:
    held = tuple(HeldMac(f"02:00:00:00:00:0{number}", HOST, 200.0) for number in range(6))
    drops = Drops({Drop.INNER_SOURCE_HELD: 7}, {Drop.INNER_SOURCE_HELD: 2})
    finding = only(of_segment(held=held, drops=drops, socket="/run/x.sock"))
    assert finding.severity is Severity.WARNING
    assert "02:00:00:00:00:00 at 192.0.2.2, " in finding.title
    assert finding.title.endswith("02:00:00:00:00:03 at 192.0.2.2 and 2 more")
    command = "pyvtep fdb del 02:00:00:00:00:00 --vni 5 --socket /run/x.sock"
    assert finding.fix.endswith(command)
    assert "pyvtep fdb flush held --vni 5" in finding.explanation


def test_a_tap_in_another_namespace_is_looked_at_from_there() -> None:
    found = of_segment(netns="4711", addresses=(), up=False, options={"bridge": "br0"})
    text = "\n".join(f"{each.title}\n{each.fix}" for each in found)
    inside = "nsenter --target 4711 --user --net --preserve-credentials"
    assert f"vx0 is down\n{inside} ip link set vx0 up" in text
    assert f"{inside} ip link set vx0 master br0" in text
    assert "vx0 is in another network namespace (--netns 4711)" in text
    assert "no address" not in text
    (only,) = of_segment(netns="/run/netns/blue", addresses=())
    assert only.severity is Severity.NOTE
    assert "nsenter --net=/run/netns/blue ip address" in only.fix


def test_what_a_user_without_privileges_lacks() -> None:
    host = evolve(HERE, root=False, tun_problem="Permission denied", restricts_user_namespaces=True)
    titles = {each.title for each in findings(Facts(host))}
    assert "this user cannot open /dev/net/tun (Permission denied)" in titles
    assert "AppArmor takes the capabilities of users in their own user namespaces" in titles
    assert not {each.title for each in findings(Facts(evolve(host, root=True)))} & titles
