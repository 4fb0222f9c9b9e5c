"""Faults of the underlay and of remotes: losses are counted exactly, and forwarding recovers."""

import signal
from contextlib import closing

from tests.netns.faults import Numbered, Relay, udp_drops
from tests.netns.hosts import Pair, Start, Tunnel, address, ping, segment, transfer, wait_until
from vtep.testing.lab import Lab

COUNT = 500


def test_underlay_goes_down_and_up(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    ping(a, "10.0.0.2")
    with Numbered(tunnel[0], b) as frames:
        frames.send(COUNT)
        frames.expect(COUNT)
        before = tunnel[0].client_counter("drop_underlay_unreachable")
        a.run("ip", "link", "set", "eth0", "down")
        frames.send(COUNT)
        a.run("ip", "link", "set", "eth0", "up")
        ping(a, "10.0.0.2")
        frames.send(COUNT)
        frames.expect(2 * COUNT)
        lost = tunnel[0].client_counter("drop_underlay_unreachable") - before
        # Those of the pings that were sent too early are among them.
        assert lost >= COUNT
        assert frames.received() == [*range(COUNT), *range(2 * COUNT, 3 * COUNT)]


def test_underlay_address_changes(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"), "--remote", "192.0.2.9")
    ping(a, "10.0.0.2")
    with Numbered(vtep, b) as frames:
        frames.send(COUNT)
        a.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
        frames.send(COUNT)
        lost = vtep.client_counter("drop_underlay_unreachable")
        assert lost >= COUNT
        address(a, "eth0", "192.0.2.9/24")
        ping(a, "10.0.0.2")
        frames.send(COUNT)
        frames.expect(2 * COUNT)
        assert frames.received() == [*range(COUNT), *range(2 * COUNT, 3 * COUNT)]


def test_refused_storm_while_the_remote_restarts(pair: Pair, start: Start) -> None:
    """ECONNREFUSED reports an earlier datagram: the one that it is returned for is sent as well."""
    a, b = pair
    peer = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    # A batch that is refused would be counted as one datagram by the kernel.
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--offload", "none")
    ping(a, "10.0.0.2")
    before, refused = udp_drops(b, "NoPorts"), vtep.client_counter("drop_underlay_refused")
    with Numbered(vtep, b) as frames:
        peer.stop(signal.SIGKILL)
        frames.send(4 * COUNT)
        wait_until(lambda: udp_drops(b, "NoPorts") - before >= 4 * COUNT, "all to be refused")
    assert vtep.client_counter("drop_underlay_refused") > refused
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    # The new TAP has another MAC, which this host would notice after half a minute.
    a.run("ip", "neigh", "flush", "dev", "vx0")
    ping(a, "10.0.0.2")
    with Numbered(vtep, b) as frames:
        frames.send(COUNT)
        frames.expect(COUNT)
        assert frames.received() == [*range(COUNT)]


def test_unreachable_storm_of_one_remote_costs_others_nothing(pair: Pair, start: Start) -> None:
    """EHOSTUNREACH: the address of one remote does not resolve, and it has no route then."""
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--remote", "192.0.2.99")
    ping(a, "10.0.0.2")
    with Numbered(vtep, b, flood=True) as frames:
        frames.send(COUNT)
        frames.expect(COUNT)
        a.run("ip", "route", "add", "unreachable", "192.0.2.99")

        def drops() -> bool:
            frames.send(1)
            return vtep.client_counter("drop_underlay_unreachable") > 0

        wait_until(drops, "a drop")
        before, number = vtep.client_counter("drop_underlay_unreachable"), frames.sent
        frames.send(COUNT)
        frames.expect(number + COUNT)
        assert vtep.client_counter("drop_underlay_unreachable") - before >= COUNT
        assert frames.received() == [*range(frames.sent)]


def test_full_queue_of_the_underlay(pair: Pair, start: Start) -> None:
    """ENOBUFS: each frame arrives, or is counted as dropped."""
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    # For a batch, the kernel reports no drop: without GSO, each datagram is sent alone.
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--offload", "none")
    ping(a, "10.0.0.2")
    shape = "rate 1mbit burst 3000 limit 6000"
    a.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *shape.split())
    with Numbered(vtep, b, octets=900) as frames:
        frames.send(COUNT)
        a.run("tc", "qdisc", "del", "dev", "eth0", "root")
        lost = vtep.client_counter("drop_underlay_full")
        assert lost > 0
        ping(a, "10.0.0.2")
        first = frames.sent
        frames.send(COUNT)
        wait_until(lambda: frames.sent - 1 in frames.received(), "the last frame")
        arrived = frames.received()
        assert arrived == sorted(set(arrived))
        assert [number for number in arrived if number >= first] == [*range(first, frames.sent)]
        # The qdisc was deleted with at most 6,000 octets in it: 6 frames.
        assert 0 <= first - lost - sum(number < first for number in arrived) <= 6


def test_stopped_receiver(pair: Pair, start: Start) -> None:
    """Its socket overflows; each datagram that the kernel had no room for is counted by it."""
    a, b = pair
    peer = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    # The kernel would count a batch as one.
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--offload", "none")
    ping(a, "10.0.0.2")
    before = udp_drops(b, "RcvbufErrors")
    with Numbered(vtep, b, octets=1300) as frames:
        peer.process.send_signal(signal.SIGSTOP)
        while udp_drops(b, "RcvbufErrors") - before < COUNT:
            frames.send(COUNT)
        lost = udp_drops(b, "RcvbufErrors") - before
        peer.process.send_signal(signal.SIGCONT)
        frames.expect(frames.sent - lost)
        ping(a, "10.0.0.2")
        arrived = frames.received()
        assert arrived == sorted(set(arrived))
        # Some frames of the hosts, such as router solicitations, may be among the lost ones.
        assert 0 <= len(arrived) - (frames.sent - lost) <= 20
        assert peer.client_counter("drop_rx_queue_full") > 0


def test_lossy_underlay_that_reorders_and_duplicates(lab: Lab, start: Start) -> None:
    """Frames are lost, reordered and doubled just as the path does it to datagrams."""
    a, r, b = lab.host("a"), lab.host("r"), lab.host("b")
    lab.wire(a, r)
    r.run("ip", "link", "set", "eth0", "name", "west")
    lab.wire(r, b)
    for host, device, own in (
        (a, "eth0", "192.0.2.1/24"),
        (r, "west", "192.0.2.254/24"),
        (r, "eth0", "198.51.100.254/24"),
        (b, "eth0", "198.51.100.2/24"),
    ):
        address(host, device, own)
    sides = {"192.0.2.254": "192.0.2.1", "198.51.100.254": "198.51.100.2"}
    with closing(Relay(r, sides, seed=13)) as relay:
        one = start(a, *segment(1, "192.0.2.254", "10.0.0.1/24"))
        two = start(b, *segment(1, "198.51.100.254", "10.0.0.2/24"))
        ping(a, "10.0.0.2")
        with Numbered(one, b) as frames:
            frames.send(8 * COUNT)
            # The last one may be delayed until another datagram follows.
            ping(a, "10.0.0.2")
            counts = relay.counts
            assert udp_drops(r, "RcvbufErrors") == 0
            assert min(counts["lost"], counts["duplicated"], counts["delayed"]) > 0
            frames.expect(frames.sent - counts["lost"] + counts["duplicated"])
            arrived = frames.received()
            assert len(set(arrived)) == frames.sent - counts["lost"]
            assert len(arrived) - len(set(arrived)) == counts["duplicated"]
            assert arrived != sorted(arrived)
        transfer(a, b, "10.0.0.2", 1 << 20)
        transfer(b, a, "10.0.0.1", 1 << 20)
        assert two.unexpected_drops() == 0
