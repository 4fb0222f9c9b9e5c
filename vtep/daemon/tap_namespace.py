"""The network namespace of a TAP that is not in that of this process: `--netns` and `--tap-fd`.

Its descriptors are opened by `prepare`, which takes some 20 ms and may need privileges: so at the
start of a process it is called before those are given up. They wait in `Inherited` for the port, as
those do that another process hands over.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from attrs import fields

from vtep import descriptors
from vtep.config import Config
from vtep.daemon.kernel_session import call_with_session
from vtep.daemon.network import HostSession
from vtep.daemon.ports import naming_vni
from vtep.errors import VtepError
from vtep.host import netlink_events
from vtep.host.devices import index_by
from vtep.host.link_table import LinkTable
from vtep.io.inherited import Inherited, namespace_role, tap_role
from vtep.io.interfaces import TapDevice
from vtep.io.namespace import (
    NamespaceDescriptors,
    closing_fd,
    enter,
    has_ended,
    is_here,
    open_namespace,
)
from vtep.io.receiver import receive_queue_drops
from vtep.io.tap import Tap, check_tap, namespace_of_tap, queue_drops

log = logging.getLogger("vtep")

_EVENT_MAX = 65536
"""Octets of one read from a netlink socket, which returns whole messages only."""

_PARTS = tuple(field.name for field in fields(NamespaceDescriptors))

_T = TypeVar("_T")


class KernelTapNamespace:
    """The network namespace of one TAP. It owns the descriptors that refer to it.

    `netns` is the value of `--netns`; None if the namespace is known by the TAP only.
    """

    def __init__(self, own: NamespaceDescriptors, netns: str | None) -> None:
        self._own = own
        self._netns = netns
        self._events = socket.socket(fileno=own.events)
        self._drops = 0
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_changed: Callable[[], None] | None = None
        self._is_closed = False
        self._is_stale = True
        self.links = LinkTable()
        """The devices of the namespace, as far as `read_links` has read them."""

    # --- as `HostNetwork` -------------------------------------------------------------------

    async def run(self, function: Callable[[HostSession], _T]) -> _T:
        """Call a function with a session in the namespace, in a thread; see `HostNetwork.run`."""
        # There is one netlink socket, and two sessions would read each other's replies.
        async with self._lock:
            return await self._in_thread(lambda: call_with_session(function, self._own.route))

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        if self._is_closed:
            raise VtepError("the network namespace of the TAP is not open any more")
        with ThreadPoolExecutor(max_workers=1) as thread:
            return await asyncio.get_running_loop().run_in_executor(thread, function)

    def device_index(self, name: str) -> int | None:
        """Return the index of a device; None if there is none. Raises: OSError."""
        return index_by(self._own.route, name)

    def open_tap(
        self, name: str, *, tso: bool, uso: bool, inherited: int | None = None
    ) -> TapDevice:
        """Return the TAP whose descriptor was `inherited`. Raises: VtepError."""
        there = self.device_index
        return Tap(name, tso=tso, uso=uso, inherited=inherited, index_there=there)

    def tap_queue_drops(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each device and its transmit drops. Raises: OSError."""
        return queue_drops(self._own.devices)

    # --- notifications ----------------------------------------------------------------------

    def watch(self, on_changed: Callable[[], None]) -> None:
        """Call a function now and whenever a link or an address of the namespace has changed."""
        self._on_changed = on_changed
        self._is_stale = True  # Another process may have read some notifications meanwhile.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._events.fileno(), self._read_events)
        on_changed()

    def unwatch(self) -> None:
        """Leave all notifications to another process, or queue them, until `watch`."""
        if self._loop is not None:
            self._loop.remove_reader(self._events.fileno())
            self._loop = None

    def _read_events(self) -> None:
        with suppress(OSError):  # Until the queue is empty.
            while True:
                # Those about addresses are of another type, which the table ignores.
                self.links.update(self._events.recv(_EVENT_MAX))
        drops, before = receive_queue_drops(self._events), self._drops
        self._drops = drops
        self._is_stale |= drops != before
        if self._on_changed is not None:
            self._on_changed()

    async def read_links(self) -> None:
        """Read all devices, if the notifications so far do not tell of them. Raises: VtepError."""
        if not self._is_stale:
            return
        async with self._lock:
            self._is_stale = False
            found = await self._in_thread(self._dump_links)
        self.links.clear()
        for messages in found:
            self.links.update(messages)

    def _dump_links(self) -> list[bytes]:
        with suppress(OSError):
            return list(netlink_events.dump_links(self._own.route))
        return []

    # --- life -------------------------------------------------------------------------------

    @property
    def end(self) -> str | None:
        """Why the namespace has ended; None if it has not.

        It exists as long as a TAP or a socket in it is open here, but nothing else is in it.
        """
        netns = self._netns
        if netns is None or not has_ended(self._own.file, netns):
            return None
        if netns.isdigit():
            return f"the process {netns} of --netns has ended, and its network namespace with it"
        return f"the network namespace --netns {netns} was removed"

    def descriptors(self) -> Iterator[tuple[str, int]]:
        """Yield the part and the number of each descriptor, for another process."""
        return self._own.items()

    def close(self) -> None:
        """Close the descriptors. A session that still runs ends as usual."""
        if not self._is_closed:
            self._is_closed = True
            self.unwatch()
            self._events.detach()
            self._own.close()


