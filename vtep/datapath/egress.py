"""From the TAP to the underlay."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from vtep.counters import Drop
from vtep.datapath.pool import Paths
from vtep.datapath.tap_fallback import count_refused
from vtep.datapath.transmitter import Transmitter
from vtep.forwarding.segment import NoRoute, Route, Segment
from vtep.io.interfaces import TapDevice
from vtep.io.path import FLOW_BITS, POOL_MAX
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
from vtep.wire.flow import flow_hash, run_key_struct, superframe_key_struct
from vtep.wire.ip import Transport, tcp_syn

BUDGET: Final = 64
"""Frames that one direction handles before the event loop serves the other one."""

SUPERFRAME_COST: Final = 7
"""Part of the budget that a superframe uses besides its own frame: so many frames could be handled
in the same time."""

_FRAME_MAX = 65536 + ethernet.HEADER_LEN + 2 * ethernet.TAG_LEN

_RUN_MAX = 65536
"""Octets of a run after which it is sent: UDP_SEGMENT takes no more in one send."""

_HEADER_LEN = vxlan.HEADER_LEN

_PartialChecksum: TypeAlias = tuple[int, int]
"""The offset in a frame from which on to sum, and the offset of the checksum field behind that."""


class Arena:
    """Memory for the frames of one turn and for the segments that are cut from superframes.

    All VNIs of a process share one arena, since their turns do not overlap. Datagrams that must
    outlive a turn are copied (see `Transmitter`).
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_RUN_MAX + _HEADER_LEN + _FRAME_MAX))
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
        # The length of a frame that was read behind a run and not handled yet, or 0.
        self._ahead = 0
        # The flow of the last superframe that was sent with tunnel GSO.
        self._tunnel_gso_flow = -1
        # Each remote has POOL_MAX source ports at most. Flows with the same remainder share a port,
        # so that their frames can be sent together.
        self._slots = POOL_MAX - 1
        # Made once: to pack it for each frame would cost more than to copy it.
        self._header = segment.header

    def start(self) -> None:
        """Start reading the TAP, in the running event loop."""
        self._transmitter.start()
        self._start_reading()

    def stop(self) -> None:
        """Stop reading the TAP, and discard datagrams that wait for room."""
        self._transmitter.stop()
        self._stop_reading()

    def use_paths(self, paths: Paths) -> None:
        """Send on other paths from now on, and with the VXLAN header of the present policy."""
        self._transmitter.paths = paths
        self._header = self._segment.header

    def _start_reading(self) -> None:
        asyncio.get_running_loop().add_reader(self._tap.fd, self.readable)

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._tap.fd)

    # --- a turn -------------------------------------------------------------------------------

    def readable(self) -> None:  # noqa: C901, PLR0912, PLR0915  One loop: calls are expensive.
        """Read frames until there are no more, and send them.

        For each frame: read, prepare, route, add to the run or send the run and begin another.
        What is the same for all frames of a turn is in local variables, since an attribute lookup
        for each frame is measurable.
        """
        now, splitter = time.monotonic(), self._arena.splitter
        # An exception may have left superframes of another VNI behind.
        splitter.count = 0
        segment, transmitter, header = self._segment, self._transmitter, self._header
        read, meta, buffer = self._tap.read, self._meta, self._arena.buffer
        slots, waiting = self._slots, transmitter.waiting
        outer_fields = transmitter.paths.outer_fields
        # Longer frames leave the fast path: all frames, if each of them must be examined.
        frame_max = (
            0 if segment.inspect_egress or self._tracker.active else self._sizing.oversize.limit
        )
        # The current run is buffer[begin:end]; begin == end means that there is none. Each datagram
        # in it has `stride` octets. Partial checksums are finished for the whole run when it is
        # sent, which costs less than for each frame.
        begin = end = flow = stride = 0
        route: Route = _NO_ROUTE
        partial: _PartialChecksum | None = None
        # The parsed virtio header. Most frames have the same one as the frame before.
        last_meta, (gso, frame_partial, frame_min) = virtio.PLAIN, _PLAIN
        tap_error, single_frame_turn = None, self._single_frame_turn
        self._ahead = 0
        budget = BUDGET
        # While datagrams wait for room, frames stay in the TAP, which drops new ones if it is full.
        while budget > 0 and not waiting:
            budget -= 1
            body = end + _HEADER_LEN
            try:
                length = self._ahead or read((meta, buffer[body:])) - virtio.HEADER_LEN
            except BlockingIOError:
                break
            except OSError as error:
                # What was read is sent first: the callback may end this egress.
                tap_error = error
                break
            self._ahead = 0
            if meta != last_meta:
                last_meta = bytes(meta)
                gso, frame_partial, frame_min = _read_virtio(last_meta)
            frame, to_finish = buffer[body : body + length], frame_partial
            # One comparison covers runts, oversize frames, frames to inspect and virtio headers
            # whose checksum field is outside of the frame.
            if gso.gso_type or not frame_min <= length <= frame_max:
                length = 0 if gso.gso_type else self._prepare_for_run(frame, gso, now)
                if not length:
                    # In order: the run was read before this frame.
                    self._send_run(begin, end, stride, route, flow, partial, now)
                    begin = end = 0
                    budget -= self._send_unbatched(frame, gso, now, budget)
                    continue
                # Its checksum is complete, since policies look into the frame.
                frame, to_finish = frame[:length], None
            buffer[end:body] = header
            # A longer frame is no SYN, and short ones are rejected at a fixed offset in most cases.
            if length <= SYN_MAX and (syn := tcp_syn(frame)) is not None:
                self._clamp_syn(frame, syn, to_finish)
                # A frame without a partial checksum does not join a run with one.
                to_finish = None
            frame_route = segment.route(frame)
            frame_flow = flow_hash(frame) & slots | outer_fields(frame) << FLOW_BITS
            size = _HEADER_LEN + length
            # The order of the tests is that of their cost.
            if (
                size <= stride
                and frame_flow == flow
                and frame_route is route
                and to_finish == partial
                and begin < end
            ):
                end += size
                # UDP_SEGMENT allows only the last datagram to be shorter.
                complete = size < stride
                # The second frame of a run suggests that more follow. Of two flows in turn, each
                # frame is the first one of a run, and nothing is read ahead.
                if end - begin == 2 * stride and frame_max:
                    count = self._extend_run(frame, end, budget)
                    end += count * size
                    budget -= count
            else:
                self._send_run(begin, end, stride, route, flow, partial, now)
                if splitter.count:
                    self._send_segments(now)
                begin, end = end, end + size
                stride, route, flow, partial = size, frame_route, frame_flow, to_finish
                complete, single_frame_turn = single_frame_turn, False
            if complete or end > _RUN_MAX or waiting:
                self._send_run(begin, end, stride, route, flow, partial, now)
                begin = end = 0
        # At most one of the two holds anything: each is sent before the other one begins.
        self._send_run(begin, end, stride, route, flow, partial, now)
        self._send_segments(now)
        # One frame, and the read that found no other one.
        self._single_frame_turn = budget == BUDGET - 2
        if tap_error is not None:
            self._on_tap_lost(tap_error)

    def _extend_run(self, frame: memoryview, end: int, most: int) -> int:
        """Read up to `most` following frames to `end` while they match `frame`, the last of a run.

        A frame that matches needs neither parsing nor a route: its run key, its length and its
        virtio header are the same. The first frame that does not match is read ahead.

        Returns: how many frames matched.
        """
        key_struct = run_key_struct(frame)
        if key_struct is None:
            return 0
        read, meta, buffer = self._tap.read, self._meta, self._arena.buffer
        header, run_meta = self._header, bytes(meta)
        unpack, run_key = key_struct.unpack_from, key_struct.unpack_from(frame)
        size, octets = _HEADER_LEN + len(frame), virtio.HEADER_LEN + len(frame)
        # As in `readable`, a run ends with the frame that exceeds _RUN_MAX.
        most = min(most, (_RUN_MAX - end) // size + 1)
        count = 0
        try:
            while count < most:
                body = end + _HEADER_LEN
                got = read((meta, buffer[body:]))
                if got != octets or unpack(buffer, body) != run_key or meta != run_meta:
                    self._ahead = got - virtio.HEADER_LEN
                    break
                buffer[end:body] = header
                end += size
                count += 1
        except OSError:
            # There are no more frames, or there is no TAP: the caller's next read finds out.
            pass
        return count

    def _send_run(
        self,
        begin: int,
        end: int,
        stride: int,
        route: Route,
        flow: int,
        partial: _PartialChecksum | None,
        now: float,
    ) -> None:
        """Count the run in `buffer[begin:end]`, finish its checksums and send it."""
        octets = end - begin
        if not octets:
            return
        datagrams = self._arena.buffer[begin:end]
        if partial is not None:
            # All frames of a run have the checksum field at the same offset.
            start, offset = partial
            finish_checksums(datagrams, stride, _HEADER_LEN + start, offset)
        count = -(-octets // stride)
        self._segment.account(route, count, octets - count * _HEADER_LEN)
        self._send(datagrams, stride, route.destinations, flow, now, 0)

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

    def _send_unbatched(
        self, frame: memoryview, gso: virtio.Header, now: float, budget: int
    ) -> int:
        """Send a superframe or an oversize frame.

        Returns: the budget used besides that of one frame.
        """
        oversize = self._sizing.oversize
        if gso.gso_type != virtio.GSO_NONE:
            try:
                more = self._send_superframe(frame, gso, now, budget // (SUPERFRAME_COST + 1))
                return SUPERFRAME_COST + more * (SUPERFRAME_COST + 1)
            except AuthenticatedError:
                pass  # It has one segment, and is sent as the plain frame that it is.
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
        segment, outer_fields = self._segment, self._transmitter.paths.outer_fields
        for datagrams, stride, answer in outcomes:
            if answer is not None:
                self._write_to_tap(answer)
            if datagrams:
                count = -(-len(datagrams) // stride)
                route = segment.route(frame)
                segment.account(route, count, len(datagrams) - count * _HEADER_LEN)
                fields = outer_fields(frame, layer)
                flow = flow_hash(frame, layer) & self._slots | fields << FLOW_BITS
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

    def _send_superframe(self, frame: memoryview, gso: virtio.Header, now: float, most: int) -> int:
        """Send a superframe, and up to `most` that follow it and match it.

        Returns: how many followed.
        Raises: AuthenticatedError if it must not be split. Nothing has been done then.
        """
        segment = self._segment
        counters = segment.counters
        if len(frame) < ethernet.HEADER_LEN:
            counters.drop(Drop.TX_RUNT)
            return 0
        if segment.inspect_egress:
            try:
                count = count_segments(frame, gso)
            except SplitError:
                counters.drop(Drop.TX_MALFORMED)
                return 0
            frame = segment.inspect(frame, now, count)
            if not frame:
                return 0
        splitter = self._arena.splitter
        if self._tracker.active:
            self._tracker.on_sent(frame, now)
        try:
            if self._transmitter.paths.tunnel_gso:
                count = self._send_with_tunnel_gso(frame, gso, now, most)
                if count:
                    return count - 1
            # Segments of consecutive superframes of one connection are sent together.
            if not splitter.count or not splitter.extend(frame, gso):
                self._send_segments(now)
                # The arena is shared, so the splitter may have the prefix of another VNI.
                splitter.prefix = self._header
                splitter.begin(frame, gso)
        except SplitError:
            counters.drop(Drop.TX_MALFORMED)
            return 0
        counters.tx_superframes += 1
        oversize = self._sizing.oversize
        if splitter.stride > _HEADER_LEN + oversize.limit:
            octets, stride = splitter.finish()
            segments = self._arena.segments[:octets]
            outcomes = oversize.handle_superframe(frame, segments, stride, now)
            self._send_oversize(frame, network_layer(frame), outcomes, now)
        return 0

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
        outer_fields = self._transmitter.paths.outer_fields
        flow = flow_hash(head) & self._slots | outer_fields(head) << FLOW_BITS
        self._send(self._arena.segments[:octets], stride, route.destinations, flow, now, 0)

    def _send_with_tunnel_gso(
        self, frame: memoryview, gso: virtio.Header, now: float, most: int
    ) -> int:
        """Send a superframe with tunnel GSO if its remote and its form allow it.

        Returns: how many superframes were sent: this one, and up to `most` that follow it and match
        it. 0 if it has to be segmented here.
        Raises: SplitError if the virtio header is wrong.
        """
        route = self._segment.route(frame)
        # An unknown destination is flooded as segments, even if there is one remote.
        if route is self._segment.fdb.default or len(route.destinations) != 1:
            return 0
        remote = route.destinations[0]
        if remote.vni is not None:
            # The header would have to be rewritten for it, as `Transmitter` does.
            return 0
        paths, sizing, length = self._transmitter.paths, self._sizing, len(frame)
        path = paths.tunnel_gso_path(remote)
        # One superframe that is larger than those proven so far may be sent to test the path.
        track = length > path.gso.track_above and not self._tracker.active
        if not track and length > path.gso.max_len:
            return 0
        plan = plan_segments(frame, gso)
        if (
            not gso_eligible(length, plan, gso)
            or plan.header_len + plan.size > sizing.oversize.limit
            # The remote infers the segment size from the announced MSS.
            or not sizing.sizes_out.are_full(frame, plan)
        ):
            return 0
        if self._arena.splitter.count:
            # The segments of earlier superframes must not be overtaken.
            self._send_segments(now)
        flow = flow_hash(frame) & self._slots | paths.outer_fields(frame) << FLOW_BITS
        if not self._transmitter.send_superframe(path, self._header, frame, plan, gso, flow, now):
            return 0
        if track:
            self._tracker.start(frame, plan, path.gso.take_result(), now)
        # A superframe between those of other flows is hardly the first one of a run.
        repeats, self._tunnel_gso_flow = flow == self._tunnel_gso_flow, flow
        count = 1 + (self._extend_tunnel_gso_run(path, frame, most) if repeats else 0)
        counters, segments = self._segment.counters, plan.segments * count
        counters.tx_superframes += count
        counters.tx_tunnel_gso += count
        counters.tx_datagrams += segments
        octets = length * count + (segments - count) * plan.header_len
        self._segment.account(route, segments, octets)
        return count

    def _extend_tunnel_gso_run(self, path: SuperframeSender, frame: memoryview, most: int) -> int:
        """Send up to `most` following superframes while they match `frame`, which was just sent.

        As in `_extend_run`, none of them is parsed. The first one that does not match, or that
        could not be sent, is read ahead.

        Returns: how many were sent.
        """
        if self._segment.inspect_egress or self._tracker.active:
            return 0
        key_struct = superframe_key_struct(frame)
        if key_struct is None:
            return 0
        read, meta, header = self._tap.read, self._meta, self._header
        send_next, run_meta = self._transmitter.send_next_superframe, bytes(meta)
        unpack, run_key = key_struct.unpack_from, key_struct.unpack_from(frame)
        buffer, octets = self._arena.buffer[_HEADER_LEN:], virtio.HEADER_LEN + len(frame)
        frame, count = buffer[: len(frame)], 0
        try:
            while count < most:
                got = read((meta, buffer))
                if (
                    got != octets
                    or unpack(buffer) != run_key
                    or meta != run_meta
                    # Last, as it sends the frame.
                    or not send_next(path, header, frame)
                ):
                    self._ahead = got - virtio.HEADER_LEN
                    break
                count += 1
        except OSError:
            # As in `_extend_run`.
            pass
        return count


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

_NO_ROUTE = NoRoute(Drop.NO_REMOTE)
"""The route of a run that is empty."""
