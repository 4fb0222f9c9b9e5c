"""What this host's firewall does with a packet. No I/O: rules are passed in as they are listed.

This is no packet filter. Of a rule with a condition that is not understood here, it can only be
said that the rule may apply, so there are three answers to the question whether it applies.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Any

from attrs import evolve, field, frozen

ARP = 0
"""The version of a packet that is not IP but ARP."""

AND = " && "
"""Between the commands of a fix."""

INCOMING = ("ingress", "prerouting", "input")
OUTGOING = ("output", "postrouting", "egress")
CROSSING = ("prerouting", "forward", "postrouting")
"""The hooks on the way of a packet that this host receives, sends, or hands on over a bridge."""


@frozen
class Packet:
    """A packet that this host receives, sends or hands on; None stands for any value.

    With a `port` it is the first datagram of a UDP conversation. Without, it is any packet.
    """

    version: int
    """4, 6 or `ARP`."""
    source: str | None = None
    port: int | None = None
    """The UDP destination port."""
    device: str | None = None
    """The device that receives the packet."""
    out: str | None = None
    """The device that sends the packet."""
    destination: str | None = None
    state: str | None = "new"
    """What connection tracking says of it."""
    lower: tuple[str, ...] = ()
    """The devices below `device` or `out`, such as the ports of a bridge."""
    bridge: str | None = None
    """The bridge that it passes as a frame. Then only the rules for frames see it."""
    accept_by: str | None = None
    """The device by which a fix accepts it, where that is the one that receives or sends it."""


@frozen
class Verdict:
    """What drops a packet (rules, or chains by their policy), and the command that lets it pass."""

    rule: str
    fix: str
    certain: bool = True
    """False if rules before it, or conditions of it, are not understood here."""

    @property
    def culprit(self) -> str:
        """A sentence that names what drops the packet."""
        if self.certain:
            return f"Dropped by: {self.rule}."
        return f"Perhaps dropped by {self.rule}, whose conditions are not understood here."


class _Ending(Enum):
    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    NEXT = "next"


@frozen
class Rule:
    """A rule: whether its conditions apply (None: perhaps), and what follows if they do."""

    text: str
    """The rule as its program lists it, and where it stands in its chain."""
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
    """The command that lets the packet pass this base chain."""
    hook: str | None = None
    policy: str = "accept"
    rules: list[Rule] = field(factory=list)
    sees: bool | None = True
    """Whether the packet gets here (None: perhaps)."""


Table = Mapping[str, Chain]
"""Chains by name: rules jump only within one table."""


def evaluate(tables: Sequence[Table], hooks: Sequence[str]) -> Verdict | None:
    """Find what drops the packet that tables were read for at any of these hooks.

    Returns: None if the packet passes.
    """
    return combined(
        verdict
        for hook in hooks
        for table in tables
        for chain in table.values()
        if chain.hook == hook and (verdict := _Walk(table, chain).verdict()) is not None
    )


def combined(verdicts: Iterable[Verdict]) -> Verdict | None:
    """Combine what drops a packet in several base chains; None if there is nothing.

    To accept a packet in one base chain does not keep another one from dropping it. So each is
    named, and the fix changes each. What may drop it counts only where nothing surely does.
    """
    found = list(verdicts)
    certain = [verdict for verdict in found if verdict.certain]
    named = certain or found
    if not named:
        return None
    return Verdict(
        " and ".join(dict.fromkeys(verdict.rule for verdict in named)),
        AND.join(dict.fromkeys(verdict.fix for verdict in named)),
        certain=bool(certain),
    )


class _Walk:
    """The way of a packet through a base chain."""

    def __init__(self, table: Table, base: Chain) -> None:
        self._table = table
        self._base = base
        self._certain = base.sees is True
        self._suspect: str | None = None

    def verdict(self) -> Verdict | None:
        """Return what drops the packet here, if anything does."""
        base = self._base
        if base.sees is False:
            return None
        ending, rule = self._through(base, 0)
        if ending is not _Ending.DROP:
            if ending is _Ending.ACCEPT or base.policy != "drop":
                suspect = self._suspect
                return Verdict(suspect, base.fix, certain=False) if suspect is not None else None
            rule = f"the policy of {base.title} (drop)"
        return Verdict(rule or "", base.fix, certain=self._certain)

    def _through(self, chain: Chain, depth: int) -> tuple[_Ending, str | None]:
        for rule in chain.rules:
            if rule.applies is False:
                continue
            ending, text = self._apply(chain, rule, depth)
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

    def _apply(self, chain: Chain, rule: Rule, depth: int) -> tuple[_Ending, str | None]:
        if rule.verdict in ("jump", "goto"):
            target = self._table.get(rule.target or "")
            if target is None or depth > 16:
                return _Ending.NEXT, None
            ending, text = self._through(target, depth + 1)
            if ending in (_Ending.ACCEPT, _Ending.DROP):
                return ending, text
            return (_Ending.RETURN if rule.verdict == "goto" else _Ending.NEXT), None
        if rule.verdict == "drop":
            return _Ending.DROP, f"{rule.text} in {chain.title}"
        if rule.verdict in ("accept", "return"):
            return _Ending(rule.verdict), None
        return _Ending.NEXT, None


# --- nftables -------------------------------------------------------------------------------

_NO_CONDITION = frozenset(
    (
        *("counter", "log", "comment", "mangle", "notrack", "set", "flow", "dup", "ct helper"),
        *("ct timeout", "ct expectation", "secmark", "last"),
    )
)
"""Statements that neither end a chain nor depend on the packet."""

_ACCEPTS = frozenset(("accept", "snat", "dnat", "masquerade", "redirect", "fwd"))
_ABOVE_IP = frozenset(("tcp", "sctp", "dccp", "icmp", "icmpv6", "igmp", "esp", "ah", "comp"))
"""Protocols that a UDP datagram is not."""


@frozen
class _Seen:
    """What there is to know of a ruleset besides its rules."""

    packet: Packet
    sets: Mapping[str, Any]
    """The elements of the sets and maps of the table, by name."""


def of_nft(ruleset: Mapping[str, Any], packet: Packet, listing: str = "") -> list[Table]:
    """Read the tables of `nft -j list ruleset` for one packet.

    `listing` is what `nft -a list ruleset` prints: rules are quoted as they are there, and the
    devices of chains, which older versions of nft leave out of the JSON, are taken from it.
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
    here: dict[tuple[str, str, str], Packet] = {}
    for item in items:
        chain = item.get("chain")
        if chain is None or chain["family"] not in families:
            continue
        table = (chain["family"], chain["table"])
        at = (*table, chain["name"])
        sees, here[at] = _at_chain(packet, chain, devices.get(at))
        tables.setdefault(table, {})[chain["name"]] = Chain(
            name=chain["name"],
            title=f"chain {chain['name']} of the nftables table {' '.join(table)}",
            fix=_nft_fix(chain, here[at], owned=table in owned),
            hook=chain.get("hook"),
            policy=chain.get("policy", "accept"),
            sees=sees,
        )
    for item in items:
        rule = item.get("rule")
        if rule is None:
            continue
        table = (rule["family"], rule["table"])
        if rule["chain"] in tables.get(table, {}):
            seen = _Seen(here[*table, rule["chain"]], sets.get(table, {}))
            text = texts.get((*table, rule.get("handle")))
            tables[table][rule["chain"]].rules.append(_nft_rule(rule, seen, text))
    return list(tables.values())


