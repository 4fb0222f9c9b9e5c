"""EVPN and faults: ends of the speaker, of the daemon and of the neighbour, and upgrades."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.netns.fabric import Fabric, Frr, Neighbor, add_bridge, bgp_config, kernel_leaf
from tests.netns.hosts import Pyvtep, ping
from vtep.testing.lab import Host, Lab

MAC_A, MAC_B = "02:00:00:00:0a:01", "02:00:00:00:0b:01"
OPTIONS = (
    *("--vni", "100", "--asn", "65000", "--evpn-neighbor", "192.0.2.2", "--bridge", "br0"),
    *("--local", "192.0.2.1", "--tap", "vx0"),
)


@frozen
class Leaves:
    """A router for pyvtep with a bridge and a host, and an FRR leaf with another host."""

    router: Host
    host: Host
    frr: Frr
    far: Host

    def session(self) -> dict[str, Any]:
        """Return the session with pyvtep as FRR shows it."""
        said: dict[str, Any] = self.frr.show("neighbors 192.0.2.1")
        return dict(said.get("192.0.2.1", {}))


@pytest.fixture
def leaves(lab: Lab, tmp_path: Path) -> Leaves:
    """Return two leaves of a fabric in AS 65000; pyvtep is not started."""
    fabric = Fabric(lab)
    router, other = fabric.router("vtep", 1), fabric.router("leaf", 2)
    add_bridge(router, "br0")
    host = fabric.host(router, "br0", "host-a", MAC_A, "10.0.0.1/24")
    bridge = kernel_leaf(other, 100, "192.0.2.2")
    far = fabric.host(other, bridge, "host-b", MAC_B, "10.0.0.2/24")
    frr = Frr(other, tmp_path, bgp_config(65000, "192.0.2.2", [Neighbor("192.0.2.1", 65000)]))
    return Leaves(router, host, frr, far)


def test_a_leaf_next_to_frr(leaves: Leaves, start: Callable[..., Pyvtep]) -> None:
    vtep = start(leaves.router, *OPTIONS)
    ping(leaves.host, "10.0.0.2")
    ping(leaves.far, "10.0.0.1")
    assert leaves.frr.remote_macs(100)[MAC_A] == "192.0.2.1"
    assert vtep.run("evpn", "show", "macs", MAC_B)
