"""The datagram path to one remote: connected sockets, one for each source port of its flows."""

import errno
import logging
import random
import socket
from typing import TYPE_CHECKING, Final

from vtep import descriptors
from vtep.counters import Drop
from vtep.forwarding.fdb import Remote
from vtep.io import error_queue
from vtep.io.addresses import sockaddr
from vtep.io.binding import Binding, connected_socket
from vtep.io.outer_options import OuterHeaderOptions, control_messages
from vtep.io.sender_sockets import SenderSockets, sockets_max
from vtep.io.shared_socket import SendingSocket, SocketSpec, connected, returned_datagrams
from vtep.io.socket_options import path_mtu
from vtep.wire import ethernet, outer_header, vxlan
from vtep.wire.ip import UDP_IP_HEADERS_LEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from vtep.io.interfaces import MtuWatcher, Sender

log = logging.getLogger("vtep")

_SEND_BUFFER = 1 << 19
"""Octets: more than the kernel queues for a neighbour that does not answer ARP (unres_qlen_bytes in
net/core/neighbour.c). Otherwise one dead remote fills the buffer of its socket, and the TAP is not
read any more."""

FLOW_BITS: Final = 6
"""Bits of the flow hash that select a source port."""

POOL_MAX: Final = 1 << FLOW_BITS
"""The largest number of source ports for one remote."""

_DF = outer_header.DF << FLOW_BITS

_RETRY_S = 1.0
"""Seconds before an open that failed is tried again, if the network has not changed."""

SEGMENTS_MAX: Final = 64
"""Datagrams in one send (UDP_MAX_SEGMENTS in include/linux/udp.h; 128 since Linux 6.9)."""

SEND_MAX: Final = 65507
"""Octets of one send: the largest UDP payload over IPv4, with or without UDP_SEGMENT."""

_IP_TCP_HEADERS = 20 + 20 + 12
"""Octets of IPv4 and TCP headers with timestamps, as in each segment that Linux sends."""

_TCP_HEADERS_MAX = 400
"""More than the kernel reserves for headers in a superframe (MAX_TCP_HEADER in
include/net/tcp.h)."""


