"""`pyvtep vni`, `remote`, `set`, `stats` and `reload`: the segments of a running pyvtep."""

from typing import Any

import click

from vtep.cli import steer
from vtep.cli.counted import counted
from vtep.cli.fdb import destination_words
from vtep.cli.options import config_options, given_of
from vtep.cli.words import SEGMENT, Grammar
from vtep.control import Client

# --- vni ------------------------------------------------------------------------------------

_SEGMENT = Grammar(None, SEGMENT)
_REMOTE = Grammar("remote", SEGMENT)


@click.group()
def vni() -> None:
    """Show, add or remove the VNIs of a running pyvtep."""


@vni.command("show")
@steer.words(_SEGMENT, "[dev TAP]")
@steer.steering(shows=True)
def show_vni(vtep: Client, given: dict[str, Any], *, as_json: bool) -> None:
    """Show the segments."""
    segments = vtep.call("vni.show", **given)
    if as_json:
        steer.show_json(segments)
        return
    steer.show_table(
        {"VNI": "right", "DEV": "", "MTU": "right", "PORT": "right", "FDB": "right", "REMOTES": ""},
        (
            (
                *(segment["vni"], segment["dev"], segment["mtu"]),
                *(segment["options"]["dstport"], segment["fdb_entries"]),
                ", ".join(destination_words(to, segment["vni"]) for to in segment["remotes"]),
            )
            for segment in segments
        ),
    )


@vni.command("add")
@click.argument("number", metavar="VNI")
@config_options(without=("vni",))
@steer.steering(segment=False)
def add_vni(vtep: Client, number: str, **options: Any) -> None:
    """Open one more segment, with a TAP of its own; the options are those of pyvtep itself."""
    vtep.call("vni.add", vni=number, options=given_of(options))


@vni.command("del")
@click.argument("number", metavar="VNI")
@steer.steering(segment=False)
def delete_vni(vtep: Client, number: str) -> None:
    """Close a segment; the others go on."""
    vtep.call("vni.del", vni=number)


# --- remote ---------------------------------------------------------------------------------


@click.group()
def remote() -> None:
    """Show, add or remove the VTEPs to which broadcasts go."""


@remote.command("show")
@steer.words(_SEGMENT, "[dev TAP]")
@steer.steering(shows=True)
def show_remotes(vtep: Client, given: dict[str, Any], *, as_json: bool) -> None:
    """Show the remotes, also those that were appended to the MAC 00:00:00:00:00:00."""
    remotes = vtep.call("remote.show", **given)
    if as_json:
        steer.show_json(remotes)
        return
    rows = ((to["vni"], to["dev"], destination_words(to, to["vni"])) for to in remotes)
    steer.show_table({"VNI": "right", "DEV": "", "REMOTE": ""}, rows)


@remote.command("add")
@steer.words(_REMOTE, "IP [dev TAP]")
@steer.steering()
def add_remote(vtep: Client, given: dict[str, Any]) -> None:
    """Add a remote, as if it had been given as an option."""
    vtep.call("remote.add", **given)


@remote.command("del")
@steer.words(_REMOTE, "IP [dev TAP]")
@steer.steering()
def delete_remote(vtep: Client, given: dict[str, Any]) -> None:
    """Remove a remote, and forget what was learned to be behind it."""
    vtep.call("remote.del", **given)


# --- the rest -------------------------------------------------------------------------------


@click.command("set")
@config_options(without=("vni",))
@steer.words(_SEGMENT, "[dev TAP]")
@steer.steering()
def set_options(vtep: Client, given: dict[str, Any], **options: Any) -> None:
    """Change options of a segment while it runs: all of those given, or none.

    The word `dev` names the TAP of the segment; --dev is the option.
    """
    changes = given_of(options)
    if not changes:
        raise click.UsageError("set: give an option that is to change; for example: --ageing 60")
    vtep.call("set", options=changes, **given)


@click.command()
@steer.steering(segment=False, shows=True)
def reload(vtep: Client, *, as_json: bool) -> None:
    """Have the configuration file read again; what did not change is not touched."""
    told = vtep.reload()
    if as_json:
        steer.show_json(told)
    else:
        click.echo(told)


@click.command()
@click.option(
    "--reset",
    is_flag=True,
    help="Show nothing, but count from zero: stats and doctor show what is counted from now on. "
    "JSON also has what was counted since the start.",
)
@steer.words(_SEGMENT, "[dev TAP]")
@steer.steering(shows=True)
def stats(vtep: Client, given: dict[str, Any], *, reset: bool, as_json: bool) -> None:
    """Show what was forwarded, and what was dropped and why."""
    if reset:
        if given or as_json:
            raise click.UsageError("stats --reset is for all segments, and shows nothing")
        vtep.reset_stats()
        return
    told = vtep.call("stats", **given)
    if as_json:
        steer.show_json(told)
    else:
        click.echo(
            "\n".join(line for part in counted(told, whole=not given) for line in part.lines)
        )


COMMANDS: tuple[click.Command, ...] = (vni, remote, set_options, stats, reload)
