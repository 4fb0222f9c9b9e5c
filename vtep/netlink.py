"""What the host's network looks like, and how the TAP device is set up: a shell around pyroute2.

These calls block for some milliseconds, and pyroute2 runs an event loop of its own inside them.
They are for start-up, in a thread without a loop, and take part in no forwarding.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_address

from attrs import frozen
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vtep.errors import VtepError
from vtep.values import Address, Interface
from vtep.wire.ethernet import format_mac, parse_mac

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_IFF_UP = 1
_RTN_BROADCAST = 3
_RTMGRP_LINK = 1
_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS = 5
_GSO_MAX = 65536
"""The kernel's own limit (GSO_LEGACY_MAX_SIZE)."""


@frozen
class Underlay:
    """How this host reaches the remotes: over which devices, with what MTU in octets."""

    devices: tuple[str, ...]
    mtu: int


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    # Not asyncio.new_event_loop(): under an installed uvloop policy that would be a uvloop, which
    # has no netlink sockets.
    with closing(asyncio.SelectorEventLoop()) as loop:
        try:
            with IPRoute(use_event_loop=loop) as netlink:
                yield netlink
        finally:
            # A transport closes its socket one round after it was told to.
            loop.run_until_complete(asyncio.sleep(0))


def survey(remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None) -> Underlay:
    """Find the underlay of `remotes`, as seen from the own addresses `locals_`, if there are any.

    Raises VtepError where an address or device is not what it must be on this host.
    """
    with _netlink() as netlink:
        links = {link["index"]: link for link in netlink.get_links()}
        index = None if dev is None else device_index(dev)
        if dev is not None and index is None:
            raise VtepError(f"--dev {dev}: there is no such network device (see: ip link)")
        # At the end of a point-to-point link, "address" is that of the other end.
        own = {ip_address(item.get("local") or item.get("address")) for item in netlink.get_addr()}
        source = {local.version: local for local in locals_}
        for local in source.values():
            if local not in own and not local.is_loopback:
                raise VtepError(f"--local {local}: no interface of this host has this address")
        used: dict[str, int] = {}
        for remote in remotes:
            if remote in own:
                raise VtepError(
                    f"--remote {remote} is an address of this host itself; give that of the other"
                )
            if index is not None:
                oif, mtu = index, None
            else:
                oif, mtu = _route(netlink, remote, source.get(remote.version))
            link = links[oif]
            used[link.get("ifname")] = min(link.get("mtu"), mtu or link.get("mtu"))
    return Underlay(tuple(used), min(used.values()))


def _route(netlink: IPRoute, remote: Address, local: Address | None) -> tuple[int, int | None]:
    """The output interface of the route to a remote, and the MTU of the route if it has one."""
    query = {"family": _FAMILY[remote.version], "dst": str(remote)}
    if local is not None:
        query["src"] = str(local)
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


def device_index(name: str) -> int | None:
    """The index of a device, by its name or an alternative one; None if there is no such device."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def watch() -> socket.socket:
    """A non-blocking socket that becomes readable when something about any link has changed."""
    events = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
    )
    # An overrun is no error here, since any event says as much as all of them; and an error would
    # make a loop that polls this socket give it up.
    events.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
    events.bind((0, _RTMGRP_LINK))
    return events


def adapt(tap: str, number: int | None, superframe_max: Callable[[int], int]) -> int:
    """Fit a TAP device to what it is used for now, and return its MTU.

    `number` is its index, so that another device that has its name now is left alone.

    The kernel's own TCP is told to make no superframe larger than `superframe_max` of the MTU. Not
    on a bridge's port: superframes of containers, who don't know of it, would be cut in software.
    Without the privilege nothing is changed. Raises VtepError where there is no such device.
    """
    with _netlink() as netlink:
        index = device_index(tap)
        if index is None or index != number:
            raise VtepError(f"--tap {tap}: it is not here any more")
        try:
            (link,) = netlink.get_links(index)
            mtu: int = link.get("mtu")
            wanted = _GSO_MAX if link.get("master") else min(_GSO_MAX, superframe_max(mtu))
            if link.get("gso_max_size") != wanted:
                netlink.link("set", index=index, gso_max_size=wanted)
        except NetlinkError as error:
            if error.code in (errno.EPERM, errno.EACCES):
                return mtu
            raise VtepError(f"--tap {tap}: {error.args[1]}") from error
    return mtu


def bring_up(tap: str, mtu: int, mac: bytes | None, addresses: Iterable[Interface]) -> None:
    """Give a TAP device its MTU, MAC and addresses, and set it up.

    Only differences are written, so a device that root prepared needs no privilege.
    Raises VtepError where the kernel refuses.
    """
    with _netlink() as netlink:
        (index,) = netlink.link_lookup(ifname=tap)
        (link,) = netlink.get_links(index)
        try:
            if mac is not None and parse_mac(link.get("address")) != mac:
                netlink.link("set", index=index, address=format_mac(mac))
            if link.get("mtu") != mtu:
                netlink.link("set", index=index, mtu=mtu)
            if not link["flags"] & _IFF_UP:
                netlink.link("set", index=index, state="up")
        except NetlinkError as error:
            raise _refused(tap, error, mtu) from error
        for address in addresses:
            try:
                netlink.addr(
                    "replace",
                    index=index,
                    address=str(address.ip),
                    prefixlen=address.network.prefixlen,
                )
            except NetlinkError as error:
                raise VtepError(
                    f"--address {address}: the kernel refused it for {tap} ({error.args[1]}); "
                    f"is IPv{address.version} disabled on this host?"
                ) from error


def _refused(tap: str, error: NetlinkError, mtu: int) -> VtepError:
    if error.code == errno.EPERM:
        return VtepError(
            f"--tap {tap}: no privilege to set it up: run as root or with CAP_NET_ADMIN, or let "
            f"root do it: ip link set {tap} up mtu {mtu}"
        )
    return VtepError(f"--tap {tap}: the kernel refused to set it up: {error.args[1]}")
