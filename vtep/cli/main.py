"""The `pyvtep` command: its options, the commands below it, and how it ends.

Its options are the fields of `Config` and `Settings`, which have the names, help texts and checks.
Exit codes: 0, 1 (the host or its network refused), 2 (usage).
"""

import errno
import gc
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from vtep import VtepError, __version__, descriptors
from vtep.cli import bootstrap, commands, mistakes
from vtep.cli.options import config_options, given_options, load_settings, settings_options
from vtep.cli.process_options import ProcessOptions, in_background, process_options
from vtep.errors import ConfigError
from vtep.upgrade.starter import starter

_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""Raised by click 8.2 and later for a group without a command; before, click printed the help."""

_UNWRITABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)
)
"""Errors of writing to standard output; all other OSErrors are handled where they occur."""

_COMMANDS = commands.LazyCommands(
    {
        "fdb": "vtep.cli.fdb:group",
        "neigh": "vtep.cli.neigh:group",
        "vni": "vtep.cli.segments:vni",
        "remote": "vtep.cli.segments:remote",
        "loop": "vtep.cli.protection:loop",
        "storm": "vtep.cli.protection:storm",
        "set": "vtep.cli.segments:set_options",
        "stats": "vtep.cli.segments:stats",
        "status": "vtep.cli.status:status",
        "reload": "vtep.cli.segments:reload",
        "upgrade": "vtep.cli.upgrade:upgrade",
        "monitor": "vtep.cli.monitor:monitor",
        "capture": "vtep.cli.capture:capture",
        "extcap": "vtep.cli.extcap:extcap",
        "trace": "vtep.cli.trace:trace",
        "exporter": "vtep.cli.exporter:exporter",
        "top": "vtep.cli.top:top",
        "web": "vtep.cli.web:web",
        "docker": "vtep.cli.docker:docker",
        "evpn": "vtep.cli.evpn:evpn",
        "doctor": "vtep.cli.doctor:doctor",
        "service": "vtep.cli.service:service",
        "completion": "vtep.cli.completion:completion",
    }
)


@click.group(
    cls=commands.CliGroup,
    commands=_COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@config_options()
@settings_options()
@process_options
@commands.option(
    "--config", metavar="PATH", help="Configuration file, or a directory of files *.toml."
)
@commands.option("--debug", is_flag=True, help="Log every change, and print tracebacks.")
@click.version_option(__version__, message="pyvtep %(version)s")
@click.pass_context
def cli(context: click.Context, /, *, config: str | None, debug: bool, **options: Any) -> None:
    """Join this host to a VXLAN segment, without the kernel's VXLAN driver.

    On two hosts, with the address of the other host as the remote:

        pyvtep --vni 1 --remote 192.0.2.2 --tap vx0

    Then vx0 is a port of an Ethernet segment: give it an address, or attach it to a bridge.
    SIGUSR1 prints counters and learned MACs, SIGHUP reads the --config file again, and SIGINT or
    SIGTERM ends pyvtep and removes vx0.
    """
    given = given_options(options)
    if context.invoked_subcommand is not None:
        # Options before a command would be ignored silently, since they are those of a VTEP.
        if given or config is not None:
            _refuse_options(context, given if config is None else given | {"config": config})
        bootstrap.unblock_signals()
        gc.enable()  # `monitor` may run for weeks.
        return
    process = ProcessOptions.take(given, debug=debug)
    settings, path, overrides = load_settings(config, given, on_demand=process.on_demand)
    with in_background(process) as background:
        from vtep.cli.run import run  # noqa: PLC0415  slow to import, and only needed to run a VTEP

        run(settings, path, overrides, process=process, background=background)


def _refuse_options(context: click.Context, given: dict[str, Any]) -> NoReturn:
    """Raise UsageError for options before a command, which belong behind it or nowhere."""
    name = str(context.invoked_subcommand)
    first = next(iter(given)).replace("_", "-")
    flags = {option.opts[0] for option in mistakes.options_of(context, name)}
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
    """Check a configuration file, or a directory of them; print each problem with its line."""
    # Other commands need no TOML parser.
    from vtep.config.file import FileError  # noqa: PLC0415
    from vtep.config.loader import exposed_secrets, read, with_password  # noqa: PLC0415

    try:
        settings = read(file)
    except FileError as error:  # In the format of compilers, which editors understand.
        print(*error.problems, sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
    notes = exposed_secrets(settings, file)
    try:
        with_password(settings, file)
    except VtepError as error:
        if not isinstance(error.__cause__, PermissionError):
            print(error, file=sys.stderr)
            sys.exit(ConfigError.exit_code)
        notes.append(f"{error} (not checked)")
    print(*(f"warning: {note}\n" for note in notes), sep="", end="", file=sys.stderr)
    vnis = ", ".join(str(config.vni) for config in settings.segments)
    print(f"{file}: valid; vni {vnis}" if vnis else f"{file}: valid; no VNI")


@cli.command()
def demo() -> None:
    """Run two VTEPs on this machine, in temporary network namespaces, and show what they do."""
    from vtep.cli.demo import run  # noqa: PLC0415  it imports rich

    run()


@cli.command()
@click.argument("words", metavar="[COMMAND]...", nargs=-1)
@click.pass_context
def help(context: click.Context, words: tuple[str, ...]) -> None:  # noqa: A001  the name of the command
    """Show the help of pyvtep or of one of its commands."""
    at = context.find_root()
    for number, word in enumerate(words):
        group = at.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{at.command_path} has no subcommands", at)
        command = group.get_command(at, word)
        if command is None:
            raise click.UsageError(mistakes.describe_unknown_command(group, at, words[number:]), at)
        at = click.Context(command, at, command.name)
    click.echo(at.get_help())


@cli.command()
def version() -> None:
    """Show the version."""
    click.echo(f"pyvtep {__version__}")


def main() -> None:
    """Run the command line and exit."""
    debug = "--debug" in sys.argv
    if sys.stdout is None:  # It is closed: make writing an error, as for other programs.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    try:
        # Not in standalone mode, click returns the code of an early exit, or else None.
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
        _fail(*error.problems, code=error.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001  the last resort: one line instead of a traceback
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            from vtep.cli import client_command  # noqa: PLC0415  most commands do without

            client_command.discard_stdout()
            _fail(f"cannot write: {error.strerror}", code=1, debug=debug)
        if isinstance(error, OSError) and descriptors.is_shortage(error):
            _fail(f"cannot go on: {descriptors.reason(error)}", code=1, debug=debug)
        if isinstance(error, MemoryError):
            line = (
                "cannot go on: there is not enough memory; see ulimit -v, or the limits of its unit"
            )
            _fail(line, code=1, debug=debug)
        line = f"internal error: {error!r}; --debug shows the traceback; please report it"
        _fail(line, code=1, debug=debug)


def _fail(*lines: str, code: int, debug: bool) -> None:
    """Print errors, with the traceback of the current exception if `debug`, and exit."""
    with suppress(OSError, AttributeError):  # Standard error may be broken or closed.
        if debug:
            traceback.print_exc()
        for line in lines:
            print(
                f"{bootstrap.journal_prefix(3)}pyvtep: error: {line}", file=sys.stderr, flush=True
            )
    starter().fail(lines[-1])
    sys.exit(code)
