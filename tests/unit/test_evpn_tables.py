"""Which VTEP has each MAC: routes of peers, local MACs, moves, and who is told of what."""

from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from tests.unit.evpn_routes import (
    ASN,
    OWN,
    PEER,
    announced_text,
    attributes,
    distinguisher,
    fdb_text,
    flood_update,
    ip,
    mac,
    mac_route,
    route_text,
    segment,
    speaker,
    tables,
    target,
    update,
    withdrawal,
)
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.local_entries import BridgeChange
from vtep.evpn.tables import Tables
from vtep.wire.bgp.attributes import Pmsi
from vtep.wire.bgp.evpn import MulticastRoute, OtherRoute
from vtep.wire.bgp.update import Update
from vtep.wire.ethernet import MAC_ZERO

LOWER, HIGHER = "192.0.2.2", "192.0.2.9"
"""VTEPs with a lower and a higher address than ours."""


def announce(made: Tables, vtep: str, number: int = 1, now: float = 1.0, **changed: int) -> Changes:
    """Announce a MAC as a VTEP. Returns: the changes that follow."""
    made.update(PEER, update(vtep, mac_route(vtep, number), **changed), now)
    return made.take()


def withdraw(made: Tables, vtep: str, number: int = 1, now: float = 2.0) -> Changes:
    made.update(PEER, withdrawal(mac_route(vtep, number)), now)
    return made.take()


def settle_local(made: Tables, number: int = 1, now: float = 3.0, **flags: bool) -> Changes:
    made.mac_added(100, mac(number), now, **flags)
    return made.take()


