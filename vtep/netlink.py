"""What the host's network looks like, and how the TAP device is set up: a shell around pyroute2.

These calls block for some milliseconds, and pyroute2 runs an event loop of its own inside them.
They are for start-up, in a thread without a loop, and take part in no forwarding.
"""

import asyncio
import errno
import secrets
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from struct import Struct
from typing import Any, TypeAlias

from attrs import frozen
from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError

from vtep.errors import VtepError
from vtep.values import Address, Interface, scope_of, without_scope
from vtep.wire.ethernet import format_mac, parse_mac

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP = 1
_RTN_BROADCAST = 3
_RTMGRP_LINK = 1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV4_RULE = 0x80
_RTMGRP_IPV6_IFADDR = 0x100
_RTMGRP_IPV6_ROUTE = 0x400
_RTMGRP_IPV6_RULE = 0x40000
_RTMGRP_NEXTHOP = 0x80000000
"""Without a name in the kernel's headers: the bits of RTNLGRP_IPV6_RULE and RTNLGRP_NEXTHOP."""

_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS = 5
_EVENT_HEADER = Struct("=I12x4xi")
"""The beginnings of struct nlmsghdr, with its length, and of struct ifinfomsg, with its index."""

_EVENT_LEN = 32
"""Octets of both together; attributes follow."""

_ATTRIBUTE = Struct("=HH")
_INDEX = Struct("=i")
_IFLA_MASTER = 10

_MTU_USUAL = 1500
"""Of an underlay of which nothing is known yet, and of what may still come to a bridge."""

_TAP_MTU_MAX = 65521
"""What the kernel lets a TAP have."""

_GSO_MAX = 65536
"""The kernel's own limit (GSO_LEGACY_MAX_SIZE)."""

# From the kernel's include/uapi/linux/netlink.h and xfrm.h.
_NETLINK_XFRM = 6
_NLM_F_REQUEST = 1
_XFRMGRP_POLICY = 8
_XFRM_MSG_GETSPDINFO = 0x25
_XFRM_REQUEST = Struct("=IHHIII")
"""struct nlmsghdr, and flags of which there are none."""

_XFRM_ANSWER = Struct("=6I")
"""struct xfrmu_spdinfo: policies for what comes, leaves, is forwarded; and those of sockets."""

_XFRM_ANSWER_MAX = 512

_ADDR_GEN_MODE_NONE = 1
_INGRESS = "ffff:fff2"
_TUNNEL_FEATURES = (
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
)


@frozen
class Underlay:
    """How this host reaches the remotes: over which devices, with what MTU in octets."""

    devices: tuple[str, ...]
    mtu: int


Undo: TypeAlias = Callable[[IPRoute], object]
"""Takes back one change of a device; raises NetlinkError where the kernel refuses."""


@frozen
class Setup:
    """What a TAP device is to be: MTU in octets, MAC or None for any, addresses, bridge."""

    mtu: int
    mac: bytes | None
    addresses: tuple[Interface, ...]
    bridge: str | None


@frozen
class Place:
    """Where a TAP device is: on a bridge, by its index, or 0.

    `mtu` is what we gave it; None where it may have any that we change. `limit` is what this host's
    own packets are limited to; None on a bridge. `beside` is the largest MTU of the bridge's other
    ports if the TAP has less, else 0: what is larger than it has is lost in front of us.
    """

    mtu: int | None
    bridge: int
    limit: int | None
    beside: int = 0


@contextmanager
def session() -> Iterator[IPRoute]:
    """A connection to the kernel, which the other functions take."""
    # Not asyncio.new_event_loop(): under an installed uvloop policy that would be a uvloop, which
    # has no netlink sockets.
    with closing(asyncio.SelectorEventLoop()) as loop:
        try:
            with IPRoute(use_event_loop=loop) as netlink:
                yield netlink
        finally:
            # A transport closes its socket one round after it was told to.
            loop.run_until_complete(asyncio.sleep(0))


