"""Errors for users: each class has an exit code, and each message is one line.

A message names the option or file that it is about, and says what failed, why, and what to do.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

_LINE_MAX = 400
"""Characters of a message."""

_SHOWN_MAX = 60
"""Characters of a quoted value: the reason that follows it must stay readable."""

_ITEMS_MAX = 8
"""Items of a quoted collection; a longer one is described instead."""


class VtepError(Exception):
    """A failure that depends on this host, its kernel or its network (exit code 1).

    `problems` has one line for each problem that it reports; most errors report one.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        # Messages quote input, which must not break the line, fill the screen or steer a terminal.
        line = "".join(char if char.isprintable() else "?" for char in message)
        super().__init__(line if len(line) <= _LINE_MAX else line[:_LINE_MAX] + " ...")
        self.problems: tuple[str, ...] = (str(self),)


class ConfigError(VtepError, ValueError):
    """A request that makes no sense on any host (exit code 2)."""

    exit_code = 2


class NotReadyError(VtepError):
    """A missing address, device or route, which may appear later."""


class OptionError(ConfigError):
    """An option with a value that makes no sense.

    The message consists of `option`, `value` and `reason`. `instead` has the values that were
    probably meant, by the names of options without dashes: a command line and a file spell them
    differently. A `quoted` text is shown with quotes and escapes.
    """

    def __init__(
        self,
        option: str,
        value: object,
        reason: str,
        instead: Mapping[str, object] = MappingProxyType({}),
        *,
        quoted: bool = False,
    ) -> None:
        self.option = option
        self.value = value
        self.reason = reason
        self.instead = instead
        self.quoted = quoted
        hint = " ".join(f"--{name} {item}" for name, item in _pairs(instead))
        text = repr(value) if quoted and isinstance(value, str) else shown(value)
        super().__init__(f"{option} {text}: {reason}{': ' if hint else ''}{hint}")


def _pairs(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in options.items():
        for item in value if isinstance(value, list) else [value]:
            yield name, item


def shown(value: object) -> str:
    """Return a value for a message, spelled as in TOML and JSON, or described in words."""
    if isinstance(value, str):
        return shortened(value if value and value == value.strip() else repr(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, bytes | bytearray):
        return shortened(value.hex(":") or "''")
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, tuple):  # Several arguments of one option, as of --srcport.
        return shortened(" ".join(map(shown, value)))
    if isinstance(value, Iterable) and not _is_network(value):
        return _items_shown(list(value))
    try:
        return shortened(str(value))
    except ValueError:  # Python limits the digits that it converts.
        return "a number of too many digits"


def _is_network(value: object) -> bool:
    """Return whether a value is an IP network, which is iterable but a single value here."""
    return hasattr(value, "prefixlen")


def shortened(text: str) -> str:
    """Return a text, truncated to what fits into a message."""
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 10] + "..."


def _items_shown(items: list[object]) -> str:
    plain = all(isinstance(item, str) or not isinstance(item, Iterable) for item in items)
    if not plain or len(items) > _ITEMS_MAX:
        return f"an array of {len(items)}"
    return shortened(f"[{', '.join(map(_item_shown, items))}]")


def _item_shown(item: object) -> str:
    return f'"{item}"' if isinstance(item, str) else shown(item)


class FdbError(VtepError):
    """A request that conflicts with the present entries of the FDB (exit code 1)."""


class NeighbourError(VtepError):
    """A request that conflicts with the present neighbours (exit code 1)."""
