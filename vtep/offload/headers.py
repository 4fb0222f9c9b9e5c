"""Headers of the consecutive segments of a superframe.

The splitter writes these headers. The merger predicts them: received segments form one superframe
exactly if they have the headers that the splitter would write. Both therefore share this module,
which is the only one that knows how the headers of segments differ: IPv4 identification and TCP
sequence number increase, all lengths but those of the last segment are equal, some TCP flags belong
to the first or last segment only, and every segment has its own checksums.

Formats: RFC 791, 8200, 9293 and 768. The fields that vary follow the kernel's
net/ipv4/tcp_offload.c and udp_offload.c.

Sums are sums of 16-bit words in host byte order. Such a sum is congruent modulo 65535 to the one's
complement sum in network order with its octets swapped (RFC 1071, section 2, B), so that neither
the payload nor the checksum field needs a byte swap.
"""

from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vtep.wire import Buffer, checksum
from vtep.wire import ip as inet

Octets: TypeAlias = NDArray[np.uint8]
Words: TypeAlias = NDArray[np.uint16]
Sums: TypeAlias = NDArray[np.uint32]

EdgeFlags: TypeAlias = list[tuple[int, int]]
"""Segments with TCP flags outside of `COMMON`: pairs of a segment's number and these flags."""

_IP_LENGTH = {4: 2, 6: 4}
_IP_ID = 4
_IP_CHECKSUM = 10
_TCP_SEQUENCE = 4
_UDP_LENGTH = 4

LAST_ONLY = inet.TCP_FLAG_FIN | inet.TCP_FLAG_PSH
"""TCP flags of a superframe that only its last segment carries."""

FIRST_ONLY = inet.TCP_FLAG_CWR
"""TCP flags of a superframe that only its first segment carries (RFC 3168, section 6.1.2)."""

COMMON = 0xFF & ~LAST_ONLY & ~FIRST_ONLY
"""TCP flags of a superframe that all segments carry."""

SEGMENTS_MAX = 1 << 16
"""Segments of one plan, so that no two have the same IPv4 identification."""

_MATRICES_MAX = 128

_FIELD = Struct("!H")
_LENGTH_AND_ID = Struct("!HH")
_HOST_FIELD = Struct("=H")
_SEQUENCE = Struct("!I")

_HOST_ORDER = 256 if np.little_endian else 1
"""Factor that converts a sum of big-endian words to host order, modulo 65535."""

_MODULUS = np.array(0xFFFF, np.uint32)
_SUM_BIAS = np.uint32(0xFFFF * 40_000)
"""A multiple of 65535 above the largest sum of a segment, which has 32,768 words at most. It keeps
unsigned subtractions from wrapping."""

_IDENTIFICATIONS = (np.arange(2 << 16) & 0xFFFF).astype(">u2")
"""Consecutive IPv4 identifications; a slice starts at the first one and wraps."""

_DECREASING_CHECKSUMS = (-np.arange(2 << 16) % 0xFFFF).astype(">u2")
"""Checksums of headers whose sums increase by one; a slice starts at the first sum."""


class SegmentPlan(NamedTuple):
    """The segmentation of one superframe, or of several consecutive ones.

    Every segment but the last has `size` octets of payload, and the last has `last_size`.
    `header_len` counts the octets before the payload in the frame, `transport_header_len` those of
    the TCP or UDP header.
    """

    transport: inet.Transport
    header_len: int
    transport_header_len: int
    size: int
    segments: int
    last_size: int


class _HeaderMatrix(NamedTuple):
    """Numpy views of the headers of one plan: one row for each segment, one column for each field.

    The views are cached, because creating them takes longer than writing through them.
    """

    template: NDArray[np.void]
    head: memoryview
    """The octets of `template`, which is copied to all rows."""
    rows: NDArray[np.void]
    ip_length: Words
    ip_id: Words
    ip_checksum: Words
    sequence: NDArray[np.uint32]
    flags: Octets
    udp_length: Words
    checksum: Words
    steps: Sums
    """Distance of each sequence number from the first; shape (segments,)."""
    negated_steps: Sums
    """`_SUM_BIAS` minus the host-order sum of each step; shape (segments,)."""
    scratch: Sums


