"""Parsing of path attributes, with the error handling of each (RFC 7606, section 7)."""

from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from attrs import define, field

from vtep.wire.address import Address
from vtep.wire.bgp.attributes import (
    AS_SEQUENCE,
    EXTENDED_LENGTH,
    INGRESS_REPLICATION,
    OPTIONAL,
    TRANSITIVE,
    WELL_KNOWN,
    AttributeType,
    PathAttributes,
    Pmsi,
)
from vtep.wire.bgp.communities import IPV6_LEN, LEN, Communities
from vtep.wire.bgp.errors import BgpError, ErrorCode, UpdateError

_MP = (AttributeType.MP_REACH_NLRI, AttributeType.MP_UNREACH_NLRI)
_ORIGIN_MAX = 2
_AS_CONFED_SEQUENCE = 3
_SEQUENCES = (AS_SEQUENCE, _AS_CONFED_SEQUENCE)
_SETS = (1, 4)
"""AS_SET and AS_CONFED_SET, which are treated as malformed (RFC 9774, section 3)."""

_Segments = list[tuple[int, tuple[int, ...]]]
"""Type and AS numbers of the segments of an AS path."""


class _Attribute(NamedTuple):
    flags: int
    kind: int
    value: bytes
    octets: bytes
    """The attribute as a whole, which a NOTIFICATION quotes."""


@define
class ParsedAttributes:
    """The attributes of one UPDATE message.

    `reach` and `unreach` are the values of MP_REACH_NLRI and MP_UNREACH_NLRI, None if absent.
    `withdraw` has a line for each error that makes the routes treated as withdrawn, `discarded` one
    for each attribute that was discarded.
    """

    four_octet: bool
    internal: bool
    kinds: set[int] = field(factory=set)
    reach: bytes | None = None
    unreach: bytes | None = None
    withdraw: list[str] = field(factory=list)
    discarded: list[str] = field(factory=list)
    fields: dict[str, Any] = field(factory=dict)
    communities: Communities = field(factory=Communities)
    path: _Segments = field(factory=list)
    as4_path: _Segments | None = None

    def build(self, next_hop: Address) -> PathAttributes:
        """Return the attributes, if the routes are not treated as withdrawn."""
        communities = self.communities
        return PathAttributes(
            next_hop=next_hop,
            route_targets=frozenset(communities.route_targets),
            encapsulations=frozenset(communities.encapsulations),
            sequence=communities.sequence,
            sticky=communities.sticky,
            default_gateway=communities.default_gateway,
            router=communities.router,
            as_path=_merge(self.path, self.as4_path),
            **self.fields,
        )


def parse_attributes(octets: bytes, *, four_octet: bool, internal: bool) -> ParsedAttributes:
    """Parse the path attributes of an UPDATE message.

    Raises: BgpError if the session must end: MP_REACH_NLRI or MP_UNREACH_NLRI is there twice
    (RFC 7606, section 3 (g)), truncated, or has wrong flags (section 5.3), or a well-known
    attribute is not recognized (RFC 4271, section 6.3).
    """
    parsed = ParsedAttributes(four_octet, internal)
    for attribute in _split(octets, parsed):
        if attribute.kind in parsed.kinds:
            if attribute.kind in _MP:
                text = f"{_name(attribute.kind)} is there twice"
                raise BgpError(ErrorCode.UPDATE, UpdateError.MALFORMED_ATTRIBUTES, text=text)
            parsed.discarded.append(f"{_name(attribute.kind)} is there twice")
            continue
        parsed.kinds.add(attribute.kind)
        _parse(parsed, attribute)
    return parsed


def _split(octets: bytes, parsed: ParsedAttributes) -> Iterator[_Attribute]:
    """Yield the attributes; one that is truncated ends them (RFC 7606, section 4)."""
    offset, end = 0, len(octets)
    while offset < end:
        flags = octets[offset]
        kind = octets[offset + 1] if offset + 1 < end else 0
        head = 4 if flags & EXTENDED_LENGTH else 3
        start = offset + head
        stop = start + int.from_bytes(octets[offset + 2 : start])
        if start > end or stop > end:
            if kind in _MP:
                raise _mp_error(kind, octets[offset:], "is truncated")
            parsed.kinds.add(kind)
            parsed.withdraw.append(f"{_name(kind)} is truncated")
            return
        yield _Attribute(flags, kind, octets[start:stop], octets[offset:stop])
        offset = stop


