"""`pyvtep evpn speaker`: the process that the daemon starts for its BGP sessions."""

import logging
import os
import sys
from pathlib import Path

import click

from vtep.cli import commands
from vtep.cli.log_handler import NonBlockingLogHandler
from vtep.cli.log_sinks import LogDestinations
from vtep.cli.process_options import JSON, TEXT, ProcessOptions
from vtep.errors import VtepError
from vtep.host import privileges
from vtep.host.privileges import Capability

_log = logging.getLogger("vtep")


@click.command(cls=commands.CliCommand, hidden=True)
@commands.option("--socket", metavar="PATH", type=click.Path(path_type=Path), required=True)
@commands.option("--log", metavar="DEST", help="As the daemon logs.")
@commands.option("--log-format", type=click.Choice((TEXT, JSON)), help="As the daemon logs.")
@commands.option("--debug", is_flag=True, help="Log details.")
def speaker(*, socket: Path, log: str | None, log_format: str | None, debug: bool) -> None:
    """Speak BGP for the daemon with this control socket, which starts this process itself."""
    # Other commands do without these.
    import uvloop  # noqa: PLC0415

    from vtep.evpn import speaker as module  # noqa: PLC0415
    from vtep.evpn.speaker_config import TOKEN  # noqa: PLC0415

    token = os.environ.pop(TOKEN, "")
    if not token:
        raise click.UsageError("pyvtep starts this process itself, with --evpn-neighbor or [evpn]")
    # Before the first thread, and for good. What the daemon has beyond this is not needed here.
    privileges.drop(frozenset((Capability.NET_ADMIN, Capability.NET_BIND_SERVICE)))
    # The lines of both processes go to the same place.
    logs = LogDestinations.open(ProcessOptions(log=log, log_format=log_format), in_background=False)
    handler = NonBlockingLogHandler(*logs.lasting)
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("vtep").setLevel(logging.DEBUG if debug else logging.INFO)
    try:
        uvloop.run(module.run(socket, token, handler.reopen))
    except VtepError as error:
        _log.error("EVPN speaker: %s", error)
        sys.exit(error.exit_code)
    finally:
        handler.flush()
