"""Headers of a frame as a turn reads them, and the lookup of its row.

A frame is `data[at : at + octets]`, an Ethernet frame of at least 14 octets in an array of uint8.
Only the mechanics of headers are here. Whether frames of a kind have a row is decided in Python.
"""

import numpy as np

from vtep.fastpath.jit import compiled, entry_point, i64
from vtep.fastpath.layout import (
    KEY_IPV6,
    KEY_MAC,
    KEY_TAGGED,
    KEY_USED,
    KIND_TOS,
    KIND_TYPE,
    ROWS,
    WAYS,
    Integers,
    Octets,
)
from vtep.wire.ethernet import TYPE_8021Q, TYPE_IPV4, TYPE_IPV6
from vtep.wire.ip import TCP_OPTION_AO, TCP_OPTION_END, TCP_OPTION_MD5, TCP_OPTION_NOP

TCP = 6
UDP = 17
_ICMP = 1
_ICMPV6 = 58
_DCCP = 33
_SCTP = 132
_UDPLITE = 136

_EXTENSION_HEADERS = (0, 43, 44, 51, 60, 135, 139, 140)
"""IPv6 extension headers (RFC 7045, section 4). A SYN behind them would have to be found."""

_SYN = 0x02

_CRC_POLYNOMIAL = 0xEDB88320


def _make_crc_table() -> Integers:
    """Return the table of the CRC-32 of zlib, by octet."""
    table = np.zeros(256, np.int64)
    for octet in range(256):
        value = octet
        for _ in range(8):
            value = value >> 1 ^ (_CRC_POLYNOMIAL if value & 1 else 0)
        table[octet] = value
    return table


_CRC_TABLE = _make_crc_table()


@compiled
def be16(data: Octets, at: int) -> int:
    """Return the 16 bits in network order at an offset."""
    return i64(data[at]) << 8 | i64(data[at + 1])


@compiled
def be32(data: Octets, at: int) -> int:
    """Return the 32 bits in network order at an offset."""
    return be16(data, at) << 16 | be16(data, at + 2)


@compiled
def put16(data: Octets, at: int, value: int) -> None:
    """Write 16 bits in network order."""
    data[at] = value >> 8 & 0xFF
    data[at + 1] = value & 0xFF


@compiled
def put32(data: Octets, at: int, value: int) -> None:
    """Write 32 bits in network order."""
    put16(data, at, value >> 16)
    put16(data, at + 2, value)


@compiled
def put_host16(data: Octets, at: int, value: int) -> None:
    """Write 16 bits in the order of a little-endian host, as in a virtio header."""
    data[at] = value & 0xFF
    data[at + 1] = value >> 8 & 0xFF


@compiled
def copy(target: Octets, source: Octets) -> None:
    """Copy octets, as many as both have. In compiled code, a slice assignment would allocate."""
    for index in range(min(target.shape[0], source.shape[0])):
        target[index] = source[index]


@compiled
def mac_at(data: Octets, at: int) -> int:
    """Return a MAC address as an integer of 48 bits."""
    return be16(data, at) << 32 | be32(data, at + 2)


@compiled
def crc32(data: Octets, at: int, octets: int, value: int) -> int:
    """Return the CRC-32 of `octets` octets, as `zlib.crc32` with a start value."""
    value ^= 0xFFFFFFFF
    for position in range(at, at + octets):
        value = value >> 8 ^ _CRC_TABLE[(value ^ i64(data[position])) & 0xFF]
    return i64(value ^ 0xFFFFFFFF)


@compiled
def network_layer(data: Octets, at: int, octets: int) -> tuple[int, int]:
    """Find the network layer behind at most one 802.1Q tag.

    Returns: the EtherType, and the offset of what follows it; the EtherType is 0 of a frame that
    ends in the tag, or has another tag.
    """
    ethertype = be16(data, at + 12)
    if ethertype != TYPE_8021Q:
        return ethertype, at + 14
    if octets < 18:
        return 0, at + 18
    inner = be16(data, at + 16)
    return (0 if inner == TYPE_8021Q else inner), at + 18


