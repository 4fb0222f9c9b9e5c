"""Captures: they change nothing of what is forwarded, and show each frame once, with its fate."""

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any
from unittest.mock import Mock

import pytest

from tests.unit.nodes import IP_A, IP_B, IP_C, Node, frame, segment, until
from tests.unit.test_egress import REMOTE, TO, plain, segment_of, superframe, unfinished
from tests.unit.test_egress import Vtep as EgressVtep
from tests.unit.test_ingress import superframe as received_superframe
from tests.unit.twins import Frame
from vtep import VtepError
from vtep.capture import libpcap
from vtep.capture.addresses import OuterAddresses
from vtep.capture.captures import CAPTURES_MAX, Captures
from vtep.capture.events import FrameEvent, FrameSplitter, Point, ReceivedDatagrams, SentFrame
from vtep.capture.libpcap import FrameFilter
from vtep.capture.recorders import PortRecorder
from vtep.capture.session import BUFFER_OCTETS, CaptureOptions, CaptureSession
from vtep.counters import Drop
from vtep.daemon.port import Port
from vtep.errors import ConfigError
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.sender_sockets import SenderSockets
from vtep.testing import MemoryUnderlay
from vtep.wire import virtio, vxlan
from vtep.wire.echo import TOKEN_LEN, EchoKind, EchoMessage
from vtep.wire.pcapng import RECEIVED, SENT, Decoder, InterfaceBlock, PacketBlock, StatisticsBlock

ALL = b"\xff" * 6
A, B = (bytes((2, 0, 0, 0, 1, number)) for number in range(2))
OUTER_LEN = 14 + 20 + 8
"""Octets of the outer headers in front of a VXLAN header."""

ANY = Binding(socket.AF_INET, None, None)
VNI = 5

OF_HOW = {
    *("rx_superframes", "partial_checksums", "super_datagrams", "rx_syscalls", "tx_syscalls"),
}
"""Counters that tell how frames were handled, and not which."""


def run(main: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(main())


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay(seed=1)) as network:
        yield network


class Site:
    """A VTEP on host A, and plain hosts that send datagrams to it."""

    def __init__(self, underlay: MemoryUnderlay, **options: Any) -> None:
        self.underlay = underlay
        self.node = Node(underlay, segment(VNI, **{"remote": IP_B, **options}), ip=IP_A)
        self._senders = {
            host: underlay.add_host(host).open_sender(
                *(ANY, OuterHeaderOptions(srcport=range(50_000, 50_001)), Remote(IP_A, 4789), 1),
                SenderSockets(),
                gso=False,
            )
            for host in (IP_B, IP_C)
        }
        self.written: list[bytes] = []
        self._splitter = FrameSplitter()

    def receive(self, datagram: bytes, host: str = IP_B) -> None:
        """Send a datagram from a host to the VTEP."""
        self._senders[host].send(memoryview(datagram), len(datagram) or 1, 0, 0.0)

    def send(self, header: bytes, octets: bytes) -> None:
        """Send a frame as a guest."""
        self.node.network.taps[f"vx{VNI}"].send(octets, header)

    def collect(self) -> None:
        """Collect what guests have received, as the frames of a wire."""
        for header, octets in self.node.network.taps[f"vx{VNI}"].received():
            self.written += self._splitter.frames(header, octets, superframes=False)

    def sent(self) -> list[tuple[str, bytes]]:
        """Return the destinations and the datagrams that the VTEP has sent."""
        return [
            (each.destination[0], datagram)
            for each in self.underlay.trace
            if each.source[0] == IP_A
            for datagram in each.datagrams
        ]

    async def settle(self) -> None:
        """Wait until everything that is in a queue was handled."""
        marker = frame(B, ALL, b"marker %d" % random.randrange(1 << 60))
        self.send(virtio.PLAIN, marker)
        self.receive(vxlan.pack(VNI) + marker)
        await until(lambda: any(datagram.endswith(marker) for _, datagram in self.sent()))

        def arrived() -> bool:
            self.collect()
            return marker in self.written

        await until(arrived)


