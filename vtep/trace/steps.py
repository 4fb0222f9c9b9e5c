"""The record of a trace: the decisions in their order, and the result."""

from collections.abc import Mapping
from typing import Any, TypedDict

from vtep.counters import Counters, Detail, Drop


class TraceStep(TypedDict):
    """A decision."""

    stage: str
    """The part of the walk of a frame, such as route."""
    decision: str
    """The result, with its reason."""
    rule: str
    """The option, the table, the limit or the section of an RFC behind it; may be empty."""


class TraceDrop(TypedDict):
    """A drop that would be counted."""

    reason: str
    """The name of its counter."""
    meaning: str
    count: int
    """Frames or datagrams."""
    source: str | None
    """The underlay address of the sender, if it came from the underlay."""


class TraceSent(TypedDict):
    """The datagrams for one remote."""

    remote: str
    port: int
    vni: int
    source: str | None
    """The source address; None if the kernel chooses it when the socket is opened."""
    source_port: int | None
    """None if it is chosen when the socket is opened."""
    flow: int
    """The low bits of the flow hash, by which the source port is chosen."""
    dev: str | None
    """The underlay device towards it; None if there is no route."""
    is_ready: bool
    """True if a socket is open for it."""
    path_mtu: int | None
    """Octets of the largest outer packet that is known to pass; None if it is not known yet."""
    ttl: int | None
    """The outer TTL or hop limit; None for the default of the host."""
    dscp: int
    ecn: int
    flowlabel: int
    df: bool
    """True if the datagram must not be fragmented."""
    datagrams: list[str]
    """UDP payloads in hexadecimal: VXLAN header and frame."""


class TraceWritten(TypedDict):
    """A frame that would be written to a TAP."""

    dev: str
    vni: int
    frame: str
    """In hexadecimal."""
    segment_size: int
    """Of a superframe, the octets of payload in each segment; else 0."""
    is_partial: bool
    """True if its checksum is left to the kernel to complete."""


class TraceResult(TypedDict):
    """The prediction for a frame or a datagram."""

    vni: int
    dev: str
    direction: str
    """transmit (from the TAP) or receive (from the underlay)."""
    outcome: str
    """forwarded, delivered, answered or dropped."""
    frame: str
    """The frame, or the whole datagram, in hexadecimal."""
    summary: str
    steps: list[TraceStep]
    sent: list[TraceSent]
    written: list[TraceWritten]
    replies: list[str]
    """Echo replies that would be sent to the source, in hexadecimal."""
    drops: list[TraceDrop]
    counters: dict[str, int]
    """Counters that would grow, by how much; drops included."""
    fast_path: str
    """The treatment of such frames by the fast path."""


class Recorder:
    """The decisions about one frame, in order."""

    def __init__(self, now: float) -> None:
        self.now = now
        """The time of the trace, in seconds of the monotonic clock."""
        self.steps: list[TraceStep] = []
        self.sent: list[TraceSent] = []
        self.written: list[TraceWritten] = []
        self.replies: list[str] = []
        self.is_known = False
        """True if the destination has an FDB entry, or the source only refreshes its entry."""
        self.drops: list[TraceDrop] = []

    def add(self, stage: str, decision: str, rule: str = "", at: int | None = None) -> None:
        """Record a decision, once if several parts of the data path ask for it.

        With `at`, it comes before the drop that was recorded as its consequence.
        """
        step: TraceStep = {"stage": stage, "decision": decision, "rule": rule}
        if step not in self.steps:
            self.steps.insert(len(self.steps) if at is None else at, step)

    def has(self, stage: str) -> bool:
        """Return True if a decision of a stage was recorded."""
        return any(step["stage"] == stage for step in self.steps)


class TracedCounters(Counters):
    """Counters of a replica, which begin at 0, and record drops."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def drop(
        self,
        reason: Drop,
        source: str | None = None,
        count: int = 1,
        detail: Detail | None = None,
    ) -> None:
        """Count and record a drop."""
        super().drop(reason, source, count, detail)
        self._recorder.add("drop", f"dropped: {reason.meaning}", f"counter {reason}")
        self._recorder.drops.append(
            {"reason": str(reason), "meaning": reason.meaning, "count": count, "source": source}
        )

    def grown(self) -> dict[str, int]:
        """Return the counters that have grown, by name, without those of system calls."""
        return {
            name: count
            for name, count in self.as_dict().items()
            if count and not name.endswith("_syscalls")
        }


def merge_grown(parts: Mapping[Any, TracedCounters]) -> dict[str, int]:
    """Return the sums of what several counters have grown by."""
    total: dict[str, int] = {}
    for counters in parts.values():
        for name, count in counters.grown().items():
            total[name] = total.get(name, 0) + count
    return total
