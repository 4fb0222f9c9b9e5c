"""A turn of the fast path from a UDP socket to the TAPs.

A turn receives several messages with one system call. A *message* is a datagram, or several of one
source that the kernel has joined (UDP_GRO). Datagrams whose kind has a row in the table are
delivered, all others are returned to the slow path.

The frames of one flow are collected in an *item* as long as each one is the next segment of the
superframe so far. One `writev` delivers an item: the headers of the superframe are written to a
place of their own, and the payload stays where it was received. The rules about what may be merged
are those of `offload.merge.Merger`: splitting a superframe restores the received frames.
"""

import errno
import socket
from typing import Final, NamedTuple

import numpy as np

from vtep.fastpath import layout
from vtep.fastpath.checksum import fold, ones_sum
from vtep.fastpath.jit import compiled, entry_point, i64, inlined, recvmmsg, writev
from vtep.fastpath.keys import (
    TCP,
    UDP,
    be16,
    be32,
    find_row,
    flow_hash,
    is_authenticated,
    mac_at,
    parse,
    put16,
    put_host16,
)
from vtep.fastpath.layout import Integers, Octets
from vtep.io.socket_constants import SOL_UDP, UDP_GRO
from vtep.wire.ecn import MASK
from vtep.wire.ethernet import HEADER_LEN as ETHERNET_LEN
from vtep.wire.ip import (
    TCP_FLAG_ACK,
    TCP_FLAG_CWR,
    TCP_FLAG_ECE,
    TCP_FLAG_FIN,
    TCP_FLAG_PSH,
    TCP_FLAGS_OFFSET,
    TCP_HEADER_MIN,
    UDP_HEADER_LEN,
)
from vtep.wire.virtio import FLAG_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4
from vtep.wire.virtio import HEADER_LEN as VIRTIO_LEN
from vtep.wire.vxlan import HEADER_LEN as VXLAN_LEN

_TURN_OCTETS: Final = 1 << 18
"""Octets that a turn should receive: what the processor's second cache holds along with the
kernel's copies."""
_TURN_MESSAGES_MIN: Final = 4

_NAME_OCTETS: Final = 32
_CONTROL_OCTETS: Final = 64
_CMSG_GRO: Final = SOL_UDP | UDP_GRO << 32
"""Level and type of a struct cmsghdr, read as one word."""

_AF_INET6: Final = int(socket.AF_INET6)
_EAGAIN: Final = errno.EAGAIN
_IPV4_LEN: Final = 20

_SUPERFRAME_MAX: Final = 0xFFFF
_UDP_SEGMENTS_MAX: Final = 64
"""Segments of a UDP superframe that every kernel accepts (its UDP_MAX_SEGMENTS)."""

_LAST_ONLY: Final = TCP_FLAG_FIN | TCP_FLAG_PSH
_FIRST_ONLY: Final = TCP_FLAG_CWR
_COMMON: Final = 0xFF & ~_LAST_ONLY & ~_FIRST_ONLY
"""TCP flags that are in the last segment of a superframe, in the first, and in all."""

_COMPLETE: Final = 1
_PARTIAL: Final = 2
"""Kinds of checksums. One complete checksum in 65,536 is also partial, by chance."""
_UNVERIFIED: Final = -1


class _Turn(NamedTuple):
    """The arrays of a turn (see `ReceiveTurn` and `layout`)."""

    data: Octets
    keys: Integers
    values: Integers
    targets: Integers
    messages: Integers
    envelopes: Integers
    items: Integers
    iovecs: Integers
    returned: Integers
    returned_keys: Integers
    key: Integers
    touched: Integers
    result: Integers


class _Frame(NamedTuple):
    """A frame by its offsets in `data`, and the protocol of its IP packet."""

    begin: int
    octets: int
    ip: int
    transport: int
    end: int
    protocol: int
    pseudo: int
    """The sum of the pseudo-header without its length field; 0 unless it is TCP or UDP."""


# --- messages -----------------------------------------------------------------------------------


