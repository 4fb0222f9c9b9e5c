"""The method `status`: the state of a VTEP on one screen, and its problems."""

import asyncio
import json
import time
from contextlib import closing
from typing import Any

import pytest

from vtep import Config
from vtep.control import jsonrpc
from vtep.control.jsonrpc import PagedObject
from vtep.control.methods import Methods
from vtep.control.problems import of_process, of_segment
from vtep.control.schema import SegmentStatus, Status, StormEntry
from vtep.counters import Drop
from vtep.daemon.vtep import Reload, Vtep
from vtep.doctor.advice import advice
from vtep.errors import VtepError
from vtep.forwarding.fdb import LEARNED, Remote
from vtep.testing import MemoryUnderlay
from vtep.wire.ethernet import parse_mac

from .nodes import IP_A, IP_B, IP_C, Node, frame, segment, until

GUEST, OTHER = parse_mac("0a:00:00:00:00:01"), parse_mac("0a:00:00:00:00:02")


async def reload() -> str:
    return "read again"


def status(vtep: Vtep, **params: Any) -> Status:
    """Return a status as a client gets it."""
    pieces = jsonrpc.success(asked(vtep, **params), 1)
    answer: Status = json.loads(b"".join(pieces))["result"]
    return answer


def asked(vtep: Vtep, **params: Any) -> PagedObject:
    call = Methods(vtep, reload).call("status", params)
    with pytest.raises(StopIteration) as stopped:  # It takes no turn of an event loop.
        call.__await__().__next__()
    found = stopped.value.value
    assert isinstance(found, PagedObject)
    return found


def test_the_status_of_segments_that_forward() -> None:
    async def run() -> None:
        with closing(MemoryUnderlay(seed=1)) as underlay:
            one = Node(underlay, segment(1, address="10.0.0.1/24"), segment(2, (IP_B, IP_C)))
            two = Node(underlay, segment(1, IP_A), ip=IP_B)
            one.network.add_device("br0", kind="bridge")
            async with one.vtep, two.vtep:
                one.network.set_link("vx2", master="br0")
                one.network.set_link("vx2", mtu=1500)
                one.send(frame(GUEST, OTHER))
                await two.until_received(frame(GUEST, OTHER))
                two.send(frame(OTHER, GUEST))
                await one.until_received(frame(OTHER, GUEST))
                await until(lambda: one.vtep.link_of(one.vtep.ports[2]))
                shown = status(one.vtep)
            first, second = shown["segments"]
            assert (first["vni"], first["dev"], first["state"]) == (1, "vx1", "up")
            assert (first["bridge"], second["bridge"]) == (None, "br0")
            assert (first["address"], second["address"]) == (["10.0.0.1/24"], [])
            assert (first["mtu"], first["tap_mtu"], first["underlay_mtu"]) == (1450, 1450, 1500)
            assert (second["mtu"], second["tap_mtu"]) == (1450, 1500)
            assert first["counters"]["tx_frames"] == first["counters"]["rx_frames"] == 1
            assert shown["counters"]["tx_frames"] == 1
            assert (first["fdb_entries"], second["fdb_entries"]) == (1, 0)
            (remote,) = first["remotes"]
            assert (remote["remote"], remote["underlay_dev"]) == (IP_B, "eth0")
            assert (remote["path_mtu"], remote["fdb_entries"]) == (1500, 1)
            assert (remote["is_configured"], remote["is_group"]) == (True, False)
            assert [each["remote"] for each in second["remotes"]] == [IP_B, IP_C]
            assert shown["problems"] == []
            assert shown["started"] <= shown["time"]

    asyncio.run(run())


def test_one_segment_can_be_asked_for_and_totals_are_of_all() -> None:
    vtep = Vtep(segment(1), segment(2))
    vtep.ports[1].segment.counters.tx_frames = 3
    vtep.ports[2].segment.counters.tx_frames = 4
    shown = status(vtep, vni=2)
    assert [each["vni"] for each in shown["segments"]] == [2]
    assert shown["counters"]["tx_frames"] == 7


