"""The MTU, MAC, addresses, bridge and state of a TAP device: set up, changed and taken back."""

import errno
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, TypeAlias

from attrs import evolve, frozen

from vtep.errors import VtepError
from vtep.host.links import IFF_UP, is_bridge, port_vlans
from vtep.host.netlink import IPRoute, NetlinkError, device_index
from vtep.wire.address import Interface
from vtep.wire.ethernet import format_mac, parse_mac
from vtep.wire.icmp import MTU_MIN_V6

_BRIDGE_MTU_MIN = 1500
"""The least MTU of a TAP on a bridge: ports that join the bridge later usually have this one."""

_TAP_MTU_MAX = 65521
"""The largest MTU of a TAP: MAX_MTU less the Ethernet header in the kernel's drivers/net/tun.c."""

_GSO_MAX = 65536
"""GSO_LEGACY_MAX_SIZE in the kernel's include/linux/netdevice.h."""

Undo: TypeAlias = Callable[[IPRoute], object]
"""A function that takes back one change of a device. It raises NetlinkError if the kernel refuses.
Lists of them are to be run from the last to the first."""


@frozen
class TapSetup:
    """The wanted state of a TAP device: MTU in octets, MAC or None for any, addresses, bridge.

    `fixed` is True if the MTU was configured, and False if it was derived from the underlay.
    """

    mtu: int
    mac: bytes | None
    addresses: tuple[Interface, ...]
    bridge: str | None
    fixed: bool = False
    vlans: tuple[int, ...] = ()
    """The VLANs whose tagged frames the TAP carries; empty if its frames are not told apart."""


@frozen
class TapAttachment:
    """The place of a TAP device in the host, as `adapt` found or made it."""

    mtu: int | None
    """The MTU that pyvtep gave the TAP; None if any MTU may be changed."""
    bridge: int
    """The index of the bridge that the TAP is a port of, or 0."""
    limit: int | None
    """The MTU of this host's own packets; None on a bridge, where frames of others are larger."""
    beside: int = 0
    """The largest MTU of the bridge's other ports if that is above the TAP's, else 0. The bridge
    drops frames that exceed the MTU of the TAP, before pyvtep can fragment them."""
    unjoined: str = ""
    """Why the TAP is not a port of the configured bridge; empty if it is, or if there is none."""
    vlans: tuple[int, ...] = ()
    """The VLANs of the configured bridge that the TAP was made a member of."""


def bring_up(netlink: IPRoute, tap: str, setup: TapSetup, undo: list[Undo]) -> None:
    """Give a TAP device its MTU, MAC, addresses and bridge, and set it up.

    Only differences are written, so a device that root has prepared needs no privilege. An absent
    bridge is not an error: `adapt` joins it later.

    Side effect: appends the reverse of each change to `undo`.

    Raises:
        VtepError: there is no such device, or the kernel refused.
    """
    (link,) = netlink.get_links(_tap_index(netlink, tap))
    index = link["index"]
    bridge = device_index(netlink, setup.bridge) if setup.bridge is not None else None
    # On a bridge the MTU may be larger than the tunnel's: see `_mtu_for`, which `adapt` applies.
    larger_is_fine = bool(bridge or _bridge_of(link))
    try:
        if setup.mac is not None and parse_mac(link.get("address")) != setup.mac:
            _set_link(netlink, link, undo, address=format_mac(setup.mac))
        wanted: dict[str, Any] = {}
        mtu = link.get("mtu")
        if mtu < setup.mtu or (mtu > setup.mtu and not larger_is_fine):
            wanted["mtu"] = mtu = setup.mtu
        _check_ipv6_mtu(tap, mtu, setup.addresses)
        if not link["flags"] & IFF_UP:
            wanted["state"] = "up"
        if wanted:
            _set_link(netlink, link, undo, **wanted)
    except NetlinkError as error:
        raise _refused(tap, error, setup.mtu) from error
    _restore_addresses_on_undo(netlink, index, setup.addresses, undo)
    for address in setup.addresses:
        _add_address(netlink, tap, index, address)
    if bridge is not None and link.get("master") != bridge:
        _set_master(netlink, tap, link, setup.bridge, bridge, undo)


