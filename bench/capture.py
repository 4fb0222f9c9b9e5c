"""The cost of a capture: forwarding rates without one, with one that keeps nothing, and to a file.

sudo .venv/bin/python -m bench.capture [--rounds 3] [--seconds 3] [--no-fast-path]

Two VTEPs in network namespaces, iperf3 through the tunnel. The rounds are interleaved, so that a
busy machine slows down all rows alike. It prints the median of each row, and its ratio to the first
one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.processes import wait_until
from vtep.control import Client
from vtep.testing.lab import Host, Lab

_PYVTEP = str(Path(sys.executable).with_name("pyvtep"))

CAPTURES: dict[str, tuple[str, ...] | None] = {
    "no capture": None,
    "keeps nothing": ("-w", "/dev/null", "--mac", "02:00:00:00:00:99"),
    "filter matches nothing": ("-w", "/dev/null", "tcp", "port", "9"),
    "96 octets of each frame": ("-w", "{file}", "-s", "96"),
    "everything to a file": ("-w", "{file}"),
}
"""The arguments of `pyvtep capture` for each row."""

WORKLOADS: dict[str, tuple[str, ...]] = {
    "TCP, sent": (),
    "TCP, received": ("-R",),
    "UDP 512 octets, sent": ("-u", "-b", "0", "-l", "512"),
}


class Pair:
    """Two VTEPs with one segment; the first one is captured."""

    def __init__(self, stack: ExitStack, folder: Path, options: Sequence[str]) -> None:
        self.folder = folder
        lab = stack.enter_context(Lab())
        self.one, self.two = lab.host("one"), lab.host("two")
        lab.wire(self.one, self.two)
        hosts: tuple[tuple[Host, int, int], ...] = ((self.one, 1, 2), (self.two, 2, 1))
        for host, own, _ in hosts:
            host.run("ip", "addr", "add", f"192.0.2.{own}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
        for host, own, other in hosts:
            host.start(
                *(_PYVTEP, "--vni", "1", "--remote", f"192.0.2.{other}", "--tap", "vx0"),
                *("--address", f"10.0.0.{own}/24", "--control", str(self.socket(own)), *options),
                stderr=(folder / f"{own}.log").open("w"),
            )
        self.two.start("iperf3", "-s", stdout=subprocess.DEVNULL)
        wait_until(
            lambda: "0% packet" in self.one.run("ping", "-c1", "-W1", "10.0.0.2", check=False),
            "the tunnel",
            60.0,
        )
        if "--no-fast-path" not in options:
            wait_until(self._is_fast, "the fast path", 300.0)

    def socket(self, number: int) -> Path:
        """Return the control socket of a VTEP."""
        return self.folder / f"{number}.sock"

    def _is_fast(self) -> bool:
        with Client(self.socket(1)) as client:
            return bool(client.vni.show()[0]["fast_path"] in ("on", "off"))

    @contextmanager
    def captured(self, arguments: tuple[str, ...] | None) -> Iterator[dict[str, str]]:
        """Run a capture meanwhile. Yields: a mapping that has its summary afterwards."""
        found: dict[str, str] = {}
        if arguments is None:
            yield found
            return
        file = str(self.folder / "capture.pcapng")
        words = [word.format(file=file) for word in arguments]
        command = (_PYVTEP, "capture", "--socket", str(self.socket(1)), *words)
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            with Client(self.socket(1)) as client:
                wait_until(
                    lambda: (
                        "capture" in str(client.vni.show()[0]["fast_path_reason"])
                        or "--no-fast-path" in str(client.vni.show()[0]["fast_path_reason"])
                    ),
                    "the capture",
                )
            yield found
        finally:
            child.terminate()
            lines = child.communicate()[1].splitlines()
            found["summary"] = next((line for line in lines if " captured, " in line), "")

    def rate(self, workload: Sequence[str], seconds: float) -> float:
        """Return the rate of a workload in Mbit/s, as its receiver has measured it."""
        command = ("iperf3", "-J", "-c", "10.0.0.2", "-t", f"{seconds:g}", *workload)
        end: dict[str, Any] = json.loads(self.one.run(*command, timeout=seconds + 60))["end"]
        if "sum_received" in end:
            return float(end["sum_received"]["bits_per_second"]) / 1e6
        sum_ = end["sum"]
        return float(sum_["bits_per_second"] * (1 - sum_["lost_percent"] / 100) / 1e6)


def main() -> None:
    """Measure all rows, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-fast-path", action="store_true")
    given = parser.parse_args()
    options = ["--no-fast-path"] if given.no_fast_path else []
    rates: dict[tuple[str, str], list[float]] = {}
    summaries: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pair = Pair(stack, folder, options)
        for _ in range(given.rounds):
            for name, workload in WORKLOADS.items():
                for kind, arguments in CAPTURES.items():
                    with pair.captured(arguments) as found:
                        rate = pair.rate(workload, given.seconds)
                    rates.setdefault((name, kind), []).append(rate)
                    summaries[name, kind] = found.get("summary", "")
    for (name, kind), found_rates in rates.items():
        base = median(rates[name, next(iter(CAPTURES))])
        rate = median(found_rates)
        line = f"{name:22} {kind:24} {rate:8.0f} Mbit/s  {rate / base:5.2f}"
        print(f"{line}  {summaries[name, kind]}")


if __name__ == "__main__":
    main()
