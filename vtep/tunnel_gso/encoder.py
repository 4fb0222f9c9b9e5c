"""Encode the headers in front of a superframe that is sent with tunnel GSO.

Since Linux 6.17 a TAP device accepts a superframe inside a UDP tunnel: its virtio header then also
holds the offsets of the outer UDP header and of the inner IP header
(VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO; struct virtio_net_hdr_v1_hash_tunnel in the kernel's
include/uapi/linux/virtio_net.h, read by virtio_net_hdr_tnl_to_skb() in include/linux/virtio_net.h).
The segmentation is left to a NIC, or to the receiver where the whole path is in the memory of one
machine.

A packet for that device consists of::

    virtio header   24 octets
    Ethernet        14 octets; the kernel replaces the addresses
    IPv4 or IPv6    20 or 40 octets
    UDP             8 octets
    prefix          the VXLAN header, written by the caller
    superframe      the inner Ethernet frame, up to 64 KiB

The UDP checksum and the inner TCP checksum are partial: they hold the sum of the pseudo-header, and
segmentation completes them (CHECKSUM_PARTIAL in the kernel's include/linux/skbuff.h).
"""

from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from attrs import frozen

from vtep.offload.headers import SegmentPlan
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_VIRTIO = Struct("=BBHHHHHIHH")
"""struct virtio_net_hdr_v1_hash: flags, GSO type, header length, segment size, checksum start,
checksum offset, number of buffers, hash value, hash report, padding. The last four are 0."""

_OFFSETS = Struct("<HH")
"""The two fields that struct virtio_net_hdr_v1_hash_tunnel adds: offsets of the outer UDP header
and of the inner IP header."""

VIRTIO_LEN = _VIRTIO.size + _OFFSETS.size

# VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM and VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4 and _IPV6.
_FLAG_TUNNEL_CSUM = 8
_GSO_TUNNEL = {4: 0x20, 6: 0x40}

_ETHERTYPES = {4: ethernet.TYPE_IPV4, 6: ethernet.TYPE_IPV6}
_LENGTH_MAX = 0xFFFF
"""The largest value of a length field of IPv4, IPv6 and UDP."""

SUPERFRAME_MAX = _LENGTH_MAX
"""Upper bound on the octets of a superframe with tunnel GSO: outer headers come on top of it."""

_DF = 0x4000
_FIELD = Struct("!H")
_TWO_FIELDS = Struct("!HH")


@frozen
class OuterHeader:
    """The fields of the outer headers that are the same for all superframes of one flow.

    `tos` is the TOS octet or traffic class, `ttl` the TTL or hop limit, and `first_id` the IPv4
    identification of the first segment. `checksum` is True if there is a UDP checksum. `dst_mac` is
    the address of the TAP device, and `egress` the index of the egress device: the program at the
    TAP device reads it from the first four octets of the source MAC (see `.device`).
    """

    dst_mac: bytes
    egress: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    source_port: int
    port: int
    tos: int
    ttl: int
    flowlabel: int
    df: bool
    checksum: bool
    first_id: int = 0


class OuterHeaderWriter:
    """Writes the headers in front of the superframes of one flow, into a buffer of its own.

    Most fields do not change within a flow. They are written once, so that each superframe costs
    only those that depend on its length.
    """

    def __init__(self, header: OuterHeader) -> None:
        version = header.source.version
        ip = self._ip = VIRTIO_LEN + ethernet.HEADER_LEN
        udp = self._udp = ip + inet.IP_HEADER_MIN[version]
        buffer = self._buffer = bytearray(udp + inet.UDP_HEADER_LEN)
        source_mac = VIRTIO_LEN + len(header.dst_mac)
        buffer[VIRTIO_LEN:source_mac] = header.dst_mac
        buffer[source_mac : source_mac + 4] = header.egress.to_bytes(4, "big")
        buffer[ip - 2 : ip] = _ETHERTYPES[version].to_bytes(2, "big")
        if version == 4:
            buffer[ip] = 0x45
            buffer[ip + 1] = header.tos
            _FIELD.pack_into(buffer, ip + 6, _DF if header.df else 0)
            buffer[ip + 8 : ip + 10] = header.ttl, inet.UDP
        else:
            first_word = 6 << 28 | header.tos << 20 | header.flowlabel
            buffer[ip : ip + 4] = first_word.to_bytes(4, "big")
            buffer[ip + 6 : ip + 8] = inet.UDP, header.ttl
        addresses = header.source.packed + header.destination.packed
        buffer[udp - len(addresses) : udp] = addresses
        _TWO_FIELDS.pack_into(buffer, udp, header.source_port, header.port)
        self._version = version
        self._payload_max = _LENGTH_MAX - inet.UDP_HEADER_LEN
        if version == 4:
            self._payload_max -= inet.IP_HEADER_MIN[4]
        self._outer_len = len(buffer) - VIRTIO_LEN
        self._outer_udp = udp - VIRTIO_LEN
        self._gso_tunnel = _GSO_TUNNEL[version]
        # The sum of the IPv4 header without the two fields that vary, length and identification.
        self._ip_sum = int.from_bytes(buffer[ip:udp])
        self._flags = virtio.FLAG_NEEDS_CSUM
        self._pseudo_sum = 0
        if header.checksum:
            self._flags |= _FLAG_TUNNEL_CSUM
            self._pseudo_sum = int.from_bytes(addresses) + inet.UDP
        self._next_id = header.first_id
        self._ip_len = self._segments = 0

    def write(
        self, plan: SegmentPlan, prefix_len: int, length: int, gso: virtio.Header
    ) -> bytearray | None:
        """Write the headers for a superframe of `length` octets behind a prefix.

        `gso` is the virtio header that the TAP delivered with the superframe, and `plan` how it is
        to be segmented. `gso_eligible` must hold for them.

        Returns: the buffer, which the next call overwrites; None if no length field can hold the
        superframe and the prefix of `prefix_len` octets.
        """
        buffer, transport = self._buffer, plan.transport
        payload = prefix_len + length
        if payload > self._payload_max:
            return None
        inner = self._outer_len + prefix_len
        transport_at = inner + transport.offset
        _VIRTIO.pack_into(
            *(buffer, 0, self._flags, gso.gso_type | self._gso_tunnel, inner + plan.header_len),
            *(plan.size, transport_at, inet.CHECKSUM_OFFSET[inet.TCP], 0, 0, 0, 0),
        )
        _OFFSETS.pack_into(buffer, _VIRTIO.size, self._outer_udp, inner + transport.ip_offset)
        ip, udp = self._ip, self._udp
        datagram = payload + inet.UDP_HEADER_LEN
        if self._version == 6:
            _FIELD.pack_into(buffer, ip + 4, datagram)
        _FIELD.pack_into(buffer, udp + 4, datagram)
        if self._pseudo_sum:
            _FIELD.pack_into(buffer, udp + 6, checksum.fold(self._pseudo_sum + datagram))
        self._ip_len, self._segments = datagram + inet.IP_HEADER_MIN[4], plan.segments
        return self.write_next()

    def write_next(self) -> bytearray:
        """Write the headers for one more superframe with the `plan` and length of the last one.

        Returns: the buffer, which the next call overwrites.
        """
        if self._version == 4:
            ip, length, first_id = self._ip, self._ip_len, self._next_id
            # Segmentation counts the identification on from segment to segment (inet_gso_segment()
            # in net/ipv4/af_inet.c), so the next superframe has to begin behind the last segment.
            # Otherwise fragments of different datagrams could share one (RFC 6864, section 4).
            self._next_id = first_id + self._segments & 0xFFFF
            _TWO_FIELDS.pack_into(self._buffer, ip + 2, length, first_id)
            value = checksum.fold(self._ip_sum + length + first_id) ^ 0xFFFF
            _FIELD.pack_into(self._buffer, ip + 10, value)
        return self._buffer


