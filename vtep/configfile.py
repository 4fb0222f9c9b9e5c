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
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import attrs

from vtep import values
from vtep.config import Config, Settings, conflicts
from vtep.errors import ConfigError, VtepError
from vtep.tomllines import Path, locate

TABLE = "vni"
ID = "id"


def _by_key(fields: "tuple[attrs.Attribute[Any], ...]") -> "dict[str, attrs.Attribute[Any]]":
    return {field.name.replace("_", "-"): field for field in fields}


_OPTIONS = _by_key(attrs.fields(Config))
_OF_ONE = _OPTIONS | {ID: _OPTIONS["vni"]}
del _OF_ONE["vni"]
_OF_ALL = {key: field for key, field in _OF_ONE.items() if key not in (ID, "tap", "mac", "address")}
_OF_PROCESS = _by_key(attrs.fields(Settings))
del _OF_PROCESS["segments"]


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
            self._complain((TABLE,), "vni: write each VNI as a table, below a line [[vni]]")
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
                self._complain((*at, number) if part is not value else at, _in_file(error))
        if good and (error := _refusal(field, value)) is not None:
            self._complain(at, _in_file(error))
            return False
        return good

    def _complain_of(self, number: int, error: ConfigError) -> None:
        """Say of a VNI as a whole what is wrong, at the line of the option that it begins with."""
        what = _in_file(error)
        key = _key_of(what)
        for at in ((TABLE, number, key), (key,)):
            if at in self._lines:
                self._complain(at, what)
                return
        self._complain((TABLE, number), what)

    def _unknown(self, at: Path, known: list[str]) -> None:
        key = str(at[-1])
        close = difflib.get_close_matches("id" if key == "vni" else key, known, 1)
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
            values.yes_or_no(field.name, value)
    except ConfigError as error:
        return error
    return None


def _in_file(error: ConfigError) -> str:
    """What an error says, with options spelled as the keys that they are here."""

    def key(found: re.Match[str]) -> str:
        name = found[1]
        return ID if name == "vni" else name if name in _OPTIONS | _OF_PROCESS else found[0]

    return re.sub(r"--([a-z0-9-]+)", key, str(error))


def _key_of(what: str) -> str:
    """The key that a line about a problem begins with."""
    return re.split("[: ]", what, maxsplit=1)[0]


def _line_and_reason(error: ValueError, text: str) -> tuple[int, str]:
    """What is no TOML, and in which line."""
    what = str(error)
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", what, re.DOTALL)
    if found is None:
        return 1, f"a value makes no sense: {what}"
    line = int(found[2]) if found[2] else text.count("\n") + 1
    return line, f"is not TOML: {found[1][0].lower()}{found[1][1:]}"
