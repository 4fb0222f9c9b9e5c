"""What rules, as nft and iptables-save list them, do with a datagram."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtep.firewall import Packet, Verdict, judge, of_iptables, of_nft

PACKET = Packet(4, "192.0.2.2", 4789, "eth0")
SIX = Packet(6, "2001:db8::2", 4789, "eth0")


# --- nftables -----------------------------------------------------------------------------------


def rule(*expressions: Any, chain: str = "in") -> dict[str, Any]:
    table = {"family": "inet", "table": "fw", "chain": chain}
    return {"rule": {**table, "expr": list(expressions)}}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def payload(protocol: str, field: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"payload": {"protocol": protocol, "field": field}}, right, op)


def meta(key: str, right: Any, op: str = "==") -> dict[str, Any]:
    return match({"meta": {"key": key}}, right, op)


def dport(right: Any, protocol: str = "udp") -> dict[str, Any]:
    return payload(protocol, "dport", right)


DROP, ACCEPT = {"drop": None}, {"accept": None}
REJECT = {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}
NEW = match({"ct": {"key": "state"}}, ["established", "related"], "in")
ODD = {"xt": {"type": "match", "name": "bpf"}}


def nft(
    *rules: dict[str, Any],
    policy: str = "accept",
    family: str = "inet",
    packet: Packet = PACKET,
    chains: tuple[str, ...] = (),
) -> Verdict | None:
    base = {"family": family, "table": "fw", "name": "in", "hook": "input", "policy": policy}
    others = [{"chain": {"family": family, "table": "fw", "name": name}} for name in chains]
    for each in rules:
        each["rule"]["family"] = family
    ruleset = {"nftables": [{"metainfo": {}}, {"chain": base}, *others, *rules]}
    return judge(of_nft(ruleset, packet), "input")


@pytest.mark.parametrize(
    "condition",
    [
        dport(4789),
        dport({"set": [53, 4789]}),
        dport({"range": [4000, 5000]}),
        dport({"set": [53, {"range": [4700, 4800]}]}),
        dport({"set": [{"elem": {"val": 4789, "comment": "x"}}]}),
        dport(4789, "th"),
        meta("l4proto", "udp"),
        meta("l4proto", {"set": ["tcp", "udp"]}),
        meta("nfproto", "ipv4"),
        meta("iifname", "eth0"),
        meta("iifname", "eth*"),
        meta("iifname", "eth1", "!="),
        payload("ip", "saddr", "192.0.2.2"),
        payload("ip", "saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}),
        payload("ip", "saddr", {"range": ["192.0.2.1", "192.0.2.9"]}),
        payload("ip", "saddr", "192.0.2.3", "!="),
        payload("ip", "protocol", "udp"),
        match({"ct": {"key": "state"}}, "new", "in"),
    ],
)
def test_conditions_that_apply(condition: Any) -> None:
    found = nft(rule(condition, COUNTER, DROP))
    assert found is not None
    assert found.certain
    assert found.fix == "nft insert rule inet fw in udp dport 4789 accept"
    assert nft(rule(condition, REJECT)) is not None
    assert nft(rule(condition, ACCEPT), policy="drop") is None


@pytest.mark.parametrize(
    "condition",
    [
        dport(4788),
        dport(4789, "tcp"),
        payload("tcp", "flags", "syn"),
        dport({"set": [53, {"range": [4790, 4800]}]}),
        meta("l4proto", "tcp"),
        meta("nfproto", "ipv6"),
        meta("iifname", "lo"),
        meta("iifname", "wlan*"),
        payload("ip", "saddr", "192.0.2.3"),
        payload("ip", "saddr", {"prefix": {"addr": "198.51.100.0", "len": 24}}),
        payload("ip6", "saddr", "2001:db8::9", "!="),
        NEW,
    ],
)
def test_conditions_that_do_not(condition: Any) -> None:
    assert nft(rule(condition, DROP)) is None
    found = nft(rule(condition, ACCEPT), policy="drop")
    assert found is not None
    assert found.certain
    assert found.rule.startswith("the policy of chain in of the nftables table inet fw, ")


@pytest.mark.parametrize(
    "condition",
    [
        ODD,
        payload("ip", "saddr", "@friends"),
        meta("mark", 1),
        dport("@ports"),
        match({"&": [{"meta": {"key": "mark"}}, 255]}, 1),
        match({"concat": [{"meta": {"key": "iifname"}}, {"meta": {"key": "mark"}}]}, "@both"),
        {"limit": {"rate": 1, "per": "second"}},
        {"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@map"}},
    ],
)
def test_conditions_that_may(condition: Any) -> None:
    for found in (nft(rule(condition, DROP)), nft(rule(condition, ACCEPT), policy="drop")):
        assert found is not None
        assert not found.certain
    # What ends it for certain ends doubts.
    assert nft(rule(ACCEPT), rule(condition, DROP)) is None
    found = nft(rule(DROP), rule(condition, ACCEPT))
    assert found is not None
    assert found.certain


def test_the_rule_is_told_as_nft_prints_it() -> None:
    found = nft(
        rule(
            meta("iifname", "eth0"),
            dport({"set": [53, 4789]}),
            payload("ip", "saddr", {"prefix": {"addr": "192.0.2.0", "len": 24}}),
            COUNTER,
            DROP,
        )
    )
    assert found is not None
    assert "“meta iifname eth0 udp dport { 53, 4789 } ip saddr 192.0.2.0/24 drop”" in found.rule


def test_jumps_are_followed_and_returned_from() -> None:
    jump = {"jump": {"target": "vx"}}
    found = nft(rule(jump), rule(dport(4789), DROP, chain="vx"), chains=("vx",))
    assert found is not None
    assert "chain vx" in found.rule
    assert (
        nft(
            rule(jump),
            rule(ACCEPT),
            rule({"return": None}, chain="vx"),
            chains=("vx",),
            policy="drop",
        )
        is None
    )
    goto = {"goto": {"target": "vx"}}
    # From where one went to, one does not come back.
    found = nft(rule(goto), rule(ACCEPT), chains=("vx",), policy="drop")
    assert found is not None
    assert nft(rule(jump), rule(jump, chain="vx"), chains=("vx",)) is None  # A loop ends.


def test_families() -> None:
    assert nft(rule(DROP), family="ip") is not None
    assert nft(rule(DROP), family="ip6") is None
    assert nft(rule(DROP), family="bridge") is None
    assert nft(rule(DROP), family="ip6", packet=SIX) is not None
    assert nft(rule(payload("ip6", "saddr", "2001:db8::2"), DROP), packet=SIX) is not None
    assert nft(rule(payload("ip", "saddr", "192.0.2.2"), DROP), packet=SIX) is None


def test_of_what_is_on_a_bridge_nothing_is_known_but_the_bridge() -> None:
    packet = Packet(4, device="br0", out="br0")
    found = nft(policy="drop", packet=packet)
    assert found is not None
    assert found.fix == "nft insert rule inet fw in iifname br0 oifname br0 accept"
    assert nft(rule(meta("iifname", "br0"), ACCEPT), policy="drop", packet=packet) is None
    found = nft(rule(dport(53), ACCEPT), policy="drop", packet=packet)
    assert found is not None
    assert not found.certain


# --- iptables -----------------------------------------------------------------------------------


def iptables(*rules: str, policy: str = "ACCEPT", packet: Packet = PACKET) -> Verdict | None:
    lines = ["# made by hand", "*filter", f":INPUT {policy} [0:0]", ":mine - [0:0]", *rules]
    return judge(of_iptables([*lines, "COMMIT"], packet), "input")


APPLY = [
    "-p udp -m udp --dport 4789",
    "-p udp -m multiport --dports 53,4789",
    "-p udp -m udp --dport 4000:5000",
    "-p udp -m udp --dport :5000",
    "-p udp -m udp --dport 4789:",
    "-s 192.0.2.0/24 -i eth0",
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
    "! -s 192.0.2.0/24",
    "-i lo",
    "-m conntrack --ctstate RELATED,ESTABLISHED",
    "-m state --state ESTABLISHED",
]


@pytest.mark.parametrize("conditions", APPLY)
def test_iptables_that_apply(conditions: str) -> None:
    found = iptables(f"-A INPUT {conditions} -j DROP")
    assert found is not None
    assert found.certain
    assert f"-A INPUT {conditions} -j DROP" in found.rule
    assert found.fix == "iptables -I INPUT -p udp --dport 4789 -j ACCEPT"
    assert iptables(f"-A INPUT {conditions} -j REJECT --reject-with icmp-port-unreachable")
    assert iptables(f"-A INPUT {conditions} -j ACCEPT", policy="DROP") is None


@pytest.mark.parametrize("conditions", DO_NOT)
def test_iptables_that_do_not(conditions: str) -> None:
    assert iptables(f"-A INPUT {conditions} -j DROP") is None
    found = iptables(f"-A INPUT {conditions} -j ACCEPT", policy="DROP")
    assert found is not None
    assert found.certain


@pytest.mark.parametrize("conditions", ["-m mark --mark 0x1", "-m set --match-set x src"])
def test_iptables_that_may(conditions: str) -> None:
    found = iptables(f"-A INPUT {conditions} -j DROP")
    assert found is not None
    assert not found.certain


def test_iptables_chains() -> None:
    assert iptables("-A INPUT -j mine", "-A mine -p udp -j DROP")
    assert iptables("-A INPUT -j mine", "-A mine -j RETURN", "-A mine -j DROP") is None
    assert iptables("-A INPUT -g mine", "-A INPUT -j ACCEPT", policy="DROP")
    assert iptables("-A INPUT -j LOG --log-prefix x", "-A INPUT -j ACCEPT", policy="DROP") is None


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


def test_what_docker_writes_lets_its_own_bridges_pass() -> None:
    def crossing(bridge: str, rules: str = DOCKER) -> Verdict | None:
        packet = Packet(4, device=bridge, out=bridge)
        return judge(of_iptables(rules.splitlines(), packet), "forward")

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
