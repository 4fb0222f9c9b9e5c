"""The underlay's UDP sockets: one that receives, and a pool that sends to each remote.

The socket on the VXLAN port only receives. What we send leaves from other ports, one for each
value of the flow hash that we tell apart, because routers and NICs spread flows by it.
"""

import errno
import logging
import random
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TypeAlias

from attrs import frozen

from vtep.counters import Drop
from vtep.errors import VtepError
from vtep.fdb import Remote
from vtep.values import Address, scope_of
from vtep.wire import ethernet, vxlan

log = logging.getLogger("vtep")

_RECEIVE_BUFFER = 4 << 20
"""Octets asked for: what arrives in some milliseconds at the best rate that we can forward."""

_SEND_BUFFER = 1 << 19
"""Octets: more than the kernel holds back for a neighbour that does not answer ARP (its
unres_qlen_bytes). Otherwise one dead remote would fill its socket, and all others wait for it."""

_PORT_TRIES = 64
POOL_MAX = 64
_PORTS_MAX = len(vxlan.SOURCE_PORTS) // 2
"""Of all source ports, how many the pools together may take from the host."""

_RETRY_AFTER = 1.0
"""Seconds before a remote without a route is tried again."""

# From the kernel's include/uapi/linux/{in,in6}.h and asm-generic/socket.h.
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_SOL_UDP = 17
_UDP_NO_CHECK6_RX = 102
_UDP_SEGMENT = 103
_UDP_GRO = 104
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8
_SK_MEMINFO_VARS = 9

_DROPS = {
    errno.ECONNREFUSED: Drop.UNDERLAY_REFUSED,
    errno.EMSGSIZE: Drop.UNDERLAY_TOO_BIG,
    errno.ENOBUFS: Drop.UNDERLAY_FULL,
    errno.ENOMEM: Drop.UNDERLAY_FULL,
    errno.EPERM: Drop.UNDERLAY_DENIED,
    errno.EACCES: Drop.UNDERLAY_DENIED,
    errno.ENETUNREACH: Drop.UNDERLAY_UNREACHABLE,
    errno.EHOSTUNREACH: Drop.UNDERLAY_UNREACHABLE,
    errno.ENETDOWN: Drop.UNDERLAY_UNREACHABLE,
    errno.ENODEV: Drop.UNDERLAY_UNREACHABLE,
    errno.EADDRNOTAVAIL: Drop.UNDERLAY_UNREACHABLE,
    errno.EINVAL: Drop.UNDERLAY_UNREACHABLE,
}

_FROM_AFAR = frozenset(
    (
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EACCES,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPROTO,
        errno.EMSGSIZE,
    )
)
"""What a send may say of an *earlier* datagram, to which an ICMP error came back."""

_SHORT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))

_STALE = frozenset((errno.EINVAL, errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.ENODEV))
"""What a connected socket says when this host's address or route has changed under it."""


_ERROR_SPACE = 512
_ICMP_ORIGINS = (2, 3)
"""SO_EE_ORIGIN_ICMP and SO_EE_ORIGIN_ICMP6."""

_GRO_SIZE = struct.Struct("=i")
_GRO_SPACE = socket.CMSG_SPACE(_GRO_SIZE.size)
_SEGMENT_SIZE = struct.Struct("=H")

_SEGMENTS_MAX = 64
"""How many datagrams one send may stand for (the kernel's UDP_MAX_SEGMENTS; 128 since 6.9)."""

_SEND_MAX = 65507
"""Octets that a send may have, whatever it stands for."""

_IP_TCP_HEADERS = 20 + 20 + 12
"""Octets of IPv4 and TCP headers with timestamps, as every segment of Linux has them."""

_TCP_HEADERS_MAX = 400
"""More than the kernel sets aside of a superframe's size for headers (its MAX_TCP_HEADER)."""

_GSO_REFUSALS = frozenset((errno.EINVAL, errno.EIO, errno.EMSGSIZE, errno.EOPNOTSUPP))


