"""The command line of `scripts/bench scale`."""

import os
import sys
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import Run, describe_machine, new_file
from bench.scale import fdb, flood, vnis
from bench.scale.figures import FDB, FLOOD, VNIS, Figure
from bench.subjects import first_line

_WIDTH = 118
_PARTS = {
    "fdb": ("FDB of {} entries", FDB, fdb.measure),
    "flood": ("Broadcast to {} remotes, exactly one copy each", FLOOD, flood.measure),
    "vnis": ("{} VNIs in one process", VNIS, vnis.measure),
}
_COUNT = click.IntRange(1)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--fdb", "entries", type=_COUNT, default=1_000_000, show_default=True)
@click.option("--remotes", type=click.IntRange(8, 65536), default=1000, show_default=True)
@click.option("--vnis", "vni_count", type=_COUNT, default=1000, show_default=True)
@click.option("--only", type=click.Choice(list(_PARTS)), multiple=True, help="Not everything.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file to write; bench/results/ and the time if not given.",
)
def main(
    *, entries: int, remotes: int, vni_count: int, only: tuple[str, ...], output: Path | None
) -> None:
    """Measure large configurations and compare the figures with their bounds."""
    if os.geteuid():
        raise click.ClickException("namespaces need root: run as root")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    sizes = {"fdb": entries, "flood": remotes, "vnis": vni_count}
    run = Run(
        machine=describe_machine(tuple(sorted(os.sched_getaffinity(0)))),
        versions={"pyvtep": first_line(sys.executable, "-m", "vtep", "--version")},
        settings={"sizes": sizes},
        modes={"scale": "large configurations"},
        labels={"pyvtep": "pyvtep"},
    )
    console.print(escape(", ".join(run.machine.values())))
    path = output or new_file().with_stem(f"scale-{new_file().stem}")
    for part in only or _PARTS:
        title, figures, measure = _PARTS[part]
        values = measure(sizes[part])
        run.record("scale", "pyvtep").add(1, values)
        console.print(_table(title.format(f"{sizes[part]:,}"), figures, values))
        run.save(path)
    console.print(str(path), soft_wrap=True)


def _table(title: str, figures: tuple[Figure, ...], values: dict[str, float]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("", no_wrap=True)
    table.add_column("bound", justify="right")
    table.add_column("")
    for figure in figures:
        value = values[figure.name]
        bound = "" if figure.bound is None else f"≤ {figure.bound:g}"
        verdict = figure.verdict(value)
        colour = "green" if verdict == "met" else "red"
        cells = figure.label, f"{value:.{figure.digits}f}", figure.unit, bound
        table.add_row(*cells, f"[{colour}]{verdict}[/]" if verdict else "")
    return table


if __name__ == "__main__":
    main()
