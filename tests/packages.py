"""Packages that tests build with the scripts of the project, once for all workers."""

import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

DEADLINE = 300.0
"""Seconds for a step that installs packages on a busy machine."""


def run(*command: str | Path, check: bool = True, **options: Any) -> str:
    """Run a command. Returns: its standard output. Fails with all of its output."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        **options,
    )
    assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build(source: Path, folder: Path, **environ: str) -> Path:
    """Build the sdist and the wheel of a source tree into a folder. Returns: the wheel."""
    run(source / "scripts/build", folder, env={**os.environ, **environ})
    (wheel,) = folder.glob("*.whl")
    return wheel
