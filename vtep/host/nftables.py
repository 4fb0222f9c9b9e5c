"""The rules of nftables, read for one packet from `nft -j list ruleset`. No I/O.

The format is that of libnftables-json(5).
"""

import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

from vtep.host.firewall import ARP, Chain, PacketPattern, Rule, Table, both
from vtep.host.firewall_fixes import nft_fix
from vtep.host.firewall_values import Absent, Value, compare, matches

_UNCONDITIONAL = frozenset(
    (
        *("counter", "log", "comment", "mangle", "notrack", "set", "flow", "dup", "ct helper"),
        *("ct timeout", "ct expectation", "secmark", "last"),
    )
)
"""Statements that neither end a chain nor depend on the packet."""

_ACCEPTS = frozenset(("accept", "snat", "dnat", "masquerade", "redirect", "fwd"))
"""Statements that end the base chain, but not by a drop."""

_NOT_UDP = frozenset(("tcp", "sctp", "dccp", "icmp", "icmpv6", "igmp", "esp", "ah", "comp"))
"""Protocols that a UDP datagram does not have."""


@frozen
class _Context:
    """The packet at a chain, and the named sets of the chain's table."""

    packet: PacketPattern
    sets: Mapping[str, Any]
    """The elements of sets and maps by name."""


def read(ruleset: Mapping[str, Any], packet: PacketPattern, listing: str = "") -> list[Table]:
    """Read the tables of `nft -j list ruleset` as they apply to a packet.

    `listing` is the output of `nft -a list ruleset`. Rules are quoted from it, and so are the
    devices of chains, which older versions of nft leave out of the JSON.
    """
    texts, devices = _annotations(listing)
    families = {"netdev"} if packet.version == ARP else {"netdev", "inet"}
    if packet.bridge is not None:
        families.add("bridge")
    else:
        families.add("ip" if packet.version == 4 else "ip6")
    items = [item for item in ruleset.get("nftables", []) if item]
    owned = {
        (table["family"], table["name"])
        for item in items
        if (table := item.get("table")) is not None and "owner" in table.get("flags", ())
    }
    sets: dict[tuple[str, str], dict[str, Any]] = {}
    for item in items:
        named = item.get("set") or item.get("map")
        if named is not None:
            elements = named.get("elem", [])
            sets.setdefault((named["family"], named["table"]), {})[named["name"]] = elements
    tables: dict[tuple[str, str], dict[str, Chain]] = {}
    packets: dict[tuple[str, str, str], PacketPattern] = {}
    for item in items:
        chain = item.get("chain")
        if chain is None or chain["family"] not in families:
            continue
        table = (chain["family"], chain["table"])
        key = (*table, chain["name"])
        sees, packets[key] = _at_chain(packet, chain, devices.get(key))
        tables.setdefault(table, {})[chain["name"]] = Chain(
            name=chain["name"],
            title=f"chain {chain['name']} of the nftables table {' '.join(table)}",
            fix=nft_fix(chain, packets[key], owned=table in owned),
            hook=chain.get("hook"),
            policy=chain.get("policy", "accept"),
            sees=sees,
        )
    # In a second pass, since rules may be listed before their chains.
    for item in items:
        rule = item.get("rule")
        if rule is None:
            continue
        table = (rule["family"], rule["table"])
        if rule["chain"] in tables.get(table, {}):
            context = _Context(packets[*table, rule["chain"]], sets.get(table, {}))
            text = texts.get((*table, rule.get("handle")))
            tables[table][rule["chain"]].rules.append(_read_rule(rule, context, text))
    return list(tables.values())


def _at_chain(
    packet: PacketPattern, chain: Mapping[str, Any], listed: tuple[str, ...] | None
) -> tuple[bool | None, PacketPattern]:
    """Return whether a base chain sees a packet, and the packet with its device there.

    At ingress and egress a chain belongs to devices. There a packet of a bridge or a bond is seen
    at the lower device.
    """
    if chain.get("hook") not in ("ingress", "egress"):
        return chain["family"] == "bridge" or packet.bridge is None, packet
    device = packet.device if chain["hook"] == "ingress" else packet.out
    passed = {name for name in (device, *packet.lower) if name is not None}
    given = chain.get("dev")
    names = (given,) if isinstance(given, str) else tuple(given) if given else listed
    if names is None:
        return None, packet
    common = [name for name in names if name in passed]
    if not common:
        return False, packet
    if chain["hook"] == "ingress":
        return True, evolve(packet, device=common[0])
    return True, evolve(packet, out=common[0])


_LISTED_RULE = re.compile(r"\s*(.*) # handle (\d+)")
_LISTED_DEVICE = re.compile(r" devices? (?:= )?(\{[^}]*\}|\S+)")


def _annotations(
    listing: str,
) -> tuple[dict[tuple[str, str, int], str], dict[tuple[str, str, str], tuple[str, ...]]]:
    """Parse the output of `nft -a list ruleset`.

    Returns: the text of each rule by family, table and handle; and the devices of chains at ingress
    and egress by family, table and name.
    """
    texts: dict[tuple[str, str, int], str] = {}
    devices: dict[tuple[str, str, str], tuple[str, ...]] = {}
    family = table = chain = ""
    for line in listing.splitlines():
        words = line.split()
        if line.startswith("table ") and len(words) > 2:
            family, table = words[1:3]
        elif line.startswith("\tchain ") and len(words) > 1:
            chain = words[1]
        elif words[:1] == ["type"] and " hook " in line:
            found = _LISTED_DEVICE.search(line)
            if found is not None:
                names = found[1].strip("{}").replace(",", " ").replace('"', "").split()
                devices[family, table, chain] = tuple(names)
        elif line.startswith("\t\t") and (rule := _LISTED_RULE.fullmatch(line)):
            texts[family, table, int(rule[2])] = rule[1]
    return texts, devices


