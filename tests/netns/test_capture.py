"""Datagrams on the underlay, captured by tcpdump and checked by tshark."""

from pathlib import Path

import pytest

from tests.netns.hosts import (
    Pair,
    Start,
    capture,
    ping,
    segment,
    transfer,
    tshark,
    udp_socket,
)


@pytest.mark.parametrize("prefix", ["192.0.2.", "2001:db8::"], ids=["over-ipv4", "over-ipv6"])
def test_every_datagram_is_valid(pair: Pair, start: Start, tmp_path: Path, prefix: str) -> None:
    a, b = pair
    for host in pair:
        # A veth defers outer checksums to a NIC that does not exist.
        host.run("ethtool", "-K", "eth0", "tx", "off")
    frames_only = ("--liveness-interval", "0")
    start(b, *segment(0xABCDEF, f"{prefix}1", "10.0.0.2/24", "fd00::2/64"), *frames_only)
    start(a, *segment(0xABCDEF, f"{prefix}2", "10.0.0.1/24", "fd00::1/64"), *frames_only)
    with capture(a, tmp_path) as pcap:
        for destination, origin in (("10.0.0.2", "10.0.0.1"), ("fd00::2", "fd00::1")):
            ping(a, destination)
            ping(b, origin)
            ping(a, destination, "-s", "9000")
            transfer(a, b, destination, 1 << 20)
            transfer(b, a, origin, 1 << 20)
        with udp_socket(b, "10.0.0.2", 7000) as receiver:
            for _ in range(40):
                with udp_socket(a, "10.0.0.1") as sender:
                    sender.sendto(b"x", ("10.0.0.2", 7000))
                    assert receiver.recv(16) == b"x"
    ours = "udp.dstport == 4789"
    total = len(tshark(pcap, "-Y", ours))
    assert total > 2000
    assert len(tshark(pcap, "-Y", "vxlan")) == total
    assert tshark(pcap, "-Y", "_ws.malformed || _ws.expert.severity == error") == []
    assert len(tshark(pcap, "-Y", "vxlan[0:8] == 08:00:00:00:ab:cd:ef:00")) == total
    # 0 is bad, 1 good, 2 not verified; outer and inner headers have fields of the same names.
    bad = " || ".join(f"{name}.checksum.status == 0" for name in ("ip", "udp", "tcp", "icmp"))
    assert tshark(pcap, "-Y", bad) == []
    assert len(tshark(pcap, "-Y", f"{ours} && udp.checksum.status == 1")) == total
    assert len(tshark(pcap, "-Y", "tcp.checksum.status == 1")) > 1500
    fields = ("-e", "udp.srcport", "-e", "tcp.stream", "-e", "tcp.srcport")
    flows: dict[tuple[str, str], set[str]] = {}
    ports = set()
    for line in tshark(pcap, "-Y", ours, "-T", "fields", *fields):
        outer, stream, source = line.split("\t")
        port = outer.split(",")[0]
        ports.add(int(port))
        if stream:
            flows.setdefault((stream, source), set()).add(port)
    assert all(49152 <= port <= 65535 for port in ports)
    assert len(ports) > 20  # More than 80 flows over the 64 ports of each of two VTEPs.
    # A flow keeps its source port in each direction.
    assert len(flows) == 8
    assert all(len(used) == 1 for used in flows.values())
