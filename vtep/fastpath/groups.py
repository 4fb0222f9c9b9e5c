"""Groups of datagrams that a transmit turn sends with one system call each (UDP_SEGMENT).

A *group* has datagrams of one socket and size, in the order of their flows. A datagram is sent from
where its parts are in the arena of the turn: they are described by struct iovec, not copied.

If a send fails, its datagrams become *unsent*, and so do all that are added to the group later.
"""

from typing import Final, NamedTuple

import numpy as np

from vtep.fastpath import layout
from vtep.fastpath.jit import compiled, i64, inlined, sendmsg
from vtep.fastpath.keys import copy
from vtep.fastpath.layout import Integers, Octets
from vtep.io.path import FLOW_BITS, SEGMENTS_MAX, SEND_MAX

FLOWS: Final = 1 << FLOW_BITS


class Turn(NamedTuple):
    """The arrays of a turn (see `TransmitTurn` and `layout`)."""

    data: Octets
    unsent_data: Octets
    templates: Octets
    keys: Integers
    values: Integers
    paths: Integers
    returned: Integers
    returned_keys: Integers
    unsent: Integers
    datagrams: Integers
    groups: Integers
    iovecs: Integers
    touched: Integers
    result: Integers
    send: Integers
    meter: Integers


@inlined
def socket_of(turn: Turn, row: int, flow: int) -> int:
    """Return the descriptor of the socket for a flow, or -1."""
    values = turn.values[row]
    slot = (flow & values[layout.TX_SLOT_MASK]) + values[layout.TX_SLOT_BASE]
    return i64(turn.paths[values[layout.TX_PATH], slot])


@inlined
def reserve(turn: Turn, count: int) -> bool:
    """Make room for `count` datagrams, if necessary by sending all groups.

    Returns: False if there cannot be room, or if a send failed: a flow with unsent datagrams must
    not continue.
    """
    if turn.send[layout.SEND_USED] + count > layout.DATAGRAMS >= count:
        send_groups(turn)
    return count <= layout.DATAGRAMS and turn.send[layout.SEND_FAILED] == 0


@inlined
def add_datagram(turn: Turn, row: int, flow: int, parts: tuple[int, int, int, int]) -> None:
    """Add a datagram to the group of its flow, and send the group if it is complete.

    `parts` are offset and octets of its head and of its body. If the datagram does not fit into the
    group, that is sent, and the datagram begins another one.
    """
    send, datagrams, values = turn.send, turn.datagrams, turn.values[row]
    octets = parts[1] + parts[3]
    number = values[layout.TX_PATH] * FLOWS + (flow & values[layout.TX_SLOT_MASK])
    number = i64(number) % layout.GROUPS
    group = turn.groups[number]
    # UDP_SEGMENT allows only the last datagram to be shorter, and none to be longer.
    if group[layout.GROUP_COUNT] and (
        group[layout.GROUP_ROW] != row or octets > group[layout.GROUP_STRIDE]
    ):
        _send_group(turn, number)
    index = i64(send[layout.SEND_USED])
    send[layout.SEND_USED] = index + 1
    if group[layout.GROUP_COUNT] == 0:
        _open_group(turn, group, row, flow, octets)
        group[layout.GROUP_FIRST] = index
    else:
        datagrams[group[layout.GROUP_LAST], layout.DATAGRAM_NEXT] = index
    group[layout.GROUP_LAST] = index
    group[layout.GROUP_COUNT] += 1
    for part in range(4):
        datagrams[index, layout.DATAGRAM_HEAD + part] = parts[part]
    datagrams[index, layout.DATAGRAM_GROUP] = number
    is_full = group[layout.GROUP_COUNT] == group[layout.GROUP_COUNT_MAX]
    if is_full or octets < group[layout.GROUP_STRIDE]:
        _send_group(turn, number)


