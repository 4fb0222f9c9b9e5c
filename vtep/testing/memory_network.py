"""The network of a host in memory: devices, routes and notifications; see `HostNetwork`."""

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from attrs import evolve

from vtep.config import Config
from vtep.daemon.network import HostSession, NetworkEventHandler, Undo
from vtep.errors import VtepError
from vtep.host.name_schedule import NameAnswer
from vtep.host.routes import Underlay
from vtep.host.tap_setup import TapAttachment, TapSetup
from vtep.io.inherited import Inherited
from vtep.io.udp_statistics import UdpErrors
from vtep.testing.memory_device import RTM_DELLINK, RTM_NEWLINK, MemoryDevice, link_message
from vtep.testing.memory_namespace import MemoryTapNamespace
from vtep.testing.tap import MemoryTap
from vtep.testing.underlay import MemoryHost
from vtep.wire.address import Address, without_scope

if TYPE_CHECKING:
    from vtep.daemon.network import HostNetwork, NetworkEvents, Routes, TapNamespace
    from vtep.tunnel_gso.device import TunnelGsoDevice

_T = TypeVar("_T")


class MemoryNetwork:
    """The network of a `MemoryHost`. It is a `HostNetwork`.

    All remotes are reached over the device `eth0`, which a test may remove and add again, except
    those in `unreachable`. Each method that changes something notifies the VTEP as the kernel
    does::

        underlay = MemoryUnderlay()
        host = underlay.add_host("192.0.2.1")
        network = MemoryNetwork(host)
        async with Vtep(config, network=network, sockets=host):
            network.taps["vx0"].send(frame)
    """

    def __init__(self, host: MemoryHost) -> None:
        self.host: Final = host
        self.devices: Final[dict[str, MemoryDevice]] = {}
        """The devices by name."""
        self.taps: Final[dict[str, NetworkTap]] = {}
        """The TAPs that are open, by name."""
        self.unreachable: Final[set[str]] = set()
        """Remotes without a route."""
        self.broadcasts: Final[set[str]] = set()
        """Broadcast addresses of the underlay."""
        self.refusals: Final[dict[str, str]] = {}
        """By the name of a TAP, why the kernel refuses to set it up."""
        self.irreversible: Final[set[str]] = set()
        """Names of TAPs whose changes the kernel refuses to revert."""
        self.reverted: Final[list[str]] = []
        """The changes that were reverted: the name of the TAP, and `settings` or `bridge`."""
        self.names: Final[dict[str, NameAnswer]] = {}
        """The answers to lookups of names; other names do not exist."""
        self.lookups: Final[list[str]] = []
        """The names that were looked up, in order."""
        self.queue_drops: Final[dict[str, int]] = {}
        """Transmit drops by the name of a device."""
        self.offloads = frozenset({"tso", "uso"})
        """The offloads that TAPs support which are opened from now on."""
        self.namespaces: Final[dict[str, MemoryNetwork]] = {}
        """Other network namespaces, by the value of `--netns` that names each of them."""
        self.end: str | None = None  # Why this namespace has ended, for TAPs of others in it.
        self._indices = iter(range(1, 1000))
        self._events: list[_MemoryEvents] = []
        self.add_device("eth0", mtu=host.underlay.mtu)

    # --- for the test -----------------------------------------------------------------------

    def add_device(self, name: str, *, kind: str = "", mtu: int = 1500) -> MemoryDevice:
        """Add a device, with a new index, and its routes."""
        device = self.devices[name] = MemoryDevice(next(self._indices), kind, mtu)
        self._notify_link(RTM_NEWLINK, device)
        self.notify_routes()
        return device

    def remove_device(self, name: str) -> None:
        """Remove a device with its routes. If it is a TAP, reads of its descriptor fail then."""
        device = self.devices.pop(name)
        if name in self.taps:
            self.taps.pop(name).remove()
        self._notify_link(RTM_DELLINK, device)
        self.notify_routes()

    def set_link(self, name: str, *, mtu: int | None = None, master: str | None = None) -> None:
        """Change a device: its MTU, or the bridge that it is a port of (empty for none)."""
        device = self.devices[name]
        if mtu is not None:
            device.mtu = mtu
        if master is not None:
            device.master = self.devices[master].index if master else 0
        self.notify_link(name)

    def notify_link(self, name: str) -> None:
        """Notify of a change of a device."""
        self._notify_link(RTM_NEWLINK, self.devices[name])

    def notify_routes(self) -> None:
        """Notify of a change of routes, such as in `unreachable`."""
        for events in self._events:
            events.on_routes()

    def notify_addresses(self) -> None:
        """Notify of a change of addresses, such as in `MemoryHost.addresses`."""
        for events in self._events:
            events.on_addresses()

    def lose_notifications(self) -> None:
        """Make the VTEP find that link notifications were lost, when it handles the next one."""
        for events in self._events:
            events.lost = True

    def _notify_link(self, kind: int, device: MemoryDevice) -> None:
        for events in self._events:
            events.on_link(self._link_message(kind, device))

    def _link_message(self, kind: int, device: MemoryDevice) -> bytes:
        names = (name for name, each in self.devices.items() if each is device)
        return link_message(kind, device, next(names, ""))

    # --- for the VTEP: see `HostNetwork` ----------------------------------------------------

    async def run(self, function: Callable[[HostSession], _T]) -> _T:
        """Call a function with a new session, after other tasks had a turn."""
        await asyncio.sleep(0)
        return function(MemorySession(self))

    def take_tap_fds(self, configs: Iterable[Config], inherited: Inherited) -> None:
        """Do nothing: a TAP in memory has no descriptor."""

    def prepare_tap(self, config: Config, inherited: Inherited) -> None:  # noqa: ARG002
        """Raise VtepError if `namespaces` lacks the namespace of a TAP."""
        if config.netns is not None and config.netns not in self.namespaces:
            raise VtepError(f"--netns {config.netns}: there is no such process (any more)")

    def tap_namespace(self, config: Config, inherited: Inherited) -> MemoryTapNamespace | None:  # noqa: ARG002
        """Return the namespace of a TAP; None if it is that of the process."""
        return MemoryTapNamespace(self.namespaces[config.netns]) if config.netns else None

    def subscribe(self) -> "_MemoryEvents":
        """Subscribe to notifications."""
        events = _MemoryEvents(self._events.remove)
        self._events.append(events)
        return events

    def link_messages(self) -> Iterator[bytes]:
        """Yield an RTM_NEWLINK message for each device."""
        for device in self.devices.values():
            yield self._link_message(RTM_NEWLINK, device)

    def device_index(self, name: str) -> int | None:
        """Return the index of a device; None if there is none."""
        device = self.devices.get(name)
        return device.index if device is not None else None

    def device_name(self, index: int) -> str:
        """Return the name of a device. Raises: OSError if there is none."""
        for name, device in self.devices.items():
            if device.index == index:
                return name
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def forget_device_names(self) -> None:
        """Do nothing: no name is cached."""

    def open_tap(
        self,
        name: str,
        *,
        tso: bool,
        uso: bool,
        inherited: int | None = None,  # noqa: ARG002
    ) -> "NetworkTap":
        """Open a TAP device, created if it does not exist. Raises: VtepError if it is taken.

        A TAP in memory has no descriptor that could be `inherited`.
        """
        device = self.devices.get(name)
        if name in self.taps or (device is not None and device.kind != "tun"):
            raise VtepError(f"--tap {name}: another process has this device; choose another name")
        tap = NetworkTap(self, name, tso="tso" in self.offloads, uso="uso" in self.offloads)
        tap.request_offloads(tso=tso, uso=uso)
        self.taps[name] = tap
        if device is None:
            device = self.devices[name] = MemoryDevice(tap.index, "tun", mac=tap.mac)
        else:
            tap.removed_on_close = False
        device.index = tap.index
        self._notify_link(RTM_NEWLINK, device)
        return tap

    def close_tap(self, tap: "NetworkTap") -> None:
        """Remove the device of a closed TAP, unless it is to persist."""
        name = tap.name
        if self.taps.get(name) is tap:
            del self.taps[name]
            if tap.removed_on_close and not tap.persistent:
                self._notify_link(RTM_DELLINK, self.devices.pop(name))

    def tap_queue_drops(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each device and its transmit drops."""
        for name in self.devices:
            yield name, self.queue_drops.get(name, 0)

    def udp_errors(self, version: int) -> UdpErrors:  # noqa: ARG002
        """Return counters that are always zero."""
        return UdpErrors(checksum=0, overflow=0)

    def gso_supported(self) -> bool:
        """Return whether a sender takes several datagrams in one send: yes."""
        return True

    def control_names(self) -> frozenset[str]:
        """Return no names: there is no other process."""
        return frozenset()

    async def look_up(self, name: str, versions: Collection[int]) -> NameAnswer:  # noqa: ARG002
        """Look up a host name in `names`, after other tasks had a turn."""
        await asyncio.sleep(0)
        self.lookups.append(name)
        return self.names.get(name, NameAnswer(error="there is no such name"))


class NetworkTap(MemoryTap):
    """A TAP of a `MemoryNetwork`: its device is removed when it is closed, or by a test."""

    _removed = False

    def __init__(self, network: MemoryNetwork, name: str, *, tso: bool, uso: bool) -> None:
        super().__init__(name, tso=tso, uso=uso)
        self._network = network

    @property
    def name(self) -> str:
        """The present name. Raises: OSError with EBADFD if the device was removed."""
        self._check()
        return self._name

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    @property
    def mac(self) -> bytes:
        """The present MAC address. Raises: OSError with EBADFD if the device was removed."""
        self._check()
        return self._mac

    @mac.setter
    def mac(self, mac: bytes) -> None:
        self._mac = mac

    def _check(self) -> None:
        if self._removed:
            raise OSError(errno.EBADFD, os.strerror(errno.EBADFD))

    def remove(self) -> None:
        """Remove the device under the process that has it open: its reads fail from now on."""
        self._removed = True
        # A peer that is closed while it has something to read resets the connection. Without that,
        # reads would return nothing, as at the end of a file, which a TAP does not.
        self._vtep_end.send(b"\0")
        self._test_end.close()

    def close(self) -> None:
        """Close both ends, and remove the device unless it is to persist."""
        super().close()
        if not self._removed:
            self._network.close_tap(self)


class MemorySession:
    """A session of a `MemoryNetwork`. It is a `HostSession` and a `Routes`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network

    # --- routes -----------------------------------------------------------------------------

    def routes(self) -> "MemorySession":
        """Take a snapshot, which in memory is the network itself."""
        return self

    def resolve_underlay(
        self, remotes: Iterable[Address], locals_: Iterable[Address], dev: str | None
    ) -> Underlay:
        """Return how the remotes are reached. Raises: VtepError if one can never be a remote."""
        own = self._network.host.addresses
        missing = [f"no interface has --local {ip}" for ip in locals_ if str(ip) not in own]
        own_addresses = {ip_address(each): () for each in own}
        name = dev or "eth0"
        remote_devices = {}
        device = self._network.devices.get(name)
        if device is None and dev is not None:
            missing.insert(0, f"no network device --dev {dev}")
        reachable = dev is not None
        for remote in remotes:
            address = str(without_scope(remote))
            if address in own:
                raise VtepError(
                    f"--remote {remote} is an address of this host itself; give that of the other"
                )
            if address in self._network.broadcasts:
                raise VtepError(
                    f"--remote {remote}: is a broadcast address; give the address of a VTEP"
                )
            if device is None or address in self._network.unreachable:
                if device is not None or dev is None:
                    missing.append(f"no route to --remote {remote}")
            else:
                reachable = True
                remote_devices[remote] = name
        if device is None or not reachable:
            return Underlay((), 1500, tuple(missing), own_addresses=own_addresses)
        return Underlay((name,), device.mtu, tuple(missing), (), remote_devices, own_addresses)

    def why_no_remote(
        self,
        address: Address,
        locals_: Iterable[Address],  # noqa: ARG002
        dev: str | None,  # noqa: ARG002
    ) -> str | None:
        """Return why an address can never be a remote; None if it can."""
        if str(without_scope(address)) in self._network.host.addresses:
            return "an address of this host itself"
        return "a broadcast address" if str(address) in self._network.broadcasts else None

    def interface_addresses(self, device: int) -> tuple[str, ...]:
        """Return the addresses of a device with prefix lengths."""
        found = (each for each in self._network.devices.values() if each.index == device)
        return tuple(str(address) for each in found for address in sorted(each.addresses))

    def output_device(self, remote: Address, local: Address | None, dev: str | None) -> int | None:  # noqa: ARG002
        """Return the index of the output device to a remote, or None without a route."""
        if str(remote) in self._network.unreachable:
            return None
        return self._network.device_index(dev or "eth0")

    def egress_device(self, remote: Address, local: Address | None, dev: str | None) -> None:  # noqa: ARG002
        """Return None: tunnel GSO is not possible in memory."""
        return

    # --- TAPs -------------------------------------------------------------------------------

    def bring_up(self, tap: str, setup: TapSetup, undo: list[Undo]) -> None:
        """Configure a new TAP and set it up. Raises: VtepError if `refusals` has it."""
        device = self._network.devices[tap]
        undo.append(self._undo_settings(tap))
        device.mtu = setup.mtu
        if setup.mac is not None:
            device.mac = self._network.taps[tap].mac = setup.mac
        device.addresses |= {*setup.addresses}
        device.is_up = True
        self._join(tap, setup, undo)
        self._network.notify_link(tap)
        self._refuse(tap)

    def change(self, tap: str, before: TapSetup, after: TapSetup, undo: list[Undo]) -> None:
        """Change a TAP from one setup to another. Raises: VtepError if `refusals` has it."""
        device = self._network.devices[tap]
        undo.append(self._undo_settings(tap))
        if after.mtu != before.mtu:
            device.mtu = after.mtu
        if after.mac is not None and after.mac != before.mac:
            device.mac = self._network.taps[tap].mac = after.mac
        device.addresses = device.addresses - {*before.addresses} | {*after.addresses}
        if after.bridge != before.bridge:
            device.master = 0
            self._join(tap, after, undo)
        self._network.notify_link(tap)
        self._refuse(tap)

    def _undo_settings(self, tap: str) -> Undo:
        device = self._network.devices[tap]
        before = evolve(device, addresses={*device.addresses})

        def undo(_connection: object) -> None:
            self._check_reversible(tap)
            self._network.reverted.append(f"{tap} settings")
            self._network.devices[tap] = before
            self._network.taps[tap].mac = before.mac

        return undo

    def _join(self, tap: str, setup: TapSetup, undo: list[Undo]) -> None:
        index = self._network.device_index(setup.bridge) if setup.bridge is not None else None
        if index is None:
            return
        device = self._network.devices[tap]
        before, device.master = device.master, index

        def leave(_connection: object) -> None:
            self._check_reversible(tap)
            self._network.reverted.append(f"{tap} bridge")
            device.master = before

        undo.append(leave)

    def _check_reversible(self, tap: str) -> None:
        if tap in self._network.irreversible:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def _refuse(self, tap: str) -> None:
        if tap in self._network.refusals:
            raise VtepError(f"--tap {tap}: {self._network.refusals[tap]}")

    def revert(self, undo: Undo) -> None:
        """Revert one change of a TAP. Raises: OSError if `irreversible` has it."""
        undo(None)

    def adapt(
        self, tap: str, index: int, attachment: TapAttachment, setup: TapSetup
    ) -> TapAttachment:
        """Adapt the MTU of a TAP: that of the tunnel, or at least 1500 octets on a bridge.

        Raises: VtepError if the device of this index has another name, or none.
        """
        device = self._network.devices.get(tap)
        if device is None or device.index != index:
            raise VtepError(f"--tap {tap}: it is not here any more")
        if setup.bridge is not None and not device.master:
            self._join(tap, setup, [])
            self._network.notify_link(tap)
        waits = setup.bridge is not None and not device.master
        unjoined = "there is no such device" if waits else ""
        if attachment.mtu in (None, device.mtu):
            device.mtu = max(setup.mtu, 1500) if device.master else setup.mtu
            attachment = evolve(attachment, mtu=device.mtu)
        limit = None if device.master else device.mtu
        return evolve(attachment, bridge=device.master, limit=limit, unjoined=unjoined)

    def remove(self, devices: Iterable[str]) -> None:
        """Remove devices."""
        for name in devices:
            if name in self._network.devices:
                self._network.remove_device(name)

    def open_tunnel_gso_device(self) -> NoReturn:
        """Raise OSError: there is no tunnel GSO in memory."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


class _MemoryEvents:
    """A subscription to the notifications of a `MemoryNetwork`."""

    def __init__(self, close: Callable[["_MemoryEvents"], None]) -> None:
        self._close = close
        self._messages: list[bytes] = []
        self._handler: NetworkEventHandler | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.lost = False
        """True if `lost_links` is to report a loss."""

    def start(self, handler: NetworkEventHandler) -> None:
        """Call the handler from now on."""
        self._handler, self._loop = handler, asyncio.get_running_loop()
        if self._messages:
            self._loop.call_soon(handler.on_links_changed)

    def on_link(self, message: bytes) -> None:
        """Queue a link notification, and call the handler in the next turn of the event loop."""
        self._messages.append(message)
        if self._handler is not None:
            self._call(self._handler.on_links_changed)

    def on_routes(self) -> None:
        """Call the handler in the next turn of the event loop."""
        if self._handler is not None:
            self._call(self._handler.on_routes_changed)

    def on_addresses(self) -> None:
        """Call the handler in the next turn of the event loop."""
        if self._handler is not None:
            self._call(self._handler.on_addresses_changed)

    def _call(self, notify: Callable[[], None]) -> None:
        if self._loop is not None:
            # A VTEP closes TAPs in threads, which is such a change, too.
            self._loop.call_soon_threadsafe(notify)

    def read_links(self) -> list[bytes]:
        """Return the link notifications that have queued."""
        messages, self._messages = self._messages, []
        return messages

    def lost_links(self) -> bool:
        """Return whether notifications were lost since the last call."""
        lost, self.lost = self.lost, False
        return lost

    def close(self) -> None:
        """End the subscription."""
        self._handler = None
        self._close(self)


if TYPE_CHECKING:

    def _fulfil(
        network: MemoryNetwork,
        elsewhere: MemoryTapNamespace,
        session: MemorySession,
        events: _MemoryEvents,
    ) -> "tuple[HostNetwork, TapNamespace, HostSession, Routes, NetworkEvents, TunnelGsoDevice]":
        return network, elsewhere, session, session, events, session.open_tunnel_gso_device()
