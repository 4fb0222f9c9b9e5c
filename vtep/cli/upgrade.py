"""`pyvtep upgrade`: start a new process that takes over from the running one without a loss."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from vtep.cli import client_command, commands
from vtep.control import Client, socket_files
from vtep.control.client import DisconnectedError
from vtep.errors import VtepError

_REPORT_S = 3.0
"""Interval between reports of what the upgrade waits for, in seconds: most are over before."""

_SERVING_S = 60.0
"""Time for the new process to serve its control socket, in seconds."""


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
    try:
        refusal = _refusal(vtep.path)
    except DisconnectedError as error:
        raise VtepError(
            f"{result}; but the new process does not answer: see its log ({error})"
        ) from error
    if refusal is not None:
        raise VtepError(
            f"{result}; but the changed configuration was not applied, the former one continues: "
            f"{refusal}"
        )
    if as_json:
        client_command.print_json(result)
    else:
        click.echo(result)


def _refusal(path: Path) -> str | None:
    """Return why the new process could not apply what the file has changed; None if it could.

    Raises: DisconnectedError if it has ended, or does not serve its socket in time.
    """
    end = time.monotonic() + _SERVING_S
    while True:
        try:
            # It serves its socket once it has applied the file, or was refused.
            with Client(path) as client:
                refusal: str | None = client.call("upgrade.show").get("refusal")
                return refusal
        except DisconnectedError:
            # It had some seconds to answer. Once nothing listens any more, it has ended.
            if time.monotonic() > end or socket_files.listening_process(path) is None:
                raise
        except VtepError:  # An older version does not know the method.
            return None


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
