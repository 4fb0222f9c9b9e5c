"""Tunnel-GSO capability probing: the transition table, and when remotes are probed and tracked."""

from collections.abc import Callable, Sequence
from itertools import count, pairwise, product

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tests.unit.twins import BASIC
from vtep.tunnel_gso import state as state_module
from vtep.tunnel_gso.ack_tracker import DeliveryResult, OnResult
from vtep.tunnel_gso.encoder import LARGE_PROBE, SMALL_PROBE, SUPERFRAME_MAX, ProbePacket
from vtep.tunnel_gso.state import (
    ENABLED,
    IMPOSSIBLE,
    NEVER,
    TIMEOUTS,
    TRANSITIONS,
    GsoEvent,
    GsoProber,
    ImpossibleEventError,
    RemoteState,
    State,
    next_state,
)
from vtep.wire.echo import SIZE, EchoKind, EchoMessage, EchoStatus

EGRESS = 3
SEGMENTED = SIZE + SMALL_PROBE.plan.header_len + SMALL_PROBE.plan.size
"""Octets that arrive of a probe packet which was segmented."""
SMALL = SIZE + len(SMALL_PROBE.frame)
LARGE = SIZE + len(LARGE_PROBE.frame)


@define(eq=False)
class FakePath:
    """A path that records what it is asked to do."""

    host: str = "192.0.2.2"
    gso: RemoteState = field(factory=RemoteState)
    sent: int = 0
    egress: int = 0
    warnings: int = 0
    max_lens: list[int] = field(factory=list)
    requests: list[tuple[float, EchoMessage]] = field(factory=list)
    probe_packet: ProbePacket | None = None

    def use_egress(self, index: int) -> None:
        self.egress = index

    def send_probe(self, request: bytes, packet: ProbePacket, now: float) -> None:
        parsed = EchoMessage.parse(request)
        assert parsed is not None
        assert parsed.kind is EchoKind.REQUEST
        self.requests.append((now, parsed))
        self.probe_packet = packet

    def on_max_len_changed(self) -> None:
        self.max_lens.append(self.gso.max_len)

    def warn_of_losses(self) -> None:
        self.warnings += 1

    def state(self) -> State:
        return self.gso.state

    @property
    def tracks(self) -> bool:
        """True if a superframe is to be tracked."""
        return self.gso.track_above != NEVER

    @property
    def times(self) -> list[float]:
        """The times of all echo requests."""
        return [at for at, _ in self.requests]

    def reply(self, arrived: int = SEGMENTED) -> EchoMessage:
        """Return the reply to the last echo request, of which so many octets arrived."""
        _, request = self.requests[-1]
        parsed = EchoMessage.parse(request.reply(arrived, EchoStatus.FINE))
        assert parsed is not None
        return parsed

    def send_tracked(self, length: int) -> OnResult:
        """Send a superframe that is to be tracked, as the data path does."""
        assert length > self.gso.track_above
        self.sent += 1
        return self.gso.take_result()

    def track(self, result: DeliveryResult, length: int, now: float) -> None:
        """Send a superframe that is tracked with this result."""
        self.send_tracked(length)(result, length, now)


class Bench:
    """A prober, with shortcuts for what its callers do."""

    def __init__(self) -> None:
        numbers = count(1)
        self.lookups = 0
        self.prober: GsoProber[FakePath] = GsoProber(
            lambda: next(numbers).to_bytes(8, "big"), self._on_unresolved
        )

    def _on_unresolved(self) -> None:
        self.lookups += 1

    def probe(self, path: FakePath, now: float = 0.0, egress: int | None = EGRESS) -> None:
        self.prober.request(path, 4789)
        self.prober.on_resolved(path, egress, now)

    def reply(self, path: FakePath, now: float, arrived: int = SEGMENTED) -> None:
        self.prober.on_reply(path.reply(arrived), path.host, now)

    def enable(self, path: FakePath, now: float = 0.0) -> None:
        self.probe(path, now)
        self.reply(path, now)
        assert path.state() is State.ENABLED_BY_REPLY

    def ticks(self, first: int, last: int, before: Callable[[int], None] = lambda _: None) -> None:
        for now in range(first, last + 1):
            before(now)
            self.prober.tick(float(now))


