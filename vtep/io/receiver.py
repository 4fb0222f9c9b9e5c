"""Receive the datagrams of a UDP port, or of a multicast group on it."""

import errno
import fcntl
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from vtep import descriptors
from vtep.errors import NotReadyError, VtepError
from vtep.forwarding.ingress_filter import IngressFilter
from vtep.host.devices import need_device_index
from vtep.io import socket_constants as const
from vtep.io.addresses import sockaddr
from vtep.io.binding import Binding
from vtep.io.interfaces import Received, ReceivedRun, Receiver
from vtep.io.slots import Slots, with_scope
from vtep.io.socket_filter import attach_filter, detach_filter
from vtep.io.socket_options import set_receive_buffer
from vtep.wire import ecn
from vtep.wire.address import Address

_RECEIVE_BUFFER = 4 << 20
"""Octets of the receive buffer: what arrives in some milliseconds at the best rate that this
process can forward."""

_NOT_READY = frozenset((errno.EADDRNOTAVAIL, errno.ENODEV))
"""Errors of `bind` for an own address or a device that is absent, and may appear later."""

_INT = struct.Struct("=i")
_TIMESPEC = struct.Struct("@ll")
_SIOCGSTAMPNS = 0x8907
"""Get the time at which the datagram that was received last had arrived: a struct timespec."""

_WAITED_MAX_NS = 10_000_000_000
"""More than the receive buffer holds at any rate that matters: so the clock was set."""

_MEMBERSHIP_V4 = struct.Struct("=4s4si")
"""struct ip_mreqn: the group, an own address, the index of a device."""

_MEMBERSHIP_V6 = struct.Struct("=16si")
"""struct ipv6_mreq: the group, the index of a device."""

_CONTROL_SPACE = 2 * socket.CMSG_SPACE(_INT.size)
"""Space for the control messages: the segment size of UDP_GRO, and the TOS or traffic class."""

_ECN_MASK = ecn.MASK
_LOW_OCTET = 0 if sys.byteorder == "little" else -1
"""Index of the low octet of the TOS, which is one octet, or of the traffic class, an int."""


