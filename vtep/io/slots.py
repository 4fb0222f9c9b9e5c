"""Memory for the datagrams of one recvmmsg, which lie behind each other as if GRO had joined them.

Where the kernel does not join datagrams (no UDP_GRO, or a device without GRO), each costs a system
call. recvmmsg receives many with one, and the datagrams of a TCP flow have one size. With slots of
exactly that size, they lie in memory as UDP_GRO would have returned them, without a copy.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from collections import Counter
from itertools import groupby
from typing import Final

import numpy as np

from vtep.io import socket_constants as const
from vtep.io.addresses import device_name
from vtep.io.interfaces import Received, ReceivedRun
from vtep.io.mmsg import IOVEC, MMSGHDR, SOCKADDR_MAX, recvmmsg
from vtep.wire import ecn

_COUNT_MAX = 128
"""Slots at most: more datagrams in one call save little per datagram."""

_AREA = 3 << 16
"""Octets of all slots: more would not be in the processor's cache any more when they are merged."""

_PITCH_MIN = 32
_PITCH_MAX = _AREA // 4

_DATAGRAM_MAX = 1 << 16
"""Octets that hold every datagram, and every batch that UDP_GRO joins."""

_PITCH_EVIDENCE = 8
"""Datagrams of one receive from which the pitch is chosen: a few are no stream."""

_NAME_SPACE = 32
_CONTROL_SPACE = 2 * socket.CMSG_SPACE(4)
"""Space for the control messages: the segment size of UDP_GRO, and the TOS or traffic class."""

_ENVELOPE = _NAME_SPACE + _CONTROL_SPACE
_ENVELOPES_MAX = 1024
"""Parsed envelopes that are kept: one for each source port, ECN field and segment size."""

_CMSGHDR = struct.Struct("@Nii")
_SOCKADDR_IN = struct.Struct("!H4s")
_SOCKADDR_IN6 = struct.Struct("!H4x16s")
_SCOPE = struct.Struct("=I")
_INT = struct.Struct("=i")
_FAMILY = struct.Struct("=H")
_LOW_OCTET = 0 if sys.byteorder == "little" else 3
"""Index of the low octet of a traffic class, which is an int; a TOS is one octet."""


