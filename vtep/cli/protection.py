"""`pyvtep loop` and `pyvtep storm`: what a running pyvtep does about loops and storms."""

from typing import Any

import click

from vtep.cli import client_command, commands
from vtep.cli.grammar import SEGMENT, Grammar
from vtep.control import Client

_SEGMENT = Grammar(None, SEGMENT)


@click.group(cls=commands.TableGroup)
def loop() -> None:
    """Show the remotes through which a loop leads."""


@loop.command("show")
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.with_client(shows=True, every=True)
def show_loops(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show the remotes with which flooding is stopped, and for how long it still is."""
    rows = [row for vtep in vteps for row in vtep.loop.show(**params)]
    if as_json:
        client_command.print_json(rows)
        return
    client_command.print_table(
        {"VNI": "right", "DEV": "", "REMOTE": "", "BLOCKED": "right"},
        ((row["vni"], row["dev"], row["remote"], f"{row['blocked']:.0f}s") for row in rows),
    )


@click.group(cls=commands.TableGroup)
def storm() -> None:
    """Show the limits of storm control, and the storms."""


@storm.command("show")
@client_command.words(_SEGMENT, "[dev TAP]")
@client_command.with_client(shows=True, every=True)
def show_storms(vteps: list[Client], params: dict[str, Any], *, as_json: bool) -> None:
    """Show each limit of storm control, and the remotes that exceed it now."""
    rows = [row for vtep in vteps for row in vtep.storm.show(**params)]
    if as_json:
        client_command.print_json(rows)
        return
    columns = {"VNI": "right", "DEV": "", "TRAFFIC": "", "FROM": "", "RATE": "right"}
    client_command.print_table(
        {**columns, "BURST": "right", "STATE": "", "AGE": "right", "DROPPED": "right"},
        (
            (
                *(row["vni"], row["dev"], row["traffic"]),
                row["remote"] or ("TAP" if row["direction"] == "tx" else "each remote"),
                *("off" if row[key] is None else row[key] for key in ("rate", "burst")),
                *(row["state"], "" if row["age"] is None else f"{row['age']:.0f}s"),
                row["dropped"],
            )
            for row in rows
        ),
    )
