"""Head-end replication: the same datagrams to many remotes, in few system calls.

The array of message headers that sendmmsg takes is built once for a list of remotes.
"""

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from vtep.counters import Drop
from vtep.forwarding.fdb import Remote
from vtep.io import error_queue
from vtep.io.addresses import family_of, sockaddr
from vtep.io.binding import Binding
from vtep.io.error_queue import ReturnedDatagram
from vtep.io.interfaces import FloodDrop, Flooder, FloodResult
from vtep.io.mmsg import MMSGHDR, SOCKADDR_MAX, sendmmsg
from vtep.io.outer_options import OuterHeaderOptions, control_messages
from vtep.io.path import FLOW_BITS, batch_max
from vtep.io.sender_sockets import SenderSockets
from vtep.io.shared_socket import SendingSocket, SharedSender, SocketSpec, returned_datagrams
from vtep.wire import outer_header

_SLOTS = 8
"""Source ports for each family. Flooded frames have few flows."""

_SEND_BUFFER = 1 << 24
"""Octets: room for the frames that the kernel queues for dozens of neighbours that do not answer
(see `_SEND_BUFFER` in `vtep.io.path`)."""

_CONTROL_SPACE = 256

_SOCKADDR_IN_LEN = 16

_MAYBE_EARLIER = error_queue.ICMP_ERRORS | {errno.EAGAIN}
"""Errors of a send that may be about an earlier datagram, if the error queue is not empty."""

_CMSGHDR = struct.Struct("@Nii")


class Replicator:
    """Unconnected sockets that send to any remote, a few for each address family in use.

    `bindings` has one binding for each family. `senders` opens the sockets, and may close those
    that were not used for long. With `gso`, a message may have several datagrams.
    """

    def __init__(
        self,
        bindings: Iterable[Binding],
        outer: OuterHeaderOptions,
        senders: SenderSockets,
        *,
        gso: bool,
    ) -> None:
        self._bindings = {int(binding.family): binding for binding in bindings}
        self._outer = outer
        self._senders = senders
        self.gso = gso and all(outer.has_checksum(each.family) for each in self._bindings.values())
        """True if a message may have several datagrams; cleared when the kernel refuses it."""
        self._sockets: dict[tuple[int, int, int], SendingSocket] = {}
        # Open sockets that no frame has needed since they were set aside.
        self._idle: dict[tuple[int, int, int], SendingSocket] = {}

    def prepare(self, remotes: Sequence[Remote]) -> "Recipients":
        """Prepare to send to remotes. Raises: OSError if the device of a scope id is absent."""
        return Recipients(self, remotes, self._outer.flowlabel)

    def socket_for(self, family: int, flow: int, df: int) -> SendingSocket:
        """Return the socket for a flow, with or without DF. Raises: OSError."""
        key = (family, flow & _SLOTS - 1, df)
        sock = self._sockets.get(key)
        if sock is None:
            sock = self._idle.pop(key, None) or self._open(family, df=df != 0)
            self._sockets[key] = sock
        return sock

    def _open(self, family: int, *, df: bool) -> SendingSocket:
        spec = SocketSpec(self._bindings[family], self._outer, None, _SEND_BUFFER, df)
        return self._senders.open(self, spec, time.monotonic())

    def set_aside(self, sock: socket.socket) -> None:
        """Stop using a socket until a frame needs it."""
        for key, other in tuple(self._sockets.items()):
            if other is sock:
                del self._sockets[key]
                self._idle[key] = sock

    def uses(self, sock: socket.socket) -> bool:
        """Return whether a frame has needed a socket since it was set aside."""
        return any(other is sock for other in self._sockets.values())

    def discard(self, sock: SendingSocket) -> None:
        """Close a socket. The next frame that needs one opens another."""
        for sockets in (self._sockets, self._idle):
            for key, other in tuple(sockets.items()):
                if other is sock:
                    del sockets[key]
        self._senders.close(sock)

    def close(self) -> None:
        """Close all sockets. The next send opens new ones."""
        sockets = [*self._sockets.values(), *self._idle.values()]
        self._sockets.clear()
        self._idle.clear()
        for sock in sockets:
            self._senders.close(sock)


