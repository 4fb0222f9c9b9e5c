"""The server of `pyvtep web`: its answers, its refusals, and how often it asks the VTEP."""

import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.status_fake import FakeClient
from vtep.cli.main import cli
from vtep.control.access import READING
from vtep.control.client import DisconnectedError
from vtep.errors import ConfigError, VtepError
from vtep.web import server as web
from vtep.web.address import ListenAddress
from vtep.web.assets import assets
from vtep.web.server import WebServer
from vtep.web.shared_connection import FDB_INTERVAL_S, FDB_MAX_AGE_S, BusyError, SharedConnection

LOOPBACK = ListenAddress.parse("127.0.0.1:0")
DEADLINE = 60.0
SAMPLE = {"vni": 10, "dev": "vx10", "monotonic": 1.0, "fdb_entries": 0, "entries": []}


class Vtep(FakeClient):
    """A VTEP that answers `fdb.sample`, too, and notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> Any:
        assert method == "fdb.sample"
        if self.is_down:
            raise DisconnectedError("no pyvtep answers there")
        if params["vni"] == 99:
            raise VtepError("vni 99: there is no such segment")
        self.asked.append(params)
        return {**SAMPLE, "next_page": None}


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def running(source: SharedConnection) -> Iterator[WebServer]:
    with WebServer(LOOPBACK, source) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(DEADLINE)


@pytest.fixture
def vtep() -> Vtep:
    return Vtep()


@pytest.fixture
def server(vtep: Vtep) -> Iterator[WebServer]:
    with running(SharedConnection(lambda: vtep)) as started:
        yield started


def ask(
    server: WebServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=DEADLINE)
    with closing(connection):
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        response = connection.getresponse()
        return response, response.read()


def send(server: WebServer, octets: bytes) -> bytes:
    """Send octets, and return all that comes back until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", server.server_port), DEADLINE) as connection:
        received = b""
        with suppress(OSError):  # The server may have answered and gone before it has read all.
            connection.sendall(octets)
            connection.shutdown(socket.SHUT_WR)
        try:
            while got := connection.recv(65536):
                received += got
        except ConnectionResetError:  # The server has not read all that was sent.
            pass
        return received


def test_every_file_of_the_page_is_served_with_its_type_and_a_strict_policy(
    server: WebServer,
) -> None:
    assert {"/", "/app.js", "/style.css", "/icon.svg"} <= set(assets())
    for path, asset in assets().items():
        response, body = ask(server, path)
        assert (response.status, body) == (200, asset.content)
        assert response.headers["Content-Type"] == asset.content_type
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert not {"Set-Cookie", "Access-Control-Allow-Origin"} & set(response.headers)
        # Nothing of another origin, and neither script nor style in the page itself.
        text = body.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path
        assert not {"style=", "onclick=", "<style", "innerHTML ="} & set(text.split()), path
        head, nothing = ask(server, path, "HEAD")
        assert (head.status, nothing) == (200, b"")
        assert head.headers["Content-Length"] == str(len(asset.content))


