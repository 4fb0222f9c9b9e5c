"""Batches of changes by the control socket: each change is made or refused by itself."""

import asyncio
import json
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_control_methods import MAC, ZERO, Still, ask, reload
from vtep.config import Config
from vtep.control import batches, jsonrpc
from vtep.control.client_commands import FdbCommands, NeighCommands
from vtep.control.methods import Methods
from vtep.errors import ConfigError, VtepError
from vtep.host.routes import Underlay

EXTERN = {"extern_learn": True}


@pytest.fixture
def vtep() -> Still:
    return Still(Config(vni=1, remote="192.0.2.2", tap="vx0", proxy=True))


def mac(number: int) -> str:
    return f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"


def entries(vtep: Still, **wanted: Any) -> dict[str, list[tuple[str, bool, int | None]]]:
    return {
        entry["mac"]: [
            (to["dst"], to["extern_learn"], to["sequence"]) for to in entry["destinations"]
        ]
        for entry in ask(vtep, "fdb.show", **wanted)
    }


def test_each_change_is_made_or_refused_by_itself(vtep: Still) -> None:
    changes: list[Any] = [
        {"verb": "replace", "mac": MAC, "dst": "192.0.2.3", **EXTERN, "sequence": 2},
        {"verb": "append", "mac": ZERO, "dst": "192.0.2.3", **EXTERN},
        {"verb": "append", "mac": ZERO, "dst": "192.0.2.2", **EXTERN},
        {"verb": "add", "mac": MAC, "dst": "192.0.2.4"},
        {"verb": "add", "mac": mac(7), "dst": "192.0.2.4"},
        {"verb": "del", "mac": mac(7), **EXTERN},
        {"verb": "del", "mac": mac(8)},
        {"verb": "replace", "mac": mac(7), "dst": "192.0.2.3", **EXTERN},
        {"verb": "move", "mac": MAC},
        {"verb": ["add"], "mac": MAC},
        {"mac": MAC},
        "replace",
        {"verb": "add", "mac": "02:00", "dst": "192.0.2.4"},
        {"verb": "add", "mac": mac(9)},
        {"verb": "add", "mac": mac(9), "dst": ["192.0.2.4"]},
        {"verb": "add", "mac": mac(9), "dst": "192.0.2.4", "sequence": 1},
        {"verb": "add", "mac": mac(9), "dst": "192.0.2.4", **EXTERN, "sequence": 1 << 32},
        {"verb": "add", "mac": mac(9), "dst": "192.0.2.4", "vni": 1},
        {"verb": "del", "mac": MAC, "sticky": True},
    ]
    result = ask(vtep, "fdb.batch", changes=changes)
    assert result["done"] == 4
    errors = {error["index"]: error["error"] for error in result["errors"]}
    assert sorted(errors) == [3, *range(5, 19)]
    assert "has an entry already" in errors[3]
    assert errors[5] == f"{mac(7)}: is not extern_learn"
    assert errors[7].startswith(f"extern_learn: {mac(7)} has a permanent entry")
    assert {errors[8], errors[9], errors[10]} == {"verb: must be one of add, append, replace, del"}
    assert errors[11] == "a change must be an object"
    assert errors[13] == "dst: is missing"
    assert errors[15] == "sequence 1: is a number of a control plane; give extern_learn as well"
    assert errors[17].startswith("vni: is not a parameter of add, which takes dst, ")
    assert entries(vtep) == {
        ZERO: [("192.0.2.2", True, None), ("192.0.2.3", True, None)],
        MAC: [("192.0.2.3", True, 2)],
        mac(7): [("192.0.2.4", False, None)],
    }
    # What a user has given stays when the control plane withdraws it.
    withdrawn = [
        {"verb": "del", "mac": ZERO, "dst": f"192.0.2.{number}", **EXTERN} for number in (2, 3, 9)
    ]
    assert ask(vtep, "fdb.batch", changes=withdrawn)["done"] == 2
    assert entries(vtep)[ZERO] == [("192.0.2.2", False, None)]


def test_a_filter_selects_what_a_control_plane_has_given(vtep: Still) -> None:
    for number in (2, 3):
        ask(vtep, "fdb.append", mac=ZERO, dst=f"192.0.2.{number}", extern_learn=True)
    ask(vtep, "fdb.append", mac=ZERO, dst="192.0.2.4")
    both = [("192.0.2.2", True, None), ("192.0.2.3", True, None)]
    assert entries(vtep, extern_learn=True) == {ZERO: both}
    assert entries(vtep, extern_learn=False) == {
        ZERO: [("192.0.2.2", True, None), ("192.0.2.4", False, None)]
    }
    assert ask(vtep, "fdb.flush", extern_learn=True) == 1
    assert [to["dst"] for to in ask(vtep, "remote.show")] == ["192.0.2.2", "192.0.2.4"]


