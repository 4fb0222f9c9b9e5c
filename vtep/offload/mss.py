"""MSS clamping: lower the segment size that TCP announces to what the tunnel carries."""

from vtep.counters import Counters
from vtep.wire import ethernet
from vtep.wire import ip as inet
from vtep.wire.checksum import fold

_MSS_MIN = 8
"""The smallest MSS that is written, however small the MTU is. The kernel uses no smaller segments
(see `SegmentSizes`)."""


class MssClamp:
    """Lowers the MSS option of SYNs. It never raises the value, and adds no option.

    `mtu` is that of the tunnel and may change. `fixed` is the largest MSS, or None for the one that
    fits `mtu`.
    """

    def __init__(self, counters: Counters, mtu: int, fixed: int | None = None) -> None:
        self.mtu = mtu
        self._fixed = fixed
        self._counters = counters

    def clamp(self, frame: memoryview, syn: inet.Transport, *, partial: bool) -> None:
        """Lower the MSS of the SYN at `syn` in place if it is too large.

        The TCP checksum is updated (RFC 1624), so that a wrong one stays wrong. A `partial` one
        covers the pseudo-header only and stays.

        A SYN with TCP-AO stays as it is, since its MAC covers the options by default (RFC 5925,
        section 5.1), and only the two ends know whether it does. An MD5 signature does not cover
        options (RFC 2385, section 2.0), so a clamped SYN stays valid.
        """
        offset = inet.tcp_mss_offset(frame, syn)
        if offset is None:
            return
        announced = frame[offset] << 8 | frame[offset + 1]
        most = self._max_mss(syn)
        if announced <= most or inet.tcp_authentication(frame, syn) == inet.TCP_OPTION_AO:
            return
        frame[offset : offset + 2] = most.to_bytes(2, "big")
        if not partial:
            field = syn.offset + inet.CHECKSUM_OFFSET[inet.TCP]
            lowered = announced - most
            if (offset - syn.offset) & 1:
                # At an odd offset the value belongs to two words of the sum, in swapped order.
                lowered <<= 8
            # The checksum is the complement of the sum, so it grows by what the sum loses.
            value = (frame[field] << 8 | frame[field + 1]) + lowered
            frame[field : field + 2] = (fold(value) % 0xFFFF).to_bytes(2, "big")
        self._counters.mss_clamped += 1

    def _max_mss(self, syn: inet.Transport) -> int:
        """Return the largest MSS for the connection of a SYN, in octets."""
        if self._fixed is not None:
            return self._fixed
        tags = syn.ip_offset - ethernet.HEADER_LEN
        # The MSS does not include options of IP and TCP, which the sender subtracts (RFC 6691).
        headers = inet.IP_HEADER_MIN[syn.version] + inet.TCP_HEADER_MIN
        return max(_MSS_MIN, self.mtu - tags - headers)
