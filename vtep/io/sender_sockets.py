"""The sending sockets of a process: how they are opened, and how many there may be."""

import errno
import logging
import random
import resource
import socket
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from itertools import chain

from vtep import descriptors
from vtep.errors import VtepError
from vtep.io import socket_constants as const
from vtep.io.binding import Binding
from vtep.io.shared_socket import (
    SendingSocket,
    SharedSender,
    SharedSocket,
    SocketSpec,
    SocketUser,
)
from vtep.io.socket_filter import DISCARD_ALL, attach_program
from vtep.io.socket_options import set_send_buffer
from vtep.ratelimit import LineLimit

log = logging.getLogger("vtep")

_SOCKETS_MAX = 8192
"""Half the ports of the default --srcport range: the other half is left to the host."""

_ASIDE_DIVISOR = 4
"""One of so many sockets is set aside, once there are many."""

_SET_ASIDE_PER_OPEN = 2
"""Sockets set aside when one is opened: more than one, so that the share is reached soon."""

_EVICTION_CHECKS = 64
"""Sockets that are checked before one is closed even if it is in use: bounds the time it takes."""

_EXHAUSTED_S = 1.0
"""Seconds before a range of source ports without a free port is tried again."""

_ERROR_BUFFER = 1 << 17
"""Octets of the receive buffer, which holds queued ICMP errors with up to 1280 octets of the packet
each."""

_PORT_UNAVAILABLE = frozenset((errno.EADDRINUSE, errno.EACCES))