def change(netlink: IPRoute, tap: str, before: TapSetup, after: TapSetup, undo: list[Undo]) -> None:
    """Change a TAP device where the setup `after` differs from `before`.

    What the setups have in common is left alone, even if an administrator has changed it.

    Side effect: appends the reverse of each change to `undo`.

    Raises:
        VtepError: the kernel refused; a part may be done.
    """
    (link,) = netlink.get_links(_tap_index(netlink, tap))
    index, mtu = link["index"], link.get("mtu")
    if after.mtu != before.mtu:
        bridge = _bridge_of(link)
        mtu = _mtu_for(after.mtu, bridge, _max_port_mtu(netlink, index, bridge))
    if (after.mtu, after.addresses) != (before.mtu, before.addresses):
        _check_ipv6_mtu(tap, mtu, after.addresses)
    try:
        if after.mac not in (None, before.mac):
            _set_link(netlink, link, undo, address=format_mac(after.mac))
        if after.mtu != before.mtu:
            _set_link(netlink, link, undo, mtu=mtu)
    except NetlinkError as error:
        raise _refused(tap, error, after.mtu) from error
    if after.addresses != before.addresses:
        _restore_addresses_on_undo(netlink, index, (*before.addresses, *after.addresses), undo)
        _replace_addresses(netlink, tap, index, before.addresses, after.addresses)
    # The TAP leaves the former bridge even if the new one does not exist yet.
    master = device_index(netlink, after.bridge) or 0 if after.bridge is not None else 0
    if after.bridge != before.bridge and master != (link.get("master") or 0):
        _set_master(netlink, tap, link, after.bridge, master, undo)


def adapt(
    netlink: IPRoute,
    tap: str,
    index: int,
    attachment: TapAttachment,
    setup: TapSetup,
    superframe_max: Callable[[int], int],
) -> TapAttachment:
    """Adapt a TAP device to its present use, after any change of a link.

    - The TAP joins its bridge, if that exists and the TAP is a port of no other device.
    - Its MTU becomes that of `_mtu_for`, unless an administrator has set another MTU.
    - On its bridge, it becomes a tagged member of its VLANs, and is no member of the default one.
      What an administrator changes afterwards stays so.
    - Off a bridge, the kernel's TCP makes no superframe above `superframe_max(mtu)` octets. On a
      bridge's port, such a limit would have superframes of containers segmented in software.

    `index` tells the TAP from another device that has taken its name. `attachment` is the previous
    result.

    Returns: the attachment now. Without the privilege nothing is changed.

    Raises:
        VtepError: the device is gone, or the kernel refused for another reason than privilege.
    """
    if device_index(netlink, tap) != index:
        raise VtepError(f"--tap {tap}: it is not here any more")
    try:
        (link,) = netlink.get_links(index)
        mtu: int = link.get("mtu")
        master: int = link.get("master") or 0
        joins, unjoined = _bridge_to_join(netlink, tap, master, setup.bridge)
        bridge = joins or _bridge_of(link)
        widest = _max_port_mtu(netlink, index, bridge)
        beside = widest if widest > mtu else 0
        former = attachment.vlans if bridge == attachment.bridge and not joins else ()
        attachment = TapAttachment(
            attachment.mtu, bridge, None if bridge else mtu, beside, unjoined, former
        )
        if attachment.mtu in (None, mtu):
            wanted = _mtu_for(setup.mtu, bridge, widest)
            # At an MTU below 1280 the kernel removes all IPv6 addresses, and it does not restore
            # them later (addrconf_notify() in net/ipv6/addrconf.c).
            if wanted < MTU_MIN_V6 <= mtu and not setup.fixed and _has_ipv6(netlink, index):
                wanted = MTU_MIN_V6
            if mtu != wanted:
                netlink.link("set", index=index, mtu=wanted)
            limit = None if bridge else wanted
            attachment = TapAttachment(wanted, bridge, limit, 0, unjoined, former)
        # After the MTU: a port with a small MTU makes the bridge shrink to it.
        if joins:
            netlink.link("set", index=index, master=joins)
        if setup.vlans and bridge and bridge == device_index(netlink, setup.bridge or ""):
            _join_vlans(netlink, index, former, setup.vlans)
            attachment = evolve(attachment, vlans=setup.vlans)
        limit = _GSO_MAX if master or joins else superframe_max(min(mtu, setup.mtu))
        if link.get("gso_max_size") != min(_GSO_MAX, limit):
            netlink.link("set", index=index, gso_max_size=min(_GSO_MAX, limit))
    except NetlinkError as error:
        if error.code not in (errno.EPERM, errno.EACCES):
            raise VtepError(f"--tap {tap}: {error.args[1]}") from error
    return attachment


