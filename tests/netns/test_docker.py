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
    """A pyvtep on the host of an engine, with its TAP in the bridge of mynetwork."""

    def __init__(self, engine: Engine, folder: Path, remote: str, *options: str) -> None:
        self.engine = engine
        arguments = ("--vni", "200", "--remote", remote, "--tap", "vx_docker", "--control", "auto")
        command = (*arguments, "--docker-network", "mynetwork", *options)
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
    engine.docker("network", "create", "--subnet", "10.18.0.0/16", *options, "mynetwork")


def boxes(engines: tuple[Engine, Engine], ip6: str | None = None) -> None:
    """Start a container called box on each engine: 10.18.0.2 and 10.18.0.3."""
    for engine, own in zip(engines, "23", strict=True):
        options = () if ip6 is None else ("--ip6", ip6 + own)
        engine.container("box", "mynetwork", "--ip", f"10.18.0.{own}", *options)


def assert_joined(engines: tuple[Engine, Engine]) -> None:
    """Wait until the boxes reach each other."""
    a, b = engines
    wait_until(lambda: a.reaches("box", "10.18.0.3"), "a ping from .2 to .3")
    assert b.reaches("box", "10.18.0.2")


def gateway_of(engine: Engine, container: str, address: str = "10.18.0.1") -> str:
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
    for engine, own in zip(engines, ("10.18.0.2", "10.18.0.3"), strict=True):
        engine.docker("network", "create", "--subnet", "10.18.0.0/16", "mynetwork")
        engine.container("box", "mynetwork", "--ip", own)
    a, b = engines
    assert a.reaches("box", "10.18.0.1")
    assert not a.reaches("box", "10.18.0.3")
    assert not b.reaches("box", "10.18.0.2")

    vteps = []
    for engine, remote in ((a, B), (b, A)):
        arguments = ("--vni", "200", "--remote", remote, "--tap", "vx_docker")
        vteps.append(start(engine.host, *arguments, "--anycast-gateway", "10.18.0.1"))
        bridge = engine.docker(
            "network", "ls", "--filter", "name=mynetwork", "--format", "br-{{.ID}}"
        )
        engine.host.run("ip", "link", "set", "vx_docker", "master", bridge)

    wait_until(lambda: a.reaches("box", "10.18.0.3"), "a ping from .2 to .3")
    assert b.reaches("box", "10.18.0.2")
    probe_from_foreign_gateways(engines, "10.18.0.")
    for engine in engines:
        assert gateway_of(engine, "box") == mac_of(engine.host, engine.bridge("mynetwork"))
    for vtep in vteps:
        counters = vtep.counters()
        assert (
            vtep.unexpected_drops()
            == counters["anycast_gw_suppressed_rx"] + counters["anycast_gw_suppressed_tx"]
        )
        assert vtep.stop() == 0


@pytest.fixture
def host_daemons(engines: tuple[Engine, Engine]) -> Iterator[None]:
    """End the processes that `docker attach` has started, also if a test fails."""
    yield
    for engine in engines:
        for pid in daemons(engine):
            engine.host.run("kill", "-9", pid, check=False)


def daemons(engine: Engine) -> list[str]:
    """Return the processes that `docker attach` has started on the host of an engine."""
    namespace = engine.host.run("readlink", "/proc/self/ns/net")
    found = engine.host.run("pgrep", "-f", "vtep --on-demand", check=False).split()
    inside = [pid for pid in found if Path(f"/proc/{pid}/ns/net").exists()]
    return [
        pid for pid in inside if str(Path(f"/proc/{pid}/ns/net").readlink()) == namespace.strip()
    ]


def attached(engine: Engine, network: str, *options: str) -> str:
    """Attach a network by the command. Returns: what it has printed to standard error."""
    done = pyvtep(engine, "docker", "attach", network, *options)
    assert done.returncode == 0, done
    assert f"is on its bridge {engine.bridge(network)}, process " in done.stdout
    return done.stderr


