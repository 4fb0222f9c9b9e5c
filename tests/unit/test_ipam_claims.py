"""Claims of addresses: no two hosts assign the same, whatever happens to single frames."""

import heapq
from collections.abc import Callable
from ipaddress import ip_address
from itertools import count, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtep.docker.ipam.claims import (
    CONFLICT_DELAY_S,
    LISTEN_S,
    MAX_CONFLICTS,
    PROBE_INTERVAL_S,
    PROBES,
    SPARE_MAX_AGE_S,
    Attempt,
    Claims,
)
from vtep.docker.ipam.frames import build_defense, build_probe
from vtep.forwarding.anycast import read
from vtep.wire.address import Address

ADDRESSES = [ip_address(f"172.18.0.{last}") for last in (2, 3, 4)]
ADDRESSES6 = [ip_address(f"fd00:18::{last}") for last in (2, 3, 4)]
DELAY_MAX = LISTEN_S / 2 - 0.001
"""Seconds that a frame may take, so that an answer to the last probe arrives in time."""

MAC_1, MAC_2 = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"


class Node:
    """A host of the simulation, with the bridge from which it probes."""

    def __init__(self, number: int) -> None:
        self.mac = bytes((2, 0, 0, 0, 0, number))
        self.claims = Claims()
        self.attempts: list[Attempt] = []
        self.wakes_at: float | None = None
        # The number of the probe that arrives, for each address.
        self.lucky: dict[Address, int] = {}

    def container_mac(self) -> bytes:
        return bytes((2, 0, 0, 1, self.mac[-1], len(self.attempts)))


class Simulation:
    """Hosts on one segment; frames take their time or are lost, and timers are late, at random.

    At least one probe of each attempt for an address arrives everywhere, and so do its answers.
    """

    def __init__(self, hosts: int, random: Random, *, loses: bool = True) -> None:
        self.nodes = [Node(number + 1) for number in range(hosts)]
        self.random = random
        self.loses = loses
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._number), event))

    def request(self, node: Node, candidates: list[Address]) -> None:
        attempt = node.claims.begin(candidates, node.container_mac(), self.now)
        node.attempts.append(attempt)
        self.wake(node)

    def request_spare(self, node: Node, candidates: list[Address]) -> None:
        """Begin a spare, which is taken some time later if it is ready then."""
        spare = node.claims.begin(candidates, node.container_mac(), self.now, is_spare=True)
        node.attempts.append(spare)
        self.wake(node)

        def take() -> None:
            if spare.ready:
                node.claims.take(spare, node.container_mac())

        for delay in (0.6, 1.0, self.random.uniform(1.0, 12.0)):
            self.at(self.now + delay, take)

    def release(self, node: Node) -> None:
        if node.claims.claimed:
            node.claims.release(self.random.choice(list(node.claims.claimed)))

    def wake(self, node: Node) -> None:
        deadline = node.claims.deadline
        if deadline is not None and (node.wakes_at is None or deadline < node.wakes_at):
            lateness = self.random.choice((0.0, 0.0, 0.001, 0.3, 1.0)) if self.loses else 0.0
            node.wakes_at = max(deadline, self.now) + lateness
            self.at(node.wakes_at, lambda: self._advance(node))

    def _advance(self, node: Node) -> None:
        node.wakes_at = None
        for address in node.claims.advance(self.now):
            sent = next(
                each.sent for each in node.attempts if each.address == address and not each.done
            )
            if sent == 1:
                node.lucky[address] = self.random.randint(1, PROBES)
            arrives = not self.loses or sent == node.lucky[address]
            self._send(node, build_probe(node.mac, address), arrives=arrives)
        self.wake(node)

    def _send(self, sender: Node, frame: bytes, *, arrives: bool) -> None:
        for node in self.nodes:
            if node is not sender and (arrives or self.random.random() < 0.2):
                delay = self.random.uniform(0.0, DELAY_MAX) if self.loses else 0.001

                def deliver(node: Node = node) -> None:
                    self._receive(node, frame, arrives=arrives)

                self.at(self.now + delay, deliver)

    def _receive(self, node: Node, frame: bytes, *, arrives: bool) -> None:
        message = read(frame)
        assert message is not None
        source = frame[6:12]
        address = node.claims.on_message(source, message, self.now)
        if address is not None:
            mac = node.claims.claimed[address]
            assert mac is not None
            self._send(node, build_defense(mac, address, source), arrives=arrives)
        self.wake(node)

    def run(self) -> None:
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
            self._check()

    def _check(self) -> None:
        held = [address for node in self.nodes for address in node.claims.claimed]
        assert len(held) == len(set(held)), f"assigned twice at {self.now}: {held}"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    hosts=st.integers(2, 3),
    addresses=st.sampled_from([ADDRESSES, ADDRESSES6]),
    starts=st.lists(
        st.tuples(st.sampled_from((0.0, 0.01, 0.2, 0.54, 0.55, 0.56, 0.8, 2.0)), st.booleans()),
        min_size=2,
        max_size=9,
    ),
)
def test_no_address_is_assigned_twice(
    seed: int, hosts: int, addresses: list[Address], starts: list[tuple[float, bool]]
) -> None:
    random = Random(seed)
    simulation = Simulation(hosts, random)
    for start, is_fixed in starts:
        node = random.choice(simulation.nodes)
        wanted = random.sample(addresses, 1 if is_fixed else len(addresses))
        request = simulation.request_spare if random.random() < 0.3 else simulation.request
        simulation.at(
            start,
            lambda request=request, node=node, wanted=wanted: request(node, wanted),  # type: ignore[misc]
        )
        if random.random() < 0.2:
            simulation.at(start + 1, lambda node=node: simulation.release(node))  # type: ignore[misc]
    simulation.run()
    assert all(attempt.done for node in simulation.nodes for attempt in node.attempts)


