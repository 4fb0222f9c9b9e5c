"""From a burst of wire segments to TAP superframes.

A UDP_GRO receive gives datagrams of one remote and one source port in a row, all of one size but
perhaps the last. Where the inner frames are consecutive segments of one TCP flow, or equal-sized
datagrams of one UDP flow, `Merger` makes one superframe of them, as the kernel's GRO would, and the
virtio header that says how to cut it again.

The rule is that nobody can tell. From the first frame the headers are predicted that all others had
if a superframe had been split into them, checksums included, and as many are merged as have exactly
these octets. So what is merged is split again to the same octets, only neighbours are merged, and a
frame whose checksum is wrong is passed on alone and as it is. What is refused, and why, follows
wireguard-go's lists and the kernel's, in net/ipv4/tcp_offload.c.
"""

import numpy as np
from numpy.typing import NDArray

from vtep.offload.headers import Cut, Headers, Octets, row_sums
from vtep.offload.partial import is_partial
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_CLOSING = inet.TCP_FLAG_FIN | inet.TCP_FLAG_PSH
"""Flags that only the last segment of a superframe may have."""

_OPENING = inet.TCP_FLAG_CWR
"""Flags that only the first may have."""

_HARMLESS = inet.TCP_FLAG_ACK | inet.TCP_FLAG_ECE | _CLOSING | _OPENING
_GSO_TYPES = {
    (4, inet.TCP): virtio.GSO_TCPV4,
    (6, inet.TCP): virtio.GSO_TCPV6,
    (4, inet.UDP): virtio.GSO_UDP_L4,
    (6, inet.UDP): virtio.GSO_UDP_L4,
}
_SUPERFRAME_MAX = 0xFFFF
"""Octets of a superframe, so that all length fields hold what they must."""


