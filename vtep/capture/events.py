"""Events: a handled frame or datagram, all that became of it, and the records of a capture of it.

The recorders copy octets before the data path changes them. Records are made only if a capture
wants them. Superframes are segmented then, as they are on the wire.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import define, evolve, field

from vtep.counters import Drop
from vtep.offload.split import AuthenticatedError, SplitError, Splitter, finish_checksum
from vtep.wire import virtio, vxlan
from vtep.wire.pcapng import RECEIVED, SENT

if TYPE_CHECKING:
    from vtep.capture.outer_frame import DatagramHeader
    from vtep.forwarding.fdb import Remote

_TAP_REFUSALS: Final = frozenset((Drop.TAP_DOWN, Drop.TAP_REFUSED))
"""Reasons that are about a frame at the TAP, and not about its datagram."""

_REPLY = "reply of this VTEP"
_PROBE = "sent by this VTEP"


class Point(StrEnum):
    """A side of a VTEP at which frames are captured."""

    INNER = "inner"
    """Ethernet frames at the TAP."""
    OUTER = "outer"
    """Datagrams at the underlay."""


@define(eq=False)
class FrameRecord:
    """A frame or datagram at one observation point.

    `octets` are those of an Ethernet frame, or the payload of a datagram, from its VXLAN header on,
    for which `header` returns the outer headers.
    """

    point: Point
    direction: int
    octets: bytes
    packet_id: int
    remote: str | None = None
    reason: Drop | None = None
    comment: str = ""
    header: "Callable[[], DatagramHeader] | None" = None
    time_ns: int = 0
    """Set from that of its event."""


RecordGroup: TypeAlias = list[FrameRecord]
"""The records with one packet id: those of one frame."""


class FrameSplitter:
    """Makes the frames of the wire from frames of a TAP: segments, and complete checksums."""

    @cached_property
    def _splitter(self) -> Splitter:
        # Made at first use, because of its buffer.
        return Splitter(b"")

    def frames(self, header: bytes, frame: bytes, *, superframes: bool) -> list[bytes]:
        """Return the frames that a frame behind a virtio header stands for.

        With `superframes`, a superframe is returned as it is.
        """
        if header == virtio.PLAIN:
            return [frame]
        gso = virtio.unpack(header)
        if gso.gso_type != virtio.GSO_NONE:
            if superframes:
                return [frame]
            try:
                octets, step = self._splitter.split(memoryview(frame), gso)
            except (SplitError, AuthenticatedError):
                return [frame]
            data = self._splitter.out.data
            return [bytes(data[at : min(at + step, octets)]) for at in range(0, octets, step)]
        if gso.flags & virtio.FLAG_NEEDS_CSUM:
            complete = bytearray(frame)
            try:
                finish_checksum(memoryview(complete), gso.csum_start, gso.csum_offset)
            except SplitError:
                return [frame]
            return [bytes(complete)]
        return [frame]


@define(eq=False)
class SentBatch:
    """Datagrams that were passed to one or more remotes."""

    octets: bytes
    stride: int
    remotes: Sequence["Remote"]
    header: "Callable[[Remote], DatagramHeader]"
    lost: "list[tuple[Remote, int, int, Drop]]" = field(factory=list)
    """Remote, index of the first datagram, number, and reason of those that could not be sent."""
    ids: list[int] = field(factory=list)
    """The packet id of each datagram, once there are records."""
    _headers: "dict[Remote, DatagramHeader]" = field(init=False, factory=dict)

    def header_to(self, remote: "Remote") -> "DatagramHeader":
        """Return the outer headers to a remote, which all datagrams have."""
        found = self._headers.get(remote)
        if found is None:
            # It takes system calls, so not for each datagram.
            found = self._headers[remote] = self.header(remote)
        return found

    def datagrams(self) -> list[bytes]:
        """Return the datagrams."""
        return [
            self.octets[at : at + self.stride] for at in range(0, len(self.octets), self.stride)
        ]

    def reason(self, remote: "Remote", index: int) -> Drop | None:
        """Return why a datagram could not be sent to a remote; None if it was."""
        for other, first, count, reason in self.lost:
            if other is remote and first <= index < first + count:
                return reason
        return None


@define(eq=False)
class SentSuperframe:
    """A superframe that was sent with tunnel GSO, behind a VXLAN header."""

    prefix: bytes
    meta: bytes
    """Its virtio header."""
    frame: bytes
    host: str | None
    header: "Callable[[], DatagramHeader] | None"


@define(eq=False)
class FrameEvent:
    """A frame that was handled, in either direction, or datagrams that were."""

    time_ns: int
    drops: list[tuple[Drop, int]] = field(init=False, factory=list)
    """Reasons of drops, with the number of frames, in their order."""
    first_id: int = field(init=False, default=0)
    """The packet id of its first group of records. Those of the others follow."""

    @property
    def addresses(self) -> bytes | None:
        """Both MACs of the frame; None if there is no frame, or more than one."""
        return None

    def drop(self, reason: Drop, count: int) -> None:
        """Note a drop while it is handled."""
        self.drops.append((reason, count))

    def groups(self, splitter: FrameSplitter, *, superframes: bool) -> Iterator[RecordGroup]:
        """Yield its records by packet id. With `superframes`, superframes are not segmented."""
        raise NotImplementedError


def _reason_of(drops: Sequence[tuple[Drop, int]], frames: int) -> Drop | None:
    """Return the reason why all of so many frames were dropped; None if they were not."""
    return next((reason for reason, count in drops if count >= frames), None)


def _partial_drops(drops: Sequence[tuple[Drop, int]], frames: int) -> str:
    """Return a comment about drops of some of so many frames."""
    return "; ".join(
        f"{count} of {frames} dropped: {reason}" for reason, count in drops if count < frames
    )


@define(eq=False)
class SentFrame(FrameEvent):
    """A frame that was read from the TAP, or that this VTEP sends itself; then `frame` is None."""

    meta: bytes = field(init=False, default=virtio.PLAIN)
    """Its virtio header."""
    frame: bytes | None = field(init=False, default=None)
    """The frame, or superframe, before anything was done to it."""
    batches: list[SentBatch] = field(init=False, factory=list)
    superframes: "list[SentSuperframe]" = field(init=False, factory=list)
    replies: list[tuple[bytes, bytes]] = field(init=False, factory=list)
    """Virtio header and frame of what was written to the TAP meanwhile."""

    @property
    def addresses(self) -> bytes | None:
        """Both MACs of the frame; None if replies to it may have others."""
        return None if self.frame is None or self.replies else self.frame[:12]

    def groups(self, splitter: FrameSplitter, *, superframes: bool) -> Iterator[RecordGroup]:
        """Yield its records by packet id."""
        frames: list[bytes] = []
        if self.frame is not None:
            frames = splitter.frames(self.meta, self.frame, superframes=superframes)
        outer = [
            (datagram, batch, index)
            for batch in self.batches
            for index, datagram in enumerate(batch.datagrams())
        ]
        # Frame by frame, unless the segments that were sent are others than the TAP's.
        in_pairs = len(outer) == len(frames) > 1 and all(
            len(datagram) == vxlan.HEADER_LEN + len(frame)
            for (datagram, _, _), frame in zip(outer, frames, strict=True)
        )
        first = self.first_id
        for batch in self.batches:
            batch.ids.clear()
        groups: list[RecordGroup] = [[] for _ in range(max(1, len(frames)))]
        reason = _reason_of(self.drops, max(1, len(frames)))
        comment = _partial_drops(self.drops, max(1, len(frames)))
        if self.replies and not outer and not self.drops and not self.superframes:
            comment = "answered by this VTEP"
        for number, frame in enumerate(frames):
            groups[number].append(
                FrameRecord(Point.INNER, SENT, frame, first + number, None, reason, comment)
            )
        for number, (datagram, batch, index) in enumerate(outer):
            at = number if in_pairs else 0
            batch.ids.append(first + at)
            groups[at] += _sent_datagrams(datagram, batch, index, first + at)
        for sent in self.superframes:
            segments = splitter.frames(sent.meta, sent.frame, superframes=superframes)
            for number, segment in enumerate(segments):
                at = number if len(segments) == len(frames) else 0
                groups[at].append(
                    FrameRecord(
                        *(Point.OUTER, SENT, sent.prefix + segment, first + at, sent.host),
                        header=sent.header,
                    )
                )
        for group in groups:
            _set_remote(group)
        yield from groups
        for number, (meta, frame) in enumerate(self.replies):
            for each in splitter.frames(meta, frame, superframes=True):
                packet_id = first + len(groups) + number
                yield [FrameRecord(Point.INNER, RECEIVED, each, packet_id, comment=_REPLY)]


def _sent_datagrams(
    datagram: bytes, batch: SentBatch, index: int, packet_id: int
) -> Iterator[FrameRecord]:
    """Yield the records of a datagram: one for each remote."""
    for remote in batch.remotes:
        octets = datagram
        if remote.vni is not None:
            at = vxlan.VNI_OFFSET
            octets = datagram[:at] + remote.vni.to_bytes(3, "big") + datagram[at + 3 :]
        yield FrameRecord(
            *(Point.OUTER, SENT, octets, packet_id, remote.host, batch.reason(remote, index)),
            header=partial(batch.header_to, remote),
        )


def _set_remote(group: RecordGroup) -> None:
    """Set the remote of an inner frame, if its datagrams have one only."""
    remotes = {record.remote for record in group if record.point is Point.OUTER}
    if len(remotes) == 1:
        (remote,) = remotes
        for record in group:
            record.remote = remote


@define(eq=False)
class LateLoss(FrameEvent):
    """Datagrams that have waited for room, were shown as sent, and then could not be sent."""

    batch: SentBatch
    remote: "Remote"
    first: int
    count: int
    reason: Drop

    def groups(self, splitter: FrameSplitter, *, superframes: bool) -> Iterator[RecordGroup]:  # noqa: ARG002
        """Yield the datagrams once more, with the reason."""
        datagrams, ids = self.batch.datagrams(), self.batch.ids
        for index in range(self.first, min(self.first + self.count, len(ids))):
            one = evolve(
                self.batch, remotes=(self.remote,), lost=[(self.remote, index, 1, self.reason)]
            )
            yield list(_sent_datagrams(datagrams[index], one, index, ids[index]))


@define(eq=False)
class SentDatagram(FrameEvent):
    """A datagram of this VTEP itself: an echo message."""

    octets: bytes
    host: str
    header: "Callable[[], DatagramHeader]"

    def groups(self, splitter: FrameSplitter, *, superframes: bool) -> Iterator[RecordGroup]:  # noqa: ARG002
        """Yield its record."""
        yield [
            FrameRecord(
                *(Point.OUTER, SENT, self.octets, self.first_id, self.host),
                comment=_PROBE,
                header=self.header,
            )
        ]


@define(eq=False)
class WrittenFrame(FrameEvent):
    """A frame that this VTEP writes to the TAP by itself: a loop probe."""

    frame: bytes

    def groups(self, splitter: FrameSplitter, *, superframes: bool) -> Iterator[RecordGroup]:  # noqa: ARG002
        """Yield its record."""
        record = FrameRecord(Point.INNER, RECEIVED, self.frame, self.first_id, comment=_PROBE)
        record.reason = _reason_of(self.drops, 1)
        yield [record]


@define(eq=False)
class ReceivedDatagrams(FrameEvent):
    """Datagrams of one source that have one result: one, or those of a merged superframe."""

    datagrams: list[bytes]
    host: str
    port: int
    outer_ecn: int
    header: "Callable[[str, int, int], DatagramHeader]"
    """Returns the outer headers by the last three."""
    writes: list[tuple[bytes, bytes, Drop | None]] = field(init=False, factory=list)
    """Virtio header and frame of what was written to the TAP, and why it was refused."""
    refused: tuple[bytes, bytes] | None = field(init=False, default=None)
    """The last frame that the TAP has refused, until it is written in another form."""
    replies: list[SentDatagram] = field(init=False, factory=list)

    def drop(self, reason: Drop, count: int) -> None:
        """Note a drop: of the datagrams, or of the frame that the TAP has refused last."""
        if reason in _TAP_REFUSALS and self.refused is not None:
            self.writes.append((*self.refused, reason))
            self.refused = None
        else:
            self.drops.append((reason, count))

    @property
    def addresses(self) -> bytes | None:
        """Both MACs of the inner frame: all datagrams have the same ones."""
        return self.datagrams[0][vxlan.HEADER_LEN : vxlan.HEADER_LEN + 12]

    def groups(self, splitter: FrameSplitter, *, superframes: bool) -> Iterator[RecordGroup]:
        """Yield its records by packet id."""
        frames = [
            (frame, reason)
            for meta, octets, reason in self.writes
            for frame in splitter.frames(meta, octets, superframes=superframes)
        ]
        datagrams, first = self.datagrams, self.first_id
        if len(datagrams) == 1 and len(frames) > 1:
            # A superframe that arrived in one datagram: on a wire, it would have been segmented.
            datagrams = [datagrams[0][: vxlan.HEADER_LEN] + frame for frame, _ in frames]
        in_pairs = len(datagrams) == len(frames)
        reason = _reason_of(self.drops, len(datagrams))
        comment = _partial_drops(self.drops, len(datagrams))

        fields = partial(self.header, self.host, self.port, self.outer_ecn)
        for number, datagram in enumerate(datagrams):
            about = (first + number, self.host, reason, comment)
            group = [FrameRecord(Point.OUTER, RECEIVED, datagram, *about, header=fields)]
            inner = frames[number : number + 1] if in_pairs else ([] if number else frames)
            group += (
                FrameRecord(Point.INNER, RECEIVED, frame, first + number, self.host, why)
                for frame, why in inner
            )
            yield group


def inner_of(datagram: bytes) -> bytes | None:
    """Return the frame in a datagram; None if there is none, as in an echo message."""
    if len(datagram) < vxlan.HEADER_LEN or not datagram[0] & vxlan.FLAG_I >> 24:
        return None
    return datagram[vxlan.HEADER_LEN :]
