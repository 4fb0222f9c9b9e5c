"""The sources that a segment accepts although they are not its members (`--accept`)."""

from collections.abc import Callable
from ipaddress import ip_address

from vtep.forwarding.fdb import Fdb, Remote
from vtep.forwarding.policy import Networks

_HOSTS_MAX = 4096
"""Sources from which those without an FDB entry are forgotten."""


class NonMembers:
    """The accepted sources of a segment that are not members, with the remote of each.

    `on_forgotten` is called after some were forgotten because there were too many.
    """

    def __init__(self, fdb: Fdb, accept: Networks, on_forgotten: Callable[[], None]) -> None:
        self.accept = accept
        """Networks from which datagrams are accepted."""
        self.remotes: dict[str, Remote] = {}
        """By host, the remote for MACs that are learned from there."""
        self._fdb = fdb
        self._on_forgotten = on_forgotten
        self._max = _HOSTS_MAX

    def accepts(self, host: str) -> bool:
        """Return True if datagrams from a host are accepted, also if it is not a member."""
        if not self.accept:
            return False
        if host in self.remotes:
            return True
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self.accept)

    def remote(self, host: str) -> Remote | None:
        """Return the remote of a host, which is made if need be; None if it is not accepted."""
        if not self.accepts(host):
            return None
        remote = self.remotes.get(host)
        if remote is None:
            # A flood from forged addresses must not fill the memory.
            if len(self.remotes) >= self._max:
                self._forget_idle()
            remote = self.remotes[host] = Remote(host, self._fdb.port)
        return remote

    def _forget_idle(self) -> None:
        """Forget hosts without an FDB entry, and do so again when there are twice as many."""
        use_count = self._fdb.members.use_count
        self.remotes = {host: each for host, each in self.remotes.items() if use_count(each)}
        self._max = max(_HOSTS_MAX, 2 * len(self.remotes))
        self._on_forgotten()
