"""Top without a terminal: rates, MACs, tables and the lines of its screen."""

import copy
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import status_fake
from vtep.control.schema import FdbSample, FdbSampleEntry, Status
from vtep.top import batch
from vtep.top.macs import MacSampler
from vtep.top.model import Model
from vtep.top.rates import RateMeter, Row, per_second
from vtep.top.tables import (
    DROPS,
    MACS,
    REMOTES,
    TABLES,
    VNIS,
    ValueKind,
    arrange,
    fitting,
    is_in,
    line,
    short,
    short_time,
    written,
)
from vtep.top.view import View, wrapped

COUNTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1 << 64))


# --- rates ------------------------------------------------------------------------------------


@given(COUNTS | st.none(), COUNTS, st.floats(-10, 1e6))
def test_a_rate_is_unknown_rather_than_negative(
    before: dict[str, int] | None, now: dict[str, int], seconds: float
) -> None:
    rates = per_second(before, now, seconds)
    assert all(rate >= 0 for rate in rates.values())
    if before is not None and any(now.get(name, count) < count for name, count in before.items()):
        assert rates == {}
    for name, rate in rates.items():
        assert before is not None
        assert rate * seconds == pytest.approx(now[name] - before[name])


def by_key(rows: tuple[Row, ...]) -> dict[Any, Row]:
    return {row.key: row for row in rows}


def test_the_rows_of_two_statuses() -> None:
    meter = RateMeter(lambda drop, segment: f"{drop['reason']} of {segment and segment['vni']}")
    first = status_fake.status()
    rates = meter.take(first)
    assert all(row.values["rx_frames_rate"] is None for row in (*rates.vnis, *rates.remotes))
    rates = meter.take(status_fake.advanced(first, 2.0))
    assert rates.total.values["rx_bytes_rate"] == 2_000_000
    assert rates.total.values["drops_rate"] == 20
    vni = by_key(rates.vnis)[10,].values
    assert (vni["rx_frames_rate"], vni["tx_bytes_rate"], vni["drops_rate"]) == (1000, 1e6, 10)
    assert (vni["flooded_rate"], vni["fdb_entries"], vni["state"]) == (0, 5, "up")
    remotes = by_key(rates.remotes)
    assert remotes[10, "192.0.2.2"].values["rx_bytes_rate"] == 1e6
    assert remotes[10, "192.0.2.3"].values["rx_bytes_rate"] == 0
    assert "runs pyvtep; via eth0" in remotes[10, "192.0.2.2"].note
    assert "multicast group" in remotes[20, "239.1.1.1"].note
    drops = by_key(rates.drops)
    assert drops[10, "source_unknown"].values["drops_rate"] == 10
    assert drops[10, "source_unknown"].note == "source_unknown of 10"
    assert drops[None, "vni_unknown"].note == "vni_unknown of None"


def _restart(status: Status) -> None:
    status["pid"] += 1


def _lose(status: Status) -> None:
    for segment in status["segments"]:
        segment["counters"]["rx_frames"] = 0
    status["counters"]["rx_frames"] = 0


@pytest.mark.parametrize("change", [_restart, _lose])
def test_a_new_process_has_no_rates_for_one_interval(change: Callable[[Status], None]) -> None:
    meter = RateMeter()
    before = status_fake.status()
    meter.take(before)
    after = status_fake.advanced(before)
    change(after)
    rates = meter.take(after)
    assert {row.values["rx_frames_rate"] for row in (rates.total, *rates.vnis)} == {None}
    rates = meter.take(status_fake.advanced(after))
    assert {row.values["rx_frames_rate"] for row in rates.vnis} == {1000.0}


def test_a_vni_that_is_new_has_no_rates_and_the_others_have() -> None:
    meter = RateMeter()
    first = status_fake.status()
    first["segments"] = first["segments"][:1]
    meter.take(first)
    vnis = by_key(meter.take(status_fake.advanced(status_fake.status())).vnis)
    assert vnis[10,].values["rx_frames_rate"] == 1000
    assert vnis[20,].values["rx_frames_rate"] is None


# --- MACs -------------------------------------------------------------------------------------


class FakeFdb:
    """The FDB behind `fdb.sample`, with pages of 50 entries, 10 of them in a sample."""

    def __init__(self, count: int) -> None:
        self.entries = {mac: self._entry(mac) for mac in map(mac_of, range(count))}
        self.now = 100.0
        self.most = 0

    @staticmethod
    def _entry(mac: str) -> FdbSampleEntry:
        return {
            "mac": mac,
            "dst": "192.0.2.2",
            "state": "dynamic",
            "age": 1.0,
            "held": None,
            "moves": 0,
            "tx_frames": 0,
            "rx_frames": 0,
        }

    def poll(self, sampler: MacSampler, seconds: float = 1.0) -> None:
        """Give the sampler its next sample, some seconds after the last one."""
        self.now += seconds
        asked = sampler.request()
        assert len(asked.macs) <= 100
        macs = list(self.entries)
        first = asked.page * 50
        page = [mac for mac in macs[first : first + 500] if mac not in asked.macs]
        wanted = [mac for mac in asked.macs if mac in self.entries]
        entries = [copy.copy(self.entries[mac]) for mac in (*wanted, *page)]
        self.most = max(self.most, len(entries))
        end = first + 500 >= len(macs)
        sample: FdbSample = {
            "vni": 10,
            "dev": "vx10",
            "monotonic": self.now,
            "fdb_entries": len(macs),
            "entries": entries,
            "next_page": None if end else asked.page + 10,
        }
        sampler.take(asked, sample)


