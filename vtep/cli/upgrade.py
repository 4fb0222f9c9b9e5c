"""`pyvtep upgrade`: start a new process that takes over from the running one without a loss."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from vtep.cli import client_command, commands
from vtep.control import Client
from vtep.errors import VtepError

_REPORT_S = 3.0
"""Interval between reports of what the upgrade waits for, in seconds: most are over before."""


@click.command(cls=commands.CliCommand)
@client_command.with_client(segment=False, shows=True, changes=True, by_pid=True)
def upgrade(vtep: Client, *, as_json: bool) -> None:
    """Replace the running pyvtep by a new process, which may be a newer version.

    The new process starts with the same command line, and reads the configuration file again. It
    takes over TAPs, sockets, the FDB, neighbours, counters and runtime changes. No frame is lost,
    unless a queue overflows because the start of the new process takes the processor for a moment:
    see the counters tap_queue_full and rx_queue_full. If it fails, the running process continues.
    """
    try:
        with _reported(vtep.path):
            result = vtep.upgrade()
    except KeyboardInterrupt:
        _note("the upgrade goes on in the running pyvtep, whose log will have its outcome")
        raise
    if as_json:
        client_command.print_json(result)
    else:
        click.echo(result)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Report on the terminal what the upgrade waits for, while it lasts."""
    over = threading.Event()
    if sys.stderr.isatty():  # In the log of a script or of systemd, it would only be noise.
        threading.Thread(target=_report, args=(path, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _report(path: Path, over: threading.Event) -> None:
    reported = None
    while not over.wait(_REPORT_S):
        # The process may have ended, or be one that does not know the method.
        with suppress(VtepError), Client(path) as client:
            waiting_for = client.call("upgrade.show")["waiting_for"]
            if waiting_for not in (None, reported) and not over.is_set():
                _note(f"waiting for {waiting_for}")
            reported = waiting_for


def _note(text: str) -> None:
    click.echo(f"pyvtep: note: {text}", err=True)
