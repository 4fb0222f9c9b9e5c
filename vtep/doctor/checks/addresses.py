"""Checks of addresses: overlay subnets that overlap the underlay, and conflicts on a segment."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

from vtep.doctor.facts import Facts, RemoteFacts, SegmentFacts
from vtep.doctor.finding import Finding, problem, warning


def remotes_of(segment: SegmentFacts, facts: Facts) -> tuple[RemoteFacts, ...]:
    """Return the remotes of a segment."""
    return tuple(remote for remote in facts.remotes if remote.tap == segment.tap)


def _own_addresses(segment: SegmentFacts) -> list[tuple[str, str]]:
    """Return the addresses of a TAP and its bridge, each with its device."""
    found = [(address, segment.tap) for address in segment.addresses]
    if segment.bridge is not None:
        found += [(address, segment.bridge.name) for address in segment.bridge.addresses]
    return found


def route_into_segment(remote: RemoteFacts, facts: Facts) -> Finding | None:
    """Report a route to a remote that leads into the very tunnel that the remote is an end of."""
    for segment in facts.segments:
        upper = segment.bridge.name if segment.bridge is not None else segment.tap
        if segment.tap != remote.tap or remote.dev not in (segment.tap, upper):
            continue
        # A bridge that extends the LAN of this host may be the underlay device itself.
        if remote.dev != segment.tap and (remote.there.delays or remote.through):
            continue
        towards = ip_address((remote.gateway or remote.host).partition("%")[0])
        title = f"the route to {remote.host} leads over {remote.dev}, into its own tunnel"
        explanation = "So what pyvtep sends to it comes back to pyvtep, and never leaves this host."
        for address, dev in _own_addresses(segment):
            if towards in ip_interface(address).network:
                return problem(
                    remote.host,
                    title,
                    f"{dev} has the address {address}, in whose subnet {towards} is. {explanation}",
                    _other_subnet(segment, address, dev),
                )
        return problem(
            remote.host,
            title,
            explanation,
            f"change the route that ip route get {remote.host} shows, or name the underlay device "
            "with --dev",
        )
    return None


def _other_subnet(segment: SegmentFacts, address: str, dev: str) -> str:
    """Return the fix for an address of a segment that is in a subnet of the underlay."""
    given = segment.options.get("address")
    option = isinstance(given, list | tuple) and address in given
    return (
        f"ip addr del {address} dev {dev}; then give {dev} an address of a subnet that is not in "
        f"use elsewhere{' (its --address too)' if option else ''}"
    )


def overlaps(segment: SegmentFacts, facts: Facts) -> Iterator[Finding]:
    """Report addresses of a segment in a subnet of the underlay, which may hide the remotes."""
    remotes = remotes_of(segment, facts)
    own = {segment.tap, segment.bridge.name if segment.bridge is not None else segment.tap}
    for address, dev in _own_addresses(segment):
        network = ip_interface(address).network
        if network.num_addresses == 1:
            continue
        for device, addresses in facts.host.underlay.items():
            beside = [text for text in addresses if _overlap(text, address)]
            used = device not in own and any(remote.dev == device for remote in remotes)
            if beside and used:
                yield warning(
                    segment.tap,
                    f"{dev} has the address {address}, and {device}, a device of the underlay, "
                    f"{beside[0]}: both are of one subnet",
                    "The kernel uses only one of the two devices for that subnet. Either the hosts "
                    "of the segment can't be reached from here or, as soon as that changes, the "
                    "remotes.",
                    _other_subnet(segment, address, dev),
                )
                break


def _overlap(one: str, other: str) -> bool:
    """Return True if the subnets of two addresses with prefix lengths overlap."""
    first, second = ip_interface(one).network, ip_interface(other).network
    if first.version != second.version:
        return False
    return first.network_address in second or second.network_address in first


def conflicts(segment: SegmentFacts) -> Iterator[Finding]:
    """Report addresses on a segment that two hosts have."""
    tap = segment.tap
    at = f" --vni {segment.vni}" + (f" --socket {segment.socket}" if segment.socket else "")
    named = segment.options.get("anycast-gateway")
    gateways = [str(each) for each in named] if isinstance(named, list | tuple) else []
    gateways += [each.address.partition("/")[0] for each in segment.conflicts if each.dev != tap]
    for conflict in segment.conflicts:
        address, dev, mac = conflict.address.partition("/")[0], conflict.dev, conflict.mac
        fix = f"give one of them another address: ip addr del {conflict.address} dev {dev}"
        if dev != tap:
            keep = " ".join(f"--anycast-gateway {gateway}" for gateway in gateways)
            fix += (
                "; or, if each host is to keep it as the gateway of its own guests, on both: "
                f"pyvtep set --vni {segment.vni} {keep}"
            )
        yield problem(
            tap,
            f"{address}, an address of {dev}, is also that of a host behind a remote",
            f"{mac} has answered for it (pyvtep fdb get {mac}{at} says via which remote). A "
            "host that asks for it on the segment gets one of the two, and it changes which.",
            fix,
        )
