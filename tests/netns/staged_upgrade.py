"""Upgrades that a test can hold at any step.

`Stages` makes a program that is pyvtep, but for this (see `staged_pyvtep`): at a stage for which
there is a file `hold-STAGE`, a process writes its ID into the file `at-STAGE`, and stops there
until the former is removed. Nothing else runs in that process meanwhile. The stages are:

- `connect`: the new process has loaded everything, and is about to ask for the handover
- `build`: it has got the snapshot, and is about to open its ports
- KIND and KIND-sent: either process is about to send a message of this kind, or has sent it

Other files have the value of a deadline in seconds.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.netns.hosts import DEADLINE, Pyvtep, wait_until

REPOSITORY = Path(__file__).parents[2]


class Stages:
    """The test's side: it holds the processes of an upgrade, and lets them go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.program = folder / "pyvtep"
        self.program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
            f"from tests.netns.staged_pyvtep import main\nmain({str(folder)!r})\n"
        )
        self.program.chmod(0o755)

    def hold(self, stage: str) -> Self:
        """Hold each process that comes to a stage from now on."""
        (self._folder / f"at-{stage}").unlink(missing_ok=True)
        (self._folder / f"hold-{stage}").touch()
        return self

    def reached(self, stage: str) -> int:
        """Wait until a process is held at a stage. Returns: its ID."""
        at = self._folder / f"at-{stage}"
        wait_until(at.exists, f"a process at the stage {stage}", 3 * DEADLINE)
        return int(at.read_text())

    def go_on(self, stage: str) -> None:
        """Release the process that is held at a stage, and hold none there any more."""
        (self._folder / f"hold-{stage}").unlink()

    @contextmanager
    def deadline(self, name: str, seconds: float) -> Iterator[None]:
        """Change a deadline meanwhile."""
        path = self._folder / name
        path.write_text(str(seconds))
        yield
        path.unlink()


def has_ended(pid: int) -> bool:
    """Return whether a process has ended; it may be a zombie, as a test reaps no orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children(pid: int) -> list[int]:
    """Return the children of a process, with those that are zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def leftovers(vtep: Pyvtep) -> list[str]:
    """Return the names of the files that an upgrade has left beside the control socket."""
    return [
        path.name
        for path in vtep.control.parent.iterdir()
        if path.suffix in (".takeover", ".error") or path.name.startswith(".")
    ]
