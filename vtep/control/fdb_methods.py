"""The methods of the control socket for the forwarding database."""

import asyncio
import logging
import time
from collections.abc import Callable
from ipaddress import ip_address
from itertools import islice

from vtep.config.overlap import find_overlap
from vtep.control import params, schema, views
from vtep.control.batch_runner import Change, run_batch
from vtep.control.jsonrpc import Pages
from vtep.control.method import Method, Segments, pages
from vtep.control.params import DestinationKey, Params
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, VtepError
from vtep.forwarding.fdb import EntryKind, Fdb, Remote
from vtep.host.devices import device_index
from vtep.wire.ethernet import MAC_ZERO

_SAMPLE_PAGES = 10
"""Pages of the FDB in one sample: 500 entries, which take some five milliseconds in ten slices."""

_PAGE_MAX = 1 << 32
"""Largest number of a page, beyond the last one of any FDB."""

log = logging.getLogger("vtep")

_Put = Callable[[Fdb, bytes, Remote, float, EntryKind], None]


class FdbMethods:
    """The methods `fdb.*` of one VTEP."""

    def __init__(self, vtep: Vtep, segments: Segments) -> None:
        self._vtep = vtep
        self._segments = segments
        segment = params.SEGMENT
        chosen = ("mac", *params.DESTINATION)
        self._verbs: dict[str, tuple[_Put | None, tuple[str, ...]]] = {
            "add": (Fdb.add, (*chosen, *params.KIND)),
            "append": (Fdb.append, (*chosen, *params.KIND)),
            "replace": (Fdb.replace, (*chosen, *params.KIND)),
            "del": (None, (*chosen, "extern_learn")),
        }
        self.table: dict[str, Method] = {
            "fdb.show": Method(self._show, (*segment, *params.FILTER)),
            "fdb.get": Method(self._get, (*segment, "mac")),
            "fdb.sample": Method(self._sample, (*segment, "macs", "page")),
            **{
                f"fdb.{verb}": Method(self._changing(put), (*segment, *takes))
                for verb, (put, takes) in self._verbs.items()
            },
            "fdb.flush": Method(self._flush, (*segment, *params.FILTER)),
            "fdb.batch": Method(self._batch, (*segment, "changes")),
        }
        """The methods by name."""

    # --- queries ----------------------------------------------------------------------------

    def _show(self, given: Params) -> Pages:
        wanted, ports = given.filter(), self._segments.all(given)
        # They may change while a slow client reads. Few are held, so these are found at once.
        shown = [
            (port, pages(iter(port.fdb.held())) if wanted.held else port.fdb.pages())
            for port in ports
        ]
        return Pages(
            [
                views.entry(port, entry, destinations, time.monotonic())
                for entry, destinations in port.fdb.select(wanted, page)
            ]
            for port, listed in shown
            for page in listed
        )

    def _get(self, given: Params) -> schema.FdbEntry:
        port = self._segments.one(given)
        entry = port.fdb.get(given.mac())
        return views.entry(port, entry, entry.destinations, time.monotonic())

    async def _sample(self, given: Params) -> schema.FdbSample:
        """Return the entries of some MACs, and those of some pages.

        `pyvtep top` calls this once a second: its cost does not depend on the size of the FDB.
        """
        port, macs, first = (
            self._segments.one(given),
            given.macs(),
            given.number("page", 0, _PAGE_MAX),
        )
        fdb, now = port.fdb, time.monotonic()
        found = {mac: entry for mac in macs if (entry := fdb.lookup(mac)) is not None}
        entries = [views.sample_entry(fdb, entry, now) for entry in found.values()]
        next_page = None
        if first is not None:
            listed = fdb.pages(first)
            for page in islice(listed, _SAMPLE_PAGES):
                entries += [
                    views.sample_entry(fdb, entry, now)
                    for entry in page
                    if entry.mac not in found and entry.mac != MAC_ZERO
                ]
                await asyncio.sleep(0)  # Frames have their turn.
            if next(listed, None) is not None:
                next_page = first + _SAMPLE_PAGES - (first == 0 and fdb.default is not None)
        return {
            "vni": port.config.vni,
            "dev": port.tap,
            "monotonic": now,
            "fdb_entries": len(fdb),
            "entries": entries,
            "next_page": next_page,
        }

    # --- changes ----------------------------------------------------------------------------

    def _changing(self, put: _Put | None) -> Callable[[Params], None]:
        """Return the method of a verb; without `put`, of `del`."""
        return lambda given: self._change(self._segments.one(given), put, given, {})

    def _change(
        self, port: Port, put: _Put | None, given: Params, known: dict[DestinationKey, Remote]
    ) -> None:
        """Make one change of a user. Raises: VtepError, after which nothing has changed.

        Side effects: the control plane is notified if destinations that it has given are removed.
        """
        mac = given.mac()
        before = _extern_learn_count(port.fdb, mac)
        self._make(port, put, given, known)
        if _extern_learn_count(port.fdb, mac) < before and self._vtep.on_flushed is not None:
            self._vtep.on_flushed()

    def _make(
        self, port: Port, put: _Put | None, given: Params, known: dict[DestinationKey, Remote]
    ) -> None:
        """Make one change. Raises: VtepError, after which nothing has changed.

        `known` are the destinations that were checked already; this one is added.
        """
        mac = given.mac()
        if put is None:
            remote = given.destination(port.config.dstport)
            port.fdb.remove(mac, remote, extern_learn=given.flag("extern_learn"))
            return
        kind, key = given.kind(), given.destination_key()
        remote = known.get(key)
        if remote is None:
            remote = given.destination(port.config.dstport)
            if remote is None:
                raise ConfigError("dst: is missing")
            self._check(port, remote)
            known[key] = remote
        put(port.fdb, mac, remote, time.monotonic(), kind)

    @staticmethod
    def _check(port: Port, remote: Remote) -> None:
        """Raise VtepError for a destination that datagrams can't or must not be sent to."""
        if remote.via is not None and device_index(remote.via) is None:
            raise VtepError(f"via {remote.via}: there is no such device")
        address = ip_address(remote.host)
        if port.underlay.is_own(address):
            raise VtepError(
                f"dst {remote.host}: is an address of this host itself, to which frames would come "
                "back; give the address of the other VTEP"
            )
        if remote.via is None:  # Otherwise datagrams leave through that device.
            overlap = find_overlap(port.config.address, [address], ())
            if overlap is not None:
                raise ConfigError(
                    f"dst {remote.host}: is in {overlap.address.network}, the subnet of --address "
                    f"{overlap.address}, and would be routed into the tunnel; give the TAP an "
                    "address of another subnet, or name the device to send from with via"
                )

    async def _batch(self, given: Params) -> schema.BatchResult:
        """Make many changes, each by itself: `{verb, ...}` with the parameters of the verb.

        A change that is refused is reported with its position, and has changed nothing.
        """
        vni = self._segments.one(given).config.vni
        known: dict[DestinationKey, Remote] = {}

        def change_by(put: _Put | None) -> Change:
            def make(change: Params) -> None:
                by_control_plane = change.flag("extern_learn")
                # The port is looked up each time: another one may have taken its place in between.
                port = self._port(vni)
                (self._make if by_control_plane else self._change)(port, put, change, known)

            return make

        return await run_batch(
            given,
            {
                verb: (change_by(put), frozenset((*takes, "verb")))
                for verb, (put, takes) in self._verbs.items()
            },
        )

    def _port(self, vni: int) -> Port:
        port = self._vtep.ports.get(vni)
        if port is None:
            raise VtepError(f"vni {vni}: was deleted meanwhile")
        return port

    async def _flush(self, given: Params) -> int:
        wanted, port = given.filter(), self._segments.one(given)
        count = 0
        for page in port.fdb.pages():
            count += port.segment.flush(wanted, page)
            await asyncio.sleep(0)  # Frames have their turn.
        log.info("vni %d: flushed %d FDB entries", port.config.vni, count)
        return count


def _extern_learn_count(fdb: Fdb, mac: bytes) -> int:
    """Return how many destinations of a MAC a control plane has given."""
    entry = fdb.default if mac == MAC_ZERO else fdb.lookup(mac)
    if entry is None:
        return 0
    if not entry.kind.origins:  # As most entries of a large table.
        return len(entry.destinations) if entry.kind.extern_learn else 0
    return sum(origin.extern_learn for origin in entry.kind.origins)
