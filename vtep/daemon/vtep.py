"""A VTEP as a whole: its VNIs, the sockets they share, what changes while it runs, and time.

Whatever touches the host happens in the shells that it owns. How frames move is in `datapath`, and
what one VNI has of its own is in `port`.
"""

import asyncio
import errno
import logging
import secrets
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from ipaddress import ip_address
from types import MappingProxyType, TracebackType
from typing import Concatenate, ParamSpec, Self, TypeAlias, TypeVar

from attrs import define, field, fields
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vtep import descriptors
from vtep.config import Config, check_segments
from vtep.counters import Counters, Drop, DropLog, Reason
from vtep.daemon.build import outer_header_options
from vtep.daemon.listener import Endpoint, Listener
from vtep.daemon.port import Port, setup_of
from vtep.daemon.screening import Screening
from vtep.datapath import Arena
from vtep.datapath.pool import Pool
from vtep.descriptors import ShortageError
from vtep.errors import VtepError
from vtep.forwarding.fdb import Fdb
from vtep.host import netlink, netlink_events, tap_setup
from vtep.host.devices import device_index
from vtep.host.routes import HostRoutes, Underlay
from vtep.host.tap_setup import TapAttachment, TapSetup, Undo
from vtep.io.addresses import device_name
from vtep.io.binding import Binding
from vtep.io.path import superframe_max
from vtep.io.receiver import receive_queue_drops
from vtep.io.shared_socket import SharedSocket
from vtep.io.socket_options import gso_supported
from vtep.io.tap import Tap, queue_drops
from vtep.io.udp_statistics import UdpErrors
from vtep.tunnel_gso.device import TunnelGsoDevice
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber
from vtep.wire.echo import TOKEN_LEN

log = logging.getLogger("vtep")

_TICK = 1.0
"""Seconds between two looks at the age of the FDB, and at all else that changes by itself."""

_STINT = 0.0003
"""Seconds after which such a look lets frames have their turn."""

_SETTLED = 0.2
"""Seconds from a change of some link to the look at ours: changes come in flocks."""

_RETRY = 1.0
"""Seconds after which a look at the host is tried again that descriptors did not suffice for."""

_IDLE_SHARE = 20
_PAUSE_MAX = 60.0
"""Where routes change without end, the host is looked at again after so many times as long as the
last look took, and after so many seconds at most."""

_EVENT_MAX = 65536

_LOOKS = 16
"""Paths whose MTU is asked for in a tick; each takes some 10 microseconds."""

_QUEUE_TICKS = 10
"""Ticks between two looks at what the kernel discarded in front of us."""

