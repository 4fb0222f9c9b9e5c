"""Periodic work: ageing, retries, path MTUs, counters. In slices: frames never wait long for it."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator

from vtep.counters import Drop
from vtep.daemon.drop_log import DropLog
from vtep.daemon.expected_drops import ExpectedDrops
from vtep.daemon.fast_path_loader import FastPathLoader
from vtep.daemon.host_watch import HostWatch
from vtep.daemon.parts import Parts
from vtep.daemon.port import Port

log = logging.getLogger("vtep")

_TICK_S = 1.0
"""Seconds between the end of one round and the start of the next."""

_SLICE_S = 0.0003
"""Seconds of work after which a round yields to the event loop, so that frames are forwarded."""

_ROUTE_CHECKS_PER_TICK = 16
"""Paths whose route is looked up in one round; each takes some 10 microseconds."""

_QUEUE_TICKS = 10
"""Rounds between two readings of the kernel's drop counters."""


def take_turns(suspects: Iterable[Port]) -> list[Port]:
    """Return the ports to send a probe for a loop: one for each bridge (see `forwarding.loops`).

    It is the one whose last probe is the oldest, and the lowest VNI of those that have sent none.
    """
    turns: dict[int, Port] = {}
    for port in sorted(
        suspects, key=lambda each: (each.segment.loops.probed, each.config.vni), reverse=True
    ):
        # A TAP that is on no bridge waits for no other.
        turns[port.attachment.bridge or -1 - port.config.vni] = port
    return list(turns.values())


class Housekeeping:
    """The timer of a VTEP, and its periodic work."""

    def __init__(self, parts: Parts, host_watch: HostWatch, fast_path: FastPathLoader) -> None:
        self._ports = parts.ports
        self._listeners = parts.listeners
        self._trunks = parts.trunks
        self._pool = parts.pool
        self._prober = parts.prober
        self._kernel_drops = parts.kernel_drops
        self._filters = parts.filters
        self._liveness = parts.liveness
        self._host_watch = host_watch
        self._fast_path = fast_path
        self._expected_drops = ExpectedDrops()
        self._drop_log = DropLog(unmatched=parts.unmatched)
        self._ticks = 0
        self._round = self._work()
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        """Start the timer, in the running event loop."""
        self._timer = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        """Do one slice of a round."""
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + _SLICE_S
        for _ in self._round:
            if time.perf_counter() >= end:
                self._timer = loop.call_soon(self._tick)  # After the descriptors that are ready.
                return
        self._round = self._work()
        self._timer = loop.call_later(_TICK_S, self._tick)

    def _work(self) -> Iterator[None]:
        """Do the work of one round, in steps of some ten microseconds each."""
        now = time.monotonic()
        suspects = []
        for port in tuple(self._ports):
            segment = port.segment
            while port.sweep(now):
                yield
            segment.storm.find_storms(now)
            segment.loops.unblock(now)
            segment.loops.look(segment.counters)
            if segment.loops.is_suspect and port.is_open:
                suspects.append(port)
            self._liveness.look(port, now)
            if port.place.namespace is not None:  # Its end causes no notification.
                port.on_link_changed()
            yield
        yield from self._liveness.finish(now)
        for port in take_turns(suspects):
            port.send_loop_probe(now)
            yield
        self._host_watch.reopen_sockets()
        for listener in self._listeners:
            listener.rearm()
            listener.tick()
        yield
        self._filters.tick()
        self._pool.refresh_routes(_ROUTE_CHECKS_PER_TICK)
        self._prober.tick(now)
        if self._fast_path.fast_path is not None:
            # What the prober has decided may differ from what their rows repeat.
            self._fast_path.fast_path.transmit.remove_superframes()
        yield
        self._ticks += 1
        if self._ticks % _QUEUE_TICKS == 0:
            yield from self._kernel_drops.counting()
        yield from self._note_drops(now)
        for line in self._drop_log.news(now):
            log.warning("%s", line)

    def _note_drops(self, now: float) -> Iterator[None]:
        """Note when each drop counter last increased, and what the log has to say about it."""
        self._kernel_drops.namespace.note_drops(now)
        self._drop_log.note("", self._kernel_drops.namespace)
        for listener in self._listeners:
            listener.demux.counters.note_drops(now)
            self._drop_log.note("", listener.demux.counters)
        for name, counters in self._trunks.counters():
            counters.note_drops(now)
            self._drop_log.note(f"dev {name}", counters)
        for port in tuple(self._ports):
            expected = self._expected(port, now)
            port.segment.counters.note_drops(now, expected)
            # Also if there is one VNI only: JSON and the journal have the VNI from the text.
            self._drop_log.note(f"vni {port.config.vni}", port.segment.counters, expected)
            yield

    def _expected(self, port: Port, now: float) -> tuple[Drop, ...]:
        """Return the drops of a segment that are no fault now."""
        if not port.config.evpn:
            return ()
        segment = port.segment
        return self._expected_drops.tick(
            segment.counters,
            now,
            has_remotes=bool(segment.remotes),
            members=port.fdb.members.hosts,
        )
