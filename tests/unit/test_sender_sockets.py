"""SenderSockets: how many sockets there are, which are closed, and sharing with a receiver."""

import os
import resource
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path as Folder

import pytest

from vtep.config import Config
from vtep.counters import Drop
from vtep.daemon.build import outer_header_options
from vtep.datapath.pool import Paths, Pool
from vtep.errors import VtepError
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.error_queue import ReturnedDatagram
from vtep.io.interfaces import Sender
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, Path, pool_slots
from vtep.io.receiver import UdpReceiver
from vtep.io.replicator import Replicator
from vtep.io.sender_sockets import SenderSockets
from vtep.io.shared_socket import SharedSocket
from vtep.wire.echo import SIZE
from vtep.wire.outer_header import DF, InheritPolicy

V4, V6 = socket.AF_INET, socket.AF_INET6
HOST = {V4: "127.0.0.1", V6: "::1"}
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
ANY = {family: Binding(family, None, None) for family in HOST}
DATAGRAM = memoryview(bytes(range(100)))
DEADLINE = 10.0


@pytest.fixture
def sink() -> Iterator[Callable[[int], Remote]]:
    """Remotes by number, at addresses of this host whose datagrams are discarded."""
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        sock.bind(("", 0))
        port = sock.getsockname()[1]
        yield lambda number: Remote(f"127.1.{number >> 8}.{number & 255}", port)


ToSink = Callable[[int], Remote]


@contextmanager
def descriptors(most: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_now() -> int:
    return len(list(Folder("/proc/self/fd").iterdir()))


CONFIG = Config(vni=1)


def paths_of(pool: Pool, config: Config = CONFIG) -> Paths:
    return Paths(
        pool,
        {4: ANY[V4], 6: ANY[V6]},
        outer_header_options(config),
        InheritPolicy(),
        lambda *_: None,
        gso=True,
    )


def sent(path: Sender, flow: int = 0) -> int:
    """Send a datagram, which must succeed. Returns: the descriptor of the socket."""
    assert path.send(DATAGRAM, 100, flow, 0.0) == (100, None)
    return path.fileno(flow)


# --- how many ---------------------------------------------------------------------------------


def test_many_remotes_leave_half_of_the_descriptors(sink: ToSink) -> None:
    pool = Pool()
    paths = paths_of(pool)
    limit = 2 * open_now() + 40
    with descriptors(limit):
        for number in range(300):
            path = paths[sink(number)]
            for flow in range(3):
                sent(path, flow)
            assert len(pool.senders) <= limit // 2
        assert len(pool.senders) == limit // 2
        paths.close()
    assert len(pool.senders) == 0


def test_sockets_of_flooders_are_bounded(sink: ToSink) -> None:
    pool = Pool()
    limit = 2 * open_now() + 20
    with descriptors(limit), ExitStack() as stack:
        for vni in range(1, 41):
            paths = paths_of(pool, Config(vni=vni, ttl=vni))
            stack.callback(paths.close)
            flood = paths.flood(tuple(sink(number) for number in range(10)))
            assert flood is not None
            for flow in range(4):
                result = flood.group.send(DATAGRAM, 100, flow)
                assert (result.octets, result.drops) == (100, [])
            assert len(pool.senders) <= limit // 2
        assert pool.senders.is_full


def test_a_socket_in_use_stays_open(sink: ToSink) -> None:
    """A socket that is used between any two that are opened is never closed."""
    pool = Pool()
    paths = paths_of(pool)
    with descriptors(2 * open_now() + 20):
        busy, idle = paths[sink(0)], paths[sink(1)]
        fd = sent(busy)
        sent(idle)
        for number in range(2, 500):
            sent(paths[sink(number)])
            assert sent(busy) == fd
        assert idle.fileno(0) == -1
        assert sent(idle) >= 0
        paths.close()


def test_at_the_limit_a_remote_shares_its_own_socket(sink: ToSink) -> None:
    """Its flows have fewer source ports then."""
    pool = Pool()
    paths = paths_of(pool)
    with descriptors(2 * open_now() + 20):
        path = paths[sink(0)]
        sent(path)
        others: list[Sender] = []
        while not pool.senders.is_full:
            others.append(paths[sink(1 + len(others))])
            sent(others[-1])
        fds = [other.fileno(0) for other in others]
        assert {sent(path, flow) for flow in range(64)} == {path.fileno(0)}
        assert [other.fileno(0) for other in others] == fds
        # Flows with DF have sockets of their own, of which there is none yet.
        assert sent(path, DF << FLOW_BITS) != path.fileno(0)
        assert pool.senders.is_full
        paths.close()


def test_an_evicted_socket_is_reported_before_it_is_closed(sink: ToSink) -> None:
    closed: list[int] = []
    senders = SenderSockets(closed.append)
    paths = [
        Path(ANY[V4], OuterHeaderOptions(), sink(number), 1, senders, gso=True)
        for number in range(60)
    ]
    with descriptors(2 * open_now() + 20):
        fd = sent(paths[0])
        for path in paths[1:]:
            sent(path)
        assert fd in closed
        for path in paths:
            path.close()


def test_without_a_descriptor_another_socket_is_closed(sink: ToSink) -> None:
    pool = Pool()
    paths = paths_of(pool)
    one, two = paths[sink(1)], paths[sink(2)]
    sent(one)
    taken: list[int] = []
    with descriptors(open_now() + 60):
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open("/", os.O_RDONLY))
            sent(two)
            assert one.fileno(0) == -1
            assert sent(two, 1) == two.fileno(0)  # It shares its own.
        finally:
            for fd in taken:
                os.close(fd)
        paths.close()