_CLOSERS = 16
"""Devices that are removed at a time; more of them by one request."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


@define(eq=False)
class _Step:
    """What a port is to become, and what was found out before about whether it can."""

    port: Port
    config: Config
    underlay: Underlay
    setup: TapSetup
    listeners: tuple[Listener, ...]
    owner: Port | None
    """The port that has its TAP already: itself, or one that is to end; None if it is a new one."""
    undo: list[Undo] = field(factory=list)
    """What takes back the changes of the TAP that were made, the first one first."""
    inherited: Tap | None = None


Watcher: TypeAlias = Callable[[str, Port, Mapping[str, object]], None]
"""Told of a port that was `added` or `deleted`, or has `changed`, then with what is new by name."""


class Vtep:
    """A VXLAN tunnel endpoint that runs in the current asyncio event loop.

    Use it as an asynchronous context manager, or call `start` and `stop`. Everything else is to be
    called from the loop's own thread. Forwarding goes on by itself between the two; `wait` returns
    when it has ended.

    It has a port for each VNI, and none that concerns another. While it runs, `add`, `remove`,
    `change` and `reload` say what is to be different: what they don't touch forwards on. They do
    all that is asked, or raise ConfigError or VtepError and have changed nothing.
    """

    def __init__(self, *configs: Config) -> None:
        check_segments(configs)
        self._prober: GsoProber[TunnelGsoPath] = GsoProber(
            lambda: secrets.token_bytes(TOKEN_LEN), self._resolve_tunnel_gso
        )
        self._pool = Pool(self._prober)
        self._pool.senders.find_shared = self._shared_socket
        self._arena = Arena()
        self._ports = {config.vni: self._port(config) for config in configs}
        self.ports: Mapping[int, Port] = MappingProxyType(self._ports)
        """What there is of each VNI."""
        self.taps_lost = 0
        """How many ports ended because somebody removed their TAP."""
        self._taps_lost_before = 0
        self.counters_reset: float | None = None
        """When `reset_counters` was last called, on the monotonic clock."""
        self._listeners: dict[Endpoint, Listener] = {}
        self._drop_log = DropLog()
        self._resources = ExitStack()
        self._ended: asyncio.Future[None] | None = None
        self._changing = asyncio.Lock()
        self._ticks = 0
        self._chores = self._housekeeping()
        self._missing: set[str] = set()
        self._no_tunnel_gso: str | None = None
        self._tunnel_gso_refused = False
        self._resolve_task: asyncio.Task[None] | None = None
        self._watchers: list[Watcher] = []
        self._task: asyncio.Task[None] | None = None
        self._namespace_counters = Counters()  # Of the network namespace, and of no part of ours.
        self._udp_errors: dict[int, UdpErrors] = {}
        self._overflow: dict[int, int] = {}
        self._screening = Screening(self._ports, self._listeners, _on_host)
        self._links: socket.socket | None = None
        self._links_changed: set[int] = set()
        self._routes_changed = False
        self._links_settled = True
        self._links_drops = 0
        self._running = False

    def _port(self, config: Config) -> Port:
        return Port(config, self._pool, self._arena)

    # --- asking -----------------------------------------------------------------------------

    @property
    def port(self) -> Port:
        """The port of a VTEP that has one VNI only."""
        (port,) = self._ports.values()
        return port

    @property
    def fdb(self) -> Fdb:
        """What has been learned, where there is one VNI only."""
        return self.port.fdb

    @property
    def tap(self) -> str:
        """Name of the TAP device, where there is one VNI only."""
        return self.port.tap

    @property
    def mtu(self) -> int:
        """The largest IP packet that the tunnel carries, where there is one VNI only."""
        return self.port.mtu

    def counters(self, *, since_reset: bool = False) -> dict[str, int]:
        """Every counter by name, as of now, of all VNIs there are; see `vtep.counters`.

        With `since_reset`, only what was counted since `reset_counters`.
        """
        self._count_queue_drops()
        total = {"taps_lost": self.taps_lost - (self._taps_lost_before if since_reset else 0)}
        now = time.monotonic()
        for part in self._counters():
            part.note_drops(now)
            for name, count in (part.since_reset() if since_reset else part.as_dict()).items():
                total[name] = total.get(name, 0) + count
        return total

    def _counters(self) -> Iterator[Counters]:
        yield self._namespace_counters
        for listener in self._listeners.values():
            yield listener.switch.counters
        for port in self._ports.values():
            yield port.segment.counters

    def reset_counters(self) -> None:
        """Let `counters(since_reset=True)` count from now on; `counters()` goes on as before."""
        self._count_queue_drops()
        for part in self._counters():
            part.reset()
        self._taps_lost_before = self.taps_lost
        self.counters_reset = time.monotonic()

    def last_sources(self) -> dict[Reason, str]:
        """Return the last underlay address for each reason of a drop or a notice."""
        parts = self._counters()
        return {reason: host for part in parts for reason, host in part.last_source.items()}

    def last_drops(self) -> dict[Drop, float]:
        """By reason, when its counter last increased, on the monotonic clock.

        It is known to the second or, of what the kernel dropped in front of us, to ten seconds.
        """
        last: dict[Drop, float] = {}
        for part in self._counters():
            for reason, at in part.last_drop.items():
                last[reason] = max(at, last.get(reason, at))
        return last

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Have every change of a port told when it is complete; what is given back ends that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _tell(self, event: str, port: Port, what: Mapping[str, object]) -> None:
        for watcher in tuple(self._watchers):
            watcher(event, port, what)

    # --- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the underlay and the TAPs, and begin to forward.

        What the underlay lacks may appear later: a route to a remote, the device or own address of
        the configuration, the device of a link-local remote. That is waited for, for as long as it
        takes, and does not keep this from returning: `Port.underlay_missing` names what is absent,
        and the log says so, and when it is there. Until then, frames to remotes out of reach are
        dropped and counted as `underlay_unreachable`.

        Raises VtepError, saying what to do, where this host does not let us, or never will: a
        remote that is an own address, a UDP port in use. Nothing is left behind then.
        """
        if self._ended is not None:
            raise RuntimeError("a Vtep can be started only once; make another one")
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        try:
            with ExitStack() as resources:
                # From before the host is looked at, so that nothing happens unseen in between.
                with descriptors.explained("follow the host's network"):
                    self._links = links = resources.enter_context(netlink_events.watch_links())
                    routes = resources.enter_context(netlink_events.watch_routes())
                    addresses = resources.enter_context(netlink_events.watch_addresses())
                    policies = netlink_events.watch_ipsec_policies()
                    if policies is not None:
                        resources.enter_context(policies)
                self._screening.read_links()
                self._read_udp_errors()
                async with self._changing:
                    await self._apply([], [], list(self._ports.values()))
                loop.add_reader(links.fileno(), self._link_events)
                resources.callback(loop.remove_reader, links.fileno())
                for events, changed in (
                    (routes, self._route_events),
                    (addresses, self._address_events),
                    (policies, self._policy_events),
                ):
                    if events is not None:
                        loop.add_reader(events.fileno(), changed, events)
                        resources.callback(loop.remove_reader, events.fileno())
                self._timer: asyncio.Handle = loop.call_later(_TICK, self._tick)
                resources.callback(self._cancel_timer)
                self._resources = resources.pop_all()
        except BaseException as error:
            for tap in self._end(error if isinstance(error, VtepError) else None):
                tap.close()
            raise
        self._running = True

    async def stop(self) -> None:
        """Stop forwarding, close both ends and remove the TAPs that we made."""
        await _close(self._end(None))

    async def wait(self) -> None:
        """Wait until forwarding has ended.

        Returns after `stop`; raises VtepError where the last TAP was taken from us.
        """
        if self._ended is None:
            raise RuntimeError("start() the Vtep first")
        await asyncio.shield(self._ended)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()
        if exc is None and self._ended is not None and (error := self._ended.exception()):
            raise error

    def _lost(self, port: Port, error: OSError) -> None:
        """End a port whose TAP is gone; with the last one, end all."""
        # Its descriptor is in a bad state then, which tells nobody anything.
        reason = "" if error.errno == errno.EBADFD else f": {error.strerror}"
        why = VtepError(f"the TAP device {port.tap} was removed{reason}")
        if len(self._ports) == 1:
            for tap in self._end(why):
                tap.close()
            return
        self.taps_lost += 1
        log.error("vni %d has ended: %s", port.config.vni, why)
        port.close()
        self._forget(port)
        self._close_idle_listeners()
        self._screening.schedule()

    def _refitted(self, port: Port) -> None:
        """Tell of an MTU that has changed under way."""
        log.warning(
            "vni %d: the tunnel carries packets of %d octets now", port.config.vni, port.mtu
        )
        self._tell("changed", port, {"mtu": port.mtu})

    def _forget(self, port: Port) -> None:
        if self._ports.get(port.config.vni) is port:
            del self._ports[port.config.vni]
            self._tell("deleted", port, {})

    def _end(self, error: VtepError | None) -> list[Tap | TunnelGsoDevice]:
        """Forward no more; the TAPs, which are to be closed."""
        self._count_queue_drops()
        for task in (self._task, self._resolve_task):
            if task is not None:
                task.cancel()
        self._screening.stop()
        self._running = False
        taps: list[Tap | TunnelGsoDevice] = [
            tap for port in self._ports.values() if (tap := port.release())
        ]
        for listener in self._listeners.values():
            listener.close()
        self._resources.close()
        if self._pool.tunnel_gso_device is not None:
            taps.append(self._pool.tunnel_gso_device)
            self._pool.tunnel_gso_device = None
        if self._ended is None or self._ended.done():
            return taps
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            self._ended.exception()  # It is raised by wait() or by leaving the context.
        return taps

    # --- change -----------------------------------------------------------------------------

    async def add(self, config: Config) -> None:
        """Begin to forward one more VNI."""
        async with self._changing:
            if config.vni in self._ports:
                raise VtepError(f"vni {config.vni}: is here already; change it, or remove it first")
            await self._reconcile([*self._configs(), config])

    async def remove(self, vni: int) -> None:
        """Forward a VNI no more; its TAP is given back."""
        async with self._changing:
            self._find(vni)
            await self._reconcile(config for config in self._configs() if config.vni != vni)

    async def change(self, config: Config) -> None:
        """Let a VNI be what another configuration of it says."""
        async with self._changing:
            self._find(config.vni)
            others = [other for other in self._configs() if other.vni != config.vni]
            await self._reconcile([*others, config], again={config.vni})

    async def reload(self, configs: Iterable[Config]) -> None:
        """Have exactly these VNIs, as they are configured here.

        Remotes that were taken from a default entry by hand are there again.
        """
        async with self._changing:
            await self._reconcile(configs, again=set(self._ports))

    def _configs(self) -> list[Config]:
        return [port.config for port in self._ports.values()]

    def _find(self, vni: int) -> Port:
        port = self._ports.get(vni)
        if port is None:
            raise VtepError(f"vni {vni}: there is no such VNI here")
        return port

    async def _reconcile(self, configs: Iterable[Config], again: Collection[int] = ()) -> None:
        """Do what makes of the ports there are those that are asked for.

        The VNIs in `again` also get back the configured remotes that their FDB has no more.
        """
        if self._ended is not None and self._ended.done():
            raise VtepError("it has ended")
        if not self._running:
            raise RuntimeError("start() the Vtep first")
        asked = list(configs)
        check_segments(asked)
        wanted = {config.vni: config for config in asked}
        removed: list[Port] = []
        changed: list[tuple[Port, Config]] = []
        added: list[Port] = []
        for vni, port in self._ports.items():
            config = wanted.pop(vni, None)
            if config == port.config and not (vni in again and port.segment.lacks_remotes()):
                continue
            if config is not None and config.tap == port.config.tap:
                changed.append((port, config))
                continue
            removed.append(port)
            if config is not None:
                added.append(self._port(config))
        added += [self._port(config) for config in wanted.values()]
        await self._apply(removed, changed, added)

    async def _apply(
        self, removed: list[Port], changed: list[tuple[Port, Config]], added: list[Port]
    ) -> None:
        """Change what forwards, all of it or nothing: what can fail comes first, and is undone."""
        with descriptors.explained("open what was asked for"):
            left, ports = await self._prepare_and_commit(removed, changed, added)
        await _close(left)
        try:
            await self._adapt(ports)
        except ShortageError as error:
            self._try_again(error)

    async def _prepare_and_commit(
        self, removed: list[Port], changed: list[tuple[Port, Config]], added: list[Port]
    ) -> tuple[list[Tap], list[Port]]:
        """Do what `_apply` does; the TAPs that are left over, and the ports that are different."""
        asked = [*changed, *((port, port.config) for port in added)]
        kept = {port for port, _ in changed}
        owners = {port.tap: port for port in removed}
        self._many = len({*self._ports.values(), *added} - {*removed}) > 1
        async with AsyncExitStack() as undo:
            undo.callback(self._close_idle_listeners)
            undo.callback(self._expect_remotes)
            self._expect_remotes(*(config for _, config in asked))
            underlays = await _on_host(self._survey, [config for _, config in asked])
            steps = []
            for (port, config), underlay in zip(asked, underlays, strict=True):
                with self._naming(config):
                    setup = setup_of(config, port.with_mtu(underlay))
                    listeners = self._listen(port, config)
                    self._check_source_ports(listeners, config)
                    owner = port if port in kept else owners.get(config.tap)
                    steps.append(_Step(port, config, underlay, setup, listeners, owner))
            opened: list[Port] = []
            undo.push_async_callback(_close_ports, opened)
            drops = dict(queue_drops())
            for step in steps:
                if step.owner is None:
                    opened.append(step.port)
                    with self._naming(step.config):
                        step.port.open(drops)
            undo.push_async_callback(_on_host, _roll_back, steps)
            await _on_host(self._set_up, steps)
            if any("tnl" in config.offload for _, config in asked):
                await self._open_tunnel_gso_device()
            gso_supported()  # It is known from now on, and takes no descriptor any more.
            self._check_still([*removed, *kept])
            undo.pop_all()
        return self._commit(removed, steps, drops), [step.port for step in steps]

    def _commit(
        self, removed: list[Port], steps: list[_Step], drops: Mapping[str, int]
    ) -> list[Tap]:
        """Let what is prepared forward: nothing here waits or fails.

        `drops` is what the kernel has discarded in front of each device. Gives the TAPs that are
        left over, which are to be closed.
        """
        self._count_queue_drops()
        for step in steps:
            if step.owner in removed:
                step.inherited = step.owner.release()
        left = [tap for port in removed if (tap := port.release())]
        former = {port.config.vni: port for port in removed}
        for port in removed:
            self._forget(port)
        for step in steps:
            port, before = step.port, step.port.config
            try:
                if step.owner is port:
                    port.change(step.config, step.underlay, step.listeners)
                    self._tell("changed", port, _difference(before, step.config))
                else:
                    if step.inherited is not None:
                        port.adopt(step.inherited, drops)
                    self._ports[step.config.vni] = port
                    port.start(
                        step.underlay, step.listeners, self._lost, self._refitted, self._unheard
                    )
                    port.fdb.sources_changed = self._screening.schedule
                    if step.config.vni in former:  # Its TAP is another one now.
                        port.take_over(former[step.config.vni])
                    self._tell("added", port, {})
            except OSError as error:  # Somebody removes the TAP at this very moment.
                self._lost(port, error)
        self._expect_remotes()
        self._close_idle_listeners()
        self._link_events()  # Which tell of the TAPs that have been set up for this.
        self._screening.configured()
        self._say_what_is_missing(step.port for step in steps)
        return left

    def _say_what_is_missing(self, ports: Iterable[Port]) -> None:
        for port in ports:
            for name in sorted(port.config.offload - port.offload - self._missing):
                self._missing.add(name)
                why = "this kernel does not have it"
                if name in ("tnl", "uso") and "tso" not in port.config.offload:
                    why = "it needs tso"
                elif name == "tnl" and self._no_tunnel_gso is not None:
                    why = self._no_tunnel_gso
                log.warning("offload %s is not there: %s", name, why)

    def _check_still(self, ports: Iterable[Port]) -> None:
        """Raise VtepError where it has ended meanwhile, or a port that is not to be lost."""
        if self._ended is None or self._ended.done():
            raise VtepError("it was stopped before it had started")
        for port in ports:
            if self._ports.get(port.config.vni) is not port:
                raise VtepError(f"vni {port.config.vni}: its TAP was removed meanwhile")

    # --- what ports share -------------------------------------------------------------------

    def _listen(self, port: Port, config: Config) -> tuple[Listener, ...]:
        """What listens for a segment, opened if need be; raises VtepError."""
        return tuple(self._listener(config, version) for version in port.versions(config))

    def _listener(self, config: Config, version: int) -> Listener:
        endpoint = Endpoint.of(config, version)
        listener = self._listeners.get(endpoint)
        if listener is None:
            self._pool.senders.vacate(endpoint.binding.family, endpoint.port)
            listener = self._listeners[endpoint] = Listener(
                endpoint, self._beside, self._prober.on_reply
            )
        if config.group is not None and config.group.version == version:
            listener.join(config.group)
        return listener

    def _shared_socket(self, binding: Binding, port: int) -> SharedSocket | None:
        """Return the receiving socket that is to send from a port, if this process has one."""
        found = (listener.shared_socket(binding, port) for listener in self._listeners.values())
        return next(filter(None, found), None)

    def _check_source_ports(self, listeners: Iterable[Listener], config: Config) -> None:
        """Raise VtepError if there is no port in --srcport that this process could send from."""
        ports = outer_header_options(config).srcport
        for listener in listeners:
            self._pool.senders.check(listener.endpoint.binding, ports)

    def _beside(self, endpoint: Endpoint) -> list[socket.socket]:
        """The sockets that have the port of an endpoint."""
        return [sock for other in self._listeners.values() for sock in other.sockets(endpoint)]

    def _unheard(self, port: Port, version: int) -> None:
        """Listen on one more IP version for a segment, since an entry of its FDB names a host."""
        try:
            with self._naming(port.config):
                port.hear(self._listener(port.config, version))
                self._screening.schedule()
        except VtepError as error:
            log.error("nothing is heard over IPv%d: %s", version, error)  # noqa: TRY400

    def _close_idle_listeners(self) -> None:
        for endpoint, listener in tuple(self._listeners.items()):
            if not listener.switch.segments:
                listener.close()
                del self._listeners[endpoint]
            else:
                ports = [port for port in self._ports.values() if listener in port.listeners]
                listener.leave_all_but({port.config.group for port in ports})

    def _expect_remotes(self, *more: Config) -> None:
        """Tell the pool how many remotes there will be, those of `more` included."""
        configs = [*self._configs(), *more]
        self._pool.remotes = len(
            {(ip, config.dstport) for config in configs for ip in config.remote}
        )

    @contextmanager
    def _naming(self, config: Config) -> Iterator[None]:
        """Have errors say which VNI it is about, where there are several."""
        try:
            yield
        except VtepError as error:
            if not self._many:
                raise
            raise type(error)(f"vni {config.vni}: {error}") from error

    # --- the host's network, in a thread ----------------------------------------------------

    def _survey(self, connection: IPRoute, configs: Iterable[Config]) -> list[Underlay]:
        survey = HostRoutes(connection)
        underlays = []
        for config in configs:
            with self._naming(config):
                underlays.append(survey.resolve_underlay(config.remote, config.local, config.dev))
        return underlays

    def _set_up(self, connection: IPRoute, steps: Iterable[_Step]) -> None:
        for step in steps:
            with self._naming(step.config):
                if step.owner is None:
                    tap_setup.bring_up(connection, step.port.tap, step.setup, step.undo)
                else:
                    before = step.owner.setup()
                    tap_setup.change(connection, step.owner.tap, before, step.setup, step.undo)

    async def _open_tunnel_gso_device(self) -> None:
        """Open the device for tunnel GSO, unless there is one, or the host does not support it."""
        before = self._pool.tunnel_gso_device
        if self._tunnel_gso_refused or (before is not None and before.exists):
            return
        if before is not None:
            before.close()
        self._no_tunnel_gso = None
        try:
            self._pool.tunnel_gso_device = await _on_host(TunnelGsoDevice)
        except (OSError, VtepError) as error:
            self._no_tunnel_gso = str(getattr(error, "strerror", None) or error)
            # A shortage may be over when it is tried again.
            self._tunnel_gso_refused = not isinstance(error, ShortageError)

    def _resolve_tunnel_gso(self) -> None:
        """Start to look up the egress devices of remotes that have asked for tunnel GSO."""
        if self._resolve_task is None or self._resolve_task.done():
            loop = asyncio.get_running_loop()
            self._resolve_task = loop.create_task(self._resolve_all())

    async def _resolve_all(self) -> None:
        def resolve(
            connection: IPRoute, paths: Iterable[TunnelGsoPath]
        ) -> list[tuple[TunnelGsoPath, int | None]]:
            survey = HostRoutes(connection)
            found = []
            for path in paths:
                host, binding = ip_address(path.host), path.binding
                found.append((path, survey.egress_device(host, binding.local, binding.dev)))
            return found

        while paths := self._prober.unresolved():
            try:
                resolved = await _on_host(resolve, paths)
            except (OSError, VtepError):  # The network is being changed at this moment.
                resolved = [(path, None) for path in paths]
            for path, egress in resolved:
                self._prober.on_resolved(path, egress, time.monotonic())

    async def _adapt(self, ports: Iterable[Port]) -> None:
        """Set MTUs and offloads of TAPs for where they are attached, and follow their MTUs."""
        taps = [(port, port.tap, port.tap_index, port.place, port.setup()) for port in ports]

        def adapt(connection: IPRoute) -> list[tuple[Port, TapAttachment]]:
            places = []
            for port, tap, index, before, setup in taps:
                with suppress(VtepError):  # It is not here now, or not ours to change.
                    place = tap_setup.adapt(connection, tap, index, before, setup, superframe_max)
                    places.append((port, place))
            return places

        if taps:
            for port, place in await _on_host(adapt):
                if place.beside not in (0, port.place.beside):
                    log.warning(
                        "vni %d: packets of up to %d octets are dropped in front of %s by its "
                        "bridge: ip link set %s mtu %d",
                        *(port.config.vni, place.beside, port.tap, port.tap, place.beside),
                    )
                if port.adapted(place):
                    self._refitted(port)

    # --- time -------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Do what is due once a tick, or so much of it that frames need not wait long."""
        loop = asyncio.get_running_loop()
        end = time.perf_counter() + _STINT
        for _ in self._chores:
            if time.perf_counter() >= end:
                self._timer = loop.call_soon(self._tick)  # After the frames that wait.
                return
        self._chores = self._housekeeping()
        self._timer = loop.call_later(_TICK, self._tick)

    def _housekeeping(self) -> Iterator[None]:
        """What is due once a tick, in pieces of some ten microseconds, and a few times that."""
        now = time.monotonic()
        for port in tuple(self._ports.values()):
            while port.sweep(now):
                yield
            yield
        if self._follow_devices():
            self._routes_changed = True
            self._look_soon()
        for listener in self._listeners.values():
            listener.rearm()
            listener.tick()
        yield
        self._screening.tick()
        self._pool.refresh_mtus(_LOOKS)
        self._prober.tick(now)
        yield
        self._ticks += 1
        if self._ticks % _QUEUE_TICKS == 0:
            yield from self._counting_queue_drops()
        yield from self._noting_what_was_dropped(now)
        for line in self._drop_log.news(now):
            log.warning("%s", line)

    def _cancel_timer(self) -> None:
        self._timer.cancel()  # The one that is set by then, not the first.

    def _noting_what_was_dropped(self, now: float) -> Iterator[None]:
        self._namespace_counters.note_drops(now)
        self._drop_log.note("", self._namespace_counters)
        for listener in self._listeners.values():
            listener.switch.counters.note_drops(now)
            self._drop_log.note("", listener.switch.counters)
        several = len(self._ports) > 1
        for vni, port in tuple(self._ports.items()):
            port.segment.counters.note_drops(now)
            self._drop_log.note(f"vni {vni}" if several else "", port.segment.counters)
            yield

    def _policy_events(self, events: socket.socket) -> None:
        """Stop using tunnel GSO, since IPsec policies have changed; probing starts again."""
        _drain(events)
        self._pool.senders.network_changes += 1
        self._prober.forget_all()

    def _route_events(self, events: socket.socket) -> None:
        """Send again at once, and look at the underlay: addresses, routes or rules have changed."""
        _drain(events)
        self._pool.senders.network_changes += 1
        self._prober.forget_all()
        self._routes_changed = True
        self._follow_devices()
        self._screening.routes_changed()
        self._look_soon()

    def _address_events(self, events: socket.socket) -> None:
        """Send again at once, and look at the underlay, which may have an own address now."""
        _drain(events)
        self._pool.senders.network_changes += 1
        self._routes_changed = True
        self._follow_devices()
        self._look_soon()

    def _link_events(self) -> None:
        """Look at our devices again, once for all that happened in a moment."""
        changed: set[int] = set()
        restacked = False
        with suppress(OSError):  # Until it is empty.
            while self._links is not None:
                events = self._links.recv(_EVENT_MAX)
                changed |= netlink_events.changed_links(events)
                restacked |= self._screening.links.update(events)
        if restacked:
            # At once: a device that a TAP has become a port of can be used by guests from now on.
            self._screening.update()
        self._links_changed |= changed
        self._pool.senders.network_changes += 1
        self._pool.senders.link_changes += 1
        self._follow_devices()
        self._look_soon()

    def _look_soon(self) -> None:
        self._links_settled = False
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_when_settled())

    def _try_again(self, error: ShortageError) -> None:
        """Log that descriptors did not suffice for a look at the host, which is tried again."""
        descriptors.warn(str(error))
        self._links_drops = -1  # As if events had been lost: all is to be looked at.
        self._look_soon()

    async def _look_when_settled(self) -> None:
        pause = _SETTLED
        while not self._links_settled:
            await asyncio.sleep(pause)
            self._links_settled = True
            changed, self._links_changed = self._links_changed, set()
            routes, self._routes_changed = self._routes_changed, False
            began = time.monotonic()
            try:
                with descriptors.explained("look at this host's network"):
                    await self._look(changed, routes=routes)
            except ShortageError as error:
                self._try_again(error)
                pause = _RETRY
            except VtepError as error:
                log.warning("%s", error)
            else:
                took = 0.0 if changed else time.monotonic() - began
                pause = min(max(_SETTLED, _IDLE_SHARE * took), _PAUSE_MAX)

    async def _look(self, changed: set[int], *, routes: bool) -> None:
        """Follow what has become of the links with these indices and, if `routes`, of all routes.

        Raises ShortageError or OSError where descriptors do not suffice.
        """
        if self._links is None:
            return
        drops = receive_queue_drops(self._links)
        everything, self._links_drops = drops != self._links_drops, drops
        if everything:
            self._screening.read_links()
            self._screening.update()
        device_name.cache_clear()
        if changed or everything:
            self._pool.refresh_mtus()
            self._prober.forget_all()
        self._follow_devices()
        concerned = [
            port
            for port in self._ports.values()
            if everything
            or not changed.isdisjoint(port.links())
            or (changed and port.place.unjoined)  # Any device may be the bridge, or in its way.
        ]
        for port in concerned:
            port.follow()
        surveyed = await self._survey_again(None if everything or routes else changed)
        self._screening.schedule()  # The remotes may be reached by other devices now.
        await self._adapt({*concerned, *surveyed})

    def _follow_devices(self) -> bool:
        """Listen on the devices and addresses that are there now; whether more is ready."""
        more = False
        for listener in self._listeners.values():
            was_ready = listener.is_ready
            if listener.follow():
                self._pool.reconnect(listener.endpoint.binding.dev)
                self._screening.schedule()
            more |= listener.is_ready and not was_ready
        if more:
            self._screening.schedule()
        return more

    async def _survey_again(self, changed: Collection[int] | None) -> list[Port]:
        """Have ports follow underlay devices of these indices; None if all may be different.

        A port that waits for its underlay is concerned by any change. Returns the ports whose TAP
        is to be another one.
        """
        names = {name for port in self._ports.values() for name in port.underlay_devices}
        hit = {name for name in names if changed is None or device_index(name) in changed}

        def survey(
            connection: IPRoute, ports: Iterable[Port]
        ) -> list[tuple[Port, Underlay | VtepError]]:
            found = HostRoutes(connection)
            underlays: list[tuple[Port, Underlay | VtepError]] = []
            for port in ports:
                config = port.config
                try:
                    underlay = found.resolve_underlay(config.remote, config.local, config.dev)
                    underlays.append((port, underlay))
                except VtepError as error:
                    underlays.append((port, error))
            return underlays

        async with self._changing:  # Else it might be of a configuration that has gone by then.
            concerned = [
                port
                for port in self._ports.values()
                if changed is None
                or port.underlay_missing
                or not hit.isdisjoint(port.underlay_devices)
            ]
            if not concerned:
                return []
            try:
                underlays = await _on_host(survey, concerned)
            except ShortageError:
                raise
            except VtepError:  # A device has gone; there will be another event.
                return []
            return [
                port
                for port, underlay in underlays
                if self._ports.get(port.config.vni) is port and port.surveyed(underlay)
            ]

    def _count_queue_drops(self) -> None:
        """Take over what the kernel counted in front of our descriptors."""
        if not self._running:
            return
        for _ in self._counting_queue_drops():
            pass

    def _counting_queue_drops(self) -> Iterator[None]:
        self._count_in_front_of_sockets()
        yield
        ports = {port.tap: port for port in self._ports.values()}
        with suppress(OSError):
            for name, drops in queue_drops():
                port = ports.get(name)
                if port is not None:
                    port.count_queue_drops(drops)
                yield

    def _read_udp_errors(self) -> None:
        for version in (4, 6):
            with suppress(OSError, ValueError):  # There may be no /proc, or no IPv6.
                self._udp_errors[version] = UdpErrors.read(version)

    def _count_in_front_of_sockets(self) -> None:
        """Count what the kernel has discarded before we could receive it, each by its reason.

        What it counts at a socket has several reasons, and each of those is counted for the whole
        namespace only. A datagram is counted here by one of them.
        """
        for listener in self._listeners.values():
            listener.read_queue_drops()
        before = self._udp_errors.copy()
        self._read_udp_errors()
        for version in (4, 6):
            listeners = [each for each in self._listeners.values() if each.version == version]
            now = self._udp_errors.get(version)
            if now is None:  # Then a full queue is what they are all taken for.
                overflow = sys.maxsize
            else:
                was = before.get(version, now)
                overflow = max(0, now.overflow - was.overflow)
                if listeners:
                    wrong = max(0, now.checksum - was.checksum)
                    self._namespace_counters.drops[Drop.UDP_CHECKSUM] += wrong
            # A datagram may be in this count already, and in that of its socket the next time.
            left = self._overflow.get(version, 0) + overflow
            for listener in listeners:
                left = listener.count_queue_drops(left)
            self._overflow[version] = min(left, overflow)


