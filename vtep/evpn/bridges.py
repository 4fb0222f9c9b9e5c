"""The local side of EVPN segments: entries of the host's bridges, read and written by rtnetlink."""

import asyncio
from collections.abc import Iterable, Mapping

from vtep.evpn.entry_reader import EntryReader
from vtep.evpn.local_entries import BridgeChange, LocalEvents, TapPlace
from vtep.evpn.local_table import LocalTable
from vtep.evpn.neighbour_prober import PROBE_INTERVAL_S, NeighbourProber
from vtep.evpn.port_writer import PortWriter

_RECEIVE_BUFFER = 32 << 20
"""Octets: some 40,000 events, each of which occupies 768 octets; 10,000 MACs that come, go or move
at both ends at once cause 30,000."""


class BridgeWatch:
    """Reports local MACs and addresses of EVPN VNIs, and writes remote MACs to bridge ports.

    It is made, and its methods are called, in the thread of the running event loop, which also
    calls `events`. Neighbours that are local hosts are verified every `probe_interval` seconds.

    Raises: OSError if the kernel refuses a socket.
    """

    def __init__(
        self,
        events: LocalEvents,
        *,
        receive_buffer: int = _RECEIVE_BUFFER,
        probe_interval: float = PROBE_INTERVAL_S,
    ) -> None:
        self._events = events
        self._table = LocalTable(events)
        self._writer = PortWriter(self._table)
        self._prober = NeighbourProber(self._table, probe_interval)
        self._receive_buffer = receive_buffer
        self._reader: EntryReader | None = None
        self._synced = asyncio.Event()
        self._places: dict[int, TapPlace] = {}
        self._learning: frozenset[int] = frozenset()
        self._learning_off: set[int] = set()
        """The bridge ports, by index, whose learning was switched off here, or by a former
        speaker."""

    @property
    def resyncs(self) -> int:
        """The number of times that events were lost, so that everything was read again."""
        return self._reader.resyncs if self._reader else 0

    async def start(self) -> None:
        """Subscribe to links, FDB entries, neighbours and addresses, and read them.

        Raises: OSError if the kernel refuses a socket.
        """
        self._reader = EntryReader(
            self._table,
            on_changed=self._follow_taps,
            on_synced=self._on_synced,
            receive_buffer=self._receive_buffer,
        )
        await self._synced.wait()

    async def stop(self) -> None:
        """Write what is to be written, restore the learning of bridge ports, close the sockets.

        Entries remain.
        """
        await self.drain()
        for tap in self._learning_off:
            self._writer.set_learning(tap, on=True)
        self._learning_off.clear()
        if self._reader is not None:
            self._reader.close()
        self._writer.close()
        self._prober.close()

    async def drain(self) -> None:
        """Wait until all changes of `apply` have been written."""
        await self._writer.drain()

    def configure(self, places: Mapping[int, TapPlace], *, learning: Iterable[int] = ()) -> None:
        """Watch the TAPs of these VNIs, and no others.

        Learning is switched off on the bridge port of each TAP, but for the VNIs in `learning`.
        Side effects: reports the entries of new VNIs, then calls `synced` for each. Nothing is
        reported of a VNI that is not among them any more, and its entries remain.
        """
        new = [vni for vni in places if vni not in self._places]
        for vni in [vni for vni in self._places if vni not in places]:
            self._writer.forget(vni)
            tap, _ = self._table.attachment(vni)
            if tap in self._learning_off:
                self._learning_off.discard(tap)
                self._writer.set_learning(tap, on=True)
        self._learning = frozenset(learning)
        self._places = dict(places)
        self._table.configure(places)
        self._follow_taps()
        for vni in places:
            self._update_learning(vni)
        if self._synced.is_set():
            for vni in new:
                self._events.synced(vni)

    def apply(self, changes: Mapping[int, Iterable[BridgeChange]]) -> None:
        """Write entries to, or delete them from, the bridge ports of the TAPs of these VNIs.

        Returns at once: entries are written in batches between other events. They are kept, and
        written again if the TAP joins another bridge. Those of a TAP without a bridge are not
        written, nor those of MACs with an entry of the bridge itself or of a user. Errors are
        logged.
        """
        for vni, some in changes.items():
            self._writer.apply(vni, some)

    def remote_macs(self, vni: int) -> frozenset[bytes]:
        """Return MACs with an `extern_learn` entry on the bridge port of a TAP.

        After `synced`, these are what a former speaker has left.
        """
        return frozenset(self._table.remote_macs(vni))

    async def remove_remains(self, places: Mapping[int, TapPlace]) -> None:
        """Delete what a former speaker has left on the bridge ports of TAPs, and nothing else.

        Their learning is restored by `stop`.
        """
        self.configure(places)
        for vni in places:
            self._writer.apply(
                vni, [BridgeChange(mac, is_present=False) for mac in self.remote_macs(vni)]
            )
        await self.drain()

    def set_port_learning(self, tap: str, *, on: bool) -> None:
        """Switch the learning of a TAP's bridge port, if it has one."""
        index = self._table.device(tap)
        link = self._table.link(index)
        if link is not None and link.port_learning is not None:
            self._writer.set_learning(index, on=on)

    def _on_synced(self) -> None:
        self._synced.set()
        for vni in self._places:
            self._events.synced(vni)

    def _follow_taps(self) -> None:
        """Prepare the bridge ports of TAPs that have joined another bridge."""
        self._table.report_host()
        if not self._table.moved:
            return
        moved = self._table.moved & self._places.keys()
        self._table.moved.clear()
        for vni in moved:
            # A device has learning switched on whenever it becomes a port of a bridge.
            tap, _ = self._table.attachment(vni)
            self._learning_off.discard(tap)
            self._update_learning(vni)
            self._writer.rewrite(vni)
        self._learning_off = {tap for tap in self._learning_off if self._table.link(tap)}

    def _update_learning(self, vni: int) -> None:
        """Switch the learning of a TAP's bridge port off, or back on."""
        tap, bridge = self._table.attachment(vni)
        link = self._table.link(tap)
        if not bridge or link is None:
            return
        if vni not in self._learning:
            # Off already: a former speaker, which was killed, has not switched it back on.
            if tap not in self._learning_off and link.port_learning is not False:
                self._writer.set_learning(tap, on=False)
            self._learning_off.add(tap)
        elif tap in self._learning_off:
            self._learning_off.discard(tap)
            self._writer.set_learning(tap, on=True)