class Survey:
    """What this host's network looks like at the moment; asked for once, for all segments."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self._links: dict[int, Any] = {}
        self._own: dict[Address, set[int]] = {}
        self._routes: dict[tuple[Address, Address | None], tuple[int, int | None]] = {}
        for item in netlink.get_addr():
            # At the end of a point-to-point link, "address" is that of the other end.
            address = ip_address(item.get("local") or item.get("address"))
            self._own.setdefault(address, set()).add(item["index"])

    def underlay(
        self, remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None
    ) -> Underlay:
        """How to reach `remotes`, from the own addresses `locals_` if there are any.

        Raises VtepError where an address or device is not what it must be on this host.
        """
        index = None if dev is None else _index("--dev", dev)
        source: dict[int, Address] = {}
        used: dict[str, int] = {}
        for local in locals_:
            source[local.version] = local
            if not self._is_own(local, dev) and not local.is_loopback:
                raise VtepError(f"--local {local}: no interface of this host has this address")
        for remote in remotes:
            if self._is_own(remote, dev):
                raise VtepError(
                    f"--remote {remote} is an address of this host itself; give that of the other"
                )
            oif, mtu = index, None
            if scope := scope_of(remote, dev):
                oif = device_index(scope)
                if oif is None:
                    raise VtepError(
                        f"--remote {remote}: there is no network device {scope} (see: ip link)"
                    )
            elif oif is None:
                oif, mtu = self._route(remote, source.get(remote.version))
            self._use(used, oif, mtu)
        if not used and index is not None:
            self._use(used, index, None)
        return Underlay(tuple(used), min(used.values(), default=_MTU_USUAL))

    def exit(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """The index of the device by which superframes could leave whole to a remote, if any.

        There is none on a host with IPsec policies for what leaves: what leaves whole passes them
        by.
        """
        try:
            scope = scope_of(remote, dev)
            device = scope or dev
            index = device_index(device) if device else self._route(remote, local)[0]
        except VtepError:
            return None
        able = index is not None and _segments_tunnels(index) and not _has_policies()
        return index if able else None

    def _route(self, remote: Address, local: Address | None) -> tuple[int, int | None]:
        route = self._routes.get((remote, local))
        if route is None:
            route = self._routes[remote, local] = _route(self._netlink, remote, local)
        return route

    def _is_own(self, address: Address, dev: str | None) -> bool:
        scope = scope_of(address, dev)
        indices = self._own.get(without_scope(address), set())
        return bool(indices) and (scope is None or device_index(scope) in indices)

    def _use(self, used: dict[str, int], index: int, mtu: int | None) -> None:
        link = self._links.get(index)
        if link is None:
            (link,) = self._netlink.get_links(index)
            self._links[index] = link
        least = min(link.get("mtu"), mtu or link.get("mtu"))
        used[link.get("ifname")] = min(least, used.get(link.get("ifname"), least))


def _index(option: str, dev: str) -> int:
    index = device_index(dev)
    if index is None:
        raise VtepError(f"{option} {dev}: there is no such network device (see: ip link)")
    return index


def _route(netlink: IPRoute, remote: Address, local: Address | None) -> tuple[int, int | None]:
    """The output interface of the route to a remote, and the MTU of the route if it has one."""
    query = {"family": _FAMILY[remote.version], "dst": str(remote)}
    if local is not None:
        query["src"] = str(without_scope(local))
    try:
        (route,) = netlink.route("get", **query)
    except NetlinkError as error:
        raise VtepError(
            f"--remote {remote}: this host has no route to it{f' from {local}' if local else ''} "
            f"({error.args[1]}); add one, or name the underlay device with --dev"
        ) from error
    if route["type"] == _RTN_BROADCAST:
        raise VtepError(f"--remote {remote}: is a broadcast address; give the address of a VTEP")
    metrics = route.get("metrics")
    return route.get("oif"), metrics.get("mtu") if metrics is not None else None


@frozen
class Bridge:
    """A bridge device of this host: its index, and its addresses without their prefixes."""

    index: int
    addresses: tuple[Address, ...]
    netfilter: bool
    """Whether the firewall's rules for IP see the frames on it."""


