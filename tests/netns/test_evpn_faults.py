"""EVPN and faults: ends of the speaker, of the daemon and of the neighbour, and upgrades."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from tests.netns.fabric import (
    Fabric,
    Frr,
    Neighbor,
    add_bridge,
    bgp_config,
    kernel_fdb,
    kernel_leaf,
)
from tests.netns.hosts import Pyvtep, ping, wait_until
from vtep.control import Client
from vtep.control.schema import FdbEntry
from vtep.testing.lab import Host, Lab

MAC_A, MAC_B, MAC_C = "02:00:00:00:0a:01", "02:00:00:00:0b:01", "02:00:00:00:0c:01"
FLOOD = "00:00:00:00:00:00"
OPTIONS = (
    *("--vni", "100", "--asn", "65000", "--evpn-neighbor", "192.0.2.2", "--bridge", "br0"),
    *("--local", "192.0.2.1", "--tap", "vx0"),
)

Start = Callable[..., Pyvtep]


@frozen
class Leaves:
    """A router for pyvtep with a bridge and a host, and an FRR leaf with another host."""

    fabric: Fabric
    router: Host
    host: Host
    frr: Frr
    far: Host

    def session(self) -> dict[str, Any]:
        """Return the session with pyvtep as FRR shows it."""
        said = self.frr.show("bgp neighbors 192.0.2.1")
        return dict(said.get("192.0.2.1", {}))

    def is_established(self) -> bool:
        """Return whether FRR has a session with pyvtep."""
        return bool(self.session().get("bgpState") == "Established")


@pytest.fixture
def leaves(lab: Lab, tmp_path: Path) -> Leaves:
    """Return two leaves of a fabric in AS 65000; pyvtep is not started."""
    fabric = Fabric(lab)
    router, other = fabric.router("vtep", 1), fabric.router("leaf", 2)
    add_bridge(router, "br0")
    host = fabric.host(router, "br0", "host-a", MAC_A, "10.0.0.1/24")
    bridge = kernel_leaf(other, 100, "192.0.2.2")
    far = fabric.host(other, bridge, "host-b", MAC_B, "10.0.0.2/24")
    frr = Frr(other, tmp_path, bgp_config(65000, "192.0.2.2", [Neighbor("192.0.2.1", 65000)]))
    return Leaves(fabric, router, host, frr, far)


def speaker(vtep: Pyvtep) -> dict[str, Any]:
    """Return what the daemon says of its speaker."""
    with vtep.client() as client:
        status = client.status()["evpn"]
        assert status is not None
        return dict(status["speaker"])


def is_running(pid: int) -> bool:
    """Return whether a process runs; one without a parent may stay as a zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def destinations(vtep: Pyvtep) -> dict[str, set[str]]:
    """Return the destinations of each MAC in the FDB of VNI 100."""
    with vtep.client() as client:
        return {
            entry["mac"]: {each["dst"] for each in entry["destinations"]}
            for entry in client.fdb.show(vni=100)
        }


def lasting(entry: FdbEntry) -> dict[str, Any]:
    """Return an FDB entry without the ages and counts that change by themselves."""
    return {**entry, "age": None, "tx_frames": None, "rx_frames": None}


def remote_on_bridge(router: Host) -> set[str]:
    """Return the MACs that are remote for the bridge of pyvtep."""
    return {
        entry["mac"]
        for entry in kernel_fdb(router, "br0")
        if "extern_learn" in entry.get("flags", ()) and entry["ifname"] == "vx0"
    }


def established(leaves: Leaves, start: Start, *options: str) -> Pyvtep:
    """Start pyvtep, and wait until both sides know the hosts of each other."""
    vtep = start(leaves.router, *OPTIONS, "--debug", *options)
    ping(leaves.host, "10.0.0.2")
    ping(leaves.far, "10.0.0.1")
    wait_until(lambda: MAC_B in destinations(vtep), "the MAC of the far host")
    wait_until(lambda: MAC_A in leaves.frr.remote_macs(100), "the MAC of the own host at FRR")
    wait_until(lambda: remote_on_bridge(leaves.router) == {MAC_B}, "the MAC on the bridge")
    return vtep


