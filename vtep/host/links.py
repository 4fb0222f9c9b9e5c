"""Queries about network devices, by rtnetlink."""

import socket
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import frozen

from vtep.host.devices import device_index
from vtep.host.netlink import IPRoute, NetlinkError
from vtep.wire.address import Address

IFF_UP = 1
"""From the kernel's include/uapi/linux/if.h: the device is administratively up."""

_VLAN_UNTAGGED = 1 << 2
"""BRIDGE_VLAN_INFO_UNTAGGED in the kernel's include/uapi/linux/if_bridge.h."""


@frozen
class Bridge:
    """A bridge device: its index, and its addresses without their prefixes."""

    index: int
    addresses: tuple[Address, ...]
    netfilter: bool
    """True if the firewall's rules for IP see the IPv4 frames that cross the bridge."""


def find_bridge(netlink: IPRoute, name: str) -> Bridge | None:
    """Return the bridge of this name, or None if there is none."""
    index = device_index(name)
    if index is None:
        return None
    try:
        (link,) = netlink.get_links(index)
        if not is_bridge(link):
            return None
        found = [item.get("address") for item in netlink.get_addr(index=index)]
    except NetlinkError:  # The device was removed after the look-up of its index.
        return None
    addresses = sorted(map(ip_address, found), key=lambda ip: ip.packed)
    return Bridge(index, tuple(addresses), has_bridge_netfilter(link.get("linkinfo").get("data")))


def is_bridge(link: Any) -> bool:
    """Return True if a link, as pyroute2 parsed it, is a bridge."""
    info = link.get("linkinfo")
    return info is not None and info.get("kind") == "bridge"


def has_bridge_netfilter(options: Any, version: int = 4) -> bool:
    """Return True if the firewall's rules for IP see the frames that cross a bridge.

    That is set for all bridges by net.bridge.bridge-nf-call-(ip|ip6)tables, or for one by its
    attribute nf_call_(ip|ip6)tables (br_netfilter_hooks.c in the kernel's net/bridge).

    `options` are the attributes of the bridge (IFLA_INFO_DATA), as pyroute2 parsed them. `version`
    is the IP version of the frames.
    """
    name = "iptables" if version == 4 else "ip6tables"
    if options is not None and options.get(f"br_nf_call_{name}"):
        return True
    # The file exists only while the module br_netfilter is loaded.
    with suppress(OSError):
        setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").read_text()
        return setting.strip() == "1"
    return False


@frozen
class LinkInfo:
    """The MTU of a device in octets, and the name of the device that it is a port of, if any."""

    mtu: int
    master: str | None


def find_link(netlink: IPRoute, name: str) -> LinkInfo | None:
    """Return the MTU and the master of a device, or None if there is no such device."""
    index = device_index(name)
    if index is None:
        return None
    try:
        (link,) = netlink.get_links(index)
        master = link.get("master")
        return LinkInfo(link.get("mtu"), None if master is None else socket.if_indextoname(master))
    except (NetlinkError, OSError):  # The device or its master was removed meanwhile.
        return None


def is_up(netlink: IPRoute, name: str) -> bool:
    """Return True if there is a device of this name and it is administratively up."""
    index = device_index(name)
    try:
        return index is not None and any(
            link["flags"] & IFF_UP for link in netlink.get_links(index)
        )
    except NetlinkError:
        return False


def port_vlans(netlink: IPRoute) -> dict[int, dict[int, bool]]:
    """Return the VLANs of each bridge port by its index: VLAN IDs, and True for tagged frames.

    Raises: NetlinkError if the kernel has no VLAN filtering.
    """
    found: dict[int, dict[int, bool]] = {}
    for link in netlink.get_vlans():
        spec: Any = link.get("af_spec")
        infos = spec.get_attrs("IFLA_BRIDGE_VLAN_INFO") if spec is not None else ()
        found[link["index"]] = {info["vid"]: not info["flags"] & _VLAN_UNTAGGED for info in infos}
    return found
