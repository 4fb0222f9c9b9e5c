"""Outer IP header fields that follow the inner header: TOS, TTL, flow label and DF.

They are packed into one integer, so that two frames can be compared by it and a send can cache what
it prepares for it. Its bits from the lowest: 8 of TOS or traffic class, 8 of TTL or hop limit, 20
of flow label, 1 of DF. A field of 0 keeps the value that the socket was set up with.
"""

from functools import partial
from typing import NamedTuple, Protocol

from attrs import frozen

from vtep.wire import Buffer, ecn, ethernet
from vtep.wire.ethernet import NetworkLayer

_TTL = 8
_LABEL = 16
_DF = 36

DF = 1 << _DF
"""The bit that requests DF in the outer IPv4 header."""


class Fields(NamedTuple):
    """Unpacked outer header fields, except DF; 0 keeps the value of the socket."""

    tos: int
    ttl: int
    flowlabel: int


def unpack(packed: int) -> Fields:
    """Unpack TOS or traffic class, TTL or hop limit, and flow label."""
    return Fields(packed & 0xFF, packed >> _TTL & 0xFF, packed >> _LABEL & 0xFFFFF)


class OuterFieldsReader(Protocol):
    """Maps a frame of at least 14 octets to its packed outer header fields."""

    def __call__(self, frame: Buffer, layer: NetworkLayer | None = None) -> int:
        """Return the packed fields; `layer` is the result of `network_layer`, if it is known."""


@frozen
class InheritPolicy:
    """The rules by which outer header fields inherit from the inner header.

    `ecn` is a key of `ecn.ENCAPSULATED`. `tos` is the outer DSCP without `inherit_tos`; its two
    lowest bits are 0.
    """

    ecn: str = "rfc6040"
    tos: int = 0
    inherit_tos: bool = False
    inherit_ttl: bool = False
    inherit_flowlabel: bool = False
    inherit_df: bool = False

    def make_reader(self) -> OuterFieldsReader:
        """Return a function that maps a frame to its packed outer fields.

        The function looks behind VLAN tags, and returns 0 for a frame that is not IP (the kernel's
        tools/testing/selftests/net/l2_tos_ttl_inherit.sh).
        """
        ecn_table = ecn.ENCAPSULATED[self.ecn]
        # The outer TOS octet by the inner one, or 0 where the socket's own TOS is the result.
        outer = [
            (octet & ~ecn.MASK if self.inherit_tos else self.tos) | ecn_table[octet & ecn.MASK]
            for octet in range(256)
        ]
        tos = bytes(0 if octet == self.tos else octet for octet in outer)
        if self.inherit_tos or self.inherit_ttl or self.inherit_flowlabel or self.inherit_df:
            return partial(self._read, tos)

        def read_ecn(frame: Buffer, layer: NetworkLayer | None = None) -> int:
            """Read the packed fields where only ECN is inherited.

            Without a policy this runs for every frame, and hardly any frame has an ECN field that
            is not 0. So it tests the field at its usual offset and parses a frame only if it is
            set.
            """
            try:
                first = frame[12]
                if first == 0x08:  # IPv4, ARP
                    return self._read(tos, frame, layer) if frame[15] & 0x03 else 0
                if first == 0x86:  # IPv6
                    return self._read(tos, frame, layer) if frame[15] & 0x30 else 0
                return self._read(tos, frame, layer) if first in (0x81, 0x88) else 0  # VLAN tags
            except IndexError:  # The frame has 14 octets and no octet 15.
                return 0

        return read_ecn

    def _read(self, tos: bytes, frame: Buffer, layer: NetworkLayer | None = None) -> int:
        """Read the packed outer fields of a frame; `tos` maps the inner TOS to the outer one."""
        ethertype, offset = layer or ethernet.network_layer(frame)
        if ethertype == ethernet.TYPE_IPV4 and offset + 20 <= len(frame):
            packed = tos[frame[offset + 1]]
            if self.inherit_ttl:
                packed |= frame[offset + 8] << _TTL
            if self.inherit_df and frame[offset + 6] & 0x40:
                packed |= DF
            return packed
        if ethertype == ethernet.TYPE_IPV6 and offset + 40 <= len(frame):
            first = int.from_bytes(frame[offset : offset + 4], "big")
            packed = tos[first >> 20 & 0xFF]
            if self.inherit_ttl:
                packed |= frame[offset + 7] << _TTL
            if self.inherit_flowlabel:
                packed |= (first & 0xFFFFF) << _LABEL
            if self.inherit_df:
                packed |= DF  # IPv6 routers never fragment.
            return packed
        return 0
