"""A second socket on a receiver's port, for datagrams that no segment accepts.

Both are bound to one port, as a group of SO_REUSEPORT, and a classic BPF program (see
`vtep.forwarding.ingress_filter`) selects one of the two for each datagram. So the kernel keeps
datagrams from unknown sources out of the receiver's queue, and the second socket is read within a
budget.
"""

import errno
import socket
import struct
from contextlib import suppress

from attrs import frozen

from vtep.forwarding.ingress_filter import INSTRUCTIONS_MAX, IngressFilter
from vtep.io import error_queue
from vtep.io import socket_constants as const
from vtep.io.addresses import device_name
from vtep.io.binding import Binding
from vtep.io.interfaces import Received
from vtep.io.receiver import configure_receiver, gro_enabled, receive_queue_drops
from vtep.io.socket_filter import INSTRUCTION_LEN, attach_filter, attach_program, detach_filter
from vtep.wire import ecn

_INT = struct.Struct("=i")
_PKTINFO_V4 = struct.Struct("=i4s4s")
"""struct in_pktinfo: interface, the local address to answer from, the destination address."""

_PKTINFO_V6 = struct.Struct("=16si")

_CONTROL_SPACE = 2 * socket.CMSG_SPACE(4) + socket.CMSG_SPACE(_PKTINFO_V6.size)

_RECEIVE_BUFFER = 1 << 16
"""Octets: some hundred small datagrams, and few superframes."""

_RECEIVER, _GUARD = 0, 1
"""Indices of the two sockets in their group, in the order in which they were bound."""

_BROADCAST_SOURCES = 64
"""Prefixes in the filter for broadcasts, which is charged to the socket's option memory
(net.core.optmem_max)."""


@frozen
class GuardedDatagram:
    """A datagram, or several of one sender, that the guard socket received."""

    received: Received
    device: int
    """The index of the device that it arrived on."""
    copied: bool
    """True if the receiver got a copy, as of a broadcast."""


class IngressGuard:
    """The second socket of a receiver's port, and the programs that select one of the two.

    It owns that socket, which may be an inherited one (its descriptor); the receiver's socket stays
    the caller's. The receiver is bound without
    SO_REUSEPORT, so that no second VTEP can share its port. The constructor raises OSError if the
    kernel does not support this.
    """

    def __init__(
        self, receiver: socket.socket, binding: Binding, inherited: int | None = None
    ) -> None:
        self._receiver = receiver
        # The kernel delivers a broadcast to all sockets of a port, whatever the program selects.
        self._gets_broadcasts = binding.family == socket.AF_INET and binding.local is None
        self._broadcasts: IngressFilter | None = None
        if inherited is not None:
            # Already a member of the group, beside the receiver, which was inherited with it.
            self.socket = socket.socket(fileno=inherited)
            return
        port = receiver.getsockname()[1]
        # Not before the bind, which so has proven that the port was free.
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            # The sockets of multicast groups have the port too, and allow only SO_REUSEADDR.
            self.socket = binding.open(port, shared=True, grouped=True)
        except OSError:
            receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
            raise
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            v6 = binding.family == socket.AF_INET6
            zero = v6 and receiver.getsockopt(const.SOL_UDP, const.UDP_NO_CHECK6_RX) != 0
            # The kernel decides about GRO before it runs the program, so both have it or none.
            gro = gro_enabled(receiver)
            configure_receiver(self.socket, _RECEIVE_BUFFER, gro=gro, zero_checksums=zero)
            # If the receiver also sends, ICMP errors about its datagrams reach either of the two:
            # without a datagram to run the program on, the kernel selects by a hash.
            if v6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, const.IPV6_RECVPKTINFO, 1)
                self.socket.setsockopt(socket.IPPROTO_IPV6, const.IPV6_RECVERR, 1)
            else:
                self.socket.setsockopt(socket.IPPROTO_IP, const.IP_PKTINFO, 1)
                self.socket.setsockopt(socket.IPPROTO_IP, const.IP_RECVERR, 1)
        except OSError:
            self.close()
            raise

    def apply(self, wanted: IngressFilter) -> None:
        """Direct to the second socket the datagrams that a filter does not accept.

        If the kernel refuses a program for so many sources, the filter is made coarser, and accepts
        more. Raises: OSError if the kernel refuses any program.
        """
        self._filter_broadcasts(wanted.coarsened(_BROADCAST_SOURCES))
        while not self._select(wanted):
            if len(wanted.sources) <= 1:
                raise OSError(errno.ENOMEM, "the program is too long")
            wanted = wanted.coarsened(len(wanted.sources) * 2 // 3)

    def _select(self, wanted: IngressFilter) -> bool:
        """Attach the program that selects sockets by a filter.

        Returns: False if it is too long for the kernel.
        """
        program = wanted.program(_RECEIVER, _GUARD)
        if len(program) > INSTRUCTIONS_MAX * INSTRUCTION_LEN:
            return False
        try:
            attach_program(self._receiver, const.SO_ATTACH_REUSEPORT_CBPF, program)
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

    def receive(self, buffer: memoryview) -> GuardedDatagram:
        """Receive from the second socket. Raises: OSError."""
        octets, control, _, source = self.socket.recvmsg_into((buffer,), _CONTROL_SPACE)
        stride = octets
        ecn_field = device = 0
        broadcast = False
        for level, kind, data in control:
            if level == const.SOL_UDP:
                (stride,) = _INT.unpack(data)
            elif (level, kind) == (socket.IPPROTO_IP, const.IP_PKTINFO):
                device, local, destination = _PKTINFO_V4.unpack(data)
                broadcast = local != destination
            elif (level, kind) == (socket.IPPROTO_IPV6, const.IPV6_PKTINFO):
                _, device = _PKTINFO_V6.unpack(data)
            elif (level, kind) == (socket.IPPROTO_IP, socket.IP_TOS):
                ecn_field = data[0] & ecn.MASK
            else:
                ecn_field = _INT.unpack(data)[0] & ecn.MASK
        host = source[0]
        if len(source) > 2 and source[3]:
            host = f"{host}%{device_name(source[3])}"
        copied = broadcast and (self._broadcasts is None or self._broadcasts.accepts(host, device))
        return GuardedDatagram((octets, stride, host, source[1], ecn_field), device, copied)

    def returned_datagrams(self) -> list[error_queue.ReturnedDatagram]:
        """Return the receiver's datagrams that ICMP errors to the second socket report as lost.

        To be called after each error of the socket, which is ready while its error queue is not
        empty.
        """
        return error_queue.returned_datagrams(self.socket)

    def queue_drops(self) -> int:
        """Return how many datagrams the kernel discarded in front of the second socket.

        Raises: OSError.
        """
        return receive_queue_drops(self.socket)

    def release(self) -> None:
        """Close the second socket, and leave the programs in place, for a process that has it."""
        self.socket.close()

    def close(self) -> None:
        """Close the second socket. The receiver gets all datagrams again, if it is open."""
        self.socket.close()
        with suppress(OSError):
            detach_filter(self._receiver)
        with suppress(OSError):
            self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
