"""From one TAP superframe to the segments that go on the wire.

A TAP device that offers segmentation offload gives us TCP and UDP as *superframes*: one set of
headers, up to 64 KiB of payload, and a virtio header that says how large the segments are to be.
`Splitter` does what a network card would: it repeats the headers before each piece of the payload,
and writes into each of them what differs.

The segments are laid out for one UDP_SEGMENT send: each is `stride` octets, the last may be
shorter, and each begins with the VXLAN header. The wire formats are in RFC 791, 8200, 9293
and 768; which fields vary is as in the kernel's net/ipv4/tcp_offload.c and udp_offload.c.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vtep.wire import Buffer, checksum, ethernet, virtio
from vtep.wire import ip as inet

Octets = NDArray[np.uint8]

_IP_ID = 4
_IP_CHECKSUM = 10
_TCP_SEQUENCE = 4
_UDP_LENGTH = 4
_LAST_ONLY = inet.TCP_FLAG_FIN | inet.TCP_FLAG_PSH

_KINDS = frozenset(
    (
        (virtio.GSO_TCPV4, 4, inet.TCP),
        (virtio.GSO_TCPV6, 6, inet.TCP),
        (virtio.GSO_UDP_L4, 4, inet.UDP),
        (virtio.GSO_UDP_L4, 6, inet.UDP),
    )
)
"""GSO type, IP version and protocol that belong together."""

_LAYOUTS_MAX = 64


class SplitError(ValueError):
    """A virtio header that contradicts its frame."""


class _Cut(NamedTuple):
    """How a superframe is to be cut: `segments` of `size` octets of payload, but the `last`.

    `head_len` are the octets before the payload, `transport_len` those of the TCP or UDP header.
    """

    where: inet.Transport
    head_len: int
    transport_len: int
    size: int
    segments: int
    last: int


def _cut(frame: memoryview, gso: virtio.Header) -> _Cut:
    """Judge a superframe and its virtio header; raises SplitError."""
    where = inet.transport(frame) if len(frame) >= ethernet.HEADER_LEN else None
    if where is None:
        raise SplitError("no TCP or UDP header to repeat")
    kind = gso.gso_type & ~virtio.GSO_ECN
    if (kind, where.version, where.protocol) not in _KINDS:
        raise SplitError(f"GSO type {gso.gso_type} does not match the frame")
    tcp = where.protocol == inet.TCP
    transport_len = inet.tcp_header_len(frame, where) if tcp else inet.UDP_HEADER_LEN
    payload = where.length - transport_len
    if not gso.gso_size or not transport_len or not payload:
        raise SplitError("no payload, or no size for its segments")
    # A size beyond the payload could be one that no length field holds.
    size = min(gso.gso_size, payload)
    count = -(-payload // size)
    last = payload - (count - 1) * size
    head_len = where.offset + transport_len
    return _Cut(where, head_len, transport_len, size, count, last)


def _clear(head: bytearray, where: inet.Transport) -> None:
    """Zero the fields of the transport header that differ between segments."""
    at = where.offset
    if where.protocol == inet.TCP:
        head[at + _TCP_SEQUENCE : at + _TCP_SEQUENCE + 4] = bytes(4)
        head[at + inet.TCP_FLAGS] = 0
    else:
        head[at + _UDP_LENGTH : at + _UDP_LENGTH + 2] = bytes(2)
    at += inet.CHECKSUM_OFFSET[where.protocol]
    head[at : at + 2] = bytes(2)


class _Layout(NamedTuple):
    """Views of the output for one header length and segment size, a row for each segment.

    Made once and kept: making them costs more than using them. Big-endian dtypes let numpy turn
    the octets round.
    """

    heads: NDArray[np.void]
    payloads: NDArray[np.void]
    ip_length: NDArray[np.uint16]
    ip_id: NDArray[np.uint16]
    ip_checksum: NDArray[np.uint16]
    sequence: NDArray[np.uint32]
    flags: Octets
    udp_length: NDArray[np.uint16]
    checksum: NDArray[np.uint16]


class Splitter:
    """Splits superframes of one segment (VNI) into `out`.

    `prefix` goes before every segment: its VXLAN header. `capacity` is the size of `out` in octets.
    """

    def __init__(self, prefix: bytes, capacity: int = 1 << 18) -> None:
        self.out: Octets = np.zeros(capacity, np.uint8)
        self._prefix = prefix
        self._layouts: dict[tuple[int, int, int, int, int], _Layout] = {}
        self._index = np.arange(1 << 16, dtype=np.int64)

    def split(self, frame: memoryview, gso: virtio.Header) -> tuple[int, int]:
        """Write the segments of a superframe, without its virtio header, to `out`.

        Gives the octets written and the stride. Checksums are computed anew, so it does not matter
        what the frame has in their place; the header length that `gso` states is not looked at,
        since forwarded frames state a wrong one. Raises SplitError, having promised nothing of
        `out`, where `gso` is not about TCP or UDP segments of this frame, or `out` is too small.
        """
        cut = _cut(frame, gso)
        stride = len(self._prefix) + cut.head_len + cut.size
        octets = (cut.segments - 1) * stride + stride - cut.size + cut.last
        if octets > len(self.out):
            raise SplitError(f"{octets} octets of segments do not fit into {len(self.out)}")
        layout = self._layout(cut)
        # What all segments have in common, with zeros where they differ.
        head = bytearray(frame[: cut.head_len])
        _clear(head, cut.where)
        layout.heads[: cut.segments] = np.void(self._prefix + head)
        self._write_network(layout, frame, cut)
        sums = self._write_payload(layout, frame, cut, octets)
        sums += inet.pseudo_sum(frame, cut.where) - cut.where.length
        sums += checksum.ones_sum(head[cut.where.offset :])
        self._write_transport(layout, frame, cut, sums)
        return octets, stride

    def _write_payload(
        self, layout: _Layout, frame: memoryview, cut: "_Cut", octets: int
    ) -> NDArray[np.int64]:
        """Deal the payload out to the rows, and give its sum for each of them."""
        payload = frame[cut.head_len : cut.where.offset + cut.where.length]
        full = len(payload) // cut.size
        layout.payloads[:full] = np.ndarray((full,), f"V{cut.size}", payload)
        sums = np.empty(cut.segments, np.int64)
        sums[:full] = row_sums(payload, full, cut.size, cut.size)
        if full < cut.segments:
            rest = payload[full * cut.size :]
            self.out[octets - len(rest) : octets] = np.frombuffer(rest, np.uint8)
            sums[full] = checksum.ones_sum(rest)
        return sums

    def _write_network(self, layout: _Layout, frame: memoryview, cut: "_Cut") -> None:
        """Write what differs in the IP headers."""
        header = cut.where.offset - cut.where.ip_offset
        full = header + cut.transport_len + cut.size
        last = header + cut.transport_len + cut.last
        if cut.where.version == 6:
            layout.ip_length[: cut.segments] = full - inet.IP_HEADER_MIN[6]
            layout.ip_length[cut.segments - 1] = last - inet.IP_HEADER_MIN[6]
            return
        layout.ip_length[: cut.segments] = full
        layout.ip_length[cut.segments - 1] = last
        head = bytearray(frame[cut.where.ip_offset : cut.where.offset])
        first = int.from_bytes(head[_IP_ID : _IP_ID + 2], "big")
        ids = (self._index[: cut.segments] + first) & 0xFFFF
        layout.ip_id[: cut.segments] = ids
        head[2:6] = bytes(4)  # Length and identification.
        head[_IP_CHECKSUM : _IP_CHECKSUM + 2] = bytes(2)
        ids += checksum.ones_sum(head) + full
        ids[-1] += last - full
        layout.ip_checksum[: cut.segments] = -ids % 0xFFFF

    def _write_transport(
        self, layout: _Layout, frame: memoryview, cut: "_Cut", sums: NDArray[np.int64]
    ) -> None:
        """Write what differs in the TCP or UDP headers.

        `sums` are those of the pseudo-header without its length, the common part of the header, and
        the payload; they are used up.
        """
        count = cut.segments
        at = cut.where.offset
        full = cut.transport_len + cut.size
        last = cut.transport_len + cut.last
        sums += full
        sums[-1] += last - full
        if cut.where.protocol == inet.TCP:
            first = int.from_bytes(frame[at + _TCP_SEQUENCE : at + _TCP_SEQUENCE + 4], "big")
            sequences = (self._index[:count] * cut.size + first) & 0xFFFF_FFFF
            layout.sequence[:count] = sequences
            sums += sequences
            flags = frame[at + inet.TCP_FLAGS]
            row_flags = np.full(count, flags & ~_LAST_ONLY & ~inet.TCP_FLAG_CWR, np.int64)
            row_flags[0] |= flags & inet.TCP_FLAG_CWR
            row_flags[-1] |= flags & _LAST_ONLY
            layout.flags[:count] = row_flags
            sums += row_flags
            values = -sums % 0xFFFF
        else:
            layout.udp_length[:count] = full
            layout.udp_length[count - 1] = last
            sums += full
            sums[-1] += last - full
            values = -sums % 0xFFFF
            values[values == 0] = 0xFFFF  # RFC 768: a zero would mean that there is none.
        # A sum that is 0 modulo 65535 has folded to 0xFFFF, so its complement is 0: as here.
        layout.checksum[:count] = values

    def _layout(self, cut: "_Cut") -> _Layout:
        where = cut.where
        key = (where.version, where.ip_offset, where.offset, cut.head_len, cut.size)
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= _LAYOUTS_MAX:
                self._layouts.clear()
            layout = self._layouts[key] = self._make_layout(where, cut.head_len, cut.size)
        return layout

    def _make_layout(self, where: inet.Transport, head_len: int, size: int) -> _Layout:
        prefix = len(self._prefix)
        stride = prefix + head_len + size
        rows = -(-len(self.out) // stride)

        def column(offset: int, dtype: str, octets: int) -> NDArray[np.generic]:
            # The last row may end before its stride does, or have no room for this column.
            count = min(rows, (len(self.out) - offset - octets) // stride + 1)
            # TCP's flags may lie behind the end of an output that has room for one UDP segment.
            return np.ndarray((count,), dtype, self.out, offset if count else 0, (stride,))

        ip = prefix + where.ip_offset
        transport = prefix + where.offset
        columns = (
            column(0, f"V{prefix + head_len}", prefix + head_len),
            column(prefix + head_len, f"V{size}", size),
            column(ip + (2 if where.version == 4 else 4), ">u2", 2),
            column(ip + _IP_ID, ">u2", 2),
            column(ip + _IP_CHECKSUM, ">u2", 2),
            column(transport + _TCP_SEQUENCE, ">u4", 4),
            column(transport + inet.TCP_FLAGS, "u1", 1),
            column(transport + _UDP_LENGTH, ">u2", 2),
            column(transport + inet.CHECKSUM_OFFSET[where.protocol], ">u2", 2),
        )
        return _Layout(*columns)  # type: ignore[arg-type]  # their dtypes are given as text


def row_sums(data: Buffer, rows: int, stride: int, size: int) -> NDArray[np.int64]:
    """Sums modulo 65535 of the 16-bit words of `size` octets in each of `rows`, `stride` apart.

    Words are big endian; an odd last octet is the high one of its word. Shape (rows,).
    """
    words: NDArray[np.uint16] = np.ndarray((rows, size // 2), np.uint16, data, 0, (stride, 2))
    sums: NDArray[np.int64] = words.sum(axis=1, dtype=np.uint32).astype(np.int64)
    if size & 1 and rows:
        odd: Octets = np.ndarray((rows,), np.uint8, data, size - 1, (stride,))
        sums += odd if np.little_endian else odd.astype(np.int64) << 8
    # The words were read in host order. Swapping the octets of every word multiplies a sum by 256,
    # modulo 65535 (RFC 1071, section 2, B).
    if np.little_endian:
        sums *= 256
    sums %= 0xFFFF
    return sums


def finish_checksum(frame: memoryview, start: int, offset: int) -> None:
    """Finish a partial checksum in place, as virtio's NEEDS_CSUM asks.

    Raises SplitError where `start` and `offset` point outside of the frame.
    """
    at = start + offset
    if at + 2 > len(frame):
        raise SplitError("the checksum is to be outside of the frame")
    value = checksum.ones_sum(frame[start:]) ^ 0xFFFF
    if value == 0 and offset == inet.CHECKSUM_OFFSET[inet.UDP]:
        value = 0xFFFF
    frame[at : at + 2] = value.to_bytes(2, "big")
