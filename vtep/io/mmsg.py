"""The system calls that take an array of messages, which the standard library does not have.

Sources: struct mmsghdr, msghdr and cmsghdr of <sys/socket.h>, struct iovec of <sys/uio.h>.
"""

import ctypes
from typing import Final

import numpy as np

MSGHDR: Final = np.dtype(
    [
        ("name", np.uintp),
        ("namelen", np.uint32),
        ("iov", np.uintp),
        ("iovlen", np.uintp),
        ("control", np.uintp),
        ("controllen", np.uintp),
        ("flags", np.int32),
    ],
    align=True,
)
"""struct msghdr."""

MMSGHDR: Final = np.dtype([("header", MSGHDR), ("len", np.uint32)], align=True)
"""struct mmsghdr: a message, and how many octets of it were sent or received."""

IOVEC: Final = np.dtype([("base", np.uintp), ("len", np.uintp)])

SOCKADDR_MAX: Final = 28
"""Octets of a struct sockaddr_in6, which is larger than a struct sockaddr_in."""

_libc = ctypes.CDLL(None, use_errno=True)

sendmmsg: Final = _libc.sendmmsg
"""int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags)"""
sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)

recvmmsg: Final = _libc.recvmmsg
"""As `sendmmsg`, with a struct timespec * behind, which is not used here."""
recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
