"""The network driver with two real Docker engines, as on two hosts of a data center."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.netns.engines import Engine
from tests.netns.hosts import DEADLINE, address, has_device, wait_until
from tests.netns.test_documentation import commands
from vtep.control import socket_files
from vtep.testing.lab import Host, Lab

if TYPE_CHECKING:
    import subprocess

A, B = "172.31.0.106", "172.31.0.107"
"""Underlay addresses of the two hosts."""

_FETCH = ("busybox", "nc", "-w", "2")

OUTSIDE = "198.51.100.1"
"""Address of a host that is reached by routes of both hosts."""


class Node:
    """A host with an engine and a plug-in, which starts a daemon when it needs one."""

    def __init__(self, host: Host, outside: Host, own: str, remote: str, folder: Path) -> None:
        self.host, self.outside, self.own, self.remote = host, outside, own, remote
        self.folder = folder / host.name
        self.folder.mkdir()
        self.state = self.folder / "state"
        self._log = folder / f"{host.name}.log"
        self._log.touch()
        self.engine = Engine(host)
        self.plugin = self.start_plugin()

    def start_plugin(self, *, wait: bool = True) -> "subprocess.Popen[bytes]":
        before = len(self.log)
        with self._log.open("a") as log:
            self.plugin = self.host.start(
                *(*self.engine.enter, sys.executable, "-m", "vtep", "--debug", "docker", "plugin"),
                *("--state-directory", str(self.state)),
                stderr=log,
                stdout=log,
            )
        if wait:
            wait_until(lambda: "serving the Docker engine" in self.log[before:], "the plug-in")
        return self.plugin

    def kill_plugin(self) -> None:
        self.plugin.kill()
        self.plugin.wait(DEADLINE)

    def daemon(self) -> int | None:
        """Return the PID of the pyvtep that has the networks; None if there is none."""
        place = Path(self.engine.url.removeprefix("unix://")).parent / "pyvtep"
        found = filter(None, map(socket_files.listening_process, place.glob("*.sock")))
        return next(found, None)

    def start_daemon(self) -> None:
        """Start a daemon without a VNI, unless the plug-in has done so."""
        self.host.run(
            *(*self.engine.enter, sys.executable, "-m", "vtep", "--on-demand", "--background")
        )

    def kill_daemon(self) -> None:
        pid = self.daemon()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    def kill_engine(self) -> None:
        # containerd ends with the engine. Nothing reaps it in this PID namespace, so a new engine
        # would take it for running.
        script = "kill -9 $(cat /run/docker.pid); rm /run/docker/containerd/containerd.pid"
        self.engine.shell("sh", "-c", script)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def docker(self, *words: str, check: bool = True) -> str:
        return self.engine.docker(*words, check=check)

    def create(self, *options: str, vni: int = 200, name: str = "mynetwork") -> None:
        self.docker(
            *("network", "create", "-d", "pyvtep", "-o", f"vni={vni}"),
            *("-o", f"remote={self.remote}", *options, name),
        )

    def refused(self, *words: str) -> str:
        """Run a docker command that fails. Returns: its error."""
        return self.shell('if docker "$@" 2>&1; then echo "it succeeded"; fi', *words)

    def shell(self, script: str, *words: str) -> str:
        """Run a shell script on the host. Returns: its output, whatever its exit code is."""
        return self.engine.shell("sh", "-c", f"{script}; exit 0", "sh", *words)

    def pyvtep(self, *words: str) -> str:
        """Run a pyvtep command on the host. Returns: its output."""
        return self.host.run(*self.engine.enter, sys.executable, "-m", "vtep", *words)

    def leftovers(self) -> str:
        """Return devices and rules of networks that are still there."""
        devices = re.findall(
            r"^\d+: (vx\w+|br-\w+)", self.host.run("ip", "-o", "link"), re.MULTILINE
        )
        rules = self.host.run("iptables", "-S") + self.host.run("iptables", "-S", "-t", "mangle")
        return " ".join(devices) + "".join(line for line in rules.splitlines() if "br-" in line)

    def close(self) -> None:
        self.engine.clear()
        # It was started for its networks, and ends with the last one.
        wait_until(lambda: self.daemon() is None, "the end of the daemon")
        self.plugin.terminate()
        assert self.plugin.wait(DEADLINE) == 0
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
            nodes.append(Node(host, outside, own, remote, folder))
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
    """Start a container on each host: 10.18.0.2 and 10.18.0.3."""
    for node, own in zip(nodes, "23", strict=True):
        node.engine.container("box", "mynetwork", "--ip", f"10.18.0.{own}")


def assert_joined(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    wait_until(lambda: a.engine.reaches("box", "10.18.0.3"), "a ping from .2 to .3")
    assert b.engine.reaches("box", "10.18.0.2")


def test_containers_reach_each_other_their_host_and_the_outside(nodes: tuple[Node, Node]) -> None:
    for node in nodes:
        node.create("--subnet", "10.18.0.0/16")
    boxes(nodes)
    assert_joined(nodes)
    for node, own in zip(nodes, "23", strict=True):
        assert node.engine.reaches("box", "10.18.0.1")
        node.host.run("ping", "-c1", "-W2", f"10.18.0.{own}")
        assert node.engine.reaches("box", OUTSIDE)
        assert "mtu 1450" in node.docker("exec", "box", "ip", "link", "show", "eth0")


def test_verbs(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    for node in nodes:
        node.create("--subnet", "10.18.0.0/16", "--label", "env=test")
    listed = a.docker("network", "ls", "--filter", "driver=pyvtep", "--format", "{{.Name}}")
    assert listed == "mynetwork"
    (shown,) = json.loads(a.docker("network", "inspect", "mynetwork"))
    assert shown["Options"] == {"vni": "200", "remote": B}
    bridge = f"br-{shown['Id'][:12]}"
    assert has_device(a.host, bridge)

    # connect and disconnect, while a container runs.
    a.engine.container("box", "bridge")
    b.engine.container("box", "mynetwork", "--ip", "10.18.0.3")
    a.docker("network", "connect", "--ip", "10.18.0.2", "--alias", "web", "mynetwork", "box")
    assert_joined(nodes)
    (shown,) = json.loads(a.docker("network", "inspect", "mynetwork"))
    (there,) = shown["Containers"].values()
    assert there["IPv4Address"] == "10.18.0.2/16"
    a.docker("network", "disconnect", "mynetwork", "box")
    assert not a.engine.reaches("box", "10.18.0.3")
    assert "10.18.0.2" not in a.docker("exec", "box", "ip", "addr")
    a.docker("network", "connect", "--ip", "10.18.0.2", "mynetwork", "box")
    assert_joined(nodes)

    # A network in use is not removed; the engine says so before the plug-in is asked.
    assert "has active endpoints" in a.refused("network", "rm", "mynetwork")
    a.docker("network", "prune", "--force")
    assert_joined(nodes)
    a.docker("rm", "--force", "box")
    assert "mynetwork" in a.docker("network", "prune", "--force")
    assert not has_device(a.host, bridge)
    assert not has_device(a.host, "vx200")
    b.docker("rm", "--force", "box")
    b.docker("network", "rm", "mynetwork")
    assert a.leftovers() == b.leftovers() == ""


def test_published_ports(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    for node in nodes:
        node.create("--subnet", "10.18.0.0/16")
    serve = ("sh", "-c", "while true; do echo hello from $(hostname -i) | nc -l -p 80; done")
    a.docker(
        *("run", "--detach", "--name", "web", "--net", "mynetwork", "--ip", "10.18.0.2"),
        *("--stop-signal", "KILL", "--publish", "8080:80", "busybox", *serve),
    )
    b.engine.container("box", "mynetwork", "--ip", "10.18.0.3")

    def fetched(node: Node, destination: str, port: str) -> bool:
        return "hello" in node.docker(
            "exec", "box", "nc", "-w", "2", destination, port, check=False
        )

    # From a container of the other host: by its address, and at the port of its host.
    wait_until(lambda: fetched(b, "10.18.0.2", "80"), "a reply over the segment")
    wait_until(lambda: fetched(b, A, "8080"), "a reply at the published port")
    # And from another machine.
    wait_until(
        lambda: "hello" in b.outside.run(*_FETCH, "192.0.106.2", "8080", check=False),
        "a reply to the outside",
    )


def test_three_networks_one_of_them_internal(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    for node, own in zip(nodes, "23", strict=True):
        node.create("--subnet", "10.18.0.0/16")
        node.create("--subnet", "10.19.0.0/16", "--internal", vni=201, name="second")
        node.create(
            *("--ipv6", "--subnet", "10.20.0.0/16", "--subnet", "fd00:20::/64"),
            *("-o", "com.docker.network.bridge.name=br-third", "-o", "mtu=1400"),
            vni=202,
            name="third",
        )
        node.engine.container("box", "mynetwork", "--ip", f"10.18.0.{own}")
        node.engine.container("inner", "second", "--ip", f"10.19.0.{own}")
        node.engine.container("dual", "third", "--ip", f"10.20.0.{own}", "--ip6", f"fd00:20::{own}")
        node.docker("network", "connect", "--ip", f"10.19.0.1{own}", "second", "box")
    vnis = json.loads(a.pyvtep("vni", "show", "--json"))
    assert [segment["vni"] for segment in vnis] == [200, 201, 202]
    # An attached network joins the same process, and all of them are shown together.
    a.docker("network", "create", "--subnet", "10.21.0.0/16", "attached")
    a.pyvtep("docker", "attach", "attached", "--vni", "203", "--remote", B)
    shown = json.loads(a.pyvtep("docker", "status", "--json"))
    assert [(each["network"], each["driver"], each["vni"], each["problem"]) for each in shown] == [
        ("attached", "bridge", 203, None),
        ("mynetwork", "pyvtep", 200, None),
        ("second", "pyvtep", 201, None),
        ("third", "pyvtep", 202, None),
    ]
    assert {each["pid"] for each in shown} == {a.daemon()}
    assert [container["name"] for container in shown[1]["containers"]] == ["box"]
    assert (shown[3]["bridge"], shown[3]["network_mtu"]) == ("br-third", 1400)
    a.pyvtep("docker", "detach", "attached")
    assert_joined(nodes)
    wait_until(lambda: a.engine.reaches("inner", "10.19.0.3"), "a ping on the second network")
    wait_until(lambda: a.engine.reaches("dual", "10.20.0.3"), "a ping on the third network")
    wait_until(lambda: a.engine.reaches("dual", "fd00:20::3"), "an IPv6 ping")
    assert a.engine.reaches("dual", "fd00:20::1")
    assert a.engine.reaches("box", "10.19.0.3")
    assert "mtu 1400" in a.docker("exec", "dual", "ip", "link", "show", "eth0")
    assert has_device(a.host, "br-third")

    # The internal network has no way out, and networks are apart from each other.
    assert not a.engine.reaches("inner", OUTSIDE)
    assert a.engine.reaches("dual", OUTSIDE)
    assert not a.engine.reaches("dual", "10.19.0.2")
    a.engine.container("plain", "bridge")
    assert a.engine.reaches("plain", OUTSIDE)
    for destination in ("10.18.0.2", "10.19.0.2"):
        assert not a.engine.reaches("plain", destination)


def test_mistakes_are_refused_at_create(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    a.create("--subnet", "10.18.0.0/16")
    a.pyvtep("vni", "add", "300", "--remote", B)
    command = ("network", "create", "-d", "pyvtep")
    for options, reason in (
        (("vni=16777216",), "-o vni=16777216: must be from 0 to 16777215"),
        (("vni=1", "remote=192.0.2"), "-o remote=192.0.2: is not an IP address"),
        (("vni=1", "mtu=67"), "-o mtu=67: must be from 68 to"),
        (("vni=1", "vxlan=1"), "-o vxlan: is not an option of the driver"),
        (("remote=192.0.2.2",), "-o vni is missing"),
        (("vni=200",), "-o vni=200: network "),
        (("vni=300",), "-o vni=300: "),
        (("vni=1", "local=192.0.2.99"), "-o dstport=4789: vni 200 and vni 1 share it"),
    ):
        words = [word for option in options for word in ("-o", option)]
        assert reason in a.refused(*command, *words, "other")
    for subnet, reason in (
        ("172.31.0.96/27", "has the address of the remote 172.31.0.107"),
        ("172.31.0.0/28", "overlaps with the subnet 172.31.0.0/24 of the device eth0"),
        ("10.18.5.0/24", "overlaps with 10.18.0.0/16 of the network "),
    ):
        # Without Docker's IPAM, which knows its own subnets only.
        words = ["-o", "vni=1", "-o", f"remote={B}", "--ipam-driver", "pyvtep"]
        assert reason in a.refused(*command, *words, "--subnet", subnet, "other")
    assert "other" not in a.docker("network", "ls")
    a.pyvtep("vni", "del", "300")
    a.docker("network", "rm", "mynetwork")
    assert a.leftovers() == ""


def test_a_bridge_of_the_administrator_stays(nodes: tuple[Node, Node]) -> None:
    a, _ = nodes
    a.host.run("ip", "link", "add", "lan0", "type", "bridge")
    try:
        name = "com.docker.network.bridge.name=lan0"
        a.create("--subnet", "10.18.0.0/16", "-o", name)
        assert "10.18.0.1/16" in a.host.run("ip", "addr", "show", "lan0")
        # Its traffic with other devices is not for us to drop.
        assert "lan0" not in a.host.run("iptables", "-S", "-t", "mangle")
        assert "-A FORWARD -i lan0 -o lan0 -j ACCEPT" in a.host.run("iptables", "-S")
        a.docker("network", "rm", "mynetwork")
        assert has_device(a.host, "lan0")
        assert "10.18.0.1" not in a.host.run("ip", "addr", "show", "lan0")
        assert "lan0" not in a.host.run("iptables", "-S")
    finally:
        a.host.run("ip", "link", "del", "lan0")


def test_documentation(nodes: tuple[Node, Node]) -> None:
    by_prompt = {node.host.name: node for node in nodes}
    pings = 0
    for heading in ("Create a network", "Options"):
        for prompt, typed, output in commands("docs/docker.md", heading):
            node = by_prompt[prompt]
            if typed.startswith("pyvtep "):
                shown = node.pyvtep(*typed.split()[1:])
                changes = " set " in typed or " add " in typed
                assert changes or "200" in shown
                continue
            if " ping " in typed:
                pinged = partial(node.shell, typed)
                wait_until(lambda: "1 packets received" in pinged(), typed)  # noqa: B023
                pings += 1
            elif output:
                assert node.shell(f"{typed} 2>&1").splitlines() == output
            else:
                node.engine.shell("sh", "-ec", typed)
    assert pings == 1
    (changed,) = json.loads(nodes[0].pyvtep("vni", "show", "--json"))
    assert changed["options"]["ageing"] == 60
    assert [remote["dst"] for remote in changed["remotes"]] == [B, "172.31.0.108"]


def test_kill_and_restart_of_each_part(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    for node in nodes:
        node.create("--subnet", "10.18.0.0/16")
    boxes(nodes)
    assert_joined(nodes)

    # The daemon: the plug-in starts another one, and adds the VNI again.
    a.kill_daemon()
    wait_until(lambda: not a.engine.reaches("box", "10.18.0.3"), "the end of the tunnel")
    assert_joined(nodes)
    # An upgrade replaces it, and keeps the VNI.
    a.pyvtep("upgrade")
    assert_joined(nodes)
    # The VNI, by an operator.
    a.pyvtep("vni", "del", "200")
    assert_joined(nodes)

    # The plug-in: nothing depends on it while no container comes or goes.
    a.kill_plugin()
    assert_joined(nodes)
    assert a.engine.reaches("box", "10.18.0.1")
    a.start_plugin()
    a.engine.container("late", "mynetwork", "--ip", "10.18.0.9")
    wait_until(lambda: b.engine.reaches("box", "10.18.0.9"), "a ping to a new container")
    a.docker("rm", "--force", "late")

    # Both, the state and the bridge: network and endpoints are looked up at the engine.
    a.kill_plugin()
    a.kill_daemon()
    (a.state / "networks.json").unlink()
    a.host.run("ip", "link", "del", a.engine.bridge("mynetwork"))
    a.start_plugin()
    a.docker("run", "--rm", "--net", "mynetwork", "--ip", "10.18.0.9", "busybox", "cat")
    assert_joined(nodes)

    # The engine, which kills its containers when it comes back.
    a.kill_engine()
    assert b.engine.reaches("box", "10.18.0.2")
    a.engine.start()
    a.docker("start", "box")
    assert_joined(nodes)

    # A network that the engine has removed, while the plug-in could not.
    a.kill_plugin()
    state = (a.state / "networks.json").read_text()
    a.start_plugin()
    a.docker("rm", "--force", "box")
    a.docker("network", "rm", "mynetwork")
    a.kill_plugin()
    (a.state / "networks.json").write_text(state)
    a.start_plugin()
    wait_until(lambda: "the engine has it no more" in a.log, "the comparison with the engine")
    wait_until(lambda: a.leftovers() == "", "the removal of the network")


def test_start_in_any_order_after_a_boot(nodes: tuple[Node, Node]) -> None:
    a, b = nodes
    for node in nodes:
        node.create("--subnet", "10.18.0.0/16")
    a.engine.container("box", "mynetwork", "--ip", "10.18.0.2", "--restart", "always")
    b.engine.container("box", "mynetwork", "--ip", "10.18.0.3")
    bridge = a.engine.bridge("mynetwork")
    for order in permutations(("engine", "plugin", "daemon")):
        assert_joined(nodes)
        a.engine.stop()
        a.kill_plugin()
        a.kill_daemon()
        a.host.run("ip", "link", "del", bridge)
        before = len(a.engine.log)
        for part in order:
            if part == "engine":
                a.engine.launch()
                if order.index("engine") > order.index("plugin"):
                    a.engine.wait()
                elif order[0] == "daemon":
                    # It gives the plug-in up, and with it the container.
                    a.engine.wait()
                    assert not a.engine.reaches("box", "10.18.0.3")
                else:
                    retrying = "pyvtep.sock"
                    wait_until(lambda: retrying in a.engine.log[before:], "its wait")  # noqa: B023
            elif part == "plugin":
                a.start_plugin()
            else:
                a.start_daemon()
        a.engine.wait()
    assert_joined(nodes)
