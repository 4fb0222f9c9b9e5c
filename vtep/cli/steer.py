"""What the commands that steer a running pyvtep share: finding it, and showing what it says."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from vtep.cli.words import Grammar
from vtep.control import Client
from vtep.errors import ConfigError

_PAGE = 1000
"""Rows of a table that are laid out, and shown, at a time."""

_WIDE = 500
"""Columns of characters where nobody sees where a line ends."""

_SIGPIPE_CODE = 141
"""The exit code that a shell gives a command whose reader has gone."""


def steering(*, segment: bool = True, shows: bool = False) -> Callable[..., Any]:
    """Give a command what it needs to reach a pyvtep.

    Its function is called with a `Client` as `vtep`; with `vni`, as it was typed, if it is about a
    segment, which is a part of `given` where it has `words`; and with `as_json` if it `shows`
    something.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*, socket: str | None, **given: Any) -> None:
            if segment and "given" in given:  # Both words and --vni may name the segment.
                vni = given.pop("vni")
                if vni is not None and given["given"].setdefault("vni", vni) != vni:
                    raise ConfigError(f"--vni {vni}: contradicts src_vni")
            with _quiet_when_nobody_reads(), Client(socket) as vtep:
                function(vtep=vtep, **given)

        wrapped: Callable[..., Any] = command
        if shows:
            wrapped = click.option(
                "--json", "as_json", is_flag=True, help="Show JSON instead of text."
            )(wrapped)
        wrapped = click.option(
            "--socket",
            metavar="PATH",
            help="Control socket of the pyvtep that is meant [default: the only one, or the only "
            "one of this network namespace].",
        )(wrapped)
        if segment:
            wrapped = click.option(
                "--vni", metavar="N", help="The segment that is meant, where there are several."
            )(wrapped)
        return wrapped

    return decorate


def words(grammar: Grammar, metavar: str) -> Callable[..., Any]:
    """Give a command words of a grammar; its function gets what they stand for as `given`."""

    def parse(_context: click.Context, _parameter: click.Parameter, typed: Sequence[str]) -> Any:
        return grammar.parse(typed)

    def complete(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        return [word for word in grammar.words() if word.startswith(begun)]

    return click.argument(
        "given", nargs=-1, metavar=metavar, callback=parse, shell_complete=complete
    )


def show_json(value: object) -> None:
    """Show what a pyvtep said as it said it."""
    click.echo(json.dumps(value, indent=2))


def show_table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
    """Show rows under their headings; `columns` says how each is aligned."""
    from rich.console import Console  # noqa: PLC0415  most commands show nothing
    from rich.table import Table  # noqa: PLC0415

    # What has colons, such as a MAC with :ab: in it, is no emoji.
    console = Console(
        highlight=False,
        emoji=False,
        width=None if sys.stdout.isatty() else _WIDE,
        soft_wrap=True,
    )
    for number, page in enumerate(_pages(rows)):
        table = Table(box=None, pad_edge=False, show_header=number == 0, header_style="bold")
        for heading, side in columns.items():
            table.add_column(heading, justify="right" if side == "right" else "left", no_wrap=True)
        for row in page:
            table.add_row(*(str(cell) for cell in row))
        console.print(table, markup=False)


def _pages(rows: Iterable[Sequence[object]]) -> Iterator[list[Sequence[object]]]:
    page: list[Sequence[object]] = []
    for row in rows:
        page.append(row)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


@contextmanager
def _quiet_when_nobody_reads() -> Iterator[None]:
    """End as others do when what they print into is closed, as with `| head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        write_no_more()
        raise click.exceptions.Exit(_SIGPIPE_CODE) from None


def write_no_more() -> None:
    """Let go of what could not be written: the interpreter would try once more, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
