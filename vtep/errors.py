"""What can go wrong for a person, each with the exit code that tells a script.

A message says in one line what is wrong, which option or file it is about, and what to do.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

_LINE_MAX = 400

_SHOWN_MAX = 60
"""Characters of a value that a message quotes: the reason behind it must stay readable."""

_ITEMS_MAX = 8


class VtepError(Exception):
    """The machine, its kernel or its network refused something (exit code 1)."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # What people typed is quoted in messages: it must not break the line, nor fill the screen.
        line = "".join(char if char.isprintable() else "?" for char in message)
        super().__init__(line if len(line) <= _LINE_MAX else line[:_LINE_MAX] + " ...")


class ConfigError(VtepError, ValueError):
    """What was asked for makes no sense on any machine (exit code 2)."""

    exit_code = 2


class NotReadyError(VtepError):
    """The host lacks something, such as an address or a device, that may appear later."""


class OptionError(ConfigError):
    """An option whose value makes no sense.

    The message is made of `option`, `value` and `reason`. `instead` has options by name, without
    dashes, with the values that were probably meant: a command line and a file spell them in
    their own ways.
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
    """Return a value as a message quotes it: spelled as in TOML and JSON, or named in words."""
    if isinstance(value, str):
        return shortened(value if value and value == value.strip() else repr(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, bytes | bytearray):
        return shortened(value.hex(":") or "''")
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, tuple):  # Of words of a command line, such as the two of --srcport.
        return shortened(" ".join(map(shown, value)))
    if isinstance(value, Iterable) and not _is_network(value):
        return _items_shown(list(value))
    try:
        return shortened(str(value))
    except ValueError:  # Python has a limit for the digits of a number.
        return "a number of too many digits"


def _is_network(value: object) -> bool:
    """Return whether a value is an IP network, which is iterable but no collection here."""
    return hasattr(value, "prefixlen")


def shortened(text: str) -> str:
    """Return a text, cut where it is longer than a message has room for."""
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 10] + "..."


def _items_shown(items: list[object]) -> str:
    plain = all(isinstance(item, str) or not isinstance(item, Iterable) for item in items)
    if not plain or len(items) > _ITEMS_MAX:
        return f"an array of {len(items)}"
    return shortened(f"[{', '.join(map(_item_shown, items))}]")


def _item_shown(item: object) -> str:
    return f'"{item}"' if isinstance(item, str) else shown(item)


class FdbError(VtepError):
    """The forwarding database as it is does not allow what was asked of it (exit code 1)."""


class NeighbourError(VtepError):
    """The table of neighbours as it is does not allow what was asked of it (exit code 1)."""
