"""The state of the screen: which rows are shown, in which order, and as which lines of text."""

from collections.abc import Sequence
from datetime import datetime, timezone
from enum import Enum, auto
from typing import Final

from attrs import define, field, frozen

from vtep.top.rates import Rates, Row, Value
from vtep.top.tables import (
    DROPS,
    MACS,
    REMOTES,
    TABLES,
    VNIS,
    TableLayout,
    ValueKind,
    arrange,
    fitting,
    heading,
    line,
    matches,
    printable,
    short,
    written,
)

HEAD_LINES: Final = 4
"""Lines above the rows: title, totals, message and headings."""

NOTE_LINES: Final = 2
"""Lines below the rows, about the row under the cursor."""

FOOTER: Final = "v VNIs r remotes m MACs d drops, s sort / filter p pause b bits, ? help q quit"

KEYS: Final = (
    ("↑ ↓ PgUp PgDn Home End", "move the cursor"),
    ("v r m d", "VNIs, remotes, MACs, drops"),
    ("Enter", "on a VNI: its remotes; on a remote: its MACs"),
    ("Esc", "clear the filter; go back to all VNIs"),
    ("s S", "sort by the next column, or by the previous one"),
    ("o", "reverse the order"),
    ("/", "show the rows that contain a text"),
    ("b", "bits or bytes"),
    ("p Space", "pause"),
    ("? h", "this help"),
    ("q", "quit"),
)
"""The keys, and what they do."""


class Style(Enum):
    """The role of a line, by which a terminal chooses its colours."""

    PLAIN = auto()
    TITLE = auto()
    ALERT = auto()
    """Something is wrong."""
    HEADING = auto()
    CURSOR = auto()
    DIM = auto()


@frozen
class Line:
    """A line of the screen."""

    text: str
    style: Style = Style.PLAIN


@define
class _Order:
    sort: str
    is_rising: bool


