"""The error queue of a UDP socket, and the drop reasons that errors of a send stand for.

With IP_RECVERR, the kernel queues ICMP errors about datagrams that a socket has sent, and errors
of this host (ip(7)). It also reports the latest error once as the result of a later call, so a
failed send may be about an earlier datagram.
"""

import errno
import socket
import struct
import sys
from typing import NamedTuple

from vtep.counters import Drop
from vtep.io import socket_constants as const

_CONTROL_SPACE = 512

_RECVERR = frozenset(
    ((socket.IPPROTO_IP, const.IP_RECVERR), (socket.IPPROTO_IPV6, const.IPV6_RECVERR))
)
"""Level and type of the control messages with an error. A socket that receives gets others too."""

_ICMP_ORIGINS = (const.SO_EE_ORIGIN_ICMP, const.SO_EE_ORIGIN_ICMP6)

_EXTENDED_ERR = struct.Struct("=IBBBxII")
"""struct sock_extended_err: errno, origin, type, code, info, data. An address follows it."""

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

ICMP_ERRORS = frozenset(
    (
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.EACCES,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.EMSGSIZE,
    )
)
"""Errors of a send that may be about an *earlier* datagram, which an ICMP error reports
(icmp_err_convert in net/ipv4/icmp.c)."""

STALE_SOCKET = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENODEV))
"""Errors of a connected socket after this host's own address or route has changed."""

GSO_REFUSALS = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP))
"""Errors of a send with UDP_SEGMENT that the kernel or a device cannot segment."""


class QueuedError(NamedTuple):
    """An entry of an error queue."""

    destination: str
    """The address to which the datagram was sent."""
    errno: int
    origin: int
    """SO_EE_ORIGIN_*: whether an ICMP message or this host reports it."""
    type: int
    code: int
    """Type and code of the ICMP message; 0 if there was none."""
    info: int
    """The MTU in octets, if `errno` is EMSGSIZE."""
    offender: str | None
    """The address of the node that sent the ICMP message, if that is known."""

    @property
    def is_icmp(self) -> bool:
        """True if an ICMP message reports the error, rather than this host."""
        return self.origin in _ICMP_ORIGINS


class ReturnedDatagram(NamedTuple):
    """An earlier datagram that was lost according to an ICMP error."""

    host: str
    """The address to which it was sent."""
    reason: Drop


def drop_reason(number: int | None) -> Drop:
    """Return the drop reason of a datagram whose send failed with an errno."""
    return _DROPS.get(number or 0, Drop.UNDERLAY_FAILED)


def read_errors(sock: socket.socket) -> list[QueuedError]:
    """Read and empty the error queue of a socket.

    A socket is always ready while its error queue is not empty, so an event loop would spin.
    """
    errors: list[QueuedError] = []
    while True:
        try:
            _, control, _, destination = sock.recvmsg(1, _CONTROL_SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            return errors
        errors.extend(
            _parse(destination[0] if destination else "", data)
            for level, kind, data in control
            if (level, kind) in _RECVERR
        )


def returned_datagrams(sock: socket.socket) -> list[ReturnedDatagram]:
    """Return the datagrams that ICMP errors report as lost, and empty the error queue."""
    return [
        ReturnedDatagram(
            error.destination,
            Drop.UNDERLAY_TOO_BIG if error.errno == errno.EMSGSIZE else Drop.UNDERLAY_REFUSED,
        )
        for error in read_errors(sock)
        if error.is_icmp
    ]


def _parse(destination: str, data: bytes) -> QueuedError:
    number, origin, kind, code, info, _ = _EXTENDED_ERR.unpack_from(data)
    offender = _address(data[_EXTENDED_ERR.size :])
    return QueuedError(destination, number, origin, kind, code, info, offender)


def _address(sockaddr: bytes) -> str | None:
    """Return the address in a struct sockaddr_in or sockaddr_in6; None for AF_UNSPEC."""
    family = int.from_bytes(sockaddr[:2], sys.byteorder)
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, sockaddr[4:8])
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, sockaddr[8:24])
    return None
