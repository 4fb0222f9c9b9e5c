"""The tables of README.md and docs/performance.md, made from the reference figures.

    python -m bench.markdown

writes them between their markers in both files. Their tests compare them with the file of results.
"""

import re
from pathlib import Path

from bench.report import KERNEL, TABLES, measured
from bench.results import RESULTS, Run
from bench.subjects import ROOT
from bench.workloads import Metric

REFERENCE = RESULTS / "reference.json"

_BEGIN, _END = "<!-- begin figures: python -m bench.markdown -->", "<!-- end figures -->"

_README_SUBJECTS = ("pyvtep-fast", "pyvtep-slow", KERNEL, "ovs")
_README_ROWS = {
    "nic": ("tcp1", "tcp4", "udp64", "udp64x64", "rtt_p50", "rtt_load_p99", "cpu_per_gb"),
    "nogro": ("tcp1", "udp64x64"),
    "veth": ("tcp1",),
}


def readme_section(run: Run) -> str:
    """Return the table of the README: figures, with their ratios to the kernel driver."""
    subjects = [subject for subject in _README_SUBJECTS if subject in run.labels]
    rows = [
        [f"{mode}: {metric.label}, {metric.unit}", *cells]
        for mode, names in _README_ROWS.items()
        for metric in measured(run, mode, names)
        if any(cells := [_figure(run, mode, subject, metric) for subject in subjects])
    ]
    return _table(["", *(run.labels[subject] for subject in subjects)], rows)


def performance_section(run: Run) -> str:
    """Return the tables of docs/performance.md: all figures by mode, and the machine."""
    parts = []
    for mode, label in run.modes.items():
        parts.append(f"## {mode}: {label}")
        for title, names in TABLES:
            metrics = measured(run, mode, names)
            rows = [
                [run.labels[subject], *cells]
                for subject in run.records[mode]
                if any(cells := [_figure(run, mode, subject, metric) for metric in metrics])
            ]
            if rows:
                headings = [f"{metric.label} ({metric.unit})" for metric in metrics]
                parts.append(_table([title, *headings], rows))
    circumstances = {**run.machine, **run.versions, **run.settings, "date": run.started[:10]}
    rows = [[name, str(text)] for name, text in circumstances.items()]
    parts += ["## Machine and versions", _table(["", ""], rows, align="---")]
    return "\n\n".join(parts)


def _figure(run: Run, mode: str, subject: str, metric: Metric) -> str:
    """Return a median and its ratio to the kernel driver; empty if it was not measured."""
    spread = run.spread(mode, subject, metric.name)
    if spread is None:
        return ""
    median = f"{spread.median:.{metric.digits}f}"
    kernel = (KERNEL, metric.name)
    ratio = run.ratio(mode, (subject, metric.name), kernel) if subject != KERNEL else None
    return median if ratio is None else f"{median} ({ratio.median:.2f} K)"


def _table(headings: list[str], rows: list[list[str]], align: str = "---:") -> str:
    lines = [headings, ["---", *[align] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


SECTIONS = {ROOT / "README.md": readme_section, ROOT / "docs/performance.md": performance_section}
"""The files with figures, each with the function that makes its section."""


def section_of(page: str) -> str:
    """Return the text between the markers of a page."""
    return page.split(_BEGIN)[1].split(_END, maxsplit=1)[0].strip()


def _replaced(path: Path, section: str) -> str:
    """Return a page with another section between its markers."""
    pattern = re.compile(f"(?<={re.escape(_BEGIN)}\n).*?(?={re.escape(_END)})", re.DOTALL)
    return pattern.sub(lambda _: f"\n{section}\n\n", path.read_text())


if __name__ == "__main__":
    reference = Run.load(REFERENCE)
    for file, make in SECTIONS.items():
        file.write_text(_replaced(file, make(reference)))
