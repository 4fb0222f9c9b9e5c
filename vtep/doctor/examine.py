"""The examination: all that is asked, and of whom, for `facts`."""

import asyncio
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any

import attrs

from vtep.control.client import candidates
from vtep.doctor import host
from vtep.doctor.echo import EchoClient
from vtep.doctor.facts import (
    Conflict,
    Drops,
    Facts,
    HostFacts,
    ProcessFacts,
    RemoteFacts,
    SegmentFacts,
)
from vtep.doctor.host import Surroundings
from vtep.doctor.neighbours import is_one_host, ping, resolve_macs, send_test_frame
from vtep.doctor.running import Running, Target, all_here
from vtep.errors import VtepError
from vtep.host import address_probe
from vtep.host.firewall import INCOMING, OUTGOING, PacketPattern, Verdict, combine
from vtep.host.netfilter import Rules
from vtep.host.netlink import session
from vtep.wire import vxlan
from vtep.wire.address import Address, without_scope

_ECHOES = 20
_BACK = 10
_BRIEFLY = 2
_AT_ONCE = 64
"""Hosts that are asked at the same time."""
_SEGMENTS_AT_ONCE = 200
"""And segments: a process usually has 1024 files at most, and each takes three sockets."""


def examine(
    remotes: Sequence[Address], vni: int | None, port: int | None, control: str | None
) -> Facts:
    """Look at these remotes, or at all of the pyvteps that run here.

    `control` is the socket of one that is meant. Raises VtepError where that does not answer, or
    there is nothing to look at.
    """
    with all_here(control) as running:
        return _examine(running, remotes, vni, port)


def _examine(
    running: Sequence[Running], remotes: Sequence[Address], vni: int | None, port: int | None
) -> Facts:
    if vni is not None and not remotes and not any(_has(each, vni) for each in running):
        raise VtepError(f"--vni {vni}: no pyvtep that runs here has it")
    if not remotes and not running:
        others = [each for each in candidates() if not each.here]
        where = f"; run it there: nsenter -t {others[0].pid} -n pyvtep doctor" if others else ""
        raise VtepError(
            "no pyvtep runs here that could be asked; name a remote with --remote"
            + (f"; {others[0].process} is in another network namespace{where}" if others else "")
        )
    checksums = host.checksum_errors()
    with session() as netlink:
        around, rules = Surroundings(netlink), Rules.read()
        targets = _targets(running, remotes, vni, port)
        known = [_known(target, around, rules) for target in targets]
    # Whether anybody has an address takes as long where nobody has: it is asked meanwhile.
    with ThreadPoolExecutor(1) as beside:
        beyond = beside.submit(asyncio.run, _overlay_conflicts(running, around, vni))
        found = _ask_all(targets, known)
        conflicts = beyond.result()
    silent = [target for target, facts in zip(targets, found, strict=True) if not _answered(facts)]
    for each in running:
        each.try_tunnel(silent, around)
    found = [
        attrs.evolve(_with_macs(facts, around), heard=target.heard, through=target.through)
        for target, facts in zip(targets, found, strict=True)
    ]
    stats = [each.stats_again() for each in running]
    ports = {target.port for target in targets} or {port or vxlan.PORT}
    return Facts(
        HostFacts(
            root=os.geteuid() == 0,
            kernel=platform.release(),
            holders=tuple(around.holders(each) for each in sorted(ports)),
            own_conflicts=_own_conflicts(around, found),
            underlay={
                dev: around.addresses_of(dev)
                for dev in sorted({each.dev for each in found if each.dev})
            },
            checksum_errors=checksums,
            checksum_errors_increase=host.checksum_errors() - checksums,
        ),
        tuple(
            segment
            for each, after in zip(running, stats, strict=True)
            for segment in _segments(each, after, around, rules, conflicts, vni)
        ),
        tuple(found),
        len(running),
        tuple(_of_process(each, after) for each, after in zip(running, stats, strict=True)),
    )


