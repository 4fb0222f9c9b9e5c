"""Common parts of the commands for a running pyvtep: connect to it, parse words, print results."""

import functools
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import click

from vtep.cli import commands, mistakes, text_table
from vtep.cli.grammar import Grammar
from vtep.control import Client, socket_files
from vtep.control.choice import Candidate
from vtep.control.client import find
from vtep.errors import ConfigError, VtepError

_PAGE = 100
"""Lines of a table that are written at a time."""

_SIGPIPE_CODE = 141
"""Exit code of a shell for a command that SIGPIPE ended: 128 + 13."""


def with_client(
    *,
    segment: bool = True,
    vni: str = "vni",
    shows: bool = False,
    changes: Callable[[dict[str, Any]], bool] | bool | None = None,
    every: bool = False,
    by_pid: bool = False,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> Callable[..., Any]:
    """Return a decorator that connects a command to a running pyvtep.

    The decorated function is called with a `Client` as `vtep`, or with a list of them as `vteps`.

    Args:
        segment: the command is about one segment: add `--vni`, as a part of the parameters of a
            command with words, or else as the keyword `vni`.
        vni: name of the argument that has the VNI.
        shows: the command prints something: add `--json`, as the keyword `as_json`.
        changes: the command changes something, so that exactly one process must be meant; a
            function decides by the arguments. By default, a command that shows nothing does.
        every: the command works on all processes that match, as `vteps`.
        by_pid: the process may be named by its PID, too: add `--pid`.
        check: raises ConfigError for arguments that make no sense, before any connection.
    """

    def is_change(arguments: dict[str, Any]) -> bool:
        if callable(changes):
            return changes(arguments)
        return not shows if changes is None else changes

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(*, socket: str | None, pid: int | None = None, **arguments: Any) -> None:
            socket = _named_socket(socket, pid)
            if segment and "params" in arguments:  # Both src_vni and --vni may name the segment.
                number = arguments.pop("vni")
                if number is not None and arguments["params"].setdefault("vni", number) != number:
                    raise ConfigError(f"--vni {number}: contradicts the other VNI here")
            # Before a connection, so that a mistake is reported even if no pyvtep runs.
            if check is not None:
                check(arguments)
            names, changing = arguments.get("params", arguments), is_change(arguments)
            with exit_on_broken_pipe(), ExitStack() as connections:
                paths = _find_sockets(
                    socket,
                    names.get(vni) if segment or vni != "vni" else None,
                    names.get("dev") if segment else None,
                    changes=changing,
                    every=every and not changing,
                    by_segment=segment,
                )
                vteps = [connections.enter_context(Client(path)) for path in paths]
                function(**{"vteps": vteps} if every else {"vtep": vteps[0]}, **arguments)

        wrapped: Callable[..., Any] = command
        if shows:
            wrapped = commands.json_option(wrapped)
        wrapped = commands.option(
            "--socket",
            metavar="PATH",
            help="Control socket of the pyvtep to talk to [default: the one in this network "
            "namespace, or the one with the segment].",
        )(wrapped)
        if by_pid:
            wrapped = commands.option(
                "--pid",
                metavar="PID",
                type=click.IntRange(min=1),
                help="Process ID of the pyvtep to talk to, instead of --socket.",
            )(wrapped)
        if segment:
            wrapped = commands.option(
                "--vni", metavar="N", help="VNI of the segment, if there are several."
            )(wrapped)
        return wrapped

    return decorate


def _named_socket(socket: str | None, pid: int | None) -> str | None:
    """Return the control socket that --socket or --pid names; None without both."""
    if pid is None:
        return socket
    if socket is not None:
        raise click.UsageError("--pid and --socket both name a pyvtep; leave one out")
    path = socket_files.of_process(pid)
    if path is None:
        raise VtepError(
            f"--pid {pid}: no control socket of that process was found; check the PID, run this "
            "with its user or as root, or name its socket: --socket PATH"
        )
    return str(path)


def _find_sockets(
    socket: str | None,
    vni: str | None,
    dev: str | None,
    *,
    changes: bool,
    every: bool,
    by_segment: bool,
) -> list[str | Path]:
    """Return the sockets of the processes that a command is about.

    Side effects: prints a note for each that is in another network namespace.
    """
    if socket is not None:
        return [socket]
    # Not int() alone, which accepts "1_0" and digits of other scripts.
    number = int(vni) if vni is not None and vni.isascii() and vni.isdigit() else None
    if vni is not None and number is None:
        raise ConfigError(f"--vni {vni}: is not a whole number")
    found = find(vni=number, dev=dev, changes=changes, every=every, by_segment=by_segment)
    for each in found:
        if not each.here:
            note_other_namespace(each)
    return [each.path for each in found]


def note_other_namespace(process: Candidate) -> None:
    """Print a note that a process of another network namespace was chosen."""
    line = f"{process.process} in another network namespace answered ({process.path})"
    click.echo(f"pyvtep: note: {line}", err=True)


def words(grammar: Grammar, metavar: str, required: Sequence[str] = ()) -> Callable[..., Any]:
    """Return a decorator that gives a command the words of a grammar.

    Its function gets the parameters that the words stand for as `params`. The `required` ones have
    to be among them.
    """

    def parse(context: click.Context, _parameter: click.Parameter, typed: Sequence[str]) -> Any:
        try:
            params = grammar.parse(typed)
        except ConfigError:
            # An option without dashes gets a better explanation than an unknown word.
            for word in typed:
                mistakes.check_word(word, grammar.words(), context)
            raise
        for name in required:
            if name not in params:
                word = grammar.word_for(name)
                raise ConfigError(f"{word}: is missing; usage: {context.command_path} {metavar}")
        return params

    def complete(_context: click.Context, _parameter: click.Parameter, prefix: str) -> list[str]:
        return [word for word in grammar.words() if word.startswith(prefix)]

    return click.argument(
        "params", nargs=-1, metavar=metavar, callback=parse, shell_complete=complete
    )


def print_json(value: object) -> None:
    """Print a result as JSON."""
    click.echo(json.dumps(value, indent=2))


def print_json_items(items: Iterable[object]) -> None:
    """Print a list as `print_json` does, item by item."""
    before = "["
    for item in items:
        click.echo(before + "\n" + textwrap.indent(json.dumps(item, indent=2), "  "), nl=False)
        before = ","
    click.echo("[]" if before == "[" else "\n]")


def print_table(columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below their headings, or "(none)".

    `columns` has the headings, each with its alignment: "right", or "" for left.
    """
    lines = text_table.lines(columns, rows)
    heading = next(lines, None)
    if heading is None:
        click.echo("(none)")
        return
    click.secho(heading, bold=True)
    while page := list(islice(lines, _PAGE)):
        click.echo("\n".join(page))


@contextmanager
def exit_on_broken_pipe() -> Iterator[None]:
    """Exit silently, as SIGPIPE would, if the reader of standard output is gone (`| head`)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        raise click.exceptions.Exit(_SIGPIPE_CODE) from None


def discard_stdout() -> None:
    """Discard buffered output: the interpreter would try to write it at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