def test_attach_status_and_detach(engines: tuple[Engine, Engine], host_daemons: None) -> None:
    del host_daemons
    for engine in engines:
        mtu = "com.docker.network.driver.mtu=1450"
        create(engine, "--opt", mtu, "--ipv6", "--subnet", "fd00:18::/64")
    boxes(engines, "fd00:18::")
    a, b = engines
    for engine, remote in ((a, B), (b, A)):
        options = ("--vni", "200", "--remote", remote, "--tap", "vx_docker")
        advice = attached(engine, "mynetwork", *options)
        assert "two containers may get the same: give each host a range of its own" in advice
    assert_joined(engines)

    # Both bridges are 10.18.0.1; each container must have the MAC of the one on its own host.
    probe_from_foreign_gateways(engines, "10.18.0.", "fd00:18::")
    for engine in engines:
        own = mac_of(engine.host, engine.bridge("mynetwork"))
        assert gateway_of(engine, "box") == own
        assert gateway_of(engine, "box", "fd00:18::1") == own

    shown = pyvtep(a, "docker", "status").stdout
    (pid,) = daemons(a)
    bridge = a.bridge("mynetwork")
    assert f"mynetwork: vni 200 on vx_docker (mtu 1450) to {B}, process {pid}\n" in shown
    assert f"  bridge {bridge}, containers have mtu 1450\n" in shown
    assert "10.18.0.2/16" in shown
    said = status(b)
    assert said["remotes"] == [A]
    assert said["problem"] is None
    assert [one["name"] for one in said["containers"]] == ["box"]

    # The network ID names the same network, as for docker itself.
    number = a.docker("network", "inspect", "--format", "{{.Id}}", "mynetwork")
    for name in ("mynetwork", number[:3]):
        again = pyvtep(a, "docker", "attach", name, "--vni", "9", "--remote", B)
        assert again.returncode == 1
        assert f"attached already, by vx_docker (vni 200) on its bridge {bridge}" in again.stderr

    done = pyvtep(a, "docker", "detach", number[:12])
    assert (done.returncode, done.stderr) == (0, "")
    assert not has_device(a.host, "vx_docker")
    assert not a.reaches("box", "10.18.0.3")
    assert "not attached" in pyvtep(a, "docker", "detach", "mynetwork").stderr
    wait_until(lambda: not daemons(a), "the end of the process with its last VNI")


def test_three_networks_on_one_daemon(engines: tuple[Engine, Engine], host_daemons: None) -> None:
    del host_daemons
    networks = {"first": 201, "second": 202, "third": 203}
    for engine, own in zip(engines, "23", strict=True):
        for name, number in networks.items():
            subnet = f"10.{number - 180}.0.0/16"
            engine.docker("network", "create", "--subnet", subnet, name)
            engine.container(f"box-{name}", name, "--ip", f"10.{number - 180}.0.{own}")
    a, b = engines

    def attach_all(engine: Engine, remote: str) -> None:
        # All at the same time: one of the commands starts the process, and the others join it.
        commands = [
            engine.command(
                *(sys.executable, "-m", "vtep", "docker", "attach", name),
                *("--vni", str(number), "--remote", remote),
            )
            for name, number in networks.items()
        ]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        for each in running:
            assert each.wait(DEADLINE) == 0
            assert each.stdout is not None
            each.stdout.close()

    def assert_all_joined() -> None:
        for name, number in networks.items():
            destination = f"10.{number - 180}.0.3"
            wait_until(lambda: a.reaches(f"box-{name}", destination), f"a ping in {name}")  # noqa: B023

    for engine, remote in ((a, B), (b, A)):
        attach_all(engine, remote)
    (pid,) = daemons(a)
    assert_all_joined()
    assert not a.reaches("box-first", "10.22.0.3")
    said = json.loads(pyvtep(a, "docker", "status", "--json").stdout)
    assert [(one["network"], one["vni"], one["pid"]) for one in said] == [
        (name, number, int(pid)) for name, number in networks.items()
    ]

    # A killed process leaves nothing that keeps the next one from starting.
    a.host.run("kill", "-9", pid)
    wait_until(lambda: not has_device(a.host, "vx203"), "the kernel to remove its TAPs")
    assert (
        pyvtep(a, "docker", "status").stdout == "pyvtep has joined no Docker network on this host\n"
    )
    attach_all(a, B)
    assert len(daemons(a)) == 1
    assert_all_joined()

    # The others go on when one network leaves the process.
    assert pyvtep(a, "docker", "detach", "second").returncode == 0
    assert not a.reaches("box-second", "10.22.0.3")
    assert a.reaches("box-first", "10.21.0.3")
    for name in ("first", "third"):
        assert pyvtep(a, "docker", "detach", name).returncode == 0
    wait_until(lambda: not daemons(a), "the end of the process with its last VNI")


