"""Batches of changes: how a client splits them into requests that a server takes."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

from vtep.control.jsonrpc import LINE_MAX

CHANGES_MAX: Final = 1000
"""Changes in one request `fdb.batch` or `neigh.batch`."""

_HEAD = 512
"""Octets of a request besides its changes, at most."""

_Change = TypeVar("_Change", bound=Mapping[str, Any])


def split(changes: Iterable[_Change]) -> Iterator[list[_Change]]:
    """Yield changes in their order, in lists that fit into one request each.

    A request has at most `CHANGES_MAX` changes, and its line `LINE_MAX` octets. A change that is
    too large by itself is yielded alone, and will be refused.
    """
    batch: list[_Change] = []
    octets = _HEAD
    for change in changes:
        length = len(json.dumps(change, separators=(",", ":"))) + 1
        if batch and (len(batch) == CHANGES_MAX or octets + length > LINE_MAX):
            yield batch
            batch, octets = [], _HEAD
        batch.append(change)
        octets += length
    if batch:
        yield batch