def test_remotes_are_those_of_the_default_entry_and_the_accepted_ones() -> None:
    vtep = Vtep(segment(1, (IP_B, IP_C), accept="198.51.100.0/24"))
    found = vtep.ports[1].segment
    assert found.admit(GUEST, "198.51.100.7", 0.0)
    found.fdb.append(OTHER, Remote("192.0.2.9", 4789), 0.0)
    found.fdb.add(parse_mac("02:00:00:00:00:03"), Remote(IP_C, 4789), 0.0, LEARNED)
    remotes = {each["remote"]: each for each in status(vtep)["segments"][0]["remotes"]}
    assert list(remotes) == [IP_B, IP_C, "192.0.2.9", "198.51.100.7"]
    assert [each["is_configured"] for each in remotes.values()] == [True, True, False, False]
    assert [each["fdb_entries"] for each in remotes.values()] == [0, 1, 1, 1]


def test_a_group_is_one() -> None:
    vtep = Vtep(Config(vni=1, group="239.1.1.1", dev="eth0"))
    (remote,) = status(vtep)["segments"][0]["remotes"]
    assert (remote["remote"], remote["is_group"]) == ("239.1.1.1", True)


def test_recent_drops_are_the_latest_first_with_detail_and_remedy() -> None:
    vtep = Vtep(segment(1))
    counters, now = vtep.ports[1].segment.counters, time.monotonic()
    counters.drop(Drop.TX_TAGGED, count=2, detail=12)
    counters.note_drops(now - 1000)
    counters.drop(Drop.NO_REMOTE, detail=GUEST)
    counters.note_drops(now - 60)
    counters.drop(Drop.SOURCE_UNKNOWN, IP_C, 3)
    counters.drop(Drop.ANYCAST_GW_SUPPRESSED_TX)
    (shown,) = status(vtep)["segments"]
    first, second = shown["recent_drops"]
    assert (first["reason"], first["count"], first["last_source"]) == ("source_unknown", 3, IP_C)
    assert (second["reason"], second["detail"]) == (
        "no_remote",
        "destination MAC 0a:00:00:00:00:01",
    )
    assert (first["age"], second["age"] >= 60) == (0, True)
    assert f"pyvtep remote add {IP_C} --vni 1" in advice(first, shown)
    assert "pyvtep remote add" in advice(second, shown)
    assert "tcpdump" in advice({**first, "last_source": None}, None)
    assert "logged" in advice({**first, "reason": "of_a_later_version"}, shown)
    assert first["detail"] is None
    vtep.unmatched.replace([(IP_C, "192.0.2.1", ["65001:200"])])
    detail = status(vtep)["segments"][0]["recent_drops"][0]["detail"]
    assert detail == (
        "announces route targets 65001:200 by way of 192.0.2.1, which no VNI here imports"
    )


def test_a_lost_port_is_missing_until_it_is_added_or_given_up() -> None:
    async def run() -> None:
        with closing(MemoryUnderlay(seed=1)) as underlay:
            one = Node(underlay, segment(1), segment(2), segment(3))
            async with one.vtep:
                for name in ("vx2", "vx3"):
                    one.network.remove_device(name)
                await until(lambda: len(one.vtep.ports) == 1)
                shown = status(one.vtep)
                assert [each["state"] for each in shown["segments"]] == ["up", "missing", "missing"]
                assert [(each["problem"], each["vni"]) for each in shown["problems"]] == [
                    ("port-down", 2),
                    ("port-down", 3),
                ]
                # It does nothing any more, so it claims nothing of its remotes and its fast path.
                lost = shown["segments"][1]
                assert (lost["remotes"], lost["fast_path"]) == ([], "off")
                assert shown["problems"][1]["text"].endswith("give it up: pyvtep vni del 3")
                await one.vtep.add(segment(2))
                methods = Methods(one.vtep, reload)
                await methods.call("vni.del", {"vni": 3})
                with pytest.raises(VtepError, match="vni 3: there is no such segment"):
                    await methods.call("vni.del", {"vni": 3})
                shown = status(one.vtep)
                assert [each["state"] for each in shown["segments"]] == ["up", "up"]
                assert shown["problems"] == []

    asyncio.run(run())


