"""Positions of keys and values in a TOML text, which `tomllib` does not report.

For texts that `tomllib` has accepted: this checks no more than is needed to find the keys again.
"""

import re
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

Path = tuple[str | int, ...]
"""Position in a document: keys, and indices of arrays."""

_TOKEN = re.compile(
    r'''
    (?P<blank> [ \t\r]+ | \#[^\n]* )
    | (?P<newline> \n )
    | (?P<string> """ (?: \\. | [^\\] )*? """ "{0,2} | \'\'\' .*? \'\'\' '{0,2}
                  | " (?: \\. | [^"\\] )* " | ' [^']* ' )
    | (?P<mark> [][{}=,.] )
    | (?P<word> [^][{}=,.\s\#"']+ )
    ''',
    re.VERBOSE | re.DOTALL,
)


_AFTER = (",", "]", "}")
"""Tokens that may follow a value on its line."""


class _Token(NamedTuple):
    kind: str
    text: str
    line: int
    begin: int
    """Offset in the text, in characters."""


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for found in _TOKEN.finditer(text):
        if found.lastgroup != "blank":
            yield _Token(str(found.lastgroup), found[0], line, found.start())
        line += found[0].count("\n")
    yield _Token("end", "", line, len(text))


def locate(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each key, table and item. Raises: ValueError if not TOML."""
    return _Scanner(text).lines


def spellings(text: str) -> dict[Path, str]:
    """Return each value and array item as it is written. Raises: ValueError if not TOML."""
    return _Scanner(text).spellings


def repeated(text: str) -> list[tuple[Path, int, int]]:
    """Return each repeated key, with the lines of the first and the later occurrence.

    For texts that `tomllib` has refused for that reason, since some tables may be continued. Any
    other error in the text ends the list.
    """
    found: list[tuple[Path, int, int]] = []
    with suppress(ValueError, RecursionError):
        _Scanner(text, found)
    return found


class _Scanner:
    """A recursive descent over the tokens of one text, which records lines and spellings."""

    def __init__(self, text: str, repeated: list[tuple[Path, int, int]] | None = None) -> None:
        self._repeated = [] if repeated is None else repeated
        self.lines: dict[Path, int] = {}
        self.spellings: dict[Path, str] = {}
        self._text = text
        self._end = 0  # Offset of the end of the last token.
        self._rest = _tokens(text)
        self._next = next(self._rest)
        self._tables: dict[Path, int] = {}  # Index of the last table of each array.
        table: Path = ()
        while self._next.kind != "end":
            if self._next.kind == "newline":
                self._take()
            elif self._next.text == "[":
                table = self._header()
            else:
                self._pair(table)

    def _take(self) -> _Token:
        token = self._next
        if token.kind == "end":
            raise ValueError("the text ends too early")
        self._end = token.begin + len(token.text)
        self._next = next(self._rest)
        return token

    def _header(self) -> Path:
        """Parse `[table]` or `[[table]]`. Returns: the path of the table."""
        line = self._take().line
        several = self._next.text == "["
        if several:
            self._take()
        path: Path = ()
        *parents, last = self._key()
        for part in parents:
            path = self._latest((*path, part), line)
        path = (*path, last)
        if path in self.lines and (not several or path not in self._tables):
            self._repeated.append((path, self.lines[path], line))
        if several:
            self._tables[path] = self._tables.get(path, -1) + 1
            self.lines.setdefault(path, line)
        path = self._latest(path, line)
        self.lines[path] = line
        while self._next.kind not in ("newline", "end"):
            self._take()
        return path

    def _latest(self, path: Path, line: int) -> Path:
        self.lines.setdefault(path, line)
        return (*path, self._tables[path]) if path in self._tables else path

    def _key(self) -> list[str]:
        parts = [_name(self._take())]
        while self._next.text == ".":
            self._take()
            parts.append(_name(self._take()))
        return parts

    def _pair(self, table: Path) -> None:
        line = self._next.line
        path = table
        *parents, last = self._key()
        for part in parents:
            path = (*path, part)
            self.lines.setdefault(path, line)
        path = (*path, last)
        if self.lines.setdefault(path, line) != line:
            self._repeated.append((path, self.lines[path], line))
        if self._take().text != "=":
            raise ValueError(f"a key without a value in line {line}")
        self._value(path)

    def _value(self, path: Path) -> None:
        begin = self._next.begin
        self._skip_value(path)
        self.spellings[path] = self._text[begin : self._end]

    def _skip_value(self, path: Path) -> None:
        if self._next.text == "[":
            self._items(path)
        elif self._next.text == "{":
            self._take()
            while self._next.text != "}":
                if self._next.text == "," or self._next.kind == "newline":
                    self._take()
                else:
                    self._pair(path)
            self._take()
        else:  # Numbers and dates may be several tokens.
            while self._next.kind not in ("newline", "end") and self._next.text not in _AFTER:
                self._take()

    def _items(self, path: Path) -> None:
        self._take()
        number = 0
        while self._next.text != "]":
            if self._next.text == "," or self._next.kind == "newline":
                self._take()
                continue
            if self._next.kind == "end" or self._next.text in _AFTER:
                # No value: without this, a text that is not TOML would be scanned for ever.
                raise ValueError(f"an array without a value in line {self._next.line}")
            self.lines[(*path, number)] = self._next.line
            self._value((*path, number))
            number += 1
        self._take()


def _name(token: _Token) -> str:
    if token.kind != "string":
        return token.text
    # Let tomllib resolve quotes and escapes: "y\u0041" is the key yA.
    return str(tomllib.loads(f"key = {token.text}")["key"])
