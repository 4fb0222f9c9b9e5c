"""The FSM of BGP sessions: two of them back to back, and one against all kinds of octets."""

from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.bgp_pair import Network
from vtep.control.evpn_schema import EVPN_ERRORS
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
    SessionParameters,
    SessionState,
    Updated,
)
from vtep.wire.bgp import EVPN
from vtep.wire.bgp.capabilities import Capabilities, GracefulRestart
from vtep.wire.bgp.errors import Cease, ErrorCode, FsmError, OpenError, pack_shutdown
from vtep.wire.bgp.message import (
    KEEPALIVE,
    Deframer,
    MessageType,
    Notification,
    Open,
    RouteRefresh,
    pack_message,
)
from vtep.wire.bgp.update import END_OF_RIB

NOW = 1000.0
OURS = SessionParameters(asn=65000)
IDS = ("192.0.2.1", "192.0.2.2")


def capabilities(**changes: object) -> Capabilities:
    given: dict[str, object] = {"families": frozenset({EVPN}), "four_octet_asn": 65000} | changes
    return Capabilities(**given)  # type: ignore[arg-type]


def peer_open(asn: int = 65000, hold_time: int = 90, **changes: object) -> bytes:
    parsed = Open(asn, hold_time, IPv4Address(IDS[1]), capabilities(four_octet_asn=asn, **changes))
    return pack_message(MessageType.OPEN, parsed.pack())


def restart(*, restarting: bool = False, preserved: bool = True) -> GracefulRestart:
    return GracefulRestart(restarting, 60, {EVPN: preserved})


def started(parameters: SessionParameters = OURS) -> Session:
    session = Session(parameters, lambda: 1.0)
    session.router_id = IPv4Address(IDS[0])
    session.start(NOW)
    return session


def open_sent(parameters: SessionParameters = OURS) -> tuple[Session, int]:
    """Return a session with an outgoing connection (or an accepted one) that has sent its OPEN."""
    session = started(parameters)
    if parameters.passive:
        number, _ = session.accept(NOW)
        assert number is not None
        return session, number
    assert session.state is SessionState.CONNECT
    session.connected(0, NOW)
    return session, 0


def established(
    parameters: SessionParameters = OURS, octets: bytes | None = None
) -> tuple[Session, int]:
    session, number = open_sent(parameters)
    actions = session.received(number, (octets or peer_open()) + KEEPALIVE, NOW)
    assert any(isinstance(action, Established) for action in actions)
    return session, number


def notifications(actions: list[Action]) -> list[Notification]:
    """Return the NOTIFICATIONs among messages to send."""
    found = []
    for action in actions:
        if isinstance(action, Send):
            for kind, body in Deframer().feed(action.octets):
                if kind is MessageType.NOTIFICATION:
                    found.append(Notification.parse(body))
    return found


def refusal(actions: list[Action]) -> tuple[int, int]:
    """Return the code of the one NOTIFICATION, behind which the connection is closed."""
    (found,) = notifications(actions)
    assert sum(isinstance(action, Close) for action in actions) == 1
    return found.code, found.subcode