def _drain(events: socket.socket) -> None:
    """Read a netlink socket until it is empty."""
    with suppress(OSError):
        while True:
            events.recv(_EVENT_MAX)


def _difference(before: Config, after: Config) -> dict[str, object]:
    """The options that are not what they were, with their new values."""
    names = (field.name for field in fields(Config))
    return {
        name: getattr(after, name)
        for name in names
        if getattr(after, name) != getattr(before, name)
    }


def _roll_back(connection: IPRoute, steps: Collection[_Step]) -> None:
    """Take back what `Vtep._set_up` has changed of TAPs, as far as it came.

    A TAP that vanishes with its port is left as it is.
    """
    for step in reversed([*steps]):
        if step.owner is None and step.port.tap_goes:
            continue
        for undo in reversed(step.undo):
            try:
                undo(connection)
            except NetlinkError as error:
                name = step.port.tap
                log.error(  # noqa: TRY400
                    "rollback of %s failed: %s; see what it is now: ip address show dev %s",
                    *(name, error.args[1], name),
                )


async def _close(taps: Collection[Tap | TunnelGsoDevice]) -> None:
    """Close each, in threads: the kernel waits a while before it removes a device."""
    loop = asyncio.get_running_loop()
    if len(taps) > _CLOSERS:
        # For many at once it waits no longer. Whether that was refused does not matter.
        with suppress(VtepError):
            await _on_host(
                tap_setup.remove_devices, [tap.name for tap in taps if tap.removed_on_close]
            )
    with ThreadPoolExecutor(_CLOSERS) as threads:
        closing = [loop.run_in_executor(threads, tap.close) for tap in taps]
        await asyncio.gather(*closing)


async def _close_ports(ports: Iterable[Port]) -> None:
    await _close([tap for port in ports if (tap := port.release())])


async def _on_host(
    function: Callable[Concatenate[IPRoute, _P], _T], *args: _P.args, **kwargs: _P.kwargs
) -> _T:
    """Call a function that talks to the kernel about its network, in a thread."""

    def call() -> _T:
        with netlink.session() as connection:
            try:
                return function(connection, *args, **kwargs)
            except NetlinkError as error:  # Such as of a device that somebody removes meanwhile.
                raise VtepError(f"the kernel refused a change: {error.args[1]}") from error

    with ThreadPoolExecutor(max_workers=1) as thread:
        return await asyncio.get_running_loop().run_in_executor(thread, call)