def test_a_leaf_next_to_frr(leaves: Leaves, start: Start) -> None:
    vtep = established(leaves, start)
    assert leaves.frr.remote_macs(100)[MAC_A] == "192.0.2.1"
    assert destinations(vtep) == {FLOOD: {"192.0.2.2"}, MAC_B: {"192.0.2.2"}}
    # Frames before the first route are no fault.
    assert "no_remote" not in vtep.log
    assert "source_unknown" not in vtep.log
    # The speaker has none of the descriptors of the daemon.
    pid = speaker(vtep)["pid"]
    names = {str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()}
    assert "/dev/net/tun" not in names
    # A user who flushes all entries gets those of the fabric again.
    with vtep.client() as client:
        client.fdb.add("02:00:00:00:99:01", "192.0.2.9", vni=100)
        assert client.fdb.flush(vni=100) > 1
        wait_until(
            lambda: destinations(vtep) == {FLOOD: {"192.0.2.2"}, MAC_B: {"192.0.2.2"}},
            "the entries of the fabric",
        )
        # So does one who deletes a single one.
        client.fdb.delete(MAC_B, vni=100)
        wait_until(lambda: destinations(vtep).get(MAC_B) == {"192.0.2.2"}, "the deleted entry")
    # An entry of a user is not taken over, and that is said.
    with vtep.client() as client:
        client.fdb.add(MAC_C, "192.0.2.9", vni=100)
    leaves.fabric.host(leaves.frr.host, "br100", "host-c", MAC_C, "10.0.0.3/24")
    wait_until(lambda: "EVPN: vni 100: an entry was refused: " in vtep.log, "the refused entry")
    assert destinations(vtep)[MAC_C] == {"192.0.2.9"}
    # Nor is it shown as installed, or put on the bridge port; nor is the MAC of the own TAP.
    # A bridge takes over the lowest MAC of its ports, which may be that of the TAP.
    leaves.router.run("ip", "link", "set", "br0", "address", "02:00:00:00:00:b0")
    (link,) = json.loads(leaves.router.run("ip", "-j", "link", "show", "vx0"))
    leaves.fabric.host(leaves.frr.host, "br100", "host-d", link["address"], "10.0.0.4/24")
    wait_until(lambda: "is the MAC of the TAP of this host" in vtep.log, "the forged MAC")
    wait_until(lambda: remote_on_bridge(leaves.router) == {MAC_B}, "the MACs of the bridge port")
    with Client(vtep.control.with_suffix(".evpn")) as client:
        (view,) = client.call("evpn.show", what="macs", mac=MAC_C)
        assert view["reason"] == "refused"
        assert {"own-mac", "refused"} <= client.call("evpn.show")["not_installed"].keys()
    # At its end, all routes are withdrawn at once, and the reason is told.
    assert vtep.stop() == 0
    wait_until(lambda: leaves.frr.remote_macs(100) == {}, "the withdrawal of all routes")
    assert not is_running(pid)
    assert not vtep.control.with_suffix(".evpn").exists()


