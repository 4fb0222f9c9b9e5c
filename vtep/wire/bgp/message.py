"""BGP messages but UPDATE: framing, OPEN, NOTIFICATION, KEEPALIVE and ROUTE-REFRESH (RFC 4271)."""

from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address

from attrs import frozen

from vtep.wire.bgp import EVPN
from vtep.wire.bgp.capabilities import Capabilities
from vtep.wire.bgp.errors import name_of, parse_shutdown

HEADER_LEN = 19
LEN_MAX = 4096
"""Octets of the longest message; RFC 8654, which allows for longer ones, is not advertised."""

MARKER = b"\xff" * 16


class MessageType(IntEnum):
    """The type of a message (RFC 4271, section 4.1; RFC 2918)."""

    OPEN = 1
    UPDATE = 2
    NOTIFICATION = 3
    KEEPALIVE = 4
    ROUTE_REFRESH = 5


def pack_message(kind: MessageType, body: bytes = b"") -> bytes:
    """Pack a whole message: header and body."""
    return MARKER + (HEADER_LEN + len(body)).to_bytes(2) + bytes((kind,)) + body


KEEPALIVE = pack_message(MessageType.KEEPALIVE)


class Deframer:
    """The stream of octets of a TCP connection, cut into messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, octets: bytes) -> Iterator[tuple[MessageType, bytes]]:
        """Yield type and body of each message that is complete with these octets.

        Raises: BgpError if a header is invalid (RFC 4271, section 6.1); the messages before it are
        yielded first, and nothing can be fed afterwards.
        """
        raise NotImplementedError


@frozen
class Open:
    """An OPEN message (RFC 4271, section 4.2).

    `asn` is the AS number of the capability of RFC 6793, or else of the field of two octets.
    `hold_time` is in seconds.
    """

    asn: int
    hold_time: int
    router_id: IPv4Address
    capabilities: Capabilities = Capabilities()

    def pack(self) -> bytes:
        """Pack the body of the message."""
        raise NotImplementedError

    @classmethod
    def parse(cls, body: bytes) -> "Open":
        """Parse the body of an OPEN message.

        Raises: BgpError (RFC 4271, section 6.2).
        """
        raise NotImplementedError


@frozen
class Notification:
    """A NOTIFICATION message (RFC 4271, section 4.5)."""

    code: int
    subcode: int
    data: bytes = b""

    @property
    def text(self) -> str:
        """The error by name, with the shutdown communication of a Cease (RFC 9003)."""
        name = name_of(self.code, self.subcode)
        said = parse_shutdown(self.data) if (self.code, self.subcode) in {(6, 2), (6, 4)} else ""
        return f'{name} "{said}"' if said else name

    def pack(self) -> bytes:
        """Pack the body of the message."""
        return bytes((self.code, self.subcode)) + self.data

    @classmethod
    def parse(cls, body: bytes) -> "Notification":
        """Parse the body of a NOTIFICATION message of at least 2 octets."""
        return cls(body[0], body[1], body[2:])


@frozen
class RouteRefresh:
    """A ROUTE-REFRESH message (RFC 2918); `subtype` is that of RFC 7313, or 0."""

    afi: int = EVPN[0]
    subtype: int = 0
    safi: int = EVPN[1]

    def pack(self) -> bytes:
        """Pack the body of the message."""
        return self.afi.to_bytes(2) + bytes((self.subtype, self.safi))

    @classmethod
    def parse(cls, body: bytes) -> "RouteRefresh":
        """Parse the body of a ROUTE-REFRESH message of at least 4 octets."""
        return cls(int.from_bytes(body[:2]), body[2], body[3])
