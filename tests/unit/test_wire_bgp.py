"""BGP messages with EVPN routes: round trips, framing, texts, and refusals outside of UPDATE."""

from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.bgp_strategies import (
    ATTRIBUTES,
    DISTINGUISHERS,
    ROUTE_TARGETS,
    ROUTES,
    opens,
)
from vtep.config.evpn_parsers import EXPORTED_MAX
from vtep.wire.bgp import AS_TRANS, EVPN
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes, Pmsi
from vtep.wire.bgp.capabilities import Capabilities, GracefulRestart
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.errors import BgpError, name_of, pack_shutdown, parse_shutdown
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    Route,
    RouteDistinguisher,
    pack_routes,
    parse_routes,
)
from vtep.wire.bgp.message import (
    HEADER_LEN,
    KEEPALIVE,
    LEN_MAX,
    MARKER,
    Deframer,
    MessageType,
    Notification,
    Open,
    RouteRefresh,
    pack_message,
)
from vtep.wire.bgp.update import (
    END_OF_RIB,
    Update,
    pack_updates,
    pack_withdrawals,
    parse_update,
)

ROUTER_ID = IPv4Address("192.0.2.1")
RD = RouteDistinguisher.of(ROUTER_ID, 100)


def parsed(
    messages: list[bytes], *, four_octet: bool = True, internal: bool = True
) -> list[Update]:
    """Return what a receiver sees of whole UPDATE messages."""
    framed = list(Deframer().feed(b"".join(messages)))
    assert {kind for kind, _ in framed} <= {MessageType.UPDATE}
    return [parse_update(body, four_octet=four_octet, internal=internal) for _, body in framed]


@given(st.lists(ROUTES, max_size=8))
def test_routes_round_trip(routes: list[Route]) -> None:
    assert parse_routes(pack_routes(routes)) == routes


@given(ROUTES, st.data())
def test_a_truncated_route_is_refused(route: Route, data: st.DataObject) -> None:
    octets = pack_routes([route])
    with pytest.raises(ValueError, match="truncated"):
        parse_routes(octets[: data.draw(st.integers(1, len(octets) - 1))])


@given(st.lists(ROUTES, min_size=1, max_size=8), ATTRIBUTES, st.booleans())
def test_updates_round_trip(
    routes: list[Route], attributes: PathAttributes, four_octet: bool
) -> None:
    messages = list(
        pack_updates(routes, attributes, four_octet=four_octet, internal=True, asn=65000)
    )
    assert max(map(len, messages)) <= LEN_MAX
    updates = parsed(messages, four_octet=four_octet)
    assert [route for update in updates for route in update.announced] == routes
    mapped = attributes.next_hop
    if isinstance(mapped, IPv6Address) and mapped.ipv4_mapped is not None:
        attributes = attrs.evolve(attributes, next_hop=mapped.ipv4_mapped)
    for update in updates:
        assert update.attributes == attributes
        assert (update.withdrawn, update.problems, update.is_end_of_rib) == ((), (), False)


@given(ATTRIBUTES, st.booleans())
def test_external_updates_have_our_as_in_front(
    attributes: PathAttributes, four_octet: bool
) -> None:
    route = MacIpRoute(RD, NO_ESI, 0, bytes(6), None, 100)
    messages = list(
        pack_updates([route], attributes, four_octet=four_octet, internal=False, asn=4200000000)
    )
    (update,) = parsed(messages, four_octet=four_octet, internal=False)
    assert update.attributes is not None
    assert update.attributes.as_path == (4200000000, *attributes.as_path)
    assert update.attributes.local_pref is None
    assert update.attributes.originator_id is None
    assert update.attributes.route_targets == attributes.route_targets
    assert update.problems == ()


def test_as_many_targets_as_can_be_configured_leave_room_for_the_longest_route() -> None:
    """The most of `--route-target`, and of `--route-target-export`."""
    host = ip_address("2001:db8::1")
    targets = frozenset(RouteTarget.parse(f"65000:{each}") for each in range(2 * EXPORTED_MAX))
    attributes = PathAttributes(
        next_hop=host,
        route_targets=targets,
        sequence=1,
        sticky=True,
        default_gateway=True,
        router=True,
        pmsi=Pmsi(0, INGRESS_REPLICATION, 100, host),
    )
    route = MacIpRoute(RD, NO_ESI, 0, bytes(6), host, 100)
    messages = pack_updates([route], attributes, four_octet=True, internal=False, asn=65000)
    (message,) = messages
    assert len(message) <= LEN_MAX


@given(st.lists(ROUTES, max_size=200))
def test_withdrawals_round_trip(routes: list[Route]) -> None:
    messages = list(pack_withdrawals(routes))
    assert max(map(len, messages), default=0) <= LEN_MAX
    updates = parsed(messages)
    assert [route for update in updates for route in update.withdrawn] == routes
    assert not any(update.announced or update.is_end_of_rib for update in updates)


