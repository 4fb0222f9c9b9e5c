"""The sending sockets of a process: how they are opened, and how many there may be."""

import ctypes
import errno
import logging
import random
import resource
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
from itertools import chain

from vtep.errors import VtepError
from vtep.io.shared_socket import Sender, SharedSender, SharedSocket, SocketSpec, SocketUser
from vtep.io.sockets import Binding, set_send_buffer

log = logging.getLogger("vtep")

_SOCKETS_MAX = 8192
"""As many as half of the default --srcport range has ports: the other half is left to the host."""

_PART_ASIDE = 4
"""Of so many sockets, one is set aside, once there are many."""

_SET_ASIDE_AT_ONCE = 2
"""Sockets that are set aside when one is opened: more than one, so that there soon are enough."""

_CHANCES = 64
"""Sockets that are looked at before one of them is closed. Else a long list would take long."""

_EXHAUSTED_FOR = 1.0
"""Seconds before a range of source ports is tried again in which there was no free port."""

_ERROR_BUFFER = 1 << 17
"""Octets for ICMP errors that wait to be read, each with up to 1280 octets of the packet."""

_SHORT_OF_DESCRIPTORS = frozenset((errno.EMFILE, errno.ENFILE))
_NOT_THIS_PORT = frozenset((errno.EADDRINUSE, errno.EACCES))

_SO_ATTACH_FILTER = 26

# A struct sock_filter (linux/filter.h) that returns 0, and the struct sock_fprog that has it.
_RETURN_0 = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
_DISCARD_ALL = struct.pack("@HP", 1, ctypes.addressof(_RETURN_0))


