"""counters: the reasons, their names, and what is told of them."""

import re

import attrs
import pytest

from vtep.counters import Counters, Drop, Notice, Unit, duration
from vtep.daemon.drop_log import DropLog
from vtep.daemon.expected_drops import ExpectedDrops
from vtep.daemon.unmatched import UnmatchedVteps

HIDDEN = ("drops", "last_detail", "last_source")
RUNT = Drop.INNER_RUNT
FLAGS = Drop.FLAGS_INVALID


@pytest.mark.parametrize("reason", list(Drop))
def test_reason(reason: Drop) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.value)
    assert reason.name == reason.value.upper()
    assert str(reason) == f"{reason}" == reason.value
    assert reason == reason.value
    assert len(reason.meaning) > len(reason.value)


@pytest.mark.parametrize("reason", [Drop.RX_QUEUE_FULL, Drop.TAP_QUEUE_FULL])
def test_inexact_counts_of_the_kernel_say_at_least(reason: Drop) -> None:
    assert "at least" in reason.meaning


def test_meanings_differ() -> None:
    assert len({reason.meaning for reason in Drop}) == len(Drop)


def test_names_that_scripts_know() -> None:
    assert {reason.value for reason in Drop} >= {
        "header_truncated",
        "flags_invalid",
        "vni_unknown",
        "source_unknown",
        "inner_runt",
        "inner_source_invalid",
        "inner_source_own",
        "tx_runt",
    }


def test_everything_begins_at_zero() -> None:
    counters = Counters().as_dict()
    assert set(counters.values()) == {0}
    assert {f"drop_{reason.value}" for reason in Drop} <= counters.keys()


def test_every_counter_is_in_the_dict_under_its_name() -> None:
    counters = Counters()
    plain = [each.name for each in attrs.fields(Counters) if each.type is int]
    for number, name in enumerate(plain, 1):
        setattr(counters, name, number)
    counters.drop(RUNT)
    counters.drop(RUNT, "192.0.2.1")
    expected = {name: number for number, name in enumerate(plain, 1)}
    expected |= {f"drop_{reason.value}": 0 for reason in Drop} | {"drop_inner_runt": 2}
    assert counters.as_dict() == expected


def test_every_counter_has_a_unit_and_a_help_text() -> None:
    described = [each.metadata for each in attrs.fields(Counters) if each.type is int]
    assert described
    assert all(each["unit"] in Unit and each["help"] for each in described)
    assert len({(each["unit"], each["help"]) for each in described}) == len(described)


def test_dict_is_a_copy() -> None:
    counters = Counters()
    before = counters.as_dict()
    counters.drop(RUNT)
    counters.rx_frames += 1
    assert set(before.values()) == {0}


def test_counters_share_nothing() -> None:
    one, other = Counters(), Counters()
    one.drop(RUNT, "192.0.2.1")
    assert set(other.as_dict().values()) == {0}
    assert other.last_source == {}


def test_misspelt_counter() -> None:
    with pytest.raises(AttributeError):
        setattr(Counters(), "rx_frame", 1)  # noqa: B010  a plain assignment would not type-check


def test_source_is_the_last_one_that_is_known() -> None:
    counters = Counters()
    counters.drop(RUNT, "192.0.2.1")
    counters.drop(RUNT, "192.0.2.2")
    counters.drop(RUNT)
    counters.drop(FLAGS)
    assert counters.last_source == {RUNT: "192.0.2.2"}
    assert (counters.drops[RUNT], counters.drops[FLAGS]) == (3, 1)


def test_the_time_of_the_last_increase_is_noted() -> None:
    counters = Counters()
    counters.note_drops(1.0)
    assert counters.last_drop == {}
    counters.drop(RUNT)
    counters.drop(RUNT)
    counters.note_drops(2.0)
    counters.note_drops(3.0)
    assert counters.last_drop == {RUNT: 2.0}
    counters.drop(FLAGS)
    counters.note_drops(4.0)
    counters.drop(RUNT)
    counters.note_drops(5.0)
    assert counters.last_drop == {FLAGS: 4.0, RUNT: 5.0}


def test_a_reset_is_a_baseline() -> None:
    counters = Counters()
    counters.drop(RUNT)
    counters.rx_frames = 7
    assert counters.since_reset() == counters.as_dict()
    counters.reset()
    assert set(counters.since_reset().values()) == {0}
    assert (counters.drops[RUNT], counters.rx_frames) == (1, 7)
    counters.drop(RUNT, count=2)
    counters.rx_frames += 1
    since = counters.since_reset()
    assert (since["drop_inner_runt"], since["rx_frames"]) == (2, 1)
    assert counters.as_dict()["drop_inner_runt"] == 3


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
    assert duration(400000) == "5 days"


