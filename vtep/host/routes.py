"""Routes to remotes: devices, MTUs and own addresses, as the kernel's routing tables have them."""

import errno
import socket
from collections.abc import Collection, Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from attrs import field, frozen

from vtep.errors import VtepError
from vtep.host import ethtool, ipsec
from vtep.host.devices import device_index
from vtep.host.netlink import IPRoute, NetlinkError
from vtep.wire.address import Address, Network, scope_of, without_scope

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_RTN_BROADCAST = 3
_RTM_F_FIB_MATCH = 0x2000
"""From the kernel's include/uapi/linux/rtnetlink.h: answer with the entry of the routing table, not
with the route that was resolved from it (Linux 4.13)."""

# From the kernel's include/uapi/linux/if_addr.h.
_IFA_F_OPTIMISTIC = 0x04
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40

_DEFAULT_MTU = 1500
"""The MTU that is assumed while no underlay device is known."""


@frozen
class Underlay:
    """The underlay devices through which this host reaches its remotes, and their MTU in octets.

    `missing` names what is absent now and may appear later, such as a route. `networks` are the
    subnets of the devices, each with the name of its device. `remote_devices` has the name of the
    device to each remote that has a route.
    """

    devices: tuple[str, ...]
    mtu: int
    missing: tuple[str, ...] = ()
    networks: tuple[tuple[str, Network], ...] = ()
    remote_devices: Mapping[Address, str] = field(factory=dict)
    own_addresses: Mapping[Address, Collection[int]] = field(factory=dict, eq=False, repr=False)
    """The addresses of this host, without scopes, each with the indices of its devices."""

    def is_own(self, address: Address) -> bool:
        """Return True if this host has an address, on the device of its scope if it has one."""
        devices, scope = self.own_addresses.get(without_scope(address)), scope_of(address, None)
        return devices is not None and (scope is None or device_index(scope) in devices)


