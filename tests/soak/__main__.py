"""Run the soak test: see `scripts/soak`.

Two VTEPs with the fast path forward UDP, TCP and pings between two namespaces. Meanwhile MACs come
and age out, segments are added and deleted, FDB entries are configured and flushed, the
configuration is read again, and monitor clients come and go, some of which never read.

VTEP a is upgraded now and then. Its processes are compared with each other at the same age, right
before the end of each: that is where what one hands over to the next would pile up. What grows
within a process is seen in VTEP b, which is one process for the whole run.
"""

import argparse
import csv
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count
from pathlib import Path

from attrs import asdict

from tests.netns.hosts import Pyvtep, address, mac_of, ping, wait_until
from tests.netns.steady_traffic import SteadyTraffic
from tests.soak.plot import draw
from tests.soak.trend import SAMPLES_MIN, find_trend
from vtep.control import Client
from vtep.errors import VtepError
from vtep.testing.lab import Host, Lab

_INTERVAL_S = 1.0
_LOAD_DEADLINE_S = 600.0
_UPGRADE_ROUNDS = 20
"""Rounds after which VTEP a is upgraded."""

_MACS = 50
"""New MACs in a round on each side: with the ageing time of 10 s, some 500 are known."""

_TOLERANCES = {
    # The resource, and the growth over half of the run that is no leak: an arena of the allocator
    # for the resident memory, one client for descriptors, a round of new MACs for the FDB.
    "rss_mib": 2.0,
    "descriptors": 2.0,
    "threads": 0.5,
    "fdb_entries": 2.0 * _MACS,
}
_TITLES = {
    "rss_mib": "resident memory (MiB)",
    "descriptors": "descriptors",
    "threads": "threads",
    "fdb_entries": "FDB entries",
}

_FILE = """\
[[vni]]
id = 1
tap = "vx0"
remote = "192.0.2.{other}"
address = "10.0.0.{own}/24"
ageing = 10
max-addresses = {limit}
"""


class _Churn:
    """All that changes beside the traffic, a little of it in each round."""

    def __init__(self, hosts: tuple[Host, Host], vteps: tuple[Pyvtep, Pyvtep], folder: Path):
        self._vteps = vteps
        self._folder = folder
        self._sockets = []
        self._macs = [bytes.fromhex(mac_of(host).replace(":", "")) for host in hosts]
        for host in hosts:
            with host.inside():
                # Protocol 0: it only sends.
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            sock.bind(("vx0", 0))
            self._sockets.append(sock)
        self._new_macs = count(1)
        self._monitors: list[Client] = []

    def round(self, number: int) -> None:
        """Change something in both VTEPs."""
        for side, vtep in enumerate(self._vteps):
            self._send_from_new_macs(side)
            with vtep.client() as client:
                self._configure(client, number, side)
        if number % 5 == 0:
            # The comment changes nothing; the limit is another one each time.
            write_file(self._folder, 1, 5000 + number % 10)
            with self._vteps[1].client() as client:
                client.reload()
        # A monitor client that does not read must not make the process keep its events.
        self._monitors.append(self._vteps[number % 2].client())
        self._monitors[-1].monitor()
        if len(self._monitors) > 4:
            self._monitors.pop(0).close()

    def _send_from_new_macs(self, side: int) -> None:
        for _ in range(_MACS):
            source = b"\x02\x10" + next(self._new_macs).to_bytes(4, "big")
            # EtherType 0x88b5 is for local experiments (IEEE 802): the guest ignores it.
            frame = self._macs[1 - side] + source + b"\x88\xb5" + bytes(46)
            with suppress(BlockingIOError):
                self._sockets[side].send(frame)

    @staticmethod
    def _configure(client: Client, number: int, side: int) -> None:
        remote = f"192.0.2.{2 - side}"
        for last in range(20):
            client.fdb.replace(f"02:20:00:00:00:{last:02x}", remote, vni=1, state="static")
        client.fdb.show(vni=1)
        client.stats()
        client.fdb.flush(vni=1, static=True)
        if number % 4 == side:
            client.vni.add(7, remote=remote, tap="vx7")
            client.vni.delete(7)

    def close(self) -> None:
        for monitor in self._monitors:
            monitor.close()
        for sock in self._sockets:
            sock.close()


def write_file(folder: Path, side: int, limit: int = 5000) -> Path:
    """Write the configuration of one VTEP."""
    path = folder / f"{side}.toml"
    path.write_text(_FILE.format(own=1 + side, other=2 - side, limit=limit))
    return path


def _is_loaded(vtep: Pyvtep) -> bool:
    return "fast path: on" in vtep.log


def _pid(vtep: Pyvtep) -> int:
    """Return the PID of the process that serves a VTEP now."""
    with vtep.client() as client:
        return int(client.call("process.show")["pid"])


def _end(vtep: Pyvtep) -> None:
    """End the process of a VTEP, which is no child of this one after an upgrade."""
    with suppress(VtepError, ProcessLookupError):
        os.kill(_pid(vtep), signal.SIGTERM)
        wait_until(lambda: not vtep.control.exists(), "the end of the VTEP")


