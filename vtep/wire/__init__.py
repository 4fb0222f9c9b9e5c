"""Bytes on the wire: the headers that a VTEP reads and writes, and nothing else.

Every function here is pure: it takes a buffer, gives a value, and knows no socket, clock or
table. Frames are anything that supports the buffer protocol and slicing; offsets are in octets
from the start of the buffer given. Input is hostile by default: unless a docstring says that a
buffer was checked before, any octets of any length are allowed and no exception is raised.
"""

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["Buffer"]
