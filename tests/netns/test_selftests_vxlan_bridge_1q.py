"""The assertions of the kernel's vxlan_bridge_1q.sh about two VNIs, here in one process.

Each VNI has its own flood list and its own MACs. Isolation of equal MACs and addresses is tested in
test_many.py.
"""

from scapy.layers.l2 import Ether

from tests.netns.hosts import (
    Arrivals,
    Start,
    address,
    packet_socket,
    wait_until,
)
from vtep.testing.lab import Host, Lab

VNIS = (1000, 2000)
MAC = "de:ad:be:ef:13:37"
ZERO = "00:00:00:00:00:00"


def kernel_devices(host: Host, local: str, remote: str) -> None:
    for vni in VNIS:
        host.run(
            *("ip", "link", "add", f"vx{vni}", "type", "vxlan", "id", str(vni), "local", local),
            *("remote", remote, "dstport", "4789"),
        )
        host.run("ip", "link", "set", f"vx{vni}", "up")


def test_each_vni_has_its_own_flood_list_and_macs(lab: Lab, start: Start) -> None:
    switch, *others = (lab.host(name) for name in ("switch", "ns1", "ns2"))
    for number, host in enumerate(others, start=2):
        lab.wire(switch, host, device=f"eth{number}")
        address(switch, f"eth{number}", f"192.0.{number}.1/24")
        address(host, f"eth{number}", f"192.0.{number}.2/24")
        kernel_devices(host, f"192.0.{number}.2", f"192.0.{number}.1")
    vtep = start(switch, "--vni", "1000", "--tap", "vx1000")
    vtep.invoke("vni add 2000 --tap vx2000")
    counters = [lab.enter_context(Arrivals(host, f"vx{vni}")) for vni in VNIS for host in others]
    count = 0

    def reach(vni: int, expected: list[int]) -> None:
        """Send a frame; the counters are VNI 1000 at ns1 and ns2, and VNI 2000 at ns1 and ns2."""
        nonlocal count
        count += 1
        frame, last = (
            bytes(Ether(src="02:00:00:00:00:99", dst=mac, type=0x88B5)) + count.to_bytes(50, "big")
            for mac in (MAC, "ff:ff:ff:ff:ff:ff")
        )
        with packet_socket(switch, f"vx{vni}") as sender:
            sender.send(frame)
            wait_until(lambda: [each.count(frame) for each in counters] == expected, f"{expected}")
            sender.send(last)
        flood = [1, 1, 0, 0] if vni == 1000 else [0, 0, 1, len(flood_2000) - 1]
        wait_until(lambda: [each.count(last) for each in counters] == flood, f"{flood}")
        assert [each.count(frame) for each in counters] == expected

    flood_2000 = ["192.0.2.2"]
    for remote in ("192.0.2.2", "192.0.3.2"):
        vtep.invoke(f"fdb append {ZERO} dst {remote} src_vni 1000")
    vtep.invoke(f"fdb append {ZERO} dst 192.0.2.2 src_vni 2000")
    reach(1000, [1, 1, 0, 0])
    reach(2000, [0, 0, 1, 0])
    flood_2000.append("192.0.3.2")
    vtep.invoke("remote add 192.0.3.2 --vni 2000")
    reach(2000, [0, 0, 1, 1])
    # One MAC at two remotes.
    vtep.invoke(f"fdb add {MAC} dst 192.0.2.2 static src_vni 1000")
    reach(1000, [1, 0, 0, 0])
    reach(2000, [0, 0, 1, 1])
    vtep.invoke(f"fdb add {MAC} dst 192.0.3.2 static src_vni 2000")
    reach(2000, [0, 0, 0, 1])
    reach(1000, [1, 0, 0, 0])
    # An entry with a VNI sends from one segment into the other.
    vtep.invoke(f"fdb replace {MAC} dst 192.0.3.2 vni 2000 static src_vni 1000")
    reach(1000, [0, 0, 0, 1])
    vtep.invoke("vni del 2000")
    reach(1000, [0, 0, 0, 1])