def test_the_speaker_is_killed(leaves: Leaves, start: Start) -> None:
    """Entries stay, those of hosts that are gone meanwhile go, and those of a user stay."""
    vtep = established(leaves, start)
    other = leaves.fabric.host(leaves.frr.host, "br100", "host-c", MAC_C, "10.0.0.3/24")
    ping(other, "10.0.0.1")
    with vtep.client() as client:
        client.fdb.append(FLOOD, "192.0.2.9", vni=100)
        client.fdb.add("02:00:00:00:99:01", "192.0.2.9", vni=100)
    manual = {"02:00:00:00:99:01": {"192.0.2.9"}}
    wait_until(lambda: MAC_C in destinations(vtep), "the second far host")
    before = {**manual, FLOOD: {"192.0.2.2", "192.0.2.9"}, MAC_B: {"192.0.2.2"}}
    assert destinations(vtep) == {**before, MAC_C: {"192.0.2.2"}}
    former = speaker(vtep)["pid"]
    # Not restarted before the far host is gone: it would be told of its end.
    os.kill(former, signal.SIGSTOP)
    leaves.frr.host.run("ip", "link", "del", "host-c")
    wait_until(lambda: MAC_C not in leaves.frr.local_macs(100), "the end of the second far host")
    assert destinations(vtep) == {**before, MAC_C: {"192.0.2.2"}}
    os.kill(former, signal.SIGKILL)
    ping(leaves.host, "10.0.0.2")
    wait_until(lambda: speaker(vtep)["state"] == "running", "another speaker")
    wait_until(lambda: destinations(vtep) == before, "the end of the stale entry")
    wait_until(lambda: remote_on_bridge(leaves.router) == {MAC_B}, "its end on the bridge")
    wait_until(leaves.is_established, "the session")
    found = speaker(vtep)
    assert (found["restarts"], found["pid"] != former) == (1, True)
    assert "SIGKILL" in found["last_error"]
    assert "EVPN speaker ended unexpectedly: ended by SIGKILL" in vtep.log
    ping(leaves.far, "10.0.0.1")


@pytest.mark.parametrize("kept", ["nothing", "state", "persist"])
def test_the_daemon_is_killed(leaves: Leaves, start: Start, tmp_path: Path, kept: str) -> None:
    """All routes are withdrawn at once, and after a restart all is as before."""
    options = {
        "nothing": (),
        "state": ("--state", str(tmp_path / "state")),
        "persist": ("--persist", "--state", str(tmp_path / "state")),
    }[kept]
    vtep = established(leaves, start, *options)
    with vtep.client() as client:
        client.fdb.add("02:00:00:00:99:01", "192.0.2.9", vni=100)
    pid = speaker(vtep)["pid"]
    vtep.process.kill()
    vtep.wait()
    wait_until(lambda: leaves.frr.remote_macs(100) == {}, "the withdrawal of all routes")
    wait_until(lambda: not is_running(pid), "the end of the speaker")
    # Another far host has come, and the first one has gone.
    other = leaves.fabric.host(leaves.frr.host, "br100", "host-c", MAC_C, "10.0.0.3/24")
    leaves.frr.host.run("ip", "link", "del", "host-b")
    again = start(leaves.router, *OPTIONS, *options)
    ping(other, "10.0.0.1")
    wanted = {FLOOD: {"192.0.2.2"}, MAC_C: {"192.0.2.2"}}
    if kept != "nothing":
        wanted["02:00:00:00:99:01"] = {"192.0.2.9"}
    wait_until(lambda: destinations(again) == wanted, "the entries of the far hosts of now")
    wait_until(lambda: remote_on_bridge(leaves.router) == {MAC_C}, "those of the bridge")
    assert speaker(again)["restarts"] == 0


def test_the_neighbour_is_killed(leaves: Leaves, start: Start) -> None:
    vtep = established(leaves, start)
    with vtep.client() as client:
        client.fdb.append(FLOOD, "192.0.2.9", vni=100)
        client.fdb.add("02:00:00:00:99:01", "192.0.2.9", vni=100)
    manual = {FLOOD: {"192.0.2.9"}, "02:00:00:00:99:01": {"192.0.2.9"}}
    leaves.frr.kill_bgpd()
    wait_until(lambda: destinations(vtep) == manual, "the end of the entries")
    wait_until(lambda: remote_on_bridge(leaves.router) == set(), "their end on the bridge")
    leaves.frr.start_bgpd()
    wait_until(lambda: MAC_B in destinations(vtep), "the entries of the far host")
    assert destinations(vtep)[FLOOD] == {"192.0.2.2", "192.0.2.9"}
    ping(leaves.host, "10.0.0.2")


