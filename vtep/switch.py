"""The decisions of a VTEP, without any I/O.

Which remotes a frame goes to, whether a datagram is let in, what is learned from it, what is
dropped and why. Time is passed in. Nothing here raises on hostile input: what is not let in is
counted by reason.
"""

from collections.abc import Iterable, Sequence

from vtep.counters import Counters, Drop
from vtep.fdb import Entry, Fdb, Learned, Remote
from vtep.wire import Buffer, ethernet, vxlan

_INNER_MIN = vxlan.HEADER_LEN + ethernet.HEADER_LEN


class Segment:
    """One VNI: its remotes, what it has learned of them, and its counters.

    The remotes are the only sources that are listened to, and, in their order, the list to which
    frames without a known destination are replicated (head-end replication).
    """

    def __init__(
        self, vni: int, remotes: Iterable[Remote], fdb: Fdb, *, own_mac: bytes, learning: bool
    ) -> None:
        self.vni = vni
        self.fdb = fdb
        self.learning = learning
        self.own_mac = own_mac
        self.counters = Counters()
        self.set_remotes(remotes)

    def set_remotes(self, remotes: Iterable[Remote]) -> None:
        """Have these remotes from now on, and forget what was learned of others."""
        self.remotes = tuple(remotes)
        self._by_host = {remote.host: remote for remote in self.remotes}
        self.fdb.forget_others(self.remotes)

    def destinations(self, frame: Buffer, count: int = 1) -> Sequence[Remote]:
        """Where a frame of at least 14 octets from the TAP goes: one remote, or each of them.

        A superframe goes where the `count` frames go that it stands for.
        """
        entry: Entry | None = self.fdb.lookup(bytes(frame[:6]))
        if entry is not None:
            return entry.destinations
        self.counters.flooded += count
        return self.remotes

    def admit(self, datagram: Buffer, source: str, now: float, count: int = 1) -> bool:
        """Judge and learn from a datagram of this VNI that came from the address `source`.

        True if the frame behind the VXLAN header is to be delivered to the TAP, and to the TAP
        only: a frame from the underlay never goes back there (split horizon). The judgement is that
        of `count` datagrams whose VXLAN header and inner MACs are the same.
        """
        counters = self.counters
        remote = self._by_host.get(source)
        if remote is None:
            counters.drop(Drop.SOURCE_UNKNOWN, source, count)
            return False
        if len(datagram) < _INNER_MIN:
            counters.drop(Drop.INNER_RUNT, source, count)
            return False
        mac = bytes(datagram[14:20])
        if mac[0] & 1 or mac == ethernet.MAC_ZERO:
            counters.drop(Drop.INNER_SOURCE_INVALID, source, count)
            return False
        if mac == self.own_mac:
            counters.drop(Drop.INNER_SOURCE_OWN, source, count)
            return False
        if self.learning:
            learned = self.fdb.learn(mac, remote, now)
            if learned is not Learned.REFRESHED:
                self._count_learned(learned)
        return True

    def _count_learned(self, learned: Learned) -> None:
        if learned is Learned.ADDED:
            self.counters.fdb_learned += 1
        elif learned is Learned.MOVED:
            self.counters.fdb_moved += 1
        else:
            self.counters.fdb_full += 1


class Switch:
    """The segments of one VTEP by VNI; a frame never crosses from one to another.

    Its own counters hold what was dropped before a segment was known.
    """

    def __init__(self, segments: Iterable[Segment]) -> None:
        self.segments = {segment.vni: segment for segment in segments}
        self.counters = Counters()

    def receive(self, datagram: Buffer, source: str, now: float, count: int = 1) -> Segment | None:
        """Judge a datagram from the underlay; the segment to which its frame is to be delivered.

        The frame begins `vxlan.HEADER_LEN` octets into the datagram. Reserved bits are ignored,
        as RFC 7348, section 5, demands. None if it was dropped, which has then been counted.
        `count` is as in `Segment.admit`.
        """
        if len(datagram) < vxlan.HEADER_LEN:
            self.counters.drop(Drop.HEADER_TRUNCATED, source, count)
            return None
        flags, vni_word = vxlan.HEADER.unpack_from(datagram)
        if not flags & vxlan.FLAG_I:
            self.counters.drop(Drop.FLAGS_INVALID, source, count)
            return None
        segment = self.segments.get(vni_word >> 8)
        if segment is None:
            self.counters.drop(Drop.VNI_UNKNOWN, source, count)
            return None
        return segment if segment.admit(datagram, source, now, count) else None