def test_a_tap_that_is_down_is_a_problem_and_a_missing_underlay_too() -> None:
    async def run() -> None:
        with closing(MemoryUnderlay(seed=1)) as underlay:
            one = Node(underlay, segment(1), segment(2, IP_C))
            one.network.unreachable.add(IP_C)
            async with one.vtep:
                one.network.devices["vx1"].is_up = False
                one.network.notify_link("vx1")
                await until(lambda: len(status(one.vtep)["problems"]) == 2)
                shown = status(one.vtep)
                assert [each["state"] for each in shown["segments"]] == ["down", "waiting"]
                down, waiting = shown["problems"]
                assert "ip link set vx1 up" in down["text"]
                assert (waiting["problem"], waiting["vni"]) == ("underlay-missing", 2)
                (remote,) = shown["segments"][1]["remotes"]
                assert (remote["underlay_dev"], remote["path_mtu"]) == (None, None)

    asyncio.run(run())


def test_a_tap_that_is_no_port_of_its_bridge_is_a_problem() -> None:
    async def run() -> None:
        with closing(MemoryUnderlay(seed=1)) as underlay:
            one = Node(underlay, segment(1, bridge="br0"))
            async with one.vtep:
                await until(lambda: status(one.vtep)["problems"])
                (problem,) = status(one.vtep)["problems"]
                assert (problem["problem"], problem["vni"]) == ("wrong-bridge", 1)
                assert "vx1 is no port of its --bridge br0: there is no" in problem["text"]
                one.network.add_device("br0", kind="bridge")
                await until(lambda: status(one.vtep)["problems"] == [])

    asyncio.run(run())


def test_a_failed_reload_is_a_problem() -> None:
    vtep = Vtep(segment(1))
    assert status(vtep)["reload"] is None
    vtep.last_reload = Reload(successful=True, time=5.0)
    assert "reload-failed" not in [each["problem"] for each in status(vtep)["problems"]]
    vtep.last_reload = Reload(successful=False, time=time.time() - 100)
    shown = status(vtep)
    assert shown["problems"][0]["problem"] == "reload-failed"
    assert list(of_process(shown["reload"], shown["time"])) == shown["problems"][:1]


def test_loops_storms_remotes_and_a_failed_fast_path_are_problems() -> None:
    (shown,) = status(Vtep(segment(1)))["segments"]
    (remote,) = shown["remotes"]
    remotes = [
        {**remote, "remote": f"192.0.2.{n}", "liveness": liveness}
        for n, liveness in enumerate(("seen", "silent", "never-seen", "refused"))
    ]
    found: SegmentStatus = {**shown, "state": "up", "remotes": remotes}  # type: ignore[typeddict-item]
    storm: StormEntry = {
        "vni": 1,
        "dev": "vx1",
        "traffic": "broadcast",
        "direction": "rx",
        "remote": IP_B,
        "rate": 1,
        "burst": 1,
        "state": "dropping",
        "age": 1.0,
        "dropped": 9,
    }
    of_all: StormEntry = {**storm, "remote": None}
    calm: StormEntry = {**storm, "state": "forwarding"}
    problems = list(
        of_segment(
            found,
            [{"vni": 1, "dev": "vx1", "remote": IP_C, "blocked": 20.0}],
            [storm, of_all, calm],
            fast_path_failed=True,
        )
    )
    assert [(each["problem"], each["remote"]) for each in problems] == [
        ("remote-silent", "192.0.2.1"),
        ("remote-refused", "192.0.2.3"),
        ("loop", IP_C),
        ("storm", IP_B),
        ("storm", None),
        ("fast-path-failed", None),
    ]
    odd: SegmentStatus = {**found, "dev": "a b", "state": "down", "remotes": []}
    (down,) = of_segment(odd, (), (), fast_path_failed=False)
    assert down["text"].endswith("ip link set 'a b' up")  # It can be pasted into a shell.
    many: SegmentStatus = {**found, "remotes": [], "underlay_missing": list("abcde")}
    (missing,) = of_segment(many, (), (), fast_path_failed=False)
    assert missing["text"].endswith("a; b; c and 2 more")


def test_no_step_of_a_large_status_is_large() -> None:
    """Frames are forwarded between the steps, so none may have all remotes."""
    vtep = Vtep(segment(1, tuple(f"192.0.{n >> 8}.{n & 255}" for n in range(2, 1002))))
    steps = list(asked(vtep).pages)
    assert len(steps) > 10
    (shown,) = next(step for step in steps if step)
    assert len(shown["remotes"]) == 1000
