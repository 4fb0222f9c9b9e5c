"""The examination: collects the `Facts` from this host, the running pyvteps and the remotes."""

import asyncio
import os
import platform
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import Any

import attrs

from vtep.config import Config
from vtep.config.host_names import HostName, usable_addresses
from vtep.control.client import candidates
from vtep.doctor import encryption, evpn, filtering, procfs, segment_facts
from vtep.doctor.echo import EchoClient
from vtep.doctor.facts import Conflict, Facts, HostFacts, RemoteFacts
from vtep.doctor.local_network import LocalNetwork
from vtep.doctor.neighbours import is_one_host, ping, resolve_macs, send_test_frame
from vtep.doctor.running import RunningVtep, Target, connect, netns_of, vlan_of
from vtep.errors import VtepError
from vtep.host import ipsec
from vtep.host.address_probe import probe_addresses
from vtep.host.firewall import PacketPattern
from vtep.host.netfilter import Rules
from vtep.host.netlink import session
from vtep.wire import vxlan
from vtep.wire.address import Address, without_scope

_REQUESTS = 20
"""Echo requests whose replies come to the port that they were sent from."""

_REQUESTS_TO_VXLAN_PORT = 10
_REQUESTS_STATUS = 2
"""Requests that only find out the status of a further VNI. With these numbers, and few doctors at a
time, the rate limit of a remote is not reached."""

_REMOTES_AT_ONCE = 64
_SEGMENTS_AT_ONCE = 200
"""Segments that are probed at the same time. A process usually has 1024 descriptors at most, and
each segment takes three sockets."""

_MTU_DEFAULT = 1500


def examine(
    remotes: Sequence[Address | HostName], vni: int | None, port: int | None, control: str | None
) -> Facts:
    """Examine these remotes, or all remotes of the pyvteps that run here.

    `control` is the control socket of one pyvtep to ask, instead of all.

    Raises:
        VtepError: that pyvtep does not answer, there is nothing to examine, or a name has no
            address.
    """
    with connect(control) as running:
        return _examine(running, _addresses(remotes), vni, port)


def _addresses(remotes: Iterable[Address | HostName]) -> tuple[Address, ...]:
    """Return the addresses of remotes, for names those that a segment would use.

    Own addresses of this host are among them: there is a finding for them.
    """
    found: dict[Address, None] = {}
    for remote in remotes:
        if not isinstance(remote, HostName):
            found[remote] = None
            continue
        from vtep.host.name_lookup import look_up  # noqa: PLC0415  most remotes are addresses

        answer = look_up(remote.name)
        usable = usable_addresses(Config(vni=0), answer.addresses)
        if not usable:
            reason = answer.error or "it has no address that a VTEP can have"
            raise VtepError(
                f"--remote {remote}: {reason}; see what this host finds: getent ahosts {remote}"
            )
        found.update(dict.fromkeys(usable))
    return tuple(found)


def _examine(
    running: Sequence[RunningVtep], remotes: Sequence[Address], vni: int | None, port: int | None
) -> Facts:
    """Examine as `examine` says, with connections to the running pyvteps."""
    _check_scope(running, remotes, vni)
    checksum_errors = procfs.checksum_errors()
    with session() as netlink:
        network, rules = LocalNetwork(netlink), Rules.read()
        targets = _targets(running, remotes, vni, port)
        known = [_local_facts(target, network, rules) for target in targets]
        fabrics = [] if remotes else evpn.look(running, network)
    # The probes of overlay addresses always take their full time, so run them meanwhile.
    with ThreadPoolExecutor(1) as executor:
        probing = executor.submit(asyncio.run, _overlay_conflicts(running, network, vni))
        fabric_facts = evpn.measure(fabrics)
        found = _examine_remotes(targets, known)
        conflicts = probing.result()
    silent = [target for target, facts in zip(targets, found, strict=True) if _is_silent(facts)]
    for each in running:
        each.try_tunnel(silent, network)
    found = [
        attrs.evolve(
            _without_own_macs(facts, network),
            last_seen_age=target.last_seen_age,
            through=target.through,
        )
        for target, facts in zip(targets, found, strict=True)
    ]
    stats = [each.read_stats_again() for each in running]
    ports = {target.port for target in targets} or {port or vxlan.PORT}
    return Facts(
        HostFacts(
            root=os.geteuid() == 0,
            kernel=platform.release(),
            holders=tuple(network.port_holder(each) for each in sorted(ports)),
            own_conflicts=_underlay_conflicts(network, found),
            underlay={
                dev: network.addresses_of(dev)
                for dev in sorted({each.dev for each in found if each.dev})
            },
            checksum_errors=checksum_errors,
            checksum_errors_increase=procfs.checksum_errors() - checksum_errors,
            tun_problem=procfs.tun_problem(),
            restricts_user_namespaces=procfs.restricts_user_namespaces(),
        ),
        tuple(
            segment
            for each, after in zip(running, stats, strict=True)
            for segment in segment_facts.of_segments(each, after, network, rules, conflicts, vni)
        ),
        tuple(found),
        len(running),
        tuple(
            segment_facts.of_process(each, after)
            for each, after in zip(running, stats, strict=True)
        ),
        fabric_facts,
    )


