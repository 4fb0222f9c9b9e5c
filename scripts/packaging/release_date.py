"""The date of the newest release in CHANGELOG.md, which dates all that a build makes.

It is that, not the date of a commit, so that a build from the sdist makes the same files.

    python scripts/packaging/release_date.py     print it in seconds, for SOURCE_DATE_EPOCH
"""

import datetime
import re
from pathlib import Path

_HEADING = re.compile(r"^## (\S+) - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)


def release_date(changelog: Path) -> datetime.date:
    """Return the date of the first heading of the form "## 1.2.3 - 2026-01-31"."""
    found = _HEADING.search(changelog.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"{changelog}: no release in it; write a heading ## VERSION - YYYY-MM-DD")
    return datetime.date.fromisoformat(found[2])


if __name__ == "__main__":
    date = release_date(Path(__file__).resolve().parents[2] / "CHANGELOG.md")
    print(int(datetime.datetime.combine(date, datetime.time(), datetime.UTC).timestamp()))
