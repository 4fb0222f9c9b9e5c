"""The methods of the control socket, called without a socket."""

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from vtep import Config, Vtep
from vtep.control.events import Events
from vtep.control.jsonrpc import OctetStream, PagedObject, Pages, RpcError
from vtep.control.methods import Methods
from vtep.errors import ConfigError, VtepError
from vtep.forwarding.fdb import LEARNED, EntryKind, EntryState, Remote
from vtep.forwarding.storm import CALM_S, Limit, StormLimits
from vtep.wire.ethernet import MAC_ZERO, parse_mac

MAC = "02:00:00:00:00:01"
ZERO = "00:00:00:00:00:00"


class Still(Vtep):
    """A VTEP that was never started: it has tables, and remembers what it is told to become."""

    def __init__(self, *configs: Config) -> None:
        super().__init__(*configs)
        self.told: list[Any] = []

    async def add(self, config: Config) -> None:
        self.told.append(("add", config))
        self._ports.put(self._make_port(config))

    async def remove(self, vni: int) -> None:
        self.told.append(("remove", vni))

    async def change(self, config: Config) -> None:
        self.told.append(("change", config))


@pytest.fixture
def vtep() -> Still:
    return Still(Config(vni=1, remote="192.0.2.2", tap="vx0"))


@pytest.fixture
def two() -> Still:
    return Still(Config(vni=1, remote="192.0.2.2"), Config(vni=2, remote="192.0.2.3"))


async def reload() -> str:
    return "read again"


def ask(vtep: Vtep, method: str, **params: Any) -> Any:
    """Return the result of a call as a client gets it."""

    async def call() -> Any:
        result = await Methods(vtep, reload).call(method, params)
        if isinstance(result, asyncio.Future):
            result = await result
        if isinstance(result, OctetStream):
            result.source.close()
            result = result.result
        return result

    result = asyncio.run(call())
    if isinstance(result, Pages):
        result = [item for page in result.pages for item in page]
    if isinstance(result, PagedObject):
        result = result.whole()
    return json.loads(json.dumps(result, allow_nan=False))


def shown(vtep: Vtep, **params: Any) -> dict[str, list[str]]:
    return {
        entry["mac"]: [to["dst"] for to in entry["destinations"]]
        for entry in ask(vtep, "fdb.show", **params)
    }


# --- the forwarding database --------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 449, 450, 451, 500, 1500])
def test_samples_have_every_entry_once_and_a_bounded_size(vtep: Still, count: int) -> None:
    fdb, now = vtep.ports[1].fdb, time.monotonic()
    for number in range(count):
        fdb.learn(number.to_bytes(6, "big"), Remote("192.0.2.2", 4789), now, 3)
    macs: list[str] = []
    page: int | None = 0
    while page is not None:
        sample = ask(vtep, "fdb.sample", page=page)
        assert len(sample["entries"]) <= 500
        assert sample["fdb_entries"] == len(fdb)
        macs += [entry["mac"] for entry in sample["entries"]]
        page = sample["next_page"]
    assert macs == [entry["mac"] for entry in ask(vtep, "fdb.show") if entry["mac"] != ZERO]


def test_a_sample_of_named_macs_has_counts_and_moves(vtep: Still) -> None:
    fdb, now = vtep.ports[1].fdb, time.monotonic()
    fdb.moves.configure(5, 60.0)
    for host in ("192.0.2.2", "192.0.2.3", "192.0.2.2"):
        fdb.learn(parse_mac(MAC), Remote(host, 4789), now, 2)
    for page in (None, 0):  # It is there once, also if its page has it too.
        sample = ask(vtep, "fdb.sample", macs=[MAC, "02:00:00:00:00:09", ZERO, MAC], page=page)
        assert sample["next_page"] is None
        (entry,) = sample["entries"]
        assert entry["age"] < 60
        assert entry == {
            "mac": MAC,
            "dst": "192.0.2.2",
            "state": "dynamic",
            "age": entry["age"],
            "held": None,
            "moves": 2,
            "tx_frames": 0,
            "rx_frames": 6,
        }


