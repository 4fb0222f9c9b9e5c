"""From a burst of wire segments to TAP superframes.

A UDP_GRO receive gives datagrams of one remote and one source port in a row, all of one size but
perhaps the last. Where the inner frames are consecutive segments of one TCP flow, or equal-sized
datagrams of one UDP flow, `Merger` makes one superframe of them, as the kernel's GRO would, and the
virtio header that says how to cut it again.

The rule is that nobody can tell. From the first frame the headers are predicted that all others had
if one superframe had been split into them, checksums included, and those that have exactly these
octets are a *train*. So what is merged is split again to the same octets, only neighbours are
merged, and a frame whose checksum is wrong is passed on alone and as it is. A train becomes as many
superframes as its length and its TCP flags ask for. What is refused, and why, follows
wireguard-go's lists and the kernel's, in net/ipv4/tcp_offload.c.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple, TypeAlias

import numpy as np

from vtep.offload.headers import (
    CLOSING,
    COMMON,
    OPENING,
    SEGMENTS_MAX,
    Cut,
    Headers,
    Octets,
    goes_on,
    row_sums,
)
from vtep.offload.partial import is_partial
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_GSO_TYPES = {
    (4, inet.TCP): virtio.GSO_TCPV4,
    (6, inet.TCP): virtio.GSO_TCPV6,
    (4, inet.UDP): virtio.GSO_UDP_L4,
    (6, inet.UDP): virtio.GSO_UDP_L4,
}
_SUPERFRAME_MAX = 0xFFFF
"""Octets of a superframe, so that all length fields hold what they must."""

_FIELD = Struct("!H")

_UDP_SEGMENTS_MAX = 64
"""Segments of a superframe of UDP, beyond which the kernel refuses it (its UDP_MAX_SEGMENTS, which
is 128 since Linux 6.9)."""

_BOLDER = 4
"""How many times as many segments are predicted next, where all were right."""

_Marks: TypeAlias = list[tuple[int, int]]
"""TCP flags that not all segments have, behind the number of the segment that has them."""


class Merged(NamedTuple):
    """What one or several datagrams have become.

    `header` is the virtio header of the superframe that `frame` is, or None where it is a frame as
    it was received. `datagram` is the first of so many `datagrams`: what is true of its VXLAN
    header and MACs is true of all of them.
    """

    header: bytes | None
    frame: memoryview
    datagram: memoryview
    datagrams: int


class Merger:
    """Merges bursts of encapsulated frames.

    Those that are merged have the same `prefix_len` octets before them, too. `tso` and `uso` say
    whether the TAP takes superframes of TCP and of UDP.
    """

    def __init__(self, prefix_len: int, *, uso: bool, tso: bool = True) -> None:
        self._prefix_len = prefix_len
        self.tso = tso
        self.uso = uso
        self._out = memoryview(bytearray(_SUPERFRAME_MAX))
        # Predicted headers: at most all of a train.
        self._predicted: Octets = np.zeros(1 << 16, np.uint8)
        self._headers = Headers(self._predicted, prefix_len)
        self._bold = SEGMENTS_MAX  # How many headers are predicted at first.

    def merge(self, data: memoryview, stride: int) -> Iterator[Merged]:
        """Merge what can be merged of datagrams that lie `stride` octets apart, in their order.

        `data` ends with the last datagram, which may be short. The frames are views of `data` or of
        a buffer that the next one overwrites. Any octets are allowed.
        """
        skip = self._prefix_len
        begin = 0
        while begin < len(data):
            rest = data[begin:] if begin else data
            train = self._train(rest, stride)
            if train is None:
                datagram = rest[:stride]
                yield Merged(None, datagram[skip:], datagram, 1)
                begin += stride
                continue
            cut, marks = train
            for first, count in _superframes(cut, marks):
                at = first * stride
                datagram = rest[at : at + stride]
                if count == 1:
                    yield Merged(None, datagram[skip:], datagram, 1)
                else:
                    last = cut.last if first + count == cut.segments else cut.size
                    header, octets = self._join(rest, at, stride, cut, count, last)
                    yield Merged(header, self._out[:octets], datagram, count)
            begin += cut.segments * stride

    def _train(self, data: memoryview, stride: int) -> tuple[Cut, _Marks] | None:
        """The longest train that begins here, and how it is cut; None if the first is alone."""
        hoped = self._hope(data, stride)
        if hoped is None or hoped[0].segments < 2:
            return None
        cut, marks = hoped
        # Prediction is dear: where it was wrong, it begins with little again.
        tried = min(cut.segments, self._bold)
        count = self._follow(data, stride, _shortened(cut, tried), marks)
        while count == tried < cut.segments:
            tried = min(cut.segments, tried * _BOLDER)
            count = self._follow(data, stride, _shortened(cut, tried), marks)
        self._bold = max(2, count * _BOLDER) if count < cut.segments else SEGMENTS_MAX
        if count < 2:
            return None
        return _shortened(cut, count), [mark for mark in marks if mark[0] < count]

    def _follow(self, data: memoryview, stride: int, cut: Cut, marks: _Marks) -> int:
        """How many datagrams have the headers that are predicted for them."""
        count = self._predict(data, stride, cut, marks, partial=False)
        if count < 2 and is_partial(data[self._prefix_len : stride], cut.where):
            count = self._predict(data, stride, cut, marks, partial=True)
        return count

    def _predict(
        self, data: memoryview, stride: int, cut: Cut, marks: _Marks, *, partial: bool
    ) -> int:
        count, head_len = cut.segments, cut.head_len
        skip = self._prefix_len
        body = skip + head_len
        sums = row_sums(data[body:], count, stride, cut.size, cut.last)
        first, marks = data[skip:stride], [mark for mark in marks if mark[0] < count]
        self._headers.write(data[:skip], first, cut, body, sums, marks=marks, partial=partial)
        received = np.ndarray((count,), f"V{body}", data, 0, (stride,)).tobytes()
        predicted = self._predicted[: count * body].tobytes()
        if received == predicted:
            return count
        differs = np.frombuffer(received, np.uint8) != np.frombuffer(predicted, np.uint8)
        return int(differs.argmax()) // body

    def _hope(self, data: memoryview, stride: int) -> tuple[Cut, _Marks] | None:
        """The longest train that could begin here, and what of its TCP flags not all have.

        Looks at few of the datagrams, since prediction is dear where it fails.
        """
        skip = self._prefix_len
        if len(data) <= stride or stride < skip + ethernet.HEADER_LEN:
            return None
        first = data[skip:stride]
        where = inet.find_transport(first)
        if where is None or where.offset + where.length != len(first):
            return None  # No transport header, or padding.
        if where.offset - where.ip_offset != inet.IP_HEADER_MIN[where.version]:
            return None  # IP options or extension headers.
        tcp = where.protocol == inet.TCP
        transport_len = inet.transport_header_len(first, where)
        head_len = where.offset + transport_len
        size = len(first) - head_len
        if not transport_len or not size or not (self.tso if tcp else self.uso):
            return None
        if not tcp and inet.checksum_field(first, where) == 0:
            return None  # No split leaves it out.
        body = skip + head_len
        count = min(-(-len(data) // stride), len(self._predicted) // body)
        last = min(size, len(data) - (count - 1) * stride - body)
        if last <= 0:  # No payload, or no whole header: it stays alone.
            count, last = count - 1, size
        if count < 2:
            return None
        reach = self._reach(data, stride, where, head_len, count)
        if reach < count:
            count, last = reach, size
        marks: _Marks = []
        if tcp:
            at = skip + where.offset + inet.TCP_FLAGS_OFFSET
            column: Octets = np.ndarray((count,), np.uint8, data, at, (stride,))
            alike, marks = _read_flags(column.tobytes())
            if alike < count:
                count, last = alike, size
            # Only now: where few can be merged, most have been ruled out by less than this.
            if count > 1 and inet.tcp_authentication(first, where):
                return None  # Each code covers one segment.
        return Cut(where, head_len, transport_len, size, count, last), marks

    def _reach(
        self, data: memoryview, stride: int, where: inet.Transport, head_len: int, count: int
    ) -> int:
        """How many of the first `count` datagrams could be a train, as far as a few of them tell.

        If the last one could be its end, so could those between; else the end is looked for.
        """
        skip = self._prefix_len
        prefix, first = data[:skip], data[skip:stride]
        size, scratch = len(first) - head_len, bytearray(first[:head_len])

        def may_follow(row: int) -> bool:
            begin = row * stride + skip
            other = data[begin : begin + head_len]
            return data[begin - skip : begin] == prefix and goes_on(
                other, first, scratch, where, row, size
            )

        if may_follow(count - 1):
            return count
        if not may_follow(1):
            return 1
        within, beyond = 1, count - 1
        while beyond - within > 1:
            row = (within + beyond) // 2
            if may_follow(row):
                within = row
            else:
                beyond = row
        return within + 1

    def _join(
        self, data: memoryview, begin: int, stride: int, cut: Cut, count: int, last: int
    ) -> tuple[bytes, int]:
        """Write the superframe of `count` datagrams, the first of them at `begin`, to the output.

        Gives its virtio header and its length.
        """
        where, head_len, size = cut.where, cut.head_len, cut.size
        body = begin + self._prefix_len
        frame = self._out
        frame[:head_len] = data[body : body + head_len]
        body += head_len
        full = count if last == size else count - 1
        kind = np.dtype(f"V{size}")
        rows: Octets = np.ndarray((full,), kind, frame, head_len)
        rows[:] = np.ndarray((full,), kind, data, body, (stride,))
        octets = head_len + (count - 1) * size + last
        if full < count:
            at = body + full * stride
            frame[octets - last : octets] = data[at : at + last]

        # Lengths, and checksums of a header that was right before.
        ip, at = where.ip_offset, where.offset
        length = octets - at
        if where.version == 4:
            (before,) = _FIELD.unpack_from(frame, ip + 2)
            (header,) = _FIELD.unpack_from(frame, ip + 10)
            total = (header ^ 0xFFFF) + octets - ip - before
            _FIELD.pack_into(frame, ip + 2, octets - ip)
            _FIELD.pack_into(frame, ip + 10, checksum.fold(total) ^ 0xFFFF)
        else:
            _FIELD.pack_into(frame, ip + 4, length)
        gso_type = _GSO_TYPES[where.version, where.protocol]
        if where.protocol == inet.TCP:
            flags = at + inet.TCP_FLAGS_OFFSET
            if frame[flags] & OPENING:
                gso_type |= virtio.GSO_ECN
            frame[flags] |= data[body - head_len + flags + (count - 1) * stride] & CLOSING
        else:
            _FIELD.pack_into(frame, at + 4, length)
        addresses = int.from_bytes(frame[at - inet.ADDRESSES_LEN[where.version] : at])
        offset = inet.CHECKSUM_OFFSET[where.protocol]
        pseudo = checksum.fold(addresses + where.protocol + length)
        _FIELD.pack_into(frame, at + offset, pseudo)
        return virtio.pack_gso(gso_type, head_len, size, at, offset), octets


def _read_flags(column: bytes) -> tuple[int, _Marks]:
    """How many segments with these TCP flags could be a train, and which have more than others."""
    common = column[0] & COMMON
    if common & ~inet.TCP_FLAG_ECE != inet.TCP_FLAG_ACK:
        return 1, []
    marks: _Marks = []
    if column.count(common) != len(column):
        for row, flags in enumerate(column):
            if flags & COMMON != common:
                return row, marks
            if flags != common:
                marks.append((row, flags & ~COMMON))
    return len(column), marks


def _shortened(cut: Cut, segments: int) -> Cut:
    if segments == cut.segments:
        return cut
    return cut._replace(segments=segments, last=cut.size)


def _superframes(cut: Cut, marks: _Marks) -> Iterator[tuple[int, int]]:
    """The first segment of each superframe that a train becomes, and how many it has."""
    room = _SUPERFRAME_MAX - cut.head_len
    limit = _UDP_SEGMENTS_MAX if cut.where.protocol == inet.UDP else SEGMENTS_MAX
    most = min(room // cut.size, limit)
    ends = {cut.segments}
    for row, flags in marks:
        if flags & OPENING:
            ends.add(row)
        if flags & CLOSING:
            ends.add(row + 1)
    first = 0
    for end in sorted(ends):
        while first < end:
            count = end - first
            last = cut.last if end == cut.segments else cut.size
            if (count - 1) * cut.size + last > room or count > limit:
                count = most
            yield first, count
            first += count
