"""Decide for each remote whether superframes may be sent to it with tunnel GSO.

A superframe that is sent with tunnel GSO (see `.encoder`) is segmented by a NIC. Where there is no
NIC, as between the containers of one host, it arrives unsegmented. Then the remote has to
recognise it: pyvtep and the kernel driver do, other VTEPs may drop it. So tunnel GSO is used only
once it is confirmed for the remote. There are two kinds of confirmation:

- **An echo reply.** An echo request (see `vtep.wire.echo`) with a probe packet behind it is sent as
  a superframe. The reply says how many octets of it arrived. If it was segmented, so will every
  superframe be. If it was not, a second probe packet, as large as superframes get, has to arrive
  too, since the path may not carry that much. Only pyvtep replies.
- **An acknowledged superframe.** One superframe is sent with tunnel GSO, and if TCP acknowledges it
  (see `.ack_tracker`), so are others that are no larger. This works with every VTEP, and costs one
  superframe where it fails.

A remote may lose the capability at any time, for example by a new firewall rule or a route to
another NIC. So of each remote in use, one superframe a second is tracked. It is not more than one,
since every frame of the VNI has to be inspected while a superframe is tracked. A loss ends the use
of tunnel GSO at once, and the host backs off: each further attempt waits twice as long, since an
attempt costs a TCP retransmission.

All that affects these decisions is in this file. The rules are:

1. `State`, `GsoEvent` and `TRANSITIONS` are the state machine of one remote. A pair of a state and
   an event that is missing in the table cannot occur, for the reason given in `IMPOSSIBLE`.
2. `GsoProber` owns the state and the time of all remotes, and nothing else writes them. It is
   notified of each event, with the time in seconds of one monotonic clock.
3. A path reads its `RemoteState`: which superframes may be sent, and which one is to be tracked.
"""

from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Generic, Protocol, TypeVar

from attrs import define, field, frozen

from vtep.tunnel_gso.ack_tracker import DeliveryResult, OnResult
from vtep.tunnel_gso.encoder import LARGE_PROBE, SMALL_PROBE, SUPERFRAME_MAX, ProbePacket
from vtep.wire.echo import SIZE, EchoKind, EchoMessage

# --- the state machine of one remote ----------------------------------------------------------


class State(Enum):
    """The knowledge about tunnel GSO to one remote."""

    IDLE = auto()
    """No superframe has asked for it, or the remote was given up. The next superframe asks."""
    UNRESOLVED = auto()
    """The egress device is being looked up."""
    UNAVAILABLE = auto()
    """No egress device of this host can do it, or the kernel refused a superframe."""
    PROBING = auto()
    """Echo requests are being sent. Meanwhile one superframe may be sent and tracked."""
    AWAITING_ACK = auto()
    """The echo requests were not answered, or earlier confirmations are too old. One superframe at
    a time may be sent and tracked."""
    ENABLED_BY_REPLY = auto()
    """Superframes of every size are sent with tunnel GSO. One a second is tracked."""
    ENABLED_BY_ACK = auto()
    """Superframes up to the largest acknowledged one are. One a second is tracked, and larger ones
    are, one at a time."""
    BACKING_OFF = auto()
    """A superframe was lost. None is sent until the pause of the host is over."""


ENABLED = frozenset((State.ENABLED_BY_REPLY, State.ENABLED_BY_ACK))


class GsoEvent(Enum):
    """An event that concerns one remote."""

    REQUESTED = auto()
    """There is a superframe for it."""
    RESOLVED = auto()
    """Its egress device is known, and can do tunnel GSO."""
    UNRESOLVABLE = auto()
    """It has no such egress device."""
    SMALL_ARRIVED = auto()
    """An echo reply: the small probe packet arrived unsegmented."""
    CONFIRMED = auto()
    """An echo reply: a probe packet arrived segmented, or the large one unsegmented."""
    UNANSWERED = auto()
    """There was no reply to the last of several echo requests."""
    ACKED = auto()
    """A tracked superframe was acknowledged."""
    LOST = auto()
    """A tracked superframe was lost."""
    UNKNOWN = auto()
    """A tracked superframe has an unknown outcome."""
    SEND_FAILED = auto()
    """The kernel refused a superframe or a probe packet."""
    BACKOFF_OVER = auto()
    """The pause of its host is over."""
    TIMEOUT = auto()
    """The state has lasted as long as `TIMEOUTS` says, without a further confirmation."""
    FORGOTTEN = auto()
    """It is not in use any more, or routes, links or IPsec policies of this host have changed."""