def test_sessions_survive_an_upgrade(leaves: Leaves, start: Start) -> None:
    """FRR sees nothing of it, no entry is touched, and no ping is lost."""
    vtep = established(leaves, start)
    before = leaves.session()
    pid = speaker(vtep)["pid"]
    with vtep.client() as client:
        entries = client.fdb.show(vni=100)
    pings = leaves.host.start(
        "ping", "-i", "0.01", "-q", "10.0.0.2", stdout=subprocess.PIPE, text=True
    )
    monitor = leaves.router.start("bridge", "monitor", "fdb", stdout=subprocess.PIPE, text=True)
    vtep.run("upgrade")
    wait_until(lambda: speaker(vtep)["state"] == "running", "the speaker at the new process")
    pings.send_signal(signal.SIGINT)
    out, _ = pings.communicate()
    assert re.search(r", 0% packet loss", out), out
    monitor.terminate()
    assert MAC_B not in monitor.communicate()[0]
    after = leaves.session()
    for name in ("connectionsEstablished", "connectionsDropped"):
        assert after[name] == before[name] == (name == "connectionsEstablished")
    assert speaker(vtep)["pid"] == pid
    with vtep.client() as client:
        assert list(map(lasting, client.fdb.show(vni=100))) == list(map(lasting, entries))
    # The new process supervises it, and it follows the new process.
    leaves.fabric.host(leaves.frr.host, "br100", "host-c", MAC_C, "10.0.0.3/24")
    wait_until(lambda: MAC_C in destinations(vtep), "a MAC after the upgrade")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: speaker(vtep)["pid"] not in (None, pid), "another speaker")
    wait_until(lambda: speaker(vtep)["state"] == "running", "that it runs")
    ping(leaves.far, "10.0.0.1")
    wait_until(leaves.is_established, "the session")


def test_a_speaker_that_hangs_is_ended_after_an_upgrade(leaves: Leaves, start: Start) -> None:
    """The new process knows it by its descriptor, though it has not answered."""
    vtep = established(leaves, start)
    pid = speaker(vtep)["pid"]
    os.kill(pid, signal.SIGSTOP)
    vtep.run("upgrade")
    vtep.run("evpn", "restart")
    wait_until(lambda: not is_running(pid), "the end of the former speaker")
    wait_until(lambda: speaker(vtep)["state"] == "running", "another speaker")
    wait_until(leaves.is_established, "the session")


