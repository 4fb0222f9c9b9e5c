"""The outer header, group and families of a running VTEP, with the kernel driver at the other end.

The rows are those of the kernel's self-tests vxlan_bridge_1d.sh and l2_tos_ttl_inherit.sh. The
kernel driver gets the same frames, and pyvtep must send the same headers.
"""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple, Self

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.netns.hosts import (
    Arrivals,
    Pair,
    Start,
    address,
    link_local_address,
    packet_socket,
    ping,
    transfer,
    udp_socket,
    wait_until,
)
from tests.netns.test_many import run
from tests.unit import craft
from vtep import Config, Vtep
from vtep.testing.lab import Host, Lab
from vtep.wire import vxlan

NOT_ECT, ECT_1, ECT_0, CE = range(4)
OVER_V4 = ("--remote", "192.0.2.2")
OVER_V6 = ("--remote", "2001:db8::2")


class Look(NamedTuple):
    """Fields of an outer header; None for a flow label or DF that its IP version does not have."""

    tos: int
    ttl: int
    label: int | None
    df: bool | None


def look(packet: Packet) -> Look:
    header = packet.payload
    if isinstance(header, IP):
        return Look(header.tos, header.ttl, None, "DF" in header.flags)
    return Look(header.tc, header.hlim, header.fl, None)


class OuterHeader:
    """Sends frames to the TAP of host a and receives their datagrams on host b."""

    def __init__(self, pair: Pair, tap: str) -> None:
        a, b = pair
        self._tap = packet_socket(a, tap)
        self._wire = packet_socket(b, "eth0")
        self._listener = udp_socket(b, "::", 4789)
        self._count = 0

    def encapsulated(self, frame: Packet) -> Packet:
        """Send a frame with a number at its end and return the datagram that carries it."""
        self._count += 1
        marked = bytes(frame / self._count.to_bytes(4, "big"))
        self._tap.send(marked)
        while True:
            octets = self._wire.recv(65536)
            if octets.endswith(marked) and len(octets) > len(marked):
                return Ether(octets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._tap, self._wire, self._listener):
            sock.close()


def kernel_device(host: Host, *options: str) -> None:
    """Create a device of the kernel driver on host a, for VNI 2, as its users do."""
    host.run(
        *("ip", "link", "add", "k0", "type", "vxlan", "id", "2", "dstport", "4789"),
        *("dev", "eth0", *options),
    )
    host.run("ip", "link", "set", "k0", "up")


def inner(version: int, tags: str = "", **fields: Any) -> Packet:
    return craft.ether(craft.ip(version, craft.udp(b""), **fields), tags=tags)


def inner_marked(version: int, mark: int) -> Packet:
    return inner(4, tos=0xB8 | mark) if version == 4 else inner(6, tc=0xB8 | mark)


def arp() -> Packet:
    return Ether(craft.VALID["arp"])


FRAMES = [
    arp(),
    Ether(craft.VALID["arp"][:12] + b"\x88\xb5" + bytes(50)),
    *(inner(4, tos=0xB8 | mark, ttl=77, flags="DF") for mark in range(4)),
    *(inner(6, tc=0x28 | mark, hlim=99, fl=0x1234) for mark in range(4)),
    inner(4, tos=0, ttl=1),
    inner(4, tos=0xFE, ttl=255, tags="q"),
    inner(6, tc=0x2A, hlim=3, fl=0xFEDCB, tags="q"),
]


