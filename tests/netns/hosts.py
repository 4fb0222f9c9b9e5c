"""Hosts, VTEPs and packets for tests with real namespaces, TAP devices and sockets.

Each test makes its own namespaces, which vanish with it. Tests wait for an effect, with a deadline
that a busy machine meets, and never for a time.
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
from functools import partial
from pathlib import Path
from typing import Self

from click.testing import CliRunner

from vtep.cli.main import cli
from vtep.control import Client
from vtep.testing.lab import Host
from vtep.testing.lab import transfer as lab_transfer

DEADLINE = 30.0
"""Seconds to wait for an effect. Both processors of a test machine may be busy with other tests."""


def wait_until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Poll a condition until it holds. Fails after `deadline` seconds, naming `what` is awaited."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline:g} s in vain for: {what}"
        time.sleep(0.02)


class Pyvtep:
    """A `pyvtep` process on a host, with its log and its control socket."""

    uses_fast_path = False
    """Numba takes half a second of processor time to load, so most tests do without: the fixture
    `fast_path` is for those in which the data path matters."""

    def __init__(self, host: Host, folder: Path, *arguments: str, prefix: tuple[str, ...] = ()):
        self.host = host
        self._log = folder / f"pyvtep-{host.name}-{len(list(folder.iterdir()))}"
        self.control = self._log.with_suffix(".sock")
        if "--control" not in arguments:
            arguments = ("--control", str(self.control), *arguments)
        self._waits_for_fast_path = self.uses_fast_path
        if {"--fast-path", "--no-fast-path"} & {*arguments}:
            self._waits_for_fast_path = False  # The test is about it.
        elif not self.uses_fast_path and "--vni" in arguments:
            arguments += ("--no-fast-path",)
        with self._log.open("w") as log:
            self.process = host.start(
                *prefix, sys.executable, "-m", "vtep", *arguments, stderr=log, stdout=log
            )

    @property
    def log(self) -> str:
        """Everything that the process has written so far."""
        return self._log.read_text()

    def ready(self) -> Self:
        """Wait until the VTEP is up; fail at once if the process ends instead."""

        def up() -> bool:
            assert self.process.poll() is None, self.log
            log = self.log
            assert not (self._waits_for_fast_path and "fast path: off" in log), log
            return "UDP port" in log and (not self._waits_for_fast_path or "fast path: on" in log)

        # With twelve busy processes for each processor, an interpreter takes over 15 s to start.
        wait_until(up, "pyvtep to be up", 2 * DEADLINE)
        return self

    def report(self) -> str:
        """Request the report of SIGUSR1 and return it."""
        before = len(self.log)
        self.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: _is_complete(self.log[before:]), "a report")
        return self.log[before:]

    def client(self) -> Client:
        """Connect to the control socket."""
        return Client(self.control)

    def run(self, *words: str, code: int = 0) -> str:
        """Run a pyvtep command against this process.

        Returns: its output; where an exit code is expected, its one-line error message.
        """
        done = pyvtep(self.host, *words, "--socket", str(self.control))
        assert done.returncode == code, done.stderr
        if code:
            assert done.stdout == ""
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith("pyvtep: error: ")
            return done.stderr.removeprefix("pyvtep: error: ").strip()
        assert done.stderr == ""
        return done.stdout

    def invoke(self, words: str) -> str:
        """Run a pyvtep command within the test process, which saves the start of an interpreter.

        Returns: its output.
        """
        given = [*words.split(), "--socket", str(self.control)]
        done = CliRunner().invoke(cli, given, catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
        return done.output

    def counters(self) -> dict[str, int]:
        """Return all counters of the report."""
        report = self.report()
        return {
            name: int(n)
            for name, n in re.findall(r"^ +([a-z0-9_]+) +(\d+)\b", report, re.MULTILINE)
        }

    def unexpected_drops(self) -> int:
        """Return the number of drops other than by congestion or before the remote was up."""
        counters = self.counters()
        expected = ("underlay_refused", "tap_queue_full", "rx_queue_full", "rx_flow_limited")
        unexpected = counters["drops"] - sum(counters[reason] for reason in expected)
        if unexpected:
            print(self.report())  # pytest shows it if the test fails.
        return unexpected

    def counter(self, name: str) -> int:
        """Return one counter of the report."""
        return self.counters()[name]

    def client_counter(self, name: str) -> int:
        """Return the total of one counter, from the control socket: faster than the report."""
        with self.client() as client:
            total = client.stats()["total"]
        drop = name.removeprefix("drop_")
        return total["counters"][name] if drop == name else total["drops"][drop]

    def fdb(self) -> dict[str, str]:
        """Return the remote of each MAC address in the report."""
        return dict(re.findall(r"^ +([0-9a-f:]{17}) dst (\S+)", self.report(), re.MULTILINE))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the process to end. Returns: its exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the process to end. Returns: its exit code."""
        return self.process.wait(DEADLINE)