def _check_scope(
    running: Sequence[RunningVtep], remotes: Sequence[Address], vni: int | None
) -> None:
    """Raise VtepError if there is nothing to examine."""
    has_vni = any(segment["vni"] == vni for each in running for segment in each.segments)
    if vni is not None and not remotes and not has_vni:
        raise VtepError(f"--vni {vni}: no pyvtep that runs here has it")
    if not remotes and not running:
        others = [each for each in candidates() if not each.here]
        where = f"; run it there: nsenter -t {others[0].pid} -n pyvtep doctor" if others else ""
        raise VtepError(
            "no pyvtep runs in this network namespace; name a remote with --remote"
            + (f"; {others[0].process} is in another network namespace{where}" if others else "")
        )


def _is_silent(facts: RemoteFacts) -> bool:
    """Return True if a remote has sent no echo replies."""
    return not facts.there.delays and not facts.is_own


# --- remotes ----------------------------------------------------------------------------------


def _targets(
    running: Iterable[RunningVtep], remotes: Sequence[Address], vni: int | None, port: int | None
) -> list[Target]:
    """Return the remotes to examine, with the options of the segment that has them, if any."""
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


def _local_facts(target: Target, network: LocalNetwork, rules: Rules) -> RemoteFacts:
    """Return the facts about a remote that this host has without sending anything."""
    facts = RemoteFacts(
        *(str(target.remote), target.vni, target.port),
        tap=target.tap,
        socket=target.socket,
        by_evpn=target.by_evpn,
    )
    if network.is_own(target.remote):
        return attrs.evolve(facts, is_own=True)
    if target.dev is not None and target.dev not in network.by_name:
        return attrs.evolve(facts, dev_gone=target.dev)
    if target.local is not None and not network.is_own(target.local):
        return attrs.evolve(facts, local_gone=str(target.local))
    try:
        hop = network.next_hop(target.remote, target.local, target.dev)
    except VtepError as error:
        return attrs.evolve(facts, no_route=str(error), down=network.down_towards(target.remote))
    dev = target.dev or hop.dev
    own = str(without_scope(target.local)) if target.local is not None else hop.source
    host, lower = str(without_scope(target.remote)), network.lower_devices(dev)
    version = target.remote.version
    verdicts = filtering.remote_verdicts(
        rules,
        PacketPattern(version, host, target.port, dev, destination=own, lower=lower),
        PacketPattern(version, own, target.port, out=dev, destination=host, lower=lower),
        dev if network.is_bridge(dev) else None,
        one_flow=target.sends_from_port,
    )
    device = network.by_name.get(dev)
    return attrs.evolve(
        facts,
        dev=dev,
        dev_mtu=device.mtu if device is not None else None,
        dev_mac=device.mac if device is not None else None,
        encryption=encryption.of_device(device, ipsec=ipsec.has_output_policies()),
        source=str(target.local) if target.local is not None else hop.source,
        gateway=hop.gateway,
        firewall=verdicts.firewall,
        firewall_new=verdicts.firewall_new,
        firewall_out=verdicts.firewall_out,
    )


def _examine_remotes(targets: Sequence[Target], known: Sequence[RemoteFacts]) -> list[RemoteFacts]:
    """Examine all remotes. A host that is a remote of several segments is measured once.

    Full measurements for each VNI would exceed the rate at which a VTEP replies.
    """
    hosts: dict[tuple[Address, int], list[int]] = {}
    for number, target in enumerate(targets):
        hosts.setdefault((target.remote, target.port), []).append(number)

    def examine_host(numbers: list[int]) -> list[RemoteFacts]:
        first = _measure(targets[numbers[0]], known[numbers[0]])
        others = (_ask_status(targets[each], known[each], first) for each in numbers[1:])
        return [first, *others]

    with ThreadPoolExecutor(_REMOTES_AT_ONCE) as pool:
        results = pool.map(examine_host, hosts.values())
        found = {
            number: facts
            for numbers, of_host in zip(hosts.values(), results, strict=True)
            for number, facts in zip(numbers, of_host, strict=True)
        }
    return [found[number] for number in range(len(targets))]


def _ask_status(target: Target, facts: RemoteFacts, first: RemoteFacts) -> RemoteFacts:
    """Return the facts of a host in a further VNI: the measurements of `first`, another status."""
    there = first.there
    if there.delays:
        with EchoClient(target.remote, target.port, target.vni, target.local, target.dev) as echo:
            status = echo.measure_to_source_port(_REQUESTS_STATUS).status
            there = attrs.evolve(there, status=status)
    return attrs.evolve(
        first,
        vni=facts.vni,
        tap=facts.tap,
        socket=facts.socket,
        by_evpn=facts.by_evpn,
        source=facts.source,
        firewall=facts.firewall,
        firewall_new=facts.firewall_new,
        firewall_out=facts.firewall_out,
        there=there,
    )