def _at_chain(
    packet: Packet, chain: Mapping[str, Any], listed: tuple[str, ...] | None
) -> tuple[bool | None, Packet]:
    """Return whether a base chain sees a packet, and with which device."""
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


def _nft_fix(chain: Mapping[str, Any], packet: Packet, *, owned: bool) -> str:
    """Return the command that has a base chain accept a packet."""
    if owned:  # Only that program may change it.
        if chain["table"] == "firewalld" and packet.port is not None:
            return f"firewall-cmd --add-port={packet.port}/udp"
        return f"have the program that owns the nftables table {chain['table']} accept it"
    hook = chain.get("hook")
    if packet.port is not None:
        match = f"udp dport {packet.port} "
    else:
        into, out = _devices(hook, packet)
        match = f"iifname {_name(into)} " if into is not None else ""
        match += f"oifname {_name(out)} " if out is not None else ""
    return f"nft insert rule {chain['family']} {chain['table']} {chain['name']} {match}accept"


def _devices(hook: str | None, packet: Packet) -> tuple[str | None, str | None]:
    """Return the receiving and the sending device by which a fix at a hook accepts a packet."""
    into = packet.device if hook in (*INCOMING, "forward") else None
    out = packet.out if hook in (*OUTGOING, "forward") else None
    if packet.accept_by is not None and packet.accept_by in (into, out):
        return (into, None) if into == packet.accept_by else (None, out)
    return into, out


def _name(device: str) -> str:
    """Return the name of a device as a shell hands it to nft."""
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", device)
    return device if plain else shlex.quote(f'"{device}"')


