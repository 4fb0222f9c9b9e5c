"""BGP sessions over TCP on the loopback device, between two of ours and with a scripted peer."""

import asyncio
import errno
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, ip_address
from typing import Any
from unittest.mock import patch

import pytest
import uvloop
from attrs import evolve

from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import Neighbor
from vtep.evpn import bgp_sockets, speaker_views
from vtep.evpn.announcement import Announcement
from vtep.evpn.outbox import Outbox
from vtep.evpn.peer import BgpPeer
from vtep.evpn.peers import Peers
from vtep.evpn.session_types import Failure
from vtep.wire.bgp import EVPN
from vtep.wire.bgp.attributes import PathAttributes
from vtep.wire.bgp.capabilities import Capabilities
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import NO_ESI, MacIpRoute, RouteDistinguisher
from vtep.wire.bgp.message import (
    KEEPALIVE,
    Deframer,
    MessageType,
    Notification,
    Open,
    RouteRefresh,
    pack_message,
)
from vtep.wire.bgp.update import END_OF_RIB, Update, parse_update

LEFT, RIGHT = "127.0.0.1", "127.0.0.2"
DEADLINE_S = 30.0
ATTRIBUTES = PathAttributes(route_targets=frozenset({RouteTarget.of(65000, 100)}))
CAPABILITIES = Capabilities(frozenset({EVPN}), None, route_refresh=True)
RD = RouteDistinguisher.of(IPv4Address("192.0.2.1"), 100)


def route(number: int) -> MacIpRoute:
    return MacIpRoute(RD, NO_ESI, 0, b"\2\0" + struct.pack("!I", number), None, 100)


def announcements(count: int, first: int = 0) -> list[Announcement]:
    return [Announcement(route(first + number), ATTRIBUTES) for number in range(count)]


