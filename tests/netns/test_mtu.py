"""Guests with MTU 1500 behind bridges, over an underlay of MTU 1500, without any setting changed.

The tunnel carries packets of 1450 octets over IPv4. The remote is another pyvtep or the kernel
driver, whose bridge does the same.
"""

import socket
from dataclasses import dataclass
from functools import partial

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    is_reachable,
    kernel_vtep,
    mtu_of,
    packet_socket,
    ping,
    segment,
    transfer,
    udp_socket,
    wait_for_mtu,
    wait_until,
)
from tests.netns.test_errors import refusal
from vtep.testing.lab import Host, Lab

UNPRIVILEGED = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")
SOL_UDP = 17
UDP_SEGMENT = 103
IP_MTU_DISCOVER = 10
IP_PMTUDISC_DONT = 0


def attach(lab: Lab, host: Host, number: int, device: str = "vx0") -> Host:
    """Put a device into a bridge, with a guest behind it, as a container is. Returns: the guest."""
    guest = lab.host(f"guest{number}")
    host.run("ip", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
    host.run(
        *("ip", "link", "add", "guest0", "type", "veth", "peer", "name", "eth0"),
        *("netns", guest.pid),
    )
    for port in ("guest0", device):
        host.run("ip", "link", "set", port, "master", "br0")
    for end, link in ((host, "br0"), (host, "guest0"), (guest, "eth0")):
        end.run("ip", "link", "set", link, "up")
    address(guest, "eth0", f"10.0.0.{number}/24", f"fd00::{number}/64")
    return guest


@dataclass
class Scene:
    """Guests 1 and 2 behind hosts a and b; a runs pyvtep, b runs pyvtep or the kernel driver."""

    guests: Pair
    hosts: Pair
    vtep: Pyvtep
    other: Pyvtep | None

    def route(self) -> str:
        """Return the cached routes of guest 1 to guest 2, with their path MTU."""
        get = ("route", "get")
        guest = self.guests[0]
        return guest.run("ip", *get, "10.0.0.2") + guest.run("ip", "-6", *get, "fd00::2")

    def total(self, name: str) -> int:
        return sum(vtep.counter(name) for vtep in (self.vtep, self.other) if vtep)


def build(lab: Lab, pair: Pair, start: Start, far: str, *options: str) -> Scene:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"), *options)
    other = None
    if far == "pyvtep":
        other = start(b, *segment(1, "192.0.2.1"), *options)
    else:
        kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1")
    first, second = attach(lab, a, 1), attach(lab, b, 2)
    wait_for_mtu(a, 1500)
    if other is not None:
        wait_for_mtu(b, 1500)
    scene = Scene((first, second), pair, vtep, other)
    for destination in ("10.0.0.2", "fd00::2"):
        wait_until(partial(is_reachable, first, destination), f"an answer of {destination}")
    return scene


@pytest.fixture(params=["pyvtep", "kernel"])
def scene(request: pytest.FixtureRequest, lab: Lab, pair: Pair, start: Start) -> Scene:
    return build(lab, pair, start, request.param)


def test_guests_learn_the_path_mtu(scene: Scene) -> None:
    """As in the kernel's selftest pmtu.sh, cases pmtu_ipv4_br_vxlan4_exception and _ipv6_."""
    guest = scene.guests[0]
    said = guest.run("ping", "-c1", "-W10", "-M", "do", "-s", "1472", "10.0.0.2", check=False)
    assert "Frag needed and DF set (mtu = 1450)" in said
    said = guest.run("ping", "-c1", "-W10", "-M", "do", "-s", "1452", "fd00::2", check=False)
    assert "Packet too big: mtu=1450" in said
    assert scene.route().count("mtu 1450") == 2
    ping(guest, "10.0.0.2", "-M", "do", "-s", str(1450 - 28))
    ping(guest, "fd00::2", "-M", "do", "-s", str(1450 - 48))
    assert scene.vtep.counter("tx_too_big_answered") == 2


def both_ways(scene: Scene, octets: int = 50 << 20) -> None:
    first, second = scene.guests
    transfer(first, second, "10.0.0.2", octets)
    transfer(second, first, "fd00::1", octets)


def test_tcp_mss_is_clamped_to_the_tunnel(scene: Scene) -> None:
    both_ways(scene)
    counters = scene.vtep.counters()
    # Two connections with a SYN and a SYN/ACK each, clamped by the VTEP that sees it first.
    assert scene.total("mss_clamped") == 4
    assert counters["tx_resegmented"] == counters["tx_too_big_answered"] == 0
    assert scene.vtep.unexpected_drops() == 0


@pytest.mark.parametrize("far", ["pyvtep", "kernel"])
@pytest.mark.parametrize("offloads", ["on", "off"])
def test_tcp_with_too_large_an_mss_is_segmented(
    lab: Lab, pair: Pair, start: Start, far: str, offloads: str
) -> None:
    """Guests may have connected before there was a tunnel, or ignore the clamped MSS."""
    scene = build(lab, pair, start, far, "--mss-clamp", "off")
    first, second = scene.guests
    if offloads == "off":  # Then each segment comes alone, with a complete checksum.
        features = "tx off tso off gso off gro off"
        for guest in scene.guests:
            guest.run("ethtool", "-K", "eth0", *features.split())
    transfer(first, second, "10.0.0.2", 50 << 20)
    if far == "pyvtep":
        transfer(second, first, "fd00::1", 50 << 20)
    counters = scene.vtep.counters()
    assert counters["mss_clamped"] == 0
    # The first ones are segmented, and their sender learns the path MTU.
    assert 0 < counters["tx_too_big_answered"] <= counters["tx_resegmented"]
    # A sender that ignores ICMP errors gets everything across nevertheless.
    first.run("sysctl", "-qw", "net.ipv4.ip_no_pmtu_disc=1")
    first.run("ip", "route", "flush", "cache")
    transfer(first, second, "10.0.0.2", 4 << 20)
    cut = scene.vtep.counter("tx_resegmented") - counters["tx_resegmented"]
    assert cut > ((4 << 20) // 65536 if offloads == "on" else (4 << 20) // 1500)
    for name in ("tx_fragmented", "tx_oversize", "tx_too_big"):
        assert scene.vtep.counter(name) == 0
    assert scene.vtep.unexpected_drops() == 0


def test_udp_of_any_size(scene: Scene) -> None:
    first, second = scene.guests
    with udp_socket(first, "10.0.0.1") as sender, udp_socket(second, "10.0.0.2", 5000) as receiver:
        sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DONT)
        for octets in (1423, 1472, 4000, 9000):
            sender.sendto(bytes(octets), ("10.0.0.2", 5000))
            assert receiver.recv(10000) == bytes(octets)
        # A superframe of datagrams that are all too large.
        datagrams = [bytes([number]) * 1472 for number in range(30)]
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, 1472)
        sender.sendto(b"".join(datagrams), ("10.0.0.2", 5000))
        assert [receiver.recv(2048) for _ in datagrams] == datagrams
    if (
        scene.other is not None
    ):  # The bridge of the kernel driver drops the replies, unless br_netfilter is loaded.
        for guest, remote in ((first, "10.0.0.2"), (second, "10.0.0.1")):
            ping(guest, remote, "-M", "dont", "-s", "3000")
    assert scene.vtep.counter("tx_fragmented") >= 30
    with udp_socket(first, "fd00::1") as sender, udp_socket(second, "fd00::2", 5000) as receiver:
        sender.sendto(
            bytes(1452), ("fd00::2", 5000)
        )  # The datagram is lost, but its sender learns the path MTU.
        wait_until(lambda: scene.route().count("mtu 1450") == 1, "the answer")
        for octets in (1452, 4000, 9000):
            sender.sendto(bytes(octets), ("fd00::2", 5000))
            assert receiver.recv(10000) == bytes(octets)
    assert scene.vtep.unexpected_drops() == 1