def remove_devices(netlink: IPRoute, devices: Iterable[str]) -> None:
    """Remove devices, all at once: one by one, each would take the kernel some 20 ms.

    The devices are put into a group, which is then deleted by one request (rtnl_group_dellink() in
    the kernel's net/core/rtnetlink.c), so the kernel waits only once for an RCU grace period.

    Raises:
        NetlinkError: the kernel refused.
    """
    group = secrets.randbits(31) | 1  # Not 0, which is the default group of all devices.
    for device in devices:
        index = device_index(netlink, device)
        if index is not None:
            netlink.link("set", index=index, group=group)
    netlink.link("del", group=group)


def _join_vlans(netlink: IPRoute, index: int, before: Sequence[int], after: Sequence[int]) -> None:
    """Make a bridge port a tagged member of VLANs, and take back those that it is to leave.

    Raises: NetlinkError. A kernel without VLAN filtering passes all tagged frames anyway.
    """
    try:
        for vlan in after:
            if vlan not in before:
                netlink.vlan_filter("add", index=index, vlan_info={"vid": vlan})
        # A new port is an untagged member of the default VLAN, whose frames would come untagged.
        leaves = set(before) if before else {*_untagged_vlans(netlink, index)}
        for vlan in leaves.difference(after):
            netlink.vlan_filter("del", index=index, vlan_info={"vid": vlan})
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise


def _untagged_vlans(netlink: IPRoute, index: int) -> list[int]:
    """Return the VLANs of which a bridge port is an untagged member."""
    return [vlan for vlan, is_tagged in port_vlans(netlink).get(index, {}).items() if not is_tagged]


# --- bridge and MTU ---------------------------------------------------------------------------


def _bridge_to_join(netlink: IPRoute, tap: str, master: int, bridge: str | None) -> tuple[int, str]:
    """Find the bridge that a TAP is to join now.

    `master` is the index of the device that the TAP is a port of, or 0.

    Returns: the index of the bridge, and ""; or 0, and why there is none to join ("" if the TAP is
    where it is to be).
    """
    if bridge is None:
        return 0, ""
    index = device_index(netlink, bridge)
    if index is None:
        return 0, f"there is no such device; create it: ip link add {bridge} type bridge"
    if master == index:
        return 0, ""
    if master:
        name = _name_of(netlink, master)
        return 0, f"{tap} is a port of {name}; move it: ip link set {tap} master {bridge}"
    (link,) = netlink.get_links(index)
    if not is_bridge(link):
        return 0, "the device of this name is not a bridge (see: ip link show type bridge)"
    return index, ""


def _name_of(netlink: IPRoute, index: int) -> str:
    """Return the name of a device, which may have been removed meanwhile."""
    try:
        (link,) = netlink.get_links(index)
    except NetlinkError:
        return "another device"
    return str(link.get("ifname"))