@pytest.mark.parametrize("lag", [0.0, 0.0005, 0.1, 0.4, 0.6])
def test_all_hosts_get_addresses(lag: float) -> None:
    """With one order on all hosts, the worst case."""
    addresses: list[Address] = [ip_address(f"172.18.0.{last}") for last in range(1, 46)]
    simulation = Simulation(3, Random(1), loses=False)
    for at, node in product(range(10), simulation.nodes):
        start = at * 0.01 + simulation.nodes.index(node) * lag
        simulation.at(start, lambda node=node: simulation.request(node, addresses))  # type: ignore[misc]
    simulation.run()
    assert sum(len(node.claims.claimed) for node in simulation.nodes) == 30
    assert simulation.now < 20


@pytest.mark.parametrize("lag", [0.0, 0.0005, 0.1, 0.4, 0.6])
def test_one_host_gets_an_address_that_all_want(lag: float) -> None:
    simulation = Simulation(3, Random(1), loses=False)
    for at, node in enumerate(simulation.nodes):
        simulation.at(at * lag, lambda node=node: simulation.request(node, ADDRESSES[:1]))  # type: ignore[misc]
    simulation.run()
    (winner,) = (node for node in simulation.nodes if node.claims.claimed)
    for node in simulation.nodes:
        assert node is winner or node.attempts[0].holder == winner.attempts[0].mac


def test_timing_of_an_attempt() -> None:
    claims, (address, other, _) = Claims(), ADDRESSES
    attempt = claims.begin([address], MAC_1, 10.0)
    assert claims.advance(10.0) == [address]
    assert claims.advance(10.1) == []
    assert claims.deadline == 10.0 + PROBE_INTERVAL_S
    # A late timer delays all that follows.
    assert claims.advance(11.0) == [address]
    assert claims.advance(11.15) == [address]
    assert not attempt.done
    assert claims.deadline == 11.15 + LISTEN_S
    assert not claims.is_free(address)
    assert claims.is_free(other)
    assert claims.advance(11.5) == []
    assert attempt.done
    assert attempt.address == address
    assert claims.claimed == {address: MAC_1}
    assert claims.deadline is None


def test_all_is_lost_and_the_conflict_is_reported_later() -> None:
    conflicts: list[tuple[Address, bytes]] = []
    claims = Claims(lambda *conflict: conflicts.append(conflict))
    address = ADDRESSES[0]
    claims.claim(address, MAC_1)
    own, other = (read(build_defense(mac, address, MAC_2)) for mac in (MAC_1, MAC_2))
    assert own is not None
    assert other is not None
    claims.on_message(MAC_1, own, 0.0)
    assert conflicts == []
    claims.on_message(MAC_2, other, 0.0)
    assert conflicts == [(address, MAC_2)]


