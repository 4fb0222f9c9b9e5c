"""Tables of a run."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import Run, Spread
from bench.targets import TARGETS, Target
from bench.workloads import METRICS, Metric

_TABLES = (
    ("TCP", ("tcp1", "tcp4", "tcp_reverse", "tcp_both")),
    ("UDP", ("udp1400", "udp1400_overload", "udp64", "udp64_overload")),
    (
        "Latency, cost, memory",
        ("rtt_p50", "rtt_p99", "cpu_per_gb", "machine_cpu_per_gb", "memory"),
    ),
)
_NOTES = """\
Medians of the rounds (least-greatest). UDP rates are of what arrived: payload, or datagrams;
overload is what arrives from a sender that does not pace itself. CPU is user and system time for
each GB that TCP, 1 flow, carried: of the tunnel's own processes at both ends; and of the machine
(all CPUs in use, with iperf3 and the kernel), which is all that shows of the kernel's driver."""


def show(run: Run, console: Console) -> None:
    """Print the figures and the circumstances of a run."""
    circumstances = {**run.machine, **run.versions, **run.settings, "started": run.started}
    grid = Table.grid(padding=(0, 2))
    for name, text in circumstances.items():
        grid.add_row(f"[dim]{name}[/]", escape(str(text)))
    console.print(grid)
    for title, names in _TABLES:
        metrics = [
            METRICS[name]
            for name in names
            if any(run.samples(subject, name) for subject in run.labels)
        ]
        if metrics:
            console.print(_table(run, title, metrics))
    console.print(_NOTES, style="dim", markup=False)
    for line in _troubles(run):
        console.print(line, style="yellow", markup=False)
    console.print(targets_table(run))


def _table(run: Run, title: str, metrics: list[Metric]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("tunnel", no_wrap=True)
    for metric in metrics:
        table.add_column(f"{metric.label}\n{metric.unit}", justify="right")
    for subject, label in run.labels.items():
        if run.failure(subject) is not None:
            table.add_row(label, *("failed" for _ in metrics), style="red")
            continue
        cells = [_cell(run.spread(subject, metric.name), metric.digits) for metric in metrics]
        table.add_row(label, *cells, style="bold" if subject == "pyvtep" else "")
    return table


def targets_table(run: Run) -> Table:
    """Return a table of all targets, and whether they are met."""
    table = Table(title="Targets", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what")
    for heading in ("measured (each round)", "target", ""):
        table.add_column(heading, justify="right")
    for target in TARGETS:
        table.add_row(target.name, *_verdict(target, target.measure(run)))
    return table


def _verdict(target: Target, measured: Spread | None) -> tuple[str, str, str]:
    bound = f"{'≤' if target.at_most else '≥'} {target.bound:g}"
    if measured is None:
        return "-", bound, "[yellow]not measured[/]"
    value = measured.median
    met = target.met(value)
    verdict = "[green]met[/]" if met else f"[red]missed by {target.miss(value):.0%}[/]"
    return _cell(measured, 2), bound, verdict


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "-"
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    median = f"{spread.median:.{digits}f}"
    return median if low == high else f"{median} ({low}-{high})"


def _troubles(run: Run) -> list[str]:
    """Return notes on the table: missing figures, unusual sizes, unfinished searches."""
    lines = []
    for subject, turns in run.rounds.items():
        label = run.labels[subject]
        if (failure := run.failure(subject)) is not None:
            lines.append(f"{label} failed: {one_line(failure)}")
        else:
            for number, turn in enumerate(turns, 1):
                for workload, reason in turn.errors.items():
                    lines.append(f"{label}, round {number}, {workload} failed: {one_line(reason)}")
        for workload in ("udp1400", "udp64"):
            found = [turn.details[workload] for turn in turns if workload in turn.details]
            sizes = {detail["octets"] for detail in found} - {int(workload[3:])}
            lines += [f"{label}, {workload}: of {size} B, which its MTU allows" for size in sizes]
            tired = sum(detail["sender_limited"] for detail in found)
            if tired:
                lines.append(
                    f"{label}, {workload}: the sender was the limit in {tired} of {len(found)} "
                    "rounds; the tunnel may carry more"
                )
            open_ended = sum(not detail["converged"] for detail in found)
            if open_ended:
                lines.append(
                    f"{label}, {workload}: the search ran out of probes in {open_ended} of "
                    f"{len(found)} rounds; the figure is the best rate found"
                )
    return lines


def one_line(reason: str) -> str:
    """Return the first line of an error, short enough for a table."""
    text = " ".join(reason.split())
    return text if len(text) <= 160 else f"{text[:159]}…"