@pytest.mark.parametrize("over", [OVER_V4, OVER_V6], ids=["over-ipv4", "over-ipv6"])
@pytest.mark.parametrize(
    ("ours", "kernels"),
    [
        ((), ()),
        (("--ttl", "10", "--tos", "0xb8"), ("ttl", "10", "tos", "0xb8")),
        (("--ttl", "inherit", "--tos", "inherit"), ("ttl", "inherit", "tos", "inherit")),
        (("--df", "set"), ("df", "set")),
        (("--df", "inherit"), ("df", "inherit")),
        (("--flowlabel", "0xbeef"), ("flowlabel", "0xbeef")),
    ],
    ids=lambda options: "-".join(options).replace("--", "") or "defaults",
)
def test_headers_are_those_of_the_kernel_driver(
    pair: Pair, start: Start, over: tuple[str, ...], ours: tuple[str, ...], kernels: tuple[str, ...]
) -> None:
    if over is OVER_V4 and "--flowlabel" in ours:
        over, kernels = OVER_V6, ("flowlabel", "0xbeef")
    a, _b = pair
    looks: list[list[Look]] = []
    # The kernel driver does not find DF behind a VLAN tag; pyvtep does.
    frames = FRAMES[:-2] if "inherit" in ours and "--df" in ours else FRAMES
    kernel_device(a, "remote", over[1], "local", over[1][:-1] + "1", *kernels)
    with OuterHeader(pair, "k0") as outside:
        looks.append([look(outside.encapsulated(frame)) for frame in frames])
    a.run("ip", "link", "del", "k0")
    vtep = start(a, "--vni", "2", *over, "--tap", "vx0", "--ecn", "kernel", *ours)
    with OuterHeader(pair, "vx0") as outside:
        looks.append([look(outside.encapsulated(frame)) for frame in frames])
    for frame, kernel, own in zip(frames, *looks, strict=True):
        assert own == kernel, frame.summary()
    assert vtep.unexpected_drops() == 0


@pytest.mark.parametrize("over", [OVER_V4, OVER_V6], ids=["over-ipv4", "over-ipv6"])
def test_ecn_on_encapsulation(pair: Pair, start: Start, over: tuple[str, ...]) -> None:
    """As in RFC 6040, CE included."""
    a, _b = pair
    start(a, "--vni", "2", *over, "--tap", "vx0")
    with OuterHeader(pair, "vx0") as outside:
        for mark in (NOT_ECT, ECT_0, CE, NOT_ECT, ECT_1):
            assert look(outside.encapsulated(inner(4, tos=0xB8 | mark))).tos == mark
            assert look(outside.encapsulated(inner(6, tc=0xB8 | mark))).tos == mark
            assert look(outside.encapsulated(inner(4, tos=mark, tags="q"))).tos == mark


ROWS = [  # inner ECN, outer ECN, inner ECN after decapsulation
    *((NOT_ECT, outer, NOT_ECT) for outer in (NOT_ECT, ECT_0, ECT_1)),
    (NOT_ECT, CE, None),
    *((ECT_0, outer, outer or ECT_0) for outer in (NOT_ECT, ECT_0, ECT_1, CE)),
    *((ECT_1, outer, ECT_1) for outer in (NOT_ECT, ECT_0, ECT_1)),
    (ECT_1, CE, CE),
    *((CE, outer, CE) for outer in (NOT_ECT, ECT_0, ECT_1, CE)),
]


@pytest.mark.parametrize("over", [4, 6], ids=["over-ipv4", "over-ipv6"])
def test_ecn_on_decapsulation(pair: Pair, start: Start, over: int) -> None:
    a, b = pair
    remote, local = ("192.0.2.2", "192.0.2.1") if over == 4 else ("2001:db8::2", "2001:db8::1")
    vtep = start(a, "--vni", "2", "--remote", remote, "--tap", "vx0")
    header = vxlan.pack(2)
    with packet_socket(a, "vx0") as tap, udp_socket(b, remote) as sender:
        for number, (before, outer, after) in enumerate(ROWS):
            set_tos(sender, 0x28 | outer)
            for version in (4, 6):
                frame, expected = (
                    bytes(inner_marked(version, mark or 0) / bytes([number]))
                    for mark in (before, after)
                )
                sender.sendto(header + frame, (local, 4789))
                if after is not None:
                    assert next_like(tap, expected) == expected
        # Several at once, which the kernel coalesces and pyvtep merges: all must be marked.
        burst = [bytes(inner(4, tos=ECT_0, id=count) / bytes(100)) for count in range(5)]
        set_tos(sender, CE)
        sender.setsockopt(socket.SOL_UDP, 103, 8 + len(burst[0]))  # UDP_SEGMENT
        sender.sendto(b"".join(header + frame for frame in burst), (local, 4789))
        merged = Ether(next_like(tap, bytes(inner(4, tos=CE, len=528, id=0))[:24], 42 + 500))[IP]
        assert (merged.tos, merged.len) == (CE, 528)
        checksum = merged.chksum
        del merged.chksum
        assert IP(bytes(merged)).chksum == checksum
    assert vtep.counter("congestion") == vtep.unexpected_drops() == 2


