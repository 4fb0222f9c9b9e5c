"""Changes of the addresses of this host, from rtnetlink."""

import asyncio
from collections.abc import Callable

from vtep.host.netlink_events import subscribe_addresses

_DEBOUNCE_S = 0.05
"""Seconds from a change to the call: a DHCP client adds an address and removes the former one."""

_DATAGRAM_MAX = 1 << 16


class AddressWatch:
    """Calls `on_changed` soon after addresses were added or removed, until it is closed.

    Raises: OSError if the kernel refuses a socket.
    """

    def __init__(self, on_changed: Callable[[], object]) -> None:
        self._on_changed = on_changed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._events = subscribe_addresses()
        self._loop.add_reader(self._events.fileno(), self._read)

    def close(self) -> None:
        """Close the socket."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._events.fileno())
        self._events.close()

    def _read(self) -> None:
        """Discard events: that there are some is what counts, also if others were lost."""
        try:
            while True:
                self._events.recv(_DATAGRAM_MAX)
        except BlockingIOError:
            pass
        if self._timer is None:
            self._timer = self._loop.call_later(_DEBOUNCE_S, self._report)

    def _report(self) -> None:
        self._timer = None
        self._on_changed()
