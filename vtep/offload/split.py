"""From one TAP superframe to the segments that go on the wire.

A TAP device that offers segmentation offload gives us TCP and UDP as *superframes*: one set of
headers, up to 64 KiB of payload, and a virtio header that says how large the segments are to be.
`Splitter` does what a network card would: it repeats the headers before each piece of the payload,
and writes into each of them what differs.
"""

import numpy as np

from vtep.offload.headers import SEGMENTS_MAX, Cut, Headers, Octets, row_sums
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


class Splitter:
    """Splits superframes into `out`.

    `prefix` goes before every segment: its VXLAN header. It may become another of the same length.
    `capacity` is the size of `out` in octets.
    The segments lie there as one UDP_SEGMENT send wants them: each is `stride` octets with its
    prefix, and the last may be shorter. The first `reserve` octets of `memory` are not touched;
    the rest of it is `out`.
    """

    def __init__(self, prefix: bytes, capacity: int = 1 << 18, reserve: int = 0) -> None:
        self.memory: Octets = np.zeros(reserve + capacity, np.uint8)
        self.out = self.memory[reserve:]
        self.prefix = prefix
        self._headers = Headers(self.out, len(prefix))

    def split(self, frame: memoryview, gso: virtio.Header) -> tuple[int, int]:
        """Write the segments of a superframe, without its virtio header, to `out`.

        Gives the octets written and the stride. Checksums are computed anew, so it does not matter
        what the frame has in their place; the header length that `gso` states is not looked at,
        since forwarded frames state a wrong one. Raises SplitError, having promised nothing of
        `out`, where `gso` is not about TCP or UDP segments of this frame, or `out` is too small.
        """
        cut = _judge(frame, gso)
        where, count, size = cut.where, cut.segments, cut.size
        body = len(self.prefix) + cut.head_len
        stride = body + size
        octets = (count - 1) * stride + body + cut.last
        if octets > len(self.out) or count > SEGMENTS_MAX:
            raise SplitError(f"{octets} octets of segments do not fit into {len(self.out)}")

        # Deal the payload out to the rows, and sum it up for each of them.
        payload = frame[cut.head_len : where.offset + where.length]
        full = len(payload) // size
        kind = f"V{size}"
        if full:
            rows: Octets = np.ndarray((full,), kind, self.out, body, (stride,))
            rows[:] = np.ndarray((full,), kind, payload)
        if full < count:
            self.out[octets - cut.last : octets] = np.frombuffer(payload[full * size :], np.uint8)
        sums = row_sums(payload, count, size, size, cut.last)

        flags = frame[where.offset + inet.TCP_FLAGS] if where.protocol == inet.TCP else 0
        self._headers.write(self.prefix, frame, cut, stride, sums, flags=flags)
        return octets, stride


def _judge(frame: memoryview, gso: virtio.Header) -> Cut:
    """How a superframe is to be cut, by its virtio header; raises SplitError."""
    where = inet.transport(frame) if len(frame) >= ethernet.HEADER_LEN else None
    if where is None:
        raise SplitError("no TCP or UDP header to repeat")
    if (gso.gso_type & ~virtio.GSO_ECN, where.version, where.protocol) not in _KINDS:
        raise SplitError(f"GSO type {gso.gso_type} does not match the frame")
    transport_len = inet.transport_header_len(frame, where)
    payload = where.length - transport_len
    if not gso.gso_size or not transport_len or not payload:
        raise SplitError("no payload, or no size for its segments")
    # A size beyond the payload could be one that no length field holds.
    size = min(gso.gso_size, payload)
    count = -(-payload // size)
    last = payload - (count - 1) * size
    return Cut(where, where.offset + transport_len, transport_len, size, count, last)


def segments_of(frame: memoryview, gso: virtio.Header) -> int:
    """How many segments a superframe stands for; raises SplitError as `Splitter.split` does."""
    return _judge(frame, gso).segments


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
