"""Parts of the EVPN tables: route distinguishers, the memory of moves, and the views."""

from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.evpn_routes import (
    OWN,
    PEER,
    flood_update,
    ip,
    mac,
    mac_route,
    segment,
    tables,
    update,
    withdrawal,
)
from vtep.control.evpn_schema import EvpnRoute
from vtep.evpn.duplicates import Move, MoveTracker
from vtep.evpn.table_settings import allocate_distinguishers
from vtep.wire.bgp.communities import RouteTarget
from vtep.wire.bgp.evpn import RouteDistinguisher

ROUTER_ID = IPv4Address("192.0.2.1")
OTHER = "192.0.2.2"


class TestDistinguishers:
    def test_small_vnis_have_their_own_number(self) -> None:
        made = allocate_distinguishers(ROUTER_ID, [65636, 100, 131172])
        assert {vni: rd.text for vni, rd in made.items()} == {
            100: "192.0.2.1:100",
            65636: "192.0.2.1:101",
            131172: "192.0.2.1:102",
        }

    @given(st.lists(st.sets(st.integers(1, 1 << 24), max_size=8), max_size=4))
    def test_they_are_unique_and_stay(self, steps: list[set[int]]) -> None:
        present: dict[int, RouteDistinguisher] = {}
        for vnis in steps:
            made = allocate_distinguishers(ROUTER_ID, vnis, present)
            assert set(made) == vnis
            assert len(set(made.values())) == len(vnis)
            for vni in vnis & set(present):
                assert made[vni] == present[vni]
            present = made

    def test_those_of_another_router_id_or_by_hand_are_not_kept(self) -> None:
        present = {5: RouteDistinguisher.of(IPv4Address("192.0.2.9"), 6)}
        assert allocate_distinguishers(ROUTER_ID, [5], present)[5].text == "192.0.2.1:5"

    def test_those_of_other_vnis_are_avoided(self) -> None:
        configured = [RouteDistinguisher.parse(text) for text in ("192.0.2.1:100", "65000:101")]
        made = allocate_distinguishers(ROUTER_ID, [100, 101], {}, configured)
        assert {vni: rd.text for vni, rd in made.items()} == {
            100: "192.0.2.1:101",
            101: "192.0.2.1:102",
        }
        # Also one that a VNI has at present, and only that VNI gets another one.
        present = {vni: RouteDistinguisher.of(ROUTER_ID, vni) for vni in (100, 101)}
        made = allocate_distinguishers(ROUTER_ID, [100, 101], present, configured)
        assert {vni: rd.text for vni, rd in made.items()} == {
            100: "192.0.2.1:102",
            101: "192.0.2.1:101",
        }

    def test_too_many(self) -> None:
        with pytest.raises(ValueError, match="more than 65536 VNIs"):
            allocate_distinguishers(ROUTER_ID, range(1, 65538))