def test_messages_are_as_few_as_possible() -> None:
    """Each message but the last one has no room for another route."""
    routes = [MacIpRoute(RD, NO_ESI, 0, bytes(6), None, vni) for vni in range(1000)]
    attributes = PathAttributes(next_hop=ROUTER_ID)
    options = {"four_octet": True, "internal": True}
    announced = list(pack_updates(routes, attributes, asn=65000, **options))
    for messages in (announced, list(pack_withdrawals(routes))):
        assert all(LEN_MAX - 40 < len(message) <= LEN_MAX for message in messages[:-1])
        updates = parsed(messages)
        assert [route for each in updates for route in each.announced or each.withdrawn] == routes


def test_end_of_rib() -> None:
    assert parsed([END_OF_RIB]) == [Update(is_end_of_rib=True)]
    ipv4 = pack_message(MessageType.UPDATE, bytes(4))
    assert parsed([ipv4]) == [Update()]  # Of IPv4 unicast.
    ipv6 = pack_message(MessageType.UPDATE, bytes.fromhex("00000006800f03000201"))
    assert parsed([ipv6]) == [Update()]
    extended = pack_message(MessageType.UPDATE, bytes.fromhex("00000007900f0003001946"))
    assert parsed([extended]) == [Update(is_end_of_rib=True)]  # As exabgp sends it.


def test_routes_are_the_first_attribute() -> None:
    """RFC 7606, section 5.1; the others are in the order of their types (RFC 4271, section 5)."""
    targets = frozenset(RouteTarget.of(65000, number) for number in range(200))
    attributes = PathAttributes(ROUTER_ID, targets, as_path=(65001, 4200000000))
    route = MacIpRoute(RD, NO_ESI, 0, bytes(6), None, 100)
    (message,) = pack_updates([route], attributes, four_octet=False, internal=False, asn=65000)
    octets, kinds = message[HEADER_LEN + 4 :], []
    while octets:
        kinds.append(octets[1])
        long = octets[0] & 0x10
        end = 4 + int.from_bytes(octets[2:4]) if long else 3 + octets[2]
        octets = octets[end:]
    assert kinds == [14, 1, 2, 16, 17]
    (update,) = parsed([message], four_octet=False, internal=False)
    assert update.attributes is not None
    assert update.attributes.route_targets == targets


def test_what_cannot_be_announced() -> None:
    route = MacIpRoute(RD, NO_ESI, 0, bytes(6), None, 100)
    options = {"four_octet": True, "internal": True, "asn": 65000}
    with pytest.raises(ValueError, match="next hop"):
        list(pack_updates([route], PathAttributes(), **options))  # type: ignore[arg-type]
    many = frozenset(RouteTarget.of(65000, number) for number in range(600))
    attributes = PathAttributes(next_hop=ROUTER_ID, route_targets=many)
    with pytest.raises(ValueError, match="fewer route targets"):
        list(pack_updates([route], attributes, **options))  # type: ignore[arg-type]


@given(st.lists(st.sampled_from([KEEPALIVE, END_OF_RIB]), max_size=20), st.data())
def test_the_stream_may_be_cut_anywhere(messages: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(messages)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=10)))
    deframer = Deframer()
    framed = [
        pack_message(kind, body)
        for start, end in pairwise([0, *cuts, len(stream)])
        for kind, body in deframer.feed(stream[start:end])
    ]
    assert framed == messages


@pytest.mark.parametrize(
    ("octets", "error"),
    [
        (b"\xfe" + KEEPALIVE[1:], (1, 1, b"")),
        (MARKER + b"\0\x12\x04", (1, 2, b"\0\x12")),
        (MARKER + b"\x10\x01\x02", (1, 2, b"\x10\x01")),
        (MARKER + b"\0\x14\x04\0", (1, 2, b"\0\x14")),  # A KEEPALIVE with a body.
        (MARKER + b"\0\x1c\x01" + bytes(9), (1, 2, b"\0\x1c")),  # An OPEN of 28 octets.
        (MARKER + b"\0\x13\x06", (1, 3, b"\x06")),
        (MARKER + b"\0\x15\x05\0\x19", (7, 1, MARKER + b"\0\x15\x05\0\x19")),
    ],
)
def test_invalid_headers(octets: bytes, error: tuple[int, int, bytes]) -> None:
    messages = Deframer().feed(KEEPALIVE + octets)
    assert next(messages) == (MessageType.KEEPALIVE, b"")  # What is before the error counts.
    with pytest.raises(BgpError) as raised:
        next(messages)
    assert (raised.value.code, raised.value.subcode, raised.value.data) == error


