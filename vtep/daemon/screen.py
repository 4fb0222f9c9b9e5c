"""The screen of a listener: datagrams that the kernel keeps away from it, and what is made of them.

Those from unknown sources, and those that arrived through the overlay itself, go to a second socket
(see `underlay.guard`). It is read within a budget, so that at low rates each is judged like any
other, and counted and named by its reason; and in a flood, the kernel discards the rest.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from vtep.counters import Drop
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.forwarding.switch import Switch
from vtep.io.addresses import device_name
from vtep.io.binding import Binding
from vtep.io.error_queue import ICMP_ERRORS, ReturnedDatagram
from vtep.io.ingress_guard import IngressGuard

log = logging.getLogger("vtep")

_DATAGRAMS_PER_TICK = 500
"""Datagrams that are judged between two calls of `tick`: some 5 ms of work."""

_AT_ONCE = 32
"""Datagrams that are judged before the other sockets have their turn."""

_SUSPECTS_MAX = 16

_DATAGRAM_MAX = 1 << 16

Deliver = Callable[[memoryview, str, int, float], None]
"""Judge a datagram, from a host, with an ECN field, at a time; and deliver it if it is let in."""

Report = Callable[[Iterable[ReturnedDatagram]], None]
"""Count datagrams of the receiver that came back as ICMP errors."""


class Screen:
    """Keeps what a filter does not accept away from a receiver.

    Sources that the filter does not know, but the switch does by now, lose nothing by it: what the
    second socket gets is judged too. Datagrams that arrived by a denied device are dropped.
    """

    def __init__(self, switch: Switch, deliver: Deliver, report: Report) -> None:
        self._switch = switch
        self._deliver = deliver
        self._report = report
        self._guard: IngressGuard | None = None
        self._wanted: IngressFilter | None = None
        self._hosts: frozenset[str] = frozenset()
        self._refused = False
        self._budget = _DATAGRAMS_PER_TICK
        self._reading = False
        self._buffer = memoryview(bytearray(_DATAGRAM_MAX))
        self._drops = 0
        self._discarded = 0
        self.suspects: dict[int, str] = {}
        """Named hosts from which datagrams arrived by a denied device, by that: perhaps the
        underlay is routed over it by now."""

    @property
    def sockets(self) -> list[socket.socket]:
        """The second socket, if there is one."""
        return [self._guard.socket] if self._guard is not None else []

    def update(
        self, receiver: socket.socket, binding: Binding, wanted: IngressFilter, hosts: Iterable[str]
    ) -> None:
        """Keep from the receiver what the filter does not accept, as far as the kernel can.

        `hosts` are the sources that the configuration or the FDB names.
        """
        self._hosts = frozenset(hosts)
        if wanted == self._wanted:
            return
        try:
            if self._guard is None:
                self._guard = IngressGuard(receiver, binding)
                self._drops = 0
                self._read_on()
            self._guard.apply(wanted)
        except OSError as error:
            self.close()
            if not self._refused:
                self._refused = True
                log.warning(
                    "UDP port %d: the kernel refuses a filter for sources (%s): a flood from an "
                    "unknown source can starve other traffic, and guests can forge VXLAN; filter "
                    "with nftables, or give --dev",
                    *(receiver.getsockname()[1], error.strerror),
                )
            return
        self._wanted = wanted

    def close(self) -> None:
        """Keep nothing away any more; `update` begins again."""
        self._wanted = None
        if self._guard is not None:
            self._pause()
            self.read_drops()
            self._guard.close()
            self._guard = None

    def _read_on(self) -> None:
        if self._guard is not None and not self._reading:
            self._reading = True
            fd = self._guard.socket.fileno()
            asyncio.get_running_loop().add_reader(fd, self._readable, self._guard)

    def _pause(self) -> None:
        if self._guard is not None and self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._guard.socket.fileno())

    def _read_again(self) -> None:
        """Have the event loop watch the socket again: uvloop stops when epoll reports an error."""
        if self._reading:
            self._pause()
            self._read_on()

    def _readable(self, guard: IngressGuard) -> None:
        now = time.monotonic()
        end = max(0, self._budget - _AT_ONCE)
        while self._budget > end and guard is self._guard:
            try:
                arrival = guard.receive(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                self._report(guard.returned_datagrams())
                self._read_again()
                if error.errno not in ICMP_ERRORS:
                    log.warning("cannot receive from the underlay: %s", error.strerror)
                return
            octets, stride, host, _, mark = arrival.received
            count = -(-octets // stride) if stride else 1
            self._budget -= count
            if arrival.copied:
                continue
            if self._wanted is not None and self._wanted.denies(arrival.device):
                device = device_name(arrival.device)
                self._switch.counters.drop(Drop.OVERLAY_INGRESS, host, count, device)
                if host in self._hosts and len(self.suspects) < _SUSPECTS_MAX:
                    self.suspects[arrival.device] = host
                continue
            for at in range(0, octets or 1, stride or 1):
                self._deliver(self._buffer[at : min(at + stride, octets)], host, mark, now)
        if self._budget <= 0:
            self._pause()

    def tick(self) -> None:
        """Allow as much as is allowed in a second."""
        self._budget = _DATAGRAMS_PER_TICK
        # The kernel wakes the event loop some instructions before it sets an error: the loop may
        # have stopped watching without a call of ours.
        self._read_again()
        self._read_on()

    def read_drops(self) -> None:
        """Read how many datagrams the kernel has discarded in front of it."""
        if self._guard is not None:
            with suppress(OSError):
                now = self._guard.queue_drops()
                self._discarded += now - self._drops
                self._drops = now

    def take_drops(self) -> int:
        """Return how many were discarded, as far as was read since the last call."""
        drops, self._discarded = self._discarded, 0
        return drops