def test_a_sample_is_refused_that_would_be_large(vtep: Still) -> None:
    for macs in ([MAC] * 101, MAC, [1], ["02:00"]):
        with pytest.raises(ConfigError, match="mac"):
            ask(vtep, "fdb.sample", macs=macs)


def destination(dst: str) -> dict[str, Any]:
    """Return a destination that was configured, with all its keys."""
    return {
        "dst": dst,
        "port": 4789,
        "dst_vni": 1,
        "via": None,
        "extern_learn": False,
        "sequence": None,
    }


def test_an_entry_with_all_its_keys(vtep: Still) -> None:
    to = {"dst": "192.0.2.7", "port": 4790, "dst_vni": 5, "via": "lo"}
    flags = {"state": "static", "sticky": True, "extern_learn": True}
    ask(vtep, "fdb.add", mac=MAC, **to, **flags, sequence=3)
    assert ask(vtep, "fdb.get", mac=MAC) == {
        "vni": 1,
        "dev": "vx0",
        "mac": MAC,
        "destinations": [{**to, "extern_learn": True, "sequence": 3}],
        "state": "static",
        "extern_learn": True,
        "sticky": True,
        "age": None,
        "held": None,
        "tx_frames": 0,
        "rx_frames": 0,
    }


def test_an_entry_needs_the_device_that_it_names(vtep: Still) -> None:
    for verb in ("add", "append", "replace"):
        with pytest.raises(VtepError, match=r"^via nosuch: there is no such device") as refused:
            ask(vtep, f"fdb.{verb}", mac=MAC, dst="192.0.2.7", via="nosuch")
        assert refused.value.exit_code == 1


def test_a_destination_in_the_subnet_of_the_tap_is_refused() -> None:
    """Its datagrams would be routed into the tunnel, as those to such a remote."""
    vtep = Still(Config(vni=1, remote="192.0.2.2", address=["10.0.0.1/24", "fd00::1/64"]))
    for verb in ("add", "append", "replace"):
        for dst, subnet in (("10.0.0.7", "10.0.0.0/24"), ("fd00::7", "fd00::/64")):
            with pytest.raises(ConfigError, match=f"^dst {dst}: is in {subnet}, the subnet of "):
                ask(vtep, f"fdb.{verb}", mac=MAC, dst=dst)
    with pytest.raises(ConfigError, match=r"^--address 10\.0\.0\.1/24: --remote 10\.0\.0\.7 is in"):
        ask(vtep, "remote.add", remote="10.0.0.7")
    assert shown(vtep) == {ZERO: ["192.0.2.2"]}
    # Sockets that are bound to a device don't follow the route over the TAP.
    ask(vtep, "fdb.append", mac=MAC, dst="10.0.0.7", via="lo")


def test_port_and_vni_default_to_those_of_the_segment(vtep: Still) -> None:
    ask(vtep, "fdb.add", mac=MAC, dst="192.0.2.7")
    entry = ask(vtep, "fdb.get", mac=MAC)
    assert entry["destinations"] == [destination("192.0.2.7")]
    assert (entry["state"], entry["extern_learn"], entry["sticky"]) == ("permanent", False, False)


def test_add_append_replace_and_delete(vtep: Still) -> None:
    ask(vtep, "fdb.add", mac=MAC, dst="192.0.2.7")
    with pytest.raises(VtepError, match="has an entry already"):
        ask(vtep, "fdb.add", mac=MAC, dst="192.0.2.8")
    ask(vtep, "fdb.append", mac=MAC, dst="192.0.2.8")
    assert shown(vtep)[MAC] == ["192.0.2.7", "192.0.2.8"]
    ask(vtep, "fdb.replace", mac=MAC, dst="192.0.2.9")
    assert shown(vtep)[MAC] == ["192.0.2.9"]
    ask(vtep, "fdb.append", mac=MAC, dst="192.0.2.8")
    ask(vtep, "fdb.del", mac=MAC, dst="192.0.2.9")
    assert shown(vtep)[MAC] == ["192.0.2.8"]
    with pytest.raises(VtepError, match="is not a destination"):
        ask(vtep, "fdb.del", mac=MAC, dst="192.0.2.9")
    ask(vtep, "fdb.del", mac=MAC)
    assert shown(vtep) == {ZERO: ["192.0.2.2"]}
    with pytest.raises(VtepError, match="no such entry"):
        ask(vtep, "fdb.get", mac=MAC)


