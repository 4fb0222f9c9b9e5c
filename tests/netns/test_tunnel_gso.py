"""Tunnel GSO on real devices: which remotes it is used for, and what arrives there."""

import re
import socket
from pathlib import Path

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    capture,
    kernel_vtep,
    ping,
    segment,
    start_both,
    transfer,
    tshark,
    wait_until,
)
from vtep.testing.lab import Host, Lab

TUNNEL_OFFLOADS = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")

PREFIXES = {"over-ipv4": "192.0.2.", "over-ipv6": "2001:db8::"}
over = pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)


def until_tunnel_gso(a: Host, b: Host, vtep: Pyvtep, to: str = "10.0.0.2") -> None:
    """Send until superframes are sent with tunnel GSO."""

    def used() -> bool:
        before = vtep.counter("tx_tunnel_gso")
        transfer(a, b, to, 2 << 20)
        return vtep.counter("tx_tunnel_gso") > before

    wait_until(used, "tunnel GSO to be used")


def without_tunnel_offloads(host: Host, device: str) -> None:
    off = [word for name in TUNNEL_OFFLOADS for word in (name, "off")]
    host.run("ethtool", "-K", device, *off)


@over
@pytest.mark.parametrize("checksum", [True, False], ids=["checksums", "no-checksums"])
def test_between_pyvteps(pair: Pair, start: Start, prefix: str, checksum: bool) -> None:
    a, b = pair
    none = "--no-udpcsum" if prefix == "192.0.2." else "--udp6zerocsumtx"
    vteps = start_both(pair, start, *([] if checksum else [none]), prefix=prefix)
    until_tunnel_gso(a, b, vteps[0])
    until_tunnel_gso(b, a, vteps[1], "fd00::1")
    before = [vtep.counters() for vtep in vteps]
    transfer(a, b, "fd00::2", 100 << 20)
    transfer(b, a, "10.0.0.1", 100 << 20)
    after = [vtep.counters() for vtep in vteps]
    for one, two in zip(before, after, strict=True):
        assert two["tx_tunnel_gso"] - one["tx_tunnel_gso"] > 1000
        assert two["super_datagrams"] - one["super_datagrams"] > 1000
        # Each superframe counts as its segments.
        assert 60_000 < two["tx_frames"] - one["tx_frames"] < 130_000
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]


@over
def test_a_kernel_driver(pair: Pair, start: Start, prefix: str) -> None:
    """It does not reply to echo requests, but hosts behind it acknowledge superframes."""
    a, b = pair
    kernel_vtep(b, 1, f"{prefix}2", f"{prefix}1", "10.0.0.2/24", "fd00::2/64")
    vtep = start(a, *segment(1, f"{prefix}2", "10.0.0.1/24", "fd00::1/64"))
    ping(a, "10.0.0.2")
    until_tunnel_gso(a, b, vtep)
    until_tunnel_gso(a, b, vtep, "fd00::2")
    before = vtep.counters()
    for _ in range(2):
        transfer(a, b, "10.0.0.2", 100 << 20)
        transfer(a, b, "fd00::2", 100 << 20)
        transfer(b, a, "10.0.0.1", 20 << 20)
    after = vtep.counters()
    assert after["tx_tunnel_gso"] - before["tx_tunnel_gso"] > 3000
    assert 250_000 < after["tx_frames"] - before["tx_frames"] < 400_000
    assert vtep.unexpected_drops() == 0


def _lossy(a: Host, b: Host, vtep: Pyvtep) -> bool:
    """Send more. Returns: whether several superframes were lost, by the log."""
    transfer(a, b, "10.0.0.2", 2 << 20)
    return "superframes are lost" in vtep.log


@pytest.mark.parametrize("peer", ["kernel", "pyvtep"])
def test_a_remote_that_begins_to_drop_superframes(pair: Pair, start: Start, peer: str) -> None:
    """Its host drops superframes, but still passes echo requests: the transfer goes on."""
    a, b = pair
    if peer == "kernel":
        kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    else:
        start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    ping(a, "10.0.0.2")
    until_tunnel_gso(a, b, vtep)
    rules = (
        "table inet t { chain c { type filter hook input priority 0 ; "
        # Behind 8 octets of UDP, 8 of VXLAN and 12 of MACs: of IPv4, and of what length.
        "udp dport 4789 @th,224,16 0x0800 @th,256,16 > 2000 drop ; } ; }"
    )
    applied: list[int] = []

    def in_the_middle(received: int) -> None:
        if received > 50 << 20 and not applied:
            b.run("nft", rules)
            applied.append(received)

    # Each timeout of TCP is twice as long as the last, until superframes are known to be lost.
    transfer(a, b, "10.0.0.2", 100 << 20, in_the_middle, stall_timeout=60)
    assert applied
    count = vtep.counter("tx_tunnel_gso")
    transfer(a, b, "10.0.0.2", 50 << 20, stall_timeout=60)
    assert vtep.counter("tx_tunnel_gso") <= count + 3
    wait_until(lambda: _lossy(a, b, vtep), "the log line")
    assert vtep.log.count("offload tnl suspended to 192.0.2.2: superframes are lost") == 1


