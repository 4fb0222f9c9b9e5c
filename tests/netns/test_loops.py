"""Loops behind TAPs, with real bridges that a cable connects besides the tunnel."""

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    address,
    is_reachable,
    kernel_vtep,
    packet_socket,
    ping,
    wait_until,
)
from vtep.testing.lab import Host, Lab

FLOODED_MIN = 2000
"""Frames that are flooded only in a storm: the frames of the test itself are a few dozen."""


def join_bridge(host: Host, *devices: str) -> None:
    """Put devices into br0, a bridge without STP that does not snoop either."""
    for device in devices:
        host.run("ip", "link", "set", device, "master", "br0")


def make_bridge(host: Host, own: str) -> None:
    """Make br0 with an address of the segment."""
    kind = ("type", "bridge", "stp_state", "0", "mcast_snooping", "0")
    host.run("ip", "link", "add", "br0", *kind)
    host.run("ip", "link", "set", "br0", "up")
    address(host, "br0", own)


def counter(vtep: Pyvtep, name: str, vni: int = 1) -> int:
    """Return one counter of a VNI."""
    with vtep.client() as client:
        return int(client.stats(vni=vni)["segments"][0]["counters"][name])


@pytest.mark.parametrize("peer", ["pyvtep", "kernel"])
def test_second_cable_is_found_and_the_storm_ends_until_it_is_removed(
    lab: Lab, pair: Pair, start: Start, peer: str
) -> None:
    """A block at one end of the tunnel breaks both directions of the loop."""
    a, b = pair
    for host, number in ((a, 1), (b, 2)):
        make_bridge(host, f"10.0.0.{number}/24")
    tunnel = ("--bridge", "br0", "--loop-block", "2")
    vtep = start(a, "--vni", "1", "--remote", "192.0.2.2", "--tap", "vx0", *tunnel)
    vtep.run(
        *("vni", "add", "2", "--remote", "192.0.2.2", "--tap", "vx1", "--address", "10.1.0.1/24")
    )
    if peer == "pyvtep":
        other = start(b, "--vni", "1", "--remote", "192.0.2.1", "--tap", "vx0", *tunnel)
        other.run(
            *("vni", "add", "2", "--remote", "192.0.2.1", "--tap", "vx1"),
            *("--address", "10.1.0.2/24"),
        )
    else:
        kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1")
        join_bridge(b, "vx0")
        kernel_vtep(b, 2, "192.0.2.2", "192.0.2.1", "10.1.0.2/24", device="vx1")
    vteps = [vtep, other] if peer == "pyvtep" else [vtep]
    ping(a, "10.0.0.2")
    ping(a, "10.1.0.2")

    def found() -> int:
        """Return how often either end has found a loop: a block at one ends the storm at both."""
        return sum(counter(each, "loops_found") for each in vteps)

    lab.wire(a, b, "eth1")
    join_bridge(a, "eth1")
    join_bridge(b, "eth1")
    guest = packet_socket(a, "br0")
    # One broadcast suffices, of a MAC that belongs to neither TAP.
    guest.send(b"\xff" * 6 + b"\x02\0\0\0\0\x77" + b"\x88\xb5" + bytes(50))
    guest.close()
    wait_until(lambda: counter(vtep, "flooded") > FLOODED_MIN, "a storm")
    wait_until(found, "the loop to be found")
    ping(a, "10.1.0.2", count=20)  # The other VNI goes on.

    def is_quiet() -> bool:
        before = counter(vtep, "flooded")
        is_reachable(a, "10.1.0.2")
        return counter(vtep, "flooded") - before < 10

    wait_until(is_quiet, "the storm to end")
    a.run("ip", "link", "del", "eth1")
    a.run("ip", "neigh", "flush", "dev", "br0")  # A ping begins with a broadcast.
    # Blocks become longer while a loop is found again and again.
    wait_until(lambda: is_reachable(a, "10.0.0.2"), "the segment to recover", 4 * DEADLINE)
    before = found()
    ping(a, "10.0.0.2", count=20)
    assert found() == before

    def logs() -> str:
        return "".join(each.log for each in vteps)

    assert "vni 1: loop through 192.0.2." in logs()
    wait_until(lambda: "vni 1: flooding with 192.0.2." in logs(), "the end of a block")
    assert "vni 2: loop" not in logs()
