"""Evaluation of this host's firewall rules for one packet. No I/O.

The rules are read by `nftables` and `iptables`, and listed by `netfilter`.

This is not a packet filter. It understands the usual conditions only, so logic here has three
values: a condition or rule applies (True), does not (False), or may apply (None). A verdict that
depends on a None is not certain.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from attrs import field, frozen

ARP = 0
"""The version of a packet that is not IP but ARP."""

AND = " && "
"""The separator of the commands of a fix."""

INCOMING = ("ingress", "prerouting", "input")
OUTGOING = ("output", "postrouting", "egress")
CROSSING = ("prerouting", "forward", "postrouting")
"""Netfilter hooks in the order in which a packet passes them: one that this host receives, one that
it sends, and one that crosses a bridge."""

_JUMPS_MAX = 16
"""Depth of jumps: NFT_JUMP_STACK_SIZE in the kernel's include/net/netfilter/nf_tables.h."""


@frozen
class PacketPattern:
    """A packet that this host receives, sends or forwards; None stands for any value.

    With a `port` it is a UDP datagram. Without, it is any packet.
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
    """The state in connection tracking: new, established, ..."""
    lower: tuple[str, ...] = ()
    """The devices below `device` or `out`, such as the ports of a bridge."""
    bridge: str | None = None
    """The bridge that the packet crosses as a frame. Then only the rules for frames see it."""
    accept_by: str | None = None
    """The one of `device` and `out` by which a fix accepts the packet; None for both."""


@frozen
class Verdict:
    """The cause of a drop (rules, or chains by their policy), and the command that prevents it."""

    rule: str
    fix: str
    certain: bool = True
    """False if a condition that is not understood decides."""

    @property
    def culprit(self) -> str:
        """A sentence that names what drops the packet."""
        if self.certain:
            return f"Dropped by: {self.rule}."
        return f"Perhaps dropped by {self.rule}, whose conditions are not understood here."


@frozen
class Rule:
    """A rule as it applies to the packet, with its action."""

    text: str
    """The rule as its program lists it, and its place in the chain."""
    applies: bool | None
    """True, False, or None if the rule may apply."""
    verdict: str
    """accept, drop, return, nothing, or `jump` or `goto` to `target`."""
    target: str | None = None


@frozen
class Chain:
    """A chain; only a base chain has a hook."""

    name: str
    title: str
    fix: str
    """The command that has this base chain accept the packet."""
    hook: str | None = None
    policy: str = "accept"
    rules: list[Rule] = field(factory=list)
    sees: bool | None = True
    """True if the packet passes this base chain, and None if it may."""


Table = Mapping[str, Chain]
"""Chains by name. Rules jump only within one table."""


def evaluate(tables: Sequence[Table], hooks: Sequence[str]) -> Verdict | None:
    """Find what drops a packet at any of these hooks.

    `tables` were read for that packet.

    Returns: None if the packet passes.
    """
    return combine(
        verdict
        for hook in hooks
        for table in tables
        for chain in table.values()
        if chain.hook == hook and (verdict := _Traversal(table, chain).verdict()) is not None
    )


def combine(verdicts: Iterable[Verdict]) -> Verdict | None:
    """Combine the verdicts of several base chains. Returns: None if there are none.

    An accept in one base chain does not keep another one from dropping the packet. So each is
    named, and the fix changes each. Uncertain verdicts count only if no verdict is certain.
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


def both(one: bool | None, other: bool | None) -> bool | None:
    """Return the conjunction of two three-valued conditions."""
    return False if False in (one, other) else None if None in (one, other) else True


class _Outcome(Enum):
    """The effect of a rule or a chain; NEXT continues with the next rule."""

    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    NEXT = "next"


class _Traversal:
    """The traversal of a base chain, and of the chains that it jumps to, by one packet."""

    def __init__(self, table: Table, base: Chain) -> None:
        self._table = table
        self._base = base
        self._certain = base.sees is True
        self._suspect: str | None = None
        """The first rule that may drop the packet."""

    def verdict(self) -> Verdict | None:
        """Return what drops the packet here, if anything does."""
        base = self._base
        if base.sees is False:
            return None
        outcome, rule = self._traverse(base, 0)
        if outcome is not _Outcome.DROP:
            if outcome is _Outcome.ACCEPT or base.policy != "drop":
                suspect = self._suspect
                return Verdict(suspect, base.fix, certain=False) if suspect is not None else None
            rule = f"the policy of {base.title} (drop)"
        return Verdict(rule or "", base.fix, certain=self._certain)

    def _traverse(self, chain: Chain, depth: int) -> tuple[_Outcome, str | None]:
        """Return the outcome of a chain, and the rule that drops the packet."""
        for rule in chain.rules:
            if rule.applies is False:
                continue
            outcome, text = self._apply(chain, rule, depth)
            if outcome is _Outcome.NEXT:
                continue
            if rule.applies is None:
                # The traversal may end here. If that would be a drop, it is a suspect; if it would
                # be an accept, a later drop is not certain.
                if outcome is _Outcome.DROP:
                    self._suspect = self._suspect or text
                else:
                    self._certain = False
                continue
            return outcome, text
        return _Outcome.NEXT, None

    def _apply(self, chain: Chain, rule: Rule, depth: int) -> tuple[_Outcome, str | None]:
        """Return the outcome of a rule, and its text if it drops the packet."""
        if rule.verdict in ("jump", "goto"):
            target = self._table.get(rule.target or "")
            if target is None or depth > _JUMPS_MAX:
                return _Outcome.NEXT, None
            outcome, text = self._traverse(target, depth + 1)
            if outcome in (_Outcome.ACCEPT, _Outcome.DROP):
                return outcome, text
            # After a goto, the end of the target chain returns to the caller of this chain.
            return (_Outcome.RETURN if rule.verdict == "goto" else _Outcome.NEXT), None
        if rule.verdict == "drop":
            return _Outcome.DROP, f"{rule.text} in {chain.title}"
        if rule.verdict in ("accept", "return"):
            return _Outcome(rule.verdict), None
        return _Outcome.NEXT, None
