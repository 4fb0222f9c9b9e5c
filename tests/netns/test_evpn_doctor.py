"""The doctor about EVPN, beside an FRR that refuses, has a password, or has other route targets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.netns.fabric import Fabric, Frr, Neighbor, add_bridge, bgp_config, kernel_leaf
from tests.netns.hosts import Pyvtep, ping, wait_until
from tests.netns.sites import own_site, speaks
from tests.netns.test_doctor import consult
from vtep.testing.lab import Lab

MAC_A, MAC_B = "02:00:00:00:0a:01", "02:00:00:00:0b:01"
OPTIONS = (
    *("--vni", "100", "--asn", "65000", "--evpn-neighbor", "192.0.2.2", "--bridge", "br0"),
    *("--local", "192.0.2.1", "--tap", "vx0", "--proxy"),
)


def test_why_a_session_or_a_route_is_missing(
    lab: Lab, tmp_path: Path, start: Callable[..., Pyvtep]
) -> None:
    fabric = Fabric(lab)
    router, other = fabric.router("vtep", 1), fabric.router("leaf", 2)
    add_bridge(router, "br0")
    near = fabric.host(router, "br0", "host-a", MAC_A, "10.0.0.1/24")
    bridge = kernel_leaf(other, 100, "192.0.2.2")
    fabric.host(other, bridge, "host-b", MAC_B, "10.0.0.2/24")
    vtep = start(router, *OPTIONS)

    def finding(about: str, said: str) -> dict[str, Any]:
        """Wait until the doctor says something about an object, and return that finding."""
        found: list[dict[str, Any]] = []

        def is_found() -> bool:
            _, report = consult(router, "--socket", str(vtep.control))
            found[:] = [each for each in report["findings"] if each["about"] == about]
            return any(said in each["title"] for each in found)

        wait_until(is_found, said)
        return next(each for each in found if said in each["title"])

    # No BGP speaker listens there.
    assert finding("192.0.2.2", "refuses connections to TCP port 179")["severity"] == "problem"

    # It has a password, and this host has none.
    neighbor = Neighbor("192.0.2.1", 65000, lines=("password secret",))
    frr = Frr(other, tmp_path, bgp_config(65000, "192.0.2.2", [neighbor]))
    silent = finding("192.0.2.2", "nothing answers from TCP port 179")
    assert "192.0.2.2 expects a password" in silent["explanation"]
    assert "a firewall drops TCP port 179" in silent["explanation"]
    assert "It answers ping" in silent["explanation"]
    # Its own SYNs came with a signature.
    assert "TCPMD5Unexpected" in silent["explanation"]

    # A route target that matches nothing is named, with the command that imports it.
    frr.configure("router bgp 65000", "no neighbor 192.0.2.1 password")
    frr.configure(
        *("router bgp 65000", "address-family l2vpn evpn"),
        *("vni 100", "route-target export 65001:7", "route-target import 65000:100"),
    )
    frr.wait_established("192.0.2.1")
    other_target = finding("vni 100", "no route target of 192.0.2.2 matches one that vni 100")
    assert "192.0.2.2 announces 65001:7" in other_target["explanation"]
    fix = other_target["fix"].removeprefix("here: pyvtep ").partition(";")[0]
    assert fix == "set --vni 100 --route-target-import 65001:7"
    vtep.run(*fix.split())
    ping(near, "10.0.0.2")

    # The route to a remote that EVPN has brought is followed, as that to a configured one.
    with vtep.client() as client:

        def has_underlay() -> bool:
            (segment,) = client.status()["segments"]
            (remote,) = segment["remotes"]
            underlay = segment["underlay_devices"], remote["underlay_dev"]
            return (*underlay, segment["mtu"]) == (["eth0"], "eth0", Fabric.MTU - 50)

        wait_until(has_underlay, "the underlay of a remote of EVPN")
    code, report = consult(router, "--socket", str(vtep.control))
    assert code == 0, report["findings"]
    assert vtep.run("status")

    # The end of a session is an event.
    with vtep.client() as client:
        events = client.monitor()
        frr.kill_bgpd()
        event = next(each for each in events if each.get("object") == "evpn-session")
    assert event == {"event": "down", "object": "evpn-session", "remote": "192.0.2.2"}


def test_a_spine_that_replaces_the_next_hop(
    lab: Lab, tmp_path: Path, start: Callable[..., Pyvtep]
) -> None:
    """Status and doctor name it, and what ends it; own routes that come back are no hint."""
    fabric = Fabric(lab)
    spine = fabric.router("spine", 9)
    # All are on one link here, where FRR keeps the next hop otherwise (RFC 4271, section 5.1.3).
    peers = [
        Neighbor(f"192.0.2.{number}", 65000 + number, evpn_lines=("next-hop-self",))
        for number in (1, 2)
    ]
    frr = Frr(spine, tmp_path, bgp_config(65100, "192.0.2.9", peers, evpn_lines=()))
    leaves = [own_site(fabric, start, each, *speaks(65000 + each, "192.0.2.9")) for each in (1, 2)]
    one, other = leaves

    def problems() -> list[str]:
        with one.pyvtep.client() as client:
            return [each["problem"] for each in client.status()["problems"]]

    wait_until(lambda: one.macs().get(other.bridge_mac) == "192.0.2.9", "the next hop")
    wait_until(lambda: problems() == ["evpn-next-hop"], "the problem in the status")
    _, report = consult(one.router, "--socket", str(one.pyvtep.control))
    titles = [each["title"] for each in report["findings"]]
    said = "the next hop of routes of 192.0.2.2 is the BGP neighbour 192.0.2.9 itself"
    assert said in titles, titles
    assert not [title for title in titles if "AS number" in title]

    frr.configure(
        *("router bgp 65100", "address-family l2vpn evpn"),
        *(f"no neighbor {each.address} next-hop-self" for each in peers),
        *(f"neighbor {each.address} attribute-unchanged next-hop" for each in peers),
    )
    wait_until(lambda: one.macs().get(other.bridge_mac) == other.vtep, "the VTEP")
    wait_until(lambda: problems() == [], "the end of the problem")
    ping(one.host, other.ip)


def test_a_neighbour_that_knows_another_address(
    lab: Lab, tmp_path: Path, start: Callable[..., Pyvtep]
) -> None:
    """The address that the session is opened from is named, and the one that would do."""
    fabric = Fabric(lab)
    leaf = fabric.router("leaf", 2)
    Frr(leaf, tmp_path, bgp_config(65000, "192.0.2.2", [Neighbor("192.0.2.1", 65000)]))
    leaf.run("ip", "route", "add", "203.0.113.1/32", "via", "192.0.2.1")
    router = fabric.router("vtep", 1)
    router.run("ip", "addr", "add", "203.0.113.1/32", "dev", "lo")
    device = ("--vni", "100", "--tap", "vx0", "--local", "203.0.113.1")
    vtep = start(router, *device, *speaks(65000, "192.0.2.2"))
    found: list[dict[str, Any]] = []

    def is_named() -> bool:
        _, report = consult(router, "--socket", str(vtep.control))
        found[:] = [
            each
            for each in report["findings"]
            if "does not know 203.0.113.1 as a neighbour" in each["title"]
        ]
        return bool(found)

    wait_until(is_named, "the source address")
    assert "--evpn-neighbor 192.0.2.2,local=192.0.2.1" in found[0]["fix"]