class TestRemote:
    def test_route_becomes_an_fdb_entry_and_one_of_the_bridge(self) -> None:
        changes = announce(tables(), LOWER, sequence=3)
        assert fdb_text(changes) == [f"replace 01 {LOWER} seq 3"]
        assert changes.bridge == {100: [BridgeChange(mac(1))]}

    def test_next_route_of_the_same_kind_changes_nothing(self) -> None:
        made = tables()
        announce(made, LOWER)
        assert not announce(made, LOWER)

    @pytest.mark.parametrize("order", [(None, 1), (1, None)])
    def test_entry_stays_until_mac_and_mac_ip_are_withdrawn(self, order: tuple[int | None]) -> None:
        made = tables()
        routes = {None: mac_route(LOWER, 1), 1: mac_route(LOWER, 1, ip(1))}
        made.update(PEER, update(LOWER, *routes.values()), 1.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 01 {LOWER} seq 0"]
        assert changes.neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(1))]}
        found: list[Changes] = []
        for which in order:
            made.update(PEER, withdrawal(routes[which]), 2.0)
            found.append(made.take())
        assert [fdb_text(changes) for changes in found] == [[], [f"del 01 {LOWER}"]]
        assert found[1].bridge == {100: [BridgeChange(mac(1), is_present=False)]}
        with_neighbour = found[order.index(1)]
        assert with_neighbour.neighbours == {100: [EvpnNeighbourChange("del", ip(1), mac(1))]}

    def test_mac_of_two_vnis_moves_in_one(self) -> None:
        made = tables(segment(100), segment(200))
        for vni in (100, 200):
            made.update(PEER, update(LOWER, mac_route(LOWER, 1, vni=vni), vni=vni), 1.0)
        made.take()
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 1), sequence=1), 2.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 01 {HIGHER} seq 1"]
        assert fdb_text(changes, 200) == []
        made.update(PEER, withdrawal(mac_route(LOWER, 1)), 3.0)
        assert not made.take()
        assert [(view["vni"], view["vtep"]) for view in made.macs(4.0)] == [
            (100, HIGHER),
            (200, LOWER),
        ]

    def test_highest_sequence_wins_then_the_lowest_vtep(self) -> None:
        made = tables()
        announce(made, HIGHER, sequence=1)
        assert not announce(made, LOWER, sequence=0)
        assert fdb_text(announce(made, LOWER, sequence=1)) == [f"replace 01 {LOWER} seq 1"]
        assert fdb_text(announce(made, HIGHER, sequence=2)) == [f"replace 01 {HIGHER} seq 2"]
        assert fdb_text(withdraw(made, HIGHER)) == [f"replace 01 {LOWER} seq 1"]

    def test_sticky_mac_stays_whatever_others_announce(self) -> None:
        made = tables()
        announce(made, HIGHER, sticky=True)
        assert not announce(made, LOWER, sequence=7)
        (view,) = made.macs(2.0)
        assert (view["vtep"], view["sticky"]) == (HIGHER, True)

    def test_route_of_several_reflectors_counts_once(self) -> None:
        made = tables()
        for peer in ("10.0.0.1", "10.0.0.2"):
            made.update(peer, flood_update(LOWER), 1.0)
            made.update(peer, update(LOWER, mac_route(LOWER, 1)), 1.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 01 {LOWER} seq 0", f"append flood {LOWER}"]
        assert [(view["vtep"], view["macs"]) for view in made.vteps(2.0)] == [(LOWER, 1)]
        assert made.segments()[0]["macs"] == 1
        made.peer_down("10.0.0.1", 2.0)
        assert not made.take()
        made.peer_down("10.0.0.2", 2.0)
        assert fdb_text(made.take()) == [f"del 01 {LOWER}", f"del flood {LOWER}"]
        assert list(made.moves(3.0)) == []

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"next_hop": ip_address(OWN)}, "own-route"),
            ({"originator_id": IPv4Address(OWN)}, "router-id"),
            ({"as_path": (65001, ASN)}, "as-loop"),
        ],
    )
    def test_own_routes_that_come_back_are_ignored(
        self, changed: dict[str, Any], expected: str
    ) -> None:
        made = tables()
        made.update(PEER, update(LOWER, mac_route(LOWER, 1), **changed), 1.0)
        assert not made.take()
        (reason,) = made.not_installed()
        assert reason == expected
        assert [view["reason"] for view in made.routes(2.0, kind=2)] == [expected]
        assert len(made.problems()) == (expected != "own-route")

    def test_own_routes_that_a_spine_sends_back_are_no_hint(self) -> None:
        """A spine that replaces next hops sends them back with itself as the next hop."""
        made = tables()
        own = mac_route(OWN, 1), mac_route(OWN, 1, ip(1))
        made.update(PEER, update(PEER, *own, as_path=(65100, ASN)), 1.0)
        assert not made.take()
        assert made.not_installed() == {"own-route": 2}
        assert made.problems() == []

    def test_spine_that_replaces_the_next_hop(self) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER, next_hop=ip_address(PEER)), 1.0)
        made.update(PEER, update(PEER, mac_route(LOWER, 1)), 1.0)
        assert made.replaced_next_hops() == [{"neighbor": PEER, "vteps": [LOWER], "vnis": [100]}]
        # A route without an endpoint has the address of its originator.
        made.update(PEER, flood_update(LOWER, next_hop=ip_address(PEER), pmsi=None), 1.0)
        assert [each["vteps"] for each in made.replaced_next_hops()] == [[LOWER]]
        made.update(PEER, flood_update(LOWER), 2.0)
        assert made.replaced_next_hops() == []

    def test_neighbour_that_is_a_vtep_has_replaced_nothing(self) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER, next_hop=ip_address(PEER)), 1.0)
        made.update(PEER, flood_update(PEER), 1.0)
        assert made.replaced_next_hops() == []

    def test_route_with_an_esi_leads_to_its_next_hop(self) -> None:
        made = tables()
        route = mac_route(LOWER, 1, esi=bytes.fromhex("00112233445566778899"))
        made.update(PEER, update(LOWER, route), 1.0)
        assert fdb_text(made.take()) == [f"replace 01 {LOWER} seq 0"]
        (view,) = made.routes(2.0, kind=2)
        assert view["esi"] == "00:11:22:33:44:55:66:77:88:99"

    def test_change_between_vteps_of_one_ethernet_segment_is_no_move(self) -> None:
        made = tables(duplicate_moves=0)
        esi = bytes.fromhex("00112233445566778899")
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 1, esi=esi)), 1.0)
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, esi=esi)), 2.0)
        assert fdb_text(made.take()) == [f"replace 01 {LOWER} seq 0"]
        assert made.moves(3.0) == []
        settle_local(made)
        assert len(made.moves(3.0)) == 1

    def test_any_ethernet_tag_is_accepted(self) -> None:
        made = tables()
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, tag=42)), 1.0)
        assert fdb_text(made.take()) == [f"replace 01 {LOWER} seq 0"]
        made.update(PEER, withdrawal(mac_route(LOWER, 1)), 2.0)
        assert not made.take(), "a route with another tag was withdrawn"
        made.update(PEER, withdrawal(mac_route(LOWER, 1, tag=42)), 2.0)
        assert fdb_text(made.take()) == [f"del 01 {LOWER}"]

    def test_vtep_of_another_ip_version_is_listed_but_not_used(self) -> None:
        made = tables(segment(100), segment(200, own=(OWN, "2001:db8::5")))
        for vni in (100, 200):
            made.update(PEER, flood_update("2001:db8::9", vni), 1.0)
            route = mac_route("2001:db8::9", 1, vni=vni)
            made.update(PEER, update("2001:db8::9", route, vni=vni), 1.0)
        changes = made.take()
        assert fdb_text(changes) == []
        assert fdb_text(changes, 200) == [
            "replace 01 2001:db8::9 seq 0",
            "append flood 2001:db8::9",
        ]
        assert made.not_installed() == {"ip-version": 2}
        views = list(made.routes(2.0, vni=100, mac=mac(1)))
        assert [(view["reason"], view["best"]) for view in views] == [("ip-version", False)]

    def test_group_macs_and_odd_next_hops_are_refused(self) -> None:
        made = tables()
        group = mac_route(LOWER, 1)._replace(mac=bytes.fromhex("01005e000001"))
        made.update(PEER, update(LOWER, group, mac_route(LOWER, 1)._replace(mac=MAC_ZERO)), 1.0)
        for number, vtep in enumerate(("0.0.0.0", "239.1.1.1", "127.0.0.1", "fe80::1", None)):
            made.update(PEER, update(vtep, mac_route(LOWER, number)), 1.0)
        made.update(PEER, update(LOWER, mac_route(LOWER, 10), encapsulations=frozenset({10})), 1.0)
        assert not made.take()
        assert made.not_installed() == {"encapsulation": 1, "mac": 2, "next-hop": 5}

    def test_link_local_next_hop_has_the_scope_of_its_session(self) -> None:
        made = tables(segment(own="fe80::5"))
        made.update("fe80::1%eth0", update("fe80::9", mac_route(LOWER, 1)), 1.0)
        assert fdb_text(made.take()) == ["replace 01 fe80::9%eth0 seq 0"]

    def test_other_types_are_counted(self) -> None:
        made = tables()
        others = (OtherRoute(5, b"a"), OtherRoute(5, b"b"), OtherRoute(1, b"a"))
        made.update(PEER, update(LOWER, *others), 1.0)
        made.update(PEER, withdrawal(others[0], OtherRoute(4, b"a")), 1.0)
        assert made.ignored() == {"1": 1, "5": 1}
        made.peer_down(PEER, 2.0)
        assert made.ignored() == {}

    def test_end_of_the_session_of_a_removed_peer_leaves_nothing(self) -> None:
        made = tables()
        announce(made, LOWER)
        made.peer_removed(PEER, 2.0)
        assert fdb_text(made.take()) == [f"del 01 {LOWER}"]
        made.peer_down(PEER, 3.0, 60.0)
        assert not made.take()
        assert PEER not in made._ribs


