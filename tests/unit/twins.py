"""Slow and simple reference implementations of split and merge, and strategies for their input.

This module imports nothing from `vtep`. It repeats offsets, flags and limits from the RFCs and from
the docstrings in `vtep.offload`. `test_split` compares its frames and its split with scapy.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple, Protocol

from hypothesis import settings
from hypothesis import strategies as st

TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
GSO_ECN = 0x80
GSO_TYPE = {(4, TCP): 1, (6, TCP): 4, (4, UDP): 5, (6, UDP): 5}
CHECKSUM_AT = {TCP: 16, UDP: 6}
SUPERFRAME_MAX = 0xFFFF
UDP_SEGMENTS_MAX = 64
KINDS = {"tcp4": (4, TCP), "tcp6": (6, TCP), "udp4": (4, UDP), "udp6": (6, UDP)}

BASIC = settings(derandomize=True, deadline=None, database=None)
"""Settings for reproducible examples; a slow test lowers their number."""


# --- frames -----------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Offsets of the IP header, the TCP or UDP header, the payload, and its end."""

    version: int
    protocol: int
    ip: int
    upper: int
    payload: int
    end: int


@dataclass(frozen=True)
class Frame:
    """A frame by its fields; an error in it is a difference from the right value."""

    version: int = 4
    protocol: int = TCP
    payload: bytes = b"payload"
    dst: bytes = b"\x02\0\0\0\0\x0b"
    src: bytes = b"\x02\0\0\0\0\x0a"
    tags: tuple[tuple[int, int], ...] = ()
    source: int = 1
    tos: int = 0
    label: int = 0
    ttl: int = 64
    ident: int = 7
    fragment: int = 0x4000
    between: bytes = b""
    """IPv4 options, or one IPv6 extension header whose first octet `build` fills in."""
    extension: int = 0
    sport: int = 40000
    dport: int = 80
    seq: int = 1
    ack: int = 9
    reserved: int = 0
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = b""
    partial: bool = False
    checksum: int | None = None
    bad_checksum: int = 0
    ip_checksum: int | None = None
    bad_ip_checksum: int = 0
    longer: int = 0
    udp_longer: int = 0
    padding: bytes = b""

    @property
    def shape(self) -> Shape:
        ip = 14 + 4 * len(self.tags)
        upper = ip + (20 if self.version == 4 else 40) + len(self.between)
        payload = upper + (20 + len(self.options) if self.protocol == TCP else 8)
        return Shape(self.version, self.protocol, ip, upper, payload, payload + len(self.payload))

    @property
    def head_len(self) -> int:
        return self.shape.payload

    def _network(self) -> bytes:
        if self.version == 4:
            first = 0x45 + len(self.between) // 4
            return struct.pack(
                "!BBHHHBBH4s4s", first, self.tos, 0, self.ident, self.fragment, self.ttl,
                self.protocol, 0, bytes([10, 1, 0, self.source]), bytes([10, 1, 0, 99]),
            ) + self.between  # fmt: skip
        between, protocol = self.between, self.protocol
        if between:
            between, protocol = bytes([protocol]) + between[1:], self.extension
        addresses = [bytes([0xFD, *bytes(14), host]) for host in (self.source, 99)]
        first = 6 << 28 | self.tos << 20 | self.label
        return struct.pack("!IHBB", first, 0, protocol, self.ttl) + b"".join(addresses) + between

    def _transport(self) -> bytes:
        if self.protocol == UDP:
            return struct.pack("!HHHH", self.sport, self.dport, 0, 0)
        return struct.pack(
            "!HHIIBBHHH", self.sport, self.dport, self.seq & 0xFFFF_FFFF, self.ack,
            (20 + len(self.options)) // 4 << 4 | self.reserved, self.flags, self.window, 0,
            self.urgent,
        ) + self.options  # fmt: skip

    def build(self) -> bytes:
        ethertype = b"\x08\0" if self.version == 4 else b"\x86\xdd"
        tags = b"".join(struct.pack("!HH", *tag) for tag in self.tags)
        head = self.dst + self.src + tags + ethertype + self._network() + self._transport()
        shape = self.shape
        frame = with_lengths(head + self.payload, shape)
        add(frame, shape.ip + (2 if self.version == 4 else 4), self.longer)
        if self.protocol == UDP:
            add(frame, shape.upper + 4, self.udp_longer)
        with_checksums(frame, shape, partial=self.partial)
        fields = [(shape.upper + CHECKSUM_AT[self.protocol], self.checksum, self.bad_checksum)]
        if self.version == 4:
            fields.append((shape.ip + 10, self.ip_checksum, self.bad_ip_checksum))
        for at, value, difference in fields:
            if value is not None:
                struct.pack_into("!H", frame, at, value)
            add(frame, at, difference)
        return bytes(frame) + self.padding


