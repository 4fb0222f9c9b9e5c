"""Captures of frames and datagrams, as they pass the edges of the data path.

- `captures`: the captures of a VTEP; it attaches recorders to VNIs, and removes them again.
- `recorders`: the observers of a VNI and of a receiving port (see `vtep.datapath.observers`).
- `events`: a handled frame or datagram with all that became of it, and its records.
- `session`: one capture: which records it keeps, and its bounded buffer of pcapng.
- `libpcap`: filter expressions. `outer_frame`: the outer headers, which the kernel has removed.

Nothing of this exists while there is no capture.
"""
