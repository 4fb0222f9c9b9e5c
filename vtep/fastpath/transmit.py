"""A turn of the fast path from a TAP to the UDP sockets of remotes.

A turn reads frames, encapsulates those that have a row in the transmit table, and returns all
others to the slow path. Datagrams of one socket and size are collected in a *group*, which one
`sendmsg` sends (UDP_SEGMENT). A superframe is segmented as `offload.split.Splitter` does it. Its
payload is sent from where it was read: each segment is one struct iovec for the headers, and one
for the payload.

The frames of a flow stay in order. If one is returned, so are those that follow it. If a send
fails, what follows in its group is not sent either, and the turn ends. The caller handles what is
unsent first, then what was returned.
"""

import errno
from typing import Final, NamedTuple

import numpy as np

from vtep.fastpath import layout
from vtep.fastpath.checksum import fold, ones_sum
from vtep.fastpath.groups import FLOWS, Turn, add_datagram, reserve, send_groups, socket_of
from vtep.fastpath.jit import compiled, entry_point, i64, inlined, read
from vtep.fastpath.keys import (
    TCP,
    UDP,
    be16,
    be32,
    copy,
    find_row,
    flow_hash,
    is_authenticated,
    mac_at,
    parse,
    put16,
    put32,
)
from vtep.fastpath.layout import Integers, Octets
from vtep.fastpath.storm import drop, take_grant
from vtep.io.path import SEGMENTS_MAX
from vtep.io.socket_constants import SOL_UDP, UDP_SEGMENT
from vtep.offload.headers import FIRST_ONLY, LAST_ONLY
from vtep.wire.ethernet import HEADER_LEN as ETHERNET_LEN
from vtep.wire.ip import (
    CHECKSUM_OFFSET,
    IP_HEADER_MIN,
    TCP_FLAGS_OFFSET,
    TCP_HEADER_MIN,
    UDP_HEADER_LEN,
)
from vtep.wire.storm_class import StormClass
from vtep.wire.virtio import FLAG_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4
from vtep.wire.virtio import HEADER_LEN as VIRTIO_LEN
from vtep.wire.vxlan import HEADER_LEN as VXLAN_LEN

_IPV4_LEN: Final = IP_HEADER_MIN[4]
_TCP_CHECKSUM: Final = CHECKSUM_OFFSET[TCP]
_UDP_CHECKSUM: Final = CHECKSUM_OFFSET[UDP]
_EAGAIN: Final = errno.EAGAIN
_UNKNOWN_UNICAST: Final = int(StormClass.UNKNOWN_UNICAST)


class _Frame(NamedTuple):
    """A frame, by offsets in the arena."""

    begin: int
    end: int
    ip: int
    """The IP header; 0 if there cannot be a row for the frame."""
    transport: int
    ip_end: int
    """The end of the IP packet: behind it is Ethernet padding."""
    protocol: int
    flow: int
    """The flow hash."""


# --- headers ------------------------------------------------------------------------------------


@compiled
def _host16(data: Octets, at: int) -> int:
    """Return 16 bits in the order of a little-endian host, as in a virtio header."""
    return i64(data[at]) | i64(data[at + 1]) << 8


@inlined
def _parse(data: Octets, begin: int, end: int, key: Integers, kind_mask: int) -> _Frame:
    """Parse a frame, and write its MAC and kind to a key. They are 0 if it cannot have a row."""
    ip, transport, ip_end, mac, kind = parse(data, begin, end - begin)
    if ip:
        key[layout.KEY_MAC] = mac | mac_at(data, begin)
        key[layout.KEY_KIND] = kind | _inherited_fields(data, ip) & kind_mask
    flow = flow_hash(data, begin, end - begin)
    return _Frame(begin, end, ip, transport, ip_end, kind & 0xFF, flow)


@inlined
def _inherited_fields(data: Octets, ip: int) -> int:
    """Return TTL, flow label and DF of an IP header as in `KEY_KIND`."""
    if data[ip] == 0x45:
        df = i64(data[ip + 6]) >> 6 & 1
        return i64(data[ip + 8]) << layout.KIND_TTL | df << layout.KIND_DF
    label = be32(data, ip) & 0xFFFFF
    return i64(data[ip + 7]) << layout.KIND_TTL | label << layout.KIND_FLOW_LABEL


