"""What the host's network looks like, and how the TAP device is set up: a shell around pyroute2.

These calls block for some milliseconds, and pyroute2 runs an event loop of its own inside them.
They are for start-up, in a thread without a loop, and take part in no forwarding.
"""

import asyncio
import errno
import secrets
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from struct import Struct
from typing import Any, TypeAlias

from attrs import frozen
from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import EthtoolError, IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError

from vtep import descriptors
from vtep.errors import VtepError
from vtep.host.devices import device_index, need_device_index
from vtep.wire.address import Address, Interface, Network, scope_of, without_scope
from vtep.wire.ethernet import format_mac, parse_mac
from vtep.wire.icmp import MTU_MIN_V6

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP = 1
_RTN_BROADCAST = 3
_RTM_F_FIB_MATCH = 0x2000
"""From the kernel's include/uapi/linux/rtnetlink.h: ask for the entry of the table (Linux 4.13)."""

_RTMGRP_LINK = 1
_RTMGRP_ROUTE = 0x40 | 0x80 | 0x400 | 0x40000 | 0x80000000
"""RTMGRP_IPV4_ROUTE and _IPV4_RULE, the same of IPv6, and the bit of RTNLGRP_NEXTHOP. The kernel's
headers have no names for the last two bits."""

_RTMGRP_IFADDR = 0x10 | 0x100

_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40
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

_SESSION_DESCRIPTORS = 6
"""More than an event loop and the sockets of pyroute2 take."""

# From the kernel's include/uapi/linux/netlink.h, rtnetlink.h and if_link.h.
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_GETLINK = 18
_IFLA_EXT_MASK = 29
_SKIP_STATS = 8
_MESSAGE = Struct("=IH")
_LINK_REQUEST = Struct("=IHHIIB15x")
"""struct nlmsghdr, and struct ifinfomsg with its family."""

_DUMP_MAX = 1 << 16

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
    """How this host reaches the remotes: over which devices, with what MTU in octets.

    `missing` names what is absent now and may appear later, such as a route. `networks` are the
    subnets of the devices, each with the name of its device.
    """

    devices: tuple[str, ...]
    mtu: int
    missing: tuple[str, ...] = ()
    networks: tuple[tuple[str, Network], ...] = ()


Undo: TypeAlias = Callable[[IPRoute], object]
"""Takes back one change of a device; raises NetlinkError where the kernel refuses."""


@frozen
class Setup:
    """What a TAP device is to be: MTU in octets, MAC or None for any, addresses, bridge.

    `fixed` says that the MTU was asked for, rather than derived from the underlay.
    """

    mtu: int
    mac: bytes | None
    addresses: tuple[Interface, ...]
    bridge: str | None
    fixed: bool = False


@frozen
class TapAttachment:
    """Where a TAP device is: on a bridge, by its index, or 0.

    `mtu` is what we gave it; None where it may have any that we change. `limit` is what this host's
    own packets are limited to; None on a bridge. `beside` is the largest MTU of the bridge's other
    ports if the TAP has less, else 0: what is larger than it has is lost in front of us. `unjoined`
    says why the TAP is not a port of the configured bridge; empty if it is, or if there is none.
    """

    mtu: int | None
    bridge: int
    limit: int | None
    beside: int = 0
    unjoined: str = ""


@contextmanager
def session() -> Iterator[IPRoute]:
    """Give a connection to the kernel, which the other functions take.

    Raises ShortageError where descriptors do not suffice, also for what is done with it.
    """
    # Not asyncio.new_event_loop(): under an installed uvloop policy that would be a uvloop, which
    # has no netlink sockets.
    with descriptors.explained("look at this host's network"):
        descriptors.require(_SESSION_DESCRIPTORS)
        with closing(asyncio.SelectorEventLoop()) as loop:
            try:
                with IPRoute(use_event_loop=loop) as netlink:
                    yield netlink
            finally:
                # A transport closes its socket one round after it was told to.
                loop.run_until_complete(asyncio.sleep(0))


