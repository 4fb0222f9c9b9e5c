"""The samples of a run as an SVG: one panel for each resource, one line for each process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT, _MARGIN = 420, 150, 28
_POINTS_MAX = 240
"""Points of a line: more would not be seen."""
_COLOURS = "#1f6fb4", "#c9702b"


def draw(
    path: Path, seconds: Sequence[float], panels: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """Write the plot; `panels` has, for each title, the samples of each process by its name."""
    size = f'width="{2 * _WIDTH}" height="{-(-len(panels) // 2) * _HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for number, (title, lines) in enumerate(panels.items()):
        left, top = number % 2 * _WIDTH + _MARGIN, number // 2 * _HEIGHT + _MARGIN
        parts += _panel(title, lines, seconds, left, top)
    path.write_text("\n".join([*parts, "</svg>", ""]))


def _panel(
    title: str, lines: Mapping[str, Sequence[float]], seconds: Sequence[float], left: int, top: int
) -> list[str]:
    width, height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN
    # From 0, so that growth is not exaggerated.
    most = max((max(values) for values in lines.values()), default=0) * 1.1 or 1
    last = seconds[-1] or 1
    parts = [
        f'<text x="{left}" y="{top - 8}">{escape(title)}, 0 to {most:.4g}</text>',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>',
        f'<text x="{left + width}" y="{top + height + 13}" text-anchor="end">{last:.0f} s</text>',
    ]
    step = max(1, len(seconds) // _POINTS_MAX)
    for number, (name, values) in enumerate(lines.items()):
        points = " ".join(
            f"{left + width * second / last:.1f},{top + height * (1 - value / most):.1f}"
            for second, value in zip(seconds[::step], values[::step], strict=True)
        )
        colour = _COLOURS[number % len(_COLOURS)]
        where = f'x="{left + 40 * number}" y="{top + height + 13}"'
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}"/>',
            f'<text {where} fill="{colour}">{escape(name)}</text>',
        ]
    return parts
