"""Follows changes of the host's network: devices, routes, addresses and IPsec policies.

Some things are done for each notification at once, such as a retry of failed sockets. What needs
lookups is done once for all notifications of a short time (the debounce interval).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

from attrs import evolve

from vtep import descriptors
from vtep.daemon.network import HostSession, NetworkEvents, TapHost, TapNamespace
from vtep.daemon.parts import Parts
from vtep.daemon.port import Port
from vtep.daemon.ports import shared_setup
from vtep.descriptors import ShortageError
from vtep.errors import VtepError
from vtep.host.link_table import changed_links
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapAttachment
from vtep.wire.address import Address

log = logging.getLogger("vtep")

_DEBOUNCE_S = 0.2
"""Debounce interval for notifications, in seconds: they come in bursts."""

_RETRY_S = 1.0
"""Seconds until a lookup is repeated for which there were too few descriptors."""

_PAUSE_FACTOR = 20
"""While routes change without end, the pause after a lookup is this many times its duration."""

_PAUSE_MAX_S = 60.0
"""The longest such pause, in seconds."""


class HostWatch:
    """Keeps ports, listeners and paths in step with the host's network.

    `lock` is held by whatever changes the set of ports. `on_mtu_changed` is called when the MTU of
    a port's tunnel has changed, and `on_routes` after routes or addresses have changed, before the
    underlays are looked up.
    """

    def __init__(
        self,
        parts: Parts,
        lock: asyncio.Lock,
        on_mtu_changed: Callable[[Port], None],
        on_routes: Callable[[], Awaitable[None]],
    ) -> None:
        self._network = parts.network
        self._ports = parts.ports
        self._listeners = parts.listeners
        self._pool = parts.pool
        self._prober = parts.prober
        self._filters = parts.filters
        self._lock = lock
        self._on_mtu_changed = on_mtu_changed
        self._on_routes = on_routes
        self._events: NetworkEvents | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_paused = False
        # What the next lookup is about.
        self._due = False
        self._changed_links: set[int] = set()
        self._changed_elsewhere: set[Port] = set()
        self._remotes_changed: set[Port] = set()
        self._routes_changed = False
        self._events_lost = False

    def pause(self) -> None:
        """Change nothing on the host until `resume`; notifications are remembered."""
        self._is_paused = True

    def resume(self) -> None:
        """Look up everything again, and follow all changes from now on."""
        self._is_paused = False
        self._events_lost = True
        self._schedule()

    def subscribe(self) -> None:
        """Subscribe to notifications, which queue until `start`. Raises: OSError."""
        self._events = self._network.subscribe()

    def start(self) -> None:
        """Handle notifications from now on, in the running event loop."""
        if self._events is not None:
            self._events.start(self)

    def stop(self) -> None:
        """Handle no more notifications."""
        if self._task is not None:
            self._task.cancel()
        if self._events is not None:
            self._events.close()
            self._events = None

    # --- notifications ------------------------------------------------------------------------

    def on_links_changed(self) -> None:
        """Read the queued link notifications; schedule a lookup of the ports that they concern."""
        changed: set[int] = set()
        restacked = False
        for messages in self._events.read_links() if self._events is not None else ():
            changed |= changed_links(messages)
            restacked |= self._filters.links.update(messages)
        if restacked:
            # At once: if a TAP has just become a port of a bridge, guests can send through it now.
            self._filters.update()
        self._changed_links |= changed
        self._pool.senders.link_changes += 1
        self._on_change()

    def on_routes_changed(self) -> None:
        """Retry failed sockets at once; schedule a lookup of all routes to remotes."""
        self._prober.forget_all()
        self._routes_changed = True
        self._filters.on_routes_changed()
        self._on_change()

    def on_addresses_changed(self) -> None:
        """Retry failed sockets at once: an own address may have appeared; schedule a lookup."""
        self._routes_changed = True
        self._on_change()

    def on_policies_changed(self) -> None:
        """Stop tunnel GSO, which would bypass a new IPsec policy; probing starts again."""
        self._pool.senders.network_changes += 1
        self._prober.forget_all()

    def on_namespace_changed(self, port: Port) -> None:
        """Schedule a lookup of a port whose TAP is in another network namespace."""
        self._changed_elsewhere.add(port)
        self._schedule()

    def on_remotes_changed(self, port: Port) -> None:
        """Schedule a lookup of the routes of a port, which has got a remote by EVPN."""
        self._remotes_changed.add(port)
        self._schedule()

    def _on_change(self) -> None:
        self._pool.senders.network_changes += 1
        self._reopen()
        self._schedule()

    def reopen_sockets(self) -> None:
        """Retry to open the listeners' sockets whose device or address was absent."""
        if self._reopen():
            self._routes_changed = True
            self._schedule()

    def _reopen(self) -> bool:
        """Reopen the listeners' sockets where a device or an address has appeared.

        Returns: whether a listener has become ready.
        """
        any_ready = False
        for listener in self._listeners:
            was_ready = listener.is_ready
            if listener.reopen():
                # The sending sockets are bound to the device by its old index, too.
                self._pool.reconnect(listener.endpoint.binding.dev)
                self._filters.schedule()
            any_ready |= listener.is_ready and not was_ready
        if any_ready:
            self._filters.schedule()
        return any_ready

    # --- debounced lookups --------------------------------------------------------------------

    def _schedule(self) -> None:
        self._due = True
        if self._is_paused:
            return
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_up_while_due())

    def retry(self, error: ShortageError) -> None:
        """Log that a lookup failed for want of descriptors, and repeat it for all ports."""
        descriptors.warn(str(error))
        self._events_lost = True
        self._schedule()

    async def _look_up_while_due(self) -> None:
        pause = _DEBOUNCE_S
        while self._due and not self._is_paused:
            await asyncio.sleep(pause)
            if self._is_paused:
                return
            self._due = False
            changed, self._changed_links = self._changed_links, set()
            routes, self._routes_changed = self._routes_changed, False
            began = time.monotonic()
            try:
                with descriptors.explained("look at this host's network"):
                    await self._look_up(changed, routes=routes)
            except ShortageError as error:
                self.retry(error)
                pause = _RETRY_S
            except VtepError as error:
                log.warning("%s", error)
            else:
                # A routing daemon may change routes all the time; links change for a reason.
                took = 0.0 if changed else time.monotonic() - began
                pause = min(max(_DEBOUNCE_S, _PAUSE_FACTOR * took), _PAUSE_MAX_S)

    async def _look_up(self, changed: set[int], *, routes: bool) -> None:
        """Follow the changes of the links with these indices and, if `routes`, of all routes.

        Raises: ShortageError or OSError if there are too few descriptors.
        """
        if self._events is None:
            return
        lost = self._events.lost_links()
        everything, self._events_lost = lost or self._events_lost, False
        if everything:
            self._filters.read_links()
            self._filters.update()
        self._network.forget_device_names()
        if changed or everything or routes:
            self._pool.refresh_routes()
        if changed or everything:
            self._prober.forget_all()
        self._reopen()
        concerned = [
            port
            for port in self._ports
            if everything
            or not changed.isdisjoint(port.links())
            # Any device may be the bridge that a port waits for, or free the TAP for it.
            or (changed and port.attachment.unjoined)
        ]
        elsewhere, self._changed_elsewhere = self._changed_elsewhere, set()
        concerned += [port for port in self._ports if port in elsewhere and port not in concerned]
        for port in concerned:
            port.on_link_changed()
        for port in concerned:
            if port.place.namespace is not None and port in self._ports:
                await self._look_elsewhere(port, port.place.namespace)
        if everything or routes:
            await self._on_routes()
        resized = await self._look_up_underlays(None if everything or routes else changed)
        self._filters.schedule()  # The remotes may be reached over other devices now.
        await self.adapt({*concerned, *resized})

    @staticmethod
    async def _look_elsewhere(port: Port, namespace: TapNamespace) -> None:
        """Follow the devices and addresses of the network namespace of a port's TAP."""

        def addresses(session: HostSession) -> tuple[str, ...]:
            return session.routes().interface_addresses(port.tap_index)

        with suppress(VtepError):  # It was closed meanwhile.
            await namespace.read_links()
            port.addresses = await namespace.run(addresses)

    async def _look_up_underlays(self, changed: Collection[int] | None) -> list[Port]:
        """Look up the underlay of ports whose underlay devices have changed; None is all of them.

        Any change may concern a port that waits for its underlay.
        Returns: the ports whose TAP needs another setup.
        """
        names = {name for port in self._ports for name in port.underlay_devices}
        hit = {
            name for name in names if changed is None or self._network.device_index(name) in changed
        }
        # The lock keeps the configurations as they are until the results are applied.
        async with self._lock:
            remotes_changed, self._remotes_changed = self._remotes_changed, set()
            concerned = [
                port
                for port in self._ports
                if changed is None
                or port.underlay_missing
                or port in remotes_changed
                or not hit.isdisjoint(port.underlay_devices)
            ]
            if not concerned:
                return []
            wanted = [(port, port.evpn_remotes()) for port in concerned]
            try:
                underlays = await self._network.run(
                    lambda session: _find_underlays(session, wanted)
                )
            except ShortageError:
                raise
            except VtepError:  # A device was removed in between: another notification follows.
                return []
            resized = []
            for port, underlay, addresses in underlays:
                if port in self._ports:
                    if port.is_here:  # Else the index may be that of another device here.
                        port.addresses = addresses
                    if port.on_underlay_mtu(underlay):
                        resized.append(port)
            return resized

    # --- TAPs ---------------------------------------------------------------------------------

    async def adapt(self, ports: Iterable[Port]) -> None:
        """Adapt MTU, offloads and VLANs of the ports' TAPs to where they are attached."""
        if self._is_paused:
            return
        ports = tuple(ports)
        # Ports with one TAP get one setup: otherwise each would set its own MTU, one by one.
        here = {
            (port.tap, port.tap_index): self._ports.sharing(port)
            for port in ports
            if port.place.namespace is None
        }
        found = await _adapt(self._network, here.values()) if here else []
        for port in ports:
            if port.place.namespace is not None:
                with suppress(VtepError):  # The namespace was closed meanwhile.
                    found += await _adapt(port.place.namespace, [[port]])
        for several, attachment in found:
            first = several[0]
            if attachment.beside not in (0, first.attachment.beside):
                log.warning(
                    "vni %d: packets of up to %d octets are dropped in front of %s by its "
                    "bridge: ip link set %s mtu %d",
                    *(first.config.vni, attachment.beside, first.tap, first.tap),
                    attachment.beside,
                )
            for port in several:
                if port.on_attached(attachment, logs=port is first):
                    self._on_mtu_changed(port)