def test_neighbours_of_a_control_plane(vtep: Still) -> None:
    ask(vtep, "neigh.add", ip="10.0.0.1", mac=MAC)
    changes: list[Any] = [
        {"verb": "replace", "ip": "10.0.0.1", "mac": mac(2), **EXTERN},
        {"verb": "add", "ip": "10.0.0.2", "mac": mac(2), **EXTERN},
        {"verb": "replace", "ip": "10.0.0.2", "mac": mac(3), "router": True, **EXTERN},
        {"verb": "add", "ip": "fd00::2", "mac": mac(3), "vlan": 5, **EXTERN},
        {"verb": "del", "ip": "10.0.0.1", **EXTERN},
        {"verb": "del", "ip": "10.0.0.9"},
        {"verb": "del", "ip": "10.0.0.2", "mac": MAC},
    ]
    result = ask(vtep, "neigh.batch", changes=changes)
    assert (result["done"], [error["index"] for error in result["errors"]]) == (3, [0, 4, 5, 6])
    assert result["errors"][0]["error"].startswith("extern_learn: 10.0.0.1 is configured")
    shown = [
        (each["ip"], each["mac"], each["router"], each["extern_learn"], each["state"])
        for each in ask(vtep, "neigh.show")
    ]
    assert shown == [
        ("10.0.0.1", MAC, False, False, "permanent"),
        ("10.0.0.2", mac(3), True, True, "permanent"),
        ("fd00::2", mac(3), False, True, "permanent"),
    ]
    assert ask(vtep, "neigh.flush") == 0
    assert ask(vtep, "neigh.del", ip="10.0.0.2", extern_learn=True) is None
    assert ask(vtep, "neigh.flush", extern_learn=True) == 1
    assert [each["ip"] for each in ask(vtep, "neigh.show")] == ["10.0.0.1"]
    # A user may take over what the control plane has added, and delete it.
    ask(vtep, "neigh.add", ip="10.0.0.2", mac=mac(2), extern_learn=True)
    ask(vtep, "neigh.replace", ip="10.0.0.2", mac=mac(2))
    assert ask(vtep, "neigh.flush", permanent=True) == 2


def test_a_batch_has_a_limit(vtep: Still) -> None:
    change = {"verb": "replace", "mac": MAC, "dst": "192.0.2.3"}
    wrong: list[object] = [[change] * 1001, None, "all", {}]
    for changes in wrong:
        with pytest.raises(ConfigError, match=r"^changes: must be a list of at most 1000 objects"):
            ask(vtep, "fdb.batch", changes=changes)
    assert ask(vtep, "fdb.batch", changes=[]) == {"done": 0, "errors": []}
    off = Still(Config(vni=1, remote="192.0.2.2"))
    with pytest.raises(VtepError, match="--proxy is off"):
        ask(off, "neigh.batch", changes=[])


def test_others_have_their_turn_during_a_batch(vtep: Still) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting = asyncio.create_task(count())
        methods = Methods(vtep, reload)
        changes: list[Any] = [
            {"verb": "replace", "mac": mac(number), "dst": "192.0.2.3", **EXTERN}
            for number in range(1000)
        ]
        assert "fdb.batch" in methods.lasting
        assert (await methods.call("fdb.batch", {"changes": changes}))["done"] == 1000
        counting.cancel()

    asyncio.run(main())
    assert turns > 3
    assert len(vtep.fdb) == 1000


def test_the_rest_is_refused_if_the_vni_is_deleted_meanwhile(vtep: Still) -> None:
    async def delete() -> None:
        vtep.ports = {}

    async def main() -> dict[str, Any]:
        deleting = asyncio.create_task(delete())
        changes = [
            {"verb": "replace", "mac": mac(number), "dst": "192.0.2.3"} for number in range(1000)
        ]
        result = await Methods(vtep, reload).call("fdb.batch", {"changes": changes})
        await deleting
        return dict(result)

    result = asyncio.run(main())
    assert 0 < result["done"] < 1000
    assert {error["error"] for error in result["errors"]} == {"vni 1: was deleted meanwhile"}


