"""The network of this host by rtnetlink, ioctls and /proc: the implementation of `HostNetwork`."""

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TypeVar

from vtep.config import Config
from vtep.control import socket_files
from vtep.daemon import tap_namespace
from vtep.daemon.kernel_session import call_with_session
from vtep.daemon.network import HostSession, NetworkEventHandler, NetworkEvents, TapNamespace
from vtep.host import netlink_events
from vtep.host.devices import device_index
from vtep.host.name_schedule import NameAnswer
from vtep.io.addresses import device_name
from vtep.io.inherited import Inherited
from vtep.io.interfaces import TapDevice
from vtep.io.receiver import receive_queue_drops
from vtep.io.socket_options import gso_supported
from vtep.io.tap import Tap, queue_drops
from vtep.io.udp_statistics import UdpErrors

_EVENT_MAX = 65536
"""Octets of one read from a netlink socket, which returns whole messages only."""

_T = TypeVar("_T")


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
        # A new thread, not the loop's default executor: a thread inherits the network namespace of
        # its creator, and the calling thread may have entered another one since.
        with ThreadPoolExecutor(max_workers=1) as thread:
            return await asyncio.get_running_loop().run_in_executor(
                thread, call_with_session, function
            )

    def take_tap_fds(self, configs: Iterable[Config], inherited: Inherited) -> None:
        """Own the descriptors of `--tap-fd`, at the start of a process. Raises: VtepError."""
        tap_namespace.take_tap_fds(configs, inherited)

    def prepare_tap(self, config: Config, inherited: Inherited) -> None:
        """Open what a TAP needs in another network namespace. Raises: VtepError."""
        tap_namespace.prepare(config, inherited)

    def tap_namespace(self, config: Config, inherited: Inherited) -> TapNamespace | None:
        """Return the namespace of a TAP; None if it is that of this process."""
        return tap_namespace.namespace_of(config, inherited)

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
