"""The fast path in unusual setups, under load, and while everything that it repeats changes."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    Tunnel,
    address,
    link_local_address,
    ping,
    segment,
    transfer,
    wait_until,
)
from vtep.testing.lab import Host

pytestmark = pytest.mark.usefixtures("fast_path")

FLOOD = """
import socket
flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
flood.connect(("10.0.0.2", 9))
while True:
    try:
        flood.send(bytes(64))
    except OSError:
        pass
"""


@contextmanager
def flood(host: Host) -> Iterator[None]:
    """Send datagrams to 10.0.0.2 as fast as it goes."""
    process = host.start("python3", "-c", FLOOD, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def assert_is_on(*vteps: Pyvtep) -> None:
    for vtep in vteps:
        with vtep.client() as client:
            assert {each["fast_path"] for each in client.vni.show()} == {"on"}


def vnis_of(vtep: Pyvtep) -> list[int]:
    with vtep.client() as client:
        return [each["vni"] for each in client.vni.show()]


@pytest.mark.parametrize("underlay", ["link-local", "group", "one port", "device"])
def test_unusual_underlays(pair: Pair, start: Start, underlay: str) -> None:
    a, b = pair
    options: dict[str, list[tuple[str, list[str]]]] = {
        "link-local": [(f"{link_local_address(each)}%eth0", []) for each in (b, a)],
        "group": [("239.1.1.1", ["--dev", "eth0"])] * 2,
        "one port": [(f"192.0.2.{n}", ["--srcport", "4789", "4789"]) for n in (2, 1)],
        "device": [(f"2001:db8::{n}", ["--dev", "eth0"]) for n in (2, 1)],
    }
    vteps = []
    for number, host in enumerate(pair):
        remote, more = options[underlay][number]
        if underlay == "group":
            arguments = ["--vni", "1", "--group", remote, "--tap", "vx0"]
            arguments += ["--address", f"10.0.0.{number + 1}/24"]
        else:
            arguments = segment(1, remote, f"10.0.0.{number + 1}/24")
        vteps.append(start(host, *arguments, *more))
    ping(a, "10.0.0.2")
    transfer(a, b, "10.0.0.2", 20 << 20)
    transfer(b, a, "10.0.0.1", 20 << 20)
    ping(a, "10.0.0.2", "-s", "5000")
    assert_is_on(*vteps)
    assert sum(vtep.unexpected_drops() for vtep in vteps) == 0


def test_it_ends_at_once_under_full_load(tunnel: Tunnel, pair: Pair) -> None:
    a, _ = pair
    ping(a, "10.0.0.2")
    with flood(a):
        before = [vtep.counter("rx_frames") for vtep in tunnel]
        wait_until(lambda: tunnel[1].counter("rx_frames") > before[1] + 10_000, "the load")
        assert_is_on(*tunnel)
        for vtep in tunnel:
            assert vtep.stop() == 0
            assert "Traceback" not in vtep.log


CHANGES = (
    "set --ttl 9",
    "set --tos inherit --ttl inherit",
    "set --df inherit",
    "set --flowlabel inherit",
    "set --ttl auto --tos 0 --df unset --flowlabel 0",
    "set --mtu 1300",
    "set --mtu auto",
    "set --offload none",
    "set --offload auto",
    "set --srcport 4789 4789",
    "set --srcport 50000 50003",
    "set --no-learning",
    "set --learning",
    "set --inner-vlan strip",
    "set --inner-vlan pass",
    "set --proxy",
    "set --no-proxy",
    "fdb flush --vni 1",
    "set --mac 02:00:00:00:00:77",
)


def test_frames_pass_after_each_change(tunnel: Tunnel, pair: Pair) -> None:
    a, b = pair
    with flood(a):
        for words in CHANGES:
            tunnel[0].invoke(words)
            ping(a, "10.0.0.2", "-s", "1000")
            ping(b, "10.0.0.1", "-s", "1000")
        for command in (
            "ip link set vx0 down",
            "ip link set vx0 name vx9",
            "ip link set vx9 address 02:00:00:00:00:78 up",
            "ip link set eth0 down",
            "ip link set eth0 up",
            "ip addr del 192.0.2.1/24 dev eth0",
            "ip addr add 192.0.2.1/24 dev eth0",
            "ip link set eth0 mtu 1400",
        ):
            a.run(*command.split())
        ping(a, "10.0.0.2", "-s", "1000")
        ping(b, "10.0.0.1", "-s", "1000")
    assert_is_on(*tunnel)
    for vtep in tunnel:
        assert vtep.counters().get("fast_path_failed", 0) == 0
        assert vtep.stop() == 0
        assert "Traceback" not in vtep.log


def test_a_removed_tap_leaves_other_vnis_alone(pair: Pair, start: Start) -> None:
    a, b = pair
    vteps = []
    for number, host in enumerate(pair):
        vtep = start(host, *segment(1, f"192.0.2.{2 - number}", f"10.0.0.{number + 1}/24"))
        vtep.invoke(f"vni add 2 --tap vx2 --remote 192.0.2.{2 - number}")
        address(host, "vx2", f"10.0.2.{number + 1}/24")
        vteps.append(vtep)
    ping(a, "10.0.0.2")
    ping(a, "10.0.2.2")
    with flood(a):
        a.run("ip", "link", "del", "vx0")
        ping(a, "10.0.2.2")
        ping(b, "10.0.2.1")
        wait_until(lambda: vnis_of(vteps[0]) == [2], "the end of the VNI")
        # Its TAP gets the descriptor of the former one, and its sockets those of the former ones.
        vteps[0].invoke("vni add 1 --tap vx0 --remote 192.0.2.2 --address 10.0.0.1/24")
        for host, other in ((a, "10.0.0.2"), (b, "10.0.0.1"), (a, "10.0.2.2"), (b, "10.0.2.1")):
            ping(host, other, "-s", "1000")
    assert_is_on(*vteps)
    for vtep in vteps:
        assert "Traceback" not in vtep.log
        vtep.stop()
