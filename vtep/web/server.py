"""The HTTP server of the page: GET and HEAD only, with bounds on connections, sizes and times."""

import io
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs

from vtep.errors import ConfigError, VtepError, shown
from vtep.web.address import ListenAddress
from vtep.web.assets import assets
from vtep.web.shared_connection import BusyError, Document, SharedConnection
from vtep.wire import vxlan

log = logging.getLogger("vtep")

CONNECTIONS_MAX: Final = 64
"""Connections at a time; a browser opens up to six."""

TIMEOUT_S: Final = 10.0
"""Seconds for a whole request to arrive, for an answer to be taken, and between two requests."""

TARGET_MAX: Final = 2048
"""Octets of a path with its query."""

_PAGE_MAX = 1 << 24
_MAC_MAX = 32
"""Characters of a MAC that are passed on; the VTEP says what is wrong with one."""

_HEADERS: Final[Mapping[str, str]] = {
    # Everything comes from this server. No script and no style stands in the page itself, and no
    # text can become markup: with trusted types, an assignment to innerHTML is an error.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"

_TOO_MANY: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 22\r\nRetry-After: 1\r\nConnection: close\r\n\r\ntoo many connections\r\n"
)


class _DeadlineReader(io.RawIOBase):
    """The octets from a client, which have to arrive before a deadline.

    The timeout of a socket begins again with each octet, so that a client could stay for hours.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline = 0.0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Receive octets. Raises: TimeoutError after the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class WebServer(ThreadingHTTPServer):
    """The server: one thread a connection, and a bounded number of them."""

    daemon_threads = True
    block_on_close = False
    # Several tabs connect at once; the default of 5 would let connections wait for a second.
    request_queue_size = 128

    def __init__(self, address: ListenAddress, source: SharedConnection) -> None:
        self.address_family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self.source = source
        try:
            super().__init__((str(address.ip), address.port), Handler)
        except OSError as error:
            raise VtepError(
                f"--listen {address}: {error.strerror or error}; name another address or port"
            ) from error
        self.address = ListenAddress(address.ip, self.server_port)

    def server_bind(self) -> None:
        """Bind the socket, without the look-up of a name in HTTPServer, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, or refuse it if there are too many."""
        if not self._slots.acquire(blocking=False):
            # The thread that accepts does not wait: the buffer of a new socket takes this line.
            request.settimeout(0)
            try:
                request.send(_TOO_MANY)
            except OSError:
                log.debug("web: a refused client was gone already")
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # No thread could be started.
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log an exception that ended a connection; that a client is gone is none."""
        del request, client_address
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.error("web: a request failed: %r; please report it", error, exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    server_version = "pyvtep"
    sys_version = ""
    server: WebServer
    # One segment for head and body: with two, a browser that delays its ACK makes each answer late.
    wbufsize = 65536

    def setup(self) -> None:
        """Set the connection up, with deadlines."""
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._reader = _DeadlineReader(self.connection)
        self.rfile = io.BufferedReader(self._reader)

    def handle_one_request(self) -> None:
        """Read a request and answer it."""
        self._reader.deadline = time.monotonic() + TIMEOUT_S
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer with a document or a file."""
        refusal = self._refusal()
        if refusal is not None:
            self.send_error(*refusal)
            return
        # Not urlsplit(), which would take //name/ and http://name/ for the page of another host.
        path, _, query = self.path.partition("?")
        if (asset := assets().get(path)) is not None:
            self._answer(asset.content, asset.content_type)
            return
        if not path.startswith("/api/"):
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such page")
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            # The answer could not be read there, but the VTEP would be asked.
            self.send_error(HTTPStatus.FORBIDDEN, "pages of other sites may not ask")
        elif path == "/api/status":
            document, seconds = self.server.source.status()
            self._answer_json(document, {"X-Next": f"{seconds:.3f}"})
        elif path == "/api/fdb":
            self._answer_fdb(query)
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "there is no such document")

    do_HEAD = do_GET  # noqa: N815  as before

    def _refuse_method(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "this page is read-only: use GET or HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method  # noqa: N815

    def _refusal(self) -> tuple[HTTPStatus, str] | None:
        """Return why a request is refused, whatever it asks for; None if it is not."""
        if len(self.path) > TARGET_MAX:
            return HTTPStatus.REQUEST_URI_TOO_LONG, f"a path has at most {TARGET_MAX} octets"
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.address.accepts(hosts[0].strip()):
            return HTTPStatus.MISDIRECTED_REQUEST, (
                "the Host header names another server: use the address that pyvtep web has "
                "printed, or localhost"
            )
        # A body would have to be read, or it would be taken for the next request.
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length", "0") != "0":
            return HTTPStatus.BAD_REQUEST, "a request has no body here"
        return None

    def _answer_fdb(self, query: str) -> None:
        try:
            wanted = _fdb_query(query)
            document = self.server.source.fdb(**wanted)
        except ConfigError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except BusyError:
            self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, "busy; ask again in a second")
        except VtepError as error:
            self.send_error(HTTPStatus.BAD_GATEWAY, str(error))
        else:
            self._answer_json(document)

    def _answer_json(self, document: Document, more: Mapping[str, str] | None = None) -> None:
        headers = {**(more or {}), "Vary": "Accept-Encoding"}
        # An exact word among the others; a browser never sends one with q=0.
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            self._answer(document.packed, _JSON, headers | {"Content-Encoding": "gzip"})
        else:
            self._answer(document.plain, _JSON, headers)

    def _answer(
        self,
        content: bytes,
        content_type: str,
        more: Mapping[str, str] | None = None,
        status: HTTPStatus = HTTPStatus.OK,
    ) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.connection.settimeout(TIMEOUT_S)  # For the whole of the answer: see socket.sendall().
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error as text, and end the connection."""
        del explain
        status = HTTPStatus(code)
        self.close_connection = True
        if not hasattr(self, "headers"):  # The request line was refused already.
            self.command = "GET"
        self.request_version = self.protocol_version  # An answer to HTTP/0.9 would have no headers.
        more = {"Connection": "close"}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            more["Allow"] = "GET, HEAD"
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            more["Retry-After"] = "1"
        self._answer(f"{message or status.phrase}\n".encode(), _TEXT, more, status)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  as in the standard library
        """Log at debug level: a page asks once a second."""
        log.debug("web: %s: %s", self.address_string(), shown(format % args))


def _fdb_query(query: str) -> dict[str, Any]:
    """Parse the query of a request for FDB entries. Raises: ConfigError."""
    try:
        given = parse_qs(
            query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8
        )
    except ValueError:
        raise ConfigError("the query is malformed") from None
    ranges = {"vni": (0, vxlan.VNI_MAX), "page": (0, _PAGE_MAX)}
    wanted: dict[str, Any] = {}
    for name, values in given.items():
        if name not in (*ranges, "mac") or len(values) != 1:
            raise ConfigError(f"{shown(name)}: is unknown, or given twice")
        if name == "mac":
            # The entry of a MAC comes alone, unless a page is asked for, too.
            wanted = {"page": None, **wanted, "mac": values[0][:_MAC_MAX]}
            continue
        (text,), (low, high) = values, ranges[name]
        if not (text.isascii() and text.isdigit() and len(text) <= 8 and low <= int(text) <= high):
            raise ConfigError(f"{name}: must be a number from {low} to {high}")
        wanted[name] = int(text)
    if "vni" not in wanted:
        raise ConfigError("vni: is missing")
    return wanted
