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

import click
from rich.console import Console
from rich.markup import escape

from bench.plan import Case, plan
from bench.plot import draw, picture
from bench.report import one_line, show
from bench.results import Record, Run, describe_machine, new_file
from bench.subjects import SUBJECTS, Choices, first_line
from bench.underlay import UNDERLAYS
from bench.workloads import FULL, METRICS, QUICK, WORKLOADS, Outcome, Setting, memory
from vtep.errors import VtepError

_FAILURES = (VtepError, subprocess.SubprocessError, OSError, KeyError, ValueError, ArithmeticError)
"""Errors of a tunnel or a tool that misbehaves; the other subjects are measured nevertheless."""

_SUMMARY = ("tcp1", "udp64", "udp64x64", "rtt_p50")
"""Metrics that are printed as soon as they are measured."""

_WIDTH = 118
_BUSY = 0.3


def _names(known: Collection[str]) -> Callable[..., list[str] | None]:
    """Return a click callback for options that take comma-separated names; None if not given."""

    def read(
        _context: click.Context, _option: click.Parameter, value: str | None
    ) -> list[str] | None:
        if value is None:
            return None
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is not one of: {', '.join(known)}")
        return [name for name in known if name in names]

    return read


def _cpus(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...]:
    allowed = sorted(os.sched_getaffinity(0))
    if value is None:
        return tuple(allowed[:2])
    try:
        cpus = tuple(sorted({int(number) for number in value.split(",")}))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list such as 0,1") from error
    if not set(cpus) <= set(allowed):
        raise click.BadParameter(f"there are only: {', '.join(map(str, allowed))}")
    return cpus


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--rounds", type=click.IntRange(1), help="How many rounds; 5, with --quick 1.")
@click.option("--quick", is_flag=True, help="Measure briefly, to see that everything runs.")
@click.option(
    "--only",
    metavar="NAME,...",
    callback=_names(SUBJECTS),
    help=f"Subjects, of: {', '.join(SUBJECTS)}.",
)
@click.option(
    "--mode",
    "modes",
    metavar="NAME,...",
    callback=_names(UNDERLAYS),
    help=f"Underlays, of: {', '.join(UNDERLAYS)}. With --only, also what bench/plan.py lacks.",
)
@click.option(
    "--workload",
    "workloads",
    metavar="NAME,...",
    callback=_names(WORKLOADS),
    help=f"Workloads, of: {', '.join(WORKLOADS)}. By default those of bench/plan.py.",
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
    only: list[str] | None,
    modes: list[str] | None,
    workloads: list[str] | None,
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
    cases = plan(modes, only, workloads)
    if not cases:
        raise click.UsageError("bench/plan.py has no such combination: give --mode and --only")
    rounds = rounds or (1 if quick else 5)
    subjects = {case.subject.name: case.subject for case in cases}
    run = Run(
        machine=describe_machine(cpus),
        versions={"iperf3": first_line("iperf3", "--version")},
        settings={
            "rounds": rounds,
            "congestion": congestion,
            "pyvtep options": pyvtep_options or "none",
            "durations": ("quick: " if quick else "full: ") + str(effort),
        },
        modes={case.underlay.name: case.underlay.label for case in cases},
        labels={name: subject.label for name, subject in subjects.items()},
    )
    for subject in subjects.values():
        run.versions.update(subject.versions())
    _warn_if_busy(console)
    path = output or new_file()
    setting = Setting(effort, cpus, congestion)
    began = time.monotonic()
    for number in range(1, rounds + 1):
        for case in cases:
            mode, name = case.underlay.name, case.subject.name
            progress = f"[dim]{time.monotonic() - began:5.0f} s[/] round {number}/{rounds}"
            console.print(f"{progress} {mode}, {case.subject.label}:", end=" ")
            _Turn(number, run.record(mode, name), console).measure(case, choices, setting)
        run.save(path)
    _publish(run, path, console)


class _Turn:
    """A round of one case, which adds its figures to a record."""

    def __init__(self, number: int, record: Record, console: Console) -> None:
        self._number = number
        self._record = record
        self._console = console
        self._said: list[str] = []

    def measure(self, case: Case, choices: Choices, setting: Setting) -> None:
        """Start the tunnel, run all workloads, stop it, and print a summary."""
        stage = "start"
        try:
            with (
                tempfile.TemporaryDirectory(prefix="pyvtep-bench-") as folder,
                case.subject.running(Path(folder), case.underlay, choices) as tunnel,
            ):
                stage = "tunnel"
                for name in case.workloads:
                    try:
                        self._take(WORKLOADS[name](tunnel, setting))
                    except _FAILURES as error:
                        self._fail(name, error)
                    tunnel.check()
                self._take(memory(tunnel, setting))
                tunnel.verify()
        except _FAILURES as error:
            self._fail(stage, error)
        self._console.print(", ".join(self._said) or "done")

    def _take(self, outcome: Outcome) -> None:
        self._record.add(self._number, outcome.figures)
        for remark in outcome.remarks:
            self._record.add_remark(self._number, remark)
        for name in _SUMMARY:
            if (value := outcome.figures.get(name)) is not None:
                self._said.append(f"{value:.{METRICS[name].digits}f} {METRICS[name].unit}")

    def _fail(self, stage: str, error: Exception) -> None:
        reason = one_line(str(error) if isinstance(error, VtepError) else f"{error!r}")
        self._record.add_error(self._number, f"{stage}: {reason}")
        self._said.append(f"[red]{stage} failed[/]: {escape(reason)}")


def _warn_if_busy(console: Console) -> None:
    load = os.getloadavg()[0]
    if load > _BUSY:
        console.print(
            f"[yellow]This machine is not idle (load {load:.2f}): the figures will be low, and "
            "their spread wide.[/]"
        )


def _publish(run: Run, path: Path, console: Console) -> None:
    show(run, console)
    image = picture(path)
    draw(run, image)
    for file in (path, image):
        console.print(str(file), soft_wrap=True)


if __name__ == "__main__":
    main()
