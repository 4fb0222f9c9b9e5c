"""VLANs of one TAP, each with a VNI, towards the kernel's VXLAN driver.

The VLAN devices are threads of this test, since not every kernel has the module 8021q.
"""

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from tests.netns.hosts import (
    Pair,
    Start,
    address,
    kernel_vtep,
    mac_of,
    packet_socket,
    ping,
    pyvtep,
    wait_until,
)
from vtep.io.tap import Tap
from vtep.testing.lab import Host, transfer
from vtep.wire import ethernet, virtio

SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_VNET_HDR = 15
TP_STATUS_VLAN_VALID = 1 << 4
AUXDATA = struct.Struct("=IIIHHHH")
"""struct tpacket_auxdata of the kernel's include/uapi/linux/if_packet.h."""

MACS = 2 * ethernet.MAC_LEN
FRAME_MAX = 1 << 17


@contextmanager
def vlan_device(host: Host, vlan: int, lower: str = "vx0") -> Iterator[str]:
    """Run a device whose frames are those of a VLAN of another one, superframes included."""
    name = f"v{vlan}"
    with host.inside():
        upper = Tap(name, tso=True, uso=True)
    with upper, closing(packet_socket(host, lower)) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        host.run("ip", "link", "set", name, "mtu", "1450", "up")
        done, stop = os.pipe()
        thread = threading.Thread(target=_pump, args=(upper, sock, vlan, done))
        thread.start()
        try:
            yield name
        finally:
            os.close(stop)
            thread.join()
            os.close(done)


def _pump(upper: Tap, sock: socket.socket, vlan: int, done: int) -> None:
    tag, meta, body = ethernet.pack_tag(vlan), bytearray(virtio.HEADER_LEN), bytearray(FRAME_MAX)
    sock.setblocking(False)
    while True:
        ready, _, _ = select.select([upper.fd, sock.fileno(), done], [], [])
        if done in ready:
            return
        with suppress(BlockingIOError):
            while True:
                octets = upper.read((meta, body)) - virtio.HEADER_LEN
                header = virtio.shift(bytes(meta), ethernet.TAG_LEN)
                sock.setblocking(True)
                # ENOBUFS and the like are losses, as those of a device.
                with suppress(OSError):
                    sock.sendmsg((header, body[:MACS], tag, body[MACS:octets]))
                sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                data, ancillary, _, where = sock.recvmsg(FRAME_MAX, socket.CMSG_SPACE(20))
                status, *_, tci, _ = AUXDATA.unpack(ancillary[0][2])
                if where[2] == socket.PACKET_OUTGOING or not status & TP_STATUS_VLAN_VALID:
                    continue
                if tci & ethernet.VLAN_MASK == vlan:
                    with suppress(OSError):
                        upper.write((data[: virtio.HEADER_LEN], data[virtio.HEADER_LEN :]))


@pytest.fixture
def vlans(pair: Pair) -> Iterator[ExitStack]:
    _, b = pair
    for vlan in (10, 20):
        name, own = f"k{vlan}", f"10.0.{vlan}.2/24"
        kernel_vtep(b, 1000 + vlan, "192.0.2.2", "192.0.2.1", own, device=name)
    with ExitStack() as devices:
        yield devices


def test_vlans_are_vnis_of_the_kernel(pair: Pair, start: Start, vlans: ExitStack) -> None:
    a, b = pair
    mapping = ("--vlan", "10:1010", "--vlan", "20-21:1020-1021")
    vtep = start(a, *mapping, "--tap", "vx0", "--remote", "192.0.2.2")
    for vlan in (10, 20):
        address(a, vlans.enter_context(vlan_device(a, vlan)), f"10.0.{vlan}.1/24")
        ping(a, f"10.0.{vlan}.2", "-s", "1422")
        # Superframes in both directions.
        transfer(a, b, f"10.0.{vlan}.2", 4 << 20)
        transfer(b, a, f"10.0.{vlan}.1", 4 << 20)
    with vtep.client() as client:
        stats = {each["vni"]: each for each in client.call("stats")["segments"]}
    for vni in (1010, 1020):
        counters = stats[vni]["counters"]
        assert counters["tx_superframes"]
        assert counters["rx_superframes"] + counters["super_datagrams"]
        assert stats[vni]["fdb_entries"] == 1  # The device there: each VNI has its own FDB.
        assert not sum(stats[vni]["drops"].values())
    assert stats[1021]["counters"]["tx_frames"] == 0

    # VNIs come and go at run time, and over an upgrade nothing of the others is lost.
    vtep.run("vni", "add", "1030", "--tap", "vx0", "--vlan", "30", "--remote", "192.0.2.2")
    vtep.run("vni", "del", "1021")
    kernel_vtep(b, 1030, "192.0.2.2", "192.0.2.1", "10.0.30.2/24", device="k30")
    address(a, vlans.enter_context(vlan_device(a, 30)), "10.0.30.1/24")
    ping(a, "10.0.30.2")
    rows = vtep.run("vni", "show", "dev", "vx0").splitlines()
    assert [" ".join(row.split()[:4]) for row in rows[1:]] == [
        *("1010 vx0 vlan 10", "1020 vx0 vlan 20", "1030 vx0 vlan 30")
    ]
    assert "choose one with --vni: 1010, 1020, 1030" in vtep.run(
        "fdb", "get", "ff:ff:ff:ff:ff:ff", "dev", "vx0", code=2
    )
    assert "vni 1020  vx0 vlan 20  up" in vtep.run("status")
    mac = mac_of(a)  # A random one, by which a new TAP would be noticed.
    vtep.run("upgrade")
    for vlan in (10, 20, 30):
        ping(a, f"10.0.{vlan}.2", count=1)
    assert mac_of(a) == mac

    # The doctor's own frames have the tag: it finds the hosts behind the kernel's VTEP, which sends
    # no echo replies, and says so once, not for each VNI.
    before = vtep.client_counter("drop_tx_untagged")
    text = pyvtep(a, "doctor", "--socket", str(vtep.control)).stdout
    assert vtep.client_counter("drop_tx_untagged") == before
    assert text.count("but a host behind it answers a ping") == 1, text
    assert "PROBLEM" not in text
    assert "nothing answers" not in text

    # Compiled turns are not for VLANs, so nothing is compiled.
    assert "fast path: " not in vtep.log

    # Frames of no VNI are counted with a reason.
    with packet_socket(a, "vx0") as tap:
        plain = b"\xff" * 6 + b"\2\0\0\0\0\7" + b"\x88\xb5" + bytes(50)
        tap.send(plain)
        tap.send(plain[:MACS] + ethernet.pack_tag(99) + plain[MACS:])
    wait_until(lambda: vtep.client_counter("drop_tx_vlan_unknown") == 1, "the drop of a VLAN")
    assert vtep.client_counter("drop_tx_untagged") >= 1
    drops = [vtep.client_counter(f"drop_tx_{each}") for each in ("untagged", "vlan_unknown")]
    vtep.run("upgrade")
    assert vtep.client_counter("drop_tx_untagged") >= drops[0]
    assert vtep.client_counter("drop_tx_vlan_unknown") == drops[1]
