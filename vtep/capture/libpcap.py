"""Filter expressions of tcpdump, compiled and executed by libpcap (pcap-filter(7))."""

import ctypes
from functools import cache
from typing import Any, Final

from vtep.errors import ConfigError, VtepError
from vtep.wire.pcapng import ETHERNET

EXPRESSION_MAX: Final = 4096
"""Characters of an expression: the compiler's time grows faster than its length."""

_NAMES = ("libpcap.so.0.8", "libpcap.so.1", "libpcap.so")
"""Names of the library: those of Debian, of other distributions, and of a development package."""

_SNAPLEN = 1 << 18
_NETMASK_UNKNOWN = 0xFFFFFFFF


class _Program(ctypes.Structure):
    """struct bpf_program."""

    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    """struct pcap_pkthdr."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("caplen", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
    )


class FrameFilter:
    """A compiled filter expression, which owns memory of libpcap until `close`."""

    def __init__(self, expression: str) -> None:
        """Compile an expression, which may take seconds if it has the name of a host.

        Raises: ConfigError with libpcap's words if it is not valid; VtepError without libpcap.
        """
        if len(expression) > EXPRESSION_MAX:
            raise ConfigError(
                f"the filter expression has {len(expression)} characters, and may have "
                f"{EXPRESSION_MAX}"
            )
        if "\0" in expression:
            raise ConfigError("the filter expression contains a null character")
        self.expression = expression
        self._library = library = _library()
        self._program: _Program | None = None
        self._header = _Header()
        handle = library.pcap_open_dead(ETHERNET, _SNAPLEN)
        if not handle:
            raise VtepError("libpcap has no memory for a filter")
        try:
            program = _Program()
            optimize = 1
            if library.pcap_compile(
                handle, ctypes.byref(program), expression.encode(), optimize, _NETMASK_UNKNOWN
            ):
                why = library.pcap_geterr(handle).decode(errors="replace")
                raise ConfigError(f"filter {expression!r}: {why}")
            self._program = program
        finally:
            library.pcap_close(handle)

    def matches(self, frame: bytes) -> bool:
        """Return True if the expression holds for an Ethernet frame."""
        if self._program is None:
            raise RuntimeError("the filter is closed")
        header = self._header
        header.caplen = header.len = len(frame)
        return bool(
            self._library.pcap_offline_filter(
                ctypes.byref(self._program), ctypes.byref(header), frame
            )
        )

    def close(self) -> None:
        """Free the program."""
        program, self._program = self._program, None
        if program is not None:
            self._library.pcap_freecode(ctypes.byref(program))


def _load(name: str) -> Any:
    """Load a shared library. Raises: OSError."""
    return ctypes.CDLL(name)


@cache
def _library() -> Any:
    """Return libpcap, with the types of its functions. Raises: VtepError if it is not installed."""
    library = None
    # Not find_library(), which runs ldconfig or a compiler.
    for name in _NAMES:
        try:
            library = _load(name)
            break
        except OSError:
            continue
    if library is None:
        raise VtepError(
            "a filter needs libpcap, which is not installed: install it (apt install libpcap0.8, "
            "or dnf install libpcap), or leave out the expression: --mac and --remote need none"
        )
    pointer = ctypes.c_void_p
    library.pcap_open_dead.restype = pointer
    library.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    library.pcap_compile.argtypes = (
        *(pointer, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32),
    )
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = (pointer,)
    library.pcap_close.argtypes = (pointer,)
    library.pcap_close.restype = None
    library.pcap_offline_filter.argtypes = (
        *(ctypes.POINTER(_Program), ctypes.POINTER(_Header), ctypes.c_char_p),
    )
    library.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
    library.pcap_freecode.restype = None
    return library
