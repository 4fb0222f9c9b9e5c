"""The configuration file: TOML text to `Settings`, or every line that makes no sense.

Keys are the options' names without the dashes. What stands before the first `[[vni]]` is about the
process, or holds for all VNIs; each `[[vni]]` table is one, with its VNI as `id`::

    remote = ["192.0.2.2", "192.0.2.3"]

    [[vni]]
    id = 100
    bridge = "br0"

Nothing here raises anything but `FileError`, whatever the text is.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import attrs

from vtep.config import Config, Settings, conflicts, option_parsers
from vtep.config.toml_lines import Path, locate, repeated, spellings
from vtep.errors import ConfigError, OptionError, VtepError, shortened, shown

TABLE = "vni"
ID = "id"

_ONE_WAY = "vni: write each VNI as a table, below a line [[vni]]"


def _by_key(fields: "tuple[attrs.Attribute[Any], ...]") -> "dict[str, attrs.Attribute[Any]]":
    return {field.name.replace("_", "-"): field for field in fields}


_OPTIONS = _by_key(attrs.fields(Config))
_OF_ONE = _OPTIONS | {ID: _OPTIONS["vni"]}
del _OF_ONE["vni"]
_OF_ALL = {key: field for key, field in _OF_ONE.items() if key not in (ID, "tap", "mac", "address")}
_OF_PROCESS = _by_key(attrs.fields(Settings))
del _OF_PROCESS["segments"]


_SYNONYMS = {
    "vni": ID,
    "peer": "remote",
    "peers": "remote",
    "port": "dstport",
    "device": "dev",
    "interface": "dev",
    "master": "bridge",
    "name": "tap",
    "ip": "address",
    "maxaddress": "max-addresses",
}
"""Keys that other programs have for what is here a key of another name."""


class FileError(ConfigError):
    """A configuration file that makes no sense; `problems` has a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = tuple(str(ConfigError(problem)) for problem in problems)


def problems_of(error: VtepError) -> tuple[str, ...]:
    """What is wrong, a line for each."""
    return error.problems if isinstance(error, FileError) else (str(error),)


def parse(text: str, name: str) -> Settings:
    """What the text of a configuration file asks for.

    Raises FileError with every problem, as `name:line: what is wrong`.
    """
    return _Reader(text, name).settings()


