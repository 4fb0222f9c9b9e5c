"""`pyvtep docker status`: networks of the driver, which the engine knows and a process has."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from vtep.cli import docker as command
from vtep.control import socket_files
from vtep.errors import VtepError

NETWORK = {
    "Name": "mynetwork",
    "Id": "0123456789abcdef",
    "Driver": "pyvtep:latest",
    "Options": {"vni": "200", "com.docker.network.bridge.name": "br-blue"},
    "Containers": {"1": {"Name": "web", "MacAddress": "02:42:0a:12:00:02"}},
}
BRIDGE_NETWORK = {"Name": "bridge", "Id": "fedcba", "Driver": "bridge"}


def status(
    monkeypatch: pytest.MonkeyPatch, vnis: list[Any], *options: str, down: bool = False
) -> Any:
    """Run the command at an engine with one network of the driver."""

    def list_networks() -> list[Any]:
        if down:
            raise VtepError("the Docker engine does not answer")
        return [NETWORK, BRIDGE_NETWORK]

    engine = SimpleNamespace(
        url="unix:///docker.sock", list_networks=list_networks, inspect=lambda _: NETWORK
    )
    monkeypatch.setattr(command, "EngineClient", lambda _: engine)
    monkeypatch.setattr(command, "_vnis", lambda _: vnis)
    monkeypatch.setattr(command, "_bridge_of", lambda _: "br-blue")
    return CliRunner().invoke(command.docker, ["status", *options])


def vni_on(bridge: str) -> command._HostVni:
    segment: Any = {
        "vni": 200,
        "dev": "vx200",
        "mtu": 1450,
        "remotes": [{"dst": "192.0.2.2"}],
        "options": {"bridge": bridge, "docker-network": None},
        "docker_problem": None,
    }
    return command._HostVni({"pid": 4711, "netns": socket_files.namespace()}, "/sock", segment)


def test_a_network_of_the_driver_is_found_by_vni_and_bridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (shown,) = json.loads(status(monkeypatch, [vni_on("br-blue")], "--json").stdout)
    assert (shown["pid"], shown["driver"], shown["network_mtu"]) == (4711, "pyvtep", 1450)
    assert shown["problem"] is None
    lines = status(monkeypatch, [vni_on("br-blue")]).stdout.splitlines()
    assert lines[:2] == [
        "mynetwork: vni 200 on vx200 (mtu 1450) to 192.0.2.2, process 4711",
        "  driver pyvtep, bridge br-blue, containers have mtu 1450",
    ]
    assert lines[2].split() == ["web", "02:42:0a:12:00:02"]


def test_a_network_whose_vni_no_process_has_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = status(monkeypatch, [vni_on("br-other")]).stdout
    assert "mynetwork: vni 200 is in no process\n" in shown
    assert "check that the plug-in runs (pyvtep docker plugin)" in shown
    # It may well be in another process than the one that was named.
    assert json.loads(status(monkeypatch, [], "--json", "--socket", "/sock").stdout) == []


def test_an_engine_that_does_not_answer_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    done = status(monkeypatch, [], "--json", down=True)
    assert json.loads(done.stdout) == []
    assert "of the driver pyvtep are not shown: the Docker engine does not answer" in done.stderr
