"""The effect of this host's firewall on datagrams of the tunnel and on frames of the segments."""

from collections.abc import Iterable, Sequence
from ipaddress import ip_interface

from attrs import evolve, frozen

from vtep.doctor.facts import Blocked
from vtep.doctor.local_network import LocalNetwork, NetDevice
from vtep.host.firewall import (
    AND,
    ARP,
    CROSSING,
    INCOMING,
    OUTGOING,
    PacketPattern,
    Verdict,
    combine,
)
from vtep.host.links import has_bridge_netfilter
from vtep.host.netfilter import Rules

_PORTS_MAX = 16
"""Other ports of a bridge for which the rules for frames are evaluated. More would take long, and
would hardly find other rules."""


@frozen
class RemoteVerdicts:
    """The rules that drop datagrams from and to a remote; see `RemoteFacts` for the fields."""

    firewall: Verdict | None
    firewall_new: Verdict | None
    firewall_out: Verdict | None


def remote_verdicts(
    rules: Rules,
    into: PacketPattern,
    out: PacketPattern,
    bridge: str | None,
    *,
    one_flow: bool,
) -> RemoteVerdicts:
    """Evaluate the rules for datagrams from a remote (`into`) and to it (`out`).

    `bridge` is the underlay device if that is a bridge. `one_flow` is True if this host sends from
    the VXLAN port. If the remote does so, too, both directions are one flow to connection tracking,
    and a rule for established flows accepts the remote's datagrams once this host has sent one.
    """
    firewall = _verdict(rules, into, INCOMING, bridge)
    firewall_new = None
    if one_flow and firewall is not None:
        established = _verdict(rules, evolve(into, state="established"), INCOMING, bridge)
        if established is None:
            firewall, firewall_new = None, firewall
    return RemoteVerdicts(firewall, firewall_new, _verdict(rules, out, OUTGOING, bridge))


def _verdict(
    rules: Rules, packet: PacketPattern, hooks: Sequence[str], bridge: str | None
) -> Verdict | None:
    """Return what drops a packet. On a bridge, the rules for frames come first."""
    of_frame = None
    if bridge is not None:
        # Which port a frame passes is known only if there is one.
        port = packet.lower[0] if len(packet.lower) == 1 else None
        into, out = (port, bridge) if packet.device is not None else (bridge, port)
        frame = evolve(packet, device=into, out=out, bridge=bridge)
        of_frame = rules.verdict(
            frame, *(hook for hook in hooks if hook not in ("ingress", "egress"))
        )
    of_packet = rules.verdict(packet, *hooks)
    return combine(each for each in (of_frame, of_packet) if each is not None)


def blocked_frames(network: LocalNetwork, tap: str, rules: Rules) -> tuple[Blocked, ...]:
    """Return the frames that rules for frames drop between a TAP and other ports of its bridge."""
    upper = network.upper_device(tap)
    hooks: tuple[str, ...] = ("ingress", "egress")
    ports = [""]
    if upper is not None and upper.name != tap:
        hooks += CROSSING
        names = [port.name for port in network.ports_of(upper) if port.name != tap]
        ports = names[:_PORTS_MAX] or ports
    directions = [(tap, port) for port in ports] + [(port, tap) for port in ports]
    return merge_blocked(
        (
            what,
            rules.verdict(
                PacketPattern(
                    version,
                    device=into or None,
                    out=out or None,
                    bridge=upper.name if upper is not None else "",
                    accept_by=tap,
                ),
                *hooks,
            ),
        )
        for what, version in (("IPv4", 4), ("IPv6", 6), ("ARP", ARP))
        for into, out in directions
    )


def blocked_packets(network: LocalNetwork, tap: str, rules: Rules) -> tuple[Blocked, ...]:
    """Return the IP between a segment and this host itself that rules for IP surely drop."""
    upper = network.upper_device(tap)
    if upper is None:
        return ()
    found: list[tuple[str, Verdict | None]] = []
    for version in (4, 6):
        texts = network.addresses.get(upper.index, ())
        if any(ip_interface(text).version == version for text in texts):
            what = f"IPv{version}"
            into = PacketPattern(version, device=upper.name, state=None)
            out = PacketPattern(version, out=upper.name, state=None)
            found += (
                (f"{what} from the segment", rules.verdict(into, "prerouting", "input")),
                (f"{what} to the segment", rules.verdict(out, "output", "postrouting")),
            )
    return merge_blocked((what, verdict) for what, verdict in found if verdict and verdict.certain)


def blocked_bridged_packets(bridge: NetDevice, rules: Rules) -> tuple[Blocked, ...]:
    """Return the IP that crosses a bridge and is dropped by rules for IP, if they see it."""
    # To these rules, a bridged packet arrives on the bridge and leaves through it.
    return merge_blocked(
        (
            f"IPv{version}",
            rules.verdict(PacketPattern(version, device=bridge.name, out=bridge.name), *CROSSING),
        )
        for version in (4, 6)
        if has_bridge_netfilter(bridge.data, version)
    )


def merge_blocked(found: Iterable[tuple[str, Verdict | None]]) -> tuple[Blocked, ...]:
    """Merge what the same rules drop, and put certain verdicts first."""
    kinds: dict[tuple[str, bool], dict[str, None]] = {}
    fixes: dict[tuple[str, bool], dict[str, None]] = {}
    for what, verdict in found:
        if verdict is not None:
            key = (verdict.rule, verdict.certain)
            kinds.setdefault(key, {})[what] = None
            fixes.setdefault(key, {}).update(dict.fromkeys(verdict.fix.split(AND)))
    merged = [
        Blocked(_enumerate(list(names)), Verdict(rule, AND.join(fixes[rule, certain]), certain))
        for (rule, certain), names in kinds.items()
    ]
    return tuple(sorted(merged, key=lambda each: not each.verdict.certain))


def _enumerate(names: list[str]) -> str:
    """Join names as in "A, B and C"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
