"""A start before the underlay is ready: pyvtep waits for missing parts, and uses them at once."""

import asyncio
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    has_device,
    mtu_of,
    ping,
    segment,
    udp_socket,
    wait_for_mtu,
    wait_until,
)
from tests.netns.test_doctor import consult
from tests.netns.test_errors import refusal
from vtep import Config, Vtep
from vtep.testing.lab import Host, Lab

OWN = {4: ("192.0.2.1/24", "192.0.2.2"), 6: ("2001:db8::1/64", "2001:db8::2")}
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
WAITING = "waiting for the underlay: "
READY = "the underlay is ready"


@pytest.fixture
def bare(lab: Lab) -> Pair:
    """Return two hosts; a has no underlay address yet."""
    a, b = lab.host("a"), lab.host("b")
    lab.wire(a, b)
    address(b, "eth0", "192.0.2.2/24", "2001:db8::2/64")
    return a, b


def remote_side(b: Host, start: Start, version: int) -> None:
    start(b, *segment(1, OWN[version][0].split("/")[0], "10.0.0.2/24"))


def waits_for(vtep: Pyvtep, what: str) -> None:
    wait_until(lambda: WAITING + what in vtep.log, what)


def missing(vtep: Pyvtep) -> list[str]:
    with vtep.client() as client:
        return client.vni.show()[0]["underlay_missing"]


def waited(vtep: Pyvtep, times: int) -> bool:
    return vtep.log.count(WAITING) == times


def is_ready(vtep: Pyvtep, times: int = 1) -> None:
    wait_until(lambda: vtep.log.count(READY) == times, f"{READY} ({times})")


@VERSIONS
def test_route_that_appears_later(bare: Pair, start: Start, version: int) -> None:
    a, b = bare
    own, remote = OWN[version]
    vtep = start(a, *segment(1, remote, "10.0.0.1/24"))
    assert f"vni 1: {WAITING}no route to --remote {remote}" in vtep.log
    assert "underlay not ready, UDP port" in vtep.log
    assert missing(vtep) == [f"no route to --remote {remote}"]
    a.run("ping", "-c1", "-W0.1", "10.0.0.2", check=False)
    wait_until(lambda: vtep.counter("underlay_unreachable") > 0, "frames to be counted")
    remote_side(b, start, version)
    a.run("ip", "addr", "add", own, "dev", "eth0")  # An IPv6 address is tentative at first.
    ping(a, "10.0.0.2")
    is_ready(vtep)
    assert f"vni 1: {READY}: over eth0\n" in vtep.log
    assert missing(vtep) == []
    # The same after the route is removed and added again.
    before = vtep.log.count(WAITING)
    a.run("ip", "addr", "del", own, "dev", "eth0")
    wait_until(lambda: vtep.log.count(WAITING) > before, "the route to be missed")
    address(a, "eth0", own)
    ping(a, "10.0.0.2")
    is_ready(vtep, 2)


@VERSIONS
def test_local_address_that_appears_later(bare: Pair, start: Start, version: int) -> None:
    a, b = bare
    own, remote = OWN[version]
    local = own.split("/")[0]
    vtep = start(a, *segment(1, remote, "10.0.0.1/24"), "--local", local)
    assert f"{WAITING}no interface has --local {local}; no route" in vtep.log
    a.run("ip", "addr", "add", own, "dev", "eth0")
    if version == 6:
        waits_for(vtep, f"--local {local} is tentative")
    remote_side(b, start, version)
    ping(a, "10.0.0.2")
    ping(b, "10.0.0.1")
    is_ready(vtep)


