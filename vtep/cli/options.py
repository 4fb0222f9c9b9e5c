"""Command-line options made from the fields of `Config` and `Settings`, which are to judge them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import attrs
import click

from vtep import Config
from vtep.cli import commands
from vtep.config import Settings

_EXAMPLE = "pyvtep --vni 1 --remote 192.0.2.2 --tap vx0"


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


def checked(given: dict[str, Any]) -> dict[str, Any]:
    """Return options of a segment, each of which can have its value; raises ConfigError."""
    for field in attrs.fields(Config):
        convert: Any = field.converter
        if field.name in given and convert is not None:
            convert(given[field.name])
    return given


def settings_of(given: dict[str, Any]) -> dict[str, Any]:
    """Take out of the options that were given those for `Settings`."""
    return {
        field.name: given.pop(field.name) for field in attrs.fields(Settings) if field.name in given
    }


def asked_for(
    config: str | None, given: dict[str, Any]
) -> tuple[Settings, Path | None, dict[str, Any]]:
    """Return what a file or the options that were given ask for.

    Returns: the settings, the file, and the options of the process that hold beside the file.
    Raises: click.UsageError, or ConfigError and VtepError as `settingsfile.read`.
    """
    process = settings_of(given)
    if config is None:
        if "vni" not in given:
            raise click.UsageError(f"--vni is missing; for example: {_EXAMPLE} (pyvtep help)")
        return attrs.evolve(Settings(segments=[Config(**given)]), **process), None, process
    if given:
        flag = next(iter(given)).replace("_", "-")
        raise click.UsageError(f"--{flag} says nothing beside --config: write it into {config}")
    from vtep.config.loader import read  # noqa: PLC0415  most VTEPs have no file

    path = Path(config)
    return attrs.evolve(read(path), **process), path, process


def _option(field: "attrs.Attribute[Any]") -> Callable[..., Any]:
    flag = "--" + field.name.replace("_", "-")
    extra: dict[str, Any] = {"metavar": field.metadata.get("metavar")}
    if field.type is bool:
        flag = f"{flag}/--no-{flag[2:]}"
        extra["default"] = None
    if field.metadata.get("repeatable", False):
        extra["multiple"] = True
    extra["cls"] = commands.Many if "multiple" in extra else commands.Once
    extra["nargs"] = 2 if field.name == "srcport" else 1
    extra["help"] = field.metadata["help"]
    if isinstance(field.default, bool):
        extra["help"] += f" [default: {'on' if field.default else 'off'}]"
    elif isinstance(field.default, int | float | str) and "[default" not in extra["help"]:
        extra["help"] += f" [default: {field.default}]"
    decorator: Callable[..., Any] = click.option(flag, field.name, **extra)
    return decorator
