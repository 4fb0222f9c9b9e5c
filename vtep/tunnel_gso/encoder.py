"""Superframes that leave whole: the headers in front of them, for somebody else to cut them.

Since Linux 6.17, who writes to a TAP device can describe a superframe that is inside a UDP tunnel:
its virtio header then also says where the tunnel's headers are (VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO;
the kernel's include/linux/virtio_net.h, `virtio_net_hdr_tnl_to_skb`). Whoever has to, cuts it: at
best a network card, or nobody, where all of the way is in the memory of one machine.

What is in front of a superframe is a virtio header of 24 octets, an Ethernet header, whose
addresses the kernel replaces, and those of IP and UDP. Checksums of UDP, outside and inside, are
partial, as for a card.
"""

from ipaddress import IPv4Address, IPv6Address
from struct import Struct
from typing import NamedTuple

from attrs import frozen

from vtep.offload.headers import Cut
from vtep.wire import checksum, ethernet, virtio
from vtep.wire import ip as inet

_VIRTIO = Struct("=BBHHHHHIHH")
"""struct virtio_net_hdr_v1_hash: as the short header, then buffers, and a hash that is none."""

_OFFSETS = Struct("<HH")
"""What struct virtio_net_hdr_v1_hash_tunnel has besides: where the outer UDP header is, and the
inner IP header."""

VIRTIO_LEN = _VIRTIO.size + _OFFSETS.size

_FLAG_TUNNEL_CSUM = 8
_GSO_TUNNEL = {4: 0x20, 6: 0x40}

_TYPES = {4: ethernet.TYPE_IPV4, 6: ethernet.TYPE_IPV6}
_LENGTH_MAX = 0xFFFF

OCTETS_MAX = _LENGTH_MAX
"""More than a superframe may have that leaves whole."""

_DF = 0x4000
_FIELD = Struct("!H")
_LENGTH_AND_ID = Struct("!HH")


@frozen
class Outside:
    """What the outer headers of a flow say: addresses, ports, TOS or traffic class, TTL or hop
    limit, flow label, DF, and whether there is a UDP checksum.

    `number` is the first identification, of IPv4. `entrance` is the MAC of the TAP device, and
    `device` a number for who takes the frame there: it is in the first four octets of the source
    MAC.
    """

    entrance: bytes
    device: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    source_port: int
    port: int
    tos: int
    ttl: int
    flowlabel: int
    df: bool
    checksum: bool
    number: int = 0


class Heads:
    """Writes what is in front of the superframes of one flow."""

    def __init__(self, outside: Outside) -> None:
        version = outside.source.version
        ip = self._ip = VIRTIO_LEN + ethernet.HEADER_LEN
        udp = self._udp = ip + inet.IP_HEADER_MIN[version]
        head = self._head = bytearray(udp + inet.UDP_HEADER_LEN)
        to = VIRTIO_LEN + len(outside.entrance)
        head[VIRTIO_LEN:to] = outside.entrance
        head[to : to + 4] = outside.device.to_bytes(4, "big")
        head[ip - 2 : ip] = _TYPES[version].to_bytes(2, "big")
        if version == 4:
            head[ip] = 0x45
            head[ip + 1] = outside.tos
            _FIELD.pack_into(head, ip + 6, _DF if outside.df else 0)
            head[ip + 8 : ip + 10] = outside.ttl, inet.UDP
        else:
            first = 6 << 28 | outside.tos << 20 | outside.flowlabel
            head[ip : ip + 4] = first.to_bytes(4, "big")
            head[ip + 6 : ip + 8] = inet.UDP, outside.ttl
        addresses = outside.source.packed + outside.destination.packed
        head[udp - len(addresses) : udp] = addresses
        _LENGTH_AND_ID.pack_into(head, udp, outside.source_port, outside.port)
        self._version = version
        self._room = _LENGTH_MAX - inet.UDP_HEADER_LEN
        if version == 4:
            self._room -= inet.IP_HEADER_MIN[4]
        self._before = len(head) - VIRTIO_LEN
        self._gso = _GSO_TUNNEL[version]
        self._sum = int.from_bytes(head[ip:udp])  # Of an IPv4 header, before its length and id.
        self._flags = virtio.FLAG_NEEDS_CSUM
        self._pseudo = 0
        if outside.checksum:
            self._flags |= _FLAG_TUNNEL_CSUM
            self._pseudo = int.from_bytes(addresses) + inet.UDP
        self._id = outside.number
        self._outer = udp - VIRTIO_LEN
        self._total = self._segments = 0

    def write(self, cut: Cut, prefix_len: int, length: int, gso: virtio.Header) -> bytearray | None:
        """What goes before a superframe of TCP and the `prefix_len` octets between; None if both
        are too long.

        `gso` is the virtio header with which the frame of `length` octets came, and `cut` how it is
        to be cut. What is given is used again by the next call.
        """
        head, where = self._head, cut.where
        payload = prefix_len + length
        if payload > self._room:
            return None
        frame = self._before + prefix_len
        transport = frame + where.offset
        _VIRTIO.pack_into(
            *(head, 0, self._flags, gso.gso_type | self._gso, frame + cut.head_len, cut.size),
            *(transport, inet.CHECKSUM_OFFSET[inet.TCP], 0, 0, 0, 0),
        )
        _OFFSETS.pack_into(head, _VIRTIO.size, self._outer, frame + where.ip_offset)
        ip, udp = self._ip, self._udp
        datagram = payload + inet.UDP_HEADER_LEN
        if self._version == 6:
            _FIELD.pack_into(head, ip + 4, datagram)
        _FIELD.pack_into(head, udp + 4, datagram)
        if self._pseudo:
            _FIELD.pack_into(head, udp + 6, checksum.fold(self._pseudo + datagram))
        self._total, self._segments = datagram + inet.IP_HEADER_MIN[4], cut.segments
        return self.write_again()

    def write_again(self) -> bytearray:
        """What goes before one more that is to be cut as the last one was, and is as long."""
        if self._version == 4:
            ip, total, number = self._ip, self._total, self._id
            self._id = number + self._segments & 0xFFFF
            _LENGTH_AND_ID.pack_into(self._head, ip + 2, total, number)
            value = checksum.fold(self._sum + total + number) ^ 0xFFFF
            _FIELD.pack_into(self._head, ip + 10, value)
        return self._head