class HeaderWriter:
    """Writes segment headers to rows of `buffer`, each behind a prefix of `prefix_len` octets."""

    def __init__(self, buffer: Octets, prefix_len: int) -> None:
        self._buffer = buffer
        self._prefix_len = prefix_len
        self._matrices: dict[tuple[int, ...], _HeaderMatrix] = {}

    def write(
        self,
        prefix: Buffer,
        frame: Buffer,
        plan: SegmentPlan,
        stride: int,
        sums: Sums,
        *,
        edge_flags: Iterable[tuple[int, int]] = (),
        partial: bool = False,
    ) -> None:
        """Write the headers of `plan.segments` segments, `stride` octets apart.

        `frame` begins with the headers of the superframe or of its first segment. Their lengths and
        checksums are ignored, and so are their TCP flags outside of `COMMON`: `edge_flags` lists
        those (see `EdgeFlags`). `sums` are the payload sums from `row_sums`, uint32 of shape
        (segments,). With `partial`, transport checksums are left partial.

        Side effects: overwrites `sums`, which saves an allocation per call.
        """
        transport, skip = plan.transport, self._prefix_len
        matrix = self._matrix_for(plan, stride)
        head = matrix.head
        head[:skip] = prefix
        head[skip:] = frame[: plan.header_len]
        ip, upper = skip + transport.ip_offset, skip + transport.offset
        full = plan.transport_header_len + plan.size
        short = plan.size - plan.last_size
        tcp = transport.protocol == inet.TCP

        # The template holds the fields that all segments share. Fields that differ are zero in it,
        # except the sequence number, which is that of the first segment.
        if tcp:
            head[upper + inet.TCP_FLAGS_OFFSET] &= COMMON
        else:
            _FIELD.pack_into(head, upper + _UDP_LENGTH, full)
        _FIELD.pack_into(head, upper + inet.CHECKSUM_OFFSET[transport.protocol], 0)
        if transport.version == 4:
            pseudo = int.from_bytes(head[ip + 12 : ip + 20]) + transport.protocol + full
            _write_ipv4(matrix, ip, upper, full, short)
        else:
            pseudo = int.from_bytes(head[ip + 8 : ip + 40]) + transport.protocol + full
            _write_ipv6(matrix, ip, upper, full, short)

        # Fields that differ are written by column, and added to the sum of their row.
        if tcp:
            _write_sequence_numbers(matrix, upper, plan, sums)
            for row, flags in edge_flags:
                matrix.flags[row] |= flags
                sums[row] += _host_sum(flags)
        elif short:
            matrix.udp_length[-1] = full - short
            sums[-1] += _host_sum(-short)
        if short:  # The pseudo-header contains the length, too.
            sums[-1] += _host_sum(-short)

        if partial:
            matrix.checksum[:] = _host_field(checksum.fold(pseudo))
            matrix.checksum[-1] = _host_field(checksum.fold(pseudo - short))
            return
        # A checksum is the negated sum of payload, sequence step, pseudo-header and shared header.
        np.subtract(matrix.negated_steps, sums, sums)
        # A TCP checksum is 0 to 65534, a UDP checksum 1 to 65535: 0 means none (RFC 768).
        lowest = 0 if tcp else 1
        sums += 0xFFFF - _host_sum(pseudo + int.from_bytes(head[upper:])) - lowest
        sums %= _MODULUS
        if lowest:
            sums += lowest
        matrix.checksum[:] = sums

    def _matrix_for(self, plan: SegmentPlan, stride: int) -> _HeaderMatrix:
        """Return the cached views for a plan, or create them.

        A full cache is emptied: a flow uses few shapes, and the limit only bounds the memory.
        """
        transport = plan.transport
        key = (*transport[:4], plan.header_len, plan.size, plan.segments, stride)
        matrix = self._matrices.get(key)
        if matrix is None:
            if len(self._matrices) >= _MATRICES_MAX:
                self._matrices.clear()
            matrix = self._matrices[key] = self._make_matrix(plan, stride)
        return matrix

    def _make_matrix(self, plan: SegmentPlan, stride: int) -> _HeaderMatrix:
        """Create the views of the buffer for a plan."""
        transport, count = plan.transport, plan.segments
        skip = self._prefix_len
        row_len = skip + plan.header_len

        def column(offset: int, dtype: str) -> NDArray[np.generic]:
            return np.ndarray((count,), dtype, self._buffer, offset, (stride,))

        ip = skip + transport.ip_offset
        upper = skip + transport.offset
        tcp = transport.protocol == inet.TCP
        head = bytearray(row_len)
        steps = np.arange(count, dtype=np.int64) * (plan.size if tcp else 0)
        columns = (
            np.frombuffer(head, f"V{row_len}"),
            memoryview(head),
            column(0, f"V{row_len}"),
            column(ip + _IP_LENGTH[transport.version], ">u2"),
            column(ip + _IP_ID, ">u2"),
            column(ip + _IP_CHECKSUM, ">u2"),
            # The columns of the other protocol are unused, but need a valid offset.
            column(upper + (_TCP_SEQUENCE if tcp else 0), ">u4"),
            column(upper + (inet.TCP_FLAGS_OFFSET if tcp else 0), "u1"),
            column(upper + _UDP_LENGTH, ">u2"),
            column(upper + inet.CHECKSUM_OFFSET[transport.protocol], "u2"),
            steps.astype(np.uint32),
            (_SUM_BIAS - steps * _HOST_ORDER % 0xFFFF).astype(np.uint32),
            np.empty(count, np.uint32),
        )
        return _HeaderMatrix(*columns)  # type: ignore[arg-type]  # dtypes given as text


