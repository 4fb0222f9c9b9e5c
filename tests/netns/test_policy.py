"""Neighbour suppression, reserved bits, policy groups and VLAN tags on real hosts."""

import socket
import struct
from functools import partial

import pytest
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.netns.hosts import (
    Arrivals,
    Pair,
    Start,
    address,
    is_reachable,
    kernel_vtep,
    mac_of,
    packet_socket,
    ping,
    segment,
    udp_socket,
    wait_until,
)
from vtep.testing.lab import Host, Lab
from vtep.wire import vxlan

PLAIN = bytes(Ether(src="02:00:00:00:00:07", dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / Raw(b"x" * 50))
TAGGED = PLAIN[:12] + b"\x81\x00" + bytes(Dot1Q(vlan=10, type=0x88B5)) + PLAIN[14:]

SOL_PACKET = 263
PACKET_AUXDATA = 8
TP_STATUS_VLAN_VALID = 1 << 4


# --- neighbours -------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["10.0.0.2", "fd00::2"])
def test_known_neighbour_is_resolved_while_it_is_down(pair: Pair, start: Start, other: str) -> None:
    a, b = pair
    vtep = start(a, *segment(42, "192.0.2.2", "10.0.0.1/24", "fd00::1/64"), "--proxy")
    kernel_vtep(b, 42, "192.0.2.2", "192.0.2.1", "10.0.0.2/24", "fd00::2/64")
    ping(a, other)
    its_mac = mac_of(b)
    b.run("ip", "link", "set", "eth0", "down")
    answered = vtep.counter("neigh_answered")
    a.run("ip", "neigh", "del", other, "dev", "vx0")

    def found() -> bool:
        a.run("ping", "-c1", "-W1", other, check=False)
        return its_mac in a.run("ip", "neigh", "show", other, "dev", "vx0")

    wait_until(found, "an answer in the name of the neighbour")
    assert vtep.counter("neigh_answered") > answered


@pytest.mark.parametrize(("own", "moving"), [("10.0.0.1", "10.0.0.80"), ("fd00::1", "fd00::80")])
def test_address_that_moves_to_another_mac_is_resolved(
    lab: Lab, start: Start, own: str, moving: str
) -> None:
    """The new host sends no gratuitous ARP and only answers requests."""
    underlay, hosts = lab.host("u"), [lab.host(name) for name in "abc"]
    underlay.run("ip", "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
    underlay.run("ip", "link", "set", "br0", "up")
    for number, host in enumerate(hosts, 1):
        lab.wire(host, underlay)
        port = f"port{number}"
        underlay.run("ip", "link", "set", "eth0", "down", "name", port, "master", "br0")
        underlay.run("ip", "link", "set", port, "up")
        address(host, "eth0", f"192.0.2.{number}/24")
    a, b, c = hosts
    length = "/64" if ":" in own else "/24"
    remotes = ["--remote", "192.0.2.3"]
    vtep = start(a, *segment(1, "192.0.2.2", own + length), *remotes, "--proxy")
    for number, host in ((2, b), (3, c)):
        kernel_vtep(host, 1, f"192.0.2.{number}", "192.0.2.1")
    address(b, "vx0", moving + length)
    ping(a, moving)
    b.run("ip", "link", "set", "vx0", "down")
    address(c, "vx0", moving + length)
    a.run("ip", "neigh", "flush", "dev", "vx0")
    answered = vtep.counter("neigh_answered")

    def found() -> bool:
        return "1 received" in a.run("ping", "-c1", "-W1", moving, check=False)

    wait_until(found, "the new owner of the address")
    assert mac_of(c) in a.run("ip", "neigh", "show", moving, "dev", "vx0")
    assert vtep.counter("neigh_answered") > answered
    assert vtep.counter("neigh_unconfirmed") > 0


# --- reserved bits ----------------------------------------------------------------------------

RESERVED = [1 << 63 - bit for bit in (0, 1, *range(8, 32), *range(56, 64))]
"""Bit 0 is the first on the wire. The kernel's vxlan_reserved.sh has five more, those of the
Generic Protocol Extension, which pyvtep never accepts."""


STRICT = 0xF7FFFFFF000000FF


def _is_delivered(arrivals: Arrivals, frame: bytes, count: int) -> bool:
    return arrivals.count(frame) == count


def test_reserved_bits(pair: Pair, start: Start) -> None:
    """The rows of vxlan_reserved.sh and the default, changed at run time."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"))
    clean = int.from_bytes(vxlan.pack(1), "big")
    dropped = 0
    rows = [("", 34), ("ignore", 34), ("strict", 0), (f"{STRICT:#x}", 0)]
    rows += [(f"{STRICT & ~(1 << 63 - bit):#x}", 1) for bit in (0, 10, 31, 56, 63)]
    with Arrivals(a) as arrivals, udp_socket(b, "192.0.2.2") as sender:
        for number, (option, passing) in enumerate(rows):
            if option:
                vtep.invoke(f"set --reserved-bits {option}")
            frame = PLAIN + bytes([number])
            for bit in (*RESERVED, 0):
                header = (clean | bit).to_bytes(8, "big")
                sender.sendto(header + frame, ("192.0.2.1", 4789))
            # Frames stay in order, and the clean one is the last.
            wait_until(partial(_is_delivered, arrivals, frame, passing + 1), "what is let in")
            dropped += 34 - passing
            assert vtep.counter("reserved_bits") == dropped
            assert arrivals.count(frame) == passing + 1


# --- policy groups ----------------------------------------------------------------------------


def marks(host: Host, rules: str) -> None:
    """Add nftables rules about the packet marks that represent groups in the kernel."""
    host.run("nft", f"add table inet groups; {rules}")


def test_groups_with_the_kernel(pair: Pair, start: Start) -> None:
    a, b = pair
    b.run(
        *("ip", "link", "add", "vx0", "type", "vxlan", "id", "42", "dev", "eth0", "gbp"),
        *("local", "192.0.2.2", "remote", "192.0.2.1", "dstport", "4789"),
    )
    b.run("ip", "addr", "add", "10.0.0.2/24", "dev", "vx0")
    b.run("ip", "link", "set", "vx0", "up")
    # Only frames of group 7 are answered, and all replies are of group 9.
    marks(
        b,
        "add chain inet groups in { type filter hook input priority 0; };"
        'add rule inet groups in iifname "vx0" meta mark != 7 drop;'
        "add chain inet groups out { type filter hook output priority 0; };"
        'add rule inet groups out oifname "vx0" meta mark set 9;'
        "add table arp groups; add chain arp groups out { type filter hook output priority 0; };"
        "add rule arp groups out meta mark set 9",
    )
    options = ("--gbp", "7", "--gbp-accept", "9")
    vtep = start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"), *options)
    ping(a, "10.0.0.2")
    assert vtep.unexpected_drops() == 0
    vtep.stop()
    vtep = start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"), "--gbp", "7", "--gbp-accept", "8")
    assert not is_reachable(a, "10.0.0.2")
    wait_until(lambda: vtep.counter("group_denied") > 0, "a drop")


# --- VLAN tags --------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "left"), [("pass", TAGGED), ("strip", PLAIN), ("drop", None)])
def test_vlan_tags_on_egress(pair: Pair, start: Start, option: str, left: bytes | None) -> None:
    a, b = pair
    with udp_socket(b, "192.0.2.2", 4789) as wire:
        vtep = start(a, *segment(1, "192.0.2.2"), "--inner-vlan", option)
        with packet_socket(a, "vx0") as tap:
            tap.send(TAGGED)
            tap.send(PLAIN)

        def next_marked() -> bytes:
            while True:  # Skip frames that the host itself sends on a TAP that is up.
                frame = wire.recv(2048)[vxlan.HEADER_LEN :]
                if frame[6:12] == PLAIN[6:12]:
                    return frame

        if left is not None:
            assert next_marked() == left
        assert next_marked() == PLAIN
        assert vtep.counter("tx_tagged") == (1 if left is None else 0)


@pytest.mark.parametrize(
    ("option", "tags"), [("pass", [True, False]), ("strip", [False, False]), ("drop", [False])]
)
def test_vlan_tags_on_ingress(pair: Pair, start: Start, option: str, tags: list[bool]) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"), "--inner-vlan", option)
    with packet_socket(a, "vx0") as tap, udp_socket(b, "192.0.2.2") as sender:
        # For a packet socket, the kernel moves the tag into ancillary data (PACKET_AUXDATA).
        tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        for frame in (TAGGED, PLAIN):
            sender.sendto(vxlan.pack(1) + frame, ("192.0.2.1", 4789))
        seen: list[bool] = []
        while len(seen) < len(tags):
            data, ancillary, _, where = tap.recvmsg(2048, socket.CMSG_SPACE(20))
            if data == PLAIN and where[2] != socket.PACKET_OUTGOING:
                (status,) = struct.unpack_from("=I", ancillary[0][2])
                seen.append(status & TP_STATUS_VLAN_VALID != 0)
        assert seen == tags
        assert vtep.counter("inner_tagged") == (1 if option == "drop" else 0)
