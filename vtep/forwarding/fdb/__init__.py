"""The forwarding database (FDB): by MAC address, the remotes that frames are sent to.

The FDB of one segment holds static and permanent entries, entries of a control plane, and entries
learned from traffic. It is what `bridge fdb` shows for a kernel VXLAN device.

- `remote`: a remote VTEP as a destination of entries, and the parser for it.
- `origin`: the origin of a destination: this host, a control plane, or both.
- `entry`: one entry, its state and flags, the events and filters about entries.
- `members`: the remotes in use, and the hosts that belong to the segment because of them.
- `moves`: the limit of moves, beyond which a MAC is held.
- `ageing`: the timing wheel that finds entries to expire.
- `store`: the storage of entries by MAC.
- `table`: `Fdb`, which combines them: what commands, learning and ageing do to entries.

Nothing here reads a clock. Methods that need the time take it in seconds of any monotonic clock.
"""

from vtep.forwarding.fdb.entry import (
    EVERYTHING,
    LEARNED,
    PERMANENT,
    Entry,
    EntryEvent,
    EntryKind,
    EntryState,
    Filter,
    Learned,
)
from vtep.forwarding.fdb.members import Members
from vtep.forwarding.fdb.origin import EXTERN_LEARN, LOCAL, SEQUENCE_MAX, DestinationOrigin
from vtep.forwarding.fdb.remote import Remote, parse_remote
from vtep.forwarding.fdb.table import Fdb

__all__ = [
    "EVERYTHING",
    "EXTERN_LEARN",
    "LEARNED",
    "LOCAL",
    "PERMANENT",
    "SEQUENCE_MAX",
    "DestinationOrigin",
    "Entry",
    "EntryEvent",
    "EntryKind",
    "EntryState",
    "Fdb",
    "Filter",
    "Learned",
    "Members",
    "Remote",
    "parse_remote",
]
