"""The HTTP server of the exporter: a thread for each connection, and no connection for ever."""

import errno
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final, TypeAlias
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from vtep import descriptors
from vtep.errors import ConfigError, VtepError, shown

_CONNECTIONS_MAX = 32
"""Connections at a time, each with a thread. For a new one, the oldest is closed."""

_AGE_MAX_S = 20.0
"""Age at which a connection is closed; Prometheus gives up a scrape after 10 s by default."""

_PORT_MAX = 65535

_PAGE: Final = b"""<!DOCTYPE html>
<html lang="en"><head><title>pyvtep exporter</title></head>
<body><h1>pyvtep exporter</h1><p><a href="/metrics">Metrics</a></p></body></html>
"""

App: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsServer(ThreadingMixIn, WSGIServer):
    """A server that serves the metrics of a registry at /metrics.

    It owns the listening socket and its connections. A client that sends no request, or reads no
    answer, keeps no other from being served: its connection is closed for a newer one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        self.address_family, address = _resolve(listen)
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            raise VtepError(f"--listen {listen}: {_reason(error)}") from error
        self.set_app(_application(registry))

    def server_bind(self) -> None:
        """Bind the socket, without the name of the host, for which HTTPServer would ask DNS."""
        TCPServer.server_bind(self)
        host, self.server_port = self.server_address[:2]
        self.server_name = str(host)
        self.setup_environ()

    @property
    def url(self) -> str:
        """The address of the metrics."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}/metrics"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread, and close the oldest one if there are too many."""
        with self._lock:
            if len(self._open) >= _CONNECTIONS_MAX:
                _hang_up(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Close connections that are too old; this is called twice a second."""
        too_old = time.monotonic() - _AGE_MAX_S
        with self._lock:
            for connection, since in self._open.items():
                if since < too_old:
                    _hang_up(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, unless the client is gone: that is its own affair."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    """The handler of a connection, which logs no requests."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _hang_up(connection: socket.socket) -> None:
    """End what the thread of a connection waits for, so that it closes the connection."""
    with suppress(OSError):  # The other end may have been faster.
        connection.shutdown(socket.SHUT_RDWR)


def _application(registry: CollectorRegistry) -> App:
    metrics: App = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return metrics(environ, start_response)
        if path == "/":
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [_PAGE]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"not found; the metrics are at /metrics\n"]

    return app


def _resolve(listen: str) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the address of --listen. Raises: ConfigError, VtepError."""
    host, colon, port = listen.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not is_bracketed):
        raise ConfigError(
            f"--listen {shown(listen)}: is not ADDRESS:PORT, such as 127.0.0.1:9479 or [::1]:9479"
        )
    # Not int() alone, which accepts "1_0" and digits of other scripts.
    if not (port.isascii() and port.isdigit() and int(port) <= _PORT_MAX):
        raise ConfigError(f"--listen {listen}: {port!r} is no port number from 0 to {_PORT_MAX}")
    host = host[1:-1] if is_bracketed else host
    if not host:
        raise ConfigError(
            f"--listen {listen}: the address is missing; for all of this host: 0.0.0.0:{port}, or "
            f"[::]:{port} for IPv6, too"
        )
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise VtepError(f"--listen {listen}: unknown address: {reason}") from error
    family, _, _, _, address = found[0]
    return family, address


def _reason(error: OSError) -> str:
    advice = {
        errno.EADDRINUSE: "the port is in use, perhaps by another exporter; give another port",
        errno.EADDRNOTAVAIL: "no device of this host has that address",
        errno.EACCES: "ports below 1024 need root; give another port",
    }
    return advice.get(error.errno or 0) or descriptors.reason(error)