def _bridge_of(link: Any) -> int:
    """Return the index of the bridge that a link is a port of, or 0."""
    info = link.get("linkinfo")
    on_bridge = info is not None and info.get("slave_kind") == "bridge"
    return int(link.get("master")) if on_bridge else 0


def _max_port_mtu(netlink: IPRoute, index: int, bridge: int) -> int:
    """Return the largest MTU of a bridge's ports but the one at `index`; 0 if there are none."""
    # Without a filter of pyroute2 the kernel filters by the master, and only ports are parsed.
    ports = netlink.link("dump", dump_filter=None, master=bridge) if bridge else ()
    mtus: list[int] = [port.get("mtu") for port in ports if port["index"] != index]
    return min(max(mtus, default=0), _TAP_MTU_MAX)


def _mtu_for(tunnel_mtu: int, bridge: int, port_mtu: int) -> int:
    """Return the MTU of a TAP with which no frame is lost before pyvtep reads it.

    Off a bridge that is the tunnel's MTU, so that this host's own packets fit. But a bridge drops
    frames silently that exceed the MTU of the output port (is_skb_forwardable() in the kernel's
    net/core/dev.c). So a TAP on a bridge has at least the MTU of every other port, which is at most
    `port_mtu`, and the usual 1500 for ports that come later. Frames that exceed the tunnel MTU then
    reach pyvtep, which answers their sender with an ICMP error. That also keeps the bridge, whose
    MTU follows its smallest port (br_mtu_auto_adjust() in net/bridge/br_if.c), from shrinking.
    """
    return max(tunnel_mtu, _BRIDGE_MTU_MIN, port_mtu) if bridge else tunnel_mtu


def _set_master(
    netlink: IPRoute, tap: str, link: Any, name: str | None, bridge: int, undo: list[Undo]
) -> None:
    """Make a TAP a port of a bridge, or of none if `bridge` is 0. Raises: VtepError."""
    try:
        _set_link(netlink, link, undo, master=bridge)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise VtepError(
                f"--bridge {name}: no privilege to make {tap} a port of it: run as root, or let "
                f"root do it: ip link set {tap} master {name}"
            ) from error
        # The kernel takes a port from its bridge before it finds that the other device takes none
        # (do_set_master() in net/core/rtnetlink.c).
        index, master = link["index"], link.get("master") or 0
        undo.append(lambda connection: connection.link("set", index=index, master=master))
        raise VtepError(
            f"--bridge {name}: the kernel refused {tap} as a port ({error.args[1]}); is it a "
            "bridge? (see: ip link show type bridge)"
        ) from error


def _set_link(netlink: IPRoute, link: Any, undo: list[Undo], **wanted: Any) -> None:
    """Change attributes of a link; `link` has the former ones. Raises NetlinkError.

    Side effect: appends the reverse to `undo`.
    """
    index = link["index"]
    present = {
        "address": link.get("address"),
        "master": link.get("master") or 0,
        "mtu": link.get("mtu"),
        "state": "up" if link["flags"] & IFF_UP else "down",
    }
    former = {name: present[name] for name in wanted}
    netlink.link("set", index=index, **wanted)
    undo.append(lambda connection: connection.link("set", index=index, **former))


def _tap_index(netlink: IPRoute, tap: str) -> int:
    """Return the index of a TAP. Raises: VtepError if there is none."""
    index = device_index(netlink, tap)
    if index is None:
        raise VtepError(f"--tap {tap}: there is no such network device (see: ip link)")
    return index


def _refused(tap: str, error: NetlinkError, mtu: int) -> VtepError:
    """Return the error for a TAP that the kernel refused to change."""
    if error.code == errno.EPERM:
        return VtepError(
            f"--tap {tap}: no privilege to set it up: run as root or with CAP_NET_ADMIN, or let "
            f"root do it: ip link set {tap} up mtu {mtu}"
        )
    return VtepError(f"--tap {tap}: the kernel refused to set it up: {error.args[1]}")


# --- addresses --------------------------------------------------------------------------------


