"""Keeps Python's cyclic garbage collector from stalling the data path.

It looks at every object that lives, and a million FDB entries make that a tenth of a second, at a
moment that nobody chose. None of what forwarding leaves behind is cyclic, so hardly anything is to
be found. Here it runs at moments of ours, and what has become too much to look at is exempted.
"""

import asyncio
import gc
import time

_EVERY = 1.0
"""Seconds between two runs."""

_YOUNG_MAX = 5_000
"""Objects made since the last run that can be looked at in much less than `_STALL_MAX`."""

_STALL_MAX = 0.0005
"""Seconds that a run may take, before what it looked at is exempted from the next."""


async def collect_gently() -> None:
    """Take the collector over for the rest of the process; runs until it is cancelled."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        while True:
            await asyncio.sleep(_EVERY)
            _collect()
    finally:
        gc.enable()


def _collect() -> None:
    if gc.get_count()[0] <= _YOUNG_MAX:
        begin = time.perf_counter()
        gc.collect()
        if time.perf_counter() - begin <= _STALL_MAX:
            return
    gc.freeze()
