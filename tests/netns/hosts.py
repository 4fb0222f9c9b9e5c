"""Hosts, VTEPs and packets for tests on real parts.

Each test makes its own namespaces, which vanish with it. What takes time is waited for by its
effect, never by a sleep of a guessed length.
"""

import errno
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from click.testing import CliRunner

from vtep.cli.main import cli
from vtep.control import Client
from vtep.testing.lab import Host

DEADLINE = 15.0


def wait_until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline:g} s in vain for: {what}"
        time.sleep(0.02)


class Pyvtep:
    """A `pyvtep` process on a host, its report, and its end."""

    def __init__(self, host: Host, folder: Path, *arguments: str, prefix: tuple[str, ...] = ()):
        self.host = host
        self._log = folder / f"pyvtep-{host.name}-{len(list(folder.iterdir()))}"
        self.control = self._log.with_suffix(".sock")
        if "--control" not in arguments:
            arguments = ("--control", str(self.control), *arguments)
        with self._log.open("w") as log:
            self.process = host.start(
                *prefix, sys.executable, "-m", "vtep", *arguments, stderr=log, stdout=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> Self:
        def up() -> bool:
            assert self.process.poll() is None, self.log
            return "UDP port" in self.log

        wait_until(up, "pyvtep to be up")
        return self

    def report(self) -> str:
        before = len(self.log)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: _whole(self.log[before:]), "a report")
        return self.log[before:]

    def client(self) -> Client:
        return Client(self.control)

    def ask(self, *words: str, code: int = 0) -> str:
        """What a command makes it say; where the command is to end with a code, why it does."""
        done = pyvtep(self.host, *words, "--socket", str(self.control))
        assert done.returncode == code, done.stderr
        if code:
            assert done.stdout == ""
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith("pyvtep: error: ")
            return done.stderr.removeprefix("pyvtep: error: ").strip()
        assert done.stderr == ""
        return done.stdout

    def told(self, words: str) -> str:
        """What a command says, run in this process, which saves its start."""
        given = [*words.split(), "--socket", str(self.control)]
        done = CliRunner().invoke(cli, given, catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
        return done.output

    def counters(self) -> dict[str, int]:
        report = self.report()
        return {
            name: int(n)
            for name, n in re.findall(r"^ +([a-z0-9_]+) +(\d+)\b", report, re.MULTILINE)
        }

    def faults(self) -> int:
        """Frames lost in other ways than by congestion, and after the other end was up."""
        counters = self.counters()
        expected = ("underlay_refused", "tap_queue_full", "rx_queue_full")
        return counters["drops"] - sum(counters[reason] for reason in expected)

    def counter(self, name: str) -> int:
        return self.counters()[name]

    def fdb(self) -> dict[str, str]:
        """Remote by MAC."""
        return dict(re.findall(r"^ +([0-9a-f:]{17}) dst (\S+)", self.report(), re.MULTILINE))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for it to end; its exit code."""
        return self.process.wait(DEADLINE)


def pyvtep(host: Host, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of pyvtep on a host, to its end."""
    with host.start(
        *(sys.executable, "-m", "vtep", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        out, err = child.communicate(timeout=DEADLINE)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def segment(vni: int, remote: str, *addresses: str) -> list[str]:
    """Arguments of pyvtep."""
    arguments = ["--vni", str(vni), "--remote", remote, "--tap", "vx0"]
    for own in addresses:
        arguments += ["--address", own]
    return arguments


def address(host: Host, device: str, *addresses: str) -> None:
    for own in addresses:
        # Without duplicate address detection an IPv6 address is of use at once.
        host.run("ip", "addr", "add", own, "dev", device, *(["nodad"] if ":" in own else []))


def kernel_vtep(
    host: Host, vni: int, local: str, remote: str, *addresses: str, device: str = "vx0"
) -> None:
    """The kernel's own driver, configured as its users do."""
    host.run(
        *("ip", "link", "add", device, "type", "vxlan", "id", str(vni), "dev", "eth0"),
        *("local", local, "remote", remote, "dstport", "4789"),
    )
    address(host, device, *addresses)
    host.run("ip", "link", "set", device, "up")


def ping(host: Host, destination: str, *options: str, count: int = 3) -> None:
    """Every one of `count` requests is answered."""
    # The first request of a test may meet an IPv6 address that is still being checked for.
    wait_until(
        lambda: "1 received" in host.run("ping", "-c1", "-W1", destination, check=False), "ping"
    )
    # Without a deadline, ping waits for the last answer only as long as between two requests, or
    # twice the longest RTT seen, which a busy machine exceeds. With one, it sends another request
    # in place of each that is not answered in time.
    said = host.run(
        *("ping", "-i", "0.03", "-c", str(count), "-w", f"{DEADLINE:.0f}", *options, destination),
        check=False,
    )
    received = re.search(r"(\d+) received", said)
    assert received, said
    assert int(received[1]) >= count, said


def mac_of(host: Host, device: str = "vx0") -> str:
    found = re.search(r"link/ether (\S+)", host.run("ip", "link", "show", device))
    assert found
    return found[1]


def mtu_of(host: Host, device: str = "vx0") -> int:
    found = re.search(r"mtu (\d+)", host.run("ip", "link", "show", device))
    assert found
    return int(found[1])


def becomes_mtu(host: Host, mtu: int, device: str = "vx0") -> None:
    wait_until(lambda: mtu_of(host, device) == mtu, f"{device} to have MTU {mtu}")


def has_device(host: Host, device: str = "vx0") -> bool:
    return f"{device}:" in host.run("ip", "-o", "link")


ETH_P_ALL = 3
SO_RCVBUFFORCE = 33


def packet_socket(host: Host, device: str) -> socket.socket:
    """A raw Ethernet socket on a device of a host."""
    with host.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # What arrives in a burst must not be lost here: it would look as if it had been before.
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    sock.bind((device, 0))
    sock.settimeout(DEADLINE)
    return sock


def udp_socket(host: Host, local: str, port: int = 0) -> socket.socket:
    with host.inside():
        sock = socket.socket(socket.AF_INET6 if ":" in local else socket.AF_INET, socket.SOCK_DGRAM)

    def bound() -> bool:
        try:
            sock.bind((local, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:  # An IPv6 address is still being checked for.
                return False
            sock.close()
            raise
        return True

    wait_until(bound, f"{local} to be of use")
    sock.settimeout(DEADLINE)
    return sock


def _whole(report: str) -> bool:
    """Whether a report is written to its end: it says itself how many entries follow."""
    found = re.search(r"fdb entries +(\d+)\n", report)
    return found is not None and report.count(" dst ") >= min(int(found[1]), 32)


class Arrivals:
    """Counts the copies of marked frames that come out of a device."""

    def __init__(self, host: Host, device: str = "vx0") -> None:
        self._socket = packet_socket(host, device)
        self._socket.setblocking(False)
        self._seen: list[bytes] = []

    def of(self, frame: bytes) -> int:
        while True:
            try:
                data, where = self._socket.recvfrom(65536)
            except BlockingIOError:
                return self._seen.count(frame)
            if where[2] != socket.PACKET_OUTGOING:
                self._seen.append(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


@contextmanager
def capture(host: Host, folder: Path, device: str = "eth0") -> Iterator[Path]:
    """What crosses a device meanwhile, as a pcap file that is whole when the block has ended."""
    pcap, log = folder / "capture.pcap", folder / "tcpdump"
    with log.open("w") as stderr:
        tcpdump = host.start(
            "tcpdump", "--immediate-mode", "-i", device, "-U", "-w", str(pcap), stderr=stderr
        )
    wait_until(lambda: "listening" in log.read_text(), "tcpdump")
    yield pcap
    tcpdump.send_signal(signal.SIGINT)
    assert tcpdump.wait(DEADLINE) == 0, log.read_text()


def tshark(pcap: Path, *arguments: str) -> list[str]:
    """Lines that tshark prints of a pcap file, with every checksum verified."""
    # What TCP carries is random here, and some protocol would be found in it, with errors.
    no_guess = ("-d", "tcp.port==1-65535,data")
    verify = [f"-o{protocol}.check_checksum:TRUE" for protocol in ("ip", "udp", "tcp")]
    done = subprocess.run(
        ["tshark", "-r", str(pcap), *no_guess, *verify, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
