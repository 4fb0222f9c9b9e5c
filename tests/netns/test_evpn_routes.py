"""EVPN routes of FRR and GoBGP: route targets, withdrawals, ARP suppression."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.netns.fabric import Fabric, Neighbor, bgp_config
from tests.netns.hosts import Start, capture, is_reachable, ping, tshark, wait_until
from tests.netns.sites import FLOOD, LEAF, VNI, Injector, OwnSite, frr_site, own_site, speaks

MAC, IP = "02:00:00:00:0c:01", "10.0.0.50"


def shown(site: OwnSite, *words: str) -> Any:
    """Return what `pyvtep evpn show` prints as JSON."""
    return json.loads(site.pyvtep.invoke(" ".join(("evpn", "show", *words, "--json"))))


@pytest.mark.parametrize("order", ["mac first", "mac+ip first"])
def test_a_mac_is_gone_with_its_last_route(
    order: str, fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """A MAC and a MAC+IP route are withdrawn in either order; then the type 3 route is."""
    site = own_site(fabric, start, 1, *speaks(65000, "192.0.2.9"))
    peer = Injector(fabric, tmp_path, "192.0.2.1")
    vtep = "192.0.2.8"
    peer.multicast("add", vtep)
    ips = [None, IP] if order == "mac first" else [IP, None]
    for ip in ips:
        peer.mac("add", MAC, ip, vtep=vtep)
    wait_until(lambda: site.fdb() == {FLOOD: {vtep}, MAC: {vtep}}, "both routes")
    wait_until(lambda: site.neighbours() == {IP: MAC}, "the address")
    peer.mac("del", MAC, ips[0], vtep=vtep)
    if ips[0]:
        wait_until(lambda: site.neighbours() == {}, "no address")
    else:
        wait_until(lambda: len(shown(site, "routes", MAC)) == 1, "one route")
        assert site.neighbours() == {IP: MAC}
    assert site.macs() == {MAC: vtep}
    peer.mac("del", MAC, ips[1], vtep=vtep)
    wait_until(lambda: site.fdb() == {FLOOD: {vtep}}, "no MAC")
    wait_until(lambda: site.neighbours() == {}, "no address")
    # A broadcast leaves for the VTEP until its route is withdrawn.
    sent = site.pyvtep.client_counter("tx_datagrams")
    is_reachable(site.host, "10.0.0.77")
    assert site.pyvtep.client_counter("tx_datagrams") > sent
    peer.multicast("del", vtep)
    wait_until(lambda: site.fdb() == {}, "no VTEP")
    sent, dropped = (site.pyvtep.client_counter(n) for n in ("tx_datagrams", "drop_no_remote"))
    # Another address: the host does not ask for the same again at once.
    is_reachable(site.host, "10.0.0.78")
    assert site.pyvtep.client_counter("tx_datagrams") == sent
    assert site.pyvtep.client_counter("drop_no_remote") > dropped


def test_route_targets_of_both_derived_forms_match(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """AS:VNI and AS:0x10000000|VNI, of any AS. Any other is reported, with its VTEP."""
    site = own_site(fabric, start, 1, *speaks(65000, "192.0.2.9"))
    peer = Injector(fabric, tmp_path, "192.0.2.1")
    targets = ("65000:100", "65000:268435556", "64999:100", "65001:200", "65000:101")
    for number, target in enumerate(targets, 1):
        vtep = f"192.0.2.{20 + number}"
        peer.multicast("add", vtep, target)
        peer.mac("add", f"02:00:00:00:0c:{number:02x}", vtep=vtep, target=target)
    accepted = {f"02:00:00:00:0c:{n:02x}": f"192.0.2.{20 + n}" for n in (1, 2, 3)}
    wait_until(lambda: site.macs() == accepted, "the routes that match")
    assert site.fdb()[FLOOD] == set(accepted.values())

    def unmatched() -> set[tuple[str, str]]:
        summary = shown(site)
        return {
            (one["vtep"], target) for one in summary["unmatched"] for target in one["route_targets"]
        }

    wait_until(
        lambda: unmatched() == {("192.0.2.24", "65001:200"), ("192.0.2.25", "65000:101")},
        "the route targets that do not match",
    )
    text = site.pyvtep.run("evpn", "show")
    assert "192.0.2.24" in text
    assert "65001:200" in text
    # Import one of them by hand: then the routes that wait are taken.
    site.pyvtep.run("set", "--route-target-import", "65001:200")
    wait_until(lambda: site.macs() == {"02:00:00:00:0c:04": "192.0.2.24"}, "the imported route")


def test_frr_with_route_targets_of_rfc_8365(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """FRR imports only that form then, so this host has to export it."""
    evpn = (*LEAF, "autort rfc8365-compatible")
    peers = [Neighbor("192.0.2.1", 65000)]
    far = frr_site(fabric, tmp_path, 2, bgp_config(65000, "192.0.2.2", peers, evpn_lines=evpn))
    site = own_site(
        fabric,
        start,
        1,
        *speaks(65000, "192.0.2.2"),
        *("--route-target-export", "65000:268435556", "--route-target-export", "65000:100"),
    )
    ping(site.host, far.ip)
    ping(far.host, site.ip)
    wait_until(lambda: far.frr.remote_macs(VNI).get(site.mac) == site.vtep, "the MAC in FRR")
    wait_until(lambda: site.macs().get(far.mac) == far.vtep, "the MAC of FRR")


def test_arp_and_nd_are_answered_from_routes(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """Requests for the addresses of FRR's MAC+IP routes do not cross the underlay."""
    peers = [Neighbor("192.0.2.1", 65000)]
    config = bgp_config(65000, "192.0.2.2", peers, evpn_lines=LEAF)
    far = frr_site(fabric, tmp_path, 2, config)
    far.router.run("ip", "addr", "add", "fd00::102/64", "dev", far.bridge, "nodad")
    site = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"))
    site.host.run("ip", "addr", "add", "fd00::1/64", "dev", "eth0", "nodad")
    wait_until(lambda: site.neighbours().get(far.bridge_ip) == far.bridge_mac, "the route")
    wait_until(lambda: "fd00::102" in site.neighbours(), "the IPv6 route")
    with capture(site.router, tmp_path) as pcap:
        for address in (far.bridge_ip, "fd00::102"):
            ping(site.host, address)
            neighbour = site.host.run("ip", "neigh", "show", address)
            assert far.bridge_mac in neighbour
    asked = "arp.opcode == 1 or icmpv6.type == 135"
    targets = tshark(
        pcap,
        "-Y",
        asked,
        "-T",
        "fields",
        "-e",
        "arp.dst.proto_ipv4",
        "-e",
        "icmpv6.nd.ns.target_address",
    )
    assert far.bridge_ip not in "\n".join(targets)
    assert "fd00::102" not in "\n".join(targets)


