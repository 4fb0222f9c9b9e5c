"""What a finding is."""

from collections.abc import Iterable
from enum import StrEnum

from attrs import frozen


class Severity(StrEnum):
    """How bad a finding is. A note is nothing wrong: it says what could not be known."""

    PROBLEM = "problem"
    WARNING = "warning"
    NOTE = "note"


@frozen
class Finding:
    """Something that is wrong, or will be: what, why that matters, and what mends it."""

    severity: Severity
    about: str
    """The remote, device or counter."""
    title: str
    explanation: str = ""
    fix: str = ""
    earlier: bool = False
    """Whether it tells of something that was wrong before, and is not seen now."""


def wrong(found: Iterable[Finding]) -> bool:
    """Return whether there is anything to be mended."""
    return any(finding.severity is not Severity.NOTE for finding in found)


def problem(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    """Return a finding without whose remedy something does not work."""
    return Finding(Severity.PROBLEM, about, title, explanation, fix)


def warning(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    """Return a finding that may keep something from working."""
    return Finding(Severity.WARNING, about, title, explanation, fix)


def note(about: str, title: str, explanation: str = "", fix: str = "") -> Finding:
    """Return a finding that is nothing wrong."""
    return Finding(Severity.NOTE, about, title, explanation, fix)
