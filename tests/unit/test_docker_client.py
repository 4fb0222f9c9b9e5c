"""The client of the Docker engine: a missing SDK, invalid URLs, other servers."""

import socket
import sys
import threading
from pathlib import Path

import pytest

from vtep.docker.client import EngineClient
from vtep.errors import ConfigError, VtepError


def test_a_missing_sdk_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(VtepError, match=r"/python3?\S* -m pip install '\.\[docker\]'"):
        EngineClient(None)


def test_docker_host_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    assert EngineClient(None).url == "unix:///var/run/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.9:2375")
    assert EngineClient(None).url == "tcp://192.0.2.9:2375"
    assert EngineClient("unix:///run/other.sock").url == "unix:///run/other.sock"


@pytest.mark.parametrize("url", ["gopher://x", "192.0.2.9:port", "tcp://"])
def test_an_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"--docker-host .*: is not the address of an engine"):
        EngineClient(url)


def test_a_server_of_another_protocol_is_refused(tmp_path: Path) -> None:
    path = f"{tmp_path}/sock"
    with socket.create_server(path, family=socket.AF_UNIX) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"220 mail.example.net ESMTP\r\n")

        server = threading.Thread(target=answer)
        server.start()
        with pytest.raises(VtepError, match=r"the Docker engine at unix://.* does not answer"):
            EngineClient(f"unix://{path}").inspect("mynetwork")
        server.join()
