"""A door of our own into the kernel's way out, for superframes that leave whole.

A UDP socket takes no superframe inside a tunnel; a TAP device does (see `.encoder`). So there is
one that nobody else uses. What we write to it would arrive at this host; instead, a program of
eight instructions at its ingress has the kernel send it on, over the device that the frame names,
to the neighbour that the routing table names (`bpf_redirect_neigh`, Linux 5.10).
"""

import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address

import pytun
from pyroute2 import IPRoute

from vtep import netlink
from vtep.tap import (
    IFREQ_LEN,
    OFFLOAD_TCP,
    SIOCGIFHWADDR,
    TAP_FLAGS,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
)
from vtep.tunnel_gso import encoder as whole
from vtep.wire import ethernet

_NAME = "pyvtep%d"
"""The kernel puts the first number there that is free."""

# From the kernel's include/uapi/linux/if_tun.h and bpf.h.
_TUNSETSNDBUF = 0x400454D4
_TUN_F_UDP_TUNNEL = 0x80 | 0x100
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_REDIRECT_NEIGH = 152
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

_SEND_BUFFER = 1 << 22
"""Octets that may wait in a card's queue; a superframe that finds no room is cut here."""

_DEVICE_AT = 6
"""Where the number of the device is that a frame is to leave by: in its source MAC."""

_TEST_PORT = 9
"""Discard: where the frame that tests the way comes from."""

_TEST_SECONDS = 0.2


def _instruction(code: int, destination: int = 0, source: int = 0, immediate: int = 0) -> bytes:
    """One instruction of BPF (RFC 9669, section 3)."""
    return struct.pack("=BBhi", code, destination | source << 4, 0, immediate)


_PROGRAM = b"".join(
    (
        _instruction(0xBF, 6, 1),  # The load wants what the program was given in register 6.
        _instruction(0x20, immediate=_DEVICE_AT),  # r0 = four octets, in network order
        _instruction(0xBF, 1, 0),
        _instruction(0xB7, 2),
        _instruction(0xB7, 3),
        _instruction(0xB7, 4),
        _instruction(0x85, immediate=_BPF_REDIRECT_NEIGH),
        _instruction(0x95),
    )
)


class Injector:
    """Where superframes leave whole. Raises OSError where this host has no such thing, or not for
    us; `error.strerror` says what it is.

    To be made in a thread, as everything that talks to the kernel about its network.
    """

    goes = True
    """As `Tap.goes` has it."""

    def __init__(self, connection: IPRoute) -> None:
        self._tap = pytun.TunTapDevice(name=_NAME, flags=TAP_FLAGS)
        self.fd: int = self._tap.fileno()
        try:
            os.set_inheritable(self.fd, False)
            os.set_blocking(self.fd, False)
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", whole.VIRTIO_LEN))
            fcntl.ioctl(self.fd, _TUNSETSNDBUF, struct.pack("i", _SEND_BUFFER))
            _ask_for_tunnels(self.fd)
            program = _load()
            try:
                netlink.divert(connection, self._tap.name, program)
            finally:
                os.close(program)
            self.mac: bytes = fcntl.ioctl(self.fd, SIOCGIFHWADDR, bytes(IFREQ_LEN))[18:24]
            if netlink.is_up(connection, "lo"):
                self._test()
        except OSError:
            self.close()
            raise

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._tap.name)

    @property
    def is_there(self) -> bool:
        """Whether nobody has removed the device."""
        try:
            fcntl.ioctl(self.fd, SIOCGIFHWADDR, bytes(IFREQ_LEN))
        except OSError:
            return False
        return True

    def write(self, head: bytearray, prefix: bytes, frame: bytes | memoryview) -> None:
        """Have a superframe leave; raises OSError, and it has not left then."""
        os.writev(self.fd, (head, prefix, frame))

    def close(self) -> None:
        """Remove the device, for which the kernel takes 20 ms."""
        self._tap.close()

    def _test(self) -> None:
        """Send something to ourselves over the loopback device; raises OSError if it gets lost."""
        here = IPv4Address("127.0.0.1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.settimeout(_TEST_SECONDS)
            receiver.bind((str(here), 0))
            _, port = receiver.getsockname()
            device = socket.if_nametoindex("lo")
            outside = whole.Outside(
                *(self.mac, device, here, here, _TEST_PORT, port, 0, 1, 0),
                df=False,
                checksum=True,
            )
            prefix = os.urandom(ethernet.HEADER_LEN)
            frame, cut, gso = whole.SMALL
            head = whole.Heads(outside).write(cut, len(prefix), len(frame), gso)
            if head is not None:
                self.write(head, prefix, frame)
            # Whole, or the first segment of it.
            with suppress(TimeoutError):
                if receiver.recv(1 << 16).startswith(prefix):
                    return
        raise OSError(errno.EOPNOTSUPP, "what leaves so does not arrive")


def _ask_for_tunnels(fd: int) -> None:
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOAD_TCP | _TUN_F_UDP_TUNNEL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EOPNOTSUPP, "it needs Linux 6.17 or newer") from error


def _load() -> int:
    """Load the program; its descriptor. Raises OSError."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"nobody has tried it on {platform.machine()}")
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    terms = ctypes.create_string_buffer(b"Apache-2.0")
    # The beginning of union bpf_attr: type, number of instructions, where they and the license are.
    attributes = struct.pack(
        *("=IIQQ", _BPF_PROG_TYPE_SCHED_CLS, len(_PROGRAM) // 8),
        *(ctypes.addressof(program), ctypes.addressof(terms)),
    )
    # A ctypes function of our own, since its errno has to be kept from others' calls.
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    system_call.restype = ctypes.c_long
    fd: int = system_call(number, _BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        number = ctypes.get_errno()
        reason = "it needs root, or CAP_BPF" if number == errno.EPERM else os.strerror(number)
        raise OSError(number, reason)
    return fd
