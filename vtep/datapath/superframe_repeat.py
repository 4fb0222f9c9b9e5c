"""The repetition of a decision about a superframe from the underlay."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from vtep.datapath.tap_fallback import count_frames
from vtep.forwarding.segment import INNER_MIN
from vtep.io.interfaces import Received
from vtep.wire import vxlan
from vtep.wire.flow import superframe_key_struct

if TYPE_CHECKING:
    from vtep.datapath.ingress import TapTarget

_HEADER_LEN = vxlan.HEADER_LEN


class SuperframeRepeat:
    """The decision to deliver a superframe, and how many it was repeated for.

    Apart from ARP and neighbour discovery, admission depends on the source host, the VXLAN header
    and the inner Ethernet header, which all match those of an admitted datagram, and on tables that
    change between turns only. So the result is known before a frame is written, and admission
    learns and counts all at once, before any other datagram is admitted.
    """

    __slots__ = ("_head", "_key", "_read_key", "count", "first", "header", "refused", "target")

    def __init__(
        self,
        target: "TapTarget",
        first: Received,
        header: bytes,
        head: bytes,
        read_key: Callable[[memoryview, int], tuple[bytes, ...]],
        key: tuple[bytes, ...],
    ) -> None:
        self.target = target
        self.first = first
        self.header = header
        """The virtio header: the run key covers all that it depends on."""
        self._head = head
        self._read_key = read_key
        self._key = key
        self.count = self.refused = 0

    @classmethod
    def begin(
        cls, target: "TapTarget", first: Received, header: bytes, datagram: memoryview
    ) -> Self | None:
        """Prepare to repeat the delivery of a superframe with the virtio header `header`.

        `first` is the result of its receive. Returns: None if it has no run key, or goes to a
        group.
        """
        frame = datagram[_HEADER_LEN:]
        if frame[0] & 1:
            return None  # Storm control counts each of them before it is delivered.
        key_struct = superframe_key_struct(frame)
        if key_struct is None:
            return None
        read_key = key_struct.unpack_from
        return cls(target, first, header, bytes(datagram[:INNER_MIN]), read_key, read_key(frame))

    def holds_for(self, rx: Received, buffer: memoryview) -> bool:
        """Return whether the decision holds for a datagram at the start of `buffer`."""
        # Source, lengths and ECN field, the VXLAN header, and the run key.
        return (
            rx == self.first
            and buffer[:_HEADER_LEN] == self._head[:_HEADER_LEN]
            and self._read_key(buffer, _HEADER_LEN) == self._key
        )

    def account(self, admit: Callable[[bytes, str, float, int], object], now: float) -> None:
        """Admit and count the superframes that were delivered as the first one."""
        count, counters = self.count, self.target.counters
        if not count:
            return
        octets, _, host, *_ = self.first
        admit(self._head, host, now, count)
        # What `virtio_header` counts for a superframe that it parses.
        counters.partial_checksums += count
        counters.super_datagrams += count
        frames, octets = count_frames(octets - _HEADER_LEN, self.header)
        written = count - self.refused
        self.target.segment.count_received(host, written * frames, written * octets, now)
