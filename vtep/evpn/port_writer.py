"""Entries of remote MACs on the bridge ports of TAPs, written by rtnetlink in the event loop."""

import asyncio
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from errno import ENODEV, ENOENT

from vtep.evpn.local_entries import BridgeChange
from vtep.evpn.local_table import LocalTable
from vtep.host.neighbour_messages import (
    NLMSG_ERROR,
    NTF_EXT_LEARNED,
    NTF_STICKY,
    build_fdb_deletion,
    build_fdb_entry,
    build_port_learning,
    split_messages,
)
from vtep.host.netlink_events import open_requests

log = logging.getLogger("vtep")

_RECEIVE_BUFFER = 1 << 20
_DATAGRAM_MAX = 1 << 16
_SLICE_S = 0.002
"""Seconds for which entries are written before other callbacks have their turn."""

_BATCH = 64
"""Changes in one request, which takes the kernel some 0.3 ms."""


class PortWriter:
    """Writes entries in batches between other events, and remembers which are wanted.

    Entries of TAPs without a bridge are not written, nor those of MACs for which the bridge has an
    entry of its own or of a user. Errors are logged.

    Raises: OSError if the kernel refuses the socket.
    """

    def __init__(self, table: LocalTable) -> None:
        self._loop = asyncio.get_running_loop()
        self._table = table
        self._socket = open_requests(_RECEIVE_BUFFER)
        self._sequence = 0
        self._wanted: dict[int, dict[bytes, bool]] = {}
        """The entries of each VNI: MACs, and whether they are sticky."""

        # Not a dict, which looks for its first key behind all that were removed.
        self._queue: OrderedDict[tuple[int, bytes], BridgeChange] = OrderedDict()
        self._is_scheduled = False
        self._drained = asyncio.Event()
        self._drained.set()

    def close(self) -> None:
        """Close the socket. Entries remain."""
        self._queue.clear()
        self._drained.set()
        self._socket.close()

    async def drain(self) -> None:
        """Wait until all changes have been written."""
        await self._drained.wait()

    def apply(self, vni: int, changes: Iterable[BridgeChange]) -> None:
        """Write changes soon."""
        for change in changes:
            self._queue[vni, change.mac] = change
        self._schedule()

    def rewrite(self, vni: int) -> None:
        """Write all entries of a VNI again: its TAP is another bridge port now."""
        for mac, sticky in self._wanted.get(vni, {}).items():
            # The bridge has learned the MAC of a local host meanwhile.
            if not self._table.is_local(vni, mac):
                self._queue.setdefault((vni, mac), BridgeChange(mac, sticky=sticky))
        self._schedule()

    def forget(self, vni: int) -> None:
        """Forget the entries of a VNI, without deleting them."""
        self._wanted.pop(vni, None)

    def set_learning(self, port: int, *, on: bool) -> None:
        """Switch the learning of a bridge port, by index."""
        self._sequence += 1
        self._socket.send(build_port_learning(port, self._sequence, on=on))
        for _, error in self._read_errors():
            if error != ENODEV:
                link = self._table.link(port)
                log.warning(
                    "cannot switch learning of bridge port %s %s: %s",
                    *(link.name if link else port, "on" if on else "off", os.strerror(error)),
                )

    def _schedule(self) -> None:
        if self._queue and not self._is_scheduled:
            self._is_scheduled = True
            self._drained.clear()
            self._loop.call_soon(self._write)

    def _write(self) -> None:
        """Write queued changes for a while."""
        self._is_scheduled = False
        end = time.perf_counter() + _SLICE_S
        failed: dict[tuple[int, int], int] = {}
        while self._queue and time.perf_counter() < end:
            self._write_batch(failed)
        for (port, error), count in failed.items():
            link = self._table.link(port)
            log.warning(
                "cannot write %d entries to bridge port %s: %s",
                *(count, link.name if link else port, os.strerror(error)),
            )
        if self._queue:
            self._schedule()
        else:
            self._drained.set()

    def _write_batch(self, failed: dict[tuple[int, int], int]) -> None:
        """Write a batch. Side effects: counts failed requests by port and errno."""
        requests: list[bytes] = []
        written: dict[int, tuple[int, BridgeChange]] = {}
        keys = [key for key, _ in zip(self._queue, range(_BATCH), strict=False)]
        for key in keys:
            change = self._queue.pop(key)
            vni, _ = key
            port, bridge = self._table.attachment(vni)
            for request in self._build(vni, change, port if bridge else 0):
                requests.append(request)
                written[self._sequence] = port, change
        if not requests:
            return
        # The kernel has processed all of them when this returns.
        self._socket.send(b"".join(requests))
        for sequence, error in self._read_errors():
            if sequence not in written:
                continue
            port, change = written[sequence]
            # The TAP is gone; or the entry is, or is that of a local host now.
            if error == ENODEV or (error == ENOENT and not change.is_present):
                continue
            failed[port, error] = failed.get((port, error), 0) + 1

    def _build(self, vni: int, change: BridgeChange, port: int) -> Iterator[bytes]:
        """Note what is wanted, and yield the requests for it; none without a bridge port."""
        mac = change.mac
        wanted = self._wanted.setdefault(vni, {})
        was_sticky = wanted.pop(mac, None)
        if change.is_present:
            wanted[mac] = change.sticky
        owner = self._table.entry_owner(vni, mac)
        if not port or owner == "other":
            return
        is_ours = was_sticky is not None or owner == "evpn"
        if is_ours and (not change.is_present or (was_sticky and not change.sticky)):
            self._sequence += 1
            yield build_fdb_deletion(port, mac, self._sequence)
        if not change.is_present:
            return
        if change.sticky:
            # The kernel ignores NTF_STICKY in a request with NTF_EXT_LEARNED.
            self._sequence += 1
            yield build_fdb_entry(port, mac, self._sequence, flags=NTF_STICKY)
        self._sequence += 1
        yield build_fdb_entry(port, mac, self._sequence, flags=NTF_EXT_LEARNED)

    def _read_errors(self) -> list[tuple[int, int]]:
        """Return sequence number and errno of each request that has failed."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                data = self._socket.recv(_DATAGRAM_MAX)
            except BlockingIOError:
                return found
            found += [
                (message.sequence, message.error)
                for message in split_messages(data)
                if message.kind == NLMSG_ERROR and message.error
            ]