# --- two sessions back to back --------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["deliver"] * 6 + ["time", "cut", "refuse", "silent", "heal"]),
        st.integers(0, 7),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(
    steps=STEPS,
    seed=st.integers(0, 1 << 32),
    passive=st.sampled_from([(False, False), (True, False), (False, True)]),
    asns=st.sampled_from([(65000, 65000), (65000, 4200000000)]),
    holds=st.tuples(st.sampled_from([0, 3, 90]), st.sampled_from([3, 9, 90])),
)
def test_two_sessions_recover_from_whatever_the_network_does(
    steps: list[tuple[str, int]],
    seed: int,
    passive: tuple[bool, bool],
    asns: tuple[int, int],
    holds: tuple[int, int],
) -> None:
    network = Network(seed)
    both = [
        SessionParameters(
            asn=asns[i], remote_asn=asns[1 - i], hold_time=holds[i], passive=passive[i]
        )
        for i in (0, 1)
    ]
    nodes = network.pair(both[0], both[1], IDS)
    for node in nodes:
        node.act(node.session.start(network.now))
    for step, index in steps:
        match step:
            case "deliver":
                network.deliver(index)
            case "time":
                network.advance(*nodes)
            case "cut":
                network.cut(index)
            case "refuse":
                network.refuses = True
            case "silent":
                network.is_silent = True
            case "heal":
                network.refuses = network.is_silent = False
    network.refuses = network.is_silent = False
    if 0 in holds:
        # Without keepalives nothing tells a session that its peer has vanished.
        for _ in range(len(network.queues)):
            network.cut(0)
            network.settle()
    network.run(*nodes, seconds=600)
    a, b = nodes
    assert a.session.state is b.session.state is SessionState.ESTABLISHED, (
        a.session.last_error,
        b.session.last_error,
    )
    assert a.established is not None
    assert network.far[a, a.established] == (b, b.established)
    # Both ends keep the session from then on.
    downs = len(a.downs()) + len(b.downs())
    network.run(*nodes, seconds=300)
    assert len(a.downs()) + len(b.downs()) == downs
    assert {len(a.open), len(b.open)} == {1}


@pytest.mark.parametrize("ids", [IDS, IDS[::-1], (IDS[0], IDS[0])])
def test_simultaneous_connections_leave_the_one_of_the_higher_identifier(
    ids: tuple[str, str],
) -> None:
    network = Network()
    a, b = network.pair(
        SessionParameters(asn=65000), SessionParameters(asn=65001), ids
    )  # AS numbers decide between equal identifiers.
    for node in (a, b):
        node.act(node.session.start(network.now))
    for _ in range(2):
        network.deliver(len(network.choices()) - 1)  # The handshakes.
    assert {len(a.open), len(b.open)} == {2}
    for queue in network.queues.values():
        assert len(queue) == 1  # An OPEN.
    ends = list(network.queues)
    for end in ends:
        network.deliver(network.choices().index(end))
    network.settle()
    assert a.session.state is b.session.state is SessionState.ESTABLISHED
    winner, loser = (a, b) if ids[0] > ids[1] else (b, a)
    assert (winner.established, loser.established) == (0, 1)
    assert a.downs() == b.downs() == []
    assert a.session.last_error is b.session.last_error is None


def test_a_frozen_peer_is_down_after_the_hold_time() -> None:
    network = Network()
    quick, waits = (
        SessionParameters(asn=65000, hold_time=9),
        SessionParameters(asn=65000, passive=True),
    )
    a, b = network.pair(quick, waits, IDS)
    for node in (a, b):
        node.act(node.session.start(network.now))
    network.settle()
    network.run(a, b, seconds=60)
    assert a.established is not None
    network.settle()
    frozen = network.now
    network.is_silent = True
    while not a.downs():
        network.advance(a)
    assert 6 <= network.now - frozen <= 9
    assert a.downs()[0].error.kind is Failure.HOLD_EXPIRED
    assert a.downs()[0].error.text == (
        "closed the session: hold timer expired (4/0); no message of the neighbor for 9 s"
    )


def test_the_hold_time_counts_from_the_open_on() -> None:
    session, number = open_sent()
    session.received(number, peer_open(hold_time=3), NOW)
    assert session.state is SessionState.OPEN_CONFIRM
    session.tick(NOW + 3)
    assert session.last_error is not None
    assert session.last_error.text.endswith("no message of the neighbor for 3 s")


