"""The ways to the remotes, one socket for each source port that we tell flows apart by."""

import errno
import logging
import random
import socket
from collections.abc import Callable
from typing import TypeAlias

from vtep import descriptors
from vtep.counters import Drop
from vtep.forwarding.fdb import Remote
from vtep.io import error_queue
from vtep.io.sender_sockets import SenderSockets, is_short_of_descriptors, sockets_max
from vtep.io.shared_socket import Sender, SocketSpec, connected, returned
from vtep.io.sockets import (
    Binding,
    OuterHeaderOptions,
    ancillary,
    connected_probe,
    path_mtu,
    sockaddr,
)
from vtep.wire import ethernet, outer_header, vxlan

log = logging.getLogger("vtep")

_SEND_BUFFER = 1 << 19
"""Octets: more than the kernel holds back for a neighbour that does not answer ARP (its
unres_qlen_bytes). Otherwise one dead remote would fill its socket, and all others wait for it."""

FLOW_BITS = 6
POOL_MAX = 1 << FLOW_BITS
"""How many source ports a remote gets at most."""

_DF = outer_header.DF << FLOW_BITS

_RETRY_AFTER = 1.0
"""Seconds before a remote without a route is tried again, if the kernel tells of no change."""

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

MtuWatcher: TypeAlias = Callable[[Remote, int], None]
"""Called with a remote and the MTU of the path to it."""


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

    `senders` opens the sockets, and may close those that have not been used for long.
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
        self.remote = remote
        self.slots = slots
        self.mtu = 0
        """Octets of the largest packet to the remote that is known to pass; 0 is not known."""
        self.watchers: list[MtuWatcher] = []
        """Called with the remote and the MTU of the path, when that is known or changes."""
        self.binding = binding
        self._outer = outer
        self._senders = senders
        self._sockets: list[Sender | None] = [None] * (2 * slots)
        # Open sockets of other slots, which no frame has used since they were set aside.
        self._idle: dict[int, Sender] = {}
        # By slot, when it is tried again, and the network changes that there had been before.
        self._retry: dict[int, tuple[float, int]] = {}
        self._why_not = errno.ENETUNREACH
        self._gso = gso and outer.has_checksum(binding.family)
        self._gso_stride_max = _SEND_MAX

    def send(
        self, datagrams: memoryview, stride: int, flow: int, now: float
    ) -> tuple[int, Drop | None]:
        """Send as many datagrams as one system call takes, from the port of a flow hash.

        `datagrams` are `stride` octets each, but perhaps the last. In `flow` are `FLOW_BITS` of
        the hash and, above them, the envelope of all frames (see `outer_header`). Gives how many
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
            if sock is not None and (lost := returned(sock)):
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
        if sock is not None and error.errno in error_queue.FROM_AFAR and (lost := returned(sock)):
            # The answer to an earlier datagram, which is lost; this batch has not left yet.
            return 0, lost[0].reason
        if len(batch) > stride and sock is not None and error.errno in error_queue.GSO_REFUSALS:
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
        if error.errno in error_queue.STALE and sock is not None:
            self.discard(sock)
            if not self._has_to_wait(slot, now):
                self._wait(slot, now)
                try:
                    self._sockets[slot] = self._connect(slot, now)
                except OSError as another:
                    error = another
                else:
                    return 0, None
        return len(batch), error_queue.reason(error.errno)

    def _open(self, slot: int, now: float) -> Sender:
        """Open the socket of a slot; raises OSError, also where that failed a moment ago."""
        idle = self._idle.pop(slot, None)
        if idle is not None:
            self._sockets[slot] = idle
            return idle
        if self._has_to_wait(slot, now):
            raise OSError(self._why_not, "not tried again yet")
        others = self._others(slot)
        if others and self._senders.is_full:
            sock = random.choice(others)  # noqa: S311  no secret
        else:
            try:
                sock = self._connect(slot, now, evict=not others)
            except OSError as error:
                if is_short_of_descriptors(error):
                    why = descriptors.reason(error)
                    descriptors.warn(f"cannot open another socket to send: {why}")
                if not (others and is_short_of_descriptors(error)):
                    self._wait(slot, now)
                    self._why_not = error.errno or errno.ENETUNREACH
                    raise
                sock = random.choice(others)  # noqa: S311  Less entropy is better than a hole.
            else:
                if others and descriptors.is_reserved(sock.fileno()):
                    self._senders.close(sock)
                    sock = random.choice(others)  # noqa: S311  no secret
        self._sockets[slot] = sock
        return sock

    def _others(self, slot: int) -> list[Sender]:
        """Return the open sockets that could send for a slot, too."""
        begin = slot & self.slots  # Those with DF have slots of their own.
        found = (self._sockets[at] or self._idle.get(at) for at in range(begin, begin + self.slots))
        return list(filter(None, found))

    def _has_to_wait(self, slot: int, now: float) -> bool:
        """Return whether a slot has failed so recently that it need not be tried again."""
        retry = self._retry.get(slot)
        return retry is not None and now < retry[0] and retry[1] == self._senders.network_changes

    def _wait(self, slot: int, now: float) -> None:
        """Have a slot not tried again for a while, unless the network changes."""
        self._retry[slot] = now + _RETRY_AFTER, self._senders.network_changes

    def _connect(self, slot: int, now: float, *, evict: bool = True) -> Sender:
        address = sockaddr(self.remote.host, self.remote.port, self._outer.flowlabel)
        df = slot >= self.slots
        spec = SocketSpec(self.binding, self._outer, address, _SEND_BUFFER, df)
        used = {sock.getsockname()[1] for sock in self._open_sockets()}
        sock = self._senders.open(self, spec, now, used=used, evict=evict)
        self._learn_mtu(sock)
        if log.isEnabledFor(logging.DEBUG):
            source, port, *_ = sock.getsockname()
            log.debug(
                "socket to %s port %d opened: from %s port %d, path MTU %d",
                *(self.remote.host, self.remote.port, source, port, self.mtu),
            )
        return sock

    def _open_sockets(self) -> set[Sender]:
        return {sock for sock in (*self._sockets, *self._idle.values()) if sock is not None}

    def set_aside(self, sock: socket.socket) -> None:
        """Use a socket no more until a frame needs it."""
        for slot, other in enumerate(self._sockets):
            if other is sock:
                self._sockets[slot] = None
                self._idle[slot] = sock

    def uses(self, sock: socket.socket) -> bool:
        """Return whether a frame has needed a socket since it was set aside."""
        return any(other is sock for other in self._sockets)

    def discard(self, sock: Sender) -> None:
        """Close a socket, and open another one if a frame needs it."""
        self._sockets = [None if other is sock else other for other in self._sockets]
        self._idle = {slot: other for slot, other in self._idle.items() if other is not sock}
        self._senders.close(sock)

    def look(self) -> None:
        """Ask the kernel for the MTU of the path again; it may be another one now.

        It falls at once when a packet is too big, for which it must not be fragmented: so only with
        `df` does anything tell us. It rises when the kernel forgets what it was told (after
        net.ipv4.route.mtu_expires, 600 seconds) or has another route, which only this notices.
        """
        try:
            with connected_probe(
                self.binding, sockaddr(self.remote.host, self.remote.port)
            ) as sock:
                self._learn_mtu(sock)
        except OSError:
            pass  # There is no route now, which sending will say.

    def _learn_mtu(self, sender: Sender) -> None:
        try:
            with connected(sender) as sock:
                mtu = path_mtu(sock)
        except OSError:
            return
        if mtu != self.mtu:
            log.debug("path to %s: MTU %d, before %d", self.remote.host, mtu, self.mtu)
            self.mtu = mtu
            self._gso_stride_max = _SEND_MAX
            for watcher in self.watchers:
                watcher(self.remote, mtu)

    @staticmethod
    def _exceeds_path(sender: Sender, stride: int) -> bool:
        """Whether datagrams of so many octets are too big, for which some kernels say EINVAL."""
        try:
            with connected(sender) as sock:
                return stride + _HEADERS[sock.family] > path_mtu(sock)
        except OSError:
            return False

    def _slot(self, flow: int) -> int:
        slot = flow & self.slots - 1
        return slot + self.slots if flow & _DF else slot

    def socket(self, flow: int, now: float) -> Sender:
        """The socket that `send` uses for a flow; raises OSError."""
        slot = self._slot(flow)
        return self._sockets[slot] or self._open(slot, now)

    @staticmethod
    def wants_df(flow: int) -> bool:
        """Return whether the outer header fields of a flow include DF."""
        return flow & _DF != 0

    def fileno(self, flow: int) -> int:
        """The descriptor of the socket that `send` uses for a flow; it was used before."""
        slot = self._slot(flow)
        sock = self._sockets[slot] or self._idle.get(slot)
        return sock.fileno() if sock is not None else -1

    def close(self) -> None:
        """Close all sockets; they are opened anew if there is more to send."""
        sockets = self._open_sockets()
        self._sockets = [None] * (2 * self.slots)
        self._idle.clear()
        for sock in sockets:
            self._senders.close(sock)


def pool_slots(remotes: int, ports: int) -> int:
    """How many source ports each of so many remotes gets: a power of two, at most 64.

    `ports` is how many there are in the range. Each takes a socket, of which there are so many for
    all remotes (see `senders.sockets_max`).
    """
    share = max(1, min(POOL_MAX, ports, sockets_max() // max(1, remotes)))
    return 1 << share.bit_length() - 1