def test_upgrades_that_fail_or_end_evpn(leaves: Leaves, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "pyvtep.toml"
    segment = '[[vni]]\nid = 100\ntap = "vx0"\nbridge = "br0"\nlocal = "192.0.2.1"\n'
    sessions = '[evpn]\nasn = 65000\nneighbor = ["192.0.2.2"]\n'
    file.write_text(sessions + segment + "evpn = true\n")
    vtep = start(leaves.router, "--config", str(file))
    ping(leaves.host, "10.0.0.2")
    wait_until(lambda: MAC_B in destinations(vtep), "the MAC of the far host")
    pid = speaker(vtep)["pid"]
    for _ in range(2):
        vtep.run("upgrade")
        wait_until(lambda: speaker(vtep)["state"] == "running", "the speaker at the new process")
    file.write_text("x")
    assert "is not TOML" in vtep.run("upgrade", code=1)
    leaves.fabric.host(leaves.frr.host, "br100", "host-c", MAC_C, "10.0.0.3/24")
    wait_until(lambda: MAC_C in destinations(vtep), "a MAC after the failed upgrade")
    assert speaker(vtep)["pid"] == pid
    assert leaves.session()["connectionsEstablished"] == 1
    # The new process has no EVPN: nothing of it stays.
    file.write_text(segment)
    vtep.run("upgrade")
    wait_until(lambda: destinations(vtep) == {}, "the end of all entries")
    wait_until(lambda: not is_running(pid), "the end of the speaker")
    wait_until(lambda: not leaves.is_established(), "the end of the session")
    with vtep.client() as client:
        assert client.status()["evpn"] is None


def test_a_reload_adds_and_removes_evpn(leaves: Leaves, start: Start, tmp_path: Path) -> None:
    file = tmp_path / "pyvtep.toml"
    segment = '[[vni]]\nid = 100\ntap = "vx0"\nbridge = "br0"\nlocal = "192.0.2.1"\n'
    sessions = '[evpn]\nasn = 65000\nneighbor = ["192.0.2.2"]\n'
    file.write_text(segment)
    vtep = start(leaves.router, "--config", str(file))
    with vtep.client() as client:
        assert client.status()["evpn"] is None
        with pytest.raises(Exception, match=r"add a table \[evpn\]"):
            client.set(vni=100, evpn=True)
        client.fdb.add("02:00:00:00:99:01", "192.0.2.9", vni=100)
        file.write_text(sessions + segment + "evpn = true\n")
        client.reload()
    ping(leaves.host, "10.0.0.2")
    manual = {"02:00:00:00:99:01": {"192.0.2.9"}}
    both = {**manual, FLOOD: {"192.0.2.2"}, MAC_B: {"192.0.2.2"}}
    wait_until(lambda: destinations(vtep) == both, "the entries of EVPN")
    wait_until(lambda: remote_on_bridge(leaves.router) == {MAC_B}, "the MAC on the bridge")
    pid = speaker(vtep)["pid"]
    file.write_text(segment)
    with vtep.client() as client:
        client.reload()
        assert client.status()["evpn"] is None
    wait_until(lambda: destinations(vtep) == manual, "the end of the entries of EVPN")
    wait_until(lambda: not is_running(pid), "the end of the speaker")
    assert remote_on_bridge(leaves.router) == set()
    wait_until(lambda: not leaves.is_established(), "the end of the session")
    with vtep.client() as client:
        file.write_text(sessions + segment + "evpn = true\n")
        client.reload()
    wait_until(lambda: destinations(vtep) == both, "the entries once more")


def test_vnis_come_and_go_at_run_time(leaves: Leaves, start: Start) -> None:
    vtep = established(leaves, start)
    leaves.frr.host.run("ip", "link", "set", "vxlan100", "type", "vxlan", check=False)
    session = leaves.session()["connectionsEstablished"]
    kernel_leaf(leaves.frr.host, 200, "192.0.2.2")
    add_bridge(leaves.router, "br1")
    with vtep.client() as client:
        client.vni.add(200, tap="vx1", bridge="br1", local="192.0.2.1", evpn=True)
    wait_until(lambda: leaves.frr.flood_vteps(200) == {"192.0.2.1"}, "the new VNI at FRR")

    def flood(client: Client, vni: int) -> list[str]:
        return [each["dst"] for each in client.remote.show(vni=vni)]

    with vtep.client() as client:
        wait_until(lambda: flood(client, 200) == ["192.0.2.2"], "the route of FRR")
        info = client.set(vni=200, evpn=False)
        wait_until(lambda: flood(client, 200) == [], "the end of EVPN in the VNI")
        wait_until(lambda: leaves.frr.flood_vteps(200) == set(), "the withdrawal")
        info = client.set(vni=200, evpn=True)
        assert info["options"]["learning"] is False
        wait_until(lambda: flood(client, 200) == ["192.0.2.2"], "the route of FRR again")
        # Deleted and added at once: the entries of the new one are not those of the former one.
        client.vni.delete(200)
        client.vni.add(200, tap="vx1", bridge="br1", local="192.0.2.1", evpn=True)
        wait_until(lambda: flood(client, 200) == ["192.0.2.2"], "the route in the new VNI")
        client.vni.delete(200)
    # What it has installed itself is not that of a former speaker.
    assert "to be confirmed" not in vtep.log
    wait_until(lambda: leaves.frr.flood_vteps(200) == set(), "the withdrawal of the VNI")
    assert leaves.session()["connectionsEstablished"] == session
    ping(leaves.host, "10.0.0.2")


def test_a_speaker_that_cannot_start(leaves: Leaves, start: Start, tmp_path: Path) -> None:
    """It is tried again and again, the status says so, and its entries go after stale-time."""
    broken, switch = tmp_path / "broken", tmp_path / "switch"
    package = broken / "uvloop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import sys, pathlib\n"
        f"if 'speaker' in sys.argv and pathlib.Path({str(switch)!r}).exists():\n"
        "    sys.exit('no')\n"
        f"sys.path.remove({str(broken)!r})\n"
        "del sys.modules['uvloop']\nimport uvloop\nsys.modules['uvloop'] = uvloop\n"
    )
    file = tmp_path / "pyvtep.toml"
    file.write_text(
        '[evpn]\nasn = 65000\nneighbor = ["192.0.2.2"]\nstale-time = 4\n'
        '[[vni]]\nid = 100\ntap = "vx0"\nbridge = "br0"\nlocal = "192.0.2.1"\nevpn = true\n'
    )
    prefix = ("env", f"PYTHONPATH={broken}")
    vtep = start(leaves.router, "--config", str(file), prefix=prefix)
    ping(leaves.host, "10.0.0.2")
    wait_until(lambda: MAC_B in destinations(vtep), "the MAC of the far host")
    with vtep.client() as client:
        client.fdb.append(FLOOD, "192.0.2.9", vni=100)
    switch.touch()
    os.kill(speaker(vtep)["pid"], signal.SIGKILL)
    wait_until(lambda: speaker(vtep)["restarts"] > 1, "some starts")
    assert MAC_B in destinations(vtep)

    def problems() -> list[str]:
        with vtep.client() as client:
            return [each["problem"] for each in client.status()["problems"]]

    wait_until(lambda: "evpn-speaker-failed" in problems(), "the problem in the status")
    wait_until(lambda: destinations(vtep) == {FLOOD: {"192.0.2.9"}}, "the end of all entries")
    assert vtep.log.count("EVPN speaker ended unexpectedly: exit code 1") == 1
    assert "no EVPN speaker runs, and its entries are stale: they are removed" in vtep.log
    switch.unlink()
    wait_until(lambda: MAC_B in destinations(vtep), "the MAC of the far host again")
    wait_until(lambda: "evpn-speaker-failed" not in problems(), "the end of the problem")