def test_frames_without_segmentation_or_error_are_fragmented_by_the_underlay(
    lab: Lab, pair: Pair, start: Start
) -> None:
    scene = build(lab, pair, start, "kernel")
    first, second = scene.guests
    frame = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + b"x" * 1500
    with packet_socket(first, "eth0") as sender, packet_socket(second, "eth0") as receiver:
        sender.send(frame)
        while receiver.recv(2048) != frame:
            pass
    assert scene.vtep.counter("tx_oversize") == 1


def test_guests_follow_a_narrower_underlay_path(lab: Lab, start: Start) -> None:
    """A router between the hosts carries 1400 octets, and sends ICMP errors for more."""
    a, router, b = lab.host("a"), lab.host("router"), lab.host("b")
    lab.wire(a, router, "eth0")
    lab.wire(router, b, "eth1", mtu=1400)
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    address(a, "eth0", "192.0.2.1/24")
    address(router, "eth0", "192.0.2.254/24")
    address(router, "eth1", "198.51.100.254/24")
    address(b, "eth1", "198.51.100.2/24")
    a.run("ip", "route", "add", "default", "via", "192.0.2.254")
    b.run("ip", "route", "add", "default", "via", "198.51.100.254")
    vtep = start(a, *segment(1, "198.51.100.2"), "--df", "set")
    start(b, *segment(1, "192.0.2.1"), "--df", "set")
    guest, other = attach(lab, a, 1), attach(lab, b, 2)
    wait_for_mtu(a, 1500)
    wait_until(partial(is_reachable, guest, "10.0.0.2"), "an answer")

    def said(payload: int) -> str:
        options = ("-c1", "-W10", "-M", "do", "-s", str(payload))
        return guest.run("ping", *options, "10.0.0.2", check=False)

    wait_until(lambda: "(mtu = 1350)" in said(1450 - 28), "the MTU to be told inside")
    assert "1 received" in said(1350 - 28)
    assert vtep.counter("mtu_changes") == 1
    assert "(mtu 1350)" in vtep.report()
    transfer(guest, other, "10.0.0.2", 20 << 20)


