"""A receiving socket that also sends, for source ports on which this process listens.

With `--srcport 4789 4789`, datagrams leave from the port on which they are received. A second
socket on that port would take datagrams away from the receiving one: the kernel delivers each to
the socket that matches it best, and a socket that is connected to the remote matches better. So the
receiving socket itself sends.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from attrs import frozen

from vtep.io import error_queue
from vtep.io.addresses import Sockaddr
from vtep.io.binding import Binding, connected_socket
from vtep.io.error_queue import ReturnedDatagram
from vtep.io.outer_options import ControlMessages, OuterHeaderOptions, pktinfo
from vtep.io.socket_options import set_send_buffer

_SEND_BUFFER = 1 << 24
"""Octets of the send buffer, which all remotes share: as many as the sockets of a `Replicator`."""

_TRIES = 4
"""Attempts to send while the socket reports errors about datagrams of other senders."""

_Options: TypeAlias = tuple[OuterHeaderOptions, bool]
"""The arguments of `OuterHeaderOptions.apply`: the outer header fields, and whether DF is set."""


@frozen
class SocketSpec:
    """The requirements for a sending socket."""

    binding: Binding
    outer: OuterHeaderOptions
    """The outer header fields, among them the range of source ports."""
    address: Sockaddr | None
    """The address to connect to; None to send to any."""
    buffer: int
    """The size of the send buffer in octets."""
    df: bool
    """True if its datagrams must not be fragmented."""


class SocketUser(Protocol):
    """The owner of sending sockets, which may be closed in favour of others."""

    def set_aside(self, sock: socket.socket) -> None:
        """Stop using a socket until a frame needs it."""

    def uses(self, sock: socket.socket) -> bool:
        """Return whether a frame has needed a socket since it was set aside."""

    def discard(self, sock: "SendingSocket") -> None:
        """Close a socket. The next frame that needs one opens another."""


class SharedSocket:
    """A receiving socket, and the senders that send from it.

    Args:
        sock: the receiving socket, which stays the caller's.
        binding: that of the receiving socket.
        report: called for a datagram that an ICMP error returned, and whose sender is not known.
        rearm: called after each error, to make the event loop watch the socket again. uvloop stops
            watching when epoll reports an error.
    """

    def __init__(
        self,
        sock: socket.socket,
        binding: Binding,
        report: Callable[[ReturnedDatagram], None],
        rearm: Callable[[], None],
    ) -> None:
        self.sock = sock
        self._binding = binding
        self._report = report
        self._rearm = rearm
        self._applied: _Options | None = None
        self._senders: dict[SharedSender, SocketUser] = {}
        set_send_buffer(sock, _SEND_BUFFER)

    def can_send_as(self, binding: Binding) -> bool:
        """Return whether it can send the datagrams of a socket with another binding."""
        ours = self._binding
        return (
            ours.family == binding.family
            and ours.local in (None, binding.local)
            and ours.dev in (None, binding.dev)
        )

    def open_sender(self, user: SocketUser, spec: SocketSpec) -> "SharedSender":
        """Return a sender to the address of `spec`, or to any address if that is None.

        It belongs to `user`, which discards it when the receiving socket is closed. Raises:
        OSError.
        """
        ours, theirs = self._binding, spec.binding
        local = theirs.local if theirs.local != ours.local else None
        dev = theirs.dev if theirs.dev != ours.dev else None
        sender = SharedSender(self, spec, pktinfo(theirs.family, local, dev))
        self._senders[sender] = user
        return sender

    def forget(self, sender: "SharedSender") -> None:
        """Remove a sender that is closed."""
        self._senders.pop(sender, None)

    def apply(self, options: _Options) -> None:
        """Set the options of the socket, unless they are set already. Raises: OSError."""
        if options != self._applied:
            outer, df = options
            outer.apply(self.sock, df=df)
            self._applied = options

    def returned_datagrams(self) -> list[ReturnedDatagram]:
        """Return the datagrams that ICMP errors report as lost, and empty the error queue.

        To be called after each error of the socket. An event loop finds the socket readable while
        its error queue is not empty.
        """
        if self._applied is None:  # Nothing was sent.
            return []
        returned = error_queue.returned_datagrams(self.sock)
        self._rearm()
        return returned

    def report(self, returned: Iterable[ReturnedDatagram]) -> None:
        """Report returned datagrams whose sender is not known, so that they are counted."""
        for each in returned:
            self._report(each)

    def close(self) -> None:
        """Close all senders, before the receiving socket is closed."""
        for sender, user in tuple(self._senders.items()):
            user.discard(sender)


class SharedSender:
    """A sender from a shared socket, with the methods of a socket that was opened for it.

    `control` are control messages for each send.
    """

    def __init__(self, shared: SharedSocket, spec: SocketSpec, control: ControlMessages) -> None:
        self.family = spec.binding.family
        self._shared = shared
        self._binding = spec.binding
        self._options: _Options = (spec.outer, spec.df)
        self._address = spec.address
        self._control = control
        self._returned: list[ReturnedDatagram] = []

    def prepare(self) -> None:
        """Set the socket's options to those of this sender. Raises: OSError."""
        self._shared.apply(self._options)

    def send(self, data: memoryview) -> int:
        """Send a datagram, as `socket.send` does."""
        return self.sendmsg((data,))

    def sendmsg(
        self,
        buffers: Iterable[memoryview],
        ancillary: ControlMessages = (),
        flags: int = 0,
        address: Sockaddr | None = None,
    ) -> int:
        """Send datagrams, as `socket.sendmsg` does."""
        self._shared.apply(self._options)
        sock, destination = self._shared.sock, address or self._address
        control = (*ancillary, *self._control)
        for _ in range(_TRIES):
            try:
                return sock.sendmsg(buffers, control, flags, destination)
            except BlockingIOError:
                raise
            except OSError as error:
                # Emptied whatever the error is: an entry in the queue keeps the socket readable.
                self._returned += self._read_returned()
                if error.errno not in error_queue.ICMP_ERRORS or self._returned:
                    raise
                # The error was about a datagram of another sender.
        return sock.sendmsg(buffers, control, flags, destination)

    def returned_datagrams(self) -> list[ReturnedDatagram]:
        """Return the datagrams to the sender's address that ICMP errors report as lost."""
        returned, self._returned = self._returned + self._read_returned(), []
        return returned

    def _read_returned(self) -> list[ReturnedDatagram]:
        """Read the error queue, and report the returned datagrams of other senders."""
        returned = self._shared.returned_datagrams()
        if self._address is None:
            return returned
        host = self._address[0]
        self._shared.report(each for each in returned if each.host != host)
        return [each for each in returned if each.host == host]

    def report(self, returned: Iterable[ReturnedDatagram]) -> None:
        """Report returned datagrams whose sender is not known, so that they are counted."""
        self._shared.report(returned)

    @contextmanager
    def open_connected(self) -> Iterator[socket.socket]:
        """Provide a socket that is connected to the sender's address. Raises: OSError."""
        if self._address is None:
            raise RuntimeError("cannot connect: this sender has no address")
        with connected_socket(self._binding, self._address) as sock:
            yield sock

    def getsockname(self) -> tuple[str, int]:
        """Return address and port of the receiving socket."""
        host, port, *_ = self._shared.sock.getsockname()
        return host, port

    def fileno(self) -> int:
        """Return the descriptor of the receiving socket."""
        return self._shared.sock.fileno()

    def close(self) -> None:
        """Stop sending. The receiving socket stays open."""
        self._shared.forget(self)


SendingSocket: TypeAlias = socket.socket | SharedSender
"""A socket of this process alone to send from, or its share of a receiving socket."""


def returned_datagrams(sender: SendingSocket) -> list[ReturnedDatagram]:
    """Return the datagrams of a sending socket that ICMP errors report as lost."""
    if isinstance(sender, SharedSender):
        return sender.returned_datagrams()
    return error_queue.returned_datagrams(sender)


@contextmanager
def connected(sender: SendingSocket) -> Iterator[socket.socket]:
    """Provide a connected socket with the destination of a sending socket. Raises: OSError."""
    if isinstance(sender, SharedSender):
        with sender.open_connected() as sock:
            yield sock
    else:
        yield sender
