"""A second receiving socket, for datagrams that are not to cost the first one anything.

Both are bound to one port, as a group of SO_REUSEPORT, and a classic BPF program (see `ingress`)
selects one of the two for each datagram. So the kernel itself keeps datagrams from unknown sources
out of the first socket's queue, and the second one can be read as rarely as one likes.
"""

import ctypes
import errno
import socket
import struct
from contextlib import suppress

from attrs import frozen

from vtep.forwarding.ingress_filter import INSTRUCTIONS_MAX, IngressFilter
from vtep.io import error_queue
from vtep.io.sockets import (
    Binding,
    Received,
    configure_receiver,
    device_name,
    gro_enabled,
    receive_queue_drops,
)
from vtep.wire import ecn

# From the kernel's asm-generic/socket.h, and include/uapi/linux/{in,in6,filter}.h.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_SO_ATTACH_REUSEPORT_CBPF = 51
_SOL_UDP = 17
_UDP_NO_CHECK6_RX = 102
_IP_PKTINFO = 8
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_IPV6_RECVPKTINFO = 49
_IPV6_PKTINFO = 50
_INSTRUCTION_LEN = 8

_INT = struct.Struct("=i")
_PKTINFO_V4 = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface, the local address to answer from, the destination address."""

_PKTINFO_V6 = struct.Struct("=16si")

_SPACE = 2 * socket.CMSG_SPACE(4) + socket.CMSG_SPACE(_PKTINFO_V6.size)

_BUFFER = 1 << 16
"""Octets asked for: some hundred small datagrams, and few superframes."""

_FIRST, _SECOND = 0, 1
_PASS, _DISCARD = 0xFFFF_FFFF, 0

_BROADCAST_SOURCES = 64
"""Prefixes in the filter for broadcasts, which is charged to the socket's option memory."""


@frozen
class Arrival:
    """A datagram, or several of one sender, as `receive` has them; and how it arrived."""

    received: Received
    device: int
    """Index of the device that it arrived by."""
    copied: bool
    """Whether the first socket has got it as well."""


class IngressGuard:
    """The second socket beside a receiver, and the programs that choose between the two.

    The receiver is the first socket of the group: its port is bound without SO_REUSEPORT, so that
    a second VTEP cannot share it. Raises OSError where the kernel has no such thing.
    """

    def __init__(self, receiver: socket.socket, binding: Binding) -> None:
        self._receiver = receiver
        # The kernel delivers a broadcast to both, whatever the program says.
        self._gets_broadcasts = binding.family == socket.AF_INET and binding.local is None
        self._broadcasts: IngressFilter | None = None
        port = receiver.getsockname()[1]
        # Only now, so that the port was free when it was bound.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            # A multicast group's socket has the port too, and can be shared so only.
            self.socket = binding.open(port, shared=True, grouped=True)
        except OSError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
            raise
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            v6 = binding.family == socket.AF_INET6
            zero = v6 and receiver.getsockopt(_SOL_UDP, _UDP_NO_CHECK6_RX) != 0
            # The kernel decides about GRO before the program is run, so both have it or none.
            configure_receiver(self.socket, _BUFFER, gro=gro_enabled(receiver), zero_checksums=zero)
            # Where the receiver also sends, ICMP errors about that come to either of the two: no
            # datagram is at hand then on which the program could be run, and a hash decides.
            if v6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVPKTINFO, 1)
                self.socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                self.socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                self.socket.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        except OSError:
            self.close()
            raise

    def apply(self, wanted: IngressFilter) -> None:
        """Have the second socket get all that the filter does not accept.

        Where the kernel takes no program for so many sources, it gets less than that. Raises
        OSError where it takes none at all.
        """
        self._filter_broadcasts(wanted.coarsened(_BROADCAST_SOURCES))
        while not self._select(wanted):
            if len(wanted.sources) <= 1:
                raise OSError(errno.ENOMEM, "the program is too long")
            wanted = wanted.coarsened(len(wanted.sources) * 2 // 3)

    def _select(self, wanted: IngressFilter) -> bool:
        """Have the kernel select sockets by a filter; return whether it could."""
        program = wanted.program(_FIRST, _SECOND)
        if len(program) > INSTRUCTIONS_MAX * _INSTRUCTION_LEN:
            return False
        try:
            _attach(self._receiver, _SO_ATTACH_REUSEPORT_CBPF, program)
        except OSError as error:  # net.core.optmem_max may be lower than the longest program.
            if error.errno != errno.ENOMEM:
                raise
            return False
        return True

    def _filter_broadcasts(self, wanted: IngressFilter) -> None:
        if not self._gets_broadcasts or wanted == self._broadcasts:
            return
        attach_filter(self._receiver, wanted)
        self._broadcasts = wanted

    def receive(self, buffer: memoryview) -> Arrival:
        """Receive from the second socket. Raises OSError."""
        octets, ancillary, _, source = self.socket.recvmsg_into((buffer,), _SPACE)
        stride = octets
        mark = device = 0
        broadcast = False
        for level, kind, data in ancillary:
            if level == _SOL_UDP:
                (stride,) = _INT.unpack(data)
            elif (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                device, local, destination = _PKTINFO_V4.unpack(data)
                broadcast = local != destination
            elif (level, kind) == (socket.IPPROTO_IPV6, _IPV6_PKTINFO):
                _, device = _PKTINFO_V6.unpack(data)
            elif (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS):
                mark = data[0] & ecn.MASK
            else:
                mark = _INT.unpack(data)[0] & ecn.MASK
        host = source[0]
        if len(source) > 2 and source[3]:
            host = f"{host}%{device_name(source[3])}"
        copied = broadcast and (self._broadcasts is None or self._broadcasts.accepts(host, device))
        return Arrival((octets, stride, host, source[1], mark), device, copied)

    def returned(self) -> list[error_queue.Returned]:
        """Return the datagrams of the receiver that came back as ICMP errors to the second socket.

        To be called after every error of the socket: what waits keeps it ready.
        """
        return error_queue.returned(self.socket)

    def drops(self) -> int:
        """Return how many datagrams the kernel discarded since the second socket was full."""
        return receive_queue_drops(self.socket)

    def close(self) -> None:
        """Close the second socket; the first one gets everything again, if that is open."""
        self.socket.close()
        with suppress(OSError):
            detach_filter(self._receiver)
        with suppress(OSError):
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def attach_filter(sock: socket.socket, wanted: IngressFilter) -> None:
    """Have the kernel discard what a filter does not accept in front of a socket; raises OSError.

    It counts that with what it discards for other reasons (`receive_queue_drops`).
    """
    if wanted.accepts_all:
        detach_filter(sock)
    else:
        _attach(sock, _SO_ATTACH_FILTER, wanted.program(_PASS, _DISCARD))


def detach_filter(sock: socket.socket) -> None:
    """Have the kernel discard nothing in front of a socket any more; raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except OSError as error:
        if error.errno != errno.ENOENT:  # There was none.
            raise


def _attach(sock: socket.socket, option: int, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog
    fprog = struct.pack("@HP", len(program) // _INSTRUCTION_LEN, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, option, fprog)
