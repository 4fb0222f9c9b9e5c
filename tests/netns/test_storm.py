"""Storm control between real hosts: a storm is dropped by its limit, and other frames pass."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.hosts import Pair, Start, mac_of, packet_socket, ping, segment, wait_until
from vtep.testing.lab import Host

pytestmark = pytest.mark.usefixtures("each_path")


@contextmanager
def storm(host: Host) -> Iterator[None]:
    """Broadcast from a host as fast as possible."""
    frame = b"\xff" * 6 + bytes.fromhex(mac_of(host).replace(":", "")) + b"\x88\xb5" + bytes(50)
    stop = threading.Event()
    with packet_socket(host, "vx0") as sock:

        def send() -> None:
            while not stop.is_set():
                sock.send(frame)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            stop.set()
            sender.join()


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_a_storm_is_dropped_and_pings_are_answered(
    pair: Pair, start: Start, direction: str
) -> None:
    a, b = pair
    limit = ("--storm-broadcast", "50:100")
    sending = start(
        a, *segment(1, "192.0.2.2", "10.0.0.1/24"), *(limit if direction == "tx" else ())
    )
    receiving = start(
        b, *segment(1, "192.0.2.1", "10.0.0.2/24"), *(limit if direction == "rx" else ())
    )
    ping(a, "10.0.0.2")
    limited, reason = (
        (sending, "storm_broadcast_tx") if direction == "tx" else (receiving, "storm_broadcast_rx")
    )
    with storm(a):
        wait_until(lambda: limited.counter(reason) > 5000, "5000 frames to be dropped")
        ping(b, "10.0.0.1")
    source = mac_of(a) if direction == "tx" else "192.0.2.1"
    wait_until(lambda: f"x {reason}" in limited.log, "a line in the log")
    assert any(source in line for line in limited.log.splitlines() if reason in line)
    # At run time, and for all frames that follow.
    limited.invoke("set --storm-broadcast off")
    before = limited.counter(reason)
    received = receiving.counter("rx_frames")
    with storm(a):
        wait_until(lambda: receiving.counter("rx_frames") > received + 2000, "an unlimited storm")
    assert limited.counter(reason) == before
