"""Findings of the doctor about BGP EVPN, from facts that are made up."""

import re
from ipaddress import ip_address
from typing import Any

import pytest
from attrs import evolve

from tests.unit import evpn_fake, status_fake
from tests.unit.evpn_fake import MAC
from vtep.doctor.advice import advice
from vtep.doctor.evpn_facts import EvpnFacts, Md5Counters, NeighborFacts, TcpState
from vtep.doctor.facts import (
    BridgeFacts,
    Drops,
    Echoes,
    Facts,
    HostFacts,
    RemoteFacts,
    SegmentFacts,
)
from vtep.doctor.finding import Finding, Severity, has_faults
from vtep.doctor.findings import findings
from vtep.doctor.procfs import parse_md5_counters, parse_tcp_state

HOST = "10.0.0.1"
OFFLOADS = ("gro", "gso", "tnl", "tso", "uso")
PROXY = {"evpn": True, "proxy": True, "learning": False, "offload": list(OFFLOADS)}
SEGMENT = SegmentFacts(
    vni=100,
    tap="vx100",
    mtu=1450,
    tap_mtu=1450,
    dstport=4789,
    addresses=("10.1.0.1/24",),
    options=PROXY,
    offload=frozenset(OFFLOADS),
)
UP = NeighborFacts(
    evpn_fake.session(),
    dev="eth0",
    dev_mtu=1500,
    source="10.0.0.2",
    pings=3,
    large_pings=3,
    tcp=TcpState(0, 0),
)
WELL = EvpnFacts(
    evpn_fake.speaker(),
    "0.15.0",
    (UP,),
    (evpn_fake.segment(),),
    md5=Md5Counters(),
)


def of_evpn(segment: SegmentFacts = SEGMENT, **changes: Any) -> list[Finding]:
    host = HostFacts(root=True, kernel="6.1", underlay={"eth0": ("10.0.0.2/24",)})
    return findings(Facts(host, (segment,), pyvteps=1, evpn=(evolve(WELL, **changes),)))


def of_session(facts: NeighborFacts = UP, md5: Md5Counters | None = None, **session: Any) -> Any:
    """Return the findings for a neighbour whose session has these fields."""
    make = evpn_fake.down if session.pop("is_down", True) else evpn_fake.session
    return of_evpn(neighbors=(evolve(facts, session=make(**session)),), md5=md5 or Md5Counters())


def only(found: list[Finding]) -> Finding:
    """Return the only finding, which has no placeholder in its command."""
    assert len(found) == 1, found
    (one,) = found
    for text in (one.title, one.explanation, one.fix):
        assert "None" not in text
        assert "  " not in text
    assert not re.search(r"\b(ADDRESS|TARGET|HOST|IP|N)\b", one.fix)
    return one


def text(finding: Finding) -> str:
    return f"{finding.title}\n{finding.explanation}\n{finding.fix}"


def test_facts_without_a_fault() -> None:
    assert of_evpn() == []


@pytest.mark.parametrize(
    ("facts", "session", "said"),
    [
        ({"is_own": True}, {}, f"the BGP neighbour {HOST} is an address of this host itself"),
        ({"local_gone": "10.0.0.9"}, {}, "this host does not have 10.0.0.9"),
        ({"no_device": "eth7"}, {}, "this host has no device eth7, on which the BGP neighbour"),
        ({"no_route": "Network is unreachable"}, {}, f"no route to the BGP neighbour {HOST} (Netw"),
        ({"no_route": "x", "down": ("eth0",)}, {}, "ip link set eth0 up"),
        ({}, {}, f"{HOST} refuses connections to TCP port 179"),
        ({}, {"last_error_kind": "closed-before-open"}, "does not know 10.0.0.2 as a neighbour"),
        ({}, {"last_error_kind": "closed-before-open"}, "neighbor 10.0.0.2 remote-as 65000"),
        (
            {"gateway": "10.0.0.254"},
            {"last_error_kind": "closed-before-open", "remote_asn": 65001},
            "ebgp-multihop",
        ),
        ({}, {"last_error_kind": "wrong-asn", "last_error": "it is AS 65009"}, "it is AS 65009."),
        ({}, {"last_error_kind": "no-evpn-family"}, "neighbor 10.0.0.2 activate"),
        ({}, {"last_error_kind": "hold-expired"}, "silent for longer than the hold time"),
        (
            {"large_pings": 0},
            {"last_error_kind": "hold-expired"},
            "loses packets of 1500 octets, the MTU of eth0",
        ),
        (
            {"gateway": "10.0.0.254"},
            {"last_error_kind": "hold-expired", "remote_asn": 65001},
            "with a TTL of 1",
        ),
        (
            {"gateway": "10.0.0.254"},
            {"last_error_kind": "timeout", "state": "open-sent", "remote_asn": 65001},
            "reached by way of 10.0.0.254",
        ),
        (
            {},
            {"last_error_kind": "timeout", "state": "open-sent"},
            "accepts the connection, and sends no OPEN",
        ),
        (
            {},
            {"last_error_kind": "timeout", "passive": True},
            f"{HOST} has not connected",
        ),
        ({}, {"last_error_kind": "no-route"}, f"no host on eth0 answers for {HOST}"),
        (
            {"gateway": "10.0.0.254"},
            {"last_error_kind": "no-route"},
            f"{HOST} is unreachable beyond 10.0.0.254",
        ),
        ({}, {"last_error_kind": "new-kind", "last_error": "odd"}, "is not established: odd"),
    ],
)
def test_why_a_session_is_down(facts: dict[str, Any], session: dict[str, Any], said: str) -> None:
    finding = only(of_session(evolve(UP, **facts), **session))
    assert finding.severity is Severity.PROBLEM
    assert said in text(finding)


