"""One Ethernet segment across two hosts, with pyvtep at both ends."""

import re
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.netns.hosts import (
    Arrivals,
    Pair,
    Start,
    address,
    has_device,
    mac_of,
    mtu_of,
    packet_socket,
    ping,
    segment,
    transfer,
    udp_socket,
    wait_until,
)
from vtep.testing.lab import Lab
from vtep.wire import vxlan

pytestmark = pytest.mark.usefixtures("fast_path")

UNDERLAYS = pytest.mark.parametrize(
    ("left", "right", "mtu"),
    [("192.0.2.1", "192.0.2.2", 1450), ("2001:db8::1", "2001:db8::2", 1430)],
    ids=["over-ipv4", "over-ipv6"],
)


@UNDERLAYS
def test_two_hosts_share_a_segment(
    pair: Pair, start: Start, left: str, right: str, mtu: int
) -> None:
    a, b = pair
    for host, remote in ((a, right), (b, left)):
        start(host, "--vni", "1", "--remote", remote, "--tap", "vx0")
        assert "UP" in a.run("ip", "link", "show", "vx0")
        assert mtu_of(host) == mtu
    address(a, "vx0", "10.0.0.1/24", "fd00::1/64")
    address(b, "vx0", "10.0.0.2/24", "fd00::2/64")
    for destination in ("10.0.0.2", "fd00::2"):
        ping(a, destination)
        # As large as the MTU of the segment, with DF.
        headers = 28 if "." in destination else 48
        ping(a, destination, "-M", "do", "-s", str(mtu - headers))
        # Fragmented inside the segment.
        ping(a, destination, "-s", "9000")
    for host, other in ((a, b), (b, a)):
        neighbours = host.run("ip", "neigh", "show", "dev", "vx0")
        assert neighbours.count(mac_of(other)) >= 2  # By ARP and by Neighbour Discovery.


@UNDERLAYS
def test_large_transfer_in_both_directions(
    pair: Pair, start: Start, left: str, right: str, mtu: int
) -> None:
    a, b = pair
    first = start(a, *segment(1, right, "10.0.0.1/24", "fd00::1/64"))
    start(b, *segment(1, left, "10.0.0.2/24", "fd00::2/64"))
    ping(a, "fd00::2")
    transfer(a, b, "10.0.0.2", 200 << 20)
    transfer(b, a, "fd00::1", 50 << 20)
    assert first.counter("tx_bytes") > 200 << 20
    assert mtu_of(a) == mtu


@pytest.mark.usefixtures("tunnel")
def test_broadcast_and_multicast_reach_the_other_host(pair: Pair) -> None:
    a, b = pair
    a.run("ip", "route", "add", "224.0.0.0/4", "dev", "vx0")
    payload = bytes(range(256)) * 5  # As large as a DHCP message can be.
    for group in ("10.0.0.255", "239.1.2.3"):
        with udp_socket(b, "0.0.0.0", 6767) as receiver, udp_socket(a, "10.0.0.1") as sender:
            if group.startswith("239"):
                membership = socket.inet_aton(group) + socket.inet_aton("10.0.0.2")
                receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(payload, (group, 6767))
            assert receiver.recv(2048) == payload


def test_dhcp_across_the_tunnel(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, b = pair
    start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    start(b, *segment(1, "192.0.2.1"))
    with (tmp_path / "dnsmasq").open("w") as log:
        a.start(
            *(
                "dnsmasq",
                "--keep-in-foreground",
                "--log-facility=-",
                "--conf-file=/dev/null",
                "--port=0",
            ),
            *("--interface=vx0", "--bind-interfaces", "--user=root", "--group=root"),
            *("--dhcp-range=10.0.0.50,10.0.0.59", f"--dhcp-leasefile={tmp_path / 'leases'}"),
            f"--pid-file={tmp_path / 'dnsmasq.pid'}",
            stderr=log,
        )
    wait_until(lambda: "DHCP, sockets bound" in (tmp_path / "dnsmasq").read_text(), "dnsmasq")
    lease = tmp_path / "lease"
    with (tmp_path / "dhclient").open("w") as log:
        # Only the lease matters; the default script would change the resolver of this machine.
        b.start(
            *("dhclient", "-4", "-1", "-d", "-sf", "/bin/true", "-lf", str(lease)),
            *("-pf", str(tmp_path / "dhclient.pid"), "vx0"),
            stderr=log,
        )
    wait_until(lambda: lease.exists() and "fixed-address 10.0.0.5" in lease.read_text(), "a lease")


@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8, 0x8100)], ids=["802.1Q", "802.1ad"])
@pytest.mark.usefixtures("tunnel")
def test_vlan_tags_cross_unchanged(pair: Pair, tags: tuple[int, ...]) -> None:
    a, b = pair
    stack = b"".join(tag.to_bytes(2, "big") + b"\x20\x2a" for tag in tags)
    frame = (
        bytes.fromhex(mac_of(b).replace(":", "") + "020000000001") + stack + b"\x88\xb5" + b"x" * 60
    )
    received = b""
    with packet_socket(a, "vx0") as sender, packet_socket(b, "vx0") as receiver:
        receiver.setsockopt(263, 8, 1)  # SOL_PACKET, PACKET_AUXDATA: has the tag.
        sender.send(frame)
        while not received.endswith(b"x" * 60):
            received, control, _, _ = receiver.recvmsg(2048, 256)
    (_, _, auxiliary) = control[0]
    tci, ethertype = auxiliary[16:18], auxiliary[18:20]
    assert int.from_bytes(tci, "little") == 0x202A
    assert int.from_bytes(ethertype, "little") == tags[0]
    assert received == frame[:12] + frame[16:]


