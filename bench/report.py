"""Tables of a run."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import Run, Spread
from bench.targets import TARGETS, Target
from bench.workloads import METRICS, Metric

KERNEL = "kernel"
"""The subject that others are compared with."""

TABLES = (
    ("TCP", ("tcp1", "tcp4", "tcp_reverse", "tcp_both")),
    ("UDP, < 1 % loss", ("udp1400", "udp64", "udp64x64")),
    ("UDP, overload", ("udp1400_overload", "udp64_overload", "udp64x64_overload")),
    (
        "Observed",
        (
            "observed_tcp1_alone",
            "observed_tcp1",
            "observed_udp64_alone",
            "observed_udp64",
            "observed_cpu",
        ),
    ),
    ("Latency", ("rtt_p50", "rtt_p99", "rtt_load_p50", "rtt_load_p99")),
    ("Cost", ("cpu_per_gb", "machine_cpu_per_gb", "memory", "memory_peak")),
)
"""Titles and metrics of the tables of a mode."""

_NOTES = """\
Medians of the rounds (least-greatest), and below each its ratio to the kernel driver (K): the
median of the ratios within each round of the same mode.

nic is a veth pair configured like a network card without tunnel offloads (no tunnel segmentation,
no UDP segmentation, no TSO; with GRO), and nogro the same without GRO. A plain veth flatters every
tunnel: superframes cross it whole, so that neither end has to segment and merge as over a network.

UDP rates are of what arrived: payload, or datagrams; overload is what arrives from a sender that
does not pace itself. CPU is user and system time for each GB that TCP, 1 flow, carried: of the
tunnel's own processes at both ends; and of the machine (all CPUs in use, with iperf3 and the
kernel), which is all that shows of the kernel's driver."""


def show(run: Run, console: Console) -> None:
    """Print the figures and the circumstances of a run."""
    circumstances = {**run.machine, **run.versions, **run.settings, "started": run.started}
    grid = Table.grid(padding=(0, 2))
    for name, text in circumstances.items():
        grid.add_row(f"[dim]{name}[/]", escape(str(text)))
    console.print(grid)
    for mode, label in run.modes.items():
        console.print(f"\n[bold]{mode}[/]: {label}")
        for title, names in TABLES:
            metrics = measured(run, mode, names)
            if metrics:
                console.print(_table(run, mode, title, metrics))
    console.print(_NOTES, style="dim", markup=False)
    for line in troubles(run):
        console.print(line, style="yellow", markup=False)
    console.print(targets_table(run))


def measured(run: Run, mode: str, names: tuple[str, ...]) -> list[Metric]:
    """Return those metrics that some subject has in a mode."""
    subjects = run.records.get(mode, {})
    return [
        METRICS[name]
        for name in names
        if any(run.spread(mode, subject, name) for subject in subjects)
    ]


def _table(run: Run, mode: str, title: str, metrics: list[Metric]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("tunnel", no_wrap=True)
    for metric in metrics:
        table.add_column(f"{metric.label}\n{metric.unit}", justify="right")
    for subject, record in run.records[mode].items():
        label = run.labels[subject]
        if not record.figures:
            table.add_row(label, *("failed" for _ in metrics), style="red")
        elif any(metric.name in record.figures for metric in metrics):
            cells = [_figure(run, mode, subject, metric) for metric in metrics]
            table.add_row(label, *cells, style="bold" if subject.startswith("pyvtep") else "")
    return table


def _figure(run: Run, mode: str, subject: str, metric: Metric) -> str:
    cell = _cell(run.spread(mode, subject, metric.name), metric.digits)
    ratio = None
    if subject != KERNEL:
        ratio = run.ratio(mode, (subject, metric.name), (KERNEL, metric.name))
    return cell if ratio is None else f"{cell}\n{ratio.median:.2f} K"


def targets_table(run: Run) -> Table:
    """Return a table of all targets, and whether they are met."""
    table = Table(title="Targets", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("mode")
    table.add_column("what")
    for heading in ("measured", "target", ""):
        table.add_column(heading, justify="right")
    for target in TARGETS:
        table.add_row(target.mode, target.name, *_verdict(target, target.measure(run)))
    return table


def _verdict(target: Target, measure: Spread | None) -> tuple[str, str, str]:
    bound = f"{'≤' if target.at_most else '≥'} {target.bound:g}"
    if measure is None:
        return "-", bound, "[yellow]not measured[/]"
    value = measure.median
    met = target.met(value)
    verdict = "[green]met[/]" if met else f"[red]missed by {target.miss(value):.0%}[/]"
    return _cell(measure, 2), bound, verdict


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "-"
    low, high = f"{spread.low:.{digits}f}", f"{spread.high:.{digits}f}"
    median = f"{spread.median:.{digits}f}"
    return median if low == high else f"{median} ({low}-{high})"


def troubles(run: Run) -> list[str]:
    """Return notes on the tables: missing figures, and remarks on figures, with their rounds."""
    places: dict[str, list[str]] = {}
    for mode, subjects in run.records.items():
        for subject, record in subjects.items():
            for word, texts in (("failed: ", record.errors), ("", record.remarks)):
                for text, rounds in texts.items():
                    numbers = ", ".join(map(str, rounds))
                    place = f"{mode}, {run.labels[subject]} (round {numbers})"
                    places.setdefault(f"{word}{one_line(text)}", []).append(place)
    return [f"{text}: {'; '.join(where)}" for text, where in places.items()]


def one_line(reason: str) -> str:
    """Return the first line of an error, short enough for a table."""
    text = " ".join(reason.split())
    return text if len(text) <= 160 else f"{text[:159]}…"
