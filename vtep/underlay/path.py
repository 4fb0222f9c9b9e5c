"""The ways to the remotes, one socket for each source port that we tell flows apart by."""

import errno
import logging
import resource
import socket
from collections.abc import Callable

from vtep.counters import Drop
from vtep.fdb import Remote
from vtep.underlay import feedback
from vtep.underlay.sockets import Binding, Outer, ancillary, path_mtu, sockaddr
from vtep.wire import envelope as envelopes
from vtep.wire import ethernet, vxlan

log = logging.getLogger("vtep")

_SEND_BUFFER = 1 << 19
"""Octets: more than the kernel holds back for a neighbour that does not answer ARP (its
unres_qlen_bytes). Otherwise one dead remote would fill its socket, and all others wait for it."""

FLOW_BITS = 6
POOL_MAX = 1 << FLOW_BITS
"""How many source ports a remote gets at most."""

_DF = envelopes.DF << FLOW_BITS

_RETRY_AFTER = 1.0
"""Seconds before a remote without a route is tried again."""

_SHORT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))

_SEGMENTS_MAX = 64
"""How many datagrams one send may stand for (the kernel's UDP_MAX_SEGMENTS; 128 since 6.9)."""

_SEND_MAX = 65507
"""Octets that a send may have, whatever it stands for."""

_IP_TCP_HEADERS = 20 + 20 + 12
"""Octets of IPv4 and TCP headers with timestamps, as every segment of Linux has them."""

_HEADERS = {socket.AF_INET: 20 + 8, socket.AF_INET6: 40 + 8}
"""Octets of the outer IP and UDP headers."""

_TCP_HEADERS_MAX = 400
"""More than the kernel sets aside of a superframe's size for headers (its MAX_TCP_HEADER)."""


