"""A trace beside a running pyvtep: nothing leaves the host, and then what it said comes true."""

import json
import threading
from pathlib import Path

import pytest

from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    capture,
    kernel_vtep,
    mac_of,
    ping,
    pyvtep,
    segment,
    tshark,
    wait_until,
)
from vtep.trace.steps import TraceResult


@pytest.fixture
def vtep(pair: Pair, start: Start) -> Pyvtep:
    a, b = pair
    kernel_vtep(b, 42, "192.0.2.2", "192.0.2.1", "10.0.0.2/24")
    return start(a, *segment(42, "192.0.2.2", "10.0.0.1/24"))


def trace(vtep: Pyvtep, words: str, code: int = 0) -> TraceResult:
    done = pyvtep(vtep.host, "trace", *words.split(), "--json", "--socket", str(vtep.control))
    assert (done.returncode, done.stderr) == (code, "")
    result: TraceResult = json.loads(done.stdout)
    return result


def test_nothing_is_sent_and_then_it_comes_true(vtep: Pyvtep, pair: Pair, tmp_path: Path) -> None:
    a, b = pair
    ping(a, "10.0.0.2", count=1)
    to, own = mac_of(b), mac_of(a)
    fields = f"--src-mac {own} --dst-mac {to} --src 10.0.0.1 --dst 10.0.0.2 --proto icmp --size 84"
    with vtep.client() as client:
        before, table = client.stats()["total"], client.fdb.show()
    with capture(a, tmp_path) as pcap:
        told = trace(vtep, fields)
        refused = trace(vtep, f"--from 192.0.2.9 {fields}", code=1)
        large = trace(vtep, fields.replace("--size 84", "--size 1400 --ttl 3"))
    # The hosts' own neighbour discovery may pass meanwhile.
    assert not [line for line in tshark(pcap, "-Y", "icmp") if line.strip()]
    with vtep.client() as client:
        now = client.stats()["total"]
        assert [each["mac"] for each in client.fdb.show()] == [each["mac"] for each in table]
    assert now["drops"] == before["drops"]
    assert refused["drops"][0]["reason"] == "source_unknown"
    assert large["outcome"] == "forwarded"
    (sent,) = told["sent"]
    assert (sent["remote"], sent["vni"], sent["dev"]) == ("192.0.2.2", 42, "eth0")
    assert sent["is_ready"]
    with capture(a, tmp_path) as pcap:
        ping(a, "10.0.0.2", count=1)
    shown = tshark(
        pcap, "-Y", "icmp.type == 8", "-T", "fields", "-e", "udp.srcport", "-e", "frame.len"
    )
    # The octets of the datagram, and its own Ethernet header.
    octets = 14 + 20 + 8 + len(sent["datagrams"][0]) // 2
    assert {tuple(line.split()) for line in shown} == {(str(sent["source_port"]), str(octets))}


def test_what_is_down_refuses_frames(vtep: Pyvtep, pair: Pair) -> None:
    a, b = pair
    ping(a, "10.0.0.2", count=1)
    fields = f"--src-mac {mac_of(b)} --dst-mac {mac_of(a)} --proto icmp --dst 10.0.0.1"
    a.run("ip", "link", "set", "vx0", "down")

    def reasons(words: str) -> list[str]:
        done = pyvtep(a, "trace", *words.split(), "--json", "--socket", str(vtep.control))
        return [drop["reason"] for drop in json.loads(done.stdout)["drops"]]

    wait_until(lambda: reasons(f"--from 192.0.2.2 {fields}") == ["tap_down"], "the TAP is down")
    a.run("ip", "link", "set", "eth0", "down")
    to = f"--dst-mac {mac_of(b)} --proto icmp --dst 10.0.0.2"
    wait_until(lambda: reasons(to) == ["underlay_unreachable"], "no route")
    trace(vtep, to, code=1)


def test_real_frames(vtep: Pyvtep, pair: Pair) -> None:
    a, _ = pair
    ping(a, "10.0.0.2", count=1)
    found: list[str] = []

    def follow() -> None:
        words = ["trace", "--live", "2", "--filter", "icmp", "--socket", str(vtep.control)]
        found.append(pyvtep(a, *words).stdout)

    thread = threading.Thread(target=follow)
    thread.start()

    def is_traced() -> bool:
        ping(a, "10.0.0.2", count=1)
        return bool(found)

    wait_until(is_traced, "two real frames")
    thread.join()
    assert "echo request" in found[0]
    assert found[0].count("\n  => ") == 2
