"""BridgeWatch on real bridges: what it reports, and what it writes."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.netns.fabric import add_bridge, kernel_fdb
from tests.netns.hosts import DEADLINE, address, mac_of, packet_socket, ping, wait_until
from vtep.evpn.bridges import BridgeWatch
from vtep.evpn.local_entries import BridgeChange, LocalHost, TapPlace
from vtep.host.neighbour_messages import (
    AF_BRIDGE,
    AF_INET,
    AF_INET6,
    NLMSG_DONE,
    NTF_EXT_LEARNED,
    NTF_STICKY,
    NUD_NOARP,
    NUD_PERMANENT,
    RTM_GETNEIGH,
    KernelNeighbour,
    build_dump,
    parse_neighbour,
    split_messages,
)
from vtep.testing.lab import Host, Lab
from vtep.wire.address import Address
from vtep.wire.ethernet import format_mac

VNI = 100
HOST_MAC = "02:00:00:00:0a:01"
FRAME = bytes(6 * b"\xff") + bytes.fromhex(HOST_MAC.replace(":", "")) + b"\x88\xb5" + bytes(46)


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Recorder:
    """The local entries as reported, and checks that reports are consistent."""

    def __init__(self) -> None:
        self.macs: dict[str, set[str]] = {}
        self.neighbours: dict[str, tuple[str, bool]] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.wrong: list[str] = []
        self.syncs = 0

    def mac_added(self, vni: int, mac: bytes, *, static: bool, gateway: bool, own: bool) -> None:
        self.calls.append(("mac_added", vni, format_mac(mac)))
        flags = {"static": static, "gateway": gateway, "own": own}
        now = {name for name, is_set in flags.items() if is_set}
        if self.macs.get(format_mac(mac)) == now:
            self.wrong.append(f"{format_mac(mac)} added twice")
        self.macs[format_mac(mac)] = now

    def mac_removed(self, vni: int, mac: bytes) -> None:
        self.calls.append(("mac_removed", vni, format_mac(mac)))
        if self.macs.pop(format_mac(mac), None) is None:
            self.wrong.append(f"{format_mac(mac)} was not known")

    def neighbour_added(self, vni: int, ip: Address, mac: bytes, *, router: bool) -> None:
        self.calls.append(("neighbour_added", vni, str(ip), format_mac(mac)))
        self.neighbours[str(ip)] = format_mac(mac), router

    def neighbour_removed(self, vni: int, ip: Address) -> None:
        self.calls.append(("neighbour_removed", vni, str(ip)))
        if self.neighbours.pop(str(ip), None) is None:
            self.wrong.append(f"{ip} was not known")

    def synced(self, vni: int) -> None:
        self.calls.append(("synced", vni))
        self.syncs += 1

    def host_changed(self, host: LocalHost) -> None:
        self.host = host

    def segment_lost(self, vni: int) -> None:
        self.calls.append(("segment_lost", vni))


class Watched(Recorder):
    """A BridgeWatch in a thread of its own, in the network namespace of a host."""

    def __init__(self, host: Host, places: dict[int, TapPlace], **options: Any) -> None:
        super().__init__()
        self._host, self._places, self._options = host, places, options
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE), "BridgeWatch did not start"

    def _run(self) -> None:
        with self._host.inside():
            asyncio.run(self._main())

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self.watch = BridgeWatch(self, **self._options)
        self.watch.configure(self._places)
        await self.watch.start()
        self._ready.set()
        await self._end.wait()
        await self.watch.stop()

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in the thread of the watch, and return its result."""

        async def run() -> Any:
            result = function()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE)

    def apply(self, changes: Iterable[BridgeChange], vni: int = VNI) -> None:
        """Write changes, and wait until they are written."""
        self.call(lambda: self.watch.apply({vni: list(changes)}))
        self.call(self.watch.drain)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(DEADLINE)


