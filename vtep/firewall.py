"""Whether this host's own firewall lets VXLAN in. No I/O: rules are passed in as they were listed.

The best that can be said without being a packet filter: a chain that drops what nothing accepts,
and no rule that accepts the port by its number. Who accepts by other means knows better.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

_IPTABLES_TABLES = {"filter", "mangle", "nat", "raw", "security"}
"""Tables of the families ip and ip6 in which iptables keeps its rules."""


def closed(port: int, iptables: Iterable[str], ruleset: Mapping[str, Any]) -> str | None:
    """What is to be said of a UDP port that seems to be closed for incoming datagrams, or None.

    `iptables` are lines as of `iptables -S`, `ruleset` is what `nft -j list ruleset` prints. The
    answer is one line that says who closes it and what opens it.
    """
    rules = list(iptables)
    if "-P INPUT DROP" in rules and not any(_opens(rule, port) for rule in rules):
        return (
            f"this host's iptables drops what no rule accepts, and none names UDP port {port}: "
            f"iptables -I INPUT -p udp --dport {port} -j ACCEPT"
        )
    items = ruleset.get("nftables", [])
    for item in items:
        chain = item.get("chain", {})
        if chain.get("hook") != "input" or chain.get("policy") != "drop":
            continue
        family, table, name = chain.get("family"), chain.get("table"), chain.get("name")
        if family not in ("ip", "ip6", "inet") or (rules and _of_iptables(family, table)):
            continue
        inside = (
            other["rule"]
            for other in items
            if other.get("rule", {}).get("family") == family and other["rule"].get("table") == table
        )
        if not any(_names(rule.get("expr"), port) for rule in inside):
            return (
                f"this host's nftables drops what no rule accepts (chain {name} of table {family} "
                f"{table}), and none names UDP port {port}: nft insert rule {family} {table} "
                f"{name} udp dport {port} accept"
            )
    return None


def _of_iptables(family: object, table: object) -> bool:
    return family in ("ip", "ip6") and table in _IPTABLES_TABLES


def _opens(rule: str, port: int) -> bool:
    if not rule.endswith("-j ACCEPT"):
        return False
    if re.fullmatch(r"-A INPUT -j ACCEPT", rule):
        return True
    for ports in re.findall(r"--dports? (\S+)", rule):
        for part in ports.split(","):
            first, _, last = part.partition(":")
            if first.isdecimal() and int(first) <= port <= int(last or first):
                return True
    return False


def _names(expression: object, port: int) -> bool:
    """Whether a number, or a range with it, is anywhere in the expressions of a rule."""
    if isinstance(expression, Mapping):
        if "range" in expression:
            first, last = expression["range"]
            if isinstance(first, int) and isinstance(last, int):
                return first <= port <= last
        return any(_names(value, port) for value in expression.values())
    if isinstance(expression, list):
        return any(_names(item, port) for item in expression)
    return expression == port
