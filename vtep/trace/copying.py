"""Overlays and copies of the attributes of an original, with which its replica begins."""

import copy
from collections import deque
from typing import Any

from vtep.forwarding.fdb import Entry
from vtep.forwarding.storm import StormMeter
from vtep.forwarding.suppress import Neighbour
from vtep.ratelimit import TokenBucket
from vtep.trace.overlay import Overlay

_COPIED_DEEPLY = (StormMeter, TokenBucket)
_COPIED = (Entry, Neighbour, deque, list, set)


def own(value: Any) -> Any:
    """Return a value that a replica may change, in place of that of the original."""
    if isinstance(value, dict | Overlay):
        return Overlay(value, own)
    if isinstance(value, _COPIED_DEEPLY):
        return copy.deepcopy(value)
    return copy.copy(value) if isinstance(value, _COPIED) else value


def adopt(replica: object, original: object, *but: str) -> None:
    """Give a replica the attributes of its original, except some."""
    for name, value in vars(original).items():
        if name not in but:
            vars(replica)[name] = own(value)
