"""Head-end replication: the same datagrams to many remotes, in as few system calls as it takes.

The standard library has no sendmmsg, so it is called in the C library. What it wants to be told of
the remotes is written down once, for as long as they stay the same.
"""

import ctypes
import errno
import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vtep.counters import Drop
from vtep.forwarding.fdb import Remote
from vtep.io import error_queue
from vtep.io.path import FLOW_BITS, batch_max
from vtep.io.sender_sockets import SenderSockets
from vtep.io.shared_socket import Sender, SharedSender, SocketSpec, returned
from vtep.io.sockets import Binding, OuterHeaderOptions, ancillary, family_of, sockaddr
from vtep.wire import outer_header

_SLOTS = 8
"""Source ports for each family: what is flooded has few flows."""

_SEND_BUFFER = 1 << 24
"""Octets: room for what the kernel holds back (see `path`) for some dozens of dead neighbours."""

_CONTROL_SPACE = 256

_MMSGHDR = np.dtype(
    [
        ("name", np.uintp),
        ("namelen", np.uint32),
        ("iov", np.uintp),
        ("iovlen", np.uintp),
        ("control", np.uintp),
        ("controllen", np.uintp),
        ("flags", np.int32),
        ("len", np.uintp),
    ],
    align=True,
)
"""struct mmsghdr: a struct msghdr (<sys/socket.h>) and how much of it was sent."""

_NAME_SPACE = 28
"""Octets of a struct sockaddr_in6, the larger one."""

_PERHAPS_EARLIER = error_queue.FROM_AFAR | {errno.EAGAIN}

_CMSGHDR = struct.Struct("@Nii")

_sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)


class Lost(NamedTuple):
    """Datagrams of this send, or an earlier one, that did not reach a remote."""

    remote: Remote
    reason: Drop
    datagrams: int


class Sent(NamedTuple):
    """What became of a send.

    `octets` are done with; 0 if there was no room for all recipients, of whom `reached` have been
    served then, and `blocked` is the descriptor to wait for. `datagrams` is how many have left,
    copies counted.
    """

    octets: int
    reached: int
    datagrams: int
    lost: Sequence[Lost]
    blocked: int


class Recipients:
    """Remotes as sendmmsg wants them, and in the order in which it is given them."""

    def __init__(self, remotes: Sequence[Remote], flowlabel: int) -> None:
        self.remotes = tuple(sorted(remotes, key=lambda remote: ":" in remote.host))
        """Those of one family together."""
        self._by_host = {remote.host.partition("%")[0]: remote for remote in remotes}
        names = b"".join(
            _name(remote, flowlabel).ljust(_NAME_SPACE, b"\0") for remote in self.remotes
        )
        self._names = np.frombuffer(names, np.uint8)
        # All messages have the same payload and control messages, so these are there once.
        self._payload = np.zeros(2, np.uintp)
        self._control = np.zeros(_CONTROL_SPACE, np.uint8)
        self._controlled = b""
        self.v4 = sum(":" not in remote.host for remote in remotes)
        """How many have IPv4; they are the first."""
        self.messages = messages = np.zeros(len(self.remotes), _MMSGHDR)
        messages["name"] = self._names.ctypes.data + _NAME_SPACE * np.arange(len(messages))
        messages["namelen"] = _NAME_SPACE
        messages["namelen"][: self.v4] = 16
        messages["iov"] = self._payload.ctypes.data
        messages["iovlen"] = 1
        messages["control"] = self._control.ctypes.data
        self.address = messages.ctypes.data

    def __len__(self) -> int:
        return len(self.remotes)

    def carry(self, address: int, octets: int, control: bytes) -> None:
        """Let all messages have this payload and these control messages."""
        self._payload[0] = address
        self._payload[1] = octets
        if control != self._controlled:
            self._controlled = control
            self._control[: len(control)] = np.frombuffer(control, np.uint8)
            self.messages["controllen"] = len(control)

    def losses(self, news: Iterable[error_queue.Returned]) -> list[Lost]:
        """Datagrams that came back, by the remotes for which they were."""
        found = ((self._by_host.get(host), reason) for host, reason in news)
        return [Lost(remote, reason, 1) for remote, reason in found if remote is not None]

    def others(self, news: Iterable[error_queue.Returned]) -> list[error_queue.Returned]:
        """Datagrams that came back, and were for other remotes."""
        return [each for each in news if each.host not in self._by_host]


def _name(remote: Remote, flowlabel: int) -> bytes:
    """The remote as a struct sockaddr_in or sockaddr_in6; raises OSError."""
    host, port, *more = sockaddr(remote.host, remote.port, flowlabel)
    packed = socket.inet_pton(family_of(remote.host), host)
    if not more:
        return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, packed)
    head = struct.pack("!HI16s", port, more[0], packed)
    return struct.pack("=H", socket.AF_INET6) + head + struct.pack("=I", more[1])


