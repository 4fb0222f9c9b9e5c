"""Virtio headers for received frames whose offloads were never carried out.

A kernel VTEP leaves two kinds of work to its NIC: *partial* checksums, whose field holds the sum of
the pseudo-header only, and TCP superframes of up to 64 KiB. Where the underlay device is a veth, as
in a lab or between containers of one host, no NIC carries them out. The UDP socket then receives an
inner frame whose checksum looks wrong, or which is far larger than any MTU.

Neither is an error. Both kinds of frame go to the TAP device unchanged, with a virtio header that
requests the missing work, and the receiving kernel completes it.
"""

from vtep.counters import Counters
from vtep.offload.headers import SegmentPlan
from vtep.wire import Buffer, ethernet, virtio
from vtep.wire import ip as inet

SYN_MAX = 256
"""Octets of the longest frame that is examined for a SYN. A SYN has headers and options, and hardly
ever data."""

_SIZE_MIN = 8
"""The smallest segment size that the kernel uses (its TCP_MIN_GSO_SIZE), whatever was announced."""


class SegmentSizes:
    """The segment sizes of TCP connections, which a received TCP superframe does not state.

    The receiver of a connection announces its MSS in a SYN, which passes through this VTEP in the
    opposite direction. `observe` stores it for the latest `limit` connections. For others, such as
    those that are older than this process, the MTU of the overlay is the best estimate.
    """

    def __init__(self, mtu: int, limit: int = 4096) -> None:
        self.mtu = mtu
        self._limit = limit
        self._announced: dict[bytes, int] = {}
        # The smallest packet that any announcement has limited a connection to. It never grows
        # again: to find out which announcement was the smallest would take a search for each.
        self._packet_min = 0xFFFF

    @property
    def packet_max(self) -> int:
        """Octets of the largest IP packet that is one segment of TCP, whatever its connection is.

        A larger one may be a superframe.
        """
        return min(self.mtu, self._packet_min)

    def observe(self, frame: Buffer, transport: inet.Transport) -> None:
        """Store the MSS that the SYN at `transport` of a frame announces, if it announces one."""
        mss = inet.tcp_mss(frame, transport)
        if mss is None:
            return
        addresses = bytes(inet.addresses(frame, transport))
        half = len(addresses) // 2
        ports = bytes(frame[transport.offset : transport.offset + 4])
        # Data flows in the opposite direction, so source and destination are swapped in the key.
        key = addresses[half:] + addresses[:half] + ports[2:] + ports[:2]
        self._announced.pop(key, None)
        if len(self._announced) >= self._limit:
            del self._announced[next(iter(self._announced))]
        self._announced[key] = mss
        headers = inet.IP_HEADER_MIN[transport.version] + inet.TCP_HEADER_MIN
        self._packet_min = min(self._packet_min, mss + headers)

    def are_full(self, frame: Buffer, plan: SegmentPlan) -> bool:
        """Return True if the segments of a superframe are as large as its receiver announced.

        The receiver's VTEP, which derives the size from the announced MSS, then restores these
        segments from the superframe. A sender may choose smaller segments because of a narrow link
        behind that VTEP. `frame` travels in the direction opposite to that of the observed SYNs,
        and has neither IP options nor extension headers.
        """
        offset = plan.transport.offset
        addresses = inet.ADDRESSES_LEN[plan.transport.version]
        announced = self._announced.get(bytes(frame[offset - addresses : offset + 4]))
        options = plan.transport_header_len - inet.TCP_HEADER_MIN
        return announced is not None and plan.size + options >= announced

    def payload_size(self, frame: Buffer, transport: inet.Transport) -> int:
        """Return the octets of payload in each segment of a TCP superframe."""
        ports = frame[transport.offset : transport.offset + 4]
        key = bytes(inet.addresses(frame, transport)) + bytes(ports)
        ip_header = inet.IP_HEADER_MIN[transport.version]
        mss = self.mtu - ip_header - inet.TCP_HEADER_MIN
        announced = self._announced.get(key)
        if announced is not None:
            mss = min(mss, announced)
        # The MSS does not account for IP and TCP options: a segment with options has less payload
        # (RFC 6691).
        options = transport.offset - transport.ip_offset - ip_header
        options += inet.tcp_header_len(frame, transport) - inet.TCP_HEADER_MIN
        return max(_SIZE_MIN, mss - options)


