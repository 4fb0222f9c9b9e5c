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
from typing import Any

import click

from vtep import VtepError, __version__, descriptors
from vtep.cli import fdb, neigh, segments, steer
from vtep.cli.completion import completion
from vtep.cli.docker import docker
from vtep.cli.doctor import doctor
from vtep.cli.monitor import monitor
from vtep.cli.options import config_options, given_of, settings_options
from vtep.configfile import FileError, problems_of

_HELP: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""What a group says without a command; before click 8.2 it did so by itself."""

_UNWRITABLE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EPIPE)
)
"""Errors of whatever standard output is; others are not expected to get as far as here."""


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@config_options()
@settings_options()
@click.option("--config", metavar="FILE", help="Configuration of many VNIs, instead of options.")
@click.option("--debug", is_flag=True, help="Show tracebacks and debugging messages.")
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
            first = min([*given, *(["config"] if config is not None else [])]).replace("_", "-")
            raise click.UsageError(f"{context.invoked_subcommand} takes no --{first}")
        return
    from vtep.cli.run import run  # noqa: PLC0415  a command that steers need not load it

    run(config, given, debug=debug)


@cli.command("check-config")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
def check_config(file: Path) -> None:
    """Say whether a configuration file makes sense, or each line that does not."""
    from vtep.service import read  # noqa: PLC0415  as above

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
        _fail(" ".join(error.format_message().split()), error.exit_code, debug=debug)
    except VtepError as error:
        _fail("\npyvtep: error: ".join(problems_of(error)), error.exit_code, debug=debug)
    except Exception as error:  # noqa: BLE001  the last resort: a line for the person
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            steer.write_no_more()
            _fail(f"cannot write: {error.strerror}", 1, debug=debug)
        if isinstance(error, OSError) and descriptors.is_shortage(error):
            _fail(f"cannot go on: {descriptors.reason(error)}", 1, debug=debug)
        line = f"internal error: {error!r}; --debug shows where, and we would like to hear of it"
        _fail(line, 1, debug=debug)


def _fail(line: str, code: int, *, debug: bool) -> None:
    """Say why, with the traceback of the present exception if wanted, and end the process."""
    with suppress(OSError, AttributeError):  # Standard error may be broken, or closed.
        if debug:
            traceback.print_exc()
        print(f"pyvtep: error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