def test_start_in_every_order(engines: tuple[Engine, Engine], tmp_path: Path) -> None:
    """A configuration file with a network of an engine that does not run yet."""
    a, b = engines
    create(b)
    b.container("box", "mynetwork", "--ip", "10.18.0.3")
    far = Attached(b, tmp_path, A)
    file = tmp_path / "vx.toml"
    file.write_text(
        f'remote = ["{B}"]\n[[vni]]\nid = 200\ntap = "vx_docker"\ndocker-network = "mynetwork"\n'
    )

    def start() -> Pyvtep:
        options = ("--config", str(file), "--control", "auto")
        return Pyvtep(a.host, tmp_path, *options, prefix=a.enter).ready()

    def is_on_bridge() -> bool:
        bridge = a.bridge("mynetwork")
        return f"master {bridge} " in a.host.run("ip", "link", "show", "vx_docker")

    # pyvtep, engine, network.
    a.stop()
    vtep = start()
    wait_until(lambda: "the Docker engine at " in vtep.log, "the engine to be missed")
    problems = json.loads(pyvtep(a, "status", "--json").stdout)["problems"]
    assert "docker-network" in [each["problem"] for each in problems]
    a.start()
    wait_until(lambda: "has no network mynetwork" in vtep.log, "the network to be missed")
    create(a)
    a.container("box", "mynetwork", "--ip", "10.18.0.2")
    assert_joined(engines)
    # pyvtep last, by a crash: the engine and the network are there.
    vtep.process.kill()
    vtep.wait()
    vtep = start()
    wait_until(is_on_bridge, "the TAP on the bridge")
    assert_joined(engines)
    # Engine last: the network is there as soon as the engine is.
    assert vtep.stop() == 0
    a.stop()
    vtep = start()
    a.start()
    a.docker("start", "box")
    assert_joined(engines)
    # The network can be taken away and given back while it runs.
    assert pyvtep(a, "set", "--docker-network", "none").returncode == 0
    assert "master" not in a.host.run("ip", "link", "show", "vx_docker")
    assert pyvtep(a, "set", "--docker-network", "mynetwork").returncode == 0
    wait_until(is_on_bridge, "the TAP on the bridge")
    assert_joined(engines)
    assert vtep.stop() == 0
    assert far.stop() == 0


def test_address_range_and_gateway_of_each_host(
    engines: tuple[Engine, Engine], attach: Attach
) -> None:
    for engine, part in zip(engines, ("10.18.1", "10.18.2"), strict=True):
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
    assert a.reaches("first", "10.18.2.1")
    assert b.reaches("first", "10.18.1.1")
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
    assert address_of(a, "first") == address_of(b, "second") == "10.18.0.2"
    # Only the second host reports it: before, there was no duplicate.
    for twice in ("10.18.0.2", "fd00:18::2"):
        other.says(f"container second has the address {twice}, and so has one on another host")
    assert "and so has one" not in side.log


