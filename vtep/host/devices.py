"""Indices of network devices, in the network namespace of the calling thread."""

import errno
import fcntl
import socket
import struct

_SIOCGIFINDEX = 0x8933
"""From the kernel's include/uapi/linux/sockios.h."""

_IFREQ = struct.Struct("=16si20x")
"""struct ifreq: the name of a device, and its index."""

_NAME_MAX = 15


def device_index(name: str) -> int | None:
    """Return the index of a device by its name or alternative name, or None if there is none.

    `socket.if_nametoindex` opens a descriptor, too, but reports its lack as ENODEV: a process that
    runs out of descriptors would take all its devices for removed.

    Raises:
        OSError: the query failed, since descriptors have run out.
    """
    if not 0 < len(name.encode()) <= _NAME_MAX:  # Without the expense of a socket.
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        return index_by(sock.fileno(), name)


def index_by(sock: int, name: str) -> int | None:
    """Return the index of a device in the network namespace of a socket, which may be another one.

    Returns: None if there is none. Raises: OSError if the socket is closed.
    """
    octets = name.encode()
    if not 0 < len(octets) <= _NAME_MAX:
        return None
    try:
        # Any kind of socket passes on a request about devices (sock_do_ioctl() in the kernel's
        # net/socket.c).
        reply = fcntl.ioctl(sock, _SIOCGIFINDEX, _IFREQ.pack(octets, 0))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    index: int = _IFREQ.unpack(reply)[1]
    return index


def need_device_index(name: str) -> int:
    """Return the index of a device. Raises: OSError with ENODEV if there is none."""
    index = device_index(name)
    if index is None:
        raise OSError(errno.ENODEV, f"there is no network device {name}")
    return index