class TestMoveTracker:
    def move(self, number: int, at: float) -> Move:
        return Move(100, number.to_bytes(6), ip_address(OTHER), None, 0, at)

    def test_memory_is_bounded(self) -> None:
        tracker = MoveTracker("hold", 0, 180.0)
        for number in range(5000):
            tracker.note(self.move(number, float(number) / 1000), is_gone=False)
        assert len(tracker._moves) == 4096
        released, _ = tracker.expire(5.0)
        assert released == [(100, number.to_bytes(6)) for number in range(904)]
        assert len(tracker.duplicates) == 4096

    def test_old_moves_are_forgotten(self) -> None:
        tracker = MoveTracker("warn", 5, 180.0)
        tracker.note(self.move(1, 0.0), is_gone=False)
        tracker.note(self.move(2, 100.0), is_gone=False)
        assert tracker.expire(200.0) == ([], None)
        assert tracker.last_place((100, (1).to_bytes(6))) is None
        assert tracker.last_place((100, (2).to_bytes(6))) == (None,)

    def test_higher_limit_counts_for_moves_before(self) -> None:
        tracker = MoveTracker("warn", 3, 180.0)
        for at in range(3):
            assert not tracker.note(self.move(1, float(at)), is_gone=False)
        assert tracker.configure("warn", 5, 180.0) == []
        found = [tracker.note(self.move(1, float(at)), is_gone=False) for at in range(3, 6)]
        assert [line is not None for line in found] == [False, False, True]
        assert tracker.configure("off", 5, 180.0) == [(100, (1).to_bytes(6))]

    def test_moves_before_the_detection_time_do_not_count(self) -> None:
        tracker = MoveTracker("warn", 1, 180.0)
        for at in (0.0, 100.0):
            line = tracker.note(self.move(1, at), is_gone=False)
        assert line
        tracker.release((100, (1).to_bytes(6)))
        for at in (200.0, 390.0):
            assert not tracker.note(self.move(1, at), is_gone=False)

    def test_warning_ends_after_a_time_of_rest(self) -> None:
        tracker = MoveTracker("warn", 0, 180.0)
        key = 100, (1).to_bytes(6)
        tracker.note(self.move(1, 0.0), is_gone=False)
        assert tracker.expire(1.0) == ([], 180.0)
        tracker.note(self.move(1, 100.0), is_gone=False)
        # Not earlier than the time that was named, at which it is found to end later.
        assert tracker.expire(101.0) == ([], 180.0)
        assert tracker.expire(180.0) == ([], 280.0)
        tracker.note(self.move(2, 200.0), is_gone=False)
        assert tracker.expire(280.0) == ([key], 380.0)
        assert tracker.expire(380.0) == ([(100, (2).to_bytes(6))], None)

    def test_shorter_time_ends_duplicates_earlier(self) -> None:
        tracker = MoveTracker("hold", 0, 180.0)
        tracker.note(self.move(1, 0.0), is_gone=False)
        assert tracker.expire(1.0) == ([], 540.0)
        assert tracker.configure("hold", 0, 10.0) == []
        assert tracker.expire(2.0) == ([], 30.0)
        tracker.release((100, (1).to_bytes(6)))
        assert tracker.expire(3.0) == ([], None)

    def test_forgotten_vni(self) -> None:
        tracker = MoveTracker("hold", 0, 180.0)
        tracker.note(self.move(1, 0.0), is_gone=False)
        tracker.forget(7)
        assert tracker.duplicates
        tracker.forget(100)
        assert not tracker.duplicates

    def test_hold_at_the_new_place_if_the_old_one_is_gone(self) -> None:
        tracker = MoveTracker("hold", 0, 180.0)
        line = tracker.note(self.move(1, 0.0), is_gone=True)
        assert line
        assert "it is held at this host for 540 s" in line
        assert len(tracker.log) == 1