def test_source_ports_by_number_of_remotes() -> None:
    with descriptors(1024):
        assert pool_slots(1, 16384) == 64
        assert pool_slots(100, 16384) == 4
        assert pool_slots(10_000, 16384) == 1
        assert [pool_slots(1, ports) for ports in (1, 2, 3, 64, 100)] == [1, 2, 2, 64, 64]


# --- ports ------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterator[range]:
    """Three ports of which the first is free, and another socket has the others."""
    with ExitStack() as stack:
        while True:
            socks = [stack.enter_context(socket.socket(V4, socket.SOCK_DGRAM)) for _ in range(3)]
            try:
                socks[0].bind(("", 0))
                first = socks[0].getsockname()[1] + 1
                socks[1].bind(("", first))
                socks[2].bind(("", first + 1))
            except (OSError, OverflowError):
                continue
            break
        socks[0].close()
        yield range(first, first + 2)


def test_the_only_free_port_of_a_range_is_found(taken: range, sink: ToSink) -> None:
    for _ in range(5):
        ports = OuterHeaderOptions(srcport=range(taken[0] - 1, taken[-1] + 1))
        path = Path(ANY[V4], ports, sink(0), 1, SenderSockets(), gso=True)
        assert sent(path) >= 0
        path.close()


def test_a_range_without_a_free_port_is_logged_once(
    taken: range, caplog: pytest.LogCaptureFixture
) -> None:
    senders = SenderSockets()
    says = f"--srcport {taken[0]} {taken[-1]}: every UDP port of this range is taken"
    with pytest.raises(VtepError, match=says):
        senders.check(ANY[V4], taken)
    senders.check(ANY[V4], range(taken[0] - 1, taken[-1] + 1))
    for number in range(1, 4):
        path = Path(
            ANY[V4],
            OuterHeaderOptions(srcport=taken),
            Remote(f"127.0.0.{number}", 9),
            1,
            senders,
            gso=True,
        )
        assert path.send(DATAGRAM, 100, 0, 0.0) == (100, Drop.UNDERLAY_FAILED)
    assert caplog.text.count(says) == 1


def test_sockets_on_a_port_to_listen_on_are_closed(sink: ToSink) -> None:
    pool = Pool()
    port = free_port()
    paths = paths_of(pool, Config(vni=1, srcport=(port, port)))
    path = paths[sink(0)]
    sent(path)
    pool.senders.vacate(V6, port)
    assert path.fileno(0) >= 0
    pool.senders.vacate(V4, port)
    with UdpReceiver.open(ANY[V4], port, gro=False):
        assert path.fileno(0) == -1
    paths.close()


def free_port(family: socket.AddressFamily = V4) -> int:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


# --- retries ------------------------------------------------------------------------------------


def test_a_network_change_ends_the_pause_before_a_retry(sink: ToSink) -> None:
    senders = SenderSockets()
    path = Path(Binding(V4, None, "nix0"), OuterHeaderOptions(), sink(0), 1, senders, gso=True)
    assert path.send(DATAGRAM, 100, 0, 0.0) == (100, Drop.UNDERLAY_UNREACHABLE)
    path.binding = ANY[V4]
    assert path.send(DATAGRAM, 100, 0, 0.9) == (100, Drop.UNDERLAY_UNREACHABLE)
    senders.network_changes += 1
    assert path.send(DATAGRAM, 100, 0, 0.9) == (100, None)
    path.close()


