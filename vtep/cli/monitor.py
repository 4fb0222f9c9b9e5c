"""`pyvtep monitor`: a line for each change, in the format of `bridge monitor fdb`."""

import json
from datetime import datetime

import click

from vtep.cli import client_command, commands
from vtep.cli.fdb import format_destination, format_kind, format_origin
from vtep.control import Client
from vtep.control.schema import MonitorEvent
from vtep.errors import VtepError

_VERBS = {
    "deleted": "Deleted",
    "expired": "Deleted",
    "held": "Held",
    "released": "Released",
    "blocked": "Blocked",
    "unblocked": "Unblocked",
    "began": "Began",
    "ended": "Ended",
    "seen": "Seen",
    "silent": "Silent",
    "refused": "Refused",
    "established": "Established",
    "down": "Down",
}
"""The first word of a line, as in `bridge monitor`; for what was added or changed there is none."""

OBJECTS = (
    *("fdb", "remote", "vni", "mtu", "loop", "storm", "config", "remote-liveness"),
    "evpn-session",
)


@click.command(cls=commands.CliCommand)
@click.argument("objects", nargs=-1, type=click.Choice(OBJECTS))
@commands.option("--timestamp", "-t", "timed", is_flag=True, help="Begin each line with its time.")
@client_command.with_client(segment=False, shows=True)
def monitor(vtep: Client, objects: tuple[str, ...], *, timed: bool, as_json: bool) -> None:
    """Show changes as they happen, one per line: of some objects, or of all.

    With --json each line is a JSON object, to which --timestamp adds `timestamp`.
    """
    for event in vtep.monitor():
        if objects and event.get("object", objects[0]) not in objects:
            continue
        now = datetime.now().astimezone()
        if as_json:
            text = json.dumps({"timestamp": now.isoformat(), **event} if timed else event)
        else:
            text = (
                f"[{now.replace(tzinfo=None).isoformat()}] {format_event(event)}"
                if timed
                else format_event(event)
            )
        # Flushed, since a pipe would keep lines back until there are 8 KiB of them.
        print(text, flush=True)
    raise VtepError("the monitored pyvtep has ended")


def format_event(event: MonitorEvent) -> str:
    """Return an event as one line of text."""
    verb = event["event"]
    if verb == "lost":
        return f"... {event['count']} events lost: they were not read fast enough"
    words = [_VERBS[verb]] if verb in _VERBS else []
    subject = event["object"]
    if subject == "evpn-session":
        return " ".join((*words, subject, str(event["remote"])))
    dev = event["dev"]
    if subject in ("fdb", "remote"):
        words += [event["mac"], "dev", dev]
        for to in event["destinations"]:
            words += ["dst", format_destination(to, event["vni"])]
            # As a flag of the whole entry, extern_learn is behind its state.
            origin = format_origin(to, flag=not event.get("extern_learn"))
            words += filter(None, [origin])
        words.append(format_kind(event))
    else:
        words += ["vni", str(event["vni"]), "dev", dev]
    if subject == "storm":
        words += [event["traffic"], event["direction"]]
    if (remote := event.get("remote")) is not None:
        words += ["remote", remote]
    if subject == "storm":
        words += ["dropped", str(event["dropped"])]
    if subject == "mtu":
        words += ["mtu", str(event["mtu"])]
    for name, value in event.get("options", {}).items():
        words += [name, json.dumps(value)]
    return " ".join(words)
