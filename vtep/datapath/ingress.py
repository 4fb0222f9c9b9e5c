"""From the underlay to the TAPs."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import NamedTuple

from vtep.counters import Counters, Drop
from vtep.datapath.egress import BUDGET, SUPERFRAME_COST
from vtep.datapath.tap_fallback import MergeGuard, count_frames, write_without_offload
from vtep.forwarding.demux import Demux
from vtep.forwarding.segment import Segment
from vtep.io.interfaces import Received, Receiver, TapDevice
from vtep.offload.merge import Merger
from vtep.offload.partial import SYN_MAX, is_udp_superframe, virtio_header
from vtep.offload.sizing import TunnelSizing
from vtep.offload.split import Splitter
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import ecn, ethernet, virtio, vxlan
from vtep.wire.flow import superframe_key_struct

log = logging.getLogger("vtep")

_DATAGRAM_MAX = 65536
_BURSTS_MAX = 3 * _DATAGRAM_MAX
"""Octets of bursts that go on from one to the next, after which they are delivered. More would not
save much of what is done once for all of them, and would no longer be in the processor's cache."""


_BEGIN_LEN = vxlan.HEADER_LEN + ethernet.HEADER_LEN
"""Octets of a datagram by which it is let in, or not."""


class Exit(NamedTuple):
    """Where the frames of a segment leave."""

    tap: TapDevice
    fit: TunnelSizing
    tracker: AckTracker
    counters: Counters
    segment: Segment
    turn: Callable[[], None]
    """Sends what the TAP has by now."""


