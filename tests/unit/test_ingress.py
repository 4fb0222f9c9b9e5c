"""Ingress: what is drained at once is delivered as if each datagram had come alone."""

import errno
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import chain, product
from typing import Any, NamedTuple
from unittest.mock import Mock

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.unit.craft import ether, finish, ip, tcp
from tests.unit.steps import syn_sent
from tests.unit.twins import ACK, BASIC, CWR, KINDS, PSH, SYN, Frame, split
from vtep.counters import Drop
from vtep.datapath import Ingress
from vtep.datapath.tap_fallback import MergeGuard
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import GroupPolicy, InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS
from vtep.io.sender_sockets import SenderSockets
from vtep.offload.sizing import TunnelSizing
from vtep.testing import MemoryTap, MemoryUnderlay
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import virtio, vxlan

OWN, HOST, STRANGER = "192.0.2.1", "192.0.2.2", "192.0.2.3"
ANY = Binding(socket.AF_INET, None, None)
VNI = 5
MTU = 1450
SIZE = MTU - 40


class Seen(NamedTuple):
    """All that there is to be seen of what came."""

    frames: list[bytes]
    counters: dict[str, int]
    fdb: list[tuple[bytes, int]]
    turns: int


class Vtep:
    """The receiving half of a VTEP, whose policy may be anything, and remotes that send to it."""

    def __init__(
        self,
        stack: ExitStack,
        policy: SegmentPolicy,
        *,
        uso: bool = True,
        gro: bool = True,
        joins: bool = False,
    ) -> None:
        fdb = Fdb(VNI, 4789, ageing=300, max_addresses=3)
        self.segment = Segment(
            VNI, [Remote(HOST, 4789)], fdb, own_mac=bytes(6), learning=True, policy=policy
        )
        self.other = Segment(
            VNI + 2,
            [],
            Fdb(VNI + 2, 4789, ageing=0, max_addresses=0),
            own_mac=bytes(6),
            learning=True,
        )
        self.demux = Demux((), 4789)
        underlay = stack.enter_context(closing(MemoryUnderlay(gro=joins)))
        self.receiver = underlay.add_host(OWN).open_receiver(ANY, 4789, gro=gro)
        remote, stranger = underlay.add_host(HOST), underlay.add_host(STRANGER)
        self._senders = [
            host.open_sender(
                *(ANY, OuterHeaderOptions(srcport=range(port, port + 1)), Remote(OWN, 4789), 1),
                SenderSockets(),
                gso=False,
            )
            for host, port in ((remote, 50_000), (stranger, 50_000), (remote, 50_001))
        ]
        self.tap = stack.enter_context(MemoryTap(uso=uso))
        self.ingress = Ingress([self.receiver], self.demux, lambda error: pytest.fail(str(error)))
        self.turns = 0
        self.on_turn: Callable[[], None] = lambda: None
        counters = self.segment.counters
        # As `attach` does outside of a loop: nothing is to be watched here.
        fit = TunnelSizing(b"", counters, MTU, "off")
        for version in (4, 6):
            syn_sent(fit, memoryview(bytearray(syn(version))))
        self.ingress.attach(self.segment, self.tap, fit, AckTracker(), self._turn)
        plain = TunnelSizing(b"", counters, MTU, "off")
        self.ingress.attach(self.other, self.tap, plain, AckTracker(), self._turn)
        self._frames: list[bytes] = []

    def _turn(self) -> None:
        self.turns += 1
        self.on_turn()

    def send(self, datagram: bytes, tos: int = 0, sender: int = 0) -> None:
        """Send from the remote, from a stranger, or from another port of the remote."""
        data = memoryview(datagram)
        sent = self._senders[sender].send(data, len(data), tos << FLOW_BITS, 0.0)
        assert sent == (len(data), None)

    def drain(self) -> None:
        self.ingress.readable(self.receiver)
        self._frames += (header + frame for header, frame in self.tap.received())

    def seen(self) -> Seen:
        others = self.demux.counters.as_dict()
        counters = {
            name: count + others[name] for name, count in self.segment.counters.as_dict().items()
        }
        del counters["rx_syscalls"]  # Fewer of them is what receives of many are for.
        remotes, total = self.segment.remote_counters.values(), self.segment.counters
        if HOST in self.segment.fdb.members.hosts:
            assert sum(each.rx_frames for each in remotes) == total.rx_frames
            assert sum(each.rx_bytes for each in remotes) == total.rx_bytes
        entries = [(entry.mac, entry.rx_frames) for entry in self.segment.fdb]
        return Seen(self._frames, counters, entries, self.turns)