def test_silence_names_filter_and_password() -> None:
    plain = text(only(of_session(last_error_kind="timeout")))
    assert "a firewall drops TCP port 179" in plain
    assert f"{HOST} expects a password" in plain
    assert "It answers ping" in plain
    mute = evolve(UP, pings=0)
    assert "does not answer ping either" in text(only(of_session(mute, last_error_kind="timeout")))
    signed = text(only(of_session(last_error_kind="timeout", password=True)))
    assert f"the password differs from that of {HOST}, or {HOST} has none" in signed
    counters = Md5Counters(missing=2, unexpected=3, wrong=4)
    evidence = text(only(of_session(md5=counters, last_error_kind="timeout", password=True)))
    for said in (
        "4 with a signature of another password (TCPMD5Failure)",
        "2 without a signature (TCPMD5NotFound)",
        "3 with an unexpected signature (TCPMD5Unexpected)",
    ):
        assert said in evidence


@pytest.mark.parametrize("answer", ["accepted", "refused"])
def test_an_answer_without_a_signature_rules_out_a_filter(answer: str) -> None:
    facts = evolve(UP, unsigned=answer)
    finding = only(of_session(facts, last_error_kind="timeout", password=True))
    assert "answers without a password" in finding.title
    assert "firewall" not in text(finding)


def test_a_session_that_was_up_before_its_settings_changed_is_examined_at_once() -> None:
    session: dict[str, Any] = {
        "state": "connect",
        "age": 1.0,
        "last_error": None,
        "last_error_kind": None,
    }
    facts = evolve(UP, unsigned="accepted")
    found = of_session(facts, **session, was_established=True, password=True)
    assert "answers without a password" in only(found).title


def test_a_speaker_that_does_not_report_is_the_only_finding() -> None:
    silent = evpn_fake.speaker(state="silent", age=23.0)
    finding = only(of_evpn(speaker=silent))
    assert "4243, has not reported for 23 s" in finding.title
    assert "pyvtep evpn restart" in finding.fix


def test_a_session_that_starts_is_only_noted() -> None:
    found = of_session(state="connect", age=1.0, last_error=None, last_error_kind=None)
    assert "still starting" in only(found).title
    assert not has_faults(found)


def test_an_ipv6_vtep_that_frr_refuses() -> None:
    said = {"last_error_kind": "notification-received", "last_error": "UPDATE message error (3/9)"}
    neighbors = (evolve(UP, session=evpn_fake.down(**said)),)
    six = (evpn_fake.segment(local=["2001:db8::1"]),)
    assert (
        "refuses the routes of an IPv6 VTEP"
        in only(of_evpn(neighbors=neighbors, segments=six)).title
    )
    assert "is not established: UPDATE" in only(of_evpn(neighbors=neighbors)).title


def test_remedies_for_drops_name_evpn_in_a_vni_that_has_it() -> None:
    segment = status_fake.segment(100)
    segment["evpn"] = True
    for source in ("192.0.2.9", None):
        drop = status_fake.recent_drop("source_unknown", 3, 1.0, source)
        assert "no route of it was imported: pyvtep evpn show" in advice(drop, segment)
    said = advice(status_fake.recent_drop("no_remote", 3, 1.0), segment)
    assert "no VTEP of this segment has announced it by EVPN: pyvtep evpn show" in said
    assert "remote add" not in said
    counted = Drops(count={"no_remote": 3}, increase={"no_remote": 1})
    found = only(of_evpn(segment=evolve(SEGMENT, drops=counted)))
    assert "pyvtep evpn show" in found.fix