def _parse(parsed: ParsedAttributes, attribute: _Attribute) -> None:
    flags, kind, value, octets = attribute
    rule = _RULES.get(kind)
    if rule is None:
        if not flags & OPTIONAL:
            subcode = UpdateError.UNRECOGNIZED_WELL_KNOWN
            raise BgpError(ErrorCode.UPDATE, subcode, octets, f"attribute {kind}")
        return
    if (rule.internal_only and not parsed.internal) or (rule.old_only and parsed.four_octet):
        parsed.discarded.append(f"{_name(kind)} is not for this session")
        return
    if flags & (OPTIONAL | TRANSITIVE) != rule.flags:
        if kind in _MP:
            raise _mp_error(kind, octets, f"has the flags {flags:#04x}")
        parsed.withdraw.append(f"{_name(kind)} has the flags {flags:#04x}")
        return
    try:
        rule.parse(parsed, value)
    except ValueError as error:
        text = f"{_name(kind)} {error}"
        if kind in _MP:
            raise _mp_error(kind, octets, str(error)) from None
        (parsed.discarded if rule.discard else parsed.withdraw).append(text)


def _mp_error(kind: int, octets: bytes, reason: str) -> BgpError:
    """Return the error that ends the session, since routes may be missing (RFC 7606, 5.3)."""
    text = f"{_name(kind)} {reason}"
    return BgpError(ErrorCode.UPDATE, UpdateError.OPTIONAL_ATTRIBUTE, octets, text)


def _name(kind: int) -> str:
    return AttributeType(kind).name if kind in _RULES else f"attribute {kind}"


def _check_len(value: bytes, length: int) -> None:
    if len(value) != length:
        raise ValueError(f"has a length of {len(value)}, not {length}")


def _check_multiple(value: bytes, length: int) -> None:
    if not value or len(value) % length:
        raise ValueError(f"has a length of {len(value)}, which is no multiple of {length}")


def _origin(parsed: ParsedAttributes, value: bytes) -> None:
    _check_len(value, 1)
    if value[0] > _ORIGIN_MAX:
        raise ValueError(f"has the value {value[0]}")
    parsed.fields["origin"] = value[0]


def _as_path(parsed: ParsedAttributes, value: bytes) -> None:
    parsed.path = _parse_segments(value, 4 if parsed.four_octet else 2)


def _as4_path(parsed: ParsedAttributes, value: bytes) -> None:
    segments = _parse_segments(value, 4)
    # RFC 6793, section 6: confederations are not visible in it.
    parsed.as4_path = [segment for segment in segments if segment[0] == AS_SEQUENCE]


def _parse_segments(value: bytes, size: int) -> _Segments:
    """Parse the segments of an AS path (RFC 7606, section 7.2); `size` is that of an AS number."""
    segments: _Segments = []
    offset = 0
    while offset < len(value):
        kind, count = value[offset], value[offset + 1] if offset + 1 < len(value) else 0
        start, end = offset + 2, offset + 2 + count * size
        if not count or end > len(value):
            raise ValueError("has a segment with a wrong length")
        if kind not in _SEQUENCES:
            raise ValueError("has an AS_SET" if kind in _SETS else f"has a segment of type {kind}")
        numbers = (int.from_bytes(value[at : at + size]) for at in range(start, end, size))
        segments.append((kind, tuple(numbers)))
        offset = end
    return segments


def _merge(path: _Segments, as4_path: _Segments | None) -> tuple[int, ...]:
    """Return the AS path with the numbers of AS4_PATH at its end (RFC 6793, section 4.2.3)."""
    numbers = tuple(number for _, segment in path for number in segment)
    if as4_path is None:
        return numbers
    tail = tuple(number for _, segment in as4_path for number in segment)
    length = sum(len(segment) for kind, segment in path if kind == AS_SEQUENCE)
    # A longer AS4_PATH is ignored. Confederation segments are in front, so they are kept.
    return numbers if len(tail) > length else numbers[: len(numbers) - len(tail)] + tail


def _local_pref(parsed: ParsedAttributes, value: bytes) -> None:
    _check_len(value, 4)
    parsed.fields["local_pref"] = int.from_bytes(value)


def _originator_id(parsed: ParsedAttributes, value: bytes) -> None:
    _check_len(value, 4)
    parsed.fields["originator_id"] = IPv4Address(value)


def _cluster_list(parsed: ParsedAttributes, value: bytes) -> None:
    _check_multiple(value, 4)
    clusters = (IPv4Address(value[at : at + 4]) for at in range(0, len(value), 4))
    parsed.fields["cluster_list"] = tuple(clusters)


def _reach(parsed: ParsedAttributes, value: bytes) -> None:
    if len(value) < 5 or len(value) < 5 + value[3]:
        raise ValueError("is too short")
    parsed.reach = value


