"""Malformed UPDATE messages: the rows are the rules of RFC 7606 and of the RFCs of attributes."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from vtep.wire.bgp.attributes import PathAttributes, Pmsi, pack_attribute
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.errors import BgpError
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    MulticastRoute,
    OtherRoute,
    Route,
    RouteDistinguisher,
    pack_routes,
)
from vtep.wire.bgp.update import Update, parse_update

WELL_KNOWN = 0x40
OPTIONAL = 0x80
TRANSITIVE = 0xC0
PARTIAL = 0xE0

IPV4 = IPv4Address("192.0.2.1")
IPV6 = IPv6Address("2001:db8::1")
LINK_LOCAL = IPv6Address("fe80::1")
RD = RouteDistinguisher.of(IPV4, 100)
MAC_IP = MacIpRoute(RD, NO_ESI, 0, bytes.fromhex("020000000001"), IPV4, 100)
MULTICAST = MulticastRoute(RD, 0, IPV4)
FAMILY = bytes.fromhex("001946")
TARGET = bytes.fromhex("0002fde800000064")

ORIGIN = pack_attribute(WELL_KNOWN, 1, b"\0")
AS_PATH = pack_attribute(WELL_KNOWN, 2, b"")
LOCAL_PREF = pack_attribute(WELL_KNOWN, 5, bytes(4))
COMMUNITIES = pack_attribute(TRANSITIVE, 16, TARGET)
OTHERS = (ORIGIN, AS_PATH, LOCAL_PREF, COMMUNITIES)


def reach(*routes: Route, next_hop: bytes = IPV4.packed, family: bytes = FAMILY) -> bytes:
    head = family + bytes((len(next_hop),)) + next_hop + b"\0"
    return pack_attribute(OPTIONAL, 14, head + pack_routes(routes))


def unreach(*routes: Route, family: bytes = FAMILY) -> bytes:
    return pack_attribute(OPTIONAL, 15, family + pack_routes(routes))


REACH = reach(MAC_IP)


def update(*attributes: bytes, withdrawn: bytes = b"", nlri: bytes = b"") -> bytes:
    octets = b"".join(attributes)
    return len(withdrawn).to_bytes(2) + withdrawn + len(octets).to_bytes(2) + octets + nlri


def parse(
    *attributes: bytes, four_octet: bool = True, internal: bool = True, nlri: bytes = b""
) -> Update:
    return parse_update(update(*attributes, nlri=nlri), four_octet=four_octet, internal=internal)


def attributes_of(*attributes: bytes, **options: bool) -> PathAttributes:
    parsed = parse(reach(MULTICAST), *attributes, **options)  # type: ignore[arg-type]
    assert parsed.announced == (MULTICAST,), parsed.problems
    assert parsed.attributes is not None
    return parsed.attributes


def with_other(kind: int, flags: int, value: bytes) -> tuple[bytes, ...]:
    """Return valid attributes, of which one is replaced, or another one is added."""
    others = [each for each in OTHERS if each[1] != kind]
    return (REACH, *others, pack_attribute(flags, kind, value))


WITHDRAWN = {
    # RFC 7606, section 7.1
    "ORIGIN of 0 octets": (1, WELL_KNOWN, b""),
    "ORIGIN of 2 octets": (1, WELL_KNOWN, b"\0\0"),
    "ORIGIN with an undefined value": (1, WELL_KNOWN, b"\3"),
    # 7.2; RFC 9774
    "AS_PATH with an unknown segment": (2, WELL_KNOWN, b"\5\1" + bytes(4)),
    "AS_PATH with an empty segment": (2, WELL_KNOWN, b"\2\0"),
    "AS_PATH that is overrun": (2, WELL_KNOWN, b"\2\2" + bytes(4)),
    "AS_PATH with one octet left": (2, WELL_KNOWN, b"\2\1" + bytes(4) + b"\2"),
    "AS_PATH with AS_SET": (2, WELL_KNOWN, b"\1\1" + bytes(4)),
    "AS_PATH with AS_CONFED_SET": (2, WELL_KNOWN, b"\4\1" + bytes(4)),
    # 7.3, 7.4, 7.5
    "NEXT_HOP of 16 octets": (3, WELL_KNOWN, bytes(16)),
    "MULTI_EXIT_DISC of 3 octets": (4, OPTIONAL, bytes(3)),
    "LOCAL_PREF of 5 octets": (5, WELL_KNOWN, bytes(5)),
    # 7.8, 7.9, 7.10
    "COMMUNITIES of 6 octets": (8, TRANSITIVE, bytes(6)),
    "COMMUNITIES of 0 octets": (8, TRANSITIVE, b""),
    "ORIGINATOR_ID of 3 octets": (9, OPTIONAL, bytes(3)),
    "CLUSTER_LIST of 0 octets": (10, OPTIONAL, b""),
    "CLUSTER_LIST of 6 octets": (10, OPTIONAL, bytes(6)),
    # 7.14, 7.15
    "extended communities of 0 octets": (16, TRANSITIVE, b""),
    "extended communities of 12 octets": (16, TRANSITIVE, bytes(12)),
    "IPv6 extended communities of 8 octets": (25, TRANSITIVE, bytes(8)),
    # RFC 6514, section 5
    "PMSI of 4 octets": (22, TRANSITIVE, bytes(4)),
    "PMSI without an endpoint": (22, TRANSITIVE, b"\0\6\0\0\x64"),
    "PMSI with an endpoint of 5 octets": (22, TRANSITIVE, b"\0\6\0\0\x64" + bytes(5)),
    # RFC 8092, section 6; RFC 9234, section 5
    "large communities of 8 octets": (32, TRANSITIVE, bytes(8)),
    "ONLY_TO_CUSTOMER of 2 octets": (35, TRANSITIVE, bytes(2)),
    # Section 3 (c)
    "ORIGIN that is optional": (1, TRANSITIVE, b"\0"),
    "ORIGIN that is not transitive": (1, 0, b"\0"),
    "AS_PATH that is optional": (2, OPTIONAL, b""),
    "extended communities that are not transitive": (16, OPTIONAL, TARGET),
    "PMSI that is well-known": (22, WELL_KNOWN, b"\0\6\0\0\x64" + bytes(4)),
    "ONLY_TO_CUSTOMER that is not transitive": (35, OPTIONAL, bytes(4)),
}


@pytest.mark.parametrize("name", WITHDRAWN)
def test_routes_are_treated_as_withdrawn(name: str) -> None:
    kind, flags, value = WITHDRAWN[name]
    parsed = parse(*with_other(kind, flags, value))
    assert (parsed.announced, parsed.withdrawn, parsed.attributes) == ((), (MAC_IP,), None)
    (problem,) = parsed.problems
    assert problem.endswith("; routes treated as withdrawn")
    # Without routes, they may be what was misread (section 5.2).
    attribute = pack_attribute(flags, kind, value)
    with pytest.raises(BgpError) as raised:
        parse(unreach(MULTICAST), attribute)
    assert (raised.value.code, raised.value.subcode) == (3, 1)
    # With routes of another family, they are not.
    ipv4 = bytes.fromhex("000101") + b"\x04" + IPV4.packed + b"\0\0"
    other = pack_attribute(OPTIONAL, 14, ipv4)
    assert parse(other, unreach(MULTICAST), attribute).withdrawn == (MULTICAST,)
    assert parse(unreach(MULTICAST), attribute, nlri=b"\0").withdrawn == (MULTICAST,)


def test_missing_well_known_attributes() -> None:
    for missing in (ORIGIN, AS_PATH):  # Section 3 (d).
        parsed = parse(REACH, *(each for each in OTHERS if each != missing))
        assert (parsed.announced, parsed.withdrawn) == ((), (MAC_IP,))
    # Of an internal peer, too, LOCAL_PREF is not needed for anything.
    assert attributes_of(ORIGIN, AS_PATH).local_pref is None


def test_truncated_attributes_withdraw_what_was_read() -> None:
    """Section 4: the length of an attribute is beyond the end of all attributes."""
    for cut in (b"\xc0\x08\x05" + bytes(4), b"\xd0\x08\x00", b"\xc0\x08", b"\xc0"):
        parsed = parse(REACH, *OTHERS, cut)
        assert (parsed.announced, parsed.withdrawn) == ((), (MAC_IP,))
        with pytest.raises(BgpError):  # There might have been routes.
            parse(*OTHERS, cut)


DISCARDED = {
    # RFC 7606, sections 7.6 and 7.7; RFC 6793, section 6
    "ATOMIC_AGGREGATE of 1 octet": (6, WELL_KNOWN, b"\0", True),
    "AGGREGATOR of 6 octets": (7, TRANSITIVE, bytes(6), True),
    "AGGREGATOR of 8 octets from an old speaker": (7, TRANSITIVE, bytes(8), False),
    "AS4_PATH from a new speaker": (17, TRANSITIVE, b"\2\1" + bytes(4), True),
    "AS4_AGGREGATOR from a new speaker": (18, TRANSITIVE, bytes(8), True),
    "AS4_PATH that is overrun": (17, TRANSITIVE, b"\2\2" + bytes(4), False),
    "AS4_AGGREGATOR of 6 octets": (18, TRANSITIVE, bytes(6), False),
}


@pytest.mark.parametrize("name", DISCARDED)
def test_attributes_are_discarded(name: str) -> None:
    kind, flags, value, four_octet = DISCARDED[name]
    parsed = parse(*with_other(kind, flags, value), four_octet=four_octet)
    assert parsed.announced == (MAC_IP,)
    (problem,) = parsed.problems
    assert problem.endswith("; attribute discarded")
    assert parse(unreach(MAC_IP), pack_attribute(flags, kind, value)).withdrawn == (MAC_IP,)


def test_attributes_of_internal_peers_only() -> None:
    """Sections 7.5, 7.9 and 7.10: from external peers they are discarded, malformed or not."""
    for value in (bytes(4), bytes(3)):
        parsed = parse(
            *(REACH, ORIGIN, AS_PATH),
            pack_attribute(WELL_KNOWN, 5, value),
            pack_attribute(OPTIONAL, 9, value),
            pack_attribute(OPTIONAL, 10, value),
            internal=False,
        )
        assert parsed.announced == (MAC_IP,)
        assert parsed.attributes is not None
        assert parsed.attributes.local_pref is None
        assert len(parsed.problems) == 3


def test_an_attribute_that_is_there_twice() -> None:
    """Section 3 (g): the first one counts, whatever the second one is."""
    parsed = parse(REACH, *OTHERS, pack_attribute(WELL_KNOWN, 1, b"\2\2"))
    assert parsed.announced == (MAC_IP,)
    assert parsed.attributes is not None
    assert parsed.attributes.origin == 0
    assert parsed.problems == ("ORIGIN is there twice; attribute discarded",)


ACCEPTED = {
    "optional, transitive": (200, TRANSITIVE, b"abc"),
    "optional, not transitive": (200, OPTIONAL, b""),
    "optional, partial": (200, PARTIAL, bytes(300)),
    "partial community": (8, PARTIAL, bytes(4)),
    "large community": (32, TRANSITIVE, bytes(24)),
    "ONLY_TO_CUSTOMER": (35, TRANSITIVE, bytes(4)),
    "Tunnel Encapsulation": (23, TRANSITIVE, b"\0\x08\0\0"),
    "AIGP": (26, OPTIONAL, b"\1\0\x0b" + bytes(8)),
    "NEXT_HOP": (3, WELL_KNOWN, IPV4.packed),
    "Partial in a well-known one": (1, WELL_KNOWN | 0x20, b"\0"),
    "unused flags": (1, WELL_KNOWN | 0x0F, b"\0"),
    "AGGREGATOR": (7, TRANSITIVE, bytes(8)),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_other_attributes_do_not_matter(name: str) -> None:
    kind, flags, value = ACCEPTED[name]
    parsed = parse(*with_other(kind, flags, value))
    assert (parsed.announced, parsed.withdrawn, parsed.problems) == ((MAC_IP,), (), ())


def test_extended_lengths_of_short_attributes() -> None:
    extended = [bytes((each[0] | 0x10, each[1], 0, each[2])) + each[3:] for each in OTHERS]
    long_reach = bytes((REACH[0] | 0x10, REACH[1], 0, REACH[2])) + REACH[3:]
    assert parse(long_reach, *extended) == parse(REACH, *OTHERS)


LONG_IP = pack_routes([MAC_IP])[:31] + b"\x18" + pack_routes([MAC_IP])[32:]
RESET = {
    "shorter than both lengths": (bytes(3), 1),
    "withdrawn routes beyond the end": (b"\0\5" + bytes(6), 1),
    "attributes beyond the end": (b"\0\0\0\5" + bytes(4), 1),
    "unknown well-known attribute": (update(REACH, *OTHERS, b"\x40\xc8\0"), 2),
    "MP_REACH_NLRI twice": (update(REACH, REACH, *OTHERS), 1),
    "MP_UNREACH_NLRI twice": (update(unreach(), unreach()), 1),
    "MP_REACH_NLRI with wrong flags": (update(b"\xc0" + REACH[1:], *OTHERS), 9),
    "MP_UNREACH_NLRI with wrong flags": (update(b"\x40" + unreach()[1:]), 9),
    "MP_REACH_NLRI of 4 octets": (update(b"\x80\x0e\4\0\x19\x46\0"), 9),
    "MP_REACH_NLRI without the reserved octet": (
        update(b"\x80\x0e\x08\0\x19\x46\4" + IPV4.packed),
        9,
    ),
    "MP_UNREACH_NLRI of 2 octets": (update(b"\x80\x0f\2\0\x19"), 9),
    "MP_REACH_NLRI that is truncated": (update(*OTHERS, REACH[:-1]), 9),
    "MP_UNREACH_NLRI that is truncated": (update(unreach(MAC_IP)[:-1]), 9),
    "next hop of 5 octets": (update(reach(MAC_IP, next_hop=bytes(5)), *OTHERS), 9),
    "next hop of 12 octets": (update(reach(MAC_IP, next_hop=bytes(12)), *OTHERS), 9),
    "no next hop": (update(reach(MAC_IP, next_hop=b""), *OTHERS), 9),
    "route beyond the end": (update(reach(OtherRoute(2, b"")), *OTHERS), 9),
    "one octet of a route": (update(pack_attribute(OPTIONAL, 15, FAMILY + b"\2")), 9),
    "type 2, IP of 24 bits": (update(pack_attribute(OPTIONAL, 15, FAMILY + LONG_IP)), 9),
    "type 2 without label": (update(unreach(OtherRoute(2, bytes(22) + b"\x30" + bytes(7)))), 9),
    "type 3, IP of 32 bits in 16 octets": (
        update(unreach(OtherRoute(3, bytes(12) + b"\x20" + bytes(16)))),
        9,
    ),
    "type 3 of 4 octets": (update(unreach(OtherRoute(3, bytes(4)))), 9),
}


@pytest.mark.parametrize("name", RESET)
def test_the_session_ends(name: str) -> None:
    """Section 3 (j): if routes can not be located, a reset is the only way to stay in step."""
    body, subcode = RESET[name]
    with pytest.raises(BgpError) as raised:
        parse_update(body, four_octet=True, internal=True)
    assert (raised.value.code, raised.value.subcode) == (3, subcode)
    if subcode in (2, 9):
        assert raised.value.data  # The attribute.
        assert raised.value.data in body


def test_unknown_types_of_routes_are_passed_on() -> None:
    """Section 5.4: they are discarded by who uses routes, which counts them."""
    other = OtherRoute(11, b"abc")
    assert parse(reach(other, MULTICAST), *OTHERS).announced == (other, MULTICAST)
    long_mac = OtherRoute(2, bytes(22) + b"\x40" + bytes(20))
    assert parse(reach(long_mac, MULTICAST), *OTHERS).announced == (long_mac, MULTICAST)


def test_routes_of_other_families_are_ignored() -> None:
    ipv4 = bytes.fromhex("000101")
    assert parse(reach(MAC_IP, family=ipv4, next_hop=bytes(3)), *OTHERS) == Update()
    assert parse(unreach(MAC_IP, family=ipv4)) == Update()
    assert parse(REACH, *OTHERS, nlri=b"\x18\xc0\0\2").announced == (MAC_IP,)
    body = update(unreach(), withdrawn=b"\x18\xc0\0\2")
    assert parse_update(body, four_octet=True, internal=True) == Update()


def test_a_route_that_is_announced_is_not_withdrawn() -> None:
    relabelled = MAC_IP._replace(label=0, esi=b"\1" * 10)
    parsed = parse(REACH, *OTHERS, unreach(relabelled, MULTICAST))
    assert (parsed.announced, parsed.withdrawn) == ((MAC_IP,), (MULTICAST,))
    malformed = parse(REACH, AS_PATH, unreach(MULTICAST))
    assert (malformed.announced, malformed.withdrawn) == ((), (MULTICAST, MAC_IP))


@pytest.mark.parametrize(
    ("octets", "address"),
    [
        (IPV4.packed, IPV4),
        (IPV6.packed, IPV6),
        (IPV6.packed + LINK_LOCAL.packed, IPV6),
        (bytes(16) + LINK_LOCAL.packed, LINK_LOCAL),
        (LINK_LOCAL.packed * 2, LINK_LOCAL),
        (bytes(10) + b"\xff\xff" + IPV4.packed, IPV4),
    ],
)
def test_next_hops(octets: bytes, address: IPv4Address | IPv6Address) -> None:
    parsed = parse(reach(MAC_IP, next_hop=octets), *OTHERS)
    assert parsed.attributes is not None
    assert parsed.attributes.next_hop == address


@pytest.mark.parametrize("text", ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"])
def test_next_hops_that_no_host_has(text: str) -> None:
    packed = (IPv6Address if ":" in text else IPv4Address)(text).packed
    parsed = parse(reach(MAC_IP, next_hop=packed), *OTHERS)
    assert (parsed.announced, parsed.withdrawn) == ((), (MAC_IP,))
    assert parsed.problems[0].startswith(f"the next hop {text} is ")


def path(*segments: tuple[int, tuple[int, ...]], size: int = 4) -> bytes:
    return b"".join(
        bytes((kind, len(numbers))) + b"".join(number.to_bytes(size) for number in numbers)
        for kind, numbers in segments
    )


@pytest.mark.parametrize(
    ("as_path", "as4_path", "merged"),
    [
        ([(2, (65000, 23456, 3))], [(2, (4200000000, 3))], (65000, 4200000000, 3)),
        ([(2, (65000, 23456)), (2, (3,))], [(2, (4200000000, 3))], (65000, 4200000000, 3)),
        ([(2, (23456,))], [(2, (4200000000,))], (4200000000,)),
        # A longer AS4_PATH is ignored (RFC 6793, section 4.2.3).
        ([(2, (23456,))], [(2, (4200000000, 3))], (23456,)),
        # Confederations are kept, and not visible in AS4_PATH.
        ([(3, (64512,)), (2, (23456,))], [(3, (1,)), (2, (4200000000,))], (64512, 4200000000)),
        ([], [], ()),
    ],
)
def test_as4_path_of_old_speakers(
    as_path: list[tuple[int, tuple[int, ...]]],
    as4_path: list[tuple[int, tuple[int, ...]]],
    merged: tuple[int, ...],
) -> None:
    found = attributes_of(
        ORIGIN,
        pack_attribute(WELL_KNOWN, 2, path(*as_path, size=2)),
        pack_attribute(TRANSITIVE, 17, path(*as4_path)),
        four_octet=False,
    )
    assert found.as_path == merged


def test_two_labels_and_ipv6_endpoints() -> None:
    two = MAC_IP._replace(label2=200)
    assert parse(reach(two), *OTHERS).announced == (two,)
    pmsi = pack_attribute(PARTIAL, 22, b"\0\6\0\0\x64" + IPV6.packed)
    assert attributes_of(*OTHERS, pmsi).pmsi == Pmsi(0, 6, 100, IPV6)
    without = pack_attribute(TRANSITIVE, 22, b"\1\0\0\0\x64")
    assert attributes_of(*OTHERS, without).pmsi == Pmsi(1, 0, 100, None)


def test_communities() -> None:
    octets = (
        *("0002fde800000064", "4002fde800000065", "0003fde800000066"),  # RT, non-transitive, SoO
        *("030c000000000008", "030c00000000000b", "030d000000000000", "0603020000000a01"),
        *("0600000000000003", "0600010000000002", "0608010000000000", "0602010203040506"),
        "ffffffffffffffff",
    )
    ipv6 = bytes.fromhex("0002") + IPV6.packed + b"\0\x64" + bytes.fromhex("0003") + bytes(18)
    found = attributes_of(
        *(ORIGIN, AS_PATH),
        pack_attribute(TRANSITIVE, 16, bytes.fromhex("".join(octets))),
        pack_attribute(TRANSITIVE, 25, ipv6),
    )
    targets = {RouteTarget.parse("65000:100"), RouteTarget.parse("[2001:db8::1]:100")}
    assert found.route_targets == targets
    assert found.encapsulations == {8, 11}
    assert (found.sequence, found.sticky) == (3, True)
    assert (found.default_gateway, found.router) == (True, True)
    plain = attributes_of(*OTHERS)
    assert (plain.encapsulations, plain.sequence, plain.sticky) == (frozenset(), 0, False)
    assert (plain.default_gateway, plain.router) == (False, False)