class TestViews:
    def test_routes_and_their_filters(self) -> None:
        made = tables(segment(100), segment(200))
        made.mac_added(100, mac(9), 1.0)
        made.take()
        made.update(PEER, flood_update(OTHER), 2.0)
        made.update(PEER, update(OTHER, mac_route(OTHER, 1, ip(1)), sequence=2), 3.0)
        made.update(PEER, update(OTHER, mac_route(OTHER, 1, vni=200), vni=200), 3.0)

        def texts(found: Iterable[EvpnRoute]) -> list[str]:
            return [f"{view['vni']} {view['type']} {view['neighbor']}" for view in found]

        own = ["100 3 None", "100 2 None", "200 3 None"]
        received = [f"100 3 {PEER}", f"100 2 {PEER}", f"200 2 {PEER}"]
        assert texts(made.routes(5.0)) == own + received
        assert texts(made.routes(5.0, vni=200)) == ["200 3 None", f"200 2 {PEER}"]
        assert texts(made.routes(5.0, kind=3)) == ["100 3 None", "200 3 None", received[0]]
        assert texts(made.routes(5.0, kind=5)) == []
        (view,) = made.routes(5.0, vni=100, mac=mac(1))
        assert view == {
            "neighbor": PEER,
            "vni": 100,
            "type": 2,
            "rd": "192.0.2.2:100",
            "ethernet_tag": 0,
            "mac": "02:00:00:00:00:01",
            "ip": "10.9.0.1",
            "esi": None,
            "label": 100,
            "next_hop": OTHER,
            "route_targets": ["65000:100"],
            "sequence": 2,
            "sticky": False,
            "default_gateway": False,
            "router": False,
            "best": True,
            "reason": None,
            "stale": False,
            "age": 2.0,
        }

    def test_flood_routes_of_type_3_without_a_tunnel_have_no_label(self) -> None:
        made = tables()
        made.update(PEER, flood_update(OTHER, pmsi=None), 2.0)
        views = [view for view in made.routes(5.0, kind=3) if view["neighbor"]]
        assert [(view["label"], view["best"]) for view in views] == [(None, True)]

    def test_macs_and_vteps(self) -> None:
        made = tables()
        made.mac_added(100, mac(9), 1.0, static=True)
        made.neighbour_added(100, ip(9), mac(9), 1.0)
        routes = (mac_route(OTHER, 1, ip(2)), mac_route(OTHER, 1, ip(1)), mac_route(OTHER, 2))
        made.update(PEER, update(OTHER, *routes), 3.0)
        assert list(made.macs(5.0, mac=mac(9))) == [
            {
                "vni": 100,
                "mac": "02:00:00:00:00:09",
                "vtep": None,
                "neighbor": None,
                "ip": ["10.9.0.9"],
                "sequence": 0,
                "sticky": True,
                "state": "active",
                "reason": None,
                "moves": 0,
                "age": 4.0,
            }
        ]
        (view,) = made.macs(5.0, mac=mac(1))
        assert (view["vtep"], view["ip"], view["age"]) == (OTHER, ["10.9.0.1", "10.9.0.2"], 2.0)
        assert list(made.macs(5.0, mac=mac(7))) == []
        assert list(made.macs(5.0, vni=7)) == []
        assert made.vteps(5.0) == [
            {
                "vni": 100,
                "vtep": OTHER,
                "neighbor": PEER,
                "flood": False,
                "macs": 2,
                "reason": None,
                "stale": False,
                "age": 2.0,
            }
        ]
        assert made.vteps(5.0, vni=7) == []

    def test_duplicates_of_several_vnis(self) -> None:
        made = tables(segment(100), segment(200), duplicate_moves=0)
        for vni in (100, 200):
            made.mac_added(vni, mac(1), 1.0)
            route = mac_route(OTHER, 1, vni=vni)
            made.update(PEER, update(OTHER, route, vni=vni, sequence=vni), 2.0)
        made.mac_added(200, mac(1), 3.0)
        found = made.duplicates(5.0)
        assert [(view["vni"], view["sequence"], view["vteps"]) for view in found] == [
            (100, 100, ["local", OTHER]),
            (200, 201, ["local", OTHER]),
        ]
        assert [view["vni"] for view in made.duplicates(5.0, vni=200)] == [200]
        made.mac_removed(200, mac(1), 4.0)
        made.update(PEER, withdrawal(mac_route(OTHER, 1, vni=200)), 4.0)
        assert [view["sequence"] for view in made.duplicates(5.0)] == [100, 0]

    def test_segment(self) -> None:
        made = tables(segment(import_targets=frozenset({RouteTarget.of(7, 100)})))
        assert made.segments() == [
            {
                "vni": 100,
                "rd": f"{OWN}:100",
                "import_targets": ["7:100"],
                "export_targets": ["65000:100"],
                "local": [OWN],
                "vteps": 0,
                "macs": 0,
                "neighbours": 0,
                "announced": 1,
                "conflicts": 0,
                "moves": 0,
            }
        ]