# --- the table --------------------------------------------------------------------------------


def test_every_pair_is_in_the_table_or_impossible_for_a_reason() -> None:
    for state, event in product(State, GsoEvent):
        if event in TRANSITIONS[state]:
            assert next_state(state, event) is TRANSITIONS[state][event]
        else:
            with pytest.raises(ImpossibleEventError, match=IMPOSSIBLE[event]):
                next_state(state, event)


def test_reasons_are_given_for_missing_pairs_only() -> None:
    missing = {
        event for state, event in product(State, GsoEvent) if event not in TRANSITIONS[state]
    }
    assert set(IMPOSSIBLE) == missing


def test_only_confirmations_enable() -> None:
    for state, row in TRANSITIONS.items():
        for event, following in row.items():
            if following in ENABLED and following is not state:
                assert event in (GsoEvent.CONFIRMED, GsoEvent.ACKED), (state, event)


def test_losses_failures_and_forgetting_disable() -> None:
    for state, row in TRANSITIONS.items():
        assert row[GsoEvent.FORGOTTEN] is State.IDLE
        if state in ENABLED:
            assert row[GsoEvent.LOST] is State.BACKING_OFF
            assert row[GsoEvent.SEND_FAILED] is State.UNAVAILABLE
            assert row[GsoEvent.TIMEOUT] not in ENABLED


def test_exactly_the_states_with_a_timeout_have_a_duration() -> None:
    assert set(TIMEOUTS) == {state for state, row in TRANSITIONS.items() if GsoEvent.TIMEOUT in row}


# --- echo replies -----------------------------------------------------------------------------


def test_a_request_is_resolved_probed_and_confirmed() -> None:
    bench, path = Bench(), FakePath()
    bench.prober.request(path, 4790)
    assert (path.state(), bench.lookups) == (State.UNRESOLVED, 1)
    assert bench.prober.unresolved() == [path]
    bench.prober.tick(5.0)
    assert not path.requests
    bench.prober.on_resolved(path, EGRESS, 6.0)
    assert bench.prober.unresolved() == []
    assert (path.state(), path.egress) == (State.PROBING, EGRESS)
    ((at, request),) = path.requests
    assert (at, request.port, request.vni, request.octets) == (6.0, 4790, None, 0)
    bench.reply(path, 6.1)
    assert path.state() is State.ENABLED_BY_REPLY


def test_foreign_and_forged_replies_are_ignored() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    bench.prober.on_reply(path.reply(), "192.0.2.3", 0.0)
    bench.prober.on_reply(EchoMessage(EchoKind.REPLY, None, 4789, bytes(8), 1, 0), path.host, 0.0)
    assert path.state() is State.PROBING
    unresolved = FakePath()
    bench.prober.request(unresolved, 4789)
    for octets in (0, SMALL):
        forged = EchoMessage(EchoKind.REPLY, None, 4789, (2).to_bytes(8), 1, octets)
        bench.prober.on_reply(forged, unresolved.host, 0.0)
    assert unresolved.state() is State.UNRESOLVED


def test_a_remote_that_does_not_reply_is_probed_again_after_a_pause() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    bench.ticks(1, 61)
    assert path.times == [0.0, 1.0, 2.0]
    assert path.state() is State.AWAITING_ACK
    bench.ticks(62, 63)
    assert path.state() is State.IDLE
    bench.reply(path, 63.5)
    assert path.state() is State.IDLE


def test_a_late_reply_counts() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    bench.ticks(1, 40)
    bench.reply(path, 40.0)
    assert path.state() is State.ENABLED_BY_REPLY


def test_a_path_in_use_stays_enabled_while_there_are_replies() -> None:
    bench, path = Bench(), FakePath()
    bench.enable(path)

    def use(now: int) -> None:
        path.sent += 1
        if path.times[-1] == now - 1:
            bench.reply(path, now - 0.5)

    bench.ticks(1, 300, use)
    assert path.state() is State.ENABLED_BY_REPLY
    assert 40 <= len(path.requests) <= 61, "one about every five seconds"