# --- what is told -----------------------------------------------------------------------------


def test_no_lines_without_drops() -> None:
    assert DropLog().news(0.0, [("", Counters())]) == []


def test_line() -> None:
    counters = Counters()
    counters.drop(RUNT, "192.0.2.1")
    counters.drop(RUNT, "192.0.2.2")
    assert DropLog().news(0.0, [("", counters)]) == [
        f"dropped 2 x inner_runt: {RUNT.meaning} (last: 192.0.2.2)"
    ]


def test_expected_losses_are_never_reported() -> None:
    counters, log = Counters(), DropLog()
    counters.drop(Drop.NO_REMOTE, count=3)
    counters.drop(RUNT)
    log.note("vni 1", counters, (Drop.NO_REMOTE,))
    assert log.news(0.0) == [f"dropped 1 x inner_runt: {RUNT.meaning} (vni 1)"]
    counters.drop(Drop.NO_REMOTE, count=2)
    log.note("vni 1", counters)
    assert log.news(60.0) == [f"dropped 2 x no_remote: {Drop.NO_REMOTE.meaning} (vni 1)"]


def test_line_without_source() -> None:
    counters = Counters()
    counters.drop(RUNT)
    assert DropLog().news(0.0, [("", counters)]) == [f"dropped 1 x inner_runt: {RUNT.meaning}"]


def test_details() -> None:
    counters = Counters()
    counters.drop(Drop.VNI_UNKNOWN, "192.0.2.1", 1, 7)
    counters.drop(Drop.TX_TAGGED, count=2, detail=10)
    counters.drop(Drop.NO_REMOTE, detail=bytes(6))
    counters.drop(RUNT, "192.0.2.1")
    assert DropLog().news(0.0, [("", counters)]) == [
        f"dropped 1 x vni_unknown: {Drop.VNI_UNKNOWN.meaning} (last: 192.0.2.1, vni 7)",
        f"dropped 1 x inner_runt: {RUNT.meaning} (last: 192.0.2.1)",
        f"dropped 2 x tx_tagged: {Drop.TX_TAGGED.meaning} (last: VLAN 10)",
        (
            f"dropped 1 x no_remote: {Drop.NO_REMOTE.meaning} "
            "(last: destination MAC 00:00:00:00:00:00)"
        ),
    ]


@pytest.mark.parametrize("notice", list(Notice))
def test_notices_are_logged_as_rarely_as_drops(notice: Notice) -> None:
    counters = Counters()
    drop_log = DropLog(interval=10.0)
    setattr(counters, notice, 3)
    counters.last_source[notice] = "192.0.2.1"
    line = f"3 x {notice}: {notice.meaning} (last: 192.0.2.1)"
    assert drop_log.news(0.0, [("", counters)]) == [line]
    setattr(counters, notice, 5)
    assert drop_log.news(5.0, [("", counters)]) == []
    assert drop_log.news(10.0, [("", counters)])[0].startswith(f"2 x {notice}: ")


def counts(lines: list[str]) -> dict[str, int]:
    found = (re.match(r"dropped (\d+) x (\w+): ", line) for line in lines)
    return {match[2]: int(match[1]) for match in found if match is not None}


def test_a_vtep_whose_route_targets_match_nothing_is_explained() -> None:
    unmatched, counters = UnmatchedVteps(), Counters()
    drop_log = DropLog(unmatched=unmatched)
    unmatched.replace([("192.0.2.9", "192.0.2.1", [f"65001:{number}" for number in range(5)])])
    counters.drop(Drop.SOURCE_UNKNOWN, "192.0.2.9")
    (line,) = drop_log.news(0.0, [("vni 100", counters)])
    assert line.endswith(
        "(vni 100; last: 192.0.2.9, announces route targets 65001:0, 65001:1, 65001:2 and 2 more "
        "by way of 192.0.2.1, which no VNI here imports)"
    )
    unmatched.replace(
        [("192.0.2.9", "192.0.2.1", ["65001:1"]), ("192.0.2.9", "192.0.2.1", ["7:2"])]
    )
    assert "targets 65001:1, 7:2 by" in (unmatched.explain(Drop.SOURCE_UNKNOWN, "192.0.2.9") or "")
    assert unmatched.explain(Drop.SOURCE_UNKNOWN, "192.0.2.8") is None
    assert unmatched.explain(Drop.INNER_RUNT, "192.0.2.9") is None
    assert unmatched.explain(Drop.SOURCE_UNKNOWN, None) is None
    unmatched.replace([("192.0.2.9", "fe80::1%eth0", ())])
    assert unmatched.explain(Drop.SOURCE_UNKNOWN, "192.0.2.9") == (
        "announces routes without a target by way of fe80::1%eth0, which no VNI here imports"
    )