class TestTargets:
    def test_both_derived_forms_of_any_as_are_imported(self) -> None:
        made = tables()
        texts = ("65000:100", "7:100", f"65000:{0x10000000 | 100}")
        for number, text in enumerate(texts):
            targets = frozenset({target(text)})
            made.update(PEER, update(LOWER, mac_route(LOWER, number), route_targets=targets), 1.0)
        assert len(fdb_text(made.take())) == 3

    def test_routes_of_no_vni_are_listed_by_vtep(self) -> None:
        made = tables()
        targets = frozenset({target("65001:200")})
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 1), route_targets=targets), 1.0)
        made.update(PEER, flood_update(HIGHER, route_targets=targets), 1.0)
        assert not made.take()
        unmatched = {
            "neighbor": PEER,
            "vtep": HIGHER,
            "route_targets": ["65001:200"],
            "import_target": "65001:200",
            "vnis": [100],
        }
        assert made.unmatched() == [unmatched]
        made.configure({100: segment(import_targets=targets)}, 2.0)
        assert fdb_text(made.take()) == [f"replace 01 {HIGHER} seq 0", f"append flood {HIGHER}"]
        assert made.unmatched() == []
        made.configure({100: segment()}, 3.0)
        assert fdb_text(made.take()) == [f"del 01 {HIGHER}", f"del flood {HIGHER}"]
        assert made.unmatched() == [unmatched]

    def test_label_that_contradicts_a_derived_target(self) -> None:
        made = tables(segment(100), segment(200))
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, label=200)), 1.0)
        assert not made.take()
        assert made.not_installed() == {"label": 1}
        assert made.label_conflicts() == [
            {
                "neighbor": PEER,
                "vtep": LOWER,
                "vni": 100,
                "label": 200,
                "route_targets": ["65000:100"],
            }
        ]

    def test_label_decides_between_vnis_with_one_target(self) -> None:
        bundle = frozenset({target("65000:7")})
        made = tables(*(segment(vni, import_targets=bundle) for vni in (100, 200)))
        for label, tag in ((200, 20), (300, 0)):
            route = mac_route(LOWER, 1, label=label, tag=tag)
            made.update(PEER, update(LOWER, route, route_targets=bundle), 1.0)
        changes = made.take()
        assert list(changes.fdb) == [200]
        assert made.not_installed() == {"label": 1}

    def test_label_of_a_configured_target_is_the_vni_to_send_with(self) -> None:
        targets = frozenset({target("65000:7")})
        made = tables(segment(import_targets=targets))
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, label=7), route_targets=targets), 1.0)
        pmsi = Pmsi(0, 6, 7, ip_address(LOWER))
        made.update(PEER, flood_update(LOWER, route_targets=targets, pmsi=pmsi), 1.0)
        assert fdb_text(made.take()) == [
            f"replace 01 {LOWER} seq 0 vni 7",
            f"append flood {LOWER} vni 7",
        ]
        tagged = mac_route(LOWER, 2, label=7, tag=5)
        made.update(PEER, update(LOWER, tagged, route_targets=targets), 1.0)
        assert not made.take(), "a VLAN of a bundle is not ours"


