"""`Vtep`, the public class: a VXLAN tunnel endpoint in an asyncio event loop.

It owns the parts of the daemon and joins them; what each of them does is in its module:

- `port`: one VNI with its TAP; `ports`: all of them, and the watchers of their changes
- `listener`, `listeners`: the receiving sockets, which VNIs share
- `reconfigure`: transactions that add, change and remove ports
- `host_watch`: changes of the host's devices, routes and addresses
- `ingress_filters`: which sources and devices the kernel may deliver datagrams of
- `names`: lookups of the host names among the remotes
- `housekeeping`: periodic work; `kernel_drops`: the counters of what the kernel discarded

Frames pass through none of these, but through `vtep.datapath`.
"""

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self

from attrs import frozen

from vtep import descriptors
from vtep.config import Config, check_segments
from vtep.config.network_bridge import NetworkBridge
from vtep.config.vlans import join_tap, share_tap
from vtep.counters import Counters, Drop, Reason
from vtep.daemon.fast_path_loader import FastPathLoader
from vtep.daemon.host_watch import HostWatch
from vtep.daemon.housekeeping import Housekeeping
from vtep.daemon.kernel_network import KernelNetwork
from vtep.daemon.listeners import Listeners
from vtep.daemon.liveness_prober import LivenessProber
from vtep.daemon.names import NameResolver
from vtep.daemon.network import HostNetwork
from vtep.daemon.parts import Parts
from vtep.daemon.port import Port
from vtep.daemon.port_events import PortEvents
from vtep.daemon.ports import Watcher, naming_vni
from vtep.daemon.progress import Reader, readers
from vtep.daemon.reconfigure import Delta, Reconfigurer, close_taps
from vtep.datapath import Arena
from vtep.errors import VtepError
from vtep.fastpath.state import FastPathState, FastPathStatus
from vtep.forwarding.fdb import Fdb
from vtep.host.link_table import Link, LinkTable
from vtep.io.inherited import Inherited, namespace_role, tap_role
from vtep.io.interfaces import SocketFactory, TapDevice
from vtep.io.udp import UdpSockets
from vtep.tunnel_gso.device import TunnelGsoDevice
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber
from vtep.wire.echo import TOKEN_LEN

log = logging.getLogger("vtep")

_RESUME_DELAY_S = 0.05
"""Seconds from the first reads after a pause to the work that is not about frames."""


@frozen
class Reload:
    """The result of a reload of the configuration."""

    successful: bool
    time: float
    """In seconds since the epoch."""


_IN_PROGRESS = frozenset((FastPathStatus.LOADING, FastPathStatus.COMPILING))


