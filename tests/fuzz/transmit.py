"""The transmit path: frames and superframes of the host, through all policies.

Each frame must be sent, answered or counted as dropped, and each datagram is a VXLAN header with
the VNI and a frame behind it, no larger than the tunnel carries unless that was too small for it.
"""

import socket
import struct
from collections.abc import Iterator

from tests.fuzz.edges import Reader, Tap
from tests.unit.twins import KINDS, Frame
from vtep.datapath import Arena, Egress
from vtep.datapath.pool import Paths, Pool
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.forwarding.suppress import Neighbours
from vtep.io.binding import Binding
from vtep.io.outer_options import OuterHeaderOptions
from vtep.offload.sizing import TunnelSizing
from vtep.testing import MemoryUnderlay
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import virtio, vxlan
from vtep.wire.outer_header import InheritPolicy

LEN_MAX = 1024
VNI = 5
_MTU = 1450
_REMOTES = Remote("192.0.2.2", 4789), Remote("192.0.2.3", 4789)
_KNOWN = b"\x02\0\0\0\0\x0b"
_FRAMES_MAX = 128


class _Vtep:
    def __init__(
        self, policy: SegmentPolicy, inherit: InheritPolicy, *, proxy: bool = False
    ) -> None:
        fdb = Fdb(VNI, 4789, ageing=0, max_addresses=64)
        self.segment = Segment(VNI, _REMOTES, fdb, own_mac=bytes(6), learning=True, policy=policy)
        fdb.learn(_KNOWN, _REMOTES[0], 0.0)
        if proxy:
            self.segment.set_neighbours(Neighbours(fdb, ageing=300, max_neighbours=64))
        self.tap = Tap()
        self.underlay = MemoryUnderlay()
        host = self.underlay.add_host("192.0.2.1")
        paths = Paths(
            Pool(sockets=host),
            {4: Binding(socket.AF_INET, None, None)},
            OuterHeaderOptions(),
            inherit,
            lambda _remote, _mtu: None,
            gso=True,
            tunnel_gso=False,
        )
        sizing = TunnelSizing(self.segment.header, self.segment.counters, _MTU, "auto")
        self.egress = Egress(*(self.tap, self.segment, paths, sizing, AckTracker(), Arena()), _fail)


def _fail(error: OSError) -> None:
    raise AssertionError(f"the TAP was lost: {error}")


_VTEPS: list[_Vtep] = []
_runs = 0


def _vteps() -> list[_Vtep]:
    """Return VTEPs of all kinds; new ones now and then, so that an input depends on few others."""
    global _runs  # noqa: PLW0603
    _runs += 1
    if _runs % 20_000 == 1:
        for vtep in _VTEPS:
            vtep.underlay.close()
        plain, inherit = InheritPolicy(), InheritPolicy("rfc6040", 0, *[True] * 4)
        _VTEPS[:] = [
            _Vtep(SegmentPolicy(), plain),
            _Vtep(SegmentPolicy(), inherit),
            _Vtep(SegmentPolicy(inner_vlan=InnerVlan.DROP), plain),
            _Vtep(SegmentPolicy(inner_vlan=InnerVlan.STRIP), inherit),
            _Vtep(SegmentPolicy(), plain, proxy=True),
        ]
    return _VTEPS


def _header(frame: bytes, flags: int, gso_size: int) -> bytes:
    """Return the virtio header with which the kernel would pass this frame to a reader."""
    try:
        at, kind = 14, int.from_bytes(frame[12:14], "big")
        if kind == 0x8100:
            at, kind = 18, int.from_bytes(frame[16:18], "big")
        if kind == 0x0800:
            upper, protocol = at + 4 * (frame[at] & 15), frame[at + 9]
            if frame[at] >> 4 != 4 or upper < at + 20:
                return virtio.PLAIN
        elif kind == 0x86DD:
            upper, protocol = at + 40, frame[at + 6]
        else:
            return virtio.PLAIN
        if protocol not in (6, 17) or len(frame) < upper + (20 if protocol == 6 else 8):
            return virtio.PLAIN
        length = 4 * (frame[upper + 12] >> 4) if protocol == 6 else 8
    except IndexError:
        return virtio.PLAIN
    offset = 16 if protocol == 6 else 6
    if not flags & 1 or length < 8 or len(frame) < upper + length:
        return virtio.PLAIN
    gso = 0
    if flags & 2 and gso_size and len(frame) > upper + length + gso_size:
        gso = 5 if protocol == 17 else 1 if kind == 0x0800 else 4
        if protocol == 6 and length < 20:
            return virtio.PLAIN
    fields = 1, gso, upper + length, gso_size if gso else 0, upper, offset
    return struct.pack("=BBHHHH", *fields)


def run(data: bytes) -> None:
    reader = Reader(data)
    vteps = _vteps()
    vtep = vteps[reader.integer() % len(vteps)]
    counters = vtep.segment.counters
    before = counters.as_dict()
    frames = 0
    while not reader.is_empty and frames < _FRAMES_MAX:
        flags, size = reader.integer(), reader.integer(2) % 1400
        frame = reader.some(1464)
        if flags & 4:
            frame += frame[-64:] * (reader.integer() * 4)
        if len(frame) < 14:
            frame = frame.ljust(14, b"\0")
        frame = frame[:65535]
        for _ in range(1 + (flags >> 4)):
            vtep.tap.put(_header(frame, flags, size), frame)
            frames += 1
    while vtep.tap.waits:
        vtep.egress.readable()
    after = counters.as_dict()
    grown = {name: count - before[name] for name, count in after.items() if count != before[name]}
    floods = 0
    for sent in vtep.underlay.trace:
        for datagram in sent.datagrams:
            assert len(datagram) >= vxlan.HEADER_LEN + 14
            assert datagram[:8] == b"\x08\0\0\0\0\0\x05\0", datagram[:8]
            floods += 1
    # Without any drop, each frame leaves at least once: to the known remote, or to both.
    if not any(name.startswith("drop_") for name in grown):
        assert grown.get("tx_frames", 0) <= floods <= 2 * grown.get("tx_frames", 0), (grown, floods)
    if vtep.segment.neighbours is None:
        assert frames <= grown.get("tx_frames", 0) + sum(
            count for name, count in grown.items() if name.startswith("drop_")
        ), (frames, grown)
    vtep.underlay.trace.clear()
    vtep.tap.written.clear()


def seeds() -> Iterator[bytes]:
    """Yield valid inputs, from which the fuzzer starts."""
    for version, protocol in KINDS.values():
        for payload in (b"payload", bytes(1300)):
            frame = Frame(version=version, protocol=protocol, payload=payload).build()
            for kind in range(5):
                head = bytes((kind, 7 if len(payload) > 100 else 0x21, 1, 0))
                yield head + len(frame).to_bytes(2, "big") + frame + b"\x20"
