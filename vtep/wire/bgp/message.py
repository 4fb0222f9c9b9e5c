"""BGP messages but UPDATE: framing, OPEN, NOTIFICATION, KEEPALIVE and ROUTE-REFRESH (RFC 4271)."""

from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address
from struct import Struct

from attrs import field, frozen

from vtep.wire.bgp import AS_TRANS, EVPN
from vtep.wire.bgp.capabilities import Capabilities
from vtep.wire.bgp.errors import (
    BgpError,
    ErrorCode,
    HeaderError,
    OpenError,
    RefreshError,
    name_of,
    parse_shutdown,
)

HEADER_LEN = 19
LEN_MAX = 4096
"""Octets of the longest message; RFC 8654, which allows for longer ones, is not advertised."""

MARKER = b"\xff" * 16
VERSION = 4

_OPEN = Struct("!BHH4s")
"""Version, AS number, hold time, BGP identifier."""

_CAPABILITIES = 2
"""Type of the optional parameter with capabilities (RFC 5492, section 4)."""

_PARAMETER_MAX = 253
_EXTENDED = b"\xff\xff"


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
"""A KEEPALIVE, a whole message."""

_LENGTHS: dict[int, tuple[int, int]] = {
    MessageType.OPEN: (29, LEN_MAX),
    MessageType.UPDATE: (23, LEN_MAX),
    MessageType.NOTIFICATION: (21, LEN_MAX),
    MessageType.KEEPALIVE: (HEADER_LEN, HEADER_LEN),
    MessageType.ROUTE_REFRESH: (23, LEN_MAX),
}
"""The least and the greatest length of a message (RFC 4271, section 6.1; RFC 2918)."""


class Deframer:
    """The stream of octets of a TCP connection, cut into messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, octets: bytes) -> Iterator[tuple[MessageType, bytes]]:
        """Yield type and body of each message that is complete with these octets.

        Raises: BgpError if a header is invalid (RFC 4271, section 6.1); the messages before it are
        yielded first, and nothing can be fed afterwards.
        """
        self._pending += octets
        return self._messages()

    def _messages(self) -> Iterator[tuple[MessageType, bytes]]:
        pending = self._pending
        while len(pending) >= HEADER_LEN:
            length = int.from_bytes(pending[16:18])
            kind = _check_header(pending, length)
            if len(pending) < length:
                return
            body = bytes(pending[HEADER_LEN:length])
            del pending[:length]  # Costs no copy of the rest: CPython moves the start.
            yield kind, body


def _check_header(octets: bytearray, length: int) -> MessageType:
    if not octets.startswith(MARKER):
        raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.NOT_SYNCHRONIZED)
    least, most = _LENGTHS.get(octets[18], (HEADER_LEN, LEN_MAX))
    if not least <= length <= most:
        if octets[18] == MessageType.ROUTE_REFRESH and HEADER_LEN <= length <= LEN_MAX:
            raise BgpError(ErrorCode.ROUTE_REFRESH, RefreshError.BAD_LENGTH, bytes(octets[:length]))
        text = f"a message of type {octets[18]} has a length of {length}"
        raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_LENGTH, bytes(octets[16:18]), text)
    if octets[18] not in _LENGTHS:
        text = f"type {octets[18]}"
        raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_TYPE, bytes(octets[18:19]), text)
    return MessageType(octets[18])


@frozen
class Open:
    """An OPEN message (RFC 4271, section 4.2).

    `asn` is the AS number of the capability of RFC 6793, or else of the field of two octets.
    `hold_time` is in seconds.
    """

    asn: int
    hold_time: int
    router_id: IPv4Address
    capabilities: Capabilities = field(factory=Capabilities)

    def pack(self) -> bytes:
        """Pack the body of the message."""
        capabilities = self.capabilities.pack()
        asn = self.asn if self.asn <= 0xFFFF else AS_TRANS
        head = _OPEN.pack(VERSION, asn, self.hold_time, self.router_id.packed)
        if not capabilities:
            return head + b"\0"
        if len(capabilities) <= _PARAMETER_MAX:
            parameter = bytes((_CAPABILITIES, len(capabilities))) + capabilities
            return head + bytes((len(parameter),)) + parameter
        # The extended form of the optional parameters (RFC 9072, section 2).
        parameter = bytes((_CAPABILITIES,)) + len(capabilities).to_bytes(2) + capabilities
        return head + _EXTENDED + len(parameter).to_bytes(2) + parameter

    @classmethod
    def parse(cls, body: bytes) -> "Open":
        """Parse the body of an OPEN message.

        Raises: BgpError (RFC 4271, section 6.2).
        """
        if len(body) <= _OPEN.size:
            raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_LENGTH)
        version, asn, hold_time, router_id = _OPEN.unpack_from(body)
        if version != VERSION:
            data = VERSION.to_bytes(2)
            raise _open_error(OpenError.UNSUPPORTED_VERSION, f"version {version}", data)
        capabilities = Capabilities.parse(b"".join(_parameters(body[_OPEN.size :])))
        if capabilities.four_octet_asn is not None:
            asn = capabilities.four_octet_asn
        if asn in (0, AS_TRANS):  # RFC 7607; RFC 6793, section 9.
            raise _open_error(OpenError.BAD_PEER_AS, f"AS {asn}")
        if hold_time in (1, 2):
            raise _open_error(OpenError.UNACCEPTABLE_HOLD_TIME, f"{hold_time} s")
        if not any(router_id):
            raise _open_error(OpenError.BAD_BGP_IDENTIFIER, "it is zero")
        return cls(asn, hold_time, IPv4Address(router_id), capabilities)


def _open_error(subcode: OpenError, text: str, data: bytes = b"") -> BgpError:
    return BgpError(ErrorCode.OPEN, subcode, data, text)


def _parameters(octets: bytes) -> Iterator[bytes]:
    """Yield the value of each capabilities parameter, of either form (RFC 5492, RFC 9072)."""
    if extended := octets[0] != 0 and octets[1:2] == b"\xff":
        length, octets = int.from_bytes(octets[2:4]), octets[4:]
    else:
        length, octets = octets[0], octets[1:]
    head = 3 if extended else 2
    if len(octets) != length:
        raise _open_error(OpenError.UNSPECIFIC, "the optional parameters have a wrong length")
    while octets:
        end = head + int.from_bytes(octets[1:head])
        if len(octets) < max(head, end):
            raise _open_error(OpenError.UNSPECIFIC, "an optional parameter is truncated")
        if octets[0] != _CAPABILITIES:
            raise _open_error(OpenError.UNSUPPORTED_PARAMETER, f"parameter {octets[0]}")
        yield octets[head:end]
        octets = octets[end:]


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
