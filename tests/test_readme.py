"""The README: short, and its figures are those that were measured."""

import re
import tomllib
from pathlib import Path

import pytest

from bench import markdown
from bench.plot import picture
from bench.results import Run
from bench.workloads import METRICS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs/performance.md").read_text()
REFERENCE = Run.load(markdown.REFERENCE)


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


@pytest.mark.parametrize("page", markdown.SECTIONS)
def test_its_figures_are_the_reference_figures(page: Path) -> None:
    section = markdown.section_of(page.read_text())
    assert section == markdown.SECTIONS[page](REFERENCE), "run: python -m bench.markdown"


def test_the_performance_page_has_every_reference_figure() -> None:
    section = markdown.section_of(PERFORMANCE)
    for mode, subjects in REFERENCE.records.items():
        assert f"## {mode}: " in section
        for subject, record in subjects.items():
            if subject.startswith(("kernel", "pyvtep")):
                assert record.errors == {}
            for metric in record.figures:
                spread = REFERENCE.spread(mode, subject, metric)
                assert spread is not None
                assert f"| {spread.median:.{METRICS[metric].digits}f} " in section


def test_the_reference_is_a_file_for_readers() -> None:
    assert len(markdown.REFERENCE.read_text().splitlines()) < 320
    assert len(picture(markdown.REFERENCE).read_text().splitlines()) < 100


def test_the_source_distribution_has_the_documentation() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{page.name}" for page in ROOT.glob("*.md")} | {"/docs"} <= {*included}
