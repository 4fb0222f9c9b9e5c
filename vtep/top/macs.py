"""The MACs of one VNI, with rates, from samples of its FDB.

A sample has a bounded size, so a large FDB is visited in a cycle of many samples. The busiest MACs
and those that move are in each sample: their rates are those of the last second. Those of all
others are averages over a cycle.
"""

from collections.abc import Iterable
from heapq import nlargest
from typing import Final

from attrs import define, frozen

from vtep.control.schema import FdbSample, FdbSampleEntry
from vtep.top.rates import Row, Value, per_second
from vtep.top.tables import is_in

ROWS_MAX: Final = 500
"""MACs that are shown, which is as many as a sample has: an FDB of that size is shown whole."""

_BUSY, _MOVING = 70, 30
"""MACs in each request for their traffic, and for their moves: as many as a request may have."""

_KNOWN_MAX: Final = 200_000
"""MACs whose counters are remembered until their next sample: some 50 MB."""


@frozen
class MacRequest:
    """The next sample to ask for: entries of some MACs, and pages from one on."""

    vni: int
    macs: tuple[str, ...]
    page: int


@define
class _Known:
    """The last sample of a MAC."""

    entry: FdbSampleEntry
    at: float
    rx_rate: float | None = None
    tx_rate: float | None = None

    @property
    def traffic(self) -> float:
        return (self.rx_rate or 0.0) + (self.tx_rate or 0.0)

    @property
    def moves(self) -> tuple[bool, int]:
        return self.entry["held"] is not None, self.entry["moves"]


class MacSampler:
    """The MACs of a VNI. `wanted` is a filter for their text, and the address of their remote."""

    def __init__(self, vni: int, wanted: str = "") -> None:
        self.vni = vni
        self.fdb_entries = 0
        self._wanted = wanted.lower()
        self._page = 0
        self._cycle_began = 0.0
        self._known: dict[str, _Known] = {}
        self._shown: dict[str, _Known] = {}

    def select(self, wanted: str) -> None:
        """Show other MACs. Those that are known are found at once."""
        self._wanted = wanted.lower()
        matching = (known for known in self._known.values() if self._matches(known.entry))
        self._shown = _best(matching)

    def request(self) -> MacRequest:
        """Return what to ask for."""
        shown = self._shown.values()
        busy = nlargest(_BUSY, shown, key=lambda known: known.traffic)
        moving = nlargest(_MOVING, shown, key=lambda known: known.moves)
        macs = dict.fromkeys(known.entry["mac"] for known in (*busy, *moving))
        return MacRequest(self.vni, tuple(macs), self._page)

    def take(self, asked: MacRequest, sample: FdbSample) -> None:
        """Take the sample that was asked for."""
        there = {entry["mac"] for entry in sample["entries"]}
        for mac in asked.macs:
            if mac not in there:  # It was deleted, or has expired.
                self._known.pop(mac, None)
                self._shown.pop(mac, None)
        for entry in sample["entries"]:
            self._note(entry, sample["monotonic"])
        if len(self._shown) > ROWS_MAX:
            self._shown = _best(self._shown.values())
        if asked.page == 0:
            self._cycle_began = sample["monotonic"]
        if sample["next_page"] is None:  # What was not seen in a whole cycle is gone.
            self._known = _since(self._cycle_began, self._known)
            self._shown = _since(self._cycle_began, self._shown)
        self._page = sample["next_page"] or 0
        self.fdb_entries = sample["fdb_entries"]

    def rows(self) -> list[Row]:
        """Return the rows to show."""
        return [_row(self.vni, known) for known in self._shown.values()]

    def _note(self, entry: FdbSampleEntry, now: float) -> None:
        mac = entry["mac"]
        known = self._known.get(mac)
        if known is None:
            known = _Known(entry, now)
            if len(self._known) < _KNOWN_MAX:
                self._known[mac] = known
        elif now > known.at:
            counts, before = _counts(entry), _counts(known.entry)
            rates = per_second(before, counts, now - known.at)
            known.rx_rate, known.tx_rate = rates.get("rx"), rates.get("tx")
            known.entry, known.at = entry, now
        if self._matches(entry):
            self._shown[mac] = known

    def _matches(self, entry: FdbSampleEntry) -> bool:
        return is_in((entry["mac"], entry["dst"] or "", entry["state"]), self._wanted)


def _counts(entry: FdbSampleEntry) -> dict[str, int]:
    return {"rx": entry["rx_frames"], "tx": entry["tx_frames"]}


def _since(began: float, several: dict[str, _Known]) -> dict[str, _Known]:
    return {mac: known for mac, known in several.items() if known.at >= began}


def _best(several: Iterable[_Known]) -> dict[str, _Known]:
    """Return those to show: the busiest, and among idle ones those that have moved."""
    best = nlargest(ROWS_MAX, several, key=lambda known: (known.traffic, known.moves))
    return {known.entry["mac"]: known for known in best}


def _row(vni: int, known: _Known) -> Row:
    entry = known.entry
    values: dict[str, Value] = {
        "vni": vni,
        "mac": entry["mac"],
        "remote": entry["dst"],
        "state": "held" if entry["held"] is not None else entry["state"],
        "age": entry["age"],
        "moves": entry["moves"],
        "rx_frames_rate": known.rx_rate,
        "tx_frames_rate": known.tx_rate,
    }
    note = f"{entry['mac']}: {entry['rx_frames']} frames from it, {entry['tx_frames']} to it"
    if entry["held"] is not None:
        note += (
            f"; it moves too often, and is held at {entry['dst']} for {entry['held']:.0f} s: two "
            "hosts have this MAC, or there is a loop"
        )
    return Row("mac", (vni, entry["mac"]), values, note)
