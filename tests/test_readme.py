"""The README: short, and its figures are those that were measured."""

import re
import statistics
import tomllib
from pathlib import Path

import pytest

from bench.results import Run
from bench.workloads import METRICS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs/performance.md").read_text()
REFERENCE = Run.load(ROOT / "bench/results/reference.json")

README_SUBJECTS = {
    "pyvtep": "pyvtep",
    "kernel driver": "kernel",
    "Open vSwitch userspace": "ovs",
    "pyvtep, tunnel offloads off": "pyvtep-off",
    "kernel, tunnel offloads off": "kernel-off",
}
"""Columns of the README's table, and the subjects of the benchmark."""


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of each table row, without separator rows."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not set("".join(row)) <= set("-: ")]


def figure(subject: str, metric: str) -> str:
    """Return the median of a metric as the tables show it; empty if it was not measured."""
    samples = REFERENCE.samples(subject, metric)
    return f"{statistics.median(samples):.{METRICS[metric].digits}f}" if samples else ""


def test_it_is_short() -> None:
    assert 6_000 <= len(README.encode()) <= 8_192


def test_the_first_screen_has_the_purpose_and_the_command() -> None:
    screen = README.splitlines()[:24]
    assert "VXLAN tunnel endpoint (VTEP)" in screen[2]
    assert "# pyvtep --vni 1 --remote 192.0.2.2 --tap vx0" in screen


def test_the_two_commands_are_scripts_of_the_clone() -> None:
    (block,) = re.findall(r"## Two commands\n.*?```console\n(.*?)```", README, re.DOTALL)
    commands = re.findall(r"^\$ (\S+)", block, re.MULTILINE)
    assert commands == ["scripts/demo", "scripts/test"]
    for command in commands:
        assert (ROOT / command).stat().st_mode & 0o111


def test_its_figures_are_the_reference_figures() -> None:
    section = README[README.index("## Performance") : README.index("## Security")]
    heading, *rows = rows_of(section)
    assert heading[1:] == [*README_SUBJECTS]
    by_label = {f"{metric.label}, {metric.unit}": metric.name for metric in METRICS.values()}
    assert len(rows) >= 5
    for label, *cells in rows:
        expected = [figure(subject, by_label[label]) for subject in README_SUBJECTS.values()]
        assert cells == expected, label


def test_the_performance_page_has_every_reference_figure() -> None:
    by_heading = {f"{metric.label} ({metric.unit})": metric.name for metric in METRICS.values()}
    by_label = {label: subject for subject, label in REFERENCE.labels.items()}
    shown = set()
    metrics: list[str] = []
    for label, *cells in rows_of(PERFORMANCE[: PERFORMANCE.index("## Machine")]):
        if label == "tunnel":
            metrics = [by_heading[cell] for cell in cells]
        elif label in by_label:
            assert cells == [figure(by_label[label], metric) for metric in metrics], label
            shown |= {(by_label[label], metric) for metric in metrics}
    measured = {
        (subject, metric)
        for subject in REFERENCE.labels
        for metric in METRICS
        if REFERENCE.samples(subject, metric)
    }
    assert measured <= shown


@pytest.mark.parametrize(
    ("words", "subject", "metric", "over"),
    [
        (
            "7.1 times as fast as with the userspace datapath of Open vSwitch",
            "pyvtep",
            "tcp1",
            "ovs",
        ),
        ("It is 0.36 of the kernel driver", "pyvtep", "tcp1", "kernel"),
        ("no tunnel offloads, it is 0.8 of", "pyvtep-off", "tcp1", "kernel-off"),
        ("TCP reaches 0.6 of the rate", "from-kernel", "tcp1", "kernel"),
        ("to a kernel driver, 0.56", "to-kernel", "tcp1", "kernel"),
        ("2.1 times as many datagrams of 64 octets", "pyvtep", "udp64", "ovs"),
        ("A round trip takes 0.84 of the time", "pyvtep", "rtt_p50", "ovs"),
    ],
)
def test_the_ratios_of_the_performance_page(
    words: str, subject: str, metric: str, over: str
) -> None:
    assert words in " ".join(PERFORMANCE.split())
    (ratio,) = re.findall(r"\b\d+\.\d+\b", words)
    spread = REFERENCE.ratio((subject, metric), (over, metric))
    assert spread is not None
    assert f"{spread.median:.{len(ratio.partition('.')[2])}f}" == ratio


def test_the_performance_page_names_the_machine() -> None:
    machine, versions = REFERENCE.machine, REFERENCE.versions
    for value in (machine["cpu"], machine["kernel"], machine["distribution"], versions["python"]):
        assert value in PERFORMANCE


def test_the_source_distribution_has_the_documentation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{page.name}" for page in ROOT.glob("*.md")} | {"/docs"} <= {*included}
