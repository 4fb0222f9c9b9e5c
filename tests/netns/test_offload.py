"""Superframes through the whole path: offloads on, off, and unavailable."""

import re
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.netns.hosts import (
    SO_RCVBUFFORCE,
    Pair,
    Start,
    address,
    capture,
    kernel_vtep,
    mac_of,
    packet_socket,
    ping,
    segment,
    start_both,
    transfer,
    tshark,
    udp_socket,
    wait_until,
)
from vtep.testing.lab import Host

pytestmark = pytest.mark.usefixtures("fast_path")

UDP_SEGMENT = 103
UDP_GRO = 104
SOL_UDP = 17

OFFLOADS = pytest.mark.parametrize(
    "offload", ["auto", "none", "tso", "gso", "gro", "tso,uso", "tso,gro", "gso,gro", "tso,uso,gro"]
)


@OFFLOADS
def test_every_combination_carries_tcp_and_udp(pair: Pair, start: Start, offload: str) -> None:
    a, b = pair
    vteps = start_both(pair, start, "--offload", offload)
    wanted = {"auto": "gro,gso,tnl,tso,uso", "none": "none"}.get(offload)
    said = wanted or ",".join(sorted(offload.split(",")))
    assert f"offload {said}, fast path " in vteps[0].log
    transfer(a, b, "10.0.0.2", 20 << 20)
    transfer(b, a, "fd00::1", 20 << 20)
    datagrams = [bytes([number]) * 1000 for number in range(50)] + [b"the short last one"]
    for local, remote in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        with udp_socket(b, remote, 5000) as receiver, udp_socket(a, local) as sender:
            sender.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
            sender.sendto(b"".join(datagrams), (remote, 5000))
            assert [receiver.recv(2048) for _ in datagrams] == datagrams
    counters = vteps[0].counters()
    assert (counters["tx_superframes"] > 0) == (offload == "auto" or "tso" in offload)
    # A receive can return several datagrams only if they were sent as one.
    merges = offload in ("auto", "gso,gro")
    if merges:
        assert counters["rx_superframes"] > 0
    if "gro" not in offload and offload != "auto":
        assert counters["rx_superframes"] == 0
    assert vteps[0].unexpected_drops() == 0