@define
class View:
    """The choices of the user, and the last rows."""

    zone: timezone | None = None
    """The time zone of the clock; None for that of the machine."""
    table: TableLayout = VNIS
    vni: int | None = None
    """The VNI whose remotes, MACs and drops are shown; None for all."""
    wanted: str = ""
    """The text that shown rows contain."""
    is_in_bits: bool = True
    is_paused: bool = False
    problem: str | None = None
    """The reason for which there are no new rows."""
    rates: Rates | None = None
    macs: Sequence[Row] = ()
    macs_in_fdb: int = 0
    _orders: dict[str, _Order] = field(
        factory=lambda: {
            table.kind: _Order(table.sort, table.is_rising) for table in TABLES.values()
        }
    )
    _cursor: tuple[Value, ...] | None = None
    """The key of the row under the cursor, which follows that row."""
    _top: int = 0
    """The position of the first row on the screen."""

    # --- input ------------------------------------------------------------------------------

    def show(self, table: TableLayout) -> None:
        """Show a table of the VNI that is chosen, or of all.

        MACs are those of one VNI: the one under the cursor, if none is chosen.
        """
        row = self.current()
        if table is VNIS:
            self.vni = None
        elif table is MACS and self.vni is None and row is not None:
            self._choose(row)
        self._switch(table)

    def enter(self) -> None:
        """Show more about the row under the cursor: remotes of a VNI, or MACs of a remote."""
        row = self.current()
        if row is not None and self.table is VNIS:
            self._choose(row)
            self._switch(REMOTES)
        elif row is not None and self.table is REMOTES:
            self._choose(row)
            self._switch(MACS)
            self.wanted = f"={row.values['remote']}"

    def back(self) -> None:
        """Clear the filter; without one, show all VNIs."""
        if self.wanted:
            self.wanted = ""
        elif self.table is not VNIS:
            vni, self.vni = self.vni, None
            self._switch(VNIS)
            self._cursor = (vni,) if vni is not None else None

    def _choose(self, row: Row) -> None:
        vni = row.values["vni"]
        self.vni = vni if isinstance(vni, int) else None

    def _switch(self, table: TableLayout) -> None:
        if table is not self.table:
            self.table, self.wanted = table, ""
            self._cursor, self._top = None, 0

    def move(self, rows: int) -> None:
        """Move the cursor by some rows, as far as there are some."""
        shown = self.rows()
        if shown:
            at = min(max(self._position(shown) + rows, 0), len(shown) - 1)
            self._cursor = shown[at].key

    def point(self, line: int) -> None:
        """Put the cursor on the row in a line of the table, counted from 0 below the headings."""
        shown = self.rows()[self._top :]
        if 0 <= line < len(shown):
            self._cursor = shown[line].key

    def sort_by(self, step: int) -> None:
        """Sort by the column that is `step` columns further: counts and rates the largest first."""
        names = list(self.table.by_name)
        order = self._order
        order.sort = names[(names.index(order.sort) + step) % len(names)]
        kind = self.table.by_name[order.sort].kind
        order.is_rising = kind in (ValueKind.TEXT, ValueKind.NUMBER, ValueKind.SECONDS)

    def reverse(self) -> None:
        """Reverse the order of the rows."""
        self._order.is_rising = not self._order.is_rising

    @property
    def _order(self) -> _Order:
        return self._orders[self.table.kind]

    # --- rows -------------------------------------------------------------------------------

    @property
    def vni_of_macs(self) -> int | None:
        """The VNI whose MACs are to be asked for; None unless they are shown.

        Those of all VNIs together would be too many: there must be a choice, or one VNI only.
        """
        if self.table is not MACS:
            return None
        rows = self.rates.vnis if self.rates is not None else ()
        if self.vni is None and len(rows) == 1:
            self._choose(rows[0])
        return self.vni

    def rows(self) -> list[Row]:
        """Return the rows of the table, in their order."""
        if self.rates is None:
            return []
        rows: Sequence[Row] = {
            VNIS.kind: self.rates.vnis,
            REMOTES.kind: self.rates.remotes,
            MACS.kind: self.macs,
            DROPS.kind: self.rates.drops,
        }[self.table.kind]
        if self.vni is not None:
            rows = [row for row in rows if row.values["vni"] == self.vni]
        if self.wanted:
            rows = [row for row in rows if matches(row, self.table, self.wanted)]
        return arrange(rows, self._order.sort, is_rising=self._order.is_rising)

    def current(self) -> Row | None:
        """Return the row under the cursor, or None if there are no rows."""
        rows = self.rows()
        return rows[self._position(rows)] if rows else None

    def _position(self, rows: Sequence[Row]) -> int:
        if self._cursor is not None:
            for position, row in enumerate(rows):
                if row.key == self._cursor:
                    return position
        return 0

    # --- lines ------------------------------------------------------------------------------

    def lines(self, width: int, height: int) -> list[Line]:
        """Return the lines of a screen, `height` of them, each of at most `width` characters."""
        columns = fitting(self.table, width)
        rows, space = self.rows(), max(1, height - HEAD_LINES - NOTE_LINES - 1)
        cursor = self._position(rows)
        # The part that is shown moves only if the cursor would leave it.
        self._top = min(max(self._top, cursor - space + 1), cursor, max(0, len(rows) - space))
        order = self._order
        lines = [
            Line(self._title(), Style.TITLE),
            Line(self._totals()),
            self._message(),
            Line(heading(columns, order.sort, is_rising=order.is_rising), Style.HEADING),
        ]
        for position, row in enumerate(rows[self._top : self._top + space], self._top):
            style = Style.CURSOR if position == cursor else _style(row)
            lines.append(Line(line(columns, row, bits=self.is_in_bits), style))
        if not rows:
            lines.append(Line(self._empty(), Style.DIM))
        lines += [Line("")] * (HEAD_LINES + space - len(lines))
        note = rows[cursor].note if rows else ""
        lines += [Line(text, Style.DIM) for text in wrapped(note, width, NOTE_LINES)]
        lines.append(Line(FOOTER, Style.TITLE))
        return [Line(each.text[:width], each.style) for each in lines[:height]]

    def _title(self) -> str:
        if self.rates is None:
            return "pyvtep top"
        total = self.rates.total.values
        clock = datetime.fromtimestamp(self.rates.time, self.zone).strftime("%H:%M:%S")
        of = "all VNIs" if self.vni is None else f"VNI {self.vni}"
        up = written(total["uptime"], ValueKind.SECONDS)
        return (
            f"pyvtep {printable(self.rates.version)}, pid {total['pid']}, up {up}, {clock}: "
            f"{self.table.title} of {of}"
        )

    def _totals(self) -> str:
        if self.rates is None:
            return ""
        # Without spaces, since all of it has to fit on 80 columns.
        unit = "b" if self.is_in_bits else "B"
        words = [f"drops {self._total('drops_rate')}/s"]
        for direction in ("rx", "tx"):
            octets = self._total(f"{direction}_bytes_rate", ValueKind.OCTETS)
            frames = self._total(f"{direction}_frames_rate")
            superframes = self._total(f"{direction}_superframes_rate")
            per_call = self._total(f"{direction}_frames_per_call")
            words.append(
                f"{direction.upper()} {octets}{unit} {frames}fr {superframes}sf {per_call}/c"
            )
        return "  ".join(words)

    def _total(self, name: str, kind: ValueKind = ValueKind.COUNT) -> str:
        total = self.rates.total.values if self.rates is not None else {}
        return written(total.get(name), kind, bits=self.is_in_bits)

    def _message(self) -> Line:
        """Return the line about what matters most."""
        if self.problem is not None:
            return Line(f"reconnecting: {printable(self.problem)}", Style.ALERT)
        if self.is_paused:
            return Line("paused: p goes on", Style.ALERT)
        if self.wanted:
            return Line(f"filter: {self.wanted} (Esc clears it)", Style.DIM)
        problems = self.rates.problems if self.rates is not None else ()
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            return Line(f"{printable(problems[0])}{more}", Style.ALERT)
        if self.table is MACS and self.macs_in_fdb > len(self.macs):
            return Line(
                f"{short(len(self.macs))} of {short(self.macs_in_fdb)} MACs: the busiest, and "
                "those that move",
                Style.DIM,
            )
        return Line("")

    def _empty(self) -> str:
        if self.rates is None:
            return "waiting for the first answer"
        if self.wanted:
            return f"nothing matches {self.wanted!r}"
        if self.table is MACS and self.vni_of_macs is None:
            return "choose a VNI first: v, then m on its row"
        return "none"


def _style(row: Row) -> Style:
    """Return the style of a row, which draws attention to one with something wrong."""
    values = row.values
    if values.get("liveness") in ("silent", "refused") or values.get("state") in (
        *("down", "missing", "waiting", "held"),
    ):
        return Style.ALERT
    return Style.PLAIN


def wrapped(text: str, width: int, count: int) -> list[str]:
    """Return a text as exactly `count` lines; one that is too long ends with a mark."""
    words, lines = printable(text).split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    if len(lines) > count:
        lines = lines[:count]
        lines[-1] = f"{lines[-1][: width - 1]}…"
    return lines + [""] * (count - len(lines))
