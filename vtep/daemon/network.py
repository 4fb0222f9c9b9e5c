"""The network of the host as the daemon uses it: devices, routes, TAPs and the kernel's events.

`HostNetwork` is the interface, and `kernel_network` has the implementation by rtnetlink, ioctls and
/proc. `vtep.testing.memory_network` has one in memory, by which a `Vtep` runs in a test without
root. Nothing here is called for a frame.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, TypeVar

from vtep.config import Config
from vtep.host.link_table import LinkTable
from vtep.host.name_schedule import NameAnswer
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapAttachment, TapSetup
from vtep.io.inherited import Inherited
from vtep.io.interfaces import TapDevice
from vtep.io.udp_statistics import UdpErrors
from vtep.tunnel_gso.device import TunnelGsoDevice
from vtep.wire.address import Address

_T = TypeVar("_T")

Undo: TypeAlias = Callable[[Any], object]
"""Reverts one change of a TAP. The argument is of the session that reverts it: a connection."""


class Routes(Protocol):
    """A snapshot of the host's addresses and routes, shared by all lookups of one session."""

    def resolve_underlay(
        self, remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None
    ) -> Underlay:
        """Return how the remotes are reached. Raises: VtepError if one can never be a remote."""

    def why_no_remote(
        self, address: Address, locals_: Iterable[Address], dev: str | None
    ) -> str | None:
        """Return why an address can never be a remote, as a noun phrase; None if it can."""

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


class TapHost(Protocol):
    """The network namespace of a TAP: that of this process, or another one."""

    async def run(self, function: Callable[[HostSession], _T]) -> _T:
        """Call a function with a new session, without blocking the event loop.

        Raises: what the function raises; VtepError if the kernel refuses a change.
        """

    def device_index(self, name: str) -> int | None:
        """Return the index of a device; None if there is none. Raises: OSError."""

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


class TapNamespace(TapHost, Protocol):
    """A network namespace other than that of this process, in which one TAP is."""

    @property
    def links(self) -> LinkTable:
        """The devices of the namespace, as far as `read_links` has read them."""

    @property
    def end(self) -> str | None:
        """Why the namespace has ended; None if it has not."""

    def watch(self, on_changed: Callable[[], None]) -> None:
        """Call a function now and whenever a link or an address of the namespace has changed."""

    def unwatch(self) -> None:
        """Leave all notifications to another process, or queue them, until `watch`."""

    async def read_links(self) -> None:
        """Read all devices, if the notifications so far do not tell of them. Raises: VtepError."""

    def descriptors(self) -> Iterator[tuple[str, int]]:
        """Yield the part and the number of each descriptor, for another process."""

    def close(self) -> None:
        """Close the descriptors."""


class HostNetwork(TapHost, Protocol):
    """The network of a host, as far as a VTEP reads or changes it."""

    def take_tap_fds(self, configs: Iterable[Config], inherited: Inherited) -> None:
        """Own the descriptors of `--tap-fd`, at the start of a process. Raises: VtepError."""

    def prepare_tap(self, config: Config, inherited: Inherited) -> None:
        """Open what a TAP needs in another network namespace, for `tap_namespace`.

        It blocks for some 20 ms, and is to be called in a thread. Raises: VtepError.
        """

    def tap_namespace(self, config: Config, inherited: Inherited) -> TapNamespace | None:
        """Return the namespace of a TAP, which the caller owns; None if it is that of the process.

        Its descriptors were prepared, or handed over by another process.
        """

    def subscribe(self) -> NetworkEvents:
        """Subscribe to the kernel's notifications. Raises: OSError."""

    def link_messages(self) -> Iterable[bytes]:
        """Yield an RTM_NEWLINK message for each device, many at a time. Raises: OSError."""

    def device_name(self, index: int) -> str:
        """Return the name of a device, which may be cached. Raises: OSError."""

    def forget_device_names(self) -> None:
        """Clear the cache of device names: a link has changed."""

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
