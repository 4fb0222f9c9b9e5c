"""Options of UDP sockets that take more than one call, or an answer that has to be interpreted."""

import socket
from functools import cache

from vtep.io import socket_constants as const
from vtep.wire import vxlan


def set_receive_buffer(sock: socket.socket, octets: int) -> None:
    """Set the size of the receive buffer as `set_send_buffer` does. Raises: OSError."""
    _set_buffer(sock, const.SO_RCVBUFFORCE, socket.SO_RCVBUF, octets)


def set_send_buffer(sock: socket.socket, octets: int) -> None:
    """Set the size of the send buffer, beyond net.core.wmem_max if that is allowed.

    Without CAP_NET_ADMIN, the kernel silently limits the size to the sysctl. Raises: OSError.
    """
    _set_buffer(sock, const.SO_SNDBUFFORCE, socket.SO_SNDBUF, octets)


def _set_buffer(sock: socket.socket, forced: int, limited: int, octets: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, limited, octets)


def prefer_public_source(sock: socket.socket) -> None:
    """Make an IPv6 socket send from the host's stable address instead of a temporary one.

    Peers know this host by one address, and a temporary address (RFC 8981) changes every day.
    """
    preference = const.IPV6_PREFER_SRC_PUBLIC
    sock.setsockopt(socket.IPPROTO_IPV6, const.IPV6_ADDR_PREFERENCES, preference)


def path_mtu(sock: socket.socket) -> int:
    """Return the path MTU to the peer of a connected socket, as the kernel knows it.

    Raises: OSError.
    """
    if sock.family == socket.AF_INET6:
        return sock.getsockopt(socket.IPPROTO_IPV6, const.IPV6_MTU)
    return sock.getsockopt(socket.IPPROTO_IP, const.IP_MTU)


@cache
def gso_supported() -> bool:
    """Return whether the kernel accepts several datagrams in one send (UDP_SEGMENT, Linux 4.18).

    Raises: OSError if there is no descriptor for a socket to test it with.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(const.SOL_UDP, const.UDP_SEGMENT, vxlan.HEADER_LEN)
        except OSError:
            return False
    return True
