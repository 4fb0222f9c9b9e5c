"""The vocabulary of a BGP session: its states, its failures, and what its FSM asks for."""

from enum import IntEnum, StrEnum
from ipaddress import IPv4Address

from attrs import frozen

from vtep.wire.bgp.message import Deframer, Open
from vtep.wire.bgp.update import Update


class SessionState(IntEnum):
    """A state of the FSM (RFC 4271, section 8.2.2), in the order of progress."""

    IDLE = 0
    ACTIVE = 1
    CONNECT = 2
    OPEN_SENT = 3
    OPEN_CONFIRM = 4
    ESTABLISHED = 5

    @property
    def text(self) -> str:
        """The name in answers, such as open-sent."""
        return self.name.lower().replace("_", "-")


class Failure(StrEnum):
    """The kind of a failure, by which the doctor explains it."""

    CONNECT_REFUSED = "connect-refused"
    NO_ROUTE = "no-route"
    TIMEOUT = "timeout"
    """No answer at all. The kernel of a peer also drops segments whose MD5 signature is missing or
    wrong (RFC 2385, section 4.0), and a firewall those that it filters."""
    CLOSED_BEFORE_OPEN = "closed-before-open"
    """The peer accepted the connection and closed it, as it does for addresses that it has not
    configured as neighbours."""
    CLOSED = "closed"
    """A connection on which both have sent an OPEN ended without a NOTIFICATION."""
    NOTIFICATION_RECEIVED = "notification-received"
    NOTIFICATION_SENT = "notification-sent"
    WRONG_ASN = "wrong-asn"
    NO_EVPN_FAMILY = "no-evpn-family"
    HOLD_EXPIRED = "hold-expired"
    LOCAL_ADDRESS = "local-address"
    """The local address is not one of this host."""
    NO_MD5 = "no-md5"
    """The kernel refuses the password."""


@frozen
class SessionError:
    """A failure: its kind, a line that says what failed, and its time in seconds of the caller."""

    kind: Failure
    text: str
    time: float


@frozen(kw_only=True)
class SessionParameters:
    """The configuration of one side of a session.

    `remote_asn` is None to accept any AS. `hold_time` and `restart_time` are in seconds;
    `restart_time` is how long the peer may keep our routes after the speaker ended without a
    NOTIFICATION (RFC 4724, section 3).
    """

    asn: int
    remote_asn: int | None = None
    hold_time: int = 90
    restart_time: int = 30
    passive: bool = False


class BgpConnection:
    """One TCP connection: its state, its timers, and what the peer has sent on it."""

    def __init__(
        self, number: int, state: SessionState, deadline: float, *, is_outgoing: bool
    ) -> None:
        self.number = number
        self.state = state
        self.is_outgoing = is_outgoing
        self.deframer = Deframer()
        self.peer: Open | None = None
        self.hold_time = 0
        self.deadline: float | None = deadline
        """When the hold timer expires, or the attempt to connect is given up."""
        self.keepalive_at: float | None = None
        self.send_deadline: float | None = None
        """When the send hold timer expires (RFC 9687); None while nothing is blocked."""

    @property
    def next_time(self) -> float | None:
        """The earliest time at which a timer expires."""
        timers = (self.deadline, self.keepalive_at, self.send_deadline)
        return min((time for time in timers if time is not None), default=None)


# --- actions --------------------------------------------------------------------------------------


@frozen
class Connect:
    """Open a TCP connection, and report `connected` or `failed`."""

    connection: int


@frozen
class Send:
    """Send octets on a connection, behind those that wait."""

    connection: int
    octets: bytes


@frozen
class Close:
    """Close a connection after what waits to be sent; its events are no longer wanted."""

    connection: int


@frozen
class Established:
    """The session is established on a connection.

    `hold_time` is the negotiated one in seconds, and 0 for no keepalives.
    """

    connection: int
    peer: Open
    hold_time: int


@frozen
class Updated:
    """The peer has sent an UPDATE message, which may be the End-of-RIB marker."""

    update: Update


@frozen
class RefreshRequested:
    """The peer wants all routes again (RFC 2918)."""


@frozen
class Down:
    """The established session has ended.

    `retain` is how many seconds the routes of the peer may be kept as stale (RFC 4724, section
    4.2), or None to remove them at once. It is None a second time if the peer is back and has not
    preserved its forwarding state.
    """

    error: SessionError
    retain: float | None


Action = Connect | Send | Close | Established | Updated | RefreshRequested | Down

NO_ROUTER_ID = IPv4Address(0)
"""The BGP identifier before one is chosen."""
