"""A second run of a test module, in which Python itself runs the source of the fast path.

Compiled and not compiled, the same source can differ: in the types of integers, and in what a slice
or a division does with unusual values.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
"""False in the second run."""


def run_again(module: str) -> None:
    """Run the tests of a module without compilation, with few examples, unless this is that run."""
    if not COMPILED:
        return
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            *("--hypothesis-profile=fast", module),
        ],
        cwd=ROOT,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
