"""`pyvtep service`: manage the systemd units of pyvtep on this host."""

from pathlib import Path

import click

from vtep.cli import commands
from vtep.service.installation import UNIT_DIRECTORY, Installation

_DIRECTORY = commands.option(
    "--directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help=f"Directory of the units [default: {UNIT_DIRECTORY}]; systemd is not told of another one.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@click.group(cls=commands.CliGroup)
def service() -> None:
    """Run pyvtep as a systemd service: install, remove and show its units."""


@service.command()
@_DIRECTORY
@_DRY_RUN
@click.option("--force", is_flag=True, help="Replace units that were edited.")
def install(*, directory: Path | None, dry_run: bool, force: bool) -> None:
    """Write the units of this pyvtep, and make systemd read them. Nothing is started.

    pyvtep.service runs all files /etc/pyvtep/*.toml in one process, and pyvtep@NAME.service only
    /etc/pyvtep/NAME.toml. pyvtep-exporter.service exports metrics.
    """
    installation = Installation(directory or UNIT_DIRECTORY, dry_run=dry_run)
    for line in installation.install(force=force):
        click.echo(line)


@service.command()
@_DIRECTORY
@_DRY_RUN
@click.option("--force", is_flag=True, help="Remove units that were edited.")
def uninstall(*, directory: Path | None, dry_run: bool, force: bool) -> None:
    """Stop, disable and remove the units. Configuration files stay."""
    installation = Installation(directory or UNIT_DIRECTORY, dry_run=dry_run)
    for line in installation.uninstall(force=force):
        click.echo(line)


@service.command()
@_DIRECTORY
def status(*, directory: Path | None) -> None:
    """Show which units are installed and running, and problems of /etc/pyvtep."""
    for line in Installation(directory or UNIT_DIRECTORY).status():
        click.echo(line)
