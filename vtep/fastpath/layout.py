"""The layout of the arrays that the slow path and the compiled turns share.

Every column of every array is defined here, once. The arrays are of int64, unless a comment says
otherwise, because numba turns a mix of signed and unsigned integers into floating-point numbers.

A *table* has `ROWS` rows in buckets of `WAYS`. Row `r` is `keys[r]`, `values[r]` and, for the
transmit table, `templates[r]`. A row exists if its key does: `keys[r, KEY_MAC]` is not 0.
"""

from typing import Any, Final, TypeAlias

import numpy as np

Octets: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Integers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

ROWS: Final = 4096
"""Rows of a table: for as many pairs of a MAC and a kind of frame."""

WAYS: Final = 4
"""Rows of a bucket. A key is in one of these or nowhere, so a lookup is bounded."""

# --- keys ---------------------------------------------------------------------------------------

KEY_MAC: Final = 0
"""Bits 0 to 47: the destination MAC (transmit) or the source MAC (receive) of the frame; and:"""
KEY_IPV6: Final = 1 << 48
KEY_TAGGED: Final = 1 << 49
"""The frame has one 802.1Q tag."""
KEY_USED: Final = 1 << 50
"""Set in every key, so that none is 0."""
KEY_LIMITED: Final = 1 << 51
"""The row says what storm control limits. Transmit: the MAC is unknown. Receive: the row has the
meter of a remote, and no MAC. The kind is 0."""

KEY_KIND: Final = 1
"""Bits 0 to 7: the IP protocol. The others begin at these bits:"""
KIND_TYPE: Final = 8
"""The type of ICMP and ICMPv6 (8 bits); 1 if a TCP segment has SYN; else 0."""
KIND_TOS: Final = 16
"""The inner TOS or traffic class (8 bits)."""
KIND_TTL: Final = 24
"""Transmit: the inner TTL or hop limit (8 bits), if the outer header inherits it; else 0."""
KIND_FLOW_LABEL: Final = 32
"""Transmit: the inner flow label (20 bits), if the outer header inherits it; else 0."""
KIND_DF: Final = 52
"""Transmit: the inner DF flag (1 bit), if the outer header inherits it; else 0."""
KIND_OUTER_ECN: Final = 24
"""Receive: the ECN field of the outer IP header (2 bits)."""

KEY_PORT: Final = 2
"""Transmit: the number of the VNI's port. Receive: the number of the receiving socket."""
PORT_GSO: Final = 32
"""Transmit: from this bit of `KEY_PORT` on, the virtio GSO type of a superframe; 0 of a frame."""

TX_KEY_WORDS: Final = 3

KEY_VXLAN_FLAGS: Final = 3
"""Receive: the first word of the VXLAN header (32 bits, in host order)."""
KEY_VXLAN_VNI: Final = 4
"""Receive: the second word: the VNI and the reserved octet."""
KEY_SOURCE: Final = 5
"""Receive: bits 0 to 15 the address family, from bit 16 on an IPv4 address or an IPv6 scope id."""
KEY_SOURCE_V6: Final = 6
"""Receive: this and the next word hold an IPv6 address, as in memory; 0 over IPv4."""

RX_KEY_WORDS: Final = 8

# --- rows of the transmit table -----------------------------------------------------------------

TX_PATH: Final = 0
"""The row of `paths` that has the sockets to the remote."""
TX_SLOT_MASK: Final = 1
"""The slots of the path less 1: the flow hash selects one of them."""
TX_SLOT_BASE: Final = 2
"""0, or the number of slots for datagrams with DF, whose sockets follow the others."""
TX_CONTROL_LEN: Final = 3
"""Octets of control messages in the template, for outer header fields."""
TX_FRAMES: Final = 4
"""Frames that a turn has sent or tried to send, as `Segment.account` counts them."""
TX_OCTETS: Final = 5
TX_SUPERFRAMES: Final = 6
TX_DATAGRAMS: Final = 7
"""Datagrams that were sent."""
TX_CALLS: Final = 8
"""System calls that sent them."""
TX_COLUMNS: Final = 9

TEMPLATE_CONTROL: Final = 8
"""Offset of the control messages in a template (uint8); its first 8 octets are the VXLAN header."""
TEMPLATE_LEN: Final = TEMPLATE_CONTROL + 80

