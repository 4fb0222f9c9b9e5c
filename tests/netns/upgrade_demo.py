"""Upgrades under steady traffic, in several scenarios, with a report of all that was lost.

python -m tests.netns.upgrade_demo [--upgrades 20] [--rate 10000] [SCENARIO ...]

Run it as root. Without a scenario it runs all of them. The exit code is 1 if a frame was lost or
duplicated. The tests run the same code with few upgrades and a low rate. `--upgrades 0` is for
comparison: the same traffic without an upgrade.
"""

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from attrs import asdict, define

from tests.netns.hosts import Pair, Pyvtep, address, ping, wait_until
from tests.netns.steady_traffic import Report, SteadyTraffic
from vtep.control import Client
from vtep.testing.lab import Lab

UPGRADED = re.compile(
    r"upgraded: pid (\d+) -> (\d+), (\d+) VNIs?, (\d+) FDB entr\w+, not read for ([\d.]+) ms"
)

_VNIS: Final = 50
_ENTRIES: Final = 100_000
_FLOOD_RATE: Final = 20_000
"""Frames/s of a flood: twice the rate of the traffic."""

_CONTROL_S: Final = 30.0
"""Seconds of traffic without an upgrade: what is lost then is lost for want of processor time."""

_TICK: Final = os.sysconf("SC_CLK_TCK")


@define
class Result:
    """The result of a scenario."""

    report: Report
    gaps_ms: list[float]
    """Milliseconds for which neither process has read, for each upgrade."""
    durations_s: list[float]
    """Seconds from the command to its answer, for each upgrade."""
    cpu_s: list[float]
    """Seconds of processor time that each process has used, from its start to its upgrade."""

    @property
    def is_lossless(self) -> bool:
        """True if nothing was lost or duplicated, and every connection has survived."""
        # The drops of queues are no part of it: those of a flood are counted among them.
        report = self.report
        return report.lost == report.duplicated == report.pings_lost == 0 and report.tcp_alive