@inlined
def _plan_segments(data: Octets, frame: _Frame) -> tuple[int, int]:
    """Plan the segments of a superframe; see `offload.split.plan_segments`.

    Returns: octets of payload in each segment, which are not positive if the virtio header is
    wrong or the superframe must not be segmented; and the offset of the payload.
    """
    transport = frame.transport
    if frame.protocol == TCP:
        gso_type = GSO_TCPV4 if data[frame.ip] == 0x45 else GSO_TCPV6
        body = transport + (i64(data[transport + 12]) >> 4) * 4
    else:
        gso_type = GSO_UDP_L4 if frame.protocol == UDP else -1
        body = transport + UDP_HEADER_LEN
    # hdr_len is ignored, since it is wrong in forwarded frames.
    virtio = frame.begin - VIRTIO_LEN
    size = min(_host16(data, virtio + 4), frame.ip_end - body)
    if i64(data[virtio + 1]) & ~GSO_ECN != gso_type or body < transport + UDP_HEADER_LEN:
        return 0, body
    if frame.protocol == TCP and (
        body < transport + TCP_HEADER_MIN
        or is_authenticated(data, transport + TCP_HEADER_MIN, min(body, frame.ip_end))
    ):
        return 0, body
    return size, body


# --- the turn of one frame ----------------------------------------------------------------------


@inlined
def _handle(turn: Turn, at: int, octets: int, port: int, kind_mask: int, frame_max: int) -> int:
    """Send or return what was read to `at`: a virtio header and a frame.

    Returns: where to read the next one.
    """
    data, send, end = turn.data, turn.send, at + octets
    key = turn.returned_keys[turn.result[layout.RESULT_RETURNED]]
    key[layout.KEY_MAC] = key[layout.KEY_KIND] = 0
    if octets < VIRTIO_LEN + ETHERNET_LEN:
        _return_frame(turn, at, end)
    else:
        gso_type, begin = i64(data[at + 1]), at + VIRTIO_LEN
        # The slow path counts the segments of superframes, and so limits them.
        granted = -1
        # The lowest bit of the first octet marks a group.
        if data[begin] & 1 and gso_type == 0:
            turn.result[layout.RESULT_LIMITED] += 1
            granted = take_grant(turn.meter, data, begin, end - begin, 1)
            if granted < 0:
                return at
        key[layout.KEY_PORT] = port | gso_type << layout.PORT_GSO
        frame = _parse(data, at + VIRTIO_LEN, end, key, kind_mask)
        blocked = layout.SEND_BLOCKED + frame.flow % FLOWS
        if send[blocked] or not _take(turn, frame, key, frame_max):
            if gso_type == 0 and _is_excess(turn, begin, port):
                return at
            send[blocked] = 1
            _return_frame(turn, at, end)
        elif granted >= 0:
            # A group with one destination of its own.
            turn.meter[layout.METER_USED + granted] += 1
    if send[layout.SEND_OPEN]:
        return _round_up(end)
    # All is sent, so the memory is free: what is read to it next finds it in the cache.
    send[layout.SEND_USED] = 0
    _mark_done(turn)
    return i64(send[layout.SEND_KEPT])


@inlined
def _is_excess(turn: Turn, begin: int, port: int) -> bool:
    """Return True if a frame that is to be returned goes to an unknown MAC, beyond the limit."""
    data, meter = turn.data, turn.meter
    # The key of a returned frame is kept. The row behind it is that of the next frame.
    key = turn.returned_keys[turn.result[layout.RESULT_RETURNED] + 1]
    key[layout.KEY_MAC] = layout.KEY_USED | layout.KEY_LIMITED | mac_at(data, begin)
    key[layout.KEY_KIND], key[layout.KEY_PORT] = 0, port
    if find_row(turn.keys, key) < 0:
        return False
    turn.result[layout.RESULT_LIMITED] += 1
    if meter[_UNKNOWN_UNICAST] > 0:
        meter[_UNKNOWN_UNICAST] -= 1
        return False
    drop(meter, _UNKNOWN_UNICAST, data, begin, 1)
    return True


@inlined
def _mark_done(turn: Turn) -> None:
    """Count all frames as done, except returned ones. No group is open."""
    result = turn.result
    done = result[layout.RESULT_TAKEN] - result[layout.RESULT_RETURNED]
    result[layout.RESULT_DONE] = done


