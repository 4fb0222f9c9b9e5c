"""The results of a run: a figure for each round, circumstances, and the JSON file."""

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from attrs import define, field, frozen

from bench.subjects import ROOT

RESULTS = ROOT / "bench" / "results"
_SCHEMA = 2

_DIGITS = 4
"""Significant digits in the file, which is more than any figure has."""

_DEPTH = 4
"""Levels of the file with a line for each entry: of the run, of its parts, of a mode, of a
subject. So the median, the spread and all rounds of a figure are one line."""


@frozen
class Spread:
    """Median, quartiles and extremes of the rounds."""

    median: float
    low: float
    lower_quartile: float
    upper_quartile: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        low, high = min(values), max(values)
        if len(values) == 1:
            return cls(low, low, low, high, high)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, lower, upper, high)


@define
class Record:
    """All rounds of one subject in one mode."""

    figures: dict[str, list[float | None]] = field(factory=dict)
    """A value for each round by metric; None if that round has none."""
    errors: dict[str, list[int]] = field(factory=dict)
    """Reasons for missing figures, with the rounds in which they occurred."""
    remarks: dict[str, list[int]] = field(factory=dict)
    """Remarks that qualify figures, with their rounds."""

    def add(self, number: int, figures: dict[str, float]) -> None:
        """Add the figures of a round, counted from 1."""
        for metric, value in figures.items():
            values = self.figures.setdefault(metric, [])
            values += [None] * (number - 1 - len(values))
            values.append(_rounded(value))

    def add_error(self, number: int, reason: str) -> None:
        self.errors.setdefault(reason, []).append(number)

    def add_remark(self, number: int, remark: str) -> None:
        self.remarks.setdefault(remark, []).append(number)


@define
class Run:
    """The records of all subjects in all modes, and the circumstances."""

    machine: dict[str, str]
    versions: dict[str, str]
    settings: dict[str, Any]
    modes: dict[str, str]
    """Names of the modes, with what they are, in order."""
    labels: dict[str, str]
    """Names of the subjects in tables and plots, in order."""
    started: str = field(factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    records: dict[str, dict[str, Record]] = field(factory=dict)
    """By mode, then by subject."""

    def record(self, mode: str, subject: str) -> Record:
        """Return the record of a subject in a mode, which is added if there is none."""
        return self.records.setdefault(mode, {}).setdefault(subject, Record())

    def values(self, mode: str, subject: str, metric: str) -> list[float | None]:
        record = self.records.get(mode, {}).get(subject)
        return record.figures.get(metric, []) if record is not None else []

    def spread(self, mode: str, subject: str, metric: str) -> Spread | None:
        values = [value for value in self.values(mode, subject, metric) if value is not None]
        return Spread.of(values) if values else None

    def ratio(self, mode: str, over: tuple[str, str], under: tuple[str, str]) -> Spread | None:
        """Return the ratio of two figures, each a subject and a metric, in one mode.

        Its rounds are ratios within a round, of figures measured within some minutes: what else
        the machine does changes more slowly than that, and mostly cancels out.
        """
        ratios = [
            top / bottom
            for top, bottom in zip(
                self.values(mode, *over), self.values(mode, *under), strict=False
            )
            if top is not None and bottom
        ]
        return Spread.of(ratios) if ratios else None

    def save(self, path: Path) -> None:
        """Write the file atomically, with one line for each figure."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        document = {
            "schema": _SCHEMA,
            "started": self.started,
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "modes": self.modes,
            "labels": self.labels,
            "records": {
                mode: {subject: _document_of(record) for subject, record in subjects.items()}
                for mode, subjects in self.records.items()
            },
        }
        unfinished.write_text(_format(document, _DEPTH) + "\n")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises: ValueError if it is not a result file of this version."""
        document = json.loads(path.read_text())
        if not isinstance(document, dict) or document.pop("schema", None) != _SCHEMA:
            raise ValueError(f"{path} is not a result of this version of the benchmark")
        document["records"] = {
            mode: {subject: _record_of(entry) for subject, entry in subjects.items()}
            for mode, subjects in document["records"].items()
        }
        return cls(**document)


def _document_of(record: Record) -> dict[str, Any]:
    """Return the entry of a record. Only `rounds` is read again; the rest is for readers."""
    entry: dict[str, Any] = {}
    for metric, values in record.figures.items():
        spread = Spread.of([value for value in values if value is not None])
        entry[metric] = {
            "median": _rounded(spread.median),
            "quartiles": [_rounded(spread.lower_quartile), _rounded(spread.upper_quartile)],
            "range": [_rounded(spread.low), _rounded(spread.high)],
            "rounds": values,
        }
    for name in ("errors", "remarks"):
        if texts := getattr(record, name):
            entry[name] = texts
    return entry


def _record_of(entry: dict[str, Any]) -> Record:
    errors, remarks = entry.pop("errors", {}), entry.pop("remarks", {})
    figures = {metric: figure["rounds"] for metric, figure in entry.items()}
    return Record(figures, errors, remarks)


def _rounded(value: float) -> float:
    """Round a positive figure to its significant digits."""
    return round(value, _DIGITS - 1 - math.floor(math.log10(value))) if value > 0 else value


def _format(value: Any, depth: int, indent: str = "") -> str:
    """Return JSON with a line for each entry of the outer `depth` levels."""
    if not isinstance(value, dict) or not value or not depth:
        return json.dumps(value, ensure_ascii=False)
    deeper = indent + " "
    entries = [
        f"{deeper}{json.dumps(key, ensure_ascii=False)}: {_format(entry, depth - 1, deeper)}"
        for key, entry in value.items()
    ]
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


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