@contextmanager
def watched(host: Host, places: dict[int, TapPlace] | None = None, **o: Any) -> Iterator[Watched]:
    """Watch the TAP vx0."""
    watch = Watched(host, places or {VNI: TapPlace("vx0")}, **o)
    try:
        yield watch
        assert watch.wrong == []
    finally:
        watch.close()


@pytest.fixture
def host(lab: Lab) -> Host:
    """Return a host with the TAP vx0, and p0 and p1, whose peers are q0 and q1."""
    host = lab.host("a")
    host.run("ip", "tuntap", "add", "vx0", "mode", "tap")
    host.run("ip", "link", "set", "vx0", "up")
    for number in "01":
        host.run("ip", "link", "add", f"p{number}", "type", "veth", "peer", f"q{number}")
        for end in "pq":
            # Router solicitations of the ports would be learned as well.
            name = f"{end}{number}"
            host.run("ip", "link", "set", name, "addrgenmode", "none", "up")
    return host


@pytest.fixture
def bridge(host: Host) -> str:
    """Return the bridge br0 of the host, whose ports are vx0, p0 and p1."""
    add_bridge(host, "br0", "02:00:00:00:00:01")
    for port in ("vx0", "p0", "p1"):
        host.run("ip", "link", "set", port, "master", "br0")
    return "br0"


def send(host: Host, device: str, frame: bytes = FRAME) -> None:
    """Send a frame of a host behind a port."""
    with packet_socket(host, device) as sock:
        sock.send(frame)


def port_of(host: Host, mac: str) -> tuple[str, set[str]] | None:
    """Return the bridge port of a MAC and its flags, as `bridge fdb` says."""
    for entry in kernel_fdb(host, "br0"):
        if entry["mac"] == mac and entry.get("master") == "br0":
            return entry["ifname"], {*entry.get("flags", ()), entry.get("state", "")} - {""}
    return None


def test_macs_behind_ports_are_reported(host: Host, bridge: str) -> None:
    """A MAC is learned, moves between ports without a report, ages out; static ones are marked."""
    with watched(host) as watch:
        assert watch.macs == {"02:00:00:00:00:01": {"own"}}
        assert watch.syncs == 1
        send(host, "q0")
        wait_until(lambda: watch.macs.get(HOST_MAC) == set(), "the MAC")
        send(host, "q1")
        wait_until(lambda: port_of(host, HOST_MAC) == ("p1", set()), "the move")
        static = "02:00:00:00:0a:02"
        host.run("bridge", "fdb", "add", static, "dev", "p0", "master", "static")
        wait_until(lambda: watch.macs.get(static) == {"static"}, "the static MAC")
        host.run("bridge", "fdb", "del", static, "dev", "p0", "master")
        wait_until(lambda: static not in watch.macs, "the deletion")
        assert watch.calls.count(("mac_added", VNI, HOST_MAC)) == 1
        # The kernel looks for expired entries when the ageing time changes.
        host.run("ip", "link", "set", bridge, "type", "bridge", "ageing_time", "100")
        wait_until(lambda: HOST_MAC not in watch.macs, "the MAC to age out")
        # An entry of another control plane for a remote MAC, and those of the ports themselves.
        host.run("bridge", "fdb", "add", static, "dev", "p0", "master", "extern_learn")
        send(host, "q0")
        wait_until(lambda: HOST_MAC in watch.macs, "the MAC")
        assert set(watch.macs) == {HOST_MAC, "02:00:00:00:00:01"}