def records(session: CaptureSession, octets: bytes = b"") -> list[tuple[str, PacketBlock]]:
    """Return the frames of a session, each with the name of its interface."""
    names: list[str] = []
    found = []
    for block in Decoder().feed(octets or session.take(1 << 30)):
        if isinstance(block, InterfaceBlock):
            names.append(block.name)
        elif isinstance(block, PacketBlock):
            found.append((names[block.interface], block))
    return found


def begin(
    captures: Captures,
    frame_filter: FrameFilter | None = None,
    vni: int | None = None,
    **options: Any,
) -> CaptureSession:
    vnis = None if vni is None else frozenset((vni,))
    session = CaptureSession(CaptureOptions(**options), frame_filter, captures.places(vnis))
    captures.start(session, vnis)
    return session


# --- nothing is changed ---------------------------------------------------------------------------


def frames_of_guests(rng: random.Random) -> list[tuple[bytes, bytes]]:
    """Return frames of all kinds, with their virtio headers."""
    kinds: list[Callable[[], tuple[bytes, bytes]]] = [
        lambda: plain(rng.randrange(1400), flow=rng.randrange(3)),
        lambda: unfinished(rng.randrange(1400), flow=rng.randrange(3)),
        lambda: unfinished(rng.randrange(1400), kind="tcp6"),
        lambda: superframe(rng.randrange(2, 12), last=rng.randrange(1, 1398), size=1398),
        lambda: superframe(rng.randrange(2, 5), size=2000),
        lambda: (virtio.PLAIN, Frame(protocol=17, payload=bytes(2000), fragment=0).build()),
        lambda: (virtio.PLAIN, Frame(protocol=17, payload=bytes(2000)).build()),
        lambda: (virtio.PLAIN, Frame(payload=rng.randbytes(3000)).build()),
        lambda: (virtio.PLAIN, frame(A, ALL, rng.randbytes(100))),
        lambda: (virtio.PLAIN, Frame(tags=((0x8100, 7),)).build()),
        lambda: (virtio.PLAIN, rng.randbytes(rng.randrange(1, 100))),
        lambda: (virtio.pack_gso(1, 54, 1000, 34, 16), rng.randbytes(2000)),
        lambda: (virtio.pack_needs_csum(2000, 6), Frame().build()),
    ]
    return [rng.choice(kinds)() for _ in range(60)]


def datagrams_of_remotes(rng: random.Random) -> list[tuple[bytes, str]]:
    """Return datagrams of all kinds, with their sources."""
    echo = EchoMessage(EchoKind.REQUEST, VNI, 4789, bytes(TOKEN_LEN), 1, 60).pack(60)
    header = vxlan.pack(VNI)
    kinds: list[Callable[[], bytes]] = [
        lambda: header + Frame(payload=rng.randbytes(100), sport=rng.randrange(1, 9)).build(),
        lambda: header + Frame(protocol=17, payload=rng.randbytes(500), partial=True).build(),
        lambda: received_superframe(rng.randrange(2, 9)),
        lambda: header + Frame(src=b"\xff" * 6).build(),
        lambda: vxlan.pack(VNI + 1) + Frame().build(),
        lambda: header + rng.randbytes(rng.randrange(20)),
        lambda: rng.randbytes(rng.randrange(1, 60)),
        lambda: echo,
    ]
    chosen = [(rng.choice(kinds)(), rng.choice((IP_B, IP_B, IP_B, IP_C))) for _ in range(40)]
    # A run that is merged.
    payload = rng.randbytes(1000)
    run = [header + Frame(payload=payload, seq=1 + 1000 * n, ident=n).build() for n in range(20)]
    at = rng.randrange(len(chosen))
    return chosen[:at] + [(datagram, IP_B) for datagram in run] + chosen[at:]


