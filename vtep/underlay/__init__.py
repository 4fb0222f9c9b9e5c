"""The underlay's UDP sockets: those that receive, and pools that send to each remote.

What we send leaves from one source port for each value of the flow hash that we tell apart, because
routers and NICs spread flows by it. The socket on the VXLAN port only receives, unless that port is
one of the source ports.
"""

from vtep.underlay.guard import Arrival, IngressGuard, attach_filter, detach_filter
from vtep.underlay.path import FLOW_BITS, POOL_MAX, Path, batch_max, pool_slots, superframe_max
from vtep.underlay.replicate import Recipients, Replicator, Sent
from vtep.underlay.senders import SenderSockets
from vtep.underlay.shared import Sender, SharedSocket, connected
from vtep.underlay.sockets import (
    Binding,
    Outer,
    Received,
    device_name,
    host_of,
    join,
    joins_datagrams,
    open_receiver,
    policy_of,
    receive,
    receive_queue_drops,
    segments_datagrams,
    send_whole,
)
from vtep.underlay.statistics import UdpErrors

__all__ = [
    "FLOW_BITS",
    "POOL_MAX",
    "Arrival",
    "Binding",
    "IngressGuard",
    "Outer",
    "Path",
    "Received",
    "Recipients",
    "Replicator",
    "Sender",
    "SenderSockets",
    "Sent",
    "SharedSocket",
    "UdpErrors",
    "attach_filter",
    "batch_max",
    "connected",
    "detach_filter",
    "device_name",
    "host_of",
    "join",
    "joins_datagrams",
    "open_receiver",
    "policy_of",
    "pool_slots",
    "receive",
    "receive_queue_drops",
    "segments_datagrams",
    "send_whole",
    "superframe_max",
]
