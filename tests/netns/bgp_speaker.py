"""The BGP sessions of pyvtep in a thread of the test process, on one host."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from ipaddress import IPv4Address
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.netns.hosts import DEADLINE, wait_until
from vtep.config.evpn import EvpnSettings
from vtep.config.evpn_neighbors import Neighbor
from vtep.control.evpn_schema import EvpnSession
from vtep.evpn.announcement import Announcement
from vtep.evpn.peer import BgpPeer
from vtep.evpn.peers import Peers
from vtep.testing.lab import Host
from vtep.wire.address import Address
from vtep.wire.bgp.attributes import INGRESS_REPLICATION, PathAttributes, Pmsi
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import (
    NO_ESI,
    MacIpRoute,
    MulticastRoute,
    RouteDistinguisher,
    RouteKey,
)
from vtep.wire.bgp.update import Update

T = TypeVar("T")
VNI = 100


def neighbor(address: str, **options: Any) -> Neighbor:
    """Return a neighbour with options of `Neighbor`."""
    return Neighbor(address, **options)  # The converter parses the address.


def multicast(vtep: str, asn: int = 65000) -> Announcement:
    """Return the type 3 route of a VTEP."""
    address = IPv4Address(vtep)
    attributes = PathAttributes(
        next_hop=address,
        route_targets=frozenset({RouteTarget.of(asn & 0xFFFF, VNI)}),
        pmsi=Pmsi(0, INGRESS_REPLICATION, VNI, address),
    )
    return Announcement(MulticastRoute(RouteDistinguisher.of(address, VNI), 0, address), attributes)


def macs(vtep: str, count: int, asn: int = 65000) -> list[Announcement]:
    """Return type 2 routes of a VTEP: of the MACs 02:00:00:00:00:00 and following."""
    address = IPv4Address(vtep)
    targets = frozenset({RouteTarget.of(asn & 0xFFFF, VNI)})
    attributes = PathAttributes(next_hop=address, route_targets=targets)
    rd = RouteDistinguisher.of(address, VNI)
    return [
        Announcement(MacIpRoute(rd, NO_ESI, 0, b"\2" + number.to_bytes(5), None, VNI), attributes)
        for number in range(count)
    ]


class BgpSpeaker:
    """`Peers` with a thread and an event loop of their own, in the namespace of a host."""

    peers: Peers

    def __init__(
        self,
        host: Host,
        *neighbors: Neighbor,
        asn: int = 65000,
        own: Iterable[Announcement] = (),
        local: Iterable[Address] = (),
        **options: Any,
    ) -> None:
        self.host = host
        self.options = {"asn": asn, "hold_time": 9} | options
        self.events: list[tuple[str, str, str]] = []
        """Name of the neighbour, what happened, and why."""
        self.routes: dict[str, dict[RouteKey, PathAttributes | None]] = {}
        """The routes of each neighbour."""
        self._own = list(own)
        self._local = tuple(local)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._settings = self._settings_for(neighbors)

    def _settings_for(self, neighbors: Iterable[Neighbor]) -> EvpnSettings:
        return EvpnSettings(neighbor=tuple(neighbors), **self.options)

    def _run(self) -> None:
        with self.host.inside():
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()

    def __enter__(self) -> Self:
        self._thread.start()

        async def start() -> None:
            self.peers = Peers(
                self._settings, self, lambda _: self._own, local_addresses=self._local
            )
            await self.peers.start()

        asyncio.run_coroutine_threadsafe(start(), self._loop).result(DEADLINE)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            print(self.host.name, *self.events, *self.sessions(), sep="\n")
        stopping = asyncio.run_coroutine_threadsafe(self.peers.stop("the test ends"), self._loop)
        stopping.result(DEADLINE)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the thread of the event loop."""

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE)

    def configure(self, *neighbors: Neighbor, **options: Any) -> None:
        """Take new settings."""
        self.options |= options
        settings = self._settings_for(neighbors)
        change = self.peers.configure(settings)
        asyncio.run_coroutine_threadsafe(change, self._loop).result(DEADLINE)

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Announce further routes."""
        added = list(announcements)
        self._own += added
        self.call(partial(self.peers.announce, added))

    def withdraw(self, announcements: Iterable[Announcement]) -> None:
        """Withdraw routes."""
        gone = [each.route for each in announcements]
        withdrawn = set(gone)
        self._own = [each for each in self._own if each.route not in withdrawn]
        self.call(partial(self.peers.withdraw, gone))

    def sessions(self) -> list[EvpnSession]:
        """Return all sessions, as `pyvtep evpn show` has them."""
        return self.call(lambda: [peer.status(time.monotonic()) for peer in self.peers])

    def session(self, name: str = "") -> EvpnSession:
        """Return the session with a neighbour, by default the first one."""
        return next(each for each in self.sessions() if not name or each["neighbor"] == name)

    def is_established(self, name: str = "") -> bool:
        """Return whether a session is established, and all routes of the neighbour are here."""
        return self.session(name)["state"] == "established"

    def wait_established(self, name: str = "") -> EvpnSession:
        """Wait until a session is established."""
        wait_until(lambda: self.is_established(name), f"a session of {self.host.name} {name}")
        return self.session(name)

    def wait_error(self, kind: str, name: str = "") -> str:
        """Wait for a failure of a kind. Returns: its text."""

        def has_failed() -> bool:
            return self.session(name)["last_error_kind"] == kind

        wait_until(has_failed, f"{kind}, not {self.session(name)}")
        return str(self.session(name)["last_error"])

    def downs(self, name: str = "") -> list[str]:
        """Return why sessions ended."""
        return [why for peer, what, why in self.events if what == "down" and name in ("", peer)]

    # --- PeerEvents -------------------------------------------------------------------------------

    def on_established(self, peer: BgpPeer) -> None:
        """Note a session."""
        self.events.append((peer.name, "up", ""))
        self.routes[peer.name] = {}

    def on_update(self, peer: BgpPeer, update: Update) -> None:
        """Note routes."""
        assert update.problems == ()
        routes = self.routes[peer.name]
        for route in update.announced:
            routes[route.key] = update.attributes
        for route in update.withdrawn:
            routes.pop(route.key, None)

    def on_end_of_rib(self, peer: BgpPeer) -> None:
        """Note the end of the routes of a peer."""
        self.events.append((peer.name, "end of rib", ""))

    def on_down(self, peer: BgpPeer, reason: str, retain: float | None) -> None:
        """Note the end of a session."""
        self.events.append((peer.name, "down", reason))
        assert retain is None
        self.routes[peer.name] = {}
