"""The life of a process: start, signals, changes of the host, and an end without leftovers."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Arrivals,
    Pair,
    Start,
    Tunnel,
    address,
    has_device,
    mac_of,
    packet_socket,
    ping,
    segment,
    udp_socket,
    wait_until,
)
from vtep.testing.lab import Host


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signal_stops_the_process_and_removes_the_tap(
    pair: Pair, tunnel: Tunnel, number: signal.Signals
) -> None:
    a, _ = pair
    flood = a.start("ping", "-f", "-q", "10.0.0.2", stdout=subprocess.DEVNULL)
    ping(a, "10.0.0.2")
    assert tunnel[0].stop(number) == 0
    assert not has_device(a)
    assert re.search(r"pyvtep: ended: \d+ frames out, \d+ in, \d+ dropped\n$", tunnel[0].log)
    flood.terminate()
    flood.wait()


def test_usr1_prints_every_counter_and_the_fdb(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    ping(a, "10.0.0.2", count=5)
    counters = tunnel[0].counters()
    # By then each has learned the MAC of the other.
    assert counters["tx_frames"] >= 6
    assert counters["rx_frames"] >= 6
    assert counters["fdb_learned"] == 1
    assert tunnel[0].fdb() == {mac_of(b): "192.0.2.2"}
    assert tunnel[0].process.poll() is None


def test_killed_process_leaves_no_tap(pair: Pair, tunnel: Tunnel) -> None:
    assert tunnel[0].stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not has_device(pair[0]), "the TAP to be gone")


def test_removed_tap_stops_the_process_with_a_message(pair: Pair, tunnel: Tunnel) -> None:
    pair[0].run("ip", "link", "del", "vx0")
    assert tunnel[0].wait() == 1
    assert "pyvtep: error: the TAP device vx0 was removed\n" in tunnel[0].log
    assert "Traceback" not in tunnel[0].log


def test_tap_goes_down_and_up(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    ping(a, "10.0.0.2")
    a.run("ip", "link", "set", "vx0", "down")
    a.run("ip", "link", "set", "vx0", "up")
    ping(a, "10.0.0.2")
    assert tunnel[0].process.poll() is None


def test_underlay_address_changes(pair: Pair, start: Start) -> None:
    """As by DHCP. A socket that stays bound to the old address could not send any more."""
    a, b = pair
    start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"), "--remote", "192.0.2.9")
    ping(a, "10.0.0.2")
    a.run("ip", "addr", "flush", "dev", "eth0", "scope", "global")
    address(a, "eth0", "192.0.2.9/24")
    ping(a, "10.0.0.2")


def test_underlay_goes_down_and_up(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair
    ping(a, "10.0.0.2")
    a.run("ip", "addr", "flush", "dev", "eth0")
    a.run("ping", "-c2", "-i0.2", "-W0.2", "10.0.0.2", check=False)
    wait_until(lambda: tunnel[0].counter("underlay_unreachable") > 0, "a count")
    wait_until(lambda: "underlay_unreachable:" in tunnel[0].log, "a line in the log")
    address(a, "eth0", "192.0.2.1/24")
    ping(a, "10.0.0.2")


def test_drops_of_the_local_firewall_are_counted(
    pair: Pair, tunnel: Tunnel, tmp_path: Path
) -> None:
    a, _ = pair
    rules = tmp_path / "rules"
    rules.write_text(
        "table inet t {\nchain c {\ntype filter hook output priority 0\nudp dport 4789 drop\n}\n}\n"
    )
    ping(a, "10.0.0.2")
    a.run("nft", "-f", str(rules))
    a.run("ping", "-c1", "-W0.2", "10.0.0.2", check=False)
    wait_until(lambda: tunnel[0].counter("underlay_denied") > 0, "a count")
    a.run("nft", "flush", "ruleset")
    ping(a, "10.0.0.2")


def test_slow_underlay_applies_backpressure_to_the_tap(pair: Pair, tunnel: Tunnel) -> None:
    """A full send buffer drops nothing: the sender behind the TAP is slowed down."""
    a, b = pair
    a.run(
        "tc",
        "qdisc",
        "add",
        "dev",
        "eth0",
        "root",
        "tbf",
        *["rate", "20mbit", "burst", "20kb"],
        "limit",
        "10mb",
    )
    ping(a, "10.0.0.2")
    frame = bytes.fromhex(mac_of(b).replace(":", "") + "020000000001") + b"\x88\xb5" + b"x" * 1400
    with packet_socket(b, "vx0") as receiver, packet_socket(a, "vx0") as sender:
        # More than the send buffer of a socket, less than the queue of the TAP.
        for number in range(400):
            sender.send(frame + number.to_bytes(2, "big"))
        numbers: list[int] = []
        while len(numbers) < 400:
            data = receiver.recv(2048)
            if data.startswith(frame):
                numbers.append(int.from_bytes(data[-2:], "big"))
    assert numbers == list(range(400))
    counters = tunnel[0].counters()
    assert counters["drops"] - counters["underlay_refused"] == 0


def test_two_segments_side_by_side_on_one_host(pair: Pair, start: Start) -> None:
    """Two processes on two ports; their equal overlay addresses are separate."""
    a, b = pair
    for host, remote, last in ((a, "192.0.2.2", 1), (b, "192.0.2.1", 2)):
        start(host, *segment(1, remote, f"10.0.0.{last}/24"))
        start(
            *(host, "--vni", "2", "--remote", remote, "--tap", "vx1", "--dstport", "4790"),
            *("--address", f"10.0.1.{last}/24"),
        )
    ping(a, "10.0.0.2")
    ping(a, "10.0.1.2")
    frame = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + b"\x88\xb5" + b"for segment 1 alone" * 4
    with (
        Arrivals(b, "vx0") as first,
        Arrivals(b, "vx1") as second,
        packet_socket(a, "vx0") as sender,
    ):
        sender.send(frame)
        wait_until(lambda: first.count(frame) == 1, "the frame")
        ping(a, "10.0.1.2")
        assert second.count(frame) == 0


def test_demo_runs_and_leaves_nothing(pair: Pair) -> None:
    a, _ = pair
    child = a.start(
        *(sys.executable, "-m", "vtep", "demo"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = child.communicate(timeout=60)
    text = out.decode()
    assert child.returncode == 0, text
    for words in ("5 packets transmitted, 5 received", "SHA-256 is the same", "VXLAN, flags [I]"):
        assert words in text
    assert re.search(r"fdb entries +1\n +[0-9a-f:]{17} dst 192\.0\.2\.2", text)
    assert children_of(child.pid) == []


def children_of(pid: int) -> list[str]:
    """Return the command lines of the processes that a dead process left behind."""
    session = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True)
    return [line for line in session.stdout.splitlines() if f"pyvtep-demo-{pid}" in line]


def test_recreated_underlay_device_is_followed(pair: Pair, start: Start) -> None:
    """Sockets are bound to devices by index, and the new device has another one."""
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--dev", "eth0")
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    a.run("ip", "link", "del", "eth0")
    a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.pid)
    for host, number in ((a, 1), (b, 2)):
        address(host, "eth0", f"192.0.2.{number}/24")
        host.run("ip", "link", "set", "eth0", "up")
    wait_until(lambda: "--dev eth0 was re-created; rebinding" in vtep.log, "the news")
    ping(a, "10.0.0.2")


def test_zero_checksums_over_ipv6_are_accepted(pair: Pair, start: Start) -> None:
    a, b = pair
    b.run(
        *("ip", "link", "add", "vx0", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "4789"),
        *("local", "2001:db8::2", "remote", "2001:db8::1", "udp6zerocsumtx"),
    )
    address(b, "vx0", "10.0.0.2/24")
    b.run("ip", "link", "set", "vx0", "up")
    start(a, *segment(1, "2001:db8::2", "10.0.0.1/24"))
    ping(a, "10.0.0.2")


def test_point_to_point_underlay(pair: Pair, start: Start) -> None:
    for host, own, other in zip(pair, (1, 2), (2, 1), strict=True):
        host.run("ip", "addr", "flush", "dev", "eth0")
        host.run("ip", "addr", "add", f"10.1.1.{own}", "peer", f"10.1.1.{other}/32", "dev", "eth0")
        start(host, *segment(1, f"10.1.1.{other}", f"10.0.0.{own}/24"), "--local", f"10.1.1.{own}")
    ping(pair[0], "10.0.0.2")


def test_few_descriptors_cost_source_ports_not_frames(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    limited = ("prlimit", "--nofile=32:32")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--ageing", "2", prefix=limited)
    ping(a, "10.0.0.2")
    with udp_socket(b, "10.0.0.2", 7000) as receiver:
        for _ in range(100):
            with udp_socket(a, "10.0.0.1") as sender:
                sender.sendto(b"x", ("10.0.0.2", 7000))
                assert receiver.recv(16) == b"x"
    counters = vtep.counters()
    assert counters["drops"] - counters["underlay_refused"] == 0
    b.run("ip", "link", "set", "vx0", "down")
    wait_until(lambda: vtep.fdb() == {}, "the clock to go on")


def test_unread_standard_error_does_not_block_forwarding(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    out, into = os.pipe()
    child = a.start(
        *(sys.executable, "-m", "vtep", *segment(1, "192.0.2.2", "10.0.0.1/24")), stderr=into
    )
    os.close(into)
    said = b""
    while b"UDP port" not in said:  # Other lines may come before.
        more = os.read(out, 4096)
        assert more, said
        said += more
    ping(a, "10.0.0.2")
    for _ in range(100):  # More than the buffer of a pipe.
        child.send_signal(signal.SIGUSR1)
        ping(a, "10.0.0.2", count=1)
    os.close(out)
    ping(a, "10.0.0.2")
    child.send_signal(signal.SIGUSR1)
    ping(a, "10.0.0.2")
    child.terminate()
    assert child.wait(10) == 0


@pytest.mark.parametrize("redirect", ["2>&-", ">&- 2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_it_runs_without_standard_streams(pair: Pair, start: Start, redirect: str) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    arguments = " ".join(segment(1, "192.0.2.2", "10.0.0.1/24"))
    child = a.start("sh", "-c", f"exec {sys.executable} -m vtep {arguments} {redirect}")
    ping(a, "10.0.0.2")
    child.send_signal(signal.SIGUSR1)
    ping(a, "10.0.0.2")
    child.terminate()
    assert child.wait(10) == 0


def test_drops_of_the_queue_of_a_renamed_tap_are_counted(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    a.run("ip", "link", "set", "vx0", "name", "other0")
    frame = bytes.fromhex(mac_of(b).replace(":", "") + "020000000001") + b"\x88\xb5" + b"x" * 50
    with packet_socket(a, "other0") as sender:
        tunnel[0].process.send_signal(signal.SIGSTOP)
        for _ in range(3000):
            with suppress(OSError):
                sender.send(frame)
        tunnel[0].process.send_signal(signal.SIGCONT)
    # The netlink event with the new name comes a moment later.
    wait_until(lambda: tunnel[0].counter("tap_queue_full") > 1000, "the drops")
    assert "vni 1 on other0" in tunnel[0].report()
    assert tunnel[0].stop() == 0
    found = re.search(r"(\d+) dropped\n$", tunnel[0].log)
    assert found
    assert int(found[1]) > 1000


@pytest.mark.parametrize("prefix", ["192.0.2.", "2001:db8::"], ids=["over-ipv4", "over-ipv6"])
def test_drops_of_the_remote_firewall_are_not_counted_here(
    pair: Pair, start: Start, tmp_path: Path, prefix: str
) -> None:
    a, b = pair
    vtep = start(a, *segment(1, f"{prefix}2", "10.0.0.1/24"))
    rules = tmp_path / "rules"
    rules.write_text(
        "table inet t {\nchain c {\ntype filter hook input priority 0\n"
        "udp dport 4789 reject with icmpx type admin-prohibited\n}\n}\n"
    )
    b.run("nft", "-f", str(rules))
    a.run("ping", "-c3", "-i0.1", "-W0.2", "10.0.0.2", check=False)
    wait_until(lambda: vtep.counter("underlay_refused") > 0, "a count")
    counters = vtep.counters()
    assert counters["underlay_denied"] == counters["underlay_unreachable"] == 0


def test_drops_of_the_underlay_queue_are_counted(pair: Pair, tunnel: Tunnel) -> None:
    a, b = pair
    ping(a, "10.0.0.2")
    shape = "rate 100kbit burst 2000 limit 3000"
    a.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *shape.split())
    frame = bytes.fromhex(mac_of(b).replace(":", "") + "020000000001") + b"\x88\xb5" + b"x" * 900
    with packet_socket(a, "vx0") as sender:
        for number in range(50):
            # Of growing size, so that each is sent alone: for a batch, the kernel reports no drop.
            sender.send(frame + bytes(number))
        wait_until(lambda: tunnel[0].counter("underlay_full") > 10, "the count")


def test_superframes_are_limited_to_one_send_unless_on_a_bridge(pair: Pair, tunnel: Tunnel) -> None:
    a, _ = pair

    def limit() -> int:
        found = re.search(r"gso_max_size (\d+)", a.run("ip", "-d", "link", "show", "vx0"))
        assert found
        return int(found[1])

    assert 44 * 1398 < limit() < 62500
    a.run("ip", "link", "add", "br0", "type", "bridge")
    a.run("ip", "link", "set", "vx0", "master", "br0")
    wait_until(lambda: limit() == 65536, "the limit to be lifted")
    a.run("ip", "link", "set", "vx0", "nomaster", "mtu", "1000")
    wait_until(lambda: limit() == 64 * 948 + 400, "the limit for that MTU")
    assert tunnel[0].process.poll() is None


def shows(host: Host, text: str) -> bool:
    return text in host.run("ip", "-d", "link", "show", "vx0")


def test_overflow_of_link_events(pair: Pair, tunnel: Tunnel) -> None:
    """More events than the netlink socket can hold, so that some are lost."""
    a, _ = pair
    tunnel[0].process.send_signal(signal.SIGSTOP)
    commands = "".join(f"link set eth0 alias x{number}\n" for number in range(600))
    a.run("sh", "-c", f"printf '{commands}' | ip -batch -")
    tunnel[0].process.send_signal(signal.SIGCONT)
    a.run("ip", "link", "set", "vx0", "mtu", "1000")
    for mtu in (1000, 900):
        a.run("ip", "link", "set", "vx0", "mtu", str(mtu))
        limit = f"gso_max_size {64 * (mtu - 52) + 400} "
        wait_until(partial(shows, a, limit), f"the limit for an MTU of {mtu}")


def test_device_that_gets_its_address_late(pair: Pair, start: Start) -> None:
    a, b = pair
    options = ("--dev", "eth0", "--local", "192.0.2.1")
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), *options)
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    a.run("ip", "link", "del", "eth0")
    a.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.pid)
    for host in pair:
        host.run("ip", "link", "set", "eth0", "up")
    wait_until(lambda: "not ready: --dstport 4789: cannot bind" in vtep.log, "the refusal")
    address(a, "eth0", "192.0.2.1/24")
    address(b, "eth0", "192.0.2.2/24")
    wait_until(lambda: "--dev eth0 was re-created; rebinding" in vtep.log, "the news")
    ping(a, "10.0.0.2")
    assert vtep.log.count("not ready") == 1


def test_device_replaced_during_backpressure(pair: Pair, start: Start) -> None:
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--dev", "eth0")
    ping(a, "10.0.0.2")
    a.run("ip", "link", "add", "eth1", "type", "veth", "peer", "name", "eth1", "netns", b.pid)
    shape = "rate 2mbit burst 16kb limit 20mb"
    a.run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *shape.split())
    frame = bytes.fromhex(mac_of(b).replace(":", "") + "020000000001") + b"\x88\xb5" + b"x" * 1300
    with packet_socket(a, "vx0") as sender:
        for number in range(800):
            sender.send(frame + bytes(number % 7))
    a.run("ip", "link", "set", "eth0", "down", "name", "old0")
    for host, number in ((a, 1), (b, 2)):
        host.run("ip", "addr", "flush", "scope", "global", "dev", "old0" if host is a else "eth0")
        if host is a:
            host.run("ip", "link", "set", "eth1", "name", "eth0")
        device = "eth0" if host is a else "eth1"
        address(host, device, f"192.0.2.{number}/24")
        host.run("ip", "link", "set", device, "up")
    wait_until(lambda: "--dev eth0 was re-created; rebinding" in vtep.log, "the news")
    ping(a, "10.0.0.2")


def test_unreachable_remote_does_not_block_others(pair: Pair, start: Start) -> None:
    """Its neighbour entry is incomplete, so the kernel queues its datagrams."""
    a, b = pair
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), "--remote", "192.0.2.99")
    ping(a, "10.0.0.2")
    # The entry stays incomplete for longer than the test waits, and not for three seconds only.
    a.run("sysctl", "-qw", f"net.ipv4.neigh.eth0.retrans_time_ms={2000 * DEADLINE:.0f}")
    unknown = bytes.fromhex("020000000099" + "020000000001") + b"\x88\xb5" + b"x" * 46
    with packet_socket(a, "vx0") as sender, packet_socket(b, "vx0") as receiver:
        receiver.settimeout(DEADLINE)
        for number in range(800):
            # One by one, since a small datagram alone uses a large part of a buffer.
            frame = unknown + number.to_bytes(2, "big")
            sender.send(frame)
            while receiver.recv(2048) != frame:
                pass


def test_tap_in_another_namespace_is_logged_once(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2"))
    a.run("ip", "link", "set", "vx0", "netns", b.pid)
    wait_until(lambda: "vni 1: vx0 is in another network namespace" in vtep.log, "a word of it")
    b.run("ip", "link", "set", "vx0", "netns", a.pid)
    wait_until(
        lambda: "vni 1: vx0 is back in the network namespace of pyvtep" in vtep.log, "another"
    )
    assert vtep.log.count("in another network namespace") == 1
    assert vtep.stop() == 0
