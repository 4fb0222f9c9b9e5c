"""Batch mode of `pyvtep top`: rows for scripts, with numbers in full."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from vtep.top.rates import Rates, Row, Value
from vtep.top.tables import DROPS, MACS, REMOTES, TABLES, UNKNOWN, VNIS, TableLayout, printable

_TOTAL: Final = (
    *("version", "pid", "uptime", "vnis", "fdb_entries", "problems"),
    *("rx_bytes_rate", "tx_bytes_rate", "rx_frames_rate", "tx_frames_rate", "drops_rate"),
    *("rx_superframes_rate", "tx_superframes_rate", "rx_frames_per_call", "tx_frames_per_call"),
)
_KINDS: Final = {"total": _TOTAL} | {
    table.kind: tuple(column.name for column in table.columns) for table in TABLES.values()
}


def headings() -> Iterator[str]:
    """Yield a line for each kind of rows, with the names of its columns."""
    for kind, names in _KINDS.items():
        yield " ".join((f"#{kind}", "time", *names))


def rows(rates: Rates, macs: Sequence[Row] = ()) -> Iterator[str]:
    """Yield a line for each object: its kind, the time, and its values, separated by spaces.

    A value never contains a space, and "-" is one that is unknown.
    """
    time = _time(rates)
    for row in (rates.total, *rates.vnis, *rates.remotes, *macs, *rates.drops):
        values = (_plain(row.values.get(name)) for name in _KINDS[row.kind])
        yield " ".join((row.kind, time, *values))


def json_line(rates: Rates, macs: Sequence[Row] | None = None) -> str:
    """Return all rows as one JSON object on a line; a value that is unknown is null."""
    document: dict[str, object] = {
        "time": _time(rates),
        "total": rates.total.values,
        "vnis": _objects(rates.vnis, VNIS),
        "remotes": _objects(rates.remotes, REMOTES),
        "drops": [
            {**values, "hint": row.note}
            for values, row in zip(_objects(rates.drops, DROPS), rates.drops, strict=True)
        ],
        "problems": rates.problems,
    }
    if macs is not None:
        document["macs"] = _objects(macs, MACS)
    return json.dumps(document)


def _objects(several: Sequence[Row], table: TableLayout) -> list[dict[str, Value]]:
    return [{name: row.values.get(name) for name in table.by_name} for row in several]


def _time(rates: Rates) -> str:
    return datetime.fromtimestamp(rates.time, UTC).isoformat(timespec="seconds")


def _plain(value: Value) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, float):
        return f"{value:.6g}" if value < 1 else f"{value:.1f}"
    text = "_".join(printable(str(value)).split())
    return text or UNKNOWN
