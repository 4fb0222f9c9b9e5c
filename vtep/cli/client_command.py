"""What the commands that steer a running pyvtep share: finding it, and showing what it says."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import click

from vtep.cli import commands, mistakes
from vtep.cli.grammar import Grammar
from vtep.control import Client
from vtep.control.client import find
from vtep.errors import ConfigError

_PAGE = 1000
"""Rows of a table that are laid out, and shown, at a time."""

_WIDE = 500
"""Columns of characters where nobody sees where a line ends."""

_SIGPIPE_CODE = 141
"""The exit code that a shell gives a command whose reader has gone."""


def steering(
    *,
    segment: bool = True,
    vni: str = "vni",
    shows: bool = False,
    changes: Callable[[dict[str, Any]], bool] | bool | None = None,
    every: bool = False,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Callable[..., Any]:
    """Give a command what it needs to reach a pyvtep.

    Its function is called with a `Client` as `vtep`, or with a list of them as `vteps` if it is
    about `every` one that is meant; with `vni`, as it was typed, if it is about a segment, which
    is a part of `given` where it has `words`; and with `as_json` if it `shows` something. What
    shows nothing `changes` something, unless it says otherwise; or that depends on what is given,
    and then `changes` tells, and a change is of one pyvtep only. `vni` is what names the VNI of the
    segment, and `check` raises ConfigError for values that make no sense, before anything is asked.
    """

    def is_change(given: dict[str, Any]) -> bool:
        if callable(changes):
            return changes(given)
        return not shows if changes is None else changes

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*, socket: str | None, **given: Any) -> None:
            if segment and "given" in given:  # Both words and --vni may name the segment.
                number = given.pop("vni")
                if number is not None and given["given"].setdefault("vni", number) != number:
                    raise ConfigError(f"--vni {number}: contradicts src_vni")
            if check is not None:
                check(given)
            names, changing = given.get("given", given), is_change(given)
            with _quiet_when_nobody_reads(), ExitStack() as connections:
                paths = _paths(
                    socket,
                    names.get(vni) if segment or vni != "vni" else None,
                    names.get("dev") if segment else None,
                    changes=changing,
                    every=every and not changing,
                )
                vteps = [connections.enter_context(Client(path)) for path in paths]
                function(**{"vteps": vteps} if every else {"vtep": vteps[0]}, **given)

        wrapped: Callable[..., Any] = command
        if shows:
            wrapped = commands.json_option(wrapped)
        wrapped = commands.option(
            "--socket",
            metavar="PATH",
            help="Control socket of the pyvtep that is meant [default: the one of this network "
            "namespace, or that which has the segment].",
        )(wrapped)
        if segment:
            wrapped = commands.option(
                "--vni", metavar="N", help="The segment that is meant, where there are several."
            )(wrapped)
        return wrapped

    return decorate


def _paths(
    socket: str | None, vni: str | None, dev: str | None, *, changes: bool, every: bool
) -> list[str | Path]:
    """Return the sockets of the pyvteps that a command means; say so where one is elsewhere."""
    if socket is not None:
        return [socket]
    number = int(vni) if vni is not None and vni.isascii() and vni.isdigit() else None
    if vni is not None and number is None:
        raise ConfigError(f"--vni {vni}: is not a whole number")
    found = find(vni=number, dev=dev, changes=changes, every=every)
    for each in found:
        if not each.here:
            line = f"{each.process} in another network namespace answered ({each.path})"
            click.echo(f"pyvtep: note: {line}", err=True)
    return [each.path for each in found]


def words(grammar: Grammar, metavar: str, needs: Sequence[str] = ()) -> Callable[..., Any]:
    """Give a command words of a grammar; its function gets what they stand for as `given`.

    It `needs` some of what they can stand for.
    """

    def parse(context: click.Context, _parameter: click.Parameter, typed: Sequence[str]) -> Any:
        try:
            given = grammar.parse(typed)
        except ConfigError:
            for word in typed:
                mistakes.check_word(word, grammar.words(), context)
            raise
        for name in needs:
            if name not in given:
                word = grammar.word_for(name)
                raise ConfigError(f"{word}: is missing; usage: {context.command_path} {metavar}")
        return given

    def complete(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
        return [word for word in grammar.words() if word.startswith(begun)]

    return click.argument(
        "given", nargs=-1, metavar=metavar, callback=parse, shell_complete=complete
    )


def show_json(value: object) -> None:
    """Show what a pyvtep said as it said it."""
    click.echo(json.dumps(value, indent=2))


def show_table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
    """Show rows under their headings, which `columns` aligns; or that there are none."""
    from rich.console import Console  # noqa: PLC0415  most commands show nothing
    from rich.table import Table  # noqa: PLC0415

    # What has colons, such as a MAC with :ab: in it, is no emoji.
    console = Console(
        highlight=False,
        emoji=False,
        width=None if sys.stdout.isatty() else _WIDE,
        soft_wrap=True,
    )
    pages = _pages(rows)
    first = next(pages, None)
    if first is None:
        click.echo("(none)")
        return
    for number, page in enumerate(chain([first], pages)):
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
