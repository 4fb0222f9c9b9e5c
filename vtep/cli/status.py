"""`pyvtep status`: the state of running pyvteps on one screen, and whether something is wrong."""

import json
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack

import click

from vtep.cli import client_command, commands
from vtep.cli.status_text import BAD, GOOD, HEADING, Style, format_status
from vtep.config import option_parsers
from vtep.control import Client
from vtep.control.client import DisconnectedError
from vtep.control.schema import Status

_CODES = {GOOD: "32", BAD: "1;31", HEADING: "1"}
"""Parameters of SGR (ECMA-48, section 8.3.117): green, bold red, bold."""

_CLEAR = "\x1b[H\x1b[2J"

_RETRY_S = 1.0
"""Longest pause before another attempt to connect again, with --watch."""


@click.command(cls=commands.CliCommand)
@commands.option(
    "--watch",
    "-w",
    metavar="[SECONDS]",
    type=commands.Seconds(0.1),
    is_flag=False,
    flag_value=2.0,
    help="Repeat every two seconds, or every SECONDS.",
)
@commands.option("--dev", metavar="TAP", help="TAP of the segment, instead of --vni.")
@client_command.with_client(shows=True, every=True)
def status(
    vteps: list[Client], *, vni: str | None, dev: str | None, watch: float | None, as_json: bool
) -> None:
    """Show segments, remotes, recent drops and problems.

    The exit code is 1 if there are problems: a remote that is silent or refuses datagrams, a TAP
    that is down, an underlay that is missing, a loop, a storm, or a reload that has failed.
    """
    number = option_parsers.vni(vni) if vni is not None else None
    if watch is not None:
        _watch([vtep.path for vtep in vteps], number, dev, watch, as_json=as_json)
        return
    found = [vtep.status(vni=number, dev=dev) for vtep in vteps]
    _show(found, as_json=as_json)
    problems = [problem for each in found for problem in each["problems"]]
    if problems:
        raise click.exceptions.Exit(1)


def _watch(
    paths: Iterable[object], vni: int | None, dev: str | None, interval: float, *, as_json: bool
) -> None:
    """Show the status again and again; connect again after a restart or an upgrade."""
    clears = sys.stdout.isatty() and not as_json
    with ExitStack() as connections:
        clients: dict[str, Client] = {}
        while True:
            found, absent = [], []
            for path in map(str, paths):
                try:
                    if path not in clients:
                        clients[path] = connections.enter_context(Client(path))
                    found.append(clients[path].status(vni=vni, dev=dev))
                except DisconnectedError as error:
                    if (former := clients.pop(path, None)) is not None:
                        former.close()
                    absent.append(f"{error}; waiting for it")
            if clears:
                click.echo(_CLEAR, nl=False)
            if found and as_json:  # One line each, for tools that read line by line.
                click.echo(json.dumps(found[0] if len(clients) == 1 else found))
            elif found:
                _show(found, as_json=False)
            for line in absent:
                click.echo(f"pyvtep: {line}", err=True)
            sys.stdout.flush()
            time.sleep(interval if not absent else min(interval, _RETRY_S))


def _show(found: list[Status], *, as_json: bool) -> None:
    if as_json:
        client_command.print_json(found[0] if len(found) == 1 else found)
        return
    style = _coloured if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else _plain
    for line in _lines(found, style):
        click.echo(line, color=True)


def _lines(found: Collection[Status], style: Style) -> Iterator[str]:
    number = 0
    for number, each in enumerate(found):
        if number:
            yield ""
        yield from format_status(each, style)
    # The last lines are those of the last process, and may be good news.
    if number and (bad := [str(each["pid"]) for each in found if each["problems"]]):
        yield ""
        yield f"problems in {len(bad)} of {number + 1} processes: pid {', '.join(bad)}"


def _plain(text: str, _name: str) -> str:
    return text


def _coloured(text: str, name: str) -> str:
    return f"\x1b[{_CODES[name]}m{text}\x1b[0m" if name in _CODES else text
