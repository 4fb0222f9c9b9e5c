"""Events and dumps of rtnetlink for a `LocalTable`, in the event loop."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from errno import EAFNOSUPPORT, EOPNOTSUPP

from vtep.evpn.local_table import LocalTable
from vtep.host.neighbour_messages import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NLMSG_DONE,
    NLMSG_ERROR,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    build_dump,
    split_messages,
)
from vtep.host.netlink_events import count_lost_events, open_requests, subscribe_neighbours

log = logging.getLogger("vtep")

_DATAGRAM_MAX = 1 << 16
_SLICE_S = 0.002
"""Seconds for which events are read before other callbacks have their turn."""

_DUMPS_MAX = 5
"""Repetitions of a dump because entries were deleted meanwhile."""

_RETRY_S = 1.0
"""Pause before everything is read again, if the kernel has refused a dump, in seconds."""

_DUMPS = (
    (RTM_GETLINK, 0),
    (RTM_GETLINK, AF_BRIDGE),
    (RTM_GETADDR, 0),
    (RTM_GETNEIGH, AF_INET),
    (RTM_GETNEIGH, AF_INET6),
    (RTM_GETNEIGH, AF_BRIDGE),
)


class EntryReader:
    """Keeps a table up to date: by a dump of everything, then by events.

    If the kernel drops events because they come too fast, everything is read again; likewise if it
    refuses a dump. `on_changed` is called after messages were applied, `on_synced` when the table
    is complete.

    Raises: OSError if the kernel refuses the sockets.
    """

    def __init__(
        self,
        table: LocalTable,
        *,
        on_changed: Callable[[], object],
        on_synced: Callable[[], object],
        receive_buffer: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._on_changed = on_changed
        self._on_synced = on_synced
        self._receive_buffer = receive_buffer
        self._sequence = 0
        self._pending: list[tuple[int, int]] = []
        self._repeats = 0
        self._is_dumped = False
        self._has_failed = False
        """True if the kernel has refused a dump, so that the table lacks its entries."""

        self._retry: asyncio.TimerHandle | None = None
        self.resyncs = 0
        """The number of times that events were lost, so that everything was read again."""

        self._open()

    def _open(self) -> None:
        """Subscribe, and read everything."""
        self._events = subscribe_neighbours(self._receive_buffer)
        self._dumps = open_requests(self._receive_buffer)
        self._loop.add_reader(self._events.fileno(), self._on_events)
        self._loop.add_reader(self._dumps.fileno(), self._on_replies)
        self._repeats = 0
        self._begin_dump()

    def close(self) -> None:
        """Close the sockets."""
        if self._retry is not None:
            self._retry.cancel()
        for sock in (self._events, self._dumps):
            if sock.fileno() >= 0:
                self._loop.remove_reader(sock.fileno())
                sock.close()

    def _begin_dump(self) -> None:
        self._table.begin_dump()
        self._is_dumped = self._has_failed = False
        self._pending = list(_DUMPS)
        self._request_dump()

    def _request_dump(self) -> None:
        """Request the next dump. The kernel answers one at a time for each socket."""
        kind, family = self._pending.pop(0)
        self._sequence += 1
        self._dumps.send(build_dump(kind, family, self._sequence))

    def _on_events(self) -> None:
        """Apply events for a while."""
        end = time.perf_counter() + _SLICE_S
        is_drained = False
        while not is_drained and time.perf_counter() < end:
            try:
                data = self._events.recv(_DATAGRAM_MAX)
            except BlockingIOError:
                is_drained = True
            else:
                for message in split_messages(data):
                    self._table.update(message)
        if count_lost_events(self._events):
            self.resyncs += 1
            log.info("events of bridges were lost in a burst; reading all entries again")
            # With a new subscription: the old one holds events from before the loss, which would
            # seem to be newer than the dump.
            self.close()
            self._open()
            return
        self._on_changed()
        if is_drained and self._is_dumped:
            self._end_dump()

    def _on_replies(self) -> None:
        """Apply one datagram of a dump, some 400 entries."""
        try:
            data = self._dumps.recv(_DATAGRAM_MAX)
        except BlockingIOError:
            return
        for message in split_messages(data):
            if message.sequence != self._sequence:
                continue
            self._table.is_uncertain |= message.is_interrupted
            if message.kind not in (NLMSG_DONE, NLMSG_ERROR):
                self._table.update(message, is_reply=True)
                continue
            if message.error:
                self._on_refused(message.error)
            if self._pending:
                self._request_dump()
            else:
                # Events from before the end of the dump come first.
                self._is_dumped = True
                self._on_events()
            return
        self._on_changed()

    def _on_refused(self, error: int) -> None:
        """Handle a dump that the kernel has refused, such as for lack of memory."""
        # A kernel without this kind of entries has none.
        self._has_failed |= error not in (EOPNOTSUPP, EAFNOSUPPORT)
        log.warning(
            "cannot read entries of bridges: %s%s",
            *(os.strerror(error), "; reading them again" if self._has_failed else ""),
        )

    def _end_dump(self) -> None:
        """Take the dump as complete, or repeat it if it may have missed entries."""
        if self._has_failed:
            # Until then, the entries that it lacks stay.
            self._is_dumped = False
            self._retry = self._loop.call_later(_RETRY_S, self._begin_dump)
            return
        if self._table.is_uncertain and self._repeats < _DUMPS_MAX:
            self._repeats += 1
            self._begin_dump()
            return
        self._is_dumped = False
        self._table.end_dump()
        self._on_changed()
        self._on_synced()
