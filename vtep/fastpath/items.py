"""Items of a receive turn: consecutive frames of one flow, which become a superframe.

The rules are those of `offload.merge`: splitting a superframe restores the received frames. So a
frame may follow only with the headers that a split would write, and with right checksums.

`items[bucket]` and `iovecs[bucket]` describe an item (see `layout`). Its payload stays where it was
received. The headers of the superframe are written to a place of their own, so that the frames can
still be returned as they were received if the TAP does not take them.
"""

from typing import Final, NamedTuple

from vtep.fastpath import layout
from vtep.fastpath.checksum import fold, ones_sum
from vtep.fastpath.jit import compiled, i64, inlined
from vtep.fastpath.keys import TCP, UDP, be16, be32, is_authenticated, put16, put_host16
from vtep.fastpath.layout import Integers, Octets
from vtep.offload.headers import COMMON, FIRST_ONLY, LAST_ONLY
from vtep.wire import ip as inet
from vtep.wire import virtio

_COMPLETE: Final = 1
_PARTIAL: Final = 2
_UNVERIFIED: Final = 4
"""Bits for the state of the checksums of an item. By chance, one complete checksum in 65,536 is
partial as well."""

_IPV4_LEN: Final = inet.IP_HEADER_MIN[4]
_ADDRESSES_V4: Final = inet.ADDRESSES_LEN[4]
_ADDRESSES_V6: Final = inet.ADDRESSES_LEN[6]
_TCP_CHECKSUM: Final = inet.CHECKSUM_OFFSET[TCP]
_UDP_CHECKSUM: Final = inet.CHECKSUM_OFFSET[UDP]

_SUPERFRAME_MAX: Final = 0xFFFF
_UDP_SEGMENTS_MAX: Final = 64
"""Segments of a UDP superframe that every kernel accepts (its UDP_MAX_SEGMENTS)."""


class InnerFrame(NamedTuple):
    """A frame by its offsets in `data`, and the protocol of its IP packet."""

    begin: int
    octets: int
    ip: int
    transport: int
    end: int
    protocol: int
    pseudo: int
    """The sum of the pseudo-header without its length field; 0 unless it is TCP or UDP."""


@inlined
def begin_item(
    data: Octets, items: Integers, iovecs: Integers, bucket: int, frame: InnerFrame, merge: int
) -> None:
    """Begin an item with a frame. `merge` is 0 if frames of its protocol are not to be merged."""
    begin = frame.begin
    header_len = _mergeable_header_len(data, frame) if merge else 0
    flags = i64(data[frame.transport + inet.TCP_FLAGS_OFFSET]) if frame.protocol == TCP else 0
    item = items[bucket]
    item[layout.ITEM_COUNT] = 1
    item[layout.ITEM_FRAME] = begin
    item[layout.ITEM_OCTETS] = frame.octets
    item[layout.ITEM_IP] = frame.ip - begin
    item[layout.ITEM_TRANSPORT] = frame.transport - begin
    item[layout.ITEM_HEADER_LEN] = header_len
    item[layout.ITEM_SIZE] = frame.octets - header_len
    item[layout.ITEM_PROTOCOL] = frame.protocol
    item[layout.ITEM_PSEUDO] = frame.pseudo
    item[layout.ITEM_FLAGS] = flags
    item[layout.ITEM_CHECKSUMS] = _UNVERIFIED
    item[layout.ITEM_IS_COMPLETE] = header_len == 0 or flags & LAST_ONLY != 0
    iovecs[bucket, 2] = i64(data.ctypes.data) + begin
    iovecs[bucket, 3] = frame.octets