def test_the_remedy_for_drops_of_a_vtep_whose_routes_none_imports() -> None:
    drop = status_fake.recent_drop("source_unknown", 3, 1.0, "192.0.2.9")
    assert "pyvtep remote add 192.0.2.9" in advice(drop, status_fake.segment(100))
    drop["detail"] = (
        "announces route targets 65001:200 65001:7 by way of 10.0.0.1, which no VNI here imports"
    )
    said = advice(drop, status_fake.segment(100))
    assert "pyvtep set --vni 100 --route-target-import 65001:200; " in said
    assert "remote add" not in said


def test_a_speaker_that_failed_explains_all() -> None:
    dead = evpn_fake.speaker(state="failed", last_error="killed by SIGKILL")
    finding = only(of_evpn(speaker=dead, neighbors=(evolve(UP, session=evpn_fake.down()),)))
    assert "killed by SIGKILL" in finding.explanation


def test_a_speaker_of_an_older_version_and_its_own_problems() -> None:
    found = of_evpn(version="0.16.0", problems=("cannot listen on port 179: address in use",))
    assert [each.title.split(":")[0] for each in found] == [
        "cannot listen on port 179",
        "the process that speaks BGP is still of version 0.15.0",
    ]
    named = of_evpn(version="0.16.0", socket="/run/x.sock")
    assert only(named).fix == "pyvtep evpn restart --socket /run/x.sock"


def test_an_established_session_that_stalls_or_brings_nothing() -> None:
    stalled = evolve(UP, tcp=TcpState(5000, 3))
    assert "does not acknowledge" in only(of_session(stalled, is_down=False)).title
    black_hole = evolve(stalled, large_pings=0)
    assert "loses packets of 1500 octets" in only(of_session(black_hole, is_down=False)).title
    narrow = evolve(UP, large_pings=0)
    assert "loses packets of 1500 octets" in only(of_session(narrow, is_down=False)).title
    mute = of_session(is_down=False, routes_received=0)
    assert "advertise-all-vni" in only(mute).explanation
    silent = of_session(is_down=False, routes_announced=0)
    assert f"announces no route to {HOST}" in only(silent).title
    assert of_session(is_down=False, routes_announced=0, age=1.0) == []


def empty(**changed: Any) -> tuple[Any, ...]:
    return (evpn_fake.segment(vteps=0, macs=0, neighbours=0, **changed),)


def test_a_route_target_that_matches_nothing_is_named_with_those_of_both_sides() -> None:
    other = evpn_fake.unmatched("65001:200", "65001:7", vnis=[100])
    finding = only(of_evpn(segments=empty(), unmatched=(other,)))
    assert finding.severity is Severity.PROBLEM
    assert finding.title == "no route target of 192.0.2.9 matches one that vni 100 imports"
    assert "192.0.2.9 announces 65001:200 65001:7 (over 10.0.0.1)" in finding.explanation
    assert "imports *:100 and *:268435556" in finding.explanation
    assert "exports 65000:100" in finding.explanation
    assert finding.fix.startswith("here: pyvtep set --vni 100 --route-target-import 65001:200;")
    assert "route-target import 65000:100" in finding.fix
    named = empty(import_targets=["65000:1", "65000:2"])
    finding, rest = of_evpn(
        segments=named, unmatched=(other, evpn_fake.unmatched(vtep="192.0.2.8"))
    )
    assert rest.severity is Severity.NOTE
    assert "vni 100 imports 65000:1 65000:2 and" in finding.explanation
    assert finding.title.endswith("matches one that vni 100 imports")  # The other is of vni 200.
    finding = only(of_evpn(segments=named, unmatched=(evpn_fake.unmatched(),)))
    assert finding.severity is Severity.WARNING
    bare = evpn_fake.unmatched(route_targets=[])
    finding = only(of_evpn(segments=empty(), unmatched=(bare,)))
    assert "announces no route target" in finding.explanation
    assert finding.fix.startswith("on 192.0.2.9: export a route target")