def superframe_max(mtu: int) -> int:
    """Octets of a TCP superframe whose segments, for a TAP of this MTU, fit into one send."""
    segments = min(_SEGMENTS_MAX, _SEND_MAX // (vxlan.HEADER_LEN + ethernet.HEADER_LEN + mtu))
    payload = mtu - _IP_TCP_HEADERS
    return max(1, segments) * payload + _TCP_HEADERS_MAX


def batch_max(stride: int) -> int:
    """Octets of whole datagrams, of `stride` octets each, that fit into one send: one at least."""
    return max(1, min(_SEGMENTS_MAX, _SEND_MAX // stride)) * stride


class Path:
    """The way to one remote: connected sockets, one for each of `slots` values of the flow hash.

    A socket is opened when the first frame of its slot comes. Connected, it saves the kernel a
    route lookup for each datagram and tells us of ICMP errors. `slots` is a power of two. `gso`
    says whether several datagrams may go in one send. Frames whose envelope asks for DF, which is
    a property of sockets, have a pool of their own beside the other.

    `closing` is told of each descriptor just before it is closed, for whoever waits for room in it.
    """

    def __init__(
        self,
        binding: Binding,
        outer: Outer,
        remote: Remote,
        slots: int,
        closing: Callable[[int], None],
        *,
        gso: bool,
    ) -> None:
        self.remote = remote
        self.slots = slots
        self.mtu = 0
        """Octets of the largest packet to the remote that is known to pass; 0 is not known."""
        self.watchers: list[Callable[[Remote, int], None]] = []
        """Called with the remote and the MTU of the path, when that is known or changes."""
        self.binding = binding
        self._outer = outer
        self._closing = closing
        self._sockets: list[socket.socket | None] = [None] * (2 * slots)
        self._retry_at = [0.0] * (2 * slots)
        self._why_not = errno.ENETUNREACH
        self._gso = gso and outer.has_checksum(binding.family)
        self._gso_stride_max = _SEND_MAX

    def send(
        self, datagrams: memoryview, stride: int, flow: int, now: float
    ) -> tuple[int, Drop | None]:
        """Send as many datagrams as one system call takes, from the port of a flow hash.

        `datagrams` are `stride` octets each, but perhaps the last. In `flow` are `FLOW_BITS` of
        the hash and, above them, the envelope of all frames (see `wire.envelope`). Gives how many
        octets of them are done with, and the reason if they, or as many sent before, were lost.
        Raises BlockingIOError where the send buffer is full: nothing was sent, and `fileno` tells
        what to wait for.
        """
        envelope = flow >> FLOW_BITS
        slot = self._slot(flow)
        batch = datagrams
        if len(batch) > stride:
            many = self._gso and stride <= self._gso_stride_max
            batch = batch[: batch_max(stride) if many else stride]
        sock = self._sockets[slot]
        try:
            if sock is None:
                sock = self._open(slot, now)
            if len(batch) > stride:
                sock.sendmsg((batch,), ancillary(self.binding.family, envelope, stride))
            elif envelope:
                sock.sendmsg((batch,), ancillary(self.binding.family, envelope, 0))
            else:
                sock.send(batch)
        except BlockingIOError:
            if sock is not None and (lost := feedback.returned(sock)):
                return 0, lost[0].reason
            raise
        except OSError as error:
            return self._refused(error, batch, stride, slot, now)
        return len(batch), None

    def _refused(
        self, error: OSError, batch: memoryview, stride: int, slot: int, now: float
    ) -> tuple[int, Drop | None]:
        """What becomes of a batch that was refused; as `send`, which is to try again after a 0."""
        sock = self._sockets[slot]
        if sock is not None and error.errno == errno.EMSGSIZE:
            self._learn_mtu(sock)
        if (
            sock is not None
            and error.errno in feedback.FROM_AFAR
            and (lost := feedback.returned(sock))
        ):
            # The answer to an earlier datagram, which is lost; this batch has not left yet.
            return 0, lost[0].reason
        if len(batch) > stride and sock is not None and error.errno in feedback.GSO_REFUSALS:
            if error.errno == errno.EMSGSIZE or self._exceeds_path(sock, stride):
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
        if error.errno in feedback.STALE and sock is not None:
            self._discard(sock)
            if now >= self._retry_at[slot]:
                self._retry_at[slot] = now + _RETRY_AFTER
                try:
                    self._sockets[slot] = self._connect(slot)
                except OSError as another:
                    error = another
                else:
                    return 0, None
        return len(batch), feedback.reason(error.errno)

    def _open(self, slot: int, now: float) -> socket.socket:
        """Open the socket of a slot; raises OSError, also where that failed a moment ago."""
        if now < self._retry_at[slot]:
            raise OSError(self._why_not, "not tried again yet")
        try:
            sock = self._connect(slot)
        except OSError as error:
            pool = (
                self._sockets[self.slots :] if slot >= self.slots else self._sockets[: self.slots]
            )
            shared = next(filter(None, pool), None)
            if error.errno not in _SHORT_OF_DESCRIPTORS or shared is None:
                self._retry_at[slot] = now + _RETRY_AFTER
                self._why_not = error.errno or errno.ENETUNREACH
                raise
            sock = shared  # Less entropy is better than a hole.
        self._sockets[slot] = sock
        return sock

    def _connect(self, slot: int) -> socket.socket:
        used = {sock.getsockname()[1] for sock in self._sockets if sock is not None}
        sock = self._outer.open(self.binding, _SEND_BUFFER, df=slot >= self.slots, used=used)
        try:
            sock.connect(sockaddr(self.remote.host, self.remote.port, self._outer.flowlabel))
        except OSError:
            sock.close()
            raise
        self._learn_mtu(sock)
        return sock

    def _discard(self, sock: socket.socket) -> None:
        self._closing(sock.fileno())
        sock.close()
        self._sockets = [None if other is sock else other for other in self._sockets]

    def look(self) -> None:
        """Ask the kernel for the MTU of the path again; it may be another one now.

        It falls at once when a packet is too big, for which it must not be fragmented: so only with
        `df` does anything tell us. It rises when the kernel forgets what it was told (after
        net.ipv4.route.mtu_expires, 600 seconds) or has another route, which only this notices.
        """
        try:
            with self.binding.unbound() as sock:
                sock.connect(sockaddr(self.remote.host, self.remote.port))
                self._learn_mtu(sock)
        except OSError:
            pass  # There is no route now, which sending will say.

    def _learn_mtu(self, sock: socket.socket) -> None:
        try:
            mtu = path_mtu(sock)
        except OSError:
            return
        if mtu != self.mtu:
            self.mtu = mtu
            self._gso_stride_max = _SEND_MAX
            for watcher in self.watchers:
                watcher(self.remote, mtu)

    @staticmethod
    def _exceeds_path(sock: socket.socket, stride: int) -> bool:
        """Whether datagrams of so many octets are too big, for which some kernels say EINVAL."""
        try:
            return stride + _HEADERS[sock.family] > path_mtu(sock)
        except OSError:
            return False

    def _slot(self, flow: int) -> int:
        slot = flow & self.slots - 1
        return slot + self.slots if flow & _DF else slot

    def socket(self, flow: int, now: float) -> socket.socket:
        """The socket that `send` uses for a flow; raises OSError."""
        slot = self._slot(flow)
        return self._sockets[slot] or self._open(slot, now)

    @staticmethod
    def keeps_whole(flow: int) -> bool:
        """Whether the envelope of a flow asks for DF."""
        return flow & _DF != 0

    def fileno(self, flow: int) -> int:
        """The descriptor of the socket that `send` uses for a flow; it was used before."""
        sock = self._sockets[self._slot(flow)]
        return sock.fileno() if sock is not None else -1

    def close(self) -> None:
        """Close all sockets; they are opened anew if there is more to send."""
        for sock in set(filter(None, self._sockets)):
            self._closing(sock.fileno())
            sock.close()
        self._sockets = [None] * (2 * self.slots)


def pool_slots(remotes: int, ports: int) -> int:
    """How many source ports each of so many remotes gets: a power of two, at most 64.

    Each takes a descriptor, of which this process may have more important uses than half of them,
    and one of the `ports` in the range to send from, half of which are left to the host.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    total = min(ports, descriptors) // 2
    share = max(1, min(POOL_MAX, total // max(1, remotes)))
    return 1 << share.bit_length() - 1