def bridge(netlink: IPRoute, name: str) -> Bridge | None:
    """What is to be known of a bridge, or None if there is no such bridge."""
    index = device_index(name)
    if index is None:
        return None
    try:
        (link,) = netlink.get_links(index)
        info = link.get("linkinfo")
        if info is None or info.get("kind") != "bridge":
            return None
        found = [item.get("address") for item in netlink.get_addr(index=index)]
    except NetlinkError:  # It was removed meanwhile.
        return None
    addresses = sorted(map(ip_address, found), key=lambda ip: ip.packed)
    return Bridge(index, tuple(addresses), sees_bridge(info.get("data")))


def sees_bridge(options: Any, version: int = 4) -> bool:
    """Whether the firewall's rules for IP see frames on a bridge: of all, or of this one.

    `options` are those of the bridge, as pyroute2 has them. `version` is that of IP.
    """
    name = "iptables" if version == 4 else "ip6tables"
    if options is not None and options.get(f"br_nf_call_{name}"):
        return True
    with suppress(OSError):
        setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").read_text()
        return setting.strip() == "1"
    return False


@frozen
class Device:
    """A device of this host: its MTU in octets, and the bridge that it is a port of, if any."""

    mtu: int
    bridge: str | None


def device(netlink: IPRoute, name: str) -> Device | None:
    """What is to be known of a device, or None if there is no such device."""
    index = device_index(name)
    if index is None:
        return None
    try:
        (link,) = netlink.get_links(index)
        master = link.get("master")
        return Device(link.get("mtu"), None if master is None else socket.if_indextoname(master))
    except (NetlinkError, OSError):  # One of them was removed meanwhile.
        return None


def is_up(netlink: IPRoute, name: str) -> bool:
    """Whether there is a device of this name, and it is up."""
    index = device_index(name)
    try:
        return index is not None and any(
            link["flags"] & _IFF_UP for link in netlink.get_links(index)
        )
    except NetlinkError:
        return False