def test_with_several_vnis_routes_are_for_the_one_in_their_label() -> None:
    two = (*empty(), evpn_fake.segment(200))
    second = evpn_fake.unmatched("65001:999", vnis=[999])
    found = of_evpn(segments=two, unmatched=(second,))
    assert [each.severity for each in found] == [Severity.WARNING, Severity.NOTE]
    assert found[0].title == "no other VTEP has announced vni 100"
    labelled = evpn_fake.unmatched("65001:7", vnis=[100])
    finding = only(of_evpn(segments=two, unmatched=(labelled,)))
    assert "no route target of 192.0.2.9 matches one that vni 100 imports" in finding.title


def test_routes_that_none_imports_beside_those_that_one_does() -> None:
    found = of_evpn(unmatched=(evpn_fake.unmatched(vnis=[7]),))
    assert only(found).severity is Severity.NOTE
    assert "100: *:100 and *:268435556" in only(found).explanation
    found = of_evpn(unmatched=(evpn_fake.unmatched(vnis=[100]),))
    assert only(found).severity is Severity.WARNING
    many = [evpn_fake.unmatched(vtep=f"192.0.2.{host}") for host in range(9)]
    finding = only(of_evpn(unmatched=tuple(many)))
    assert "routes of 192.0.2.0 and 8 more VTEPs match no" in finding.title


def test_no_target_is_advised_that_would_join_two_segments() -> None:
    shared = evpn_fake.unmatched("65001:7", vnis=[100], import_target=None)
    finding = only(of_evpn(segments=empty(), unmatched=(shared,)))
    assert "routes of several VNIs have these targets; on 192.0.2.9, export one" in finding.fix
    assert "--route-target-import 65001:7" not in finding.fix
    rest = evpn_fake.unmatched("65001:7", "65001:8", vnis=[7, 8], import_target=None)
    finding = only(of_evpn(unmatched=(rest,)))
    assert "the target that only its routes have" in finding.fix
    many = evpn_fake.unmatched(*(f"65001:{number}" for number in range(200, 220)))
    finding = only(of_evpn(unmatched=(many,)))
    assert "It announces 65001:200 65001:201 65001:202 and 17 more (vni" in finding.explanation


def test_a_vni_without_a_route_of_type_3() -> None:
    macs = (evpn_fake.segment(vteps=0, neighbours=0),)
    assert "no route of type 3 has come" in only(of_evpn(segments=macs)).title
    assert "no other VTEP has announced vni 100" in only(of_evpn(segments=empty())).title
    nothing = evolve(UP, session=evpn_fake.session(routes_received=0, age=1.0))
    finding = only(of_evpn(segments=empty(), neighbors=(nothing,)))
    assert "no EVPN route was received" in finding.title
    assert "advertise-all-vni" in finding.fix
    down = evolve(UP, session=evpn_fake.down())
    finding = only(of_evpn(segments=empty(), neighbors=(down,)))
    assert "refuses connections" in finding.title  # It explains the rest.


def test_a_label_that_contradicts_the_target() -> None:
    finding = only(of_evpn(label_conflicts=(evpn_fake.label_conflict(),)))
    assert "for vni 100 by their route target, and for vni 101 by their label" in finding.title


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("ip-version", "vni 100 has VTEPs with IPv6 addresses, and no own IPv6 address"),
        ("as-loop", "have the AS number of this host in their AS path"),
        ("encapsulation", "announces routes for another encapsulation than VXLAN"),
        ("tunnel-type", "by a tunnel other than ingress replication"),
        ("next-hop", "cannot be a VTEP"),
        ("router-id", "has the same BGP identifier as this host"),
    ],
)
def test_routes_of_type_3_that_cannot_be_used(reason: str, said: str) -> None:
    hosts = [f"2001:db8::{number}" for number in range(3, 8)]
    unused = tuple(
        evpn_fake.route(type=3, mac=None, next_hop=host, reason=reason, best=False)
        for host in hosts
    )
    finding = only(of_evpn(multicast=unused, segments=empty()))
    assert said in finding.title
    assert "2001:db8::3, 2001:db8::4, 2001:db8::5 and 2 more" in text(finding)
    others = tuple({**route, "reason": "own-route"} for route in unused)
    assert of_evpn(multicast=others) == []


def test_a_spine_that_replaces_the_next_hop() -> None:
    vteps = [f"192.0.2.{number}" for number in range(3, 8)]
    replaced = {"neighbor": HOST, "vteps": vteps, "vnis": [100, 200]}
    finding = only(of_evpn(replaced_next_hops=(replaced,)))
    assert f"192.0.2.5 and 2 more is the BGP neighbour {HOST} itself" in finding.title
    assert "no route of type 3 for vni 100 200" in finding.explanation
    assert finding.fix.endswith("attribute-unchanged next-hop")