def test_gateways_and_excluded_addresses_are_not_defended() -> None:
    conflicts: list[object] = []
    claims = Claims(lambda *conflict: conflicts.append(conflict))
    address = ADDRESSES[0]
    claims.claim(address, None)
    for frame in (build_probe(MAC_2, address), build_defense(MAC_2, address, MAC_1)):
        message = read(frame)
        assert message is not None
        assert claims.on_message(MAC_2, message, 0.0) is None
    assert conflicts == []
    assert claims.begin([address], MAC_1, 0.0).address is None


def test_a_container_may_probe_for_its_own_address() -> None:
    claims, address = Claims(), ADDRESSES6[0]
    claims.claim(address, MAC_1)
    message = read(build_probe(MAC_1, address))
    assert message is not None
    assert claims.on_message(MAC_1, message, 0.0) is None
    assert claims.on_message(MAC_2, message, 0.0) == address
    claims.release(address)
    claims.release(address)
    assert claims.on_message(MAC_2, message, 0.0) is None


def test_a_conflict_names_the_mac_of_the_other_host() -> None:
    claims, address = Claims(), ADDRESSES[0]
    attempt = claims.begin([address], MAC_1, 0.0)
    assert claims.advance(0.0) == [address]
    message = read(build_defense(MAC_2, address, MAC_1))
    assert message is not None
    assert claims.on_message(MAC_2, message, 0.01) is None
    assert (attempt.done, attempt.address, attempt.holder) == (True, None, MAC_2)
    assert claims.is_free(address)
    assert claims.advance(1.0) == []


def test_many_conflicts_slow_an_attempt_down() -> None:
    claims = Claims()
    candidates = [ip_address(f"172.18.0.{last}") for last in range(1, 250)]
    attempt = claims.begin(candidates, MAC_1, 0.0)
    for _ in range(MAX_CONFLICTS):
        assert claims.deadline == 0.0
        (address,) = claims.advance(0.0)
        message = read(build_defense(MAC_2, address, MAC_1))
        assert message is not None
        claims.on_message(MAC_2, message, 0.0)
    assert claims.deadline == CONFLICT_DELAY_S
    assert not attempt.done


def test_a_spare_is_taken_or_given_up_or_expires() -> None:
    claims, (address, other, _) = Claims(), ADDRESSES
    spare = claims.begin([address, other], MAC_1, 0.0, is_spare=True)
    for now in (0.0, 0.15, 0.3, 0.55):
        assert not spare.ready
        claims.advance(now)
    assert spare.ready
    assert not claims.is_free(address)
    # Another host wants it: that one gets it, and this one probes for the next.
    message = read(build_probe(MAC_2, address))
    assert message is not None
    assert claims.on_message(MAC_2, message, 1.0) is None
    assert (spare.ready, spare.address) == (False, other)
    for now in (1.0, 1.15, 1.3, 1.55):
        claims.advance(now)
    assert claims.take(spare, MAC_2) == other
    assert claims.claimed == {other: MAC_2}
    assert spare.done

    spare = claims.begin([address], MAC_1, 2.0, is_spare=True)
    for now in (2.0, 2.15, 2.3, 2.55):
        claims.advance(now)
    assert claims.deadline == 2.55 + SPARE_MAX_AGE_S
    claims.advance(2.55 + SPARE_MAX_AGE_S)
    assert (spare.ready, spare.done, spare.address) == (False, True, None)
    assert claims.is_free(address)

    # A container is to have exactly this one.
    claims.begin([address], MAC_1, 20.0, is_spare=True)
    claims.drop_spare(address)
    assert claims.is_free(address)
    claims.drop_spare(other)
    assert claims.claimed == {other: MAC_2}


def test_a_cancelled_attempt_leaves_nothing() -> None:
    claims, address = Claims(), ADDRESSES[0]
    for times in ((), (0.0, 1.0, 2.0, 3.0)):
        attempt = claims.begin([address], MAC_1, 0.0)
        for now in times:
            claims.advance(now)
        assert not claims.is_free(address)
        claims.cancel(attempt)
        assert claims.is_free(address)
        assert (attempt.done, attempt.address) == (True, None)
        claims.cancel(attempt)
    assert claims.claimed == {}