def test_a_frozen_speaker_and_a_restart_by_command(
    leaves: Leaves, start: Start, tmp_path: Path
) -> None:
    vtep = established(leaves, start)
    pid = speaker(vtep)["pid"]
    events = tmp_path / "events"
    with events.open("w") as file:
        monitor = leaves.router.start("bridge", "monitor", "fdb", stdout=file)

    def is_monitored(mac: str) -> bool:
        for change in ("add", "del"):
            leaves.router.run(*("bridge", "fdb", change, mac, "dev", "vx0", "master", "static"))
        return f"Deleted {mac}" in events.read_text()

    wait_until(lambda: is_monitored("02:00:00:00:00:98"), "events of the bridge")
    said = vtep.run("evpn", "restart")
    assert said == f"EVPN speaker restarted, process {speaker(vtep)['pid']}\n"
    assert speaker(vtep)["pid"] != pid
    assert MAC_B in destinations(vtep)
    wait_until(leaves.is_established, "the session")
    wait_until(lambda: MAC_A in leaves.frr.remote_macs(100), "the MAC of the own host")
    wait_until(lambda: is_monitored("02:00:00:00:00:99"), "events of the bridge")
    assert f"Deleted {MAC_B}" not in events.read_text()
    monitor.terminate()
    # Frozen, it does not keep the daemon from its end, and FRR sees the end of the connection.
    os.kill(speaker(vtep)["pid"], signal.SIGSTOP)
    ping(leaves.host, "10.0.0.2")
    wait_until(lambda: speaker(vtep)["state"] == "silent", "the end of its reports")
    with vtep.client() as client:
        problems = [each["problem"] for each in client.status()["problems"]]
        assert problems == ["evpn-speaker-failed"]
    assert vtep.stop() == 0
    wait_until(lambda: leaves.frr.remote_macs(100) == {}, "the withdrawal of all routes")


