"""From the TAP to the underlay."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from vtep.counters import Drop
from vtep.datapath.observers import EgressObserver, detach
from vtep.datapath.pool import Paths
from vtep.datapath.tap_fallback import count_refused
from vtep.datapath.transmitter import Transmitter
from vtep.datapath.verdicts import EgressVerdicts
from vtep.forwarding.route import NoRoute, Route
from vtep.forwarding.segment import Segment
from vtep.io.interfaces import ReadFrame, TapDevice
from vtep.io.path import FLOW_BITS, POOL_MAX
from vtep.io.tap import Tap
from vtep.offload.headers import SegmentPlan
from vtep.offload.oversize import Outcome
from vtep.offload.partial import SYN_MAX
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import (
    AuthenticatedError,
    SplitError,
    Splitter,
    count_segments,
    finish_checksum,
    finish_checksums,
    plan_segments,
)
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.tunnel_gso.encoder import gso_eligible
from vtep.tunnel_gso.path import SuperframeSender
from vtep.wire import Buffer, ethernet, virtio, vxlan
from vtep.wire.ethernet import NetworkLayer, network_layer
from vtep.wire.flow import UDP_V4_KEY, flow_hash, run_key_struct, superframe_key_struct
from vtep.wire.ip import Transport, tcp_syn

if TYPE_CHECKING:
    from vtep.fastpath.table import FastPath

BUDGET: Final = 192
"""Frames that one direction handles before the event loop serves the other one."""

SUPERFRAME_COST: Final = 23
"""Part of the budget that a superframe uses besides its own frame: so many frames could be handled
in the same time."""

_OCTETS_PER_BUDGET = 2048
"""Octets of a frame that is observed for which it uses as much of the budget as a small one."""

_UNLIMITED = 1 << 30
"""More budget than a turn can use."""

_FRAME_MAX = 65536 + ethernet.HEADER_LEN + 2 * ethernet.TAG_LEN

_RUN_MAX = 65536
"""Octets of a run after which it is sent: UDP_SEGMENT takes no more in one send."""

_RUNS_MAX = 1 << 16
"""Octets of all runs of a turn after which they are sent."""

_DECISIONS_MAX = 4096
"""Decisions and runs that are kept. Beyond it, all are forgotten: that bounds the memory only."""

_HEADER_LEN = vxlan.HEADER_LEN

_PartialChecksum: TypeAlias = tuple[int, int]
"""The offset in a frame from which on to sum, and the offset of the checksum field behind that."""


class Arena:
    """Memory for the frames of one turn and for the segments that are cut from superframes.

    All VNIs of a process share one arena, since their turns do not overlap. Datagrams that must
    outlive a turn are copied (see `Transmitter`).
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_RUNS_MAX + _HEADER_LEN + _FRAME_MAX))
        self.splitter = Splitter(bytes(_HEADER_LEN))
        self.segments = self.splitter.out.data