class HostRoutes:
    """What this host's network looks like at the moment; asked for once, for all segments."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self._links: dict[int, Any] = {}
        self._own: dict[Address, dict[int, int]] = {}
        """By own address, the flags that it has on each device."""
        self._networks: dict[int, list[Network]] = {}
        self._broadcasts: set[tuple[int, str]] = set()
        self._routes: dict[tuple[Address, Address | None, int | None], _Route | _NoRouteError] = {}
        for item in netlink.get_addr():
            # At the end of a point-to-point link, "address" is that of the other end.
            address = ip_address(item.get("local") or item.get("address"))
            index: int = item["index"]
            self._own.setdefault(address, {})[index] = item.get("flags") or 0
            network = ip_network((item.get("address"), item["prefixlen"]), strict=False)
            self._networks.setdefault(index, []).append(network)
            if broadcast := item.get("broadcast"):
                self._broadcasts.add((index, broadcast))

    def underlay(
        self, remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None
    ) -> Underlay:
        """Return how to reach `remotes`, from the own addresses `locals_` if there are any.

        A route, a device or an own address that is absent may appear later: it is `missing`.

        Raises VtepError where a remote can never be one: an own address, a broadcast address.
        """
        missing: list[str] = []
        index = None if dev is None else device_index(dev)
        if dev is not None and index is None:
            missing.append(f"no network device --dev {dev}")
        source: dict[int, Address] = {}
        for local in locals_:
            if reason := self._why_unusable(local, dev):
                missing.append(reason)
            else:
                source[local.version] = local
        used: dict[int, int | None] = {}
        for remote in remotes:
            if self._is_own(remote, dev):
                raise VtepError(
                    f"--remote {remote} is an address of this host itself; give that of the other"
                )
            try:
                route = self._to(remote, source.get(remote.version), dev, index)
            except _NoRouteError as error:
                missing += filter(None, error.args)
            else:
                if route.is_broadcast or (route.device, str(remote)) in self._broadcasts:
                    raise VtepError(
                        f"--remote {remote}: is a broadcast address; give the address of a VTEP"
                    )
                if not route.has_source and source.get(remote.version) is None:
                    missing.append(f"no own address to reach --remote {remote} from")
                mtus = (used.get(route.device), route.mtu)
                used[route.device] = min((mtu for mtu in mtus if mtu is not None), default=None)
        if not used and index is not None:
            used[index] = None
        return self._over(used, missing)

    def _over(self, used: Mapping[int, int | None], missing: list[str]) -> Underlay:
        """Return the underlay of these devices, given the least MTU of the routes over each."""
        names: dict[str, int] = {}
        networks: list[tuple[str, Network]] = []
        for index, mtu in used.items():
            link = self._link(index)
            if link is None:
                missing.append(f"no network device with index {index}")
                continue
            name, own = link.get("ifname"), link.get("mtu")
            names[name] = min(own, mtu or own)
            networks += ((name, network) for network in self._networks.get(index, ()))
        least = min(names.values(), default=_MTU_USUAL)
        return Underlay(tuple(names), least, tuple(dict.fromkeys(missing)), tuple(networks))

    def _to(
        self, remote: Address, local: Address | None, dev: str | None, index: int | None
    ) -> "_Route":
        """Return the route to a remote; raises _NoRouteError, saying what is missing if it is new.

        `index` is that of `dev`, over which all remotes are reached if it is given.
        """
        scope = scope_of(remote, dev)
        if scope is not None and scope != dev:
            index = device_index(scope)
            if index is None:
                raise _NoRouteError(f"no network device {scope} for --remote {remote}")
        if index is None and dev is not None:
            raise _NoRouteError  # That --dev is missing has been noted.
        return self._route(remote, local, index)

    def _why_unusable(self, local: Address, dev: str | None) -> str | None:
        """Return why no socket can be bound to an own address now; None if one can."""
        if local.is_loopback:
            return None
        if not self._is_own(local, dev):
            return f"no interface has --local {local}"
        flags = self._own[without_scope(local)].values()
        if all(each & _IFA_F_DADFAILED for each in flags):
            return f"--local {local} belongs to another host (duplicate address detection failed)"
        if all(each & _IFA_F_TENTATIVE and not each & _IFA_F_OPTIMISTIC for each in flags):
            return f"--local {local} is tentative (duplicate address detection is not finished)"
        return None

    def egress_device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """Return the index of the device to a remote, or None if it can't do tunnel GSO.

        No device can on a host with IPsec policies for outgoing packets: a packet that is sent with
        tunnel GSO is not encrypted (see `vtep.tunnel_gso.device`).
        """
        index = self.device(remote, local, dev)
        able = index is not None and _segments_tunnels(index) and not _has_policies()
        return index if able else None

    def device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """Return the index of the device by which a remote is reached, if it is at all."""
        try:
            device = scope_of(remote, dev) or dev
            return device_index(device) if device else self._route(remote, local, None).device
        except _NoRouteError:
            return None

    def _route(self, remote: Address, local: Address | None, device: int | None) -> "_Route":
        route = self._routes.get((remote, local, device))
        if route is None:
            try:
                route = _route(self._netlink, remote, local, device)
            except _NoRouteError as error:
                route = error
            self._routes[remote, local, device] = route
        if isinstance(route, _NoRouteError):
            raise route
        return route

    def _is_own(self, address: Address, dev: str | None) -> bool:
        scope = scope_of(address, dev)
        indices = self._own.get(without_scope(address), {})
        return bool(indices) and (scope is None or device_index(scope) in indices)

    def _link(self, index: int) -> Any:
        """Return a device, or None if it was removed meanwhile."""
        link = self._links.get(index)
        if link is None:
            try:
                (link,) = self._netlink.get_links(index)
            except NetlinkError:
                return None
            self._links[index] = link
        return link


class _NoRouteError(Exception):
    """There is no route now; the argument says what is missing."""


@frozen
class _Route:
    """A route to a remote: the index of its output device, and its own MTU if it has one.

    Without `has_source`, this host has no address that answers could be sent to.
    """

    device: int
    mtu: int | None
    is_broadcast: bool = False
    has_source: bool = True


def _index(option: str, dev: str) -> int:
    index = device_index(dev)
    if index is None:
        raise VtepError(f"{option} {dev}: there is no such network device (see: ip link)")
    return index


def _route(netlink: IPRoute, remote: Address, local: Address | None, device: int | None) -> _Route:
    """Ask the kernel for the route to a remote, over a device if one is given.

    Raises _NoRouteError where there is none.
    """
    query: dict[str, Any] = {"family": _FAMILY[remote.version], "dst": str(without_scope(remote))}
    if device is not None:
        query["oif"] = device
    if local is not None:
        query["src"] = str(without_scope(local))
    try:
        (route,) = netlink.route("get", **query)
    except NetlinkError as error:
        origin = f" from --local {local}" if local is not None else ""
        # A route of type unreachable, prohibit or blackhole is no route either, until it is gone.
        why = "" if error.code == errno.ENETUNREACH else f" ({error.args[1]})"
        raise _NoRouteError(f"no route to --remote {remote}{origin}{why}") from error
    # Of a route with an MTU, that may be what the kernel has learned of a path, which it forgets
    # without an event. Paths tell of that; here, only what is configured counts.
    mtu = None if _mtu_of(route) is None else _configured_mtu(netlink, query)
    has_source = _can_reach(route.get("prefsrc"), remote)
    return _Route(route.get("oif"), mtu, route["type"] == _RTN_BROADCAST, has_source)


def _configured_mtu(netlink: IPRoute, query: Mapping[str, Any]) -> int | None:
    """Return the MTU of the entry of the routing table that a query finds, if it has one."""
    try:
        (route,) = netlink.route("get", **query, flags=_RTM_F_FIB_MATCH)
    except NetlinkError:  # It was removed meanwhile.
        return None
    return _mtu_of(route)


def _mtu_of(route: Any) -> int | None:
    metrics = route.get("metrics")
    mtu: int | None = metrics.get("mtu") if metrics is not None else None
    return mtu


def _can_reach(source: str | None, remote: Address) -> bool:
    """Return whether a remote could answer to the address that the kernel would send from.

    While the IPv6 addresses of a device are tentative, the kernel takes its link-local address, or
    that of the loopback device.
    """
    own = ip_address(source or "::")
    if own.is_unspecified or (own.is_loopback and not remote.is_loopback):
        return False
    return own.version == 4 or not own.is_link_local or remote.is_link_local


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


def watch() -> socket.socket:
    """A non-blocking socket that becomes readable when something about any link has changed."""
    return _events(_RTMGRP_LINK)


def links() -> Iterator[bytes]:
    """Ask for every link; yield the messages that answer, as `watch` has them. Raises OSError."""
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + 4, _IFLA_EXT_MASK) + _INDEX.pack(_SKIP_STATS)
    length = _LINK_REQUEST.size + len(attribute)
    request = _LINK_REQUEST.pack(length, _RTM_GETLINK, flags, 1, 0, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.settimeout(1)
        asking.send(request)
        while True:
            answer = asking.recv(_DUMP_MAX)
            # The end of a dump is a message of its own, which has no others behind it.
            _, kind = _MESSAGE.unpack_from(answer)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                return
            yield answer


def watch_routes() -> socket.socket:
    """Return the same for any route, routing rule or nexthop."""
    return _events(_RTMGRP_ROUTE)


def watch_addresses() -> socket.socket:
    """Return the same for any address, and for one of IPv6 when its check for duplicates ends."""
    return _events(_RTMGRP_IFADDR)


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
    place: TapAttachment,
    setup: Setup,
    superframe_max: Callable[[int], int],
) -> TapAttachment:
    """TunnelSizing a TAP device to what it is used for now, and tell what that is.

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
        joins, unjoined = _bridge_to_join(netlink, tap, master, setup.bridge)
        bridge = joins or _bridge_of(link)
        widest = _widest(netlink, number, bridge)
        beside = widest if widest > mtu else 0
        place = TapAttachment(place.mtu, bridge, None if bridge else mtu, beside, unjoined)
        if place.mtu in (None, mtu):
            wanted = _mtu_for(setup.mtu, bridge, widest)
            # Below this the kernel removes all IPv6 addresses, and never puts them back.
            if wanted < MTU_MIN_V6 <= mtu and not setup.fixed and _has_ipv6(netlink, number):
                wanted = MTU_MIN_V6
            if mtu != wanted:
                netlink.link("set", index=number, mtu=wanted)
            place = TapAttachment(wanted, bridge, None if bridge else wanted, 0, unjoined)
        if joins:
            netlink.link("set", index=number, master=joins)
        limit = _GSO_MAX if master or joins else superframe_max(min(mtu, setup.mtu))
        if link.get("gso_max_size") != min(_GSO_MAX, limit):
            netlink.link("set", index=number, gso_max_size=min(_GSO_MAX, limit))
    except NetlinkError as error:
        if error.code not in (errno.EPERM, errno.EACCES):
            raise VtepError(f"--tap {tap}: {error.args[1]}") from error
    return place