class Vtep:
    """A VXLAN tunnel endpoint that runs in the current asyncio event loop.

    Use it as an asynchronous context manager, or call `start` and `stop`. It forwards in between
    without further calls; `wait` returns when it has ended. Call all methods from the thread of the
    event loop.

    It has one port for each VNI, and frames never cross from one to another. While it runs, `add`,
    `remove`, `change` and `reload` change the set of ports, and ports that they do not concern
    forward without an interruption. Each of them does all that was asked, or raises ConfigError or
    VtepError and has changed nothing.

    `network` and `sockets` are those of this host unless given: `vtep.testing` has some in memory.
    `inherited` has TAPs and sockets that are open already, for instance from the descriptor store
    of a service manager: they are used in place of new ones.
    """

    def __init__(
        self,
        *configs: Config,
        network: HostNetwork | None = None,
        sockets: SocketFactory | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        check_segments(configs)
        self._network = network or KernelNetwork()
        # The prober needs a VTEP to look up egress devices, and the VTEP's pool needs the prober.
        prober = GsoProber[TunnelGsoPath](
            lambda: secrets.token_bytes(TOKEN_LEN), self._on_egress_needed
        )
        self.inherited = inherited or Inherited()
        """Open descriptors that the start takes over; it closes those that it does not need."""
        self._parts = parts = Parts.make(
            *(self._network, sockets or UdpSockets(), prober, self.inherited)
        )
        # Compiled turns use the descriptors of sockets and TAPs, which those in memory lack.
        self._fast_path = FastPathLoader(
            None if sockets is None else "the sockets are not those of the kernel"
        )
        self._pool = parts.pool
        self._arena = Arena()
        self._ports = parts.ports
        for config in configs:
            self._ports.put(self._make_port(config))
        self.ports: Mapping[int, Port] = self._ports.by_vni
        """The ports by VNI."""
        self.taps_lost = 0
        """The number of ports that ended because their TAP was removed from outside."""
        self.lost: dict[int, Port] = {}
        """The ports that ended because their TAP was removed, by VNI, until the VNI is added again
        or left out of the configuration."""
        self._taps_lost_before = 0
        self.started: float | None = None
        """When forwarding began, in seconds since the epoch; None before."""
        self.last_reload: Reload | None = None
        """The last reload of the configuration; None if there was none."""
        self.counters_reset: float | None = None
        """When `reset_counters` was last called, in seconds of the monotonic clock."""
        self.evpn_status: Callable[[], Any] | None = None
        """Returns the state of EVPN (`vtep.control.schema.EvpnStatus`); None without EVPN."""
        self.evpn_watchers: list[Callable[[str, str], None]] = []
        """Called with "established" or "down", and the neighbour, when a BGP session changes."""
        self.unmatched = parts.unmatched
        """The VTEPs whose EVPN routes no VNI takes, which explains some drops."""
        self.on_flushed: Callable[[], None] | None = None
        """Called after a user has flushed entries; None without EVPN."""
        self._lock = asyncio.Lock()
        self._fast_path_known = asyncio.Event()
        self._ended: asyncio.Future[None] | None = None
        self._running = False
        self._is_new = False
        self.names = NameResolver(self._network, self._apply_names)
        """The host names among the remotes."""
        self._host_watch = HostWatch(
            parts, self._lock, self._on_mtu_changed, self.names.on_host_changed
        )
        self._housekeeping = Housekeeping(parts, self._host_watch, self._fast_path)
        self._reconfigurer = Reconfigurer(
            *(parts, self._host_watch, self._make_port, self._check_not_ended),
            PortEvents(
                self._on_tap_lost,
                self._on_mtu_changed,
                self._on_family_needed,
                self._host_watch.on_remotes_changed,
                self._host_watch.on_namespace_changed,
            ),
        )

    def _make_port(self, config: Config) -> Port:
        return Port(
            *(config, self._pool, self._arena, self._network, self._fast_path, self.inherited),
            self._parts.trunks,
        )

    def _on_egress_needed(self) -> None:
        self._parts.tunnel_gso.resolve()

    # --- queries ----------------------------------------------------------------------------

    @property
    def port(self) -> Port:
        """The port of a VTEP that has one VNI only."""
        (port,) = self._ports
        return port

    @property
    def fdb(self) -> Fdb:
        """The forwarding database of a VTEP that has one VNI only."""
        return self.port.fdb

    @property
    def tap(self) -> str:
        """The name of the TAP device of a VTEP that has one VNI only."""
        return self.port.tap

    @property
    def mtu(self) -> int:
        """The largest IP packet in octets that the tunnel of the only VNI carries."""
        return self.port.mtu

    @property
    def fast_path(self) -> FastPathState:
        """The state of the fast path of this process; that of a port may be another one."""
        return self._fast_path.state

    @property
    def fast_path_failed(self) -> bool:
        """True if an error has kept the fast path off."""
        return self._fast_path.has_failed

    def counters(self, *, since_reset: bool = False) -> dict[str, int]:
        """Return all counters by name, summed over all VNIs; see `vtep.counters`.

        With `since_reset`, each counts from the last call of `reset_counters`.
        """
        self._count_kernel_drops()
        total = {"taps_lost": self.taps_lost - (self._taps_lost_before if since_reset else 0)}
        now = time.monotonic()
        for part in self._all_counters():
            part.note_drops(now)
            for name, count in (part.since_reset() if since_reset else part.as_dict()).items():
                total[name] = total.get(name, 0) + count
        return total

    def link_of(self, port: Port) -> Link | None:
        """Return the TAP of a port as the kernel has notified of it; None if it is not known."""
        return self._links_of(port).get(port.tap_index)

    def bridge_of(self, port: Port) -> Link | None:
        """Return the bridge that the TAP of a port is attached to; None for none."""
        link = self.link_of(port)
        bridge = self._links_of(port).get(link.master) if link is not None else None
        return bridge if bridge is not None and bridge.kind == "bridge" else None

    def _links_of(self, port: Port) -> LinkTable:
        """Return the devices of the network namespace that the TAP of a port is in."""
        if port.place.namespace is not None:
            return port.place.namespace.links
        return self._parts.filters.links if port.is_here else LinkTable()

    @property
    def liveness(self) -> LivenessProber:
        """The liveness of the remotes."""
        return self._parts.liveness

    def shared_counters(self) -> Iterator[Counters]:
        """Yield the counters that belong to no VNI: of the namespace, listeners and trunks."""
        yield self._parts.kernel_drops.namespace
        for _, counters in self.trunk_counters():
            yield counters
        for listener in self._parts.listeners:
            yield listener.demux.counters

    def _all_counters(self) -> Iterator[Counters]:
        yield from self.shared_counters()
        for port in self._ports:
            yield port.segment.counters

    def _count_kernel_drops(self) -> None:
        if self._running:
            self._parts.kernel_drops.count()

    def reset_counters(self) -> None:
        """Reset the counters that `counters(since_reset=True)` returns; others go on counting."""
        self._count_kernel_drops()
        for part in self._all_counters():
            part.reset()
        self._taps_lost_before = self.taps_lost
        self.counters_reset = time.monotonic()

    def last_sources(self) -> dict[Reason, str]:
        """Return the last underlay address for each reason of a drop or a notice."""
        parts = self._all_counters()
        return {reason: host for part in parts for reason, host in part.last_source.items()}

    def last_drops(self) -> dict[Drop, float]:
        """Return when the counter of each reason last increased, on the monotonic clock.

        The time is exact to the second or, for drops in the kernel, to ten seconds.
        """
        last: dict[Drop, float] = {}
        for part in self._all_counters():
            for reason, at in part.last_drop.items():
                last[reason] = max(at, last.get(reason, at))
        return last

    def readers(self) -> Iterator[Reader]:
        """Yield the descriptors that the data path waits for, with its progress at each of them."""
        return readers(self._parts)

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` after each change of a port is complete.

        Returns: a function that ends this.
        """
        return self._ports.watch(watcher)

    # --- life -------------------------------------------------------------------------------

    async def start(self, *, paused: bool = False) -> None:
        """Open the underlay and the TAPs, and begin to forward, or with `paused` not yet.

        While it is paused, it has everything that it needs to forward, but reads nothing and
        changes nothing on the host: another process may forward with the same TAPs and sockets.

        Parts of the underlay may appear later: a route to a remote, the configured device or own
        address, the device of a link-local remote. `start` does not wait for them, and there is no
        timeout: `Port.underlay_missing` names what is absent, and the log reports it, and when it
        has appeared. Until then, frames to unreachable remotes are dropped and counted as
        `underlay_unreachable`.

        Raises: VtepError, with a remedy, if the host refuses, or if the configuration can never
        work on it: a remote that is an own address, a UDP port in use. Nothing is left behind.
        """
        if self._ended is not None:
            raise RuntimeError("a Vtep can be started only once; make another one")
        self._ended = asyncio.get_running_loop().create_future()
        try:
            # Before the first lookup, so that no change between the two goes unnoticed.
            with descriptors.explained("subscribe to the notifications of this host's network"):
                self._host_watch.subscribe()
            self._parts.filters.read_links()
            self._parts.kernel_drops.start()
            if paused:
                self._pause_parts()
            else:
                self._network.take_tap_fds(self._ports.configs(), self.inherited)
            async with self._lock:
                await self._reconfigurer.apply(Delta((), (), tuple(self._ports)))
            self.names.want(self._ports.configs())
            if not paused:
                self.started = time.time()
                self._host_watch.start()
                self._housekeeping.start()
                self.names.start()
        except BaseException as error:
            if paused:
                self._parts.listeners.release_guards()
            for tap in self._end(error if isinstance(error, VtepError) else None):
                tap.close()
            raise
        self._running = True
        self._is_new = paused
        self.inherited.close()
        self._adjust_fast_path()

    def _pause_parts(self) -> None:
        self._parts.filters.is_paused = True
        self._host_watch.pause()
        for port in self._ports:
            port.pause()
        self._parts.listeners.pause()

    def pause(self) -> None:
        """Read no TAP and no socket, and change nothing on the host, until `resume`."""
        self._housekeeping.stop()
        self._pause_parts()

    def resume(self) -> None:
        """Begin to forward after a paused start, or continue after `pause`."""
        self._parts.listeners.resume()
        for port in self._ports:
            port.resume()
        self.started = self.started or time.time()
        # Frames that have queued come first. The filter of many sources takes 20 ms to make.
        asyncio.get_running_loop().call_later(_RESUME_DELAY_S, self._resume_housekeeping)

    def _resume_housekeeping(self) -> None:
        if self._ended is None or self._ended.done():
            return
        self._parts.filters.is_paused = False
        if self._is_new:
            self._is_new = False
            self._host_watch.start()
            self._parts.kernel_drops.start()
            self.names.start()
        else:
            for port in self._ports:
                with suppress(OSError):  # The TAP is gone: its reader will notice.
                    port.reassert()
        self._host_watch.resume()
        self._parts.filters.update()
        self._housekeeping.start()

    @property
    def is_waiting(self) -> bool:
        """True while datagrams of a port wait for room in a send buffer."""
        return any(port.is_waiting for port in self._ports)

    def replace_configs(self, configs: Iterable[Config]) -> None:
        """Start with these configurations in place of those that the constructor was given."""
        if self._ended is not None:
            raise RuntimeError("the Vtep has started: use reload()")
        configs = tuple(configs)
        check_segments(configs)
        self._ports.clear()
        for config in configs:
            self._ports.put(self._make_port(config))

    async def load_fast_path(self, seconds: float) -> None:
        """Load the fast path before the start, if a port is to use it; wait for that so long."""
        self._adjust_fast_path()
        if self._fast_path.state.status in _IN_PROGRESS:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._fast_path_known.wait(), seconds)

    @property
    def namespace_counters(self) -> Counters:
        """Drops of the whole network namespace, which belong to no port and no listener."""
        return self._parts.kernel_drops.namespace

    def trunk_counters(self) -> Iterator[tuple[str, Counters]]:
        """Yield the drops of each TAP that several VNIs share, with the name of the TAP."""
        return self._parts.trunks.counters()

    @property
    def listeners(self) -> Listeners:
        """The listeners, which the ports share."""
        return self._parts.listeners

    @property
    def lock(self) -> asyncio.Lock:
        """Held while the set of ports changes, or must not change."""
        return self._lock

    def descriptors(self) -> Iterator[tuple[str, int]]:
        """Yield role and descriptor of each open TAP, with its namespace, and receiving socket."""
        for role, tap in self.taps():
            yield role, tap.fd
        for port in self._ports:
            if port.place.namespace is not None:
                for part, fd in port.place.namespace.descriptors():
                    yield namespace_role(port.config.tap, part), fd
        for listener in self._parts.listeners:
            yield from listener.descriptors()

    def taps(self) -> Iterator[tuple[str, TapDevice]]:
        """Yield role and device of each open TAP: once, also of one that several VNIs share."""
        for name, trunk in self._parts.trunks:
            yield tap_role(name), trunk.tap
        for port in self._ports:
            if port.is_open and port.config.vlan is None:
                yield tap_role(port.config.tap), port.device

    async def release(self) -> None:
        """End forwarding, for another process that has the TAPs and sockets and continues."""
        self._parts.listeners.release_guards()
        for tap in self._end(None):
            tap.close()

    async def stop(self) -> None:
        """Stop forwarding, close all sockets, and remove the TAPs that were created."""
        await close_taps(self._network, self._end(None))

    async def wait(self) -> None:
        """Wait until forwarding has ended.

        Returns after `stop`. Raises: VtepError if the last TAP was removed from outside.
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

    def _end(self, error: VtepError | None) -> list[TapDevice | TunnelGsoDevice]:
        """End forwarding.

        Returns: the TAPs, which are to be closed.
        """
        self._count_kernel_drops()
        self._parts.tunnel_gso.stop()
        self._parts.filters.stop()
        self._running = False
        self._fast_path.stop()
        taps: list[TapDevice | TunnelGsoDevice] = [
            tap for port in self._ports if (tap := port.release())
        ]
        self._parts.listeners.close()
        self._housekeeping.stop()
        self._host_watch.stop()
        self.names.stop()
        if self._pool.tunnel_gso_device is not None:
            taps.append(self._pool.tunnel_gso_device)
            self._pool.tunnel_gso_device = None
        if self._ended is None or self._ended.done():
            return taps
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
            # Marks it as retrieved: without a call of wait(), the context manager raises it.
            self._ended.exception()
        return taps

    def check_running(self) -> None:
        """Raise VtepError if the VTEP has ended, for instance because its last TAP was removed."""
        self._check_not_ended()

    @asynccontextmanager
    async def continued(self) -> AsyncIterator[Self]:
        """Stop the VTEP, which has started before, at the end; as the VTEP as a context does."""
        try:
            yield self
        except BaseException:
            await self.stop()
            raise
        await self.__aexit__(None, None, None)

    def _check_not_ended(self) -> None:
        if self._ended is None or self._ended.done():
            raise VtepError("the VTEP was stopped during its start")

    # --- events of ports --------------------------------------------------------------------

    def _on_tap_lost(self, port: Port, error: OSError | VtepError) -> None:
        """End a port whose TAP is gone; with the last one, end the VTEP."""
        if isinstance(error, VtepError):
            lost = error
        else:
            # EBADFD is what a read of a removed TAP returns: its text would only confuse.
            reason = "" if error.errno == errno.EBADFD else f": {error.strerror}"
            lost = VtepError(f"the TAP device {port.tap} was removed{reason}")
        if len(self._ports) == 1:
            for tap in self._end(lost):
                tap.close()
            return
        self.taps_lost += 1
        log.error("vni %d has ended: %s", port.config.vni, lost)
        port.close()
        self._ports.discard(port)
        self.lost[port.config.vni] = port
        self._parts.listeners.close_idle(self._ports)
        self._parts.filters.schedule()

    def _on_mtu_changed(self, port: Port) -> None:
        """Report that the MTU of a tunnel has changed while it runs."""
        log.warning(
            "vni %d: the tunnel carries packets of %d octets now", port.config.vni, port.mtu
        )
        self._ports.notify("changed", port, {"mtu": port.mtu})

    def _on_family_needed(self, port: Port, version: int) -> None:
        """Listen over one more IP version, since an FDB entry of the port has a remote there."""
        try:
            with naming_vni(port.config, several=len(self._ports) > 1):
                port.add_listener(self._parts.listeners.open(port.config, version))
                self._parts.filters.schedule()
        except VtepError as error:
            log.error("cannot listen on IPv%d: %s", version, error)  # noqa: TRY400

    # --- changes ----------------------------------------------------------------------------

    async def add(self, config: Config) -> None:
        """Add a port for one more VNI."""
        async with self._lock:
            if config.vni in self.ports:
                raise VtepError(
                    f"vni {config.vni}: already exists; change it (pyvtep set) or delete it first "
                    "(pyvtep vni del)"
                )
            others = self._ports.configs()
            if config.vlan is not None:
                shared = [other for other in others if other.tap == config.tap]
                config = join_tap(config, shared[0]) if shared else config
            await self._reconcile([*others, config])

    async def remove(self, vni: int) -> None:
        """Remove the port of a VNI, and its TAP if it was created for it."""
        async with self._lock:
            if self.lost.pop(vni, None) is not None:
                return
            self._ports.get(vni)
            await self._reconcile(config for config in self._ports.configs() if config.vni != vni)

    async def change(self, config: Config) -> None:
        """Change the port of a VNI to another configuration."""
        async with self._lock:
            self._ports.get(config.vni)
            others = [
                # An option of the TAP changes for all VNIs that share it.
                share_tap(other, config)
                if config.vlan is not None and other.tap == config.tap
                else other
                for other in self._ports.configs()
                if other.vni != config.vni
            ]
            await self._reconcile([*others, config], again=(config.vni,))

    async def attach(self, vni: int, network: NetworkBridge) -> None:
        """Move the TAP of a VNI to the bridge of its Docker network, whose gateways it gets.

        Raises: VtepError if the host refuses; nothing has changed then.
        """
        async with self._lock:
            port = self._ports.get(vni)
            before, port.network_bridge = port.network_bridge, network
            try:
                await self._reconfigurer.apply(Delta((), ((port, port.config),), ()))
            except BaseException:
                port.network_bridge = before
                raise

    async def reload(self, configs: Iterable[Config]) -> None:
        """Make the ports exactly those that are configured here.

        Configured remotes that were removed from a default FDB entry by hand are added again.
        """
        async with self._lock:
            await self._reconcile(configs, again=tuple(self.ports))
            self.lost.clear()
        self.names.look_up_again()

    async def _reconcile(self, configs: Iterable[Config], again: Iterable[int] = ()) -> None:
        if self._ended is not None and self._ended.done():
            raise VtepError("the VTEP has ended: start another one")
        if not self._running:
            raise RuntimeError("start() the Vtep first")
        try:
            await self._reconfigurer.reconcile(await self.names.resolve(configs), frozenset(again))
        finally:
            self.names.want(self._ports.configs())
        for vni in self.ports:
            self.lost.pop(vni, None)
        self._adjust_fast_path()

    async def _apply_names(self) -> None:
        """Change the remotes to the present addresses of their names. Raises: VtepError."""
        async with self._lock:
            configs = self._ports.configs()
            if not self._running or not any(config.remote_names for config in configs):
                return
            resolved = await self.names.resolve(configs)
            if any(
                after.remote_addresses != before.remote_addresses
                for before, after in zip(configs, resolved, strict=True)
            ):
                await self._reconfigurer.reconcile(resolved)

    def retry_fast_path(self) -> None:
        """Load the fast path once more if that has failed, and a port is to use it."""
        self._fast_path.retry()
        self._adjust_fast_path()

    def _adjust_fast_path(self) -> None:
        """Begin to load the fast path when a port is to use it; stop when none is."""
        if any(port.config.fast_path and port.config.vlan is None for port in self._ports):
            self._fast_path.start(self._on_fast_path_changed)
        else:
            self._fast_path.stop()
            self._on_fast_path_changed()

    def _on_fast_path_changed(self) -> None:
        self._fast_path_known.set()
        self._parts.listeners.use_fast_path(self._fast_path.fast_path)
        for port in self._ports:
            port.update_fast_path()
