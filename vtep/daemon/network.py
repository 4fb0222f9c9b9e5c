"""The network of the host as the daemon uses it: devices, routes, TAPs and the kernel's events.

`HostNetwork` is the interface, `KernelNetwork` the implementation by rtnetlink, ioctls and /proc.
`vtep.testing.memory_network` has one in memory, by which a `Vtep` runs in a test without root.
Nothing here is called for a frame.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, Protocol, TypeAlias, TypeVar

from vtep.control import socket_files
from vtep.errors import VtepError
from vtep.host import netlink, netlink_events, tap_setup
from vtep.host.devices import device_index
from vtep.host.name_schedule import NameAnswer
from vtep.host.netlink import IPRoute, NetlinkError
from vtep.host.routes import HostRoutes, Underlay
from vtep.host.tap_setup import TapAttachment, TapSetup
from vtep.io.addresses import device_name
from vtep.io.interfaces import TapDevice
from vtep.io.path import superframe_max
from vtep.io.receiver import receive_queue_drops
from vtep.io.socket_options import gso_supported
from vtep.io.tap import Tap, queue_drops
from vtep.io.udp_statistics import UdpErrors
from vtep.tunnel_gso.device import TunnelGsoDevice
from vtep.wire.address import Address

_EVENT_MAX = 65536
"""Octets of one read from a netlink socket, which returns whole messages only."""

_T = TypeVar("_T")

Undo: TypeAlias = Callable[[Any], object]
"""Reverts one change of a TAP. The argument is of the session that reverts it: a connection."""


class Routes(Protocol):
    """A snapshot of the host's addresses and routes, shared by all lookups of one session."""

    def resolve_underlay(
        self, remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None
    ) -> Underlay:
        """Return how the remotes are reached. Raises: VtepError if one can never be a remote."""

    def is_own(self, address: Address, dev: str | None) -> bool:
        """Return True if this host has an address, on the device of its scope if it has one."""

    def interface_addresses(self, device: int) -> tuple[str, ...]:
        """Return the addresses of a device with prefix lengths, but for link-local IPv6 ones."""

    def output_device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """Return the index of the output device to a remote, or None without a route."""

    def egress_device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:
        """Return the index of the output device, or None if tunnel GSO is not possible."""


class HostSession(Protocol):
    """A connection to the host's network. Its calls may block for some milliseconds."""

    def routes(self) -> Routes:
        """Take a snapshot of the host's addresses and routes."""

    def bring_up(self, tap: str, setup: TapSetup, undo: list[Undo]) -> None:
        """Configure a new TAP and set it up. Raises: VtepError.

        Side effect: appends to `undo` what reverts each change.
        """

    def change(self, tap: str, before: TapSetup, after: TapSetup, undo: list[Undo]) -> None:
        """Change a TAP from one setup to another. Raises: VtepError.

        Side effect: appends to `undo` what reverts each change.
        """

    def revert(self, undo: Undo) -> None:
        """Revert one change of a TAP. Raises: OSError."""

    def adapt(
        self, tap: str, index: int, attachment: TapAttachment, setup: TapSetup
    ) -> TapAttachment:
        """Adapt the MTU and the offloads of a TAP to where it is attached now.

        Returns: the new attachment.
        Raises: VtepError if the device of this index has another name, or none.
        """

    def remove(self, devices: Iterable[str]) -> None:
        """Remove devices by one request. Raises: VtepError."""

    def open_tunnel_gso_device(self) -> TunnelGsoDevice:
        """Open the device for tunnel GSO. Raises: OSError or VtepError."""


class NetworkEventHandler(Protocol):
    """The receiver of the kernel's notifications."""

    def on_links_changed(self) -> None:
        """Handle link notifications, which `NetworkEvents.read_links` returns."""

    def on_routes_changed(self) -> None:
        """Handle a change of routes, routing rules or nexthops."""

    def on_addresses_changed(self) -> None:
        """Handle a change of addresses."""

    def on_policies_changed(self) -> None:
        """Handle a change of IPsec policies."""


class NetworkEvents(Protocol):
    """A subscription to the kernel's notifications. They queue from the moment it is made."""

    def start(self, handler: NetworkEventHandler) -> None:
        """Call the handler from now on, in the running event loop."""

    def read_links(self) -> list[bytes]:
        """Return the link notifications that have queued, as rtnetlink messages."""

    def lost_links(self) -> bool:
        """Return whether the kernel has dropped link notifications since the last call."""

    def close(self) -> None:
        """End the subscription."""


