"""Errors of a text that is not TOML: the line of each, and what was probably meant."""

import json
import re
from typing import Final

from vtep.config.file_keys import PROCESS_KEYS, SEGMENT_KEYS, TABLE
from vtep.config.file_messages import value_error
from vtep.config.toml_lines import Path, repeated
from vtep.errors import OptionError

VNI_HINT: Final = "vni: write each VNI as a table, below a line [[vni]]"

_REPEATED_KEY = (
    "Cannot overwrite",
    "Cannot declare",
    "Cannot mutate",
    "Cannot redefine",
    "Duplicate",
)
"""Starts of tomllib's messages about a key that exists already."""

_DIGITS = re.compile(r"[0-9_]{4000,}")

_PAIR = re.compile(r"""\s*(?P<key>[\w-]+)\s*(?P<sign>=|:|\s)\s*(?P<value>[^#\s][^#]*?)\s*(#.*)?""")


def line_and_reason(error: ValueError, text: str) -> tuple[int, str]:
    """Return the line of a syntax error, and the message with what was probably meant."""
    # tomllib has no attributes for the position before Python 3.14, only this message.
    what = str(error)
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", what, re.DOTALL)
    if found is None:
        number = _DIGITS.search(text)
        line = text.count("\n", 0, number.start()) + 1 if number else 1
        return line, "a number has too many digits"
    line = int(found[2]) if found[2] else text.count("\n") + 1
    if what.startswith(_REPEATED_KEY) and (again := repeated(text)):
        return _describe_repeated(*again[0])
    lines = text.splitlines()
    hint = (
        _syntax_hint(lines[line - 1]) if 0 < line <= len(lines) and "character" not in what else ""
    )
    return line, f"is not TOML: {found[1][0].lower()}{found[1][1:]}{hint}"


def _describe_repeated(path: Path, first: int, line: int) -> tuple[int, str]:
    """Return the line and the message for a key that is given twice."""
    key = str(path[-1])
    if path == (TABLE,):
        return line, f"{VNI_HINT}, and nothing else is called vni (as in line {first})"
    return line, f"{key}: is given twice, in line {first} too; leave one out"


def _syntax_hint(line: str) -> str:
    """Return the end of a message about a line that is not TOML: what was probably meant."""
    if re.fullmatch(r"\s*\[+\s*vni\s*\]*\s*", line):
        return f"; write [[{TABLE}]]"
    found = _PAIR.fullmatch(line)
    if found is None or found["value"][0] in "\"'[{":
        return ""
    key, value = found["key"], found["value"]
    if found["sign"] != "=" or value.startswith("="):
        return (
            f"; write {key} = ..." if key in SEGMENT_KEYS | PROCESS_KEYS else "; write key = value"
        )
    if value.lower() in ("yes", "on", "true", "no", "off", "false"):
        value = "true" if value.lower() in ("yes", "on", "true") else "false"
        return f"; write {key} = {value}"
    if value.endswith(","):
        return "; leave out the comma"
    # A number with a unit, such as 5m: the parser of the option suggests what to write.
    if re.match(r"[0-9]+[a-zA-Z]", value) and key in SEGMENT_KEYS:
        error = value_error(SEGMENT_KEYS[key], value)
        if isinstance(error, OptionError):
            return f"; {value} {error.reason}"
    return f"; quote text: {key} = {json.dumps(value)}"