def test_addresses_are_reported(host: Host, bridge: str) -> None:
    """Those of the bridge itself, and those of its neighbours."""
    own = "02:00:00:00:00:01"
    address(host, bridge, "10.0.0.1/24", "fd00::1/64")
    gateways = frozenset(map(ip_address, ("10.0.0.254", "fd00::254")))
    with watched(host, {VNI: TapPlace("vx0", "br0", gateways)}) as watch:
        assert watch.neighbours["10.0.0.1"] == (own, False)
        assert watch.neighbours["fd00::1"] == (own, False)
        for ip in ("10.0.0.9", "fd00::9"):
            host.run("ip", "neigh", "add", ip, "lladdr", HOST_MAC, "dev", bridge, "nud", "stale")
            wait_until(lambda ip=ip: watch.neighbours.get(ip) == (HOST_MAC, False), ip)  # type: ignore[misc]
        router = ("lladdr", HOST_MAC, "router", "dev", bridge)
        host.run("ip", "neigh", "replace", "fd00::9", *router)
        wait_until(lambda: watch.neighbours.get("fd00::9") == (HOST_MAC, True), "the router")
        host.run("ip", "neigh", "replace", "10.0.0.9", "dev", bridge, "nud", "failed")
        wait_until(lambda: "10.0.0.9" not in watch.neighbours, "the failure")
        host.run("ip", "neigh", "del", "fd00::9", "dev", bridge)
        wait_until(lambda: "fd00::9" not in watch.neighbours, "the deletion")
        address(host, bridge, "10.0.0.254/24", "fd00::254/64")
        wait_until(lambda: watch.macs[own] == {"own", "gateway"}, "the MAC of the gateway")
        wait_until(lambda: watch.neighbours.get("fd00::254") == (own, True), "the gateway")
        host.run("ip", "addr", "flush", "dev", bridge)
        wait_until(lambda: watch.neighbours == {}, "no address")
        assert watch.macs == {own: {"own"}}
        host.run("ip", "link", "set", bridge, "address", "02:00:00:00:00:02")
        wait_until(lambda: set(watch.macs) == {"02:00:00:00:00:02"}, "the other MAC")


def test_addresses_of_local_hosts_are_verified(host: Host, bridge: str, lab: Lab) -> None:
    """One that a host has given up goes, while another of the same MAC stays."""
    address(host, bridge, "10.0.0.1/24", "fd00::1/64")
    for family in ("ipv4", "ipv6"):
        neigh = f"net.{family}.neigh.{bridge}"
        host.run("sysctl", "-qw", f"{neigh}.delay_first_probe_time=1")
        host.run("sysctl", "-qw", f"{neigh}.retrans_time_ms=200", f"{neigh}.mcast_resolicit=0")
    other = lab.host("other")
    host.run("ip", "link", "set", "q0", "name", "eth0", "address", HOST_MAC, "netns", other.pid)
    other.run("ip", "link", "set", "eth0", "up")
    address(other, "eth0", "10.0.0.9/24", "fd00::9/64")
    stays, goes = ("10.0.0.9", "fd00::9"), ("10.0.0.8", "fd00::8", "10.0.0.7")
    with watched(host, {VNI: TapPlace("vx0", "br0")}, probe_interval=0.5) as watch:
        for ip in stays:
            ping(host, ip)
        # A user's own entry stays as it is, although nothing answers.
        host.run(
            *("ip", "neigh", "replace", "10.0.0.6", "lladdr", HOST_MAC, "dev", bridge),
            *("nud", "permanent"),
        )
        for ip in (*stays, *goes):
            mac = HOST_MAC if ip != "10.0.0.7" else "02:00:00:00:0a:02"
            host.run("ip", "neigh", "replace", ip, "lladdr", mac, "dev", bridge, "nud", "stale")
        wait_until(lambda: {*stays, *goes} <= {*watch.neighbours}, "all addresses")
        wait_until(lambda: not {*goes[:2]} & {*watch.neighbours}, "those that are gone")
        assert {*stays} <= {*watch.neighbours}
        # Those of remote hosts are not probed: nothing is sent over the tunnel.
        assert "10.0.0.7" in watch.neighbours
        assert "STALE" in host.run("ip", "neigh", "show", "10.0.0.7")
        assert "10.0.0.6" in watch.neighbours
        assert "PERMANENT" in host.run("ip", "neigh", "show", "10.0.0.6")