Pair = tuple[Host, Host]
Start = Callable[..., Pyvtep]
Tunnel = tuple[Pyvtep, Pyvtep]


def start_both(
    pair: Pair, start: Start, *options: str, prefix: str = "192.0.2."
) -> tuple[Pyvtep, Pyvtep]:
    """Start a VTEP on both hosts, with addresses of both families in the segment, and ping."""
    a, b = pair
    second = start(b, *segment(1, f"{prefix}1", "10.0.0.2/24", "fd00::2/64"), *options)
    first = start(a, *segment(1, f"{prefix}2", "10.0.0.1/24", "fd00::1/64"), *options)
    ping(a, "10.0.0.2")
    ping(b, "fd00::1")
    return first, second


def pyvtep(host: Host, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a pyvtep command on a host to its end."""
    with host.start(
        *(sys.executable, "-m", "vtep", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        out, err = child.communicate(timeout=4 * DEADLINE)
        return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def segment(vni: int, remote: str, *addresses: str) -> list[str]:
    """Build the arguments of pyvtep for one VNI with one remote and the TAP device vx0."""
    arguments = ["--vni", str(vni), "--remote", remote, "--tap", "vx0"]
    for own in addresses:
        arguments += ["--address", own]
    return arguments


def address(host: Host, device: str, *addresses: str) -> None:
    """Add addresses to a device."""
    for own in addresses:
        # Without duplicate address detection an IPv6 address can be used at once.
        host.run("ip", "addr", "add", own, "dev", device, *(["nodad"] if ":" in own else []))


def kernel_vtep(
    host: Host, vni: int, local: str, remote: str, *addresses: str, device: str = "vx0"
) -> None:
    """Create a VXLAN device of the kernel driver, configured as its users do."""
    host.run(
        *("ip", "link", "add", device, "type", "vxlan", "id", str(vni), "dev", "eth0"),
        *("local", local, "remote", remote, "dstport", "4789"),
    )
    address(host, device, *addresses)
    host.run("ip", "link", "set", device, "up")


def ping(host: Host, destination: str, *options: str, count: int = 3) -> None:
    """Send echo requests until `count` are answered. Fails after `DEADLINE` seconds."""
    # The first request may meet an IPv6 address that is still tentative.
    wait_until(
        lambda: "1 received" in host.run("ping", "-c1", "-W1", destination, check=False), "ping"
    )
    # Without a deadline (-w), ping waits for the last reply only for one interval, or twice the
    # longest RTT seen, which a busy machine exceeds. With one, it sends another request in place of
    # each that is not answered in time.
    said = host.run(
        *("ping", "-i", "0.03", "-c", str(count), "-w", f"{DEADLINE:.0f}", *options, destination),
        check=False,
    )
    received = re.search(r"(\d+) received", said)
    assert received, said
    assert int(received[1]) >= count, said


transfer = partial(lab_transfer, stall_timeout=DEADLINE)
"""Sends octets by TCP. Fails if none arrives for `DEADLINE` seconds: TCP may be backing off."""


def is_reachable(host: Host, destination: str) -> bool:
    """Send one ping. Returns: whether it was answered within a second; for `wait_until`."""
    return "1 received" in host.run("ping", "-c1", "-W1", destination, check=False)


def link_local_address(host: Host) -> str:
    """Return the link-local address of eth0, once duplicate address detection has ended."""

    def addresses(*which: str) -> list[str]:
        words = host.run("ip", "-6", "-o", "addr", "show", "dev", "eth0", *which).split()
        return [word.partition("/")[0] for word in words if word.startswith("fe80")]

    wait_until(lambda: addresses("-tentative"), "the end of duplicate address detection")
    return addresses()[0]


def mac_of(host: Host, device: str = "vx0") -> str:
    """Return the MAC address of a device."""
    found = re.search(r"link/ether (\S+)", host.run("ip", "link", "show", device))
    assert found
    return found[1]


def mtu_of(host: Host, device: str = "vx0") -> int:
    """Return the MTU of a device."""
    found = re.search(r"mtu (\d+)", host.run("ip", "link", "show", device))
    assert found
    return int(found[1])


def wait_for_mtu(host: Host, mtu: int, device: str = "vx0") -> None:
    """Wait until a device has an MTU."""
    wait_until(lambda: mtu_of(host, device) == mtu, f"{device} to have MTU {mtu}")


def has_device(host: Host, device: str = "vx0") -> bool:
    """Return whether a host has a device of this name."""
    return f"{device}:" in host.run("ip", "-o", "link")


ETH_P_ALL = 3
SO_RCVBUFFORCE = 33


def packet_socket(host: Host, device: str) -> socket.socket:
    """Open a raw Ethernet socket on a device of a host."""
    with host.inside():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    # A burst must not overflow this socket, or pyvtep would seem to have lost frames.
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    sock.bind((device, 0))
    sock.settimeout(DEADLINE)
    return sock


def udp_socket(host: Host, local: str, port: int = 0) -> socket.socket:
    """Open a UDP socket on a host, once its address can be used."""
    with host.inside():
        sock = socket.socket(socket.AF_INET6 if ":" in local else socket.AF_INET, socket.SOCK_DGRAM)

    def bound() -> bool:
        try:
            sock.bind((local, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:  # An IPv6 address that is still tentative.
                return False
            sock.close()
            raise
        return True

    wait_until(bound, f"{local} to be usable")
    sock.settimeout(DEADLINE)
    return sock


def _is_complete(report: str) -> bool:
    """Return whether all of a report has been written; it states how many entries follow."""
    found = re.search(r"fdb entries +(\d+)\n", report)
    return found is not None and report.count(" dst ") >= min(int(found[1]), 32)


class Arrivals:
    """Counts the copies of a frame that a device receives."""

    def __init__(self, host: Host, device: str = "vx0") -> None:
        self._socket = packet_socket(host, device)
        self._socket.setblocking(False)
        self._seen: list[bytes] = []

    def count(self, frame: bytes) -> int:
        """Return the number of copies of a frame that have been received so far."""
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
    """Capture the packets of a device in a pcap file, which is complete after the block."""
    pcap, log = folder / "capture.pcap", folder / "tcpdump"
    with log.open("w") as stderr:
        tcpdump = host.start(
            # A buffer of 64 MiB, since the kernel drops packets that tcpdump is too slow to read.
            *("tcpdump", "--immediate-mode", "-B", "65536", "-i", device, "-U", "-w", str(pcap)),
            stderr=stderr,
        )
    wait_until(lambda: "listening" in log.read_text(), "tcpdump")
    yield pcap
    tcpdump.send_signal(signal.SIGINT)
    assert tcpdump.wait(DEADLINE) == 0, log.read_text()


def tshark(pcap: Path, *arguments: str) -> list[str]:
    """Return the lines that tshark prints of a pcap file, with every checksum verified."""
    # TCP carries random octets here, in which tshark would find some protocol, with errors.
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
