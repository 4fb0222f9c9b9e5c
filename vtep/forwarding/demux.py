"""The demultiplexer: from received datagrams to segments, by VNI."""

from collections import Counter
from collections.abc import Callable, Iterable
from struct import Struct
from typing import TypeAlias

from vtep.counters import Counters, Drop
from vtep.forwarding.echo import EchoResponder
from vtep.forwarding.segment import INNER_MIN, Segment
from vtep.wire import Buffer, vxlan
from vtep.wire.echo import EchoMessage

_KIND_BITS = vxlan.FLAG_I | vxlan.GPE_BITS
"""Bits that tell a header of RFC 7348 from all others in one comparison."""

Arrival: TypeAlias = tuple[int, int, str, int, int]
"""The octets of a receive, those of each datagram, address and port of the sender, ECN field."""

_HEADERS = Struct("!IIB5x6s")
"""The two words of the VXLAN header, and of the inner Ethernet header the first octet of the
destination, whose lowest bit marks a group, and the source MAC."""


class Demux:
    """The segments of one VTEP by VNI. A frame never crosses from one segment to another.

    `counters` hold the drops that belong to no segment. `port`, `send_reply` and `on_reply` are for
    echo requests and replies: see `EchoResponder`.
    """

    def __init__(
        self,
        segments: Iterable[Segment],
        port: int = vxlan.PORT,
        send_reply: Callable[[bytes, str, int], None] | None = None,
        on_reply: Callable[[EchoMessage, str, float], None] | None = None,
    ) -> None:
        self.segments = {segment.vni: segment for segment in segments}
        self.counters = Counters()
        self._echo = EchoResponder(self.segments, self.counters, port, send_reply, on_reply)

    def admit(self, datagram: Buffer, source: str, now: float, count: int = 1) -> Segment | None:
        """Admit a datagram from the underlay, learn from it, or drop it.

        `source` is the address of the sender, and `now` is in seconds. With `count`, the result
        holds for that many datagrams with the same source, VXLAN header and inner Ethernet header.
        Apart from ARP and neighbour discovery, only those decide about a datagram: so its first
        `INNER_MIN` octets are enough (see `datapath.ingress` on runs).

        Returns: the segment to which the inner frame at `vxlan.HEADER_LEN` is to be delivered, or
        None if the datagram was dropped and counted.
        """
        if len(datagram) < INNER_MIN:
            self._drop_runt(datagram, source, count)
            return None
        flags, vni_word, first, mac = _HEADERS.unpack_from(datagram)
        if flags & _KIND_BITS != vxlan.FLAG_I:
            if flags & vxlan.FLAG_I:
                header = int.from_bytes(datagram[: vxlan.HEADER_LEN], "big")
                self.counters.drop(Drop.HEADER_GPE, source, count, header)
            else:
                # A clear I flag also marks echo requests, so that other VTEPs drop those.
                self._echo.handle(datagram, source, now, count)
            return None
        segment = self.segments.get(vni_word >> 8)
        if segment is None:
            self.counters.drop(Drop.VNI_UNKNOWN, source, count, vni_word >> 8)
            return None
        if (
            first & 1
            and segment.storm.limits_remotes
            # Otherwise it has another drop reason.
            and segment.accepts_source(source)
            and not segment.storm.limit_remote(datagram[vxlan.HEADER_LEN :], source, now, count)
        ):
            return None
        if segment.has_ingress_policy:
            admitted = segment.admit_by_policy(datagram, mac, source, now, count)
        else:
            admitted = segment.admit(mac, source, now, count)
        return segment if admitted else None

    def check_gro_batch(self, octets: Buffer, stride: int, source: str) -> int:
        """Return how many octets of a GRO batch are separate datagrams of `stride` octets.

        The kernel has reported several datagrams, but the inner headers of the first one claim that
        it is a single large datagram (see `offload.partial.is_udp_superframe`). Those headers may
        be forged. A forger of inner headers cannot write the VXLAN header of the second datagram.
        So if there is one, the claim is false. But if the claim is true, a guest wrote everything
        that follows. So datagrams that follow in another VNI are dropped: they may be forged.

        Returns: 0 if the batch is one datagram.
        """
        first = bytes(octets[: vxlan.HEADER_LEN])
        if not self._is_own_header(octets[stride : stride + vxlan.HEADER_LEN]):
            return 0
        for at in range(stride, len(octets), stride):
            if octets[at : at + vxlan.HEADER_LEN] != first:
                count = -(-(len(octets) - at) // stride)
                self.counters.drop(Drop.GRO_BATCH_MISMATCH, source, count)
                return at
        return len(octets)

    def drop_excess(self, octets: Buffer, stride: int, source: str) -> None:
        """Drop datagrams of `stride` octets each, of a flow that takes more than its share."""
        step = max(1, stride)
        left = max(1, -(-len(octets) // step))
        # Three slices are five times as fast as a slice for each datagram.
        vnis = Counter(zip(octets[4::step], octets[5::step], octets[6::step], strict=False))
        for vni, count in vnis.items():
            segment = self.segments.get(int.from_bytes(vni, "big"))
            if segment is not None:
                segment.counters.drop(Drop.RX_FLOW_LIMITED, source, count)
                left -= count
        if left:
            self.counters.drop(Drop.RX_FLOW_LIMITED, source, left)

    def drop_overlay(self, octets: Buffer, rx: Arrival, device: str) -> None:
        """Drop datagrams that have arrived from a device of the overlay, or of its bridge.

        `rx` is what their receive has returned. `octets` are for an observer.
        """
        del octets
        length, stride, source, *_ = rx
        count = -(-length // stride) if stride else 1
        self.counters.drop(Drop.OVERLAY_INGRESS, source, count, device)

    def _is_own_header(self, octets: Buffer) -> bool:
        """Return True for a VXLAN header of one of our segments, which random octets hardly are."""
        if len(octets) < vxlan.HEADER_LEN:
            return False
        flags, vni_word = vxlan.HEADER.unpack(octets)
        known = flags & ~(vxlan.GBP_USED_BITS >> 32) == vxlan.FLAG_I and not vni_word & 0xFF
        return known and vni_word >> 8 in self.segments

    def _drop_runt(self, datagram: Buffer, source: str, count: int) -> None:
        """Drop a datagram without a complete inner Ethernet header, by the first fault in it."""
        if len(datagram) < vxlan.HEADER_LEN:
            self.counters.drop(Drop.HEADER_TRUNCATED, source, count, len(datagram))
            return
        flags, vni_word = vxlan.HEADER.unpack_from(datagram)
        segment = self.segments.get(vni_word >> 8)
        if flags & _KIND_BITS != vxlan.FLAG_I:
            reason = Drop.HEADER_GPE if flags & vxlan.FLAG_I else Drop.FLAGS_INVALID
            self.counters.drop(reason, source, count, flags << 32 | vni_word)
        elif segment is None:
            self.counters.drop(Drop.VNI_UNKNOWN, source, count, vni_word >> 8)
        else:
            segment.drop_runt(datagram, source, count)