def test_the_tap_is_followed(host: Host) -> None:
    """Without a bridge, on one, on another one of the same name, renamed, and gone."""
    address(host, "vx0", "10.0.0.1/24")
    tap = mac_of(host, "vx0")
    with watched(host) as watch:
        assert watch.macs == {tap: {"own"}}
        assert watch.neighbours["10.0.0.1"] == (tap, False)
        remote = "02:00:00:00:0b:01"
        watch.apply([BridgeChange(octets(remote))])
        for round_ in (1, 2):
            own = f"02:00:00:00:00:0{round_}"
            add_bridge(host, "br0", own)
            host.run("ip", "link", "set", "p0", "master", "br0")
            host.run("ip", "link", "set", "vx0", "master", "br0")
            wait_until(lambda own=own: set(watch.macs) == {own}, "the MAC of the bridge")  # type: ignore[misc]
            wait_until(lambda: port_of(host, remote) == ("vx0", {"extern_learn"}), "the remote MAC")
            wait_until(lambda: _learning(host) is False, "learning to be off")
            send(host, "q0")
            wait_until(lambda: HOST_MAC in watch.macs, "the MAC")
            host.run("ip", "link", "del", "br0")
            wait_until(lambda: watch.macs == {tap: {"own"}}, "the MAC of the TAP")
        add_bridge(host, "br1", "02:00:00:00:00:03")
        host.run("ip", "link", "set", "vx0", "master", "br1")
        host.run("ip", "link", "set", "br1", "name", "br0")
        wait_until(lambda: set(watch.macs) == {"02:00:00:00:00:03"}, "the MAC of the bridge")
        host.run("ip", "link", "del", "vx0")
        wait_until(lambda: watch.calls[-1] == ("segment_lost", VNI), "the loss")
        assert (watch.macs, watch.neighbours) == ({}, {})
        host.run("ip", "tuntap", "add", "vx0", "mode", "tap")
        host.run("ip", "link", "set", "vx0", "master", "br0")
        wait_until(lambda: port_of(host, remote) == ("vx0", {"extern_learn"}), "the remote MAC")


def _learning(host: Host, port: str = "vx0") -> bool:
    (link,) = json.loads(host.run("bridge", "-d", "-j", "link", "show", "dev", port))
    return bool(link["learning"])


@pytest.mark.usefixtures("bridge")
def test_what_a_killed_speaker_has_left_is_removed(host: Host) -> None:
    """Its entry of a remote MAC is deleted, and the learning that it has switched off is on."""
    remote = "02:00:00:00:0b:01"
    host.run("bridge", "link", "set", "dev", "vx0", "learning", "off")
    host.run("bridge", "fdb", "add", remote, "dev", "vx0", "master", "extern_learn")
    with watched(host, {}) as watch:
        assert port_of(host, remote) == ("vx0", {"extern_learn"})
        watch.call(lambda: watch.watch.remove_remains({VNI: TapPlace("vx0")}))
        assert port_of(host, remote) is None
    assert _learning(host)


@pytest.mark.usefixtures("bridge")
def test_learning_is_restored(host: Host) -> None:
    """It is off on the port of the TAP, unless the VNI has learning on, and on at the end."""
    with watched(host) as watch:
        assert not _learning(host)
        assert _learning(host, "p0")
        places = {VNI: TapPlace("vx0")}
        for others, learning in ((places, [VNI]), ({}, [])):
            watch.call(lambda o=others, v=learning: watch.watch.configure(o, learning=v))  # type: ignore[misc]
            assert _learning(host)
            if not others:
                watch.macs.clear()  # Nothing is reported of a VNI that is gone.
            watch.call(lambda: watch.watch.configure(places))
            assert not _learning(host)
        watch.call(lambda: watch.watch.set_port_learning("vx0", on=True))
        assert _learning(host)
        watch.call(lambda: watch.watch.set_port_learning("vx0", on=False))
    assert _learning(host)