# --- OPEN -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "agreed"), [(0, 0), (3, 3), (90, 90), (180, 90)])
def test_the_smaller_hold_time_counts(theirs: int, agreed: int) -> None:
    session, number = open_sent()
    actions = session.received(number, peer_open(hold_time=theirs), NOW)
    assert Send(number, KEEPALIVE) in actions
    actions = session.received(number, KEEPALIVE, NOW)
    (event,) = actions
    assert isinstance(event, Established)
    assert event.hold_time == agreed
    assert session.next_time == (NOW + agreed / 3 if agreed else None)
    if agreed:
        assert session.tick(NOW + agreed / 3) == [Send(number, KEEPALIVE)]


@pytest.mark.parametrize(
    ("octets", "code", "kind", "text"),
    [
        (
            peer_open(65001),
            (ErrorCode.OPEN, OpenError.BAD_PEER_AS),
            Failure.WRONG_ASN,
            "the neighbor is in AS 65001, but AS 65000 is configured",
        ),
        (
            peer_open(families=frozenset({(1, 1)})),
            (ErrorCode.OPEN, OpenError.UNSUPPORTED_CAPABILITY),
            Failure.NO_EVPN_FAMILY,
            "the neighbor has not activated the address family L2VPN EVPN for this host",
        ),
        (
            peer_open(hold_time=2),
            (ErrorCode.OPEN, OpenError.UNACCEPTABLE_HOLD_TIME),
            Failure.NOTIFICATION_SENT,
            "",
        ),
        (
            pack_message(
                MessageType.OPEN, Open(65000, 90, IPv4Address(IDS[0]), capabilities()).pack()
            ),
            (ErrorCode.OPEN, OpenError.BAD_BGP_IDENTIFIER),
            Failure.NOTIFICATION_SENT,
            "the neighbor has the same router ID as this host, 192.0.2.1",
        ),
        (
            KEEPALIVE,
            (ErrorCode.FSM, FsmError.IN_OPEN_SENT),
            Failure.NOTIFICATION_SENT,
            "received KEEPALIVE",
        ),
    ],
)
def test_an_open_that_cannot_be_accepted_is_answered_with_the_reason(
    octets: bytes, code: tuple[int, int], kind: Failure, text: str
) -> None:
    session, number = open_sent(SessionParameters(asn=65000, remote_asn=65000))
    assert refusal(session.received(number, octets, NOW)) == code
    assert session.last_error is not None
    assert session.last_error.kind is kind
    assert text in session.last_error.text
    assert session.state is SessionState.ACTIVE
    assert session.next_time == NOW + 1


def test_any_as_is_accepted_if_none_is_configured() -> None:
    session, _ = established(octets=peer_open(4200000000))
    assert session.state is SessionState.ESTABLISHED


def test_the_family_that_is_missing_is_named_to_the_peer() -> None:
    session, number = open_sent()
    actions = session.received(number, peer_open(families=frozenset()), NOW)
    (notification,) = notifications(actions)
    assert Capabilities.parse(notification.data).families == {EVPN}


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ((2, 2), Failure.WRONG_ASN, "it expects another AS than 65000"),
        ((2, 7), Failure.NO_EVPN_FAMILY, "unsupported capability"),
        ((6, 5), Failure.NOTIFICATION_RECEIVED, "connection rejected"),
    ],
)
def test_a_notification_is_the_last_error(code: tuple[int, int], kind: Failure, text: str) -> None:
    session, number = open_sent()
    body = Notification(*code).pack()
    actions = session.received(number, pack_message(MessageType.NOTIFICATION, body), NOW)
    assert actions == [Close(number)]  # None is sent in return.
    assert session.last_error is not None
    assert session.last_error.kind is kind
    assert text in session.last_error.text


def test_to_stop_without_a_session_is_no_error() -> None:
    session, number = open_sent()
    actions = session.stop(NOW, Cease.OTHER_CONFIGURATION_CHANGE)
    assert notifications(actions)
    assert actions[-1] == Close(number)
    assert session.last_error is None


