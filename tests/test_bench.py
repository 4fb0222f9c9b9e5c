"""The benchmark: search for the highest rate, evaluation, underlays, and one short run."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from bench.plan import plan
from bench.plot import draw
from bench.report import show
from bench.results import Run, Spread
from bench.subjects import (
    LEFT,
    ROOT,
    SUBJECTS,
    Choices,
    Kernel,
    PyvtepFast,
    PyvtepSlow,
    Subject,
)
from bench.targets import TARGETS, Target
from bench.underlay import CABLE, NIC, NOGRO, UNDERLAYS, VETH, Underlay
from bench.workloads import METRICS, WORKLOADS, Probe, search
from vtep.errors import VtepError
from vtep.testing.lab import Lab


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
            delivered *= 0.97
        return Probe(rate, sent, delivered, 1 - delivered / sent)


@pytest.mark.parametrize("start", [10, 3_000, 50_000, 1_000_000])
@pytest.mark.parametrize("capacity", [2_500, 50_000, 400_000])
def test_search_finds_the_rate_from_any_start(start: float, capacity: float) -> None:
    best, _, converged = search(Line(capacity), start, 100, 0.02)
    assert converged
    assert 0.98 * capacity <= best <= capacity


def test_search_is_short_from_a_start_that_is_nearly_right() -> None:
    _, probes, converged = search(Line(100_000), 90_000, 7, 0.08)
    assert converged
    assert len(probes) <= 5


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
    best, _, converged = search(lambda rate: Probe(rate, rate, 0, 1), 1000, 5, 0.02)
    assert (best, converged) == (0, False)


# --- results --------------------------------------------------------------------------------


@pytest.fixture
def run() -> Run:
    """Return three rounds in two modes, a round without a figure, and a subject that failed."""
    names = ("kernel", "pyvtep-fast", "ovs")
    run = Run(
        machine={"cpu": "A CPU", "cpus": "2 used", "kernel": "Linux"},
        versions={"iperf3": "3"},
        settings={"rounds": 3},
        modes={name: UNDERLAYS[name].label for name in ("nic", "veth")},
        labels={name: SUBJECTS[name].label for name in names},
    )
    for number, (kernel, fast) in enumerate(((8.0, 2.0), (4.0, 3.0), (10.0, 4.0)), 1):
        run.record("nic", "kernel").add(number, {"tcp1": kernel})
        run.record("nic", "pyvtep-fast").add(number, {"tcp1": fast, "memory": 170.0})
        run.record("veth", "ovs").add_error(number, "start: ovs-vswitchd is not installed")
    run.record("veth", "kernel").add(2, {"tcp1": 30.123456})
    run.record("veth", "pyvtep-fast").add(3, {"tcp1": 12.0})
    run.record("nic", "pyvtep-fast").add_remark(2, "udp64: the sender was the limit")
    return run


def test_spread_has_median_quartiles_and_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(3, 1, 2, 4, 5)
    assert Spread.of([7.0]) == Spread(7, 7, 7, 7, 7)


def test_ratio_is_the_median_of_ratios_within_each_round(run: Run) -> None:
    ratio = run.ratio("nic", ("pyvtep-fast", "tcp1"), ("kernel", "tcp1"))
    assert ratio is not None
    # The ratio of the medians would be 3 / 8.
    assert (ratio.median, ratio.low, ratio.high) == (0.4, 0.25, 0.75)
    # No round of this mode has both.
    assert run.ratio("veth", ("pyvtep-fast", "tcp1"), ("kernel", "tcp1")) is None


def test_results_survive_their_file_which_has_a_line_for_each_figure(
    run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "run.json"
    run.save(path)
    assert Run.load(path) == run
    lines = path.read_text().splitlines()
    (line,) = (line for line in lines if "30.12" in line)
    figure = json.loads(line.partition(": ")[2].rstrip(","))
    assert figure == {
        "median": 30.12,
        "quartiles": [30.12, 30.12],
        "range": [30.12, 30.12],
        "rounds": [None, 30.12],
    }
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a result"):
        Run.load(path)


def test_report_leads_with_nic_and_shows_ratios_and_failures(run: Run) -> None:
    output = io.StringIO()
    show(run, Console(file=output, width=118))
    said = output.getvalue()
    assert said.index("nic: ") < said.index("veth: ")
    assert "3.00 (2.00-4.00)" in said
    assert "0.40 K" in said
    assert "A plain veth flatters" in said
    assert "failed: start: ovs-vswitchd is not installed: veth, Open vSwitch userspace (ro" in said
    assert "udp64: the sender was the limit: nic, pyvtep, fast path (round 2)" in said
    rows = [line.split() for line in said.splitlines() if "≥" in line or "≤" in line]
    assert len(rows) == len(TARGETS)
    verdict = "nic TCP 1 flow, fast path / kernel 0.40 (0.25-0.75) ≥ 0.55 missed by 27%"
    assert verdict.split() in rows


@pytest.mark.parametrize(
    ("target", "value", "met", "miss"),
    [
        (Target("TCP", "nic", ("pyvtep-fast", "tcp1"), 0.5, ("kernel", "tcp1")), 0.4, False, 0.2),
        (Target("TCP", "nic", ("pyvtep-fast", "tcp1"), 3.0), 3.0, True, 0),
        (Target("RAM", "nic", ("pyvtep-fast", "memory"), 136, at_most=True), 170, False, 0.25),
    ],
)
def test_target(run: Run, target: Target, value: float, met: bool, miss: float) -> None:
    measure = target.measure(run)
    assert measure is not None
    assert measure.median == pytest.approx(value)
    assert target.met(measure.median) is met
    assert target.miss(measure.median) == pytest.approx(miss)


def test_plot_has_a_line_for_each_bar(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "run.svg"
    draw(run, path)
    bars = [line for line in path.read_text().splitlines() if "<rect x=" in line]
    assert [line.count(">3.00<") for line in bars] == [0, 1, 0, 0]


# --- plan -----------------------------------------------------------------------------------


def test_the_plan_has_what_the_targets_need() -> None:
    measured = {
        (case.underlay.name, case.subject.name, metric)
        for case in plan()
        for workload in case.workloads
        for metric in METRICS
        if metric.startswith(workload.replace("-", "_"))
    } | {
        (case.underlay.name, case.subject.name, metric)
        for case in plan()
        for metric in ("memory", "cpu_per_gb")
    }
    for target in TARGETS:
        for figure in (target.figure, target.baseline):
            assert figure is None or (target.mode, *figure) in measured, target


def test_a_choice_restricts_the_plan_or_goes_beyond_it() -> None:
    (case,) = plan(modes=["nogro"], subjects=["ovs"])
    assert case.workloads == tuple(WORKLOADS)
    cases = plan(subjects=["ovs", "kernel"], workloads=["rtt"])
    assert {case.workloads for case in cases} == {("rtt",)}
    assert [(case.underlay.name, case.subject.name) for case in cases] == [
        *(("nic", "kernel"), ("nic", "ovs"), ("nogro", "kernel")),
        *(("veth", "kernel"), ("veth", "ovs")),
    ]


# --- subjects -----------------------------------------------------------------------------------


class Shown:
    """A host on which `pyvtep vni show --json` prints the next of some states of the fast path."""

    def __init__(self, *states: tuple[str, str | None]) -> None:
        self._states = list(states)

    def run(self, *_command: str) -> str:
        state, reason = self._states.pop(0)
        return json.dumps([{"vni": 42, "fast_path": state, "fast_path_reason": reason}])


def test_the_fast_path_is_measured_only_while_it_is_on(tmp_path: Path) -> None:
    host = Shown(("compiling", "wait"), ("on", None), ("loading", None), ("off", "no numba"))
    end = PyvtepFast(cast("Any", host), LEFT, tmp_path, Choices())
    end.await_fast_path()
    with pytest.raises(VtepError, match="did not stay on"):
        end.verify()
    with pytest.raises(VtepError, match="the fast path of pyvtep is off: no numba"):
        end.verify()
    PyvtepSlow(cast("Any", Shown()), LEFT, tmp_path, Choices()).verify()


# --- on this machine ------------------------------------------------------------------------


def test_subject_with_a_missing_program(tmp_path: Path) -> None:
    class Missing(Kernel):
        needs = ("no-such-program",)

    subject = Subject("missing", "missing", Missing, Missing)
    with (
        pytest.raises(VtepError, match="no-such-program is not installed"),
        subject.running(tmp_path, VETH, Choices()),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_underlays_have_the_features_that_they_promise() -> None:
    with Lab() as lab:
        hosts = lab.host("a"), lab.host("b")
        lab.wire(*hosts, CABLE)
        for underlay in (NIC, NOGRO):
            for host in hosts:
                underlay.apply(host)
            (states,) = json.loads(hosts[0].run("ethtool", "--json", "-k", CABLE))
            assert states["generic-receive-offload"]["active"] is (underlay is NIC)
            assert not states["tcp-segmentation-offload"]["active"]
            assert not states["tx-udp_tnl-segmentation"]["active"]
        # A veth has no hardware. ethtool fails only if it could not change anything.
        with pytest.raises(VtepError, match="hw-tc-offload on had no effect"):
            Underlay("odd", "odd", {"gro": True, "hw-tc-offload": True}).apply(hosts[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_short_run_measures_every_kind_of_workload(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = (sys.executable, "-m", "bench", "--quick", "--output", str(path))
    choice = ("--only", "kernel,pyvtep-slow", "--mode", "nic")
    workloads = ("--workload", "tcp1,rtt-load,udp64x64")
    done = subprocess.run(
        [*command, *choice, *workloads],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    run = Run.load(path)
    for subject in ("kernel", "pyvtep-slow"):
        record = run.record("nic", subject)
        assert record.errors == {}
        for metric in ("tcp1", "machine_cpu_per_gb", "rtt_load_p99", "udp64x64"):
            assert run.spread("nic", subject, metric), (subject, metric)
    assert run.spread("nic", "pyvtep-slow", "cpu_per_gb")
    assert path.with_suffix(".svg").exists()
    assert "TCP 1 flow, no fast path / kernel" in done.stdout
