"""What rules, as nft and iptables-save list them, do with a datagram."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from vtep.host.firewall import (
    AND,
    ARP,
    CROSSING,
    INCOMING,
    OUTGOING,
    Packet,
    Verdict,
    evaluate,
    of_iptables,
    of_nft,
)

PACKET = Packet(4, "192.0.2.2", 4789, "eth0", destination="192.0.2.1")
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
L4_PORT = {
    "concat": [{"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]
}
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
    return evaluate(of_nft(ruleset, packet), ["input"])


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
        payload("ip", "daddr", "192.0.2.1"),
        payload("ether", "type", "ip"),
        meta("protocol", "ip"),
        match({"ct": {"key": "state"}}, "new", "in"),
        match({"payload": {"protocol": "th", "field": "dport"}}, 4000, ">="),
        match({"payload": {"protocol": "udp", "field": "dport"}}, 4790, "<"),
        match(L4_PORT, {"set": [{"concat": ["tcp", 22]}, {"concat": ["udp", 4789]}]}),
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
        payload("ip", "daddr", "192.0.2.9"),
        payload("ether", "type", "arp"),
        payload("icmp", "type", "echo-request"),
        NEW,
        match({"payload": {"protocol": "th", "field": "dport"}}, 5000, ">"),
        match(L4_PORT, {"set": [{"concat": ["tcp", 4789]}, {"concat": ["udp", 53]}]}),
    ],
)
def test_conditions_that_do_not(condition: Any) -> None:
    assert nft(rule(condition, DROP)) is None
    found = nft(rule(condition, ACCEPT), policy="drop")
    assert found is not None
    assert found.certain
    assert found.rule == "the policy of chain in of the nftables table inet fw (drop)"


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


LISTING = """
table inet fw { # handle 3
\tset ports { # handle 1
\t\ttype inet_service
\t\telements = { 53,
\t\t\t     4789 }
\t}

\tchain in { # handle 2
\t\ttype filter hook ingress devices = { eth0, "eth1" } priority filter; policy accept;
\t\tudp dport { 53, 4789 } log prefix "# handle 7" drop # handle 5
\t}
}
table netdev fw { # handle 4
\tchain in { # handle 2
\t\ttype filter hook ingress device "eth1" priority filter; policy accept;
\t}
}
"""


def test_the_rule_is_told_as_nft_prints_it() -> None:
    one = rule(dport({"set": [53, 4789]}), DROP)
    one["rule"]["handle"] = 5
    base = {"family": "inet", "table": "fw", "name": "in", "hook": "input"}
    found = evaluate(of_nft({"nftables": [{"chain": base}, one]}, PACKET, LISTING), ["input"])
    assert found is not None
    text = 'udp dport { 53, 4789 } log prefix "# handle 7" drop'
    title = "chain in of the nftables table inet fw"
    assert found.rule == f"the rule “{text}” (handle 5) in {title}"
    found = nft(rule(DROP))
    assert found is not None
    assert found.rule == f"a rule in {title}"


@pytest.mark.parametrize("family", ["inet", "netdev"])
@pytest.mark.parametrize("told", [True, False], ids=["JSON", "text"])
def test_chains_at_a_device(family: str, told: bool) -> None:
    """Version 1.0.6 of nft leaves the devices out of its JSON."""
    devices = {"inet": ["eth0", "eth1"], "netdev": "eth1"}[family]
    base = {"family": family, "table": "fw", "name": "in", "hook": "ingress", "policy": "drop"}
    chain = {**base, "dev": devices} if told else base
    for device, lower, seen in (
        ("eth0", (), family == "inet"),
        ("eth1", (), True),
        ("br0", ("eth7", "eth1"), True),
        ("eth7", (), False),
        (None, (), False),
    ):
        packet = Packet(4, "192.0.2.2", 4789, device, lower=lower)
        listing = "" if told else LISTING
        found = evaluate(of_nft({"nftables": [{"chain": chain}]}, packet, listing), INCOMING)
        assert (found is not None and found.certain) == seen
        if found is not None:
            assert found.fix == f"nft insert rule {family} fw in udp dport 4789 accept"
    # Where it is not known, it may be so.
    found = evaluate(of_nft({"nftables": [{"chain": base}]}, PACKET), INCOMING)
    assert found is not None
    assert not found.certain


def test_each_chain_that_drops_is_named_and_changed() -> None:
    chains = [
        {"family": family, "table": "fw", "name": hook, "hook": hook, "policy": "drop"}
        for family, hook in (
            *(("ip", "prerouting"), ("inet", "input"), ("inet", "output")),
            *(("ip6", "input"), ("ip", "postrouting")),
        )
    ]
    tables = of_nft({"nftables": [{"chain": chain} for chain in chains]}, PACKET)
    found = evaluate(tables, INCOMING)
    assert found is not None
    assert found.rule == (
        "the policy of chain prerouting of the nftables table ip fw (drop) and "
        "the policy of chain input of the nftables table inet fw (drop)"
    )
    assert found.fix.split(AND) == [
        "nft insert rule ip fw prerouting udp dport 4789 accept",
        "nft insert rule inet fw input udp dport 4789 accept",
    ]
    found = evaluate(tables, OUTGOING)
    assert found is not None
    assert found.fix.split(AND) == [
        "nft insert rule inet fw output udp dport 4789 accept",
        "nft insert rule ip fw postrouting udp dport 4789 accept",
    ]


def test_tables_that_only_their_owner_may_change() -> None:
    base = {"family": "inet", "table": "firewalld", "name": "in", "hook": "input", "policy": "drop"}
    table = {"family": "inet", "name": "firewalld", "flags": ["owner", "persist"]}
    found = evaluate(of_nft({"nftables": [{"table": table}, {"chain": base}]}, PACKET), INCOMING)
    assert found is not None
    assert found.fix == "firewall-cmd --add-port=4789/udp"


def verdict_map(key: Any, *elements: tuple[Any, dict[str, Any]]) -> dict[str, Any]:
    return {"vmap": {"key": key, "data": {"set": [list(each) for each in elements]}}}


DPORT = {"payload": {"protocol": "udp", "field": "dport"}}
STATE = {"ct": {"key": "state"}}


def test_verdict_maps() -> None:
    found = nft(rule(verdict_map(DPORT, (53, ACCEPT), (4789, DROP))))
    assert found is not None
    assert found.certain
    assert nft(rule(verdict_map(DPORT, (53, DROP), (4789, ACCEPT))), policy="drop") is None
    assert nft(rule(verdict_map(DPORT, (53, DROP)))) is None
    # What most rulesets begin with.
    states = verdict_map(STATE, ("established", ACCEPT), ("related", ACCEPT), ("invalid", DROP))
    assert nft(rule(states)) is None
    found = nft(rule(states), policy="drop")
    assert found is not None
    assert found.certain
    found = nft(rule(verdict_map({"meta": {"key": "mark"}}, (1, ACCEPT), (2, DROP))))
    assert found is not None
    assert not found.certain
    jump = {"jump": {"target": "vx"}}
    assert nft(rule(verdict_map(DPORT, (4789, jump))), rule(DROP, chain="vx"), chains=("vx",))


def test_statements_that_do_not_depend_on_the_packet() -> None:
    mark = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}
    for statement in (mark, {"notrack": None}, {"log": {"prefix": "x"}}):
        found = nft(rule(statement, DROP))
        assert found is not None
        assert found.certain


def test_named_sets() -> None:
    for name, family, dropped in (("ports", "inet", True), ("others", "inet", None)):
        named = {"family": family, "name": "ports", "table": "fw", "elem": [53, 4789]}
        base = {"family": "inet", "table": "fw", "name": "in", "hook": "input"}
        items = [{"set": named}, {"chain": base}, rule(dport(f"@{name}"), DROP)]
        found = evaluate(of_nft({"nftables": items}, PACKET), ["input"])
        assert found is not None
        assert found.certain == bool(dropped)
    empty = {"family": "inet", "name": "ports", "table": "fw"}
    items = [{"set": empty}, {"chain": base}, rule(dport("@ports"), DROP)]
    assert evaluate(of_nft({"nftables": items}, PACKET), ["input"]) is None


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


def test_of_what_crosses_a_bridge_nothing_is_known_but_the_bridge() -> None:
    packet = Packet(4, device="br0", out="br0")

    def crossing(*rules: dict[str, Any]) -> Verdict | None:
        base = {"family": "inet", "table": "fw", "name": "in", "hook": "forward", "policy": "drop"}
        return evaluate(of_nft({"nftables": [{"chain": base}, *rules]}, packet), CROSSING)

    found = crossing()
    assert found is not None
    assert found.fix == "nft insert rule inet fw in iifname br0 oifname br0 accept"
    assert crossing(rule(meta("iifname", "br0"), ACCEPT)) is None
    for condition in (dport(53), dport(22, "tcp")):
        found = crossing(rule(condition, ACCEPT))
        assert found is not None
        assert not found.certain


@pytest.mark.parametrize(
    ("hook", "into", "out", "fix"),
    [
        ("prerouting", "vx0", "p1", "iifname vx0"),
        ("forward", "vx0", "p1", "iifname vx0"),
        ("postrouting", "vx0", "p1", "oifname p1"),
        ("prerouting", "p1", "vx0", "iifname p1"),
        ("forward", "p1", "vx0", "oifname vx0"),
        ("forward", "1p", "br", "iifname '\"1p\"' oifname br"),
    ],
)
def test_rules_for_frames(hook: str, into: str, out: str, fix: str) -> None:
    base = {"family": "bridge", "table": "fw", "name": "in", "hook": hook, "policy": "drop"}
    ruleset = {"nftables": [{"chain": base}]}
    for version in (4, 6, ARP):
        packet = Packet(version, device=into, out=out, bridge="br0", accept_by="vx0")
        found = evaluate(of_nft(ruleset, packet), CROSSING)
        assert found is not None
        assert found.fix == f"nft insert rule bridge fw in {fix} accept"
        # What no bridge has is not seen by them, and frames not by the rules for IP.
        assert evaluate(of_nft(ruleset, evolve(packet, bridge=None)), CROSSING) is None
        ip = {"nftables": [{"chain": {**base, "family": "inet"}}]}
        assert evaluate(of_nft(ip, packet), CROSSING) is None


def test_arp_is_no_ip() -> None:
    packet = Packet(ARP, device="vx0", out="p1", bridge="br0")
    base = {"family": "bridge", "table": "fw", "name": "in", "hook": "forward"}
    for condition, dropped in (
        (payload("ether", "type", "arp"), True),
        (payload("arp", "operation", "request"), None),
        (payload("ip", "saddr", "192.0.2.2"), False),
        (dport(53), False),
        (payload("ether", "type", "ip6"), False),
    ):
        one = rule(condition, DROP)
        one["rule"]["family"] = "bridge"
        found = evaluate(of_nft({"nftables": [{"chain": base}, one]}, packet), CROSSING)
        assert (found.certain or None if found is not None else False) is dropped


# --- iptables -----------------------------------------------------------------------------------


def iptables(*rules: str, policy: str = "ACCEPT", packet: Packet = PACKET) -> Verdict | None:
    lines = ["# made by hand", "*filter", f":INPUT {policy} [0:0]", ":mine - [0:0]", *rules]
    return evaluate(of_iptables([*lines, "COMMIT"], packet), ["input"])


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
def test_iptables_that_apply(conditions: str) -> None:
    found = iptables(f"-A INPUT {conditions} -j DROP")
    assert found is not None
    assert found.certain
    where = "in chain INPUT of the iptables table filter"
    assert found.rule == f"the rule “-A INPUT {conditions} -j DROP” (number 1) {where}"
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


def test_iptables_of_all_hooks() -> None:
    def saved(table: str, chain: str) -> list[Any]:
        lines = [f"*{table}", f":{chain} ACCEPT [0:0]", f"-A {chain} -p udp -j DROP", "COMMIT"]
        return of_iptables(lines, PACKET, "iptables-legacy")

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


def test_what_docker_writes_lets_its_own_bridges_pass() -> None:
    def crossing(bridge: str, rules: str = DOCKER) -> Verdict | None:
        packet = Packet(4, device=bridge, out=bridge)
        return evaluate(of_iptables(rules.splitlines(), packet), ["forward"])

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
