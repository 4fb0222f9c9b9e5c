"""The assertions of the kernel's vxlan_bridge_1d.sh and its variants, with pyvtep as the switch.

They are about flooding, unicast and learning, with the kernel driver as the remotes. TTL, TOS and
both ECN tables are in test_outer_header.py.
"""

import time
from functools import partial

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether

from tests.netns.hosts import (
    Arrivals,
    Start,
    address,
    mac_of,
    packet_socket,
    ping,
    wait_until,
)
from vtep.testing.lab import Host, Lab

VNI = 1000
MAC = "de:ad:be:ef:13:37"
ZERO = "00:00:00:00:00:00"
COUNT = 10

UNDERLAYS = pytest.mark.parametrize(
    ("prefix", "length", "port"),
    [("192.0.{}.{}", 24, 4789), ("2001:db8:{}::{}", 64, 8472)],
    ids=["ipv4", "ipv6-port-8472"],
)


class Star:
    """A host with pyvtep, a link to each of two kernel VTEPs, and their counters."""

    def __init__(self, lab: Lab, start: Start, prefix: str, length: int, port: int) -> None:
        self.switch, *self.spokes = (lab.host(name) for name in ("switch", "ns1", "ns2"))
        self.remotes: list[str] = []
        for number, spoke in enumerate(self.spokes, start=2):
            lab.wire(self.switch, spoke, device=f"eth{number}")
            local, remote = prefix.format(number, 1), prefix.format(number, 2)
            address(self.switch, f"eth{number}", f"{local}/{length}")
            address(spoke, f"eth{number}", f"{remote}/{length}")
            spoke.run(
                *("ip", "link", "add", "vx2", "type", "vxlan", "id", str(VNI)),
                *("local", remote, "remote", local, "dstport", str(port)),
            )
            address(spoke, "vx2", f"10.0.0.{number}/24")
            spoke.run("ip", "link", "set", "vx2", "up")
            self.remotes.append(remote)
        # Hosts must not send frames of their own, which would be counted and learned.
        self.vtep = start(self.switch, "--vni", str(VNI), "--tap", "vx1", "--dstport", str(port))
        for remote in self.remotes:
            self.flood_to(remote)
        self.counters = [lab.enter_context(Arrivals(spoke, "vx2")) for spoke in self.spokes]
        self._sent = 0

    def flood_to(self, remote: str, verb: str = "append") -> None:
        self.vtep.invoke(f"fdb {verb} {ZERO} dst {remote}")

    def reach(self, source: Host, device: str, mac: str, expected: list[int]) -> None:
        """Send frames to a MAC and compare how many each counter receives."""
        frames = []
        for _ in range(COUNT):
            self._sent += 1
            packet = IP(src="10.0.0.99", dst="10.0.0.100", id=self._sent) / ICMP(seq=self._sent)
            frames.append(bytes(Ether(src="02:00:00:00:00:99", dst=mac) / packet / bytes(22)))
        last = bytes(Ether(src="02:00:00:00:00:99", dst="ff:ff:ff:ff:ff:ff", type=0x88B5))
        last += self._sent.to_bytes(4, "big") + bytes(42)
        with packet_socket(source, device) as sender:
            for frame in frames:
                sender.send(frame)
            self._await(frames, expected)
            sender.send(last)
        # When this marker has arrived everywhere, any duplicates have arrived as well.
        wait_until(lambda: all(counter.count(last) for counter in self.counters), "the last frame")
        self._await(frames, expected)
        assert [counter.count(last) for counter in self.counters] == [1] * len(self.counters)

    def _await(self, frames: list[bytes], expected: list[int]) -> None:
        def counts() -> list[int]:
            return [sum(map(counter.count, frames)) for counter in self.counters]

        def there() -> bool:
            seen = counts()
            return all(some >= wanted for some, wanted in zip(seen, expected, strict=True))

        wait_until(there, f"{expected} frames")
        assert counts() == expected


@pytest.fixture
def star(lab: Lab, start: Start, prefix: str, length: int, port: int) -> Star:
    return Star(lab, start, prefix, length, port)