def set_tos(sock: socket.socket, tos: int) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)


def next_like(tap: socket.socket, frame: bytes, length: int | None = None) -> bytes:
    """Return the next frame with the MAC addresses of this one and its length, or `length`."""
    while True:
        octets = tap.recv(65536)
        if octets[:12] == frame[:12] and len(octets) == (length or len(frame)):
            return octets


def test_tcp_with_ecn(pair: Pair, start: Start) -> None:
    """The outer headers of its superframes are ECN-capable, that of its SYN is not."""
    a, b = pair
    for host, remote, own in ((a, "192.0.2.2", "10.0.0.1/24"), (b, "192.0.2.1", "10.0.0.2/24")):
        host.run("sysctl", "-qw", "net.ipv4.tcp_ecn=1")
        start(host, "--vni", "2", "--remote", remote, "--tap", "vx0", "--address", own)
    ping(a, "10.0.0.2")
    with packet_socket(b, "eth0") as wire:
        transfer(a, b, "10.0.0.2", 1 << 20)
        wire.setblocking(False)
        seen = set()
        with suppress(BlockingIOError):
            while True:
                packet = wire.recv(65536)
                # With the I flag, since the filter would match random octets of an echo request.
                if (
                    packet[12:14] == b"\x08\x00"
                    and packet[36:38] == b"\x12\xb5"
                    and packet[42] == 8
                ):
                    inside = packet[50:]
                    if inside[23] == 6 and len(inside) > 1000:
                        seen.add((packet[15] & 3, inside[15] & 3))
    assert seen == {(ECT_0, ECT_0)}


def test_ports_and_checksums(pair: Pair, start: Start) -> None:
    a, _b = pair
    start(
        *(a, "--vni", "2", *OVER_V4, *OVER_V6, "--tap", "vx0", "--srcport", "3000", "3063"),
        *("--no-udpcsum", "--udp6zerocsumtx"),
    )
    with OuterHeader(pair, "vx0") as outside:
        seen = {
            outside.encapsulated(inner(4, src=f"10.1.0.{number}"))[UDP].sport
            for number in range(50)
        }
        assert len(seen) > 8
        assert seen <= set(range(3000, 3064))
        assert outside.encapsulated(inner(4))[UDP].chksum == 0


# --- groups -----------------------------------------------------------------------------------

GROUPS = pytest.mark.parametrize(
    ("group", "left"),
    [("239.1.1.1", "192.0.2.1"), ("ff05::101", "2001:db8::1")],
    ids=["ipv4", "ipv6"],
)


@contextmanager
def to_group(host: Host, group: str) -> Iterator[Callable[[], list[Packet]]]:
    """Return a function that lists the datagrams to a group that eth0 has received."""
    seen: list[Packet] = []
    with packet_socket(host, "eth0") as sock:
        sock.setblocking(False)

        def look_again() -> list[Packet]:
            with suppress(BlockingIOError):
                while True:
                    octets, where = sock.recvfrom(65536)
                    packet = Ether(octets)
                    if where[2] != socket.PACKET_OUTGOING and UDP in packet:
                        seen.extend([packet] if packet.payload.dst == group else [])
            return seen

        yield look_again


