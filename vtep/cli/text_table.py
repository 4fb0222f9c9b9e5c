"""Tables as lines of text, laid out page by page: fast, and in constant memory for any length."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

_PAGE = 1000
"""Rows that are laid out at a time, with the widths of their columns."""

_GAP = "  "


def lines(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the headings, and a line for each row; nothing without rows.

    `columns` has the headings, each with its alignment: "right", or "" for left. A column gets no
    narrower from page to page.
    """
    # Not a table of rich, which takes a millisecond for each row.
    remaining = iter(rows)
    headings = [*columns]
    to_right = [alignment == "right" for alignment in columns.values()]
    widths = [_width(heading) for heading in headings]
    is_first = True
    while page := [[*map(_text, row)] for row in islice(remaining, _PAGE)]:
        for position, cells in enumerate(zip(*page, strict=True)):
            widths[position] = max(widths[position], *map(_width, cells))
        if is_first:
            yield _line(headings, widths, to_right)
            is_first = False
        for row in page:
            yield _line(row, widths, to_right)


def _line(cells: Iterable[str], widths: Iterable[int], to_right: Iterable[bool]) -> str:
    padded = (
        " " * (width - _width(cell)) + cell if right else cell + " " * (width - _width(cell))
        for cell, width, right in zip(cells, widths, to_right, strict=True)
    )
    return _GAP.join(padded).rstrip()


def _text(cell: object) -> str:
    """Return a cell as text that moves no cursor, whatever name is in it."""
    text = str(cell)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _width(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415  for a few names only

    return cell_len(text)