_LISTED_RULE = re.compile(r"\s*(.*) # handle (\d+)")
_LISTED_DEVICE = re.compile(r" devices? (?:= )?(\{[^}]*\}|\S+)")


def _annotations(
    listing: str,
) -> tuple[dict[tuple[str, str, int], str], dict[tuple[str, str, str], tuple[str, ...]]]:
    """Return the text of each rule by its handle, and the devices of each chain that has some."""
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


def _nft_rule(rule: Mapping[str, Any], seen: _Seen, text: str | None) -> Rule:
    expressions = rule.get("expr", [])
    applies: bool | None = True
    verdict, target = "nothing", None
    for expression in expressions:
        ((name, what),) = expression.items()
        if name == "match":
            applies = _both(applies, _nft_match(what, seen))
        elif name == "vmap":
            found, verdict, target = _nft_map(what, seen)
            applies = _both(applies, found)
        elif name in (*_ACCEPTS, "return", "drop", "reject", "jump", "goto"):
            verdict, target = _nft_verdict(name, what)
        elif name not in _NO_CONDITION:
            applies = _both(applies, None)
    named = f"the rule “{text}” (handle {rule['handle']})" if text is not None else "a rule"
    return Rule(named, applies, verdict, target)


def _nft_verdict(name: str, what: Any) -> tuple[str, str | None]:
    if name in ("jump", "goto"):
        return name, what["target"]
    if name in ("drop", "reject"):
        return "drop", None
    return ("accept" if name in _ACCEPTS else name), None


def _nft_map(vmap: Mapping[str, Any], seen: _Seen) -> tuple[bool | None, str, str | None]:
    """Return whether a verdict map has the packet, with the verdict and its target."""
    elements = vmap["data"]
    if isinstance(elements, str):
        elements = {"set": seen.sets.get(elements.removeprefix("@"))}
    value = _nft_value(vmap["key"], seen.packet)
    perhaps: tuple[str, str | None] | None = None
    if not isinstance(elements, Mapping) or not isinstance(elements.get("set"), list):
        return None, "nothing", None
    if value is _Absent.ABSENT:
        return False, "nothing", None
    for key, action in elements["set"]:
        ((name, what),) = action.items()
        found = _within(key, value, seen.sets)
        if found:
            return True, *_nft_verdict(name, what)
        if found is None and (perhaps is None or name in ("drop", "reject")):
            perhaps = _nft_verdict(name, what)
    return (None, *perhaps) if perhaps is not None else (False, "nothing", None)


class _Absent(Enum):
    """The value of a field that a packet does not have."""

    ABSENT = 0


Value = str | int | tuple[Any, ...] | _Absent | None


def _nft_match(match: Mapping[str, Any], seen: _Seen) -> bool | None:
    """Return whether a condition applies."""
    value = _nft_value(match["left"], seen.packet)
    op, right = match.get("op"), match["right"]
    if value is _Absent.ABSENT:
        return False  # Naming a field asks for its protocol, even where the operator is !=.
    if op in ("<", ">", "<=", ">="):
        return _compare(op, value, right)
    found = _within(right, value, seen.sets)
    if found is not None and op == "!=":
        return not found
    return found


def _nft_value(left: Mapping[str, Any], packet: Packet) -> Value:
    """Return what the packet has where an expression looks; None if that is unknown."""
    if "concat" in left:
        parts = tuple(_nft_value(part, packet) for part in left["concat"])
        return _Absent.ABSENT if _Absent.ABSENT in parts else parts
    if "payload" in left:
        protocol, name = left["payload"].get("protocol"), left["payload"].get("field")
        other = {4: ("ip6", "arp"), 6: ("ip", "arp"), ARP: ("ip", "ip6")}[packet.version]
        not_udp = packet.port is not None or packet.version == ARP
        if protocol in other or (not_udp and protocol in _ABOVE_IP):
            return _Absent.ABSENT
        if packet.version == ARP and protocol in ("udp", "th"):
            return _Absent.ABSENT
        return _fields(packet).get(f"{protocol} {name}")
    if "meta" in left:
        return _fields(packet).get(f"meta {left['meta'].get('key')}")
    if left.get("ct", {}).get("key") == "state":
        return packet.state
    return None


def _fields(packet: Packet) -> dict[str, str | int | None]:
    """Return what is known of a packet, in the words of nftables."""
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


def _compare(op: str, value: Value, right: Any) -> bool | None:
    if not isinstance(value, int) or not isinstance(right, int):
        return None
    return {
        "<": value < right,
        ">": value > right,
        "<=": value <= right,
        ">=": value >= right,
    }[op]


