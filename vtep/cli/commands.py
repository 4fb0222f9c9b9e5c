"""The kinds of commands and options that pyvtep's command line is made of."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from vtep.cli import mistakes


class Once(click.Option):
    """An option that may be given once: of two values, one would be ignored silently."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Have the parser keep every value that is given, not the last one only."""
        self.multiple = True
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.multiple = False

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the value that was given, and where it is from; refuse a second one."""
        values = opts.get(self.name or "")
        if isinstance(values, list) and values:
            if len(values) > 1 and not ctx.resilient_parsing:
                raise click.UsageError(mistakes.given_twice(self, values), ctx)
            if isinstance(values[0], str | tuple) and not ctx.resilient_parsing:
                mistakes.check_value(self, values[0], ctx)
            opts = {**opts, self.name or "": values[0]}
        return super().consume_value(ctx, opts)


class Many(click.Option):
    """An option that may be repeated."""

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the values that were given, and where they are from."""
        if not ctx.resilient_parsing:
            for value in opts.get(self.name or "") or ():
                mistakes.check_value(self, value, ctx)
        return super().consume_value(ctx, opts)


_F = TypeVar("_F", bound=Callable[..., Any])


def option(*names: str, **attributes: Any) -> Callable[[_F], _F]:
    """Give a command an option that may be given once; else as `click.option`."""
    return click.option(*names, cls=Once, **attributes)


def json_option(function: _F) -> _F:
    """Give a command `--json`, as `as_json`."""
    flag = option("--json", "-j", "as_json", is_flag=True, help="Show JSON instead of text.")
    return flag(function)


class Command(click.Command):
    """A command that remembers its words, so that a mistake in them can be explained."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the words apart."""
        with mistakes.of(ctx, args):
            return super().parse_args(ctx, args)


class Group(click.Group):
    """A command with commands below it: a mistake in their names is explained."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the words apart."""
        with mistakes.of(ctx, args):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names, and the words behind it."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(mistakes.no_such_command(self, ctx, args), ctx)
        return super().resolve_command(ctx, args)


Group.group_class = Group


class Table(Group):
    """The verbs of a table, which is shown where there is no verb, as by `bridge fdb`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the words apart, with `show` for a verb that is missing."""
        if not ctx.resilient_parsing:
            if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
                args = ["show", *args]
            elif args[0] == "help":
                args = [*args[1:2], "--help"]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a verb."""
        return super().get_command(ctx, "show" if cmd_name in ("list", "ls") else cmd_name)