def test_an_unused_path_is_given_up_without_an_echo_request() -> None:
    bench, path = Bench(), FakePath()
    bench.enable(path)
    bench.ticks(1, 19)
    assert path.state() is State.ENABLED_BY_REPLY
    bench.ticks(20, 20)
    assert (path.state(), len(path.requests)) == (State.IDLE, 1)


def test_a_remote_that_stops_replying_is_given_up() -> None:
    bench, path = Bench(), FakePath()
    bench.enable(path)

    def use(_: int) -> None:
        path.sent += path.gso.enabled

    bench.ticks(1, 4, use)
    assert path.gso.enabled
    bench.ticks(5, 8, use)
    assert path.state() is State.IDLE, "after three requests, not when the last reply is too old"


def test_a_refused_superframe_causes_a_pause() -> None:
    bench, path = Bench(), FakePath()
    bench.enable(path)
    bench.prober.on_send_failed(path, 0.5)
    assert path.state() is State.UNAVAILABLE
    bench.reply(path, 0.6)
    bench.ticks(1, 60)
    assert (path.state(), len(path.requests)) == (State.UNAVAILABLE, 1)
    bench.ticks(61, 61)
    assert path.state() is State.IDLE


def test_a_refused_probe_does_not_end_probing() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    assert path.tracks
    bench.prober.on_send_failed(path, 0.0)
    assert (path.state(), path.tracks) == (State.PROBING, False)
    bench.ticks(1, 3)
    assert (path.state(), path.tracks, len(path.requests)) == (State.AWAITING_ACK, True, 3)


def test_without_an_egress_device_nothing_is_sent() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path, egress=None)
    assert bench.prober.unresolved() == []
    bench.ticks(1, 59)
    assert (path.state(), path.requests) == (State.UNAVAILABLE, [])
    bench.ticks(60, 60)
    assert path.state() is State.IDLE


def test_everything_is_forgotten_when_the_network_changes() -> None:
    bench, path, other = Bench(), FakePath(), FakePath("192.0.2.3")
    bench.enable(path)
    bench.probe(other)
    bench.prober.forget_all()
    assert (path.state(), other.state()) == (State.IDLE, State.IDLE)
    bench.reply(other, 1.0)
    bench.prober.on_resolved(other, EGRESS, 1.0)
    assert (other.state(), len(other.requests)) == (State.IDLE, 1)


def test_an_unsegmented_small_probe_is_followed_by_a_large_one() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    assert path.probe_packet is SMALL_PROBE
    for _ in range(3):  # As if the network had duplicated it.
        bench.reply(path, 0.1, SMALL)
    assert path.probe_packet is LARGE_PROBE
    assert (path.state(), len(path.requests)) == (State.PROBING, 2)
    bench.reply(path, 0.2, LARGE)
    assert path.state() is State.ENABLED_BY_REPLY


def test_a_path_that_loses_large_probes_is_not_enabled() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    bench.reply(path, 0.1, SMALL)
    bench.ticks(1, 60)
    assert path.state() is State.AWAITING_ACK
    assert len(path.requests) == 4


def test_a_path_that_begins_to_segment_gets_small_probes_again() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    bench.reply(path, 0.1, SMALL)
    bench.reply(path, 0.2, LARGE)
    path.sent = 1
    bench.ticks(1, 6)
    assert path.probe_packet is LARGE_PROBE
    bench.reply(path, 6.5, SIZE + LARGE_PROBE.plan.header_len + LARGE_PROBE.plan.size)
    path.sent = 2
    bench.ticks(7, 13)
    assert path.probe_packet is SMALL_PROBE
    assert path.state() is State.ENABLED_BY_REPLY


# --- acknowledged superframes -----------------------------------------------------------------


def test_an_acknowledged_superframe_enables_its_length() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    path.track(DeliveryResult.ACKED, 3000, 0.1)
    assert (path.state(), path.gso.max_len, path.egress) == (State.ENABLED_BY_ACK, 3000, EGRESS)
    assert path.gso.track_above == 3000
    path.track(DeliveryResult.ACKED, 60_000, 0.2)
    assert path.gso.max_len == path.gso.track_above == 60_000


