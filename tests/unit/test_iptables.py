"""Verdicts of iptables rules, as iptables-save lists them, on one packet."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.host.firewall import CROSSING, INCOMING, OUTGOING, PacketPattern, Verdict, evaluate
from vtep.host.iptables import read

PACKET = PacketPattern(4, "192.0.2.2", 4789, "eth0", destination="192.0.2.1")
SIX = PacketPattern(6, "2001:db8::2", 4789, "eth0")


def iptables(*rules: str, policy: str = "ACCEPT", packet: PacketPattern = PACKET) -> Verdict | None:
    lines = ["# made by hand", "*filter", f":INPUT {policy} [0:0]", ":mine - [0:0]", *rules]
    return evaluate(read([*lines, "COMMIT"], packet), ["input"])


APPLY = [
    "-p udp -m udp --dport 4789",
    "-p udp -m multiport --dports 53,4789",
    "-p udp -m udp --dport 4000:5000",
    "-p udp -m udp --dport :5000",
    "-p udp -m udp --dport 4789:",
    "-s 192.0.2.0/24 -i eth0",
    "-d 192.0.2.1/32",
    "-p 17",
    "-i eth+ -p udp",
    "! -s 198.51.100.0/24",
    "! -i lo",
    "-m conntrack --ctstate NEW",
    '-m comment --comment "with words, -j ACCEPT"',
]
DO_NOT = [
    "-p tcp -m tcp --dport 4789",
    "-p udp -m udp --dport 4788",
    "-p udp -m multiport --dports 53,4790:4800",
    "-s 198.51.100.0/24",
    "-d 192.0.2.9/32",
    "! -s 192.0.2.0/24",
    "-i lo",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m state --state ESTABLISHED",
]


@pytest.mark.parametrize("conditions", APPLY)
def test_conditions_that_apply(conditions: str) -> None:
    found = iptables(f"-A INPUT {conditions} -j DROP")
    assert found is not None
    assert found.certain
    where = "in chain INPUT of the iptables table filter"
    assert found.rule == f"the rule “-A INPUT {conditions} -j DROP” (number 1) {where}"
    assert found.fix == "iptables -I INPUT -p udp --dport 4789 -j ACCEPT"
    assert iptables(f"-A INPUT {conditions} -j REJECT --reject-with icmp-port-unreachable")
    assert iptables(f"-A INPUT {conditions} -j ACCEPT", policy="DROP") is None


@pytest.mark.parametrize("conditions", DO_NOT)
def test_conditions_that_do_not_apply(conditions: str) -> None:
    assert iptables(f"-A INPUT {conditions} -j DROP") is None
    found = iptables(f"-A INPUT {conditions} -j ACCEPT", policy="DROP")
    assert found is not None
    assert found.certain


@pytest.mark.parametrize("conditions", ["-m mark --mark 0x1", "-m set --match-set x src"])
def test_conditions_that_may_apply(conditions: str) -> None:
    found = iptables(f"-A INPUT {conditions} -j DROP")
    assert found is not None
    assert not found.certain


def test_jumps_gotos_and_returns() -> None:
    assert iptables("-A INPUT -j mine", "-A mine -p udp -j DROP")
    assert iptables("-A INPUT -j mine", "-A mine -j RETURN", "-A mine -j DROP") is None
    assert iptables("-A INPUT -g mine", "-A INPUT -j ACCEPT", policy="DROP")
    assert iptables("-A INPUT -j LOG --log-prefix x", "-A INPUT -j ACCEPT", policy="DROP") is None


def test_hooks_of_built_in_chains() -> None:
    def saved(table: str, chain: str) -> list[Any]:
        lines = [f"*{table}", f":{chain} ACCEPT [0:0]", f"-A {chain} -p udp -j DROP", "COMMIT"]
        return read(lines, PACKET, "iptables-legacy")

    for table, chain, hooks in (
        ("raw", "PREROUTING", INCOMING),
        ("mangle", "INPUT", INCOMING),
        ("security", "OUTPUT", OUTGOING),
        ("mangle", "POSTROUTING", OUTGOING),
        ("mangle", "FORWARD", CROSSING),
    ):
        found = evaluate(saved(table, chain), hooks)
        assert found is not None
        assert f"chain {chain} of the iptables-legacy table {table}" in found.rule
        fix = f"iptables-legacy -t {table} -I {chain} -p udp --dport 4789 -j ACCEPT"
        assert found.fix == fix
        others = {INCOMING, OUTGOING, CROSSING} - {hooks}
        if chain in ("INPUT", "OUTPUT", "FORWARD"):
            assert all(evaluate(saved(table, chain), other) is None for other in others)


DOCKER = """
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o br-1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o br-1 -j DOCKER
-A FORWARD -i br-1 ! -o br-1 -j ACCEPT
-A FORWARD -i br-1 -o br-1 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br-1 ! -o br-1 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o br-1 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""


def test_rules_of_docker_accept_its_own_bridges_only() -> None:
    def crossing(bridge: str, rules: str = DOCKER) -> Verdict | None:
        packet = PacketPattern(4, device=bridge, out=bridge)
        return evaluate(read(rules.splitlines(), packet), ["forward"])

    assert crossing("br-1") is None
    other = crossing("br0")
    assert other is not None
    assert other.certain
    assert other.fix == "iptables -I FORWARD -i br0 -o br0 -j ACCEPT"
    # With enable_icc=false, the last rule is another.
    apart = crossing(
        "br-1", DOCKER.replace("-o br-1 -j ACCEPT\n-A DOCKER-I", "-o br-1 -j DROP\n-A DOCKER-I")
    )
    assert apart is not None
    assert "-A FORWARD -i br-1 -o br-1 -j DROP" in apart.rule


def test_ip6tables() -> None:
    found = iptables(policy="DROP", packet=SIX)
    assert found is not None
    assert found.fix == "ip6tables -I INPUT -p udp --dport 4789 -j ACCEPT"


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(APPLY), max_size=2),
            st.lists(st.sampled_from(DO_NOT), max_size=1),
            st.sampled_from(["ACCEPT", "DROP"]),
        ),
        max_size=6,
    ),
    st.sampled_from(["ACCEPT", "DROP"]),
)
def test_the_first_rule_that_applies_decides(
    rules: list[tuple[list[str], list[str], str]], policy: str
) -> None:
    verdicts = [verdict for _, not_met, verdict in rules if not not_met]
    lines = [f"-A INPUT {' '.join(met + not_met)} -j {what}" for met, not_met, what in rules]
    found = iptables(*lines, policy=policy)
    assert (found is not None) == ([*verdicts, policy][0] == "DROP")
