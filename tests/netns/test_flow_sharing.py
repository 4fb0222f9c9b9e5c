"""Fair sharing of the receive queue between real hosts: only a heavy flow loses frames."""

import re
import signal
import subprocess

import pytest

from tests.netns.hosts import (
    DEADLINE,
    Pair,
    Pyvtep,
    Start,
    mac_of,
    start_both,
    udp_socket,
    wait_until,
)
from tests.unit.craft import ether, ip, udp
from vtep.io import socket_constants as const
from vtep.testing.lab import Host
from vtep.wire import vxlan

pytestmark = pytest.mark.usefixtures("each_path")

BATCH = 60
"""Datagrams of one send, which the kernel passes on in one piece."""

WINDOW = 70_000
"""Datagrams that wait in the receive buffer: several times as many as one pass serves, and so few
that the kernel has room for others."""


class HeavyFlow:
    """Datagrams of a remote to a VTEP, of which a full window always waits to be received."""

    def __init__(self, source: Host, receiving: Pyvtep) -> None:
        # No host has the destination address, so nothing is answered.
        inner = ip(4, udp(sport=4000, dport=4001), src="10.0.0.9", dst="10.0.0.99")
        frame = ether(inner, src="02:00:00:00:00:09", dst=mac_of(receiving.host))
        datagram = vxlan.pack(1) + bytes(frame)
        self._batch = datagram * BATCH
        self._control = [(const.SOL_UDP, const.UDP_SEGMENT, len(datagram).to_bytes(2, "little"))]
        self._receiving = receiving
        self._before = accounted(receiving)
        self._socket = udp_socket(source, "192.0.2.1")
        self._socket.connect(("192.0.2.2", vxlan.PORT))
        self.sent = 0

    def fill_window(self) -> None:
        """Send as many datagrams as were delivered or dropped since the last call."""
        done = accounted(self._receiving) - self._before
        while self.sent < done + WINDOW:
            self._socket.sendmsg([self._batch], self._control)
            self.sent += BATCH

    def close(self) -> None:
        self._socket.close()


def accounted(receiving: Pyvtep) -> int:
    """Return the number of datagrams that were delivered or counted as dropped."""
    with receiving.client() as client:
        total = client.stats()["total"]
    drops = ("rx_flow_limited", "rx_queue_full", "tap_refused")
    return int(total["counters"]["rx_frames"]) + sum(int(total["drops"][each]) for each in drops)


def test_a_heavy_flow_costs_others_no_ping(pair: Pair, start: Start) -> None:
    sending, receiving = start_both(pair, start)
    before = sending.client_counter("tx_frames"), accounted(receiving)
    pings = sending.host.start(
        *("ping", "-n", "-q", "-i", "0.02", "10.0.0.2"), stdout=subprocess.PIPE, text=True
    )
    heavy = HeavyFlow(sending.host, receiving)

    def is_limited() -> bool:
        heavy.fill_window()
        return receiving.client_counter("drop_rx_flow_limited") > WINDOW

    try:
        wait_until(is_limited, "the heavy flow to be limited")
        # No ping waits any more.
        wait_until(lambda: accounted(receiving) >= before[1] + heavy.sent, "an empty queue")
        pings.send_signal(signal.SIGINT)
        said = pings.communicate(timeout=DEADLINE)[0]
    finally:
        heavy.close()
        pings.kill()
    counted = re.search(r"(\d+) packets transmitted, (\d+) received", said)
    assert counted is not None, said
    transmitted, received = map(int, counted.groups())
    # One may have been on the way at the end.
    assert transmitted - received <= 1 + transmitted // 50, said

    def sent() -> int:
        return sending.client_counter("tx_frames") - before[0] + heavy.sent

    wait_until(
        lambda: accounted(receiving) - before[1] == sent(),
        "each datagram that was sent to be delivered or counted as dropped",
    )
