"""Rules of iptables for the bridges of container networks.

- With net.bridge.bridge-nf-call-iptables, frames that cross a bridge pass the chain FORWARD, whose
  policy Docker sets to DROP. A rule accepts those that stay on their bridge.
- Docker accepts whatever its own bridges send to other devices, and keeps its networks apart by
  rules for each of them. Packets routed to or from our bridges are dropped in the table mangle,
  which Docker leaves alone, and which is passed before: the order of rules does not matter there.
"""

import subprocess
from collections.abc import Iterable, Iterator, Sequence

from attrs import frozen

from vtep.errors import VtepError

_TIMEOUT_S = 10


@frozen
class BridgeRule:
    """A rule: its table, and its words after `iptables -t TABLE -A`, as `iptables -S` prints it."""

    table: str
    words: tuple[str, ...]


def accept_bridged(bridge: str) -> list[BridgeRule]:
    """Return the rule for frames that cross a bridge."""
    return [BridgeRule("filter", ("FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"))]


def drop_routed(bridge: str) -> list[BridgeRule]:
    """Return the rules that keep a bridge apart from all other devices of the host."""
    return [
        BridgeRule("mangle", ("FORWARD", "-i", bridge, "!", "-o", bridge, "-j", "DROP")),
        BridgeRule("mangle", ("FORWARD", "!", "-i", bridge, "-o", bridge, "-j", "DROP")),
    ]


def ensure_rules(wanted: Sequence[BridgeRule], version: int) -> None:
    """Add the missing rules for an IP version, before all others.

    Without iptables on this host there is nothing that they would be needed for.

    Raises: VtepError if iptables fails.
    """
    present = set(_present(version, sorted({rule.table for rule in wanted})))
    for rule in wanted:
        if rule not in present:
            chain, *match = rule.words
            _run(version, rule.table, "-I", chain, *match)


def remove_rules(rules: Sequence[BridgeRule], version: int) -> None:
    """Remove the rules that are there. Raises: VtepError if iptables fails."""
    present = set(_present(version, {rule.table for rule in rules}))
    for rule in rules:
        if rule in present:
            _run(version, rule.table, "-D", *rule.words)


def _present(version: int, tables: Iterable[str]) -> Iterator[BridgeRule]:
    for table in tables:
        for line in _run(version, table, "-S", "FORWARD").splitlines():
            action, *words = line.split()
            if action == "-A":
                yield BridgeRule(table, tuple(words))


def _run(version: int, table: str, *words: str) -> str:
    """Run iptables or ip6tables. Returns: its output, "" if it is not installed."""
    program = "iptables" if version == 4 else "ip6tables"
    try:
        done = subprocess.run(
            # Docker and others change rules as well, and each of them locks all tables (-w waits).
            [program, "-w", str(_TIMEOUT_S // 2), "-t", table, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VtepError(f"{program}: {error}") from error
    if done.returncode != 0:
        reason = " ".join((done.stderr or done.stdout).split())
        raise VtepError(f"{program} -t {table} {' '.join(words)}: {reason}")
    return done.stdout
