"""A run as a plot: one panel for each mode and metric, one bar for each subject.

The SVG is written here, with one line for each bar. That of a plotting library has thousands of
lines, which change with each release of it.
"""

from pathlib import Path
from xml.sax.saxutils import escape

from bench.report import KERNEL
from bench.results import Run
from bench.workloads import METRICS

_PANELS = (
    ("nic", "tcp1", "more is better"),
    ("nogro", "tcp1", "more is better"),
    ("veth", "tcp1", "more is better"),
    ("nic", "udp64x64", "more is better"),
    ("nic", "rtt_p50", "less is better"),
    ("nic", "cpu_per_gb", "less is better"),
)
_COLUMNS = 3

_WIDTH, _LABEL, _BAR, _ROW = 340, 150, 115, 17
"""Pixels: the width of a panel, of its labels and of its longest bar, and the height of a bar."""

_HEADING, _FOOT = 44, 24
"""Pixels above the first bar of a panel, and below the last panel."""

_FAST, _SLOW, _KERNEL, _OTHERS = "#1f6fb4", "#7fb2de", "#5f6368", "#c9a26b"
_COLOURS = {"pyvtep-fast": _FAST, "pyvtep-slow": _SLOW, KERNEL: _KERNEL}


def picture(results: Path) -> Path:
    """Return the path of the plot of a result file."""
    return results.with_suffix(".svg")


def draw(run: Run, path: Path) -> None:
    """Write the plot of a run."""
    panels = [
        (mode, metric, better, subjects)
        for mode, metric, better in _PANELS
        if (subjects := [s for s in run.records.get(mode, {}) if run.spread(mode, s, metric)])
    ]
    lines, top = [], 0
    for first in range(0, len(panels), _COLUMNS):
        row = panels[first : first + _COLUMNS]
        for column, (mode, metric, better, subjects) in enumerate(row):
            lines += _panel(run, mode, metric, better, subjects, (column * _WIDTH + 8, top))
        top += _HEADING + max(len(subjects) for *_, subjects in row) * _ROW
    caption = (
        f"{run.settings['rounds']} rounds on {run.machine['cpus'].split()[0]} CPUs "
        f"({run.machine['cpu']}, {run.machine['kernel']}), {run.started[:10]}. Bars are medians, "
        "lines reach from the least to the greatest round."
    )
    lines.append(f'<text x="8" y="{top + 16}" fill="#666">{escape(caption)}</text>')
    size = f'width="{_COLUMNS * _WIDTH}" height="{top + _FOOT}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    path.write_text("\n".join([f'{opening} font-size="11">', background, *lines, "</svg>\n"]))


def _panel(
    run: Run, mode: str, metric: str, better: str, subjects: list[str], corner: tuple[int, int]
) -> list[str]:
    left, top = corner
    about = METRICS[metric]
    lines = [
        f'<text x="{left}" y="{top + 18}" font-weight="bold">{mode}: {escape(about.label)}</text>',
        f'<text x="{left}" y="{top + 33}" fill="#666">{about.unit}, {better}</text>',
    ]
    spreads = {s: spread for s in subjects if (spread := run.spread(mode, s, metric)) is not None}
    scale = _BAR / (max(spread.high for spread in spreads.values()) or 1)
    start = left + _LABEL
    for number, (subject, spread) in enumerate(spreads.items()):
        y = top + _HEADING + number * _ROW
        length, low, high = (scale * each for each in (spread.median, spread.low, spread.high))
        middle = y + 6
        lines.append(
            f'<text x="{start - 6}" y="{y + 10}" text-anchor="end">{run.labels[subject]}</text>'
            f'<rect x="{start}" y="{y}" width="{length:.1f}" height="13" '
            f'fill="{_COLOURS.get(subject, _OTHERS)}"/>'
            f'<path d="M{start + low:.1f} {middle}H{start + high:.1f}" stroke="#222"/>'
            f'<text x="{start + high + 5:.1f}" y="{y + 10}">{spread.median:.{about.digits}f}</text>'
        )
    return lines