@GROUPS
def test_a_group_with_the_kernel_driver(pair: Pair, start: Start, group: str, left: str) -> None:
    """Broadcasts go to the group with a TTL of 1; replies to learned MACs are unicast."""
    a, b = pair
    right = left[:-1] + "2"
    b.run(
        *("ip", "link", "add", "k0", "type", "vxlan", "id", "2", "dstport", "4789"),
        *("group", group, "dev", "eth0", "local", right),
    )
    address(b, "k0", "10.0.0.2/24")
    b.run("ip", "link", "set", "k0", "up")
    with to_group(b, group) as sent:
        vtep = start(
            *(a, "--vni", "2", "--group", group, "--dev", "eth0", "--tap", "vx0"),
            *("--address", "10.0.0.1/24"),
        )
        assert group in a.run("ip", "maddr", "show", "dev", "eth0")
        ping(a, "10.0.0.2")
        ping(b, "10.0.0.1")
        assert list(vtep.fdb().values()) == [right]
        assert f"dst {left} " in b.run("bridge", "fdb", "show", "dev", "k0")
        assert sent()
        assert {look(packet).ttl for packet in sent()} == {1}
        # Echo requests are unicast, except perhaps the first.
        assert sum(ICMP in packet for packet in sent()) <= 1
    assert vtep.unexpected_drops() == 0
    assert vtep.stop() == 0
    assert group not in a.run("ip", "maddr", "show", "dev", "eth0")


@GROUPS
def test_a_group_of_three(lab: Lab, start: Start, group: str, left: str) -> None:
    """Each other member receives a broadcast once, and the sender does not receive its own."""
    hosts = [lab.host(name) for name in ("a", "b", "c")]
    middle = lab.host("switch")
    middle.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    middle.run("ip", "link", "set", "br0", "up")
    for number, host in enumerate(hosts, 1):
        lab.wire(host, middle, "eth0")
        middle.run("ip", "link", "set", "eth0", "name", f"p{number}")
        middle.run("ip", "link", "set", f"p{number}", "master", "br0", "up")
        own = f"192.0.2.{number}/24" if "." in group else f"2001:db8::{number}/64"
        address(host, "eth0", own)
    vteps = [
        start(host, "--vni", "2", "--group", group, "--dev", "eth0", "--tap", "vx0", "--ttl", "4")
        for host in hosts
    ]
    frame = bytes(Ether(src=craft.MAC_A, dst=craft.BROADCAST, type=0x88B5) / bytes(100))
    with ExitStack() as stack:
        arrivals = [stack.enter_context(Arrivals(host)) for host in hosts]
        sock = stack.enter_context(packet_socket(hosts[0], "vx0"))
        sock.send(frame)
        others = arrivals[1:]
        wait_until(lambda: [each.count(frame) for each in others] == [1, 1], "the broadcast")
        last = frame[:-1] + b"\x01"
        sock.send(last)
        wait_until(lambda: [each.count(last) for each in others] == [1, 1], "another one")
        assert [each.count(frame) for each in arrivals] == [0, 1, 1]
    for vtep in vteps[1:]:
        assert vtep.fdb()[craft.MAC_A] == left
    assert craft.MAC_A not in vteps[0].fdb()


def test_group_membership_is_shared_by_vnis(inside_a: Pair) -> None:
    a, _b = inside_a

    def joined() -> list[str]:
        said = a.run("ip", "-4", "maddr", "show", "dev", "eth0")
        return re.findall(r"inet +(239\S+(?: users \d+)?)", said)

    def of(vni: int, group: str) -> Config:
        return Config(vni=vni, group=group, dev="eth0")

    async def main() -> None:
        async with Vtep(of(2, "239.1.1.1"), of(3, "239.1.1.1"), of(4, "239.1.1.4")) as vtep:
            assert sorted(joined()) == ["239.1.1.1", "239.1.1.4"]
            await vtep.remove(2)
            assert sorted(joined()) == ["239.1.1.1", "239.1.1.4"]
            await vtep.change(of(3, "239.1.1.3"))
            assert sorted(joined()) == ["239.1.1.3", "239.1.1.4"]
            await vtep.remove(4)
            assert joined() == ["239.1.1.3"]
            await vtep.add(of(5, "239.1.1.5"))
            assert sorted(joined()) == ["239.1.1.3", "239.1.1.5"]
        assert joined() == []

    run(main())