class Recorder:
    """Receives the events of sessions, and has the routes of each peer."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.reasons: list[str] = []
        self.routes: dict[object, PathAttributes | None] = {}
        self.own: list[Announcement] = []

    def own_routes(self, _peer: BgpPeer) -> Iterable[Announcement]:
        return self.own

    def on_established(self, peer: BgpPeer) -> None:
        self.events.append(f"up {peer.name}")

    def on_update(self, _peer: BgpPeer, update: Update) -> None:
        for announced in update.announced:
            self.routes[announced.key] = update.attributes
        for withdrawn in update.withdrawn:
            self.routes.pop(withdrawn.key, None)

    def on_end_of_rib(self, peer: BgpPeer) -> None:
        self.events.append(f"end {peer.name}")

    def on_down(self, peer: BgpPeer, reason: str, retain: float | None) -> None:
        self.events.append(f"down {peer.name} {retain}")
        self.reasons.append(reason)
        self.routes.clear()


async def until(condition: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  many conditions, of either side
            await asyncio.sleep(0.005)
    assert condition(), what


def free_port() -> int:
    """Return a port that neither address has in use."""
    with socket.socket() as one, socket.socket() as other:
        one.bind((LEFT, 0))
        port = int(one.getsockname()[1])
        other.bind((RIGHT, port))
        return port


class Side:
    """Our side on one loopback address."""

    def __init__(self, own: str, settings: EvpnSettings, port: int, **options: Any) -> None:
        self.seen = Recorder()
        self.peers = Peers(
            settings,
            self.seen,
            self.seen.own_routes,
            local_addresses=(ip_address(own),),
            listen_port=port,
            **options,
        )

    @property
    def peer(self) -> BgpPeer:
        return next(iter(self.peers))


def settings_for(address: str, port: int, **options: Any) -> EvpnSettings:
    near = {key: options.pop(key) for key in ("passive",) if key in options}
    neighbor = Neighbor(address, asn=options.pop("remote", 65000), port=port, **near)
    return EvpnSettings(asn=options.pop("asn", 65000), neighbor=(neighbor,), **options)


@asynccontextmanager
async def both(
    left: dict[str, Any] | None = None, right: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Side, Side]]:
    port = free_port()
    sides = (
        Side(LEFT, settings_for(RIGHT, port, **(left or {})), port),
        Side(RIGHT, settings_for(LEFT, port, **{"passive": True} | (right or {})), port),
    )
    try:
        # The passive side listens first, so that the first attempt succeeds.
        for side in reversed(sides):
            await side.peers.start()
        yield sides
    finally:
        for side in sides:
            await side.peers.stop()


def error_text(side: Side) -> str:
    error = side.peer.last_error
    return "" if error is None else error.text


Test = Callable[[], Coroutine[Any, Any, None]]


def run(test: Test) -> None:
    asyncio.run(test())


def test_ten_thousand_routes_cross_in_both_directions() -> None:
    async def test() -> None:
        async with both() as (left, right):
            left.seen.own, right.seen.own = announcements(10_000), announcements(10_000, 1 << 20)
            for side in (left, right):
                await until(lambda: any("end" in event for event in side.seen.events), "EOR")  # noqa: B023
            assert left.seen.events == [f"up {RIGHT}", f"end {RIGHT}"]
            assert left.seen.routes.keys() == {each.route.key for each in right.seen.own}
            assert right.seen.routes.keys() == {each.route.key for each in left.seen.own}
            # Without a next hop it is the local address of the session.
            hops = {each.next_hop for each in right.seen.routes.values() if each}
            assert hops == {ip_address(LEFT)}
            status = left.peer.status(1e9)
            assert (status["routes_received"], status["routes_announced"]) == (10_000, 10_000)
            assert status["state"] == "established"
            assert status["local"] == LEFT
            assert status["router_id"] == RIGHT
            assert status["end_of_rib"]
            left.peers.withdraw(each.route for each in left.seen.own[:9_999])
            await until(lambda: len(right.seen.routes) == 1, "withdrawals")
            assert left.peer.status(1e9)["routes_announced"] == 1

    run(test)


def test_stop_tells_the_reason_to_the_neighbour() -> None:
    async def test() -> None:
        async with both() as (left, right):
            await until(lambda: left.peer.is_established and right.peer.is_established, "session")
            await left.peers.stop("maintenance")
            assert left.seen.events[-1] == f"down {RIGHT} None"
            await until(lambda: right.seen.reasons, "the end")
            assert 'administrative shutdown "maintenance"' in right.seen.reasons[0]
            error = right.peer.last_error
            assert error is not None
            assert error.kind is Failure.NOTIFICATION_RECEIVED

    run(test)


def test_new_settings_reset_only_what_they_change() -> None:
    async def test() -> None:
        port = free_port()
        left = Side(LEFT, settings_for(RIGHT, port), port)
        right = Side(RIGHT, settings_for(LEFT, port, passive=True), port)
        await right.peers.start()
        await left.peers.start()
        await until(lambda: left.peer.is_established, "session")
        kept = left.peer
        other = Neighbor("127.0.0.3", port=port)
        before = settings_for(RIGHT, port)
        after = evolve(before, neighbor=(other, *before.neighbor), stale_time=5.0)
        await left.peers.configure(after)
        assert not next(iter(left.peers)).status(1e9)["was_established"]
        assert [peer.name for peer in left.peers] == ["127.0.0.3", RIGHT]
        assert list(left.peers)[1] is kept
        assert kept.is_established
        await left.peers.configure(evolve(before, hold_time=30))
        assert left.peer.status(1e9)["was_established"]
        assert "other configuration change" in left.seen.reasons[0]
        await until(lambda: left.peer.is_established, "the session again")
        assert left.peer.status(1e9)["hold_time"] == 30
        assert left.peer is not kept
        await left.peers.configure(evolve(after, neighbor=(other,)))
        assert "peer deconfigured" in left.seen.reasons[1]
        await until(lambda: len(right.seen.reasons) == 2, "the end")
        for side in (left, right):
            await side.peers.stop()

    run(test)


def test_routes_stay_for_a_while_if_the_speaker_ends_without_notice() -> None:
    async def test() -> None:
        async with both() as (left, right):
            await until(lambda: left.peer.status(0.0)["end_of_rib"], "session")
            assert left.peer.preserves_forwarding
            (link,) = left.peer.links.values()
            link._sock.shutdown(socket.SHUT_RDWR)
            await until(lambda: right.seen.reasons, "the end")
            assert right.seen.events[-1] == f"down {LEFT} 30.0"
            await until(lambda: right.peer.status(0.0)["end_of_rib"], "the session again")
            assert right.seen.events[-2:] == [f"up {LEFT}", f"end {LEFT}"]

    run(test)


def test_a_further_local_address_resets_no_session() -> None:
    async def test() -> None:
        async with both() as (left, right):
            await until(lambda: left.peer.is_established, "session")
            own, other = ip_address(LEFT), ip_address("127.0.0.8")
            same = settings_for(RIGHT, left.peer.options.neighbor.port)
            for addresses in ((other, own), (own,)):
                await left.peers.configure(same, local_addresses=addresses)
                assert left.peer.is_established
            await left.peers.configure(same, local_addresses=(other,))
            assert "other configuration change" in left.seen.reasons[0]
            await until(lambda: right.seen.reasons, "the end")

    run(test)


def test_a_session_from_an_address_that_is_lost_is_opened_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with both() as (left, right):
            await until(lambda: left.peer.is_established and right.peer.is_established, "session")
            left.peers.check_addresses()
            assert left.peer.is_established
            with monkeypatch.context() as patched:
                patched.setattr(bgp_sockets, "has_address", lambda _: False)
                left.peers.check_addresses()
            assert left.seen.events[-1] == f"down {RIGHT} None"
            assert left.seen.reasons == [
                f"this host has lost {LEFT}, the local address of the session"
            ]
            assert left.peer.status(1e9)["last_error_kind"] == "local-address"
            # The neighbour does not wait for its hold timer.
            await until(lambda: right.seen.reasons, "the end")
            assert "other configuration change" in right.seen.reasons[0]
            await until(lambda: left.peer.is_established and right.peer.is_established, "the next")

    run(test)


def test_addresses_of_this_host() -> None:
    assert bgp_sockets.has_address((LEFT, 179))
    assert not bgp_sockets.has_address(("192.0.2.77", 179))
    assert not bgp_sockets.has_address(("2001:db8::77", 179, 0, 0))


@pytest.mark.parametrize("passive", [False, True])
def test_both_sides_may_connect(passive: bool) -> None:
    async def test() -> None:
        async with both(right={"passive": passive}) as (left, right):
            await until(lambda: left.peer.is_established and right.peer.is_established, "session")

    run(test)


def test_a_wrong_as_is_known_to_both_sides() -> None:
    async def test() -> None:
        async with both(left={"remote": 65009}) as (left, right):
            await until(lambda: left.peer.last_error and right.peer.last_error, "errors")
            for side in (left, right):
                error = side.peer.last_error
                assert error is not None
                assert error.kind is Failure.WRONG_ASN
            assert not left.peer.is_established

    run(test)


# --- a scripted peer ------------------------------------------------------------------------------


class Script:
    """The other end of a session, which does as it is told."""

    def __init__(self) -> None:
        self.port = free_port()
        self._server = socket.create_server((RIGHT, self.port))
        self._server.setblocking(False)
        self.messages: list[tuple[MessageType, bytes]] = []
        self._deframer = Deframer()

    async def accept(self) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(DEADLINE_S):
            self.sock, _ = await loop.sock_accept(self._server)

    async def send(self, *messages: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(messages))

    async def read(self) -> bool:
        """Read some messages. Returns: False at the end of the connection."""
        async with asyncio.timeout(DEADLINE_S):
            octets = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        self.messages += self._deframer.feed(octets)
        return bool(octets)

    async def handshake(self) -> None:
        """Accept a connection and exchange OPENs."""
        await self.accept()
        await self.greet()

    async def greet(self) -> None:
        """Send an OPEN, and confirm that of the other side."""
        capabilities = Capabilities(frozenset({EVPN}), 65000, route_refresh=True)
        own = Open(65000, 90, IPv4Address("192.0.2.2"), capabilities)
        await self.send(pack_message(MessageType.OPEN, own.pack()), KEEPALIVE)

    def close(self) -> None:
        self._server.close()
        if hasattr(self, "sock"):
            self.sock.close()


@pytest.fixture
def script() -> Iterator[Script]:
    scripted = Script()
    yield scripted
    scripted.close()


@asynccontextmanager
async def against(script: Script, **options: Any) -> AsyncIterator[Side]:
    options.setdefault("listen", False)
    side = Side(LEFT, settings_for(RIGHT, script.port, **options), script.port)
    await side.peers.start()
    try:
        yield side
    finally:
        await side.peers.stop()


def test_a_peer_that_closes_before_its_open(script: Script) -> None:
    async def test() -> None:
        async with against(script) as side:
            await script.accept()
            script.sock.close()
            await until(lambda: side.peer.last_error, "an error")
            assert side.peer.status(1e9)["last_error_kind"] == "closed-before-open"
            # It tries again.
            await script.handshake()
            await until(lambda: side.peer.is_established, "session")

    run(test)


def test_a_refused_connection(script: Script) -> None:
    async def test() -> None:
        script.close()
        async with against(script) as side:
            await until(lambda: side.peer.last_error, "an error")
            assert side.peer.status(1e9)["last_error_kind"] == "connect-refused"

    run(test)


@pytest.mark.parametrize(
    ("address", "kind", "text"),
    [
        ("fe80::1%nosuchdev", Failure.NO_ROUTE, "cannot connect: there is no device nosuchdev"),
        ("192.0.2.1", Failure.LOCAL_ADDRESS, "is not an address of this host"),
    ],
)
def test_errors_before_the_connection(address: str, kind: Failure, text: str) -> None:
    async def test() -> None:
        side = Side("198.51.100.77", settings_for(address, 1, listen=False), 1)
        await side.peers.start()
        error = side.peer.last_error
        assert error is not None
        assert error.kind is kind
        assert text in error.text
        await side.peers.stop()

    run(test)


def test_an_own_router_id_is_chosen_without_ipv4() -> None:
    async def test() -> None:
        settings = EvpnSettings(asn=65000, neighbor=(Neighbor("::1", port=free_port()),))
        side = Side("::1", settings, 1)
        assert side.peers.router_id is None
        chosen = side.peers._choose_router_id(ip_address("2001:db8::1"))
        assert side.peers.router_id == chosen != IPv4Address(0)
        await side.peers.configure(evolve(settings, router_id=IPv4Address("192.0.2.9")))
        assert side.peers.router_id == IPv4Address("192.0.2.9")
        await side.peers.stop()

    run(test)


def test_a_peer_that_reads_slowly_costs_no_memory(script: Script) -> None:
    async def test() -> None:
        async with against(script) as side:
            side.seen.own = announcements(20_000)
            await script.accept()
            (link,) = side.peer.links.values()
            link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            await script.greet()
            await until(lambda: link.is_full, "backpressure")
            side.peers.announce(side.seen.own)  # Replaces what waits.
            assert len(link._waiting) < 2 * 65536
            # What the peer sends is read all the same.
            await script.send(END_OF_RIB)
            await until(lambda: side.peer.status(0.0)["end_of_rib"], "End-of-RIB")
            while not any(body == END_OF_RIB[19:] for _, body in script.messages):
                assert await script.read()
            keys = {
                announced.key
                for kind, body in script.messages
                if kind is MessageType.UPDATE
                for announced in parse_update(body, four_octet=True, internal=True).announced
            }
            assert len(keys) == 20_000

    run(test)


def test_route_refresh_sends_all_routes_again(script: Script) -> None:
    async def test() -> None:
        async with against(script) as side:
            side.seen.own = announcements(3)
            await script.handshake()
            refresh = pack_message(MessageType.ROUTE_REFRESH, RouteRefresh().pack())
            await until(lambda: side.peer.is_established, "session")
            for count in (1, 2):
                while sum(body == END_OF_RIB[19:] for _, body in script.messages) < count:
                    assert await script.read()
                updates = [body for kind, body in script.messages if kind is MessageType.UPDATE]
                assert len(updates) == 2 * count
                await script.send(refresh)

    run(test)


def test_a_flood_of_updates_is_read_in_turns(script: Script) -> None:
    """A megabyte of routes waits in the socket; each turn of the loop handles a part of it."""

    async def test() -> None:
        async with against(script) as side:
            await script.handshake()
            await until(lambda: side.peer.is_established, "session")
            outbox = Outbox(ip_address(RIGHT), four_octet=True, internal=True, asn=65000)
            outbox.fill(announcements(20_000))
            flood = b""
            while outbox:
                flood += outbox.take()
            sending = asyncio.create_task(script.send(flood))
            most, before = 0, 0
            while not side.peer.status(0.0)["end_of_rib"]:
                await asyncio.sleep(0)
                most = max(most, len(side.seen.routes) - before)
                before = len(side.seen.routes)
            await sending
            assert len(side.seen.routes) == 20_000
            assert 0 < most < 1000

    run(test)


def test_garbage_is_answered_before_the_connection_closes(script: Script) -> None:
    async def test() -> None:
        async with against(script) as side:
            await script.accept()
            await script.send(b"GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n" * 1000)
            while await script.read():
                pass
            kind, body = script.messages[-1]
            assert kind is MessageType.NOTIFICATION
            found = Notification.parse(body)
            assert (found.code, found.subcode) == (1, 1)
            assert side.peer.status(1e9)["last_error_kind"] == "notification-sent"

    run(test)


def test_only_neighbours_may_connect() -> None:
    async def test() -> None:
        async with both() as (left, right):
            del right
            port = left.peers._listen_port
            with socket.socket() as stranger:
                stranger.bind(("127.0.0.9", 0))
                stranger.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(stranger, (LEFT, port))
                async with asyncio.timeout(DEADLINE_S):
                    assert await loop.sock_recv(stranger, 100) == b""

    run(test)


def test_a_port_in_use_is_a_problem_and_no_obstacle(script: Script) -> None:
    async def test() -> None:
        settings = settings_for(RIGHT, script.port)
        with socket.create_server((LEFT, script.port)):
            side = Side(LEFT, settings, script.port)
            await side.peers.start()
            (problem,) = side.peers.problems
            assert f"cannot listen on {LEFT}, TCP port {script.port}" in problem
            await script.handshake()
            await until(lambda: side.peer.is_established, "session")
        side.peers._update_listeners()
        assert side.peers.problems == []
        await side.peers.stop()

    run(test)


# --- the queue of routes --------------------------------------------------------------------------


def outbox() -> Outbox:
    return Outbox(ip_address(LEFT), four_octet=True, internal=True, asn=65000)


def taken(box: Outbox) -> list[Update]:
    """Return all updates of a queue."""
    octets = b""
    while box:
        octets += box.take()
    return [
        parse_update(body, four_octet=True, internal=True) for _, body in Deframer().feed(octets)
    ]


def test_the_last_change_of_a_route_counts() -> None:
    box = outbox()
    one, two = announcements(2)
    moved = Announcement(one.route, evolve(ATTRIBUTES, sequence=1))
    box.fill([one, two])
    box.announce([moved])
    box.withdraw([two.route])  # It was not sent yet.
    update, end = taken(box)
    assert update.announced == (one.route,)
    assert update.attributes is not None
    assert update.attributes.sequence == 1
    assert end.is_end_of_rib
    assert box.announced == 1
    box.withdraw([one.route, two.route])
    (update,) = taken(box)
    assert update.withdrawn == (one.route,)
    box.withdraw([one.route])
    assert not box
    assert box.take() == b""


def test_a_next_hop_of_ones_own_is_kept() -> None:
    box = outbox()
    hop = ip_address("2001:db8::1")
    box.announce([Announcement(route(1), evolve(ATTRIBUTES, next_hop=hop))])
    (update,) = taken(box)
    assert update.attributes is not None
    assert update.attributes.next_hop == hop


# --- the end of connections, and the log ----------------------------------------------------------


def test_a_reset_behind_unread_routes_ends_the_session(script: Script) -> None:
    """Uvloop reports an error of a socket once, and watches the socket no more."""

    async def test() -> None:
        async with against(script) as side:
            await script.handshake()
            await until(lambda: side.peer.is_established, "session")
            outbox = Outbox(ip_address(RIGHT), four_octet=True, internal=True, asn=65000)
            outbox.fill(announcements(2000))
            # In one turn, so that data and reset are there when the session reads.
            while outbox:
                script.sock.send(outbox.take())
            script.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            script.sock.close()
            await until(lambda: side.seen.reasons, "the end of the session")
            assert "the connection was lost" in side.seen.reasons[0]

    uvloop.run(test())


def test_a_pause_of_the_process_ends_no_session(script: Script) -> None:
    """Timers are due at once afterwards, while messages wait."""

    async def test() -> None:
        failures: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, each: failures.append(each))
        async with against(script, hold_time=3) as side:
            await script.handshake()
            await until(lambda: side.peer.is_established, "session")
            outbox = Outbox(ip_address(RIGHT), four_octet=True, internal=True, asn=65000)
            outbox.fill(announcements(2000))
            while outbox:
                script.sock.send(outbox.take())
            # Beyond the interval of KEEPALIVEs, and below the hold time: this is the pause.
            time.sleep(1.2)  # noqa: ASYNC251
            await until(lambda: len(side.seen.routes) == 2000, "the routes")
            assert side.peer.is_established
        assert failures == []

    uvloop.run(test())


async def refuse(side: Side, asn: int) -> None:
    """Connect to a side as a neighbour of a wrong AS, and wait until it is refused."""
    near, far = socket.socketpair()
    near.setblocking(False)
    with far, patch.object(bgp_sockets, "address_of", lambda _name: ip_address(LEFT)):
        side.peer.accept(near)
        own = Open(asn, 90, IPv4Address("192.0.2.2"), CAPABILITIES)
        far.send(pack_message(MessageType.OPEN, own.pack()))
        await until(lambda: f"AS {asn}" in error_text(side), "an error")


def test_a_neighbour_fills_no_log(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt fails with another text."""
    tries = 12

    async def test() -> None:
        async with against(script, passive=True, listen=True, remote=65000) as side:
            for asn in range(65100, 65100 + tries):
                await refuse(side, asn)

    with caplog.at_level("INFO", logger="vtep"):
        run(test)
    lines = [line for line in caplog.messages if "but AS 65000 is configured" in line]
    assert 1 <= len(lines) < tries / 2


def test_without_a_local_address_none_is_blamed() -> None:
    error = OSError(errno.EADDRNOTAVAIL, "")
    assert bgp_sockets.failure_of(error)[0] is Failure.LOCAL_ADDRESS
    kind, text = bgp_sockets.failure_of(error, 6)
    assert kind is Failure.NO_ROUTE
    assert "this host has no IPv6 address to connect from; IPv6 may be disabled" in text


def test_sessions_that_cannot_begin_name_the_missing_device() -> None:
    near = (Neighbor("fe80::1%nosuchdev"), Neighbor("127.0.0.1"))
    first, second = speaker_views.waiting_sessions(EvpnSettings(asn=65000, neighbor=near))
    assert first["neighbor"] == "fe80::1%nosuchdev"
    assert first["last_error"] == "cannot connect: there is no device nosuchdev"
    assert first["last_error_kind"] == "no-route"
    assert "no own address" in str(second["last_error"])
