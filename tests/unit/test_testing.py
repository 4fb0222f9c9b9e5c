"""The devices and sockets in memory: a pair of VTEPs on them, and the faults of their underlay."""

import asyncio
import errno
import os
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.twins import Frame
from vtep import Config, Vtep
from vtep.counters import Drop
from vtep.datapath import Arena, Egress, Ingress
from vtep.datapath.pool import FLOOD_MIN, Paths, Pool
from vtep.errors import NotReadyError, VtepError
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.forwarding.segment import Segment
from vtep.io.binding import Binding
from vtep.io.interfaces import Receiver
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS
from vtep.io.sender_sockets import SenderSockets
from vtep.offload.sizing import TunnelSizing
from vtep.testing import Faults, MemoryHost, MemoryTap, MemoryUnderlay, Transmission
from vtep.testing.memory_network import MemoryNetwork
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import virtio
from vtep.wire.outer_header import DF, InheritPolicy

ONE, TWO, THREE = "192.0.2.1", "192.0.2.2", "192.0.2.3"
ONE_V6, TWO_V6 = "2001:db8::1", "2001:db8::2"
PORT = 4789
DEADLINE = 20.0
V4, V6 = Binding(socket.AF_INET, None, None), Binding(socket.AF_INET6, None, None)
BINDINGS = {4: V4, 6: V6}


class DataPath:
    """One VNI on a host in memory: the data path and nothing above it."""

    def __init__(self, stack: ExitStack, host: MemoryHost, *remotes: str) -> None:
        self.tap = stack.enter_context(MemoryTap())
        fdb = Fdb(5, PORT, ageing=300, max_addresses=100)
        self.segment = Segment(
            5, [Remote(each, PORT) for each in remotes], fdb, own_mac=bytes(6), learning=True
        )
        paths = Paths(
            Pool(sockets=host),
            BINDINGS,
            OuterHeaderOptions(),
            InheritPolicy(),
            lambda _remote, _mtu: None,
            gso=True,
        )
        sizing = TunnelSizing(self.segment.header, self.segment.counters, 1450, "auto")
        self.egress = Egress(*(self.tap, self.segment, paths, sizing, AckTracker(), Arena(), _fail))
        self.receiver = host.open_receiver(V4, PORT, gro=True)
        self.ingress = Ingress([self.receiver], Demux((), PORT), _fail)
        self.ingress.attach(*(self.segment, self.tap, sizing, AckTracker(), self.egress.readable))

    def frames(self) -> list[bytes]:
        """Return the frames that the TAP gets of all that waits at the receiver."""
        while is_readable(self.receiver.fileno()):
            self.ingress.readable(self.receiver)
        return [frame for _, frame in self.tap.received()]


def _fail(error: OSError) -> None:
    pytest.fail(str(error))


def is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay()) as underlay:
        yield underlay


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_two_vteps_forward_and_learn(underlay: MemoryUnderlay, stack: ExitStack) -> None:
    one = DataPath(stack, underlay.add_host(ONE), TWO)
    two = DataPath(stack, underlay.add_host(TWO), ONE)
    request, reply = (
        Frame(payload=b"request").build(),
        Frame(payload=b"reply", dst=b"\2\0\0\0\0\2").build(),
    )
    one.tap.send(request)
    one.egress.readable()
    assert two.frames() == [request]
    two.tap.send(reply)
    two.egress.readable()
    assert one.frames() == [reply]
    assert [(each.source[0], each.destination) for each in underlay.trace] == [
        (ONE, (TWO, PORT)),
        (TWO, (ONE, PORT)),
    ]
    entry = two.segment.fdb.lookup(request[6:12])
    assert entry is not None
    assert entry.rx_frames == 1