IGNORED = None
"""In `TRANSITIONS`: the event is known, but too late, and changes nothing at all."""

TRANSITIONS: Mapping[State, Mapping[GsoEvent, State | None]] = {
    State.IDLE: {
        GsoEvent.REQUESTED: State.UNRESOLVED,
        # The remote was forgotten during the lookup, or during the send.
        GsoEvent.RESOLVED: IGNORED,
        GsoEvent.UNRESOLVABLE: IGNORED,
        GsoEvent.SEND_FAILED: IGNORED,
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.UNRESOLVED: {
        GsoEvent.RESOLVED: State.PROBING,
        GsoEvent.UNRESOLVABLE: State.UNAVAILABLE,
        # No echo request has been sent yet: the reply is forged.
        GsoEvent.SMALL_ARRIVED: IGNORED,
        GsoEvent.CONFIRMED: IGNORED,
        GsoEvent.SEND_FAILED: IGNORED,
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.UNAVAILABLE: {
        # These belong to what was sent before the kernel refused a superframe.
        GsoEvent.SMALL_ARRIVED: IGNORED,
        GsoEvent.CONFIRMED: IGNORED,
        GsoEvent.ACKED: IGNORED,
        GsoEvent.LOST: IGNORED,
        GsoEvent.UNKNOWN: IGNORED,
        GsoEvent.SEND_FAILED: IGNORED,
        GsoEvent.TIMEOUT: State.IDLE,
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.PROBING: {
        GsoEvent.SMALL_ARRIVED: State.PROBING,  # The large probe packet follows.
        GsoEvent.CONFIRMED: State.ENABLED_BY_REPLY,
        GsoEvent.UNANSWERED: State.AWAITING_ACK,
        GsoEvent.ACKED: State.ENABLED_BY_ACK,
        GsoEvent.LOST: State.BACKING_OFF,
        GsoEvent.UNKNOWN: State.PROBING,
        GsoEvent.SEND_FAILED: State.PROBING,  # The echo requests find out whether it was a mishap.
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.AWAITING_ACK: {
        GsoEvent.SMALL_ARRIVED: State.PROBING,
        GsoEvent.CONFIRMED: State.ENABLED_BY_REPLY,
        GsoEvent.ACKED: State.ENABLED_BY_ACK,
        GsoEvent.LOST: State.BACKING_OFF,
        GsoEvent.UNKNOWN: State.AWAITING_ACK,
        GsoEvent.SEND_FAILED: State.AWAITING_ACK,
        GsoEvent.TIMEOUT: State.IDLE,  # The remote, or the route, may be another one by now.
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.ENABLED_BY_REPLY: {
        GsoEvent.SMALL_ARRIVED: State.ENABLED_BY_REPLY,  # The path stopped segmenting: as above.
        GsoEvent.CONFIRMED: State.ENABLED_BY_REPLY,
        GsoEvent.UNANSWERED: State.IDLE,  # A remote that no longer replies may have been replaced.
        GsoEvent.ACKED: State.ENABLED_BY_REPLY,
        GsoEvent.LOST: State.BACKING_OFF,
        GsoEvent.UNKNOWN: State.ENABLED_BY_REPLY,
        GsoEvent.SEND_FAILED: State.UNAVAILABLE,
        GsoEvent.TIMEOUT: State.IDLE,
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.ENABLED_BY_ACK: {
        GsoEvent.SMALL_ARRIVED: State.ENABLED_BY_ACK,
        GsoEvent.CONFIRMED: State.ENABLED_BY_REPLY,
        GsoEvent.ACKED: State.ENABLED_BY_ACK,
        GsoEvent.LOST: State.BACKING_OFF,
        GsoEvent.UNKNOWN: State.ENABLED_BY_ACK,
        GsoEvent.SEND_FAILED: State.UNAVAILABLE,
        GsoEvent.TIMEOUT: State.AWAITING_ACK,
        GsoEvent.FORGOTTEN: State.IDLE,
    },
    State.BACKING_OFF: {
        # `GsoProber.on_reply` drops replies of a host that backs off. These come after a superframe
        # on another path to the host has ended that.
        GsoEvent.SMALL_ARRIVED: State.PROBING,
        GsoEvent.CONFIRMED: State.ENABLED_BY_REPLY,
        # Several VNIs may use one path, each with a superframe that was sent before the loss.
        GsoEvent.ACKED: State.ENABLED_BY_ACK,
        GsoEvent.LOST: State.BACKING_OFF,
        GsoEvent.UNKNOWN: State.BACKING_OFF,
        GsoEvent.SEND_FAILED: State.BACKING_OFF,
        GsoEvent.BACKOFF_OVER: State.AWAITING_ACK,
        GsoEvent.TIMEOUT: State.IDLE,
        GsoEvent.FORGOTTEN: State.IDLE,
    },
}
"""For each state, the state that follows each event."""

_NO_REQUEST = "echo replies carry the token of an echo request, and IDLE has none"
_NOT_SENT = "no superframe has been sent yet"
_NO_LOOKUP = "the egress device is looked up in UNRESOLVED"
IMPOSSIBLE: Mapping[GsoEvent, str] = {
    GsoEvent.REQUESTED: "superframes ask for tunnel GSO in IDLE",
    GsoEvent.RESOLVED: _NO_LOOKUP,
    GsoEvent.UNRESOLVABLE: _NO_LOOKUP,
    GsoEvent.SMALL_ARRIVED: _NO_REQUEST,
    GsoEvent.CONFIRMED: _NO_REQUEST,
    GsoEvent.UNANSWERED: "echo requests are sent, and counted, in PROBING and ENABLED_BY_REPLY",
    GsoEvent.ACKED: _NOT_SENT,
    GsoEvent.LOST: _NOT_SENT,
    GsoEvent.UNKNOWN: _NOT_SENT,
    GsoEvent.BACKOFF_OVER: "only BACKING_OFF waits for the end of a pause",
    GsoEvent.TIMEOUT: "the state has no timeout",
}
"""For each event that is missing in some states, why it cannot occur there."""

_REPLY_LIFETIME_S = 20.0
_ACK_LIFETIME_S = 5.0
_PAUSE_S = 60.0

TIMEOUTS: Mapping[State, float] = {
    State.UNAVAILABLE: _PAUSE_S,
    State.AWAITING_ACK: _PAUSE_S,
    State.BACKING_OFF: _PAUSE_S,
    State.ENABLED_BY_REPLY: _REPLY_LIFETIME_S,
    State.ENABLED_BY_ACK: _ACK_LIFETIME_S,
}
"""Seconds from the event that `RemoteState.since` stands for to TIMEOUT."""


class ImpossibleEventError(RuntimeError):
    """An event occurred in a state in which it cannot: a mistake in this package."""


def next_state(state: State, event: GsoEvent) -> State | None:
    """Return the state that follows an event, or IGNORED.

    Raises: ImpossibleEventError if the pair is not in `TRANSITIONS`.
    """
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise ImpossibleEventError(f"{event} in {state}: {IMPOSSIBLE[event]}") from None


# --- the state of one remote, as its path reads it --------------------------------------------

NEVER = 1 << 32
"""More octets than a superframe can have: a `RemoteState.track_above` for which none is tracked."""


def _discard(_result: DeliveryResult, _length: int, _now: float) -> None:
    """Ignore a result: nothing is tracked in IDLE."""


@define(eq=False)
class RemoteState:
    """The state of one remote, in plain attributes, since the data path reads two of them.

    The path of the remote makes and reads it. Only `GsoProber` writes it, but for `take_result`.
    """

    state: State = State.IDLE
    max_len: int = 0
    """Maximum octets of a superframe with tunnel GSO; 0 unless ENABLED."""
    track_above: int = NEVER
    """The next superframe with more octets than this is to be tracked. It may be sent with tunnel
    GSO even if it is larger than `max_len`."""
    on_result: OnResult = _discard
    """Receives the results of superframes that are tracked."""
    since: float = 0.0
    """The time of the last confirmation of the state: a reply, an acknowledgement, a loss, a
    failure, or the last echo request."""

    # The echo requests.
    token: bytes = b""
    """Identifies echo replies, and the results of superframes; empty in IDLE."""
    reply_port: int = 0
    probe_packet: ProbePacket = SMALL_PROBE
    requests: int = 0
    """Echo requests since the last echo reply."""
    requested_at: float = 0.0

    sent_at_request: int = 0
    """The value of `ProbedPath.sent` at that time; a greater one means that the path is in use."""

    @property
    def enabled(self) -> bool:
        """True if superframes are sent with tunnel GSO."""
        return self.state in ENABLED

    def take_result(self) -> OnResult:
        """Return the callback for a superframe that is being tracked from now on.

        Side effect: no further superframe is tracked until the prober asks for it.
        """
        self.track_above = NEVER
        return self.on_result


class ProbedPath(Protocol):
    """The path to a remote, as far as `GsoProber` uses it."""

    @property
    def gso(self) -> RemoteState:
        """The state of the remote."""

    @property
    def host(self) -> str:
        """The address of the remote."""

    @property
    def sent(self) -> int:
        """The number of superframes that were sent with tunnel GSO."""

    def use_egress(self, index: int) -> None:
        """Send through the egress device of this index from now on."""

    def send_probe(self, request: bytes, packet: ProbePacket, now: float) -> None:
        """Send an echo request with a probe packet behind it. It may get lost unnoticed."""

    def on_max_len_changed(self) -> None:
        """Take note that `gso.max_len` has changed."""

    def warn_of_losses(self) -> None:
        """Log that tunnel GSO is suspended because superframes are lost."""


# --- all remotes ------------------------------------------------------------------------------

_RENEW_AFTER_S = 5.0
"""Seconds after which the reply of a remote in use is renewed, by a further echo request."""

_REQUEST_INTERVAL_S = 1.0
_REQUESTS_MAX = 3
"""Echo requests without a reply after which no more are sent."""

_BACKOFF_MIN_S = 1.0
"""The first pause is short, since most losses are accidents, such as a full queue."""
_BACKOFF_MAX_S = 3600.0

_BACKOFFS_MAX = 1024
"""Hosts whose backing off is remembered. The oldest ones are forgotten first."""

_SMALL_LEN = SIZE + len(SMALL_PROBE.frame)
_LARGE_LEN = SIZE + len(LARGE_PROBE.frame)
"""Octets that arrive in one datagram if nothing segments an echo request and its probe packet."""

_EVENTS = {
    DeliveryResult.ACKED: GsoEvent.ACKED,
    DeliveryResult.LOST: GsoEvent.LOST,
    DeliveryResult.UNKNOWN: GsoEvent.UNKNOWN,
}

_P = TypeVar("_P", bound=ProbedPath)


@frozen
class _Backoff:
    """The pause of a host after superframes were lost on the way to it."""

    lost_len: int
    """Octets of the last superframe that was lost."""
    pause: float
    """Seconds of the current pause."""
    until: float


@define(eq=False)
class GsoProber(Generic[_P]):
    """Owns the tunnel-GSO state of all remotes: sends echo requests, and asks for tracking.

    `make_token` returns eight unpredictable octets, so that no other host can forge a reply.
    `on_unresolved` is called when the egress device of a remote has to be looked up: `unresolved`
    returns the paths, and `on_resolved` takes the results.

    Backing off is a property of the host rather than of one path: several paths, with other ports
    or source addresses, lead to the same receiver. It outlasts IDLE as well, so that a remote which
    is forgotten and asked for again does not start from the first pause.
    """

    _make_token: Callable[[], bytes]
    _on_unresolved: Callable[[], None]
    _paths: dict[bytes, _P] = field(factory=dict, init=False)
    """By token, the paths that are not IDLE."""
    _backoffs: dict[str, _Backoff] = field(factory=dict, init=False)
    """By host. There is none for hosts that lost nothing since their last acknowledgement."""

    # --- events -----------------------------------------------------------------------------

    def request(self, path: _P, reply_port: int) -> None:
        """Start probing for a path that is IDLE. Echo replies go to the UDP port `reply_port`."""
        self._dispatch(path, GsoEvent.REQUESTED)
        remote, token = path.gso, self._make_token()
        remote.token, remote.reply_port = token, reply_port
        remote.on_result = partial(self._on_result, path, token)
        remote.probe_packet, remote.requests = SMALL_PROBE, 0
        self._paths[token] = path
        self._on_unresolved()

    def unresolved(self) -> list[_P]:
        """Return the paths whose egress device is to be looked up."""
        return [path for path in self._paths.values() if path.gso.state is State.UNRESOLVED]

    def on_resolved(self, path: _P, egress: int | None, now: float) -> None:
        """Take the index of the egress device of a path; None if none can do tunnel GSO."""
        if egress is None:
            if self._dispatch(path, GsoEvent.UNRESOLVABLE):
                path.gso.since = now
        elif self._dispatch(path, GsoEvent.RESOLVED):
            path.use_egress(egress)
            self._send_request(path, now)
            self._ask_for_tracking(path, now)

    def on_reply(self, reply: EchoMessage, host: str, now: float) -> None:
        """Take an echo reply from a host, perhaps to one of our echo requests."""
        path = self._paths.get(reply.token)
        if path is None or path.host != host:
            return
        if host in self._backoffs:
            # An echo request can pass where superframes are lost, for example behind a firewall
            # that matches on the inner packet. Only an acknowledgement proves delivery.
            return
        remote, segmented = path.gso, reply.octets < _SMALL_LEN
        if segmented or reply.octets >= _LARGE_LEN:
            if self._dispatch(path, GsoEvent.CONFIRMED):
                if segmented:
                    remote.probe_packet = SMALL_PROBE
                remote.since, remote.requests = now, 0
                remote.track_above = NEVER
                self._set_max_len(path, SUPERFRAME_MAX)
        elif remote.probe_packet is SMALL_PROBE and self._dispatch(path, GsoEvent.SMALL_ARRIVED):
            remote.probe_packet, remote.requests = LARGE_PROBE, 0
            self._send_request(path, now)

    def _on_result(
        self, path: _P, token: bytes, result: DeliveryResult, length: int, now: float
    ) -> None:
        """Take the result of a tracked superframe of `length` octets."""
        remote = path.gso
        # Another token means that the path has been forgotten since, and may be IDLE.
        if remote.token != token or not self._dispatch(path, _EVENTS[result]):
            return
        if result is DeliveryResult.LOST:
            remote.since, remote.track_above = now, NEVER
            self._back_off(path, length, now)
            return
        if result is DeliveryResult.ACKED:
            self._end_backoff(path, length)
            if remote.state is State.ENABLED_BY_ACK:
                remote.since, remote.track_above = now, NEVER
                self._set_max_len(path, max(length, remote.max_len))
        if remote.state is not State.ENABLED_BY_REPLY:
            # The next one may be larger, or its outcome known.
            self._ask_for_tracking(path, now)

    def on_send_failed(self, path: _P, now: float) -> None:
        """Take note that the kernel refused a superframe, for another reason than a full queue."""
        remote = path.gso
        if self._dispatch(path, GsoEvent.SEND_FAILED):
            remote.track_above = NEVER
            if remote.state is State.UNAVAILABLE:
                remote.since = now

    def forget(self, path: _P) -> None:
        """Stop using tunnel GSO on a path. The next superframe starts probing again."""
        self._dispatch(path, GsoEvent.FORGOTTEN)

    def forget_all(self) -> None:
        """Stop using tunnel GSO on all paths, since routes, links or IPsec policies changed."""
        for path in tuple(self._paths.values()):
            self.forget(path)

    # --- time -------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Send the echo requests that are due, and handle timeouts. Call it about once a second."""
        for path in tuple(self._paths.values()):
            remote = path.gso
            if remote.state is State.PROBING:
                self._probe(path, now)
            timeout = TIMEOUTS.get(remote.state)
            if timeout is None:
                continue
            if now >= remote.since + timeout:
                self._time_out(path, now)
            elif not remote.enabled:
                if remote.state is not State.UNAVAILABLE:
                    self._ask_for_tracking(path, now)
            else:
                # Also while nothing is sent: what TCP sends after a timeout is the first of it, and
                # untracked it would take another timeout, twice as long, to notice its loss.
                self._ask_for_tracking(path, now, any_size=True)
                if remote.state is State.ENABLED_BY_REPLY and now >= remote.since + _RENEW_AFTER_S:
                    self._renew(path, now)

    def _probe(self, path: _P, now: float) -> None:
        """Send the next echo request in PROBING, or give up on echo replies."""
        remote = path.gso
        if remote.requests >= _REQUESTS_MAX:
            self._dispatch(path, GsoEvent.UNANSWERED)
            remote.since = remote.requested_at
        elif now >= remote.requested_at + _REQUEST_INTERVAL_S:
            self._send_request(path, now)

    def _renew(self, path: _P, now: float) -> None:
        """Send an echo request in ENABLED_BY_REPLY if the path is in use.

        Without it all superframes could be lost for as long as the last reply counts.
        """
        remote = path.gso
        if now < remote.requested_at + _REQUEST_INTERVAL_S:
            return
        if remote.requests >= _REQUESTS_MAX:
            self._dispatch(path, GsoEvent.UNANSWERED)
        elif remote.requests or path.sent != remote.sent_at_request:
            self._send_request(path, now)

    def _time_out(self, path: _P, now: float) -> None:
        remote = path.gso
        self._dispatch(path, GsoEvent.TIMEOUT)
        remote.track_above = NEVER
        if remote.state is State.AWAITING_ACK:
            remote.since = now
            self._ask_for_tracking(path, now)

    # --- actions ----------------------------------------------------------------------------

    def _dispatch(self, path: _P, event: GsoEvent) -> bool:
        """Move a path to the state that follows an event. Returns: False if it is ignored."""
        remote = path.gso
        state = next_state(remote.state, event)
        if state is IGNORED:
            return False
        remote.state = state
        if state not in ENABLED:
            self._set_max_len(path, 0)
        if state is State.IDLE:
            self._paths.pop(remote.token, None)
            remote.token, remote.track_above = b"", NEVER
        return True

    @staticmethod
    def _set_max_len(path: _P, max_len: int) -> None:
        if path.gso.max_len != max_len:
            path.gso.max_len = max_len
            path.on_max_len_changed()

    def _send_request(self, path: _P, now: float) -> None:
        remote = path.gso
        remote.requests += 1
        remote.requested_at, remote.sent_at_request = now, path.sent
        request = EchoMessage(
            EchoKind.REQUEST, None, remote.reply_port, remote.token, remote.requests, 0
        )
        path.send_probe(request.pack(), remote.probe_packet, now)

    def _ask_for_tracking(self, path: _P, now: float, *, any_size: bool = False) -> None:
        """Request to track the next superframe that is larger than those before, or of `any_size`.

        Nothing is tracked, and so nothing is tried, while the host backs off.
        """
        remote, backoff = path.gso, self._backoffs.get(path.host)
        if backoff is not None and now < backoff.until:
            return
        if remote.state is State.BACKING_OFF:
            self._dispatch(path, GsoEvent.BACKOFF_OVER)
        remote.track_above = 0 if any_size else remote.max_len

    def _back_off(self, path: _P, lost_len: int, now: float) -> None:
        before = self._backoffs.get(path.host)
        pause = _BACKOFF_MIN_S if before is None else min(2 * before.pause, _BACKOFF_MAX_S)
        if before is None and len(self._backoffs) >= _BACKOFFS_MAX:
            del self._backoffs[next(iter(self._backoffs))]
        self._backoffs[path.host] = _Backoff(lost_len, pause, now + pause)
        if pause == 2 * _BACKOFF_MIN_S:
            # Once for a host, and not for the first loss, which may be an accident.
            path.warn_of_losses()

    def _end_backoff(self, path: _P, acked_len: int) -> None:
        """End the backing off of a host whose receiver acknowledged a superframe.

        A smaller superframe than the one that was lost proves nothing about that one.
        """
        backoff = self._backoffs.get(path.host)
        if backoff is not None and acked_len >= backoff.lost_len:
            del self._backoffs[path.host]