def test_flooding_reaches_each_remote_once_and_unicast_one(lab: Lab, start: Start) -> None:
    hub, *spokes = (lab.host(name) for name in "abcd")
    for number, host in enumerate(spokes, start=2):
        # A link to each: no spoke sees the datagrams of another.
        lab.wire(hub, host, device=f"eth{number}")
        address(hub, f"eth{number}", f"192.0.{number}.1/24")
        address(host, f"eth{number}", f"192.0.{number}.2/24")
        start(host, *segment(1, f"192.0.{number}.1", f"10.0.0.{number}/24"))
    remotes = [f"--remote=192.0.{number}.2" for number in (2, 3, 4)]
    center = start(hub, "--vni", "1", "--tap", "vx0", "--address", "10.0.0.1/24", *remotes)
    arrivals = [lab.enter_context(Arrivals(host)) for host in spokes]

    def copies(frame: bytes) -> list[int]:
        return [arrived.count(frame) for arrived in arrivals]

    def once_each(frame: bytes) -> bool:
        return copies(frame) == [1, 1, 1]

    def frame_to(mac: str, text: bytes) -> bytes:
        return bytes.fromhex(mac.replace(":", "") + "020000000001") + b"\x88\xb5" + text * 9

    with packet_socket(hub, "vx0") as sender:
        for mac in ("ff:ff:ff:ff:ff:ff", "01:00:5e:01:02:03", "02:00:00:00:00:99"):
            flooded = frame_to(mac, b"to all of you")
            sender.send(flooded)
            wait_until(partial(once_each, flooded), "a copy for each")
        ping(spokes[0], "10.0.0.1")
        assert center.fdb()[mac_of(spokes[0])] == "192.0.2.2"
        known = frame_to(mac_of(spokes[0]), b"to you alone")
        later = frame_to("ff:ff:ff:ff:ff:ff", b"to all again")
        sender.send(known)
        sender.send(later)
        # Frames of one flow stay in order, but these are two flows: wait for each.
        wait_until(lambda: once_each(later) and copies(known)[0] == 1, "both")
        assert copies(known) == [1, 0, 0]
    # A frame from one remote is not forwarded to the others.
    reflected = frame_to("ff:ff:ff:ff:ff:ff", b"to the hub")
    with Arrivals(hub) as at_hub, packet_socket(spokes[0], "vx0") as sender:
        sender.send(reflected)
        wait_until(lambda: at_hub.count(reflected) == 1, "the frame at the hub")
    with packet_socket(hub, "vx0") as sender:
        last = frame_to("ff:ff:ff:ff:ff:ff", b"the last one")
        sender.send(last)
    wait_until(lambda: once_each(last), "the last frame")
    assert copies(reflected) == [0, 0, 0]


def test_tap_in_a_bridge(pair: Pair, lab: Lab, start: Start) -> None:
    """As for a container behind a Docker bridge."""
    for host, number, other in zip(pair, (1, 2), (2, 1), strict=True):
        guest = lab.host(f"guest{number}")
        lab.wire(host, guest, device="guest0")
        address(guest, "guest0", f"172.18.0.{number}/16")
        host.run("ip", "link", "add", "br0", "type", "bridge")
        host.run("ip", "link", "set", "br0", "up")
        host.run("ip", "link", "set", "guest0", "master", "br0")
        guest.run("ip", "link", "set", "guest0", "mtu", "1450")
        start(host, *segment(200, f"192.0.2.{other}"))
        host.run("ip", "link", "set", "vx0", "master", "br0")
        last = guest
    ping(last, "172.18.0.1")