def test_whole_vteps_on_a_lossy_underlay() -> None:
    """Each frame arrives, but those that the underlay has lost, which repeat by the seed."""

    async def run() -> list[int]:
        with closing(MemoryUnderlay(faults=Faults(loss=0.1), seed=1)) as underlay:
            one, two = (MemoryNetwork(underlay.add_host(host)) for host in (ONE, TWO))
            vteps = (
                Vtep(Config(vni=1, remote=TWO), network=one, sockets=one.host),
                Vtep(Config(vni=1, remote=ONE), network=two, sockets=two.host),
            )
            arrived = list[int]()
            async with vteps[0], vteps[1], asyncio.timeout(DEADLINE):
                for number in range(100):
                    one.taps["vx1"].send(Frame(payload=number.to_bytes(4, "big")).build())
                    while len(underlay.trace) <= number:  # noqa: ASYNC110  a turn of the loop
                        await asyncio.sleep(0)
                while len(arrived) < len(underlay.trace) - underlay.lost:
                    await asyncio.sleep(0)
                    for _, frame in two.taps["vx1"].received():
                        arrived.append(int.from_bytes(frame[-4:], "big"))
            return arrived

    arrived = asyncio.run(run())
    assert 50 < len(arrived) < 100
    assert arrived == sorted(set(arrived))
    assert asyncio.run(run()) == arrived


def test_a_superframe_crosses_the_underlay_as_one(
    underlay: MemoryUnderlay, stack: ExitStack
) -> None:
    one = DataPath(stack, underlay.add_host(ONE), TWO)
    two = DataPath(stack, underlay.add_host(TWO), ONE)
    frame = Frame(payload=bytes(10 * 1398), partial=True)
    one.tap.send(frame.build(), virtio.pack_gso(virtio.GSO_TCPV4, frame.head_len, 1398, 34, 16))
    one.egress.readable()
    (transmission,) = underlay.trace
    assert len(transmission.datagrams) == 10
    assert two.receiver.gro_enabled
    two.ingress.readable(two.receiver)
    ((header, received),) = two.tap.received()
    assert virtio.unpack(header).gso_size == 1398
    assert len(received) == len(frame.build())
    assert two.segment.counters.rx_superframes == 1


def test_flooding_stops_where_the_send_buffer_is_full(underlay: MemoryUnderlay) -> None:
    """And goes on from there. Each remote gets the frame once."""
    host = underlay.add_host("192.0.2.100")
    remotes = [f"192.0.2.{number}" for number in range(1, FLOOD_MIN + 1)]
    receivers = [underlay.add_host(each).open_receiver(V4, PORT, gro=True) for each in remotes]
    group = host.open_flooder([V4], OuterHeaderOptions(), SenderSockets(), gso=True).prepare(
        [Remote(each, PORT) for each in remotes]
    )
    room = iter([True] * 3 + [False])
    host.has_room = lambda: next(room, True)
    result = group.send(memoryview(b"datagram"), 8, 0)
    assert (result.octets, result.sent_to, result.datagrams) == (0, 3, 3)
    assert result.blocked_fd == host.writable_fd
    assert select.select([], [host.writable_fd], [], 0)[1]
    result = group.send(memoryview(b"datagram"), 8, 0, result.sent_to)
    assert (result.octets, result.sent_to, result.datagrams) == (8, FLOOD_MIN, FLOOD_MIN - 3)
    assert [received(each) for each in receivers] == [[b"datagram"]] * FLOOD_MIN


def received(receiver: Receiver) -> list[bytes]:
    buffer = memoryview(bytearray(65536))
    found: list[bytes] = []
    while is_readable(receiver.fileno()):
        octets, stride, *_ = receiver.receive(buffer)
        found += [bytes(buffer[at : min(at + stride, octets)]) for at in range(0, octets, stride)]
    with pytest.raises(BlockingIOError):
        receiver.receive(buffer)
    return found


def transfer(faults: Faults, seed: int, count: int, batch: int) -> tuple[list[int], MemoryUnderlay]:
    """Send so many numbered datagrams, `batch` in each send. Returns: the numbers received."""
    underlay = MemoryUnderlay(faults=faults, seed=seed)
    with closing(underlay):
        one, two = underlay.add_host(ONE), underlay.add_host(TWO)
        receiver = two.open_receiver(V4, PORT, gro=True)
        sender = one.open_sender(
            V4, OuterHeaderOptions(), Remote(TWO, PORT), 4, SenderSockets(), gso=True
        )
        numbers = b"".join(number.to_bytes(4, "big") for number in range(count))
        for at in range(0, len(numbers), 4 * batch):
            rest = memoryview(numbers[at : at + 4 * batch])
            while rest:
                octets, reason = sender.send(rest, 4, 0, 0.0)
                assert reason is None
                rest = rest[octets:]
        found = [int.from_bytes(data, "big") for data in received(receiver)]
    return found, underlay


