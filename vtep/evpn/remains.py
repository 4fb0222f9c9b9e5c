"""Entries of EVPN that no speaker looks after any more, and their removal by the daemon."""

import asyncio
from collections.abc import Iterable
from functools import partial

from vtep.daemon.port import Port
from vtep.forwarding.fdb import Filter

_OF_EVPN = Filter(extern_learn=True)


async def remove_remains(ports: Iterable[Port]) -> None:
    """Remove all entries of EVPN from the FDBs and the neighbours of ports, in slices."""
    for port in ports:
        for page in port.fdb.pages():
            port.segment.flush(_OF_EVPN, page)
            await asyncio.sleep(0)  # Frames have their turn.
        if port.segment.neighbours is not None:
            port.segment.neighbours.flush(extern_learn=True)


class Removals:
    """The removals that are under way, by port."""

    def __init__(self) -> None:
        self._tasks: dict[Port, asyncio.Task[None]] = {}

    def start(self, ports: Iterable[Port]) -> None:
        """Remove all entries of EVPN from ports."""
        for port in ports:
            self._cancel(port)
            task = asyncio.get_running_loop().create_task(remove_remains([port]))
            self._tasks[port] = task
            task.add_done_callback(partial(self._forget, port))

    def cancel(self, ports: Iterable[Port]) -> None:
        """End the removal from ports, which a speaker looks after again.

        It confirms the entries that are left, or removes them. In a removal that goes on, it would
        lose entries that it has just confirmed or installed.
        """
        for port in ports:
            self._cancel(port)

    def _cancel(self, port: Port) -> None:
        task = self._tasks.pop(port, None)
        if task is not None:
            task.cancel()

    def _forget(self, port: Port, task: "asyncio.Task[None]") -> None:
        if self._tasks.get(port) is task:
            del self._tasks[port]
