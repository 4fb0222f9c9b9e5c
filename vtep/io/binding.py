"""The binding of a VTEP's UDP sockets: family, own address and underlay device."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from vtep.io.addresses import Sockaddr, host_of, sockaddr
from vtep.io.socket_options import prefer_public_source
from vtep.wire.address import Address


@frozen
class Binding:
    """The part of a binding that all sockets of a VTEP share: all but the port.

    `local` is the own address, or None for any. `dev` is the device that the sockets are bound to
    (SO_BINDTODEVICE), or None.
    """

    family: socket.AddressFamily
    local: Address | None
    dev: str | None

    @property
    def version(self) -> int:
        """The IP version of the family."""
        return 6 if self.family == socket.AF_INET6 else 4

    def open(self, port: int, *, shared: bool = False, grouped: bool = False) -> socket.socket:
        """Open a non-blocking UDP socket bound to `port`.

        Args:
            port: the UDP port; 0 for any that is free.
            shared: whether other sockets that allow it too may have the port (SO_REUSEADDR).
            grouped: whether it joins a group of sockets of the same binding (SO_REUSEPORT).

        Raises: OSError.
        """
        sock = self.open_unbound()
        try:
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if grouped:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(self.sockaddr(port))
        except OSError:
            sock.close()
            raise
        return sock

    def open_unbound(self) -> socket.socket:
        """Open a non-blocking UDP socket without a port. Raises: OSError."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if self.family == socket.AF_INET6:
                # Otherwise the socket takes the IPv4 port as well, for which there is another one.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                prefer_public_source(sock)
            if self.dev is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.dev.encode())
        except OSError:
            sock.close()
            raise
        return sock

    def sockaddr(self, port: int) -> Sockaddr:
        """Return the address to bind to for this port. Raises: OSError."""
        return sockaddr(host_of(self.local, self.dev), port) if self.local else ("", port)


@contextmanager
def connected_socket(binding: Binding, address: Sockaddr) -> Iterator[socket.socket]:
    """Provide a socket connected to an address, by which to query the kernel's route to it.

    Nothing is sent. Raises: OSError if there is no route.
    """
    with binding.open(0) as sock:
        sock.connect(address)
        yield sock
