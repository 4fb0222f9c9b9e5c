"""Route and account frames as the egress data path does."""

from vtep.forwarding.fdb import Remote
from vtep.forwarding.segment import Segment
from vtep.wire import Buffer


def routed(segment: Segment, frame: Buffer, count: int = 1) -> tuple[Remote, ...]:
    """Count a frame as `count` frames. Returns: the remotes to which it goes."""
    route = segment.route(frame)
    segment.account(route, count, count * len(frame))
    return route.destinations
