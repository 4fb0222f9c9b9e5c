"""What this host's firewall does with a datagram. No I/O: rules are passed in as they were listed.

This is no packet filter: of a rule with conditions that are not understood here, it can only be
said that it may apply. So there are three answers to whether a datagram is dropped.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any

from attrs import field, frozen


@frozen
class Packet:
    """A packet that begins a conversation, over UDP if there is a port; None is anything."""

    version: int
    source: str | None = None
    port: int | None = None
    device: str | None = None
    """Through which it comes."""
    out: str | None = None
    """Through which it goes, if this host forwards it."""


@frozen
class Verdict:
    """What drops a datagram: the rule, or the chain whose policy it is, and what lets it pass."""

    rule: str
    fix: str
    certain: bool = True
    """False if there are rules before it, or conditions of it, that could not be judged."""


class _Ending(Enum):
    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    NEXT = "next"


@frozen
class Rule:
    """A rule: whether its conditions apply (None: perhaps), and what follows if they do."""

    text: str
    applies: bool | None
    verdict: str
    """accept, drop, return, nothing, or `jump` or `goto` to `target`."""
    target: str | None = None


@frozen
class Chain:
    """A chain; only a base chain has a hook."""

    name: str
    title: str
    fix: str
    """The command that lets the datagram pass here."""
    hook: str | None = None
    priority: int = 0
    policy: str = "accept"
    rules: list[Rule] = field(factory=list)


Table = Mapping[str, Chain]
"""Chains by name: rules jump only within one."""


def judge(tables: Iterable[Table], hook: str) -> Verdict | None:
    """What drops the datagram that tables were read for at a hook; None if it passes."""
    perhaps = None
    for table in tables:
        for chain in table.values():
            if chain.hook != hook:
                continue
            found = _Walk(table, chain).verdict()
            if found is not None and found.certain:
                return found
            perhaps = perhaps or found
    return perhaps


class _Walk:
    """A datagram's way through a base chain."""

    def __init__(self, table: Table, base: Chain) -> None:
        self._table = table
        self._base = base
        self._certain = True
        self._suspect: str | None = None

    def verdict(self) -> Verdict | None:
        """What drops it, if anything does."""
        base = self._base
        ending, rule = self._through(base, 0)
        if ending is _Ending.ACCEPT:
            rule = self._suspect
            return Verdict(rule, base.fix, certain=False) if rule is not None else None
        if ending is not _Ending.DROP:
            if base.policy != "drop":
                rule = self._suspect
                return Verdict(rule, base.fix, certain=False) if rule is not None else None
            rule = f"the policy of {base.title}, which is to drop what no rule accepts"
        return Verdict(rule or "", base.fix, certain=self._certain)

    def _through(self, chain: Chain, depth: int) -> tuple[_Ending, str | None]:
        for rule in chain.rules:
            if rule.applies is False:
                continue
            ending, text = self._follow(chain, rule, depth)
            if ending is _Ending.NEXT:
                continue
            if rule.applies is None:
                # It may end here, or not.
                if ending is _Ending.DROP:
                    self._suspect = self._suspect or text
                else:
                    self._certain = False
                continue
            return ending, text
        return _Ending.NEXT, None

    def _follow(self, chain: Chain, rule: Rule, depth: int) -> tuple[_Ending, str | None]:
        if rule.verdict in ("jump", "goto"):
            target = self._table.get(rule.target or "")
            if target is None or depth > 16:
                return _Ending.NEXT, None
            ending, text = self._through(target, depth + 1)
            if ending in (_Ending.ACCEPT, _Ending.DROP):
                return ending, text
            return (_Ending.RETURN if rule.verdict == "goto" else _Ending.NEXT), None
        if rule.verdict == "drop":
            return _Ending.DROP, f"the rule “{rule.text}” in {chain.title}"
        if rule.verdict in ("accept", "return"):
            return _Ending(rule.verdict), None
        return _Ending.NEXT, None


# --- nftables -------------------------------------------------------------------------------


