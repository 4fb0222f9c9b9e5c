"""The systemd units of pyvtep, as texts: made from templates, and told from edited ones. No I/O
but for the templates, which are data of this package.

The first line of an installed unit has a digest of the rest. So a unit that an administrator has
edited is known from one that another version of pyvtep has written.
"""

from enum import Enum
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Final

UNITS: Final = (
    *("pyvtep.service", "pyvtep@.service"),
    *("pyvtep-docker-plugin.service", "pyvtep-exporter.service"),
)
"""The names of the units, which are those of their templates."""

_MARK = "# Written by pyvtep service install; to change it: systemctl edit {}. Digest: "

_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
"""The directories that ProtectHome= hides (systemd.exec(5))."""


class UnitState(Enum):
    """The state of an installed unit, with its description."""

    ABSENT = "not installed"
    CURRENT = "installed"
    OUTDATED = "installed by another version of pyvtep, or for another path of it"
    EDITED = "edited, or not written by pyvtep"


def render(name: str, command: str, *, in_home: bool = False) -> str:
    """Return the text of a unit.

    `command` is the absolute command line of pyvtep. `in_home` says that a part of the program is
    in a home directory, which is hidden otherwise.
    """
    folder = files("vtep.service").joinpath("units")
    text = folder.joinpath(name).read_text()
    text = text.replace("@COMMON@\n", folder.joinpath("common.conf").read_text() + "\n")
    text = text.replace("@PROTECT_HOME@", "read-only" if in_home else "yes")
    # A percent sign begins a specifier in a unit.
    text = text.replace("@EXECUTABLE@", command.replace("%", "%%"))
    return f"{_MARK.format(name)}{_digest(text)}\n{text}"


def examine(name: str, found: str | None, expected: str) -> UnitState:
    """Return the state of a unit, given its file (None without one) and what would be written."""
    if found is None:
        return UnitState.ABSENT
    if found == expected:
        return UnitState.CURRENT
    mark, _, rest = found.partition("\n")
    is_unchanged = mark == _MARK.format(name) + _digest(rest)
    return UnitState.OUTDATED if is_unchanged else UnitState.EDITED


def is_in_home(path: Path) -> bool:
    """Return whether a path is in a directory that ProtectHome= hides."""
    return any(path.is_relative_to(home) for home in _HOMES)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