@inlined
def _return_frame(turn: Turn, at: int, end: int) -> None:
    """Return a frame with its virtio header. Its key is in its place already."""
    row = turn.result[layout.RESULT_RETURNED]
    turn.returned[row, layout.RETURNED_BEGIN] = at
    turn.returned[row, layout.RETURNED_OCTETS] = end - at
    turn.result[layout.RESULT_RETURNED] += 1
    turn.send[layout.SEND_KEPT] = _round_up(end)


@compiled
def _round_up(at: int) -> int:
    """Return the offset of the next cache line."""
    return (at + layout.CACHE_LINE - 1) & -layout.CACHE_LINE


@inlined
def _take(turn: Turn, frame: _Frame, key: Integers, frame_max: int) -> bool:
    """Send a frame, or add it to a group. Returns: False if it is unchanged, and to be returned."""
    row = find_row(turn.keys, key) if frame.ip else -1
    if row < 0 or socket_of(turn, row, frame.flow) < 0:
        return False
    if key[layout.KEY_PORT] >> layout.PORT_GSO:
        return _take_superframe(turn, row, frame, frame_max)
    data, virtio = turn.data, frame.begin - VIRTIO_LEN
    start, offset = _host16(data, virtio + 6), _host16(data, virtio + 8)
    octets, is_partial = frame.end - frame.begin, i64(data[virtio]) & FLAG_NEEDS_CSUM
    if octets > frame_max or (is_partial and start + offset + 2 > octets):
        return False
    if not reserve(turn, 1):
        return False
    _count(turn, row, 1, octets)
    if is_partial:
        value = ones_sum(data, frame.begin + start, octets - start) ^ 0xFFFF
        if value == 0 and offset == _UDP_CHECKSUM:
            value = 0xFFFF  # In UDP 0 means that there is no checksum (RFC 768).
        put16(data, frame.begin + start + offset, value)
    # This overwrites most of the virtio header, which is not needed any more.
    head = frame.begin - VXLAN_LEN
    copy(data[head : frame.begin], turn.templates[row, :VXLAN_LEN])
    add_datagram(turn, row, frame.flow, (head, VXLAN_LEN + octets, 0, 0))
    return True


@inlined
def _count(turn: Turn, row: int, frames: int, octets: int) -> None:
    """Count frames before they are sent, as `Segment.account` does."""
    values, result = turn.values[row], turn.result
    if values[layout.TX_FRAMES] == 0:
        turn.touched[result[layout.RESULT_TOUCHED]] = row
        result[layout.RESULT_TOUCHED] += 1
    values[layout.TX_FRAMES] += frames
    values[layout.TX_OCTETS] += octets


# --- superframes --------------------------------------------------------------------------------


@inlined
def _take_superframe(turn: Turn, row: int, frame: _Frame, frame_max: int) -> bool:
    """Segment a superframe, and send its segments or add them to a group. Returns: as `_take`."""
    size, body = _plan_segments(turn.data, frame)
    header_len, payload = body - frame.begin, frame.ip_end - body
    if size < 1 or header_len + size > frame_max:
        return False
    count = (payload + size - 1) // size
    if not reserve(turn, count):
        return False
    turn.values[row, layout.TX_SUPERFRAMES] += 1
    _count(turn, row, count, payload + count * header_len)
    _add_segments(turn, row, frame, body, size)
    return True


@inlined
def _add_segments(turn: Turn, row: int, frame: _Frame, body: int, size: int) -> None:
    """Write the headers of each segment of a superframe, and add it to a group.

    A checksum is the sum of what is the same in all segments, of what differs, and of the payload.
    So no more than the payload has to be read for each.
    """
    data, head = turn.data, layout.HEADS + i64(turn.send[layout.SEND_USED]) * layout.HEAD_LEN
    first, head_len = head, VXLAN_LEN + body - frame.begin
    ip, transport = frame.ip - frame.begin + VXLAN_LEN, frame.transport - frame.begin + VXLAN_LEN
    copy(data[first : first + VXLAN_LEN], turn.templates[row, :VXLAN_LEN])
    copy(data[first + VXLAN_LEN : first + head_len], data[frame.begin : body])
    ip_sum, transport_sum = _sum_common(data, first + ip, first + transport, first + head_len)
    ident, sequence = be16(data, frame.ip + 4), be32(data, frame.transport + 4)
    flags, at = i64(data[frame.transport + TCP_FLAGS_OFFSET]), body
    while at < frame.ip_end:
        payload = min(size, frame.ip_end - at)
        if at > body:
            copy(data[head : head + head_len], data[first : first + head_len])
        octets = body - frame.transport + payload
        _write_ip(data, head + ip, octets, ident, ip_sum)
        total = transport_sum + octets + ones_sum(data, at, payload)
        if frame.protocol == TCP:
            absent = FIRST_ONLY if at > body else 0
            absent |= LAST_ONLY if at + payload < frame.ip_end else 0
            _write_tcp(data, head + transport, sequence, flags & ~absent, total)
        else:
            _write_udp(data, head + transport, octets, total)
        add_datagram(turn, row, frame.flow, (head, head_len, at, payload))
        at, head = at + payload, head + layout.HEAD_LEN
        ident, sequence = (ident + 1) & 0xFFFF, (sequence + payload) & 0xFFFFFFFF


