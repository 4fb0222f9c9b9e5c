"""Loops behind TAPs, with real bridges that a cable connects besides the tunnel."""

import re
from functools import partial

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
    pyvtep,
    wait_until,
)
from tests.netns.test_storm import storm
from vtep.testing.lab import Host, Lab


def join_bridge(host: Host, *devices: str) -> None:
    """Put devices into br0, a bridge without STP that does not snoop either."""
    for device in devices:
        host.run("ip", "link", "set", device, "master", "br0")


def make_bridge(host: Host, own: str, *more: str) -> None:
    """Make br0 with an address of the segment, and with further options."""
    kind = ("type", "bridge", "stp_state", "0", "mcast_snooping", "0", *more)
    host.run("ip", "link", "add", "br0", *kind)
    host.run("ip", "link", "set", "br0", "up")
    address(host, "br0", own)


def broadcast(host: Host, count: int = 1) -> None:
    """Send a broadcast of a guest on br0, whose MAC belongs to no TAP."""
    with packet_socket(host, "br0") as guest:
        for _ in range(count):
            guest.send(b"\xff" * 6 + b"\x02\0\0\0\0\x77" + b"\x88\xb5" + bytes(50))


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
    broadcast(a)
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


class Segments:
    """VTEPs with a segment behind br0, and with VNI 5 for guests that no loop concerns."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self.vteps: list[Pyvtep] = []

    def add(self, host: Host, number: int, remotes: list[int], *more: str, vni: int = 1) -> Pyvtep:
        """Start a VTEP. That of host N has the addresses 192.0.2.N, 10.0.0.N and 10.1.0.N."""
        to = [word for each in remotes for word in ("--remote", f"192.0.2.{each}")]
        vtep = self._start(
            host, "--vni", str(vni), *to, "--tap", "vx0", "--bridge", "br0", *(more or BLOCK)
        )
        own = f"10.1.0.{number}/24"
        vtep.run("vni", "add", "5", *to, "--tap", "vx5", "--address", own)
        self.vteps.append(vtep)
        return vtep

    def total(self, name: str) -> int:
        """Return the sum of a counter of all VTEPs, without VNI 5."""
        found = 0
        for vtep in self.vteps:
            with vtep.client() as client:
                segments = client.stats()["segments"]
            found += sum(each["counters"][name] for each in segments if each["vni"] != 5)
        return found

    def is_quiet(self) -> bool:
        """Return True if only a few frames are flooded while a storm would flood hundreds."""
        before = self.total("flooded")
        with self.vteps[0].client() as client:
            for _ in range(100):
                client.stats()
        return self.total("flooded") - before < 20

    @property
    def log(self) -> str:
        """The logs of all VTEPs."""
        return "".join(each.log for each in self.vteps)

    def blocked(self) -> list[tuple[int, str]]:
        """Return the VNI and the remote of each block."""
        found = []
        for vtep in self.vteps:
            with vtep.client() as client:
                found += [(each["vni"], each["remote"]) for each in client.loop.show()]
        return found

    def held(self) -> list[str]:
        """Return the MACs that are held anywhere."""
        found = []
        for vtep in self.vteps:
            with vtep.client() as client:
                found += [each["mac"] for each in client.fdb.show(held=True)]
        return found

    def doctor_finds_loop(self, hosts: list[Host]) -> bool:
        """Return True if the doctor of a host, each with one VTEP, reports the loop."""
        # The block may be at either end, and may end before the doctor asks: then cause another.
        if not self.blocked():
            broadcast(hosts[0])
        return any(
            "WARNING: a loop leads through 192.0.2."
            in pyvtep(host, "doctor", "--socket", str(vtep.control)).stdout
            for host, vtep in zip(hosts, self.vteps, strict=True)
        )

    def expect_found(self, *loops: str) -> None:
        """Wait until a loop is found and its storm has ended; check what the log says then."""
        wait_until(lambda: self.total("loops_found"), "the loop to be found")
        wait_until(self.is_quiet, "the storm to end", 4 * DEADLINE)
        assert any(
            f"loop through {each}: the bridge of the TAP reaches" in self.log for each in loops
        )
        assert "remove the other path (bridge link shows the ports), or run STP" in self.log
        assert "vni 5: loop" not in self.log

    def expect_recovery(self, hosts: list[Host], own: str = "10.0.0.") -> None:
        """Wait until all hosts reach each other, and nothing is blocked any more.

        MACs may still be held: those of hosts that have sent nothing since.
        """
        for host in hosts:
            host.run("ip", "neigh", "flush", "dev", "br0")  # A ping begins with a broadcast.
        for host in hosts:
            for number in range(1, len(hosts) + 1):
                wait_until(
                    partial(is_reachable, host, f"{own}{number}"), "the segment", 4 * DEADLINE
                )
        wait_until(lambda: not self.blocked(), "the end of all blocks", 4 * DEADLINE)
        before = self.total("loops_found")
        for host in hosts:
            ping(host, f"{own}{len(hosts) if host is hosts[0] else 1}", count=20)
        assert self.total("loops_found") == before


BLOCK = ("--loop-block", "2")


@pytest.fixture
def segments(start: Start) -> Segments:
    return Segments(start)


def join_all(lab: Lab, hosts: list[Host], *bridge: str) -> None:
    """Connect hosts to one switch, where host N has 192.0.2.N; make a br0 with 10.0.0.N on each."""
    switch = lab.host("switch")
    switch.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    switch.run("ip", "link", "set", "br0", "up")
    for number, host in enumerate(hosts, 1):
        lab.wire(switch, host)
        switch.run("ip", "link", "set", "eth0", "name", f"port{number}", "master", "br0")
        address(host, "eth0", f"192.0.2.{number}/24")
        make_bridge(host, f"10.0.0.{number}/24", *bridge)


@pytest.mark.parametrize("second", ["vni", "process", "kernel"])
def test_hosts_that_are_bridged_by_two_tunnels(
    lab: Lab, segments: Segments, start: Start, second: str
) -> None:
    """Only one of them is blocked, at one end or both: the other one still carries broadcasts."""
    hosts = [lab.host(name) for name in "ab"]
    join_all(lab, hosts)
    block = ("--loop-block", "10")
    for number, host in enumerate(hosts, 1):
        segments.add(host, number, [3 - number], *block)
    a = hosts[0]
    ping(a, "10.0.0.2")
    ping(a, "10.1.0.2")
    for number, host in enumerate(hosts, 1):
        more = ("--remote", f"192.0.2.{3 - number}", "--tap", "vx9", "--bridge", "br0", *block)
        if second == "vni":
            segments.vteps[number - 1].run("vni", "add", "9", *more)
        elif second == "process":
            segments.vteps.append(start(host, "--vni", "9", "--dstport", "4790", *more))
        else:
            host.run(
                *("ip", "link", "add", "vx9", "type", "vxlan", "id", "9", "dstport", "4790"),
                *("local", f"192.0.2.{number}", "remote", f"192.0.2.{3 - number}", "dev", "eth0"),
            )
            host.run("ip", "link", "set", "vx9", "up")
            join_bridge(host, "vx9")
    broadcast(a)
    wait_until(lambda: segments.total("loops_found"), "the loop to be found")
    ping(a, "10.1.0.2", count=20)
    segments.expect_found("192.0.2.1", "192.0.2.2")
    # The other tunnel serves instead, so hosts find each other while there is a block.
    for host in hosts:
        host.run("ip", "neigh", "flush", "dev", "br0")

    def finds_the_other() -> bool:
        return is_reachable(a, "10.0.0.2") and bool(segments.blocked())

    wait_until(finds_the_other, "a ping during a block")
    if second == "kernel":  # It blocks nothing itself.
        found = partial(segments.doctor_finds_loop, hosts)
        wait_until(found, "the doctor to report the loop", 4 * DEADLINE)
    if second == "vni":  # They take turns.
        assert len(set(re.findall(r"vni (\d): loop through", segments.log))) == 1
    # One end suffices. A pyvtep would make its TAP a port of --bridge again.
    if second == "vni":
        segments.vteps[0].run("vni", "del", "9")
    elif second == "process":
        assert segments.vteps.pop(2).stop() == 0
    else:
        a.run("ip", "link", "del", "vx9")
    segments.expect_recovery(hosts)


def test_ring_of_three_hosts(lab: Lab, segments: Segments) -> None:
    """The tunnels a-b and b-c, joined by the bridge of b, and a cable c-a."""
    hosts = a, b, c = [lab.host(name) for name in "abc"]
    join_all(lab, hosts)
    segments.add(a, 1, [2])
    segments.add(b, 2, [1])
    segments.add(c, 3, [2], vni=2)
    segments.vteps[1].run(
        *("vni", "add", "2", "--remote", "192.0.2.3", "--tap", "vx2", "--bridge", "br0", *BLOCK)
    )
    ping(a, "10.0.0.3")
    lab.wire(c, a, "eth1")
    for host in (a, c):
        join_bridge(host, "eth1")
    broadcast(b)
    segments.expect_found("192.0.2.1", "192.0.2.2", "192.0.2.3")
    a.run("ip", "link", "del", "eth1")
    segments.expect_recovery(hosts)


def test_cable_between_two_of_three_hosts(lab: Lab, segments: Segments) -> None:
    """All three are remotes of each other, and guests of the third one are not cut off."""
    hosts = a, b, c = [lab.host(name) for name in "abc"]
    join_all(lab, hosts)
    for number, host in enumerate(hosts, 1):
        segments.add(host, number, [each for each in (1, 2, 3) if each != number])
    ping(a, "10.0.0.2")
    ping(a, "10.0.0.3")
    lab.wire(b, c, "eth1")
    for host in (b, c):
        join_bridge(host, "eth1")
    broadcast(a)
    wait_until(lambda: segments.total("loops_found"), "the loop to be found")
    ping(a, "10.1.0.3", count=20)
    segments.expect_found("192.0.2.2", "192.0.2.3")
    b.run("ip", "link", "del", "eth1")
    segments.expect_recovery(hosts)


def test_loop_that_appears_during_a_storm(lab: Lab, segments: Segments) -> None:
    hosts = a, b = [lab.host(name) for name in "ab"]
    join_all(lab, hosts)
    for number, host in enumerate(hosts, 1):
        segments.add(host, number, [3 - number])
    ping(a, "10.0.0.2")
    with storm(a, "br0"):
        wait_until(lambda: segments.vteps[0].client_counter("drop_storm_broadcast_tx"), "the limit")
        lab.wire(a, b, "eth1")
        for host in hosts:
            join_bridge(host, "eth1")
        wait_until(lambda: segments.total("loops_found"), "the loop to be found", 4 * DEADLINE)
        ping(a, "10.1.0.2", count=10)
    segments.expect_found("192.0.2.1", "192.0.2.2")
    a.run("ip", "link", "del", "eth1")
    segments.expect_recovery(hosts)


def test_spanning_tree_breaks_a_loop_before_there_is_a_storm(lab: Lab, segments: Segments) -> None:
    """STP passes the tunnel; the bridges block one path, and use it once the other one is gone."""
    hosts = a, b = [lab.host(name) for name in "ab"]
    # The shortest times that the kernel accepts, in hundredths of a second.
    join_all(
        lab,
        hosts,
        *["stp_state", "1", "forward_delay", "200", "hello_time", "100", "max_age", "600"],
    )
    for number, host in enumerate(hosts, 1):
        segments.add(host, number, [3 - number])
    lab.wire(a, b, "eth1")
    for host in hosts:
        join_bridge(host, "eth1")

    def states() -> list[str]:
        """Return the states of the four ports of the loop."""
        said = [host.run("bridge", "link", "show") for host in hosts]
        return re.findall(r" state (\w+)", "".join(said))

    def is_settled() -> bool:
        return sorted(states()) == ["blocking", "forwarding", "forwarding", "forwarding"]

    wait_until(is_settled, "one port to be blocked")
    ping(a, "10.0.0.2", count=10)
    broadcast(a, 20)
    a.run("ip", "link", "set", "eth1", "down")
    wait_until(partial(is_reachable, a, "10.0.0.2"), "the tunnel to be used", 4 * DEADLINE)
    assert segments.total("loops_found") == 0
    assert segments.held() == []
    assert "loop" not in segments.log


def test_guest_that_migrates_again_and_again_is_found_each_time(
    lab: Lab, segments: Segments
) -> None:
    """A container is re-created with its MAC and its address on another host, eight times."""
    hosts = a, b, c = [lab.host(name) for name in "abc"]
    join_all(lab, hosts)
    for number, host in enumerate(hosts, 1):
        segments.add(host, number, [each for each in (1, 2, 3) if each != number])
    first = segments.vteps[0]
    for turn in range(9):
        here = (b, c)[turn % 2]
        with lab.host("guest") as guest:
            here.run(
                *("ip", "link", "add", "veth1", "type", "veth", "peer", "name", "eth0"),
                *("address", "02:00:00:00:00:77", "netns", guest.pid),
            )
            here.run("ip", "link", "set", "veth1", "up", "master", "br0")
            guest.run("ip", "link", "set", "eth0", "up")
            address(guest, "eth0", "10.0.0.77/24")
            wait_until(partial(is_reachable, guest, "10.0.0.1"), "the guest to reach a")
            ping(a, "10.0.0.77", count=1)
        here.run("ip", "link", "del", "veth1", check=False)
        if turn < 6:  # The first five moves are free.
            assert first.client_counter("drop_inner_source_held") == 0
            assert segments.held() == []
    assert first.client_counter("fdb_moved") >= 8
    assert segments.total("loops_found") == 0
