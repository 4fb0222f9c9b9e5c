"""Backpressure: callbacks that wait until a socket is writable."""

import asyncio
from collections.abc import Callable


class WritableWaiters:
    """Calls back, once each, when a socket with a full send buffer has room again.

    Several callbacks may wait for one socket, since VNIs share the paths to remotes. They are also
    called if the socket is closed, because the next send opens another one.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[Callable[[], None]]] = {}
        self.wakes = 0
        """The number of sockets that had room again, so far."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors of the sockets that are waited for."""
        return tuple(self._waiting)

    def wait(self, fd: int, resume: Callable[[], None]) -> None:
        """Call `resume` once when a descriptor is writable, from the event loop."""
        waiting = self._waiting.setdefault(fd, [])
        if not waiting:
            asyncio.get_running_loop().add_writer(fd, self.wake, fd)
        waiting.append(resume)

    def wake(self, fd: int) -> None:
        """Call back all that wait for a descriptor, which may be closed afterwards."""
        waiting = self._waiting.pop(fd, None)
        if waiting is None:
            return
        self.wakes += 1
        loop = asyncio.get_running_loop()
        loop.remove_writer(fd)
        for resume in waiting:
            # Not now: a caller that closes a socket is in the middle of a send.
            loop.call_soon(resume)
