"""Containers of two real Docker engines in one subnet, as on two hosts of a data center."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.engines import Engine
from tests.netns.hosts import (
    DEADLINE,
    Pyvtep,
    Start,
    address,
    has_device,
    kernel_vtep,
    mac_of,
    ping,
    wait_until,
)
from vtep.testing.lab import Lab

A, B = "172.31.0.106", "172.31.0.107"
"""Underlay addresses of the two hosts."""

_LISTEN = "tail -f /dev/null | nc -l -p 99 | sha256sum >/sum"
"""Keeps the input of nc open, which would end the connection before it receives anything."""

Attach = Callable[..., tuple["Attached", "Attached"]]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Engine, Engine]]:
    with Lab() as lab:
        a, b = lab.host("host-106"), lab.host("host-107")
        lab.wire(a, b)
        for host, own in ((a, A), (b, B)):
            address(host, "eth0", f"{own}/24")
        with Engine(a) as first, Engine(b) as second:
            yield first, second


@pytest.fixture
def engines(both: tuple[Engine, Engine]) -> Iterator[tuple[Engine, Engine]]:
    """Two engines without user-defined networks or containers."""
    yield both
    for engine in both:
        engine.clear()


class Attached(Pyvtep):
    """`pyvtep docker attach mynetwork` on the host of an engine, with its TAP in the bridge."""

    def __init__(self, engine: Engine, folder: Path, remote: str, *options: str) -> None:
        self.engine = engine
        arguments = ("--vni", "200", "--remote", remote, "--tap", "vx_docker", "--control", "auto")
        command = ("docker", "attach", "mynetwork", *arguments, *options)
        super().__init__(engine.host, folder, *command, prefix=engine.enter)
        self.ready()
        self.on(engine.bridge("mynetwork"))

    def on(self, bridge: str) -> None:
        wait_until(
            lambda: f"vx_docker is on its bridge {bridge}" in self.log, f"{bridge}: {self.log}"
        )

    def says(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in {self.log}")


@pytest.fixture
def attach(engines: tuple[Engine, Engine], tmp_path: Path) -> Iterator[Attach]:
    """Return a function that attaches the network of both engines."""
    running: list[Attached] = []

    def both_sides(*options: str) -> tuple[Attached, Attached]:
        a, b = engines
        sides = Attached(a, tmp_path, B, *options), Attached(b, tmp_path, A, *options)
        running.extend(sides)
        return sides

    yield both_sides
    for side in running:
        if side.process.poll() is None:
            assert side.stop() == 0


def create(engine: Engine, *options: str) -> None:
    engine.docker("network", "create", "--subnet", "172.18.0.0/16", *options, "mynetwork")


def boxes(engines: tuple[Engine, Engine], ip6: str | None = None) -> None:
    """Start a container called box on each engine: 172.18.0.2 and 172.18.0.3."""
    for engine, own in zip(engines, "23", strict=True):
        options = () if ip6 is None else ("--ip6", ip6 + own)
        engine.container("box", "mynetwork", "--ip", f"172.18.0.{own}", *options)


def assert_joined(engines: tuple[Engine, Engine]) -> None:
    """Wait until the boxes reach each other."""
    a, b = engines
    wait_until(lambda: a.reaches("box", "172.18.0.3"), "a ping from .2 to .3")
    assert b.reaches("box", "172.18.0.2")


def gateway_of(engine: Engine, container: str, address: str = "172.18.0.1") -> str:
    """Return the MAC address of the gateway in the neighbour table of a container."""
    command = ("exec", container, "ip", "neigh", "show", address)
    found = re.search(r"lladdr (\S+)", engine.docker(*command))
    # An IPv6 address of a new container may still be tentative.
    wait_until(lambda: engine.reaches(container, address), f"a ping to {address}")
    found = found or re.search(r"lladdr (\S+)", engine.docker(*command))
    assert found
    return found[1]


def probe_from_foreign_gateways(engines: tuple[Engine, Engine], *prefixes: str) -> None:
    """Ping the container of each host from the gateway of the other, which announces its MAC.

    The gateways end with 1, the containers with 2 and 3.
    """
    for engine in engines:
        bridge = engine.bridge("mynetwork")
        for prefix in prefixes:
            assert gateway_of(engine, "box", f"{prefix}1") == mac_of(engine.host, bridge)
        engine.host.run("ip", "neigh", "flush", "dev", bridge)
    # Repeated, since Linux ignores a changed MAC within a second of the last update (locktime).
    asking = [
        engine.host.start("ping", "-c3", "-W1", f"{prefix}{box}", stdout=subprocess.DEVNULL)
        for engine, box in zip(engines, (3, 2), strict=True)
        for prefix in prefixes
    ]
    for ask in asking:
        assert ask.wait(DEADLINE) == 1


def pyvtep(engine: Engine, *arguments: str, user: str = "root") -> subprocess.CompletedProcess[str]:
    """Run a pyvtep command on the host of an engine to its end."""
    as_user = () if user == "root" else ("setpriv", f"--reuid={user}", "--clear-groups")
    return subprocess.run(
        [*engine.command(*as_user, sys.executable, "-m", "vtep", *arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )


def test_walk_through_by_hand(engines: tuple[Engine, Engine], start: Start) -> None:
    for engine, own in zip(engines, ("172.18.0.2", "172.18.0.3"), strict=True):
        engine.docker("network", "create", "--subnet", "172.18.0.0/16", "mynetwork")
        engine.container("box", "mynetwork", "--ip", own)
    a, b = engines
    assert a.reaches("box", "172.18.0.1")
    assert not a.reaches("box", "172.18.0.3")
    assert not b.reaches("box", "172.18.0.2")

    vteps = []
    for engine, remote in ((a, B), (b, A)):
        arguments = ("--vni", "200", "--remote", remote, "--tap", "vx_docker")
        vteps.append(start(engine.host, *arguments, "--anycast-gateway", "172.18.0.1"))
        bridge = engine.docker(
            "network", "ls", "--filter", "name=mynetwork", "--format", "br-{{.ID}}"
        )
        engine.host.run("ip", "link", "set", "vx_docker", "master", bridge)

    wait_until(lambda: a.reaches("box", "172.18.0.3"), "a ping from .2 to .3")
    assert b.reaches("box", "172.18.0.2")
    probe_from_foreign_gateways(engines, "172.18.0.")
    for engine in engines:
        assert gateway_of(engine, "box") == mac_of(engine.host, engine.bridge("mynetwork"))
    for vtep in vteps:
        counters = vtep.counters()
        assert (
            vtep.unexpected_drops()
            == counters["anycast_gw_suppressed_rx"] + counters["anycast_gw_suppressed_tx"]
        )
        assert vtep.stop() == 0


def test_attach_status_and_detach(engines: tuple[Engine, Engine], attach: Attach) -> None:
    for engine in engines:
        mtu = "com.docker.network.driver.mtu=1450"
        create(engine, "--opt", mtu, "--ipv6", "--subnet", "fd00:18::/64")
    boxes(engines, "fd00:18::")
    sides = attach()
    assert_joined(engines)

    # Both bridges are 172.18.0.1; each container must have the MAC of the one on its own host.
    for side in sides:
        side.says("172.18.0.1 is the gateway of another host, too")
    probe_from_foreign_gateways(engines, "172.18.0.", "fd00:18::")
    a, b = engines
    for engine, side in zip(engines, sides, strict=True):
        own = mac_of(engine.host, engine.bridge("mynetwork"))
        assert gateway_of(engine, "box") == own
        assert gateway_of(engine, "box", "fd00:18::1") == own
        # Some frames may have arrived before the other side knew that the address is shared.
        counters = side.counters()
        assert counters["anycast_gw_suppressed_tx"] > 0
        assert (
            side.unexpected_drops()
            == counters["anycast_gw_suppressed_rx"] + counters["anycast_gw_suppressed_tx"]
        )

    shown = pyvtep(a, "docker", "status").stdout
    pid = sides[0].process.pid
    bridge = a.bridge("mynetwork")
    assert f"mynetwork: vni 200 on vx_docker (mtu 1450) to {B}, process {pid}\n" in shown
    assert f"  bridge {bridge}, containers have mtu 1450\n" in shown
    assert "172.18.0.2/16" in shown
    said = status(b)
    assert said["remotes"] == [A]
    assert said["problem"] is None
    assert [one["name"] for one in said["containers"]] == ["box"]

    again = pyvtep(a, "docker", "attach", "mynetwork", "--vni", "9", "--remote", B)
    assert again.returncode == 1
    assert f"bridge {bridge} is attached already, by vx_docker of network" in again.stderr
    # The network ID names the same network, as for docker itself.
    number = a.docker("network", "inspect", "--format", "{{.Id}}", "mynetwork")
    for name in (number, number[:3]):
        again = pyvtep(a, "docker", "attach", name, "--vni", "9", "--remote", B)
        assert again.returncode == 1
        assert "attached already" in again.stderr

    done = pyvtep(a, "docker", "detach", number[:12])
    assert (done.returncode, done.stderr) == (0, "")
    assert not has_device(a.host, "vx_docker")
    assert sides[0].wait() == 0
    assert not a.reaches("box", "172.18.0.3")
    assert "not attached" in pyvtep(a, "docker", "detach", "mynetwork").stderr

    # A killed process keeps no lock.
    sides[1].process.kill()
    sides[1].wait()
    assert pyvtep(b, "docker", "status").stdout == "no network is attached on this host\n"


def test_address_range_and_gateway_of_each_host(
    engines: tuple[Engine, Engine], attach: Attach
) -> None:
    for engine, part in zip(engines, ("172.18.1", "172.18.2"), strict=True):
        create(engine, "--ip-range", f"{part}.0/24", "--gateway", f"{part}.1")
        for name in ("first", "second"):
            engine.container(name, "mynetwork")
    sides = attach()
    given = [address_of(engine, name) for engine in engines for name in ("first", "second")]
    assert len(set(given)) == 4, given
    a, b = engines
    wait_until(lambda: a.reaches("first", given[3]), "a ping across")
    assert b.reaches("first", given[1])
    # Each host reaches the containers and the gateway of the other.
    ping(a.host, given[3], count=1)
    ping(b.host, given[0], count=1)
    assert a.reaches("first", "172.18.2.1")
    assert b.reaches("first", "172.18.1.1")
    for side in sides:
        assert "is the gateway of another host, too" not in side.log
        side.says("containers have an MTU of 1500, but the tunnel carries 1450: that works")
        assert "may get the same" not in side.log

    # A container does not know the MTU of the tunnel.
    b.docker("exec", "--detach", "second", "sh", "-c", _LISTEN)
    wait_until(lambda: ":99 " in b.docker("exec", "second", "netstat", "-ltn"), "nc to listen")
    a.docker("exec", "first", "dd", "if=/dev/urandom", "of=/blob", "bs=1M", "count=20")
    sent = a.docker("exec", "first", "sh", "-c", f"nc {given[3]} 99 </blob; sha256sum </blob")
    wait_until(lambda: b.docker("exec", "second", "cat", "/sum"), "the end of it")
    assert b.docker("exec", "second", "cat", "/sum") == sent
    wait_until(lambda: a.reaches("first", given[3], "-s", "1472"), "a ping of 1500 octets")


def test_duplicate_container_address_is_reported(
    engines: tuple[Engine, Engine], attach: Attach
) -> None:
    a, b = engines
    for engine in engines:
        create(engine, "--ipv6", "--subnet", "fd00:18::/64")
    a.container("first", "mynetwork")
    side, other = attach()
    b.container("second", "mynetwork")
    assert address_of(a, "first") == address_of(b, "second") == "172.18.0.2"
    # Only the second host reports it: before, there was no duplicate.
    for twice in ("172.18.0.2", "fd00:18::2"):
        other.says(f"container second has the address {twice}, and so has one on another host")
    assert "and so has one" not in side.log


def test_engine_restart_and_recreated_network(
    engines: tuple[Engine, Engine], attach: Attach
) -> None:
    for engine in engines:
        create(engine)
    boxes(engines)
    side, _ = attach()
    assert_joined(engines)

    a, b = engines
    bridge = a.bridge("mynetwork")
    a.stop()
    said = status(a)
    assert said["bridge"] == bridge
    assert "does not answer" in said["problem"]
    shown = pyvtep(a, "docker", "status").stdout
    assert f"  bridge {bridge}, containers are unknown\n" in shown
    side.says("does not answer: network mynetwork stays attached as it is")
    # The bridge is removed too, as by a reboot: the engine creates it again with the same name.
    a.host.run("ip", "link", "del", bridge)
    a.start()
    a.docker("start", "box")
    side.says("answers again")
    assert_joined(engines)

    a.docker("rm", "--force", "box")
    a.docker("network", "rm", "mynetwork")
    recipe = "docker network create --subnet 172.18.0.0/16 "
    side.says(f"network mynetwork is gone; waiting for one of that name: {recipe}")
    assert f"the network is gone; to create it again: {recipe}" in status(a)["problem"]
    create(a, "--gateway", "172.18.0.9")
    assert a.bridge("mynetwork") != bridge
    side.on(a.bridge("mynetwork"))
    a.container("box", "mynetwork", "--ip", "172.18.0.2")
    assert_joined(engines)
    assert b.reaches("box", "172.18.0.9")
    assert side.process.poll() is None


def test_an_upgrade_stays_attached(engines: tuple[Engine, Engine], attach: Attach) -> None:
    for engine in engines:
        create(engine)
    boxes(engines)
    side, _ = attach("--wait")  # As the systemd unit does it.
    assert_joined(engines)
    a, _ = engines

    a.docker("exec", "--detach", "box", "sh", "-c", "ping -c 8 172.18.0.3 >/pings")
    pids = [side.process.pid]
    for _ in range(2):
        done = pyvtep(a, "upgrade")
        assert done.stdout.startswith(f"upgraded: pid {pids[-1]} -> "), done.stderr
        wait_until(lambda: status(a)["pid"] not in pids, "the record of the new process")
        pids.append(status(a)["pid"])
    assert side.wait() == 0
    wait_until(lambda: "transmitted" in a.docker("exec", "box", "cat", "/pings"), "the pings")
    assert "8 packets transmitted, 8 packets received" in a.docker("exec", "box", "cat", "/pings")

    # The new process cannot find the network: it neither waits for it, nor ends the old one.
    bridge = a.bridge("mynetwork")
    a.stop()
    done = pyvtep(a, "upgrade")
    assert (done.returncode, done.stdout) == (1, "")
    assert "exit code 1 before it took over: the Docker engine at " in done.stderr
    assert f"master {bridge} " in a.host.run("ip", "link", "show", "vx_docker")
    assert (said := status(a))["pid"] == pids[-1], said
    a.start()
    side.says("answers again")
    a.docker("start", "box")
    assert_joined(engines)

    # It follows the network to another bridge, and ends by its record.
    a.docker("rm", "--force", "box")
    a.docker("network", "rm", "mynetwork")
    create(a)
    assert a.bridge("mynetwork") != bridge
    side.on(a.bridge("mynetwork"))
    done = pyvtep(a, "docker", "detach", "mynetwork")
    assert (done.returncode, done.stderr) == (0, "")
    assert not has_device(a.host, "vx_docker")


def test_kernel_driver_as_the_remote(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    for engine in engines:
        create(engine)
    boxes(engines)
    a, b = engines
    side = Attached(a, tmp_path, B)
    kernel_vtep(b.host, 200, B, A)
    b.host.run("ip", "link", "set", "vx0", "master", b.bridge("mynetwork"))
    try:
        assert_joined(engines)
        side.says("172.18.0.1 is the gateway of another host, too")
        probe_from_foreign_gateways(engines, "172.18.0.")
        for engine in engines:
            own = mac_of(engine.host, engine.bridge("mynetwork"))
            assert gateway_of(engine, "box") == own
        assert side.stop() == 0, side.log
    finally:
        b.host.run("ip", "link", "del", "vx0")


def test_warnings_about_common_problems(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    a, b = engines
    for engine in engines:
        create(engine, "--opt", "com.docker.network.bridge.enable_icc=false")
    boxes(engines)
    a.host.run("nft", "add", "table", "inet", "guard")
    a.host.run(
        "nft", "add chain inet guard input { type filter hook input priority 0; policy drop; }"
    )
    try:
        sides = Attached(a, tmp_path, B), Attached(b, tmp_path, A)
        sides[0].says(f"drops UDP port 4789 from {B} by the policy ")
        sides[0].says("table inet guard (drop): nft insert rule inet guard input udp dport")
        for side in sides:
            side.says("--ip-range 172.18.1.0/24")
            side.says("from those on other hosts as well: create it without that option")
        a.host.run("nft", "insert rule inet guard input udp dport 4789 accept")
        # The tunnel works now, but a firewall separates the containers.
        wait_until(lambda: sides[0].counter("rx_frames") > 0, "frames to arrive")
        assert not b.reaches("box", "172.18.0.2")
        for side in sides:
            assert side.stop() == 0, side.log
    finally:
        a.host.run("nft", "delete", "table", "inet", "guard")


def test_two_networks_between_the_same_hosts(
    engines: tuple[Engine, Engine], attach: Attach, tmp_path: Path
) -> None:
    for engine, own in zip(engines, "23", strict=True):
        create(engine)
        engine.docker("network", "create", "--subnet", "172.19.0.0/16", "other")
        engine.container("box", "other", "--ip", f"172.19.0.{own}")
    attach()
    a, b = engines
    why = refused(a, "other").stderr
    assert "UDP port is taken on this host, by another pyvtep (see: ss -ulpn)" in why
    assert "give this one another --dstport, the same on all hosts" in why
    command = ("docker", "attach", "other", "--control", "auto", "--vni", "201")
    others = [
        Pyvtep(
            *(engine.host, tmp_path, *command, "--dstport", "4790", "--remote", remote),
            prefix=engine.enter,
        ).ready()
        for engine, remote in ((a, B), (b, A))
    ]
    wait_until(lambda: a.reaches("box", "172.19.0.3"), "a ping from .2 to .3")
    for other in others:
        assert other.stop() == 0


def test_dropping_iptables_rules_are_reported(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    a, _ = engines
    create(a)
    dropping = ["FORWARD -j DROP", f"INPUT -s {B} -p udp --dport 4789 -j REJECT"]
    for rule in dropping:
        a.host.run("iptables", "-I", *rule.split())
    try:
        side = Attached(a, tmp_path, B)
        inside = "-i {0} -o {0} -j ACCEPT".format(a.bridge("mynetwork"))
        side.says("drops frames that cross its bridge")
        side.says("by the rule “-A FORWARD -j DROP” (number 1) in chain FORWARD of the iptables")
        side.says(f"iptables -I FORWARD {inside}")
        side.says(f"drops UDP port 4789 from {B} by the rule ")
        assert side.stop() == 0, side.log
    finally:
        for rule in dropping:
            a.host.run("iptables", "-D", *rule.split())


@pytest.mark.parametrize(
    ("network", "why"),
    [
        ("nosuch", "has no network nosuch (docker network ls)"),
        ("host", "network host has no bridge"),
        ("none", "network none connects its containers to nothing"),
        ("of-macvlan", "network of-macvlan has no bridge"),
    ],
)
def test_refused(engines: tuple[Engine, Engine], network: str, why: str) -> None:
    a, _ = engines
    if network == "of-macvlan":
        a.docker("network", "create", "--driver", "macvlan", "--opt", "parent=eth0", network)
    done = refused(a, network)
    assert why in done.stderr
    assert not has_device(a.host, "vx200")


def test_unreachable_engine(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    a, _ = engines
    create(a)
    gone = f"unix://{tmp_path}/nothing.sock"
    assert (
        "does not answer (No such file or directory)"
        in refused(a, "mynetwork", "--docker-host", gone).stderr
    )
    assert (
        "no permission to talk to the Docker engine"
        in refused(a, "mynetwork", user="nobody").stderr
    )


def test_engine_of_another_host(engines: tuple[Engine, Engine]) -> None:
    a, b = engines
    create(a)
    done = refused(b, "mynetwork", "--docker-host", a.url)
    assert f"its bridge {a.bridge('mynetwork')} is not on this host" in done.stderr


def refused(
    engine: Engine, network: str, *options: str, user: str = "root"
) -> subprocess.CompletedProcess[str]:
    arguments = ("docker", "attach", network, "--vni", "200", "--remote", B, *options)
    done = pyvtep(engine, *arguments, user=user)
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done


def status(engine: Engine) -> dict[str, Any]:
    """Return what `pyvtep docker status --json` shows of the only attachment."""
    done = pyvtep(engine, "docker", "status", "--json")
    (said,) = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def address_of(engine: Engine, container: str) -> str:
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return engine.docker("inspect", "--format", template, container)
