"""Frames from the TAP that are larger than the tunnel carries."""

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

_ANSWERS_PER_SECOND = 1000.0
_ANSWERS_AT_ONCE = 50.0
"""As the kernel's icmp_msgs_per_sec and icmp_msgs_burst."""

_HARMLESS = inet.TCP_FLAG_ACK | inet.TCP_FLAG_ECE | LAST_ONLY | FIRST_ONLY
"""TCP flags of a segment that may be cut: neither SYN, RST nor URG."""

_SUM_OF_SOUND = 0xFFFF
"""What a checksum's words sum up to, itself among them (RFC 1071)."""

_DONT_FRAGMENT = 0x40
_GSO_TYPE = {4: virtio.GSO_TCPV4, 6: virtio.GSO_TCPV6}


class Packet(NamedTuple):
    """An IP packet in a frame: where it begins and ends, and whether we may fragment it."""

    version: int
    begin: int
    end: int
    may_fragment: bool


class Outcome(NamedTuple):
    """What is to be done about a frame that is too large.

    `datagrams` are to be sent in its place: all `stride` octets long, but perhaps the last. There
    may be none. `answer` is a frame for its sender, if that is to be told.
    """

    datagrams: bytes
    stride: int
    answer: bytes | None


class Oversize:
    """Judges frames that have more than `limit` octets, one by one.

    `prefix` goes before each that is sent: its VXLAN header. `mtu` is that of the tunnel, and may
    change.
    """

    def __init__(self, prefix: bytes, counters: Counters, mtu: int) -> None:
        self.mtu = mtu
        self._prefix = prefix
        self._counters = counters
        self._answers = TokenBucket(_ANSWERS_PER_SECOND, _ANSWERS_AT_ONCE)

    def set_prefix(self, prefix: bytes) -> None:
        """Let another prefix go before what is sent from now on."""
        self._prefix = prefix
        self.__dict__.pop("_splitter", None)

    @property
    def limit(self) -> int:
        """Octets of the largest frame that the tunnel carries, VLAN tags included."""
        return self.mtu + ethernet.HEADER_LEN

    @cached_property
    def _splitter(self) -> Splitter:
        # Not before it is needed: it has some memory, and most tunnels have no use for it.
        return Splitter(self._prefix)

    def handle(self, frame: memoryview, now: float) -> Outcome:
        """What is to be done, at `now` (seconds), with a frame of at least 14 octets.

        Its checksums are finished. What can be neither divided nor answered goes out as it is, and
        it is for the underlay to fragment or to refuse it.
        """
        packet = _packet(frame)
        if packet is None:
            return self._whole(frame)
        if packet.end <= self.limit:  # It is its padding that is too large.
            return self._alone(frame[: packet.end])
        version, begin, end, may_fragment = packet
        where = inet.find_transport(frame)
        if where is not None and _is_divisible(frame, where):
            segments = self._cut(frame, where)
            if segments is not None:
                self._counters.tx_resegmented += 1
                # Nothing is lost, but segments that fit from the beginning would be less work.
                answer = None if may_fragment else self._answer(frame, packet, now)
                return Outcome(*segments, answer)
        fragments = None
        if may_fragment:
            fragments = fragment(frame, begin, self.limit, self._prefix)
        if fragments is not None:
            self._counters.tx_fragmented += 1
            return Outcome(*fragments, None)
        unanswerable = may_fragment or not icmp.may_send_error(frame, begin, version)
        if unanswerable or end - begin <= _link_minimum(version):
            return self._whole(frame)
        answer = self._answer(frame, packet, now)
        if version == 4 and where is not None and _ignores_icmp(frame, where):
            return self._whole(frame)._replace(answer=answer)
        self._counters.drop(Drop.TX_TOO_BIG)
        return Outcome(b"", 1, answer)

    def handle_superframe(
        self, frame: memoryview, segments: memoryview, stride: int, now: float
    ) -> Iterator[Outcome]:
        """The same for a superframe that was split to `segments` which are too large.

        They are `stride` octets each, with their prefix, but perhaps the last. The outcomes are to
        be sent in their order.
        """
        skip = len(self._prefix)
        where = inet.find_transport(frame)
        if where is not None and where.protocol == inet.TCP:
            # Where one segment ends and the next begins means nothing to TCP.
            first = segments[skip:stride]
            cut = self._cut(frame, where)
            packet = _packet(first)
            if cut is not None and packet is not None:
                self._counters.tx_resegmented += 1
                answer = None if packet.may_fragment else self._answer(first, packet, now)
                yield Outcome(*cut, answer)
                return
        for at in range(0, len(segments), stride):
            yield self.handle(segments[at + skip : at + stride], now)

    def _whole(self, frame: memoryview) -> Outcome:
        self._counters.tx_oversize += 1
        return self._alone(frame)

    def _alone(self, frame: memoryview) -> Outcome:
        datagram = self._prefix + bytes(frame)
        return Outcome(datagram, len(datagram), None)

    def _cut(self, frame: memoryview, where: inet.Transport) -> tuple[bytes, int] | None:
        """TCP in segments that fit, and their stride; None if headers leave too little for data."""
        size = self.limit - where.offset - inet.tcp_header_len(frame, where)
        if size <= 0:
            return None
        gso = virtio.Header(0, _GSO_TYPE[where.version], 0, size, 0, 0)
        try:
            octets, stride = self._splitter.split(frame, gso)
        except SplitError:
            return None
        return self._splitter.out[:octets].tobytes(), stride

    def _answer(self, frame: memoryview, packet: Packet, now: float) -> bytes | None:
        version, begin, end, _ = packet
        if not icmp.may_send_error(frame, begin, version) or not self._answers.take(now):
            return None
        self._counters.tx_too_big_answered += 1
        mtu = max(self.limit - begin, _link_minimum(version))
        return icmp.build_too_big(frame, begin, version, end - begin, mtu)