# --- rules ------------------------------------------------------------------------------------


def _read_rule(rule: Mapping[str, Any], context: _Context, text: str | None) -> Rule:
    """Read a rule; `text` is its text in the listing."""
    expressions = rule.get("expr", [])
    applies: bool | None = True
    verdict, target = "nothing", None
    for expression in expressions:
        ((name, operand),) = expression.items()
        if name == "match":
            applies = both(applies, _match(operand, context))
        elif name == "vmap":
            found, verdict, target = _verdict_map(operand, context)
            applies = both(applies, found)
        elif name in (*_ACCEPTS, "return", "drop", "reject", "jump", "goto"):
            verdict, target = _verdict(name, operand)
        elif name not in _UNCONDITIONAL:
            applies = both(applies, None)
    named = f"the rule “{text}” (handle {rule['handle']})" if text is not None else "a rule"
    return Rule(named, applies, verdict, target)


def _verdict(name: str, operand: Any) -> tuple[str, str | None]:
    """Return verdict and target of a `Rule` for a verdict statement."""
    if name in ("jump", "goto"):
        return name, operand["target"]
    if name in ("drop", "reject"):
        return "drop", None
    return ("accept" if name in _ACCEPTS else name), None


def _verdict_map(vmap: Mapping[str, Any], context: _Context) -> tuple[bool | None, str, str | None]:
    """Return whether a verdict map has an element for the packet, with verdict and target."""
    elements = vmap["data"]
    if isinstance(elements, str):
        elements = {"set": context.sets.get(elements.removeprefix("@"))}
    value = _value(vmap["key"], context.packet)
    perhaps: tuple[str, str | None] | None = None
    if not isinstance(elements, Mapping) or not isinstance(elements.get("set"), list):
        return None, "nothing", None
    if value is Absent.ABSENT:
        return False, "nothing", None
    for key, action in elements["set"]:
        ((name, operand),) = action.items()
        found = matches(key, value, context.sets)
        if found:
            return True, *_verdict(name, operand)
        # Of several elements that may match, one that drops the packet is worth a note.
        if found is None and (perhaps is None or name in ("drop", "reject")):
            perhaps = _verdict(name, operand)
    return (None, *perhaps) if perhaps is not None else (False, "nothing", None)


def _match(match: Mapping[str, Any], context: _Context) -> bool | None:
    """Return whether a condition applies."""
    value = _value(match["left"], context.packet)
    op, right = match.get("op"), match["right"]
    if value is Absent.ABSENT:
        # A field that is named is a condition on its protocol, even if the operator is !=.
        return False
    if op in ("<", ">", "<=", ">="):
        return compare(op, value, right)
    found = matches(right, value, context.sets)
    if found is not None and op == "!=":
        return not found
    return found


def _value(left: Mapping[str, Any], packet: PacketPattern) -> Value:
    """Return the value of the left side of an expression; None if it is unknown."""
    if "concat" in left:
        parts = tuple(_value(part, packet) for part in left["concat"])
        return Absent.ABSENT if Absent.ABSENT in parts else parts
    if "payload" in left:
        protocol, name = left["payload"].get("protocol"), left["payload"].get("field")
        other = {4: ("ip6", "arp"), 6: ("ip", "arp"), ARP: ("ip", "ip6")}[packet.version]
        not_udp = packet.port is not None or packet.version == ARP
        if protocol in other or (not_udp and protocol in _NOT_UDP):
            return Absent.ABSENT
        if packet.version == ARP and protocol in ("udp", "th"):
            return Absent.ABSENT
        return _fields(packet).get(f"{protocol} {name}")
    if "meta" in left:
        return _fields(packet).get(f"meta {left['meta'].get('key')}")
    if left.get("ct", {}).get("key") == "state":
        return packet.state
    return None


def _fields(packet: PacketPattern) -> dict[str, str | int | None]:
    """Return the known values of a packet by their names in nftables."""
    protocol = "udp" if packet.port is not None else None
    network = {4: "ip", 6: "ip6", ARP: "arp"}[packet.version]
    return {
        "udp dport": packet.port,
        "th dport": packet.port,
        "ip saddr": packet.source,
        "ip6 saddr": packet.source,
        "ip daddr": packet.destination,
        "ip6 daddr": packet.destination,
        "ip version": packet.version,
        "ip protocol": protocol,
        "ip6 nexthdr": protocol,
        "ether type": network,
        "meta protocol": network,
        "meta l4proto": protocol,
        "meta nfproto": f"ipv{packet.version}" if packet.bridge is None else None,
        "meta iifname": packet.device,
        "meta iif": packet.device,
        "meta oifname": packet.out,
        "meta oif": packet.out,
        "meta ibrname": packet.bridge,
        "meta obrname": packet.bridge,
    }
