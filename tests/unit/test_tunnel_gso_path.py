"""TunnelGsoPath: outer headers are those of the path's sockets, and errors suspend tunnel GSO."""

import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from tests.unit.twins import Frame
from vtep.forwarding.fdb import Remote
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.io.path import FLOW_BITS, Path
from vtep.io.receiver import UdpReceiver
from vtep.io.sender_sockets import SenderSockets
from vtep.io.shared_socket import SharedSocket
from vtep.offload.split import plan_segments
from vtep.tunnel_gso.encoder import SMALL_PROBE, VIRTIO_LEN
from vtep.tunnel_gso.path import TunnelGsoPath
from vtep.tunnel_gso.state import GsoProber, State
from vtep.wire import virtio, vxlan
from vtep.wire.echo import SIZE, EchoMessage, EchoStatus
from vtep.wire.outer_header import DF

EGRESS = 7
PREFIX = vxlan.pack(5)
MAC = b"\2\0\0\0\0\1"
FRAME = memoryview(Frame(4, payload=bytes(3000), partial=True).build())
GSO = virtio.Header(virtio.FLAG_NEEDS_CSUM, virtio.GSO_TCPV4, len(FRAME), 1000, 34, 16)
CUT = plan_segments(FRAME, GSO)


class FakeDevice:
    """A TAP device that keeps what is written to it, or fails."""

    mac = MAC

    def __init__(self) -> None:
        self.packets: list[bytes] = []
        self.error: int | None = None

    def write(self, headers: bytearray, prefix: bytes, frame: bytes | memoryview) -> None:
        if self.error is not None:
            raise OSError(self.error, errno.errorcode[self.error])
        self.packets.append(bytes(headers) + prefix + bytes(frame))


class Rig:
    """A path to 127.0.0.2 whose remote has not been asked for yet."""

    def __init__(self, sockets: Path, options: OuterHeaderOptions) -> None:
        self.sockets, self.options = sockets, options
        self.device = FakeDevice()
        self.prober: GsoProber[TunnelGsoPath] = GsoProber(lambda: b"12345678", lambda: None)
        self.path = TunnelGsoPath(sockets, options, self.device, self.prober)

    def send(self, flow: int = 0, now: float = 1.0) -> bool:
        return self.path.send(PREFIX, FRAME, CUT, GSO, flow, now)

    def enable(self) -> None:
        self.path.request(4789)
        self.prober.on_resolved(self.path, EGRESS, 0.0)
        request = EchoMessage.parse(self.device.packets[-1][-len(SMALL_PROBE.frame) - SIZE :])
        assert request is not None
        reply = EchoMessage.parse(request.reply(SIZE, EchoStatus.FINE))
        assert reply is not None
        self.prober.on_reply(reply, self.path.host, 0.5)
        assert self.path.gso.enabled
        self.device.packets.clear()


@pytest.fixture(
    params=[OuterHeaderOptions(), OuterHeaderOptions(ttl=9, tos=8, df=True, udpcsum=False)], ids=str
)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    binding, remote = Binding(socket.AF_INET, None, None), Remote("127.0.0.2", 4789)
    path = Path(binding, request.param, remote, 4, SenderSockets(), gso=True)
    with closing(path):
        yield Rig(path, request.param)


def dissected(packet: bytes) -> Any:
    return Ether(packet[VIRTIO_LEN:])


def test_outer_headers_are_those_of_the_socket(rig: Rig) -> None:
    rig.enable()
    options = rig.options
    for flow in (0, 1, (5 | 33 << 8) << FLOW_BITS, DF << FLOW_BITS):
        assert rig.send(flow)
        packet = dissected(rig.device.packets[-1])
        source, port = rig.sockets.socket(flow, 1.0).getsockname()
        ip = packet[IP]
        assert (ip.src, ip.dst, packet[UDP].sport, packet[UDP].dport) == (
            *(source, "127.0.0.2", port, 4789),
        )
        fields = flow >> FLOW_BITS
        assert ip.tos == (fields & 0xFF or options.tos)
        assert ip.ttl == (fields >> 8 & 0xFF or options.ttl or 64)
        assert str(ip.flags) == ("DF" if options.df or fields & DF else "")
        assert (packet[UDP].chksum != 0) == options.udpcsum
        assert bytes(packet)[:10] == MAC + EGRESS.to_bytes(4, "big")
    assert rig.path.sent == 4


