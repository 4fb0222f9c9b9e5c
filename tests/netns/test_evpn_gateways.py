"""Gateways that FRR and pyvtep announce, and withdrawals that the underlay shows."""

from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.netns.fabric import Fabric, bgp_config, kernel_fdb
from tests.netns.fabric import Neighbor as Peer
from tests.netns.hosts import Start, address, capture, is_reachable, ping, tshark, wait_until
from tests.netns.sites import (
    FLOOD,
    VNI,
    FrrSite,
    OwnSite,
    Site,
    frr_site,
    join_mesh,
    own_site,
    speaks,
)
from tests.netns.test_evpn_routes import shown

GATEWAY, GATEWAY6 = "10.0.0.254", "fd00::254"
GATEWAYS = (GATEWAY, GATEWAY6)


def inner(pcap: Path, which: str) -> list[str]:
    """Return the underlay destinations of frames in VXLAN that a display filter selects."""
    fields = ("-T", "fields", "-E", "occurrence=f", "-e", "ip.dst")
    return tshark(pcap, "-Y", f"vxlan and ({which})", *fields)


def asks_for(*addresses: str) -> str:
    """Build a display filter of ARP and ND requests for addresses."""
    return " or ".join(
        f"(arp.opcode == 1 and arp.dst.proto_ipv4 == {ip})"
        if "." in ip
        else f"icmpv6.nd.ns.target_address == {ip}"
        for ip in addresses
    )