PATHS: Final = 1024
"""Rows of `paths`."""
SLOTS: Final = 128
"""The first columns of `paths`: the descriptor of the socket of each slot; -1 if it is not open."""
PATH_STRIDE_MAX: Final = SLOTS
"""The last column: octets of the largest datagram of a send with UDP_SEGMENT; 0 if every datagram
has to be sent by itself."""

# --- rows of the receive table ------------------------------------------------------------------

RX_TARGET: Final = 0
"""The row of `targets` that has the TAP."""
RX_ADMITTED: Final = 1
"""Frames that a turn has delivered, as `Segment.admit` counts them."""
RX_FRAMES: Final = 2
RX_OCTETS: Final = 3
"""Octets of these frames. A superframe counts as its segments, with their headers."""
RX_SUPERFRAMES: Final = 4
"""Superframes that were merged."""
RX_PARTIAL: Final = 5
"""Frames that were received with a partial checksum, and not merged."""
RX_COLUMNS: Final = 6

TARGETS: Final = 4096
"""Rows of `targets`: VNIs that a process can deliver to on the fast path."""
TARGET_FD: Final = 0
"""The descriptor of the TAP; -1 while frames have to take the slow path."""
TARGET_SEGMENT_MAX: Final = 1
"""Octets of the largest IP packet that is one segment for sure (`SegmentSizes.packet_max`)."""
TARGET_TSO: Final = 2
"""1 if TCP segments may be merged for this TAP, else 0."""
TARGET_USO: Final = 3
"""1 if datagrams of UDP may be merged for this TAP, else 0."""
TARGET_LIMITED: Final = 4
"""1 if storm control limits remotes, else 0. Frames to a group then need a meter."""
TARGET_COLUMNS: Final = 5

# --- storm control ------------------------------------------------------------------------------

METER_GRANTED: Final = 0
"""A meter is a row of `meters` on receipt, and an array for each VNI on transmission. Its first 4
columns are the grants by class (`forwarding.storm.StormClass`), and of the reserve."""
METER_USED: Final = 4
"""The first of 4 columns, in the same order: frames that a turn has delivered or sent."""
METER_DROPPED: Final = 8
"""The first of 3 columns, by class: frames that a turn has dropped."""
METER_SOURCE: Final = 11
"""The first of 3 columns, by class: the source MAC of the last one."""
METER_COLUMNS: Final = 14

METERS: Final = 1024
"""Rows of `meters`: remotes, of all VNIs, whose datagrams turns can limit."""

# --- the receive turn's own arrays --------------------------------------------------------------

MESSAGES: Final = 64
"""Messages that one turn can receive: the rows of `messages` and `envelopes`."""
MESSAGE_OCTETS_MAX: Final = 65536
SLOT: Final = MESSAGE_OCTETS_MAX + 1600
"""Octets of `data` for each message. The excess spreads the beginnings of messages over the sets of
the processor's caches."""
MESSAGE_PARTS: Final = 128
"""Datagrams of one message that a turn separates. The kernel joins 64 (UDP_GRO_CNT_MAX)."""

# A row of `messages` is a struct mmsghdr, in words of 8 octets.
MESSAGE_NAME: Final = 0
MESSAGE_NAME_LEN: Final = 1
MESSAGE_IOVECS: Final = 2
MESSAGE_IOVEC_COUNT: Final = 3
MESSAGE_CONTROL: Final = 4
MESSAGE_CONTROL_LEN: Final = 5
MESSAGE_FLAGS: Final = 6
MESSAGE_OCTETS: Final = 7
MESSAGE_COLUMNS: Final = 8

ENVELOPE_NAME: Final = 0
"""The first of 4 words with the source, a struct sockaddr_in or sockaddr_in6."""
ENVELOPE_CONTROL: Final = 4
"""The first of 8 words for control messages: the size of UDP_GRO, and the TOS or traffic class."""
ENVELOPE_IOVEC: Final = 12
"""The first of 2 words, a struct iovec: the slot of the message."""
ENVELOPE_STRIDE: Final = 14
"""Octets of each datagram of the message; the last one may have fewer."""
ENVELOPE_ECN: Final = 15
"""The ECN field of the outer IP header."""
ENVELOPE_COLUMNS: Final = 16

