"""The headers of consecutive segments: what repeats, and what differs from one to the next.

Splitting writes them. Merging predicts them: what was received is one superframe exactly if its
headers are those that a split would have written. So there is one place that knows how segments
follow each other: IPv4 identification and TCP sequence number count on, lengths are the same but
for the last segment's, and every segment has checksums of its own. The wire formats are in RFC 791,
8200, 9293 and 768; which fields vary is as in the kernel's net/ipv4/tcp_offload.c, udp_offload.c.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vtep.wire import Buffer, checksum
from vtep.wire import ip as inet

Octets: TypeAlias = NDArray[np.uint8]

_IP_LENGTH = {4: 2, 6: 4}
_IP_ID = 4
_IP_CHECKSUM = 10
_TCP_SEQUENCE = 4
_UDP_LENGTH = 4

CLOSING = inet.TCP_FLAG_FIN | inet.TCP_FLAG_PSH
"""TCP flags of a superframe that only its last segment has."""

OPENING = inet.TCP_FLAG_CWR
"""Those that only the first has (RFC 3168, section 6.1.2)."""

SEGMENTS_MAX = 1 << 16
_LAYOUTS_MAX = 64


class Cut(NamedTuple):
    """How a superframe is cut: `segments` with `size` octets of payload each, but the `last`.

    `head_len` are the octets before the payload, `transport_len` those of the TCP or UDP header.
    """

    where: inet.Transport
    head_len: int
    transport_len: int
    size: int
    segments: int
    last: int


class _Layout(NamedTuple):
    """Views of the rows, one for each segment, by field.

    Made once and kept: making them costs more than using them. Big-endian dtypes let numpy turn
    the octets round.
    """

    heads: NDArray[np.void]
    ip_length: NDArray[np.uint16]
    ip_id: NDArray[np.uint16]
    ip_checksum: NDArray[np.uint16]
    sequence: NDArray[np.uint32]
    flags: Octets
    udp_length: NDArray[np.uint16]
    checksum: NDArray[np.uint16]


class Headers:
    """Writes headers into rows of `buffer`, each behind a prefix of `prefix_len` octets."""

    def __init__(self, buffer: Octets, prefix_len: int) -> None:
        self._buffer = buffer
        self._prefix_len = prefix_len
        self._layouts: dict[tuple[int, int, int, int, int], _Layout] = {}
        self._index = np.arange(SEGMENTS_MAX, dtype=np.int64)

    def write(
        self,
        prefix: Buffer,
        frame: Buffer,
        cut: Cut,
        stride: int,
        sums: NDArray[np.int64],
        *,
        flags: int,
        partial: bool = False,
    ) -> None:
        """Write `cut.segments` headers, `stride` octets apart.

        `frame` begins with the headers of the first segment or of the superframe; lengths,
        checksums and TCP flags in them are not looked at. `sums` are those of the payloads, each
        congruent modulo 65535, shape (segments,); they are used up. `flags` are those of the
        superframe, if it is TCP. With `partial`, transport checksums are left to be finished.
        """
        where, count = cut.where, cut.segments
        layout = self._layout(cut, stride)
        head = bytearray(frame[: cut.head_len])
        full = cut.transport_len + cut.size
        short = cut.size - cut.last
        # What is in all of them goes into the first, and from there into every row.
        sequence = _clear(head, where, full, flags)
        length = where.offset - where.ip_offset + full
        if where.version == 6:
            length -= inet.IP_HEADER_MIN[6]
        at = where.ip_offset + _IP_LENGTH[where.version]
        head[at : at + 2] = length.to_bytes(2, "big")
        ids = self._identify(head, where, count) if where.version == 4 else None
        layout.heads[:count] = np.void(bytes(prefix) + head)
        if short:
            layout.ip_length[count - 1] = length - short
        if ids is not None:
            layout.ip_id[:count] = ids
            ids += checksum.ones_sum(head[where.ip_offset : where.offset])
            ids[-1] -= short
            layout.ip_checksum[:count] = _complement(ids)
        # The pseudo-header, with the length of each segment, and then what it comes before.
        if partial:
            sums[:] = 0
        else:
            sums += checksum.ones_sum(head[where.offset :])
        sums += int.from_bytes(inet.addresses(frame, where), "big") % 0xFFFF
        sums += where.protocol + full
        sums[-1] -= short
        if where.protocol == inet.TCP:
            sequences = self._sequences(sequence, cut)
            layout.sequence[:count] = sequences
            if not partial:
                sums += sequences
            for row, some in ((0, flags & OPENING), (count - 1, flags & CLOSING)):
                if some:
                    layout.flags[row] |= some
                    sums[row] += 0 if partial else some
        elif short:
            layout.udp_length[count - 1] = full - short
            sums[-1] -= 0 if partial else short
        layout.checksum[:count] = _folded(sums) if partial else _complement(sums, where.protocol)

    def _sequences(self, first: int, cut: Cut) -> NDArray[np.int64]:
        sequences = self._index[: cut.segments] * cut.size
        sequences += first
        if first + cut.segments * cut.size > 0xFFFF_FFFF:
            sequences &= 0xFFFF_FFFF
        return sequences

    def _identify(self, head: bytearray, where: inet.Transport, count: int) -> NDArray[np.int64]:
        """Leave in an IPv4 header what all have in common; the identification of each."""
        ip = where.ip_offset
        first = int.from_bytes(head[ip + _IP_ID : ip + _IP_ID + 2], "big")
        head[ip + _IP_ID : ip + _IP_ID + 2] = bytes(2)
        head[ip + _IP_CHECKSUM : ip + _IP_CHECKSUM + 2] = bytes(2)
        ids = self._index[:count] + first
        if first + count > 0xFFFF:
            ids &= 0xFFFF
        return ids

    def _layout(self, cut: Cut, stride: int) -> _Layout:
        where = cut.where
        key = (where.version, where.ip_offset, where.offset, cut.head_len, stride)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS_MAX:
                self._layouts.clear()
            layout = self._layouts[key] = self._make_layout(where, cut.head_len, stride)
        return layout

    def _make_layout(self, where: inet.Transport, head_len: int, stride: int) -> _Layout:
        skip = self._prefix_len
        available = len(self._buffer)

        def column(offset: int, dtype: str, octets: int) -> NDArray[np.generic]:
            # The last row may end before its stride does, or have no room for this field.
            count = max(0, (available - offset - octets) // stride + 1)
            return np.ndarray((count,), dtype, self._buffer, offset if count else 0, (stride,))

        ip = skip + where.ip_offset
        transport = skip + where.offset
        columns = (
            column(0, f"V{skip + head_len}", skip + head_len),
            column(ip + _IP_LENGTH[where.version], ">u2", 2),
            column(ip + _IP_ID, ">u2", 2),
            column(ip + _IP_CHECKSUM, ">u2", 2),
            column(transport + _TCP_SEQUENCE, ">u4", 4),
            column(transport + inet.TCP_FLAGS, "u1", 1),
            column(transport + _UDP_LENGTH, ">u2", 2),
            column(transport + inet.CHECKSUM_OFFSET[where.protocol], ">u2", 2),
        )
        return _Layout(*columns)  # type: ignore[arg-type]  # their dtypes are given as text


def _clear(head: bytearray, where: inet.Transport, full: int, flags: int) -> int:
    """Leave in a transport header what all segments have in common; its sequence number, if TCP."""
    at = where.offset
    sequence = 0
    if where.protocol == inet.TCP:
        field = slice(at + _TCP_SEQUENCE, at + _TCP_SEQUENCE + 4)
        sequence = int.from_bytes(head[field], "big")
        head[field] = bytes(4)
        head[at + inet.TCP_FLAGS] = flags & ~OPENING & ~CLOSING
    else:
        head[at + _UDP_LENGTH : at + _UDP_LENGTH + 2] = full.to_bytes(2, "big")
    at += inet.CHECKSUM_OFFSET[where.protocol]
    head[at : at + 2] = bytes(2)
    return sequence


def _complement(sums: NDArray[np.int64], protocol: int = 0) -> NDArray[np.int64]:
    """Checksums for sums, in their place.

    A sum that is 0 modulo 65535 has folded to 0xFFFF, so its complement is 0; but UDP writes that
    as 0xFFFF, since 0 would mean that there is none (RFC 768).
    """
    np.negative(sums, sums)
    sums %= 0xFFFF
    if protocol == inet.UDP:
        sums[sums == 0] = 0xFFFF
    return sums


def _folded(sums: NDArray[np.int64]) -> NDArray[np.int64]:
    """Partial checksums for sums, none of which is 0: only that would fold to 0."""
    return (sums - 1) % 0xFFFF + 1


def row_sums(data: Buffer, rows: int, stride: int, size: int) -> NDArray[np.int64]:
    """Sums of the 16-bit words of `size` octets in each of `rows`, `stride` apart; shape (rows,).

    Words are big endian; an odd last octet is the high one of its word. Each sum is congruent to
    the true one modulo 65535, and is 0 only if that is.
    """
    words: NDArray[np.uint16] = np.ndarray((rows, size // 2), np.uint16, data, 0, (stride, 2))
    sums: NDArray[np.int64] = np.add.reduce(words, axis=1, dtype=np.uint32).astype(np.int64)
    if size & 1 and rows:
        odd: Octets = np.ndarray((rows,), np.uint8, data, size - 1, (stride,))
        sums += odd if np.little_endian else odd.astype(np.int64) << 8
    # The words were read in host order. Swapping the octets of every word multiplies a sum by 256,
    # modulo 65535 (RFC 1071, section 2, B).
    if np.little_endian:
        sums *= 256
    return sums
