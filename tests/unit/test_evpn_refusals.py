"""Routes that are not installed: by next hop, address or MAC, or since the daemon refuses them."""

from ipaddress import ip_address

import pytest

from tests.unit.evpn_routes import (
    OWN,
    PEER,
    fdb_text,
    flood_update,
    ip,
    mac,
    mac_route,
    segment,
    tables,
    update,
    withdrawal,
)
from vtep.evpn.changes import Changes, EvpnFdbChange, EvpnNeighbourChange
from vtep.evpn.local_entries import BridgeChange, LocalHost
from vtep.evpn.tables import Tables

VTEP, OTHER = "192.0.2.2", "192.0.2.9"
REASON = "dst 192.0.2.9: is an address of this host itself"


def refuse(made: Tables, changes: Changes, now: float = 2.0) -> Changes:
    """Refuse all changes that are given, as the daemon would. Returns: what follows."""
    for vni in {*changes.fdb, *changes.neighbours}:
        for change in (*changes.fdb.get(vni, ()), *changes.neighbours.get(vni, ())):
            made.note_refused(vni, change, REASON, now)
    return made.take()


@pytest.mark.parametrize(
    "vtep", ["240.0.0.1", "255.255.255.254", "192.0.2.255", "10.0.0.1", "2001:db8::1"]
)
def test_next_hops_that_no_other_host_has(vtep: str) -> None:
    """Reserved addresses, broadcasts of own subnets, and own addresses that are no VTEP's."""
    made = tables(segment(own=(OWN, "2001:db8::5")))
    own = map(ip_address, ("10.0.0.1", "2001:db8::1", OWN))
    made.set_host(LocalHost(frozenset(own), frozenset({ip_address("192.0.2.255")})), 0.5)
    made.update(PEER, flood_update(vtep), 1.0)
    made.update(PEER, update(vtep, mac_route(vtep, 1)), 1.0)
    assert not made.take()
    assert made.not_installed() == {"next-hop": 2}
    assert {view["reason"] for view in made.routes(2.0) if view["neighbor"]} == {"next-hop"}
    made.set_host(LocalHost(), 2.0)
    usable = vtep not in ("240.0.0.1", "255.255.255.254")
    assert bool(made.take().fdb) == usable, "the addresses of the host were not followed"


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", OWN),
        *("::", "::1", "ff02::1", "::ffff:10.0.0.2"),
    ],
)
def test_neighbours_that_no_host_can_be(address: str) -> None:
    """The MAC is used without the address, as hosts of the VNI may send to it."""
    made = tables()
    route = mac_route(VTEP, 1, ip_address(address))
    made.update(PEER, update(VTEP, route, mac_route(VTEP, 2, ip(2))), 1.0)
    changes = made.take()
    assert len(changes.fdb[100]) == 2
    assert changes.neighbours == {100: [EvpnNeighbourChange("replace", ip(2), mac(2))]}
    assert made.not_installed() == {"neighbour-ip": 1}
    (view,) = made.routes(2.0, mac=mac(1))
    assert (view["best"], view["reason"], view["ip"]) == (
        True,
        "neighbour-ip",
        str(ip_address(address)),
    )
    assert [view["ip"] for view in made.macs(2.0, mac=mac(1))] == [[]]
    assert made.segments()[0]["neighbours"] == 1
    made.update(PEER, withdrawal(route), 3.0)
    assert made.not_installed() == {}
    assert [change.verb for change in made.take().fdb[100]] == ["del"]


def test_mac_of_the_own_tap_is_never_remote() -> None:
    made = tables(segment(100), segment(200))
    made.set_host(LocalHost(tap_macs={100: mac(1)}), 0.5)
    for vni in (100, 200):
        made.update(PEER, update(VTEP, mac_route(VTEP, 1, ip(1), vni=vni), vni=vni), 1.0)
    changes = made.take()
    assert set(changes.fdb) == {200}
    assert set(changes.neighbours) == {200}
    assert made.not_installed() == {"own-mac": 1}
    (line,) = changes.log
    assert line.startswith("02:00:00:00:00:01 is the MAC of the TAP of this host with vni 100")
    assert made.problems()[0].startswith(f"{VTEP} announces the MAC of a TAP of this host")
    # The TAP gets another MAC.
    made.set_host(LocalHost(tap_macs={100: mac(7)}), 2.0)
    assert fdb_text(made.take()) == [f"replace 01 {VTEP} seq 0"]
    assert (made.not_installed(), made.problems()) == ({}, [])


def test_static_macs_that_others_announce_are_counted() -> None:
    made = tables()
    made.mac_added(100, mac(1), 0.5, static=True)
    made.update(PEER, update(VTEP, mac_route(VTEP, 1), mac_route(VTEP, 1, ip(1))), 1.0)
    assert made.not_installed() == {"sticky": 2}
    received = [view for view in made.routes(1.5, mac=mac(1)) if view["neighbor"] == PEER]
    assert [(view["reason"], view["best"]) for view in received] == [("sticky", False)] * 2
    assert made.segments()[0]["conflicts"] == 1
    made.update(PEER, withdrawal(mac_route(VTEP, 1), mac_route(VTEP, 1, ip(1))), 2.0)
    assert (made.not_installed(), made.segments()[0]["conflicts"]) == ({}, 0)


