"""The exporter, top and the web page beside a VTEP, each used as its users do.

`python -m bench.observers` runs them in the network namespace that it was started in: it scrapes
the exporter, draws top in a terminal of its own, and polls the page, until its standard input ends.
"""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bench.processes import cpu_seconds, wait_until, with_descendants
from vtep.errors import VtepError
from vtep.testing.lab import Host

_ROOT = Path(__file__).parents[1]

_SCRAPE_S = 5.0
"""Interval of the scrapes, which is short: Prometheus scrapes each minute by default."""

_PAGE_S = 1.0
_READY_S = 60.0

_METRICS = "http://127.0.0.1:9479/metrics"
_STATUS = "http://127.0.0.1:8479/api/status"

_ROWS, _COLUMNS = 24, 80


class Observers:
    """The observers of the VTEPs of some hosts."""

    def __init__(self, drivers: list["subprocess.Popen[str]"]) -> None:
        self._drivers = drivers

    def cpu_seconds(self) -> float:
        """Return the processor time of the observers, without the clients that use them."""
        own = {driver.pid for driver in self._drivers}
        return cpu_seconds(set(with_descendants(own)) - own)


@contextmanager
def attached(*hosts: Host) -> Iterator[Observers]:
    """Attach observers to the VTEP of each host, for as long as the block lasts.

    Raises: VtepError if one of them failed.
    """
    with ExitStack() as stack:
        drivers = []
        for host in hosts:
            driver = host.start(
                *("env", f"--chdir={_ROOT}", "TERM=xterm", sys.executable, "-m", "bench.observers"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(driver.kill)
            drivers.append(driver)
        for driver in drivers:
            if driver.stdout is None or driver.stdout.readline() != "ready\n":
                raise VtepError("an observer did not start")
        yield Observers(drivers)
        for driver in drivers:
            said, _ = driver.communicate(timeout=_READY_S)
            uses = json.loads(said or "{}")
            used = all(uses.get(name) for name in ("scrapes", "polls", "octets"))
            if driver.returncode or not used or uses["failures"]:
                raise VtepError(f"an observer has failed, or was not used: {uses}")


def main() -> None:
    """Run the observers, and print how often they were used."""
    uses = {"scrapes": 0, "polls": 0, "octets": 0, "failures": 0}
    ended = threading.Event()
    # They end with this process, in whatever way that ends.
    command = ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "vtep")
    with ExitStack() as stack:

        def launch(*words: str, **popen: object) -> None:
            child = subprocess.Popen([*command, *words], **popen)  # type: ignore[call-overload]
            stack.callback(child.wait)
            stack.callback(child.terminate)

        for words in (("exporter",), ("web",)):
            launch(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        terminal, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        launch("top", stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)

        def draw() -> None:
            with suppress(OSError):  # top has ended.
                while octets := os.read(terminal, 65536):
                    uses["octets"] += len(octets)

        def use(name: str, url: str, interval: float) -> None:
            while not ended.is_set():
                try:
                    _get(url)
                except OSError:
                    uses["failures"] += not ended.is_set()
                else:
                    uses[name] += 1
                ended.wait(interval)

        _start(draw)
        for url in (_METRICS, _STATUS):
            wait_until(lambda url=url: _answers(url), url, _READY_S)  # type: ignore[misc]
        wait_until(lambda: uses["octets"] > _ROWS * _COLUMNS, "the screen of top", _READY_S)
        _start(lambda: use("scrapes", _METRICS, _SCRAPE_S))
        _start(lambda: use("polls", _STATUS, _PAGE_S))
        print("ready", flush=True)
        sys.stdin.read()
        ended.set()
        print(json.dumps(uses))


def _start(function: Callable[[], None]) -> None:
    threading.Thread(target=function, daemon=True).start()


def _get(url: str) -> None:
    with urllib.request.urlopen(url, timeout=_READY_S) as answer:
        answer.read()


def _answers(url: str) -> bool:
    with suppress(OSError):
        _get(url)
        return True
    return False


if __name__ == "__main__":
    main()
