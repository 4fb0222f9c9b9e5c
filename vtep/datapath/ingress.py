"""From the underlay to the TAPs."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from vtep.counters import Counters, Drop
from vtep.datapath.egress import BUDGET, SUPERFRAME_COST
from vtep.datapath.fair_sharing import FairSharing
from vtep.datapath.observers import IngressObserver, attach, detach
from vtep.datapath.receive_mode import SINGLES_IN_A_ROW, ReceiveMode
from vtep.datapath.singles import KINDED_MIN, KINDS, Decision, SingleDecisions
from vtep.datapath.superframe_repeat import SuperframeRepeat
from vtep.datapath.tap_fallback import MergeGuard, count_frames, write_without_offload
from vtep.datapath.verdicts import IngressVerdicts
from vtep.forwarding.demux import Demux
from vtep.forwarding.remote_counters import CountersByHost
from vtep.forwarding.segment import Segment
from vtep.io.interfaces import Received, ReceivedRun, Receiver, TapDevice
from vtep.io.slots import Slots
from vtep.offload.merge import Merged, Merger
from vtep.offload.partial import SYN_MAX, is_udp_superframe, virtio_header
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import Splitter
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import ecn, ethernet, virtio, vxlan
from vtep.wire import ip as inet

if TYPE_CHECKING:
    from vtep.fastpath.table import FastPath

log = logging.getLogger("vtep")

_DATAGRAM_MAX = 65536
_BURST_MAX = 3 * _DATAGRAM_MAX
"""Octets of consecutive batches of one flow after which they are merged and delivered. More would
save little per batch, and would not be in the processor's cache any more."""

_MERGE_MIN = 5
"""Datagrams of one size and source that are merged. A merge takes 25 us, and saves 2 us for each
datagram here, and the kernel more than that."""

_SMALL = 256
"""Octets of a datagram whose flow is looked at before a merge is tried."""

_FLOW = slice(34, 46)
"""Addresses and ports of UDP and TCP over IPv4, in a datagram."""

_UNLIMITED = 1 << 30
"""More budget than a turn can use."""

_HEADER_LEN = vxlan.HEADER_LEN


class TapTarget(NamedTuple):
    """The TAP of a segment, with all that is needed to deliver a frame to it."""

    tap: TapDevice
    sizing: TunnelSizing
    tracker: AckTracker
    counters: Counters
    remote_counters: CountersByHost
    """Those of the segment."""
    segment: Segment
    kick_egress: Callable[[], None]
    """Sends the frames that wait in the TAP."""
    fast_path: bool
    """True if compiled turns may deliver to it."""