def test_many_small_datagrams_at_once(pair: Pair, start: Start) -> None:
    """More than the kernel accepts in one superframe."""
    a, b = pair
    vteps = start_both(pair, start)
    datagrams = [number.to_bytes(2, "big") * 50 for number in range(600)]

    def all_sent(count: int) -> bool:
        return vteps[0].counter("tx_datagrams") >= count

    for local, remote in (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")):
        ping(a, remote)  # A stopped process does not answer ARP requests.
        with udp_socket(b, remote, 5000) as receiver, udp_socket(a, local) as sender:
            receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
            vteps[1].process.send_signal(signal.SIGSTOP)
            before = vteps[0].counter("tx_datagrams")
            sender.setsockopt(SOL_UDP, UDP_SEGMENT, 100)
            for at in range(0, 600, 60):
                sender.sendto(b"".join(datagrams[at : at + 60]), (remote, 5000))
            wait_until(partial(all_sent, before + 600), "all to be sent")
            vteps[1].process.send_signal(signal.SIGCONT)
            assert [receiver.recv(2048) for _ in datagrams] == datagrams
    assert [vtep.unexpected_drops() for vtep in vteps] == [0, 0]
    assert vteps[1].counter("rx_superframes") > 0


def test_merged_superframes_cross_a_bridge_to_a_narrower_link(pair: Pair, start: Start) -> None:
    """The kernel segments them again, to the original size of their segments."""
    a, b = pair
    start_both(pair, start)
    with Host("guest") as guest:
        b.run(
            *("ip", "link", "add", "guest0", "type", "veth", "peer", "name", "guest1"),
            *("netns", guest.pid),
        )
        guest.run("ethtool", "-K", "guest1", "gro", "off", "tso", "off", "gso", "off")
        b.run("ethtool", "-K", "guest0", "tso", "off", "gso", "off")
        b.run("ip", "link", "add", "br0", "mtu", "1450", "type", "bridge")
        for device in ("br0", "guest0"):
            b.run("ip", "link", "set", device, "up")
        for device in ("vx0", "guest0"):
            b.run("ip", "link", "set", device, "master", "br0")
        guest.run("ip", "link", "set", "guest1", "mtu", "1450", "up")
        address(guest, "guest1", "10.0.0.3/24")
        ping(a, "10.0.0.3")
        transfer(a, guest, "10.0.0.3", 50 << 20)
        transfer(guest, a, "10.0.0.1", 50 << 20)


def test_segments_on_the_wire_are_valid(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, b = pair
    for host in pair:
        # Superframes are segmented and outer checksums completed before the capture.
        host.run("ethtool", "-K", "eth0", *["tx", "off", "tso", "off", "gso", "off", "gro", "off"])
        host.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
    vteps = start_both(pair, start)
    with capture(a, tmp_path) as pcap:
        transfer(a, b, "10.0.0.2", 4 << 20)
        transfer(b, a, "fd00::1", 4 << 20)
    assert vteps[0].counter("tx_superframes") > 10
    bad = " || ".join(f"{name}.checksum.status == 0" for name in ("ip", "udp", "tcp"))
    assert tshark(pcap, "-Y", f"({bad}) || _ws.malformed") == []
    assert len(tshark(pcap, "-Y", "vxlan && tcp.checksum.status == 1")) > 5000
    assert tshark(pcap, "-Y", "frame.len > 1514") == []
    # On a busy machine, an ACK may come so late that its segment is retransmitted.
    assert tshark(pcap, "-Y", "tcp.analysis.lost_segment || tcp.analysis.out_of_order") == []


def test_superframes_to_and_from_a_kernel_peer(pair: Pair, start: Start) -> None:
    a, b = pair
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    ping(a, "10.0.0.2")
    transfer(a, b, "10.0.0.2", 50 << 20)
    transfer(b, a, "10.0.0.1", 50 << 20)
    with udp_socket(a, "10.0.0.1", 5000) as receiver, udp_socket(b, "10.0.0.2") as sender:
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, 1200)
        datagrams = [bytes([number]) * 1200 for number in range(40)]
        sender.sendto(b"".join(datagrams), ("10.0.0.1", 5000))
        assert [receiver.recv(2048) for _ in datagrams] == datagrams
    counters = vtep.counters()
    assert counters["tx_superframes"] > 0
    assert counters["super_datagrams"] > 0
    assert vtep.unexpected_drops() == 0


def test_udp_superframe_is_segmented_for_a_tap_without_uso(pair: Pair, start: Start) -> None:
    a, b = pair
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--offload", "tso,gso,gro")
    ping(a, "10.0.0.2")
    with udp_socket(a, "10.0.0.1", 5000) as receiver, udp_socket(b, "10.0.0.2") as sender:
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, 1200)
        datagrams = [bytes([number]) * 1200 for number in range(40)] + [b"short"]
        sender.sendto(b"".join(datagrams), ("10.0.0.1", 5000))
        assert [receiver.recv(2048) for _ in datagrams] == datagrams
    assert vtep.counter("super_datagrams") == 1


def test_segments_too_long_for_the_underlay_are_sent_singly(pair: Pair, start: Start) -> None:
    """A tagged superframe of full-sized segments exceeds the underlay MTU by four octets."""
    a, b = pair
    vteps = start_both(pair, start)
    b.run("ip", "link", "set", "eth0", "mtu", "1400")
    a.run("ip", "link", "set", "eth0", "mtu", "1400")  # Now the underlay fragments each.
    transfer(a, b, "10.0.0.2", 5 << 20)
    counters = vteps[0].counters()
    assert counters["tx_superframes"] > 0
    assert counters["underlay_too_big"] == 0


def test_small_frames_of_one_flow_share_a_send(pair: Pair, start: Start) -> None:
    a, b = pair
    first, second = start_both(pair, start)
    frame = bytes.fromhex(mac_of(b).replace(":", "") + "020000000001") + b"\x88\xb5" + b"x" * 50
    with packet_socket(b, "vx0") as receiver, packet_socket(a, "vx0") as sender:
        # After a stop, the process reads all frames at once.
        first.process.send_signal(signal.SIGSTOP)
        for number in range(300):
            sender.send(frame + number.to_bytes(2, "big"))
        first.process.send_signal(signal.SIGCONT)
        numbers: list[int] = []
        while len(numbers) < 300:
            data = receiver.recv(2048)
            if data.startswith(frame):
                numbers.append(int.from_bytes(data[-2:], "big"))
    assert numbers == list(range(300))
    assert second.unexpected_drops() == 0


def test_unavailable_offload_is_logged_once(pair: Pair, start: Start) -> None:
    """A TAP does not support USO without TSO."""
    vtep = start(pair[0], *segment(1, "192.0.2.2"), "--offload", "uso")
    wait_until(lambda: "offload uso unavailable" in vtep.log, "the line")
    assert vtep.log.count("offload uso unavailable") == 1
    assert re.search(r"offload none, fast path ", vtep.log)
