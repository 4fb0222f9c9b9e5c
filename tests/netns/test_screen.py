"""Ingress filtering: datagrams of unknown sources, and of guests that forge VXLAN."""

import json
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from tests.netns.hosts import (
    Arrivals,
    Pair,
    Pyvtep,
    Start,
    address,
    kernel_vtep,
    mac_of,
    packet_socket,
    ping,
    segment,
    udp_socket,
    wait_until,
)
from vtep.testing.lab import Host, Lab
from vtep.wire import vxlan

BROADCAST = "ff:ff:ff:ff:ff:ff"
REMOTES = {4: "192.0.2.2", 6: "2001:db8::2"}
FAMILIES = pytest.mark.parametrize("version", [4, 6])


def frame(number: int) -> bytes:
    """Build a unique broadcast frame."""
    source = b"\x02\x00\x00\x01" + number.to_bytes(2, "big")
    return b"\xff" * 6 + source + b"\x88\xb5" + number.to_bytes(4, "big") * 12


def forged(
    vni: int, number: int, source: str, destination: str, mac: str, port: int = vxlan.PORT
) -> bytes:
    """Build a frame of a guest with a VXLAN datagram that seems to come from a remote."""
    ip = (IPv6 if ":" in source else IP)(src=source, dst=destination)
    inner = vxlan.pack(vni) + frame(number)
    return bytes(
        Ether(src="02:00:00:00:00:99", dst=mac) / ip / UDP(sport=50000, dport=port) / inner
    )


def total(vtep: Pyvtep, counter: str) -> int:
    """Return the total of a counter over all VNIs."""
    counted = json.loads(vtep.invoke("stats --json"))["total"]
    return int({**counted["counters"], **counted["drops"]}[counter])


# --- guests -----------------------------------------------------------------------------------


def bridged(host: Host, bridge: str, *addresses: str) -> None:
    host.run("ip", "link", "add", bridge, "type", "bridge")
    address(host, bridge, *addresses)
    host.run("ip", "link", "set", bridge, "up")


def guest(lab: Lab, host: Host, name: str, bridge: str) -> Host:
    """Create a guest on a bridge of a host."""
    made = lab.host(name)
    lab.wire(made, host, name)
    host.run("ip", "link", "set", name, "master", bridge)
    return made


@pytest.fixture
def joined(lab: Lab, pair: Pair) -> tuple[Host, Host, Host]:
    """Return two hosts and a guest on the bridge br1 of the first."""
    a, b = pair
    bridged(a, "br1", "10.0.0.1/24", "fd00::1/64")
    a.run("ip", "link", "add", "mac0", "link", "br1", "type", "macvlan")
    address(a, "mac0", "10.0.9.1/24")
    a.run("ip", "link", "set", "mac0", "up")
    for device in ("all", "default", "br1", "mac0", "eth0"):
        a.run("sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0")
    return a, b, guest(lab, a, "guest1", "br1")


def test_guest_of_one_vni_cannot_reach_another(
    lab: Lab, joined: tuple[Host, Host, Host], start: Start, tmp_path: Path
) -> None:
    a, b, one = joined
    config = tmp_path / "pyvtep.toml"
    config.write_text(
        'remote = ["192.0.2.2", "2001:db8::2"]\n'
        '[[vni]]\nid = 1\ntap = "vx1"\nbridge = "br1"\n'
        '[[vni]]\nid = 2\ntap = "vx2"\naddress = "10.2.0.1/24"\n'
    )
    vtep = start(a, "--config", str(config))
    a.run("sysctl", "-qw", "net.ipv4.conf.vx2.rp_filter=0")
    bridge, macvlan = mac_of(a, "br1"), mac_of(a, "mac0")
    ways = [
        (REMOTES[4], "10.0.0.1", bridge),
        (REMOTES[4], "192.0.2.1", bridge),
        (REMOTES[4], "10.0.0.255", bridge),
        (REMOTES[4], "10.0.0.255", BROADCAST),
        (REMOTES[4], "255.255.255.255", BROADCAST),
        (REMOTES[4], "10.0.9.1", macvlan),
        (REMOTES[6], "fd00::1", bridge),
        (REMOTES[6], "2001:db8::1", bridge),
    ]

    def refused(count: int) -> None:
        wait_until(lambda: total(vtep, "overlay_ingress") == count, f"{count} to be refused")

    with (
        Arrivals(a, "vx1") as first,
        Arrivals(a, "vx2") as second,
        packet_socket(one, "guest1") as wire,
        udp_socket(b, REMOTES[4]) as remote,
    ):
        for number, way in enumerate(ways):
            wire.send(forged(2, number, *way))
        count = len(ways) + 2  # The macvlan device gets a copy of a broadcast.
        refused(count)
        wait_until(lambda: " x overlay_ingress: " in vtep.log, "the log")
        assert re.search(r"\(last: \S+, over (br1|mac0)\)", vtep.log)
        # A guest of another host, through the tunnel.
        way = (REMOTES[4], "10.2.0.1", mac_of(a, "vx2"))
        remote.sendto(vxlan.pack(2) + forged(1, 100, *way), ("192.0.2.1", 4789))
        refused(count + 1)
        # A bridge to which a TAP is added at run time, with everything on it.
        bridged(a, "br2", "10.3.0.1/24")
        two = guest(lab, a, "guest2", "br2")
        a.run("ip", "link", "set", "vx2", "master", "br2")
        with packet_socket(two, "guest2") as other:
            other.send(forged(1, 101, REMOTES[4], "10.3.0.1", mac_of(a, "br2")))
            refused(count + 2)
            # And a bridge from which it is removed.
            a.run("ip", "link", "set", "vx2", "nomaster")
            other.send(forged(1, 102, REMOTES[4], "10.3.0.1", mac_of(a, "br2")))
            wait_until(lambda: first.count(frame(102)), "a frame from the other bridge")
        # The remote VTEP itself.
        remote.sendto(vxlan.pack(2) + frame(200), ("192.0.2.1", 4789))
        wait_until(lambda: second.count(frame(200)), "a frame of the remote")
        for number in (*range(len(ways)), 100, 101):
            assert first.count(frame(number)) == second.count(frame(number)) == 0
    assert total(vtep, "overlay_ingress") == count + 2
    assert total(vtep, "source_unknown") == total(vtep, "rx_queue_full") == 0