def device_index(name: str) -> int | None:
    """The index of a device, by its name or an alternative one; None if there is no such device."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def watch() -> socket.socket:
    """A non-blocking socket that becomes readable when something about any link has changed."""
    return _events(_RTMGRP_LINK)


def watch_routes() -> socket.socket:
    """The same for any route, policy rule or nexthop."""
    return _events(
        _RTMGRP_IPV4_ROUTE
        | _RTMGRP_IPV6_ROUTE
        | _RTMGRP_IPV4_RULE
        | _RTMGRP_IPV6_RULE
        | _RTMGRP_NEXTHOP
    )


def watch_addresses() -> socket.socket:
    """The same for any address; for one of IPv6 also when it has been checked for duplicates."""
    return _events(_RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR)


def watch_policies() -> socket.socket | None:
    """The same for any IPsec policy; None where the kernel has no IPsec."""
    try:
        return _events(_XFRMGRP_POLICY, _NETLINK_XFRM)
    except OSError:
        return None


def _has_policies() -> bool:
    """Whether there are IPsec policies for what leaves this host."""
    request = _XFRM_REQUEST.pack(_XFRM_REQUEST.size, _XFRM_MSG_GETSPDINFO, _NLM_F_REQUEST, 1, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_XFRM) as asking:
            asking.settimeout(1)
            asking.send(request)
            answer = asking.recv(_XFRM_ANSWER_MAX)
        at = _XFRM_REQUEST.size + _ATTRIBUTE.size
        outgoing: int
        of_sockets: int
        _, outgoing, _, _, of_sockets, _ = _XFRM_ANSWER.unpack_from(answer, at)
    except OSError as error:
        return error.errno != errno.EPROTONOSUPPORT
    except struct.error:
        return True  # It is not said that there are none.
    return outgoing > 0 or of_sockets > 0


def _events(groups: int, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    # An overrun is no error here, since any event says as much as all of them; and an error would
    # make a loop that polls this socket give it up.
    events.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
    events.bind((0, groups))
    return events


def links_of(events: bytes) -> set[int]:
    """Indices of the links, and of their bridges, that are told of in what `watch` received."""
    indices = set()
    at = 0
    while at + _EVENT_HEADER.size <= len(events):
        length, index = _EVENT_HEADER.unpack_from(events, at)
        indices.add(index)
        end = at + max(length + 3 & ~3, _EVENT_HEADER.size)
        at += _EVENT_LEN
        while at + _ATTRIBUTE.size + _INDEX.size <= min(end, len(events)):
            length, kind = _ATTRIBUTE.unpack_from(events, at)
            if kind == _IFLA_MASTER:
                indices.update(_INDEX.unpack_from(events, at + _ATTRIBUTE.size))
            at += max(length + 3 & ~3, _ATTRIBUTE.size)
        at = end
    return indices


def adapt(
    netlink: IPRoute,
    tap: str,
    number: int,
    place: Place,
    setup: Setup,
    superframe_max: Callable[[int], int],
) -> Place:
    """Fit a TAP device to what it is used for now, and tell what that is.

    `number` is its index, so that another device that has its name now is left alone. `place` is
    what was told before.

    It becomes a port of its bridge, if there is such a device and the TAP is on none. Its MTU
    becomes that of `_mtu_for`, unless somebody has set another one since. The kernel's own TCP is
    told to make no superframe larger than `superframe_max` of the MTU. Not on a bridge's port:
    superframes of containers, who don't know of it, would be cut in software. Without the privilege
    nothing is changed. Raises VtepError where there is no such device.
    """
    if device_index(tap) != number:
        raise VtepError(f"--tap {tap}: it is not here any more")
    try:
        (link,) = netlink.get_links(number)
        mtu: int = link.get("mtu")
        master: int = link.get("master") or 0
        joins = 0 if master or setup.bridge is None else device_index(setup.bridge) or 0
        bridge = joins or _bridge_of(link)
        widest = _widest(netlink, number, bridge)
        place = Place(place.mtu, bridge, None if bridge else mtu, widest if widest > mtu else 0)
        if place.mtu in (None, mtu):
            wanted = _mtu_for(setup.mtu, bridge, widest)
            if mtu != wanted:
                netlink.link("set", index=number, mtu=wanted)
            place = Place(wanted, bridge, None if bridge else wanted)
        if joins:
            netlink.link("set", index=number, master=joins)
        limit = _GSO_MAX if master or joins else superframe_max(min(mtu, setup.mtu))
        if link.get("gso_max_size") != min(_GSO_MAX, limit):
            netlink.link("set", index=number, gso_max_size=min(_GSO_MAX, limit))
    except NetlinkError as error:
        if error.code not in (errno.EPERM, errno.EACCES):
            raise VtepError(f"--tap {tap}: {error.args[1]}") from error
    return place


def _bridge_of(link: Any) -> int:
    """The index of the bridge that a link is a port of, or 0."""
    info = link.get("linkinfo")
    on_bridge = info is not None and info.get("slave_kind") == "bridge"
    return int(link.get("master")) if on_bridge else 0


def _widest(netlink: IPRoute, index: int, bridge: int) -> int:
    """The largest MTU of a bridge's other ports; 0 if there are none."""
    ports = netlink.link("dump", master=bridge) if bridge else ()
    mtus: list[int] = [port.get("mtu") for port in ports if port["index"] != index]
    return min(max(mtus, default=0), _TAP_MTU_MAX)


def _mtu_for(tunnel: int, bridge: int, widest: int) -> int:
    """The MTU that a TAP device must have so that nothing is lost in front of us.

    It is the tunnel's, so that this host's own packets fit. But a bridge drops without a word what
    is larger than the MTU of the port by which it is to leave. There the TAP has as much as any
    other port, and no less than ports usually have; what is larger than the tunnel carries then
    reaches us, and its sender gets an answer. It also keeps the bridge itself, which takes the MTU
    of its narrowest port, from shrinking to that of the tunnel.
    """
    return max(tunnel, _MTU_USUAL, widest) if bridge else tunnel


