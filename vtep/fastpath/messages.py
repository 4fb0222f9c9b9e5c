"""The messages that a receive turn gets with one system call, and their control messages."""

import errno
from typing import Final, NamedTuple

from vtep.fastpath import layout
from vtep.fastpath.jit import i64, inlined, recvmmsg
from vtep.fastpath.keys import parse
from vtep.fastpath.layout import Integers, Octets
from vtep.io.socket_constants import SOL_UDP, UDP_GRO
from vtep.wire import ecn, ethernet, vxlan

_TURN_OCTETS: Final = 1 << 18
"""Octets that a turn should receive: what the processor's second cache holds along with the
kernel's copies."""
_TURN_DATAGRAMS: Final = 512
"""Datagrams that a turn should receive. The host handles each of them by itself if they are small
and of UDP, even those that are merged, so that 4096 of them would take some 20 ms."""
_TURN_MESSAGES_MIN: Final = 4

_CMSG_GRO: Final = SOL_UDP | UDP_GRO << 32
"""Level and type of a struct cmsghdr, read as one word."""

_EAGAIN: Final = errno.EAGAIN
_NAME_OCTETS: Final = 8 * (layout.ENVELOPE_CONTROL - layout.ENVELOPE_NAME)
_CONTROL_OCTETS: Final = 8 * (layout.ENVELOPE_IOVEC - layout.ENVELOPE_CONTROL)
_VXLAN_LEN: Final = vxlan.HEADER_LEN
_DATAGRAM_MIN: Final = vxlan.HEADER_LEN + ethernet.HEADER_LEN


class ReceiveArrays(NamedTuple):
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
    meters: Integers


@inlined
def receive_messages(turn: ReceiveArrays, fd: int, most: int) -> int:
    """Receive messages, and read their control messages. Returns: how many messages."""
    messages, result = turn.messages, turn.result
    wanted = min(most, result[layout.RESULT_MOST])
    result[: layout.RESULT_MOST] = 0
    # The kernel has replaced these by what the last message had.
    for message in range(wanted):
        messages[message, layout.MESSAGE_NAME_LEN] = _NAME_OCTETS
        messages[message, layout.MESSAGE_CONTROL_LEN] = _CONTROL_OCTETS
        messages[message, layout.MESSAGE_FLAGS] = 0
    count = recvmmsg(fd, i64(messages.ctypes.data), wanted)
    if count <= 0:
        result[layout.RESULT_ERROR] = 0 if count == -_EAGAIN else -count
        return 0
    total = taken = 0
    for message in range(count):
        octets = i64(messages[message, layout.MESSAGE_OCTETS])
        _read_control(turn, message, octets)
        total += octets
        stride = i64(turn.envelopes[message, layout.ENVELOPE_STRIDE])
        taken += max(1, (octets + stride - 1) // stride)
    result[layout.RESULT_TAKEN] = taken
    result[layout.RESULT_FULL] = count == wanted
    # A turn with 64 messages of 64 KiB would exceed the cache, and delay all else.
    most = min(_TURN_OCTETS * count // (total + 1), _TURN_DATAGRAMS * count // taken)
    result[layout.RESULT_MOST] = min(layout.MESSAGES, max(_TURN_MESSAGES_MIN, most))
    return count


@inlined
def _read_control(turn: ReceiveArrays, message: int, octets: int) -> None:
    """Read the control messages of a message of `octets` octets: stride, and outer ECN field."""
    envelopes = turn.envelopes
    stride, outer_ecn = octets, 0
    at = layout.ENVELOPE_CONTROL
    end = at + min(_CONTROL_OCTETS, i64(turn.messages[message, layout.MESSAGE_CONTROL_LEN])) // 8
    # struct cmsghdr: a word with the length, one with level and type; then the data, padded.
    while at + 2 < end:
        value = i64(envelopes[message, at + 2])
        if i64(envelopes[message, at + 1]) == _CMSG_GRO:
            stride = value & 0xFFFF
        else:  # IP_TOS is one octet, IPV6_TCLASS an int: both have the ECN field in their first.
            outer_ecn = value & ecn.MASK
        at += max(2, (i64(envelopes[message, at]) + 7) // 8)
    envelopes[message, layout.ENVELOPE_STRIDE] = max(1, stride)
    envelopes[message, layout.ENVELOPE_ECN] = outer_ecn


@inlined
def is_separable(data: Octets, at: int, end: int, stride: int) -> bool:
    """Return False if several datagrams may be one: a UDP superframe that was never segmented.

    The first frame then states the length of all. A guest wrote everything behind its headers, and
    could forge datagrams there. So what follows is a datagram only if the first frame can be
    parsed, and ends in its own datagram (see `forwarding.demux.Demux.check_gro_batch`).
    """
    if end - at <= stride:
        return True
    if stride < _DATAGRAM_MIN or end - at > stride * layout.MESSAGE_PARTS:
        return False
    return parse(data, at + _VXLAN_LEN, stride - _VXLAN_LEN)[0] != 0


@inlined
def has_same_source(envelopes: Integers, message: int) -> bool:
    """Return True if a message has the source and the outer ECN field of the one before it."""
    # The port counts here, though not in the key: a flow keeps it, and this is only a short cut.
    if message == 0:
        return False
    this, before = envelopes[message], envelopes[message - 1]
    for word in range(layout.ENVELOPE_NAME, layout.ENVELOPE_CONTROL):
        if this[word] != before[word]:
            return False
    return bool(this[layout.ENVELOPE_ECN] == before[layout.ENVELOPE_ECN])
