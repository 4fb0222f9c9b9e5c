"""The command line of `scripts/bench`."""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench.plot import draw, pictures
from bench.report import one_line, show
from bench.results import Round, Run, describe_machine, new_file
from bench.subjects import SUBJECTS, Choices, Subject, Tunnel, first_line
from bench.workloads import FULL, METRICS, QUICK, WORKLOADS, Setting, memory
from vtep.errors import VtepError

_FAILURES = (VtepError, subprocess.SubprocessError, OSError, KeyError, ValueError, ArithmeticError)
"""Errors of a tunnel or a tool that misbehaves; the other subjects are measured nevertheless."""

_SUBJECTS = {subject.name: subject for subject in SUBJECTS}

_WIDTH = 118
_BUSY = 0.3


def _names(known: Collection[str]) -> Callable[..., list[str]]:
    """Return a click callback for options that take comma-separated names."""

    def read(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
        if value is None:
            return list(known)
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of: {', '.join(known)}")
        return [name for name in known if name in names]

    return read


def _cpus(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...]:
    allowed = sorted(os.sched_getaffinity(0))
    if value is None:
        return tuple(allowed[:2])
    try:
        cpus = tuple(sorted({int(number) for number in value.split(",")}))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no list such as 0,1") from error
    if not set(cpus) <= set(allowed):
        raise click.BadParameter(f"there are only: {', '.join(map(str, allowed))}")
    return cpus


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--rounds", type=click.IntRange(1), help="How many rounds; 5, with --quick 1.")
@click.option("--quick", is_flag=True, help="Measure briefly, to see that everything runs.")
@click.option(
    "--only",
    metavar="NAME,...",
    callback=_names(_SUBJECTS),
    help=f"Subjects, of: {', '.join(_SUBJECTS)}.",
)
@click.option(
    "--workload",
    "workloads",
    metavar="NAME,...",
    callback=_names(WORKLOADS),
    help=f"Workloads, of: {', '.join(WORKLOADS)}.",
)
@click.option(
    "--cpus",
    metavar="N,...",
    callback=_cpus,
    help="CPUs that everything shares; the first two if not given.",
)
@click.option("--congestion", default="cubic", show_default=True, help="TCP's congestion control.")
@click.option(
    "--pyvtep-options", default="", metavar="OPTIONS", help="More options for pyvtep, in one word."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file to write; bench/results/ and the time if not given.",
)
@click.option(
    "--show",
    "earlier",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Measure nothing: print and draw this JSON file of an earlier run.",
)
def main(  # noqa: PLR0913  one for each option
    *,
    rounds: int | None,
    quick: bool,
    only: list[str],
    workloads: list[str],
    cpus: tuple[int, ...],
    congestion: str,
    pyvtep_options: str,
    output: Path | None,
    earlier: Path | None,
) -> None:
    """Measure tunnels between two hosts on this machine, interleaved, and compare them."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    if earlier is not None:
        try:
            run = Run.load(earlier)
        except (ValueError, TypeError, KeyError) as error:
            raise click.ClickException(str(error)) from error
        _publish(run, earlier, console)
        return
    if os.geteuid():
        raise click.ClickException("namespaces need root: run as root")
    # As after Ctrl-C: everything is cleaned up, and a second signal does not interrupt that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.sched_setaffinity(0, cpus)

    effort = QUICK if quick else FULL
    choices = Choices(tuple(shlex.split(pyvtep_options)))
    subjects = [_SUBJECTS[name] for name in only]
    rounds = rounds or (1 if quick else 5)
    run = Run(
        machine=describe_machine(cpus),
        versions={"iperf3": first_line("iperf3", "--version")},
        settings={
            "rounds": rounds,
            "workloads": " ".join(workloads),
            "congestion": congestion,
            "pyvtep options": pyvtep_options or "none",
            "looks": ("quick: " if quick else "full: ") + str(effort),
        },
        labels={subject.name: subject.label for subject in subjects},
    )
    for subject in subjects:
        run.versions.update(subject.versions())
    _warn_if_busy(console)
    path = output or new_file()
    setting = Setting(effort, cpus, congestion)
    began = time.monotonic()
    for number in range(1, rounds + 1):
        for subject in subjects:
            progress = f"[dim]{time.monotonic() - began:5.0f} s[/] round {number}/{rounds}"
            console.print(f"{progress} {subject.label}:", end=" ")
            names = [name for name in workloads if name in (subject.workloads or WORKLOADS)]
            turn = _turn(subject, names, choices, setting)
            run.rounds.setdefault(subject.name, []).append(turn)
            console.print(_summary(turn))
        run.save(path)
    _publish(run, path, console)


def _turn(subject: Subject, workloads: list[str], choices: Choices, setting: Setting) -> Round:
    """Start a subject, run all workloads and stop it."""
    turn = Round()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pyvtep-bench-") as folder,
            subject.running(Path(folder), choices) as tunnel,
        ):
            for name in workloads:
                _work(tunnel, name, setting, turn)
                tunnel.check()
            _take(turn, "memory", memory(tunnel, setting))
    except _FAILURES as error:
        turn.errors["start" if not turn.figures else "tunnel"] = _reason(error)
    return turn


def _work(tunnel: Tunnel, name: str, setting: Setting, turn: Round) -> None:
    try:
        _take(turn, name, WORKLOADS[name](tunnel, setting))
    except _FAILURES as error:
        turn.errors[name] = _reason(error)


def _take(turn: Round, name: str, outcome: Any) -> None:
    turn.figures |= outcome.figures
    turn.details[name] = outcome.details


def _reason(error: Exception) -> str:
    return one_line(str(error) if isinstance(error, VtepError) else f"{error!r}")


def _summary(turn: Round) -> str:
    shown = ("tcp1", "udp1400", "udp64", "rtt_p50")
    figures = [
        f"{turn.figures[name]:.{METRICS[name].digits}f} {METRICS[name].unit}"
        for name in shown
        if name in turn.figures
    ]
    failed = [f"[red]{name} failed[/]: {reason}" for name, reason in turn.errors.items()]
    return ", ".join([*figures, *failed]) or "done"


def _warn_if_busy(console: Console) -> None:
    load = os.getloadavg()[0]
    if load > _BUSY:
        console.print(
            f"[yellow]This machine is not idle (load {load:.2f}): the figures will be low, and "
            "their spread wide.[/]"
        )


def _publish(run: Run, path: Path, console: Console) -> None:
    show(run, console)
    images = pictures(path)
    draw(run, *images)
    for file in (path, *images):
        console.print(str(file), soft_wrap=True)


if __name__ == "__main__":
    main()
