"""Trial: a superframe has arrived if it is acknowledged, and nothing of it was sent again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.craft import HOSTILE, V4_A, V4_B, V6_A, V6_B, ether, ip, tcp, udp
from vtep.offload.split import judge
from vtep.tunnel_gso.ack_tracker import Fate, Trial
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


class Watched:
    """A trial of a superframe that left at 10 seconds, and what was said of it."""

    def __init__(self, version: int = 4, seq: int = 1000) -> None:
        frame = there(version, seq)
        gso = virtio.Header(1, GSO[version], len(frame) - OCTETS, SIZE, 34, 16)
        self.said: list[tuple[Fate, int, float]] = []
        self.octets = len(frame)
        self.it = Trial(frame, judge(memoryview(frame), gso), self._say, 10.0)

    def _say(self, fate: Fate, octets: int, now: float) -> None:
        self.said.append((fate, octets, now))


@versions
@pytest.mark.parametrize("seq", [1000, WRAP - 200, WRAP - OCTETS, WRAP - 1])
@pytest.mark.parametrize("beyond", [0, 1, 100_000])
def test_acknowledged(version: int, seq: int, beyond: int) -> None:
    watched = Watched(version, seq)
    watched.it.arriving(back(version, seq + OCTETS - 1), 10.1)
    assert watched.said == []
    watched.it.arriving(back(version, seq + OCTETS + beyond), 10.2)
    assert watched.said == [(Fate.ARRIVED, watched.octets, 10.2)]
    assert watched.it.is_over
    watched.it.leaving(there(version, seq), 10.3)
    watched.it.arriving(back(version, seq + OCTETS), 10.4)
    assert len(watched.said) == 1, "it is told once"


@versions
@pytest.mark.parametrize(
    ("offset", "octets"),
    [(0, OCTETS), (0, 1), (OCTETS - 1, 1), (OCTETS - 1, 1000), (200, 10), (-50, 51), (-50, 1000)],
)
@pytest.mark.parametrize("seq", [1000, WRAP - 200])
def test_sent_again(version: int, offset: int, octets: int, seq: int) -> None:
    watched = Watched(version, seq)
    watched.it.leaving(there(version, seq + offset, octets), 10.1)
    watched.it.arriving(back(version, seq + OCTETS), 10.2)
    assert watched.said == [(Fate.LOST, watched.octets, 10.1)]


@versions
def test_what_else_leaves_does_not_matter(version: int) -> None:
    watched = Watched(version)
    for frame in (
        there(version, 1000 + OCTETS),
        there(version, 1000 + OCTETS, 0),  # An acknowledgement of what comes the other way.
        there(version, 999, 0),  # A question whether the other end is still there.
        there(version, 900, 100),
        there(version, 1000, sport=40001),
        there(version, 1000, dport=81),
        there(10 - version, 1000),
        back(version, 1000),
        bytes(ether(ip(4, udp(bytes(400), sport=40000, dport=80)))),
    ):
        watched.it.leaving(frame, 10.5)
    assert watched.said == []


@versions
def test_what_else_arrives_does_not_matter(version: int) -> None:
    watched = Watched(version)
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
        watched.it.arriving(frame, 10.5)
    assert watched.said == []


@versions
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_connection_that_ends(version: int, flags: str) -> None:
    watched = Watched(version)
    watched.it.arriving(back(version, 1000, flags=flags), 10.2)
    assert watched.said == [(Fate.UNKNOWN, watched.octets, 10.2)]


def test_after_a_second_it_does_not_matter_any_more() -> None:
    watched = Watched()
    other = there(6, 5)
    watched.it.leaving(other, 11.0)
    assert watched.said == []
    watched.it.leaving(other, 11.01)
    assert watched.said == [(Fate.UNKNOWN, watched.octets, 11.01)]


@versions
@pytest.mark.parametrize("seq", [1000, WRAP - 1, 99])
def test_what_was_before_it_is_sent_again_and_nothing_is_acknowledged(
    version: int, seq: int
) -> None:
    watched = Watched(version, seq)
    for now in (10.2, 10.4, 10.8):
        watched.it.leaving(there(version, seq - 100, 100), now)
    assert watched.said == []
    watched.it.leaving(there(version, seq - 100, 100), 11.1)
    assert watched.said == [(Fate.LOST, watched.octets, 11.1)]
    slow = Watched(version, seq)
    slow.it.leaving(there(version, seq - 100, 100), 10.2)
    slow.it.arriving(back(version, seq + OCTETS), 10.9)
    assert slow.said == [(Fate.ARRIVED, slow.octets, 10.9)]


@given(leaving=st.lists(HOSTILE, max_size=4), arriving=st.lists(HOSTILE, max_size=4))
def test_nothing_breaks_it(leaving: list[bytes], arriving: list[bytes]) -> None:
    watched = Watched()
    for frame in leaving:
        watched.it.leaving(frame, 10.1)
    for frame in arriving:
        watched.it.arriving(frame, 10.2)
    assert len(watched.said) == watched.it.is_over
