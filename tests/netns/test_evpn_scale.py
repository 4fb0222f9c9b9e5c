"""10,000 EVPN routes in each direction, between pyvtep and FRR with the kernel's VXLAN.

The tests say what arrives, and that no ping is lost. How long it takes is printed, and measured by
`scripts/bench evpn`.
"""

import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.netns import evpn_scale
from tests.netns.evpn_scale import ScaleFabric, Storm, addresses
from tests.netns.fabric import Fabric
from tests.netns.hosts import Start, ping, wait_until

COUNT = 10_000
VNI = 100

# 40,000 routes and their pings take half a minute alone, and minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)


def lost(storm: Storm, *streams: str) -> dict[str, int]:
    """Return the pings that were lost, by stream."""
    return {name: storm.pings[name].lost for name in streams if storm.pings[name].lost}


ALL = ("out", "in", "steady")


def test_ten_thousand_macs_appear_and_disappear(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """All arrive at FRR and here, one end after the other and both at once, and all go again."""
    state, events = tmp_path / "state", tmp_path / "events"
    scale = ScaleFabric(fabric, start, tmp_path, "--state", str(state))
    with events.open("w") as file:
        scale.router.start(
            *(sys.executable, "-m", "vtep", "monitor", "fdb", "--json"),
            *("--socket", str(scale.pyvtep.control)),
            stdout=file,
        )

        def is_watched() -> bool:
            with scale.pyvtep.client() as client:
                client.fdb.replace("02:00:00:00:99:01", "192.0.2.3", vni=VNI)
                client.fdb.delete("02:00:00:00:99:01", vni=VNI)
            return events.stat().st_size > 0

        wait_until(is_watched, "events")
        for storm in (
            evpn_scale.far_appear,
            evpn_scale.near_appear,
            evpn_scale.both_disappear,
            evpn_scale.both_appear,
        ):
            assert lost(storm(scale, COUNT), *ALL) == {}, storm
    far = {each.mac for each in addresses(2, VNI, COUNT)}
    near = {each.mac for each in addresses(1, VNI, COUNT)}
    # The tables of the speaker agree with those of FRR, and what is remote here is local there.
    macs = json.loads(scale.pyvtep.run("evpn", "show", "macs", "--json"))
    places = {each["mac"]: each["vtep"] for each in macs}
    assert {mac for mac, vtep in places.items() if vtep == "192.0.2.2"} >= far
    assert {mac for mac, vtep in places.items() if vtep is None} >= near
    assert scale.frr.local_macs(VNI) >= far
    assert scale.evpn["segments"][0]["announced"] >= COUNT + COUNT // 2
    shown = scale.pyvtep.run("fdb", "show")
    assert all(mac in shown for mac in far)
    # Each change was reported once to those who watch; none is a line of the log.
    wait_until(lambda: events.read_text().count('"added"') >= 2 * COUNT, "the events")
    assert len(scale.pyvtep.log.splitlines()) < 100, scale.pyvtep.log
    wait_until(lambda: _saved(state) >= far, "the entries in the state file")


def test_ends_of_processes_with_ten_thousand_routes(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    """FRR withdraws all and returns, another speaker confirms all, and an upgrade keeps all.

    While there is no BGP on one side, FRR has no way to the hosts of the other one, and pings to it
    are lost. What does not depend on it goes on.
    """
    scale = ScaleFabric(fabric, start, tmp_path)
    evpn_scale.both_appear(scale, COUNT)
    for storm in (evpn_scale.bgpd_killed, evpn_scale.bgpd_returns, evpn_scale.speaker_killed):
        assert lost(storm(scale, COUNT), "steady") == {}, storm
    ping(scale.far, scale.ips[0])
    assert lost(evpn_scale.upgraded(scale, COUNT), *ALL) == {}


def test_two_hundred_macs_in_each_of_fifty_vnis(
    fabric: Fabric, start: Start, tmp_path: Path
) -> None:
    scale = ScaleFabric(fabric, start, tmp_path, vnis=range(VNI, VNI + 50))
    for storm in (evpn_scale.both_appear, evpn_scale.both_disappear):
        assert lost(storm(scale, COUNT // 50), *ALL) == {}, storm
    assert len(scale.evpn["segments"]) == 50


def _saved(state: Path) -> set[str]:
    """Return the MACs in a state file."""
    with closing(sqlite3.connect(f"file:{state}?mode=ro", uri=True)) as database:
        return {mac for (mac,) in database.execute("SELECT mac FROM fdb")}
