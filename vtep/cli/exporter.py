"""`pyvtep exporter`: metrics of a running pyvtep for Prometheus."""

import signal
import sys
import threading
from contextlib import closing, suppress
from importlib.resources import files
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from vtep.cli import bootstrap, commands
from vtep.errors import VtepError, shown

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_LISTEN = "127.0.0.1:9479"
_INTERVAL_S = 15.0

_NOTICE = 5
"""The priority of lines that are no errors (sd-daemon(3))."""


@click.command(cls=commands.CliCommand)
@commands.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help=f"Serve the metrics there, at /metrics [default: {_LISTEN}].",
)
@commands.option(
    "--textfile",
    metavar="PATH",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the metrics to a file, for the textfile collector of node_exporter, instead.",
)
@commands.option(
    "--interval",
    metavar="SECONDS",
    type=commands.Seconds(1),
    help=f"Write the file that often [default: {_INTERVAL_S:.0f}].",
)
@commands.option("--once", is_flag=True, help="Write the file once, and exit.")
@commands.option(
    "--socket",
    metavar="PATH",
    help="Control socket of the pyvtep to read from [default: the one in this network namespace].",
)
@commands.option("--print-rules", is_flag=True, help="Print alert rules for Prometheus, and exit.")
@commands.option("--print-dashboard", is_flag=True, help="Print a Grafana dashboard, and exit.")
def exporter(
    *,
    listen: str | None,
    textfile: Path | None,
    interval: float | None,
    once: bool,
    socket: str | None,
    print_rules: bool,
    print_dashboard: bool,
) -> None:
    """Export metrics of a running pyvtep to Prometheus, until it is ended.

    It may start before pyvtep, and outlives it: pyvtep_up is 0 meanwhile. It needs the rights to
    read only, as a member of the --control-group has. Each of several pyvteps on a host needs its
    own exporter, with --socket and --listen.
    """
    if print_rules or print_dashboard:
        if print_rules and print_dashboard:
            raise click.UsageError("--print-rules and --print-dashboard print one file each")
        name = "pyvtep.rules.yml" if print_rules else "dashboard.json"
        click.echo(files("vtep.exporter").joinpath("data", name).read_text(), nl=False)
        return
    if textfile is None and (once or interval is not None):
        raise click.UsageError("--interval and --once belong to --textfile PATH")
    if textfile is not None and listen is not None:
        raise click.UsageError("--listen and --textfile exclude each other: run two exporters")
    if textfile is not None and textfile.name in ("", "-"):
        raise click.UsageError(
            f"--textfile {shown(str(textfile) if textfile.name else '')}: is no name of a file; "
            "name one, as in: --textfile /var/lib/prometheus/node-exporter/pyvtep.prom"
        )
    if once and interval is not None:
        raise click.UsageError("--once and --interval exclude each other")
    try:
        # Optional, and slow to import.
        from vtep.exporter.collector import StatusCollector, registry_of  # noqa: PLC0415
        from vtep.exporter.source import StatusSource  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("prometheus_client"):
            raise
        raise VtepError(
            "prometheus-client is not installed: in the clone of pyvtep, scripts/setup --extra "
            f"metrics, or {sys.executable} -m pip install '.[metrics]'"
        ) from error
    source = StatusSource(socket, _note)
    source.check()
    registry = registry_of(StatusCollector(source.status, _note))
    with closing(source):
        if textfile is None:
            _serve(_LISTEN if listen is None else listen, registry)
        elif once:
            _write(textfile, registry)
        else:
            _write_regularly(textfile, registry, interval or _INTERVAL_S)


def _serve(listen: str, registry: "CollectorRegistry") -> None:
    """Serve the metrics until SIGTERM or SIGINT."""
    from vtep.exporter.server import MetricsServer  # noqa: PLC0415

    ended = _ended()
    with MetricsServer(listen, registry) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        _note(f"serving {server.url}")
        ended.wait()
        server.shutdown()


def _write(path: Path, registry: "CollectorRegistry") -> None:
    from vtep.exporter import textfile  # noqa: PLC0415

    textfile.write(path, registry)


def _write_regularly(path: Path, registry: "CollectorRegistry", interval: float) -> None:
    """Write the file every `interval` seconds until SIGTERM or SIGINT, and remove it then.

    Raises: VtepError if the file cannot be written at first; later failures are printed once.
    """
    from vtep.exporter import textfile  # noqa: PLC0415

    ended = _ended()
    textfile.write(path, registry)
    _note(f"writing {path} every {interval:g} s")
    problem = ""
    while not ended.wait(interval):
        try:
            textfile.write(path, registry)
        except VtepError as error:  # A full disk, for example, may have room again.
            if str(error) != problem:
                _note(str(error))
            problem = str(error)
        else:
            problem = ""
    textfile.remove(path)


def _ended() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set, from now on."""
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return ended


def _note(text: str) -> None:
    """Print a line to standard error, which the journal reads if this is a service."""
    with suppress(OSError, ValueError):  # It may be closed, which must not end the exporter.
        print(
            f"{bootstrap.journal_prefix(_NOTICE)}pyvtep: note: {text}", file=sys.stderr, flush=True
        )
