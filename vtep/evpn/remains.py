"""Entries of EVPN that no speaker looks after any more, and their removal by the daemon."""

import asyncio
from collections.abc import Iterable

from vtep.daemon.port import Port
from vtep.forwarding.fdb import Filter

_OF_EVPN = Filter(extern_learn=True)


async def remove_remains(ports: Iterable[Port]) -> None:
    """Remove all entries of EVPN from the FDBs and the neighbours of ports, in slices."""
    for port in ports:
        for page in port.fdb.pages():
            port.segment.flush(_OF_EVPN, page)
            await asyncio.sleep(0)  # Frames have their turn.
        if port.segment.neighbours is not None:
            port.segment.neighbours.flush(extern_learn=True)