def _within(right: Any, value: Value, sets: Mapping[str, Any] | None = None) -> bool | None:
    """Return whether a value is the one, in the prefix or range, or one of the set, that is named.

    `sets` are the elements of the sets that may be named.
    """
    if isinstance(right, str) and right.startswith("@"):
        elements = (sets or {}).get(right[1:])
        return _within(elements, value) if elements is not None else None
    if isinstance(right, list):
        return _any(_within(each, value, sets) for each in right)
    if isinstance(right, Mapping) and "set" in right:
        return _within(right["set"], value, sets)
    if isinstance(right, Mapping) and "elem" in right:
        return _within(right["elem"].get("val"), value, sets)
    if isinstance(value, tuple):
        return _all_within(right, value)
    if value is None:
        return None
    if isinstance(right, Mapping):
        return _in_interval(right, value)
    if right == "*":
        return True
    if isinstance(right, str) and right.endswith("*"):
        return str(value).startswith(right[:-1])
    return str(right) == str(value)


def _all_within(right: Any, values: tuple[Any, ...]) -> bool | None:
    """Return whether each of several values is the one that is named for it."""
    if not isinstance(right, Mapping) or len(right.get("concat", ())) != len(values):
        return None
    found: bool | None = True
    for each, value in zip(right["concat"], values, strict=True):
        found = _both(found, _within(each, value))
    return found


def _in_interval(right: Mapping[str, Any], value: Value) -> bool | None:
    if "range" in right:
        low, high = right["range"]
        if all(isinstance(each, int) for each in (low, high, value)):
            return bool(low <= value <= high)
        return _in_range(str(low), str(high), str(value))
    if "prefix" in right:
        return _in_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", str(value))
    return None


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


# --- iptables -------------------------------------------------------------------------------

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
"""By built-in chain. (None of them is in the table nat, which drops nothing.)"""


def of_iptables(lines: Iterable[str], packet: Packet, program: str | None = None) -> list[Table]:
    """Read the tables of `iptables-save` or `ip6tables-save` for one packet.

    `program` is the one that changes them; by default `iptables` or `ip6tables`.
    """
    program = program or ("iptables" if packet.version == 4 else "ip6tables")
    tables: list[dict[str, Chain]] = []
    name = ""
    for line in lines:
        if line.startswith("*"):
            name = line[1:].strip()
            tables.append({})
        elif line.startswith(":") and tables:
            chain, policy = line[1:].split()[:2]
            hook = _HOOKS.get(chain) if name != "nat" else None
            table = "" if name == "filter" else f"-t {name} "
            tables[-1][chain] = Chain(
                name=chain,
                title=f"chain {chain} of the {program} table {name}",
                fix=f"{program} {table}-I {chain} {_conditions(hook, packet)}-j ACCEPT",
                hook=hook,
                policy=policy.lower(),
            )
        elif line.startswith("-A ") and tables:
            words = shlex.split(line)
            if words[1] in tables[-1]:
                rules = tables[-1][words[1]].rules
                text = f"the rule “{line}” (number {len(rules) + 1})"
                rules.append(_iptables_rule(text, words[2:], packet))
    return list(tables)


def _conditions(hook: str | None, packet: Packet) -> str:
    """Return the options of iptables that match a packet at a hook."""
    if packet.port is not None:
        return f"-p udp --dport {packet.port} "
    into, out = _devices(hook, packet)
    return (f"-i {into} " if into is not None else "") + (f"-o {out} " if out is not None else "")


def _iptables_rule(text: str, words: list[str], packet: Packet) -> Rule:
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
    return Rule(text, applies, verdict, target)


def _iptables_target(option: str, value: str) -> tuple[str, str | None]:
    plain = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
    if value in plain:
        return plain[value], None
    return ("goto" if option == "-g" else "jump"), value


def _iptables_match(option: str, value: str, packet: Packet) -> bool | None:
    if option == "-p":
        return value in ("udp", "17", "all", "0") if packet.port is not None else None
    if option in ("-s", "-d"):
        address = packet.source if option == "-s" else packet.destination
        return _in_network(value, address) if address is not None else None
    if option in ("-i", "-o"):
        pattern = value[:-1] + "*" if value.endswith("+") else value
        return _within(pattern, packet.device if option == "-i" else packet.out)
    if option in ("--dport", "--dports"):
        if packet.port is None:
            return None
        return any(_in_ports(part, packet.port) for part in value.split(","))
    if option in ("--ctstate", "--state"):
        return packet.state.upper() in value.split(",") if packet.state is not None else None
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
