"""Traffic that notices everything: numbered datagrams both ways, a TCP stream, and a ping.

The senders and the receivers are processes in the namespaces of the guests, so that neither waits
for the other. A sender is paced by absolute time. If it was not scheduled for a while, it catches
up with small bursts, since a large one would overflow the queue of a TAP by itself.

    traffic = SteadyTraffic(a, b, "10.0.0.1", "10.0.0.2")
    ...                     # upgrade, kill, reload
    report = traffic.stop()
    assert report.lost == 0
"""

import json
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from attrs import define, field, frozen

from tests.netns.hosts import DEADLINE
from vtep.testing.lab import Host

_PORT = 7000
_TCP_PORT = 6999
_NUMBER = struct.Struct("!IQ")
"""The flow and the number of a datagram in it, from 0."""

_LEN: Final = 64
_BURST_MAX = 32
_PAUSE_S = 0.001
_SETTLED_S = 3.0
"""Seconds without a datagram after which the missing ones are lost."""

_SO_RCVBUFFORCE = 33
_SO_MAX_PACING_RATE = 47
_RECEIVE_BUFFER = 256 << 20
_TCP_RATE = 5_000_000
"""Octets a second of the TCP stream: it is to survive, and not to fill the queues."""


@frozen
class Report:
    """The fate of the traffic, over both directions."""

    sent: int
    lost: int
    duplicated: int
    reordered_by: int
    """The greatest distance by which a datagram arrived after a later one of its flow."""
    longest_gap_s: float
    """The longest time without any datagram, in one direction."""
    receiver_drops: int
    """Datagrams that the sockets of the receivers have dropped: those are no fault of the VTEPs."""
    tap_drops: int
    """Frames that were dropped in front of the descriptors of the TAPs."""
    tap_drops_by_host: tuple[int, int]
    """Those of each of the two hosts."""
    socket_drops: int
    """Datagrams that were dropped because a socket of the underlay was full."""
    tcp_octets: int
    """Octets that have arrived over the TCP stream, in order and undamaged."""
    tcp_alive: bool
    """True if the TCP connection carried octets until the end."""
    pings: int
    pings_lost: int


@define
class _Direction:
    sender: "subprocess.Popen[str]"
    receiver: "subprocess.Popen[str]"