class Egress:
    """The egress data path of one VNI, which encapsulates and sends the frames of its TAP.

    Frames are read to where they are sent from. Before each, there is space for its VXLAN header,
    and the next frame follows directly. So a run, that is, consecutive frames of the same flow and
    size, lies in memory as a send with UDP_SEGMENT takes it, without a copy. The segments of
    consecutive superframes of one connection form a run, too.

    If there is no room in a send buffer, the TAP is not read. Then frames queue in front of the
    TAP, where their senders notice it. `on_tap_lost` is called when the TAP device is gone.
    """

    def __init__(
        self,
        tap: TapDevice,
        segment: Segment,
        paths: Paths,
        sizing: TunnelSizing,
        tracker: AckTracker,
        arena: Arena,
        on_tap_lost: Callable[[OSError], None],
    ) -> None:
        self._tap = tap
        self._segment = segment
        self._sizing = sizing
        self._tracker = tracker
        self._on_tap_lost = on_tap_lost
        self._arena = arena
        self._transmitter = Transmitter(segment, paths, self._stop_reading, self._start_reading)
        # Bound once: it is called for each run.
        self._send = self._transmitter.send
        # The virtio header of the frame read last. Reads overwrite it.
        self._meta = bytearray(virtio.HEADER_LEN)
        # The last turn had one frame. In request-response traffic the next one is alone, too. So it
        # is sent at once, before a read finds out that no other frame follows.
        self._single_frame_turn = False
        # The flow of the last superframe that was sent with tunnel GSO, and how following ones of
        # this turn are sent.
        self._tunnel_gso_flow = -1
        self._repeat: _Repeat | None = None
        # Runs by route and source port, and decisions by run key.
        self._runs: dict[tuple[Route, int], _Run] = {}
        self._decisions: dict[tuple[bytes, ...] | None, _Decision] = {}
        # Those about frames that storm control limits, which it has to see one by one. They are
        # kept apart, so that other frames need no test for them.
        self._limited_decisions: dict[tuple[bytes, ...] | None, _Decision] = {}
        self._key_struct = UDP_V4_KEY
        segment.verdict_watchers.append(self._forget_decisions)
        # Each remote has POOL_MAX source ports at most. Flows with the same remainder share a port,
        # so that their frames can be sent together.
        self._slots = POOL_MAX - 1
        # Made once: to pack it for each frame would cost more than to copy it.
        self._header = segment.header
        self._verdicts: EgressVerdicts | None = None
        self._is_paused = False

    @property
    def is_waiting(self) -> bool:
        """True while datagrams wait for room in a send buffer."""
        return bool(self._transmitter.waiting)

    def pause(self) -> None:
        """Leave all frames in the TAP until `resume`; datagrams that wait for room are sent."""
        self._is_paused = True
        self._stop_reading()

    def resume(self) -> None:
        """Read the TAP again, in the running event loop."""
        self._is_paused = False
        if not self.is_waiting:
            self._start_reading()

    def start(self) -> None:
        """Start reading the TAP, in the running event loop, unless it is paused."""
        self._transmitter.start()
        self._start_reading()

    def stop(self) -> None:
        """Stop reading the TAP, and discard datagrams that wait for room."""
        self._transmitter.stop()
        self._stop_reading()
        self.use_fast_path(None)

    def use_fast_path(self, fast: "FastPath | None") -> None:
        """Send with compiled turns from now on, or without."""
        if self._verdicts is not None:
            self._verdicts.close()
            self._verdicts = None
        if fast is not None and isinstance(self._tap, Tap):
            self._verdicts = EgressVerdicts(fast, self._tap, self._segment, self._transmitter)

    def observe(self, observer: EgressObserver | None) -> None:
        """Show an observer each frame from now on, one at a time; None ends that.

        The fast path must not be in use meanwhile.
        """
        self._transmitter.observe(observer)
        self._send = self._transmitter.send
        detach(self, ("_forward",))
        if observer is not None:
            setattr(self, "_forward", partial(self._forward_singly, observer))  # noqa: B010

    def _forward_singly(
        self,
        observer: EgressObserver,
        read: ReadFrame,
        budget: int,
        waiting: Sequence[object],
        now: float,
    ) -> None:
        """Read and send as `_forward` does, but send each frame before the next one is read."""
        forward = partial(Egress._forward, self, read, 1, waiting, now)
        while budget > 0 and (octets := observer.forward(forward)):
            budget -= 1 + octets // _OCTETS_PER_BUDGET

    def use_paths(self, paths: Paths) -> None:
        """Send on other paths from now on, and with the VXLAN header of the present policy."""
        self._transmitter.paths = paths
        self._forget_decisions()
        self._header = self._segment.header
        if self._verdicts is not None:
            self._verdicts.use_paths()

    def _start_reading(self) -> None:
        if not self._is_paused:
            asyncio.get_running_loop().add_reader(self._tap.fd, self.readable)

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._tap.fd)

    # --- a turn -------------------------------------------------------------------------------

    def readable(self) -> None:
        """Read frames until there are no more, and send them.

        A compiled turn comes first, if there are any, and leaves some frames, or all.
        """
        now, verdicts = time.monotonic(), self._verdicts
        # An active tracker must see every frame. Datagrams that wait must not be overtaken.
        if verdicts is not None and not self._tracker.active and not self._transmitter.waiting:
            if not verdicts.run(self._sizing.oversize.limit, now):
                return
            if verdicts.has_returned:
                # All of it: no descriptor tells the event loop about what was read already. If
                # datagrams wait for room meanwhile, the others queue behind them.
                self._forward(verdicts.read, _UNLIMITED, (), now)
                if self._verdicts is verdicts:
                    verdicts.learn()
                return
        self._forward(self._tap.read, BUDGET, self._transmitter.waiting, now)

    def _forward(  # noqa: C901, PLR0912, PLR0915  One loop: calls are expensive.
        self, read: ReadFrame, budget: int, waiting: Sequence[object], now: float
    ) -> None:
        """Read frames as far as the budget goes, and send them.

        No more are read once there is something in `waiting`.

        For each frame: read, prepare, route, add to the run of its flow. A decision about a frame
        is kept under its run key, and repeated for each following frame with that key (see
        `_forget_decisions`). What is the same for all frames of a turn is in local variables, since
        an attribute lookup for each frame is measurable.
        """
        splitter = self._arena.splitter
        # An exception may have left superframes of another VNI behind.
        splitter.count = 0
        transmitter, header = self._transmitter, self._header
        meta, buffer = self._meta, self._arena.buffer
        send_next = transmitter.send_next_superframe
        # Longer frames are examined one by one: all frames, if each of them must be.
        frame_max = (
            0
            if self._segment.inspect_egress or self._tracker.active
            else self._sizing.oversize.limit
        )
        # The runs that are not sent yet, in the order in which they began, lie before `end`.
        runs: list[_Run] = []
        end = 0
        decisions, limited_decisions = self._decisions, self._limited_decisions
        storm = self._segment.storm
        meter, limit_group = storm.tap, storm.limit_group
        # The key is read in the way of the last frame that had one: mostly, all are of one kind.
        key_struct = self._key_struct
        read_key, key_octets = key_struct.unpack_from, key_struct.size
        # The parsed virtio header. Most frames have the same one as the frame before.
        last_meta, (gso, frame_partial, frame_min) = virtio.PLAIN, _PLAIN
        repeat = self._repeat = None
        tap_error, single_frame_turn = None, self._single_frame_turn
        # While datagrams wait for room, frames stay in the TAP, which drops new ones if it is full.
        while budget > 0 and not waiting:
            budget -= 1
            body = end + _HEADER_LEN
            try:
                length = read((meta, buffer[body:])) - virtio.HEADER_LEN
            except BlockingIOError:
                break
            except OSError as error:
                # What was read is sent first: the callback may end this egress.
                tap_error = error
                break
            if meta != last_meta:
                last_meta = bytes(meta)
                gso, frame_partial, frame_min = _read_virtio(last_meta)
            to_finish = frame_partial
            # One comparison covers runts, oversize frames, frames to inspect and virtio headers
            # whose checksum field is outside of the frame.
            if gso.gso_type or not frame_min <= length <= frame_max:
                frame = buffer[body : body + length]
                length = 0 if gso.gso_type else self._prepare_for_run(frame, gso, now)
                if not length:
                    # In order: the runs were read before this frame.
                    if runs:
                        self._send_runs(runs, now)
                    end = 0
                    if (
                        repeat is not None
                        and len(frame) == repeat.octets
                        and repeat.read_key(buffer, body) == repeat.key
                        and last_meta == repeat.meta
                        and not transmitter.waiting
                        # Last, as it sends the frame.
                        and send_next(repeat.path, header, frame)
                    ):
                        repeat.count += 1
                        budget -= SUPERFRAME_COST
                        continue
                    self._end_repeat()
                    budget -= self._send_unbatched(frame, gso, now)
                    repeat = self._repeat
                    continue
                # Its checksum is complete, since policies look into the frame.
                to_finish = None
            buffer[end:body] = header
            key = read_key(buffer, body) if length >= key_octets else None
            decision = decisions.get(key)
            if decision is None:
                if meter is not None:
                    # Before the frame is parsed, since a storm must cost little. The lowest bit of
                    # the first octet marks a group (IEEE 802, section 8.2.2).
                    if buffer[body] & 1:
                        if not limit_group(buffer[body : body + length], now):
                            continue
                        decision = limited_decisions.get(key)
                    else:
                        decision = limited_decisions.get(key)
                        if decision is not None and not storm.limit_unknown_unicast(
                            buffer[body : body + length], now
                        ):
                            continue
                if decision is None:
                    frame = buffer[body : body + length]
                    frame_struct = run_key_struct(frame)
                    if frame_struct is None:
                        key = None
                        # A longer frame is no SYN, and short ones are rejected at a fixed offset in
                        # most cases. A frame with a run key is none either.
                        if length <= SYN_MAX and (syn := tcp_syn(frame)) is not None:
                            self._clamp_syn(frame, syn, to_finish)
                            # A frame without a partial checksum does not join a run with one.
                            to_finish = None
                    elif frame_struct is not key_struct or key is None:
                        key_struct = frame_struct
                        read_key, key_octets = key_struct.unpack_from, key_struct.size
                        key = read_key(buffer, body)
                        decision = decisions.get(key)
                    if decision is None:
                        decision = self._decide(frame, key, now)
                        if decision is None:
                            continue
            run, flow = decision
            size = _HEADER_LEN + length
            if size <= run.stride and flow == run.flow and to_finish == run.partial:
                if run.end != end:
                    # Frames of other flows lie between.
                    run.pieces.append(buffer[run.begin : run.end])
                    run.begin = end
                end += size
                run.end = end
                run.octets += size
                # UDP_SEGMENT allows only the last datagram to be shorter.
                complete = size < run.stride
            else:
                if run.stride:
                    self._send_run(run, now)
                elif splitter.count:
                    self._send_segments(now)
                runs.append(run)
                run.flow, run.stride, run.partial, run.octets, run.begin = (
                    flow,
                    size,
                    to_finish,
                    size,
                    end,
                )
                end += size
                run.end = end
                complete, single_frame_turn = single_frame_turn, False
            if complete or run.octets > _RUN_MAX:
                self._send_run(run, now)
                if len(runs) == 1:
                    runs.clear()
                    end = 0
            elif end > _RUNS_MAX:
                self._send_runs(runs, now)
                end = 0
        # At most one of the two holds anything: each is sent before the other one begins.
        self._send_runs(runs, now)
        self._send_segments(now)
        self._end_repeat()
        self._key_struct = key_struct
        # One frame, and the read that found no other one.
        self._single_frame_turn = budget == BUDGET - 2
        if tap_error is not None:
            self._on_tap_lost(tap_error)

    # --- decisions and runs -------------------------------------------------------------------

    def _forget_decisions(self, _mac: bytes | None = None) -> None:
        """Decide anew about each frame.

        A decision depends on the run key, on the tables of the segment, which report their changes,
        and on the paths. The size of a frame, its virtio header, and whether it must be inspected
        are looked at for each frame.
        """
        self._decisions.clear()
        self._limited_decisions.clear()
        self._runs.clear()

    def _decide(
        self, frame: memoryview, run_key: tuple[bytes, ...] | None, now: float
    ) -> "_Decision | None":
        """Decide where a frame goes, and keep the decision if the frame has a run key.

        Returns: None if storm control has dropped the frame.
        """
        segment, decisions = self._segment, self._decisions
        route, meter = segment.route(frame), segment.storm.tap
        if meter is not None and (
            frame[0] & 1 or (meter.limits_unknown_unicast and _is_unknown(route))
        ):
            decisions = self._limited_decisions
            if not frame[0] & 1 and not segment.storm.limit_unknown_unicast(frame, now):
                return None
        flow = self._flow(frame)
        if len(decisions) >= _DECISIONS_MAX or len(self._runs) >= _DECISIONS_MAX:
            self._forget_decisions()
        # Frames of one connection may differ in the outer header fields, as by ECN, but not in the
        # source port. So they are kept in order by one run.
        key = route, flow & self._slots
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = _Run(route)
        decision = run, flow
        if run_key is not None:
            decisions[run_key] = decision
        return decision

    def _flow(self, frame: Buffer, layer: NetworkLayer | None = None) -> int:
        """Return the flow of a frame as `Sender.send` takes it."""
        fields = self._transmitter.paths.outer_fields(frame, layer)
        return flow_hash(frame, layer) & self._slots | fields << FLOW_BITS

    def _send_runs(self, runs: "list[_Run]", now: float) -> None:
        """Send runs in the order in which they began; the list is empty then."""
        for run in runs:
            # One that was sent and has begun again is in the list twice.
            if run.stride:
                self._send_run(run, now)
        runs.clear()

    def _send_run(self, run: "_Run", now: float) -> None:
        """Count a run, finish its checksums and send it; it is empty then."""
        datagrams = self._arena.buffer[run.begin : run.end]
        if run.pieces:
            # To copy small frames takes less time than a send with a list of them.
            datagrams = memoryview(bytearray().join((*run.pieces, datagrams)))
            run.pieces.clear()
        stride, octets, route = run.stride, run.octets, run.route
        run.stride = 0
        if run.partial is not None:
            # All frames of a run have the checksum field at the same offset.
            start, offset = run.partial
            finish_checksums(datagrams, stride, _HEADER_LEN + start, offset)
        count = -(-octets // stride)
        self._segment.account(route, count, octets - count * _HEADER_LEN)
        self._send(datagrams, stride, route.destinations, run.flow, now, 0)

    # --- single frames ------------------------------------------------------------------------

    def _clamp_syn(
        self, frame: memoryview, syn: Transport, partial: _PartialChecksum | None
    ) -> None:
        """Finish the checksum of a SYN, and clamp its MSS."""
        if partial is not None:
            finish_checksum(frame, *partial)
            # With a wrong virtio header the checksum overwrites another field, such as the fragment
            # offset, so `syn` may be outdated.
            parsed = tcp_syn(frame)
            if parsed is None:
                return
            syn = parsed
        self._sizing.on_syn_sent(frame, syn)

    def _prepare_for_run(self, frame: memoryview, gso: virtio.Header, now: float) -> int:
        """Prepare a frame that is not a superframe, but must be examined, to become part of a run.

        Returns: its length then; 0 if the frame has to be sent separately or was dropped.
        """
        if len(frame) > self._sizing.oversize.limit:
            # To be cut, fragmented or answered.
            return 0
        if not self._complete_checksum(frame, gso):
            return 0
        if self._tracker.active:
            self._tracker.on_sent(frame, now)
        return len(self._inspect(frame, now))

    def _complete_checksum(self, frame: memoryview, gso: virtio.Header) -> bool:
        """Finish the partial checksum of a frame, if it has one.

        Returns: False if the frame was dropped, as a runt or because its virtio header is wrong.
        """
        if len(frame) < ethernet.HEADER_LEN:
            self._segment.counters.drop(Drop.TX_RUNT)
            return False
        try:
            if gso.flags & virtio.FLAG_NEEDS_CSUM:
                finish_checksum(frame, gso.csum_start, gso.csum_offset)
        except SplitError:
            self._segment.counters.drop(Drop.TX_MALFORMED)
            return False
        return True

    def _inspect(self, frame: memoryview, now: float) -> memoryview:
        """Apply the policies of the segment to a frame. Returns: what is to be sent, at its start.

        Side effect: replies are written to the TAP.
        """
        segment = self._segment
        if not segment.inspect_egress:
            return frame
        left = segment.inspect(frame, now)
        # Without its VLAN tags the frame begins later. In a run, frames have no gaps.
        frame[: len(left)] = left
        for reply in segment.replies:
            self._write_to_tap(reply)
        segment.replies.clear()
        return frame[: len(left)]

    def _write_to_tap(self, frame: bytes) -> None:
        """Write an answer of this VTEP to the host: an ARP or ND reply, or an ICMP error."""
        try:
            self._tap.write((virtio.PLAIN, frame))
        except OSError as error:
            count_refused(self._segment.counters, error)

    def _send_unbatched(self, frame: memoryview, gso: virtio.Header, now: float) -> int:
        """Send a superframe or an oversize frame.

        Returns: the budget used besides that of one frame.
        """
        oversize = self._sizing.oversize
        if not self._limit_unbatched(frame, gso, now):
            return 0
        if gso.gso_type != virtio.GSO_NONE:
            try:
                self._send_superframe(frame, gso, now)
            except AuthenticatedError:
                pass  # It has one segment, and is sent as the plain frame that it is.
            else:
                return SUPERFRAME_COST
        if (gso.gso_type or len(frame) > oversize.limit) and self._complete_checksum(frame, gso):
            frame = self._inspect(frame, now)
            if len(frame) > oversize.limit:
                layer = network_layer(frame)
                self._send_oversize(frame, layer, (oversize.handle(frame, layer, now),), now)
            elif frame:  # It fits, perhaps without its tags.
                self._send_single(frame, now)
        else:
            return 0
        return SUPERFRAME_COST

    def _limit_unbatched(self, frame: memoryview, gso: virtio.Header, now: float) -> bool:
        """Apply storm control to a superframe or an oversize frame.

        Returns: False if it was dropped.
        """
        storm = self._segment.storm
        if storm.tap is None or len(frame) < ethernet.HEADER_LEN:
            return True
        is_group = frame[0] & 1
        if not is_group and not _is_unknown(self._segment.route(frame)):
            return True
        count = 1
        if gso.gso_type != virtio.GSO_NONE:
            try:
                count = count_segments(frame, gso)
            except AuthenticatedError:
                pass  # It is one frame.
            except SplitError:
                return True  # Dropped, and counted for that, when it is sent.
        elif len(frame) <= self._sizing.oversize.limit:
            return True  # Inspected, or with a wrong virtio header: the policy has dropped it.
        limit = storm.limit_group if is_group else storm.limit_unknown_unicast
        return limit(frame, now, count)

    def _send_single(self, frame: Buffer, now: float) -> None:
        """Send a frame that fits, but is not part of a run."""
        datagram = self._header + frame
        outcome = Outcome(datagram, len(datagram), None)
        self._send_oversize(frame, network_layer(frame), (outcome,), now)

    def _send_oversize(
        self, frame: Buffer, layer: NetworkLayer, outcomes: Iterable[Outcome], now: float
    ) -> None:
        """Send what replaces a frame or superframe that is too large, and answer its sender.

        `frame`, with its network layer, determines the route and the flow of all datagrams.
        """
        self._send_segments(now)
        segment = self._segment
        for datagrams, stride, answer in outcomes:
            if answer is not None:
                self._write_to_tap(answer)
            if datagrams:
                count = -(-len(datagrams) // stride)
                route = segment.route(frame)
                segment.account(route, count, len(datagrams) - count * _HEADER_LEN)
                flow = self._flow(frame, layer)
                self._send(memoryview(datagrams), stride, route.destinations, flow, now, 0)

    def send_requests(self, now: float) -> None:
        """Send the `requests` of the segment. Not to be called within a turn."""
        requests = self._segment.requests
        if self._transmitter.is_stopped or not requests:
            return
        self._arena.splitter.count = 0  # An exception may have left superframes behind.
        for request in requests:
            self._send_single(request, now)
        requests.clear()

    # --- superframes --------------------------------------------------------------------------

    def _send_superframe(self, frame: memoryview, gso: virtio.Header, now: float) -> None:
        """Send a superframe.

        Raises: AuthenticatedError if it must not be split. Nothing has been done then.
        """
        segment = self._segment
        counters = segment.counters
        if len(frame) < ethernet.HEADER_LEN:
            counters.drop(Drop.TX_RUNT)
            return
        if segment.inspect_egress:
            try:
                count = count_segments(frame, gso)
            except SplitError:
                counters.drop(Drop.TX_MALFORMED)
                return
            frame = segment.inspect(frame, now, count)
            if not frame:
                return
        splitter = self._arena.splitter
        if self._tracker.active:
            self._tracker.on_sent(frame, now)
        try:
            if self._transmitter.paths.tunnel_gso and self._send_with_tunnel_gso(frame, gso, now):
                return
            # Segments of consecutive superframes of one connection are sent together.
            if not splitter.count or not splitter.extend(frame, gso):
                self._send_segments(now)
                # The arena is shared, so the splitter may have the prefix of another VNI.
                splitter.prefix = self._header
                splitter.begin(frame, gso)
        except SplitError:
            counters.drop(Drop.TX_MALFORMED)
            return
        counters.tx_superframes += 1
        oversize = self._sizing.oversize
        if splitter.stride > _HEADER_LEN + oversize.limit:
            octets, stride = splitter.finish()
            segments = self._arena.segments[:octets]
            outcomes = oversize.handle_superframe(frame, segments, stride, now)
            self._send_oversize(frame, network_layer(frame), outcomes, now)

    def _send_segments(self, now: float) -> None:
        """Count and send the segments of the superframes in the splitter, if there are any."""
        splitter, segment = self._arena.splitter, self._segment
        count = splitter.count
        if not count:
            return
        octets, stride = splitter.finish()
        head = splitter.head
        route = segment.route(head)
        segment.account(route, count, octets - count * _HEADER_LEN)
        flow = self._flow(head)
        self._send(self._arena.segments[:octets], stride, route.destinations, flow, now, 0)

    def _send_with_tunnel_gso(self, frame: memoryview, gso: virtio.Header, now: float) -> bool:
        """Send a superframe with tunnel GSO if its remote and its form allow it.

        Returns: False if it has to be segmented here.
        Raises: SplitError if the virtio header is wrong.
        """
        route = self._segment.route(frame)
        # An unknown destination is flooded as segments, even if there is one remote.
        if route is self._segment.fdb.default or len(route.destinations) != 1:
            return False
        remote = route.destinations[0]
        if remote.vni is not None:
            # The header would have to be rewritten for it, as `Transmitter` does.
            return False
        paths, sizing, length = self._transmitter.paths, self._sizing, len(frame)
        path = paths.tunnel_gso_path(remote)
        # One superframe that is larger than those proven so far may be sent to test the path.
        track = length > path.gso.track_above and not self._tracker.active
        if not track and length > path.gso.max_len:
            return False
        plan = plan_segments(frame, gso)
        if (
            not gso_eligible(length, plan, gso)
            or plan.header_len + plan.size > sizing.oversize.limit
            # The remote infers the segment size from the announced MSS.
            or not sizing.sizes_out.are_full(frame, plan)
        ):
            return False
        if self._arena.splitter.count:
            # The segments of earlier superframes must not be overtaken.
            self._send_segments(now)
        flow = self._flow(frame)
        if not self._transmitter.send_superframe(path, self._header, frame, plan, gso, flow, now):
            return False
        if track:
            self._tracker.start(frame, plan, path.gso.take_result(), now)
        repeat = _Repeat(path, route, plan, length)
        # A superframe between those of other flows is hardly the first one of several.
        repeats, self._tunnel_gso_flow = flow == self._tunnel_gso_flow, flow
        key_struct = superframe_key_struct(frame) if repeats else None
        if key_struct is None or self._segment.inspect_egress or self._tracker.active:
            self._account_repeat(repeat)
        else:
            repeat.read_key, repeat.key = key_struct.unpack_from, key_struct.unpack_from(frame)
            repeat.meta = bytes(self._meta)
            self._repeat = repeat
        return True

    def _end_repeat(self) -> None:
        """Count the superframes that were sent by the last decision for tunnel GSO, if any."""
        repeat, self._repeat = self._repeat, None
        if repeat is not None:
            self._account_repeat(repeat)

    def _account_repeat(self, repeat: "_Repeat") -> None:
        """Count superframes that were sent with tunnel GSO."""
        count, plan, counters = repeat.count, repeat.plan, self._segment.counters
        segments = plan.segments * count
        counters.tx_superframes += count
        counters.tx_tunnel_gso += count
        counters.tx_datagrams += segments
        counters.tx_syscalls += count
        octets = repeat.octets * count + (segments - count) * plan.header_len
        self._segment.account(repeat.route, segments, octets)


class _Run:
    """Frames with one route, source port and size that are sent together.

    They lie in `pieces`, in this order, and behind those in the arena from `begin` to `end`. A run
    is empty if its `stride` is 0, and kept for the next frames.
    """

    __slots__ = ("begin", "end", "flow", "octets", "partial", "pieces", "route", "stride")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.flow = self.stride = self.octets = self.begin = self.end = 0
        # Partial checksums are finished when the run is sent, for all frames at once.
        self.partial: _PartialChecksum | None = None
        self.pieces: list[memoryview] = []


_Decision: TypeAlias = tuple[_Run, int]
"""The run that a frame belongs to, and its flow, as `Sender.send` takes it."""


class _Repeat:
    """The decision to send a superframe with tunnel GSO, and how many it was carried out for.

    It holds within a turn, for superframes with the same virtio header, length and run key that
    follow each other on `path`.
    """

    __slots__ = ("count", "key", "meta", "octets", "path", "plan", "read_key", "route")

    read_key: Callable[..., tuple[bytes, ...]]
    key: tuple[bytes, ...]
    meta: bytes

    def __init__(
        self, path: SuperframeSender, route: Route, plan: SegmentPlan, octets: int
    ) -> None:
        self.path = path
        self.route = route
        self.plan = plan
        self.octets = octets
        self.count = 1


def _is_unknown(route: Route) -> bool:
    """Return True for the default entry, to which frames with an unknown destination are sent."""
    # Only the default entry has no index.
    return not isinstance(route, NoRoute) and route.index < 0


def _read_virtio(meta: bytes) -> tuple[virtio.Header, _PartialChecksum | None, int]:
    """Parse a virtio header.

    Returns: the header; the partial checksum to be finished, if any; the octets of the shortest
    frame that contains its checksum field.
    """
    gso = virtio.unpack(meta)
    if not gso.flags & virtio.FLAG_NEEDS_CSUM:
        return gso, None, ethernet.HEADER_LEN
    return (
        gso,
        (gso.csum_start, gso.csum_offset),
        max(ethernet.HEADER_LEN, gso.csum_start + gso.csum_offset + 2),
    )


_PLAIN = _read_virtio(virtio.PLAIN)
