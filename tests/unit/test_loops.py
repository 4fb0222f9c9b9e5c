"""Loop protection: when a segment looks for a loop, and what a block keeps back."""

from types import SimpleNamespace
from typing import Any

import pytest

from vtep.counters import Counters, Drop
from vtep.daemon.housekeeping import take_turns
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.loops import FLOODED_PER_LOOK, LoopGuard
from vtep.forwarding.route import NoRoute
from vtep.forwarding.segment import Segment
from vtep.wire import arp, vxlan

A, B = Remote("192.0.2.2", 4789), Remote("192.0.2.3", 4789)
GUEST, PROBE = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\xff"
BROADCAST = b"\xff" * 6


def segment(*remotes: Remote, block: float = 30.0, learning: bool = True) -> Segment:
    fdb = Fdb(1, 4789, ageing=300, max_addresses=0)
    one = Segment(1, remotes, fdb, own_mac=bytes(6), learning=learning)
    one.loops.block = block
    one.set_probe_mac(PROBE)
    return one


def receive(one: Segment, destination: bytes, source: Remote, now: float) -> bool:
    """Admit a frame from the guest as the demux does."""
    datagram = vxlan.pack(1) + destination + GUEST + b"\x08\0"
    if one.has_ingress_policy:
        return one.admit_by_policy(datagram, GUEST, source.host, now)
    return one.admit(GUEST, source.host, now)


@pytest.mark.parametrize("learning", [True, False])
def test_probe_that_comes_back_blocks_flooding_with_its_remote_only(learning: bool) -> None:
    one = segment(A, B, learning=learning)
    reported: list[tuple[str, str, float]] = []
    one.loops.watchers.append(lambda *event: reported.append(event))
    changes: list[bytes | None] = []
    one.verdict_watchers.append(changes.append)
    assert receive(one, BROADCAST, A, 0.0)
    before = one.route(BROADCAST + GUEST + b"\x08\0")
    assert before is one.fdb.default

    assert not one.admit(PROBE, A.host, 1.0)
    assert one.fdb.lookup(PROBE) is None
    assert reported == [("blocked", A.host, 30.0)]
    assert one.counters.loops_found == 1
    assert None in changes  # Decisions that were kept are void.
    assert not receive(one, BROADCAST, A, 2.0)
    assert receive(one, GUEST, A, 2.0)
    assert receive(one, BROADCAST, B, 2.0)
    route = one.route(BROADCAST + GUEST + b"\x08\0")
    assert route.destinations == (B,)
    assert route is one.route(bytes(5) + b"\1" + GUEST + b"\x08\0")
    assert one.counters.drops[Drop.LOOP_BLOCKED_RX] == 1

    # Another probe changes nothing while the block lasts.
    assert not one.admit(PROBE, A.host, 3.0)
    assert one.loops.blocked == {A.host: 31.0}
    assert not one.loops.unblock(30.0)
    assert one.loops.unblock(31.0)
    assert reported[1:] == [("unblocked", A.host, 0.0)]
    assert receive(one, BROADCAST, A, 32.0)
    assert not one.has_ingress_policy
    assert one.route(BROADCAST + GUEST + b"\x08\0") is one.fdb.default


def test_flooding_with_the_only_remote_is_dropped_and_follows_new_remotes() -> None:
    one = segment(A)
    one.admit(PROBE, A.host, 0.0)
    route = one.route(BROADCAST + GUEST + b"\x08\0")
    assert isinstance(route, NoRoute)
    assert route.reason is Drop.LOOP_BLOCKED_TX
    one.set_remotes((A, B), 1.0)
    assert one.route(BROADCAST + GUEST + b"\x08\0").destinations == (B,)
    one.set_remotes((), 2.0)
    assert one.route(BROADCAST + GUEST + b"\x08\0").destinations == ()


def test_blocks_become_longer_while_the_loop_is_found_again_soon() -> None:
    guard, now = LoopGuard(lambda *_: None), 0.0
    guard.block = 30.0
    lengths = []
    for pause in (1, 1, 1, 1, 1, 10_000):
        assert guard.note_returned(A.host, now)
        lengths.append(guard.blocked[A.host] - now)
        now = guard.blocked[A.host]
        assert guard.unblock(now)
        now += pause
    assert lengths == [30, 60, 120, 240, 300, 300]
    assert guard.note_returned(A.host, now)
    assert guard.blocked[A.host] - now == 30


def test_memory_is_bounded() -> None:
    guard = LoopGuard(lambda *_: None)
    guard.block = 30.0
    for number in range(5000):
        guard.note_returned(f"host {number}", 0.0)
    assert len(guard.blocked) == len(guard._last) == 1024


@pytest.mark.parametrize("block", [0.0, 30.0])
def test_signs_of_a_loop(block: float) -> None:
    """A flood, an own MAC or a held MAC since the last look; none with loop protection off."""
    guard, counters = LoopGuard(lambda *_: None), Counters()
    guard.block = block

    def suspects() -> bool:
        guard.look(counters)
        suspect = guard.is_suspect
        guard.look(counters)
        assert guard.is_suspect is suspect  # Until a probe is sent.
        guard.probe(0.0)
        assert not guard.is_suspect
        return suspect

    assert not suspects()
    counters.flooded += FLOODED_PER_LOOK - 1
    assert not suspects()
    counters.flooded += FLOODED_PER_LOOK
    assert suspects() is bool(block)
    for reason in (Drop.INNER_SOURCE_OWN, Drop.INNER_SOURCE_HELD):
        counters.drop(reason)
        assert suspects() is bool(block)
        assert not suspects()
    assert guard.note_returned(A.host, 0.0) is bool(block)


def test_vnis_on_one_bridge_take_turns_to_look_for_a_loop() -> None:
    """If both looked at once, both would be blocked, and no path would be left."""
    ports: list[Any] = []
    for vni, bridge in ((3, 7), (1, 7), (2, 7), (5, 0), (4, 0), (6, 9)):
        one = segment(A)
        where = SimpleNamespace(bridge=bridge)
        ports.append(
            SimpleNamespace(segment=one, attachment=where, config=SimpleNamespace(vni=vni))
        )
    turns = []
    for now in range(4):
        chosen = take_turns(ports)
        for port in chosen:
            port.segment.loops.probe(now)
        turns.append(sorted(port.config.vni for port in chosen))
    # At both ends of a tunnel they are the same, whatever the order in which VNIs were added.
    assert turns == [[1, 4, 5, 6], [2, 4, 5, 6], [3, 4, 5, 6], [1, 4, 5, 6]]


def test_probe_is_an_arp_request_that_no_host_answers() -> None:
    guard = LoopGuard(lambda *_: None)
    guard.probe_mac = PROBE
    frame = guard.probe(0.0)
    assert (len(frame), frame[:14]) == (60, BROADCAST + PROBE + b"\x08\x06")
    request = arp.parse(frame, 14)
    assert request == arp.Arp(arp.REQUEST, PROBE, bytes(4), bytes(6), bytes(4))
