"""The methods of the control socket, as a table by name.

Each method checks all its parameters before it changes anything. A request that makes no sense
raises ConfigError; one that the VTEP cannot fulfil now raises another VtepError. Both name
parameters and options as the command line does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from inspect import iscoroutinefunction
from ipaddress import ip_address
from itertools import islice
from typing import Any, TypeVar

import attrs

from vtep.capture.captures import Captures
from vtep.config import Config, address_parsers
from vtep.config.host_names import HostName
from vtep.config.overlap import find_overlap
from vtep.control import params, schema, status, traces, views
from vtep.control.capture_stream import CAPTURE, CaptureMethod
from vtep.control.jsonrpc import Code, PagedObject, Pages, RpcError
from vtep.control.params import Params
from vtep.daemon.port import Port
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, VtepError, shown
from vtep.forwarding.fdb import EntryKind, Remote
from vtep.forwarding.suppress import Neighbours
from vtep.host.devices import device_index
from vtep.trace.steps import TraceResult
from vtep.wire.ethernet import MAC_ZERO

_PAGE = 50
"""Segments or neighbours that are converted at a time: about a millisecond, for which frames
wait."""

_SAMPLE_PAGES = 10
"""Pages of the FDB in one sample: 500 entries, which take some five milliseconds in ten slices."""

_PAGE_MAX = 1 << 32
"""Largest number of a page, beyond the last one of any FDB."""

_T = TypeVar("_T")

log = logging.getLogger("vtep")

Reload = Callable[[], Awaitable[str]]


@attrs.frozen
class Method:
    """A method: a function, and the names of its parameters."""

    function: Callable[[Params], Any]
    takes: tuple[str, ...] = ()


class Methods:
    """The methods of one VTEP.

    `reload` reads the configuration again, and returns a line that says what has changed. `more`
    are methods of parts that this one does not know.
    """

    def __init__(
        self, vtep: Vtep, reload: Reload, more: Mapping[str, Method] | None = None
    ) -> None:
        self._vtep = vtep
        self._reload = reload
        self.captures = Captures(vtep)
        segment = params.SEGMENT
        entry = (*segment, "mac", *params.DESTINATION)
        self.table: dict[str, Method] = {
            "fdb.show": Method(self._fdb_show, (*segment, *params.FILTER)),
            "fdb.get": Method(self._fdb_get, (*segment, "mac")),
            "fdb.sample": Method(self._fdb_sample, (*segment, "macs", "page")),
            "fdb.add": Method(self._fdb_add, (*entry, *params.KIND)),
            "fdb.append": Method(self._fdb_append, (*entry, *params.KIND)),
            "fdb.replace": Method(self._fdb_replace, (*entry, *params.KIND)),
            "fdb.del": Method(self._fdb_del, entry),
            "fdb.flush": Method(self._fdb_flush, (*segment, *params.FILTER)),
            "neigh.show": Method(self._neigh_show, segment),
            "neigh.add": Method(self._neigh_add, (*segment, "ip", "mac", "vlan", "router")),
            "neigh.replace": Method(self._neigh_replace, (*segment, "ip", "mac", "vlan", "router")),
            "neigh.del": Method(self._neigh_del, (*segment, "ip", "vlan")),
            "neigh.flush": Method(self._neigh_flush, (*segment, "permanent")),
            "remote.show": Method(self._remote_show, segment),
            "remote.add": Method(self._remote_add, (*segment, "remote")),
            "remote.del": Method(self._remote_del, (*segment, "remote")),
            "loop.show": Method(self._loop_show, segment),
            "storm.show": Method(self._storm_show, segment),
            "vni.show": Method(self._vni_show, segment),
            "vni.add": Method(self._vni_add, ("vni", "options")),
            "vni.del": Method(self._vni_del, ("vni",)),
            "stats": Method(self._stats, segment),
            "status": Method(self._status, segment),
            "stats.reset": Method(lambda _: self._vtep.reset_counters()),
            "set": Method(self._set, (*segment, "options")),
            "reload": Method(self._reload_all),
            "trace": Method(self._trace, traces.TAKES),
            "trace.live": Method(self._trace_live, traces.LIVE_TAKES),
            "process.show": Method(lambda _: views.process(self._vtep.ports.values())),
            "capture": Method(CaptureMethod(self.captures, self._port), CAPTURE),
            "ping": Method(lambda _: True),
            **(more or {}),
        }
        self.lasting = frozenset(
            name for name, method in self.table.items() if iscoroutinefunction(method.function)
        )
        """The methods that take several turns of the event loop."""

    async def call(self, name: str, given: Mapping[str, Any]) -> Any:
        """Call a method by name.

        Raises: RpcError if it does not exist; ConfigError or VtepError, after which nothing has
        changed.
        """
        method = self.table.get(name)
        if method is None:
            raise RpcError(Code.METHOD_NOT_FOUND, f"{name}: there is no such method")
        for parameter in given:
            if parameter not in method.takes:
                known = ", ".join(method.takes) or "none"
                raise ConfigError(f"{parameter}: is not a parameter of {name}, which takes {known}")
        result = method.function(Params(given))
        return await result if name in self.lasting else result

    # --- segments ---------------------------------------------------------------------------

    def _ports(self, given: Params) -> list[Port]:
        """Return the segment that is named, or all."""
        vni, dev = given.vni(), given.text("dev")
        if vni is None and dev is None:
            return list(self._vtep.ports.values())
        if vni is None and (sharing := self._on_device(dev)):  # One for each VLAN of the TAP.
            return sharing
        return [self._port(given)]

    def _on_device(self, dev: str | None) -> list[Port]:
        return [port for port in self._vtep.ports.values() if dev in (port.tap, port.config.tap)]

    def _port(self, given: Params) -> Port:
        """Return the segment that is named, or the only one."""
        ports = self._vtep.ports
        vni, dev = given.vni(), given.text("dev")
        there = ", ".join(f"vni {port.config.vni} dev {port.tap}" for port in ports.values())
        there = there or "none at all"
        if vni is None and dev is None and not ports:
            raise ConfigError("there is no segment; add one: pyvtep vni add N")
        if vni is None and dev is None and len(ports) > 1:
            raise ConfigError(f"several segments: choose one with --vni N or dev TAP: {there}")
        if vni is not None and vni not in ports:
            raise VtepError(f"vni {vni}: there is no such segment; there is {there}")
        found = self._on_device(dev) if dev is not None else list(ports.values())
        if vni is None and len(found) > 1:
            vnis = ", ".join(str(port.config.vni) for port in found)
            raise ConfigError(f"dev {dev}: has a VNI for each VLAN; choose one with --vni: {vnis}")
        for port in found:
            if vni in (None, port.config.vni):
                return port
        if vni is not None:
            raise VtepError(f"dev {dev}: contradicts vni {vni}, which is on {ports[vni].tap}")
        raise VtepError(f"dev {dev}: there is no such segment; there is {there}")

    def _vni_show(self, given: Params) -> Pages:
        pages = _pages(iter(self._ports(given)))
        return Pages([views.segment(port, self._vtep.names) for port in page] for page in pages)

    async def _vni_add(self, given: Params) -> schema.SegmentInfo:
        vni = given.vni()
        if vni is None:
            raise ConfigError("vni: is missing")
        await self._vtep.add(Config(vni=vni, **_known(given.options())))
        return views.segment(self._vtep.ports[vni], self._vtep.names)

    async def _vni_del(self, given: Params) -> None:
        vni = given.vni()
        if vni is None:
            raise ConfigError("vni: is missing")
        # One whose TAP was removed is no segment any more, but a problem until it is given up.
        port = self._vtep.lost.get(vni) or self._port(given)
        await self._vtep.remove(port.config.vni)
        log.info("vni %d on %s: deleted", port.config.vni, port.config.tap)

    async def _set(self, given: Params) -> schema.SegmentInfo:
        port, options = self._port(given), _known(given.options())
        await self._vtep.change(attrs.evolve(port.config, **options))
        if options.get("fast_path"):  # Also if it has that value already.
            self._vtep.retry_fast_path()
        changed = ", ".join(
            f"--{views.option(name)} {shown(value)}" for name, value in options.items()
        )
        log.info("vni %d: set %s", port.config.vni, changed or "nothing")
        return views.segment(self._vtep.ports[port.config.vni], self._vtep.names)

    async def _reload_all(self, _given: Params) -> str:
        return await self._reload()

    def _stats(self, given: Params) -> schema.Stats:
        return views.stats(self._vtep, self._ports(given), time.monotonic())

    def _status(self, given: Params) -> PagedObject:
        named = given.vni() is not None or given.text("dev") is not None
        lost = () if named else self._vtep.lost.values()
        return status.status(self._vtep, (*self._ports(given), *lost))

    # --- loops and storms -------------------------------------------------------------------

    def _loop_show(self, given: Params) -> Pages:
        ports = self._ports(given)
        return Pages(views.loops(port, time.monotonic()) for port in ports)

    def _storm_show(self, given: Params) -> Pages:
        ports = self._ports(given)
        return Pages(
            page for port in ports for page in _pages(views.storms(port, time.monotonic()))
        )

    # --- traces -----------------------------------------------------------------------------

    def _trace(self, given: Params) -> TraceResult:
        return traces.trace(self._port(given), self._vtep, given)

    def _trace_live(self, given: Params) -> "asyncio.Future[list[TraceResult]]":
        return traces.live(self._port(given), self._vtep, self.captures, given)

    # --- remotes ----------------------------------------------------------------------------

    def _remote_show(self, given: Params) -> list[schema.RemoteEntry]:
        return [row for port in self._ports(given) for row in views.remotes(port)]

    async def _remote_add(self, given: Params) -> None:
        port = self._port(given)
        config = port.config
        remote = address_parsers.remote(given.needed("remote"))
        for ip, there in zip(config.remote_addresses, port.segment.configured, strict=False):
            if ip == remote and port.fdb.find_equal(port.segment.remotes, there) is None:
                # It was deleted, or flushed, as a part of the FDB.
                port.fdb.append(MAC_ZERO, there, time.monotonic())
                break
        else:
            if remote in config.remote:
                raise VtepError(
                    f"--remote {remote}: is a remote of vni {config.vni} already; see: "
                    "pyvtep remote show"
                )
            await self._vtep.change(attrs.evolve(config, remote=(*config.remote, remote)))
        log.info("vni %d: remote %s added", config.vni, remote)

    async def _remote_del(self, given: Params) -> None:
        config = self._port(given).config
        remote = address_parsers.remote(given.needed("remote"))
        if remote not in config.remote:
            for name in config.remote:
                if isinstance(name, HostName) and remote in name.addresses:
                    raise VtepError(
                        f"--remote {remote}: is an address of --remote {name}; delete the name, or "
                        "change what it stands for"
                    )
            have = ", ".join(map(str, config.remote)) or "none"
            raise VtepError(
                f"--remote {remote}: is not a remote of vni {config.vni}; its remotes are {have}"
            )
        rest = tuple(other for other in config.remote if other != remote)
        await self._vtep.change(attrs.evolve(config, remote=rest))
        log.info("vni %d: remote %s deleted", config.vni, remote)

    # --- the forwarding database ------------------------------------------------------------

    def _fdb_show(self, given: Params) -> Pages:
        wanted, ports = given.filter(), self._ports(given)
        # They may change while a slow client reads. Few are held, so these are found at once.
        shown = [
            (port, _pages(iter(port.fdb.held())) if wanted.held else port.fdb.pages())
            for port in ports
        ]
        return Pages(
            [
                views.entry(port, entry, destinations, time.monotonic())
                for entry, destinations in port.fdb.select(wanted, page)
            ]
            for port, pages in shown
            for page in pages
        )

    def _fdb_get(self, given: Params) -> schema.FdbEntry:
        port = self._port(given)
        entry = port.fdb.get(given.mac())
        return views.entry(port, entry, entry.destinations, time.monotonic())

    async def _fdb_sample(self, given: Params) -> schema.FdbSample:
        """Return the entries of some MACs, and those of some pages.

        `pyvtep top` calls this once a second: its cost does not depend on the size of the FDB.
        """
        port, macs, first = self._port(given), given.macs(), given.number("page", 0, _PAGE_MAX)
        fdb, now = port.fdb, time.monotonic()
        found = {mac: entry for mac in macs if (entry := fdb.lookup(mac)) is not None}
        entries = [views.sample_entry(fdb, entry, now) for entry in found.values()]
        next_page = None
        if first is not None:
            pages = fdb.pages(first)
            for page in islice(pages, _SAMPLE_PAGES):
                entries += [
                    views.sample_entry(fdb, entry, now)
                    for entry in page
                    if entry.mac not in found and entry.mac != MAC_ZERO
                ]
                await asyncio.sleep(0)  # Frames have their turn.
            if next(pages, None) is not None:
                next_page = first + _SAMPLE_PAGES - (first == 0 and fdb.default is not None)
        return {
            "vni": port.config.vni,
            "dev": port.tap,
            "monotonic": now,
            "fdb_entries": len(fdb),
            "entries": entries,
            "next_page": next_page,
        }

    def _fdb_add(self, given: Params) -> None:
        port, mac, remote, kind = self._entry(given)
        port.fdb.add(mac, remote, time.monotonic(), kind)

    def _fdb_append(self, given: Params) -> None:
        port, mac, remote, kind = self._entry(given)
        port.fdb.append(mac, remote, time.monotonic(), kind)

    def _fdb_replace(self, given: Params) -> None:
        port, mac, remote, kind = self._entry(given)
        port.fdb.replace(mac, remote, time.monotonic(), kind)

    def _entry(self, given: Params) -> tuple[Port, bytes, Remote, EntryKind]:
        port = self._port(given)
        mac, remote, kind = given.mac(), given.destination(port.config.dstport), given.kind()
        if remote is None:
            raise ConfigError("dst: is missing")
        if remote.via is not None and device_index(remote.via) is None:
            raise VtepError(f"via {remote.via}: there is no such device")
        if remote.via is None:  # Otherwise datagrams leave through that device.
            overlap = find_overlap(port.config.address, [ip_address(remote.host)], ())
            if overlap is not None:
                raise ConfigError(
                    f"dst {remote.host}: is in {overlap.address.network}, the subnet of --address "
                    f"{overlap.address}, and would be routed into the tunnel; give the TAP an "
                    "address of another subnet, or name the device to send from with via"
                )
        return port, mac, remote, kind

    def _fdb_del(self, given: Params) -> None:
        port = self._port(given)
        mac, remote = given.mac(), given.destination(port.config.dstport)
        port.fdb.remove(mac, remote)

    async def _fdb_flush(self, given: Params) -> int:
        wanted, port = given.filter(), self._port(given)
        count = 0
        for page in port.fdb.pages():
            count += port.segment.flush(wanted, page)
            await asyncio.sleep(0)  # Frames have their turn.
        log.info("vni %d: flushed %d FDB entries", port.config.vni, count)
        return count

    # --- neighbours -------------------------------------------------------------------------

    def _neigh_show(self, given: Params) -> Pages:
        ports = self._ports(given)
        shown = [
            (port, iter(list(port.segment.neighbours)))
            for port in ports
            if port.segment.neighbours is not None
        ]
        if ports and not shown:
            raise self._no_proxy(ports[0])
        return Pages(
            [views.neighbour(port, neighbour, time.monotonic()) for neighbour in page]
            for port, neighbours in shown
            for page in _pages(neighbours)
        )

    def _no_proxy(self, port: Port) -> VtepError:
        """Return the error for a segment without --proxy."""
        vni = port.config.vni
        which = f" --vni {vni}" if len(self._vtep.ports) > 1 else ""
        return VtepError(f"vni {vni}: --proxy is off; enable it: pyvtep set --proxy{which}")

    def _neighbours(self, given: Params) -> Neighbours:
        port = self._port(given)
        if port.segment.neighbours is None:
            raise self._no_proxy(port)
        return port.segment.neighbours

    def _neigh_add(self, given: Params) -> None:
        neighbours, ip, mac = self._neighbours(given), given.ip(), given.mac()
        router = bool(given.flag("router"))
        neighbours.add(ip, mac, time.monotonic(), vlan=given.vlan(), router=router)

    def _neigh_replace(self, given: Params) -> None:
        neighbours, ip, mac = self._neighbours(given), given.ip(), given.mac()
        router = bool(given.flag("router"))
        neighbours.replace(ip, mac, time.monotonic(), vlan=given.vlan(), router=router)

    def _neigh_del(self, given: Params) -> None:
        self._neighbours(given).remove(given.ip(), vlan=given.vlan())

    def _neigh_flush(self, given: Params) -> int:
        count = self._neighbours(given).flush(permanent=bool(given.flag("permanent")))
        log.info("vni %d: flushed %d neighbours", self._port(given).config.vni, count)
        return count


def _pages(items: Iterator[_T]) -> Iterator[list[_T]]:
    while page := list(islice(items, _PAGE)):
        yield page


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a segment. Raises: ConfigError if one does not exist."""
    known = {field.name for field in attrs.fields(Config)} - {"vni"}
    for name in options:
        if name not in known:
            raise ConfigError(f"--{views.option(name)}: is not an option that can be given here")
    return options
