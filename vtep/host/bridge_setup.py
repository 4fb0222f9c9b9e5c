"""Bridges and veth devices, by rtnetlink: made as wanted, whatever is there already."""

import errno
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_interface
from pathlib import Path

from vtep.errors import VtepError
from vtep.host.devices import device_index
from vtep.host.links import IFF_UP, is_bridge
from vtep.host.netlink import IPRoute, NetlinkError
from vtep.wire.address import Interface

_IFA_F_NODAD = 0x02
"""From the kernel's include/uapi/linux/if_addr.h: no duplicate address detection."""


def ensure_bridge(netlink: IPRoute, name: str, mac: str, addresses: Sequence[Interface]) -> int:
    """Make a bridge with these addresses, and set it up; one that exists keeps all else it has.

    A new one has the MAC address `mac`: a bridge without one of its own takes that of a port, and
    another one when ports come and go (br_stp_recalculate_bridge_id() in the kernel's net/bridge).

    Returns: its index.

    Raises: VtepError if there is another device of that name, or the kernel refuses.
    """
    try:
        index = device_index(name)
        if index is None:
            netlink.link("add", ifname=name, kind="bridge", address=mac)
            index = device_index(name)
        if index is None:
            raise VtepError(f"bridge {name}: was removed meanwhile")
        (link,) = netlink.get_links(index)
        if not is_bridge(link):
            raise VtepError(
                f"bridge {name}: there is another device of that name (see: ip link show {name})"
            )
        # Else the kernel refuses IPv6 addresses on hosts where new devices have none.
        if any(address.version == 6 for address in addresses):
            with suppress(OSError):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("0")
        for address in addresses:
            # The address is the same on all hosts: detection of duplicates would take it away.
            flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
            netlink.addr(
                "replace",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **flags,
            )
        # Only then: each request makes an event, for which callers look at the bridge again.
        if not link["flags"] & IFF_UP:
            netlink.link("set", index=index, state="up")
    except NetlinkError as error:
        raise _refused(f"bridge {name}", error) from error
    return index


def bridge_addresses(netlink: IPRoute, name: str) -> list[Interface]:
    """Return the addresses of a bridge with their prefix lengths; none if it does not exist."""
    index = device_index(name)
    if index is None:
        return []
    return [
        ip_interface((item.get("local") or item.get("address"), item["prefixlen"]))
        for item in netlink.get_addr(index=index)
    ]


def remove_addresses(netlink: IPRoute, name: str, addresses: Sequence[Interface]) -> None:
    """Remove addresses from a bridge; what is gone already is no error.

    Raises: VtepError if the kernel refuses.
    """
    index = device_index(name)
    if index is None:
        return
    # Else the kernel removes all addresses of a subnet with the first one (__inet_del_ifa() in its
    # net/ipv4/devinet.c), and others may have been added by the administrator.
    with suppress(OSError):
        Path(f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries").write_text("1")
    for address in addresses:
        try:
            netlink.addr(
                "delete",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
            )
        except NetlinkError as error:
            if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise _refused(f"bridge {name}", error) from error


def set_mtu(netlink: IPRoute, bridge: int, mtu: int) -> None:
    """Set the MTU of a bridge, by its index. Raises: VtepError if the kernel refuses."""
    try:
        (link,) = netlink.get_links(bridge)
        if link.get("mtu") != mtu:
            netlink.link("set", index=bridge, mtu=mtu)
    except NetlinkError as error:
        raise _refused("the MTU of a bridge", error) from error


def add_veth(netlink: IPRoute, name: str, peer: str, *, bridge: int, mac: str, mtu: int) -> None:
    """Make a pair of veth devices: `name`, a port of a bridge, and `peer` with a MAC address.

    A pair of these names that exists is replaced.

    Raises: VtepError if the kernel refuses.
    """
    try:
        for old in (name, peer):
            remove_device(netlink, old)
        netlink.link(
            "add", ifname=name, kind="veth", mtu=mtu, peer={"ifname": peer, "address": mac}
        )
        index, other = device_index(name), device_index(peer)
        netlink.link("set", index=other, mtu=mtu)
        netlink.link("set", index=index, master=bridge, state="up")
    except NetlinkError as error:
        raise _refused(f"device {name}", error) from error


def set_master(netlink: IPRoute, name: str, bridge: int) -> None:
    """Make a device a port of a bridge, unless it is one or there is no such device."""
    index = device_index(name)
    if index is None:
        return
    try:
        (link,) = netlink.get_links(index)
        if link.get("master") != bridge:
            netlink.link("set", index=index, master=bridge, state="up")
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise _refused(f"device {name}", error) from error


def remove_device(netlink: IPRoute, name: str) -> None:
    """Remove a device if it is there. Raises: VtepError if the kernel refuses."""
    index = device_index(name)
    if index is None:
        return
    try:
        netlink.link("del", index=index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:  # It was removed meanwhile.
            raise _refused(f"device {name}", error) from error


def _refused(what: str, error: NetlinkError) -> VtepError:
    if error.code == errno.EPERM:
        return VtepError(f"{what}: no privilege to set it up; run as root or with CAP_NET_ADMIN")
    return VtepError(f"{what}: the kernel refused it ({error.args[1]})")