async def forward(seed: int, capture: Callable[[Site], Captures | None]) -> tuple[Any, ...]:
    """Forward random frames in both directions. Returns: all that there is to be seen of that."""
    rng = random.Random(seed)
    random.seed(seed)
    with closing(MemoryUnderlay(seed=seed)) as underlay:
        options = rng.choice(({}, {"inner_vlan": "strip"}, {"proxy": True}, {"offload": "none"}))
        site = Site(underlay, **options)
        # Send buffers are full now and then: some datagrams wait, and are sent later.
        room = random.Random(seed)
        site.node.host.has_room = lambda: room.random() > 0.1
        async with site.node.vtep:
            captures = capture(site)
            before, size = (frames_of_guests(rng), datagrams_of_remotes(rng)), 16
            for at in range(0, 60, size):
                for header, octets in before[0][at : at + size]:
                    site.send(header, octets)
                for datagram, host in before[1][at : at + size]:
                    site.receive(datagram, host)
                await site.settle()
            counters = {
                name: count
                for name, count in site.node.vtep.counters().items()
                if name not in OF_HOW
            }
            if captures is not None:
                captures.end_all("")
            return Counter(site.sent()), Counter(site.written), counters


@pytest.mark.parametrize("seed", range(8))
def test_forwarding_is_the_same(seed: int) -> None:
    """Random frames in both directions, with a capture and without."""
    sessions: list[CaptureSession] = []

    def capture(site: Site) -> Captures:
        captures = Captures(site.node.vtep)
        sessions.extend((begin(captures), begin(captures, vni=VNI, superframes=True)))
        return captures

    async def main() -> None:
        assert await forward(seed, capture) == await forward(seed, lambda _: None)
        assert all(records(session) for session in sessions)

    run(main)


@pytest.mark.parametrize("seed", range(4))
def test_each_frame_is_shown_once(seed: int) -> None:
    """Every datagram and every frame of a wire is in the capture as often as it was there."""
    sessions: list[CaptureSession] = []

    def capture(site: Site) -> Captures:
        captures = Captures(site.node.vtep)
        sessions.append(begin(captures))
        return captures

    async def main() -> None:
        sent, written, counters = await forward(seed, capture)
        shown = records(sessions[0])
        outer = [block for name, block in shown if name.endswith("outer")]
        inner = [block for name, block in shown if name.endswith("inner")]
        payloads = [block.octets[OUTER_LEN:] for block in outer if block.direction == SENT]
        assert Counter(payloads) == Counter(
            datagram for (_, datagram), count in sent.items() for _ in range(count)
        )
        delivered = [
            block.octets for block in inner if block.direction == RECEIVED and not block.is_dropped
        ]
        assert Counter(delivered) == written
        dropped = sum(block.is_dropped for _, block in shown)
        assert dropped == sum(n for name, n in counters.items() if name.startswith("drop_"))

    run(main)


# --- records --------------------------------------------------------------------------------------


def test_a_superframe_appears_as_on_the_wire(underlay: MemoryUnderlay) -> None:
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            captures = Captures(site.node.vtep)
            split, whole = begin(captures), begin(captures, superframes=True)
            header, octets = superframe(5)
            site.send(header, octets)
            await until(lambda: len(site.sent()) == 5)
            shown = records(split)
            inner = [block for name, block in shown if name == "vx5 inner"]
            outer = [block for name, block in shown if name == "vx5 outer"]
            assert len(inner) == len(outer) == 5
            for one, other in zip(inner, outer, strict=True):
                assert one.packet_id == other.packet_id
                assert other.octets[OUTER_LEN + vxlan.HEADER_LEN :] == one.octets
            assert len({block.packet_id for block in inner}) == 5
            unsegmented = [block for name, block in records(whole) if name == "vx5 inner"]
            assert [block.octets for block in unsegmented] == [octets]

    run(main)