def test_the_log_of_the_speaker_and_a_reload_of_its_neighbours(
    leaves: Leaves, tmp_path: Path
) -> None:
    """Its lines are in the daemon's log; a reload resets only the sessions that it concerns."""
    file, log = tmp_path / "pyvtep.toml", tmp_path / "log"
    text = (
        '[evpn]\nasn = 65000\nneighbor = ["192.0.2.2"]\n'
        '[[vni]]\nid = 100\ntap = "vx0"\nbridge = "br0"\nlocal = "192.0.2.1"\nevpn = true\n'
    )
    file.write_text(text)
    control = tmp_path / "own.sock"
    arguments = ("--config", str(file), "--control", str(control))
    vtep = Pyvtep(leaves.router, tmp_path, *arguments, "--log", str(log), "--log-format", "json")
    vtep.control = control
    wait_until(lambda: log.exists() and "established: AS 65000" in log.read_text(), "the session")
    ping(leaves.host, "10.0.0.2")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert {record["level"] for record in records} <= {"info", "warning"}
    # Rotated, and opened anew by both processes.
    log.rename(tmp_path / "log.1")
    file.write_text(text.replace('["192.0.2.2"]', '["192.0.2.2", "192.0.2.3"]'))
    vtep.process.send_signal(signal.SIGHUP)

    def neighbours() -> list[tuple[str, str]]:
        with vtep.client() as client:
            evpn = client.status()["evpn"]
            return [] if evpn is None else [(s["neighbor"], s["state"]) for s in evpn["sessions"]]

    wait_until(lambda: len(neighbours()) == 2, "the second neighbour")
    assert neighbours()[0] == ("192.0.2.2", "established")
    assert leaves.session()["connectionsEstablished"] == 1
    wait_until(lambda: log.exists() and "192.0.2.3" in log.read_text(), "a line about it")
    # On purpose: FRR sees the reason, and all routes of the session go.
    file.write_text(text.replace('["192.0.2.2"]', '["192.0.2.3"]'))
    with vtep.client() as client:
        client.reload()
    wait_until(lambda: destinations(vtep) == {}, "the end of the entries")
    wait_until(lambda: leaves.frr.remote_macs(100) == {}, "the withdrawal")
    assert "Peer De-configured" in leaves.session().get("lastNotificationReason", "")
    file.write_text(text)
    with vtep.client() as client:
        client.reload()
    ping(leaves.host, "10.0.0.2")
    # A password on one side only: the session is down at once, and not about to start.
    wait_until(lambda: neighbours() == [("192.0.2.2", "established")], "the session in a report")
    file.write_text(text.replace("asn =", 'password = "secret"\nasn ='))
    file.chmod(0o600)

    def problems_of_a_session_that_is_down() -> list[str] | None:
        with vtep.client() as client:
            status = client.status()
        assert status["evpn"] is not None
        (session,) = status["evpn"]["sessions"]
        up = session["state"] == "established"
        return None if up else [each["problem"] for each in status["problems"]]

    with vtep.client() as client:
        client.reload()
        wait_until(lambda: problems_of_a_session_that_is_down() is not None, "the end in a report")
        assert problems_of_a_session_that_is_down() == ["evpn-session-down"]
    assert vtep.stop() == 0


