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

from typing import NamedTuple

import numpy as np

from vtep.offload.headers import CLOSING, OPENING, Cut, Headers, Octets, row_sums
from vtep.offload.partial import is_partial
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_HARMLESS = inet.TCP_FLAG_ACK | inet.TCP_FLAG_ECE | CLOSING | OPENING

_CLOSES = bytes(1 if flags & CLOSING else 0 for flags in range(256))
"""Whether TCP flags are those of a last segment, by their value."""

_GSO_TYPES = {
    (4, inet.TCP): virtio.GSO_TCPV4,
    (6, inet.TCP): virtio.GSO_TCPV6,
    (4, inet.UDP): virtio.GSO_UDP_L4,
    (6, inet.UDP): virtio.GSO_UDP_L4,
}
_SUPERFRAME_MAX = 0xFFFF
"""Octets of a superframe, so that all length fields hold what they must."""


def _may_follow(one: memoryview, two: memoryview, where: inet.Transport, size: int) -> bool:
    """Whether the second frame could be the next segment, by the fields that differ most."""
    at = where.offset
    begin = at - len(inet.addresses(one, where))
    if one[begin : at + 4] != two[begin : at + 4]:  # Addresses and ports are neighbours.
        return False
    if where.version == 4:
        field = slice(where.ip_offset + 4, where.ip_offset + 6)
        ids = int.from_bytes(one[field], "big"), int.from_bytes(two[field], "big")
        if (ids[1] - ids[0]) & 0xFFFF != 1:
            return False
    if where.protocol == inet.TCP:
        field = slice(at + 4, at + 8)
        sequences = int.from_bytes(one[field], "big"), int.from_bytes(two[field], "big")
        return (sequences[1] - sequences[0]) & 0xFFFF_FFFF == size
    return True


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

    Those that are merged have the same `prefix_len` octets before them, too.

    `uso` says whether the TAP takes superframes of UDP. The superframes of one burst have room in
    `capacity` octets; what has none is passed on as it is.
    """

    def __init__(self, prefix_len: int, *, uso: bool, capacity: int = 1 << 17) -> None:
        self._prefix_len = prefix_len
        self.uso = uso
        self._out = memoryview(bytearray(capacity))
        # Predicted headers: at most all of a burst.
        self._predicted: Octets = np.zeros(1 << 16, np.uint8)
        self._headers = Headers(self._predicted, prefix_len)

    def merge(self, data: memoryview, stride: int) -> list[Merged]:
        """Merge what can be merged of datagrams that lie `stride` octets apart, in their order.

        `data` ends with the last datagram, which may be short. The frames are views of `data` or of
        a buffer that the next call overwrites. Any octets are allowed.
        """
        frames: list[Merged] = []
        begin = used = 0
        while begin < len(data):
            rest = data[begin:] if begin else data
            datagram = rest[:stride]
            cut = self._judge(rest, stride, len(self._out) - used)
            if cut is None:
                frames.append(Merged(None, datagram[self._prefix_len :], datagram, 1))
                begin += stride
            else:
                header, octets = self._join(rest, stride, cut, used)
                frame = self._out[used : used + octets]
                frames.append(Merged(header, frame, datagram, cut.segments))
                begin += cut.segments * stride
                used += octets
        return frames

    def _judge(self, data: memoryview, stride: int, room: int) -> Cut | None:
        """How many datagrams make one superframe, and how it is cut; None if the first is alone."""
        hoped = self._hope(data, stride, room)
        if hoped is None:
            return None
        cut, flags = hoped
        count = self._follow(data, stride, cut, flags, partial=False)
        if count < 2 and is_partial(data[self._prefix_len : stride], cut.where):
            count = self._follow(data, stride, cut, flags, partial=True)
        if count < 2:
            return None
        return cut if count == cut.segments else cut._replace(segments=count, last=cut.size)

    def _follow(self, data: memoryview, stride: int, cut: Cut, flags: int, *, partial: bool) -> int:
        """How many datagrams have the headers that are predicted for them."""
        count, head_len = cut.segments, cut.head_len
        skip = self._prefix_len
        body = skip + head_len
        sums = row_sums(data[body:], count, stride, cut.size, cut.last)
        first = data[skip:stride]
        self._headers.write(data[:skip], first, cut, body, sums, flags=flags, partial=partial)
        received = np.ndarray((count,), f"V{body}", data, 0, (stride,)).tobytes()
        predicted = self._predicted[: count * body].tobytes()
        if received == predicted:
            return count
        differs = np.frombuffer(received, np.uint8) != np.frombuffer(predicted, np.uint8)
        return int(differs.argmax()) // body

    def _hope(self, data: memoryview, stride: int, room: int) -> tuple[Cut, int] | None:
        """The largest superframe that could begin here, and its TCP flags.

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
        possible = transport_len and size and (tcp or self.uso)
        second = data[stride + skip : 2 * stride]
        if not possible or not _may_follow(first, second, where, size):
            return None
        count = -(-len(data) // stride)
        last = len(data) - (count - 1) * stride - skip - head_len
        if last <= 0:  # No payload, or no whole header: it stays alone.
            count, last = count - 1, size
        fitting = min(_SUPERFRAME_MAX, room) - head_len
        if (count - 1) * size + last > fitting or count * (skip + head_len) > len(self._predicted):
            count, last = min(fitting // size, len(self._predicted) // (skip + head_len)), size
        if count < 2:
            return None
        flags = 0
        if tcp:
            at = where.offset + inet.TCP_FLAGS
            flags = first[at]
            if flags & (~_HARMLESS | CLOSING | inet.TCP_FLAG_ACK) != inet.TCP_FLAG_ACK:
                return None
            column: Octets = np.ndarray((count,), np.uint8, data, skip + at, (stride,))
            closing = column.tobytes().translate(_CLOSES).find(1)
            if closing >= 0:  # A superframe ends there.
                last = last if closing == count - 1 else size
                count = closing + 1
                flags |= int(column[closing]) & CLOSING
        return Cut(where, head_len, transport_len, size, count, last), flags

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
            frame[at] |= data[full * stride + self._prefix_len + at] & CLOSING
        else:
            at = where.offset + 4
            frame[at : at + 2] = length.to_bytes(2, "big")
        offset = inet.CHECKSUM_OFFSET[where.protocol]
        at = where.offset + offset
        whole = inet.Transport(where.version, where.protocol, where.ip_offset, where.offset, length)
        frame[at : at + 2] = inet.pseudo_sum(frame, whole).to_bytes(2, "big")
        header = virtio.superframe(gso_type, head_len, size, where.offset, offset)
        return header, octets