@inlined
def _mergeable_header_len(data: Octets, frame: InnerFrame) -> int:
    """Return the octets of all headers of a frame, or 0 if it cannot be merged."""
    transport = frame.transport
    header_len = 0
    if frame.protocol == TCP:
        flags = i64(data[transport + inet.TCP_FLAGS_OFFSET])
        octets = (i64(data[transport + 12]) >> 4) * 4
        if (
            octets >= inet.TCP_HEADER_MIN
            and flags & COMMON & ~inet.TCP_FLAG_ECE == inet.TCP_FLAG_ACK
        ):
            header_len = transport + octets - frame.begin
    elif frame.protocol == UDP:
        # Without a checksum it is not merged: a split always writes one.
        is_whole = be16(data, transport + 4) == frame.end - transport
        if is_whole and be16(data, transport + _UDP_CHECKSUM):
            header_len = transport + inet.UDP_HEADER_LEN - frame.begin
    # Neither padding nor a segment without payload.
    is_padded = frame.end != frame.begin + frame.octets
    return 0 if is_padded or header_len >= frame.octets else header_len


@compiled
def extend_item(
    data: Octets, items: Integers, iovecs: Integers, bucket: int, begin: int, octets: int
) -> bool:
    """Add a frame to an item if it is the next segment, with right checksums, and there is room."""
    item = items[bucket]
    header_len, size = i64(item[layout.ITEM_HEADER_LEN]), i64(item[layout.ITEM_SIZE])
    count, payload = i64(item[layout.ITEM_COUNT]), octets - header_len
    is_tcp = item[layout.ITEM_PROTOCOL] == TCP
    most = layout.ITEM_SEGMENTS_MAX if is_tcp else _UDP_SEGMENTS_MAX
    total = i64(item[layout.ITEM_OCTETS]) + payload
    if count >= most or not 0 < payload <= size or total > _SUPERFRAME_MAX:
        return False
    first, transport = i64(item[layout.ITEM_FRAME]), i64(item[layout.ITEM_TRANSPORT])
    if not _has_next_ip_header(data, item, begin, octets):
        return False
    flags = 0
    if is_tcp:
        if not _has_next_tcp_header(data, item, begin + transport):
            return False
        flags = i64(data[begin + transport + inet.TCP_FLAGS_OFFSET])
    elif be16(data, begin + transport + 4) != octets - transport:
        return False
    kinds = i64(item[layout.ITEM_CHECKSUMS])
    if kinds == _UNVERIFIED:
        # Not before a second frame follows: a frame that is delivered alone needs no verification.
        kinds = _verify(data, item, first, i64(item[layout.ITEM_OCTETS]), _COMPLETE | _PARTIAL)
        if is_tcp and is_authenticated(data, first + transport + 20, first + header_len):
            kinds = 0
    kinds = _verify(data, item, begin, octets, kinds)
    # If all frames have complete checksums, later ones must have, too.
    item[layout.ITEM_CHECKSUMS] = _COMPLETE if kinds & _COMPLETE else kinds
    if kinds == 0:
        return False
    iovecs[bucket, 2 * count + 2] = i64(data.ctypes.data) + begin + header_len
    iovecs[bucket, 2 * count + 3] = payload
    item[layout.ITEM_COUNT] = count + 1
    item[layout.ITEM_OCTETS] = total
    item[layout.ITEM_FLAGS] = flags
    item[layout.ITEM_IS_COMPLETE] = payload < size or flags & LAST_ONLY != 0
    return True


@inlined
def _has_next_ip_header(data: Octets, item: Integers, begin: int, octets: int) -> bool:
    """Return True if a frame has the headers of the next one of an item, up to the ports.

    Its lengths are right, and its IPv4 identification is the next one. All else equals the headers
    of the first frame, except the IPv4 checksum, which is not compared.
    """
    first, count = i64(item[layout.ITEM_FRAME]), i64(item[layout.ITEM_COUNT])
    ip, ports_end = i64(item[layout.ITEM_IP]), i64(item[layout.ITEM_TRANSPORT]) + 4
    if ports_end - 4 - ip == _IPV4_LEN:
        ident = be16(data, first + ip + 4) + count & 0xFFFF
        return (
            be16(data, begin + ip + 2) == octets - ip
            and be16(data, begin + ip + 4) == ident
            and is_same(data, first, begin, ip + 2)
            and is_same(data, first + ip + 6, begin + ip + 6, 4)
            and is_same(data, first + ip + 12, begin + ip + 12, ports_end - ip - 12)
        )
    return (
        be16(data, begin + ip + 4) == octets - ports_end + 4
        and is_same(data, first, begin, ip + 4)
        and is_same(data, first + ip + 6, begin + ip + 6, ports_end - ip - 6)
    )