def is_udp_superframe(frame: Buffer) -> bool:
    """Return True if what UDP_GRO reports as several datagrams may be one UDP superframe.

    If an application behind a kernel VTEP sends with UDP_SEGMENT, a veth delivers its superframe
    whole, and the kernel reports the size of the *inner* datagrams as that of the outer ones. The
    lengths in the IP and UDP headers of the first frame then extend to the end of the data.
    """
    if len(frame) < ethernet.HEADER_LEN:
        return False
    ethertype, offset = ethernet.network_layer(frame)
    # Cheap test first: this runs for every burst, and almost all are ordinary datagrams.
    if ethertype == ethernet.TYPE_IPV4 and offset + 4 <= len(frame):
        reaches_end = offset + (frame[offset + 2] << 8 | frame[offset + 3]) == len(frame)
    elif ethertype == ethernet.TYPE_IPV6 and offset + 6 <= len(frame):
        payload = frame[offset + 4] << 8 | frame[offset + 5]
        reaches_end = offset + inet.IP_HEADER_MIN[6] + payload == len(frame)
    else:
        return False
    transport = inet.find_transport(frame) if reaches_end else None
    return (
        transport is not None
        and transport.protocol == inet.UDP
        and inet.udp_length(frame, transport) == transport.length
    )


def virtio_header(
    frame: Buffer, sizes: SegmentSizes, counters: Counters, udp_size: int = 0
) -> bytes:
    """Build the virtio header for a received frame of at least 14 octets.

    `udp_size` is the payload of each datagram, in octets, if the frame is a UDP superframe, and 0
    if it cannot be one.

    A checksum that equals the sum of the pseudo-header is treated as partial. One complete checksum
    in 65,536 has that value by chance. The receiving kernel then computes the same value again, so
    that the mistake has no effect.

    Side effects: increments `partial_checksums` and `super_datagrams` of `counters`.
    """
    transport = inet.find_transport(frame)
    if transport is None or not has_partial_checksum(frame, transport):
        return virtio.PLAIN
    counters.partial_checksums += 1
    version, protocol, _, offset, length = transport
    csum_offset = inet.CHECKSUM_OFFSET[protocol]
    if protocol == inet.TCP:
        header_len = inet.tcp_header_len(frame, transport)
        size = sizes.payload_size(frame, transport) if header_len else 0
    else:
        header_len, size = inet.UDP_HEADER_LEN, udp_size
    if not size or length - header_len <= size:
        return virtio.pack_needs_csum(offset, csum_offset)
    if protocol == inet.TCP and inet.tcp_authentication(frame, transport):
        # The authentication code covers the whole frame, so it must not be split.
        return virtio.pack_needs_csum(offset, csum_offset)
    counters.super_datagrams += 1
    gso_type = virtio.GSO_TYPES[version, protocol]
    if protocol == inet.TCP and frame[offset + inet.TCP_FLAGS_OFFSET] & inet.TCP_FLAG_CWR:
        gso_type |= virtio.GSO_ECN
    return virtio.pack_gso(gso_type, offset + header_len, size, offset, csum_offset)


def has_partial_checksum(frame: Buffer, transport: inet.Transport | None) -> bool:
    """Return True if the transport checksum is partial and a virtio header can request the rest.

    A `transport` of None, a frame without TCP or UDP, has no partial checksum.
    """
    return (
        transport is not None
        and inet.checksum_field(frame, transport) == inet.pseudo_sum(frame, transport)
        and _covers_to_end(frame, transport)
    )


def _covers_to_end(frame: Buffer, transport: inet.Transport) -> bool:
    """Return True if the sum to the end of the frame equals the sum that the checksum covers.

    A virtio header can only request a sum to the end of the frame. That is another sum if the
    padding is not zero, or if the UDP and IP headers state different lengths. No sender offloads
    the checksum of such a frame, and completing it again would damage it.
    """
    if transport.protocol == inet.UDP and inet.udp_length(frame, transport) != transport.length:
        return False
    return not any(frame[transport.offset + transport.length :])
