"""Packages that tests build with the scripts of the project, once for all workers."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

DEADLINE = 1000.0
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


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder whose content the first of several workers makes."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a worker that failed
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder
