"""Verdicts of the doctor on datagrams of a remote, by rules of nftables that are made up here."""

from typing import Any

import pytest

from vtep.doctor.filtering import merge_blocked, remote_verdicts
from vtep.host.firewall import PacketPattern, Verdict
from vtep.host.netfilter import Rules

INTO = PacketPattern(4, "192.0.2.2", 4789, "eth0")
OUT = PacketPattern(4, "192.0.2.1", 4789, out="eth0")


def input_rules(*expressions: Any) -> Rules:
    base = {"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": "drop"}
    rule = {"family": "inet", "table": "fw", "chain": "in", "expr": list(expressions)}
    return Rules({"nftables": [{"chain": base}, {"rule": rule}]}, "", ())


STATEFUL = input_rules(
    {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}},
    {"accept": None},
)
OTHER_PORT = input_rules(
    {
        "match": {
            "op": "==",
            "left": {"payload": {"protocol": "udp", "field": "dport"}},
            "right": 22,
        }
    },
    {"accept": None},
)


@pytest.mark.parametrize(
    ("rules", "one_flow", "dropped", "dropped_if_new"),
    [
        (STATEFUL, True, False, True),
        (STATEFUL, False, True, False),
        (OTHER_PORT, True, True, False),
    ],
)
def test_rules_for_established_flows(
    rules: Rules, *, one_flow: bool, dropped: bool, dropped_if_new: bool
) -> None:
    verdicts = remote_verdicts(rules, INTO, OUT, None, one_flow=one_flow)
    assert (verdicts.firewall is not None) == dropped
    assert (verdicts.firewall_new is not None) == dropped_if_new
    assert verdicts.firewall_out is None


def test_traffic_that_the_same_rules_drop_is_merged() -> None:
    certain, uncertain = Verdict("rule a", "fix a && fix b"), Verdict("rule c", "fix c", False)
    merged = merge_blocked(
        [("ARP", uncertain), ("IPv4", certain), ("IPv6", certain), ("IPv6", None)]
    )
    assert [each.what for each in merged] == ["IPv4 and IPv6", "ARP"]
    assert merged[0].verdict == certain