def test_entry_ages_although_frames_are_sent_to_it(pair: Pair, start: Start) -> None:
    a, b = pair
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--ageing", "2")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    mac = mac_of(b)
    assert first.fdb() == {mac: "192.0.2.2"}
    # From now on the host is silent, but frames are sent to it.
    b.run("ip", "link", "set", "vx0", "down")
    frame = bytes.fromhex(mac.replace(":", "") + "020000000001") + b"\x88\xb5" + b"x" * 50
    with packet_socket(a, "vx0") as sender:

        def gone_while_sending() -> bool:
            sender.send(frame)
            return mac not in first.fdb()

        wait_until(gone_while_sending, "the entry to be forgotten")
    b.run("ip", "link", "set", "vx0", "up")
    ping(a, "10.0.0.2")
    assert mac in first.fdb()


def test_full_fdb_does_not_stop_traffic(pair: Pair, start: Start) -> None:
    a, b = pair
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--max-addresses", "5")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    with packet_socket(b, "vx0") as sender:
        for number in range(20):
            source = b"\x02\x00\x00\x00\x01" + bytes([number])
            sender.send(b"\xff" * 6 + source + b"\x88\xb5" + b"x" * 50)
    wait_until(lambda: first.counter("fdb_full") >= 15, "the table to be full")
    assert len(first.fdb()) == 5
    ping(a, "10.0.0.2")  # Its MAC is unknown, so frames to it are flooded.
    wait_until(lambda: " x fdb_full: " in first.log, "the log")
    assert "last: 192.0.2.2)" in first.log


def test_remote_is_limited_to_its_share_of_the_fdb(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"), "--max-addresses", "8", "--remote", "192.0.2.3")
    address(b, "eth0", "192.0.2.3/24")
    numbers = iter(range(100))

    def speak(host: str, count: int) -> None:
        with udp_socket(b, host) as sender:
            for _ in range(count):
                source = b"\x02\x00\x00\x00\x01" + bytes([next(numbers)])
                frame = b"\xff" * 6 + source + b"\x88\xb5" + b"x" * 50
                sender.sendto(vxlan.pack(1) + frame, ("192.0.2.1", 4789))

    speak("192.0.2.2", 10)
    wait_until(lambda: vtep.counter("fdb_quota") == 6, "the quota of a remote")
    wait_until(lambda: " x fdb_quota: " in vtep.log, "the log")
    assert "last: 192.0.2.2)" in vtep.log
    vtep.invoke("set --max-addresses-per-remote 2")
    assert len(vtep.fdb()) == 4
    speak("192.0.2.3", 3)
    wait_until(lambda: vtep.counter("fdb_quota") == 7, "the lower quota")
    vtep.invoke("set --max-addresses-per-remote 0")
    speak("192.0.2.2", 3)
    wait_until(lambda: vtep.counter("fdb_full") == 1, "the table to be full")
    assert sorted(vtep.fdb().values()) == ["192.0.2.2"] * 6 + ["192.0.2.3"] * 2


def test_everything_is_flooded_without_learning(pair: Pair, start: Start) -> None:
    a, b = pair
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--no-learning")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    assert first.fdb() == {}
    counters = first.counters()
    assert counters["flooded"] == counters["tx_frames"] > 0


def test_tap_options(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start(
        *(a, "--vni", "77", "--remote", "192.0.2.2", "--mtu", "1300", "--dstport", "5789"),
        *("--mac", "02:AA:00:00:00:01", "--address", "10.7.0.1/24", "--address", "fd07::1/64"),
        *("--local", "192.0.2.1", "--dev", "eth0"),
    )
    assert "vx77" in vtep.log
    assert mtu_of(a, "vx77") == 1300
    assert mac_of(a, "vx77") == "02:aa:00:00:00:01"
    shown = a.run("ip", "addr", "show", "vx77")
    assert "10.7.0.1/24" in shown
    assert "fd07::1/64" in shown
    sockets = a.run("ss", "-Huln", "sport", "=", ":5789")
    assert re.search(r"192\.0\.2\.1%eth0:5789", sockets)
    assert vtep.stop() == 0
    assert not has_device(a, "vx77")


def test_jumbo_frames(lab: Lab, start: Start) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b, mtu=9000)
    for host, own, other in ((a, 1, 2), (b, 2, 1)):
        address(host, "eth0", f"192.0.2.{own}/24")
        start(host, *segment(1, f"192.0.2.{other}", f"10.0.0.{own}/24"))
        assert mtu_of(host) == 8950
    ping(a, "10.0.0.2", "-M", "do", "-s", str(8950 - 28))


def test_remote_that_starts_later_or_restarts(pair: Pair, start: Start) -> None:
    a, b = pair
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    assert "0 received" in a.run("ping", "-c2", "-i0.2", "-W0.2", "10.0.0.2", check=False)
    wait_until(lambda: "underlay_refused" in first.log, "a log line about the refusal")
    for _ in range(2):
        second = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
        a.run("ip", "neigh", "flush", "dev", "vx0")
        ping(a, "10.0.0.2")
        assert second.stop() == 0
