"""Which datagrams each listener of a process is to be spared: sources and devices, kept up to date.

Frames of one VNI must not get into another by way of this host: so datagrams that arrived through a
TAP of ours, or through a device above it such as its bridge, are no underlay traffic. Unless the
remotes are reached over that very device, as where a bridge extends the underlay's own LAN.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Protocol

from pyroute2 import IPRoute

from vtep import descriptors
from vtep.control import socket_files
from vtep.daemon.listener import Endpoint, Listener
from vtep.daemon.port import Port
from vtep.errors import VtepError
from vtep.host import netlink_events
from vtep.host.devices import device_index
from vtep.host.link_table import LinkTable
from vtep.host.routes import HostRoutes
from vtep.io.addresses import device_name
from vtep.wire.address import Address

log = logging.getLogger("vtep")

_SHARE = 20
"""After an update that took a while, the next one waits so many times as long."""

_RETRY_S = 1.0
"""Seconds until an update is tried again for which there were no descriptors."""

_DEBOUNCE_S = 0.2
"""Seconds from a change of a route to the look at ours."""

_REMOTES_MAX = 64
"""Remotes of which the routes are looked up again."""


class OnHost(Protocol):
    """Calls a function that talks to the kernel about its network, in a thread."""

    def __call__(self, function: Callable[[IPRoute], set[int]], /) -> Awaitable[set[int]]:
        """Return what the function returns. Raises OSError or VtepError."""


class Screening:
    """Tells the listeners of a process what the kernel is to keep away from them.

    `ports` and `listeners` are those of the process, as they are at any time.
    """

    def __init__(
        self,
        ports: Mapping[int, Port],
        listeners: Mapping[Endpoint, Listener],
        on_host: OnHost,
    ) -> None:
        self.links = LinkTable()
        self._ports = ports
        self._listeners = listeners
        self._on_host = on_host
        self._next: asyncio.Handle | None = None
        self._not_before = 0.0
        # Devices above our TAPs by which remotes may be reached, as far as that was found out; and
        # a host for which it is to be.
        self._candidates: set[int] = set()
        self._is_underlay: dict[int, bool] = {}
        self._evidence: dict[int, str] = {}
        self._warned: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._stopped = False
        self._names: frozenset[str] = frozenset()

    def read_links(self) -> None:
        """Ask the kernel for all devices, before the first events or after some were lost."""
        self.links.clear()
        with suppress(OSError):
            for messages in netlink_events.dump_links():
                self.links.update(messages)

    def configured(self) -> None:
        """Update the listeners after their segments, or the routes to remotes, were looked up."""
        self._is_underlay.clear()
        self._evidence.clear()
        self.update()

    def schedule(self) -> None:
        """Update the listeners soon, once for all changes until then.

        A source that is not known yet loses nothing meanwhile: see `Screen`.
        """
        if self._next is None and not self._stopped:
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(max(0.0, self._not_before - loop.time()), self.update)

    def update(self) -> None:
        """Update the listeners now."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        began = time.perf_counter()
        try:
            above = self.links.with_upper(self._taps())
            self._candidates = set()
            for listener in self._listeners.values():
                listener.screen(above - self._shared(listener, above))
        except OSError as error:
            # Devices are asked for by their names, which takes a descriptor.
            descriptors.warn(f"cannot update the filter for sources: {descriptors.reason(error)}")
            self._not_before = asyncio.get_running_loop().time() + _RETRY_S
            self.schedule()
            return
        took = time.perf_counter() - began
        self._not_before = asyncio.get_running_loop().time() + _SHARE * took

    def _taps(self) -> set[int]:
        """Return the TAPs of this process, and of others as far as their control sockets tell.

        Several processes on one host are how several networks of containers are attached.
        """
        self._names = socket_files.names()
        others = (device_index(name) or 0 for name in self._names)
        own = {port.tap_index for port in self._ports.values() if port.is_here}
        return own.union(filter(self.links.is_tap, others))

    def stop(self) -> None:
        """Update nothing any more."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()
        if self._task is not None:
            self._task.cancel()

    def _shared(self, listener: Listener, above: set[int]) -> set[int]:
        """Return those of the devices `above` our TAPs that a listener's remotes are reached by."""
        ports = [port for port in self._ports.values() if listener in port.listeners]
        names = {name for port in ports for name in port.underlay_devices}
        dev = listener.endpoint.binding.dev
        if dev is not None:
            names.add(dev)
        found = {device_index(name) or 0 for name in names}
        candidates = above & (found | set(map(self.links.vrf, found)))
        self._candidates |= candidates
        shared = {device for device in candidates if self._is_underlay.get(device, True)}
        shared |= {device for device in above if self._is_underlay.get(device, False)}
        for device in shared - self._warned:
            self._warned.add(device)
            self._warn(device, listener)
        return shared

    def _warn(self, device: int, listener: Listener) -> None:
        below = [
            port.tap
            for port in self._ports.values()
            if port.is_here and device in self.links.with_upper([port.tap_index])
        ]
        name = device_name(device)
        log.warning(
            "%s leads to remotes, and is the bridge of %s too, or above it: guests there can forge "
            "VXLAN from a remote, into any VNI; let a firewall keep UDP port %d from them (nft: a "
            "table of family bridge)",
            *(name, ", ".join(below[:3]), listener.endpoint.port),
        )

    # --- which device the underlay is ---------------------------------------------------------

    def tick(self) -> None:
        """Notice other processes, and remotes whose datagrams arrive by a device above a TAP."""
        if socket_files.names() != self._names:
            self.schedule()
        for listener in self._listeners.values():
            for device, host in listener.take_suspects().items():
                if device not in self._is_underlay:
                    self._evidence[device] = host
                    self._check()

    def routes_changed(self) -> None:
        """Look up again by which devices the remotes are reached, where that matters."""
        if self._candidates or self._is_underlay:
            self._check()

    def _check(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_up())

    async def _look_up(self) -> None:
        while self._again:
            await asyncio.sleep(_DEBOUNCE_S)
            self._again = False
            devices = self._candidates | self._is_underlay.keys() | self._evidence.keys()
            remotes = self._remotes()

            def find(connection: IPRoute) -> set[int]:
                survey = HostRoutes(connection)
                return {survey.output_device(*remote) or 0 for remote in remotes}  # noqa: B023

            try:
                found = await self._on_host(find)
            except (OSError, VtepError):  # Somebody changes the network at this moment.
                continue
            found |= set(map(self.links.vrf, found))
            self._is_underlay = {device: device in found for device in devices}
            self.update()

    def _remotes(self) -> list[tuple[Address, Address | None, str | None]]:
        """Return remotes, with the own address and the device to reach them from, if any."""
        found = {
            (remote, port.config.local_for(remote.version), port.config.dev)
            for port in self._ports.values()
            for remote in port.config.remote[:_REMOTES_MAX]
        }
        some = list(found)[:_REMOTES_MAX]
        return some + [(ip_address(host), None, None) for host in self._evidence.values()]
