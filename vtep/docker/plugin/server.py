"""The HTTP server of the plug-in: a thread for each connection of the engine."""

import errno
import logging
import os
import socket
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

from vtep import descriptors
from vtep.docker.plugin.dispatch import CONTENT_TYPE, Dispatcher, PluginResponse
from vtep.errors import VtepError, shown

log = logging.getLogger("vtep")

_BODY_MAX = 1 << 20
"""Octets of a request. The largest ones have the options of a network."""


class PluginServer(ThreadingUnixStreamServer):
    """A server of plug-in methods on a Unix socket; it owns the socket and its file."""

    daemon_threads = True
    # Twenty containers that start at once open twenty connections.
    request_queue_size = 128

    def __init__(self, path: Path, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.path = path
        self._owns_file = False
        try:
            super().__init__(str(path), _Handler, bind_and_activate=False)
            self._bind()
            self.server_activate()
        except OSError as error:
            self.server_close()
            fix = "another plug-in serves it" if error.errno == errno.EADDRINUSE else "run as root"
            raise VtepError(
                f"--plugin-socket {path}: {descriptors.reason(error)}; {fix}"
            ) from error

    def _bind(self) -> None:
        """Bind the socket. Raises: OSError if another process serves its path."""
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        # The file of a process that was killed remains. Only one that nothing listens on is
        # removed: two plug-ins with one name would take each other's requests.
        with socket.socket(socket.AF_UNIX) as other, suppress(FileNotFoundError):
            try:
                other.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        umask = os.umask(0o117)  # The engine runs as root; methods are for no other user.
        try:
            self.server_bind()
        finally:
            os.umask(umask)
        self._owns_file = True

    def server_close(self) -> None:
        """Close the socket and remove its file."""
        super().server_close()
        if self._owns_file:
            self.path.unlink(missing_ok=True)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log an exception of a connection, such as an engine that ended while it waited."""
        log.debug("a connection of the engine failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection of the engine, for any number of requests."""

    protocol_version = "HTTP/1.1"
    server: PluginServer
    # Without it, each header line would be a packet of its own.
    wbufsize = -1

    def do_POST(self) -> None:
        """Answer a method call."""
        length = self.headers.get("Content-Length", "0")
        if not (length.isascii() and length.isdecimal()):
            self._refuse(400, f"Content-Length {shown(length)}: is not a number of octets")
            return
        # The length alone could have more digits than int() takes.
        if len(length) > len(str(_BODY_MAX)) or int(length) > _BODY_MAX:
            self._refuse(413, f"a request has at most {_BODY_MAX} octets")
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            # What is there may be a complete request, but not the one that was meant.
            self._refuse(400, f"the request has {len(body)} of {length} octets")
            return
        try:
            answer = self.server.dispatcher.answer(self.path, body)
        except Exception as error:
            # One method that fails must not end the plug-in, which all networks need.
            log.exception("%s failed", self.path)
            answer = PluginResponse.of_error(500, f"internal error: {error!r}; please report it")
        log.debug("%s %s: %s", self.path, body.decode(errors="replace").strip(), answer)
        self._send(answer)

    def _refuse(self, status: int, reason: str) -> None:
        """Answer a request whose end is unknown, and close the connection."""
        self.close_connection = True
        self._send(PluginResponse.of_error(status, reason))

    def _send(self, answer: PluginResponse) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)
        self.wfile.flush()

    def address_string(self) -> str:
        """Return a name for the peer, which has no address on a Unix socket."""
        return "engine"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as in the base class
        """Log nothing: methods are logged with their requests."""