def test_guest_of_one_process_cannot_reach_another(
    joined: tuple[Host, Host, Host], start: Start
) -> None:
    """As if each Docker network is attached by a process of its own."""
    a, b, one = joined
    options = ("--remote", "192.0.2.2", "--control", "auto")
    second = start(a, *options, "--vni", "2", "--tap", "second", "--dstport", "4790")
    start(a, *options, "--vni", "1", "--tap", "first", "--bridge", "br1")
    number = iter(range(1000))
    mac = mac_of(a, "br1")
    with (
        Arrivals(a, "second") as arrivals,
        packet_socket(one, "guest1") as wire,
        udp_socket(b, "192.0.2.2") as remote,
    ):

        def refused() -> bool:
            wire.send(forged(2, next(number), REMOTES[4], "192.0.2.1", mac, 4790))
            return second.counter("overlay_ingress") > 0

        # The other process may be noticed up to a second later.
        wait_until(refused, "a guest of the first to be refused by the second")
        remote.sendto(vxlan.pack(2) + frame(2000), ("192.0.2.1", 4790))
        wait_until(lambda: arrivals.count(frame(2000)), "a frame of the remote")


def test_bridge_that_is_also_the_underlay(lab: Lab, pair: Pair, start: Start) -> None:
    """It extends the LAN of the remotes: pyvtep warns and does not filter it."""
    a, b = pair
    bridged(a, "br0")
    a.run("ip", "addr", "flush", "dev", "eth0")
    a.run("ip", "link", "set", "eth0", "master", "br0")
    address(a, "br0", "192.0.2.1/24")
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    one = guest(lab, a, "guest", "br0")
    address(one, "guest", "10.0.0.9/24")
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")
    ping(one, "10.0.0.2")
    assert vtep.counter("overlay_ingress") == 0
    assert vtep.log.count("br0 leads to remotes") == 1


def test_bridge_that_becomes_the_underlay(pair: Pair, start: Start) -> None:
    """Also for a remote that only the FDB has. Afterwards, the bridge is filtered again."""
    a, b = pair
    bridged(a, "br0")
    vtep = start(a, "--vni", "1", "--tap", "vx0", "--bridge", "br0", "--address", "10.0.0.1/24")
    vtep.invoke("fdb append 00:00:00:00:00:00 dst 192.0.2.2")
    a.run("ip", "link", "set", "br0", "up")
    with udp_socket(b, "192.0.2.2") as sender, Arrivals(a) as arrivals:

        def arrives(number: int) -> bool:
            sender.sendto(vxlan.pack(1) + frame(number), ("192.0.2.1", 4789))
            return arrivals.count(frame(number)) > 0

        wait_until(partial(arrives, 1), "a frame by eth0")
        a.run("ip", "addr", "flush", "dev", "eth0")
        a.run("ip", "link", "set", "eth0", "master", "br0")
        address(a, "br0", "192.0.2.1/24")
        wait_until(partial(arrives, 2), "a frame by br0")
        assert vtep.counter("overlay_ingress") > 0
        assert vtep.log.count("br0 leads to remotes") == 1
        bridged(a, "br1")
        a.run("ip", "route", "add", "192.0.2.2/32", "dev", "br1")
        a.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.br0.rp_filter=0")

        def refused() -> bool:
            before = vtep.counter("overlay_ingress")
            arrives(3)
            return vtep.counter("overlay_ingress") > before

        wait_until(refused, "br0 to be no underlay any more")


# --- unknown sources --------------------------------------------------------------------------

BURST = 1500
"""More datagrams of unknown sources than are examined in some seconds."""


