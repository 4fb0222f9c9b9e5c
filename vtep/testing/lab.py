"""Hosts on one machine: network namespaces joined by veth pairs, for demos, tests and benchmarks.

No namespace and no command outlives the process that created it, even if that is killed. A child
process whose standard input is a pipe holds the namespace, and ends when the pipe is closed. The
commands inside are killed with their parent.
"""

import errno
import hashlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from pyroute2.netns import setns

from vtep.errors import VtepError

_DEADLINE_S = 10.0
"""Seconds after which an operation that takes milliseconds is considered stuck."""


_BLOCK = 1 << 20


class Host:
    """A network namespace with its loopback device up, and the commands that run in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        need("unshare", "nsenter", "setpriv", "ip")
        # cat echoes a line once it runs in the namespace, and ends when this process does.
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._children: list[subprocess.Popen[Any]] = []
        if not _echoes(self._holder):
            self.close()
            raise VtepError("no privilege to make a network namespace: run as root")
        self.pid = str(self._holder.pid)
        """The ID of a process in the namespace, by which `ip link` refers to the namespace."""
        self.namespace = Path(f"/proc/{self.pid}/ns/net")
        self.run("ip", "link", "set", "lo", "up")

    def _argv(self, command: tuple[str, ...]) -> list[str]:
        enter = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.namespace}", "--"]
        return [*enter, *command]

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> str:
        """Run a command to its end, and return its standard output.

        Raises: VtepError, with the command's message, if it fails and `check` is set.
        """
        done = subprocess.run(
            self._argv(command), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise VtepError(
                f"{self.name}# {' '.join(command)}: exit code {done.returncode}: {said}"
            )
        return done.stdout

    def start(self, *command: str, **popen: Any) -> "subprocess.Popen[Any]":
        """Start a command, which is terminated when this host is closed."""
        child = subprocess.Popen(self._argv(command), **popen)
        self._children.append(child)
        return child

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Move the calling thread into the namespace. Sockets opened there stay there."""
        with Path("/proc/thread-self/ns/net").open() as before, self.namespace.open() as here:
            setns(here.fileno())
            try:
                yield
            finally:
                setns(before.fileno())

    def close(self) -> None:
        """Terminate all commands. The namespace and its devices vanish with the last process."""
        for child in (*reversed(self._children), self._holder):
            _end(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Lab(ExitStack):
    """Hosts that are closed together."""

    def host(self, name: str) -> Host:
        """Add a host."""
        return self.enter_context(Host(name))

    def wire(self, left: Host, right: Host, device: str = "eth0", mtu: int = 1500) -> None:
        """Connect two hosts by a veth pair. Both ends are named `device`, and set up."""
        left.run(
            *("ip", "link", "add", device, "mtu", str(mtu), "type", "veth"),
            *("peer", "name", device, "mtu", str(mtu), "netns", right.pid),
        )
        for end in (left, right):
            end.run("ip", "link", "set", device, "up")


def transfer(
    source: Host,
    sink: Host,
    address: str,
    octets: int,
    progress: Callable[[int], object] = lambda _: None,
    *,
    stall_timeout: float = _DEADLINE_S,
) -> float:
    """Send random octets over TCP to an address of `sink`.

    Args:
        source: the host that sends.
        sink: the host that receives.
        address: an address of `sink`.
        octets: how many octets to send.
        progress: called with the number of octets that have arrived.
        stall_timeout: seconds without an arriving octet after which the transfer has failed.

    Returns: the seconds that it took.
    Raises: VtepError if octets are missing or damaged, according to their SHA-256.
    """
    block = os.urandom(min(octets, _BLOCK))
    payload = memoryview((block * -(-octets // len(block)))[:octets])
    received = memoryview(bytearray(octets))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = _listen(sink, address, family)
    with source.inside():
        client = socket.socket(family)
    with listener, client:
        client.settimeout(stall_timeout)
        listener.settimeout(_DEADLINE_S)
        try:
            client.connect(listener.getsockname())
            connection, _ = listener.accept()
            sender = threading.Thread(target=_send_all, args=(client, payload), daemon=True)
            began = time.monotonic()
            sender.start()
            at = 0
            with connection:
                connection.settimeout(stall_timeout)
                while at < octets and (got := connection.recv_into(received[at:])):
                    at += got
                    progress(at)
            seconds = time.monotonic() - began
            sender.join()
        except TimeoutError as error:
            raise VtepError(f"TCP from {source.name} to {sink.name} {address} stalled") from error
    if hashlib.sha256(payload).digest() != hashlib.sha256(received).digest():
        raise VtepError(f"TCP from {source.name} to {sink.name} {address} arrived damaged")
    return seconds


def _listen(sink: Host, address: str, family: socket.AddressFamily) -> socket.socket:
    """Listen for TCP connections to an address of `sink`. Raises: VtepError."""
    end = time.monotonic() + _DEADLINE_S
    with sink.inside():
        while True:
            try:
                return socket.create_server((address, 0), family=family)
            except OSError as error:
                # An IPv6 address is tentative for a second or two (RFC 4862, section 5.4).
                if error.errno != errno.EADDRNOTAVAIL or time.monotonic() >= end:
                    raise VtepError(
                        f"{sink.name} cannot listen on {address}: {error.strerror}"
                    ) from error
                time.sleep(0.02)


def _send_all(client: socket.socket, payload: memoryview) -> None:
    # If this fails, the receiver reports missing octets or a timeout.
    with suppress(OSError):
        client.sendall(payload)


def need(*commands: str) -> None:
    """Raise VtepError, with the Debian package, if one of these commands is not installed."""
    for command in commands:
        if shutil.which(command) is None:
            raise VtepError(f"{command} is not installed: apt-get install {_PACKAGES[command]}")


_PACKAGES = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "tcpdump": "tcpdump",
    "unshare": "util-linux",
}


def _echoes(holder: "subprocess.Popen[bytes]") -> bool:
    """Send a line to a child, and return whether it comes back."""
    if holder.stdin is None or holder.stdout is None:
        return False
    try:
        holder.stdin.write(b"\n")
        holder.stdin.flush()
    except BrokenPipeError:
        return False
    return holder.stdout.readline() == b"\n"


def _end(child: "subprocess.Popen[Any]") -> None:
    """Terminate a child: close its input, send SIGTERM, and at last SIGKILL."""
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            stream.close()
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(_DEADLINE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