def mac_of(number: int) -> str:
    return (0x020000000000 + number).to_bytes(6, "big").hex(":")


def rates_of(sampler: MacSampler) -> dict[Any, Any]:
    return {row.values["mac"]: row.values["rx_frames_rate"] for row in sampler.rows()}


def test_a_small_fdb_is_shown_whole_with_the_rates_of_the_last_second() -> None:
    fdb, sampler = FakeFdb(300), MacSampler(10)
    fdb.poll(sampler)
    assert set(rates_of(sampler).values()) == {None}
    for number, entry in enumerate(fdb.entries.values()):
        entry["rx_frames"] += number
    fdb.poll(sampler, 2.0)
    assert rates_of(sampler) == {mac_of(number): number / 2 for number in range(300)}
    del fdb.entries[mac_of(7)]
    fdb.poll(sampler)
    assert len(sampler.rows()) == 299


def test_the_busy_macs_of_a_large_fdb_are_found_within_a_cycle_and_then_followed() -> None:
    fdb, sampler = FakeFdb(10_000), MacSampler(10)
    busy = {mac_of(number): number for number in range(50, 10_000, 250)}

    def forward() -> None:
        for mac, number in busy.items():
            fdb.entries[mac]["rx_frames"] += number
        fdb.poll(sampler)

    for _ in range(42):  # Two cycles of 20 samples, and one sample more.
        forward()
    for step in range(5):
        forward()
        rates = rates_of(sampler)
        assert {mac: rates[mac] for mac in busy} == pytest.approx(busy), step
        assert len(rates) <= 500
    assert fdb.most <= 600
    gone = next(iter(busy))
    del fdb.entries[gone], busy[gone]
    forward()
    assert gone not in rates_of(sampler)


def test_a_mac_that_moves_is_followed_and_a_filter_finds_any() -> None:
    fdb, sampler = FakeFdb(3_000), MacSampler(10)
    fdb.entries[mac_of(2_999)] |= {"moves": 4, "held": 12.0}
    for _ in range(13):
        fdb.poll(sampler)
    assert mac_of(2_999) in sampler.request().macs
    (row,) = [row for row in sampler.rows() if row.values["moves"]]
    assert row.values["state"] == "held"
    assert "is held at 192.0.2.2 for 12 s" in row.note
    sampler.select(mac_of(1_234).upper())
    assert [row.values["mac"] for row in sampler.rows()] == [mac_of(1_234)]


# --- tables -----------------------------------------------------------------------------------

VALUES = st.none() | st.integers(0, 1 << 70) | st.floats(0, 1e25) | st.text(max_size=40)


@given(st.integers(1, 300), st.data())
def test_a_line_is_as_wide_as_its_columns(width: int, data: st.DataObject) -> None:
    for table in TABLES.values():
        columns = fitting(table, width)
        row = Row("x", (), {column.name: data.draw(VALUES) for column in columns})
        text = line(columns, row, bits=data.draw(st.booleans()))
        assert len(text) == sum(column.width for column in columns) + len(columns) - 1
        assert len(text) <= max(width, columns[0].width)
        assert text.isprintable()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_the_columns_that_matter_fit_on_80(table: Any) -> None:
    names = {column.name for column in fitting(table, 80)}
    assert table.sort in names
    assert len(names) >= 6


@given(st.floats(0, 1e30))
def test_numbers_are_short_and_true(number: float) -> None:
    text = short(number)
    prefix = text[-1] if text[-1] in "kMGTPE" else ""
    value = float(text.removesuffix(prefix)) * 1000 ** "-kMGTPE".index(prefix or "-")
    assert value == pytest.approx(number, rel=0.006, abs=0.006)
    if number < 999e18:
        assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0, "0.0s"), (0.00025, "0.2ms"), (0.05, "50.0ms"), (3.4, "3.4s"), (40.2, "40s")],
        *[(120, "2m"), (7200, "2h"), (1e6, "12d")],
    ],
)
def test_times(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("2.0.2", True), ("=192.0.2.1", False), ("=192.0.2.10", True), ("=VX0", True), ("=vx", False)],
)
def test_a_filter_is_a_part_or_a_whole_word(wanted: str, found: bool) -> None:
    assert is_in(("vx0 in br0", "192.0.2.10"), wanted) is found


def test_bits_and_octets() -> None:
    assert written(1e6, ValueKind.OCTETS) == "8M"
    assert written(1e6, ValueKind.OCTETS, bits=False) == "1M"
    assert written(None, ValueKind.COUNT) == "-"