async def _adapt(
    host: TapHost, sharing: Iterable[list[Port]]
) -> list[tuple[list[Port], TapAttachment]]:
    """Adapt TAPs that are in one network namespace, each of which some ports share.

    Returns: where they are now.
    """
    taps = [
        (several, first.tap, first.tap_index, first.attachment, shared_setup(several))
        for several in sharing
        for first in several[:1]
    ]

    def adapt_all(session: HostSession) -> list[tuple[list[Port], TapAttachment]]:
        found = []
        for several, tap, index, before, setup in taps:
            with suppress(VtepError):  # Not in this namespace, or no privilege.
                found.append((several, session.adapt(tap, index, before, setup)))
        return found

    return await host.run(adapt_all)


def _find_underlays(
    session: HostSession, ports: Iterable[tuple[Port, list[Address]]]
) -> list[tuple[Port, Underlay | VtepError, tuple[str, ...]]]:
    """Return the underlay of each port, or why there can be none, and the addresses of its TAP.

    `ports` has the remotes of each that EVPN has brought. Only the routes to configured ones are
    missing from an underlay: in a fabric, some VTEP is always unreachable.
    """
    routes = session.routes()
    found: list[tuple[Port, Underlay | VtepError, tuple[str, ...]]] = []
    for port, others in ports:
        config = port.config
        underlay: Underlay | VtepError
        try:
            underlay = routes.resolve_underlay(config.remote_addresses, config.local, config.dev)
            if others:
                with suppress(VtepError):  # One of them cannot be a remote.
                    remotes = (*config.remote_addresses, *others)
                    all_of_them = routes.resolve_underlay(remotes, config.local, config.dev)
                    underlay = evolve(all_of_them, missing=underlay.missing)
        except VtepError as error:
            underlay = error
        found.append((port, underlay, routes.interface_addresses(port.tap_index)))
    return found