def syn(version: int) -> bytes:
    """Return the segment sizes that the receiver of superframes announced, for one port only."""
    announced = tcp(flags="S", sport=80, dport=40000, options=[("MSS", 1000)])
    addresses = {4: ("10.1.0.99", "10.1.0.1"), 6: ("fd00::63", "fd00::1")}[version]
    return bytes(ether(ip(version, announced, src=addresses[0], dst=addresses[1])))


class Datagram(NamedTuple):
    octets: bytes
    tos: int = 0
    sender: int = 0


def run(
    datagrams: Sequence[Datagram],
    policy: SegmentPolicy,
    *,
    at_once: bool,
    uso: bool = True,
    both_accepted: bool = False,
) -> Seen:
    """Drain some datagrams at once, or decide about each alone, whatever was decided before."""
    with ExitStack() as stack:
        it = Vtep(stack, policy, uso=uso)
        if both_accepted:
            it.segment.set_remotes([Remote(HOST, 4789), Remote(STRANGER, 4789)], 0.0)
        if not at_once:
            setattr(it.ingress._decisions, "keep", lambda *_: None)  # noqa: B010  a method to mypy
        for number, each in enumerate(datagrams, 1):
            it.send(*each)
            if not at_once or number % 20 == 0:  # The queue of the TAP holds few of 64 KiB.
                it.drain()
        for _ in range(20):
            it.drain()
        return it.seen()


def superframe(
    count: int = 4, *, less: int = 0, vni: int = VNI, group: int = 0, **fields: Any
) -> bytes:
    """Build a superframe of a kernel VTEP as the UDP socket receives it."""
    payload = bytes(count * SIZE - less)
    return vxlan.pack(vni, group) + Frame(payload=payload, partial=True, **fields).build()


CHANGES: list[dict[str, Any]] = [
    {"seq": SIZE},
    {"ident": 9},
    {"ack": 77, "window": 3},
    {"flags": ACK | PSH},
    {"flags": ACK | CWR},
    {"flags": ACK | SYN},
    {"sport": 5001},
    {"dport": 81},
    {"source": 2},
    {"src": b"\2\0\0\0\0\2"},
    {"src": b"\3\0\0\0\0\1"},
    {"dst": b"\2\0\0\0\0\7"},
    {"tos": 4},
    {"label": 5},
    {"ttl": 63},
    {"fragment": 0x2000},
    {"protocol": 17},
    {"count": 3},
    {"padding": b"\0"},
    {"padding": b"\1"},
    {"longer": 1},
    {"longer": -1},
    {"between": b"\1\1\1\1"},
    {"tags": ((0x8100, 5),)},
    {"bad_checksum": 1},
    {"options": b"\1\1\1\0"},
    # As long as it was, though there is something more in it.
    {"options": b"\1\1\1\0", "less": 4},
    {"between": b"\1\1\1\1", "less": 4},
    {"tags": ((0x8100, 5),), "less": 4},
    {"padding": b"\0\0", "less": 2},
    {"vni": VNI + 1},
    {"vni": VNI + 2},
    {"group": 7},
]
"""The differences that a superframe may have from the one before it."""