@inlined
def _open_group(turn: Turn, group: Integers, row: int, flow: int, stride: int) -> None:
    """Begin a group with datagrams of `stride` octets."""
    turn.send[layout.SEND_OPEN] += 1
    group[layout.GROUP_ROW], group[layout.GROUP_FLOW] = row, flow
    group[layout.GROUP_STRIDE] = stride
    path = turn.values[row, layout.TX_PATH]
    can_segment = stride <= turn.paths[path, layout.PATH_STRIDE_MAX]
    most = min(SEGMENTS_MAX, SEND_MAX // stride) if can_segment else 1
    group[layout.GROUP_COUNT_MAX] = max(1, most)


@compiled
def send_groups(turn: Turn) -> None:
    """Send all groups. No datagram is in use afterwards."""
    for index in range(turn.send[layout.SEND_USED]):
        number = i64(turn.datagrams[index, layout.DATAGRAM_GROUP])
        if turn.groups[number, layout.GROUP_COUNT]:
            _send_group(turn, number)
    turn.send[layout.SEND_USED] = 0


@compiled
def _send_group(turn: Turn, number: int) -> None:
    """Send a group and close it. What the kernel refuses becomes unsent."""
    group, send = turn.groups[number], turn.send
    count, iovecs = i64(group[layout.GROUP_COUNT]), _fill_iovecs(turn, group)
    group[layout.GROUP_COUNT] = 0
    send[layout.SEND_OPEN] -= 1
    # Only the group that fails first gets more datagrams: the rest of a superframe. No frame is
    # read afterwards.
    if send[layout.SEND_FAILED] == number + 1:
        error = i64(send[layout.SEND_ERRNO])
    else:
        error = _send_iovecs(turn, group, count, iovecs)
    if error == 0:
        turn.values[group[layout.GROUP_ROW], layout.TX_DATAGRAMS] += count
        turn.values[group[layout.GROUP_ROW], layout.TX_CALLS] += 1
        return
    if send[layout.SEND_FAILED] == 0:
        send[layout.SEND_FAILED], send[layout.SEND_ERRNO] = number + 1, error
    _keep_unsent(turn, group, iovecs, error)


@inlined
def _fill_iovecs(turn: Turn, group: Integers) -> int:
    """Describe the datagrams of a group by struct iovec. Returns: how many there are."""
    base, iovecs, count = i64(turn.data.ctypes.data), turn.iovecs, 0
    index = i64(group[layout.GROUP_FIRST])
    for _ in range(group[layout.GROUP_COUNT]):
        datagram = turn.datagrams[index]
        iovecs[count, 0] = base + datagram[layout.DATAGRAM_HEAD]
        iovecs[count, 1] = datagram[layout.DATAGRAM_HEAD_LEN]
        count += 1
        if datagram[layout.DATAGRAM_BODY_LEN]:
            iovecs[count, 0] = base + datagram[layout.DATAGRAM_BODY]
            iovecs[count, 1] = datagram[layout.DATAGRAM_BODY_LEN]
            count += 1
        index = i64(datagram[layout.DATAGRAM_NEXT])
    return count


@inlined
def _send_iovecs(turn: Turn, group: Integers, count: int, iovecs: int) -> int:
    """Send the `count` datagrams that struct iovec describe. Returns: an errno, or 0."""
    send, row = turn.send, i64(group[layout.GROUP_ROW])
    control_len = i64(turn.values[row, layout.TX_CONTROL_LEN])
    if control_len:
        others = send[layout.SEND_CMSG_OTHERS : layout.SEND_BLOCKED].view(np.uint8)
        copy(others, turn.templates[row, layout.TEMPLATE_CONTROL :])
    begin = layout.SEND_CMSG_OTHERS
    if count > 1:
        begin = layout.SEND_CMSG_STRIDE
        control_len += 8 * (layout.SEND_CMSG_OTHERS - layout.SEND_CMSG_STRIDE)
        send[layout.SEND_CMSG_OTHERS - 1] = group[layout.GROUP_STRIDE]
    address = i64(send.ctypes.data)
    send[layout.SEND_IOVECS], send[layout.SEND_CONTROL_LEN] = iovecs, control_len
    send[layout.SEND_CONTROL] = address + 8 * begin
    fd = socket_of(turn, row, i64(group[layout.GROUP_FLOW]))
    return max(0, -sendmsg(fd, address + 8 * layout.SEND_MESSAGE))


@inlined
def _keep_unsent(turn: Turn, group: Integers, iovecs: int, error: int) -> None:
    """Copy the datagrams that struct iovec describe to `unsent_data`, and add them to `unsent`."""
    base, unsent = i64(turn.data.ctypes.data), turn.unsent[turn.result[layout.RESULT_UNSENT]]
    begin = end = i64(turn.send[layout.SEND_UNSENT])
    for index in range(iovecs):
        at, octets = i64(turn.iovecs[index, 0]) - base, i64(turn.iovecs[index, 1])
        copy(turn.unsent_data[end : end + octets], turn.data[at : at + octets])
        end += octets
    turn.send[layout.SEND_UNSENT] = end
    turn.result[layout.RESULT_UNSENT] += 1
    unsent[layout.UNSENT_ROW] = group[layout.GROUP_ROW]
    unsent[layout.UNSENT_FLOW] = group[layout.GROUP_FLOW]
    unsent[layout.UNSENT_STRIDE] = group[layout.GROUP_STRIDE]
    unsent[layout.UNSENT_BEGIN], unsent[layout.UNSENT_OCTETS] = begin, end - begin
    unsent[layout.UNSENT_ERRNO] = error
