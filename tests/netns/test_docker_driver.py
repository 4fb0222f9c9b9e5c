"""The network driver with two real Docker engines, as on two hosts of a data center."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.netns.engines import Engine
from tests.netns.hosts import DEADLINE, Pyvtep, address, wait_until
from vtep.testing.lab import Host, Lab

if TYPE_CHECKING:
    import subprocess

A, B = "172.31.0.106", "172.31.0.107"
"""Underlay addresses of the two hosts."""

OUTSIDE = "198.51.100.1"
"""Address of a host that is reached by routes of both hosts."""


class Node:
    """A host with an engine, a plug-in and a daemon, each of which can be ended and started."""

    def __init__(self, host: Host, own: str, remote: str, folder: Path) -> None:
        self.host, self.own, self.remote = host, own, remote
        self.folder = folder / host.name
        self.folder.mkdir()
        self.engine = Engine(host)
        self.daemon = self.start_daemon()
        self.plugin = self.start_plugin()

    def start_daemon(self) -> Pyvtep:
        config = self.folder / "pyvtep.toml"
        config.write_text("vni = []\n")
        daemon = Pyvtep(
            *(self.host, self.folder, "--control", "auto", "--config", str(config)),
            prefix=self.engine.enter,
        )
        wait_until(lambda: "no VNI is configured yet" in daemon.log, daemon.log)
        return daemon

    def start_plugin(self) -> "subprocess.Popen[bytes]":
        self.log_path = self.folder / "plugin.log"
        with self.log_path.open("a") as log:
            before = self.log_path.stat().st_size
            plugin = self.host.start(
                *(*self.engine.enter, sys.executable, "-m", "vtep", "--debug", "docker", "plugin"),
                *("--state-directory", str(self.folder / "state")),
                stderr=log,
                stdout=log,
            )
        wait_until(lambda: "serving the Docker engine" in self.log[before:], "the plug-in")
        return plugin

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def docker(self, *words: str, check: bool = True) -> str:
        return self.engine.docker(*words, check=check)

    def create(self, *options: str, vni: int = 200, name: str = "mynetwork") -> None:
        self.docker(
            *("network", "create", "-d", "pyvtep", "-o", f"vni={vni}"),
            *("-o", f"remote={self.remote}", *options, name),
        )

    def close(self) -> None:
        self.engine.clear()
        for process in (self.plugin, self.daemon.process):
            process.terminate()
            assert process.wait(DEADLINE) == 0
        self.engine.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, Node]]:
    with Lab() as lab:
        a, b, outside = lab.host("host-106"), lab.host("host-107"), lab.host("outside")
        lab.wire(a, b)
        folder = tmp_path_factory.mktemp("driver")
        address(outside, "lo", f"{OUTSIDE}/32")
        nodes = []
        for host, own, remote in ((a, A, B), (b, B, A)):
            address(host, "eth0", f"{own}/24")
            number = own.rpartition(".")[2]
            wan = f"wan{number}"
            lab.wire(host, outside, wan)
            address(host, wan, f"192.0.{number}.2/24")
            address(outside, wan, f"192.0.{number}.1/24")
            host.run("ip", "route", "add", "default", "via", f"192.0.{number}.1")
            nodes.append(Node(host, own, remote, folder))
        yield nodes[0], nodes[1]
        for node in nodes:
            node.close()


@pytest.fixture
def nodes(both: tuple[Node, Node]) -> Iterator[tuple[Node, Node]]:
    """Two hosts without networks or containers."""
    yield both
    for node in both:
        node.engine.clear()


def boxes(nodes: tuple[Node, Node]) -> None:
    """Start a container on each host: 172.18.0.2 and 172.18.0.3."""
    for node, own in zip(nodes, "23", strict=True):
        node.engine.container("box", "mynetwork", "--ip", f"172.18.0.{own}")


def assert_joined(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    wait_until(lambda: a.engine.reaches("box", "172.18.0.3"), "a ping from .2 to .3")
    assert b.engine.reaches("box", "172.18.0.2")


def test_containers_reach_each_other_their_host_and_the_outside(nodes: tuple[Node, Node]) -> None:
    for node in nodes:
        node.create("--subnet", "172.18.0.0/16")
    boxes(nodes)
    assert_joined(nodes)
    for node, own in zip(nodes, "23", strict=True):
        assert node.engine.reaches("box", "172.18.0.1")
        node.host.run("ping", "-c1", "-W2", f"172.18.0.{own}")
        assert node.engine.reaches("box", OUTSIDE)
        assert "mtu 1450" in node.docker("exec", "box", "ip", "link", "show", "eth0")