def test_an_own_address_is_no_destination(vtep: Still) -> None:
    own = {ip_address(each): (1,) for each in ("192.0.2.1", "fd00::1", "fe80::1")}
    vtep.port.underlay.take_over(vtep.port.config, Underlay((), 1500, own_addresses=own))
    for verb in ("add", "append", "replace"):
        for dst in ("192.0.2.1", "fd00::1", "fe80::1%lo"):
            with pytest.raises(VtepError, match=f"^dst {dst}: is an address of this host itself"):
                ask(vtep, f"fdb.{verb}", mac=MAC, dst=dst)
    with pytest.raises(VtepError, match="address of this host itself"):
        ask(vtep, "fdb.append", mac=ZERO, dst="192.0.2.1", via="lo")
    ask(vtep, "fdb.add", mac=MAC, dst="192.0.2.9")
    with pytest.raises(VtepError, match="is not a destination"):
        ask(vtep, "fdb.del", mac=MAC, dst="192.0.2.1")


# --- the client -------------------------------------------------------------------------------


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=300)), max_size=3000))
def test_batches_fit_into_requests(changes: list[dict[str, str]]) -> None:
    split = list(batches.split(changes))
    assert [change for batch in split for change in batch] == changes
    for batch in split:
        assert 1 <= len(batch) <= batches.CHANGES_MAX
        params = {"changes": batch, "vni": (1 << 24) - 1, "dev": "x" * 15}
        request = jsonrpc.request("neigh.batch", params, 1 << 31)
        assert len(request) <= jsonrpc.LINE_MAX or len(batch) == 1


@pytest.mark.parametrize(
    ("commands", "method"), [(FdbCommands, "fdb.batch"), (NeighCommands, "neigh.batch")]
)
def test_the_client_splits_a_batch_and_joins_the_results(
    commands: type[FdbCommands | NeighCommands], method: str
) -> None:
    called = []

    def call(name: str, changes: list[Any], **segment: Any) -> Any:
        called.append((name, len(changes), segment))
        return {"done": len(changes) - 1, "errors": [{"index": 3, "error": changes[3]["mac"]}]}

    changes: list[Any] = [{"verb": "del", "mac": mac(number)} for number in range(2500)]
    result = commands(call).batch(changes, vni=7)
    assert called == [(method, size, {"vni": 7, "dev": None}) for size in (1000, 1000, 500)]
    assert result["done"] == 2497
    assert [json.dumps(error) for error in result["errors"]] == [
        json.dumps({"index": index, "error": mac(index)}) for index in (3, 1003, 2003)
    ]


def test_the_control_plane_is_notified_of_entries_that_a_user_takes(vtep: Still) -> None:
    """Otherwise it would count as installed what is not in the FDB any more."""
    notified = 0

    def on_flushed() -> None:
        nonlocal notified
        notified += 1

    vtep.on_flushed = on_flushed

    def count(method: str, **params: Any) -> int:
        before = notified
        result = ask(vtep, method, **params)
        assert not (result or {}).get("errors")
        return notified - before

    given = {"mac": MAC, "dst": "192.0.2.3", **EXTERN}
    assert count("fdb.batch", changes=[{"verb": "replace", **given}]) == 0
    assert count("fdb.append", mac=MAC, dst="192.0.2.4") == 0
    assert count("fdb.del", mac=MAC, dst="192.0.2.4") == 0
    assert count("fdb.replace", mac=MAC, dst="192.0.2.4") == 1
    assert count("fdb.del", mac=MAC) == 0
    assert count("fdb.batch", changes=[{"verb": "replace", **given}]) == 0
    assert count("fdb.batch", changes=[{"verb": "del", "mac": MAC, **EXTERN}]) == 0
    for options in ({}, EXTERN):
        assert count("fdb.batch", changes=[{"verb": "replace", **given}]) == 0
        assert count("fdb.del", mac=MAC, **options) == 1
    assert count("fdb.batch", changes=[{"verb": "append", **given, "mac": ZERO}]) == 0
    assert count("fdb.batch", changes=[{"verb": "del", "mac": ZERO, "dst": "192.0.2.3"}]) == 1
    # Neighbours likewise.
    neighbour = {"ip": "10.0.0.9", "mac": MAC, **EXTERN}
    for verb, params in (
        ("replace", {"mac": MAC}),
        ("del", {}),
        ("del", EXTERN),
    ):
        assert count("neigh.batch", changes=[{"verb": "replace", **neighbour}]) == 0
        assert count(f"neigh.{verb}", ip="10.0.0.9", **params) == 1
        if verb == "replace":
            assert count("neigh.del", ip="10.0.0.9") == 0
    assert count("neigh.batch", changes=[{"verb": "add", **neighbour}]) == 0
    assert count("neigh.batch", changes=[{"verb": "del", "ip": "10.0.0.9", **EXTERN}]) == 0
