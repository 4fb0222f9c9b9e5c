"""The ingress guard: the second socket of a UDP port, and which datagrams it gets."""

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network

import pytest

from tests.netns.hosts import (
    Pair,
    address,
    udp_socket,
)
from vtep.errors import VtepError
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.host import netlink_events
from vtep.host.link_table import LinkTable
from vtep.io.binding import Binding
from vtep.io.ingress_guard import IngressGuard
from vtep.io.receiver import UdpReceiver
from vtep.testing.lab import Host

V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
OWN = {V4: "192.0.2.1", V6: "2001:db8::1"}
NETS = {V4: ip_network("192.0.2.0/24"), V6: ip_network("2001:db8::/64")}
ANYBODY = (ip_network("0.0.0.0/0"), ip_network("::/0"))


def host(family: socket.AddressFamily, number: int) -> str:
    return str(NETS[family][number])


class Port:
    """A receiver and its guard on one host, and a sender on another."""

    def __init__(
        self, pair: Pair, family: socket.AddressFamily, *, dev: str | None = None, gro: bool = True
    ) -> None:
        self.a, self.b = pair
        self.family = family
        self.version = 4 if family == V4 else 6
        self.binding = Binding(family, None, dev)
        with self.a.inside():
            self.receiver = UdpReceiver.open(self.binding, 4789, gro=gro)
            self.guard = IngressGuard(self.receiver.sock, self.binding)
            self.eth0 = socket.if_nametoindex("eth0")
        self._buffer = memoryview(bytearray(65536))

    def accept(self, *numbers: int, denied: tuple[int, ...] = ()) -> None:
        hosts = [host(self.family, number) for number in numbers]
        self.guard.apply(IngressFilter.of(self.version, hosts, (), denied))

    def send(self, number: int, payload: bytes, to: str = "") -> None:
        with udp_socket(self.b, host(self.family, number)) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(payload, (to or OWN[self.family], 4789))

    def first(self) -> list[bytes]:
        got = []
        with suppress(BlockingIOError):
            while True:
                octets = self.receiver.receive(self._buffer)[0]
                got.append(bytes(self._buffer[:octets]))
        return got

    def second(self) -> list[tuple[bytes, str, int, bool]]:
        got = []
        with suppress(BlockingIOError):
            while True:
                arrival = self.guard.receive(self._buffer)
                octets, _, source, _, _ = arrival.received
                data = bytes(self._buffer[:octets])
                got.append((data, source, arrival.device, arrival.copied))
        return got

    def close(self) -> None:
        self.guard.close()
        self.receiver.close()


Open = Callable[..., Port]


