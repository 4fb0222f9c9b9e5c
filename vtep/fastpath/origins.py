"""The objects from which the rows of the fast path were derived.

Apart from the tables, this module needs no compiled code.
"""

from collections.abc import Callable

from attrs import frozen

from vtep.forwarding.fdb import Entry
from vtep.forwarding.segment import Segment
from vtep.io.path import Path


@frozen(eq=False)
class Origin:
    """The objects from which a row was derived, and which it counts for."""

    segment: Segment
    mac: bytes


@frozen(eq=False)
class TransmitOrigin(Origin):
    """The origin of a row for frames from a TAP."""

    entry: Entry
    """The FDB entry of their destination."""
    path: Path
    fields: int
    """Packed outer header fields (see `vtep.wire.outer_header`)."""
    is_superframe: bool


@frozen(eq=False)
class UnknownOrigin(Origin):
    """The origin of a row about a MAC that is not in the FDB: storm control limits its frames."""


@frozen(eq=False)
class ReceiveOrigin(Origin):
    """The origin of a row for datagrams from the underlay."""

    host: str
    """The address of their sender."""
    entry: Entry | None
    """The FDB entry that they refresh; None if nothing is learned."""
    kick_egress: Callable[[], None]
    """Sends the frames that wait in the TAP."""


@frozen(eq=False)
class MeterOrigin(Origin):
    """The origin of a row with the meter of a remote, for storm control. Its MAC is empty."""

    port: int
    """The number of the receiving socket, as in a key."""
    host: str
    """The address of the remote."""
    header: bytes
    """The VXLAN header of its datagrams."""
    number: int
    """The row of `meters`."""
    kick_egress: Callable[[], None]
    """As in `ReceiveOrigin`."""

    @property
    def identity(self) -> tuple[object, ...]:
        """Receiving socket, address of the sender and VXLAN header."""
        return self.port, self.host, self.header
