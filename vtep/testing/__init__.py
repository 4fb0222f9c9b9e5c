"""Means to test with: hosts in memory, and hosts made of network namespaces.

A host in memory needs no root, no network and no waiting, so a test takes milliseconds. There are
three levels of it:

- `MemoryTap` and `MemoryUnderlay` stand in for the TAP device and for the UDP sockets (see
  `vtep.io.interfaces`). They are enough for a test of the data path (`vtep.datapath`).
- `vtep.testing.memory_network.MemoryNetwork` adds devices, routes and notifications, and so runs a
  whole `Vtep`. It imports the daemon, and so is not imported here.
- `vtep.testing.lab` makes real hosts on one machine, which needs root.

Two VTEPs on an underlay that loses 1 % of all datagrams, the same ones each time::

    underlay = MemoryUnderlay(faults=Faults(loss=0.01), seed=1)
    one = MemoryNetwork(underlay.add_host("192.0.2.1"))
    two = MemoryNetwork(underlay.add_host("192.0.2.2"))
    async with (
        Vtep(Config(vni=1, remote="192.0.2.2"), network=one, sockets=one.host),
        Vtep(Config(vni=1, remote="192.0.2.1"), network=two, sockets=two.host),
    ):
        one.taps["vx1"].send(frame)
        await asyncio.sleep(0)  # The event loop has its turn.
        ...
        print(underlay.lost, underlay.trace[-1].destination)
"""

from vtep.testing.tap import MemoryTap
from vtep.testing.underlay import Faults, MemoryHost, MemoryUnderlay, Transmission

__all__ = ["Faults", "MemoryHost", "MemoryTap", "MemoryUnderlay", "Transmission"]
