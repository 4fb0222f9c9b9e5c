"""The methods of the control socket, as a table by name.

Each method checks all its parameters before it changes anything. A request that makes no sense
raises ConfigError; one that the VTEP cannot fulfil now raises another VtepError. Both name
parameters and options as the command line does.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from inspect import iscoroutinefunction
from typing import Any

import attrs

from vtep.capture.captures import Captures
from vtep.config import Config, address_parsers
from vtep.config.host_names import HostName
from vtep.control import params, schema, status, traces, views
from vtep.control.capture_stream import CAPTURE, CaptureMethod
from vtep.control.fdb_methods import FdbMethods
from vtep.control.jsonrpc import Code, PagedObject, Pages, RpcError
from vtep.control.method import Method, Segments, pages
from vtep.control.neigh_methods import NeighMethods
from vtep.control.params import Params
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, VtepError, shown
from vtep.trace.steps import TraceResult
from vtep.wire.ethernet import MAC_ZERO

__all__ = ["Method", "Methods", "Reload"]

log = logging.getLogger("vtep")

_FLUSHES = ("fdb.flush", "neigh.flush")
"""Methods that remove entries of a control plane, too, which it then gives again."""

Reload = Callable[[], Awaitable[str]]


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
        segment, segments = params.SEGMENT, Segments(vtep)
        self._ports, self._port = segments.all, segments.one
        self.table: dict[str, Method] = {
            **FdbMethods(vtep, segments).table,
            **NeighMethods(vtep, segments).table,
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
        result = await result if name in self.lasting else result
        if name in _FLUSHES and self._vtep.on_flushed is not None:
            self._vtep.on_flushed()
        return result

    # --- segments ---------------------------------------------------------------------------

    def _vni_show(self, given: Params) -> Pages:
        ports = pages(iter(self._ports(given)))
        return Pages([views.segment(port, self._vtep.names) for port in page] for page in ports)

    async def _vni_add(self, given: Params) -> schema.SegmentInfo:
        vni = given.vni()
        if vni is None:
            raise ConfigError("vni: is missing")
        config = Config(vni=vni, **_known(given.options()))
        self._check_evpn(config)
        await self._vtep.add(config)
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
        if options.get("evpn", port.config.evpn) is not port.config.evpn:
            # Its default depends on that.
            options.setdefault("learning", not options["evpn"])
        config = attrs.evolve(port.config, **options)
        self._check_evpn(config)
        await self._vtep.change(config)
        if options.get("fast_path"):  # Also if it has that value already.
            self._vtep.retry_fast_path()
        changed = ", ".join(
            f"--{views.option(name)} {shown(value)}" for name, value in options.items()
        )
        log.info("vni %d: set %s", port.config.vni, changed or "nothing")
        return views.segment(self._vtep.ports[port.config.vni], self._vtep.names)

    def _check_evpn(self, config: Config) -> None:
        """Raise ConfigError if a segment is to take part in a fabric that there is none of."""
        if config.evpn and self._vtep.evpn_status is None:
            raise ConfigError(
                "--evpn: this pyvtep has no BGP session; add a table [evpn] with asn and neighbor "
                "to its file and reload it, or start it with --asn and --evpn-neighbor"
            )

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
        return Pages(page for port in ports for page in pages(views.storms(port, time.monotonic())))

    # --- traces -----------------------------------------------------------------------------

    def _trace(self, given: Params) -> TraceResult:
        return traces.trace(self._port(given), self._vtep, given)

    def _trace_live(self, given: Params) -> asyncio.Future[list[TraceResult]]:
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


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a segment. Raises: ConfigError if one does not exist."""
    known = {field.name for field in attrs.fields(Config)} - {"vni"}
    for name in options:
        if name not in known:
            raise ConfigError(f"--{views.option(name)}: is not an option that can be given here")
    return options
