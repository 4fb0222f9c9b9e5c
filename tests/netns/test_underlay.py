"""The sockets of the underlay: datagrams on the wire, and metadata of received datagrams."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from typing import Self

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    address,
    link_local_address,
    packet_socket,
    ping,
    udp_socket,
    wait_until,
)
from vtep.counters import Drop
from vtep.datapath.pool import Paths, Pool
from vtep.errors import VtepError
from vtep.forwarding.fdb import Remote
from vtep.io.addresses import host_of
from vtep.io.binding import Binding
from vtep.io.interfaces import FloodDrop
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, Path
from vtep.io.receiver import UdpReceiver
from vtep.io.replicator import Replicator
from vtep.io.sender_sockets import SenderSockets
from vtep.testing.lab import Host, Lab
from vtep.wire import outer_header

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
ADDRESSES = {V4: ("192.0.2.1", "192.0.2.2"), V6: ("2001:db8::1", "2001:db8::2")}
BINDINGS: dict[int, Binding] = {family: Binding(family, None, None) for family in (V4, V6)}


def binding(family: socket.AddressFamily, dev: str | None = None) -> Binding:
    return Binding(family, None, dev)


def next_on(wire: socket.socket) -> Packet:
    """Return the next datagram to the VXLAN port."""
    while True:
        packet = Ether(wire.recv(65536))
        udp = packet.payload.payload
        if isinstance(udp, UDP) and udp.dport == 4789:
            return packet


def no_one(*_: object) -> None:
    """Ignore the events of a path."""


class Wire:
    """Receives datagrams to port 4789 on a host, and dissects them with scapy."""

    def __init__(self, host: Host) -> None:
        self._socket = packet_socket(host, "eth0")
        # Bound to the wildcard address of both families, so that the host sends no ICMP errors.
        self._listener = udp_socket(host, "::", 4789)

    def next(self) -> Packet:
        return next_on(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._listener.close()


@contextmanager
def path_to(
    host: Host, family: socket.AddressFamily, outer: OuterHeaderOptions, slots: int = 1
) -> Iterator[Path]:
    remote = Remote(ADDRESSES[family][1], 4789)
    path = Path(binding(family), outer, remote, slots, SenderSockets(), gso=True)
    with host.inside():
        try:
            yield path
        finally:
            path.close()


@contextmanager
def replicator_to(
    host: Host, family: socket.AddressFamily, outer: OuterHeaderOptions
) -> Iterator[Callable[..., object]]:
    """Return a function like `send` of a path, with a flooder to the same remote."""
    replicator = Replicator(BINDINGS.values(), outer, SenderSockets(), gso=True)
    with host.inside():
        recipients = replicator.prepare([Remote(ADDRESSES[family][1], 4789)])

        def send(data: memoryview, stride: int, flow: int, _now: float) -> object:
            sent = recipients.send(data, stride, flow)
            assert sent == (len(data), 1, -(-len(data) // stride), [], -1)
            return sent

        try:
            yield send
        finally:
            replicator.close()


@contextmanager
def sender(
    host: Host, family: socket.AddressFamily, outer: OuterHeaderOptions, kind: str
) -> Iterator[Callable[..., object]]:
    if kind == "path":
        with path_to(host, family, outer) as path:
            yield path.send
    else:
        with replicator_to(host, family, outer) as send:
            yield send


KINDS = pytest.mark.parametrize("kind", ["path", "replicator"])


def looks(packet: Packet) -> tuple[int, int, int, bool]:
    """Return TOS, TTL, flow label and DF."""
    ip = packet.payload  # Not `packet[IP]`: scapy may take the random payload for IP.
    if isinstance(ip, IP):
        return ip.tos, ip.ttl, 0, "DF" in ip.flags
    assert isinstance(ip, IPv6)
    return ip.tc, ip.hlim, ip.fl, False


def payload(packet: Packet) -> bytes:
    """Return the UDP payload as sent, undissected."""
    octets: bytes = packet.original
    return octets[14 + (20 if isinstance(packet.payload, IP) else 40) + 8 :]


# --- outer headers ----------------------------------------------------------------------------


@KINDS
@FAMILIES
@pytest.mark.parametrize("count", [1, 3], ids=["one", "gso"])
@pytest.mark.parametrize(
    ("outer", "key", "look"),
    [
        pytest.param(OuterHeaderOptions(), 0, (0, 64, 0, False), id="as-it-is"),
        pytest.param(OuterHeaderOptions(ttl=7, tos=0xB8), 0, (0xB8, 7, 0, False), id="ttl-tos"),
        pytest.param(OuterHeaderOptions(ttl=7, tos=0xB8), 0xBA, (0xBA, 7, 0, False), id="ect"),
        pytest.param(OuterHeaderOptions(), 0x03, (0x03, 64, 0, False), id="ce"),
        pytest.param(OuterHeaderOptions(), 0x1E_00 | 0x20, (0x20, 30, 0, False), id="inherited"),
        pytest.param(
            OuterHeaderOptions(), 0xFF_00 | 0xFF, (0xFF, 255, 0, False), id="inherited-most"
        ),
        pytest.param(
            OuterHeaderOptions(flowlabel=0xABCDE), 0x01, (0x01, 64, 0xABCDE, False), id="label"
        ),
        pytest.param(
            OuterHeaderOptions(), 0x12345 << 16 | 0x02, (0x02, 64, 0x12345, False), id="its-label"
        ),
        pytest.param(OuterHeaderOptions(df=True), 0, (0, 64, 0, True), id="df"),
        pytest.param(
            OuterHeaderOptions(), outer_header.DF | 0x02, (0x02, 64, 0, True), id="its-df"
        ),
    ],
)
def test_headers(
    pair: Pair,
    family: socket.AddressFamily,
    kind: str,
    count: int,
    outer: OuterHeaderOptions,
    key: int,
    look: tuple[int, int, int, bool],
) -> None:
    tos, ttl, label, df = look
    a, b = pair
    b.run("ethtool", "-K", "eth0", "gro", "off")
    a.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
    data = memoryview(bytearray(os.urandom(100 * count - 1)))
    with Wire(b) as wire, sender(a, family, outer, kind) as send:
        send(data, 100, key << FLOW_BITS, 0.0)
        for at in range(count):
            packet = wire.next()
            assert payload(packet) == data[at * 100 : at * 100 + 100]
            v4 = family == V4
            assert looks(packet) == (tos, ttl, 0 if v4 else label, df and v4)
            assert packet[UDP].sport in range(49152, 65536)
            assert packet[UDP].chksum != 0


@KINDS
@FAMILIES
def test_no_checksums(pair: Pair, family: socket.AddressFamily, kind: str) -> None:
    """The kernel does not segment without checksums, so datagrams are sent one by one."""
    a, b = pair
    outer = OuterHeaderOptions(udpcsum=False, udp6zerocsumtx=True)
    data = memoryview(bytearray(os.urandom(250)))
    with Wire(b) as wire, sender(a, family, outer, kind) as send:
        for at in range(0, len(data), 100):
            send(data[at : at + 100], 100, 0, 0.0)
            packet = wire.next()
            assert packet[UDP].chksum == 0
            assert payload(packet) == data[at : at + 100]


@FAMILIES
def test_path_without_checksums_sends_single_datagrams(
    pair: Pair, family: socket.AddressFamily
) -> None:
    with path_to(pair[0], family, OuterHeaderOptions(udpcsum=False, udp6zerocsumtx=True)) as path:
        assert path.send(memoryview(bytearray(250)), 100, 0, 0.0) == (100, None)


@FAMILIES
def test_source_ports(pair: Pair, family: socket.AddressFamily) -> None:
    a, b = pair
    ports = range(2000, 2016)
    with Wire(b) as wire, path_to(a, family, OuterHeaderOptions(srcport=ports), slots=8) as path:
        seen = set()
        for flow in range(16):
            path.send(memoryview(b"datagram"), 8, flow, 0.0)
            seen.add(wire.next()[UDP].sport)
    assert len(seen) == 8
    assert seen <= set(ports)


def test_no_free_source_port(pair: Pair) -> None:
    a, _ = pair
    with path_to(a, V4, OuterHeaderOptions(srcport=range(2000, 2001))) as path:
        with udp_socket(a, "0.0.0.0", 2000):
            assert path.send(memoryview(b"x"), 1, 0, 0.0) == (1, Drop.UNDERLAY_FAILED)
        assert path.send(memoryview(b"x"), 1, 0, 2.0) == (1, None)


# --- metadata of received datagrams -----------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "single"])
@pytest.mark.parametrize("tos", [0x00, 0x01, 0xB8, 0xBA, 0x03])
def test_ecn_is_received(pair: Pair, family: socket.AddressFamily, gro: bool, tos: int) -> None:
    a, b = pair
    buffer = memoryview(bytearray(65536))
    with b.inside():
        receiver = UdpReceiver.open(binding(family), 4789, gro=gro)
    with receiver, path_to(a, family, OuterHeaderOptions()) as path:
        data = memoryview(bytearray(os.urandom(300)))
        path.send(data, 100, tos << FLOW_BITS, 0.0)
        got = 0
        receiver.sock.settimeout(DEADLINE)
        while got < 300:
            octets, stride, host, _, mark = receiver.receive(buffer)
            assert buffer[:octets] == data[got : got + octets]
            assert (stride, host, mark) == (100, ADDRESSES[family][0], tos & 3)
            got += octets


def test_link_local_addresses(pair: Pair) -> None:
    """They are written with their scope, like the remotes."""
    a, b = pair
    own, other = (link_local_address(host) for host in pair)
    buffer = memoryview(bytearray(65536))
    with b.inside():
        receiver = UdpReceiver.open(Binding(V6, ip_address(other), "eth0"), 4789, gro=True)
    receiver.sock.settimeout(DEADLINE)
    for dev in (None, "eth0"):
        remote = Remote(host_of(ip_address(other if dev else f"{other}%eth0"), dev), 4789)
        assert remote.host == f"{other}%eth0"
        path = Path(binding(V6, dev), OuterHeaderOptions(), remote, 1, SenderSockets(), gso=True)
        replicator = Replicator([binding(V6, dev)], OuterHeaderOptions(), SenderSockets(), gso=True)
        with a.inside():
            assert path.send(memoryview(b"datagram"), 8, 0, 0.0) == (8, None)
            assert receiver.receive(buffer)[2] == f"{own}%eth0"
            recipients = replicator.prepare([remote])
            sent = recipients.send(memoryview(bytearray(8)), 8, 0)
            assert sent == (8, 1, 1, [], -1)
            assert receiver.receive(buffer)[2] == f"{own}%eth0"
        path.close()
        replicator.close()
    receiver.close()


def test_remote_with_a_device(pair: Pair) -> None:
    """As by `via` in the FDB."""
    a, b = pair
    a.run("ip", "route", "del", "192.0.2.0/24")
    paths = Paths(
        Pool(),
        {4: binding(V4)},
        OuterHeaderOptions(),
        outer_header.InheritPolicy(),
        no_one,
        gso=True,
    )
    data = memoryview(b"datagram")
    with a.inside(), Wire(b) as wire:
        for via, lost in (("eth0", None), ("nix", Drop.UNDERLAY_UNREACHABLE)):
            path = paths[Remote("192.0.2.2", 4789, via=via)]
            assert path.send(data, 8, 0, 0.0) == (8, lost)
        assert payload(wire.next()) == data
        path = paths[Remote("192.0.2.2", 4789)]
        assert path.send(data, 8, 0, 0.0) == (8, Drop.UNDERLAY_UNREACHABLE)
        paths.close()


@pytest.mark.parametrize("accepted", [True, False])
def test_zero_checksums_over_ipv6(pair: Pair, accepted: bool) -> None:
    a, b = pair
    buffer = memoryview(bytearray(65536))
    with b.inside():
        receiver = UdpReceiver.open(binding(V6), 4789, gro=True, zero_checksums=accepted)
    receiver.sock.settimeout(DEADLINE)
    with receiver:
        for outer, octets in (
            (OuterHeaderOptions(udp6zerocsumtx=True), 7),
            (OuterHeaderOptions(), 9),
        ):
            with path_to(a, V6, outer) as path:
                path.send(memoryview(bytearray(octets)), octets, 0, 0.0)
        assert receiver.receive(buffer)[0] == (7 if accepted else 9)


# --- multicast --------------------------------------------------------------------------------

GROUPS = {V4: ("239.1.1.1", "239.1.1.2"), V6: ("ff05::101", "ff05::102")}


def memberships(host: Host) -> str:
    return host.run("ip", "maddr", "show", "dev", "eth0")


@FAMILIES
def test_join_receive_from_and_leave_a_group(pair: Pair, family: socket.AddressFamily) -> None:
    a, b = pair
    group, stranger = GROUPS[family]
    buffer = memoryview(bytearray(65536))
    with b.inside():
        receiver = UdpReceiver.open(binding(family), 4789, gro=True)
        member = receiver.join_group(binding(family, "eth0"), ip_address(group))
        # Another process of this host joins the other group, which must not be received here.
        other = udp_socket(b, "::" if family == V6 else "0.0.0.0", 5000)
        UdpReceiver(other).join_group(binding(family, "eth0"), ip_address(stranger)).sock.detach()
        other.close()
    assert group in memberships(b)
    member.sock.settimeout(DEADLINE)
    receiver.sock.settimeout(DEADLINE)
    bound = {4: binding(V4, "eth0"), 6: binding(V6, "eth0")}
    data = memoryview(bytearray(300))
    paths = Paths(
        Pool(), bound, OuterHeaderOptions(), outer_header.InheritPolicy(), no_one, gso=True
    )
    with receiver, a.inside(), packet_socket(b, "eth0") as wire:
        for host in (stranger, group, ADDRESSES[family][1]):
            path = paths[Remote(host, 4789)]
            assert path.send(data, 100, 2 << FLOW_BITS, 0.0) == (300, None)
            assert looks(next_on(wire))[:2] == (2, 64 if host == ADDRESSES[family][1] else 1)
        octets, stride, host, _, mark = member.receive(buffer)
        assert (stride, host, mark) == (100, ADDRESSES[family][0], 2)
        _, *told, _, mark = receiver.receive(buffer)
        assert (told, mark) == ([100, ADDRESSES[family][0]], 2)
        while octets < 300:
            octets += member.receive(buffer)[0]
        for sock in (member, receiver):
            sock.sock.setblocking(False)
        while (
            octets < 600 - 100
        ):  # Those of the three datagrams that are for the receiver, and nothing more.
            try:
                octets += receiver.receive(buffer)[0]
            except BlockingIOError:
                break
        for sock in (member, receiver):
            with pytest.raises(BlockingIOError):
                sock.receive(buffer)
        paths.close()
        member.close()
    assert group not in memberships(b)


@FAMILIES
def test_sender_to_a_group_does_not_receive_its_own_datagrams(
    pair: Pair, family: socket.AddressFamily
) -> None:
    a, _b = pair
    group, _ = GROUPS[family]
    buffer = memoryview(bytearray(65536))
    bound = binding(family, "eth0")
    members = []
    for host in pair:
        with host.inside():
            receiver = UdpReceiver.open(binding(family), 4789, gro=True)
            members.append(receiver.join_group(bound, ip_address(group)))
            receiver.close()
    path = Path(bound, OuterHeaderOptions(ttl=5), Remote(group, 4789), 1, SenderSockets(), gso=True)
    with members[0] as own, members[1] as other, a.inside():
        other.sock.settimeout(DEADLINE)
        assert path.send(memoryview(b"datagram"), 8, 0, 0.0) == (8, None)
        assert other.receive(buffer)[0] == 8
        with pytest.raises(BlockingIOError):
            own.receive(buffer)
        path.close()


def test_port_is_exclusive_after_joining_a_group(pair: Pair) -> None:
    _, b = pair
    with b.inside(), UdpReceiver.open(binding(V4), 4789, gro=True) as receiver:
        with receiver.join_group(binding(V4, "eth0"), ip_address("239.1.1.1")):
            with pytest.raises(VtepError, match="this UDP port is taken"):
                UdpReceiver.open(binding(V4), 4789, gro=True)
            with socket.socket(V4, socket.SOCK_DGRAM) as thief:
                thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    thief.bind(("", 4789))
            # The group on a second device of this host, or of a second VTEP.
            receiver.join_group(binding(V4, "lo"), ip_address("239.1.1.1")).close()
        with pytest.raises(VtepError, match=r"--group 239.1.1.1: cannot join it on --dev nix"):
            receiver.join_group(binding(V4, "nix"), ip_address("239.1.1.1"))


# --- many remotes -----------------------------------------------------------------------------


class Sink:
    """Receives the datagrams to the VXLAN port of several addresses of a host."""

    def __init__(self, host: Host, *addresses: str) -> None:
        self._sockets = {own: udp_socket(host, own, 4789) for own in addresses}

    def next(self, own: str) -> bytes:
        return self._sockets[own].recv(65536)

    def is_dry(self) -> bool:
        for sock in self._sockets.values():
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.recv(65536)
                return False
            sock.settimeout(DEADLINE)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets.values():
            sock.close()


def many(host: Host, count: int) -> list[str]:
    """Add `count` addresses of each family to a host."""
    v4 = [f"192.0.2.{100 + number}" for number in range(count)]
    v6 = [f"2001:db8::1:{number}" for number in range(count)]
    address(host, "eth0", *(f"{own}/24" for own in v4), *(f"{own}/64" for own in v6))
    return v4 + v6


def test_each_remote_receives_every_datagram_once_and_in_order(pair: Pair) -> None:
    a, b = pair
    hosts = many(b, 10)
    shuffled = hosts[::2] + hosts[1::2]
    data = memoryview(bytearray(os.urandom(150 * 100)))
    replicator = Replicator(BINDINGS.values(), OuterHeaderOptions(), SenderSockets(), gso=True)
    with Sink(b, *hosts) as sink, a.inside():
        recipients = replicator.prepare([Remote(host, 4789) for host in shuffled])
        rest, calls = data, 0
        while rest:
            sent = recipients.send(rest, 100, 5)
            assert (sent.sent_to, sent.drops) == (20, [])
            assert sent.datagrams == 20 * -(-sent.octets // 100)
            rest = rest[sent.octets :]
            calls += 1
        assert calls == 3  # Of 64, 64 and 22 datagrams.
        for host in hosts:
            assert b"".join(sink.next(host) for _ in range(150)) == data
        assert sink.is_dry()
        replicator.close()


def test_losses_are_counted_by_remote_and_reason(pair: Pair) -> None:
    """One remote has no route, one no listener, and one is behind a narrow path."""
    a, b = pair
    hosts = many(b, 2)
    a.run("ip", "route", "add", "unreachable", "198.51.100.1")
    a.run("ip", "route", "add", hosts[1], "dev", "eth0", "mtu", "600")
    remotes = [Remote(host, 4789) for host in (hosts[0], "198.51.100.1", "192.0.2.2", *hosts[1:])]
    _, lost, refused, narrow, *_ = remotes
    replicator = Replicator(
        BINDINGS.values(), OuterHeaderOptions(df=True), SenderSockets(), gso=True
    )
    small, large = memoryview(bytearray(3 * 100)), memoryview(bytearray(3 * 1000))
    with Sink(b, *hosts) as sink, a.inside():
        recipients = replicator.prepare(remotes)
        returned = FloodDrop(refused, Drop.UNDERLAY_REFUSED, 1, is_earlier=True)
        sent = recipients.send(small, 100, 0)
        assert sent[:3] == (300, 6, 5 * 3)
        assert FloodDrop(lost, Drop.UNDERLAY_UNREACHABLE, 3) in sent.drops
        came_back = sent.drops.count(returned)
        assert len(sent.drops) == 1 + came_back
        for _ in range(3):
            for host in hosts:
                assert len(sink.next(host)) == 100
        # ICMP errors about earlier datagrams are reported with later ones.
        while came_back < 3 + 1:
            sent = recipients.send(small[:100], 100, 0)
            assert sent[:3] == (100, 6, 5)
            came_back += sent.drops.count(returned)
            assert {each.remote for each in sent.drops} <= {lost, refused}
            assert sent.drops.count(FloodDrop(lost, Drop.UNDERLAY_UNREACHABLE, 1)) == 1
            for host in hosts:
                assert len(sink.next(host)) == 100
        sent = recipients.send(large, 1000, 0)
        assert sent[:3] == (3000, 6, 4 * 3)
        assert [each for each in sent.drops if each.remote is narrow] == [
            FloodDrop(narrow, Drop.UNDERLAY_TOO_BIG, 1)
        ] * 3
        for host in (hosts[0], *hosts[2:]):
            assert [len(sink.next(host)) for _ in range(3)] == [1000] * 3
        assert sink.is_dry()
        replicator.close()


def test_full_send_buffer_stops_where_sending_can_resume(pair: Pair) -> None:
    a, b = pair
    hosts = many(b, 8)[:8]
    dead = (
        "192.0.2.99"  # The kernel tries to resolve its MAC address and queues datagrams meanwhile.
    )
    remotes = [Remote(host, 4789) for host in (*hosts[:4], dead, *hosts[4:])]
    replicator = Replicator(BINDINGS.values(), OuterHeaderOptions(), SenderSockets(), gso=False)
    sent_to: dict[str, int] = dict.fromkeys((*hosts, dead), 0)
    with Sink(b, *hosts) as sink, a.inside():
        recipients = replicator.prepare(remotes)
        data = memoryview(bytearray(1400))
        recipients.send(data, 1400, 0)
        (sock,) = replicator._sockets.values()
        assert isinstance(sock, socket.socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        skip = blocked = 0
        for number in range(1, 40):
            data[:4] = number.to_bytes(4, "big")
            sent = recipients.send(data, 1400, 0, skip=skip)
            assert not sent.drops
            for remote in recipients.remotes[skip : sent.sent_to]:
                sent_to[remote.host] += 1
            assert sent.datagrams == sent.sent_to - skip
            if not sent.octets:
                blocked = number
                break
            skip = 0
        assert blocked
        assert sent.blocked_fd == sock.fileno()
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        a.run("ip", "neigh", "replace", dead, "lladdr", "02:00:00:00:00:99", "dev", "eth0")
        assert poll.poll(DEADLINE * 1000)
        sent = recipients.send(data, 1400, 0, skip=sent.sent_to)
        assert (sent.octets, sent.sent_to, sent.drops) == (1400, 9, [])
        for host in hosts:
            numbers = [int.from_bytes(sink.next(host)[:4], "big") for _ in range(blocked + 1)]
            assert numbers == list(range(blocked + 1))
        assert sink.is_dry()
        replicator.close()


# --- path MTU ---------------------------------------------------------------------------------


@pytest.fixture
def routed(lab: Lab) -> tuple[Host, Host, Host]:
    """Return hosts a and b and a router between them; the MTU beyond the router is 1400."""
    a, r, b = lab.host("a"), lab.host("r"), lab.host("b")
    lab.wire(a, r, "eth0")
    r.run("ip", "link", "set", "eth0", "name", "west")
    lab.wire(r, b, "eth0", mtu=1400)
    address(a, "eth0", "192.0.2.1/24", "2001:db8::1/64")
    address(r, "west", "192.0.2.254/24", "2001:db8::ff/64")
    address(r, "eth0", "198.51.100.254/24", "2001:db8:1::ff/64")
    address(b, "eth0", "198.51.100.2/24", "2001:db8:1::2/64")
    for host, v4, v6 in (
        (a, "192.0.2.254", "2001:db8::ff"),
        (b, "198.51.100.254", "2001:db8:1::ff"),
    ):
        host.run("ip", "route", "add", "default", "via", v4)
        host.run("ip", "route", "add", "default", "via", v6)
    r.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    a.run("sysctl", "-qw", "net.ipv4.route.mtu_expires=1", "net.ipv6.route.mtu_expires=1")
    return a, r, b


@FAMILIES
def test_tunnel_mtu_follows_the_path_mtu(
    routed: tuple[Host, Host, Host], start: Callable[..., Pyvtep], family: socket.AddressFamily
) -> None:
    """It falls soon after an ICMP error, and recovers when the kernel forgets the path MTU."""
    a, _r, b = routed
    near, far = ("192.0.2.1", "198.51.100.2") if family == V4 else ("2001:db8::1", "2001:db8:1::2")
    most, least = (1450, 1350) if family == V4 else (1430, 1330)
    options = ("--vni", "2", "--df", "set", "--tap", "vx0", "--address")
    vtep = start(a, *options, "10.0.0.1/24", "--remote", far)
    start(b, *options, "10.0.0.2/24", "--remote", near)
    ping(a, "10.0.0.2")
    assert vtep.counter("mtu_changes") == 0
    fell = f"the tunnel carries packets of {least} octets now"

    def learned() -> bool:
        a.run("ping", "-c1", "-W0.1", "-s", "1400", "-M", "dont", "10.0.0.2", check=False)
        return fell in vtep.log

    wait_until(learned, "the MTU to fall")
    assert vtep.counter("mtu_changes") >= 1
    wait_until(
        lambda: f"the tunnel carries packets of {most} octets now" in vtep.log,
        "the kernel to forget",
    )


@FAMILIES
@pytest.mark.parametrize("count", [1, 3], ids=["one", "gso"])
def test_path_mtu_falls_and_recovers(
    routed: tuple[Host, Host, Host], family: socket.AddressFamily, count: int
) -> None:
    a, _r, b = routed
    far = "198.51.100.2" if family == V4 else "2001:db8:1::2"
    seen: list[tuple[str, int]] = []
    path = Path(
        binding(family),
        OuterHeaderOptions(df=True),
        Remote(far, 4789),
        1,
        SenderSockets(),
        gso=True,
    )
    path.watchers.append(lambda remote, mtu: seen.append((remote.host, mtu)))
    data = memoryview(bytearray(1440 * count))
    with Sink(b, far) as sink, a.inside():
        assert path.send(data, 1440, 0, 0.0)[1] is None
        assert seen == [(far, 1500)]

        def narrowed() -> bool:
            assert path.send(data, 1440, 0, 0.0)[1] in (None, Drop.UNDERLAY_TOO_BIG)
            return path.mtu == 1400

        wait_until(narrowed, "the MTU to fall")
        assert seen == [(far, 1500), (far, 1400)]
        small = memoryview(bytearray(1300))
        while path.send(small, 1300, 0, 0.0) != (1300, None):
            pass  # Several ICMP errors may be queued.
        assert len(sink.next(far)) == 1300

        def recovered() -> bool:
            path.refresh_route()
            return path.mtu == 1500

        wait_until(recovered, "the kernel to forget")
        assert seen == [(far, 1500), (far, 1400), (far, 1500)]
        wait_until(narrowed, "the MTU to fall again")
        path.close()


def seen_by(path: Path) -> int:
    path.refresh_route()
    return path.mtu


@FAMILIES
def test_narrow_path_without_df(
    routed: tuple[Host, Host, Host], family: socket.AddressFamily
) -> None:
    a, _r, b = routed
    far = "198.51.100.2" if family == V4 else "2001:db8:1::2"
    path = Path(
        binding(family), OuterHeaderOptions(), Remote(far, 4789), 1, SenderSockets(), gso=True
    )
    data = memoryview(bytearray(os.urandom(1440)))
    with Sink(b, far) as sink, a.inside():
        if family == V6:  # IPv6 routers do not fragment, so the sender needs an ICMP error first.
            path.send(data, 1440, 0, 0.0)
            wait_until(lambda: seen_by(path) == 1400, "the MTU to fall")
        while path.send(data, 1440, 0, 0.0) != (1440, None):
            assert family == V6  # The error about the first datagram.
        assert sink.next(far) == data
        path.close()
