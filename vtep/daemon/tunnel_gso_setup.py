"""Tunnel GSO on this host: the device that it needs, and the egress devices of the remotes."""

import asyncio
import time
from ipaddress import ip_address

from vtep.daemon.network import HostNetwork, HostSession
from vtep.datapath.pool import Pool
from vtep.descriptors import ShortageError
from vtep.errors import VtepError
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber


class TunnelGsoSetup:
    """Opens the tunnel-GSO device of a pool, and resolves the egress devices for its prober."""

    def __init__(self, network: HostNetwork, pool: Pool, prober: GsoProber[TunnelGsoPath]) -> None:
        self._network = network
        self._pool = pool
        self._prober = prober
        self._unsupported = False
        self._task: asyncio.Task[None] | None = None
        self.unavailable_reason: str | None = None
        """Why the device could not be opened; None if it was not tried or is open."""

    async def open_device(self) -> None:
        """Open the device, unless it is open already or the host does not support it."""
        device = self._pool.tunnel_gso_device
        if self._unsupported or (device is not None and device.exists):
            return
        if device is not None:
            device.close()
        self.unavailable_reason = None
        try:
            self._pool.tunnel_gso_device = await self._network.run(
                lambda session: session.open_tunnel_gso_device()
            )
        except (OSError, VtepError) as error:
            self.unavailable_reason = str(getattr(error, "strerror", None) or error)
            # A shortage of descriptors may be over at the next try; a kernel feature won't appear.
            self._unsupported = not isinstance(error, ShortageError)

    def resolve(self) -> None:
        """Look up the egress devices of the remotes that wait for it, in a task."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._resolve_all())

    async def _resolve_all(self) -> None:
        while paths := self._prober.unresolved():

            def look_up(
                session: HostSession, paths: list[TunnelGsoPath] = paths
            ) -> list[tuple[TunnelGsoPath, int | None]]:
                routes = session.routes()
                found = []
                for path in paths:
                    host, binding = ip_address(path.host), path.binding
                    egress = routes.egress_device(host, binding.local, binding.dev)
                    found.append((path, egress))
                return found

            try:
                resolved = await self._network.run(look_up)
            except (OSError, VtepError):  # The network changes under the lookup: probe again later.
                resolved = [(path, None) for path in paths]
            for path, egress in resolved:
                self._prober.on_resolved(path, egress, time.monotonic())

    def stop(self) -> None:
        """End the lookups."""
        if self._task is not None:
            self._task.cancel()