class UdpReceiver:
    """A UDP socket to which the remotes of one address family send.

    It owns the socket. Closing it leaves the multicast group, if it has joined one.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # Saves an attribute lookup of the socket for each receive.
        self._recvmsg_into = sock.recvmsg_into

    @classmethod
    def open(
        cls,
        binding: Binding,
        port: int,
        *,
        gro: bool,
        zero_checksums: bool = True,
        beside: Iterable[Receiver] = (),
    ) -> Self:
        """Open a receiver on a UDP port.

        Args:
            binding: family, own address and device.
            port: the UDP port.
            gro: whether the kernel is to join datagrams of one sender, if it can (UDP_GRO).
            zero_checksums: whether to accept datagrams without a checksum over IPv6. RFC 7348,
                section 5, requires it; RFC 6935 allows it to tunnels.
            beside: receivers that may have the same port, as while this one takes over.

        Raises: NotReadyError if the own address or the device is absent; otherwise VtepError, with
        what to do, if the port is not available.
        """
        try:
            with _port_shared_by(beside) as others:
                sock = binding.open(port, shared=bool(others))
                # Shared for the bind only: no other process is to take the port as well.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError as error:
            raise _explain(error, binding, port) from error
        configure_receiver(sock, _RECEIVE_BUFFER, gro=gro, zero_checksums=zero_checksums)
        return cls(sock)

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Own the descriptor of a receiver, or of a group's, that another process has set up.

        Its options stay as they are: that process may still receive from it. Raises: OSError.
        """
        return cls(socket.socket(fileno=fd))

    @property
    def address(self) -> tuple[str, int]:
        """The address and the port that the socket is bound to."""
        host, port, *_ = self.sock.getsockname()
        return host, port

    @property
    def gro_enabled(self) -> bool:
        """True if the kernel joins datagrams of one sender for this socket (UDP_GRO)."""
        return gro_enabled(self.sock)

    def fileno(self) -> int:
        """Return the descriptor of the socket; -1 if it is closed."""
        return self.sock.fileno()

    def waited(self) -> float:
        """Return how long the datagram that was received last has waited, in seconds.

        The first call makes the kernel note the time at which each datagram arrives, and returns
        0.0. Raises: OSError.
        """
        # The stamp is kept for this ioctl, without a control message for each datagram. A datagram
        # that GRO has joined with others has the time of the first of them.
        stamp = fcntl.ioctl(self.sock.fileno(), _SIOCGSTAMPNS, bytes(_TIMESPEC.size))
        seconds, nanoseconds = _TIMESPEC.unpack(stamp)
        waited = time.time_ns() - seconds * 1_000_000_000 - nanoseconds
        # The stamp is of the clock of the host, which may be set meanwhile.
        return waited / 1e9 if 0 < waited < _WAITED_MAX_NS else 0.0

    def receive(self, buffer: memoryview) -> Received:
        """Receive one datagram, or several of one sender that the kernel has joined.

        Returns and raises: as in `Receiver.receive`.
        """
        octets, control, _, source = self._recvmsg_into((buffer,), _CONTROL_SPACE)
        stride = octets
        ecn_field = 0
        for level, _, data in control:
            if level == const.SOL_UDP:
                (stride,) = _INT.unpack(data)
            else:
                ecn_field = data[_LOW_OCTET] & _ECN_MASK
        # Only a link-local source has a scope id.
        if len(source) > 2 and source[3]:
            return octets, stride, with_scope(source[0], source[3]), source[1], ecn_field
        return octets, stride, source[0], source[1], ecn_field

    def receive_many(self, slots: Slots) -> list[ReceivedRun]:
        """Receive datagrams into slots; see `Receiver.receive_many`."""
        return slots.receive(self.sock.fileno())

    def join_group(
        self, binding: Binding, group: Address, beside: Iterable[Receiver] = ()
    ) -> "UdpReceiver":
        """Return a receiver of a multicast group on the device of `binding`.

        It is bound to the group's address on the port of this one, so it receives datagrams to no
        other group and none to this host. Its other options are those of this one. `beside` is as
        in `open`. Raises: VtepError.
        """
        sock = None
        try:
            sock = binding.open_unbound()
            with _port_shared_by([self, *beside]):
                host = socket.inet_ntop(binding.family, group.packed)
                _bind_to_group(sock, self.address[1], host, binding.dev)
            zero = self.sock.getsockopt(const.SOL_UDP, const.UDP_NO_CHECK6_RX) != 0
            configure_receiver(sock, _RECEIVE_BUFFER, gro=self.gro_enabled, zero_checksums=zero)
        except OSError as error:
            if sock is not None:
                sock.close()
            kind = NotReadyError if error.errno in _NOT_READY else VtepError
            raise kind(
                f"--group {group}: cannot join it on --dev {binding.dev}: "
                f"{descriptors.reason(error)}"
            ) from error
        return UdpReceiver(sock)

    def send_unfragmented(self, datagram: bytes, host: str, port: int) -> None:
        """Send one datagram with DF, whatever path MTU the kernel has cached. Raises: OSError."""
        sock = self.sock
        v6 = sock.family == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        option = const.IPV6_MTU_DISCOVER if v6 else const.IP_MTU_DISCOVER
        before = sock.getsockopt(level, option)
        if v6:  # PMTUDISC_PROBE alone does not keep IPv6 from fragmenting.
            sock.setsockopt(level, const.IPV6_DONTFRAG, 1)
        sock.setsockopt(level, option, const.PMTUDISC_PROBE)
        try:
            sock.sendto(datagram, sockaddr(host, port))
        finally:
            # Frames may leave from the same socket, and those may be fragmented.
            sock.setsockopt(level, option, before)
            if v6:
                sock.setsockopt(level, const.IPV6_DONTFRAG, 0)

    def set_filter(self, wanted: IngressFilter | None) -> None:
        """Discard datagrams that a filter does not accept; None accepts all. Raises: OSError."""
        if wanted is None:
            detach_filter(self.sock)
        else:
            attach_filter(self.sock, wanted)

    def queue_drops(self) -> int:
        """Return how many datagrams the kernel discarded in front of this socket.

        The receive buffer was full, a checksum was wrong, or a filter discarded them. Raises:
        OSError.
        """
        return receive_queue_drops(self.sock)

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def configure_receiver(
    sock: socket.socket, buffer: int, *, gro: bool, zero_checksums: bool
) -> None:
    """Set the options that `UdpReceiver.receive` relies on; `buffer` is in octets.

    Raises: OSError.
    """
    set_receive_buffer(sock, buffer)
    # Without *_MULTICAST_ALL off, the socket gets datagrams to any group that this host has joined.
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, const.IPV6_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.setsockopt(const.SOL_UDP, const.UDP_NO_CHECK6_RX, int(zero_checksums))
    else:
        sock.setsockopt(socket.IPPROTO_IP, const.IP_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    if gro:
        with suppress(OSError):  # Linux before 5.0 has no UDP_GRO.
            sock.setsockopt(const.SOL_UDP, const.UDP_GRO, 1)


def gro_enabled(sock: socket.socket) -> bool:
    """Return whether the kernel joins datagrams of one sender for a socket (UDP_GRO)."""
    try:
        return sock.getsockopt(const.SOL_UDP, const.UDP_GRO) != 0
    except OSError:
        return False


def receive_queue_drops(sock: socket.socket) -> int:
    """Return the drop counter of a socket (SK_MEMINFO_DROPS). Raises: OSError."""
    memory = sock.getsockopt(socket.SOL_SOCKET, const.SO_MEMINFO, const.SK_MEMINFO_VARS * 4)
    offset = const.SK_MEMINFO_DROPS * 4
    return int.from_bytes(memory[offset : offset + 4], sys.byteorder)


@contextmanager
def _port_shared_by(receivers: Iterable[Receiver]) -> Iterator[list[socket.socket]]:
    """Allow other sockets to be bound to the port of receivers while the context lasts."""
    sharing = [each.sock for each in receivers if each.sock is not None]
    try:
        for sock in sharing:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        yield sharing
    finally:
        for sock in sharing:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def _bind_to_group(sock: socket.socket, port: int, group: str, dev: str | None) -> None:
    index = need_device_index(dev or "")
    packed = socket.inet_pton(sock.family, group)
    v6 = sock.family == socket.AF_INET6
    # Several sockets may be bound to a group, and each receives its datagrams. The bind conflicts
    # with a receiver on all addresses unless both sockets allow it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((group, port, 0, index) if v6 else (group, port))
    if v6:
        membership = _MEMBERSHIP_V6.pack(packed, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    else:
        membership = _MEMBERSHIP_V4.pack(packed, bytes(4), index)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)


def _explain(error: OSError, binding: Binding, port: int) -> VtepError:
    """Return the error of a port that could not be bound to, with what to do."""
    if error.errno == errno.EADDRINUSE:
        return VtepError(
            f"--dstport {port}: this UDP port is taken on this host, by another pyvtep (see: "
            "ss -ulpn) or a kernel VXLAN device (see: ip -d link show type vxlan): run all "
            "VNIs in one process (--config), or give this one another --dstport, the same on "
            "all hosts"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        dev = f", --dev {binding.dev}" if binding.dev is not None else ""
        return VtepError(
            f"--dstport {port}{dev}: no privilege to bind to it: run as root (a "
            "process that had no port below 1024 at its start cannot bind one later: restart it)"
        )
    kind = NotReadyError if error.errno in _NOT_READY else VtepError
    return kind(f"--dstport {port}: cannot bind to it: {descriptors.reason(error)}")


if TYPE_CHECKING:

    def _is_receiver(receiver: UdpReceiver) -> Receiver:
        return receiver
