"""From a burst of wire segments to TAP superframes.

A UDP_GRO receive gives datagrams of one remote and one source port in a row, all of one size but
perhaps the last. Where the inner frames are consecutive segments of one TCP flow, or equal-sized
datagrams of one UDP flow, `Merger` makes one superframe of them, as the kernel's GRO would, and the
virtio header that says how to cut it again.

The rule is that nobody can tell: `Splitter` gives exactly the segments that were merged. So only
neighbours are merged, never across a frame between them, and only where every octet of the headers
is what a sender that was segmenting would have written: lengths, sequence numbers and IPv4
identifications that follow each other, equal acknowledgements, windows, options, TTLs and ECN,
flags that say nothing in the middle. A frame whose checksum is wrong is passed on alone and as it
is. What is refused, and why, follows wireguard-go's lists and the kernel's, in
net/ipv4/tcp_offload.c.
"""

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vtep.offload.partial import is_partial
from vtep.offload.split import Octets, row_sums
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

Flags: TypeAlias = NDArray[np.bool_]

_CLOSING = inet.TCP_FLAG_FIN | inet.TCP_FLAG_PSH
_OPENING = inet.TCP_FLAG_CWR
_HARMLESS = inet.TCP_FLAG_ACK | inet.TCP_FLAG_ECE | _CLOSING | _OPENING
_GSO_TYPES = {
    (4, inet.TCP): virtio.GSO_TCPV4,
    (6, inet.TCP): virtio.GSO_TCPV6,
    (4, inet.UDP): virtio.GSO_UDP_L4,
    (6, inet.UDP): virtio.GSO_UDP_L4,
}
_ADDRESSES = {4: 12, 6: 8}
"""Where the addresses begin in an IP header."""

_MASKS_MAX = 64
_SUPERFRAME_MAX = 0xFFFF
"""Octets of a superframe, so that all length fields hold what they must."""


class _Head(NamedTuple):
    """What the first frame of a burst says that all others must be like.

    `size` is the payload of a full segment; offsets are from the start of the frame.
    """

    where: inet.Transport
    head_len: int
    size: int


