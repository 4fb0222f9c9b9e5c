"""`pyvtep fdb`: the forwarding database of a running pyvtep, with the syntax of `bridge fdb`."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from itertools import chain
from typing import Any

import click

from vtep.cli import client_command, commands
from vtep.cli.grammar import DESTINATION, FILTER, KIND, SEGMENT, Grammar
from vtep.config import address_parsers
from vtep.control import Client
from vtep.control.schema import Destination, FdbEntry, MonitorEvent
from vtep.errors import ConfigError, shown
from vtep.wire import vxlan

_ENTRY = Grammar("mac", {**DESTINATION, "seq": "sequence", **SEGMENT}, KIND)
_SELECTED = Grammar(
    "mac",
    {**DESTINATION, **SEGMENT},
    {name: KIND[name] for name in ("extern_learn", "self")},
)
_MAC = Grammar("mac", {**SEGMENT, "vni": "vni"}, {"self": ("", None)})
_FILTER = Grammar(None, {**DESTINATION, **SEGMENT}, FILTER)

_ENTRY_METAVAR = "MAC dst IP [port PORT] [vni VNI] [via DEV] [dev TAP] [static] [extern_learn] ..."
_SELECTED_METAVAR = "MAC [dst IP] [port PORT] [vni VNI] [via DEV] [dev TAP] [extern_learn]"
_FILTER_METAVAR = "[dst IP] [port PORT] [vni VNI] [via DEV] [dev TAP] [[no]static] [[no]held] ..."


def _check_destination(arguments: dict[str, Any]) -> None:
    """Raise ConfigError for a destination that is not an IP address, with a suggestion."""
    dst = arguments["params"].get("dst")
    try:
        ip_address(dst or "::")
    except ValueError:
        error = address_parsers.not_an_address("dst", dst)
        host, port = error.instead.get("dst"), error.instead.get("dstport")
        words = [f"dst {host}"] if isinstance(host, str) else []
        words += [f"port {port}"] if port is not None else []
        hint = f": {' '.join(words)}" if words else ""
        raise ConfigError(f"dst {shown(dst)}: {error.reason}{hint}") from None


@click.group("fdb", cls=commands.TableGroup)
def group() -> None:
    """Show or change the forwarding database, with the syntax of `bridge fdb`."""


@group.command()
@client_command.words(_FILTER, _FILTER_METAVAR)
@client_command.with_client(shows=True, every=True, check=_check_destination)
def show(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show the entries that match all filters."""
    # One by one: there may be a million of them.
    entries = chain.from_iterable(vtep.items("fdb.show", **params) for vtep in vteps)
    if as_json:
        client_command.print_json_items(entries)
    else:
        print_entries(entries, with_vni=_have_several_vnis(vteps, params))


def _have_several_vnis(vteps: list[Client], params: dict[str, Any]) -> bool:
    """Return True if the entries that a filter selects may be of several VNIs."""
    dev = params.get("dev")
    segments = [each for vtep in vteps for each in vtep.call("process.show")["segments"]]
    vnis = {each["vni"] for each in segments if dev in (None, each["dev"], each["tap"])}
    return params.get("vni") is None and len(vnis) > 1


@group.command()
@client_command.words(_MAC, "MAC [dev TAP] [vni VNI]", ("mac",))
@client_command.with_client(shows=True)
def get(vtep: Client, params: dict[str, Any], *, as_json: bool) -> None:
    """Show the entry of a MAC; exit code 1 if there is none."""
    entry = vtep.call("fdb.get", **params)
    if as_json:
        client_command.print_json(entry)
    else:
        print_entries([entry], with_vni=False)


@group.command()
@client_command.words(_ENTRY, _ENTRY_METAVAR, ("mac", "dst"))
@client_command.with_client(check=_check_destination)
def add(vtep: Client, params: dict[str, Any]) -> None:
    """Add an entry for a MAC that has none."""
    vtep.call("fdb.add", **params)