def test_sockets_follow_the_source_address_of_their_route(
    sink: ToSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(ANY[V4], OuterHeaderOptions(), sink(0), 4, SenderSockets(), gso=True)

    def sources() -> list[str]:
        found = [path.peek(flow) for flow in range(4)]
        return [sock.getsockname()[0] if sock is not None else "" for sock in found]

    with monkeypatch.context() as patched:
        # As by several next hops: the address depends on the source port.
        patched.setattr(
            Binding, "sockaddr", lambda _, port: ("127.0.0.2" if port > 0 else "", port)
        )
        kept = [sent(path, flow) for flow in range(3)]
        assert sources() == ["127.0.0.2"] * 3 + [""]
        path.refresh_route()
        assert [path.fileno(flow) for flow in range(3)] == kept
    # Now the route has another address, also for these ports.
    sent(path, 3)
    path.refresh_route()
    assert sources() == ["", "", "", "127.0.0.1"]
    for flow in range(4):
        sent(path, flow)
    path.refresh_route()
    assert sources() == ["127.0.0.1"] * 4
    path.close()


# --- one port for both directions ---------------------------------------------------------------


class SharedPort:
    """A receiving socket whose port is also the only source port."""

    def __init__(self, stack: ExitStack, family: socket.AddressFamily) -> None:
        self.family = family
        self.returned: list[ReturnedDatagram] = []
        self.rearmed = 0
        self.senders = SenderSockets()
        self.senders.find_shared = self._receiver
        self.port = free_port(family)
        self.ports = range(self.port, self.port + 1)
        self.listen()
        stack.callback(self.close)

    def listen(self) -> None:
        self.receiver = UdpReceiver.open(ANY[self.family], self.port, gro=True)
        self.shared = SharedSocket(
            self.receiver.sock, ANY[self.family], self.returned.append, self._rearm
        )

    def receive(self) -> bytes:
        """Receive when readable, as the event loop does. Raises: OSError for a queued error."""
        readable, _, _ = select.select([self.receiver], [], [], DEADLINE)
        assert readable
        return self.receiver.sock.recv(1000)

    def _rearm(self) -> None:
        self.rearmed += 1

    def _receiver(self, binding: Binding, port: int) -> SharedSocket | None:
        return self.shared if port == self.port and self.shared.can_send_as(binding) else None

    def path(
        self, port: int, outer: OuterHeaderOptions | None = None, host: str | None = None
    ) -> Path:
        remote = Remote(host or HOST[self.family], port)
        outer = outer or OuterHeaderOptions(srcport=self.ports)
        return Path(ANY[self.family], outer, remote, 1, self.senders, gso=True)

    def close(self) -> None:
        self.shared.close()
        self.receiver.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def peer(stack: ExitStack, family: socket.AddressFamily) -> socket.socket:
    sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
    sock.bind((HOST[family], 0))
    sock.settimeout(DEADLINE)
    return sock


@FAMILIES
def test_a_shared_port_still_receives(stack: ExitStack, family: socket.AddressFamily) -> None:
    """Also from a remote whose source port is the port that is sent to."""
    ours, theirs = SharedPort(stack, family), peer(stack, family)
    path = ours.path(theirs.getsockname()[1])
    for flow in (0, 1, DF << FLOW_BITS, 0xB8 << FLOW_BITS):
        three = memoryview(bytes(250))
        assert path.send(three, 100, flow, 0.0) == (250, None)
        assert b"".join(theirs.recv(1000) for _ in range(3)) == three
        sent(path, flow)
        data, (host, port, *_) = theirs.recvfrom(1000)
        assert (data, host, port) == (bytes(DATAGRAM), HOST[family], ours.port)
        theirs.sendto(b"answer", (HOST[family], ours.port))
        assert ours.receive() == b"answer"
    assert len(ours.senders) == 0
    assert path.mtu == (65536 if family == V6 else 65535)
    path.close()
    assert ours.receiver.fileno() >= 0


@FAMILIES
def test_each_segment_has_its_own_outer_header(
    stack: ExitStack, family: socket.AddressFamily
) -> None:
    ours, theirs = SharedPort(stack, family), peer(stack, family)
    v6 = family == V6
    theirs.setsockopt(*((socket.IPPROTO_IPV6, 66) if v6 else (socket.IPPROTO_IP, 13)), 1)
    theirs.setsockopt(*((socket.IPPROTO_IPV6, 51) if v6 else (socket.IPPROTO_IP, 12)), 1)
    port = theirs.getsockname()[1]
    looks = [
        OuterHeaderOptions(srcport=ours.ports, tos=tos, ttl=ttl) for tos, ttl in ((0xB8, 7), (0, 0))
    ]
    paths = [ours.path(port, outer) for outer in looks]
    for path, outer in zip(paths * 2, looks * 2, strict=True):
        sent(path)
        _, ancillary, _, _ = theirs.recvmsg(1000, 200)
        assert sorted(data[0] for _, _, data in ancillary) == sorted((outer.tos, outer.ttl or 64))
    for path in paths:
        path.close()


@FAMILIES
def test_flooding_from_a_shared_port(stack: ExitStack, family: socket.AddressFamily) -> None:
    ours = SharedPort(stack, family)
    theirs = [peer(stack, family) for _ in range(10)]
    replicator = Replicator(
        [ANY[family]], OuterHeaderOptions(srcport=ours.ports), ours.senders, gso=True
    )
    recipients = replicator.prepare(
        [Remote(HOST[family], each.getsockname()[1]) for each in theirs]
    )
    result = recipients.send(memoryview(bytes(250)), 100, 0)
    assert (result.octets, result.sent_to, result.datagrams, result.drops) == (250, 10, 30, [])
    for each in theirs:
        for _ in range(3):
            data, (_, port, *_) = each.recvfrom(1000)
            assert len(data) in (50, 100)
            assert port == ours.port
    replicator.close()


@FAMILIES
def test_icmp_errors_do_not_disturb_the_receiver(
    stack: ExitStack, family: socket.AddressFamily
) -> None:
    ours = SharedPort(stack, family)
    path, other = ours.path(free_port(family)), peer(stack, family)
    path_to_peer = ours.path(other.getsockname()[1])
    sent(path)
    # The next send to that host reports it, and sends nothing.
    assert path.send(DATAGRAM, 100, 0, 0.0) == (0, Drop.UNDERLAY_REFUSED)
    sent(path_to_peer)
    sent(path)
    with pytest.raises(ConnectionRefusedError):
        ours.receive()
    ours.shared.report(ours.shared.returned_datagrams())
    assert ours.returned == [ReturnedDatagram(HOST[family], Drop.UNDERLAY_REFUSED)]
    assert ours.rearmed >= 2
    sent(path_to_peer)
    other.sendto(b"x", (HOST[family], ours.port))
    assert ours.receive() == b"x"


def test_returned_datagrams_of_other_senders_are_reported(stack: ExitStack) -> None:
    ours = SharedPort(stack, V4)
    refused = ours.path(free_port(), host="127.0.0.2")
    theirs = peer(stack, V4)
    path_to_peer = ours.path(theirs.getsockname()[1])
    sent(refused)
    sent(path_to_peer)
    assert ours.returned == [ReturnedDatagram("127.0.0.2", Drop.UNDERLAY_REFUSED)]
    replicator = Replicator(
        [ANY[V4]], OuterHeaderOptions(srcport=ours.ports), ours.senders, gso=True
    )
    recipients = replicator.prepare([Remote("127.0.0.1", theirs.getsockname()[1])])
    sent(refused)
    result = recipients.send(DATAGRAM, 100, 0)
    assert (result.octets, result.drops) == (100, [])
    assert len(ours.returned) == 2


@FAMILIES
def test_a_new_receiver_is_shared_after_the_old_one_closed(
    stack: ExitStack, family: socket.AddressFamily
) -> None:
    ours, theirs = SharedPort(stack, family), peer(stack, family)
    path = ours.path(theirs.getsockname()[1])
    sent(path)
    ours.close()
    assert path.fileno(0) == -1
    ours.listen()
    sent(path)
    for _ in range(2):
        assert theirs.recvfrom(1000)[1][1] == ours.port


def test_an_unfragmented_reply_restores_the_options(stack: ExitStack) -> None:
    """IPv6 datagrams may be fragmented again after it."""
    ours, theirs = SharedPort(stack, V6), peer(stack, V6)
    ours.receiver.send_unfragmented(bytes(SIZE), "::1", theirs.getsockname()[1])
    assert ours.receiver.sock.getsockopt(socket.IPPROTO_IPV6, 62) == 0


def test_only_a_receiver_with_a_wider_binding_is_shared() -> None:
    with UdpReceiver.open(ANY[V4], 0, gro=False) as receiver:
        for binding, other, can in (
            (ANY[V4], ANY[V4], True),
            (ANY[V4], ANY[V6], False),
            (ANY[V4], Binding(V4, None, "eth1"), True),
            (Binding(V4, None, "eth0"), Binding(V4, None, "eth1"), False),
            (Binding(V4, None, "eth0"), ANY[V4], False),
        ):
            shared = SharedSocket(receiver.sock, binding, lambda _returned: None, lambda: None)
            assert shared.can_send_as(other) is can