def add(frame: bytearray, at: int, difference: int) -> None:
    (value,) = struct.unpack_from("!H", frame, at)
    struct.pack_into("!H", frame, at, (value + difference) & 0xFFFF)


def segment_run(base: Frame, count: int, size: int, *, last: int | None = None) -> list[Frame]:
    """Build consecutive segments of one flow: a run."""
    pieces = [Random(number).randbytes(size) for number in range(count)]
    pieces[-1] = pieces[-1][:last]
    return [
        replace(
            base, payload=piece, ident=(base.ident + number) & 0xFFFF, seq=base.seq + number * size
        )
        for number, piece in enumerate(pieces)
    ]


def build(frames: Sequence[Frame]) -> list[bytes]:
    return [frame.build() for frame in frames]


# --- reference implementations ----------------------------------------------------------------


def loop_sum(data: bytes) -> int:
    """Return the one's complement sum of RFC 1071, section 4.1."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_header(frame: bytes, shape: Shape) -> bytes:
    length = shape.end - shape.upper
    if shape.version == 4:
        return frame[shape.ip + 12 : shape.ip + 20] + struct.pack("!xBH", shape.protocol, length)
    return frame[shape.ip + 8 : shape.ip + 40] + struct.pack("!I3xB", length, shape.protocol)


def with_lengths(octets: bytes, shape: Shape) -> bytearray:
    frame = bytearray(octets)
    if shape.version == 4:
        struct.pack_into("!H", frame, shape.ip + 2, shape.end - shape.ip)
    else:
        struct.pack_into("!H", frame, shape.ip + 4, shape.end - shape.ip - 40)
    if shape.protocol == UDP:
        struct.pack_into("!H", frame, shape.upper + 4, shape.end - shape.upper)
    return frame


def with_checksums(frame: bytearray, shape: Shape, *, partial: bool) -> None:
    if shape.version == 4:
        struct.pack_into("!H", frame, shape.ip + 10, 0)
        header = bytes(frame[shape.ip : shape.upper])
        struct.pack_into("!H", frame, shape.ip + 10, loop_sum(header) ^ 0xFFFF)
    at = shape.upper + CHECKSUM_AT[shape.protocol]
    struct.pack_into("!H", frame, at, 0)
    pseudo = pseudo_header(bytes(frame), shape)
    value = loop_sum(pseudo)
    if not partial:
        value = loop_sum(pseudo + bytes(frame[shape.upper : shape.end])) ^ 0xFFFF
        if shape.protocol == UDP and value == 0:
            value = 0xFFFF  # In UDP 0 means that there is no checksum.
    struct.pack_into("!H", frame, at, value)


def network(packet: bytes, ethertype: bytes) -> tuple[int, int, int, int] | None:
    """Return IP version, protocol, header length with options or extensions, and total length."""
    if ethertype == b"\x08\0" and len(packet) >= 20:
        first, total, fragment, protocol = struct.unpack_from("!BxHxxHxB", packet)
        header = (first & 15) * 4
        more, offset = fragment & 0x2000, fragment & 0x1FFF
        if first >> 4 != 4 or header < 20 or more or offset or total > len(packet):
            return None
        return 4, protocol, header, total
    if ethertype == b"\x86\xdd" and len(packet) >= 40:
        first, length, protocol = struct.unpack_from("!B3xHB", packet)
        header, total = 40, 40 + length
        if first >> 4 != 6 or total > len(packet):
            return None
        while protocol in (0, 60) and header + 8 <= total:  # Hop-by-hop, destination options.
            protocol, header = packet[header], header + 8 + 8 * packet[header + 1]
        return 6, protocol, header, total
    return None


def dissect(frame: bytes) -> Shape | None:
    """Return the offsets in a complete TCP or UDP packet, or None if the frame has none."""
    at = 12
    while frame[at : at + 2] in (b"\x81\0", b"\x88\xa8"):
        at += 4
    ethertype, at = frame[at : at + 2], at + 2
    found = network(frame[at:], ethertype)
    if found is None:
        return None
    version, protocol, header, total = found
    upper = frame[at + header : at + total]
    if protocol == UDP and len(upper) >= 8:
        body = 8
    elif protocol == TCP and len(upper) >= 20 and 20 <= (upper[12] >> 4) * 4 <= len(upper):
        body = (upper[12] >> 4) * 4
    else:
        return None
    return Shape(version, protocol, at, at + header, at + header + body, at + total)


class Gso(Protocol):
    """The fields of a virtio header that a split uses."""

    @property
    def gso_type(self) -> int: ...
    @property
    def gso_size(self) -> int: ...


def split(frame: bytes, gso: Gso) -> list[bytes] | None:
    """Split a superframe.

    Returns: its segments, or None if `gso` does not match the frame.
    """
    shape, size = dissect(frame), gso.gso_size
    if shape is None or GSO_TYPE[shape.version, shape.protocol] != gso.gso_type & ~GSO_ECN:
        return None
    payload = frame[shape.payload : shape.end]
    if not size or not payload:
        return None
    segments = []
    for index, at in enumerate(range(0, len(payload), size)):
        piece = payload[at : at + size]
        here = shape._replace(end=shape.payload + len(piece))
        segment = with_lengths(frame[: shape.payload] + piece, here)
        if shape.version == 4:
            add(segment, shape.ip + 4, index)
        if shape.protocol == TCP:
            (seq,) = struct.unpack_from("!I", segment, shape.upper + 4)
            struct.pack_into("!I", segment, shape.upper + 4, (seq + at) % 2**32)
            if at > 0:
                segment[shape.upper + 13] &= ~CWR
            if at + size < len(payload):
                segment[shape.upper + 13] &= ~(FIN | PSH)
        with_checksums(segment, here, partial=False)
        segments.append(bytes(segment))
    return segments


def finish(frame: bytes) -> bytes:
    """Complete the checksums of a TCP or UDP frame without padding."""
    shape, done = dissect(frame), bytearray(frame)
    assert shape is not None
    assert shape.end == len(frame)
    with_checksums(done, shape, partial=False)
    return bytes(done)


def is_partial(frame: bytes, shape: Shape) -> bool:
    (field,) = struct.unpack_from("!H", frame, shape.upper + CHECKSUM_AT[shape.protocol])
    return bool(field == loop_sum(pseudo_header(frame, shape)))


def outline(frame: bytes, *, uso: bool) -> tuple[object, ...] | None:
    """Return the layout of the headers of a frame, or None if no superframe can have them."""
    shape = dissect(frame)
    if shape is None or shape.end != len(frame) or shape.payload == shape.end:
        return None
    if shape.upper - shape.ip != (20 if shape.version == 4 else 40):
        return None
    if shape.protocol == UDP and not uso:
        return None
    # Tags and IP version, DF bit, length of the TCP header.
    dont_fragment = frame[shape.ip + 6 : shape.ip + 8] if shape.version == 4 else b""
    length = frame[shape.upper + 12] if shape.protocol == TCP else 0
    return frame[12 : shape.ip + 1], dont_fragment, shape.protocol, length


def is_mergeable(frame: bytes, shape: Shape) -> bool:
    """Return True if a split can have written this segment, whatever its neighbours are."""
    if shape.protocol == TCP and frame[shape.upper + 13] & (SYN | RST | URG | ACK) != ACK:
        return False
    lengths = with_lengths(frame, shape)
    if lengths != frame:
        return False
    if is_partial(frame, shape):
        with_checksums(lengths, shape, partial=True)
        return lengths == frame
    return finish(frame) == frame


def common(frame: bytes, shape: Shape) -> bytes:
    """Return the headers, with all fields that differ between segments set to zero."""
    head = bytearray(frame[: shape.payload])
    ip, upper = shape.ip, shape.upper
    zeroed = [(ip + 2, 4), (ip + 10, 2)] if shape.version == 4 else [(ip + 4, 2)]
    zeroed += [(upper + 4, 4), (upper + 16, 2)] if shape.protocol == TCP else [(upper + 4, 4)]
    for at, octets in zeroed:
        head[at : at + octets] = bytes(octets)
    if shape.protocol == TCP:
        head[upper + 13] &= ~(CWR | FIN | PSH)
    return bytes(head)


def continues(before: bytes, after: bytes) -> bool:
    """Return True if a split can have written these two segments in a row."""
    one, two = dissect(before), dissect(after)
    if one is None or two is None or common(before, one) != common(after, two):
        return False
    if one.end < len(before) or not is_mergeable(before, one) or not is_mergeable(after, two):
        return False
    if two.end > one.end:
        return False
    if one.version == 4:
        idents = [struct.unpack_from("!H", frame, one.ip + 4)[0] for frame in (before, after)]
        if idents[1] != (idents[0] + 1) % 2**16:
            return False
    if one.protocol == TCP:
        seqs = [struct.unpack_from("!I", frame, one.upper + 4)[0] for frame in (before, after)]
        if seqs[1] != (seqs[0] + one.end - one.payload) % 2**32:
            return False
        if before[one.upper + 13] & (FIN | PSH) or after[one.upper + 13] & CWR:
            return False
    return True


Merged = list[tuple[bytes | None, bytes]]
"""Frames, each with its virtio header, or with None if it was not merged."""


def superframe(run: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Merge a run of segments into one superframe.

    Returns: its virtio header and the superframe.
    """
    shape = dissect(run[0])
    assert shape is not None
    payload = b"".join(segment[shape.payload :] for segment in run)
    merged = shape._replace(end=shape.payload + len(payload))
    frame = with_lengths(run[0][: shape.payload] + payload, merged)
    gso_type = GSO_TYPE[shape.version, shape.protocol]
    if shape.protocol == TCP:
        frame[shape.upper + 13] |= run[-1][shape.upper + 13] & (FIN | PSH)
        gso_type |= GSO_ECN if frame[shape.upper + 13] & CWR else 0
    with_checksums(frame, merged, partial=True)
    size = shape.end - shape.payload
    offset = CHECKSUM_AT[shape.protocol]
    header = struct.pack("=BBHHHH", 1, gso_type, shape.payload, size, shape.upper, offset)
    return header, bytes(frame)


