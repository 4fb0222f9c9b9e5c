"""Findings of the doctor: what is wrong, why it matters, and how to fix it."""

from collections.abc import Iterable
from enum import StrEnum

from attrs import frozen


class Severity(StrEnum):
    """The severity of a finding, the worst first.

    A problem keeps something from working, and a warning may. A note is not a fault: it reports
    what could not be examined, what was wrong earlier, or what is slow.
    """

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


@frozen
class Finding:
    """A fault, or a note."""

    severity: Severity
    about: str
    """The remote, device or counter."""
    title: str
    explanation: str = ""
    fix: str = ""
    earlier: bool = False
    """True for a fault that occurred before, and is not seen now."""


def has_faults(findings: Iterable[Finding]) -> bool:
    """Return True if any finding is more than a note."""
    return any(finding.severity is not Severity.NOTE for finding in findings)


def problem(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    """Return a finding about something that does not work."""
    return Finding(Severity.PROBLEM, about, title, explanation, fix)


def warning(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    """Return a finding about something that may not work."""
    return Finding(Severity.WARNING, about, title, explanation, fix)


def note(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    """Return a finding that is not a fault."""
    return Finding(Severity.NOTE, about, title, explanation, fix)
