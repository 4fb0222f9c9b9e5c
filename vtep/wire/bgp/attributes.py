"""Path attributes of EVPN routes (RFC 4271, section 5; RFC 4760; RFC 6514; RFC 7432, section 7)."""

from collections.abc import Iterator
from enum import IntEnum
from ipaddress import IPv4Address

from attrs import frozen

from vtep.wire.address import Address
from vtep.wire.bgp import AS_TRANS
from vtep.wire.bgp.communities import (
    ENCAPSULATION_VXLAN,
    IPV6_LEN,
    RouteTarget,
    pack_communities,
)

OPTIONAL = 0x80
TRANSITIVE = 0x40
PARTIAL = 0x20
EXTENDED_LENGTH = 0x10
"""The flags of an attribute (RFC 4271, section 4.3)."""

WELL_KNOWN = TRANSITIVE

AS_SEQUENCE = 2
"""The type of a segment of AS_PATH (RFC 4271, section 4.3)."""

LOCAL_PREF_DEFAULT = 100
"""The usual value of LOCAL_PREF, which RFC 4271 leaves open."""

_SEGMENT_MAX = 255
"""AS numbers in a segment of AS_PATH."""


class AttributeType(IntEnum):
    """Type codes of path attributes (IANA, "BGP Path Attributes")."""

    ORIGIN = 1
    AS_PATH = 2
    NEXT_HOP = 3
    MULTI_EXIT_DISC = 4
    LOCAL_PREF = 5
    ATOMIC_AGGREGATE = 6
    AGGREGATOR = 7
    COMMUNITIES = 8
    ORIGINATOR_ID = 9
    CLUSTER_LIST = 10
    MP_REACH_NLRI = 14
    MP_UNREACH_NLRI = 15
    EXTENDED_COMMUNITIES = 16
    AS4_PATH = 17
    AS4_AGGREGATOR = 18
    PMSI_TUNNEL = 22
    IPV6_EXTENDED_COMMUNITIES = 25
    LARGE_COMMUNITIES = 32
    ONLY_TO_CUSTOMER = 35


INGRESS_REPLICATION = 6
"""The PMSI tunnel type of VTEPs that flood by unicast (RFC 6514, section 5)."""


@frozen
class Pmsi:
    """The PMSI Tunnel attribute of type 3 routes (RFC 6514, section 5; RFC 8365, section 9).

    `label` is the raw field of 24 bits, which is the VNI. `endpoint` is None unless the tunnel type
    is ingress replication.
    """

    flags: int
    tunnel_type: int
    label: int
    endpoint: Address | None


@frozen
class PathAttributes:
    """The path attributes of routes.

    `next_hop` is None in attributes to announce that take the local address of the session.
    `sequence` and `sticky` are of the MAC Mobility community (RFC 7432, section 7.7); `router` is
    the R flag of the ARP/ND community (RFC 9047). `as_path` has all AS numbers, first the nearest
    one, without the boundaries of segments.
    """

    next_hop: Address | None = None
    route_targets: frozenset[RouteTarget] = frozenset()
    encapsulations: frozenset[int] = frozenset({ENCAPSULATION_VXLAN})
    sequence: int = 0
    sticky: bool = False
    default_gateway: bool = False
    router: bool = False
    pmsi: Pmsi | None = None
    as_path: tuple[int, ...] = ()
    origin: int = 0
    local_pref: int | None = None
    originator_id: IPv4Address | None = None
    cluster_list: tuple[IPv4Address, ...] = ()


def pack_attribute(flags: int, kind: int, value: bytes) -> bytes:
    """Pack one attribute; one of more than 255 octets gets an extended length."""
    if len(value) > 0xFF:
        return bytes((flags | EXTENDED_LENGTH, kind)) + len(value).to_bytes(2) + value
    return bytes((flags, kind, len(value))) + value


def pack_attributes(
    attributes: PathAttributes, *, four_octet: bool, internal: bool, asn: int
) -> bytes:
    """Pack all attributes but MP_REACH_NLRI, in the order of their types.

    The AS path gets `asn` in front for an external peer; LOCAL_PREF, ORIGINATOR_ID and CLUSTER_LIST
    are for internal ones (RFC 4271, section 5.1; RFC 4456). Without `four_octet`, AS numbers of
    four octets are in AS4_PATH (RFC 6793, section 4.2.2).
    """
    path = attributes.as_path if internal else (asn, *attributes.as_path)
    packed = [
        pack_attribute(WELL_KNOWN, AttributeType.ORIGIN, bytes((attributes.origin,))),
        pack_attribute(WELL_KNOWN, AttributeType.AS_PATH, _pack_path(path, four_octet=four_octet)),
    ]
    if internal:
        preference = attributes.local_pref
        value = (LOCAL_PREF_DEFAULT if preference is None else preference).to_bytes(4)
        packed.append(pack_attribute(WELL_KNOWN, AttributeType.LOCAL_PREF, value))
        if attributes.originator_id is not None:
            value = attributes.originator_id.packed
            packed.append(pack_attribute(OPTIONAL, AttributeType.ORIGINATOR_ID, value))
        if attributes.cluster_list:
            value = b"".join(cluster.packed for cluster in attributes.cluster_list)
            packed.append(pack_attribute(OPTIONAL, AttributeType.CLUSTER_LIST, value))
    communities, ipv6_communities = _pack_communities(attributes)
    if communities:
        packed.append(_pack_transitive(AttributeType.EXTENDED_COMMUNITIES, communities))
    if not four_octet and any(number > 0xFFFF for number in path):
        value = _pack_path(path, four_octet=True)
        packed.append(_pack_transitive(AttributeType.AS4_PATH, value))
    if attributes.pmsi is not None:
        packed.append(_pack_transitive(AttributeType.PMSI_TUNNEL, _pack_pmsi(attributes.pmsi)))
    if ipv6_communities:
        kind = AttributeType.IPV6_EXTENDED_COMMUNITIES
        packed.append(_pack_transitive(kind, ipv6_communities))
    return b"".join(packed)


def _pack_transitive(kind: AttributeType, value: bytes) -> bytes:
    return pack_attribute(OPTIONAL | TRANSITIVE, kind, value)


def _pack_path(path: tuple[int, ...], *, four_octet: bool) -> bytes:
    size = 4 if four_octet else 2
    return b"".join(
        bytes((AS_SEQUENCE, len(segment)))
        + b"".join(
            (number if four_octet or number <= 0xFFFF else AS_TRANS).to_bytes(size)
            for number in segment
        )
        for segment in _segments(path)
    )


def _segments(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(path), _SEGMENT_MAX):
        yield path[start : start + _SEGMENT_MAX]


def _pack_communities(attributes: PathAttributes) -> tuple[bytes, bytes]:
    targets = sorted(target.octets for target in attributes.route_targets)
    communities = [octets for octets in targets if len(octets) != IPV6_LEN]
    communities += pack_communities(
        attributes.encapsulations,
        mobility=(attributes.sequence, attributes.sticky),
        default_gateway=attributes.default_gateway,
        router=attributes.router,
    )
    return b"".join(communities), b"".join(octets for octets in targets if len(octets) == IPV6_LEN)


def _pack_pmsi(pmsi: Pmsi) -> bytes:
    endpoint = b"" if pmsi.endpoint is None else pmsi.endpoint.packed
    return bytes((pmsi.flags, pmsi.tunnel_type)) + pmsi.label.to_bytes(3) + endpoint