def gso_eligible(frame_len: int, plan: SegmentPlan, gso: virtio.Header) -> bool:
    """Return whether the kernel accepts a superframe of this form inside a tunnel.

    It has to be untagged TCP without IP options, extension headers or padding, and with a partial
    checksum. That is what Linux and virtio NICs send where there is no VLAN. pyvtep segments
    superframes of all other forms itself.
    """
    transport = plan.transport
    ip_header = transport.offset - transport.ip_offset
    return (
        transport.protocol == inet.TCP
        and plan.segments > 1
        and transport.ip_offset == ethernet.HEADER_LEN
        and ip_header == inet.IP_HEADER_MIN[transport.version]
        and transport.offset + transport.length == frame_len
        and gso.flags & virtio.FLAG_NEEDS_CSUM != 0
        and gso.csum_start == transport.offset
        and gso.csum_offset == inet.CHECKSUM_OFFSET[inet.TCP]
    )


class ProbePacket(NamedTuple):
    """An IP superframe that tests whether superframes reach a remote.

    It is sent behind an echo request, and so in place of an inner Ethernet frame. The echo request
    stands in front of each of its segments, and of the packet if nothing segments it: the length
    in the echo reply of the remote states which of the two arrived. The addresses are those
    reserved for documentation (RFC 5737), since no host is to process it.
    """

    frame: bytes
    plan: SegmentPlan
    gso: virtio.Header


def _probe_packet(size: int, segments: int) -> ProbePacket:
    """Build a probe packet of `segments` segments with `size` octets of payload each."""
    length = inet.TCP_HEADER_MIN + segments * size
    ip = bytearray(inet.IP_HEADER_MIN[4])
    ip[0], ip[8], ip[9] = 0x45, 1, inet.TCP
    _FIELD.pack_into(ip, 2, len(ip) + length)
    ip[12:20] = IPv4Address("192.0.2.1").packed + IPv4Address("192.0.2.2").packed
    _FIELD.pack_into(ip, 10, checksum.internet_checksum(ip))
    at, offset = len(ip), inet.CHECKSUM_OFFSET[inet.TCP]
    tcp = bytearray(length)
    tcp[12], tcp[inet.TCP_FLAGS_OFFSET] = inet.TCP_HEADER_MIN // 4 << 4, inet.TCP_FLAG_ACK
    pseudo = int.from_bytes(ip[12:20]) + inet.TCP + length
    _FIELD.pack_into(tcp, offset, checksum.fold(pseudo))
    transport = inet.Transport(4, inet.TCP, 0, at, length)
    head_len = at + inet.TCP_HEADER_MIN
    plan = SegmentPlan(transport, head_len, inet.TCP_HEADER_MIN, size, segments, size)
    gso = virtio.Header(virtio.FLAG_NEEDS_CSUM, virtio.GSO_TCPV4, head_len, size, at, offset)
    return ProbePacket(bytes(ip + tcp), plan, gso)


# A segment of either packet is shorter than both packets, so that lengths are unambiguous.
SMALL_PROBE = _probe_packet(500, 2)
"""Two segments of 540 octets each, which fit every path."""

LARGE_PROBE = _probe_packet(900, 66)
"""As large as superframes get (60 KB), for paths on which nothing segments them."""
