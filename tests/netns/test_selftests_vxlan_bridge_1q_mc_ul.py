"""The assertions of the kernel's vxlan_bridge_1q_mc_ul.sh: the device by which a group is reached.

Membership of IPv4 and IPv6 groups, with the kernel driver and with pyvtep, is tested in
test_outer_header.py. Multicast routing in the underlay is a matter of the kernel.
"""

import pytest
from scapy.layers.l2 import Ether

from tests.netns.hosts import (
    Pair,
    Start,
    address,
    packet_socket,
    wait_until,
)
from vtep.testing.lab import Host, Lab

ZERO = "00:00:00:00:00:00"


class Seen:
    """Counts the VXLAN datagrams that a device of a host receives."""

    def __init__(self, lab: Lab, host: Host, device: str) -> None:
        self._socket = lab.enter_context(packet_socket(host, device))
        self._socket.setblocking(False)
        self._frames: list[bytes] = []

    def count(self, text: bytes) -> int:
        while True:
            try:
                self._frames.append(self._socket.recv(2048))
            except BlockingIOError:
                return sum(frame.endswith(text) for frame in self._frames)


@pytest.mark.parametrize("group", ["239.1.1.7", "ff0e::107"], ids=["ipv4", "ipv6"])
def test_entry_selects_the_device_of_a_group(
    lab: Lab, pair: Pair, start: Start, group: str
) -> None:
    a, b = pair
    lab.wire(a, b, "eth1")
    address(a, "eth1", "198.51.100.1/24", "2001:db8:1::1/64")
    vtep = start(a, "--vni", "1", "--tap", "vx0", "--ttl", "4")
    devices = [Seen(lab, b, "eth0"), Seen(lab, b, "eth1")]
    sender = lab.enter_context(packet_socket(a, "vx0"))

    def reaches(expected: list[int], text: bytes) -> None:
        sender.send(bytes(Ether(dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / (bytes(50) + text)))
        wait_until(lambda: [device.count(text) for device in devices] == expected, f"{expected}")

    vtep.invoke(f"fdb append {ZERO} dst {group} via eth1")
    reaches([0, 1], b"by the second")
    vtep.invoke(f"fdb append {ZERO} dst {group} via eth0")
    reaches([1, 1], b"by both")
    vtep.invoke(f"fdb del {ZERO} dst {group} via eth1")
    reaches([1, 0], b"by the first")
    assert [device.count(b"by the second") for device in devices] == [0, 1]
