"""The data path: the slow path with every rule, and decisions that save most frames from it.

- `egress`: from the TAP to the underlay. Read, inspect, route, account, segment, send.
- `transmitter`: the sending half of egress, with backpressure.
- `ingress`: from the underlay to the TAPs. Receive, admit, merge, deliver.
- `receive_mode`: whether a receiver receives singly, or many datagrams with a system call.
- `singles`, `superframe_repeat`: decisions of ingress that are kept to be repeated.
- `pool`: the paths to remotes, shared by the VNIs of a process.
- `observers`: how a capture is shown each frame, one at a time.
- `tap_fallback`: another form for frames that the kernel of a TAP refuses.

Nothing here decides about a frame (see `vtep.forwarding`), and nothing waits: a turn of the event
loop handles what is there, within a budget.

The first frame of a kind takes the slow path. What was decided about it is kept under its run key
(see `wire.flow`), and repeated for each frame with that key without parsing it. A change of the
tables that a decision depends on makes it invalid (`Segment.verdict_watchers`).

A *run* is a sequence of frames with one route, source port and size, which are sent together. Of a
turn, egress keeps one run for each source port, so flows that alternate are sent in as few system
calls as their sockets allow. Frames of one flow are never reordered, those of different flows may.

Observation points
------------------

On the slow path, every frame passes these calls at the edges. There a capture attaches (see
`observers`): `read` and `write` of a TAP are attributes that can be replaced, and
`Egress.observe` and `Ingress.observe` hide methods of one instance. An unused observer costs
nothing. Compiled turns bypass these calls: what must see every frame keeps a VNI from using the
fast path.

============== ======================= =======================================================
point          call                    passes
============== ======================= =======================================================
TAP in         `TapDevice.read`        frames and superframes of the host, with virtio header
TAP out        `TapDevice.write`       frames and superframes to the host, those of the
                                       fallback, ARP and ND replies, ICMP errors
underlay in    `Receiver.receive`,     datagrams and batches of remotes, with source and ECN
               `.receive_many`         field; echo requests and replies
underlay out   `Transmitter.send`,     batches to remotes, once each: runs, segments, fragments,
               `.send_superframe`,     floods, flooded requests; superframes with tunnel GSO
               `.send_next_superframe`
============== ======================= =======================================================

Two kinds of datagrams have calls of their own, since they belong to no flow of a VNI: echo replies
of this VTEP (`Receiver.send_unfragmented`), and datagrams that an ingress filter keeps from the
receiver (`Ingress.handle_datagram`). The latter are counted and dropped, unless the filter lags
behind a change of the remotes.
"""

from vtep.datapath.egress import Arena, Egress
from vtep.datapath.ingress import Ingress

__all__ = ["Arena", "Egress", "Ingress"]
