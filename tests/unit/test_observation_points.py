"""Everything passes the observation points of `vtep.datapath`."""

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.l2 import ARP

from tests.unit.craft import BROADCAST, MAC_A, MAC_B, V4_A, V4_B, ether, mac
from tests.unit.test_egress import MTU, PREFIX, REMOTE, SYN_FRAME, TO, plain, segment_of, superframe
from tests.unit.test_egress import Vtep as EgressVtep
from tests.unit.test_ingress import Vtep as IngressVtep
from tests.unit.test_ingress import superframe as received_superframe
from tests.unit.twins import Frame
from vtep.counters import Drop
from vtep.forwarding.fdb import Remote
from vtep.forwarding.policy import SegmentPolicy
from vtep.forwarding.suppress import Neighbours
from vtep.testing import MemoryTap
from vtep.wire import virtio


class Capture:
    """Keeps the frames that pass both points of a TAP."""

    def __init__(self, tap: MemoryTap) -> None:
        self.read: list[bytes] = []
        self.written: list[bytes] = []
        self._tap_read, self._tap_write = tap.read, tap.write
        tap.read, tap.write = self._read, self._write

    def _read(self, buffers: Sequence[Any]) -> int:
        octets = self._tap_read(buffers)
        self.read.append(b"".join(map(bytes, buffers))[:octets])
        return octets

    def _write(self, buffers: Sequence[Any]) -> int:
        octets = self._tap_write(buffers)
        self.written.append(b"".join(map(bytes, buffers)))
        return octets


def test_egress() -> None:
    """Runs, a SYN, superframes, answers by ARP and ICMP, fragments, a flood."""
    segment = segment_of(REMOTE, *(Remote(f"192.0.2.{number}", 4789) for number in range(10, 20)))
    segment.fdb.learn(TO, REMOTE, 0.0)
    segment.set_neighbours(Neighbours(segment.fdb, ageing=0, max_neighbours=0))
    assert segment.neighbours is not None
    segment.neighbours.add(ip_address(V4_B), mac(MAC_B), 0.0)
    segment.fdb.replace(mac(MAC_B), REMOTE, 0.0)
    request = bytes(ether(ARP(hwsrc=MAC_A, psrc=V4_A, pdst=V4_B), dst=BROADCAST))
    df, no_df = (
        Frame(protocol=17, payload=bytes(MTU), fragment=flags).build() for flags in (0x4000, 0)
    )
    broadcast = b"\xff" * 6 + plain()[1][6:]
    frames = [
        *(plain(), plain(), plain(flow=1), (virtio.PLAIN, SYN_FRAME), superframe(3)),
        *((virtio.PLAIN, frame) for frame in (request, df, no_df, broadcast)),
    ]
    with ExitStack() as stack:
        vtep = EgressVtep(stack, segment)
        capture = Capture(vtep.tap)
        sent: list[bytes] = []
        send = vtep.egress._send

        def transmit(
            datagrams: memoryview, stride: int, remotes: Sequence[Remote], *args: Any
        ) -> None:
            each = [bytes(datagrams[at : at + stride]) for at in range(0, len(datagrams), stride)]
            sent.extend(each * len(remotes))
            send(datagrams, stride, remotes, *args)

        setattr(vtep.egress, "_send", transmit)  # noqa: B010  a method to mypy
        vtep.turn(frames)
        assert capture.read == [header + frame for header, frame in frames]
        assert capture.written == [header + frame for header, frame in vtep.tap.received()]
        assert len(capture.written) == 2
        assert sorted(sent) == sorted(each for send in vtep.sent for each in send)
    assert segment.counters.tx_fragmented == 1
    assert segment.counters.tx_too_big_answered == segment.counters.neigh_answered == 1
    assert segment.counters.drops[Drop.TX_TOO_BIG] == 1
    assert PREFIX + broadcast in sent


def test_tunnel_gso() -> None:
    """A run of superframes, of which all but the first two are not parsed."""
    segment = segment_of(REMOTE)
    segment.fdb.learn(TO, REMOTE, 0.0)
    transmitted: list[bytes] = []
    with ExitStack() as stack:
        vtep = EgressVtep(stack, segment, script=[True] * 100)
        vtep.announce()
        transmitter = vtep.egress._transmitter
        first, following = transmitter.send_superframe, transmitter.send_next_superframe

        def send_superframe(path: Any, header: bytes, frame: memoryview, *args: Any) -> bool:
            transmitted.append(bytes(frame))
            return first(path, header, frame, *args)

        def send_next_superframe(path: Any, header: bytes, frame: memoryview) -> bool:
            transmitted.append(bytes(frame))
            return following(path, header, frame)

        setattr(transmitter, "send_superframe", send_superframe)  # noqa: B010
        setattr(transmitter, "send_next_superframe", send_next_superframe)  # noqa: B010
        frames = [superframe(20, after=20 * number) for number in range(5)]
        vtep.turn(frames)
        assert vtep.paths.with_tunnel_gso.sent == len(frames)
    assert transmitted == [frame for _, frame in frames]


@pytest.mark.parametrize("refuses", [False, True])
def test_ingress(*, refuses: bool) -> None:
    """A plain frame and a run of superframes, which the TAP may refuse to accept as such."""
    with ExitStack() as stack:
        vtep = IngressVtep(stack, SegmentPolicy())
        write = vtep.tap.write

        def refuse_superframes(buffers: Sequence[Any]) -> int:
            if buffers[0][1] != virtio.GSO_NONE:
                raise OSError(errno.EINVAL, "refused")
            return write(buffers)

        if refuses:
            vtep.tap.write = refuse_superframes
        capture = Capture(vtep.tap)
        vtep.send(received_superframe()[:8] + Frame().build())
        for number in range(4):
            vtep.send(received_superframe(seq=number))
        vtep.drain()
        vtep.drain()
        assert capture.written == vtep.seen().frames
        assert len(capture.written) == (vtep.segment.counters.rx_frames if refuses else 1 + 4)
