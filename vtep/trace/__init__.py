"""`pyvtep trace`: what would happen to a frame, without sending or changing anything.

The decisions are those of the data path itself: its own code handles the frame, on a *replica* of
the segment. A replica reads the tables of the original, and keeps what the frame changes to itself;
so it is made at once, however large the tables are. The frame comes from a TAP in memory, and ends
at sockets in memory. Each part of a replica records what its original would have decided.

- `overlay`: a dict on top of another one, which stays as it is
- `copying`: the attributes that a replica begins with
- `replica`, `sizing`: the parts of a segment that record their decisions
- `edges`: the TAP and the sockets
- `steps`: the record of a trace, and its result
- `run`: a trace in each direction
- `text`: descriptions of frames and entries
- `fields`, `packets`: frames from what a user gives, on the side of the command
"""
