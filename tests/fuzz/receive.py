"""The receive path: datagrams of remotes and strangers, one by one and joined by the kernel.

Each datagram must be delivered, answered or counted as dropped; frames must be those that arrived.
"""

from collections.abc import Iterator

from tests.fuzz.edges import Feed, Reader, Tap
from tests.unit import twins
from tests.unit.twins import Frame
from vtep.datapath import Ingress
from vtep.forwarding.demux import Demux
from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import GroupPolicy, InnerVlan, SegmentPolicy
from vtep.forwarding.segment import Segment
from vtep.forwarding.suppress import Neighbours
from vtep.offload.sizing import TunnelSizing
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import virtio, vxlan

LEN_MAX = 1024
VNI = 5
HOSTS = ("192.0.2.2", "192.0.2.3", "198.51.100.1", "2001:db8::2")
_DATAGRAMS_MAX = 128
_OWN_MAC = b"\x02\0\0\0\0\x99"
_POLICIES = (
    SegmentPolicy(),
    SegmentPolicy(0x77FFFF00000000FF, GroupPolicy(1, frozenset({2})), InnerVlan.DROP),
    SegmentPolicy(inner_vlan=InnerVlan.STRIP),
)


class _Vtep:
    def __init__(self, policy: SegmentPolicy, *, gro: bool, proxy: bool = False) -> None:
        fdb = Fdb(VNI, 4789, ageing=300, max_addresses=64)
        remotes = [Remote(HOSTS[0], 4789), Remote(HOSTS[3], 4789)]
        self.segment = Segment(VNI, remotes, fdb, own_mac=_OWN_MAC, learning=True, policy=policy)
        if proxy:
            self.segment.set_neighbours(Neighbours(fdb, ageing=300, max_neighbours=64))
        self.demux = Demux((), 4789)
        self.feed = Feed(gro=gro)
        self.tap = Tap()
        self.ingress = Ingress([self.feed], self.demux, _fail)
        sizing = TunnelSizing(b"", self.segment.counters, 1450, "auto")
        self.ingress.attach(self.segment, self.tap, sizing, AckTracker(), lambda: None)

    def counted(self) -> tuple[int, int, int]:
        """Return the frames delivered, their octets, and the datagrams dropped or answered."""
        parts = self.segment.counters, self.demux.counters
        dropped = sum(
            sum(part.drops.values()) + part.as_dict().get("echo_requests", 0) for part in parts
        )
        return self.segment.counters.rx_frames, self.segment.counters.rx_bytes, dropped


def _fail(error: OSError) -> None:
    raise AssertionError(f"a receive failed: {error}")


_RUN_MAX = 20
_RUNS = [
    twins.build(twins.segment_run(Frame(version=version, protocol=protocol), _RUN_MAX, size))
    for version, protocol in twins.KINDS.values()
    for size in (40, 700)
]
_VTEPS: list[_Vtep] = []
_now = 0


def _vteps() -> list[_Vtep]:
    """Return VTEPs of all kinds; new ones now and then, so that an input depends on few others."""
    global _now  # noqa: PLW0603
    _now += 1
    if _now % 20_000 == 1:
        _VTEPS[:] = [_Vtep(policy, gro=gro) for policy in _POLICIES for gro in (True, False)]
        _VTEPS.append(_Vtep(SegmentPolicy(), gro=True, proxy=True))
    return _VTEPS


def run(data: bytes) -> None:
    reader = Reader(data)
    vteps = _vteps()
    vtep = vteps[reader.integer() % len(vteps)]
    frames, octets, dropped = vtep.counted()
    datagrams = 0
    sent: set[bytes] = set()
    marked = False
    while not reader.is_empty and datagrams < _DATAGRAMS_MAX:
        flags = reader.integer()
        host = HOSTS[flags & 3]
        stride = reader.integer(2) % 1600 if flags & 0x10 else 0
        # A copy of a valid header saves the fuzzer from finding it again for each datagram.
        prefix = vxlan.pack(VNI) if flags & 0x20 else b""
        copies = 1 + reader.integer() % 64 if flags & 0x40 and stride else 1
        datagram = prefix + reader.some(1600)
        if stride and datagram:
            datagram = datagram.ljust(stride, b"\1")[:stride] * copies + datagram[: stride - 1]
        if flags & 0x80:
            datagram, stride = _run(reader)
        data, step = datagram[:65535], stride or len(datagram)
        datagrams += max(1, -(-len(data) // step)) if step else 1
        sent.update(data[at + 8 : at + step] for at in range(0, len(data), step or 1))
        marked |= bool(flags >> 2 & 3)
        vtep.feed.put(data, step or len(data), host, flags >> 2 & 3)
    while vtep.feed.waits:
        vtep.ingress.readable(vtep.feed)
    now_frames, now_octets, now_dropped = vtep.counted()
    written = vtep.tap.written
    delivered = now_frames - frames
    if vtep.segment.neighbours is None:
        assert delivered + now_dropped - dropped == datagrams, (
            f"{datagrams} datagrams: {delivered} delivered, {now_dropped - dropped} dropped"
        )
    assert len(written) <= delivered
    assert sum(len(frame) for _, frame in written) <= now_octets - octets
    # Decapsulation changes a frame only for its ECN field, and without its VLAN tag.
    if not marked and vtep.segment.policy.inner_vlan is not InnerVlan.STRIP:
        frames_out = [each for header, frame in written for each in _segments(header, frame)]
        assert sent.issuperset(frames_out), [each for each in frames_out if each not in sent]
        if vtep.segment.neighbours is None:
            assert len(frames_out) == delivered, (len(frames_out), delivered)
    written.clear()


def _run(reader: Reader) -> tuple[bytes, int]:
    """Return consecutive segments of one flow in a GRO batch, with a few octets changed."""
    frames = _RUNS[reader.integer() % len(_RUNS)][: 1 + reader.integer() % _RUN_MAX]
    stride = vxlan.HEADER_LEN + len(frames[0])
    data = bytearray(b"".join(vxlan.pack(VNI) + frame for frame in frames))
    for _ in range(reader.integer() % 4):
        data[reader.integer(2) % len(data)] ^= reader.integer()
    return bytes(data), stride


def _segments(header: bytes, frame: bytes) -> list[bytes]:
    """Return the frames that a second implementation makes of a superframe."""
    gso = virtio.unpack(header)
    if gso.gso_type == virtio.GSO_NONE:
        return [frame]
    segments = twins.split(frame, gso)
    assert segments is not None, (header, frame)
    return segments


def seeds() -> Iterator[bytes]:
    """Yield valid inputs, from which the fuzzer starts."""
    frame = Frame().build()
    for kind in range(7):
        for flags in (0x20, 0x24, 0x23, 0x21):
            yield bytes((kind, flags)) + len(frame).to_bytes(2, "big") + frame
        size = len(frame) + 8
        yield (
            bytes((kind, 0x70))
            + size.to_bytes(2, "big")
            + b"\7"
            + (len(frame).to_bytes(2, "big") + frame)
        )
        for run_number in range(len(_RUNS)):
            # Flags, stride, copies, and the octets in front of the run: none.
            yield bytes((kind, 0xA0, 0, 0, run_number, 12, 0))
    bad = vxlan.pack(VNI + 1)[:7] + b"\xff"
    yield b"\0\0" + (8).to_bytes(2, "big") + bad