@inlined
def _receive(turn: _Turn, fd: int, most: int) -> int:
    """Receive messages, and read their control messages. Returns: how many messages."""
    messages, result = turn.messages, turn.result
    wanted = min(most, result[layout.RESULT_MOST])
    result[: layout.RESULT_MOST] = 0
    for message in range(wanted):
        messages[message, layout.MESSAGE_NAME_LEN] = _NAME_OCTETS
        messages[message, layout.MESSAGE_CONTROL_LEN] = _CONTROL_OCTETS
        messages[message, layout.MESSAGE_FLAGS] = 0
    count = recvmmsg(fd, i64(messages.ctypes.data), wanted)
    if count <= 0:
        result[layout.RESULT_ERROR] = 0 if count == -_EAGAIN else -count
        return 0
    total = 0
    for message in range(count):
        octets = i64(messages[message, layout.MESSAGE_OCTETS])
        _read_control(turn, message, octets)
        total += octets
        stride = i64(turn.envelopes[message, layout.ENVELOPE_STRIDE])
        result[layout.RESULT_TAKEN] += max(1, (octets + stride - 1) // stride)
    # A turn with 64 messages of 64 KiB would exceed the cache, and delay all else.
    most = _TURN_OCTETS * count // (total + 1)
    result[layout.RESULT_MOST] = min(layout.MESSAGES, max(_TURN_MESSAGES_MIN, most))
    return count


@inlined
def _read_control(turn: _Turn, message: int, octets: int) -> None:
    """Read the control messages of a message of `octets` octets: stride, and outer ECN field."""
    envelopes = turn.envelopes
    stride, ecn = octets, 0
    at = layout.ENVELOPE_CONTROL
    end = at + min(_CONTROL_OCTETS, i64(turn.messages[message, layout.MESSAGE_CONTROL_LEN])) // 8
    # struct cmsghdr: a word with the length, one with level and type; then the data.
    while at + 2 < end:
        value = i64(envelopes[message, at + 2])
        if i64(envelopes[message, at + 1]) == _CMSG_GRO:
            stride = value & 0xFFFF
        else:  # IP_TOS is one octet, IPV6_TCLASS an int: both have the ECN field in their first.
            ecn = value & MASK
        at += max(2, (i64(envelopes[message, at]) + 7) // 8)
    envelopes[message, layout.ENVELOPE_STRIDE] = max(1, stride)
    envelopes[message, layout.ENVELOPE_ECN] = ecn


@inlined
def _handle_message(turn: _Turn, message: int, port: int, last: int) -> int:
    """Deliver or return the datagrams of a message.

    `last` is the bucket of the item to which the last frame was added, or -1.

    Returns: the same, after this message.
    """
    stride = i64(turn.envelopes[message, layout.ENVELOPE_STRIDE])
    at = message * layout.SLOT
    end = at + i64(turn.messages[message, layout.MESSAGE_OCTETS])
    if at == end or not _is_separable(turn.data, at, end, stride):
        _return_message(turn, message, at, end, stride)
        return -1
    if not _has_same_source(turn.envelopes, message):
        last = -1
    while at < end:
        octets = min(stride, end - at)
        # The usual case, first: the next segment of the same flow. Its headers need not be parsed.
        if last < 0 or not _extend_last(turn, last, at, octets):
            last = _handle_datagram(turn, message, port, at, octets)
        if last >= 0 and turn.items[last, layout.ITEM_IS_COMPLETE]:
            _flush(turn, last)
        at += octets
    return last


@inlined
def _is_separable(data: Octets, at: int, end: int, stride: int) -> bool:
    """Return False if several datagrams may be one: a UDP superframe that was never segmented.

    The first frame then states the length of all. A guest wrote everything behind its headers, and
    could forge datagrams there. So what follows is a datagram only if the first frame can be
    parsed, and ends in its own datagram (see `forwarding.demux.Demux.check_gro_batch`).
    """
    if end - at <= stride:
        return True
    if stride < VXLAN_LEN + ETHERNET_LEN or end - at > stride * layout.MESSAGE_PARTS:
        return False
    return parse(data, at + VXLAN_LEN, stride - VXLAN_LEN)[0] != 0


@inlined
def _has_same_source(envelopes: Integers, message: int) -> bool:
    """Return True if a message has the source and the outer ECN field of the one before it."""
    if (
        message == 0
        or envelopes[message, layout.ENVELOPE_ECN] != envelopes[message - 1, layout.ENVELOPE_ECN]
    ):
        return False
    for word in range(layout.ENVELOPE_NAME, layout.ENVELOPE_CONTROL):
        if envelopes[message, word] != envelopes[message - 1, word]:
            return False
    return True


# --- datagrams ----------------------------------------------------------------------------------


@inlined
def _extend_last(turn: _Turn, bucket: int, at: int, octets: int) -> bool:
    """Add a datagram to an item if it is of the same source and VNI, and the next segment."""
    if turn.items[bucket, layout.ITEM_COUNT] == 0:
        return False
    if not _is_same(
        turn.data, i64(turn.items[bucket, layout.ITEM_FRAME]) - VXLAN_LEN, at, VXLAN_LEN
    ):
        return False
    return _extend(turn.data, turn.items, turn.iovecs, bucket, at + VXLAN_LEN, octets - VXLAN_LEN)


@inlined
def _handle_datagram(turn: _Turn, message: int, port: int, at: int, octets: int) -> int:
    """Deliver or return a datagram. Returns: the bucket of its item, or -1."""
    data, key = turn.data, turn.key
    begin, length = at + VXLAN_LEN, octets - VXLAN_LEN
    key[layout.KEY_MAC] = 0
    if length < ETHERNET_LEN:
        return _return_datagram(turn, -1, message, at, octets)
    bucket = flow_hash(data, begin, length) % layout.BUCKETS
    ip, transport, end, mac, kind = parse(data, begin, length)
    if ip == 0:
        return _return_datagram(turn, bucket, message, at, octets)
    key[layout.KEY_MAC] = mac | mac_at(data, begin + 6)
    key[layout.KEY_KIND] = (
        kind | i64(turn.envelopes[message, layout.ENVELOPE_ECN]) << layout.KIND_OUTER_ECN
    )
    key[layout.KEY_PORT] = port
    key[layout.KEY_VXLAN_FLAGS] = be32(data, at)
    key[layout.KEY_VXLAN_VNI] = be32(data, at + 4)
    _write_source(key, turn.envelopes, message)
    row = find_row(turn.keys, key)
    if row < 0:
        return _return_datagram(turn, bucket, message, at, octets)
    protocol = kind & 0xFF
    pseudo = _addresses_sum(data, ip, transport) + protocol if protocol in (TCP, UDP) else 0
    frame = _Frame(begin, length, ip, transport, end, protocol, pseudo)
    if not _deliver(turn, bucket, row, frame):
        return _return_datagram(turn, bucket, message, at, octets)
    return bucket


@inlined
def _write_source(key: Integers, envelopes: Integers, message: int) -> None:
    """Write the source of a message to a key."""
    # struct sockaddr_in: family, port, address. struct sockaddr_in6: family, port, flow label,
    # address, scope id.
    first = i64(envelopes[message, layout.ENVELOPE_NAME])
    family, scope = first & 0xFFFF, first >> 32 & 0xFFFFFFFF
    for word in range(2):
        key[layout.KEY_SOURCE_V6 + word] = 0
        if family == _AF_INET6:
            key[layout.KEY_SOURCE_V6 + word] = envelopes[message, layout.ENVELOPE_NAME + 1 + word]
    if family == _AF_INET6:
        scope = i64(envelopes[message, layout.ENVELOPE_NAME + 3]) & 0xFFFFFFFF
    key[layout.KEY_SOURCE] = family | scope << 16


@inlined
def _deliver(turn: _Turn, bucket: int, row: int, frame: _Frame) -> bool:
    """Deliver a frame for which there is a row. Returns: False if it has to be returned."""
    items = turn.items
    target = turn.values[row, layout.RX_TARGET]
    if items[bucket, layout.ITEM_BLOCKED] or turn.targets[target, layout.TARGET_FD] < 0:
        return False
    is_of_kind = items[bucket, layout.ITEM_COUNT] and items[bucket, layout.ITEM_ROW] == row
    if is_of_kind and _extend(
        turn.data, turn.items, turn.iovecs, bucket, frame.begin, frame.octets
    ):
        return True
    is_partial = _has_partial_checksum(turn.data, frame)
    # A TCP superframe that was never segmented: the slow path knows its segment size.
    if (
        is_partial
        and frame.octets > turn.targets[target, layout.TARGET_MTU] + frame.ip - frame.begin
    ):
        return False
    _flush(turn, bucket)
    if items[bucket, layout.ITEM_BLOCKED]:
        return False
    _begin(turn, bucket, row, frame, is_partial)
    return True


# --- what is returned to the slow path ----------------------------------------------------------


@compiled
def _return_datagram(turn: _Turn, bucket: int, message: int, at: int, octets: int) -> int:
    """Return a datagram with the key in `turn.key`, and block its flow. Returns: -1."""
    if bucket >= 0:
        # What was received before it is delivered before it.
        _flush(turn, bucket)
        turn.items[bucket, layout.ITEM_BLOCKED] = 1
    _add_returned(turn, message, at, octets, octets)
    return -1


@inlined
def _return_message(turn: _Turn, message: int, at: int, end: int, stride: int) -> None:
    """Return all datagrams of a message, and block their flows."""
    data, begin = turn.data, at
    shortest = VXLAN_LEN + ETHERNET_LEN
    while begin + shortest <= end and _is_same(data, at, begin, VXLAN_LEN):
        octets = min(stride, end - begin)
        if octets >= shortest:
            bucket = flow_hash(data, begin + VXLAN_LEN, octets - VXLAN_LEN) % layout.BUCKETS
            _flush(turn, bucket)
            turn.items[bucket, layout.ITEM_BLOCKED] = 1
        begin += octets
    turn.key[layout.KEY_MAC] = 0
    _add_returned(turn, message, at, end - at, stride)


@compiled
def _add_returned(turn: _Turn, message: int, at: int, octets: int, stride: int) -> None:
    """Add datagrams to what is returned, in the row of the datagrams before them if possible."""
    returned, result = turn.returned, turn.result
    row = i64(result[layout.RESULT_RETURNED])
    if row and returned[row - 1, layout.RETURNED_MESSAGE] == message:
        before = i64(returned[row - 1, layout.RETURNED_OCTETS])
        size = i64(returned[row - 1, layout.RETURNED_STRIDE])
        follows = returned[row - 1, layout.RETURNED_BEGIN] + before == at
        if follows and octets <= size and before % size == 0:
            returned[row - 1, layout.RETURNED_OCTETS] = before + octets
            return
    returned[row, layout.RETURNED_BEGIN] = at
    returned[row, layout.RETURNED_OCTETS] = octets
    returned[row, layout.RETURNED_STRIDE] = max(1, stride)
    returned[row, layout.RETURNED_MESSAGE] = message
    for word in range(layout.RX_KEY_WORDS):
        turn.returned_keys[row, word] = turn.key[word]
    result[layout.RESULT_RETURNED] = row + 1


# --- items --------------------------------------------------------------------------------------


@inlined
def _begin(turn: _Turn, bucket: int, row: int, frame: _Frame, is_partial: bool) -> None:
    """Begin an item with a frame; deliver it at once if no other can follow."""
    data, items, iovecs = turn.data, turn.items, turn.iovecs
    begin = frame.begin
    header_len, flags = _mergeable_header(turn, row, frame)
    items[bucket, layout.ITEM_ROW] = row
    items[bucket, layout.ITEM_COUNT] = 1
    items[bucket, layout.ITEM_FRAME] = begin
    items[bucket, layout.ITEM_OCTETS] = frame.octets
    items[bucket, layout.ITEM_IP] = frame.ip - begin
    items[bucket, layout.ITEM_TRANSPORT] = frame.transport - begin
    items[bucket, layout.ITEM_HEADER_LEN] = header_len
    items[bucket, layout.ITEM_SIZE] = frame.octets - header_len
    items[bucket, layout.ITEM_PROTOCOL] = frame.protocol
    items[bucket, layout.ITEM_PSEUDO] = frame.pseudo
    items[bucket, layout.ITEM_FLAGS] = flags
    items[bucket, layout.ITEM_CHECKSUMS] = _UNVERIFIED
    items[bucket, layout.ITEM_IS_PARTIAL] = is_partial
    iovecs[bucket, 2] = i64(data.ctypes.data) + begin
    iovecs[bucket, 3] = frame.octets
    items[bucket, layout.ITEM_IS_COMPLETE] = header_len == 0 or flags & _LAST_ONLY != 0


@inlined
def _mergeable_header(turn: _Turn, row: int, frame: _Frame) -> tuple[int, int]:
    """Return the octets of the headers of a frame, and its TCP flags; 0, 0 if it is not merged."""
    data, transport = turn.data, frame.transport
    target = turn.values[row, layout.RX_TARGET]
    header_len = flags = 0
    if frame.protocol == TCP and turn.targets[target, layout.TARGET_TSO]:
        flags = i64(data[transport + TCP_FLAGS_OFFSET])
        octets = (i64(data[transport + 12]) >> 4) * 4
        if octets >= TCP_HEADER_MIN and flags & _COMMON & ~TCP_FLAG_ECE == TCP_FLAG_ACK:
            header_len = transport + octets - frame.begin
    elif frame.protocol == UDP and turn.targets[target, layout.TARGET_USO]:
        # Without a checksum it is not merged: a split always writes one.
        header_len = transport + UDP_HEADER_LEN - frame.begin
        if be16(data, transport + 4) != frame.end - transport or not be16(data, transport + 6):
            header_len = 0
    # Neither padding nor a segment without payload.
    if frame.end != frame.begin + frame.octets or header_len >= frame.octets:
        header_len = 0
    return header_len, flags


@compiled
def _extend(
    data: Octets, items: Integers, iovecs: Integers, bucket: int, begin: int, octets: int
) -> bool:
    """Add a frame to the item of its bucket if it is the next segment, with right checksums."""
    header_len, size = (
        i64(items[bucket, layout.ITEM_HEADER_LEN]),
        i64(items[bucket, layout.ITEM_SIZE]),
    )
    payload = octets - header_len
    if not _has_room(items, bucket, payload) or not _continues(data, items, bucket, begin, octets):
        return False
    kinds = i64(items[bucket, layout.ITEM_CHECKSUMS])
    if kinds == _UNVERIFIED:
        # Not before a second frame follows: what is delivered alone needs no verification.
        kinds = _verify_first(data, items, bucket)
    kinds &= _verify(data, items, bucket, begin, octets, kinds)
    if kinds == 0:
        return False
    # Once all frames have complete checksums, later ones must have, too.
    items[bucket, layout.ITEM_CHECKSUMS] = _COMPLETE if kinds & _COMPLETE else _PARTIAL
    count = i64(items[bucket, layout.ITEM_COUNT])
    iovecs[bucket, 2 * count + 2] = i64(data.ctypes.data) + begin + header_len
    iovecs[bucket, 2 * count + 3] = payload
    items[bucket, layout.ITEM_COUNT] = count + 1
    items[bucket, layout.ITEM_OCTETS] += payload
    if items[bucket, layout.ITEM_PROTOCOL] == TCP:
        flags = i64(data[begin + items[bucket, layout.ITEM_TRANSPORT] + TCP_FLAGS_OFFSET])
        items[bucket, layout.ITEM_FLAGS] = flags
    is_last = payload < size or items[bucket, layout.ITEM_FLAGS] & _LAST_ONLY != 0
    items[bucket, layout.ITEM_IS_COMPLETE] = is_last
    return True


@inlined
def _has_room(items: Integers, bucket: int, payload: int) -> bool:
    """Return True if an item can have another frame with `payload` octets of payload."""
    most = (
        layout.ITEM_SEGMENTS_MAX
        if items[bucket, layout.ITEM_PROTOCOL] == TCP
        else _UDP_SEGMENTS_MAX
    )
    return bool(
        0 < payload <= items[bucket, layout.ITEM_SIZE]
        and items[bucket, layout.ITEM_OCTETS] + payload <= _SUPERFRAME_MAX
        and items[bucket, layout.ITEM_COUNT] < most
    )


@inlined
def _continues(data: Octets, items: Integers, bucket: int, begin: int, octets: int) -> bool:
    """Return True if a frame has the headers of the next segment of an item.

    Checksums are not compared. All other octets equal those of the first frame, except the lengths,
    the IPv4 identification, the sequence number, and some TCP flags.
    """
    first = i64(items[bucket, layout.ITEM_FRAME])
    ip, transport = i64(items[bucket, layout.ITEM_IP]), i64(items[bucket, layout.ITEM_TRANSPORT])
    is_ipv4 = transport - ip == _IPV4_LEN
    length = ip + 2 if is_ipv4 else ip + 4
    if not _is_same(data, first, begin, length):
        return False
    if is_ipv4:
        ident = be16(data, first + ip + 4) + i64(items[bucket, layout.ITEM_COUNT]) & 0xFFFF
        if be16(data, begin + length) != octets - ip or be16(data, begin + ip + 4) != ident:
            return False
        rest = ip + 12
        if not _is_same(data, first + ip + 6, begin + ip + 6, 4):
            return False
    else:
        if be16(data, begin + length) != octets - transport:
            return False
        rest = ip + 6
    # Addresses and both ports.
    if not _is_same(data, first + rest, begin + rest, transport + 4 - rest):
        return False
    if items[bucket, layout.ITEM_PROTOCOL] == TCP:
        return _continues_tcp(data, items, bucket, begin + transport)
    return be16(data, begin + transport + 4) == octets - transport


@inlined
def _continues_tcp(data: Octets, items: Integers, bucket: int, tcp: int) -> bool:
    """Return True if the TCP header at an offset is that of the next segment of an item."""
    first = i64(items[bucket, layout.ITEM_FRAME]) + i64(items[bucket, layout.ITEM_TRANSPORT])
    steps = i64(items[bucket, layout.ITEM_COUNT]) * i64(items[bucket, layout.ITEM_SIZE])
    options = (
        i64(items[bucket, layout.ITEM_HEADER_LEN]) - i64(items[bucket, layout.ITEM_TRANSPORT]) - 18
    )
    flags = i64(data[tcp + TCP_FLAGS_OFFSET])
    return bool(
        be32(data, tcp + 4) == (be32(data, first + 4) + steps) & 0xFFFFFFFF
        # Acknowledgement number and data offset; window; urgent pointer and options.
        and _is_same(data, first + 8, tcp + 8, 5)
        and (i64(data[first + TCP_FLAGS_OFFSET]) ^ flags) & _COMMON == 0
        and not flags & _FIRST_ONLY
        and _is_same(data, first + 14, tcp + 14, 2)
        and _is_same(data, first + 18, tcp + 18, options)
    )


@inlined
def _verify_first(data: Octets, items: Integers, bucket: int) -> int:
    """Verify the first frame of an item. Returns: as `_verify`, and 0 if it must not be merged."""
    first = i64(items[bucket, layout.ITEM_FRAME])
    end = first + i64(items[bucket, layout.ITEM_HEADER_LEN])
    tcp = first + i64(items[bucket, layout.ITEM_TRANSPORT])
    if items[bucket, layout.ITEM_PROTOCOL] == TCP and is_authenticated(
        data, tcp + TCP_HEADER_MIN, end
    ):
        return 0
    octets = i64(items[bucket, layout.ITEM_OCTETS])
    return _verify(data, items, bucket, first, octets, _COMPLETE | _PARTIAL)


@compiled
def _verify(data: Octets, items: Integers, bucket: int, begin: int, octets: int, kinds: int) -> int:
    """Verify the checksums of a frame that has the headers of an item.

    Returns: those of `kinds` that its transport checksum is; 0 also if the checksum of its IPv4
    header is wrong. A checksum must be as a split writes it: of both representations of 0, TCP and
    IPv4 have 0, and UDP has 0xFFFF.
    """
    ip = begin + i64(items[bucket, layout.ITEM_IP])
    transport = begin + i64(items[bucket, layout.ITEM_TRANSPORT])
    length = begin + octets - transport
    is_tcp = items[bucket, layout.ITEM_PROTOCOL] == TCP
    if transport - ip == _IPV4_LEN and (
        ones_sum(data, ip, _IPV4_LEN) != 0xFFFF or be16(data, ip + 10) == 0xFFFF
    ):
        return 0
    field = be16(data, transport + (16 if is_tcp else 6))
    pseudo = fold(i64(items[bucket, layout.ITEM_PSEUDO]) + length)
    found = 0
    if kinds & _PARTIAL and field == pseudo:
        found |= _PARTIAL
    is_possible = kinds & _COMPLETE and field != (0xFFFF if is_tcp else 0)
    if is_possible and fold(pseudo + ones_sum(data, transport, length)) == 0xFFFF:
        found |= _COMPLETE
    return found


# --- delivery -----------------------------------------------------------------------------------


@compiled
def _flush(turn: _Turn, bucket: int) -> None:
    """Deliver the item of a bucket, if there is one, or return its frames."""
    data, items, iovecs = turn.data, turn.items, turn.iovecs
    count = i64(items[bucket, layout.ITEM_COUNT])
    if count == 0:
        return
    items[bucket, layout.ITEM_COUNT] = 0
    headers = layout.MESSAGES * layout.SLOT + bucket * layout.ITEM_HEADERS
    header_len = 0
    if count == 1:
        _write_frame_header(data, items, bucket, headers)
    else:
        header_len = i64(items[bucket, layout.ITEM_HEADER_LEN])
        _write_superframe_headers(data, items, bucket, headers)
        # The headers of the first frame are replaced; that frame itself stays as it was received.
        iovecs[bucket, 2] += header_len
        iovecs[bucket, 3] -= header_len
    iovecs[bucket, 1] = VIRTIO_LEN + header_len
    row = i64(items[bucket, layout.ITEM_ROW])
    fd = i64(turn.targets[turn.values[row, layout.RX_TARGET], layout.TARGET_FD])
    if _touch(turn, row) and writev(fd, i64(iovecs[bucket].ctypes.data), 1 + count) >= 0:
        _count(turn, bucket, row, count)
    else:
        _return_item(turn, bucket, count, header_len)


@inlined
def _return_item(turn: _Turn, bucket: int, count: int, header_len: int) -> None:
    """Return the datagrams of an item that could not be delivered, and block their flow."""
    iovecs, base = turn.iovecs, i64(turn.data.ctypes.data)
    turn.items[bucket, layout.ITEM_BLOCKED] = 1
    turn.key[layout.KEY_MAC] = 0
    for number in range(count):
        at = i64(iovecs[bucket, 2 * number + 2]) - base - header_len - VXLAN_LEN
        octets = i64(iovecs[bucket, 2 * number + 3]) + header_len + VXLAN_LEN
        _add_returned(turn, at // layout.SLOT, at, octets, octets)


@inlined
def _touch(turn: _Turn, row: int) -> bool:
    """Add a row to those that the turn has used. Returns: False if there are too many."""
    if turn.values[row, layout.RX_ADMITTED] == 0:
        count = i64(turn.result[layout.RESULT_TOUCHED])
        if count == layout.TOUCHED_MAX:
            return False
        turn.touched[count] = row
        turn.result[layout.RESULT_TOUCHED] = count + 1
    return True


@inlined
def _count(turn: _Turn, bucket: int, row: int, count: int) -> None:
    """Count a delivery. A superframe counts as its segments, each with its headers."""
    values, items = turn.values, turn.items
    values[row, layout.RX_ADMITTED] += count
    values[row, layout.RX_FRAMES] += count
    octets = items[bucket, layout.ITEM_OCTETS] + (count - 1) * items[bucket, layout.ITEM_HEADER_LEN]
    values[row, layout.RX_OCTETS] += octets
    if count > 1:
        values[row, layout.RX_SUPERFRAMES] += 1
    else:
        values[row, layout.RX_PARTIAL] += items[bucket, layout.ITEM_IS_PARTIAL]
    turn.result[layout.RESULT_DONE] += count


@inlined
def _write_frame_header(data: Octets, items: Integers, bucket: int, headers: int) -> None:
    """Write the virtio header of a frame that is not merged."""
    if items[bucket, layout.ITEM_IS_PARTIAL]:
        start = i64(items[bucket, layout.ITEM_TRANSPORT])
        offset = 16 if items[bucket, layout.ITEM_PROTOCOL] == TCP else 6
        _write_virtio(data, headers, FLAG_NEEDS_CSUM | GSO_NONE << 8, 0, 0, start, offset)
    else:
        data[headers : headers + VIRTIO_LEN] = 0


@inlined
def _write_superframe_headers(data: Octets, items: Integers, bucket: int, at: int) -> None:
    """Write the virtio header and the headers of the superframe that an item has become."""
    first, header_len = (
        i64(items[bucket, layout.ITEM_FRAME]),
        i64(items[bucket, layout.ITEM_HEADER_LEN]),
    )
    octets, size = i64(items[bucket, layout.ITEM_OCTETS]), i64(items[bucket, layout.ITEM_SIZE])
    start = i64(items[bucket, layout.ITEM_TRANSPORT])
    frame = at + VIRTIO_LEN
    for position in range(header_len):
        data[frame + position] = data[first + position]
    ip, transport = frame + i64(items[bucket, layout.ITEM_IP]), frame + start
    length = octets - start
    is_ipv4 = transport - ip == _IPV4_LEN
    if is_ipv4:
        put16(data, ip + 2, octets - (ip - frame))
        put16(data, ip + 10, 0)
        put16(data, ip + 10, ones_sum(data, ip, _IPV4_LEN) ^ 0xFFFF)
    else:
        put16(data, ip + 4, length)
    pseudo = fold(i64(items[bucket, layout.ITEM_PSEUDO]) + length)
    if items[bucket, layout.ITEM_PROTOCOL] == TCP:
        offset, gso_type = 16, GSO_TCPV4 if is_ipv4 else GSO_TCPV6
        flags = i64(data[transport + TCP_FLAGS_OFFSET])
        if flags & _FIRST_ONLY:
            gso_type |= GSO_ECN
        data[transport + TCP_FLAGS_OFFSET] = (
            flags | i64(items[bucket, layout.ITEM_FLAGS]) & _LAST_ONLY
        )
    else:
        offset, gso_type = 6, GSO_UDP_L4
        put16(data, transport + 4, length)
    put16(data, transport + offset, pseudo)
    _write_virtio(data, at, FLAG_NEEDS_CSUM | gso_type << 8, header_len, size, start, offset)


@compiled
def _write_virtio(
    data: Octets, at: int, kind: int, header_len: int, size: int, start: int, offset: int
) -> None:
    """Write a virtio header (see `wire.virtio`); `kind` has the flags and, from bit 8, GSO type."""
    put_host16(data, at, kind)
    put_host16(data, at + 2, header_len)
    put_host16(data, at + 4, size)
    put_host16(data, at + 6, start)
    put_host16(data, at + 8, offset)


# --- headers and checksums ----------------------------------------------------------------------


@compiled
def _is_same(data: Octets, one: int, other: int, octets: int) -> bool:
    """Return True if `octets` octets at two offsets are equal."""
    for position in range(octets):  # noqa: SIM110  numba knows no generators here
        if data[one + position] != data[other + position]:
            return False
    return True


@compiled
def _addresses_sum(data: Octets, ip: int, transport: int) -> int:
    """Return the sum of both addresses of an IP header without options."""
    # They are the end of the header: 8 octets of IPv4, 32 of IPv6.
    octets = 8 if transport - ip == _IPV4_LEN else 32
    return ones_sum(data, transport - octets, octets)


@inlined
def _has_partial_checksum(data: Octets, frame: _Frame) -> bool:
    """Return True if a virtio header can request the rest of a checksum.

    See `offload.partial.has_partial_checksum`: the sum to the end of the frame must be the one that
    the checksum covers.
    """
    if not frame.pseudo:
        return False
    length = frame.end - frame.transport
    field = frame.transport + (16 if frame.protocol == TCP else 6)
    if be16(data, field) != fold(frame.pseudo + length):
        return False
    if frame.protocol == UDP and be16(data, frame.transport + 4) != length:
        return False
    for position in range(frame.end, frame.begin + frame.octets):  # noqa: SIM110
        if data[position]:
            return False
    return True


# --- the turn -----------------------------------------------------------------------------------


@entry_point(f"void(int64, int64, int64, uint8[::1]{', int64[:, ::1]' * 9}{', int64[::1]' * 3})")
def receive_turn(  # noqa: PLR0913, PLR0917
    fd: int,
    port: int,
    most: int,
    data: Octets,
    keys: Integers,
    values: Integers,
    targets: Integers,
    messages: Integers,
    envelopes: Integers,
    items: Integers,
    iovecs: Integers,
    returned: Integers,
    returned_keys: Integers,
    key: Integers,
    touched: Integers,
    result: Integers,
) -> None:
    """Receive up to `most` messages from a socket and deliver or return them."""
    turn = _Turn(
        *(data, keys, values, targets, messages, envelopes, items, iovecs),
        *(returned, returned_keys, key, touched, result),
    )
    for bucket in range(layout.BUCKETS):
        items[bucket, layout.ITEM_COUNT] = items[bucket, layout.ITEM_BLOCKED] = 0
    last = -1
    for message in range(_receive(turn, fd, most)):
        last = _handle_message(turn, message, port, last)
    for bucket in range(layout.BUCKETS):
        if items[bucket, layout.ITEM_COUNT]:
            _flush(turn, bucket)


class ReceiveTurn:
    """The receive turn of a process: its arrays, of which `layout` has the columns.

    `keys`, `values` and `targets` are the receive table. After a turn, `result` has its result,
    `touched` the rows with counters, `returned` and `returned_keys` what the slow path has to
    handle: octets of `data`. `names` and `ecn` have the source and the outer ECN field of each
    message.
    """

    def __init__(self) -> None:
        self.keys: Integers = np.zeros((layout.ROWS, layout.RX_KEY_WORDS), np.int64)
        self.values: Integers = np.zeros((layout.ROWS, layout.RX_COLUMNS), np.int64)
        self.targets: Integers = np.zeros((layout.TARGETS, layout.TARGET_COLUMNS), np.int64)
        self.targets[:, layout.TARGET_FD] = -1
        self.touched: Integers = np.zeros(layout.TOUCHED_MAX, np.int64)
        self.result: Integers = np.zeros(layout.RESULTS, np.int64)
        self.result[layout.RESULT_MOST] = layout.MESSAGES
        self.returned: Integers = np.zeros(
            (layout.RX_RETURNED_MAX, layout.RX_RETURNED_COLUMNS), np.int64
        )
        self.returned_keys: Integers = np.zeros(
            (layout.RX_RETURNED_MAX, layout.RX_KEY_WORDS), np.int64
        )
        self.data: Octets = np.zeros(
            layout.MESSAGES * layout.SLOT + layout.BUCKETS * layout.ITEM_HEADERS, np.uint8
        )
        self._envelopes: Integers = np.zeros((layout.MESSAGES, layout.ENVELOPE_COLUMNS), np.int64)
        self.names = self._envelopes[:, layout.ENVELOPE_NAME : layout.ENVELOPE_CONTROL]
        self.ecn = self._envelopes[:, layout.ENVELOPE_ECN]
        self._messages = self._make_messages()
        self._iovecs: Integers = np.zeros(
            (layout.BUCKETS, 2 + 2 * layout.ITEM_SEGMENTS_MAX), np.int64
        )
        headers = self.data.ctypes.data + layout.MESSAGES * layout.SLOT
        self._iovecs[:, 0] = headers + np.arange(layout.BUCKETS) * layout.ITEM_HEADERS
        self._arrays = (
            *(self.data, self.keys, self.values, self.targets, self._messages, self._envelopes),
            *(np.zeros((layout.BUCKETS, layout.ITEM_COLUMNS), np.int64), self._iovecs),
            *(self.returned, self.returned_keys, np.zeros(layout.RX_KEY_WORDS, np.int64)),
            *(self.touched, self.result),
        )

    def _make_messages(self) -> Integers:
        """Return a struct mmsghdr for each message, whose pointers are to the other arrays."""
        envelopes = self._envelopes.ctypes.data + 8 * layout.ENVELOPE_COLUMNS * np.arange(
            layout.MESSAGES
        )
        self._envelopes[:, layout.ENVELOPE_IOVEC] = self.data.ctypes.data + layout.SLOT * np.arange(
            layout.MESSAGES
        )
        self._envelopes[:, layout.ENVELOPE_IOVEC + 1] = layout.MESSAGE_OCTETS_MAX
        messages: Integers = np.zeros((layout.MESSAGES, layout.MESSAGE_COLUMNS), np.int64)
        messages[:, layout.MESSAGE_NAME] = envelopes + 8 * layout.ENVELOPE_NAME
        messages[:, layout.MESSAGE_IOVECS] = envelopes + 8 * layout.ENVELOPE_IOVEC
        messages[:, layout.MESSAGE_IOVEC_COUNT] = 1
        messages[:, layout.MESSAGE_CONTROL] = envelopes + 8 * layout.ENVELOPE_CONTROL
        return messages

    def run(self, fd: int, port: int, most: int) -> None:
        """Receive up to `most` messages from the socket `fd`, and deliver or return them.

        `port` is the number of the socket in the keys. Side effects: as in the class.
        """
        receive_turn(fd, port, most, *self._arrays)

    def source(self, message: int) -> bytes:
        """Return the source of a message: a struct sockaddr_in or sockaddr_in6."""
        return bytes(self.names[message])
