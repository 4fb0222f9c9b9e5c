"""The headers of consecutive segments: what repeats, and what differs from one to the next.

Splitting writes them. Merging predicts them: what was received is one superframe exactly if its
headers are those that a split would have written. So there is one place that knows how segments
follow each other: IPv4 identification and TCP sequence number count on, lengths are the same but
for the last segment's, and every segment has checksums of its own. The wire formats are in RFC 791,
8200, 9293 and 768; which fields vary is as in the kernel's net/ipv4/tcp_offload.c, udp_offload.c.

All sums are taken of 16-bit words in host order, and are congruent modulo 65535 to the true one's
complement sum with the octets of the result swapped (RFC 1071, section 2, B). So nothing needs to
be turned round on its way from the payload to the checksum field.
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

_IP_LENGTH = {4: 2, 6: 4}
_IP_ID = 4
_IP_CHECKSUM = 10
_TCP_SEQUENCE = 4
_UDP_LENGTH = 4

CLOSING = inet.TCP_FLAG_FIN | inet.TCP_FLAG_PSH
"""TCP flags of a superframe that only its last segment has."""

OPENING = inet.TCP_FLAG_CWR
"""Those that only the first has (RFC 3168, section 6.1.2)."""

COMMON = 0xFF & ~CLOSING & ~OPENING
"""Those that all segments have."""

SEGMENTS_MAX = 1 << 16
_ROWS_MAX = 128

_FIELD = Struct("!H")
_LENGTH_AND_ID = Struct("!HH")
_FIELD_HERE = Struct("=H")
_SEQUENCE = Struct("!I")

_HOST_ORDER = 256 if np.little_endian else 1
"""Times a sum of big-endian words, modulo 65535: the sum of the same words in host order."""

_MODULUS = np.array(0xFFFF, np.uint32)
_AMPLE = np.uint32(0xFFFF * 40_000)
"""A multiple of 65535 beyond any sum of the words of a segment, which are 32,768 at most."""

_COUNT_UP = (np.arange(2 << 16) & 0xFFFF).astype(">u2")
"""Identifications in a row, as they are on the wire: a slice of this, from the first one on."""

_COUNT_DOWN = (-np.arange(2 << 16) % 0xFFFF).astype(">u2")
"""Checksums of headers whose sum grows by one from each to the next: from the first sum on."""


class Cut(NamedTuple):
    """How a superframe is cut: `segments` with `size` octets of payload each, but the `last`.

    `head_len` are the octets before the payload, `transport_len` those of the TCP or UDP header.
    Superframes of which each goes on where the one before ends are cut as if they were one.
    """

    where: inet.Transport
    head_len: int
    transport_len: int
    size: int
    segments: int
    last: int


class _Rows(NamedTuple):
    """A number of rows: views by field, one element for each, and what helps to fill them.

    Made once and kept: making them costs more than using them.
    """

    template: NDArray[np.void]
    head: memoryview
    """The octets of `template`, from which all heads are copied."""
    heads: NDArray[np.void]
    ip_length: Words
    ip_id: Words
    ip_checksum: Words
    sequence: NDArray[np.uint32]
    flags: Octets
    udp_length: Words
    checksum: Words
    steps: Sums
    """What the sequence numbers are further than the first; shape (segments,)."""
    less_steps: Sums
    """Their sums in host order, taken from something ample."""
    scratch: Sums


class Headers:
    """Writes headers into rows of `buffer`, each behind a prefix of `prefix_len` octets."""

    def __init__(self, buffer: Octets, prefix_len: int) -> None:
        self._buffer = buffer
        self._prefix_len = prefix_len
        self._rows: dict[tuple[int, ...], _Rows] = {}

    def write(
        self,
        prefix: Buffer,
        frame: Buffer,
        cut: Cut,
        stride: int,
        sums: Sums,
        *,
        marks: Iterable[tuple[int, int]] = (),
        partial: bool = False,
    ) -> None:
        """Write `cut.segments` headers, `stride` octets apart.

        `frame` begins with the headers of the first segment or of the superframe; lengths and
        checksums in them are not looked at, nor are TCP flags that not all segments have. Those
        are in `marks`: the number of a segment, and the flags that it has besides. `sums` are
        those of the payloads as `row_sums` gives them, shape (segments,); they are used up. With
        `partial`, transport checksums are left to be finished.
        """
        where, skip = cut.where, self._prefix_len
        rows = self._rows_for(cut, stride)
        head = rows.head
        head[:skip] = prefix
        head[skip:] = frame[: cut.head_len]
        ip, at = skip + where.ip_offset, skip + where.offset
        full = cut.transport_len + cut.size
        short = cut.size - cut.last
        tcp = where.protocol == inet.TCP

        # What is in all of them goes into the template; what is not is zero there, but for the
        # sequence number, which is that of the first.
        if tcp:
            head[at + inet.TCP_FLAGS_OFFSET] &= COMMON
        else:
            _FIELD.pack_into(head, at + _UDP_LENGTH, full)
        _FIELD.pack_into(head, at + inet.CHECKSUM_OFFSET[where.protocol], 0)
        if where.version == 4:
            pseudo = int.from_bytes(head[ip + 12 : ip + 20]) + where.protocol + full
            _write_ip4(rows, ip, at, full, short)
        else:
            pseudo = int.from_bytes(head[ip + 8 : ip + 40]) + where.protocol + full
            _write_ip6(rows, ip, at, full, short)

        # What differs, in the columns and in the sums of the rows.
        if tcp:
            _count_on(rows, at, cut, sums)
            for row, flags in marks:
                rows.flags[row] |= flags
                sums[row] += _sum(flags)
        elif short:
            rows.udp_length[-1] = full - short
            sums[-1] += _sum(-short)
        if short:  # In the pseudo-header.
            sums[-1] += _sum(-short)

        if partial:
            rows.checksum[:] = _in_host_order(checksum.fold(pseudo))
            rows.checksum[-1] = _in_host_order(checksum.fold(pseudo - short))
            return
        np.subtract(rows.less_steps, sums, sums)
        # 0 to 65534 for TCP, 1 to 65535 for UDP, where 0 means that there is no checksum (RFC 768).
        one = 0 if tcp else 1
        sums += 0xFFFF - _sum(pseudo + int.from_bytes(head[at:])) - one
        sums %= _MODULUS
        if one:
            sums += one
        rows.checksum[:] = sums

    def _rows_for(self, cut: Cut, stride: int) -> _Rows:
        where = cut.where
        key = (*where[:4], cut.head_len, cut.size, cut.segments, stride)
        rows = self._rows.get(key)
        if rows is None:
            if len(self._rows) >= _ROWS_MAX:
                self._rows.clear()
            rows = self._rows[key] = self._make_rows(cut, stride)
        return rows

    def _make_rows(self, cut: Cut, stride: int) -> _Rows:
        where, count = cut.where, cut.segments
        skip = self._prefix_len
        head_len = skip + cut.head_len

        def column(offset: int, dtype: str) -> NDArray[np.generic]:
            return np.ndarray((count,), dtype, self._buffer, offset, (stride,))

        ip = skip + where.ip_offset
        transport = skip + where.offset
        tcp = where.protocol == inet.TCP
        head = bytearray(head_len)
        steps = np.arange(count, dtype=np.int64) * (cut.size if tcp else 0)
        columns = (
            np.frombuffer(head, f"V{head_len}"),
            memoryview(head),
            column(0, f"V{head_len}"),
            column(ip + _IP_LENGTH[where.version], ">u2"),
            column(ip + _IP_ID, ">u2"),
            column(ip + _IP_CHECKSUM, ">u2"),
            # Fields of the other protocol are not used, but must be somewhere.
            column(transport + (_TCP_SEQUENCE if tcp else 0), ">u4"),
            column(transport + (inet.TCP_FLAGS_OFFSET if tcp else 0), "u1"),
            column(transport + _UDP_LENGTH, ">u2"),
            column(transport + inet.CHECKSUM_OFFSET[where.protocol], "u2"),
            steps.astype(np.uint32),
            (_AMPLE - steps * _HOST_ORDER % 0xFFFF).astype(np.uint32),
            np.empty(count, np.uint32),
        )
        return _Rows(*columns)  # type: ignore[arg-type]  # their dtypes are given as text


def goes_on(
    frame: Buffer, first: Buffer, scratch: bytearray, where: inet.Transport, steps: int, size: int
) -> bool:
    """Whether a frame's headers are those of the segment `steps` behind that of `first`.

    So far as that can be told without a sum: lengths, checksums, and TCP flags that not all
    segments have, may be any. `size` is the payload of each segment. `scratch` are all headers of
    `first`, and may have been used for this before.
    """
    head, ip, at = scratch, where.ip_offset, where.offset
    if len(frame) < len(head):
        return False
    length = ip + _IP_LENGTH[where.version]
    head[length : length + 2] = frame[length : length + 2]
    if where.version == 4:
        (first_id,) = _FIELD.unpack_from(first, ip + _IP_ID)
        _FIELD.pack_into(head, ip + _IP_ID, first_id + steps & 0xFFFF)
        field = ip + _IP_CHECKSUM
        head[field : field + 2] = frame[field : field + 2]
    if where.protocol == inet.TCP:
        (sequence,) = _SEQUENCE.unpack_from(first, at + _TCP_SEQUENCE)
        _SEQUENCE.pack_into(head, at + _TCP_SEQUENCE, sequence + steps * size & 0xFFFF_FFFF)
        flags = at + inet.TCP_FLAGS_OFFSET
        head[flags] = head[flags] & COMMON | frame[flags] & ~COMMON
        field = at + inet.CHECKSUM_OFFSET[inet.TCP]
        head[field : field + 2] = frame[field : field + 2]
    else:  # Length and checksum are neighbours.
        field = at + _UDP_LENGTH
        head[field : field + 4] = frame[field : field + 4]
    return head == frame[: len(head)]


def _write_ip4(rows: _Rows, ip: int, at: int, full: int, short: int) -> None:
    """Write all heads, with the fields of an IPv4 header, which is from `ip` to `at`."""
    head, count = rows.head, len(rows.heads)
    length = at - ip + full
    first = head[ip + _IP_ID] << 8 | head[ip + _IP_ID + 1]
    _LENGTH_AND_ID.pack_into(head, ip + _IP_LENGTH[4], length, 0)
    _FIELD.pack_into(head, ip + _IP_CHECKSUM, 0)
    rows.heads[:] = rows.template
    rows.ip_id[:] = _COUNT_UP[first : first + count]
    # The sum of the header grows with the identification, until that begins again from 0.
    header = int.from_bytes(head[ip:at])
    before_wrap = min(count, 0x10000 - first)
    begin = (header + first) % 0xFFFF
    rows.ip_checksum[:before_wrap] = _COUNT_DOWN[begin : begin + before_wrap]
    if before_wrap < count:
        begin = header % 0xFFFF
        rows.ip_checksum[before_wrap:] = _COUNT_DOWN[begin : begin + count - before_wrap]
    if short:
        rows.ip_length[-1] = length - short
        rows.ip_checksum[-1] = (int(rows.ip_checksum[-1]) + short) % 0xFFFF


def _write_ip6(rows: _Rows, ip: int, at: int, full: int, short: int) -> None:
    """Write all heads, with the length in an IPv6 header, which is at `ip`."""
    length = at - ip - inet.IP_HEADER_MIN[6] + full
    _FIELD.pack_into(rows.head, ip + _IP_LENGTH[6], length)
    rows.heads[:] = rows.template
    if short:
        rows.ip_length[-1] = length - short


def _count_on(rows: _Rows, at: int, cut: Cut, sums: Sums) -> None:
    """Write the sequence numbers, of which the template has the first."""
    (first,) = _SEQUENCE.unpack_from(rows.head, at + _TCP_SEQUENCE)
    sequence = np.add(rows.steps, first, rows.scratch)
    rows.sequence[:] = sequence
    if first + cut.segments * cut.size > 0xFFFF_FFFF:
        # Those that have wrapped are 2^32 less, which is 1 less modulo 65535.
        sums[sequence < first] += _sum(-1)


def _sum(value: int) -> int:
    """What a number, of words in network order, adds to a sum in host order; 0 to 65534."""
    return value * _HOST_ORDER % 0xFFFF


def _in_host_order(field: int) -> int:
    """What a field holds for this host if it spells `field` in network order."""
    (value,) = _FIELD_HERE.unpack(_FIELD.pack(field))
    return int(value)


def row_sums(data: Buffer, rows: int, stride: int, size: int, last: int) -> Sums:
    """Sums of the 16-bit words in each of `rows`, `stride` apart; shape (rows,).

    All rows have `size` octets but the last one, which has `last`. Words are in host order; an odd
    last octet is the first of its word. Each sum is congruent to the true one modulo 65535, and
    is 0 only if that is. Rows have 65,535 octets at most.
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
        at = full * stride
        sums[full] = _sum(checksum.ones_sum(data[at : at + last]))
    return sums


def negated(sums: Sums) -> Sums:
    """Checksums for rows with these sums: 0 to 65534, in host order too; `sums` are used up."""
    np.subtract(_AMPLE, sums, sums)
    np.remainder(sums, _MODULUS, sums)
    return sums