def test_once_and_then_once_a_minute() -> None:
    counters = Counters()
    drop_log = DropLog()
    told = {}
    for second in range(1000, 1200):
        counters.drop(RUNT)
        if lines := drop_log.news(float(second), [("", counters)]):
            told[second] = counts(lines)
    assert told == {
        1000: {"inner_runt": 1},
        1060: {"inner_runt": 60},
        1120: {"inner_runt": 60},
        1180: {"inner_runt": 60},
    }


def test_first_drop_after_a_silence_is_reported_at_once() -> None:
    counters = Counters()
    drop_log = DropLog(interval=10.0)
    counters.drop(RUNT)
    assert counts(drop_log.news(0.0, [("", counters)])) == {"inner_runt": 1}
    assert drop_log.news(50.0, [("", counters)]) == []
    counters.drop(RUNT)
    assert counts(drop_log.news(51.0, [("", counters)])) == {"inner_runt": 1}
    assert drop_log.news(200.0, [("", counters)]) == []


def test_reasons_do_not_silence_each_other() -> None:
    counters = Counters()
    drop_log = DropLog(interval=10.0)
    counters.drop(RUNT)
    assert counts(drop_log.news(0.0, [("", counters)])) == {"inner_runt": 1}
    counters.drop(RUNT)
    counters.drop(FLAGS)
    assert counts(drop_log.news(5.0, [("", counters)])) == {"flags_invalid": 1}
    assert counts(drop_log.news(10.0, [("", counters)])) == {"inner_runt": 1}


def test_nothing_is_reported_twice_nor_lost() -> None:
    counters = Counters()
    drop_log = DropLog(interval=7.0)
    total = 0
    for second in range(100):
        if second < 80 and second % 3 == 0:
            counters.drop(RUNT)
        total += sum(counts(drop_log.news(float(second), [("", counters)])).values())
    assert total == counters.drops[RUNT]


def test_several_vnis_are_reported_in_one_line() -> None:
    parts = [(f"vni {number}", Counters()) for number in range(6)]
    drop_log = DropLog(interval=10.0)
    for number in (1, 2, 3, 5):
        parts[number][1].drop(RUNT, f"192.0.2.{number}", number)
    assert drop_log.news(0.0, parts) == [
        f"dropped 11 x inner_runt: {RUNT.meaning} (vni 1, vni 2, vni 3 and 1 more; last: 192.0.2.5)"
    ]
    parts[0][1].drop(RUNT)
    parts[4][1].drop(FLAGS)
    assert counts(drop_log.news(5.0, parts)) == {"flags_invalid": 1}
    del parts[1:]
    assert drop_log.news(10.0, parts) == [f"dropped 1 x inner_runt: {RUNT.meaning} (vni 0)"]
    assert drop_log.news(100.0, parts) == []


def test_drops_before_the_routes_of_a_fabric_are_no_fault() -> None:
    counters, expected = Counters(), ExpectedDrops()

    def tick(now: float, *members: str) -> set[Drop]:
        return {*expected.tick(counters, now, has_remotes=bool(members), members=members)}

    before = {Drop.NO_REMOTE, Drop.SOURCE_UNKNOWN}
    assert tick(0.0) == before
    assert tick(9.0) == before
    # Perhaps no route target matches.
    assert tick(11.0) == {Drop.NO_REMOTE}
    # Since the last tick, it has got the first route.
    assert tick(12.0, "192.0.2.2") == {Drop.NO_REMOTE}
    assert tick(13.0, "192.0.2.2") == set()
    counters.drop(Drop.SOURCE_UNKNOWN, "192.0.2.3")
    assert tick(14.0, "192.0.2.2") == set()
    # The routes of another VTEP have come after its first frames.
    assert tick(15.0, "192.0.2.2", "192.0.2.3") == {Drop.SOURCE_UNKNOWN}
    # All are withdrawn.
    assert tick(16.0) == before


def test_expected_drops_are_not_recent_ones() -> None:
    counters = Counters()
    counters.drop(Drop.NO_REMOTE)
    counters.note_drops(1.0, (Drop.NO_REMOTE,))
    counters.note_drops(2.0)
    assert not counters.last_drop
    counters.drop(Drop.NO_REMOTE)
    counters.note_drops(3.0)
    assert counters.last_drop == {Drop.NO_REMOTE: 3.0}
