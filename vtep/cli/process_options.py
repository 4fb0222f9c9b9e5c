"""Options of the command line that decide how a process runs, not what it forwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from attrs import fields, frozen

from vtep.cli import bootstrap, commands
from vtep.service.background import Background
from vtep.upgrade.starter import starter

STDERR: Final = "stderr"
SYSLOG: Final = "syslog"
TEXT: Final = "text"
JSON: Final = "json"

_F = TypeVar("_F", bound=Callable[..., Any])


@frozen(kw_only=True)
class ProcessOptions:
    """Options of a process that are given on the command line only."""

    debug: bool = False
    on_demand: bool = False
    background: bool = False
    pid_file: Path | None = None
    log: str | None = None
    log_format: str | None = None
    takeover: str | None = None

    def __attrs_post_init__(self) -> None:
        """Raise UsageError for options that make no sense, or contradict each other."""
        # Path("") is the present directory, which is neither.
        for option, value in (("--pid-file", self.pid_file), ("--log", self.log)):
            if value is not None and str(value) in ("", "."):
                raise click.UsageError(f"{option} takes the path of a file")
        if self.background and self.log == STDERR:
            raise click.UsageError(
                "--log stderr cannot be used with --background, which has no terminal; use "
                "--log syslog, or a file"
            )

    @property
    def log_options(self) -> list[str]:
        """The options by which another process logs to the same place."""
        options = ["--debug"] if self.debug else []
        if self.log is not None and self.log not in (STDERR, SYSLOG):
            options += ["--log", str(Path(self.log).absolute())]
        elif self.log is not None or self.background:
            options += ["--log", self.log or SYSLOG]
        return options + (["--log-format", self.log_format] if self.log_format else [])

    @classmethod
    def take(cls, given: dict[str, Any], *, debug: bool) -> "ProcessOptions":
        """Remove these options from those that were given, and return them."""
        names = [field.name for field in fields(cls) if field.name in given]
        return cls(debug=debug, **{name: given.pop(name) for name in names})


@contextmanager
def in_background(process: ProcessOptions) -> Iterator[Background | None]:
    """Go on in the background if that is requested; the foreground waits, and then exits.

    To be called before slow imports: numpy starts threads, which do not survive a fork.
    """
    if process.takeover is not None and starter().is_present:
        # Started by `pyvtep upgrade`. systemd waits for the end of a main process only if it was
        # its own child when it was named (service_set_main_pid() in src/core/service.c): otherwise,
        # systemctl stop would send SIGKILL right after SIGTERM.
        with Background.detach():
            starter().report("load its modules")
            yield None
        return
    if not process.background:
        yield None
        return
    bootstrap.open_standard_streams()
    with Background.enter() as background:
        yield background


def process_options(command: _F) -> _F:
    """Add the options of `ProcessOptions`, except `--debug`, to a command."""
    for decorate in reversed(
        (
            click.option(
                "--on-demand",
                is_flag=True,
                default=None,
                help="Start without a VNI, and end when there is neither a VNI nor a client of the "
                "control socket.",
            ),
            click.option(
                "--background",
                is_flag=True,
                default=None,
                help="Return once it forwards, and run on in the background.",
            ),
            commands.option(
                "--pid-file",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="File for the process ID [default: with --background, below /run/pyvtep].",
            ),
            click.option(
                "--takeover",
                metavar="[NAME|PATH]",
                is_flag=False,
                flag_value="",
                help="Take over from the running pyvtep with this control socket, or with the one "
                "that this process would have, without losing a frame unless a queue overflows.",
            ),
            commands.option(
                "--log",
                metavar="DEST",
                help="stderr, syslog, or a file, which SIGHUP reopens [default: stderr; with "
                "--background: syslog].",
            ),
            commands.option(
                "--log-format",
                metavar=f"{TEXT}|{JSON}",
                type=click.Choice((TEXT, JSON)),
                help="Lines of text, or a JSON object a line [default: text]. The systemd journal "
                "gets fields with either.",
            ),
        )
    ):
        command = decorate(command)
    return command