class Recipients:
    """Remotes prepared for sendmmsg: the message headers, and the addresses that they point to."""

    def __init__(self, replicator: Replicator, remotes: Sequence[Remote], flowlabel: int) -> None:
        self.remotes: Final = tuple(sorted(remotes, key=lambda remote: ":" in remote.host))
        """The remotes in the order of the messages: those with IPv4 first."""
        self._replicator = replicator
        self._by_host = {remote.host.partition("%")[0]: remote for remote in remotes}
        names = b"".join(
            _sockaddr(remote, flowlabel).ljust(SOCKADDR_MAX, b"\0") for remote in self.remotes
        )
        # The headers have pointers into these arrays, so those must live as long.
        self._names = np.frombuffer(names, np.uint8)
        # All messages have the same payload and control messages, so one iovec serves them all.
        self._payload = np.zeros(2, np.uintp)
        self._control = np.zeros(_CONTROL_SPACE, np.uint8)
        self._written_control = b""
        self._v4 = sum(":" not in remote.host for remote in remotes)
        messages = np.zeros(len(self.remotes), MMSGHDR)
        self._headers = headers = messages["header"]
        headers["name"] = self._names.ctypes.data + SOCKADDR_MAX * np.arange(len(messages))
        headers["namelen"] = SOCKADDR_MAX
        headers["namelen"][: self._v4] = _SOCKADDR_IN_LEN
        headers["iov"] = self._payload.ctypes.data
        headers["iovlen"] = 1
        headers["control"] = self._control.ctypes.data
        self._address = messages.ctypes.data

    def send(self, datagrams: memoryview, stride: int, flow: int, skip: int = 0) -> FloodResult:
        """Send as many datagrams as one message takes to all remotes but the first `skip`.

        See `FloodGroup.send`.
        """
        replicator = self._replicator
        fields = flow >> FLOW_BITS
        octets = min(len(datagrams), batch_max(stride) if replicator.gso else stride)
        batch = datagrams[:octets]
        count = -(-octets // stride)
        drops: list[FloodDrop] = []
        sent = 0
        total = len(self.remotes)
        payload = np.frombuffer(batch, np.uint8)
        while skip < total:
            # One call for each family, since a family has sockets of its own.
            family, end = socket.AF_INET6, total
            if skip < self._v4:
                family, end = socket.AF_INET, self._v4
            try:
                sock = replicator.socket_for(family, flow, fields & outer_header.DF)
                if isinstance(sock, SharedSender):
                    sock.prepare()
            except OSError as error:
                reason = error_queue.drop_reason(error.errno)
                drops += (FloodDrop(remote, reason, count) for remote in self.remotes[skip:end])
                skip = end
                continue
            control = _pack_control(family, fields, stride if count > 1 else 0)
            self._set_payload(payload.ctypes.data, octets, control)
            first = self._address + skip * MMSGHDR.itemsize
            done = sendmmsg(sock.fileno(), first, end - skip, 0)
            number = ctypes.get_errno()
            if done > 0:
                sent += done * count
                skip += done
                if skip == end:
                    continue
            # It failed at the message `skip`, or because of an earlier datagram.
            returned = self._read_returned(sock)
            drops += self._own_drops(returned)
            if done > 0 or (returned and number in _MAYBE_EARLIER):
                continue
            if number == errno.EAGAIN:
                return FloodResult(0, skip, sent, drops, sock.fileno())
            remote = self.remotes[skip]
            skip += 1
            if count > 1 and number in error_queue.GSO_REFUSALS:
                passed = self._send_unsegmented(sock, batch, stride, remote, fields, drops)
                sent += passed
                # Segments may be too large for the path to one remote. All else is about all.
                replicator.gso = replicator.gso and (number == errno.EMSGSIZE or not passed)
            else:
                drops.append(FloodDrop(remote, error_queue.drop_reason(number), count))
        return FloodResult(octets, total, sent, drops, -1)

    def _set_payload(self, address: int, octets: int, control: bytes) -> None:
        """Point all messages to a payload and to control messages."""
        self._payload[0] = address
        self._payload[1] = octets
        if control != self._written_control:
            self._written_control = control
            self._control[: len(control)] = np.frombuffer(control, np.uint8)
            self._headers["controllen"] = len(control)

    def _send_unsegmented(
        self,
        sock: SendingSocket,
        batch: memoryview,
        stride: int,
        remote: Remote,
        fields: int,
        drops: list[FloodDrop],
    ) -> int:
        """Send datagrams one by one to a remote towards which the kernel refuses UDP_SEGMENT.

        Returns: how many were sent.
        Side effects: adds the others to `drops`, also those for which the send buffer is full. That
        is rare enough not to wait for.
        """
        passed = 0
        address = sockaddr(remote.host, remote.port)
        for at in range(0, len(batch), stride):
            try:
                sock.sendmsg(
                    (batch[at : at + stride],),
                    control_messages(sock.family, fields, 0),
                    0,
                    address,
                )
            except BlockingIOError:
                drops.append(FloodDrop(remote, Drop.UNDERLAY_FULL, 1))
            except OSError as error:
                drops += self._own_drops(self._read_returned(sock))
                drops.append(FloodDrop(remote, error_queue.drop_reason(error.errno), 1))
            else:
                passed += 1
        return passed

    def _read_returned(self, sender: SendingSocket) -> list[ReturnedDatagram]:
        """Return the returned datagrams, and report those to other remotes of a shared socket."""
        returned = returned_datagrams(sender)
        if isinstance(sender, SharedSender):
            sender.report(each for each in returned if each.host not in self._by_host)
        return returned

    def _own_drops(self, returned: Iterable[ReturnedDatagram]) -> list[FloodDrop]:
        """Return the drops of those returned datagrams that were sent to these remotes."""
        found = ((self._by_host.get(host), reason) for host, reason in returned)
        return [
            FloodDrop(remote, reason, 1, is_earlier=True)
            for remote, reason in found
            if remote is not None
        ]


def _sockaddr(remote: Remote, flowlabel: int) -> bytes:
    """Return the address of a remote as a struct sockaddr_in or sockaddr_in6. Raises: OSError."""
    host, port, *more = sockaddr(remote.host, remote.port, flowlabel)
    packed = socket.inet_pton(family_of(remote.host), host)
    if not more:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, packed)
    head = struct.pack("!HI16s", port, more[0], packed)
    return struct.pack("=H", socket.AF_INET6) + head + struct.pack("=I", more[1])


def _pack_control(family: socket.AddressFamily, fields: int, segment_size: int) -> bytes:
    """Return control messages as the kernel reads them (struct cmsghdr in <sys/socket.h>)."""
    if not fields and not segment_size:
        return b""
    return b"".join(
        (_CMSGHDR.pack(socket.CMSG_LEN(len(data)), level, kind) + data).ljust(
            socket.CMSG_SPACE(len(data)), b"\0"
        )
        for level, kind, data in control_messages(family, fields, segment_size)
    )


if TYPE_CHECKING:

    def _is_flooder(replicator: Replicator) -> Flooder:
        return replicator
