"""What becomes of frames that the tunnel can't carry, and how their senders learn of it.

The tunnel's MTU is the largest IP packet inside that fits the underlay behind the headers of VXLAN.
It may be smaller than the MTU of what is attached to the TAP, and nobody has to change a setting:

- TCP announces what the tunnel carries, since the MSS in its SYNs is lowered (`mss`);
- TCP segments that are too large all the same are cut to fit (`oversize`);
- IPv4 that may be fragmented is (`fragment`);
- other IP packets are dropped, and their senders told (`vtep.wire.icmp`).
"""