def _unreach(parsed: ParsedAttributes, value: bytes) -> None:
    if len(value) < 3:
        raise ValueError("is too short")
    parsed.unreach = value


def _extended_communities(parsed: ParsedAttributes, value: bytes) -> None:
    _check_multiple(value, LEN)
    parsed.communities.parse(value)


def _ipv6_communities(parsed: ParsedAttributes, value: bytes) -> None:
    _check_multiple(value, IPV6_LEN)
    parsed.communities.parse_ipv6(value)


def _pmsi(parsed: ParsedAttributes, value: bytes) -> None:
    if len(value) < 5:
        raise ValueError("is too short")
    flags, tunnel_type, label, identifier = value[0], value[1], value[2:5], value[5:]
    endpoint: Address | None = None
    if tunnel_type == INGRESS_REPLICATION:
        if len(identifier) == 4:
            endpoint = IPv4Address(identifier)
        elif len(identifier) == 16:
            endpoint = IPv6Address(identifier)
        else:
            raise ValueError(f"has an endpoint of {len(identifier)} octets")
    parsed.fields["pmsi"] = Pmsi(flags, tunnel_type, int.from_bytes(label), endpoint)


def _of_len(length: int) -> "_Parser":
    return lambda _, value: _check_len(value, length)


def _multiple_of(length: int) -> "_Parser":
    return lambda _, value: _check_multiple(value, length)


def _aggregator(parsed: ParsedAttributes, value: bytes) -> None:
    _check_len(value, 8 if parsed.four_octet else 6)


_Parser = Callable[[ParsedAttributes, bytes], None]


class _Rule(NamedTuple):
    """The parser of an attribute, its flags, and the treatment of its errors (RFC 7606).

    `discard` says that a malformed one is discarded; else the routes are treated as withdrawn.
    `internal_only` and `old_only`: it is discarded from external peers, or if both speakers have
    four-octet AS numbers.
    """

    flags: int
    parse: _Parser
    discard: bool = False
    internal_only: bool = False
    old_only: bool = False


_NON_TRANSITIVE = OPTIONAL
_RULES: dict[int, _Rule] = {
    AttributeType.ORIGIN: _Rule(WELL_KNOWN, _origin),
    AttributeType.AS_PATH: _Rule(WELL_KNOWN, _as_path),
    AttributeType.NEXT_HOP: _Rule(WELL_KNOWN, _of_len(4)),
    AttributeType.MULTI_EXIT_DISC: _Rule(_NON_TRANSITIVE, _of_len(4)),
    AttributeType.LOCAL_PREF: _Rule(WELL_KNOWN, _local_pref, internal_only=True),
    AttributeType.ATOMIC_AGGREGATE: _Rule(WELL_KNOWN, _of_len(0), discard=True),
    AttributeType.AGGREGATOR: _Rule(OPTIONAL | TRANSITIVE, _aggregator, discard=True),
    AttributeType.COMMUNITIES: _Rule(OPTIONAL | TRANSITIVE, _multiple_of(4)),
    AttributeType.ORIGINATOR_ID: _Rule(_NON_TRANSITIVE, _originator_id, internal_only=True),
    AttributeType.CLUSTER_LIST: _Rule(_NON_TRANSITIVE, _cluster_list, internal_only=True),
    AttributeType.MP_REACH_NLRI: _Rule(_NON_TRANSITIVE, _reach),
    AttributeType.MP_UNREACH_NLRI: _Rule(_NON_TRANSITIVE, _unreach),
    AttributeType.EXTENDED_COMMUNITIES: _Rule(OPTIONAL | TRANSITIVE, _extended_communities),
    AttributeType.AS4_PATH: _Rule(OPTIONAL | TRANSITIVE, _as4_path, discard=True, old_only=True),
    AttributeType.AS4_AGGREGATOR: _Rule(
        OPTIONAL | TRANSITIVE, _of_len(8), discard=True, old_only=True
    ),
    AttributeType.PMSI_TUNNEL: _Rule(OPTIONAL | TRANSITIVE, _pmsi),
    AttributeType.IPV6_EXTENDED_COMMUNITIES: _Rule(OPTIONAL | TRANSITIVE, _ipv6_communities),
    AttributeType.LARGE_COMMUNITIES: _Rule(OPTIONAL | TRANSITIVE, _multiple_of(12)),
    AttributeType.ONLY_TO_CUSTOMER: _Rule(OPTIONAL | TRANSITIVE, _of_len(4)),
}
"""RFC 7606, sections 7.1 to 7.15; RFC 6793, 6; RFC 6514, 5; RFC 8092, 6; RFC 9234, 5."""
