"""`pyvtep upgrade`: start a new process that takes over from the running one without a loss."""

import click

from vtep.cli import client_command, commands
from vtep.control import Client


@click.command(cls=commands.CliCommand)
@client_command.with_client(segment=False, shows=True, changes=True)
def upgrade(vtep: Client, *, as_json: bool) -> None:
    """Replace the running pyvtep by a new process, which may be a newer version.

    The new process starts with the same command line, and reads the configuration file again. It
    takes over TAPs, sockets, the FDB, neighbours, counters and runtime changes, and no frame is
    lost. If it fails, the running process continues.
    """
    result = vtep.upgrade()
    if as_json:
        client_command.print_json(result)
    else:
        click.echo(result)