def sockets_max() -> int:
    """Return how many sending sockets this process may have, at most half of its descriptors."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return _SOCKETS_MAX
    return max(1, min(_SOCKETS_MAX, descriptors // 2))


def is_short_of_descriptors(error: OSError) -> bool:
    """Return whether a socket could not be opened for want of a descriptor."""
    return error.errno in _SHORT_OF_DESCRIPTORS


class SenderSockets:
    """Opens the sending sockets of a process, and closes the least recently used of too many.

    Which ones are used is found out without any work for a frame that is sent. Sockets are set
    aside in turn, as soon as half of the limit is reached. The next frame for one takes it back. If
    there is none until its turn has come to be closed, it is closed.

    `closing` is called with each descriptor just before the socket is closed, or not shared any
    more, for callers that wait until it is writable.
    """

    def __init__(self, closing: Callable[[int], None] = lambda _fd: None) -> None:
        self.receiver: Callable[[Binding, int], SharedSocket | None] = lambda _binding, _port: None
        """Returns the receiving socket of this process that sends from a port, if there is one."""
        self.network_changes = 0
        """Counts what the kernel told of links, addresses and routes. What failed before may
        succeed after one more."""
        self.link_changes = 0
        """Counts those of them that are about links, whose indices may be others now."""
        self._closing = closing
        # By socket, who uses it and its port; those first that are to be looked at next.
        self._active: OrderedDict[socket.socket, tuple[SocketUser, int]] = OrderedDict()
        self._aside: OrderedDict[socket.socket, tuple[SocketUser, int]] = OrderedDict()
        self._exhausted_until: dict[tuple[Binding, range], float] = {}

    @property
    def is_full(self) -> bool:
        """Whether no socket can be opened without closing another one."""
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
    ) -> Sender:
        """Open a socket for `user`, on none of the ports `used` if there is another one.

        `now` is in seconds of the monotonic clock.

        Side effects: closes another socket if there are too many, or, with `evict`, if the process
        has no descriptor left. Raises OSError.
        """
        while self.is_full:
            self._evict()
        try:
            sender = self._bind(user, spec, now, used)
        except OSError as error:
            if not (evict and len(self) and is_short_of_descriptors(error)):
                raise
            self._evict()
            sender = self._bind(user, spec, now, used)
        if isinstance(sender, SharedSender):
            return sender
        try:
            # What a peer sends to such a port is not read; only ICMP errors are.
            sender.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _DISCARD_ALL)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ERROR_BUFFER)
            set_send_buffer(sender, spec.buffer)
            spec.outer.set_up(sender, df=spec.df)
            port: int = sender.getsockname()[1]
            if spec.address is not None:
                sender.connect(spec.address)
        except OSError:
            sender.close()
            raise
        self._active[sender] = user, port
        if 2 * len(self) > sockets_max():
            for _ in range(_SET_ASIDE_AT_ONCE):
                if len(self._aside) < len(self) // _PART_ASIDE:
                    self._set_aside()
        return sender

    def close(self, sender: Sender) -> None:
        """Close a socket that was opened here."""
        if isinstance(sender, socket.socket):
            self._active.pop(sender, None)
            self._aside.pop(sender, None)
        self._closing(sender.fileno())
        sender.close()

    def vacate(self, family: int, port: int) -> None:
        """Close all sockets on a port, on which this process is going to listen."""
        for sock, (user, its_port) in (*self._active.items(), *self._aside.items()):
            if its_port == port and sock.family == family:
                user.discard(sock)

    def check(self, binding: Binding, ports: range) -> None:
        """Raise VtepError if this process can send from none of these ports."""
        try:
            with binding.unbound() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._find_port(sock, binding, ports, ())
        except OSError as error:
            if error.errno in _NOT_THIS_PORT:
                raise VtepError(f"--srcport {_says(ports)}: {error.strerror}") from error

    def _set_aside(self) -> None:
        """Set the next socket aside, if there is one."""
        if self._active:
            sock, (user, port) = self._active.popitem(last=False)
            user.set_aside(sock)
            self._aside[sock] = user, port

    def _evict(self) -> None:
        """Close a socket that has not been used for long."""
        for _ in range(_CHANCES):
            if not self._aside:
                self._set_aside()
            sock, (user, port) = next(iter(self._aside.items()))
            if not user.uses(sock):
                break
            del self._aside[sock]
            self._active[sock] = user, port
            self._set_aside()
        user.discard(sock)

    def _bind(self, user: SocketUser, spec: SocketSpec, now: float, used: Container[int]) -> Sender:
        """Open a socket on a source port, or share the one that listens there; raises OSError."""
        binding, ports = spec.binding, spec.outer.srcport
        key = binding, ports
        exhausted_until = self._exhausted_until.get(key)
        if exhausted_until is not None and now < exhausted_until:
            raise OSError(errno.EADDRINUSE, "no source port, and not tried again yet")
        sock = binding.unbound()
        try:
            # Shared among remotes, since the range may have fewer ports than there are of them.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            shared = self._find_port(sock, binding, ports, used)
            if shared is not None:
                sock.close()
                return shared.sender(user, spec)
        except OSError as error:
            sock.close()
            if error.errno not in _NOT_THIS_PORT:
                raise
            if exhausted_until is None:
                log.warning("nothing can be sent: --srcport %s: %s", _says(ports), error.strerror)
            self._exhausted_until[key] = now + _EXHAUSTED_FOR
            raise OSError(errno.EADDRINUSE, "no source port") from error
        if exhausted_until is not None:
            del self._exhausted_until[key]
            log.warning("--srcport %s: there is a free port again", _says(ports))
        return sock

    def _find_port(
        self, sock: socket.socket, binding: Binding, ports: range, used: Container[int]
    ) -> SharedSocket | None:
        """Bind a socket to one of the ports; or return one that listens on it, which can send.

        Raises OSError, with EADDRINUSE or EACCES if there is no port.
        """
        taken = False
        for port in _in_random_order(ports, used):
            shared = self.receiver(binding, port)
            if shared is not None:
                return shared
            try:
                sock.bind(binding.sockaddr(port))
            except OSError as error:
                if error.errno not in _NOT_THIS_PORT:
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
    """Yield all ports, from a random one on, and those that are used already last."""
    start = random.randrange(len(ports))  # noqa: S311  no secret
    turned = (ports[start:], ports[:start])
    yield from (port for port in chain(*turned) if port not in used)
    yield from (port for port in chain(*turned) if port in used)


def _says(ports: range) -> str:
    return f"{ports[0]} {ports[-1]}"