def superframe_len(run: Sequence[bytes]) -> int:
    shape = dissect(run[0])
    assert shape is not None
    return len(run[0]) + sum(len(segment) - shape.payload for segment in run[1:])


def belongs(run: Sequence[bytes], frame: bytes, *, uso: bool) -> bool:
    """Return True if a frame may be added to a run, without a comparison with its neighbour."""
    layout = outline(run[0], uso=uso)
    if layout is None or layout != outline(frame, uso=uso):
        return False
    # All checksums of a run are complete, or all are partial. The first two frames decide.
    frames = [*run, frame]
    complete = [finish(each) == each for each in frames]
    if all(complete[:2]):
        return all(complete)
    return all(is_partial(each, shape) for each in frames if (shape := dissect(each)))


def is_tcp(frame: bytes) -> bool:
    shape = dissect(frame)
    return shape is not None and shape.protocol == TCP


def merge(frames: Sequence[bytes], *, uso: bool = True) -> Merged:
    """Merge adjacent frames, in order, as long as each continues the run and the limits allow."""
    runs: list[list[bytes]] = []
    for frame in frames:
        if (
            runs
            and belongs(runs[-1], frame, uso=uso)
            and continues(runs[-1][-1], frame)
            # A shorter segment is the last one.
            and len(runs[-1][-1]) == len(runs[-1][0])
            and superframe_len([*runs[-1], frame]) <= SUPERFRAME_MAX
            and (len(runs[-1]) < UDP_SEGMENTS_MAX or is_tcp(frame))
        ):
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return [superframe(run) if len(run) > 1 else (None, run[0]) for run in runs]


