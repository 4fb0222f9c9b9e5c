"""From the TAP to the underlay."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from vtep.counters import Drop
from vtep.datapath.pool import FLOOD_MIN, Flood, Paths
from vtep.datapath.tap_fallback import count_refused
from vtep.forwarding.fdb import Remote
from vtep.forwarding.segment import NoRoute, Route, Segment
from vtep.io.interfaces import TapDevice
from vtep.io.path import FLOW_BITS, POOL_MAX
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
from vtep.wire import ethernet, virtio, vxlan
from vtep.wire import ip as inet
from vtep.wire.flow import flow_hash, run_key_struct, superframe_key_struct

BUDGET = 64
"""Frames read in one direction before the other one has its turn."""

SUPERFRAME_COST = 7
"""Frames that could be moved in the time that a superframe takes, besides itself."""

_FRAME_MAX = 65536 + ethernet.HEADER_LEN + 2 * ethernet.TAG_LEN
_RUN_MAX = 65536

_Partial: TypeAlias = tuple[int, int]
"""From where on a partial checksum is to be summed, and how much further on it is, in octets."""


class Burst(NamedTuple):
    """Datagrams that are to be sent: all `stride` octets long, but perhaps the last.

    `flow` is as `Path.send` wants it: what they have in common besides the remotes. If they go to
    many at once, so many of those have been `served` with the first batch of them.
    """

    datagrams: memoryview
    stride: int
    remotes: Sequence[Remote]
    flow: int
    served: int = 0


class Arena:
    """Memory for what is read from a TAP until it is sent, and for the segments that it becomes.

    All VNIs of a process share one, since their turns do not overlap, and what waits is copied.
    """

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_RUN_MAX + vxlan.HEADER_LEN + _FRAME_MAX))
        self.splitter = Splitter(bytes(vxlan.HEADER_LEN))
        self.segments = self.splitter.out.data


class Egress:
    """From the TAP to the underlay.

    Frames are read to where they are sent from, each behind its VXLAN header, one after the other.
    So a run of equal-sized frames of one flow lies in memory as a UDP_SEGMENT send wants it. So do
    the segments of superframes of which each goes on where the one before ends.

    Where the underlay has no room, the TAP is not read until it has: then frames queue in front of
    it, where their senders feel it. `lost` is called when the TAP is gone.
    """

    def __init__(
        self,
        tap: TapDevice,
        segment: Segment,
        paths: Paths,
        fit: TunnelSizing,
        tracker: AckTracker,
        arena: Arena,
        lost: Callable[[OSError], None],
    ) -> None:
        self._tap = tap
        self._segment = segment
        self._paths = paths
        self._fit = fit
        self._tracker = tracker
        self._lost = lost
        self._arena = arena
        self._virtio = bytearray(virtio.HEADER_LEN)
        self._waiting: list[Burst] = []
        self._running = False
        # Whether there was one frame the last time: then the next one is not to wait, either, until
        # it is seen that none follows it.
        self._lone = False
        # The length of a frame that has been read already, and is the next one.
        self._ahead = 0
        # The flow of the last superframe sent with tunnel GSO, and whether the one before that was
        # of the same flow.
        self._tunnel_gso_flow, self._flow_repeats = -1, False
        # Ports of one remote are as many as hash values that are told apart: see Path.
        self._slots = POOL_MAX - 1
        self._header = segment.header

    def start(self) -> None:
        """Begin to read the TAP, in the running loop."""
        self._running = True
        asyncio.get_running_loop().add_reader(self._tap.fd, self.readable)

    def stop(self) -> None:
        """Read no more, and forget what waits for room."""
        self._running = False
        asyncio.get_running_loop().remove_reader(self._tap.fd)
        self._waiting.clear()

    def take(self, paths: Paths) -> None:
        """Send through others from now on, also what waits, and as the segment's policy is now."""
        self._paths = paths
        self._header = self._segment.header

    def readable(self) -> None:  # noqa: PLR0915  one loop: for each frame, calls are dear
        """Drain the TAP."""
        now, splitter = time.monotonic(), self._arena.splitter
        splitter.count = 0  # Else something failed half-way, and may have been of another VNI.
        fd, meta, buffer, header = self._tap.fd, self._virtio, self._arena.buffer, self._header
        segment, slots, envelope = self._segment, self._slots, self._paths.outer_fields
        # What is longer is looked at: every frame where somebody wants to see them all.
        frame_max = (
            0 if segment.inspect_egress or self._tracker.active else self._fit.oversize.limit
        )
        route: Route = _NO_ROUTE
        # A run of frames of one size and flow lies between the first two, unless it is empty. Its
        # checksums are finished when it is sent, which is less work for all than for each.
        begin = end = flow = stride = 0
        partial: _Partial | None = None
        # What the virtio header of the last frame says, since most say the same.
        seen, (gso, its_partial, least) = virtio.PLAIN, _PLAIN
        lost, lone = None, self._lone
        self._ahead = 0
        budget = BUDGET
        while budget > 0 and not self._waiting:
            budget -= 1
            body = end + vxlan.HEADER_LEN
            try:
                length = self._ahead or os.readv(fd, (meta, buffer[body:])) - virtio.HEADER_LEN
            except BlockingIOError:
                break
            except OSError as error:
                lost = error
                break
            self._ahead = 0
            if meta != seen:
                seen = bytes(meta)
                gso, its_partial, least = _read_virtio(seen)
            frame, to_finish = buffer[body : body + length], its_partial
            if gso.gso_type or not least <= length <= frame_max:
                length = 0 if gso.gso_type else self._joins(frame, gso, now)
                if not length:
                    self._send(buffer[begin:end], stride, route, flow, partial, now)
                    begin = end = 0
                    budget -= self._apart(frame, gso, now, budget)
                    continue
                frame, to_finish = frame[:length], None
            buffer[end:body] = header
            if length <= SYN_MAX and inet.tcp_syn(frame) is not None:
                self._greet(frame, to_finish)
                to_finish = None
            its_route = segment.route(frame)
            its_flow = flow_hash(frame) & slots | envelope(frame) << FLOW_BITS
            size = vxlan.HEADER_LEN + length
            if (
                size <= stride
                and its_flow == flow
                and its_route is route
                and to_finish == partial
                and begin < end
            ):
                end += size
                whole = size < stride  # A shorter one can only be the last.
                if end - begin == 2 * stride and frame_max:
                    count = self._follow(frame, end, budget)
                    end += count * size
                    budget -= count
            else:
                self._send(buffer[begin:end], stride, route, flow, partial, now)
                self._finish(now)
                begin, end = end, end + size
                stride, route, flow, partial = size, its_route, its_flow, to_finish
                whole, lone = lone, False
            if whole or end > _RUN_MAX or self._waiting:
                self._send(buffer[begin:end], stride, route, flow, partial, now)
                begin = end = 0
        # One of the two is empty.
        self._send(buffer[begin:end], stride, route, flow, partial, now)
        self._finish(now)
        self._lone = budget == BUDGET - 2
        if lost is not None:
            self._lost(lost)

    def _follow(self, frame: memoryview, end: int, most: int) -> int:
        """Read on to `end` while frames are like this one, the last of a run; at most `most`.

        How many they are; one behind them that is not is read ahead. It is the rule that like
        follows like, and then there is nothing to find out of each.
        """
        buffer, meta, fd = self._arena.buffer, self._virtio, self._tap.fd
        alike = run_key_struct(frame)
        if alike is None:
            return 0
        header, said = self._header, bytes(meta)
        unpack, parts = alike.unpack_from, alike.unpack_from(frame)
        size, octets = vxlan.HEADER_LEN + len(frame), virtio.HEADER_LEN + len(frame)
        most = min(most, (_RUN_MAX - end) // size + 1)
        count = 0
        try:
            while count < most:
                body = end + vxlan.HEADER_LEN
                got = os.readv(fd, (meta, buffer[body:]))
                if got != octets or unpack(buffer, body) != parts or meta != said:
                    self._ahead = got - virtio.HEADER_LEN
                    break
                buffer[end:body] = header
                end += size
                count += 1
        except OSError:  # There are no more, or there is no TAP: whoever reads next sees which.
            pass
        return count

    def _send(
        self,
        datagrams: memoryview,
        stride: int,
        route: Route,
        flow: int,
        partial: _Partial | None,
        now: float,
    ) -> None:
        """Account and send a run of frames, with their checksums finished."""
        if not datagrams:
            return
        if partial is not None:
            start, offset = partial
            finish_checksums(datagrams, stride, vxlan.HEADER_LEN + start, offset)
        count = -(-len(datagrams) // stride)
        self._segment.account(route, count, len(datagrams) - count * vxlan.HEADER_LEN)
        self._emit(datagrams, stride, route.destinations, flow, now)

    def _greet(self, frame: memoryview, partial: _Partial | None) -> None:
        """Clamp a SYN that leaves, and learn from it; its checksum is finished then."""
        if partial is not None:
            finish_checksum(frame, *partial)
        self._fit.leaving(frame)

    def _joins(self, frame: memoryview, gso: virtio.Header, now: float) -> int:
        """Do what the virtio header and the segment ask for; how many octets are to be sent then.

        None of them if it goes apart from others, or nowhere.
        """
        if len(frame) > self._fit.oversize.limit:
            return 0
        if not self._mend(frame, gso):
            return 0
        if self._tracker.active:
            self._tracker.on_sent(frame, now)
        return len(self._inspect(frame, now))

    def _inspect(self, frame: memoryview, now: float) -> memoryview:
        """Let the segment look at a frame, if it wants to; what is left to be sent."""
        segment = self._segment
        if not segment.inspect_egress:
            return frame
        left = segment.inspect(frame, now)
        frame[: len(left)] = left  # Where tags were taken off, it begins later.
        for reply in segment.replies:
            try:
                os.writev(self._tap.fd, (virtio.PLAIN, reply))
            except OSError as error:
                count_refused(segment.counters, error)
        segment.replies.clear()
        return frame[: len(left)]

    def _mend(self, frame: memoryview, gso: virtio.Header) -> bool:
        """Finish the checksum of a frame that is no superframe; False if that can't be done."""
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

    def _apart(self, frame: memoryview, gso: virtio.Header, now: float, budget: int) -> int:
        """Send a superframe, or what becomes of a frame that is too large; what that costs."""
        oversize = self._fit.oversize
        if gso.gso_type != virtio.GSO_NONE:
            try:
                more = self._superframe(frame, gso, now, budget // (SUPERFRAME_COST + 1))
                return SUPERFRAME_COST + more * (SUPERFRAME_COST + 1)
            except AuthenticatedError:
                pass  # It is sent as the one segment that it is.
        if (gso.gso_type or len(frame) > oversize.limit) and self._mend(frame, gso):
            frame = self._inspect(frame, now)
            if len(frame) > oversize.limit:
                self._fitting(frame, (oversize.handle(frame, now),), now)
            elif frame:  # It fits, perhaps without its tags.
                datagram = self._header + frame
                self._fitting(frame, (Outcome(datagram, len(datagram), None),), now)
        else:
            return 0
        return SUPERFRAME_COST

    def _superframe(self, frame: memoryview, gso: virtio.Header, now: float, most: int) -> int:
        """Send a superframe, and up to `most` behind it that are like it; how many those are.

        Raises AuthenticatedError, having done nothing, where it must not be split.
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
            path = self._send_tunnel_gso(frame, gso, now) if self._paths.tunnel_gso else None
            if path is not None:
                # A superframe between those of other flows is hardly the first one of a run.
                repeats = self._flow_repeats
                return self._extend_tunnel_gso_run(path, frame, gso, most) if repeats else 0
            if not splitter.count or not splitter.extend(frame, gso):
                self._finish(now)
                splitter.prefix = self._header
                splitter.begin(frame, gso)
        except SplitError:
            counters.drop(Drop.TX_MALFORMED)
            return 0
        counters.tx_superframes += 1
        oversize = self._fit.oversize
        if splitter.stride > vxlan.HEADER_LEN + oversize.limit:
            octets, stride = splitter.finish()
            segments = self._arena.segments[:octets]
            self._fitting(frame, oversize.handle_superframe(frame, segments, stride, now), now)
        return 0

    def _send_tunnel_gso(
        self, frame: memoryview, gso: virtio.Header, now: float
    ) -> SuperframeSender | None:
        """Send a superframe with tunnel GSO if its remote and its form allow it.

        Returns: the path that it was sent on; None if it has to be segmented here.
        Raises: SplitError.
        """
        route = self._segment.route(frame)
        if route is self._segment.fdb.default or len(route.destinations) != 1:
            return None
        remote = route.destinations[0]
        if remote.vni is not None:
            return None
        path, fit, length = self._paths.tunnel_gso_path(remote), self._fit, len(frame)
        track = length > path.gso.track_above and not self._tracker.active
        if not track and length > path.gso.max_len:
            return None
        cut = plan_segments(frame, gso)
        if (
            not gso_eligible(length, cut, gso)
            or cut.header_len + cut.size > fit.oversize.limit
            or not fit.sizes_out.are_full(frame, cut)
        ):
            return None
        self._finish(now)
        flow = flow_hash(frame) & self._slots | self._paths.outer_fields(frame) << FLOW_BITS
        if self._waiting or not path.send(self._header, frame, cut, gso, flow, now):
            return None
        if track:
            self._tracker.start(frame, cut, path.gso.take_result(), now)
        self._count_tunnel_gso(route, length, cut, 1)
        self._flow_repeats, self._tunnel_gso_flow = flow == self._tunnel_gso_flow, flow
        return path

    def _count_tunnel_gso(
        self, route: Route, octets: int, cut: SegmentPlan, superframes: int
    ) -> None:
        """Count superframes of so many octets each as sent."""
        counters, count = self._segment.counters, cut.segments * superframes
        sent = octets * superframes + (count - superframes) * cut.header_len
        self._segment.account(route, count, sent)
        counters.tx_superframes += superframes
        counters.tx_tunnel_gso += superframes
        counters.tx_datagrams += count

    def _extend_tunnel_gso_run(
        self, path: SuperframeSender, frame: memoryview, gso: virtio.Header, most: int
    ) -> int:
        """Send following superframes without parsing them while they match this one, just sent.

        One that does not match is read ahead, as in `_follow`, and so is one that was not sent.

        Returns: how many were sent, at most `most`.
        """
        tracking = self._tracker.active
        alike = None if self._segment.inspect_egress or tracking else superframe_key_struct(frame)
        if alike is None:
            return 0
        cut, route = plan_segments(frame, gso), self._segment.route(frame)
        meta, fd, header, said = self._virtio, self._tap.fd, self._header, bytes(self._virtio)
        unpack, parts = alike.unpack_from, alike.unpack_from(frame)
        begin = vxlan.HEADER_LEN
        buffer, octets = self._arena.buffer[begin:], virtio.HEADER_LEN + len(frame)
        frame, count = buffer[: len(frame)], 0
        try:
            while count < most:
                got = os.readv(fd, (meta, buffer))
                if (
                    got != octets
                    or unpack(buffer) != parts
                    or meta != said
                    or not path.send_next(header, frame)
                ):
                    self._ahead = got - virtio.HEADER_LEN
                    break
                count += 1
        except OSError:  # As in `_follow`.
            pass
        if count:
            self._count_tunnel_gso(route, len(frame), cut, count)
        return count

    def send_requests(self, now: float) -> None:
        """Send the `requests` of the segment; not in the middle of a turn."""
        requests = self._segment.requests
        if not self._running or not requests:
            return
        self._arena.splitter.count = 0  # As in `readable`.
        for request in requests:
            datagram = self._header + request
            outcome = Outcome(datagram, len(datagram), None)
            self._fitting(memoryview(request), (outcome,), now)
        requests.clear()

    def _finish(self, now: float) -> None:
        """Send the segments of the superframes that were begun, if there are any."""
        splitter, segment = self._arena.splitter, self._segment
        count = splitter.count
        if not count:
            return
        octets, stride = splitter.finish()
        head = splitter.head
        route = segment.route(head)
        segment.account(route, count, octets - count * vxlan.HEADER_LEN)
        flow = flow_hash(head) & self._slots | self._paths.outer_fields(head) << FLOW_BITS
        self._emit(self._arena.segments[:octets], stride, route.destinations, flow, now)

    def _fitting(self, frame: memoryview, outcomes: Iterable[Outcome], now: float) -> None:
        """Send what has become of a frame or superframe that was too large, and tell its sender."""
        self._finish(now)
        counters = self._segment.counters
        for datagrams, stride, answer in outcomes:
            if answer is not None:
                try:
                    os.writev(self._tap.fd, (virtio.PLAIN, answer))
                except OSError as error:
                    count_refused(counters, error)
            if datagrams:
                count = -(-len(datagrams) // stride)
                route = self._segment.route(frame)
                self._segment.account(route, count, len(datagrams) - count * vxlan.HEADER_LEN)
                flow = flow_hash(frame) & self._slots | self._paths.outer_fields(frame) << FLOW_BITS
                self._emit(memoryview(datagrams), stride, route.destinations, flow, now)

    def _emit(
        self,
        datagrams: memoryview,
        stride: int,
        remotes: Sequence[Remote],
        flow: int,
        now: float,
        served: int = 0,
    ) -> None:
        """Send datagrams to each remote, behind those that wait."""
        if not datagrams:
            return
        if self._waiting:
            self._wait(Burst(datagrams, stride, remotes, flow, served))
            return
        if len(remotes) >= FLOOD_MIN and (flood := self._paths.flood(remotes)) is not None:
            self._flood(flood, Burst(datagrams, stride, flood.group.remotes, flow, served))
            remotes = flood.others
            if self._waiting:
                self._wait(Burst(datagrams, stride, remotes, flow))
                return
        for number, remote in enumerate(remotes):
            path = self._paths[remote]
            rest = datagrams if remote.vni is None else _readdress(datagrams, stride, remote.vni)
            while rest:
                try:
                    octets, lost = path.send(rest, stride, flow, now)
                except BlockingIOError:
                    self._wait(Burst(rest, stride, (remote,), flow))
                    self._wait(Burst(datagrams, stride, remotes[number + 1 :], flow))
                    self._await_room(path.fileno(flow))
                    return
                count = -(-octets // stride)
                if lost is None:
                    self._segment.counters.tx_datagrams += count
                else:  # Of those in hand or, if they are still to be sent, an earlier one.
                    self._segment.counters.drop(lost, remote.host, count or 1)
                rest = rest[octets:]

    def _flood(self, flood: Flood, burst: Burst) -> None:
        """Send to many remotes at once."""
        rest, stride, remotes, flow, served = burst
        counters = self._segment.counters
        while rest:
            sent = flood.group.send(rest, stride, flow, served)
            counters.tx_datagrams += sent.datagrams
            for remote, reason, count in sent.drops:
                counters.drop(reason, remote.host, count)
                if reason is Drop.UNDERLAY_TOO_BIG:
                    self._paths[remote].refresh_mtu()
            if not sent.octets:
                self._wait(Burst(rest, stride, remotes, flow, sent.sent_to))
                self._await_room(sent.blocked_fd)
                return
            rest = rest[sent.octets :]
            served = 0

    def _wait(self, burst: Burst) -> None:
        """Keep what is to be sent later, with a copy of its octets: others need their memory."""
        if not burst.remotes:
            return
        if not isinstance(burst.datagrams.obj, bytes):
            burst = burst._replace(datagrams=memoryview(bytes(burst.datagrams)))
        self._waiting.append(burst)

    def _await_room(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(self._tap.fd)
        self._paths.writable.wait(fd, self._resume)

    def _resume(self) -> None:
        """Send what waits, and read the TAP again when that is done."""
        if not self._running:
            return
        waiting, self._waiting = self._waiting, []
        now, uses = time.monotonic(), self._segment.fdb.members.use_count
        for datagrams, stride, remotes, flow, served in waiting:
            # One may have left meanwhile, whose path must not be made again.
            left = len(remotes) < FLOOD_MIN and not all(map(uses, remotes))
            still = tuple(filter(uses, remotes)) if left else remotes
            self._emit(datagrams, stride, still, flow, now, served)
        if not self._waiting:
            self.start()


def _read_virtio(meta: bytes) -> tuple[virtio.Header, _Partial | None, int]:
    """A virtio header, the checksum that is to be finished, and how long frames must be for it."""
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
"""The route of no run."""


def _readdress(datagrams: memoryview, stride: int, vni: int) -> memoryview:
    """The same datagrams for another VNI: a copy, since others get them as they are."""
    octets = bytearray(datagrams)
    for at in range(vxlan.VNI_OFFSET, len(octets), stride):
        octets[at : at + 3] = vni.to_bytes(3, "big")
    return memoryview(octets)