def _measure(target: Target, facts: RemoteFacts) -> RemoteFacts:
    """Measure the path to a remote with echo requests, pings and ARP."""
    if facts.dev is None:  # This host does not reach it.
        return facts
    mtu = facts.dev_mtu or _MTU_DEFAULT
    with EchoClient(target.remote, target.port, target.vni, target.local, target.dev) as echo:
        there = echo.measure_to_source_port(_REQUESTS)
        if there.delays:
            back = None
            if echo.has_raw_socket:
                back = echo.measure_to_vxlan_port(_REQUESTS_TO_VXLAN_PORT)
            facts = attrs.evolve(facts, back=back)
            with suppress(OSError):  # The device or the route was removed meanwhile.
                facts = attrs.evolve(facts, mtu_there=echo.path_mtu_to_remote(mtu))
                facts = attrs.evolve(facts, mtu_back=echo.path_mtu_from_remote(mtu))
        elif there.send_error is None:
            with suppress(OSError):
                facts = attrs.evolve(facts, mtu_there=echo.reported_path_mtu(mtu))
            facts = attrs.evolve(facts, pings=ping(target.remote, target.dev))
    macs = None
    if isinstance(target.remote, IPv4Address) and facts.gateway is None and facts.dev_mac:
        with suppress(OSError, ValueError):
            sender = IPv4Address(facts.source or 0)
            macs = resolve_macs(target.remote, facts.dev or "", facts.dev_mac, sender)
    return attrs.evolve(facts, there=there, macs=macs)


def _without_own_macs(facts: RemoteFacts, network: LocalNetwork) -> RemoteFacts:
    """Remove own MACs, such as that of proxy ARP, and find out if the rest is one host."""
    if facts.macs is None:
        return facts
    macs = tuple(mac for mac in facts.macs if mac not in network.macs)
    one_host = False
    if len(macs) > 1 and facts.dev is not None and facts.source is not None:
        with suppress(OSError, ValueError):
            host, source = IPv4Address(facts.host), IPv4Address(facts.source)
            one_host = is_one_host(host, facts.dev, source, macs)
    return attrs.evolve(facts, macs=macs, one_host=one_host)


# --- own addresses ----------------------------------------------------------------------------


def _underlay_conflicts(
    network: LocalNetwork, remotes: Iterable[RemoteFacts]
) -> tuple[Conflict, ...]:
    """Return the own underlay addresses that another host has, too."""
    conflicts = {conflict.address: conflict for conflict in network.failed}
    used = {(facts.source, facts.dev, facts.dev_mac) for facts in remotes}
    for source, dev, mac in used:
        if source is None or ":" in source or dev is None or not mac:
            continue
        with suppress(OSError, ValueError):
            found = resolve_macs(IPv4Address(source), dev, mac) or ()
            # If this host has several devices on the link, it replies to itself by the others.
            others = [other for other in found if other not in network.macs]
            if others:
                conflict = network.conflict(source, others[0])
                conflicts[conflict.address] = conflict
    return tuple(conflicts.values())


async def _overlay_conflicts(
    running: Iterable[RunningVtep], network: LocalNetwork, vni: int | None
) -> dict[str, tuple[Conflict, ...]]:
    """Return, by TAP, the addresses of this host on the segment that another host has, too.

    Each host may have an anycast gateway (`--anycast-gateway`), so these are no conflicts.

    Side effect: each segment sends at least one frame, so that its counters show if it is dropped.
    """
    limit = asyncio.Semaphore(_SEGMENTS_AT_ONCE)

    async def of_segment(segment: Any) -> tuple[Conflict, ...]:
        if (vlan := vlan_of(segment)) is not None:
            # An address of the bridge is in a VLAN that the doctor does not know: no probe for it.
            with suppress(OSError):
                send_test_frame(segment["dev"], vlan)
            return ()
        shared = {ip_address(text) for text in segment["options"]["anycast-gateway"]}
        own = (ip_interface(text).ip for text in network.overlay_addresses(segment["dev"]))
        upper = network.upper_device(segment["dev"])
        wanted = [address for address in own if address not in shared]
        if upper is None or not wanted:
            with suppress(OSError):
                send_test_frame(segment["dev"], None)
            return ()
        async with limit:
            replies = await probe_addresses(segment["dev"], upper.name, wanted)
        # This host may be on the segment by another path, too, where it replies for its addresses.
        others = ((address, mac) for address, mac in replies if mac not in network.macs)
        return tuple(network.conflict(str(address), mac) for address, mac in others)

    segments = [
        one
        for each in running
        for one in each.segments
        if vni in (None, one["vni"]) and netns_of(one) is None
    ]
    found = await asyncio.gather(*map(of_segment, segments))
    return {segment["dev"]: conflicts for segment, conflicts in zip(segments, found, strict=True)}
