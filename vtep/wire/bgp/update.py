"""UPDATE messages with EVPN routes, and their error handling (RFC 4271, RFC 4760, RFC 7606)."""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from attrs import frozen

from vtep.wire.address import Address, check_unicast
from vtep.wire.bgp import EVPN
from vtep.wire.bgp.attribute_parser import ParsedAttributes, parse_attributes
from vtep.wire.bgp.attributes import (
    OPTIONAL,
    AttributeType,
    PathAttributes,
    pack_attribute,
    pack_attributes,
)
from vtep.wire.bgp.errors import BgpError, ErrorCode, UpdateError
from vtep.wire.bgp.evpn import Route, pack_route, parse_routes
from vtep.wire.bgp.message import HEADER_LEN, LEN_MAX, MessageType, pack_message

_FAMILY = EVPN[0].to_bytes(2) + bytes((EVPN[1],))
_ROOM = LEN_MAX - HEADER_LEN - 4 - 4
"""Octets of a message for attributes and routes, without both lengths and the head of an
attribute."""

_END_OF_RIB_BODY = b"\0\0\0\x06\x80\x0f\x03" + _FAMILY

END_OF_RIB = pack_message(MessageType.UPDATE, _END_OF_RIB_BODY)
"""The End-of-RIB marker of EVPN, a whole message (RFC 4724, section 2)."""


@frozen
class Update:
    """An UPDATE message: the EVPN routes that it announces and withdraws.

    No route is in both: one that is announced is not withdrawn (RFC 4271, section 4.3). Routes that
    are treated as withdrawn are in `withdrawn`, and `attributes` is None then. `problems` has a
    line for each deviation that did not end the session.
    """

    announced: tuple[Route, ...] = ()
    withdrawn: tuple[Route, ...] = ()
    attributes: PathAttributes | None = None
    is_end_of_rib: bool = False
    problems: tuple[str, ...] = ()


def parse_update(body: bytes, *, four_octet: bool, internal: bool) -> Update:
    """Parse the body of an UPDATE message.

    `four_octet` says whether both speakers have the capability of RFC 6793, and `internal` whether
    the peer is in our AS. Routes of other families are ignored.

    Raises: BgpError, but only where RFC 7606 demands that the session ends.
    """
    withdrawn_len, octets, has_nlri = _sections(body)
    parsed = parse_attributes(octets, four_octet=four_octet, internal=internal)
    next_hop, announced, is_reachable = _reached(parsed)
    withdrawn = _unreached(parsed)
    if not (is_reachable or has_nlri) and parsed.withdraw:
        # What was truncated or misread may be the routes (RFC 7606, section 5.2).
        text = f"no reachable routes, and {parsed.withdraw[0]}"
        raise BgpError(ErrorCode.UPDATE, UpdateError.MALFORMED_ATTRIBUTES, text=text)
    problems = [f"{text}; attribute discarded" for text in parsed.discarded]
    if not announced:
        return Update(
            withdrawn=tuple(withdrawn),
            is_end_of_rib=_is_end_of_rib(parsed) and not withdrawn_len and not has_nlri,
            problems=tuple(problems),
        )
    _check_routes(parsed, next_hop)
    if parsed.withdraw or next_hop is None:
        problems += [f"{text}; routes treated as withdrawn" for text in parsed.withdraw]
        return Update(withdrawn=(*withdrawn, *announced), problems=tuple(problems))
    if withdrawn:
        keys = {route.key for route in announced}
        withdrawn = [route for route in withdrawn if route.key not in keys]
    return Update(
        tuple(announced), tuple(withdrawn), parsed.build(next_hop), problems=tuple(problems)
    )


def _sections(body: bytes) -> tuple[int, bytes, bool]:
    """Return the length of the withdrawn routes, the path attributes, and whether NLRI follow.

    Withdrawn routes and NLRI here are of IPv4, which is not negotiated.
    """
    withdrawn_len = int.from_bytes(body[:2])
    start = 4 + withdrawn_len
    end = start + int.from_bytes(body[start - 2 : start])
    if len(body) < start or len(body) < end:
        text = "the attributes are longer than the message"
        raise BgpError(ErrorCode.UPDATE, UpdateError.MALFORMED_ATTRIBUTES, text=text)
    return withdrawn_len, body[start:end], len(body) > end