class TestFlooding:
    def test_last_type_3_withdrawn_ends_it(self) -> None:
        made = tables()
        route = MulticastRoute(distinguisher(LOWER, 100), 0, ip_address(LOWER))
        other = route._replace(ethernet_tag=5)
        made.update(PEER, flood_update(LOWER), 1.0)
        made.update(PEER, Update((other,), attributes=attributes(LOWER)), 1.0)
        assert fdb_text(made.take()) == [f"append flood {LOWER}"]
        made.update(PEER, withdrawal(route), 2.0)
        assert not made.take()
        made.update(PEER, withdrawal(other), 2.0)
        assert fdb_text(made.take()) == [f"del flood {LOWER}"]

    def test_endpoint_of_the_tunnel_is_the_destination(self) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER, next_hop=ip_address(HIGHER)), 1.0)
        assert fdb_text(made.take()) == [f"append flood {LOWER}"]

    @pytest.mark.parametrize(
        "pmsi", [None, Pmsi(0, 6, 100, None), Pmsi(0, 6, 100, ip_address("::"))]
    )
    def test_next_hop_is_the_destination_without_an_endpoint(self, pmsi: Pmsi | None) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER, pmsi=pmsi), 1.0)
        assert fdb_text(made.take()) == [f"append flood {LOWER}"]

    def test_other_tunnels_than_unicast_are_refused(self) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER, pmsi=Pmsi(0, 3, 100, None)), 1.0)
        assert not made.take()
        assert made.not_installed() == {"tunnel-type": 1}

    def test_changed_label_replaces_the_destination(self) -> None:
        targets = frozenset({target("65000:7")})
        made = tables(segment(import_targets=targets))
        for label in (100, 7):
            pmsi = Pmsi(0, 6, label, ip_address(LOWER))
            made.update(PEER, flood_update(LOWER, route_targets=targets, pmsi=pmsi), 1.0)
            changes = made.take()
        assert fdb_text(changes) == [f"del flood {LOWER}", f"append flood {LOWER} vni 7"]