class Replicator:
    """Sockets that send to anybody, a few for each family; there is a binding for each in use.

    `gso` says whether several datagrams may go in one message. `senders` opens the sockets, and may
    close those that have not been used for long.
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
        self._gso = gso and all(outer.has_checksum(each.family) for each in self._bindings.values())
        self._sockets: dict[tuple[int, int, int], Sender] = {}
        # Open sockets that no frame has used since they were set aside.
        self._idle: dict[tuple[int, int, int], Sender] = {}

    def recipients(self, remotes: Sequence[Remote]) -> Recipients:
        """Prepare to send to remotes; raises OSError where one is on a device that there is not."""
        return Recipients(remotes, self._outer.flowlabel)

    def send(
        self,
        datagrams: memoryview,
        stride: int,
        recipients: Recipients,
        flow: int,
        skip: int = 0,
    ) -> Sent:
        """Send as many datagrams as one message takes to all recipients but the first `skip`.

        `datagrams` and `flow` are as in `Path.send`. Where there was no room for all, the call is
        to be repeated with `skip` set to how many were reached. So every remote gets everything in
        order.
        """
        envelope = flow >> FLOW_BITS
        octets = min(len(datagrams), batch_max(stride) if self._gso else stride)
        batch = datagrams[:octets]
        count = -(-octets // stride)
        lost: list[Lost] = []
        left = 0
        total = len(recipients)
        payload = np.frombuffer(batch, np.uint8)
        while skip < total:
            family, end = socket.AF_INET6, total
            if skip < recipients.v4:
                family, end = socket.AF_INET, recipients.v4
            try:
                sock = self._socket(family, flow, envelope & outer_header.DF)
                if isinstance(sock, SharedSender):
                    sock.prepare()
            except OSError as error:
                reason = error_queue.reason(error.errno)
                lost += (Lost(remote, reason, count) for remote in recipients.remotes[skip:end])
                skip = end
                continue
            control = _control(family, envelope, stride if count > 1 else 0)
            recipients.carry(payload.ctypes.data, octets, control)
            at = recipients.address + skip * _MMSGHDR.itemsize
            done = _sendmmsg(sock.fileno(), at, end - skip, 0)
            number = ctypes.get_errno()
            if done > 0:
                left += done * count
                skip += done
                if skip == end:
                    continue
            # It stopped at a message, or because of an earlier one.
            news = _returned(sock, recipients)
            lost += recipients.losses(news)
            if done > 0 or (news and number in _PERHAPS_EARLIER):
                continue
            if number == errno.EAGAIN:
                return Sent(0, skip, left, lost, sock.fileno())
            remote = recipients.remotes[skip]
            skip += 1
            if count > 1 and number in error_queue.GSO_REFUSALS:
                passed = self._one_by_one(
                    *(sock, batch, stride, recipients, remote, envelope, lost)
                )
                left += passed
                # Segments that are too big are so for one remote; all else is for all of them.
                self._gso = self._gso and (number == errno.EMSGSIZE or not passed)
            else:
                lost.append(Lost(remote, error_queue.reason(number), count))
        return Sent(octets, total, left, lost, -1)

    def _one_by_one(
        self,
        sock: Sender,
        batch: memoryview,
        stride: int,
        recipients: Recipients,
        remote: Remote,
        envelope: int,
        lost: list[Lost],
    ) -> int:
        """Send datagrams to a remote towards which the kernel does not segment; how many left.

        What finds no room here is lost: it is a corner of a corner.
        """
        passed = 0
        address = sockaddr(remote.host, remote.port)
        for at in range(0, len(batch), stride):
            try:
                sock.sendmsg(
                    (batch[at : at + stride],), ancillary(sock.family, envelope, 0), 0, address
                )
            except BlockingIOError:
                lost.append(Lost(remote, Drop.UNDERLAY_FULL, 1))
            except OSError as error:
                lost += recipients.losses(_returned(sock, recipients))
                lost.append(Lost(remote, error_queue.reason(error.errno), 1))
            else:
                passed += 1
        return passed

    def _socket(self, family: int, flow: int, df: int) -> Sender:
        key = (family, flow & _SLOTS - 1, df)
        sock = self._sockets.get(key)
        if sock is None:
            sock = self._idle.pop(key, None) or self._open(family, df=df != 0)
            self._sockets[key] = sock
        return sock

    def _open(self, family: int, *, df: bool) -> Sender:
        spec = SocketSpec(self._bindings[family], self._outer, None, _SEND_BUFFER, df)
        return self._senders.open(self, spec, time.monotonic())

    def set_aside(self, sock: socket.socket) -> None:
        """Use a socket no more until a frame needs it."""
        for key, other in tuple(self._sockets.items()):
            if other is sock:
                del self._sockets[key]
                self._idle[key] = sock

    def uses(self, sock: socket.socket) -> bool:
        """Return whether a frame has needed a socket since it was set aside."""
        return any(other is sock for other in self._sockets.values())

    def discard(self, sock: Sender) -> None:
        """Close a socket, and open another one if a frame needs it."""
        for sockets in (self._sockets, self._idle):
            for key, other in tuple(sockets.items()):
                if other is sock:
                    del sockets[key]
        self._senders.close(sock)

    def close(self) -> None:
        """Close all sockets; they are opened anew if there is more to send."""
        sockets = [*self._sockets.values(), *self._idle.values()]
        self._sockets.clear()
        self._idle.clear()
        for sock in sockets:
            self._senders.close(sock)


def _returned(sender: Sender, recipients: Recipients) -> list[error_queue.Returned]:
    """Return the datagrams that came back, and have those counted that others have sent."""
    news = returned(sender)
    if isinstance(sender, SharedSender):
        sender.report(recipients.others(news))
    return news


def _control(family: int, envelope: int, segment_size: int) -> bytes:
    """Control messages as the kernel reads them."""
    if not envelope and not segment_size:
        return b""
    return b"".join(
        (_CMSGHDR.pack(socket.CMSG_LEN(len(data)), level, kind) + data).ljust(
            socket.CMSG_SPACE(len(data)), b"\0"
        )
        for level, kind, data in ancillary(family, envelope, segment_size)
    )