@given(st.lists(st.tuples(VALUES, st.integers(0, 9)), max_size=20), st.booleans())
def test_unknown_values_are_last_and_equal_rows_keep_their_places(
    several: list[tuple[Any, int]], rising: bool
) -> None:
    rows = [Row("x", (key,), {"value": value}) for value, key in several]
    arranged = arrange(rows, "value", is_rising=rising)
    assert sorted(map(id, arranged)) == sorted(map(id, rows))
    unknown = [row.values["value"] is None for row in arranged]
    assert unknown == sorted(unknown)
    again = arrange(reversed(rows), "value", is_rising=rising)
    assert [(row.key, row.values) for row in again] == [(row.key, row.values) for row in arranged]


# --- the view ---------------------------------------------------------------------------------


def model(first: Status | None = None) -> Model:
    """Return a model that has seen two statuses, a second apart."""
    made = Model(RateMeter(), View(zone=UTC))
    before = status_fake.status() if first is None else first
    made.take(before, None, None)
    made.take(status_fake.advanced(before), None, None)
    return made


def text_of(view: View, width: int = 80, height: int = 24) -> list[str]:
    lines = [each.text.rstrip() for each in view.lines(width, height)]
    assert len(lines) == height
    assert all(len(each) <= width for each in lines)
    return lines


ACTIONS: dict[str, Callable[[View], None]] = {
    "v": lambda view: view.show(VNIS),
    "r": lambda view: view.show(REMOTES),
    "m": lambda view: view.show(MACS),
    "d": lambda view: view.show(DROPS),
    "enter": View.enter,
    "escape": View.back,
    "down": lambda view: view.move(1),
    "up": lambda view: view.move(-1),
    "s": lambda view: view.sort_by(1),
    "S": lambda view: view.sort_by(-1),
    "o": View.reverse,
    "click": lambda view: view.point(1),
    "filter": lambda view: setattr(view, "wanted", "192.0.2"),
}


@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=15), st.integers(1, 200))
def test_every_sequence_of_keys_leaves_a_screen(keys: list[str], width: int) -> None:
    one = model()
    for key in keys:
        ACTIONS[key](one.view)
        text_of(one.view, width)
        one.request()
        # The drill-down is undone by as many steps back as there may be.
    for _ in range(2):
        one.view.back()
    assert (one.view.table, one.view.vni, one.view.wanted) == (VNIS, None, "")


def test_the_cursor_follows_its_row_and_the_screen_follows_the_cursor() -> None:
    several = [status_fake.segment(vni) for vni in range(1, 101)]
    one = model(status_fake.status(segments=several, problems=[]))
    view = one.view
    view.move(50)
    text_of(view)
    row = view.current()
    assert row is not None
    assert row.key == (51,)
    view.reverse()  # All rates are equal, so the order stays; now by VNI, falling.
    view.sort_by(-view.table.columns.index(view.table.by_name["rx_bytes_rate"]))
    view.reverse()
    lines = view.lines(80, 24)
    (under,) = [each.text for each in lines if each.style.name == "CURSOR"]
    assert under.split()[0] == "51"
    view.move(-1000)
    assert view.lines(80, 24)[4].text.split()[0] == "100"


def test_a_lost_connection_is_said_and_the_rows_stay() -> None:
    one = model()
    one.fail("no pyvtep answers there")
    lines = text_of(one.view)
    assert lines[2] == "reconnecting: no pyvtep answers there"
    assert any(" vx10 " in each for each in lines)
    one.take(status_fake.advanced(status_fake.status()), None, None)
    lines = text_of(one.view)
    assert "reconnecting" not in lines[2]
    assert lines[1].startswith("drops -/s  RX -b -fr")


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    segment = status_fake.segment(1, dev="vx\x1b[2J", bridge="b\n\x07")
    one = model(status_fake.status(segments=[segment], version="1\x1b", problems=[]))
    assert all(each.isprintable() for each in text_of(one.view))
    for text in (*batch.rows(one.view.rates), batch.json_line(one.view.rates)):  # type: ignore[arg-type]
        assert text.isprintable()


@given(st.text(max_size=300), st.integers(5, 100), st.integers(1, 3))
def test_a_text_is_wrapped_into_so_many_lines(text: str, width: int, count: int) -> None:
    lines = wrapped(text, width, count)
    assert len(lines) == count
    assert all(each.isprintable() for each in lines)


def test_every_row_of_batch_mode_has_a_value_for_each_heading() -> None:
    rates = model().view.rates
    assert rates is not None
    columns = {each.split()[0][1:]: each.split()[1:] for each in batch.headings()}
    rows = [each.split() for each in batch.rows(rates)]
    assert {row[0] for row in rows} == {"total", "vni", "remote", "drop"}
    for kind, *values in rows:
        assert len(values) == len(columns[kind])
    (vni,) = [
        dict(zip(columns["vni"], row[1:], strict=True))
        for row in rows
        if row[2] == "10" and row[0] == "vni"
    ]
    assert vni["rx_bytes_rate"] == "1000000.0"
    assert vni["time"] == "2027-01-15T08:00:01+00:00"