def goes_whole(frame_len: int, cut: Cut, gso: virtio.Header) -> bool:
    """Whether the kernel takes a superframe, cut so, as one that is inside a tunnel.

    It is to be plain TCP whose checksum is partial, as the kernel and guests with a virtio card
    make them; whatever else there may be is cut here.
    """
    where = cut.where
    ip_header = where.offset - where.ip_offset
    return (
        where.protocol == inet.TCP
        and cut.segments > 1
        and where.ip_offset == ethernet.HEADER_LEN
        and ip_header == inet.IP_HEADER_MIN[where.version]
        and where.offset + where.length == frame_len
        and gso.flags & virtio.FLAG_NEEDS_CSUM != 0
        and gso.start == where.offset
        and gso.offset == inet.CHECKSUM_OFFSET[inet.TCP]
    )


class Question(NamedTuple):
    """A superframe without an Ethernet header, for asking whether such pass.

    What each of its segments is to begin with goes in front of it. Its addresses are those that are
    for documentation (RFC 5737); nobody is to look at them.
    """

    frame: bytes
    cut: Cut
    gso: virtio.Header


def _question(size: int, segments: int) -> Question:
    length = inet.TCP_HEADER_MIN + segments * size
    ip = bytearray(inet.IP_HEADER_MIN[4])
    ip[0], ip[8], ip[9] = 0x45, 1, inet.TCP
    _FIELD.pack_into(ip, 2, len(ip) + length)
    ip[12:20] = IPv4Address("192.0.2.1").packed + IPv4Address("192.0.2.2").packed
    _FIELD.pack_into(ip, 10, checksum.internet_checksum(ip))
    at, offset = len(ip), inet.CHECKSUM_OFFSET[inet.TCP]
    tcp = bytearray(length)
    tcp[12], tcp[inet.TCP_FLAGS] = inet.TCP_HEADER_MIN // 4 << 4, inet.TCP_FLAG_ACK
    pseudo = int.from_bytes(ip[12:20]) + inet.TCP + length
    _FIELD.pack_into(tcp, offset, checksum.fold(pseudo))
    where = inet.Transport(4, inet.TCP, 0, at, length)
    head_len = at + inet.TCP_HEADER_MIN
    cut = Cut(where, head_len, inet.TCP_HEADER_MIN, size, segments, size)
    gso = virtio.Header(virtio.FLAG_NEEDS_CSUM, virtio.GSO_TCPV4, head_len, size, at, offset)
    return Question(bytes(ip + tcp), cut, gso)


SMALL, LARGE = _question(500, 2), _question(900, 66)
"""The first becomes few segments if it is cut, which any path carries; the second is about as large
as superframes are, for ways on which they are not. A segment of either is shorter than both."""
