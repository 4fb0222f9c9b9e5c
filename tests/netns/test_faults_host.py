"""Faults of the host: losses are counted exactly, and forwarding recovers."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.netns.faults import Numbered
from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    mac_of,
    ping,
    segment,
    wait_until,
)
from vtep.counters import Drop
from vtep.errors import VtepError
from vtep.testing.lab import Host, Lab

COUNT = 500

STOP_S = float(os.environ.get("PYVTEP_TEST_STOP_S", "0"))
"""Seconds for which a process is stopped; what the test asserts does not depend on them."""


def silence(*hosts: Host) -> None:
    """Keep hosts from sending frames by themselves through TAPs that are created from now on."""
    for host in hosts:
        host.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB. Returns: its path; `fill` fills it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a small file system to its last octet. Returns: the file to be removed again."""
    ballast = folder / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


def test_deleted_tap_costs_no_other_vni_a_frame(pair: Pair, start: Start) -> None:
    a, b = pair
    vteps = []
    for host, remote, last in ((a, "192.0.2.2", 1), (b, "192.0.2.1", 2)):
        vtep = start(host, *segment(1, remote, f"10.0.0.{last}/24"))
        vtep.run("vni", "add", "2", "--remote", remote, "--tap", "vx1")
        vteps.append(vtep)
    ping(a, "10.0.0.2")
    one, two = vteps
    with Numbered(one, b) as kept, Numbered(one, b, tap="vx1") as deleted:
        deleted.send(COUNT)
        deleted.expect(COUNT)
        kept.send(COUNT)
        # Fewer than the queue of the TAP holds, and read while the other TAP is removed.
        kept.put(COUNT)
        a.run("ip", "link", "del", "vx1")
        kept.put(COUNT // 2)
        kept.expect(2 * COUNT + COUNT // 2)
        assert deleted.received() == [*range(COUNT)]
        wait_until(lambda: "vx1 was removed" in one.log, "the news")
        kept.send(COUNT)
        kept.expect(kept.sent)
        assert kept.received() == [*range(kept.sent)]
    with one.client() as client:
        assert client.stats()["total"]["counters"]["taps_lost"] == 1
    assert two.process.poll() is None
    a.run("ip", "link", "del", "vx0")
    assert one.wait() == 1
    assert "pyvtep: error: the TAP device vx0 was removed\n" in one.log
    assert "Traceback" not in one.log


def test_bridge_is_deleted_and_created_again(pair: Pair, start: Start) -> None:
    a, b = pair

    def make_bridge() -> None:
        a.run("ip", "link", "add", "br0", "type", "bridge")
        address(a, "br0", "10.0.0.1/24")
        a.run("ip", "link", "set", "br0", "up")

    make_bridge()
    vtep = start(a, *segment(1, "192.0.2.2"), "--bridge", "br0")
    other = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    # A bridge is above the TAP: its absence costs guests their frames, and the tunnel none.
    with Numbered(vtep, b) as out, Numbered(other, a) as back:
        for frames in (out, back):
            frames.send(COUNT)
        a.run("ip", "link", "del", "br0")
        for frames in (out, back):
            frames.send(COUNT)
        make_bridge()
        wait_until(lambda: "master br0" in a.run("ip", "link", "show", "vx0"), "the TAP to join")
        b.run("ip", "neigh", "flush", "dev", "vx0")  # The new bridge may have another MAC.
        ping(a, "10.0.0.2")
        for frames in (out, back):
            frames.send(COUNT)
            frames.expect(3 * COUNT)
            assert frames.received() == [*range(3 * COUNT)]


def test_tap_moves_to_another_namespace_and_back(lab: Lab, pair: Pair, start: Start) -> None:
    a, b = pair
    c = lab.host("c")
    silence(a, b, c)
    vtep = start(a, *segment(1, "192.0.2.2"))
    other = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    with Numbered(other, a) as frames:
        frames.send(COUNT)
        frames.expect(COUNT)
        a.run("ip", "link", "set", "vx0", "netns", c.pid)  # Which sets it down.
        before = vtep.client_counter("drop_tap_down")
        frames.send(COUNT)
        wait_until(lambda: vtep.client_counter("drop_tap_down") - before >= COUNT, "the drops")
        assert vtep.client_counter("drop_tap_down") - before == COUNT
    for host in (c, a):
        if host is a:
            c.run("ip", "link", "set", "vx0", "netns", a.pid)
        address(host, "vx0", "10.0.0.1/24")
        host.run("ip", "link", "set", "vx0", "up")
        ping(host, "10.0.0.2")
        with Numbered(other, host) as frames:
            frames.send(COUNT)
            frames.expect(COUNT)
            assert frames.received() == [*range(COUNT)]
    wait_until(lambda: "is back in the network namespace" in vtep.log, "the news")
    assert vtep.client_counter("drop_tap_down") - before == COUNT


def test_clock_steps(pair: Pair, start: Start, tmp_path: Path) -> None:
    """No step of the wall clock makes an entry younger, and none of a running process older."""
    a, b = pair
    day = 86400
    shim, step = tmp_path / "shim", tmp_path / "step"
    shim.mkdir()
    # The clock of the machine is not touched: only this process has another one.
    (shim / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        f"real, step = time.time, pathlib.Path({str(step)!r})\n"
        "time.time = lambda: real() + float(step.read_text())\n"
    )
    prefix = ("env", f"PYTHONPATH={shim}")
    state = ("--state", str(tmp_path / "state"), "--state-learned")

    def age() -> float | None:
        with vtep.client() as client:
            return {each["mac"]: each["age"] for each in client.fdb.show()}.get(mac)

    def set_step(seconds: int) -> None:
        # Renamed, since the process may read it at any time.
        fresh = step.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.rename(step)

    set_step(0)
    silence(a, b)
    peer = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    began = time.monotonic()
    arguments = (*segment(1, "192.0.2.2", "10.0.0.1/24"), *state)
    vtep = start(a, *arguments, prefix=prefix)
    mac = mac_of(b)
    ping(a, "10.0.0.2")
    with Numbered(vtep, b) as frames:
        for seconds in (day, -day, day):
            set_step(seconds)
            frames.send(COUNT)
            found = age()
            assert found is not None
            assert found <= time.monotonic() - began
        frames.expect(frames.sent)
        assert frames.received() == [*range(frames.sent)]
    peer.stop()  # From now on its MAC is only aged.
    assert vtep.stop() == 0
    # The same clock, then one that was set back by two days.
    for seconds in (day, -day):
        set_step(seconds)
        vtep = start(a, *arguments, prefix=prefix)
        found = age()
        assert found is not None
        # If the clock was set back meanwhile, the time without a process is not counted.
        assert 0 <= found <= time.monotonic() - began
        assert vtep.stop() == 0
    # Two days later, as far as a process that starts can know.
    set_step(day)
    vtep = start(a, *arguments, prefix=prefix)
    with vtep.client() as client:
        assert mac not in {each["mac"] for each in client.fdb.show()}


def test_full_disk(pair: Pair, tmp_path: Path) -> None:
    """It costs lines of the log, and no frame; changes are saved once there is room."""
    a, b = pair
    silence(a, b)
    macs = [f"02:00:00:00:01:{number:02x}" for number in range(2)]
    with full_disk(tmp_path / "disk") as disk:
        log, state = disk / "log", disk / "state"
        arguments = (*segment(1, "192.0.2.2", "10.0.0.1/24"), "--state", str(state))

        def begin() -> Pyvtep:
            vtep = Pyvtep(a, tmp_path, *arguments, "--log", str(log))
            lines = log.read_text().count("UDP port") if log.exists() else 0
            wait_until(
                lambda: log.exists() and log.read_text().count("UDP port") > lines,
                "pyvtep to be up",
            )
            return vtep

        vtep = begin()
        peer = Pyvtep(b, tmp_path, *segment(1, "192.0.2.1", "10.0.0.2/24")).ready()
        ping(a, "10.0.0.2")
        with Numbered(vtep, b) as frames, vtep.client() as client:
            frames.send(COUNT)
            client.fdb.add(macs[0], dst="192.0.2.2", state="static")
            ballast = fill(disk)
            with pytest.raises(VtepError, match=r"not saved yet: .*No space left on device"):
                client.fdb.add(macs[1], dst="192.0.2.2", state="static")
            for _ in range(50):  # Reports: more than what is left of the last page of the log.
                vtep.process.send_signal(signal.SIGUSR1)
                frames.send(COUNT // 50)
            wait_until(lambda: log.read_text()[-1] != "\n", "the log to be cut within a line")
            ballast.unlink()
            # Another command does not wait for the next attempt, which is due after 10 s.
            client.fdb.add("02:00:00:00:01:99", dst="192.0.2.2", state="static")
            wait_until(lambda: "can be written again" in log.read_text(), "the news")
            frames.send(COUNT)
            frames.expect(frames.sent)
            assert frames.received() == [*range(frames.sent)]
        assert "Traceback" not in vtep.log + log.read_text()
        # Even a killed process has saved all.
        vtep.stop(signal.SIGKILL)
        vtep = begin()
        with vtep.client() as client:
            shown = {each["mac"] for each in client.fdb.show()}
        assert shown >= {*macs, "02:00:00:00:01:99"}
        # No line is glued to a part of one that was cut off.
        for line in log.read_text().splitlines():
            assert "pyvtep: " not in line or line.startswith("20"), line
        assert vtep.stop() == peer.stop() == 0


def test_stopped_process(pair: Pair, start: Start) -> None:
    """SIGSTOP: the queues of the kernel fill; what they have no room for is counted."""
    a, b = pair
    silence(a, b)
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    other = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    with Numbered(vtep, b) as out, Numbered(other, a) as back:
        before = vtep.client_counter("drop_tap_queue_full")
        vtep.process.send_signal(signal.SIGSTOP)
        out.put(4 * COUNT)  # The TAP holds half of them.
        back.send(COUNT)  # The socket holds 4 MiB: all of them.
        if STOP_S:
            time.sleep(STOP_S)
        vtep.process.send_signal(signal.SIGCONT)
        back.expect(COUNT)
        assert back.received() == [*range(COUNT)]
        wait_until(lambda: vtep.client_counter("drop_tap_queue_full") > before, "the count")
        ping(a, "10.0.0.2")
        first = out.sent
        out.send(COUNT)
        wait_until(lambda: out.sent - 1 in out.received(), "the last frame")
        arrived = out.received()
        lost = vtep.client_counter("drop_tap_queue_full") - before
        assert arrived == sorted(set(arrived))
        assert [number for number in arrived if number >= first] == [*range(first, out.sent)]
        # An ARP request of the hosts may be among the lost frames, one a second; IPv6 is off.
        assert 0 <= lost - (out.sent - len(arrived)) <= 20
        assert lost >= COUNT
        assert vtep.client_counter("drop_rx_queue_full") == 0


def test_one_mac_behind_two_vteps(lab: Lab, start: Start) -> None:
    """The MAC is held where its last move led: that host is reachable, the other one is not."""
    a, b, c = (lab.host(name) for name in "abc")
    silence(a, b, c)
    lab.wire(a, b)
    lab.wire(a, c, "eth1")
    for host, device, own in (
        (a, "eth0", "192.0.2.1/24"),
        (b, "eth0", "192.0.2.2/24"),
        (a, "eth1", "198.51.100.1/24"),
        (c, "eth1", "198.51.100.3/24"),
    ):
        address(host, device, own)
    vtep = start(a, *segment(1, "192.0.2.2"), "--remote", "198.51.100.3")
    peers = [start(b, *segment(1, "192.0.2.1")), start(c, *segment(1, "198.51.100.1"))]
    mac = "02:00:00:00:00:77"
    for host in (b, c):
        host.run("ip", "link", "set", "vx0", "address", mac)
    with (
        Numbered(peers[0], a) as of_b,
        Numbered(peers[1], a) as of_c,
        Numbered(vtep, b) as to_b,
        Numbered(vtep, c) as to_c,
        vtep.client() as watcher,
    ):
        events = watcher.monitor()
        of_c.sent = 10 * COUNT  # The frames of both differ in their numbers alone.
        # Learned from b, and moved 5 times: it is at c then.
        for turn in range(6):
            (of_b, of_c)[turn % 2].send(1)
            of_b.expect(turn + 1)
        for _ in range(COUNT // 20):  # As long as c is not silent, b does not take over.
            of_b.send(20)
            of_c.send(20)
        wait_until(lambda: vtep.client_counter("drop_inner_source_held") >= COUNT, "the drops")
        of_b.expect(6 + COUNT)
        # Of b, each frame since is dropped; of c, none.
        assert vtep.client_counter("drop_inner_source_held") == COUNT
        first = 10 * COUNT
        assert sorted(of_b.received()) == [0, 1, 2, *range(first, first + 3 + COUNT)]
        to_c.send(COUNT)
        to_c.expect(COUNT)
        assert to_b.received() == []
        # Its moves come before.
        held = next(each for each in events if each["event"] == "held")
        assert held["mac"] == mac
        assert [to["dst"] for to in held["destinations"]] == ["198.51.100.3"]
        (entry,) = (
            each for each in json.loads(vtep.run("fdb", "show", "-j")) if each["mac"] == mac
        )
        assert entry["held"] > 0
        assert f"vni 1: {mac} is held at 198.51.100.3 for 300 s" in vtep.log
        # The remedy of the message: then the MAC is where its next frame comes from.
        vtep.run("fdb", "del", mac)
        of_b.send(1)
        of_b.expect(7 + COUNT)
        to_b.send(COUNT)
        to_b.expect(COUNT)
        assert to_c.received() == [*range(COUNT)]


@pytest.mark.parametrize("learning", ["--learning", "--no-learning"])
def test_two_vteps_with_one_mac(pair: Pair, start: Start, learning: str) -> None:
    """Each drops all frames of the other one, and none after one of them has another MAC."""
    a, b = pair
    silence(a, b)
    one = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), learning)
    mac = mac_of(a)
    two = start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"), learning, "--mac", mac)
    with Numbered(two, a, flood=True) as frames, Numbered(one, b, flood=True) as back:
        frames.send(COUNT)
        back.send(COUNT)
        for vtep in (one, two):
            wait_until(
                lambda: vtep.client_counter("drop_inner_source_own") >= COUNT,  # noqa: B023
                "the drops",
            )
            assert vtep.client_counter("drop_inner_source_own") == COUNT
        assert frames.received() == back.received() == []
    # It may be a loop, too: they look for one, and find none.
    wait_until(lambda: one.client_counter("loop_probes"), "a probe")
    wait_until(lambda: f"x inner_source_own: {Drop.INNER_SOURCE_OWN.meaning}" in one.log, "a line")
    assert f"192.0.2.2, source MAC {mac}" in one.log
    two.run("set", "--mac", "02:00:00:00:00:77")
    with Numbered(two, a, flood=True) as frames:
        frames.send(COUNT)
        frames.expect(COUNT)
        assert frames.received() == [*range(COUNT)]
    for vtep in (one, two):
        assert vtep.client_counter("loops_found") == 0
        assert vtep.client_counter("drop_inner_source_own") == COUNT
