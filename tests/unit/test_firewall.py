"""What rules say of a UDP port, with rules as iptables and nft list them."""

from typing import Any

import pytest

from vtep.firewall import closed

DROP = ["-P INPUT DROP", "-P FORWARD DROP", "-A INPUT -i lo -j ACCEPT"]


def ruleset(
    *matches: Any, policy: str = "drop", family: str = "inet", table: str = "fw"
) -> dict[str, Any]:
    chain = {"family": family, "table": table, "name": "in", "hook": "input", "policy": policy}
    rules = [
        {"rule": {"family": family, "table": table, "chain": "in", "expr": [match]}}
        for match in matches
    ]
    return {"nftables": [{"metainfo": {"version": "1.0.6"}}, {"chain": chain}, *rules]}


def dport(right: Any) -> dict[str, Any]:
    left = {"payload": {"protocol": "udp", "field": "dport"}}
    return {"match": {"op": "==", "left": left, "right": right}}


def test_without_rules_nothing_is_closed() -> None:
    assert closed(4789, [], {}) is None
    assert closed(4789, ["-P INPUT ACCEPT"], {"nftables": []}) is None


def test_iptables_that_names_no_such_port() -> None:
    line = closed(4789, [*DROP, "-A INPUT -p udp -m udp --dport 478 -j ACCEPT"], {})
    assert line is not None
    assert line.endswith("iptables -I INPUT -p udp --dport 4789 -j ACCEPT")


@pytest.mark.parametrize(
    "rule",
    [
        "-A INPUT -p udp -m udp --dport 4789 -j ACCEPT",
        "-A ufw-user-input -p udp -m udp --dport 4789 -j ACCEPT",
        "-A INPUT -p udp -m udp --dport 4000:5000 -j ACCEPT",
        "-A INPUT -p udp -m multiport --dports 53,4789 -j ACCEPT",
        "-A INPUT -p udp -m multiport --dports 53,4780:4789 -j ACCEPT",
        "-A INPUT -j ACCEPT",
    ],
)
def test_iptables_that_opens_it(rule: str) -> None:
    assert closed(4789, [*DROP, rule], {}) is None


@pytest.mark.parametrize(
    "rule",
    [
        "-A INPUT -p udp -m udp --dport 4789 -j DROP",
        "-A INPUT -p udp -m udp --dport 4790:5000 -j ACCEPT",
        "-A INPUT -p udp -m udp --sport 4789 -j ACCEPT",
        "-A INPUT -i lo -j ACCEPT",
    ],
)
def test_iptables_that_does_not(rule: str) -> None:
    assert closed(4789, [*DROP, rule], {}) is not None


def test_nftables_that_names_no_such_port() -> None:
    line = closed(4789, [], ruleset(dport(53)))
    assert line is not None
    assert line.endswith("nft insert rule inet fw in udp dport 4789 accept")


@pytest.mark.parametrize(
    "right",
    [4789, {"set": [53, 4789]}, {"range": [4000, 5000]}, {"set": [53, {"range": [4700, 4800]}]}],
)
def test_nftables_that_opens_it(right: Any) -> None:
    assert closed(4789, [], ruleset(dport(right))) is None


def test_nftables_that_drops_nothing() -> None:
    assert closed(4789, [], ruleset(policy="accept")) is None


def test_rules_of_bridges_are_not_about_the_port() -> None:
    assert closed(4789, [], ruleset(family="bridge")) is None


def test_what_iptables_has_said_is_not_said_again_by_nft() -> None:
    of_iptables = ruleset(family="ip", table="filter")
    opened = [*DROP, "-A INPUT -p udp -m udp --dport 4789 -j ACCEPT"]
    assert closed(4789, opened, of_iptables) is None
    # A table of that name may be somebody's own where there is no iptables.
    assert closed(4789, [], of_iptables) is not None


def test_a_rule_in_another_table_opens_nothing() -> None:
    rules = ruleset(dport(53))["nftables"] + ruleset(dport(4789), table="other")["nftables"][2:]
    assert closed(4789, [], {"nftables": rules}) is not None
