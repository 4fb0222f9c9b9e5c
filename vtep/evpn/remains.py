"""Entries of EVPN that no speaker looks after any more, and their removal by the daemon."""

from collections.abc import Iterable

from vtep.daemon.port import Port
from vtep.forwarding.fdb import Filter


def remove_remains(ports: Iterable[Port]) -> int:
    """Remove all entries of EVPN from the FDBs and the neighbours of ports.

    Returns: their number.
    """
    count = 0
    for port in ports:
        count += port.fdb.flush(Filter(extern_learn=True))
        if port.segment.neighbours is not None:
            count += port.segment.neighbours.flush(extern_learn=True)
    return count