# --- the MTU of the TAP -------------------------------------------------------------------------


def test_tap_mtu_follows_its_bridge(pair: Pair, start: Start) -> None:
    """So the bridge drops nothing towards the TAP, and keeps its MTU."""
    a, _ = pair
    vtep = start(a, *segment(1, "192.0.2.2"))
    assert "(mtu 1450)" in vtep.log
    wait_for_mtu(a, 1450)
    a.run("ip", "link", "add", "br0", "type", "bridge")
    a.run("ip", "link", "set", "vx0", "master", "br0")
    wait_for_mtu(a, 1500)
    wait_for_mtu(a, 1500, "br0")
    a.run("ip", "link", "add", "guest0", "mtu", "9000", "type", "veth", "peer", "name", "guest1")
    a.run("ip", "link", "set", "guest0", "master", "br0")
    wait_for_mtu(a, 9000)
    wait_for_mtu(a, 9000, "br0")
    a.run("ip", "link", "set", "guest0", "mtu", "1400")
    wait_for_mtu(a, 1500)
    wait_for_mtu(a, 1400, "br0")
    a.run("ip", "link", "set", "vx0", "nomaster")
    wait_for_mtu(a, 1450)
    assert "(mtu 1450)" in vtep.report()


def test_underlay_mtu_is_followed(pair: Pair, start: Start) -> None:
    """Up and down, but not above --mtu."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    start(
        a, "--vni", "2", "--remote", "192.0.2.2", "--dstport", "4790", "--tap", "vx2", "--mtu=1400"
    )
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    ping(a, "10.0.0.2")
    for host in pair:
        host.run("ip", "link", "set", "eth0", "mtu", "9000")
    b.run("ip", "link", "set", "vx0", "mtu", "8950")
    wait_for_mtu(a, 8950)
    wait_until(lambda: "vni 1: the tunnel carries packets of 8950 octets now" in vtep.log, "it")
    ping(a, "10.0.0.2", "-M", "do", "-s", str(8950 - 28))
    assert mtu_of(a, "vx2") == 1400
    for host in pair:
        host.run("ip", "link", "set", "eth0", "mtu", "1500")
    wait_for_mtu(a, 1450)
    wait_until(lambda: "vni 1: the tunnel carries packets of 1450 octets now" in vtep.log, "it")
    ping(a, "10.0.0.2", "-M", "do", "-s", str(1450 - 28))


def test_mtu_set_by_the_administrator_is_kept(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start(a, *segment(1, "192.0.2.2"))
    a.run("ip", "link", "set", "vx0", "mtu", "1300")
    a.run("ip", "link", "add", "br0", "type", "bridge")
    a.run("ip", "link", "set", "vx0", "master", "br0")
    a.run("ip", "link", "add", "guest0", "mtu", "9000", "type", "veth", "peer", "name", "guest1")
    a.run("ip", "link", "set", "guest0", "master", "br0")
    # The harm that it does is logged.
    wait_until(lambda: "up to 9000 octets are dropped in front of vx0" in vtep.log, "the line")
    assert mtu_of(a) == 1300


def test_prepared_tap_in_a_bridge(pair: Pair, start: Start) -> None:
    a, _ = pair
    a.run("ip", "link", "add", "br0", "type", "bridge")
    a.run("ip", "tuntap", "add", "vx0", "mode", "tap")
    a.run("ip", "link", "set", "vx0", "master", "br0")
    start(a, *segment(1, "192.0.2.2"), "--mtu", "1400")
    assert mtu_of(a) == 1500
    a.run("ip", "link", "set", "vx0", "nomaster")
    wait_for_mtu(a, 1400)


def test_missing_privilege_is_logged(pair: Pair, start: Start) -> None:
    a, _ = pair
    a.run("ip", "link", "add", "br0", "type", "bridge")
    a.run("ip", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1")
    a.run("ip", "tuntap", "add", "vx0", "mode", "tap", "user", "root")
    a.run("ip", "link", "set", "vx0", "up", "mtu", "1450")
    for port in ("vx0", "guest0"):
        a.run("ip", "link", "set", port, "master", "br0")
    vtep = start(a, *segment(1, "192.0.2.2"), prefix=UNPRIVILEGED)
    line = "up to 1500 octets are dropped in front of vx0 by its bridge: ip link set vx0 mtu 1500"
    wait_until(lambda: line in vtep.log, "the line")


@pytest.mark.usefixtures("tunnel")
def test_host_with_too_large_a_tap_mtu_learns_the_path_mtu(pair: Pair) -> None:
    """Without a bridge between the host and the TAP."""
    a, b = pair
    a.run("ip", "link", "set", "vx0", "mtu", "1500")
    said = a.run("ping", "-c1", "-W10", "-M", "do", "-s", "1472", "10.0.0.2", check=False)
    assert "Frag needed and DF set (mtu = 1450)" in said
    transfer(a, b, "10.0.0.2", 20 << 20)


# --- an underlay too narrow for IPv6 ------------------------------------------------------------


@pytest.fixture
def narrow(lab: Lab) -> Pair:
    """Return hosts as `pair`, with MTU 1280: the tunnel carries 1230 octets; IPv6 needs 1280."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b, mtu=1280)
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth0", f"192.0.2.{number}/24", f"2001:db8::{number}/64")
    return a, b


