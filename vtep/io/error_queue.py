"""What the kernel and the network say of datagrams: errors of a send, and those that come back."""

import errno
import socket
import sys
from typing import NamedTuple

from vtep.counters import Drop

_ERROR_SPACE = 512
_ICMP_ORIGINS = (2, 3)
"""SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6."""

_RECVERR = frozenset(((socket.IPPROTO_IP, 11), (socket.IPPROTO_IPV6, 25)))
"""IP_RECVERR and IPV6_RECVERR. A socket that receives gets other control messages, too."""

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

FROM_AFAR = frozenset(
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
"""What a send may say of an *earlier* datagram, to which an ICMP error came back."""

STALE = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENODEV))
"""What a socket says when this host's address or route has changed under it."""

GSO_REFUSALS = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP))
"""What a send of several datagrams says if the kernel or a device can't cut it."""


class Returned(NamedTuple):
    """An earlier datagram that came back as an ICMP error: where it went, and why it is lost."""

    host: str
    reason: Drop


def reason(number: int | None) -> Drop:
    """Why a datagram was lost that the kernel refused with this error number."""
    return _DROPS.get(number or 0, Drop.UNDERLAY_FAILED)


def returned(sock: socket.socket) -> list[Returned]:
    """What ICMP errors wait in a socket's error queue, which is emptied.

    A socket with something in there can't be waited for: it is always ready.
    """
    news: list[Returned] = []
    while True:
        try:
            _, ancillary, _, destination = sock.recvmsg(1, _ERROR_SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            return news
        # struct sock_extended_err: error number (4 octets), origin, type, code, ...
        for level, kind, data in ancillary:
            if (level, kind) in _RECVERR and data[4] in _ICMP_ORIGINS:
                too_big = int.from_bytes(data[:4], sys.byteorder) == errno.EMSGSIZE
                lost = Drop.UNDERLAY_TOO_BIG if too_big else Drop.UNDERLAY_REFUSED
                news.append(Returned(destination[0], lost))