@given(
    faults=st.builds(
        Faults,
        loss=st.sampled_from([0.0, 0.1, 1.0]),
        duplication=st.sampled_from([0.0, 0.2]),
        reordering=st.sampled_from([0.0, 0.2]),
    ),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 100),
)
def test_faults_are_counted_and_repeat_by_their_seed(faults: Faults, seed: int, batch: int) -> None:
    count = 200
    found, underlay = transfer(faults, seed, count, batch)
    assert len(found) == count - underlay.lost + underlay.duplicated
    assert len(set(found)) == count - underlay.lost
    if not underlay.reordered:
        assert found == sorted(found)
    for probability, events in (
        (faults.loss, underlay.lost),
        (faults.duplication, underlay.duplicated),
        (faults.reordering, underlay.reordered),
    ):
        assert probability or not events
    assert transfer(faults, seed, count, batch)[0] == found


def test_another_seed_has_other_faults() -> None:
    faults = Faults(loss=0.1, duplication=0.1, reordering=0.1)
    results = {tuple(transfer(faults, seed, 200, 10)[0]) for seed in range(10)}
    assert len(results) == 10


def test_datagrams_are_joined_by_source_size_and_ecn(underlay: MemoryUnderlay) -> None:
    one, two = underlay.add_host(ONE), underlay.add_host(TWO)
    receiver = two.open_receiver(V4, PORT, gro=True)

    def send(host: MemoryHost, data: bytes, stride: int, flow: int = 0) -> None:
        sender = host.open_sender(
            V4, OuterHeaderOptions(), Remote(TWO, PORT), 4, SenderSockets(), gso=True
        )
        assert sender.send(memoryview(data), stride, flow, 0.0) == (len(data), None)

    send(one, bytes(250), 100)
    send(one, bytes(100), 100)
    send(one, bytes(100), 100, flow=1)
    send(one, bytes(100), 100, flow=1 << FLOW_BITS | 1)
    send(underlay.add_host(THREE), bytes(100), 100)
    buffer = memoryview(bytearray(65536))
    source_ports = OuterHeaderOptions().srcport
    assert [receiver.receive(buffer) for _ in range(5)] == [
        (250, 100, ONE, source_ports[0], 0),
        (100, 100, ONE, source_ports[0], 0),
        (100, 100, ONE, source_ports[1], 0),
        (100, 100, ONE, source_ports[1], 1),
        (100, 100, THREE, source_ports[0], 0),
    ]


def test_group_members_receive_what_other_hosts_send(underlay: MemoryUnderlay) -> None:
    hosts = [underlay.add_host(ONE, ONE_V6), underlay.add_host(TWO, TWO_V6)]
    for binding, group in ((V4, "239.1.1.1"), (V6, "ff05::1")):
        receivers = [host.open_receiver(binding, PORT, gro=False) for host in hosts]
        members = [each.join_group(binding, ip_address(group)) for each in receivers]
        sender = hosts[0].open_sender(
            *(binding, OuterHeaderOptions(), Remote(group, PORT), 1, SenderSockets()), gso=False
        )
        assert sender.send(memoryview(b"datagram"), 8, 0, 0.0) == (8, None)
        assert [received(each) for each in (*members, *receivers)] == [[], [b"datagram"], [], []]
        members[1].close()
        sender.send(memoryview(b"datagram"), 8, 0, 0.0)
        for each in (*members, *receivers):
            each.close()


def test_ports_and_addresses_are_those_of_the_host(underlay: MemoryUnderlay) -> None:
    host = underlay.add_host(ONE)
    receiver = host.open_receiver(V4, PORT, gro=False)
    with pytest.raises(VtepError, match="this UDP port is taken"):
        host.open_receiver(V4, PORT, gro=False)
    absent = Binding(socket.AF_INET, ip_address(TWO), None)
    with pytest.raises(NotReadyError):
        host.open_receiver(absent, PORT, gro=False)
    with pytest.raises(NotReadyError):
        host.open_receiver(V6, PORT, gro=False)
    sender = host.open_sender(
        *(absent, OuterHeaderOptions(), Remote(ONE, PORT), 1, SenderSockets()), gso=False
    )
    assert sender.send(memoryview(b"x"), 1, 0, 0.0) == (1, Drop.UNDERLAY_UNREACHABLE)
    host.addresses.append(TWO)
    assert sender.send(memoryview(b"x"), 1, 0, 0.0) == (1, None)
    assert received(receiver) == [b"x"]
    receiver.close()
    assert sender.send(memoryview(b"x"), 1, 0, 0.0) == (1, None)
    assert underlay.unreachable == 1


