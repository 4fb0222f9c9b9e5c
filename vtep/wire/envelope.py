"""What the outer IP header takes from the frame inside: TOS, TTL, flow label, DF.

All of it is one number, a frame's *envelope*, so that frames can be compared by it and what a send
needs for it can be kept. An envelope of 0 says nothing: the header is as its socket was set up.
Bits from the lowest: 8 of TOS or traffic class, 8 of TTL or hop limit, 20 of flow label, 1 of DF.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from attrs import frozen

from vtep.wire import Buffer, ecn, ethernet

_TTL = 8
_LABEL = 16
_DF = 36

DF = 1 << _DF
"""The bit of an envelope that asks for DF in the outer header."""


class Fields(NamedTuple):
    """An envelope taken apart; what is 0 is as the socket was set up."""

    tos: int
    ttl: int
    flowlabel: int


def fields(envelope: int) -> Fields:
    """TOS or traffic class, TTL or hop limit, and flow label of an envelope."""
    return Fields(envelope & 0xFF, envelope >> _TTL & 0xFF, envelope >> _LABEL & 0xFFFFF)


@frozen
class Policy:
    """Which fields follow the inner header.

    `tos` is what the DSCP is otherwise, its two lowest bits 0; `ecn` names a table of
    `ecn.ENCAPSULATED`.
    """

    ecn: str = "rfc6040"
    tos: int = 0
    inherit_tos: bool = False
    inherit_ttl: bool = False
    inherit_flowlabel: bool = False
    inherit_df: bool = False

    def reader(self) -> Callable[[Buffer], int]:
        """A function that gives the envelope of a frame of at least 14 octets.

        It looks through VLAN tags, and what is not IP has nothing to say (the kernel's
        tools/testing/selftests/net/l2_tos_ttl_inherit.sh).
        """
        marks = ecn.ENCAPSULATED[self.ecn]
        # For each inner TOS octet the outer one, or 0 where that is what the socket has anyhow.
        outer = [
            (octet & ~ecn.MASK if self.inherit_tos else self.tos) | marks[octet & ecn.MASK]
            for octet in range(256)
        ]
        tos = bytes(0 if octet == self.tos else octet for octet in outer)
        if self.inherit_tos or self.inherit_ttl or self.inherit_flowlabel or self.inherit_df:
            return partial(self._read, tos)

        def marks_only(frame: Buffer) -> int:
            """Where only ECN follows the frame, which seldom has any."""
            try:
                first = frame[12]
                if first == 0x08:  # IPv4, ARP
                    return self._read(tos, frame) if frame[15] & 0x03 else 0
                if first == 0x86:  # IPv6
                    return self._read(tos, frame) if frame[15] & 0x30 else 0
                return self._read(tos, frame) if first in (0x81, 0x88) else 0  # VLAN tags
            except IndexError:  # 14 octets are a frame.
                return 0

        return marks_only

    def _read(self, tos: bytes, frame: Buffer) -> int:
        ethertype, at = ethernet.network_layer(frame)
        if ethertype == ethernet.TYPE_IPV4 and at + 20 <= len(frame):
            envelope = tos[frame[at + 1]]
            if self.inherit_ttl:
                envelope |= frame[at + 8] << _TTL
            if self.inherit_df and frame[at + 6] & 0x40:
                envelope |= DF
            return envelope
        if ethertype == ethernet.TYPE_IPV6 and at + 40 <= len(frame):
            head = int.from_bytes(frame[at : at + 4], "big")
            envelope = tos[head >> 20 & 0xFF]
            if self.inherit_ttl:
                envelope |= frame[at + 7] << _TTL
            if self.inherit_flowlabel:
                envelope |= (head & 0xFFFFF) << _LABEL
            if self.inherit_df:
                envelope |= DF
            return envelope
        return 0
