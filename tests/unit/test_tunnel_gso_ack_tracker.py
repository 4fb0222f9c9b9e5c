"""AckTracker: a superframe was delivered if it is acknowledged before it is retransmitted."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.craft import HOSTILE, V4_A, V4_B, V6_A, V6_B, ether, ip, tcp, udp
from vtep.offload.split import plan_segments
from vtep.tunnel_gso.ack_tracker import AckTracker, DeliveryResult
from vtep.wire import virtio

SIZE, OCTETS = 100, 500
GSO = {4: virtio.GSO_TCPV4, 6: virtio.GSO_TCPV6}
HOSTS = {4: (V4_A, V4_B), 6: (V6_A, V6_B)}
PORTS = (40000, 80)
WRAP = 1 << 32
versions = pytest.mark.parametrize("version", [4, 6])


def there(version: int, seq: int, octets: int = OCTETS, **fields: Any) -> bytes:
    source, destination = HOSTS[version]
    sport, dport = PORTS
    fields = {"sport": sport, "dport": dport, **fields}
    segment = tcp(bytes(octets), seq=seq % WRAP, **fields)
    return bytes(ether(ip(version, segment, src=source, dst=destination)))


def back(version: int, ack: int, flags: str = "A", **fields: Any) -> bytes:
    destination, source = HOSTS[version]
    dport, sport = PORTS
    fields = {"sport": sport, "dport": dport, **fields}
    segment = tcp(ack=ack % WRAP, flags=flags, **fields)
    return bytes(ether(ip(version, segment, src=source, dst=destination)))


class Tracked:
    """A superframe that is sent at 10 seconds and tracked, and the results."""

    def __init__(self, version: int = 4, seq: int = 1000) -> None:
        frame = there(version, seq)
        gso = virtio.Header(1, GSO[version], len(frame) - OCTETS, SIZE, 34, 16)
        self.results: list[tuple[DeliveryResult, int, float]] = []
        self.octets = len(frame)
        self.tracker = AckTracker()
        assert not self.tracker.active
        self.tracker.start(frame, plan_segments(memoryview(frame), gso), self._on_result, 10.0)
        assert self.tracker.active

    def _on_result(self, result: DeliveryResult, octets: int, now: float) -> None:
        assert not self.tracker.active
        self.results.append((result, octets, now))


@versions
@pytest.mark.parametrize("seq", [1000, WRAP - 200, WRAP - OCTETS, WRAP - 1])
@pytest.mark.parametrize("beyond", [0, 1, 100_000])
def test_acknowledged(version: int, seq: int, beyond: int) -> None:
    tracked = Tracked(version, seq)
    tracked.tracker.on_received(back(version, seq + OCTETS - 1), 10.1)
    assert tracked.results == []
    tracked.tracker.on_received(back(version, seq + OCTETS + beyond), 10.2)
    assert tracked.results == [(DeliveryResult.ACKED, tracked.octets, 10.2)]
    assert not tracked.tracker.active
    tracked.tracker.on_sent(there(version, seq), 10.3)
    tracked.tracker.on_received(back(version, seq + OCTETS), 10.4)
    assert len(tracked.results) == 1, "there is one result"


@versions
@pytest.mark.parametrize(
    ("offset", "octets"),
    [(0, OCTETS), (0, 1), (OCTETS - 1, 1), (OCTETS - 1, 1000), (200, 10), (-50, 51), (-50, 1000)],
)
@pytest.mark.parametrize("seq", [1000, WRAP - 200])
def test_retransmitted(version: int, offset: int, octets: int, seq: int) -> None:
    tracked = Tracked(version, seq)
    tracked.tracker.on_sent(there(version, seq + offset, octets), 10.1)
    tracked.tracker.on_received(back(version, seq + OCTETS), 10.2)
    assert tracked.results == [(DeliveryResult.LOST, tracked.octets, 10.1)]


@versions
def test_other_sent_frames_do_not_matter(version: int) -> None:
    tracked = Tracked(version)
    for frame in (
        there(version, 1000 + OCTETS),
        there(version, 1000 + OCTETS, 0),  # An acknowledgement of what comes the other way.
        there(version, 999, 0),  # A keep-alive (RFC 9293, section 3.8.4).
        there(version, 900, 100),
        there(version, 1000, sport=40001),
        there(version, 1000, dport=81),
        there(10 - version, 1000),
        back(version, 1000),
        bytes(ether(ip(4, udp(bytes(400), sport=40000, dport=80)))),
    ):
        tracked.tracker.on_sent(frame, 10.5)
    assert tracked.results == []


@versions
def test_other_received_frames_do_not_matter(version: int) -> None:
    tracked = Tracked(version)
    for frame in (
        back(version, 1000),
        back(version, 999),
        back(version, 0, flags="R", sport=81),
        back(version, 1000 + OCTETS, sport=81),
        back(version, 1000 + OCTETS, dport=40001),
        back(10 - version, 1000 + OCTETS),
        there(version, 1, ack=1000 + OCTETS),
        bytes(ether(ip(4, udp(bytes(400), sport=80, dport=40000)))),
    ):
        tracked.tracker.on_received(frame, 10.5)
    assert tracked.results == []


@versions
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_connection_leaves_the_result_unknown(version: int, flags: str) -> None:
    tracked = Tracked(version)
    tracked.tracker.on_received(back(version, 1000, flags=flags), 10.2)
    assert tracked.results == [(DeliveryResult.UNKNOWN, tracked.octets, 10.2)]


def test_after_a_second_the_result_is_unknown() -> None:
    tracked = Tracked()
    other = there(6, 5)
    tracked.tracker.on_sent(other, 11.0)
    assert tracked.results == []
    tracked.tracker.on_sent(other, 11.01)
    assert tracked.results == [(DeliveryResult.UNKNOWN, tracked.octets, 11.01)]


@versions
@pytest.mark.parametrize("seq", [1000, WRAP - 1, 99])
def test_older_data_that_is_retransmitted_for_a_second_is_a_loss(version: int, seq: int) -> None:
    tracked = Tracked(version, seq)
    for now in (10.2, 10.4, 10.8):
        tracked.tracker.on_sent(there(version, seq - 100, 100), now)
    assert tracked.results == []
    tracked.tracker.on_sent(there(version, seq - 100, 100), 11.1)
    assert tracked.results == [(DeliveryResult.LOST, tracked.octets, 11.1)]
    slow = Tracked(version, seq)
    slow.tracker.on_sent(there(version, seq - 100, 100), 10.2)
    slow.tracker.on_received(back(version, seq + OCTETS), 10.9)
    assert slow.results == [(DeliveryResult.ACKED, slow.octets, 10.9)]


@given(sent=st.lists(HOSTILE, max_size=4), received=st.lists(HOSTILE, max_size=4))
def test_hostile_frames_do_no_harm(sent: list[bytes], received: list[bytes]) -> None:
    tracked = Tracked()
    for frame in sent:
        tracked.tracker.on_sent(frame, 10.1)
    for frame in received:
        tracked.tracker.on_received(frame, 10.2)
    assert len(tracked.results) == (not tracked.tracker.active)


def test_one_superframe_after_the_other() -> None:
    tracked = Tracked()
    tracked.tracker.on_received(back(4, 1000 + OCTETS), 10.1)
    frame = there(4, 1000 + OCTETS)
    gso = virtio.Header(1, GSO[4], len(frame) - OCTETS, SIZE, 34, 16)
    results: list[DeliveryResult] = []
    tracked.tracker.start(
        frame,
        plan_segments(memoryview(frame), gso),
        lambda result, *_: results.append(result),
        12.0,
    )
    tracked.tracker.on_sent(there(6, 5), 12.9)
    assert results == []
    tracked.tracker.on_sent(frame, 12.95)
    assert results == [DeliveryResult.LOST]
    assert len(tracked.results) == 1
