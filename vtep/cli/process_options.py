"""Options of the command line that decide how a process runs, not what it forwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from attrs import fields, frozen

from vtep.cli import commands

_F = TypeVar("_F", bound=Callable[..., Any])


@frozen(kw_only=True)
class ProcessOptions:
    """Options of a process that are given on the command line only."""

    debug: bool = False
    background: bool = False
    pid_file: Path | None = None
    log: str = "auto"

    @classmethod
    def take(cls, options: dict[str, Any]) -> "ProcessOptions":
        """Remove these options from those of a command, and return them."""
        names = [field.name for field in fields(cls) if field.name in options]
        given = {name: options.pop(name) for name in names}
        return cls(**{name: value for name, value in given.items() if value is not None})


def process_options(command: _F) -> _F:
    """Add the options of `ProcessOptions`, except `--debug`, to a command."""
    for decorate in reversed(
        (
            click.option(
                "--background",
                is_flag=True,
                help="Return once it forwards, and run on in the background.",
            ),
            commands.option(
                "--pid-file",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="File for the process ID [default: with --background, below /run/pyvtep].",
            ),
            commands.option(
                "--log",
                metavar="DEST",
                help="stderr, syslog, or a file, which SIGHUP reopens [default: stderr; with "
                "--background: syslog].",
            ),
        )
    ):
        command = decorate(command)
    return command