def sockets_max() -> int:
    """Return how many sending sockets this process may have, at most half of its descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return _SOCKETS_MAX
    return max(1, min(_SOCKETS_MAX, limit // 2))


class SenderSockets:
    """Opens the sending sockets of a process, and closes the least recently used of too many.

    Use is detected without work per frame (the clock algorithm of page replacement). From half of
    the limit on, sockets are set aside in turn, and the next frame for one takes it back. A socket
    that no frame took back by the time it is next to be closed is closed.

    `closing` is called with each descriptor just before the socket is closed, or its sender is, for
    callers that wait until it is writable.
    """

    def __init__(self, closing: Callable[[int], None] = lambda _fd: None) -> None:
        self.find_shared: Callable[[Binding, int], SharedSocket | None] = lambda _binding, _port: (
            None
        )
        """Returns the receiving socket of this process that sends from a port, if there is one."""
        self.network_changes = 0
        """The number of changes of links, addresses and routes. After another one, an open that
        failed may succeed."""
        self.link_changes = 0
        """The number of those that are about links, whose indices may have changed."""
        self._closing = closing
        # The user and the port of each socket; the next one to be checked comes first.
        self._active: OrderedDict[socket.socket, tuple[SocketUser, int]] = OrderedDict()
        self._aside: OrderedDict[socket.socket, tuple[SocketUser, int]] = OrderedDict()
        self._exhausted_until: dict[tuple[Binding, range], float] = {}
        self._lines = LineLimit()

    @property
    def is_full(self) -> bool:
        """True if no socket can be opened without closing another one."""
        return len(self) >= sockets_max()

    def __len__(self) -> int:
        """Return the number of sockets."""
        return len(self._active) + len(self._aside)

    def open(
        self,
        user: SocketUser,
        spec: SocketSpec,
        now: float,
        *,
        used: Container[int] = (),
        evict: bool = True,
    ) -> SendingSocket:
        """Open a socket for `user`.

        Args:
            user: the owner, which discards the socket on request.
            spec: the requirements.
            now: seconds of the monotonic clock.
            used: source ports to avoid as long as the range has others.
            evict: whether to close another socket if the process has no descriptor left.

        Raises: OSError.
        Side effects: closes another socket if there are too many.
        """
        while self.is_full:
            self._evict()
        try:
            sender = self._bind(user, spec, now, used)
        except OSError as error:
            if not (evict and len(self) and descriptors.is_out_of_descriptors(error)):
                raise
            self._evict()
            sender = self._bind(user, spec, now, used)
        if isinstance(sender, SharedSender):
            return sender
        try:
            # Datagrams to such a port are never read; only the error queue is. They must not fill
            # the receive buffer, which the error queue shares.
            attach_program(sender, const.SO_ATTACH_FILTER, DISCARD_ALL)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ERROR_BUFFER)
            set_send_buffer(sender, spec.buffer)
            spec.outer.apply(sender, df=spec.df)
            port: int = sender.getsockname()[1]
            if spec.address is not None:
                sender.connect(spec.address)
        except OSError:
            sender.close()
            raise
        self._active[sender] = user, port
        if 2 * len(self) > sockets_max():
            for _ in range(_SET_ASIDE_PER_OPEN):
                if len(self._aside) < len(self) // _ASIDE_DIVISOR:
                    self._set_next_aside()
        return sender

    def close(self, sender: SendingSocket) -> None:
        """Close a socket that was opened here."""
        if isinstance(sender, socket.socket):
            self._active.pop(sender, None)
            self._aside.pop(sender, None)
        self._closing(sender.fileno())
        sender.close()

    def vacate(self, family: int, port: int) -> None:
        """Close all sockets on a port, so that this process can listen on it."""
        for sock, (user, bound_port) in (*self._active.items(), *self._aside.items()):
            if bound_port == port and sock.family == family:
                user.discard(sock)

    def check(self, binding: Binding, ports: range) -> None:
        """Raise VtepError if this process can send from none of these ports."""
        try:
            with binding.open_unbound() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._find_port(sock, binding, ports, ())
        except OSError as error:
            if error.errno in _PORT_UNAVAILABLE:
                raise VtepError(f"--srcport {_option_text(ports)}: {error.strerror}") from error

    def _set_next_aside(self) -> None:
        """Set the next active socket aside, if there is one."""
        if self._active:
            sock, (user, port) = self._active.popitem(last=False)
            user.set_aside(sock)
            self._aside[sock] = user, port

    def _evict(self) -> None:
        """Close a socket that was set aside and that no frame took back."""
        for _ in range(_EVICTION_CHECKS):
            if not self._aside:
                self._set_next_aside()
            sock, (user, port) = next(iter(self._aside.items()))
            if not user.uses(sock):
                break
            del self._aside[sock]
            self._active[sock] = user, port
            self._set_next_aside()
        user.discard(sock)

    def _bind(
        self, user: SocketUser, spec: SocketSpec, now: float, used: Container[int]
    ) -> SendingSocket:
        """Open a socket on a source port, or share the one that listens there. Raises: OSError."""
        binding, ports = spec.binding, spec.outer.srcport
        key = binding, ports
        exhausted_until = self._exhausted_until.get(key)
        if exhausted_until is not None and now < exhausted_until:
            raise OSError(errno.EADDRINUSE, "no source port, and not tried again yet")
        sock = binding.open_unbound()
        try:
            # Remotes share ports, since the range may have fewer ports than there are remotes.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            shared = self._find_port(sock, binding, ports, used)
            if shared is not None:
                sock.close()
                return shared.open_sender(user, spec)
        except OSError as error:
            sock.close()
            if error.errno not in _PORT_UNAVAILABLE:
                raise
            if exhausted_until is None:
                self._log("cannot send: --srcport %s: %s", now, ports, error.strerror)
            self._exhausted_until[key] = now + _EXHAUSTED_S
            raise OSError(errno.EADDRINUSE, "no source port") from error
        if exhausted_until is not None:
            del self._exhausted_until[key]
            self._log("--srcport %s: a port is free again", now, ports)
        return sock

    def _log(self, line: str, now: float, ports: range, *more: object) -> None:
        """Log a line about a range of ports. With new flows, it may lack ports again and again."""
        left_out = self._lines.admit(now, (line, ports))
        if left_out is not None:
            log.warning(f"{line}%s", _option_text(ports), *more, left_out)

    def _find_port(
        self, sock: socket.socket, binding: Binding, ports: range, used: Container[int]
    ) -> SharedSocket | None:
        """Bind a socket to one of the ports.

        Returns: the receiving socket that listens on the port and can send from it, in place of the
        bind; None if the socket was bound.
        Raises: OSError, with EADDRINUSE or EACCES if no port is available.
        """
        taken = False
        for port in _in_random_order(ports, used):
            shared = self.find_shared(binding, port)
            if shared is not None:
                return shared
            try:
                sock.bind(binding.sockaddr(port))
            except OSError as error:
                if error.errno not in _PORT_UNAVAILABLE:
                    raise
                taken = taken or error.errno == errno.EADDRINUSE
            else:
                return None
        if taken:
            raise OSError(
                errno.EADDRINUSE,
                "every UDP port of this range is taken on this host (see: ss -uanp); give a "
                "larger range, or another one",
            )
        raise OSError(
            errno.EACCES,
            "no privilege to bind to a UDP port of this range: run as root, or give ports from "
            "1024 on",
        )


def _in_random_order(ports: range, used: Container[int]) -> Iterator[int]:
    """Yield all ports, beginning at a random one; those in `used` come last."""
    start = random.randrange(len(ports))  # noqa: S311  no secret
    rotated = (ports[start:], ports[:start])
    yield from (port for port in chain(*rotated) if port not in used)
    yield from (port for port in chain(*rotated) if port in used)


def _option_text(ports: range) -> str:
    """Return a range of ports as --srcport takes it."""
    return f"{ports[0]} {ports[-1]}"