def test_one_superframe_a_second_is_tracked_and_keeps_the_path_enabled() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    path.track(DeliveryResult.ACKED, 60_000, 0.5)

    def use(now: int) -> None:
        path.sent += 100
        if path.gso.track_above == 0:
            path.track(DeliveryResult.ACKED, 1000, now - 0.5)
        assert path.gso.enabled

    bench.ticks(1, 100, use)
    assert path.gso.max_len == 60_000
    assert len(path.requests) == 1


def test_an_acknowledgement_counts_for_some_seconds() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    path.track(DeliveryResult.ACKED, 60_000, 0.5)
    bench.ticks(1, 5)
    assert path.state() is State.ENABLED_BY_ACK
    bench.ticks(6, 6)
    assert (path.state(), len(path.requests)) == (State.AWAITING_ACK, 1)
    path.track(DeliveryResult.ACKED, 60_000, 6.2)
    assert path.state() is State.ENABLED_BY_ACK
    bench.ticks(7, 12)
    assert path.state() is State.AWAITING_ACK
    # The remote may be a pyvtep by now, or reached by another device.
    bench.ticks(13, 72)
    assert path.state() is State.IDLE


def losses(bench: Bench, path: FakePath, until: int, length: int = 60_000) -> list[float]:
    """Return when superframes are lost if all are, or all that are larger than 60,000 octets."""
    lost = []
    for now in range(until):
        if path.state() is State.IDLE:
            bench.probe(path, now)
        if path.tracks:
            if not path.gso.enabled and length > 60_000:
                path.track(DeliveryResult.ACKED, 10_000, now)
            lost.append(float(now))
            path.track(DeliveryResult.LOST, length, now)
        assert not path.gso.enabled
        bench.prober.tick(now)
    return lost


@pytest.mark.parametrize("length", [60_000, 60_001], ids=["any", "large"])
def test_pauses_after_losses_double_up_to_an_hour(length: int) -> None:
    bench, path = Bench(), FakePath()
    lost = losses(bench, path, 20_000, length)
    pauses = [after - before for before, after in pairwise(lost)]
    expected = [*(1 << number for number in range(12)), *[3600] * 4]
    assert len(pauses) == len(expected)
    for pause, least in zip(pauses, expected, strict=True):
        assert least <= pause <= least + 65, "it is checked once a minute"
    assert path.warnings == 1
    other = FakePath("192.0.2.3")
    bench.probe(other, 20_000)
    assert other.tracks, "another host does not back off"


def test_the_pause_of_a_host_outlasts_the_state_of_its_path() -> None:
    bench, path = Bench(), FakePath()
    lost = int(losses(bench, path, 100)[-1])  # Another 64 seconds from here.
    bench.ticks(100, lost + 59)
    assert path.state() is State.BACKING_OFF
    bench.ticks(lost + 60, lost + 60)
    assert path.state() is State.IDLE
    bench.probe(path, lost + 61)
    bench.ticks(lost + 62, lost + 63)
    assert not path.tracks
    bench.ticks(lost + 64, lost + 64)
    assert path.tracks


def test_an_acknowledgement_after_a_loss_ends_the_backing_off() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    path.track(DeliveryResult.LOST, 60_000, 0.1)
    assert (path.state(), path.tracks) == (State.BACKING_OFF, False)
    bench.ticks(1, 2)
    assert path.state() is State.AWAITING_ACK
    path.track(DeliveryResult.ACKED, 60_000, 2.1)
    assert path.gso.max_len == 60_000
    path.track(DeliveryResult.LOST, 61_000, 2.2)
    bench.ticks(3, 4)
    assert path.tracks, "the first pause again"
    assert path.warnings == 0


def test_an_unknown_result_is_no_loss() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    path.track(DeliveryResult.UNKNOWN, 60_000, 0.1)
    assert path.tracks
    path.track(DeliveryResult.ACKED, 60_000, 0.2)
    assert path.gso.enabled
    path.track(DeliveryResult.UNKNOWN, 61_000, 0.3)
    assert path.gso.max_len == 60_000


def test_a_reply_makes_tracking_superfluous() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    on_result = path.send_tracked(5000)
    bench.reply(path, 0.1)
    max_len = path.gso.max_len
    assert max_len > 1 << 15
    assert not path.tracks
    on_result(DeliveryResult.ACKED, 5000, 0.2)
    on_result(DeliveryResult.UNKNOWN, 5000, 0.3)
    assert path.gso.max_len == max_len
    assert not path.tracks


