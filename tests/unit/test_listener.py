"""Listeners on a host in memory: sockets that come and go, groups, filters, and kernel drops."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from typing import Any

import pytest

from tests.unit.nodes import IP_A, IP_B, IP_C, Node, frame, segment, until
from vtep.counters import Drop
from vtep.daemon.listener import Endpoint, Listener
from vtep.io.binding import Binding
from vtep.io.inherited import Inherited
from vtep.io.interfaces import Receiver
from vtep.testing import MemoryUnderlay
from vtep.testing.memory_network import MemoryNetwork
from vtep.testing.underlay import MemoryHost
from vtep.wire import vxlan

ALL = b"\xff" * 6
A, B = (bytes((2, 0, 0, 0, 1, number)) for number in range(2))
GROUP, OTHER = "239.1.1.1", "239.1.1.2"


@pytest.fixture
def underlay() -> Iterator[MemoryUnderlay]:
    with closing(MemoryUnderlay()) as network:
        yield network


def listener(host: MemoryHost, network: MemoryNetwork, **options: Any) -> Listener:
    """Return the only listener of a host."""
    endpoint, made = Endpoint.of(segment(**options), 4), list[Listener]()

    def on_port(other: Endpoint) -> list[Receiver]:
        return [receiver for each in made for receiver in each.receivers_on_port(other)]

    made.append(Listener(endpoint, on_port, lambda *_: None, network, host, Inherited()))
    return made[0]


def datagram(host: MemoryHost, payload: bytes, destination: str) -> None:
    """Send a datagram from a host without a VTEP."""
    binding = Binding(socket.AF_INET, None, None)
    with closing(host.open_receiver(binding, 5000, gro=False)) as receiver:
        receiver.send_unfragmented(payload, destination, 4789)


def test_it_waits_for_its_address_and_follows_its_device(underlay: MemoryUnderlay) -> None:
    host = underlay.add_host(IP_A)
    network = MemoryNetwork(host)

    async def main() -> None:
        waiting = listener(host, network, local=IP_C, dev="eth0")
        assert (waiting.is_ready, waiting.gro_enabled) == (False, True)
        assert "cannot bind to it" in (waiting.refusal or "")
        waiting.join(ip_address(GROUP))
        assert not waiting.reopen()
        host.addresses.append(IP_C)
        # It was not bound to a device before, so there is nothing else to rebind.
        waiting.reopen()
        assert (waiting.is_ready, waiting.refusal) == (True, None)
        assert waiting.groups == {ip_address(GROUP)}
        assert not waiting.reopen()
        network.remove_device("eth0")
        assert not waiting.reopen()
        network.add_device("eth0")
        assert waiting.reopen()
        waiting.close()

    asyncio.run(main())


def test_groups_are_joined_while_a_vni_uses_them(underlay: MemoryUnderlay) -> None:
    a = Node(underlay, segment(1, remote=(), group=GROUP, dev="eth0"), ip=IP_A)
    b = Node(underlay, segment(1, remote=(), group=GROUP, dev="eth0"), ip=IP_B)

    async def main() -> None:
        async with a.vtep, b.vtep:
            a.send(frame(A, ALL))
            await b.until_received(frame(A, ALL))
            b.send(frame(B, A))
            await a.until_received(frame(B, A))
            await b.vtep.change(segment(1, remote=(), group=OTHER, dev="eth0"))
            assert b.vtep.port.listeners[0].groups == {ip_address(OTHER)}
            a.send(frame(A, ALL))
            await until(lambda: a.vtep.counters()["tx_datagrams"] == 2)
            assert underlay.unreachable == 1
            # Both groups are joined while two VNIs have them.
            await b.vtep.add(segment(2, remote=(), group=GROUP, dev="eth0"))
            assert b.vtep.ports[1].listeners == b.vtep.ports[2].listeners
            assert b.vtep.ports[1].listeners[0].groups == {ip_address(GROUP), ip_address(OTHER)}

    asyncio.run(main())


def test_sockets_of_groups_are_filtered_during_a_flood(
    underlay: MemoryUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtep.daemon.listener._FLOOD_RATE", 10)
    config = segment(1, remote=IP_B, group=GROUP, dev="eth0", accept=f"{IP_B}/32")
    a = Node(underlay, config, ip=IP_A)
    b, stranger = underlay.add_host(IP_B), underlay.add_host(IP_C)

    async def main() -> None:
        async with a.vtep:
            port, packet = a.vtep.port, vxlan.pack(1) + frame(B, ALL)
            (listening,) = port.listeners
            drops = port.segment.counters.drops
            for _ in range(20):
                datagram(stranger, packet, GROUP)
            await until(lambda: drops[Drop.SOURCE_UNKNOWN] == 20)
            listening.tick()
            for _ in range(30):
                datagram(stranger, packet, GROUP)
            datagram(b, packet, GROUP)
            await a.until_received(frame(B, ALL))
            assert drops[Drop.SOURCE_UNKNOWN] == 20  # The filter has discarded the others.
            listening.read_queue_drops()
            assert listening.count_queue_drops(0) == 0
            assert listening.demux.counters.drops[Drop.SOURCE_UNKNOWN] == 30
            listening.tick()  # The rate is low again.
            datagram(stranger, packet, GROUP)
            await until(lambda: drops[Drop.SOURCE_UNKNOWN] == 21)

    asyncio.run(main())


def test_drops_are_attributed_to_a_full_queue_as_far_as_the_namespace_has_them(
    underlay: MemoryUnderlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtep.testing.underlay._QUEUE_MAX", 5)
    a = Node(underlay, segment(1), ip=IP_A)
    b = underlay.add_host(IP_B)

    async def main() -> None:
        async with a.vtep:
            (listening,) = a.vtep.port.listeners
            for _ in range(12):
                datagram(b, vxlan.pack(1) + frame(B, ALL), IP_A)
            listening.read_queue_drops()
            # The namespace counts 9 overflows: 7 are of this socket, and 2 are of another one.
            assert listening.count_queue_drops(9) == 2
            assert listening.demux.counters.drops[Drop.RX_QUEUE_FULL] == 7
            assert listening.count_queue_drops(2) == 2

    asyncio.run(main())


def test_only_an_endpoint_that_agrees_is_shared() -> None:
    one = Endpoint.of(segment(1), 4)
    assert one == Endpoint.of(segment(2, ttl=5, mtu=1300), 4)
    changes: tuple[dict[str, Any], ...] = (
        *({"dstport": 4790}, {"local": IP_A}, {"dev": "eth0"}, {"offload": "tso"}),
        {"udp6zerocsumrx": False},
    )
    for options in changes:
        assert one != Endpoint.of(segment(1, **options), 4), options