@UNDERLAYS
def test_flood_and_unicast(star: Star, lab: Lab, prefix: str, length: int) -> None:
    """From a host behind a bridge, and with a local host beside it."""
    switch, vtep = star.switch, star.vtep
    switch.run("ip", "link", "add", "br1", "type", "bridge", "mcast_snooping", "0")
    switch.run("ip", "link", "set", "br1", "up")
    switch.run("ip", "link", "set", "vx1", "master", "br1")
    h1, h2 = lab.host("h1"), lab.host("h2")
    for number, host in ((1, h1), (5, h2)):
        lab.wire(host, switch, f"h{number}")
        switch.run("ip", "link", "set", f"h{number}", "master", "br1")
        address(host, f"h{number}", f"10.0.0.{number}/24")
    star.counters.insert(0, lab.enter_context(Arrivals(h2, "h5")))
    flood = partial(star.reach, h1, "h1", MAC)
    pings = partial(ping, h1)

    for other in ("10.0.0.5", "10.0.0.2", "10.0.0.3"):
        pings(other)
    flood([10, 10, 10])
    # The others receive it as before, beside one whose location is unknown.
    unresolved = prefix.format(2, 77)
    star.flood_to(unresolved)
    flood([10, 10, 10])
    star.flood_to(unresolved, "del")

    macs = [mac_of(h2, "h5"), *(mac_of(spoke, "vx2") for spoke in star.spokes)]
    for mac, remote in zip(macs[1:], star.remotes, strict=True):
        vtep.invoke(f"fdb replace {mac} dst {remote} static")
    for number, mac in enumerate(macs):
        expected = [0, 0, 0]
        expected[number] = 10
        star.reach(h1, "h1", mac, expected)
    vtep.invoke("fdb flush static")

    # All destinations are removed and added again in another order.
    for remote in star.remotes:
        star.flood_to(remote, "del")
    own = [(f"eth{number}", f"{prefix.format(number, 1)}/{length}") for number in (2, 3)]
    for device, local in own:
        switch.run("ip", "addr", "del", local, "dev", device)
    switch.run("ip", "link", "set", "vx1", "nomaster")
    switch.run("ip", "link", "set", "vx1", "master", "br1")
    for remote in star.remotes:
        star.flood_to(remote)
    for device, local in own:
        address(switch, device, local)
    for other in ("10.0.0.2", "10.0.0.3"):
        pings(other)
    flood([10, 10, 10])


@UNDERLAYS
def test_learning(star: Star) -> None:
    vtep, (ns1, _) = star.vtep, star.spokes
    reach = partial(star.reach, star.switch, "vx1", MAC)
    said = bytes(Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / bytes(50))

    def learned() -> bool:
        return MAC in vtep.invoke("fdb show dynamic")

    def speak() -> None:
        with Arrivals(star.switch, "vx1") as arrivals, packet_socket(ns1, "vx2") as sender:
            sender.send(said)
            wait_until(lambda: arrivals.count(said) == 1, "what it sent")

    reach([10, 10])
    speak()
    assert f"{MAC}  {star.remotes[0]}" in vtep.invoke("fdb show dynamic")
    reach([10, 0])
    vtep.invoke(f"fdb del {MAC}")
    reach([10, 10])

    # The entry must expire although frames are sent to it, but not early.
    speak()
    reach([10, 0])
    began = time.monotonic()
    speak()
    vtep.invoke("set --ageing 2")
    to_it = bytes(Ether(src="02:00:00:00:00:99", dst=MAC, type=0x88B5) / bytes(50))
    with packet_socket(star.switch, "vx1") as sender:

        def forgotten() -> bool:
            sender.send(to_it)
            return not learned()

        wait_until(forgotten, "it to be forgotten")
    assert time.monotonic() - began >= 2
    reach([10, 10])

    vtep.invoke("set --ageing 300 --no-learning")
    speak()
    assert not learned()
    reach([10, 10])
    vtep.invoke("set --learning")
    speak()
    assert learned()
    reach([10, 0])
