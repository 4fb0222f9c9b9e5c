"""Lowering the maximum segment size that TCP announces to what the tunnel carries."""

from vtep.counters import Counters
from vtep.wire import ethernet
from vtep.wire import ip as inet
from vtep.wire.checksum import fold

_MSS_MIN = 8
"""Less is not announced, however narrow the tunnel: see `SegmentSizes`."""


class MssClamp:
    """Lowers the MSS option of SYNs, never raises it, and adds none.

    `mtu` is that of the tunnel, and may change. With `fixed`, that is the largest MSS instead of
    the one which fits `mtu`.
    """

    def __init__(self, counters: Counters, mtu: int, fixed: int | None = None) -> None:
        self.mtu = mtu
        self._fixed = fixed
        self._counters = counters

    def clamp(self, frame: memoryview, where: inet.Transport, *, partial: bool) -> None:
        """Lower, in place, what the SYN at `where` announces, if that is too much.

        Its checksum is updated (RFC 1624), so that a wrong one stays wrong; but not if it is
        `partial`, since that covers no more than the pseudo-header.

        A SYN with TCP-AO stays as it is: its code covers the options by default (RFC 5925, section
        5.1), and only the two ends know whether theirs does. An MD5 signature leaves the options
        out (RFC 2385, section 2.0), so a clamped SYN stays valid.
        """
        at = inet.tcp_mss_offset(frame, where)
        if at is None:
            return
        announced = frame[at] << 8 | frame[at + 1]
        most = self._most(where)
        if announced <= most or inet.tcp_authentication(frame, where) == inet.TCP_OPTION_AO:
            return
        frame[at : at + 2] = most.to_bytes(2, "big")
        if not partial:
            field = where.offset + inet.CHECKSUM_OFFSET[inet.TCP]
            lowered = announced - most
            if (at - where.offset) & 1:  # It lies across two words.
                lowered <<= 8
            # What the words lose, their complement gains.
            value = (frame[field] << 8 | frame[field + 1]) + lowered
            frame[field : field + 2] = (fold(value) % 0xFFFF).to_bytes(2, "big")
        self._counters.mss_clamped += 1

    def _most(self, where: inet.Transport) -> int:
        if self._fixed is not None:
            return self._fixed
        tags = where.ip_offset - ethernet.HEADER_LEN
        # Options of IP and TCP are the sender's to subtract (RFC 6691).
        headers = inet.IP_HEADER_MIN[where.version] + inet.TCP_HEADER_MIN
        return max(_MSS_MIN, self.mtu - tags - headers)
