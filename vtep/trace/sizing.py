"""Replicas of the tunnel MTU of a VNI, and of the mechanisms that make its frames fit."""

import copy
from typing import TYPE_CHECKING

from vtep.offload.oversize import Outcome, Oversize
from vtep.offload.partial import SegmentSizes
from vtep.offload.sizing import TunnelSizing
from vtep.trace.copying import adopt
from vtep.trace.steps import Recorder, TracedCounters
from vtep.wire import ip
from vtep.wire.ethernet import NetworkLayer

if TYPE_CHECKING:
    from vtep.offload.mss import MssClamp


class TracedOversize(Oversize):
    """A replica of the handling of oversize frames."""

    def __init__(self, original: Oversize, counters: TracedCounters, recorder: Recorder) -> None:
        # Its splitter has a buffer that frames are cut into, so the replica makes its own.
        adopt(self, original, "_splitter")
        self._counters: TracedCounters = counters
        self._recorder = recorder

    def handle(self, frame: memoryview, layer: NetworkLayer, now: float) -> Outcome:
        """Handle as the original would, and record the outcome."""
        before, at = self._counters.as_dict(), len(self._recorder.steps)
        outcome = super().handle(frame, layer, now)
        after = self._counters.as_dict()
        self._note(outcome, {name for name, count in after.items() if count > before[name]}, at)
        return outcome

    def _note(self, outcome: Outcome, grown: set[str], at: int) -> None:
        datagrams = -(-len(outcome.datagrams) // outcome.stride)
        most = outcome.stride - len(self._prefix)
        if "tx_resegmented" in grown:
            text = f"TCP data cut into {datagrams} segments in frames of up to {most} octets"
        elif "tx_fragmented" in grown:
            text = f"IPv4 fragmented into {datagrams} frames of up to {most} octets (RFC 791)"
        elif "tx_oversize" in grown:
            text = "sent as it is: the underlay fragments or drops it"
        elif outcome.datagrams:
            text = "only its padding is too long, which is not sent"
        else:
            text = "not sent: it must not be fragmented"
        if outcome.answer is not None:
            text += "; its sender gets an ICMP error with the MTU (RFC 1191, RFC 8201)"
        rule = f"tunnel MTU {self.mtu}: frames of {self.limit} octets"
        self._recorder.add("size", text, rule, at)


class TracedSizing(TunnelSizing):
    """A replica of the tunnel MTU and the mechanisms that depend on it."""

    def __init__(
        self, original: TunnelSizing, counters: TracedCounters, recorder: Recorder
    ) -> None:
        adopt(self, original, "watchers")
        self.watchers = []
        self._counters: TracedCounters = counters
        self._recorder = recorder
        self.oversize = TracedOversize(original.oversize, counters, recorder)
        self.sizes, self.sizes_out = _sizes(original.sizes), _sizes(original.sizes_out)
        self._clamp: MssClamp | None = copy.copy(self._clamp)
        if self._clamp is not None:
            vars(self._clamp)["_counters"] = counters

    def on_syn_sent(self, frame: memoryview, syn: ip.Transport) -> None:
        """Clamp as the original would, and record the result."""
        before = ip.tcp_mss(frame, syn)
        super().on_syn_sent(frame, syn)
        self._note(before, ip.tcp_mss(frame, syn))

    def on_syn_received(self, frame: memoryview, syn: ip.Transport) -> None:
        """Clamp as the original would, and record the result."""
        before = ip.tcp_mss(frame, syn)
        super().on_syn_received(frame, syn)
        self._note(before, ip.tcp_mss(frame, syn))

    def _note(self, before: int | None, after: int | None) -> None:
        option = "off" if self._clamp is None else f"tunnel MTU {self.mtu}"
        if before is None:
            text = "SYN without an MSS: nothing to lower"
        elif after != before:
            text = f"MSS of the SYN lowered from {before} to {after}"
        else:
            text = f"MSS {before} of the SYN stays"
        self._recorder.add("mss", text, f"--mss-clamp ({option})")


def _sizes(original: SegmentSizes) -> SegmentSizes:
    sizes = copy.copy(original)
    adopt(sizes, original)
    return sizes