def _has(running: Running, vni: int) -> bool:
    return any(segment["vni"] == vni for segment in running.segments)


def _answered(facts: RemoteFacts) -> bool:
    return bool(facts.there.delays) or facts.is_own


def _targets(
    running: Iterable[Running], remotes: Sequence[Address], vni: int | None, port: int | None
) -> list[Target]:
    """What is to be asked: what runs here knows best how it speaks to a remote."""
    known = [target for each in running for target in each.targets(vni)]
    if not remotes:
        return known
    return [
        next(
            (one for one in known if one.remote == remote and port in (None, one.port)),
            Target(remote, vni, port or vxlan.PORT),
        )
        for remote in remotes
    ]


def _known(target: Target, around: Surroundings, rules: Rules) -> RemoteFacts:
    """What this host knows of a remote without asking it."""
    facts = RemoteFacts(
        *(str(target.remote), target.vni, target.port), tap=target.tap, socket=target.socket
    )
    if around.is_own(target.remote):
        return attrs.evolve(facts, is_own=True)
    if target.dev is not None and target.dev not in around.by_name:
        return attrs.evolve(facts, dev_gone=target.dev)
    if target.local is not None and not around.is_own(target.local):
        return attrs.evolve(facts, local_gone=str(target.local))
    try:
        way = around.way(target.remote, target.local, target.dev)
    except VtepError as error:
        return attrs.evolve(facts, no_route=str(error), down=around.down_towards(target.remote))
    dev = target.dev or way.dev
    own = str(without_scope(target.local)) if target.local is not None else way.source
    there, lower = str(without_scope(target.remote)), around.lower(dev)
    version, bridge = target.remote.version, dev if around.is_bridge(dev) else None
    into = PacketPattern(version, there, target.port, dev, destination=own, lower=lower)
    out = PacketPattern(version, own, target.port, out=dev, destination=there, lower=lower)
    return attrs.evolve(
        facts,
        dev=dev,
        dev_mtu=around.by_name[dev].mtu if dev in around.by_name else None,
        dev_mac=around.by_name[dev].mac if dev in around.by_name else None,
        source=str(target.local) if target.local is not None else way.source,
        gateway=way.gateway,
        firewall=_verdict(rules, into, INCOMING, bridge),
        firewall_out=_verdict(rules, out, OUTGOING, bridge),
    )


def _verdict(
    rules: Rules, packet: PacketPattern, hooks: Sequence[str], bridge: str | None
) -> Verdict | None:
    """Return what drops a packet, on a bridge first by the rules for frames."""
    frame = None
    if bridge is not None:
        port = packet.lower[0] if len(packet.lower) == 1 else None
        into, out = (port, bridge) if packet.device is not None else (bridge, port)
        passing = attrs.evolve(packet, device=into, out=out, bridge=bridge)
        frame = rules.verdict(
            passing, *(hook for hook in hooks if hook not in ("ingress", "egress"))
        )
    return combine(each for each in (frame, rules.verdict(packet, *hooks)) if each is not None)


def _ask_all(targets: Sequence[Target], known: Sequence[RemoteFacts]) -> list[RemoteFacts]:
    """Ask all of them: each host with one segment in full, with its others only what differs.

    More would be too many questions to be answered.
    """
    hosts: dict[tuple[Address, int], list[int]] = {}
    for number, target in enumerate(targets):
        hosts.setdefault((target.remote, target.port), []).append(number)

    def ask(numbers: list[int]) -> list[RemoteFacts]:
        first = _ask(targets[numbers[0]], known[numbers[0]])
        return [first, *(_ask_briefly(targets[each], known[each], first) for each in numbers[1:])]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = pool.map(ask, hosts.values())
        found = {
            number: facts
            for numbers, of_host in zip(hosts.values(), answers, strict=True)
            for number, facts in zip(numbers, of_host, strict=True)
        }
    return [found[number] for number in range(len(targets))]