def bring_up(netlink: IPRoute, tap: str, setup: Setup, undo: list[Undo]) -> None:
    """Give a TAP device its MTU, MAC, addresses and bridge, and set it up.

    Only differences are written, so a device that root prepared needs no privilege. A bridge that
    is not there yet is no error. Raises VtepError where the kernel refuses.

    Side effect: appends to `undo` what takes back each change that was made.
    """
    (link,) = netlink.get_links(_index("--tap", tap))
    index = link["index"]
    bridge = device_index(setup.bridge) if setup.bridge is not None else None
    # On a bridge it may be larger, and `adapt` sees to that.
    least_is_enough = bool(bridge or _bridge_of(link))
    try:
        if setup.mac is not None and parse_mac(link.get("address")) != setup.mac:
            _set(netlink, link, undo, address=format_mac(setup.mac))
        wanted: dict[str, Any] = {}
        mtu = link.get("mtu")
        if mtu < setup.mtu or (mtu > setup.mtu and not least_is_enough):
            wanted["mtu"] = setup.mtu
        if not link["flags"] & _IFF_UP:
            wanted["state"] = "up"
        if wanted:
            _set(netlink, link, undo, **wanted)
    except NetlinkError as error:
        raise _refused(tap, error, setup.mtu) from error
    _remember_addresses(netlink, index, setup.addresses, undo)
    for address in setup.addresses:
        _add_address(netlink, tap, index, address)
    if bridge is not None and link.get("master") != bridge:
        _enslave(netlink, tap, link, setup.bridge, bridge, undo)


def reshape(netlink: IPRoute, tap: str, before: Setup, after: Setup, undo: list[Undo]) -> None:
    """Make of a TAP device what it is to be `after`, where that is not as it was `before`.

    Raises VtepError where the kernel refuses, having done a part of it perhaps.

    Side effect: appends to `undo` what takes back each change that was made.
    """
    (link,) = netlink.get_links(_index("--tap", tap))
    index = link["index"]
    try:
        if after.mac not in (None, before.mac):
            _set(netlink, link, undo, address=format_mac(after.mac))
        if after.mtu != before.mtu:
            widest = _widest(netlink, index, _bridge_of(link))
            _set(netlink, link, undo, mtu=_mtu_for(after.mtu, _bridge_of(link), widest))
    except NetlinkError as error:
        raise _refused(tap, error, after.mtu) from error
    if after.addresses != before.addresses:
        _remember_addresses(netlink, index, (*before.addresses, *after.addresses), undo)
    for address in after.addresses:
        if address not in before.addresses:
            _add_address(netlink, tap, index, address)
    removed = [address for address in before.addresses if address not in after.addresses]
    for address in removed:
        _delete_address(netlink, tap, index, address)
    # The first IPv4 address of a subnet takes the others along, unless promote_secondaries is on.
    networks = {address.network for address in removed if address.version == 4}
    for address in after.addresses:
        if address.network in networks:
            _add_address(netlink, tap, index, address)
    if after.bridge != before.bridge:
        bridge = device_index(after.bridge) if after.bridge is not None else 0
        if bridge is not None:
            _enslave(netlink, tap, link, after.bridge, bridge, undo)


def _set(netlink: IPRoute, link: Any, undo: list[Undo], **wanted: Any) -> None:
    """Change attributes of a link, which was as `link` says; raises NetlinkError."""
    index = link["index"]
    was = {
        "address": link.get("address"),
        "master": link.get("master") or 0,
        "mtu": link.get("mtu"),
        "state": "up" if link["flags"] & _IFF_UP else "down",
    }
    former = {name: was[name] for name in wanted}
    netlink.link("set", index=index, **wanted)
    undo.append(lambda connection: connection.link("set", index=index, **former))


def remove(netlink: IPRoute, devices: Iterable[str]) -> None:
    """Remove devices, all at once: one by one, each would take the kernel some 20 ms.

    Raises NetlinkError where the kernel refuses.
    """
    group = secrets.randbits(31) | 1  # Of 0 are all devices that nobody has put into a group.
    for device in devices:
        index = device_index(device)
        if index is not None:
            netlink.link("set", index=index, group=group)
    netlink.link("del", group=group)


