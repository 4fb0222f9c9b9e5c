"""A turn of the fast path from a UDP socket to the TAPs.

A turn receives several messages with one system call. A *message* is a datagram, or several of one
source that the kernel has joined (UDP_GRO). Datagrams whose kind has a row in the table are
delivered, all others are returned to the slow path. The frames of a flow are collected in an item
(see `items`), which one `writev` delivers.
"""

import socket
from typing import Final

import numpy as np

from vtep.fastpath import layout
from vtep.fastpath.items import (
    InnerFrame,
    addresses_sum,
    begin_item,
    extend_item,
    is_partial,
    is_same,
    write_headers,
)
from vtep.fastpath.jit import compiled, entry_point, i64, inlined, writev
from vtep.fastpath.keys import TCP, UDP, be32, find_row, flow_hash, mac_at, parse
from vtep.fastpath.layout import Integers, Octets
from vtep.fastpath.messages import (
    ReceiveArrays,
    has_same_source,
    is_separable,
    receive_messages,
)
from vtep.fastpath.storm import take_grant
from vtep.wire import ethernet, virtio, vxlan

_AF_INET6: Final = int(socket.AF_INET6)
_VXLAN_LEN: Final = vxlan.HEADER_LEN
_DATAGRAM_MIN: Final = vxlan.HEADER_LEN + ethernet.HEADER_LEN


@inlined
def _handle_message(turn: ReceiveArrays, message: int, port: int, last: int) -> int:
    """Deliver or return the datagrams of a message.

    `last` is the bucket of the item to which the last frame was added, or -1.

    Returns: the same, after this message.
    """
    stride = i64(turn.envelopes[message, layout.ENVELOPE_STRIDE])
    at = message * layout.SLOT
    end = at + i64(turn.messages[message, layout.MESSAGE_OCTETS])
    if at == end or not is_separable(turn.data, at, end, stride):
        if _is_excess(turn, message, port, at, end, stride):
            return -1
        _return_message(turn, message, at, end, stride)
        return -1
    if not has_same_source(turn.envelopes, message):
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


# --- datagrams ----------------------------------------------------------------------------------


@inlined
def _extend_last(turn: ReceiveArrays, bucket: int, at: int, octets: int) -> bool:
    """Add a datagram of the same source to an item if it has the same VNI and comes next."""
    data, items = turn.data, turn.items
    first = i64(items[bucket, layout.ITEM_FRAME]) - _VXLAN_LEN
    if items[bucket, layout.ITEM_COUNT] == 0 or not is_same(data, first, at, _VXLAN_LEN):
        return False
    return extend_item(data, items, turn.iovecs, bucket, at + _VXLAN_LEN, octets - _VXLAN_LEN)


@inlined
def _limited_row(turn: ReceiveArrays, message: int, port: int, at: int) -> int:
    """Return the row that has the meter of the sender of a datagram, or -1. It changes the key."""
    data, key = turn.data, turn.key
    _write_envelope(key, turn.envelopes[message], port, be32(data, at), be32(data, at + 4))
    key[layout.KEY_MAC] = layout.KEY_USED | layout.KEY_LIMITED
    key[layout.KEY_KIND] = 0
    return find_row(turn.keys, key)


@inlined
def _limit(turn: ReceiveArrays, row: int, at: int, octets: int, count: int) -> int:
    """Take grants for datagrams, with the meter of a row. Returns: as `take_grant`."""
    if _touch(turn, row):
        turn.values[row, layout.RX_ADMITTED] += 1
    meter = turn.meters[turn.values[row, layout.RX_TARGET]]
    granted = take_grant(meter, turn.data, at + _VXLAN_LEN, octets - _VXLAN_LEN, count)
    if granted < 0:
        turn.result[layout.RESULT_DONE] += count
    return granted


@inlined
def _is_excess(
    turn: ReceiveArrays, message: int, port: int, at: int, end: int, stride: int
) -> bool:
    """Return True if a message that cannot be separated is to be dropped by storm control.

    That is a batch of ARP requests, for example. All of its frames must go to groups.
    """
    if min(stride, end - at) < _DATAGRAM_MIN:
        return False
    count = 0
    for begin in range(at, end, stride):
        if begin + _VXLAN_LEN >= end or not turn.data[begin + _VXLAN_LEN] & 1:
            return False
        count += 1
    row = _limited_row(turn, message, port, at)
    return row >= 0 and _limit(turn, row, at, stride, count) < 0


