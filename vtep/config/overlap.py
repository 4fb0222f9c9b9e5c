"""Addresses of the TAP that would take the underlay's traffic away from the underlay.

An address brings along a route to its subnet, by way of the TAP. If a remote lies in that subnet,
datagrams to the remote are routed into the tunnel that they make up.
"""

from collections.abc import Iterable

from attrs import frozen

from vtep.wire.address import Address, Interface, Network, without_scope


@frozen
class Overlap:
    """An address of the TAP whose subnet has a remote in it, or shares addresses with the underlay.

    `other` is that remote, or a subnet of the underlay `device`.
    """

    address: Interface
    other: Address | Network
    device: str | None

    def __str__(self) -> str:
        if self.device is None:
            what = f"--remote {self.other} lies in its subnet {self.address.network}"
        else:
            what = f"its subnet overlaps {self.other} of the underlay device {self.device}"
        return (
            f"--address {self.address}: {what}, and would be routed into the tunnel; give the TAP "
            "an address of another subnet"
        )


def find_overlap(
    addresses: Iterable[Interface],
    remotes: Iterable[Address],
    underlay: Iterable[tuple[str, Network]],
) -> Overlap | None:
    """Return the first conflict between addresses of a TAP and its underlay, or None.

    `underlay` are the subnets of the devices by which the remotes are reached, each with the name
    of its device. Subnets of one address conflict with nothing, nor do IPv6 link-local ones, which
    each link has.
    """
    plain = [without_scope(remote) for remote in remotes]
    subnets = [(device, network) for device, network in underlay if _is_routed(network)]
    for address in addresses:
        network = address.network
        if not _is_routed(network):
            continue
        for remote in plain:
            if remote in network:
                return Overlap(address, remote, None)
        for device, subnet in subnets:
            if subnet.version == network.version and subnet.overlaps(network):
                return Overlap(address, subnet, device)
    return None


def _is_routed(network: Network) -> bool:
    """Return whether a subnet brings along a route that others could conflict with."""
    return network.num_addresses > 1 and not (network.version == 6 and network.is_link_local)
