"""The tables of top: their columns, how values are written, sorted and filtered."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Final

from attrs import field, frozen

from vtep.top.rates import Row, Value

_PREFIXES: Final = ("", "k", "M", "G", "T", "P", "E")
_NARROW: Final = 1000
UNKNOWN: Final = "-"


class ValueKind(Enum):
    """The kind of the values of a column."""

    TEXT = auto()
    NUMBER = auto()
    """A whole number that is written in full, such as a VNI."""
    COUNT = auto()
    """A number, or a rate a second."""
    OCTETS = auto()
    """A rate in octets a second, which is shown in bits or in octets."""
    SECONDS = auto()


@frozen
class Column:
    """A column: its name in batch mode, and its place on a screen.

    The first columns that fit are shown; the names of all are stable.
    """

    name: str
    heading: str
    width: int
    kind: ValueKind = ValueKind.TEXT

    @property
    def is_left(self) -> bool:
        """True for a column whose values begin at its left edge."""
        return self.kind is ValueKind.TEXT


@frozen
class TableLayout:
    """The columns of one kind of rows, and the one by which they are sorted at first."""

    kind: str
    title: str
    columns: tuple[Column, ...]
    sort: str
    is_rising: bool = False
    by_name: Mapping[str, Column] = field(init=False, eq=False, repr=False)

    @by_name.default
    def _by_name(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.columns}


_VNI = Column("vni", "VNI", 8, ValueKind.NUMBER)
_RX_BYTES = Column("rx_bytes_rate", "RX", 7, ValueKind.OCTETS)
_TX_BYTES = Column("tx_bytes_rate", "TX", 7, ValueKind.OCTETS)
_RX_FRAMES = Column("rx_frames_rate", "RX fr", 6, ValueKind.COUNT)
_TX_FRAMES = Column("tx_frames_rate", "TX fr", 6, ValueKind.COUNT)
_DROPS = Column("drops_rate", "drops", 6, ValueKind.COUNT)

VNIS = TableLayout(
    "vni",
    "VNIs",
    (
        _VNI,
        Column("dev", "device", 13),
        Column("state", "state", 7),
        *(_RX_BYTES, _TX_BYTES, _RX_FRAMES, _TX_FRAMES, _DROPS),
        Column("fdb_entries", "FDB", 6, ValueKind.COUNT),
        # On wider screens only: those above have 78 characters.
        Column("flooded_rate", "flood", 6, ValueKind.COUNT),
        Column("rx_superframes_rate", "RX sf", 6, ValueKind.COUNT),
        Column("tx_superframes_rate", "TX sf", 6, ValueKind.COUNT),
        Column("fdb_learned_rate", "learn", 6, ValueKind.COUNT),
        Column("fdb_moved_rate", "moves", 6, ValueKind.COUNT),
        Column("fast_path", "fast path", 9),
        Column("mtu", "MTU", 5, ValueKind.NUMBER),
        Column("bridge", "bridge", 15),
    ),
    "rx_bytes_rate",
)
REMOTES = TableLayout(
    "remote",
    "remotes",
    (
        _VNI,
        Column("remote", "remote", 20),
        Column("liveness", "liveness", 10),
        *(_RX_BYTES, _TX_BYTES, _RX_FRAMES, _TX_FRAMES),
        Column("last_seen", "seen", 5, ValueKind.SECONDS),
        # 77 characters so far.
        Column("path_mtu", "MTU", 5, ValueKind.NUMBER),
        Column("rtt", "RTT", 6, ValueKind.SECONDS),
        Column("fdb_entries", "FDB", 6, ValueKind.COUNT),
        Column("underlay_dev", "device", 15),
    ),
    "rx_bytes_rate",
)
MACS = TableLayout(
    "mac",
    "MACs",
    (
        Column("mac", "MAC", 17),
        Column("remote", "remote", 20),
        Column("state", "state", 9),
        Column("age", "age", 5, ValueKind.SECONDS),
        Column("moves", "moves", 5, ValueKind.COUNT),
        *(_RX_FRAMES, _TX_FRAMES),
        _VNI,
    ),
    "rx_frames_rate",
)
DROPS = TableLayout(
    "drop",
    "drops",
    (
        _VNI,
        Column("reason", "reason", 25),
        _DROPS,
        Column("drops", "count", 7, ValueKind.COUNT),
        Column("age", "age", 5, ValueKind.SECONDS),
        Column("source", "last source", 20),
    ),
    "drops_rate",
)
TABLES: Final = {table.kind: table for table in (VNIS, REMOTES, MACS, DROPS)}


def fitting(table: TableLayout, width: int) -> tuple[Column, ...]:
    """Return the columns that fit into a width in characters, at least the first one."""
    left = width - table.columns[0].width
    columns = [table.columns[0]]
    for column in table.columns[1:]:
        left -= column.width + 1
        if left < 0:
            break
        columns.append(column)
    return tuple(columns)


def arrange(rows: Iterable[Row], column: str, *, is_rising: bool) -> list[Row]:
    """Return rows in the order of a column.

    Rows without a value are last, and equal ones are in the order of their identity, so that they
    do not change places.
    """
    by_identity = sorted(rows, key=lambda row: [_order(value) for value in row.key])
    known = [row for row in by_identity if row.values.get(column) is not None]
    unknown = [row for row in by_identity if row.values.get(column) is None]
    known.sort(key=lambda row: _order(row.values.get(column)), reverse=not is_rising)
    return known + unknown


def _order(value: Value) -> tuple[int, float, str]:
    if value is None:
        return (0, 0.0, "")
    return (2, 0.0, value) if isinstance(value, str) else (1, value, "")


def matches(row: Row, table: TableLayout, wanted: str) -> bool:
    """Return True if a text column or the VNI of a row matches a filter (see `is_in`)."""
    return is_in(
        (
            str(row.values.get(column.name))
            for column in table.columns
            if column.kind in (ValueKind.TEXT, ValueKind.NUMBER)
            and row.values.get(column.name) is not None
        ),
        wanted,
    )


def is_in(texts: Iterable[str], wanted: str) -> bool:
    """Return True if one of several texts matches a filter, in upper or lower case.

    A filter is a part of a text, or a whole word of it behind "=".
    """
    wanted = wanted.lower()
    if wanted.startswith("="):
        return any(wanted[1:] in text.lower().split() for text in texts)
    return any(wanted in text.lower() for text in texts)


def written(value: Value, kind: ValueKind, *, bits: bool = True) -> str:
    """Return a value as it is shown: short, with three digits and a prefix."""
    if value is None:
        return UNKNOWN
    if isinstance(value, str):
        return printable(value)
    if kind is ValueKind.OCTETS:
        return short(value * 8 if bits else value)
    if kind is ValueKind.SECONDS:
        return short_time(value)
    return short(value) if kind is ValueKind.COUNT else str(value)


def printable(text: str) -> str:
    """Return a text without control characters, as a name of a device may have any octet."""
    return "".join(char if char.isprintable() else "?" for char in text)


def short(number: float) -> str:
    """Return a number of at least 0 with three digits or so, in at most six characters."""
    prefix = 0
    while number >= _NARROW - 0.5 and prefix < len(_PREFIXES) - 1:
        number /= _NARROW
        prefix += 1
    digits = 0 if number >= 99.95 or number == int(number) else 1 if number >= 9.995 else 2
    return f"{number:.{digits}f}{_PREFIXES[prefix]}"


def short_time(seconds: float) -> str:
    """Return a duration in at most five characters."""
    if 0 < seconds < 0.0995:
        return f"{seconds * 1000:.1f}ms"
    for unit, length, limit in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if seconds < length * limit:
            return f"{seconds / length:.{1 if seconds < 10 else 0}f}{unit}"
    return f"{seconds / 86400:.0f}d"


def line(columns: Sequence[Column], row: Row, *, bits: bool) -> str:
    """Return a row as a line of text."""
    return " ".join(
        _cell(column, written(row.values.get(column.name), column.kind, bits=bits))
        for column in columns
    )


def heading(columns: Sequence[Column], sort: str, *, is_rising: bool) -> str:
    """Return the line of the headings; a mark is at the one of the sort column."""
    mark = "▲" if is_rising else "▼"
    return " ".join(
        _cell(column, f"{column.heading}{mark}" if column.name == sort else column.heading)
        for column in columns
    )


def _cell(column: Column, text: str) -> str:
    if len(text) > column.width:
        text = f"{text[: column.width - 1]}…"
    return text.ljust(column.width) if column.is_left else text.rjust(column.width)
