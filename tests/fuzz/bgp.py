"""BGP messages: whatever a peer sends is parsed, or ends the session where an RFC demands it.

The first octet of an input selects what the rest is: a stream of messages, the body of an OPEN or
UPDATE message, or attributes that follow valid ones. The latter must never end a session, since
their routes are known (RFC 7606).
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import attrs

from tests.fuzz.edges import Reader
from vtep.wire.bgp import EVPN
from vtep.wire.bgp.attributes import OPTIONAL, PathAttributes, Pmsi, pack_attribute
from vtep.wire.bgp.capabilities import Capabilities, GracefulRestart
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.errors import BgpError, pack_shutdown
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    MulticastRoute,
    OtherRoute,
    RouteDistinguisher,
)
from vtep.wire.bgp.message import (
    HEADER_LEN,
    KEEPALIVE,
    Deframer,
    MessageType,
    Notification,
    Open,
    RouteRefresh,
    pack_message,
)
from vtep.wire.bgp.message import LEN_MAX as MESSAGE_MAX
from vtep.wire.bgp.update import (
    END_OF_RIB,
    Update,
    pack_updates,
    pack_withdrawals,
    parse_update,
)

LEN_MAX = 512

_IPV4 = IPv4Address("192.0.2.1")
_IPV6 = IPv6Address("2001:db8::1")
_RD = RouteDistinguisher.of(_IPV4, 100)
_FLOOD = MulticastRoute(_RD, 0, _IPV4)
_MAC_IP = MacIpRoute(_RD, NO_ESI, 7, b"\x02\0\0\0\0\1", _IPV6, 100, 200)
_MP = (14, 15)
_RECOGNIZED = {*range(1, 11), *range(16, 19), 22, 25, 32, 35}
_ATTRIBUTES = PathAttributes(
    next_hop=_IPV4,
    route_targets=frozenset({RouteTarget.of(65000, 100), RouteTarget.parse("[2001:db8::1]:7")}),
    sequence=3,
    sticky=True,
    default_gateway=True,
    router=True,
    pmsi=Pmsi(0, 6, 100, _IPV6),
    as_path=(65001, 4200000000),
    originator_id=_IPV4,
    cluster_list=(_IPV4,),
)

_OPEN = Open(
    4200000000,
    90,
    _IPV4,
    Capabilities(
        frozenset({EVPN}),
        4200000000,
        route_refresh=True,
        graceful_restart=GracefulRestart(True, 120, {EVPN: True}),
        unknown=((73, b"\4host\0"),),
    ),
)


def run(data: bytes) -> None:
    mode, octets = (data[0], data[1:]) if data else (0, b"")
    four_octet, internal = bool(mode & 1), bool(mode & 2)
    match mode >> 2 & 3:
        case 0:
            _stream(octets, four_octet=four_octet, internal=internal)
        case 1:
            _open(octets)
        case 2:
            _update(octets, four_octet=four_octet, internal=internal)
        case 3:
            _attributes(octets, four_octet=four_octet, internal=internal)


def _check_error(error: BgpError) -> None:
    octets = Notification(error.code, error.subcode, error.data).pack()
    assert len(pack_message(MessageType.NOTIFICATION, octets)) <= MESSAGE_MAX
    assert str(error).isprintable()


def _stream(octets: bytes, *, four_octet: bool, internal: bool) -> None:
    messages: list[tuple[MessageType, bytes]] = []
    failure = None
    try:
        messages.extend(Deframer().feed(octets))
    except BgpError as error:
        _check_error(error)
        failure = error.subcode
    # An octet at a time, the messages are the same.
    deframer = Deframer()
    single: list[tuple[MessageType, bytes]] = []
    try:
        for octet in octets:
            single.extend(deframer.feed(bytes((octet,))))
    except BgpError as error:
        assert failure == error.subcode
    assert failure is not None or single == messages
    for kind, body in single:
        match kind:
            case MessageType.OPEN:
                _open(body)
            case MessageType.UPDATE:
                _update(body, four_octet=four_octet, internal=internal)
            case MessageType.NOTIFICATION:
                notification = Notification.parse(body)
                assert notification.pack() == body
                assert notification.text.isprintable()
            case MessageType.ROUTE_REFRESH:
                assert RouteRefresh.parse(body).pack() == body[:4]
            case MessageType.KEEPALIVE:
                assert body == b""


def _open(body: bytes) -> None:
    try:
        message = Open.parse(body)
    except BgpError as error:
        _check_error(error)
        return
    assert 0 < message.asn < 1 << 32
    assert Open.parse(message.pack()) == message


def _update(body: bytes, *, four_octet: bool, internal: bool) -> None:
    try:
        update = parse_update(body, four_octet=four_octet, internal=internal)
    except BgpError as error:
        if len(body) <= MESSAGE_MAX - HEADER_LEN:
            _check_error(error)
        return
    _check(update)


def _check(update: Update) -> None:
    assert all(problem.isprintable() for problem in update.problems)
    assert (update.attributes is None) == (not update.announced)
    keys = {route.key for route in update.announced}
    assert keys.isdisjoint(route.key for route in update.withdrawn)
    if update.is_end_of_rib:
        assert update == Update(is_end_of_rib=True)
    options = {"four_octet": True, "internal": True}
    for message in pack_withdrawals(update.withdrawn):
        (part,) = _parsed(message)
        assert set(part.withdrawn) <= set(update.withdrawn)
    if update.attributes is None:
        return
    try:
        messages = list(pack_updates(update.announced, update.attributes, asn=1, **options))
    except ValueError:  # AS numbers that had two octets leave no room.
        assert len(update.attributes.as_path) > 100
        return
    again = [each for message in messages for each in _parsed(message)]
    assert tuple(route for each in again for route in each.announced) == update.announced
    expected = update.attributes
    if expected.local_pref is None:
        expected = attrs.evolve(expected, local_pref=100)
    assert all(each.attributes == expected for each in again)


def _parsed(message: bytes) -> list[Update]:
    return [
        parse_update(body, four_octet=True, internal=True) for _, body in Deframer().feed(message)
    ]


def _attributes(octets: bytes, *, four_octet: bool, internal: bool) -> None:
    """Append attributes of any type but the two for routes to a valid message."""
    reader = Reader(octets)
    reach = b"\0\x19\x46\4" + _IPV4.packed + b"\0" + bytes.fromhex("0311") + _RD.octets
    reach += bytes(4) + b"\x20" + _IPV4.packed
    packed = pack_attribute(OPTIONAL, 14, reach)
    form = reader.integer()
    if form & 1:
        packed += b"\x40\1\1\0" + b"\x40\2\0"
    while not reader.is_empty:
        flags, kind, length = reader.integer(), reader.integer(), reader.integer()
        if kind in _MP:
            continue
        if kind not in _RECOGNIZED:
            flags |= OPTIONAL
        packed += pack_attribute(flags & ~0x10, kind, reader.octets(length))
    if form & 2:
        packed += b"\xc0\x08\xff"
    body = b"\0\0" + len(packed).to_bytes(2) + packed
    update = parse_update(body, four_octet=four_octet, internal=internal)
    # The route is there, in one way or the other.
    assert (*update.announced, *update.withdrawn) == (_FLOOD,)
    if not update.announced:
        assert any(text.endswith("treated as withdrawn") for text in update.problems)
    _check(update)


def seeds() -> Iterator[bytes]:
    """Yield valid inputs, from which the fuzzer starts."""
    options = {"four_octet": True, "internal": True}
    other = OtherRoute(5, bytes(34))
    (announced,) = pack_updates([_FLOOD, _MAC_IP, other], _ATTRIBUTES, asn=65000, **options)
    (old,) = pack_updates([_MAC_IP], _ATTRIBUTES, four_octet=False, internal=False, asn=4200000000)
    (withdrawn,) = pack_withdrawals([_FLOOD, _MAC_IP, other])
    opened = _OPEN.pack()
    notification = Notification(6, 2, pack_shutdown("bye")).pack()
    yield b"\3" + b"".join(
        (
            pack_message(MessageType.OPEN, opened),
            *(KEEPALIVE, announced, withdrawn, END_OF_RIB),
            pack_message(MessageType.ROUTE_REFRESH, RouteRefresh().pack()),
            pack_message(MessageType.NOTIFICATION, notification),
        )
    )
    yield b"\5" + opened
    for update in (announced, withdrawn, END_OF_RIB):
        yield b"\x0b" + update[HEADER_LEN:]
    yield b"\x08" + old[HEADER_LEN:]
    yield b"\x0f\1" + b"\x40\5\4" + bytes(4) + b"\xc0\x10\x08" + RouteTarget.of(1, 2).octets
    yield b"\x0c\1" + b"\xc0\x16\x09\0\6\0\0\x64" + _IPV4.packed + b"\x80\x09\4" + bytes(4)
