"""The rules of iptables, read for one packet from `iptables-save` or `ip6tables-save`. No I/O."""

import re
import shlex
from collections.abc import Iterable, Iterator

from vtep.host.firewall import Chain, PacketPattern, Rule, Table, both
from vtep.host.firewall_fixes import iptables_fix
from vtep.host.firewall_values import in_network, matches

_HOOKS = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
"""Hooks by built-in chain."""

_PORT_MAX = 65535


def read(lines: Iterable[str], packet: PacketPattern, program: str | None = None) -> list[Table]:
    """Read the tables of `iptables-save` or `ip6tables-save` as they apply to a packet.

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
            # The table nat drops nothing, so its chains have no hook here.
            hook = _HOOKS.get(chain) if name != "nat" else None
            tables[-1][chain] = Chain(
                name=chain,
                title=f"chain {chain} of the {program} table {name}",
                fix=iptables_fix(program, name, chain, hook, packet),
                hook=hook,
                policy=policy.lower(),
            )
        elif line.startswith("-A ") and tables:
            words = shlex.split(line)
            if words[1] in tables[-1]:
                rules = tables[-1][words[1]].rules
                text = f"the rule “{line}” (number {len(rules) + 1})"
                rules.append(_read_rule(text, words[2:], packet))
    return list(tables)


def _read_rule(text: str, words: list[str], packet: PacketPattern) -> Rule:
    """Read the options of a rule."""
    applies: bool | None = True
    verdict, target = "nothing", None
    for option, values, negated in _options(words):
        value = values[0] if values else ""
        if option in ("-j", "-g"):
            verdict, target = _target(option, value)
        elif option in ("-m", "--comment", "--reject-with", "--log-prefix", "--log-level"):
            continue
        else:
            found = _match(option, value, packet)
            applies = both(applies, not found if negated and found is not None else found)
    return Rule(text, applies, verdict, target)


def _target(option: str, value: str) -> tuple[str, str | None]:
    """Return verdict and target of a `Rule` for -j or -g."""
    plain = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
    if value in plain:
        return plain[value], None
    return ("goto" if option == "-g" else "jump"), value


def _match(option: str, value: str, packet: PacketPattern) -> bool | None:
    """Return whether a condition applies."""
    if option == "-p":
        return value in ("udp", "17", "all", "0") if packet.port is not None else None
    if option in ("-s", "-d"):
        address = packet.source if option == "-s" else packet.destination
        return in_network(value, address) if address is not None else None
    if option in ("-i", "-o"):
        # "eth+" is the pattern that nftables writes "eth*".
        pattern = value[:-1] + "*" if value.endswith("+") else value
        return matches(pattern, packet.device if option == "-i" else packet.out)
    if option in ("--dport", "--dports"):
        if packet.port is None:
            return None
        return any(_in_ports(part, packet.port) for part in value.split(","))
    if option in ("--ctstate", "--state"):
        return packet.state.upper() in value.split(",") if packet.state is not None else None
    return None


def _in_ports(text: str, port: int) -> bool:
    """Return True if a port is the given one, or in the range FIRST:LAST, both optional."""
    first, _, last = text.partition(":")
    return int(first or 0) <= port <= int(last or (_PORT_MAX if ":" in text else first))


def _options(words: list[str]) -> Iterator[tuple[str, list[str], bool]]:
    """Yield each option with its values, and whether a `!` precedes it."""
    negated, option, values = False, "", list[str]()
    for word in [*words, "-"]:  # The last word completes the last option.
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