def test_superframes_with_tunnel_gso_appear_as_on_the_wire() -> None:
    """As segments that a NIC makes of them, each with the frame of the host; or as one datagram."""
    gso_segment = segment_of(REMOTE)
    gso_segment.fdb.learn(TO, REMOTE, 0.0)
    with ExitStack() as stack:
        vtep = EgressVtep(stack, gso_segment, script=[True] * 100)
        vtep.announce()
        events: list[FrameEvent] = []
        sink = Mock(current=None, publish=lambda event, _port: events.append(event))
        port = Mock(device=vtep.tap, segment=gso_segment, observe=vtep.egress.observe)
        recorder = PortRecorder(sink, port, OuterAddresses(), Counter())
        recorder.attach()
        frames = [superframe(20, after=20 * number) for number in range(5)]
        vtep.turn(frames)
        assert vtep.paths.with_tunnel_gso.sent == len(events) == len(frames)
        for event, (header, octets) in zip(events, frames, strict=True):
            groups = list(event.groups(FrameSplitter(), superframes=False))
            pairs = [[record.octets for record in group] for group in groups]
            segments = FrameSplitter().frames(header, octets, superframes=False)
            assert pairs == [[each, vxlan.pack(5) + each] for each in segments]
            ((_, outer),) = event.groups(FrameSplitter(), superframes=True)
            assert outer.octets == vxlan.pack(5) + octets
        recorder.detach()
        vtep.turn(frames[:1])
        assert len(events) == len(frames)


def test_a_flood_has_one_frame_and_a_datagram_for_each_remote(underlay: MemoryUnderlay) -> None:
    hosts = tuple(f"192.0.2.{number}" for number in range(10, 20))
    site = Site(underlay, remote=(IP_B, *hosts))

    async def main() -> None:
        async with site.node.vtep:
            session = begin(Captures(site.node.vtep), names_remotes=True)
            site.send(virtio.PLAIN, frame(A, ALL))
            await until(lambda: len(site.sent()) == 1 + len(hosts))
            (_, inner), *outer = records(session)
            assert inner.octets == frame(A, ALL)
            assert {block.packet_id for _, block in outer} == {inner.packet_id}
            found = {socket.inet_ntoa(block.octets[30:34]) for _, block in outer}
            assert found == {IP_B, *hosts}

    run(main)


def test_drops_have_their_reason(underlay: MemoryUnderlay) -> None:
    """Before a VNI is known, at admission, at the TAP, and without a destination."""
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            captures = Captures(site.node.vtep)
            everywhere = begin(captures, drops_only=True)
            of_vni = begin(captures, vni=VNI, drops_only=True, points=frozenset((Point.INNER,)))
            foreign = vxlan.pack(VNI + 1) + frame(B, A)
            site.receive(foreign)
            site.receive(b"short")
            site.receive(vxlan.pack(VNI) + frame(B, A), IP_C)
            await site.settle()
            site.node.vtep.fdb.flush(among=list(site.node.vtep.fdb.entries()))
            site.send(virtio.PLAIN, frame(A, b"\2" * 6))
            counters = site.node.vtep.port.segment.counters
            await until(lambda: counters.drops[Drop.NO_REMOTE])
            shown = [
                (name, block.comments[0].split(":")[0], block.octets)
                for name, block in records(everywhere)
            ]
            assert [each[:2] for each in shown] == [
                ("underlay outer", "drop vni_unknown"),
                ("underlay outer", "drop header_truncated"),
                ("vx5 outer", "drop source_unknown"),
                ("vx5 inner", "drop no_remote"),
            ]
            assert shown[0][2].endswith(foreign)
            inner = [
                (block.comments[0].split(":")[0], block.octets) for _, block in records(of_vni)
            ]
            assert inner == [
                ("drop source_unknown", frame(B, A)),
                ("drop no_remote", frame(A, b"\2" * 6)),
            ]

    run(main)


