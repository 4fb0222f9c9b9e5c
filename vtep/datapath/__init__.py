"""The data path: frames from the TAP to the underlay (`outbound`), and back (`inbound`).

One superframe outwards: `Egress.readable` reads it, `Splitter` cuts it, `Segment` says where it
goes, `Path` sends it. One burst inwards: `Ingress.readable` receives it, `Merger` joins it,
`Switch` judges it, the TAP takes it. Nothing is decided here, and nothing waits: what is there is
drained, and the loop has its turn again. What goes on where something before it ended is handled
together with that, and what is like the one before is done as that was (`wire.flow` says what is).
"""

from vtep.datapath.egress import Arena, Egress
from vtep.datapath.ingress import Ingress

__all__ = ["Arena", "Egress", "Ingress"]