def test_a_shutdown_communication_is_sent_and_shown() -> None:
    session, number = established()
    actions = session.stop(NOW, Cease.ADMINISTRATIVE_SHUTDOWN, "pyvtep stops")
    (notification,) = notifications(actions)
    assert notification.data == pack_shutdown("pyvtep stops")
    assert session.state is SessionState.IDLE
    assert session.next_time is None
    other, number = established()
    octets = pack_message(MessageType.NOTIFICATION, notification.pack())
    (_, down) = other.received(number, octets, NOW)
    assert isinstance(down, Down)
    assert 'administrative shutdown "pyvtep stops"' in down.error.text
    assert down.retain is None


# --- established ----------------------------------------------------------------------------------


def test_updates_are_decoded_and_route_refresh_is_reported() -> None:
    session, number = established()
    refresh = pack_message(MessageType.ROUTE_REFRESH, RouteRefresh().pack())
    other = pack_message(MessageType.ROUTE_REFRESH, RouteRefresh(afi=1, safi=1).pack())
    actions = session.received(number, END_OF_RIB + refresh + other + KEEPALIVE, NOW + 1)
    update, requested = actions
    assert isinstance(update, Updated)
    assert update.update.is_end_of_rib
    assert requested == RefreshRequested()


def test_an_update_that_ends_the_session_is_answered() -> None:
    session, number = established()
    broken = pack_message(MessageType.UPDATE, b"\xff\xff\0\0")
    actions = session.received(number, END_OF_RIB + broken + END_OF_RIB, NOW)
    assert isinstance(actions[0], Updated)
    assert refusal(actions)[0] == ErrorCode.UPDATE
    assert isinstance(actions[-1], Down)
    assert session.received(number, END_OF_RIB, NOW) == []


@pytest.mark.parametrize(
    ("graceful", "retain"),
    [(None, None), (restart(preserved=False), None), (restart(), 60.0)],
)
def test_routes_are_retained_if_the_peer_preserves_its_forwarding_state(
    graceful: GracefulRestart | None, retain: float | None
) -> None:
    session, number = established(octets=peer_open(graceful_restart=graceful))
    assert session.preserves_forwarding is (retain is not None)
    (down,) = session.closed(number, "connection reset", NOW + 1)
    assert isinstance(down, Down)
    assert down.retain == retain
    assert down.error.kind is Failure.CLOSED


@pytest.mark.parametrize(
    ("preserved", "after", "kept"), [(True, 30, True), (False, 30, False), (True, 61, False)]
)
def test_retained_routes_go_if_the_peer_comes_back_without_its_state(
    preserved: bool, after: float, kept: bool
) -> None:
    session, number = established(octets=peer_open(graceful_restart=restart()))
    session.closed(number, "connection reset", NOW)
    number, _ = session.accept(NOW + after)  # type: ignore[assignment]
    again = peer_open(graceful_restart=restart(restarting=True, preserved=preserved))
    actions = session.received(number, again + KEEPALIVE, NOW + after)
    assert isinstance(actions[-1], Established)
    downs = [action for action in actions if isinstance(action, Down)]
    assert [down.retain for down in downs] == ([] if kept else [None])


def test_stop_removes_routes_that_are_retained() -> None:
    session, number = established(octets=peer_open(graceful_restart=restart()))
    session.closed(number, "connection reset", NOW)
    (down,) = session.stop(NOW, Cease.PEER_DECONFIGURED)
    assert isinstance(down, Down)
    assert down.retain is None


def test_a_peer_that_has_restarted_replaces_its_old_connection() -> None:
    session, old = established(octets=peer_open(graceful_restart=restart()))
    number, actions = session.accept(NOW + 10)
    assert number is not None
    assert Send(old, KEEPALIVE) in actions  # The RST of a peer without the connection ends it.
    again = peer_open(graceful_restart=restart(restarting=True))
    actions = session.received(number, again, NOW + 10)
    assert Close(old) in actions
    (down,) = (action for action in actions if isinstance(action, Down))
    assert down.retain == 60.0
    assert isinstance(session.received(number, KEEPALIVE, NOW + 10)[-1], Established)