class Slots:
    """Adjacent slots for datagrams of one size, and the messages by which recvmmsg fills them.

    Slot i begins at `i * pitch` of `buffer`. The pitch is the size that most datagrams had. A
    longer datagram continues in memory of its own, so that none is ever truncated.
    """

    def __init__(self) -> None:
        # The messages have pointers into these arrays, so those must live as long. Their pages are
        # not resident until they are used, and the overflow memory hardly ever is.
        self._area = np.zeros(_AREA, np.uint8)
        self._overflow = np.zeros((_COUNT_MAX, _DATAGRAM_MAX), np.uint8)
        # An envelope is the source address and the control messages of one datagram.
        self._envelopes = np.zeros((_COUNT_MAX, _ENVELOPE), np.uint8)
        self._envelope_rows = self._envelopes.view(f"V{_ENVELOPE}")[:, 0]
        self._iovecs = np.zeros((_COUNT_MAX, 2), IOVEC)
        self._messages = np.zeros(_COUNT_MAX, MMSGHDR)
        self._messages_at = self._messages.ctypes.data
        self._lengths = self._messages["len"]
        headers, numbers = self._messages["header"], np.arange(_COUNT_MAX)
        envelopes = self._envelopes.ctypes.data + _ENVELOPE * numbers
        headers["name"], headers["control"] = envelopes, envelopes + _NAME_SPACE
        headers["iov"] = self._iovecs.ctypes.data + 2 * IOVEC.itemsize * numbers
        headers["iovlen"] = 2
        self._name_lengths, self._control_lengths = headers["namelen"], headers["controllen"]
        self._iovecs["base"][:, 1] = self._overflow.ctypes.data + _DATAGRAM_MAX * numbers
        self._iovecs["len"][:, 1] = _DATAGRAM_MAX
        self._joined = memoryview(bytearray(_PITCH_MAX + _DATAGRAM_MAX))
        self._parsed: dict[bytes, tuple[int, str, int, int]] = {}
        self._next_pitch = 0
        self.buffer: Final = self._area.data
        """The slots."""
        self.pitch = 0
        """Octets of each slot."""
        self.count = 0
        """The number of slots."""
        self._set_pitch(1472)  # Of a full frame, with the usual MTU of 1500 octets.

    def _set_pitch(self, octets: int) -> None:
        pitch = self.pitch = self._next_pitch = max(_PITCH_MIN, min(octets, _PITCH_MAX))
        self.count = min(_COUNT_MAX, _AREA // pitch)
        self._iovecs["base"][:, 0] = self._area.ctypes.data + pitch * np.arange(_COUNT_MAX)
        self._iovecs["len"][:, 0] = pitch

    def empty(self) -> None:
        """Empty all slots for the next receive, and give them the pitch that suits the last one."""
        if self._next_pitch != self.pitch:
            self._set_pitch(self._next_pitch)

    def fit(self, lengths: list[int]) -> None:
        """Choose the pitch of the next receive by the lengths of the datagrams of this one.

        It changes only to a size that more than half of them had.
        """
        octets, number = Counter(lengths).most_common(1)[0]
        if len(lengths) >= _PITCH_EVIDENCE and 2 * number > len(lengths):
            self._next_pitch = max(_PITCH_MIN, min(octets, _PITCH_MAX))

    def receive(self, fd: int) -> list[ReceivedRun]:
        """Receive datagrams of a UDP socket until all slots are full or no other datagram waits.

        Returns and raises: as in `Receiver.receive_many`.
        """
        self.empty()
        # The kernel has overwritten both with what it used.
        self._name_lengths.fill(SOCKADDR_MAX)
        self._control_lengths.fill(_CONTROL_SPACE)
        while (count := recvmmsg(fd, self._messages_at, self.count, socket.MSG_DONTWAIT, None)) < 0:
            number = ctypes.get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        lengths, rows = self._lengths[:count], self._envelope_rows[:count]
        octets, envelope = int(lengths[0]), rows[0].tobytes()
        of_one_size = lengths.tobytes() == lengths[:1].tobytes() * count
        if of_one_size and rows.tobytes() == envelope * count:
            # One flow: nothing is done for each datagram.
            runs = [(self._record(octets, envelope), count)]
        else:
            pairs = zip(lengths.tolist(), rows.tolist(), strict=True)
            runs = [(self._record(*pair), len([*same])) for pair, same in groupby(pairs)]
        # Control messages are padded with what was there before. That must not tell them apart.
        self._envelopes[:count].fill(0)
        if not of_one_size or octets != self.pitch:
            self.fit(lengths.tolist())
        return runs

    def _record(self, octets: int, envelope: bytes) -> Received:
        parsed = self._parsed.get(envelope)
        if parsed is None:
            parsed = _parse(envelope)
            if len(self._parsed) >= _ENVELOPES_MAX:
                self._parsed.clear()
            if "%" not in parsed[1]:  # Devices can be renamed.
                self._parsed[envelope] = parsed
        stride, host, port, ecn_field = parsed
        return octets, stride or octets, host, port, ecn_field

    def datagram(self, index: int, octets: int) -> memoryview:
        """Return the datagram in a slot, of so many octets.

        A datagram longer than the pitch is copied to memory that the next such call overwrites.
        """
        pitch = self.pitch
        begin = index * pitch
        if octets <= pitch:
            return self.buffer[begin : begin + octets]
        joined = self._joined
        joined[:pitch] = self.buffer[begin : begin + pitch]
        joined[pitch:octets] = self._overflow[index].data[: octets - pitch]
        return joined[:octets]

    def put(self, index: int, datagram: memoryview) -> None:
        """Store a datagram in a slot, as recvmmsg does."""
        begin, pitch = index * self.pitch, self.pitch
        head, rest = datagram[:pitch], datagram[pitch:]
        self.buffer[begin : begin + len(head)] = head
        self._overflow[index].data[: len(rest)] = rest


def _parse(envelope: bytes) -> tuple[int, str, int, int]:
    """Parse a source address, and control messages behind it; an empty one is the last.

    Returns: the segment size of UDP_GRO, or 0; the sender's address and port; the ECN field.
    """
    host, port = _parse_name(envelope)
    stride = ecn_field = 0
    at = _NAME_SPACE
    while at + _CMSGHDR.size <= len(envelope):
        length, level, _ = _CMSGHDR.unpack_from(envelope, at)
        if length < _CMSGHDR.size:
            break
        data = envelope[at + socket.CMSG_LEN(0) : at + length]
        if level == const.SOL_UDP:
            (stride,) = _INT.unpack(data)
        else:
            ecn_field = data[_LOW_OCTET if len(data) > 1 else 0] & ecn.MASK
        at += socket.CMSG_SPACE(len(data))
    return stride, host, port, ecn_field


def _parse_name(name: bytes) -> tuple[str, int]:
    """Parse a struct sockaddr_in or sockaddr_in6. Returns: host and port, as `Receiver.receive`."""
    (family,) = _FAMILY.unpack_from(name)
    if family == socket.AF_INET:
        port, packed = _SOCKADDR_IN.unpack_from(name, 2)
        return socket.inet_ntop(socket.AF_INET, packed), port
    port, packed = _SOCKADDR_IN6.unpack_from(name, 2)
    host = socket.inet_ntop(socket.AF_INET6, packed)
    (scope,) = _SCOPE.unpack_from(name, SOCKADDR_MAX - _SCOPE.size)
    return with_scope(host, scope), port


def with_scope(host: str, scope: int) -> str:
    """Return the address of a source as receivers report it; `scope` is 0 unless link-local."""
    if not scope:
        return host
    try:
        return f"{host}%{device_name(scope)}"
    except OSError:  # The device is gone.
        return f"{host}%{scope}"