RETURNED_BEGIN: Final = 0
"""The offset in `data` of what is returned: datagrams, or the virtio header of a frame."""
RETURNED_OCTETS: Final = 1
TX_RETURNED_COLUMNS: Final = 2
RETURNED_STRIDE: Final = 2
"""Receive: octets of each datagram; the last one may have fewer."""
RETURNED_MESSAGE: Final = 3
RX_RETURNED_COLUMNS: Final = 4
RX_RETURNED_MAX: Final = MESSAGES * MESSAGE_PARTS
"""Rows of `returned`: enough if every datagram is returned by itself."""

BUCKETS: Final = 64
"""Rows of `items` and `iovecs`. A flow has the row that its hash selects."""
ITEM_SEGMENTS_MAX: Final = 128
"""Frames of one item."""
ITEM_ROW: Final = 0
"""The row of the table that its frames have."""
ITEM_COUNT: Final = 1
"""Frames in it; 0 if there is no item."""
ITEM_FRAME: Final = 2
"""The offset of the first frame. Offsets of headers count from here on."""
ITEM_OCTETS: Final = 3
"""Octets of the frame, or of the superframe that its frames will be."""
ITEM_IP: Final = 4
ITEM_TRANSPORT: Final = 5
ITEM_HEADER_LEN: Final = 6
"""Octets of all headers; 0 if the frame cannot be merged."""
ITEM_SIZE: Final = 7
"""Octets of payload in every frame but the last."""
ITEM_PROTOCOL: Final = 8
ITEM_PSEUDO: Final = 9
"""The sum of the pseudo-header without its length field."""
ITEM_CHECKSUMS: Final = 10
"""The kind of checksum that all of its frames have (see `receive`)."""
ITEM_IS_PARTIAL: Final = 11
"""1 if the first frame has a partial checksum, else 0."""
ITEM_FLAGS: Final = 12
"""TCP flags of the last frame."""
ITEM_IS_COMPLETE: Final = 13
"""1 if no frame can follow, else 0."""
ITEM_BLOCKED: Final = 14
"""1 if a frame was returned: later ones of its flow have to be returned as well, to keep order."""
ITEM_COLUMNS: Final = 15

ITEM_HEADERS: Final = 192
"""Octets of `data` for each item, behind the slots: a virtio header, and the headers of a
superframe, which has at most 18 + 40 + 60."""

# --- what a turn leaves behind ------------------------------------------------------------------

TOUCHED_MAX: Final = 256
"""Rows that one turn can use. `touched[:n]` are those whose counters are not 0."""

RESULT_TOUCHED: Final = 0
"""The number of rows in `touched`."""
RESULT_TAKEN: Final = 1
"""Frames or messages that were read."""
RESULT_RETURNED: Final = 2
"""The number of rows in `returned`: what the slow path has to handle."""
RESULT_UNSENT: Final = 3
"""Transmit: the number of rows in `unsent`: batches that the kernel did not take."""
RESULT_ERROR: Final = 4
"""The errno of a read or receive, other than EAGAIN; else 0."""
RESULT_DONE: Final = 5
"""Frames or datagrams that were handled here: sent, delivered or put into `unsent`."""
RESULT_LIMITED: Final = 6
"""Transmit: frames that took a grant of storm control, or were dropped for lack of one."""
RESULT_FULL: Final = 7
"""Receive: 1 if as many messages were received as asked for, so that more may wait; else 0."""
RESULT_MOST: Final = 8
"""Receive: the number of messages that the next turn asks for. It is kept from turn to turn."""
RESULTS: Final = 9

# --- the working arrays of a transmit turn ------------------------------------------------------

FRAMES_MAX: Final = 256
"""Frames that one transmit turn can read."""

TX_OCTETS_MAX: Final = 1 << 19
"""Octets after which a transmit turn reads no more: 8 full superframes. The receive turn has to get
its share of the processor, and of the level 2 cache."""

READ_MAX: Final = 65536 + 64
"""Octets of the largest frame with its virtio header and VLAN tags, rounded up."""

