"""The program of the child that enters a network namespace, and opens there what pyvtep needs.

A process of its own, since setns(2) into a user namespace is refused to a process with several
threads (userns_install() in the kernel's kernel/user_namespace.c), as pyvtep has them. It is run by
its path, with the standard library only: so it starts within some 20 ms. See `namespace`.

Its arguments are the descriptors of a Unix socket to report on, of the network namespace and of the
user namespace that owns it (-1 if that is not known), and the name of a TAP to open, or nothing.
"""

import ctypes
import fcntl
import os
import socket
import struct
import sys

# From the kernel's include/uapi/linux/sched.h, netlink.h and if_tun.h.
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_SOL_NETLINK = 270
_NETLINK_NO_ENOBUFS = 5
_GROUPS = 0x1 | 0x10 | 0x100
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR."""

_IFF_TAP_NO_PI_VNET_HDR = 0x0002 | 0x1000 | 0x4000

NET, USER, SOCKETS, DEVICE, TAP = "net", "user", "sockets", "device", "tap"
"""The steps, each named in the report of its failure."""


class StepError(Exception):
    """A step failed: its name, and the number of the error."""

    def __init__(self, step: str, error: OSError) -> None:
        super().__init__(step, error.errno)
        self.report = f"{step} {error.errno}"


def set_namespace(namespace: int, kind: int) -> None:
    """Move this process into a namespace. Raises: OSError."""
    # os.setns() is new in Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, kind):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def enter(net: int, user: int) -> None:
    """Move this process into a network namespace. Raises: StepError."""
    # Without the user namespace first: then root keeps its access to a /dev/net/tun of mode 0600.
    try:
        set_namespace(net, CLONE_NEWNET)
    except PermissionError as error:
        if user < 0:
            raise StepError(NET, error) from error
    except OSError as error:
        raise StepError(NET, error) from error
    else:
        return
    # An owner of the user namespace gets all capabilities in it, and so over its network.
    try:
        set_namespace(user, CLONE_NEWUSER)
    except OSError as error:
        raise StepError(USER, error) from error
    try:
        set_namespace(net, CLONE_NEWNET)
    except OSError as error:
        raise StepError(NET, error) from error


def open_descriptors(tap: str) -> list[int]:
    """Open what `NamespaceDescriptors` has and, if it has a name, a TAP. Raises: StepError."""
    try:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        route, events = (socket.socket(socket.AF_NETLINK, kind) for _ in range(2))
        events.setblocking(False)
        events.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        # Here, since a process that gets the socket from another one may not bind it once more
        # (netlink_bind() in net/netlink/af_netlink.c). One that is not bound gets no notifications.
        events.bind((0, _GROUPS))
        found = [route.detach(), events.detach()]
        # It shows the namespace in which it was opened, whoever reads it later.
        found.append(os.open("/proc/self/net/dev", os.O_RDONLY))
    except OSError as error:
        raise StepError(SOCKETS, error) from error
    if tap:
        try:
            device = os.open("/dev/net/tun", os.O_RDWR)
        except OSError as error:
            raise StepError(DEVICE, error) from error
        try:
            # A TAP is made in the namespace in which the device was opened (tun_chr_open()).
            request = struct.pack("16sH22x", tap.encode(), _IFF_TAP_NO_PI_VNET_HDR)
            fcntl.ioctl(device, _TUNSETIFF, request)
        except OSError as error:
            raise StepError(TAP, error) from error
        found.append(device)
    return found


def main() -> None:
    """Enter the namespace, and send the descriptors or the reason why there are none."""
    report, net, user, tap = sys.argv[1:]
    with socket.socket(fileno=int(report)) as channel:
        try:
            enter(int(net), int(user))
            socket.send_fds(channel, [b"ok"], open_descriptors(tap))
        except StepError as error:
            channel.send(error.report.encode())


if __name__ == "__main__":
    main()