class HostNetwork(Protocol):
    """The network of a host, as far as a VTEP reads or changes it."""

    async def run(self, function: Callable[[HostSession], _T]) -> _T:
        """Call a function with a new session, without blocking the event loop.

        Raises: what the function raises; VtepError if the kernel refuses a change.
        """

    def subscribe(self) -> NetworkEvents:
        """Subscribe to the kernel's notifications. Raises: OSError."""

    def link_messages(self) -> Iterable[bytes]:
        """Yield an RTM_NEWLINK message for each device, many at a time. Raises: OSError."""

    def device_index(self, name: str) -> int | None:
        """Return the index of a device; None if there is none. Raises: OSError."""

    def device_name(self, index: int) -> str:
        """Return the name of a device, which may be cached. Raises: OSError."""

    def forget_device_names(self) -> None:
        """Clear the cache of device names: a link has changed."""

    def open_tap(
        self, name: str, *, tso: bool, uso: bool, inherited: int | None = None
    ) -> TapDevice:
        """Open a TAP device, which is created if there is none of this name.

        `inherited` is the descriptor of one that is open already. Raises: VtepError.
        """

    def tap_queue_drops(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each device and its transmit drops. Raises: OSError.

        For a TAP, these are the frames that this process read too slowly.
        """

    def udp_errors(self, version: int) -> UdpErrors:
        """Return the UDP error counters of an IP version. Raises: OSError or ValueError."""

    def gso_supported(self) -> bool:
        """Return whether a UDP socket takes several datagrams in one send. Raises: OSError."""

    def control_names(self) -> frozenset[str]:
        """Return the names of the control sockets on this host, which by default are TAP names."""

    async def look_up(self, name: str, versions: Collection[int]) -> NameAnswer:
        """Look up a host name, without blocking the event loop. Raises: OSError.

        `versions` are the IP versions of addresses that it had before.
        """


class KernelSession:
    """A session of `KernelNetwork`: an rtnetlink connection, for one thread."""

    def __init__(self, connection: IPRoute) -> None:
        self._connection = connection

    def routes(self) -> Routes:
        """Take a snapshot of the host's addresses and routes."""
        return HostRoutes(self._connection)

    def bring_up(self, tap: str, setup: TapSetup, undo: list[Undo]) -> None:
        """Configure a new TAP and set it up. Raises: VtepError."""
        tap_setup.bring_up(self._connection, tap, setup, undo)

    def change(self, tap: str, before: TapSetup, after: TapSetup, undo: list[Undo]) -> None:
        """Change a TAP from one setup to another. Raises: VtepError."""
        tap_setup.change(self._connection, tap, before, after, undo)

    def revert(self, undo: Undo) -> None:
        """Revert one change of a TAP. Raises: OSError."""
        try:
            undo(self._connection)
        except NetlinkError as error:
            raise OSError(error.code, error.args[1]) from error

    def adapt(
        self, tap: str, index: int, attachment: TapAttachment, setup: TapSetup
    ) -> TapAttachment:
        """Adapt the MTU and the offloads of a TAP to where it is attached now."""
        return tap_setup.adapt(self._connection, tap, index, attachment, setup, superframe_max)

    def remove(self, devices: Iterable[str]) -> None:
        """Remove devices by one request. Raises: VtepError."""
        tap_setup.remove_devices(self._connection, devices)

    def open_tunnel_gso_device(self) -> TunnelGsoDevice:
        """Open the device for tunnel GSO. Raises: OSError or VtepError."""
        return TunnelGsoDevice(self._connection)


class KernelEvents:
    """Netlink sockets that are subscribed to links, routes, addresses and IPsec policies."""

    def __init__(self) -> None:
        with ExitStack() as opened:
            self._links = opened.enter_context(netlink_events.subscribe_links())
            self._routes = opened.enter_context(netlink_events.subscribe_routes())
            self._addresses = opened.enter_context(netlink_events.subscribe_addresses())
            self._policies = (
                netlink_events.subscribe_ipsec_policies()
            )  # None without IPsec in the kernel.
            if self._policies is not None:
                opened.enter_context(self._policies)
            self._resources = opened.pop_all()
        self._drops = 0

    def start(self, handler: NetworkEventHandler) -> None:
        """Call the handler from now on, in the running event loop."""
        loop = asyncio.get_running_loop()

        def add_reader(events: socket.socket, read: Callable[..., None], *args: object) -> None:
            loop.add_reader(events.fileno(), read, *args)
            self._resources.callback(loop.remove_reader, events.fileno())

        add_reader(self._links, handler.on_links_changed)
        add_reader(self._routes, _drain, self._routes, handler.on_routes_changed)
        add_reader(self._addresses, _drain, self._addresses, handler.on_addresses_changed)
        if self._policies is not None:
            add_reader(self._policies, _drain, self._policies, handler.on_policies_changed)

    def read_links(self) -> list[bytes]:
        """Return the link notifications that have queued, as rtnetlink messages."""
        messages = []
        with suppress(OSError):  # Until the queue is empty.
            while True:
                messages.append(self._links.recv(_EVENT_MAX))
        return messages

    def lost_links(self) -> bool:
        """Return whether the kernel has dropped link notifications since the last call."""
        drops, before = receive_queue_drops(self._links), self._drops
        self._drops = drops
        return drops != before

    def close(self) -> None:
        """End the subscription."""
        self._resources.close()


def _drain(events: socket.socket, notify: Callable[[], None]) -> None:
    """Read a netlink socket until it is empty, and notify once: the content does not matter."""
    with suppress(OSError):
        while True:
            events.recv(_EVENT_MAX)
    notify()


class KernelNetwork:
    """The network namespace of the calling thread, by rtnetlink, ioctls and /proc."""

    async def run(self, function: Callable[[HostSession], _T]) -> _T:
        """Call a function with a new session, in a thread.

        Raises: what the function raises; VtepError if the kernel refuses a change; ShortageError
        if there are too few descriptors.
        """

        def call() -> _T:
            with netlink.session() as connection:
                try:
                    return function(KernelSession(connection))
                except NetlinkError as error:  # E.g. the device was removed in between.
                    raise VtepError(f"the kernel refused a change: {error.args[1]}") from error

        # A new thread, not the loop's default executor: a thread inherits the network namespace of
        # its creator, and the calling thread may have entered another one since.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return await asyncio.get_running_loop().run_in_executor(thread, call)

    def subscribe(self) -> NetworkEvents:
        """Subscribe to the kernel's notifications. Raises: OSError."""
        return KernelEvents()

    def link_messages(self) -> Iterable[bytes]:
        """Yield an RTM_NEWLINK message for each device, many at a time. Raises: OSError."""
        return netlink_events.dump_links()

    def device_index(self, name: str) -> int | None:
        """Return the index of a device; None if there is none. Raises: OSError."""
        return device_index(name)

    def device_name(self, index: int) -> str:
        """Return the name of a device, from the cache if it is there. Raises: OSError."""
        return device_name(index)

    def forget_device_names(self) -> None:
        """Clear the cache of device names: a link has changed."""
        device_name.cache_clear()

    def open_tap(
        self, name: str, *, tso: bool, uso: bool, inherited: int | None = None
    ) -> TapDevice:
        """Open a TAP device, which is created if there is none of this name.

        `inherited` is the descriptor of one that is open already. Raises: VtepError.
        """
        return Tap(name, tso=tso, uso=uso, inherited=inherited)

    def tap_queue_drops(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each device and its transmit drops. Raises: OSError."""
        return queue_drops()

    def udp_errors(self, version: int) -> UdpErrors:
        """Return the UDP error counters of an IP version. Raises: OSError or ValueError."""
        return UdpErrors.read(version)

    def gso_supported(self) -> bool:
        """Return whether a UDP socket takes several datagrams in one send. Raises: OSError."""
        return gso_supported()

    def control_names(self) -> frozenset[str]:
        """Return the names of the control sockets on this host."""
        return socket_files.names()

    async def look_up(self, name: str, versions: Collection[int]) -> NameAnswer:
        """Look up a host name in a thread. Raises: OSError if it cannot be started."""
        # Imported for the first name: most VTEPs have none.
        from vtep.host import name_lookup  # noqa: PLC0415

        loop = asyncio.get_running_loop()
        future: asyncio.Future[NameAnswer] = loop.create_future()

        def finish(answer: NameAnswer | None, error: Exception | None) -> None:
            if future.done():  # It was cancelled.
                return
            if answer is not None:
                future.set_result(answer)
            else:
                future.set_exception(OSError(f"the lookup has failed: {error!r}"))

        def call() -> None:
            answer, failure = None, None
            try:
                answer = name_lookup.look_up(name, versions)
            except Exception as error:  # noqa: BLE001  a name without an answer would be lost
                failure = error
            with suppress(RuntimeError):  # The loop is closed, and the process about to end.
                loop.call_soon_threadsafe(finish, answer, failure)

        # A daemon thread, since getaddrinfo(3) cannot be cancelled, and may take half a minute: the
        # end of the process does not wait for it.
        try:
            threading.Thread(target=call, name="names", daemon=True).start()
        except RuntimeError as error:
            raise OSError(str(error)) from error
        return await future
