"""Command-line options made from the fields of `Config` and `Settings`, which are to judge them."""

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import click

from vtep import Config
from vtep.config import Settings


def config_options(*, without: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Give a command one option for each field of `Config`."""
    return _options(field for field in attrs.fields(Config) if field.name not in without)


def settings_options() -> Callable[..., Any]:
    """Give a command one option for each field of `Settings` but the segments."""
    return _options(field for field in attrs.fields(Settings) if field.name != "segments")


def _options(fields: "Iterable[attrs.Attribute[Any]]") -> Callable[..., Any]:
    options = [_option(field) for field in fields]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):  # The first one is the last to be applied.
            command = option(command)
        return command

    return decorate


def given_of(options: dict[str, Any]) -> dict[str, Any]:
    """Of all options, those that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options that were given those for `Settings`."""
    return {
        field.name: given.pop(field.name) for field in attrs.fields(Settings) if field.name in given
    }


def _option(field: "attrs.Attribute[Any]") -> Callable[..., Any]:
    flag = "--" + field.name.replace("_", "-")
    extra: dict[str, Any] = {"metavar": field.metadata.get("metavar")}
    if field.type is bool:
        flag = f"{flag}/--no-{flag[2:]}"
        extra["default"] = None
    extra["multiple"] = field.metadata.get("repeatable", False)
    extra["nargs"] = 2 if field.name == "srcport" else 1
    extra["help"] = field.metadata["help"]
    if isinstance(field.default, bool):
        extra["help"] += f" [default: {'on' if field.default else 'off'}]"
    elif isinstance(field.default, int | float | str) and "[default" not in extra["help"]:
        extra["help"] += f" [default: {field.default}]"
    decorator: Callable[..., Any] = click.option(flag, field.name, **extra)
    return decorator
