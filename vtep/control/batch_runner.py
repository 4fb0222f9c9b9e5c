"""Makes the changes of a batch in short slices, between which frames are forwarded."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from vtep.control.batches import CHANGES_MAX
from vtep.control.params import Params
from vtep.control.schema import BatchError, BatchResult
from vtep.errors import ConfigError, VtepError, shown

_SLICE_S = 0.0005
"""Seconds of changes, after which frames have their turn: 10 to 20 changes."""

Change = Callable[[Params], None]


async def run_batch(
    given: Params, verbs: Mapping[str, tuple[Change, frozenset[str]]]
) -> BatchResult:
    """Make the changes of a request, each of them or not at all.

    `verbs` has the function of each verb, and the parameters that it takes. It raises VtepError for
    a change that it refuses, which is noted in the result; the others are made.

    Raises: ConfigError if the request is not a list of at most `CHANGES_MAX` changes.
    """
    changes = given.changes(CHANGES_MAX)
    errors: list[BatchError] = []
    until = time.perf_counter() + _SLICE_S
    for index, change in enumerate(changes):
        try:
            _make(change, verbs)
        except VtepError as error:
            errors.append({"index": index, "error": str(error)})
        if time.perf_counter() >= until:
            await asyncio.sleep(0)
            until = time.perf_counter() + _SLICE_S
    return {"done": len(changes) - len(errors), "errors": errors}


def _make(change: Any, verbs: Mapping[str, tuple[Change, frozenset[str]]]) -> None:
    """Make one change. Raises: VtepError."""
    if not isinstance(change, dict):
        raise ConfigError("a change must be an object")
    found = verbs.get(verb) if isinstance(verb := change.get("verb"), str) else None
    if found is None:
        raise ConfigError(f"verb: must be one of {', '.join(verbs)}")
    function, takes = found
    if not change.keys() <= takes:
        unknown = next(name for name in change if name not in takes)
        known = ", ".join(sorted(takes - {"verb"}))
        raise ConfigError(f"{shown(unknown)}: is not a parameter of {verb}, which takes {known}")
    function(Params(change))
