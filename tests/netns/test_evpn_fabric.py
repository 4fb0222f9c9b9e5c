"""pyvtep in BGP EVPN fabrics: with FRR and the kernel's VXLAN, with reflectors, and with GoBGP."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.netns.fabric import (
    Fabric,
    Frr,
    GoBgp,
    GoBgpNeighbor,
    Neighbor,
    add_bridge,
    bgp_config,
)
from tests.netns.hosts import Start, mac_of, ping, wait_until
from tests.netns.sites import (
    LEAF,
    VNI,
    OwnSite,
    Site,
    frr_site,
    join_mesh,
    own_site,
    ping_all,
    remote_macs,
    speaks,
    unbroken_pings,
)


def join_reflector(fabric: Fabric, start: Start, folder: Path) -> list[Site]:
    """Build three leaves in AS 65000, with FRR as a reflector, which is no leaf."""
    client = ("route-reflector-client",)
    clients = [Neighbor(f"192.0.2.{n}", 65000, evpn_lines=client) for n in (1, 2, 3)]
    Frr(fabric.router("spine", 9), folder, bgp_config(65000, "192.0.2.9", clients, evpn_lines=()))
    return _below_spine(fabric, start, folder)


def join_gobgp(fabric: Fabric, start: Start, folder: Path) -> list[Site]:
    """Build three leaves in AS 65000, with gobgpd as a reflector."""
    clients = [GoBgpNeighbor(f"192.0.2.{number}", 65000, client=True) for number in (1, 2, 3)]
    GoBgp(fabric.router("spine", 9), folder, 65000, "192.0.2.9", clients)
    return _below_spine(fabric, start, folder)


def _below_spine(fabric: Fabric, start: Start, folder: Path) -> list[Site]:
    spine = [Neighbor("192.0.2.9", 65000)]
    return [
        frr_site(fabric, folder, 1, bgp_config(65000, "192.0.2.1", spine, evpn_lines=LEAF)),
        own_site(fabric, start, 2, *speaks(65000, "192.0.2.9")),
        own_site(fabric, start, 3, *speaks(65000, "192.0.2.9")),
    ]


def join_ebgp(fabric: Fabric, start: Start, folder: Path) -> list[Site]:
    """Build three leaves, each in an AS of its own, below an FRR spine in another.

    One has an AS number of four octets.
    """
    keep = ("attribute-unchanged next-hop",)
    leaves = zip((1, 2, 3), (65001, 65002, 4200000003), strict=True)
    config = bgp_config(
        65100,
        "192.0.2.9",
        [Neighbor(f"192.0.2.{n}", asn, evpn_lines=keep) for n, asn in leaves],
        evpn_lines=(),
    )
    Frr(fabric.router("spine", 9), folder, config)
    spine = [Neighbor("192.0.2.9", 65100)]
    return [
        frr_site(fabric, folder, 1, bgp_config(65001, "192.0.2.1", spine, evpn_lines=LEAF)),
        own_site(fabric, start, 2, *speaks(65002, "192.0.2.9,asn=65100")),
        own_site(fabric, start, 3, *speaks(4200000003, "192.0.2.9")),
    ]


@pytest.mark.parametrize("join", [join_mesh, join_reflector, join_gobgp, join_ebgp])
def test_a_fabric_of_frr_and_two_pyvteps(
    join: Callable[[Fabric, Start, Path], list[Site]],
    fabric: Fabric,
    start: Start,
    tmp_path: Path,
) -> None:
    """Pings cross in all directions, and the tables of all three agree."""
    sites = join(fabric, start, tmp_path)
    ping_all(sites)
    others = {site.number: {s.vtep for s in sites if s is not site} for site in sites}
    ips = {s.bridge_ip: s.bridge_mac for s in sites}  # Those of MAC+IP routes.
    for site in sites:
        macs = remote_macs(sites, site)
        remote_ips = {ip: mac for ip, mac in ips.items() if ip != site.bridge_ip}
        agrees = partial(site.agrees, macs, others[site.number], remote_ips)
        wait_until(agrees, f"the tables of {site.vtep} to agree")


def test_a_tap_without_a_bridge(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """Its own MAC and addresses are announced, until it joins a bridge."""
    config = bgp_config(65000, "192.0.2.2", [Neighbor("192.0.2.1", 65000)], evpn_lines=LEAF)
    far = frr_site(fabric, tmp_path, 2, config)
    router = fabric.router("vtep1", 1)
    options = (
        "--vni",
        "100",
        "--tap",
        "vx0",
        "--address",
        "10.0.0.1/24",
        "--address",
        "fd00::1/64",
    )
    start(router, *options, *speaks(65000, "192.0.2.2"))
    ping(router, far.ip)
    ping(far.host, "10.0.0.1")
    own = mac_of(router)
    wait_until(lambda: far.frr.remote_macs(VNI) == {own: "192.0.2.1"}, "the MAC of the TAP")
    wait_until(lambda: {"10.0.0.1", "fd00::1"} <= far.frr.arp_cache(VNI).keys(), "its addresses")
    add_bridge(router, "br0", "02:00:00:00:00:01", "10.0.0.101/24")
    router.run("ip", "addr", "flush", "dev", "vx0")
    router.run("ip", "link", "set", "vx0", "master", "br0")
    bridge = {"02:00:00:00:00:01": "192.0.2.1"}
    wait_until(lambda: far.frr.remote_macs(VNI) == bridge, "the MAC of the bridge alone")
    ping(far.host, "10.0.0.101")
    assert not {"10.0.0.1", "fd00::1"} & far.frr.arp_cache(VNI).keys()


def test_two_pyvteps_over_ipv6(fabric: Fabric, start: Start) -> None:
    """Sessions and VXLAN over IPv6, which FRR 8.4 cannot as a VTEP: routes have IPv6 next hops."""
    first = own_site(fabric, start, 1, *speaks(65000, "2001:db8::2"))
    second = own_site(fabric, start, 2, *speaks(65000, "2001:db8::1"))
    ping_all([first, second])
    for site, other in ((first, 2), (second, 1)):
        vteps = {dst for destinations in site.fdb().values() for dst in destinations}
        assert vteps == {f"2001:db8::{other}"}


def test_reflectors_of_two_makes(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """FRR and gobgpd reflect the same routes. Each is missed only when the other one is gone."""
    numbers = (1, 2, 3)
    client = ("route-reflector-client",)
    clients = [Neighbor(f"192.0.2.{n}", 65000, evpn_lines=client) for n in numbers]
    config = bgp_config(65000, "192.0.2.8", clients, evpn_lines=())
    spine = Frr(fabric.router("spine8", 8), tmp_path, config)
    others = [GoBgpNeighbor(f"192.0.2.{n}", 65000, client=True) for n in numbers]
    gobgp = GoBgp(fabric.router("spine9", 9), tmp_path, 65000, "192.0.2.9", others)
    both = ("192.0.2.8", "192.0.2.9")
    peers = [Neighbor(one, 65000) for one in both]
    far = frr_site(fabric, tmp_path, 1, bgp_config(65000, "192.0.2.1", peers, evpn_lines=LEAF))
    near, third = (own_site(fabric, start, n, *speaks(65000, *both)) for n in (2, 3))
    sites = far, near, third
    (tmp_path / "far").mkdir()
    ping_all(sites)

    def sources(site: OwnSite, mac: str) -> set[str]:
        """Return the neighbours from which a MAC was received."""
        shown = json.loads(site.pyvtep.invoke(f"evpn show routes {mac} --json"))
        return {route["neighbor"] for route in shown}

    for site in (near, third):
        macs = remote_macs(sites, site)
        for mac in macs:
            wait_until(lambda s=site, m=mac: sources(s, m) == {*both}, f"{mac} twice")  # type: ignore[misc]
        assert site.macs() == macs
    with unbroken_pings(near, third, tmp_path), unbroken_pings(third, far, tmp_path / "far"):
        gobgp.process.kill()
        wait_until(lambda: sources(near, far.mac) == {both[0]}, "one reflector")
        wait_until(lambda: sources(third, near.mac) == {both[0]}, "one reflector")
    for site in (near, third):
        assert site.macs() == remote_macs(sites, site)
        assert json.loads(site.pyvtep.invoke("evpn show moves --json")) == []
    spine.kill_bgpd()
    wait_until(lambda: near.fdb() == third.fdb() == {}, "no routes")
    spine.start_bgpd()
    ping_all(sites)
