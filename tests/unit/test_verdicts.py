"""Verdicts that compiled turns repeat: nothing that is seen from outside depends on the path.

The same frames pass a VTEP with compiled turns and one without. Its TAP is a socket pair, and its
remotes are UDP sockets on the loopback device.
"""

import os
import socket
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from random import Random
from typing import Any, NamedTuple

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr

from tests.unit import twins
from tests.unit.craft import MAC_A, VALID, ether, ip6
from tests.unit.steps import syn_sent
from tests.unit.twins import ACK, CHECKSUM_AT, CWR, ECE, FIN, GSO_TYPE, PSH, SYN, TCP, UDP, Frame
from vtep.counters import Counters
from vtep.datapath import Arena, Egress, Ingress, verdicts
from vtep.datapath.pool import Paths, Pool
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import EVERYTHING, PERMANENT, EntryKind, EntryState, Fdb, Filter, Remote
from vtep.forwarding.policy import GroupPolicy, InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.forwarding.storm import Limit, StormLimits
from vtep.forwarding.suppress import Neighbours
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.receiver import UdpReceiver
from vtep.io.socket_options import set_receive_buffer
from vtep.io.tap import Tap
from vtep.offload.sizing import TunnelSizing
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import Buffer, virtio, vxlan
from vtep.wire.ethernet import network_layer
from vtep.wire.flow import flow_hash
from vtep.wire.outer_header import InheritPolicy

pytest.importorskip("numba")

from vtep.fastpath import layout
from vtep.fastpath.table import FastPath

MTU = 1450
VNI = 5
OWN_MAC = b"\x02\0\0\0\0\x01"
MACS = [bytes((2, 0, 0, 0, 1, number)) for number in range(6)]
"""Hosts behind remotes; the last one is unknown at first."""
GUEST = b"\x02\0\0\0\0\x0a"
IP_RECVTTL = 12
IPV6_RECVHOPLIMIT, IPV6_HOPLIMIT = 51, 52
IPV6_FLOWINFO, IPV6_FLOWINFO_SEND = 11, 33


