"""Many VNIs in one process: time to start, change and stop, and their cost at rest."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from bench.processes import cpu_seconds, resident_memory
from vtep.testing.lab import Host, Lab


def measure(vnis: int, *, settle: float = 2.0, idle: float = 20.0) -> dict[str, float]:
    """Return the costs of `vnis` VNIs, by the name of the figure.

    The idle process is measured for `idle` seconds, `settle` seconds after its start.
    """
    with Lab() as lab, tempfile.TemporaryDirectory() as folder:
        host, other = lab.host("a"), lab.host("b")
        lab.wire(host, other)
        host.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
        # Otherwise the host solicits routers and neighbours on every TAP.
        host.run("sysctl", "-q", "net.ipv6.conf.default.disable_ipv6=1")
        return _Process(host, Path(folder), vnis).figures(settle, idle)


class _Process:
    """A `pyvtep --config` process with many VNIs, and two remotes that do not exist."""

    def __init__(self, host: Host, folder: Path, vnis: int) -> None:
        self._vnis = vnis
        self._file = folder / "pyvtep.toml"
        self._write(ageing=300)
        self._process = host.start(
            *(sys.executable, "-m", "vtep", "--config", str(self._file), "--control", "none"),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self._said: IO[str] = self._process.stderr

    def _write(self, ageing: int) -> None:
        """Write a file with all VNIs, and an ageing time for the first."""
        tables = "".join(f"[[vni]]\nid = {vni}\n" for vni in range(2, self._vnis + 1))
        self._file.write_text(
            f'remote = ["192.0.2.2", "192.0.2.3"]\n[[vni]]\nid = 1\nageing = {ageing}\n{tables}'
        )

    def figures(self, settle: float, idle: float) -> dict[str, float]:
        start, start_cpu = self._until(f"vni {self._vnis} on ")
        time.sleep(settle)
        before = cpu_seconds([self._process.pid])
        time.sleep(idle)
        load = (cpu_seconds([self._process.pid]) - before) / idle * 100
        _, memory = resident_memory(self._process.pid)
        self._write(ageing=299)
        self._process.send_signal(signal.SIGHUP)
        reload, reload_cpu = self._until("again: 1 changed")
        self._process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        self._until("ended")
        self._process.wait()
        stop = time.monotonic() - began
        return {
            "vnis_start": start,
            "vnis_start_cpu": start_cpu,
            "vnis_idle": load,
            "vnis_memory": memory,
            "vnis_reload": reload,
            "vnis_reload_cpu": reload_cpu,
            "vnis_stop": stop,
        }

    def _until(self, words: str) -> tuple[float, float]:
        """Wait for a log message. Returns: the seconds and CPU seconds until then."""
        began, used = time.monotonic(), cpu_seconds([self._process.pid])
        for line in self._said:
            if words in line:
                return time.monotonic() - began, cpu_seconds([self._process.pid]) - used
        raise RuntimeError(f"pyvtep ended before it said: {words}")
