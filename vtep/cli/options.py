"""Command-line options, made from the fields of `Config` and `Settings`, which check the values."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import click

from vtep import Config
from vtep.cli import commands
from vtep.config import Settings, evpn, vlans

_EXAMPLE = "pyvtep --vni 1 --remote 192.0.2.2 --tap vx0"


def config_options(*, without: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Return a decorator that adds one option for each field of `Config`."""
    return _options(field for field in attrs.fields(Config) if field.name not in without)


def settings_options() -> Callable[..., Any]:
    """Return a decorator that adds one option for each field of `Settings` except the segments."""
    return _options(
        (field for field in attrs.fields(Settings) if field.name not in ("segments", "evpn")),
        evpn.CLI_OPTIONS,
    )


def _options(
    fields: "Iterable[attrs.Attribute[Any]]",
    more: "Mapping[str, attrs.Attribute[Any]]" = MappingProxyType({}),
) -> Callable[..., Any]:
    """Return a decorator that adds options for fields, and for `more` fields, by other names."""
    options = [_option(field, field.name) for field in fields]
    options += [_option(field, name) for name, field in more.items()]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):  # Decorators apply from the last to the first.
            command = option(command)
        return command

    return decorate


def given_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return those of all options that were given."""
    return {name: value for name, value in options.items() if value not in (None, ())}


def check_options(given: dict[str, Any]) -> dict[str, Any]:
    """Return options of a segment unchanged. Raises: ConfigError if a value makes no sense."""
    for field in attrs.fields(Config):
        convert: Any = field.converter
        if field.name in given and convert is not None:
            convert(given[field.name])
    return given


def take_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Remove the options for `Settings` from those given, and return them."""
    taken = {
        field.name: given.pop(field.name)
        for field in attrs.fields(Settings)
        if field.name in given and field.name != "evpn"  # That is an option of segments, too.
    }
    fabric = {name: given.pop(name) for name in evpn.CLI_OPTIONS if name in given}
    if fabric:
        taken["evpn"] = evpn.from_options(fabric)
    return taken


def load_settings(
    config: str | None, given: dict[str, Any], *, on_demand: bool = False
) -> tuple[Settings, Path | None, dict[str, Any]]:
    """Return the settings from a configuration file or, without one, from options.

    With `on_demand`, the options of a VNI may be left out.

    Returns: the settings, the path of the file, and the options of the process, which take
    precedence over the file.

    Raises: click.UsageError; ConfigError and VtepError as `config.loader.read` does.
    """
    process = take_settings(given)
    if config is not None and "evpn" in process:
        raise click.UsageError(
            f"--asn and --evpn-... cannot be used with --config; write a table [evpn] into {config}"
        )
    if config is None:
        if on_demand and not given:
            return attrs.evolve(Settings(segments=[]), **process), None, process
        if "vni" not in given and "vlan" not in given:
            raise click.UsageError(f"--vni is missing; for example: {_EXAMPLE} (pyvtep help)")
        if "evpn" in process:
            given.setdefault("evpn", True)
        segments = [Config(**given)] if "vni" in given else vlans.expand(given)
        settings = Settings(segments=segments, **process)
        if "evpn" in process:
            from vtep.config.loader import with_password  # noqa: PLC0415  as below

            settings = with_password(settings)
            process["evpn"] = settings.evpn
        return settings, None, process
    if given:
        name, value = next(iter(given.items()))
        flag = ("no-" if value is False else "") + name.replace("_", "-")
        key = f"{name.replace('_', '-')} = false" if value is False else "it"
        raise click.UsageError(f"--{flag} cannot be used with --config; write {key} into {config}")
    # Most commands need no file.
    from vtep.config.loader import read, with_password  # noqa: PLC0415

    path = Path(config)
    settings = with_password(attrs.evolve(read(path), **process), path)
    # Absolute for a reload: a process in the background leaves its directory.
    return settings, path.absolute(), process


def _option(field: "attrs.Attribute[Any]", name: str) -> Callable[..., Any]:
    # Values stay text here: the parsers of `Config` are the only ones, for all kinds of input.
    flag = "--" + name.replace("_", "-")
    extra: dict[str, Any] = {"metavar": field.metadata.get("metavar")}
    if field.type is bool:
        flag = f"{flag}/--no-{flag[2:]}"
        extra["default"] = None  # To tell an option that was not given from one that is off.
    if field.metadata.get("repeatable", False):
        extra["multiple"] = True
    extra["cls"] = commands.RepeatableOption if "multiple" in extra else commands.SingleOption
    extra["nargs"] = 2 if field.name == "srcport" else 1
    extra["help"] = field.metadata["help"]
    if isinstance(field.default, bool):
        extra["help"] += f" [default: {'on' if field.default else 'off'}]"
    elif isinstance(field.default, int | float | str) and "[default" not in extra["help"]:
        extra["help"] += f" [default: {field.default}]"
    decorator: Callable[..., Any] = click.option(flag, name, **extra)
    return decorator
