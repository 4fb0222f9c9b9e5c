"""The tunnel MTU of a VNI, and the mechanisms that make its frames fit."""

from typing import TYPE_CHECKING

from vtep.counters import Counters
from vtep.offload.mss import MssClamp
from vtep.offload.oversize import Oversize
from vtep.offload.partial import SegmentSizes, has_partial_checksum
from vtep.wire import ip as inet

if TYPE_CHECKING:
    from collections.abc import Callable


class TunnelSizing:
    """The tunnel MTU of one VNI, and the mechanisms that depend on it, in both directions.

    It owns the MSS clamp, the handling of oversize frames and the observed segment sizes.

    Args:
        prefix: the octets in front of each frame that is sent, which are its VXLAN header.
        counters: those of the segment.
        mtu: octets of the largest inner IP packet that the tunnel carries.
        mss_clamp: the largest MSS of passing SYNs in octets, `auto` to derive it from the MTU, or
            `off`.
    """

    def __init__(self, prefix: bytes, counters: Counters, mtu: int, mss_clamp: int | str) -> None:
        self._counters = counters
        self._mtu = mtu
        self.watchers: list[Callable[[int], None]] = []
        """Called with `sizes.packet_max` when it changes."""
        self.sizes = SegmentSizes(mtu)
        """Segment sizes of connections whose data comes from the underlay."""
        self.sizes_out = SegmentSizes(mtu)
        """Segment sizes of connections whose data goes to the underlay."""
        self.oversize = Oversize(prefix, counters, mtu)
        self.set_mss_clamp(mss_clamp)

    @property
    def mtu(self) -> int:
        """Octets of the largest inner IP packet that the tunnel carries now."""
        return self._mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self._mtu = self.sizes.mtu = self.oversize.mtu = mtu
        if self._clamp is not None:
            self._clamp.mtu = mtu
        self._report_packet_max()

    def _report_packet_max(self) -> None:
        for watcher in self.watchers:
            watcher(self.sizes.packet_max)

    def set_mss_clamp(self, mss_clamp: int | str) -> None:
        """Change the MSS clamp."""
        fixed = mss_clamp if isinstance(mss_clamp, int) else None
        off = mss_clamp == "off"
        self._clamp = None if off else MssClamp(self._counters, self._mtu, fixed)

    def on_syn_sent(self, frame: memoryview, syn: inet.Transport) -> None:
        """Clamp the SYN at `syn` of a frame for the underlay, and store the MSS that it announces.

        Its checksum is complete.
        """
        if self._clamp is not None:
            self._clamp.clamp(frame, syn, partial=False)
        # The announced MSS limits the data in the opposite direction.
        before = self.sizes.packet_max
        self.sizes.observe(frame, syn)
        if self.sizes.packet_max != before:
            self._report_packet_max()

    def on_syn_received(self, frame: memoryview, syn: inet.Transport) -> None:
        """Clamp the SYN at `syn` of a frame from the underlay, and store the MSS that it announces.

        Its checksum may be partial.
        """
        if self._clamp is not None:
            self._clamp.clamp(frame, syn, partial=has_partial_checksum(frame, syn))
        self.sizes_out.observe(frame, syn)