def test_group_is_joined_on_a_recreated_device(pair: Pair, start: Start) -> None:
    a, b = pair
    options = ("--vni", "2", "--group", "239.1.1.1", "--dev", "eth0", "--tap", "vx0", "--address")
    vteps = [start(a, *options, "10.0.0.1/24"), start(b, *options, "10.0.0.2/24")]
    ping(a, "10.0.0.2")
    a.run("ip", "link", "del", "eth0")
    a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.pid)
    for number, host in enumerate(pair, 1):
        address(host, "eth0", f"192.0.2.{number}/24")
        host.run("ip", "link", "set", "eth0", "up")
    told = "was re-created; rebinding"
    wait_until(lambda: all(told in vtep.log for vtep in vteps), "the news")
    for host in pair:
        host.run("ip", "neigh", "flush", "dev", "vx0")
    ping(a, "10.0.0.2")


# --- families ---------------------------------------------------------------------------------


def test_remotes_of_both_families_in_one_vni(lab: Lab, start: Start) -> None:
    a, b, c = (lab.host(name) for name in "abc")
    lab.wire(a, b, "eth0")
    lab.wire(a, c, "eth1")
    c.run("ip", "link", "set", "eth1", "name", "eth0")
    address(a, "eth0", "192.0.2.1/24")
    address(a, "eth1", "2001:db8::1/64")
    address(b, "eth0", "192.0.2.2/24")
    address(c, "eth0", "2001:db8::2/64")
    for host, remote, local, own in (
        (b, "192.0.2.1", "192.0.2.2", "10.0.0.2/24"),
        (c, "2001:db8::1", "2001:db8::2", "10.0.0.3/24"),
    ):
        kernel_device(host, "remote", remote, "local", local)
        address(host, "k0", own)
    vtep = start(a, "--vni", "2", *OVER_V4, *OVER_V6, "--tap", "vx0", "--address", "10.0.0.1/24")
    ping(a, "10.0.0.2")
    ping(c, "10.0.0.1")
    assert sorted(vtep.fdb().values()) == ["192.0.2.2", "2001:db8::2"]
    assert vtep.unexpected_drops() == 0


def test_a_link_local_remote(pair: Pair, start: Start) -> None:
    a, b = pair
    own, other = (link_local_address(host) for host in pair)
    kernel_device(b, "remote", own, "local", other)
    address(b, "k0", "10.0.0.2/24")
    vtep = start(
        a, "--vni", "2", "--remote", f"{other}%eth0", "--tap", "vx0", "--address", "10.0.0.1/24"
    )
    ping(a, "10.0.0.2")
    assert list(vtep.fdb().values()) == [f"{other}%eth0"]
    assert vtep.unexpected_drops() == 0


# --- many remotes -----------------------------------------------------------------------------


def test_a_broadcast_to_many_remotes(pair: Pair, start: Start) -> None:
    """Each of forty remotes receives it once, and the counters name the reasons for losses."""
    a, b = pair
    hosts = [f"192.0.2.{number}" for number in range(100, 120)]
    hosts += [f"2001:db8::1:{number}" for number in range(20)]
    address(b, "eth0", *(f"{host}/{64 if ':' in host else 24}" for host in hosts))
    a.run("ip", "route", "add", "198.51.100.1", "dev", "eth0")
    remotes = [word for host in (*hosts, "198.51.100.1") for word in ("--remote", host)]
    with ExitStack() as stack:
        listeners = [stack.enter_context(udp_socket(b, host, 4789)) for host in hosts]
        # A TAP on which the host sends nothing.
        a.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        vtep = start(a, "--vni", "2", *remotes, "--tap", "vx0")
        a.run("ip", "route", "replace", "unreachable", "198.51.100.1")
        tap = stack.enter_context(packet_socket(a, "vx0"))
        frames = [
            bytes(Ether(dst=craft.BROADCAST, src=craft.MAC_A, type=0x88B5) / bytes(100 + number))
            for number in range(30)
        ]
        for frame in frames:
            tap.send(frame)
        for listener in listeners:
            got: list[bytes] = []
            while len(got) < len(frames):
                datagram = listener.recv(2048)
                if datagram[14:20] == frames[0][6:12]:
                    got.append(datagram[8:])
            assert got == frames
        counters = vtep.counters()
        assert counters["tx_datagrams"] == 40 * 30
        assert counters["underlay_unreachable"] == counters["drops"] == 30