@pytest.fixture
def port(pair: Pair) -> Iterator[Open]:
    opened: list[Port] = []

    def opener(family: socket.AddressFamily, **options: object) -> Port:
        for number in range(3, 6):
            length = NETS[family].prefixlen
            address(pair[1], "eth0", f"{host(family, number)}/{length}")
        opened.append(Port(pair, family, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield opener
    for each in opened:
        each.close()


@FAMILIES
@pytest.mark.parametrize("gro", [True, False], ids=["gro", "single"])
def test_sources_and_devices(port: Open, family: socket.AddressFamily, gro: bool) -> None:
    it = port(family, gro=gro)
    it.accept(2, 4)
    for number in (2, 3, 4, 5):
        it.send(number, bytes([number]))
    assert it.first() == [b"\2", b"\4"]
    assert it.second() == [
        (b"\3", host(family, 3), it.eth0, False),
        (b"\5", host(family, 5), it.eth0, False),
    ]
    it.accept(2, 3, denied=(it.eth0 + 1,))
    it.send(3, b"now known")
    it.accept(3, denied=(it.eth0,))
    it.send(3, b"by a denied device")
    assert it.first() == [b"now known"]
    assert it.second() == [(b"by a denied device", host(family, 3), it.eth0, False)]
    it.guard.apply(IngressFilter.of(it.version, (), ANYBODY, ()))
    it.send(5, b"anybody")
    assert it.first() == [b"anybody"]


def test_a_broadcast_reaches_one_of_the_two(port: Open) -> None:
    it = port(V4)
    it.accept(2)
    for number in (2, 3):
        it.send(number, bytes([number]), "192.0.2.255")
    assert it.first() == [b"\2"]
    assert it.second() == [
        (b"\2", "192.0.2.2", it.eth0, True),
        (b"\3", "192.0.2.3", it.eth0, False),
    ]
    it.accept(2, denied=(it.eth0,))
    it.send(2, b"denied", "192.0.2.255")
    assert it.first() == []
    assert it.second() == [(b"denied", "192.0.2.2", it.eth0, False)]


@FAMILIES
def test_groups_are_received_beside_the_guard(port: Open, family: socket.AddressFamily) -> None:
    """The order in which sockets are bound does not matter."""
    it = port(family, dev="eth0")
    group = {V4: "239.1.1.1", V6: "ff05::101"}[family]
    it.accept(3)
    with it.a.inside():
        member = it.receiver.join_group(
            it.binding, ip_address(group), [UdpReceiver(it.guard.socket)]
        )
        it.guard.close()
        it.guard = IngressGuard(it.receiver.sock, it.binding)
    it.accept(2)
    device = ("dev", "eth0") if family == V6 else ("dev", "eth0", "src", "192.0.2.2")
    it.b.run("ip", "route", "add", f"{group}/{128 if family == V6 else 32}", *device)
    it.send(3, b"to the group", group)
    it.send(2, b"to the host")
    with member:
        assert member.receive(memoryview(bytearray(99)))[0] == len(b"to the group")
        assert it.first() == [b"to the host"]
        assert it.second() == []


@FAMILIES
def test_port_is_exclusive(port: Open, pair: Pair, family: socket.AddressFamily) -> None:
    it = port(family)
    it.accept(2)
    a, _ = pair
    with a.inside():
        with pytest.raises(VtepError, match="this UDP port is taken"):
            UdpReceiver.open(it.binding, 4789, gro=True)
        with socket.socket(family, socket.SOCK_DGRAM) as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                thief.bind(("", 4789))
    a.run("ip", "link", "add", "k", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "4789")
    said = a.run("ip", "link", "set", "k", "up", check=False)
    assert said == ""
    assert "state UP" not in a.run("ip", "link", "show", "k")
    # A successor has its own reuseport group.
    with a.inside():
        both = [it.receiver, UdpReceiver(it.guard.socket)]
        other = UdpReceiver.open(it.binding, 4789, gro=True, beside=both)
        it.close()
        it.receiver, it.guard = other, IngressGuard(other.sock, it.binding)
    it.accept(2)
    for number in (2, 3):
        it.send(number, bytes([number]))
    assert it.first() == [b"\2"]
    assert [data for data, *_ in it.second()] == [b"\3"]


@FAMILIES
def test_more_sources_than_a_program_can_match(port: Open, family: socket.AddressFamily) -> None:
    """The program matches prefixes instead, and lets all accepted sources pass."""
    it = port(family)
    step = 0x10001 if family == V4 else 1 << 61
    base = int(NETS[family][2])
    bits = 32 if family == V4 else 128
    hosts = [str(ip_address((base + number * step) % (1 << bits))) for number in range(5000)]
    hosts = [each for each in hosts if (":" in each) is (family == V6)]
    it.guard.apply(IngressFilter.of(it.version, hosts, (), ()))
    it.send(2, b"known")
    assert it.first() == [b"known"]


def test_closing_the_guard_returns_all_datagrams_to_the_receiver(port: Open) -> None:
    it = port(V4)
    it.accept(2)
    it.guard.close()
    for to in ("", "192.0.2.255"):
        it.send(3, b"unknown", to)
    assert it.first() == [b"unknown"] * 2


# --- stacked devices --------------------------------------------------------------------------


def table(at: Host) -> LinkTable:
    links = LinkTable()
    with at.inside():
        for messages in netlink_events.dump_links():
            links.update(messages)
    return links


def test_devices_above_a_tap(pair: Pair) -> None:
    a, b = pair

    def add(*words: str) -> None:
        a.run("ip", "link", "add", *words)

    a.run("ip", "tuntap", "add", "tap0", "mode", "tap")
    a.run("ip", "tuntap", "add", "tap1", "mode", "tap")
    for bridge in ("br0", "br1", "br2"):
        add(bridge, "type", "bridge")
    for lower, name in (("br0", "mac0"), ("br2", "mac2"), ("eth0", "mac9")):
        add("link", lower, "name", name, "type", "macvlan", "mode", "bridge")
    # The bridge has a stack of its own, and a guest in another namespace.
    add("port0", "type", "veth", "peer", "name", "here0")
    add("port1", "type", "veth", "peer", "name", "guest", "netns", b.pid)
    for port in ("tap0", "port0", "port1"):
        a.run("ip", "link", "set", port, "master", "br0")
    a.run("ip", "link", "set", "here0", "master", "br2")
    links = table(a)
    with a.inside():

        def above(*taps: str) -> set[str]:
            found = links.with_upper(map(socket.if_nametoindex, taps))
            return {socket.if_indextoname(index) for index in found}

        assert above("tap0") == {"tap0", "br0", "mac0", "port0", "here0", "br2", "mac2"}
        assert above("tap1") == {"tap1"}
        assert above() == set()


def test_changes_of_stacks_are_reported(pair: Pair) -> None:
    a, _ = pair
    links = table(a)
    with a.inside():
        events = netlink_events.subscribe_links()

    def changed(*command: str) -> bool:
        a.run("ip", *command)
        restacked = False
        with suppress(BlockingIOError):
            while True:
                restacked |= links.update(events.recv(1 << 16))
        return restacked

    with events, a.inside():
        assert changed("tuntap", "add", "tap0", "mode", "tap")
        assert changed("link", "add", "br0", "type", "bridge")
        tap, bridge = map(socket.if_nametoindex, ("tap0", "br0"))
        assert links.with_upper([tap]) == {tap}
        assert changed("link", "set", "tap0", "master", "br0")
        assert links.with_upper([tap]) == {tap, bridge}
        assert not changed("link", "set", "tap0", "mtu", "1400")
        assert changed("link", "set", "tap0", "nomaster")
        assert links.with_upper([tap]) == {tap}
        assert changed("link", "set", "tap0", "master", "br0")
        assert changed("link", "del", "br0")
        assert links.with_upper([tap]) == {tap}
