"""UPDATE messages with EVPN routes, and their error handling (RFC 4271, RFC 4760, RFC 7606)."""

from collections.abc import Iterable, Iterator

from attrs import frozen

from vtep.wire.bgp import EVPN
from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.evpn import Route
from vtep.wire.bgp.message import MessageType, pack_message

_END_OF_RIB_BODY = b"\0\0\0\x06\x80\x0f\x03" + EVPN[0].to_bytes(2) + bytes((EVPN[1],))

END_OF_RIB = pack_message(MessageType.UPDATE, _END_OF_RIB_BODY)
"""The End-of-RIB marker of EVPN, a whole message (RFC 4724, section 2)."""


@frozen
class Update:
    """An UPDATE message: the EVPN routes that it announces and withdraws.

    No route is in both: one that is announced is not withdrawn (RFC 7606, section 5.1). Routes that
    are treated as withdrawn are in `withdrawn`, and `attributes` is None then. `problems` has a line
    for each deviation that did not end the session.
    """

    announced: tuple[Route, ...] = ()
    withdrawn: tuple[Route, ...] = ()
    attributes: PathAttributes | None = None
    is_end_of_rib: bool = False
    problems: tuple[str, ...] = ()


def parse_update(body: bytes, *, four_octet: bool, internal: bool) -> Update:
    """Parse the body of an UPDATE message.

    `four_octet` says whether both speakers have the capability of RFC 6793, and `internal` whether
    the peer is in our AS.

    Raises: BgpError, but only where RFC 7606 demands that the session ends.
    """
    raise NotImplementedError


def pack_updates(
    routes: Iterable[Route],
    attributes: PathAttributes,
    *,
    four_octet: bool,
    internal: bool,
    asn: int,
) -> Iterator[bytes]:
    """Yield whole UPDATE messages of at most 4096 octets that announce routes.

    `asn` is our own AS number, which is put in front of the AS path for external peers.

    Raises: ValueError if the attributes have no next hop.
    """
    raise NotImplementedError


def pack_withdrawals(routes: Iterable[Route]) -> Iterator[bytes]:
    """Yield whole UPDATE messages of at most 4096 octets that withdraw routes."""
    raise NotImplementedError
