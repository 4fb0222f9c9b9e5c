"""Segmentation of superframes from the TAP into the frames that go on the wire.

A TAP device that offers segmentation offload delivers TCP and UDP as *superframes*: one set of
headers, up to 64 KiB of payload, and a virtio header with the size of the segments. `Splitter` does
what a NIC would do: it repeats the headers in front of each piece of the payload and updates the
fields that differ.

Consecutive superframes of one flow, each of which begins where the one before ends, are split
together. Checksums and headers are then computed once for all of them.
"""

from struct import Struct

import numpy as np

from vtep.offload.headers import (
    FIRST_ONLY,
    LAST_ONLY,
    SEGMENTS_MAX,
    EdgeFlags,
    HeaderWriter,
    Octets,
    SegmentPlan,
    Words,
    is_continuation,
    negate_sums,
    row_sums,
)
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_LENGTH = Struct("!H")


_FEW_OCTETS = 700
"""Octets of frames whose checksums plain Python finishes in the time that numpy needs."""


class SplitError(ValueError):
    """A virtio header that is inconsistent with its frame, or segments that exceed the buffer."""


class AuthenticatedError(ValueError):
    """A superframe that must not be split: its MD5 signature or TCP-AO code covers all its data."""


class Splitter:
    """Splits superframes into the buffer `out` of `capacity` octets.

    Each segment follows `prefix`, its VXLAN header, which may be replaced by another of the same
    length. The segments lie in `out` as a UDP_SEGMENT send expects them: `stride` octets each,
    prefix included, and the last may be shorter.
    """

    def __init__(self, prefix: bytes, capacity: int = 1 << 18) -> None:
        self.out: Octets = np.zeros(capacity, np.uint8)
        self.prefix = prefix
        self.count = 0
        """Number of pending segments: those begun, but not finished."""
        self.stride = 0
        self.head = bytearray()
        """Headers of the first pending superframe."""
        self._headers = HeaderWriter(self.out, len(prefix))
        self._scratch = bytearray()
        self._edge_flags: EdgeFlags = []

    def split(self, frame: memoryview, gso: virtio.Header) -> tuple[int, int]:
        """Split a single superframe: call `begin` and `finish`.

        Returns: the octets used in `out`, and the stride.

        Raises: SplitError as `begin` does.
        """
        self.begin(frame, gso)
        return self.finish()

    def begin(self, frame: memoryview, gso: virtio.Header) -> int:
        """Start to split a superframe, given without its virtio header.

        No other segments may be pending. All checksums are computed anew, so those of the frame are
        ignored. `gso.hdr_len` is ignored, too, because it is wrong in forwarded frames.

        Returns: the number of its segments.

        Raises: SplitError if `gso` does not describe TCP or UDP segments of this frame, or if the
        segments do not fit into `out`; AuthenticatedError as `plan_segments` does. Nothing is
        pending then.
        """
        plan = plan_segments(frame, gso)
        count, size = plan.segments, plan.size
        stride = len(self.prefix) + plan.header_len + size
        octets = count * stride - size + plan.last_size
        if octets > len(self.out) or count > SEGMENTS_MAX:
            raise SplitError(f"segments of {octets} octets do not fit into {len(self.out)}")
        self._plan, self._gso_type, self.stride = plan, gso.gso_type & ~virtio.GSO_ECN, stride
        self._payload_dtype = np.dtype(f"V{size}")
        self.head[:] = self._scratch[:] = frame[: plan.header_len]
        self._edge_flags.clear()
        transport = plan.transport
        self._copy_payload(frame, transport.offset + transport.length, count, plan.last_size)
        return count

    def extend(self, frame: memoryview, gso: virtio.Header) -> int:
        """Add a superframe to the pending ones if it begins where they end.

        It does so if its headers are those that it would have as a part of one large superframe.

        Returns: the number of its segments, or 0 if it was not added.
        """
        plan = self._plan
        transport, header_len, size = plan.transport, plan.header_len, plan.size
        before = self.count
        if (
            self._last_size != size
            or gso.gso_size != size
            or gso.gso_type & ~virtio.GSO_ECN != self._gso_type
            or not is_continuation(frame, self.head, self._scratch, transport, before, size)
        ):
            return 0
        if transport.version == 4:
            (length,) = _LENGTH.unpack_from(frame, transport.ip_offset + 2)
            end = transport.ip_offset + length
        else:
            (length,) = _LENGTH.unpack_from(frame, transport.ip_offset + 4)
            end = transport.ip_offset + inet.IP_HEADER_MIN[6] + length
        if not header_len < end <= len(frame):
            return 0
        payload: int = end - header_len
        count = -(-payload // size)
        last_size = payload - (count - 1) * size
        if (before + count) * self.stride - size + last_size > len(self.out):
            return 0
        self._copy_payload(frame, end, count, last_size)
        return count

    def _copy_payload(self, frame: memoryview, end: int, count: int, last_size: int) -> None:
        """Copy the payload of a superframe, which ends at `end`, to its `count` segments.

        The full segments are one assignment between two numpy views, whose elements are opaque
        values of the segment size. So numpy copies them without a loop in Python.
        """
        plan, before, stride = self._plan, self.count, self.stride
        begin = before * stride + stride - plan.size
        full = count if last_size == plan.size else count - 1
        if full:
            dtype = self._payload_dtype
            rows: Octets = np.ndarray((full,), dtype, self.out, begin, (stride,))
            rows[:] = np.ndarray((full,), dtype, frame, plan.header_len)
        if full < count:
            begin += full * stride
            last = np.frombuffer(frame[end - last_size : end], np.uint8)
            self.out[begin : begin + last_size] = last
        # CWR belongs to the first segment only, FIN and PSH to the last. `finish` writes them.
        if plan.transport.protocol == inet.TCP:
            flags = frame[plan.transport.offset + inet.TCP_FLAGS_OFFSET]
            if flags & FIRST_ONLY:
                self._edge_flags.append((before, flags & FIRST_ONLY))
            if flags & LAST_ONLY:
                self._edge_flags.append((before + count - 1, flags & LAST_ONLY))
        self.count, self._last_size = before + count, last_size

    def finish(self) -> tuple[int, int]:
        """Write the headers of all pending segments; none is pending afterwards.

        Returns: the octets used in `out`, and the stride.
        """
        count, last_size, stride, size = self.count, self._last_size, self.stride, self._plan.size
        self.count = 0
        plan = self._plan._replace(segments=count, last_size=last_size)
        sums = row_sums(self.out.data[stride - size :], count, stride, size, last_size)
        self._headers.write(self.prefix, self.head, plan, stride, sums, edge_flags=self._edge_flags)
        return count * stride - size + last_size, stride


def plan_segments(frame: memoryview, gso: virtio.Header) -> SegmentPlan:
    """Plan the segments of a superframe from its virtio header.

    Raises: SplitError if `gso` does not describe TCP or UDP segments of this frame;
    AuthenticatedError if a TCP option authenticates the frame as a whole.
    """
    transport = inet.find_transport(frame) if len(frame) >= ethernet.HEADER_LEN else None
    if transport is None:
        raise SplitError("the frame has no TCP or UDP header")
    gso_type = virtio.GSO_TYPES[transport.version, transport.protocol]
    if gso.gso_type & ~virtio.GSO_ECN != gso_type:
        raise SplitError(f"GSO type {gso.gso_type} does not match the frame")
    transport_header_len = inet.transport_header_len(frame, transport)
    payload = transport.length - transport_header_len
    if not gso.gso_size or not transport_header_len or not payload:
        raise SplitError("the frame has no payload, or a segment size of 0")
    if transport.protocol == inet.TCP and inet.tcp_authentication(frame, transport):
        raise AuthenticatedError("a TCP option authenticates the frame as a whole")
    # A gso_size above the payload may exceed the 16 bits of a length field once headers are added.
    size = min(gso.gso_size, payload)
    count = -(-payload // size)
    last_size = payload - (count - 1) * size
    header_len = transport.offset + transport_header_len
    return SegmentPlan(transport, header_len, transport_header_len, size, count, last_size)


def count_segments(frame: memoryview, gso: virtio.Header) -> int:
    """Count the segments of a superframe.

    Raises: SplitError or AuthenticatedError as `plan_segments` does.
    """
    return plan_segments(frame, gso).segments


def finish_checksum(frame: memoryview, csum_start: int, csum_offset: int) -> None:
    """Complete a partial checksum in place, as virtio's NEEDS_CSUM requests.

    Raises: SplitError if the checksum field lies outside of the frame.
    """
    field = csum_start + csum_offset
    if field + 2 > len(frame):
        raise SplitError("the checksum field is outside of the frame")
    value = checksum.ones_sum(frame[csum_start:]) ^ 0xFFFF
    if value == 0 and csum_offset == inet.CHECKSUM_OFFSET[inet.UDP]:
        value = 0xFFFF  # In UDP 0 means that there is no checksum (RFC 768).
    frame[field : field + 2] = value.to_bytes(2, "big")


def finish_checksums(data: memoryview, stride: int, csum_start: int, csum_offset: int) -> None:
    """Complete the partial checksums of frames that lie `stride` octets apart, in place.

    `csum_start` counts from the start of each frame. The last frame may be shorter than the others.
    Every frame contains its checksum field.
    """
    rows = -(-len(data) // stride)
    if rows == 1 or len(data) <= _FEW_OCTETS:
        # Plain Python is faster than the set-up of numpy views, which takes 4 us.
        for begin in range(0, len(data), stride):
            finish_checksum(data[begin : begin + stride], csum_start, csum_offset)
        return
    last = len(data) - (rows - 1) * stride - csum_start
    sums = row_sums(data[csum_start:], rows, stride, stride - csum_start, last)
    values = negate_sums(sums)
    if csum_offset == inet.CHECKSUM_OFFSET[inet.UDP]:
        values[values == 0] = 0xFFFF
    fields: Words = np.ndarray((rows,), np.uint16, data, csum_start + csum_offset, (stride,))
    fields[:] = values