def test_remote_macs_are_written_and_taken_over(host: Host, bridge: str) -> None:
    """A local frame takes an entry over, a route takes it back, but not if it is of a user."""
    with watched(host) as watch:
        watch.apply([BridgeChange(octets(HOST_MAC))])
        assert port_of(host, HOST_MAC) == ("vx0", {"extern_learn"})
        assert HOST_MAC not in watch.macs
        send(host, "q0")
        wait_until(lambda: HOST_MAC in watch.macs, "the MAC to be local again")
        assert port_of(host, HOST_MAC) == ("p0", set())
        # What is local on another port by now is not deleted.
        watch.apply([BridgeChange(octets(HOST_MAC), is_present=False)])
        assert port_of(host, HOST_MAC) == ("p0", set())
        watch.apply([BridgeChange(octets(HOST_MAC))])
        wait_until(lambda: HOST_MAC not in watch.macs, "the remote to win")
        assert port_of(host, HOST_MAC) == ("vx0", {"extern_learn"})
        # A sticky one stays.
        watch.apply([BridgeChange(octets(HOST_MAC), sticky=True)])
        sticky = ("vx0", {"extern_learn", "sticky", "static"})
        assert port_of(host, HOST_MAC) == sticky
        send(host, "q0")
        send(host, "q0", FRAME[:11] + b"\x02" + FRAME[12:])
        wait_until(lambda: "02:00:00:00:0a:02" in watch.macs, "the other MAC")
        assert port_of(host, HOST_MAC) == sticky
        watch.apply([BridgeChange(octets(HOST_MAC))])
        assert port_of(host, HOST_MAC) == ("vx0", {"extern_learn"})
        watch.apply([BridgeChange(octets(HOST_MAC), is_present=False)])
        assert port_of(host, HOST_MAC) is None
        # The bridge's own MAC, and an entry of a user.
        own, manual = mac_of(host, bridge), "02:00:00:00:0c:01"
        host.run("bridge", "fdb", "add", manual, "dev", "vx0", "master", "static")
        before = port_of(host, own)
        for is_present in (True, False):
            watch.apply([BridgeChange(octets(mac), is_present) for mac in (own, manual)])
            assert port_of(host, own) == before
            assert port_of(host, manual) == ("vx0", {"static"})


@pytest.mark.usefixtures("bridge")
def test_entries_of_a_killed_speaker_are_found(host: Host) -> None:
    """They are on the port still, and can be deleted."""
    left, other = "02:00:00:00:0b:01", "02:00:00:00:0b:02"
    host.run("bridge", "fdb", "add", left, "dev", "vx0", "master", "extern_learn")
    host.run("bridge", "fdb", "add", other, "dev", "vx0", "master", "static")
    with watched(host) as watch:
        found = watch.call(lambda: watch.watch.remote_macs(VNI))
        assert found == {octets(left)}
        watch.apply([BridgeChange(octets(mac), is_present=False) for mac in (left, other)])
        assert port_of(host, left) is None
        assert port_of(host, other) == ("vx0", {"static"})