def test_a_network_behind_the_remote_that_is_narrower(lab: Lab, pair: Pair, start: Start) -> None:
    """The sender learns the path MTU; its smaller segments must not arrive as larger ones."""
    a, b = pair
    router, c = lab.host("router"), lab.host("c")
    lab.wire(b, router, "eth1", 1000)
    lab.wire(router, c, "eth2")
    address(b, "eth1", "198.51.100.1/24")
    address(router, "eth1", "198.51.100.2/24")
    address(router, "eth2", "203.0.113.1/24")
    address(c, "eth2", "203.0.113.2/24")
    for host in (b, router):
        host.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    vteps = start_both(pair, start)
    a.run("ip", "route", "add", "203.0.113.0/24", "via", "10.0.0.2")
    b.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.2")
    router.run("ip", "route", "add", "10.0.0.0/24", "via", "198.51.100.1")
    c.run("ip", "route", "add", "default", "via", "203.0.113.1")
    until_tunnel_gso(a, b, vteps[0])
    transfer(a, c, "203.0.113.2", 8 << 20)
    transfer(c, a, "10.0.0.1", 8 << 20)
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]


@pytest.fixture
def routed(lab: Lab) -> tuple[Host, Host, Host]:
    """Two hosts with a router between them, whose cables take finished packets only."""
    a, router, b = lab.host("a"), lab.host("router"), lab.host("b")
    lab.wire(a, router, "eth0")
    lab.wire(router, b, "eth1")
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    for host, device, number, far in ((a, "eth0", 1, 2), (b, "eth1", 2, 1)):
        address(host, device, f"192.0.{number}.2/24", f"2001:db8:{number}::2/64")
        address(router, device, f"192.0.{number}.1/24", f"2001:db8:{number}::1/64")
        host.run("ip", "route", "add", f"192.0.{far}.0/24", "via", f"192.0.{number}.1")
        host.run("ip", "route", "add", f"2001:db8:{far}::/64", "via", f"2001:db8:{number}::1")
        without_tunnel_offloads(router, device)
        router.run("ethtool", "-K", device, "tx", "off")
    return a, router, b


@pytest.mark.parametrize(
    "remotes",
    [("192.0.1.2", "192.0.2.2"), ("2001:db8:1::2", "2001:db8:2::2")],
    ids=PREFIXES,
)
def test_segmented_by_a_router(
    routed: tuple[Host, Host, Host], start: Start, tmp_path: Path, remotes: tuple[str, str]
) -> None:
    """As by a NIC. tshark checks inner and outer checksums of all datagrams that arrive."""
    a, _, b = routed
    second = start(b, *segment(1, remotes[0], "10.0.0.2/24", "fd00::2/64"))
    first = start(a, *segment(1, remotes[1], "10.0.0.1/24", "fd00::1/64"))
    ping(a, "10.0.0.2")
    ping(b, "fd00::1")
    until_tunnel_gso(a, b, first)
    second_before, count = second.counters(), first.counter("tx_tunnel_gso")
    b.run("ethtool", "-K", "eth1", "gro", "off")
    with capture(b, tmp_path, "eth1") as pcap:
        transfer(a, b, "10.0.0.2", 1 << 20)
        transfer(a, b, "fd00::2", 1 << 20)
    assert first.counter("tx_tunnel_gso") > count + 20
    assert second.counter("super_datagrams") == second_before["super_datagrams"]
    towards = f"{'ipv6' if ':' in remotes[0] else 'ip'}.dst == {remotes[1]} && udp.dstport == 4789"
    frames = tshark(pcap, "-Y", f"{towards} && tcp.len > 0", "-T", "fields", "-e", "tcp.len")
    assert len(frames) > 500, "tcpdump does not get all"
    assert max(map(int, frames)) <= 1400
    bad = "ip.checksum.status == Bad || udp.checksum.status == Bad || tcp.checksum.status == Bad"
    assert tshark(pcap, "-Y", f"{towards} && ({bad})") == []
    assert [first.unexpected_drops(), second.unexpected_drops()] == [0, 0]


