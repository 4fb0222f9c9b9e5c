"""The observers of a VNI and of a receiving port, which make events of what passes.

There is one event at a time: an observed VNI handles one frame, or the datagrams of one result,
before the next. So each drop, and each frame that is written to a TAP, belongs to the current
event.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from vtep.capture.addresses import OuterAddresses
from vtep.capture.events import (
    FrameEvent,
    LateLoss,
    ReceivedDatagrams,
    SentBatch,
    SentDatagram,
    SentFrame,
    SentSuperframe,
    WrittenFrame,
)
from vtep.capture.outer_frame import DatagramHeader
from vtep.counters import Drop
from vtep.datapath.observers import DeliverReceived, Send, SendSuperframe, watch_drops
from vtep.datapath.pool import FLOOD_MIN
from vtep.forwarding.fdb import Remote
from vtep.io.interfaces import Received
from vtep.offload.headers import SegmentPlan
from vtep.offload.merge import Merged
from vtep.tunnel_gso.path import SuperframeSender
from vtep.wire import Buffer, virtio, vxlan

if TYPE_CHECKING:
    from vtep.daemon.listener import Listener
    from vtep.daemon.port import Port
    from vtep.datapath.ingress import TapTarget
    from vtep.datapath.transmitter import Transmitter
    from vtep.io.interfaces import TapDevice


class EventSink(Protocol):
    """The owner of the recorders."""

    current: FrameEvent | None
    """The event of what is handled now."""

    def publish(self, event: FrameEvent, port: "PortRecorder | None") -> None:
        """Show an event that is complete to the captures; without a port, it belongs to no VNI."""

    def recorder(self, vni: int) -> "PortRecorder | None":
        """Return the recorder of a VNI; None if it is not captured."""

    @property
    def wants_all(self) -> bool:
        """True if datagrams that belong to no VNI are captured, too."""


class PortRecorder:
    """The observer of the frames that a VNI sends, and of its TAP."""

    transmitter: "Transmitter"

    def __init__(
        self, sink: EventSink, port: "Port", addresses: OuterAddresses, shown: Counter[Drop]
    ) -> None:
        self.port = port
        self.shown = shown
        """The drops so far of which the frame is known, by reason."""
        self._sink = sink
        self._addresses = addresses
        self._tap: TapDevice | None = None
        # The batch that is being sent, and True while its drop is counted.
        self._batch: SentBatch | None = None
        self._is_retried = self._counts_lost = False
        # Batches that wait for room, with their datagrams, which keep their identity.
        self._waiting: dict[int, tuple[memoryview, SentBatch]] = {}

    def attach(self) -> None:
        """Begin to observe."""
        self._tap = tap = self.port.device
        self._read, self._write = tap.read, tap.write
        tap.read, tap.write = self.read, self.write
        watch_drops(self.port.segment.counters, self.on_drop)
        self.port.observe(self)

    def detach(self) -> None:
        """Observe nothing more. The port may have ended."""
        if self._tap is not None:
            self._tap.read, self._tap.write = self._read, self._write
            self._tap = None
        watch_drops(self.port.segment.counters, None)
        self.port.observe(None)

    @property
    def is_current(self) -> bool:
        """True if the port still has the TAP that is observed."""
        return self.port.is_open and self.port.device is self._tap

    @property
    def place(self) -> tuple[int, str]:
        """The VNI, and the name of its TAP."""
        return self.port.config.vni, self.port.tap

    def on_drop(self, reason: Drop, count: int) -> None:
        """Note a drop, which belongs to the current event."""
        event = self._sink.current
        if event is not None and not self._counts_lost:
            event.drop(reason, count)
            self.shown[reason] += count

    # --- the TAP ------------------------------------------------------------------------------

    def read(self, buffers: Sequence[bytearray | memoryview]) -> int:
        """Read a frame, and copy it to the current event."""
        octets = self._read(buffers)
        event = self._sink.current
        if isinstance(event, SentFrame):
            meta, frame = buffers
            event.meta = bytes(meta)
            event.frame = bytes(frame[: octets - virtio.HEADER_LEN])
        return octets

    def write(self, buffers: Sequence[Buffer]) -> int:
        """Write a frame, and copy it to the current event."""
        meta, frame = buffers
        event = self._sink.current
        try:
            octets = self._write(buffers)
        except OSError:
            if isinstance(event, ReceivedDatagrams):
                event.refused = bytes(meta), bytes(frame)
            raise
        if isinstance(event, ReceivedDatagrams):
            event.refused = None
            event.writes.append((bytes(meta), bytes(frame), None))
        elif isinstance(event, SentFrame):
            event.replies.append((bytes(meta), bytes(frame)))
        else:
            self._sink.publish(WrittenFrame(time.time_ns(), bytes(frame)), self)
        return octets

    # --- egress: see `EgressObserver` ---------------------------------------------------------

    def forward(self, forward: Callable[[], None]) -> int:
        """Read and send a frame. Returns: its octets; 0 if there was none."""
        sink = self._sink
        if not self.transmitter.waiting:
            self._waiting.clear()
        sink.current = event = SentFrame(time.time_ns())
        try:
            forward()
        finally:
            sink.current = None
        if event.frame is None:
            return 0
        sink.publish(event, self)
        return len(event.frame) or 1

    def send(
        self,
        send: Send,
        datagrams: memoryview,
        stride: int,
        remotes: Sequence[Remote],
        flow: int,
        now: float,
        skip: int,
    ) -> None:
        """Send datagrams, and copy them to the current event."""
        waiting = self.transmitter.waiting
        known = self._waiting.get(id(datagrams))
        event = self._sink.current
        is_own = False
        if known is not None:
            # It was shown when it was passed here first.
            batch = known[1]
        else:
            is_flood = len(remotes) >= FLOOD_MIN
            header = partial(self._header, flow=flow, now=now, is_flood=is_flood)
            batch = SentBatch(bytes(datagrams), stride, tuple(remotes), header)
            if not isinstance(event, SentFrame):
                # A request of this VTEP, which no frame has caused.
                is_own, event = True, SentFrame(time.time_ns())
            event.batches.append(batch)
        self._batch, self._is_retried = batch, known is not None
        before = len(waiting)
        try:
            send(datagrams, stride, remotes, flow, now, skip)
        finally:
            self._batch = None
        for each in waiting[before:]:
            self._waiting[id(each.datagrams)] = each.datagrams, batch
        if is_own and event is not None:
            self._sink.publish(event, self)

    def drop_sent(
        self,
        drop: Callable[[Drop, Remote, int, memoryview], None],
        reason: Drop,
        remote: Remote,
        count: int,
        left: memoryview,
    ) -> None:
        """Count datagrams that could not be sent, and note which they are."""
        batch = self._batch
        self._counts_lost = True
        try:
            drop(reason, remote, count, left)
        finally:
            self._counts_lost = False
        if batch is None or not left:
            return
        self.shown[reason] += count
        first = (len(batch.octets) - len(left)) // batch.stride
        if self._is_retried:
            self._sink.publish(LateLoss(time.time_ns(), batch, remote, first, count, reason), self)
        else:
            batch.lost.append((remote, first, count, reason))

    def send_superframe(
        self,
        send: SendSuperframe,
        path: SuperframeSender,
        header: bytes,
        frame: memoryview,
        plan: SegmentPlan,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        """Send a superframe, and copy it to the current event."""
        sent = send(path, header, frame, plan, gso, flow, now)
        event = self._sink.current
        if sent and isinstance(event, SentFrame):
            meta = virtio.pack_gso(
                gso.gso_type, gso.hdr_len, gso.gso_size, gso.csum_start, gso.csum_offset
            )
            host = getattr(path, "host", None)
            remote = next((each for each in self.transmitter.paths if each.host == host), None)
            fields = None if remote is None else partial(self._header, remote, flow=flow, now=now)
            event.superframes.append(SentSuperframe(header, meta, bytes(frame), host, fields))
        return sent

    def _header(
        self, remote: Remote, *, flow: int, now: float, is_flood: bool = False
    ) -> DatagramHeader:
        """Return the outer headers of a datagram of a flow to a remote."""
        paths = self.transmitter.paths
        return self._addresses.sent(paths, remote, flow, now, is_flood=is_flood)


class ListenerRecorder:
    """The observer of the datagrams that a receiving port gets."""

    def __init__(
        self, sink: EventSink, listener: "Listener", addresses: OuterAddresses, shown: Counter[Drop]
    ) -> None:
        self.listener = listener
        self.shown = shown
        self._sink = sink
        self._header = partial(addresses.received, listener.endpoint)
        self._sent_header = partial(addresses.echo, listener.endpoint)
        self._rx: Received = 0, 0, "", 0, 0
        self._time_ns = 0
        # The batch that is being delivered, for drops before its datagrams are told apart.
        self._data: memoryview | None = None

    def attach(self) -> None:
        """Begin to observe."""
        watch_drops(self.listener.demux.counters, self.on_drop)
        self.listener.on_reply_sent = self.on_reply_sent
        self.listener.observe(self)

    def detach(self) -> None:
        """Observe nothing more."""
        watch_drops(self.listener.demux.counters, None)
        self.listener.observe(None)

    def on_drop(self, reason: Drop, count: int) -> None:
        """Note a drop of datagrams that belong to no VNI."""
        event = self._sink.current
        if event is not None:
            event.drop(reason, count)
            self.shown[reason] += count
        elif self._data is not None and reason is Drop.GRO_BATCH_MISMATCH:
            # The last ones of a batch, which are dropped before any is delivered.
            data, stride = self._data, self._rx[1]
            total = -(-len(data) // stride)
            dropped = data[max(0, total - count) * stride :]
            self._show_dropped(dropped, self._rx, reason, counted_here=True)

    def on_reply_sent(self, datagram: bytes, host: str, port: int) -> None:
        """Note an echo message of this VTEP."""
        header = partial(self._sent_header, host, port)
        sent = SentDatagram(time.time_ns(), datagram, host, header)
        event = self._sink.current
        if isinstance(event, ReceivedDatagrams):
            event.replies.append(sent)
        else:
            self._sink.publish(sent, self._port_of(datagram))

    # --- ingress: see `IngressObserver` -------------------------------------------------------

    def deliver_received(
        self, deliver: DeliverReceived, data: memoryview, rx: Received, now: float
    ) -> "TapTarget | None":
        """Deliver what a receive has returned."""
        self._rx, self._time_ns, self._data = rx, time.time_ns(), data
        try:
            return deliver(data, rx, now)
        finally:
            self._data = None

    def deliver_run(
        self,
        deliver: Callable[[memoryview, Received, float], None],
        data: memoryview,
        rx: Received,
        now: float,
    ) -> None:
        """Deliver separate datagrams of one size."""
        self._rx, self._time_ns = rx, time.time_ns()
        deliver(data, rx, now)

    def handle_single(
        self,
        handle: "Callable[[memoryview, int, str, int, float], TapTarget | None]",
        data: memoryview,
        stride: int,
        host: str,
        outer_ecn: int,
        now: float,
    ) -> "TapTarget | None":
        """Admit and deliver one datagram."""
        port = self._port_of(data)
        if port is None and not self._sink.wants_all:
            return handle(data, stride, host, outer_ecn, now)
        event = self._event([bytes(data)])
        self._sink.current = event
        try:
            return handle(data, stride, host, outer_ecn, now)
        finally:
            self._end(event, port)

    def merge(
        self, merge: Callable[[memoryview, int], Iterator[Merged]], data: memoryview, stride: int
    ) -> Iterator[Merged]:
        """Merge datagrams, and note the event of each result until the next one is wanted."""
        begin = 0
        for merged in merge(data, stride):
            end = min(begin + merged.datagrams * stride, len(data))
            port = self._port_of(merged.datagram)
            if port is None and not self._sink.wants_all:
                yield merged
            else:
                event = self._event(
                    [bytes(data[at : min(at + stride, end)]) for at in range(begin, end, stride)]
                )
                self._sink.current = event
                try:
                    yield merged
                finally:
                    self._end(event, port)
            begin = end

    def drop_excess(
        self,
        drop: Callable[[memoryview, int, str], None],
        data: memoryview,
        stride: int,
        source: str,
    ) -> None:
        """Drop datagrams of a flow that takes more than its share."""
        drop(data, stride, source)
        self._show_dropped(data, (len(data), stride, source, 0, 0), Drop.RX_FLOW_LIMITED)

    def drop_overlay(
        self,
        drop: Callable[[memoryview, Received, str], None],
        data: memoryview,
        rx: Received,
        device: str,
    ) -> None:
        """Drop datagrams that have arrived from an overlay device."""
        drop(data, rx, device)
        self._show_dropped(data, rx, Drop.OVERLAY_INGRESS, counted_here=True)

    # --- events -------------------------------------------------------------------------------

    def _event(self, datagrams: list[bytes]) -> ReceivedDatagrams:
        _, _, host, port, outer_ecn = self._rx
        return ReceivedDatagrams(self._time_ns, datagrams, host, port, outer_ecn, self._header)

    def _end(self, event: ReceivedDatagrams, port: PortRecorder | None) -> None:
        sink = self._sink
        sink.current = None
        sink.publish(event, port)
        for reply in event.replies:
            sink.publish(reply, port)

    def _port_of(self, datagram: Buffer) -> PortRecorder | None:
        """Return the recorder of the VNI of a datagram; None if it is not captured or not here."""
        if len(datagram) < vxlan.HEADER_LEN:
            return None
        at = vxlan.VNI_OFFSET
        found = self._sink.recorder(int.from_bytes(datagram[at : at + 3], "big"))
        if found is None or self.listener.demux.segments.get(found.port.config.vni) is None:
            return None
        return found

    def _show_dropped(
        self, data: memoryview, rx: Received, reason: Drop, *, counted_here: bool = False
    ) -> None:
        """Publish datagrams that were dropped before they were handled."""
        self._rx, self._time_ns = rx, time.time_ns()
        stride = max(1, rx[1])
        for at in range(0, len(data), stride):
            datagram = bytes(data[at : at + stride])
            port = self._port_of(datagram)
            counts = self.shown if port is None or counted_here else port.shown
            counts[reason] += 1
            if port is not None or self._sink.wants_all:
                event = self._event([datagram])
                event.drops.append((reason, 1))
                self._sink.publish(event, port)
