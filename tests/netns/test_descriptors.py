"""Exhausted file descriptors: one log line, forwarding goes on, and the process recovers."""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.netns.faults import Numbered
from tests.netns.hosts import (
    Pair,
    Pyvtep,
    Start,
    address,
    mtu_of,
    ping,
    segment,
    wait_until,
)
from tests.netns.test_errors import refusal
from vtep.errors import VtepError

OUT = "this process is out of file descriptors (it may have {}); raise the limit: ulimit -n"


@contextmanager
def limited(vtep: Pyvtep, limit: int) -> Iterator[None]:
    """Limit the file descriptors of a running pyvtep to numbers below `limit`."""
    pid = vtep.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def logs(vtep: Pyvtep, line: str) -> bool:
    return line in vtep.log


def test_too_few_to_start(pair: Pair) -> None:
    for few in (8, 12, 20, 22):
        line = refusal(
            pair[0], *segment(1, "192.0.2.2"), prefix=("prlimit", f"--nofile={few}:{few}")
        )
        assert OUT.format(few) in line


def test_exhausted_at_run_time(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, b = pair
    file = tmp_path / "vnis.toml"
    text = '[[vni]]\nid = 1\ntap = "vx0"\nremote = "192.0.2.2"\naddress = "10.0.0.1/24"\n'
    file.write_text(text)
    vtep = start(a, "--config", str(file), "--state", str(tmp_path / "state"))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    ping(a, "10.0.0.2")
    with vtep.client() as client, Numbered(vtep, b) as frames:
        client.stats()
        with limited(vtep, 5):
            a.run("ip", "link", "set", "vx0", "alias", "hello")
            a.run("ip", "link", "set", "eth0", "mtu", "1400")
            line = f"cannot look at this host's network: {OUT.format(5)}"
            wait_until(partial(logs, vtep, line), line)
            with socket.socket(socket.AF_UNIX) as another:
                another.connect(os.fspath(vtep.control))
                line = f"cannot accept clients of the control socket: {OUT.format(5)}"
                wait_until(partial(logs, vtep, line), line)
            file.write_text(f'{text}\n[[vni]]\nid = 2\nremote = "192.0.2.2"\n')
            with pytest.raises(VtepError, match="cannot read it: this process is out of file"):
                client.reload()
            with pytest.raises(VtepError, match="cannot look at this host's network"):
                client.vni.add(3, remote="192.0.2.2")
            with pytest.raises(VtepError, match="cannot be written: this process is out of file"):
                client.fdb.add("02:00:00:00:00:01", dst="192.0.2.2")
            ping(a, "10.0.0.2")  # Its sockets are open already.
            # Not `send`, which takes a connection for each look at the counters.
            frames.put(500)
            frames.expect(500)
            assert client.stats()["total"]["counters"]["taps_lost"] == 0
        frames.send(500)
        frames.expect(1000)
        assert frames.received() == [*range(1000)]
    wait_until(lambda: mtu_of(a) == 1350, "the MTU to be followed")
    vtep.run("reload")
    assert mtu_of(a, "vx2") == 1350
    address(a, "vx2", "10.0.2.1/24")
    for line in ("cannot look at this host's", "cannot accept clients", "cannot be written"):
        assert vtep.log.count(line) == 1
    for line in ("Traceback", "network namespace", "internal error", "never retrieved"):
        assert line not in vtep.log
    assert vtep.stop() == 0


def test_control_clients_leave_descriptors_for_forwarding(pair: Pair, start: Start) -> None:
    a, b = pair
    vtep = start(a, *segment(1, "192.0.2.2", "10.0.0.1/24"), prefix=("prlimit", "--nofile=40:40"))
    start(b, *segment(1, "192.0.2.1", "10.0.0.2/24"))
    with ExitStack() as clients:
        for _ in range(60):
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(os.fspath(vtep.control))
        wait_until(lambda: "a client of the control socket was refused" in vtep.log, "it")
        assert "too many clients: it has hardly any file descriptor left" in vtep.run(
            "stats", code=1
        )
        a.run("ip", "link", "set", "eth0", "mtu", "1400")
        wait_until(lambda: mtu_of(a) == 1350, "the MTU to be followed")
        ping(a, "10.0.0.2")
    wait_until(lambda: "vni 1" in vtep.run("stats"), "the clients to be gone")
    assert vtep.log.count("was refused") == 1
    for line in ("Traceback", "network namespace", "internal error", "out of file"):
        assert line not in vtep.log
