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
from vtep.io.error_queue import Returned
from vtep.io.sockets import (
    Ancillary,
    Binding,
    OuterHeaderOptions,
    Sockaddr,
    connected_probe,
    pktinfo,
    set_send_buffer,
)

_SEND_BUFFER = 1 << 24
"""Octets. All remotes share it: see `replicate`, whose sockets have as much."""

_TRIES = 4
"""Attempts to send while there are errors of other senders."""

_Look: TypeAlias = tuple[OuterHeaderOptions, bool]
"""How datagrams look, and whether DF is set as the envelope of a frame has it."""


@frozen
class SocketSpec:
    """What a sending socket is to be like.

    Its source port is one of `outer`. It is connected to `address`, unless that is None. `buffer`
    is the size of its send buffer in octets. With `df`, nothing that it sends is fragmented.
    """

    binding: Binding
    outer: OuterHeaderOptions
    address: Sockaddr | None
    buffer: int
    df: bool


class SocketUser(Protocol):
    """The owner of sending sockets, which may be closed to make room for others."""

    def set_aside(self, sock: socket.socket) -> None:
        """Use a socket no more until a frame needs it."""

    def uses(self, sock: socket.socket) -> bool:
        """Return whether a frame has needed a socket since it was set aside."""

    def discard(self, sock: "Sender") -> None:
        """Close a socket, and open another one if a frame needs it."""


class SharedSocket:
    """A receiving socket and all that send from it.

    `binding` is that of the receiving socket. `report` is called for datagrams that came back as
    ICMP errors, of which the sender is not known. `rearm` is called after each error, to have the
    event loop watch the socket again: uvloop stops when epoll reports an error.
    """

    def __init__(
        self,
        sock: socket.socket,
        binding: Binding,
        report: Callable[[Returned], None],
        rearm: Callable[[], None],
    ) -> None:
        self.sock = sock
        self._binding = binding
        self._report = report
        self._rearm = rearm
        self._look: _Look | None = None
        self._senders: dict[SharedSender, SocketUser] = {}
        set_send_buffer(sock, _SEND_BUFFER)

    def can_send_as(self, binding: Binding) -> bool:
        """Return whether the socket can send what a socket with another binding would send."""
        ours = self._binding
        return (
            ours.family == binding.family
            and ours.local in (None, binding.local)
            and ours.dev in (None, binding.dev)
        )

    def sender(self, user: SocketUser, spec: SocketSpec) -> "SharedSender":
        """Return a sender to the address of `spec`, or to any if it has none; raises OSError.

        The sender is used by `user`, which is to discard it when the receiving socket is closed.
        """
        ours, theirs = self._binding, spec.binding
        local = theirs.local if theirs.local != ours.local else None
        dev = theirs.dev if theirs.dev != ours.dev else None
        sender = SharedSender(self, spec, pktinfo(theirs.family, local, dev))
        self._senders[sender] = user
        return sender

    def forget(self, sender: "SharedSender") -> None:
        """Let a sender go, which is not used any more."""
        self._senders.pop(sender, None)

    def use(self, look: _Look) -> None:
        """Have datagrams look like this from now on; raises OSError."""
        if look != self._look:
            outer, df = look
            outer.set_up(self.sock, df=df)
            self._look = look

    def returned(self) -> list[Returned]:
        """Return the datagrams that came back as ICMP errors, and empty the error queue.

        To be called after every error of the socket. While there is something in the queue, the
        event loop finds the socket readable.
        """
        if self._look is None:
            return []
        returned = error_queue.returned(self.sock)
        self._rearm()
        return returned

    def report(self, returned: Iterable[Returned]) -> None:
        """Have datagrams counted that came back, of which the sender is not known."""
        for each in returned:
            self._report(each)

    def close(self) -> None:
        """Send no more, since the receiving socket is about to be closed."""
        for sender, user in tuple(self._senders.items()):
            user.discard(sender)


class SharedSender:
    """Sends from a shared socket, and is used like one that was opened for it.

    `control` are the control messages that each send needs.
    """

    def __init__(self, shared: SharedSocket, spec: SocketSpec, control: Ancillary) -> None:
        self.family = spec.binding.family
        self._shared = shared
        self._binding = spec.binding
        self._look: _Look = (spec.outer, spec.df)
        self._address = spec.address
        self._control = control
        self._came_back: list[Returned] = []

    def prepare(self) -> None:
        """Have the socket's options be those of this sender; raises OSError."""
        self._shared.use(self._look)

    def send(self, data: memoryview) -> int:
        """Send a datagram; as `socket.send`."""
        return self.sendmsg((data,))

    def sendmsg(
        self,
        buffers: Iterable[memoryview],
        ancillary: Ancillary = (),
        flags: int = 0,
        address: Sockaddr | None = None,
    ) -> int:
        """Send datagrams; as `socket.sendmsg`."""
        self._shared.use(self._look)
        sock, where = self._shared.sock, address or self._address
        control = (*ancillary, *self._control)
        for _ in range(_TRIES):
            try:
                return sock.sendmsg(buffers, control, flags, where)
            except BlockingIOError:
                raise
            except OSError as error:
                # Read whatever the reason is: what is in the queue keeps the socket readable.
                self._came_back += self._returned()
                if error.errno not in error_queue.FROM_AFAR or self._came_back:
                    raise
                # It was about the datagram of another sender.
        return sock.sendmsg(buffers, control, flags, where)

    def returned(self) -> list[Returned]:
        """Return the datagrams for the sender's address that came back as ICMP errors."""
        came_back, self._came_back = self._came_back + self._returned(), []
        return came_back

    def _returned(self) -> list[Returned]:
        """The same for those that came back since, and have those of other senders counted."""
        came_back = self._shared.returned()
        if self._address is None:
            return came_back
        host = self._address[0]
        self._shared.report(each for each in came_back if each.host != host)
        return [each for each in came_back if each.host == host]

    def report(self, returned: Iterable[Returned]) -> None:
        """Have datagrams counted that came back, of which the sender is not known."""
        self._shared.report(returned)

    @contextmanager
    def probe(self) -> Iterator[socket.socket]:
        """Provide a socket that is connected to the address; raises OSError."""
        if self._address is None:
            raise RuntimeError("there is no address to connect to")
        with connected_probe(self._binding, self._address) as sock:
            yield sock

    def getsockname(self) -> tuple[str, int]:
        """Return address and port of the receiving socket."""
        host, port, *_ = self._shared.sock.getsockname()
        return host, port

    def fileno(self) -> int:
        """Return the descriptor of the receiving socket."""
        return self._shared.sock.fileno()

    def close(self) -> None:
        """Send no more; the receiving socket stays open."""
        self._shared.forget(self)


Sender: TypeAlias = socket.socket | SharedSender
"""A socket to send from."""


def returned(sender: Sender) -> list[Returned]:
    """Return the datagrams that came back to a sender as ICMP errors."""
    if isinstance(sender, SharedSender):
        return sender.returned()
    return error_queue.returned(sender)


@contextmanager
def connected(sender: Sender) -> Iterator[socket.socket]:
    """Provide a connected socket that sends to where a sender does; raises OSError."""
    if isinstance(sender, SharedSender):
        with sender.probe() as sock:
            yield sock
    else:
        yield sender
