"""Verdicts of nftables rules, as nft lists them, on one packet."""

from typing import Any

import pytest
from attrs import evolve

from vtep.host import nftables
from vtep.host.firewall import (
    AND,
    ARP,
    CROSSING,
    INCOMING,
    OUTGOING,
    PacketPattern,
    Verdict,
    evaluate,
)

PACKET = PacketPattern(4, "192.0.2.2", 4789, "eth0", destination="192.0.2.1")
SIX = PacketPattern(6, "2001:db8::2", 4789, "eth0")


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
    packet: PacketPattern = PACKET,
    chains: tuple[str, ...] = (),
) -> Verdict | None:
    base = {"family": family, "table": "fw", "name": "in", "hook": "input", "policy": policy}
    others = [{"chain": {"family": family, "table": "fw", "name": name}} for name in chains]
    for each in rules:
        each["rule"]["family"] = family
    ruleset = {"nftables": [{"metainfo": {}}, {"chain": base}, *others, *rules]}
    return evaluate(nftables.read(ruleset, packet), ["input"])


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
def test_conditions_that_do_not_apply(condition: Any) -> None:
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
def test_conditions_that_may_apply(condition: Any) -> None:
    for found in (nft(rule(condition, DROP)), nft(rule(condition, ACCEPT), policy="drop")):
        assert found is not None
        assert not found.certain
    # A rule that surely ends the chain makes later ones irrelevant.
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


def test_rules_are_quoted_from_the_listing() -> None:
    one = rule(dport({"set": [53, 4789]}), DROP)
    one["rule"]["handle"] = 5
    base = {"family": "inet", "table": "fw", "name": "in", "hook": "input"}
    found = evaluate(
        nftables.read({"nftables": [{"chain": base}, one]}, PACKET, LISTING), ["input"]
    )
    assert found is not None
    text = 'udp dport { 53, 4789 } log prefix "# handle 7" drop'
    title = "chain in of the nftables table inet fw"
    assert found.rule == f"the rule “{text}” (handle 5) in {title}"
    found = nft(rule(DROP))
    assert found is not None
    assert found.rule == f"a rule in {title}"


@pytest.mark.parametrize("family", ["inet", "netdev"])
@pytest.mark.parametrize("told", [True, False], ids=["JSON", "text"])
def test_chains_at_ingress_belong_to_devices(family: str, told: bool) -> None:
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
        packet = PacketPattern(4, "192.0.2.2", 4789, device, lower=lower)
        listing = "" if told else LISTING
        found = evaluate(nftables.read({"nftables": [{"chain": chain}]}, packet, listing), INCOMING)
        assert (found is not None and found.certain) == seen
        if found is not None:
            assert found.fix == f"nft insert rule {family} fw in udp dport 4789 accept"
    # Without a list of devices the verdict is not certain.
    found = evaluate(nftables.read({"nftables": [{"chain": base}]}, PACKET), INCOMING)
    assert found is not None
    assert not found.certain


def test_every_chain_that_drops_is_named_and_fixed() -> None:
    chains = [
        {"family": family, "table": "fw", "name": hook, "hook": hook, "policy": "drop"}
        for family, hook in (
            *(("ip", "prerouting"), ("inet", "input"), ("inet", "output")),
            *(("ip6", "input"), ("ip", "postrouting")),
        )
    ]
    tables = nftables.read({"nftables": [{"chain": chain} for chain in chains]}, PACKET)
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


def test_a_table_with_an_owner_is_changed_by_its_program() -> None:
    base = {"family": "inet", "table": "firewalld", "name": "in", "hook": "input", "policy": "drop"}
    table = {"family": "inet", "name": "firewalld", "flags": ["owner", "persist"]}
    found = evaluate(
        nftables.read({"nftables": [{"table": table}, {"chain": base}]}, PACKET), INCOMING
    )
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
    # Most rulesets begin with this map.
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


def test_statements_without_a_condition() -> None:
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
        found = evaluate(nftables.read({"nftables": items}, PACKET), ["input"])
        assert found is not None
        assert found.certain == bool(dropped)
    empty = {"family": "inet", "name": "ports", "table": "fw"}
    items = [{"set": empty}, {"chain": base}, rule(dport("@ports"), DROP)]
    assert evaluate(nftables.read({"nftables": items}, PACKET), ["input"]) is None


def test_jumps_gotos_and_returns() -> None:
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
    # The end of a goto's target does not return to the chain.
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


def test_a_bridged_packet_matches_by_its_bridge_only() -> None:
    packet = PacketPattern(4, device="br0", out="br0")

    def crossing(*rules: dict[str, Any]) -> Verdict | None:
        base = {"family": "inet", "table": "fw", "name": "in", "hook": "forward", "policy": "drop"}
        return evaluate(nftables.read({"nftables": [{"chain": base}, *rules]}, packet), CROSSING)

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
        packet = PacketPattern(version, device=into, out=out, bridge="br0", accept_by="vx0")
        found = evaluate(nftables.read(ruleset, packet), CROSSING)
        assert found is not None
        assert found.fix == f"nft insert rule bridge fw in {fix} accept"
        # Rules for frames see bridged packets only, and rules for IP see no frames.
        assert evaluate(nftables.read(ruleset, evolve(packet, bridge=None)), CROSSING) is None
        ip = {"nftables": [{"chain": {**base, "family": "inet"}}]}
        assert evaluate(nftables.read(ip, packet), CROSSING) is None


def test_arp_does_not_match_ip() -> None:
    packet = PacketPattern(ARP, device="vx0", out="p1", bridge="br0")
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
        found = evaluate(nftables.read({"nftables": [{"chain": base}, one]}, packet), CROSSING)
        assert (found.certain or None if found is not None else False) is dropped