@inlined
def _sum_common(data: Octets, ip: int, transport: int, body: int) -> tuple[int, int]:
    """Set the fields in which segments differ to 0, and sum the headers.

    Returns: the sum of an IPv4 header; the sum of the transport header and the pseudo-header, which
    lacks the length.
    """
    ip_sum, addresses, protocol = 0, transport - 32, i64(data[ip + 6])
    if data[ip] == 0x45:
        addresses, protocol = transport - 8, i64(data[ip + 9])
        put32(data, ip + 2, 0)
        put16(data, ip + 10, 0)
        ip_sum = ones_sum(data, ip, _IPV4_LEN)
    put32(data, transport + 4, 0)
    if protocol == TCP:
        data[transport + TCP_FLAGS_OFFSET] = 0
        put16(data, transport + _TCP_CHECKSUM, 0)
    # The addresses are directly before the transport header: one sum covers both.
    return ip_sum, protocol + ones_sum(data, addresses, body - addresses)


@inlined
def _write_ip(data: Octets, ip: int, octets: int, ident: int, ip_sum: int) -> None:
    """Write length, identification and checksum of an IP header with `octets` octets behind it."""
    if data[ip] == 0x45:
        length = _IPV4_LEN + octets
        put16(data, ip + 2, length)
        put16(data, ip + 4, ident)
        put16(data, ip + 10, fold(ip_sum + length + ident) ^ 0xFFFF)
    else:
        put16(data, ip + 4, octets)


@inlined
def _write_tcp(data: Octets, tcp: int, sequence: int, flags: int, total: int) -> None:
    """Write sequence number, flags and checksum; `total` is the sum of all else."""
    put32(data, tcp + 4, sequence)
    data[tcp + TCP_FLAGS_OFFSET] = flags
    total += (sequence >> 16) + (sequence & 0xFFFF) + flags
    put16(data, tcp + _TCP_CHECKSUM, fold(total) ^ 0xFFFF)


@inlined
def _write_udp(data: Octets, udp: int, octets: int, total: int) -> None:
    """Write length and checksum; `total` is the sum of all else. The checksum 0 means none."""
    put16(data, udp + 4, octets)
    put16(data, udp + _UDP_CHECKSUM, fold(total + octets) ^ 0xFFFF or 0xFFFF)


# --- the turn -----------------------------------------------------------------------------------


@entry_point(
    f"void({'int64, ' * 5}uint8[::1], uint8[::1], uint8[:, ::1]{', int64[:, ::1]' * 9}"
    f"{', int64[::1]' * 4})"
)
def transmit_turn(  # noqa: PLR0913, PLR0917
    fd: int,
    port: int,
    kind_mask: int,
    frame_max: int,
    most: int,
    data: Octets,
    unsent_data: Octets,
    templates: Octets,
    keys: Integers,
    values: Integers,
    paths: Integers,
    returned: Integers,
    returned_keys: Integers,
    unsent: Integers,
    datagrams: Integers,
    groups: Integers,
    iovecs: Integers,
    touched: Integers,
    result: Integers,
    send: Integers,
    meter: Integers,
) -> None:
    """Read up to `most` frames from a TAP and send or return them; see `TransmitTurn.run`."""
    turn = Turn(
        *(data, unsent_data, templates, keys, values, paths, returned, returned_keys, unsent),
        *(datagrams, groups, iovecs, touched, result, send, meter),
    )
    result[:] = 0
    send[: layout.SEND_MESSAGE] = send[layout.SEND_BLOCKED :] = 0
    base, at, octets = i64(data.ctypes.data), 0, 0
    for _ in range(min(most, layout.FRAMES_MAX)):
        # After a failed send, frames stay in the TAP: most often, there is no room in a socket.
        is_full = octets >= layout.TX_OCTETS_MAX or at + layout.READ_MAX > layout.HEADS
        if is_full or send[layout.SEND_FAILED]:
            break
        got = read(fd, base + at, layout.READ_MAX)
        if got <= 0:
            result[layout.RESULT_ERROR] = 0 if got == -_EAGAIN else -got
            break
        result[layout.RESULT_TAKEN] += 1
        octets += got
        at = _handle(turn, at, got, port, kind_mask, frame_max)
    send_groups(turn)
    _mark_done(turn)


