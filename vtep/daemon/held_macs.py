"""The log of MACs that are held because they move too often."""

import logging
import time

from vtep.forwarding.fdb import Entry, Fdb, Remote
from vtep.ratelimit import TokenBucket
from vtep.wire.ethernet import format_mac

log = logging.getLogger("vtep")

_RATE, _BURST = 0.1, 5.0
"""Lines a second, and how many may come at once: a loop makes many MACs move."""


def log_held_macs(fdb: Fdb) -> None:
    """Log each MAC of a segment that begins to be held, at a limited rate."""
    lines = TokenBucket(_RATE, _BURST)

    def on_held(entry: Entry, remote: Remote) -> None:
        if lines.take(time.monotonic()):
            log.warning(
                "vni %d: %s is held at %s for %.0f s: it has moved more than %d times in 180 s, "
                "last to %s: two hosts have this MAC, or the hosts are connected by another path, "
                "too (bridge link shows the ports); pyvtep fdb del releases it",
                *(fdb.vni, format_mac(entry.mac), entry.destinations[0].host),
                *(fdb.moves.hold, fdb.moves.limit, remote.host),
            )

    fdb.on_held = on_held
