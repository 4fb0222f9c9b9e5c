"""Entries that a former speaker has left: confirmed by routes, or swept."""

from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from tests.unit.evpn_routes import (
    OWN,
    PEER,
    announced_text,
    fdb_text,
    flood_update,
    ip,
    mac,
    mac_route,
    segment,
    tables,
    update,
)
from vtep.evpn.changes import EvpnNeighbourChange
from vtep.evpn.former import Former, StaleMac
from vtep.evpn.local_entries import BridgeChange
from vtep.evpn.tables import Tables

OTHER, THIRD = "192.0.2.2", "192.0.2.9"
OTHER_PEER = "10.0.0.2"


def restored(peers: Iterable[str] = (PEER,), *, sequence: int = 3) -> Tables:
    """Return tables that found two MACs, one with an address, and one VTEP to flood to."""
    made = tables(neighbors=frozenset(peers))
    macs = {mac(number): StaleMac(ip_address(OTHER), sequence) for number in (1, 2)}
    floods = [ip_address(OTHER)]
    made.restore_stale(100, macs, floods, {ip(1): mac(1)}, [mac(1), mac(2)], 0.0)
    return made


def test_entries_stay_as_they_are() -> None:
    made = restored()
    assert not made.take()
    assert [(view["vtep"], view["neighbor"]) for view in made.macs(1.0)] == [(OTHER, None)] * 2
    assert list(made.routes(1.0, kind=2)) == []
    assert made.segments()[0]["macs"] == 2
    assert made.segments()[0]["neighbours"] == 1
    assert made.not_installed() == {}


def test_confirmed_entries_survive_end_of_rib() -> None:
    made = restored()
    made.peer_up(PEER, 1.0)
    made.update(PEER, flood_update(OTHER), 1.0)
    made.update(PEER, update(OTHER, mac_route(OTHER, 1, ip(1)), sequence=3), 1.0)
    assert not made.take(), "a confirmed entry was written again"
    made.end_of_rib(PEER, 2.0)
    changes = made.take()
    assert fdb_text(changes) == [f"del 02 {OTHER}"]
    assert changes.bridge == {100: [BridgeChange(mac(2), is_present=False)]}
    assert made.tick(3.0) is None


def test_route_replaces_an_entry_even_with_a_lower_sequence() -> None:
    made = restored()
    made.update(PEER, update(THIRD, mac_route(THIRD, 1, ip(1))), 1.0)
    changes = made.take()
    assert fdb_text(changes) == [f"replace 01 {THIRD} seq 0"]
    assert not changes.bridge
    # And an entry of the former speaker that came first does not win against a later one, either.
    assert [view["vtep"] for view in made.macs(1.0, mac=mac(1))] == [THIRD]


def test_entries_end_with_the_stale_time() -> None:
    made = restored()
    assert made.tick(1.0) == 10.0
    assert made.tick(10.0) == 120.0
    assert not made.take()
    assert made.tick(120.0) is None
    changes = made.take()
    assert fdb_text(changes) == [f"del 01 {OTHER}", f"del 02 {OTHER}", f"del flood {OTHER}"]
    assert changes.neighbours == {100: [EvpnNeighbourChange("del", ip(1), mac(1))]}
    assert not made.take()


def test_neighbours_without_a_session_are_waited_for_briefly() -> None:
    made = restored((PEER, OTHER_PEER))
    made.peer_up(PEER, 1.0)
    made.end_of_rib(PEER, 2.0)
    assert not made.take()
    made.tick(10.0)
    assert len(fdb_text(made.take())) == 3


def test_all_established_neighbours_are_waited_for() -> None:
    made = restored((PEER, OTHER_PEER))
    for peer in (PEER, OTHER_PEER):
        made.peer_up(peer, 1.0)
    made.end_of_rib(PEER, 2.0)
    made.tick(50.0)
    assert not made.take()
    made.end_of_rib(OTHER_PEER, 51.0)
    assert len(fdb_text(made.take())) == 3


@pytest.mark.parametrize("is_first", [True, False])
def test_local_mac_has_moved_here_meanwhile(is_first: bool) -> None:
    made = tables()
    if is_first:
        made.mac_added(100, mac(1), 0.0)
    macs = {mac(1): StaleMac(ip_address(OTHER), 3)}
    made.restore_stale(100, macs, [], {}, [mac(1)], 0.0)
    if not is_first:
        made.mac_added(100, mac(1), 0.0)
    changes = made.take()
    assert announced_text(changes.announce) == ["mac 01 seq 4"]
    assert fdb_text(changes) == [f"del 01 {OTHER}"]


def test_leftovers_that_nothing_stands_for_are_deleted_at_once() -> None:
    made = tables()
    macs = {mac(3): StaleMac(ip_address(OWN))}
    floods = [ip_address(OWN)]
    made.restore_stale(100, macs, floods, {ip(1): mac(1)}, [mac(2)], 0.0)
    changes = made.take()
    assert fdb_text(changes) == [f"del 03 {OWN}", f"del flood {OWN}"]
    assert changes.neighbours == {100: [EvpnNeighbourChange("del", ip(1), mac(1))]}
    assert changes.bridge == {100: [BridgeChange(mac(2), is_present=False)]}


def test_bridge_entry_that_is_missing_is_written() -> None:
    made = tables()
    macs = {mac(1): StaleMac(ip_address(OTHER), dst_vni=7, sticky=True)}
    made.restore_stale(100, macs, [], {}, [], 0.0)
    changes = made.take()
    assert not changes.fdb
    assert changes.bridge == {100: [BridgeChange(mac(1), sticky=True)]}


def test_vni_that_is_removed_deletes_them() -> None:
    made = restored()
    made.configure({}, 1.0)
    assert len(fdb_text(made.take())) == 3
    made.configure({100: segment()}, 2.0)
    assert not made.take().fdb


def test_what_the_daemon_has_of_a_former_speaker() -> None:
    def entry(text: str, *destinations: dict[str, object]) -> dict[str, object]:
        return {
            "mac": text,
            "extern_learn": True,
            "sticky": text.endswith("1"),
            "destinations": list(destinations),
        }

    def place(vtep: str, dst_vni: int = 100, **more: object) -> dict[str, object]:
        return {"dst": vtep, "dst_vni": dst_vni, **more}

    entries = [
        entry("02:00:00:00:00:01", place(OTHER, sequence=3)),
        entry("02:00:00:00:00:02", place(OTHER, dst_vni=7)),
        # One of them is that of a user.
        entry("00:00:00:00:00:00", place(OTHER), place(THIRD, extern_learn=False)),
    ]
    neighbours = [
        {"ip": "10.0.0.1", "mac": "02:00:00:00:00:01", "extern_learn": True},
        {"ip": "10.0.0.2", "mac": "02:00:00:00:00:02", "extern_learn": False},
    ]
    found = Former.parse(100, entries, neighbours)
    assert found.macs == {
        mac(1): StaleMac(ip_address(OTHER), 3, sticky=True),
        mac(2): StaleMac(ip_address(OTHER), dst_vni=7),
    }
    assert found.floods == (ip_address(OTHER),)
    assert found.neighbours == {ip_address("10.0.0.1"): mac(1)}
    assert found
    assert not Former.parse(100, (), neighbours[1:])
