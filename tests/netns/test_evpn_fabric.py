"""pyvtep in BGP EVPN fabrics: with FRR and the kernel's VXLAN, with reflectors, and with GoBGP."""

from pathlib import Path

from tests.netns.fabric import (
    Fabric,
    Frr,
    GoBgp,
    GoBgpNeighbor,
    Neighbor,
    bgp_config,
    kernel_leaf,
)
from tests.netns.hosts import ping, wait_until
from vtep.testing.lab import Lab


def test_the_fabric_of_the_tests_works(lab: Lab, tmp_path: Path) -> None:
    """Two FRR leaves and gobgpd as a reflector carry pings, without pyvtep."""
    fabric = Fabric(lab)
    leaves = {}
    for name, number in (("a", 1), ("b", 2)):
        router = fabric.router(f"leaf-{name}", number)
        bridge = kernel_leaf(router, 100, f"192.0.2.{number}", f"02:00:00:00:00:0{number}")
        config = bgp_config(65000, f"192.0.2.{number}", [Neighbor("192.0.2.9", 65000)])
        mac, own = f"02:00:00:00:0{name}:01", f"10.0.0.{number}/24"
        host = fabric.host(router, bridge, f"host-{name}", mac, own)
        leaves[name] = Frr(router, tmp_path, config), host
    clients = [GoBgpNeighbor(f"192.0.2.{number}", 65000, client=True) for number in (1, 2)]
    reflector = GoBgp(fabric.router("spine", 9), tmp_path, 65000, "192.0.2.9", clients)
    reflector.wait_established("192.0.2.1", "192.0.2.2")
    (first, host_a), (second, host_b) = leaves.values()
    ping(host_a, "10.0.0.2")
    ping(host_b, "10.0.0.1")
    wait_until(
        lambda: first.remote_macs(100) == {"02:00:00:00:0b:01": "192.0.2.2"}, "the MAC of host b"
    )
    assert "02:00:00:00:0b:01" in second.local_macs(100)
    assert first.flood_vteps(100) == {"192.0.2.2"}
    assert len(first.routes("multicast")) == len(reflector.routes()) - len(first.routes("macip"))
    first.kill_bgpd()
    wait_until(lambda: second.remote_macs(100) == {}, "the withdrawal of the routes of leaf a")
    first.start_bgpd()
    wait_until(lambda: second.flood_vteps(100) == {"192.0.2.1"}, "the routes of leaf a")
