"""`pyvtep status`, its exit code, and the liveness of real remotes."""

import json
import os
import signal
import subprocess
import threading
from typing import Any

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    Tunnel,
    kernel_vtep,
    ping,
    pyvtep,
    segment,
    wait_until,
)
from vtep.control.schema import RemoteStatus
from vtep.testing.lab import Host

OFTEN = ("--liveness-interval", "1")


def status(vtep: Pyvtep, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `pyvtep status` against a process."""
    return pyvtep(vtep.host, "status", "--socket", str(vtep.control), *words)


def remote_of(vtep: Pyvtep) -> RemoteStatus:
    """Return the only remote of the only segment."""
    with vtep.client() as client:
        (only,) = client.status()["segments"]
    (remote,) = only["remotes"]
    return remote


def await_liveness(vtep: Pyvtep, wanted: str) -> None:
    wait_until(lambda: remote_of(vtep)["liveness"] == wanted, wanted)


@pytest.mark.parametrize("end", ["killed", "link cut"])
def test_a_pyvtep_that_dies_is_silent_until_it_is_back(pair: Pair, start: Start, end: str) -> None:
    a, b = pair
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), *OFTEN)
    second = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    wait_until(lambda: remote_of(first)["is_pyvtep"], "an echo reply")
    seen = remote_of(first)
    assert (seen["liveness"], seen["underlay_dev"], seen["path_mtu"]) == ("seen", "eth0", 1500)
    assert min(seen["rx_frames"], seen["tx_frames"], seen["rx_bytes"], seen["tx_bytes"]) > 0
    events: list[Any] = []

    def changes() -> list[str]:
        return [each["event"] for each in events if each.get("object") == "remote-liveness"]

    with first.client() as client:
        told = client.monitor()
        watcher = threading.Thread(target=lambda: events.extend(told), daemon=True)
        watcher.start()
        if end == "killed":
            # A closed port would refuse datagrams: the firewall of a dead host does not.
            drop = "add chain ip t c { type filter hook input priority 0; policy drop; }"
            b.run("nft", f"add table ip t; {drop}")
            second.stop(signal.SIGKILL)
        else:
            b.run("ip", "link", "set", "eth0", "down")
        await_liveness(first, "silent")
        done = status(first)
        assert done.returncode == 1
        assert "problem: vni 1: 192.0.2.2 is silent" in done.stdout
        assert done.stderr == ""
        if end == "killed":
            b.run("nft", "delete table ip t")
            start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
        else:
            b.run("ip", "link", "set", "eth0", "up")
        await_liveness(first, "seen")
        assert status(first).returncode == 0
        wait_until(lambda: len(changes()) == 2, "the event")
        first.stop()
        watcher.join()
    assert changes() == ["silent", "seen"]
    assert first.log.count("192.0.2.2 is silent") == 1
    assert first.log.count("192.0.2.2 is heard again") == 1


def counts(host: Host, device: str) -> dict[str, int]:
    """Return the counters of what a device has received."""
    (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", device))
    received = link["stats64"]["rx"]
    return {name: received[name] for name in ("packets", "errors", "dropped")}


def test_a_kernel_driver_that_is_quiet_is_never_silent_and_counts_no_error(
    pair: Pair, start: Start
) -> None:
    a, b = pair
    kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--liveness-interval", "0.2")
    ping(a, "10.0.0.2")
    b.run("ip", "link", "set", "vx0", "addrgenmode", "none")
    before = counts(b, "vx0")
    sent = first.client_counter("rx_frames")
    received = b.run("nstat", "-asz", "UdpInErrors")
    # A pyvtep would be silent after a second; a request to this one is sent each minute at last.
    wait_until(lambda: (remote_of(first)["last_seen"] or 0) > 8, "silence", 60)
    remote = remote_of(first)
    assert (remote["liveness"], remote["is_pyvtep"], remote["rtt"]) == ("seen", False, None)
    assert status(first).returncode == 0
    assert first.client_counter("rx_frames") >= sent
    after = counts(b, "vx0")
    assert (after["errors"], after["dropped"]) == (before["errors"], before["dropped"])
    assert b.run("nstat", "-asz", "UdpInErrors") == received


def test_a_closed_port_refuses_and_is_seen_once_a_vtep_is_there(pair: Pair, start: Start) -> None:
    a, b = pair
    first = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), *OFTEN)
    await_liveness(first, "refused")
    done = status(first)
    assert done.returncode == 1
    assert "192.0.2.2 refuses datagrams" in done.stdout
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(b, "10.0.0.1")
    await_liveness(first, "seen")
    assert status(first).returncode == 0


def test_an_upgrade_keeps_counters_liveness_and_start(tunnel: Tunnel, pair: Pair) -> None:
    first, _ = tunnel
    ping(pair[0], "10.0.0.2")
    first.run("set", "--liveness-interval", "1")
    wait_until(lambda: remote_of(first)["is_pyvtep"], "an echo reply")
    with first.client() as client:
        before = client.status()
    first.run("upgrade")
    with first.client() as client:
        after = client.status()
    assert after["pid"] != before["pid"]
    assert after["started"] == before["started"]
    (was,), (now,) = (each["segments"][0]["remotes"] for each in (before, after))
    assert (now["liveness"], now["is_pyvtep"]) == ("seen", True)
    for name in ("rx_frames", "rx_bytes", "tx_frames", "tx_bytes"):
        assert now[name] >= was[name] > 0
    os.kill(after["pid"], signal.SIGTERM)


def test_exit_codes(pair: Pair, tunnel: Tunnel) -> None:
    first, _ = tunnel
    done = status(first)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("no problems\n")
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    shown = json.loads(status(first, "--json").stdout)
    assert [each["vni"] for each in shown["segments"]] == [1]
    assert status(first, "--dev", "vx0", "--vni", "1").returncode == 0
    pair[0].run("ip", "link", "set", "vx0", "down")
    wait_until(lambda: status(first).returncode == 1, "the TAP to be down")
    assert "problem: vni 1: vx0 is down: ip link set vx0 up" in status(first).stdout
    assert json.loads(status(first, "--json").stdout)["problems"][0]["problem"] == "port-down"
    refused = status(first, "--vni", "7")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert status(first, "--vni", "x").returncode == 2
    first.stop()
    gone = status(first)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "no pyvtep answers there" in gone.stderr