def _bridge_to_join(netlink: IPRoute, tap: str, master: int, bridge: str | None) -> tuple[int, str]:
    """Return the index of the bridge that a TAP is to join now, or 0, and why it joins none.

    `master` is the index of the device that the TAP is a port of, or 0.
    """
    if bridge is None:
        return 0, ""
    index = device_index(bridge)
    if index is None:
        return 0, f"there is no such device; create it: ip link add {bridge} type bridge"
    if master == index:
        return 0, ""
    if master:
        return 0, f"{tap} is a port of another device; move it: ip link set {tap} master {bridge}"
    (link,) = netlink.get_links(index)
    info = link.get("linkinfo")
    if info is None or info.get("kind") != "bridge":
        return 0, "the device of this name is no bridge (see: ip link show type bridge)"
    return index, ""


def _has_ipv6(netlink: IPRoute, index: int) -> bool:
    """Return whether a device has an IPv6 address that it has not got by itself."""
    addresses = netlink.get_addr(family=socket.AF_INET6, index=index)
    return any(not ip_address(item.get("address")).is_link_local for item in addresses)


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
            wanted["mtu"] = mtu = setup.mtu
        _check_ipv6_mtu(tap, mtu, setup.addresses)
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
    index, mtu = link["index"], link.get("mtu")
    if after.mtu != before.mtu:
        mtu = _mtu_for(after.mtu, _bridge_of(link), _widest(netlink, index, _bridge_of(link)))
    if (after.mtu, after.addresses) != (before.mtu, before.addresses):
        _check_ipv6_mtu(tap, mtu, after.addresses)
    try:
        if after.mac not in (None, before.mac):
            _set(netlink, link, undo, address=format_mac(after.mac))
        if after.mtu != before.mtu:
            _set(netlink, link, undo, mtu=mtu)
    except NetlinkError as error:
        raise _refused(tap, error, after.mtu) from error
    if after.addresses != before.addresses:
        _remember_addresses(netlink, index, (*before.addresses, *after.addresses), undo)
        _replace_addresses(netlink, tap, index, before.addresses, after.addresses)
    # It leaves the bridge of before even if the next one is not there yet.
    bridge = device_index(after.bridge) or 0 if after.bridge is not None else 0
    if after.bridge != before.bridge and bridge != (link.get("master") or 0):
        _enslave(netlink, tap, link, after.bridge, bridge, undo)


def _replace_addresses(
    netlink: IPRoute,
    tap: str,
    index: int,
    before: Sequence[Interface],
    after: Sequence[Interface],
) -> None:
    """Give a device the addresses `after` in place of those of `before`; raises VtepError."""
    for address in after:
        if address not in before:
            _add_address(netlink, tap, index, address)
    removed = [address for address in before if address not in after]
    for address in removed:
        _delete_address(netlink, tap, index, address)
    # The first IPv4 address of a subnet takes the others along, unless promote_secondaries is on.
    networks = {address.network for address in removed if address.version == 4}
    for address in after:
        if address.network in networks:
            _add_address(netlink, tap, index, address)


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


def _check_ipv6_mtu(tap: str, mtu: int, addresses: Iterable[Interface]) -> None:
    """Raise VtepError where a TAP of this MTU can't have the addresses that it is to have."""
    address = next((each for each in addresses if each.version == 6), None)
    if address is not None and mtu < MTU_MIN_V6:
        raise VtepError(
            f"--address {address}: IPv6 needs an MTU of at least {MTU_MIN_V6}, but {tap} has "
            f"{mtu}; give --mtu {MTU_MIN_V6} or more, or no IPv6 address"
        )


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
        index = need_device_index(device)
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
