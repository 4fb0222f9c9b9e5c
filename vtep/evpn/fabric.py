"""EVPN of a process: nothing but this module is loaded until EVPN is configured."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from vtep.config import Settings
from vtep.config.evpn_neighbors import BGP_PORT
from vtep.control.method import Method
from vtep.control.params import Params
from vtep.control.server import Server
from vtep.daemon.port import Port
from vtep.daemon.reloadable import ReloadableVtep
from vtep.daemon.vtep import Vtep
from vtep.errors import ConfigError, VtepError
from vtep.wire.address import without_scope

if TYPE_CHECKING:
    from vtep.evpn.supervisor import Supervisor

log = logging.getLogger("vtep")

_PAUSE_S = 5.0
"""Seconds after an internal error."""

REPORT: Final = (
    *("sessions", "segments", "unmatched", "label_conflicts", "duplicates", "replaced_next_hops"),
    *("ignored", "not_installed", "problems"),
)
"""The parameters of `evpn.report`: the members of `vtep.control.evpn_schema.EvpnReport`."""


def check_neighbors(settings: Settings) -> None:
    """Raise ConfigError if a process would have a BGP session with itself.

    Another BGP speaker on this host has another port, or TCP port 179 for itself.
    """
    evpn = settings.evpn
    if evpn is None or not evpn.listen:
        return
    source_of = import_module("vtep.evpn.bgp_sockets").local_address_towards
    for neighbor in evpn.neighbor:
        if neighbor.port != BGP_PORT:
            continue
        source = source_of(neighbor.address, neighbor.port)
        is_own = source is not None and without_scope(source) == without_scope(neighbor.address)
        if is_own or neighbor.address.is_loopback:
            raise ConfigError(
                f"--evpn-neighbor {neighbor.address}: is an address of this host; give that of "
                "another BGP speaker (for one on this host: its port, or listen = false in a file)"
            )


class Fabric:
    """The part that a process has in an EVPN fabric, none until its settings have one.

    `options` are those of the command line that decide about the log of the speaker.
    """

    def __init__(self, vtep: Vtep, options: Sequence[str] = ()) -> None:
        self._vtep = vtep
        self._options = options
        self._needed = asyncio.Event()
        self._supervisor: Supervisor | None = None
        self._server: Server | None = None
        self._removing: asyncio.Task[None] | None = None
        self._former: tuple[Mapping[str, Any], Mapping[int, Port], int | None] | None = None
        self.methods: Final = {
            "evpn.attach": Method(
                lambda given: self._need().attach(given), ("token", "pid", "version")
            ),
            "evpn.config": Method(lambda given: self._need().config(given), ("token", "after")),
            "evpn.report": Method(
                lambda given: self._need().report(given), ("token", "part", "more", *REPORT)
            ),
            "evpn.restart": Method(self._restart),
        }
        """The methods of the control socket for the speaker, and to restart it."""

    def _need(self) -> "Supervisor":
        if self._supervisor is None:
            raise VtepError("there is no EVPN: give --evpn-neighbor, or a table [evpn] in the file")
        return self._supervisor

    def _restart(self, _given: Params) -> Any:
        return self._need().restart()

    @asynccontextmanager
    async def configured(
        self, reloadable: ReloadableVtep, is_handed_over: Callable[[], bool]
    ) -> AsyncIterator[None]:
        """Take the settings of a process, and those of each reload, meanwhile.

        At the end, the speaker is ended, unless another process has taken it over.
        """
        self._configure(reloadable.settings)
        unwatch = reloadable.watch(self._configure)
        try:
            yield
        finally:
            unwatch()
            if self._supervisor is not None:
                await self._supervisor.stop(handed_over=is_handed_over())

    def _configure(self, settings: Settings) -> None:
        if self._supervisor is None:
            if settings.evpn is None:
                if self._former is not None:
                    # The speaker of the former process is not admitted, and ends.
                    *_, pidfd = self._former
                    if pidfd is not None:
                        os.close(pidfd)
                    self._former = None
                    remove = import_module("vtep.evpn.remains").remove_remains
                    ports = list(self._vtep.ports.values())
                    self._removing = asyncio.get_running_loop().create_task(remove(ports))
                return
            if self._removing is not None:
                self._removing.cancel()
            module = import_module("vtep.evpn.supervisor")
            self._supervisor = module.Supervisor(self._vtep, self._options)
            self._needed.set()
            if self._former is not None:
                self._supervisor.adopt(*self._former)
            if self._server is not None:
                self._supervisor.on_serving(self._server)
        self._supervisor.configure(settings)

    def on_serving(self, server: Server) -> None:
        """Note the control server, to which the speaker connects."""
        self._server = server
        if self._supervisor is not None:
            self._supervisor.on_serving(server)

    async def run(self) -> None:
        """Run the speaker, and start it again whenever it ends, until cancelled."""
        await self._needed.wait()
        while True:
            try:
                await self._need().run()
            except Exception as error:  # noqa: BLE001  whatever it is, forwarding goes on
                self._log_error(error)
                await asyncio.sleep(_PAUSE_S)

    @staticmethod
    def _log_error(error: Exception) -> None:
        log.error("EVPN: internal error: %r; please report it", error)
        log.debug("traceback:", exc_info=error)

    def reopen_log(self) -> None:
        """Make the speaker open its log file anew."""
        if self._supervisor is not None:
            self._supervisor.reopen_log()

    # --- upgrades -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a process that takes over must know of the speaker, as a JSON object."""
        return {} if self._supervisor is None else self._supervisor.state()

    def pidfd(self) -> int | None:
        """Return the descriptor of the speaker's process; None if it does not run."""
        return None if self._supervisor is None else self._supervisor.pidfd()

    def adopt(
        self, state: Mapping[str, Any], ports: Mapping[int, Port], pidfd: int | None = None
    ) -> None:
        """Take over the speaker of another process, with the ports that it has handed over.

        To be called before `configured`. `pidfd` is that of the speaker, which this object owns
        from now on; older versions do not give it.
        """
        if state:
            self._former = (state, dict(ports), pidfd)
        elif pidfd is not None:
            os.close(pidfd)
