"""From TAP superframes to the segments that go on the wire.

A TAP device that offers segmentation offload gives us TCP and UDP as *superframes*: one set of
headers, up to 64 KiB of payload, and a virtio header that says how large the segments are to be.
`Splitter` does what a network card would: it repeats the headers before each piece of the payload,
and writes into each of them what differs. Superframes of which each goes on where the one before
ends are cut as if they were one: so there are sums to take and headers to write once for them all.
"""

from struct import Struct

import numpy as np

from vtep.offload.headers import (
    CLOSING,
    OPENING,
    SEGMENTS_MAX,
    Cut,
    Headers,
    Octets,
    Words,
    goes_on,
    negated,
    row_sums,
)
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_KINDS = frozenset(
    (
        (virtio.GSO_TCPV4, 4, inet.TCP),
        (virtio.GSO_TCPV6, 6, inet.TCP),
        (virtio.GSO_UDP_L4, 4, inet.UDP),
        (virtio.GSO_UDP_L4, 6, inet.UDP),
    )
)
"""GSO type, IP version and protocol that belong together."""


class SplitError(ValueError):
    """A virtio header that contradicts its frame."""


class AuthenticatedError(ValueError):
    """A superframe that must not be split: its MD5 signature or TCP-AO code covers all its data."""


_LENGTH = Struct("!H")


