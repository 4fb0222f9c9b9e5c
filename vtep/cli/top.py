"""`pyvtep top`: the rates of a running VTEP, once a second."""

import sys
import time

import click

from vtep.cli import client_command, commands
from vtep.control.reconnect import Connector
from vtep.control.schema import FdbSample, Status
from vtep.errors import ConfigError, VtepError, shown
from vtep.top import batch as plain
from vtep.top.macs import MacRequest
from vtep.top.model import Model
from vtep.top.rates import RateMeter
from vtep.top.source import Source
from vtep.top.tables import MACS, arrange
from vtep.top.view import View

_INTERVAL_MIN, _INTERVAL_MAX = 0.2, 3600.0

_TIMEOUT_S = 4.0
"""Time in which a VTEP answers: the screen says so if it does not, and can be left."""


def _interval(_context: click.Context, _option: click.Parameter, value: float) -> float:
    if not _INTERVAL_MIN <= value <= _INTERVAL_MAX:
        raise ConfigError(
            f"--delay {shown(value)}: must be from {_INTERVAL_MIN} to {_INTERVAL_MAX:g} seconds, "
            "as in: -d 2"
        )
    return value


@click.command(cls=commands.CliCommand)
@commands.option("--vni", metavar="N", type=click.IntRange(0, 0xFFFFFF), help="Show this VNI only.")
@commands.option(
    "--socket",
    metavar="PATH",
    help="Control socket of the pyvtep to talk to [default: the one in this network namespace, or "
    "the one with the VNI].",
)
@commands.option("--batch", "-b", is_flag=True, help="Print plain rows, for scripts.")
@commands.option(
    "--count",
    "-n",
    metavar="N",
    type=click.IntRange(min=1),
    help="With -b, end after so many reports [default: never].",
)
@commands.option(
    "--delay",
    "-d",
    "interval",
    metavar="SECONDS",
    type=float,
    default=1.0,
    callback=_interval,
    help="Time between two reports [default: 1].",
)
@commands.option(
    "--macs",
    metavar="N",
    type=click.IntRange(1, 500),
    help="With -b, also print the N busiest MACs of --vni, or of the only VNI.",
)
@commands.option(
    "--json", "-j", "as_json", is_flag=True, help="As -b, but one JSON object per report and line."
)
def top(
    *,
    vni: int | None,
    socket: str | None,
    batch: bool,
    count: int | None,
    interval: float,
    macs: int | None,
    as_json: bool,
) -> None:
    """Show rates per VNI, per remote and per MAC, and drops, as they are now.

    The key ? shows the keys. It goes on over a restart or an upgrade of the pyvtep. Rates are per
    second.
    """
    for option, value in (("-n", count), ("--macs", macs)):
        if value is not None and not (batch or as_json):
            raise click.UsageError(f"{option} is for batch mode: add -b")

    # --help of all commands imports this module, and does without the doctor.
    from vtep.doctor.advice import advice  # noqa: PLC0415

    connect = Connector(
        socket, vni, timeout=_TIMEOUT_S, elsewhere=client_command.note_other_namespace
    )
    source = Source(connect, vni)
    view = View(vni=vni) if macs is None else View(vni=vni, table=MACS)
    model = Model(RateMeter(advice), view)
    if batch or as_json:
        with client_command.exit_on_broken_pipe():
            _print(model, source, count, interval, macs, as_json=as_json)
        return
    _show(model, source, interval)


def _show(model: Model, source: Source, interval: float) -> None:
    """Run the screen."""
    # textual draws on standard error.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise click.UsageError("top draws on a terminal, and there is none; print rows: top -b")
    try:
        from vtep.top.screen import TopApp  # noqa: PLC0415  optional, and slow to import
    except ImportError as error:
        raise VtepError(
            "textual is not installed: in the clone of pyvtep, scripts/setup --extra top, or "
            f"{sys.executable} -m pip install '.[top]'; pyvtep top -b prints rows without it"
        ) from error
    # At first, a mistake such as a wrong --socket is an error. Later the VTEP is waited for.
    model.take(source.poll()[0], None, None)
    app = TopApp(model, source.poll, interval)
    app.run()
    source.close()
    if app.return_code:
        sys.exit(app.return_code)


def _print(
    model: Model,
    source: Source,
    count: int | None,
    interval: float,
    macs: int | None,
    *,
    as_json: bool,
) -> None:
    """Print reports, each about the time since the one before."""
    view = model.view
    asked = model.request()
    model.take(*_answers(source, asked))
    if macs is not None and view.vni_of_macs is None:
        raise ConfigError("--macs: there are several VNIs; choose one: --vni N")
    if not as_json:
        print(*plain.headings(), sep="\n", flush=True)
    done, due = 0, time.monotonic()
    while count is None or done < count:
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        done += 1
        asked = model.request()
        try:
            model.take(*_answers(source, asked))
        except VtepError as error:
            if done == count:  # There is nothing more to wait for.
                raise
            if view.problem is None:
                click.echo(f"pyvtep: note: reconnecting: {error}", err=True)
            model.fail(str(error))
            continue
        if view.rates is None:
            continue
        busiest = arrange(view.macs, MACS.sort, is_rising=False)[:macs] if macs else None
        if as_json:
            print(plain.json_line(view.rates, busiest), flush=True)
        else:
            print(*plain.rows(view.rates, busiest or ()), sep="\n", flush=True)


def _answers(
    source: Source, asked: MacRequest | None
) -> tuple[Status, MacRequest | None, FdbSample | None]:
    status, sample = source.poll(asked)
    return status, asked, sample