@FAMILIES
def test_known_sources_are_kept_up_to_date(pair: Pair, start: Start, version: int) -> None:
    """All datagrams of a burst of a known host are accepted; of others, each is counted."""
    a, b = pair
    own, other = ("192.0.2.1", "192.0.2.3") if version == 4 else ("2001:db8::1", "2001:db8::3")
    net = "192.0.2.0/24" if version == 4 else "2001:db8::/64"
    address(b, "eth0", other + net[-3:])
    # More broadcasts at once than storm control allows by default.
    options = "--no-learning --storm-broadcast off"
    vtep = start(a, *segment(1, REMOTES[version]), *options.split())

    def burst(reason: str, vni: int = 1, count: int = BURST) -> None:
        expected = total(vtep, reason) + count
        with udp_socket(b, other) as sender:
            for _ in range(count):
                sender.sendto(vxlan.pack(vni) + frame(1), (own, 4789))
        wait_until(lambda: total(vtep, reason) == expected, f"{reason} to be {expected}")

    burst("source_unknown")
    wait_until(lambda: " x source_unknown: " in vtep.log, "the log")
    assert f"last: {other}" in vtep.log
    for known, unknown, vni in (
        (f"fdb add 02:00:00:00:00:01 dst {other} static", "fdb del 02:00:00:00:00:01", 1),
        (f"remote add {other}", f"remote del {other}", 1),
        (f"vni add 2 --remote {other} --tap vx2 {options}", "vni del 2", 2),
        (f"set --accept {net}", "set --accept 198.51.100.0/24", 1),
    ):
        vtep.invoke(known)
        burst("rx_frames", vni)
        vtep.invoke(unknown)
        burst("source_unknown", count=10)
    anybody = "0.0.0.0/0" if version == 4 else "::/0"
    vtep.invoke(f"vni add 3 --accept {anybody} --tap vx3 {options}")
    burst("rx_frames", 3)
    assert total(vtep, "rx_queue_full") == 0


def test_known_sources_are_served_during_a_flood(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    address(b, "eth0", "192.0.2.3/24")
    ping(a, "10.0.0.2")
    with udp_socket(b, "192.0.2.3") as sender:
        sent = 0
        for _ in range(10):
            for _ in range(500):
                sender.sendto(vxlan.pack(1) + frame(1), ("192.0.2.1", 4789))
            sent += 500
            ping(a, "10.0.0.2")
    wait_until(lambda: vtep.counter("source_unknown") == sent, "each to be counted")
    assert vtep.counter("rx_queue_full") == 0


@pytest.fixture
def flooded_group(pair: Pair, start: Start) -> tuple[Pyvtep, Callable[[str, int], None]]:
    """Return a VTEP that has joined a group, and a function that sends to the group."""
    a, b = pair
    vtep = start(
        a,
        *("--vni", "1", "--tap", "vx0", "--group", "239.1.1.1", "--dev", "eth0", "--no-learning"),
        *("--accept", "192.0.2.2/32"),
    )
    address(b, "eth0", "192.0.2.3/24")

    def send(host: str, count: int) -> None:
        with udp_socket(b, host) as sender:
            sender.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("192.0.2.2")
            )
            for number in range(count):
                sender.sendto(vxlan.pack(1) + frame(number), ("239.1.1.1", 4789))

    return vtep, send


def test_flood_to_a_group(
    flooded_group: tuple[Pyvtep, Callable[[str, int], None]], pair: Pair
) -> None:
    vtep, send = flooded_group
    a, _ = pair
    send("192.0.2.3", 10)
    wait_until(lambda: vtep.counter("source_unknown") == 10, "those few")
    wait_until(lambda: "last: 192.0.2.3)" in vtep.log, "the log")
    sent = 10

    def discarded() -> int:
        """Return the number of datagrams that the kernel dropped at the socket of the group."""
        said = a.run("ss", "-uamn", "src", "=", "239.1.1.1:4789")
        found = re.search(r"skmem:\(.*,d(\d+)\)", said)
        assert found, said
        return int(found[1])

    def filtered() -> bool:
        nonlocal sent
        send("192.0.2.3", 3000)
        sent += 3000
        return discarded() > 0

    def counts() -> bool:
        """Return whether datagrams of unknown sources are counted one by one."""
        nonlocal sent
        before = discarded()
        send("192.0.2.3", 7)
        sent += 7
        return discarded() == before

    wait_until(filtered, "a filter")
    assert not counts()
    send("192.0.2.2", 5)
    wait_until(lambda: vtep.counter("rx_frames") == 5, "the host that is accepted")
    wait_until(counts, "the end of the filter")
    wait_until(lambda: vtep.counter("source_unknown") == sent, "each to be counted")
    assert vtep.counter("rx_queue_full") == 0


def test_missing_filter_is_logged(pair: Pair, start: Start) -> None:
    a, b = pair
    a.run("sysctl", "-qw", "net.core.optmem_max=200")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    ping(a, "10.0.0.2")
    assert vtep.log.count("no ingress filter on UDP port") == 1
    address(b, "eth0", "192.0.2.3/24")
    with udp_socket(b, "192.0.2.3") as sender:
        sender.sendto(vxlan.pack(1) + frame(1), ("192.0.2.1", 4789))
    wait_until(lambda: vtep.counter("source_unknown") == 1, "the count")