class TestLocal:
    def test_vni_announces_its_flood_route_and_local_macs(self) -> None:
        made = Tables(speaker())
        made.configure({100: segment()}, 0.0)
        made.mac_added(100, mac(1), 1.0)
        made.neighbour_added(100, ip(1), mac(1), 1.0, router=True)
        made.neighbour_added(100, ip(2), mac(2), 1.0)
        announced = made.take().announce
        assert announced_text(announced) == [
            "mac 01 seq 0",
            "mac 01 10.9.0.1 seq 0 router",
            f"flood {OWN} seq 0",
        ]
        assert announced[0].attributes == attributes(OWN)
        assert announced[2].attributes.pmsi == Pmsi(0, 6, 100, ip_address(OWN))
        assert announced_text(made.own_routes()) == [
            f"flood {OWN} seq 0",
            "mac 01 seq 0",
            "mac 01 10.9.0.1 seq 0 router",
        ]
        assert made.segments()[0]["announced"] == 3
        made.mac_removed(100, mac(1), 2.0)
        assert list(map(route_text, made.take().withdraw)) == ["mac 01", "mac 01 10.9.0.1"]
        made.segment_lost(100, 3.0)
        assert not made.take()

    def test_address_that_gets_another_mac(self) -> None:
        made = tables()
        for number in (1, 2):
            settle_local(made, number)
        made.neighbour_added(100, ip(1), mac(1), 1.0)
        made.take()
        made.neighbour_added(100, ip(1), mac(2), 2.0)
        changes = made.take()
        assert list(map(route_text, changes.withdraw)) == ["mac 01 10.9.0.1"]
        assert announced_text(changes.announce) == ["mac 02 10.9.0.1 seq 0"]
        made.neighbour_removed(100, ip(1), 3.0)
        assert list(map(route_text, made.take().withdraw)) == ["mac 02 10.9.0.1"]

    def test_move_to_this_host_exceeds_the_sequence_of_the_remote(self) -> None:
        made = tables()
        announce(made, LOWER, sequence=4)
        changes = settle_local(made)
        assert announced_text(changes.announce) == ["mac 01 seq 5"]
        assert fdb_text(changes) == [f"del 01 {LOWER}"]
        assert not withdraw(made, LOWER)

    def test_move_from_this_host(self) -> None:
        made = tables()
        settle_local(made)
        made.neighbour_added(100, ip(1), mac(1), 1.0)
        made.take()
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 1), sequence=1), 4.0)
        changes = made.take()
        assert list(map(route_text, changes.withdraw)) == ["mac 01", "mac 01 10.9.0.1"]
        assert fdb_text(changes) == [f"replace 01 {HIGHER} seq 1"]
        assert changes.bridge == {100: [BridgeChange(mac(1))]}
        assert announced_text(settle_local(made).announce) == [
            "mac 01 seq 2",
            "mac 01 10.9.0.1 seq 2",
        ]

    def test_equal_sequence_is_a_tie_that_the_lowest_vtep_wins(self) -> None:
        made = tables()
        settle_local(made)
        assert not announce(made, HIGHER)
        changes = announce(made, LOWER)
        assert list(map(route_text, changes.withdraw)) == ["mac 01"]
        assert fdb_text(changes) == [f"replace 01 {LOWER} seq 0"]

    def test_remote_behind_in_sequence_changes_nothing(self) -> None:
        made = tables()
        announce(made, LOWER, sequence=1)
        settle_local(made)
        assert not announce(made, LOWER, sequence=1)
        assert not announce(made, HIGHER, sequence=1)

    def test_silent_move_leads_to_the_new_place_when_the_old_one_forgets(self) -> None:
        made = tables()
        settle_local(made)
        made.mac_removed(100, mac(1), 4.0)
        assert list(map(route_text, made.take().withdraw)) == ["mac 01"]
        assert fdb_text(announce(made, HIGHER)) == [f"replace 01 {HIGHER} seq 0"]

    def test_static_mac_is_sticky_and_never_lost(self) -> None:
        made = tables()
        announce(made, LOWER, sequence=4)
        changes = settle_local(made, static=True)
        assert announced_text(changes.announce) == ["mac 01 seq 0 sticky"]
        changes = announce(made, LOWER, sequence=5)
        assert not changes.fdb
        assert not changes.withdraw
        # It was reported at the first conflict.
        assert changes.log == []

    def test_sticky_remote_mac_seen_here_stays_remote(self) -> None:
        made = tables()
        announce(made, HIGHER, sticky=True)
        changes = settle_local(made)
        assert not changes.announce
        assert not changes.fdb
        # The bridge has learned it on a local port, which is to be undone.
        assert changes.bridge == {100: [BridgeChange(mac(1), sticky=True)]}
        assert "02:00:00:00:00:01 is local, and 192.0.2.9 announces it as sticky" in changes.log[0]
        assert not withdraw(made, HIGHER).announce

    def test_own_mac_of_the_host_moves_here_once(self) -> None:
        """An address that fails over from bridge to bridge is followed; a duplicate stays."""
        made = tables()
        announce(made, LOWER, sequence=4)
        changes = settle_local(made, own=True)
        assert announced_text(changes.announce) == ["mac 01 seq 5"]
        assert fdb_text(changes) == [f"del 01 {LOWER}"]
        # A move, so far: the remote is about to withdraw its route.
        assert changes.log == []
        changes = announce(made, LOWER, sequence=6)
        assert not changes.announce
        assert not changes.withdraw
        assert not changes.fdb
        assert f"01 is a MAC of this host itself, and {LOWER} announces it too" in changes.log[0]
        (duplicate,) = made.duplicates(3.0)
        assert (duplicate["state"], duplicate["vteps"]) == ("conflict", ["local", LOWER])
        # Reported again, as the device has another address: the number stays.
        assert not settle_local(made, own=True).announce
        withdraw(made, LOWER)
        assert made.duplicates(3.0) == []

    def test_own_mac_that_leaves_the_host_follows_the_remote(self) -> None:
        made = tables()
        settle_local(made, own=True)
        announce(made, HIGHER, sequence=1)
        made.mac_removed(100, mac(1), 4.0)
        changes = made.take()
        assert list(map(route_text, changes.withdraw)) == ["mac 01"]
        assert fdb_text(changes) == [f"replace 01 {HIGHER} seq 1"]
        assert announced_text(settle_local(made, own=True).announce) == ["mac 01 seq 2"]

    def test_local_mac_that_becomes_static(self) -> None:
        made = tables()
        settle_local(made)
        assert announced_text(settle_local(made, static=True).announce) == ["mac 01 seq 0 sticky"]
        assert announced_text(settle_local(made).announce) == ["mac 01 seq 0"]

    def test_anycast_gateway_stays_local_everywhere(self) -> None:
        made = tables(segment(gateways=frozenset({ip(1)})))
        settle_local(made, gateway=True, own=True)
        made.neighbour_added(100, ip(1), mac(1), 1.0)
        assert announced_text(made.take().announce) == ["mac 01 10.9.0.1 seq 0 gateway"]
        routes = (mac_route(LOWER, 1), mac_route(LOWER, 1, ip(1)), mac_route(LOWER, 2, ip(1)))
        made.update(PEER, update(LOWER, *routes, default_gateway=True, sequence=3), 2.0)
        assert not made.take()
        assert made.not_installed() == {"anycast-gateway": 2}

    def test_address_of_the_anycast_gateway_is_never_a_remote_neighbour(self) -> None:
        made = tables(segment(gateways=frozenset({ip(1)})))
        made.update(PEER, update(LOWER, mac_route(LOWER, 2, ip(1))), 2.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 02 {LOWER} seq 0"]
        assert not changes.neighbours
        made.configure({100: segment()}, 3.0)
        assert made.take().neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(2))]}

    def test_gateway_of_another_address_is_used(self) -> None:
        made = tables(segment(gateways=frozenset({ip(1)})))
        made.update(PEER, update(LOWER, mac_route(LOWER, 2, ip(2)), default_gateway=True), 2.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 02 {LOWER} seq 0"]
        assert changes.neighbours == {100: [EvpnNeighbourChange("replace", ip(2), mac(2))]}

    def test_local_events_of_other_vnis_and_odd_addresses_are_ignored(self) -> None:
        made = tables()
        made.mac_added(7, mac(1), 1.0)
        made.mac_removed(7, mac(1), 1.0)
        made.neighbour_added(7, ip(1), mac(1), 1.0)
        made.neighbour_removed(7, ip(1), 1.0)
        made.segment_lost(7, 1.0)
        made.reinstall(7)
        made.restore_stale(7, {}, [], {}, [], 1.0)
        made.mac_added(100, MAC_ZERO, 1.0)
        made.mac_added(100, bytes.fromhex("01005e000001"), 1.0)
        made.neighbour_added(100, ip_address("ff02::1"), mac(1), 1.0)
        assert not made.take()


class TestNeighbours:
    def test_none_without_suppression(self) -> None:
        made = tables(segment(proxy=False))
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, ip(1))), 1.0)
        assert not made.take().neighbours
        made.configure({100: segment()}, 2.0)
        assert made.take().neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(1))]}

    def test_router_flag(self) -> None:
        made = tables()
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, ip(1)), router=True), 1.0)
        assert made.take().neighbours == {
            100: [EvpnNeighbourChange("replace", ip(1), mac(1), router=True)]
        }

    def test_neighbour_follows_its_mac(self) -> None:
        made = tables()
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, ip(1))), 1.0)
        made.take()
        # The MAC has moved; the route of its address at the old place is out of date.
        assert announce(made, HIGHER, sequence=1).neighbours == {
            100: [EvpnNeighbourChange("del", ip(1), mac(1))]
        }
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 1, ip(1)), sequence=1), 2.0)
        assert made.take().neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(1))]}

    def test_latest_of_two_macs_with_one_address(self) -> None:
        made = tables()
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, ip(1))), 1.0)
        made.take()
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 2, ip(1))), 2.0)
        assert made.take().neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(2))]}

    def test_address_of_a_local_mac_is_not_installed(self) -> None:
        made = tables()
        settle_local(made)
        made.neighbour_added(100, ip(1), mac(1), 1.0)
        made.update(PEER, update(LOWER, mac_route(LOWER, 2, ip(1))), 1.0)
        assert not made.take().neighbours
        made.mac_removed(100, mac(1), 2.0)
        assert made.take().neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(2))]}


