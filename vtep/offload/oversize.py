"""Frames from the TAP that are larger than the tunnel carries.

In this order: a TCP segment is cut into smaller ones, an IPv4 packet without DF is fragmented, and
the sender of any other packet is notified of the MTU by ICMP. A frame for which none of these is
possible is sent unchanged, and the underlay fragments or drops it.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from vtep.counters import Counters, Drop
from vtep.offload.fragment import fragment
from vtep.offload.headers import FIRST_ONLY, LAST_ONLY
from vtep.offload.split import SplitError, Splitter
from vtep.ratelimit import TokenBucket
from vtep.wire import checksum, ethernet, icmp, virtio
from vtep.wire import ip as inet
from vtep.wire.ethernet import NetworkLayer

_ERRORS_PER_S = 1000.0
_ERRORS_BURST = 50.0
"""The limit of ICMP errors: icmp_msgs_per_sec and icmp_msgs_burst of the kernel."""

_HARMLESS = inet.TCP_FLAG_ACK | inet.TCP_FLAG_ECE | LAST_ONLY | FIRST_ONLY
"""TCP flags of a segment that can be cut. SYN, RST and URG are not among them."""

_VALID_SUM = 0xFFFF
"""The one's complement sum of octets with a right checksum, including that (RFC 1071)."""

_DONT_FRAGMENT = 0x40


class IpPacket(NamedTuple):
    """A complete IP packet in a frame."""

    version: int
    begin: int
    """Offset of the IP header."""
    end: int
    """Offset behind the packet. Ethernet padding may follow."""
    may_fragment: bool
    """It is IPv4 without DF."""


class Outcome(NamedTuple):
    """The datagrams that replace an oversize frame, and the answer to its sender.

    All datagrams have `stride` octets, but the last one may be shorter. There may be none. `answer`
    is an Ethernet frame with an ICMP error, or None.
    """

    datagrams: bytes
    stride: int
    answer: bytes | None


class Oversize:
    """Handles frames of more than `limit` octets, one by one.

    `prefix` is put in front of each frame that is sent: its VXLAN header. `mtu` is that of the
    tunnel and may change.
    """

    def __init__(self, prefix: bytes, counters: Counters, mtu: int) -> None:
        self.mtu = mtu
        self._prefix = prefix
        self._counters = counters
        self._errors = TokenBucket(_ERRORS_PER_S, _ERRORS_BURST)

    def set_prefix(self, prefix: bytes) -> None:
        """Change the prefix of frames that are sent."""
        self._prefix = prefix
        self.__dict__.pop("_splitter", None)

    @property
    def limit(self) -> int:
        """Octets of the largest frame that the tunnel carries, VLAN tags included."""
        return self.mtu + ethernet.HEADER_LEN

    @cached_property
    def _splitter(self) -> Splitter:
        # Made at first use, because of its buffer, which most tunnels do not need.
        return Splitter(self._prefix)

    def handle(self, frame: memoryview, layer: NetworkLayer, now: float) -> Outcome:
        """Cut, fragment, answer or pass on a frame of at least 14 octets.

        Its checksums are complete. `layer` is the result of `network_layer`; `now` is in seconds.
        """
        packet = _parse_packet(frame, layer)
        if packet is None:
            return self._pass_on(frame)
        if packet.end <= self.limit:
            # Only the Ethernet padding exceeds the limit.
            return self._single(frame[: packet.end])
        version, begin, end, may_fragment = packet
        transport = inet.find_transport(frame, layer)
        if transport is not None and _is_divisible(frame, transport):
            segments = self._cut(frame, transport)
            if segments is not None:
                self._counters.tx_resegmented += 1
                # Nothing is lost, but segments that fit from the start would be less work.
                answer = None if may_fragment else self._too_big(frame, packet, now)
                return Outcome(*segments, answer)
        fragments = None
        # Only the sender may fragment IPv6 (RFC 8200, section 4.5), and IPv4 with DF.
        if may_fragment:
            fragments = fragment(frame, begin, self.limit, self._prefix)
        if fragments is not None:
            self._counters.tx_fragmented += 1
            return Outcome(*fragments, None)
        unanswerable = may_fragment or not icmp.may_send_error(frame, begin, version)
        if unanswerable or end - begin <= _min_link_mtu(version):
            return self._pass_on(frame)
        answer = self._too_big(frame, packet, now)
        if version == 4 and transport is not None and _ignores_icmp(frame, transport):
            # The underlay may fragment it, which is better than a connection that hangs.
            return self._pass_on(frame)._replace(answer=answer)
        self._counters.drop(Drop.TX_TOO_BIG)
        return Outcome(b"", 1, answer)

    def handle_superframe(
        self, frame: memoryview, segments: memoryview, stride: int, now: float
    ) -> Iterator[Outcome]:
        """Handle a superframe whose `segments` are too large.

        The segments have `stride` octets each with their prefix; the last may be shorter.

        Yields: outcomes whose datagrams are to be sent in this order.
        """
        skip = len(self._prefix)
        layer = ethernet.network_layer(frame)
        transport = inet.find_transport(frame, layer)
        if transport is not None and transport.protocol == inet.TCP:
            # TCP is a stream: the superframe can be cut elsewhere than its sender intended.
            first = segments[skip:stride]
            cut = self._cut(frame, transport)
            packet = _parse_packet(first, layer)
            if cut is not None and packet is not None:
                self._counters.tx_resegmented += 1
                answer = None if packet.may_fragment else self._too_big(first, packet, now)
                yield Outcome(*cut, answer)
                return
        for at in range(0, len(segments), stride):
            yield self.handle(segments[at + skip : at + stride], layer, now)

    def _pass_on(self, frame: memoryview) -> Outcome:
        self._counters.tx_oversize += 1
        return self._single(frame)

    def _single(self, frame: memoryview) -> Outcome:
        datagram = self._prefix + bytes(frame)
        return Outcome(datagram, len(datagram), None)

    def _cut(self, frame: memoryview, transport: inet.Transport) -> tuple[bytes, int] | None:
        """Cut TCP data into segments that fit.

        Returns: the datagrams and their stride, or None if the headers leave no space for data.
        """
        size = self.limit - transport.offset - inet.tcp_header_len(frame, transport)
        if size <= 0:
            return None
        gso_type = virtio.GSO_TYPES[transport.version, inet.TCP]
        gso = virtio.Header(0, gso_type, 0, size, 0, 0)
        try:
            octets, stride = self._splitter.split(frame, gso)
        except SplitError:
            return None
        return self._splitter.out[:octets].tobytes(), stride

    def _too_big(self, frame: memoryview, packet: IpPacket, now: float) -> bytes | None:
        """Build the ICMP error about a packet, if one may be sent and the rate allows it."""
        version, begin, end, _ = packet
        if not icmp.may_send_error(frame, begin, version) or not self._errors.take(now):
            return None
        self._counters.tx_too_big_answered += 1
        # The limit counts the Ethernet header with tags, which an IP MTU does not.
        mtu = max(self.limit - begin, _min_link_mtu(version))
        return icmp.build_too_big(frame, begin, version, end - begin, mtu)


