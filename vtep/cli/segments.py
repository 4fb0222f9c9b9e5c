"""`pyvtep vni`, `remote`, `set`, `stats` and `reload`: the segments of a running pyvtep."""

import json
import sys
import time
from typing import Any

import attrs
import click

from vtep import Config
from vtep.cli import client_command, commands
from vtep.cli.fdb import format_destination, format_origin
from vtep.cli.grammar import SEGMENT, Grammar
from vtep.cli.options import check_options, config_options, given_options
from vtep.cli.stats_text import format_stats, merge_stats
from vtep.config import address_parsers, option_parsers
from vtep.control import Client
from vtep.control.schema import RemoteEntry, SegmentInfo
from vtep.errors import ConfigError, OptionError, shown
from vtep.fastpath.state import FastPathState

_INTERVAL_MIN, _INTERVAL_MAX = 0.1, 86400

# --- vni ------------------------------------------------------------------------------------

_OPTIONS = tuple(field.name for field in attrs.fields(Config) if field.name != "vni")
"""Options that can change while a segment runs: all but its identity."""

_EVERY_MAC = "00:00:00:00:00:00"

_SEGMENT = Grammar(None, SEGMENT)
_REMOTE = Grammar("remote", SEGMENT)


@click.group(cls=commands.TableGroup)
def vni() -> None:
    """Show, add or remove the VNIs of a running pyvtep."""


