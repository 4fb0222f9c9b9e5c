"""Encoders and decoders for the headers that a VTEP reads and writes.

Every function here is pure: it maps buffers to values and uses no socket, clock or table. A frame
is any object with the buffer protocol and slicing. An offset counts octets from the start of the
buffer passed in.

Input is hostile by default: a function accepts any octets of any length and raises no exception,
unless its docstring states a precondition.
"""

from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["Buffer"]
