"""The underlay's UDP sockets: one that receives, and a pool that sends to each remote.

The socket on the VXLAN port only receives. What we send leaves from other ports, one for each
value of the flow hash that we tell apart, because routers and NICs spread flows by it.
"""

import errno
import random
import socket
import sys
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from vtep.counters import Drop
from vtep.errors import VtepError
from vtep.fdb import Remote
from vtep.wire import Buffer, vxlan

_RECEIVE_BUFFER = 4 << 20
"""Octets asked for: what arrives in some milliseconds at the best rate that we can forward."""

_PORT_TRIES = 64
_POOL_MAX = 64
_PORTS_MAX = len(vxlan.SOURCE_PORTS) // 2
"""Of all source ports, how many the pools together may take from the host."""

_RETRY_AFTER = 1.0
"""Seconds before a remote without a route is tried again."""

# From the kernel's include/uapi/linux/{in,in6}.h and asm-generic/socket.h.
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8
_SK_MEMINFO_VARS = 9

_DROPS = {
    errno.ECONNREFUSED: Drop.UNDERLAY_REFUSED,
    errno.EMSGSIZE: Drop.UNDERLAY_TOO_BIG,
    errno.ENOBUFS: Drop.UNDERLAY_FULL,
    errno.ENOMEM: Drop.UNDERLAY_FULL,
    errno.EPERM: Drop.UNDERLAY_DENIED,
    errno.EACCES: Drop.UNDERLAY_DENIED,
    errno.ENETUNREACH: Drop.UNDERLAY_UNREACHABLE,
    errno.EHOSTUNREACH: Drop.UNDERLAY_UNREACHABLE,
    errno.ENETDOWN: Drop.UNDERLAY_UNREACHABLE,
    errno.ENODEV: Drop.UNDERLAY_UNREACHABLE,
    errno.EADDRNOTAVAIL: Drop.UNDERLAY_UNREACHABLE,
    errno.EINVAL: Drop.UNDERLAY_UNREACHABLE,
}

_STALE = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENODEV))
"""What a connected socket says when this host's address or route has changed under it."""


@frozen
class Binding:
    """What all sockets of a VTEP have in common; `dev` is the device they are bound to, if any."""

    family: socket.AddressFamily
    local: IPv4Address | IPv6Address | None
    dev: str | None

    def open(self, port: int) -> socket.socket:
        """A non-blocking UDP socket bound to `port`; raises OSError.

        The outer DF bit stays clear, as in the kernel driver: on a path narrower than this host's
        own link, a router's fragments are better than a hole that nobody is told of.
        """
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if self.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
            if self.dev is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.dev.encode())
            sock.bind((str(self.local) if self.local else "", port))
        except OSError:
            sock.close()
            raise
        return sock


def open_receiver(binding: Binding, port: int) -> socket.socket:
    """The socket to which every remote sends.

    Raises VtepError, saying what to do, where the port cannot be had.
    """
    try:
        sock = binding.open(port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise VtepError(
                f"--dstport {port}: this UDP port is taken on this host, by another VTEP (see: ss "
                "-ulpn) or a kernel VXLAN device (see: ip -d link show type vxlan)"
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            raise VtepError(
                f"--dstport {port}, --dev {binding.dev}: no privilege to bind to them: run as root"
            ) from error
        raise VtepError(f"--dstport {port}: cannot bind to it: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    return sock


def receive_queue_drops(receiver: socket.socket) -> int:
    """How many datagrams the kernel discarded because the socket's queue was full."""
    memory = receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _SK_MEMINFO_VARS * 4)
    at = _SK_MEMINFO_DROPS * 4
    return int.from_bytes(memory[at : at + 4], sys.byteorder)


class Path:
    """The way to one remote: connected sockets, one for each of `slots` values of the flow hash.

    A socket is opened when the first frame of its slot comes. Connected, it saves the kernel a
    route lookup for each datagram and tells us of ICMP errors. `slots` is a power of two.
    """

    def __init__(self, binding: Binding, remote: Remote, slots: int) -> None:
        self.remote = remote
        self._binding = binding
        self._mask = slots - 1
        self._sockets: list[socket.socket | None] = [None] * slots
        self._retry_at = 0.0

    def send(self, datagram: Buffer, flow: int, now: float) -> Drop | None:
        """Send from the port that belongs to a flow hash; the reason if a datagram was lost.

        Raises BlockingIOError where the send buffer is full: nothing was sent, and `fileno` tells
        what to wait for.
        """
        slot = flow & self._mask
        sock = self._sockets[slot]
        if sock is None:
            return self._reconnect(datagram, slot, now)
        try:
            sock.send(datagram)
        except BlockingIOError:
            raise
        except ConnectionRefusedError:
            # The answer to an earlier datagram, which had been counted as sent; this one has not
            # left yet. So one is lost whether or not this one leaves now.
            return _attempt(sock, datagram) or Drop.UNDERLAY_REFUSED
        except OSError as error:
            if error.errno not in _STALE:
                return _reason(error)
            sock.close()
            self._sockets[slot] = None
            return self._reconnect(datagram, slot, now)
        return None

    def fileno(self, flow: int) -> int:
        """The descriptor of the socket that `send` uses for a flow hash; it was used before."""
        sock = self._sockets[flow & self._mask]
        return sock.fileno() if sock is not None else -1

    def close(self) -> None:
        """Close all sockets of the pool."""
        for slot, sock in enumerate(self._sockets):
            if sock is not None:
                sock.close()
                self._sockets[slot] = None

    def _reconnect(self, datagram: Buffer, slot: int, now: float) -> Drop | None:
        """Send through a new socket, unless that failed a moment ago."""
        if now < self._retry_at:
            return Drop.UNDERLAY_UNREACHABLE
        try:
            sock = self._connect()
        except OSError as error:
            self._retry_at = now + _RETRY_AFTER
            return _reason(error)
        self._sockets[slot] = sock
        return _attempt(sock, datagram)

    def _connect(self) -> socket.socket:
        for _ in range(_PORT_TRIES):
            try:
                sock = self._binding.open(random.choice(vxlan.SOURCE_PORTS))  # noqa: S311  no secret
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            try:
                # Nobody reads what a peer sends to a port other than the VXLAN port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
                sock.connect((self.remote.host, self.remote.port))
            except OSError:
                sock.close()
                raise
            return sock
        raise OSError(errno.EADDRINUSE, "no free source port")


def _attempt(sock: socket.socket, datagram: Buffer) -> Drop | None:
    try:
        sock.send(datagram)
    except BlockingIOError:
        raise
    except OSError as error:
        return _reason(error)
    return None


def _reason(error: OSError) -> Drop:
    return _DROPS.get(error.errno or 0, Drop.UNDERLAY_FAILED)


def pool_slots(remotes: int) -> int:
    """How many source ports each of so many remotes gets: a power of two, at most 64."""
    share = max(1, min(_POOL_MAX, _PORTS_MAX // max(1, remotes)))
    return 1 << share.bit_length() - 1