@inlined
def _handle_datagram(turn: ReceiveArrays, message: int, port: int, at: int, octets: int) -> int:
    """Deliver or return a datagram. Returns: the bucket of its item, or -1 if it was returned."""
    data, key, begin = turn.data, turn.key, at + _VXLAN_LEN
    key[layout.KEY_MAC] = 0
    bucket = row = limited = granted = -1
    is_group = octets >= _DATAGRAM_MIN and data[begin] & 1 != 0
    if is_group:
        limited = _limited_row(turn, message, port, at)
        if limited >= 0:
            granted = _limit(turn, limited, at, octets, 1)
            if granted < 0:
                return -1
        key[layout.KEY_MAC] = 0
    if octets >= _DATAGRAM_MIN:
        bucket = flow_hash(data, begin, octets - _VXLAN_LEN) % layout.BUCKETS
        ip, transport, end, mac, kind = parse(data, begin, octets - _VXLAN_LEN)
        if ip != 0:
            key[layout.KEY_MAC] = mac | mac_at(data, begin + 6)
            key[layout.KEY_KIND] = kind
            _write_envelope(key, turn.envelopes[message], port, be32(data, at), be32(data, at + 4))
            row = find_row(turn.keys, key)
    if row >= 0 and (not is_group or _may_deliver(turn, row, limited)):
        protocol = kind & 0xFF
        pseudo = addresses_sum(data, ip, transport) + protocol if protocol in (TCP, UDP) else 0
        frame = InnerFrame(begin, octets - _VXLAN_LEN, ip, transport, end, protocol, pseudo)
        if _deliver(turn, bucket, row, frame):
            if not is_group:
                return bucket
            if granted >= 0:
                meter = turn.meters[turn.values[limited, layout.RX_TARGET]]
                meter[layout.METER_USED + granted] += 1
            if turn.items[bucket, layout.ITEM_IS_COMPLETE]:
                _flush(turn, bucket)
            # The next one must not be added to its item without a look at the grants.
            return -1
    if bucket >= 0:
        # Frames of its flow that were received before it are delivered before it.
        _block(turn, bucket)
    _add_returned(turn, message, at, octets, octets)
    return -1


@inlined
def _may_deliver(turn: ReceiveArrays, row: int, limited: int) -> bool:
    """Return False if a frame to a group must be returned, since its sender lacks a meter."""
    target = turn.targets[turn.values[row, layout.RX_TARGET]]
    return limited >= 0 or target[layout.TARGET_LIMITED] == 0


@inlined
def _write_envelope(key: Integers, envelope: Integers, port: int, flags: int, vni: int) -> None:
    """Write to a key what does not depend on the inner frame; `flags` and `vni` are of VXLAN."""
    key[layout.KEY_KIND] |= envelope[layout.ENVELOPE_ECN] << layout.KIND_OUTER_ECN
    key[layout.KEY_PORT] = port
    key[layout.KEY_VXLAN_FLAGS] = flags
    key[layout.KEY_VXLAN_VNI] = vni
    # struct sockaddr_in: family, port, address. struct sockaddr_in6: family, port, flow label,
    # address, scope id.
    first = i64(envelope[layout.ENVELOPE_NAME])
    family, scope = first & 0xFFFF, first >> 32 & 0xFFFFFFFF
    key[layout.KEY_SOURCE_V6] = key[layout.KEY_SOURCE_V6 + 1] = 0
    if family == _AF_INET6:
        scope = i64(envelope[layout.ENVELOPE_NAME + 3]) & 0xFFFFFFFF
        key[layout.KEY_SOURCE_V6] = envelope[layout.ENVELOPE_NAME + 1]
        key[layout.KEY_SOURCE_V6 + 1] = envelope[layout.ENVELOPE_NAME + 2]
    key[layout.KEY_SOURCE] = family | scope << 16


@inlined
def _deliver(turn: ReceiveArrays, bucket: int, row: int, frame: InnerFrame) -> bool:
    """Add a frame to the item of its flow, or begin one. Returns: False if it must be returned."""
    data, items, iovecs = turn.data, turn.items, turn.iovecs
    target = turn.targets[turn.values[row, layout.RX_TARGET]]
    if items[bucket, layout.ITEM_BLOCKED] or target[layout.TARGET_FD] < 0:
        return False
    is_of_kind = items[bucket, layout.ITEM_COUNT] > 0 and items[bucket, layout.ITEM_ROW] == row
    if is_of_kind and extend_item(data, items, iovecs, bucket, frame.begin, frame.octets):
        return True
    partial = is_partial(data, frame)
    # A superframe that was never segmented: the slow path knows its segment size.
    # One with a complete checksum was sent so: the MTU is then the business of the receiving host.
    if partial and frame.octets > target[layout.TARGET_SEGMENT_MAX] + frame.ip - frame.begin:
        return False
    _flush(turn, bucket)
    if items[bucket, layout.ITEM_BLOCKED]:
        return False
    is_merged = target[layout.TARGET_TSO if frame.protocol == TCP else layout.TARGET_USO]
    begin_item(data, items, iovecs, bucket, frame, is_merged)
    items[bucket, layout.ITEM_ROW] = row
    items[bucket, layout.ITEM_IS_PARTIAL] = partial
    return True