class TransmitTurn:
    """The transmit turn of a process: its arrays, of which `layout` has the columns.

    `keys`, `values`, `templates` and `paths` are the transmit table. After a turn, `result` has its
    result, and `touched` the rows with counters. `unsent` are datagrams in `unsent_data` that the
    kernel did not take; `returned` and `returned_keys` are frames in `data` for the slow path. Both
    are overwritten by the next turn.
    """

    def __init__(self) -> None:
        self.keys: Integers = np.zeros((layout.ROWS, layout.TX_KEY_WORDS), np.int64)
        self.values: Integers = np.zeros((layout.ROWS, layout.TX_COLUMNS), np.int64)
        self.templates: Octets = np.zeros((layout.ROWS, layout.TEMPLATE_LEN), np.uint8)
        self.paths: Integers = np.full((layout.PATHS, layout.SLOTS + 1), -1, np.int64)
        self.paths[:, layout.PATH_STRIDE_MAX] = 0
        self.touched: Integers = np.zeros(layout.TOUCHED_MAX, np.int64)
        self.result: Integers = np.zeros(layout.RESULTS, np.int64)
        frames = layout.FRAMES_MAX
        self.returned: Integers = np.zeros((frames, layout.TX_RETURNED_COLUMNS), np.int64)
        # A key is made in the row of a returned frame, so there is one for a frame that is not.
        self.returned_keys: Integers = np.zeros((frames + 1, layout.TX_KEY_WORDS), np.int64)
        # At worst, each datagram is a group of its own, and none is sent.
        self.unsent: Integers = np.zeros((layout.DATAGRAMS, layout.UNSENT_COLUMNS), np.int64)
        self.unsent_data: Octets = np.zeros(layout.TX_ARENA, np.uint8)
        self.data: Octets = np.zeros(layout.TX_ARENA, np.uint8)
        self._iovecs: Integers = np.zeros((2 * SEGMENTS_MAX, 2), np.int64)
        self._arrays = (
            *(self.data, self.unsent_data, self.templates, self.keys, self.values, self.paths),
            *(self.returned, self.returned_keys, self.unsent),
            np.zeros((layout.DATAGRAMS, layout.DATAGRAM_COLUMNS), np.int64),
            np.zeros((layout.GROUPS, layout.GROUP_COLUMNS), np.int64),
            *(self._iovecs, self.touched, self.result, self._make_send()),
        )

    def _make_send(self) -> Integers:
        """Return the array `send`, with the words that never change."""
        send: Integers = np.zeros(layout.SEND_LEN, np.int64)
        # struct msghdr: name, its length, iovecs, their number, control, its length, flags.
        send[layout.SEND_IOVECS - 1] = self._iovecs.ctypes.data
        # struct cmsghdr: octets without padding; level and type in one word; a size of 16 bits.
        send[layout.SEND_CMSG_STRIDE] = 8 + 4 + 4 + 2
        send[layout.SEND_CMSG_STRIDE + 1] = SOL_UDP | UDP_SEGMENT << 32
        return send

    @staticmethod
    def new_meter() -> Integers:
        """Return a meter for a VNI, which grants nothing yet."""
        return np.zeros(layout.METER_COLUMNS, np.int64)

    def run(
        self, fd: int, port: int, kind_mask: int, frame_max: int, most: int, meter: Integers
    ) -> None:
        """Read up to `most` frames from the TAP `fd`, and send or return them.

        `port` is the number of the VNI's port in the keys. `kind_mask` has those bits of `KEY_KIND`
        that outer headers inherit. A frame of more than `frame_max` octets is returned, and so is a
        superframe with such segments. `meter` is that of the VNI. Side effects: as in the class.
        """
        transmit_turn(fd, port, kind_mask, frame_max, most, *self._arrays, meter)
