"""ICMP echo requests and replies (RFC 792; RFC 4443, sections 4.1 and 4.2), without data."""

from struct import Struct
from typing import NamedTuple

from vtep.wire import Buffer

REQUEST = {4: 8, 6: 128}
REPLY = {4: 0, 6: 129}
"""ICMP types by IP version."""

_MESSAGE = Struct("!BBHHH")


class IcmpEcho(NamedTuple):
    """Identifier and sequence number of an echo request or reply."""

    identifier: int
    sequence: int


def pack_request(version: int, echo: IcmpEcho) -> bytes:
    """Pack an echo request of 8 octets with 0 in its checksum field (see `icmp`)."""
    return _MESSAGE.pack(REQUEST[version], 0, 0, *echo)


def parse_reply(data: Buffer, offset: int, version: int) -> IcmpEcho | None:
    """Parse the ICMP message at `offset`. Returns: None if it is truncated or no echo reply."""
    if len(data) < offset + _MESSAGE.size:
        return None
    kind, _, _, identifier, sequence = _MESSAGE.unpack_from(data, offset)
    return IcmpEcho(identifier, sequence) if kind == REPLY[version] else None
