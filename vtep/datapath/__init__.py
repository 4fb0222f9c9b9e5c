"""The data path: the slow path with every rule, and the runs that save most frames from it.

- `egress`: from the TAP to the underlay. Read, inspect, route, account, segment, send.
- `transmitter`: the sending half of egress, with backpressure.
- `ingress`: from the underlay to the TAPs. Receive, admit, merge, deliver.
- `pool`: the paths to remotes, shared by the VNIs of a process.
- `tap_fallback`: another form for frames that the kernel of a TAP refuses.

Nothing here decides about a frame (see `vtep.forwarding`), and nothing waits: a turn of the event
loop handles what is there, within a budget.

A *run* is a sequence of consecutive frames of one flow that need the same treatment. The first
frames of a run take the slow path. A following frame that matches them in its run key (see
`wire.flow`) is handled in the same way without being parsed.

Observation points
------------------

Every frame passes these calls at the edges. There a capture, a storm limit or a per-remote counter
can attach, by a wrapper that is put in before the data path starts. So an unused one costs nothing.

============== ======================= =======================================================
point          call                    passes
============== ======================= =======================================================
TAP in         `TapDevice.read`        frames and superframes of the host, with virtio header
TAP out        `TapDevice.write`       frames and superframes to the host, those of the
                                       fallback, ARP and ND replies, ICMP errors
underlay in    `Receiver.receive`      datagrams and batches of remotes, with source and ECN
                                       field; echo requests and replies
underlay out   `Transmitter.send`      batches to remotes, once each: runs, segments, fragments,
                                       floods, flooded requests
============== ======================= =======================================================

Three kinds of datagrams have calls of their own, because other code makes them: superframes with
tunnel GSO (`SuperframeSender.send` and `send_next`), echo replies (`Receiver.send_unfragmented`),
and datagrams that an ingress filter keeps from the receiver (`Ingress.handle_datagram`). Receivers,
senders and flooders all come from one `SocketFactory`, so a wrapper around that sees all datagrams
but the first and the last kind.
"""

from vtep.datapath.egress import Arena, Egress
from vtep.datapath.ingress import Ingress

__all__ = ["Arena", "Egress", "Ingress"]
