"""Changes of a running VTEP: transactions that add, change and remove ports, or do nothing.

Whatever can fail comes first (`_prepare`): lookups, sockets, new TAPs, changes of existing TAPs.
Each of these registers how it is undone. Then `_commit` lets the result forward, without a failure
and without giving other tasks a turn in between.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial

from attrs import define, evolve, field, frozen

from vtep import descriptors
from vtep.config import Config, check_segments
from vtep.daemon.host_watch import HostWatch
from vtep.daemon.listener import Listener
from vtep.daemon.network import HostNetwork, HostSession, TapHost, Undo
from vtep.daemon.parts import Parts
from vtep.daemon.port import Port
from vtep.daemon.port_events import PortEvents
from vtep.daemon.ports import changed_options, naming_vni, shared_setup, take_over
from vtep.daemon.tap_plan import combine_setups, plan_tap
from vtep.descriptors import ShortageError
from vtep.errors import VtepError
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapSetup
from vtep.io.interfaces import TapDevice
from vtep.tunnel_gso.device import TunnelGsoDevice

log = logging.getLogger("vtep")

_CLOSERS = 16
"""TAPs that are closed at a time, each in a thread; more than that are removed by one request."""


@frozen
class Delta:
    """The difference between the ports that there are and those that are wanted."""

    removed: tuple[Port, ...]
    changed: tuple[tuple[Port, Config], ...]
    added: tuple[Port, ...]


@define(eq=False)
class _Step:
    """One port of a transaction: its new configuration, and what was prepared for it."""

    port: Port
    config: Config
    underlay: Underlay
    setup: TapSetup
    listeners: tuple[Listener, ...]
    owner: Port | None
    """The port that holds the TAP now: the same one, one that is removed, or None if it is new."""
    undo: list[Undo] = field(factory=list)
    """Functions that revert the changes of the TAP, in the order of the changes."""
    resizes_shared: bool = False
    """True if the MTU of a TAP that other ports have as well has changed."""

    @property
    def tap_host(self) -> TapHost:
        """The network namespace of the TAP."""
        return (self.owner or self.port).place.host


@frozen
class _Prepared:
    removed: tuple[Port, ...]
    steps: list[_Step]
    queue_drops: dict[str, int]
    """Transmit drops of each device so far."""


class Reconfigurer:
    """Carries out transactions on the ports of a VTEP.

    The caller holds the lock that keeps transactions apart. `make_port` makes a port that is not
    open yet. `check_running` raises VtepError once the VTEP has ended.
    """

    def __init__(
        self,
        parts: Parts,
        host_watch: HostWatch,
        make_port: Callable[[Config], Port],
        check_running: Callable[[], None],
        events: PortEvents,
    ) -> None:
        self._network = parts.network
        self._ports = parts.ports
        self._listeners = parts.listeners
        self._filters = parts.filters
        self._kernel_drops = parts.kernel_drops
        self._tunnel_gso = parts.tunnel_gso
        self._host_watch = host_watch
        self._make_port = make_port
        self._check_running = check_running
        self._events = events
        self._several = False
        self._unavailable_logged: set[str] = set()

    async def reconcile(self, configs: Iterable[Config], again: Collection[int] = ()) -> None:
        """Make the ports those that are configured here.

        The VNIs in `again` also get back the configured remotes that their FDB has lost.
        Raises: ConfigError or VtepError, and has changed nothing.
        """
        asked = list(configs)
        check_segments(asked)
        await self.apply(self._delta(asked, again))

    def _delta(self, configs: Iterable[Config], again: Collection[int]) -> Delta:
        wanted = {config.vni: config for config in configs}
        removed: list[Port] = []
        changed: list[tuple[Port, Config]] = []
        added: list[Port] = []
        for port in self._ports:
            vni = port.config.vni
            config = wanted.pop(vni, None)
            if (
                config == port.config
                # Equal configurations may have names whose addresses have changed.
                and config.remote_addresses == port.config.remote_addresses
                and not (vni in again and port.segment.lacks_remotes())
            ):
                continue
            if config is not None and _place_of_tap(config) == _place_of_tap(port.config):
                changed.append((port, config))
                continue
            removed.append(port)
            if config is not None:  # The same VNI on another TAP is another port.
                added.append(self._make_port(config))
        added += [self._make_port(config) for config in wanted.values()]
        return Delta(tuple(removed), tuple(changed), tuple(added))

    async def apply(self, delta: Delta) -> None:
        """Carry out a transaction. Raises: VtepError, and has changed nothing."""
        with descriptors.explained("open TAPs and sockets"):
            prepared = await self._prepare(delta)
            left = self._commit(prepared)
        await close_taps(self._network, left)
        try:
            # A TAP that a removed port has shared may have another MTU now, and fewer VLANs.
            names = {port.config.tap for port in prepared.removed}
            sharing = [port for port in self._ports if port.config.tap in names]
            await self._host_watch.adapt([*(step.port for step in prepared.steps), *sharing])
        except ShortageError as error:
            self._host_watch.retry(error)

    # --- prepare: may fail, and is undone then --------------------------------------------------

    async def _prepare(self, delta: Delta) -> _Prepared:
        asked = [*delta.changed, *((port, port.config) for port in delta.added)]
        kept = {port for port, _ in delta.changed}
        self._several = len({*self._ports, *delta.added} - {*delta.removed}) > 1
        async with AsyncExitStack() as undo:
            undo.callback(self._listeners.close_idle, self._ports)
            undo.callback(self._ports.expect_remotes)
            # Before any path is made: the number of remotes decides how many source ports each has.
            self._ports.expect_remotes(*(config for _, config in asked))
            steps = await self._plan(asked, kept, delta.removed)
            opened: list[Port] = []
            undo.push_async_callback(self._close_ports, opened)
            queue_drops = dict(self._network.tap_queue_drops())
            for step in steps:
                if step.owner is None:
                    opened.append(step.port)
                    with naming_vni(step.config, several=self._several):
                        if (step.config.netns, step.config.tap_fd) != (None, None):
                            await asyncio.to_thread(step.port.prepare)
                        step.port.open(queue_drops)
            undo.push_async_callback(_roll_back, steps)
            for host, group in by_host(steps):
                await host.run(partial(self._set_up_taps, group))
            if any("tnl" in config.offload for _, config in asked):
                await self._tunnel_gso.open_device()
            # Probed and cached now: the commit must not need a descriptor.
            self._network.gso_supported()
            self._check_still_there([*delta.removed, *kept])
            undo.pop_all()
        return _Prepared(delta.removed, steps, queue_drops)

    async def _plan(
        self, asked: list[tuple[Port, Config]], kept: set[Port], removed: Iterable[Port]
    ) -> list[_Step]:
        """Look up the underlays, and open the listeners; no TAP is touched yet."""
        configs = [config for _, config in asked]
        underlays = await self._network.run(lambda session: self._underlays(session, configs))
        # By the configured place: devices in two namespaces may have one name.
        owners = {(*_place_of_tap(port.config), port.tap): port for port in removed}
        steps = []
        for (port, config), underlay in zip(asked, underlays, strict=True):
            with naming_vni(config, several=self._several):
                setup = plan_tap(port.effective_with(config), port.underlay.with_last_mtu(underlay))
                listeners = self._listeners.open_all(config, port.versions(config))
            owner = port if port in kept else owners.get((*_place_of_tap(config), config.tap))
            steps.append(_Step(port, config, underlay, setup, listeners, owner))
        return steps

    def _underlays(self, session: HostSession, configs: Iterable[Config]) -> list[Underlay]:
        routes = session.routes()
        underlays = []
        for config in configs:
            with naming_vni(config, several=self._several):
                underlays.append(
                    routes.resolve_underlay(config.remote_addresses, config.local, config.dev)
                )
        return underlays

    def _set_up_taps(self, steps: Collection[_Step], session: HostSession) -> None:
        shared: set[str] = set()
        for step in steps:
            with naming_vni(step.config, several=self._several):
                if step.owner is None and step.port.keeps_setup:
                    continue  # In use as it is; a reconfiguration later changes what differs.
                if step.config.vlan is not None:
                    if step.config.tap not in shared:
                        self._set_up_shared(session, step, steps)
                    shared.add(step.config.tap)
                elif step.owner is None:
                    session.bring_up(step.port.tap, step.setup, step.undo)
                else:
                    session.change(step.owner.tap, step.owner.setup(), step.setup, step.undo)

    def _set_up_shared(self, session: HostSession, step: _Step, steps: Collection[_Step]) -> None:
        """Set up the TAP of a step that several ports share, with regard to all of them."""
        new = {each.port for each in steps if each.owner is None}
        present = [
            port for port in self._ports if port.config.tap == step.config.tap and port not in new
        ]
        setups = [each.setup for each in steps if each.config.tap == step.config.tap]
        vnis = {each.config.vni for each in steps}
        setups += [port.setup() for port in present if port.config.vni not in vnis]
        after = combine_setups(setups)
        if present:
            before = shared_setup(present)
            session.change(present[0].tap, before, after, step.undo)
            step.resizes_shared = before.mtu != after.mtu
        else:
            session.bring_up(step.port.tap, after, step.undo)

    async def _close_ports(self, ports: Iterable[Port]) -> None:
        await close_taps(self._network, [tap for port in ports if (tap := port.release())])

    def _check_still_there(self, ports: Iterable[Port]) -> None:
        """Raise VtepError if the VTEP has ended since, or the TAP of a port was removed."""
        self._check_running()
        for port in ports:
            if port not in self._ports:
                raise VtepError(f"vni {port.config.vni}: its TAP was removed during the change")

    # --- commit: neither waits nor fails --------------------------------------------------------

    def _commit(self, prepared: _Prepared) -> list[TapDevice]:
        """Start and change the ports as prepared.

        Returns: the TAPs that no port uses any more, which are to be closed.
        """
        removed, steps = prepared.removed, prepared.steps
        owners = frozenset(removed)
        self._kernel_drops.count()  # While the removed ports can still be charged with theirs.
        for step in steps:
            if step.owner is not None and step.owner in owners:
                step.port.adopt(step.owner, prepared.queue_drops)
        left = [tap for port in removed if (tap := port.release())]
        former = {port.config.vni: port for port in removed}
        for port in removed:
            self._ports.discard(port)
        for step in steps:
            try:
                if step.owner is step.port:
                    self._change(step)
                else:
                    self._start(step, former.get(step.config.vni))
            except OSError as error:  # The TAP is removed at this very moment.
                self._events.on_tap_lost(step.port, error)
            if step.resizes_shared:
                for port in self._ports.sharing(step.port):
                    port.attachment = evolve(port.attachment, mtu=None)
        self._ports.expect_remotes()
        self._listeners.close_idle(self._ports)
        # The set-up of the TAPs has made notifications: the filters must know these TAPs now.
        self._host_watch.on_links_changed()
        self._filters.on_reconfigured()
        self._log_unavailable_offloads(step.port for step in steps)
        return left

    def _change(self, step: _Step) -> None:
        before = step.port.config
        step.port.change(step.config, step.underlay, step.listeners)
        self._ports.notify("changed", step.port, changed_options(before, step.config))

    def _start(self, step: _Step, former: Port | None) -> None:
        port = step.port
        self._ports.put(port)
        port.start(step.underlay, step.listeners, self._events)
        port.fdb.members.on_changed = self._filters.schedule
        if former is not None:  # The VNI has moved to another TAP.
            take_over(port, former)
        self._ports.notify("added", port, {})

    def _log_unavailable_offloads(self, ports: Iterable[Port]) -> None:
        """Log once for each offload that is configured, but not available."""
        for port in ports:
            for name in sorted(port.config.offload - port.offload - self._unavailable_logged):
                self._unavailable_logged.add(name)
                reason = "this kernel does not have it"
                if name in ("tnl", "uso") and "tso" not in port.config.offload:
                    reason = "it needs tso"
                elif name == "tnl" and self._tunnel_gso.unavailable_reason is not None:
                    reason = self._tunnel_gso.unavailable_reason
                log.warning("offload %s unavailable: %s", name, reason)


def _place_of_tap(config: Config) -> tuple[str, int | None, str | None, int | None]:
    """Return the options that tell one TAP from another, or one of its VLANs."""
    return config.tap, config.vlan, config.netns, config.tap_fd


def by_host(steps: Iterable[_Step]) -> list[tuple[TapHost, list[_Step]]]:
    """Return the steps by the network namespace of their TAPs, one group for each session."""
    groups: dict[int, tuple[TapHost, list[_Step]]] = {}
    for step in steps:
        host = step.tap_host
        groups.setdefault(id(host), (host, []))[1].append(step)
    return list(groups.values())


async def _roll_back(steps: list[_Step]) -> None:
    for host, group in reversed(by_host(steps)):
        await host.run(partial(roll_back, group))


def roll_back(steps: Collection[_Step], session: HostSession) -> None:
    """Revert the changes of TAPs, the last one first; log what cannot be reverted.

    A new TAP is left as it is, since it vanishes with its port.
    """
    for step in reversed([*steps]):
        if step.owner is None and step.port.removed_on_close:
            continue
        for undo in reversed(step.undo):
            try:
                session.revert(undo)
            except OSError as error:
                name = step.port.tap
                log.error(  # noqa: TRY400  the traceback would say no more
                    "rollback of %s failed: %s; check its state: ip address show dev %s",
                    *(name, error.strerror, name),
                )


async def close_taps(network: HostNetwork, taps: Collection[TapDevice | TunnelGsoDevice]) -> None:
    """Close TAPs, in threads: the kernel waits some 20 ms before it removes a device."""
    loop = asyncio.get_running_loop()
    if len(taps) > _CLOSERS:
        # One request for all of them waits once. If it is refused, closing each one does the rest.
        names = [tap.name for tap in taps if tap.removed_on_close]
        with suppress(VtepError):
            await network.run(lambda session: session.remove(names))
    with ThreadPoolExecutor(_CLOSERS) as threads:
        closing = [loop.run_in_executor(threads, tap.close) for tap in taps]
        await asyncio.gather(*closing)