def test_a_remote_that_confirms_nothing_gets_segments(pair: Pair, start: Start) -> None:
    """A VTEP that is neither a pyvtep nor a kernel driver: a minimal one that drops superframes."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    with b.inside():
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        other.bind(("192.0.2.2", 4789))
    other.settimeout(10)
    peer = "02:00:00:00:00:02"
    header = bytes.fromhex("0800000000000100")
    to_all = b"\xff" * 6 + bytes.fromhex(peer.replace(":", "")) + b"\x88\xb5"
    with other:
        other.sendto(header + to_all.ljust(60, b"\0"), ("192.0.2.1", 4789))
        wait_until(lambda: peer in vtep.fdb(), "the MAC to be learned")
        a.run("ip", "neigh", "replace", "10.0.0.2", "lladdr", peer, "dev", "vx0")
        connection = a.start(
            *("python3", "-c"),
            "import socket; s = socket.socket(); s.settimeout(30); "
            "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b'reno'); "
            "s.connect(('10.0.0.2', 9)); "
            "s.sendall(bytes(50_000_000)); s.recv(1)",
        )
        try:
            answer_as_tcp(other, header)
        finally:
            connection.kill()
            connection.wait()
    counters = vtep.counters()
    assert counters["tx_superframes"] > 0
    assert counters["tx_tunnel_gso"] in (1, 2, 3)


def answer_as_tcp(other: socket.socket, header: bytes) -> None:
    """Serve a TCP connection until an echo request and many segments have arrived.

    All datagrams must fit the MTU, but for one to three superframes, which are dropped.
    """
    echo_requests = tried = expected = received = 0
    early: dict[int, int] = {}
    while received < 500_000 or not echo_requests:
        datagram, sender = other.recvfrom(1 << 17)
        if datagram[0] == 0:
            echo_requests += 1
            continue
        frame = datagram[8:]
        if frame[12:14] != b"\x08\0" or frame[23] != 6:
            continue
        if len(datagram) > 1472:
            tried, received = tried + 1, 0
            continue
        flags, length = frame[47], int.from_bytes(frame[16:18]) - 20 - (frame[46] >> 4) * 4
        sequence = int.from_bytes(frame[38:42])
        if flags & 2:
            expected = sequence + 1 & 0xFFFFFFFF
        elif length:
            early[sequence] = max(length, early.get(sequence, 0))
            received += length if tried else 0
        while expected in early:
            expected = expected + early.pop(expected) & 0xFFFFFFFF
        if flags & 2 or length:
            reply = tcp_reply(frame, expected, syn=bool(flags & 2))
            other.sendto(header + reply, (sender[0], 4789))
    assert tried in (1, 2, 3)


MSS = 1410


def tcp_reply(frame: bytes, acknowledged: int, *, syn: bool) -> bytes:
    ether = frame[6:12] + frame[:6] + b"\x08\0"
    ip = (
        bytes((0x45, 0, 0, 44 if syn else 40, 0, 0, 0x40, 0, 64, 6, 0, 0))
        + frame[30:34]
        + frame[26:30]
    )
    sequence = (0 if syn else 1).to_bytes(4, "big")
    flags = bytes((0x60, 0x12)) if syn else bytes((0x50, 0x10))
    options = bytes((2, 4)) + MSS.to_bytes(2, "big") if syn else b""
    ports = frame[36:38] + frame[34:36]
    tcp = ports + sequence + acknowledged.to_bytes(4, "big") + flags + b"\xff\xff\0\0\0\0"
    tcp += options
    pseudo = ip[12:20] + bytes((0, 6, 0, len(tcp)))
    ip = ip[:10] + internet_checksum(ip) + ip[12:]
    return ether + ip + tcp[:16] + internet_checksum(pseudo + tcp) + tcp[18:]


def internet_checksum(data: bytes) -> bytes:
    total = int.from_bytes(data, "big") % 0xFFFF
    return (0xFFFF - total).to_bytes(2, "big")


def tunnel_gso_device(host: Host) -> str:
    found = re.search(r": (pyvtep\d+): ", host.run("ip", "-o", "link"))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("what", [("del",), ("set", "down")], ids="-".join)
def test_a_tunnel_gso_device_that_is_removed_or_down(
    pair: Pair, start: Start, what: tuple[str, ...]
) -> None:
    a, b = pair
    vteps = start_both(pair, start)
    until_tunnel_gso(a, b, vteps[0])
    verb, *state = what
    a.run("ip", "link", verb, tunnel_gso_device(a), *state)
    transfer(a, b, "10.0.0.2", 50 << 20)
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]
    if verb == "del":
        for offload in ("none", "auto"):
            assert vteps[0].run("set", "--offload", offload) == ""
        until_tunnel_gso(a, b, vteps[0])


def test_an_egress_device_that_loses_the_feature(pair: Pair, start: Start) -> None:
    a, b = pair
    vteps = start_both(pair, start)
    until_tunnel_gso(a, b, vteps[0])
    without_tunnel_offloads(a, "eth0")

    def segmented() -> bool:
        before = vteps[0].counter("tx_tunnel_gso")
        transfer(a, b, "10.0.0.2", 2 << 20)
        return vteps[0].counter("tx_tunnel_gso") == before

    wait_until(segmented, "superframes to be segmented by pyvtep")
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]


def test_a_route_that_moves_to_another_device(lab: Lab, pair: Pair, start: Start) -> None:
    a, b = pair
    lab.wire(a, b, "eth1")
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth1", f"198.51.100.{number}/24")
        address(host, "lo", f"203.0.113.{number}/32")
    b.run("ip", "route", "add", "203.0.113.1", "via", "192.0.2.1", "src", "203.0.113.2")
    a.run("ip", "route", "add", "203.0.113.2", "via", "192.0.2.2", "src", "203.0.113.1")
    vteps = start_both(pair, start, prefix="203.0.113.")
    until_tunnel_gso(a, b, vteps[0])
    a.run("ip", "route", "replace", "203.0.113.2", "via", "198.51.100.2", "src", "203.0.113.1")
    # On the old route nothing is accepted any more.
    b.run("sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1")
    b.run("ip", "route", "replace", "203.0.113.1", "via", "198.51.100.1", "src", "203.0.113.2")
    b.run("ip", "addr", "del", "192.0.2.2/24", "dev", "eth0")
    a.run("ip", "neigh", "flush", "dev", "eth0")
    transfer(a, b, "10.0.0.2", 20 << 20)
    until_tunnel_gso(a, b, vteps[0])
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]


@pytest.mark.parametrize("before", [True, False], ids=["before", "under way"])
def test_not_where_there_is_ipsec(pair: Pair, start: Start, *, before: bool) -> None:
    """IPsec policies do not apply to redirected packets, which would leave in clear text."""
    a, b = pair

    def policy() -> None:
        ends = ("src", "192.0.2.1", "dst", "192.0.2.2")
        a.run("ip", "xfrm", "policy", "add", *ends, "dir", "out", "action", "allow")

    if before:
        policy()
    vteps = start_both(pair, start)
    if not before:
        until_tunnel_gso(a, b, vteps[0])
        policy()
    count = vteps[0].counter("tx_tunnel_gso")
    transfer(a, b, "10.0.0.2", 50 << 20)
    assert vteps[0].counter("tx_tunnel_gso") <= count + 50, "sent before the policy was noticed"
    count = vteps[0].counter("tx_tunnel_gso")
    transfer(a, b, "10.0.0.2", 50 << 20)
    assert vteps[0].counter("tx_tunnel_gso") == count
    a.run("ip", "xfrm", "policy", "flush")
    until_tunnel_gso(a, b, vteps[0])


def test_superframes_whose_segments_exceed_the_tunnel_mtu(pair: Pair, start: Start) -> None:
    """Guests have a larger MTU: pyvtep segments their superframes to the MTU of the tunnel."""
    a, b = pair
    vteps = start_both(pair, start, "--mss-clamp", "off")
    until_tunnel_gso(a, b, vteps[0])
    for host in pair:
        host.run("ip", "link", "set", "vx0", "mtu", "9000")
    before = vteps[0].counters()
    transfer(a, b, "10.0.0.2", 20 << 20)
    after = vteps[0].counters()
    assert after["tx_resegmented"] > before["tx_resegmented"]
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]


def test_not_where_it_is_disabled(pair: Pair, start: Start) -> None:
    a, b = pair
    vteps = start_both(pair, start, "--offload", "tso,uso,gso,gro")
    assert "pyvtep0" not in a.run("ip", "-o", "link")
    transfer(a, b, "10.0.0.2", 20 << 20)
    assert vteps[0].counter("tx_tunnel_gso") == 0
    assert vteps[0].run("set", "--offload", "auto") == ""
    until_tunnel_gso(a, b, vteps[0])
    assert vteps[0].run("set", "--offload", "tso,uso,gso,gro") == ""
    before = vteps[0].counter("tx_tunnel_gso")
    transfer(a, b, "10.0.0.2", 20 << 20)
    assert vteps[0].counter("tx_tunnel_gso") == before
    assert vteps[0].run("set", "--offload", "none") == ""
    assert vteps[0].run("set", "--offload", "auto") == ""
    assert "is not there" not in vteps[0].log


def test_a_missing_offload_is_logged(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start(a, *segment(1, "192.0.2.2"), "--offload", "tnl,gro")
    assert "offload tnl unavailable: it needs tso\n" in vtep.log


def test_nothing_is_left_behind(pair: Pair, start: Start) -> None:
    a, b = pair
    vteps = start_both(pair, start)
    until_tunnel_gso(a, b, vteps[0])
    assert vteps[0].stop() == 0
    assert "pyvtep" not in a.run("ip", "-o", "link")
