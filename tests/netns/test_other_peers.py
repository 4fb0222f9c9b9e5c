"""Two independent user-space implementations as the remote VTEP."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.hosts import (
    Pair,
    Start,
    has_device,
    ping,
    segment,
    transfer,
    wait_until,
)


def test_vdeplug(pair: Pair, start: Start, tmp_path: Path) -> None:
    """The plug-in vxlan:// sends from port 4789 and supports multicast groups only.

    Its address table is broken in Debian 12 (every send to a learned address fails). So it runs
    without one, and nftables on its host turns its multicast into unicast.
    """
    a, b = pair
    rules = tmp_path / "rules"
    rules.write_text(
        "table ip vde { chain out { type route hook output priority mangle\n"
        "ip daddr 239.0.0.1 udp dport 4789 ip daddr set 192.0.2.1\n}\n}\n"
    )
    b.run("nft", "-f", str(rules))
    with (tmp_path / "vde").open("w") as log:
        b.start(
            *("vde_plug", "vxlan://239.0.0.1/v4/port=4789/vni=42/ttl=64/hashsize=0/if=eth0"),
            "tap://tap0",
            stdin=-1,
            stdout=log,
            stderr=log,
        )
    wait_until(lambda: has_device(b, "tap0"), "vde_plug")
    b.run("ip", "link", "set", "tap0", "mtu", "1450", "up")
    b.run("ip", "addr", "add", "10.0.0.2/24", "dev", "tap0")
    vtep = start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"))
    ping(a, "10.0.0.2")
    ping(b, "10.0.0.1", "-s", "1422", "-M", "do")
    transfer(a, b, "10.0.0.2", 20 << 20)
    transfer(b, a, "10.0.0.1", 20 << 20)
    assert vtep.unexpected_drops() == 0
    assert list(vtep.fdb().values()) == ["192.0.2.2"]


@pytest.fixture
def ovs(pair: Pair) -> Iterator[Callable[..., str]]:
    """Run the user-space datapath of Open vSwitch on host b, as VTEP 192.0.2.2 for VNI 42."""
    b = pair[1]
    with tempfile.TemporaryDirectory(prefix="ovs-") as folder:
        directory = Path(folder)
        names = ("RUN", "LOG", "DB", "SYSCONF")
        places = [f"OVS_{name}DIR={directory}" for name in names]
        database, socket = directory / "conf.db", directory / "db.sock"

        def tool(*command: str, check: bool = True) -> str:
            return b.run("env", *places, *command, check=check)

        def daemon(*command: str) -> None:
            name = Path(command[0]).name
            quiet = (
                "--no-chdir",
                "-vconsole:off",
                "-vsyslog:off",
                f"--log-file={directory / name}",
            )
            control = f"--unixctl={directory / name}.ctl"
            b.start("env", *places, *command, control, *quiet)

        schema = "/usr/share/openvswitch/vswitch.ovsschema"
        tool("ovsdb-tool", "create", str(database), schema)
        daemon("ovsdb-server", str(database), f"--remote=punix:{socket}")
        wait_until(socket.exists, "ovsdb-server")
        tool("ovs-vsctl", "--no-wait", "init")
        daemon("ovs-vswitchd", f"unix:{socket}", "--disable-system")
        # The datapath owns eth0; the kernel must not answer ARP requests too.
        b.run("ip", "addr", "flush", "dev", "eth0")
        b.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_ignore=8")
        userspace = ("datapath_type=netdev", "fail-mode=standalone")
        tool(
            *("ovs-vsctl", "--timeout=10", "--", "add-br", "br-phy", "--", "set", "bridge"),
            *("br-phy", *userspace, "--", "add-port", "br-phy", "eth0"),
            *("--", "add-br", "br-int", "--", "set", "bridge", "br-int", *userspace),
            *("--", "add-port", "br-int", "vx42", "--", "set", "interface", "vx42", "type=vxlan"),
            *("options:remote_ip=192.0.2.1", "options:local_ip=192.0.2.2", "options:key=42"),
            "options:dst_port=4789",
        )
        b.run("ip", "addr", "add", "192.0.2.2/24", "dev", "br-phy")
        b.run("ip", "link", "set", "br-phy", "up")
        b.run("ip", "link", "set", "br-int", "mtu", "1450", "up")
        b.run("ip", "addr", "add", "10.0.0.2/24", "dev", "br-int")

        def ask(*command: str) -> str:
            control = str(directory / "ovs-vswitchd.ctl")
            return tool("ovs-appctl", "-t", control, *command, check=False)

        wait_until(lambda: "192.0.2.0/24" in ask("ovs/route/show"), "the route in ovs-vswitchd")
        wait_until(lambda: "4789" in ask("tnl/ports/show"), "the tunnel port in ovs-vswitchd")
        ping(b, "192.0.2.1")
        wait_until(lambda: "192.0.2.1" in ask("tnl/neigh/show"), "the neighbour in ovs-vswitchd")
        yield ask
        ask("exit", "--cleanup")


@pytest.fixture
def finished_checksums(pair: Pair) -> None:
    """Turn off checksum offload: Open vSwitch reads the veth raw and needs complete checksums."""
    for host in pair:
        host.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")


@pytest.mark.usefixtures("finished_checksums", "ovs")
def test_open_vswitch_userspace_datapath(pair: Pair, start: Start) -> None:
    """It sends with a zero UDP checksum, from source ports that vary by flow."""
    a, b = pair
    vtep = start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"))
    ping(a, "10.0.0.2")
    ping(b, "10.0.0.1", "-s", "1422", "-M", "do")
    transfer(a, b, "10.0.0.2", 20 << 20)
    transfer(b, a, "10.0.0.1", 20 << 20)
    assert list(vtep.fdb().values()).count("192.0.2.2") >= 1
    assert vtep.unexpected_drops() == 0
