"""Events of rtnetlink and XFRM, and the dump of all links that precedes link events.

These use plain netlink sockets, which an event loop can poll, in place of pyroute2. `link_table`
parses the messages about links.
"""

import os
import socket
from collections.abc import Iterator
from struct import Struct

# From the kernel's include/uapi/linux/netlink.h, rtnetlink.h, if_link.h and xfrm.h.
_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS = 5
_NETLINK_XFRM = 6
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_RTMGRP_LINK = 1
_RTMGRP_NEIGH = 4
_RTMGRP_ROUTE = 0x40 | 0x80 | 0x400 | 0x40000 | 0x80000000
"""RTMGRP_IPV4_ROUTE and RTMGRP_IPV4_RULE, RTMGRP_IPV6_ROUTE, and the bits of RTNLGRP_IPV6_RULE (19)
and RTNLGRP_NEXTHOP (32), which have no RTMGRP_ names."""

_RTMGRP_IFADDR = 0x10 | 0x100
_XFRMGRP_POLICY = 8
_NLM_F_REQUEST = 1
_NLM_F_DUMP = 0x300
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_RTM_GETLINK = 18
_IFLA_EXT_MASK = 29
_RTEXT_FILTER_SKIP_STATS = 8

_MESSAGE = Struct("=IH")
"""The beginning of struct nlmsghdr: length and type."""

_LINK_REQUEST = Struct("=IHHIIB15x")
"""struct nlmsghdr, then struct ifinfomsg with its address family."""

_ATTRIBUTE = Struct("=HH")
"""struct rtattr: length, including this header, and type."""

_INDEX = Struct("=i")
_MEMINFO = Struct("=9I")
"""From the kernel's include/uapi/linux/sock_diag.h: the last number is SK_MEMINFO_DROPS."""

_DUMP_MAX = 1 << 16
_DUMP_TIMEOUT_S = 1.0


def subscribe_links() -> socket.socket:
    """Return a non-blocking socket that receives a message when any link changes."""
    return _subscribe(_RTMGRP_LINK)


def subscribe_routes() -> socket.socket:
    """Return a non-blocking socket for changes of routes, routing rules and nexthops."""
    return _subscribe(_RTMGRP_ROUTE)


def subscribe_addresses() -> socket.socket:
    """Return a non-blocking socket for changes of addresses.

    The end of duplicate address detection of an IPv6 address is such a change.
    """
    return _subscribe(_RTMGRP_IFADDR)


def subscribe_ipsec_policies() -> socket.socket | None:
    """Return a non-blocking socket for changes of IPsec policies, or None without IPsec."""
    try:
        return _subscribe(_XFRMGRP_POLICY, _NETLINK_XFRM)
    except OSError:
        return None


def subscribe_neighbours(receive_buffer: int) -> socket.socket:
    """Return a non-blocking socket for links, addresses, neighbours, and FDB entries of bridges.

    Its receive buffer has `receive_buffer` octets, if the kernel permits; see `count_lost_events`.
    """
    events = _subscribe(_RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_IFADDR)
    set_receive_buffer(events, receive_buffer)
    return events


def open_requests(receive_buffer: int) -> socket.socket:
    """Return a non-blocking socket for requests to rtnetlink."""
    requests = _subscribe(0)
    set_receive_buffer(requests, receive_buffer)
    return requests


def set_receive_buffer(sock: socket.socket, octets: int) -> None:
    """Set the receive buffer of a socket, beyond net.core.rmem_max if that is permitted."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)


def count_lost_events(sock: socket.socket) -> int:
    """Return the number of events that a socket has lost because its receive buffer was full."""
    lost: int = _MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))[-1]
    return lost


def _subscribe(groups: int, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """Return a non-blocking netlink socket that is a member of multicast groups."""
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    # Lost events need no error: callers read the state anew after any event. And ENOBUFS would make
    # the event loop that polls the socket stop polling it.
    events.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
    events.bind((0, groups))
    return events


def dump_links(sock: int | None = None) -> Iterator[bytes]:
    """Yield RTM_NEWLINK messages about all links, in the format of the events of `subscribe_links`.

    `sock` is a netlink socket of another network namespace, which stays open.

    Raises:
        OSError: the kernel did not answer.
    """
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    # No caller reads the statistics, which are some 300 octets of each link.
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + _INDEX.size, _IFLA_EXT_MASK)
    attribute += _INDEX.pack(_RTEXT_FILTER_SKIP_STATS)
    length = _LINK_REQUEST.size + len(attribute)
    request = _LINK_REQUEST.pack(length, _RTM_GETLINK, flags, 1, 0, 0) + attribute
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        if sock is None
        else socket.socket(fileno=os.dup(sock))
    ) as query:
        query.settimeout(_DUMP_TIMEOUT_S)
        query.send(request)
        while True:
            reply = query.recv(_DUMP_MAX)
            # The kernel sends the end of a dump in a datagram of its own.
            _, kind = _MESSAGE.unpack_from(reply)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                return
            yield reply