def test_a_frozen_daemon_keeps_its_sessions(leaves: Leaves, start: Start, tmp_path: Path) -> None:
    """Whatever the load of the data path is, keepalives are sent in time."""
    file = tmp_path / "pyvtep.toml"
    file.write_text(
        '[evpn]\nasn = 65000\nneighbor = ["192.0.2.2"]\nhold-time = 3\n'
        '[[vni]]\nid = 100\ntap = "vx0"\nbridge = "br0"\nlocal = "192.0.2.1"\nevpn = true\n'
    )
    vtep = start(leaves.router, "--config", str(file))
    ping(leaves.host, "10.0.0.2")

    def keepalives() -> int:
        return int(leaves.session()["messageStats"]["keepalivesRecv"])

    before = keepalives()
    vtep.process.send_signal(signal.SIGSTOP)
    # One a second: after six, the hold time has passed twice.
    wait_until(lambda: keepalives() >= before + 6, "six keepalives")
    # What changes meanwhile is carried out afterwards.
    leaves.fabric.host(leaves.frr.host, "br100", "host-c", MAC_C, "10.0.0.3/24")
    wait_until(lambda: MAC_C in leaves.frr.local_macs(100), "another far host")
    vtep.process.send_signal(signal.SIGCONT)
    wait_until(lambda: MAC_C in destinations(vtep), "its MAC")
    assert leaves.session()["connectionsEstablished"] == 1
    ping(leaves.host, "10.0.0.2")


def test_another_address_on_the_underlay(leaves: Leaves, start: Start) -> None:
    """As with a new DHCP lease: nothing waits for the hold timer, which is 90 s at both ends."""
    frr = leaves.frr
    frr.configure(
        *("router bgp 65000", "no neighbor 192.0.2.1"),
        *("neighbor leaves peer-group", "neighbor leaves remote-as 65000"),
        "bgp listen range 192.0.2.0/24 peer-group leaves",
        *("address-family l2vpn evpn", "neighbor leaves activate"),
    )
    options = [each for each in OPTIONS if each not in ("--local", "192.0.2.1")]
    vtep = start(leaves.router, *options)
    ping(leaves.host, "10.0.0.2")
    wait_until(lambda: frr.remote_macs(100).get(MAC_A) == "192.0.2.1", "the MAC at FRR")
    for name in ("all", "eth0"):
        leaves.router.run("sysctl", "-qw", f"net.ipv4.conf.{name}.promote_secondaries=1")
    leaves.router.run("ip", "addr", "add", "192.0.2.16/24", "dev", "eth0")
    leaves.router.run("ip", "addr", "del", "192.0.2.1/24", "dev", "eth0")
    wait_until(lambda: frr.remote_macs(100).get(MAC_A) == "192.0.2.16", "the MAC at its address")
    with vtep.client() as client:

        def locals_of_report() -> tuple[object, object]:
            evpn = client.status()["evpn"]
            assert evpn is not None
            return (
                [each["local"] for each in evpn["sessions"]],
                [each["local"] for each in evpn["segments"]],
            )

        # A report comes a second after the one before.
        expected = ["192.0.2.16"], [["192.0.2.16"]]
        wait_until(lambda: locals_of_report() == expected, "the address in the status")
    ping(leaves.far, "10.0.0.1")
    # FRR was told by the last message from the former address.
    assert "192.0.2.1" not in frr.show("bgp l2vpn evpn summary")["peers"]


def test_the_underlay_comes_later(leaves: Leaves, start: Start) -> None:
    """As at boot: without an address there is neither an identifier nor a next hop."""
    leaves.router.run("ip", "addr", "del", "192.0.2.1/24", "dev", "eth0")
    options = [each for each in OPTIONS if each not in ("--local", "192.0.2.1")]
    vtep = start(leaves.router, *options)

    def problems() -> list[str]:
        with vtep.client() as client:
            evpn = client.status()["evpn"]
            return [] if evpn is None else evpn["problems"]

    wait_until(lambda: any("no BGP identifier" in line for line in problems()), "the problem")
    leaves.router.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
    ping(leaves.host, "10.0.0.2")
    wait_until(lambda: MAC_A in leaves.frr.remote_macs(100), "the MAC of the own host at FRR")
    assert leaves.frr.remote_macs(100)[MAC_A] == "192.0.2.1"
    wait_until(lambda: problems() == [], "the end of the problem")