SUPERFRAMES = st.builds(
    lambda version, changes: superframe(
        version=version, **{k: v for c in changes for k, v in c.items()}
    ),
    st.sampled_from([4, 6]),
    st.lists(st.sampled_from(CHANGES), max_size=2),
)
OTHERS = st.sampled_from(
    [
        vxlan.pack(VNI) + Frame().build(),
        vxlan.pack(VNI + 1) + Frame().build(),
        vxlan.pack(VNI) + Frame(protocol=17, payload=bytes(3000), partial=True).build(),
        vxlan.pack(VNI) + bytes(13),
        bytes(50),
    ]
)
RUNS = st.lists(
    st.tuples(
        st.builds(
            Datagram,
            st.one_of(SUPERFRAMES, SUPERFRAMES, OTHERS),
            st.sampled_from([0, 0, 3]),
            st.sampled_from([0, 0, 1, 2]),
        ),
        st.integers(1, 12),
    ).map(lambda pair: [pair[0]] * pair[1]),
    min_size=1,
    max_size=4,
).map(lambda runs: [*chain(*runs)])
POLICIES = st.sampled_from(
    [
        SegmentPolicy(),
        SegmentPolicy(),
        SegmentPolicy(inner_vlan=InnerVlan.STRIP),
        SegmentPolicy(inner_vlan=InnerVlan.DROP),
        SegmentPolicy(groups=GroupPolicy(0, frozenset((0,)))),
        SegmentPolicy(reserved_bits=0xF7FFFFFF000000FF),
    ]
)


CHECKED_POLICIES = {
    "plain": SegmentPolicy(),
    "strip": SegmentPolicy(inner_vlan=InnerVlan.STRIP),
    "drop": SegmentPolicy(inner_vlan=InnerVlan.DROP),
    "group": SegmentPolicy(groups=GroupPolicy(0, frozenset((0,)))),
    "strict": SegmentPolicy(reserved_bits=0xF7FFFFFF000000FF),
}


def test_a_superframe_that_differs_ends_a_run(subtests: pytest.Subtests) -> None:
    for change, (name, policy), version in product(CHANGES, CHECKED_POLICIES.items(), (4, 6)):
        with subtests.test(name, change=change, version=version):
            fields = change
            if version == 6 and "between" in change:
                extension = {"between": bytes(8), "extension": 60}
                fields = {**change, **extension, "less": 2 * change.get("less", 0)}
            same, other = superframe(version=version), superframe(version=version, **fields)
            datagrams = [Datagram(each) for each in (same, same, same, other, other, same, other)]
            together = run(datagrams, policy, at_once=True)
            assert together[:3] == run(datagrams, policy, at_once=False)[:3]


@pytest.mark.parametrize("version", [4, 6])
def test_padding_that_differs_ends_a_run(version: int) -> None:
    """With octets that are not zero behind it, what looks unfinished is not."""
    frames = [
        superframe(version=version, padding=padding) for padding in (b"\0", b"\0", b"\0", b"\1")
    ]
    datagrams = [Datagram(each) for each in frames * 2]
    assert (
        run(datagrams, SegmentPolicy(), at_once=True)[:3]
        == run(datagrams, SegmentPolicy(), at_once=False)[:3]
    )


def test_a_congestion_mark_ends_a_run() -> None:
    same = superframe(tos=2)
    datagrams = [Datagram(same, tos) for tos in (2, 2, 2, 3, 2, 3, 3, 3, 2)]
    together = run(datagrams, SegmentPolicy(), at_once=True)
    assert together[:3] == run(datagrams, SegmentPolicy(), at_once=False)[:3]
    marks = [frame[10 + 15] & 3 for frame in together.frames]
    assert marks == [2, 2, 2, 3, 2, 3, 3, 3, 2]


def test_another_source_ends_a_run() -> None:
    same = superframe()
    datagrams = [Datagram(same, 0, sender) for sender in (0, 0, 0, 1, 1, 0, 0, 2, 0)]
    together = run(datagrams, SegmentPolicy(), at_once=True)
    assert together[:3] == run(datagrams, SegmentPolicy(), at_once=False)[:3]
    assert together.counters["drop_source_unknown"] == 2
    assert len(together.frames) == 7


@BASIC
@given(datagrams=RUNS, policy=POLICIES, uso=st.booleans())
def test_at_once_as_one_by_one(datagrams: list[Datagram], policy: SegmentPolicy, uso: bool) -> None:
    together = run(datagrams, policy, at_once=True, uso=uso)
    alone = run(datagrams, policy, at_once=False, uso=uso)
    assert together.frames == alone.frames
    assert together.counters == alone.counters
    assert together.fdb == alone.fdb


