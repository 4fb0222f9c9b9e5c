"""Choose the few inputs of a corpus that reach all lines of vtep which the whole corpus reaches.

libFuzzer's own merge starts its executable again for each crash, which a Python module is not.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import vtep

_PACKAGE = str(Path(vtep.__file__).parent)

Arc = tuple[str, int, int]
"""A source file, and two lines of it of which the second followed the first."""


def merge(run: Callable[[bytes], None], found: Path, kept: Path) -> None:
    """Replace the inputs in `kept` by the fewest and shortest of both directories."""
    inputs = {path.read_bytes() for folder in (kept, found) for path in _files(folder)}
    chosen = choose({data: _arcs(run, data) for data in sorted(inputs)})
    for path in _files(kept):
        path.unlink()
    kept.mkdir(parents=True, exist_ok=True)
    for data in chosen:
        (kept / hashlib.sha1(data, usedforsecurity=False).hexdigest()[:12]).write_bytes(data)
    octets = sum(map(len, chosen))
    print(f"{len(chosen)} of {len(inputs)} inputs, {octets} octets, in {kept}")


def choose(reached: dict[bytes, set[Arc]]) -> list[bytes]:
    """Return inputs that reach together what all reach, short ones first (greedy set cover)."""
    missing: set[Arc] = set().union(*reached.values())
    chosen = []
    while missing:
        best = max(reached, key=lambda data: len(reached[data] & missing) / (len(data) + 32))
        chosen.append(best)
        missing -= reached[best]
    return chosen


def _files(folder: Path) -> Iterable[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _arcs(run: Callable[[bytes], None], data: bytes) -> set[Arc]:
    found: set[Arc] = set()
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_PACKAGE):
            return None
        if event == "line":
            found.add((name, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        run(data)
    finally:
        sys.settrace(None)
    return found