def test_echo_messages_are_outer_only(underlay: MemoryUnderlay) -> None:
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            session = begin(Captures(site.node.vtep), vni=VNI)
            request = EchoMessage(EchoKind.REQUEST, VNI, 4789, bytes(TOKEN_LEN), 1, 60).pack(60)
            site.receive(request)
            await until(site.sent)
            (one, received), (other, reply) = records(session)
            assert one == other == "vx5 outer"
            assert received.octets.endswith(request)
            assert reply.octets.endswith(site.sent()[0][1])
            assert reply.packet_id != received.packet_id

    run(main)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 6),
        ({"mac": A}, 4),
        ({"remote": IP_B}, 6),
        ({"remote": IP_C}, 0),
        ({"points": frozenset((Point.OUTER,))}, 3),
        ({"count": 2}, 2),
    ],
)
def test_a_session_keeps_what_it_was_asked_for(
    underlay: MemoryUnderlay, options: dict[str, Any], expected: int
) -> None:
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            session = begin(Captures(site.node.vtep), vni=VNI, **options)
            site.receive(vxlan.pack(VNI) + frame(B, A))
            await until(lambda: site.node.vtep.counters()["rx_frames"] == 1)
            site.send(virtio.PLAIN, frame(A, B))
            await until(lambda: len(site.sent()) == 1)
            site.send(virtio.PLAIN, frame(b"\2" * 6, ALL))
            await until(lambda: len(site.sent()) == 2)
            assert len(records(session)) == expected

    run(main)


def test_a_snaplen_cuts_frames(underlay: MemoryUnderlay) -> None:
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            session = begin(Captures(site.node.vtep), snaplen=60)
            site.send(virtio.PLAIN, frame(A, B))
            await until(site.sent)
            found = [(len(block.octets), block.length) for _, block in records(session)]
            assert found == [(60, 64), (60, 64 + OUTER_LEN + vxlan.HEADER_LEN)]

    run(main)


