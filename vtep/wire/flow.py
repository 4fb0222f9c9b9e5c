"""The flow hash, which selects the outer source port, and run keys, which recognise a run.

Frames of one inner flow get the same hash and so the same outer source port (RFC 7348, section 5).
An underlay that balances load by 5-tuple keeps their order and spreads different flows over its
paths.

A *run* is a sequence of consecutive frames of one flow that need the same treatment. Most frames
belong to a run. Comparing the run key of a frame with that of its predecessor is cheaper than
hashing, classifying and looking up every frame.
"""

from struct import Struct
from zlib import crc32

from vtep.wire import Buffer
from vtep.wire.ethernet import HEADER_LEN, TYPE_IPV4, TYPE_IPV6, NetworkLayer, network_layer

_TCP = 6
_UDP = 17
_SYN = 0x02
_PORT_PROTOCOLS = frozenset((_TCP, _UDP, 33, 132, 136))
"""Protocols whose header begins with both ports: TCP, UDP, DCCP, SCTP, UDP-Lite."""


def flow_hash(frame: Buffer, layer: NetworkLayer | None = None) -> int:
    """Hash the addresses, protocol and ports of an Ethernet frame of at least 14 octets.

    `layer` is the result of `network_layer`, if it is known.

    Ports are ignored in fragments, since only the first fragment carries them, and behind IPv6
    extension headers. A frame that is not IP is hashed by its MAC addresses and EtherType.

    Returns: the CRC-32 of the fields. zlib computes it in C, and unlike `hash()` it is the same in
    every process, so that flows keep their source ports when the daemon restarts.
    """
    ethertype, offset = layer or network_layer(frame)
    if ethertype == TYPE_IPV4 and offset + 20 <= len(frame):
        protocol = frame[offset + 9]
        # The protocol is the start value of the CRC, which spares a copy to join the fields.
        key = crc32(frame[offset + 12 : offset + 20], protocol)
        # 0x3F covers the MF bit and the upper bits of the fragment offset, but not DF.
        if protocol in _PORT_PROTOCOLS and not (frame[offset + 6] & 0x3F or frame[offset + 7]):
            ports = offset + (frame[offset] & 0x0F) * 4
            key = crc32(frame[ports : ports + 4], key)
        return key
    if ethertype == TYPE_IPV6 and offset + 40 <= len(frame):
        protocol = frame[offset + 6]
        # The ports follow the addresses directly, so one slice covers both.
        end = offset + (44 if protocol in _PORT_PROTOCOLS else 40)
        return crc32(frame[offset + 8 : end], protocol)
    return crc32(frame[:HEADER_LEN])


# Each Struct extracts the run key of one kind of frame and skips (`x`) the octets that may differ
# within a run. The last octet of a TCP format is the flags octet.
UDP_V4_KEY = Struct("16s4x4s2x12s")
_TCP_V4 = Struct("16s4x4s2x12s8x2s")
_UDP_V6 = Struct("18s2x38s")
_TCP_V6 = Struct("18s2x38s8x2s")
_SUPERFRAME_V4 = Struct("18s2x4s2x12s8x2s2x2s")
_SUPERFRAME_V6 = Struct("58s8x2s2x2s")


def run_key_struct(frame: Buffer) -> Struct | None:
    """Return the Struct that extracts the run key of a frame of at least 14 octets.

    A following frame of the same length belongs to the run if the Struct unpacks the same fields
    from it: MAC addresses, the IP header except length, identification and checksum, the ports,
    and for TCP the data offset and flags. `flow_hash`, the outer header fields (see
    `wire.outer_header`) and the FDB destination are then the same, too.

    Returns: None for a frame that cannot begin a run. Only untagged UDP, and TCP without SYN, can,
    and neither a fragment nor a packet with IPv4 options or IPv6 extension headers.
    """
    if frame[12:15] == b"\x08\x00\x45" and len(frame) >= UDP_V4_KEY.size:
        if frame[20] & 0x3F or frame[21]:
            return None
        protocol, udp, tcp = frame[23], UDP_V4_KEY, _TCP_V4
    elif frame[12:14] == b"\x86\xdd" and len(frame) >= _UDP_V6.size:
        protocol, udp, tcp = frame[20], _UDP_V6, _TCP_V6
    else:
        return None
    if protocol == _UDP:
        return udp
    if protocol == _TCP and len(frame) >= tcp.size and not frame[tcp.size - 1] & _SYN:
        return tcp
    return None


def superframe_key_struct(frame: Buffer) -> Struct | None:
    """Return the Struct that extracts the run key of a TCP superframe.

    The key also covers the IP length and the TCP checksum. The checksum of a superframe is partial,
    that is, the sum of the pseudo-header, so it is the same throughout a run. A frame with the same
    key needs the same virtio header and the same kind of send. The caller guarantees that `frame`
    is a superframe of at least 14 octets.

    Returns: None for another protocol, VLAN tags, a fragment, IPv4 options, IPv6 extension headers,
    or padding.
    """
    ip_len = len(frame) - HEADER_LEN
    if frame[12:15] == b"\x08\x00\x45" and len(frame) >= _SUPERFRAME_V4.size:
        fragment = frame[20] & 0x3F or frame[21]
        plain = frame[23] == _TCP and not fragment
        return _SUPERFRAME_V4 if plain and frame[16] << 8 | frame[17] == ip_len else None
    if frame[12:14] == b"\x86\xdd" and len(frame) >= _SUPERFRAME_V6.size:
        unpadded = (frame[18] << 8 | frame[19]) + 40 == ip_len
        return _SUPERFRAME_V6 if unpadded and frame[20] == _TCP else None
    return None