@given(opens())
def test_open_round_trip(message: Open) -> None:
    octets = pack_message(MessageType.OPEN, message.pack())
    ((_, body),) = Deframer().feed(octets)
    assert Open.parse(body) == message
    if message.asn > 0xFFFF:
        assert int.from_bytes(body[1:3]) == AS_TRANS


def test_open_without_capabilities() -> None:
    body = bytes.fromhex("04fde8005ac000020100")
    assert Open.parse(body) == Open(65000, 90, ROUTER_ID)
    assert Open(65000, 90, ROUTER_ID).pack() == body


def test_capabilities_may_be_in_several_parameters() -> None:
    capabilities = Capabilities(frozenset({EVPN}), 4200000000, route_refresh=True)
    packed = [bytes.fromhex(octets) for octets in ("010400190046", "0200", "4104fa56ea00")]
    assert capabilities.pack() == b"".join(packed)
    for extended in (False, True):
        parameters = b"".join(
            b"\x02" + len(one).to_bytes(2 if extended else 1) + one for one in packed
        )
        head = b"\xff\xff\0" if extended else b""
        octets = head + bytes((len(parameters),)) + parameters
        body = bytes.fromhex("045ba0005ac0000201") + octets
        assert Open.parse(body) == Open(4200000000, 90, ROUTER_ID, capabilities)


def test_many_capabilities_take_extended_parameters() -> None:
    """RFC 9072: more than 255 octets of optional parameters."""
    unknown = tuple((code, bytes(200)) for code in range(200, 204))
    message = Open(65000, 90, ROUTER_ID, Capabilities(unknown=unknown))
    assert message.pack()[9:11] == b"\xff\xff"
    assert Open.parse(message.pack()) == message
    with pytest.raises(BgpError):
        Open.parse(message.pack()[:9])


def test_a_malformed_restart_capability_does_not_matter() -> None:
    capabilities = Capabilities.parse(bytes.fromhex("4003800078"))
    assert capabilities == Capabilities(unknown=((64, bytes.fromhex("800078")),))
    empty = Capabilities.parse(bytes.fromhex("4002c078"))
    assert empty.graceful_restart == GracefulRestart(True, 120, {}, True)


OPEN_BODY = bytes.fromhex("04fde8005ac00002010802060104001900 46".replace(" ", ""))


@pytest.mark.parametrize(
    ("at", "octets", "error"),
    [
        (0, b"\x03", (2, 1, b"\0\x04")),
        (1, b"\0\0", (2, 2, b"")),
        (1, AS_TRANS.to_bytes(2), (2, 2, b"")),
        (3, b"\0\1", (2, 6, b"")),
        (3, b"\0\2", (2, 6, b"")),
        (5, bytes(4), (2, 3, b"")),
        (9, b"\x09", (2, 0, b"")),  # Optional parameters that are longer than the message.
        (9, b"\x07", (2, 0, b"")),  # ... and shorter.
        (10, b"\x01", (2, 4, b"")),  # Authentication, which RFC 4271 removed.
        (11, b"\x07", (2, 0, b"")),
        (12, b"\x41\x05", (2, 0, b"")),
        (13, b"\x03", (2, 0, b"")),
    ],
)
def test_invalid_open(at: int, octets: bytes, error: tuple[int, int, bytes]) -> None:
    Open.parse(OPEN_BODY)
    body = OPEN_BODY[:at] + octets + OPEN_BODY[at + len(octets) :]
    with pytest.raises(BgpError) as raised:
        Open.parse(body)
    assert (raised.value.code, raised.value.subcode, raised.value.data) == error


@given(st.binary(max_size=64))
def test_any_open_is_parsed_or_refused(body: bytes) -> None:
    for octets in (body, OPEN_BODY[:9] + body):
        try:
            Open.parse(octets)
        except BgpError as error:
            assert error.code in (1, 2)  # noqa: PT017


def test_route_refresh_round_trip() -> None:
    assert RouteRefresh().pack() == bytes.fromhex("00190046")
    assert RouteRefresh.parse(bytes.fromhex("00190146")) == RouteRefresh(subtype=1)


@given(st.text(max_size=300))
def test_shutdown_communication(text: str) -> None:
    packed = pack_shutdown(text)
    assert len(packed) <= 256
    assert packed[0] == len(packed) - 1
    shown = "".join(char if char.isprintable() else "?" for char in text)
    # Surrogates have no octets.
    shown = shown.encode("utf-8", "replace").decode()
    assert shown.startswith(parse_shutdown(packed).rstrip("?")) or len(packed) == 256
    notification = Notification(6, 2, packed)
    assert Notification.parse(notification.pack()) == notification


