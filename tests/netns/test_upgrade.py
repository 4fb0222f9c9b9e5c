"""Upgrades of a running pyvtep: nothing is lost, and a new process that fails changes nothing."""

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.netns import upgrade_demo
from tests.netns.hosts import Pair, Pyvtep, Start, Tunnel, ping, wait_until
from tests.netns.steady_traffic import SteadyTraffic
from vtep.control import Client, socket_files

UPGRADED = re.compile(r"upgraded: pid (\d+) -> (\d+), (\d+) VNIs?, (\d+) FDB entr\w+, not read for")


def upgrade(vtep: Pyvtep) -> int:
    """Upgrade a process. Returns: the PID of the new one, which answers on the same socket."""
    found = UPGRADED.match(vtep.run("upgrade"))
    assert found, vtep.log
    with Client(vtep.control) as client:
        assert client.call("process.show")["pid"] == int(found[2])
    assert socket_files.listening_process(vtep.control) == int(found[2])
    return int(found[2])


def end(vtep: Pyvtep, pid: int) -> None:
    """End the successor of a process, which is no child of the test."""
    vtep.host.run("kill", str(pid))
    wait_until(lambda: not vtep.control.exists(), "the end of the new process")


def test_no_frame_is_lost_or_duplicated_by_upgrades(pair: Pair, tunnel: Tunnel) -> None:
    """The rate is one that a busy machine forwards without a loss of its own."""
    traffic = SteadyTraffic(*pair, "10.0.0.1", "10.0.0.2", rate=500)
    first = tunnel[0]
    for _ in range(5):
        pid = upgrade(first)
    report = traffic.stop()
    end(first, pid)
    assert report.lost == report.duplicated == 0, (report, first.log)
    assert report.reordered_by <= 192, report
    assert report.tap_drops == report.socket_drops == 0, report
    assert report.tcp_alive, report
    assert report.pings_lost == 0, report


@pytest.mark.parametrize("name", ["config", "vnis", "underlay-flood"])
def test_no_frame_is_lost_in_other_scenarios(pair: Pair, tmp_path: Path, name: str) -> None:
    """The rates are low, as above; `upgrade_demo` runs by itself with higher ones."""
    result = upgrade_demo.run(pair, tmp_path, name, upgrades=3, rate=500, flood_rate=500)
    report = result.report
    assert report.lost == report.duplicated == 0, report
    assert report.tcp_alive, report


def test_state_and_runtime_changes_are_kept(pair: Pair, start: Start, tmp_path: Path) -> None:
    """The state file has them as well, and the file of the configuration has changed."""
    config = tmp_path / "vteps.toml"
    text = '[[vni]]\nid = 1\nremote = ["192.0.2.2"]\ntap = "vx0"\nproxy = true\n{}'
    config.write_text(text.format(""))
    state = tmp_path / "state"
    vtep = start(pair[0], "--config", str(config), "--state", str(state)).ready()
    mac = "02:00:00:00:00:{:02x}".format
    vtep.invoke(f"fdb add {mac(1)} dst 192.0.2.2 static")
    vtep.invoke(f"fdb add {mac(2)} dst 192.0.2.9 port 8472 vni 9 extern_learn dynamic")
    vtep.invoke(f"fdb add {mac(3)} dst 192.0.2.2 sticky dynamic")
    vtep.invoke(f"neigh add 10.0.0.9 lladdr {mac(1)}")
    vtep.invoke("set --ttl 9")
    before = [vtep.invoke(words) for words in ("fdb show", "neigh show")]
    pair[0].run("ip", "link", "set", "vx0", "down")
    pair[0].run("ip", "link", "set", "vx0", "name", "renamed0")
    pair[0].run("ip", "link", "set", "renamed0", "up")
    config.write_text(text.format("ageing = 77\n"))
    pid = upgrade(vtep)
    after = [vtep.invoke(words) for words in ("fdb show", "neigh show")]
    assert [shown.count("\n") for shown in after] == [shown.count("\n") for shown in before]
    for number in (1, 2, 3):
        assert mac(number) in after[0]
    assert "renamed0" in after[0]
    with Client(vtep.control) as client:
        (shown,) = client.vni.show()
    assert shown["options"]["ageing"] == 77
    assert shown["options"]["ttl"] == 9
    end(vtep, pid)
    assert state.exists()


@pytest.mark.parametrize(
    ("stage", "how"),
    [
        ("hello", "exit"),
        ("hello", "version"),
        ("snapshot", "exit"),
        ("ready", "refuse"),
        ("ready", "garbage"),
        ("go", "exit"),
        ("go", "garbage"),
        ("go", "hang"),
        ("reading", "exit"),
        ("reading", "garbage"),
    ],
)
def test_the_old_process_continues_if_the_new_one_fails(
    pair: Pair, tunnel: Tunnel, stage: str, how: str
) -> None:
    first = tunnel[0]
    module = ("-m", "tests.netns.failing_successor")
    with first.host.start(sys.executable, *module, str(first.control), stage, how) as failing:
        wait_until(lambda: "upgrade failed, this process continues" in first.log, "the failure")
        failing.send_signal(signal.SIGKILL)
    ping(pair[0], "10.0.0.2")
    ping(pair[1], "10.0.0.1")
    end(first, upgrade(first))  # And the next one succeeds.


def test_a_new_process_that_does_not_start_is_reported(
    pair: Pair, start: Start, tmp_path: Path
) -> None:
    config = tmp_path / "vteps.toml"
    config.write_text('[[vni]]\nid = 1\nremote = ["192.0.2.2"]\ntap = "vx0"\n')
    vtep = start(pair[0], "--config", str(config)).ready()
    for mistake, named in (("nonsense", "vteps.toml:1"), ('ageing = "soon"', "ageing soon: ")):
        config.write_text(f'{mistake}\n[[vni]]\nid = 1\nremote = ["192.0.2.2"]\ntap = "vx0"\n')
        said = vtep.run("upgrade", code=1)
        assert "exit code 2 before it took over" in said
        assert named in said
        assert said.endswith("; the running process continues")
    assert not list(vtep.control.parent.glob("*.error"))
    assert vtep.process.poll() is None
    assert "vx0" in vtep.invoke("vni show")


def test_changes_that_the_host_refuses_are_reported_and_not_forgotten(
    pair: Pair, start: Start, tmp_path: Path
) -> None:
    """The next file is compared with that of before: what it has deleted is deleted."""
    config = tmp_path / "vteps.toml"

    def write(**taps: str) -> None:
        vnis = "".join(f'[[vni]]\nid = {name[1:]}\ntap = "{tap}"\n' for name, tap in taps.items())
        config.write_text(f'remote = ["192.0.2.2"]\n{vnis}')

    pair[0].run("ip", "link", "add", "br0", "type", "bridge")
    write(v30="vx30", v31="vx31")
    vtep = start(pair[0], "--config", str(config)).ready()
    write(v30="vx30", v32="br0")
    said = vtep.run("upgrade", code=1)
    assert UPGRADED.search(said), said
    assert "the changed configuration was not applied" in said
    assert "vni 32: --tap br0" in said
    assert "vx31" in vtep.invoke("vni show")
    write(v30="vx30")
    pid = upgrade(vtep)
    assert "vx31" not in vtep.invoke("vni show")
    end(vtep, pid)
