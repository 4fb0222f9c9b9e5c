"""Many VNIs in one process: how long they take to come, to change and to go, and what they cost.

`scripts/bench many [VNIS]`, of which 1000 is the default.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from bench.processes import cpu_seconds, peak_memory
from vtep.lab import Host, Lab

_IDLE = 10.0
"""Seconds over which an idle process is watched."""


class _Process:
    """A `pyvtep --config` on a host, with so many VNIs to two remotes that are not there."""

    def __init__(self, host: Host, folder: Path, vnis: int) -> None:
        self._vnis = vnis
        self._file = folder / "pyvtep.toml"
        self._write(changed=0)
        began = time.monotonic()
        self._process = host.start(
            *(sys.executable, "-m", "vtep", "--config", str(self._file), "--control", "none"),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self._said: IO[str] = self._process.stderr
        self._until(f"vni {vnis - 1} on ")
        self.start = time.monotonic() - began

    def _write(self, *, changed: int) -> None:
        tables = [f"[[vni]]\nid = {vni}\n" for vni in range(self._vnis)]
        tables += [f"[[vni]]\nid = {self._vnis + number}\n" for number in range(changed)]
        self._file.write_text('remote = ["192.0.2.2", "192.0.2.3"]\n' + "".join(tables))

    def _until(self, words: str) -> None:
        for line in self._said:
            if words in line:
                return
        raise SystemExit(f"pyvtep ended before it said: {words}")

    def idle(self) -> float:
        """The share of one CPU, in percent, that it uses when there is nothing to forward."""
        before = cpu_seconds([self._process.pid])
        time.sleep(_IDLE)
        return 100 * (cpu_seconds([self._process.pid]) - before) / _IDLE

    def memory(self) -> float:
        """The most MiB that were ever resident."""
        return peak_memory(self._process.pid)

    def one_more(self) -> float:
        """Seconds that reading the file again takes when it has one more VNI."""
        self._write(changed=1)
        began = time.monotonic()
        self._process.send_signal(signal.SIGHUP)
        self._until("again: 1 added")
        return time.monotonic() - began

    def stop(self) -> float:
        """Seconds that the end takes."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._until("ended")
        self._process.wait()
        return time.monotonic() - began


def main() -> None:
    """Measure one and many, and print both."""
    vnis = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print(
        f"{'VNIs':>6} {'start s':>9} {'idle CPU %':>11} {'MiB':>6} {'one more s':>11} {'end s':>7}"
    )
    for count in (1, vnis):
        with Lab() as lab, tempfile.TemporaryDirectory() as folder:
            host, other = lab.host("a"), lab.host("b")
            lab.wire(host, other)
            host.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
            # Otherwise the host looks for routers and neighbours on every TAP.
            host.run("sysctl", "-q", "net.ipv6.conf.default.disable_ipv6=1")
            process = _Process(host, Path(folder), count)
            idle, memory = process.idle(), process.memory()
            more, end = process.one_more(), process.stop()
        print(
            f"{count:>6} {process.start:>9.2f} {idle:>11.2f} {memory:>6.0f} {more:>11.2f} "
            f"{end:>7.2f}"
        )


if __name__ == "__main__":
    main()