class HostRoutes:
    """The routes of this host, with a cache: create one for all segments at a time, then drop it.

    The constructor reads all addresses. Routes and links are read when they are first needed.
    """

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink
        self._links: dict[int, Any] = {}
        self._own: dict[Address, dict[int, int]] = {}
        """For each own address, its flags by device index."""
        self._networks: dict[int, list[Network]] = {}
        self._interfaces: dict[int, list[str]] = {}
        self._broadcasts: set[tuple[int, str]] = set()
        self._routes: dict[tuple[Address, Address | None, int | None], _Route | _NoRouteError] = {}
        for item in netlink.get_addr():
            # On a point-to-point link IFA_ADDRESS is the address of the peer, and IFA_LOCAL the own
            # one. IPv6 addresses without a peer have no IFA_LOCAL.
            address = ip_address(item.get("local") or item.get("address"))
            index: int = item["index"]
            self._own.setdefault(address, {})[index] = item.get("flags") or 0
            network = ip_network((item.get("address"), item["prefixlen"]), strict=False)
            self._networks.setdefault(index, []).append(network)
            if not (address.version == 6 and address.is_link_local):
                interface = f"{address}/{item['prefixlen']}"
                self._interfaces.setdefault(index, []).append(interface)
            if broadcast := item.get("broadcast"):
                self._broadcasts.add((index, broadcast))

    def interface_addresses(self, device: int) -> tuple[str, ...]:
        """Return the addresses of a device with prefix lengths, but for link-local IPv6 ones."""
        return tuple(self._interfaces.get(device, ()))

    def resolve_underlay(
        self, remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None
    ) -> Underlay:
        """Find the devices through which `remotes` are reached from the own addresses `locals_`.

        `locals_` has at most one address of each IP version; without, the kernel selects one.
        `dev` is the device to use whatever the routes say, if any. A route, a device or an own
        address that is absent may appear later: it is `missing` from the underlay.

        Raises:
            VtepError: an address can never be a remote: it is an own or a broadcast address.
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
        device_of: dict[Address, int] = {}
        for remote in remotes:
            if self.is_own(remote, dev):
                raise VtepError(
                    f"--remote {remote} is an address of this host itself; give the address of the "
                    "other VTEP"
                )
            try:
                route = self._find(remote, source.get(remote.version), dev, index)
            except _NoRouteError as error:
                missing += filter(None, error.args)
            else:
                if self._is_broadcast(remote, route):
                    raise VtepError(
                        f"--remote {remote}: is a broadcast address; give the address of a VTEP"
                    )
                if not route.has_source and source.get(remote.version) is None:
                    missing.append(f"no own address to reach --remote {remote} from")
                mtus = (used.get(route.device), route.mtu)
                used[route.device] = min((mtu for mtu in mtus if mtu is not None), default=None)
                device_of[remote] = route.device
        # A device without remotes is used as soon as one is added, so its MTU counts.
        if not used and index is not None:
            used[index] = None
        return self._underlay_of(used, device_of, missing)

    def _underlay_of(
        self,
        used: Mapping[int, int | None],
        device_of: Mapping[Address, int],
        missing: list[str],
    ) -> Underlay:
        """Return the underlay of devices, given the least MTU of the routes over each, if any.

        Side effect: appends to `missing` devices that were removed meanwhile.
        """
        names: dict[str, int] = {}
        by_index: dict[int, str] = {}
        networks: list[tuple[str, Network]] = []
        for index, mtu in used.items():
            link = self._link(index)
            if link is None:
                missing.append(f"no network device with index {index}")
                continue
            name, own = link.get("ifname"), link.get("mtu")
            names[name] = min(own, mtu or own)
            by_index[index] = name
            networks += ((name, network) for network in self._networks.get(index, ()))
        least = min(names.values(), default=_DEFAULT_MTU)
        remote_devices = {
            remote: by_index[index] for remote, index in device_of.items() if index in by_index
        }
        unique = tuple(dict.fromkeys(missing))
        return Underlay(
            tuple(names), least, unique, tuple(networks), remote_devices, own_addresses=self._own
        )

    def why_no_remote(
        self, address: Address, locals_: Iterable[Address], dev: str | None
    ) -> str | None:
        """Return why `resolve_underlay` would refuse an address as a remote; None if it would not.

        The reason is a noun phrase.
        """
        if self.is_own(address, dev):
            return "an address of this host itself"
        own = [each for each in locals_ if each.version == address.version]
        local = next((each for each in own if self._why_unusable(each, dev) is None), None)
        try:
            index = None if dev is None else device_index(dev)
            route = self._find(address, local, dev, index)
        except _NoRouteError:  # There may be one later.
            return None
        return "a broadcast address" if self._is_broadcast(address, route) else None

    def _is_broadcast(self, address: Address, route: "_Route") -> bool:
        return route.is_broadcast or (route.device, str(address)) in self._broadcasts

    def _find(
        self, remote: Address, local: Address | None, dev: str | None, index: int | None
    ) -> "_Route":
        """Return the route to a remote; `index` is that of `dev`, by which it is reached.

        Raises:
            _NoRouteError: with the reason, unless it is the absence of `dev`.
        """
        scope = scope_of(remote, dev)
        if scope is not None and scope != dev:
            index = device_index(scope)
            if index is None:
                raise _NoRouteError(f"no network device {scope} for --remote {remote}")
        if index is None and dev is not None:
            raise _NoRouteError  # `resolve_underlay` has noted once that --dev is missing.
        return self._route(remote, local, index)

    def _why_unusable(self, local: Address, dev: str | None) -> str | None:
        """Return why no socket can be bound to an own address now, or None if one can."""
        # Any address of 127.0.0.0/8 can be used, though only 127.0.0.1 is configured.
        if local.is_loopback:
            return None
        if not self.is_own(local, dev):
            return f"no interface has --local {local}"
        flags = self._own[without_scope(local)].values()
        if all(each & _IFA_F_DADFAILED for each in flags):
            return f"--local {local} belongs to another host (duplicate address detection failed)"
        # Optimistic addresses can be used during the detection (RFC 4429).
        if all(each & _IFA_F_TENTATIVE and not each & _IFA_F_OPTIMISTIC for each in flags):
            return f"--local {local} is tentative (duplicate address detection is not finished)"
        return None

    def egress_device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """Return the index of the device to a remote, or None if it does not support tunnel GSO.

        No device does on a host with IPsec policies for outgoing packets: a packet that is sent
        with tunnel GSO is not encrypted (see `vtep.tunnel_gso.device`).
        """
        index = self.output_device(remote, local, dev)
        supported = (
            index is not None and ethtool.has_tunnel_gso(index) and not ipsec.has_output_policies()
        )
        return index if supported else None

    def output_device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """Return the index of the output device to a remote, or None without a route."""
        try:
            device = scope_of(remote, dev) or dev
            return device_index(device) if device else self._route(remote, local, None).device
        except _NoRouteError:
            return None

    def _route(self, remote: Address, local: Address | None, device: int | None) -> "_Route":
        """Return the route to a remote from the cache or the kernel. Raises: _NoRouteError."""
        route = self._routes.get((remote, local, device))
        if route is None:
            try:
                route = _get_route(self._netlink, remote, local, device)
            except _NoRouteError as error:
                route = error
            self._routes[remote, local, device] = route
        if isinstance(route, _NoRouteError):
            raise route
        return route

    def is_own(self, address: Address, dev: str | None) -> bool:
        """Return True if this host has an address, on the device of its scope if it has one."""
        scope = scope_of(address, dev)
        indices = self._own.get(without_scope(address), {})
        return bool(indices) and (scope is None or device_index(scope) in indices)

    def _link(self, index: int) -> Any:
        """Return a link from the cache or the kernel, or None if it was removed meanwhile."""
        link = self._links.get(index)
        if link is None:
            try:
                (link,) = self._netlink.get_links(index)
            except NetlinkError:
                return None
            self._links[index] = link
        return link


class _NoRouteError(Exception):
    """There is no route now. The argument, if any, says why."""


@frozen
class _Route:
    """A route to a remote: the index of its output device, and its own MTU if it has one.

    Without `has_source`, this host has no address to which the remote could reply.
    """

    device: int
    mtu: int | None
    is_broadcast: bool = False
    has_source: bool = True


def _get_route(
    netlink: IPRoute, remote: Address, local: Address | None, device: int | None
) -> _Route:
    """Query the kernel for the route to a remote, over a device if one is given.

    Raises:
        _NoRouteError: there is none.
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
        # Routes of type unreachable, prohibit and blackhole give other errors than ENETUNREACH.
        why = "" if error.code == errno.ENETUNREACH else f" ({error.args[1]})"
        raise _NoRouteError(f"no route to --remote {remote}{origin}{why}") from error
    # The MTU of a resolved route may be a path MTU that the kernel has learned. It expires without
    # an event; the sockets that send follow it. Here only a configured MTU counts.
    mtu = None if _mtu_of(route) is None else _configured_mtu(netlink, query)
    has_source = _can_reach(route.get("prefsrc"), remote)
    return _Route(route.get("oif"), mtu, route["type"] == _RTN_BROADCAST, has_source)


def _configured_mtu(netlink: IPRoute, query: Mapping[str, Any]) -> int | None:
    """Return the MTU of the entry of the routing table that a query matches, if it has one."""
    try:
        (route,) = netlink.route("get", **query, flags=_RTM_F_FIB_MATCH)
    except NetlinkError:  # The entry was removed meanwhile.
        return None
    return _mtu_of(route)


def _mtu_of(route: Any) -> int | None:
    """Return the MTU among the metrics of a route, if there is one."""
    metrics = route.get("metrics")
    mtu: int | None = metrics.get("mtu") if metrics is not None else None
    return mtu


def _can_reach(source: str | None, remote: Address) -> bool:
    """Return True if a remote can reply to the source address that the kernel selected.

    While the IPv6 addresses of a device are tentative, the kernel selects the device's link-local
    address, or an address of the loopback device.
    """
    own = ip_address(source or "::")
    if own.is_unspecified or (own.is_loopback and not remote.is_loopback):
        return False
    return own.version == 4 or not own.is_link_local or remote.is_link_local
