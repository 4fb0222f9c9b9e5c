"""Classic BPF programs on sockets: filters, and the selection within a group of SO_REUSEPORT."""

import ctypes
import errno
import socket
import struct

from vtep.forwarding.ingress_filter import IngressFilter
from vtep.io import socket_constants as const

INSTRUCTION_LEN = 8
"""Octets of a struct sock_filter (include/uapi/linux/filter.h)."""

_ACCEPT, _DISCARD = 0xFFFF_FFFF, 0
"""Results of a filter: how many octets of the packet are kept."""

DISCARD_ALL = struct.pack("=HBBI", 0x06, 0, 0, _DISCARD)
"""A filter that accepts nothing: return 0."""


def attach_program(sock: socket.socket, option: int, program: bytes) -> None:
    """Attach a program by SO_ATTACH_FILTER or SO_ATTACH_REUSEPORT_CBPF. Raises: OSError."""
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and their address. The kernel copies them.
    fprog = struct.pack("@HP", len(program) // INSTRUCTION_LEN, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, option, fprog)


def attach_filter(sock: socket.socket, wanted: IngressFilter) -> None:
    """Make the kernel discard the datagrams of a socket that a filter does not accept.

    They are counted with those that it discards for other reasons (`UdpReceiver.queue_drops`).
    Raises: OSError.
    """
    if wanted.accepts_all:
        detach_filter(sock)
    else:
        attach_program(sock, const.SO_ATTACH_FILTER, wanted.program(_ACCEPT, _DISCARD))


def detach_filter(sock: socket.socket) -> None:
    """Remove the filter of a socket, if it has one. Raises: OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, const.SO_DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # It had none.
            raise