class Ingress:
    """The ingress data path of one receiving port: it decapsulates datagrams and delivers frames.

    It serves all VNIs of the port. `on_receive_error` is called with errors of a socket.
    """

    def __init__(
        self,
        receivers: Iterable[Receiver],
        demux: Demux,
        on_receive_error: Callable[[OSError], None],
    ) -> None:
        self._receivers = tuple(receivers)
        self._demux = demux
        self._on_receive_error = on_receive_error
        self._targets: dict[Segment, TapTarget] = {}
        # Segments whose TAP does not take superframes of UDP.
        self._without_uso: set[Segment] = set()
        # A burst that is just short of the limit, and one more receive behind it.
        self._buffer = memoryview(bytearray(_BURST_MAX + _DATAGRAM_MAX))
        self._merger = Merger(_HEADER_LEN, uso=True)
        self._slots = Slots()
        self._receive_mode = ReceiveMode()
        # For TAPs whose kernel has refused superframes, by segment and protocol.
        self._guards: dict[tuple[Segment, str], MergeGuard] = {}
        # When a guard may allow again what it does not allow now.
        self._merge_again = inf
        self._splitter = Splitter(b"")
        # The virtio header of the last single datagram that was delivered.
        self._header = virtio.PLAIN
        # Decisions about single datagrams, and those that were repeated and not accounted yet.
        self._decisions = SingleDecisions()
        self._repeated: list[Decision] = []
        # Source, lengths and ECN field of the last superframe.
        self._last_superframe: Received | None = None
        # The last turn had one datagram. In request-response traffic, the host has answered it by
        # the time that its frame was written. So the egress is kicked, which saves the answer a
        # turn of the event loop.
        self._single_frame_turn = False
        self._verdicts: IngressVerdicts | None = None
        self._admit = demux.admit
        self._is_paused = False
        self._sharing = FairSharing(
            self._slots, demux, self.deliver_received, self.deliver_run, on_receive_error
        )

    # --- configuration ------------------------------------------------------------------------

    def attach(
        self,
        segment: Segment,
        tap: TapDevice,
        sizing: TunnelSizing,
        tracker: AckTracker,
        kick_egress: Callable[[], None],
        *,
        fast_path: bool = False,
    ) -> None:
        """Deliver the frames of a segment to a TAP, with `fast_path` also by compiled turns.

        While `tracker` is active, it is shown every frame. `kick_egress` sends the frames that wait
        in the TAP.
        """
        self._targets[segment] = TapTarget(
            *(tap, sizing, tracker, segment.counters, segment.remote_counters, segment),
            *(kick_egress, fast_path),
        )
        if self._verdicts is not None:
            self._verdicts.attach(self._targets[segment])
        self._demux.segments[segment.vni] = segment
        if self._decisions.forget not in segment.verdict_watchers:
            segment.verdict_watchers.append(self._decisions.forget)
        self._decisions.forget()
        if tap.uso:
            self._without_uso.discard(segment)
        else:
            self._without_uso.add(segment)
        self._choose_merger(time.monotonic())

    def detach(self, segment: Segment) -> None:
        """Stop the delivery of frames to a segment."""
        if self._targets.pop(segment, None) is not None:
            del self._demux.segments[segment.vni]
            if self._verdicts is not None:
                self._verdicts.detach(segment)
            self._decisions.forget()
            segment.verdict_watchers.remove(self._decisions.forget)
            self._without_uso.discard(segment)
            for protocol in ("TCP", "UDP"):
                self._guards.pop((segment, protocol), None)
            self._choose_merger(time.monotonic())

    def _choose_merger(self, now: float) -> None:
        """Merge TCP or UDP only if every TAP takes the superframes.

        A batch is merged before it is known to which segments its datagrams belong.
        """
        suspended = {
            protocol: guard.until
            for (_, protocol), guard in self._guards.items()
            if guard.until > now
        }
        self._merge_again = min(suspended.values(), default=inf)
        tso, uso = "TCP" not in suspended, "UDP" not in suspended and not self._without_uso
        if (tso, uso) != (self._merger.tso, self._merger.uso):
            self._merger = Merger(_HEADER_LEN, tso=tso, uso=uso)
        if self._verdicts is not None:
            # Without offload gro, nothing is to be merged.
            gro = all(receiver.gro_enabled for receiver in self._receivers)
            self._verdicts.set_merging(tso=tso and gro, uso=uso and gro)

    def use_fast_path(self, fast: "FastPath | None") -> None:
        """Receive with compiled turns from now on, or without."""
        if self._verdicts is not None:
            self._verdicts.close()
            self._verdicts, self._admit = None, self._demux.admit
        if fast is not None:
            self._verdicts = verdicts = IngressVerdicts(fast, self._demux)
            for target in self._targets.values():
                verdicts.attach(target)
            self._admit = verdicts.admit
            self._choose_merger(time.monotonic())

    def _on_superframe_refused(self, target: TapTarget, header: bytes, now: float) -> None:
        """Suspend merging if the kernel of a TAP refuses too many merged superframes."""
        protocol = "UDP" if header[1] == virtio.GSO_UDP_L4 else "TCP"
        guard = self._guards.setdefault((target.segment, protocol), MergeGuard())
        if not guard.refuse(target.counters.rx_superframes, now):
            return
        if guard.suspensions == 1:
            log.warning(
                "vni %d: offload gro no longer merges %s for the TAP: this kernel refuses such "
                "superframes (see tap_header_refused); they are delivered as single frames, which "
                "is slower, and another kernel version may help",
                *(target.segment.vni, protocol),
            )
        self._choose_merger(now)

    def rebind(self, receivers: Iterable[Receiver]) -> None:
        """Receive from other sockets from now on. The former ones are still open."""
        self.stop()
        self._receivers = tuple(receivers)
        self._receive_mode.clear()
        self._choose_merger(time.monotonic())
        if self._targets:
            self.start()

    def pause(self) -> None:
        """Leave all datagrams in the sockets until `resume`."""
        self._is_paused = True
        self.stop()

    def resume(self) -> None:
        """Receive again, in the running event loop."""
        self._is_paused = False
        if self._targets:
            self.start()

    def start(self) -> None:
        """Start receiving, in the running event loop, unless it is paused."""
        if self._is_paused:
            return
        for receiver in self._receivers:
            asyncio.get_running_loop().add_reader(receiver.fileno(), self.readable, receiver)

    def stop(self) -> None:
        """Stop receiving."""
        for receiver in self._receivers:
            asyncio.get_running_loop().remove_reader(receiver.fileno())

    def observe(self, observer: IngressObserver | None) -> None:
        """Show an observer all that arrives from now on; None ends that.

        Meanwhile, what one receive returns is delivered before the next one, and frames of VNIs
        that are attached with `fast_path` can still be delivered by compiled turns.
        """
        names = ("_receive_singly", "_handle_single", "_merge", "deliver_received", "deliver_run")
        detach(self, names)
        detach(self._demux, ("drop_excess", "drop_overlay"))
        # Receives of many would keep the datagrams of several sources for one delivery.
        self._receive_mode.clear()
        if observer is not None:
            setattr(self, "_receive_singly", self._receive_each)  # noqa: B010
            attach(
                self,
                {
                    "_handle_single": observer.handle_single,
                    "_merge": observer.merge,
                    "deliver_received": observer.deliver_received,
                    "deliver_run": observer.deliver_run,
                },
            )
            attach(
                self._demux,
                {"drop_excess": observer.drop_excess, "drop_overlay": observer.drop_overlay},
            )
        self._sharing.deliver = self.deliver_received
        self._sharing.deliver_run = self.deliver_run

    # --- a turn -------------------------------------------------------------------------------

    def readable(self, receiver: Receiver) -> None:
        """Receive datagrams until there are no more, and deliver their frames.

        A compiled turn comes first, if there are any, and leaves some datagrams, or all.
        """
        now, sharing = time.monotonic(), self._sharing
        if sharing.continues or (self._take_turn(receiver, now) and sharing.is_due(receiver, now)):
            sharing.run(receiver, now, has_compiled_turns=self._verdicts is not None)
            self._account_repeated(now)

    def _take_turn(self, receiver: Receiver, now: float) -> bool:
        """Receive and deliver as far as the budget goes. Returns: True if more may wait."""
        verdicts = self._verdicts
        if verdicts is not None:
            if now >= self._merge_again:
                self._choose_merger(now)
            if not verdicts.run(receiver, now):
                return verdicts.is_full != 0
            if verdicts.has_returned:
                # All of it: no descriptor tells the event loop about what was received already.
                self._receive_singly(verdicts.receive, None, _UNLIMITED, now)
                verdicts.learn(now)
                return verdicts.is_full != 0
        if receiver in self._receive_mode:
            is_full = self._receive_many(receiver, BUDGET, now)
        else:
            is_full = self._receive_singly(receiver.receive, receiver, BUDGET, now)
        if self._repeated:
            self._account_repeated(now)
        return is_full

    def _receive_singly(  # noqa: C901, PLR0912, PLR0915  One loop: calls are expensive.
        self,
        receive: Callable[[memoryview], Received],
        receiver: Receiver | None,
        budget: int,
        now: float,
    ) -> bool:
        """Receive as far as the budget goes, and deliver the frames.

        Returns: True if the budget was used up, so that more may wait.

        `receiver` is the one that `receive` is of, if it may change to receives of many.

        A receive returns one datagram, or a batch that the kernel has joined (UDP_GRO). Consecutive
        batches of one flow are collected in the buffer and merged together, so that a superframe
        can span several of them. Everything else is handled at once.
        """
        buffer = self._buffer
        # The collected burst is buffer[begin:end]; begin == end means that there is none. One
        # source port means one flow or a few (RFC 7348, section 5).
        begin = end = stride = port = outer_ecn = 0
        host = ""
        singles = calls = 0
        repeat: SuperframeRepeat | None = None
        single_frame_turn = self._single_frame_turn
        while budget > 0:
            budget -= 1
            try:
                rx = receive(buffer[end:])
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    self._on_receive_error(error)
                break
            calls += 1
            if repeat is not None:
                if repeat.holds_for(rx, buffer):
                    self._deliver_repeat(repeat, buffer[_HEADER_LEN : rx[0]])
                    budget -= SUPERFRAME_COST
                    continue
                repeat.account(self._admit, now)
                repeat = None
            octets, rx_stride, rx_host, rx_port, rx_ecn = rx
            data = buffer[end : end + octets]
            # With UDP_GRO, the kernel reports the length of each datagram of a batch.
            is_batch = octets > rx_stride
            # A superframe of UDP that was never segmented looks like one as well.
            if is_batch and is_udp_superframe(data[_HEADER_LEN:]):
                octets = self._demux.check_gro_batch(data, rx_stride, rx_host)
                is_batch = octets > 0
            continues = rx_stride == stride and rx_port == port and rx_host == host
            # The order of datagrams is kept: what was collected is delivered first.
            if begin < end and not (is_batch and continues and rx_ecn == outer_ecn):
                self._deliver_burst(buffer[begin:end], stride, host, outer_ecn, now)
                begin = end
            if not is_batch:
                target = self._handle_single(data, rx_stride, rx_host, rx_ecn, now)
                # The buffer is free again, and a run expects the next datagram at its start.
                begin = end = 0
                if target is not None and self._header[1] != virtio.GSO_NONE:
                    # A superframe between those of other sources is hardly the first one of a run.
                    if rx == self._last_superframe and not target.tracker.active:
                        repeat = SuperframeRepeat.begin(target, rx, self._header, data)
                    self._last_superframe = rx
                    budget -= SUPERFRAME_COST
                    singles = 0
                elif single_frame_turn and target is not None:
                    target.kick_egress()
                    if not self._targets:
                        # The egress found its TAP gone, which was the last one.
                        return False
                single_frame_turn = False
                singles += 1
                if singles == SINGLES_IN_A_ROW and receiver is not None:
                    self._receive_mode.enter(receiver)
                    self._slots.fit([octets] * singles)
                    self._demux.counters.rx_syscalls += calls
                    return self._receive_many(receiver, budget, now)
                continue
            singles = 0
            budget -= SUPERFRAME_COST
            stride, host, port, outer_ecn = rx_stride, rx_host, rx_port, rx_ecn
            end += octets
            # A shorter datagram ends a superframe.
            if octets % stride or end > _BURST_MAX:
                self._deliver_burst(buffer[begin:end], stride, host, outer_ecn, now)
                begin = end = 0
        if begin < end:
            self._deliver_burst(buffer[begin:end], stride, host, outer_ecn, now)
        if repeat is not None:
            repeat.account(self._admit, now)
        if receiver is not None:
            self._demux.counters.rx_syscalls += calls
        # One datagram, and the receive that found no other one.
        self._single_frame_turn = budget == BUDGET - 2
        return budget <= 0

    def _receive_each(
        self,
        receive: Callable[[memoryview], Received],
        receiver: Receiver | None,
        budget: int,
        now: float,
    ) -> bool:
        """Receive as `_receive_singly` does, but deliver after each receive."""
        buffer, calls = self._buffer, 0
        while budget > 0:
            try:
                rx = receive(buffer)
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    self._on_receive_error(error)
                break
            self._demux.counters.rx_syscalls += 1
            calls += 1
            budget -= 1 if rx[0] == rx[1] else 1 + SUPERFRAME_COST
            self.deliver_received(buffer[: rx[0]], rx, now)
        if receiver is not None:
            self._demux.counters.rx_syscalls += calls
        return budget <= 0

    def _receive_many(self, receiver: Receiver, budget: int, now: float) -> bool:
        """Receive many datagrams with each call, as far as the budget goes, and deliver them.

        What was received is delivered in this turn, even beyond the budget: it makes no descriptor
        readable. Returns: True if the budget was used up, so that more may wait.
        """
        self._single_frame_turn = False
        slots = self._slots
        merges = receiver.gro_enabled  # Without offload gro, nothing is to be merged.
        most = singles = 0
        while budget > 0:
            try:
                runs = receiver.receive_many(slots)
            except BlockingIOError:
                break
            except OSError as error:
                self._receive_mode.leave(receiver)
                self._on_receive_error(error)
                return False
            self._demux.counters.rx_syscalls += 1
            count, cost = self._deliver_runs(runs, now, merges=merges)
            budget -= cost
            if count > most:
                most = count
                singles = sum(number for (octets, stride, *_), number in runs if octets == stride)
            if count < slots.count:
                break  # The socket was empty. What has arrived meanwhile makes it readable.
        self._receive_mode.end_turn(receiver, most, singles)
        return budget <= 0

    def _deliver_runs(
        self, runs: list[ReceivedRun], now: float, *, merges: bool
    ) -> tuple[int, int]:
        """Deliver the datagrams in the slots, in their order, merged if `merges` and if possible.

        Returns: their number, and the budget used.
        """
        slots = self._slots
        buffer, pitch = slots.buffer, slots.pitch
        end = cost = 0
        ends_burst = False
        for number, (rx, count) in enumerate(runs, 1):
            octets, stride, host, _, outer_ecn = rx
            begin, end = end, end + count
            if merges and octets == stride == pitch and count >= _MERGE_MIN:
                # They lie as in a batch that the kernel has joined.
                burst_end = end * pitch
                following = runs[number][0] if number < len(runs) else None
                if (
                    following is not None
                    and 0 < following[0] == following[1] < pitch
                    and following[2:] == rx[2:]
                ):
                    # A shorter datagram of the same source, as at the end of a superframe.
                    burst_end += following[0]
                    ends_burst = True
                self._deliver_burst(buffer[begin * pitch : burst_end], pitch, host, outer_ecn, now)
                cost += 1 + SUPERFRAME_COST
                continue
            if ends_burst:
                # The first of them was delivered with the burst.
                begin, ends_burst = begin + 1, False
            for index in range(begin, end):
                self.deliver_received(slots.datagram(index, octets), rx, now)
            cost += count if octets == stride else count * (1 + SUPERFRAME_COST)
        return end, cost

    def deliver_received(self, data: memoryview, rx: Received, now: float) -> TapTarget | None:
        """Deliver what one receive has returned: a datagram, or a batch that the kernel joined.

        Returns: where a single datagram was delivered; None for a batch, or if it was dropped.
        """
        octets, stride, host, _, outer_ecn = rx
        is_batch = octets > stride
        if is_batch and is_udp_superframe(data[_HEADER_LEN:]):
            octets = self._demux.check_gro_batch(data, stride, host)
            is_batch = octets > 0
        if is_batch:
            self._deliver_burst(data[:octets], stride, host, outer_ecn, now)
            return None
        return self._handle_single(data, stride, host, outer_ecn, now)

    def deliver_run(self, data: memoryview, rx: Received, now: float) -> None:
        """Deliver separate datagrams of one size, which lie in memory as if joined."""
        _, stride, host, _, outer_ecn = rx
        self._deliver_burst(data, stride, host, outer_ecn, now)

    def handle_datagram(self, datagram: memoryview, rx: Received, now: float) -> None:
        """Handle a single datagram that another socket has received."""
        self.deliver_received(datagram, rx, now)
        self._account_repeated(now)

    def _handle_single(
        self, data: memoryview, stride: int, host: str, outer_ecn: int, now: float
    ) -> TapTarget | None:
        """Admit one datagram and deliver its frame.

        `data` may be a superframe. `stride` is the segment size of one of UDP that the kernel has
        joined, with the VXLAN header, or else the length.

        Returns: where it was delivered, or None. Side effect: sets `_header` if it was.
        """
        kind = None
        # Compiled turns repeat decisions themselves, and learn from those that are made here.
        if stride == len(data) >= KINDED_MIN and not outer_ecn and self._verdicts is None:
            # The low octet of the EtherType, and the protocol of IPv6 or IPv4.
            version = data[21]
            kind = KINDS.get((version, data[28] if version else data[31]))
            if kind is not None and stride >= kind.end:
                decision = self._decisions.get((host, stride, kind.unpack(data)))
                if decision is not None:
                    partial = data[kind.checksum : kind.end] == decision.partial_sum
                    header = decision.partial_header if partial else virtio.PLAIN
                    target = self._targets[decision.segment]
                    if header is not None and not target.tracker.active:
                        target.counters.partial_checksums += partial
                        self._deliver_decided(target, decision, header, data[_HEADER_LEN:])
                        return target
        segment = self._admit(data, host, now)
        if segment is None:
            return None
        target = self._targets[segment]
        frame = data[_HEADER_LEN:]
        # An outer field of 0 changes nothing (RFC 6040, figure 4), and nearly all have it.
        if outer_ecn and not ecn.decapsulate(frame, outer_ecn):
            segment.counters.drop(Drop.CONGESTION, host)
            return None
        self._deliver_single(target, frame, stride, host, now)
        if kind is not None and self._header[1] == virtio.GSO_NONE:
            self._decisions.keep(data, host, segment)
        return target

    def _deliver_decided(
        self, target: TapTarget, decision: Decision, header: bytes, frame: memoryview
    ) -> None:
        """Deliver a frame by a decision about an earlier one."""
        self._header = header
        if not decision.count:
            self._repeated.append(decision)
        decision.count += 1
        try:
            target.tap.write((header, frame))
        except OSError as error:
            decision.refused += 1
            self._write_without_offload(target, frame, header, error, decision.host)

    def _account_repeated(self, now: float) -> None:
        """Count what was delivered by earlier decisions, at the end of a turn."""
        for decision in self._repeated:
            decision.account(now)
        self._repeated.clear()

    def _deliver_repeat(self, repeat: SuperframeRepeat, frame: memoryview) -> None:
        """Deliver a superframe as the one before it. Its run key covers the virtio header."""
        repeat.count += 1
        try:
            repeat.target.tap.write((repeat.header, frame))
        except OSError as error:
            repeat.refused += 1
            args = repeat.target, frame, repeat.header, error, repeat.first[2]
            self._write_without_offload(*args)

    def _deliver_burst(
        self, data: memoryview, stride: int, host: str, outer_ecn: int, now: float
    ) -> None:
        """Merge, admit and deliver the datagrams of consecutive batches of one source."""
        admit = self._admit
        if now >= self._merge_again:
            # The pause of a guard is over.
            self._choose_merger(now)
        last = len(data) - stride
        if len(data) <= (_MERGE_MIN - 1) * stride or (
            # Flows that share a source port: a merge of each with the next one would fail.
            stride <= _SMALL
            and data[_FLOW] != data[stride:][_FLOW]
            and data[_FLOW] != data[last - last % stride :][_FLOW]
        ):
            for begin in range(0, len(data), stride):
                datagram = data[begin : begin + stride]
                self._handle_single(datagram, len(datagram), host, outer_ecn, now)
            return
        for header, frame, datagram, count in self._merge(data, stride):
            segment = admit(datagram, host, now, count)
            if segment is None:
                continue
            # Datagrams with different inner ECN fields are not merged.
            if outer_ecn and not ecn.decapsulate(frame, outer_ecn):
                segment.counters.drop(Drop.CONGESTION, host, count)
                continue
            target = self._targets[segment]
            if header is None:
                self._deliver_single(target, frame, 0, host, now)
            else:
                target.counters.rx_superframes += 1
                left = ethernet.untag(frame) if segment.strip_vlan else frame
                shifted = virtio.shift(header, len(left) - len(frame))
                if not self._deliver(target, left, shifted, host, now):
                    self._on_superframe_refused(target, header, now)

    def _merge(self, data: memoryview, stride: int) -> Iterator[Merged]:
        """Merge a burst. An observer hides this method."""
        return self._merger.merge(data, stride)

    def _deliver_single(
        self, target: TapTarget, frame: memoryview, stride: int, host: str, now: float
    ) -> None:
        """Deliver the frame of one datagram; `stride` is as in `_handle_single`."""
        if target.segment.strip_vlan:
            # Before the virtio header is derived, whose offsets count from the frame's start.
            frame = ethernet.untag(frame)
        if len(frame) <= SYN_MAX and (syn := inet.tcp_syn(frame)) is not None:
            target.sizing.on_syn_received(frame, syn)
        sizes = target.sizing.sizes
        self._header = header = virtio_header(frame, sizes, target.counters, stride)
        if header[1] != virtio.GSO_UDP_L4 or target.tap.uso:
            self._deliver(target, frame, header, host, now)
            return
        # This TAP takes no superframes of UDP (Linux before 6.2).
        octets, step = self._splitter.split(frame, virtio.unpack(header))
        segments = self._splitter.out.data[:octets]
        for at in range(0, octets, step):
            self._deliver(target, segments[at : at + step], virtio.PLAIN, host, now)

    def _deliver(
        self, target: TapTarget, frame: memoryview, header: bytes, host: str, now: float
    ) -> bool:
        """Write a frame or superframe to the TAP and count it. A superframe counts as its segments.

        Returns: False if the kernel refused its virtio header.
        """
        if target.tracker.active:
            # Acknowledgements come from the underlay.
            target.tracker.on_received(frame, now)
        count, octets = 1, len(frame)
        if header[1] != virtio.GSO_NONE:
            count, octets = count_frames(octets, header)
        try:
            target.tap.write((header, frame))
        except OSError as error:
            return not self._write_without_offload(target, frame, header, error, host)
        # As `Segment.count_received`, whose call would cost as much as what it does.
        target.counters.rx_frames += count
        target.counters.rx_bytes += octets
        remote = target.remote_counters[host]
        remote.rx_frames += count
        remote.rx_bytes += octets
        remote.last_rx = now
        return True

    def _write_without_offload(
        self, target: TapTarget, frame: memoryview, header: bytes, error: OSError, host: str
    ) -> bool:
        """Write a refused frame in another form. Returns: True if its virtio header was refused."""
        write, counters = target.tap.write, target.counters
        frames, octets = counters.rx_frames, counters.rx_bytes
        args = frame, header, error, self._splitter, counters
        is_about_header = write_without_offload(write, *args)
        remote = target.remote_counters[host]
        remote.rx_frames += counters.rx_frames - frames
        remote.rx_bytes += counters.rx_bytes - octets
        return is_about_header