class _Reader:
    """Reads one text, and collects what is wrong with it."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._text = text
        self._problems: list[tuple[int, str]] = []
        self._lines: Mapping[Path, int] = {}
        self._document: dict[str, Any] = {}
        try:
            self._document = tomllib.loads(text)
            self._lines = locate(text)
        except RecursionError:
            self._problems.append((1, "is nested too deeply"))
        except ValueError as error:  # A number of too many digits is one, too.
            self._problems.append(_line_and_reason(error, text))

    def settings(self) -> Settings:
        process: dict[str, Any] = {}
        common: dict[str, Any] = {}
        for key, value in self._document.items():
            if key == TABLE:
                continue
            if key in _OF_PROCESS:
                if self._is_good((key,), _OF_PROCESS[key], value):
                    process[_OF_PROCESS[key].name] = value
            elif key in _OF_ALL:
                if self._is_good((key,), _OF_ALL[key], value):
                    common[_OF_ALL[key].name] = value
            elif key in _OF_ONE:
                self._complain((key,), f"{key}: belongs into a [[vni]] table")
            else:
                self._unknown((key,), [TABLE, *_OF_PROCESS, *_OF_ALL])
        if TABLE not in self._document and not self._problems:
            # More likely a file that was cut off than one that means to end every VNI.
            self._complain((), f"there is no [[{TABLE}]] table; where none is meant: {TABLE} = []")
        segments = self._segments(common)
        for config, error in conflicts(segments.values()):
            number = next(number for number, other in segments.items() if other is config)
            self._complain_of(number, error)
        if not self._problems:
            try:
                return Settings(segments=segments.values(), **process)
            except ConfigError as error:
                what = _in_file(error)
                self._complain((_key_of(what),), what)
        raise FileError([f"{self._name}:{line}: {what}" for line, what in sorted(self._problems)])

    def _segments(self, common: Mapping[str, Any]) -> dict[int, Config]:
        """The good ones by their number in the file."""
        tables = self._document.get(TABLE, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._complain((TABLE,), _ONE_WAY)
            return {}
        segments = {}
        for number, table in enumerate(tables):
            options = dict(common)
            before = len(self._problems)
            for key, value in table.items():
                if key in _OF_PROCESS:
                    what = f"{key}: is of the whole process: it belongs above the first [[vni]]"
                    self._complain((TABLE, number, key), what)
                elif key not in _OF_ONE:
                    self._unknown((TABLE, number, key), list(_OF_ONE))
                elif self._is_good((TABLE, number, key), _OF_ONE[key], value):
                    options[_OF_ONE[key].name] = value
            if ID not in table:
                self._complain((TABLE, number), "id is missing: give the VNI, such as id = 100")
            if len(self._problems) == before:
                try:
                    segments[number] = Config(**options)
                except ConfigError as error:
                    self._complain_of(number, error)
        return segments

    def _is_good(self, at: Path, field: "attrs.Attribute[Any]", value: object) -> bool:
        """Whether an option can have this value; complains if not."""
        parts = [value]
        if "repeatable" in field.metadata and isinstance(value, list):
            parts = [[item] for item in value]  # So that each bad one is told of.
        good = True
        for number, part in enumerate(parts):
            error = _refusal(field, part)
            if error is not None:
                good = False
                where = (*at, number) if part is not value else at
                self._complain(where, self._told(error, where))
        if good and (error := _refusal(field, value)) is not None:
            self._complain(at, self._told(error, at))
            return False
        return good

    def _told(self, error: ConfigError, at: Path) -> str:
        """Return what an error says, with the value at a place as it is written there."""
        if not isinstance(error, OptionError) or isinstance(error.value, str):
            return _in_file(error)
        value: Any = self._document
        for step in at:
            value = value[step]
        if isinstance(value, list) and error.value is not value:  # It is about one of its items.
            found = [number for number, item in enumerate(value) if item is error.value]
            at = (*at, *found[:1])
        elif isinstance(error.value, tuple):
            return _in_file(error)
        written = self._spellings.get(at)
        if written is None or "\n" in written:
            return _in_file(error)
        return _in_file(error, shortened(written))

    @cached_property
    def _spellings(self) -> Mapping[Path, str]:
        return spellings(self._text)

    def _complain_of(self, number: int, error: ConfigError) -> None:
        """Say of a VNI as a whole what is wrong, at the line of the option that it begins with."""
        what = _in_file(error)
        key = _key_of(what)
        for at in ((TABLE, number, key), (key,)):
            if at in self._lines:
                self._complain(at, self._as_written(at, what))
                return
        self._complain((TABLE, number), what)

    def _as_written(self, at: Path, what: str) -> str:
        """Return what is wrong with an option as a whole, with its value as it is written.

        It was told with the normal form of the value, which may be spelled in other ways.
        """
        key, _, normal = what.partition(": ")[0].partition(" ")
        value: Any = self._document
        for step in at:
            value = value[step]
        field = _OF_ONE.get(key)
        convert: Any = field.converter if field is not None else None
        if convert is None or not normal:
            return what
        parts = enumerate(value) if isinstance(value, list) else [(None, value)]
        for number, part in parts:
            kept = convert(part if number is None or key == "srcport" else [part])
            kept = next(iter(kept)) if isinstance(kept, tuple | frozenset) else kept
            if str(kept) == normal:
                written = self._spellings.get(at if number is None else (*at, number), "")
                written = shown(part) if isinstance(part, str) else shortened(written)
                return f"{key} {written}{what[len(key) + 1 + len(normal) :]}"
        return what

    def _unknown(self, at: Path, known: list[str]) -> None:
        key = str(at[-1])
        plain = key.lstrip("-").replace("_", "-").lower()
        close = difflib.get_close_matches(_SYNONYMS.get(plain, plain), known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self._complain(at, f"{key}: there is no such key{hint}")

    def _complain(self, at: Path, what: str) -> None:
        while at and at not in self._lines:
            at = at[:-1]
        self._problems.append((self._lines.get(at, 1), what))


def _refusal(field: "attrs.Attribute[Any]", value: object) -> ConfigError | None:
    convert: Any = field.converter
    try:
        if convert is not None:
            convert(value)
        else:
            option_parsers.check_flag(field.name, value)
    except ConfigError as error:
        return error
    return None


def _in_file(error: ConfigError, written: str | None = None) -> str:
    """Return what an error says, with options spelled as the keys that they are in a file.

    `written` is how the value is spelled there, if that is known.
    """
    if not isinstance(error, OptionError):
        return _keys_in(str(error))
    if written is None:
        quoted = error.quoted and isinstance(error.value, str)
        written = repr(error.value) if quoted else shown(error.value)
    said = f"{_keys_in(error.option)} {written}: {_keys_in(error.reason)}"
    pairs = [f"{_key(name)} = {json.dumps(value)}" for name, value in error.instead.items()]
    return f"{said}: {' and '.join(pairs)}" if pairs else said


def _keys_in(text: str) -> str:
    return re.sub(r"--([a-z0-9-]+)", lambda found: _key(found[1], found[0]), text)


def _key(name: str, otherwise: str = "") -> str:
    """Return the key for the option of this name, or something else where there is none."""
    return ID if name == "vni" else name if name in _OPTIONS | _OF_PROCESS else otherwise


def _key_of(what: str) -> str:
    """The key that a line about a problem begins with."""
    return re.split("[: ]", what, maxsplit=1)[0]


_NOT_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate", "Cannot redefine", "Duplicate")
"""How the parser begins to say that a key is there already."""

_DIGITS = re.compile(r"[0-9_]{4000,}")

_PAIR = re.compile(r"""\s*(?P<key>[\w-]+)\s*(?P<sign>=|:|\s)\s*(?P<value>[^#\s][^#]*?)\s*(#.*)?""")


def _line_and_reason(error: ValueError, text: str) -> tuple[int, str]:
    """Return in which line a text is no TOML, and why; with what was probably meant."""
    what = str(error)
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", what, re.DOTALL)
    if found is None:
        number = _DIGITS.search(text)
        line = text.count("\n", 0, number.start()) + 1 if number else 1
        return line, "a number has too many digits"
    line = int(found[2]) if found[2] else text.count("\n") + 1
    if what.startswith(_NOT_TWICE) and (again := repeated(text)):
        return _told_twice(*again[0])
    lines = text.splitlines()
    hint = _meant(lines[line - 1]) if 0 < line <= len(lines) and "character" not in what else ""
    return line, f"is not TOML: {found[1][0].lower()}{found[1][1:]}{hint}"


def _told_twice(path: Path, first: int, line: int) -> tuple[int, str]:
    key = str(path[-1])
    if path == (TABLE,):
        return line, f"{_ONE_WAY}, and nothing else is called vni (as in line {first})"
    return line, f"{key}: is given twice, in line {first} too; leave one out"


def _meant(line: str) -> str:
    """Return how a line that is no TOML was probably meant, for a message."""
    if re.fullmatch(r"\s*\[+\s*vni\s*\]*\s*", line):
        return f"; write [[{TABLE}]]"
    found = _PAIR.fullmatch(line)
    if found is None or found["value"][0] in "\"'[{":
        return ""
    key, value = found["key"], found["value"]
    if found["sign"] != "=" or value.startswith("="):
        return f"; write {key} = ..." if key in _OF_ONE | _OF_PROCESS else "; write key = value"
    if value.lower() in ("yes", "on", "true", "no", "off", "false"):
        value = "true" if value.lower() in ("yes", "on", "true") else "false"
        return f"; write {key} = {value}"
    if value.endswith(","):
        return "; leave out the comma"
    if re.match(r"[0-9]+[a-zA-Z]", value) and key in _OF_ONE:
        error = _refusal(_OF_ONE[key], value)
        if isinstance(error, OptionError):
            return f"; {value} {error.reason}"
    return f"; text has quotes: {key} = {json.dumps(value)}"