def _reached(parsed: ParsedAttributes) -> tuple[Address | None, list[Route], bool]:
    """Return next hop and routes of EVPN, and whether there are routes of any family."""
    value = parsed.reach
    if value is None:
        return None, [], False
    start = 5 + value[3]
    octets = value[start:]
    if value[:3] != _FAMILY:
        return None, [], bool(octets)
    try:
        next_hop = _parse_next_hop(value[4 : start - 1])
        return next_hop, parse_routes(octets), bool(octets)
    except ValueError as error:
        raise _nlri_error(AttributeType.MP_REACH_NLRI, value, error) from None


def _unreached(parsed: ParsedAttributes) -> list[Route]:
    value = parsed.unreach
    if value is None or value[:3] != _FAMILY:
        return []
    try:
        return parse_routes(value[3:])
    except ValueError as error:
        raise _nlri_error(AttributeType.MP_UNREACH_NLRI, value, error) from None


def _nlri_error(kind: AttributeType, value: bytes, error: ValueError) -> BgpError:
    """Return the error that ends the session (RFC 7606, sections 5.3 and 7.11)."""
    data = pack_attribute(OPTIONAL, kind, value)
    text = f"{kind.name}: {error}"
    return BgpError(ErrorCode.UPDATE, UpdateError.OPTIONAL_ATTRIBUTE, data, text)


def _parse_next_hop(octets: bytes) -> Address:
    """Parse a next hop: an IPv4 or IPv6 address, or a global and a link-local one (RFC 2545).

    An IPv4-mapped address is returned as IPv4. Without a global address, it is the link-local one.
    """
    if len(octets) == 4:
        return IPv4Address(octets)
    if len(octets) == 16 or len(octets) == 32:
        address = IPv6Address(octets[:16])
        if address.is_unspecified and len(octets) == 32:
            address = IPv6Address(octets[16:])
        return address.ipv4_mapped or address
    raise ValueError(f"the next hop has a length of {len(octets)}, not 4, 16 or 32")


def _check_routes(parsed: ParsedAttributes, next_hop: Address | None) -> None:
    """Add the reasons to treat routes as withdrawn that concern a message as a whole."""
    # LOCAL_PREF of internal peers is not demanded: it is not used, and routes need not be lost.
    for kind in (AttributeType.ORIGIN, AttributeType.AS_PATH):
        if kind not in parsed.kinds:  # RFC 7606, section 3 (d).
            parsed.withdraw.append(f"{kind.name} is missing")
    if next_hop is not None:
        try:
            check_unicast(next_hop)
        except ValueError as error:
            parsed.withdraw.append(f"the next hop {next_hop} {error}")


def _is_end_of_rib(parsed: ParsedAttributes) -> bool:
    return parsed.kinds == {AttributeType.MP_UNREACH_NLRI} and parsed.unreach == _FAMILY


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

    Raises: ValueError if the attributes have no next hop, or leave no room for routes.
    """
    if attributes.next_hop is None:
        raise ValueError("routes need a next hop to be announced")
    address = attributes.next_hop.packed
    reach = _FAMILY + bytes((len(address),)) + address + b"\0"
    others = pack_attributes(attributes, four_octet=four_octet, internal=internal, asn=asn)
    room = _ROOM - len(others) - len(reach)
    for octets in _chunks(routes, room):
        # In front, as RFC 7606, section 5.1, advises.
        first = pack_attribute(OPTIONAL, AttributeType.MP_REACH_NLRI, reach + octets)
        yield _pack_update(first + others)


def pack_withdrawals(routes: Iterable[Route]) -> Iterator[bytes]:
    """Yield whole UPDATE messages of at most 4096 octets that withdraw routes."""
    for octets in _chunks(routes, _ROOM - len(_FAMILY)):
        yield _pack_update(
            pack_attribute(OPTIONAL, AttributeType.MP_UNREACH_NLRI, _FAMILY + octets)
        )


def _pack_update(attributes: bytes) -> bytes:
    return pack_message(MessageType.UPDATE, b"\0\0" + len(attributes).to_bytes(2) + attributes)


def _chunks(routes: Iterable[Route], room: int) -> Iterator[bytes]:
    """Yield packed routes that fit into `room` octets."""
    chunk: list[bytes] = []
    left = room
    for route in routes:
        octets = pack_route(route)
        if len(octets) > left:
            if len(octets) > room:
                raise ValueError("the attributes leave no room for routes; use fewer route targets")
            yield b"".join(chunk)
            chunk.clear()
            left = room
        chunk.append(octets)
        left -= len(octets)
    if chunk:
        yield b"".join(chunk)