def test_messages_say_what_iproute2_says(host: Host, bridge: str) -> None:
    """All entries of all devices, and neighbours, in the dumps of this module and of iproute2."""
    for number, words in enumerate(
        ("master static", "master extern_learn", "master", "master static sticky", "self")
    ):
        mac = f"02:00:00:00:0d:{number:02x}"
        host.run("bridge", "fdb", "add", mac, "dev", "p0", *words.split())
    send(host, "q1")
    address(host, bridge, "10.0.0.1/24", "fd00::1/64")
    for ip in ("10.0.0.9", "fd00::9"):
        host.run("ip", "neigh", "add", ip, "lladdr", HOST_MAC, "dev", bridge)
    with host.inside():
        names = dict(socket.if_nameindex())
        fdb = dump(AF_BRIDGE)
        neighbours = [*dump(AF_INET), *dump(AF_INET6)]
    said = {(e["mac"], e["ifname"], e.get("master"), e.get("vlan", 0)): e for e in kernel_fdb(host)}
    found = {
        (format_mac(e.mac), names[e.device], names.get(e.master), e.vlan): e for e in fdb if e.mac
    }
    assert found.keys() == said.keys()
    for key, entry in found.items():
        flags = set(said[key].get("flags", ()))
        assert bool(entry.flags & NTF_EXT_LEARNED) == ("extern_learn" in flags), key
        assert bool(entry.flags & NTF_STICKY) == ("sticky" in flags), key
        state = said[key].get("state")
        assert bool(entry.state & NUD_PERMANENT) == (state == "permanent"), key
        assert bool(entry.state & NUD_NOARP) == (state == "static"), key
    listed = json.loads(host.run("ip", "-j", "neigh", "show", "nud", "all"))
    said_ips = {(e["dst"], e["dev"], e.get("lladdr")) for e in listed}
    assert {
        (str(e.ip), names[e.device], format_mac(e.mac) if e.mac else None)
        for e in neighbours
        if not e.state & NUD_NOARP
    } == {(ip, dev, mac) for ip, dev, mac in said_ips if not _is_noarp(ip)}


def dump(family: int) -> list[KernelNeighbour]:
    """Return all neighbours of a family."""
    found: list[KernelNeighbour] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(build_dump(RTM_GETNEIGH, family, 1))
        while True:
            for message in split_messages(sock.recv(1 << 16)):
                if message.kind == NLMSG_DONE:
                    return found
                if neighbour := parse_neighbour(message):
                    found.append(neighbour)


def _is_noarp(ip: str) -> bool:
    """Return whether the kernel needs no MAC of an address: of groups and of the host itself."""
    return ip_address(ip).is_multicast or ip_address(ip).is_loopback or ip == "10.0.0.255"


@pytest.mark.usefixtures("bridge")
def test_a_storm_of_events_loses_nothing(host: Host, tmp_path: Path) -> None:
    """With a receive buffer for some 30 events, 10,000 entries are found, and their deletion."""
    macs = [f"02:01:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(10_000)]
    with watched(host, receive_buffer=1 << 15) as watch:
        for verb, expected in (("add", 10_001), ("del", 1)):
            batch = tmp_path / verb
            static = "static" if verb == "add" else ""
            batch.write_text("".join(f"fdb {verb} {mac} dev p0 master {static}\n" for mac in macs))
            host.run("bridge", "-batch", str(batch))
            wait_until(lambda n=expected: len(watch.macs) == n, f"{expected} MACs")  # type: ignore[misc]
        assert watch.watch.resyncs


@pytest.mark.usefixtures("bridge")
def test_many_entries_are_written_at_once(host: Host) -> None:
    """10,000 entries and their deletion, with turns for other callbacks in between."""
    macs = [bytes((2, 1, 0, 0, number >> 8, number & 255)) for number in range(10_000)]
    with watched(host) as watch:
        for is_present in (True, False):
            turns = watch.call(lambda p=is_present: _count_turns(watch, macs, p))  # type: ignore[misc]
            assert turns > 10
            found = {e["mac"] for e in kernel_fdb(host, "br0") if e["mac"].startswith("02:01:")}
            assert found == ({format_mac(mac) for mac in macs} if is_present else set())


async def _count_turns(watch: Watched, macs: list[bytes], is_present: bool) -> int:
    """Write entries. Returns: how many turns of the event loop others had meanwhile."""
    watch.watch.apply({VNI: [BridgeChange(mac, is_present) for mac in macs]})
    written = asyncio.ensure_future(watch.watch.drain())
    turns = 0
    while not written.done():
        turns += 1
        await asyncio.sleep(0)
    return turns
