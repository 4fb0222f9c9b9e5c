"""Keeps the ingress filters of all listeners up to date: known sources, and overlay devices.

A VXLAN datagram that arrives through a TAP of this host, or through a device on top of one such as
its bridge, was forged by a guest to inject a frame into another VNI. So these devices are denied.
The exception is a device over which remotes are reached, such as a bridge that extends the LAN of
the underlay.
"""

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import TypeAlias

from vtep import descriptors
from vtep.daemon.listener import Listener
from vtep.daemon.listeners import Listeners
from vtep.daemon.network import HostNetwork, HostSession
from vtep.daemon.ports import Ports
from vtep.errors import VtepError
from vtep.host.link_table import LinkTable
from vtep.wire.address import Address

log = logging.getLogger("vtep")

_PAUSE_FACTOR = 20
"""The pause after an update is this many times its duration."""

_RETRY_S = 1.0
"""Seconds until an update is repeated for which there were too few descriptors."""

_DEBOUNCE_S = 0.2
"""Debounce interval for route changes, in seconds."""

_REMOTES_MAX = 64
"""Remotes whose routes are looked up again: a sample, since each is a request to the kernel."""

_Remote: TypeAlias = tuple[Address, Address | None, str | None]
"""A remote, with the own address and the device to reach it from, if any."""


class IngressFilters:
    """Updates the ingress filters of the listeners after sources, devices or routes have changed.

    `links` is the table of the host's devices, which the owner updates from notifications.
    """

    def __init__(self, network: HostNetwork, ports: Ports, listeners: Listeners) -> None:
        self.links = LinkTable()
        self._network = network
        self._ports = ports
        self._listeners = listeners
        self._timer: asyncio.Handle | None = None
        self._not_before = 0.0
        self._candidates: set[int] = set()
        """Overlay devices over which remotes may be reached, according to their ports."""
        self._is_underlay: dict[int, bool] = {}
        """For the devices that were looked up, whether a remote is routed over them."""
        self._suspects: dict[int, str] = {}
        """A known source whose datagrams arrived on a denied device, by device."""
        self._warned: set[int] = set()
        self._task: asyncio.Task[None] | None = None
        self._lookup_due = False
        self._stopped = False
        self.is_paused = False
        """True while `update` does nothing: another process has the sockets, and filters them."""
        self._control_names: frozenset[str] = frozenset()

    def read_links(self) -> None:
        """Read all devices from the kernel: at start, and after notifications were lost."""
        self.links.clear()
        with suppress(OSError):
            for messages in self._network.link_messages():
                self.links.update(messages)

    def on_reconfigured(self) -> None:
        """Update the filters after ports, or the routes to their remotes, have changed."""
        self._is_underlay.clear()
        self._suspects.clear()
        self.update()

    def schedule(self) -> None:
        """Update the filters soon, once for all changes until then.

        No datagram of a new source is lost until then: see `PuntSocket`.
        """
        if self._timer is None and not self._stopped:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._not_before - loop.time()), self.update)

    def update(self) -> None:
        """Update the filters now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_paused:
            return
        began = time.perf_counter()
        try:
            overlay = self.links.with_upper(self._taps())
            self._candidates = set()
            for listener in self._listeners:
                listener.set_filter(overlay - self._underlay_devices(listener, overlay))
        except OSError as error:
            # The lookup of a device index takes a descriptor.
            descriptors.warn(f"cannot update the ingress filter: {descriptors.reason(error)}")
            self._not_before = asyncio.get_running_loop().time() + _RETRY_S
            self.schedule()
            return
        took = time.perf_counter() - began
        self._not_before = asyncio.get_running_loop().time() + _PAUSE_FACTOR * took

    def _taps(self) -> set[int]:
        """Return the TAPs of this process and, by their control sockets, of others on this host.

        A host whose container networks are attached runs one process for each of them.
        """
        self._control_names = self._network.control_names()
        others = (self._network.device_index(name) or 0 for name in self._control_names)
        own = {port.tap_index for port in self._ports if port.is_here}
        # A control socket may have been given any name, e.g. that of a physical device.
        return own.union(filter(self.links.is_tap, others))

    def stop(self) -> None:
        """End all updates."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _underlay_devices(self, listener: Listener, overlay: set[int]) -> set[int]:
        """Return the `overlay` devices over which the remotes of a listener are reached."""
        ports = [port for port in self._ports if listener in port.listeners]
        names = {name for port in ports for name in port.underlay_devices}
        dev = listener.endpoint.binding.dev
        if dev is not None:
            names.add(dev)
        found = {self._network.device_index(name) or 0 for name in names}
        # A datagram that arrives on a port of a VRF seems to arrive on the VRF.
        candidates = overlay & (found | set(map(self.links.vrf, found)))
        self._candidates |= candidates
        shared = {device for device in candidates if self._is_underlay.get(device, True)}
        shared |= {device for device in overlay if self._is_underlay.get(device, False)}
        for device in shared - self._warned:
            self._warned.add(device)
            self._warn(device, listener)
        return shared

    def _warn(self, device: int, listener: Listener) -> None:
        below = [
            port.tap
            for port in self._ports
            if port.is_here and device in self.links.with_upper([port.tap_index])
        ]
        name = self._network.device_name(device)
        log.warning(
            "%s leads to remotes, and is the bridge of %s or on top of it: guests there can forge "
            "VXLAN datagrams of a remote, for any VNI; drop UDP port %d from them by a firewall "
            "(nft: a table of family bridge)",
            *(name, ", ".join(below[:3]), listener.endpoint.port),
        )

    # --- which overlay devices lead to remotes --------------------------------------------------

    def tick(self) -> None:
        """Notice other processes, and known sources whose datagrams arrive on a denied device."""
        if self._network.control_names() != self._control_names:
            self.schedule()
        for listener in self._listeners:
            for device, host in listener.take_suspects().items():
                if device not in self._is_underlay:
                    self._suspects[device] = host
                    self._schedule_lookup()

    def on_routes_changed(self) -> None:
        """Look up again which devices lead to the remotes, if overlay devices may be among them."""
        if self._candidates or self._is_underlay:
            self._schedule_lookup()

    def _schedule_lookup(self) -> None:
        self._lookup_due = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look_up_while_due())

    async def _look_up_while_due(self) -> None:
        while self._lookup_due:
            await asyncio.sleep(_DEBOUNCE_S)
            self._lookup_due = False
            devices = self._candidates | self._is_underlay.keys() | self._suspects.keys()
            remotes = self._remotes()
            try:
                found = await self._network.run(partial(_output_devices, remotes))
            except (OSError, VtepError):  # The network changes: there will be a notification.
                continue
            found |= set(map(self.links.vrf, found))
            self._is_underlay = {device: device in found for device in devices}
            self.update()

    def _remotes(self) -> list[_Remote]:
        """Return remotes, each with the own address and the device to reach it from, if any."""
        found = {
            (remote, port.config.local_for(remote.version), port.config.dev)
            for port in self._ports
            for remote in port.config.remote_addresses[:_REMOTES_MAX]
        }
        some = list(found)[:_REMOTES_MAX]
        return some + [(ip_address(host), None, None) for host in self._suspects.values()]


def _output_devices(remotes: list[_Remote], session: HostSession) -> set[int]:
    routes = session.routes()
    return {routes.output_device(*remote) or 0 for remote in remotes}