def test_replies_do_not_count_while_superframes_are_lost() -> None:
    bench, path = Bench(), FakePath()
    bench.enable(path)
    path.sent += 10
    bench.ticks(1, 1)
    path.track(DeliveryResult.LOST, 60_000, 1.3)
    assert path.state() is State.BACKING_OFF
    bench.reply(path, 1.4)
    assert path.state() is State.BACKING_OFF
    bench.ticks(2, 3)
    path.track(DeliveryResult.ACKED, 60_000, 3.1)
    assert path.gso.max_len == 60_000
    bench.prober.forget(path)
    bench.enable(path, 4.0)


def test_an_acknowledgement_on_another_path_to_the_host_makes_replies_count_again() -> None:
    bench, path, other = Bench(), FakePath(), FakePath()
    for each in (path, other):
        bench.probe(each)
    path.track(DeliveryResult.LOST, 3000, 0.1)
    bench.reply(path, 0.2)
    assert path.state() is State.BACKING_OFF
    other.track(DeliveryResult.ACKED, 3000, 0.3)
    bench.reply(path, 0.4)
    assert path.state() is State.ENABLED_BY_REPLY


def test_results_of_an_earlier_probing_are_ignored() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    on_result = path.send_tracked(5000)
    bench.prober.forget_all()
    on_result(DeliveryResult.ACKED, 5000, 0.1)
    assert path.state() is State.IDLE
    bench.probe(path, 0.2)
    on_result(DeliveryResult.LOST, 5000, 0.3)
    assert path.state() is State.PROBING
    bench.prober.forget(path)
    bench.probe(path, 0.4)
    assert path.tracks


def test_paths_are_told_when_the_largest_length_changes() -> None:
    bench, path = Bench(), FakePath()
    bench.probe(path)
    assert path.max_lens == []
    path.track(DeliveryResult.ACKED, 3000, 0.1)
    path.track(DeliveryResult.ACKED, 4000, 0.2)
    bench.reply(path, 0.3)
    bench.reply(path, 0.4)
    bench.prober.on_send_failed(path, 0.5)
    bench.prober.forget(path)
    assert path.max_lens == [3000, 4000, SUPERFRAME_MAX, 0]


def test_the_oldest_backoff_is_forgotten_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_module, "_BACKOFFS_MAX", 2)
    bench, hosts = Bench(), ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    for host in hosts:
        path = FakePath(host)
        bench.probe(path)
        path.track(DeliveryResult.LOST, 60_000, 0.1)
        bench.prober.forget(path)
    paths = [FakePath(host) for host in hosts]
    for path in paths:
        bench.probe(path, 0.2)
    assert [path.tracks for path in paths] == [True, False, False]


# --- any order of events ----------------------------------------------------------------------