def test_a_receiver_takes_over_the_port_of_another(underlay: MemoryUnderlay) -> None:
    host, other = underlay.add_host(ONE), underlay.add_host(TWO).open_receiver(V4, PORT, gro=False)
    before = host.open_receiver(V4, PORT, gro=False)
    with pytest.raises(VtepError, match="this UDP port is taken"):
        host.open_receiver(V4, PORT, gro=False, beside=[other])
    after = host.open_receiver(V4, PORT, gro=False, beside=[before])
    before.close()
    other.send_unfragmented(b"datagram", ONE, PORT)
    assert received(after) == [b"datagram"]


def test_the_path_mtu_is_reported_and_enforced_with_df(underlay: MemoryUnderlay) -> None:
    host = underlay.add_host(ONE, ONE_V6)
    reported: list[int] = []
    for remote, binding, headers in ((TWO, V4, 28), (TWO_V6, V6, 48)):
        sender = host.open_sender(
            *(binding, OuterHeaderOptions(), Remote(remote, PORT), 1, SenderSockets()), gso=False
        )
        sender.watchers.append(lambda _remote, mtu: reported.append(mtu))
        fits, too_large = memoryview(bytes(1500 - headers)), memoryview(bytes(1501 - headers))
        for data, flow, expected in (
            (fits, DF << FLOW_BITS, None),
            (too_large, DF << FLOW_BITS, Drop.UNDERLAY_TOO_BIG),
            (too_large, 0, None),
        ):
            assert sender.send(data, len(data), flow, 0.0) == (len(data), expected)
    underlay.mtu = 9000
    sender.refresh_route()
    assert reported == [1500, 1500, 9000]


def test_a_receiver_replies_from_its_port_and_filters(underlay: MemoryUnderlay) -> None:
    one, two, three = (
        underlay.add_host(each).open_receiver(V4, PORT, gro=False) for each in (ONE, TWO, THREE)
    )
    two.set_filter(IngressFilter.of(4, [ONE], (), ()))
    for each in (one, three):
        each.send_unfragmented(b"reply", TWO, PORT)
    assert received(two) == [b"reply"]
    assert two.queue_drops() == 1
    two.set_filter(None)
    three.send_unfragmented(b"reply", TWO, PORT)
    assert received(two) == [b"reply"]
    assert underlay.trace[-1] == Transmission((THREE, PORT), (TWO, PORT), 0, (b"reply",))
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        one.send_unfragmented(bytes(1473), TWO, PORT)


@pytest.mark.parametrize(
    ("supported", "requested", "granted"),
    [
        ((True, True), (True, True), (True, True)),
        ((True, True), (True, False), (True, False)),
        ((True, True), (False, True), (False, False)),
        ((True, False), (True, True), (True, False)),
        ((False, False), (True, True), (False, False)),
    ],
)
def test_a_tap_grants_what_it_supports(
    supported: Sequence[bool], requested: Sequence[bool], granted: Sequence[bool]
) -> None:
    with MemoryTap(tso=supported[0], uso=supported[1]) as tap:
        tap.request_offloads(tso=requested[0], uso=requested[1])
        assert (tap.tso, tap.uso) == tuple(granted)


def test_a_tap_keeps_frames_apart() -> None:
    with MemoryTap() as tap:
        for octets in (14, 60, 65536):
            tap.send(bytes(octets))
        assert [len(os.read(tap.fd, 1 << 17)) for _ in range(3)] == [24, 70, 65546]
        with pytest.raises(BlockingIOError):
            os.read(tap.fd, 1)
        for octets in (14, 60):
            os.writev(tap.fd, (virtio.PLAIN, bytes(octets)))
        assert list(tap.received()) == [(virtio.PLAIN, bytes(14)), (virtio.PLAIN, bytes(60))]
        with pytest.raises(BlockingIOError):
            tap.receive()
