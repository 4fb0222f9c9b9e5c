"""The kernel's VXLAN driver as the remote VTEP.

Over a veth with offloads it sends what a NIC would have completed: partial checksums, and TCP
superframes of up to 64 KiB in one datagram.
"""

import socket
from dataclasses import dataclass

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    kernel_vtep,
    mac_of,
    ping,
    segment,
    transfer,
    udp_socket,
)
from vtep.testing.lab import Host

pytestmark = pytest.mark.usefixtures("each_path")

UDP_SEGMENT = 103
SOL_UDP = 17
TCP_CORK = 3


@dataclass
class Mixed:
    """pyvtep on host a, the kernel driver on host b."""

    a: Host
    b: Host
    vtep: Pyvtep


@pytest.fixture(params=["offloads-on", "offloads-off"])
def offloads(request: pytest.FixtureRequest, pair: Pair) -> bool:
    on: bool = request.param == "offloads-on"
    if not on:
        for host in pair:
            features = [f"{name} off" for name in ("tx", "rx", "tso", "gso", "gro")]
            host.run("ethtool", "-K", "eth0", *" ".join(features).split())
    return on


@pytest.fixture(params=["over-ipv4", "over-ipv6"])
def mixed(request: pytest.FixtureRequest, pair: Pair, offloads: bool, start: Start) -> Mixed:
    del offloads  # They are set before there is traffic.
    a, b = pair
    prefix = "192.0.2." if request.param == "over-ipv4" else "2001:db8::"
    kernel_vtep(b, 42, f"{prefix}2", f"{prefix}1", "10.0.0.2/24", "fd00::2/64")
    vtep = start(a, *segment(42, f"{prefix}2", "10.0.0.1/24", "fd00::1/64"))
    return Mixed(a, b, vtep)


def test_ping_and_a_large_transfer_both_ways(mixed: Mixed, offloads: bool) -> None:
    ping(mixed.a, "10.0.0.2")
    ping(mixed.b, "fd00::1", "-s", "9000")
    assert mac_of(mixed.b) in mixed.vtep.fdb()
    transfer(mixed.a, mixed.b, "10.0.0.2", 200 << 20)
    transfer(mixed.b, mixed.a, "10.0.0.1", 200 << 20)
    transfer(mixed.b, mixed.a, "fd00::1", 20 << 20)
    counters = mixed.vtep.counters()
    assert (counters["super_datagrams"] > 0) == offloads
    assert (counters["partial_checksums"] > 1000) == offloads
    assert mixed.vtep.unexpected_drops() == 0


def test_udp_superframes_arrive_as_datagrams(mixed: Mixed) -> None:
    """An application behind the kernel driver uses UDP_SEGMENT, as QUIC servers do."""
    ping(mixed.b, "10.0.0.1")
    datagrams = [bytes([number]) * 1200 for number in range(30)] + [b"the short last one"]
    with (
        udp_socket(mixed.a, "10.0.0.1", 5000) as receiver,
        udp_socket(mixed.b, "10.0.0.2") as sender,
    ):
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, 1200)
        sender.sendto(b"".join(datagrams), ("10.0.0.1", 5000))
        assert [receiver.recv(2048) for _ in datagrams] == datagrams
    assert mixed.vtep.unexpected_drops() == 0


def test_superframe_is_segmented_to_the_mss_of_the_receiver(pair: Pair, start: Start) -> None:
    """A receiver behind a bridge may have a smaller MTU than the segment."""
    a, b = pair
    vtep = start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"))
    kernel_vtep(b, 42, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    a.run("ip", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
    with Host("guest") as guest:
        a.run("ip", "link", "set", "guest1", "netns", guest.pid)
        # The veth segments superframes, and carries packets of up to 900 octets.
        for host, device in ((a, "guest0"), (guest, "guest1")):
            host.run("ip", "link", "set", device, "mtu", "900", "up")
        a.run("ip", "link", "add", "br0", "mtu", "1450", "type", "bridge")
        a.run("ip", "link", "set", "br0", "up")
        for device in ("vx0", "guest0"):
            a.run("ip", "link", "set", device, "master", "br0")
        guest.run("ip", "addr", "add", "10.0.0.3/24", "dev", "guest1")
        ping(guest, "10.0.0.2")
        transfer(b, guest, "10.0.0.3", 20 << 20)
        assert vtep.counter("super_datagrams") > 0


def test_replies_to_a_kernel_vtep_go_to_its_configured_port(pair: Pair, start: Start) -> None:
    a, b = pair
    start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"))
    kernel_vtep(b, 42, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    with b.inside():
        sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    sniffer.bind(("eth0", 0))
    sniffer.settimeout(5)
    with sniffer:
        ping(b, "10.0.0.1", count=5)
        b.run("ip", "link", "set", "vx0", "down")
        sniffer.setblocking(False)
        to: set[tuple[bytes, bytes]] = set()
        came_from: set[tuple[bytes, bytes]] = set()
        while True:
            try:
                frame, where = sniffer.recvfrom(2048)
            except BlockingIOError:
                break
            ports = frame[34:36], frame[36:38]
            if frame[23] != socket.IPPROTO_UDP:
                continue
            (came_from if where[2] == socket.PACKET_OUTGOING else to).add(ports)
    vxlan_port = (4789).to_bytes(2, "big")
    assert {destination for _, destination in to} == {vxlan_port}
    assert vxlan_port not in {source for source, _ in came_from}
