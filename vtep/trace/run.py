"""A trace of one frame, in each direction."""

import time
from collections.abc import Callable, Mapping

from vtep.daemon.build import make_paths
from vtep.daemon.listener import Listener
from vtep.daemon.port import Port
from vtep.datapath import Arena, Egress, Ingress
from vtep.datapath.pool import Pool
from vtep.errors import VtepError
from vtep.forwarding.segment import Segment
from vtep.host.link_table import Link
from vtep.trace import fast_path
from vtep.trace.edges import TracedSockets, TracedTap
from vtep.trace.overlay import Overlay
from vtep.trace.replica import TracedDemux, TracedSegment
from vtep.trace.sizing import TracedSizing
from vtep.trace.steps import Recorder, TracedCounters, TraceResult, merge_grown
from vtep.trace.text import describe_frame
from vtep.tunnel_gso.ack_tracker import AckTracker
from vtep.wire import ethernet, vxlan
from vtep.wire.address import version_of

FRAME_MAX = 65535
"""Octets of a frame or datagram that can be traced."""

_SOURCE_PORT = 0
"""The UDP port of the sender, on which nothing here depends: a single datagram is no run."""

_ECN_NAMES = ("Not-ECT", "ECT(1)", "ECT(0)", "CE")


def trace_from_tap(port: Port, frame: bytes, header: bytes = b"") -> TraceResult:
    """Return what would happen to a frame from the TAP of a port.

    `header` is its virtio header; without one, the frame is no superframe.

    Raises: VtepError if the port does not forward.
    """
    recorder = Recorder(time.monotonic())
    if not port.is_open:
        raise VtepError(f"vni {port.config.vni}: does not forward; see: pyvtep status")
    segment = TracedSegment(port.segment, recorder)
    sizing = TracedSizing(port.sizing, segment.counters, recorder)
    sockets = TracedSockets(port, recorder)
    # Without tunnel GSO, whose first use of a remote would begin to probe it.
    offload = port.offload - {"tnl"}
    paths = make_paths(port.config, Pool(sockets=sockets), offload, lambda _remote, _mtu: None)
    tap = TracedTap(port, recorder, frame, header)
    egress = Egress(
        *(tap, segment, paths, sizing, AckTracker(), Arena()),
        lambda _error: None,
    )
    recorder.add(
        "read", f"{len(frame)} octets from {port.tap}", f"the TAP of VNI {port.config.vni}"
    )
    if port.is_waiting:
        recorder.add("read", "the frame would wait: a send buffer is full", "backpressure")
    limit = sizing.oversize.limit
    fits = len(frame) <= limit
    recorder.add(
        "size",
        f"{len(frame)} octets {'fit' if fits else 'exceed what the tunnel carries'}",
        f"tunnel MTU {sizing.mtu}: frames of {limit} octets",
    )
    egress.readable()
    answers = recorder.written and not recorder.drops  # An ICMP error tells of a drop.
    outcome = "forwarded" if recorder.sent else "answered" if answers else "dropped"
    fast = fast_path.describe(port, frame, recorder, from_tap=True)
    return _result(port, "transmit", outcome, frame, recorder, {0: segment.counters}, fast)


def trace_from_underlay(
    port: Port,
    ports: Mapping[int, Port],
    datagram: bytes,
    source: str,
    outer_ecn: int = 0,
    link_of: Callable[[Port], Link | None] = lambda _: None,
) -> TraceResult:
    """Return what would happen to a UDP datagram that a listener of a port receives.

    `ports` are all ports of the VTEP, by VNI: the datagram goes to the one that its header names.
    `outer_ecn` is the ECN field of the outer IP header. `link_of` returns the
    TAP of a port; one that is not known is up.

    Raises: VtepError if the port does not receive over that version of IP.
    """
    recorder = Recorder(time.monotonic())
    listener = _listener(port, source)
    counters: dict[int, TracedCounters] = {}

    def replicate(original: Segment) -> Segment:
        """Make the replica of a segment when the datagram is found to be for it."""
        owner = ports[original.vni]
        segment = TracedSegment(original, recorder)
        counters[original.vni] = segment.counters
        sizing = TracedSizing(owner.sizing, segment.counters, recorder)
        link = link_of(owner)
        tap = TracedTap(owner, recorder, is_up=link is None or link.is_up)
        ingress.attach(segment, tap, sizing, AckTracker(), lambda: None)
        return segment

    segments = Overlay(listener.demux.segments, replicate)
    demux = TracedDemux(listener.demux, segments, recorder)
    counters[-1] = demux.counters
    ingress = Ingress((), demux, lambda _error: None)
    inner = datagram[vxlan.HEADER_LEN :]
    recorder.add(
        "receive",
        f"a datagram of {len(datagram)} octets from {source}",
        f"UDP port {listener.endpoint.port}",
    )
    octets = len(datagram)
    received = octets, octets, source, _SOURCE_PORT, outer_ecn
    ingress.handle_datagram(memoryview(bytearray(datagram)), received, time.monotonic())
    # The segment that its header names, which may be another one than that of the port.
    port = next((ports[vni] for vni in counters if vni in ports), port)
    if outer_ecn:
        _note_ecn(inner, outer_ecn, recorder)
    outcome = "delivered" if recorder.written else "answered" if recorder.replies else "dropped"
    if recorder.has("echo") and not recorder.drops:
        outcome = "answered"
    fast = fast_path.describe(port, inner, recorder, from_tap=False)
    return _result(port, "receive", outcome, datagram, recorder, counters, fast)


def _listener(port: Port, source: str) -> Listener:
    version = version_of(source)
    for listener in port.listeners:
        if listener.version == version:
            return listener
    have = " and ".join(f"IPv{each.version}" for each in port.listeners) or "no address"
    raise VtepError(
        f"vni {port.config.vni}: receives over {have} only, and {source} is IPv{version}: no "
        "socket would receive the datagram; add a remote of that version"
    )


def _note_ecn(inner: bytes, outer_ecn: int, recorder: Recorder) -> None:
    """Record the result of the ECN field of the outer header."""
    outer = _ECN_NAMES[outer_ecn]
    if not recorder.written:
        return
    after = bytes.fromhex(recorder.written[0]["frame"])
    fields = [_inner_ecn(frame) for frame in (inner, after)]
    names = ["none" if field is None else _ECN_NAMES[field] for field in fields]
    recorder.add(
        "ecn",
        f"outer {outer}, inner {names[0]}: the frame is delivered with {names[1]}",
        "RFC 6040, figure 4",
    )


def _inner_ecn(frame: bytes) -> int | None:
    ethertype, offset = ethernet.network_layer(frame)
    if ethertype == ethernet.TYPE_IPV4 and offset + 20 <= len(frame):
        return frame[offset + 1] & 3
    if ethertype == ethernet.TYPE_IPV6 and offset + 40 <= len(frame):
        return frame[offset + 1] >> 4 & 3
    return None


def _result(
    port: Port,
    direction: str,
    outcome: str,
    frame: bytes,
    recorder: Recorder,
    counters: Mapping[int, TracedCounters],
    fast: str,
) -> TraceResult:
    inner = frame if direction == "transmit" else frame[vxlan.HEADER_LEN :]
    return {
        "vni": port.config.vni,
        "dev": port.tap,
        "direction": direction,
        "outcome": outcome,
        "frame": frame.hex(),
        "summary": describe_frame(inner),
        "steps": recorder.steps,
        "sent": recorder.sent,
        "written": recorder.written,
        "replies": recorder.replies,
        "drops": recorder.drops,
        "counters": merge_grown(counters),
        "fast_path": fast,
    }
