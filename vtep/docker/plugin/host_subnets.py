"""The subnets of the devices of this host, by rtnetlink."""

import socket
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from vtep.docker.plugin.overlaps import HostSubnet
from vtep.host.netlink import IPRoute

_RT_TABLE_MAIN = 254
_RTN_UNICAST = 1
"""From the kernel's include/uapi/linux/rtnetlink.h."""


def read_subnets(netlink: IPRoute, bridge: str) -> list[HostSubnet]:
    """Return the subnets of all devices but a bridge, of addresses and of routes."""
    names = {link["index"]: str(link.get("ifname")) for link in netlink.get_links()}
    found = [*_subnets_of_addresses(netlink, names), *_destinations_of_routes(netlink, names)]
    return [each for each in found if each.device != bridge]


def _subnets_of_addresses(netlink: IPRoute, names: dict[int, str]) -> Iterator[HostSubnet]:
    for item in netlink.get_addr():
        device = names.get(item["index"], "?")
        # On a point-to-point link, IFA_ADDRESS is that of the peer, which has the prefix length.
        network = ip_network((item.get("address"), item["prefixlen"]), strict=False)
        yield HostSubnet(network, device)
        if local := item.get("local"):
            yield HostSubnet(ip_network(local), device)


def _destinations_of_routes(netlink: IPRoute, names: dict[int, str]) -> Iterator[HostSubnet]:
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in netlink.get_routes(family=family, table=_RT_TABLE_MAIN):
            destination = route.get("dst")
            # Default routes have no destination. Others than unicast are no way to a device.
            if destination is not None and route["type"] == _RTN_UNICAST:
                network = ip_network((destination, route["dst_len"]))
                for index in _devices(route):
                    yield HostSubnet(network, names.get(index, "?"), is_route=True)


def _devices(route: Any) -> list[int]:
    """Return the indices of the devices of a route, of which a multipath route has several."""
    if (index := route.get("oif")) is not None:
        return [index]
    return [hop["oif"] for hop in route.get("multipath") or ()]
