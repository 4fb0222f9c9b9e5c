"""The HTTP server and the methods of the Docker plug-in, without an engine."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from vtep.docker.plugin.dispatch import CONTENT_TYPE, Dispatcher
from vtep.docker.plugin.server import PluginServer
from vtep.docker.plugin.store import JsonStore
from vtep.errors import ConfigError, VtepError


def echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"Value": request["Value"]}


def refuse(_request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ConfigError("-o vni=x: is not a number")


def fail(_request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("a bug")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PluginServer]:
    methods = {"NetworkDriver.Echo": echo, "NetworkDriver.Refuse": refuse, "IpamDriver.Fail": fail}
    with PluginServer(tmp_path / "plugins" / "pyvtep.sock", Dispatcher(methods)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Engine(http.client.HTTPConnection):
    """A connection of an engine to the plug-in."""

    def __init__(self, path: Path) -> None:
        super().__init__("plugin")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))

    def post(self, path: str, body: str | bytes = "{}") -> tuple[int, Any]:
        self.request("POST", path, body.encode() if isinstance(body, str) else body)
        response = self.getresponse()
        assert response.headers["Content-Type"] == CONTENT_TYPE
        return response.status, json.loads(response.read())


def test_methods_over_one_connection(server: PluginServer) -> None:
    engine = Engine(server.path)
    assert engine.post("/Plugin.Activate", "") == (
        200,
        {"Implements": ["IpamDriver", "NetworkDriver"]},
    )
    assert engine.post("/NetworkDriver.Echo", '{"Value": "ü"}') == (200, {"Value": "ü"})
    # The engine shows this text to its user.
    assert engine.post("/NetworkDriver.Refuse") == (500, {"Err": "-o vni=x: is not a number"})
    # It takes 404, and nothing else, for an optional method that does not exist.
    assert engine.post("/NetworkDriver.Unknown")[0] == 404
    for broken in ("[]", "{", b"\xff"):
        assert engine.post("/NetworkDriver.Echo", broken)[0] == 400
    assert engine.post("/NetworkDriver.Echo") == (400, {"Err": "Value: is missing"})
    # A failure of one method ends neither the process nor the connection.
    status, answer = engine.post("/IpamDriver.Fail")
    assert status == 500
    assert "a bug" in answer["Err"]
    assert engine.post("/NetworkDriver.Echo", '{"Value": 1}') == (200, {"Value": 1})
    engine.close()


def test_a_request_that_is_too_large_is_refused(server: PluginServer) -> None:
    engine = Engine(server.path)
    engine.putrequest("POST", "/NetworkDriver.Echo")
    engine.putheader("Content-Length", str(1 << 40))
    engine.endheaders()
    assert engine.getresponse().status == 413
    engine.close()


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        ("20", "the request has 13 of 20 octets"),
        ("abc", "Content-Length abc: is not a number of octets"),
        ("-1", "Content-Length -1: is not a number of octets"),
    ],
)
def test_a_request_of_unknown_length_is_not_executed(
    server: PluginServer, length: str, reason: str
) -> None:
    engine = Engine(server.path)
    engine.putrequest("POST", "/NetworkDriver.Echo")
    engine.putheader("Content-Length", length)
    engine.endheaders(b'{"Value": 1}\n')
    engine.sock.shutdown(socket.SHUT_WR)
    response = engine.getresponse()
    assert (response.status, json.loads(response.read())) == (400, {"Err": reason})
    engine.close()


def test_only_one_process_serves_a_socket(server: PluginServer) -> None:
    with pytest.raises(VtepError, match="Address already in use"):
        PluginServer(server.path, Dispatcher({}))
    engine = Engine(server.path)
    assert engine.post("/NetworkDriver.Echo", '{"Value": 1}')[0] == 200
    engine.close()
    assert server.path.stat().st_mode & 0o777 == 0o660


def test_the_socket_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    with PluginServer(path, Dispatcher({})):
        assert path.is_socket()
    assert not path.exists()


def test_store(tmp_path: Path) -> None:
    store = JsonStore(tmp_path / "new" / "networks.json")
    assert store.load("networks") == {}
    for value in ({"a": [1, {"b": None}]}, {}):
        store.save({"networks": value})
        assert JsonStore(store.path).load("networks") == value
    assert [each.name for each in store.path.parent.iterdir()] == ["networks.json"]


@pytest.mark.parametrize(
    "damaged", ["", "\0" * 99, '{"networks": {', "[]", '{"networks": 3}', "[" * 99999], ids=len
)
def test_a_damaged_file_is_moved_aside(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = JsonStore(tmp_path / "networks.json")
    store.path.write_text(damaged)
    assert store.load("networks") == {}
    assert [each.name for each in tmp_path.iterdir()] == ["networks.json.damaged"]
    assert (tmp_path / "networks.json.damaged").read_text() == damaged
    (record,) = caplog.records
    assert f"{store.path} is damaged; it is now {store.path}.damaged" in record.message
    store.save({"networks": {"a": 1}})
    assert store.load("networks") == {"a": 1}


def test_a_store_that_cannot_be_written_keeps_its_value(tmp_path: Path) -> None:
    store = JsonStore(tmp_path / "networks.json")
    store.save({"networks": {"a": 1}})
    (tmp_path / ".networks.json.new").mkdir()
    with pytest.raises(VtepError, match="cannot write"):
        store.save({"networks": {"a": 2}})
    assert store.load("networks") == {"a": 1}