def uniform(data: memoryview, stride: int, width: int) -> list[tuple[int, int]]:
    """Where runs of datagrams begin and end whose first `width` octets are the same.

    Datagrams lie `stride` octets apart in `data`, which ends with the last one.
    """
    rows = max(0, (len(data) - width) // stride + 1)
    heads: Octets = np.ndarray((rows, width), np.uint8, data, 0, (stride, 1))
    if rows * stride >= len(data) and (heads == heads[:1]).all():
        return [(0, len(data))]
    begins = [
        number * stride
        for number in range(-(-len(data) // stride))
        if not 0 < number < rows or (heads[number] != heads[number - 1]).any()
    ]
    return list(zip(begins, [*begins[1:], len(data)], strict=True))


class Merger:
    """Merges bursts of encapsulated frames; `prefix_len` octets before each are not its concern.

    `uso` says whether the TAP takes superframes of UDP. The superframes of one burst have room in
    `capacity` octets; what has none is passed on as it is.
    """

    def __init__(self, prefix_len: int, *, uso: bool, capacity: int = 1 << 17) -> None:
        self._prefix_len = prefix_len
        self._uso = uso
        self._out_view = memoryview(bytearray(capacity))
        self._always_fits = min(_SUPERFRAME_MAX, capacity)
        self._masks: dict[tuple[int, int, int, int], Octets] = {}

    def merge(self, data: memoryview, stride: int) -> list[tuple[bytes | None, memoryview]]:
        """Merge what can be merged of datagrams that lie `stride` octets apart, in their order.

        `data` ends with the last datagram, which may be short. Gives frames without prefix, each
        with the virtio header of a superframe, or None where it is a frame as it was received. The
        views are of `data` or of a buffer that the next call overwrites. Any octets are allowed.
        """
        skip = self._prefix_len
        starts = range(skip, len(data), stride)
        head = self._judge_first(data[skip:stride]) if len(starts) > 1 else None
        if head is None:
            return [(None, data[at : at - skip + stride]) for at in starts]
        joined = self._judge(data, stride, len(starts), head)
        if len(data) > self._always_fits:
            self._end_long_runs(joined, len(data), stride, head)
        frames: list[tuple[bytes | None, memoryview]] = []
        used = 0
        opening = [int(number) for number in np.flatnonzero(~joined)]
        for first, end in zip(opening, [*opening[1:], len(starts)], strict=True):
            if end - first == 1:
                at = starts[first]
                frames.append((None, data[at : at - skip + stride]))
            else:
                run = data[first * stride : end * stride]
                header, octets = self._join(run, stride, end - first, head, used)
                frames.append((header, self._out_view[used : used + octets]))
                used += octets
        return frames

    def _judge_first(self, frame: memoryview) -> _Head | None:
        """What a burst that begins with `frame` would have in common, or None: don't merge."""
        where = inet.transport(frame) if len(frame) >= ethernet.HEADER_LEN else None
        if where is None or where.offset + where.length != len(frame):
            return None  # No transport header, or padding.
        if where.offset - where.ip_offset != inet.IP_HEADER_MIN[where.version]:
            return None  # IP options or extension headers.
        tcp = where.protocol == inet.TCP
        if not tcp and not self._uso:
            return None
        transport_len = inet.tcp_header_len(frame, where) if tcp else inet.UDP_HEADER_LEN
        size = where.length - transport_len
        return _Head(where, where.offset + transport_len, size) if transport_len and size else None

    def _judge(self, data: memoryview, stride: int, count: int, head: _Head) -> Flags:
        """Which datagrams continue the one before them; shape (count,), the first is False."""
        joined = np.zeros(count, np.bool_)
        skip = self._prefix_len
        where = head.where
        # What follows may be a datagram too short for its prefix, which holds no frame.
        short = min(stride, len(data) - (count - 1) * stride)
        if short <= skip + head.head_len:
            count -= 1  # The last one has no payload, or no whole header: it stays alone.
            short = stride
            if count < 2:
                return joined
        heads: Octets = np.ndarray((count, head.head_len), np.uint8, data, skip, (stride, 1))

        def column(offset: int, dtype: str = ">u2") -> NDArray[np.int64]:
            field: NDArray[np.int64] = np.ndarray((count,), dtype, data, skip + offset, (stride,))
            return field.astype(np.int64)

        mask = self._mask(head)
        alike = ((heads[1:] ^ heads[:-1]) & mask == 0).all(axis=1)

        # Each for itself: lengths, checksums, flags. 0 and 0xFFFF are one number to a checksum, but
        # a split writes only one of them.
        ip = where.ip_offset
        room = np.full(count, stride - skip, np.int64)
        room[-1] = short - skip
        good = self._sums(data, stride, count, short, head) == 0
        if where.version == 4:
            good &= column(ip + 2) == room - ip
            good &= row_sums(data[skip + ip :], count, stride, inet.IP_HEADER_MIN[4]) == 0
            good &= column(ip + 10) != 0xFFFF
            ids = column(ip + 4)
            alike &= (ids[1:] - ids[:-1]) & 0xFFFF == 1
        else:
            good &= column(ip + 4) == room - where.offset
        if where.protocol == inet.TCP:
            flags = column(where.offset + inet.TCP_FLAGS, "u1")
            good &= flags & (~_HARMLESS | inet.TCP_FLAG_ACK) == inet.TCP_FLAG_ACK
            good &= column(where.offset + inet.CHECKSUM_OFFSET[inet.TCP]) != 0xFFFF
            alike &= (flags[:-1] & _CLOSING | flags[1:] & _OPENING) == 0
            sequences = column(where.offset + 4, ">u4")
            alike &= (sequences[1:] - sequences[:-1]) & 0xFFFF_FFFF == head.size
        else:
            good &= column(where.offset + 4) == room - where.offset
            good &= column(where.offset + 6) != 0
        joined[1:count] = alike & good[1:] & good[:-1]
        if not joined[1:count].all():
            joined[1:count] &= self._like_the_first(heads, head)[1:]
        return joined

    def _end_long_runs(self, joined: Flags, octets: int, stride: int, head: _Head) -> None:
        """Begin anew where a superframe would become too long, or the output full.

        No UDP receive gives so much, so this need not be fast.
        """
        used = length = 0
        for number in np.flatnonzero(joined):
            if not joined[number - 1]:
                used, length = used + length, head.head_len + head.size
            payload = min(stride, octets - int(number) * stride) - self._prefix_len - head.head_len
            if length + payload <= min(_SUPERFRAME_MAX, len(self._out_view) - used):
                length += payload
                continue
            if not joined[number - 1]:
                length = 0  # The one before it stays alone.
            joined[number] = False

    def _sums(
        self, data: memoryview, stride: int, count: int, short: int, head: _Head
    ) -> NDArray[np.int64]:
        """The sum that each transport checksum is to make zero, modulo 65535; shape (count,).

        Zero also where the checksum is partial, for the superframe's will be too.
        """
        skip = self._prefix_len
        where = head.where
        # The addresses are the last thing before the transport header, so one sum takes in both.
        at = skip + where.ip_offset + _ADDRESSES[where.version]
        full = count if short == stride else count - 1
        sums = np.empty(count, np.int64)
        sums[:full] = row_sums(data[at:], full, stride, stride - at)
        sums[:full] += where.protocol + stride - skip - where.offset
        if full < count:
            end = full * stride + short
            sums[full] = checksum.ones_sum(data[full * stride + at : end])
            sums[full] += where.protocol + short - skip - where.offset
        sums %= 0xFFFF
        for number in np.flatnonzero(sums):
            begin = int(number) * stride
            frame = data[begin + skip : min(begin + stride, len(data))]
            if is_partial(frame, inet.transport(frame)):
                sums[number] = 0
        return sums

    def _join(
        self, run: memoryview, stride: int, count: int, head: _Head, used: int
    ) -> tuple[bytes, int]:
        """Write one superframe of a run of datagrams to the output, from its octet `used` on.

        Gives its virtio header and its length.
        """
        skip = self._prefix_len
        where = head.where
        body = skip + head.head_len
        last = len(run) - (count - 1) * stride - body
        payload = (count - 1) * head.size + last
        octets = head.head_len + payload
        frame = self._out_view[used : used + octets]
        frame[: head.head_len] = run[skip:body]
        kind = f"V{head.size}"
        full = count - 1
        target: NDArray[np.void] = np.ndarray((full,), kind, frame, head.head_len)
        target[:] = np.ndarray((full,), kind, run, body, (stride,))
        frame[octets - last :] = run[len(run) - last :]

        length = octets - where.offset
        whole = where._replace(length=length)
        gso_type = _GSO_TYPES[where.version, where.protocol]
        if where.version == 4:
            at = where.ip_offset
            frame[at + 2 : at + 4] = (octets - at).to_bytes(2, "big")
            frame[at + 10 : at + 12] = bytes(2)
            value = checksum.internet_checksum(frame[at : where.offset])
            frame[at + 10 : at + 12] = value.to_bytes(2, "big")
        else:
            at = where.ip_offset + 4
            frame[at : at + 2] = length.to_bytes(2, "big")
        if where.protocol == inet.TCP:
            at = where.offset + inet.TCP_FLAGS
            if frame[at] & inet.TCP_FLAG_CWR:
                gso_type |= virtio.GSO_ECN
            frame[at] |= run[(count - 1) * stride + skip + at] & _CLOSING
        else:
            at = where.offset + 4
            frame[at : at + 2] = length.to_bytes(2, "big")
        offset = inet.CHECKSUM_OFFSET[where.protocol]
        at = where.offset + offset
        frame[at : at + 2] = inet.pseudo_sum(frame, whole).to_bytes(2, "big")
        header = virtio.superframe(gso_type, head.head_len, head.size, where.offset, offset)
        return header, octets

    def _mask(self, head: _Head) -> Octets:
        """Which bits of the headers are equal in all segments; shape (head_len,)."""
        where = head.where
        key = (where.version, where.protocol, where.ip_offset, head.head_len)
        mask = self._masks.get(key)
        if mask is None:
            mask = np.full(head.head_len, 0xFF, np.uint8)
            ip, transport = where.ip_offset, where.offset
            if where.version == 4:
                mask[ip + 2 : ip + 6] = 0  # Length and identification.
                mask[ip + 10 : ip + 12] = 0  # Checksum.
            else:
                mask[ip + 4 : ip + 6] = 0  # Length.
            if where.protocol == inet.TCP:
                mask[transport + 4 : transport + 8] = 0  # Sequence number.
                mask[transport + inet.TCP_FLAGS] = 0xFF & ~_CLOSING & ~_OPENING
                mask[transport + 16 : transport + 18] = 0  # Checksum.
            else:
                mask[transport + 4 : transport + 8] = 0  # Length and checksum.
            if len(self._masks) >= _MASKS_MAX:
                self._masks.clear()
            self._masks[key] = mask
        return mask

    @staticmethod
    def _like_the_first(heads: Octets, head: _Head) -> Flags:
        """Which frames have their headers where the first has them; shape (count,)."""
        where = head.where
        deciding = [*range(12, where.ip_offset + 1)]  # EtherTypes and tags, IP version and length.
        if where.version == 4:
            deciding += [where.ip_offset + 6, where.ip_offset + 7, where.ip_offset + 9]
        else:
            deciding += [where.ip_offset + 6]
        if where.protocol == inet.TCP:
            deciding += [where.offset + 12]
        like: Flags = (heads[:, deciding] == heads[0, deciding]).all(axis=1)
        return like
