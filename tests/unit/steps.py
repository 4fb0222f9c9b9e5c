"""Single steps of the data path, as it takes them."""

from vtep.forwarding.fdb import Remote
from vtep.forwarding.segment import Segment
from vtep.offload.oversize import Outcome, Oversize
from vtep.offload.partial import SYN_MAX, SegmentSizes
from vtep.offload.sizing import TunnelSizing
from vtep.wire import Buffer
from vtep.wire import ip as inet
from vtep.wire.ethernet import network_layer


def routed(segment: Segment, frame: Buffer, count: int = 1) -> tuple[Remote, ...]:
    """Count a frame as `count` frames. Returns: the remotes to which it goes."""
    route = segment.route(frame)
    segment.account(route, count, count * len(frame))
    return route.destinations


def syn_sent(sizing: TunnelSizing, frame: memoryview) -> None:
    """Send a frame from the TAP, which may be a SYN."""
    if (syn := inet.tcp_syn(frame)) is not None:
        sizing.on_syn_sent(frame, syn)


def syn_received(sizing: TunnelSizing, frame: memoryview) -> None:
    """Deliver a frame to the TAP, which may be a SYN."""
    if (syn := inet.tcp_syn(frame)) is not None:
        sizing.on_syn_received(frame, syn)


def observe(sizes: SegmentSizes, frame: Buffer) -> None:
    """Store the MSS of a frame, which may be a SYN."""
    if len(frame) <= SYN_MAX and (syn := inet.tcp_syn(frame)) is not None:
        sizes.observe(frame, syn)


def handle(oversize: Oversize, frame: memoryview, now: float) -> Outcome:
    """Handle an oversize frame."""
    return oversize.handle(frame, network_layer(frame), now)
