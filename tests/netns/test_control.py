"""Control of a running pyvtep: its commands, their effect on frames, and hostile clients."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    Tunnel,
    address,
    capture,
    has_device,
    mac_of,
    packet_socket,
    ping,
    pyvtep,
    segment,
    tshark,
    udp_socket,
    wait_until,
)
from vtep.control import Client
from vtep.errors import VtepError
from vtep.testing.lab import Host, Lab

MAC = "02:00:00:00:00:01"
ZERO = "00:00:00:00:00:00"


def frame(destination: str, text: bytes) -> bytes:
    addresses = bytes.fromhex(destination.replace(":", "") + "0200000000aa")
    return addresses + b"\x88\xb5" + text.ljust(50, b".")


# --- effects of commands ------------------------------------------------------------------------


def test_static_entry_directs_a_frame(pair: Pair, tunnel: Tunnel, tmp_path: Path) -> None:
    """To another VTEP, port and VNI than those of the segment."""
    a, b = pair
    ping(a, "10.0.0.2")
    b_mac = mac_of(b, "eth0")
    for host in ("192.0.2.7", "192.0.2.8"):
        a.run("ip", "neigh", "add", host, "lladdr", b_mac, "dev", "eth0")
    vtep = tunnel[0]
    words = "fdb add 02:00:00:00:00:01 dst 192.0.2.7 port 4790 vni 5 static"
    assert vtep.run(*words.split()) == ""
    with capture(b, tmp_path) as pcap, packet_socket(a, "vx0") as sender:
        sender.send(frame(MAC, b"first"))
        wait_until(lambda: sent(vtep, MAC) == 1, "the frame")
        vtep.run("fdb", "append", MAC, "dst", "192.0.2.8")
        sender.send(frame(MAC, b"second"))
        wait_until(lambda: sent(vtep, MAC) == 2, "the frame")
        vtep.run("fdb", "del", MAC)
        sender.send(frame(MAC, b"third"))
        ping(a, "10.0.0.2")
    fields = ["-e", "ip.dst", "-e", "udp.dstport", "-e", "vxlan.vni", "-e", "data"]
    lines = tshark(
        *(pcap, "-d", "udp.port==4790,vxlan", "-Y", "vxlan && eth.type == 0x88b5"),
        *("-T", "fields", "-E", "separator=/s", *fields),
    )
    assert [line.split()[:3] for line in lines] == [
        ["192.0.2.7", "4790", "5"],
        ["192.0.2.7", "4790", "5"],
        ["192.0.2.8", "4789", "1"],
        ["192.0.2.2", "4789", "1"],
    ], lines


def test_entry_with_a_device(lab: Lab, pair: Pair, tunnel: Tunnel) -> None:
    """Which is not the device of the route."""
    a, b = pair
    lab.wire(a, b, "eth1")
    a.run("ip", "route", "add", "192.0.2.0/24", "dev", "eth1", "metric", "500")
    a.run("ip", "neigh", "add", "192.0.2.7", "lladdr", mac_of(b, "eth1"), "dev", "eth1")
    with packet_socket(b, "eth1") as receiver, packet_socket(a, "vx0") as sender:
        tunnel[0].run("fdb", "add", MAC, "dst", "192.0.2.7", "via", "eth1")
        sender.send(frame(MAC, b"over eth1"))
        wait_until(lambda: b"over eth1" in receiver.recv(2048), "the frame")


def sent(vtep: Pyvtep, mac: str) -> int:
    with vtep.client() as client:
        return client.fdb.get(mac)["tx_frames"]


def test_learning_does_not_move_a_static_entry(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    ping(a, "10.0.0.2")
    vtep = tunnel[0]
    vtep.run("fdb", "replace", mac_of(b), "dst", "192.0.2.7", "static")
    before = vtep.counter("inner_source_static")
    a.run("ping", "-c1", "-W0.2", "10.0.0.2", check=False)
    wait_until(lambda: vtep.counter("inner_source_static") > before, "the refusal")
    vtep.run("fdb", "flush", "static")
    ping(a, "10.0.0.2")


def test_add_and_delete_a_remote(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, "--vni", "1", "--tap", "vx0", "--address", "10.0.0.1/24")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    assert "1 received" not in a.run("ping", "-c1", "-W0.3", "10.0.0.2", check=False)
    vtep.run("remote", "add", "192.0.2.2")
    ping(a, "10.0.0.2")
    (row,) = json.loads(vtep.run("remote", "show", "--json"))
    assert (row["vni"], row["dev"], row["dst"]) == (1, "vx0", "192.0.2.2")
    assert "192.0.2.2 is an address" not in vtep.log
    line = vtep.run("remote", "add", "192.0.2.1", code=1)
    assert line.startswith("--remote 192.0.2.1 is an address of this host itself")
    assert "is a remote of vni 1 already" in vtep.run("remote", "add", "192.0.2.2", code=1)
    vtep.run("remote", "del", "192.0.2.2")
    assert (
        vtep.run("fdb", "show", "dynamic") == "(none)\n"
    )  # Its learned entries are deleted as well.
    assert "1 received" not in a.run("ping", "-c1", "-W0.3", "10.0.0.2", check=False)


def test_add_and_delete_a_vni(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    for number, (host, vtep) in enumerate(zip(pair, tunnel, strict=True), 1):
        remote = f"192.0.2.{3 - number}"
        options = ("--remote", remote, "--tap", "vx7", "--address", f"10.7.0.{number}/24")
        vtep.run("vni", "add", "7", *options)
        assert has_device(host, "vx7")
    ping(a, "10.7.0.2")
    ping(a, "10.0.0.2")
    vtep = tunnel[0]
    assert [row.split()[:2] for row in vtep.run("vni", "show").splitlines()] == [
        ["VNI", "DEV"],
        ["1", "vx0"],
        ["7", "vx7"],
    ]
    assert "several segments: choose one with --vni N" in vtep.run("fdb", "get", mac_of(b), code=2)
    assert mac_of(b, "vx7") in vtep.run("fdb", "get", mac_of(b, "vx7"), "dev", "vx7")
    assert mac_of(b, "vx7") in vtep.run("fdb", "show", "--vni", "7")
    assert mac_of(b, "vx7") not in vtep.run("fdb", "show", "--vni", "1")
    assert "vni 7: already exists" in vtep.run("vni", "add", "7", code=1)
    vtep.run("vni", "del", "7")
    assert not has_device(a, "vx7")
    ping(a, "10.0.0.2")
    assert "vni 7: there is no such segment" in vtep.run("vni", "del", "7", code=1)


def test_a_refused_command_changes_nothing(pair: Pair, tunnel: Tunnel) -> None:
    vtep = tunnel[0]
    before = vtep.run("vni", "show", "--json")
    for words, code, line in (
        ("set --ageing 60 --mtu 9000 --df set", 1, "--mtu 9000: does not fit"),
        ("set --ageing 60 --mtu 1", 2, "--mtu 1: must be from 68"),
        ("set --tap eth0", 1, "--tap eth0: a network device of this name exists"),
        ("set", 2, "set: no option given"),
        ("vni add 1", 1, "vni 1: already exists"),
        ("vni add 8 --remote 192.0.2.1", 1, "is an address of this host itself"),
        ("vni add 8 --tap vx0", 2, "--tap vx0: is given twice"),
        ("reload", 2, "cannot reload: pyvtep was started without --config"),
        ("fdb add 02:00:00:00:00:01", 2, "dst: is missing"),
        ("remote add 192.0.2.9 dev vx9", 1, "dev vx9: there is no such segment"),
        ("set --ageing 60 dev vx9", 1, "dev vx9: there is no such segment"),
        ("neigh add 10.0.0.1 dev vx0", 2, "lladdr: is missing"),
        (f"neigh add 10.0.0.1 lladdr {MAC} nud stale", 2, "nud stale: only permanent neighbours"),
        ("fdb add 02:00:00:00:00:01 dst", 2, "dst: its value is missing"),
        ("fdb del 02:00:00:00:00:01", 1, "02:00:00:00:00:01: there is no such entry"),
        ("fdb flush firm", 2, "firm: is not expected here; known are: dst port vni"),
    ):
        assert line in vtep.run(*words.split(), code=code), words
    with udp_socket(pair[0], "0.0.0.0", 4790):
        line = vtep.run("vni", "add", "8", "--dstport", "4790", code=1)
    assert line.startswith("vni 8: --dstport 4790: this UDP port is taken")
    assert vtep.run("vni", "show", "--json") == before
    ping(pair[0], "10.0.0.2")


def state_of(host: Host, device: str) -> dict[str, Any]:
    """Return the MAC address, MTU, bridge, flags and addresses of a device."""
    (link,) = json.loads(host.run("ip", "-j", "address", "show", "dev", device))
    kept = {key: link.get(key) for key in ("address", "mtu", "master", "flags")}
    addresses = {f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]}
    return kept | {"addresses": {each for each in addresses if not each.startswith("fe80:")}}


def test_a_change_that_fails_halfway_is_rolled_back(pair: Pair, tunnel: Tunnel) -> None:
    """The kernel refuses the bridge, which is set last."""
    a, vtep = pair[0], tunnel[0]
    a.run("ip", "link", "add", "br0", "type", "bridge")
    a.run("ip", "tuntap", "add", "vx6", "mode", "tap")
    a.run("ip", "link", "set", "vx6", "mtu", "1280", "master", "br0")
    address(a, "vx6", "10.6.0.1/24")
    before, other = state_of(a, "vx0"), state_of(a, "vx6")
    changed = ("--mac", MAC, "--mtu", "1300", "--address", "10.0.0.9/24", "--bridge", "lo")
    for words in (
        ("set", *changed),
        ("set", "--address", "10.0.0.9/24", "--address", "10.0.0.1/24", "--bridge", "lo"),
        ("vni", "add", "6", "--tap", "vx6", *changed),
        ("vni", "add", "7", "--tap", "vx7", "--persist", *changed),
    ):
        assert "--bridge lo: the kernel refused" in vtep.run(*words, code=1)
    assert state_of(a, "vx0") == before
    assert state_of(a, "vx6") == other
    assert not has_device(a, "vx7")
    assert "rollback" not in vtep.log  # A rollback is logged only where it fails.
    ping(a, "10.0.0.2")


def test_set_takes_effect(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    vtep = tunnel[0]
    ping(a, "10.0.0.2")
    vtep.run("set", "--no-learning", "--mtu", "1300")
    assert "mtu 1300" in a.run("ip", "link", "show", "vx0")
    vtep.run("fdb", "flush", "dynamic")
    ping(a, "10.0.0.2")
    assert vtep.run("fdb", "show", "dynamic") == "(none)\n"
    vtep.run("set", "--learning")
    ping(a, "10.0.0.2")
    assert mac_of(b) in vtep.run("fdb", "show", "dynamic")


@pytest.mark.parametrize("promote", [0, 1])
def test_replace_an_address_by_another_of_its_subnet(
    pair: Pair, start: Start, promote: int
) -> None:
    a, _ = pair
    for name in ("all", "default"):
        path = f"/proc/sys/net/ipv4/conf/{name}/promote_secondaries"
        a.run("sh", "-c", f"echo {promote} >{path}")
    first, second, third = (f"10.45.0.{number}/24" for number in (1, 5, 9))
    other = "fd45::1/64"
    vtep = start(a, *segment(1, "192.0.2.2", first, other))

    def has(*wanted: str) -> None:
        options = [word for address in wanted for word in ("--address", address)]
        vtep.run("set", *options)
        said = a.run("ip", "-o", "address", "show", "vx0", "scope", "global")
        assert sorted(line.split()[3] for line in said.splitlines()) == sorted(wanted)

    has(third, other)
    has(third, first, other)
    has(first, second)
    has(second)
    has(other)
    has(first)


def test_stats_equal_the_report(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    ping(a, "10.0.0.2")
    vtep = tunnel[0]
    told = json.loads(vtep.run("stats", "--json"))
    assert told["total"]["counters"]["tx_frames"] >= 4
    (one,) = told["segments"]
    assert (one["vni"], one["dev"], one["mtu"], one["fdb_entries"]) == (1, "vx0", 1450, 1)
    names = re.findall(r"^ +([a-z_]+) +\d+", vtep.run("stats", "--all"), re.MULTILINE)
    assert names == re.findall(r"^ +([a-z_]+) +\d+", vtep.report(), re.MULTILINE)
    assert set(names) >= {*one["counters"], *one["drops"]}
    some = re.findall(r"^ +([a-z_]+) +(\d+)", vtep.run("stats"), re.MULTILINE)
    assert "tx_frames" in dict(some)
    assert [name for name, count in some if count == "0" and name != "drops"] == []


def test_process_without_vnis_responds_and_stops(tunnel: Tunnel) -> None:
    vtep = tunnel[0]
    vtep.run("vni", "del", "1")
    lines = vtep.run("stats").splitlines()
    assert lines[0] == "0 VNIs, together"
    assert {line.split()[1] for line in lines[1:]} == {"0"}
    vtep.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: lines[-1] in vtep.log, "a report")
    assert vtep.stop(signal.SIGINT) == 0
    assert vtep.log.endswith("pyvtep: ended: 0 frames out, 0 in, 0 dropped\n")


def test_closed_output_pipe(pair: Pair, tunnel: Tunnel) -> None:
    with tunnel[0].client() as client:
        for number in range(2000):
            client.fdb.add(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", dst="192.0.2.7")
    command = f"{sys.executable} -m vtep fdb show --socket {tunnel[0].control} | head -n 1"
    done = pair[0].start("sh", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = done.communicate(timeout=DEADLINE)
    assert (out.split()[0], err) == (b"MAC", b"")
    command = f"{sys.executable} -m vtep fdb show --socket {tunnel[0].control} >&-"
    done = pair[0].start("sh", "-c", command, stderr=subprocess.PIPE)
    _, err = done.communicate(timeout=DEADLINE)
    assert err == b"pyvtep: error: cannot write: Bad file descriptor\n"


def test_neighbours(tunnel: Tunnel) -> None:
    vtep = tunnel[0]
    line = vtep.run("neigh", "add", "10.0.0.9", "lladdr", MAC, code=1)
    assert line == "vni 1: --proxy is off; enable it: pyvtep set --proxy"
    vtep.run("set", "--proxy")
    vtep.run("neigh", "add", "10.0.0.9", "lladdr", MAC, "nud", "permanent")
    line = vtep.run("neigh", "add", "10.0.0.9", "lladdr", MAC, code=1)
    assert line.startswith("10.0.0.9: is a permanent neighbour already")
    vtep.run("neigh", "replace", "10.0.0.9", "lladdr", MAC, "vlan", "5", "router")
    plain, tagged = json.loads(vtep.run("neigh", "show", "--json"))
    said = {"ip": "10.0.0.9", "mac": MAC, "state": "permanent", "age": None, "vni": 1, "dev": "vx0"}
    assert plain == {**said, "vlan": [], "router": False, "extern_learn": False}
    assert tagged == {**said, "vlan": [5], "router": True, "extern_learn": False}
    assert vtep.run("neigh", "show").split()[-2:] == ["permanent", "router"]
    assert vtep.run("neigh", "flush") == "0 flushed\n"
    vtep.run("neigh", "del", "10.0.0.9")
    line = vtep.run("neigh", "del", "10.0.0.9", code=1)
    assert line.startswith("10.0.0.9: there is no such neighbour")
    vtep.run("neigh", "add", "10.0.0.8", "lladdr", MAC, "extern_learn")
    line = vtep.run(
        "neigh", "replace", "10.0.0.9", "lladdr", MAC, "vlan", "5", "extern_learn", code=1
    )
    assert line.startswith("extern_learn: 10.0.0.9 is configured")
    assert vtep.run("neigh", "show").split()[-2:] == ["permanent", "extern_learn"]
    assert json.loads(vtep.run("neigh", "flush", "permanent", "--json")) == {"flushed": 1}
    assert vtep.run("neigh", "flush", "extern_learn") == "1 flushed\n"


# --- monitor ------------------------------------------------------------------------------------


class Monitor:
    """A `pyvtep monitor` process and its lines."""

    def __init__(self, vtep: Pyvtep, folder: Path, *words: str) -> None:
        self._out = folder / f"monitor-{'-'.join(words)}"
        arguments = ("monitor", *words, "--socket", str(vtep.control))
        with self._out.open("w") as out:
            self.process = vtep.host.start(
                *(sys.executable, "-m", "vtep", *arguments), stdout=out, stderr=subprocess.STDOUT
            )
        with vtep.client() as client:
            # Cause events until one is shown: then the monitor has subscribed.
            def subscribed() -> bool:
                client.fdb.add("02:ff:ff:ff:ff:ff", dst="192.0.2.99")
                client.fdb.delete("02:ff:ff:ff:ff:ff")
                return "02:ff:ff:ff:ff:ff" in self._out.read_text()

            wait_until(subscribed, "the monitor")

    def text(self) -> str:
        """Return the output so far, with the events that were caused until it had subscribed."""
        return self._out.read_text()

    def lines(self, count: int) -> list[str]:
        """Wait for a number of lines and return them all."""
        wait_until(lambda: len(self._lines()) >= count, f"{count} lines, not {self._lines()}")
        return self._lines()

    def _lines(self) -> list[str]:
        # When a remote is first heard depends on the hosts' own traffic.
        others = ("02:ff:ff:ff:ff:ff", "Seen vni", '"remote-liveness"')
        lines = self._out.read_text().splitlines()
        return [each for each in lines if not any(other in each for other in others)]


def test_monitor_shows_one_line_for_each_change(pair: Pair, tunnel: Tunnel, tmp_path: Path) -> None:
    a, b = pair
    vtep = tunnel[0]
    ping(a, "10.0.0.2")
    monitor, as_json = Monitor(vtep, tmp_path), Monitor(vtep, tmp_path, "--json")
    with vtep.client() as client:
        client.fdb.add(MAC, dst="192.0.2.7", state="static")
        client.fdb.append(MAC, dst="192.0.2.8", state="static")
        client.fdb.append(MAC, dst="192.0.2.8", state="static")  # Changes nothing.
        client.fdb.replace(MAC, dst="192.0.2.9", port=4790, dst_vni=5, sticky=True)
        client.fdb.delete(MAC)
        with pytest.raises(VtepError):
            client.fdb.delete(MAC)
        client.remote.add("192.0.2.9")
        client.remote.delete("192.0.2.9")
        client.set(ageing=60)
        client.set(ageing=60)  # Changes nothing.
        client.set(mtu=1300)
        client.set(mtu=1400)
        client.vni.add(7, remote="192.0.2.2")
        client.vni.delete(7)
        client.fdb.flush(dynamic=True)
    entry = f"{mac_of(b)} dev vx0 dst 192.0.2.2 dynamic"
    expected = [
        f"{MAC} dev vx0 dst 192.0.2.7 static",
        f"{MAC} dev vx0 dst 192.0.2.7 dst 192.0.2.8 static",
        f"{MAC} dev vx0 dst 192.0.2.9 port 4790 vni 5 permanent sticky",
        f"Deleted {MAC} dev vx0 dst 192.0.2.9 port 4790 vni 5 permanent sticky",
        f"{ZERO} dev vx0 dst 192.0.2.2 dst 192.0.2.9 permanent",
        f"{ZERO} dev vx0 dst 192.0.2.2 permanent",
        "vni 1 dev vx0 ageing 60.0",
        "vni 1 dev vx0 mtu 1300",
        "vni 1 dev vx0 mtu 1400",
        "vni 7 dev vx7",
        "Deleted vni 7 dev vx7",
        f"Deleted {entry}",
    ]
    assert monitor.lines(len(expected)) == expected
    ping(a, "10.0.0.2")
    assert monitor.lines(len(expected) + 1) == [*expected, entry]
    a.run("ip", "link", "set", "vx0", "mtu", "1300")
    expected += [entry, "vni 1 dev vx0 mtu 1300"]
    timed = Monitor(vtep, tmp_path, "-t")
    assert re.match(r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\] (Deleted )?02:", timed.text())
    assert monitor.lines(len(expected)) == expected
    events = [json.loads(line) for line in as_json.lines(len(expected))]
    assert len(events) == len(expected)
    assert [event for event in events if event["object"] in ("vni", "mtu")] == [
        {"event": "changed", "vni": 1, "dev": "vx0", "object": "mtu", "mtu": 1300},
        {"event": "changed", "vni": 1, "dev": "vx0", "object": "mtu", "mtu": 1400},
        {"event": "added", "vni": 7, "dev": "vx7", "object": "vni"},
        {"event": "deleted", "vni": 7, "dev": "vx7", "object": "vni"},
        {"event": "changed", "vni": 1, "dev": "vx0", "object": "mtu", "mtu": 1300},
    ]
    as_json.process.send_signal(signal.SIGINT)
    assert as_json.process.wait(DEADLINE) == 130
    assert vtep.stop() == 0
    last = monitor.lines(len(expected) + 1)[-1]
    assert last == "pyvtep: error: the monitored pyvtep has ended"
    assert monitor.process.wait(DEADLINE) == 1


# --- finding the process ------------------------------------------------------------------------


def test_taps_of_one_name_in_two_namespaces(pair: Pair, start: Start) -> None:
    """The hosts share /run. A command finds the process of its own host."""
    tap = f"t{os.getpid()}"
    vteps = []
    for number, host in enumerate(pair, 1):
        arguments = [*segment(1, f"192.0.2.{3 - number}")[:-1], tap, "--control", "auto"]
        vteps.append(start(host, *arguments, "--address", f"10.0.0.{number}/24"))
    ping(pair[0], "10.0.0.2")
    place = Path("/run/pyvtep")
    other = place / f"{tap}-{vteps[1].process.pid}.sock"
    first = re.escape(f"--control {place / tap}.sock: in use by process {vteps[0].process.pid}")
    assert re.search(f"{first}; using {other} instead\n", vteps[1].log)
    assert "control" not in vteps[0].log
    for host, remote in zip(pair, ("192.0.2.2", "192.0.2.1"), strict=True):
        done = pyvtep(host, "remote", "show", "--json")
        assert done.returncode == 0, done.stderr
        assert [row["dst"] for row in json.loads(done.stdout)] == [remote]
    for vtep in vteps:
        assert vtep.stop() == 0
    assert list(place.glob(f"{tap}*")) == []


NO_PYVTEP_HERE = "pyvtep: error: no pyvtep runs in this network namespace; to change one"


def test_a_command_ignores_processes_of_other_namespaces(pair: Pair, start: Start) -> None:
    """The hosts share /run, but a command does not use the process of the other host."""
    a, b = pair
    vtep = start(b, *segment(1, "192.0.2.1"), "--control", "auto")
    path = Path("/run/pyvtep/vx0.sock")
    pid = vtep.process.pid
    there = f"there is vni 1 dev vx0 at {path} (process {pid})"
    for words in ("vni del 1", "vni add 2", "set --ageing 5", "fdb flush", "remote del 192.0.2.1"):
        done = pyvtep(a, *words.split())
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(NO_PYVTEP_HERE)
        assert there in done.stderr
    assert "deleted" not in vtep.log
    note = f"pyvtep: note: process {pid} in another network namespace answered ({path})\n"
    for words in ("vni show --json", "fdb -j", "stats --json"):
        done = pyvtep(a, *words.split())
        assert (done.returncode, done.stderr) == (0, note)
        assert json.loads(done.stdout)
    with a.inside(), Client() as client:
        assert client.vni.show()[0]["dev"] == "vx0"
        with pytest.raises(VtepError, match="no pyvtep runs in this network namespace"):
            client.vni.delete(1)
    done = pyvtep(a, "doctor", "--socket", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"nsenter -t {pid} -n pyvtep doctor" in done.stderr
    # In another PID namespace, no process has that PID.
    for host, code in ((a, 1), (b, 0)):
        command = [*("unshare", "--pid", "--fork", sys.executable, "-m", "vtep"), "set"]
        with host.start(*command, "--ageing", "7", stderr=subprocess.PIPE, text=True) as child:
            _, err = child.communicate(timeout=DEADLINE)
        assert child.returncode == code, err
        assert code == 0 or "(a process of another PID namespace)" in err
    assert pyvtep(a, "vni", "del", "1", "--socket", str(path)).stderr == ""
    wait_until(lambda: "vni 1 on vx0: deleted" in vtep.log, "the deletion")
    assert vtep.stop() == 0


def test_two_processes_of_a_host_are_selected_by_vni(pair: Pair, start: Start) -> None:
    a, _ = pair
    more = ("--remote", "192.0.2.2", "--control", "auto")
    one = start(a, "--vni", "100", *more)
    two = start(a, "--vni", "200", "--tap", "blue", "--dstport", "4790", *more)

    def told(words: str, code: int = 0) -> str:
        done = pyvtep(a, *words.split())
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    assert [segment["vni"] for segment in json.loads(told("vni -j"))] == [200, 100]
    assert told("remote").count("192.0.2.2") == 2
    assert told("fdb show dev vx100").count("192.0.2.2") == 1
    assert told("fdb --vni 200").count("192.0.2.2 port 4790") == 1
    stats = json.loads(told("stats --json"))
    assert {segment["vni"] for segment in stats["segments"]} == {100, 200}
    assert told("stats").startswith("2 VNIs, together\n")
    told("set --ageing 7 --vni 200")
    told("remote add 192.0.2.9 dev blue")
    assert "192.0.2.9" in told("remote show dev blue")
    assert "192.0.2.9" not in told("remote show dev vx100")
    for words in ("set --ageing 7", "vni add 5", "reload", "monitor", f"fdb get {ZERO}"):
        said = told(words, 1)
        for vtep, name in ((one, "vni 100 dev vx100"), (two, "vni 200 dev blue")):
            assert f"{name} at /run/pyvtep/" in said
            assert f"(process {vtep.process.pid})" in said
    assert "vni 7: no pyvtep here has it; there is vni " in told("vni del 7", 1)
    told("vni del 100")
    wait_until(lambda: "vni 100 on vx100: deleted" in one.log, "the deletion")
    assert "deleted" not in two.log


def test_reload_signals_do_not_stop_the_process(pair: Pair, tmp_path: Path) -> None:
    """Not even during the start. SIGHUP reloads a configuration file, and here is none."""
    asking = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)
    vtep = Pyvtep(pair[0], tmp_path, *segment(1, "192.0.2.2"))
    status = Path(f"/proc/{vtep.process.pid}/status")

    def waits() -> bool:
        blocked = re.search(r"SigBlk:\s+([0-9a-f]+)", status.read_text())
        return bool(blocked and int(blocked[1], 16) & 1 << signal.SIGHUP - 1)

    wait_until(waits, "signals to be kept")
    for number in asking:
        vtep.process.send_signal(number)
    vtep.ready()
    line = "SIGHUP ignored: there is no --config file to read again"
    wait_until(lambda: vtep.log.count(line) == 1, "the first SIGHUP")
    for number in asking:
        vtep.process.send_signal(number)
    wait_until(lambda: vtep.log.count(line) == 2, "the second one")
    wait_until(lambda: vtep.log.count("SIGALRM ignored: ") == 2, "the other signals")
    assert "WARNING pyvtep: SIGUSR2 ignored: " in vtep.log
    assert "fdb entries" in vtep.log
    assert vtep.stop(signal.SIGQUIT) == 0
    assert "INFO pyvtep: ended: " in vtep.log


def test_debug_log_states_reasons(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--debug")
    ping(a, "10.0.0.2")
    for line in (
        "DEBUG pyvtep: vni 1: broadcasts go to 192.0.2.2 (--remote or --group)",
        "DEBUG pyvtep: vni 1: the routes to the remotes are over eth0, MTU 1500",
        "DEBUG pyvtep: vni 1: offload on: ",
        "DEBUG pyvtep: socket to 192.0.2.2 port 4789 opened: from 192.0.2.1 port ",
        f"fdb added: {mac_of(b)} dev vx0 dst 192.0.2.2 dynamic (learned from a frame)",
    ):
        wait_until(lambda line=line: line in vtep.log, line)  # type: ignore[misc]
    assert "asyncio" not in vtep.log
    assert "selector" not in vtep.log


def test_a_control_socket_in_use_is_an_error(pair: Pair, start: Start) -> None:
    vtep = start(pair[0], *segment(1, "192.0.2.2"))
    # Without its fast path, as it says first that it compiles that.
    arguments = ["--vni", "2", "--dstport", "4790", "--control", str(vtep.control)]
    arguments.append("--no-fast-path")
    done = pyvtep(pair[0], *arguments)
    assert done.returncode == 1
    pid = vtep.process.pid
    assert done.stderr == (
        f"pyvtep: error: --control {vtep.control}: in use by process {pid}; give another PATH\n"
    )
    assert not has_device(pair[0], "vx2")
    vtep.stop(signal.SIGKILL)
    assert vtep.control.exists()
    again = start(pair[0], *segment(1, "192.0.2.2"), "--control", str(vtep.control))
    again.control = vtep.control
    assert "192.0.2.2" in again.run("remote", "show")


def test_without_a_control_socket(pair: Pair, start: Start) -> None:
    vtep = start(pair[0], *segment(1, "192.0.2.2"), "--control", "none")
    line = vtep.run("fdb", "show", code=1)
    assert line.startswith(f"--socket {vtep.control}: no pyvtep answers there")


# --- hostile clients ----------------------------------------------------------------------------


def test_a_hundred_hostile_clients_cause_no_loss(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    vtep = tunnel[0]
    ping(a, "10.0.0.2")
    with vtep.client() as client:
        for number in range(3000):
            client.fdb.add(f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", dst="192.0.2.2")
    show = b'{"jsonrpc":"2.0","method":"fdb.show","id":1}'
    watch = b'{"jsonrpc":"2.0","method":"monitor.subscribe","id":1}\n'
    change = b'{"jsonrpc":"2.0","method":"fdb.append","params":{"mac":"%s","dst":"192.0.2.%d"}}\n'
    said = [
        show + b"\n" + show + b"\n",  # And does not read the responses.
        b"[" + b",".join([show] * 500) + b"]\n",
        b'{"jsonrpc": "2.0", "meth',  # And sends no more.
        b"x" * 1_000_000,
        b"[" * 60000 + b"\n",
        b"\0\xff\n" * 10000,
        watch + b"".join(change % (b"02:00:00:00:00:77", n % 250 + 1) for n in range(2000)),
        b"[1," * 20000 + b"\n",
        b'{"jsonrpc":"2.0","method":"set","params":{"options":{"mtu":1}},"id":1}\n' * 1000,
        b"",
    ]
    done = threading.Event()

    def attack(octets: bytes) -> None:
        """Send the octets over and over, as fast as they are read."""
        while not done.is_set():
            with socket.socket(socket.AF_UNIX) as peer, suppress(OSError):
                peer.settimeout(0.5)
                peer.connect(os.fspath(vtep.control))
                peer.sendall(octets)
                done.wait(0.3)

    threads = [threading.Thread(target=attack, args=(said[n % len(said)],)) for n in range(100)]
    for thread in threads:
        thread.start()
    try:
        count = 200
        out = a.run("ping", "-i0.01", "-c", str(count), f"-W{DEADLINE:.0f}", "10.0.0.2")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert f"{count} received" in out, out
    # And a proper client is served.
    assert "192.0.2.2" in vtep.run("remote", "show")
    assert vtep.process.poll() is None
    memory = Path(f"/proc/{vtep.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", memory)
    assert found
    assert int(found[1]) < 200 << 10


def test_deleted_remotes_come_back(pair: Pair, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('remote = "192.0.2.2"\n[[vni]]\nid = 1\n')
    vtep = start(pair[0], "--config", str(file))
    for again in (("reload",), ("set", "--remote", "192.0.2.2"), ("set", "--ageing", "60")):
        vtep.run("fdb", "del", ZERO)
        assert shown(vtep) == {}
        vtep.run(*again)
        assert shown(vtep) == {ZERO: [("192.0.2.2", 4789, 1)]}
    assert vtep.run("fdb", "flush") == "0 flushed\n"


# --- state --------------------------------------------------------------------------------------


def test_static_and_learned_entries_survive_a_restart(
    pair: Pair, start: Start, tmp_path: Path
) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    file = tmp_path / "state"
    arguments = [*segment(1, "192.0.2.2", "10.0.0.1/24"), "--state", str(file), "--state-learned"]
    vtep = start(a, *arguments)
    ping(a, "10.0.0.2")
    vtep.run("fdb", "add", MAC, *["dst", "192.0.2.7", "port", "4790", "vni", "5", "static"])
    vtep.run("fdb", "append", ZERO, "dst", "192.0.2.8")
    before = shown(vtep)
    assert set(before) == {ZERO, MAC, mac_of(b)}
    assert vtep.stop() == 0
    vtep = start(a, *arguments)
    assert shown(vtep) == before
    assert "state" not in vtep.log
    vtep.run("fdb", "del", MAC)
    # Even if killed by SIGKILL, the process has saved earlier changes.
    vtep.stop(signal.SIGKILL)
    vtep = start(a, *arguments[:-1])
    assert MAC not in shown(vtep)
    # Remotes come from the configuration; destinations appended besides are kept.
    assert vtep.stop() == 0
    vtep = start(a, *segment(1, "192.0.2.3")[:-1], "vx0", "--state", str(file))
    assert shown(vtep)[ZERO] == [("192.0.2.3", 4789, 1), ("192.0.2.8", 4789, 1)]


def shown(vtep: Pyvtep) -> dict[str, list[tuple[Any, ...]]]:
    with vtep.client() as client:
        return {
            entry["mac"]: [(to["dst"], to["port"], to["dst_vni"]) for to in entry["destinations"]]
            for entry in client.fdb.show()
        }


def test_damaged_state_file_is_renamed(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, _ = pair
    file = tmp_path / "state"
    arguments = [*segment(1, "192.0.2.2"), "--state", str(file)]
    vtep = start(a, *arguments)
    vtep.run("fdb", "add", MAC, "dst", "192.0.2.7")
    assert vtep.stop() == 0
    cut = file.read_bytes()[:-30]
    file.write_bytes(cut)
    vtep = start(a, *arguments)
    (aside,) = tmp_path.glob("state.bad-*")
    assert aside.read_bytes() == cut
    assert f"--state {file}: it is cut off; renamed it to {aside}" in vtep.log
    assert set(shown(vtep)) == {ZERO}


def test_foreign_state_file_is_not_touched(pair: Pair, tmp_path: Path) -> None:
    file = tmp_path / "thesis"
    file.write_text("My only copy.")
    done = pyvtep(pair[0], *segment(1, "192.0.2.2"), "--state", str(file), "--control", "none")
    assert done.returncode == 1
    assert done.stderr == (
        f"pyvtep: error: --state {file}: is not a state file of pyvtep; give the name of another "
        "file\n"
    )
    assert file.read_text() == "My only copy."
    assert not has_device(pair[0])


def test_a_new_tap_keeps_the_tables(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    vtep = tunnel[0]
    ping(a, "10.0.0.2")
    learned = mac_of(b)
    vtep.run("set", "--proxy")
    with vtep.client() as client:
        client.fdb.append(ZERO, dst="192.0.2.9")
        client.fdb.add(MAC, dst="2001:db8::2", state="static")
        client.neigh.add("10.0.0.9", MAC)

    def tables() -> tuple[set[tuple[str, str]], list[str]]:
        with vtep.client() as client:
            entries = {
                (entry["mac"], to["dst"])
                for entry in client.fdb.show()
                for to in entry["destinations"]
            }
            permanent = [each["ip"] for each in client.neigh.show() if each["state"] == "permanent"]
            return entries, permanent

    expected = {
        *((ZERO, "192.0.2.2"), (ZERO, "192.0.2.9")),
        *((MAC, "2001:db8::2"), (learned, "192.0.2.2")),
    }
    assert tables() == (expected, ["10.0.0.9"])
    vtep.run("set", "--tap", "vx9")
    assert tables() == (expected, ["10.0.0.9"])
    ping(a, "10.0.0.2")
