"""A BGP neighbour: its session, the connections, and what is sent and received."""

import asyncio
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Address
from typing import Protocol

from attrs import evolve

from vtep.control.evpn_schema import EvpnSession
from vtep.evpn import bgp_sockets
from vtep.evpn.announcement import Announcement
from vtep.evpn.link import PeerLink
from vtep.evpn.outbox import Outbox
from vtep.evpn.peer_options import PeerOptions
from vtep.evpn.session import Session
from vtep.evpn.session_types import (
    Action,
    Close,
    Connect,
    Down,
    Established,
    Failure,
    RefreshRequested,
    Send,
    SessionError,
    SessionParameters,
    SessionState,
    Updated,
)
from vtep.ratelimit import LineLimit
from vtep.wire.address import Address, without_scope
from vtep.wire.bgp.errors import Cease, ErrorCode
from vtep.wire.bgp.evpn import Route, RouteKey
from vtep.wire.bgp.message import MessageType, Notification, Open, pack_message
from vtep.wire.bgp.update import Update

log = logging.getLogger("vtep")

_ADDRESS_LOST = pack_message(
    MessageType.NOTIFICATION,
    Notification(ErrorCode.CEASE, Cease.OTHER_CONFIGURATION_CHANGE).pack(),
)

_DEPENDS_ON_ADDRESSES = (Failure.LOCAL_ADDRESS, Failure.NO_ROUTE)
"""Failures that may end with a change of the addresses of this host."""

_LOG_INTERVAL_S, _LOG_BURST = 60.0, 3
"""Seconds between two lines about one kind of event, and how many may come at once: a neighbour
that connects again and again fills no log."""


def _jitter() -> float:
    """Return a factor for a timer (RFC 4271, section 10)."""
    return random.uniform(0.75, 1)  # noqa: S311  no secret


class PeerEvents(Protocol):
    """Receives the events of established sessions."""

    def on_established(self, peer: "BgpPeer") -> None:
        """Handle a new session. Own routes are sent afterwards, then End-of-RIB."""

    def on_update(self, peer: "BgpPeer", update: Update) -> None:
        """Handle routes that a peer announces and withdraws."""

    def on_end_of_rib(self, peer: "BgpPeer") -> None:
        """Handle the end of the initial routes of a peer (RFC 4724, section 2)."""

    def on_down(self, peer: "BgpPeer", reason: str, retain: float | None) -> None:
        """Handle the end of a session.

        `retain` is how many seconds the routes of the peer may stay as stale, or None to remove
        them at once. After a call with seconds, there may be one with None.
        """


