"""Source ports and source addresses of datagrams, and recovery after a failure."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    address,
    mac_of,
    packet_socket,
    ping,
    segment,
    transfer,
    udp_socket,
    wait_until,
)
from tests.netns.test_doctor import consult
from tests.netns.test_many import run
from vtep import Config, Vtep
from vtep.daemon import housekeeping
from vtep.descriptors import RESERVE
from vtep.io import path as paths
from vtep.testing.lab import Host
from vtep.wire import vxlan

pytestmark = pytest.mark.usefixtures("fast_path")

PREFIXES = {"ipv4": "192.0.2.", "ipv6": "2001:db8::"}
over = pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
ONE_PORT = ("--srcport", "4789", "4789")


class Ports:
    """Collects the source ports and VNIs of the VXLAN datagrams that arrive at a host."""

    def __init__(self, host: Host) -> None:
        self._socket = packet_socket(host, "eth0")
        self._socket.setblocking(False)
        self._seen: set[tuple[int, int]] = set()

    def seen(self) -> set[tuple[int, int]]:
        with suppress(BlockingIOError):
            while True:
                octets, where = self._socket.recvfrom(65536)
                packet = Ether(octets)
                udp = packet.payload.payload
                if where[2] != socket.PACKET_OUTGOING and isinstance(udp, UDP):
                    self._seen.add((udp.sport, udp.dport))
        return self._seen

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def kernel(host: Host, prefix: str) -> None:
    """Create a device of the kernel driver that sends from its VXLAN port and learns ports."""
    host.run(
        *("ip", "link", "add", "vx0", "type", "vxlan", "id", "1", "dev", "eth0"),
        *("local", f"{prefix}2", "remote", f"{prefix}1", "dstport", "4789"),
        *("srcport", "4789", "4790"),
    )
    address(host, "vx0", "10.0.0.2/24")
    host.run("ip", "link", "set", "vx0", "up")


# --- one port for both directions -------------------------------------------------------------


@over
@pytest.mark.parametrize("bound", [(), ("--dev", "eth0", "--local")], ids=["any", "bound"])
def test_one_port_for_both_directions(
    pair: Pair, start: Start, prefix: str, bound: tuple[str, ...]
) -> None:
    a, b = pair
    kernel(b, prefix)
    options = (*bound, f"{prefix}1") if bound else ()
    vtep = start(a, *segment(1, f"{prefix}2", "10.0.0.1/24"), *ONE_PORT, *options)
    with Ports(b) as outside:
        ping(a, "10.0.0.2")
        ping(b, "10.0.0.1")
        transfer(a, b, "10.0.0.2", 1 << 20)
        transfer(b, a, "10.0.0.1", 1 << 20)
        assert outside.seen() == {(4789, 4789)}
    # A stateful firewall on this host needs only the rule for established connections.
    assert vtep.unexpected_drops() == 0


def test_range_that_contains_the_vxlan_port(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--srcport", "4789", "4790")
    ping(a, "10.0.0.2")
    with Ports(b) as outside, udp_socket(b, "10.0.0.2", 7000):

        def both() -> bool:
            with udp_socket(a, "10.0.0.1") as sender:
                sender.sendto(b"x", ("10.0.0.2", 7000))
            return outside.seen() == {(4789, 4789), (4790, 4789)}

        wait_until(both, "both source ports to be used")


@over
def test_vnis_of_one_process_share_the_port(pair: Pair, start: Start, prefix: str) -> None:
    """Each has its own options, and one has several remotes."""
    a, b = pair
    others = [f"{prefix}{100 + number}" for number in range(9)]
    address(b, "eth0", *(f"{other}/{24 if prefix[0] == '1' else 64}" for other in others))
    # Over IPv6, the kernel would prefer another source address.
    local = ("--local", f"{prefix}2")
    one = start(b, *segment(1, f"{prefix}1", "10.0.1.2/24"), *ONE_PORT, *local)
    vtep = start(a, *segment(1, f"{prefix}2", "10.0.1.1/24"), *ONE_PORT, "--df", "inherit")
    zero = "--no-udpcsum" if prefix[0] == "1" else "--udp6zerocsumtx"
    more = f"--ttl 9 --tos inherit {zero} --srcport 4789 4789"
    for each, own, bound in ((one, 2, local), (vtep, 1, ())):
        remote, mine = f"{prefix}{3 - own}", f"10.0.2.{own}/24"
        also = f"--address {mine} {more} {' '.join(bound)}"
        each.invoke(f"vni add 2 --tap vx2 --remote {remote} {also}")
    for remote in others:
        vtep.invoke(f"remote add {remote} --vni 2")
    with Ports(b) as outside:
        for _ in range(3):
            for vni in (1, 2):
                ping(a, f"10.0.{vni}.2", "-M", "do", count=1)
                transfer(a, b, f"10.0.{vni}.2", 1 << 18)
        assert {source for source, _ in outside.seen()} == {4789}
    assert vtep.counter("flooded") > 0
    assert vtep.unexpected_drops() == 0
    vtep.invoke("vni del 2")
    ping(a, "10.0.1.2")


@over
def test_entry_with_a_destination_uses_the_port(pair: Pair, start: Start, prefix: str) -> None:
    """With another destination port, and over a named device."""
    a, b = pair
    vtep = start(a, *segment(1, f"{prefix}9", "10.0.0.1/24"), *ONE_PORT)
    with udp_socket(b, f"{prefix}2", 5000) as receiver, packet_socket(a, "vx0") as tap:
        for number, via in enumerate(((), ("via", "eth0"))):
            mac = f"02:00:00:00:00:0{number}"
            vtep.run("fdb", "add", mac, "dst", f"{prefix}2", "port", "5000", *via)
            tap.send(bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("02") + bytes(60))
            assert receiver.recvfrom(1000)[1][1] == 4789
    assert vtep.counter("underlay_failed") == 0


def test_source_ports_change_at_run_time(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"), *ONE_PORT)
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    for first, last in ((4789, 4789), (5000, 5000), (4789, 4789)):
        vtep.invoke(f"set --srcport {first} {last}")
        with Ports(b) as outside:
            ping(a, "10.0.0.2")
            assert outside.seen() == {(first, 4789)}
    # Swap the ports of the process.
    vtep.invoke("set --dstport 4790")
    vtep.invoke("set --dstport 4789")
    ping(a, "10.0.0.2")
    # Then it has another receiving socket.
    vtep.invoke("set --offload none")
    with Ports(b) as outside:
        ping(a, "10.0.0.2")
        assert outside.seen() == {(4789, 4789)}
    assert vtep.unexpected_drops() == 0


@over
def test_icmp_errors_come_back_to_the_port(pair: Pair, start: Start, prefix: str) -> None:
    """They are counted and do not disturb reception."""
    a, b = pair
    vtep = start(a, *segment(1, f"{prefix}2", "10.0.0.1/24"), *ONE_PORT)

    def refused() -> bool:
        a.run("ping", "-c1", "-W0.1", "10.0.0.2", check=False)
        return vtep.counter("underlay_refused") > 0

    wait_until(refused, "an ICMP error")
    peer = start(b, *segment(1, f"{prefix}1", "10.0.0.2/24"), *ONE_PORT)
    ping(a, "10.0.0.2")
    assert "cannot receive" not in vtep.log
    used = cpu_of(vtep)
    ping(a, "10.0.0.2")
    assert cpu_of(vtep) - used < 50  # No busy loop.
    assert peer.unexpected_drops() == 0


def cpu_of(vtep: Pyvtep) -> int:
    """Return the CPU time of a process in hundredths of a second."""
    fields = Path(f"/proc/{vtep.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_tunnel_gso_from_the_port(pair: Pair, start: Start) -> None:
    a, b = pair
    for host, own, other in ((b, 2, 1), (a, 1, 2)):
        remote = f"192.0.2.{other}"
        vtep = start(host, *segment(1, remote, f"10.0.0.{own}/24"), *ONE_PORT)
    ping(a, "10.0.0.2")
    with Ports(b) as outside:

        def some_do() -> bool:
            transfer(a, b, "10.0.0.2", 2 << 20)
            return vtep.counter("tx_tunnel_gso") > 0

        wait_until(some_do, "superframes to be sent with tunnel GSO")
        assert outside.seen() == {(4789, 4789)}
    assert vtep.unexpected_drops() == 0


def test_recreated_device_is_used_from_the_port(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--dev", "eth0", *ONE_PORT)
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"), *ONE_PORT)
    ping(a, "10.0.0.2")
    a.run("ip", "link", "del", "eth0")
    renew(a, b)
    wait_until(lambda: "--dev eth0 was re-created; rebinding" in vtep.log, "the news")
    ping(a, "10.0.0.2")


def renew(a: Host, b: Host) -> None:
    """Delete and create the underlay link of two hosts."""
    a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.pid)
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth0", f"192.0.2.{number}/24")
        host.run("ip", "link", "set", "eth0", "up")


# --- unusable ranges --------------------------------------------------------------------------

UNPRIVILEGED = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")


def test_occupied_range_is_logged(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    why = "--srcport 6000 6000: every UDP port of this range is taken on this host"
    with udp_socket(a, "0.0.0.0", 6000):
        vtep = Pyvtep(a, tmp_path, *segment(1, "192.0.2.2"), "--srcport", "6000", "6000")
        assert vtep.wait() == 1
        assert why in vtep.log
        vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--srcport", "5999", "6000")
        ping(a, "10.0.0.2")
        assert why in vtep.run("set", "--srcport", "6000", "6000", code=1)
        ping(a, "10.0.0.2")
    vtep.invoke("set --srcport 6000 6000")
    ping(a, "10.0.0.2")
    assert vtep.unexpected_drops() == 0


def test_missing_privilege_for_a_range_is_logged(pair: Pair, tmp_path: Path) -> None:
    a, _ = pair
    a.run("ip", "tuntap", "add", "vx0", "mode", "tap")
    a.run("ip", "link", "set", "vx0", "mtu", "1450", "up")
    options = (*segment(1, "192.0.2.2"), "--srcport", "100", "200")
    vtep = Pyvtep(a, tmp_path, *options, prefix=UNPRIVILEGED)
    assert vtep.wait() == 1
    assert "--srcport 100 200: no privilege to bind to a UDP port of this range" in vtep.log


# --- many remotes -----------------------------------------------------------------------------


def test_spoofed_sources_use_at_most_half_of_the_descriptors(pair: Pair, start: Start) -> None:
    a, b = pair
    limit = 128
    vtep = start(
        *(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--accept-any"),
        prefix=("prlimit", f"--nofile={limit}:{limit}"),
    )
    peer = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"), "--dstport", "4789")
    ping(a, "10.0.0.2")
    descriptors = Path(f"/proc/{vtep.process.pid}/fd")
    before = len(list(descriptors.iterdir()))
    b.run("ip", "route", "add", "local", "10.9.0.0/16", "dev", "lo")
    a.run("ip", "route", "add", "10.9.0.0/16", "via", "192.0.2.2")
    mac = bytes.fromhex(mac_of(a).replace(":", ""))
    answered = 0
    with packet_socket(b, "eth0") as wire:
        for number in range(200):
            spoofed = f"10.9.{number >> 8}.{number & 255}"
            own = bytes.fromhex("0200") + number.to_bytes(4, "big")
            arp = bytes.fromhex("08060001080006040001") + own + bytes([10, 0, 0, 200])
            frame = mac + own + arp + bytes(6) + bytes([10, 0, 0, 1])
            with udp_socket(b, spoofed) as sender:
                sender.sendto(vxlan.pack(1) + frame, ("192.0.2.1", 4789))
            while True:
                octets = wire.recv(65536)
                if octets[50:56] == own:  # The reply, to the source of the request.
                    assert octets[30:34] == socket.inet_aton(spoofed)
                    answered += 1
                    break
            # Reading the state of the host needs some more for a moment.
            assert len(list(descriptors.iterdir())) - before <= limit // 2 + RESERVE
    assert answered == 200
    ping(a, "10.0.0.2")
    assert peer.unexpected_drops() == 0


# --- the source address -----------------------------------------------------------------------


def test_temporary_address_is_not_used_as_source(pair: Pair, start: Start) -> None:
    """Neither for frames, nor for echo replies, nor by the doctor."""
    a, b = pair
    a.run("sysctl", "-qw", "net.ipv6.conf.eth0.use_tempaddr=2")
    a.run("ip", "addr", "del", "2001:db8::1/64", "dev", "eth0")
    a.run(
        *("ip", "addr", "add", "2001:db8::1/64", "dev", "eth0", "mngtmpaddr"),
        *("valid_lft", "86400", "preferred_lft", "40000"),
    )

    def settled() -> bool:
        said = a.run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "global")
        return "temporary" in said and "tentative" not in said

    wait_until(settled, "a temporary address")
    assert "src 2001:db8::1 " not in a.run("ip", "route", "get", "2001:db8::2")
    peer = start(b, *segment(1, "2001:db8::1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "2001:db8::2", "10.0.0.1/24"))
    ping(a, "10.0.0.2")
    transfer(a, b, "10.0.0.2", 4 << 20)
    for host, each in ((a, vtep), (b, peer)):
        code, said = consult(host, "--socket", str(each.control))
        assert (code, said["findings"]) == (0, [])
    vtep.invoke("set --srcport 4789 4789")
    ping(a, "10.0.0.2")
    assert vtep.unexpected_drops() == 0


# --- after a failure --------------------------------------------------------------------------


class Failing:
    """A VTEP of the test process on host a, without its timers for retries."""

    def __init__(self, pair: Pair, vtep: Vtep) -> None:
        self._a, _ = pair
        self._vtep = vtep
        self._tap = packet_socket(self._a, "vx0")

    def _lost(self) -> int:
        return self._vtep.counters()["drop_underlay_unreachable"]

    def _left(self) -> int:
        return self._vtep.counters()["tx_datagrams"]

    async def _until(self, count: Callable[[], int]) -> None:
        """Send frames until one is counted."""
        before, end = count(), asyncio.get_running_loop().time() + DEADLINE
        while count() == before:
            assert asyncio.get_running_loop().time() < end, count.__name__
            self._tap.send(b"\xff" * 6 + b"\x02" + bytes(60))
            await asyncio.sleep(0.01)

    async def until_lost(self) -> None:
        await self._until(self._lost)

    async def until_left(self) -> None:
        await self._until(self._left)

    async def fail_and_recover(self, break_it: str, mend_it: str) -> None:
        await asyncio.to_thread(self._a.run, *break_it.split())
        await self.until_lost()
        await asyncio.to_thread(self._a.run, *mend_it.split())
        await self.until_left()

    def close(self) -> None:
        self._tap.close()


@pytest.fixture
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the timers that retry after a failure."""
    monkeypatch.setattr(paths, "_RETRY_S", 1e9)
    monkeypatch.setattr(housekeeping, "_TICK_S", 1e9)


