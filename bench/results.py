"""The results of a run: samples, circumstances, and the JSON file."""

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from attrs import asdict, define, field, frozen

from bench.subjects import ROOT

RESULTS = ROOT / "bench" / "results"
_SCHEMA = 1


@frozen
class Spread:
    """Median, minimum and maximum of samples."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: list[float]) -> Self:
        return cls(statistics.median(samples), min(samples), max(samples))


@define
class Round:
    """The samples of one subject in one round."""

    figures: dict[str, float] = field(factory=dict)
    details: dict[str, Any] = field(factory=dict)
    errors: dict[str, str] = field(factory=dict)
    """Reasons for missing figures, by workload, or by "start" if the subject did not start."""


@define
class Run:
    """All rounds of all subjects, and the circumstances."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    labels: dict[str, str]
    """Names of the subjects in tables and plots, in order."""
    started: str = field(factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    rounds: dict[str, list[Round]] = field(factory=dict)
    schema: int = _SCHEMA

    def samples(self, subject: str, metric: str) -> list[float]:
        turns = self.rounds.get(subject, [])
        return [turn.figures[metric] for turn in turns if metric in turn.figures]

    def spread(self, subject: str, metric: str) -> Spread | None:
        samples = self.samples(subject, metric)
        return Spread.of(samples) if samples else None

    def ratio(self, over: tuple[str, str], under: tuple[str, str]) -> Spread | None:
        """Return the ratio of two figures, each a subject and a metric.

        The median is the ratio of the medians. The spread is that of the ratios within each round,
        of figures that were measured within a minute or so.
        """
        tops, bottoms = self.spread(*over), self.spread(*under)
        if tops is None or bottoms is None or not bottoms.median:
            return None
        median = tops.median / bottoms.median
        each = [
            one.figures[over[1]] / other.figures[under[1]]
            for one, other in zip(self.rounds[over[0]], self.rounds[under[0]], strict=False)
            if over[1] in one.figures and other.figures.get(under[1])
        ]
        return Spread(median, min([*each, median]), max([*each, median]))

    def failure(self, subject: str) -> str | None:
        """Return the reason if a subject has no figure at all."""
        turns = self.rounds.get(subject, [])
        if any(turn.figures for turn in turns):
            return None
        reasons = [reason for turn in turns for reason in turn.errors.values()]
        return reasons[-1] if reasons else "did not have its turn"

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises: ValueError if it is no result file."""
        document = json.loads(path.read_text())
        if not isinstance(document, dict) or document.get("schema") != _SCHEMA:
            raise ValueError(f"{path} is no result of this version of the benchmark")
        document["rounds"] = {
            subject: [Round(**turn) for turn in turns]
            for subject, turns in document["rounds"].items()
        }
        return cls(**document)


def new_file() -> Path:
    """Return the path for the results of a run that starts now."""
    return RESULTS / f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}.json"


def describe_machine(cpus: tuple[int, ...]) -> dict[str, str]:
    """Describe the machine: everything that affects speed."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": f"{len(cpus)} used ({', '.join(map(str, cpus))}) of {os.cpu_count()}",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "distribution": _distribution(),
        "load": f"{os.getloadavg()[0]:.2f} before the start",
    }


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"
