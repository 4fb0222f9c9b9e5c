"""Subnets that a new network must not have, since the host has them elsewhere. No I/O."""

from collections.abc import Iterable, Iterator

from attrs import frozen

from vtep.config.host_names import HostName
from vtep.docker.plugin.network import ID_DIGITS, NetworkPool, PluginNetwork
from vtep.errors import ConfigError
from vtep.wire.address import Network


@frozen
class HostSubnet:
    """A subnet of a device of the host: that of an address, or the destination of a route."""

    subnet: Network
    device: str
    is_route: bool = False


def check_subnets(
    network: PluginNetwork, others: Iterable[PluginNetwork], host: Iterable[HostSubnet]
) -> None:
    """Raise ConfigError if a subnet of a new network overlaps with one that is in use.

    `others` are the other networks of the driver, `host` the subnets of devices other than the
    bridge of the network. The route to the bridge would compete with theirs, or with that to a
    remote, and frames would vanish without a trace.

    Only a new network is checked. One that works must not end since a device came later.
    """
    others, host = list(others), list(host)
    for pool in network.pools:
        for reason in _overlaps(pool, network, others, host):
            raise ConfigError(
                f"--subnet {pool.subnet}: {reason}; choose a subnet that is not in use"
            )


def _overlaps(
    pool: NetworkPool,
    network: PluginNetwork,
    others: Iterable[PluginNetwork],
    host: Iterable[HostSubnet],
) -> Iterator[str]:
    """Yield the reasons why a network cannot have a subnet."""
    for remote in network.config.remote:
        addresses = remote.addresses if isinstance(remote, HostName) else (remote,)
        for address in addresses:
            if address in pool.subnet:
                yield f"has the address of the remote {address}, which would not be reached then"
    for other in others:
        for taken in other.pools:
            if overlap(pool.subnet, taken.subnet):
                yield f"overlaps with {taken.subnet} of the network {other.id[:ID_DIGITS]}"
    for each in host:
        # A wider route is no conflict: the kernel takes the one with the longest prefix. Many
        # hosts have such routes, for all private addresses of a site, or 0.0.0.0/1 into a VPN. A
        # wider subnet of an address is one: its neighbors would be looked for on the bridge.
        if each.is_route and each.subnet.prefixlen < pool.subnet.prefixlen:
            continue
        if overlap(pool.subnet, each.subnet):
            kind = "the route to" if each.is_route else "the subnet"
            yield f"overlaps with {kind} {each.subnet} of the device {each.device}"


def overlap(one: Network, other: Network) -> bool:
    """Return True if two subnets have a common address."""
    return one.version == other.version and (
        one.network_address in other or other.network_address in one
    )
