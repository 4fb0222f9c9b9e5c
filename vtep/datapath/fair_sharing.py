"""Fair sharing of the receive queue of a port, while more arrives than can be forwarded."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vtep.forwarding.demux import Demux
from vtep.forwarding.fairness import (
    CHECK_INTERVAL,
    LONE_INTERVAL,
    ONSET_SERVE,
    OVERLOAD_MEMORY,
    SERVE_MAX,
    WAIT_MAX,
    WAIT_SHORT,
    FairQueue,
    OnsetDetector,
)
from vtep.io.interfaces import Received, ReceivedRun, Receiver
from vtep.io.slots import Slots

if TYPE_CHECKING:
    from vtep.datapath.ingress import TapTarget
    from vtep.forwarding.segment import Segment


class FairSharing:
    """Passes in which the flows of a receive queue are served by turns, and when they are due.

    A pass takes all datagrams of the queue, so that light flows do not wait for heavy ones, and
    leaves none for later. It discards what it cannot forward in time: to receive and discard a
    batch takes a small part of the time to forward it.

    `deliver` delivers what one receive has returned, and returns where if that was one datagram.
    `deliver_run` delivers adjacent datagrams of one size and source. Both may be replaced.
    """

    def __init__(
        self,
        slots: Slots,
        demux: Demux,
        deliver: Callable[[memoryview, Received, float], "TapTarget | None"],
        deliver_run: Callable[[memoryview, Received, float], None],
        on_receive_error: Callable[[OSError], None],
    ) -> None:
        self._slots = slots
        self._demux = demux
        self.deliver = deliver
        self.deliver_run = deliver_run
        self._on_receive_error = on_receive_error
        # The datagrams, how they were received, and True if they are separate ones of one size.
        self._queue: FairQueue[tuple[memoryview, Received, bool]] = FairQueue()
        self._onset = OnsetDetector()
        self._check_again = 0.0
        # Until then, more is presumed to arrive than can be forwarded.
        self._overloaded_until = 0.0
        self.continues = False
        """True if the next turn is to be a pass, however long datagrams have waited."""

    def is_due(self, receiver: Receiver, now: float) -> bool:
        """Return True if datagrams wait too long, after a turn that may have left some."""
        if now < self._check_again:
            return False
        self._check_again = now + CHECK_INTERVAL
        try:
            waited = receiver.waited()
        except OSError:  # Not on this kernel.
            return False
        is_onset = self._onset.note(waited, now)
        return waited >= WAIT_MAX if now < self._overloaded_until else is_onset

    def run(self, receiver: Receiver, now: float, *, has_compiled_turns: bool) -> None:
        """Empty the receive queue, serve its flows by turns, and discard what would wait longer."""
        queue = self._queue
        self._receive(receiver)
        was_full, is_shared = queue.is_full, queue.is_shared(now)
        if not is_shared:
            self._check_again = now + LONE_INTERVAL
        self._serve(now, is_shared=is_shared)
        if queue:
            self._overloaded_until = now + OVERLOAD_MEMORY
        # The next pass comes at once, until one discards nothing. But compiled turns forward twice
        # as much as this: unless datagrams were left in the socket, they go on until some wait too
        # long again.
        self.continues = bool(queue) and (was_full or not has_compiled_turns)
        while queue:
            data, rx, _ = queue.take()
            self._demux.drop_excess(data, rx[1], rx[2])

    def _receive(self, receiver: Receiver) -> None:
        """Receive all datagrams that wait into the fair queue, as far as there is room."""
        queue = self._queue
        try:
            while not queue.is_full:
                self._enqueue(receiver.receive_many(self._slots), merges=receiver.gro_enabled)
                self._demux.counters.rx_syscalls += 1
                if receiver.waited() < WAIT_SHORT:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            self._on_receive_error(error)

    def _enqueue(self, runs: list[ReceivedRun], *, merges: bool) -> None:
        """Copy the datagrams in the slots to the fair queue."""
        slots, queue, end = self._slots, self._queue, 0
        pitch = slots.pitch
        for rx, count in runs:
            octets, stride, host, port, _ = rx
            begin, end = end, end + count
            if merges and octets == stride == pitch and count > 1:
                data = memoryview(bytearray(slots.buffer[begin * pitch : end * pitch]))
                queue.add((host, port), (data, rx, True), count, len(data))
                continue
            datagrams = -(-octets // max(1, stride))
            for index in range(begin, end):
                data = memoryview(bytearray(slots.datagram(index, octets)))
                queue.add((host, port), (data, rx, False), datagrams, octets)

    def _serve(self, now: float, *, is_shared: bool) -> None:
        """Deliver datagrams by turns of their flows; all of them if there is only one flow."""
        queue = self._queue
        serve_max = SERVE_MAX if now < self._overloaded_until else ONSET_SERVE
        # Processor time: a flow must not lose datagrams because another process has run meanwhile.
        deadline = time.thread_time() + serve_max
        answering: dict[Segment, TapTarget] = {}
        while queue and not (is_shared and time.thread_time() > deadline):
            data, rx, is_run = queue.take()
            if is_run:
                self.deliver_run(data, rx, now)
            elif target := self.deliver(data, rx, now):
                answering[target.segment] = target
            if queue.rounds == 1 and answering:
                # All light flows are served by now. Hosts have answered single datagrams already,
                # and their answers do not wait for the rest of the heavy flows.
                for target in answering.values():
                    target.kick_egress()
                answering.clear()
