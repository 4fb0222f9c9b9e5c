"""Addresses of the TAP that would take the underlay's traffic away from the underlay.

An address brings a connected route to its subnet, which leads over the TAP. If a remote is in that
subnet, datagrams to the remote are routed into the tunnel that they carry.
"""

from collections.abc import Iterable

from attrs import frozen

from vtep.wire.address import Address, Interface, Network, without_scope


@frozen
class Overlap:
    """An address of the TAP whose subnet contains a remote, or overlaps one of the underlay.

    `other` is the remote, and `device` None; or `other` is a subnet of the underlay `device`.
    """

    address: Interface
    other: Address | Network
    device: str | None

    def __str__(self) -> str:
        if self.device is None:
            what = f"--remote {self.other} is in its subnet {self.address.network}"
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
    """Return the first overlap of addresses of a TAP with its remotes or its underlay, or None.

    `underlay` are the subnets of the devices that the remotes are reached over, each with the name
    of its device. Subnets of one address bring no route, and each link has the IPv6 link-local
    subnet: neither overlaps with anything.
    """
    routed = [address for address in addresses if _is_routed(address.network)]
    if not routed:  # As for most segments, of which some have thousands of remotes.
        return None
    plain = [without_scope(remote) for remote in remotes]
    subnets = [(device, network) for device, network in underlay if _is_routed(network)]
    for address in routed:
        network = address.network
        for remote in plain:
            if remote in network:
                return Overlap(address, remote, None)
        for device, subnet in subnets:
            if subnet.version == network.version and subnet.overlaps(network):
                return Overlap(address, subnet, device)
    return None


def _is_routed(network: Network) -> bool:
    """Return whether an address of this subnet brings a route that can take traffic away."""
    return network.num_addresses > 1 and not (network.version == 6 and network.is_link_local)