def superframe_max(mtu: int) -> int:
    """Return the octets of a TCP superframe whose segments fit into one send.

    `mtu` is that of the TAP.
    """
    segments = min(SEGMENTS_MAX, SEND_MAX // (vxlan.HEADER_LEN + ethernet.HEADER_LEN + mtu))
    payload = mtu - _IP_TCP_HEADERS
    return max(1, segments) * payload + _TCP_HEADERS_MAX


def batch_max(stride: int) -> int:
    """Return the octets of datagrams of `stride` octets that fit into one send: one at least."""
    return max(1, min(SEGMENTS_MAX, SEND_MAX // stride)) * stride


class Path:
    """The path to one remote: connected sockets, one for each of `slots` values of the flow hash.

    The socket of a slot is opened for its first frame. A connected socket saves the kernel a route
    lookup for each datagram, and receives the ICMP errors about its remote. `slots` is a power of
    two. DF is an option of sockets, so frames whose outer header fields request it have as many
    slots of their own.

    `senders` opens the sockets, and may close those that were not used for long. With `gso`, a
    send may have several datagrams.
    """

    def __init__(
        self,
        binding: Binding,
        outer: OuterHeaderOptions,
        remote: Remote,
        slots: int,
        senders: SenderSockets,
        *,
        gso: bool,
    ) -> None:
        self.remote: Final = remote
        self.slots: Final = slots
        self.mtu = 0
        """Octets of the largest packet to the remote that is known to pass; 0 is unknown."""
        self.watchers: Final[list[MtuWatcher]] = []
        """Called when `mtu` becomes known or changes."""
        self.on_sockets_changed: Callable[[bool], None] | None = None
        """Called when a socket is closed or set aside, or `stride_max` changes; with True before
        all sockets are closed."""
        self.binding = binding
        self._outer = outer
        self._senders = senders
        self._sockets: list[SendingSocket | None] = [None] * (2 * slots)
        # Open sockets by slot that no frame has needed since they were set aside.
        self._idle: dict[int, SendingSocket] = {}
        # The source address of each open socket, unless it is chosen for each datagram.
        self._sources: dict[socket.socket, str] = {}
        # When an open that failed is tried again, and the network changes before it, by slot.
        self._retry: dict[int, tuple[float, int]] = {}
        self._open_error = errno.ENETUNREACH
        self._gso = gso and outer.has_checksum(binding.family)
        self._gso_stride_max = SEND_MAX
        self.last_icmp_error = 0

    def send(
        self, datagrams: memoryview, stride: int, flow: int, now: float
    ) -> tuple[int, Drop | None]:
        """Send as many datagrams as one system call takes; see `Sender.send`."""
        fields = flow >> FLOW_BITS
        slot = self._slot(flow)
        batch = datagrams
        if len(batch) > stride:
            several = self._gso and stride <= self._gso_stride_max
            batch = batch[: batch_max(stride) if several else stride]
        sock = self._sockets[slot]
        try:
            if sock is None:
                sock = self._open(slot, now)
            if len(batch) > stride:
                sock.sendmsg((batch,), control_messages(self.binding.family, fields, stride))
            elif fields:
                sock.sendmsg((batch,), control_messages(self.binding.family, fields, 0))
            else:
                sock.send(batch)  # 0.1 us less than sendmsg takes.
        except BlockingIOError:
            # A socket with queued errors is always ready, so it could not be waited for.
            if sock is not None and (returned := returned_datagrams(sock)):
                return 0, returned[0].reason
            raise
        except OSError as error:
            return self._handle_refusal(error, batch, stride, slot, now)
        return len(batch), None

    def _handle_refusal(
        self, error: OSError, batch: memoryview, stride: int, slot: int, now: float
    ) -> tuple[int, Drop | None]:
        """Handle an error of a send.

        Returns: as `send`. With 0 octets, the send is to be repeated.
        """
        sock = self._sockets[slot]
        if sock is not None and error.errno == errno.EMSGSIZE:
            self._learn_mtu(sock)
        if (
            sock is not None
            and error.errno in error_queue.ICMP_ERRORS
            and (returned := returned_datagrams(sock))
        ):
            # The error is about an earlier datagram, which is lost; this batch was not sent.
            self.last_icmp_error = error.errno or 0
            return 0, returned[0].reason
        if len(batch) > stride and sock is not None and error.errno in error_queue.GSO_REFUSALS:
            if error.errno == errno.EMSGSIZE or self._exceeds_path_mtu(sock, stride):
                # The kernel fragments a datagram of this size, but not a segment of UDP_SEGMENT.
                # Shorter segments may fit.
                self._gso_stride_max = stride - 1
                self._report_sockets()
                return 0, None
            # Test with one datagram whether UDP_SEGMENT is the cause.
            try:
                sock.send(batch[:stride])
            except BlockingIOError:
                raise
            except OSError as another:
                return self._handle_refusal(another, batch[:stride], stride, slot, now)
            self._gso = False
            self._report_sockets()
            log.warning(
                "offload gso disabled to %s: the kernel refused it: %s",
                self.remote.host,
                error.strerror,
            )
            return stride, None
        if error.errno in error_queue.STALE_SOCKET and sock is not None:
            # Connect again, once in a while: the own address or the route may have changed.
            self.discard(sock)
            if not self._retry_is_pending(slot, now):
                self._schedule_retry(slot, now)
                try:
                    self._sockets[slot] = self._connect(slot, now)
                except OSError as another:
                    error = another
                else:
                    return 0, None
        return len(batch), error_queue.drop_reason(error.errno)

    def _open(self, slot: int, now: float) -> SendingSocket:
        """Open the socket of a slot. Raises: OSError, also if an open failed a moment ago."""
        idle = self._idle.pop(slot, None)
        if idle is not None:
            self._sockets[slot] = idle
            return idle
        if self._retry_is_pending(slot, now):
            raise OSError(self._open_error, "not tried again yet")
        # At the limit, a flow shares the source port of another one: less entropy for ECMP is
        # better than the loss of the socket of another remote.
        others = self._sockets_beside(slot)
        if others and self._senders.is_full:
            sock = random.choice(others)  # noqa: S311  no secret
        else:
            try:
                sock = self._connect(slot, now, evict=not others)
            except OSError as error:
                if descriptors.is_out_of_descriptors(error):
                    why = descriptors.reason(error)
                    descriptors.warn(f"cannot open another socket to send: {why}")
                if not (others and descriptors.is_out_of_descriptors(error)):
                    self._schedule_retry(slot, now)
                    self._open_error = error.errno or errno.ENETUNREACH
                    raise
                sock = random.choice(others)  # noqa: S311  no secret
            else:
                if others and descriptors.is_reserved(sock.fileno()):
                    self._forget(sock)
                    sock = random.choice(others)  # noqa: S311  no secret
        self._sockets[slot] = sock
        return sock

    def _sockets_beside(self, slot: int) -> list[SendingSocket]:
        """Return the open sockets that could send for a slot, too."""
        begin = slot & self.slots  # Slots with DF follow those without.
        found = (self._sockets[at] or self._idle.get(at) for at in range(begin, begin + self.slots))
        return list(filter(None, found))

    def _retry_is_pending(self, slot: int, now: float) -> bool:
        """Return whether an open failed so recently that it is not tried again yet."""
        retry = self._retry.get(slot)
        return retry is not None and now < retry[0] and retry[1] == self._senders.network_changes

    def _schedule_retry(self, slot: int, now: float) -> None:
        """Try no other open of a slot for a while, unless the network changes."""
        self._retry[slot] = now + _RETRY_S, self._senders.network_changes

    def _connect(self, slot: int, now: float, *, evict: bool = True) -> SendingSocket:
        address = sockaddr(self.remote.host, self.remote.port, self._outer.flowlabel)
        df = slot >= self.slots
        spec = SocketSpec(self.binding, self._outer, address, _SEND_BUFFER, df)
        used = {sock.getsockname()[1] for sock in self._open_sockets()}
        sock = self._senders.open(self, spec, now, used=used, evict=evict)
        self._learn_mtu(sock)
        source, port, *_ = sock.getsockname()
        if isinstance(sock, socket.socket):  # The kernel chooses that of each datagram else.
            self._sources[sock] = source
        if log.isEnabledFor(logging.DEBUG):
            log.debug(
                "socket to %s port %d opened: from %s port %d, path MTU %d",
                *(self.remote.host, self.remote.port, source, port, self.mtu),
            )
        return sock

    def _open_sockets(self) -> set[SendingSocket]:
        return {sock for sock in (*self._sockets, *self._idle.values()) if sock is not None}

    @property
    def stride_max(self) -> int:
        """Octets of the largest datagram of a send of several; 0 if each has to be sent singly."""
        return self._gso_stride_max if self._gso else 0

    def connected_fd(self, flow: int) -> int:
        """Return the descriptor of the connected socket of a flow.

        Returns: -1 if none is open, or if the flow is sent from a shared socket.
        """
        sock = self._sockets[self._slot(flow)]
        return sock.fileno() if isinstance(sock, socket.socket) else -1

    def returned(self, flow: int) -> Drop | None:
        """Return why earlier datagrams of a flow came back as ICMP errors; None if none did."""
        sock = self._sockets[self._slot(flow)]
        returned = returned_datagrams(sock) if sock is not None else []
        return returned[0].reason if returned else None

    def _report_sockets(self, *, all_closed: bool = False) -> None:
        if self.on_sockets_changed is not None:
            self.on_sockets_changed(all_closed)

    def set_aside(self, sock: socket.socket) -> None:
        """Stop using a socket until a frame needs it."""
        self._report_sockets()
        for slot, other in enumerate(self._sockets):
            if other is sock:
                self._sockets[slot] = None
                self._idle[slot] = sock

    def uses(self, sock: socket.socket) -> bool:
        """Return whether a frame has needed a socket since it was set aside."""
        return any(other is sock for other in self._sockets)

    def discard(self, sock: SendingSocket) -> None:
        """Close a socket. The next frame that needs one opens another."""
        self._report_sockets()
        self._sockets = [None if other is sock else other for other in self._sockets]
        self._idle = {slot: other for slot, other in self._idle.items() if other is not sock}
        self._forget(sock)

    def refresh_route(self) -> None:
        """Look up the route to the remote again: the path MTU, and the source address.

        An ICMP error that reports a smaller MTU fails the next send at once, but only with DF. A
        larger MTU is never reported: the kernel forgets what it learned (after
        net.ipv4.route.mtu_expires, 600 seconds), or has another route.
        """
        try:
            with connected_socket(
                self.binding, sockaddr(self.remote.host, self.remote.port)
            ) as sock:
                self._learn_mtu(sock)
                source = sock.getsockname()[0]
        except OSError:
            return  # No route. The next send reports it.
        self._discard_stale(source)

    def _discard_stale(self, source: str) -> None:
        """Close the sockets that have another source address than their route has now.

        A socket keeps the address that its route had when it was connected. While the link to the
        remote is down, for example, that is the default route and the address of its device. No
        send fails later, but the remote drops datagrams from an address that it does not know.
        """
        others = {sock: own for sock, own in self._sources.items() if own != source}
        for own in set(others.values()):
            socks = [sock for sock, each in others.items() if each == own]
            # With several next hops, the route may depend on the source port, and several source
            # addresses may be right. So one socket of each address is compared by its own port.
            if self._source_of(socks[0].getsockname()[1]) not in (own, None):
                for sock in socks:
                    self.discard(sock)

    def _source_of(self, port: int) -> str | None:
        """Return the source address of a new socket on a port; None if that is not known."""
        try:
            with self.binding.open(port, shared=True) as sock:
                sock.connect(sockaddr(self.remote.host, self.remote.port, self._outer.flowlabel))
                source: str = sock.getsockname()[0]
        except OSError:
            return None
        return source

    def _learn_mtu(self, sender: SendingSocket) -> None:
        try:
            with connected(sender) as sock:
                mtu = path_mtu(sock)
        except OSError:
            return
        if mtu != self.mtu:
            log.debug("path to %s: MTU %d, before %d", self.remote.host, mtu, self.mtu)
            self.mtu = mtu
            self._gso_stride_max = SEND_MAX
            self._report_sockets()
            for watcher in self.watchers:
                watcher(self.remote, mtu)

    def _exceeds_path_mtu(self, sender: SendingSocket, stride: int) -> bool:
        """Return whether datagrams are too large for the path: some kernels say EINVAL then."""
        try:
            with connected(sender) as sock:
                return stride + UDP_IP_HEADERS_LEN[self.binding.version] > path_mtu(sock)
        except OSError:
            return False

    def _slot(self, flow: int) -> int:
        slot = flow & self.slots - 1
        return slot + self.slots if flow & _DF else slot

    def socket(self, flow: int, now: float) -> SendingSocket:
        """Return the socket that `send` uses for a flow. Raises: OSError."""
        slot = self._slot(flow)
        return self._sockets[slot] or self._open(slot, now)

    def peek(self, flow: int) -> SendingSocket | None:
        """Return the socket that is open for a flow; None if a send would have to open one."""
        slot = self._slot(flow)
        return self._sockets[slot] or self._idle.get(slot)

    @staticmethod
    def wants_df(flow: int) -> bool:
        """Return whether the outer header fields of a flow include DF."""
        return flow & _DF != 0

    def fileno(self, flow: int) -> int:
        """Return the descriptor that `send` used last for a flow; -1 if it is closed."""
        slot = self._slot(flow)
        sock = self._sockets[slot] or self._idle.get(slot)
        return sock.fileno() if sock is not None else -1

    def close(self) -> None:
        """Close all sockets. The next `send` opens new ones."""
        self._report_sockets(all_closed=True)
        sockets = self._open_sockets()
        self._sockets = [None] * (2 * self.slots)
        self._idle.clear()
        for sock in sockets:
            self._forget(sock)

    def _forget(self, sock: SendingSocket) -> None:
        if isinstance(sock, socket.socket):
            self._sources.pop(sock, None)
        self._senders.close(sock)


def pool_slots(remotes: int, ports: int) -> int:
    """Return how many source ports each remote gets: a power of two, at most `POOL_MAX`.

    Args:
        remotes: the number of remotes that share the sockets of this process (`sockets_max`).
        ports: the number of source ports in the range.
    """
    share = max(1, min(POOL_MAX, ports, sockets_max() // max(1, remotes)))
    return 1 << share.bit_length() - 1


if TYPE_CHECKING:

    def _is_sender(path: Path) -> Sender:
        return path
