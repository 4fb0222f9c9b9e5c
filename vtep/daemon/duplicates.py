"""Duplicate MACs and loops: the search for loops, and the log of both."""

import logging
import os
import time
from contextlib import suppress

from vtep.forwarding.fdb import Entry, Fdb, Remote
from vtep.forwarding.segment import Segment
from vtep.io.interfaces import TapDevice
from vtep.ratelimit import LineLimit
from vtep.wire import virtio
from vtep.wire.ethernet import format_mac

log = logging.getLogger("vtep")

_INTERVAL_S, _BURST = 10.0, 5
"""Seconds between two lines, and how many may come at once: a loop makes many MACs move."""


def log_held_macs(fdb: Fdb) -> None:
    """Log each MAC of a segment that begins to be held, at a limited rate."""
    lines = LineLimit(_INTERVAL_S, _BURST)

    def on_held(entry: Entry, remote: Remote) -> None:
        left_out = lines.admit(time.monotonic())
        if left_out is not None:
            log.warning(
                "vni %d: %s is held at %s for %.0f s: it has moved more than %d times in 180 s, "
                "last to %s: two hosts have this MAC, or the hosts are connected by another path, "
                "too (bridge link shows the ports); pyvtep fdb del releases it%s",
                *(fdb.vni, format_mac(entry.mac), entry.destinations[0].host),
                *(fdb.moves.hold, fdb.moves.limit, remote.host, left_out),
            )

    fdb.on_held = on_held


def protect_from_loops(segment: Segment) -> None:
    """Give a segment the source MAC of its probes, and log each loop that is found."""
    # Unicast, and locally administered (IEEE 802, section 8.4).
    segment.set_probe_mac(b"\x02" + os.urandom(5))
    lines = LineLimit(_INTERVAL_S, _BURST)

    def on_changed(what: str, host: str, seconds: float) -> None:
        left_out = lines.admit(time.monotonic(), what)
        if left_out is None:
            return
        if what == "unblocked":
            log.info(
                "vni %d: flooding with %s begins again after a loop%s",
                *(segment.vni, host, left_out),
            )
        else:
            log.warning(
                "vni %d: loop through %s: the bridge of the TAP reaches it by another path, too; "
                "flooding with it is stopped for %.0f s; remove the other path (bridge link shows "
                "the ports), or run STP on the bridges%s",
                *(segment.vni, host, seconds, left_out),
            )

    segment.loops.watchers.append(on_changed)


def send_loop_probe(segment: Segment, tap: TapDevice, now: float) -> None:
    """Write a probe to the TAP."""
    with suppress(OSError):  # A TAP that is down or full. A loop will be suspected again.
        tap.write((virtio.PLAIN, segment.loops.probe(now)))
        segment.counters.loop_probes += 1
