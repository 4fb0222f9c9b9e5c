"""Compilation of the fast path, and the system calls that it makes.

numba compiles the functions of this package from their source when it is first used on a host, and
keeps the result in its cache. With NUMBA_DISABLE_JIT=1 in the environment, Python itself runs the
same source. That is some 300 times slower: it is for tests, which thereby see both.

System calls go to the C library. numba can keep a compiled function in its cache only if it names
them as external symbols. So they are declared twice, once for each mode, next to each other.
"""

import ctypes
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar

JIT: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
"""True if numba compiles; False if Python runs the source."""

_F = TypeVar("_F", bound=Callable[..., Any])

if JIT:
    from numba import int64, njit, types

    # Without "_nrt", numba counts references to each view of an array with atomic operations, when
    # the view is made and in every call: they take longer than all the rest of a turn. The arrays
    # belong to Python objects that outlive a turn. So compiled code must not create any, which a
    # slice assignment does if source and target may overlap.
    _OPTIONS: Final = {"boundscheck": True, "_nrt": False, "no_cfunc_wrapper": True}

    def compiled(function: _F) -> _F:
        """Compile a function that compiled functions call; numba infers its types."""
        return njit(cache=True, **_OPTIONS)(function)  # type: ignore[no-any-return]

    def inlined(function: _F) -> _F:
        """Compile a function as a part of each function that calls it: of one, or of very few.

        numba optimizes a compiled function again in every function that calls it. Here it does so
        once, and the call does not pass all fields of all arrays, some 4 ns for each array.
        """
        return njit(inline="always", **_OPTIONS)(function)  # type: ignore[no-any-return]

    def entry_point(signature: str) -> Callable[[_F], _F]:
        """Compile a function that Python calls, or load it from the cache, when it is defined."""
        return njit(signature, cache=True, **_OPTIONS)  # type: ignore[no-any-return]

    i64: Callable[[Any], int] = int64
    """Convert to a signed integer of 64 bits. To numba, `int` of an unsigned value is unsigned, and
    a mix of both is a floating-point number."""

    _int, _long, _unsigned, _pointer = types.int32, types.int64, types.uint32, types.uintp
    _read = types.ExternalFunction("read", _long(_int, _pointer, _pointer))
    _writev = types.ExternalFunction("writev", _long(_int, _pointer, _int))
    _sendmsg = types.ExternalFunction("sendmsg", _long(_int, _pointer, _int))
    _recvmmsg = types.ExternalFunction("recvmmsg", _int(_int, _pointer, _unsigned, _int, _pointer))
    _errno_location = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())

else:

    def compiled(function: _F) -> _F:
        """Return the function as it is."""
        return function

    inlined = compiled

    def entry_point(signature: str) -> Callable[[_F], _F]:  # noqa: ARG001
        """Return a decorator that returns a function as it is."""
        return compiled

    i64 = int

    _libc = ctypes.CDLL(None, use_errno=True)

    def _external(name: str, result: Any, *arguments: Any) -> Callable[..., int]:
        function = getattr(_libc, name)
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]

    _read = _external("read", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t)
    _writev = _external("writev", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int)
    _sendmsg = _external("sendmsg", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_size_t, ctypes.c_int)
    _recvmmsg = _external(
        *("recvmmsg", ctypes.c_int, ctypes.c_int, ctypes.c_size_t),
        *(ctypes.c_uint, ctypes.c_int, ctypes.c_size_t),
    )

    def _errno_location() -> list[int]:
        return [ctypes.get_errno()]


_MSG_DONTWAIT = 0x40


@compiled
def read(fd: int, address: int, octets: int) -> int:
    """Read up to `octets` octets to an address. Returns: how many, or the negative errno."""
    result = i64(_read(fd, address, octets))
    return result if result >= 0 else -i64(_errno_location()[0])


@compiled
def writev(fd: int, iovecs: int, count: int) -> int:
    """Write what `count` struct iovec at an address describe. Returns: as `read`."""
    result = i64(_writev(fd, iovecs, count))
    return result if result >= 0 else -i64(_errno_location()[0])


@compiled
def sendmsg(fd: int, message: int) -> int:
    """Send what the struct msghdr at an address describes. Returns: as `read`."""
    result = i64(_sendmsg(fd, message, _MSG_DONTWAIT))
    return result if result >= 0 else -i64(_errno_location()[0])


@compiled
def recvmmsg(fd: int, messages: int, count: int) -> int:
    """Receive up to `count` messages to the struct mmsghdr at an address, without waiting.

    Returns: how many messages, or the negative errno.
    """
    result = i64(_recvmmsg(fd, messages, count, _MSG_DONTWAIT, 0))
    return result if result >= 0 else -i64(_errno_location()[0])