@pytest.mark.parametrize("underlay", ["192.0.2.", "2001:db8::"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("mtu", [None, 1280, 1400])
def test_ipv6_with_a_fragmenting_underlay(
    narrow: Pair, start: Start, mtu: int | None, underlay: str
) -> None:
    a, b = narrow
    options = () if mtu is None else ("--mtu", str(mtu))
    first = start(a, *segment(1, f"{underlay}2", "fd00::1/64", "10.0.0.1/24"), *options)
    start(b, *segment(1, f"{underlay}1", "fd00::2/64", "10.0.0.2/24"), *options)
    assert first.log.count("the underlay fragments") == 1
    assert mtu_of(a) == (mtu or 1280)
    ping(a, "fd00::2", "-s", str(mtu_of(a) - 48))
    ping(a, "10.0.0.2", "-s", str(mtu_of(a) - 28), "-M", "dont")
    transfer(a, b, "fd00::2", 4 << 20)
    transfer(b, a, "10.0.0.1", 4 << 20)
    assert first.unexpected_drops() == 0
    assert f"(mtu {mtu or (1210 if ':' in underlay else 1230)})" in first.report()


def test_error_names_the_cause_if_ipv6_does_not_fit(narrow: Pair, start: Start) -> None:
    a, _ = narrow
    v6 = segment(1, "192.0.2.2", "fd00::1/64")
    line = refusal(a, *v6, "--df", "set")
    assert "--address fd00::1/64: IPv6 needs an MTU of at least 1280" in line
    assert "the tunnel carries 1230" in line
    assert "raise the MTU of eth0 to 1330, or leave out --df set" in line
    line = refusal(a, *v6, "--mtu", "1279")
    assert "IPv6 needs an MTU of at least 1280, but vx0 has 1279; give --mtu 1280" in line
    vtep = start(a, *segment(1, "192.0.2.2"))
    assert "less than the 1280 that IPv6 needs: for IPv6, raise the MTU of eth0 to 1330" in vtep.log
    for words in ("set --mtu 1279 --address fd00::1/64", "set --df set --address fd00::1/64"):
        assert "IPv6 needs an MTU of at least 1280" in vtep.run(*words.split(), code=1)
        assert mtu_of(a) == 1230
    assert "does not fit" in vtep.run("set", "--mtu", "1280", "--df", "set", code=1)
    vtep.run("set", "--address", "fd00::1/64")
    assert mtu_of(a) == 1280
    vtep.run("vni", "add", "2", "--remote", "192.0.2.2", "--address", "fd01::1/64")
    assert mtu_of(a, "vx2") == 1280
    assert "vni 2: the tunnel carries 1230 octets" in vtep.log


def test_ipv6_stays_when_the_underlay_mtu_falls(pair: Pair, start: Start) -> None:
    """The kernel removes all IPv6 addresses from a device with an MTU below 1280, for good."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"))
    start(b, *segment(1, "192.0.2.1", "fd00::2/64"))
    address(a, "vx0", "fd00::1/64")
    for host in pair:
        host.run("ip", "link", "set", "eth0", "mtu", "1280")
    for host in pair:
        wait_for_mtu(host, 1280)
    wait_until(lambda: "the tunnel carries packets of 1230 octets now" in vtep.log, "the news")
    ping(a, "fd00::2", "-s", "1232")
    for host in pair:
        host.run("ip", "link", "set", "eth0", "mtu", "1500")
    for host in pair:
        wait_for_mtu(host, 1450)
    ping(a, "fd00::2", "-s", "1402")


def test_guests_never_learn_an_mtu_below_the_ipv6_minimum(
    lab: Lab, narrow: Pair, start: Start
) -> None:
    """RFC 8200, section 5: a link with a smaller MTU has to fragment."""
    scene = build(lab, narrow, start, "pyvtep")
    guest = scene.guests[0]
    said = guest.run("ping", "-c1", "-W10", "-M", "do", "-s", "1452", "fd00::2", check=False)
    assert "Packet too big: mtu=1280" in said
    ping(guest, "fd00::2", "-M", "do", "-s", "1232")
    both_ways(scene, 4 << 20)