class TestDuplicates:
    def ping_pong(self, made: Tables, moves: int, start: float = 10.0) -> list[Changes]:
        """Move a MAC between this host, where it was first, and another one."""
        found = [settle_local(made, now=start)]
        sequence = 0
        for number in range(1, moves + 1):
            now = start + number
            if number % 2:
                sequence += 1
                found.append(announce(made, HIGHER, now=now, sequence=sequence))
            else:
                found.append(settle_local(made, now=now))
                sequence += 1
        return found

    def test_six_moves_are_reported_once(self) -> None:
        made = tables()
        found = self.ping_pong(made, 8)
        assert [bool(changes.log) for changes in found] == [False] * 6 + [True] + [False] * 2
        assert (
            found[6]
            .log[0]
            .startswith(
                "vni 100: 02:00:00:00:00:01 has moved more than 5 times in 180 s, last from "
                "192.0.2.9 to this host: two hosts have this MAC"
            )
        )
        assert announced_text(found[8].announce) == ["mac 01 seq 8"]
        (duplicate,) = made.duplicates(20.0)
        assert (duplicate["state"], duplicate["moves"]) == ("warned", 6)
        assert duplicate["vteps"] == ["local", HIGHER]
        assert len(made.moves(20.0)) == 8
        assert made.moves(20.0)[0] == {
            "vni": 100,
            "mac": "02:00:00:00:00:01",
            "old": HIGHER,
            "new": None,
            "sequence": 8,
            "age": 2.0,
        }
        assert [view["state"] for view in made.macs(20.0)] == ["duplicate"]

    def test_warning_ends_after_a_time_without_moves(self) -> None:
        made = tables()
        self.ping_pong(made, 6)
        assert made.tick(20.0) == 16.0 + 180.0
        assert made.duplicates(20.0)
        assert made.tick(196.0) is None
        assert made.duplicates(196.0) == []

    def test_held_mac_stays_where_it_was(self) -> None:
        made = tables(duplicate_mac="hold")
        found = self.ping_pong(made, 6)
        # The sixth move, to this host, does not happen.
        assert not found[6].announce
        assert not found[6].fdb
        assert "it is held at 192.0.2.9 for 540 s" in found[6].log[0]
        assert not announce(made, LOWER, sequence=100)
        assert [(view["vtep"], view["state"]) for view in made.macs(20.0)] == [(HIGHER, "held")]
        assert made.clear_duplicate(mac(2), None, 20.0) == 0
        assert made.clear_duplicate(mac(1), 100, 20.0) == 1
        assert fdb_text(made.take()) == [f"replace 01 {LOWER} seq 100"]

    def test_held_mac_is_released_after_a_time(self) -> None:
        made = tables(duplicate_mac="hold")
        self.ping_pong(made, 6)
        assert made.tick(20.0) == 16.0 + 540.0
        assert not made.take()
        made.tick(556.0)
        changes = made.take()
        assert announced_text(changes.announce) == ["mac 01 seq 6"]
        assert fdb_text(changes) == [f"del 01 {HIGHER}"]

    def test_held_mac_that_vanishes_is_installed_nowhere(self) -> None:
        made = tables(duplicate_mac="hold")
        self.ping_pong(made, 6)
        announce(made, LOWER, sequence=100)
        assert fdb_text(withdraw(made, HIGHER)) == [f"del 01 {HIGHER}"]
        assert not withdraw(made, LOWER)
        made.mac_removed(100, mac(1), 20.0)
        assert not made.take()
        # Its place may have it again.
        assert fdb_text(announce(made, HIGHER, sequence=9)) == [f"replace 01 {HIGHER} seq 9"]

    def test_mac_held_at_this_host(self) -> None:
        made = tables(duplicate_mac="hold", duplicate_moves=2)
        found = self.ping_pong(made, 3)
        assert not found[3].withdraw
        assert not found[3].fdb
        made.mac_removed(100, mac(1), 20.0)
        assert list(map(route_text, made.take().withdraw)) == ["mac 01"]
        made.configure({100: segment()}, 21.0, speaker())
        assert fdb_text(made.take()) == [f"replace 01 {HIGHER} seq 3"]

    def test_off(self) -> None:
        made = tables(duplicate_mac="off")
        assert not any(changes.log for changes in self.ping_pong(made, 9))
        assert made.duplicates(20.0) == []

    def test_moves_that_are_long_ago_do_not_count(self) -> None:
        made = tables()
        self.ping_pong(made, 5)
        assert not announce(made, HIGHER, now=500.0, sequence=9).log
        assert [view["moves"] for view in made.macs(500.0)] == [0]

    def test_moves_between_others_count_too(self) -> None:
        made = tables()
        logs = []
        for sequence in range(7):
            vtep = (LOWER, HIGHER)[sequence % 2]
            logs += announce(made, vtep, now=10.0 + sequence, sequence=sequence).log
        assert len(logs) == 1
        assert made.segments()[0]["moves"] == 6