def test_a_run_of_superframes_is_delivered_unchanged() -> None:
    sizes = [superframe(4, seq=number * 4 * SIZE, sport=5000) for number in range(20)]
    seen = run([Datagram(each) for each in sizes], SegmentPolicy(), at_once=True)
    header = virtio.pack_gso(virtio.GSO_TCPV4, 54, SIZE, 34, 16)
    assert seen.frames == [header + each[8:] for each in sizes]
    assert seen.counters["super_datagrams"] == seen.counters["partial_checksums"] == 20
    assert seen.counters["rx_frames"] == 80
    assert seen.counters["rx_bytes"] == 80 * (54 + SIZE)
    assert [count for _, count in seen.fdb] == [20]


@pytest.fixture
def vtep() -> Iterator[Vtep]:
    with ExitStack() as stack:
        yield Vtep(stack, SegmentPolicy())


def test_a_single_frame_kicks_the_egress(vtep: Vtep) -> None:
    lone = vxlan.pack(VNI) + Frame().build()
    turns = []
    for count in (1, 1, 1, 3, 1, 1):
        for _ in range(count):
            vtep.send(lone)
        before = vtep.turns
        vtep.drain()
        turns.append(vtep.turns - before)
    # Before it is known to come alone, there is no turn; and of several, for the first only.
    assert turns == [0, 1, 1, 1, 0, 1]


def test_a_kick_may_find_the_last_tap_gone(vtep: Vtep) -> None:
    lone = vxlan.pack(VNI) + Frame().build()
    vtep.send(lone)
    vtep.drain()

    def end() -> None:
        for segment in (vtep.segment, vtep.other):
            vtep.ingress.detach(segment)
        vtep.receiver.close()

    vtep.on_turn = end
    vtep.send(lone)
    vtep.drain()
    assert vtep.turns == 1
    assert len(vtep.seen().frames) == 2


# --- many datagrams at a time -------------------------------------------------------------------