def _same_flow(one: memoryview, two: memoryview, where: inet.Transport) -> bool:
    """Whether two frames have the same addresses and ports. They are next to each other."""
    at = where.offset - len(inet.addresses(one, where))
    end = where.offset + 4
    return one[at:end] == two[at:end]


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
        self._out = memoryview(bytearray(capacity))
        # Predicted headers: at most all of a burst.
        self._predicted: Octets = np.zeros(1 << 16, np.uint8)
        self._headers = Headers(self._predicted, b"")

    def merge(self, data: memoryview, stride: int) -> list[tuple[bytes | None, memoryview]]:
        """Merge what can be merged of datagrams that lie `stride` octets apart, in their order.

        `data` ends with the last datagram, which may be short. Gives frames without prefix, each
        with the virtio header of a superframe, or None where it is a frame as it was received. The
        views are of `data` or of a buffer that the next call overwrites. Any octets are allowed.
        """
        frames: list[tuple[bytes | None, memoryview]] = []
        begin = used = 0
        while begin < len(data):
            rest = data[begin:] if begin else data
            cut = self._judge(rest, stride, len(self._out) - used)
            if cut is None:
                frames.append((None, rest[self._prefix_len : stride]))
                begin += stride
            else:
                header, octets = self._join(rest, stride, cut, used)
                frames.append((header, self._out[used : used + octets]))
                begin += cut.segments * stride
                used += octets
        return frames

    def _judge(self, data: memoryview, stride: int, room: int) -> Cut | None:
        """How many datagrams make one superframe, and how it is cut; None if the first is alone."""
        hoped = self._hope(data, stride, room)
        if hoped is None:
            return None
        cut, closing = hoped
        count = self._follow(data, stride, cut, closing, partial=False)
        if count < 2 and is_partial(data[self._prefix_len : stride], cut.where):
            count = self._follow(data, stride, cut, closing, partial=True)
        if count < 2:
            return None
        return cut if count == cut.segments else cut._replace(segments=count, last=cut.size)

    def _follow(
        self,
        data: memoryview,
        stride: int,
        cut: Cut,
        closing: NDArray[np.int64],
        *,
        partial: bool,
    ) -> int:
        """How many datagrams, up to a closing one, have the headers that are predicted."""
        where, count, head_len = cut.where, cut.segments, cut.head_len
        skip = self._prefix_len
        first = data[skip:stride]
        body = skip + head_len
        full = count if cut.last == cut.size else count - 1
        sums = np.empty(count, np.int64)
        sums[:full] = row_sums(data[body:], full, stride, cut.size)
        if full < count:
            at = full * stride + body
            sums[full] = checksum.ones_sum(data[at : at + cut.last])
        flags: NDArray[np.int64] | int = 0
        if where.protocol == inet.TCP:
            opening = first[where.offset + inet.TCP_FLAGS]
            flags = closing | opening & ~_OPENING & ~_CLOSING
            flags[0] |= opening & _OPENING
        self._headers.write(first, cut, head_len, sums, flags, partial=partial)
        heads: Octets = np.ndarray((count, head_len), np.uint8, data, skip, (stride, 1))
        as_predicted = heads == self._predicted[: count * head_len].reshape(count, head_len)
        if not as_predicted.all():
            count = int(as_predicted.all(axis=1).argmin())
        if where.protocol == inet.TCP and closing[: max(0, count - 1)].any():
            count = int(closing.astype(np.bool_).argmax()) + 1
        return count

    def _hope(
        self, data: memoryview, stride: int, room: int
    ) -> tuple[Cut, NDArray[np.int64]] | None:
        """The largest superframe that could begin here, and TCP's closing flags of its segments.

        Looks at the first datagram, and at little more, since prediction is dear where it fails.
        """
        skip = self._prefix_len
        if len(data) <= stride or stride < skip + ethernet.HEADER_LEN:
            return None
        first = data[skip:stride]
        where = inet.transport(first)
        if where is None or where.offset + where.length != len(first):
            return None  # No transport header, or padding.
        if where.offset - where.ip_offset != inet.IP_HEADER_MIN[where.version]:
            return None  # IP options or extension headers.
        tcp = where.protocol == inet.TCP
        transport_len = inet.transport_header_len(first, where)
        head_len = where.offset + transport_len
        size = len(first) - head_len
        if not (tcp or self._uso) or not transport_len or not size:
            return None
        if not _same_flow(first, data[stride + skip : 2 * stride], where):
            return None
        count = -(-len(data) // stride)
        last = len(data) - (count - 1) * stride - skip - head_len
        if last <= 0:  # No payload, or no whole header: it stays alone.
            count, last = count - 1, size
        fitting = min(_SUPERFRAME_MAX, room) - head_len
        if (count - 1) * size + last > fitting or count * head_len > len(self._predicted):
            count, last = min(fitting // size, len(self._predicted) // head_len), size
        if count < 2:
            return None
        closing: NDArray[np.int64] = np.zeros(0, np.int64)
        if tcp:
            at = where.offset + inet.TCP_FLAGS
            if first[at] & (~_HARMLESS | _CLOSING | inet.TCP_FLAG_ACK) != inet.TCP_FLAG_ACK:
                return None
            flags: Octets = np.ndarray((count,), np.uint8, data, skip + at, (stride,))
            closing = flags.astype(np.int64)
            closing &= _CLOSING
        return Cut(where, head_len, transport_len, size, count, last), closing

    def _join(self, data: memoryview, stride: int, cut: Cut, used: int) -> tuple[bytes, int]:
        """Write a superframe to the output, from its octet `used` on.

        Gives its virtio header and its length.
        """
        where, head_len, size = cut.where, cut.head_len, cut.size
        full = cut.segments - 1
        body = self._prefix_len + head_len
        octets = head_len + full * size + cut.last
        frame = self._out[used : used + octets]
        frame[:head_len] = data[self._prefix_len : body]
        kind = f"V{size}"
        rows: Octets = np.ndarray((full,), kind, frame, head_len)
        rows[:] = np.ndarray((full,), kind, data, body, (stride,))
        at = full * stride + body
        frame[octets - cut.last :] = data[at : at + cut.last]

        length = octets - where.offset
        gso_type = _GSO_TYPES[where.version, where.protocol]
        at = where.ip_offset
        if where.version == 4:
            frame[at + 2 : at + 4] = (octets - at).to_bytes(2, "big")
            frame[at + 10 : at + 12] = bytes(2)
            value = checksum.internet_checksum(frame[at : where.offset])
            frame[at + 10 : at + 12] = value.to_bytes(2, "big")
        else:
            frame[at + 4 : at + 6] = length.to_bytes(2, "big")
        if where.protocol == inet.TCP:
            at = where.offset + inet.TCP_FLAGS
            if frame[at] & inet.TCP_FLAG_CWR:
                gso_type |= virtio.GSO_ECN
            frame[at] |= data[full * stride + self._prefix_len + at] & _CLOSING
        else:
            at = where.offset + 4
            frame[at : at + 2] = length.to_bytes(2, "big")
        offset = inet.CHECKSUM_OFFSET[where.protocol]
        at = where.offset + offset
        whole = inet.Transport(where.version, where.protocol, where.ip_offset, where.offset, length)
        frame[at : at + 2] = inet.pseudo_sum(frame, whole).to_bytes(2, "big")
        header = virtio.superframe(gso_type, head_len, size, where.offset, offset)
        return header, octets