def test_a_neighbour_that_does_not_know_the_source_address() -> None:
    facts = evolve(UP, source="10.0.0.2")
    (finding,) = of_session(facts, last_error_kind="closed-before-open", source="10.255.0.1")
    assert "does not know 10.255.0.1 as a neighbour" in finding.title
    assert "update-source" in text(finding)
    assert f"--evpn-neighbor {HOST},local=10.0.0.2" in finding.fix


def test_a_link_local_neighbour_that_waits_for_router_advertisements() -> None:
    (finding,) = of_session(
        evolve(UP, source="fe80::1"), neighbor="fe80::2%eth0", last_error_kind="closed-before-open"
    )
    assert "router advertisements" in finding.explanation


def test_a_vni_without_an_own_address() -> None:
    finding = only(of_evpn(segments=(evpn_fake.segment(local=[]),)))
    assert "has no own VTEP address" in finding.title


def test_options_that_contradict_evpn() -> None:
    learning = evolve(SEGMENT, options={**PROXY, "learning": True})
    assert "learns MACs from frames" in only(of_evpn(learning)).title
    bridge = BridgeFacts("br0", up=True, mtu=1500, addresses=("10.1.0.1/24",), learning=True)
    finding = only(
        [each for each in of_evpn(evolve(SEGMENT, bridge=bridge)) if "learns" in each.title]
    )
    assert finding.fix == "bridge link set dev vx100 learning off"
    flooding = evolve(SEGMENT, options={**PROXY, "proxy": False})
    found = of_evpn(flooding)
    assert "knows 3 IP addresses by EVPN, and floods ARP anyway" in only(found).title
    assert not has_faults(found)


def test_own_mac_that_another_host_announces_too() -> None:
    duplicate = evpn_fake.duplicate(state="conflict", vteps=["local", "10.0.0.9"])
    finding = only(of_evpn(duplicates=(duplicate,)))
    assert f"{MAC} is a MAC of this host itself in vni 100, and 10.0.0.9" in finding.title
    assert "--anycast-gateway" in finding.fix


def test_duplicates() -> None:
    for state, said in (("held", "It is held where it is."), ("warned", "It is only reported")):
        finding = only(of_evpn(duplicates=(evpn_fake.duplicate(state=state),)))
        assert said in finding.explanation
        assert finding.fix.endswith(f"pyvtep evpn clear duplicate {MAC} vni 100")


def test_a_vni_that_was_not_asked_for_has_no_findings() -> None:
    other = evolve(SEGMENT, vni=7)
    assert of_evpn(other, segments=empty()) == []


def test_a_silent_remote_of_evpn_is_no_fault() -> None:
    remote = RemoteFacts(
        *("192.0.2.3", 100, 4789),
        dev="eth0",
        dev_mtu=1500,
        source="192.0.2.1",
        there=Echoes(20),
        pings=3,
        through=False,
        by_evpn=True,
    )
    host = HostFacts(root=True, kernel="6.1")
    found = findings(Facts(host, (SEGMENT,), (remote,), pyvteps=1, evpn=(WELL,)))
    assert "sends no echo replies, as a VTEP of another kind" in only(found).title
    assert not has_faults(found)
    by_hand = evolve(remote, by_evpn=False)
    assert has_faults(findings(Facts(host, (SEGMENT,), (by_hand,), pyvteps=1)))


def test_md5_counters_of_the_kernel() -> None:
    names = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure"
    kernel = f"{names}\nTcpExt: 9 1 2 3\nIpExt: InNoRoutes\nIpExt: 0\n"
    assert parse_md5_counters(kernel) == Md5Counters(1, 2, 3)
    assert parse_md5_counters("") is None


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout
   0: 0200000A:00B3 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0200000A:9C40 0100000A:00B3 01 00001388:00000000 01:00000020 00000003     0        0 2 1
   2: 0200000A:9C41 0100000A:00B3 06 00000000:00000000 01:00000020 00000000     0        0 2 1
"""


def test_the_state_of_a_connection() -> None:
    assert parse_tcp_state(TCP, ip_address("10.0.0.1"), 179) == TcpState(0x1388, 3)
    assert parse_tcp_state(TCP, ip_address("10.0.0.9"), 179) is None
    assert parse_tcp_state(TCP, ip_address("10.0.0.1"), 1790) is None
    own = "000080FE00000000FF005450B4DAFEFF"
    line = f"\n 0: {own}:00B3 {own}:9C40 01 0:0 0:0 0 0 0 1"
    assert parse_tcp_state(line, ip_address("fe80::5054:ff:fe:dab4"), 179) is None