def _replace_addresses(
    netlink: IPRoute,
    tap: str,
    index: int,
    before: Sequence[Interface],
    after: Sequence[Interface],
) -> None:
    """Replace the addresses `before` of a device by `after`. Raises: VtepError."""
    for address in after:
        if address not in before:
            _add_address(netlink, tap, index, address)
    removed = [address for address in before if address not in after]
    for address in removed:
        _delete_address(netlink, tap, index, address)
    # To delete the primary IPv4 address of a subnet deletes its secondary ones, unless the sysctl
    # promote_secondaries is set (__inet_del_ifa() in net/ipv4/devinet.c). So add them again.
    networks = {address.network for address in removed if address.version == 4}
    for address in after:
        if address.network in networks:
            _add_address(netlink, tap, index, address)


def _restore_addresses_on_undo(
    netlink: IPRoute, index: int, addresses: Iterable[Interface], undo: list[Undo]
) -> None:
    """Append to `undo` a function that gives a device those of `addresses` that it has now."""
    former = {address: _has_address(netlink, index, address) for address in addresses}

    def restore(connection: IPRoute) -> None:
        # Delete first: a secondary address that is deleted with its primary one is added again.
        for address, had in former.items():
            if not had and _has_address(connection, index, address):
                _change_address(connection, "del", index, address)
        for address, had in former.items():
            if had and not _has_address(connection, index, address):
                _change_address(connection, "replace", index, address)

    undo.append(restore)


def _add_address(netlink: IPRoute, tap: str, index: int, address: Interface) -> None:
    """Add an address that the device may already have. Raises: VtepError."""
    try:
        _change_address(netlink, "replace", index, address)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            if _has_address(netlink, index, address):
                return
            raise _no_privilege(tap, "add", address) from error
        raise VtepError(
            f"--address {address}: the kernel refused it for {tap} ({error.args[1]}); "
            f"is IPv{address.version} disabled on this host?"
        ) from error


def _delete_address(netlink: IPRoute, tap: str, index: int, address: Interface) -> None:
    """Delete an address that may be gone already. Raises: VtepError without the privilege."""
    try:
        _change_address(netlink, "del", index, address)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise _no_privilege(tap, "del", address) from error


def _change_address(netlink: IPRoute, command: str, index: int, address: Interface) -> None:
    """Run a command of `ip address` ("replace" or "del"). Raises: NetlinkError."""
    prefix = address.network.prefixlen
    netlink.addr(command, index=index, address=str(address.ip), prefixlen=prefix)


def _has_address(netlink: IPRoute, index: int, address: Interface) -> bool:
    """Return True if a device has an address with this prefix length."""
    return any(
        (item.get("local") or item.get("address"), item["prefixlen"])
        == (str(address.ip), address.network.prefixlen)
        for item in netlink.get_addr(index=index)
    )


def _has_ipv6(netlink: IPRoute, index: int) -> bool:
    """Return True if a device has an IPv6 address other than its link-local one."""
    addresses = netlink.get_addr(family=socket.AF_INET6, index=index)
    return any(not ip_address(item.get("address")).is_link_local for item in addresses)


def _check_ipv6_mtu(tap: str, mtu: int, addresses: Iterable[Interface]) -> None:
    """Raise VtepError if the MTU of a TAP is too small for an IPv6 address that it is to have."""
    address = next((each for each in addresses if each.version == 6), None)
    if address is not None and mtu < MTU_MIN_V6:
        raise VtepError(
            f"--address {address}: IPv6 needs an MTU of at least {MTU_MIN_V6}, but {tap} has "
            f"{mtu}; give --mtu {MTU_MIN_V6} or more, or no IPv6 address"
        )


def _no_privilege(tap: str, command: str, address: Interface) -> VtepError:
    """Return the error for an address that an unprivileged user cannot change."""
    return VtepError(
        f"--address {address}: no privilege to {command} it: run as root or with CAP_NET_ADMIN, or "
        f"let root do it: ip address {command} {address} dev {tap}"
    )
