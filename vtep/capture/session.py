"""One capture: which records it keeps, and its bounded buffer of pcapng octets."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias

from attrs import define, field, frozen

from vtep import __version__
from vtep.capture import outer_frame
from vtep.capture.events import FrameEvent, FrameRecord, Point, RecordGroup, inner_of
from vtep.capture.libpcap import FrameFilter
from vtep.counters import Drop
from vtep.wire.pcapng import (
    InterfaceBlock,
    PacketBlock,
    SectionBlock,
    StatisticsBlock,
)

BUFFER_OCTETS: Final = 4 << 20
"""Octets that wait for the reader of a capture; what does not fit is counted as lost."""

_BLOCKS_MAX = 1 << 16
"""Blocks that wait: small ones take more memory than their octets."""

_DESCRIPTIONS = {
    Point.INNER: "Ethernet frames between the TAP and pyvtep",
    Point.OUTER: "datagrams; pyvtep has filled in Ethernet addresses and what else a UDP socket "
    "does not tell (docs/capture.md)",
}

UNDERLAY: Final = "underlay"
"""The name of the interface for datagrams that belong to no VNI."""


@frozen
class CaptureOptions:
    """The choice of what a capture keeps, and in which form."""

    points: frozenset[Point] = frozenset(Point)
    remote: str | None = None
    mac: bytes | None = None
    drops_only: bool = False
    count: int | None = None
    """Frames after which the capture ends."""
    snaplen: int | None = None
    """Octets of a frame that are kept."""
    superframes: bool = False
    """True to leave superframes unsegmented."""
    names_remotes: bool = False
    """True for a comment with the remote of each inner frame."""


Place: TypeAlias = tuple[int, str] | None
"""The VNI and the TAP that a record belongs to; None for datagrams that belong to no VNI."""


@define(eq=False)
class _Interface:
    """An interface of a capture: its number, and its totals."""

    number: int
    lost: int = 0
    written: int = 0
    lost_since: int = field(default=0)
    """Lost frames that no block has reported yet."""


class CaptureSession:
    """A capture: `offer` appends records to its buffer, and `take` empties it.

    The data path calls `offer`, which never waits. Octets that a reader has not taken yet are
    bounded. What does not fit is counted, and the next block has the number.
    """

    def __init__(
        self, options: CaptureOptions, frame_filter: FrameFilter | None, places: Iterable[Place]
    ) -> None:
        self.options = options
        self.ready = asyncio.Event()
        """Set while octets wait, and after the end."""
        self.ended = ""
        """Why the capture has ended; empty while it has not."""
        self.on_end: Callable[[], None] = lambda: None
        """Called when the capture ends by itself: it has its count of frames."""
        self._filter = frame_filter
        self._waiting: deque[bytes] = deque()
        self._octets = 0
        self._count = 0
        self._started_ns = time.time_ns()
        self._interfaces: dict[tuple[Place, Point], _Interface] = {}
        self._append(SectionBlock(application=f"pyvtep {__version__}", system="Linux").encode())
        for place in places:
            for point in sorted(options.points):
                if place is not None or point is Point.OUTER:
                    self._interface(place, point)

    # --- for the data path --------------------------------------------------------------------

    def may_keep(self, event: FrameEvent) -> bool:
        """Return False if no record of an event is to be kept: so none need be made of it.

        Superframes are segmented for their records, which takes longer than to forward them.
        """
        mac, addresses = self.options.mac, event.addresses
        return mac is None or addresses is None or mac in (addresses[:6], addresses[6:])

    def offer(self, place: Place, groups: Iterable[RecordGroup]) -> None:
        """Append those records that the capture is to keep."""
        for group in groups:
            if self.ended:
                return
            if self._matches(group):
                for record in self._chosen(group):
                    if self._is_wanted(record):
                        self._put(self._interface(place, record.point), record)

    def _chosen(self, group: RecordGroup) -> Iterable[FrameRecord]:
        """Return the records at the chosen points.

        Without the outer point, a datagram that was dropped is shown as the frame in it, since the
        drop could not be seen otherwise.
        """
        points = self.options.points
        if len(points) == len(Point):
            return group
        chosen = [record for record in group if record.point in points]
        if chosen or Point.INNER not in points:
            return chosen
        return [
            FrameRecord(
                *(Point.INNER, record.direction, frame, record.packet_id, record.remote),
                *(record.reason, record.comment),
            )
            for record in group
            if record.reason is not None and (frame := inner_of(record.octets)) is not None
        ]

    def _matches(self, group: RecordGroup) -> bool:
        """Return True if a frame of the group has the MAC, and matches the filter."""
        mac, frame_filter = self.options.mac, self._filter
        if mac is None and frame_filter is None:
            return True
        last: bytes | None = None
        for record in group:
            frame = record.octets if record.point is Point.INNER else inner_of(record.octets)
            if frame is None or frame == last:
                continue
            last = frame
            if mac is not None and mac not in (frame[:6], frame[6:12]):
                continue
            if frame_filter is None or frame_filter.matches(frame):
                return True
        return False

    def _is_wanted(self, record: FrameRecord) -> bool:
        options = self.options
        if options.drops_only and record.reason is None:
            return False
        return options.remote is None or record.remote == options.remote

    def _put(self, interface: _Interface, record: FrameRecord) -> None:
        if self._octets >= BUFFER_OCTETS or len(self._waiting) >= _BLOCKS_MAX:
            interface.lost += 1
            interface.lost_since += 1
            return
        octets = record.octets
        if record.header is not None:
            octets = outer_frame.encode(record.header(), octets)
        kept = octets if self.options.snaplen is None else octets[: self.options.snaplen]
        self._append(
            PacketBlock(
                *(interface.number, record.time_ns, kept, len(octets), record.direction),
                self._comments(record),
                is_dropped=record.reason is not None,
                packet_id=record.packet_id,
                drop_count=interface.lost_since,
            ).encode()
        )
        interface.lost_since = 0
        interface.written += 1
        self._count += 1
        if self._count == self.options.count:
            self.end("it has captured the number of frames that was asked for")
            self.on_end()

    def _comments(self, record: FrameRecord) -> tuple[str, ...]:
        comments = []
        if record.reason is not None:
            comments.append(f"drop {record.reason}: {record.reason.meaning}")
        if record.comment:
            comments.append(record.comment)
        if self.options.names_remotes and record.remote and record.point is Point.INNER:
            comments.append(f"remote {record.remote}")
        return tuple(comments)

    def _interface(self, place: Place, point: Point) -> _Interface:
        """Return an interface, which begins to exist when it is first needed."""
        found = self._interfaces.get((place, point))
        if found is None:
            found = self._interfaces[place, point] = _Interface(len(self._interfaces))
            dev = UNDERLAY if place is None else place[1]
            about = "no vni" if place is None else f"vni {place[0]} dev {place[1]}"
            self._append(
                InterfaceBlock(
                    f"{dev} {point}",
                    f"{about} {point}: {_DESCRIPTIONS[point]}",
                    self._filter.expression if self._filter is not None else "",
                    self.options.snaplen or 0,
                ).encode()
            )
        return found

    def _append(self, block: bytes) -> None:
        self._waiting.append(block)
        self._octets += len(block)
        self.ready.set()

    # --- for the reader -----------------------------------------------------------------------

    def take(self, most: int) -> bytes:
        """Remove and return some blocks: up to `most` octets, but one at least; b"" for none."""
        blocks: list[bytes] = []
        octets, waiting = 0, self._waiting
        while waiting and (not blocks or octets + len(waiting[0]) <= most):
            block = waiting.popleft()
            octets += len(block)
            blocks.append(block)
        self._octets -= octets
        if not waiting and not self.ended:
            self.ready.clear()
        return b"".join(blocks)

    def end(self, why: str) -> None:
        """Capture nothing more."""
        if not self.ended:
            self.ended = why
            self.ready.set()

    def statistics(self, unseen: Mapping[Drop, int]) -> bytes:
        """Return the last blocks: the totals of each interface.

        `unseen` are the drops during the capture of which no frame could be shown.
        """
        notes = [f"end: {self.ended or 'the reader has closed it'}"]
        notes += [
            f"not shown {count} {reason}: {reason.meaning}" for reason, count in unseen.items()
        ]
        blocks: list[bytes] = []
        for interface in self._interfaces.values():
            blocks.append(
                StatisticsBlock(
                    *(interface.number, time.time_ns(), self._started_ns),
                    *(interface.written + interface.lost, interface.lost, interface.written),
                    tuple(notes),
                ).encode()
            )
            notes = []
        return b"".join(blocks)

    def close(self) -> None:
        """Free the filter, and drop what was not taken."""
        if self._filter is not None:
            self._filter.close()
            self._filter = None
        self._waiting.clear()
        self._octets = 0
