"""Network devices by name, as the kernel knows them in the calling thread's network namespace."""

import errno
import fcntl
import socket
import struct

_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("=16si20x")
"""struct ifreq: the name of a device, and its index."""

_NAME_MAX = 15


def device_index(name: str) -> int | None:
    """Return the index of a device, given its name or an alternative one; None if there is none.

    Raises OSError where the kernel could not be asked, since descriptors have run out.
    `socket.if_nametoindex` says the same then as of a device that there is not.
    """
    octets = name.encode()
    if not 0 < len(octets) <= _NAME_MAX:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFINDEX, _IFREQ.pack(octets, 0))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
    index: int = _IFREQ.unpack(answer)[1]
    return index


def need_device_index(name: str) -> int:
    """Return the index of a device; raises OSError with ENODEV if there is none."""
    index = device_index(name)
    if index is None:
        raise OSError(errno.ENODEV, f"there is no network device {name}")
    return index