@inlined
def _has_next_tcp_header(data: Octets, item: Integers, tcp: int) -> bool:
    """Return True if a TCP header, whose ports are known, is that of the next segment of an item.

    Its sequence number is the next one, and only its flags of `LAST_ONLY` may differ.
    """
    first = i64(item[layout.ITEM_FRAME]) + i64(item[layout.ITEM_TRANSPORT])
    steps = i64(item[layout.ITEM_COUNT]) * i64(item[layout.ITEM_SIZE])
    flags = i64(data[tcp + inet.TCP_FLAGS_OFFSET])
    differences = flags ^ i64(data[first + inet.TCP_FLAGS_OFFSET])
    rest = i64(item[layout.ITEM_HEADER_LEN]) - i64(item[layout.ITEM_TRANSPORT]) - 18
    return (
        be32(data, tcp + 4) == (be32(data, first + 4) + steps) & 0xFFFFFFFF
        and differences & COMMON == 0
        and flags & FIRST_ONLY == 0
        # Acknowledgement number and data offset; window; urgent pointer and options.
        and is_same(data, first + 8, tcp + 8, 5)
        and is_same(data, first + 14, tcp + 14, 2)
        and is_same(data, first + 18, tcp + 18, rest)
    )


@compiled
def is_same(data: Octets, one: int, other: int, octets: int) -> bool:
    """Return True if `octets` octets at two offsets are equal."""
    for position in range(octets):  # noqa: SIM110  numba knows no generators here
        if data[one + position] != data[other + position]:
            return False
    return True


@compiled
def _verify(data: Octets, item: Integers, begin: int, octets: int, kinds: int) -> int:
    """Verify the checksums of a frame that has the headers of an item.

    Returns: those of `kinds` that its transport checksum is; 0 if that of its IPv4 header is wrong.
    It must be as a split writes it: of both representations of zero, TCP and IPv4 have 0, and UDP
    has 0xFFFF (RFC 768).
    """
    ip = begin + i64(item[layout.ITEM_IP])
    transport = begin + i64(item[layout.ITEM_TRANSPORT])
    length = begin + octets - transport
    is_tcp = item[layout.ITEM_PROTOCOL] == TCP
    if transport - ip == _IPV4_LEN and (
        ones_sum(data, ip, _IPV4_LEN) != 0xFFFF or be16(data, ip + 10) == 0xFFFF
    ):
        return 0
    field = be16(data, transport + (_TCP_CHECKSUM if is_tcp else _UDP_CHECKSUM))
    pseudo = fold(i64(item[layout.ITEM_PSEUDO]) + length)
    found = kinds & _PARTIAL if field == pseudo else 0
    may_be_complete = kinds & _COMPLETE != 0 and field != (0xFFFF if is_tcp else 0)
    if may_be_complete and fold(pseudo + ones_sum(data, transport, length)) == 0xFFFF:
        found |= _COMPLETE
    return found


# --- virtio headers, and the headers of superframes ---------------------------------------------


