"""Received frames whose sender counted on hardware that was never there.

A kernel VTEP gives its NIC frames with *partial* checksums (the field holds the sum of the
pseudo-header only) and TCP superframes of up to 64 KiB, for the NIC to finish. Where the "NIC" is
a veth, as in every lab and between containers of one host, nobody does, and our socket receives
them as they are: a datagram whose inner frame has a checksum that looks wrong, or that is far
larger than any MTU. Neither is an error. Both can be handed to the TAP device unchanged if its
virtio header says what is still to be done, and the kernel behind it carries on from there.
"""

from vtep.counters import Counters
from vtep.offload.headers import Cut
from vtep.wire import Buffer, ethernet, virtio
from vtep.wire import ip as inet

SYN_MAX = 256
"""Longer frames are not looked at: a SYN has headers and options, and no data to speak of."""

_SIZE_MIN = 8
"""Less than this the kernel cuts no segment to (its TCP_MIN_GSO_SIZE), whatever was announced."""

_GSO_TYPE = {4: virtio.GSO_TCPV4, 6: virtio.GSO_TCPV6}


class SegmentSizes:
    """How large the segments of a TCP superframe may be, which the datagram does not say.

    The receiver of a connection announced it in its SYN, which went out through us: `observe`
    remembers that for the latest `limit` connections. For one that is older than this process, or
    forgotten, the MTU of the overlay is the best guess.
    """

    def __init__(self, mtu: int, limit: int = 4096) -> None:
        self.mtu = mtu
        self._limit = limit
        self._announced: dict[bytes, int] = {}

    def observe(self, frame: Buffer) -> None:
        """Learn from a frame that leaves for the underlay, of at least 14 octets."""
        if len(frame) > SYN_MAX:
            return
        where = inet.tcp_syn(frame)
        if where is None:
            return
        mss = inet.tcp_mss(frame, where)
        if mss is None:
            return
        addresses = bytes(inet.addresses(frame, where))
        half = len(addresses) // 2
        ports = bytes(frame[where.offset : where.offset + 4])
        # What comes back has source and destination the other way round.
        key = addresses[half:] + addresses[:half] + ports[2:] + ports[:2]
        self._announced.pop(key, None)
        if len(self._announced) >= self._limit:
            del self._announced[next(iter(self._announced))]
        self._announced[key] = mss

    def are_full(self, frame: Buffer, cut: Cut) -> bool:
        """Whether the segments of a superframe are as large as its receiver has announced.

        Then a receiver's VTEP that gets it whole takes them for what they are. What is smaller may
        have to be, because of something behind that. `frame` has neither IP options nor extension
        headers, and leaves the way that `observe` says the others come.
        """
        at = cut.where.offset
        addresses = inet.ADDRESSES_LEN[cut.where.version]
        announced = self._announced.get(bytes(frame[at - addresses : at + 4]))
        options = cut.transport_len - inet.TCP_HEADER_MIN
        return announced is not None and cut.size + options >= announced

    def payload(self, frame: Buffer, where: inet.Transport) -> int:
        """Octets of payload in each segment of the TCP superframe `frame`."""
        ports = frame[where.offset : where.offset + 4]
        key = bytes(inet.addresses(frame, where)) + bytes(ports)
        ip_header = inet.IP_HEADER_MIN[where.version]
        mss = self.mtu - ip_header - inet.TCP_HEADER_MIN
        announced = self._announced.get(key)
        if announced is not None:
            mss = min(mss, announced)
        # The announced size counts no options of IP or TCP, but segments that carry some make room
        # for them (RFC 6691).
        options = where.offset - where.ip_offset - ip_header
        options += inet.tcp_header_len(frame, where) - inet.TCP_HEADER_MIN
        return max(_SIZE_MIN, mss - options)


def is_udp_superframe(frame: Buffer) -> bool:
    """Whether what the kernel says are several datagrams may be one frame all the same.

    Where an application on a kernel VTEP's side sends with UDP_SEGMENT, a veth gives us its
    superframe whole, and states the size of the *inner* datagrams as if they were ours. Then the
    first frame's IP and UDP headers state lengths that reach to the end of it all.
    """
    if len(frame) < ethernet.HEADER_LEN:
        return False
    ethertype, at = ethernet.network_layer(frame)
    if ethertype == ethernet.TYPE_IPV4 and at + 4 <= len(frame):
        whole = at + (frame[at + 2] << 8 | frame[at + 3]) == len(frame)
    elif ethertype == ethernet.TYPE_IPV6 and at + 6 <= len(frame):
        payload = frame[at + 4] << 8 | frame[at + 5]
        whole = at + inet.IP_HEADER_MIN[6] + payload == len(frame)
    else:
        return False
    where = inet.find_transport(frame) if whole else None
    return (
        where is not None
        and where.protocol == inet.UDP
        and inet.udp_length(frame, where) == where.length
    )


def virtio_header(
    frame: Buffer, sizes: SegmentSizes, counters: Counters, udp_size: int = 0
) -> bytes:
    """The virtio header with which a received frame of at least 14 octets goes to the TAP.

    `udp_size` is the payload of each datagram that the frame stands for, should it turn out to be a
    UDP superframe.

    A checksum field that equals the pseudo-header sum is taken as partial. A finished checksum
    has that value once in 65,536 frames; finishing it again then gives the same value, so the
    mistake changes nothing.
    """
    where = inet.find_transport(frame)
    if where is None or not is_partial(frame, where):
        return virtio.PLAIN
    counters.partial_checksums += 1
    offset = inet.CHECKSUM_OFFSET[where.protocol]
    if where.protocol == inet.TCP:
        header_len = inet.tcp_header_len(frame, where)
        size = sizes.payload(frame, where) if header_len else 0
        gso_type = _GSO_TYPE[where.version]
    else:
        header_len, size, gso_type = inet.UDP_HEADER_LEN, udp_size, virtio.GSO_UDP_L4
    if not size or where.length - header_len <= size:
        return virtio.pack_needs_csum(where.offset, offset)
    if where.protocol == inet.TCP and inet.tcp_authentication(frame, where):
        return virtio.pack_needs_csum(where.offset, offset)  # Its code covers all of it.
    counters.super_datagrams += 1
    if (
        where.protocol == inet.TCP
        and frame[where.offset + inet.TCP_FLAGS_OFFSET] & inet.TCP_FLAG_CWR
    ):
        gso_type |= virtio.GSO_ECN
    return virtio.pack_gso(gso_type, where.offset + header_len, size, where.offset, offset)


def is_partial(frame: Buffer, where: inet.Transport | None) -> bool:
    """Whether the checksum of the transport header at `where`, if any, looks partial."""
    return (
        where is not None
        and inet.checksum_field(frame, where) == inet.pseudo_sum(frame, where)
        and _sums_to_its_end(frame, where)
    )


def _sums_to_its_end(frame: Buffer, where: inet.Transport) -> bool:
    """Whether a sum to the end of the frame, which is what we can ask for, is that of its checksum.

    It is not where the padding has more than zeros, or a UDP header states another length than the
    IP header: no sender leaves those to hardware, and finishing them again would break them.
    """
    if where.protocol == inet.UDP and inet.udp_length(frame, where) != where.length:
        return False
    return not any(frame[where.offset + where.length :])