class ProberMachine(RuleBasedStateMachine):
    """Events in any order, on three paths to two hosts, beside a model of what is confirmed."""

    tracked = Bundle("tracked")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.bench = Bench()
        self.prober = self.bench.prober
        self.paths = [FakePath("192.0.2.2"), FakePath("192.0.2.2"), FakePath("192.0.2.3")]
        # The model: when each path was confirmed last, and how long each host pauses, until when,
        # after the loss of how many octets.
        self.confirmed = dict.fromkeys(range(3), float("-inf"))
        self.pauses: dict[str, tuple[float, float, int]] = {}

    paths_of_machine = st.integers(0, 2)
    lengths = st.sampled_from((1500, 64_000))
    results = st.sampled_from(DeliveryResult)

    @initialize()
    def start(self) -> None:
        self.probe()

    @rule()
    def probe(self) -> None:
        for path in self.paths:
            if path.state() is State.IDLE:
                self.bench.probe(path, self.now)

    @rule(number=paths_of_machine, egress=st.sampled_from((EGRESS, None)), forgotten=st.booleans())
    def request(self, number: int, egress: int | None, forgotten: bool) -> None:
        path = self.paths[number]
        if path.state() is State.IDLE:
            self.prober.request(path, 4789)
            if forgotten:
                self.prober.forget(path)
            self.prober.on_resolved(path, egress, self.now)
            assert not forgotten or path.state() is State.IDLE
        else:
            with pytest.raises(ImpossibleEventError):
                self.prober.request(path, 4789)

    @rule(number=paths_of_machine, arrived=st.sampled_from((SEGMENTED, SMALL, LARGE)))
    def reply(self, number: int, arrived: int) -> None:
        path = self.paths[number]
        if path.requests:
            self.bench.reply(path, self.now, arrived)
            if arrived != SMALL and path.host not in self.pauses:
                self.confirmed[number] = self.now

    @rule(target=tracked, number=paths_of_machine, length=lengths)
    def send(self, number: int, length: int) -> tuple[int, int, OnResult | None]:
        path = self.paths[number]
        if length > path.gso.track_above:
            return number, length, path.send_tracked(length)
        path.sent += length <= path.gso.max_len
        return number, length, None

    @rule(number=paths_of_machine, length=lengths, result=results)
    def send_with_result(self, number: int, length: int, result: DeliveryResult) -> None:
        self.result(self.send(number, length), result)

    @rule(superframe=consumes(tracked), result=results)
    def result(self, superframe: tuple[int, int, OnResult | None], result: DeliveryResult) -> None:
        number, length, on_result = superframe
        path = self.paths[number]
        if on_result is None:
            return
        before = path.state()
        warnings = sum(each.warnings for each in self.paths)
        current = on_result is path.gso.on_result and before not in (State.IDLE, State.UNRESOLVED)
        on_result(result, length, self.now)
        if not current or before is State.UNAVAILABLE:
            assert path.state() is before
            return
        pause, _, lost_len = self.pauses.get(path.host, (0.5, 0.0, 0))
        if result is DeliveryResult.LOST:
            assert path.state() is State.BACKING_OFF
            assert not path.tracks
            pause = min(2 * pause, 3600.0)
            self.pauses[path.host] = pause, self.now + pause, length
            assert sum(each.warnings for each in self.paths) - warnings == (pause == 2.0)
        elif result is DeliveryResult.ACKED:
            assert path.gso.enabled
            assert path.gso.max_len >= length or before is State.ENABLED_BY_REPLY
            self.confirmed[number] = self.now
            if length >= lost_len:
                self.pauses.pop(path.host, None)

    @rule(number=paths_of_machine)
    def fail(self, number: int) -> None:
        path = self.paths[number]
        enabled = path.gso.enabled
        self.prober.on_send_failed(path, self.now)
        assert not path.gso.enabled
        assert not enabled or path.state() is State.UNAVAILABLE

    @rule(seconds=st.sampled_from((0.0, 1.0, 1.0, 1.0, 5.0, 20.0, 60.0, 4000.0)))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.prober.tick(self.now)
        for number, path in enumerate(self.paths):
            lifetime = 20.0 if path.state() is State.ENABLED_BY_REPLY else 5.0
            assert not path.gso.enabled or self.now < self.confirmed[number] + lifetime
            _, until, _ = self.pauses.get(path.host, (0.0, 0.0, 0))
            assert path.state() is not State.BACKING_OFF or self.now < until
            assert path.state() is not State.AWAITING_ACK or path.tracks or self.now < until

    @rule(numbers=st.sampled_from(((0,), (1,), (2,), (0, 1, 2))))
    def forget(self, numbers: Sequence[int]) -> None:
        if len(numbers) == len(self.paths):
            self.prober.forget_all()
        for number in numbers:
            self.prober.forget(self.paths[number])
            assert self.paths[number].state() is State.IDLE

    @invariant()
    def enabled_only_after_a_confirmation(self) -> None:
        for number, path in enumerate(self.paths):
            assert (path.gso.max_len > 0) == path.gso.enabled == (path.state() in ENABLED)
            assert not path.gso.enabled or self.confirmed[number] > float("-inf")

    @invariant()
    def nothing_is_tracked_where_nothing_may_be_sent(self) -> None:
        silent = (State.IDLE, State.UNRESOLVED, State.UNAVAILABLE, State.BACKING_OFF)
        for path in self.paths:
            assert not path.tracks or path.state() not in silent


TestAnyOrderOfEvents = ProberMachine.TestCase
TestAnyOrderOfEvents.settings = settings(BASIC, max_examples=250, stateful_step_count=50)