@inlined
def write_headers(data: Octets, item: Integers, at: int) -> int:
    """Write the virtio header of an item to an offset, and the headers of a superframe behind it.

    Returns: the octets of the latter; 0 for a single frame, which has its own headers.
    """
    transport = i64(item[layout.ITEM_TRANSPORT])
    offset = _TCP_CHECKSUM if item[layout.ITEM_PROTOCOL] == TCP else _UDP_CHECKSUM
    if item[layout.ITEM_COUNT] > 1:
        header_len = i64(item[layout.ITEM_HEADER_LEN])
        kind = virtio.FLAG_NEEDS_CSUM | _write_superframe(data, item, at + virtio.HEADER_LEN) << 8
        _write_virtio(data, at, kind, header_len, i64(item[layout.ITEM_SIZE]), transport, offset)
        return header_len
    if item[layout.ITEM_IS_PARTIAL]:
        _write_virtio(data, at, virtio.FLAG_NEEDS_CSUM, 0, 0, transport, offset)
    else:
        _write_virtio(data, at, 0, 0, 0, 0, 0)
    return 0


@inlined
def _write_superframe(data: Octets, item: Integers, frame: int) -> int:
    """Write the headers of a superframe to an offset. Returns: its virtio GSO type."""
    first, octets = i64(item[layout.ITEM_FRAME]), i64(item[layout.ITEM_OCTETS])
    for position in range(i64(item[layout.ITEM_HEADER_LEN])):
        data[frame + position] = data[first + position]
    ip, transport = frame + i64(item[layout.ITEM_IP]), frame + i64(item[layout.ITEM_TRANSPORT])
    length = frame + octets - transport
    is_ipv4 = transport - ip == _IPV4_LEN
    if is_ipv4:
        put16(data, ip + 2, frame + octets - ip)
        put16(data, ip + 10, 0)
        put16(data, ip + 10, ones_sum(data, ip, _IPV4_LEN) ^ 0xFFFF)
    else:
        put16(data, ip + 4, length)
    pseudo = fold(i64(item[layout.ITEM_PSEUDO]) + length)
    if item[layout.ITEM_PROTOCOL] != TCP:
        put16(data, transport + 4, length)
        put16(data, transport + _UDP_CHECKSUM, pseudo)
        return virtio.GSO_UDP_L4
    put16(data, transport + _TCP_CHECKSUM, pseudo)
    flags = i64(data[transport + inet.TCP_FLAGS_OFFSET])
    data[transport + inet.TCP_FLAGS_OFFSET] = flags | i64(item[layout.ITEM_FLAGS]) & LAST_ONLY
    gso_type = virtio.GSO_TCPV4 if is_ipv4 else virtio.GSO_TCPV6
    return gso_type | virtio.GSO_ECN if flags & FIRST_ONLY else gso_type


@compiled
def _write_virtio(
    data: Octets, at: int, kind: int, header_len: int, size: int, start: int, offset: int
) -> None:
    """Write a virtio header (see `wire.virtio`). `kind` has the flags and, from bit 8, GSO type."""
    put_host16(data, at, kind)
    put_host16(data, at + 2, header_len)
    put_host16(data, at + 4, size)
    put_host16(data, at + 6, start)
    put_host16(data, at + 8, offset)


# --- checksums of single frames -----------------------------------------------------------------


@inlined
def addresses_sum(data: Octets, ip: int, transport: int) -> int:
    """Return the sum of both addresses of an IP header without options, whose end they are."""
    octets = _ADDRESSES_V4 if transport - ip == _IPV4_LEN else _ADDRESSES_V6
    return ones_sum(data, transport - octets, octets)


@inlined
def is_partial(data: Octets, frame: InnerFrame) -> bool:
    """Return True if a checksum is partial, and a virtio header can request the rest of it.

    As in `offload.partial.has_partial_checksum`, the sum to the end of the frame must be the sum
    that the checksum covers.
    """
    if not frame.pseudo:
        return False
    length = frame.end - frame.transport
    field = frame.transport + (_TCP_CHECKSUM if frame.protocol == TCP else _UDP_CHECKSUM)
    if be16(data, field) != fold(frame.pseudo + length):
        return False
    if frame.protocol == UDP and be16(data, frame.transport + 4) != length:
        return False
    for position in range(frame.end, frame.begin + frame.octets):  # noqa: SIM110
        if data[position]:
            return False
    return True
