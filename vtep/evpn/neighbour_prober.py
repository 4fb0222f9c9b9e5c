"""Probes of the addresses of local hosts, so that those that are gone are withdrawn."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from vtep.evpn.local_table import LocalTable
from vtep.host.neighbour_messages import build_probe
from vtep.host.netlink_events import open_requests

if TYPE_CHECKING:
    from vtep.wire.address import Address

PROBE_INTERVAL_S = 30.0
"""Seconds in which each neighbour is probed once: what the kernel holds to be reachable at least
for 15 s, and for 45 s at most."""

_TICKS = 30
"""Parts of the interval: requests are spread, and so are the probes that the kernel sends."""

_BATCH = 64
_RECEIVE_BUFFER = 1 << 20
_DATAGRAM_MAX = 1 << 16


class NeighbourProber:
    """Has the kernel verify stale neighbours that are local hosts (RFC 9161, section 3.5).

    The kernel verifies a stale neighbour only when it is used, and deletes it only when there are
    many. Without probes, the route of an address would remain when another host has taken it over
    behind a VTEP that suppresses gratuitous ARP, as the kernel's bridge does. The answers also keep
    the FDB entry of a host that says nothing else from being aged.

    Raises: OSError if the kernel refuses the socket.
    """

    def __init__(self, table: LocalTable, interval: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._socket = open_requests(_RECEIVE_BUFFER)
        self._tick_s = interval / _TICKS
        self._queue: list[tuple[int, Address]] = []
        self._share = 0
        self._ticks = 0
        self._sequence = 0
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def close(self) -> None:
        """Stop probing."""
        self._timer.cancel()
        self._socket.close()

    def _tick(self) -> None:
        """Probe a share of the neighbours."""
        if self._ticks == 0:
            self._queue = list(self._table.local_neighbours())
            self._share = -(-len(self._queue) // _TICKS)
        self._ticks = (self._ticks + 1) % _TICKS
        due, self._queue = self._queue[: self._share], self._queue[self._share :]
        for begin in range(0, len(due), _BATCH):
            requests = []
            for device, ip in due[begin : begin + _BATCH]:
                self._sequence += 1
                requests.append(build_probe(device, ip, self._sequence))
            # The kernel refuses those that are gone meanwhile.
            with suppress(OSError):
                self._socket.send(b"".join(requests))
            with suppress(BlockingIOError):
                while self._socket.recv(_DATAGRAM_MAX):
                    pass
        self._timer = self._loop.call_later(self._tick_s, self._tick)