@compiled
def parse(data: Octets, at: int, octets: int) -> tuple[int, int, int, int, int]:
    """Parse the headers of an IP packet that can have a row.

    It is IPv4 without options, or IPv6 without extension headers; it is no fragment, and the IP
    header states no more octets than the frame has. TCP, UDP, ICMP and ICMPv6 have their fixed
    header in full.

    Returns: the offset of the IP header, which is 0 if the packet cannot have a row; the offset of
    the transport header; the offset of the end of the packet, which excludes Ethernet padding; and
    the key words `KEY_MAC` (without a MAC) and `KEY_KIND` (without fields that only one direction
    has).
    """
    nothing = 0, 0, 0, 0, 0
    ethertype, ip = network_layer(data, at, octets)
    mac = KEY_USED | (KEY_TAGGED if ip != at + 14 else 0)
    if ethertype == TYPE_IPV4:
        # Version 4 with a header of 5 words, and neither MF nor a fragment offset.
        if ip + 20 > at + octets or data[ip] != 0x45 or be16(data, ip + 6) & 0x3FFF:
            return nothing
        transport, end = ip + 20, ip + be16(data, ip + 2)
        protocol, tos = i64(data[ip + 9]), i64(data[ip + 1])
    elif ethertype == TYPE_IPV6:
        if ip + 40 > at + octets or i64(data[ip]) >> 4 != 6:
            return nothing
        if i64(data[ip + 6]) in _EXTENSION_HEADERS:
            return nothing
        transport = ip + 40
        end = transport + be16(data, ip + 4)
        protocol, tos = i64(data[ip + 6]), be16(data, ip) >> 4 & 0xFF
        mac |= KEY_IPV6
    else:
        return nothing
    if end > at + octets:
        return nothing
    kind = 0
    if protocol == TCP:
        if transport + 20 > end:
            return nothing
        kind = 1 if i64(data[transport + 13]) & _SYN else 0
    elif protocol in (UDP, _ICMP, _ICMPV6):
        if transport + 8 > end:
            return nothing
        kind = 0 if protocol == UDP else i64(data[transport])
    return ip, transport, end, mac, protocol | kind << KIND_TYPE | tos << KIND_TOS


@compiled
def flow_hash(data: Octets, at: int, octets: int) -> int:
    """Hash a frame exactly as `wire.flow.flow_hash` does, unless it has more than one VLAN tag."""
    ethertype, ip = network_layer(data, at, octets)
    end = at + octets
    if ethertype == TYPE_IPV4 and ip + 20 <= end:
        protocol = i64(data[ip + 9])
        value = crc32(data, ip + 12, 8, protocol)
        if _has_ports(protocol) and not be16(data, ip + 6) & 0x3FFF:
            ports = min(end, ip + (i64(data[ip]) & 0x0F) * 4)
            value = crc32(data, ports, min(4, end - ports), value)
        return value
    if ethertype == TYPE_IPV6 and ip + 40 <= end:
        protocol = i64(data[ip + 6])
        key_octets = 36 if _has_ports(protocol) else 32
        return crc32(data, ip + 8, min(key_octets, end - ip - 8), protocol)
    return crc32(data, at, 14, 0)


@compiled
def is_authenticated(data: Octets, at: int, end: int) -> bool:
    """Return True if TCP options contain an authentication code, which covers one segment only."""
    while at + 1 < end and data[at] != TCP_OPTION_END:
        if data[at] == TCP_OPTION_NOP:
            at += 1
            continue
        length = i64(data[at + 1])
        # As in receivers, the list ends before an option with an invalid length.
        if length < 2 or at + length > end:
            return False
        if data[at] == TCP_OPTION_MD5 or data[at] == TCP_OPTION_AO:
            return True
        at += length
    return False


@compiled
def _has_ports(protocol: int) -> bool:
    """Return True for protocols whose header begins with both ports."""
    return protocol in (TCP, UDP, _DCCP, _SCTP, _UDPLITE)


@compiled
def bucket(key: Integers) -> int:
    """Return the first row of the bucket in which a key belongs."""
    value = 0
    for word in key:
        # Halves of 32 bits and a factor of 30 bits: no product exceeds 63 bits.
        low, high = i64(word) & 0xFFFFFFFF, i64(word) >> 32 & 0xFFFFFFFF
        value = ((value ^ low) & 0xFFFFFFFF) * 0x2545F491
        value = ((value >> 13 ^ value ^ high) & 0xFFFFFFFF) * 0x2C1B3C6D
        value = value >> 15 ^ value
    return (value & 0x7FFFFFFF) % (ROWS // WAYS) * WAYS


@compiled
def find_row(keys: Integers, key: Integers) -> int:
    """Return the row with a key, or -1."""
    first = bucket(key)
    for row in range(first, first + WAYS):
        if keys[row, KEY_MAC] == key[KEY_MAC] and _is_same_key(keys, row, key):
            return row
    return -1


@compiled
def _is_same_key(keys: Integers, row: int, key: Integers) -> bool:
    """Return True if all words of a key are those of a row."""
    for word in range(key.shape[0]):  # noqa: SIM110  numba knows no generators here
        if keys[row, word] != key[word]:
            return False
    return True


@entry_point("int64(int64[:, ::1], int64[::1])")
def place(keys: Integers, key: Integers) -> int:
    """Return the row of a key, or a free row of its bucket; if there is none, the first row."""
    first = bucket(key)
    free = -1
    for row in range(first, first + WAYS):
        if keys[row, KEY_MAC] == 0:
            free = row if free < 0 else free
        elif _is_same_key(keys, row, key):
            return row
    return free if free >= 0 else first
