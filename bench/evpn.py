"""The command line of `scripts/bench evpn`: 10,000 EVPN routes in each direction, beside FRR.

The storms and their pings are those of `tests/netns/test_evpn_scale.py`, which asserts that
nothing is lost; here they are timed.
"""

import os
import sys
import tempfile
from pathlib import Path

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.results import describe_machine
from tests.netns.evpn_scale import (
    ScaleFabric,
    Storm,
    bgpd_killed,
    bgpd_returns,
    both_appear,
    both_disappear,
    far_appear,
    near_appear,
    speaker_killed,
    upgraded,
)
from tests.netns.fabric import Fabric
from tests.netns.hosts import Pyvtep
from vtep.testing.lab import Host, Lab

_WIDTH = 140
_STORMS = (
    *(far_appear, near_appear, both_disappear, both_appear),
    *(bgpd_killed, bgpd_returns, speaker_killed, upgraded, both_disappear),
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--routes", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--vnis", type=click.IntRange(1, 100), default=1, show_default=True)
def main(*, routes: int, vnis: int) -> None:
    """Announce many MACs from both ends of a session with FRR, and time what follows."""
    if os.geteuid():
        raise click.ClickException("namespaces need root: run as root")
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    console.print(
        escape(", ".join(describe_machine(tuple(sorted(os.sched_getaffinity(0)))).values()))
    )
    with tempfile.TemporaryDirectory() as name, Lab() as lab:
        folder = Path(name)

        def start(host: Host, *arguments: str) -> Pyvtep:
            return Pyvtep(host, folder, *arguments).ready()

        scale = ScaleFabric(Fabric(lab), start, folder, vnis=range(100, 100 + vnis))
        storms = [storm(scale, routes // vnis) for storm in _STORMS]
    console.print(_table(storms, f"{routes:,} MACs at each end, half of them with an address"))


def _table(storms: list[Storm], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("what")
    for heading in (
        "all have all after",
        "lost",
        "longest gap",
        "without pyvtep",
        "daemon",
        "speaker",
    ):
        table.add_column(heading, justify="right")
    for storm in storms:
        own = [each for name, each in storm.pings.items() if name != "machine"]
        steady = storm.pings["steady"]
        table.add_row(
            storm.name,
            f"{max(storm.seconds.values()):.1f} s",
            f"{sum(each.lost for each in own)} ({steady.lost})",
            f"{max(each.longest_ms for each in own):.0f} ({steady.longest_ms:.0f}) ms",
            f"{storm.pings['machine'].longest_ms:.0f} ms",
            f"{storm.daemon_cpu:.2f} s, {storm.daemon_mib:.0f} MiB",
            f"{storm.speaker_cpu:.2f} s, {storm.speaker_mib:.0f} MiB",
        )
    table.caption = (
        "in parentheses: pings to a VTEP without BGP; processor time and resident memory"
    )
    return table


if __name__ == "__main__":
    main()
