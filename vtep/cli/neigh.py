"""`pyvtep neigh`: the neighbours that --proxy answers for, with the syntax of `ip neigh`."""

from typing import Any

import click

from vtep.cli import client_command, commands
from vtep.cli.grammar import SEGMENT, Grammar
from vtep.control import Client
from vtep.errors import ConfigError, VtepError

_EXTERN_LEARN = {"extern_learn": ("extern_learn", True)}
_NEIGHBOUR = Grammar(
    "ip",
    {"lladdr": "mac", "vlan": "vlan", "nud": "nud", **SEGMENT},
    {"router": ("router", True), **_EXTERN_LEARN},
)
_SELECTED = Grammar("ip", {"vlan": "vlan", **SEGMENT}, _EXTERN_LEARN)
_ALL = Grammar(None, SEGMENT)
_FLUSH = Grammar(None, SEGMENT, {"permanent": ("permanent", True), **_EXTERN_LEARN})

_METAVAR = "IP lladdr MAC [dev TAP] [vlan ID] [router] [extern_learn] [nud permanent]"


@click.group("neigh", cls=commands.TableGroup)
def group() -> None:
    """Show or change the neighbours of a segment with --proxy, as with `ip neigh`."""


@group.command()
@client_command.words(_ALL, "[dev TAP]")
@client_command.with_client(shows=True, every=True)
def show(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show the neighbours for which ARP and ND requests are answered."""
    neighbours, errors = [], []
    for vtep in vteps:
        try:
            neighbours += vtep.neigh.show(**params)
        except VtepError as error:  # It has no --proxy; another process may.
            errors.append(error)
    if len(errors) == len(vteps):
        raise errors[0]
    if as_json:
        client_command.print_json(neighbours)
        return
    columns = {"IP": "", "MAC": "", "DEV": "", "VLAN": "", "STATE": "", "AGE": "right"}
    client_command.print_table(
        columns,
        (
            (
                *(one["ip"], one["mac"], one["dev"], " ".join(map(str, one["vlan"]))),
                " ".join(
                    (one["state"], *(name for name in ("extern_learn", "router") if one.get(name)))
                ),
                "" if one["age"] is None else f"{one['age']:.0f}s",
            )
            for one in neighbours
        ),
    )


@group.command()
@client_command.words(_NEIGHBOUR, _METAVAR, ("ip", "mac"))
@client_command.with_client()
def add(vtep: Client, params: dict[str, Any]) -> None:
    """Add a neighbour: the MAC of an IP address."""
    vtep.call("neigh.add", **_neighbour(params))


@group.command()
@client_command.words(_NEIGHBOUR, _METAVAR, ("ip", "mac"))
@client_command.with_client()
def replace(vtep: Client, params: dict[str, Any]) -> None:
    """Set the MAC of an IP address, with or without an entry before."""
    vtep.call("neigh.replace", **_neighbour(params))


def _neighbour(params: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters without `nud`. Raises: ConfigError for any other than permanent."""
    nud = params.pop("nud", "permanent")
    if nud != "permanent":
        raise ConfigError(f"nud {nud}: only permanent neighbours can be added")
    return params


@group.command("del")
@client_command.words(_SELECTED, "IP [dev TAP] [vlan ID] [extern_learn]", ("ip",))
@client_command.with_client()
def delete(vtep: Client, params: dict[str, Any]) -> None:
    """Delete a neighbour; with `extern_learn`, only one that a control plane has added."""
    vtep.call("neigh.del", **params)


@group.command()
@client_command.words(_FLUSH, "[dev TAP] [permanent] [extern_learn]")
@client_command.with_client(shows=True, changes=True)
def flush(vtep: Client, params: dict[str, Any], *, as_json: bool) -> None:
    """Delete learned neighbours, and with `permanent` configured ones as well.

    With `extern_learn`, delete those that a control plane has added instead.
    """
    count = vtep.neigh.flush(**params)
    if as_json:
        client_command.print_json({"flushed": count})
    else:
        click.echo(f"{count} flushed")