# --- what is returned to the slow path ----------------------------------------------------------


@inlined
def _return_message(turn: ReceiveArrays, message: int, at: int, end: int, stride: int) -> None:
    """Return all datagrams of a message, and block their flows."""
    data, begin = turn.data, at
    # A guest wrote what follows if this is one datagram: it has no VXLAN header there.
    while end - begin >= _DATAGRAM_MIN and is_same(data, at, begin, _VXLAN_LEN):
        octets = min(stride, end - begin)
        if octets >= _DATAGRAM_MIN:
            _block(turn, flow_hash(data, begin + _VXLAN_LEN, octets - _VXLAN_LEN) % layout.BUCKETS)
        begin += octets
    turn.key[layout.KEY_MAC] = 0
    _add_returned(turn, message, at, end - at, stride)


@compiled
def _block(turn: ReceiveArrays, bucket: int) -> None:
    """Deliver the item of a bucket, and return what follows in this turn, to keep the order."""
    _flush(turn, bucket)
    turn.items[bucket, layout.ITEM_BLOCKED] = 1


@compiled
def _add_returned(turn: ReceiveArrays, message: int, at: int, octets: int, stride: int) -> None:
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


# --- delivery -----------------------------------------------------------------------------------


@compiled
def _flush(turn: ReceiveArrays, bucket: int) -> None:
    """Deliver the item of a bucket, if there is one, or return its frames."""
    item, iovec = turn.items[bucket], turn.iovecs[bucket]
    count, row = i64(item[layout.ITEM_COUNT]), i64(item[layout.ITEM_ROW])
    if count == 0:
        return
    at = layout.MESSAGES * layout.SLOT + bucket * layout.ITEM_HEADERS
    header_len = write_headers(turn.data, item, at)
    item[layout.ITEM_COUNT] = 0
    # These headers replace those of the first frame, which itself stays as it was received. In a
    # superframe, the first iovec of the payload therefore begins behind them.
    iovec[1] = virtio.HEADER_LEN + header_len
    iovec[2] += header_len
    iovec[3] -= header_len
    fd = i64(turn.targets[turn.values[row, layout.RX_TARGET], layout.TARGET_FD])
    # A TAP takes a frame as a whole, or not at all.
    if _touch(turn, row) and writev(fd, i64(iovec.ctypes.data), 1 + count) >= 0:
        _count(turn, item, row, count)
    else:
        _return_item(turn, bucket, count, header_len)


@inlined
def _return_item(turn: ReceiveArrays, bucket: int, count: int, header_len: int) -> None:
    """Return the datagrams of an item that could not be delivered, and block their flow."""
    iovecs, base = turn.iovecs, i64(turn.data.ctypes.data)
    turn.items[bucket, layout.ITEM_BLOCKED] = 1
    turn.key[layout.KEY_MAC] = 0
    for number in range(count):
        at = i64(iovecs[bucket, 2 * number + 2]) - base - header_len - _VXLAN_LEN
        octets = i64(iovecs[bucket, 2 * number + 3]) + header_len + _VXLAN_LEN
        _add_returned(turn, at // layout.SLOT, at, octets, octets)


@inlined
def _touch(turn: ReceiveArrays, row: int) -> bool:
    """Add a row to those that the turn has used. Returns: False if there are too many."""
    if turn.values[row, layout.RX_ADMITTED] == 0:
        count = i64(turn.result[layout.RESULT_TOUCHED])
        if count == layout.TOUCHED_MAX:
            return False
        turn.touched[count] = row
        turn.result[layout.RESULT_TOUCHED] = count + 1
    return True


@inlined
def _count(turn: ReceiveArrays, item: Integers, row: int, count: int) -> None:
    """Count a delivery. A superframe counts as its segments, each with its headers."""
    values = turn.values[row]
    values[layout.RX_ADMITTED] += count
    values[layout.RX_FRAMES] += count
    octets = item[layout.ITEM_OCTETS] + (count - 1) * item[layout.ITEM_HEADER_LEN]
    values[layout.RX_OCTETS] += octets
    if count > 1:
        values[layout.RX_SUPERFRAMES] += 1
    else:
        values[layout.RX_PARTIAL] += item[layout.ITEM_IS_PARTIAL]
    turn.result[layout.RESULT_DONE] += count


# --- the turn -----------------------------------------------------------------------------------


@entry_point(
    f"void(int64, int64, int64, uint8[::1]{', int64[:, ::1]' * 9}{', int64[::1]' * 3}"
    ", int64[:, ::1])"
)
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
    meters: Integers,
) -> None:
    """Receive up to `most` messages from a socket and deliver or return them."""
    turn = ReceiveArrays(
        *(data, keys, values, targets, messages, envelopes, items, iovecs),
        *(returned, returned_keys, key, touched, result, meters),
    )
    for bucket in range(layout.BUCKETS):
        items[bucket, layout.ITEM_COUNT] = items[bucket, layout.ITEM_BLOCKED] = 0
    last = -1
    for message in range(receive_messages(turn, fd, most)):
        last = _handle_message(turn, message, port, last)
    for bucket in range(layout.BUCKETS):
        if items[bucket, layout.ITEM_COUNT]:
            _flush(turn, bucket)


