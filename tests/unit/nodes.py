"""Hosts in memory, each with a VTEP, and what tests of them have in common."""

import asyncio
from collections.abc import Callable
from typing import Any

from vtep import Config, Vtep
from vtep.testing import MemoryHost, MemoryUnderlay
from vtep.testing.memory_network import MemoryNetwork

IP_A, IP_B, IP_C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


class Node:
    """A host with a VTEP that is not started yet."""

    def __init__(self, underlay: MemoryUnderlay, *configs: Config, ip: str = IP_A) -> None:
        self.host: MemoryHost = underlay.add_host(ip, f"2001:db8::{ip[-1]}")
        self.network = MemoryNetwork(self.host)
        self.vtep = Vtep(*configs, network=self.network, sockets=self.host)
        self.changes: list[tuple[str, int]] = []
        self.vtep.watch(lambda event, port, _: self.changes.append((event, port.config.vni)))

    def send(self, frame: bytes, tap: str = "vx1") -> None:
        """Send a frame as a guest of this host."""
        self.network.taps[tap].send(frame)

    def received(self, tap: str = "vx1") -> list[bytes]:
        """Return the frames that guests of this host have received since the last call."""
        return [frame for _, frame in self.network.taps[tap].received()]

    async def until_received(self, *frames: bytes, tap: str = "vx1") -> None:
        """Wait until guests have received these frames, and no others."""
        found: list[bytes] = []

        def complete() -> bool:
            found.extend(self.received(tap))
            return len(found) >= len(frames)

        await until(complete)
        assert found == [*frames]


def frame(source: bytes, destination: bytes, payload: bytes = b"") -> bytes:
    return destination + source + b"\x88\xb5" + payload.ljust(50, b"\0")


def segment(vni: int = 1, remote: str | tuple[str, ...] = IP_B, **options: Any) -> Config:
    known: dict[str, Any] = {"vni": vni, "remote": remote, "tap": f"vx{vni}", **options}
    return Config(**known)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  nothing could set an event
            await asyncio.sleep(0)
