"""The search for a path MTU. No I/O: the caller sends the probes."""

from collections.abc import Callable

PathProbe = Callable[[int], tuple[bool, int | None]]
"""A function that sends a packet of a size in octets. It returns True if the packet arrived, and
the MTU that an ICMP error reports, if there was one."""


def find_path_mtu(low: int, high: int, probe: PathProbe) -> int | None:
    """Find the largest packet from `low` to `high` octets that arrives.

    The search is binary and starts at `high`, so a path without a bottleneck takes one probe. A
    reported MTU is tried next, as in path MTU discovery (RFC 1191), but counts only after a probe
    of that size has arrived: an ICMP error may be forged or wrong.

    Returns: the size in octets, or None if no size arrives.
    """
    best, size = None, high
    while low <= high:
        arrived, reported = probe(size)
        if arrived:
            best, low = size, size + 1
        else:
            high = size - 1
        if reported is not None and low <= reported <= high:
            arrived, _ = probe(reported)
            if arrived:
                return reported
            high = reported - 1
        size = (low + high + 1) // 2
    return best