@frozen
class Binding:
    """What all sockets of a VTEP have in common; `dev` is the device they are bound to, if any."""

    family: socket.AddressFamily
    local: Address | None
    dev: str | None

    def open(self, port: int, *, shared: bool = False) -> socket.socket:
        """A non-blocking UDP socket bound to `port`; raises OSError.

        It may be `shared` with sockets that allow that too (SO_REUSEADDR).

        The outer DF bit stays clear, as in the kernel driver: on a path narrower than this host's
        own link, a router's fragments are better than a hole that nobody is told of.
        """
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if self.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                # RFC 7348, section 5: a zero checksum must be accepted; RFC 6935 lets tunnels.
                sock.setsockopt(_SOL_UDP, _UDP_NO_CHECK6_RX, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self.dev is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.dev.encode())
            sock.bind(sockaddr(host_of(self.local, self.dev) if self.local else "", port))
        except OSError:
            sock.close()
            raise
        return sock


def host_of(address: Address, dev: str | None) -> str:
    """An address as the kernel spells it in the source of a datagram that came over `dev`."""
    if isinstance(address, IPv4Address):
        return str(address)
    scope = scope_of(address, dev)
    host = socket.inet_ntop(socket.AF_INET6, address.packed)
    return f"{host}%{scope}" if scope else host


Sockaddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int]


def sockaddr(host: str, port: int) -> Sockaddr:
    """What `connect` wants for a host as `host_of` spells it; raises OSError."""
    if ":" not in host:
        return host, port
    address, _, scope = host.partition("%")
    return address, port, 0, socket.if_nametoindex(scope) if scope else 0


def open_receiver(
    binding: Binding, port: int, *, gro: bool, beside: Iterable[socket.socket] = ()
) -> socket.socket:
    """The socket to which every remote sends.

    With `gro`, the kernel is to join datagrams of one sender, if it can. The sockets `beside` it
    may have the same port, while one takes over from the other.

    Raises VtepError, saying what to do, where the port cannot be had.
    """
    others = list(beside)
    try:
        for other in others:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock = binding.open(port, shared=bool(others))
        for one in (sock, *others):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        for other in others:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if error.errno == errno.EADDRINUSE:
            raise VtepError(
                f"--dstport {port}: this UDP port is taken on this host, by another VTEP (see: ss "
                "-ulpn) or a kernel VXLAN device (see: ip -d link show type vxlan)"
            ) from error
        if error.errno in (errno.EPERM, errno.EACCES):
            raise VtepError(
                f"--dstport {port}, --dev {binding.dev}: no privilege to bind to them: run as root"
            ) from error
        raise VtepError(f"--dstport {port}: cannot bind to it: {error.strerror}") from error
    _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, _RECEIVE_BUFFER)
    if gro:
        with suppress(OSError):
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
    return sock


def _set_buffer(sock: socket.socket, force: int, ask: int, octets: int) -> None:
    """Set the size of a buffer: beyond this host's limit if we may, else as far as that."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, octets)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, ask, octets)


def joins_datagrams(receiver: socket.socket) -> bool:
    """Whether the kernel joins datagrams of one sender for this socket (UDP_GRO)."""
    try:
        return receiver.getsockopt(_SOL_UDP, _UDP_GRO) != 0
    except OSError:
        return False


def receive(receiver: socket.socket, buffer: memoryview) -> tuple[int, int, str]:
    """Receive one datagram, or several of one sender that the kernel has joined.

    Gives the octets, how many of them make a datagram (the last may have fewer), and the sender's
    address. Raises OSError.
    """
    octets, ancillary, _, source = receiver.recvmsg_into((buffer,), _GRO_SPACE)
    stride = octets
    for level, kind, data in ancillary:
        if level == _SOL_UDP and kind == _UDP_GRO:
            (stride,) = _GRO_SIZE.unpack(data)
    if len(source) > 2 and source[3]:  # A link-local address.
        return octets, stride, f"{source[0]}%{socket.if_indextoname(source[3])}"
    return octets, stride, source[0]


def segments_datagrams() -> bool:
    """Whether the kernel takes many datagrams in one send (UDP_SEGMENT)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(_SOL_UDP, _UDP_SEGMENT, vxlan.HEADER_LEN)
        except OSError:
            return False
    return True