def test_the_age_is_that_of_the_last_frame(vtep: Still, monkeypatch: pytest.MonkeyPatch) -> None:
    vtep.fdb.learn(bytes.fromhex("020000000001"), vtep.port.segment.remotes[0], 1000.0, 3)
    monkeypatch.setattr(time, "monotonic", lambda: 1012.34)
    entry = ask(vtep, "fdb.get", mac=MAC)
    assert (entry["age"], entry["rx_frames"], entry["state"]) == (12.3, 3, "dynamic")


KINDS = [
    EntryKind(state, extern_learn=extern, sticky=sticky)
    for state, extern, sticky in itertools.product(EntryState, (False, True), (False, True))
]
TO = [
    Remote("192.0.2.7", 4789),
    Remote("192.0.2.7", 4790),
    Remote("192.0.2.8", 4789, vni=9),
    Remote("192.0.2.8", 4789, via="eth1"),
]


def filled() -> Still:
    """Build a table with an entry of each kind, with several destinations each."""
    vtep = Still(Config(vni=1, tap="vx0"))
    vtep.fdb.append(MAC_ZERO, Remote("192.0.2.2", 4789), 0.0)
    for number, (kind, _) in enumerate(itertools.product(KINDS, range(10)), 1):
        for to in TO[number % 3 :]:
            vtep.fdb.append(number.to_bytes(6, "little"), evolve(to), 0.0, kind)
        if number % 4 == 0:
            hold(vtep, number.to_bytes(6, "little"))
    return vtep


def hold(vtep: Still, mac: bytes) -> None:
    """Hold a MAC where it is."""
    vtep.fdb.moves.configure(1, 300)
    now = time.monotonic()
    assert vtep.fdb.moves.note(mac, now, now)
    assert not vtep.fdb.moves.note(mac, now, now)


