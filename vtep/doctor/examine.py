"""The examination: all that is asked, and of whom, for `facts`."""

import asyncio
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from typing import Any

import attrs

from vtep import asking
from vtep.doctor import host
from vtep.doctor.echo import Echo
from vtep.doctor.facts import Drops, Facts, HostFacts, RemoteFacts, SegmentFacts
from vtep.doctor.host import Surroundings
from vtep.doctor.neighbours import ping, who_has
from vtep.doctor.running import Running, Target, all_here
from vtep.errors import VtepError
from vtep.firewall import Packet
from vtep.netfilter import Rules
from vtep.netlink import session
from vtep.values import Address, without_scope
from vtep.wire import vxlan

_ECHOES = 20
_BACK = 5
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
        raise VtepError("no pyvtep runs here that could be asked; name a remote: --remote IP")
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
        attrs.evolve(facts, heard=target.heard, through=target.through)
        for target, facts in zip(targets, found, strict=True)
    ]
    stats = [each.client.stats() for each in running]
    ports = {target.port for target in targets} or {port or vxlan.PORT}
    return Facts(
        HostFacts(
            root=os.geteuid() == 0,
            kernel=platform.release(),
            holders=tuple(around.holders(each) for each in sorted(ports)),
            own_conflicts=_own_conflicts(around, found),
            checksum_errors=checksums,
            checksum_errors_meanwhile=host.checksum_errors() - checksums,
        ),
        tuple(
            segment
            for each, after in zip(running, stats, strict=True)
            for segment in _segments(each, after, around, rules, conflicts, vni)
        ),
        tuple(found),
        len(running),
        tuple(
            _drops(_shared(after), _shared(each.before))
            for each, after in zip(running, stats, strict=True)
        ),
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
    facts = RemoteFacts(str(target.remote), target.vni, target.port)
    if around.is_own(target.remote):
        return attrs.evolve(facts, is_own=True)
    try:
        way = around.way(target.remote, target.local)
    except VtepError as error:
        return attrs.evolve(facts, no_route=str(error))
    dev = target.dev or way.dev
    packet = Packet(target.remote.version, str(without_scope(target.remote)), target.port, dev)
    return attrs.evolve(
        facts,
        dev=dev,
        dev_mtu=around.by_name[dev].mtu if dev in around.by_name else None,
        dev_mac=around.by_name[dev].mac if dev in around.by_name else None,
        source=str(target.local) if target.local is not None else way.source,
        gateway=way.gateway,
        firewall=rules.verdict(packet, "prerouting", "input"),
    )


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
        with Echo(target.remote, target.port, target.vni, target.local, target.dev) as echo:
            there = attrs.evolve(there, status=echo.there(_BRIEFLY).status)
    return attrs.evolve(
        first, vni=facts.vni, source=facts.source, firewall=facts.firewall, there=there
    )


def _ask(target: Target, facts: RemoteFacts) -> RemoteFacts:
    """Ask a remote, and those beside it."""
    if facts.is_own or facts.no_route is not None:
        return facts
    high = facts.dev_mtu or 1500
    with Echo(target.remote, target.port, target.vni, target.local, target.dev) as echo:
        there = echo.there(_ECHOES)
        if there.delays:
            back = echo.back(_BACK) if echo.hears_back else None
            facts = attrs.evolve(facts, back=back)
            with suppress(OSError):  # The device or the route has just gone.
                facts = attrs.evolve(facts, mtu_there=echo.mtu_there(high))
                facts = attrs.evolve(facts, mtu_back=echo.mtu_back(high))
        elif there.send_error is None:
            with suppress(OSError):
                facts = attrs.evolve(facts, mtu_there=echo.told_mtu(high))
            facts = attrs.evolve(facts, pings=ping(target.remote, target.dev))
    macs = None
    if isinstance(target.remote, IPv4Address) and facts.gateway is None and facts.dev_mac:
        with suppress(OSError, ValueError):
            macs = who_has(target.remote, facts.dev or "", facts.dev_mac)
    return attrs.evolve(facts, there=there, macs=macs)


def _own_conflicts(around: Surroundings, remotes: Iterable[RemoteFacts]) -> dict[str, str]:
    """Own underlay addresses that somebody else has too."""
    conflicts = dict.fromkeys(around.failed, "")
    used = {(facts.source, facts.dev, facts.dev_mac) for facts in remotes}
    for source, dev, mac in used:
        if source is None or ":" in source or dev is None or not mac:
            continue
        with suppress(OSError, ValueError):
            others = who_has(IPv4Address(source), dev, mac)
            if others:
                conflicts[source] = others[0]
    return conflicts


async def _overlay_conflicts(
    running: Iterable[Running], around: Surroundings, vni: int | None
) -> dict[str, dict[str, str]]:
    """By TAP, addresses of this host on the segment that somebody beyond the tunnel has too.

    A gateway of its own (`--gateway`) is one that each host may have.
    """
    own_macs = {link.mac for link in around.links.values()}
    turns = asyncio.Semaphore(_SEGMENTS_AT_ONCE)

    async def of_segment(segment: Any) -> dict[str, str]:
        shared = {ip_address(text) for text in segment["options"]["gateway"]}
        ours = map(ip_address, around.overlay(segment["dev"]))
        above = around.above(segment["dev"])
        wanted = [address for address in ours if address not in shared]
        if above is None or not wanted:
            return {}
        async with turns:
            answers = await asking.who_has(segment["dev"], above.name, wanted)
        # This host may be on the segment by another way too, and answers there for all it has.
        return {str(address): mac for address, mac in answers if mac not in own_macs}

    segments = [one for each in running for one in each.segments if vni in (None, one["vni"])]
    found = await asyncio.gather(*map(of_segment, segments))
    return {segment["dev"]: conflicts for segment, conflicts in zip(segments, found, strict=True)}


def _segments(
    running: Running,
    after: Any,
    around: Surroundings,
    rules: Rules,
    conflicts: Mapping[str, dict[str, str]],
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
                addresses=tuple(around.outside.get(link.index, ())) if link is not None else (),
                bridge=around.bridge_of(segment["dev"], rules),
                options=segment["options"],
                offload=frozenset(segment["offload"]),
                drops=_drops(stats, then) if stats and then else Drops(),
                conflicts=conflicts.get(segment["dev"], {}),
            )
        )
    return found


def _drops(after: Any, before: Any) -> Drops:
    meanwhile = {
        reason: count - before["drops"].get(reason, 0) for reason, count in after["drops"].items()
    }
    return Drops(after["drops"], meanwhile, after["last_sources"])


def _shared(stats: Any) -> Any:
    """Of the drops of a whole process, those that are of none of its segments."""
    drops = dict(stats["total"]["drops"])
    for segment in stats["segments"]:
        for reason, count in segment["drops"].items():
            drops[reason] -= count
    return {"drops": drops, "last_sources": stats["total"]["last_sources"]}