def test_upgrades_engine_restart_and_recreated_network(
    engines: tuple[Engine, Engine], attach: Attach
) -> None:
    for engine in engines:
        create(engine)
    boxes(engines)
    side, _ = attach()
    assert_joined(engines)
    a, b = engines
    bridge = a.bridge("mynetwork")

    def upgrade(pid: int) -> int:
        done = pyvtep(a, "upgrade")
        assert done.stdout.startswith(f"upgraded: pid {pid} -> "), done.stderr
        found = status(a)["pid"]
        assert found != pid
        return int(found)

    a.docker("exec", "--detach", "box", "sh", "-c", "ping -c 5 10.18.0.3 >/pings")
    pid = upgrade(side.process.pid)
    assert side.wait() == 0
    wait_until(lambda: "transmitted" in a.docker("exec", "box", "cat", "/pings"), "the pings")
    assert "5 packets transmitted, 5 packets received" in a.docker("exec", "box", "cat", "/pings")

    a.stop()
    said = status(a)
    assert said["bridge"] == bridge
    assert "does not answer" in said["problem"]
    shown = pyvtep(a, "docker", "status").stdout
    assert f"  bridge {bridge}, containers are unknown\n" in shown
    side.says("does not answer: its networks stay attached as they are")
    # An upgrade needs no engine to stay on the bridge.
    pid = upgrade(pid)
    assert f"master {bridge} " in a.host.run("ip", "link", "show", "vx_docker")
    # The bridge is removed too, as by a reboot: the engine creates it again with the same name.
    a.host.run("ip", "link", "del", bridge)
    a.start()
    a.docker("start", "box")
    side.says("answers again")
    assert_joined(engines)

    a.docker("rm", "--force", "box")
    a.docker("network", "rm", "mynetwork")
    recipe = "docker network create --subnet 10.18.0.0/16 "
    side.says(f"network mynetwork is gone; waiting for one of that name: {recipe}")
    assert f"waiting for one of that name: {recipe}" in status(a)["problem"]
    create(a, "--gateway", "10.18.0.9")
    assert a.bridge("mynetwork") != bridge
    side.on(a.bridge("mynetwork"))
    a.container("box", "mynetwork", "--ip", "10.18.0.2")
    assert_joined(engines)
    assert b.reaches("box", "10.18.0.9")

    # It still does what a process that a command has started does.
    done = pyvtep(a, "docker", "detach", "mynetwork")
    assert (done.returncode, done.stderr) == (0, "")
    assert not has_device(a.host, "vx_docker")
    a.host.run("kill", str(pid))


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
        side.says("10.18.0.1 is the gateway of another host, too")
        probe_from_foreign_gateways(engines, "10.18.0.")
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
            side.says("--ip-range 10.18.1.0/24")
            side.says("from those on other hosts as well: create it without that option")
        a.host.run("nft", "insert rule inet guard input udp dport 4789 accept")
        # The tunnel works now, but a firewall separates the containers.
        wait_until(lambda: sides[0].counter("rx_frames") > 0, "frames to arrive")
        assert not b.reaches("box", "10.18.0.2")
        for side in sides:
            assert side.stop() == 0, side.log
    finally:
        a.host.run("nft", "delete", "table", "inet", "guard")


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


def test_a_pyvtep_that_may_not_probe_says_so(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    a, _ = engines
    create(a)
    # Without a Docker network, it gives CAP_NET_RAW up at its start.
    arguments = ("--vni", "9", "--remote", B, "--control", "auto")
    vtep = Pyvtep(a.host, tmp_path, *arguments, prefix=a.enter).ready()
    warning = f"are not probed for, as process {vtep.process.pid} has no CAP_NET_RAW: restart it"
    assert warning in attached(a, "mynetwork", "--vni", "200", "--remote", B)
    wait_until(lambda: warning in vtep.log, f"{warning!r} in {vtep.log}")
    assert vtep.stop() == 0


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