@vni.command("show")
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.with_client(shows=True, every=True)
def show_vni(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show the VNIs, their TAPs and their remotes."""
    segments = [segment for vtep in vteps for segment in vtep.vni.show(**params)]
    if as_json:
        client_command.print_json(segments)
        return
    client_command.print_table(
        {
            "VNI": "right",
            "DEV": "",
            "MTU": "right",
            "PORT": "right",
            "FDB": "right",
            "REMOTES": "",
            "FAST PATH": "",
        },
        (
            (
                *(segment["vni"], _device(segment), segment["mtu"]),
                *(segment["options"]["dstport"], segment["fdb_entries"]),
                ", ".join(
                    [format_destination(to, segment["vni"]) for to in segment["remotes"]]
                    + [f"{name} (no address)" for name in _without_address(segment)]
                ),
                FastPathState.of(segment["fast_path"], segment["fast_path_reason"]),
            )
            for segment in segments
        ),
    )


def _without_address(segment: SegmentInfo) -> list[str]:
    """Return the host names of a segment that have no address."""
    return [each["name"] for each in segment["names"] if not each["addresses"]]


def _device(segment: SegmentInfo) -> str:
    """Return the TAP of a segment, with its VLAN if that has several."""
    vlan = segment["options"].get("vlan")
    return segment["dev"] if vlan is None else f"{segment['dev']} vlan {vlan}"


def _check_added(arguments: dict[str, Any]) -> None:
    # The daemon checks all options once more, together: this finds mistakes without one.
    option_parsers.vni(arguments["number"])
    check_options(given_options(arguments))


@vni.command("add")
@click.argument("number", metavar="VNI")
@config_options(without=("vni",))
@client_command.with_client(segment=False, check=_check_added)
def add_vni(vtep: Client, number: str, **options: Any) -> None:
    """Add a VNI with a TAP of its own; the options are those of pyvtep itself."""
    vtep.call("vni.add", vni=number, options=given_options(options))


@vni.command("del")
@click.argument("number", metavar="VNI")
@client_command.with_client(segment=False, vni="number")
def delete_vni(vtep: Client, number: str) -> None:
    """Remove a VNI and its TAP; the others are not affected."""
    vtep.call("vni.del", vni=number)


# --- remote ---------------------------------------------------------------------------------


def _check_remote(arguments: dict[str, Any]) -> None:
    remote = arguments["params"]["remote"]
    try:
        address_parsers.remote(remote)
    except OptionError as error:
        if "dstport" not in error.instead:
            raise
        to = f"dst {error.instead['remote']} port {error.instead['dstport']}"
        reason = "has a port; --dstport is the port of all remotes; for another port"
        raise OptionError(
            "--remote", remote, f"{reason}: pyvtep fdb append {_EVERY_MAC} {to}"
        ) from None


@click.group(cls=commands.TableGroup)
def remote() -> None:
    """Show, add or remove the VTEPs that BUM frames are sent to."""


@remote.command("show")
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.with_client(shows=True, every=True)
def show_remotes(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show the remotes, including those appended to the MAC 00:00:00:00:00:00."""
    remotes = [row for vtep in vteps for row in vtep.remote.show(**params)]
    if as_json:
        client_command.print_json(remotes)
        return
    rows = [
        (
            *(to["vni"], to["dev"]),
            f"{format_destination(to, to['vni'])} {describe_origin(to)}".rstrip(),
            to["name"] or "",
        )
        for to in remotes
    ]
    rows += [
        (segment["vni"], segment["dev"], "no address", name)
        for vtep in vteps
        for segment in vtep.vni.show(**params)
        for name in _without_address(segment)
    ]
    has_names = any(row[-1] for row in rows)
    columns = {"VNI": "right", "DEV": "", "REMOTE": ""} | ({"NAME": ""} if has_names else {})
    client_command.print_table(columns, (row[: len(columns)] for row in rows))


def describe_origin(to: RemoteEntry) -> str:
    """Return which sides have given a remote; "" for this host alone."""
    origin = format_origin(to)
    # An older pyvtep does not send it.
    return f"configured {origin}" if origin and to.get("configured") else origin


@remote.command("add")
@client_command.words(_REMOTE, "IP|NAME [dev TAP]", ("remote",))
@client_command.with_client(check=_check_remote)
def add_remote(vtep: Client, params: dict[str, Any]) -> None:
    """Add a remote, as the option --remote does."""
    vtep.call("remote.add", **params)


@remote.command("del")
@client_command.words(_REMOTE, "IP|NAME [dev TAP]", ("remote",))
@client_command.with_client(check=_check_remote)
def delete_remote(vtep: Client, params: dict[str, Any]) -> None:
    """Remove a remote, and the FDB entries learned from it."""
    vtep.call("remote.del", **params)


# --- the rest -------------------------------------------------------------------------------


def _check_changes(arguments: dict[str, Any]) -> None:
    changes = check_options(given_options({name: arguments[name] for name in _OPTIONS}))
    if not changes:
        raise click.UsageError("set: no option given; for example: --ageing 60")


@click.command("set", cls=commands.CliCommand)
@config_options(without=("vni",))
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.with_client(check=_check_changes)
def set_options(vtep: Client, params: dict[str, Any], **options: Any) -> None:
    """Change options of a running segment: all of those given or, on an error, none.

    The word `dev` names the TAP of the segment; --dev is the option. `none` or `auto` resets an
    option whose default is not a value, as in --group none or --mtu auto.
    """
    vtep.call("set", options=given_options(options), **params)


@click.command(cls=commands.CliCommand)
@client_command.with_client(segment=False, shows=True, changes=True)
def reload(vtep: Client, *, as_json: bool) -> None:
    """Read the configuration file again; what is unchanged in it is not touched."""
    changes = vtep.reload()
    if as_json:
        client_command.print_json(changes)
    else:
        click.echo(changes)


def _check_stats(arguments: dict[str, Any]) -> None:
    if arguments["watch"] is not None:
        _interval(arguments["watch"])
    if arguments["reset"] and any(arguments[name] for name in _SHOWING):
        raise click.UsageError("stats --reset shows nothing; leave out --json, --all and --watch")


_SHOWING = ("as_json", "zeros", "watch")


def _resets(arguments: dict[str, Any]) -> bool:
    return bool(arguments["reset"])


@click.command(cls=commands.CliCommand)
@client_command.words(_SEGMENT, "[dev TAP]")
@commands.option("--all", "-a", "zeros", is_flag=True, help="Include counters that are zero.")
@commands.option(
    "--watch",
    "-w",
    metavar="[SECONDS]",
    is_flag=False,
    flag_value="1",
    help="Repeat every second, or every SECONDS.",
)
@commands.option(
    "--reset",
    is_flag=True,
    help="Show nothing, but reset the counters of all VNIs: stats and doctor then show what was "
    "counted since. JSON also has the counters since the start.",
)
@client_command.with_client(shows=True, changes=_resets, every=True, check=_check_stats)
def stats(
    vteps: list[Client],
    params: dict[str, Any],
    *,
    zeros: bool,
    watch: str | None,
    reset: bool,
    as_json: bool,
) -> None:
    """Show counters of forwarded frames, and of dropped ones by reason."""
    if reset:
        vteps[0].reset_stats()
        return
    interval = _interval(watch) if watch is not None else None
    while True:
        merged = merge_stats([vtep.call("stats", **params) for vtep in vteps])
        if as_json and interval is not None:  # One line each, for tools that read line by line.
            click.echo(json.dumps(merged))
        elif as_json:
            client_command.print_json(merged)
        else:
            if interval is not None and sys.stdout.isatty():
                click.clear()  # As watch(1) does.
            blocks = format_stats(merged, totals=not params, zeros=zeros)
            click.echo("\n".join(line for block in blocks for line in block.lines))
        if interval is None:
            return
        if not (as_json or sys.stdout.isatty()):
            click.echo()
        sys.stdout.flush()
        time.sleep(interval)


def _interval(seconds: str) -> float:
    """Return an interval in seconds. Raises: ConfigError if it is out of range."""
    try:
        interval = float(seconds)
    except ValueError:
        interval = 0.0
    if not _INTERVAL_MIN <= interval <= _INTERVAL_MAX:
        raise ConfigError(
            f"--watch {shown(seconds)}: must be from {_INTERVAL_MIN} to {_INTERVAL_MAX} seconds, "
            "as in: --watch 2"
        )
    return interval