def of_nft(ruleset: Mapping[str, Any], packet: Packet) -> list[Table]:
    """The tables that `nft -j list ruleset` prints, read for one datagram."""
    families = {"inet", "ip" if packet.version == 4 else "ip6"}
    tables: dict[tuple[str, str], dict[str, Chain]] = {}
    items = ruleset.get("nftables", [])
    for item in items:
        chain = item.get("chain")
        if chain is None or chain["family"] not in families:
            continue
        where = f"{chain['family']} {chain['table']}"
        accept = f"udp dport {packet.port} " if packet.port is not None else ""
        if packet.port is None and packet.device is not None:
            accept = f"iifname {packet.device} oifname {packet.out or packet.device} "
        tables.setdefault((chain["family"], chain["table"]), {})[chain["name"]] = Chain(
            name=chain["name"],
            title=f"chain {chain['name']} of the nftables table {where}",
            fix=f"nft insert rule {where} {chain['name']} {accept}accept",
            hook=chain.get("hook"),
            policy=chain.get("policy", "accept"),
        )
    for item in items:
        rule = item.get("rule")
        table = tables.get((rule["family"], rule["table"])) if rule is not None else None
        if table is not None and rule["chain"] in table:
            table[rule["chain"]].rules.append(_nft_rule(rule.get("expr", []), packet))
    return list(tables.values())


def _nft_rule(expressions: Iterable[Mapping[str, Any]], packet: Packet) -> Rule:
    applies: bool | None = True
    verdict, target = "nothing", None
    for expression in expressions:
        ((name, what),) = expression.items()
        if name == "match":
            applies = _both(applies, _nft_match(what, packet))
        elif name in ("accept", "return"):
            verdict = name
        elif name in ("drop", "reject"):
            verdict = "drop"
        elif name in ("jump", "goto"):
            verdict, target = name, what["target"]
        elif name not in ("counter", "log", "comment"):
            applies = _both(applies, None)
    return Rule(_nft_text(expressions), applies, verdict, target)


def _nft_match(match: Mapping[str, Any], packet: Packet) -> bool | None:
    """Whether a condition applies."""
    left, right = match["left"], match["right"]
    found: bool | None = None
    if "payload" in left:
        protocol, name = left["payload"].get("protocol"), left["payload"].get("field")
        if protocol == "tcp" or protocol == {4: "ip6", 6: "ip"}[packet.version]:
            return False  # Naming a field asks for its protocol, even where the operator is !=.
        found = _within(right, _fields(packet).get(f"{protocol} {name}"))
    elif "meta" in left:
        found = _within(right, _fields(packet).get(f"meta {left['meta'].get('key')}"))
    elif left.get("ct", {}).get("key") == "state":
        found = _within(right, "new")
    if found is not None and match.get("op") == "!=":
        return not found
    return found


def _fields(packet: Packet) -> dict[str, str | int | None]:
    """What is known of a packet, in the words of nftables."""
    protocol = "udp" if packet.port is not None else None
    return {
        "udp dport": packet.port,
        "th dport": packet.port,
        "ip saddr": packet.source,
        "ip6 saddr": packet.source,
        "ip protocol": protocol,
        "ip6 nexthdr": protocol,
        "meta l4proto": protocol,
        "meta nfproto": f"ipv{packet.version}",
        "meta iifname": packet.device,
        "meta iif": packet.device,
        "meta oifname": packet.out,
        "meta oif": packet.out,
    }


def _within(right: Any, value: str | int | None) -> bool | None:
    """Whether a value is the one, in the prefix or range, or one of the set that is named."""
    if value is None:
        return None
    if isinstance(right, list):
        return _any(_within(each, value) for each in right)
    if isinstance(right, Mapping):
        if "set" in right:
            return _within(right["set"], value)
        if "elem" in right:
            return _within(right["elem"].get("val"), value)
        if "range" in right:
            low, high = right["range"]
            if all(isinstance(each, int) for each in (low, high, value)):
                return bool(low <= value <= high)
            return _in_range(str(low), str(high), str(value))
        if "prefix" in right:
            return _in_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", str(value))
        return None
    if isinstance(right, str) and right.startswith("@"):
        return None
    if isinstance(right, str) and right.endswith("*"):
        return str(value).startswith(right[:-1])
    return str(right) == str(value)


def _in_network(network: str, address: str) -> bool | None:
    try:
        return ip_address(address.partition("%")[0]) in ip_network(network, strict=False)
    except ValueError:
        return None


def _in_range(low: str, high: str, address: str) -> bool | None:
    try:
        first, at, last = (ip_address(each) for each in (low, address, high))
    except ValueError:
        return None
    same = first.version == at.version == last.version
    return same and int(first) <= int(at) <= int(last)


def _any(answers: Iterable[bool | None]) -> bool | None:
    told = list(answers)
    return True if True in told else None if None in told else False


def _both(one: bool | None, other: bool | None) -> bool | None:
    return False if False in (one, other) else None if None in (one, other) else True