def test_the_status_has_a_remedy_for_each_drop(server: WebServer) -> None:
    response, body = ask(server, "/api/status")
    assert response.headers["Content-Type"] == "application/json"
    answer = json.loads(body)
    assert answer["state"] == "connected"
    (drops, _) = (segment["recent_drops"] for segment in answer["status"]["segments"])
    remedies = {
        drop["reason"]: drop["remedy"] for drop in (*drops, *answer["status"]["recent_drops"])
    }
    assert "pyvtep remote add 203.0.113.9 --vni 10" in remedies["source_unknown"]
    assert "use one VNI at both ends" in remedies["vni_unknown"]
    assert 0 <= float(response.headers["X-Next"]) <= 1
    packed, octets = ask(server, "/api/status", Accept_Encoding="br, gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(octets).startswith(b'{"state":"connected"')


def test_a_vtep_is_asked_once_a_second_however_many_ask_and_never_while_none_does() -> None:
    vtep, clock = Vtep(), Clock()
    connected: list[Vtep] = []

    def connect() -> Vtep:
        connected.append(vtep)
        return vtep

    source = SharedConnection(connect, clock)
    assert vtep.calls == 0
    documents = []
    threads = [
        threading.Thread(target=lambda: documents.append(source.status()[0])) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert len(documents) == 20
    assert len({id(document) for document in documents}) == 1
    assert (vtep.calls, len(connected)) == (1, 1)
    clock.now += 0.99
    assert source.status()[1] == pytest.approx(0.01)
    assert vtep.calls == 1
    clock.now += 0.01
    source.status()
    clock.now += 3600
    assert vtep.calls == 2
    source.status()
    assert (vtep.calls, len(connected)) == (3, 1)


def test_a_vtep_that_is_gone_is_reported_and_asked_once_a_second_until_it_is_back() -> None:
    vtep, clock = Vtep(), Clock()
    source = SharedConnection(lambda: vtep, clock)
    source.status()
    vtep.is_down = True
    clock.now += 1
    answer = json.loads(source.status()[0].plain)
    assert answer["state"] == "reconnecting"
    assert "no pyvtep answers" in answer["error"]
    assert vtep.is_closed
    calls = vtep.calls
    # A stopped process takes seconds to fail: requests that waited share the failure.
    with pytest.raises(VtepError):
        source.fdb(10)
    source.status()
    assert vtep.calls == calls
    vtep.is_down = False
    clock.now += 1
    assert json.loads(source.status()[0].plain)["state"] == "connected"


def test_a_connection_to_a_process_that_was_replaced_is_replaced_unnoticed() -> None:
    old, new, clock = Vtep(), Vtep(), Clock()
    vteps = [old, new]
    source = SharedConnection(lambda: vteps.pop(0), clock)
    source.status()
    old.is_down = True
    clock.now += 1
    assert json.loads(source.status()[0].plain)["state"] == "connected"
    assert old.is_closed
    assert new.calls == 1


def test_fdb_entries_are_asked_for_rarely_whatever_browsers_ask_for() -> None:
    vtep, clock = Vtep(), Clock()
    source = SharedConnection(lambda: vtep, clock)
    first = source.fdb(10)
    assert vtep.asked == [{"vni": 10, "page": 0, "macs": []}]
    with pytest.raises(BusyError):
        source.fdb(20)
    clock.now += FDB_INTERVAL_S
    source.fdb(20, page=None, mac="02:00:00:00:00:01")
    assert vtep.asked[1:] == [{"vni": 20, "page": None, "macs": ["02:00:00:00:00:01"]}]
    assert source.fdb(10) is first
    clock.now += FDB_MAX_AGE_S
    assert source.fdb(10) is not first
    for vni in range(100, 300):
        clock.now += FDB_INTERVAL_S
        source.fdb(vni)
    assert len(source._fdb) <= 64


@pytest.mark.parametrize(
    ("query", "status_code", "said"),
    [
        ("vni=10", 200, "fdb_entries"),
        ("vni=10&page=3", 200, "fdb_entries"),
        ("vni=10&mac=02:00:00:00:00:01", 200, "fdb_entries"),
        ("", 400, "vni: is missing"),
        ("vni=99", 502, "vni 99: there is no such segment"),
        ("vni=16777216", 400, "vni: must be a number from 0 to 16777215"),
        ("vni=-1", 400, "vni: must be"),
        ("vni=1_0", 400, "vni: must be"),
        ("vni=%D9%A1", 400, "vni: must be"),
        ("vni=1&vni=2", 400, "given twice"),
        ("vni=1&" + "a=1&" * 20, 400, "malformed"),
        ("vni=1&method=fdb.flush", 400, "method: is unknown"),
        ("vni=1&page=99999999999", 400, "page: must be"),
    ],
)
def test_queries_for_fdb_entries(
    server: WebServer, query: str, status_code: int, said: str
) -> None:
    response, body = ask(server, f"/api/fdb?{query}")
    assert response.status == status_code
    assert said in body.decode()


def test_a_busy_vtep_is_named_as_the_reason(server: WebServer) -> None:
    vtep, clock = Vtep(), Clock()
    server.source = SharedConnection(lambda: vtep, clock)
    assert ask(server, "/api/fdb?vni=1")[0].status == 200
    response, _ = ask(server, "/api/fdb?vni=2")
    assert (response.status, response.headers["Retry-After"]) == (503, "1")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_a_method_that_does_not_read_is_refused(server: WebServer, vtep: Vtep, method: str) -> None:
    response, body = ask(server, "/api/status", method)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert b"read-only" in body
    assert vtep.calls == 0


@pytest.mark.parametrize(
    ("host", "accepted"),
    [
        ("127.0.0.1:8479", True),
        ("localhost", True),
        ("LocalHost:9000", True),
        ("[::1]:8479", True),
        ("127.1.2.3", True),
        ("evil.example:8479", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("192.0.2.1:8479", False),
        ("localhost:80:80", False),
        ("localhost:x", False),
        ("", False),
        ("[::1", False),
    ],
)
def test_a_host_header_that_names_another_server_is_refused(
    server: WebServer, vtep: Vtep, host: str, accepted: bool
) -> None:
    response, _ = ask(server, "/api/status", Host=host)
    assert response.status == (200 if accepted else 421)
    assert vtep.calls == accepted


def test_a_server_for_other_hosts_takes_addresses_and_no_names() -> None:
    address = ListenAddress.parse("192.0.2.1:80")
    assert address.accepts("192.0.2.1")
    assert address.accepts("[2001:db8::1]:80")
    assert not address.accepts("vtep.example")


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /api/status HTTP/1.1\r\n\r\n", b"HTTP/1.1 421 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 421 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nGET /", b"HTTP/1.1 400 "),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 400 ",
        ),
        (b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 414 "),
        (b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 414 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"HTTP/1.1 431 "),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 70000 + b"\r\n\r\n", b"HTTP/1.1 431 "),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 505 "),
        (b"GET / HTTP/9\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /\r\n\r\n", b"HTTP/1.1 421 "),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 404 "),
        (b"<script>alert(1)</script>\r\n\r\n", b"HTTP/1.1 400 "),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b""),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 501 "),
    ],
)
def test_a_malformed_or_huge_request_is_answered_and_ends_the_connection(
    server: WebServer, vtep: Vtep, request_: bytes, answer: bytes
) -> None:
    received = send(server, request_)
    assert received.startswith(answer)
    assert b"200" not in received[:32]
    assert b"text/html" not in received
    assert vtep.calls == 0
    assert ask(server, "/")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../vtep/web/server.py",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/static/app.js",
        "/__init__.py",
        "/api/",
        "/api/reload",
        "/index.html%00",
    ],
)
def test_an_unknown_path_is_not_found(server: WebServer, path: str) -> None:
    response, body = ask(server, path)
    assert response.status in (200, 404)
    assert response.status == 404 or body == assets()["/"].content
    assert response.headers["Content-Type"].startswith(("text/plain", "text/html"))