def test_a_peer_that_restarts_connects_on_both_ways() -> None:
    """The Restart State bit is in all its OPENs, and does not make a restart of a collision."""
    again = peer_open(graceful_restart=restart(restarting=True))
    session, old = established(octets=again)
    number, _ = session.accept(NOW + 1)
    assert number is not None
    assert refusal(session.received(number, again, NOW + 1))[0] == ErrorCode.CEASE
    assert session.state is SessionState.ESTABLISHED
    assert session.received(old, END_OF_RIB, NOW + 1) != []


def test_an_established_session_survives_a_second_connection() -> None:
    session, old = established()
    number, _ = session.accept(NOW + 5)
    assert number is not None
    assert refusal(session.received(number, peer_open(), NOW + 5)) == (
        ErrorCode.CEASE,
        Cease.COLLISION_RESOLUTION,
    )
    assert session.state is SessionState.ESTABLISHED
    assert session.last_error is None
    assert session.received(old, END_OF_RIB, NOW + 5) != []


def test_a_new_connection_of_the_peer_replaces_one_that_is_not_established() -> None:
    session, old = open_sent(SessionParameters(asn=65000, passive=True))
    number, actions = session.accept(NOW)
    assert Close(old) in actions
    assert number != old
    assert session.received(old, peer_open(), NOW) == []


def test_restart_state_is_sent_until_the_session_is_established() -> None:
    session = started()
    session.is_restarting = True
    for restarting in (True, False):
        number, actions = session.accept(NOW)
        assert number is not None
        (sent,) = (action for action in actions if isinstance(action, Send))
        ((_, body),) = Deframer().feed(sent.octets)
        graceful = Open.parse(body).capabilities.graceful_restart
        assert graceful is not None
        assert (graceful.restarting, graceful.families) == (restarting, {EVPN: True})
        session.received(number, peer_open() + KEEPALIVE, NOW)
        session.closed(number, "reset", NOW)


# --- timers ---------------------------------------------------------------------------------------