def _ask_briefly(target: Target, facts: RemoteFacts, first: RemoteFacts) -> RemoteFacts:
    """What is known of a host by what was seen of it with another segment."""
    there = first.there
    if there.delays:
        with EchoClient(target.remote, target.port, target.vni, target.local, target.dev) as echo:
            there = attrs.evolve(there, status=echo.measure_to_source_port(_BRIEFLY).status)
    return attrs.evolve(
        first,
        vni=facts.vni,
        tap=facts.tap,
        socket=facts.socket,
        source=facts.source,
        firewall=facts.firewall,
        firewall_out=facts.firewall_out,
        there=there,
    )


def _ask(target: Target, facts: RemoteFacts) -> RemoteFacts:
    """Ask a remote, and those beside it."""
    if facts.dev is None:  # This host does not reach it.
        return facts
    high = facts.dev_mtu or 1500
    with EchoClient(target.remote, target.port, target.vni, target.local, target.dev) as echo:
        there = echo.measure_to_source_port(_ECHOES)
        if there.delays:
            back = echo.measure_to_vxlan_port(_BACK) if echo.has_raw_socket else None
            facts = attrs.evolve(facts, back=back)
            with suppress(OSError):  # The device or the route has just gone.
                facts = attrs.evolve(facts, mtu_there=echo.path_mtu_to_remote(high))
                facts = attrs.evolve(facts, mtu_back=echo.path_mtu_from_remote(high))
        elif there.send_error is None:
            with suppress(OSError):
                facts = attrs.evolve(facts, mtu_there=echo.reported_path_mtu(high))
            facts = attrs.evolve(facts, pings=ping(target.remote, target.dev))
    macs = None
    if isinstance(target.remote, IPv4Address) and facts.gateway is None and facts.dev_mac:
        with suppress(OSError, ValueError):
            sender = IPv4Address(facts.source or 0)
            macs = resolve_macs(target.remote, facts.dev or "", facts.dev_mac, sender)
    return attrs.evolve(facts, there=there, macs=macs)


def _with_macs(facts: RemoteFacts, around: Surroundings) -> RemoteFacts:
    """Leave out own MACs, as of a device that answers for others, and look whose the others are."""
    if facts.macs is None:
        return facts
    macs = tuple(mac for mac in facts.macs if mac not in around.macs)
    one_host = False
    if len(macs) > 1 and facts.dev is not None and facts.source is not None:
        with suppress(OSError, ValueError):
            host, source = IPv4Address(facts.host), IPv4Address(facts.source)
            one_host = is_one_host(host, facts.dev, source, macs)
    return attrs.evolve(facts, macs=macs, one_host=one_host)


def _own_conflicts(around: Surroundings, remotes: Iterable[RemoteFacts]) -> tuple[Conflict, ...]:
    """Return the own underlay addresses that another host has too."""
    conflicts = {conflict.address: conflict for conflict in around.failed}
    used = {(facts.source, facts.dev, facts.dev_mac) for facts in remotes}
    for source, dev, mac in used:
        if source is None or ":" in source or dev is None or not mac:
            continue
        with suppress(OSError, ValueError):
            # A host answers for its addresses on all devices that it has on one link.
            found = resolve_macs(IPv4Address(source), dev, mac) or ()
            others = [other for other in found if other not in around.macs]
            if others:
                conflict = _conflict(around, source, others[0])
                conflicts[conflict.address] = conflict
    return tuple(conflicts.values())


def _conflict(around: Surroundings, address: str, mac: str) -> Conflict:
    """Return a conflict about an address of this host, with the device that has it."""
    for index, texts in around.outside.items():
        for text in texts:
            if ip_interface(text).ip == ip_address(address) and index in around.links:
                return Conflict(text, around.links[index].name, mac)
    return Conflict(address, "", mac)


