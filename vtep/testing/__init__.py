"""Means to test with: devices and sockets in memory, and hosts made of network namespaces.

`MemoryTap` and `MemoryUnderlay` stand in for the TAP device and for the UDP sockets (see
`vtep.io.interfaces`). They need no root, no network and no waiting, so that a test of a whole VTEP
takes milliseconds. `vtep.testing.lab` makes real hosts on one machine, which needs root.
"""

from vtep.testing.tap import MemoryTap
from vtep.testing.underlay import Faults, MemoryHost, MemoryUnderlay, Transmission

__all__ = ["Faults", "MemoryHost", "MemoryTap", "MemoryUnderlay", "Transmission"]