def test_device_that_appears_disappears_and_returns(bare: Pair, start: Start) -> None:
    a, b = bare
    a.run("ip", "link", "set", "eth0", "down")
    a.run("ip", "link", "set", "eth0", "name", "hidden")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--dev", "wg0")
    assert f"{WAITING}no network device --dev wg0\n" in vtep.log
    remote_side(b, start, 4)
    for times in (1, 2):
        a.run("ip", "link", "set", "hidden", "mtu", "1400", "name", "wg0", "up")
        address(a, "wg0", "192.0.2.1/24")
        wait_for_mtu(a, 1350)
        ping(a, "10.0.0.2")
        ping(b, "10.0.0.1")
        is_ready(vtep, times)
        # Afterwards, another device with another index has its name.
        a.run("ip", "link", "del", "wg0")
        wait_until(partial(waited, vtep, times + 1), "the device to be missed")
        a.run(
            *("ip", "link", "add", "hidden", "type", "veth", "peer", "name", "eth0"),
            *("netns", b.pid),
        )
        b.run("ip", "link", "set", "eth0", "up")
        address(b, "eth0", "192.0.2.2/24")
    assert mtu_of(a) == 1350  # It keeps its last value.


def test_device_of_a_link_local_remote_that_appears_later(bare: Pair, start: Start) -> None:
    a, b = bare
    a.run("ip", "link", "set", "eth0", "down")
    a.run("ip", "link", "set", "eth0", "name", "hidden")
    address(b, "eth0", "fe80::2/64")
    vtep = start(a, *segment(1, "fe80::2%wan0", "10.0.0.1/24"))
    assert f"{WAITING}no network device wan0 for --remote fe80::2%wan0\n" in vtep.log
    a.run("ip", "link", "set", "hidden", "addrgenmode", "none", "name", "wan0", "up")
    a.run("ip", "addr", "add", "fe80::1/64", "dev", "wan0")  # Tentative at first.
    start(b, *segment(1, "fe80::1%eth0", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    is_ready(vtep)


@VERSIONS
def test_group_on_a_device_that_appears_later(bare: Pair, start: Start, version: int) -> None:
    a, b = bare
    a.run("ip", "link", "set", "eth0", "down")
    a.run("ip", "link", "set", "eth0", "name", "hidden")
    group = "239.1.1.1" if version == 4 else "ff05::1"
    options = ("--vni", "1", "--tap", "vx0", "--group", group, "--address")
    vtep = start(a, *options, "10.0.0.1/24", "--dev", "wan0")
    assert f"{WAITING}no network device --dev wan0\n" in vtep.log
    a.run("ip", "link", "set", "hidden", "name", "wan0", "up")
    address(a, "wan0", OWN[version][0])
    start(b, *options, "10.0.0.2/24", "--dev", "eth0")
    ping(b, "10.0.0.1")
    is_ready(vtep)


def test_several_vnis_and_changes(bare: Pair, start: Start, tmp_path: Path) -> None:
    """Each VNI waits for its own underlay only."""
    a, b = bare
    address(a, "eth0", "192.0.2.1/24")
    file = tmp_path / "vnis.toml"
    ready = '[[vni]]\nid = 1\ntap = "vx0"\nremote = "192.0.2.2"\naddress = "10.0.0.1/24"\n'
    waiting = '[[vni]]\nid = 2\nremote = "198.51.100.2"\n'
    file.write_text(ready + waiting)
    vtep = start(a, "--config", str(file))
    remote_side(b, start, 4)
    ping(a, "10.0.0.2")
    assert f"vni 2: {WAITING}no route to --remote 198.51.100.2" in vtep.log
    vtep.run("vni", "add", "3", "--remote", "203.0.113.2", "--dstport", "4790")
    assert f"vni 3: {WAITING}no route to --remote 203.0.113.2" in vtep.log
    vtep.run("set", "--remote", "203.0.113.3", "dev", "vx3")
    waits_for(vtep, "no route to --remote 203.0.113.3")
    vtep.run("set", "--dev", "wan0", "dev", "vx3")
    waits_for(vtep, "no network device --dev wan0")
    vtep.run("set", "--local", "203.0.113.1", "dev", "vx3")
    waits_for(vtep, "no network device --dev wan0; no interface has --local 203.0.113.1")
    file.write_text(ready + waiting + '[[vni]]\nid = 4\nremote = "2001:db8:1::2"\n')
    vtep.run("reload")
    waits_for(vtep, "no route to --remote 2001:db8:1::2")
    assert vtep.log.count(WAITING) == 6
    assert READY not in vtep.log
    a.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
    wait_until(lambda: f"vni 2: {READY}: over eth0" in vtep.log, "vni 2")
    ping(a, "10.0.0.2")


def test_route_with_a_smaller_mtu_is_followed(bare: Pair, start: Start) -> None:
    a, _ = bare
    vtep = start(a, *segment(1, "198.51.100.2"))
    address(a, "eth0", "192.0.2.1/24")
    a.run("ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "mtu", "1300")
    wait_for_mtu(a, 1250)
    a.run("ip", "route", "change", "198.51.100.0/24", "via", "192.0.2.2")
    wait_for_mtu(a, 1450)
    # A policy routing rule may select another route, too.
    a.run("ip", "route", "add", "default", "via", "192.0.2.2", "mtu", "1350", "table", "100")
    a.run("ip", "rule", "add", "to", "198.51.100.0/24", "table", "100")
    wait_for_mtu(a, 1300)
    assert vtep.log.count(WAITING) == 1


def test_one_missing_route_does_not_delay_other_remotes(bare: Pair, start: Start) -> None:
    a, b = bare
    address(a, "eth0", "192.0.2.1/24")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--remote", "198.51.100.2")
    assert f"{WAITING}no route to --remote 198.51.100.2" in vtep.log
    remote_side(b, start, 4)
    ping(a, "10.0.0.2")


def test_permanent_errors_are_refused_at_once(bare: Pair, start: Start) -> None:
    a, _ = bare
    address(a, "eth0", "192.0.2.1/24")
    for options in ((), ("--dev", "eth0"), ("--dev", "wan0"), ("--local", "192.0.2.9")):
        line = refusal(a, *segment(1, "192.0.2.1"), *options)
        assert "--remote 192.0.2.1 is an address of this host itself" in line
    a.run("ip", "addr", "add", "198.51.100.1/24", "brd", "+", "dev", "eth0")
    for options in ((), ("--dev", "eth0")):
        line = refusal(a, *segment(1, "198.51.100.255"), *options)
        assert "--remote 198.51.100.255: is a broadcast address" in line
    # An error that arises later does not stop the process.
    vtep = start(a, *segment(1, "203.0.113.1"))
    address(a, "eth0", "203.0.113.1/24")
    wait_until(lambda: "--remote 203.0.113.1 is an address of this host itself" in vtep.log, "it")
    assert vtep.stop() == 0


def test_library_waits_too(bare: Pair) -> None:
    a, b = bare

    async def main() -> None:
        async with Vtep(Config(vni=1, remote="192.0.2.2", tap="vx0")) as vtep:
            assert vtep.port.underlay_missing == ("no route to --remote 192.0.2.2",)
            assert vtep.mtu == 1450
            address(a, "eth0", "192.0.2.1/24")
            await asyncio.to_thread(
                wait_until, lambda: not vtep.port.underlay_missing, "the underlay"
            )
            assert vtep.port.underlay_devices == ("eth0",)
            address(a, "vx0", "10.0.0.1/24")
            with udp_socket(b, "192.0.2.2", 4789) as receiver:
                pings = a.start("ping", "-i0.2", "10.0.0.2", stdout=subprocess.DEVNULL)
                assert await asyncio.to_thread(receiver.recv, 2048)
                pings.terminate()

    with a.inside():
        asyncio.run(main())
    assert not has_device(a)


# --- the bridge, and addresses ------------------------------------------------------------------


def test_bridge_that_appears_later(pair: Pair, start: Start) -> None:
    a, _ = pair
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")

    def said(line: str, times: int = 1) -> None:
        wait_until(lambda: vtep.log.count(f"vni 1: {line}\n") == times, line)

    absent = "there is no such device; create it: ip link add br0 type bridge"
    said(f"waiting for --bridge br0: {absent}")
    a.run("ip", "link", "add", "br0", "type", "veth", "peer", "name", "br0-peer")
    said(
        "waiting for --bridge br0: the device of this name is not a bridge (see: ip link show type "
        "bridge)"
    )
    a.run("ip", "link", "del", "br0")
    said(f"waiting for --bridge br0: {absent}", 2)
    a.run("ip", "link", "add", "br0", "type", "bridge")
    said("vx0 is a port of --bridge br0 now")
    a.run("ip", "link", "del", "br0")
    said(f"waiting for --bridge br0: {absent}", 3)
    with vtep.client() as client:
        (problem,) = client.status()["problems"]
    assert problem["text"] == f"vni 1: vx0 is no port of its --bridge br0: {absent}"
    a.run("ip", "link", "add", "br0", "type", "bridge")
    said("vx0 is a port of --bridge br0 now", 2)
    # An administrator moves it to another bridge.
    a.run("ip", "link", "add", "br2", "type", "bridge")
    a.run("ip", "link", "set", "vx0", "master", "br2")
    moved = "vx0 is a port of br2; move it: ip link set vx0 master br0"
    said(f"waiting for --bridge br0: {moved}")
    _, report = consult(a, "--socket", str(vtep.control))
    titles = [each["title"] for each in report["findings"]]
    assert "vx0 is a port of the bridge br2, and not of br0, which its --bridge names" in titles
    a.run("ip", "link", "set", "vx0", "master", "br0")
    said("vx0 is a port of --bridge br0 now", 3)
    # An existing bridge is not logged; the next one is missing.
    vtep.run("set", "--bridge", "br1")
    said(f"waiting for --bridge br1: {absent.replace('br0', 'br1')}")
    assert "master" not in a.run("ip", "link", "show", "vx0")
    assert vtep.log.count("waiting for --bridge") == 6


def test_address_in_the_underlay_subnet_is_refused(pair: Pair, lab: Lab, start: Start) -> None:
    a, _ = pair
    line = refusal(a, *segment(1, "192.0.2.2", "192.0.2.9/24"), code=2)
    assert "--address 192.0.2.9/24: --remote 192.0.2.2 is in its subnet 192.0.2.0/24" in line
    line = refusal(a, *segment(1, "192.0.2.2", "192.0.2.129/25"))
    assert "its subnet overlaps 192.0.2.0/24 of the underlay device eth0" in line
    line = refusal(a, *segment(1, "2001:db8::2", "2001:db8::9/64"), "--dev", "wan0", code=2)
    assert "--remote 2001:db8::2 is in its subnet" in line
    # An overlapping subnet is harmless if no remote is reached through this device.
    lab.wire(a, lab.host("c"), "eth1")
    address(a, "eth1", "10.0.0.77/24")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    for words in (
        "set --address 192.0.2.9/24",
        "set --remote 10.0.0.2",
        "remote add 10.0.0.2",
        "vni add 2 --remote 192.0.2.2 --address 192.0.2.9/24",
    ):
        assert "would be routed into the tunnel" in vtep.run(*words.split(), code=2)
    # For an underlay that appears later, pyvtep can only warn.
    add = "vni add 2 --remote 198.51.100.2 --address 203.0.113.9/24 --dev wan0 --dstport 4790"
    vtep.run(*add.split())
    a.run("ip", "link", "add", "wan0", "type", "veth", "peer", "name", "wan1")
    a.run("ip", "link", "set", "wan0", "up")
    a.run("ip", "link", "set", "wan1", "up")
    address(a, "wan0", "203.0.113.1/24")
    wait_until(lambda: "vni 2: --address 203.0.113.9/24: its subnet overlaps" in vtep.log, "it")


def test_tap_address_that_shadows_the_underlay(pair: Pair, start: Start) -> None:
    """Pyvtep ignores the route over the TAP, or its MTU would fall by the headers each time."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    address(a, "vx0", "192.0.2.55/25")
    wait_until(lambda: "leads over vx0, into its own tunnel" in vtep.log, "the log line")
    a.run("ip", "addr", "del", "192.0.2.55/25", "dev", "vx0")
    ping(a, "10.0.0.2")
    assert mtu_of(a) == 1450
