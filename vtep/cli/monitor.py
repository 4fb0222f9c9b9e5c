"""`pyvtep monitor`: a line for each change, as `bridge monitor fdb` has it."""

import json
from datetime import datetime

import click

from vtep.cli import client_command, commands
from vtep.cli.fdb import destination_words, kind_words
from vtep.control import Client
from vtep.control.schema import Event
from vtep.errors import VtepError

OBJECTS = ("fdb", "remote", "vni", "mtu", "config")


@click.command(cls=commands.Command)
@click.argument("objects", nargs=-1, type=click.Choice(OBJECTS))
@commands.option("--timestamp", "-t", "timed", is_flag=True, help="Begin each line with its time.")
@client_command.steering(segment=False, shows=True)
def monitor(vtep: Client, objects: tuple[str, ...], *, timed: bool, as_json: bool) -> None:
    """Show every change from now on, one a line; of some objects, or of all.

    With --json each line is an object, in which --timestamp puts the time as `timestamp`.
    """
    for event in vtep.monitor():
        if objects and event.get("object", objects[0]) not in objects:
            continue
        now = datetime.now().astimezone()
        if as_json:
            text = json.dumps({"timestamp": now.isoformat(), **event} if timed else event)
        else:
            text = (
                f"[{now.replace(tzinfo=None).isoformat()}] {line(event)}" if timed else line(event)
            )
        # At once, also into a pipe: who watches wants to know now.
        print(text, flush=True)
    raise VtepError("the pyvtep that was monitored has ended")


def line(event: Event) -> str:
    """An event as people read it."""
    what = event["event"]
    if what == "lost":
        return f"... {event['count']} events are missing here: they were not read fast enough"
    words = ["Deleted"] if what in ("deleted", "expired") else []
    thing, dev = event["object"], event["dev"]
    if thing in ("fdb", "remote"):
        words += [event["mac"], "dev", dev]
        for to in event["destinations"]:
            words += ["dst", destination_words(to, event["vni"])]
        words.append(kind_words(event))
    else:
        words += ["vni", str(event["vni"]), "dev", dev]
    if thing == "mtu":
        words += ["mtu", str(event["mtu"])]
    for name, value in event.get("options", {}).items():
        words += [name, json.dumps(value)]
    return " ".join(words)