def take_tap_fds(configs: Iterable[Config], inherited: Inherited) -> None:
    """Own the descriptors of `--tap-fd`. To be called once, when a process starts.

    Later, a number may be that of any other descriptor. Raises: VtepError if one is no TAP.
    """
    for config in configs:
        number = config.tap_fd
        if number is None or inherited.get(tap_role(config.tap)) is not None:
            continue
        if (problem := check_tap(number)) is not None:
            raise VtepError(f"--tap-fd {number}: {problem}")
        inherited.put(tap_role(config.tap), number)


def prepare_taps(configs: Iterable[Config], inherited: Inherited) -> None:
    """Open what TAPs in other network namespaces need, at the start of a process.

    Raises: VtepError, with a remedy.
    """
    configs = tuple(configs)
    take_tap_fds(configs, inherited)
    for config in configs:
        with naming_vni(config, several=len(configs) > 1):
            prepare(config, inherited)


def prepare(config: Config, inherited: Inherited) -> None:
    """Open what a TAP needs in another network namespace, and the TAP; see `namespace_of`.

    It does nothing for a TAP of this namespace, or if the descriptors are there already.
    Raises: VtepError, with a remedy.
    """
    role = tap_role(config.tap)
    tap = inherited.get(role)
    if config.tap_fd is not None and tap is None:
        raise VtepError(
            f"--tap-fd {config.tap_fd}: pyvtep takes descriptors at its start only, and each once; "
            "restart it, or let it open the TAP (--netns)"
        )
    parts = [namespace_role(config.tap, part) for part in _PARTS]
    if inherited.in_use or all(inherited.get(part) is not None for part in parts):
        return
    if config.netns is not None:
        option, namespace = f"--netns {config.netns}", open_namespace(config.netns)
        if tap is not None and not _is_in(tap, namespace):
            # A service manager has kept it, of a namespace that there was at another time.
            os.close(inherited.take(role) or -1)
            tap = None
        opened, fd = enter(option, namespace, config.tap if tap is None else None)
        if fd is not None:
            inherited.put(role, fd)
    elif tap is not None and config.tap_fd is not None:
        try:
            there = _other_namespace(config.tap_fd, tap)
            if there is None:
                return
            opened, _ = enter(f"--tap-fd {config.tap_fd}", there, None)
        except VtepError as error:
            log.warning("vni %d: the owner of its TAP is to set it up: %s", config.vni, error)
            return
    else:
        return
    for part, fd in opened.items():
        inherited.put(namespace_role(config.tap, part), fd)


def _other_namespace(tap_fd: int, tap: int) -> int | None:
    """Open the namespace of the TAP of `--tap-fd`; None if it is that of this process.

    Raises: VtepError if this process has no rights there, or the device is gone.
    """
    try:
        namespace = namespace_of_tap(tap)
    except PermissionError as error:
        raise VtepError(
            f"--tap-fd {tap_fd}: no CAP_NET_ADMIN in the network namespace of the TAP"
        ) from error
    except OSError as error:
        raise VtepError(f"--tap-fd {tap_fd}: {descriptors.reason(error)}") from error
    if not is_here(namespace):
        return namespace
    os.close(namespace)
    return None


def _is_in(tap: int, namespace: int) -> bool:
    """Return whether an open TAP is in an open namespace."""
    with suppress(OSError), closing_fd(namespace_of_tap(tap)) as present:
        return os.path.samestat(os.fstat(present), os.fstat(namespace))
    return False


def namespace_of(config: Config, inherited: Inherited) -> KernelTapNamespace | None:
    """Return the namespace of a TAP by the descriptors that `prepare` has opened.

    Returns: None if the TAP is in the namespace of this process.
    Raises: VtepError if that is not where `--netns` wants it.
    """
    found = [inherited.take(namespace_role(config.tap, part)) for part in _PARTS]
    numbers = [fd for fd in found if fd is not None]
    if len(numbers) == len(_PARTS):
        return KernelTapNamespace(NamespaceDescriptors(*numbers), config.netns)
    for fd in numbers:
        os.close(fd)
    if config.netns is not None:  # A TAP in the namespace of this process would connect the two.
        raise VtepError(f"--netns {config.netns}: it was not entered; restart pyvtep")
    return None
