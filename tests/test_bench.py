"""The benchmark: search for the highest rate, evaluation, and tunnels that misbehave."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from bench.report import show
from bench.results import Round, Run
from bench.subjects import SUBJECTS, Choices, Pyvtep, Subject
from bench.targets import TARGETS, Target
from bench.workloads import METRICS, Probe, search
from vtep.errors import VtepError


class Line:
    """A tunnel of a capacity, with a sender of a maximum rate, in packets per second."""

    def __init__(self, capacity: float, sender: float = 1e9, accidents: int = 0) -> None:
        self.capacity = capacity
        self.sender = sender
        self.accidents = accidents
        self.probes = 0

    def __call__(self, rate: float) -> Probe:
        self.probes += 1
        sent = min(rate, self.sender)
        delivered = min(sent, self.capacity)
        if self.accidents:
            self.accidents -= 1
            delivered *= 0.95
        return Probe(rate, sent, delivered, 1 - delivered / sent, 0)


@pytest.mark.parametrize("start", [10, 3_000, 50_000, 1_000_000])
@pytest.mark.parametrize("capacity", [2_500, 50_000, 400_000])
def test_search_finds_the_rate_from_any_start(start: float, capacity: float) -> None:
    best, _, converged = search(Line(capacity), start, 100, 0.02)
    assert converged
    assert 0.98 * capacity <= best <= capacity


def test_search_is_bounded() -> None:
    line = Line(1e8)
    best, probes, converged = search(line, 100, 7, 0.02)
    assert (len(probes), line.probes, converged) == (7, 7, False)
    assert best == probes[-1].delivered


def test_search_ends_at_the_limit_of_the_sender() -> None:
    best, _, converged = search(Line(1e9, sender=70_000), 50_000, 20, 0.02)
    assert converged
    assert best == 70_000


def test_search_repeats_a_probe_with_a_small_loss() -> None:
    best, _, converged = search(Line(50_000, accidents=1), 40_000, 30, 0.02)
    assert converged
    assert best >= 49_000


def test_search_of_a_tunnel_that_carries_nothing() -> None:
    best, _, converged = search(lambda rate: Probe(rate, rate, 0, 1, 0), 1000, 5, 0.02)
    assert (best, converged) == (0, False)


@pytest.fixture
def run() -> Run:
    """Return three rounds of two subjects, and one that did not start."""
    run = Run(
        machine={"cpu": "A CPU", "cpus": "2 used", "kernel": "Linux"},
        versions={"iperf3": "3"},
        settings={"rounds": 3},
        labels={"pyvtep": "pyvtep", "ovs": "Open vSwitch", "tinc": "tinc"},
    )
    run.rounds = {
        "pyvtep": [Round({"tcp1": speed, "memory": 90.0}) for speed in (3.0, 9.0, 4.0)],
        "ovs": [Round({"tcp1": speed}) for speed in (1.0, 2.0, 0.5)],
        "tinc": [Round(errors={"start": "tincd is not installed"})] * 3,
    }
    return run


def test_ratio_is_of_medians_and_spread_of_rounds(run: Run) -> None:
    ratio = run.ratio(("pyvtep", "tcp1"), ("ovs", "tcp1"))
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == (4.0, 3.0, 8.0)
    assert run.ratio(("pyvtep", "tcp1"), ("tinc", "tcp1")) is None


def test_results_survive_their_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.json"
    run.save(path)
    assert Run.load(path) == run
    path.write_text("[]")
    with pytest.raises(ValueError, match="no result"):
        Run.load(path)


def test_report_shows_failures(run: Run) -> None:
    output = io.StringIO()
    show(run, Console(file=output, width=118))
    said = output.getvalue()
    assert "tinc failed: tincd is not installed" in said
    assert "4.00 (3.00-9.00)" in said
    verdicts = {line.split("  ")[1].strip(): line for line in said.splitlines() if "≥" in line}
    assert "missed by 43%" in verdicts["TCP 1 flow / Open vSwitch"]
    assert "not measured" in verdicts["UDP 64 B / Open vSwitch"]


def test_targets_that_are_limits(run: Run) -> None:
    limit = Target("memory", ("pyvtep", "memory"), 80, at_most=True)
    measured = limit.measure(run)
    assert measured is not None
    assert not limit.met(measured.median)
    assert limit.miss(measured.median) == pytest.approx(0.125)


def test_targets_name_what_is_measured() -> None:
    subjects = {subject.name for subject in SUBJECTS}
    for target in TARGETS:
        for figure in (target.figure, target.baseline):
            if figure is not None:
                assert figure[0] in subjects
                assert figure[1] in METRICS


def test_subject_with_a_missing_program(tmp_path: Path) -> None:
    class Missing(Pyvtep):
        needs = ("no-such-program",)

    subject = Subject("missing", "missing", Missing, Missing)
    with (
        pytest.raises(VtepError, match="no-such-program is not installed"),
        subject.running(tmp_path, Choices()),
    ):
        pass
