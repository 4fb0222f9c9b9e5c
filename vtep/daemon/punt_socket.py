"""The punt path of a listener: datagrams that its ingress filter rejects, at a limited rate.

The kernel steers datagrams from unknown sources, and those that arrived through an overlay device,
to a second socket (see `vtep.io.ingress_guard`). It is read within a budget: at low rates, each
datagram passes the demux like any other, and is counted and logged with its reason. In a flood,
the queue of the second socket overflows, and the first one is not affected.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from vtep.forwarding.demux import Demux
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.io.addresses import device_name
from vtep.io.binding import Binding
from vtep.io.error_queue import ICMP_ERRORS, ReturnedDatagram
from vtep.io.ingress_guard import IngressGuard
from vtep.io.interfaces import Received
from vtep.io.receiver import UdpReceiver
from vtep.ratelimit import LineLimit

log = logging.getLogger("vtep")

_DATAGRAMS_PER_TICK = 500
"""Datagrams that are read between two calls of `tick`: some 5 ms of work."""

_BATCH = 32
"""Datagrams that are read before other descriptors have their turn."""

_SUSPECTS_MAX = 16
"""Denied devices that are remembered with a known source, until `suspects` is taken."""

_DATAGRAM_MAX = 1 << 16

Deliver = Callable[[memoryview, Received, float], None]
"""Pass a datagram to the demux: its octets, how it was received, and the time."""

Report = Callable[[Iterable[ReturnedDatagram]], None]
"""Count datagrams of the receiver that came back as ICMP errors."""


class PuntSocket:
    """The second socket beside a receiver, and the filter that steers datagrams to it.

    The filter may lag behind the FDB, and nothing is lost by that: the demux decides about each
    datagram of the second socket too. Only those that arrived on a denied device are dropped here.
    `inherited` is the descriptor of a second socket that another process has opened.
    """

    def __init__(
        self, demux: Demux, deliver: Deliver, report: Report, inherited: int | None = None
    ) -> None:
        self._demux = demux
        self._inherited = inherited
        self._deliver = deliver
        self._report = report
        self._guard: IngressGuard | None = None
        self._filter: IngressFilter | None = None
        self._hosts: frozenset[str] = frozenset()
        self._refused = False
        self._lines = LineLimit()
        self._budget = _DATAGRAMS_PER_TICK
        self._reading = self._is_paused = False
        self._buffer = memoryview(bytearray(_DATAGRAM_MAX))
        self._drops = 0
        self._discarded = 0
        self.suspects: dict[int, str] = {}
        """A known source whose datagrams arrived on a denied device, by device: the underlay
        may be routed over it by now."""

    @property
    def fd(self) -> int | None:
        """The descriptor of the second socket; None if there is none."""
        return self._guard.socket.fileno() if self._guard is not None else self._inherited

    @property
    def receivers(self) -> list[UdpReceiver]:
        """The second socket as a receiver, if there is one, for callers that set its options."""
        return [UdpReceiver(self._guard.socket)] if self._guard is not None else []

    def update(
        self, receiver: socket.socket, binding: Binding, wanted: IngressFilter, hosts: Iterable[str]
    ) -> None:
        """Steer what the filter does not accept to the second socket, if the kernel can.

        `hosts` are the sources that the configuration or the FDB names.
        """
        self._hosts = frozenset(hosts)
        if wanted == self._filter:
            return
        try:
            if self._guard is None:
                inherited, self._inherited = self._inherited, None
                self._guard = IngressGuard(receiver, binding, inherited)
                self._drops = 0
                self._start_reading()
            self._guard.apply(wanted)
        except OSError as error:
            self.close()
            if not self._refused:
                self._refused = True
                log.warning(
                    "no ingress filter on UDP port %d: the kernel refused it (%s): a flood from an "
                    "unknown source can starve other traffic, and guests can forge VXLAN; filter "
                    "with nftables, or give --dev",
                    *(receiver.getsockname()[1], error.strerror),
                )
            return
        self._filter = wanted

    def pause(self) -> None:
        """Leave all datagrams in the second socket until `resume`."""
        self._is_paused = True
        self._stop_reading()

    def resume(self) -> None:
        """Read again; the next `update` applies the filter, whatever it was before."""
        self._is_paused = False
        self._filter = None
        self._start_reading()

    def release(self) -> None:
        """Close the second socket, whose filter stays for another process that has it, too."""
        if self._guard is not None:
            self._stop_reading()
            self._guard.release()
            self._guard = None

    def close(self) -> None:
        """Remove the filter and close the second socket. The next `update` makes new ones."""
        self._filter = None
        if self._guard is not None:
            self._stop_reading()
            self.read_drops()
            self._guard.close()
            self._guard = None

    def _start_reading(self) -> None:
        if self._guard is not None and not self._reading and not self._is_paused:
            self._reading = True
            fd = self._guard.socket.fileno()
            asyncio.get_running_loop().add_reader(fd, self._on_readable, self._guard)

    def _stop_reading(self) -> None:
        if self._guard is not None and self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._guard.socket.fileno())

    def _rearm(self) -> None:
        """Register the socket with the event loop again: uvloop drops it after an EPOLLERR."""
        if self._reading:
            self._stop_reading()
            self._start_reading()

    def _on_readable(self, guard: IngressGuard) -> None:
        now = time.monotonic()
        end = max(0, self._budget - _BATCH)
        while self._budget > end and guard is self._guard:
            try:
                arrival = guard.receive(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                # The error queue must be emptied, or the socket stays readable.
                self._report(guard.returned_datagrams())
                self._rearm()
                if error.errno not in ICMP_ERRORS:
                    left_out = self._lines.admit(now, error.errno)
                    if left_out is not None:
                        log.warning(
                            "cannot receive from the underlay: %s%s", error.strerror, left_out
                        )
                return
            octets, stride, host, port, ecn = arrival.received
            count = -(-octets // stride) if stride else 1
            self._budget -= count
            if arrival.copied:
                continue  # A broadcast goes to both sockets: the first one has counted it.
            if self._filter is not None and self._filter.denies(arrival.device):
                device = device_name(arrival.device)
                self._demux.drop_overlay(self._buffer[:octets], arrival.received, device)
                if host in self._hosts and len(self.suspects) < _SUSPECTS_MAX:
                    self.suspects[arrival.device] = host
                continue
            for at in range(0, octets or 1, stride or 1):
                datagram = self._buffer[at : min(at + stride, octets)]
                length = len(datagram)
                self._deliver(datagram, (length, length, host, port, ecn), now)
        if self._budget <= 0:
            self._stop_reading()

    def tick(self) -> None:
        """Refill the budget: to be called once a second."""
        self._budget = _DATAGRAMS_PER_TICK
        # The kernel wakes the event loop shortly before it sets the socket's error, so uvloop may
        # have dropped the socket without a call of `_on_readable`.
        self._rearm()
        self._start_reading()

    def read_drops(self) -> None:
        """Read how many datagrams the kernel has discarded in front of the second socket."""
        if self._guard is not None:
            with suppress(OSError):
                now = self._guard.queue_drops()
                self._discarded += now - self._drops
                self._drops = now

    def take_drops(self) -> int:
        """Return how many datagrams were discarded, as far as read, since the last call."""
        drops, self._discarded = self._discarded, 0
        return drops