def _cpu_s(pid: int) -> float:
    """Return the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@define
class Scenario:
    """Two hosts with a VTEP each, of which the first is upgraded."""

    pair: Pair
    first: Pyvtep
    config: Path
    flood_rate: int

    def before(self, number: int) -> None:
        """Prepare the upgrade with this number."""

    @contextmanager
    def load(self) -> Iterator[None]:
        """Load the first VTEP while it is upgraded."""
        yield


class ChangedConfig(Scenario):
    """Each upgrade finds another configuration file."""

    def before(self, number: int) -> None:
        text = re.sub(r"ageing = \d+", f"ageing = {400 + number}", self.config.read_text())
        self.config.write_text(text)


class ManyEntries(Scenario):
    """The FDB has 100,000 entries."""

    @contextmanager
    def load(self) -> Iterator[None]:
        with Client(self.first.control) as client:
            for number in range(_ENTRIES):
                mac = f"06:00:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
                client.call("fdb.add", vni=1, mac=mac, dst="192.0.2.2")
        yield


class UnderlayFlood(Scenario):
    """A host that is no remote sends datagrams to the VTEP."""

    @contextmanager
    def load(self) -> Iterator[None]:
        address(self.pair[1], "eth0", "192.0.2.77/24")
        with self._flooding(1, "underlay", "192.0.2.77", "192.0.2.1"):
            yield

    @contextmanager
    def _flooding(self, host: int, *arguments: str) -> Iterator[None]:
        module = "tests.netns.upgrade_demo"
        flood = self.pair[host].start(
            sys.executable, "-m", module, "--rate", str(self.flood_rate), "--flood", *arguments
        )
        try:
            yield
            assert flood.poll() is None, "the flood has ended early"
        finally:
            flood.kill()
            flood.wait()


class GuestFlood(UnderlayFlood):
    """A guest broadcasts."""

    @contextmanager
    def load(self) -> Iterator[None]:
        with self._flooding(0, "guest", "vx0"):
            yield


SCENARIOS: Final[dict[str, tuple[type[Scenario], int]]] = {
    "plain": (Scenario, 1),
    "config": (ChangedConfig, 1),
    "vnis": (Scenario, _VNIS),
    "entries": (ManyEntries, 1),
    "underlay-flood": (UnderlayFlood, 1),
    "guest-flood": (GuestFlood, 1),
}
"""The class of each scenario, and its number of VNIs."""


def _configure(path: Path, remote: str, own: str, vnis: int) -> None:
    blocks = []
    for number in range(vnis):
        addresses = f'address = ["{own}/24"]\n' if number == 0 else ""
        blocks.append(
            f'[[vni]]\nid = {number + 1}\nremote = ["{remote}"]\ntap = "vx{number}"\n'
            f"ageing = 300\n{addresses}"
        )
    path.write_text("\n".join(blocks))


def upgrade(vtep: Pyvtep) -> tuple[int, float]:
    """Upgrade a process. Returns: the PID of the new one, and milliseconds that none has read."""
    found = UPGRADED.match(vtep.run("upgrade"))
    assert found, vtep.log
    return int(found[2]), float(found[5])


def run(
    pair: Pair, folder: Path, name: str, *, upgrades: int, rate: int, flood_rate: int = _FLOOD_RATE
) -> Result:
    """Run a scenario, and end all processes."""
    make, vnis = SCENARIOS[name]
    vteps = []
    for number, host in enumerate(pair, 1):
        config = folder / f"{host.name}.toml"
        _configure(config, f"192.0.2.{3 - number}", f"10.0.0.{number}", vnis)
        vteps.append(Pyvtep(host, folder, "--config", str(config)).ready())
    first = vteps[0]
    scenario = make(pair, first, folder / f"{pair[0].name}.toml", flood_rate)
    ping(pair[0], "10.0.0.2")
    with Client(first.control) as client:
        pid = client.call("process.show")["pid"]
    gaps, durations, cpu = [], [], []
    try:
        with scenario.load():
            traffic = SteadyTraffic(*pair, "10.0.0.1", "10.0.0.2", rate=rate)
            for number in range(upgrades):
                scenario.before(number)
                began = time.monotonic()
                cpu.append(_cpu_s(pid))
                pid, gap = upgrade(first)
                durations.append(time.monotonic() - began)
                gaps.append(gap)
            if not upgrades:
                time.sleep(_CONTROL_S)
            report = traffic.stop()
    except BaseException:
        print(first.log, file=sys.stderr)
        raise
    finally:
        # The successor is no child of this process.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not first.control.exists(), "the end of the new process")
        vteps[1].stop()
    return Result(report, gaps, durations, cpu)


def _flood(rate: int, kind: str, *arguments: str) -> None:
    """Send frames at a steady rate until this process is killed."""
    import socket  # noqa: PLC0415  only the child that floods needs it

    frame = bytes.fromhex("ffffffffffff0600deadbeef88b5") + bytes(46)
    send: Callable[[], object]
    if kind == "underlay":
        local, remote = arguments
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((local, 0))
        sock.connect((remote, 4789))
        datagram = bytes.fromhex("0800000000000100") + frame
        send = lambda: sock.send(datagram)  # noqa: E731
    else:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind((arguments[0], 0))
        send = lambda: raw.send(frame)  # noqa: E731
    began, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate)
        # What was missed while this process did not run is not sent later in one large burst.
        sent = max(sent, due - 100)
        for _ in range(due - sent):
            with suppress(OSError):
                send()
        sent = due
        time.sleep(0.001)


def _print(name: str, result: Result) -> None:
    shown = asdict(result.report)
    gaps = sorted(result.gaps_ms)
    if gaps:
        shown["gaps_ms"] = {"median": gaps[len(gaps) // 2], "longest": gaps[-1]}
        shown["longest_upgrade_s"] = round(max(result.durations_s), 2)
    shown["cpu_s"] = round(sum(result.cpu_s), 2)
    shown["load"] = round(os.getloadavg()[0], 1)
    verdict = "lossless" if result.is_lossless else "NOT LOSSLESS"
    print(f"{name}: {verdict} {json.dumps(shown)}", flush=True)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--rate", type=int, default=10_000)
    parser.add_argument("--flood", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("scenario", nargs="*")
    given = parser.parse_args()
    if given.flood:
        _flood(given.rate, *given.flood)
    Pyvtep.uses_fast_path = True
    lossless = True
    for name in given.scenario or SCENARIOS:
        with Lab() as lab, tempfile.TemporaryDirectory() as folder:
            a, b = lab.host("a"), lab.host("b")
            lab.wire(a, b)
            address(a, "eth0", "192.0.2.1/24")
            address(b, "eth0", "192.0.2.2/24")
            result = run((a, b), Path(folder), name, upgrades=given.upgrades, rate=given.rate)
        _print(name, result)
        lossless = lossless and result.is_lossless
    return 0 if lossless else 1


if __name__ == "__main__":
    sys.exit(_main())