class PairTap(Tap):
    """A TAP whose device is one end of a socket pair, so that no privilege is needed."""

    def __init__(self, *, uso: bool = True) -> None:
        device, self.guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (device, self.guest):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        fd = device.detach()  # `Tap.close` closes it.
        vars(self).update(
            index=1, fd=fd, tso=True, uso=uso, read=partial(os.readv, fd),
            write=partial(os.writev, fd),
        )  # fmt: skip

    def close(self) -> None:
        super().close()
        self.guest.close()

    def received(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what the host has received: virtio headers and frames."""
        while True:
            try:
                data = self.guest.recv(1 << 17)
            except BlockingIOError:
                return
            yield data[: virtio.HEADER_LEN], data[virtio.HEADER_LEN :]


class Clock:
    """The time of both data paths, which passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._worked = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        """Return a processor time. Between two calls, four milliseconds are worked."""
        self._worked += 0.004
        return self._worked


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stop the time, and let compiled turns never pause."""
    clock = Clock()
    for module in ("egress", "ingress", "transmitter", "fair_sharing"):
        monkeypatch.setattr(f"vtep.datapath.{module}.time", clock)
    monkeypatch.setattr(verdicts, "_PAUSE", 0)
    return clock


class Repeats:
    """The fast path of a process. It counts how many frames were handled by rows."""

    def __init__(self) -> None:
        self.fast = FastPath(self._on_failed)
        self.done = 0
        self.errors: list[Exception] = []
        for turn in (self.fast.transmit.turn, self.fast.receive.turn):
            turn.run = partial(self._run, turn, turn.run)  # type: ignore[method-assign]

    def _on_failed(self, error: Exception) -> None:
        self.errors.append(error)

    def _run(self, turn: Any, run: Callable[..., None], *args: Any) -> None:
        run(*args)
        self.done += int(turn.result[layout.RESULT_DONE])


# --- frames -------------------------------------------------------------------------------------

ODDITIES = list(VALID.values())
TIMESTAMPS = b"\1\1\x08\x0a12345678"


def plain(kind: Random, random: Random, **fields: Any) -> tuple[bytes, bytes]:
    """Build a virtio header and a frame, mostly of the usual kinds.

    `kind` decides about what like frames have in common.
    """
    if kind.random() < 0.15:
        return virtio.PLAIN, fields["dst"] + fields["src"] + kind.choice(ODDITIES)[12:]
    version, protocol = kind.choice([4, 6]), kind.choice([TCP, TCP, UDP])
    between = b"\x94\4\0\0" if version == 4 else b"\0\0\1\4\0\0\0\0"
    frame = Frame(
        version,
        protocol,
        payload=random.randbytes(kind.choice([0, 1, 3, 8, 600, 600, 600, 1300, 1360, 1420, 1500])),
        tags=kind.choice([(), (), (), ((0x8100, 7),), ((0x88A8, 7),), ((0x8100, 7), (0x8100, 8))]),
        source=kind.choice([1, 2, 3]),
        sport=random.choice([1000, 1001, 1002]),
        tos=kind.choice([0, 0, 0, 0, 1, 2, 3, 0xB8]),
        ttl=random.choice([64, 64, 64, 9]),
        label=random.choice([0, 0, 0, 77]),
        ident=random.randrange(1 << 16),
        seq=random.randrange(1 << 32),
        fragment=kind.choice([0x4000, 0x4000, 0x4000, 0, 0, 0, 0x2000, 0x2010]),
        flags=random.choice([ACK] * 6 + [ACK | PSH, ACK | FIN, SYN, SYN | ACK, ACK | CWR]),
        options=TIMESTAMPS if protocol == TCP and kind.random() < 0.3 else b"",
        between=between if kind.random() < 0.1 else b"",
        extension=kind.choice([0, 60]),
        padding=kind.choice([b"", b"", b"", b"", bytes(6), b"junk"]),
        partial=kind.random() < 0.4,
        bad_checksum=random.random() < 0.1,
        bad_ip_checksum=random.random() < 0.1 if version == 4 else 0,
        longer=kind.choice([0] * 8 + [1, -1]),
        **fields,
    )
    needs_csum = virtio.pack_needs_csum(frame.shape.upper, CHECKSUM_AT[protocol])
    return needs_csum if frame.partial and not frame.bad_checksum else virtio.PLAIN, frame.build()


def superframe(kind: Random, random: Random, **fields: Any) -> tuple[bytes, bytes]:
    """Build a superframe with its virtio header, which may be wrong."""
    version, protocol = kind.choice([(4, TCP), (6, TCP), (4, UDP), (6, UDP)])
    size = kind.choice([100, 500, 1300, 1360, 1500])
    frame = Frame(
        version,
        protocol,
        payload=random.randbytes(random.randrange(1, size * 20)),
        tags=kind.choice([(), (), ((0x8100, 7),)]),
        sport=kind.choice([1000, 1001]),
        ident=random.randrange(1 << 16),
        seq=random.randrange(1 << 32),
        tos=kind.choice([0, 0, 2]),
        flags=kind.choice([ACK, ACK, ACK | PSH, ACK | FIN | CWR, ACK | ECE | CWR, SYN | ACK]),
        options=TIMESTAMPS if protocol == TCP and kind.random() < 0.5 else b"",
        partial=True,
        **fields,
    )
    gso_type = GSO_TYPE[version, protocol]
    if protocol == TCP and frame.flags & CWR:
        gso_type |= twins.GSO_ECN
    if random.random() < 0.05:
        gso_type = random.choice([1, 4, 5, 3])
    if random.random() < 0.05:
        size = random.choice([0, 1, 60000])
    checksum_at = frame.shape.upper, CHECKSUM_AT[protocol]
    return virtio.pack_gso(gso_type, frame.head_len, size, *checksum_at), frame.build()


class Mix:
    """Frames of some kinds in random order."""

    def __init__(
        self, seed: int, macs: list[bytes], kinds: int = 16, superframes: float = 0.3
    ) -> None:
        self.random = Random(seed)
        self._kinds = [
            (superframe if self.random.random() < superframes else plain,
             self.random.random(), self.random.choice(macs))
            for _ in range(kinds)
        ]  # fmt: skip

    def frames(self) -> list[tuple[bytes, bytes]]:
        """Draw frames for one turn: often few, since one that is returned blocks its flow."""
        drawn = self.random.choices(self._kinds, k=self.random.choice([1, 2, 3, 5, 40]))
        return [build(Random(kind), self.random, dst=mac, src=GUEST) for build, kind, mac in drawn]


# --- egress -------------------------------------------------------------------------------------


class Datagram(NamedTuple):
    """A datagram as a remote receives it."""

    remote: int
    sport: int
    tos: int
    ttl: int
    label: int
    data: bytes

    @property
    def flow(self) -> tuple[int, bytes, int]:
        """Remote, destination MAC with VLAN tags, and flow hash: frames of one flow keep order."""
        frame = self.data[vxlan.HEADER_LEN :]
        return self.remote, frame[:6] + frame[12 : network_layer(frame)[1]], flow_hash(frame)


class RemoteSocket:
    """A remote: a UDP socket that tells the outer header fields of datagrams."""

    def __init__(self, family: socket.AddressFamily) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        set_receive_buffer(self.sock, 1 << 24)
        if family == socket.AF_INET:
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            self.sock.bind(("127.0.0.1", 0))
        else:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO, 1)
            self.sock.bind(("::1", 0))
        host, port, *_ = self.sock.getsockname()
        self.remote = Remote(host, port)

    def datagrams(self, number: int) -> Iterator[Datagram]:
        while True:
            try:
                data, control, _, source = self.sock.recvmsg(1 << 16, 256)
            except BlockingIOError:
                return
            fields = {kind: int.from_bytes(value[:4], "little") for _, kind, value in control}
            tos = fields.get(socket.IP_TOS, fields.get(socket.IPV6_TCLASS, 0))
            ttl = fields.get(socket.IP_TTL, fields.get(IPV6_HOPLIMIT, 0))
            label = next(
                (int.from_bytes(v, "big") & 0xFFFFF for _, k, v in control if k == IPV6_FLOWINFO), 0
            )
            yield Datagram(number, source[1], tos, ttl, label, data)


class Sending:
    """The sending half of a VTEP with three remotes, and what they receive."""

    def __init__(
        self,
        stack: ExitStack,
        clock: Clock,
        repeats: Repeats | None,
        vni: int = VNI,
        beside: "Sending | None" = None,
    ) -> None:
        self.clock = clock
        self.tap = stack.enter_context(closing(PairTap()))
        families = (socket.AF_INET, socket.AF_INET, socket.AF_INET6)
        self.sockets: list[RemoteSocket] = (
            beside.sockets if beside else [RemoteSocket(each) for each in families]
        )
        for each in self.sockets:
            stack.enter_context(closing(each.sock))
        self.remotes = [each.remote for each in self.sockets]
        self.fdb = Fdb(vni, 4789, ageing=300, max_addresses=0)
        self.segment = Segment(vni, self.remotes[:1], self.fdb, own_mac=OWN_MAC, learning=True)
        first, second, third = self.remotes
        for mac, remote in zip(MACS, (first, second, third, first), strict=False):
            self.fdb.add(mac, remote, clock.now, EntryKind(EntryState.DYNAMIC))
        self.fdb.append(MACS[3], second, clock.now, EntryKind(EntryState.DYNAMIC))
        self.fdb.add(MACS[4], replace_vni(second, 99), clock.now, PERMANENT)
        self.pool: Pool = beside.pool if beside else Pool()
        self.sizing = TunnelSizing(self.segment.header, self.segment.counters, MTU, "auto")
        self.paths = self.make_paths()
        stack.callback(lambda: self.paths.close())  # noqa: PLW0108  those of the end of the test
        self.lost: list[OSError] = []
        self.egress = Egress(
            *(self.tap, self.segment, self.paths, self.sizing, AckTracker(), Arena()),
            self.lost.append,
        )
        self.fdb.members.on_remote_unused = self._release
        if repeats is not None:
            self.egress.use_fast_path(repeats.fast)
        self.seen: list[Datagram] = []

    def make_paths(
        self,
        *,
        gso: bool = True,
        ports: int = 100,
        outer: dict[str, Any] | None = None,
        **inherit: Any,
    ) -> Paths:
        bindings = {4: Binding(socket.AF_INET, None, None), 6: Binding(socket.AF_INET6, None, None)}
        options = OuterHeaderOptions(srcport=range(40000, 40000 + ports), **(outer or {}))
        return Paths(
            *(self.pool, bindings, options, InheritPolicy(**inherit)),
            lambda _remote, _mtu: None,
            gso=gso,
        )

    def use_paths(self, **options: Any) -> None:
        """Send on other paths, as after a change of options."""
        former, self.paths = self.paths, self.make_paths(**options)
        self.egress.use_paths(self.paths)
        former.close()

    def _release(self, remote: Remote) -> None:
        self.paths.release(remote)

    def turn(self, frames: list[tuple[bytes, bytes]]) -> None:
        """Read these frames in few turns, until none is left."""
        for at in range(0, len(frames), 40):
            for header, frame in frames[at : at + 40]:
                self.tap.guest.send(header + frame)
            for _ in range(8):  # A turn of the slow path takes 8 superframes.
                self.egress.readable()
                for number, each in enumerate(self.sockets):
                    self.seen += each.datagrams(number)

    def outcome(self) -> dict[str, Any]:
        """Return all that there is to be seen, and forget the datagrams."""
        flows = defaultdict(list)
        ports = defaultdict(set)
        for each in self.seen:
            flows[each.flow].append(each._replace(sport=0))
            ports[each.remote, each.sport].add(each.flow)
        self.seen = []
        return {
            "flows": dict(flows),
            "ports": Counter((remote, frozenset(group)) for (remote, _), group in ports.items()),
            "counters": counters_of(self.segment.counters),
            "remotes": remotes_of(self.segment),
            "entries": entries_of(self.segment),
            "replies": list(self.tap.received()),
            "waiting": len(self.egress._transmitter.waiting),
        }


def replace_vni(remote: Remote, vni: int) -> Remote:
    return Remote(remote.host, remote.port, vni)


def counters_of(counters: Counters) -> dict[str, int]:
    """Return all counters but those of system calls, which are what compiled turns save."""
    counts = counters.as_dict()
    assert counts.pop("tx_syscalls") <= counts["tx_datagrams"]
    del counts["rx_syscalls"]
    return counts


def remotes_of(segment: Segment) -> dict[str, tuple[object, ...]]:
    """Return what was exchanged with each remote."""
    segment.remote_counters.settle()
    remotes = segment.remote_counters
    # The total also has what remotes have sent that were removed since.
    assert sum(each.rx_frames for each in remotes.values()) <= segment.counters.rx_frames
    assert sum(each.rx_bytes for each in remotes.values()) <= segment.counters.rx_bytes
    return {
        host: (each.rx_frames, each.rx_bytes, each.tx_frames, each.tx_bytes, each.last_rx)
        for host, each in remotes.items()
    }


def entries_of(segment: Segment) -> list[tuple[object, ...]]:
    fdb = segment.fdb
    entries = [*fdb, *([fdb.default] if fdb.default is not None else [])]
    return sorted(
        (
            each.mac,
            [remote.host for remote in each.destinations],
            each.updated,
            each.tx_frames,
            each.rx_frames,
        )
        for each in entries
    )


def assert_equal(fast: dict[str, Any], slow: dict[str, Any]) -> None:
    assert fast["counters"] == slow["counters"]
    assert fast["entries"] == slow["entries"]
    for flow, frames in slow["flows"].items():
        assert fast["flows"].get(flow) == frames
    assert fast == slow


SEEDS = int(os.environ.get("VERDICT_SEEDS", "12"))
"""Random sequences of each kind."""

INHERITED = ("inherit_tos", "inherit_ttl", "inherit_df", "inherit_flowlabel")
SENDING_OPTIONS: list[dict[str, Any]] = [
    {},
    *({name: True} for name in INHERITED),
    dict.fromkeys(INHERITED, True),
    {"ecn": "kernel"},
    {"gso": False},
    {"ports": 2},
]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_frames_leave_as_from_the_slow_path(clock: Clock, seed: int) -> None:
    repeats, mix = Repeats(), Mix(seed, MACS)
    options = SENDING_OPTIONS[seed % len(SENDING_OPTIONS)]
    with ExitStack() as stack:
        vnis = [
            [Sending(stack, clock, fast, vni) for fast in (repeats, None)] for vni in (VNI, VNI + 1)
        ]
        for side in (*vnis[0], *vnis[1]):
            side.use_paths(**options)
        for _ in range(25):
            for fast, slow in vnis:
                frames = mix.frames()
                fast.turn(frames)
                slow.turn(frames)
                assert_equal(fast.outcome(), slow.outcome())
            clock.now += 0.5
    assert repeats.done
    assert not repeats.errors


# --- changes that make rows of the egress invalid -----------------------------------------------


def usual(number: int, *, unknown: bool = False) -> list[tuple[bytes, bytes]]:
    """Build frames that rows can be made for, with other contents for each number.

    With `unknown`, there is also one to an unknown destination.
    """
    random = Random(number)
    built = []
    for mac in (*MACS[:3], MACS[4]):
        for version, protocol in ((4, TCP), (6, UDP)):
            frame = Frame(
                version, protocol, payload=random.randbytes(600), dst=mac, src=GUEST, tos=3,
                tags=((0x8100, 7),) if mac == MACS[1] else (),
            )  # fmt: skip
            built.append((virtio.PLAIN, frame.build()))
    frame = Frame(payload=random.randbytes(5000), dst=MACS[0], src=GUEST, partial=True)
    gso = virtio.pack_gso(1, frame.head_len, 1000, frame.shape.upper, 16)
    without_df = Frame(fragment=0, payload=random.randbytes(600), dst=MACS[0], src=GUEST, tos=3)
    built += [(gso, frame.build()), (virtio.PLAIN, without_df.build())]
    if unknown:
        flooded = Frame(payload=random.randbytes(600), dst=MACS[5], src=GUEST)
        built.append((virtio.PLAIN, flooded.build()))
    return built


def _replace(side: Sending, mac: int, remote: int, kind: EntryKind = PERMANENT) -> None:
    side.fdb.replace(MACS[mac], side.remotes[remote], side.clock.now, kind)


def _expire(side: Sending) -> None:
    side.clock.now += 1000
    while side.segment.sweep(side.clock.now):
        pass


def _move(side: Sending) -> None:
    side.segment.admit(MACS[0], side.remotes[1].host, side.clock.now)


def _reopen(side: Sending) -> None:
    """Close the sockets, and let others have their descriptors."""
    side.pool.reconnect(None)
    with ExitStack() as stack:
        # They would be sent to, if a row still named them.
        for _ in range(64):
            other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            other.connect((side.remotes[1].host, side.remotes[1].port))
        side.turn(usual(50))


def _set_aside(side: Sending) -> None:
    while side.pool.senders._active:
        side.pool.senders._set_next_aside()


def _evict(side: Sending) -> None:
    while len(side.pool.senders):
        side.pool.senders._evict()


def _vacate(side: Sending) -> None:
    for family in (socket.AF_INET, socket.AF_INET6):
        for port in range(40000, 40100):
            side.pool.senders.vacate(family, port)


def _proxy(side: Sending) -> None:
    side.segment.set_neighbours(Neighbours(side.fdb, ageing=300, max_neighbours=10))


def _set_mtu(side: Sending) -> None:
    side.sizing.mtu = 500


def _rearrange(side: Sending) -> None:
    """Remove a remote, and add it again: its path is closed, and another one is made."""
    side.fdb.flush(Filter(dst=side.remotes[0].host))
    side.segment.set_remotes(side.remotes[2:], side.clock.now)
    side.turn(usual(51))
    side.segment.set_remotes(side.remotes[:1], side.clock.now)
    side.fdb.append(MACS[0], side.remotes[0], side.clock.now)


def _set_policy(**options: Any) -> Callable[[Sending], None]:
    def change(side: Sending) -> None:
        side.segment.set_policy(SegmentPolicy(**options))
        side.use_paths()

    return change


EGRESS_CHANGES: dict[str, Callable[[Sending], object]] = {
    "add": lambda side: side.fdb.add(MACS[5], side.remotes[0], side.clock.now),
    "replace": lambda side: _replace(side, 0, 1),
    "replace the kind": lambda side: _replace(side, 0, 0),
    "append": lambda side: side.fdb.append(MACS[0], side.remotes[1], side.clock.now),
    "remove": lambda side: side.fdb.remove(MACS[0]),
    "flush": lambda side: side.fdb.flush(),
    "move": _move,
    "expire": _expire,
    "dstport": lambda side: side.fdb.set_port(4790),
    "other remotes": lambda side: side.segment.set_remotes(side.remotes[1:], side.clock.now),
    "no remotes": lambda side: side.segment.set_remotes((), side.clock.now),
    "rearrange": _rearrange,
    "gbp": _set_policy(groups=GroupPolicy(77)),
    "strip": _set_policy(inner_vlan=InnerVlan.STRIP),
    "drop": _set_policy(inner_vlan=InnerVlan.DROP),
    "proxy": _proxy,
    "mtu": _set_mtu,
    "gso": lambda side: side.use_paths(gso=False),
    "ports": lambda side: side.use_paths(ports=1),
    "ttl": lambda side: side.use_paths(outer={"ttl": 9}),
    "tos": lambda side: side.use_paths(outer={"tos": 0xB8}, tos=0xB8),
    "flowlabel": lambda side: side.use_paths(outer={"flowlabel": 5}),
    "df": lambda side: side.use_paths(outer={"df": True}),
    "udpcsum": lambda side: side.use_paths(outer={"udpcsum": False}),
    "inherit": lambda side: side.use_paths(**dict.fromkeys(INHERITED, True)),
    "ecn": lambda side: side.use_paths(ecn="kernel"),
    "reconnect": lambda side: side.pool.reconnect(None),
    "reopen": _reopen,
    "set aside": _set_aside,
    "evict": _evict,
    "vacate": _vacate,
}  # fmt: skip


@pytest.mark.parametrize("name", EGRESS_CHANGES)
def test_a_change_applies_to_the_next_frame_sent(clock: Clock, name: str) -> None:
    repeats = Repeats()
    with ExitStack() as stack:
        sides = [Sending(stack, clock, fast) for fast in (repeats, None)]
        fast, slow = sides
        for number in range(3):
            repeats.done = 0
            for side in sides:
                side.turn(usual(number, unknown=True))
            assert_equal(fast.outcome(), slow.outcome())
        assert repeats.done == len(usual(0))
        before = clock.now
        for side in sides:
            clock.now = before
            EGRESS_CHANGES[name](side)
        for number in range(3, 6):
            for side in sides:
                side.turn(usual(number, unknown=True))
            assert_equal(fast.outcome(), slow.outcome())
    assert not repeats.errors


# --- storm control ------------------------------------------------------------------------------

GROUPS = [b"\xff" * 6, b"\1\0\x5e\1\1\1", b"\x33\x33\xff\0\0\1"]
ARP = b"\x08\x06\0\1\x08\0\6\4\0\1" + bytes(38)
"""From the EtherType on."""
STORM_LIMITS = [
    StormLimits(Limit(64, 40), Limit(32, 20), Limit(16, 30)),
    StormLimits(broadcast=Limit(1, 1)),
    StormLimits(multicast=Limit(128, 5)),
    StormLimits(unknown_unicast=Limit(8, 4)),
]


def storm_frames(random: Random, count: int) -> list[tuple[bytes, bytes]]:
    """Draw frames of one size, of which most go to groups and unknown MACs."""
    frames = []
    for _ in range(count):
        to = random.choice([*GROUPS, *GROUPS, *MACS[:3], MACS[5], MACS[5], b"\2\0\0\0\0\x99"])
        if random.random() < 0.3:
            frames.append((virtio.PLAIN, to + GUEST + ARP))
        else:
            built = Frame(
                random.choice([4, 6]), UDP, payload=random.randbytes(18), dst=to, src=GUEST
            )
            frames.append((virtio.PLAIN, built.build()))
    return frames


@pytest.mark.parametrize("seed", range(SEEDS))
def test_storms_from_the_tap_are_limited_as_on_the_slow_path(clock: Clock, seed: int) -> None:
    repeats, random = Repeats(), Random(seed)
    with ExitStack() as stack:
        sides = [Sending(stack, clock, each) for each in (repeats, None)]
        fast, slow = sides
        for side in sides:
            # A group with one destination of its own, which has rows.
            side.fdb.add(GROUPS[1], side.remotes[1], clock.now, PERMANENT)
        for number in range(40):
            if number % 10 == 0:
                for side in sides:
                    side.segment.set_storm_limits(STORM_LIMITS[(seed + number // 10) % 4])
            frames = storm_frames(random, random.choice([1, 10, 40, 120]))
            for side in sides:
                side.turn(frames)
            assert_equal(fast.outcome(), slow.outcome())
            clock.now += random.choice([0, 0.0625, 0.5, 2])
        drops = fast.segment.counters.as_dict()
        for kind in ("broadcast", "multicast", "unknown_unicast"):
            assert drops[f"drop_storm_{kind}_tx"] > 20
    assert not repeats.errors


# --- ingress ------------------------------------------------------------------------------------

HOSTS = ["127.0.0.2", "127.0.0.3", "127.0.0.9"]
"""Two remotes, and a stranger."""


class Arrival(NamedTuple):
    """One send of a remote: datagrams of `stride` octets, of which the last may be shorter."""

    sender: int
    tos: int
    stride: int
    data: bytes


class Receiving:
    """The receiving half of a VTEP with two VNIs, and what their hosts receive."""

    def __init__(
        self,
        stack: ExitStack,
        clock: Clock,
        repeats: Repeats | None,
        *,
        gro: bool = True,
        uso: bool = True,
    ) -> None:
        self.clock = clock
        self.stack = stack
        self.taps = [stack.enter_context(closing(PairTap(uso=uso))) for _ in range(2)]
        self.fdbs = [Fdb(vni, 4789, ageing=300, max_addresses=4) for vni in (VNI, VNI + 2)]
        self.segments = [
            Segment(
                fdb.members.vni,
                [Remote(host, 4789) for host in hosts],
                fdb,
                own_mac=OWN_MAC,
                learning=True,
            )
            for fdb, hosts in zip(self.fdbs, (HOSTS[:2], HOSTS[:1]), strict=True)
        ]
        self.demux = Demux((), 4789)
        self.receiver = UdpReceiver.open(Binding(socket.AF_INET, None, None), 0, gro=gro)
        stack.callback(lambda: self.receiver.close())  # noqa: PLW0108  that of the end of the test
        self.errors: list[OSError] = []
        self.ingress = Ingress([self.receiver], self.demux, self.errors.append)
        self.kicks = 0
        self.sizings = [
            TunnelSizing(segment.header, segment.counters, MTU, "off") for segment in self.segments
        ]
        self.trackers = [AckTracker(), AckTracker()]
        for number in range(2):
            self.attach(number)
        if repeats is not None:
            self.ingress.use_fast_path(repeats.fast)
        self.senders = []
        for host in HOSTS:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind((host, 0))
            self.senders.append(sock)
        self.frames: dict[object, list[bytes]] = defaultdict(list)

    def attach(self, number: int, *, fast_path: bool = True) -> None:
        self.ingress.attach(
            *(
                self.segments[number],
                self.taps[number],
                self.sizings[number],
                self.trackers[number],
            ),
            self._kick,
            fast_path=fast_path,
        )

    def _kick(self) -> None:
        self.kicks += 1

    def turn(self, arrivals: list[Arrival], turns: int = 6) -> None:
        """Receive what remotes send, in few turns, until nothing is left."""
        self.send(arrivals)
        for _ in range(turns):
            self.ingress.readable(self.receiver)
            self.collect()

    def send(self, arrivals: list[Arrival]) -> None:
        """Send from remotes to the receiver."""
        address = "127.0.0.1", self.receiver.address[1]
        for sender, tos, stride, data in arrivals:
            control = [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("i", tos))]
            if len(data) > stride:
                control.append((17, 103, struct.pack("H", stride)))
            self.senders[sender].sendmsg([data], control, 0, address)

    def collect(self) -> None:
        for number, tap in enumerate(self.taps):
            for header, frame in tap.received():
                for each in segments_of(header, frame):
                    flow = number, each[:14] + each[14 : network_layer(each)[1]], flow_hash(each)
                    self.frames[flow].append(each)

    def outcome(self, *, merges: bool = True) -> dict[str, Any]:
        all_counters = [segment.counters for segment in self.segments]
        all_counters.append(self.demux.counters)
        # The paths merge differently: what is merged in one may be single frames in the other.
        ignored = ("rx_superframes", "partial_checksums") if merges else ()
        counters = [
            {n: count for n, count in counters_of(each).items() if count and n not in ignored}
            for each in all_counters
        ]
        frames, self.frames = dict(self.frames), defaultdict(list)
        return {
            "flows": frames,
            "counters": counters,
            "remotes": [remotes_of(segment) for segment in self.segments],
            "entries": [entries_of(segment) for segment in self.segments],
            "errors": [error.errno for error in self.errors],
            "neighbours": [neighbours_of(segment) for segment in self.segments],
        }


def neighbours_of(segment: Segment) -> list[tuple[object, ...]]:
    known = segment.neighbours if segment.neighbours is not None else ()
    return [(each.packed, each.mac, each.updated) for each in known]


def segments_of(header: bytes, frame: bytes) -> list[bytes]:
    """Return the frames that the kernel of a TAP makes of a frame or superframe."""
    gso = virtio.unpack(header)
    if gso.gso_type != virtio.GSO_NONE:
        assert gso.flags == virtio.FLAG_NEEDS_CSUM
        found = twins.split(frame, gso)
        assert found is not None
        return found
    if gso.flags:
        finished = bytearray(frame)
        value = twins.loop_sum(frame[gso.csum_start :]) ^ 0xFFFF
        if not value and gso.csum_offset == 6:
            value = 0xFFFF
        struct.pack_into("!H", finished, gso.csum_start + gso.csum_offset, value)
        frame = bytes(finished)
    return [frame]


DAMAGES: list[dict[str, Any]] = [
    {"bad_checksum": 1}, {"flags": ACK | PSH}, {"seq": 5}, {"ident": 9}, {"ttl": 9},
    {"flags": SYN}, {"partial": True},
]  # fmt: skip
"""Differences that end a run of segments."""


GROUP_HEADERS = (0x88000005, 0x88000005, 0x88400005, 0x88400005, 0x88080006, 0x88000006)
"""Headers of frames of a group: some with the flag D, Don't Learn, or A, policy applied."""

POLICIES = (
    SegmentPolicy(),
    SegmentPolicy(groups=GroupPolicy(7, frozenset({0, 5}))),
    SegmentPolicy(inner_vlan=InnerVlan.STRIP),
    SegmentPolicy(),
    SegmentPolicy(reserved_bits=0x00FFFFFF << 32, inner_vlan=InnerVlan.DROP),
)


class Arrivals:
    """Datagrams of some kinds in random order."""

    def __init__(self, seed: int, kinds: int = 12) -> None:
        self.random = random = Random(seed)
        self._kinds = [
            (random.random(), random.choice([*MACS[:5], OWN_MAC, *([MACS[0]] * 6)]),
             random.choice([0, 0, 0, 0, 1, 2]), random.choice([0, 0, 0, 0, 1, 2, 3]),
             self._header())
            for _ in range(kinds)
        ]  # fmt: skip

    def _header(self) -> bytes:
        vni = self.random.choice([VNI, VNI, VNI, VNI, VNI + 2, VNI + 2, VNI + 1])
        first = self.random.choice([8 << 24] * 8 + [0, 12 << 24, 0x08000001, *GROUP_HEADERS])
        return struct.pack("!II", first, vni << 8 | (self.random.random() < 0.1))

    def draw(self) -> list[Arrival]:
        drawn = self.random.choices(self._kinds, k=self.random.choice([1, 1, 2, 3, 12]))
        # Within a turn, no MAC moves back and forth: flows may overtake each other.
        senders = {mac: sender for _, mac, sender, *_ in drawn}
        return [
            arrival
            for seed, mac, _, tos, header in drawn
            for arrival in self._arrivals(seed, mac, senders[mac], tos, header)
        ]

    def _arrivals(
        self, seed: float, mac: bytes, sender: int, tos: int, header: bytes
    ) -> list[Arrival]:
        random, kind = self.random, Random(seed)
        form = kind.choice(
            ["plain", "plain", "run", "run", "run", "batch", "batch", "superframe", "runt"]
        )
        if form == "runt":
            data = (header + random.randbytes(14))[: random.choice([0, 4, 8, 20, 22])]
            return [Arrival(sender, tos, max(1, len(data)), data)]
        if form == "plain":
            data = header + plain(kind, random, dst=GUEST, src=mac)[1]
            return [Arrival(sender, tos, len(data), data)]
        version, protocol = kind.choice([(4, TCP), (6, TCP), (4, UDP), (6, UDP)])
        base = Frame(
            version, protocol, dst=GUEST, src=mac, sport=kind.choice([1000, 1001]),
            tags=kind.choice([(), (), ((0x8100, 7),)]), tos=kind.choice([0, 0, 2]),
            ident=random.randrange(1 << 16), seq=random.randrange(1 << 32),
            partial=kind.random() < 0.2,
            options=TIMESTAMPS if protocol == TCP and kind.random() < 0.5 else b"",
        )  # fmt: skip
        size = kind.choice([20, 600, 1300])
        if form == "superframe":
            # One that a kernel has not segmented. UDP_GRO reports it as several datagrams.
            frame = replace(
                base, payload=random.randbytes(random.randint(1, 20) * size), partial=True
            )
            data = header + frame.build()
            stride = (
                len(header) + frame.head_len + size
                if protocol == UDP and random.random() < 0.5
                else len(data)
            )
            if kind.random() < 0.3 and stride < len(data):  # A forged one.
                forged = bytearray(data)
                for at in range(stride, len(data) - 30, stride):
                    forged[at : at + 8] = random.choice(
                        [header, struct.pack("!II", 8 << 24, (VNI + 2) << 8)]
                    )
                data = bytes(forged)
            return [Arrival(sender, tos, stride, data)]
        run = twins.segment_run(
            base, random.randint(2, 20), size, last=random.choice([size, size, 7])
        )
        if random.random() < 0.3:
            at = random.randrange(len(run))
            damage = random.choice(DAMAGES)
            run[at] = replace(run[at], **damage)
        datagrams = [header + frame.build() for frame in run]
        if form == "batch":
            return [Arrival(sender, tos, len(datagrams[0]), b"".join(datagrams))]
        return [Arrival(sender, tos, len(each), each) for each in datagrams]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_frames_arrive_as_from_the_slow_path(clock: Clock, seed: int) -> None:
    repeats, arrivals = Repeats(), Arrivals(seed)
    gro, policy = seed % 3 > 0, POLICIES[seed % len(POLICIES)]
    with ExitStack() as stack:
        fast, slow = (
            Receiving(stack, clock, each, gro=gro, uso=seed % 4 > 0) for each in (repeats, None)
        )
        for side in (fast, slow):
            for segment in side.segments:
                segment.set_policy(policy)
                if seed % 2:
                    neighbours = Neighbours(segment.fdb, ageing=300, max_neighbours=10)
                    segment.set_neighbours(neighbours)
        for _ in range(25):
            drawn = arrivals.draw()
            fast.turn(drawn)
            slow.turn(drawn)
            assert_equal(fast.outcome(merges=gro), slow.outcome(merges=gro))
            clock.now += 0.5
    assert not repeats.done or policy.groups is None
    assert not repeats.errors


@pytest.mark.parametrize("seed", range(SEEDS))
def test_storms_from_remotes_are_limited_as_on_the_slow_path(clock: Clock, seed: int) -> None:
    repeats, random = Repeats(), Random(seed)
    with ExitStack() as stack:
        # Merged frames take their tokens together, so both paths are compared without.
        sides = [Receiving(stack, clock, each, gro=False) for each in (repeats, None)]
        fast, slow = sides
        for number in range(40):
            if number % 10 == 0:
                for side in sides:
                    for segment in side.segments:
                        segment.set_storm_limits(STORM_LIMITS[(seed + number // 10) % 4])
            arrivals = []
            for _, frame in storm_frames(random, random.choice([1, 10, 60])):
                data = vxlan.pack(random.choice([VNI, VNI, VNI + 2, VNI + 1]))
                sender = random.choice([0, 0, 1, 2])
                data += frame[:6] + MACS[sender] + frame[12:]
                arrivals.append(Arrival(sender, 0, len(data), data))
            for side in sides:
                side.turn(arrivals)
            assert_equal(fast.outcome(merges=False), slow.outcome(merges=False))
            clock.now += random.choice([0, 0.0625, 0.5, 2])
        drops = fast.segments[0].counters.as_dict()
        assert drops["drop_storm_broadcast_rx"] + drops["drop_storm_multicast_rx"]
    assert not repeats.errors


def test_batches_of_a_storm_are_limited_as_on_the_slow_path(clock: Clock) -> None:
    """The kernel joins equal datagrams. Those that are not IP cannot be separated in a turn."""
    repeats = Repeats()
    with ExitStack() as stack:
        sides = [Receiving(stack, clock, each) for each in (repeats, None)]
        fast, slow = sides
        for side in sides:
            side.segments[0].set_storm_limits(StormLimits(broadcast=Limit(64, 64)))
        data = (vxlan.pack(VNI) + GROUPS[0] + MACS[0] + b"\x88\xb5" + bytes(46)) * 30
        for _ in range(60):
            for side in sides:
                side.turn([Arrival(0, 0, len(data) // 30, data)])
            assert_equal(fast.outcome(), slow.outcome())
            clock.now += 0.125
        counters = fast.segments[0].counters.as_dict()
        assert counters["drop_storm_broadcast_rx"] > 100
        assert counters["rx_frames"] + counters["drop_storm_broadcast_rx"] == 60 * 30
    assert not repeats.errors


# --- more datagrams than can be forwarded -------------------------------------------------------


def batch_of(flow: int, number: int, count: int = 60) -> Arrival:
    """Build the batch with a number of a flow, each of which has a sender of its own."""
    datagrams = [
        vxlan.pack(VNI)
        + Frame(
            protocol=UDP, dst=GUEST, src=MACS[flow], payload=struct.pack("!II", number, each)
        ).build()
        for each in range(count)
    ]
    return Arrival(flow, 0, len(datagrams[0]), b"".join(datagrams))


def test_flows_share_the_queue_between_compiled_turns(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeats, waited = Repeats(), [0.0]
    with ExitStack() as stack:
        it = Receiving(stack, clock, repeats)
        monkeypatch.setattr(it.receiver, "waited", lambda: waited[0])
        for number in range(4):
            it.turn([batch_of(0, number), batch_of(1, number)])
        assert repeats.done > 0, "rows are known"
        before = it.outcome()["counters"][0]["rx_frames"]
        assert before == 4 * 2 * 60
        waited[0] = 0.06
        heavy, light = [batch_of(0, number) for number in range(60)], batch_of(1, 99, count=3)
        it.send([*heavy, light])
        done = repeats.done
        for _ in range(10):
            clock.now += 0.03
            it.turn([], turns=1)
        assert repeats.done > done, "compiled turns forwarded what was received before the pass"
        outcome = it.outcome()
        counters = outcome["counters"][0]
        limited = counters["drop_rx_flow_limited"]
        assert limited > 0
        assert counters["rx_frames"] - before + limited == 60 * 60 + 3
        of_heavy, of_light = sorted(outcome["flows"].values(), key=len, reverse=True)
        assert len(of_light) == 3
        assert len(of_heavy) == 60 * 60 - limited
        assert of_heavy == sorted(of_heavy, key=lambda frame: frame[-8:])
        # No state is left behind: compiled turns forward what comes next.
        waited[0], done = 0.0, repeats.done
        it.turn([batch_of(0, 0)])
        assert repeats.done == done + 60
    assert not repeats.errors


# --- changes that make rows of the ingress invalid ----------------------------------------------


def usual_arrivals(number: int) -> list[Arrival]:
    """Build datagrams that rows can be made for, with other contents for each number."""
    random = Random(number)
    arrivals = []
    kinds: list[dict[str, Any]] = [
        {},
        {"sport": 40001, "partial": True},
        {"version": 6, "protocol": UDP, "tags": ((0x8100, 7),)},
        {"protocol": UDP},
    ]
    for sender, vni in ((0, VNI), (1, VNI), (0, VNI + 2)):
        for kind in kinds:
            base = Frame(dst=GUEST, src=MACS[sender], seq=number * 9999, **kind)
            data = b"".join(
                vxlan.pack(vni) + each.build()
                for each in twins.segment_run(
                    base, 1 if number % 2 else 6, random.choice([600, 1300])
                )
            )
            stride = len(data) if number % 2 else len(data) // 6
            arrivals.append(Arrival(sender, 0, stride, data))
    return arrivals


def _admit_elsewhere(side: Receiving) -> None:
    side.segments[0].admit(MACS[0], HOSTS[1], side.clock.now)


def _expire_learned(side: Receiving) -> None:
    side.clock.now += 1000
    for segment in side.segments:
        while segment.sweep(side.clock.now):
            pass


def _receive_elsewhere(side: Receiving) -> None:
    """Receive from another socket, whose descriptor may be that of the former one."""
    former = side.receiver
    side.receiver = UdpReceiver.open(Binding(socket.AF_INET, None, None), 0, gro=True)
    side.ingress._receivers = (side.receiver,)
    former.close()


def _deliver_elsewhere(side: Receiving) -> None:
    """Replace a TAP by another one, which gets its descriptor."""
    side.ingress.detach(side.segments[0])
    former = side.taps[0]
    former.close()
    side.taps[0] = side.stack.enter_context(closing(PairTap()))
    assert side.taps[0].fd == former.fd
    side.turn(usual_arrivals(50))
    side.attach(0)


def _replace_policy(**options: Any) -> Callable[[Receiving], None]:
    return lambda side: side.segments[0].set_policy(SegmentPolicy(**options))


def _set_tracker(side: Receiving) -> None:
    tracker = side.trackers[0]

    def on_received(frame: Buffer, now: float) -> None:  # noqa: ARG001
        side.frames["tracked"].append(bytes(frame[:6]))

    tracker.on_received = on_received  # type: ignore[method-assign]
    tracker._set_active(active=True)


def _attach_in_another_order(side: Receiving) -> None:
    for segment in side.segments:
        side.ingress.detach(segment)
    for number in (0, 1):
        side.attach(number)


def _announce_mss(side: Receiving) -> None:
    """Announce an MSS that makes larger frames of the connection superframes."""
    options = b"\2\4" + (500).to_bytes(2, "big")
    syn = Frame(flags=SYN, sport=80, dport=40001, payload=b"", options=options)
    octets = bytearray(syn.build())
    addresses = octets[26:34]
    octets[26:34] = addresses[4:] + addresses[:4]
    syn_sent(side.sizings[0], memoryview(octets))


INGRESS_CHANGES: dict[str, Callable[[Receiving], object]] = {
    "move": _admit_elsewhere,
    "remove": lambda side: side.fdbs[0].remove(MACS[0]),
    "flush": lambda side: side.fdbs[0].flush(EVERYTHING),
    "expire": _expire_learned,
    "replace": lambda side: side.fdbs[0].replace(MACS[0], Remote(HOSTS[1], 4789), side.clock.now),
    "sticky": lambda side: side.fdbs[0].replace(
        MACS[0], Remote(HOSTS[1], 4789), side.clock.now, EntryKind(EntryState.DYNAMIC, sticky=True)
    ),
    "other remotes": lambda side: side.segments[0].set_remotes(
        [Remote(HOSTS[1], 4789)], side.clock.now
    ),
    "no remotes": lambda side: side.segments[0].set_remotes((), side.clock.now),
    "dstport": lambda side: side.fdbs[0].set_port(4790),
    "no learning": lambda side: setattr(side.segments[0], "learning", False),
    "own MAC": lambda side: setattr(side.segments[0], "own_mac", MACS[0]),
    "accept": lambda side: side.segments[0].set_accept((ip_network("127.0.0.0/8"),)),
    "reserved bits": _replace_policy(reserved_bits=1 << 59),
    "gbp": _replace_policy(groups=GroupPolicy(77)),
    "gbp accept": _replace_policy(groups=GroupPolicy(77, frozenset({5}))),
    "strip": _replace_policy(inner_vlan=InnerVlan.STRIP),
    "drop": _replace_policy(inner_vlan=InnerVlan.DROP),
    "proxy": lambda side: side.segments[0].set_neighbours(
        Neighbours(side.fdbs[0], ageing=300, max_neighbours=10)
    ),
    "mtu": lambda side: setattr(side.sizings[0], "mtu", 500),
    "MSS": _announce_mss,
    "tracker": _set_tracker,
    "detach": lambda side: side.ingress.detach(side.segments[0]),
    "attach": lambda side: side.attach(0),
    "attach in another order": _attach_in_another_order,
    "no fast path": lambda side: side.attach(0, fast_path=False),
    "other socket": _receive_elsewhere,
    "other TAP": _deliver_elsewhere,
}  # fmt: skip


@pytest.mark.parametrize("name", INGRESS_CHANGES)
def test_a_change_applies_to_the_next_datagram(clock: Clock, name: str) -> None:
    repeats = Repeats()
    with ExitStack() as stack:
        sides = [Receiving(stack, clock, fast) for fast in (repeats, None)]
        fast, slow = sides
        for number in range(4):
            repeats.done = 0
            for side in sides:
                side.turn(usual_arrivals(number))
            assert_equal(fast.outcome(), slow.outcome())
        assert repeats.done == len(usual_arrivals(3))
        before = clock.now
        for side in sides:
            clock.now = before
            INGRESS_CHANGES[name](side)
        for number in range(4, 8):
            for side in sides:
                side.turn(usual_arrivals(number))
            assert_equal(fast.outcome(), slow.outcome())
    assert not repeats.errors


# --- errors -------------------------------------------------------------------------------------


def test_icmp_errors_are_counted_as_on_the_slow_path(clock: Clock) -> None:
    repeats = Repeats()
    with ExitStack() as stack:
        fast, slow = (Sending(stack, clock, each) for each in (repeats, None))
        for number in range(10):
            if number == 4:
                for side in (fast, slow):
                    side.sockets[0].sock.close()
                    del side.sockets[0]
            # Alone, so that both send as often.
            for frame in usual(number):
                for side in (fast, slow):
                    side.turn([frame])
            assert_equal(fast.outcome(), slow.outcome())
        assert fast.segment.counters.as_dict()["drop_underlay_refused"] > 6
    assert repeats.done > 50
    assert not repeats.errors


def test_frames_that_a_tap_refuses_are_counted_as_on_the_slow_path(clock: Clock) -> None:
    repeats = Repeats()
    with ExitStack() as stack:
        fast, slow = (Receiving(stack, clock, each) for each in (repeats, None))
        for number in range(10):
            if number == 4:
                for side in (fast, slow):
                    side.taps[0].guest.close()
                    del side.taps[0]
            for side in (fast, slow):
                side.turn(usual_arrivals(number))
            assert_equal(fast.outcome(), slow.outcome())
        assert fast.segments[0].counters.as_dict()["drop_tap_refused"] > 6
    assert not repeats.errors


def _raise(*_args: object) -> None:
    raise IndexError("index is out of bounds")


def test_forwarding_continues_when_turns_fail(clock: Clock) -> None:
    repeats = Repeats()
    with ExitStack() as stack:
        sending = [Sending(stack, clock, each) for each in (repeats, None)]
        receiving = [Receiving(stack, clock, each) for each in (repeats, None)]
        for number in range(6):
            if number == 3:
                for turn in (repeats.fast.transmit.turn, repeats.fast.receive.turn):
                    turn.result[:] = 0
                    turn.run = _raise  # type: ignore[method-assign, assignment]
            for sender in sending:
                sender.turn(usual(number))
            for receiver in receiving:
                receiver.turn(usual_arrivals(number))
            assert_equal(*(side.outcome() for side in sending))
            assert_equal(*(side.outcome() for side in receiving))
    (error,) = repeats.errors
    assert isinstance(error, IndexError)
    assert repeats.fast.failed
    for table in (repeats.fast.transmit, repeats.fast.receive):
        assert not any(table.origins)
        assert not table.turn.keys.any()


def test_frames_that_an_exception_leaves_behind_go_nowhere(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a turn is that of all VNIs, so they would be frames of another one."""
    repeats = Repeats()
    with ExitStack() as stack:
        one, other = (Sending(stack, clock, repeats, vni) for vni in (VNI, VNI + 1))
        with monkeypatch.context() as patch:
            patch.setattr(one.segment, "route", _raise)
            with pytest.raises(IndexError):
                one.turn(usual(0))
        one.outcome()
        other.turn(usual(1))
        assert one.egress._verdicts is not None
        one.egress._verdicts._pauses._left = 1000
        for _ in range(3):
            one.turn([])
        assert one.outcome()["flows"] == {}
        one.turn(usual(2))
        assert sum(map(len, one.outcome()["flows"].values())) == len(usual(2)) + 4


def test_each_neighbour_is_learned(clock: Clock) -> None:
    """Neighbour discovery never has a row: what it says is in its payload."""
    repeats = Repeats()
    with ExitStack() as stack:
        fast, slow = (Receiving(stack, clock, each) for each in (repeats, None))
        for side in (fast, slow):
            segment = side.segments[0]
            segment.set_neighbours(Neighbours(segment.fdb, ageing=300, max_neighbours=99))
        for number in range(9):
            claim = ICMPv6ND_NA(tgt=f"fd00::{number}", O=1, S=0) / ICMPv6NDOptDstLLAddr(
                lladdr=MAC_A
            )
            packet = ether(ip6(claim, src=f"fd00::{number}", dst="ff02::1", hlim=255))
            data = vxlan.pack(VNI) + bytes(packet)
            for side in (fast, slow):
                side.turn([Arrival(0, 0, len(data), data)])
            assert_equal(fast.outcome(), slow.outcome())
        assert len(neighbours_of(fast.segments[0])) == 9
    assert repeats.done == 0


def test_other_options_of_one_vni_leave_the_paths_of_another_alone(clock: Clock) -> None:
    """VNIs with the same options share their paths, which then stay open."""
    repeats = Repeats()
    with ExitStack() as stack:
        pairs = []
        for fast in (repeats, None):
            one = Sending(stack, clock, fast)
            pairs.append([one, Sending(stack, clock, fast, VNI + 1, beside=one)])
        for number in range(6):
            if number == 3:
                for one, _ in pairs:
                    one.use_paths(outer={"ttl": 9})
            for sides in zip(*pairs, strict=True):
                for side in sides:
                    side.turn(usual(number))
                assert_equal(*(side.outcome() for side in sides))
    assert repeats.done > 50