class TestSessions:
    def start(self, retain: float | None) -> Tables:
        made = tables()
        made.peer_up(PEER, 1.0)
        for number in (1, 2):
            announce(made, LOWER, number)
        made.update(PEER, flood_update(LOWER), 1.0)
        made.update(PEER, Update(is_end_of_rib=True), 1.0)
        made.take()
        made.peer_down(PEER, 10.0, retain)
        return made

    def test_routes_go_with_the_session(self) -> None:
        made = self.start(None)
        assert len(fdb_text(made.take())) == 3

    def test_stale_routes_stay_until_end_of_rib(self) -> None:
        made = self.start(60.0)
        assert not made.take()
        assert [view["state"] for view in made.macs(11.0)] == ["stale", "stale"]
        assert [view["stale"] for view in made.vteps(11.0)] == [True]
        made.peer_up(PEER, 12.0, preserved=True)
        assert not announce(made, LOWER, 1)
        made.end_of_rib(PEER, 13.0)
        assert fdb_text(made.take()) == [f"del 02 {LOWER}", f"del flood {LOWER}"]
        assert made.tick(14.0) is None

    def test_stale_routes_stay_for_a_time(self) -> None:
        made = self.start(60.0)
        assert made.tick(11.0) == 70.0
        assert not made.take()
        assert made.tick(70.0) is None
        assert len(fdb_text(made.take())) == 3

    def test_peer_that_lost_its_state(self) -> None:
        made = self.start(60.0)
        made.peer_up(PEER, 12.0)
        assert len(fdb_text(made.take())) == 3

    def test_next_failure_removes_what_is_stale(self) -> None:
        made = self.start(60.0)
        made.peer_down(PEER, 11.0, 60.0)
        assert not made.take(), "there was no session in between"
        made.peer_up(PEER, 12.0, preserved=True)
        announce(made, LOWER, 1)
        made.peer_down(PEER, 13.0, 60.0)
        assert fdb_text(made.take()) == [f"del 02 {LOWER}", f"del flood {LOWER}"]
        made.peer_down(PEER, 14.0, None)
        assert fdb_text(made.take()) == [f"del 01 {LOWER}"]

    def test_removed_peer(self) -> None:
        made = self.start(60.0)
        made.peer_removed("10.0.0.99", 11.0)
        made.configure({100: segment()}, 11.0, speaker(neighbors=frozenset()))
        assert len(fdb_text(made.take())) == 3