CHANGES = {
    "ipv4": [
        ("ip addr del 192.0.2.1/24 dev eth0", "ip addr add 192.0.2.1/24 dev eth0"),
        ("ip link set eth0 down", "ip link set eth0 up"),
        ("ip route del 192.0.2.0/24", "ip route add 192.0.2.0/24 dev eth0"),
        ("ip route add unreachable 192.0.2.2", "ip route del unreachable 192.0.2.2"),
        ("ip rule add to 192.0.2.2 unreachable", "ip rule del to 192.0.2.2 unreachable"),
    ],
    "ipv6": [
        ("ip addr flush dev eth0 scope global", "ip addr add 2001:db8::1/64 dev eth0"),
        ("ip addr flush dev eth0 scope global", "ip addr add 2001:db8::1/64 dev eth0 nodad"),
        ("ip link set eth0 down", "ip link set eth0 up"),
        ("ip route add unreachable 2001:db8::2", "ip route del unreachable 2001:db8::2"),
        ("ip -6 rule add to 2001:db8::2 unreachable", "ip -6 rule del to 2001:db8::2 unreachable"),
    ],
}


@pytest.mark.parametrize("family", CHANGES)
@pytest.mark.parametrize("options", [{}, {"srcport": (4789, 4789)}, {"local": True}], ids=str)
@pytest.mark.usefixtures("no_clock")
def test_sending_resumes_with_the_underlay(
    pair: Pair, family: str, options: dict[str, Any]
) -> None:
    a, _ = pair
    a.run("sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1")
    prefix = PREFIXES[family]
    if "local" in options:
        options = {"local": f"{prefix}1"}

    async def main() -> None:
        config = Config(vni=1, remote=f"{prefix}2", tap="vx0", **options)
        async with Vtep(config) as vtep:
            failing = Failing(pair, vtep)
            for break_it, mend_it in CHANGES[family]:
                await failing.fail_and_recover(break_it, mend_it)
            failing.close()

    with a.inside():
        run(main())


@pytest.mark.usefixtures("no_clock")
def test_recreated_device_is_followed_at_once(pair: Pair) -> None:
    """Even if its address comes later."""
    a, b = pair

    async def main() -> None:
        config = Config(vni=1, remote="192.0.2.2", tap="vx0", dev="eth0", local="192.0.2.1")
        async with Vtep(config) as vtep:
            failing = Failing(pair, vtep)
            await asyncio.to_thread(a.run, "ip", "link", "del", "eth0")
            await failing.until_lost()
            await asyncio.to_thread(renew, a, b)
            await failing.until_left()
            with udp_socket(b, "192.0.2.2", 4790) as sender:
                end = asyncio.get_running_loop().time() + DEADLINE
                while not vtep.counters()["drop_flags_invalid"]:
                    assert asyncio.get_running_loop().time() < end
                    sender.sendto(bytes(8), ("192.0.2.1", 4789))
                    await asyncio.sleep(0.01)
            failing.close()

    with a.inside():
        run(main())