def is_continuation(
    frame: Buffer,
    first: Buffer,
    scratch: bytearray,
    transport: inet.Transport,
    steps: int,
    size: int,
) -> bool:
    """Return True if a frame has the headers of the segment `steps` after that of `first`.

    Fields that need a sum or differ at the edges are not compared: lengths, checksums, and TCP
    flags outside of `COMMON`. `size` is the payload of each segment, in octets. `scratch` holds a
    copy of all headers of `first`; a call may leave it changed, but fit for the next call.
    """
    head, ip, upper = scratch, transport.ip_offset, transport.offset
    if len(frame) < len(head):
        return False
    length = ip + _IP_LENGTH[transport.version]
    head[length : length + 2] = frame[length : length + 2]
    if transport.version == 4:
        (first_id,) = _FIELD.unpack_from(first, ip + _IP_ID)
        _FIELD.pack_into(head, ip + _IP_ID, first_id + steps & 0xFFFF)
        field = ip + _IP_CHECKSUM
        head[field : field + 2] = frame[field : field + 2]
    if transport.protocol == inet.TCP:
        (sequence,) = _SEQUENCE.unpack_from(first, upper + _TCP_SEQUENCE)
        _SEQUENCE.pack_into(head, upper + _TCP_SEQUENCE, sequence + steps * size & 0xFFFF_FFFF)
        flags = upper + inet.TCP_FLAGS_OFFSET
        head[flags] = head[flags] & COMMON | frame[flags] & ~COMMON
        field = upper + inet.CHECKSUM_OFFSET[inet.TCP]
        head[field : field + 2] = frame[field : field + 2]
    else:  # Length and checksum are adjacent in a UDP header.
        field = upper + _UDP_LENGTH
        head[field : field + 4] = frame[field : field + 4]
    # One comparison of the whole prediction is cheaper than one for each field.
    return head == frame[: len(head)]


