"""A private TAP whose eBPF program redirects tunnel-GSO packets to the egress device.

A UDP socket does not accept a superframe inside a tunnel; a TAP device does (see `.encoder`). What
is written to a TAP device would be received by this host. So a program of eight instructions at
its ingress redirects each packet to the egress device whose index is in the source MAC. The kernel
looks up the route and the neighbour there (bpf_redirect_neigh(), net/core/filter.c, Linux 5.10).

Redirected packets pass the queueing discipline of the egress device, but not the output path of
the IP layer (ip_output() in net/ipv4/ip_output.c). Two consequences concern users:

- Netfilter does not see them: hooks OUTPUT and POSTROUTING are on that path.
- IPsec is not applied: xfrm_output() is called from there. Packets that a policy encrypts would be
  sent in clear text. So tunnel GSO is not used at all on hosts with IPsec policies for outgoing
  packets (see `egress_device` in `vtep.host.routes`).
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

from vtep.host import ingress_program, links
from vtep.host.netlink import IPRoute
from vtep.io.tap import (
    IFREQ_LEN,
    OFFLOAD_TCP,
    SIOCGIFHWADDR,
    TAP_FLAGS,
    TUNSETOFFLOAD,
    TUNSETVNETHDRSZ,
)
from vtep.tunnel_gso.encoder import SMALL_PROBE, VIRTIO_LEN, OuterHeader, OuterHeaderWriter
from vtep.wire import ethernet

_NAME = "pyvtep%d"
"""The kernel replaces %d by the first number that is free."""

# From the kernel's include/uapi/linux/if_tun.h and bpf.h.
_TUNSETSNDBUF = 0x400454D4
_TUN_F_UDP_TUNNEL = 0x80 | 0x100  # TUN_F_UDP_TUNNEL_GSO | TUN_F_UDP_TUNNEL_GSO_CSUM
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_FUNC_REDIRECT_NEIGH = 152
_SYS_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
"""The number of the system call bpf(2), which has no wrapper in libc."""

_SEND_BUFFER = 1 << 22
"""Octets that may wait in the queue of an egress device. Superframes beyond that are segmented by
pyvtep, and sent by sockets, whose send buffers apply backpressure."""

_EGRESS_AT = 6
"""Offset of the index of the egress device: the first four octets of the source MAC."""

_TEST_PORT = 9
"""Source port of the self-test: discard."""

_TEST_TIMEOUT_S = 0.2


def _instruction(code: int, destination: int = 0, source: int = 0, immediate: int = 0) -> bytes:
    """Encode one eBPF instruction (RFC 9669, section 3)."""
    return struct.pack("=BBhi", code, destination | source << 4, 0, immediate)


_PROGRAM = b"".join(
    (
        _instruction(0xBF, 6, 1),  # r6 = r1, the context: where a packet load expects it
        _instruction(0x20, immediate=_EGRESS_AT),  # r0 = four octets of the packet, in host order
        _instruction(0xBF, 1, 0),  # r1 = r0, the egress device
        _instruction(0xB7, 2),  # r2 = 0, no parameters: look up the neighbour
        _instruction(0xB7, 3),  # r3 = 0, their length
        _instruction(0xB7, 4),  # r4 = 0, no flags
        _instruction(0x85, immediate=_BPF_FUNC_REDIRECT_NEIGH),  # r0 = bpf_redirect_neigh(...)
        _instruction(0x95),  # return r0
    )
)


class TunnelGsoDevice:
    """The TAP device to which superframes with tunnel GSO are written.

    The constructor raises OSError where this host does not support it, or not for this user;
    `error.strerror` is the reason. It waits for the kernel: call it in a thread.
    """

    removed_on_close = True
    """As `Tap.removed_on_close`."""

    def __init__(self, connection: IPRoute) -> None:
        self._tap = pytun.TunTapDevice(name=_NAME, flags=TAP_FLAGS)
        self.fd: int = self._tap.fileno()
        try:
            os.set_inheritable(self.fd, False)
            os.set_blocking(self.fd, False)
            fcntl.ioctl(self.fd, TUNSETVNETHDRSZ, struct.pack("i", VIRTIO_LEN))
            fcntl.ioctl(self.fd, _TUNSETSNDBUF, struct.pack("i", _SEND_BUFFER))
            _enable_tunnel_offloads(self.fd)
            program = _load_program()
            try:
                ingress_program.attach(connection, self._tap.name, program)
            finally:
                os.close(program)
            self.mac: bytes = fcntl.ioctl(self.fd, SIOCGIFHWADDR, bytes(IFREQ_LEN))[18:24]
            if links.is_up(connection, "lo"):
                self._test()
        except OSError:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The name of the device."""
        return str(self._tap.name)

    @property
    def exists(self) -> bool:
        """True if the device still exists; an administrator can remove it."""
        try:
            fcntl.ioctl(self.fd, SIOCGIFHWADDR, bytes(IFREQ_LEN))
        except OSError:
            return False
        return True

    def write(self, headers: bytearray, prefix: bytes, frame: bytes | memoryview) -> None:
        """Send a superframe behind its headers. Raises: OSError; then it was not sent."""
        os.writev(self.fd, (headers, prefix, frame))

    def close(self) -> None:
        """Remove the device, for which the kernel takes 20 ms."""
        self._tap.close()

    def _test(self) -> None:
        """Send a superframe to this host over the loopback device.

        Several parts of the kernel have to work together here, and not all of them can be queried.
        Raises: OSError if the superframe does not arrive.
        """
        localhost = IPv4Address("127.0.0.1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.settimeout(_TEST_TIMEOUT_S)
            receiver.bind((str(localhost), 0))
            _, port = receiver.getsockname()
            egress = socket.if_nametoindex("lo")
            header = OuterHeader(
                *(self.mac, egress, localhost, localhost, _TEST_PORT, port, 0, 1, 0),
                df=False,
                checksum=True,
            )
            prefix = os.urandom(ethernet.HEADER_LEN)
            frame, plan, gso = SMALL_PROBE
            headers = OuterHeaderWriter(header).write(plan, len(prefix), len(frame), gso)
            if headers is not None:
                self.write(headers, prefix, frame)
            # Either the whole superframe arrives, or its first segment.
            with suppress(TimeoutError):
                if receiver.recv(1 << 16).startswith(prefix):
                    return
        raise OSError(errno.EOPNOTSUPP, "a test packet over the loopback device did not arrive")


def _enable_tunnel_offloads(fd: int) -> None:
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOAD_TCP | _TUN_F_UDP_TUNNEL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise OSError(errno.EOPNOTSUPP, "it needs Linux 6.17 or newer") from error


def _load_program() -> int:
    """Load the eBPF program. Returns: its descriptor. Raises: OSError."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"it is not supported on {platform.machine()}")
    program = ctypes.create_string_buffer(_PROGRAM, len(_PROGRAM))
    license_name = ctypes.create_string_buffer(b"Apache-2.0")
    # The first members of union bpf_attr: program type, number of instructions, and the addresses
    # of the instructions and of the license.
    attributes = struct.pack(
        *("=IIQQ", _BPF_PROG_TYPE_SCHED_CLS, len(_PROGRAM) // 8),
        *(ctypes.addressof(program), ctypes.addressof(license_name)),
    )
    # A separate handle of libc, so that other users of ctypes do not overwrite errno.
    system_call = ctypes.CDLL(None, use_errno=True).syscall
    system_call.restype = ctypes.c_long
    fd: int = system_call(number, _BPF_PROG_LOAD, attributes, len(attributes))
    if fd < 0:
        number = ctypes.get_errno()
        reason = "it needs root, or CAP_BPF" if number == errno.EPERM else os.strerror(number)
        raise OSError(number, reason)
    return fd
