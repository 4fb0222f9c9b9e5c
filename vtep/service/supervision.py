"""Supervision by the service manager: the watchdog, the status line, and the stored TAP devices."""

import asyncio
import logging
import os
import select
import time
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING

from vtep.daemon.progress import Reader
from vtep.daemon.vtep import Vtep
from vtep.service.notify import ServiceManager, fd_name

if TYPE_CHECKING:
    from vtep.io.interfaces import TapDevice

log = logging.getLogger("vtep")

_FIRST_FD = 3
"""The first descriptor that a manager passes (sd_listen_fds(3))."""

_INTERVAL_S = 5.0
"""Interval between updates of the status line without a watchdog, in seconds."""

_CHECKS = 4
"""Checks within the time of the watchdog: the manager recommends to feed it at half of it."""


def stored_descriptors(environ: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """Return the descriptors that the manager has stored for this process, with their names.

    Side effects: the variables are removed, so that a child does not take them for its own.
    """
    pid, count, names = (
        environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    numbers = range(_FIRST_FD, _FIRST_FD + int(count))
    for number in numbers:
        os.set_inheritable(number, False)
    return list(zip(names.split(":"), numbers, strict=False))


class StallDetector:
    """Finds descriptors of the data path that are ready and not handled.

    One that is ready at two checks in a row, without any progress in between, is stuck. That the
    event loop turns is no proof of forwarding: it may have lost a reader.
    """

    def __init__(self) -> None:
        self._ready: dict[tuple[int, str, bool], tuple[int, float]] = {}

    def check(self, readers: Iterable[Reader], now: float) -> Reader | None:
        """Return a descriptor that is stuck; None if all are handled. `now` is in seconds."""
        before, self._ready = self._ready, {}
        stuck = None
        for reader in readers:
            if not _is_ready(reader):
                continue
            key = (reader.fd, reader.name, reader.to_write)
            handled, since = before.get(key, (reader.handled, now))
            if handled != reader.handled:
                since = now
            elif since < now:
                stuck = reader
            self._ready[key] = (reader.handled, since)
        return stuck


def _is_ready(reader: Reader) -> bool:
    poll = select.poll()
    poll.register(reader.fd, select.POLLOUT if reader.to_write else select.POLLIN)
    # An error is none of ours: POLLERR is shown by a TAP that is down, and is handled elsewhere.
    wanted = select.POLLOUT if reader.to_write else select.POLLIN
    return any(events & wanted and not events & select.POLLERR for _, events in poll.poll(0))


class StoredTaps:
    """The TAP devices in the store of the manager, which keeps them while no process runs."""

    def __init__(self, manager: ServiceManager, inherited: Iterable[str] = ()) -> None:
        self._manager = manager
        self._stored: dict[str, TapDevice | None] = dict.fromkeys(inherited)

    def update(self, vtep: Vtep) -> None:
        """Store the TAPs of all ports, and remove those that have no port any more.

        The kernel removes the device of a TAP with its last descriptor.
        """
        present = {name: tap for name, tap in vtep.taps() if fd_name(name) == name}
        for name in self._stored.keys() - present.keys():
            self._manager.remove(name)
            del self._stored[name]
        for name, tap in present.items():
            if self._stored.get(name) is not tap:
                if name in self._stored:
                    # Names need not be unique there, and a TAP that was made anew is another one.
                    self._manager.remove(name)
                self._manager.store(name, tap.fd)
                self._stored[name] = tap

    def clear(self) -> None:
        """Remove all TAPs from the store, for a process that stores its own instead."""
        for name in self._stored:
            self._manager.remove(name)
        self._stored.clear()


def describe_status(vtep: Vtep) -> str:
    """Return the state of a VTEP in one line."""
    ports = tuple(vtep.ports.values())
    if not ports:
        return "no VNI is configured yet"
    missing = [part for port in ports for part in port.underlay_missing]
    awaited = [
        name for port in ports for name in port.config.remote_names if vtep.names.is_awaited(name)
    ]
    remotes = len({remote.host for port in ports for remote in port.segment.remotes})
    macs = sum(len(port.fdb) for port in ports)
    what = (
        f"vni {ports[0].config.vni} on {ports[0].tap}" if len(ports) == 1 else f"{len(ports)} VNIs"
    )
    state = "forwarding"
    if missing:
        state = f"waiting for the underlay: {missing[0]}"
    elif awaited:
        state = f"waiting for an address of --remote {awaited[0]}"
    return (
        f"{state}: {what}, {remotes} remote{'s'[: remotes != 1]}, {macs} MAC{'s'[: macs != 1]}, "
        f"fast path {vtep.fast_path}"
    )


class Supervision:
    """The conversation of a running VTEP with the service manager; it runs in the event loop."""

    def __init__(self, manager: ServiceManager, vtep: Vtep, inherited: Iterable[str] = ()) -> None:
        self.manager = manager
        """The service manager, if any."""
        self._vtep = vtep
        self._taps = StoredTaps(manager, inherited)
        self._stall = StallDetector()
        self._is_stuck = False
        self._is_over = False

    def ready(self) -> None:
        """Report that it forwards."""
        # Before READY=1: a manager may restart the process right after.
        self._taps.update(self._vtep)
        self.manager.status(describe_status(self._vtep))
        self.manager.ready()

    def stopping(self) -> None:
        """Report that the service is about to end, unless another process goes on with it."""
        if not self._is_over:
            self.manager.stopping()

    async def hand_over(self, pid: int) -> None:
        """Make another process the main one of the service; this one reports nothing any more.

        The manager ignores what the other one has reported until this returns: it is to call
        `ready` of its own afterwards, which also stores its TAPs. Those of this process leave the
        store, as the other one may have fewer.
        """
        self._is_over = True
        self._taps.clear()
        # In a thread, since it waits for the manager.
        await asyncio.to_thread(self.manager.hand_over, pid)

    async def run(self) -> None:
        """Report the state and feed the watchdog periodically, until cancelled."""
        if not self.manager.is_present:
            await asyncio.Event().wait()
        watchdog = self.manager.watchdog_s
        interval = _INTERVAL_S if watchdog is None else watchdog / _CHECKS
        while True:
            self.check(time.monotonic())
            await asyncio.sleep(interval)

    def check(self, now: float) -> None:
        """Report the state and feed the watchdog, unless the data path is stuck."""
        if self._is_over:
            return
        self._taps.update(self._vtep)
        self.manager.status(describe_status(self._vtep))
        if self.manager.watchdog_s is None:
            return
        stuck = self._stall.check(self._vtep.readers(), now)
        if stuck is None:
            self.manager.feed_watchdog()
        elif not self._is_stuck:
            log.error(
                "forwarding is stuck: %s is ready, but is not handled; the service manager will "
                "restart pyvtep within %g s",
                *(stuck.name, self.manager.watchdog_s),
            )
        self._is_stuck = stuck is not None
