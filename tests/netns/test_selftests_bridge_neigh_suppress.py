"""The assertions of the kernel's test_bridge_neigh_suppress.sh, with `--proxy`.

They are about whether a request reaches the remote, which is the kernel driver, and who answers it.
Resolution of a known neighbour that is down is tested in test_policy.py.
"""

from collections.abc import Iterator

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from tests.netns.hosts import (
    Pair,
    Start,
    kernel_vtep,
    packet_socket,
    segment,
)

H1, H2 = "02:00:00:00:00:01", "02:00:00:00:00:02"
ADDRESSES = {"arp": ("10.0.0.1", "10.0.0.2"), "nd": ("fd00::1", "fd00::2")}
OUTER_LEN = 50
"""Octets in front of a frame, over IPv4."""
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Scene:
    """Requests from h1 on the pyvtep side for h2 on the remote side."""

    def __init__(self, pair: Pair, start: Start, kind: str, vlan: int) -> None:
        a, b = pair
        self.kind, self.vlan = kind, vlan
        self.source, self.target = ADDRESSES[kind]
        self.vtep = start(a, *segment(1, "192.0.2.2"))
        kernel_vtep(b, 1, "192.0.2.2", "192.0.2.1")
        self.h1, self.h2 = packet_socket(a, "vx0"), packet_socket(b, "eth0")
        self._marked = 0

    def close(self) -> None:
        self.h1.close()
        self.h2.close()

    def _frame(self, packet: Packet, dst: str, src: str = H1, vlan: int | None = None) -> bytes:
        vlan = self.vlan if vlan is None else vlan
        return bytes(Ether(src=src, dst=dst) / (Dot1Q(vlan=vlan) / packet if vlan else packet))

    def request(self, dst: str | None = None, vlan: int | None = None) -> bytes:
        if self.kind == "arp":
            asked: Packet = ARP(hwsrc=H1, psrc=self.source, pdst=self.target)
            return self._frame(asked, dst or BROADCAST, vlan=vlan)
        group = "ff02::1:ff00:2"
        asked = (
            IPv6(src=self.source, dst=group if dst is None else self.target, hlim=255)
            / ICMPv6ND_NS(tgt=self.target)
            / ICMPv6NDOptSrcLLAddr(lladdr=H1)
        )
        return self._frame(asked, dst or "33:33:ff:00:00:02", vlan=vlan)

    def passes(self, frame: bytes) -> None:
        """Send a frame from h1 and wait until it reaches the remote side."""
        self.h1.send(frame)
        self._await(frame)

    def is_suppressed(self, frame: bytes) -> None:
        """Send a frame from h1 and a marker; only the marker must reach the remote side."""
        before = self.answered
        self._marked += 1
        marker = bytes(Ether(src=H1, dst=BROADCAST, type=0x88B5)) + self._marked.to_bytes(50, "big")
        self.h1.send(frame)
        self.h1.send(marker)
        assert frame not in self._await(marker)
        assert self.answered == before + 1

    def _await(self, frame: bytes) -> list[bytes]:
        """Receive until a frame arrives encapsulated. Returns: the frames that arrived before."""
        frames: list[bytes] = []
        while frame not in frames:
            frames.append(self.h2.recv(2048)[OUTER_LEN:])
        return frames

    def answer(self) -> Packet:
        """Return the next frame to h1."""
        while True:
            octets, (_, _, direction, *_) = self.h1.recvfrom(2048)
            if direction != 4 and octets[:6] == bytes.fromhex(H1.replace(":", "")):
                return Ether(octets)

    @property
    def answered(self) -> int:
        return self.vtep.counter("neigh_answered")


@pytest.fixture(params=["arp", "nd"])
def kind(request: pytest.FixtureRequest) -> str:
    said: str = request.param
    return said


@pytest.fixture(params=[0, 10], ids=["untagged", "vlan-10"])
def scene(pair: Pair, start: Start, kind: str, request: pytest.FixtureRequest) -> Iterator[Scene]:
    made = Scene(pair, start, kind, request.param)
    yield made
    made.close()


def test_requests_are_suppressed_where_they_should_be(scene: Scene) -> None:
    vtep, vlan = scene.vtep, f" vlan {scene.vlan}" if scene.vlan else ""
    h2_is = f"neigh replace {scene.target} lladdr {H2}{vlan}"
    scene.passes(scene.request())
    vtep.invoke("set --proxy")
    scene.passes(scene.request())
    # Suppression needs both an FDB entry and a neighbour entry.
    vtep.invoke(f"fdb replace {H2} dst 192.0.2.2 static")
    scene.passes(scene.request())
    vtep.invoke(f"fdb del {H2}")
    vtep.invoke(h2_is)
    scene.passes(scene.request())
    assert scene.answered == 0

    vtep.invoke(f"fdb replace {H2} dst 192.0.2.2 static")
    scene.is_suppressed(scene.request())
    answer = scene.answer()
    assert answer.src == H2
    if scene.kind == "arp":
        told = answer[ARP]
        assert (told.op, told.hwsrc, told.psrc) == (2, H2, scene.target)
        assert (told.hwdst, told.pdst) == (H1, scene.source)
    else:
        advertised = answer[ICMPv6ND_NA]
        assert (advertised.tgt, advertised.S, advertised.O) == (scene.target, 1, 1)
        assert advertised.payload.lladdr == H2
        assert answer[IPv6].dst == scene.source
    assert scene.answered == 1

    # A unicast request is meant for h2 itself, and every VLAN has its own neighbours.
    scene.passes(scene.request(dst=H2))
    scene.passes(scene.request(vlan=20))
    assert scene.answered == 1
    scene.is_suppressed(scene.request())

    vtep.invoke("set --no-proxy")
    scene.passes(scene.request())
    assert scene.answered == 2
    # Turning the proxy off has deleted the neighbours.
    vtep.invoke("set --proxy")
    scene.passes(scene.request())
    vtep.invoke(h2_is)
    scene.is_suppressed(scene.request())
    vtep.invoke(f"neigh del {scene.target}{vlan}")
    scene.passes(scene.request())