def meant(entry: dict[str, Any], to: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Apply the filters of `bridge fdb flush`, as simply as possible."""
    for name, value in wanted.items():
        match name:
            case "permanent" | "dynamic":
                there: Any = entry["state"] == name
            case "static":  # nostatic spares permanent entries as well.
                there = entry["state"] == "static" if value else entry["state"] != "dynamic"
            case "extern_learn" | "sticky":
                there = entry[name]
            case "held":
                there = entry[name] is not None
            case _:
                there = to[name]
        if there != value:
            return False
    return True


WANTED: dict[str, tuple[Any, ...]] = {
    "dst": ("192.0.2.7", "192.0.2.99"),
    "port": (4790,),
    "dst_vni": (9, 1),
    "via": ("eth1",),
    **dict.fromkeys(
        ("permanent", "static", "dynamic", "extern_learn", "sticky", "held"), (True, False)
    ),
}
EACH = [{name: value} for name, values in WANTED.items() for value in values]


@pytest.mark.parametrize(
    "wanted",
    [{}, *EACH, *({**one, **other} for one, other in itertools.combinations(EACH[:8], 2))],
    ids=str,
)
def test_show_and_flush_by_every_filter_and_by_pairs(wanted: dict[str, Any]) -> None:
    vtep = filled()
    before = ask(vtep, "fdb.show")
    assert len(before) == 1 + 10 * len(KINDS) > 100
    kept: dict[str, list[Any]] = {}
    gone: dict[str, list[Any]] = {}
    for entry in before:
        for part, matches in ((gone, True), (kept, False)):
            some = [to for to in entry["destinations"] if meant(entry, to, wanted) is matches]
            if some:
                part[entry["mac"]] = some
    for entry in ask(vtep, "fdb.show", **wanted):
        assert gone[entry["mac"]] == entry["destinations"]
    assert len(ask(vtep, "fdb.show", **wanted)) == len(gone)
    assert ask(vtep, "fdb.flush", **wanted) == sum(len(some) for some in gone.values())
    after = ask(vtep, "fdb.show")
    assert {entry["mac"]: entry["destinations"] for entry in after} == kept
    assert ask(vtep, "fdb.flush", **wanted) == 0


def test_an_entry_that_stays_while_a_table_is_shown_is_shown_once(vtep: Still) -> None:
    fdb, remote = vtep.fdb, vtep.port.segment.remotes[0]
    macs = [number.to_bytes(6, "big") for number in range(1, 4001)]
    for mac in macs[:3000]:
        fdb.learn(mac, remote, 0.0)
    come, go = iter(macs[3000:]), macs[1:3000:2]
    result = asyncio.run(Methods(vtep, reload).call("fdb.show", {}))
    seen: list[bytes] = []
    for page in result.pages:
        assert len(page) <= 100
        seen += [parse_mac(entry["mac"]) for entry in page]
        for _ in range(10):  # From the far end, so that some are gone before they would be shown.
            if go:
                fdb.remove(go.pop())
            fdb.learn(next(come), remote, 0.0)
    stayed = [MAC_ZERO, *macs[0:3000:2]]
    assert [mac for mac in seen if mac in set(stayed)] == stayed
    assert len(set(seen)) == len(seen)
    assert set(macs[1:3000:2]) - set(seen)


def test_changes_are_logged(vtep: Still, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask(vtep, "fdb.flush")
    ask(vtep, "remote.add", remote="192.0.2.3")
    ask(vtep, "remote.del", remote="192.0.2.2")
    ask(vtep, "set", options={"max_addresses": 60, "learning": False})
    ask(vtep, "vni.del", vni=1)
    assert [record.getMessage() for record in caplog.records] == [
        "vni 1: flushed 0 FDB entries",
        "vni 1: remote 192.0.2.3 added",
        "vni 1: remote 192.0.2.2 deleted",
        "vni 1: set --max-addresses 60, --learning false",
        "vni 1 on vx0: deleted",
    ]


# --- segments -----------------------------------------------------------------------------------


def test_the_choice_of_the_segment(two: Still) -> None:
    with pytest.raises(ConfigError, match=r"^several segments: .*: vni 1 dev vx1, vni 2 dev vx2$"):
        ask(two, "fdb.get", mac=MAC)
    ask(two, "fdb.add", mac=MAC, dst="192.0.2.7", dev="vx2")
    assert ask(two, "fdb.get", mac=MAC, vni=2)["dev"] == "vx2"
    assert ask(two, "fdb.get", mac=MAC, vni="2", dev="vx2")["vni"] == 2
    assert [entry["vni"] for entry in ask(two, "fdb.show")] == [1, 2, 2]
    assert [entry["vni"] for entry in ask(two, "fdb.show", vni=1)] == [1]
    for params, words in (
        ({"vni": 3}, "vni 3: there is no such segment; there is vni 1 dev vx1, vni 2 dev vx2"),
        ({"dev": "vx3"}, "dev vx3: there is no such segment"),
        ({"vni": 1, "dev": "vx2"}, "dev vx2: contradicts vni 1, which is on vx1"),
    ):
        with pytest.raises(VtepError, match=words):
            ask(two, "fdb.get", mac=MAC, **params)
    with pytest.raises(
        ConfigError, match="several segments: choose one with --vni N or dev TAP: vni 1 "
    ):
        ask(two, "fdb.flush")
    assert ask(two, "fdb.flush", dev="vx2") == 1
    assert len(ask(two, "fdb.show")) == 2


def test_remotes_are_a_part_of_the_configuration(vtep: Still) -> None:
    ask(vtep, "remote.add", remote="192.0.2.3")
    ((_, config),) = vtep.told
    assert list(map(str, config.remote)) == ["192.0.2.2", "192.0.2.3"]
    ask(vtep, "remote.del", remote="192.0.2.2")
    assert vtep.told[1][1].remote == ()
    with pytest.raises(VtepError, match=r"--remote 192\.0\.2\.2: is a remote of vni 1 already"):
        ask(vtep, "remote.add", remote="192.0.2.2")
    with pytest.raises(
        VtepError, match=r"--remote 192\.0\.2\.9: is not a remote of vni 1; its remotes are "
    ):
        ask(vtep, "remote.del", remote="192.0.2.9")
    with pytest.raises(ConfigError, match="--remote http://host: is a URL; write the"):
        ask(vtep, "remote.add", remote="http://host")


@pytest.mark.parametrize("wanted", [{}, {"port": 4789}, {"static": True}, {"dynamic": False}])
def test_configured_remotes_are_flushed_on_demand_only(vtep: Still, wanted: dict[str, Any]) -> None:
    ask(vtep, "fdb.append", mac=ZERO, dst="192.0.2.7", state="static")
    assert ask(vtep, "fdb.flush", **wanted) == 1
    assert shown(vtep) == {ZERO: ["192.0.2.2"]}
    assert not vtep.port.segment.lacks_remotes()


def test_a_remote_that_was_flushed_can_be_added_again(vtep: Still) -> None:
    ask(vtep, "fdb.flush", permanent=True)
    assert ask(vtep, "remote.show") == []
    assert ask(vtep, "vni.show")[0]["remotes"] == []
    assert vtep.port.segment.lacks_remotes()
    ask(vtep, "remote.add", remote="192.0.2.2")
    assert vtep.told == []
    to = destination("192.0.2.2")
    row = {"vni": 1, "dev": "vx0", "name": None, "configured": True, **to}
    assert ask(vtep, "remote.show") == [row]


def test_a_remote_has_both_of_its_origins(vtep: Still) -> None:
    for dst in ("192.0.2.2", "192.0.2.7"):
        ask(vtep, "fdb.append", mac=ZERO, dst=dst, extern_learn=True)
    rows = ask(vtep, "remote.show")
    assert [(each["dst"], each["configured"], each["extern_learn"]) for each in rows] == [
        ("192.0.2.2", True, True),
        ("192.0.2.7", False, True),
    ]


def test_add_and_delete_a_segment(vtep: Still) -> None:
    told = ask(vtep, "vni.add", vni=7, options={"remote": ["192.0.2.9"], "max-addresses": "10"})
    assert (told["vni"], told["dev"], told["options"]["max-addresses"]) == (7, "vx7", 10)
    assert vtep.told[0] == (
        "add",
        Config(vni=7, remote=["192.0.2.9"], max_addresses=10),
    )
    ask(vtep, "vni.del", vni=7)
    assert vtep.told[1] == ("remove", 7)
    with pytest.raises(VtepError, match="vni 8: there is no such segment"):
        ask(vtep, "vni.del", vni=8)


def test_every_option_is_shown_and_can_be_given_again(vtep: Still) -> None:
    (segment,) = ask(vtep, "vni.show")
    options = segment["options"]
    assert set(options) == {field.name.replace("_", "-") for field in attrs.fields(Config)}
    assert options.pop("vni") == 1
    ask(vtep, "set", options=options)
    assert vtep.told == [("change", vtep.port.config)]


def test_invalid_options_change_nothing(vtep: Still) -> None:
    for options, words in (
        ({"ageing": -1}, "--ageing -1: must be from 0"),
        ({"ageing": 60, "mtu": 1}, "--mtu 1: must be from 68"),
        ({"max_adresses": 1}, "--max-adresses: is not an option"),
        ({"vni": 2}, "--vni: is not an option"),
        ({"learning": "yes"}, "--learning yes: must be"),
        ([], "options: must be an object"),
    ):
        with pytest.raises(ConfigError, match=words):
            ask(vtep, "set", options=options)
    assert vtep.told == []


def test_stats(two: Still) -> None:
    two.ports[2].segment.counters.flooded = 5
    told = ask(two, "stats")
    assert [segment["vni"] for segment in told["segments"]] == [1, 2]
    assert [s["counters"]["flooded"] for s in told["segments"]] == [0, 5]
    assert told["total"]["counters"]["flooded"] == 5
    assert told["total"]["drops"]["source_unknown"] == 0
    assert len(ask(two, "stats", vni=2)["segments"]) == 1


def test_stats_without_a_vni(two: Still) -> None:
    none, some = (ask(vtep, "stats") for vtep in (Still(), two))
    assert none["segments"] == []
    assert none["total"] == some["total"]


def test_reload(vtep: Still) -> None:
    assert ask(vtep, "reload") == "read again"


# --- judgement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("fdb.add", {"mac": MAC}, "dst: is missing"),
        ("fdb.add", {"dst": "192.0.2.2"}, "mac: is missing"),
        ("fdb.add", {"mac": MAC, "dts": "192.0.2.2"}, "dts: is not a parameter of fdb.add, wh"),
        ("fdb.add", {"mac": "02:00", "dst": "192.0.2.2"}, "mac: '02:00' is not a MAC address"),
        ("fdb.add", {"mac": 2, "dst": "192.0.2.2"}, "mac: must be a string"),
        ("fdb.add", {"mac": MAC, "dst": "nowhere"}, "dst 'nowhere': is not an IP address"),
        ("fdb.add", {"mac": MAC, "dst": 3221225986}, "dst: must be a string"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "port": 0}, "port 0: must be from 1"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "port": 1.5}, "port 1.5: is not a whole"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "port": True}, "port true: is not a whole"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "port": "x"}, "port x: is not a whole"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "dst_vni": 1 << 24}, "dst_vni 16777216: mus"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "state": "firm"}, "state firm: must be one"),
        ("fdb.add", {"mac": MAC, "dst": "192.0.2.2", "sticky": 1}, "sticky: must be true or fal"),
        ("fdb.del", {"mac": MAC, "port": 4790}, "dst: is missing, to which port would belong"),
        ("fdb.show", {"vni": -1}, "vni -1: must be from 0 to 16777215"),
        ("fdb.flush", {"static": "no"}, "static: must be true or false"),
        ("fdb.flush", {"dst": "x"}, "dst 'x': is not an IP address"),
        ("vni.add", {}, "vni: is missing"),
        ("vni.del", {}, "vni: is missing"),
        ("remote.add", {}, "remote: is missing"),
    ],
)
def test_invalid_parameters(vtep: Still, method: str, params: dict[str, Any], words: str) -> None:
    before = ask(vtep, "fdb.show")
    with pytest.raises(ConfigError) as refused:
        ask(vtep, method, **params)
    assert str(refused.value).startswith(words)
    assert (ask(vtep, "fdb.show"), vtep.told) == (before, [])


def test_an_unknown_method(vtep: Still) -> None:
    with pytest.raises(RpcError, match=r"fdb\.sow: there is no such method"):
        ask(vtep, "fdb.sow")


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.sampled_from(
        ["1", MAC, ZERO, "192.0.2.2", "fe80::1", "static", "dynamic", "vx0", "ff02::1"]
    ),
    st.lists(st.integers() | st.text(), max_size=2),
    st.dictionaries(
        st.text() | st.sampled_from(["ageing", "remote", "mtu"]), st.text(), max_size=2
    ),
)
TABLE = Methods(Still(Config(vni=1)), reload).table


@settings(max_examples=300)
@given(st.data())
def test_any_request_is_executed_or_refused(data: st.DataObject) -> None:
    vtep = Still(Config(vni=1, remote="192.0.2.2", tap="vx0"))
    method = data.draw(st.sampled_from(sorted(TABLE)))
    names = st.sampled_from([*TABLE[method].takes, "other"]) if TABLE[method].takes else st.text()
    params = data.draw(st.dictionaries(names, VALUES))
    with suppress(VtepError):
        ask(vtep, method, **params)


# --- events -------------------------------------------------------------------------------------


def test_each_change_is_one_event(two: Still) -> None:
    told: list[Any] = []
    leave = Events(two).watch(told.append)
    now = 100.0
    remote = two.ports[2].segment.remotes[0]

    def happened() -> tuple[Any, ...]:
        (event,) = told
        told.clear()
        to = [to["dst"] for to in event.get("destinations", [])]
        return event["event"], event.get("object"), event.get("vni"), event.get("mac"), to

    def does(change: Callable[[], Any]) -> tuple[Any, ...]:
        change()
        return happened()

    fdb, mac = two.ports[2].fdb, bytes.fromhex("020000000001")
    assert does(lambda: fdb.learn(mac, remote, now)) == ("added", "fdb", 2, MAC, ["192.0.2.3"])
    fdb.learn(mac, remote, now)
    assert told == []
    other = Remote("192.0.2.9", 4789)
    assert does(lambda: fdb.learn(mac, other, now)) == ("moved", "fdb", 2, MAC, ["192.0.2.9"])
    assert does(lambda: fdb.sweep(now + 400)) == ("expired", "fdb", 2, MAC, ["192.0.2.9"])
    assert does(lambda: fdb.add(mac, other, now, LEARNED))[0] == "added"
    assert does(lambda: fdb.flush(among=[fdb.get(mac)]))[0] == "deleted"
    assert does(lambda: ask(two, "fdb.append", vni=2, mac=ZERO, dst="192.0.2.8")) == (
        "changed",
        "remote",
        2,
        ZERO,
        ["192.0.2.3", "192.0.2.8"],
    )
    leave()
    fdb.learn(mac, remote, now)
    assert told == []


def test_loops_and_storms_are_events_and_can_be_shown(two: Still) -> None:
    told: list[Any] = []
    leave = Events(two).watch(told.append)
    segment, now = two.ports[2].segment, time.monotonic()
    assert ask(two, "loop.show") == []
    shown = ask(two, "storm.show", vni=2)
    assert [(row["traffic"], row["direction"]) for row in shown] == [
        *(("broadcast", "tx"), ("multicast", "tx"), ("unknown-unicast", "tx")),
        *(("broadcast", "rx"), ("multicast", "rx")),
    ]
    assert {row["state"] for row in shown} == {"forwarding"}

    segment.loops.note_returned("192.0.2.3", now)
    where = {"vni": 2, "dev": "vx2", "remote": "192.0.2.3"}
    assert told == [{"event": "blocked", "object": "loop", **where}]
    (row,) = ask(two, "loop.show")
    assert 29 <= row.pop("blocked") <= 30
    assert row == where
    segment.loops.unblock(now + 30)
    assert [each["event"] for each in told] == ["blocked", "unblocked"]
    assert ask(two, "loop.show") == []
    told.clear()

    segment.set_storm_limits(StormLimits(broadcast=Limit(10, 20)))
    broadcast = b"\xff" * 6 + bytes(8)
    for _ in range(25):
        segment.storm.limit_group(broadcast, now)
        segment.storm.limit_remote(broadcast, "192.0.2.3", now, 2)
    segment.storm.find_storms(now)
    source = {"traffic": "broadcast", "direction": "rx", "remote": "192.0.2.3"}
    in_segment = {"object": "storm", "vni": 2, "dev": "vx2"}
    assert told == [
        {"event": "began", **in_segment, **source, "direction": "tx", "remote": None, "dropped": 5},
        {"event": "began", **in_segment, **source, "dropped": 30},
    ]
    shown = ask(two, "storm.show", vni=2)
    assert [row["dropped"] for row in shown] == [5, 0, 0, 0, 30, 0]
    assert [row["rate"] for row in shown] == [10, None, None, 10, 10, None]
    assert shown[4].pop("age") < 30
    limit = {"rate": 10, "burst": 20, "state": "dropping", "dropped": 30}
    assert shown[4] == {"vni": 2, "dev": "vx2", **source, **limit}
    told.clear()
    segment.storm.find_storms(now + CALM_S)
    assert [(each["event"], each["direction"]) for each in told] == [
        ("ended", "tx"),
        ("ended", "rx"),
    ]
    leave()
    segment.loops.note_returned("192.0.2.3", now)
    assert len(told) == 2


def test_every_observer_gets_every_event(vtep: Still) -> None:
    events = Events(vtep)
    first: list[Any] = []
    second: list[Any] = []
    leave_first, leave_second = events.watch(first.append), events.watch(second.append)
    ask(vtep, "fdb.add", mac=MAC, dst="192.0.2.8")
    leave_first()
    ask(vtep, "fdb.del", mac=MAC)
    leave_second()
    ask(vtep, "fdb.add", mac=MAC, dst="192.0.2.8")
    assert [len(first), len(second)] == [1, 2]


def test_an_mtu_is_an_event_once_it_takes_effect(vtep: Still) -> None:
    told: list[Any] = []
    port = vtep.port
    Events(vtep).watch(told.append)
    for mtu in (1400, 1400, 1300, 1400):
        vtep._ports.notify("changed", port, {"mtu": 1400})
        port._tunnel.most = mtu
        vtep._ports.notify("changed", port, {"mtu": mtu})
    assert [event["mtu"] for event in told] == [1400, 1300, 1400]