class BgpPeer:
    """A neighbour and the session with it. It is made and ended by `Peers`.

    Args:
        options: the settings.
        events: receives what the session does.
        own_routes: returns all own routes, for a new session.
        choose_router_id: returns our BGP identifier; called with the local address of the first
            connection.
        on_link_ended: called when a socket was closed.
    """

    def __init__(
        self,
        options: PeerOptions,
        events: PeerEvents,
        own_routes: Callable[["BgpPeer"], Iterable[Announcement]],
        choose_router_id: Callable[[Address], IPv4Address],
        on_link_ended: Callable[[], None],
    ) -> None:
        self.options = options
        self.name = str(options.neighbor.address)
        self.local_address: Address | None = None
        """The local address of the established session, or of the last one, without a scope."""
        self.remote: Open | None = None
        """The OPEN of the peer in the established session, or in the last one."""
        self.links: dict[int, PeerLink] = {}
        self.lingering: set[PeerLink] = set()
        """Links that are closed as soon as the last message is sent."""
        self._events = events
        self._own_routes = own_routes
        self._choose_router_id = choose_router_id
        self._on_link_ended = on_link_ended
        parameters = SessionParameters(
            asn=options.asn,
            remote_asn=options.neighbor.asn,
            hold_time=options.hold_time,
            passive=options.neighbor.passive,
        )
        self.session = Session(parameters, _jitter)
        self.was_established = False
        """True if there was an established session, also with former options."""
        self._state = SessionState.IDLE
        self._state_since = time.monotonic()
        self._todo: deque[Action] = deque()
        self._is_acting = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._outbox: Outbox | None = None
        self._established_link: PeerLink | None = None
        self._hold_time: int | None = None
        self._pump: asyncio.Handle | None = None
        self._routes: set[RouteKey] = set()
        self._has_all_routes = False
        self._noted: SessionError | None = None
        """The last failure that was logged, or left out of the log."""
        self._logged: tuple[Failure, str] | None = None
        self._lines = LineLimit(_LOG_INTERVAL_S, _LOG_BURST)

    # --- views ------------------------------------------------------------------------------------

    @property
    def last_error(self) -> SessionError | None:
        """The last failure of the session or of an attempt; its time is that of time.monotonic."""
        return self.session.last_error

    @property
    def is_established(self) -> bool:
        """True while routes are exchanged."""
        return self._outbox is not None

    @property
    def is_internal(self) -> bool:
        """True if the peer is in our AS."""
        return self.remote_asn == self.options.asn

    @property
    def remote_asn(self) -> int | None:
        """The AS of the peer: that of its last OPEN, else as configured, else None."""
        return self.remote.asn if self.remote else self.options.neighbor.asn

    @property
    def preserves_forwarding(self) -> bool:
        """True if the peer says that it forwards while it restarts (RFC 4724, section 3)."""
        return self.session.preserves_forwarding

    def status(self, now: float) -> EvpnSession:
        """Return the session for `pyvtep evpn show`; `now` is that of time.monotonic."""
        error = self.last_error
        neighbor = self.options.neighbor
        established = self.is_established
        return {
            "neighbor": self.name,
            "port": neighbor.port,
            "asn": self.options.asn,
            "remote_asn": self.remote_asn,
            "state": self.session.state.text,
            "age": max(0.0, now - self._state_since),
            "was_established": self.was_established,
            "local": str(self.local_address) if established else None,
            "source": None if self.options.local is None else str(self.options.local),
            "router_id": str(self.remote.router_id) if self.remote else None,
            "hold_time": self._hold_time,
            "passive": neighbor.passive,
            "password": self.options.password is not None,
            "routes_received": len(self._routes),
            "routes_announced": 0 if self._outbox is None else self._outbox.announced,
            "end_of_rib": self._has_all_routes,
            "last_error": error.text if error else None,
            "last_error_kind": error.kind.value if error else None,
            "last_error_age": max(0.0, now - error.time) if error else None,
        }

    # --- calls of Peers ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, or to wait for the neighbour."""
        self._act(self.session.start(time.monotonic()))

    def take_options(self, options: PeerOptions, local_addresses: Collection[Address]) -> bool:
        """Take new options if the session can go on with them. Returns: False if it cannot.

        Another local address is no reason to end a session that has a valid one.
        """
        former = evolve(self.options, local=options.local)
        present = self.local_address if self.is_established else self.options.local
        is_chosen = options.neighbor.local is None and present in local_addresses
        if former != options or not (is_chosen or self.options.local == options.local):
            return False
        self.options = options
        return True

    def check_addresses(self) -> None:
        """Close connections whose local address this host has lost, and connect anew at once.

        Nothing is received on them, so they would seem to be established until the hold timer
        expires. The neighbour is notified, so that it withdraws the routes with that address.
        """
        now = time.monotonic()
        for link in list(self.links.values()):
            if bgp_sockets.has_address(link.local_name):
                continue
            address = bgp_sockets.address_of(link.local_name)
            text = f"this host has lost {address}, the local address of the session"
            link.keep_sending()
            link.write(_ADDRESS_LOST)
            self._close(link.number)
            self._act(self.session.failed(link.number, Failure.LOCAL_ADDRESS, text, now))
        if self.last_error is not None and self.last_error.kind in _DEPENDS_ON_ADDRESSES:
            self.session.retry(now)
            self._arm()

    def stop(self, cease: Cease, text: str = "") -> None:
        """End the session for good; the last message may still be on its way."""
        self._act(self.session.stop(time.monotonic(), cease, text))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def accept(self, sock: socket.socket) -> None:
        """Take a connection that the neighbour has opened."""
        local = without_scope(bgp_sockets.address_of(sock.getsockname()))
        self.session.router_id = self._choose_router_id(local)
        number, actions = self.session.accept(time.monotonic())
        if number is None:
            sock.close()
            return
        link = self.links[number] = PeerLink(number, sock, self)
        link.start()
        self._act(actions)

    def announce(self, announcements: Iterable[Announcement]) -> None:
        """Send routes, if the session is established."""
        if self._outbox is not None:
            self._outbox.announce(announcements)
            self._start_pump()

    def withdraw(self, routes: Iterable[Route]) -> None:
        """Withdraw routes, if the session is established."""
        if self._outbox is not None:
            self._outbox.withdraw(routes)
            self._start_pump()

    # --- actions of the FSM -----------------------------------------------------------------------

    def _act(self, actions: Iterable[Action]) -> None:
        """Take actions in order, also if one of them causes further ones."""
        self._todo += actions
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._todo:
                self._take(self._todo.popleft())
        finally:
            self._is_acting = False
            self._note_state()
            self._arm()

    def _take(self, action: Action) -> None:
        match action:
            case Connect(number):
                self._connect(number)
            case Send(number, octets):
                if number in self.links:
                    self.links[number].write(octets)
            case Close(number):
                self._close(number)
            case Established(number, remote, hold_time):
                self._on_established(number, remote, hold_time)
            case Updated(update):
                self._on_update(update)
            case RefreshRequested():
                self._send_all()
            case Down(error, retain):
                self._on_down(error, retain)

    def _connect(self, number: int) -> None:
        neighbor = self.options.neighbor
        try:
            sock = bgp_sockets.connect(
                neighbor.address,
                neighbor.port,
                local=self.options.local,
                password=self.options.password,
            )
        except bgp_sockets.SocketError as error:
            now = time.monotonic()
            self._todo += self.session.failed(number, error.kind, str(error), now)
            return
        link = self.links[number] = PeerLink(number, sock, self)
        link.wait_for_handshake()

    def _close(self, number: int) -> None:
        link = self.links.pop(number, None)
        if link is not None:
            self.lingering.add(link)
            link.close()

    def _on_established(self, number: int, remote: Open, hold_time: int) -> None:
        link = self.links[number]
        self.was_established = True
        self.remote, self._hold_time, self._established_link = remote, hold_time, link
        self.local_address = without_scope(bgp_sockets.address_of(link.local_name))
        self._routes.clear()
        self._has_all_routes = False
        self._logged = None
        self._outbox = Outbox(
            self.local_address,
            four_octet=remote.capabilities.four_octet_asn is not None,
            internal=self.is_internal,
            asn=self.options.asn,
        )
        ending = self._lines.admit(time.monotonic(), "established")
        if ending is not None:
            log.info(
                "EVPN session with %s: established: AS %d, hold time %d s%s",
                *(self.name, remote.asn, hold_time, ending),
            )
        self._events.on_established(self)
        self._send_all()

    def _on_update(self, update: Update) -> None:
        for problem in update.problems:
            log.debug("EVPN session with %s: UPDATE: %s", self.name, problem)
        if update.is_end_of_rib:
            self._has_all_routes = True
            self._events.on_end_of_rib(self)
            return
        self._routes.update(route.key for route in update.announced)
        self._routes.difference_update(route.key for route in update.withdrawn)
        self._events.on_update(self, update)

    def _on_down(self, error: SessionError, retain: float | None) -> None:
        self._outbox = self._established_link = self._hold_time = None
        self._routes.clear()
        self._has_all_routes = False
        if self._pump is not None:
            self._pump.cancel()
            self._pump = None
        self._events.on_down(self, error.text, retain)

    def _note_state(self) -> None:
        """Remember when the state changed, and log a failure once, with a limit for each kind."""
        if self.session.state is not self._state:
            self._state, self._state_since = self.session.state, time.monotonic()
        error = self.last_error
        if error is None or error is self._noted or self._outbox is not None:
            return
        self._noted = error
        if (error.kind, error.text) == self._logged:
            return
        ending = self._lines.admit(time.monotonic(), error.kind)
        if ending is not None:
            self._logged = error.kind, error.text
            level = logging.INFO if self._state is SessionState.IDLE else logging.WARNING
            log.log(level, "EVPN session with %s: %s%s", self.name, error.text, ending)

    # --- timers -----------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set the timer to the earliest time at which the FSM wants to be called."""
        due = self.session.next_time
        if due is None:
            return
        # The due time is kept here: uvloop returns a handle without one for a delay of 0.
        if self._timer is None or self._timer_due > due:
            if self._timer is not None:
                self._timer.cancel()
            delay = max(0.0, due - time.monotonic())
            self._timer = self._loop.call_later(delay, self._on_timer)
            self._timer_due = due

    def _on_timer(self) -> None:
        self._timer = None
        for link in list(self.links.values()):
            # If this process was delayed, the KEEPALIVE that the hold timer waits for is here.
            link.read()
        self._act(self.session.tick(time.monotonic()))

    # --- routes to send ---------------------------------------------------------------------------

    def _send_all(self) -> None:
        if self._outbox is not None:
            self._outbox.fill(self._own_routes(self))
            self._start_pump()

    def _start_pump(self) -> None:
        if self._pump is None:
            self._pump = self._loop.call_soon(self._pump_once)

    def _pump_once(self) -> None:
        """Encode and send some routes, unless the peer is slow; other work has its turn between."""
        self._pump = None
        outbox, link = self._outbox, self._established_link
        if outbox is None or link is None or link.is_full:
            return
        link.write(outbox.take())
        if outbox:
            self._start_pump()

    # --- events of links --------------------------------------------------------------------------

    def link_connected(self, link: PeerLink) -> None:
        """Send an OPEN."""
        local = without_scope(bgp_sockets.address_of(link.local_name))
        self.session.router_id = self._choose_router_id(local)
        self._act(self.session.connected(link.number, time.monotonic()))

    def link_failed(self, link: PeerLink, error: OSError) -> None:
        """Close the link, and retry later."""
        self._close(link.number)
        now = time.monotonic()
        self._act(self.session.failed(link.number, *bgp_sockets.failure_of(error), now))

    def link_received(self, link: PeerLink, octets: bytes) -> None:
        """Pass octets to the FSM."""
        self._act(self.session.received(link.number, octets, time.monotonic()))

    def link_closed(self, link: PeerLink, reason: str) -> None:
        """Close our side too."""
        self._close(link.number)
        self._act(self.session.closed(link.number, reason, time.monotonic()))

    def link_blocked(self, link: PeerLink) -> None:
        """Start the send hold timer."""
        self.session.send_blocked(link.number, time.monotonic())
        self._arm()

    def link_progressed(self, link: PeerLink) -> None:
        """Go on with the routes that wait."""
        self.session.send_progressed(link.number, time.monotonic(), is_drained=link.is_drained)
        if link is self._established_link and self._outbox and not link.is_full:
            self._start_pump()

    def link_ended(self, link: PeerLink) -> None:
        """Forget a link whose socket is closed."""
        self.lingering.discard(link)
        self._on_link_ended()