def _sample(vtep: Pyvtep) -> dict[str, float]:
    process = Path(f"/proc/{_pid(vtep)}")
    status = (process / "status").read_text()
    fields = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE))
    with vtep.client() as client:
        # The client itself is one descriptor, in each sample.
        entries = len(client.fdb.show(vni=1))
        descriptors = len(list((process / "fd").iterdir()))
    return {
        "rss_mib": int(fields["VmRSS"]) / 1024,
        "descriptors": descriptors,
        "threads": int(fields["Threads"]),
        "fdb_entries": entries,
    }


def _rounds(seconds: float) -> Iterator[tuple[int, float]]:
    began = time.monotonic()
    for number in count():
        elapsed = time.monotonic() - began
        if elapsed > seconds and number >= SAMPLES_MIN:
            return
        yield number, elapsed
        time.sleep(max(0.0, began + (number + 1) * _INTERVAL_S - time.monotonic()))


Samples = list[dict[str, float]]


def _soak(
    seconds: float, rate: int, folder: Path
) -> tuple[list[float], dict[str, Samples], Samples, dict[str, object]]:
    """Run for so many seconds.

    Returns: the times, the samples of both VTEPs at these times, those of a right before each
    upgrade, and the report of the traffic.
    """
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        a, b = lab.host("a"), lab.host("b")
        lab.wire(a, b)
        vteps = []
        for side, host in enumerate((a, b)):
            address(host, "eth0", f"192.0.2.{1 + side}/24")
            vtep = Pyvtep(host, folder, "--config", str(write_file(folder, side))).ready()
            stack.callback(_end, vtep)
            vteps.append(vtep)
        for vtep in vteps:
            # Loading the fast path takes 70 MiB once, and minutes if it has to be compiled.
            wait_until(partial(_is_loaded, vtep), "the fast path to be on", _LOAD_DEADLINE_S)
        ping(a, "10.0.0.2")
        traffic = SteadyTraffic(a, b, "10.0.0.1", "10.0.0.2", rate=rate)
        churn = _Churn((a, b), (vteps[0], vteps[1]), folder)
        stack.callback(churn.close)
        times: list[float] = []
        samples: dict[str, Samples] = {"a": [], "b": []}
        at_upgrade: Samples = []
        for number, elapsed in _rounds(seconds):
            churn.round(number)
            times.append(elapsed)
            for name, vtep in zip(samples, vteps, strict=True):
                samples[name].append(_sample(vtep))
            if number % _UPGRADE_ROUNDS == _UPGRADE_ROUNDS - 1:
                at_upgrade.append(samples["a"][-1])
                _upgrade(vteps[0])
        report = asdict(traffic.stop())
        for vtep in vteps:
            if "Traceback" in vtep.log:
                sys.exit(f"scripts/soak: a VTEP failed:\n{vtep.log[-4000:]}")
        return times, samples, at_upgrade, report


def _upgrade(vtep: Pyvtep) -> None:
    former = _pid(vtep)
    with vtep.client() as client:
        client.upgrade()
    wait_until(lambda: _pid(vtep) != former, "the new process to serve")


def _write(folder: Path, times: list[float], samples: dict[str, Samples]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "soak.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", *(f"{name}_{each}" for name in samples for each in _TITLES)])
        for second, *both in zip(times, *samples.values(), strict=True):
            values = [one[each] for one in both for each in _TITLES]
            writer.writerow(f"{value:.6g}" for value in (second, *values))
    panels = {
        title: {name: [each[resource] for each in rows] for name, rows in samples.items()}
        for resource, title in _TITLES.items()
    }
    draw(folder / "soak.svg", times, panels)


def main() -> None:
    """Parse the command line, run, and exit with 1 if a resource grows."""
    parser = argparse.ArgumentParser(prog="scripts/soak")
    parser.add_argument("--seconds", type=float, default=1800, help="how long it takes (1800)")
    parser.add_argument("--rate", type=int, default=1000, help="datagrams/s each way (1000)")
    parser.add_argument("--output", type=Path, help="directory for soak.csv and soak.svg")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times, samples, at_upgrade, report = _soak(given.seconds, given.rate, Path(folder))
    if given.output:
        _write(given.output, times, samples)
    print(f"{len(times)} samples in {times[-1]:.0f} s; traffic: {json.dumps(report)}")
    grown = []
    print(f"{'':14}{'first':>10}{'last':>10}{'growth':>10}{'noise':>10}   in the second half")
    for name, rows in {"a": at_upgrade, "b": samples["b"]}.items():
        if len(rows) < SAMPLES_MIN:
            print(
                f"{name}: {len(rows)} upgrades are too few for a trend, which needs {SAMPLES_MIN}"
            )
            continue
        for resource, tolerance in _TOLERANCES.items():
            values = [each[resource] for each in rows]
            trend = find_trend(values)
            if verdict := trend.grows(tolerance):
                grown.append(f"{resource} of {name}")
            print(
                f"{name} {resource:12}{values[0]:10.1f}{values[-1]:10.1f}{trend.growth:10.2f}"
                f"{trend.noise:10.2f}   {'GROWS' if verdict else 'flat'}"
            )
    if not report["tcp_alive"]:
        sys.exit("scripts/soak: the TCP connection through the tunnel has broken")
    if grown:
        sys.exit(f"scripts/soak: not flat: {', '.join(grown)}")


if __name__ == "__main__":
    main()