def _nft_text(expressions: Iterable[Mapping[str, Any]]) -> str:
    """About as nft prints a rule, for somebody who looks for it."""
    words = []
    for expression in expressions:
        ((name, what),) = expression.items()
        if name == "match":
            op = "" if what.get("op") in ("==", "in") else f"{what.get('op')} "
            words.append(f"{_nft_field(what['left'])} {op}{_nft_value(what['right'])}")
        elif name in ("jump", "goto"):
            words.append(f"{name} {what['target']}")
        elif name != "counter":
            words.append(name)
    return " ".join(words)


def _nft_field(left: Mapping[str, Any]) -> str:
    ((kind, of),) = left.items()
    if not isinstance(of, Mapping):
        return "..."
    name = of.get("field") or of.get("key") or "..."
    return f"{of.get('protocol', '') if kind == 'payload' else kind} {name}"


def _nft_value(right: Any) -> str:
    if isinstance(right, list):
        return "{ " + ", ".join(map(_nft_value, right)) + " }"
    if isinstance(right, Mapping):
        if "set" in right:
            return _nft_value(right["set"])
        if "range" in right:
            return "-".join(map(str, right["range"]))
        if "prefix" in right:
            return f"{right['prefix']['addr']}/{right['prefix']['len']}"
        return "..."
    return str(right)


# --- iptables -------------------------------------------------------------------------------

_HOOKS = {"INPUT": "input", "FORWARD": "forward"}


def of_iptables(lines: Iterable[str], packet: Packet) -> list[Table]:
    """The tables that `iptables-save`, or `ip6tables-save`, prints, read for one datagram."""
    program = "iptables" if packet.version == 4 else "ip6tables"
    tables: list[dict[str, Chain]] = []
    name = ""
    for line in lines:
        if line.startswith("*"):
            name = line[1:].strip()
            tables.append({})
        elif line.startswith(":") and tables:
            chain, policy = line[1:].split()[:2]
            conditions = f"-p udp --dport {packet.port} " if packet.port is not None else ""
            if packet.port is None and packet.device is not None:
                conditions = f"-i {packet.device} -o {packet.out or packet.device} "
            table = "" if name == "filter" else f"-t {name} "
            tables[-1][chain] = Chain(
                name=chain,
                title=f"chain {chain} of the {program} table {name}",
                fix=f"{program} {table}-I {chain} {conditions}-j ACCEPT",
                hook=_HOOKS.get(chain) if name != "nat" else None,
                policy=policy.lower(),
            )
        elif line.startswith("-A ") and tables:
            words = shlex.split(line)
            if words[1] in tables[-1]:
                tables[-1][words[1]].rules.append(_iptables_rule(line, words[2:], packet))
    return list(tables)


def _iptables_rule(line: str, words: list[str], packet: Packet) -> Rule:
    applies: bool | None = True
    verdict, target = "nothing", None
    for option, values, negated in _iptables_options(words):
        value = values[0] if values else ""
        if option in ("-j", "-g"):
            verdict, target = _iptables_target(option, value)
        elif option in ("-m", "--comment", "--reject-with", "--log-prefix", "--log-level"):
            continue
        else:
            found = _iptables_match(option, value, packet)
            applies = _both(applies, not found if negated and found is not None else found)
    return Rule(line, applies, verdict, target)


def _iptables_target(option: str, value: str) -> tuple[str, str | None]:
    plain = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
    if value in plain:
        return plain[value], None
    return ("goto" if option == "-g" else "jump"), value


def _iptables_match(option: str, value: str, packet: Packet) -> bool | None:
    if option == "-p":
        return _within(value, "udp" if packet.port is not None else None)
    if option == "-s":
        return _in_network(value, packet.source) if packet.source is not None else None
    if option in ("-i", "-o"):
        pattern = value[:-1] + "*" if value.endswith("+") else value
        return _within(pattern, packet.device if option == "-i" else packet.out)
    if option in ("--dport", "--dports"):
        if packet.port is None:
            return None
        return any(_in_ports(part, packet.port) for part in value.split(","))
    if option in ("--ctstate", "--state"):
        return "NEW" in value.split(",")
    return None


def _in_ports(text: str, port: int) -> bool:
    first, _, last = text.partition(":")
    return int(first or 0) <= port <= int(last or (65535 if ":" in text else first))


def _iptables_options(words: list[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Each option with its values, and whether there is a `!` before it."""
    negated, option, values = False, "", list[str]()
    for word in [*words, "-"]:
        if word == "!" or re.fullmatch(r"--?[a-zA-Z][a-zA-Z0-9-]*|-", word):
            if option:
                yield option, values, negated
                option, values, negated = "", [], False
            if word == "!":
                negated = True
            else:
                option = word
        else:
            values.append(word)
