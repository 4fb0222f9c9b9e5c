"""`pyvtep fdb`: the forwarding database of a running pyvtep, in the grammar of `bridge fdb`."""

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import click

from vtep.cli import client_command, commands
from vtep.cli.grammar import DESTINATION, FILTER, KIND, SEGMENT, Grammar
from vtep.config import address_parsers
from vtep.control import Client
from vtep.control.schema import Destination, Event, FdbEntry
from vtep.errors import ConfigError, shown
from vtep.wire import vxlan

_ENTRY = Grammar("mac", {**DESTINATION, **SEGMENT}, KIND)
_WHICH = Grammar("mac", {**DESTINATION, **SEGMENT}, {"self": ("", None)})
_ONE = Grammar("mac", SEGMENT, {"self": ("", None)})
_WANTED = Grammar(None, {**DESTINATION, **SEGMENT}, FILTER)

_ENTRY_METAVAR = "MAC dst IP [port PORT] [vni VNI] [via DEV] [dev TAP] [static] [extern_learn] ..."
_WHICH_METAVAR = "MAC [dst IP] [port PORT] [vni VNI] [via DEV] [dev TAP]"
_WANTED_METAVAR = (
    "[dst IP] [port PORT] [vni VNI] [via DEV] [dev TAP] [[no]static] [[no]dynamic] ..."
)


def _check_destination(given: dict[str, Any]) -> None:
    """Raise ConfigError for a destination that is no IP address, with what was probably meant."""
    dst = given["given"].get("dst")
    try:
        ip_address(dst or "::")
    except ValueError:
        error = address_parsers.not_an_address("dst", dst)
        host, port = error.instead.get("dst"), error.instead.get("dstport")
        words = [f"dst {host}"] if isinstance(host, str) else []
        words += [f"port {port}"] if port is not None else []
        hint = f": {' '.join(words)}" if words else ""
        raise ConfigError(f"dst {shown(dst)}: {error.reason}{hint}") from None


@click.group("fdb", cls=commands.Table)
def group() -> None:
    """Show or change which remotes MACs are behind, in the grammar of `bridge fdb`."""


@group.command()
@client_command.words(_WANTED, _WANTED_METAVAR)
@client_command.steering(shows=True, every=True, check=_check_destination)
def show(vteps: list[Client], given: dict[str, Any], *, as_json: bool) -> None:
    """Show the entries to which all of the filters apply."""
    entries = [entry for vtep in vteps for entry in vtep.fdb.show(**given)]
    if as_json:
        client_command.show_json(entries)
    else:
        _show(entries)


@group.command()
@client_command.words(_ONE, "MAC [dev TAP]", ("mac",))
@client_command.steering(shows=True)
def get(vtep: Client, given: dict[str, Any], *, as_json: bool) -> None:
    """Show the entry of a MAC; exit code 1 where there is none."""
    entry = vtep.call("fdb.get", **given)
    if as_json:
        client_command.show_json(entry)
    else:
        _show([entry])


@group.command()
@client_command.words(_ENTRY, _ENTRY_METAVAR, ("mac", "dst"))
@client_command.steering(check=_check_destination)
def add(vtep: Client, given: dict[str, Any]) -> None:
    """Put in an entry for a MAC that has none."""
    vtep.call("fdb.add", **given)


@group.command()
@client_command.words(_ENTRY, _ENTRY_METAVAR, ("mac", "dst"))
@client_command.steering(check=_check_destination)
def append(vtep: Client, given: dict[str, Any]) -> None:
    """Give a MAC one more destination.

    That of 00:00:00:00:00:00 are where broadcasts go, and what no other entry knows.
    """
    vtep.call("fdb.append", **given)


@group.command()
@client_command.words(_ENTRY, _ENTRY_METAVAR, ("mac", "dst"))
@client_command.steering(check=_check_destination)
def replace(vtep: Client, given: dict[str, Any]) -> None:
    """Have a MAC be behind one destination, whatever is known of it."""
    vtep.call("fdb.replace", **given)


@group.command("del")
@client_command.words(_WHICH, _WHICH_METAVAR, ("mac",))
@client_command.steering(check=_check_destination)
def delete(vtep: Client, given: dict[str, Any]) -> None:
    """Take a destination from a MAC, or all of them where none is named."""
    vtep.call("fdb.del", **given)


@group.command()
@client_command.words(_WANTED, _WANTED_METAVAR)
@client_command.steering(shows=True, changes=True, check=_check_destination)
def flush(vtep: Client, given: dict[str, Any], *, as_json: bool) -> None:
    """Remove every destination to which all of the filters apply.

    Without a filter that is every entry; but the remotes of the configuration still get broadcasts,
    unless `permanent` or their `dst` says that they are meant.
    """
    count = vtep.fdb.flush(**given)
    if as_json:
        client_command.show_json({"flushed": count})
    else:
        click.echo(f"{count} flushed")


def _show(entries: list[FdbEntry]) -> None:
    columns = {"MAC": "", "DST": "", "DEV": "", "STATE": "", "AGE": "right", "TX": "right"}
    client_command.show_table(
        {**columns, "RX": "right"}, (row for entry in entries for row in _rows(entry))
    )


def _rows(entry: FdbEntry) -> Iterator[tuple[object, ...]]:
    """A row for each destination, of which the first has what is said of the entry."""
    first, *others = (destination_words(to, entry["vni"]) for to in entry["destinations"])
    age = "" if entry["age"] is None else f"{entry['age']:.0f}s"
    frames = entry["tx_frames"], entry["rx_frames"]
    yield entry["mac"], first, entry["dev"], kind_words(entry), age, *frames
    for other in others:
        yield "", other, "", "", "", "", ""


def destination_words(to: Destination, vni: int) -> str:
    """A destination as it is written in a command about a segment, which has this VNI."""
    words = [to["dst"]]
    if to["port"] != vxlan.PORT:
        words += ["port", str(to["port"])]
    if to["dst_vni"] != vni:
        words += ["vni", str(to["dst_vni"])]
    if to["via"] is not None:
        words += ["via", to["via"]]
    return " ".join(words)


def kind_words(entry: FdbEntry | Event) -> str:
    """What kind of entry it is, as it is written in a command."""
    flags = [name for name in ("extern_learn", "sticky") if entry.get(name)]
    return " ".join((entry.get("state", ""), *flags))