CACHE_LINE: Final = 64

DATAGRAMS: Final = 1024
"""Rows of `datagrams`: frames and segments that can wait at once to be sent."""
HEAD_LEN: Final = 128
"""Room for the headers of one segment: VXLAN, Ethernet, IP and TCP have 8 + 18 + 40 + 60 octets at
most."""
HEADS: Final = TX_OCTETS_MAX + 2 * READ_MAX + FRAMES_MAX * CACHE_LINE
"""The arena of a transmit turn has the frames at its start. From this offset on, it has the headers
of segments: `HEAD_LEN` octets for each row of `datagrams`."""
TX_ARENA: Final = HEADS + DATAGRAMS * HEAD_LEN

DATAGRAM_HEAD: Final = 0
"""Offset in the arena of the VXLAN header and of all that follows it there."""
DATAGRAM_HEAD_LEN: Final = 1
DATAGRAM_BODY: Final = 2
"""Offset of the rest: the payload of a segment, which stays where it was read."""
DATAGRAM_BODY_LEN: Final = 3
"""Octets of the rest; 0 of a frame that is sent as it was read."""
DATAGRAM_GROUP: Final = 4
DATAGRAM_NEXT: Final = 5
"""The row of the next datagram of its group; undefined in the last one."""
DATAGRAM_COLUMNS: Final = 6

GROUPS: Final = 1024
"""Rows of `groups`. A *group* has datagrams of one flow, or of several that share a socket, which
one send takes. Its row follows from path and flow hash. If two paths share a row, they merely send
more often."""
GROUP_COUNT: Final = 0
"""Datagrams in the group; 0 if it is closed. The other columns are undefined then."""
GROUP_COUNT_MAX: Final = 1
"""Datagrams that one send takes."""
GROUP_ROW: Final = 2
"""The row of the transmit table, the same for all datagrams."""
GROUP_FLOW: Final = 3
"""The flow hash of the first datagram."""
GROUP_STRIDE: Final = 4
"""Octets of each datagram; the last one may have fewer."""
GROUP_FIRST: Final = 5
"""The rows of the first and of the last datagram."""
GROUP_LAST: Final = 6
GROUP_COLUMNS: Final = 7

SEND_USED: Final = 0
"""The first word of `send`: rows of `datagrams` in use."""
SEND_OPEN: Final = 1
"""Groups that are not closed."""
SEND_FAILED: Final = 2
"""1 more than the row of the first group whose send failed; 0 if none did."""
SEND_ERRNO: Final = 3
"""The errno of that send."""
SEND_KEPT: Final = 4
"""Offset of the end of the last frame that was returned."""
SEND_UNSENT: Final = 5
"""Octets of `unsent_data` in use."""
SEND_MESSAGE: Final = 6
"""The first of 7 words, a struct msghdr. The next three are those of its words that change."""
SEND_IOVECS: Final = SEND_MESSAGE + 3
SEND_CONTROL: Final = SEND_MESSAGE + 4
SEND_CONTROL_LEN: Final = SEND_MESSAGE + 5
SEND_CMSG_STRIDE: Final = SEND_MESSAGE + 7
"""The first of 3 words, the control message UDP_SEGMENT. The stride is in the last one."""
SEND_CMSG_OTHERS: Final = SEND_CMSG_STRIDE + 3
"""The control messages of the template. They follow that of the stride, to be sent with it."""
SEND_BLOCKED: Final = SEND_CMSG_OTHERS + (TEMPLATE_LEN - TEMPLATE_CONTROL) // 8
"""The first of 64 words, by the lowest bits of the flow hash: 1 if a frame was returned, so that
all that follow have to be returned as well."""
SEND_LEN: Final = SEND_BLOCKED + 64

UNSENT_ROW: Final = 0
"""The row of the table for these datagrams."""
UNSENT_FLOW: Final = 1
"""Their flow hash."""
UNSENT_STRIDE: Final = 2
UNSENT_BEGIN: Final = 3
"""Offset in `unsent_data`."""
UNSENT_OCTETS: Final = 4
UNSENT_ERRNO: Final = 5
"""The errno of the send that failed: theirs, or that of datagrams before them."""
UNSENT_COLUMNS: Final = 6