def _write_ipv4(matrix: _HeaderMatrix, ip: int, upper: int, full: int, short: int) -> None:
    """Write all rows with an IPv4 header, which spans the octets from `ip` to `upper`.

    `full` counts the octets of each transport segment, and the last one has `short` fewer.
    """
    head, count = matrix.head, len(matrix.rows)
    length = upper - ip + full
    first = head[ip + _IP_ID] << 8 | head[ip + _IP_ID + 1]
    _LENGTH_AND_ID.pack_into(head, ip + _IP_LENGTH[4], length, 0)
    _FIELD.pack_into(head, ip + _IP_CHECKSUM, 0)
    matrix.rows[:] = matrix.template
    matrix.ip_id[:] = _IDENTIFICATIONS[first : first + count]
    # The sum of the header increases with the identification until that wraps to 0. So two slices
    # of a table give all checksums without a computation for each row.
    header = int.from_bytes(head[ip:upper])
    before_wrap = min(count, 0x10000 - first)
    begin = (header + first) % 0xFFFF
    matrix.ip_checksum[:before_wrap] = _DECREASING_CHECKSUMS[begin : begin + before_wrap]
    if before_wrap < count:
        begin = header % 0xFFFF
        after_wrap = count - before_wrap
        matrix.ip_checksum[before_wrap:] = _DECREASING_CHECKSUMS[begin : begin + after_wrap]
    if short:
        matrix.ip_length[-1] = length - short
        matrix.ip_checksum[-1] = (int(matrix.ip_checksum[-1]) + short) % 0xFFFF


def _write_ipv6(matrix: _HeaderMatrix, ip: int, upper: int, full: int, short: int) -> None:
    """Write all rows with an IPv6 header at `ip`; see `_write_ipv4` for the other arguments."""
    length = upper - ip - inet.IP_HEADER_MIN[6] + full
    _FIELD.pack_into(matrix.head, ip + _IP_LENGTH[6], length)
    matrix.rows[:] = matrix.template
    if short:
        matrix.ip_length[-1] = length - short


def _write_sequence_numbers(
    matrix: _HeaderMatrix, upper: int, plan: SegmentPlan, sums: Sums
) -> None:
    """Write the sequence number of every row; the template contains that of the first."""
    (first,) = _SEQUENCE.unpack_from(matrix.head, upper + _TCP_SEQUENCE)
    sequence = np.add(matrix.steps, first, matrix.scratch)
    matrix.sequence[:] = sequence
    if first + plan.segments * plan.size > 0xFFFF_FFFF:
        # A number that has wrapped is 2^32 smaller, which is 1 modulo 65535.
        sums[sequence < first] += _host_sum(-1)


def _host_sum(value: int) -> int:
    """Convert a sum in network order to a sum in host order, from 0 to 65534."""
    return value * _HOST_ORDER % 0xFFFF


def _host_field(field: int) -> int:
    """Convert a 16-bit field in network order to the integer that this host reads from it."""
    (value,) = _HOST_FIELD.unpack(_FIELD.pack(field))
    return int(value)


def row_sums(data: Buffer, rows: int, stride: int, size: int, last: int) -> Sums:
    """Sum the 16-bit words of each of `rows` rows, which lie `stride` octets apart.

    All rows have `size` octets except the last, which has `last`. A row has 65,535 octets at most.
    An odd last octet is the first octet of its word.

    Returns: uint32 of shape (rows,), congruent modulo 65535 to the sums in host order. One numpy
    reduction over 64 KiB takes about 9 us, against 100 us or more for `checksum.ones_sum`.
    """
    full = rows if last == size else rows - 1
    sums: Sums = np.empty(rows, np.uint32)
    if full:
        words: Words = np.ndarray((full, size // 2), np.uint16, data, 0, (stride, 2))
        np.add.reduce(words, axis=1, dtype=np.uint32, out=sums[:full])
        if size & 1:
            odd: Octets = np.ndarray((full,), np.uint8, data, size - 1, (stride,))
            sums[:full] += odd if np.little_endian else odd.astype(np.uint32) << 8
    if full < rows:
        offset = full * stride
        sums[full] = _host_sum(checksum.ones_sum(data[offset : offset + last]))
    return sums


def negate_sums(sums: Sums) -> Sums:
    """Convert row sums to checksums in host order, from 0 to 65534.

    Side effects: `sums` is overwritten and returned.
    """
    np.subtract(_SUM_BIAS, sums, sums)
    np.remainder(sums, _MODULUS, sums)
    return sums
