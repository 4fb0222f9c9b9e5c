"""TCP sockets of BGP sessions: signatures (RFC 2385), DSCP, local addresses, and their errors."""

import errno
import os
import socket
import struct
from contextlib import suppress
from ipaddress import IPv6Address, ip_address

from vtep.evpn.session_types import Failure
from vtep.wire.address import Address, without_scope

_TCP_MD5SIG = 14
"""include/uapi/linux/tcp.h; the socket module does not have it."""

_MD5SIG = struct.Struct("=128sBBHi80s")
"""struct tcp_md5sig: sockaddr_storage, flags, prefix length, key length, interface, key."""

_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
"""include/uapi/linux/in.h and in6.h; the socket module does not have them."""

_TOS_CS6 = 0xC0
"""DSCP CS6, network control (RFC 4594, section 3.1), in the upper six bits of the octet."""

_PROBE_S, _PROBES = 20, 6
"""Interval of the probes of an idle connection in seconds, and how many of them may be lost."""

_BACKLOG = 16

Endpoint = tuple[str, int] | tuple[str, int, int, int]
"""Address and port, and for IPv6 flow label and scope, as the socket module has them."""

_KINDS = {
    errno.ECONNREFUSED: Failure.CONNECT_REFUSED,
    errno.ETIMEDOUT: Failure.TIMEOUT,
    errno.EADDRNOTAVAIL: Failure.LOCAL_ADDRESS,
}


class SocketError(Exception):
    """A connection that cannot be opened: the kind of failure, and a line for users."""

    def __init__(self, kind: Failure, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def failure_of(error: OSError, version_without_local: int = 0) -> tuple[Failure, str]:
    """Return the kind of an error of connect(), and a line for users.

    `version_without_local` is the version of IP if the kernel was to choose the local address.
    """
    number = error.errno or 0
    kind = _KINDS.get(number, Failure.NO_ROUTE)
    reason = os.strerror(number) if number else str(error)
    if kind is Failure.CONNECT_REFUSED:
        return kind, "the neighbor refused the TCP connection; no BGP speaker listens there"
    if kind is Failure.LOCAL_ADDRESS and version_without_local:
        text = (
            f"cannot connect: this host has no IPv{version_without_local} address to connect from"
        )
        if version_without_local == 6:
            text += "; IPv6 may be disabled: sysctl net.ipv6.conf.all.disable_ipv6"
        return Failure.NO_ROUTE, text
    if kind is Failure.LOCAL_ADDRESS:
        return kind, "the local address of the session is not an address of this host"
    return kind, f"cannot connect: {reason}"


def endpoint_of(address: Address, port: int) -> Endpoint:
    """Return an address as the socket module wants it; the scope is the name of a device.

    Raises: SocketError if there is no such device.
    """
    if not isinstance(address, IPv6Address):
        return str(address), port
    scope = 0
    if address.scope_id is not None:
        try:
            scope = socket.if_nametoindex(address.scope_id)
        except OSError as error:
            text = f"cannot connect: there is no device {address.scope_id}"
            raise SocketError(Failure.NO_ROUTE, text) from error
    return str(without_scope(address)), port, 0, scope


def address_of(endpoint: tuple[object, ...]) -> Address:
    """Return the address in a name of a socket; a link-local one has the name of its device."""
    host = str(endpoint[0]).partition("%")[0]
    address = ip_address(host)
    if isinstance(address, IPv6Address) and address.is_link_local:
        index = endpoint[3]
        try:
            return IPv6Address(f"{host}%{socket.if_indextoname(int(str(index)))}")
        except OSError:  # The device has vanished.
            return address
    return address


def open_socket(version: int) -> socket.socket:
    """Return a TCP socket for a session, which does not block."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        set_options(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def set_options(sock: socket.socket) -> None:
    """Send each message at once, and with the priority of network control.

    Probes of TCP find a dead peer of a session with a hold time of 0, which has no keepalives.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _TOS_CS6)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _TOS_CS6)


def set_password(sock: socket.socket, peer: Address, password: str | None) -> None:
    """Sign the segments to and from a peer, and drop others of it (RFC 2385); None: stop that.

    On a listening socket, this is for the connections that the peer opens. The kernel compares the
    address without its scope.

    Raises: OSError, with ENOPROTOOPT or EPERM on a kernel that has no or no usable MD5.
    """
    key = (password or "").encode()
    if sock.family == socket.AF_INET6:
        name = struct.pack("=HH4x16s4x", sock.family, 0, without_scope(peer).packed)
    else:
        name = struct.pack("=HH4s", sock.family, 0, peer.packed)
    option = _MD5SIG.pack(name, 0, 0, len(key), 0, key)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_MD5SIG, option)


def has_address(name: tuple[object, ...]) -> bool:
    """Return whether the address in a name of a socket is one of this host now."""
    family = socket.AF_INET6 if len(name) > 2 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((name[0], 0, *name[2:]))
        except OSError as error:
            return error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV)
    return True


def keep_sending(sock: socket.socket) -> None:
    """Make a connection go on sending from its local address, which this host has lost.

    Without CAP_NET_ADMIN or CAP_NET_RAW, this has no effect.
    """
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)


def local_address_towards(peer: Address, port: int) -> Address | None:
    """Return the address from which the kernel would connect to a peer, or None without a route."""
    try:
        return find_local_address(peer, port)
    except SocketError:
        return None


def find_local_address(peer: Address, port: int) -> Address:
    """Return the address from which the kernel would connect to a peer.

    Raises: SocketError, with the reason, if it would not.
    """
    family = socket.AF_INET6 if peer.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(endpoint_of(peer, port))  # This sends nothing.
            return address_of(probe.getsockname())
    except OSError as error:
        raise SocketError(*failure_of(error, peer.version)) from error


def connect(
    peer: Address, port: int, *, local: Address | None, password: str | None
) -> socket.socket:
    """Begin to connect to a peer, from a local address if one is given.

    Returns: the socket, which is writable once it is connected, or has failed.
    Raises: SocketError.
    """
    try:
        sock = open_socket(peer.version)
    except OSError as error:
        raise SocketError(*failure_of(error)) from error
    try:
        if password:
            _sign(sock, peer, password)
        if local is not None:
            sock.bind(endpoint_of(local, 0))
        sock.connect(endpoint_of(peer, port))
    except BlockingIOError:
        pass
    except OSError as error:
        sock.close()
        raise SocketError(*failure_of(error, peer.version if local is None else 0)) from error
    except SocketError:
        sock.close()
        raise
    return sock


def _sign(sock: socket.socket, peer: Address, password: str) -> None:
    try:
        set_password(sock, peer, password)
    except OSError as error:
        text = f"cannot use the password: this kernel has no TCP MD5 signatures: {error.strerror}"
        raise SocketError(Failure.NO_MD5, text) from error


def listen(local: Address, port: int) -> socket.socket:
    """Return a socket that is bound to an address; call `listen` on it with `set_password` done.

    Raises: OSError, SocketError.
    """
    sock = open_socket(local.version)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(endpoint_of(local, port))
    except (OSError, SocketError):
        sock.close()
        raise
    return sock


def start_listening(sock: socket.socket) -> None:
    """Accept connections. Raises: OSError, if another socket listens to the same address."""
    sock.listen(_BACKLOG)