def test_what_does_not_fit_is_counted(
    underlay: MemoryUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtep.capture.session.BUFFER_OCTETS", 4096)
    assert BUFFER_OCTETS > 4096
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            captures = Captures(site.node.vtep)
            session = begin(captures, points=frozenset((Point.INNER,)))
            for number in range(50):
                site.send(virtio.PLAIN, frame(A, B, b"%d" % number))
            await until(lambda: len(site.sent()) == 50)
            octets = session.take(1 << 30)
            site.send(virtio.PLAIN, frame(A, B, b"last"))
            await until(lambda: len(site.sent()) == 51)
            octets += session.take(1 << 30) + session.statistics(captures.stop(session))
            blocks = list(Decoder().feed(octets))
            packets = [block for block in blocks if isinstance(block, PacketBlock)]
            lost = 51 - len(packets)
            assert 0 < lost < 50
            assert [block.drop_count for block in packets] == [0] * (len(packets) - 1) + [lost]
            totals = [block for block in blocks if isinstance(block, StatisticsBlock)]
            assert (totals[0].dropped, totals[0].delivered) == (lost, len(packets))

    run(main)


# --- life -----------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_capture(underlay: MemoryUnderlay) -> None:
    """Hooks are attached while one of several captures runs, and in no other time."""
    site = Site(underlay)

    def hooks() -> list[object]:
        port, tap = site.node.vtep.port, site.node.network.taps[f"vx{VNI}"]
        (listener, *_) = site.node.vtep.listeners
        egress, ingress = port._egress, listener._ingress
        assert egress is not None
        names = ("_forward", "send", "drop_sent", "_handle_single", "_merge", "_receive_singly")
        parts = (egress, egress._transmitter, ingress, listener.demux)
        return [
            *((type(part), name) for part in parts for name in names if name in vars(part)),
            *(tap.read, tap.write, type(port.segment.counters), type(listener.demux.counters)),
        ]

    async def main() -> None:
        async with site.node.vtep:
            before = hooks()
            captures = Captures(site.node.vtep)
            one, two = begin(captures), begin(captures, vni=VNI)
            assert hooks() != before
            captures.stop(one)
            assert hooks() != before
            captures.stop(two)
            assert hooks() == before
            assert captures.stop(two) == {}
            site.send(virtio.PLAIN, frame(A, B))
            await until(site.sent)
            assert records(two) == []

    run(main)


def test_a_capture_follows_the_set_of_vnis(underlay: MemoryUnderlay) -> None:
    """One of all VNIs shows those that are added; one of a VNI ends with that."""
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            captures = Captures(site.node.vtep)
            everything, of_vni = begin(captures), begin(captures, vni=VNI)
            await site.node.vtep.add(segment(7, remote=IP_B))
            site.node.send(frame(A, ALL), "vx7")
            await until(site.sent)
            assert [name for name, _ in records(everything)] == ["vx7 inner", "vx7 outer"]
            await site.node.vtep.remove(VNI)
            assert of_vni.ended == "the VNI was deleted"
            assert not everything.ended

    run(main)


def test_a_watcher_sees_frames_as_they_were(underlay: MemoryUnderlay) -> None:
    """As the trace uses it: it may end itself, and costs nothing then."""
    site = Site(underlay)
    seen: list[FrameEvent] = []

    async def main() -> None:
        async with site.node.vtep:
            captures = Captures(site.node.vtep)

            def watch(event: FrameEvent, port: Port | None) -> None:
                assert port is site.node.vtep.port
                seen.append(event)
                if len(seen) == 2:
                    end()

            end = captures.watch(frozenset((VNI,)), watch)
            header, octets = unfinished(kind="tcp4")
            site.send(header, octets)
            site.receive(vxlan.pack(VNI) + frame(B, A))
            await until(lambda: len(seen) == 2)
            await site.settle()
            first = next(each for each in seen if isinstance(each, SentFrame))
            assert (first.meta, first.frame) == (header, octets)
            (received,) = (each for each in seen if isinstance(each, ReceivedDatagrams))
            assert received.datagrams == [vxlan.pack(VNI) + frame(B, A)]
            assert (received.host, received.port) == (IP_B, 50_000)
            assert len(seen) == 2

    run(main)


def test_captures_are_bounded(underlay: MemoryUnderlay) -> None:
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            captures = Captures(site.node.vtep)
            for _ in range(CAPTURES_MAX):
                captures.check_room()
                begin(captures)
            with pytest.raises(VtepError, match="captures run already"):
                captures.check_room()

    run(main)


# --- filters --------------------------------------------------------------------------------------


def needs_libpcap() -> None:
    with suppress(VtepError):
        FrameFilter("tcp").close()
        return
    pytest.skip("libpcap is not installed")


def test_filters() -> None:
    needs_libpcap()
    tcp, udp = Frame(dport=80).build(), Frame(protocol=17, dport=53).build()
    for expression, expected in (
        ("tcp port 80", [True, False]),
        ("udp", [False, True]),
        ("ether[0] & 1 = 0 and (port 53 or port 80)", [True, True]),
        ("greater 2000", [False, False]),
    ):
        frame_filter = FrameFilter(expression)
        assert [frame_filter.matches(each) for each in (tcp, udp)] == expected
        assert not frame_filter.matches(b"")
        frame_filter.close()
        frame_filter.close()
    for wrong in ("foo bar", "port 80 and", "\0", "x" * 5000):
        with pytest.raises(ConfigError, match="filter"):
            FrameFilter(wrong)


def test_without_libpcap_a_filter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> Any:
        raise OSError("no such file")

    libpcap._library.cache_clear()
    monkeypatch.setattr(libpcap, "_load", fail)
    try:
        with pytest.raises(VtepError, match=r"needs libpcap.*apt install"):
            FrameFilter("tcp")
    finally:
        libpcap._library.cache_clear()


def test_a_filter_selects_by_the_inner_frame(underlay: MemoryUnderlay) -> None:
    needs_libpcap()
    site = Site(underlay)

    async def main() -> None:
        async with site.node.vtep:
            session = begin(Captures(site.node.vtep), FrameFilter("udp port 4789"), VNI)
            wanted = begin(Captures(site.node.vtep), FrameFilter("tcp dst port 80"), VNI)
            site.send(*plain())
            site.send(virtio.PLAIN, frame(A, B))
            await until(lambda: len(site.sent()) == 2)
            assert records(session) == []
            assert len(records(wanted)) == 2

    run(main)