def test_an_anycast_gateway_is_the_nearest_one(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """FRR and this host have the same gateway: each answers its own hosts, and keeps its MAC."""
    gateway = "10.0.0.254"
    peers = [Neighbor("192.0.2.1", 65000)]
    evpn = ("advertise-all-vni", "advertise-default-gw")
    far = frr_site(fabric, tmp_path, 2, bgp_config(65000, "192.0.2.2", peers, evpn_lines=evpn))
    site = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"), "--anycast-gateway", gateway)
    wait_until(lambda: site.neighbours().get(far.bridge_ip) == far.bridge_mac, "a route of FRR")
    for leaf in (far, site):
        leaf.router.run("ip", "addr", "add", f"{gateway}/24", "dev", leaf.bridge)
    ping(site.host, far.ip)
    for leaf in (far, site):
        ping(leaf.host, gateway)
        assert leaf.bridge_mac in leaf.host.run("ip", "neigh", "show", gateway)

    def announced() -> list[dict[str, Any]]:
        routes = [one for one in shown(site, "routes", site.bridge_mac) if one["ip"] == gateway]
        return [one for one in routes if one["default_gateway"] and one["neighbor"] is None]

    wait_until(lambda: len(announced()) == 1, "the route of the gateway")
    assert gateway not in site.neighbours()
    assert site.bridge_mac not in site.macs()
    wait_until(lambda: far.frr.remote_macs(VNI).get(site.bridge_mac) == site.vtep, "it in FRR")


def test_gobgpd_is_a_second_peer(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """Beside FRR: it gets the own routes only, and the same route from both counts once."""
    peers = [Neighbor("192.0.2.1", 65000)]
    config = bgp_config(65000, "192.0.2.2", peers, evpn_lines=LEAF)
    far = frr_site(fabric, tmp_path, 2, config)
    site = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2", "192.0.2.9"))
    peer = Injector(fabric, tmp_path, "192.0.2.1")
    ping(site.host, far.ip)
    peer.multicast("add", far.vtep)
    peer.mac("add", far.mac, vtep=far.vtep)
    peer.mac("add", MAC, vtep="192.0.2.8")

    def own_routes() -> dict[tuple[str, str], dict[str, Any]]:
        """Return the routes of pyvtep in gobgpd, by MAC and IP address."""
        return {
            (route["nlri"]["value"].get("mac", ""), route["nlri"]["value"]["ip"]): route
            for route in peer.gobgp.routes()
            if route.get("neighbor-ip") == site.vtep
        }

    expected = {
        ("", site.vtep),
        (site.mac, "<nil>"),
        (site.bridge_mac, "<nil>"),
        (site.bridge_mac, site.bridge_ip),
    }
    wait_until(lambda: expected <= own_routes().keys(), "the own routes in gobgpd")
    for (mac, _), route in own_routes().items():
        assert far.mac != mac
        assert route["nlri"]["value"]["rd"] == {"type": 1, "admin": site.vtep, "assigned": VNI}
        said = json.dumps(route["attrs"])
        assert '"65000:100"' in said
        assert f'"nexthop": "{site.vtep}"' in said
        assert '"tunnel_type": 8' in said
    wait_until(lambda: site.macs().get(MAC) == "192.0.2.8", "the route of gobgpd")
    wait_until(lambda: len(shown(site, "routes", far.mac)) >= 2, "routes of both")
    assert site.fdb()[FLOOD] == {far.vtep}
    assert site.macs()[far.mac] == far.vtep
    # The route of FRR is still there when that of gobgpd is not.
    peer.mac("del", far.mac, vtep=far.vtep)
    peer.multicast("del", far.vtep)
    peer.mac("del", MAC, vtep="192.0.2.8")
    wait_until(lambda: MAC not in site.macs(), "the withdrawal")
    assert site.fdb()[FLOOD] == {far.vtep}
    assert site.macs()[far.mac] == far.vtep
    assert MAC not in far.frr.remote_macs(VNI)


def test_a_one_sided_route_target_is_named(fabric: Fabric, start: Start, tmp_path: Path) -> None:
    """FRR imports our routes, so its frames arrive, but exports a target that matches nothing."""
    peers = [Neighbor("192.0.2.1", 65000)]
    config = bgp_config(65000, "192.0.2.2", peers, evpn_lines=LEAF)
    far = frr_site(fabric, tmp_path, 2, config)
    targets = ("route-target export 65001:7", "route-target import 65000:100")
    far.frr.configure("router bgp 65000", "address-family l2vpn evpn", "vni 100", *targets)
    site = own_site(fabric, start, 1, *speaks(65000, "192.0.2.2"))
    wait_until(lambda: far.frr.flood_vteps(VNI) == {site.vtep}, "our VTEP in FRR")
    wait_until(lambda: shown(site)["unmatched"], "the routes of FRR")
    # An ARP request of FRR's host arrives, from an address that no route has made a remote.
    assert not is_reachable(far.host, site.ip)
    with site.pyvtep.client() as client:
        status = client.status()
    drops = status["segments"][0]["recent_drops"]
    (drop,) = (one for one in drops if one["reason"] == "source_unknown")
    assert (drop["last_source"], drop["detail"]) == (
        "192.0.2.2",
        "announces route targets 65001:7 by way of 192.0.2.2, which no VNI here imports",
    )
    (problem,) = status["problems"]
    assert problem["problem"] == "evpn-no-routes"
    assert "--route-target-import 65001:7" in problem["text"]
    site.pyvtep.run("set", "--route-target-import", "65001:7")
    ping(far.host, site.ip)
    with site.pyvtep.client() as client:
        wait_until(lambda: client.status()["problems"] == [], "no problem")