def batch_max(stride: int) -> int:
    """Octets of whole datagrams, of `stride` octets each, that fit into one send: one at least."""
    return max(1, min(_SEGMENTS_MAX, _SEND_MAX // stride)) * stride


def superframe_max(mtu: int) -> int:
    """Octets of a TCP superframe whose segments, for a TAP of this MTU, fit into one send."""
    segments = min(_SEGMENTS_MAX, _SEND_MAX // (vxlan.HEADER_LEN + ethernet.HEADER_LEN + mtu))
    payload = mtu - _IP_TCP_HEADERS
    return max(1, segments) * payload + _TCP_HEADERS_MAX


def receive_queue_drops(receiver: socket.socket) -> int:
    """How many datagrams the kernel discarded because the socket's queue was full."""
    memory = receiver.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _SK_MEMINFO_VARS * 4)
    at = _SK_MEMINFO_DROPS * 4
    return int.from_bytes(memory[at : at + 4], sys.byteorder)


class Path:
    """The way to one remote: connected sockets, one for each of `slots` values of the flow hash.

    A socket is opened when the first frame of its slot comes. Connected, it saves the kernel a
    route lookup for each datagram and tells us of ICMP errors. `slots` is a power of two. `gso`
    says whether several datagrams may go in one send. `closing` is told of each descriptor just
    before it is closed, for whoever waits for room in it.
    """

    def __init__(
        self,
        binding: Binding,
        remote: Remote,
        slots: int,
        closing: Callable[[int], None],
        *,
        gso: bool,
    ) -> None:
        self.remote = remote
        self.slots = slots
        self._binding = binding
        self._sockets: list[socket.socket | None] = [None] * slots
        self._retry_at = [0.0] * slots
        self._gso = gso
        self._gso_stride_max = _SEND_MAX
        self._closing = closing

    def send(
        self, datagrams: memoryview, stride: int, flow: int, now: float
    ) -> tuple[int, Drop | None]:
        """Send as many datagrams as one system call takes, from the port of a flow hash.

        `datagrams` are `stride` octets each, but perhaps the last. Gives how many octets of them
        are done with, and the reason if they, or as many sent before, were lost. Raises
        BlockingIOError where the send buffer is full: nothing was sent, and `fileno` tells what to
        wait for.
        """
        slot = flow & self.slots - 1
        batch = datagrams
        if len(batch) > stride:
            many = self._gso and stride <= self._gso_stride_max
            batch = batch[: batch_max(stride) if many else stride]
        sock = self._sockets[slot]
        try:
            if sock is None:
                sock = self._open(slot, now)
            if len(batch) > stride:
                sock.sendmsg((batch,), ((_SOL_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(stride)),))
            else:
                sock.send(batch)
        except BlockingIOError:
            # A socket with something in its error queue can't be waited for: it is always ready.
            if sock is not None and _came_back(sock):
                return 0, Drop.UNDERLAY_REFUSED
            raise
        except OSError as error:
            return self._refused(error, batch, stride, slot, now)
        return len(batch), None

    def _refused(
        self, error: OSError, batch: memoryview, stride: int, slot: int, now: float
    ) -> tuple[int, Drop | None]:
        """What becomes of a batch that was refused; as `send`, which is to try again after a 0."""
        sock = self._sockets[slot]
        if sock is not None and error.errno in _FROM_AFAR and _came_back(sock):
            # The answer to an earlier datagram, which is lost; this batch has not left yet.
            return 0, Drop.UNDERLAY_REFUSED
        if len(batch) > stride and sock is not None and error.errno in _GSO_REFUSALS:
            if error.errno == errno.EMSGSIZE:
                # A datagram can be fragmented, a segment can't: shorter ones may fit.
                self._gso_stride_max = stride - 1
                return 0, None
            try:
                sock.send(batch[:stride])
            except BlockingIOError:
                raise
            except OSError as another:  # So UDP_SEGMENT was not to blame.
                return self._refused(another, batch[:stride], stride, slot, now)
            self._gso = False
            log.warning(
                "offload gso is off to %s: the kernel refused it (%s)",
                self.remote.host,
                error.strerror,
            )
            return stride, None
        if error.errno in _STALE and sock is not None:
            self._discard(sock)
            if now >= self._retry_at[slot]:
                self._retry_at[slot] = now + _RETRY_AFTER
                try:
                    self._sockets[slot] = self._connect()
                except OSError as another:
                    error = another
                else:
                    return 0, None
        return len(batch), _DROPS.get(error.errno or 0, Drop.UNDERLAY_FAILED)

    def _open(self, slot: int, now: float) -> socket.socket:
        """Open the socket of a slot; raises OSError, also where that failed a moment ago."""
        if now < self._retry_at[slot]:
            raise OSError(errno.ENETUNREACH, "not tried again yet")
        try:
            sock = self._connect()
        except OSError as error:
            shared = next(filter(None, self._sockets), None)
            if error.errno not in _SHORT_OF_DESCRIPTORS or shared is None:
                self._retry_at[slot] = now + _RETRY_AFTER
                raise
            sock = shared  # Less entropy is better than a hole.
        self._sockets[slot] = sock
        return sock

    def _discard(self, sock: socket.socket) -> None:
        self._closing(sock.fileno())
        sock.close()
        self._sockets = [None if other is sock else other for other in self._sockets]

    def hope_again(self) -> None:
        """Try segments of all sizes again: the MTU on the way may be another one now."""
        self._gso_stride_max = _SEND_MAX

    def fileno(self, flow: int) -> int:
        """The descriptor of the socket that `send` uses for a flow hash; it was used before."""
        sock = self._sockets[flow & self.slots - 1]
        return sock.fileno() if sock is not None else -1

    def close(self) -> None:
        """Close all sockets; they are opened anew if there is more to send."""
        for sock in set(filter(None, self._sockets)):
            self._closing(sock.fileno())
            sock.close()
        self._sockets = [None] * self.slots

    def _connect(self) -> socket.socket:
        for _ in range(_PORT_TRIES):
            try:
                sock = self._binding.open(random.choice(vxlan.SOURCE_PORTS))  # noqa: S311  no secret
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            try:
                # Nobody reads what a peer sends to a port other than the VXLAN port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
                _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, _SEND_BUFFER)
                # With it the kernel tells of every ICMP error, and of what its own queues drop.
                if self._binding.family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
                sock.connect(sockaddr(self.remote.host, self.remote.port))
            except OSError:
                sock.close()
                raise
            return sock
        raise OSError(errno.EADDRINUSE, "no free source port")


def _came_back(sock: socket.socket) -> bool:
    """Whether an ICMP error waits in the socket's error queue, which is emptied."""
    came_back = False
    while True:
        try:
            _, ancillary, _, _ = sock.recvmsg(1, _ERROR_SPACE, socket.MSG_ERRQUEUE)
        except OSError:
            return came_back
        # struct sock_extended_err: error number (4 octets), origin, type, code, ...
        came_back |= any(data[4] in _ICMP_ORIGINS for _, _, data in ancillary)


def pool_slots(remotes: int) -> int:
    """How many source ports each of so many remotes gets: a power of two, at most 64.

    Each takes a descriptor, of which this process may have more important uses than half of them.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    total = min(_PORTS_MAX, descriptors // 2)
    share = max(1, min(POOL_MAX, total // max(1, remotes)))
    return 1 << share.bit_length() - 1
