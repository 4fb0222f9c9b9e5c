"""Numbered frames, whose fate is known exactly, for tests that inject faults."""

import random
import re
import select
import socket
import threading
from collections import Counter
from contextlib import suppress
from typing import Self

from tests.netns.hosts import SO_RCVBUFFORCE, Pyvtep, mac_of, packet_socket, udp_socket, wait_until
from vtep.testing.lab import Host

# EtherType 0x88b5 is for local experiments (IEEE 802): no host answers such frames.
_TYPE = b"\x88\xb5"
_MARK = b"numbered"


class Numbered:
    """Sends numbered frames into one TAP, and counts those that leave another one."""

    def __init__(
        self, vtep: Pyvtep, sink: Host, *, octets: int = 100, flood: bool = False, tap: str = "vx0"
    ) -> None:
        self._vtep = vtep
        destination = "ffffffffffff" if flood else mac_of(sink, tap).replace(":", "")
        source = mac_of(vtep.host, tap).replace(":", "")
        self._head = bytes.fromhex(destination + source) + _TYPE + _MARK
        self._padding = bytes(octets)
        self._source, self._sink = packet_socket(vtep.host, tap), packet_socket(sink, tap)
        self._sink.setblocking(False)
        self.sent = 0
        self.arrived: list[int] = []

    def send(self, count: int) -> None:
        """Send frames, and wait until the VTEP has read them: the queue of its TAP never fills."""
        while count:
            burst = min(count, 200)
            before = self._read_by_vtep()
            self.put(burst)
            count -= burst
            wait_until(lambda: self._read_by_vtep() - before >= burst, "the frames to be read")  # noqa: B023  it is called here

    def put(self, count: int) -> None:
        """Put frames into the queue of the TAP, which holds 1,000, even if the VTEP is stopped."""
        for _ in range(count):
            # ENOBUFS: the queue is full, and the kernel has counted the frame as dropped.
            with suppress(OSError):
                self._source.send(self._head + self.sent.to_bytes(4, "big") + self._padding)
            self.sent += 1

    def _read_by_vtep(self) -> int:
        # Each of them is counted as sent, even if all its datagrams are dropped then.
        return self._vtep.client_counter("tx_frames")

    def received(self) -> list[int]:
        """Return the numbers that have arrived so far, in their order."""
        at = len(self._head)
        with suppress(BlockingIOError):
            while True:
                data, where = self._sink.recvfrom(65536)
                if where[2] != socket.PACKET_OUTGOING and data.startswith(self._head):
                    self.arrived.append(int.from_bytes(data[at : at + 4], "big"))
        return self.arrived

    def expect(self, count: int) -> None:
        """Wait until so many have arrived."""
        wait_until(lambda: len(self.received()) >= count, f"{count} of {self.sent} frames")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()
        self._sink.close()


class Relay:
    """A middlebox between two underlays that loses, repeats and reorders datagrams, by chance.

    It forwards between UDP port 4789 of two addresses of its host, to the peer of each.
    """

    def __init__(self, host: Host, sides: dict[str, str], *, seed: int) -> None:
        self._sockets = {udp_socket(host, own, 4789): peer for own, peer in sides.items()}
        for sock in self._sockets:
            # It must not lose any that it does not count.
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self._random = random.Random(seed)
        self._stopping, self._wake = socket.socketpair()
        self.counts: Counter[str] = Counter()
        """The numbered frames that were lost, duplicated and delayed."""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        one, two = self._sockets
        others = {one: two, two: one}
        delayed: dict[socket.socket, bytes] = {}
        while True:
            for ready in select.select([one, two, self._stopping], [], [])[0]:
                if ready is self._stopping:
                    return
                data = ready.recv(65536)
                for datagram in self._fate(data, ready, delayed):
                    # A receiver that restarts answers with an ICMP error.
                    with suppress(ConnectionRefusedError):
                        others[ready].sendto(datagram, (self._sockets[others[ready]], 4789))

    def _fate(
        self, data: bytes, side: socket.socket, delayed: dict[socket.socket, bytes]
    ) -> list[bytes]:
        chance = self._random.random()
        numbered = _MARK in data[:64]
        if chance < 0.01:
            self.counts["lost"] += numbered
            return []
        if chance < 0.02:
            self.counts["duplicated"] += numbered
            return [data, data]
        if chance < 0.05 and side not in delayed:
            self.counts["delayed"] += numbered
            delayed[side] = data
            return []
        # A delayed datagram follows the next one.
        return [data, *([delayed.pop(side)] if side in delayed else [])]

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for sock in (*self._sockets, self._stopping, self._wake):
            sock.close()


def udp_drops(host: Host, name: str) -> int:
    """Return a UDP counter of a network namespace, such as NoPorts or RcvbufErrors."""
    lines = re.findall(r"^Udp: (.*)$", host.run("cat", "/proc/net/snmp"), re.MULTILINE)
    names, values = (line.split() for line in lines)
    return int(values[names.index(name)])
