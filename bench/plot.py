"""A run as a plot: `python -m bench.plot FILE.json` writes FILE.svg and FILE.png.

One panel for each metric, one bar for each tunnel, every scale linear and from zero.
"""

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from bench.results import Run, Spread

_PANELS: tuple[tuple[str, tuple[str, ...], int], ...] = (
    ("TCP, 1 flow\nGbit/s, more is better", ("tcp1",), 1),
    ("TCP, 4 flows\nGbit/s, more is better", ("tcp4",), 1),
    ("TCP, reverse\nGbit/s, more is better", ("tcp_reverse",), 1),
    ("TCP, both ways at once (sum)\nGbit/s, more is better", ("tcp_both",), 1),
    (
        "UDP 1400 B, < 1 % loss (faint: overloaded)\nMbit/s, more is better",
        ("udp1400", "udp1400_overload"),
        0,
    ),
    (
        "UDP 64 B, < 1 % loss (faint: overloaded)\n1000 packets/s, more is better",
        ("udp64", "udp64_overload"),
        0,
    ),
    ("Round trip, p50 (faint: p99)\nµs, less is better", ("rtt_p50", "rtt_p99"), 0),
    ("CPU of the tunnel's processes\nseconds per GB, less is better", ("cpu_per_gb",), 1),
    ("Memory, peak of one process\nMiB, less is better", ("memory",), 0),
)
_COLUMNS = 3
_OURS, _HALF_OURS, _KERNEL, _OTHERS = "#1f6fb4", "#7fb2de", "#5f6368", "#c9a26b"
_BY_SUBJECT = {
    "pyvtep": _OURS,
    "from-kernel": _HALF_OURS,
    "to-kernel": _HALF_OURS,
    "pyvtep-off": _OURS,
    "kernel": _KERNEL,
    "kernel-off": _KERNEL,
}


def draw(run: Run, *paths: Path) -> None:
    """Draw a run to files, in the formats of their suffixes."""
    subjects = [name for name in run.labels if run.failure(name) is None]
    rows = -(-len(_PANELS) // _COLUMNS)
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "pyvtep", "axes.titlesize": 9.5})
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(12, 0.9 + rows * (0.9 + 0.27 * len(subjects))), squeeze=False
    )
    for number, (title, metrics, digits) in enumerate(_PANELS):
        row, column = divmod(number, _COLUMNS)
        panel = axes[row][column]
        _panel(panel, run, subjects, metrics, digits)
        panel.set_title(title, loc="left")
        if column:
            panel.set_yticklabels([])
    figure.suptitle(
        f"Both ends on {run.machine['cpus'].split()[0]} cores of one machine "
        f"({run.machine['cpu']}, {run.machine['kernel']}); rounds: {run.settings['rounds']}, bars "
        f"are medians, whiskers reach from least to greatest; {run.started[:10]}",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    for path in paths:
        dateless = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=110, facecolor="white", metadata=dateless)
    plt.close(figure)


def _panel(
    panel: Axes, run: Run, subjects: list[str], metrics: tuple[str, ...], digits: int
) -> None:
    """Draw a group of bars for each subject, with a bar for each metric from top to bottom."""
    thickness = 0.76 / len(metrics)
    longest = 0.0
    for at, subject in enumerate(subjects):
        for number, metric in enumerate(metrics):
            y = at + (number - (len(metrics) - 1) / 2) * thickness
            spread = run.spread(subject, metric)
            if spread is None:
                if not number:
                    why = _no_bar(run, subject, metric)
                    panel.text(0, at, f" {why}", va="center", color="#888888", fontsize=7)
                continue
            _bar(panel, y, spread, thickness, _BY_SUBJECT.get(subject, _OTHERS), faint=number > 0)
            panel.annotate(
                f"{spread.median:.{digits}f}",
                (spread.high, y),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8 if len(metrics) == 1 else 6.5,
                fontweight="bold" if subject == "pyvtep" else "normal",
            )
            longest = max(longest, spread.high)
    panel.set_yticks(range(len(subjects)), [run.labels[subject] for subject in subjects])
    panel.set_ylim(len(subjects) - 0.5, -0.5)
    panel.set_xlim(0, longest * 1.15 or 1)
    panel.tick_params(left=False)
    panel.grid(axis="x", color="#e4e4e4", linewidth=0.7)
    panel.set_axisbelow(True)
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def _no_bar(run: Run, subject: str, metric: str) -> str:
    processes = metric in {"cpu_per_gb", "memory"}
    if processes and run.samples(subject, "tcp1"):
        return "in the kernel: no process of its own"
    return "not measured"


def _bar(
    panel: Axes, y: float, spread: Spread, thickness: float, colour: str, *, faint: bool
) -> None:
    panel.barh(
        y,
        spread.median,
        thickness,
        color=colour,
        alpha=0.5 if faint else 1,
    )
    if spread.low < spread.high:
        ends = [[spread.median - spread.low], [spread.high - spread.median]]
        panel.errorbar(
            spread.median, y, xerr=ends, ecolor="#222222", elinewidth=0.8, capsize=1.5, fmt="none"
        )


def pictures(results: Path) -> tuple[Path, Path]:
    """Return the paths of the plots of a result file."""
    return results.with_suffix(".svg"), results.with_suffix(".png")


def main() -> None:
    """Draw each file on the command line."""
    for name in sys.argv[1:]:
        paths = pictures(Path(name))
        draw(Run.load(Path(name)), *paths)
        print(*paths, sep="\n")


if __name__ == "__main__":
    main()