def test_a_page_of_another_site_cannot_make_the_vtep_be_asked(
    server: WebServer, vtep: Vtep
) -> None:
    for site in ("cross-site", "same-site"):
        assert ask(server, "/api/status", Sec_Fetch_Site=site)[0].status == 403
    assert vtep.calls == 0
    assert ask(server, "/api/status", Sec_Fetch_Site="same-origin")[0].status == 200
    assert ask(server, "/", Sec_Fetch_Site="cross-site")[0].status == 200  # A link to the page.


@given(st.binary(max_size=300))
def test_no_request_ends_the_server(octets: bytes) -> None:
    received = send(_FUZZED[0], octets + b"\r\n\r\n") if _FUZZED else b""
    assert b"Traceback" not in received


_FUZZED: list[WebServer] = []


@pytest.fixture(autouse=True, scope="module")
def _fuzzed() -> Iterator[None]:
    with running(SharedConnection(Vtep)) as started:
        _FUZZED.append(started)
        yield
        assert ask(started, "/")[0].status == 200
        _FUZZED.clear()


def test_a_connection_is_kept_for_the_next_request(server: WebServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=DEADLINE)
    with closing(connection):
        for _ in range(3):
            connection.request("GET", "/api/status")
            response = connection.getresponse()
            assert response.read()
            assert not response.will_close


def test_a_slow_client_is_disconnected_though_it_sends_now_and_then(
    server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_S", 0.3)
    stop = threading.Event()
    with socket.create_connection(("127.0.0.1", server.server_port), DEADLINE) as connection:

        def drip() -> None:
            try:
                while not stop.wait(0.05):
                    connection.sendall(b"G")
            except OSError:
                pass  # Disconnected, as is to be.

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert connection.recv(100) == b""
        except ConnectionResetError:
            pass
        finally:
            stop.set()
            thread.join(DEADLINE)


def test_a_connection_too_many_is_refused_and_the_next_served_once_there_is_room(
    vtep: Vtep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "CONNECTIONS_MAX", 3)
    with running(SharedConnection(lambda: vtep)) as server:
        held = []
        for _ in range(3):
            connection = http.client.HTTPConnection(
                "127.0.0.1", server.server_port, timeout=DEADLINE
            )
            connection.request("GET", "/icon.svg")
            connection.getresponse().read()
            held.append(connection)
        refused, body = ask(server, "/")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert b"too many connections" in body
        for connection in held:
            connection.close()
        answered = threading.Event()
        while not answered.wait(0.01):
            if ask(server, "/")[0].status == 200:
                answered.set()


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1:8479", "127.0.0.1:8479"),
        ("localhost:1", "127.0.0.1:1"),
        ("[::1]:8479", "[::1]:8479"),
    ],
)
def test_addresses_to_listen_on(text: str, shown: str) -> None:
    assert str(ListenAddress.parse(text)) == shown


@pytest.mark.parametrize(
    "text",
    ["", "8479", "127.0.0.1", "::1:8479", "[::1]", "[127.0.0.1]:1", "a:1", "127.0.0.1:65536"],
)
def test_refused_addresses_to_listen_on(text: str) -> None:
    with pytest.raises(ConfigError, match="--listen"):
        ListenAddress.parse(text)


def test_an_address_that_other_hosts_reach_has_to_be_allowed() -> None:
    result = CliRunner().invoke(cli, ["web", "--listen", "0.0.0.0:0", "--socket", "/nonexistent"])
    assert isinstance(result.exception, ConfigError)
    assert "--unauthenticated" in str(result.exception)
    assert "ssh -L" in str(result.exception)


def test_a_port_in_use_is_named(server: WebServer) -> None:
    with pytest.raises(VtepError, match=f"--listen 127.0.0.1:{server.server_port}: .*in use"):
        WebServer(ListenAddress.parse(f"127.0.0.1:{server.server_port}"), server.source)


def test_a_reader_of_the_control_socket_may_run_it() -> None:
    assert {"status", "fdb.sample"} <= READING