def _enslave(
    netlink: IPRoute, tap: str, link: Any, name: str | None, bridge: int, undo: list[Undo]
) -> None:
    """Make a device a port of a bridge, or with 0 of none."""
    try:
        _set(netlink, link, undo, master=bridge)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            what = f"--bridge {name}: no privilege to make {tap} a port of it: run as root, or let "
            raise VtepError(f"{what}root do it: ip link set {tap} master {name}") from error
        # The kernel takes a port from its bridge before it finds that the other one is none.
        index, master = link["index"], link.get("master") or 0
        undo.append(lambda connection: connection.link("set", index=index, master=master))
        raise VtepError(
            f"--bridge {name}: the kernel refused {tap} as a port ({error.args[1]}); is it a "
            "bridge? (see: ip link show type bridge)"
        ) from error


def _change_address(netlink: IPRoute, what: str, index: int, address: Interface) -> None:
    prefix = address.network.prefixlen
    netlink.addr(what, index=index, address=str(address.ip), prefixlen=prefix)


def _add_address(netlink: IPRoute, tap: str, index: int, address: Interface) -> None:
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


def _remember_addresses(
    netlink: IPRoute, index: int, addresses: Iterable[Interface], undo: list[Undo]
) -> None:
    """Have those of the addresses that a device has now be those that it has after `undo`."""
    former = {address: _has_address(netlink, index, address) for address in addresses}

    def restore(connection: IPRoute) -> None:
        # Deleted first: who else is deleted along with a first address is added again then.
        for address, had in former.items():
            if not had and _has_address(connection, index, address):
                _change_address(connection, "del", index, address)
        for address, had in former.items():
            if had and not _has_address(connection, index, address):
                _change_address(connection, "replace", index, address)

    undo.append(restore)


def _has_address(netlink: IPRoute, index: int, address: Interface) -> bool:
    return any(
        (item.get("local") or item.get("address"), item["prefixlen"])
        == (str(address.ip), address.network.prefixlen)
        for item in netlink.get_addr(index=index)
    )


def _delete_address(netlink: IPRoute, tap: str, index: int, address: Interface) -> None:
    try:
        _change_address(netlink, "del", index, address)
    except NetlinkError as error:
        if error.code == errno.EPERM:
            raise _no_privilege(tap, "del", address) from error
        # Otherwise somebody has removed it before.


def _no_privilege(tap: str, what: str, address: Interface) -> VtepError:
    return VtepError(
        f"--address {address}: no privilege to {what} it: run as root or with CAP_NET_ADMIN, or "
        f"let root do it: ip address {what} {address} dev {tap}"
    )


def _refused(tap: str, error: NetlinkError, mtu: int) -> VtepError:
    if error.code == errno.EPERM:
        return VtepError(
            f"--tap {tap}: no privilege to set it up: run as root or with CAP_NET_ADMIN, or let "
            f"root do it: ip link set {tap} up mtu {mtu}"
        )
    return VtepError(f"--tap {tap}: the kernel refused to set it up: {error.args[1]}")


def divert(netlink: IPRoute, device: str, program: int) -> None:
    """Bring a device up, and have a BPF program say what becomes of all that arrives there.

    It gets no IPv6 address, and so sends nothing by itself. Raises OSError.
    """
    try:
        index = socket.if_nametoindex(device)
        no_address = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]}
        family = {"attrs": [("AF_INET6", no_address)]}
        netlink.link("set", index=index, IFLA_AF_SPEC=family)
        netlink.link("set", index=index, state="up")
        netlink.tc("add", "clsact", index)
        netlink.tc(
            *("add-filter", "bpf", index, ":1"),
            fd=program,
            name="pyvtep",
            parent=_INGRESS,
            classid=1,
            direct_action=True,
        )
    except NetlinkError as error:
        raise OSError(error.code, error.args[1]) from error


def _segments_tunnels(device: int) -> bool:
    """Whether a device cuts superframes inside a UDP tunnel, or needs not: `ethtool -k`."""
    try:
        with closing(IoctlEthtool(socket.if_indextoname(device))) as ethtool:
            features = ethtool.get_features()
            return all(name in features and features[name] for name in _TUNNEL_FEATURES)
    except (OSError, EthtoolError):  # As of a device that somebody removes meanwhile.
        return False
