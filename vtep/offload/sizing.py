"""All that makes the frames of one TAP fit its tunnel, and the MTU that it goes by."""

from vtep.counters import Counters
from vtep.offload.mss import MssClamp
from vtep.offload.oversize import Oversize
from vtep.offload.partial import SegmentSizes, has_partial_checksum
from vtep.wire import ip as inet


class TunnelSizing:
    """What one segment does about sizes, in both directions.

    `prefix` goes before each frame that is sent: its VXLAN header. `mss_clamp` is what TCP may
    announce at most: `auto`, which is what the tunnel carries, `off`, or so many octets.
    """

    def __init__(self, prefix: bytes, counters: Counters, mtu: int, mss_clamp: int | str) -> None:
        self._counters = counters
        self._mtu = mtu
        self.sizes = SegmentSizes(mtu)
        """Of what comes from the underlay."""
        self.sizes_out = SegmentSizes(mtu)
        """Of what leaves for it."""
        self.oversize = Oversize(prefix, counters, mtu)
        self.set_mss_clamp(mss_clamp)

    @property
    def mtu(self) -> int:
        """The largest IP packet, in octets, that the tunnel carries now."""
        return self._mtu

    @mtu.setter
    def mtu(self, mtu: int) -> None:
        self._mtu = self.sizes.mtu = self.oversize.mtu = mtu
        if self._clamp is not None:
            self._clamp.mtu = mtu

    def set_mss_clamp(self, mss_clamp: int | str) -> None:
        """Clamp to something else from now on."""
        fixed = mss_clamp if isinstance(mss_clamp, int) else None
        off = mss_clamp == "off"
        self._clamp = None if off else MssClamp(self._counters, self._mtu, fixed)

    def leaving(self, frame: memoryview) -> None:
        """Clamp a SYN that leaves for the underlay, and learn from it.

        Its checksum is finished. It is enough to show frames of up to `SYN_MAX` octets.
        """
        where = inet.tcp_syn(frame)
        if where is None:
            return
        if self._clamp is not None:
            self._clamp.clamp(frame, where, partial=False)
        self.sizes.observe(frame)

    def arriving(self, frame: memoryview) -> None:
        """Clamp a SYN that came from the underlay, and learn from it."""
        where = inet.tcp_syn(frame)
        if where is None:
            return
        if self._clamp is not None:
            self._clamp.clamp(frame, where, partial=has_partial_checksum(frame, where))
        self.sizes_out.observe(frame)