class Counting:
    """Counts the single receives and those of many of a receiver."""

    def __init__(self, patch: pytest.MonkeyPatch, vtep: Vtep) -> None:
        self.calls: list[str] = []
        for name in ("receive", "receive_many"):
            patch.setattr(vtep.receiver, name, self._counting(name, getattr(vtep.receiver, name)))

    def _counting(self, name: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting(argument: Any) -> Any:
            before = [*self.calls, name]
            try:
                return call(argument)
            finally:
                # In memory, a receive of many is as many single ones.
                self.calls = before

        return counting

    def take(self) -> list[str]:
        calls, self.calls = self.calls, []
        return calls


def stream(count: int, octets: int = 64, *, flow: int = 0) -> list[bytes]:
    """Return consecutive UDP datagrams of one flow that can be merged."""
    return [
        vxlan.pack(VNI)
        + Frame(protocol=17, payload=bytes(octets), ident=number, sport=5000 + flow).build()
        for number in range(count)
    ]


def test_datagrams_that_come_singly_are_received_many_at_a_time(
    vtep: Vtep, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch, vtep)
    datagrams = stream(100)
    for datagram in datagrams:
        vtep.send(datagram)
    vtep.drain()
    assert counting.take() == ["receive"] * 8 + ["receive_many"]
    for datagram in datagrams:
        vtep.send(datagram)
    vtep.drain()
    assert counting.take() == ["receive_many"]
    seen = vtep.seen()
    assert expanded(seen.frames) == [datagram[8:] for datagram in datagrams] * 2
    assert len(seen.frames) <= 8 + 2 + 2
    assert seen.counters["rx_frames"] == 200
    assert [count for _, count in seen.fdb] == [200]


def test_few_datagrams_are_received_singly_again(
    vtep: Vtep, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch, vtep)

    def turn(count: int) -> list[str]:
        for datagram in stream(count):
            vtep.send(datagram)
        vtep.drain()
        return counting.take()

    assert turn(7) == ["receive"] * 8
    assert turn(20)[-1] == "receive_many"
    # Short pauses of a stream change nothing.
    for _ in range(3):
        assert [turn(1) for _ in range(8)] == [["receive_many"]] * 8
        assert turn(20) == ["receive_many"]
    assert [turn(1) for _ in range(9)] == [["receive_many"]] * 9
    before = vtep.turns
    assert [turn(1) for _ in range(3)] == [["receive"] * 2] * 3
    # Request-response traffic kicks the egress again.
    assert vtep.turns - before == 2


def test_batches_of_the_kernel_are_received_singly_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        vtep = Vtep(stack, SegmentPolicy(), joins=True)
        counting = Counting(monkeypatch, vtep)

        def turn(octets: Sequence[int]) -> str:
            for each in octets:
                vtep.send(stream(1, each)[0])
            vtep.drain()
            return counting.take()[-1]

        assert turn([*range(64, 84)]) == "receive_many"
        assert [turn([64, 64, 65, 65] * 4) for _ in range(9)] == ["receive_many"] * 9
        assert turn([64] * 20) == "receive"
        assert len(expanded(vtep.seen().frames)) == 20 + 9 * 16 + 20


def test_nothing_is_merged_without_offload_gro(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        vtep = Vtep(stack, SegmentPolicy(), gro=False)
        counting = Counting(monkeypatch, vtep)
        for datagram in stream(40):
            vtep.send(datagram)
        vtep.drain()
        assert counting.take()[-1] == "receive_many"
        assert vtep.seen().frames == [virtio.PLAIN + each[8:] for each in stream(40)]


def test_an_error_is_reported_and_the_next_receive_is_single(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[OSError] = []
    with ExitStack() as stack:
        vtep = Vtep(stack, SegmentPolicy())
        monkeypatch.setattr(vtep.ingress, "_on_receive_error", errors.append)
        for datagram in stream(20):
            vtep.send(datagram)
        vtep.drain()
        refused = OSError(errno.ECONNREFUSED, "refused")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vtep.receiver, "receive_many", Mock(side_effect=refused))
            vtep.drain()
        assert errors == [refused]
        counting = Counting(monkeypatch, vtep)
        vtep.drain()
        assert counting.take() == ["receive"]


KIND_NAMES = sorted(KINDS)


@st.composite
def streams(draw: st.DrawFn) -> list[Datagram]:
    """Draw consecutive datagrams of one flow and source, most of which can be merged."""
    octets, flags, tos, sender = draw(
        st.one_of(
            st.tuples(
                st.sampled_from([100, 100, 100, 40]),
                st.sampled_from([ACK, ACK, ACK | PSH]),
                st.sampled_from([0, 0, 0, 3]),
                st.sampled_from([0, 0, 0, 1, 2]),
            ),
            st.tuples(st.integers(0, 9000), st.just(ACK), st.just(0), st.just(0)),
        )
    )
    version, protocol = KINDS[draw(st.sampled_from(KIND_NAMES))]
    base = Frame(version, protocol, bytes(octets), sport=5000 + draw(st.integers(0, 2)))
    count, last = draw(st.integers(1, 24)), draw(st.sampled_from([0, 0, octets // 2]))
    frames = [
        replace(base, ident=number, seq=1 + number * octets, flags=flags) for number in range(count)
    ]
    if last:
        frames.append(replace(frames[-1], ident=count, payload=bytes(last), seq=1 + count * octets))
    return [Datagram(vxlan.pack(VNI) + frame.build(), tos, sender) for frame in frames]


def test_a_mac_that_moves_to_and_fro() -> None:
    """Each move is counted, though what was decided before it is repeated in between."""
    once = vxlan.pack(VNI) + Frame(protocol=17, payload=bytes(9)).build()
    senders = [0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 2, 1] * 3
    datagrams = [Datagram(once, 0, sender) for sender in senders]
    together = run(datagrams, SegmentPolicy(), at_once=True, both_accepted=True)
    alone = run(datagrams, SegmentPolicy(), at_once=False, both_accepted=True)
    assert together[:3] == alone[:3]
    assert alone.counters["fdb_moved"] > 6


def learn_elsewhere(it: Vtep) -> None:
    it.segment.fdb.replace(Frame().src, Remote(STRANGER, 4789), 0.0)


def fill(it: Vtep) -> None:
    it.segment.fdb.max_addresses = 1
    it.segment.fdb.remove(Frame().src)
    it.segment.fdb.learn(b"\2\0\0\0\0\x77", Remote(HOST, 4789), 0.0)


def forget_remote(it: Vtep) -> None:
    it.segment.set_remotes([], 0.0)


def take_mac(it: Vtep) -> None:
    it.segment.own_mac = Frame().src


def learn_nothing(it: Vtep) -> None:
    it.segment.learning = False


def require_group(it: Vtep) -> None:
    it.segment.set_policy(SegmentPolicy(groups=GroupPolicy(7)))


def strip(it: Vtep) -> None:
    it.segment.set_policy(SegmentPolicy(inner_vlan=InnerVlan.STRIP))


def detach(it: Vtep) -> None:
    it.ingress.detach(it.segment)


@pytest.mark.parametrize(
    "change",
    [learn_elsewhere, fill, forget_remote, take_mac, learn_nothing, require_group, strip, detach],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_decision_holds_until_something_changes(
    kind: str, change: Callable[[Vtep], None]
) -> None:
    datagram = vxlan.pack(VNI) + Frame(*KINDS[kind], payload=bytes(9)).build()

    def turns(*, repeats: bool) -> tuple[Seen, int]:
        with ExitStack() as stack:
            it = Vtep(stack, SegmentPolicy())
            if not repeats:
                setattr(it.ingress._decisions, "keep", lambda *_: None)  # noqa: B010
            kept = 0
            for turn in range(6):
                if turn == 3:
                    kept = len(it.ingress._decisions)
                    change(it)
                for _ in range(4):
                    it.send(datagram)
                it.drain()
            return it.seen(), kept

    repeated, kept = turns(repeats=True)
    decided, _ = turns(repeats=False)
    assert kept == 1
    assert repeated == decided


@settings(BASIC, max_examples=100)
@given(
    streams=st.lists(streams(), min_size=2, max_size=12),
    policy=POLICIES,
    uso=st.booleans(),
    interleave=st.randoms(),
)
def test_many_at_a_time_as_one_by_one(
    streams: list[list[Datagram]], policy: SegmentPolicy, uso: bool, interleave: random.Random
) -> None:
    """Whatever flows, sizes and sources are interleaved, each frame arrives as if it came alone."""
    rest = [[*each] for each in streams]
    datagrams: list[Datagram] = []
    while rest:
        chosen = interleave.choice(rest)
        count = interleave.choice([1, 8, 30])
        datagrams += chosen[:count]
        del chosen[:count]
        rest = [each for each in rest if each]
    together = run(datagrams, policy, at_once=True, uso=uso)
    alone = run(datagrams, policy, at_once=False, uso=uso)
    assert expanded(together.frames) == expanded(alone.frames)
    assert together.fdb == alone.fdb
    merged = together.counters.pop("rx_superframes")
    assert alone.counters.pop("rx_superframes") == 0
    assert together.counters == alone.counters
    event(f"{min(merged, 3)} superframes")


# --- kernels that refuse what others take -------------------------------------------------------


class Refusing:
    """Has writes to a TAP refused with an error where `refuses` says so of the virtio header."""

    def __init__(
        self, patch: pytest.MonkeyPatch, refuses: Callable[[bytes], bool], error: int = errno.EINVAL
    ) -> None:
        self.refusals = 0
        self._write, self._refuses, self._error = os.writev, refuses, error
        patch.setattr(os, "writev", self)

    def __call__(self, fd: int, buffers: Sequence[Any]) -> int:
        if self._refuses(bytes(buffers[0])):
            self.refusals += 1
            raise OSError(self._error, os.strerror(self._error))
        return self._write(fd, buffers)


def expanded(frames: Sequence[bytes]) -> list[bytes]:
    """Return the frames that the kernel behind a TAP gets from these virtio headers."""
    done = []
    for octets in frames:
        header, frame = octets[:10], octets[10:]
        if header[1]:
            segments = split(frame, virtio.unpack(header))
            assert segments is not None
            done += segments
        else:
            done.append(finish(frame, header))
    return done


def bursts(kinds: Sequence[tuple[int, int]]) -> list[Datagram]:
    """Segments in a row of each version and protocol, which are merged where they come at once."""
    frames = [
        Frame(version, protocol, bytes(900), ident=7 + at, seq=1 + at * 900)
        for version, protocol in kinds
        for at in range(5)
    ]
    return [Datagram(vxlan.pack(VNI) + frame.build()) for frame in frames]


PROTOCOLS = [(4, 6), (6, 6), (4, 17), (6, 17)]


@pytest.mark.parametrize("refused", ["all", "superframes", "udp"])
@BASIC
@given(datagrams=RUNS, policy=POLICIES, at_once=st.booleans(), uso=st.booleans())
def test_refused_frames_are_delivered_as_plain_frames(
    refused: str, datagrams: list[Datagram], policy: SegmentPolicy, at_once: bool, uso: bool
) -> None:
    refuses: Callable[[bytes], bool] = {
        "all": lambda header: header != virtio.PLAIN,
        "superframes": lambda header: header[1] != 0,
        "udp": lambda header: header[1] == virtio.GSO_UDP_L4,
    }[refused]
    datagrams = [*datagrams, *bursts(PROTOCOLS)]
    taken = run(datagrams, policy, at_once=at_once, uso=uso)
    with pytest.MonkeyPatch.context() as patch:
        refusing = Refusing(patch, refuses)
        instead = run(datagrams, policy, at_once=at_once, uso=uso)
    assert expanded(instead.frames) == expanded(taken.frames)
    assert not any(refuses(frame[:10]) for frame in instead.frames)
    assert instead.counters["tap_header_refused"] == refusing.refusals
    # Padding behind a superframe is no part of its segments.
    same = taken.counters.keys() - {"tap_header_refused", "rx_bytes"}
    assert {name: instead.counters[name] for name in same} == {
        name: taken.counters[name] for name in same
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [(errno.EIO, "drop_tap_down"), (errno.EBADFD, "drop_tap_refused")],
)
def test_a_tap_that_is_down_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, error: int, reason: str
) -> None:
    refusing = Refusing(monkeypatch, lambda _: True, error)
    datagrams = [*bursts(PROTOCOLS), *map(Datagram, [superframe(sport=5000)] * 3)]
    seen = run(datagrams, SegmentPolicy(), at_once=True)
    assert seen.frames == []
    assert seen.counters[reason] == 5 * len(PROTOCOLS) + 3 * 4
    assert seen.counters["rx_frames"] == seen.counters["tap_header_refused"] == 0
    assert refusing.refusals < 5 * len(PROTOCOLS) + 3 * 4  # Not one by one.


def test_merging_is_suspended_if_refused_repeatedly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Refusing(monkeypatch, lambda header: header[1] == virtio.GSO_UDP_L4)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with ExitStack() as stack:
        it = Vtep(stack, SegmentPolicy())

        def burst() -> tuple[int, int]:
            """Of TCP and UDP, with the number of superframes merged and refused."""
            before = it.segment.counters.rx_superframes, refusing.refusals
            it.ingress._deliver_burst(udp_burst(), 8 + 42 + 900, HOST, 0, now)
            it.ingress._deliver_burst(tcp_burst(), 8 + 54 + 900, HOST, 0, now)
            return it.segment.counters.rx_superframes - before[0], refusing.refusals - before[1]

        assert [burst() for _ in range(8)] == [(2, 1)] * 8
        # TCP goes on to be merged; UDP does not, until the pause is over.
        assert burst() == (1, 0)
        now += 61
        assert [burst() for _ in range(8)] == [(2, 1)] * 8
        now += 61
        assert burst() == (1, 0)
        now += 61
        assert burst() == (2, 1)
        it.drain()
        frames = it.seen().frames
    assert len(expanded(frames)) == 10 * 19
    (line,) = caplog.messages
    assert line.startswith(f"vni {VNI}: offload gro no longer merges UDP for the TAP")


def test_a_kernel_that_refuses_few_superframes_gets_the_others() -> None:
    guard = MergeGuard()
    assert not any(guard.refuse(100 * number, 0.0) for number in range(1, 1000))
    assert guard.suspensions == 0


def udp_burst() -> memoryview:
    return memoryview(bytearray(b"".join(each.octets for each in bursts([(4, 17)]))))


def tcp_burst() -> memoryview:
    return memoryview(bytearray(b"".join(each.octets for each in bursts([(4, 6)]))))


# --- overload -----------------------------------------------------------------------------------

HEAVY, LIGHT = 2, 0
"""Senders: another source port of the remote, and its first one."""


def overload(it: Vtep, monkeypatch: pytest.MonkeyPatch, *, light: int) -> list[bytes]:
    """Send more than can be forwarded. Returns: the frames of the heavy flow, in order."""
    # Each look at a clock finds that time has passed.
    ticks, work = iter(range(10**6)), iter(range(10**6))
    clock = Mock(monotonic=lambda: next(ticks) / 40, thread_time=lambda: next(work) / 250)
    for module in ("ingress", "fair_sharing"):
        monkeypatch.setattr(f"vtep.datapath.{module}.time", clock)
    heavy = stream(6000)
    for datagram in heavy:
        it.send(datagram, sender=HEAVY)
    for datagram in stream(light, octets=80, flow=1):
        it.send(datagram, sender=LIGHT)
    it.receiver.waited_s = 0.06
    return [datagram[8:] for datagram in heavy]


@pytest.mark.parametrize("joins", [False, True])
def test_a_heavy_flow_loses_datagrams_and_a_light_one_does_not(
    monkeypatch: pytest.MonkeyPatch, joins: bool
) -> None:
    with ExitStack() as stack:
        it = Vtep(stack, SegmentPolicy(), joins=joins)
        heavy = overload(it, monkeypatch, light=3)
        light = [datagram[8:] for datagram in stream(3, octets=80, flow=1)]
        while not it.receiver.is_empty:
            it.drain()
        seen = it.seen()
    frames = expanded(seen.frames)
    assert [frame for frame in frames if frame in light] == light
    of_heavy = [frame for frame in frames if frame not in light]
    kept = iter(heavy)
    assert of_heavy
    assert all(frame in kept for frame in of_heavy), "in order, and each at most once"
    limited = seen.counters["drop_rx_flow_limited"]
    assert limited > 0
    assert seen.counters["rx_frames"] + limited == 6003
    assert it.segment.counters.last_source[Drop.RX_FLOW_LIMITED] == HOST


def test_a_flow_that_is_alone_loses_nothing(vtep: Vtep, monkeypatch: pytest.MonkeyPatch) -> None:
    heavy = overload(vtep, monkeypatch, light=0)
    while not vtep.receiver.is_empty:
        vtep.drain()
    assert expanded(vtep.seen().frames) == heavy


def test_flows_are_not_told_apart_while_datagrams_wait_briefly(
    vtep: Vtep, monkeypatch: pytest.MonkeyPatch
) -> None:
    overload(vtep, monkeypatch, light=3)
    vtep.receiver.waited_s = 0.049
    while not vtep.receiver.is_empty:
        vtep.drain()
    assert vtep.seen().counters["rx_frames"] == 6003


def test_excess_is_counted_for_the_vni_of_each_datagram(vtep: Vtep) -> None:
    headers = vxlan.pack(VNI), vxlan.pack(VNI + 2), vxlan.pack(VNI), vxlan.pack(99), b"\x08\0"
    datagrams = b"".join(header.ljust(20, b"\0") for header in headers[:-1]) + headers[-1]
    vtep.demux.drop_excess(memoryview(datagrams), 20, HOST)
    counters = vtep.segment.counters, vtep.other.counters, vtep.demux.counters
    assert [each.drops[Drop.RX_FLOW_LIMITED] for each in counters] == [2, 1, 2]