@pytest.mark.parametrize("macs", ["one MAC", "two MACs"])
def test_both_sides_have_the_gateway(
    macs: str, fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """Each leaf answers for the gateway itself, whatever the other one announces."""
    peers = [Peer("192.0.2.1", 65000)]
    evpn = ("advertise-all-vni", "advertise-default-gw")
    far = frr_site(fabric, tmp_path, 2, bgp_config(65000, "192.0.2.2", peers, evpn_lines=evpn))
    address(far.router, far.bridge, f"{GATEWAY}/24", f"{GATEWAY6}/64")
    options = [word for one in GATEWAYS for word in ("--anycast-gateway", one)]
    near = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"), *options)
    address(near.router, near.bridge, f"{GATEWAY}/24", f"{GATEWAY6}/64")
    ours = near.bridge_mac
    if macs == "one MAC":
        ours = far.bridge_mac
        near.router.run("ip", "link", "set", near.bridge, "address", ours)
    for site in (near, far):
        site.host.run("ip", "addr", "add", f"fd00::{site.number}/64", "dev", "eth0", "nodad")
    ping(near.host, far.ip)

    def routes(mac: str, *, own: bool) -> dict[str | None, Any]:
        return {
            route["ip"]: route
            for route in shown(near, "routes", mac)
            if (route["neighbor"] is None) is own
        }

    # FRR takes no route of its own MAC, and forgets its own route of an address that is announced
    # with another MAC.
    if macs == "one MAC":
        wait_until(lambda: {*GATEWAYS} <= {*routes(ours, own=False)}, "FRR's gateway")
        found = routes(ours, own=False)
        assert {found[one]["reason"] for one in GATEWAYS} == {"anycast-gateway"}
    else:
        announced = partial(far.frr.arp_cache, VNI)
        wait_until(
            lambda: {announced().get(ip, {}).get("mac") for ip in GATEWAYS} == {ours},
            "our gateway in FRR",
        )
    wait_until(lambda: {*GATEWAYS} <= {*routes(ours, own=True)}, "our gateway")
    assert all(one["default_gateway"] for one in routes(ours, own=True).values())
    with capture(near.router, tmp_path) as pcap:
        ping(near.host, far.ip)
        for site, mac in ((near, ours), (far, far.bridge_mac)):
            for gateway in GATEWAYS:
                ping(site.host, gateway)
                assert mac in site.host.run("ip", "neigh", "show", gateway)
    assert inner(pcap, f"ip.addr == {far.ip}")
    assert inner(pcap, f"ip.addr == {GATEWAY} or ipv6.addr == {GATEWAY6}") == []
    assert inner(pcap, asks_for(*GATEWAYS)) == []
    # Neither side has moved the MAC of the other one, or its own.
    assert shown(near, "moves") == []
    assert not {*near.macs()} & {ours}


def test_requests_for_the_gateway_of_frr(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """They are answered here while FRR announces it, and flooded when it does not any more."""
    peers = [Peer("192.0.2.1", 65000)]
    evpn = ("advertise-all-vni", "advertise-default-gw")
    far = frr_site(fabric, tmp_path, 2, bgp_config(65000, "192.0.2.2", peers, evpn_lines=evpn))
    address(far.router, far.bridge, f"{GATEWAY}/24", f"{GATEWAY6}/64")
    near = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"))
    near.host.run("ip", "addr", "add", "fd00::1/64", "dev", "eth0", "nodad")
    wait_until(lambda: {*GATEWAYS} <= {*near.neighbours()}, "the gateway")
    wait_until(lambda: near.macs().get(far.bridge_mac) == far.vtep, "its MAC")
    with capture(near.router, tmp_path) as pcap:
        for gateway in GATEWAYS:
            ping(near.host, gateway)
    assert inner(pcap, f"ip.addr == {GATEWAY}")
    assert inner(pcap, f"ipv6.addr == {GATEWAY6}")
    assert inner(pcap, asks_for(*GATEWAYS)) == []
    for gateway, length in ((GATEWAY, 24), (GATEWAY6, 64)):
        far.router.run("ip", "addr", "del", f"{gateway}/{length}", "dev", far.bridge)
    wait_until(lambda: not {*GATEWAYS} & {*near.neighbours()}, "the withdrawal")
    near.host.run("ip", "neigh", "flush", "dev", "eth0")
    with capture(near.router, tmp_path) as pcap:
        for gateway in GATEWAYS:
            assert not is_reachable(near.host, gateway)
    for gateway in GATEWAYS:
        assert {*inner(pcap, asks_for(gateway))} == {far.vtep}


def test_flooding_follows_type_3_routes(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """A VTEP that withdraws its route gets no flooded frame, while others do."""
    far, near, third = join_mesh(fabric, start, tmp_path)
    assert isinstance(far, FrrSite)
    assert isinstance(near, OwnSite)
    assert isinstance(third, OwnSite)

    unused = count(200)

    def flooded(site: Site) -> set[str]:
        """Return which VTEPs an ARP request of a host is sent to."""
        # The host does not ask again so soon for one that does not answer.
        target = f"10.0.0.{next(unused)}"
        with capture(site.router, tmp_path) as pcap:
            assert not is_reachable(site.host, target)
        return {*inner(pcap, asks_for(target))}

    def floods(site: OwnSite, *vteps: str) -> bool:
        return site.fdb().get(FLOOD, set()) == {*vteps}

    wait_until(lambda: floods(near, far.vtep, third.vtep), "both VTEPs")
    wait_until(lambda: far.frr.flood_vteps(VNI) == {near.vtep, third.vtep}, "both in FRR")
    assert flooded(near) == {far.vtep, third.vtep}
    far.router.run("ip", "link", "set", f"vxlan{VNI}", "down")
    wait_until(lambda: floods(near, third.vtep), "the withdrawal of FRR")
    assert flooded(near) == {third.vtep}
    third.pyvtep.stop()
    wait_until(lambda: floods(near), "the withdrawal of pyvtep")
    assert flooded(near) == set()
    far.router.run("ip", "link", "set", f"vxlan{VNI}", "up")
    wait_until(lambda: floods(near, far.vtep), "FRR again")
    wait_until(lambda: far.frr.flood_vteps(VNI) == {near.vtep}, "one VTEP in FRR")
    assert flooded(near) == {far.vtep}
    assert flooded(far) == {near.vtep}
    ping(near.host, far.ip)


@pytest.mark.parametrize("first", ["address", "MAC"])
def test_frr_follows_our_withdrawals(
    first: str, fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """Of an address and its MAC, in either order; they come back alike."""
    peers = [Peer("192.0.2.1", 65000)]
    far = frr_site(fabric, tmp_path, 2, bgp_config(65000, "192.0.2.2", peers))
    near = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"))

    def is_mac() -> bool:
        return far.frr.remote_macs(VNI).get(near.mac) == near.vtep

    def is_address() -> bool:
        entry = far.frr.arp_cache(VNI).get(near.ip, {})
        return (entry.get("mac"), entry.get("remoteVtep")) == (near.mac, near.vtep)

    ping(near.host, near.bridge_ip)
    wait_until(lambda: is_mac() and is_address(), "the MAC and its address")
    if first == "address":
        near.router.run("ip", "neigh", "del", near.ip, "dev", near.bridge)
        wait_until(lambda: not is_address(), "the withdrawal of the address")
        assert is_mac()
    # The bridge has a neighbour still, if not deleted, but an address is of no use without its MAC.
    near.router.run("ip", "link", "set", near.host.name, "down")
    wait_until(lambda: not is_mac() and not is_address(), "the withdrawal of the MAC")
    near.router.run("ip", "link", "set", near.host.name, "up")
    ping(near.host, near.bridge_ip)
    wait_until(lambda: is_mac() and is_address(), "both again")
    ping(far.host, near.ip)


@pytest.mark.parametrize("order", ["pyvtep first", "FRR first"])
def test_frr_gets_the_gateway_mac_of_pyvtep(
    order: str, fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """Its bridge has the gateway's MAC itself, whether pyvtep has announced it before or not."""
    mac = "00:00:5e:00:01:64"
    peers = [Peer("192.0.2.1", 65000)]
    far = frr_site(fabric, tmp_path, 2, bgp_config(65000, "192.0.2.2", peers))
    near = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"), "--anycast-gateway", GATEWAY)

    far.frr.wait_established("192.0.2.1")

    def own_entries() -> list[str]:
        return [each["ifname"] for each in kernel_fdb(far.router) if each["mac"] == mac]

    def give(site: Site) -> None:
        site.router.run("ip", "link", "set", site.bridge, "address", mac)
        address(site.router, site.bridge, f"{GATEWAY}/24")

    if order == "pyvtep first":
        give(near)
        wait_until(lambda: far.frr.remote_macs(VNI).get(mac) == near.vtep, "the MAC in FRR")
        give(far)
        # FRR has made it a sticky entry of its VXLAN device, and removes it together with that of
        # the bridge, which gets it again with its MAC.
        wait_until(lambda: own_entries() == [], "the removal of FRR's entries")
        far.router.run("ip", "link", "set", far.bridge, "address", far.bridge_mac)
        far.router.run("ip", "link", "set", far.bridge, "address", mac)
    else:
        give(far)
        give(near)
    wait_until(lambda: shown(near, "routes", mac), "the route of the gateway")
    with capture(near.router, tmp_path) as pcap:
        for site in (near, far):
            ping(site.host, GATEWAY)
            assert mac in site.host.run("ip", "neigh", "show", GATEWAY)
    assert own_entries() == [far.bridge]
    assert inner(pcap, f"ip.addr == {GATEWAY}") == []
