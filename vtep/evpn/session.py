"""The finite state machine (FSM) of a BGP session with one neighbour (RFC 4271, section 8).

It does no I/O. Events are calls with the time in seconds, of any clock that does not go back; each
returns the actions that the caller must take, in order. There may be two connections at a time, one
opened by each side, of which collision detection (section 6.8) keeps one. Each has a state, and the
state of the session is the most advanced one.

Differences from RFC 4271: a connection is always accepted while the session runs, also while it
waits to connect; an attempt is given up after 10 s; the pause between attempts begins at 1 s and
doubles up to 30 s, in place of a fixed ConnectRetryTime of 120 s; and the hold timer before the
OPEN of the peer is one minute instead of four.
"""

from collections.abc import Callable

from vtep.evpn.session_types import (
    NO_ROUTER_ID,
    Action,
    BgpConnection,
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
from vtep.wire.bgp import EVPN
from vtep.wire.bgp.capabilities import Capabilities, GracefulRestart
from vtep.wire.bgp.errors import (
    BgpError,
    Cease,
    ErrorCode,
    FsmError,
    HeaderError,
    OpenError,
    pack_shutdown,
)
from vtep.wire.bgp.message import (
    KEEPALIVE,
    MessageType,
    Notification,
    Open,
    RouteRefresh,
    pack_message,
)
from vtep.wire.bgp.update import parse_update

_CONNECT_S = 10.0
"""Seconds after which an attempt to connect is given up: the kernel has sent four SYNs."""

_OPEN_S = 60.0
"""Seconds in which the peer must send its OPEN, and then its first KEEPALIVE."""

_RETRY_MIN_S, _RETRY_MAX_S = 1.0, 30.0
"""The first and the longest pause between attempts to connect."""

_STABLE_S = 30.0
"""Seconds after which an established session resets the pause to the shortest one."""

_COLLISION_S = 10.0
"""Age in seconds from which on a session is lost if its peer says that it has restarted.

Before, the connection is one that the peer opened at the same time: FRR has the Restart State bit
in all OPENs for some time after its start.
"""

_KEEPALIVES_PER_HOLD_TIME = 3  # RFC 4271, section 4.4

_SEND_HOLD_S = 480.0
"""Seconds without progress of sending after which the session ends, at least (RFC 9687)."""

_KINDS_OF_SENT: dict[tuple[int, int], Failure] = {
    (ErrorCode.OPEN, OpenError.BAD_PEER_AS): Failure.WRONG_ASN,
    (ErrorCode.OPEN, OpenError.UNSUPPORTED_CAPABILITY): Failure.NO_EVPN_FAMILY,
    (ErrorCode.HOLD_TIMER_EXPIRED, 0): Failure.HOLD_EXPIRED,
}
"""Failures with a name of their own, by the code and subcode of the NOTIFICATION."""

_KINDS_OF_RECEIVED: dict[tuple[int, int], Failure] = {
    (ErrorCode.OPEN, OpenError.BAD_PEER_AS): Failure.WRONG_ASN,
    (ErrorCode.OPEN, OpenError.UNSUPPORTED_CAPABILITY): Failure.NO_EVPN_FAMILY,
}


class Session:
    """The FSM of the session with one neighbour.

    Args:
        parameters: the configuration.
        jitter: returns a random factor from 0.75 to 1 for a timer (RFC 4271, section 10).
    """

    def __init__(self, parameters: SessionParameters, jitter: Callable[[], float]) -> None:
        self.parameters = parameters
        self.router_id = NO_ROUTER_ID
        """Our BGP identifier, to be set before `connected` or `accept` is called."""
        self.is_restarting = False
        """True if this speaker has restarted while its entries were kept: the first OPENs have the
        Restart State bit, until the session is established (RFC 4724, section 3)."""
        self.last_error: SessionError | None = None
        self._jitter = jitter
        self._connections: dict[int, BgpConnection] = {}
        self._next_number = 0
        self._actions: list[Action] = []
        self._is_running = False
        self._retry_at: float | None = None
        self._retry_s = _RETRY_MIN_S
        self._established_at = 0.0
        self._is_retaining = False
        self._retained_until = 0.0

    # --- views ------------------------------------------------------------------------------------

    @property
    def state(self) -> SessionState:
        """The state of the session: that of its most advanced connection."""
        idle = SessionState.ACTIVE if self._is_running else SessionState.IDLE
        return max((each.state for each in self._connections.values()), default=idle)

    @property
    def preserves_forwarding(self) -> bool:
        """True if the session is established, and the peer says that it forwards in a restart."""
        return any(
            each.state is SessionState.ESTABLISHED and _preserves(each.peer)
            for each in self._connections.values()
        )

    @property
    def next_time(self) -> float | None:
        """The time at which `tick` must be called, or None."""
        times = [each.next_time for each in self._connections.values()]
        return min((time for time in (*times, self._retry_at) if time is not None), default=None)

    # --- events -----------------------------------------------------------------------------------

    def start(self, now: float) -> list[Action]:
        """Begin to connect, unless the session is passive."""
        if not self._is_running:
            self._is_running = True
            self._retry_s = _RETRY_MIN_S
            if not self.parameters.passive:
                self._connect(now)
        return self._take()

    def stop(self, now: float, cease: Cease, text: str = "") -> list[Action]:
        """End the session, with a Cease to the peer.

        Args:
            now: the time.
            cease: the subcode (RFC 4486).
            text: the shutdown communication (RFC 9003), for ADMINISTRATIVE_SHUTDOWN and _RESET.
        """
        self._is_running = False
        self._retry_at = None
        data = pack_shutdown(text) if text else b""
        error = BgpError(ErrorCode.CEASE, cease, data)
        for connection in list(self._connections.values()):
            self._refuse(connection, error, now)
        if self._is_retaining:
            self._is_retaining = False
            end = SessionError(Failure.NOTIFICATION_SENT, f"closed the session: {error}", now)
            self._actions.append(Down(end, None))
        return self._take()

    def connected(self, number: int, now: float) -> list[Action]:
        """Handle the end of the TCP handshake of an outgoing connection: send an OPEN."""
        connection = self._connections.get(number)
        if connection is not None and connection.state is SessionState.CONNECT:
            self._send_open(connection, now)
        return self._take()

    def failed(self, number: int, kind: Failure, text: str, now: float) -> list[Action]:
        """Handle an outgoing connection that could not be opened."""
        connection = self._connections.get(number)
        if connection is not None:
            self._drop(connection, SessionError(kind, text, now))
        return self._take()

    def retry(self, now: float) -> None:
        """Connect at the next `tick` if the session waits to do so: the host has changed."""
        self._retry_s = _RETRY_MIN_S
        if self._retry_at is not None:
            self._retry_at = now

    def accept(self, now: float) -> tuple[int | None, list[Action]]:
        """Handle a connection that the peer has opened.

        Returns: its number for the other calls, or None to close it at once; and the actions.
        """
        if not self._is_running:
            return None, []
        for other in list(self._connections.values()):
            if other.state is SessionState.ESTABLISHED:
                # The peer may have lost this connection with its host. Its kernel answers to a
                # segment by RST then, long before the hold timer would expire.
                self._actions.append(Send(other.number, KEEPALIVE))
            elif not other.is_outgoing:
                # A peer opens one connection at a time: it has given up the earlier one.
                self._forget(other)
                self._actions.append(Close(other.number))
        self._retry_at = None
        connection = self._add(SessionState.OPEN_SENT, now + _OPEN_S, is_outgoing=False)
        self._send_open(connection, now)
        return connection.number, self._take()

    def received(self, number: int, octets: bytes, now: float) -> list[Action]:
        """Handle octets of a connection."""
        connection = self._connections.get(number)
        if connection is None or connection.state is SessionState.CONNECT:
            return []
        try:
            for kind, body in connection.deframer.feed(octets):
                self._handle(connection, kind, body, now)
                if number not in self._connections:
                    break
        except BgpError as error:
            self._refuse(connection, error, now)
        return self._take()

    def closed(self, number: int, reason: str, now: float) -> list[Action]:
        """Handle the end of a connection by the peer or the kernel."""
        connection = self._connections.get(number)
        if connection is None:
            return []
        if connection.state is SessionState.OPEN_SENT:
            text = (
                f"the neighbor closed the connection before its OPEN ({reason}); it may not be "
                "configured there, or be shut down"
            )
            self._drop(connection, SessionError(Failure.CLOSED_BEFORE_OPEN, text, now))
        else:
            text = f"the connection was lost: {reason}"
            error = SessionError(Failure.CLOSED, text, now)
            self._drop(connection, error, self._retain_time(connection))
        return self._take()

    def send_blocked(self, number: int, now: float) -> None:
        """Start the send hold timer: octets wait, and the kernel takes none (RFC 9687)."""
        connection = self._connections.get(number)
        if connection is not None and connection.send_deadline is None and connection.hold_time:
            limit = max(_SEND_HOLD_S, 2 * connection.hold_time)
            connection.send_deadline = now + limit

    def send_progressed(self, number: int, now: float, *, is_drained: bool) -> None:
        """Restart the send hold timer, or stop it if nothing waits: the kernel has taken octets."""
        connection = self._connections.get(number)
        if connection is not None:
            connection.send_deadline = None
        if not is_drained:
            self.send_blocked(number, now)

    def tick(self, now: float) -> list[Action]:
        """Handle the timers that have expired."""
        for connection in list(self._connections.values()):
            if connection.deadline is not None and connection.deadline <= now:
                self._expire(connection, now)
            elif connection.send_deadline is not None and connection.send_deadline <= now:
                text = "the neighbor does not read what is sent to it"
                self._refuse(
                    connection, BgpError(ErrorCode.SEND_HOLD_TIMER_EXPIRED, 0, b"", text), now
                )
            elif connection.keepalive_at is not None and connection.keepalive_at <= now:
                self._send_keepalive(connection, now)
        if self._retry_at is not None and self._retry_at <= now:
            self._connect(now)
        return self._take()

    # --- connections ------------------------------------------------------------------------------

    def _take(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def _add(self, state: SessionState, deadline: float, *, is_outgoing: bool) -> BgpConnection:
        connection = BgpConnection(self._next_number, state, deadline, is_outgoing=is_outgoing)
        self._connections[connection.number] = connection
        self._next_number += 1
        return connection

    def _connect(self, now: float) -> None:
        self._retry_at = None
        connection = self._add(SessionState.CONNECT, now + _CONNECT_S, is_outgoing=True)
        self._actions.append(Connect(connection.number))

    def _expire(self, connection: BgpConnection, now: float) -> None:
        """Handle the hold timer, or the time limit of an attempt to connect."""
        if connection.state is SessionState.CONNECT:
            self._actions.append(Close(connection.number))
            text = f"no answer to TCP segments for {_CONNECT_S:.0f} s"
            self._drop(connection, SessionError(Failure.TIMEOUT, text, now))
            return
        limit = connection.hold_time or _OPEN_S  # Before the OPEN of the peer, it is 0.
        text = f"no message of the neighbor for {limit:.0f} s"
        self._refuse(connection, BgpError(ErrorCode.HOLD_TIMER_EXPIRED, 0, b"", text), now)

    def _refuse(self, connection: BgpConnection, error: BgpError, now: float) -> None:
        """Close a connection with a NOTIFICATION, if there was time for an OPEN."""
        if connection.state > SessionState.CONNECT:
            body = Notification(error.code, error.subcode, error.data).pack()
            message = pack_message(MessageType.NOTIFICATION, body)
            self._actions.append(Send(connection.number, message))
        self._actions.append(Close(connection.number))
        code = (error.code, error.subcode)
        kind = _KINDS_OF_SENT.get(code, Failure.NOTIFICATION_SENT)
        self._drop(connection, SessionError(kind, f"closed the session: {error}", now))

    def _forget(self, connection: BgpConnection) -> None:
        del self._connections[connection.number]

    def _drop(
        self, connection: BgpConnection, error: SessionError, retain: float | None = None
    ) -> None:
        """Remove a connection, and decide what is next."""
        self._forget(connection)
        if connection.state is SessionState.ESTABLISHED:
            self.last_error = error
            self._is_retaining = retain is not None
            self._retained_until = error.time + (retain or 0)
            self._actions.append(Down(error, retain))
            if error.time - self._established_at >= _STABLE_S:
                self._retry_s = _RETRY_MIN_S
        elif not self._connections and self._is_running:
            # While there is another connection, this one was only the loser of a collision. To stop
            # without a session is no error.
            self.last_error = error
        if not self._connections and self._is_running and not self.parameters.passive:
            self._retry_at = error.time + self._retry_s * self._jitter()
            self._retry_s = min(2 * self._retry_s, _RETRY_MAX_S)

    def _retain_time(self, connection: BgpConnection) -> float | None:
        """Return how long the routes of a peer are kept that may be restarting (RFC 4724, 4.2)."""
        if connection.state is not SessionState.ESTABLISHED or not _preserves(connection.peer):
            return None
        restart = connection.peer and connection.peer.capabilities.graceful_restart
        return float(restart.restart_time) if restart else None

    # --- messages ---------------------------------------------------------------------------------

    def _send_open(self, connection: BgpConnection, now: float) -> None:
        restart = GracefulRestart(
            restarting=self.is_restarting,
            restart_time=self.parameters.restart_time,
            families={EVPN: True},  # The daemon keeps the entries while the speaker restarts.
        )
        capabilities = Capabilities(
            families=frozenset({EVPN}),
            four_octet_asn=self.parameters.asn,
            route_refresh=True,
            graceful_restart=restart,
        )
        own = Open(self.parameters.asn, self.parameters.hold_time, self.router_id, capabilities)
        connection.state = SessionState.OPEN_SENT
        connection.deadline = now + _OPEN_S
        self._actions.append(Send(connection.number, pack_message(MessageType.OPEN, own.pack())))

    def _send_keepalive(self, connection: BgpConnection, now: float) -> None:
        self._actions.append(Send(connection.number, KEEPALIVE))
        if connection.hold_time:
            interval = connection.hold_time / _KEEPALIVES_PER_HOLD_TIME
            connection.keepalive_at = now + interval * self._jitter()

    def _handle(
        self, connection: BgpConnection, kind: MessageType, body: bytes, now: float
    ) -> None:
        """Handle a message. Raises: BgpError to end the connection."""
        if kind is MessageType.NOTIFICATION:
            self._on_notification(connection, body, now)
        elif connection.state is SessionState.OPEN_SENT and kind is MessageType.OPEN:
            self._on_open(connection, body, now)
        elif connection.state is SessionState.OPEN_CONFIRM and kind is MessageType.KEEPALIVE:
            self._on_confirmed(connection, now)
        elif connection.state is SessionState.ESTABLISHED and kind is not MessageType.OPEN:
            if connection.hold_time:
                connection.deadline = now + connection.hold_time
            if kind is MessageType.UPDATE:
                self._on_update(connection, body)
            elif kind is MessageType.ROUTE_REFRESH:
                self._on_refresh(body)
        else:
            subcode = FsmError(connection.state - SessionState.OPEN_SENT + FsmError.IN_OPEN_SENT)
            raise BgpError(ErrorCode.FSM, subcode, bytes((kind,)), f"received {kind.name}")

    def _on_notification(self, connection: BgpConnection, body: bytes, now: float) -> None:
        self._actions.append(Close(connection.number))
        received = Notification.parse(body)
        code = (received.code, received.subcode)
        kind = _KINDS_OF_RECEIVED.get(code, Failure.NOTIFICATION_RECEIVED)
        text = f"the neighbor closed the session: {received.text}"
        if kind is Failure.WRONG_ASN:
            text += f"; it expects another AS than {self.parameters.asn}"
        self._drop(connection, SessionError(kind, text, now))

    def _on_update(self, connection: BgpConnection, body: bytes) -> None:
        peer = connection.peer
        update = parse_update(
            body,
            four_octet=peer is not None and peer.capabilities.four_octet_asn is not None,
            internal=peer is not None and peer.asn == self.parameters.asn,
        )
        self._actions.append(Updated(update))

    def _on_refresh(self, body: bytes) -> None:
        refresh = RouteRefresh.parse(body)
        # Other subtypes need the capability of RFC 7313, which is not advertised; RFC 2918 ignores
        # families that were not negotiated.
        if (refresh.afi, refresh.safi) == EVPN and refresh.subtype == 0:
            self._actions.append(RefreshRequested())

    # --- OPEN -------------------------------------------------------------------------------------

    def _on_open(self, connection: BgpConnection, body: bytes, now: float) -> None:
        peer = Open.parse(body)
        self._check(peer)
        connection.peer = peer
        connection.hold_time = min(self.parameters.hold_time, peer.hold_time)
        for other in list(self._connections.values()):
            if other is not connection and other.state >= SessionState.OPEN_CONFIRM:
                self._collide(connection, other, peer, now)
        if connection.number in self._connections:
            connection.state = SessionState.OPEN_CONFIRM
            connection.deadline = now + (connection.hold_time or _OPEN_S)
            self._send_keepalive(connection, now)

    def _check(self, peer: Open) -> None:
        """Raise BgpError if there can be no session with a peer that sends this OPEN."""
        own = self.parameters
        if own.remote_asn is not None and peer.asn != own.remote_asn:
            text = f"the neighbor is in AS {peer.asn}, but AS {own.remote_asn} is configured"
            raise BgpError(ErrorCode.OPEN, OpenError.BAD_PEER_AS, b"", text)
        if peer.asn == own.asn and peer.router_id == self.router_id:
            # RFC 6286, section 2.2.
            text = f"the neighbor has the same router ID as this host, {peer.router_id}"
            raise BgpError(ErrorCode.OPEN, OpenError.BAD_BGP_IDENTIFIER, b"", text)
        if EVPN not in peer.capabilities.families:
            text = "the neighbor has not activated the address family L2VPN EVPN for this host"
            data = Capabilities(families=frozenset({EVPN})).pack()
            raise BgpError(ErrorCode.OPEN, OpenError.UNSUPPORTED_CAPABILITY, data, text)

    def _collide(
        self, connection: BgpConnection, other: BgpConnection, peer: Open, now: float
    ) -> None:
        """Close one of two connections with the same peer (RFC 4271, section 6.8).

        `connection` has got its OPEN just now, and `other` before.
        """
        if other.state is SessionState.ESTABLISHED:
            restart = peer.capabilities.graceful_restart
            age = now - self._established_at
            if restart is not None and restart.restarting and age >= _COLLISION_S:
                # The peer has restarted without closing the old connection (RFC 4724, section 5).
                self._actions.append(Close(other.number))
                error = SessionError(Failure.CLOSED, "the neighbor has restarted", now)
                self._drop(other, error, self._retain_time(other))
                return
            loser = connection
        else:
            # RFC 6286, section 2.3: AS numbers decide between equal identifiers.
            ours = (self.router_id, self.parameters.asn)
            keeps_outgoing = ours > (peer.router_id, peer.asn)
            loser = other if other.is_outgoing is not keeps_outgoing else connection
        self._refuse(loser, BgpError(ErrorCode.CEASE, Cease.COLLISION_RESOLUTION), now)

    def _on_confirmed(self, connection: BgpConnection, now: float) -> None:
        peer = connection.peer
        if peer is None:  # The state OPEN_CONFIRM has one.
            raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_TYPE)
        for other in list(self._connections.values()):
            if other.state is SessionState.CONNECT:
                self._forget(other)
                self._actions.append(Close(other.number))
        if self._is_retaining and not (_preserves(peer) and now < self._retained_until):
            text = "the neighbor has restarted without preserving its forwarding state"
            self._actions.append(Down(SessionError(Failure.CLOSED, text, now), None))
        self._is_retaining = False
        self.is_restarting = False
        self._established_at = now
        self._retry_at = None
        connection.state = SessionState.ESTABLISHED
        connection.deadline = now + connection.hold_time if connection.hold_time else None
        self._actions.append(Established(connection.number, peer, connection.hold_time))


def _preserves(peer: Open | None) -> bool:
    """Return whether a peer says that it forwards EVPN traffic while it restarts (RFC 4724, 3)."""
    restart = peer.capabilities.graceful_restart if peer is not None else None
    return restart is not None and restart.families.get(EVPN, False)
