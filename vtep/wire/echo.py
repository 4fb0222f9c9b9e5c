"""The echo of VTEPs: messages that measure reachability, delay and path MTU. No I/O.

An echo request is a datagram to the VXLAN port whose VXLAN header has the I flag clear, so every
other VTEP drops it (RFC 7348, section 5). A pyvtep replies, but only to hosts from which one of its
segments accepts frames, at a limited rate, and with a reply that is never longer than the request.
So it is not an amplifier. An echo reply has the same format, and nothing is sent because of one.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------------------------------------------------------+
    |                        VXLAN header, I = 0                    |
    |                     VNI                       |       0       |
    +-----------------------------------------------+---------------+
    |                            magic                              |
    |                                                               |
    +---------------+---------------+---------------+---------------+
    |    version    |     kind      |     scope     |    status     |
    +---------------+---------------+---------------+---------------+
    |               0               |             port              |
    +-------------------------------+-------------------------------+
    |                            token                              |
    |                                                               |
    +---------------------------------------------------------------+
    |                           sequence                            |
    +-------------------------------+-------------------------------+
    |            octets             |        0, to any length       |
    +-------------------------------+-------------------------------+

The reply goes to the source address of the request and to `port` there. That is either the VXLAN
port, so that a firewall treats replies as it treats frames, or the source port of the request, on
which a stateful firewall expects a reply. With other ports, a forged request could direct replies
to any service. So there is a reply only to the VXLAN port and to the source ports of RFC 7348. A
NAT that changes ports breaks the echo, but frames do not pass it either.
"""

from enum import IntEnum
from struct import Struct
from typing import Self

from attrs import evolve, frozen

from vtep.wire import Buffer, vxlan

_FORMAT = Struct("!II8sBBBBHH8sIH")
_MAGIC = b"pyvtepEC"
_VERSION = 1

SIZE = _FORMAT.size
"""Octets of the shortest message."""

TOKEN_LEN = 8
TOKEN_OFFSET = 24
"""Offset of the token in a message."""

_SCOPE_HOST, _SCOPE_VNI = range(2)


class EchoKind(IntEnum):
    """The kind of a message."""

    REQUEST = 1
    REPLY = 2


class EchoStatus(IntEnum):
    """The answer of a VTEP about the VNI and the source address of a request."""

    FINE = 0
    VNI_UNKNOWN = 1
    """It has no such VNI."""
    SOURCE_UNKNOWN = 2
    """It has the VNI, but accepts frames from the source in other VNIs only."""


@frozen
class EchoMessage:
    """An echo request or an echo reply."""

    kind: EchoKind
    vni: int | None
    """The VNI that the request is about, or None."""
    port: int
    """The UDP port to which the reply goes."""
    token: bytes
    """`TOKEN_LEN` random octets by which a sender recognises the replies to its requests."""
    sequence: int
    octets: int
    """UDP payload: in a request the wanted length of the reply, in a reply that of the request."""
    status: EchoStatus = EchoStatus.FINE

    def pack(self, size: int = SIZE) -> bytes:
        """Return the datagram, padded to `size` octets."""
        message = _FORMAT.pack(
            *(0, (self.vni or 0) << 8, _MAGIC, _VERSION, self.kind),
            *(_SCOPE_HOST if self.vni is None else _SCOPE_VNI, self.status, 0),
            *(self.port, self.token, self.sequence, self.octets),
        )
        return message.ljust(size, b"\0")

    @classmethod
    def parse(cls, datagram: Buffer) -> Self | None:
        """Parse a datagram. Returns: None if it is not a message, or has another version."""
        if len(datagram) < SIZE:
            return None
        fields = _FORMAT.unpack_from(datagram)
        flags, vni, magic, version, kind, scope, status, zero, port, token, sequence, octets = (
            fields
        )
        if (magic, version, zero) != (_MAGIC, _VERSION, 0) or flags & vxlan.FLAG_I or vni & 0xFF:
            return None
        try:
            of_kind, of_status = EchoKind(kind), EchoStatus(status)
        except ValueError:
            return None
        if scope not in (_SCOPE_HOST, _SCOPE_VNI):
            return None
        of_vni = vni >> 8 if scope == _SCOPE_VNI else None
        return cls(of_kind, of_vni, port, token, sequence, octets, of_status)

    def reply(self, request_len: int, status: EchoStatus) -> bytes:
        """Return the datagram that replies to this request of `request_len` octets.

        It has the length that the request wants, but at most that of the request.
        """
        size = max(SIZE, min(self.octets, request_len))
        message = evolve(self, kind=EchoKind.REPLY, octets=request_len, status=status)
        return message.pack(size)

    def permits_reply(self, vxlan_port: int) -> bool:
        """Return True for a request whose reply would go to a port of a VTEP."""
        to_vtep = self.port == vxlan_port or self.port in vxlan.SOURCE_PORTS
        return self.kind is EchoKind.REQUEST and to_vtep
