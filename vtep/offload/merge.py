"""Merging of received segments into superframes for the TAP, as the kernel's GRO does.

A UDP_GRO receive returns consecutive datagrams from one remote and one source port. All have the
same size, except perhaps the last. Where the inner frames are consecutive segments of one TCP flow,
or datagrams of equal size of one UDP flow, `Merger` joins them into one superframe and adds the
virtio header with which the kernel can split it again.

Merging is lossless. `Merger` predicts, from the first frame, the headers that the splitter would
have written for the following ones, checksums included. The frames whose headers equal the
prediction octet for octet form a *run*. Hence splitting a superframe restores the received frames,
only adjacent frames are merged, and a frame with a wrong checksum is delivered unchanged. A run
becomes as many superframes as its length and its TCP flags require.

The reasons to refuse a merge follow net/ipv4/tcp_offload.c of the kernel and tun/offload_linux.go
of wireguard-go.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import numpy as np

from vtep.offload.headers import (
    COMMON,
    FIRST_ONLY,
    LAST_ONLY,
    SEGMENTS_MAX,
    EdgeFlags,
    HeaderWriter,
    Octets,
    SegmentPlan,
    is_continuation,
    row_sums,
)
from vtep.offload.partial import has_partial_checksum
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_SUPERFRAME_MAX = 0xFFFF
"""Octets of a superframe, so that no length field overflows."""

_FIELD = Struct("!H")

_UDP_SEGMENTS_MAX = 64
"""Segments of a UDP superframe that every kernel accepts (its UDP_MAX_SEGMENTS, which is 128 since
Linux 6.9)."""

_WINDOW_GROWTH = 4
"""Factor by which the prediction window grows after a prediction that was right throughout."""


class Merged(NamedTuple):
    """A superframe merged from several datagrams, or a frame that was not merged.

    `header` is the virtio header of the superframe, or None for a frame as it was received.
    `datagram` is the first of the `datagrams` datagrams; all of them have its VXLAN header and
    inner MAC addresses.
    """

    header: bytes | None
    frame: memoryview
    datagram: memoryview
    datagrams: int


class Merger:
    """Merges bursts of encapsulated frames into superframes.

    Merged datagrams have the same `prefix_len` octets in front of the inner frame, too. `tso` and
    `uso` are True if the TAP accepts TCP superframes and UDP superframes.
    """

    def __init__(self, prefix_len: int, *, uso: bool, tso: bool = True) -> None:
        self._prefix_len = prefix_len
        self.tso = tso
        self.uso = uso
        self._out = memoryview(bytearray(_SUPERFRAME_MAX))
        self._predicted: Octets = np.zeros(1 << 16, np.uint8)
        self._headers = HeaderWriter(self._predicted, prefix_len)
        # The prediction window: the number of segments whose headers are predicted at once.
        self._window = SEGMENTS_MAX

    def merge(self, data: memoryview, stride: int) -> Iterator[Merged]:
        """Merge datagrams that lie `stride` octets apart in `data`.

        The last datagram may be shorter. Any octets are allowed.

        Yields: superframes and frames in the order of the datagrams. A frame is a view of `data` or
        of a buffer that is reused for the next superframe.
        """
        skip = self._prefix_len
        begin = 0
        while begin < len(data):
            rest = data[begin:] if begin else data
            run = self._find_run(rest, stride)
            if run is None:
                datagram = rest[:stride]
                yield Merged(None, datagram[skip:], datagram, 1)
                begin += stride
                continue
            plan, edge_flags = run
            for first, count in _superframe_ranges(plan, edge_flags):
                offset = first * stride
                datagram = rest[offset : offset + stride]
                if count == 1:
                    yield Merged(None, datagram[skip:], datagram, 1)
                else:
                    last_size = plan.last_size if first + count == plan.segments else plan.size
                    header, octets = self._join(rest, offset, stride, plan, count, last_size)
                    yield Merged(header, self._out[:octets], datagram, count)
            begin += plan.segments * stride

    def _find_run(self, data: memoryview, stride: int) -> tuple[SegmentPlan, EdgeFlags] | None:
        """Find the longest run that begins with the first datagram.

        Returns: the plan of the run and its edge flags (see `EdgeFlags`), or None if the first
        datagram is alone.
        """
        candidate = self._candidate_run(data, stride)
        if candidate is None or candidate[0].segments < 2:
            return None
        plan, edge_flags = candidate
        # A prediction takes 20 to 34 us for 44 segments. After one that failed, the window starts
        # small, so that a burst that cannot be merged is not predicted again for every datagram.
        tried = min(plan.segments, self._window)
        count = self._match_headers(data, stride, _truncated(plan, tried), edge_flags)
        while count == tried < plan.segments:
            tried = min(plan.segments, tried * _WINDOW_GROWTH)
            count = self._match_headers(data, stride, _truncated(plan, tried), edge_flags)
        complete = count == plan.segments
        self._window = SEGMENTS_MAX if complete else max(2, count * _WINDOW_GROWTH)
        if count < 2:
            return None
        return _truncated(plan, count), [entry for entry in edge_flags if entry[0] < count]

    def _match_headers(
        self, data: memoryview, stride: int, plan: SegmentPlan, edge_flags: EdgeFlags
    ) -> int:
        """Count the leading datagrams whose headers equal the prediction.

        If not even two match, partial checksums are predicted instead of complete ones.
        """
        count = self._predict(data, stride, plan, edge_flags, partial=False)
        if count < 2 and has_partial_checksum(data[self._prefix_len : stride], plan.transport):
            count = self._predict(data, stride, plan, edge_flags, partial=True)
        return count

    def _predict(
        self,
        data: memoryview,
        stride: int,
        plan: SegmentPlan,
        edge_flags: EdgeFlags,
        *,
        partial: bool,
    ) -> int:
        """Predict the headers of `plan.segments` datagrams and compare them with those received.

        Returns: the number of leading datagrams that match.
        """
        count = plan.segments
        skip = self._prefix_len
        body = skip + plan.header_len
        sums = row_sums(data[body:], count, stride, plan.size, plan.last_size)
        first, edges = data[skip:stride], [entry for entry in edge_flags if entry[0] < count]
        self._headers.write(data[:skip], first, plan, body, sums, edge_flags=edges, partial=partial)
        received = np.ndarray((count,), f"V{body}", data, 0, (stride,)).tobytes()
        predicted = self._predicted[: count * body].tobytes()
        # The usual case is one memcmp of all headers, in about 1 us.
        if received == predicted:
            return count
        differs = np.frombuffer(received, np.uint8) != np.frombuffer(predicted, np.uint8)
        return int(differs.argmax()) // body

    def _candidate_run(self, data: memoryview, stride: int) -> tuple[SegmentPlan, EdgeFlags] | None:
        """Find the longest run that may begin here, without computing a sum.

        Only a few of the datagrams are examined, because a prediction that fails is expensive.

        Returns: the plan of the candidate and its edge flags, or None if there is none.
        """
        skip = self._prefix_len
        if len(data) <= stride or stride < skip + ethernet.HEADER_LEN:
            return None
        first = data[skip:stride]
        transport = inet.find_transport(first)
        if transport is None or transport.offset + transport.length != len(first):
            return None  # Not TCP or UDP, or padded.
        if transport.offset - transport.ip_offset != inet.IP_HEADER_MIN[transport.version]:
            return None  # IP options or extension headers.
        tcp = transport.protocol == inet.TCP
        transport_header_len = inet.transport_header_len(first, transport)
        header_len = transport.offset + transport_header_len
        size = len(first) - header_len
        if not transport_header_len or not size or not (self.tso if tcp else self.uso):
            return None
        if not tcp and inet.checksum_field(first, transport) == 0:
            return None  # A split always writes a checksum, so it would not restore the frame.
        body = skip + header_len
        count = min(-(-len(data) // stride), len(self._predicted) // body)
        last_size = min(size, len(data) - (count - 1) * stride - body)
        if last_size <= 0:  # The last datagram has no payload or a truncated header.
            count, last_size = count - 1, size
        if count < 2:
            return None
        extent = self._find_extent(data, stride, transport, header_len, count)
        if extent < count:
            count, last_size = extent, size
        edge_flags: EdgeFlags = []
        if tcp:
            offset = skip + transport.offset + inet.TCP_FLAGS_OFFSET
            column: Octets = np.ndarray((count,), np.uint8, data, offset, (stride,))
            mergeable, edge_flags = _scan_tcp_flags(column.tobytes())
            if mergeable < count:
                count, last_size = mergeable, size
            # This test is last, since most runs that are not merged have failed a cheaper one.
            if count > 1 and inet.tcp_authentication(first, transport):
                return None  # The authentication code of a segment covers that segment only.
        plan = SegmentPlan(transport, header_len, transport_header_len, size, count, last_size)
        return plan, edge_flags

    def _find_extent(
        self, data: memoryview, stride: int, transport: inet.Transport, header_len: int, count: int
    ) -> int:
        """Find how many of the first `count` datagrams may form a run.

        If the last datagram continues the first, all between are assumed to do so, too. Otherwise a
        binary search finds the end. So at most log2(count) + 2 datagrams are examined.
        """
        skip = self._prefix_len
        prefix, first = data[:skip], data[skip:stride]
        size, scratch = len(first) - header_len, bytearray(first[:header_len])

        def may_follow(row: int) -> bool:
            begin = row * stride + skip
            other = data[begin : begin + header_len]
            return data[begin - skip : begin] == prefix and is_continuation(
                other, first, scratch, transport, row, size
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
        self,
        data: memoryview,
        begin: int,
        stride: int,
        plan: SegmentPlan,
        count: int,
        last_size: int,
    ) -> tuple[bytes, int]:
        """Write the superframe of the `count` datagrams from offset `begin` on to the output.

        Returns: its virtio header, and its length in octets.
        """
        transport, header_len, size = plan.transport, plan.header_len, plan.size
        body = begin + self._prefix_len
        frame = self._out
        frame[:header_len] = data[body : body + header_len]
        body += header_len
        full = count if last_size == size else count - 1
        dtype = np.dtype(f"V{size}")
        rows: Octets = np.ndarray((full,), dtype, frame, header_len)
        rows[:] = np.ndarray((full,), dtype, data, body, (stride,))
        octets = header_len + (count - 1) * size + last_size
        if full < count:
            offset = body + full * stride
            frame[octets - last_size : octets] = data[offset : offset + last_size]

        # The prediction has verified the IPv4 checksum, so that an incremental update of it for
        # the new length is enough (RFC 1624).
        ip, upper = transport.ip_offset, transport.offset
        length = octets - upper
        if transport.version == 4:
            (before,) = _FIELD.unpack_from(frame, ip + 2)
            (header,) = _FIELD.unpack_from(frame, ip + 10)
            total = (header ^ 0xFFFF) + octets - ip - before
            _FIELD.pack_into(frame, ip + 2, octets - ip)
            _FIELD.pack_into(frame, ip + 10, checksum.fold(total) ^ 0xFFFF)
        else:
            _FIELD.pack_into(frame, ip + 4, length)
        gso_type = virtio.GSO_TYPES[transport.version, transport.protocol]
        if transport.protocol == inet.TCP:
            flags = upper + inet.TCP_FLAGS_OFFSET
            if frame[flags] & FIRST_ONLY:
                gso_type |= virtio.GSO_ECN
            frame[flags] |= data[body - header_len + flags + (count - 1) * stride] & LAST_ONLY
        else:
            _FIELD.pack_into(frame, upper + 4, length)
        addresses = int.from_bytes(frame[upper - inet.ADDRESSES_LEN[transport.version] : upper])
        csum_offset = inet.CHECKSUM_OFFSET[transport.protocol]
        pseudo = checksum.fold(addresses + transport.protocol + length)
        _FIELD.pack_into(frame, upper + csum_offset, pseudo)
        return virtio.pack_gso(gso_type, header_len, size, upper, csum_offset), octets


def _scan_tcp_flags(column: bytes) -> tuple[int, EdgeFlags]:
    """Scan the TCP flags of consecutive segments, one octet each.

    Returns: the number of leading segments that may form a run, and their edge flags.
    """
    common = column[0] & COMMON
    if common & ~inet.TCP_FLAG_ECE != inet.TCP_FLAG_ACK:
        return 1, []
    edge_flags: EdgeFlags = []
    if column.count(common) != len(column):
        for row, flags in enumerate(column):
            if flags & COMMON != common:
                return row, edge_flags
            if flags != common:
                edge_flags.append((row, flags & ~COMMON))
    return len(column), edge_flags


def _truncated(plan: SegmentPlan, segments: int) -> SegmentPlan:
    """Return the plan of the first `segments` segments."""
    if segments == plan.segments:
        return plan
    return plan._replace(segments=segments, last_size=plan.size)


def _superframe_ranges(plan: SegmentPlan, edge_flags: EdgeFlags) -> Iterator[tuple[int, int]]:
    """Divide a run into superframes.

    A superframe ends before a segment with a flag of `FIRST_ONLY`, after one with a flag of
    `LAST_ONLY`, and where it would exceed the limits on octets or segments.

    Yields: the number of the first segment, and the number of segments.
    """
    payload_max = _SUPERFRAME_MAX - plan.header_len
    limit = _UDP_SEGMENTS_MAX if plan.transport.protocol == inet.UDP else SEGMENTS_MAX
    most = min(payload_max // plan.size, limit)
    ends = {plan.segments}
    for row, flags in edge_flags:
        if flags & FIRST_ONLY:
            ends.add(row)
        if flags & LAST_ONLY:
            ends.add(row + 1)
    first = 0
    for end in sorted(ends):
        while first < end:
            count = end - first
            last_size = plan.last_size if end == plan.segments else plan.size
            if (count - 1) * plan.size + last_size > payload_max or count > limit:
                count = most
            yield first, count
            first += count
