"""Decisions about single datagrams from the underlay, kept to be repeated for like ones."""

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias

from vtep.forwarding.fdb import Entry
from vtep.forwarding.segment import Segment
from vtep.wire import ip as inet
from vtep.wire import virtio, vxlan
from vtep.wire.flow import run_key_struct

_DECISIONS_MAX = 4096
"""Decisions that are kept. Beyond it, all are forgotten: that bounds the memory only."""

KINDED_MIN: Final = 32
"""Octets of a datagram in which the fields that tell its `Kind` are."""

_Key: TypeAlias = tuple[str, int, tuple[bytes, ...]]
"""The source host, the octets of the datagram, and those header fields that do not vary in a flow.

They are the VXLAN header, what `wire.flow.run_key_struct` extracts, and the lengths of IP and UDP.
"""


class Kind(NamedTuple):
    """A kind of datagram, by the IP version and the protocol of its frame."""

    unpack: Callable[[memoryview], tuple[Any, ...]]
    """Extracts the header fields of the key."""
    checksum: int
    """The offset of the transport checksum, which is the last field that is looked at."""
    end: int


def _kind(layout: str, checksum: int) -> Kind:
    checksum += vxlan.HEADER_LEN
    return Kind(Struct(layout).unpack_from, checksum, checksum + 2)


_KINDS_BY_PROTOCOL: Final = {
    (4, inet.UDP): _kind("8s18s2x4s2x14s", 40),
    (4, inet.TCP): _kind("8s18s2x4s2x12s8x2s", 50),
    (6, inet.UDP): _kind("8s60s", 60),
    (6, inet.TCP): _kind("8s58s8x2s", 70),
}

KINDS: Final = {
    # By the low octet of the EtherType, 0x0800 or 0x86DD, and the protocol. Other datagrams may
    # have the same ones: their keys equal none, since a key covers the complete EtherType.
    (0x00 if version == 4 else 0xDD, protocol): kind
    for (version, protocol), kind in _KINDS_BY_PROTOCOL.items()
}


class Decision:
    """The decision to deliver a datagram, and how many it was repeated for in this turn.

    It holds for datagrams with the same key, until the tables of the segment change.
    """

    __slots__ = (
        *("count", "entry", "host", "octets", "partial_header", "partial_sum", "refused"),
        "segment",
    )

    def __init__(
        self,
        segment: Segment,
        host: str,
        entry: Entry | None,
        frame: memoryview,
        transport: inet.Transport,
    ) -> None:
        self.segment = segment
        self.host = host
        """The address of the sender."""
        self.entry = entry
        """The FDB entry to refresh; None if nothing is learned."""
        self.octets = len(frame)
        self.partial_sum = inet.pseudo_sum(frame, transport).to_bytes(2, "big")
        """The value of the checksum field if the checksum is partial."""
        # With a partial checksum, TCP may be a superframe, which depends on more than the key.
        self.partial_header: bytes | None = None
        """The virtio header then; None to decide anew."""
        if transport.protocol == inet.UDP:
            offset = inet.CHECKSUM_OFFSET[inet.UDP]
            self.partial_header = virtio.pack_needs_csum(transport.offset, offset)
        self.count = self.refused = 0

    def account(self, now: float) -> None:
        """Count what was repeated since the last call, as `Segment.admit` and a delivery do."""
        count, refused = self.count, self.refused
        self.count = self.refused = 0
        if self.entry is not None:
            self.entry.updated = now
            self.entry.rx_frames += count
        written = count - refused
        self.segment.count_received(self.host, written, written * self.octets, now)


class SingleDecisions(dict[_Key, Decision]):
    """The decisions about single datagrams of one receiving port."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[int] = set()

    def forget(self, _mac: bytes | None = None) -> None:
        """Forget all decisions, since something that they depend on has changed."""
        self.clear()

    def keep(self, datagram: memoryview, host: str, segment: Segment) -> None:
        """Keep the decision that a datagram was delivered as one frame, if it can be repeated.

        Only the second datagram of a flow is worth it: in a scan, each has a flow of its own.
        """
        frame = datagram[vxlan.HEADER_LEN :]
        if segment.has_ingress_policy or segment.strip_vlan or run_key_struct(frame) is None:
            return
        if frame[0] & 1 and segment.storm.limits_remotes:
            return  # Storm control counts each of them.
        transport = inet.find_transport(frame)
        # Padding may be data that a checksum does not cover.
        if transport is None or transport.offset + transport.length != len(frame):
            return
        if transport.protocol == inet.UDP and (
            inet.udp_length(frame, transport) != transport.length
        ):
            return
        kind = _KINDS_BY_PROTOCOL[transport.version, transport.protocol]
        key = host, len(datagram), kind.unpack(datagram)
        if len(self._seen) >= _DECISIONS_MAX:
            self._seen.clear()
        number = hash(key)
        if number not in self._seen:
            self._seen.add(number)
            return
        entry = None
        if segment.learning:
            entry = segment.fdb.find_refreshed(bytes(frame[6:12]), host)
            # The FDB is full, or the entry is sticky: each datagram counts as such.
            if entry is None:
                return
        if len(self) >= _DECISIONS_MAX:
            self.clear()
        self[key] = Decision(segment, host, entry, frame, transport)