class TestRefusedByTheDaemon:
    def test_entries_are_not_shown_as_installed(self) -> None:
        made = tables()
        made.update(PEER, flood_update(OTHER), 1.0)
        routes = (mac_route(OTHER, 1), mac_route(OTHER, 1, ip(1)))
        made.update(PEER, update(OTHER, *routes), 1.0)
        changes = refuse(made, made.take())
        assert changes.bridge == {100: [BridgeChange(mac(1), is_present=False)]}
        assert changes.neighbours == {100: [EvpnNeighbourChange("del", ip(1), mac(1))]}
        (summary,) = made.segments()
        assert (summary["macs"], summary["vteps"], summary["neighbours"]) == (0, 0, 0)
        assert made.not_installed() == {"refused": 3}
        views = [view for view in made.routes(3.0) if view["neighbor"]]
        assert {(view["best"], view["reason"]) for view in views} == {(False, "refused")}
        assert [view["reason"] for view in made.macs(3.0)] == ["refused"]
        assert [view["reason"] for view in made.vteps(3.0)] == ["refused"]
        assert made.problems() == [f"vni 100: 2 entries were refused: {REASON}"]
        # The problem ends with the routes.
        made.peer_down(PEER, 4.0)
        assert not made.take().fdb
        assert (made.not_installed(), made.problems(), made.vteps(5.0)) == ({}, [], [])

    def test_entry_that_it_was_to_replace_is_deleted(self) -> None:
        made = tables()
        made.update(PEER, update(VTEP, mac_route(VTEP, 1)), 1.0)
        made.take()
        made.update(PEER, update(OTHER, mac_route(OTHER, 1), sequence=1), 2.0)
        (deletion,) = refuse(made, made.take()).fdb[100]
        assert deletion.params() == {
            "verb": "del",
            "mac": "02:00:00:00:00:01",
            "extern_learn": True,
        }
        made.update(PEER, withdrawal(mac_route(OTHER, 1)), 3.0)
        assert fdb_text(made.take()) == [f"replace 01 {VTEP} seq 0"]
        assert made.problems() == []

    def test_another_place_is_tried_at_once(self) -> None:
        made = tables()
        made.update(PEER, flood_update(OTHER), 1.0)
        made.update(PEER, update(OTHER, mac_route(OTHER, 1)), 1.0)
        refuse(made, made.take())
        made.update(PEER, update(OTHER, mac_route(OTHER, 1), sequence=1), 2.0)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 01 {OTHER} seq 1"]
        assert changes.bridge == {100: [BridgeChange(mac(1))]}

    def test_all_are_tried_again_after_a_while(self) -> None:
        made = tables()
        made.update(PEER, flood_update(OTHER), 1.0)
        made.update(PEER, update(OTHER, mac_route(OTHER, 1, ip(1))), 1.0)
        refuse(made, made.take())
        again = made.tick(3.0)
        assert again is not None
        assert not made.take()
        made.tick(again)
        changes = made.take()
        assert fdb_text(changes) == [f"replace 01 {OTHER} seq 0", f"append flood {OTHER}"]
        assert changes.neighbours == {100: [EvpnNeighbourChange("replace", ip(1), mac(1))]}
        assert (made.problems(), made.tick(again)) == ([], None)

    def test_neighbour_alone_is_refused(self) -> None:
        made = tables()
        made.update(PEER, update(VTEP, mac_route(VTEP, 1, ip(1))), 1.0)
        (change,) = made.take().neighbours[100]
        made.note_refused(100, change, "is configured", 2.0)
        assert made.take().neighbours == {100: [EvpnNeighbourChange("del", ip(1), mac(1))]}
        assert made.not_installed() == {"neighbour-refused": 1}
        assert [view["reason"] for view in made.macs(3.0)] == [None]
        assert [view["best"] for view in made.routes(3.0, kind=2)] == [True]
        assert made.segments()[0]["neighbours"] == 0
        made.reinstall(100)
        assert len(made.take().neighbours[100]) == 1

    def test_outdated_answers_change_nothing(self) -> None:
        made = tables()
        made.update(PEER, flood_update(VTEP), 1.0)
        made.update(PEER, update(VTEP, mac_route(VTEP, 1, ip(1))), 1.0)
        old = made.take()
        made.peer_down(PEER, 2.0)
        made.take()
        assert not refuse(made, old)
        made.note_refused(7, EvpnFdbChange("del", mac(1), ip(9)), REASON, 3.0)
        assert (made.problems(), made.tick(4.0)) == ([], None)

    def test_problems_name_some_reasons(self) -> None:
        made = tables()
        made.update(PEER, update(VTEP, *(mac_route(VTEP, n) for n in range(1, 9))), 1.0)
        for number, change in enumerate(made.take().fdb[100]):
            made.note_refused(100, change, f"reason {number}", 2.0)
        lines = made.problems()
        assert len(lines) == 6
        assert lines[-1].startswith("vni 100: 3 more entries were refused")
