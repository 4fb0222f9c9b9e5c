"""The configuration file: TOML text is parsed to `Settings`, or all its problems are reported.

Keys are the names of options without dashes. Keys above the first `[[vni]]` are options of the
process or defaults for all VNIs; each `[[vni]]` table is one segment, with its VNI as `id`::

    remote = ["192.0.2.2", "192.0.2.3"]

    [[vni]]
    id = 100
    bridge = "br0"

A table `[evpn]` has the BGP sessions of the process: `vtep.config.evpn.EvpnSettings`.

Whatever the text is, `parse` raises nothing but `FileError`.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vtep.config import Config, Settings, conflicts, vlans
from vtep.config.evpn import EvpnSettings
from vtep.config.file_keys import (
    DEFAULT_KEYS,
    EVPN,
    EVPN_KEYS,
    EVPN_SYNONYMS,
    ID,
    MAPPED_KEYS,
    NEIGHBOR_KEYS,
    PROCESS_KEYS,
    SEGMENT_KEYS,
    SYNONYMS,
    TABLE,
    VLANS,
)
from vtep.config.file_messages import in_keys, key_of, value_error
from vtep.config.file_syntax import VNI_HINT, line_and_reason
from vtep.config.toml_lines import Path, locate, spellings
from vtep.errors import ConfigError, OptionError, shortened, shown

if TYPE_CHECKING:
    import attrs

_NO_SESSIONS = ConfigError("evpn: needs a table [evpn] in this file, with asn and neighbor")
_EVPN_HINT = (
    "evpn: write the BGP sessions as a table [evpn], with asn and neighbor, and evpn = true into "
    "the [[vni]] tables"
)


class FileError(ConfigError):
    """A configuration file with mistakes; `problems` has one line for each of them."""

    def __init__(self, problems: list[str]) -> None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(problems[0] + more)
        self.problems = tuple(str(ConfigError(problem)) for problem in problems)


def parse(text: str, name: str) -> Settings:
    """Parse the text of a configuration file.

    Raises: FileError with all problems, each as `name:line: problem`.
    """
    return parse_all([(name, text)])


def parse_all(files: Iterable[tuple[str, str]]) -> Settings:
    """Parse configuration files, each with its name and text, to the settings of one process.

    Defaults of a file are those of its own segments. An option of the process may be in any file.

    Raises: FileError with all problems of all files, each as `name:line: problem`.
    """
    readers = [_Reader(text, name) for name, text in files]
    for reader in readers:
        reader.parse()
    found = [(reader, number) for reader in readers for number, _ in reader.segments]
    segments = [config for reader in readers for _, config in reader.segments]
    # Configurations are equal by value, so the segment is found by its identity.
    places = {id(config): place for config, place in zip(segments, found, strict=True)}
    # Valid segments are compared even if others have problems: one run reports them all.
    for conflict in conflicts(segments):
        reader, number = places[id(conflict.config)]
        other, earlier = places[id(conflict.earlier)]
        also = "" if other is reader else f" (see {other.place_of(earlier, conflict.error)})"
        reader.report_segment(number, conflict.error, also)
    process: dict[str, Any] = {}
    givers: dict[str, _Reader] = {}
    for reader in readers:
        for key, value in reader.process.items():
            first = givers.setdefault(key, reader)
            if process.setdefault(key, value) != value:
                reader.report_other_value(key, first)
    if not any(reader.has_evpn for reader in readers):
        for reader in readers:
            for number in dict.fromkeys(at for at, config in reader.segments if config.evpn):
                reader.report_segment(number, _NO_SESSIONS)
    problems = [problem for reader in readers for problem in reader.problems]
    if not problems:
        try:
            return Settings(segments=segments, **process)
        except ConfigError as error:
            name = key_of(in_keys(error)).replace("-", "_")
            giver = givers.get(name, readers[0])
            giver.report_process(error)
            problems = giver.problems
    raise FileError(problems)


class _Reader:
    """A parser of one text, which collects its problems."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._text = text
        self._problems: list[tuple[int, str]] = []
        self._lines: Mapping[Path, int] = {}
        self._document: dict[str, Any] = {}
        self.process: dict[str, Any] = {}
        """The options of the process, by the names of their fields."""
        self.segments: list[tuple[int, Config]] = []
        """The segments without problems of their own, each with the position of its table."""
        try:
            self._document = tomllib.loads(text)
            self._lines = locate(text)
        except RecursionError:
            self._problems.append((1, "is nested too deeply"))
        except ValueError as error:  # int() raises it for a number of too many digits.
            self._problems.append(line_and_reason(error, text))

    @property
    def problems(self) -> list[str]:
        """The problems found so far, in the order of their lines."""
        return [f"{self._name}:{line}: {what}" for line, what in sorted(self._problems)]

    def parse(self) -> None:
        """Find the segments and the options of the process, and report problems with them."""
        common: dict[str, Any] = {}
        for key, value in self._document.items():
            if key == TABLE:
                continue
            if key == EVPN:
                self._parse_evpn(value)
                continue
            if key in PROCESS_KEYS:
                if self._check_value((key,), PROCESS_KEYS[key], value):
                    self.process[PROCESS_KEYS[key].name] = value
            elif key in DEFAULT_KEYS:
                if self._check_value((key,), DEFAULT_KEYS[key], value):
                    common[DEFAULT_KEYS[key].name] = value
            elif key in SEGMENT_KEYS:
                self._report((key,), f"{key}: belongs in a [[vni]] table")
            else:
                self._report_unknown((key,), [TABLE, EVPN, *PROCESS_KEYS, *DEFAULT_KEYS])
        if TABLE not in self._document and not self._problems:
            # More likely a truncated file than one that is to remove all VNIs.
            self._report(
                (), f"there is no [[{TABLE}]] table; for a file without VNIs: {TABLE} = []"
            )
        self.segments = self._segments(common)

    @property
    def has_evpn(self) -> bool:
        """True if there is a table [evpn], also one with problems."""
        return EVPN in self._document

    def _parse_evpn(self, table: object) -> None:
        """Parse the table [evpn] to an option of the process, and report all its problems."""
        if not isinstance(table, dict):
            self._report((EVPN,), _EVPN_HINT)
            return
        before = len(self._problems)
        options = self._parse_keys((EVPN,), table, EVPN_KEYS)
        for key in ("asn", "neighbor"):
            if key not in table and not self._is_misspelt(table, key):
                example = "asn = 65000" if key == "asn" else 'neighbor = ["10.0.0.1"]'
                self._report((EVPN,), f"{key} is missing in [evpn]; for example: {example}")
        if "password" in options and "password-file" in table:
            self._report(
                (EVPN, "password-file"),
                "password-file: there is a password as well; leave one out",
            )
        if len(self._problems) == before:
            try:
                self.process[EVPN] = EvpnSettings(**options)
            except ConfigError as error:
                what = in_keys(error)
                self._report((EVPN, key_of(what)), what)

    def _parse_keys(
        self, at: Path, table: Mapping[str, Any], keys: "Mapping[str, attrs.Attribute[Any]]"
    ) -> dict[str, Any]:
        """Return the options of a table for EVPN, and report problems with each of them."""
        options = {}
        for key, value in table.items():
            if key not in keys:
                self._report_unknown((*at, key), list(keys), EVPN_SYNONYMS)
            elif key == "neighbor":
                items = value if isinstance(value, list) else [value]
                before = len(self._problems)
                for number, item in enumerate(items):
                    where = (*at, key, number) if items is value else (*at, key)
                    if isinstance(item, dict):
                        self._parse_neighbor(where, item)
                    else:
                        self._check_value(where, keys[key], item)
                if len(self._problems) == before:
                    self._check_value((*at, key), keys[key], value)
                options[key] = value
            elif self._check_value((*at, key), keys[key], value):
                options[keys[key].name] = value
        return options

    def _parse_neighbor(self, at: Path, table: Mapping[str, Any]) -> None:
        """Report problems of a neighbour that is written as a table."""
        self._parse_keys(at, table, NEIGHBOR_KEYS)
        if "address" not in table and not self._is_misspelt(table, "address"):
            self._report(at, "address is missing in this neighbor")

    def _is_misspelt(self, table: Mapping[str, Any], key: str) -> bool:
        """Return whether a key is there under another name, which is reported already."""
        return any(
            EVPN_SYNONYMS.get(other) == key or difflib.get_close_matches(other, [key])
            for other in table
        )

    def report_process(self, error: ConfigError) -> None:
        """Report a problem of the options of the process."""
        what = in_keys(error)
        self._report((key_of(what),), what)

    def report_other_value(self, name: str, first: "_Reader") -> None:
        """Report an option of the process that has another value in an earlier file."""
        key = name.replace("_", "-")
        self._report(
            (key,), f"{key}: has another value in {first.line_of(key)}; leave one of them out"
        )

    def line_of(self, key: str) -> str:
        """Return the file and the line of a key above the tables."""
        return f"{self._name}:{self._lines.get((key,), 1)}"

    def place_of(self, number: int, error: ConfigError) -> str:
        """Return the file and the line of a segment, at the option that an error begins with."""
        key = key_of(in_keys(error))
        for at in ((TABLE, number, key), (key,), (TABLE, number)):
            if at in self._lines:
                return f"{self._name}:{self._lines[at]}"
        return f"{self._name}:1"

    def _segments(self, common: Mapping[str, Any]) -> list[tuple[int, Config]]:
        """Return the segments without problems, each with the position of its table."""
        tables = self._document.get(TABLE, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._report((TABLE,), VNI_HINT)
            return []
        segments: list[tuple[int, Config]] = []
        for number, table in enumerate(tables):
            options = dict(common)
            before = len(self._problems)
            is_mapped = VLANS in table and ID not in table
            keys = MAPPED_KEYS if is_mapped else SEGMENT_KEYS
            for key, value in table.items():
                if key in PROCESS_KEYS:
                    what = f"{key}: is an option of the process; move it above the first [[vni]]"
                    self._report((TABLE, number, key), what)
                elif key not in keys:
                    self._report_unknown((TABLE, number, key), list(keys))
                elif self._check_value((TABLE, number, key), keys[key], value):
                    options[keys[key].name] = value
            if ID not in table and not is_mapped:
                self._report((TABLE, number), "id is missing; give the VNI, such as id = 100")
            if len(self._problems) == before:
                try:
                    made = vlans.expand(options) if is_mapped else [Config(**options)]
                    segments += [(number, config) for config in made]
                except ConfigError as error:
                    self.report_segment(number, error)
        return segments

    def _check_value(self, at: Path, field: "attrs.Attribute[Any]", value: object) -> bool:
        """Return whether an option can have a value; report a problem if not."""
        parts = [value]
        if "repeatable" in field.metadata and isinstance(value, list):
            parts = [
                [item] for item in value
            ]  # Each item by itself, so that all bad ones are reported.
        valid = True
        for number, part in enumerate(parts):
            error = value_error(field, part)
            if error is not None:
                valid = False
                where = (*at, number) if part is not value else at
                self._report(where, self._quote(error, where))
        if valid and (error := value_error(field, value)) is not None:
            self._report(at, self._quote(error, at))
            return False
        return valid

    def _quote(self, error: ConfigError, at: Path) -> str:
        """Return the message of an error, with the value as it is written at `at`."""
        if not isinstance(error, OptionError) or isinstance(error.value, str):
            return in_keys(error)
        value: Any = self._document
        for step in at:
            value = value[step]
        if isinstance(value, list) and error.value is not value:  # The error is about one item.
            found = [number for number, item in enumerate(value) if item is error.value]
            at = (*at, *found[:1])
        elif isinstance(error.value, tuple):
            return in_keys(error)
        written = self._spellings.get(at)
        if written is None or "\n" in written:
            return in_keys(error)
        return in_keys(error, shortened(written))

    @cached_property
    def _spellings(self) -> Mapping[Path, str]:
        return spellings(self._text)

    def report_segment(self, number: int, error: ConfigError, also: str = "") -> None:
        """Report a problem of a whole segment, at the line of the option that it begins with.

        `also` follows the message.
        """
        what = in_keys(error)
        key = key_of(what)
        for at in ((TABLE, number, key), (key,)):
            if at in self._lines:
                self._report(at, self._requote(at, what) + also)
                return
        # A table that maps VLANs has no id: its VNIs are in that option.
        self._report((TABLE, number, VLANS) if key == ID else (TABLE, number), what + also)

    def _requote(self, at: Path, what: str) -> str:
        """Return a message about an option with the value as it is written in the file.

        The message has the value in its normal form: `id 5`, where the file may have `id = 0x5`.
        """
        key, _, normal = what.partition(": ")[0].partition(" ")
        value: Any = self._document
        for step in at:
            value = value[step]
        field = SEGMENT_KEYS.get(key)
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

    def _report_unknown(
        self, at: Path, known: list[str], synonyms: Mapping[str, str] = SYNONYMS
    ) -> None:
        key = str(at[-1])
        plain = key.lstrip("-").replace("_", "-").lower()
        close = difflib.get_close_matches(synonyms.get(plain, plain), known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        self._report(at, f"{key}: unknown key{hint}")

    def _report(self, at: Path, what: str) -> None:
        # A problem may be about a key that is missing: report the line of its table.
        while at and at not in self._lines:
            at = at[:-1]
        self._problems.append((self._lines.get(at, 1), what))
