"""Classes of commands and options, based on those of click, that explain mistakes."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from importlib import import_module
from math import isnan
from typing import Any, TypeVar

import click

from vtep.cli import mistakes

_DAY_S = 86400.0


class SingleOption(click.Option):
    """An option that may be given once; click would silently ignore all but the last value."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Make the parser keep all values, as it does for options that may be repeated."""
        # click reads the attribute here only; for all else the option still has one value.
        self.multiple = True
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.multiple = False

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the value and its source. Raises: UsageError if there are two."""
        values = opts.get(self.name or "")
        if isinstance(values, list) and values:
            if len(values) > 1 and not ctx.resilient_parsing:
                # While completing a line (resilient_parsing), mistakes are not final yet.
                raise click.UsageError(mistakes.describe_repeated(self, values), ctx)
            if isinstance(values[0], str | tuple) and not ctx.resilient_parsing:
                mistakes.check_value(self, values[0], ctx)
            opts = {**opts, self.name or "": values[0]}
        return super().consume_value(ctx, opts)


class RepeatableOption(click.Option):
    """An option that may be repeated."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the values and their source."""
        if not ctx.resilient_parsing:
            for value in opts.get(self.name or "") or ():
                mistakes.check_value(self, value, ctx)
        return super().consume_value(ctx, opts)


class Seconds(click.FloatRange):
    """A number of seconds, from `least` up to a day, and not NaN, which is in every range."""

    def __init__(self, least: float) -> None:
        super().__init__(min=least, max=_DAY_S)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a number. Raises: BadParameter."""
        number: float = super().convert(value, param, ctx)
        if isnan(number):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return number


_F = TypeVar("_F", bound=Callable[..., Any])


def option(*names: str, **attributes: Any) -> Callable[[_F], _F]:
    """Return a decorator as `click.option` does, for an option that may be given once."""
    return click.option(*names, cls=SingleOption, **attributes)


def json_option(function: _F) -> _F:
    """Add the option `--json` to a command, as `as_json`."""
    flag = option("--json", "-j", "as_json", is_flag=True, help="Print JSON instead of text.")
    return flag(function)


class CliCommand(click.Command):
    """A command that keeps its arguments, so that a mistake in them can be explained."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        with mistakes.keep_arguments(ctx, args):
            return super().parse_args(ctx, args)


class CliGroup(click.Group):
    """A command with subcommands, which explains mistakes in their names."""

    command_class = CliCommand

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        with mistakes.keep_arguments(ctx, args):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the subcommand that the first argument names, and the other arguments."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(mistakes.describe_unknown_command(self, ctx, args), ctx)
        return super().resolve_command(ctx, args)


# Subgroups are made by this attribute, and the class can't name itself in its body.
CliGroup.group_class = CliGroup


class LazyCommands(MutableMapping[str, click.Command]):
    """The commands of a group, by name; the module of a command is imported at its first use.

    A VTEP thus starts without the modules of all other commands, and those without each other's.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = dict(places)
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        """Return a command, from the attribute at its place: `module:attribute`."""
        if name not in self._loaded:
            module, _, attribute = self._places[name].partition(":")
            self._loaded[name] = getattr(import_module(module), attribute)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        """Add a command that is loaded already."""
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        """Remove a command."""
        if name not in self:
            raise KeyError(name)
        self._loaded.pop(name, None)
        self._places.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        """Yield the names of all commands, without loading any."""
        return iter(dict.fromkeys((*self._places, *self._loaded)))

    def __len__(self) -> int:
        """Return the number of commands."""
        return len(self._places.keys() | self._loaded.keys())


class TableGroup(CliGroup):
    """The verbs of a table, with `show` as the default verb, as in `bridge fdb`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with `show` for a missing verb."""
        if not ctx.resilient_parsing:
            if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
                args = ["show", *args]
            elif args[0] == "help":
                args = [*args[1:2], "--help"]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a verb, where `list` and `ls` are `show` as in iproute2."""
        return super().get_command(ctx, "show" if cmd_name in ("list", "ls") else cmd_name)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs that users are told of."""
        return [name for name in super().list_commands(ctx) if not self.commands[name].hidden]