@group.command()
@client_command.words(_ENTRY, _ENTRY_METAVAR, ("mac", "dst"))
@client_command.with_client(check=_check_destination)
def append(vtep: Client, params: dict[str, Any]) -> None:
    """Add a destination to the entry of a MAC.

    Broadcast, multicast and unknown unicast frames go to the destinations of 00:00:00:00:00:00.
    """
    vtep.call("fdb.append", **params)


@group.command()
@client_command.words(_ENTRY, _ENTRY_METAVAR, ("mac", "dst"))
@client_command.with_client(check=_check_destination)
def replace(vtep: Client, params: dict[str, Any]) -> None:
    """Set the only destination of a MAC, with or without an entry before."""
    vtep.call("fdb.replace", **params)


@group.command("del")
@client_command.words(_SELECTED, _SELECTED_METAVAR, ("mac",))
@client_command.with_client(check=_check_destination)
def delete(vtep: Client, params: dict[str, Any]) -> None:
    """Delete a destination of a MAC or, if none is given, its entry.

    With `extern_learn`, delete only what a control plane has given.
    """
    vtep.call("fdb.del", **params)


@group.command()
@client_command.words(_FILTER, _FILTER_METAVAR)
@client_command.with_client(shows=True, changes=True, check=_check_destination)
def flush(vtep: Client, params: dict[str, Any], *, as_json: bool) -> None:
    """Delete all destinations that match all filters.

    Without a filter these are all entries except the configured remotes, which `permanent` or
    their `dst` selects.
    """
    count = vtep.fdb.flush(**params)
    if as_json:
        client_command.print_json({"flushed": count})
    else:
        click.echo(f"{count} flushed")


def print_entries(entries: Iterable[FdbEntry], *, with_vni: bool) -> None:
    """Print entries as a table; `with_vni` if they are of several VNIs.

    Several VNIs may share a TAP, so that DEV does not tell them apart.
    """
    columns = {"MAC": "", "DST": ""} | ({"VNI": "right"} if with_vni else {})
    columns |= {"DEV": "", "STATE": "", "AGE": "right", "TX": "right", "RX": "right"}
    client_command.print_table(
        columns, (row for entry in entries for row in _rows(entry, with_vni=with_vni))
    )


def _rows(entry: FdbEntry, *, with_vni: bool) -> Iterator[tuple[object, ...]]:
    """Yield a row for each destination, the first of them with the columns of the entry."""
    age = "" if entry["age"] is None else f"{entry['age']:.0f}s"
    held = "" if entry["held"] is None else f"held {entry['held']:.0f}s"
    sticky = "sticky" if entry["sticky"] else ""
    vni = (entry["vni"],) if with_vni else ()
    mac, state = entry["mac"], entry["state"]
    dev: tuple[object, ...] = (*vni, entry["dev"])
    frames: tuple[object, ...] = (entry["tx_frames"], entry["rx_frames"])
    for to in entry["destinations"]:
        words = filter(None, (state, format_origin(to), sticky, held))
        yield mac, format_destination(to, entry["vni"]), *dev, " ".join(words), age, *frames
        mac = state = sticky = held = age = ""
        dev, frames = ("",) * len(dev), ("", "")


def format_origin(to: Destination, *, flag: bool = True) -> str:
    """Return what a control plane has given of a destination; "" if it has not given it.

    Without `flag`, `extern_learn` itself is left out.
    """
    # An older pyvtep sends neither.
    words = ["extern_learn"] if flag and to.get("extern_learn") else []
    if (sequence := to.get("sequence")) is not None:
        words += ["seq", str(sequence)]
    return " ".join(words)


def format_destination(to: Destination, vni: int) -> str:
    """Return a destination in the syntax of a command about the segment `vni`."""
    words = [to["dst"]]
    if to["port"] != vxlan.PORT:
        words += ["port", str(to["port"])]
    if to["dst_vni"] != vni:
        words += ["vni", str(to["dst_vni"])]
    if to["via"] is not None:
        words += ["via", to["via"]]
    return " ".join(words)


def format_kind(entry: MonitorEvent) -> str:
    """Return the state and the flags of an entry in the syntax of a command."""
    flags = [name for name in ("extern_learn", "sticky") if entry.get(name)]
    return " ".join((entry.get("state", ""), *flags))