class SteadyTraffic:
    """Traffic between two hosts, whose addresses are reached through the segment."""

    def __init__(
        self,
        a: Host,
        b: Host,
        address_a: str,
        address_b: str,
        *,
        rate: int = 10_000,
        flows: int = 8,
        taps: tuple[str, str] = ("vx0", "vx0"),
    ) -> None:
        self._hosts = a, b
        self._taps = taps
        self._before = self._queue_drops()
        self._directions = [
            _start_direction(source, sink, local, remote, rate, flows)
            for source, sink, local, remote in (
                (a, b, address_a, address_b),
                (b, a, address_b, address_a),
            )
        ]
        self._tcp_sink = _start(b, "tcp-sink", address_b)
        _read_line(self._tcp_sink)
        self._tcp_source = _start(a, "tcp-source", address_b)
        self._ping = a.start(
            *("ping", "-n", "-q", "-i", "0.02", address_b), stdout=subprocess.PIPE, text=True
        )
        for direction in self._directions:
            assert _read_line(direction.receiver) == "flowing"

    def stop(self) -> Report:
        """End all traffic, wait for what is on the way, and report."""
        self._ping.send_signal(signal.SIGINT)
        said = self._ping.communicate(timeout=DEADLINE)[0]
        counted = re.search(r"(\d+) packets transmitted, (\d+) received", said)
        assert counted is not None, said
        pings, answered = map(int, counted.groups())
        tcp = _ask(self._tcp_sink, "end")
        self._tcp_source.kill()
        self._tcp_source.wait()
        sent = lost = duplicated = reordered_by = receiver_drops = 0
        gap = 0.0
        for direction in self._directions:
            numbers = _ask(direction.sender, "stop")
            arrived = _ask(direction.receiver, json.dumps(numbers))
            sent += sum(numbers)
            lost += arrived["lost"]
            duplicated += arrived["duplicated"]
            receiver_drops += arrived["drops"]
            reordered_by = max(reordered_by, arrived["reordered_by"])
            gap = max(gap, arrived["gap"])
        drops = [
            now - before for now, before in zip(self._queue_drops(), self._before, strict=True)
        ]
        return Report(
            sent=sent,
            lost=lost,
            duplicated=duplicated,
            reordered_by=reordered_by,
            longest_gap_s=gap,
            receiver_drops=receiver_drops,
            tap_drops=drops[0] + drops[1],
            tap_drops_by_host=(drops[0], drops[1]),
            socket_drops=max(0, drops[2] - receiver_drops),
            tcp_octets=tcp["octets"],
            tcp_alive=tcp["alive"],
            pings=pings,
            # One may have been on the way at the end.
            pings_lost=max(0, pings - answered - 1),
        )

    def _queue_drops(self) -> tuple[int, int, int]:
        """Return the drops in front of each TAP, and those for want of room in UDP sockets."""
        taps: list[int] = []
        sockets = 0
        for host, tap in zip(self._hosts, self._taps, strict=True):
            link = json.loads(host.run("ip", "-j", "-s", "link", "show", "dev", tap))[0]
            taps.append(link["stats64"]["tx"]["dropped"])
            snmp = host.run("cat", "/proc/net/snmp", "/proc/net/snmp6")
            names, values = (line.split() for line in re.findall(r"^Udp: .*$", snmp, re.MULTILINE))
            sockets += int(values[names.index("RcvbufErrors")])
            over_v6 = re.search(r"^Udp6RcvbufErrors\s+(\d+)", snmp, re.MULTILINE)
            sockets += int(over_v6.group(1)) if over_v6 else 0
        return taps[0], taps[1], sockets


def _start(host: Host, *arguments: str) -> "subprocess.Popen[str]":
    return host.start(
        *(sys.executable, "-m", "tests.netns.steady_traffic", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _start_direction(
    source: Host, sink: Host, local: str, remote: str, rate: int, flows: int
) -> _Direction:
    receiver = _start(sink, "receive", remote, str(flows))
    assert _read_line(receiver) == "listening"
    return _Direction(_start(source, "send", local, remote, str(rate), str(flows)), receiver)


def _read_line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], 2 * DEADLINE)
    assert ready, f"{child.args!r}: no answer"
    return str(child.stdout.readline()).strip()


def _ask(child: "subprocess.Popen[str]", line: str) -> Any:
    """Send a line to a child, and return the JSON that it answers before it ends."""
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()
    answer = json.loads(_read_line(child))
    child.wait(DEADLINE)
    return answer


# --- in the namespaces ------------------------------------------------------------------------


def _has_input() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def _send(local: str, remote: str, rate: int, flows: int) -> None:
    """Send numbered datagrams until a line arrives, and print how many of each flow."""
    sockets = [socket.socket(_family(local), socket.SOCK_DGRAM) for _ in range(flows)]
    for number, sock in enumerate(sockets):
        sock.bind((local, _PORT + 1 + number))
        sock.connect((remote, _PORT))
    numbers = [0] * flows
    padding = bytes(_LEN - _NUMBER.size)
    began = time.monotonic()
    total, flow, due = 0, 0, 1
    while not _has_input():
        for _ in range(min(due - total, _BURST_MAX)):
            try:
                sockets[flow].send(_NUMBER.pack(flow, numbers[flow]) + padding)
            except OSError:  # It has not left this host: the same number is sent again.
                break
            numbers[flow] += 1
            total += 1
            flow = (flow + 1) % flows
        time.sleep(_PAUSE_S)
        due = int((time.monotonic() - began) * rate)
    print(json.dumps(numbers), flush=True)


