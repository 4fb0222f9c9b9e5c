"""Storm control between real hosts: a storm is dropped by its limit, and other frames pass."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.netns.hosts import Pair, Start, mac_of, packet_socket, ping, segment, wait_until
from vtep.control import Client
from vtep.control.schema import MonitorEvent, StormEntry
from vtep.testing.lab import Host

pytestmark = pytest.mark.usefixtures("each_path")


@contextmanager
def storm(host: Host, device: str = "vx0") -> Iterator[None]:
    """Broadcast from a device of a host as fast as possible."""
    source = bytes.fromhex(mac_of(host, device).replace(":", ""))
    frame = b"\xff" * 6 + source + b"\x88\xb5" + bytes(50)
    stop = threading.Event()
    with packet_socket(host, device) as sock:

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
    remote = None if direction == "tx" else "192.0.2.1"

    def storms(client: Client) -> list[StormEntry]:
        return [each for each in client.storm.show() if each["state"] == "dropping"]

    with limited.client() as watcher, limited.client() as client:
        events = watcher.monitor()
        with storm(a):
            wait_until(lambda: limited.counter(reason) > 5000, "5000 frames to be dropped")
            ping(b, "10.0.0.1")
            wait_until(lambda: storms(client), "the storm to be noticed")
            (found,) = storms(client)
            assert (found["traffic"], found["direction"]) == ("broadcast", direction)
            assert (found["remote"], found["rate"], found["burst"]) == (remote, 50, 100)
        wait_until(lambda: not storms(client), "the end of the storm")
        told: list[MonitorEvent] = []
        while not told or told[-1]["event"] != "ended":
            told.append(next(event for event in events if event["object"] == "storm"))
        assert [each["event"] for each in told] == ["began", "ended"]
        assert {each["remote"] for each in told} == {remote}
        assert told[-1]["dropped"] == client.stats()["total"]["drops"][reason]
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
