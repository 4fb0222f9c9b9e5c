"""Send datagrams to remotes, and hold back those for which there is no room."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vtep.counters import Drop
from vtep.datapath.observers import EgressObserver, attach, detach
from vtep.datapath.pool import FLOOD_MIN, Flood, Paths
from vtep.forwarding.fdb import Remote
from vtep.forwarding.segment import Segment
from vtep.offload.headers import SegmentPlan
from vtep.tunnel_gso.path import SuperframeSender
from vtep.wire import virtio, vxlan


class Batch(NamedTuple):
    """Datagrams that wait for room: all have `stride` octets, but the last may be shorter."""

    datagrams: memoryview
    stride: int
    remotes: Sequence[Remote]
    flow: int
    """As in `Sender.send`."""
    skip: int = 0
    """Number of remotes, from the first on, that a flood has sent the first of them to."""


class Transmitter:
    """The sending half of the egress data path of one VNI.

    All that a VNI sends to remotes passes `send`, `send_superframe` or `send_next_superframe`: they
    are the observation point *underlay out* (see `vtep.datapath`).

    If a send buffer is full, the datagrams wait in `waiting`, with all that follow, so that each
    remote gets them in order. `pause` is called then, and `resume` when all of them have been sent.
    """

    def __init__(
        self,
        segment: Segment,
        paths: Paths,
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self.paths = paths
        """The paths to the remotes. They can be replaced at any time."""
        self.waiting: list[Batch] = []
        self._segment = segment
        self._pause = pause
        self._resume = resume
        self.is_stopped = True
        """True before `start` and after `stop`."""

    def start(self) -> None:
        """Allow sending."""
        self.is_stopped = False

    def stop(self) -> None:
        """Discard what waits, and do not call back any more."""
        self.is_stopped = True
        self.waiting.clear()

    def send(
        self,
        datagrams: memoryview,
        stride: int,
        remotes: Sequence[Remote],
        flow: int,
        now: float,
        skip: int,
    ) -> None:
        """Send datagrams to each of some remotes, or queue them behind those that wait.

        `datagrams`, which are not empty, `stride`, `flow` and `now` are as in `Sender.send`. `skip`
        is 0 unless the batch has waited, and so has passed here before. It has no default: CPython
        calls a bound method faster if no argument is left out.
        """
        if self.waiting:
            # Datagrams of one flow must not overtake each other.
            self._queue(Batch(datagrams, stride, remotes, flow, skip))
            return
        paths = self.paths
        if len(remotes) >= FLOOD_MIN and (flood := paths.flood(remotes)) is not None:
            self._flood(flood, Batch(datagrams, stride, flood.group.remotes, flow, skip))
            # Those with a VNI or a device of their own, which a flood cannot serve.
            remotes = flood.others
            if self.waiting:
                self._queue(Batch(datagrams, stride, remotes, flow))
                return
        # Mostly there is one remote. To enumerate them would cost more than `index`, which is rare.
        for remote in remotes:
            path = paths[remote]
            rest = datagrams if remote.vni is None else _with_vni(datagrams, stride, remote.vni)
            while True:
                try:
                    octets, lost = path.send(rest, stride, flow, now)
                except BlockingIOError:
                    # This remote lacks `rest`, and the following ones everything.
                    self._queue(Batch(rest, stride, (remote,), flow))
                    others = remotes[remotes.index(remote) + 1 :]
                    self._queue(Batch(datagrams, stride, others, flow))
                    self._wait(path.fileno(flow))
                    return
                count = -(-octets // stride)
                if lost is None:
                    counters = self._segment.counters
                    counters.tx_datagrams += count
                    counters.tx_syscalls += 1
                else:
                    # Without octets, the error is about a datagram of an earlier send.
                    self.drop_sent(lost, remote, count or 1, rest if octets else rest[:0])
                rest = rest[octets:]
                if not rest:
                    break

    def _flood(self, flood: Flood, batch: Batch) -> None:
        """Send datagrams to the group of a flood, with one system call for many remotes."""
        rest, stride, remotes, flow, skip = batch
        counters = self._segment.counters
        while rest:
            result = flood.group.send(rest, stride, flow, skip)
            counters.tx_datagrams += result.datagrams
            counters.tx_syscalls += 1
            for remote, reason, count, is_earlier in result.drops:
                # Of several datagrams, it is not known which of them are lost unless all are.
                all_are_lost = not is_earlier and count * stride >= result.octets
                self.drop_sent(reason, remote, count, rest if all_are_lost else rest[:0])
                if reason is Drop.UNDERLAY_TOO_BIG:
                    # The sockets of a flood are not connected, so they learn no path MTU.
                    self.paths[remote].refresh_route()
            if not result.octets:
                self._queue(Batch(rest, stride, remotes, flow, result.sent_to))
                self._wait(result.blocked_fd)
                return
            rest = rest[result.octets :]
            # `skip` was about the first send of the batch.
            skip = 0

    def drop_sent(self, reason: Drop, remote: Remote, count: int, left: memoryview) -> None:
        """Count datagrams to a remote that could not be sent.

        They are the first ones of `left`, which are those that are not sent yet. It is empty if
        they are not known, or if an ICMP error has returned those of an earlier send.
        """
        del left  # It is for an observer.
        self._segment.counters.drop(reason, remote.host, count)

    def observe(self, observer: EgressObserver | None) -> None:
        """Show an observer what is sent from now on; None ends that."""
        detach(self, ("send", "send_superframe", "send_next_superframe", "drop_sent"))
        if observer is not None:
            observer.transmitter = self
            attach(
                self,
                {
                    "send": observer.send,
                    "send_superframe": observer.send_superframe,
                    "drop_sent": observer.drop_sent,
                },
            )

    def send_superframe(
        self,
        path: SuperframeSender,
        header: bytes,
        frame: memoryview,
        plan: SegmentPlan,
        gso: virtio.Header,
        flow: int,
        now: float,
    ) -> bool:
        """Send a superframe with tunnel GSO, unless datagrams wait, which it must not overtake.

        `header` is its VXLAN header. Returns: False if it was not sent, and is to be segmented.
        """
        return not self.waiting and path.send(header, frame, plan, gso, flow, now)

    @staticmethod
    def send_next_superframe(path: SuperframeSender, header: bytes, frame: memoryview) -> bool:
        """Send a superframe that matches the last one on its path in all but the payload.

        Returns: as `send_superframe`.
        """
        return path.send_next(header, frame)

    # --- backpressure -------------------------------------------------------------------------

    def _queue(self, batch: Batch) -> None:
        """Keep a batch until there is room for it."""
        if not batch.remotes:
            return
        if not isinstance(batch.datagrams.obj, bytes):
            # The memory of the arena is used again by the next turn, also by that of other VNIs.
            batch = batch._replace(datagrams=memoryview(bytes(batch.datagrams)))
        self.waiting.append(batch)

    def _wait(self, fd: int) -> None:
        self._pause()
        self.paths.writable.wait(fd, self._on_writable)

    def _on_writable(self) -> None:
        """Send what waits."""
        if self.is_stopped:
            return
        waiting, self.waiting = self.waiting, []
        now, use_count = time.monotonic(), self._segment.fdb.members.use_count
        for datagrams, stride, remotes, flow, skip in waiting:
            # A remote may have been deleted meanwhile, whose path must not be opened again. A long
            # list is left as it is: `skip` counts its remotes, and one socket serves all of them.
            deleted = len(remotes) < FLOOD_MIN and not all(map(use_count, remotes))
            left = tuple(filter(use_count, remotes)) if deleted else remotes
            self.send(datagrams, stride, left, flow, now, skip)
        if not self.waiting:
            self._resume()


def _with_vni(datagrams: memoryview, stride: int, vni: int) -> memoryview:
    """Return a copy of datagrams with another VNI; other remotes get them with ours."""
    octets = bytearray(datagrams)
    for offset in range(vxlan.VNI_OFFSET, len(octets), stride):
        octets[offset : offset + 3] = vni.to_bytes(3, "big")
    return memoryview(octets)
