"""`pyvtep vni`, `remote`, `set`, `stats` and `reload`: the segments of a running pyvtep."""

import json
import sys
import time
from typing import Any

import attrs
import click

from vtep import Config
from vtep.cli import client_command, commands
from vtep.cli.fdb import destination_words
from vtep.cli.grammar import SEGMENT, Grammar
from vtep.cli.options import checked, config_options, given_of
from vtep.cli.stats_text import counted, together
from vtep.config import address_parsers, option_parsers
from vtep.control import Client
from vtep.errors import ConfigError, OptionError, shown

_PAUSE_MIN, _PAUSE_MAX = 0.1, 86400

# --- vni ------------------------------------------------------------------------------------

_OPTIONS = tuple(field.name for field in attrs.fields(Config) if field.name != "vni")
"""The options that can change while a segment runs."""

_EVERY_MAC = "00:00:00:00:00:00"

_SEGMENT = Grammar(None, SEGMENT)
_REMOTE = Grammar("remote", SEGMENT)


@click.group(cls=commands.Table)
def vni() -> None:
    """Show, add or remove the VNIs of a running pyvtep."""


@vni.command("show")
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.steering(shows=True, every=True)
def show_vni(vteps: list[Client], given: dict[str, Any], *, as_json: bool) -> None:
    """Show the segments."""
    segments = [segment for vtep in vteps for segment in vtep.vni.show(**given)]
    if as_json:
        client_command.show_json(segments)
        return
    client_command.show_table(
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


def _check_added(given: dict[str, Any]) -> None:
    option_parsers.vni(given["number"])
    checked(given_of(given))


@vni.command("add")
@click.argument("number", metavar="VNI")
@config_options(without=("vni",))
@client_command.steering(segment=False, check=_check_added)
def add_vni(vtep: Client, number: str, **options: Any) -> None:
    """Open one more segment, with a TAP of its own; the options are those of pyvtep itself."""
    vtep.call("vni.add", vni=number, options=given_of(options))


@vni.command("del")
@click.argument("number", metavar="VNI")
@client_command.steering(segment=False, vni="number")
def delete_vni(vtep: Client, number: str) -> None:
    """Close a segment; the others go on."""
    vtep.call("vni.del", vni=number)


# --- remote ---------------------------------------------------------------------------------


def _check_remote(given: dict[str, Any]) -> None:
    remote = given["given"]["remote"]
    try:
        address_parsers.address("--remote", remote)
    except OptionError as error:
        if "dstport" not in error.instead:
            raise
        to = f"dst {error.instead['remote']} port {error.instead['dstport']}"
        reason = "is not an IP address; --dstport is the port of all remotes; to have another port"
        raise OptionError(
            "--remote", remote, f"{reason}: pyvtep fdb append {_EVERY_MAC} {to}"
        ) from None


@click.group(cls=commands.Table)
def remote() -> None:
    """Show, add or remove the VTEPs to which broadcasts go."""


@remote.command("show")
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.steering(shows=True, every=True)
def show_remotes(vteps: list[Client], given: dict[str, Any], *, as_json: bool) -> None:
    """Show the remotes, also those that were appended to the MAC 00:00:00:00:00:00."""
    remotes = [row for vtep in vteps for row in vtep.remote.show(**given)]
    if as_json:
        client_command.show_json(remotes)
        return
    rows = ((to["vni"], to["dev"], destination_words(to, to["vni"])) for to in remotes)
    client_command.show_table({"VNI": "right", "DEV": "", "REMOTE": ""}, rows)


@remote.command("add")
@client_command.words(_REMOTE, "IP [dev TAP]", ("remote",))
@client_command.steering(check=_check_remote)
def add_remote(vtep: Client, given: dict[str, Any]) -> None:
    """Add a remote, as if it had been given as an option."""
    vtep.call("remote.add", **given)


@remote.command("del")
@client_command.words(_REMOTE, "IP [dev TAP]", ("remote",))
@client_command.steering(check=_check_remote)
def delete_remote(vtep: Client, given: dict[str, Any]) -> None:
    """Remove a remote, and forget what was learned to be behind it."""
    vtep.call("remote.del", **given)


# --- the rest -------------------------------------------------------------------------------


def _check_changes(given: dict[str, Any]) -> None:
    changes = checked(given_of({name: given[name] for name in _OPTIONS}))
    if not changes:
        raise click.UsageError("set: give an option that is to change; for example: --ageing 60")


@click.command("set", cls=commands.Command)
@config_options(without=("vni",))
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.steering(check=_check_changes)
def set_options(vtep: Client, given: dict[str, Any], **options: Any) -> None:
    """Change options of a segment while it runs: all of those given, or none.

    The word `dev` names the TAP of the segment; --dev is the option. Options whose default is
    not a value are reset to it by `none` or `auto`, such as --group none or --mtu auto.
    """
    vtep.call("set", options=given_of(options), **given)


@click.command(cls=commands.Command)
@client_command.steering(segment=False, shows=True, changes=True)
def reload(vtep: Client, *, as_json: bool) -> None:
    """Have the configuration file read again; what did not change is not touched."""
    told = vtep.reload()
    if as_json:
        client_command.show_json(told)
    else:
        click.echo(told)


def _check_stats(given: dict[str, Any]) -> None:
    if given["watch"] is not None:
        _pause(given["watch"])
    if given["reset"] and any(given[name] for name in _SHOWING):
        raise click.UsageError("stats --reset shows nothing; leave out what is about showing")


_SHOWING = ("as_json", "zeros", "watch")


def _resets(given: dict[str, Any]) -> bool:
    return bool(given["reset"])


@click.command(cls=commands.Command)
@client_command.words(_SEGMENT, "[dev TAP]")
@commands.option("--all", "-a", "zeros", is_flag=True, help="Show counters that are zero as well.")
@commands.option(
    "--watch",
    "-w",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="1",
    help="Show it again and again, every second or so many.",
)
@commands.option(
    "--reset",
    is_flag=True,
    help="Show nothing, but count from zero: stats and doctor show what is counted from now on, of "
    "all segments of the pyvtep that is meant. JSON also has what was counted since the start.",
)
@client_command.steering(shows=True, changes=_resets, every=True, check=_check_stats)
def stats(
    vteps: list[Client],
    given: dict[str, Any],
    *,
    zeros: bool,
    watch: str | None,
    reset: bool,
    as_json: bool,
) -> None:
    """Show what was forwarded, and what was dropped and why."""
    if reset:
        vteps[0].reset_stats()
        return
    pause = _pause(watch) if watch is not None else None
    while True:
        told = together([vtep.call("stats", **given) for vtep in vteps])
        if as_json and pause is not None:  # A line for each time.
            click.echo(json.dumps(told))
        elif as_json:
            client_command.show_json(told)
        else:
            if pause is not None and sys.stdout.isatty():
                click.clear()
            blocks = counted(told, whole=not given, zeros=zeros)
            click.echo("\n".join(line for block in blocks for line in block.lines))
        if pause is None:
            return
        if not (as_json or sys.stdout.isatty()):
            click.echo()
        sys.stdout.flush()
        time.sleep(pause)


def _pause(seconds: str) -> float:
    """Return the time between two looks; raises ConfigError where it makes no sense."""
    try:
        pause = float(seconds)
    except ValueError:
        pause = 0.0
    if not _PAUSE_MIN <= pause <= _PAUSE_MAX:
        raise ConfigError(
            f"--watch {shown(seconds)}: is not a number of seconds from {_PAUSE_MIN} to "
            f"{_PAUSE_MAX}, such as in: --watch 2"
        )
    return pause


COMMANDS: tuple[click.Command, ...] = (vni, remote, set_options, stats, reload)
