"""`pyvtep neigh`: what ARP and ND requests are answered with, in the grammar of `ip neigh`."""

from typing import Any

import click

from vtep.cli import client_command, commands
from vtep.cli.grammar import SEGMENT, Grammar
from vtep.control import Client
from vtep.errors import ConfigError, VtepError

_NEIGHBOUR = Grammar(
    "ip", {"lladdr": "mac", "vlan": "vlan", "nud": "nud", **SEGMENT}, {"router": ("router", True)}
)
_WHICH = Grammar("ip", {"vlan": "vlan", **SEGMENT})
_ALL = Grammar(None, SEGMENT)
_FLUSHED = Grammar(None, SEGMENT, {"permanent": ("permanent", True)})

_METAVAR = "IP lladdr MAC [dev TAP] [vlan ID] [router] [nud permanent]"


@click.group("neigh", cls=commands.Table)
def group() -> None:
    """Show or change the neighbours of a segment with --proxy, in the grammar of `ip neigh`."""


@group.command()
@client_command.words(_ALL, "[dev TAP]")
@client_command.steering(shows=True, every=True)
def show(vteps: list[Client], given: dict[str, Any], *, as_json: bool) -> None:
    """Show what ARP and ND requests for hosts behind a remote are answered with."""
    neighbours, refused = [], []
    for vtep in vteps:
        try:
            neighbours += vtep.neigh.show(**given)
        except VtepError as error:  # Without --proxy there are none; another may have some.
            refused.append(error)
    if len(refused) == len(vteps):
        raise refused[0]
    if as_json:
        client_command.show_json(neighbours)
        return
    columns = {"IP": "", "MAC": "", "DEV": "", "VLAN": "", "STATE": "", "AGE": "right"}
    client_command.show_table(
        columns,
        (
            (
                *(one["ip"], one["mac"], one["dev"], " ".join(map(str, one["vlan"]))),
                one["state"] + (" router" if one["router"] else ""),
                "" if one["age"] is None else f"{one['age']:.0f}s",
            )
            for one in neighbours
        ),
    )


@group.command()
@client_command.words(_NEIGHBOUR, _METAVAR, ("ip", "mac"))
@client_command.steering()
def add(vtep: Client, given: dict[str, Any]) -> None:
    """Put in the MAC of an address."""
    vtep.call("neigh.add", **_neighbour(given))


@group.command()
@client_command.words(_NEIGHBOUR, _METAVAR, ("ip", "mac"))
@client_command.steering()
def replace(vtep: Client, given: dict[str, Any]) -> None:
    """Put in the MAC of an address, whatever is known of it."""
    vtep.call("neigh.replace", **_neighbour(given))


def _neighbour(given: dict[str, Any]) -> dict[str, Any]:
    """What is put in, which is permanent; raises ConfigError where something else is asked for."""
    nud = given.pop("nud", "permanent")
    if nud != "permanent":
        raise ConfigError(f"nud {nud}: what is put in is permanent")
    return given


@group.command("del")
@client_command.words(_WHICH, "IP [dev TAP] [vlan ID]", ("ip",))
@client_command.steering()
def delete(vtep: Client, given: dict[str, Any]) -> None:
    """Forget an address."""
    vtep.call("neigh.del", **given)


@group.command()
@client_command.words(_FLUSHED, "[dev TAP] [permanent]")
@client_command.steering(shows=True, changes=True)
def flush(vtep: Client, given: dict[str, Any], *, as_json: bool) -> None:
    """Forget what was seen, and with `permanent` also what was put in."""
    count = vtep.neigh.flush(**given)
    if as_json:
        client_command.show_json({"flushed": count})
    else:
        click.echo(f"{count} flushed")