def _link_minimum(version: int) -> int:
    """What every link is to carry, below which it is no use to ask a sender for less."""
    return icmp.MTU_MIN_V6 if version == 6 else 0


def _packet(frame: memoryview) -> Packet | None:
    """The IP packet in a frame of at least 14 octets; None where there is none, or not a sound one.

    It must be whole, and an IPv4 header must have the right checksum, since what is made of the
    packet vouches for it.
    """
    ethertype, begin = ethernet.network_layer(frame)
    if ethertype == ethernet.TYPE_IPV4 and begin + inet.IP_HEADER_MIN[4] <= len(frame):
        header_len = (frame[begin] & 0x0F) * 4
        end = begin + (frame[begin + 2] << 8 | frame[begin + 3])
        sound = frame[begin] >> 4 == 4 and header_len >= inet.IP_HEADER_MIN[4]
        if not sound or not begin + header_len <= end <= len(frame):
            return None
        if checksum.ones_sum(frame[begin : begin + header_len]) != _SUM_OF_SOUND:
            return None
        return Packet(4, begin, end, may_fragment=not frame[begin + 6] & _DONT_FRAGMENT)
    if ethertype == ethernet.TYPE_IPV6 and begin + inet.IP_HEADER_MIN[6] <= len(frame):
        end = begin + inet.IP_HEADER_MIN[6] + (frame[begin + 4] << 8 | frame[begin + 5])
        if frame[begin] >> 4 == 6 and end <= len(frame):
            return Packet(6, begin, end, may_fragment=False)
    return None


def _ignores_icmp(frame: memoryview, where: inet.Transport) -> bool:
    """Return whether the sender of an IPv4 packet disregards "fragmentation needed" by default.

    TCP-AO has it do so (RFC 5925, section 7.8): told alone, it would repeat the segment for ever.
    """
    if where.protocol != inet.TCP:
        return False
    return inet.tcp_authentication(frame, where) == inet.TCP_OPTION_AO


def _is_divisible(frame: memoryview, where: inet.Transport) -> bool:
    """Whether a TCP segment says the same as several.

    Not if it signals more than data, is signed as a whole, or has a wrong checksum: new ones would
    vouch for it.
    """
    if where.protocol != inet.TCP:
        return False
    header_len = inet.tcp_header_len(frame, where)
    flags = frame[where.offset + inet.TCP_FLAGS_OFFSET]
    if not header_len or flags & ~_HARMLESS or not flags & inet.TCP_FLAG_ACK:
        return False
    if inet.tcp_authentication(frame, where):
        return False
    total = checksum.ones_sum(frame[where.offset : where.offset + where.length])
    return checksum.fold(total + inet.pseudo_sum(frame, where)) == _SUM_OF_SOUND