@define
class _Flow:
    seen: bytearray = field(factory=bytearray)
    highest: int = -1
    duplicated: int = 0
    reordered_by: int = 0

    def note(self, number: int) -> None:
        if number >= len(self.seen):
            self.seen.extend(bytes(number + 4096 - len(self.seen)))
        if self.seen[number]:
            self.duplicated += 1
        self.seen[number] = 1
        self.reordered_by = max(self.reordered_by, self.highest - number)
        self.highest = max(self.highest, number)


def _receive(local: str, flows: int) -> None:
    """Receive datagrams; once a line has the number of each flow, print what is missing."""
    sock = socket.socket(_family(local), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    sock.bind((local, _PORT))
    sock.settimeout(0.05)
    print("listening", flush=True)
    found = [_Flow() for _ in range(flows)]
    gap, last, numbers = 0.0, 0.0, None
    while True:
        now = time.monotonic()
        if numbers is None and _has_input():
            numbers = json.loads(sys.stdin.readline())
        if numbers is not None:
            arrived = sum(sum(flow.seen) for flow in found)
            if arrived >= sum(numbers) or now > last + _SETTLED_S:
                break
        for flow, number in _read_some(sock):
            now = time.monotonic()
            if last:
                gap = max(gap, now - last)
            else:
                print("flowing", flush=True)
            last = now
            found[flow].note(number)
    result = {
        "lost": sum(
            number - sum(flow.seen[:number]) for number, flow in zip(numbers, found, strict=True)
        ),
        "duplicated": sum(flow.duplicated for flow in found),
        "reordered_by": max(flow.reordered_by for flow in found),
        "gap": gap,
        "drops": _drops_of(sock),
    }
    print(json.dumps(result), flush=True)


def _read_some(sock: socket.socket) -> Iterator[tuple[int, int]]:
    """Yield the datagrams that wait, at most some hundred; wait for the first one."""
    try:
        yield _NUMBER.unpack_from(sock.recv(_LEN))
        for _ in range(256):
            yield _NUMBER.unpack_from(sock.recv(_LEN, socket.MSG_DONTWAIT))
    except (TimeoutError, BlockingIOError):
        return


def _drops_of(sock: socket.socket) -> int:
    """Return the datagrams that a socket had no room for (struct sock's sk_drops)."""
    # The skmeminfo of SO_MEMINFO (55): its ninth word is SK_MEMINFO_DROPS.
    words = struct.unpack("9I", sock.getsockopt(socket.SOL_SOCKET, 55, 36))
    return int(words[8])


def _tcp_source(remote: str) -> None:
    """Send the same block over and over, at a moderate rate."""
    sock = socket.create_connection((remote, _TCP_PORT), timeout=DEADLINE)
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, _TCP_RATE)
    with suppress(ConnectionError):  # The sink ends first.
        while True:
            sock.sendall(_BLOCK)


def _tcp_sink(local: str) -> None:
    """Receive and check, until a line arrives; then check that octets still arrive, and report."""
    server = socket.create_server((local, _TCP_PORT), family=_family(local))
    print("listening", flush=True)
    connection, _ = server.accept()
    octets, alive, asked = 0, True, 0
    while True:
        connection.settimeout(DEADLINE if asked else 0.1)
        try:
            data = connection.recv(1 << 16)
        except TimeoutError:
            alive = not asked
        except OSError:
            alive = False
        else:
            at = octets % len(_BLOCK)
            alive = bool(data) and data == (_BLOCK * 2)[at : at + len(data)]
            octets += len(data)
        if not asked and _has_input():
            asked = octets + 1
            continue  # At least one octet has to arrive from now on.
        if not alive or 0 < asked <= octets:
            break
    print(json.dumps({"octets": octets, "alive": alive}), flush=True)


_BLOCK = bytes((7 * number + number // 251) % 256 for number in range(1 << 16))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _main(role: str, *arguments: str) -> None:
    if role == "send":
        local, remote, rate, flows = arguments
        _send(local, remote, int(rate), int(flows))
    elif role == "receive":
        local, flows = arguments
        _receive(local, int(flows))
    elif role == "tcp-source":
        _tcp_source(*arguments)
    else:
        _tcp_sink(*arguments)


if __name__ == "__main__":
    _main(*sys.argv[1:])
