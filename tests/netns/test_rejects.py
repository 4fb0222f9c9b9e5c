"""Dropped datagrams, each counted by its reason and by no other."""

import json

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.netns.hosts import (
    Arrivals,
    Pair,
    Start,
    address,
    mac_of,
    packet_socket,
    ping,
    segment,
    udp_socket,
    wait_until,
)
from vtep.wire import vxlan

BROADCAST = "ff:ff:ff:ff:ff:ff"

GOOD = vxlan.pack(1)
FRAME = bytes(Ether(src="02:00:00:00:00:07", dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / Raw(b"x" * 50))


def own_source(own: str) -> bytes:
    return GOOD + FRAME[:6] + bytes.fromhex(own.replace(":", "")) + FRAME[12:]


@pytest.mark.parametrize(
    ("reason", "datagram"),
    [
        pytest.param("header_truncated", b"", id="empty"),
        pytest.param("header_truncated", GOOD[:7], id="seven-octets"),
        pytest.param("flags_invalid", bytes(8) + FRAME, id="no-flag"),
        pytest.param("flags_invalid", b"\xf7" + GOOD[1:] + FRAME, id="every-flag-but-I"),
        pytest.param("header_gpe", b"\x0c\0\0\1" + GOOD[4:] + FRAME, id="gpe-ipv4"),
        pytest.param("vni_unknown", vxlan.pack(2) + FRAME, id="next-vni"),
        pytest.param("vni_unknown", vxlan.pack(0x100) + FRAME, id="swapped-vni"),
        pytest.param("inner_runt", GOOD, id="no-frame"),
        pytest.param("inner_runt", GOOD + FRAME[:13], id="13-octets"),
        pytest.param("inner_source_invalid", GOOD + b"\xff" * 6 + b"\x01" + FRAME[7:], id="group"),
        pytest.param("inner_source_invalid", GOOD + b"\xff" * 6 + bytes(6) + FRAME[12:], id="zero"),
        pytest.param("inner_source_own", None, id="own-mac"),
        pytest.param("source_unknown", GOOD + FRAME, id="stranger"),
    ],
)
def test_invalid_datagram_is_counted_and_not_delivered(
    pair: Pair, start: Start, reason: str, datagram: bytes | None
) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    if datagram is None:
        datagram = own_source(mac_of(a))
    address(b, "eth0", "192.0.2.3/24")
    source = "192.0.2.3" if reason == "source_unknown" else "192.0.2.2"
    with Arrivals(a) as arrivals, udp_socket(b, source) as sender:
        for _ in range(3):
            sender.sendto(datagram, ("192.0.2.1", 4789))
        wait_until(lambda: vtep.counter(reason) == 3, f"three counts of {reason}")
        assert arrivals.count(datagram[8:]) == 0
    counters = vtep.counters()
    assert counters["rx_frames"] == 0
    assert counters["drops"] - counters["underlay_refused"] == 3
    assert vtep.fdb() == {}
    wait_until(lambda: f"{reason}:" in vtep.log, "a line in the log that names the reason")
    assert f"last: {source}" in vtep.log
    if reason == "vni_unknown":
        assert f"last: {source}, vni " in vtep.log


def test_reserved_bits_are_ignored(pair: Pair, start: Start) -> None:
    """RFC 7348, section 5."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    noisy = bytes([0xC8, 0xFF, 0xFF, 0xFF, 0, 0, 1, 0xFF])
    with Arrivals(a) as arrivals, udp_socket(b, "192.0.2.2") as sender:
        sender.sendto(noisy + FRAME, ("192.0.2.1", 4789))
        wait_until(lambda: arrivals.count(FRAME) == 1, "the frame")
    assert vtep.fdb() == {"02:00:00:00:00:07": "192.0.2.2"}


@pytest.mark.parametrize("octets", [42, 90], ids=["arp", "large"])
@pytest.mark.parametrize("version", [4, 6])
def test_wrong_udp_checksum_is_dropped_and_a_zero_one_is_not(
    pair: Pair, start: Start, version: int, octets: int
) -> None:
    """RFC 7348, section 5. The kernel verifies checksums and counts errors.

    It checks small datagrams before the socket lookup.
    """
    a, b = pair
    hosts = ["192.0.2.1", "192.0.2.2"] if version == 4 else ["2001:db8::1", "2001:db8::2"]
    vtep = start(a, *segment(1, hosts[1], "10.0.0.1/24"))
    with Arrivals(a) as arrivals, packet_socket(b, "eth0") as wire:
        for number, checksum in enumerate([0x1234, 0x1234, None, 0]):
            frame = FRAME.ljust(octets - 1, b"x")[: octets - 1] + bytes([number])
            ip = (IP if version == 4 else IPv6)(src=hosts[1], dst=hosts[0])
            udp = UDP(sport=50000, dport=4789, chksum=checksum)
            ether = Ether(src=mac_of(b, "eth0"), dst=mac_of(a, "eth0"))
            wire.send(bytes(ether / ip / udp / (GOOD + frame)))
        sent = [frame[:-1] + bytes([number]) for number in range(4)]
        wait_until(lambda: [*map(arrivals.count, sent)] == [0, 0, 1, 1], "the good ones")
    counters = vtep.counters()
    assert (counters["udp_checksum"], counters["rx_queue_full"]) == (2, 0)
    assert counters["drops"] - counters["underlay_refused"] == 2
    wait_until(lambda: "2 x udp_checksum: " in vtep.log, "the log")


def test_flood_from_unknown_sources_causes_no_learning_and_no_loss(
    pair: Pair, start: Start
) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    address(b, "eth0", "192.0.2.3/24")
    with udp_socket(b, "192.0.2.3") as sender:
        for number in range(2000):
            source = b"\x02\x00\x00\x00" + number.to_bytes(2, "big")
            sender.sendto(GOOD + FRAME[:6] + source + FRAME[12:], ("192.0.2.1", 4789))
        ping(a, "10.0.0.2")
    wait_until(lambda: vtep.counter("source_unknown") == 2000, "all to be counted")
    assert vtep.counter("rx_queue_full") == 0
    assert len(vtep.fdb()) == 1
    # The log must not be flooded in turn.
    wait_until(lambda: "source_unknown:" in vtep.log, "one line in the log")
    assert vtep.log.count("source_unknown:") == 1


def test_drops_of_a_tap_that_is_down_are_counted(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    a.run("ip", "link", "set", "vx0", "down")
    with udp_socket(b, "192.0.2.2") as sender:
        sender.sendto(GOOD + FRAME, ("192.0.2.1", 4789))
        wait_until(lambda: vtep.counter("tap_down") == 1, "the count")


SOL_UDP, UDP_SEGMENT = 17, 103


def claiming(octets: int) -> bytes:
    """Build a frame whose headers claim a length, and that is as long as a victim."""
    claim = IP(src="10.0.0.8", dst="10.0.0.9", len=octets - 14) / UDP(len=octets - 34, chksum=0)
    return bytes(Ether(src="02:00:00:00:00:08", dst=BROADCAST) / claim / Raw(bytes(40)))


def victim(number: int) -> bytes:
    mac = f"02:00:00:00:00:1{number}"
    return bytes(Ether(src=mac, dst=BROADCAST) / IP() / UDP() / Raw(b"v" * 40))


@pytest.mark.parametrize("theirs", [1, 2])
def test_frame_that_claims_the_rest_of_its_gro_batch(pair: Pair, start: Start, theirs: int) -> None:
    """Datagrams of another VNI behind it are dropped and counted, since they may be forged."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"))
    vtep.invoke("vni add 2 --remote 192.0.2.2 --tap vx1")
    victims = [victim(1), victim(2)]
    stride = len(GOOD + victims[0])
    liar = claiming(3 * stride - len(GOOD))
    burst = GOOD + liar + b"".join(vxlan.pack(theirs) + frame for frame in victims)
    assert len(burst) == 3 * stride
    with (
        udp_socket(b, "192.0.2.2") as sender,
        Arrivals(a, "vx0") as first,
        Arrivals(a, "vx1") as second,
    ):
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, stride)
        sender.sendto(burst, ("192.0.2.1", 4789))
        sender.sendto(GOOD + FRAME, ("192.0.2.1", 4789))
        wait_until(lambda: first.count(FRAME), "what came after it")
        assert first.count(liar) == 1
        assert [first.count(frame) for frame in victims] == ([1, 1] if theirs == 1 else [0, 0])
        assert [second.count(frame) for frame in victims] == [0, 0]
        assert first.count(burst[len(GOOD) :]) == 0
    told = json.loads(vtep.run("stats", "--json"))["total"]["drops"]
    assert told["gro_batch_mismatch"] == (0 if theirs == 1 else 2)
