"""The `pyvtep` command.

Its options are the fields of `Config`: their names, help texts and checks are there. Exit codes:
0, 1 (this machine refused), 2 (the command line makes no sense).
"""

import errno
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from vtep import VtepError, __version__, descriptors
from vtep.cli import bootstrap, client_command, commands, fdb, mistakes, neigh, segments
from vtep.cli.completion import completion
from vtep.cli.docker import docker
from vtep.cli.doctor import doctor
from vtep.cli.monitor import monitor
from vtep.cli.options import asked_for, config_options, given_of, settings_options
from vtep.config.file import FileError, problems_of

_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group says without a command; before click 8.2 it did so by itself."""

_UNWRITABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)
)
"""Errors of whatever standard output is; others are not expected to get as far as here."""


@click.group(
    cls=commands.Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@config_options()
@settings_options()
@commands.option("--config", metavar="FILE", help="Configuration of many VNIs, instead of options.")
@commands.option("--debug", is_flag=True, help="Log every decision, and show tracebacks.")
@click.version_option(__version__, message="pyvtep %(version)s")
@click.pass_context
def cli(context: click.Context, /, *, config: str | None, debug: bool, **options: Any) -> None:
    """Join this host to a VXLAN segment, without the kernel's VXLAN driver.

    On two hosts, with the other one's address as the remote:

        pyvtep --vni 1 --remote 192.0.2.2 --tap vx0

    Then vx0 is one end of an Ethernet: give it an address, or enslave it to a bridge.
    SIGUSR1 prints counters and learned MACs; SIGINT or SIGTERM ends it and removes vx0. With
    --config, SIGHUP reads the file again.
    """
    given = given_of(options)
    if context.invoked_subcommand is not None:
        if given or config is not None:
            _refuse_before(context, given if config is None else given | {"config": config})
        bootstrap.let_signals_end()
        return
    settings, path, process = asked_for(config, given)
    from vtep.cli.run import run  # noqa: PLC0415  a mistake, or a command, is told without it

    run(settings, path, process, debug=debug)


def _refuse_before(context: click.Context, given: dict[str, Any]) -> NoReturn:
    """Raise UsageError: options were given before a command, not behind it."""
    name = str(context.invoked_subcommand)
    first = next(iter(given)).replace("_", "-")
    flags = {option.opts[0] for option in mistakes.options_below(context, name)}
    flag = f"--{first}" if given[first.replace("-", "_")] is not False else f"--no-{first}"
    value = given[first.replace("-", "_")]
    words = (
        flag,
        *([] if isinstance(value, bool) else [value] if isinstance(value, str) else value),
    )
    hint = f"; write it behind the command: pyvtep {name} {' '.join(words)}"
    raise click.UsageError(
        f"{name} takes no --{first}" + (f" before it{hint}" if f"--{first}" in flags else "")
    )


@cli.command("check-config")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
def check_config(file: Path) -> None:
    """Say whether a configuration file makes sense, or each line that does not."""
    from vtep.config.loader import read  # noqa: PLC0415  other commands need it not

    try:
        settings = read(file)
    except FileError as error:  # As compilers write it, so that editors find the place.
        print(*error.problems, sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
    vnis = ", ".join(str(config.vni) for config in settings.segments)
    print(f"{file}: makes sense; vni {vnis}" if vnis else f"{file}: makes sense; there is no VNI")


@cli.command()
def demo() -> None:
    """Show two VTEPs at work on this machine, in network namespaces that are removed again."""
    from vtep.cli.demo import run  # noqa: PLC0415  the data path need not carry rich

    run()


@cli.command()
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help(context: click.Context, words: tuple[str, ...]) -> None:  # noqa: A001  as it is called
    """Show what pyvtep, or one of its commands, does and takes."""
    at = context.find_root()
    for number, word in enumerate(words):
        group = at.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{at.command_path} has no commands below it", at)
        command = group.get_command(at, word)
        if command is None:
            raise click.UsageError(mistakes.no_such_command(group, at, words[number:]), at)
        at = click.Context(command, at, command.name)
    click.echo(at.get_help())


@cli.command()
def version() -> None:
    """Show the version."""
    click.echo(f"pyvtep {__version__}")


for _command in (fdb.group, neigh.group, *segments.COMMANDS, monitor, docker, doctor, completion):
    cli.add_command(_command)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    debug = "--debug" in sys.argv
    if sys.stdout is None:  # It was closed: then to write is an error, as it is for others.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    try:
        # What ends a command early gives its exit code here, and others give None.
        code = cli.main(prog_name="pyvtep", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except _HELP as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(mistakes.explain(error), code=error.exit_code, debug=debug)
    except VtepError as error:
        _fail(*problems_of(error), code=error.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001  the last resort: a line for the person
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            client_command.write_no_more()
            _fail(f"cannot write: {error.strerror}", code=1, debug=debug)
        if isinstance(error, OSError) and descriptors.is_shortage(error):
            _fail(f"cannot go on: {descriptors.reason(error)}", code=1, debug=debug)
        line = f"internal error: {error!r}; --debug shows where, and we would like to hear of it"
        _fail(line, code=1, debug=debug)


def _fail(*lines: str, code: int, debug: bool) -> None:
    """Say why, with the traceback of the present exception if wanted, and end the process."""
    with suppress(OSError, AttributeError):  # Standard error may be broken, or closed.
        if debug:
            traceback.print_exc()
        for line in lines:
            print(f"{bootstrap.priority(3)}pyvtep: error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