async def _overlay_conflicts(
    running: Iterable[Running], around: Surroundings, vni: int | None
) -> dict[str, tuple[Conflict, ...]]:
    """Return, by TAP, the addresses of this host on the segment that another host has too.

    A gateway of its own (`--anycast-gateway`) is one that each host may have.

    Side effect: each segment sends a frame at least, so that its counters show what becomes of it.
    """
    turns = asyncio.Semaphore(_SEGMENTS_AT_ONCE)

    async def of_segment(segment: Any) -> tuple[Conflict, ...]:
        shared = {ip_address(text) for text in segment["options"]["anycast-gateway"]}
        ours = (ip_interface(text).ip for text in around.overlay(segment["dev"]))
        above = around.above(segment["dev"])
        wanted = [address for address in ours if address not in shared]
        if above is None or not wanted:
            with suppress(OSError):
                send_test_frame(segment["dev"])
            return ()
        async with turns:
            answers = await address_probe.probe_addresses(segment["dev"], above.name, wanted)
        # This host may be on the segment by another way too, and answers there for all it has.
        others = ((address, mac) for address, mac in answers if mac not in around.macs)
        return tuple(_conflict(around, str(address), mac) for address, mac in others)

    segments = [one for each in running for one in each.segments if vni in (None, one["vni"])]
    found = await asyncio.gather(*map(of_segment, segments))
    return {segment["dev"]: conflicts for segment, conflicts in zip(segments, found, strict=True)}


def _segments(
    running: Running,
    after: Any,
    around: Surroundings,
    rules: Rules,
    conflicts: Mapping[str, tuple[Conflict, ...]],
    vni: int | None,
) -> list[SegmentFacts]:
    """What there is to say of the segments of a pyvtep, and of their TAPs."""
    before = {each["vni"]: each for each in running.before["segments"]}
    counted = {each["vni"]: each for each in after["segments"]}
    found = []
    for segment in running.segments:
        if vni not in (None, segment["vni"]):
            continue
        link = around.by_name.get(segment["dev"])
        stats, then = counted.get(segment["vni"]), before.get(segment["vni"])
        found.append(
            SegmentFacts(
                vni=segment["vni"],
                tap=segment["dev"],
                mtu=segment["mtu"],
                tap_mtu=link.mtu if link is not None else segment["mtu"],
                dstport=segment["options"]["dstport"],
                up=link is not None and link.up,
                addresses=around.addresses_of(segment["dev"]),
                bridge=around.bridge_of(segment["dev"], rules),
                frames=around.frames_blocked(segment["dev"], rules),
                packets=around.packets_blocked(segment["dev"], rules),
                options=segment["options"],
                offload=frozenset(segment["offload"]),
                drops=_drops(stats, then) if stats and then else Drops(),
                conflicts=conflicts.get(segment["dev"], ()),
                socket=running.socket,
                devices=tuple(segment["underlay_devices"]),
            )
        )
    return found


def _drops(after: Any, before: Any) -> Drops:
    increase = {
        reason: count - before["drops"].get(reason, 0) for reason, count in after["drops"].items()
    }
    count = after["since_reset"]["drops"]
    return Drops(count, increase, after["last_sources"], after["last_drops"])


def _of_process(running: Running, after: Any) -> ProcessFacts:
    """Return what a process dropped that was for none of its segments."""
    segments = running.segments
    return ProcessFacts(
        _drops(_shared(after), _shared(running.before)),
        segments[0]["options"]["dstport"] if segments else vxlan.PORT,
        tuple(sorted({dev for segment in segments for dev in segment["underlay_devices"]})),
        running.socket,
    )


def _shared(stats: Any) -> Any:
    """Return the drops of a whole process without those of its segments."""
    total = stats["total"]
    drops, since = dict(total["drops"]), dict(total["since_reset"]["drops"])
    for segment in stats["segments"]:
        for reason in drops:
            drops[reason] -= segment["drops"][reason]
            since[reason] -= segment["since_reset"]["drops"][reason]
    return {**total, "drops": drops, "since_reset": {"drops": since}}
