"""One TCP connection of a BGP session, driven by the event loop."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Protocol

from vtep.evpn import bgp_sockets

_READ_MAX = 16384
"""Octets read in one turn of the event loop: some 400 routes, which take 15 ms to decode and apply.

Timers and other sockets have their turn in between, so that a flood of routes starves no keepalive.
"""

_HIGH_WATER = 65536
"""Octets that wait to be sent from which on no more routes are encoded."""

_SEND_MAX = 262144
_LINGER_S = 1.0
"""Seconds in which the peer must take the last message and close its side."""


class LinkOwner(Protocol):
    """Receives the events of links."""

    def link_connected(self, link: "PeerLink") -> None:
        """Handle the end of the TCP handshake."""

    def link_failed(self, link: "PeerLink", error: OSError) -> None:
        """Handle a connection that could not be opened."""

    def link_received(self, link: "PeerLink", octets: bytes) -> None:
        """Handle octets of the peer."""

    def link_closed(self, link: "PeerLink", reason: str) -> None:
        """Handle the end of the connection by the peer or the kernel."""

    def link_blocked(self, link: "PeerLink") -> None:
        """Handle a full send buffer."""

    def link_progressed(self, link: "PeerLink") -> None:
        """Handle octets that the kernel has taken after `link_blocked`."""

    def link_ended(self, link: "PeerLink") -> None:
        """Handle the end of a link after `close`."""


class PeerLink:
    """A TCP socket that does not block, and the octets that wait to be sent on it.

    Only `link_ended` is called after `close`. Each link is closed once by its owner.
    """

    def __init__(self, number: int, sock: socket.socket, owner: LinkOwner) -> None:
        self.number = number
        self._sock = sock
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()
        self._is_writing = False
        self._is_connected = False
        self._is_closing = False
        self._reading: asyncio.Handle | None = None
        """The next read, while there may be more to read."""
        self._linger: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """True while so much waits to be sent that routes should wait."""
        return len(self._waiting) >= _HIGH_WATER

    @property
    def is_drained(self) -> bool:
        """True if the kernel has taken everything."""
        return not self._waiting

    @property
    def local_name(self) -> tuple[object, ...]:
        """The local address, as the socket module has it."""
        name: tuple[object, ...] = self._sock.getsockname()
        return name

    def wait_for_handshake(self) -> None:
        """Report `link_connected` or `link_failed`."""
        self._loop.add_writer(self._sock.fileno(), self._finish_handshake)

    def start(self) -> None:
        """Read what the peer sends: the connection is open."""
        self._is_connected = True
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _finish_handshake(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._owner.link_failed(self, OSError(number, os.strerror(number)))
        else:
            self.start()
            self._owner.link_connected(self)

    def _on_readable(self) -> None:
        if self._reading is None:
            self.read()

    def _read_again(self) -> None:
        """Read in the next turn, without waiting for the socket to be readable.

        uvloop drops a socket after an EPOLLERR, as of a reset by the peer, and reports it once:
        only reading to the end finds the error behind data.
        """
        if self._reading is None and self._is_connected:
            self._reading = self._loop.call_soon(self.read)

    def _stop_reading(self) -> None:
        self._is_connected = False
        self._loop.remove_reader(self._sock.fileno())
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def read(self) -> None:
        """Read once, as much as may be handled in one turn, and in the next turn what is left."""
        if not self._is_connected:
            return
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        try:
            octets = self._sock.recv(_READ_MAX)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end_of_stream(error.strerror or str(error))
            return
        if not octets:
            self._end_of_stream("end of the TCP stream")
            return
        self._read_again()
        if not self._is_closing:
            self._owner.link_received(self, octets)

    def _end_of_stream(self, reason: str) -> None:
        if self._is_closing:
            self.abort()
            return
        self._stop_reading()
        self._owner.link_closed(self, reason)

    def write(self, octets: bytes) -> None:
        """Send octets behind those that wait."""
        if self._is_closing or not self._is_connected:
            return
        self._waiting += octets
        if not self._is_writing:
            self._send()

    def _send(self) -> None:
        """Send what the kernel takes, and wait for it with the rest."""
        try:
            with memoryview(self._waiting) as waiting:
                sent = self._sock.send(waiting[:_SEND_MAX])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._waiting.clear()  # The reader gets what the peer has sent before, and the error.
            self._stop_writing()
            self._read_again()
            return
        del self._waiting[:sent]
        if sent and self._is_writing and not self._is_closing:
            self._owner.link_progressed(self)
        if not self._waiting:
            self._stop_writing()
        elif not self._is_writing:
            self._is_writing = True
            self._loop.add_writer(self._sock.fileno(), self._send)
            if not self._is_closing:
                self._owner.link_blocked(self)

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            self._loop.remove_writer(self._sock.fileno())
        if self._is_closing:
            self._shut_down()

    def keep_sending(self) -> None:
        """Go on sending from the local address, which this host has lost."""
        bgp_sockets.keep_sending(self._sock)

    def close(self) -> None:
        """Send what waits, then close. The peer has a second to take it."""
        if self._is_closing:
            return
        self._is_closing = True
        if not self._is_connected:
            self.abort()
            return
        self._linger = self._loop.call_later(_LINGER_S, self.abort)
        if not self._waiting:
            self._shut_down()

    def _shut_down(self) -> None:
        """Close our side, and go on reading until the peer closes its side.

        If unread data remains, the kernel sends RST, by which the peer may lose a NOTIFICATION.
        """
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Close the socket at once, also if the peer has not taken everything."""
        if self._sock.fileno() < 0:
            return
        if self._linger is not None:
            self._linger.cancel()
        self._stop_reading()
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._owner.link_ended(self)
