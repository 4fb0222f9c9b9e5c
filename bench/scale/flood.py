"""One broadcast to a thousand remotes: by sendmmsg, and by one system call for each."""

import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from bench.processes import wait_until
from vtep.datapath.pool import Pool
from vtep.forwarding.fdb import Remote
from vtep.io import mmsg, replicator
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.replicator import Replicator
from vtep.io.sender_sockets import SenderSockets
from vtep.testing.lab import Host, Lab
from vtep.wire import vxlan

_BROADCASTS = 30
_FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x09" + b"\x88\xb5"
_PAYLOAD = 100
_IP_PKTINFO = 8
_SO_RCVBUFFORCE = 33
_BINDING = Binding(socket.AF_INET, None, None)


def measure(remotes: int) -> dict[str, float]:
    """Return the costs of a broadcast to `remotes` remotes, by the name of the figure."""
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.wire(a, b)
        a.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
        b.run("ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
        # All addresses of this prefix belong to host b.
        b.run("ip", "route", "add", "local", "10.1.0.0/16", "dev", "lo")
        a.run("ip", "route", "add", "10.1.0.0/16", "via", "192.0.2.2")
        hosts = [f"10.1.{number >> 8}.{number & 255}" for number in range(remotes)]
        figures = _alone(a, b, hosts)
        return figures | _through_pyvtep(a, b, hosts)


class Sink:
    """Counts the copies of each broadcast at each address."""

    def __init__(self, host: Host) -> None:
        self.copies: Counter[tuple[str, int]] = Counter()
        with host.inside():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 26)
        self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._socket.bind(("", vxlan.PORT))

    def drain(self) -> int:
        """Read and count the queued datagrams. Returns: the total number of copies so far."""
        while True:
            try:
                data, ancillary, _, _ = self._socket.recvmsg(2048, 256)
            except BlockingIOError:
                return self.copies.total()
            number = _number(data)
            if number is not None:
                ((_, _, info),) = ancillary
                self.copies[socket.inet_ntoa(info[8:12]), number] += 1

    def close(self) -> None:
        self._socket.close()


def _number(datagram: bytes) -> int | None:
    """Return the number of a broadcast, or None for other datagrams."""
    frame = datagram[vxlan.HEADER_LEN :]
    if not frame.startswith(_FRAME):
        return None
    return int(struct.unpack_from("!I", frame, len(_FRAME))[0])


def _frame(number: int) -> bytes:
    return _FRAME + struct.pack("!I", number) + bytes(_PAYLOAD)


@contextmanager
def _sink(host: Host) -> Iterator[Sink]:
    sink = Sink(host)
    try:
        yield sink
    finally:
        sink.close()


# --- the sending alone ------------------------------------------------------------------------


def _alone(a: Host, b: Host, hosts: list[str]) -> dict[str, float]:
    """Return the microseconds for each copy by both methods, and the calls of sendmmsg.

    They include the delivery to the other host, which a veth pair does in the context of the
    sender.
    """
    _allow(2 * len(hosts) + 256)
    remotes = [Remote(host, vxlan.PORT) for host in hosts]
    calls = 0
    sendmmsg: Any = mmsg.sendmmsg

    def counting(*arguments: int) -> Any:
        nonlocal calls
        calls += 1
        return sendmmsg(*arguments)

    figures = {}
    with a.inside(), _sink(b) as sink:
        flooder = Replicator([_BINDING], OuterHeaderOptions(), SenderSockets(), gso=True)
        recipients = flooder.prepare(remotes)
        pool = Pool()
        pool.remotes = len(remotes)
        paths = [
            pool.acquire_path(_BINDING, OuterHeaderOptions(), remote, gso=True)
            for remote in remotes
        ]

        def at_once(datagram: memoryview) -> None:
            skip = 0
            while True:
                sent = recipients.send(datagram, len(datagram), 0, skip)
                if sent.drops:
                    raise RuntimeError(f"lost: {sent.drops[0]}")
                if sent.octets:
                    return
                skip = sent.sent_to

        def path_by_path(datagram: memoryview) -> None:
            for path in paths:
                path.send(datagram, len(datagram), 0, time.monotonic())

        with patch.object(replicator, "sendmmsg", counting):
            for name, send in (("flood", at_once), ("flood_single", path_by_path)):
                figures[f"{name}_us"] = _sent(send, sink, len(hosts))
        flooder.close()
        for path in paths:
            pool.release_path(path)
    figures["flood_calls"] = calls / (_BROADCASTS + 1)
    figures["flood_ratio"] = figures["flood_us"] / figures["flood_single_us"]
    return figures


def _sent(send: Callable[[memoryview], None], sink: Sink, remotes: int) -> float:
    """Return the median CPU time for each copy in us; the first broadcast opens sockets."""
    sink.copies.clear()
    cpu = []
    for number in range(_BROADCASTS + 1):
        datagram = memoryview(vxlan.pack(1) + _frame(number))
        used = time.thread_time()
        send(datagram)
        cpu.append(time.thread_time() - used)
        wait_until(lambda: sink.drain() >= remotes * (number + 1), "all copies")  # noqa: B023
    _check(sink, remotes, _BROADCASTS + 1)
    return sorted(cpu[1:])[_BROADCASTS // 2] / remotes * 1e6


def _check(sink: Sink, remotes: int, broadcasts: int) -> None:
    """Assert that every remote has exactly one copy of each broadcast."""
    if len(sink.copies) != remotes * broadcasts or set(sink.copies.values()) != {1}:
        raise RuntimeError(f"not one copy each: {sink.copies.most_common(3)}")


def _allow(descriptors: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(descriptors, hard)), hard))


# --- all of pyvtep ----------------------------------------------------------------------------


def _through_pyvtep(a: Host, b: Host, hosts: list[str]) -> dict[str, float]:
    """Measure a running pyvtep, from the frame on its TAP to the last copy."""
    names = ", ".join(f'"{host}"' for host in hosts)
    with TemporaryDirectory() as folder, _sink(b) as sink:
        file, log = Path(folder) / "pyvtep.toml", Path(folder) / "log"
        file.write_text(f"remote = [{names}]\n[[vni]]\nid = 1\ntap = 'vx1'\n")
        with log.open("w") as said:
            pyvtep = a.start(
                *(sys.executable, "-m", "vtep", "--config", str(file), "--control", "none"),
                stderr=said,
            )
        wait_until(lambda: "UDP port" in log.read_text(), "pyvtep to be up")
        with a.inside():
            tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            tap.bind(("vx1", 0))
        schedstat = Path(f"/proc/{pyvtep.pid}/schedstat")
        cpu = []
        for number in range(_BROADCASTS + 1):
            before = int(schedstat.read_text().split()[0])
            tap.send(_frame(number))
            wait_until(lambda: sink.drain() >= len(hosts) * (number + 1), "all copies")  # noqa: B023
            cpu.append((int(schedstat.read_text().split()[0]) - before) / 1e3 / len(hosts))
        tap.close()
        _check(sink, len(hosts), _BROADCASTS + 1)
    return {"flood_pyvtep_us": sorted(cpu[1:])[_BROADCASTS // 2]}
