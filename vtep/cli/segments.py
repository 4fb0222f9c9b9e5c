"""`pyvtep vni`, `remote`, `set`, `stats` and `reload`: the segments of a running pyvtep."""

from typing import Any

import click

from vtep.cli import steer
from vtep.cli.counted import counted
from vtep.cli.fdb import destination_words
from vtep.cli.options import config_options, given_of
from vtep.control import Client

# --- vni ------------------------------------------------------------------------------------


@click.group()
def vni() -> None:
    """Show, add or remove the VNIs of a running pyvtep."""


@vni.command("show")
@steer.steering(shows=True)
def show_vni(vtep: Client, vni: str | None, *, as_json: bool) -> None:
    """Show the segments."""
    segments = vtep.call("vni.show", vni=vni)
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
@steer.steering(shows=True)
def show_remotes(vtep: Client, vni: str | None, *, as_json: bool) -> None:
    """Show the remotes, also those that were appended to the MAC 00:00:00:00:00:00."""
    remotes = vtep.call("remote.show", vni=vni)
    if as_json:
        steer.show_json(remotes)
        return
    rows = ((to["vni"], to["dev"], destination_words(to, to["vni"])) for to in remotes)
    steer.show_table({"VNI": "right", "DEV": "", "REMOTE": ""}, rows)


@remote.command("add")
@click.argument("address", metavar="IP")
@steer.steering()
def add_remote(vtep: Client, address: str, vni: str | None) -> None:
    """Add a remote, as if it had been given as an option."""
    vtep.call("remote.add", remote=address, vni=vni)


@remote.command("del")
@click.argument("address", metavar="IP")
@steer.steering()
def delete_remote(vtep: Client, address: str, vni: str | None) -> None:
    """Remove a remote, and forget what was learned to be behind it."""
    vtep.call("remote.del", remote=address, vni=vni)


# --- the rest -------------------------------------------------------------------------------


@click.command("set")
@config_options(without=("vni",))
@steer.steering()
def set_options(vtep: Client, vni: str | None, **options: Any) -> None:
    """Change options of a segment while it runs: all of those given, or none."""
    given = given_of(options)
    if not given:
        raise click.UsageError("set: give an option that is to change; for example: --ageing 60")
    vtep.call("set", vni=vni, options=given)


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
@steer.steering(shows=True)
def stats(vtep: Client, vni: str | None, *, as_json: bool) -> None:
    """Show what was forwarded, and what was dropped and why."""
    told = vtep.call("stats", vni=vni)
    if as_json:
        steer.show_json(told)
    else:
        click.echo(
            "\n".join(line for part in counted(told, whole=vni is None) for line in part.lines)
        )


COMMANDS: tuple[click.Command, ...] = (vni, remote, set_options, stats, reload)