def test_outer_headers_are_those_of_a_receiving_socket_that_sends() -> None:
    binding, remote = Binding(socket.AF_INET, None, None), Remote("127.0.0.2", 4789)
    with UdpReceiver.open(binding, 0, gro=True) as receiver:
        port = receiver.address[1]
        shared = SharedSocket(receiver.sock, binding, lambda _returned: None, lambda: None)
        senders = SenderSockets()
        senders.find_shared = lambda _binding, _port: shared
        options = OuterHeaderOptions(srcport=range(port, port + 1), ttl=9, tos=8)
        with closing(Path(binding, options, remote, 1, senders, gso=True)) as sockets:
            rig = Rig(sockets, options)
            rig.enable()
            assert rig.send()
        shared.close()
    packet = dissected(rig.device.packets[-1])
    assert (packet[IP].src, packet[IP].dst) == ("127.0.0.1", "127.0.0.2")
    assert (packet[UDP].sport, packet[UDP].dport) == (port, 4789)
    assert (packet[IP].ttl, packet[IP].tos) == (9, 8)


def test_the_source_address_is_looked_up_again_when_tunnel_gso_was_suspended(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.enable()
    assert rig.send()
    before = dissected(rig.device.packets[-1])[IP]
    rig.prober.forget_all()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as another:
        another.bind(("127.0.0.3", 0))
        another.connect(("127.0.0.2", 4789))
        sender = rig.sockets.socket(0, 1.0)
        monkeypatch.setattr("vtep.tunnel_gso.path.connected", lambda _sender: nullcontext(another))
        rig.enable()
        assert rig.send()
        assert rig.sockets.socket(0, 1.0) is sender
    after = dissected(rig.device.packets[-1])[IP]
    assert (before.src, after.src) == ("127.0.0.1", "127.0.0.3")


def test_following_superframes_differ_by_their_identification_only(rig: Rig) -> None:
    rig.enable()
    assert rig.send()
    assert rig.path.send_next(PREFIX, FRAME)
    first, second = map(dissected, rig.device.packets)
    assert second[IP].id == first[IP].id + CUT.segments & 0xFFFF
    for packet in (first, second):
        packet[IP].id = packet[IP].chksum = 0
    assert bytes(first) == bytes(second)
    assert rig.path.sent == 2


def test_another_egress_device_or_socket_changes_the_headers(rig: Rig) -> None:
    rig.enable()
    assert rig.send()
    rig.path.use_egress(8)
    assert rig.send()
    rig.sockets.close()
    assert rig.send()
    packets = [*map(dissected, rig.device.packets)]
    assert [int.from_bytes(bytes(packet)[6:10]) for packet in packets] == [EGRESS, 8, 8]
    _, port = rig.sockets.socket(0, 1.0).getsockname()
    assert packets[2][UDP].sport == port


def test_a_full_queue_changes_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.enable()
    for error in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
        assert rig.send()
        rig.device.error = error
        assert not rig.send()
        assert not rig.path.send_next(PREFIX, FRAME)
        rig.device.error = None
    assert rig.path.gso.enabled
    assert rig.path.sent == 3
    assert caplog.records == []


@pytest.mark.parametrize("following", [False, True])
def test_an_error_suspends_tunnel_gso(
    rig: Rig, caplog: pytest.LogCaptureFixture, following: bool
) -> None:
    rig.enable()
    assert rig.send(now=5.0)
    rig.device.error = errno.EIO
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert not (rig.path.send_next(PREFIX, FRAME) if following else rig.send(now=5.0))
    assert (rig.path.gso.state, rig.path.gso.since) == (State.UNAVAILABLE, 5.0)
    assert rig.path.sent == 1
    (record,) = caplog.records
    assert "offload tnl suspended to 127.0.0.2: EIO" in record.getMessage()


def test_superframes_that_are_too_long_are_not_sent(rig: Rig) -> None:
    rig.enable()
    long = memoryview(bytes(65_530))
    assert not rig.path.send(PREFIX, long, CUT, GSO, 0, 1.0)
    assert rig.path.gso.enabled
    assert rig.device.packets == []


def test_a_path_without_a_socket_does_not_send(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.enable()

    def unreachable(_flow: int, _now: float) -> socket.socket:
        raise OSError(errno.ENETUNREACH, "no route")

    monkeypatch.setattr(rig.sockets, "socket", unreachable)
    assert not rig.send()
    assert rig.path.gso.state is State.UNAVAILABLE


def test_flows_beyond_the_limit_get_new_writers() -> None:
    binding, remote = Binding(socket.AF_INET, None, None), Remote("127.0.0.2", 4789)
    with closing(
        Path(binding, OuterHeaderOptions(), remote, 4, SenderSockets(), gso=True)
    ) as sockets:
        rig = Rig(sockets, OuterHeaderOptions())
        rig.enable()
        for flow in range(600):
            assert rig.send(flow << FLOW_BITS)
        assert len({dissected(packet)[IP].tos for packet in rig.device.packets}) == 256