class Splitter:
    """Splits superframes into `out`.

    `prefix` goes before every segment: its VXLAN header. It may become another of the same length.
    `capacity` is the size of `out` in octets.
    The segments lie there as one UDP_SEGMENT send wants them: each is `stride` octets with its
    prefix, and the last may be shorter.
    """

    def __init__(self, prefix: bytes, capacity: int = 1 << 18) -> None:
        self.out: Octets = np.zeros(capacity, np.uint8)
        self.prefix = prefix
        self.count = 0
        """How many segments have been begun, and not finished."""
        self.stride = 0
        self.head = bytearray()
        """The headers of the first superframe begun."""
        self._headers = Headers(self.out, len(prefix))
        self._scratch = bytearray()
        self._marks: list[tuple[int, int]] = []

    def split(self, frame: memoryview, gso: virtio.Header) -> tuple[int, int]:
        """Split one superframe alone; arguments and results are those of `begin` and `finish`."""
        self.begin(frame, gso)
        return self.finish()

    def begin(self, frame: memoryview, gso: virtio.Header) -> int:
        """Take in a superframe, without its virtio header; how many segments it becomes.

        Checksums are computed anew, so it does not matter what the frame has in their place; the
        header length that `gso` states is not looked at, since forwarded frames state a wrong one.
        Raises SplitError, having promised nothing of `out`, where `gso` is not about TCP or UDP
        segments of this frame, or `out` is too small; and AuthenticatedError as `judge` does.
        Nothing may have been begun before.
        """
        cut = judge(frame, gso)
        count, size = cut.segments, cut.size
        stride = len(self.prefix) + cut.head_len + size
        octets = count * stride - size + cut.last
        if octets > len(self.out) or count > SEGMENTS_MAX:
            raise SplitError(f"{octets} octets of segments do not fit into {len(self.out)}")
        self._cut, self._gso_type, self.stride = cut, gso.gso_type & ~virtio.GSO_ECN, stride
        self._kind = np.dtype(f"V{size}")
        self.head[:] = self._scratch[:] = frame[: cut.head_len]
        self._marks.clear()
        where = cut.where
        self._take(frame, where.offset + where.length, count, cut.last)
        return count

    def extend(self, frame: memoryview, gso: virtio.Header) -> int:
        """Take in the next superframe if it goes on where those that were begun end.

        How many segments it becomes; 0 if it does not go on. It does if its headers are those that
        it would have if all of them had been one.
        """
        cut = self._cut
        where, head_len, size, before = cut.where, cut.head_len, cut.size, self.count
        if (
            self._last != size
            or gso.gso_size != size
            or gso.gso_type & ~virtio.GSO_ECN != self._gso_type
            or not goes_on(frame, self.head, self._scratch, where, before, size)
        ):
            return 0
        if where.version == 4:
            (length,) = _LENGTH.unpack_from(frame, where.ip_offset + 2)
            end = where.ip_offset + length
        else:
            (length,) = _LENGTH.unpack_from(frame, where.ip_offset + 4)
            end = where.ip_offset + inet.IP_HEADER_MIN[6] + length
        if not head_len < end <= len(frame):
            return 0
        payload: int = end - head_len
        count = -(-payload // size)
        last = payload - (count - 1) * size
        if (before + count) * self.stride - size + last > len(self.out):
            return 0
        self._take(frame, end, count, last)
        return count

    def _take(self, frame: memoryview, end: int, count: int, last: int) -> None:
        """Deal the payload of a superframe, which ends at `end`, out to the segments."""
        cut, before, stride = self._cut, self.count, self.stride
        begin = before * stride + stride - cut.size
        full = count if last == cut.size else count - 1
        if full:
            rows: Octets = np.ndarray((full,), self._kind, self.out, begin, (stride,))
            rows[:] = np.ndarray((full,), self._kind, frame, cut.head_len)
        if full < count:
            begin += full * stride
            self.out[begin : begin + last] = np.frombuffer(frame[end - last : end], np.uint8)
        if cut.where.protocol == inet.TCP:
            flags = frame[cut.where.offset + inet.TCP_FLAGS_OFFSET]
            if flags & OPENING:
                self._marks.append((before, flags & OPENING))
            if flags & CLOSING:
                self._marks.append((before + count - 1, flags & CLOSING))
        self.count, self._last = before + count, last

    def finish(self) -> tuple[int, int]:
        """Write the headers of what was begun; the octets in `out`, and the stride."""
        count, last, stride, size = self.count, self._last, self.stride, self._cut.size
        self.count = 0
        cut = self._cut._replace(segments=count, last=last)
        sums = row_sums(self.out.data[stride - size :], count, stride, size, last)
        self._headers.write(self.prefix, self.head, cut, stride, sums, marks=self._marks)
        return count * stride - size + last, stride


def judge(frame: memoryview, gso: virtio.Header) -> Cut:
    """How a superframe is to be cut, by its virtio header; raises SplitError.

    Raises AuthenticatedError for TCP with an option that authenticates the segment as a whole.
    """
    where = inet.find_transport(frame) if len(frame) >= ethernet.HEADER_LEN else None
    if where is None:
        raise SplitError("no TCP or UDP header to repeat")
    if (gso.gso_type & ~virtio.GSO_ECN, where.version, where.protocol) not in _KINDS:
        raise SplitError(f"GSO type {gso.gso_type} does not match the frame")
    transport_len = inet.transport_header_len(frame, where)
    payload = where.length - transport_len
    if not gso.gso_size or not transport_len or not payload:
        raise SplitError("no payload, or no size for its segments")
    if where.protocol == inet.TCP and inet.tcp_authentication(frame, where):
        raise AuthenticatedError("it is authenticated as a whole")
    # A size beyond the payload could be one that no length field holds.
    size = min(gso.gso_size, payload)
    count = -(-payload // size)
    last = payload - (count - 1) * size
    return Cut(where, where.offset + transport_len, transport_len, size, count, last)


def segments_of(frame: memoryview, gso: virtio.Header) -> int:
    """How many segments a superframe stands for; raises what `judge` does."""
    return judge(frame, gso).segments


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


def finish_checksums(data: memoryview, stride: int, start: int, offset: int) -> None:
    """Finish the partial checksums of frames that lie `stride` octets apart, all in place.

    `start`, counted from where each begins, and `offset` are as for `finish_checksum`; all frames
    have what they point to. The last may be shorter than the others.
    """
    rows = -(-len(data) // stride)
    if rows == 1:
        finish_checksum(data, start, offset)
        return
    last = len(data) - (rows - 1) * stride - start
    sums = row_sums(data[start:], rows, stride, stride - start, last)
    values = negated(sums)
    if offset == inet.CHECKSUM_OFFSET[inet.UDP]:
        values[values == 0] = 0xFFFF
    fields: Words = np.ndarray((rows,), np.uint16, data, start + offset, (stride,))
    fields[:] = values