class TestConfiguration:
    def test_removed_vni_withdraws_and_deletes_all(self) -> None:
        made = tables(segment(100), segment(200))
        settle_local(made)
        made.neighbour_added(100, ip(1), mac(1), 1.0)
        announce(made, LOWER, 2)
        made.configure({200: segment(200)}, 2.0)
        changes = made.take()
        assert fdb_text(changes) == [f"del 02 {LOWER}"]
        assert sorted(map(route_text, changes.withdraw)) == [
            f"flood {OWN}",
            "mac 01",
            "mac 01 10.9.0.1",
        ]
        assert made.unmatched()[0]["vnis"] == [100]
        made.configure({100: segment(), 200: segment(200)}, 3.0)
        assert fdb_text(made.take()) == [f"replace 02 {LOWER} seq 0"]

    def test_vni_removed_and_added_at_once(self) -> None:
        made = tables()
        made.configure({}, 1.0)
        made.configure({100: segment()}, 1.0)
        changes = made.take()
        assert changes.withdraw == []
        assert announced_text(changes.announce) == [f"flood {OWN} seq 0"]

    def test_other_distinguisher_or_address_announces_anew(self) -> None:
        made = tables()
        settle_local(made)
        made.configure({100: segment(rd=distinguisher(OWN, 7))}, 1.0)
        changes = made.take()
        assert len(changes.withdraw) == len(changes.announce) == 2
        made.configure({100: segment(rd=distinguisher(OWN, 7), own="192.0.2.6")}, 2.0)
        changes = made.take()
        assert list(map(route_text, changes.withdraw)) == [f"flood {OWN}"]
        assert announced_text(changes.announce) == ["mac 01 seq 0", "flood 192.0.2.6 seq 0"]
        assert made.segments()[0]["announced"] == 2

    def test_unchanged_settings_change_nothing(self) -> None:
        made = tables()
        settle_local(made)
        announce(made, LOWER, 2)
        made.configure({100: segment()}, 1.0)
        made.configure({100: segment(proxy=False)}, 1.0)
        assert not made.take()

    def test_without_an_address_nothing_is_announced_or_installed(self) -> None:
        made = tables(segment(own=()))
        made.mac_added(100, mac(2), 1.0)
        assert not announce(made, LOWER)
        made.configure({100: segment()}, 2.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 01 {LOWER} seq 0"]
        assert announced_text(changes.announce) == ["mac 02 seq 0", f"flood {OWN} seq 0"]

    def test_reinstall_repeats_all_entries(self) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER), 1.0)
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, ip(1))), 1.0)
        first = made.take()
        made.reinstall(100)
        again = made.take()
        assert again.fdb == first.fdb
        assert again.neighbours == first.neighbours
        assert not again.bridge
        assert not made.take()

    def test_reinstall_deletes_what_was_withdrawn_just_before(self) -> None:
        """An FDB of which a user has flushed a part has the entries still."""
        made = tables()
        made.update(PEER, flood_update(LOWER), 1.0)
        made.update(PEER, update(LOWER, mac_route(LOWER, 1, ip(1))), 1.0)
        (first,) = made.take().neighbours[100]
        made.update(PEER, withdrawal(mac_route(LOWER, 1, ip(1)), *flood_update(LOWER).announced), 2)
        made.reinstall(100)
        changes = made.take()
        assert fdb_text(changes) == [f"del 01 {LOWER}", f"del flood {LOWER}"]
        assert changes.neighbours[100] == [EvpnNeighbourChange("del", ip(1), first.mac)]
        assert made.segments()[0]["macs"] == made.segments()[0]["neighbours"] == 0

    def test_reinstall_replaces_a_destination_that_has_changed_just_before(self) -> None:
        made = tables()
        made.update(PEER, flood_update(LOWER), 1.0)
        announce(made, LOWER)
        made.update(PEER, update(HIGHER, mac_route(HIGHER, 1), sequence=1), 2.0)
        made.reinstall(100)
        assert fdb_text(made.take()) == [f"replace 01 {HIGHER} seq 1", f"append flood {LOWER}"]
        assert made.segments()[0]["macs"] == made.segments()[0]["vteps"] == 1


def test_objects_for_the_control_socket() -> None:
    vtep = ip_address(LOWER)
    assert EvpnFdbChange("replace", mac(1), vtep, 7, 3, sticky=True).params() == {
        "verb": "replace",
        "mac": "02:00:00:00:00:01",
        "dst": LOWER,
        "extern_learn": True,
        "dst_vni": 7,
        "sequence": 3,
        "sticky": True,
    }
    assert EvpnFdbChange("del", MAC_ZERO, vtep).params() == {
        "verb": "del",
        "mac": "00:00:00:00:00:00",
        "dst": LOWER,
        "extern_learn": True,
    }
    assert EvpnNeighbourChange("replace", ip(1), mac(1), router=True).params()["router"] is True
    assert "router" not in EvpnNeighbourChange("del", ip(1), mac(1)).params()


def test_lines_for_the_log_are_limited() -> None:
    made = tables()
    for number in range(50):
        announce(made, HIGHER, number, sticky=True)
    lines = [line for number in range(50) for line in settle_local(made, number).log]
    assert len(lines) == 5
    announce(made, HIGHER, 50, sticky=True)
    assert (
        settle_local(made, 50, now=60.0).log[0].endswith("(45 more lines like this were left out)")
    )
