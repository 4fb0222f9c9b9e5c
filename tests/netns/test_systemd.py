"""The systemd units under a real systemd: start, crash, restart, watchdog, log, and removal."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.fabric import Frr, Neighbor, bgp_config, kernel_leaf
from tests.netns.hosts import DEADLINE, Pair, wait_until
from tests.netns.machines import Machine
from tests.netns.test_documentation import commands

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    shutil.which("systemctl") is None, reason="needs the Debian package systemd"
)
needs_engine = pytest.mark.skipif(
    shutil.which("dockerd") is None, reason="needs the Debian package docker.io"
)

_CONFIG = """
remote = ["192.0.2.2"]
fast-path = false
[[vni]]
id = 1
tap = "vx0"
bridge = "br0"
[[vni]]
id = 2
tap = "vx2"
address = ["10.2.0.1/24"]
"""


@pytest.fixture
def machine(pair: Pair) -> Iterator[Machine]:
    """Return a machine on host a."""
    with Machine(pair[0]) as made:
        yield made


def test_the_exporter_reads_the_service_without_capabilities(machine: Machine) -> None:
    machine.write("/etc/pyvtep/a.toml", _CONFIG)
    machine.run("pyvtep service install")
    machine.run("systemctl start pyvtep-exporter")  # It may be the first of the two.
    machine.run("systemctl start pyvtep")
    scrape = (
        "/opt/pyvtep/bin/python -c 'import urllib.request as request; "
        'print(request.urlopen("http://127.0.0.1:9479/metrics").read().decode())\''
    )

    def is_up() -> bool:
        text = machine.run(f"{scrape} 2>&1 || true")
        return "\npyvtep_up 1.0\n" in text and 'device="vx2"' in text

    wait_until(is_up, "a scrape", 2 * DEADLINE)
    unit = "pyvtep-exporter.service"
    status = machine.run(f"cat /proc/{machine.show(unit, 'MainPID')}/status")
    assert "CapPrm:\t0000000000000000\n" in status
    machine.run("systemctl restart pyvtep")
    wait_until(is_up, "a scrape of the next process", 2 * DEADLINE)
    machine.run("systemctl stop pyvtep-exporter")
    assert machine.show(unit, "Result") == "success"
    assert f"removed /etc/systemd/system/{unit}" in machine.run("pyvtep service uninstall")


def test_the_life_of_a_service(machine: Machine) -> None:
    unit = "pyvtep.service"

    def pid() -> str:
        return machine.show(unit, "MainPID")

    def is_replaced(former: str) -> bool:
        return machine.show(unit, "ActiveState") == "active" and pid() not in ("0", former)

    def devices() -> str:
        """Return what a restart must not change: indices, bridge, and addresses."""
        links = machine.run("ip -o link show vx0; ip -o link show vx2").splitlines()
        addresses = machine.run("ip -o -4 address show vx0; ip -o -4 address show vx2")
        return "\n".join(line.split(" mtu ")[0] for line in links) + addresses

    machine.run("ip link add br0 type bridge && ip link set br0 up")
    machine.write("/etc/pyvtep/a.toml", _CONFIG)
    # A test cannot wait for the ten seconds of the unit.
    machine.write("/etc/systemd/system/pyvtep.service.d/test.conf", "[Service]\nWatchdogSec=3\n")
    installed = machine.run("pyvtep service install")
    assert "wrote /etc/systemd/system/pyvtep.service\n" in installed
    assert "ran systemctl daemon-reload\n" in installed

    # It is ready when its devices are, and the control socket is found by root.
    machine.run("systemctl start pyvtep")
    assert "master br0" in machine.run("ip -o link show vx0")
    assert "10.2.0.1/24" in machine.run("ip -o -4 address show vx2")
    assert "2 VNIs, together" in machine.run("pyvtep stats")
    assert machine.show(unit, "StatusText").startswith("forwarding: 2 VNIs, 1 remote, ")
    # What the unit hides from the process does not keep it from looking up names.
    machine.write("/etc/hosts", "127.0.0.1 localhost\n192.0.2.3 peer.test\n")
    machine.run("pyvtep remote add peer.test --vni 2")
    wait_until(lambda: "192.0.2.3  peer.test" in machine.run("pyvtep remote show"), "an address")
    assert "active (running), process" in machine.run("pyvtep service status")
    status = machine.run(f"cat /proc/{pid()}/status")
    uids = next(line.split()[1:] for line in status.splitlines() if line.startswith("Uid:"))
    assert "0" not in uids
    assert "NoNewPrivs:\t1\n" in status
    message = machine.run("journalctl --unit=pyvtep VNI=2 --output=cat").strip()
    assert message.startswith("vni 2 on vx2 ")

    # Neither a crash nor a restart removes a device, nor what others have configured on it.
    machine.run("ip address add 10.1.0.1/24 dev vx0")
    before = devices()
    assert "10.1.0.1/24" in before
    former = pid()
    machine.run(f"kill -KILL {former}")
    wait_until(lambda: is_replaced(former), "a restart after a crash", 2 * DEADLINE)
    assert devices() == before
    machine.run("systemctl restart pyvtep")
    assert devices() == before

    # A process that is stopped does not feed the watchdog.
    former = pid()
    machine.run(f"kill -STOP {former}")
    wait_until(lambda: is_replaced(former), "a restart by the watchdog", 2 * DEADLINE)
    assert devices() == before
    assert "Fatal Python error: Aborted" in machine.log()  # And where it was.

    # A TAP that is not configured any more goes with the next start.
    machine.write("/etc/pyvtep/a.toml", _CONFIG.partition("[[vni]]\nid = 2")[0])
    machine.run("systemctl restart pyvtep")
    wait_until(lambda: "vx2" not in machine.run("ip -o link"), "vx2 to be removed")
    assert "vx0" in machine.run("ip -o link")

    # A mistake names its line, and is not tried again.
    machine.write("/etc/pyvtep/b.toml", '[[vni]]\nid = 1\ntap = "vx9"\n')
    machine.run("systemctl restart pyvtep", code=1)
    wait_until(lambda: machine.show(unit, "ActiveState") == "failed", "the unit to fail")
    problem = "/etc/pyvtep/b.toml:2: id 1: defined twice; each VNI can be defined once"
    assert problem in machine.log()
    assert problem in machine.run("pyvtep service status")
    machine.run("rm /etc/pyvtep/b.toml; systemctl start pyvtep")

    removed = machine.run("pyvtep service uninstall")
    assert "ran systemctl disable --now pyvtep.service\n" in removed
    assert "kept /etc/pyvtep\n" in removed
    assert "vx0" not in machine.run("ip -o link")
    assert "pyvtep.service: not installed\n" in machine.run("pyvtep service status")


def test_the_sessions_of_evpn_outlive_a_reload_of_the_unit(
    machine: Machine, pair: Pair, tmp_path: Path
) -> None:
    """The speaker works with what the unit permits, and ends with the unit."""
    _, b = pair
    kernel_leaf(b, 1, "192.0.2.2", "02:00:00:00:00:0b", "10.0.0.2/24")
    family = ("advertise-all-vni", "advertise-svi-ip")
    neighbor = Neighbor("192.0.2.1", 65000, ("password secret",))
    frr = Frr(b, tmp_path, bgp_config(65000, "192.0.2.2", [neighbor], evpn_lines=family))
    machine.run("ip link add br0 type bridge forward_delay 0 && ip link set br0 up")
    machine.run("ip address add 10.0.0.1/24 dev br0")
    machine.write(
        "/etc/pyvtep/a.toml",
        '[evpn]\nasn = 65000\nneighbor = ["192.0.2.2,passive"]\npassword = "secret"\n'
        '[[vni]]\nid = 1\nbridge = "br0"\nevpn = true\nfast-path = false\n',
    )
    machine.run("pyvtep service install")
    machine.run("systemctl start pyvtep")

    def evpn() -> dict[str, Any]:
        return dict(json.loads(machine.run("pyvtep status --json || true"))["evpn"])

    def session() -> dict[str, Any]:
        return dict(frr.show("bgp neighbors 192.0.2.1")["192.0.2.1"])

    wait_until(lambda: session().get("bgpState") == "Established", "the session", 2 * DEADLINE)
    wait_until(lambda: not machine.run("ping -c1 -W1 10.0.0.2 >/dev/null || echo no"), "a ping")
    wait_until(lambda: "02:00:00:00:00:0b dev vx1" in machine.run("bridge fdb show"), "the entry")
    speaker, main = evpn()["speaker"]["pid"], machine.show("pyvtep.service", "MainPID")
    assert "EVPN session with 192.0.2.2: established" in machine.log()
    machine.run("systemctl reload pyvtep")
    assert machine.show("pyvtep.service", "MainPID") != main
    wait_until(lambda: evpn()["speaker"]["state"] == "running", "the speaker at the new process")
    assert evpn()["speaker"]["pid"] == speaker
    assert session()["connectionsEstablished"] == 1
    machine.run("systemctl stop pyvtep")
    assert machine.show("pyvtep.service", "Result") == "success"
    wait_until(lambda: session()["bgpState"] != "Established", "the end of the session")
    assert "Administrative Shutdown" in session()["lastNotificationReason"]
    assert "ended unexpectedly" not in machine.log()


def test_a_reload_is_one_of_the_process_of_its_unit(machine: Machine) -> None:
    """Others run in this network namespace, and the control socket may be anywhere."""

    def configure(name: str, number: int, more: str = "") -> None:
        text = f'remote = ["192.0.2.2"]\nfast-path = false\ndstport = {5000 + number}\n{more}'
        vni = f'[[vni]]\nid = {number}\ntap = "vx{number}"\n'
        machine.write(f"/etc/pyvtep/{name}.toml", text + vni)

    def pids() -> dict[str, str]:
        found = {unit: machine.show(unit, "MainPID") for unit in units}
        return found | {"by hand": machine.run("cat /run/pyvtep/vx9.pid").strip()}

    def replaced(before: dict[str, str]) -> list[str]:
        return [name for name, pid in pids().items() if pid != before[name]]

    # The third has a socket that is found only from within the unit, which has a /tmp of its own.
    controls = {"a": "", "b": "", "c": 'control = "/tmp/control"\n'}
    for number, (name, control) in enumerate(controls.items(), 1):
        configure(name, number, control)
    units = [f"pyvtep@{name}.service" for name in controls]
    machine.run("pyvtep service install")
    machine.run(f"systemctl start {' '.join(units)}")
    machine.run(
        "pyvtep --vni 9 --remote 192.0.2.2 --tap vx9 --dstport 5009 --no-fast-path --background"
    )
    assert "several pyvteps are running" in machine.run("pyvtep upgrade", code=1)
    for unit in units:
        before = pids()
        machine.run(f"systemctl reload {unit}")
        assert replaced(before) == [unit], machine.log()
        assert machine.show(unit, "ActiveState") == "active"
    before = pids()
    machine.run(f"pyvtep upgrade --pid {before['by hand']}")
    wait_until(lambda: replaced(before) == ["by hand"], "the PID file of the new process")

    # A mistake in its file is its own, too.
    before = pids()
    configure("c", 3, "nonsense = 1\n")
    assert "pyvtep@c.service" in machine.run("systemctl reload pyvtep@c", code=1)
    said = machine.run("journalctl --unit=pyvtep@c --output=cat")
    assert "exit code 2 before it took over: /etc/pyvtep/c.toml:4: nonsense" in said, said
    assert replaced(before) == []
    configure("c", 3, controls["c"])
    machine.run("systemctl reload pyvtep@c")
    assert replaced(before) == ["pyvtep@c.service"]

    # The end of a unit is that of its newest process, with all that it had, and of nothing else.
    pid = pids()["pyvtep@c.service"]
    machine.run("systemctl stop pyvtep@c")
    assert machine.show("pyvtep@c", "Result") == "success"
    links = machine.run("ip -o link")
    assert "vx3" not in links
    assert all(name in links for name in ("vx1", "vx2", "vx9"))
    left = f"ls -d /proc/{pid} /run/pyvtep/pyvtep@c 2>/dev/null || true"
    assert machine.run(left) == ""
    machine.run(f"systemctl stop {' '.join(units)} && kill {pids()['by hand']}")
    wait_until(lambda: "vx" not in machine.run("ip -o link"), "all TAPs to be removed")
    find = "find /run/pyvtep -type s -o -name '*.pid'"
    wait_until(lambda: machine.run(find) == "", "all files to be removed")


def test_an_upgrade_of_the_package_says_what_became_of_each_unit(machine: Machine) -> None:
    for name in "ab":
        machine.write(
            f"/etc/pyvtep/{name}.toml",
            f"fast-path = false\ndstport = {5000 + ord(name)}\n"
            f'[[vni]]\nid = {ord(name)}\ntap = "vx{name}"\nremote = "192.0.2.2"\n',
        )
    machine.run("pyvtep service install && systemctl start pyvtep@a pyvtep@b")
    # Another process has its UDP port, so it fails, and is started again and again.
    machine.run("sed s/vxa/vxc/ /etc/pyvtep/a.toml >/etc/pyvtep/c.toml")
    machine.run("systemctl start --no-block pyvtep@c")
    failing = "pyvtep@c.service"
    wait_until(lambda: machine.show(failing, "NRestarts") not in ("", "0"), "another attempt")
    units = ("pyvtep@a.service", "pyvtep@b.service")
    before = [machine.show(unit, "MainPID") for unit in units]
    machine.write("/etc/pyvtep/b.toml", "nonsense = 1\n")
    # It compiles the files of the package, which is not installed here.
    machine.write("/opt/pyvtep/bin/py3compile", "#!/bin/sh\n")
    script = (ROOT / "scripts/packaging/debian/postinst").read_text()
    machine.write("/postinst", script)
    machine.run("chmod 755 /opt/pyvtep/bin/py3compile")
    said = machine.run("sh /postinst configure 0.0.9-1")
    assert "pyvtep: pyvtep@a.service runs the new version\n" in said
    assert "pyvtep: warning: pyvtep@b.service was not upgraded, and its old process conti" in said
    assert f"pyvtep: {failing} was not up yet; it is started again with the new version\n" in said
    a, b = before
    assert machine.show("pyvtep@a", "MainPID") not in ("0", a)
    assert machine.show("pyvtep@b", "MainPID") == b


def install_engine(machine: Machine) -> None:
    """Install a Docker engine as docker.service, with its group."""
    command = "dockerd --data-root=/run/docker-data --exec-opt native.cgroupdriver=cgroupfs"
    machine.write(
        "/etc/systemd/system/docker.service",
        "[Service]\nType=notify\nEnvironment=PATH=/usr/sbin:/usr/bin:/sbin:/bin\n"
        f"ExecStart=/usr/sbin/{command}\n",
    )
    machine.run("getent group docker || groupadd docker")


@needs_engine
def test_containers_of_driver_networks_come_up_after_a_boot(machine: Machine) -> None:
    plugin = "pyvtep-docker-plugin.service"
    install_engine(machine)
    machine.run("pyvtep service install")
    machine.run(f"systemctl start docker {plugin}")
    machine.run("tar -c -C / bin/busybox | docker import - busybox")
    machine.run(
        "docker network create -d pyvtep --ipam-driver pyvtep -o vni=200 -o remote=192.0.2.2 "
        "-o fast-path=false --subnet 10.18.0.0/16 mynetwork"
    )
    machine.run(
        "docker run -d --name box --restart always --net mynetwork busybox /bin/busybox sleep 9999"
    )

    def is_up() -> bool:
        state = "{{.State.Running}} {{.NetworkSettings.Networks.mynetwork.IPAddress}}"
        return "true 10.18." in machine.run(f"docker inspect -f '{state}' box 2>&1 || true")

    assert is_up()
    # A restart of the plug-in leaves the process that forwards alone.
    forwarding = machine.run("pgrep -f '[o]n-demand'")
    machine.run(f"systemctl restart {plugin}")
    assert machine.run("pgrep -f '[o]n-demand'") == forwarding
    # What a boot does: nothing is there, and both units are started at the same time. Now there is
    # a service, too, which the plug-in joins.
    machine.run(f"systemctl stop docker {plugin}; pkill -9 -f '[o]n-demand'")
    machine.write("/etc/pyvtep/a.toml", _CONFIG.partition("[[vni]]\nid = 2")[0])
    machine.run("systemctl enable pyvtep")
    machine.run("ip link del $(ip -o link | grep -om1 'br-[0-9a-f]*')")
    machine.run(f"systemctl start docker {plugin} pyvtep")
    wait_until(is_up, machine.log(), 2 * DEADLINE)
    assert machine.run("pgrep -f '[o]n-demand' || true") == "", machine.log()
    wait_until(lambda: "2 VNIs" in machine.show("pyvtep", "StatusText"), machine.log())
    assert machine.show(plugin, "Result") == "success"


@needs_engine
def test_the_commands_of_the_page_can_be_pasted(machine: Machine) -> None:
    install_engine(machine)
    machine.run("systemctl start docker && docker network create --subnet 10.18.0.0/16 mynetwork")
    machine.run("rmdir /etc/pyvtep")  # It is there for the other tests.
    for heading in ("With systemd", "Without systemd"):
        for prompt, command, shown in commands("docs/service.md", heading):
            assert prompt == ""
            if "<<" in command:
                machine.run("\n".join((command, *shown)))
            else:
                # What starts a process in the background keeps no pipe open.
                said = machine.run(command)
                assert [line for line in said.splitlines() if line in shown] == shown, said
        if heading == "With systemd":
            assert machine.show("pyvtep", "ActiveState") == "active"
            wait_until(
                lambda: "master br-" in machine.run("ip -o link show vx200"), "the Docker network"
            )
            machine.run("pyvtep service uninstall")
    wait_until(lambda: "vx0" not in machine.run("ip -o link"), "the TAP to be removed")


@needs_engine
def test_a_docker_network_of_the_service(machine: Machine) -> None:
    unit = "pyvtep.service"
    machine.write(
        "/etc/pyvtep/net.toml",
        'fast-path = false\nremote = "192.0.2.2"\n'
        '[[vni]]\nid = 7\ntap = "vx7"\ndocker-network = "net"\n',
    )
    machine.write(
        f"/etc/systemd/system/{unit}.d/docker.conf",
        "[Service]\nSupplementaryGroups=docker\n"
        "AmbientCapabilities=CAP_NET_RAW\nCapabilityBoundingSet=CAP_NET_RAW\n",
    )

    def create() -> str:
        """Create the network. Returns: the name of its bridge."""
        network = machine.run("docker network create --subnet 10.18.0.0/16 net").strip()
        return f"br-{network[:12]}"

    def pid() -> str:
        return machine.show(unit, "MainPID")

    def is_on(bridge: str) -> bool:
        return f"master {bridge} " in machine.run("ip -o link show vx7")

    # Started before the engine: it is up, and waits for the engine and then for the network.
    install_engine(machine)
    machine.run("pyvtep service install && systemctl start pyvtep && systemctl start docker")
    bridge = create()
    wait_until(lambda: is_on(bridge), "the bridge of the network")
    for _ in range(2):
        former = pid()
        machine.run(f"systemctl reload {unit}")
        assert pid() not in ("0", former)
        assert is_on(bridge)

    # A crash and a reload while the engine is away: the TAP stays where it is.
    machine.run("systemctl stop docker")
    former = pid()
    machine.run(f"kill -9 {former}")
    wait_until(lambda: pid() not in ("0", former), "systemd to start it again")
    wait_until(lambda: machine.show(unit, "ActiveState") == "active", "it to be up")
    assert is_on(bridge)
    machine.run(f"systemctl reload {unit}")
    assert is_on(bridge)

    machine.run("systemctl start docker && docker network rm net")
    bridge = create()
    wait_until(lambda: is_on(bridge), "the bridge of the new network")
    assert f"process {pid()}" in machine.run("pyvtep docker status")
    machine.run(f"systemctl stop {unit}")
    assert "vx7" not in machine.run("ip -o link")


def test_a_reload_replaces_the_process(machine: Machine) -> None:
    unit = "pyvtep.service"

    def show(name: str) -> str:
        return machine.show(unit, name)

    def devices() -> list[str]:
        links = machine.run("ip -o link show vx0; ip -o link show vx2").splitlines()
        addresses = machine.run("ip -o -4 address show vx0; ip -o -4 address show vx2")
        return [*(line.split(" mtu ")[0] for line in links), addresses]

    def pids() -> list[str]:
        return machine.run(f"cat /sys/fs/cgroup{show('ControlGroup')}/cgroup.procs").split()

    machine.run("ip link add br0 type bridge && ip link set br0 up")
    machine.write("/etc/pyvtep/a.toml", _CONFIG)
    machine.write("/etc/systemd/system/pyvtep.service.d/test.conf", "[Service]\nWatchdogSec=3\n")
    machine.run("pyvtep service install && systemctl start pyvtep")
    machine.run("pyvtep fdb add 02:00:00:00:00:01 dst 192.0.2.2 vni 1 --vni 1 static")
    before = devices()
    for ageing in (77, 78):  # The successor of a successor is no child of systemd either.
        former = show("MainPID")
        machine.write("/etc/pyvtep/a.toml", f"ageing = {ageing}\n{_CONFIG}")
        machine.run("systemctl reload pyvtep")
        pid = show("MainPID")
        assert pid not in ("0", former), machine.log()
        wait_until(lambda: pids() == [show("MainPID")], "the end of the old process")
        assert (show("ActiveState"), show("SubState"), show("NRestarts")) == (
            *("active", "running"),
            "0",
        )
        assert devices() == before
        shown = f"{json.loads(machine.run('pyvtep vni show --json'))}"
        assert shown.count(f"'ageing': {ageing}") == 2, shown
        assert "02:00:00:00:00:01" in machine.run("pyvtep fdb show")
        assert f"process {pid}" in machine.run("pyvtep service status")
        wait_until(lambda: show("StatusText").startswith("forwarding: 2 VNIs, "), "its status")

    # A file with a mistake: the reload fails and says why, and the process is the same one.
    machine.write("/etc/pyvtep/a.toml", f"nonsense = 1\n{_CONFIG}")
    failed = machine.run("systemctl reload pyvtep", code=1)
    assert "pyvtep.service" in failed
    said = machine.run("journalctl --unit=pyvtep --output=cat --identifier=pyvtep")
    assert "pyvtep: error: the new process has ended with exit code 2" in said, machine.log()
    assert "/etc/pyvtep/a.toml:1: nonsense" in said
    assert (show("MainPID"), show("ActiveState")) == (pid, "active")
    assert pids() == [pid]
    assert devices() == before
    machine.write("/etc/pyvtep/a.toml", _CONFIG)

    # The new process feeds the watchdog, which also watches it.
    fed = show("WatchdogTimestampMonotonic")
    wait_until(lambda: show("WatchdogTimestampMonotonic") != fed, "the watchdog to be fed")
    machine.run(f"kill -STOP {pid}")
    wait_until(
        lambda: show("ActiveState") == "active" and show("MainPID") not in ("0", pid),
        "a restart by the watchdog",
        2 * DEADLINE,
    )
    assert devices() == before  # The store of systemd has the TAPs of the new process.

    # After one more, the end of the service is that of the newest process and of the devices.
    machine.run("systemctl reload pyvtep")
    pid = show("MainPID")
    machine.run("systemctl stop pyvtep")
    assert (show("ActiveState"), show("Result"), show("MainPID")) == ("inactive", "success", "0"), (
        machine.log()[-4000:]
    )
    assert not machine.run(f"ls -d /proc/{pid} 2>/dev/null || true")
    links = machine.run("ip -o link")
    assert "vx0" not in links
    assert "vx2" not in links
