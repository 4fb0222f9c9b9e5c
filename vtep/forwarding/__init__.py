"""Forwarding decisions without I/O.

- `segment`: one VNI, which routes and counts frames and admits datagrams.
- `demux`: from received datagrams to segments.
- `policy`: what a segment accepts and changes.
- `fdb`: which remotes a MAC is reachable through.
- `suppress`: ARP and ND requests that are answered locally.
- `anycast`: messages about anycast gateways that do not cross the tunnel.
- `echo`: replies to echo requests.
- `ingress_filter`: the accepted sources as a classic BPF program.

Time is passed in, in seconds of any monotonic clock. Input from the network is hostile: nothing
here raises an exception on it, and every frame that is dropped is counted by its reason.
"""