class Ingress:
    """From the underlay to the TAPs."""

    def __init__(
        self,
        receivers: Iterable[Receiver],
        switch: Demux,
        cannot_receive: Callable[[OSError], None],
    ) -> None:
        self._receivers = tuple(receivers)
        self._switch = switch
        self._cannot_receive = cannot_receive
        self._exits: dict[Segment, Exit] = {}
        self._coarse: set[Segment] = set()  # Whose TAPs take no superframes of UDP.
        self._buffer = memoryview(bytearray(_BURSTS_MAX + _DATAGRAM_MAX))
        self._merger = Merger(vxlan.HEADER_LEN, uso=True)
        self._guards: dict[tuple[Segment, str], MergeGuard] = {}  # Of TAPs that refused some.
        self._merge_again = inf  # When a guard may allow again what it does not allow now.
        self._splitter = Splitter(b"")
        # What the last datagram was delivered with, and one that has been received already.
        self._header = virtio.PLAIN
        self._ahead: Received | None = None
        self._before: Received | None = None  # How the last superframe came.
        # Whether there was one datagram the last time: then what answers it is not to wait, either.
        self._lone = False

    def attach(
        self,
        segment: Segment,
        tap: TapDevice,
        fit: TunnelSizing,
        tracker: AckTracker,
        turn: Callable[[], None],
    ) -> None:
        """Deliver the frames of a segment to this TAP from now on.

        `tracker` is shown them while it is active. `turn` sends what has been written to the TAP by
        somebody else.
        """
        self._exits[segment] = Exit(tap, fit, tracker, segment.counters, segment, turn)
        self._switch.segments[segment.vni] = segment
        if tap.uso:
            self._coarse.discard(segment)
        else:
            self._coarse.add(segment)
        self._fit(time.monotonic())

    def detach(self, segment: Segment) -> None:
        """Deliver nothing to this segment any more."""
        if self._exits.pop(segment, None) is not None:
            del self._switch.segments[segment.vni]
            self._coarse.discard(segment)
            for kind in ("TCP", "UDP"):
                self._guards.pop((segment, kind), None)
            self._fit(time.monotonic())

    def _fit(self, now: float) -> None:
        """Merge TCP or UDP only if every TAP takes the superframes, since a burst may go to any."""
        suspended = {
            kind: guard.until for (_, kind), guard in self._guards.items() if guard.until > now
        }
        self._merge_again = min(suspended.values(), default=inf)
        tso, uso = "TCP" not in suspended, "UDP" not in suspended and not self._coarse
        if (tso, uso) != (self._merger.tso, self._merger.uso):
            self._merger = Merger(vxlan.HEADER_LEN, tso=tso, uso=uso)

    def _refused(self, leave: Exit, header: bytes, now: float) -> None:
        """Take note that a TAP's kernel refused a superframe that was merged for it."""
        kind = "UDP" if header[1] == virtio.GSO_UDP_L4 else "TCP"
        guard = self._guards.setdefault((leave.segment, kind), MergeGuard())
        if not guard.refuse(leave.counters.rx_superframes, now):
            return
        if guard.suspensions == 1:
            log.warning(
                "vni %d: offload gro no longer merges %s for the TAP: this kernel refuses such "
                "superframes (see tap_header_refused); they are delivered as single frames, which "
                "is slower, and another kernel version may help",
                *(leave.segment.vni, kind),
            )
        self._fit(now)

    def rebind(self, receivers: Iterable[Receiver]) -> None:
        """Receive from other sockets from now on; those of before are not closed yet."""
        self.stop()
        self._receivers = tuple(receivers)
        if self._exits:
            self.start()

    def start(self) -> None:
        """Begin to receive, in the running loop."""
        for receiver in self._receivers:
            asyncio.get_running_loop().add_reader(receiver.fileno(), self.readable, receiver)

    def stop(self) -> None:
        """Receive no more."""
        for receiver in self._receivers:
            asyncio.get_running_loop().remove_reader(receiver.fileno())

    def readable(self, receiver: Receiver) -> None:
        """Drain a socket."""
        now = time.monotonic()
        buffer, receive = self._buffer, receiver.receive
        # Datagrams of one size that one remote has sent from one port, which is for one flow or a
        # few, lie between the first two, unless that is empty.
        begin = end = stride = port = mark = 0
        host = ""
        budget = BUDGET
        lone = self._lone
        while budget > 0:
            budget -= 1
            try:
                came = self._ahead or receive(buffer[end:])
            except BlockingIOError:
                break
            except OSError as error:
                self._cannot_receive(error)
                break
            self._ahead = None
            octets, its_stride, its_host, its_port, its_mark = came
            data = buffer[end : end + octets]
            many = octets > its_stride
            if many and is_udp_superframe(data[vxlan.HEADER_LEN :]):
                taken = self._switch.check_gro_batch(data, its_stride, its_host)
                many, octets = taken > 0, taken
            goes_on = its_stride == stride and its_port == port and its_host == host
            if begin < end and not (many and goes_on and its_mark == mark):
                self._burst(buffer[begin:end], stride, host, mark, now)
                begin = end
            if not many:
                leave = self._datagram(data, its_stride, its_host, its_mark, now)
                begin = end = 0
                if leave is not None and self._header[1] != virtio.GSO_NONE:
                    # One that was alone among others has hardly any like it behind it.
                    most = budget // (SUPERFRAME_COST + 1) if came == self._before else 0
                    self._before = came
                    count = self._follow(receiver, leave, came, data, most, now) if most else 0
                    budget -= SUPERFRAME_COST + count * (SUPERFRAME_COST + 1)
                elif lone and leave is not None:
                    leave.turn()
                    if not self._exits:  # Its TAP was the last one, and is gone.
                        return
                lone = False
                continue
            budget -= SUPERFRAME_COST
            stride, host, port, mark = its_stride, its_host, its_port, its_mark
            end += octets
            if octets % stride or end > _BURSTS_MAX:  # A shorter one can only be the last.
                self._burst(buffer[begin:end], stride, host, mark, now)
                begin = end = 0
        if begin < end:
            self._burst(buffer[begin:end], stride, host, mark, now)
        self._lone = budget == BUDGET - 2

    def take(self, data: memoryview, host: str, mark: int, now: float) -> None:
        """Take in a datagram from a host that another socket has received, with its ECN field."""
        self._datagram(data, len(data), host, mark, now)

    def _datagram(
        self, data: memoryview, stride: int, host: str, mark: int, now: float
    ) -> Exit | None:
        """Take in what came in one datagram; `stride` is for cutting a UDP superframe.

        Where it was delivered, if it was, and then with `_header`.
        """
        segment = self._switch.admit(data, host, now)
        if segment is None:
            return None
        leave = self._exits[segment]
        frame = data[vxlan.HEADER_LEN :]
        if mark and not ecn.decapsulate(frame, mark):
            segment.counters.drop(Drop.CONGESTION, host)
            return None
        self._single(leave, frame, stride, now)
        return leave

    def _follow(
        self,
        receiver: Receiver,
        leave: Exit,
        came: Received,
        data: memoryview,
        most: int,
        now: float,
    ) -> int:
        """Deliver on while datagrams are like this one, which is a superframe of TCP and `came` so.

        At most `most`; how many they are. One that is not is received ahead. It is the rule that
        like follows like, and then there is nothing to find out of each.
        """
        host, header = came[2], self._header
        frame = data[vxlan.HEADER_LEN :]
        alike = superframe_key_struct(frame)
        if alike is None:
            return 0
        begin, unpack, parts = bytes(data[:_BEGIN_LEN]), alike.unpack_from, alike.unpack_from(frame)
        buffer, prefix, receive = self._buffer, begin[: vxlan.HEADER_LEN], receiver.receive
        frame = buffer[vxlan.HEADER_LEN : len(data)]
        count = lost = 0
        try:
            while count < most:
                self._ahead = receive(buffer)
                if (
                    self._ahead != came
                    or buffer[: vxlan.HEADER_LEN] != prefix
                    or unpack(buffer, vxlan.HEADER_LEN) != parts
                ):
                    break
                self._ahead = None
                count += 1
                try:
                    os.writev(leave.tap.fd, (header, frame))
                except OSError as error:
                    lost += 1
                    self._write_without_offload(leave, frame, header, error)
        except BlockingIOError:
            pass
        except OSError as error:
            self._cannot_receive(error)
        if count:
            self._switch.admit(begin, host, now, count)
            leave.counters.partial_checksums += count
            leave.counters.super_datagrams += count
            frames, octets = count_frames(len(frame), header)
            leave.counters.rx_frames += (count - lost) * frames
            leave.counters.rx_bytes += (count - lost) * octets
        return count

    def _single(self, leave: Exit, frame: memoryview, stride: int, now: float) -> None:
        """Deliver the frame of one datagram; `stride` is for cutting a UDP superframe."""
        if leave.segment.strip_vlan:
            frame = ethernet.untag(frame)
        if len(frame) <= SYN_MAX:
            leave.fit.arriving(frame)
        self._header = header = virtio_header(frame, leave.fit.sizes, leave.counters, stride)
        if header[1] != virtio.GSO_UDP_L4 or leave.tap.uso:
            self._deliver(leave, frame, header, now)
            return
        octets, step = self._splitter.split(frame, virtio.unpack(header))
        segments = self._splitter.out.data[:octets]
        for at in range(0, octets, step):
            self._deliver(leave, segments[at : at + step], virtio.PLAIN, now)

    def _burst(self, data: memoryview, stride: int, host: str, mark: int, now: float) -> None:
        """Take in datagrams of one remote that came together; `mark` is their outer ECN field."""
        judge = self._switch.admit
        if now >= self._merge_again:
            self._fit(now)
        for header, frame, datagram, count in self._merger.merge(data, stride):
            # Everything is judged, and learned from, before the TAP has it.
            segment = judge(datagram, host, now, count)
            if segment is None:
                continue
            if mark and not ecn.decapsulate(frame, mark):
                segment.counters.drop(Drop.CONGESTION, host, count)
                continue
            leave = self._exits[segment]
            if header is None:
                self._single(leave, frame, 0, now)
            else:
                leave.counters.rx_superframes += 1
                left = ethernet.untag(frame) if segment.strip_vlan else frame
                moved = virtio.shift_offsets(header, len(frame) - len(left))
                if not self._deliver(leave, left, moved, now):
                    self._refused(leave, header, now)

    def _deliver(self, leave: Exit, frame: memoryview, header: bytes, now: float) -> bool:
        """Write a frame to the TAP; a superframe counts as the frames that it stands for.

        Returns: False if the kernel refused it because of its virtio header.
        """
        if leave.tracker.active:
            leave.tracker.on_received(frame, now)
        count, octets = 1, len(frame)
        if header[1] != virtio.GSO_NONE:
            count, octets = count_frames(octets, header)
        try:
            os.writev(leave.tap.fd, (header, frame))
        except OSError as error:
            return not self._write_without_offload(leave, frame, header, error)
        leave.counters.rx_frames += count
        leave.counters.rx_bytes += octets
        return True

    def _write_without_offload(
        self, leave: Exit, frame: memoryview, header: bytes, error: OSError
    ) -> bool:
        tap, counters = leave.tap, leave.counters
        return write_without_offload(tap.fd, frame, header, error, self._splitter, counters)
