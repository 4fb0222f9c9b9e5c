"""Access to the control socket: which methods a peer may call, by its user and its groups.

The table `READING` serves both ends: the server refuses other methods to peers that may only read,
and the client does not call them in another network namespace.
"""

from collections.abc import Collection
from enum import IntEnum

from attrs import frozen

READING = frozenset(
    (
        *("ping", "process.show", "fdb.show", "fdb.get", "fdb.sample", "neigh.show"),
        *("remote.show", "vni.show", "loop.show", "storm.show", "stats", "status", "trace"),
        *("monitor.subscribe", "upgrade.show", "evpn.show"),
    )
)
"""Methods that change nothing. All others change something: a new method is refused to readers
until it is listed here."""


class Access(IntEnum):
    """The rights of a peer; each value includes those below it."""

    NONE = 0
    READ = 1
    CHANGE = 2


@frozen
class Group:
    """A group, with its name or number as it was configured."""

    name: str
    gid: int


@frozen
class Peer:
    """The user and the groups of the process at the other end, when it connected."""

    uid: int
    gids: Collection[int]


@frozen
class Policy:
    """The access of each peer.

    Root and the user `uid`, as which the VTEP runs, may always do everything: both could as well
    trace or replace its process.
    """

    uid: int
    readers: Group | None = None
    """The group of --control-group."""
    changers: Group | None = None
    """The group of --control-admin-group."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose members may connect."""
        return tuple(group for group in (self.readers, self.changers) if group is not None)

    def access(self, peer: Peer) -> Access:
        """Return what a peer may do."""
        if peer.uid in (0, self.uid):
            return Access.CHANGE
        if self.changers is not None and self.changers.gid in peer.gids:
            return Access.CHANGE
        if self.readers is not None and self.readers.gid in peer.gids:
            return Access.READ
        return Access.NONE

    def refusal(self, method: str, access: Access) -> str | None:
        """Return why a peer with this access may not call a method; None if it may."""
        if access is Access.CHANGE or (access is Access.READ and method in READING):
            return None
        needs = (
            f"be a member of group {self.changers.name}"
            if self.changers is not None
            else "use sudo (pyvtep runs without --control-admin-group)"
        )
        return f"{method}: permission denied: members of {self._readers} may only read; {needs}"

    @property
    def _readers(self) -> str:
        return f"group {self.readers.name}" if self.readers is not None else "no group"

    def connect_refusal(self) -> str:
        """Return why a peer without any access is disconnected, and what to do."""
        groups = " or ".join(group.name for group in self.groups)
        needs = f", or be a member of group {groups}" if groups else ""
        return f"permission denied: run this with sudo, or as the user that runs pyvtep{needs}"