def test_attempts_to_connect_back_off_and_start_anew_after_a_stable_session() -> None:
    session, now, pauses = started(), NOW, []
    for number in range(8):
        session.failed(number, Failure.CONNECT_REFUSED, "refused", now)
        due = session.next_time
        assert due is not None
        pauses.append(due - now)
        now = due
        assert session.tick(now) == [Connect(number + 1)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    session.connected(8, now)
    session.received(8, peer_open(hold_time=0) + KEEPALIVE, now)
    session.closed(8, "reset", now + 10)
    assert session.next_time == now + 10 + 30  # It was no stable one.
    assert session.tick(now + 40) == [Connect(9)]
    session.connected(9, now + 40)
    session.received(9, peer_open(hold_time=0) + KEEPALIVE, now + 40)
    session.closed(9, "reset", now + 80)
    assert session.next_time == now + 80 + 1


def test_a_silent_peer_is_a_timeout() -> None:
    session = started()
    assert session.next_time == NOW + 10
    assert session.tick(NOW + 10) == [Close(0)]
    assert session.last_error is not None
    assert session.last_error.kind is Failure.TIMEOUT
    session, _ = open_sent()
    assert session.next_time == NOW + 60
    assert refusal(session.tick(NOW + 60)) == (ErrorCode.HOLD_TIMER_EXPIRED, 0)
    assert session.last_error is not None
    assert session.last_error.kind is Failure.HOLD_EXPIRED


def test_a_peer_that_closes_at_once_does_not_know_us() -> None:
    session, number = open_sent()
    assert session.closed(number, "end of the TCP stream", NOW) == []
    assert session.last_error is not None
    assert session.last_error.kind is Failure.CLOSED_BEFORE_OPEN
    assert "may not be configured there" in session.last_error.text


def test_a_peer_that_does_not_read_is_down_after_the_send_hold_time() -> None:
    session, number = established()
    session.send_blocked(number, NOW)
    session.send_blocked(number, NOW + 100)  # The timer runs since the first one.
    for second in range(30, 480, 30):
        assert notifications(session.tick(NOW + second)) == []
        session.received(number, KEEPALIVE, NOW + second)
    session.send_progressed(number, NOW + 470, is_drained=False)
    assert notifications(session.tick(NOW + 480)) == []
    for second in range(480, 950, 30):
        session.received(number, KEEPALIVE, NOW + second)
        assert notifications(session.tick(NOW + second)) == []
    assert refusal(session.tick(NOW + 950)) == (8, 0)


def test_a_passive_session_never_connects() -> None:
    session = started(SessionParameters(asn=65000, passive=True))
    assert session.state is SessionState.ACTIVE
    assert session.next_time is None
    session, number = established(SessionParameters(asn=65000, passive=True))
    session.closed(number, "reset", NOW)
    assert session.state is SessionState.ACTIVE
    assert session.next_time is None


def test_a_session_that_was_not_started_accepts_nothing() -> None:
    session = Session(OURS, lambda: 1.0)
    assert session.accept(NOW) == (None, [])
    assert session.state is SessionState.IDLE
    assert session.state.text == "idle"
    assert SessionState.OPEN_CONFIRM.text == "open-confirm"


def test_events_of_connections_that_are_gone_do_nothing() -> None:
    session, number = established()
    session.closed(number, "reset", NOW)
    assert session.received(number, KEEPALIVE, NOW) == []
    assert session.connected(number, NOW) == []
    assert session.failed(number, Failure.NO_ROUTE, "", NOW) == []
    assert session.closed(number, "", NOW) == []
    session.send_blocked(number, NOW)
    session.send_progressed(number, NOW, is_drained=True)


# --- all kinds of octets --------------------------------------------------------------------------

MESSAGES = st.one_of(
    st.sampled_from(
        [
            KEEPALIVE,
            END_OF_RIB,
            peer_open(),
            peer_open(65001),
            pack_message(MessageType.ROUTE_REFRESH, RouteRefresh().pack()),
            pack_message(MessageType.NOTIFICATION, b"\x06\x02\x05hello"),
        ]
    ),
    st.builds(
        lambda kind, body: KEEPALIVE[:16] + (19 + len(body)).to_bytes(2) + bytes((kind,)) + body,
        st.integers(0, 6),
        st.binary(max_size=60),
    ),
    st.binary(max_size=60),
)


@settings(max_examples=500, deadline=None)
@given(
    state=st.sampled_from(["open-sent", "open-confirm", "established"]),
    messages=st.lists(MESSAGES, max_size=5),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=3),
    cut=st.integers(1, 200),
)
def test_octets_are_handled_or_answered_with_one_notification(
    state: str, messages: list[bytes], flips: list[tuple[int, int]], cut: int
) -> None:
    session, number = open_sent()
    if state != "open-sent":
        session.received(number, peer_open(), NOW)
    if state == "established":
        session.received(number, KEEPALIVE, NOW)
    assert session.state.text == state
    octets = bytearray(b"".join(messages))
    for at, change in flips:
        if octets:
            octets[at % len(octets)] ^= change
    actions: list[Action] = []
    for at in range(0, len(octets), cut):
        actions += session.received(number, bytes(octets[at : at + cut]), NOW)
    closes = [action for action in actions if isinstance(action, Close)]
    assert len(closes) <= 1
    assert len(notifications(actions)) <= len(closes)
    assert session.state is (SessionState.ACTIVE if closes else session.state)
    if closes:
        last = actions[-1]
        assert last == closes[0] or isinstance(last, Down)
        assert session.last_error is not None
        assert session.next_time == NOW + 1
    else:
        assert session.state > SessionState.CONNECT


def test_every_kind_of_failure_is_in_the_schema() -> None:
    assert {kind.value for kind in Failure} == set(EVPN_ERRORS)