class ReceiveTurn:
    """The receive turn of a process: its arrays, of which `layout` has the columns.

    `keys`, `values`, `targets` and `meters` are the receive table. After a turn, `result` has its
    result, `touched` the rows with counters, `returned` and `returned_keys` what the slow path has
    to handle: octets of `data`. `names` and `ecn` have the source and the outer ECN field of each
    message.
    """

    def __init__(self) -> None:
        self.keys = _zeros(layout.ROWS, layout.RX_KEY_WORDS)
        self.values = _zeros(layout.ROWS, layout.RX_COLUMNS)
        self.targets = _zeros(layout.TARGETS, layout.TARGET_COLUMNS)
        self.targets[:, layout.TARGET_FD] = -1
        self.meters = _zeros(layout.METERS, layout.METER_COLUMNS)
        self.touched = _zeros(layout.TOUCHED_MAX)
        self.result = _zeros(layout.RESULTS)
        self.result[layout.RESULT_MOST] = layout.MESSAGES
        self.returned = _zeros(layout.RX_RETURNED_MAX, layout.RX_RETURNED_COLUMNS)
        self.returned_keys = _zeros(layout.RX_RETURNED_MAX, layout.RX_KEY_WORDS)
        headers = layout.MESSAGES * layout.SLOT
        self.data: Octets = np.zeros(headers + layout.BUCKETS * layout.ITEM_HEADERS, np.uint8)
        self._envelopes = _zeros(layout.MESSAGES, layout.ENVELOPE_COLUMNS)
        self.names = self._envelopes[:, layout.ENVELOPE_NAME : layout.ENVELOPE_CONTROL]
        self.ecn = self._envelopes[:, layout.ENVELOPE_ECN]
        self._messages = self._make_messages()
        self._iovecs = _zeros(layout.BUCKETS, 2 + 2 * layout.ITEM_SEGMENTS_MAX)
        buckets = np.arange(layout.BUCKETS)
        self._iovecs[:, 0] = self.data.ctypes.data + headers + buckets * layout.ITEM_HEADERS
        self._arrays = (
            *(self.data, self.keys, self.values, self.targets, self._messages, self._envelopes),
            *(_zeros(layout.BUCKETS, layout.ITEM_COLUMNS), self._iovecs),
            *(self.returned, self.returned_keys, _zeros(layout.RX_KEY_WORDS)),
            *(self.touched, self.result, self.meters),
        )

    def _make_messages(self) -> Integers:
        """Return a struct mmsghdr for each message, whose pointers are to the other arrays."""
        numbers = np.arange(layout.MESSAGES)
        envelopes = self._envelopes.ctypes.data + numbers * self._envelopes.strides[0]
        self._envelopes[:, layout.ENVELOPE_IOVEC] = self.data.ctypes.data + numbers * layout.SLOT
        self._envelopes[:, layout.ENVELOPE_IOVEC + 1] = layout.MESSAGE_OCTETS_MAX
        messages = _zeros(layout.MESSAGES, layout.MESSAGE_COLUMNS)
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

    def limited_key(self, port: int, message: int, header: bytes) -> Integers:
        """Return the key of the row with the meter of the sender of a message (`_limited_row`)."""
        key = _zeros(layout.RX_KEY_WORDS)
        key[layout.KEY_MAC] = layout.KEY_USED | layout.KEY_LIMITED
        key[layout.KEY_PORT] = port
        key[layout.KEY_VXLAN_FLAGS] = int.from_bytes(header[:4], "big")
        key[layout.KEY_VXLAN_VNI] = int.from_bytes(header[4:], "big")
        # As `_write_envelope` does it.
        name = [int(word) for word in self.names[message]]
        family, scope = name[0] & 0xFFFF, name[0] >> 32 & 0xFFFFFFFF
        if family == _AF_INET6:
            scope = name[3] & 0xFFFFFFFF
            key[layout.KEY_SOURCE_V6 : layout.KEY_SOURCE_V6 + 2] = name[1:3]
        key[layout.KEY_SOURCE] = family | scope << 16
        return key

    def source(self, message: int) -> bytes:
        """Return the source of a message: a struct sockaddr_in or sockaddr_in6."""
        return bytes(self.names[message])


def _zeros(*shape: int) -> Integers:
    """Return an array of zeros."""
    return np.zeros(shape, np.int64)