def test_texts_of_notifications() -> None:
    said = Notification(6, 2, pack_shutdown("maintenance until 5"))
    assert said.text == 'Cease (6/2): administrative shutdown "maintenance until 5"'
    assert Notification(6, 4, b"\x05abc").text == "Cease (6/4): administrative reset"
    assert Notification(6, 7, b"\x03abc").text == "Cease (6/7): connection collision resolution"
    assert parse_shutdown(b"\x05a\x1b[2m") == "a?[2m"
    assert name_of(4, 0) == "hold timer expired (4/0)"
    assert name_of(9, 9) == "unknown error (9/9)"
    assert str(BgpError(2, 2, text="AS 0")) == "OPEN message error (2/2): bad peer AS; AS 0"


@pytest.mark.parametrize(
    ("text", "octets"),
    [
        ("65000:100", "0002fde800000064"),
        ("65000:268435556", "0002fde810000064"),
        ("0:4294967295", "00020000ffffffff"),
        ("4200000000:100", "0202fa56ea000064"),
        ("192.0.2.1:100", "0102c00002010064"),
        ("[2001:db8::1]:100", "000220010db80000000000000000000000010064"),
    ],
)
def test_texts_of_route_targets(text: str, octets: str) -> None:
    target = RouteTarget.parse(text)
    assert target == RouteTarget(bytes.fromhex(octets))
    assert target.text == str(target) == text


@given(ROUTE_TARGETS)
def test_route_targets_round_trip(target: RouteTarget) -> None:
    assert RouteTarget.parse(target.text) == target


@pytest.mark.parametrize(
    "text",
    [
        *("", "100", "65000", "65000:", ":100", "65000:-1", "65000: 1", "65000:4294967296"),
        *("65536:65536", "4294967296:1", "192.0.2.1:65536", "192.0.2:1", "192.0.2.1.3:1"),
        *("[2001:db8::1]:65536", "[2001:db8::g]:1", "a:b", "65000:\u0661", "65000:0x64"),
    ],
)
def test_what_is_no_route_target(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(is not a route target|has the )"):
        RouteTarget.parse(text)
    with pytest.raises(ValueError, match=r"^(is not a route distinguisher|has the )"):
        RouteDistinguisher.parse(text)


def test_auto_derived_route_targets() -> None:
    vnis = {
        "65000:100": 100,
        "65000:16777215": 0xFFFFFF,
        "65000:16777216": None,
        "65000:268435556": 100,  # RFC 8365: type 1, domain ID 0.
        "65000:285212772": None,  # Domain ID 1.
        "23456:100": 100,
        "4200000000:100": 100,
        "192.0.2.1:100": None,
        "[2001:db8::1]:100": None,
    }
    assert {text: RouteTarget.parse(text).vni_of_auto() for text in vnis} == vnis
    assert RouteTarget.of(65000, 100).text == "65000:100"
    for asn, number in ((-1, 0), (1 << 32, 0), (65000, -1), (65000, 1 << 32), (65536, 65536)):
        with pytest.raises(ValueError, match=r"^has the"):
            RouteTarget.of(asn, number)


@given(DISTINGUISHERS)
def test_texts_of_route_distinguishers(rd: RouteDistinguisher) -> None:
    if rd.octets[0] or rd.octets[1] > 2:
        assert rd.text == f"0x{rd.octets.hex()}"
    elif rd.octets[1] != 2 or any(rd.octets[2:4]):
        assert RouteDistinguisher.parse(str(rd)) == rd


def test_fields_of_route_distinguishers() -> None:
    assert RouteDistinguisher.parse("192.0.2.1:100") == RD
    assert RD.octets == bytes.fromhex("0001c00002010064")
    assert RouteDistinguisher.parse("65000:100000").octets.hex() == "0000fde8000186a0"
    assert RouteDistinguisher.parse("65536:100").octets.hex() == "0002000100000064"
    for text in ("192.0.2.1:100", "65000:100000", "4200000000:100"):
        assert RouteDistinguisher.parse(text).text == text
    assert RouteTarget(bytes.fromhex("4302fde800000064")).text == "0x4302fde800000064"
    with pytest.raises(ValueError, match="has the number"):
        RouteDistinguisher.of(ROUTER_ID, 65536)


def test_the_key_has_neither_esi_nor_labels() -> None:
    route = MacIpRoute(RD, NO_ESI, 0, bytes(6), ROUTER_ID, 100)
    assert route.key == route._replace(esi=b"\1" * 10, label=0, label2=7).key
    others = [
        route._replace(rd=RouteDistinguisher.of(ROUTER_ID, 101)),
        route._replace(ethernet_tag=1),
        route._replace(mac=b"\2" * 6),
        route._replace(ip=None),
    ]
    assert len({each.key for each in (route, *others)}) == 5