# --- strategies -------------------------------------------------------------------------------


def often(usual: Any, rare: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(usual), st.just(usual), rare)


U16 = st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 0xFFFE, 0xFFFF]))
U32 = st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0xFFFF_FF00, 0xFFFF_FFFF))


@st.composite
def flows(draw: st.DrawFn, *, between: bool = False, flags: int = PSH | ECE | CWR) -> Frame:
    """Draw the first frame of a flow, without payload; `between` allows IP options."""
    version, protocol = draw(st.sampled_from(list(KINDS.values())))
    frame = Frame(
        version,
        protocol,
        tags=tuple(draw(st.lists(st.tuples(st.sampled_from([0x8100, 0x88A8]), U16), max_size=2))),
        source=draw(st.integers(0, 255)),
        tos=draw(often(0, st.integers(0, 255))),
        label=draw(often(0, st.integers(0, 0xFFFFF))) if version == 6 else 0,
        ttl=draw(often(64, st.integers(0, 255))),
        ident=draw(U16),
        fragment=draw(st.sampled_from([0x4000, 0, 0x8000])),
        sport=draw(U16),
        seq=draw(U32),
        ack=draw(U32),
        reserved=draw(often(0, st.integers(0, 15))),
        flags=ACK | draw(often(0, st.integers(0, 255))) & flags,
        window=draw(U16),
        urgent=draw(often(0, U16)),
        options=draw(st.binary(max_size=40).map(lambda octets: octets[: len(octets) // 4 * 4])),
    )
    if between and draw(st.booleans()):
        words = draw(st.integers(1, 10)) if version == 4 else 2 * draw(st.integers(1, 3))
        header = b"\0" + bytes([words // 2 - 1]) if version == 6 else b"\1\1"
        return replace(
            frame,
            between=header + draw(st.binary(min_size=4 * words - 2, max_size=4 * words - 2)),
            extension=draw(st.sampled_from([0, 60])),
        )
    return frame


DISTURBANCES: list[dict[str, Any]] = [
    {"flags": ACK | flag} for flag in (FIN, SYN, RST, PSH, URG, ECE, CWR, CWR | ECE, FIN | PSH)
]
DISTURBANCES += [
    *({"flags": flags} for flags in (0, PSH, FIN, 0xFF)),
    *({"ident": ident} for ident in (0, 7, 8, 0xFFFF)),
    *({"seq": seq} for seq in (0, 1, 2, 0xFFFF_FFFF)),
    *({"fragment": fragment} for fragment in (0, 0x2000, 0x4000, 0x8000, 1, 0x1FFF)),
    *({"bad_checksum": difference} for difference in (1, 0x100, 0x8000, 0xFFFF)),
    *({"bad_ip_checksum": difference} for difference in (1, 0x100, 0x8000, 0xFFFF)),
    *({"checksum": value} for value in (0, 0xFFFF)),
    *({"longer": difference} for difference in (-1, 1, -8, 200)),
    *({"udp_longer": difference} for difference in (-1, 1, 0xFFF8)),
    *({"tags": tags} for tags in ((), ((0x8100, 5),), ((0x8100, 6),), ((0x88A8, 5),))),
    *({"reserved": bits} for bits in (1, 15)),
    {"ip_checksum": 0},
    {"partial": True},
    {"tos": 3},
    {"tos": 0x40},
    {"label": 0x100},
    {"label": 0xF0000},
    {"ttl": 63},
    {"source": 77},
    {"sport": 1},
    {"dport": 1},
    {"ack": 5},
    {"window": 5},
    {"urgent": 5},
    {"options": bytes(4)},
    {"options": b"\1\1\1\1\1\1\1\0"},
    {"dst": b"\2\0\0\0\0\x0c"},
    {"src": b"\2\0\0\0\0\x0d"},
    {"between": b"\1\1\1\1\1\1\1\1", "version": 4},
    {"between": bytes(8), "version": 6},
    {"protocol": UDP},
    {"protocol": TCP},
    {"version": 4},
    {"version": 6},
    {"padding": b"\0"},
    {"payload": b""},
]
"""Changes by which a frame differs from others of its flow; some apply to one protocol only."""


class Burst(NamedTuple):
    """Datagrams of one UDP_GRO receive: `stride` octets each, the last may be shorter."""

    prefix_len: int
    stride: int
    frames: list[bytes]

    @property
    def data(self) -> bytes:
        """The octets of all datagrams, with the same prefix in each."""
        return b"".join(b"\xa5" * self.prefix_len + frame for frame in self.frames)


def burst_of(frames: Sequence[Frame | bytes], prefix_len: int = 8) -> Burst:
    """Build a burst; the first frame determines the length of the others."""
    octets = [frame if isinstance(frame, bytes) else frame.build() for frame in frames]
    length = len(octets[0])
    assert all(len(frame) == length for frame in octets[:-1])
    assert len(octets[-1]) <= length
    return Burst(prefix_len, prefix_len + length, octets)


@st.composite
def bursts(draw: st.DrawFn, *, disturbed: bool = True) -> Burst:
    """Draw parts of runs of up to three flows, with some frames changed by `DISTURBANCES`."""
    flow_count = draw(st.sampled_from([1, 1, 1, 2, 3])) if disturbed else 1
    next_frames = [draw(flows()) for _ in range(flow_count)]
    if disturbed and draw(st.booleans()):
        next_frames = [
            replace(next_frames[0], source=number, sport=number) for number in range(flow_count)
        ]
    size = draw(st.one_of(st.integers(1, 9), st.integers(1, 64), st.sampled_from([255, 1400])))
    length = max(flow.head_len for flow in next_frames) + size
    random = draw(st.randoms(use_true_random=False))
    count = draw(st.integers(2, 8))
    choices = draw(st.lists(st.integers(0, flow_count - 1), min_size=count, max_size=count))
    changes = st.tuples(st.integers(0, count - 1), st.booleans(), st.sampled_from(DISTURBANCES))
    disturbances = draw(st.lists(changes, max_size=3)) if disturbed else []
    # An undisturbed burst is one superframe, so all or no checksums are partial.
    partial = draw(often(0, st.integers(0, 255) if disturbed else st.just(-1)))
    frames = []
    for number, choice in enumerate(sorted(choices) if draw(st.booleans()) else choices):
        flow = next_frames[choice]
        payload = random.randbytes(length - flow.head_len)
        last = number == count - 1
        if last:
            payload = payload[: draw(st.one_of(st.just(len(payload)), st.integers(0, 64)))]
        if not disturbed:
            payload = payload or b"x"
        frame = replace(flow, payload=payload, partial=bool(partial >> number & 1))
        if not last and not disturbed:
            frame = replace(frame, flags=frame.flags & ~(FIN | PSH))
        for at, stays, change in disturbances:
            if at == number or (stays and at < number):
                frame = replace(frame, **change)
        octets = frame.build()
        frames.append(octets[:length] if last else octets[:length].ljust(length, b"\0"))
        next_frames[choice] = replace(
            flow,
            ident=(flow.ident + 1) & 0xFFFF,
            seq=flow.seq + len(payload),
            flags=flow.flags & ~CWR,
        )
    prefix_len = draw(st.sampled_from([8, 8, 0, 1, 50]))
    return Burst(prefix_len, prefix_len + length, frames)


@st.composite
def corrupted(draw: st.DrawFn) -> Burst:
    """Draw a burst that would merge completely, with some bits flipped."""
    burst = draw(bursts(disturbed=False))
    frames = [bytearray(frame) for frame in burst.frames]
    for _ in range(draw(st.integers(1, 4))):
        frame = draw(st.sampled_from(frames))
        # Prefer the headers, where most faults can be found, to the longer payload.
        frame[draw(st.integers(0, min(80, len(frame)) - 1))] ^= 1 << draw(st.integers(0, 7))
    return burst._replace(frames=[bytes(frame) for frame in frames])


GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.builds(
        lambda start, rest: start + rest,
        st.sampled_from([Frame(*kind).build() for kind in KINDS.values()]),
        st.binary(max_size=200),
    ),
    corrupted().map(lambda burst: burst.data),
)
"""Arbitrary octets, some of which begin like a frame."""