def _min_link_mtu(version: int) -> int:
    """Return the MTU that every link has: senders need not heed a smaller one."""
    return icmp.MTU_MIN_V6 if version == 6 else 0


def _parse_packet(frame: memoryview, layer: NetworkLayer) -> IpPacket | None:
    """Parse the IP packet in a frame of at least 14 octets.

    The packets that replace it get new checksums, which would hide damage. So it must be complete,
    and an IPv4 header must have the right checksum.

    Returns: None if there is no valid packet.
    """
    ethertype, begin = layer
    if ethertype == ethernet.TYPE_IPV4 and begin + inet.IP_HEADER_MIN[4] <= len(frame):
        header_len = (frame[begin] & 0x0F) * 4
        end = begin + (frame[begin + 2] << 8 | frame[begin + 3])
        valid = frame[begin] >> 4 == 4 and header_len >= inet.IP_HEADER_MIN[4]
        if not valid or not begin + header_len <= end <= len(frame):
            return None
        if checksum.ones_sum(frame[begin : begin + header_len]) != _VALID_SUM:
            return None
        return IpPacket(4, begin, end, may_fragment=not frame[begin + 6] & _DONT_FRAGMENT)
    if ethertype == ethernet.TYPE_IPV6 and begin + inet.IP_HEADER_MIN[6] <= len(frame):
        end = begin + inet.IP_HEADER_MIN[6] + (frame[begin + 4] << 8 | frame[begin + 5])
        if frame[begin] >> 4 == 6 and end <= len(frame):
            return IpPacket(6, begin, end, may_fragment=False)
    return None


def _ignores_icmp(frame: memoryview, transport: inet.Transport) -> bool:
    """Return True if the sender of an IPv4 packet ignores "fragmentation needed" by default.

    A sender with TCP-AO does (RFC 5925, section 7.8). It would repeat a dropped segment forever.
    """
    if transport.protocol != inet.TCP:
        return False
    return inet.tcp_authentication(frame, transport) == inet.TCP_OPTION_AO


def _is_divisible(frame: memoryview, transport: inet.Transport) -> bool:
    """Return True for a TCP segment that can be replaced by several without loss of meaning.

    It has data only and no signature, and its checksum is right: new checksums would hide damage.
    """
    if transport.protocol != inet.TCP:
        return False
    header_len = inet.tcp_header_len(frame, transport)
    flags = frame[transport.offset + inet.TCP_FLAGS_OFFSET]
    if not header_len or flags & ~_HARMLESS or not flags & inet.TCP_FLAG_ACK:
        return False
    if inet.tcp_authentication(frame, transport):
        return False
    total = checksum.ones_sum(frame[transport.offset : transport.offset + transport.length])
    return checksum.fold(total + inet.pseudo_sum(frame, transport)) == _VALID_SUM
