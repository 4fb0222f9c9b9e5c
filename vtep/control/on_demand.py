"""The end of a process that runs on demand: when it has neither a VNI nor a client."""

import asyncio
import logging
from typing import TYPE_CHECKING

from vtep.daemon.vtep import Vtep

if TYPE_CHECKING:
    from vtep.control.server import Server

log = logging.getLogger("vtep")

_INTERVAL_S = 0.5
"""Interval of the checks. The end of a process that has nothing to do is never urgent."""

_IDLE_CHECKS = 2
"""Checks in a row that find neither: a caller that has looked for a process connects to it next."""

_FIRST_REQUEST_S = 60.0
"""Time for the first request; the command that started the process is to send one."""


class OnDemand:
    """Decides when a process ends that was started with `--on-demand`.

    A client that is connected keeps it alive: it may be about to add a VNI.
    """

    def __init__(self, vtep: Vtep) -> None:
        self._vtep = vtep
        self.server: Server | None = None
        """The server of the control socket; None if it could not be opened."""

    async def run(self) -> None:
        """Return when the process is not needed any more."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _FIRST_REQUEST_S
        idle = 0
        while idle < _IDLE_CHECKS:
            await asyncio.sleep(_INTERVAL_S)
            is_starting = not self._was_used() and loop.time() < deadline
            idle = 0 if is_starting or self._is_needed() else idle + 1
        log.info("neither a VNI nor a client is left")

    def _was_used(self) -> bool:
        return bool(self._vtep.ports) or (self.server is not None and self.server.has_answered)

    def _is_needed(self) -> bool:
        return bool(self._vtep.ports) or (self.server is not None and self.server.has_clients)
